//! `counterfoil serve`: the composition root, from configuration to an orderly end.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use access::{ApiKey, Keyholders};
use actix_web::dev::{Server, Service as _};
use actix_web::{App, HttpServer, web};
use api_audit::{AuditApi, PublishedKey, ReadRecorder};
use api_http::{Gate, Problem};
use api_rest::{Observed, RestApi};
use api_soap::SoapApi;
use async_trait::async_trait;
use audit_log::{GroupCommitConfig, LogIdentity, LogReader, LogStore};
use nonce_store::NonceStore;
use session_model::{Action, Detail, Outcome, Policy, RealmName, Role, Timestamp};
use session_service::{
    Caller, Clock, Follower, LogClock, Parts, Reaper, Record, ServiceConfig, ServiceError, SessionService,
};
use session_view::SessionView;
use telemetry::Metrics;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{error, info, warn};

use crate::anchor::Anchor;
use crate::backends::{LogNonces, OpenedView, nonces_of, open_log, open_view};
use crate::config::{Config, LogFormat};
use crate::key_commands::credential;
use crate::key_files::KeyFiles;
use crate::management::{self, Health};
use crate::soap::KnownConsumers;
use crate::tls::{acceptor, note_certificate};

type Failure = Box<dyn Error + Send + Sync>;

/// The machine's clocks: the one place that reads them.
#[derive(Debug)]
struct MachineClock {
    start: Instant,
}

impl Clock for MachineClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn wall(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    fn monotonic_micros(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX)
    }
}

/// Log, keys and realms: what every command that writes needs.
pub(crate) struct Core {
    /// The log, checked against itself and the outside checkpoint.
    pub log: Arc<dyn LogStore>,
    /// Whether other machines may write it too.
    pub shared: bool,
    /// The nonces beside it.
    pub nonces: LogNonces,
    /// The keys.
    pub keys: KeyFiles,
    /// The outside checkpoint.
    pub anchor: Anchor,
    /// The realms and what each demands.
    pub policies: HashMap<RealmName, Policy>,
}

/// Opens log and keys, and refuses a log that is not what it was.
///
/// # Errors
/// Why it must not be used.
pub(crate) async fn open_core(config: &Config) -> Result<Core, Failure> {
    std::fs::create_dir_all(&config.data_dir)?;
    let opened = open_log(config).await?;
    let size = opened.store.head().await?.size();
    let keys = KeyFiles::open(&config.keys_dir(), size)?;
    let anchor = Anchor::new(config.anchor_file());
    let reader: Arc<dyn LogReader> = Arc::clone(&opened.store) as _;
    let head = anchor.check(&*reader, keys.log_key.verifier()).await?;
    let policies = config.policies()?.into_iter().map(|(realm, _, policy)| (realm, policy)).collect();
    let clock = MachineClock { start: Instant::now() };
    opened.store.prepare(head.size(), clock.wall()).await?;
    Ok(Core { log: opened.store, shared: opened.shared, nonces: opened.nonces, keys, anchor, policies })
}

/// The service on a core and a view.
pub(crate) fn service_of(
    core: Core,
    config: &Config,
    view: Arc<dyn SessionView>,
    view_shared: bool,
) -> Arc<SessionService> {
    let clock = Arc::new(LogClock::new(Arc::new(MachineClock { start: Instant::now() })));
    let bound = Duration::from_millis(config.view.max_staleness_ms);
    SessionService::start(
        Parts {
            log: core.log,
            view,
            keyring: core.keys.keyring,
            identity: LogIdentity { origin: core.keys.origin, signers: vec![Arc::new(core.keys.log_key)] },
            clock,
        },
        ServiceConfig {
            node: config.node.clone(),
            realms: core.policies,
            deadline: Duration::from_millis(config.log.deadline_ms),
            // Only where others write the log, and tell this process's memory nothing, can silence hide an end.
            max_staleness: (core.shared && !view_shared).then_some(bound),
            group_commit: GroupCommitConfig {
                queue: config.log.queue,
                batch: config.log.batch,
                append_timeout: config.append_timeout(),
            },
        },
    )
}

/// Runs the service until it is told to stop.
///
/// # Errors
/// Why it cannot start.
pub(crate) async fn serve(config: Config) -> Result<(), Failure> {
    let format = match config.logging.format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    let no_color = std::env::var_os("NO_COLOR").is_some();
    telemetry::init_logs(&config.logging.level, format, no_color)?;
    let mut core = open_core(&config).await?;
    let OpenedView { view, shared: view_shared, nonces } =
        open_view(&config, &core.keys.keyring, &core.keys.origin).await?;
    let log = Arc::clone(&core.log);
    let anchor = core.anchor.clone();
    let origin: Arc<str> = core.keys.origin.as_str().into();
    let vkey = core.keys.log_key.verifier().to_string();
    let rates = core.policies.iter().map(|(realm, policy)| (realm.clone(), policy.requests_per_second)).collect();
    let consumers = crate::soap::consumers(&config, &core.keys.keyring, &core.policies)?;
    let now = MachineClock { start: Instant::now() }.wall();
    let beside_log = std::mem::replace(&mut core.nonces, LogNonces::Alone);
    let nonces = nonces_of(&config, nonces, beside_log, now)?;
    let first_realm = core.policies.keys().min().cloned().ok_or("there is no realm")?;
    let service = service_of(core, &config, Arc::clone(&view), view_shared);

    let minted = bootstrap(&config, &service, &*log).await?;
    let holders = Arc::new(Keyholders::new(rates));
    holders.refresh(&*log).await?;
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION"))?);
    let started = event(Action::ServiceStarted, [("program", env!("CARGO_PKG_VERSION").to_owned())]);
    service.record(&service.node_caller(&first_realm), started).await?;

    let follower = Arc::new(Follower::start(Arc::clone(&service)));
    let reaper = Reaper::start(Arc::clone(&service));
    let stopping = Arc::new(AtomicBool::new(false));
    let refresher = tokio::spawn(refresh(Arc::clone(&holders), Arc::clone(&log)));
    let keeper =
        tokio::spawn(keep_anchor(anchor.clone(), Arc::clone(&log), Duration::from_secs(config.anchor.interval_s)));

    let health = Health {
        service: Arc::clone(&service),
        view: Arc::clone(&view),
        follower: Arc::clone(&follower),
        metrics: Arc::clone(&metrics),
        stopping: Arc::clone(&stopping),
    };
    health.show();
    let api = Interfaces::new(&config, &service, &log, &holders, &metrics, origin, vkey)?;
    let (main, main_address) = api.listen(&config, consumers, nonces)?;
    let (management, management_address) = listen_management(&config, health)?;
    // Before anybody can know that it runs: whoever does may tell it to stop, and that must be an orderly end.
    let told_to_stop = told_to_stop()?;
    announce(&main_address, &management_address, &minted)?;
    info!(address = main_address, management = management_address, "serving");
    let (handle, management_handle) = (main.handle(), management.handle());
    let main = tokio::spawn(main);
    let management = tokio::spawn(management);

    told_to_stop.await;
    info!("stopping: taking no more requests");
    stopping.store(true, Ordering::Relaxed);
    sleep(Duration::from_secs(config.server.drain_delay_s)).await;
    handle.stop(true).await;
    ended("the server", main.await);
    reaper.close().await;
    follower.close().await;
    let stopped = event(Action::ServiceStopped, []);
    if let Err(failure) = service.record(&service.node_caller(&first_realm), stopped).await {
        error!(%failure, "the end of the service could not be recorded");
    }
    // What waits for a log that does not answer was never acknowledged: it need not hold up the end.
    if timeout(Duration::from_secs(config.server.drain_s), service.close()).await.is_err() {
        error!("the log did not take what was waiting in time");
    }
    refresher.abort();
    keeper.abort();
    if let Some(checkpoint) = log.head().await.ok().and_then(|head| head.checkpoint)
        && let Err(failure) = anchor.keep(&checkpoint)
    {
        error!(failure = &failure as &dyn Error, "the last outside checkpoint could not be kept");
    }
    management_handle.stop(false).await;
    ended("the management server", management.await);
    info!("stopped");
    Ok(())
}

fn ended(what: &str, outcome: Result<io::Result<()>, tokio::task::JoinError>) {
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => error!(%failure, "{what} failed"),
        Err(failure) => error!(%failure, "{what} failed"),
    }
}

fn event<const N: usize>(action: Action, facts: [(&str, String); N]) -> Record {
    Record {
        action,
        outcome: Outcome::Success,
        detail: facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        facts: Default::default(),
        credential: None,
    }
}

/// Listens for the word to stop from now on; what it answers waits for it.
fn told_to_stop() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// A key made or accepted at the first start.
struct Minted {
    role: &'static str,
    key: ApiKey,
}

/// Accepts the keys that the configuration names; at the first start without any, makes one for each role.
async fn bootstrap(config: &Config, service: &SessionService, log: &dyn LogStore) -> Result<Vec<Minted>, Failure> {
    let files = [
        ("application", Role::Application, &config.bootstrap.application_key_file),
        ("auditor", Role::Auditor, &config.bootstrap.auditor_key_file),
        ("operator", Role::Operator, &config.bootstrap.operator_key_file),
    ];
    let known = log.credentials().await?;
    let realm: RealmName = "default".parse()?;
    let caller = service.node_caller(&realm);
    let mut minted = Vec::new();
    let none_given = files.iter().all(|(_, _, file)| file.is_none());
    for (name, role, file) in files {
        let key = match file {
            Some(file) => read_key(file)?,
            None if none_given && known.is_empty() && service.policy(&realm).is_ok() => {
                let key = ApiKey::mint()?;
                minted.push(Minted { role: name, key: key.clone() });
                key
            }
            None => continue,
        };
        if service.policy(&realm).is_err() {
            return Err("bootstrap keys belong to realm default, which the configuration does not have".into());
        }
        if !known.iter().any(|known| known.digest == key.digest()) {
            let made = credential(&key, &realm, vec![role], &format!("bootstrap {name}"), service.now())?;
            service.add_credential(&caller, made).await?;
        }
    }
    Ok(minted)
}

fn read_key(file: &Path) -> Result<ApiKey, Failure> {
    let text = std::fs::read_to_string(file).map_err(|failure| format!("{}: {failure}", file.display()))?;
    ApiKey::parse(text.trim()).map_err(|failure| format!("{}: {failure}", file.display()).into())
}

/// Follows changes to the credentials, by whichever node: a revoked key opens nothing after a second.
async fn refresh(holders: Arc<Keyholders>, log: Arc<dyn LogStore>) {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        if let Err(failure) = holders.refresh(&*log).await {
            warn!(failure = &failure as &dyn Error, "the credentials cannot be read: going on with those known");
        }
    }
}

/// Keeps the newest checkpoint outside the database.
async fn keep_anchor(anchor: Anchor, log: Arc<dyn LogStore>, pause: Duration) {
    let mut kept = None;
    let mut ticks = interval(pause);
    loop {
        ticks.tick().await;
        let Ok(head) = log.head().await else { continue };
        if head.checkpoint == kept {
            continue;
        }
        let Some(checkpoint) = head.checkpoint else { continue };
        let (anchor, text) = (anchor.clone(), checkpoint.clone());
        match tokio::task::spawn_blocking(move || anchor.keep(&text)).await {
            Ok(Ok(())) => kept = Some(checkpoint),
            Ok(Err(failure)) => warn!(failure = &failure as &dyn Error, "the outside checkpoint could not be kept"),
            Err(failure) => warn!(%failure, "the outside checkpoint could not be kept"),
        }
    }
}

/// Says, on standard output, where to reach the service, and the keys that were made: the only time they are seen.
fn announce(main: &str, management: &str, minted: &[Minted]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {main}")?;
    writeln!(out, "management on http://{management}")?;
    for Minted { role, key } in minted {
        writeln!(out, "{role} key of realm default: {}", key.expose())?;
    }
    out.flush()
}

/// Records every reading of the log through the service.
struct Recorder(Arc<SessionService>);

#[async_trait]
impl ReadRecorder for Recorder {
    async fn record(&self, caller: &Caller, detail: Detail) -> Result<(), Problem> {
        let record = Record {
            action: Action::AuditRead,
            outcome: Outcome::Success,
            detail,
            facts: Default::default(),
            credential: None,
        };
        self.0.record(caller, record).await.map(drop).map_err(|failure: ServiceError| failure.into())
    }
}

/// The interfaces on the main port.
struct Interfaces {
    rest: RestApi,
    audit: AuditApi,
    metrics: Arc<Metrics>,
    openapi: web::Bytes,
    docs: bool,
}

impl Interfaces {
    fn new(
        config: &Config,
        service: &Arc<SessionService>,
        log: &Arc<dyn LogStore>,
        holders: &Arc<Keyholders>,
        metrics: &Arc<Metrics>,
        origin: Arc<str>,
        vkey: String,
    ) -> Result<Self, Failure> {
        let counter = Arc::clone(metrics);
        let gate = Gate::new(Arc::clone(holders), Arc::new(move |reason| counter.refused(reason)));
        let counter = Arc::clone(metrics);
        let observer = Arc::new(move |observed: Observed<'_>| match observed {
            Observed::Created => counter.session_created(),
            Observed::Renewed => counter.session_renewed(),
            Observed::Ended(_) => counter.session_ended(),
            Observed::Validated(result) => counter.validated(result),
            Observed::Replayed => counter.replayed(),
        });
        let rest = RestApi {
            service: Arc::clone(service),
            gate: gate.clone(),
            observer,
            origin,
            max_body: config.server.max_body_bytes,
        };
        let audit = AuditApi {
            log: Arc::clone(log) as Arc<dyn LogReader>,
            recorder: Arc::new(Recorder(Arc::clone(service))),
            gate,
            keys: Arc::new(vec![PublishedKey { vkey }]),
        };
        let openapi = web::Bytes::from(api_rest::openapi_json()?);
        Ok(Self { rest, audit, metrics: Arc::clone(metrics), openapi, docs: config.server.docs })
    }

    fn listen(
        self,
        config: &Config,
        consumers: KnownConsumers,
        nonces: Arc<dyn NonceStore>,
    ) -> Result<(Server, String), Failure> {
        let listener =
            TcpListener::bind(&config.server.listen).map_err(|failure| named(failure, &config.server.listen))?;
        let scheme = if config.server.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr()?);
        let gate = self.rest.gate.clone().with_certificates(consumers.by_certificate);
        let soap = web::Data::new(SoapApi {
            service: Arc::clone(&self.rest.service),
            log: Arc::clone(&self.audit.log),
            gate: gate.clone(),
            observer: Arc::clone(&self.rest.observer),
            origin: Arc::clone(&self.rest.origin),
            consumers: Arc::new(consumers.by_name),
            password_text: config.soap.password_text.into(),
            nonces,
            public_url: config.soap.public_url.clone().unwrap_or_else(|| format!("{url}/soap/v1")).into(),
        });
        let rest = web::Data::new(RestApi { gate: gate.clone(), ..self.rest });
        let audit = web::Data::new(AuditApi { gate, ..self.audit });
        let (openapi, docs, metrics) = (self.openapi, self.docs, self.metrics);
        let mut server = HttpServer::new(move || {
            let metrics = Arc::clone(&metrics);
            let openapi = openapi.clone();
            App::new()
                .app_data(rest.clone())
                .app_data(audit.clone())
                .app_data(soap.clone())
                .wrap_fn(move |request, service| {
                    let began = Instant::now();
                    let metrics = Arc::clone(&metrics);
                    let answer = service.call(request);
                    async move {
                        let answer = answer.await?;
                        let method = method_label(answer.request().method());
                        let route = answer.request().match_pattern();
                        let route = route.as_deref().unwrap_or("unmatched");
                        metrics.request(method, route, answer.status().as_str(), began.elapsed().as_secs_f64());
                        Ok(answer)
                    }
                })
                .configure(api_rest::configure)
                .configure(api_audit::configure)
                .configure(api_soap::configure)
                .configure(|config| api_rest::configure_docs(config, openapi, docs))
                .default_service(web::route().to(api_rest::not_found))
        })
        .on_connect(note_certificate)
        .shutdown_timeout(config.server.drain_s)
        .disable_signals()
        .keep_alive(Duration::from_secs(75));
        if config.server.workers > 0 {
            server = server.workers(config.server.workers);
        }
        let server = match &config.server.tls {
            None => server.listen(listener)?,
            Some(tls) => server.listen_openssl(listener, acceptor(tls)?)?,
        };
        Ok((server.run(), url))
    }
}

fn named(failure: io::Error, address: &str) -> io::Error {
    io::Error::new(failure.kind(), format!("{address}: {failure}"))
}

/// Only known methods become labels: a client could make others up without end.
fn method_label(method: &actix_web::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "PUT" => "PUT",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

fn listen_management(config: &Config, health: Health) -> io::Result<(Server, String)> {
    let at = &config.management.listen;
    let listener = TcpListener::bind(at).map_err(|failure| named(failure, at))?;
    let address = listener.local_addr()?.to_string();
    let health = web::Data::new(health);
    let server = HttpServer::new(move || App::new().app_data(health.clone()).configure(management::configure))
        .workers(1)
        .disable_signals();
    Ok((server.listen(listener)?.run(), address))
}
