//! A hash that every node computes alike, of what is no secret.

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): the same in every build, as no hasher of the standard library promises to be.
pub const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first two numbers of SplitMix64 from seed 0, as its authors' program prints them. Nodes of different builds must agree.
    #[test]
    fn is_splitmix64() {
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
    }
}
