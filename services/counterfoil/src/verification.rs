//! Checks the whole log again and again while the service runs: every leaf is hashed, the tree rebuilt and compared with what is
//! stored, every checkpoint verified, and the outside checkpoint with them.
//!
//! It finds what was altered in the database soon, and by itself. It does not replace the offline verifier: who controls this
//! process controls what it says.

use std::sync::Arc;
use std::time::Duration;

use api_audit::{CheckDocument, LastCheck};
use audit_log::{LogReader, ReadError, StoredBatch};
use merkle_log::{Checkpoint, Frontier, Node, leaf_hash};
use parking_lot::Mutex;
use sealing::VerifierKeys;
use session_model::{Digest, Leaf, LeafIndex, Timestamp, TreeSize};
use telemetry::Gauges;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use anchors::{Anchor, open_signed};

/// Entries read and hashed at once: a few milliseconds' work.
const RUN: u64 = 1_024;

/// The checks, and what the last one came to.
pub(crate) struct Verification {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<Check>,
    covered: u64,
}

/// A check that has ended.
#[derive(Debug, Clone)]
struct Check {
    began: Timestamp,
    ended: Timestamp,
    size: TreeSize,
    root: Digest,
    outside: Option<TreeSize>,
    came_to: CameTo,
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CameTo {
    Good,
    Wrong { first: u64, what: String },
    Unfinished(String),
}

/// What a check needs.
pub(crate) struct Checked {
    /// The log.
    pub log: Arc<dyn LogReader>,
    /// Where the outside checkpoint is.
    pub anchor: Option<Arc<dyn Anchor>>,
    /// What verifies the log's checkpoints, past keys included.
    pub keys: VerifierKeys,
    /// The time of the service.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// How long checking the whole log may take.
    pub within: Duration,
}

/// Why a check stops.
enum Stop {
    Wrong(u64, String),
    Unfinished(String),
}

impl Stop {
    fn read(failure: ReadError, at: u64) -> Self {
        match failure {
            ReadError::Corrupt(why) => Self::Wrong(at, why),
            failure @ ReadError::Unavailable(_) => Self::Unfinished(crate::causes(&failure)),
        }
    }
}

impl Verification {
    /// No check yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default() })
    }

    /// Whether the last check found the log wrong.
    pub(crate) fn is_wrong(&self) -> bool {
        matches!(self.state.lock().last, Some(Check { came_to: CameTo::Wrong { .. }, .. }))
    }

    /// Shows the last check as gauges.
    pub(crate) fn show(self: &Arc<Self>, gauges: &Gauges<'_>) {
        let gauge = |name, unit, read: fn(Option<&Check>) -> f64| {
            let checks = Arc::clone(self);
            gauges.gauge(name, unit, move || read(checks.state.lock().last.as_ref()));
        };
        gauge("audit_verify_wrong", "", |last| {
            f64::from(u8::from(last.is_some_and(|last| matches!(last.came_to, CameTo::Wrong { .. }))))
        });
        gauge("audit_verify_entries", "", |last| last.map_or(0.0, |last| last.size.0 as f64));
        gauge("audit_verify_ended_timestamp", "s", |last| last.map_or(0.0, |last| last.ended.as_micros() as f64 / 1e6));
    }

    /// Checks the log for ever. The first time at a quarter of what the machine could do, so that there soon is a result; from then
    /// on just fast enough to be through within the configured time.
    pub(crate) async fn run(self: Arc<Self>, checked: Checked) {
        let mut first = true;
        loop {
            let began = Instant::now();
            let check = self.check(&checked, first).await;
            match &check.came_to {
                CameTo::Good => info!(size = %check.size, "the log was checked and is good"),
                CameTo::Wrong { first, what } => error!(first_wrong_index = first, what, "THE LOG IS WRONG"),
                CameTo::Unfinished(why) => warn!(why, "the log could not be checked to its end"),
            }
            first = first && matches!(check.came_to, CameTo::Unfinished(_));
            let pause = if first { Duration::from_secs(10) } else { checked.within.saturating_sub(began.elapsed()) };
            {
                let mut state = self.state.lock();
                state.last = Some(check);
                state.covered = 0;
            }
            sleep(pause.max(Duration::from_secs(1))).await;
        }
    }

    async fn check(&self, checked: &Checked, first: bool) -> Check {
        let began = (checked.now)();
        let mut check = Check {
            began,
            ended: began,
            size: TreeSize(0),
            root: Frontier::empty().root(),
            outside: None,
            came_to: CameTo::Good,
        };
        if let Err(stop) = self.go_through(checked, first, &mut check).await {
            check.came_to = match stop {
                Stop::Wrong(first, what) => CameTo::Wrong { first, what },
                Stop::Unfinished(why) => CameTo::Unfinished(why),
            };
        }
        check.ended = (checked.now)();
        check
    }

    async fn go_through(&self, checked: &Checked, first: bool, check: &mut Check) -> Result<(), Stop> {
        let log = &*checked.log;
        // Before the head: the log only grows, so it cannot be behind what was kept earlier.
        let anchor = checked.anchor.clone();
        let outside = move || anchor.map_or(Ok(None), |anchor| anchor.newest());
        let outside = tokio::task::spawn_blocking(outside).await;
        let outside = match outside {
            Ok(Ok(outside)) => outside,
            Ok(Err(failure)) => return Err(Stop::Unfinished(crate::causes(&failure))),
            Err(failure) => return Err(Stop::Unfinished(failure.to_string())),
        };
        let outside = outside.as_deref().map(|text| open_signed(text, &checked.keys.current())).transpose();
        let outside =
            outside.map_err(|_| Stop::Unfinished("the outside checkpoint was not signed by this log's key".into()))?;
        check.outside = outside.as_ref().map(|outside| outside.size);
        let head = log.head().await.map_err(|failure| Stop::read(failure, 0))?;
        let size = head.size();
        if let Some(outside) = outside.as_ref().filter(|outside| outside.size > size) {
            let what =
                format!("the log has {size} entries, but had {} when the outside checkpoint was kept", outside.size);
            return Err(Stop::Wrong(size.0, what));
        }
        let mut pass =
            Pass { keys: &checked.keys, edge: Frontier::empty(), time: Timestamp::from_micros(i64::MIN), outside };
        while pass.edge.size() < size {
            let began = Instant::now();
            let from = pass.edge.size().0;
            let run = usize::try_from(RUN).unwrap_or(usize::MAX);
            let batches = log.batches(LeafIndex(from), run).await.map_err(|failure| Stop::read(failure, from))?;
            if batches.first().is_none_or(|batch| batch.first.0 != from) {
                return Err(Stop::Wrong(from, "the log has no such entry, but others after it".into()));
            }
            for batch in batches.into_iter().take_while(|batch| batch.tree_size() <= size) {
                pass.take(log, &batch).await?;
            }
            let here = pass.edge.size();
            if here.0 == from {
                return Err(Stop::Wrong(from, "the last batch goes beyond the end of the log".into()));
            }
            (check.size, check.root) = (here, pass.edge.root());
            self.state.lock().covered = here.0;
            let worked = began.elapsed();
            let share = checked.within.as_secs_f64() * (here.0 - from) as f64 / size.0 as f64;
            let pause = Duration::try_from_secs_f64(share).unwrap_or_default().saturating_sub(worked);
            sleep(if first { pause.min(worked * 3) } else { pause }).await;
        }
        if let Some(checkpoint) = &head.checkpoint {
            let signed = open_signed(checkpoint, &checked.keys.current());
            let signed = signed.map_err(|failure| Stop::Wrong(size.0, failure.to_string()))?;
            if (signed.size, signed.root) != (size, pass.edge.root()) || head.frontier != pass.edge {
                return Err(Stop::Wrong(0, "the newest checkpoint is not of the tree over the entries".into()));
            }
        }
        match pass.outside {
            // Its size was none of a checkpoint of the log.
            Some(outside) if outside.size.0 > 0 => Err(differs(&outside)),
            Some(_) | None => Ok(()),
        }
    }
}

fn differs(outside: &Checkpoint) -> Stop {
    let what = format!("the first {} entries are not those that the outside checkpoint was signed for", outside.size);
    Stop::Wrong(0, what)
}

/// How far one check has come.
struct Pass<'a> {
    keys: &'a VerifierKeys,
    edge: Frontier,
    time: Timestamp,
    /// The outside checkpoint, until it was compared.
    outside: Option<Checkpoint>,
}

impl Pass<'_> {
    async fn take(&mut self, log: &dyn LogReader, batch: &StoredBatch) -> Result<(), Stop> {
        let first = batch.first.0;
        if self.edge.size().0 != first {
            return Err(Stop::Wrong(self.edge.size().0, "the log has no such entry, but others after it".into()));
        }
        let count = batch.leaves.len() as u64;
        let stored = log.hashes(0, first, count).await.map_err(|failure| Stop::read(failure, first))?;
        let mut nodes: Vec<Node> = Vec::new();
        for ((index, leaf), stored) in (first..).zip(&batch.leaves).zip(stored) {
            let hash = leaf_hash(leaf);
            if hash != stored {
                return Err(Stop::Wrong(index, "the leaf does not hash to what is stored for it".into()));
            }
            let decoded = Leaf::decode(leaf).map_err(|failure| Stop::Wrong(index, failure.to_string()))?;
            if decoded.time < self.time {
                return Err(Stop::Wrong(index, "its time is before that of the entry before it".into()));
            }
            self.time = decoded.time;
            self.edge.push(hash, |node| nodes.push(node));
        }
        for node in nodes {
            let span = 1_u64.checked_shl(node.level.into()).unwrap_or_default();
            let at = node.index.saturating_mul(span);
            let stored = log.hashes(node.level, node.index, 1).await.map_err(|failure| Stop::read(failure, at))?;
            if stored.first() != Some(&node.hash) {
                let what = format!("the stored hash of level {} over these entries is not theirs", node.level);
                return Err(Stop::Wrong(at, what));
            }
        }
        let here = (self.edge.size(), self.edge.root());
        match open_signed(&batch.checkpoint, &self.keys.current()) {
            Ok(signed) if (signed.size, signed.root) == here => {}
            Ok(_) => {
                return Err(Stop::Wrong(
                    first,
                    "the entries do not hash to what their checkpoint was signed over".into(),
                ));
            }
            Err(failure) => return Err(Stop::Wrong(first, failure.to_string())),
        }
        match &self.outside {
            Some(outside) if outside.size == here.0 && outside.root == here.1 => self.outside = None,
            Some(outside) if outside.size <= here.0 && outside.size.0 > 0 => return Err(differs(outside)),
            Some(_) | None => {}
        }
        Ok(())
    }
}

impl LastCheck for Verification {
    fn last_check(&self) -> CheckDocument {
        let state = self.state.lock();
        let last = state.last.as_ref();
        let (result, first_wrong_index, what) = match last.map(|last| &last.came_to) {
            None => ("none", None, None),
            Some(CameTo::Good) => ("good", None, None),
            Some(CameTo::Wrong { first, what }) => ("wrong", Some(*first), Some(what.clone())),
            Some(CameTo::Unfinished(why)) => ("unfinished", None, Some(why.clone())),
        };
        CheckDocument {
            result: result.to_owned(),
            size: last.map_or(0, |last| last.size.0),
            root: last.map(|last| last.root.to_string()),
            began_at: last.map(|last| last.began.to_string()),
            ended_at: last.map(|last| last.ended.to_string()),
            first_wrong_index,
            what,
            outside_size: last.and_then(|last| last.outside).map(|size| size.0),
            covered_by_running: state.covered,
        }
    }
}
