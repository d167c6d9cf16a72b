//! ArcSight Common Event Format, version 0: `CEF:0|vendor|product|version|signature|name|severity|key=value …`.

use std::fmt::Write as _;

use session_model::{Action, Outcome};

use crate::Record;
use crate::line::{is_unruly, json, protocol, role, subject};

pub(crate) fn line(record: &Record<'_>) -> Result<String, serde_json::Error> {
    let leaf = record.leaf;
    let mut line = String::with_capacity(768);
    line.push_str("CEF:0|Counterfoil|Counterfoil|1|");
    header(leaf.action.name(), &mut line);
    line.push('|');
    header(name(leaf.action), &mut line);
    line.push('|');
    // Writing into a String cannot fail.
    let _infallible = write!(line, "{}|", severity(leaf.action, leaf.outcome));
    let detail = if leaf.detail.is_empty() { None } else { Some(json(&leaf.detail)?) };
    let labelled = |label: &str, value: Option<String>| value.map(|value| (label.to_owned(), value));
    let strings = [
        labelled("leaf_hash", Some(record.leaf_hash.to_string())),
        labelled("realm", Some(leaf.realm.to_string())),
        labelled("session", leaf.session_id.map(|id| id.to_string())),
        labelled("data_key", leaf.data_key.map(|key| key.to_string())),
        labelled("entry_id", Some(leaf.entry_id.to_string())),
        labelled("trace_id", leaf.trace_id.clone()),
    ];
    let plain = [
        ("rt", Some((leaf.time.as_micros().div_euclid(1_000)).to_string())),
        ("externalId", Some(record.index.to_string())),
        ("cn1Label", Some("index".to_owned())),
        ("cn1", Some(record.index.to_string())),
        ("cn2Label", leaf.version.map(|_| "version".to_owned())),
        ("cn2", leaf.version.map(|version| version.to_string())),
        ("act", Some(leaf.action.name().to_owned())),
        ("outcome", Some(leaf.outcome.name().to_owned())),
        ("suid", Some(leaf.actor.id.clone())),
        ("spriv", Some(role(leaf.actor.role).to_owned())),
        ("app", Some(protocol(leaf.protocol).to_owned())),
        ("deviceExternalId", Some(leaf.node.clone())),
        ("duser", subject(record.opened).map(ToOwned::to_owned)),
        ("msg", detail),
    ];
    let mut first = true;
    let mut field = |key: &str, value: &str| {
        if !first {
            line.push(' ');
        }
        first = false;
        line.push_str(key);
        line.push('=');
        extension(value, &mut line);
    };
    for (key, value) in &plain {
        if let Some(value) = value {
            field(key, value);
        }
    }
    match record.opened.and_then(|opened| opened.origin) {
        Some(address @ std::net::IpAddr::V4(_)) => field("src", &address.to_string()),
        // The dictionary's custom IPv6 field: `src` takes IPv4 only.
        Some(address @ std::net::IpAddr::V6(_)) => {
            field("c6a2Label", "source address");
            field("c6a2", &address.to_string());
        }
        None => {}
    }
    for (at, labelled) in strings.iter().enumerate() {
        if let Some((label, value)) = labelled {
            field(&format!("cs{}Label", at + 1), label);
            field(&format!("cs{}", at + 1), value);
        }
    }
    Ok(line)
}

/// A header field: pipe and backslash escaped; a header has no escape for line ends.
fn header(value: &str, line: &mut String) {
    for c in value.chars() {
        match c {
            '|' | '\\' => line.extend(['\\', c]),
            c if is_unruly(c) => line.push(' '),
            c => line.push(c),
        }
    }
}

/// A value of the extension: backslash and equals sign escaped, line ends as the two characters that stand for them. What else is
/// unruly has no escape in CEF, and becomes a question mark. A space at the end would be taken for the gap before the next key.
fn extension(value: &str, line: &mut String) {
    for c in value.trim_end_matches(' ').chars() {
        match c {
            '=' | '\\' => line.extend(['\\', c]),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            c if is_unruly(c) => line.push('?'),
            c => line.push(c),
        }
    }
}

const fn name(action: Action) -> &'static str {
    match action {
        Action::SessionCreated => "Session created",
        Action::SessionUpdated => "Session attributes changed",
        Action::SessionAuthenticated => "Subject authenticated",
        Action::SessionRenewed => "Session token rotated",
        Action::SessionTokenReused => "Rotated session token used",
        Action::SessionEnded => "Session ended",
        Action::SessionRead => "Session read",
        Action::AuditRead => "Audit log read",
        Action::RequestRefused => "Requests refused",
        Action::SubjectErased => "Subject erased",
        Action::SubjectHeld => "Subject put under legal hold",
        Action::SubjectReleased => "Subject released from legal hold",
        Action::KeyCreated => "API key created",
        Action::KeyRevoked => "API key revoked",
        Action::KeyRotated => "Another key is in use",
        Action::KeyRewrapped => "Data keys wrapped anew",
        Action::RetentionPruned => "Sealed parts dropped by retention",
        Action::ServiceStarted => "Service started",
        Action::ServiceStopped => "Service stopped",
        Action::ViewQuarantined => "Foreign data in the view quarantined",
    }
}

/// 0 to 3 low, 4 to 6 medium, 7 and 8 high (CEF).
const fn severity(action: Action, outcome: Outcome) -> u8 {
    match (action, outcome) {
        (Action::SessionTokenReused, _) => 8,
        (Action::ViewQuarantined, _) => 7,
        (_, Outcome::Refused) => 5,
        (
            Action::KeyCreated
            | Action::KeyRevoked
            | Action::KeyRotated
            | Action::KeyRewrapped
            | Action::RetentionPruned
            | Action::ServiceStarted
            | Action::ServiceStopped
            | Action::RequestRefused
            | Action::SubjectErased
            | Action::SubjectHeld
            | Action::SubjectReleased,
            Outcome::Success,
        ) => 4,
        (Action::AuditRead, Outcome::Success) => 3,
        (
            Action::SessionCreated
            | Action::SessionUpdated
            | Action::SessionAuthenticated
            | Action::SessionRenewed
            | Action::SessionEnded
            | Action::SessionRead,
            Outcome::Success,
        ) => 1,
    }
}
