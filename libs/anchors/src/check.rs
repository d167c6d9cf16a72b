//! The log against itself, and against what was kept elsewhere.

use audit_log::{LogHead, LogReader, ReadError};
use merkle_log::{
    Checkpoint, CheckpointError, Plan, ProofError, Verifier, check_consistency, check_inclusion, leaf_hash,
    open_checkpoint,
};
use sealing::VerifierKey;
use session_model::{Digest, LeafIndex, TreeSize};

/// Why the service refuses to go on with this log.
#[derive(Debug, thiserror::Error)]
pub enum ContradictionError {
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The outside checkpoint was not signed by this log's key.
    #[error("the checkpoint kept at {place} was not signed by this log's key: is it another log's, or was it forged?")]
    Foreign {
        /// Where it is kept.
        place: String,
        /// What is wrong with it.
        source: CheckpointError,
    },
    /// The log's own checkpoint is not good.
    #[error(
        "the log's newest checkpoint does not verify: the database was altered, or the key files are another log's"
    )]
    Head(#[source] CheckpointError),
    /// The log's own checkpoint is of another tree.
    #[error("the log's newest checkpoint is not of its tree: the database was altered")]
    HeadTree,
    /// The newest entries do not hash to what the tree has.
    #[error("the log's newest entries do not hash to its tree: the database was altered at or after entry {0}")]
    Leaves(LeafIndex),
    /// The log is shorter than it was.
    #[error(
        "the log has {size} entries, but {place} proves that it had {anchored}: the database was rolled back. Restore the newest \
         database; to go on with this one all the same, and lose what came after, docs/anchors.md says what to do and record"
    )]
    RolledBack {
        /// How long it is.
        size: TreeSize,
        /// How long it was.
        anchored: TreeSize,
        /// Who says so.
        place: String,
    },
    /// The log is not what it was.
    #[error(
        "the log's first {anchored} entries are not those that the checkpoint at {place} was signed for: the database was \
             rewritten. Restore a good one"
    )]
    Rewritten {
        /// How far it was signed for.
        anchored: TreeSize,
        /// Who says so.
        place: String,
    },
}

impl ContradictionError {
    /// Whether the log and a checkpoint contradict each other, and it is not just that the log cannot be read now.
    pub const fn is_contradiction(&self) -> bool {
        !matches!(self, Self::Read(ReadError::Unavailable(_)))
    }
}

/// Reads a checkpoint that one of these keys has signed.
///
/// # Errors
/// [`CheckpointError`].
pub fn open_signed(text: &str, keys: &[VerifierKey]) -> Result<Checkpoint, CheckpointError> {
    open_checkpoint(text, keys.iter().map(|key| Box::new(key.clone()) as Box<dyn Verifier>).collect())
}

/// The head must be signed by us, be of the tree it claims, and the newest batch must hash to it.
///
/// # Errors
/// [`ContradictionError`].
pub async fn check_head(log: &dyn LogReader, head: &LogHead, keys: &[VerifierKey]) -> Result<(), ContradictionError> {
    let Some(checkpoint) = &head.checkpoint else { return Ok(()) };
    let signed = open_signed(checkpoint, keys).map_err(ContradictionError::Head)?;
    if (signed.size, signed.root) != (head.size(), head.frontier.root()) {
        return Err(ContradictionError::HeadTree);
    }
    let last = LeafIndex(head.size().0.saturating_sub(1));
    for batch in log.batches(last, 1).await? {
        let stored = log.hashes(0, batch.first.0, batch.leaves.len() as u64).await?;
        if !batch.leaves.iter().map(|leaf| leaf_hash(leaf)).eq(stored) {
            return Err(ContradictionError::Leaves(batch.first));
        }
    }
    let proof = prove(log, &Plan::inclusion(last, head.size())).await?;
    let leaf = log.hashes(0, last.0, 1).await?.first().copied().unwrap_or_default();
    check_inclusion(&proof, head.size(), head.frontier.root(), last, leaf).map_err(|_| ContradictionError::Leaves(last))
}

/// Whether the log up to `head` extends the tree that a checkpoint from outside was signed for; answers how far that went.
///
/// # Errors
/// [`ContradictionError`].
pub async fn compare(
    log: &dyn LogReader,
    head: &LogHead,
    outside: &str,
    place: &str,
    keys: &[VerifierKey],
) -> Result<TreeSize, ContradictionError> {
    let place = || place.to_owned();
    let anchored =
        open_signed(outside, keys).map_err(|source| ContradictionError::Foreign { place: place(), source })?;
    if anchored.size > head.size() {
        return Err(ContradictionError::RolledBack { size: head.size(), anchored: anchored.size, place: place() });
    }
    if anchored.size.0 > 0 {
        let proof = prove(log, &Plan::consistency(anchored.size, head.size())).await?;
        let newest = (head.size(), head.frontier.root());
        check_consistency(&proof, (anchored.size, anchored.root), newest)
            .map_err(|_| ContradictionError::Rewritten { anchored: anchored.size, place: place() })?;
    }
    Ok(anchored.size)
}

pub(crate) async fn prove(log: &dyn LogReader, plan: &Result<Plan, ProofError>) -> Result<Vec<Digest>, ReadError> {
    let corrupt = |_| ReadError::Corrupt("its stored hashes do not fit its size".into());
    let plan = plan.as_ref().map_err(|failure| corrupt(*failure))?;
    let mut runs = Vec::new();
    for range in plan.ranges() {
        runs.push(log.hashes(range.level, range.start, range.count).await?);
    }
    plan.finish(&runs).map_err(corrupt)
}
