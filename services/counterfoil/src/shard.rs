//! A log, and everything that lives on it while the service runs: the service itself, what keeps its view true, what follows, checks and anchors it.
//!
//! There is one for each log of the configuration, most often one. A shard knows nothing of the others but which realms are theirs.

use std::collections::HashSet;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use access::Keyholders;
use anchors::{Anchor, check_head};
use api_audit::{AuditedLog, LogEvidence, PublishedKey};
use audit_log::{DeliveryCursors, LogReader, LogStore};
use audit_search::Archive;
use nonce_store::NonceStore;
use parking_lot::Mutex;
use sealing::{Keyring, VerifierKeys};
use session_model::{Action, RealmName, Timestamp};
use session_service::{ByRealm, Follower, Reaper, SessionService, Sessions};
use session_view::SessionView;
use telemetry::{Gauges, Metrics};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use tracing::{error, warn};

use crate::anchors::Running as Anchored;
use crate::auditing::{Keeper, Recorder, RefusalLedger, gather, project, show as show_search};
use crate::backends::{LogNonces, OpenedView, of_shard, open_view};
use crate::bootstrap::{Minted, bootstrap};
use crate::cluster::{self, Joined};
use crate::config::{Config, OneLog, ShardName};
use crate::evidence_commands::Vault;
use crate::key_reload;
use crate::log_key_reload::{self, LogKeyTaker, LogKeysInUse};
use crate::management::{Clustered, ShardHealth};
use crate::pruning::{PruneStatus, Pruner, prune_now_and_then};
use crate::serve::{event, open_core, service_of};
use crate::sinks::Sinks;
use crate::verification::{Checked, Verification};

type Failure = Box<dyn Error + Send + Sync>;

/// An opened log, and what others need of it.
pub(crate) struct Shard {
    /// Its name.
    pub name: ShardName,
    /// The configuration, as if there were no other log.
    pub config: Config,
    /// Its sessions.
    pub service: Arc<SessionService>,
    /// Wraps its data keys.
    pub keyring: Keyring,
    /// Its origin.
    pub origin: Arc<str>,
    /// Whether other machines may write it too.
    pub shared: bool,
    /// Realms of the configuration that live in other logs.
    elsewhere: HashSet<RealmName>,
    /// The realm whose entries tell of the log as a whole.
    house: RealmName,
    log: Arc<dyn LogStore>,
    view: Arc<dyn SessionView>,
    /// Whether other nodes are in the view too.
    view_shared: bool,
    archive: Archive,
    cursors: Arc<dyn DeliveryCursors>,
    verifiers: VerifierKeys,
    published: watch::Receiver<Vec<PublishedKey>>,
    /// The keys that it began with, and who is told of newer ones; until it runs.
    log_keys: Mutex<Option<(LogKeysInUse, LogKeyTaker)>>,
    ledger: Arc<RefusalLedger>,
    verification: Arc<Verification>,
    anchors: Anchored,
    anchor_file: Option<Arc<dyn Anchor>>,
}

/// Nonces beside a log and beside its view, for whoever needs a place for them.
pub(crate) type Nonces = (Option<Arc<dyn NonceStore>>, LogNonces);

impl Shard {
    /// Opens a log, its keys, view and anchors; records nothing.
    ///
    /// # Errors
    /// Why it must not be used, or cannot.
    async fn open(log: OneLog, elsewhere: HashSet<RealmName>) -> Result<(Self, Nonces), Failure> {
        let OneLog { name, config } = log;
        if !name.is_first() {
            make_place(&config.anchor_file())?;
        }
        let mut core = open_core(&config).await?;
        let OpenedView { view, shared: view_shared, nonces } =
            open_view(&config, &core.keys.keyring, &core.keys.origin).await?;
        let (log, cursors, shared) = (Arc::clone(&core.log), Arc::clone(&core.cursors), core.shared);
        let (keyring, origin) = (core.keys.keyring.clone(), core.keys.origin.as_str().into());
        let (verifiers, in_use) = (VerifierKeys::from(core.keys.verifiers()?), LogKeysInUse::of(&core.keys));
        let (publish, published) = watch::channel(core.keys.published());
        let house = core.policies.keys().min().cloned().ok_or("there is no realm")?;
        let places = std::mem::take(&mut core.places);
        let anchor_file = places.file();
        let reader: Arc<dyn LogReader> = Arc::clone(&log) as _;
        let anchors = Anchored::start(places, &config, &reader, &verifiers).await?;
        let beside_log = std::mem::replace(&mut core.nonces, LogNonces::Alone);
        let service = service_of(core, &config, Arc::clone(&view), view_shared);
        let taker = LogKeyTaker { verifiers: verifiers.clone(), publish, service: Arc::clone(&service) };
        let shard = Self {
            archive: Archive::new(Arc::clone(&log), keyring.clone(), Arc::clone(service.recent())),
            ledger: Arc::new(RefusalLedger::new(Arc::clone(&service), house.clone())),
            verification: Verification::new(),
            name,
            config,
            service,
            keyring,
            origin,
            shared,
            elsewhere,
            house,
            log,
            view,
            view_shared,
            cursors,
            verifiers,
            published,
            log_keys: Mutex::new(Some((in_use, taker))),
            anchors,
            anchor_file,
        };
        Ok((shard, (nonces, beside_log)))
    }

    /// A realm does not move: what was promised within it (caps, erasure, proofs) was promised within one log.
    async fn refuse_strays(&self) -> Result<(), Failure> {
        for realm in &self.elsewhere {
            if self.service.knows(realm).await? {
                let (name, realm) = (&self.name, realm.as_str());
                return Err(format!(
                    "shard {name} has entries of realm {realm}, which lives in another shard by the configuration. A realm does not move: \
                     let it live where it began, and give what is new a realm of another name (docs/scaling.md)"
                )
                .into());
            }
        }
        Ok(())
    }

    /// Accepts and makes first keys, lets keyholders in, and records that the service has started.
    ///
    /// # Errors
    /// If it cannot be recorded, or the log is another one's by now.
    pub(crate) async fn begin(&self, holders: &Keyholders) -> Result<Vec<Minted>, Failure> {
        // Another shard may have begun in the same database, if two URLs lead there.
        check_head(&*self.log, &self.log.head().await?, &self.verifiers.current()).await?;
        let minted = bootstrap(&self.config, &self.service, &*self.log).await?;
        holders.refresh(&*self.log, |realm| !self.elsewhere.contains(realm)).await?;
        let started = event(Action::ServiceStarted, [("program", env!("CARGO_PKG_VERSION").to_owned())]);
        self.service.record(&self.service.node_caller(&self.house), started).await?;
        Ok(minted)
    }

    /// Where refusals of its realms are gathered.
    pub(crate) fn ledger(&self) -> Arc<RefusalLedger> {
        Arc::clone(&self.ledger)
    }

    /// Finds and opens its entries.
    pub(crate) fn archive(&self) -> Archive {
        self.archive.clone()
    }

    /// What auditors of its realms are shown. `sessions` are those of all realms.
    pub(crate) fn audited(&self, sessions: &Arc<Sessions>) -> Arc<AuditedLog> {
        let (service, archive, origin) = (Arc::clone(sessions), self.archive.clone(), Arc::clone(&self.origin));
        Arc::new(AuditedLog {
            log: Arc::clone(&self.log) as _,
            custodian: Arc::new(Keeper { service, archive: archive.clone(), origin }),
            archive,
            recorder: Arc::new(Recorder(Arc::clone(&self.service))),
            keys: self.published.clone(),
            cosigned: Arc::new(self.anchors.view()),
        })
    }

    /// What bundles are made of, and what the checks of the log came to.
    pub(crate) fn evidence(&self) -> Arc<LogEvidence> {
        let config = self.config.clone();
        Arc::new(LogEvidence {
            keys: Arc::new(self.vault()),
            stamps: Arc::new(move || crate::anchors::stamps(&config)),
            now: self.now(),
            last_check: Arc::clone(&self.verification) as _,
        })
    }

    /// Its clock.
    pub(crate) fn now(&self) -> Arc<dyn Fn() -> Timestamp + Send + Sync> {
        let service = Arc::clone(&self.service);
        Arc::new(move || service.now())
    }

    fn vault(&self) -> Vault {
        Vault { log: Arc::clone(&self.log), keyring: self.keyring.clone() }
    }

    /// Starts what keeps the view true, and follows, checks and prunes the log. `joined` is its place in a cluster, if it has one.
    ///
    /// # Errors
    /// If a sink or pruning cannot be as it is configured.
    pub(crate) async fn run(
        &self,
        joined: Option<&Joined>,
        holders: &Arc<Keyholders>,
        gauges: &Gauges<'_>,
    ) -> Result<Running, Failure> {
        // Before the view is rebuilt: a peer may have it.
        if let Some(joined) = joined {
            self.service.join(Arc::clone(joined.cluster()));
            if !self.view_shared {
                self.service.hold_by_placement();
            }
            cluster::show_share(&self.service, gauges);
            cluster::show(joined.cluster(), gauges);
        }
        let follower = Arc::new(Follower::start(Arc::clone(&self.service)));
        let reaper = Reaper::start(Arc::clone(&self.service));
        let keys_dir = self.config.keys_dir();
        let following = key_reload::follow_key_file(keys_dir, self.keyring.clone(), Arc::clone(&self.log));
        let mut tasks = vec![
            tokio::spawn(project(self.archive.clone(), Arc::clone(&self.log))),
            tokio::spawn(refresh(Arc::clone(holders), Arc::clone(&self.log), self.elsewhere.clone())),
            tokio::spawn(following),
        ];
        if let Some((in_use, taker)) = self.log_keys.lock().take() {
            tasks.push(tokio::spawn(log_key_reload::follow(self.config.keys_dir(), in_use, taker)));
        }
        let gathering = tokio::spawn(gather(Arc::clone(&self.ledger)));
        let sinks = Sinks::start(&self.config, &self.log, Arc::clone(&self.cursors)).await?;
        key_reload::show(&self.keyring, gauges);
        log_key_reload::show(self.published.clone(), gauges);
        sinks.show(gauges);
        self.anchors.view().show(gauges);
        show_search(&self.archive, gauges);
        self.verification.show(gauges);
        if self.config.verify.within_s > 0 {
            let checked = Checked {
                log: Arc::clone(&self.log) as _,
                anchor: self.anchor_file.clone(),
                keys: self.verifiers.clone(),
                now: self.now(),
                within: Duration::from_secs(self.config.verify.within_s),
            };
            tasks.push(tokio::spawn(Arc::clone(&self.verification).run(checked)));
        }
        let pruning = if self.config.retention.enabled {
            let status = Arc::new(PruneStatus::default());
            status.show(gauges);
            let published = self.published.clone();
            let pruner = Pruner::new(&self.config, &self.log, &self.service, self.vault(), published)?;
            Some(tokio::spawn(prune_now_and_then(pruner, Arc::clone(&self.cursors), status)))
        } else {
            None
        };
        Ok(Running { follower, reaper, sinks, gathering, pruning, tasks })
    }

    /// What the management port is shown.
    pub(crate) fn health(&self, running: &Running, cluster: Option<Clustered>) -> ShardHealth {
        ShardHealth {
            name: self.name.clone(),
            service: Arc::clone(&self.service),
            view: Arc::clone(&self.view),
            follower: Arc::clone(&running.follower),
            verification: Arc::clone(&self.verification),
            anchors: self.anchors.view(),
            cluster,
        }
    }

    /// Records the end of the service, and waits for what was not acknowledged yet, as long as it may.
    pub(crate) async fn end(&self, running: &mut Running, limit: Duration) {
        if let Some(pruning) = running.pruning.take() {
            // Cut short, it is begun anew.
            pruning.abort();
        }
        running.reaper.close().await;
        running.follower.close().await;
        running.gathering.abort();
        self.ledger.flush().await;
        let stopped = event(Action::ServiceStopped, []);
        if let Err(failure) = self.service.record(&self.service.node_caller(&self.house), stopped).await {
            error!(%failure, shard = %self.name, "the end of the service could not be recorded");
        }
        // What waits for a log that does not answer was never acknowledged: it need not hold up the end.
        if timeout(limit, self.service.close()).await.is_err() {
            error!(shard = %self.name, "the log did not take what was waiting in time");
        }
    }

    /// Hands on what is in the log by now, as far as that can be done in time, and lets go.
    pub(crate) async fn close(self, running: Running, limit: Duration) {
        // The last entries are in the log: what the other side takes in time need not wait for the next start.
        running.sinks.close(limit).await;
        running.tasks.iter().for_each(JoinHandle::abort);
        self.anchors.close(limit).await;
    }
}

/// What runs on a log.
pub(crate) struct Running {
    follower: Arc<Follower>,
    reaper: Reaper,
    sinks: Sinks,
    gathering: JoinHandle<()>,
    pruning: Option<JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
}

/// The folder of a file that a shard keeps beside what the first log keeps there. That place itself must be there: it may be a disk.
fn make_place(file: &Path) -> std::io::Result<()> {
    let Some(folder) = file.parent() else { return Ok(()) };
    for folder in folder.parent().into_iter().chain([folder]) {
        match std::fs::create_dir(folder) {
            Err(failure) if failure.kind() != std::io::ErrorKind::AlreadyExists => return Err(failure),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Follows changes to the credentials, by whichever node: a revoked key opens nothing after a second.
async fn refresh(holders: Arc<Keyholders>, log: Arc<dyn LogStore>, elsewhere: HashSet<RealmName>) {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        if let Err(failure) = holders.refresh(&*log, |realm| !elsewhere.contains(realm)).await {
            warn!(failure = &failure as &dyn Error, "the credentials cannot be read: going on with those known");
        }
    }
}

/// Every log of the configuration, opened: at least one.
pub(crate) struct Shards {
    /// The log that `log.url` names.
    pub first: Shard,
    others: Vec<Shard>,
}

impl Shards {
    /// Opens the logs, and refuses realms that have lived in another than their own. Nothing is recorded.
    ///
    /// # Errors
    /// Why one must not be used, or cannot: with its name, if there is more than one.
    pub(crate) async fn open(config: &Config) -> Result<(Self, Nonces), Failure> {
        config.check_places()?;
        let all: HashSet<RealmName> = config.realms.keys().map(|name| name.parse()).collect::<Result<_, _>>()?;
        let (mut opened, logs) = (Vec::new(), config.logs());
        let several = logs.len() > 1;
        for log in logs {
            let name = log.name.clone();
            let elsewhere =
                all.iter().filter(|realm| !log.config.realms.contains_key(realm.as_str())).cloned().collect();
            let shard = Shard::open(log, elsewhere).await;
            opened.push(shard.map_err(|failure| if several { of_shard(&name, &*failure) } else { failure })?);
        }
        let mut opened = opened.into_iter();
        let (first, nonces) = opened.next().ok_or("there is no log")?;
        let shards = Self { first, others: opened.map(|(shard, _)| shard).collect() };
        for shard in shards.each() {
            shard.refuse_strays().await?;
        }
        Ok((shards, nonces))
    }

    /// Each of them, the first before the others.
    pub(crate) fn each(&self) -> impl Iterator<Item = &Shard> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Whether there is more than one.
    pub(crate) fn are_several(&self) -> bool {
        !self.others.is_empty()
    }

    /// What is made of the log that each realm lives in.
    pub(crate) fn by_realm<T: Clone>(&self, make: impl Fn(&Shard) -> T) -> ByRealm<T> {
        let others = self.others.iter().flat_map(|shard| {
            let made = make(shard);
            let realms = shard.config.realms.keys().filter_map(|realm| realm.parse::<RealmName>().ok());
            realms.map(move |realm| (realm, made.clone())).collect::<Vec<_>>()
        });
        ByRealm::new(make(&self.first), others)
    }

    /// Begins on each; answers the keys that were made.
    ///
    /// # Errors
    /// As [`Shard::begin`].
    pub(crate) async fn begin(&self, holders: &Keyholders) -> Result<Vec<Minted>, Failure> {
        let mut minted = Vec::new();
        for shard in self.each() {
            let begun = shard.begin(holders).await;
            minted.extend(
                begun.map_err(|failure| if self.are_several() { of_shard(&shard.name, &*failure) } else { failure })?,
            );
        }
        Ok(minted)
    }

    /// Where a log's numbers are shown: with its name, if there is more than one.
    pub(crate) fn gauges<'m>(&self, shard: &Shard, metrics: &'m Metrics) -> Gauges<'m> {
        if self.are_several() { metrics.gauges_of("shard", shard.name.as_str()) } else { metrics.gauges() }
    }

    /// Takes them apart.
    pub(crate) fn into_each(self) -> impl Iterator<Item = Shard> {
        std::iter::once(self.first).chain(self.others)
    }
}
