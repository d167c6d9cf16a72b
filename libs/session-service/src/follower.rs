//! Keeps the view true to the log: rebuilds it at start, and applies what other processes append.

use std::sync::Arc;
use std::time::Duration;

use audit_log::{ReadError, StoredBatch, StoredEntry};
use hashbrown::HashMap;
use parking_lot::Mutex;
use session_model::{LeafIndex, Session, SessionId, TreeSize, apply};
use session_view::{ViewError, Viewed};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use crate::replay::{Opened, ReplayError};
use crate::service::SessionService;

/// How far the first rebuild of the view has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebuildState {
    /// Under way. Sessions that are not in the view yet are read from the log meanwhile.
    Running,
    /// The view has reflected the whole log once.
    Complete,
}

/// How the view follows the log.
#[derive(Debug, Clone, Copy)]
pub struct FollowerStatus {
    /// The first rebuild.
    pub rebuild: RebuildState,
    /// Seconds it took, or has taken so far.
    pub rebuild_seconds: f64,
    /// Entries it read.
    pub rebuild_entries: u64,
}

/// Follows the log on behalf of the view.
pub struct Follower {
    status: Arc<Mutex<FollowerStatus>>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// How long what a peer sent may be on its way before it is read from the log instead.
const UNDER_WAY: Duration = Duration::from_millis(10);
/// Entries replayed in one go: a few MB.
const RUN: usize = 4_096;

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Look(#[from] Arc<ReadError>),
    #[error(transparent)]
    View(#[from] ViewError),
}

impl Follower {
    /// Starts following.
    pub fn start(service: Arc<SessionService>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let status = Arc::new(Mutex::new(FollowerStatus {
            rebuild: RebuildState::Running,
            rebuild_seconds: 0.0,
            rebuild_entries: 0,
        }));
        let task = tokio::spawn(follow(service, Arc::clone(&status), stopped));
        Self { status, stop, task: Mutex::new(Some(task)) }
    }

    /// How it is doing.
    pub fn status(&self) -> FollowerStatus {
        *self.status.lock()
    }

    /// Stops following.
    pub async fn close(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().take();
        if let Some(task) = task
            && let Err(failure) = task.await
        {
            warn!(%failure, "the follower failed");
        }
    }
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Follower({:?})", self.status())
    }
}

async fn follow(service: Arc<SessionService>, status: Arc<Mutex<FollowerStatus>>, mut stopped: watch::Receiver<bool>) {
    let started = Instant::now();
    service.recognise_view().await;
    service.copy_from_peer().await;
    if service.holding.get().is_some()
        && let Ok(head) = service.log.head().await
    {
        // What it comes to hold it has from others, or from what the log holds of open sessions: there is nothing to apply before that.
        service.progress.applied(LeafIndex(0), head.size());
    }
    // A shared view may reflect much of the log already.
    if let Ok(reflected) = service.view.reflects().await {
        service.progress.applied(LeafIndex(0), reflected);
    }
    // What the view was last told that it reflects; less than that, and it has lost what it held.
    let mut told = TreeSize(0);
    // The losses that are being made good, or were.
    let (mut noticed, mut restored) = (0, 0);
    loop {
        service.recognise_view().await;
        let losses = service.view.losses();
        if let Ok(reflects) = service.view.reflects().await {
            if reflects < told || losses != noticed {
                info!(%reflects, "the view may have lost what it held: applying the log again");
                // Not merely from what it was told: states that were applied since may be among the lost.
                service.progress.lost(reflects);
                told = reflects;
            } else if service.shared_view.lock().is_some() {
                // Others apply to it too: what they have, this process need not apply again.
                service.progress.applied(LeafIndex(0), reflects);
            }
            noticed = losses;
        }
        match catch_up(&service, &status, started, &mut told, noticed != restored).await {
            Ok(()) => {
                if noticed != restored {
                    service.view.restored(noticed);
                    restored = noticed;
                }
                let mut status = status.lock();
                if status.rebuild == RebuildState::Running {
                    status.rebuild = RebuildState::Complete;
                    status.rebuild_seconds = started.elapsed().as_secs_f64();
                    info!(
                        entries = status.rebuild_entries,
                        seconds = status.rebuild_seconds,
                        "the view was rebuilt from the log"
                    );
                }
            }
            Err(failure) => warn!(failure = &failure as &dyn std::error::Error, "the view could not follow the log"),
        }
        let next_look = service.looking.next();
        loop {
            let woken = tokio::select! {
                _ = stopped.changed() => return,
                woken = timeout_at(next_look, service.progress.behind.notified()) => woken.is_ok(),
            };
            if *stopped.borrow() {
                return;
            }
            if !woken || service.cluster().is_none() {
                break;
            }
            // Most often it is only that what peers send has overtaken one another.
            if !service.progress.was_urgent() {
                sleep(UNDER_WAY).await;
            }
            if service.progress.lags() {
                break;
            }
        }
    }
}

/// Applies everything the view lacks.
async fn catch_up(
    service: &SessionService,
    status: &Mutex<FollowerStatus>,
    started: Instant,
    told: &mut TreeSize,
    restoring: bool,
) -> Result<(), FollowError> {
    let size = service.looking.look().await?;
    let rebuilding = status.lock().rebuild == RebuildState::Running;
    let mut next: Option<Result<Vec<StoredBatch>, ReadError>> = None;
    loop {
        let reflected = service.progress.reflected();
        if reflected >= size {
            break;
        }
        let batches = match next.take() {
            Some(batches) => batches?,
            None => service.log.batches(LeafIndex(reflected.0), RUN).await?,
        };
        let Some(end) = batches.last().map(StoredBatch::tree_size) else { break };
        // The next run is read while this one is opened and applied.
        let read_ahead =
            async { if end < size { Some(service.log.batches(LeafIndex(end.0), RUN).await) } else { None } };
        let (applied, ahead) = tokio::join!(apply_run(service, batches, rebuilding || restoring), read_ahead);
        applied?;
        next = ahead.filter(|_| service.progress.reflected().0 <= end.0);
        service.progress.applied(LeafIndex(reflected.0), end);
        // Others may have run ahead of us meanwhile: then what was read ahead is behind.
        if service.progress.reflected() != end {
            next = None;
        }
        let mut status = status.lock();
        if status.rebuild == RebuildState::Running {
            status.rebuild_entries += end.0 - reflected.0;
            status.rebuild_seconds = started.elapsed().as_secs_f64();
        }
    }
    let reflected = service.progress.reflected();
    if reflected > *told {
        service.view.set_reflects(reflected).await?;
        *told = reflected;
    }
    Ok(())
}

/// Folds a run of entries into the view; with the uses that were marked beside the log, for a view that may lack them.
async fn apply_run(service: &SessionService, batches: Vec<StoredBatch>, with_marks: bool) -> Result<(), FollowError> {
    let entries: Vec<StoredEntry> = batches.into_iter().flat_map(entries_of).collect();
    let opened = open_on_all_cores(service, entries).await?;
    let mut states: HashMap<SessionId, Option<Session>> = HashMap::with_capacity(opened.len());
    for Opened { recorded, event } in opened {
        let id = recorded.session;
        if service.holding.get().is_some_and(|holding| !holding.takes(id, recorded.head.index)) {
            continue;
        }
        let before = match states.remove(&id) {
            Some(state) => state,
            None if recorded.version.0 == 1 => None,
            None => match service.view.held(id).await {
                Ok(Some(Viewed::Active(session))) if session.head.index < recorded.head.index => {
                    Some(Arc::unwrap_or_clone(session))
                }
                // Newer already, or over.
                Ok(Some(_)) => continue,
                Ok(None) | Err(ViewError::Undecodable(_)) => None,
                Err(failure) => return Err(failure.into()),
            },
        };
        let follows = before.as_ref().map_or(0, |session| session.version.0) + 1 == recorded.version.0;
        let after = if follows {
            apply(before, &event, &recorded)
        } else {
            match service.replay.session(id, None).await {
                Ok(session) => session,
                Err(ReplayError::Erased) => None,
                Err(failure) => return Err(failure.into()),
            }
        };
        states.insert(id, after);
    }
    let states: Vec<Arc<Session>> = states.into_values().flatten().map(Arc::new).collect();
    // Again: it may hold less by now.
    let states = service.held_of(states);
    // A shared view has a deadline for each call: a bounded number of states keeps well within it.
    for some in states.chunks(1_024) {
        let _applied = service.view.apply(some).await?;
    }
    if with_marks {
        let active: Vec<SessionId> = states.iter().filter(|s| s.ended().is_none()).map(|s| s.id).collect();
        let uses = service.log.uses(&active).await?;
        let marks: Vec<_> = active.into_iter().zip(uses).filter_map(|(id, used)| Some((id, used?))).collect();
        service.view.mark_used(&marks).await?;
    }
    Ok(())
}

/// Opening is all cryptography and parsing: two halves on two cores.
async fn open_on_all_cores(
    service: &SessionService,
    mut entries: Vec<StoredEntry>,
) -> Result<Vec<Opened>, ReplayError> {
    if entries.len() < 256 {
        return service.replay.open_run(entries).await;
    }
    let second = entries.split_off(entries.len() / 2);
    let replay = service.replay.clone();
    let half = tokio::spawn(async move { replay.open_run(second).await });
    let mut opened = service.replay.open_run(entries).await?;
    let second = half.await.map_err(|_| ReadError::Corrupt("a task that opens entries failed".into()))?;
    opened.extend(second?);
    Ok(opened)
}

fn entries_of(batch: StoredBatch) -> impl Iterator<Item = StoredEntry> {
    let tree_size: TreeSize = batch.tree_size();
    (batch.first.0..).zip(batch.leaves).zip(batch.sealed).map(move |((index, leaf), sealed)| StoredEntry {
        index: LeafIndex(index),
        leaf,
        sealed,
        tree_size,
    })
}
