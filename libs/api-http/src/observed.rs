//! What is counted, through whichever mouth it came.

use std::sync::Arc;

/// Something that happened, for whoever counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed<'a> {
    /// A session began.
    Created,
    /// A token was rotated.
    Renewed,
    /// A session ended, for this reason.
    Ended(&'a str),
    /// A token was validated: `active`, or the reason why not.
    Validated(&'static str),
    /// An answer was replayed under its idempotency key.
    Replayed,
}

/// Is told of what happened.
pub type Observer = Arc<dyn Fn(Observed<'_>) + Send + Sync>;
