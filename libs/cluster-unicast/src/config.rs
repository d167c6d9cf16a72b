//! What a node is told of its place, and what zenoh is told of it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

/// How a node meets the others.
#[derive(Debug, Clone)]
pub struct UnicastConfig {
    /// Addresses to listen at, `host:port`. `0.0.0.0:7447` is every interface; other nodes are then told each address of this machine.
    /// A name is told to them as a name, which is what a certificate with names, but without addresses, needs.
    pub listen: Vec<String>,
    /// Nodes to connect to, `host:port`. A name is resolved again at each attempt. Those that are this node itself are passed over, so the
    /// list may be the same on every node. One that is reached tells of the others.
    pub peers: Vec<String>,
    /// Whether nodes also find one another by multicast (224.0.0.224:7446). It only finds: frames go over connections. What is said there
    /// is not authenticated; what is found has to pass TLS as any peer does.
    pub multicast_scouting: bool,
    /// Certificates. `None` is refused unless [`UnicastConfig::plaintext`].
    pub tls: Option<UnicastTls>,
    /// Whether connections may go without TLS. The frames are sealed either way, but anybody can connect, and see who talks to whom.
    pub plaintext: bool,
    /// Which cluster this is: letters, digits, `-` and `_`; the same on every node, and on no node of another cluster. A hash of the
    /// cluster's key serves. Nodes of two clusters may connect; they hear nothing of one another.
    pub cluster_id: String,
    /// After this silence a connection is given up, and its peer told as departed. At least 100 ms. Default 2 s.
    pub lease: Duration,
}

/// Mutual TLS 1.3.
#[derive(Debug, Clone)]
pub struct UnicastTls {
    /// The authority of the cluster's certificates, PEM.
    pub ca: PathBuf,
    /// This node's certificate, with what stands between it and the authority, PEM. It serves and connects: where it limits its use
    /// (extended key usage), it needs both `serverAuth` and `clientAuth`.
    pub certificate: PathBuf,
    /// Its key, PEM, without a password.
    pub key: PathBuf,
    /// Common names that take part; `None` is every certificate of the authority. A certificate of another name connects, but no frame goes
    /// to it and none is taken from it.
    pub allowed_names: Option<Vec<String>>,
    /// Whether a node that is connected to must have the host's name or address in its certificate. Without it, `allowed_names` must
    /// say who takes part: zenoh's connecting side trusts the public authorities of the web beside the cluster's own.
    pub verify_host: bool,
    /// Between two looks at the files. Default 5 s.
    pub watch: Duration,
}

/// Why a node cannot take its place.
#[derive(Debug, thiserror::Error)]
pub enum UnicastError {
    /// The configuration asks for what is not safe or not possible.
    #[error("the configuration of the cluster's transport: {0}")]
    Configuration(String),
    /// A certificate, key or authority that cannot be used.
    #[error("{file}: {1}", file = .0.display())]
    Certificate(PathBuf, String),
    /// zenoh did not start: an address in use, for example.
    #[error("the cluster's transport did not start: {0}")]
    Start(String),
}

impl UnicastConfig {
    /// A place in a cluster with the usual times: without peers, without multicast, and refused until it has TLS or `plaintext`.
    #[must_use]
    pub fn new(cluster_id: impl Into<String>, listen: Vec<String>) -> Self {
        Self {
            listen,
            peers: Vec::new(),
            multicast_scouting: false,
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
        if self.cluster_id.is_empty() || !self.cluster_id.chars().all(plain) {
            return refuse(format!("{:?} is no cluster id", self.cluster_id));
        }
        if self.listen.is_empty() {
            return refuse("a node needs an address to listen at".into());
        }
        for address in self.listen.iter().chain(&self.peers) {
            let port = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
            if port.is_none_or(|(host, _)| host.is_empty()) || address.contains(['/', '#', '?']) {
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

    const fn protocol(&self) -> &'static str {
        if self.tls.is_some() { "tls" } else { "tcp" }
    }

    /// What zenoh is told. The peers are given apart: without this node itself. A session that takes over from another waits for
    /// its port.
    pub(crate) fn zenoh(&self, peers: &[String], takes_over: bool) -> Result<zenoh::Config, UnicastError> {
        let endpoints = |addresses: &[String]| {
            Value::from_iter(addresses.iter().map(|address| format!("{}/{address}", self.protocol())))
        };
        let mut settings = vec![
            ("mode", json!("peer")),
            ("listen/endpoints", endpoints(&self.listen)),
            ("listen/exit_on_failure", json!(!takes_over)),
            ("listen/timeout_ms", json!(if takes_over { -1 } else { 0 })),
            ("listen/retry", json!({ "period_init_ms": 500, "period_max_ms": 500, "period_increase_factor": 1 })),
            ("connect/endpoints", endpoints(peers)),
            ("connect/exit_on_failure", json!(false)),
            ("connect/timeout_ms", json!(-1)),
            ("connect/retry", json!({ "period_init_ms": 250, "period_max_ms": 1_000, "period_increase_factor": 2 })),
            // Opening waits for nobody.
            ("open/return_conditions", json!({ "connect_scouted": false, "declares": false })),
            ("scouting/multicast/enabled", json!(self.multicast_scouting)),
            ("scouting/gossip/enabled", json!(true)),
            ("scouting/delay", json!(0)),
            ("transport/link/protocols", json!([self.protocol()])),
            ("transport/link/tx/lease", json!(u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX))),
            ("transport/link/tx/keep_alive", json!(4)),
            // The most there can be: what a peer's connection holds while its process or the network takes a breath.
            ("transport/link/tx/queue/size/data", json!(16)),
            ("transport/link/tx/queue/size/data_low", json!(16)),
            // What a congested peer may cost, once, before it is passed over until it takes something again.
            ("transport/link/tx/queue/congestion_control/drop/wait_before_drop", json!(1_000)),
            ("transport/link/tx/queue/congestion_control/drop/max_wait_before_drop_fragments", json!(1_000)),
            ("transport/link/tx/queue/congestion_control/block/wait_before_close", json!(200_000)),
            ("transport/link/rx/buffer_size", json!(1 << 20)),
            // Nobody makes this node set memory aside for what is no frame.
            ("transport/link/rx/max_message_size", json!(1 << 20)),
        ];
        if let Some(tls) = &self.tls {
            let (certificate, key) = (&tls.certificate, &tls.key);
            settings.push((
                "transport/link/tls",
                json!({
                    "root_ca_certificate": tls.ca,
                    "enable_mtls": true,
                    "listen_certificate": certificate,
                    "listen_private_key": key,
                    "connect_certificate": certificate,
                    "connect_private_key": key,
                    "verify_name_on_connect": tls.verify_host,
                    "close_link_on_expiration": true,
                }),
            ));
            if let Some(names) = &tls.allowed_names {
                settings.push(("access_control", self.allow_list(names)));
            }
        }
        let mut config = zenoh::Config::default();
        for (key, value) in settings {
            config
                .insert_json5(key, &value.to_string())
                .map_err(|failure| UnicastError::Configuration(format!("{key}: {failure}")))?;
        }
        Ok(config)
    }

    /// Nothing goes to or comes from anybody, but these names, and for them only what is this cluster's.
    fn allow_list(&self, names: &[String]) -> Value {
        json!({
            "enabled": true,
            "default_permission": "deny",
            "rules": [{
                "id": "cluster",
                "permission": "allow",
                "flows": ["ingress", "egress"],
                "messages": ["put", "declare_subscriber", "liveliness_token", "liveliness_query", "declare_liveliness_subscriber"],
                "key_exprs": [format!("cf/{}/**", self.cluster_id)],
            }],
            "subjects": [{ "id": "members", "cert_common_names": names }],
            "policies": [{ "rules": ["cluster"], "subjects": ["members"] }],
        })
    }

    /// The peers that are not this node.
    pub(crate) async fn others(&self) -> Vec<String> {
        let ports: Vec<u16> =
            self.listen.iter().filter_map(|address| address.rsplit_once(':')?.1.parse().ok()).collect();
        let mut others = Vec::new();
        for peer in &self.peers {
            let found: Vec<SocketAddr> = resolve(peer).await.unwrap_or_default();
            let own = |address: &SocketAddr| ports.contains(&address.port()) && self.listens_at(address.ip());
            let me = self.listen.contains(peer) || !found.is_empty() && found.iter().all(own);
            if !me {
                others.push(peer.clone());
            }
        }
        others
    }

    /// Whether an address is one of those that this node listens at.
    fn listens_at(&self, ip: IpAddr) -> bool {
        // Only an address of this machine can be bound.
        UdpSocket::bind((ip, 0)).is_ok()
            && self.listen.iter().filter_map(|address| address.rsplit_once(':')).any(|(host, _)| {
                match host.trim_matches(['[', ']']).parse::<IpAddr>() {
                    Ok(listening) => listening.is_unspecified() || listening == ip,
                    // A name of this machine.
                    Err(_) => true,
                }
            })
    }
}

/// The addresses of a peer, now.
pub(crate) async fn resolve(peer: &str) -> std::io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host(peer).await?.collect())
}
