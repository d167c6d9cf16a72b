//! The cache in this process, in front of Redis.
//!
//! It may answer while it is *open*: while the server is known to tell of every change (client tracking), at most
//! `max_staleness` ago. Each shard counts the invalidations it has seen. A reader takes the count before it asks Redis,
//! and what it read goes in only if the count is still the same: else the change that was told of meanwhile may be the
//! one that made the answer old.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::RwLock;
use session_model::{LeafIndex, SessionId, Timestamp};
use session_view::{Viewed, session_bytes, tombstone_bytes};
use tokio::time::Instant;

const SHARDS: usize = 64;
/// How many entries are compared to find one to evict.
const SAMPLE: usize = 8;
/// Table slot at a usual load, and the realm's name, which a decoded session does not share.
const OVERHEAD: usize = 56 * 3 / 2 + 48;

pub(crate) struct NearCache {
    shards: Box<[RwLock<Shard>]>,
    hasher: DefaultHashBuilder,
    shard_budget: usize,
    started: Instant,
    /// Microseconds since `started` until which the cache may answer; 0 while closed.
    valid_until: AtomicU64,
    /// Rises with every insertion: the clock uses are stamped with.
    uses: AtomicU32,
    held: AtomicUsize,
    bytes: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    table: HashTable<Entry>,
    bytes: usize,
    invalidations: u64,
}

struct Entry {
    id: SessionId,
    viewed: Viewed,
    weight: usize,
    used: AtomicU32,
}

/// The right to put in what is read from now on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket(u64);

impl NearCache {
    /// A closed cache of at most `bytes`; 0 keeps nothing.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            shard_budget: bytes / SHARDS,
            started: Instant::now(),
            valid_until: AtomicU64::new(0),
            uses: AtomicU32::new(0),
            held: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }
    }

    pub(crate) fn peek(&self, id: SessionId) -> Option<Viewed> {
        if !self.is_open() {
            return None;
        }
        let (hash, shard) = self.place(id);
        let shard = shard.read();
        let entry = shard.table.find(hash, |entry| entry.id == id)?;
        let now = self.uses.load(Relaxed);
        if entry.used.load(Relaxed) != now {
            entry.used.store(now, Relaxed);
        }
        Some(entry.viewed.clone())
    }

    /// To be taken before Redis is asked. `None` while closed.
    pub(crate) fn ticket(&self, id: SessionId) -> Option<Ticket> {
        self.is_open().then(|| Ticket(self.place(id).1.read().invalidations))
    }

    /// Takes note of what Redis answered: an older state goes in either case, this one comes in if the ticket still holds.
    pub(crate) fn learn(&self, id: SessionId, viewed: Option<&Viewed>, ticket: Option<Ticket>) {
        let (hash, shard) = self.place(id);
        let shard = &mut *shard.write();
        if let Ok(held) = shard.table.find_entry(hash, |entry| entry.id == id) {
            // Two readers may come back in the wrong order: the later state stays.
            if viewed.is_some_and(|viewed| age(viewed) <= age(&held.get().viewed)) {
                return;
            }
            let (entry, _) = held.remove();
            self.forget(&mut shard.bytes, &entry);
        }
        let taken_in = match (viewed, ticket) {
            (Some(viewed), Some(Ticket(seen))) if seen == shard.invalidations && self.is_open() => {
                self.take_in(shard, hash, id, viewed)
            }
            _ => false,
        };
        if !taken_in {
            // Somebody has seen this state and the cache does not hold it: a reader still on the way with an older one
            // must not bring it in, or the session would seem to go back.
            shard.invalidations += 1;
        }
    }

    fn take_in(&self, shard: &mut Shard, hash: u64, id: SessionId, viewed: &Viewed) -> bool {
        let state = match viewed {
            Viewed::Active(session) => session_bytes(session),
            Viewed::Ended(tombstone) => tombstone_bytes(tombstone),
        };
        let weight = state + OVERHEAD;
        if weight > self.shard_budget {
            return false;
        }
        let now = self.uses.fetch_add(1, Relaxed).wrapping_add(1);
        while shard.bytes + weight > self.shard_budget {
            if !self.evict_one(shard, now) {
                return false;
            }
            // As in `learn`: what is evicted was seen.
            shard.invalidations += 1;
        }
        let entry = Entry { id, viewed: viewed.clone(), weight, used: AtomicU32::new(now) };
        shard.table.insert_unique(hash, entry, |entry| self.hasher.hash_one(entry.id));
        shard.bytes += weight;
        self.bytes.fetch_add(weight, Relaxed);
        self.held.fetch_add(1, Relaxed);
        true
    }

    /// A session was, or may have been, changed.
    pub(crate) fn invalidate(&self, id: SessionId) {
        let (hash, shard) = self.place(id);
        let shard = &mut *shard.write();
        shard.invalidations += 1;
        if let Ok(held) = shard.table.find_entry(hash, |entry| entry.id == id) {
            let (entry, _) = held.remove();
            self.forget(&mut shard.bytes, &entry);
        }
    }

    /// Anything may have been changed.
    pub(crate) fn invalidate_all(&self) {
        for shard in &self.shards {
            let mut shard = shard.write();
            shard.invalidations += 1;
            for entry in std::mem::take(&mut shard.table) {
                self.forget(&mut shard.bytes, &entry);
            }
        }
    }

    /// From `since` on, and for `span` from then, every change is told of.
    pub(crate) fn open(&self, since: Instant, span: Duration) {
        let until = (since + span).saturating_duration_since(self.started);
        self.valid_until.store(until.as_micros() as u64, SeqCst);
    }

    /// Changes are no longer told of.
    pub(crate) fn close(&self) {
        self.valid_until.store(0, SeqCst);
        self.invalidate_all();
    }

    pub(crate) fn is_open(&self) -> bool {
        let until = self.valid_until.load(SeqCst);
        until != 0 && (self.started.elapsed().as_micros() as u64) < until
    }

    /// Entries, and their estimated bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.held.load(Relaxed), self.bytes.load(Relaxed))
    }

    fn forget(&self, shard_bytes: &mut usize, entry: &Entry) {
        *shard_bytes -= entry.weight;
        self.bytes.fetch_sub(entry.weight, Relaxed);
        self.held.fetch_sub(1, Relaxed);
    }

    fn evict_one(&self, shard: &mut Shard, now: u32) -> bool {
        let buckets = shard.table.num_buckets();
        let start = self.hasher.hash_one(now) as usize;
        let oldest = (0..buckets)
            .map(|step| start.wrapping_add(step) & (buckets - 1))
            .filter_map(|bucket| {
                let entry = shard.table.get_bucket(bucket)?;
                Some((now.wrapping_sub(entry.used.load(Relaxed)), bucket))
            })
            .take(SAMPLE)
            .max();
        let Some(held) = oldest.and_then(|(_, bucket)| shard.table.get_bucket_entry(bucket).ok()) else { return false };
        let (entry, _) = held.remove();
        self.forget(&mut shard.bytes, &entry);
        true
    }

    #[expect(clippy::indexing_slicing, reason = "the index is taken modulo SHARDS, the length of the slice")]
    fn place(&self, id: SessionId) -> (u64, &RwLock<Shard>) {
        let hash = self.hasher.hash_one(id);
        (hash, &self.shards[(hash >> 40) as usize % SHARDS])
    }
}

/// Orders states of one session: by entry, and of one entry by the last use marked; an ended one is later than any active.
fn age(viewed: &Viewed) -> (bool, LeafIndex, Timestamp) {
    match viewed {
        Viewed::Active(session) => (false, session.head.index, session.last_seen_at),
        Viewed::Ended(tombstone) => (true, tombstone.head.index, Timestamp::default()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use session_view::test_util::{id, seen, session};

    use super::*;

    fn open() -> NearCache {
        let near = NearCache::new(1 << 20);
        near.open(Instant::now(), Duration::from_secs(2));
        near
    }

    fn active(n: u64, index: u64) -> Viewed {
        Viewed::Active(Arc::new(session(n, index)))
    }

    fn index(near: &NearCache, n: u64) -> Option<u64> {
        near.peek(id(n)).map(|viewed| age(&viewed).1.0)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_before_an_invalidation_does_not_come_in_after_it() {
        let near = open();
        let ticket = near.ticket(id(1));
        near.invalidate(id(1));
        near.learn(id(1), Some(&active(1, 5)), ticket);
        assert_eq!(index(&near, 1), None);
        let ticket = near.ticket(id(1));
        near.learn(id(1), Some(&active(1, 6)), ticket);
        assert_eq!(index(&near, 1), Some(6));
        let ticket = near.ticket(id(1));
        near.close();
        near.open(Instant::now(), Duration::from_secs(2));
        near.learn(id(1), Some(&active(1, 6)), ticket);
        assert_eq!(index(&near, 1), None, "the ticket is of before the gap");
    }

    #[tokio::test(start_paused = true)]
    async fn readers_who_come_back_in_the_wrong_order_leave_the_later_state() {
        let near = open();
        let (first, second) = (near.ticket(id(1)), near.ticket(id(1)));
        near.learn(id(1), Some(&active(1, 6)), second);
        near.learn(id(1), Some(&active(1, 5)), first);
        assert_eq!(index(&near, 1), Some(6));
        near.learn(id(1), Some(&Viewed::Active(Arc::new(seen(1, 6, 9)))), first);
        near.learn(id(1), Some(&active(1, 6)), first);
        assert!(matches!(near.peek(id(1)), Some(Viewed::Active(s)) if s.last_seen_at == seen(1, 6, 9).last_seen_at));
        // A newer state without a valid ticket is not kept, but it shows that the one held is old.
        let behind = near.ticket(id(1));
        near.learn(id(1), Some(&active(1, 7)), None);
        assert_eq!(index(&near, 1), None);
        near.learn(id(1), Some(&active(1, 6)), behind);
        assert_eq!(index(&near, 1), None, "somebody has seen 7");
    }

    #[tokio::test(start_paused = true)]
    async fn closes_by_itself_when_nothing_was_heard_for_too_long() {
        let near = open();
        near.learn(id(1), Some(&active(1, 5)), near.ticket(id(1)));
        tokio::time::advance(Duration::from_millis(1_999)).await;
        assert_eq!(index(&near, 1), Some(5));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(index(&near, 1), None);
        assert!(near.ticket(id(1)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_its_budget() {
        let near = NearCache::new(1 << 20);
        near.open(Instant::now(), Duration::from_secs(2));
        for n in 0..5_000 {
            near.learn(id(n), Some(&active(n, 1)), near.ticket(id(n)));
            assert!(near.size().1 <= 1 << 20);
        }
        assert!(near.size().0 > 500, "{:?}", near.size());
        near.close();
        assert_eq!(near.size(), (0, 0));
    }
}
