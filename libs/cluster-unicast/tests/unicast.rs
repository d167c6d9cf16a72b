//! Connections over loopback: the rules of every transport, with and without TLS, and who is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on should stop"
)]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::conformance::Medium;
use cluster::{Audience, Incarnation, Received, Transport};
use cluster_unicast::{UnicastConfig, UnicastError, UnicastTls, UnicastTransport};
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509NameBuilder};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> [String; N] {
    let sockets: Vec<_> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    std::array::from_fn(|at| sockets[at].local_addr().unwrap().to_string())
}

/// An authority, and the certificates that it gives to 127.0.0.1.
struct Authority {
    folder: TempDir,
    key: PKey<Private>,
    certificate: X509,
}

fn certificate(name: &str, days: (i64, i64), issuer: Option<&Authority>) -> (PKey<Private>, X509) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(64, openssl::bn::MsbOption::MAYBE_ZERO, false).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_pubkey(&key).unwrap();
    let now = Asn1Time::from_unix(0).unwrap().diff(&Asn1Time::days_from_now(0).unwrap()).unwrap().days;
    let day = |day: i64| Asn1Time::from_unix((i64::from(now) + day) * 86_400).unwrap();
    builder.set_not_before(&day(days.0)).unwrap();
    builder.set_not_after(&day(days.1)).unwrap();
    match issuer {
        Some(issuer) => {
            builder.set_issuer_name(issuer.certificate.subject_name()).unwrap();
            let names =
                SubjectAlternativeName::new().ip("127.0.0.1").build(&builder.x509v3_context(None, None)).unwrap();
            builder.append_extension(names).unwrap();
            builder.sign(&issuer.key, MessageDigest::sha256()).unwrap();
        }
        None => {
            builder.set_issuer_name(&subject).unwrap();
            builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
            builder.sign(&key, MessageDigest::sha256()).unwrap();
        }
    }
    (key, builder.build())
}

impl Authority {
    fn new() -> Self {
        let (key, certificate) = certificate("authority", (-1, 10), None);
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.to_pem().unwrap()).unwrap();
        Self { folder, key, certificate }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Files of a node, made or made anew.
    fn give(&self, name: &str, days: (i64, i64)) -> UnicastTls {
        let (key, certificate) = certificate(name, days, Some(self));
        let (at_certificate, at_key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&at_certificate, certificate.to_pem().unwrap()).unwrap();
        std::fs::write(&at_key, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        UnicastTls {
            ca: self.path("ca.pem"),
            certificate: at_certificate,
            key: at_key,
            allowed_names: None,
            verify_host: true,
            watch: Duration::from_secs(1),
        }
    }

    fn valid(&self, name: &str) -> UnicastTls {
        self.give(name, (-1, 10))
    }
}

fn config(listen: &str, peers: &[String]) -> UnicastConfig {
    let mut config = UnicastConfig::new("test", vec![listen.to_owned()]);
    config.peers = peers.to_vec();
    config
}

fn plain(listen: &str, peers: &[String]) -> UnicastConfig {
    UnicastConfig { plaintext: true, ..config(listen, peers) }
}

fn tls(listen: &str, peers: &[String], tls: UnicastTls) -> UnicastConfig {
    UnicastConfig { tls: Some(tls), ..config(listen, peers) }
}

const fn life(n: u8) -> Incarnation {
    Incarnation([n; 16])
}

async fn open(n: u8, config: UnicastConfig) -> Arc<UnicastTransport> {
    Arc::new(UnicastTransport::open(config, life(n)).await.unwrap())
}

/// Whether one hears another within the time.
async fn hears(to: &UnicastTransport, from: &UnicastTransport, within: Duration) -> bool {
    let until = Instant::now() + within;
    while Instant::now() < until {
        from.send(Audience::Everybody, b"can you hear me").unwrap();
        let step = Instant::now() + Duration::from_millis(100);
        while let Some(left) = step.checked_duration_since(Instant::now()) {
            if timeout(left, to.receive()).await == Ok(Some(Received::Frame(b"can you hear me".to_vec()))) {
                return true;
            }
        }
    }
    false
}

const LONG: Duration = Duration::from_secs(20);
/// Longer than connections take that are made, by far; each test of a refusal shows beside it that others are made.
const SHORT: Duration = Duration::from_secs(3);

/// Three places in a cluster that is this test's own.
struct Loopback {
    ports: [String; 3],
    authority: Option<Authority>,
}

#[async_trait]
impl Medium for Loopback {
    async fn join(&self, incarnation: Incarnation) -> Arc<dyn Transport> {
        let listen = &self.ports[usize::from(incarnation.0[0]) - 1];
        let config = match &self.authority {
            None => plain(listen, &self.ports),
            Some(authority) => {
                let names = (1..=3).map(|n| life(n).to_string()).collect();
                let given = authority.valid(&incarnation.to_string());
                tls(listen, &self.ports, UnicastTls { allowed_names: Some(names), ..given })
            }
        };
        Arc::new(UnicastTransport::open(config, incarnation).await.unwrap())
    }
}

mod over_tcp {
    cluster::transport_conformance!(async { super::Loopback { ports: super::free_ports(), authority: None } });
}

mod over_tls {
    cluster::transport_conformance!(async {
        super::Loopback { ports: super::free_ports(), authority: Some(super::Authority::new()) }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_is_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let [a, b, c] = free_ports();
    let one = open(1, tls(&a, &[], ours.valid("one"))).await;
    let other = open(2, tls(&b, std::slice::from_ref(&a), ours.valid("other"))).await;
    // It trusts our authority, so that only its own certificate can be what it is refused for.
    let stranger = open(3, tls(&c, &[a, b], UnicastTls { ca: ours.path("ca.pem"), ..theirs.valid("stranger") })).await;
    assert!(hears(&other, &one, LONG).await);
    assert!(!hears(&stranger, &one, SHORT).await);
    assert!(!hears(&one, &stranger, SHORT).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused() {
    let authority = Authority::new();
    let [a, b, c] = free_ports();
    let one = open(1, tls(&a, &[], authority.valid("one"))).await;
    let other = open(2, tls(&b, std::slice::from_ref(&a), authority.valid("other"))).await;
    let expired = open(3, tls(&c, &[a, b], authority.give("late", (-9, -2)))).await;
    assert!(hears(&other, &one, LONG).await);
    assert!(!hears(&expired, &one, SHORT).await);
    assert!(!hears(&one, &expired, SHORT).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_without_tls_is_refused() {
    let authority = Authority::new();
    let [a, b, c] = free_ports();
    let one = open(1, tls(&a, std::slice::from_ref(&c), authority.valid("one"))).await;
    let other = open(2, tls(&b, std::slice::from_ref(&a), authority.valid("other"))).await;
    let bare = open(3, plain(&c, &[a, b])).await;
    assert!(hears(&other, &one, LONG).await);
    assert!(!hears(&bare, &one, SHORT).await);
    assert!(!hears(&one, &bare, SHORT).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_on_the_list_gets_and_gives_nothing() {
    let authority = Authority::new();
    let [a, b, c] = free_ports();
    let listed = |name: &str| UnicastTls {
        allowed_names: Some(vec!["one".into(), "other".into()]),
        verify_host: false,
        ..authority.valid(name)
    };
    let one = open(1, tls(&a, &[], listed("one"))).await;
    let other = open(2, tls(&b, std::slice::from_ref(&a), listed("other"))).await;
    // It would take anybody.
    let third = open(3, tls(&c, &[a, b], authority.valid("third"))).await;
    assert!(hears(&other, &one, LONG).await);
    assert!(!hears(&third, &one, SHORT).await);
    assert!(!hears(&one, &third, SHORT).await);
    assert!(one.describe().iter().any(|line| line.contains("certificate of other")), "{:?}", one.describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_on_the_same_addresses_hear_nothing_of_one_another() {
    let [a, b, c] = free_ports();
    let one = open(1, plain(&a, &[])).await;
    let other = open(2, plain(&b, std::slice::from_ref(&a))).await;
    let elsewhere = open(3, UnicastConfig { cluster_id: "another".into(), ..plain(&c, &[a, b]) }).await;
    assert!(hears(&other, &one, LONG).await);
    assert!(!hears(&elsewhere, &one, SHORT).await);
}

#[tokio::test]
async fn what_is_not_safe_is_refused() {
    let authority = Authority::new();
    let [a] = free_ports();
    let refused = async |config: UnicastConfig| match UnicastTransport::open(config, life(1)).await {
        Err(UnicastError::Configuration(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    };
    assert!(refused(config(&a, &[])).await.contains("plaintext"));
    let both = UnicastConfig { plaintext: true, ..tls(&a, &[], authority.valid("one")) };
    assert!(refused(both).await.contains("exclude"));
    let anybody = UnicastTls { verify_host: false, ..authority.valid("one") };
    assert!(refused(tls(&a, &[], anybody)).await.contains("names"));
    assert!(refused(plain("tcp/127.0.0.1:1", &[])).await.contains("host:port"));
    assert!(refused(UnicastConfig { cluster_id: "a/*".into(), ..plain(&a, &[]) }).await.contains("cluster id"));
}

#[tokio::test]
async fn a_key_that_is_not_the_certificates_is_refused() {
    let authority = Authority::new();
    let [a] = free_ports();
    let other = authority.valid("other").key;
    let opened =
        UnicastTransport::open(tls(&a, &[], UnicastTls { key: other, ..authority.valid("one") }), life(1)).await;
    assert!(matches!(opened, Err(UnicastError::Certificate(..))));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knows_one_node_meets_the_others_and_they_go_on_without_it() {
    let [a, b, c] = free_ports();
    let seed = open(1, plain(&a, &[])).await;
    let one = open(2, plain(&b, std::slice::from_ref(&a))).await;
    assert!(hears(&one, &seed, LONG).await);
    let late = open(3, plain(&c, &[a])).await;
    assert!(hears(&late, &one, LONG).await, "{:?}", late.describe());
    assert!(hears(&one, &late, LONG).await);
    seed.close().await;
    assert!(hears(&late, &one, LONG).await);
    assert!(hears(&one, &late, LONG).await);
    assert!(late.describe().iter().any(|line| line.starts_with("1 nodes")), "{:?}", late.describe());
}

/// The process that is killed: a node that speaks until it dies. Run by the test below.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run as a process of its own"]
async fn a_node_in_a_process_of_its_own() {
    let (Ok(listen), Ok(peer)) = (std::env::var("NODE_LISTEN"), std::env::var("NODE_PEER")) else { return };
    let node = open(2, plain(&listen, &[peer])).await;
    loop {
        node.send(Audience::Everybody, b"alive").unwrap();
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_is_seen_to_go_at_once() {
    let [a, b] = free_ports();
    let one = open(1, plain(&a, &[])).await;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_node_in_a_process_of_its_own", "--ignored"])
        .envs([("NODE_LISTEN", &b), ("NODE_PEER", &a)])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let heard = async { while one.receive().await != Some(Received::Frame(b"alive".to_vec())) {} };
    timeout(LONG, heard).await.expect("hears the process");
    child.start_kill().unwrap();
    let killed = Instant::now();
    let departed = async { while one.receive().await != Some(Received::Departed(life(2))) {} };
    timeout(Duration::from_secs(1), departed).await.expect("sees it go");
    eprintln!("kill -9 was seen after {:?}", killed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_changed_under_traffic_and_nothing_is_lost() {
    let authority = Authority::new();
    let [a, b] = free_ports();
    let both = [a.clone(), b.clone()];
    let one = open(1, tls(&a, &both, authority.valid("one"))).await;
    let other = open(2, tls(&b, &both, authority.valid("other"))).await;
    assert!(hears(&other, &one, LONG).await);
    assert!(hears(&one, &other, LONG).await);

    let before = serving(&a).await;
    let sender = tokio::spawn({
        let one = Arc::clone(&one);
        async move {
            let mut number = 0_u64;
            let until = Instant::now() + Duration::from_secs(8);
            while Instant::now() < until {
                one.send(Audience::Everybody, &number.to_be_bytes()).unwrap();
                number += 1;
                sleep(Duration::from_millis(1)).await;
            }
            number
        }
    });
    sleep(Duration::from_secs(1)).await;
    let _at_the_same_paths = authority.valid("one");
    let mut heard = std::collections::BTreeSet::new();
    let mut departed = 0;
    while let Ok(Some(received)) = timeout(Duration::from_secs(2), other.receive()).await {
        match received {
            Received::Frame(frame) => {
                if let Ok(number) = <[u8; 8]>::try_from(frame.as_slice()) {
                    heard.insert(u64::from_be_bytes(number));
                }
            }
            Received::Departed(_) => departed += 1,
            Received::Lost => {}
        }
    }
    let sent = sender.await.unwrap();
    assert_eq!((heard.len() as u64, departed), (sent, 0));
    assert!(serving(&a).await != before, "the new certificate is served");
    assert!(hears(&one, &other, LONG).await);
}

/// The certificate that is served at an address.
async fn serving(address: &str) -> Vec<u8> {
    let until = Instant::now() + LONG;
    loop {
        let at = address.to_owned();
        let served = tokio::task::spawn_blocking(move || {
            use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
            let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
            connector.set_verify(SslVerifyMode::NONE);
            let stream = std::net::TcpStream::connect(&at).ok()?;
            let mut tls = connector.build().configure().unwrap().verify_hostname(false);
            tls.set_use_server_name_indication(false);
            tls.connect("node", stream).ok()?.ssl().peer_certificate()?.to_der().ok()
        });
        if let Some(served) = served.await.unwrap() {
            return served;
        }
        assert!(Instant::now() < until, "nobody serves at {address}");
        sleep(Duration::from_millis(100)).await;
    }
}
