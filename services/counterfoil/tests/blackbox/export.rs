//! The export: whole, in order, in every format, resumable, for its own realm and for auditors only.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::program::{APPLICATION, AUDITOR, Home, OPERATOR, Program};

fn export(program: &Program, query: &str) -> String {
    let answer = program.json(AUDITOR, "GET", &format!("/v1/audit/export?{query}"), None);
    assert_eq!(answer.status, 200, "{query}: {}", answer.text);
    assert_eq!(answer.header("cache-control"), "no-store");
    answer.text
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|failure| panic!("{failure}: {line}"))).collect()
}

fn indices(text: &str) -> Vec<u64> {
    lines(text).iter().map(|line| line["index"].as_u64().unwrap()).collect()
}

#[test]
fn every_entry_is_exported_once_in_order_and_from_wherever_one_left_off() {
    let home = Home::new();
    let program = home.start();
    let mut ids = Vec::new();
    for number in 0..1_300 {
        let made = program.app("POST", "/v1/sessions", Some(json!({"attributes": {"n": number}}))).json();
        ids.push(made["id"].as_str().unwrap().to_owned());
    }
    let text = export(&program, "format=jsonl");
    let all = indices(&text);
    assert!(all.len() > 1_300, "{}", all.len());
    assert_eq!(all, (0..all.len() as u64).collect::<Vec<_>>(), "gapless, oldest first");
    for line in lines(&text).iter().step_by(97) {
        let stored = program.json(AUDITOR, "GET", &format!("/v1/audit/entries/{}", line["index"]), None).json();
        assert_eq!((&stored["leaf_hash"], &stored["entry"]), (&line["leaf_hash"], &line["entry"]));
    }
    let rest = export(&program, &format!("format=jsonl&after={}", all[1_200]));
    assert_eq!(indices(&rest)[0], all[1_200] + 1);
    assert!(export(&program, "format=jsonl&after=99999999").is_empty());

    let of_one = export(&program, &format!("format=jsonl&session={}&action=session.created", ids[7]));
    assert_eq!(lines(&of_one).len(), 1);
    let sealed = lines(&export(&program, &format!("format=jsonl&session={}", ids[7])));
    assert!(sealed.iter().all(|line| line.get("opened").is_none()));
    let opened = export(&program, &format!("format=jsonl&session={}&reveal=true&purpose=case%207", ids[7]));
    assert_eq!(lines(&opened)[0]["opened"]["origin"], "127.0.0.1", "{opened}");
    let reads = export(&program, "format=jsonl&action=audit.read");
    assert!(lines(&reads).iter().all(|line| line["entry"]["action"] == "audit.read"));
    assert!(lines(&reads).len() > 10, "each of these calls is itself an entry");
    assert!(lines(&reads).iter().any(|line| line["entry"]["detail"]["route"] == "/v1/audit/export"));

    let times: Vec<String> =
        lines(&text).iter().map(|line| line["entry"]["time"].as_str().unwrap().to_owned()).collect();
    let (from, to) = (&times[500], &times[900]);
    let between = lines(&export(&program, &format!("format=jsonl&from={from}&to={to}")));
    let expected = times.iter().filter(|time| *time >= from && *time < to).count();
    assert_eq!(between.len(), expected);
    assert_eq!(between[0]["index"].as_u64(), times.iter().position(|time| time == from).map(|at| at as u64));

    assert_eq!(export(&program, "format=csv").lines().count(), indices(&export(&program, "format=jsonl")).len());
    for line in lines(&export(&program, "format=ocsf")) {
        assert!(line["class_uid"].is_u64() && line["unmapped"]["leaf_hash"].is_string(), "{line}");
    }
    let cef = export(&program, "format=cef");
    assert!(cef.lines().all(|line| line.starts_with("CEF:0|Counterfoil|") && line.contains(" externalId=")), "{cef}");
}

#[test]
fn the_export_is_for_auditors_and_malformed_questions_are_named() {
    let home = Home::new();
    let program = home.start();
    for key in [APPLICATION, OPERATOR] {
        assert_eq!(program.json(key, "GET", "/v1/audit/export?format=jsonl", None).status, 403);
    }
    assert_eq!(program.json("cfk_none", "GET", "/v1/audit/export?format=jsonl", None).status, 401);
    assert_eq!(program.json(AUDITOR, "POST", "/v1/audit/export", Some(json!({}))).status, 405);
    for (query, pointer) in [
        ("", "#query/format"),
        ("format=xml", "#query/format"),
        ("format=jsonl&after=x", "#query/after"),
        ("format=jsonl&from=yesterday", "#query/from"),
        ("format=jsonl&action=x", "#query/action"),
        ("format=jsonl&outcome=x", "#query/outcome"),
        ("format=jsonl&session=x", "#query/session"),
        ("format=jsonl&x=1", "#query/x"),
        // Also where the subject is unknown, and so nothing would be found.
        ("format=jsonl&subject=nobody&to=yesterday", "#query/to"),
        ("format=jsonl&subject=nobody&action=x", "#query/action"),
        ("format=jsonl&subject=nobody&address=x", "#query/address"),
    ] {
        let answer = program.json(AUDITOR, "GET", &format!("/v1/audit/export?{query}"), None);
        assert_eq!((answer.status, answer.json()["errors"][0]["pointer"].as_str()), (400, Some(pointer)), "{query}");
    }
}

#[test]
fn another_realms_entries_are_not_exported() {
    let home = Home::new().with("REALMS__OTHER__PROFILE", "default").with("REALMS__DEFAULT__PROFILE", "default");
    let program = home.start();
    let (code, said) = home.run(&["key", "create", "--realm", "other", "--role", "auditor", "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let key = serde_json::from_str::<Value>(&said).unwrap()["key"].as_str().unwrap().to_owned();
    program.app("POST", "/v1/sessions", Some(json!({})));
    let began = std::time::Instant::now();
    let text = loop {
        let answer = program.json(&key, "GET", "/v1/audit/export?format=jsonl", None);
        if answer.status == 200 {
            break answer.text;
        }
        assert!(began.elapsed().as_secs() < 5, "{}", answer.text);
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert!(!lines(&text).is_empty());
    assert!(lines(&text).iter().all(|line| line["entry"]["realm"] == "other"), "{text}");
}

#[test]
fn the_command_line_asks_a_running_service() {
    let home = Home::new();
    let program = home.start();
    for _ in 0..3 {
        program.app("POST", "/v1/sessions", Some(json!({})));
    }
    let key_file = home.folder.path().join("AUDITOR").display().to_string();
    let ask = |arguments: &[&str]| {
        let server = ["--url", &program.base, "--key-file", &key_file];
        let output = home.command(&[&["audit"], arguments, &server].concat()).stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, out, _) = ask(&["export", "--format", "jsonl", "--action", "session.created"]);
    assert_eq!((code, lines(&out).len()), (Some(0), 3), "{out}");
    let (code, out, _) = ask(&["entries", "--limit", "4", "--output", "json"]);
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap().as_array().unwrap().len()), (Some(0), 4), "{out}");
    let (code, out, _) = ask(&["entries"]);
    assert_eq!(code, Some(0));
    assert!(out.lines().next().unwrap().contains("LEAF_HASH") && out.contains("session.created"), "{out}");
    let (code, out, errors) = ask(&["export", "--format", "xml"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.contains("must be one of jsonl, csv, ocsf, cef"), "{errors}");
}
