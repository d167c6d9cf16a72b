//! Configuration: read once, at start, into typed sections. Defaults < file < environment < flags; an unknown key is an error.

mod anchors;
mod cluster;
mod realm;
mod shards;
mod sinks;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use session_model::{Looser, Overrides, Policy, Profile, RealmName};

use crate::sign_in::Oidc;
use crate::soap::Soap;
use crate::tls::Tls;

pub(crate) use anchors::{Anchor, Anchors, S3Mode, S3Section};
pub(crate) use cluster::{
    ClusterSection, MulticastSection, PartnerSection, RedisSection, TransportKind, UnicastSection,
};
pub(crate) use realm::Realm;
pub(crate) use shards::{OneLog, Shard, ShardName};
pub(crate) use sinks::{Sink, SinkFormat, SinkKind, SinkStart};

/// Copies of a session at most: beyond them every node might as well hold all.
const COPIES: u8 = 7;

/// Prefix of environment variables: `COUNTERFOIL__SECTION__KEY`.
const PREFIX: &str = "COUNTERFOIL__";

/// Everything that can be configured.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The API.
    pub server: Server,
    /// Health and metrics.
    pub management: Management,
    /// Folder of the embedded log, the keys and the outside checkpoint. Made if it is not there.
    pub data_dir: PathBuf,
    /// Name of this node, as it stands in entries: 1 to 63 of a-z, 0-9 and '-'. Default: `node`.
    pub node: String,
    /// The console.
    pub console: ConsolePages,
    /// The log.
    pub log: Log,
    /// Key files.
    pub keys: Keys,
    /// The session view.
    pub view: View,
    /// Realms of profile `transient`, which keep no log.
    pub transient: Transient,
    /// How nodes share state.
    pub cluster: ClusterSection,
    /// The newest checkpoint, kept outside the database.
    pub anchor: Anchor,
    /// Checking the whole log while the service runs.
    pub verify: Verify,
    /// Further places outside the database for checkpoints, and witnesses.
    pub anchors: Anchors,
    /// Dropping what is sealed and past its realm's time.
    pub retention: Retention,
    /// Where entries are pushed to, by name. Default: nowhere.
    pub sinks: BTreeMap<String, Sink>,
    /// Realms by name. Default: one, `default`, of profile `default`.
    pub realms: BTreeMap<String, Realm>,
    /// Keys of realm `default` to accept from the first start.
    pub bootstrap: Bootstrap,
    /// The SOAP endpoint, `/soap/v1`.
    pub soap: Soap,
    /// Logs.
    pub logging: Logging,
}

/// The API.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Server {
    /// Address and port. Port 0 takes any free one. Default `127.0.0.1:8080`.
    pub listen: String,
    /// Threads that serve requests. 0, the default, is one for each core.
    pub workers: usize,
    /// Bytes a request body may have. Default 131,072.
    pub max_body_bytes: usize,
    /// Seconds that requests under way may take to finish at shutdown. Default 10.
    pub drain_s: u64,
    /// Seconds between turning not ready and taking no more connections at shutdown, so that load balancers notice. Default 0.
    pub drain_delay_s: u64,
    /// Whether `/docs` shows the API in a browser. Default true.
    pub docs: bool,
    /// TLS. Default: none, for a service behind a proxy that ends it.
    pub tls: Option<Tls>,
}

/// Health and metrics.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Management {
    /// Address and port. Port 0 takes any free one. Default `127.0.0.1:9090`.
    pub listen: String,
}

/// The console.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsolePages {
    /// Whether `/console` shows auditors the log and operators the state of the service. Default true.
    pub enabled: bool,
    /// Signing in with an identity provider, beside API keys. Default: none.
    pub oidc: Option<Oidc>,
}

/// The log.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    /// `sqlite:PATH` or `postgres://…`. Default: `sqlite:<data_dir>/log.db`.
    pub url: Option<String>,
    /// File that holds the URL, for one with a password.
    pub url_file: Option<PathBuf>,
    /// URL of the schema's owner, for `migrate`. Default: the log's URL.
    pub owner_url: Option<String>,
    /// File that holds the owner's URL.
    pub owner_url_file: Option<PathBuf>,
    /// Changes that may wait for the log; beyond them a change is answered with 503. Default 4,096.
    pub queue: usize,
    /// Entries of one commit at most. Default 512.
    pub batch: usize,
    /// Milliseconds a commit may take. Default 4,000.
    pub append_timeout_ms: u64,
    /// Milliseconds a change may take in all. Default 5,000.
    pub deadline_ms: u64,
    /// Connections to PostgreSQL that read; two more append and look data keys up. Default 8.
    pub connections: u32,
    /// Append only to a PostgreSQL whose commits wait for a synchronous standby, so that no checkpoint is seen before a second machine has
    /// it. Looked at when the log is opened, and now and then. Default false.
    pub require_synchronous_standby: bool,
    /// Further logs, by name, for realms that shall not share the first. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shards: BTreeMap<String, Shard>,
}

/// Key files.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Keys {
    /// Folder of the key files; every node of one log needs the same. Made at the first start. Default `<data_dir>/keys`.
    pub dir: Option<PathBuf>,
}

/// The session view.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct View {
    /// `memory:`; `redis://…`, `redis+sentinel://host:port,…/service` or `redis+cluster://host:port,…` (`rediss…` for TLS); or
    /// `folder:/PATH` on a file system that the nodes share. Default `memory:`.
    pub url: String,
    /// File that holds the URL, for one with a password.
    pub url_file: Option<PathBuf>,
    /// Bytes that sessions in this process's memory may take, by estimate. 0, the default, is no bound.
    pub memory_bytes: usize,
    /// At that bound: `refuse` new sessions, or `evict` those used longest ago (they are read from the log when asked for).
    pub beyond_budget: Beyond,
    /// Milliseconds for which what is held in memory is trusted without word from a log that others write too, from Redis, or
    /// without another look at the folder. Default 2,000.
    pub max_staleness_ms: u64,
    /// Bytes of sessions kept in this process in front of Redis or a folder. Default 67,108,864.
    pub near_cache_bytes: usize,
    /// Milliseconds an operation on Redis or a folder may take. Default 250.
    pub operation_timeout_ms: u64,
}

/// What happens at the bound of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum Beyond {
    Refuse,
    Evict,
}

/// Where the sessions of realms of profile `transient` are, which keep no log: what is lost there is lost. See docs/transient.md.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Transient {
    /// `memory:`, in the nodes themselves, which send each other what they hold if `cluster.transport` is `unicast` or `redis`, and
    /// share it out if it is `partner`; or `redis://…`, `rediss://…`, `unix://…`, `redis+sentinel://…`, a Redis that the nodes share. Default `memory:`.
    pub url: String,
    /// File that holds the URL, for one with a password.
    pub url_file: Option<PathBuf>,
    /// `memory:`: bytes that these sessions may take, by estimate; beyond them no session begins. 0, the default, is no bound.
    pub memory_bytes: usize,
    /// `memory:`: what a node does that is within reach of no more than half of `cluster.nodes`, itself included: `serve`, or `refuse`
    /// everything that is asked of such a realm. Default `serve`.
    pub minority: Minority,
}

/// What a node of a minority does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum Minority {
    Serve,
    Refuse,
}

/// Checking the whole log while the service runs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verify {
    /// Seconds within which the whole log is checked again, spread evenly. 0 is never. Default 86,400.
    pub within_s: u64,
    /// What the node does when the log is found wrong: `report` says so in logs, metrics and `GET /v1/audit/verify`; `unready` turns
    /// the node not ready as well. Default `report`.
    pub when_wrong: WhenWrong,
}

/// What a node does when the log is found wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum WhenWrong {
    Report,
    Unready,
}

/// Dropping what is sealed and past its realm's `retention_days`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retention {
    /// Whether nodes do it in the background; `counterfoil audit prune` does it at any time. Default false.
    pub enabled: bool,
    /// Folder of the evidence bundles that archive what is dropped, one for each run. Needed for pruning. Default: none.
    pub archive_dir: Option<PathBuf>,
    /// Seconds between runs. Default 86,400.
    pub interval_s: u64,
}

/// Keys of realm `default` to accept from the first start, so that scripts and charts need not read the output.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bootstrap {
    /// File with an application's key.
    pub application_key_file: Option<PathBuf>,
    /// File with an auditor's key.
    pub auditor_key_file: Option<PathBuf>,
    /// File with an operator's key.
    pub operator_key_file: Option<PathBuf>,
}

/// Logs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logging {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,sqlx=warn`. Default `info,sqlx=warn`.
    pub level: String,
    /// `text` or `json`. Default `text`.
    pub format: LogFormat,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: Server {
                listen: "127.0.0.1:8080".into(),
                workers: 0,
                max_body_bytes: 131_072,
                drain_s: 10,
                drain_delay_s: 0,
                docs: true,
                tls: None,
            },
            management: Management { listen: "127.0.0.1:9090".into() },
            console: ConsolePages { enabled: true, oidc: None },
            data_dir: "./data".into(),
            node: "node".into(),
            log: Log {
                url: None,
                url_file: None,
                owner_url: None,
                owner_url_file: None,
                queue: 4_096,
                batch: 512,
                append_timeout_ms: 4_000,
                deadline_ms: 5_000,
                connections: 8,
                require_synchronous_standby: false,
                shards: BTreeMap::new(),
            },
            keys: Keys { dir: None },
            view: View {
                url: "memory:".into(),
                url_file: None,
                memory_bytes: 0,
                beyond_budget: Beyond::Refuse,
                max_staleness_ms: 2_000,
                near_cache_bytes: 64 << 20,
                operation_timeout_ms: 250,
            },
            transient: Transient { url: "memory:".into(), url_file: None, memory_bytes: 0, minority: Minority::Serve },
            cluster: ClusterSection {
                transport: TransportKind::None,
                nodes: 0,
                keys_file: None,
                beat_ms: 250,
                lease_ms: 2_000,
                require_encrypted_link: false,
                require_peer_certificates: false,
                unicast: UnicastSection {
                    listen: vec!["0.0.0.0:7447".into()],
                    peers: Vec::new(),
                    plaintext: false,
                    ca_file: None,
                    certificate_file: None,
                    key_file: None,
                    crl_file: None,
                    allowed_names: Vec::new(),
                    verify_host: true,
                },
                partner: PartnerSection { copies: 1 },
                multicast: MulticastSection {
                    group: "239.255.77.46:7446".into(),
                    interface: None,
                    ttl: 1,
                    mtu: 1_500,
                    receive_buffer_bytes: 4 << 20,
                    rate_bytes: 250_000_000,
                },
                redis: RedisSection::default(),
            },
            anchor: Anchor { file: None, interval_s: 1 },
            verify: Verify { within_s: 86_400, when_wrong: WhenWrong::Report },
            anchors: Anchors { s3: None, tsa: None, witnesses: BTreeMap::new(), quorum: 0, witness_interval_s: 10 },
            retention: Retention { enabled: false, archive_dir: None, interval_s: 86_400 },
            sinks: BTreeMap::new(),
            realms: [("default".to_owned(), Realm { profile: Profile::Default, overrides: Overrides::default() })]
                .into(),
            bootstrap: Bootstrap::default(),
            soap: Soap::default(),
            logging: Logging { level: "info,sqlx=warn".into(), format: LogFormat::Text },
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A key is unknown, or a value is not what it must be.
    #[error("the configuration cannot be read: {0}")]
    Read(#[from] Box<figment::Error>),
    /// A realm is looser than its profile.
    #[error("realm {realm}: {looser}")]
    Looser {
        /// Which.
        realm: String,
        /// What, and by which clause it must not.
        looser: Looser,
    },
    /// A value that parses but cannot be.
    #[error("{key}: {why}")]
    Value {
        /// Which key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A file that a key names cannot be read.
    #[error("{key}: {path} cannot be read")]
    File {
        /// Which key.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Config {
    /// Reads the configuration: defaults < file < environment < flags.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn load<'a>(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (&'a str, String)>,
    ) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            figment = figment.merge(Toml::file_exact(file));
        }
        for (name, text) in environment {
            if let Some(path) = name.strip_prefix(PREFIX) {
                let key = path.to_ascii_lowercase().replace("__", ".");
                figment = figment.merge((key, value_of(&text)));
            }
        }
        for (key, text) in flags {
            figment = figment.merge((key, value_of(&text)));
        }
        let config: Self = figment.extract().map_err(Box::new)?;
        config.policies()?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.node.is_empty() || self.node.len() > 63 || !self.node.chars().all(plain) {
            let why = "must be 1 to 63 of a-z, 0-9 and '-'".into();
            return Err(ConfigError::Value { key: "node".into(), why });
        }
        for (key, zero) in [
            ("log.queue", self.log.queue == 0),
            ("log.batch", self.log.batch == 0),
            ("log.append_timeout_ms", self.log.append_timeout_ms == 0),
            ("log.deadline_ms", self.log.deadline_ms == 0),
            ("log.connections", self.log.connections == 0),
            ("anchor.interval_s", self.anchor.interval_s == 0),
            ("server.max_body_bytes", self.server.max_body_bytes == 0),
        ] {
            if zero {
                return Err(ConfigError::Value { key: key.into(), why: "must not be 0".into() });
            }
        }
        if self.transient.minority == Minority::Refuse {
            let lacking = [
                (self.cluster.nodes == 0, "cluster.nodes, to know what a minority is"),
                (self.cluster.transport == TransportKind::None, "cluster.transport, to see the others"),
            ];
            if let Some((_, what)) = lacking.into_iter().find(|(lacking, _)| *lacking) {
                return Err(ConfigError::Value {
                    key: "transient.minority".into(),
                    why: format!("refuse needs {what}"),
                });
            }
        }
        self.check_partners()?;
        shards::check(self)?;
        let wrong = |(key, why)| ConfigError::Value { key, why };
        if let Some(oidc) = &self.console.oidc {
            oidc.check(&self.realms).map_err(wrong)?;
        }
        self.soap.check(&self.realms).map_err(wrong)
    }

    /// A realm can be promised no more acknowledgements than there are copies to give them.
    fn check_partners(&self) -> Result<(), ConfigError> {
        let copies = self.cluster.partner.copies;
        if copies > COPIES {
            let why = format!("must be 0 to {COPIES}");
            return Err(ConfigError::Value { key: "cluster.partner.copies".into(), why });
        }
        for (name, realm) in &self.realms {
            let Some(asked) = realm.overrides.acknowledged_by.filter(|asked| *asked > 0) else { continue };
            let lacking = [
                (
                    realm.profile != Profile::Transient,
                    "is for profile transient: an entry is in the log before it is answered".into(),
                ),
                (self.cluster.transport != TransportKind::Partner, "needs cluster.transport = \"partner\"".into()),
                (
                    !matches!(self.transient_url()?.as_str(), "memory:" | "memory"),
                    "needs transient.url = \"memory:\"".into(),
                ),
                (asked > copies, format!("is more than cluster.partner.copies ({copies})")),
            ];
            if let Some((_, why)) = lacking.into_iter().find(|(lacking, _)| *lacking) {
                return Err(ConfigError::Value { key: format!("realms.{name}.acknowledged_by"), why });
            }
        }
        Ok(())
    }

    /// The realms and what each demands.
    ///
    /// # Errors
    /// [`ConfigError::Looser`] naming the clause, or [`ConfigError::Value`].
    pub(crate) fn policies(&self) -> Result<Vec<(RealmName, Profile, Policy)>, ConfigError> {
        let mut policies = Vec::new();
        for (name, realm) in &self.realms {
            let value = |why: String| ConfigError::Value { key: format!("realms.{name}"), why };
            let parsed: RealmName = name.parse().map_err(|failure| value(format!("{failure}")))?;
            if realm.profile == Profile::Transient {
                let promised = [
                    ("audited_reads", realm.overrides.audited_reads == Some(true)),
                    ("retention_days", realm.overrides.retention_days.is_some()),
                ];
                if let Some((key, _)) = promised.into_iter().find(|(_, promised)| *promised) {
                    let why = "a realm of profile transient keeps no log that could keep this".into();
                    return Err(ConfigError::Value { key: format!("realms.{name}.{key}"), why });
                }
            }
            let policy = Policy::tightened(realm.profile, &realm.overrides)
                .map_err(|looser| ConfigError::Looser { realm: name.clone(), looser })?;
            policies.push((parsed, realm.profile, policy));
        }
        if policies.is_empty() {
            return Err(ConfigError::Value { key: "realms".into(), why: "there must be at least one".into() });
        }
        Ok(policies)
    }

    /// URL of the log.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub(crate) fn log_url(&self) -> Result<String, ConfigError> {
        let given = secret("log.url_file", &self.log.url, &self.log.url_file)?;
        Ok(given.unwrap_or_else(|| format!("sqlite:{}", self.data_dir.join("log.db").display())))
    }

    /// URL of the owner of the log's schema.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub(crate) fn owner_url(&self) -> Result<String, ConfigError> {
        match secret("log.owner_url_file", &self.log.owner_url, &self.log.owner_url_file)? {
            Some(url) => Ok(url),
            None => self.log_url(),
        }
    }

    /// URL of the view.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub(crate) fn view_url(&self) -> Result<String, ConfigError> {
        let url = secret("view.url_file", &None, &self.view.url_file)?;
        Ok(url.unwrap_or_else(|| self.view.url.clone()))
    }

    /// URL of the store of transient sessions.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub(crate) fn transient_url(&self) -> Result<String, ConfigError> {
        let url = secret("transient.url_file", &None, &self.transient.url_file)?;
        Ok(url.unwrap_or_else(|| self.transient.url.clone()))
    }

    /// URL of the Redis that nodes talk through.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub(crate) fn cluster_redis_url(&self) -> Result<String, ConfigError> {
        match secret("cluster.redis.url_file", &self.cluster.redis.url, &self.cluster.redis.url_file)? {
            Some(url) => Ok(url),
            None => self.view_url(),
        }
    }

    /// Folder of the key files.
    pub(crate) fn keys_dir(&self) -> PathBuf {
        self.keys.dir.clone().unwrap_or_else(|| self.data_dir.join("keys"))
    }

    /// File of the outside checkpoint.
    pub(crate) fn anchor_file(&self) -> PathBuf {
        self.anchor.file.clone().unwrap_or_else(|| self.data_dir.join("checkpoint"))
    }

    /// Folder of the time stamps, whether there is an authority now or not.
    pub(crate) fn stamps_folder(&self) -> PathBuf {
        let given = self.anchors.tsa.as_ref().and_then(|tsa| tsa.folder.clone());
        given.unwrap_or_else(|| self.anchor_file().with_file_name("time-stamps"))
    }

    /// How long a commit may take.
    pub(crate) fn append_timeout(&self) -> Duration {
        Duration::from_millis(self.log.append_timeout_ms)
    }

    /// The configuration as it may be shown: passwords in URLs blotted out.
    #[must_use]
    pub(crate) fn redacted(&self) -> Self {
        let mut shown = self.clone();
        shown.log.url = shown.log.url.as_deref().map(blot);
        shown.log.owner_url = shown.log.owner_url.as_deref().map(blot);
        for shard in shown.log.shards.values_mut() {
            shard.url = shard.url.as_deref().map(blot);
            shard.owner_url = shard.owner_url.as_deref().map(blot);
        }
        shown.view.url = blot(&shown.view.url);
        shown.transient.url = blot(&shown.transient.url);
        shown.cluster.redis.url = shown.cluster.redis.url.as_deref().map(blot);
        shown
    }
}

/// A value as the environment or a flag gives it: what looks like a number or a list is one, all else is text.
fn value_of(text: &str) -> figment::value::Value {
    match text.parse::<figment::value::Value>() {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

/// A secret from its key, or from the file that another key names.
fn secret(key: &'static str, given: &Option<String>, file: &Option<PathBuf>) -> Result<Option<String>, ConfigError> {
    match (given, file) {
        (None, Some(path)) => match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(source) => Err(ConfigError::File { key, path: path.clone(), source }),
        },
        (Some(_), Some(_)) => {
            Err(ConfigError::Value { key: key.into(), why: "is given both as a value and as a file".into() })
        }
        (given, None) => Ok(given.clone()),
    }
}

/// A URL without its password.
pub(crate) fn blot(text: &str) -> String {
    match url::Url::parse(text) {
        Ok(mut url) if url.password().is_some() => {
            // Fails only for URLs that cannot have a password.
            let _had_one = url.set_password(Some("***"));
            blot_query(url.as_str())
        }
        Ok(_) => blot_query(text),
        // One with several hosts is none to the parser.
        Err(_) => match text.split_once("://") {
            Some((scheme, rest)) => match rest.rsplit_once('@') {
                Some((login, rest)) => {
                    let user = login.split_once(':').map_or("***", |(user, _)| user);
                    blot_query(&format!("{scheme}://{user}:***@{rest}"))
                }
                None => blot_query(text),
            },
            None => text.to_owned(),
        },
    }
}

/// The same of options that are passwords.
fn blot_query(url: &str) -> String {
    let Some((place, query)) = url.split_once('?') else { return url.to_owned() };
    let shown = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if name.contains("password") => format!("{name}=***"),
        _ => pair.to_owned(),
    });
    format!("{place}?{}", shown.collect::<Vec<_>>().join("&"))
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string_pretty(&self.redacted()).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_blotted_out_whatever_the_form_of_the_url() {
        for (url, shown) in [
            ("memory:", "memory:"),
            ("folder:/mnt/x", "folder:/mnt/x"),
            ("redis://me:hunter2@one:1/3", "redis://me:***@one:1/3"),
            ("redis+cluster://me:hunter2@one:1,two:2", "redis+cluster://me:***@one:1,two:2"),
            ("redis+cluster://one:1,two:2", "redis+cluster://one:1,two:2"),
            (
                "redis+sentinel://:hun@ter2@one:1,two:2/mine?sentinel_user=x&sentinel_password=hunter2",
                "redis+sentinel://:***@one:1,two:2/mine?sentinel_user=x&sentinel_password=***",
            ),
            (
                "redis+sentinel://one:1/mine?sentinel_password=hunter2",
                "redis+sentinel://one:1/mine?sentinel_password=***",
            ),
            ("postgres://me@db/x?password=hunter2", "postgres://me@db/x?password=***"),
        ] {
            assert_eq!(blot(url), shown);
        }
    }

    fn load(toml: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("counterfoil.toml");
        std::fs::write(&file, toml).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(Some(&file), environment, [])
    }

    #[test]
    fn environment_beats_file_beats_default() {
        let config = load(
            "[server]\nlisten = '0.0.0.0:1'\nworkers = 3",
            &[("COUNTERFOIL__SERVER__LISTEN", "127.0.0.1:0"), ("PATH", "/bin")],
        )
        .unwrap();
        assert_eq!(
            (config.server.listen.as_str(), config.server.workers, config.server.drain_s),
            ("127.0.0.1:0", 3, 10)
        );
    }

    #[test]
    fn unknown_keys_are_errors_wherever_they_stand() {
        for toml in ["x = 1", "[server]\nx = 1", "[realms.default]\nx = 1", "[soap]\npublic_url = 'x'"] {
            assert!(load(toml, &[]).is_err(), "{toml}");
        }
        assert!(load("", &[("COUNTERFOIL__SERVER__X", "1")]).is_err());
        assert!(load("", &[("COUNTERFOIL__REALMS__DEFAULT__X", "1")]).is_err());
    }

    #[test]
    fn a_realm_looser_than_its_profile_names_the_clause() {
        let refused = load("[realms.shop]\nprofile = 'pci_dss'\nidle_timeout_s = 901", &[]).unwrap_err().to_string();
        assert!(refused.contains("shop") && refused.contains("8.2.8"), "{refused}");
        let tighter = load("[realms.shop]\nprofile = 'pci_dss'\nidle_timeout_s = 60", &[]).unwrap();
        assert_eq!(tighter.policies().unwrap().len(), 2);
        assert!(load("[realms.x]\nprofile = 'transient'\nidle_timeout_s = 60", &[]).is_ok());
    }

    #[test]
    fn a_realm_without_a_log_promises_nothing_that_only_a_log_could_keep() {
        for (setting, key) in [("audited_reads = true", "audited_reads"), ("retention_days = 400", "retention_days")] {
            let refused = load(&format!("[realms.x]\nprofile = 'transient'\n{setting}"), &[]).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("realms.x.{key}: ")), "{refused}");
        }
        assert!(load("[realms.x]\nprofile = 'transient'\naudited_reads = false", &[]).is_ok());
        for cluster in ["transport = 'redis'", "nodes = 3"] {
            let refused = load(&format!("[transient]\nminority = 'refuse'\n[cluster]\n{cluster}"), &[]).unwrap_err();
            assert!(refused.to_string().starts_with("transient.minority: "), "{refused}");
        }
        assert!(load("[transient]\nminority = 'refuse'\n[cluster]\nnodes = 3\ntransport = 'redis'", &[]).is_ok());
    }

    #[test]
    fn no_more_acknowledgements_are_promised_than_there_are_partners() {
        let realm = |more: &str| format!("[realms.x]\nacknowledged_by = 2\n{more}");
        let key = "realms.x.acknowledged_by: ";
        for (wrong, why) in [
            (realm("[cluster]\ntransport = 'partner'\npartner.copies = 2"), "profile transient"),
            (realm("profile = 'transient'\n[cluster]\ntransport = 'unicast'\npartner.copies = 2"), "cluster.transport"),
            (realm("profile = 'transient'\n[cluster]\ntransport = 'partner'"), "cluster.partner.copies (1)"),
            (
                realm(
                    "profile = 'transient'\n[transient]\nurl = 'redis://x'\n[cluster]\ntransport = 'partner'\npartner.copies = 2",
                ),
                "transient.url",
            ),
        ] {
            let refused = load(&wrong, &[]).unwrap_err().to_string();
            assert!(refused.starts_with(key) && refused.contains(why), "{refused}");
        }
        let right =
            load(&realm("profile = 'transient'\n[cluster]\ntransport = 'partner'\npartner.copies = 2"), &[]).unwrap();
        let policies = right.policies().unwrap();
        assert!(policies.iter().any(|(name, _, policy)| name.as_str() == "x" && policy.acknowledged_by == 2));
        let refused = load("[cluster]\npartner.copies = 8", &[]).unwrap_err().to_string();
        assert!(refused.starts_with("cluster.partner.copies: "), "{refused}");
        assert!(load("[realms.x]\nacknowledged_by = 0", &[]).is_ok());
    }

    #[test]
    fn a_password_is_never_shown() {
        let config =
            load("[log]\nurl = 'postgres://u:hunter2@db/x'\n[cluster.redis]\nurl = 'redis://u:hunter2@r'\n[realms.x]\n[log.shards.x]\nrealms = ['x']\nurl = 'postgres://u:hunter2@db/y'\nowner_url = 'postgres://o:hunter2@db/y'", &[])
                .unwrap();
        assert!(!config.to_string().contains("hunter2"), "{config}");
    }

    #[test]
    fn every_sample_file_loads() {
        let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/samples");
        let mut seen = 0;
        for file in std::fs::read_dir(samples).unwrap().map(|entry| entry.unwrap().path()) {
            Config::load(Some(&file), [], []).unwrap_or_else(|failure| panic!("{}: {failure}", file.display()));
            seen += 1;
        }
        assert!(seen > 0);
    }

    #[test]
    fn the_schema_of_a_realm_names_every_override() {
        let schema = serde_json::to_value(schemars::schema_for!(Realm)).unwrap();
        let known = serde_json::to_value(Overrides::default()).unwrap();
        for key in known.as_object().unwrap().keys() {
            assert!(schema["properties"].get(key).is_some(), "{key} is missing from the schema");
        }
        assert_eq!(schema["properties"].as_object().unwrap().len(), known.as_object().unwrap().len() + 1);
    }
}
