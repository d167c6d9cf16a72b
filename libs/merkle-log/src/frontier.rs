//! The right edge of the tree: all that is needed to extend it.

use session_model::{Digest, LeafHash, TreeSize};
use tlog_tiles::tlog::{EMPTY_HASH, node_hash, record_hash};

use crate::{to_digest, to_hash};

/// Inner nodes are stored at every eighth level, as in C2SP tlog-tiles (tile height 8): one for each 256 below it.
pub const STORED_LEVEL_STEP: u8 = 8;

/// Hash of a leaf: SHA-256(0x00 ‖ leaf), RFC 9162 section 2.1.1.
pub fn leaf_hash(leaf: &[u8]) -> LeafHash {
    to_digest(record_hash(leaf))
}

/// An inner node of the tree that is stored for ever: the root of a full subtree of 2^level leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// 8, 16, 24, …
    pub level: u8,
    /// Position among the nodes of that level, from 0.
    pub index: u64,
    /// Its hash.
    pub hash: Digest,
}

/// Bytes that are no frontier of the size they claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored frontier does not fit its tree size")]
pub struct FrontierError;

/// The roots of the perfect subtrees that make up a tree, largest first: at most 64 hashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    roots: Vec<Digest>,
}

impl Frontier {
    /// The frontier of the empty tree.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Reads what [`Frontier::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`FrontierError`] if there are not exactly as many hashes as the size has one-bits.
    pub fn from_bytes(size: TreeSize, bytes: &[u8]) -> Result<Self, FrontierError> {
        let (hashes, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() || u32::try_from(hashes.len()) != Ok(size.0.count_ones()) {
            return Err(FrontierError);
        }
        Ok(Self { size: size.0, roots: hashes.iter().copied().map(Digest).collect() })
    }

    /// Its hashes, one after another.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.roots.iter().flat_map(|hash| hash.0).collect()
    }

    /// How many leaves the tree has.
    pub fn size(&self) -> TreeSize {
        TreeSize(self.size)
    }

    /// Adds a leaf; hands every node to be stored that this completes to `store`.
    pub fn push(&mut self, leaf: LeafHash, mut store: impl FnMut(Node)) {
        let mut hash = to_hash(leaf);
        let mut level = 0_u8;
        // A one-bit of the old size is a perfect subtree that the new leaf completes to one twice as large.
        while self.size >> level & 1 == 1 {
            if let Some(left) = self.roots.pop() {
                hash = node_hash(to_hash(left), hash);
            }
            level += 1;
            if level.is_multiple_of(STORED_LEVEL_STEP) {
                store(Node { level, index: self.size >> level, hash: to_digest(hash) });
            }
        }
        self.roots.push(to_digest(hash));
        self.size += 1;
    }

    /// Root hash of the tree, RFC 9162 section 2.1.1.
    pub fn root(&self) -> Digest {
        let mut roots = self.roots.iter().rev().copied().map(to_hash);
        let last = roots.next().unwrap_or(EMPTY_HASH);
        to_digest(roots.fold(last, |right, left| node_hash(left, right)))
    }
}

#[cfg(test)]
mod tests {
    use ct_merkle::mem_backed_tree::MemoryBackedTree;
    use proptest::prelude::*;

    use super::*;

    /// `ct-merkle` shares no code with `tlog_tiles`: same roots, or one of them is wrong.
    #[test]
    fn roots_are_those_of_ct_merkle() {
        let mut theirs = MemoryBackedTree::<sha2::Sha256, Vec<u8>>::new();
        let mut ours = Frontier::empty();
        for i in 0..1_100_u32 {
            let leaf = i.to_be_bytes().to_vec();
            ours.push(leaf_hash(&leaf), |_| {});
            theirs.push(leaf);
            assert_eq!(ours.root().0.as_slice(), theirs.root().as_bytes().as_slice(), "size {}", i + 1);
        }
    }

    #[test]
    fn stores_one_node_for_each_256_at_every_eighth_level() {
        let mut nodes = Vec::new();
        let mut frontier = Frontier::empty();
        for i in 0..65_536_u32 {
            frontier.push(leaf_hash(&i.to_be_bytes()), |node| nodes.push((node.level, node.index)));
        }
        let expected: Vec<_> = (0..256).map(|i| (8, i)).chain([(16, 0)]).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, expected);
    }

    proptest! {
        #[test]
        fn reads_back(size in 0_u32..600) {
            let mut frontier = Frontier::empty();
            for i in 0..size {
                frontier.push(leaf_hash(&i.to_be_bytes()), |_| {});
            }
            let read = Frontier::from_bytes(frontier.size(), &frontier.to_bytes());
            prop_assert_eq!(read, Ok(frontier.clone()));
            prop_assert_eq!(Frontier::from_bytes(TreeSize(u64::from(size) * 2 + 1), &frontier.to_bytes()), Err(FrontierError));
        }
    }
}
