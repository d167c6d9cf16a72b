//! What this process has read or written itself.
//!
//! A folder tells nobody of changes. So what is held here is an answer for as long as its age is bounded: for
//! `max_staleness` from the moment at which it was known to be what stands in the folder. After that the folder is asked
//! again; if the name that stands there is still the same, nothing has to be read or opened. Nodes follow the log and apply
//! what others appended, which comes here too, so that in practice a change is seen as soon as the follower has it.

use std::sync::Arc;
use std::time::Duration;

use moka::ops::compute::Op;
use moka::sync::Cache;
use session_model::{Session, SessionId, Timestamp};
use session_view::{Viewed, session_bytes, tombstone_bytes};
use tokio::time::Instant;

use crate::names::ValueName;
use crate::store::Found;

/// What the cache itself takes for an entry: its node, its place in two queues, the realm's name.
const OVERHEAD: usize = 256;

#[derive(Clone)]
struct Kept {
    found: Found,
    /// When it was known to be what stands in the folder.
    confirmed: Instant,
}

pub(crate) struct Near {
    kept: Option<Cache<SessionId, Kept>>,
    trust: Duration,
}

impl Near {
    /// At most `bytes`, by estimate; 0 keeps nothing.
    pub(crate) fn new(bytes: usize, trust: Duration) -> Self {
        let weigh = |_: &SessionId, kept: &Kept| {
            let state = match &kept.found.viewed {
                Viewed::Active(session) => session_bytes(session),
                Viewed::Ended(tombstone) => tombstone_bytes(tombstone),
            };
            u32::try_from(state + OVERHEAD).unwrap_or(u32::MAX)
        };
        let kept = (bytes > 0).then(|| Cache::builder().weigher(weigh).max_capacity(bytes as u64).build());
        Self { kept, trust }
    }

    /// What may be shown without asking the folder.
    pub(crate) fn peek(&self, id: SessionId) -> Option<Viewed> {
        let kept = self.kept.as_ref()?.get(&id)?;
        (kept.confirmed.elapsed() < self.trust).then_some(kept.found.viewed)
    }

    /// What was read last, however long ago.
    pub(crate) fn known(&self, id: SessionId) -> Option<Found> {
        self.kept.as_ref()?.get(&id).map(|kept| kept.found)
    }

    /// Takes note of what stood in the folder at `confirmed`; answers it, or what is held if that is later: the folder of a
    /// network may be seen late.
    pub(crate) fn learn(&self, id: SessionId, found: Found, confirmed: Instant) -> Viewed {
        let Some(kept) = &self.kept else { return found.viewed };
        let mut shown = found.viewed.clone();
        kept.entry(id).and_compute_with(|held| {
            let held = held.map(|held| held.into_value());
            match held {
                Some(held) if age(&held.found) > age(&found) => {
                    shown = held.found.viewed;
                    Op::Nop
                }
                Some(held) if age(&held.found) == age(&found) && held.confirmed >= confirmed => Op::Nop,
                _ => Op::Put(Kept { found, confirmed }),
            }
        });
        shown
    }

    /// A use was marked: what is held of the session is of before.
    pub(crate) fn mark(&self, id: SessionId, at: Timestamp) {
        let Some(kept) = &self.kept else { return };
        kept.entry(id).and_compute_with(|held| match held.map(|held| held.into_value()) {
            Some(Kept { found: Found { name, viewed: Viewed::Active(mut session) }, confirmed })
                if session.last_seen_at < at =>
            {
                Arc::make_mut(&mut session).last_seen_at = at;
                Op::Put(Kept { found: Found { name, viewed: Viewed::Active(session) }, confirmed })
            }
            _ => Op::Nop,
        });
    }

    /// A state that was applied turned out not to be the newest: what is held goes if it is older than that.
    pub(crate) fn outdate(&self, id: SessionId, applied: &Session) {
        let Some(kept) = &self.kept else { return };
        kept.entry(id).and_compute_with(|held| match held.map(|held| held.into_value()) {
            Some(held) if held.found.name.order() < ValueName::of(applied).order() => Op::Remove,
            _ => Op::Nop,
        });
    }

    pub(crate) fn forget(&self, id: SessionId) {
        if let Some(kept) = &self.kept {
            kept.invalidate(&id);
        }
    }

    pub(crate) fn forget_all(&self) {
        if let Some(kept) = &self.kept {
            kept.invalidate_all();
        }
    }

    /// Entries, and their estimated bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        let Some(kept) = &self.kept else { return (0, 0) };
        kept.run_pending_tasks();
        (kept.entry_count() as usize, kept.weighted_size() as usize)
    }
}

/// Orders states of one session: by name, and of one name by the last use marked.
fn age(found: &Found) -> impl PartialOrd + use<> {
    let used = match &found.viewed {
        Viewed::Active(session) => session.last_seen_at,
        Viewed::Ended(_) => Timestamp::default(),
    };
    (found.name.order(), used)
}

#[cfg(test)]
mod tests {
    use session_view::test_util::{ended, id, seen, session};

    use super::*;

    fn found(state: session_model::Session) -> Found {
        let name = ValueName::of(&state);
        let viewed = match state.tombstone() {
            Some(tombstone) => Viewed::Ended(Arc::new(tombstone)),
            None => Viewed::Active(Arc::new(state)),
        };
        Found { name, viewed }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_no_longer_than_it_may_be_trusted() {
        let near = Near::new(1 << 20, Duration::from_secs(2));
        near.learn(id(1), found(session(1, 5)), Instant::now());
        tokio::time::advance(Duration::from_millis(1_999)).await;
        assert!(near.peek(id(1)).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(near.peek(id(1)).is_none() && near.known(id(1)).is_some());
        near.learn(id(1), found(session(1, 5)), Instant::now());
        assert!(near.peek(id(1)).is_some(), "confirmed again");
    }

    #[tokio::test(start_paused = true)]
    async fn never_goes_back() {
        let near = Near::new(1 << 20, Duration::from_secs(2));
        near.learn(id(1), found(seen(1, 6, 9)), Instant::now());
        for older in [session(1, 5), seen(1, 6, 8)] {
            let shown = near.learn(id(1), found(older), Instant::now());
            assert!(
                matches!(shown, Viewed::Active(s) if s.head.index.0 == 6 && s.last_seen_at == seen(1, 6, 9).last_seen_at)
            );
        }
        near.learn(id(1), found(ended(1, 7)), Instant::now());
        assert!(matches!(near.learn(id(1), found(session(1, 8)), Instant::now()), Viewed::Ended(_)));
        assert!(matches!(near.peek(id(1)), Some(Viewed::Ended(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_its_budget() {
        let near = Near::new(256 << 10, Duration::from_secs(2));
        for n in 0..5_000 {
            near.learn(id(n), found(session(n, 1)), Instant::now());
        }
        let (held, bytes) = near.size();
        assert!(held > 50 && bytes <= 256 << 10, "{held} entries, {bytes} bytes");
    }
}
