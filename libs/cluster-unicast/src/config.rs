//! What a node is told of its place.

use std::path::PathBuf;
use std::time::Duration;

use crate::resolve::split;

/// How a node meets the others.
#[derive(Debug, Clone)]
pub struct UnicastConfig {
    /// What the transport is called where it is shown: `unicast`, or the name of what is made of its links.
    pub name: &'static str,
    /// Addresses to listen at, `host:port`. At `0.0.0.0:7447`, every interface, others take the address that they see this node at. A name is
    /// told to them as a name, which is what a certificate with names, but without addresses, needs.
    pub listen: Vec<String>,
    /// Nodes to connect to, `host:port`. A name is resolved again at each attempt; each of its addresses is a peer. Those that are this
    /// node itself are passed over, so the list may be the same on every node. One that is reached tells of the others.
    pub peers: Vec<String>,
    /// Certificates. `None` is refused unless [`UnicastConfig::plaintext`].
    pub tls: Option<UnicastTls>,
    /// Whether connections may go without TLS. The frames are sealed either way, but anybody can connect, and see who talks to whom.
    pub plaintext: bool,
    /// Which cluster this is: letters, digits, `-` and `_`; the same on every node, and on no node of another cluster. A hash of the
    /// cluster's key serves. It is no secret: nodes of two clusters refuse each other, and say so.
    pub cluster_id: String,
    /// After this silence a connection is given up, and its peer told as departed. At least 100 ms. Default 2 s.
    pub lease: Duration,
}

/// Mutual TLS 1.3: only the newest versions (OWASP ASVS 5.0 12.1.1), both ends of an internal connection proved by certificates (12.3.5), and no
/// authority believed but the cluster's own (12.3.4).
#[derive(Debug, Clone)]
pub struct UnicastTls {
    /// The authorities of the cluster's certificates, PEM. Those of the system count for nothing here.
    pub ca: PathBuf,
    /// This node's certificate, with what stands between it and the authority, PEM. It serves and connects: where it limits its use
    /// (extended key usage), it needs both `serverAuth` and `clientAuth`.
    pub certificate: PathBuf,
    /// Its key, PEM, without a password.
    pub key: PathBuf,
    /// Revocation lists, PEM: one of each authority that gives certificates to nodes (RFC 5280 section 5). One that is missing or past its `nextUpdate`
    /// lets nobody of that authority in. `None`: nothing is revoked.
    pub crl: Option<PathBuf>,
    /// Names that take part: the common name, or one of the DNS names. `None` is every certificate of the authority.
    pub allowed_names: Option<Vec<String>>,
    /// Whether a node that is connected to must have the host's name or address in its certificate. Without it, `allowed_names` must
    /// say who takes part.
    pub verify_host: bool,
    /// Between two looks at the files, and at whether the certificates of those connected still hold. Default 5 s.
    pub watch: Duration,
}

/// Why a node cannot take its place.
#[derive(Debug, thiserror::Error)]
pub enum UnicastError {
    /// The configuration asks for what is not safe or not possible.
    #[error("the configuration of the cluster's transport: {0}")]
    Configuration(String),
    /// A certificate, key, authority or revocation list that cannot be used.
    #[error("{file}: {1}", file = .0.display())]
    Certificate(PathBuf, String),
    /// An address cannot be listened at.
    #[error("the cluster's transport cannot listen at {0}")]
    Listen(String, #[source] std::io::Error),
}

impl UnicastConfig {
    /// A place in a cluster with the usual times: without peers, and refused until it has TLS or `plaintext`.
    #[must_use]
    pub fn new(cluster_id: impl Into<String>, listen: Vec<String>) -> Self {
        Self {
            name: "unicast",
            listen,
            peers: Vec::new(),
            tls: None,
            plaintext: false,
            cluster_id: cluster_id.into(),
            lease: Duration::from_secs(2),
        }
    }

    /// Refuses what is not safe or not possible.
    pub(crate) fn check(&self) -> Result<(), UnicastError> {
        let refuse = |why: String| Err(UnicastError::Configuration(why));
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let named = (1..=255).contains(&self.cluster_id.len());
        if !named || !self.cluster_id.chars().all(plain) {
            return refuse(format!("{:?} is no cluster id", self.cluster_id));
        }
        if self.listen.is_empty() {
            return refuse("a node needs an address to listen at".into());
        }
        for address in self.listen.iter().chain(&self.peers) {
            // 253 bytes of a name, RFC 1035 section 2.3.4.
            if split(address).is_none_or(|(host, _)| host.len() > 253) {
                return refuse(format!("{address:?} is not host:port"));
            }
        }
        if self.lease < Duration::from_millis(100) {
            return refuse("a lease is at least 100 ms".into());
        }
        match &self.tls {
            None if !self.plaintext => refuse("without TLS it has to say plaintext".into()),
            Some(_) if self.plaintext => refuse("TLS and plaintext exclude each other".into()),
            Some(tls) if tls.allowed_names.as_ref().is_some_and(Vec::is_empty) => {
                refuse("an empty list of names lets nobody take part".into())
            }
            Some(tls) if !tls.verify_host && tls.allowed_names.is_none() => {
                refuse("where hosts are not verified, names have to be".into())
            }
            _ => Ok(()),
        }
    }
}
