//! Reading a log that may have been altered: what can be read is read, what cannot is named.

use audit_log::{LogReader, ReadError, SealedEntry, StoredBatch};
use session_model::{LeafIndex, TreeSize};

/// Entries read at once: a few megabytes.
const RUN: usize = 4_096;

/// One entry as it is stored.
pub(crate) struct Stored {
    pub(crate) leaf: Vec<u8>,
    pub(crate) sealed: Option<SealedEntry>,
    /// The checkpoint that was stored with it, if it is the last of its batch.
    pub(crate) checkpoint: Option<String>,
}

/// Walks a log by index, never backwards.
pub(crate) struct Walk<'a> {
    log: &'a dyn LogReader,
    batches: std::collections::VecDeque<StoredBatch>,
    run: usize,
}

impl<'a> Walk<'a> {
    /// A walk over everything (`long`), or over entries here and there.
    pub(crate) fn new(log: &'a dyn LogReader, long: bool) -> Self {
        Self { log, batches: Default::default(), run: if long { RUN } else { 256 } }
    }

    /// The entry at `index`; why it cannot be read, in words, if it cannot. `Err` only if the store is out of reach.
    pub(crate) async fn at(&mut self, index: u64) -> Result<Result<Stored, String>, ReadError> {
        while self.batches.front().is_some_and(|batch| batch.tree_size().0 <= index) {
            self.batches.pop_front();
        }
        if self.batches.front().is_none_or(|batch| batch.first.0 > index) {
            match self.read(index, self.run).await? {
                Ok(()) => {}
                // Another batch of the run may be the bad one.
                Err(_) => {
                    if let Err(why) = self.read(index, 1).await? {
                        return Ok(Err(why));
                    }
                }
            }
        }
        let found = self.batches.front_mut().filter(|batch| batch.first.0 <= index && index < batch.tree_size().0);
        let Some(batch) = found else { return Ok(Err("the log has no such entry, but others after it".into())) };
        let place = usize::try_from(index - batch.first.0).unwrap_or(usize::MAX);
        let last = batch.tree_size() == TreeSize(index + 1);
        Ok(match (batch.leaves.get_mut(place), batch.sealed.get_mut(place)) {
            (Some(leaf), Some(sealed)) => Ok(Stored {
                leaf: std::mem::take(leaf),
                sealed: sealed.take(),
                checkpoint: last.then(|| batch.checkpoint.clone()),
            }),
            (None, _) | (_, None) => Err("the batch is shorter than it says".into()),
        })
    }

    async fn read(&mut self, index: u64, run: usize) -> Result<Result<(), String>, ReadError> {
        match self.log.batches(LeafIndex(index), run).await {
            Ok(batches) => {
                self.batches = batches.into();
                // An altered store may answer with what does not hold `index`.
                self.batches.retain(|batch| batch.tree_size().0 > index);
                Ok(Ok(()))
            }
            Err(ReadError::Corrupt(why)) => Ok(Err(why)),
            Err(failure @ ReadError::Unavailable(_)) => Err(failure),
        }
    }
}
