//! What a node is told of the others.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How nodes share state. Every node of one log needs the same key files; what is lost on the way is read from the log.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterSection {
    /// `none`, `redis`, `multicast`, `unicast`, `partner` or `postgres`. Default `none`: nodes meet in the log, and in a shared view.
    pub transport: TransportKind,
    /// How many nodes there should be, so that a node can say when it sees fewer. Default 0: not known.
    pub nodes: usize,
    /// File of the cluster's keys, 64 hex digits a line: the first seals, each opens. Read again every 5 seconds. Default: a key derived
    /// from the key-encryption key.
    pub keys_file: Option<PathBuf>,
    /// Milliseconds between two signs of life. Default 250.
    pub beat_ms: u64,
    /// Milliseconds of silence after which a node is not counted on. Default 2,000.
    pub lease_ms: u64,
    /// Refuse to start on a transport whose link is not encrypted beneath the sealed frames. Default false.
    pub require_encrypted_link: bool,
    /// Refuse to start on a transport whose peers do not prove who they are by certificates. Default false.
    pub require_peer_certificates: bool,
    /// `unicast` and `partner`: connections between nodes.
    pub unicast: UnicastSection,
    /// `partner`: who holds what.
    pub partner: PartnerSection,
    /// `multicast`: datagrams to a group.
    pub multicast: MulticastSection,
    /// `redis`: channels of a Redis.
    pub redis: RedisSection,
}

/// A cluster transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum TransportKind {
    None,
    Redis,
    Multicast,
    Unicast,
    Partner,
    Postgres,
}

/// Connections between nodes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnicastSection {
    /// Addresses to listen at, `host:port`. Default `0.0.0.0:7447`.
    pub listen: Vec<String>,
    /// Other nodes, `host:port`. One of them is enough: the rest is found through it. A name is resolved anew at each attempt, and each of
    /// its addresses is a peer, so one of a headless service will do. A node's own address may be among them.
    pub peers: Vec<String>,
    /// Speak plain TCP. Frames are sealed all the same, but peers do not prove who they are. Default false.
    pub plaintext: bool,
    /// PEM file of the authorities whose nodes are let in.
    pub ca_file: Option<PathBuf>,
    /// PEM file of this node's certificate and chain.
    pub certificate_file: Option<PathBuf>,
    /// PEM file of its key.
    pub key_file: Option<PathBuf>,
    /// PEM file of revocation lists, one of each authority that gives certificates to nodes. One that is missing or outdated lets nobody of
    /// that authority in. These four files are read again when they change. Default: nothing is revoked.
    pub crl_file: Option<PathBuf>,
    /// Names of the certificates that take part: the common name, or a DNS name. Default: every certificate of the authorities.
    pub allowed_names: Vec<String>,
    /// Whether a certificate must name the host or address that was connected to. Without it `allowed_names` must say who takes part.
    /// Default true.
    pub verify_host: bool,
}

/// Sessions shared out among the nodes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartnerSection {
    /// Nodes that hold a copy of each session, beside its owner: 0 to 7, the same on every node. Default 1.
    pub copies: u8,
}

/// Datagrams to a group.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MulticastSection {
    /// Group and port. Default `239.255.77.46:7446`.
    pub group: String,
    /// Address or name of the interface to use. Default: where the system's routes lead.
    pub interface: Option<String>,
    /// Routers that a datagram may pass, and one. Default 1: none.
    pub ttl: u32,
    /// Bytes that a packet may have on the whole way. Default 1,500.
    pub mtu: usize,
    /// Bytes of the receive buffer that is asked for. Default 4,194,304; the system may allow less.
    pub receive_buffer_bytes: usize,
    /// Bytes a second that are sent at most, once a burst is out. Default 250,000,000.
    pub rate_bytes: u64,
}

/// Channels of a Redis.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RedisSection {
    /// Its URL. Default: that of the view.
    pub url: Option<String>,
    /// File that holds the URL, for one with a password.
    pub url_file: Option<PathBuf>,
}
