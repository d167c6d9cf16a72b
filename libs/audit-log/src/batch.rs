//! Making a batch: order, times, tree and signed checkpoint.

use std::fmt;
use std::sync::Arc;

use merkle_log::{Checkpoint, CheckpointError, Frontier, Node, Signer, leaf_hash, sign_checkpoint};
use parking_lot::RwLock;
use session_model::{EncodeError, LeafIndex, Timestamp, TreeSize};

use crate::{LogHead, Proposed};

/// A tree node that a batch completes.
pub type BatchNode = Node;

/// Entries to append as one, with everything that depends on their place.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The size the log must have.
    pub expected: TreeSize,
    /// The entries, in order; the first gets index `expected`.
    pub entries: Vec<Proposed>,
    /// Inner nodes they complete.
    pub nodes: Vec<BatchNode>,
    /// Where the log ends after them: always with a checkpoint.
    pub head: LogHead,
    /// That checkpoint.
    pub checkpoint: String,
}

impl Batch {
    /// Index of the entry at this position of the batch.
    pub fn index(&self, at: usize) -> LeafIndex {
        LeafIndex(self.expected.0 + at as u64)
    }
}

/// Why a batch cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The checkpoint cannot be signed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A leaf cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Which log this is, and who signs for it.
#[derive(Clone)]
pub struct LogIdentity {
    /// The origin line of its checkpoints.
    pub origin: String,
    /// The keys that sign its checkpoints from the first on: more than one during a rotation.
    pub signers: Vec<Arc<dyn Signer + Send + Sync>>,
}

impl fmt::Debug for LogIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogIdentity({})", self.origin)
    }
}

/// Makes batches for one log. Clones share the keys that sign.
#[derive(Clone)]
pub struct Sequencer {
    origin: String,
    /// Locked while they are copied: a batch is signed by those that signed when it was begun.
    signers: Arc<RwLock<Signers>>,
}

type Signers = Vec<Arc<dyn Signer + Send + Sync>>;

impl fmt::Debug for Sequencer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sequencer({})", self.origin)
    }
}

impl Sequencer {
    /// A sequencer that signs with this identity.
    pub fn new(identity: LogIdentity) -> Self {
        let LogIdentity { origin, signers } = identity;
        Self { origin, signers: Arc::new(RwLock::new(signers)) }
    }

    /// Signs with these keys from the next batch on: those of a rotation.
    pub fn sign_with(&self, signers: Vec<Arc<dyn Signer + Send + Sync>>) {
        *self.signers.write() = signers;
    }

    /// Puts entries behind `head`: in the order of their times, none earlier than the head's (a wall clock set back must not
    /// back-date an entry), hashed into the tree, under a freshly signed checkpoint.
    ///
    /// # Errors
    /// [`BatchError`]; no entry was changed in a way that matters.
    pub fn batch(&self, head: &LogHead, mut entries: Vec<Proposed>) -> Result<Batch, BatchError> {
        entries.sort_by_key(|entry| entry.leaf.time);
        self.ordered(head, entries)
    }

    /// As [`Sequencer::batch`], for entries that are in order already.
    ///
    /// # Errors
    /// [`BatchError`].
    pub fn ordered(&self, head: &LogHead, mut entries: Vec<Proposed>) -> Result<Batch, BatchError> {
        let mut frontier: Frontier = head.frontier.clone();
        let mut nodes = Vec::new();
        let mut time: Timestamp = head.time;
        for entry in &mut entries {
            if entry.leaf.time < time {
                entry.leaf.time = time;
                entry.bytes = entry.leaf.encode()?;
                entry.hash = leaf_hash(&entry.bytes);
            }
            time = entry.leaf.time;
            frontier.push(entry.hash, |node| nodes.push(node));
        }
        let checkpoint = Checkpoint { origin: self.origin.clone(), size: frontier.size(), root: frontier.root() };
        let signers = self.signers.read().clone();
        let signers: Vec<&dyn Signer> = signers.iter().map(|signer| &**signer as &dyn Signer).collect();
        let checkpoint = sign_checkpoint(&checkpoint, &signers)?;
        let expected = head.size();
        let head = LogHead { frontier, time, checkpoint: Some(checkpoint.clone()) };
        Ok(Batch { expected, entries, nodes, head, checkpoint })
    }
}
