//! What auditors ask: by any filter, one session's history, personal data for a stated purpose, erasure and hold.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::program::{AUDITOR, Answer, Home, OPERATOR, Program};

fn audit(program: &Program, path: &str) -> Answer {
    program.json(AUDITOR, "GET", &format!("/v1/audit/{path}"), None)
}

fn actions(program: &Program, query: &str) -> Vec<String> {
    let found = audit(program, &format!("entries?{query}"));
    assert_eq!(found.status, 200, "{}", found.text);
    let items = found.json()["items"].as_array().unwrap().clone();
    items.iter().map(|item| item["entry"]["action"].as_str().unwrap().to_owned()).collect()
}

fn id(created: &Answer) -> String {
    assert_eq!(created.status, 201, "{}", created.text);
    created.json()["id"].as_str().unwrap().to_owned()
}

fn begin(program: &Program, subject: &str, address: &str) -> String {
    let body = json!({"subject": subject, "client": {"address": address}, "attributes": {"plan": "gold-members"}});
    id(&program.app("POST", "/v1/sessions", Some(body)))
}

#[test]
fn entries_are_found_by_every_filter_and_their_reading_is_an_entry() {
    let home = Home::new();
    let program = home.start();
    let alice = begin(&program, "alice", "198.51.100.7");
    begin(&program, "bob", "198.51.100.8");
    program.app("PATCH", &format!("/v1/sessions/{alice}"), Some(json!({"a": 1})));
    program.app("DELETE", &format!("/v1/sessions/{alice}"), None);

    let of_alice = ["session.ended", "session.updated", "session.created"];
    assert_eq!(actions(&program, "subject=alice&action=session.created"), ["session.created"]);
    assert_eq!(actions(&program, "subject=alice"), of_alice);
    assert_eq!(actions(&program, &format!("session={alice}")), of_alice);
    assert_eq!(actions(&program, &format!("session={alice}&action=audit.read")), ["audit.read"; 2], "who asked for it");
    assert_eq!(actions(&program, "subject=alice&action=audit.read"), ["audit.read"; 3]);
    assert_eq!(actions(&program, "address=198.51.100.8"), ["session.created"]);
    assert!(actions(&program, "subject=nobody").is_empty());
    assert!(actions(&program, "outcome=refused").is_empty());
    assert!(actions(&program, "to=2001-01-01T00:00:00Z").is_empty());
    assert_eq!(actions(&program, "from=2001-01-01T00:00:00Z&subject=bob&action=session.created").len(), 1);

    // Page by page, nothing twice and nothing missing.
    let whole = actions(&program, "subject=alice&to=2999-01-01T00:00:00Z").len();
    let mut seen = BTreeSet::new();
    let mut next = Some("/v1/audit/entries?session=".to_owned() + &alice + "&limit=1&action=session.updated");
    while let Some(path) = next {
        let page = program.json(AUDITOR, "GET", &path, None);
        for item in page.json()["items"].as_array().unwrap() {
            assert!(seen.insert(item["index"].as_u64().unwrap()));
        }
        next = page.json()["next_cursor"].as_str().map(|cursor| format!("{path}&cursor={cursor}"));
        assert!(next.is_none() == page.headers.get("link").is_none());
    }
    assert_eq!(seen.len(), 1);
    assert!(whole >= 3);

    // A reading says what it asked for, and never about whom.
    let reading = audit(&program, "entries?action=audit.read&limit=500").json();
    let text = reading.to_string();
    assert!(text.contains("\"filters\":\"subject\"") && text.contains(&alice), "{text}");
    assert!(!text.contains("198.51.100"), "{text}");
    let bad = [
        ("action=nothing.known", "action"),
        ("outcome=maybe", "outcome"),
        ("address=next-door", "address"),
        ("from=yesterday", "from"),
        ("session=7", "session"),
        ("subject=", "subject"),
        ("limit=0", "limit"),
        ("cursor=zzz", "cursor"),
        ("colour=red", "colour"),
        ("reveal=true", "purpose"),
        ("purpose=curiosity", "purpose"),
        ("reveal=perhaps&purpose=x", "reveal"),
    ];
    for (query, field) in bad {
        let answer = audit(&program, &format!("entries?{query}"));
        assert_eq!(answer.status, 400, "{query}: {}", answer.text);
        assert_eq!(answer.json()["errors"][0]["pointer"], format!("#query/{field}"), "{query}");
    }
}

#[test]
fn personal_data_is_shown_for_a_purpose_only_and_the_purpose_is_recorded() {
    let home = Home::new();
    let program = home.start();
    let session = begin(&program, "alice", "198.51.100.7");
    program.app("PATCH", &format!("/v1/sessions/{session}"), Some(json!({"plan": "silver-members"})));
    let plain = audit(&program, &format!("sessions/{session}/history"));
    assert!(!plain.text.contains("alice") && !plain.text.contains("gold-members"), "{}", plain.text);
    let steps = plain.json()["items"].as_array().unwrap().clone();
    let states: Vec<Value> = steps.iter().map(|step| step["state"]["version"].clone()).collect();
    assert_eq!(states, [json!(1), json!(2)]);
    let revealed = audit(&program, &format!("sessions/{session}/history?reveal=true&purpose=case%2012")).json();
    let attributes: Vec<_> =
        revealed["items"].as_array().unwrap().iter().map(|s| s["state"]["attributes"].clone()).collect();
    assert_eq!(attributes, [json!({"plan": "gold-members"}), json!({"plan": "silver-members"})]);
    assert_eq!(revealed["items"][0]["entry"]["personal"]["origin"], "127.0.0.1");
    assert_eq!(revealed["items"][0]["state"]["subject"], "alice");

    let at = |query: &str| audit(&program, &format!("sessions/{session}/history?{query}"));
    assert_eq!(at("version=1").json()["items"][0]["state"]["version"], 1);
    assert_eq!(at("at=2999-01-01T00:00:00Z").json()["items"][0]["state"]["version"], 2);
    assert_eq!(at("at=2001-01-01T00:00:00Z").status, 404);
    assert_eq!(at("version=3").status, 404);
    assert_eq!(at("version=1&at=2999-01-01T00:00:00Z").status, 400);
    assert_eq!(audit(&program, "sessions/0190d1a6-0000-7000-8000-000000000000/history").status, 404);

    let readings = audit(&program, "entries?action=audit.read&limit=500&reveal=true&purpose=oversight").json();
    let purposes: Vec<_> = readings["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|item| item["personal"]["facts"]["purpose"].as_str())
        .collect();
    assert_eq!(purposes, ["oversight", "case 12"]);
}

/// The file of the log, its write-ahead log and everything else in the data folder.
fn on_disk(home: &Home) -> Vec<u8> {
    fn gather(folder: &std::path::Path, all: &mut Vec<u8>) {
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() { gather(&path, all) } else { all.extend(std::fs::read(path).unwrap()) }
        }
    }
    let mut all = Vec::new();
    gather(&home.data(), &mut all);
    all
}

#[test]
fn an_erased_subject_is_nowhere_and_a_held_one_stays() {
    let home = Home::new();
    let program = home.start();
    let session = begin(&program, "alice.a.n.other", "198.51.100.77");
    begin(&program, "bob", "198.51.100.8");
    let subject = "subjects/alice.a.n.other";
    let hold = |method, body| program.json(AUDITOR, method, &format!("/v1/audit/{subject}/legal-hold"), body);
    let erase = || program.json(AUDITOR, "POST", &format!("/v1/audit/{subject}/erasure"), None);
    assert_eq!(hold("PUT", Some(json!({}))).status, 422);
    let held = hold("PUT", Some(json!({"reason": "case 7"})));
    assert_eq!((held.status, held.json()["held"].clone()), (200, json!(true)), "{}", held.text);
    let refused = erase();
    assert_eq!((refused.status, refused.json()["code"].clone()), (409, json!("legal_hold")));
    let export = audit(&program, &format!("{subject}/export?purpose=access%20request"));
    assert_eq!(export.header("content-type"), "application/x-ndjson");
    let lines: Vec<Value> = export.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{}", export.text);
    assert_eq!(lines[0]["personal"]["event"]["created"]["subject"], "alice.a.n.other");
    assert_eq!(hold("DELETE", None).status, 200);
    assert_eq!(hold("DELETE", None).json()["code"], "nothing_held");

    let keyed = |key: &str, path: &str, body: Option<&[u8]>| {
        let bearer = format!("Bearer {AUDITOR}");
        let mut headers = vec![("Authorization", bearer.as_str()), ("Idempotency-Key", key)];
        headers.extend(body.map(|_| ("Content-Type", "application/json")));
        program.ask("POST", &format!("/v1/audit/{path}/erasure"), &headers, body).unwrap()
    };
    let erased = keyed("case 7", subject, None);
    assert_eq!(erased.status, 200, "{}", erased.text);
    let again = keyed("case 7", subject, None);
    assert_eq!((again.status, &again.text), (200, &erased.text), "the first answer again");
    assert_eq!(again.header("counterfoil-index"), erased.header("counterfoil-index"));
    assert_eq!(keyed("case 8", subject, None).json()["code"], "nothing_held");
    for (path, body) in [("subjects/bob", None), (subject, Some(&b"{}"[..]))] {
        let reused = keyed("case 7", path, body);
        assert_eq!((reused.status, reused.json()["code"].clone()), (422, json!("idempotency_key_reused")), "{path}");
    }
    assert_eq!(keyed("", subject, None).status, 400);
    assert_eq!(erased.json()["sessions_ended"], 1);
    assert_eq!(erased.header("counterfoil-index"), erased.json()["receipt"]["index"].to_string());
    assert_eq!(erase().json()["code"], "nothing_held");
    assert_eq!(audit(&program, &format!("{subject}/export?purpose=x")).json()["code"], "nothing_held");
    assert!(actions(&program, "address=198.51.100.77").is_empty());
    assert_eq!(actions(&program, "address=198.51.100.8"), ["session.created"]);
    let history = audit(&program, &format!("sessions/{session}/history?reveal=true&purpose=x")).json();
    for step in history["items"].as_array().unwrap() {
        assert_eq!((&step["entry"]["personal"], &step["state"]), (&json!({"state": "erased"}), &Value::Null));
    }
    assert_eq!(program.app("GET", &format!("/v1/sessions/{session}"), None).status, 404);
    let refusals = actions(&program, "action=subject.erased&outcome=refused");
    assert_eq!(refusals.len(), 3, "the one under hold, that with another key, and the one without");

    // Every receipt still proves.
    let receipt = program.app("GET", "/v1/receipts/3", None);
    assert_eq!(receipt.status, 200);
    program.stop();
    let disk = on_disk(&home);
    for trace in ["alice.a.n.other", "198.51.100.77", "gold-members"] {
        assert!(!disk.windows(trace.len()).any(|part| part == trace.as_bytes()), "{trace} is on disk");
    }
}

#[test]
fn refused_requests_are_one_entry_however_many_they_are() {
    let home = Home::new();
    let program = home.start();
    for _ in 0..50 {
        assert_eq!(program.json("cfk_made_up", "GET", "/v1/sessions", None).status, 401);
        assert_eq!(program.json(OPERATOR, "GET", "/v1/audit/entries", None).status, 403);
    }
    let began = std::time::Instant::now();
    let refusals = loop {
        let found = audit(&program, "entries?action=request.refused&outcome=refused").json();
        let count: u64 = found["items"].as_array().unwrap().iter().map(count_of).sum();
        if count == 100 {
            break found;
        }
        assert!(began.elapsed().as_secs() < 15, "{found}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    };
    let items = refusals["items"].as_array().unwrap();
    assert!(items.len() <= 6, "{} entries for 100 requests", items.len());
    let details: Vec<_> = items.iter().map(|item| item["entry"]["detail"].clone()).collect();
    assert!(details.iter().any(|detail| detail["reason"] == "credential" && detail["route"] == "/v1/sessions"));
    assert!(details.iter().any(|detail| detail["reason"] == "role" && detail["route"] == "/v1/audit/entries"));
}

fn count_of(item: &Value) -> u64 {
    item["entry"]["detail"]["count"].as_str().unwrap().parse().unwrap()
}
