//! What each format looks like, byte for byte. A change here is a change for every consumer: bless it (`BLESS=1`) only on purpose.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop")]

use audit_export::{Format, Record};
use session_model::{Digest, Leaf, LeafIndex, SealedPart};

const LEAVES: [(&str, Option<&str>); 6] = [
    (
        r#"{"action":"service.started","actor":{"id":"node","role":"node"},"detail":{"program":"0.1.0"},"entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92c0","format":1,"node":"node","outcome":"success","protocol":"internal","realm":"default","time":"2026-11-21T05:43:10.000000Z"}"#,
        None,
    ),
    (
        r#"{"action":"key.created","actor":{"id":"command-line","role":"operator"},"detail":{"key":"key-1","realm":"default","roles":"application,auditor"},"entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92c1","format":1,"node":"node","outcome":"success","protocol":"cli","realm":"default","time":"2026-11-21T05:43:10.100000Z"}"#,
        None,
    ),
    (
        r#"{"action":"session.created","actor":{"id":"key-1","role":"application"},"commitment":"1138ea8736cf5bc11796776ec64c32a940f5875a1e726df5c882689325f96749","data_key":"88c50c66-0ffb-4fed-8cc2-a37435d4f777","detail":{"kind":"web"},"entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92c2","format":1,"node":"node","outcome":"success","protocol":"rest","realm":"default","session_id":"01a1fca1-4541-73ec-9436-4c6bac6a9c2e","time":"2026-11-21T05:43:10.364321Z","trace_id":"2514347149e07105ae2ed1b5e11ade40","version":1}"#,
        Some(
            r#"{"event":{"created":{"subject":"=alice|\\\n","kind":"web","attributes":{"a":[1,{"b":null}]},"idle_timeout":1800,"absolute_timeout":43200,"token":"1138ea8736cf5bc11796776ec64c32a940f5875a1e726df5c882689325f96749"}},"origin":"192.0.2.7"}"#,
        ),
    ),
    (
        r#"{"action":"session.token_reused","actor":{"id":"key-1","role":"application"},"data_key":"88c50c66-0ffb-4fed-8cc2-a37435d4f777","entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92c3","format":1,"node":"node","outcome":"success","previous":{"hash":"7cf035b2f6efb7699757a6cded73ac3cc5a8d20937951bfa32e4cb678d6e6267","index":2},"protocol":"soap","realm":"default","request_id":"r-1","session_id":"01a1fca1-4541-73ec-9436-4c6bac6a9c2e","time":"2026-11-21T05:43:11.364321Z","version":2}"#,
        Some(r#"{"event":"token_reused","origin":"2001:db8::1"}"#),
    ),
    (
        r#"{"action":"session.ended","actor":{"id":"key-1","role":"application"},"entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92c4","detail":{"reason":"logout"},"format":1,"node":"node","outcome":"success","previous":{"hash":"7cf035b2f6efb7699757a6cded73ac3cc5a8d20937951bfa32e4cb678d6e6267","index":3},"protocol":"rest","realm":"default","session_id":"01a1fca1-4541-73ec-9436-4c6bac6a9c2e","time":"2026-11-21T05:43:12.364321Z","version":3}"#,
        None,
    ),
    (
        r#"{"action":"audit.read","actor":{"id":"key-2","role":"auditor"},"detail":{"route":"/v1/audit/entries"},"entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92c5","format":1,"node":"node","outcome":"refused","protocol":"rest","realm":"default","time":"2026-11-21T05:43:13.364321Z","trace_id":"2514347149e07105ae2ed1b5e11ade40"}"#,
        None,
    ),
];

fn written(format: Format) -> String {
    let mut out = format.header().as_bytes().to_vec();
    for (at, (leaf, opened)) in LEAVES.iter().enumerate() {
        let leaf = Leaf::decode(leaf.as_bytes()).unwrap();
        let opened = opened.map(|opened| SealedPart::decode(opened.as_bytes()).unwrap());
        let leaf_hash = Digest([at as u8; 32]);
        let record = Record { index: LeafIndex(at as u64), leaf_hash, leaf: &leaf, opened: opened.as_ref() };
        format.write(&record, &mut out).unwrap();
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn each_format_is_what_it_was() {
    for format in Format::ALL {
        let file = format!("{}/tests/golden/entries.{format}", env!("CARGO_MANIFEST_DIR"));
        let written = written(format);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&file, &written).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_else(|failure| panic!("{file}: {failure}"));
        assert_eq!(written, golden, "{format}");
    }
}

/// The attributes that schema 1.8.0 requires of the three classes and of the objects in them, and its constraints.
#[test]
fn every_ocsf_event_has_what_its_class_requires() {
    for line in written(Format::Ocsf).lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        for required in ["activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"] {
            assert!(!event[required].is_null(), "{required}: {line}");
        }
        let (class, activity) = (event["class_uid"].as_u64().unwrap(), event["activity_id"].as_u64().unwrap());
        assert_eq!(event["type_uid"].as_u64().unwrap(), class * 100 + activity);
        assert_eq!(event["category_uid"].as_u64().unwrap(), class / 1_000);
        assert!(event["metadata"]["version"].is_string() && event["metadata"]["product"]["vendor_name"].is_string());
        let known: &[u64] = match class {
            3002 => &[1, 2, 3, 99],
            3003 => &[1],
            6003 => &[2, 3, 4, 99],
            other => panic!("class {other}"),
        };
        assert!(known.contains(&activity), "{line}");
        let (required, one_of): (&[&str], &[&str]) = match class {
            3002 => (&["user"], &["service", "dst_endpoint"]),
            3003 => (&["user"], &["privileges", "groups", "iam_roles"]),
            _ => (&["actor", "api", "src_endpoint"], &["api"]),
        };
        assert!(required.iter().all(|name| event[*name].is_object()), "{line}");
        assert!(one_of.iter().any(|name| !event[*name].is_null()), "{line}");
        for user in [&event["user"], &event["actor"]["user"]].into_iter().filter(|user| user.is_object()) {
            assert!(user["uid"].as_str().is_some_and(|uid| !uid.is_empty()), "{line}");
        }
        assert!(event["unmapped"]["index"].is_u64() && event["unmapped"]["leaf_hash"].is_string());
    }
}
