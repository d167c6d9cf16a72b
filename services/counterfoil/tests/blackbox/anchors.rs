//! What is kept outside the database betrays one that was put back: a file, and witnesses that others run.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::{AUDITOR, Home, Program};

/// A running `counterfoil witness`.
struct Witness {
    child: Child,
    url: String,
    vkey: String,
}

impl Witness {
    fn start(home: &Home, name: &str, vkey_of_log: &std::path::Path) -> Self {
        let folder = home.folder.path().join(name);
        let mut child = Command::new(env!("CARGO_BIN_EXE_counterfoil"))
            .args(["witness", "--listen", "127.0.0.1:0", "--name", &format!("witness.example/{name}")])
            .arg("--dir")
            .arg(folder)
            .arg("--log-key-file")
            .arg(vkey_of_log)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut next = |what: &str| lines.next().unwrap().unwrap().strip_prefix(what).unwrap().to_owned();
        let (url, vkey) = (next("listening on "), next("verifier key: "));
        Self { child, url, vkey }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn readiness(program: &Program) -> Value {
    program.ask("GET", "/readyz?verbose", &[], None).unwrap().json()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A home whose log exists already, so that its verifier key can be given to witnesses.
fn begun() -> (Home, std::path::PathBuf) {
    let home = Home::new();
    home.start().stop();
    let vkey = home.data().join("keys").join("log.vkey");
    assert!(vkey.exists());
    (home, vkey)
}

pub(crate) fn log_files(home: &Home) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let files = std::fs::read_dir(home.data()).unwrap().map(|entry| entry.unwrap().path());
    let of_log = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("log.db");
    files.filter(of_log).map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

pub(crate) fn put_back(home: &Home, files: &[(std::path::PathBuf, Vec<u8>)]) {
    for (path, _) in log_files(home) {
        std::fs::remove_file(path).unwrap();
    }
    for (path, bytes) in files {
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn a_quorum_cosigns_and_a_witness_alone_betrays_a_database_that_was_put_back() {
    let (home, log_key) = begun();
    let (one, two) = (Witness::start(&home, "w1", &log_key), Witness::start(&home, "w2", &log_key));
    let home = home
        .with("ANCHORS__QUORUM", "2")
        .with("ANCHORS__WITNESS_INTERVAL_S", "1")
        .with("ANCHORS__WITNESSES__ONE__URL", &one.url)
        .with("ANCHORS__WITNESSES__ONE__VKEY", &one.vkey)
        .with("ANCHORS__WITNESSES__TWO__URL", &two.url)
        .with("ANCHORS__WITNESSES__TWO__VKEY", &two.vkey);
    let program = home.start();
    program.until_ready();
    let index = program.app("POST", "/v1/sessions", Some(json!({}))).json()["receipt"]["index"].as_u64().unwrap();
    let cosigned_size = || readiness(&program)["anchors"]["witnesses"]["cosigned_size"].as_u64();
    until("cosigned", || cosigned_size() > Some(index));
    let text = program.json(AUDITOR, "GET", "/v1/audit/checkpoint?cosigned=true", None).text;
    assert_eq!(text.matches("\u{2014} ").count(), 3, "the log's line and two witnesses': {text}");
    assert!(text.contains("\u{2014} witness.example/w1 ") && text.contains("\u{2014} witness.example/w2 "), "{text}");
    assert_eq!(program.json(AUDITOR, "GET", "/v1/audit/checkpoint?cosigned=x", None).status, 400);
    let verbose = readiness(&program);
    assert_eq!((&verbose["ready"], &verbose["anchors"]["witnesses"]["quorum"]), (&json!(true), &json!(2)), "{verbose}");

    // One falls silent: the service goes on, and the newest checkpoint with its quorum stays what it was.
    let vkey = two.vkey.clone();
    drop(two);
    program.app("POST", "/v1/sessions", Some(json!({})));
    until("it is noticed", || !readiness(&program)["anchors"]["witnesses"]["each"][1]["failure"].is_null());
    assert_eq!(readiness(&program)["ready"], json!(true));
    let again = Witness::start(&home, "w2", &log_key);
    assert_eq!(again.vkey, vkey, "the key is kept");
    program.stop();
    drop(again);

    let before = log_files(&home);
    let program = home.start();
    for _ in 0..5 {
        program.app("POST", "/v1/sessions", Some(json!({})));
    }
    program.stop();
    put_back(&home, &before);
    // Whoever put the database back took the file along: only the witness is left.
    std::fs::remove_file(home.data().join("checkpoint")).unwrap();
    let (code, said) = home.run(&["serve"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("rolled back") && said.contains(&one.url), "{said}");
}

#[test]
fn a_database_that_was_put_back_is_betrayed_by_the_file() {
    let (home, _) = begun();
    let before = log_files(&home);
    let program = home.start();
    program.app("POST", "/v1/sessions", Some(json!({})));
    program.stop();
    put_back(&home, &before);
    let (code, said) = home.run(&["serve"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("rolled back"), "{said}");
}

/// What a command records while no service runs cannot be taken away either: a revocation, say.
#[test]
fn what_a_command_recorded_is_kept_outside_too() {
    let (home, _) = begun();
    let listed: Value = serde_json::from_str(&home.run(&["key", "list", "--output", "json"]).1).unwrap();
    let key = listed[0]["id"].as_str().unwrap().to_owned();
    let before = log_files(&home);
    assert_eq!(home.run(&["key", "revoke", &key]).0, Some(0));
    put_back(&home, &before);
    for command in [&["serve"][..], &["key", "list"]] {
        let (code, said) = home.run(command);
        assert!(code == Some(1) && said.contains("rolled back"), "{said}");
    }
}

#[test]
fn a_quorum_that_cannot_be_is_refused_at_start() {
    let (home, _) = begun();
    let (code, said) = home.with("ANCHORS__QUORUM", "1").run(&["serve"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("anchors.quorum"), "{said}");
}
