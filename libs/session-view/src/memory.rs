//! The view in the process's own memory.
//!
//! Sessions are spread over shards by the hash of their id. A read takes one shard's lock for reading and clones an
//! `Arc`. Beside its table each shard keeps an index by deadline, which is allowed to be early: marking a use does not
//! touch it, and [`MemoryView::due`] moves an entry that turns out early.

use std::collections::{BTreeSet, VecDeque};
use std::hash::BuildHasher;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use async_trait::async_trait;
use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::RwLock;
use session_model::{LeafIndex, Session, SessionId, Timestamp, Tombstone, TreeSize};
use tokio::time::Instant;

use crate::{
    Applied, Exported, RETAIN_ENDED_S, SessionView, ViewError, ViewStatus, Viewed, session_bytes, tombstone_bytes,
};

/// How much memory sessions may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes, by estimate: what the process takes is up to a tenth off it. Default: no bound.
    pub bytes: usize,
    /// What happens beyond them. Default: refuse.
    pub beyond: BeyondBudget,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: usize::MAX, beyond: BeyondBudget::Refuse }
    }
}

/// What happens when the budget is used up. A state whose entry is in the log is applied in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeyondBudget {
    /// [`SessionView::has_room`] says no, so that no further session is created. For a log-less view: nothing is forgotten.
    Refuse,
    /// Active sessions not used for long are dropped; whoever asks for one reads it from the log. Which ones is
    /// decided by comparing a sample, so it is not always the one used longest ago.
    Evict,
}

/// A power of two well above any number of cores, so that two requests rarely meet at one lock.
const SHARDS: usize = 128;

/// How many sessions are compared to find one to evict. Ten come close to exact LRU (Redis, "Approximated LRU
/// algorithm"); eight are close enough.
const SAMPLE: usize = 8;

/// What the table (40 bytes at a load between 7/16 and 7/8) and the deadline index (24 bytes at a fill of about two
/// thirds) take for each session.
const OVERHEAD: usize = 64 + 36;

/// The view in the process's own memory: the reference implementation of [`SessionView`].
pub struct MemoryView {
    shards: Box<[RwLock<Shard>]>,
    hasher: DefaultHashBuilder,
    budget: Budget,
    /// Estimated bytes of all slots. Changed only with the lock of the slot's shard held.
    bytes: AtomicUsize,
    /// Active and ended sessions. Changed as `bytes`.
    held: AtomicUsize,
    /// Rises with every state applied: the clock that uses are stamped with, if the budget evicts.
    generation: AtomicU32,
    /// Which shard is to evict next.
    turn: AtomicUsize,
    reflects: AtomicU64,
    /// Tombstones age by the monotonic clock: setting the wall clock must not bring a session back.
    started: Instant,
}

#[derive(Default)]
struct Shard {
    table: HashTable<Entry>,
    /// `(deadline, id)` in microseconds: exactly one entry, never a late one, for each active session; beyond those,
    /// entries of evicted sessions, and left-overs that are dropped when their time comes.
    deadlines: BTreeSet<(i64, SessionId)>,
    /// Slots that may go [`RETAIN_ENDED_S`] after the second they are stamped with, oldest first.
    retained: VecDeque<(u32, SessionId)>,
}

struct Entry {
    id: SessionId,
    slot: Slot,
}

enum Slot {
    Active {
        session: Arc<Session>,
        /// Its deadline in [`Shard::deadlines`].
        indexed: i64,
        /// [`MemoryView::generation`] at the last use.
        used: AtomicU32,
    },
    Ended {
        tombstone: Arc<Tombstone>,
        /// When it may go: see [`Shard::retained`].
        stamp: u32,
    },
    /// Dropped to keep the budget, but an older state that is still under way must not take its place.
    Evicted { index: LeafIndex, indexed: i64, stamp: u32 },
}

impl MemoryView {
    /// An empty view.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            budget,
            bytes: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            generation: AtomicU32::new(0),
            turn: AtomicUsize::new(0),
            reflects: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// The hash of an id and the shard it falls in. The table takes its position from the low bits and its tag from the
    /// seven highest, so the shard is taken from between.
    #[expect(clippy::indexing_slicing, reason = "the index is taken modulo SHARDS, the length of the slice")]
    fn place(&self, id: SessionId) -> (u64, &RwLock<Shard>) {
        let hash = self.hasher.hash_one(id);
        (hash, &self.shards[(hash >> 40) as usize % SHARDS])
    }

    fn apply_one(&self, state: &Arc<Session>) -> Applied {
        let (hash, shard) = self.place(state.id);
        let generation = self.generation.fetch_add(1, Relaxed).wrapping_add(1);
        let mut shard = shard.write();
        let shard = &mut *shard;
        match state.tombstone() {
            Some(tombstone) => self.apply_ended(shard, hash, tombstone),
            None => self.apply_active(shard, hash, state, generation),
        }
    }

    fn apply_active(&self, shard: &mut Shard, hash: u64, state: &Arc<Session>, generation: u32) -> Applied {
        let id = state.id;
        let mut session = Arc::clone(state);
        let weight = session_bytes(&session) + OVERHEAD;
        let used = AtomicU32::new(generation);
        match shard.table.find_mut(hash, |entry| entry.id == id).map(|entry| &mut entry.slot) {
            None => {
                let indexed = session.idle_expires_at().as_micros();
                let entry = Entry { id, slot: Slot::Active { session, indexed, used } };
                shard.table.insert_unique(hash, entry, |entry| self.hasher.hash_one(entry.id));
                shard.deadlines.insert((indexed, id));
                self.held.fetch_add(1, Relaxed);
                self.bytes.fetch_add(weight, Relaxed);
            }
            Some(Slot::Active { session: shown, .. }) if shown.head.index >= session.head.index => {
                return Applied::Stale;
            }
            Some(Slot::Ended { .. }) => return Applied::Stale,
            Some(Slot::Evicted { index, .. }) if *index > session.head.index => return Applied::Stale,
            Some(Slot::Active { session: shown, indexed, used: last }) => {
                if shown.last_seen_at > session.last_seen_at {
                    Arc::make_mut(&mut session).last_seen_at = shown.last_seen_at;
                }
                index_by(&mut shard.deadlines, id, indexed, session.idle_expires_at());
                self.bytes.fetch_add(weight, Relaxed);
                self.bytes.fetch_sub(session_bytes(shown) + OVERHEAD, Relaxed);
                *shown = session;
                *last = used;
            }
            Some(slot @ Slot::Evicted { .. }) => {
                if let Slot::Evicted { indexed, .. } = slot {
                    let mut indexed = *indexed;
                    index_by(&mut shard.deadlines, id, &mut indexed, session.idle_expires_at());
                    *slot = Slot::Active { session, indexed, used };
                    self.held.fetch_add(1, Relaxed);
                    self.bytes.fetch_add(weight, Relaxed);
                    self.bytes.fetch_sub(OVERHEAD, Relaxed);
                }
            }
        }
        Applied::Yes
    }

    fn apply_ended(&self, shard: &mut Shard, hash: u64, tombstone: Tombstone) -> Applied {
        let (id, stamp) = (tombstone.id, self.seconds());
        let weight = tombstone_bytes(&tombstone) + OVERHEAD;
        let index = tombstone.head.index;
        let ended = Slot::Ended { tombstone: Arc::new(tombstone), stamp };
        match shard.table.find_mut(hash, |entry| entry.id == id).map(|entry| &mut entry.slot) {
            None => {
                shard.table.insert_unique(hash, Entry { id, slot: ended }, |entry| self.hasher.hash_one(entry.id));
                self.held.fetch_add(1, Relaxed);
            }
            Some(slot) => {
                match slot {
                    Slot::Active { session, indexed, .. } => {
                        if session.head.index >= index {
                            return Applied::Stale;
                        }
                        shard.deadlines.remove(&(*indexed, id));
                        self.bytes.fetch_sub(session_bytes(session) + OVERHEAD, Relaxed);
                    }
                    Slot::Ended { tombstone, .. } => {
                        if tombstone.head.index >= index {
                            return Applied::Stale;
                        }
                        self.bytes.fetch_sub(tombstone_bytes(tombstone) + OVERHEAD, Relaxed);
                    }
                    Slot::Evicted { index: evicted, indexed, .. } => {
                        if *evicted >= index {
                            return Applied::Stale;
                        }
                        shard.deadlines.remove(&(*indexed, id));
                        self.held.fetch_add(1, Relaxed);
                        self.bytes.fetch_sub(OVERHEAD, Relaxed);
                    }
                }
                *slot = ended;
            }
        }
        self.bytes.fetch_add(weight, Relaxed);
        shard.retained.push_back((stamp, id));
        self.purge(shard, stamp);
        Applied::Yes
    }

    /// Drops tombstones and marks of eviction that were kept long enough.
    fn purge(&self, shard: &mut Shard, now: u32) {
        while let Some((stamp, id)) =
            shard.retained.pop_front_if(|(stamp, _)| now.saturating_sub(*stamp) > RETAIN_ENDED_S)
        {
            // A slot with another stamp was renewed since and stands in the queue again, or is active again.
            let hash = self.hasher.hash_one(id);
            let Ok(entry) = shard.table.find_entry(hash, |entry| entry.id == id) else { continue };
            match &entry.get().slot {
                Slot::Ended { tombstone, stamp: last } if *last == stamp => {
                    self.held.fetch_sub(1, Relaxed);
                    self.bytes.fetch_sub(tombstone_bytes(tombstone) + OVERHEAD, Relaxed);
                }
                Slot::Evicted { stamp: last, .. } if *last == stamp => {
                    self.bytes.fetch_sub(OVERHEAD, Relaxed);
                }
                Slot::Active { .. } | Slot::Ended { .. } | Slot::Evicted { .. } => continue,
            }
            entry.remove();
        }
    }

    /// Evicts until the budget is kept, or nothing is left that may be evicted.
    fn make_room(&self) {
        let mut in_vain = 0;
        while self.bytes.load(Relaxed) > self.budget.bytes && in_vain < SHARDS {
            let turn = self.turn.fetch_add(1, Relaxed);
            let Some(shard) = self.shards.get(turn % SHARDS) else { return };
            if self.evict_one(&mut shard.write(), turn) { in_vain = 0 } else { in_vain += 1 }
        }
    }

    /// Drops the session used longest ago among a few. Says whether there was one.
    fn evict_one(&self, shard: &mut Shard, turn: usize) -> bool {
        let now = self.seconds();
        self.purge(shard, now);
        let generation = self.generation.load(Relaxed);
        let buckets = shard.table.num_buckets();
        // The hash of the turn is as good as a random start, and the same in every run of a test.
        let start = self.hasher.hash_one(turn) as usize;
        let oldest = (0..buckets)
            .map(|step| start.wrapping_add(step) & (buckets - 1))
            .filter_map(|bucket| match &shard.table.get_bucket(bucket)?.slot {
                Slot::Active { used, .. } => Some((generation.wrapping_sub(used.load(Relaxed)), bucket)),
                Slot::Ended { .. } | Slot::Evicted { .. } => None,
            })
            .take(SAMPLE)
            .max();
        let Some(entry) = oldest.and_then(|(_, bucket)| shard.table.get_bucket_mut(bucket)) else { return false };
        let Slot::Active { session, indexed, .. } = &entry.slot else { return false };
        self.held.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(session_bytes(session), Relaxed);
        shard.retained.push_back((now, entry.id));
        entry.slot = Slot::Evicted { index: session.head.index, indexed: *indexed, stamp: now };
        true
    }

    /// The shard's active sessions due before `before`, at most `limit`, earliest first.
    fn due_in(&self, shard: &mut Shard, before: i64, limit: usize) -> Vec<(i64, SessionId)> {
        let mut due = Vec::new();
        let mut from = Bound::Unbounded;
        while due.len() < limit {
            let Some(&(indexed, id)) = shard.deadlines.range((from, Bound::Unbounded)).next() else { break };
            if indexed >= before {
                break;
            }
            let hash = self.hasher.hash_one(id);
            let (keep, moved) = match shard.table.find_mut(hash, |entry| entry.id == id).map(|entry| &mut entry.slot) {
                Some(Slot::Active { session, indexed: own, .. }) if *own == indexed => {
                    let deadline = session.idle_expires_at().as_micros();
                    *own = deadline;
                    (deadline == indexed, Some(deadline))
                }
                Some(Slot::Evicted { indexed: own, .. }) if *own == indexed => (true, None),
                None => (true, None),
                Some(Slot::Active { .. } | Slot::Ended { .. } | Slot::Evicted { .. }) => (false, None),
            };
            if keep {
                due.push((indexed, id));
                from = Bound::Excluded((indexed, id));
            } else {
                shard.deadlines.remove(&(indexed, id));
                shard.deadlines.extend(moved.map(|deadline| (deadline, id)));
            }
        }
        due
    }

    /// Whole seconds since the view was made.
    fn seconds(&self) -> u32 {
        self.started.elapsed().as_secs().try_into().unwrap_or(u32::MAX)
    }
}

/// Moves a session's entry in the index if it would be late. An early one is left to [`MemoryView::due_in`].
fn index_by(deadlines: &mut BTreeSet<(i64, SessionId)>, id: SessionId, indexed: &mut i64, deadline: Timestamp) {
    if deadline.as_micros() < *indexed {
        deadlines.remove(&(*indexed, id));
        *indexed = deadline.as_micros();
        deadlines.insert((*indexed, id));
    }
}

#[async_trait]
impl SessionView for MemoryView {
    fn peek(&self, id: SessionId) -> Option<Viewed> {
        let (hash, shard) = self.place(id);
        let shard = shard.read();
        match &shard.table.find(hash, |entry| entry.id == id)?.slot {
            Slot::Active { session, used, .. } => {
                if self.budget.beyond == BeyondBudget::Evict {
                    let generation = self.generation.load(Relaxed);
                    // Reading first leaves the cache line shared between the cores that read the session.
                    if used.load(Relaxed) != generation {
                        used.store(generation, Relaxed);
                    }
                }
                Some(Viewed::Active(Arc::clone(session)))
            }
            Slot::Ended { tombstone, .. } => Some(Viewed::Ended(Arc::clone(tombstone))),
            Slot::Evicted { .. } => None,
        }
    }

    async fn get(&self, id: SessionId) -> Result<Option<Viewed>, ViewError> {
        Ok(self.peek(id))
    }

    async fn apply(&self, states: &[Arc<Session>]) -> Result<Vec<Applied>, ViewError> {
        let applied = states.iter().map(|state| self.apply_one(state)).collect();
        if self.budget.beyond == BeyondBudget::Evict {
            self.make_room();
        }
        Ok(applied)
    }

    async fn mark_used(&self, uses: &[(SessionId, Timestamp)]) -> Result<(), ViewError> {
        for &(id, at) in uses {
            let (hash, shard) = self.place(id);
            let mut shard = shard.write();
            if let Some(Entry { slot: Slot::Active { session, .. }, .. }) =
                shard.table.find_mut(hash, |entry| entry.id == id)
                && session.last_seen_at < at
            {
                Arc::make_mut(session).last_seen_at = at;
            }
        }
        Ok(())
    }

    async fn due(&self, before: Timestamp, limit: usize) -> Result<Vec<SessionId>, ViewError> {
        let now = self.seconds();
        let mut due = Vec::new();
        for shards in self.shards.chunks(8) {
            for shard in shards {
                let mut shard = shard.write();
                self.purge(&mut shard, now);
                due.append(&mut self.due_in(&mut shard, before.as_micros(), limit));
            }
            // Where every session was used since the index was told of it, moving them takes a while.
            tokio::task::yield_now().await;
        }
        due.sort_unstable();
        due.truncate(limit);
        Ok(due.into_iter().map(|(_, id)| id).collect())
    }

    fn has_room(&self) -> bool {
        match self.budget.beyond {
            BeyondBudget::Refuse => self.bytes.load(Relaxed) < self.budget.bytes,
            BeyondBudget::Evict => true,
        }
    }

    /// Does nothing: what this view holds was never encoded.
    async fn quarantine(&self, _: SessionId) -> Result<(), ViewError> {
        Ok(())
    }

    async fn reflects(&self) -> Result<TreeSize, ViewError> {
        Ok(TreeSize(self.reflects.load(Relaxed)))
    }

    async fn set_reflects(&self, size: TreeSize) -> Result<(), ViewError> {
        self.reflects.fetch_max(size.0, Relaxed);
        Ok(())
    }

    fn status(&self) -> ViewStatus {
        ViewStatus {
            kind: "memory",
            available: true,
            in_doubt: false,
            held: self.held.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            budget: (self.budget.bytes != usize::MAX).then_some(self.budget.bytes),
        }
    }

    fn retain(&self, keep: &(dyn Fn(SessionId) -> bool + Sync)) {
        let now = self.seconds();
        for shard in &self.shards {
            let mut shard = shard.write();
            let Shard { table, deadlines, retained } = &mut *shard;
            for entry in table.iter_mut().filter(|entry| !keep(entry.id)) {
                match &mut entry.slot {
                    Slot::Active { session, indexed, .. } => {
                        deadlines.remove(&(*indexed, entry.id));
                        self.held.fetch_sub(1, Relaxed);
                        self.bytes.fetch_sub(session_bytes(session), Relaxed);
                        retained.push_back((now, entry.id));
                        // Whenever it comes back it is due before that.
                        entry.slot = Slot::Evicted { index: session.head.index, indexed: i64::MAX, stamp: now };
                    }
                    Slot::Evicted { indexed, .. } => {
                        deadlines.remove(&(*indexed, entry.id));
                        *indexed = i64::MAX;
                    }
                    // It goes by itself, and whoever asks is told the truth until then.
                    Slot::Ended { .. } => {}
                }
            }
        }
    }

    /// A position is the number of a shard.
    fn export(&self, from: u64, bytes: usize) -> Option<Exported> {
        if self.budget.beyond == BeyondBudget::Evict && self.budget.bytes < usize::MAX {
            // What was dropped would be missing, and nobody would know its deadline.
            return None;
        }
        let (mut sessions, mut taken, mut at) = (Vec::new(), 0, usize::try_from(from).ok()?);
        while let Some(shard) = self.shards.get(at) {
            if taken >= bytes {
                return Some(Exported { sessions, next: Some(at as u64) });
            }
            for entry in shard.read().table.iter() {
                if let Slot::Active { session, .. } = &entry.slot {
                    taken += session_bytes(session);
                    sessions.push(Arc::clone(session));
                }
            }
            at += 1;
        }
        Some(Exported { sessions, next: None })
    }
}
