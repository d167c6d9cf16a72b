//! JSON lines: the whole entry.
//!
//! `entry` is the decoded leaf, encoded again; it is canonical JSON (RFC 8785), so SHA-256(0x00 ‖ entry) is `leaf_hash` exactly if the
//! stored bytes were what a log writes. The stored bytes themselves are not copied: an altered one could hold a line's end.

use serde::Serialize;
use session_model::{Leaf, SealedPart};

use crate::Record;
use crate::line::json;

#[derive(Serialize)]
struct Line<'a> {
    index: u64,
    leaf_hash: String,
    entry: &'a Leaf,
    #[serde(skip_serializing_if = "Option::is_none")]
    opened: Option<&'a SealedPart>,
}

pub(crate) fn line(record: &Record<'_>) -> Result<String, serde_json::Error> {
    json(&Line {
        index: record.index.0,
        leaf_hash: record.leaf_hash.to_string(),
        entry: record.leaf,
        opened: record.opened,
    })
}
