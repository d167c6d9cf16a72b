//! What auditors read.

use serde::Serialize;
use utoipa::ToSchema;

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
