//! What is kept of the log outside the database.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The newest checkpoint, kept outside the database.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Anchor {
    /// File. Best on a disk that the database's administrator cannot write. Default `<data_dir>/checkpoint`.
    pub file: Option<PathBuf>,
    /// Seconds between writes, when there is something new. Default 1.
    pub interval_s: u64,
}

/// Further places outside the database for checkpoints, and witnesses.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Anchors {
    /// An object store. Default: none.
    pub s3: Option<S3Section>,
    /// A time-stamping authority (RFC 3161). Default: none.
    pub tsa: Option<TsaSection>,
    /// Witnesses that others run (`counterfoil witness`, or any C2SP tlog-witness), by a name for people. Default: none.
    pub witnesses: BTreeMap<String, Witness>,
    /// How many witnesses must cosign a checkpoint before it is shown as cosigned. From 1 to their number. Default 0, for none.
    pub quorum: usize,
    /// Seconds between two checkpoints that are cosigned. Default 10.
    pub witness_interval_s: u64,
}

/// An object store that speaks the S3 API.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct S3Section {
    /// For instance `https://s3.eu-central-1.amazonaws.com`. The bucket is named in the path.
    pub endpoint: String,
    /// Region that requests are signed for. Default `us-east-1`.
    #[serde(default = "s3_region")]
    pub region: String,
    /// The bucket: versioned, with object lock enabled.
    pub bucket: String,
    /// Put before every key. Default `counterfoil/`.
    #[serde(default = "s3_prefix")]
    pub prefix: String,
    /// File with the access key's id.
    pub access_key_file: PathBuf,
    /// File with the secret access key.
    pub secret_key_file: PathBuf,
    /// How a checkpoint is locked: `compliance` (nobody shortens it), `governance`, or as the `bucket`'s default says. Default `compliance`.
    #[serde(default)]
    pub mode: S3Mode,
    /// Days for which each is locked. Default 400.
    #[serde(default = "s3_days")]
    pub retention_days: u32,
    /// PEM file of the certificate authorities to trust. Default: the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Seconds between writes, when there is something new. Each is an object of its own. Default 60.
    #[serde(default = "s3_interval")]
    pub interval_s: u64,
}

fn s3_region() -> String {
    "us-east-1".into()
}

fn s3_prefix() -> String {
    "counterfoil/".into()
}

fn s3_days() -> u32 {
    400
}

fn s3_interval() -> u64 {
    60
}

/// How a checkpoint in an object store is locked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum S3Mode {
    #[default]
    Compliance,
    Governance,
    Bucket,
}

/// A time-stamping authority (RFC 3161).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TsaSection {
    /// Where requests are posted to. `http` will do: what comes back is signed, and what goes there is a hash.
    pub url: String,
    /// Policy to ask for, an object identifier such as `1.2.3.4.1`. Default: the authority's own.
    #[serde(default)]
    pub policy: Option<String>,
    /// PEM file of the certificates that the authority's must lead up to. Auditors verify with the same (`--tsa-ca`).
    pub ca_file: PathBuf,
    /// PEM file of the certificate authorities to trust for `https`. Default: the system's.
    #[serde(default)]
    pub tls_ca_file: Option<PathBuf>,
    /// Seconds between time stamps, when there is something new; after a failure it is tried again within a minute. Default 3,600.
    #[serde(default = "tsa_interval")]
    pub interval_s: u64,
    /// Folder of the time stamps. Default: `time-stamps` beside `anchor.file`.
    #[serde(default)]
    pub folder: Option<PathBuf>,
}

fn tsa_interval() -> u64 {
    3_600
}

/// A witness.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Witness {
    /// Submission prefix: `/add-checkpoint` is put behind it. `https`, or `http` to a loopback address.
    pub url: String,
    /// Its verifier key, a C2SP vkey line of an Ed25519 cosigner.
    pub vkey: String,
    /// PEM file of the certificate authorities to trust. Default: the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}
