//! `counterfoil serve`: the composition root, from configuration to an orderly end.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use access::Keyholders;
use actix_web::dev::{Server, Service as _};
use actix_web::{App, HttpServer, web};
use api_audit::{AuditApi, EvidenceApi};
use api_http::{Gate, GateKeeper};
use api_rest::{Observed, RestApi};
use api_soap::SoapApi;
use audit_log::{DeliveryCursors, GroupCommitConfig, LogIdentity, LogReader, LogStore};
use audit_search::Archive;
use console::Console;
use futures::future::join_all;
use nonce_store::NonceStore;
use session_model::{Action, Outcome, Policy, RealmName, Timestamp};
use session_service::{ByRealm, Clock, LogClock, Parts, Record, ServiceConfig, SessionService, Sessions};
use session_view::SessionView;
use telemetry::Metrics;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tracing::{error, info};

use crate::anchors::Places;
use crate::backends::{LogNonces, nonces_of, open_log};
use crate::bootstrap::Minted;
use crate::cluster;
use crate::config::{Config, LogFormat, WhenWrong};
use crate::key_files::{KeyFiles, signers};
use crate::management::{self, Health};
use crate::pruning;
use crate::shard::{Shard, Shards};
use crate::soap::KnownConsumers;
use crate::tls::{acceptor, note_certificate};
use crate::transient::{self, Transients};

type Failure = Box<dyn Error + Send + Sync>;

/// The machine's clocks: the one place that reads them.
#[derive(Debug)]
pub(crate) struct MachineClock {
    start: Instant,
}

impl MachineClock {
    /// From now on.
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }
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
    /// How far sinks have come.
    pub cursors: Arc<dyn DeliveryCursors>,
    /// Whether other machines may write it too.
    pub shared: bool,
    /// The nonces beside it.
    pub nonces: LogNonces,
    /// The keys.
    pub keys: KeyFiles,
    /// Places of checkpoints outside the database.
    pub places: Places,
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
    // Said now, rather than by every request: these key files are from before the wrapping key was replaced, or the database is.
    for row in opened.store.data_keys_after(None, 100).await? {
        keys.keyring.wrapped_by(&row.wrapped).map_err(|failure| format!("data key {}: {failure}", row.id))?;
    }
    let places = Places::new(config)?;
    let reader: Arc<dyn LogReader> = Arc::clone(&opened.store) as _;
    let head = places.check(&*reader, &keys.verifiers()?).await?;
    let policies = config.policies()?.into_iter().map(|(realm, _, policy)| (realm, policy)).collect();
    let clock = MachineClock::new();
    opened.store.prepare(head.size(), clock.wall()).await?;
    Ok(Core {
        log: opened.store,
        cursors: opened.cursors,
        shared: opened.shared,
        nonces: opened.nonces,
        keys,
        places,
        policies,
    })
}

/// The service on a core and a view.
pub(crate) fn service_of(
    core: Core,
    config: &Config,
    view: Arc<dyn SessionView>,
    view_shared: bool,
) -> Arc<SessionService> {
    let clock = Arc::new(LogClock::new(Arc::new(MachineClock::new())));
    let bound = Duration::from_millis(config.view.max_staleness_ms);
    let signers = signers(core.keys.log_keys, core.keys.p256);
    SessionService::start(
        Parts {
            log: core.log,
            view,
            keyring: core.keys.keyring,
            identity: LogIdentity { origin: core.keys.origin, signers },
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

/// Evidence bundles that are written at a time.
const BUNDLES: usize = 2;

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
    pruning::check(&config)?;
    let (shards, (beside_view, beside_log)) = Shards::open(&config).await?;
    let first = &shards.first;
    let policies: HashMap<RealmName, Policy> =
        config.policies()?.into_iter().map(|(realm, _, policy)| (realm, policy)).collect();
    let rates: HashMap<RealmName, u32> =
        policies.iter().map(|(realm, policy)| (realm.clone(), policy.requests_per_second)).collect();
    let consumers = crate::soap::consumers(&config, &first.keyring, &policies)?;
    let nonces = nonces_of(&config, beside_view, beside_log, MachineClock::new().wall())?;
    let transients = transient::open(&config, &first.service, &first.keyring, &first.origin, first.shared).await?;
    let services = shards.by_realm(|shard| Arc::clone(&shard.service));
    let sessions = Arc::new(Sessions::new(services.clone(), transients.as_ref().map(Transients::sessions)));

    let holders = Arc::new(Keyholders::new(rates.clone()));
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION"))?);
    let minted = shards.begin(&holders).await?;
    let joined = cluster::join(&config, &shards).await?;
    if let Some(transients) = &transients {
        if let Some(joined) = joined.first() {
            transients.join(joined.cluster()).await?;
        }
        transients.show(&metrics);
    }
    let stopping = Arc::new(AtomicBool::new(false));
    let mut running = Vec::new();
    for (at, shard) in shards.each().enumerate() {
        running.push(shard.run(joined.get(at), &holders, &shards.gauges(shard, &metrics)).await?);
    }

    let health = Health {
        shards: shards
            .each()
            .zip(&running)
            .enumerate()
            .map(|(at, (shard, running))| shard.health(running, joined.get(at).map(|joined| joined.shown(&config))))
            .collect(),
        metrics: Arc::clone(&metrics),
        stopping: Arc::clone(&stopping),
        unready_when_wrong: config.verify.when_wrong == WhenWrong::Unready,
    };
    for (shard, health) in shards.each().zip(&*health.shards) {
        health.show(&shards.gauges(shard, &metrics));
    }
    let mut api = Interfaces::new(&config, sessions, &shards, &holders, &metrics)?;
    let evidence = EvidenceApi {
        audit: api.audit.clone(),
        logs: shards.by_realm(Shard::evidence),
        room: Arc::new(Semaphore::new(BUNDLES)),
    };
    if config.console.enabled {
        let oidc = config.console.oidc.as_ref();
        let people = oidc.map(|oidc| oidc.people(rates, Arc::clone(&nonces), first.now())).transpose()?;
        api.console = Some(Console::new(evidence.clone(), services, first.keyring.clone()).with_people(people));
    }
    api.evidence = Some(evidence);
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
    if let Some(transients) = &transients {
        transients.close();
    }
    // Beside one another: a log that does not answer must not hold up the end of the others.
    let limit = Duration::from_secs(config.server.drain_s);
    join_all(shards.each().zip(&mut running).map(|(shard, running)| shard.end(running, limit))).await;
    // The last first: it may be carried by the first.
    for joined in joined.into_iter().rev() {
        joined.leave().await;
    }
    join_all(shards.into_each().zip(running).map(|(shard, running)| shard.close(running, limit))).await;
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

/// The record of an event that concerns the service as a whole.
pub(crate) fn event<const N: usize>(action: Action, facts: [(&str, String); N]) -> Record {
    Record {
        action,
        outcome: Outcome::Success,
        detail: facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        facts: Default::default(),
        credential: None,
    }
}

/// What ends when the process is told to stop. The signals are listened for from here on, so it is made before anybody hears that the process
/// runs: one that came earlier would kill it.
pub(crate) fn told_to_stop() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
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

/// The interfaces on the main port.
struct Interfaces {
    rest: RestApi,
    audit: AuditApi,
    archive: ByRealm<Archive>,
    console: Option<Console>,
    evidence: Option<EvidenceApi>,
    metrics: Arc<Metrics>,
    openapi: web::Bytes,
    docs: bool,
}

impl Interfaces {
    fn new(
        config: &Config,
        sessions: Arc<Sessions>,
        shards: &Shards,
        holders: &Arc<Keyholders>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Failure> {
        let (counter, ledgers) = (Arc::clone(metrics), shards.by_realm(Shard::ledger));
        let keeper: GateKeeper = Arc::new(move |refused| {
            counter.refused(refused.reason);
            // Nobody knows whose a made-up key is: the first log tells of it.
            let ledger = refused.holder.as_ref().map_or(ledgers.first(), |(realm, _)| ledgers.of(realm));
            ledger.note(refused);
        });
        let gate = Gate::new(Arc::clone(holders), keeper);
        let counter = Arc::clone(metrics);
        let observer = Arc::new(move |observed: Observed<'_>| match observed {
            Observed::Created => counter.session_created(),
            Observed::Renewed => counter.session_renewed(),
            Observed::Ended(_) => counter.session_ended(),
            Observed::Validated(result) => counter.validated(result),
            Observed::Replayed => counter.replayed(),
        });
        let audit = AuditApi { gate: gate.clone(), logs: shards.by_realm(|shard| shard.audited(&sessions)) };
        let rest = RestApi {
            service: sessions,
            gate,
            observer,
            origin: shards.by_realm(|shard| Arc::clone(&shard.origin)),
            max_body: config.server.max_body_bytes,
        };
        let openapi = web::Bytes::from(api_rest::openapi_json()?);
        Ok(Self {
            rest,
            audit,
            archive: shards.by_realm(Shard::archive),
            console: None,
            evidence: None,
            metrics: Arc::clone(metrics),
            openapi,
            docs: config.server.docs,
        })
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
            archive: self.archive,
            gate: gate.clone(),
            observer: Arc::clone(&self.rest.observer),
            origin: self.rest.origin.clone(),
            consumers: Arc::new(consumers.by_name),
            certificates: Arc::new(consumers.certificates),
            password_text: config.soap.password_text.into(),
            nonces,
            public_url: config.soap.public_url.clone().unwrap_or_else(|| format!("{url}/soap/v1")).into(),
        });
        let rest = web::Data::new(RestApi { gate: gate.clone(), ..self.rest });
        let audit = AuditApi { gate, ..self.audit };
        let console = self.console.map(web::Data::new);
        let evidence = self.evidence.map(|evidence| web::Data::new(EvidenceApi { audit: audit.clone(), ..evidence }));
        let audit = web::Data::new(audit);
        let (openapi, docs, metrics) = (self.openapi, self.docs, self.metrics);
        let mut server = HttpServer::new(move || {
            let metrics = Arc::clone(&metrics);
            let openapi = openapi.clone();
            let console = console.clone();
            let evidence = evidence.clone();
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
                .configure(|config| {
                    if let Some(evidence) = evidence {
                        config.app_data(evidence).configure(api_audit::configure_evidence);
                    }
                })
                .configure(api_soap::configure)
                .configure(|config| api_rest::configure_docs(config, openapi, docs))
                .configure(|config| {
                    if let Some(console) = console {
                        config.app_data(console);
                        console::configure(config);
                    }
                })
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
