//! The management port: liveness without dependencies, honest readiness, metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::cluster::Cluster;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use session_service::{Distrust, Follower, RebuildState, SessionService};
use session_view::SessionView;
use telemetry::{Gauges, Metrics};
use tracing::error;

use crate::anchors::{AnchorsReadiness, AnchorsView};
use crate::cluster::ClusterStatus;
use crate::config::ShardName;
use crate::verification::Verification;

/// What the management port looks at.
#[derive(Clone)]
pub(crate) struct Health {
    /// Each log, the first before the others.
    pub shards: Arc<[ShardHealth]>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Set when the service begins to stop.
    pub stopping: Arc<AtomicBool>,
    /// Whether a node whose log was found wrong is not ready.
    pub unready_when_wrong: bool,
}

/// What it looks at of one log.
#[derive(Clone)]
pub(crate) struct ShardHealth {
    /// Its name.
    pub name: ShardName,
    /// The service.
    pub service: Arc<SessionService>,
    /// The view.
    pub view: Arc<dyn SessionView>,
    /// Keeps the view true to the log.
    pub follower: Arc<Follower>,
    /// Checks the log.
    pub verification: Arc<Verification>,
    /// Checkpoints outside the database.
    pub anchors: AnchorsView,
    /// The cluster, if this node is in one.
    pub cluster: Option<Clustered>,
}

/// The cluster that a node is in, and what the node is called there.
#[derive(Clone)]
pub(crate) struct Clustered {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Name of this node.
    pub node: String,
    /// How many nodes there should be; 0 if that is not known.
    pub expected: usize,
}

/// How long the log may have been out of reach before the node is not ready.
const LOG_SILENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    stopping: bool,
    /// The log, where there is one.
    #[serde(flatten)]
    only: Option<ShardReadiness>,
    /// The logs by name, where there is more than one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    shards: BTreeMap<String, NamedReadiness>,
}

#[derive(Debug, Serialize)]
struct NamedReadiness {
    /// Whether what lives in it can be served.
    ready: bool,
    #[serde(flatten)]
    shard: ShardReadiness,
}

#[derive(Debug, Serialize)]
struct ShardReadiness {
    log: LogReadiness,
    view: ViewReadiness,
    /// Whether the last check of the whole log found it wrong.
    found_wrong: bool,
    anchors: AnchorsReadiness,
    /// Being alone does not make a node unready: the log decides what is right, not the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterStatus>,
}

#[derive(Debug, Serialize)]
struct LogReadiness {
    /// Whether it was reached lately.
    readable: bool,
    /// Whether the last append succeeded.
    writable: bool,
    size: u64,
    waiting: usize,
}

#[derive(Debug, Serialize)]
struct ViewReadiness {
    kind: &'static str,
    available: bool,
    held: usize,
    bytes: usize,
    /// Entries below this index are reflected.
    reflects: u64,
    /// Why what it holds is not gone by, and sessions are read from the log: `losses`, `incomplete` or `stale`.
    in_doubt: Option<&'static str>,
    /// How long ago it reflected the whole log for certain.
    staleness_seconds: Option<f64>,
    rebuild: &'static str,
    rebuild_seconds: f64,
    rebuild_entries: u64,
}

impl ShardHealth {
    fn readiness(&self) -> ShardReadiness {
        let (reflects, size) = self.service.progress();
        let status = self.view.status();
        let follower = self.follower.status();
        ShardReadiness {
            log: LogReadiness {
                readable: self.service.log_silence() < LOG_SILENCE,
                writable: self.service.is_available(),
                size: size.0,
                waiting: self.service.waiting(),
            },
            view: ViewReadiness {
                kind: status.kind,
                available: status.available,
                held: status.held,
                bytes: status.bytes,
                reflects: reflects.0,
                in_doubt: self.service.distrust().map(Distrust::name),
                staleness_seconds: self.service.staleness().map(|staleness| staleness.as_secs_f64()),
                rebuild: match follower.rebuild {
                    RebuildState::Running => "running",
                    RebuildState::Complete => "complete",
                },
                rebuild_seconds: follower.rebuild_seconds,
                rebuild_entries: follower.rebuild_entries,
            },
            found_wrong: self.verification.is_wrong(),
            anchors: self.anchors.readiness(),
            cluster: None,
        }
    }

    fn cluster_status(&self) -> Option<ClusterStatus> {
        let Clustered { cluster, node, expected } = self.cluster.as_ref()?;
        Some(ClusterStatus::of(cluster, node, *expected, self.service.progress().1))
    }

    /// Shows what the log and its view are like as gauges.
    pub(crate) fn show(&self, gauges: &Gauges<'_>) {
        let gauge = |name, unit, read: fn(&ShardReadiness) -> f64| {
            let health = self.clone();
            gauges.gauge(name, unit, move || read(&health.readiness()));
        };
        gauge("audit_log_size", "", |now| now.log.size as f64);
        gauge("audit_log_up", "", |now| f64::from(u8::from(now.log.is_up())));
        gauge("audit_queue_waiting", "", |now| now.log.waiting as f64);
        let service = Arc::clone(&self.service);
        gauges.counts("audit_contended_batches", "outcome", move || {
            let (lost, turns) = service.rivalry();
            vec![("lost", lost), ("in_turn", turns)]
        });
        gauge("view_up", "", |now| f64::from(u8::from(now.view.available)));
        gauge("view_sessions_held", "", |now| now.view.held as f64);
        gauge("view_memory", "By", |now| now.view.bytes as f64);
        gauge("view_entries_behind", "", |now| now.log.size.saturating_sub(now.view.reflects) as f64);
        let service = Arc::clone(&self.service);
        gauges.gauges("view_in_doubt", "", "reason", move || {
            let now = service.distrust();
            Distrust::ALL.map(|why| (why.name().to_owned(), f64::from(u8::from(now == Some(why))))).into()
        });
        let service = Arc::clone(&self.service);
        gauges.counts("session_reads_from_log", "reason", move || {
            service.reads_from_log().map(|(why, count)| (why.name(), count)).collect()
        });
    }
}

impl LogReadiness {
    /// A view out of reach does not count: reads fall back to the log, and writes go on.
    const fn is_up(&self) -> bool {
        self.readable && self.writable
    }
}

impl Health {
    /// Ready is who can serve a log at least: where another is out of reach its realms are answered with 503, and to be sent elsewhere would
    /// not help them, but would harm the others. Who has a log that was found wrong is not ready at all.
    fn readiness(&self, verbose: bool) -> Readiness {
        let stopping = self.stopping.load(Ordering::Relaxed);
        let (mut trusted, mut up) = (true, false);
        let mut named = Vec::new();
        for shard in &*self.shards {
            let mut now = shard.readiness();
            let distrusted = now.anchors.contradicted || now.found_wrong && self.unready_when_wrong;
            let ready = now.log.is_up() && !distrusted;
            (trusted, up) = (trusted && !distrusted, up || ready);
            now.cluster = verbose.then(|| shard.cluster_status()).flatten();
            named.push((shard.name.to_string(), NamedReadiness { ready, shard: now }));
        }
        let alone = named.len() == 1;
        let only = if alone { named.pop().map(|(_, named)| named.shard) } else { None };
        Readiness { ready: trusted && up && !stopping, stopping, only, shards: named.into_iter().collect() }
    }
}

/// Adds the routes.
pub(crate) fn configure(config: &mut web::ServiceConfig) {
    config
        .route("/livez", web::get().to(|| async { "ok\n" }))
        // The port opens after everything has started.
        .route("/startupz", web::get().to(|| async { "ok\n" }))
        .route("/readyz", web::get().to(readyz))
        .route("/cluster", web::get().to(cluster))
        .route("/metrics", web::get().to(metrics));
}

async fn readyz(health: web::Data<Health>, request: HttpRequest) -> HttpResponse {
    let verbose = request.query_string().split('&').any(|word| word == "verbose" || word.starts_with("verbose="));
    let readiness = health.readiness(verbose);
    let mut response = if readiness.ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    if verbose {
        return response.json(readiness);
    }
    let down: Vec<&str> = readiness.shards.iter().filter(|(_, shard)| !shard.ready).map(|(name, _)| &**name).collect();
    let state = if readiness.ready { "ok" } else { "not ready" };
    response.body(if down.is_empty() { format!("{state}\n") } else { format!("{state}; down: {}\n", down.join(" ")) })
}

/// The cluster of the first log, or of the one that `shard` names.
async fn cluster(health: web::Data<Health>, request: HttpRequest) -> HttpResponse {
    let wanted = request.query_string().split('&').find_map(|word| word.strip_prefix("shard="));
    let shard = health.shards.iter().find(|shard| wanted.is_none_or(|wanted| shard.name.as_str() == wanted));
    match shard.and_then(ShardHealth::cluster_status) {
        Some(status) => HttpResponse::Ok().json(status),
        None => HttpResponse::NotFound().body("this node is in no such cluster\n"),
    }
}

async fn metrics(health: web::Data<Health>) -> HttpResponse {
    match health.metrics.encode() {
        Ok(text) => HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text),
        Err(failure) => {
            error!(%failure, "metrics cannot be shown");
            HttpResponse::InternalServerError().finish()
        }
    }
}
