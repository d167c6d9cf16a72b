//! The newest checkpoint, kept outside the database: what betrays a database that was rolled back or rewritten.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use audit_log::{LogHead, LogReader, ReadError};
use merkle_log::{Checkpoint, CheckpointError, Plan, Verifier, check_consistency, leaf_hash, open_checkpoint};
use sealing::VerifierKey;
use session_model::{LeafIndex, TreeSize};

/// Why the service refuses to go on with this log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnchorError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The outside checkpoint was not signed by this log's key.
    #[error("the outside checkpoint was not signed by this log's key: is it another log's, or was it forged?")]
    Foreign(#[source] CheckpointError),
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
        "the log has {size} entries, but the outside checkpoint {file} proves that it had {anchored}: the database was rolled \
         back. Restore the newest database; to go on with this one all the same, and lose what came after, move that file away \
         and record why"
    )]
    RolledBack {
        /// How long it is.
        size: TreeSize,
        /// How long it was.
        anchored: TreeSize,
        /// Which file says so.
        file: PathBuf,
    },
    /// The log is not what it was.
    #[error(
        "the log's first {anchored} entries are not those that the outside checkpoint {file} was signed for: the database \
         was rewritten. Restore a good one"
    )]
    Rewritten {
        /// How far it was signed for.
        anchored: TreeSize,
        /// Which file says so.
        file: PathBuf,
    },
}

/// The outside checkpoint's file.
#[derive(Debug, Clone)]
pub(crate) struct Anchor {
    file: PathBuf,
}

impl Anchor {
    /// The outside checkpoint in this file.
    pub(crate) fn new(file: PathBuf) -> Self {
        Self { file }
    }

    fn io(&self, source: io::Error) -> AnchorError {
        AnchorError::Io { path: self.file.clone(), source }
    }

    /// Keeps a checkpoint: replaces the file whole, and returns once it is durable.
    ///
    /// # Errors
    /// [`AnchorError::Io`].
    pub(crate) fn keep(&self, checkpoint: &str) -> Result<(), AnchorError> {
        self.replace(checkpoint).map_err(|failure| self.io(failure))
    }

    fn replace(&self, checkpoint: &str) -> io::Result<()> {
        let beside = self.file.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(checkpoint.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &self.file)?;
        match self.file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            Some(folder) => File::open(folder)?.sync_all(),
            None => File::open(Path::new("."))?.sync_all(),
        }
    }

    /// The checkpoint that was kept; `None` before the first.
    ///
    /// # Errors
    /// [`AnchorError::Io`].
    pub(crate) fn kept(&self) -> Result<Option<String>, AnchorError> {
        match fs::read_to_string(&self.file) {
            Ok(text) => Ok(Some(text)),
            Err(failure) if failure.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(failure) => Err(self.io(failure)),
        }
    }

    /// Compares the log with itself and with the outside checkpoint; answers where it ends.
    ///
    /// # Errors
    /// [`AnchorError`]: the service must not start.
    pub(crate) async fn check(&self, log: &dyn LogReader, keys: &[VerifierKey]) -> Result<LogHead, AnchorError> {
        let head = log.head().await?;
        check_head(log, &head, keys).await?;
        let text = match fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(failure) if failure.kind() == io::ErrorKind::NotFound => return Ok(head),
            Err(failure) => return Err(self.io(failure)),
        };
        let anchored = open(&text, keys).map_err(AnchorError::Foreign)?;
        if anchored.size > head.size() {
            let file = self.file.clone();
            return Err(AnchorError::RolledBack { size: head.size(), anchored: anchored.size, file });
        }
        if anchored.size.0 > 0 {
            let proof = prove(log, &Plan::consistency(anchored.size, head.size())).await?;
            let newest = (head.size(), head.frontier.root());
            check_consistency(&proof, (anchored.size, anchored.root), newest)
                .map_err(|_| AnchorError::Rewritten { anchored: anchored.size, file: self.file.clone() })?;
        }
        Ok(head)
    }
}

/// Reads a checkpoint that one of these keys has signed.
///
/// # Errors
/// [`CheckpointError`].
pub(crate) fn open(text: &str, keys: &[VerifierKey]) -> Result<Checkpoint, CheckpointError> {
    open_checkpoint(text, keys.iter().map(|key| Box::new(key.clone()) as Box<dyn Verifier>).collect())
}

async fn prove(
    log: &dyn LogReader,
    plan: &Result<Plan, merkle_log::ProofError>,
) -> Result<Vec<session_model::Digest>, AnchorError> {
    let corrupt = |_| ReadError::Corrupt("its stored hashes do not fit its size".into());
    let plan = plan.as_ref().map_err(|failure| corrupt(*failure))?;
    let mut runs = Vec::new();
    for range in plan.ranges() {
        runs.push(log.hashes(range.level, range.start, range.count).await?);
    }
    Ok(plan.finish(&runs).map_err(corrupt)?)
}

/// The head must be signed by us, be of the tree it claims, and the newest batch must hash to it.
async fn check_head(log: &dyn LogReader, head: &LogHead, keys: &[VerifierKey]) -> Result<(), AnchorError> {
    let Some(checkpoint) = &head.checkpoint else { return Ok(()) };
    let signed = open(checkpoint, keys).map_err(AnchorError::Head)?;
    if (signed.size, signed.root) != (head.size(), head.frontier.root()) {
        return Err(AnchorError::HeadTree);
    }
    let last = LeafIndex(head.size().0.saturating_sub(1));
    for batch in log.batches(last, 1).await? {
        let stored = log.hashes(0, batch.first.0, batch.leaves.len() as u64).await?;
        if !batch.leaves.iter().map(|leaf| leaf_hash(leaf)).eq(stored) {
            return Err(AnchorError::Leaves(batch.first));
        }
    }
    let proof = prove(log, &Plan::inclusion(last, head.size())).await?;
    let leaf = log.hashes(0, last.0, 1).await?.first().copied().unwrap_or_default();
    merkle_log::check_inclusion(&proof, head.size(), head.frontier.root(), last, leaf)
        .map_err(|_| AnchorError::Leaves(last))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use audit_log::conformance::Draft;
    use audit_log::{Appended, LogIdentity, LogWriter, MemoryLog, Sequencer};
    use sealing::LogKey;

    use super::*;

    async fn log_of(key: &Arc<LogKey>, numbers: std::ops::Range<u128>) -> MemoryLog {
        let log = MemoryLog::new();
        let signers: Vec<Arc<dyn merkle_log::Signer + Send + Sync>> = vec![Arc::clone(key) as _];
        let sequencer = Sequencer::new(LogIdentity { origin: "log.example".into(), signers });
        for number in numbers {
            let batch = sequencer.batch(&log.head().await.unwrap(), vec![Draft::new(number).proposed()]).unwrap();
            assert_eq!(log.append(&batch).await.unwrap(), Appended::Committed);
        }
        log
    }

    fn key() -> Arc<LogKey> {
        Arc::new(LogKey::generate("log.example").unwrap())
    }

    #[tokio::test]
    async fn a_log_that_grew_is_fine_and_one_rolled_back_or_rewritten_is_not() {
        let (key, folder) = (key(), tempfile::tempdir().unwrap());
        let anchor = Anchor::new(folder.path().join("checkpoint"));
        let verifier = std::slice::from_ref(key.verifier());
        assert!(anchor.check(&MemoryLog::new(), verifier).await.is_ok(), "first start");
        let five = log_of(&key, 0..5).await;
        anchor.keep(&five.head().await.unwrap().checkpoint.unwrap()).unwrap();
        assert!(anchor.check(&five, verifier).await.is_ok());
        assert!(anchor.check(&log_of(&key, 0..9).await, verifier).await.is_ok(), "it grew");
        let shorter = anchor.check(&log_of(&key, 0..4).await, verifier).await;
        assert!(matches!(shorter, Err(AnchorError::RolledBack { .. })), "{shorter:?}");
        let empty = anchor.check(&MemoryLog::new(), verifier).await;
        assert!(matches!(empty, Err(AnchorError::RolledBack { .. })), "{empty:?}");
        let other = anchor.check(&log_of(&key, 100..109).await, verifier).await;
        assert!(matches!(other, Err(AnchorError::Rewritten { .. })), "{other:?}");
        let other = LogKey::generate("log.example").unwrap();
        let foreign = anchor.check(&five, std::slice::from_ref(other.verifier())).await;
        assert!(matches!(foreign, Err(AnchorError::Head(_))), "{foreign:?}");
    }
}
