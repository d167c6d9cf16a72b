//! Sinks against real receivers, TLS and all, that are killed in the middle: nothing is missing, whatever comes twice.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit_export::Format;
use audit_log::conformance::{Draft, commit};
use audit_log::{Claimed, DeliveryCursors, LogReader, MemoryCursors, MemoryLog};
use audit_sinks::{Pusher, PusherConfig, Sink, SyslogConfig, SyslogSink, WebhookConfig, WebhookSink};
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::sign::Signer;
use openssl::ssl::{SslAcceptor, SslMethod, SslStream};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509NameBuilder};
use session_model::{LeafIndex, Timestamp};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// A server certificate for localhost, and the file by which to trust it.
fn acceptor(folder: &TempDir) -> (Arc<SslAcceptor>, PathBuf) {
    let key = PKey::from_rsa(Rsa::generate(2_048).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "localhost").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    let names = SubjectAlternativeName::new().dns("localhost").build(&builder.x509v3_context(None, None)).unwrap();
    builder.append_extension(names).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    let certificate = builder.build();
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    acceptor.set_private_key(&key).unwrap();
    acceptor.set_certificate(&certificate).unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, certificate.to_pem().unwrap()).unwrap();
    (Arc::new(acceptor.build()), file)
}

/// What a receiver does with one connection.
#[derive(Clone, Copy)]
enum Fate {
    /// Reads all, confirms as its protocol does.
    Takes,
    /// Drops the connection after so many entries.
    DiesAfter(usize),
    /// Drops it before reading anything.
    DiesAtOnce,
    /// Reads all, and ends the connection without a word.
    DiesAtTheEnd,
}

/// A receiver on a port of loopback: each connection has the next of the fates, and when they are used up all are taken.
struct Receiver {
    port: u16,
    taken: Arc<Mutex<Vec<u64>>>,
    connections: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Receiver {
    fn start(
        acceptor: Arc<SslAcceptor>,
        fates: Vec<Fate>,
        serve: fn(SslStream<TcpStream>, Fate, &Mutex<Vec<u64>>),
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let taken: Arc<Mutex<Vec<u64>>> = Arc::default();
        let (connections, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (store, counter, stopped) = (Arc::clone(&taken), Arc::clone(&connections), Arc::clone(&stop));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let fate = fates.get(counter.fetch_add(1, Ordering::Relaxed)).copied().unwrap_or(Fate::Takes);
                if let Ok(stream) = acceptor.accept(stream.unwrap()) {
                    serve(stream, fate, &store);
                }
            }
        });
        Self { port, taken, connections, stop }
    }

    fn taken(&self) -> Vec<u64> {
        self.taken.lock().unwrap().clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener, which then ends.
        let _woken = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Octet counting: a length, a space, the message.
fn syslog(mut stream: SslStream<TcpStream>, fate: Fate, taken: &Mutex<Vec<u64>>) {
    if matches!(fate, Fate::DiesAtOnce) {
        return;
    }
    let mut count = 0;
    loop {
        let mut length = String::new();
        loop {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) if byte == *b" " => break,
                Ok(1) => length.push(char::from(byte[0])),
                // The sender's close_notify. A receiver that dies drops the connection without one.
                Ok(_) => {
                    if !matches!(fate, Fate::DiesAtTheEnd) {
                        let _confirmed = stream.shutdown();
                    }
                    return;
                }
                Err(_) => return,
            }
        }
        let mut message = vec![0; length.parse().unwrap_or_else(|_| panic!("no length: {length:?}"))];
        if stream.read_exact(&mut message).is_err() {
            return;
        }
        let message = String::from_utf8(message).unwrap();
        assert!(message.starts_with("<1") && message.contains(" counterfoil - "), "{message}");
        let index = message.split("index=\"").nth(1).unwrap().split('"').next().unwrap();
        taken.lock().unwrap().push(index.parse().unwrap());
        count += 1;
        if matches!(fate, Fate::DiesAfter(after) if count == after) {
            return;
        }
    }
}

const SECRET: &[u8] = b"a shared secret of the webhook";

/// As much of HTTP as one POST needs.
fn webhook(mut stream: SslStream<TcpStream>, fate: Fate, taken: &Mutex<Vec<u64>>) {
    // One request a connection, so that each has a fate of its own.
    if let Some(head) = head(&mut stream) {
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")));
            line.unwrap_or_else(|| panic!("no {name} in {head}")).split_once(": ").unwrap().1.to_owned()
        };
        let mut body = vec![0; header("content-length").parse().unwrap()];
        if matches!(fate, Fate::DiesAtOnce) || stream.read_exact(&mut body).is_err() {
            return;
        }
        let mut signer = Signer::new(MessageDigest::sha256(), &PKey::hmac(SECRET).unwrap()).unwrap();
        signer.update(format!("{}.", header("counterfoil-timestamp")).as_bytes()).unwrap();
        signer.update(&body).unwrap();
        let digits: String = signer.sign_to_vec().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(header("counterfoil-signature"), format!("v1={digits}"));
        assert_eq!(header("counterfoil-timestamp"), "1700000000");
        let lines = String::from_utf8(body).unwrap();
        let indices = lines.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["index"].as_u64().unwrap()
        });
        let indices: Vec<u64> = indices.collect();
        assert_eq!(header("counterfoil-first-index"), indices[0].to_string());
        match fate {
            // It dies having kept a part, without an answer.
            Fate::DiesAfter(count) => {
                taken.lock().unwrap().extend(indices.iter().take(count));
                return;
            }
            // It is ill, and says so.
            Fate::DiesAtTheEnd => {
                stream
                    .write_all(b"HTTP/1.1 500 Internal\r\nConnection: close\r\nContent-Length: 4\r\n\r\noops")
                    .unwrap();
            }
            Fate::Takes | Fate::DiesAtOnce => {
                taken.lock().unwrap().extend(indices);
                stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").unwrap();
            }
        }
        stream.flush().unwrap();
    }
}

fn head(stream: &mut SslStream<TcpStream>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8(head).unwrap())
}

async fn log_of(entries: u128) -> Arc<MemoryLog> {
    let log = Arc::new(MemoryLog::new());
    append(&log, 0..entries).await;
    log
}

async fn append(log: &Arc<MemoryLog>, numbers: std::ops::Range<u128>) {
    let mut drafts: Vec<Draft> = numbers.map(Draft::new).collect();
    while !drafts.is_empty() {
        let rest = drafts.split_off(drafts.len().min(150));
        commit(&**log, drafts).await;
        drafts = rest;
    }
}

fn config(holder: &str, lease: Duration) -> PusherConfig {
    PusherConfig {
        name: "siem".into(),
        holder: holder.into(),
        format: Format::Jsonl,
        realms: vec![],
        initial: LeafIndex(0),
        batch: 200,
        pause: Duration::from_millis(20),
        lease,
        back_off_max: Duration::from_millis(300),
    }
}

fn syslog_to(receiver: &Receiver, ca_file: PathBuf) -> Arc<dyn Sink> {
    let config = SyslogConfig {
        address: format!("localhost:{}", receiver.port),
        ca_file: Some(ca_file),
        client: None,
        enterprise_number: 32_473,
        confirm: true,
        timeout: Duration::from_secs(5),
    };
    Arc::new(SyslogSink::new(config).unwrap())
}

fn webhook_to(receiver: &Receiver, ca_file: PathBuf) -> Arc<dyn Sink> {
    let config = WebhookConfig {
        url: format!("https://localhost:{}/in", receiver.port),
        media_type: "application/x-ndjson",
        secret: SECRET.to_vec(),
        ca_file: Some(ca_file),
        timeout: Duration::from_secs(5),
        clock: Arc::new(|| Timestamp::from_micros(1_700_000_000_000_000)),
    };
    Arc::new(WebhookSink::new(config).unwrap())
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "never: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Everything, and what came first came in order.
fn check(taken: &[u64], entries: u64) {
    let seen: BTreeSet<u64> = taken.iter().copied().collect();
    assert_eq!(seen, (0..entries).collect::<BTreeSet<u64>>(), "something is missing");
    let mut known = BTreeSet::new();
    let first: Vec<u64> = taken.iter().copied().filter(|index| known.insert(*index)).collect();
    assert!(first.is_sorted(), "out of order");
}

const FATES: [Fate; 7] = [
    Fate::DiesAfter(3),
    Fate::Takes,
    Fate::DiesAtOnce,
    Fate::DiesAtTheEnd,
    Fate::Takes,
    Fate::DiesAfter(199),
    Fate::DiesAtOnce,
];

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_dies_again_and_again_misses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (acceptor, ca) = acceptor(&folder);
    let receiver = Receiver::start(acceptor, FATES.to_vec(), syslog);
    let (log, cursors) = (log_of(1_000).await, Arc::new(MemoryCursors::default()));
    let (reader, store): (Arc<dyn LogReader>, Arc<dyn DeliveryCursors>) = (log.clone(), cursors.clone());
    let pusher = Pusher::start(config("one", Duration::from_secs(60)), syslog_to(&receiver, ca), reader, store);
    let status = pusher.status();
    until("all delivered", || status.holds() && status.lag() == 0 && status.pushed() == 1_000).await;
    check(&receiver.taken(), 1_000);
    assert_eq!(status.failures(), 5, "each death was noticed");
    append(&log, 1_000..1_050).await;
    pusher.close(Duration::from_secs(10)).await;
    check(&receiver.taken(), 1_050);
    let claimed = cursors.claim("siem", "another", LeafIndex(0), Duration::from_secs(1)).await.unwrap();
    assert_eq!(claimed, Claimed::Yes(LeafIndex(1_050)), "drained, and the lease given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_dies_again_and_again_misses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (acceptor, ca) = acceptor(&folder);
    let receiver = Receiver::start(acceptor, FATES.to_vec(), webhook);
    let (log, cursors) = (log_of(1_000).await, Arc::new(MemoryCursors::default()));
    let pusher = Pusher::start(config("one", Duration::from_secs(60)), webhook_to(&receiver, ca), log, cursors);
    let status = pusher.status();
    until("all delivered", || status.holds() && status.lag() == 0 && status.pushed() == 1_000).await;
    check(&receiver.taken(), 1_000);
    assert_eq!((status.failures(), status.is_failing()), (5, false), "each death was noticed, and the illness");
    pusher.close(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_one_pushes_and_the_other_takes_over_when_it_dies() {
    let folder = tempfile::tempdir().unwrap();
    let (acceptor, ca) = acceptor(&folder);
    let receiver = Receiver::start(acceptor, vec![], syslog);
    let (log, cursors) = (log_of(600).await, Arc::new(MemoryCursors::default()));
    let lease = Duration::from_millis(400);
    let start = |holder: &str| {
        Pusher::start(config(holder, lease), syslog_to(&receiver, ca.clone()), log.clone(), cursors.clone())
    };
    let one = start("one");
    let first = one.status();
    until("the first holds", || first.holds()).await;
    let two = start("two");
    let second = two.status();
    until("all delivered", || first.pushed() == 600).await;
    assert_eq!(receiver.taken(), (0..600).collect::<Vec<u64>>(), "once each");
    assert!(!second.holds());
    // Dies without giving its lease up.
    one.abort();
    append(&log, 600..700).await;
    until("the other took over", || second.pushed() == 100).await;
    check(&receiver.taken(), 700);
    two.close(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_whose_certificate_is_another_hosts_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (good, _) = acceptor(&folder);
    let other = tempfile::tempdir().unwrap();
    let (_, wrong_ca) = acceptor(&other);
    let receiver = Receiver::start(good, vec![], syslog);
    let log = log_of(5).await;
    let pusher = Pusher::start(
        config("one", Duration::from_secs(60)),
        syslog_to(&receiver, wrong_ca),
        log,
        Arc::new(MemoryCursors::default()),
    );
    let status = pusher.status();
    until("refused", || status.failures() >= 2).await;
    assert!(status.is_failing() && status.lag() == 5, "{}", status.lag());
    assert!(receiver.taken().is_empty() && receiver.connections.load(Ordering::Relaxed) >= 1);
    pusher.close(Duration::from_secs(5)).await;
}
