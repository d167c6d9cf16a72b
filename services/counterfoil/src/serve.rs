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
use api_audit::{AuditApi, EvidenceApi, PublishedKey};
use api_http::{Gate, GateKeeper};
use api_rest::{Observed, RestApi};
use api_soap::SoapApi;
use audit_log::{DeliveryCursors, GroupCommitConfig, LogIdentity, LogReader, LogStore};
use audit_search::Archive;
use console::Console;
use nonce_store::NonceStore;
use sealing::VerifierKeys;
use session_model::{Action, Outcome, Policy, RealmName, Role, Timestamp};
use session_service::{Clock, Follower, LogClock, Parts, Reaper, Record, ServiceConfig, SessionService, Sessions};
use session_view::SessionView;
use telemetry::Metrics;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{error, info, warn};

use crate::anchors::{AnchorsView, Places, Running};
use crate::auditing::{Keeper, Recorder, RefusalLedger, gather, project, show as show_search};
use crate::backends::{LogNonces, OpenedView, nonces_of, open_log, open_view};
use crate::cluster;
use crate::config::{Config, LogFormat, WhenWrong};
use crate::evidence_commands::Vault;
use crate::key_commands::credential;
use crate::key_files::{KeyFiles, signers};
use crate::key_reload;
use crate::log_key_reload::{self, LogKeyTaker, LogKeysInUse};
use crate::management::{self, Clustered, Health};
use crate::pruning::{self, PruneStatus, Pruner, prune_now_and_then};
use crate::sinks::Sinks;
use crate::soap::KnownConsumers;
use crate::tls::{acceptor, note_certificate};
use crate::transient::{self, Transients};
use crate::verification::{Checked, Verification};

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
    let mut core = open_core(&config).await?;
    let OpenedView { view, shared: view_shared, nonces } =
        open_view(&config, &core.keys.keyring, &core.keys.origin).await?;
    let log = Arc::clone(&core.log);
    let places = std::mem::take(&mut core.places);
    let cursors = Arc::clone(&core.cursors);
    let origin: Arc<str> = core.keys.origin.as_str().into();
    let verifiers = VerifierKeys::from(core.keys.verifiers()?);
    let log_keys = LogKeysInUse::of(&core.keys);
    let (publish, published) = watch::channel(core.keys.published());
    let vault = Vault { log: Arc::clone(&core.log), keyring: core.keys.keyring.clone() };
    let reader: Arc<dyn LogReader> = Arc::clone(&log) as _;
    let file = places.file();
    let anchors = Running::start(places, &config, &reader, &verifiers).await?;
    let rates: HashMap<RealmName, u32> =
        core.policies.iter().map(|(realm, policy)| (realm.clone(), policy.requests_per_second)).collect();
    let consumers = crate::soap::consumers(&config, &core.keys.keyring, &core.policies)?;
    let now = MachineClock { start: Instant::now() }.wall();
    let beside_log = std::mem::replace(&mut core.nonces, LogNonces::Alone);
    let nonces = nonces_of(&config, nonces, beside_log, now)?;
    let first_realm = core.policies.keys().min().cloned().ok_or("there is no realm")?;
    let keyring = core.keys.keyring.clone();
    let cluster_keyring = keyring.clone();
    let log_shared = core.shared;
    let service = service_of(core, &config, Arc::clone(&view), view_shared);
    let archive = Archive::new(Arc::clone(&log), keyring.clone(), Arc::clone(service.recent()));
    let transients = transient::open(&config, &service, &keyring, &origin, log_shared).await?;
    let sessions = Sessions::new(Arc::clone(&service), transients.as_ref().map(Transients::sessions));
    let sessions = Arc::new(sessions);
    let ledger = Arc::new(RefusalLedger::new(Arc::clone(&service), first_realm.clone()));

    let minted = bootstrap(&config, &service, &*log).await?;
    let holders = Arc::new(Keyholders::new(rates.clone()));
    holders.refresh(&*log).await?;
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION"))?);
    let started = event(Action::ServiceStarted, [("program", env!("CARGO_PKG_VERSION").to_owned())]);
    service.record(&service.node_caller(&first_realm), started).await?;

    // Before the view is rebuilt: a peer may have it.
    let joined = cluster::join(&config, &cluster_keyring, &origin, service.host()).await?;
    if let Some(joined) = &joined {
        service.join(Arc::clone(joined.cluster()));
        if !view_shared {
            service.hold_by_placement();
        }
        cluster::show_share(&service, &metrics);
        cluster::show(joined.cluster(), &metrics);
        if let Some(transients) = &transients {
            transients.join(joined.cluster()).await?;
        }
    }
    if let Some(transients) = &transients {
        transients.show(&metrics);
    }
    let follower = Arc::new(Follower::start(Arc::clone(&service)));
    let reaper = Reaper::start(Arc::clone(&service));
    let stopping = Arc::new(AtomicBool::new(false));
    let projecting = tokio::spawn(project(archive.clone(), Arc::clone(&log)));
    let gathering = tokio::spawn(gather(Arc::clone(&ledger)));
    let refresher = tokio::spawn(refresh(Arc::clone(&holders), Arc::clone(&log)));
    key_reload::show(&keyring, &metrics);
    let following = tokio::spawn(key_reload::follow_key_file(config.keys_dir(), keyring.clone(), Arc::clone(&log)));
    log_key_reload::show(published.clone(), &metrics);
    let taker = LogKeyTaker { verifiers: verifiers.clone(), publish, service: Arc::clone(&service) };
    let signing = tokio::spawn(log_key_reload::follow(config.keys_dir(), log_keys, taker));

    let lease = Arc::clone(&cursors);
    let sinks = Sinks::start(&config, &log, cursors).await?;
    sinks.show(&metrics);
    let anchored = anchors.view();
    anchored.show(&metrics);
    show_search(&archive, &metrics);
    let verification = Verification::new();
    verification.show(&metrics);
    let clock = Arc::clone(&service);
    let now: Arc<dyn Fn() -> Timestamp + Send + Sync> = Arc::new(move || clock.now());
    let checker = (config.verify.within_s > 0).then(|| {
        let checked = Checked {
            log: Arc::clone(&log) as Arc<dyn LogReader>,
            anchor: file,
            keys: verifiers,
            now: Arc::clone(&now),
            within: Duration::from_secs(config.verify.within_s),
        };
        tokio::spawn(Arc::clone(&verification).run(checked))
    });

    let prune_status = Arc::new(PruneStatus::default());
    let pruning = if config.retention.enabled {
        prune_status.show(&metrics);
        let vault = Vault { log: Arc::clone(&log), keyring: keyring.clone() };
        let pruner = Pruner::new(&config, &log, &service, vault, published.clone())?;
        Some(tokio::spawn(prune_now_and_then(pruner, lease, prune_status)))
    } else {
        None
    };

    let health = Health {
        service: Arc::clone(&service),
        view: Arc::clone(&view),
        follower: Arc::clone(&follower),
        metrics: Arc::clone(&metrics),
        stopping: Arc::clone(&stopping),
        verification: Arc::clone(&verification),
        unready_when_wrong: config.verify.when_wrong == WhenWrong::Unready,
        anchors: anchored.clone(),
        cluster: joined.as_ref().map(|joined| Clustered {
            cluster: Arc::clone(joined.cluster()),
            node: config.node.clone(),
            expected: config.cluster.nodes,
        }),
    };
    health.show();
    let auditing = Auditing { archive, ledger: Arc::clone(&ledger), anchored };
    let mut api = Interfaces::new(&config, sessions, &service, &log, &holders, &metrics, auditing, origin, published)?;
    let evidence = EvidenceApi {
        audit: api.audit.clone(),
        keys: Arc::new(vault),
        stamps: {
            let config = config.clone();
            Arc::new(move || crate::anchors::stamps(&config))
        },
        now: Arc::clone(&now),
        room: Arc::new(Semaphore::new(BUNDLES)),
        last_check: verification,
    };
    if config.console.enabled {
        let oidc = config.console.oidc.as_ref();
        let people = oidc.map(|oidc| oidc.people(rates, Arc::clone(&nonces), now)).transpose()?;
        api.console = Some(Console::new(evidence.clone(), Arc::clone(&service), keyring).with_people(people));
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
    if let Some(pruning) = pruning {
        // Cut short, it is begun anew.
        pruning.abort();
    }
    reaper.close().await;
    if let Some(transients) = &transients {
        transients.close();
    }
    follower.close().await;
    gathering.abort();
    ledger.flush().await;
    let stopped = event(Action::ServiceStopped, []);
    if let Err(failure) = service.record(&service.node_caller(&first_realm), stopped).await {
        error!(%failure, "the end of the service could not be recorded");
    }
    // What waits for a log that does not answer was never acknowledged: it need not hold up the end.
    if timeout(Duration::from_secs(config.server.drain_s), service.close()).await.is_err() {
        error!("the log did not take what was waiting in time");
    }
    if let Some(joined) = joined {
        joined.leave().await;
    }
    // The last entries are in the log: what the other side takes in time need not wait for the next start.
    sinks.close(Duration::from_secs(config.server.drain_s)).await;
    refresher.abort();
    following.abort();
    signing.abort();
    projecting.abort();
    if let Some(checker) = checker {
        checker.abort();
    }
    anchors.close(Duration::from_secs(config.server.drain_s)).await;
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

/// What the interfaces of auditors are made of.
struct Auditing {
    archive: Archive,
    ledger: Arc<RefusalLedger>,
    anchored: AnchorsView,
}

/// The interfaces on the main port.
struct Interfaces {
    rest: RestApi,
    audit: AuditApi,
    console: Option<Console>,
    evidence: Option<EvidenceApi>,
    metrics: Arc<Metrics>,
    openapi: web::Bytes,
    docs: bool,
}

impl Interfaces {
    #[expect(clippy::too_many_arguments, reason = "the parts of the composition root, used in one place")]
    fn new(
        config: &Config,
        sessions: Arc<Sessions>,
        service: &Arc<SessionService>,
        log: &Arc<dyn LogStore>,
        holders: &Arc<Keyholders>,
        metrics: &Arc<Metrics>,
        auditing: Auditing,
        origin: Arc<str>,
        keys: watch::Receiver<Vec<PublishedKey>>,
    ) -> Result<Self, Failure> {
        let counter = Arc::clone(metrics);
        let Auditing { archive, ledger, anchored } = auditing;
        let keeper: GateKeeper = Arc::new(move |refused| {
            counter.refused(refused.reason);
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
        let rest = RestApi {
            service: Arc::clone(&sessions),
            gate: gate.clone(),
            observer,
            origin: Arc::clone(&origin),
            max_body: config.server.max_body_bytes,
        };
        let audit = AuditApi {
            log: Arc::clone(log) as Arc<dyn LogReader>,
            custodian: Arc::new(Keeper { service: sessions, archive: archive.clone(), origin }),
            archive,
            recorder: Arc::new(Recorder(Arc::clone(service))),
            gate,
            keys,
            cosigned: Arc::new(anchored),
        };
        let openapi = web::Bytes::from(api_rest::openapi_json()?);
        Ok(Self {
            rest,
            audit,
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
            archive: self.audit.archive.clone(),
            gate: gate.clone(),
            observer: Arc::clone(&self.rest.observer),
            origin: Arc::clone(&self.rest.origin),
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
