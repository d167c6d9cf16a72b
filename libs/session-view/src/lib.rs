//! The port through which session state is read, and the view that keeps it in the process's own memory.
//!
//! A view is a cache with an order: every state in it carries the leaf index it reflects, so applying twice or out of order
//! is harmless, and a tombstone outlives each ended session so that a late, older state cannot bring it back. A view is
//! never the truth: whatever it lacks or lost is rebuilt from the log by whoever holds both.
//!
//! Start with [`SessionView`]; [`MemoryView`] is the reference implementation.

#[cfg(feature = "test-util")]
pub mod conformance;
mod doubt;
mod memory;
mod reflected;
mod size;
#[cfg(feature = "test-util")]
pub mod test_util;

pub use doubt::Doubt;
pub use memory::{BeyondBudget, Budget, MemoryView};
pub use reflected::Reflected;
pub use size::{session_bytes, tombstone_bytes};

use std::sync::Arc;

use async_trait::async_trait;
use session_model::{Session, SessionId, Timestamp, Tombstone, TreeSize};

/// What a view knows of a session.
#[derive(Debug, Clone)]
pub enum Viewed {
    /// It had not ended by the leaf index the state carries. Deadlines are the reader's to check.
    Active(Arc<Session>),
    /// It has ended.
    Ended(Arc<Tombstone>),
}

/// What became of a state that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Applied {
    /// It was newer and is what the view now shows.
    Yes,
    /// The view already showed this state or a newer one; nothing changed.
    Stale,
}

/// Why a view did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// It cannot be reached or did not answer in time: read the log instead.
    #[error("the session view is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It holds something under this session's key that is no state of it (undecodable, foreign, or sealed by an unknown key).
    /// The caller quarantines it, rebuilds from the log and records the fact.
    #[error("the view holds undecodable data for session {0}")]
    Undecodable(SessionId),
}

/// How a view is doing, for readiness and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewStatus {
    /// `memory`, `redis`, …
    pub kind: &'static str,
    /// Whether it answers.
    pub available: bool,
    /// Whether it may lack what was applied to it, and shows nothing until that was applied again ([`SessionView::losses`]).
    pub in_doubt: bool,
    /// Sessions held in this process, ended ones included.
    pub held: usize,
    /// Estimated bytes they take.
    pub bytes: usize,
    /// The budget, if there is one.
    pub budget: Option<usize>,
}

/// Where session state is read from.
///
/// *Order.* A state replaces another of the same session exactly if its `head.index` is greater. *Idempotence.* Applying the
/// same state again changes nothing. *Finality.* After an ended state was applied, no older state is shown again for at
/// least [`RETAIN_ENDED_S`] seconds; and an active state never replaces an ended one, whatever its index: no honest log
/// has such an entry. *Uses.* The later `last_seen_at` survives a replacement, because the state of an entry may have been
/// made without knowing a use that only the view was told of. *Absence* is `Ok(None)` and means "ask the log", never
/// "there is no such session"; a view may drop an active session at any time, but never shows an older state for it then.
/// *Concurrency.* Every method may be called from many tasks at once. *Retries* are the caller's: no method tries again.
#[async_trait]
pub trait SessionView: Send + Sync + 'static {
    /// What this process itself holds of a session, without waiting; `None` where that is nothing, or may be out of date.
    fn peek(&self, id: SessionId) -> Option<Viewed>;

    /// What the view holds of a session.
    async fn get(&self, id: SessionId) -> Result<Option<Viewed>, ViewError>;

    /// As `get`, and also while the view is in doubt of what it holds ([`SessionView::losses`]): for whoever applies what
    /// follows, and sees by its version whether it does.
    async fn held(&self, id: SessionId) -> Result<Option<Viewed>, ViewError> {
        self.get(id).await
    }

    /// Applies states, in one round trip. Answers one [`Applied`] for each, in order.
    async fn apply(&self, states: &[Arc<Session>]) -> Result<Vec<Applied>, ViewError>;

    /// Marks sessions as used: moves `last_seen_at` (and with it the idle deadline) forward, never back, and only of active
    /// sessions the view holds. Does not change what `head` they reflect.
    async fn mark_used(&self, uses: &[(SessionId, Timestamp)]) -> Result<(), ViewError>;

    /// Up to `limit` active sessions whose deadline (the earlier of idle and absolute) lies before `before`, earliest first.
    /// A view that several nodes share may answer the same ones to all: the log decides who ends them. Asking again soon
    /// may answer the same ones again. Among them may be sessions that the view has dropped, with the deadline it last knew:
    /// whoever asked reads them from the log and applies what stands there, ended or not, or else is told of them again.
    async fn due(&self, before: Timestamp, limit: usize) -> Result<Vec<SessionId>, ViewError>;

    /// Whether there is room for one more session. Asked before a session is created, because once its creation is in the log
    /// it has happened.
    fn has_room(&self) -> bool;

    /// Puts undecodable data aside, so that it is neither served nor lost, and the session can be applied afresh. A state
    /// that can be decoded stays: somebody else has mended the session already, and it may be a tombstone.
    async fn quarantine(&self, id: SessionId) -> Result<(), ViewError>;

    /// How much of the log the view is known to reflect: every entry below this size has been applied.
    async fn reflects(&self) -> Result<TreeSize, ViewError>;

    /// Raises [`SessionView::reflects`] to `size`; never lowers it.
    async fn set_reflects(&self, size: TreeSize) -> Result<(), ViewError>;

    /// How often the view may have lost what was applied to it, in a way that [`SessionView::reflects`] does not show: the
    /// server was restarted, a replica that lagged was promoted, the store is one that this process has just come to. When
    /// it has risen, everything from [`SessionView::reflects`] on is to be applied again, and then
    /// [`SessionView::restored`] called. Until then such a view answers [`ViewError::Unavailable`] to `get`, so that what it
    /// lacks (the end of a session) is read from the log. A view that loses only whole sessions has nothing to count.
    fn losses(&self) -> u64 {
        0
    }

    /// All that was in the log when [`SessionView::losses`] was `losses` has been applied since.
    fn restored(&self, _losses: u64) {}

    /// How it is doing.
    fn status(&self) -> ViewStatus;

    /// Which view this is, if other processes use it too: the same for all that have the same one, and for no others. Asked again now
    /// and then, since what keeps it may be replaced.
    async fn identity(&self) -> Result<Option<[u8; 16]>, ViewError> {
        Ok(None)
    }

    /// Drops active sessions that are not to be kept, where this process holds them by itself; they are not due here any more.
    fn retain(&self, keep: &(dyn Fn(SessionId) -> bool + Sync)) {
        let _holds_none = keep;
    }

    /// Active sessions that this process holds, from a position on, for a node that comes late to copy: 0 is the beginning, and about
    /// `bytes` of them are enough. `None` where this process does not hold them all. One that is changed meanwhile is in it as it was
    /// at some moment since the call.
    fn export(&self, from: u64, bytes: usize) -> Option<Exported> {
        let _holds_none = (from, bytes);
        None
    }
}

/// Part of what a view holds.
#[derive(Debug, Clone)]
pub struct Exported {
    /// The sessions, in any order.
    pub sessions: Vec<Arc<Session>>,
    /// Where to go on; `None` at the end.
    pub next: Option<u64>,
}

/// Seconds for which a tombstone is kept at least: twelve times the hardest deadline of an append, so that no state read
/// before the end can arrive after the tombstone has gone.
pub const RETAIN_ENDED_S: u32 = 60;
