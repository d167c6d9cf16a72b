//! What the service answers.

use std::sync::Arc;

use audit_log::Place;
use session_model::{EndReason, Ended, Session, SessionId, Token};

/// A change that is recorded.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The session after it.
    pub session: Arc<Session>,
    /// The new token, where there is one: the only time it is seen.
    pub token: Option<Token>,
    /// Where its entry stands.
    pub place: Place,
    /// Whether this is the answer of an earlier request with the same idempotency key, or of the earlier end of the session.
    pub replayed: bool,
}

/// What a token is worth.
#[derive(Debug, Clone)]
pub enum Validation {
    /// It opens this session.
    Active(Arc<Session>),
    /// It opens nothing.
    Inactive(ValidationReason),
}

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValidationReason {
    /// Not a token of this realm, or of a session long forgotten.
    Unknown,
    /// Its session was unused for too long.
    ExpiredIdle,
    /// Its session became too old.
    ExpiredAbsolute,
    /// Its session was ended.
    Ended,
    /// The session goes on under a newer token.
    Rotated,
}

impl ValidationReason {
    /// The word of the interface contract.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::ExpiredIdle => "expired_idle",
            Self::ExpiredAbsolute => "expired_absolute",
            Self::Ended => "ended",
            Self::Rotated => "rotated",
        }
    }

    pub(crate) fn of(ended: &Ended) -> Self {
        match ended.reason {
            EndReason::ExpiredIdle => Self::ExpiredIdle,
            EndReason::ExpiredAbsolute => Self::ExpiredAbsolute,
            EndReason::Evicted | EndReason::TokenReuse | EndReason::Requested(_) => Self::Ended,
        }
    }
}

/// A page of sessions, newest first.
#[derive(Debug, Clone)]
pub struct Page {
    /// The sessions.
    pub items: Vec<Arc<Session>>,
    /// Where the next page begins, if there may be one.
    pub next: Option<SessionId>,
}
