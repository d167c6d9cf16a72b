//! A log whose steps fail to order, for the failure table of the append path.

use std::collections::VecDeque;
use std::future::pending;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use session_model::{Digest, KeyId, LeafIndex, SessionId, Timestamp, TreeSize, Version};

use crate::{
    Answer, AppendError, Appended, Batch, Credential, DataKeyRow, LogHead, LogIndex, LogPostings, LogReader, LogStore,
    LogWriter, Posting, Projected, Projection, Prune, ReadError, Rewrap, SessionFilter, StoredBatch, StoredEntry, Term,
    Turn,
};

/// How one step of an append fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The head cannot be read.
    Head,
    /// The append fails and nothing was done.
    NotDone,
    /// The append's answer is lost, and nothing was done.
    LostNotDone,
    /// The append's answer is lost, but it was done.
    LostDone,
    /// The append never answers, and nothing was done.
    HangNotDone,
    /// The append never answers, but it was done.
    HangDone,
    /// What became of the append cannot be found out at first.
    Resolve,
    /// No turn is had.
    Turn,
    /// A turn never comes.
    HangTurn,
}

impl Fault {
    /// Every fault that a writer meets who has the log to himself.
    pub const ALONE: [Self; 7] = [
        Self::Head,
        Self::NotDone,
        Self::LostNotDone,
        Self::LostDone,
        Self::HangNotDone,
        Self::HangDone,
        Self::Resolve,
    ];
}

/// A log that fails as ordered and otherwise is the one it wraps.
pub struct FaultyLog {
    inner: Arc<dyn LogStore>,
    orders: Mutex<VecDeque<Fault>>,
    cut: AtomicBool,
    mute: AtomicBool,
    delay: Mutex<Duration>,
    head_delay: Mutex<Duration>,
    heads: AtomicU64,
}

impl FaultyLog {
    /// Wraps a log.
    pub fn new(inner: Arc<dyn LogStore>) -> Self {
        let (cut, mute) = (AtomicBool::new(false), AtomicBool::new(false));
        let (delay, head_delay) = (Mutex::default(), Mutex::default());
        Self { inner, orders: Mutex::default(), cut, mute, delay, head_delay, heads: AtomicU64::new(0) }
    }

    /// Orders a fault: it strikes at the next step that can fail this way, once.
    pub fn order(&self, fault: Fault) {
        self.orders.lock().push_back(fault);
    }

    /// Puts the log out of reach, or back within it.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    /// From now on questions that find sessions are never answered, nor refused.
    pub fn fall_silent(&self) {
        self.mute.store(true, Ordering::Relaxed);
    }

    /// From now on it takes so long to find an answer that was kept.
    pub fn delay_answers(&self, by: Duration) {
        *self.delay.lock() = by;
    }

    /// From now on it takes so long to say how long it is; as long as it was when it was asked.
    pub fn delay_heads(&self, by: Duration) {
        *self.head_delay.lock() = by;
    }

    /// How often it was asked how long it is.
    pub fn heads(&self) -> u64 {
        self.heads.load(Ordering::Relaxed)
    }

    async fn speak(&self) {
        if self.mute.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
    }

    fn reach(&self) -> Result<&Arc<dyn LogStore>, ReadError> {
        if self.cut.load(Ordering::Relaxed) { Err(ReadError::Unavailable(broken())) } else { Ok(&self.inner) }
    }

    /// Whether everything ordered has struck.
    pub fn is_spent(&self) -> bool {
        self.orders.lock().is_empty()
    }

    /// An append, or what becomes of it.
    async fn appending(
        &self,
        append: impl Future<Output = Result<Appended, AppendError>> + Send,
    ) -> Result<Appended, AppendError> {
        let step = [Fault::NotDone, Fault::LostNotDone, Fault::LostDone, Fault::HangNotDone, Fault::HangDone];
        match self.strikes(&step) {
            Some(Fault::NotDone) => Err(AppendError::NotDone(broken())),
            Some(Fault::LostNotDone) => Err(AppendError::Unknown(broken())),
            Some(Fault::HangNotDone) => pending().await,
            Some(Fault::LostDone) => {
                let _lost = append.await;
                Err(AppendError::Unknown(broken()))
            }
            Some(Fault::HangDone) => {
                let _lost = append.await;
                pending().await
            }
            Some(Fault::Head | Fault::Resolve | Fault::Turn | Fault::HangTurn) | None => match self.reach() {
                Ok(_) => append.await,
                Err(_) => Err(AppendError::NotDone(broken())),
            },
        }
    }

    fn strikes(&self, step: &[Fault]) -> Option<Fault> {
        let mut orders = self.orders.lock();
        orders.pop_front_if(|fault| step.contains(fault))
    }
}

fn broken() -> Box<dyn std::error::Error + Send + Sync> {
    "ordered fault".into()
}

#[async_trait]
impl LogReader for FaultyLog {
    async fn head(&self) -> Result<LogHead, ReadError> {
        self.heads.fetch_add(1, Ordering::Relaxed);
        let head = match self.strikes(&[Fault::Head]) {
            Some(_) => Err(ReadError::Unavailable(broken())),
            None => self.reach()?.head().await,
        };
        let delay = *self.head_delay.lock();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        head
    }

    async fn batches(&self, from: LeafIndex, entries: usize) -> Result<Vec<StoredBatch>, ReadError> {
        self.reach()?.batches(from, entries).await
    }

    async fn entries(&self, indices: &[LeafIndex]) -> Result<Vec<Option<StoredEntry>>, ReadError> {
        self.reach()?.entries(indices).await
    }

    async fn sealed_batches(&self, from: LeafIndex, entries: usize) -> Result<Vec<StoredBatch>, ReadError> {
        self.inner.sealed_batches(from, entries).await
    }

    async fn session_entries(
        &self,
        id: SessionId,
        after: Version,
        limit: usize,
    ) -> Result<Vec<(Version, LeafIndex)>, ReadError> {
        self.speak().await;
        self.reach()?.session_entries(id, after, limit).await
    }

    async fn hashes(&self, level: u8, start: u64, count: u64) -> Result<Vec<Digest>, ReadError> {
        self.reach()?.hashes(level, start, count).await
    }
}

#[async_trait]
impl LogIndex for FaultyLog {
    async fn data_keys_by_lookup(&self, lookups: &[Digest]) -> Result<Vec<Option<DataKeyRow>>, ReadError> {
        self.speak().await;
        self.reach()?.data_keys_by_lookup(lookups).await
    }

    async fn data_keys(&self, ids: &[KeyId]) -> Result<Vec<Option<DataKeyRow>>, ReadError> {
        self.reach()?.data_keys(ids).await
    }

    async fn data_keys_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<DataKeyRow>, ReadError> {
        self.inner.data_keys_after(after, limit).await
    }

    async fn data_keys_owned_by(&self, owner: KeyId) -> Result<Vec<KeyId>, ReadError> {
        self.reach()?.data_keys_owned_by(owner).await
    }

    async fn sessions(
        &self,
        filter: &SessionFilter,
        before: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, ReadError> {
        self.speak().await;
        self.reach()?.sessions(filter, before, limit).await
    }

    async fn uses(&self, ids: &[SessionId]) -> Result<Vec<Option<Timestamp>>, ReadError> {
        self.reach()?.uses(ids).await
    }

    async fn answer(&self, key: &Digest) -> Result<Option<Answer>, ReadError> {
        let delay = *self.delay.lock();
        tokio::time::sleep(delay).await;
        self.reach()?.answer(key).await
    }

    async fn credentials(&self) -> Result<Vec<Credential>, ReadError> {
        self.reach()?.credentials().await
    }
}

#[async_trait]
impl LogPostings for FaultyLog {
    async fn projection(&self) -> Result<Projection, ReadError> {
        self.reach()?.projection().await
    }

    async fn postings(&self, terms: &[Term], segments: RangeInclusive<u32>) -> Result<Vec<Posting>, ReadError> {
        self.reach()?.postings(terms, segments).await
    }

    async fn postings_in(&self, terms: &[Term], segments: &[u32]) -> Result<Vec<Posting>, ReadError> {
        self.reach()?.postings_in(terms, segments).await
    }

    async fn segments_with(&self, terms: &[Term], segments: RangeInclusive<u32>) -> Result<Vec<u32>, ReadError> {
        self.reach()?.segments_with(terms, segments).await
    }

    async fn project(
        &self,
        expected: Projection,
        size: TreeSize,
        postings: &[Posting],
    ) -> Result<Projected, ReadError> {
        self.reach()?.project(expected, size, postings).await
    }

    async fn session_places(&self, ids: &[SessionId]) -> Result<Vec<LeafIndex>, ReadError> {
        self.reach()?.session_places(ids).await
    }
}

#[async_trait]
impl LogWriter for FaultyLog {
    async fn append(&self, batch: &Batch) -> Result<Appended, AppendError> {
        self.appending(self.inner.append(batch)).await
    }

    async fn turn(&self) -> Result<Option<Box<dyn Turn + '_>>, ReadError> {
        match self.strikes(&[Fault::Turn, Fault::HangTurn]) {
            Some(Fault::HangTurn) => pending().await,
            Some(_) => Err(ReadError::Unavailable(broken())),
            None => {
                let turn = self.reach()?.turn().await?;
                Ok(turn.map(|turn| Box::new(FaultyTurn { log: self, turn }) as Box<dyn Turn>))
            }
        }
    }

    async fn resolve(&self, batch: &Batch) -> Result<bool, ReadError> {
        match self.strikes(&[Fault::Resolve]) {
            Some(_) => Err(ReadError::Unavailable(broken())),
            None => self.reach()?.resolve(batch).await,
        }
    }

    async fn mark_uses(&self, uses: &[(SessionId, Timestamp)]) -> Result<(), ReadError> {
        self.reach()?.mark_uses(uses).await
    }

    async fn forget_expired(&self, now: Timestamp, limit: usize) -> Result<usize, ReadError> {
        self.reach()?.forget_expired(now, limit).await
    }

    async fn rewrap(&self, keys: &[Rewrap]) -> Result<usize, ReadError> {
        self.inner.rewrap(keys).await
    }

    async fn prune(&self, prune: &Prune) -> Result<bool, ReadError> {
        self.inner.prune(prune).await
    }

    async fn prepare(&self, size: TreeSize, now: Timestamp) -> Result<(), ReadError> {
        self.reach()?.prepare(size, now).await
    }
}

struct FaultyTurn<'a> {
    log: &'a FaultyLog,
    turn: Box<dyn Turn + 'a>,
}

#[async_trait]
impl Turn for FaultyTurn<'_> {
    fn head(&self) -> &LogHead {
        self.turn.head()
    }

    async fn append(&mut self, batch: &Batch) -> Result<Appended, AppendError> {
        self.log.appending(self.turn.append(batch)).await
    }

    async fn end(self: Box<Self>) {
        self.turn.end().await;
    }
}
