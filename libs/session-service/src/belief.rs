//! Whether what the view holds is gone by, and how often the log was read for a session because it was not, or did not have it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::service::SessionService;

/// Why what a view holds is not gone by. Sessions are read from the log meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distrust {
    /// It may have lost what was applied to it ([`session_view::SessionView::losses`]), and that was not applied again yet.
    Losses,
    /// It has not reflected the whole log since the start, or since it lost something: it may show a session whose end it has not come to.
    Incomplete,
    /// For longer than the bound of staleness it was not known to reflect the whole log: what it shows may have ended elsewhere.
    Stale,
}

impl Distrust {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Losses, Self::Incomplete, Self::Stale];

    /// Its name in metrics and in readiness.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Losses => "losses",
            Self::Incomplete => "incomplete",
            Self::Stale => "stale",
        }
    }
}

/// Why a session was read from the log although there is a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromLog {
    /// It was to be shown as of an entry that the view did not come to in time.
    MinIndex,
    /// What this process knows is not gone by.
    Distrusted(Distrust),
    /// The view is out of reach, or nobody knows whether it took the newest state of this session.
    Unavailable,
    /// What the view has of it cannot be read.
    Undecodable,
    /// Other nodes are to hold it, and none of them said in time what it is.
    Holders,
    /// The view has nothing of it: it was dropped, or there is no such session.
    Absent,
}

impl FromLog {
    const ALL: [Self; 8] = [
        Self::MinIndex,
        Self::Distrusted(Distrust::Losses),
        Self::Distrusted(Distrust::Incomplete),
        Self::Distrusted(Distrust::Stale),
        Self::Unavailable,
        Self::Undecodable,
        Self::Holders,
        Self::Absent,
    ];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MinIndex => "min_index",
            Self::Distrusted(why) => why.name(),
            Self::Unavailable => "unavailable",
            Self::Undecodable => "undecodable",
            Self::Holders => "holders",
            Self::Absent => "absent",
        }
    }
}

/// How often sessions were read from the log, by why.
#[derive(Debug, Default)]
pub(crate) struct ReadsFromLog([AtomicU64; FromLog::ALL.len()]);

impl ReadsFromLog {
    /// One more.
    pub(crate) fn add(&self, why: FromLog) {
        let counted = FromLog::ALL.iter().zip(&self.0).find(|(known, _)| **known == why);
        if let Some((_, count)) = counted {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl SessionService {
    /// Why what the view holds is not gone by; `None` if it is.
    pub fn distrust(&self) -> Option<Distrust> {
        if self.view.status().in_doubt { Some(Distrust::Losses) } else { self.distrust_of_progress() }
    }

    /// The same, as far as this process can tell without a look at the view: that one holds back by itself what it may have lost.
    pub(crate) fn distrust_of_progress(&self) -> Option<Distrust> {
        match (self.progress.staleness(), self.config.max_staleness) {
            (None, _) => Some(Distrust::Incomplete),
            (Some(staleness), Some(bound)) if staleness > bound => Some(Distrust::Stale),
            (Some(_), _) => None,
        }
    }

    /// How long ago the view reflected the whole log for certain; `None` if it did not since the start, or since it lost something.
    pub fn staleness(&self) -> Option<Duration> {
        self.progress.staleness()
    }

    /// How often sessions were read from the log although there is a view, by why.
    pub fn reads_from_log(&self) -> impl Iterator<Item = (FromLog, u64)> {
        FromLog::ALL.into_iter().zip(&self.reads_from_log.0).map(|(why, count)| (why, count.load(Ordering::Relaxed)))
    }
}
