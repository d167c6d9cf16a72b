//! What each user named in the design does first.

use serde_json::json;

use crate::program::{APPLICATION, AUDITOR, Home, OPERATOR};

#[test]
fn a_session_from_beginning_to_end_and_its_receipt_verified_offline() {
    let home = Home::new();
    let program = home.start();
    program.until_ready();
    let created = program.app("POST", "/v1/sessions", Some(json!({"subject": "alice", "attributes": {"a": 1}})));
    assert_eq!(created.status, 201, "{}", created.text);
    let session = created.json();
    let id = session["id"].as_str().unwrap();
    assert_eq!(created.header("location"), format!("/v1/sessions/{id}"));
    assert_eq!((created.header("etag"), created.header("cache-control")), ("\"1\"", "no-store"));
    assert_eq!(created.header("counterfoil-index"), session["receipt"]["index"].to_string());
    let token = session["token"].as_str().unwrap();
    let worth = |token: &str| program.app("POST", "/v1/sessions/validate", Some(json!({"token": token}))).json();
    assert_eq!(worth(token)["session"]["attributes"], json!({"a": 1}));
    let changed = program.app("PATCH", &format!("/v1/sessions/{id}"), Some(json!({"a": null, "b": {"c": [1, "x"]}})));
    assert_eq!((changed.status, changed.header("etag")), (200, "\"2\""));
    assert_eq!(changed.json()["attributes"], json!({"b": {"c": [1, "x"]}}));
    let renewed = program.app("POST", &format!("/v1/sessions/{id}/renew"), None).json();
    let token = renewed["token"].as_str().unwrap().to_owned();
    let touched = program.app("POST", &format!("/v1/sessions/{id}/touch"), None);
    assert_eq!(touched.status, 200);
    assert!(touched.json().get("token").is_none());
    let listed = program.app("GET", "/v1/sessions?subject=alice&state=active", None).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    let ended = program.app("DELETE", &format!("/v1/sessions/{id}?reason=logout"), None);
    let again = program.app("DELETE", &format!("/v1/sessions/{id}"), None);
    assert_eq!((ended.status, again.status), (200, 200));
    assert_eq!(ended.json()["receipt"], again.json()["receipt"]);
    assert_eq!(worth(&token), json!({"active": false, "reason": "ended"}));

    let receipt = &session["receipt"];
    let proof = program.app("GET", &format!("/v1/receipts/{}", receipt["index"]), None);
    let bearer = format!("Bearer {AUDITOR}");
    let keys =
        program.ask("GET", "/v1/audit/keys", &[("Authorization", &bearer), ("Accept", "text/plain")], None).unwrap();
    let (proof_file, key_file) = (home.folder.path().join("proof"), home.folder.path().join("vkey"));
    std::fs::write(&proof_file, &proof.text).unwrap();
    std::fs::write(&key_file, &keys.text).unwrap();
    let verify = |hash: &str| {
        let files = (proof_file.to_str().unwrap(), key_file.to_str().unwrap());
        home.run(&["verify", files.0, "--key-file", files.1, "--leaf-hash", hash])
    };
    let hash = receipt["leaf_hash"].as_str().unwrap();
    assert_eq!(verify(hash).0, Some(0));
    let other = if hash.starts_with('0') { hash.replacen('0', "1", 1) } else { format!("0{}", &hash[1..]) };
    assert_eq!(verify(&other).0, Some(3));
    program.stop();
    let (code, said) = home.run(&["key", "list", "--output", "json"]);
    assert_eq!((code, said.matches("bootstrap").count()), (Some(0), 3), "{said}");
}

#[test]
fn roles_are_separate_on_every_route() {
    let home = Home::new().with("REALMS__default__PROFILE", "default").with("REALMS__other__PROFILE", "default");
    let program = home.start();
    // After the start, so that the first entry is of this realm: a tile with another's is refused to everybody.
    let (code, said) = home.run(&["key", "create", "--realm", "other", "--role", "auditor", "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let foreign = serde_json::from_str::<serde_json::Value>(&said).unwrap()["key"].as_str().unwrap().to_owned();
    while program.json(&foreign, "GET", "/v1/audit/keys", None).status == 401 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let begun = program.app("POST", "/v1/sessions", Some(json!({"subject": "a"}))).json();
    let id = begun["id"].as_str().unwrap().to_owned();
    let index = &begun["receipt"]["index"];
    let sessions = [
        ("POST", "/v1/sessions".to_owned(), Some(json!({}))),
        ("POST", "/v1/sessions/validate".to_owned(), Some(json!({"token": "x"}))),
        ("GET", "/v1/sessions".to_owned(), None),
        ("GET", format!("/v1/sessions/{id}"), None),
        ("PATCH", format!("/v1/sessions/{id}"), Some(json!({}))),
        ("POST", format!("/v1/sessions/{id}/touch"), None),
        ("POST", format!("/v1/sessions/{id}/renew"), None),
        ("POST", format!("/v1/sessions/{id}/authenticate"), Some(json!({"subject": "a", "methods": ["pwd"]}))),
        ("DELETE", "/v1/subjects/a/sessions".to_owned(), None),
        ("DELETE", format!("/v1/sessions/{id}"), None),
    ];
    let audit = [
        "entries".to_owned(),
        format!("entries/{index}"),
        format!("sessions/{id}/history"),
        "subjects/a/export?purpose=x".to_owned(),
        "checkpoint".to_owned(),
        "keys".to_owned(),
        "proofs/inclusion?index=0".to_owned(),
        "proofs/consistency?from=1".to_owned(),
        "tile/0/000.p/1".to_owned(),
        "tile/entries/000.p/1".to_owned(),
        "verify".to_owned(),
        "bundle?from=2200-01-01T00:00:00Z".to_owned(),
    ];
    let mut audit: Vec<_> = audit.into_iter().map(|path| ("GET", format!("/v1/audit/{path}"), None)).collect();
    let hold = "/v1/audit/subjects/a/legal-hold".to_owned();
    audit.push(("PUT", hold.clone(), Some(json!({"reason": "x"}))));
    audit.push(("DELETE", hold, None));
    audit.push(("POST", "/v1/audit/subjects/a/erasure".to_owned(), None));
    let bulk = [("DELETE", "/v1/sessions?confirm=true".to_owned(), None)];
    let receipts = [("GET", "/v1/receipts/0".to_owned(), None)];
    let table: [(&[_], &[&str]); 4] =
        [(&sessions, &[APPLICATION]), (&audit, &[AUDITOR]), (&bulk, &[OPERATOR]), (&receipts, &[APPLICATION, AUDITOR])];
    for (routes, allowed) in table {
        for (method, path, body) in routes {
            for key in [APPLICATION, AUDITOR, OPERATOR] {
                let status = program.json(key, method, path, body.clone()).status;
                assert_eq!(status != 403, allowed.contains(&key), "{method} {path} with {key}: {status}");
                assert!(status < 500, "{method} {path}: {status}");
            }
            assert_eq!(program.json("cfk_none", method, path, body.clone()).status, 401, "{method} {path}");
        }
    }
    // Nothing of the realm exists for an auditor of another.
    let of_other = |path: &str| program.json(&foreign, "GET", &format!("/v1/audit/{path}"), None);
    for path in [format!("entries/{index}"), format!("sessions/{id}/history"), "subjects/a/export?purpose=x".to_owned()]
    {
        assert_eq!(of_other(&path).status, 404, "{path}");
    }
    for query in [format!("session={id}"), "subject=a".to_owned(), "action=session.created".to_owned()] {
        let found = of_other(&format!("entries?{query}")).json();
        let own = found["items"].as_array().unwrap().iter().all(|item| item["entry"]["realm"] == "other");
        assert!(own, "{query}: {found}");
    }
    assert_eq!(program.json(&foreign, "GET", &format!("/v1/receipts/{index}"), None).status, 404);
    // The table above is every operation that there is.
    let document = program.ask("GET", "/openapi.json", &[], None).unwrap().json();
    let operations: usize =
        document["paths"].as_object().unwrap().values().map(|item| item.as_object().unwrap().len()).sum();
    let tried: usize = table.iter().map(|(routes, _)| routes.len()).sum();
    assert_eq!(tried, operations, "an operation is not in the table");
}

#[test]
fn a_key_made_and_revoked_beside_the_running_service_takes_effect_within_seconds() {
    let home = Home::new();
    let program = home.start();
    let (code, said) = home.run(&["key", "create", "--role", "application", "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let made: serde_json::Value = serde_json::from_str(&said).unwrap();
    let key = made["key"].as_str().unwrap();
    let until = |status: u16| {
        let began = std::time::Instant::now();
        while program.json(key, "GET", "/v1/sessions", None).status != status {
            assert!(began.elapsed().as_secs() < 5, "never {status}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    until(200);
    assert_eq!(home.run(&["key", "revoke", made["id"].as_str().unwrap()]).0, Some(0));
    until(401);
    let entries = program.json(AUDITOR, "GET", "/v1/audit/entries?limit=500", None).json();
    let actions: Vec<_> =
        entries["items"].as_array().unwrap().iter().map(|item| item["entry"]["action"].clone()).collect();
    assert!(actions.contains(&json!("key.created")) && actions.contains(&json!("key.revoked")), "{actions:?}");
    assert_eq!(actions[0], json!("audit.read"), "reading the log is itself an entry");
}
