//! The task that keeps one place up to date.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use audit_log::{LogHead, LogReader};
use parking_lot::Mutex;
use sealing::{VerifierKey, VerifierKeys};
use session_model::TreeSize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{error, warn};

use crate::{Anchor, ContradictionError, PlaceError, compare};

/// How a place is doing.
#[derive(Debug, Clone)]
pub struct AnchorStatus {
    /// What kind of place: `file`, `s3`, `tsa`.
    pub kind: &'static str,
    /// Where.
    pub place: String,
    /// Size of the newest checkpoint there, as far as known.
    pub size: Option<TreeSize>,
    /// When that was last found or made so.
    pub at: Option<Instant>,
    /// Why the last attempt failed, if it did.
    pub failure: Option<String>,
    /// Whether the log and the place contradict each other.
    pub contradicted: bool,
}

/// After how long a place that failed is tried again, if its turn would come later.
const RETRY: Duration = Duration::from_secs(60);
/// The same for the last checkpoint: there is no later turn.
const RETRY_LAST: Duration = Duration::from_millis(200);

/// Keeps a place up to date. Compares the log with what is there before it keeps anything: a log that was rolled back while the service ran
/// is noticed, and the proof of it is never replaced.
pub struct Keeper {
    anchor: Arc<dyn Anchor>,
    status: Arc<Mutex<AnchorStatus>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keeper({})", self.anchor.place())
    }
}

struct Task {
    anchor: Arc<dyn Anchor>,
    log: Arc<dyn LogReader>,
    keys: VerifierKeys,
    status: Arc<Mutex<AnchorStatus>>,
    kept: Kept,
}

/// What is known to be at a place.
#[derive(Default)]
enum Kept {
    /// Nothing: it was never asked.
    #[default]
    Unknown,
    /// This checkpoint, if any.
    Known(Option<String>),
}

/// Why the newest checkpoint is not known to be at a place.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The place cannot be asked, or did not take it.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The log cannot be read, or contradicts what is there.
    #[error(transparent)]
    Contradiction(#[from] ContradictionError),
    /// The process is about to end.
    #[error("the place was not asked to the end")]
    Cancelled(#[from] tokio::task::JoinError),
}

/// Keeps the newest checkpoint of a log at a place, after a comparison with what is there; answers how long the log was, if it has a checkpoint.
///
/// # Errors
/// [`KeepError`]; the place then has what it had, unless it failed itself.
pub async fn keep_newest(
    anchor: &Arc<dyn Anchor>,
    log: &dyn LogReader,
    keys: &[VerifierKey],
) -> Result<Option<TreeSize>, KeepError> {
    keep(anchor, log, keys, &mut Kept::Unknown).await
}

async fn keep(
    anchor: &Arc<dyn Anchor>,
    log: &dyn LogReader,
    keys: &[VerifierKey],
    kept: &mut Kept,
) -> Result<Option<TreeSize>, KeepError> {
    // Asked before the log is: others append and keep meanwhile, and what they keep must not seem to be ahead of the log.
    let there = match std::mem::take(kept) {
        Kept::Known(there) => there,
        Kept::Unknown => {
            let asked = Arc::clone(anchor);
            tokio::task::spawn_blocking(move || asked.newest()).await??
        }
    };
    let head: LogHead = log.head().await.map_err(ContradictionError::from)?;
    if let Some(there) = &there {
        // Each time anew: the database may be rolled back while we run.
        compare(log, &head, there, anchor.place(), keys).await?;
    }
    if there != head.checkpoint
        && let Some(checkpoint) = head.checkpoint.clone()
    {
        let anchor = Arc::clone(anchor);
        let size = head.size();
        tokio::task::spawn_blocking(move || anchor.keep(size, &checkpoint)).await??;
    }
    let size = head.checkpoint.is_some().then_some(head.size());
    *kept = Kept::Known(head.checkpoint);
    Ok(size)
}

impl Keeper {
    /// Starts to keep a place, looking at the log every `pause`.
    pub fn start(
        anchor: Arc<dyn Anchor>,
        log: Arc<dyn LogReader>,
        keys: impl Into<VerifierKeys>,
        pause: Duration,
    ) -> Self {
        let keys = keys.into();
        let status = Arc::new(Mutex::new(AnchorStatus {
            kind: anchor.kind(),
            place: anchor.place().to_owned(),
            size: None,
            at: None,
            failure: None,
            contradicted: false,
        }));
        let (stop, mut stopping) = watch::channel(false);
        let mut task =
            Task { anchor: Arc::clone(&anchor), log, keys, status: Arc::clone(&status), kept: Kept::Unknown };
        let running = tokio::spawn(async move {
            let mut ticks = interval(pause);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {
                        task.turn().await;
                        let status = task.status.lock();
                        match (&status.failure, status.size) {
                            (Some(_), _) => ticks.reset_after(pause.min(RETRY)),
                            // A log without entries: its first is about to come.
                            (None, None) => ticks.reset_after(pause.min(Duration::from_secs(1))),
                            (None, Some(_)) => {}
                        }
                    }
                    _ = stopping.changed() => break task.last_turn().await,
                }
            }
        });
        Self { anchor, status, stop, task: running }
    }

    /// How it is doing.
    pub fn status(&self) -> Arc<Mutex<AnchorStatus>> {
        Arc::clone(&self.status)
    }

    /// Keeps the newest checkpoint and ends; gives up after `limit`.
    pub async fn close(mut self, limit: Duration) {
        // The task may have ended already.
        let _nobody_listens = self.stop.send(true);
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            warn!(place = self.anchor.place(), "the last checkpoint could not be kept in time");
            self.task.abort();
        }
    }
}

impl Task {
    /// Keeps the last checkpoint. What fails is tried again, until whoever ends the keeper waits no longer: else what came since the turn before
    /// could be taken away unnoticed. A place that had failed before is not waited for.
    async fn last_turn(&mut self) {
        let was_well = self.status.lock().failure.is_none();
        loop {
            self.turn().await;
            let status = self.status.lock().clone();
            if status.failure.is_none() || status.contradicted || !was_well {
                return;
            }
            sleep(RETRY_LAST).await;
        }
    }

    async fn turn(&mut self) {
        // Commands keep the file too, and reading it costs nothing.
        if self.anchor.kind() == "file" {
            self.kept = Kept::Unknown;
        }
        let outcome = keep(&self.anchor, &*self.log, &self.keys.current(), &mut self.kept).await;
        let mut status = self.status.lock();
        match outcome {
            Ok(Some(size)) => {
                status.size = Some(size);
                status.at = Some(Instant::now());
                status.failure = None;
            }
            Ok(None) => status.failure = None,
            Err(failure) => {
                let is_contradiction = matches!(&failure, KeepError::Contradiction(why) if why.is_contradiction());
                if is_contradiction && !status.contradicted {
                    error!(failure = &failure as &dyn Error, place = status.place, "THE LOG WAS TAMPERED WITH");
                } else if !is_contradiction && status.failure.is_none() {
                    warn!(
                        failure = &failure as &dyn Error,
                        place = status.place,
                        "the checkpoint could not be kept outside"
                    );
                }
                status.contradicted |= is_contradiction;
                status.failure = Some(failure.to_string());
            }
        }
    }
}
