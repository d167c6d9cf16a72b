//! The service: what it is made of, its start and its end. What is asked of it: `commands.rs`, `reading.rs`, `recording.rs`.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::cluster::Cluster;
use audit_log::{GroupCommit, GroupCommitConfig, LogIdentity, LogStore, Place, Recent, Sequencer};
use merkle_log::Signer;
use parking_lot::Mutex;
use sealing::Keyring;
use session_model::{Actor, Detail, Head, Policy, Protocol, RealmName, Role, SessionId, Timestamp};
use session_view::SessionView;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use crate::belief::ReadsFromLog;
use crate::clock::LogClock;
use crate::data_keys::DataKeys;
use crate::error::{ServiceError, Unavailable};
use crate::holding::{Filling, Holding};
use crate::idempotency::UnderWay;
use crate::looking::Looking;
use crate::pipeline::Pipeline;
use crate::progress::Progress;
use crate::replay::Replay;
use crate::replication::{SharedView, Told};
use crate::request::Caller;
use crate::turnstile::Turnstile;

/// What a service is made of.
pub struct Parts {
    /// The log.
    pub log: Arc<dyn LogStore>,
    /// The view.
    pub view: Arc<dyn SessionView>,
    /// The key-encryption key and its like.
    pub keyring: Keyring,
    /// Which log this is, and who signs for it.
    pub identity: LogIdentity,
    /// The time.
    pub clock: Arc<LogClock>,
}

/// How a service behaves.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// Name of this node, as it stands in leaves.
    pub node: String,
    /// The realms and what each demands.
    pub realms: HashMap<RealmName, Policy>,
    /// How long a change may take before it is answered with 503. Default 5 s.
    pub deadline: Duration,
    /// How long ago the view of this process alone may last have reflected the whole log for certain, before it is not trusted any
    /// more; `None` where the view is shared, or nobody else writes the log.
    pub max_staleness: Option<Duration>,
    /// The group commit.
    pub group_commit: GroupCommitConfig,
}

/// The subject under whose data key each realm seals what belongs to no subject. No subject can have this name: the
/// character is not XML.
pub(crate) const HOUSE: &str = "\u{0}house";

/// Every operation on sessions.
pub struct SessionService {
    pub(crate) log: Arc<dyn LogStore>,
    pub(crate) view: Arc<dyn SessionView>,
    pub(crate) keys: Arc<DataKeys>,
    pub(crate) replay: Replay,
    pub(crate) clock: Arc<LogClock>,
    pub(crate) config: ServiceConfig,
    pub(crate) progress: Arc<Progress>,
    pub(crate) contact: Arc<Contact>,
    pub(crate) looking: Looking,
    pub(crate) reads_from_log: ReadsFromLog,
    pub(crate) sequencer: Sequencer,
    pub(crate) commit: GroupCommit<Pipeline>,
    pub(crate) turnstile: Arc<Turnstile>,
    pub(crate) in_flight: UnderWay,
    pub(crate) marks: Mutex<hashbrown::HashMap<SessionId, Timestamp>>,
    pub(crate) cluster: OnceLock<Arc<Cluster>>,
    pub(crate) outbox: Arc<OnceLock<mpsc::Sender<Told>>>,
    recent: Arc<Recent>,
    pub(crate) shared_view: SharedView,
    pub(crate) holding: Arc<OnceLock<Arc<Holding>>>,
    pub(crate) filling: Filling,
}

/// When the log was last heard of.
#[derive(Debug)]
pub(crate) struct Contact {
    start: Instant,
    micros: AtomicI64,
    /// When it was asked for its size the last time that it answered; negative if it never did.
    asked: AtomicI64,
}

impl Contact {
    fn new() -> Self {
        Self { start: Instant::now(), micros: AtomicI64::new(0), asked: AtomicI64::new(-1) }
    }

    pub(crate) fn made(&self) {
        let since = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.micros.store(since, Ordering::Relaxed);
    }

    /// It answered how long it is, having been asked at this time.
    pub(crate) fn answered(&self, asked: Instant) {
        self.made();
        let since = asked.saturating_duration_since(self.start).as_micros();
        self.asked.fetch_max(i64::try_from(since).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Whether it has answered what it was asked at this time or later.
    pub(crate) fn asked_since(&self, then: Instant) -> bool {
        let then = then.saturating_duration_since(self.start).as_micros();
        u128::try_from(self.asked.load(Ordering::Relaxed)).is_ok_and(|asked| asked >= then)
    }

    /// How long ago it was asked, the last time that it answered.
    pub(crate) fn asked(&self) -> Option<Duration> {
        let then = u64::try_from(self.asked.load(Ordering::Relaxed)).ok()?;
        Some(self.start.elapsed().saturating_sub(Duration::from_micros(then)))
    }

    pub(crate) fn age(&self) -> Duration {
        let then = Duration::from_micros(self.micros.load(Ordering::Relaxed).unsigned_abs());
        self.start.elapsed().saturating_sub(then)
    }
}

impl fmt::Debug for SessionService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionService({})", self.config.node)
    }
}

impl SessionService {
    /// Starts the service's group commit on what it is made of.
    pub fn start(parts: Parts, config: ServiceConfig) -> Arc<Self> {
        let progress = Arc::new(Progress::default());
        let contact = Arc::new(Contact::new());
        let looking = Looking::new(Arc::clone(&parts.log), Arc::clone(&progress), Arc::clone(&contact));
        let clock = Arc::clone(&parts.clock);
        let (outbox, holding) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
        let recent: Arc<Recent> = Arc::default();
        let (view, told) = (Arc::clone(&parts.view), Arc::clone(&outbox));
        let (held, holds) = (Arc::clone(&recent), Arc::clone(&holding));
        let observe = move |time| clock.observe(time);
        let pipeline = Pipeline::new(view, Arc::clone(&progress), told, held, holds, observe);
        let sequencer = Sequencer::new(parts.identity);
        let commit =
            GroupCommit::start(Arc::clone(&parts.log), sequencer.clone(), Arc::new(pipeline), config.group_commit);
        let keys = Arc::new(DataKeys::new(Arc::clone(&parts.log), parts.keyring));
        Arc::new(Self {
            replay: Replay::new(Arc::clone(&parts.log), Arc::clone(&keys)),
            log: parts.log,
            view: parts.view,
            keys,
            clock: parts.clock,
            config,
            progress,
            contact,
            looking,
            reads_from_log: ReadsFromLog::default(),
            sequencer,
            commit,
            turnstile: Arc::default(),
            in_flight: Mutex::default(),
            marks: Mutex::default(),
            cluster: OnceLock::new(),
            outbox,
            recent,
            shared_view: Arc::default(),
            holding,
            filling: Mutex::default(),
        })
    }

    /// What a realm demands.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] if this node has no such realm.
    pub fn policy(&self, realm: &RealmName) -> Result<&Policy, ServiceError> {
        self.config.realms.get(realm).ok_or(ServiceError::NotFound)
    }

    /// What this service appended last.
    pub const fn recent(&self) -> &Arc<Recent> {
        &self.recent
    }

    /// The clock of all that this process does.
    pub fn clock(&self) -> &Arc<LogClock> {
        &self.clock
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Whether changes can be recorded, as far as the last attempt tells.
    pub fn is_available(&self) -> bool {
        self.commit.is_available()
    }

    /// How long nothing was heard of the log: it is asked four times a second.
    pub fn log_silence(&self) -> Duration {
        self.contact.age()
    }

    /// Entries that wait for the log.
    pub fn waiting(&self) -> usize {
        self.commit.waiting()
    }

    /// How many batches were made for a head that other nodes had moved meanwhile, since the start, and how many waited for their turn at it.
    pub fn rivalry(&self) -> (u64, u64) {
        (self.commit.lost(), self.commit.turns())
    }

    /// How much of the log the view reflects, and how long the log is, as far as known.
    pub fn progress(&self) -> (session_model::TreeSize, session_model::TreeSize) {
        (self.progress.reflected(), self.progress.size())
    }

    /// Signs checkpoints with these keys from the next commit on.
    pub fn sign_with(&self, signers: Vec<Arc<dyn Signer + Send + Sync>>) {
        self.sequencer.sign_with(signers);
    }

    /// Takes no more changes and returns when those under way are recorded and applied, and the use marks written.
    pub async fn close(&self) {
        if let Some(filling) = self.filling.lock().take() {
            filling.abort();
        }
        self.commit.close().await;
        self.flush_marks().await;
        self.keys.close();
    }

    /// Waits no longer than a change may take, and a moment for an append to say itself what became of it.
    pub(crate) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        const MOMENT: Duration = Duration::from_millis(50);
        let answer = tokio::time::timeout(self.config.deadline + MOMENT, work).await;
        answer.map_err(|_| ServiceError::Unavailable(Unavailable::LogRead))?
    }

    /// The node itself, asking.
    pub fn node_caller(&self, realm: &RealmName) -> Caller {
        Caller {
            realm: realm.clone(),
            actor: Actor { id: self.config.node.clone(), role: Role::Node },
            protocol: Protocol::Internal,
            origin: None,
            request_id: None,
            trace_id: None,
            min_index: None,
            detail: Detail::new(),
        }
    }

    /// Writes the marks of use that have gathered.
    pub async fn flush_marks(&self) {
        let marks: Vec<_> = std::mem::take(&mut *self.marks.lock()).into_iter().collect();
        if marks.is_empty() {
            return;
        }
        if let Err(failure) = self.log.mark_uses(&marks).await {
            warn!(failure = &failure as &dyn std::error::Error, "marks of use could not be written: trying again");
            let mut waiting = self.marks.lock();
            for (id, at) in marks {
                let mark = waiting.entry(id).or_insert(at);
                *mark = (*mark).max(at);
            }
        }
    }
}

pub(crate) fn place_of(head: &Head) -> Place {
    Place { index: head.index, hash: head.hash, tree_size: head.tree_size }
}
