//! Whose certificates are believed, and for how long.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Audience, Received, Transport};
use cluster_unicast::{UnicastError, UnicastTls, UnicastTransport};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    Authority, LONG, PAST, SHORT, VALID, connections, free_ports, hears, life, open, plain, says, sees_go, tls, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_is_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let [a, b, c] = free_ports();
    let one = open(1, tls(&a, std::slice::from_ref(&c), ours.valid("one"))).await;
    let other = open(2, tls(&b, std::slice::from_ref(&a), ours.valid("other"))).await;
    // It trusts our authority, so that only its own certificate can be what it is refused for.
    let stranger = open(3, tls(&c, &[a, b], UnicastTls { ca: ours.path("ca.pem"), ..theirs.valid("stranger") })).await;
    assert!(hears(&other, &one, LONG).await);
    assert!(!hears(&stranger, &one, SHORT).await);
    assert!(!hears(&one, &stranger, SHORT).await);
    // Each side says why, whoever dialed.
    says(&one, "not let in from 127.0.0.1: TLS: its certificate is refused: ").await;
    says(&one, "TLS: its certificate is refused: ").await;
    says(&stranger, "TLS: it refuses us: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused() {
    let authority = Authority::new();
    let [a, b, c] = free_ports();
    let one = open(1, tls(&a, &[], authority.valid("one"))).await;
    let other = open(2, tls(&b, std::slice::from_ref(&a), authority.valid("other"))).await;
    let expired = open(3, tls(&c, &[a, b], authority.give("late", &["127.0.0.1"], PAST))).await;
    assert!(hears(&other, &one, LONG).await);
    assert!(!hears(&expired, &one, SHORT).await);
    assert!(!hears(&one, &expired, SHORT).await);
    says(&one, "certificate has expired").await;
    says(&expired, "it refuses us: certificate expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_ends_its_connections() {
    let authority = Authority::new();
    let [a, b] = free_ports();
    let one = open(1, tls(&a, &[], authority.valid("one"))).await;
    let short = authority.give("short", &["127.0.0.1"], (-60, 3));
    let other = open(2, tls(&b, std::slice::from_ref(&a), short)).await;
    assert!(hears(&one, &other, SHORT).await);
    assert!(sees_go(&one, life(2), LONG).await);
    assert!(!hears(&one, &other, SHORT).await);
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
    says(&one, "is it set up without").await;
    says(&bare, "TLS comes from there").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_on_the_list_gets_and_gives_nothing() {
    let authority = Authority::new();
    let [a, b, c] = free_ports();
    let listed = |name: &str| UnicastTls {
        // The second by a DNS name that its certificate has beside its common name.
        allowed_names: Some(vec!["one".into(), "other.example".into()]),
        verify_host: false,
        ..authority.give(name, &["127.0.0.1", &format!("{name}.example")], VALID)
    };
    let one = open(1, tls(&a, std::slice::from_ref(&c), listed("one"))).await;
    let other = open(2, tls(&b, std::slice::from_ref(&a), listed("other"))).await;
    // It would take anybody.
    let third = open(3, tls(&c, &[a, b], authority.valid("third"))).await;
    assert!(hears(&other, &one, LONG).await);
    assert!(!hears(&third, &one, SHORT).await);
    assert!(!hears(&one, &third, SHORT).await);
    says(&one, "certificate of other").await;
    says(&one, "there is a certificate whose name is not allowed").await;
    says(&third, "it takes us for a certificate whose name is not allowed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_host_is_refused_where_hosts_are_verified() {
    let authority = Authority::new();
    let [a, b, c] = free_ports();
    let elsewhere =
        open(1, tls(&a, &[], authority.give("elsewhere", &["192.0.2.1", "127.0.0.1.example"], VALID))).await;
    let here = open(2, tls(&b, &[], authority.valid("here"))).await;
    let dials = open(3, tls(&c, &[a.clone(), b], authority.valid("dials"))).await;
    assert!(hears(&dials, &here, LONG).await);
    assert!(!hears(&dials, &elsewhere, SHORT).await);
    says(&dials, "IP address mismatch").await;
    // Names say who takes part instead.
    let [d] = free_ports();
    let names = Some(vec!["elsewhere".to_owned()]);
    let by_name = UnicastTls { allowed_names: names, verify_host: false, ..authority.valid("by-name") };
    let by_name = open(4, tls(&d, &[a], by_name)).await;
    assert!(hears(&by_name, &elsewhere, LONG).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_is_refused_and_its_connections_end() {
    let authority = Authority::new();
    let [a, b, c] = free_ports();
    let (one, other, third) = (authority.valid("one"), authority.valid("other"), authority.valid("third"));
    let crl = Some(authority.revoke(&["third"], VALID));
    let one = open(1, tls(&a, &[], UnicastTls { crl: crl.clone(), ..one })).await;
    let other = open(2, tls(&b, std::slice::from_ref(&a), other)).await;
    // It reads no lists, and would go on.
    let third = open(3, tls(&c, std::slice::from_ref(&a), third)).await;
    assert!(hears(&one, &other, LONG).await);
    assert!(!hears(&one, &third, SHORT).await);
    says(&one, "certificate revoked").await;
    says(&third, "it refuses us: certificate revoked").await;

    authority.revoke(&["third", "other"], VALID);
    assert!(sees_go(&one, life(2), Duration::from_secs(4)).await, "{:?}", one.describe());
    assert!(!hears(&one, &other, SHORT).await);
    authority.revoke(&["other"], VALID);
    assert!(hears(&one, &third, LONG).await, "what is taken off the list is let in");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outdated_list_lets_nobody_in() {
    let authority = Authority::new();
    let [a, b] = free_ports();
    let crl = Some(authority.revoke(&[], PAST));
    let one = open(1, tls(&a, &[], UnicastTls { crl, ..authority.valid("one") })).await;
    let other = open(2, tls(&b, &[a], authority.valid("other"))).await;
    assert!(!hears(&one, &other, SHORT).await);
    says(&one, "CRL has expired").await;
    authority.revoke(&[], VALID);
    assert!(hears(&one, &other, LONG).await);
}

#[tokio::test]
async fn files_that_do_not_fit_together_are_refused() {
    let authority = Authority::new();
    let [a] = free_ports();
    let other = authority.valid("other").key;
    let refused = async |given: UnicastTls| match UnicastTransport::open(tls(&a, &[], given), life(1)).await {
        Err(UnicastError::Certificate(file, _)) => file,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    };
    let given = || authority.valid("one");
    assert_eq!(refused(UnicastTls { key: other.clone(), ..given() }).await, other);
    let nowhere = authority.path("nowhere.pem");
    assert_eq!(refused(UnicastTls { ca: nowhere.clone(), ..given() }).await, nowhere);
    let empty = authority.path("empty.pem");
    std::fs::write(&empty, "").unwrap();
    for given in [
        UnicastTls { ca: empty.clone(), ..given() },
        UnicastTls { certificate: empty.clone(), ..given() },
        UnicastTls { crl: Some(empty.clone()), ..given() },
        UnicastTls { crl: Some(authority.path("ca.pem")), ..given() },
    ] {
        let of_what = refused(given).await;
        assert!(of_what == empty || of_what == authority.path("ca.pem"), "{of_what:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_said_and_those_before_stay_in_use() {
    let authority = Authority::new();
    let [a, b] = free_ports();
    let one = open(1, tls(&a, &[], authority.valid("one"))).await;
    let pem = std::fs::read(authority.path("one.pem")).unwrap();
    std::fs::write(authority.path("one.pem"), &pem[..pem.len() / 2]).unwrap();
    says(&one, "one.pem").await;
    let other = open(2, tls(&b, &[a], authority.valid("other"))).await;
    assert!(hears(&one, &other, LONG).await);
    std::fs::write(authority.path("one.pem"), pem).unwrap();
    until(|| !one.describe().iter().any(|line| line.contains("one.pem")), || format!("{:?}", one.describe())).await;
}

/// Sends numbered frames for a while; how many.
async fn send_numbers(from: Arc<UnicastTransport>, lasts: Duration) -> u64 {
    let (mut number, until) = (0_u64, Instant::now() + lasts);
    while Instant::now() < until {
        from.send(Audience::Everybody, &number.to_be_bytes()).unwrap();
        number += 1;
        sleep(Duration::from_millis(1)).await;
    }
    number
}

/// Hears until it is quiet: how many different numbers, and how often somebody went or frames were lost.
async fn hear_numbers(to: Arc<UnicastTransport>) -> (u64, u64) {
    let (mut heard, mut trouble) = (BTreeSet::new(), 0);
    while let Ok(Some(received)) = timeout(SHORT, to.receive()).await {
        match received {
            Received::Frame(frame) => heard.extend(<[u8; 8]>::try_from(frame.as_slice()).map(u64::from_be_bytes)),
            Received::Departed(_) | Received::Lost => trouble += 1,
        }
    }
    (heard.len() as u64, trouble)
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

    let before = (serving(&a).await, serving(&b).await);
    let lasts = Duration::from_secs(7);
    let senders = [Arc::clone(&one), Arc::clone(&other)].map(|node| tokio::spawn(send_numbers(node, lasts)));
    let hearers = [Arc::clone(&other), Arc::clone(&one)].map(|node| tokio::spawn(hear_numbers(node)));
    sleep(Duration::from_secs(1)).await;
    // At the same paths: first one alone, then both at once.
    drop(authority.valid("one"));
    sleep(Duration::from_secs(2)).await;
    let between = (serving(&a).await, serving(&b).await);
    assert!(between.0 != before.0 && between.1 == before.1);
    drop((authority.valid("one"), authority.valid("other")));
    for (sender, hearer) in senders.into_iter().zip(hearers) {
        let sent = sender.await.unwrap();
        assert_eq!(hearer.await.unwrap(), (sent, 0));
    }
    let after = (serving(&a).await, serving(&b).await);
    assert!(after.0 != between.0 && after.1 != between.1, "the new certificates are served");
    assert_eq!((connections(&one), connections(&other)), (1, 1), "{:#?}", one.describe());
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

#[tokio::test(flavor = "multi_thread")]
async fn older_versions_of_tls_are_refused() {
    use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode, SslVersion};
    let authority = Authority::new();
    let [a] = free_ports();
    let _one = open(1, tls(&a, &[], authority.valid("one"))).await;
    let shaken = |most: SslVersion| {
        let at = a.clone();
        tokio::task::spawn_blocking(move || {
            let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
            connector.set_verify(SslVerifyMode::NONE);
            connector.set_max_proto_version(Some(most)).unwrap();
            connector.build().connect("127.0.0.1", std::net::TcpStream::connect(&at).unwrap()).is_ok()
        })
    };
    assert!(!shaken(SslVersion::TLS1_2).await.unwrap());
    assert!(shaken(SslVersion::TLS1_3).await.unwrap());
}
