//! The one task of a sink.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use audit_export::{Format, Record};
use audit_log::{Advanced, Claimed, DeliveryCursors, LogReader, ReadError};
use merkle_log::leaf_hash;
use session_model::{Leaf, LeafIndex, RealmName};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

use crate::{Delivery, PushError, Sink};

/// How a sink is served.
#[derive(Debug, Clone)]
pub struct PusherConfig {
    /// Name of the sink: its cursor's.
    pub name: String,
    /// Who asks for the lease; another one for each process.
    pub holder: String,
    /// How entries are written. CSV has no place here: a line of names belongs to a file.
    pub format: Format,
    /// Entries of these realms only; of all if empty.
    pub realms: Vec<RealmName>,
    /// Where a sink begins that was never served.
    pub initial: LeafIndex,
    /// Entries of one push at most.
    pub batch: usize,
    /// Pause between looks at a log in which there was nothing new.
    pub pause: Duration,
    /// How long the lease lasts: longer than a push may take.
    pub lease: Duration,
    /// The longest pause after failures; the first is a quarter of a second, and each is twice the one before.
    pub back_off_max: Duration,
}

/// How a sink is doing.
#[derive(Debug, Default)]
pub struct SinkStatus {
    next: AtomicU64,
    size: AtomicU64,
    pushed: AtomicU64,
    failures: AtomicU64,
    holds: AtomicBool,
    failing: AtomicBool,
}

impl SinkStatus {
    /// Whether this process serves the sink; if not, another does, or nobody could ask.
    pub fn holds(&self) -> bool {
        self.holds.load(Ordering::Relaxed)
    }

    /// Whether the last push failed.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Entries that are in the log and not delivered, as this process knows; 0 while another serves the sink.
    pub fn lag(&self) -> u64 {
        if self.holds() {
            self.size.load(Ordering::Relaxed).saturating_sub(self.next.load(Ordering::Relaxed))
        } else {
            0
        }
    }

    /// Entries delivered by this process.
    pub fn pushed(&self) -> u64 {
        self.pushed.load(Ordering::Relaxed)
    }

    /// Pushes that failed in this process.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// A running sink.
#[derive(Debug)]
pub struct Pusher {
    status: Arc<SinkStatus>,
    /// Until when what is in the log may still be pushed, once told to stop.
    stop: watch::Sender<Option<Instant>>,
    task: JoinHandle<()>,
}

impl Pusher {
    /// Starts to serve a sink.
    pub fn start(
        config: PusherConfig,
        sink: Arc<dyn Sink>,
        log: Arc<dyn LogReader>,
        cursors: Arc<dyn DeliveryCursors>,
    ) -> Self {
        let status = Arc::new(SinkStatus::default());
        let (stop, stopping) = watch::channel(None);
        let task = Task { config: Arc::new(config), sink, log, cursors, status: Arc::clone(&status), stopping };
        Self { status, stop, task: tokio::spawn(task.run()) }
    }

    /// How it is doing.
    pub fn status(&self) -> Arc<SinkStatus> {
        Arc::clone(&self.status)
    }

    /// Pushes what is in the log by now, trying again after failures as long as `limit` allows, gives the lease up and ends. What is left is
    /// pushed by whoever serves the sink next.
    pub async fn close(mut self, limit: Duration) {
        // The task may have ended already.
        let _nobody_listens = self.stop.send(Some(Instant::now() + limit));
        // A little longer than it may push, so that the lease can be given up.
        if timeout(limit + Duration::from_secs(1), &mut self.task).await.is_err() {
            warn!("a sink could not be drained in time: what is left is pushed after the next start");
            self.task.abort();
        }
    }

    /// Ends at once, as a crash would: the lease runs out by itself.
    pub fn abort(self) {
        self.task.abort();
    }
}

struct Task {
    config: Arc<PusherConfig>,
    sink: Arc<dyn Sink>,
    log: Arc<dyn LogReader>,
    cursors: Arc<dyn DeliveryCursors>,
    status: Arc<SinkStatus>,
    stopping: watch::Receiver<Option<Instant>>,
}

/// Why a round did not get to its end.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error("the log or the cursor cannot be read")]
    Read(#[from] ReadError),
    #[error("the entries were not taken")]
    Push(#[from] PushError),
    #[error("entry {0} cannot be written in the sink's format")]
    Entry(LeafIndex, #[source] Box<dyn Error + Send + Sync>),
    #[error("the push was cancelled")]
    Cancelled(#[from] tokio::task::JoinError),
}

/// What a round came to.
enum Round {
    /// There was something, and it is delivered.
    Pushed,
    /// There is nothing new.
    Idle,
    /// Another serves the sink.
    Held,
}

const BACK_OFF_MIN: Duration = Duration::from_millis(250);

impl Task {
    async fn run(mut self) {
        let mut back_off = BACK_OFF_MIN;
        let mut claimed: Option<Instant> = None;
        let mut next = LeafIndex(0);
        loop {
            let deadline = *self.stopping.borrow();
            let mut is_done = deadline.is_some();
            let pause = match self.round(&mut claimed, &mut next).await {
                Ok(round) => {
                    back_off = BACK_OFF_MIN;
                    if self.status.failing.swap(false, Ordering::Relaxed) {
                        info!(sink = self.config.name, "entries are taken again");
                    }
                    match round {
                        Round::Pushed => continue,
                        Round::Idle => self.config.pause,
                        Round::Held => self.config.lease / 4,
                    }
                }
                Err(failure) => {
                    claimed = None;
                    self.status.failures.fetch_add(1, Ordering::Relaxed);
                    self.status.failing.store(true, Ordering::Relaxed);
                    let failure = &failure as &dyn Error;
                    warn!(failure, sink = self.config.name, next = %next, "entries were not delivered: they will be pushed again");
                    let pause = back_off;
                    back_off = (back_off * 2).min(self.config.back_off_max);
                    is_done = deadline.is_some_and(|deadline| Instant::now() + pause >= deadline);
                    pause
                }
            };
            // Told to stop before this round, which found nothing left, or nobody to take it in the time there is.
            if is_done {
                break;
            }
            if deadline.is_some() {
                sleep(pause).await;
                continue;
            }
            tokio::select! {
                () = sleep(pause) => {}
                changed = self.stopping.changed() => if changed.is_err() { break },
            }
        }
        if let Err(failure) = self.cursors.release(&self.config.name, &self.config.holder).await {
            warn!(
                failure = &failure as &dyn Error,
                sink = self.config.name,
                "the lease was not given up: it ends by itself"
            );
        }
    }

    async fn round(&mut self, claimed: &mut Option<Instant>, next: &mut LeafIndex) -> Result<Round, RoundError> {
        let config = &self.config;
        // Kept for a third of its time, so that an idle sink does not write the database all the time.
        if claimed.is_none_or(|at| at.elapsed() > config.lease / 3) {
            let asked = Instant::now();
            match self.cursors.claim(&config.name, &config.holder, config.initial, config.lease).await? {
                Claimed::Yes(at) => {
                    *next = at;
                    *claimed = Some(asked);
                    self.status.holds.store(true, Ordering::Relaxed);
                }
                Claimed::Held => {
                    *claimed = None;
                    self.status.holds.store(false, Ordering::Relaxed);
                    return Ok(Round::Held);
                }
            }
        }
        let size = self.log.head().await?.size();
        self.status.size.store(size.0, Ordering::Relaxed);
        self.status.next.store(next.0, Ordering::Relaxed);
        if next.0 >= size.0 {
            return Ok(Round::Idle);
        }
        let (deliveries, reached) = self.read(*next).await?;
        let count = deliveries.len() as u64;
        if !deliveries.is_empty() {
            let sink = Arc::clone(&self.sink);
            tokio::task::spawn_blocking(move || sink.push(&deliveries)).await??;
        }
        match self.cursors.advance(&config.name, &config.holder, reached).await? {
            Advanced::Yes => {}
            Advanced::Lost => {
                error!(sink = config.name, "the lease ran out during a push: another process pushes these entries too");
                *claimed = None;
                return Ok(Round::Held);
            }
        }
        *next = reached;
        self.status.next.store(reached.0, Ordering::Relaxed);
        self.status.pushed.fetch_add(count, Ordering::Relaxed);
        Ok(Round::Pushed)
    }

    /// The next entries, written, and the index behind the last one looked at. One batch of the log at least, which bounds what is held.
    async fn read(&self, next: LeafIndex) -> Result<(Vec<Delivery>, LeafIndex), RoundError> {
        let batches = self.log.batches(next, self.config.batch).await?;
        let config = Arc::clone(&self.config);
        let written = tokio::task::spawn_blocking(move || {
            let (mut deliveries, mut reached) = (Vec::new(), next);
            for batch in batches {
                for (index, bytes) in (batch.first.0..).map(LeafIndex).zip(batch.leaves) {
                    if index < next || deliveries.len() >= config.batch {
                        continue;
                    }
                    deliveries
                        .extend(delivery(&config, index, &bytes).map_err(|failure| RoundError::Entry(index, failure))?);
                    reached = LeafIndex(index.0 + 1);
                }
            }
            Ok::<_, RoundError>((deliveries, reached))
        });
        written.await?
    }
}

/// `None` if the entry is of a realm that the sink does not get.
fn delivery(
    config: &PusherConfig,
    index: LeafIndex,
    bytes: &[u8],
) -> Result<Option<Delivery>, Box<dyn Error + Send + Sync>> {
    let leaf = Leaf::decode(bytes)?;
    if !config.realms.is_empty() && !config.realms.contains(&leaf.realm) {
        return Ok(None);
    }
    let record = Record { index, leaf_hash: leaf_hash(bytes), leaf: &leaf, opened: None };
    let mut line = Vec::new();
    config.format.write(&record, &mut line)?;
    let line = String::from_utf8(line)?;
    Ok(Some(Delivery {
        index,
        leaf_hash: record.leaf_hash,
        time: leaf.time,
        action: record.action(),
        outcome: leaf.outcome,
        realm: leaf.realm.to_string(),
        node: leaf.node.clone(),
        line: line.trim_end_matches(['\r', '\n']).to_owned(),
    }))
}
