//! A sink of the running program: nothing is missing at the other side, whoever is killed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::{AUDITOR, Home};

/// Takes what it is sent, but every fourth time breaks off.
pub(crate) struct Hook {
    pub(crate) port: u16,
    /// Realm and index of each entry.
    taken: Arc<Mutex<Vec<(String, u64)>>>,
    stop: Arc<AtomicBool>,
}

impl Hook {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (taken, stop): (Arc<Mutex<Vec<(String, u64)>>>, Arc<AtomicBool>) = Default::default();
        let (store, stopped) = (Arc::clone(&taken), Arc::clone(&stop));
        std::thread::spawn(move || {
            for (nth, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if nth % 4 != 2 {
                    // The sender may be killed at any moment.
                    let _broke_off = take(stream.unwrap(), &store);
                }
            }
        });
        Self { port, taken, stop }
    }

    fn seen(&self) -> BTreeSet<u64> {
        self.taken.lock().unwrap().iter().map(|(_, index)| *index).collect()
    }

    /// The entries of a realm.
    pub(crate) fn of(&self, realm: &str) -> BTreeSet<u64> {
        let taken = self.taken.lock().unwrap();
        taken.iter().filter(|(of, _)| of == realm).map(|(_, index)| *index).collect()
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _woken = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn take(stream: TcpStream, taken: &Mutex<Vec<(String, u64)>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    for line in String::from_utf8(body).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let realm = line["entry"]["realm"].as_str().unwrap().to_owned();
        taken.lock().unwrap().push((realm, line["index"].as_u64().unwrap()));
    }
    (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_program_killed_in_the_middle_goes_on_where_it_left_off_and_drains_when_told_to_stop() {
    let hook = Hook::start();
    let home = Home::new();
    let secret = home.folder.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef\n").unwrap();
    let home = home
        .with("SINKS__HOOK__KIND", "webhook")
        .with("SINKS__HOOK__URL", format!("http://127.0.0.1:{}/in", hook.port))
        .with("SINKS__HOOK__SECRET_FILE", secret.display().to_string())
        .with("SINKS__HOOK__BATCH", "20")
        .with("SINKS__HOOK__TIMEOUT_MS", "300");
    let program = home.start();
    let mut last = 0;
    for _ in 0..200 {
        let made = program.app("POST", "/v1/sessions", Some(json!({}))).json();
        last = made["receipt"]["index"].as_u64().unwrap();
    }
    until("some arrived", || hook.seen().len() > 30);
    program.kill();

    let program = home.start();
    until("all arrived", || (0..=last).all(|index| hook.seen().contains(&index)));
    let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
    assert!(metrics.contains("sink_leased{sink=\"hook\"} 1"), "{metrics}");
    assert!(metrics.contains("sink_lag_entries{sink=\"hook\"}"), "{metrics}");
    for _ in 0..50 {
        program.app("POST", "/v1/sessions", Some(json!({})));
    }
    program.stop();
    let before = hook.seen();
    let program = home.start();
    let text = program.json(AUDITOR, "GET", "/v1/audit/export?format=jsonl", None).text;
    let mut stopped = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let stopped = stopped.rfind(|line| line["entry"]["action"] == "service.stopped").unwrap();
    let end = stopped["index"].as_u64().unwrap();
    assert!(end > last + 50);
    assert!((0..=end).all(|index| before.contains(&index)), "the end of the service was delivered before it ended");
}

#[test]
fn a_sink_that_is_not_configured_as_it_must_be_is_refused_at_start() {
    let home = Home::new().with("SINKS__HOOK__KIND", "webhook").with("SINKS__HOOK__URL", "http://siem.example/");
    let (code, said) = home.run(&["serve"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("sinks.hook") && said.contains("must be https"), "{said}");
}
