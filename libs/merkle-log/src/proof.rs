//! Inclusion and consistency proofs (RFC 9162 sections 2.1.3 and 2.1.4): planned here, fetched by the caller, finished here.

use std::cell::RefCell;
use std::collections::BTreeMap;

use session_model::{Digest, LeafHash, LeafIndex, TreeSize};
use tlog_tiles::tlog::{
    self, Error, Hash, HashReader, check_record, check_tree, node_hash, prove_record, prove_tree,
    split_stored_hash_index,
};

use crate::frontier::STORED_LEVEL_STEP;
use crate::{to_digest, to_hash};

/// Why there is no proof, or why one does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The index or size asked about lies outside the tree.
    #[error("there is no such proof: the index or size lies outside the tree")]
    OutOfRange,
    /// The hashes that were fetched are not those that were asked for.
    #[error("the stored hashes do not answer the plan")]
    WrongHashes,
    /// The proof does not prove what it claims.
    #[error("the proof does not hold")]
    DoesNotHold,
}

/// A run of stored hashes: leaves (level 0) or stored nodes (level 8, 16, …).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashRange {
    /// 0, 8, 16, …
    pub level: u8,
    /// First of the run.
    pub start: u64,
    /// How many: at most 128.
    pub count: u64,
}

#[derive(Debug, Clone, Copy)]
enum Claim {
    Inclusion { index: u64, size: u64 },
    Consistency { from: u64, to: u64 },
}

/// What must be fetched to build a proof.
#[derive(Debug, Clone)]
pub struct Plan {
    claim: Claim,
    needs: Vec<(u64, HashRange)>,
}

impl Plan {
    /// Plans the proof that the leaf at `index` is in the tree of `size`.
    ///
    /// # Errors
    /// [`ProofError::OutOfRange`] if it cannot be.
    pub fn inclusion(index: LeafIndex, size: TreeSize) -> Result<Self, ProofError> {
        if index.0 >= size.0 {
            return Err(ProofError::OutOfRange);
        }
        Ok(Self::of(Claim::Inclusion { index: index.0, size: size.0 }))
    }

    /// Plans the proof that the tree of size `from` is a prefix of the tree of size `to`.
    ///
    /// # Errors
    /// [`ProofError::OutOfRange`] unless 0 < `from` ≤ `to`.
    pub fn consistency(from: TreeSize, to: TreeSize) -> Result<Self, ProofError> {
        if from.0 == 0 || from.0 > to.0 {
            return Err(ProofError::OutOfRange);
        }
        Ok(Self::of(Claim::Consistency { from: from.0, to: to.0 }))
    }

    fn of(claim: Claim) -> Self {
        let recorder = Recorder(RefCell::new(Vec::new()));
        // The recorder refuses every read after noting it: the first read names everything the proof needs.
        let _refused = claim.prove(&recorder);
        let needs = recorder
            .0
            .into_inner()
            .into_iter()
            .map(|stored| {
                let (level, index) = split_stored_hash_index(stored);
                let above = level % STORED_LEVEL_STEP;
                (stored, HashRange { level: level - above, start: index << above, count: 1 << above })
            })
            .collect();
        Self { claim, needs }
    }

    /// The runs to fetch, in order.
    pub fn ranges(&self) -> impl Iterator<Item = HashRange> + '_ {
        self.needs.iter().map(|(_, range)| *range)
    }

    /// Builds the proof from the fetched runs, in the order of [`Plan::ranges`].
    ///
    /// # Errors
    /// [`ProofError::WrongHashes`] if a run is missing or has another length.
    pub fn finish(&self, runs: &[Vec<Digest>]) -> Result<Vec<Digest>, ProofError> {
        if runs.len() != self.needs.len() {
            return Err(ProofError::WrongHashes);
        }
        let mut known = BTreeMap::new();
        for ((stored, range), run) in self.needs.iter().zip(runs) {
            if u64::try_from(run.len()) != Ok(range.count) {
                return Err(ProofError::WrongHashes);
            }
            known.insert(*stored, subtree(run));
        }
        let proof = self.claim.prove(&Known(known)).map_err(|_| ProofError::WrongHashes)?;
        Ok(proof.into_iter().map(to_digest).collect())
    }
}

impl Claim {
    fn prove(&self, reader: &impl HashReader) -> Result<Vec<Hash>, Error> {
        match *self {
            Self::Inclusion { index, size } => prove_record(size, index, reader),
            Self::Consistency { from, to } => prove_tree(to, from, reader),
        }
    }
}

/// Root of a perfect subtree over 2^k hashes.
fn subtree(run: &[Digest]) -> Hash {
    match run {
        [] => tlog::EMPTY_HASH,
        [only] => to_hash(*only),
        _ => {
            let (left, right) = run.split_at(run.len() / 2);
            node_hash(subtree(left), subtree(right))
        }
    }
}

struct Recorder(RefCell<Vec<u64>>);

impl HashReader for Recorder {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        self.0.borrow_mut().extend_from_slice(indexes);
        Err(Error::IndexesNotInTree)
    }
}

struct Known(BTreeMap<u64, Hash>);

impl HashReader for Known {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        indexes.iter().map(|index| self.0.get(index).copied().ok_or(Error::IndexesNotInTree)).collect()
    }
}

/// Checks an inclusion proof, RFC 9162 section 2.1.3.2.
///
/// # Errors
/// [`ProofError::DoesNotHold`].
pub fn check_inclusion(
    proof: &[Digest],
    size: TreeSize,
    root: Digest,
    index: LeafIndex,
    leaf: LeafHash,
) -> Result<(), ProofError> {
    if index.0 >= size.0 {
        return Err(ProofError::OutOfRange);
    }
    let proof = proof.iter().copied().map(to_hash).collect();
    check_record(&proof, size.0, to_hash(root), index.0, to_hash(leaf)).map_err(|_| ProofError::DoesNotHold)
}

/// Checks a consistency proof, RFC 9162 section 2.1.4.2.
///
/// # Errors
/// [`ProofError::DoesNotHold`].
pub fn check_consistency(proof: &[Digest], from: (TreeSize, Digest), to: (TreeSize, Digest)) -> Result<(), ProofError> {
    if from.0.0 == 0 || from.0.0 > to.0.0 {
        return Err(ProofError::OutOfRange);
    }
    let proof = proof.iter().copied().map(to_hash).collect();
    check_tree(&proof, to.0.0, to_hash(to.1), from.0.0, to_hash(from.1)).map_err(|_| ProofError::DoesNotHold)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Frontier, Node, leaf_hash};

    struct Tree {
        leaves: Vec<Digest>,
        nodes: Vec<Node>,
        roots: Vec<Digest>,
    }

    fn tree(size: u64) -> Tree {
        let mut tree = Tree { leaves: Vec::new(), nodes: Vec::new(), roots: vec![Frontier::empty().root()] };
        let mut frontier = Frontier::empty();
        for i in 0..size {
            let leaf = leaf_hash(&i.to_be_bytes());
            frontier.push(leaf, |node| tree.nodes.push(node));
            tree.leaves.push(leaf);
            tree.roots.push(frontier.root());
        }
        tree
    }

    fn fetch(tree: &Tree, plan: &Plan) -> Vec<Vec<Digest>> {
        let at = |level: u8, index: u64| match level {
            0 => tree.leaves[usize::try_from(index).unwrap()],
            _ => tree.nodes.iter().find(|node| node.level == level && node.index == index).unwrap().hash,
        };
        plan.ranges()
            .map(|range| (range.start..range.start + range.count).map(|i| at(range.level, i)).collect())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_proof_holds_and_no_altered_one_does(size in 1_u64..1_500, a in 0_u64..1_500, b in 1_u64..1_500) {
            let tree = tree(size);
            let size_t = TreeSize(size);
            let root = tree.roots[size as usize];
            let index = LeafIndex(a % size);
            let plan = Plan::inclusion(index, size_t).unwrap();
            let mut proof = plan.finish(&fetch(&tree, &plan)).unwrap();
            let leaf = tree.leaves[index.0 as usize];
            prop_assert_eq!(check_inclusion(&proof, size_t, root, index, leaf), Ok(()));
            prop_assert!(check_inclusion(&proof, size_t, root, index, leaf_hash(b"forged")).is_err());
            if let Some(first) = proof.first_mut() {
                first.0[0] ^= 1;
                prop_assert!(check_inclusion(&proof, size_t, root, index, leaf).is_err());
            }

            let from = TreeSize(1 + b % size);
            let plan = Plan::consistency(from, size_t).unwrap();
            let proof = plan.finish(&fetch(&tree, &plan)).unwrap();
            let old = tree.roots[from.0 as usize];
            prop_assert_eq!(check_consistency(&proof, (from, old), (size_t, root)), Ok(()));
            prop_assert!(check_consistency(&proof, (from, leaf_hash(b"other history")), (size_t, root)).is_err());
        }
    }

    #[test]
    fn what_lies_outside_the_tree_has_no_proof() {
        assert!(Plan::inclusion(LeafIndex(5), TreeSize(5)).is_err());
        assert!(Plan::consistency(TreeSize(0), TreeSize(5)).is_err());
        assert!(Plan::consistency(TreeSize(6), TreeSize(5)).is_err());
    }
}
