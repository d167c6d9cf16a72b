//! How far this process's view has come, and how fresh that is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use session_model::{LeafIndex, TreeSize};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Which part of the log the view is known to reflect, and as of when that was all of it.
#[derive(Debug)]
pub(crate) struct Progress {
    reflected: AtomicU64,
    size: AtomicU64,
    start: Instant,
    /// Microseconds after `start`: at that time the log had nothing that the view does not reflect now. Negative: never.
    whole_at: AtomicI64,
    beyond: Mutex<Beyond>,
    /// Rung when the log is known to be longer than the view reflects.
    pub(crate) behind: Notify,
    /// Whether what is missing is on its way from nobody, and somebody waits for it.
    urgent: AtomicBool,
}

#[derive(Debug, Default)]
struct Beyond {
    /// Runs of entries that were applied before what comes before them: first to end. They neither touch nor overlap.
    runs: BTreeMap<u64, u64>,
    /// Sizes that the log did not exceed at a time (microseconds after the start), and that the view has not come to yet.
    sizes: BTreeMap<u64, i64>,
}

/// Runs remembered; beyond them entries are applied again from the log.
const RUNS: usize = 4_096;
/// Sizes remembered: a few seconds of questions to the log, and of what peers tell.
const SIZES: usize = 256;

impl Default for Progress {
    fn default() -> Self {
        Self {
            reflected: AtomicU64::new(0),
            size: AtomicU64::new(0),
            start: Instant::now(),
            whole_at: AtomicI64::new(-1),
            beyond: Mutex::default(),
            behind: Notify::new(),
            urgent: AtomicBool::new(false),
        }
    }
}

impl Progress {
    /// Every entry below this size has been applied to the view.
    pub(crate) fn reflected(&self) -> TreeSize {
        TreeSize(self.reflected.load(Ordering::Acquire))
    }

    /// The log is at least this long.
    pub(crate) fn size(&self) -> TreeSize {
        TreeSize(self.size.load(Ordering::Acquire))
    }

    /// Whether the log is known to be longer than the view reflects.
    pub(crate) fn lags(&self) -> bool {
        self.reflected() < self.size()
    }

    /// How long ago the view reflected the whole log for certain; `None` if it never did. What was answered from it since then may be as
    /// old as this, and no older.
    pub(crate) fn staleness(&self) -> Option<Duration> {
        let at = u64::try_from(self.whole_at.load(Ordering::Acquire)).ok()?;
        Some(self.start.elapsed().saturating_sub(Duration::from_micros(at)))
    }

    /// Entries `first..end` have been applied.
    pub(crate) fn applied(&self, first: LeafIndex, end: TreeSize) {
        let mut beyond = self.beyond.lock();
        let mut reflected = self.reflected.load(Ordering::Acquire);
        self.size.fetch_max(end.0, Ordering::AcqRel);
        if first.0 > reflected {
            beyond.add(first.0, end.0);
            drop(beyond);
            self.behind.notify_one();
            return;
        }
        reflected = reflected.max(end.0);
        while let Some((first, end)) = beyond.runs.first_key_value().map(|(first, end)| (*first, *end))
            && first <= reflected
        {
            beyond.runs.remove(&first);
            reflected = reflected.max(end);
        }
        self.reflected.store(reflected, Ordering::Release);
        self.settle(&mut beyond, reflected);
    }

    /// The view has lost something: from here on it has to be applied again.
    pub(crate) fn lost(&self, from: TreeSize) {
        let mut beyond = self.beyond.lock();
        beyond.runs.clear();
        self.reflected.fetch_min(from.0, Ordering::AcqRel);
        // Until then nothing is certain.
        self.whole_at.store(-1, Ordering::Release);
        beyond.sizes.clear();
        drop(beyond);
        self.behind.notify_one();
    }

    /// What the view lacks is to be read from the log at once.
    pub(crate) fn hurry(&self) {
        self.urgent.store(true, Ordering::Release);
        self.behind.notify_one();
    }

    /// Whether it was to be read at once; from now on it is not.
    pub(crate) fn was_urgent(&self) -> bool {
        self.urgent.swap(false, Ordering::AcqRel)
    }

    /// The log was seen to have this size.
    pub(crate) fn saw(&self, size: TreeSize) {
        self.size.fetch_max(size.0, Ordering::AcqRel);
    }

    /// At a time, the log had no entry at or above this size.
    pub(crate) fn knows(&self, at: Instant, size: TreeSize) {
        let micros = at.checked_duration_since(self.start).map_or(0, |since| since.as_micros());
        let micros = i64::try_from(micros).unwrap_or(i64::MAX);
        let mut beyond = self.beyond.lock();
        let latest = beyond.sizes.entry(size.0).or_insert(micros);
        *latest = micros.max(*latest);
        if beyond.sizes.len() > SIZES {
            // The farthest away is the least likely to be reached soon.
            beyond.sizes.pop_last();
        }
        let reflected = self.reflected.load(Ordering::Acquire);
        self.settle(&mut beyond, reflected);
    }

    fn settle(&self, beyond: &mut Beyond, reflected: u64) {
        while let Some((size, at)) = beyond.sizes.first_key_value().map(|(size, at)| (*size, *at))
            && size <= reflected
        {
            beyond.sizes.remove(&size);
            self.whole_at.fetch_max(at, Ordering::AcqRel);
        }
    }
}

impl Beyond {
    fn add(&mut self, mut first: u64, mut end: u64) {
        // The run before may reach into this one; those that begin within it are swallowed.
        if let Some((before, its_end)) = self.runs.range(..=first).next_back().map(|(first, end)| (*first, *end))
            && its_end >= first
        {
            self.runs.remove(&before);
            (first, end) = (before, end.max(its_end));
        }
        while let Some((inner, its_end)) = self.runs.range(first..=end).next().map(|(first, end)| (*first, *end)) {
            self.runs.remove(&inner);
            end = end.max(its_end);
        }
        if self.runs.len() < RUNS {
            self.runs.insert(first, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// In whatever order runs come, cut and repeated as they may be, what is reflected is the longest unbroken beginning.
        #[test]
        fn what_is_reflected_is_the_unbroken_beginning(runs in prop::collection::vec((0_u64..60, 1_u64..8), 0..60)) {
            let progress = Progress::default();
            let mut had = [false; 70];
            for (first, length) in runs {
                progress.applied(LeafIndex(first), TreeSize(first + length));
                (first..first + length).for_each(|at| had[at as usize] = true);
                let unbroken = had.iter().take_while(|had| **had).count() as u64;
                prop_assert_eq!(progress.reflected(), TreeSize(unbroken));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_view_is_as_fresh_as_the_last_time_it_was_whole() {
        let progress = Progress::default();
        assert_eq!(progress.staleness(), None, "nothing is known yet");
        let second = Duration::from_secs(1);
        tokio::time::advance(second).await;
        let asked = Instant::now();
        progress.knows(asked, TreeSize(5));
        assert_eq!(progress.staleness(), None, "the log had five entries, the view has none");
        tokio::time::advance(second).await;
        progress.applied(LeafIndex(0), TreeSize(5));
        assert_eq!(progress.staleness(), Some(second), "as of when the log was asked, not as of when it was applied");
        tokio::time::advance(second).await;
        progress.knows(Instant::now(), TreeSize(9));
        assert_eq!(progress.staleness(), Some(2 * second), "that the log has grown makes the view no fresher");
        progress.knows(asked, TreeSize(5));
        assert_eq!(progress.staleness(), Some(2 * second), "nor does old news");
        progress.applied(LeafIndex(5), TreeSize(9));
        assert_eq!(progress.staleness(), Some(Duration::ZERO));
        progress.lost(TreeSize(3));
        assert_eq!(progress.staleness(), None);
    }
}
