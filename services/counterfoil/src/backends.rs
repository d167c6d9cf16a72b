//! From URLs to concrete stores.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use audit_log::{DeliveryCursors, LogStore};
use audit_log_postgres::{PostgresConfig, PostgresLog};
use audit_log_sqlite::{SqliteLog, SqliteLogOptions};
use cluster::{Incarnation, Transport};
use cluster_multicast::{MulticastConfig, MulticastTransport};
use cluster_postgres::{PostgresTransport, PostgresTransportConfig};
use cluster_redis::{RedisTransport, RedisTransportConfig};
use cluster_unicast::{UnicastConfig, UnicastTls, UnicastTransport};
use nonce_store::{MemoryNonces, NonceStore};
use sealing::{Keyring, sha256};
use session_model::Timestamp;
use session_view::{BeyondBudget, Budget, MemoryView, SessionView};
use session_view_folder::{FolderView, FolderViewConfig};
use session_view_redis::{RedisTransients, RedisTransientsConfig, RedisView, RedisViewConfig};

use transient_store::TransientStore;

use crate::config::{Beyond, Config, ConfigError, MulticastSection, OneLog, ShardName, TransportKind, blot};

type Failure = Box<dyn Error + Send + Sync>;

/// A log, and whether other machines may write it too.
pub(crate) struct OpenedLog {
    /// The log.
    pub store: Arc<dyn LogStore>,
    /// How far sinks have come, kept beside it.
    pub cursors: Arc<dyn DeliveryCursors>,
    /// Whether it is a server's, which other nodes may write.
    pub shared: bool,
    /// The nonces beside it.
    pub nonces: LogNonces,
}

/// The nonces beside a log.
pub(crate) enum LogNonces {
    /// None: no other node writes the log.
    Alone,
    /// None yet: the schema is from before.
    NotYet,
    /// For all nodes of the log.
    Shared(Arc<dyn NonceStore>),
}

/// A view.
pub(crate) struct OpenedView {
    /// The view.
    pub view: Arc<dyn SessionView>,
    /// Whether other nodes use it too.
    pub shared: bool,
    /// The nonces beside it, if it is shared.
    pub nonces: Option<Arc<dyn NonceStore>>,
}

fn bad(key: &str, url: &str, kinds: &str) -> Failure {
    let why = format!("{} is none of {kinds}", blot(url));
    ConfigError::Value { key: key.into(), why }.into()
}

fn postgres(config: &Config, url: String) -> PostgresConfig {
    PostgresConfig {
        url,
        connections: config.log.connections,
        // The server gives up a little before we stop waiting: what it is still doing then has an end.
        statement_timeout: config.append_timeout().mul_f64(0.9),
        application_name: format!("counterfoil {}", config.node),
        require_standby: config.log.require_synchronous_standby,
    }
}

/// Opens the log.
///
/// # Errors
/// If the URL is none, or the log cannot be opened.
pub(crate) async fn open_log(config: &Config) -> Result<OpenedLog, Failure> {
    let url = config.log_url()?;
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = Path::new(path.trim_start_matches("//"));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let store = Arc::new(SqliteLog::open(SqliteLogOptions::new(path)).await?);
        return Ok(OpenedLog {
            store: Arc::clone(&store) as _,
            cursors: store,
            shared: false,
            nonces: LogNonces::Alone,
        });
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        let store = Arc::new(PostgresLog::connect(postgres(config, url)).await?);
        let nonces = store.nonces().await?.map_or(LogNonces::NotYet, |nonces| LogNonces::Shared(Arc::new(nonces)));
        return Ok(OpenedLog { store: Arc::clone(&store) as _, cursors: store, shared: true, nonces });
    }
    Err(bad("log.url", &url, "sqlite:PATH, postgres://…"))
}

/// Brings the schemas of all logs up to date.
///
/// # Errors
/// If it cannot be done, for the first log with which that is so.
pub(crate) async fn migrate(config: &Config) -> Result<(), Failure> {
    config.check_places()?;
    for OneLog { name, config } in config.logs() {
        let migrated = migrate_one(&config).await;
        migrated.map_err(|failure| if name.is_first() { failure } else { of_shard(&name, &*failure) })?;
    }
    Ok(())
}

/// An error, with the log that it is about.
pub(crate) fn of_shard(name: &ShardName, failure: &(dyn Error + Send + Sync + 'static)) -> Failure {
    format!("shard {name}: {}", crate::causes(failure)).into()
}

/// Brings the schema of a PostgreSQL log up to date. The embedded log does that by itself whenever it is opened.
async fn migrate_one(config: &Config) -> Result<(), Failure> {
    let url = config.owner_url()?;
    if url.starts_with("sqlite:") {
        open_log(config).await?;
        return Ok(());
    }
    audit_log_postgres::migrate(&url).await?;
    Ok(())
}

/// Opens the view. `origin` tells deployments apart that share a Redis or a folder.
///
/// # Errors
/// If the URL is none.
pub(crate) async fn open_view(config: &Config, keyring: &Keyring, origin: &str) -> Result<OpenedView, Failure> {
    let url = config.view_url()?;
    let beyond = match config.view.beyond_budget {
        Beyond::Refuse => BeyondBudget::Refuse,
        Beyond::Evict => BeyondBudget::Evict,
    };
    if url == "memory:" || url == "memory" {
        let bytes = if config.view.memory_bytes == 0 { usize::MAX } else { config.view.memory_bytes };
        let view = Arc::new(MemoryView::new(Budget { bytes, beyond }));
        return Ok(OpenedView { view, shared: false, nonces: None });
    }
    let namespace = namespace("cf", keyring, origin);
    if let Some(path) = url.strip_prefix("folder:") {
        let path = Path::new(path.strip_prefix("//").unwrap_or(path));
        let view = FolderView::open(FolderViewConfig {
            operation_timeout: Duration::from_millis(config.view.operation_timeout_ms),
            near_cache_bytes: config.view.near_cache_bytes,
            max_staleness: Duration::from_millis(config.view.max_staleness_ms),
            ..FolderViewConfig::new(path, namespace, *keyring.view_key())
        });
        return Ok(OpenedView { view: Arc::new(view.await?), shared: true, nonces: None });
    }
    let is_redis = ["redis://", "rediss://", "unix://", "redis+", "rediss+"].iter().any(|kind| url.starts_with(kind));
    if is_redis {
        let view = RedisView::connect(RedisViewConfig {
            operation_timeout: Duration::from_millis(config.view.operation_timeout_ms),
            near_cache_bytes: config.view.near_cache_bytes,
            max_staleness: Duration::from_millis(config.view.max_staleness_ms),
            ..RedisViewConfig::new(url, namespace, *keyring.view_key())
        });
        let view = view.await?;
        let nonces: Arc<dyn NonceStore> = Arc::new(view.nonces());
        return Ok(OpenedView { view: Arc::new(view), shared: true, nonces: Some(nonces) });
    }
    Err(bad(
        "view.url",
        &url,
        "memory:, redis://…, redis+sentinel://…, redis+cluster://… (rediss… for TLS), folder:/PATH",
    ))
}

/// What tells deployments apart, and values under one key of the view from those under the next.
fn namespace(kind: &str, keyring: &Keyring, origin: &str) -> String {
    let deployment = sha256(origin.as_bytes()).to_string();
    match keyring.view_generation() {
        0 => format!("{kind}-{deployment:.16}"),
        generation => format!("{kind}-{deployment:.16}-{generation}"),
    }
}

/// Opens the Redis that keeps transient sessions. `origin` tells deployments apart that share it.
///
/// # Errors
/// If the URL is none.
pub(crate) async fn open_transients(
    config: &Config,
    url: &str,
    origin: &str,
    keyring: &Keyring,
) -> Result<Arc<dyn TransientStore>, Failure> {
    const KINDS: &str = "memory:, redis://…, redis+sentinel://… (rediss… for TLS), unix://…";
    let redis = ["redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://"];
    if !redis.iter().any(|kind| url.starts_with(kind)) {
        return Err(bad("transient.url", url, KINDS));
    }
    let settings = RedisTransientsConfig {
        url: url.to_owned(),
        namespace: namespace("cft", keyring, origin),
        sealing_key: *keyring.view_key(),
        operation_timeout: Duration::from_millis(config.view.operation_timeout_ms),
    };
    Ok(Arc::new(RedisTransients::connect(settings).await?))
}

/// Nonces that a process which is alone remembers: a thousand a second for the six minutes that a message may be replayed.
const NONCES: usize = 400_000;

/// The memory of nonces, at this time. Nodes that share a log must share it, or a message that one has seen could be replayed to
/// another: it is in the Redis of the view, if the view is there; else beside a log that is shared; else in this process.
///
/// # Errors
/// If there are consumers, and the shared log is of a schema without nonces.
pub(crate) fn nonces_of(
    config: &Config,
    of_view: Option<Arc<dyn NonceStore>>,
    of_log: LogNonces,
    now: Timestamp,
) -> Result<Arc<dyn NonceStore>, Failure> {
    match (of_view, of_log) {
        (Some(nonces), _) | (None, LogNonces::Shared(nonces)) => Ok(nonces),
        (None, LogNonces::NotYet) if !config.soap.consumers.is_empty() => {
            Err("soap.consumers needs a table that the log's schema does not have yet: run `counterfoil migrate` as its owner".into())
        }
        // Nobody has a secret to make a nonce with.
        (None, LogNonces::NotYet | LogNonces::Alone) => Ok(Arc::new(MemoryNonces::new(now, NONCES))),
    }
}

/// Opens the transport that the configuration names; `None` for none. `namespace` tells deployments apart that share a medium.
///
/// # Errors
/// If the configuration is none that it can work with.
pub(crate) async fn open_transport(
    config: &Config,
    namespace: &str,
    life: Incarnation,
) -> Result<Option<Arc<dyn Transport>>, Failure> {
    let section = &config.cluster;
    Ok(match section.transport {
        TransportKind::None => None,
        TransportKind::Redis => {
            let url = config.cluster_redis_url()?;
            if !["redis://", "rediss://", "unix://"].iter().any(|scheme| url.starts_with(scheme)) {
                return Err(bad("cluster.redis.url", &url, "redis://…, rediss://…, unix://…"));
            }
            let settings = RedisTransportConfig { url, namespace: namespace.to_owned() };
            Some(Arc::new(RedisTransport::open(settings, life)?))
        }
        TransportKind::Multicast => {
            let MulticastSection { group, interface, ttl, mtu, receive_buffer_bytes, rate_bytes } = &section.multicast;
            let group = group.parse().map_err(|_| bad("cluster.multicast.group", group, "an address and a port"))?;
            let settings = MulticastConfig {
                interface: interface.as_deref().and_then(|interface| interface.parse().ok()),
                ttl: *ttl,
                mtu: *mtu,
                receive_buffer: *receive_buffer_bytes,
                rate: *rate_bytes,
                ..MulticastConfig::new(group)
            };
            Some(Arc::new(MulticastTransport::open(settings, life)?))
        }
        TransportKind::Unicast => Some(Arc::new(UnicastTransport::open(unicast(config, namespace)?, life).await?)),
        // The same links: what is new is who holds what.
        TransportKind::Partner => {
            let settings = UnicastConfig { name: "partner", ..unicast(config, namespace)? };
            Some(Arc::new(UnicastTransport::open(settings, life).await?))
        }
        TransportKind::Postgres => {
            let url = config.log_url()?;
            if !url.starts_with("postgres") {
                return Err(bad("cluster.transport", "postgres", "those that a log in SQLite allows"));
            }
            let application_name = format!("counterfoil {} cluster", config.node);
            let settings = PostgresTransportConfig { url, namespace: namespace.to_owned(), application_name };
            Some(Arc::new(PostgresTransport::open(settings, life)?))
        }
    })
}

fn unicast(config: &Config, namespace: &str) -> Result<UnicastConfig, Failure> {
    let section = &config.cluster.unicast;
    let file = |key: &str, file: &Option<PathBuf>| {
        let missing = || ConfigError::Value {
            key: format!("cluster.unicast.{key}"),
            why: "is missing, without plaintext".into(),
        };
        file.clone().ok_or_else(missing)
    };
    let tls = if section.plaintext {
        None
    } else {
        Some(UnicastTls {
            ca: file("ca_file", &section.ca_file)?,
            certificate: file("certificate_file", &section.certificate_file)?,
            key: file("key_file", &section.key_file)?,
            crl: section.crl_file.clone(),
            allowed_names: Some(section.allowed_names.clone()).filter(|names| !names.is_empty()),
            verify_host: section.verify_host,
            watch: Duration::from_secs(5),
        })
    };
    Ok(UnicastConfig {
        peers: section.peers.clone(),
        tls,
        plaintext: section.plaintext,
        lease: Duration::from_millis(config.cluster.lease_ms),
        ..UnicastConfig::new(namespace, section.listen.clone())
    })
}
