//! Carries the frames of a cluster over PostgreSQL's LISTEN and NOTIFY: where there is a log in PostgreSQL, nothing else is needed.
//!
//! Two connections of its own, each made again for ever: one notifies (module `notifier`), one listens (module `listener`). What is notified
//! while a node does not listen that node never gets; once it does again it is told that it may have missed something.
//!
//! A notification is text of less than 8,000 bytes, and every commit of one takes a lock that all databases of the server share
//! (`src/backend/commands/async.c`). So frames are small and few: what was committed is not sent ([`Capabilities::records`]), only that the log has
//! grown, which wakes those who follow it; frames that wait go out in one transaction; and that transaction waits for no disk.
//!
//! What it deliberately lacks: tables, triggers, rights beyond connecting (any role may notify); any trust in the server beyond what the log
//! places in it: frames are sealed.
//!
//! Not through PgBouncer in transaction mode, or anything else that lends a connection out for one transaction: LISTEN belongs to a connection.
//! Not at a standby either, which neither listens nor notifies.
//!
//! The channel: `cf_` and 32 hex digits of a hash over the namespace. Start with [`PostgresTransport`].

mod listener;
mod notifier;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use async_trait::async_trait;
use cluster::{
    Audience, Backoff, Capabilities, Inbox, Incarnation, Outbox, Received, Room, SendError, TellAndHear, Transport,
    Upkeep, is_namespace,
};
use openssl::error::ErrorStack;
use openssl::hash::{MessageDigest, hash};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::time::timeout;

/// How to reach PostgreSQL.
#[derive(Clone)]
pub struct PostgresTransportConfig {
    /// `postgres://user:password@host/database`. Any role that may connect; all nodes must name the same database, at its primary.
    pub url: String,
    /// Tells clusters apart that share a database: 1 to 64 of `A-Z`, `a-z`, `0-9`, `-`, `_`, `.`.
    pub namespace: String,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
}

impl fmt::Debug for PostgresTransportConfig {
    /// Without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresTransportConfig")
            .field("namespace", &self.namespace)
            .field("application_name", &self.application_name)
            .finish_non_exhaustive()
    }
}

/// Why a configuration cannot be used. That the server is not there is no reason: it may come.
#[derive(Debug, thiserror::Error)]
pub enum PostgresTransportError {
    /// The URL is none that PostgreSQL can be reached by.
    #[error("the URL of PostgreSQL is not usable")]
    Url(#[source] sqlx::Error),
    /// The namespace is malformed.
    #[error("a namespace is 1 to 64 of A-Z, a-z, 0-9, '-', '_' and '.'")]
    Namespace,
    /// OpenSSL lacks SHA-256.
    #[error("OpenSSL cannot hash")]
    Hash(#[source] ErrorStack),
}

/// Bytes that a payload may have: "shorter than 8000 bytes" (PostgreSQL manual, NOTIFY).
const PAYLOAD: usize = 7_999;
/// Bytes that a frame may have: base64 without padding makes four letters of three bytes.
const MAX_FRAME: usize = PAYLOAD * 3 / 4;
/// What may wait to be notified.
const TO_SEND: Room = Room { frames: 1_024, bytes: 1 << 20 };
/// What may wait to be received.
const HEARD: Room = Room { frames: 4_096, bytes: 4 << 20 };
/// How long connecting, or an answer, may take.
const ANSWER: Duration = Duration::from_secs(2);

/// The transport over PostgreSQL.
pub struct PostgresTransport {
    shared: Arc<Shared>,
    tasks: TellAndHear,
}

/// What both connections share.
struct Shared {
    options: PgConnectOptions,
    channel: String,
    /// The server's process that notifies for us: what it says we need not hear.
    notifier: AtomicU32,
    outbox: Outbox,
    inbox: Inbox,
    notifying: Upkeep,
    listening: Upkeep,
}

impl PostgresTransport {
    /// Connects as soon as the server is there, which it need not be yet. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`PostgresTransportError`] for a configuration that can never work.
    pub fn open(config: PostgresTransportConfig, incarnation: Incarnation) -> Result<Self, PostgresTransportError> {
        let PostgresTransportConfig { url, namespace, application_name } = config;
        if !is_namespace(&namespace) {
            return Err(PostgresTransportError::Namespace);
        }
        let options = PgConnectOptions::from_str(&url).map_err(PostgresTransportError::Url)?;
        let options = options.application_name(&application_name).options([
            // Notifications survive no crash, so their commits need not wait for the disk.
            ("synchronous_commit", "off"),
            ("statement_timeout", "2000"),
            // A listener that no longer reads holds what was notified since, for all databases of the server. The server has to notice by
            // itself, within half a minute, that a node is gone or stands still.
            ("tcp_keepalives_idle", "10"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
            ("tcp_user_timeout", "30000"),
        ]);
        let name = [b"counterfoil cluster channel\0", namespace.as_bytes()].concat();
        let digest = hash(MessageDigest::sha256(), &name).map_err(PostgresTransportError::Hash)?;
        let digits = digest.iter().take(16).map(|byte| format!("{byte:02x}"));
        let shared = Arc::new(Shared {
            options,
            channel: format!("cf_{}", digits.collect::<String>()),
            notifier: AtomicU32::new(0),
            outbox: Outbox::new(TO_SEND),
            inbox: Inbox::new(HEARD),
            notifying: Upkeep::new("telling the others through PostgreSQL", Backoff::new(incarnation, 1)),
            listening: Upkeep::new("hearing the others through PostgreSQL", Backoff::new(incarnation, 2)),
        });
        let tasks = TellAndHear::start(notifier::keep(Arc::clone(&shared)), listener::keep(Arc::clone(&shared)));
        Ok(Self { shared, tasks })
    }
}

impl fmt::Debug for PostgresTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostgresTransport")
    }
}

#[async_trait]
impl Transport for PostgresTransport {
    fn capabilities(&self) -> Capabilities {
        let encrypted = match self.shared.options.get_ssl_mode() {
            PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull => true,
            PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => false,
        };
        Capabilities {
            name: "postgres",
            max_frame: MAX_FRAME,
            // There is nothing to say to one alone: whoever lacks something reads it.
            addressed: false,
            records: false,
            encrypted_link: encrypted,
            peer_authentication: false,
            tells_departures: false,
        }
    }

    fn send(&self, to: Audience, frame: &[u8]) -> Result<(), SendError> {
        if frame.len() > MAX_FRAME {
            return Err(SendError::TooLarge(frame.len()));
        }
        if to != Audience::Everybody {
            return Err(SendError::NotAddressed);
        }
        if self.shared.notifying.is_up() && self.shared.outbox.put(to, frame) {
            Ok(())
        } else {
            Err(SendError::Unavailable(None))
        }
    }

    async fn receive(&self) -> Option<Received> {
        self.shared.inbox.take().await
    }

    fn describe(&self) -> Vec<String> {
        let options = &self.shared.options;
        let database = options.get_database().unwrap_or(options.get_username());
        vec![
            format!("PostgreSQL at {}:{}, database {database}", options.get_host(), options.get_port()),
            self.shared.notifying.describe(),
            self.shared.listening.describe(),
        ]
    }

    async fn close(&self) {
        self.tasks.close(&self.shared.outbox, &self.shared.inbox).await;
    }
}

/// Waits for an answer, but not for ever.
async fn answered<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(ANSWER, answer).await.map_err(|_| closed("the server does not answer"))?
}

fn closed(why: &'static str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(why))
}
