//! The one place that knows the order of things: decide, append to the log, apply to the view, answer.
//!
//! ```text
//! command -> decide (pure) -> append to the log (group commit) -> apply to the view -> answer with receipt
//! ```
//!
//! Once appended, it has happened: if applying to the view then fails, the answer is still success and the [`Follower`] mends
//! the view by replay. A realm of profile `transient` has no log: [`TransientSessions`] decides and applies by the same functions and lets
//! a store take the place of the append; [`Sessions`] is the one place where it is chosen which of the two, and of several logs which, does what a mouth asks for. Nothing here knows HTTP, SOAP or any concrete store.
//!
//! Start with [`SessionService`].

mod answer;
mod belief;
mod by_realm;
mod change;
mod clock;
mod commands;
mod custody;
mod data_keys;
mod error;
mod failures;
mod follower;
mod held;
mod holding;
mod idempotency;
mod looking;
mod lookup;
mod pipeline;
mod progress;
mod reading;
mod reaper;
mod recording;
mod replay;
mod replication;
mod request;
mod service;
mod sessions;
mod transient;
mod turnstile;

pub use answer::{Changed, Page, Validation, ValidationReason};
pub use belief::{Distrust, FromLog};
pub use by_realm::ByRealm;
pub use clock::{Clock, LogClock};
pub use custody::Erased;
pub use error::{ServiceError, Unavailable};
pub use follower::{Follower, FollowerStatus, RebuildState};
pub use idempotency::KEEP_ANSWERS;
pub use reaper::Reaper;
pub use request::{Caller, Idempotency, ListQuery, NewSession, Record, subject_actor};
pub use service::{Parts, ServiceConfig, SessionService};
pub use sessions::{Happened, Sessions};
pub use transient::{TransientConfig, TransientCounts, TransientSessions};

/// Reads whatever bytes as what the service of one node may say to that of another, for the fuzzer.
///
/// # Panics
/// If what was read is not written as something that reads alike.
#[cfg(feature = "test-util")]
pub fn fuzz(bytes: &[u8]) {
    holding::message::read_any(bytes);
    replication::read_any(bytes);
    transient::peers::read_any(bytes);
}
