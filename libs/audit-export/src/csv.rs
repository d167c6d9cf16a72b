//! CSV (RFC 4180), fit to be opened in a spreadsheet.

use crate::Record;
use crate::line::{is_unruly, json, protocol, role, subject};

pub(crate) const HEADER: &str = concat!(
    "index,leaf_hash,time,realm,action,outcome,actor_id,actor_role,protocol,node,session_id,version,data_key,entry_id,",
    "previous_index,previous_hash,commitment,request_id,trace_id,detail,subject,address,opened\r\n"
);

/// What a spreadsheet takes for the beginning of a formula (OWASP, "CSV injection"), the full-width forms included.
const FORMULA: [char; 8] = ['=', '+', '-', '@', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}'];

/// One line, without its line feed: RFC 4180 ends lines with CR LF, so the CR is part of it.
pub(crate) fn line(record: &Record<'_>) -> Result<String, serde_json::Error> {
    let leaf = record.leaf;
    let text = |value: Option<String>| value.unwrap_or_default();
    let address = record.opened.and_then(|opened| opened.origin);
    let cells: [String; 23] = [
        record.index.to_string(),
        record.leaf_hash.to_string(),
        leaf.time.to_string(),
        leaf.realm.to_string(),
        leaf.action.name().to_owned(),
        leaf.outcome.name().to_owned(),
        leaf.actor.id.clone(),
        role(leaf.actor.role).to_owned(),
        protocol(leaf.protocol).to_owned(),
        leaf.node.clone(),
        text(leaf.session_id.map(|id| id.to_string())),
        text(leaf.version.map(|version| version.to_string())),
        text(leaf.data_key.map(|key| key.to_string())),
        leaf.entry_id.to_string(),
        text(leaf.previous.map(|previous| previous.index.to_string())),
        text(leaf.previous.map(|previous| previous.hash.to_string())),
        text(leaf.commitment.map(|commitment| commitment.to_string())),
        text(leaf.request_id.clone()),
        text(leaf.trace_id.clone()),
        if leaf.detail.is_empty() { String::new() } else { json(&leaf.detail)? },
        subject(record.opened).unwrap_or_default().to_owned(),
        text(address.map(|address| address.to_string())),
        record.opened.map_or_else(|| Ok(String::new()), json)?,
    ];
    let mut line = String::with_capacity(512);
    for (at, value) in cells.iter().enumerate() {
        if at > 0 {
            line.push(',');
        }
        cell(value, &mut line);
    }
    line.push('\r');
    Ok(line)
}

/// Quoted always. Unruly characters are written as JSON would; a value that could begin a formula gets the apostrophe that spreadsheets
/// take for "this is text", and that a program strips.
fn cell(value: &str, line: &mut String) {
    line.push('"');
    if value.trim_start().starts_with(FORMULA) {
        line.push('\'');
    }
    for c in value.chars() {
        match c {
            '"' => line.push_str("\"\""),
            c if is_unruly(c) => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line.push('"');
}
