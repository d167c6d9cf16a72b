//! Names of files in a bundle.

/// Entries of a group: those that one full hash tile covers.
pub(crate) const GROUP: u64 = 256;

/// A tile's number as C2SP tlog-tiles writes it: groups of three digits, all but the last behind an `x`.
pub(crate) fn number(mut index: u64) -> String {
    let mut text = format!("{:03}", index % 1_000);
    while index >= 1_000 {
        index /= 1_000;
        text = format!("x{:03}/{text}", index % 1_000);
    }
    text
}

/// A tile's number with the width of a partial one.
pub(crate) fn tile(index: u64, width: u64) -> String {
    if width == GROUP { number(index) } else { format!("{}.p/{width}", number(index)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_the_specification_does() {
        assert_eq!(number(0), "000");
        assert_eq!(number(999), "999");
        assert_eq!(number(1_000), "x001/000");
        assert_eq!(number(1_234_067), "x001/x234/067");
        assert_eq!(tile(1, 7), "001.p/7");
        assert_eq!(tile(1, 256), "001");
    }
}
