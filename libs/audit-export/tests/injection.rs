//! No value breaks out of its place, whatever it holds: read back by parsers that know nothing of the writers.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

use std::collections::BTreeMap;

use audit_export::{Format, Record};
use proptest::prelude::*;
use session_model::{
    Action, Actor, Digest, EntryId, Event, Format as LeafFormat, KeyId, Leaf, LeafIndex, Outcome, Protocol, Role,
    SealedPart, Seconds, SessionId, Timestamp, TokenDigest, Version,
};
use uuid::Uuid;

/// Text made of what breaks things, and of anything else.
fn nasty() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        Just("\n"),
        Just("\r"),
        Just("\r\n"),
        Just("\""),
        Just("\"\""),
        Just("'"),
        Just(","),
        Just("|"),
        Just("\\"),
        Just("="),
        Just("+"),
        Just("-"),
        Just("@"),
        Just("\t"),
        Just("\0"),
        Just("\u{85}"),
        Just("\u{2028}"),
        Just("\u{2029}"),
        Just("\u{202e}"),
        Just("\u{feff}"),
        Just("\u{ff1d}"),
        Just(" "),
        Just("\u{1b}[2J"),
        Just(" act=forged"),
        Just("CEF:0|a|b|"),
        Just("=cmd|'/c calc'!A1"),
        Just("{\"index\":0}"),
        Just("\\n"),
        Just("\\="),
        Just("x"),
        Just("é"),
    ];
    prop_oneof![
        4 => proptest::collection::vec(pieces, 0..8).prop_map(|pieces| pieces.concat()),
        1 => any::<String>(),
    ]
}

fn actions() -> impl Strategy<Value = Action> {
    proptest::sample::select(vec![
        Action::SessionCreated,
        Action::SessionUpdated,
        Action::SessionAuthenticated,
        Action::SessionRenewed,
        Action::SessionTokenReused,
        Action::SessionEnded,
        Action::SessionRead,
        Action::AuditRead,
        Action::KeyCreated,
        Action::KeyRevoked,
        Action::KeyRotated,
        Action::KeyRewrapped,
        Action::RetentionPruned,
        Action::ServiceStarted,
        Action::ServiceStopped,
        Action::ViewQuarantined,
    ])
}

#[derive(Debug, Clone)]
struct Texts {
    actor: String,
    node: String,
    request: Option<String>,
    trace: Option<String>,
    detail: BTreeMap<String, String>,
    facts: BTreeMap<String, String>,
    subject: String,
}

fn texts() -> impl Strategy<Value = Texts> {
    let map = || {
        proptest::collection::btree_map(
            prop_oneof![Just("reason".to_owned()), Just("roles".to_owned()), Just("key".to_owned()), nasty()],
            nasty(),
            0..3,
        )
    };
    (nasty(), nasty(), proptest::option::of(nasty()), proptest::option::of(nasty()), map(), map(), nasty()).prop_map(
        |(actor, node, request, trace, detail, facts, subject)| Texts {
            actor,
            node,
            request,
            trace,
            detail,
            facts,
            subject,
        },
    )
}

fn entry(action: Action, texts: &Texts) -> (Leaf, SealedPart) {
    let leaf = Leaf {
        action,
        actor: Actor { id: texts.actor.clone(), role: Role::Application },
        commitment: None,
        data_key: Some(KeyId::new(Uuid::from_u128(3))),
        detail: texts.detail.clone(),
        entry_id: EntryId::new(Uuid::from_u128(1)),
        format: LeafFormat::V1,
        node: texts.node.clone(),
        outcome: Outcome::Success,
        previous: None,
        protocol: Protocol::Rest,
        realm: "default".parse().unwrap(),
        request_id: texts.request.clone(),
        session_id: Some(SessionId::new(Uuid::from_u128(2))),
        time: Timestamp::from_micros(1_700_000_000_000_000),
        trace_id: texts.trace.clone(),
        version: Some(Version(1)),
    };
    let event = Event::Authenticated {
        subject: texts.subject.clone().into(),
        methods: vec![texts.subject.clone()],
        level: Some(texts.subject.clone()),
        token: TokenDigest::new(Digest([7; 32])),
        overlap: Seconds(30),
    };
    let opened =
        SealedPart { event: Some(event), origin: Some("192.0.2.1".parse().unwrap()), facts: texts.facts.clone() };
    (leaf, opened)
}

fn written(format: Format, action: Action, texts: &Texts) -> String {
    let (leaf, opened) = entry(action, texts);
    let record = Record { index: LeafIndex(42), leaf_hash: Digest([9; 32]), leaf: &leaf, opened: Some(&opened) };
    let mut out = Vec::new();
    format.write(&record, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// A line's end by anybody's reckoning, but the one at the end.
fn is_one_line(text: &str) -> bool {
    let body = text.strip_suffix('\n').map(|body| body.strip_suffix('\r').unwrap_or(body));
    body.is_some_and(|body| {
        !body.chars().any(|c| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c) || c == '\u{feff}')
    })
}

/// Takes a CEF line apart: seven header fields, then the extension, split where a space is followed by a key and a bare `=`.
fn parse_cef(line: &str) -> (Vec<String>, BTreeMap<String, String>) {
    let (mut header, mut field, mut escaped, mut rest) = (Vec::new(), String::new(), false, line.len());
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => {
                field.push(c);
                escaped = false
            }
            '\\' => escaped = true,
            '|' => {
                header.push(std::mem::take(&mut field));
                if header.len() == 7 {
                    rest = at + 1;
                    break;
                }
            }
            c => field.push(c),
        }
    }
    // Bare equals signs mark keys; everything else is escaped.
    let extension: Vec<char> = line[rest..].chars().collect();
    let mut bare = Vec::new();
    let mut at = 0;
    while at < extension.len() {
        match extension[at] {
            '\\' => at += 1,
            '=' => bare.push(at),
            _ => {}
        }
        at += 1;
    }
    let start = |equals: usize| extension[..equals].iter().rposition(|c| *c == ' ').map_or(0, |space| space + 1);
    let mut fields = BTreeMap::new();
    for (nth, equals) in bare.iter().enumerate() {
        let key: String = extension[start(*equals)..*equals].iter().collect();
        let end = bare.get(nth + 1).map_or(extension.len(), |next| start(*next) - 1);
        let raw: String = extension[equals + 1..end].iter().collect();
        assert!(fields.insert(key.clone(), raw).is_none(), "{key} stands twice: {line}");
    }
    (header, fields)
}

fn unescaped(raw: &str) -> String {
    let (mut text, mut chars) = (String::new(), raw.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next().unwrap() {
                'n' => text.push('\n'),
                'r' => text.push('\r'),
                other => text.push(other),
            },
            c => text.push(c),
        }
    }
    text
}

/// What CEF can carry of a value.
fn carried(value: &str) -> String {
    let kept = |c: char| {
        c == '\n'
            || c == '\r'
            || !(c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'))
    };
    value.trim_end_matches(' ').chars().map(|c| if kept(c) { c } else { '?' }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_record_is_one_line(action in actions(), texts in texts()) {
        for format in Format::ALL {
            let line = written(format, action, &texts);
            prop_assert!(is_one_line(&line), "{format}: {line:?}");
        }
    }

    #[test]
    fn json_lines_read_back_as_they_were(action in actions(), texts in texts()) {
        let value: serde_json::Value = serde_json::from_str(&written(Format::Jsonl, action, &texts)).unwrap();
        prop_assert_eq!(value.as_object().unwrap().len(), 4);
        prop_assert_eq!(value["index"].as_u64(), Some(42));
        prop_assert_eq!(value["entry"]["actor"]["id"].as_str(), Some(texts.actor.as_str()));
        prop_assert_eq!(value["opened"]["event"]["authenticated"]["subject"].as_str(), Some(texts.subject.as_str()));
        let entry: Leaf = serde_json::from_value(value["entry"].clone()).unwrap();
        prop_assert_eq!(entry, self::entry(action, &texts).0);
        let value: serde_json::Value = serde_json::from_str(&written(Format::Ocsf, action, &texts)).unwrap();
        prop_assert_eq!(value["unmapped"]["index"].as_u64(), Some(42));
        prop_assert_eq!(value["actor"]["user"]["uid"].as_str(), Some(texts.actor.as_str()));
    }

    #[test]
    fn csv_has_its_cells_and_none_begins_a_formula(action in actions(), texts in texts()) {
        let text = format!("{}{}", Format::Csv.header(), written(Format::Csv, action, &texts));
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let names = reader.headers().unwrap().clone();
        let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        prop_assert_eq!(rows.len(), 1);
        prop_assert_eq!(rows[0].len(), names.len());
        for cell in &rows[0] {
            let first = cell.trim_start().chars().next().unwrap_or('x');
            prop_assert!(!"=+-@\u{ff1d}\u{ff0b}\u{ff0d}\u{ff20}\t\r".contains(first), "{cell:?}");
        }
        let cell = |name: &str| &rows[0][names.iter().position(|known| known == name).unwrap()];
        prop_assert_eq!(cell("index"), "42");
        let bare = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric());
        if bare(&texts.actor) { prop_assert_eq!(cell("actor_id"), texts.actor.as_str()); }
    }

    #[test]
    fn cef_has_its_fields_and_no_other(action in actions(), texts in texts()) {
        let line = written(Format::Cef, action, &texts);
        let (header, fields) = parse_cef(line.trim_end_matches('\n'));
        prop_assert_eq!(header.len(), 7, "{}", line);
        prop_assert_eq!(&header[..4], ["CEF:0", "Counterfoil", "Counterfoil", "1"]);
        for key in fields.keys() {
            let known = ["rt", "externalId", "cn1Label", "cn1", "cn2Label", "cn2", "act", "outcome", "suid", "spriv", "app",
                "deviceExternalId", "duser", "msg", "src"].contains(&key.as_str()) || key.starts_with("cs");
            prop_assert!(known, "{key} came out of a value: {line}");
        }
        prop_assert_eq!(&fields["externalId"], "42");
        prop_assert_eq!(unescaped(&fields["suid"]), carried(&texts.actor));
        prop_assert_eq!(unescaped(&fields["duser"]), carried(&texts.subject));
    }
}
