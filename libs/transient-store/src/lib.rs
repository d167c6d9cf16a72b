//! The port of a store of sessions that no log stands behind, and the store in the process's own memory.
//!
//! Where there is a log it arbitrates between writers, and a view of it can be thrown away. Here the store itself arbitrates, as far as it
//! reaches: [`TransientStore::put`] takes a state only if what it was made from still stands. Whatever a store loses is lost.
//!
//! [`MemoryTransients`] can also be one of several that send each other what they hold: then states meet that were made apart from one
//! another, and [`session_model::transient::Stamped::join`] says which stands.

#[cfg(feature = "test-util")]
pub mod conformance;
mod memory;

pub use memory::{MemoryTransients, Merged, SUMS};

use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use session_model::transient::{Stamp, Stamped};
use session_model::{Digest, Kind, RealmName, Seconds, Session, SessionId, Timestamp};

/// How long after its absolute deadline an ended session is still known: the clocks of nodes may differ by as much, and one that is late
/// must not bring back what others have forgotten.
pub const REMEMBERED: Seconds = Seconds::minutes(10);

/// A state that is to stand.
#[derive(Debug, Clone)]
pub struct Put {
    /// The state: kept as [`Stamped::kept`] says.
    pub state: Stamped,
    /// The state it was made from; `None` for a session that begins.
    pub base: Option<Stamp>,
    /// It makes the session one of its subject's, who may have so many active ones; `None` where it was already, or there is no subject.
    pub cap: Option<u32>,
    /// The answer to keep under an idempotency key.
    pub answer: Option<(Digest, KeptAnswer)>,
    /// Nodes beside the one that decides that must have the state before [`Outcome::Done`] is said. A store that is one place has none.
    pub acknowledged_by: u8,
}

/// What becomes of a [`Put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// It stands.
    Done,
    /// What it was made from does not stand (any more): look again.
    Moved,
    /// The subject has as many active sessions as it may.
    CapReached,
    /// There is an answer under the idempotency key.
    Answered,
    /// There is no room.
    Full,
}

/// The answer to a change, to be given again under its idempotency key. Holds nothing personal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptAnswer {
    /// What was asked: the same key for something else is an error of the caller's.
    pub request: Digest,
    /// Which session it is about.
    pub session: SessionId,
    /// The token that was given out, sealed; of nothing where none was.
    pub token: Vec<u8>,
    /// Until when it is kept.
    pub expires: Timestamp,
}

/// Which sessions to list, newest first.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Of this realm.
    pub realm: RealmName,
    /// Of this subject: its active ones only, since of an ended one nobody is known.
    pub subject: Option<Box<str>>,
    /// Active (`true`) or ended (`false`) ones only.
    pub active: Option<bool>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// Older than this one.
    pub before: Option<SessionId>,
    /// How many at most.
    pub limit: usize,
}

impl Listing {
    /// Whether a session is one of them, its place and their number aside.
    pub fn wants(&self, session: &Session) -> bool {
        session.realm == self.realm
            && self.subject.as_ref().is_none_or(|subject| session.subject.as_ref() == Some(subject))
            && self.active.is_none_or(|active| active == session.ended().is_none())
            && self.kind.is_none_or(|kind| kind == session.kind)
            && self.before.is_none_or(|before| session.id < before)
    }
}

/// Why a store does not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached. Nothing was changed.
    #[error("the store cannot be reached")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// It was asked and has not said what became of it.
    #[error("the store has not answered")]
    Unknown(#[source] Box<dyn Error + Send + Sync>),
    /// Fewer nodes are within reach than are to acknowledge it. Nothing was changed.
    #[error("too few nodes are within reach to acknowledge it")]
    TooFewNodes,
    /// What it holds of this session is no state of it.
    #[error("the store holds something undecodable for session {0}")]
    Undecodable(SessionId),
}

/// How a store is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreStatus {
    /// `memory`, `redis`.
    pub kind: &'static str,
    /// Whether it answers.
    pub available: bool,
    /// Sessions held in this process, ended ones included.
    pub held: usize,
    /// Estimated bytes they take.
    pub bytes: usize,
}

/// Keeps sessions that no log stands behind.
///
/// *Arbitration.* Of any number of [`TransientStore::put`]s on one base, through any handles on the store, one is [`Outcome::Done`]; after it
/// the others are [`Outcome::Moved`]. A state, its subject's seat and its answer stand together or not at all. An ended session never
/// becomes active. *Absence* of a session means that there is none, or that the store has lost it: nobody else knows.
/// *Forgetting.* An ended session is known until a while after its absolute deadline. An active one is not forgotten before that, unless
/// the store is lost. *Uses.* The later `last_seen_at` survives a put.
#[async_trait]
pub trait TransientStore: Send + Sync + 'static {
    /// What stands of a session.
    async fn get(&self, id: SessionId) -> Result<Option<Stamped>, StoreError>;

    /// Lets a state stand, if what it was made from does.
    async fn put(&self, put: Put) -> Result<Outcome, StoreError>;

    /// Marks an active session as used: moves `last_seen_at` forward, never back. Answers the state if that changed anything.
    async fn mark_used(&self, id: SessionId, at: Timestamp) -> Result<Option<Stamped>, StoreError>;

    /// Up to `limit` active sessions whose deadline (the earlier of idle and absolute) lies before `before`, earliest first.
    async fn due(&self, before: Timestamp, limit: usize) -> Result<Vec<Arc<Session>>, StoreError>;

    /// Sessions, newest first. Answers fewer than asked for only at the end.
    async fn list(&self, listing: &Listing) -> Result<Vec<Arc<Session>>, StoreError>;

    /// The answer kept under an idempotency key, unless its time is up.
    async fn answer(&self, key: &Digest, now: Timestamp) -> Result<Option<KeptAnswer>, StoreError>;

    /// Forgets ended sessions and answers whose time is up. A store that does so by itself does nothing.
    async fn sweep(&self, now: Timestamp);

    /// How it is doing.
    fn status(&self) -> StoreStatus;

    /// Nodes that keep the sessions together and hear each other, this one included; `None` if it is one place.
    fn within_reach(&self) -> Option<usize> {
        None
    }

    /// Changes that were lost since the start because others were made apart from them, as this process saw.
    fn lost(&self) -> u64 {
        0
    }
}
