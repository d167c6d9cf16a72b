//! Why something asked of the service did not happen, named by what the caller does next.

use session_model::{AttributeError, Ended, Seconds, Version};

/// Why something asked of the service did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// There is no such session (in this realm).
    #[error("there is no such session")]
    NotFound,
    /// The session has ended: begin a new one.
    #[error("the session has ended")]
    Ended(Ended),
    /// The session is at another version: read it and try again.
    #[error("the session is at version {current}")]
    StaleVersion {
        /// Its version now.
        current: Version,
    },
    /// The attributes break a limit.
    #[error("the attributes are refused")]
    Attributes(#[source] AttributeError),
    /// A timeout is zero, or longer than the realm's policy.
    #[error("{field} must be 1 to {}", limit.0)]
    Timeout {
        /// Which field.
        field: &'static str,
        /// The most the policy allows.
        limit: Seconds,
    },
    /// The subject has as many open sessions as it may.
    #[error("the subject has {cap} open sessions, as many as it may")]
    LimitReached {
        /// How many that is.
        cap: u32,
    },
    /// The realm holds nothing on the subject, or no hold to release.
    #[error("nothing is held on the subject")]
    NothingHeld,
    /// The subject is under legal hold: it is not erased.
    #[error("the subject is under legal hold")]
    LegalHold,
    /// The realm keeps no log, and what was asked for is a promise that only a log can keep.
    #[error("the realm keeps no log")]
    NoLog,
    /// The idempotency key was used with another request.
    #[error("the idempotency key was used with another request")]
    IdempotencyMismatch,
    /// The first request with this idempotency key is still under way.
    #[error("a request with this idempotency key is still under way")]
    IdempotencyInFlight,
    /// Nothing was done: try again.
    #[error("unavailable: {0}")]
    Unavailable(Unavailable),
    /// It was sent to the log, which has not said whether it is recorded: look, or try again with the same idempotency key.
    #[error("the log has not said whether the change is recorded")]
    OutcomeUnknown,
    /// There is nothing to do: the session is within its deadlines, or the fact is recorded already.
    #[error("there is nothing to do")]
    NothingToDo,
    /// A fault of ours.
    #[error("internal fault: {0}")]
    Internal(&'static str),
}

/// What is unavailable. In every case nothing was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The log cannot be written.
    #[error("the log cannot be written")]
    LogWrite,
    /// The log cannot be read, and the view does not have it.
    #[error("the log cannot be read")]
    LogRead,
    /// Too much waits for the log already.
    #[error("too many changes wait for the log")]
    Overloaded,
    /// The view has no room for another session.
    #[error("the session view is full")]
    ViewFull,
    /// The store of a realm that keeps no log cannot be reached.
    #[error("the store of transient sessions cannot be reached")]
    Store,
    /// This node sees too few others to answer for a realm that keeps no log.
    #[error("too few nodes are within reach")]
    TooFewNodes,
    /// This node has not caught up with the index asked for.
    #[error("this node has not caught up with the leaf index asked for")]
    Behind,
}
