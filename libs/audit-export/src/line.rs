//! What must not stand in a line of text, and words about entries that several formats share.

use serde::Serialize;
use session_model::{Event, Protocol, Role, SealedPart};

/// Whether some reader may take a character for the end of a line, or lay the text out in another order than it was written
/// (Unicode's controls, line and paragraph separators, and the bidirectional controls of "Trojan Source").
pub(crate) fn is_unruly(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A value as one line of JSON. JSON escapes the ASCII controls only; the other unruly characters can stand nowhere but in strings, so
/// they are escaped there too.
pub(crate) fn json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let text = serde_json::to_string(value)?;
    if !text.chars().any(is_unruly) {
        return Ok(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unruly(c) { escaped.push_str(&format!("\\u{:04x}", u32::from(c))) } else { escaped.push(c) }
    }
    Ok(escaped)
}

pub(crate) const fn role(role: Role) -> &'static str {
    match role {
        Role::Application => "application",
        Role::Auditor => "auditor",
        Role::Operator => "operator",
        Role::Node => "node",
    }
}

pub(crate) const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Rest => "rest",
        Protocol::Soap => "soap",
        Protocol::Cli => "cli",
        Protocol::Internal => "internal",
    }
}

/// The subject that an opened part names.
pub(crate) fn subject(opened: Option<&SealedPart>) -> Option<&str> {
    match opened?.event.as_ref()? {
        Event::Created(beginning) => beginning.subject.as_deref(),
        Event::Authenticated { subject, .. } => Some(subject),
        Event::Updated { .. } | Event::Renewed { .. } | Event::TokenReused | Event::Ended(_) => None,
    }
}
