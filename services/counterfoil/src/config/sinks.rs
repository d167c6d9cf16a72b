//! Where entries are pushed to.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where entries are pushed to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sink {
    /// `syslog` (RFC 5424 over TLS) or `webhook` (HTTPS POST, signed).
    pub kind: SinkKind,
    /// `syslog`: `host:port` of the collector; its certificate must be for this host.
    #[serde(default)]
    pub address: Option<String>,
    /// `webhook`: where to POST to. `https`, or `http` to a loopback address.
    #[serde(default)]
    pub url: Option<String>,
    /// `webhook`: file with the shared secret of the signature, at least 32 bytes.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// `jsonl`, `ocsf` or `cef`. Default `jsonl`.
    #[serde(default)]
    pub format: SinkFormat,
    /// Entries of these realms only. Default: of all.
    #[serde(default)]
    pub realms: Vec<String>,
    /// Where a new sink begins: `beginning` of the log, or `now`. Default `beginning`.
    #[serde(default)]
    pub start: SinkStart,
    /// PEM file of the certificate authorities to trust. Default: the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// `syslog`: PEM file of our certificate chain, for collectors that ask for one.
    #[serde(default)]
    pub client_certificate_file: Option<PathBuf>,
    /// `syslog`: PEM file of its key.
    #[serde(default)]
    pub client_key_file: Option<PathBuf>,
    /// `syslog`: whether the collector must answer the end of the connection as RFC 5425 section 4.4 says, before entries count as
    /// delivered. Default true.
    #[serde(default = "yes")]
    pub confirm: bool,
    /// `syslog`: private enterprise number in the structured data. Default 32473, the one for examples (RFC 5612).
    #[serde(default = "example_number")]
    pub enterprise_number: u32,
    /// Entries of one push at most. Default 500.
    #[serde(default = "sink_batch")]
    pub batch: usize,
    /// Milliseconds that connecting, sending and the answer may each take. Default 10,000. Five times as long a node that
    /// died keeps the sink to itself.
    #[serde(default = "sink_timeout")]
    pub timeout_ms: u64,
}

fn yes() -> bool {
    true
}

fn example_number() -> u32 {
    32_473
}

fn sink_batch() -> usize {
    500
}

fn sink_timeout() -> u64 {
    10_000
}

/// How entries are pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum SinkKind {
    Syslog,
    Webhook,
}

/// As what entries are pushed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum SinkFormat {
    #[default]
    Jsonl,
    Ocsf,
    Cef,
}

/// Where a new sink begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum SinkStart {
    #[default]
    Beginning,
    Now,
}
