//! The task that keeps one place up to date.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use audit_log::{LogHead, LogReader};
use parking_lot::Mutex;
use sealing::VerifierKey;
use session_model::TreeSize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
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

/// Keeps a place up to date. Compares the log with what was kept before it keeps anything: a log that was rolled back while the service ran
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
    keys: Vec<VerifierKey>,
    status: Arc<Mutex<AnchorStatus>>,
    /// What is there; `None` until it was asked.
    kept: Option<Option<String>>,
}

#[derive(Debug, thiserror::Error)]
enum TurnError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Contradiction(#[from] ContradictionError),
    #[error("the place was not asked to the end")]
    Cancelled(#[from] tokio::task::JoinError),
}

impl Keeper {
    /// Starts to keep a place, looking at the log every `pause`.
    pub fn start(anchor: Arc<dyn Anchor>, log: Arc<dyn LogReader>, keys: Vec<VerifierKey>, pause: Duration) -> Self {
        let status = Arc::new(Mutex::new(AnchorStatus {
            kind: anchor.kind(),
            place: anchor.place().to_owned(),
            size: None,
            at: None,
            failure: None,
            contradicted: false,
        }));
        let (stop, mut stopping) = watch::channel(false);
        let mut task = Task { anchor: Arc::clone(&anchor), log, keys, status: Arc::clone(&status), kept: None };
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
                    // The last checkpoint, before the end.
                    _ = stopping.changed() => break task.turn().await,
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
    async fn turn(&mut self) {
        let outcome = self.keep_newest().await;
        let mut status = self.status.lock();
        match outcome {
            Ok(Some(size)) => {
                status.size = Some(size);
                status.at = Some(Instant::now());
                status.failure = None;
            }
            Ok(None) => status.failure = None,
            Err(failure) => {
                let is_contradiction = matches!(&failure, TurnError::Contradiction(why) if why.is_contradiction());
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

    /// `None` if there is nothing to keep yet.
    async fn keep_newest(&mut self) -> Result<Option<TreeSize>, TurnError> {
        let head: LogHead = self.log.head().await.map_err(ContradictionError::from)?;
        if self.kept.is_none() {
            let anchor = Arc::clone(&self.anchor);
            self.kept = Some(tokio::task::spawn_blocking(move || anchor.newest()).await??);
        }
        if let Some(Some(kept)) = &self.kept {
            // Each time anew: the database may be rolled back while we run.
            compare(&*self.log, &head, kept, self.anchor.place(), &self.keys).await?;
            if Some(kept) == head.checkpoint.as_ref() {
                return Ok(Some(head.size()));
            }
        }
        let Some(checkpoint) = head.checkpoint.clone() else { return Ok(None) };
        let (anchor, text, size) = (Arc::clone(&self.anchor), checkpoint.clone(), head.size());
        tokio::task::spawn_blocking(move || anchor.keep(size, &text)).await??;
        self.kept = Some(Some(checkpoint));
        Ok(Some(size))
    }
}
