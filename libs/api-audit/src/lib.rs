//! The auditor's interface: entries, checkpoints, verifier keys and proofs.
//!
//! It is given readers, a [`ReadRecorder`] and a [`Custodian`] of what is held on subjects, nothing that could change a session
//! otherwise: an auditor cannot touch one because there is nothing here to touch it with. Every call is itself an entry of the log, appended before it is answered.

mod bundle;
mod check;
mod documents;
mod entries;
mod export;
mod routes;
mod subjects;
mod tiles;

pub use bundle::*;
pub use check::*;
pub use documents::*;
pub use entries::*;
pub use export::{__path_export_entries, export_entries};
pub use routes::*;
pub use subjects::*;
pub use tiles::*;

use std::sync::Arc;

use api_http::{Gate, Problem};
use async_trait::async_trait;
use audit_log::LogReader;
use audit_search::Archive;
use session_model::{Detail, RealmName, Session, Timestamp};
use session_service::{ByRealm, Caller, Idempotency};
use tokio::sync::watch;

/// Records that somebody read the log.
#[async_trait]
pub trait ReadRecorder: Send + Sync + 'static {
    /// Returns once the entry is durable; on failure the read must not be answered.
    /// `purpose` is given where personal data is shown; it is sealed.
    async fn record(&self, caller: &Caller, detail: Detail, purpose: Option<&str>) -> Result<(), Problem>;
}

/// Keeps, and destroys, what is held on subjects. Each call is an entry.
#[async_trait]
pub trait Custodian: Send + Sync + 'static {
    /// Erases a subject. The same idempotency key answers the same again.
    async fn erase(
        &self,
        caller: &Caller,
        subject: &str,
        idempotency: Option<Idempotency>,
    ) -> Result<ErasureDocument, Problem>;

    /// Puts a subject under legal hold (`true`), or releases it.
    async fn hold(
        &self,
        caller: &Caller,
        subject: &str,
        held: bool,
        reason: Option<String>,
    ) -> Result<HoldDocument, Problem>;

    /// The sessions of a subject that no entry tells of, in a realm that keeps no log.
    async fn beside_the_log(&self, realm: &RealmName, subject: &str) -> Result<Vec<Arc<Session>>, Problem>;
}

/// The checkpoints that witnesses have cosigned.
pub trait CosignedCheckpoints: Send + Sync + 'static {
    /// The newest that has its quorum, with the lines of the witnesses; `None` if there is none.
    fn newest(&self) -> Option<String>;
}

/// A verifier key and the period it signs in.
#[derive(Debug, Clone)]
pub struct PublishedKey {
    /// C2SP vkey line.
    pub vkey: String,
    /// Since when; `None` for the log's first.
    pub from: Option<Timestamp>,
    /// Until when; `None` while it signs.
    pub until: Option<Timestamp>,
}

/// What the auditor's interface is made of.
#[derive(Clone)]
pub struct AuditApi {
    /// Lets auditors in.
    pub gate: Gate,
    /// The log that each realm lives in.
    pub logs: ByRealm<Arc<AuditedLog>>,
}

impl AuditApi {
    /// The log that a realm lives in: all that a caller of the realm is shown is of it.
    pub fn of(&self, realm: &RealmName) -> &AuditedLog {
        self.logs.of(realm)
    }
}

/// What an auditor is shown of one log.
pub struct AuditedLog {
    /// Reads the log.
    pub log: Arc<dyn LogReader>,
    /// Finds and opens entries.
    pub archive: Archive,
    /// Keeps what is held on subjects.
    pub custodian: Arc<dyn Custodian>,
    /// Records each reading.
    pub recorder: Arc<dyn ReadRecorder>,
    /// The log's verifier keys, those that sign first.
    pub keys: watch::Receiver<Vec<PublishedKey>>,
    /// What witnesses have cosigned.
    pub cosigned: Arc<dyn CosignedCheckpoints>,
}

impl std::fmt::Debug for AuditApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuditApi")
    }
}
