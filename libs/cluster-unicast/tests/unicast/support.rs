//! Nodes over loopback, and an authority for their certificates.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Audience, Incarnation, Received, Transport};
use cluster_unicast::{UnicastConfig, UnicastTls, UnicastTransport};
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, CrlNumber, SubjectAlternativeName, SubjectKeyIdentifier,
};
use openssl::x509::{X509, X509Crl, X509CrlBuilder, X509NameBuilder, X509RevokedBuilder};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

pub(crate) const LONG: Duration = Duration::from_secs(20);
/// Longer than connections take that are made, by far; each test of a refusal shows beside it that others are made.
pub(crate) const SHORT: Duration = Duration::from_secs(2);

const DAY: i64 = 86_400;
/// Seconds from now, from when to when.
pub(crate) const VALID: (i64, i64) = (-DAY, 10 * DAY);
pub(crate) const PAST: (i64, i64) = (-9 * DAY, -2 * DAY);

/// Ports that were free a moment ago, below those that clients are given: any connection made meanwhile could take one of these.
pub(crate) fn free_ports<const N: usize>() -> [String; N] {
    let sockets = [0; N].map(|_| {
        loop {
            let mut random = [0; 2];
            openssl::rand::rand_bytes(&mut random).unwrap();
            let port = 2_000 + u16::from_be_bytes(random) % 9_000;
            if let Ok(socket) = TcpListener::bind(("127.0.0.1", port)) {
                break socket;
            }
        }
    });
    sockets.map(|socket| socket.local_addr().unwrap().to_string())
}

fn time(seconds_from_now: i64) -> Asn1Time {
    let now = Asn1Time::from_unix(0).unwrap().diff(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    Asn1Time::from_unix(i64::from(now.days) * DAY + i64::from(now.secs) + seconds_from_now).unwrap()
}

/// An authority, and the certificates that it gives to 127.0.0.1.
pub(crate) struct Authority {
    folder: TempDir,
    key: PKey<Private>,
    certificate: X509,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let (key, certificate) = certificate("authority", &[], VALID, None);
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.to_pem().unwrap()).unwrap();
        Self { folder, key, certificate }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Files of a node, made or made anew.
    pub(crate) fn give(&self, name: &str, hosts: &[&str], seconds: (i64, i64)) -> UnicastTls {
        let (key, certificate) = certificate(name, hosts, seconds, Some(self));
        let (at_certificate, at_key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&at_certificate, certificate.to_pem().unwrap()).unwrap();
        std::fs::write(&at_key, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        UnicastTls {
            ca: self.path("ca.pem"),
            certificate: at_certificate,
            key: at_key,
            crl: None,
            allowed_names: None,
            verify_host: true,
            watch: Duration::from_secs(1),
        }
    }

    pub(crate) fn valid(&self, name: &str) -> UnicastTls {
        self.give(name, &["127.0.0.1"], VALID)
    }

    /// A list of the nodes whose certificates are taken back, made or made anew.
    pub(crate) fn revoke(&self, names: &[&str], seconds: (i64, i64)) -> PathBuf {
        let mut list = X509CrlBuilder::new().unwrap();
        list.set_issuer_name(self.certificate.subject_name()).unwrap();
        list.set_last_update(&time(seconds.0)).unwrap();
        list.set_next_update(&time(seconds.1)).unwrap();
        let nobody = X509::builder().unwrap();
        let issuer =
            AuthorityKeyIdentifier::new().keyid(true).build(&nobody.x509v3_context(Some(&self.certificate), None));
        list.append_extension(issuer.unwrap()).unwrap();
        let number = CrlNumber::new(BigNum::from_u32(1).unwrap()).unwrap();
        list.append_extension(number.build().unwrap()).unwrap();
        for name in names {
            let pem = std::fs::read(self.path(&format!("{name}.pem"))).unwrap();
            let certificate = X509::from_pem(&pem).unwrap();
            let mut revoked = X509RevokedBuilder::new().unwrap();
            revoked.set_serial_number(certificate.serial_number()).unwrap();
            revoked.set_revocation_date(&time(-1)).unwrap();
            list.add_revoked(revoked.build()).unwrap();
        }
        if !names.is_empty() {
            list.sort().unwrap();
        }
        list.sign(&self.key, MessageDigest::sha256()).unwrap();
        let list: X509Crl = list.build().unwrap();
        std::fs::write(self.path("crl.pem"), list.to_pem().unwrap()).unwrap();
        self.path("crl.pem")
    }
}

fn certificate(name: &str, hosts: &[&str], seconds: (i64, i64), issuer: Option<&Authority>) -> (PKey<Private>, X509) {
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
    builder.set_not_before(&time(seconds.0)).unwrap();
    builder.set_not_after(&time(seconds.1)).unwrap();
    match issuer {
        Some(issuer) => {
            builder.set_issuer_name(issuer.certificate.subject_name()).unwrap();
            let mut names = SubjectAlternativeName::new();
            for host in hosts {
                if host.parse::<std::net::IpAddr>().is_ok() {
                    names.ip(host)
                } else {
                    names.dns(host)
                };
            }
            let names = names.build(&builder.x509v3_context(None, None)).unwrap();
            builder.append_extension(names).unwrap();
            builder.sign(&issuer.key, MessageDigest::sha256()).unwrap();
        }
        None => {
            builder.set_issuer_name(&subject).unwrap();
            builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
            let id = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None)).unwrap();
            builder.append_extension(id).unwrap();
            builder.sign(&key, MessageDigest::sha256()).unwrap();
        }
    }
    (key, builder.build())
}

fn config(listen: &str, peers: &[String]) -> UnicastConfig {
    let mut config = UnicastConfig::new("test", vec![listen.to_owned()]);
    config.peers = peers.to_vec();
    config
}

pub(crate) fn plain(listen: &str, peers: &[String]) -> UnicastConfig {
    UnicastConfig { plaintext: true, ..config(listen, peers) }
}

pub(crate) fn tls(listen: &str, peers: &[String], tls: UnicastTls) -> UnicastConfig {
    UnicastConfig { tls: Some(tls), ..config(listen, peers) }
}

pub(crate) const fn life(n: u8) -> Incarnation {
    Incarnation([n; 16])
}

pub(crate) async fn open(n: u8, config: UnicastConfig) -> Arc<UnicastTransport> {
    Arc::new(UnicastTransport::open(config, life(n)).await.unwrap())
}

/// Whether one hears another within the time.
pub(crate) async fn hears(to: &UnicastTransport, from: &UnicastTransport, within: Duration) -> bool {
    let until = Instant::now() + within;
    while Instant::now() < until {
        let _may_be_lost = from.send(Audience::Everybody, b"can you hear me");
        let step = Instant::now() + Duration::from_millis(100);
        while let Some(left) = step.checked_duration_since(Instant::now()) {
            if timeout(left, to.receive()).await == Ok(Some(Received::Frame(b"can you hear me".to_vec()))) {
                return true;
            }
        }
    }
    false
}

/// Waits until a node says so of itself.
pub(crate) async fn says(node: &UnicastTransport, what: &str) {
    until(|| node.describe().iter().any(|line| line.contains(what)), || format!("{what:?} in {:#?}", node.describe()))
        .await;
}

/// Waits until it is so.
pub(crate) async fn until(is_so: impl Fn() -> bool, why: impl Fn() -> String) {
    let end = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < end, "{}", why());
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a node is told that another has gone.
pub(crate) async fn sees_go(node: &UnicastTransport, who: Incarnation, within: Duration) -> bool {
    let departed = async { while node.receive().await != Some(Received::Departed(who)) {} };
    timeout(within, departed).await.is_ok()
}

/// Connections that a node says it has.
pub(crate) fn connections(node: &UnicastTransport) -> usize {
    node.describe().iter().filter(|line| line.starts_with("connected ")).count()
}
