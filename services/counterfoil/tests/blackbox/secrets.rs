//! What must stand nowhere in clear: tokens, keys, subjects, attribute values, addresses.

use std::process::Command;

use serde_json::json;

use crate::program::{APPLICATION, AUDITOR, Home, OPERATOR, database, files, redis};

const SECRETS: [&str; 4] = ["Ludmilla-Subject", "4111-attribute-value", "agent/secret-browser", "203.0.113.77"];

/// Does everything that handles secrets; answers the tokens it was given.
fn use_it(home: &Home) -> Vec<String> {
    let program = home.start();
    let mut tokens = Vec::new();
    let created = program.app(
        "POST",
        "/v1/sessions",
        Some(json!({
            "subject": SECRETS[0], "attributes": {"card": SECRETS[1]},
            "client": {"user_agent": SECRETS[2], "address": SECRETS[3]},
        })),
    );
    assert_eq!(created.status, 201, "{}", created.text);
    let session = created.json();
    let id = session["id"].as_str().unwrap();
    tokens.push(session["token"].as_str().unwrap().to_owned());
    let bearer = format!("Bearer {APPLICATION}");
    let keyed = [("Authorization", bearer.as_str()), ("Idempotency-Key", "once")];
    let renewed = program.ask("POST", &format!("/v1/sessions/{id}/renew"), &keyed, None).unwrap().json();
    tokens.push(renewed["token"].as_str().unwrap().to_owned());
    for token in &tokens {
        program.app("POST", "/v1/sessions/validate", Some(json!({"token": token})));
    }
    program.app("PATCH", &format!("/v1/sessions/{id}"), Some(json!({"card": format!("{} again", SECRETS[1])})));
    let authenticate = json!({"subject": SECRETS[0], "methods": ["pwd"], "level": 2});
    let authenticated = program.app("POST", &format!("/v1/sessions/{id}/authenticate"), Some(authenticate)).json();
    tokens.push(authenticated["token"].as_str().unwrap().to_owned());
    program.app("GET", &format!("/v1/sessions?subject={}", SECRETS[0]), None);
    // Refused requests must not echo or log anything either.
    program.app("POST", "/v1/sessions", Some(json!({"subject": SECRETS[0], "odd": SECRETS[1]})));
    program.app("DELETE", &format!("/v1/subjects/{}/sessions", SECRETS[0]), None);
    program.json(AUDITOR, "GET", "/v1/audit/entries", None);
    program.stop();
    tokens
}

fn assert_clean(place: &str, content: &[u8], tokens: &[String]) {
    let text = String::from_utf8_lossy(content);
    let keys = [APPLICATION, AUDITOR, OPERATOR];
    // The secret part of a token: its session id, which stands before it, is no secret.
    let secrets = tokens.iter().map(|token| &token[26..]);
    for secret in SECRETS.into_iter().chain(keys.map(|key| &key[4..])).chain(secrets) {
        assert!(!text.contains(secret), "{secret} stands in clear in {place}");
    }
}

#[test]
fn nothing_secret_is_in_the_embedded_log_or_in_what_was_logged() {
    let home = Home::new();
    let tokens = use_it(&home);
    for (path, content) in files(&home.data()) {
        assert_clean(&path.display().to_string(), &content, &tokens);
    }
    let logged = std::fs::read(home.folder.path().join("stderr")).unwrap();
    assert!(!logged.is_empty());
    assert_clean("the logs", &logged, &tokens);
}

#[test]
fn nothing_secret_is_in_dumps_of_postgresql_and_redis() {
    let home = Home::new();
    let url = database(&home);
    let home = home.with("LOG__URL", url.as_str()).with("VIEW__URL", redis());
    let (code, said) = home.run(&["migrate"]);
    assert_eq!(code, Some(0), "{said}");
    let tokens = use_it(&home);
    // In hexadecimal bytes are as readable as in clear: dump the tables as text with bytea escaped.
    let dump = Command::new("pg_dump").args([url.as_str(), "--schema=counterfoil"]).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let mut text = dump.stdout;
    for word in String::from_utf8_lossy(&text.clone()).split_whitespace() {
        if let Some(hex) = word.strip_prefix("\\\\x") {
            let bytes = hex
                .as_bytes()
                .chunks(2)
                .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
            text.extend(bytes);
        }
    }
    assert!(text.windows(15).any(|window| window == b"session.created"), "the dump was not decoded");
    assert_clean("the database", &text, &tokens);
    let keys = Command::new("redis-cli").args(["-u", &redis(), "--scan"]).output().unwrap();
    let mut values = keys.stdout.clone();
    for key in String::from_utf8(keys.stdout).unwrap().lines() {
        values.extend(Command::new("redis-cli").args(["-u", &redis(), "--raw", "GET", key]).output().unwrap().stdout);
    }
    assert_clean("Redis", &values, &tokens);
    let logged = std::fs::read(home.folder.path().join("stderr")).unwrap();
    assert_clean("the logs", &logged, &tokens);
}
