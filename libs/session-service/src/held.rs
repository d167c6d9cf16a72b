//! What a presented token is to a session.

use session_model::{Session, Timestamp, TokenDigest};

/// How a presented token relates to a session's tokens.
pub(crate) enum Held {
    /// It opens the session.
    Current,
    /// It was rotated, but a moment ago: an honest request may still be under way with it.
    Early,
    /// It was rotated long enough ago that nobody honest should hold it.
    Late,
    /// It is none of the session's.
    Foreign,
}

impl Held {
    pub(crate) fn judge(session: &Session, presented: &TokenDigest, now: Timestamp) -> Self {
        if session.token.matches(presented) {
            return Self::Current;
        }
        match &session.previous {
            Some(previous) if previous.digest.matches(presented) => match (now < previous.until, previous.honoured) {
                (true, true) => Self::Current,
                (true, false) => Self::Early,
                (false, _) => Self::Late,
            },
            Some(_) | None if session.retired.iter().any(|older| older.matches(presented)) => Self::Late,
            Some(_) | None => Self::Foreign,
        }
    }
}
