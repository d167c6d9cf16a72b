//! The auditor's interface: entries, checkpoints, verifier keys and proofs.
//!
//! It is given a [`LogReader`] and a [`ReadRecorder`], nothing that could change a session: an auditor cannot touch one because
//! there is nothing here to touch it with. Every call is itself an entry of the log, appended before it is answered.

mod documents;
mod export;
mod routes;

pub use documents::{
    ConsistencyDocument, EntriesDocument, EntryDocument, InclusionDocument, KeyDocument, KeysDocument,
};
pub use export::{__path_export_entries, export_entries};
pub use routes::*;

use std::sync::Arc;

use api_http::{Gate, Problem};
use async_trait::async_trait;
use audit_log::LogReader;
use session_model::Detail;
use session_service::Caller;

/// Records that somebody read the log.
#[async_trait]
pub trait ReadRecorder: Send + Sync + 'static {
    /// Returns once the entry is durable; on failure the read must not be answered.
    async fn record(&self, caller: &Caller, detail: Detail) -> Result<(), Problem>;
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
}

/// What the auditor's interface is made of.
#[derive(Clone)]
pub struct AuditApi {
    /// Reads the log.
    pub log: Arc<dyn LogReader>,
    /// Records each reading.
    pub recorder: Arc<dyn ReadRecorder>,
    /// Lets auditors in.
    pub gate: Gate,
    /// The log's verifier keys, the current one first.
    pub keys: Arc<Vec<PublishedKey>>,
    /// What witnesses have cosigned.
    pub cosigned: Arc<dyn CosignedCheckpoints>,
}

impl std::fmt::Debug for AuditApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuditApi")
    }
}
