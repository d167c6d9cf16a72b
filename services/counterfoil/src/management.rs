//! The management port: liveness without dependencies, honest readiness, metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::cluster::Cluster;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use session_service::{Follower, RebuildState, SessionService};
use session_view::SessionView;
use telemetry::Metrics;
use tracing::error;

use crate::anchors::{AnchorsReadiness, AnchorsView};
use crate::cluster::ClusterStatus;
use crate::verification::Verification;

/// What the management port looks at.
#[derive(Clone)]
pub(crate) struct Health {
    /// The service.
    pub service: Arc<SessionService>,
    /// The view.
    pub view: Arc<dyn SessionView>,
    /// Keeps the view true to the log.
    pub follower: Arc<Follower>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Set when the service begins to stop.
    pub stopping: Arc<AtomicBool>,
    /// Checks the log.
    pub verification: Arc<Verification>,
    /// Whether a node whose log was found wrong is not ready.
    pub unready_when_wrong: bool,
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
    rebuild: &'static str,
    rebuild_seconds: f64,
    rebuild_entries: u64,
}

impl Health {
    fn readiness(&self) -> Readiness {
        let (reflects, size) = self.service.progress();
        let status = self.view.status();
        let follower = self.follower.status();
        let readable = self.service.log_silence() < LOG_SILENCE;
        let writable = self.service.is_available();
        let stopping = self.stopping.load(Ordering::Relaxed);
        let found_wrong = self.verification.is_wrong();
        let anchors = self.anchors.readiness();
        let distrusted = anchors.contradicted || found_wrong && self.unready_when_wrong;
        Readiness {
            // A view out of reach does not count: reads fall back to the log, and writes go on.
            ready: readable && writable && !stopping && !distrusted,
            stopping,
            log: LogReadiness { readable, writable, size: size.0, waiting: self.service.waiting() },
            view: ViewReadiness {
                kind: status.kind,
                available: status.available,
                held: status.held,
                bytes: status.bytes,
                reflects: reflects.0,
                rebuild: match follower.rebuild {
                    RebuildState::Running => "running",
                    RebuildState::Complete => "complete",
                },
                rebuild_seconds: follower.rebuild_seconds,
                rebuild_entries: follower.rebuild_entries,
            },
            found_wrong,
            anchors,
            cluster: None,
        }
    }

    fn cluster_status(&self) -> Option<ClusterStatus> {
        let Clustered { cluster, node, expected } = self.cluster.as_ref()?;
        Some(ClusterStatus::of(cluster, node, *expected, self.service.progress().1))
    }

    /// Shows what the service is like as gauges.
    pub(crate) fn show(&self) {
        let gauge = |name, unit, read: fn(&Readiness) -> f64| {
            let health = self.clone();
            // The gauge must not keep the metrics alive that keep the gauge.
            let metrics = Arc::downgrade(&health.metrics);
            let (service, view, follower, stopping) = (health.service, health.view, health.follower, health.stopping);
            let (verification, unready_when_wrong) = (health.verification, health.unready_when_wrong);
            let anchors = health.anchors;
            self.metrics.gauge(name, unit, move || {
                metrics.upgrade().map_or(0.0, |metrics| {
                    let health = Health {
                        service: Arc::clone(&service),
                        view: Arc::clone(&view),
                        follower: Arc::clone(&follower),
                        stopping: Arc::clone(&stopping),
                        verification: Arc::clone(&verification),
                        unready_when_wrong,
                        anchors: anchors.clone(),
                        cluster: None,
                        metrics,
                    };
                    read(&health.readiness())
                })
            });
        };
        gauge("audit_log_size", "", |now| now.log.size as f64);
        gauge("audit_log_up", "", |now| f64::from(u8::from(now.log.readable && now.log.writable)));
        gauge("audit_queue_waiting", "", |now| now.log.waiting as f64);
        gauge("view_up", "", |now| f64::from(u8::from(now.view.available)));
        gauge("view_sessions_held", "", |now| now.view.held as f64);
        gauge("view_memory", "By", |now| now.view.bytes as f64);
        gauge("view_entries_behind", "", |now| now.log.size.saturating_sub(now.view.reflects) as f64);
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
    let readiness = health.readiness();
    let mut response = if readiness.ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    if request.query_string().split('&').any(|word| word == "verbose" || word.starts_with("verbose=")) {
        return response.json(Readiness { cluster: health.cluster_status(), ..readiness });
    }
    response.body(if readiness.ready { "ok\n" } else { "not ready\n" })
}

async fn cluster(health: web::Data<Health>) -> HttpResponse {
    match health.cluster_status() {
        Some(status) => HttpResponse::Ok().json(status),
        None => HttpResponse::NotFound().body("this node is in no cluster\n"),
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
