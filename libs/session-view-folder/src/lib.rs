//! Session view in a folder that the nodes of a cluster share, for those who have a shared file system and want no Redis.
//!
//! * One folder a session, spread over 4,096; a file a state, sealed (`session-value`), named by the leaf index it reflects
//!   (module `names`), so that writers need no lock and none undoes another (module `store`).
//! * An index by deadline: empty files by minute, made before the state they are for, moved when they turn out early.
//! * A cache in this process, believed for at most `max_staleness` (module `near`), because a folder tells of no change.
//! * All file work is done on threads that may block, a bounded number of them, with a deadline and a circuit breaker: a
//!   network file system that hangs costs callers nothing once it is known to.
//!
//! What it deliberately lacks: `flock`, leases, clocks of hosts, notification, and `fsync` of each state. A state that a
//! power cut took is in the log: what the folder claims to reflect is raised only after `syncfs`, and a process that has just
//! opened the folder is in doubt of it ([`session_view::Doubt`]) until everything since was applied again.
//!
//! **Trust:** whoever controls the folder can withhold or forget sessions, put an earlier value of a session back, and keep
//! sessions from idling out; not read a session, make one up, or move one. Files are 0600 in folders of 0700.
//!
//! The file system must show a name that one host has made to the others at once. Local ones, CephFS and the like do; NFS does if
//! it is mounted with `actimeo=0,lookupcache=none` (or `noac`), and its server must export `sync`.

mod names;
mod near;
mod store;

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use session_model::{Session, SessionId, Timestamp, TreeSize};
use session_value::Sealer;
use session_view::{Applied, Doubt, Reflected, SessionView, ViewError, ViewStatus, Viewed};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

use crate::near::Near;
use crate::store::{FANS, FileError, Found, Store};

/// Where the folder is, and how much to keep in front of it.
#[derive(Clone)]
pub struct FolderViewConfig {
    /// A folder that is there, such as the place where the shared file system is mounted. The view makes one of its own in it.
    pub path: PathBuf,
    /// Tells deployments apart that share a folder: 1 to 64 of `A-Z`, `a-z`, `0-9`, `-`, `_`; the name of the view's own.
    pub namespace: String,
    /// Seals the values: 32 bytes, the same on every node. With another key everything is undecodable, and rebuilt.
    pub sealing_key: [u8; 32],
    /// How long an operation may take; a batch is given [`STATE_TIMEOUT`] more for each state. Default 250 ms.
    pub operation_timeout: Duration,
    /// Bytes of sessions kept in this process, by estimate. 0 keeps none. Default 64 MiB.
    pub near_cache_bytes: usize,
    /// How long what is kept in this process is believed without a look at the folder. Default 2 s.
    pub max_staleness: Duration,
}

impl FolderViewConfig {
    /// With the defaults for all that has one.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, namespace: impl Into<String>, sealing_key: [u8; 32]) -> Self {
        Self {
            path: path.into(),
            namespace: namespace.into(),
            sealing_key,
            operation_timeout: Duration::from_millis(250),
            near_cache_bytes: 64 << 20,
            max_staleness: Duration::from_secs(2),
        }
    }
}

impl fmt::Debug for FolderViewConfig {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FolderViewConfig")
            .field("path", &self.path)
            .field("namespace", &self.namespace)
            .field("operation_timeout", &self.operation_timeout)
            .field("near_cache_bytes", &self.near_cache_bytes)
            .field("max_staleness", &self.max_staleness)
            .finish_non_exhaustive()
    }
}

/// Why a configuration cannot be used. That the folder is not there is no reason: it may be mounted later.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The path is not absolute.
    #[error("the path of the folder must be absolute")]
    Path,
    /// The namespace is malformed.
    #[error("a namespace is 1 to 64 of A-Z, a-z, 0-9, '-' and '_'")]
    Namespace,
    /// The timeout is zero.
    #[error("the timeout must be at least 1 ms")]
    Span,
    /// Everybody may write to the folder, so that anybody could have put something there.
    #[error("the folder may be written to by everybody: `chmod 700` it")]
    Permissions,
    /// OpenSSL lacks AES-256-GCM, HMAC-SHA-256 or randomness.
    #[error("OpenSSL cannot seal")]
    Seal(#[source] Box<dyn Error + Send + Sync>),
}

/// What a batch is given beyond the timeout of one operation, for each state: some eight operations on a network's file
/// system, [`LANES`] states at once.
pub const STATE_TIMEOUT: Duration = Duration::from_millis(5);

/// States of a batch that are written at once: the wait is for the network, not for the processor.
const LANES: usize = 8;
/// States that are written by one thread one after another, rather than to wake another.
const STATES_A_LANE: usize = 16;
/// Threads at work on the folder. Beyond it callers wait, within their timeout: a file system that hangs takes no more.
const THREADS: usize = 32;
/// Timeouts in a row that open the breaker: one slow answer is no outage.
const FAILURES: u32 = 5;
/// How often the folder is looked at: whether it is there, and can be written.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// What the folder reflects is written down at most this often, because everything must be on the disk then. What was
/// applied since is applied again by whoever opens the folder next.
const REFLECTS_INTERVAL: Duration = Duration::from_secs(5);

/// The view in a shared folder.
///
/// `get` always looks at the folder, so it is at least as new as what any node had applied when it was called; `peek`
/// answers from this process and may be older by `max_staleness`.
pub struct FolderView {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    store: Arc<Store>,
    near: Near,
    doubt: Doubt,
    timeout: Duration,
    near_cache_bytes: usize,
    threads: Arc<Semaphore>,
    /// Timeouts in a row. At [`FAILURES`] callers are told so at once.
    timeouts: AtomicU32,
    /// Whether the last look at the folder went well.
    healthy: AtomicBool,
    reflected: Reflected,
}

impl FolderView {
    /// Opens the folder. If it is not there the view is made nevertheless, is unavailable, and opens it when it can.
    ///
    /// # Errors
    /// [`ConfigError`] for a configuration that can never work.
    pub async fn open(config: FolderViewConfig) -> Result<Self, ConfigError> {
        let FolderViewConfig { path, namespace, sealing_key, operation_timeout, near_cache_bytes, max_staleness } =
            config;
        let sealing_key = Zeroizing::new(sealing_key);
        if !path.is_absolute() {
            return Err(ConfigError::Path);
        }
        let plain = namespace.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if !plain || !(1..=64).contains(&namespace.len()) {
            return Err(ConfigError::Namespace);
        }
        if operation_timeout < Duration::from_millis(1) {
            return Err(ConfigError::Span);
        }
        let sealer = Sealer::new(&namespace, &sealing_key);
        let mut writer = [0; 8];
        openssl::rand::rand_bytes(&mut writer).map_err(|error| ConfigError::Seal(error.into()))?;
        let writer = u64::from_be_bytes(writer);
        let store = Arc::new(Store::new(path.join(namespace), sealer, writer));

        let shared = Arc::new(Shared {
            store: Arc::clone(&store),
            near: Near::new(near_cache_bytes, max_staleness),
            doubt: Doubt::default(),
            timeout: operation_timeout,
            near_cache_bytes,
            threads: Arc::new(Semaphore::new(THREADS)),
            timeouts: AtomicU32::new(0),
            healthy: AtomicBool::new(false),
            reflected: Reflected::every(REFLECTS_INTERVAL),
        });
        match timeout(operation_timeout, spawn_blocking(move || store.open())).await {
            Ok(Ok(Err(FileError::Open))) => return Err(ConfigError::Permissions),
            Ok(Ok(Ok(()))) => shared.healthy.store(true, Relaxed),
            Ok(Ok(Err(error))) => tracing::warn!(
                error = &error as &dyn Error,
                "the folder of the session view is not there yet: the session view will be without it"
            ),
            Ok(Err(_)) | Err(_) => tracing::warn!("the folder of the session view does not answer"),
        }
        // Nodes begin anywhere, so that together they sweep sooner.
        let task = tokio::spawn(keep(Arc::clone(&shared), (writer % u64::from(FANS)) as u16));
        Ok(Self { shared, task })
    }
}

impl Drop for FolderView {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for FolderView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FolderView({:?})", self.status())
    }
}

/// Looks at the folder now and then, opens it when it is there (again), and sweeps it. Never returns.
async fn keep(shared: Arc<Shared>, mut fan: u16) {
    loop {
        sleep(PROBE_INTERVAL).await;
        let store = Arc::clone(&shared.store);
        let looked = spawn_blocking(move || {
            let looked = store.probe();
            if matches!(looked, Err(FileError::Missing)) {
                return store.open().map(|()| true);
            }
            looked.map(|()| false)
        });
        let healthy = match looked.await {
            Ok(Ok(reopened)) => {
                if reopened {
                    tracing::info!("the session view has opened its folder");
                    shared.doubt.lost();
                    shared.near.forget_all();
                }
                // The breaker closes.
                shared.timeouts.store(0, Relaxed);
                true
            }
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn Error, "the folder of the session view is not as it should be");
                false
            }
            Err(_) => false,
        };
        if shared.healthy.swap(healthy, Relaxed) && !healthy {
            tracing::warn!("the session view has lost its folder, or cannot write to it");
        }
        if healthy {
            let store = Arc::clone(&shared.store);
            match spawn_blocking(move || store.sweep(fan)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(error = &error as &dyn Error, "a folder could not be swept"),
                Err(_) => tracing::warn!("sweeping the folder of the session view failed"),
            }
            fan = (fan + 1) % FANS;
        }
    }
}

/// Why the folder was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("the folder hangs: the circuit breaker is open")]
    Open,
    #[error("the folder did not answer in time")]
    Timeout,
    #[error("a thread that reads or writes files failed")]
    Thread,
    #[error("what was applied last may not stand in the folder")]
    InDoubt,
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<CallError> for ViewError {
    fn from(error: CallError) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

impl Shared {
    /// Runs file work on a thread that may block, at most for `limit`. What takes longer goes on, and its end is not heard of.
    async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&Store) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, CallError> {
        if self.timeouts.load(Relaxed) >= FAILURES {
            return Err(CallError::Open);
        }
        let (store, threads) = (Arc::clone(&self.store), Arc::clone(&self.threads));
        let done = timeout(limit, async move {
            let permit = threads.acquire_owned().await.map_err(|_| CallError::Thread)?;
            let done = spawn_blocking(move || {
                let done = work(&store);
                drop(permit);
                done
            });
            Ok(done.await.map_err(|_| CallError::Thread)??)
        });
        match done.await {
            Err(_) => {
                self.timeouts.fetch_add(1, Relaxed);
                Err(CallError::Timeout)
            }
            Ok(done) => {
                if self.timeouts.load(Relaxed) != 0 {
                    self.timeouts.store(0, Relaxed);
                }
                done
            }
        }
    }

    async fn read(&self, id: SessionId) -> Result<Option<Viewed>, ViewError> {
        let known = self.near.known(id);
        let confirmed = Instant::now();
        match self.run(self.timeout, move |store| store.get(id, known)).await {
            Ok(Some(found)) => Ok(Some(self.near.learn(id, found, confirmed))),
            Ok(None) => {
                self.near.forget(id);
                Ok(None)
            }
            Err(CallError::File(FileError::Undecodable)) => {
                self.near.forget(id);
                Err(ViewError::Undecodable(id))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Applies states one after another, with their places in the batch.
    async fn apply_lane(
        &self,
        states: Vec<(usize, Arc<Session>)>,
        limit: Duration,
    ) -> Result<Vec<(usize, Applied)>, ViewError> {
        let confirmed = Instant::now();
        let ids = states.clone();
        let done = self.run(limit, move |store| {
            let mut done: Vec<(usize, Arc<Session>, Applied, Option<Found>)> = Vec::with_capacity(states.len());
            let (mut failed, mut why) = (Vec::new(), None);
            for (place, state) in states {
                match store.apply(&state) {
                    Ok((applied, found)) => done.push((place, state, applied, found)),
                    // The others are tried all the same: what fails for one need not fail for all.
                    Err(error) => {
                        failed.push(state);
                        why = Some(error);
                    }
                }
            }
            Ok((done, failed, why))
        });
        let (done, failed, why) = match done.await {
            Ok(done) => done,
            Err(error) => {
                self.doubt.failed(ids.iter().map(|(_, state)| &**state));
                ids.iter().for_each(|(_, state)| self.near.forget(state.id));
                return Err(error.into());
            }
        };
        let mut applied = Vec::with_capacity(done.len());
        for (place, state, outcome, found) in done {
            self.doubt.settled(&state);
            match found {
                Some(found) => drop(self.near.learn(state.id, found, confirmed)),
                // Something newer stands there, or the same: to be read when it is asked for.
                None => self.near.outdate(state.id, &state),
            }
            applied.push((place, outcome));
        }
        self.doubt.failed(failed.iter().map(|state| &**state));
        failed.iter().for_each(|state| self.near.forget(state.id));
        match why {
            None => Ok(applied),
            Some(error) => Err(CallError::from(error).into()),
        }
    }
}

#[async_trait]
impl SessionView for FolderView {
    fn peek(&self, id: SessionId) -> Option<Viewed> {
        if self.shared.doubt.spares(id) { self.shared.near.peek(id) } else { None }
    }

    async fn get(&self, id: SessionId) -> Result<Option<Viewed>, ViewError> {
        if !self.shared.doubt.spares(id) {
            return Err(CallError::InDoubt.into());
        }
        self.shared.read(id).await
    }

    async fn held(&self, id: SessionId) -> Result<Option<Viewed>, ViewError> {
        self.shared.read(id).await
    }

    async fn apply(&self, states: &[Arc<Session>]) -> Result<Vec<Applied>, ViewError> {
        // States of one session stay in one lane, in their order.
        let width = states.len().div_ceil(STATES_A_LANE).clamp(1, LANES);
        let mut lanes: Vec<Vec<(usize, Arc<Session>)>> = vec![Vec::new(); width];
        let mut lane_of: HashMap<SessionId, usize> = HashMap::with_capacity(states.len());
        for (place, state) in states.iter().enumerate() {
            let lane = *lane_of.entry(state.id).or_insert(place % width);
            if let Some(lane) = lanes.get_mut(lane) {
                lane.push((place, Arc::clone(state)));
            }
        }
        let limit = self.shared.timeout + STATE_TIMEOUT * u32::try_from(states.len()).unwrap_or(u32::MAX);
        let lanes = lanes.into_iter().filter(|lane| !lane.is_empty());
        // All of them come to their end, so that what failed is known.
        let done = join_all(lanes.map(|lane| self.shared.apply_lane(lane, limit))).await;
        let done: Vec<_> = done.into_iter().collect::<Result<_, _>>()?;
        let mut applied: Vec<_> = done.into_iter().flatten().collect();
        applied.sort_unstable_by_key(|(place, _)| *place);
        Ok(applied.into_iter().map(|(_, applied)| applied).collect())
    }

    async fn mark_used(&self, uses: &[(SessionId, Timestamp)]) -> Result<(), ViewError> {
        if uses.is_empty() {
            return Ok(());
        }
        let limit = self.shared.timeout + STATE_TIMEOUT * u32::try_from(uses.len()).unwrap_or(u32::MAX);
        let uses = uses.to_vec();
        let marked = self.shared.run(limit, move |store| {
            let marked = uses.into_iter().filter_map(|(id, at)| match store.mark_used(id, at) {
                Ok(true) => Some(Ok((id, at))),
                Ok(false) => None,
                Err(failure) => Some(Err(failure)),
            });
            marked.collect::<Result<Vec<_>, _>>()
        });
        for (id, at) in marked.await? {
            self.shared.near.mark(id, at);
        }
        Ok(())
    }

    async fn due(&self, before: Timestamp, limit: usize) -> Result<Vec<SessionId>, ViewError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        // A look at each session that may be due; who asks is in no hurry.
        let patience = self.shared.timeout + STATE_TIMEOUT * u32::try_from(limit.min(4_096)).unwrap_or(u32::MAX);
        Ok(self.shared.run(patience, move |store| store.due(before, limit)).await?)
    }

    /// Always: the disk has an end, but what is not stored is read from the log.
    fn has_room(&self) -> bool {
        true
    }

    async fn quarantine(&self, id: SessionId) -> Result<(), ViewError> {
        self.shared.near.forget(id);
        Ok(self.shared.run(self.shared.timeout, move |store| store.quarantine(id)).await?)
    }

    async fn reflects(&self) -> Result<TreeSize, ViewError> {
        let stands = self.shared.run(self.shared.timeout, Store::reflects).await?;
        Ok(self.shared.reflected.found(stands))
    }

    async fn set_reflects(&self, size: TreeSize) -> Result<(), ViewError> {
        if self.shared.reflected.said(size) {
            // Everything must come to the disk first, which takes what it takes.
            self.shared.run(self.shared.timeout + REFLECTS_INTERVAL, move |store| store.set_reflects(size)).await?;
            self.shared.reflected.written(size);
        }
        Ok(())
    }

    async fn identity(&self) -> Result<Option<[u8; 16]>, ViewError> {
        let mut fresh = [0; 16];
        openssl::rand::rand_bytes(&mut fresh).map_err(|failure| ViewError::Unavailable(failure.into()))?;
        Ok(self.shared.run(self.shared.timeout, move |store| store.identity(fresh)).await?)
    }

    fn losses(&self) -> u64 {
        self.shared.doubt.losses()
    }

    fn restored(&self, losses: u64) {
        self.shared.doubt.restored(losses);
    }

    fn status(&self) -> ViewStatus {
        let (held, bytes) = self.shared.near.size();
        let available = self.shared.healthy.load(Relaxed) && self.shared.timeouts.load(Relaxed) < FAILURES;
        let in_doubt = !self.shared.doubt.is_over();
        ViewStatus { kind: "folder", available, in_doubt, held, bytes, budget: Some(self.shared.near_cache_bytes) }
    }
}

#[cfg(test)]
mod tests {
    use session_view::test_util::{id, session};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_folder_that_hangs_costs_nothing_once_it_is_known_to() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = FolderViewConfig::new(folder.path(), "ns", [7; 32]);
        config.operation_timeout = Duration::from_millis(100);
        let view = FolderView::open(config).await.unwrap();
        view.restored(view.losses());
        for _ in 0..FAILURES {
            let hang = |_: &Store| -> Result<(), FileError> {
                std::thread::sleep(Duration::from_millis(400));
                Ok(())
            };
            assert!(matches!(view.shared.run(Duration::from_millis(10), hang).await, Err(CallError::Timeout)));
        }
        assert!(!view.status().available);
        let start = Instant::now();
        for _ in 0..1_000 {
            assert!(matches!(view.get(id(1)).await, Err(ViewError::Unavailable(_))));
        }
        assert!(start.elapsed() < Duration::from_millis(100), "an open breaker costs {:?} for 1,000", start.elapsed());
        assert!(matches!(view.apply(&[Arc::new(session(1, 1))]).await, Err(ViewError::Unavailable(_))));
        while !view.status().available {
            assert!(start.elapsed() < Duration::from_secs(10), "the breaker stays open");
            sleep(Duration::from_millis(20)).await;
        }
        assert!(view.get(id(2)).await.unwrap().is_none());
        assert!(view.get(id(1)).await.is_err(), "whether it was applied nobody knows");
        assert_eq!(view.apply(&[Arc::new(session(1, 1))]).await.unwrap(), [Applied::Yes]);
        assert!(view.get(id(1)).await.unwrap().is_some());
    }
}
