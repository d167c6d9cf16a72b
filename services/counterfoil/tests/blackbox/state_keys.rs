//! The keys of what is kept beside the log for a while are changed: what was sealed under an old one is opened, or thrown away.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::console::Browser;
use crate::program::{APPLICATION, AUDITOR, Answer, Home, Program, files};

fn ran(home: &Home, arguments: &[&str]) -> Value {
    let output = home.command(&[&["state-key"], arguments].concat()).args(["--output", "json"]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the node shows these keys of answers, the one that seals first.
fn until_it_has(program: &Program, keys: &[&str]) {
    until(&format!("{keys:?}"), || {
        let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
        let shown: Vec<&str> = metrics.lines().filter(|line| line.starts_with("answers_keys{")).collect();
        let has = |(at, key): (usize, &&str)| {
            let ending = if at == 0 { " 1" } else { " 0" };
            shown.iter().any(|line| line.contains(*key) && line.ends_with(ending))
        };
        shown.len() == keys.len() && keys.iter().enumerate().all(has)
    });
}

fn create(program: &Program, key: &str) -> Answer {
    let bearer = format!("Bearer {APPLICATION}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json"), ("Idempotency-Key", key)];
    program.ask("POST", "/v1/sessions", &headers, Some(b"{\"subject\":\"alice\"}")).unwrap()
}

fn tells(entries: &Value, action: &str, key: &str) -> bool {
    let mut items = entries["items"].as_array().unwrap().iter();
    items.any(|item| item["entry"]["action"] == action && item["entry"]["detail"]["state_key"] == key)
}

#[test]
fn the_key_of_kept_answers_is_changed_beside_a_running_service() {
    let home = Home::new();
    let program = home.start();
    let first = create(&program, "one");
    assert_eq!(first.status, 201, "{}", first.text);
    let repeated = |key: &str, of: &Answer| {
        let again = create(&program, key);
        assert_eq!((again.status, &again.json()["token"]), (201, &of.json()["token"]), "{}", again.text);
    };

    let kek = home.data().join("keys/kek");
    let rows = ran(&home, &["add"]);
    let [old, new] = [0, 1].map(|at| rows[at]["answers_key"].as_str().unwrap().to_owned());
    let with_both = std::fs::read(&kek).unwrap();
    assert_eq!(home.run(&["state-key", "add"]).0, Some(1), "one at a time");
    assert_eq!(home.run(&["state-key", "retire", "--now"]).0, Some(1), "none was replaced");
    until_it_has(&program, &[&old, &new]);
    repeated("one", &first);
    let rows = ran(&home, &["rotate"]);
    assert_eq!((&rows[0]["answers_key"], rows[1]["replaced_at"].is_string()), (&json!(new), true), "{rows}");
    until_it_has(&program, &[&new, &old]);
    let second = create(&program, "two");
    repeated("one", &first);
    repeated("two", &second);

    let (code, said) = home.run(&["state-key", "retire"]);
    assert!(code == Some(1) && said.contains("are kept until"), "{said}");
    let rows = ran(&home, &["retire", "--now"]);
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    until_it_has(&program, &[&new]);
    repeated("two", &second);
    let gone = create(&program, "one");
    assert_eq!(gone.status, 422, "thrown away, and not done a second time: {}", gone.text);

    // A file from before: what was destroyed opens nothing again.
    std::fs::write(&kek, with_both).unwrap();
    let told = || std::fs::read_to_string(home.folder.path().join("stderr")).unwrap();
    until("older files are refused", || told().contains("older than the keys in use"));
    until_it_has(&program, &[&new]);
    repeated("two", &second);
    let entries = program.json(AUDITOR, "GET", "/v1/audit/entries?limit=500", None).json();
    assert!(tells(&entries, "key.created", &new) && tells(&entries, "key.rotated", &new), "{entries:#}");
    assert!(tells(&entries, "key.revoked", &old), "{entries:#}");
}

#[test]
fn a_key_that_a_consumers_secret_is_sealed_by_is_not_destroyed() {
    let home = Home::new();
    home.start().stop();
    let seal = || {
        let mut child =
            home.command(&["soap", "seal", "billing"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"a secret of sixteen bytes").unwrap();
        child.wait_with_output().unwrap().stdout
    };
    let file = home.folder.path().join("secret");
    std::fs::write(&file, seal()).unwrap();
    let settings = ["--set", "soap.consumers.billing.realm=default", "--set"];
    let secret = format!("soap.consumers.billing.secret_file={}", file.display());
    let retire = || home.run(&[&settings[..], &[secret.as_str(), "state-key", "retire", "--now"]].concat());
    ran(&home, &["add"]);
    ran(&home, &["rotate"]);
    let (code, said) = retire();
    assert!(code == Some(1) && said.contains("seal that anew"), "{said}");
    std::fs::write(&file, seal()).unwrap();
    let (code, said) = retire();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn the_keys_of_the_view_and_of_the_console_are_replaced_at_a_start() {
    let home = Home::new();
    let folder = home.folder.path().join("view");
    std::fs::create_dir(&folder).unwrap();
    let home = home.with("VIEW__URL", format!("folder:{}", folder.display()));
    let program = home.start();
    program.until_ready();
    let made = program.app("POST", "/v1/sessions", Some(json!({"subject": "alice", "attributes": {"a": 1}}))).json();
    let path = format!("/v1/sessions/{}", made["id"].as_str().unwrap());
    let browser = Browser::new(&program);
    browser.sign_in(AUDITOR);
    assert_eq!(browser.get("/console/entries").status, 200);
    let cookies = browser.cookies.borrow().clone();
    program.stop();
    let namespaces = || std::fs::read_dir(&folder).unwrap().count();
    let before = (namespaces(), files(&folder).len());

    ran(&home, &["renew", "view"]);
    ran(&home, &["renew", "console"]);
    let program = home.start();
    program.until_ready();
    let shown = program.app("GET", &path, None);
    assert_eq!((shown.status, &shown.json()["attributes"]), (200, &json!({"a": 1})), "{}", shown.text);
    assert!(namespaces() > before.0 && files(&folder).len() > before.1, "a view of its own beside the old one");
    let browser = Browser::new(&program);
    *browser.cookies.borrow_mut() = cookies;
    assert_eq!(browser.get("/console/entries").status, 303, "the visit was tagged by the old key");
    browser.sign_in(AUDITOR);
    assert_eq!(browser.get("/console/entries").status, 200);
    let entries = program.json(AUDITOR, "GET", "/v1/audit/entries?limit=500", None).json();
    assert!(tells(&entries, "key.rotated", "view") && tells(&entries, "key.rotated", "console"), "{entries:#}");
    let quarantined =
        entries["items"].as_array().unwrap().iter().any(|item| item["entry"]["action"] == "view.quarantined");
    assert!(!quarantined, "nothing of the old view is looked at");
}
