//! Realms that keep no log: from configuration to their sessions, and what operators are shown of them.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cluster::Cluster;
use sealing::Keyring;
use session_model::{Policy, Profile, RealmName};
use session_service::{SessionService, TransientConfig, TransientSessions};
use telemetry::Metrics;
use tracing::warn;
use transient_partner::{BESIDE_A_STATE, PartnerConfig, PartnerTransients};
use transient_store::{MemoryTransients, TransientStore};

use crate::config::{Config, ConfigError, Minority, TransportKind};

type Failure = Box<dyn Error + Send + Sync>;

/// The sessions of realms that keep no log, while the service runs.
pub(crate) struct Transients {
    sessions: Arc<TransientSessions>,
    /// How this node keeps them together with others.
    kept: Kept,
    /// The largest of the bounds on attributes.
    attribute_bytes: usize,
}

/// Where the sessions are.
enum Kept {
    /// In a store that the nodes share.
    Shared,
    /// In this node, which holds all.
    Whole(Arc<MemoryTransients>),
    /// In this node as far as it is an owner or a partner.
    Partners(Arc<PartnerTransients>),
}

/// How long a request goes on beyond the moment at which a node that has fallen silent is seen to have.
const BEYOND_LEASE: Duration = Duration::from_millis(500);

/// Bytes that a session may take beside its attributes as nodes send it to each other: names, agents and methods as long as they may be, digests
/// of the tokens it has had.
const BESIDE_ATTRIBUTES: usize = 16 << 10;

fn refused(key: &str, why: impl Into<String>) -> Failure {
    ConfigError::Value { key: key.into(), why: why.into() }.into()
}

/// Opens what the configuration names; `None` if every realm keeps a log.
///
/// # Errors
/// If it cannot be.
pub(crate) async fn open(
    config: &Config,
    service: &SessionService,
    keyring: &Keyring,
    origin: &str,
    log_shared: bool,
) -> Result<Option<Transients>, Failure> {
    let realms: HashMap<RealmName, Policy> = config
        .policies()?
        .into_iter()
        .filter(|(_, profile, _)| *profile == Profile::Transient)
        .map(|(realm, _, policy)| (realm, policy))
        .collect();
    if realms.is_empty() {
        return Ok(None);
    }
    let attribute_bytes = realms.values().map(|policy| policy.limits.bytes).max().unwrap_or_default();
    let url = config.transient_url()?;
    let (store, kept): (Arc<dyn TransientStore>, _) = if url != "memory:" && url != "memory" {
        (crate::backends::open_transients(config, &url, origin, keyring).await?, Kept::Shared)
    } else {
        let replica = Arc::new(MemoryTransients::new(config.transient.memory_bytes));
        if config.cluster.transport == TransportKind::Partner {
            let clock = Arc::clone(service.clock());
            let patience = Duration::from_millis(config.cluster.lease_ms) + BEYOND_LEASE;
            let settings = PartnerConfig { patience, now: Arc::new(move || clock.now()) };
            let partners = PartnerTransients::new(replica, settings);
            (Arc::clone(&partners) as _, Kept::Partners(partners))
        } else {
            (Arc::clone(&replica) as _, Kept::Whole(replica))
        }
    };
    let in_memory = !matches!(kept, Kept::Shared);
    let majority_of = match config.transient.minority {
        Minority::Serve => None,
        Minority::Refuse if !in_memory => {
            return Err(refused(
                "transient.minority",
                "refuse is for transient.url = \"memory:\": one Redis has no minority",
            ));
        }
        Minority::Refuse => Some(config.cluster.nodes),
    };
    if in_memory && log_shared && config.cluster.transport == TransportKind::None {
        warn!(
            "other nodes of this log will not know the transient sessions of this one: set cluster.transport, or transient.url to a Redis"
        );
    }
    let settings = TransientConfig { realms, deadline: Duration::from_millis(config.log.deadline_ms), majority_of };
    let sessions = TransientSessions::start(store, keyring.clone(), Arc::clone(service.clock()), settings)?;
    Ok(Some(Transients { sessions, kept, attribute_bytes }))
}

impl Transients {
    /// What the mouths ask.
    pub(crate) fn sessions(&self) -> Arc<TransientSessions> {
        Arc::clone(&self.sessions)
    }

    /// Brings what this node holds together with what the others of its cluster do, and waits for theirs.
    ///
    /// # Errors
    /// If the transport cannot carry sessions.
    pub(crate) async fn join(&self, cluster: &Arc<Cluster>) -> Result<(), Failure> {
        let most = match &self.kept {
            Kept::Shared => return Ok(()),
            Kept::Whole(_) => cluster.max_message(),
            Kept::Partners(_) => cluster.max_answer().saturating_sub(BESIDE_A_STATE),
        };
        let can = cluster.capabilities();
        if !can.records || most < self.attribute_bytes + BESIDE_ATTRIBUTES {
            let why = format!(
                "{} carries messages of {most} bytes, and a transient session may take more: use unicast or redis, or transient.url with a Redis",
                can.name
            );
            return Err(refused("cluster.transport", why));
        }
        match &self.kept {
            Kept::Shared => {}
            Kept::Whole(replica) => {
                self.sessions.join(Arc::clone(cluster), Arc::clone(replica));
                self.sessions.settled().await;
            }
            Kept::Partners(partners) => {
                partners.join(Arc::clone(cluster));
                partners.settled().await;
            }
        }
        Ok(())
    }

    /// Shows them as metrics.
    pub(crate) fn show(&self, metrics: &Metrics) {
        let gauge = |name, unit, read: fn(&TransientSessions) -> f64| {
            let sessions = Arc::clone(&self.sessions);
            metrics.gauges().gauge(name, unit, move || read(&sessions));
        };
        gauge("transient_store_up", "", |sessions| f64::from(u8::from(sessions.status().available)));
        gauge("transient_sessions_held", "", |sessions| sessions.status().held as f64);
        gauge("transient_memory", "By", |sessions| sessions.status().bytes as f64);
        gauge("transient_sessions_expired", "", |sessions| sessions.counts().expired as f64);
        gauge("transient_changes_lost", "", |sessions| sessions.counts().lost as f64);
        if let Kept::Partners(partners) = &self.kept {
            let partners = Arc::clone(partners);
            metrics.gauges().gauge("transient_share_settled", "", move || f64::from(u8::from(partners.is_settled())));
        }
        gauge("transient_requests_refused_alone", "", |sessions| sessions.counts().alone as f64);
    }

    /// Ends its tasks.
    pub(crate) fn close(&self) {
        self.sessions.close();
        if let Kept::Partners(partners) = &self.kept {
            partners.close();
        }
    }
}
