//! The one place that knows the order of things: decide, append to the log, apply to the view, answer.
//!
//! ```text
//! command -> decide (pure) -> append to the log (group commit) -> apply to the view -> answer with receipt
//! ```
//!
//! Once appended, it has happened: if applying to the view then fails, the answer is still success and the [`Follower`] mends
//! the view by replay. A realm of profile `transient` has no log: [`TransientSessions`] decides and applies by the same functions and lets
//! a store take the place of the append; [`Sessions`] is the one place where it is chosen which of the two does what a mouth asks for. Nothing here knows HTTP, SOAP or any concrete store.
//!
//! Start with [`SessionService`].

mod change;
mod clock;
mod custody;
mod data_keys;
mod error;
mod failures;
mod follower;
mod held;
mod idempotency;
mod lookup;
mod pipeline;
mod progress;
mod reaper;
mod replay;
mod replication;
mod service;
mod sessions;
mod transient;
mod turnstile;

pub use clock::{Clock, LogClock};
pub use custody::Erased;
pub use error::{ServiceError, Unavailable};
pub use follower::{Follower, FollowerStatus, RebuildState};
pub use idempotency::KEEP_ANSWERS;
pub use reaper::Reaper;
pub use service::{
    Caller, Changed, Idempotency, ListQuery, NewSession, Page, Parts, Record, ServiceConfig, SessionService,
    Validation, ValidationReason, subject_actor,
};
pub use sessions::{Happened, Sessions};
pub use transient::{TransientConfig, TransientCounts, TransientSessions};
