//! What auditors read.

use std::collections::BTreeMap;

use serde::Serialize;
use session_model::Timestamp;
use utoipa::ToSchema;
use uuid::Uuid;

/// One entry.
#[derive(Debug, Serialize, ToSchema)]
pub struct EntryDocument {
    /// Its place in the log.
    pub index: u64,
    /// SHA-256(0x00 ‖ leaf), hexadecimal.
    pub leaf_hash: String,
    /// The exact bytes that are hashed, base64.
    pub leaf: String,
    /// The leaf, decoded.
    #[schema(value_type = Object)]
    pub entry: serde_json::Value,
    /// Size of the tree whose checkpoint was stored with it.
    pub tree_size: u64,
    /// What is sealed beside the leaf: only where it is revealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub personal: Option<PersonalDocument>,
}

/// What is sealed beside a leaf, opened and checked against the leaf's commitment.
#[derive(Debug, Serialize, ToSchema)]
pub struct PersonalDocument {
    /// Whether it could be opened.
    pub state: PersonalState,
    /// The address that the request came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub origin: Option<String>,
    /// What happened to the session, whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Object>)]
    pub event: Option<serde_json::Value>,
    /// Further facts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub facts: Option<BTreeMap<String, String>>,
}

impl PersonalDocument {
    pub(crate) const fn bare(state: PersonalState) -> Self {
        Self { state, origin: None, event: None, facts: None }
    }
}

/// Whether what is sealed could be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PersonalState {
    /// Nothing is sealed.
    None,
    /// It was opened.
    Open,
    /// The subject was erased: nobody can open it any more.
    Erased,
    /// Retention has dropped it.
    Pruned,
    /// It is not what the leaf commits to: the log was damaged.
    Broken,
}

/// How an entry ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code, missing_docs, reason = "the words themselves, for the document")]
pub enum OutcomeWord {
    Success,
    Refused,
}

/// Entries of a session, oldest first, with the state after each.
#[derive(Debug, Serialize, ToSchema)]
pub struct HistoryDocument {
    /// The steps.
    pub items: Vec<StepDocument>,
    /// Where the next page begins; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next_cursor: Option<String>,
}

/// An entry of a session, and the state after it.
#[derive(Debug, Serialize, ToSchema)]
pub struct StepDocument {
    /// The entry.
    pub entry: EntryDocument,
    /// The session after it; `null` from the first entry on that was erased or pruned.
    pub state: Option<StateDocument>,
}

/// The state of a session after an entry. What is personal stands in it only where it is revealed.
#[derive(Debug, Serialize, ToSchema)]
pub struct StateDocument {
    /// How many entries it had.
    pub version: u64,
    /// `active` or `ended`.
    pub state: &'static str,
    /// What kind of client it served.
    pub kind: &'static str,
    /// Whether a subject was bound to it.
    pub subject_bound: bool,
    /// How the subject had authenticated.
    pub methods: Option<Vec<String>>,
    /// With what assurance.
    pub level: Option<String>,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// The last change or, later on, use that was marked.
    #[schema(value_type = String, format = DateTime)]
    pub last_seen_at: Timestamp,
    /// When it would have expired unused.
    #[schema(value_type = String, format = DateTime)]
    pub idle_expires_at: Timestamp,
    /// When it would have expired, used or not.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Why it ended.
    pub end_reason: Option<String>,
    /// Who it belonged to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub subject: Option<String>,
    /// What the application kept in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Object>)]
    pub attributes: Option<serde_json::Value>,
    /// Where its client was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub client_address: Option<String>,
    /// Its client's `User-Agent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub user_agent: Option<String>,
}

/// What an erasure destroyed.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErasureDocument {
    /// The handle under which the subject stands in leaves: from now on it means nobody. Not there if it stands in none, in a realm of
    /// profile `transient`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub subject_key: Option<Uuid>,
    /// Open sessions that were ended first.
    pub sessions_ended: usize,
    /// Data keys destroyed: the subject's, and those of its sessions before it had logged in.
    pub keys_destroyed: usize,
    /// Where the entry stands.
    pub receipt: SubjectReceipt,
}

/// Whether a subject is under legal hold.
#[derive(Debug, Serialize, ToSchema)]
pub struct HoldDocument {
    /// The handle under which the subject stands in leaves.
    pub subject_key: Uuid,
    /// Whether it is held now.
    pub held: bool,
    /// Where the entry stands.
    pub receipt: SubjectReceipt,
}

/// Where an entry stands: the receipt, short of the proof (`GET /v1/receipts/{index}`).
#[derive(Debug, Serialize, ToSchema)]
pub struct SubjectReceipt {
    /// Which log.
    pub origin: String,
    /// The entry's leaf index.
    pub index: u64,
    /// Hash of its leaf, hexadecimal.
    pub leaf_hash: String,
    /// Size of the tree whose signed checkpoint was stored in the same transaction.
    pub tree_size: u64,
}

/// A page of entries, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct EntriesDocument {
    /// The entries.
    pub items: Vec<EntryDocument>,
    /// Where the next page begins; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// An inclusion proof (RFC 9162 section 2.1.3).
#[derive(Debug, Serialize, ToSchema)]
pub struct InclusionDocument {
    /// The entry.
    pub index: u64,
    /// The tree.
    pub size: u64,
    /// Hash of the entry's leaf, hexadecimal.
    pub leaf_hash: String,
    /// From the leaf upwards, each base64.
    pub hashes: Vec<String>,
}

/// A consistency proof (RFC 9162 section 2.1.4).
#[derive(Debug, Serialize, ToSchema)]
pub struct ConsistencyDocument {
    /// The smaller tree.
    pub from: u64,
    /// The larger tree.
    pub to: u64,
    /// Each base64.
    pub hashes: Vec<String>,
}

/// A verifier key.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyDocument {
    /// C2SP signed-note vkey line.
    pub vkey: String,
    /// Whether it signs new checkpoints. During a rotation two do, and each checkpoint has both signatures.
    pub current: bool,
    /// Since when it signs; absent for the log's first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signs_from: Option<String>,
    /// Until when it signed; absent while it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_until: Option<String>,
}

/// The log's verifier keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeysDocument {
    /// Those that sign first, then past ones.
    pub keys: Vec<KeyDocument>,
}
