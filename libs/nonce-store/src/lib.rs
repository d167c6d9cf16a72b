//! Port: what was used once is not used again, on any node.
//!
//! A WS-Security digest is good for anybody who has seen it until its time is up, unless every receiver remembers what it has
//! seen. [`NonceStore`] is that memory. It does not know what a nonce is of: callers hash whatever must not come twice.
//!
//! [`MemoryNonces`] is for a process that is alone; nodes that share a log need a store that they share too.

#[cfg(feature = "test-util")]
pub mod conformance;
mod memory;

pub use memory::MemoryNonces;

use std::error::Error;

use async_trait::async_trait;
use session_model::{Digest, Timestamp};

/// Whether something was used before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Claimed {
    /// Never, as far as the store goes back.
    First,
    /// It was.
    Again,
}

/// Why the store cannot say. Whoever asks must then refuse.
#[derive(Debug, thiserror::Error)]
pub enum NonceError {
    /// It remembers as much as it may. It forgets nothing before its time: a flood must not make room for a replay.
    #[error("as many nonces are remembered as may be")]
    Full,
    /// It cannot be reached.
    #[error("the nonces cannot be reached")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
}

/// Remembers what was used.
///
/// *Atomicity:* of any number of claims of one key, on any nodes, exactly one is [`Claimed::First`] until `until` has passed.
/// *Time:* `until` and `now` are the caller's; a store with a clock of its own keeps a key for at least `until - now`.
#[async_trait]
pub trait NonceStore: Send + Sync + 'static {
    /// Claims a key until a time.
    ///
    /// # Errors
    /// [`NonceError`].
    async fn claim(&self, key: &Digest, now: Timestamp, until: Timestamp) -> Result<Claimed, NonceError>;

    /// What was claimed before this time may be forgotten already: a store that dies with its process knows nothing older than
    /// the process. The epoch, for one that outlives it.
    fn since(&self) -> Timestamp;
}
