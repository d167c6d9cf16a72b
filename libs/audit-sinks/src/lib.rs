//! Pushes the entries of the log elsewhere: to a collector that speaks syslog over TLS, to an HTTPS webhook.
//!
//! **At least once, in order, by leaf index.** What the other side has confirmed moves a durable cursor
//! ([`audit_log::DeliveryCursors`]); whatever was under way when something broke is pushed again. A receiver tells repetitions by the index,
//! and gaps too: indices have none, so a number that never comes was lost behind the receiver's door or filtered by realm.
//!
//! What is pushed is the leaf, which holds no personal data; sealed parts never leave this way.
//!
//! * [`Sink`]: the port. Blocking: it is called on a thread that may block, one push at a time.
//! * [`SyslogSink`] (RFC 5424 in RFC 5425), [`WebhookSink`]: what there is.
//! * [`Pusher`]: the one task of a sink: lease, read, push, move the cursor; back-off; drained when told to stop.

mod pusher;
mod syslog;
mod webhook;

pub use pusher::{Pusher, PusherConfig, SinkStatus};
pub use syslog::{SyslogConfig, SyslogSink};
pub use webhook::{WebhookConfig, WebhookSink};

use session_model::{LeafIndex, Outcome, Timestamp};

/// One entry on its way.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its place in the log.
    pub index: LeafIndex,
    /// Hash of its stored bytes.
    pub leaf_hash: session_model::LeafHash,
    /// When.
    pub time: Timestamp,
    /// What, as a word.
    pub action: &'static str,
    /// Whether it happened.
    pub outcome: Outcome,
    /// In which realm.
    pub realm: String,
    /// Which node appended it.
    pub node: String,
    /// The entry in the sink's format: one line, without its end.
    pub line: String,
}

/// Why entries were not taken.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The other side cannot be reached, or the connection broke: some may have arrived.
    #[error("{0}")]
    Connection(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The other side answered, and did not take them.
    #[error("the receiver answered {status}: {said}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The beginning of what it said.
        said: String,
    },
    /// The other side never confirmed what it was sent.
    #[error("the receiver did not confirm what it was sent: {0}")]
    Unconfirmed(&'static str),
}

/// Where entries go.
///
/// `Ok` means that the other side has them all, as far as its protocol can tell. On an error any number of them may have arrived; they are all
/// pushed again, in the same order. An implementation bounds its own time, and keeps nothing for later.
pub trait Sink: Send + Sync + 'static {
    /// Pushes entries, oldest first; never none.
    ///
    /// # Errors
    /// [`PushError`].
    fn push(&self, deliveries: &[Delivery]) -> Result<(), PushError>;
}
