//! The store in the process's own memory.
//!
//! One lock over a table and its indices: a read clones an `Arc`, a change touches three small trees. What several nodes hold is brought
//! together by [`MemoryTransients::merge`]; whether two hold the same is told from [`MemoryTransients::sums`].

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use hashbrown::HashMap;
use parking_lot::RwLock;
use session_model::transient::{Joined, Stamped, bucket};
use session_model::{Digest, RealmName, SLOTS, Session, SessionId, Slot, Timestamp};
use session_view::session_bytes;

use crate::{KeptAnswer, Listing, Outcome, Put, REMEMBERED, StoreError, StoreStatus, TransientStore};

/// What the table and the indices take for each session, beside the session.
const OVERHEAD: usize = 320;
/// What a kept answer takes.
const ANSWER: usize = 400;
/// Buckets that sessions are compared by.
pub const SUMS: usize = 256;

/// Sessions in the process's own memory. They are gone when it ends.
pub struct MemoryTransients {
    budget: usize,
    held: RwLock<Held>,
}

struct Held {
    sessions: HashMap<SessionId, Stamped>,
    by_realm: HashMap<RealmName, BTreeSet<SessionId>>,
    /// Active sessions that have a subject.
    by_subject: HashMap<(RealmName, Box<str>), BTreeSet<SessionId>>,
    /// Of active sessions the deadline, in microseconds: exactly one each, and allowed to be early. A use does not touch it; [`Held::due`]
    /// moves one that turns out early.
    deadlines: BTreeSet<(i64, SessionId)>,
    /// Where each active session stands in `deadlines`.
    indexed: HashMap<SessionId, i64>,
    /// When ended sessions are forgotten.
    graves: BTreeSet<(i64, SessionId)>,
    answers: HashMap<Digest, KeptAnswer>,
    answers_end: BTreeSet<(i64, [u8; 32])>,
    /// Estimated, of all of it.
    bytes: usize,
    /// For each slot the sum, modulo 2^64, of the fingerprints in it.
    sums: Vec<u64>,
}

/// What became of states that came from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Merged {
    /// How many changed what stands here.
    pub changed: usize,
    /// How many changes were lost, because others were made apart from them.
    pub lost: usize,
}

impl MemoryTransients {
    /// An empty store that takes about so many bytes; 0 is no bound. Beyond it no session begins.
    pub fn new(bytes: usize) -> Self {
        let held = Held {
            sessions: HashMap::new(),
            by_realm: HashMap::new(),
            by_subject: HashMap::new(),
            deadlines: BTreeSet::new(),
            indexed: HashMap::new(),
            graves: BTreeSet::new(),
            answers: HashMap::new(),
            answers_end: BTreeSet::new(),
            bytes: 0,
            sums: vec![0; SLOTS],
        };
        Self { budget: if bytes == 0 { usize::MAX } else { bytes }, held: RwLock::new(held) }
    }

    /// Takes in states that were made elsewhere. One whose time is long up is passed over: it may be that it ended, and was forgotten here.
    /// The budget is not asked: the session has begun.
    pub fn merge(&self, states: Vec<Stamped>, now: Timestamp) -> Merged {
        let mut merged = Merged::default();
        let mut held = self.held.write();
        for state in states {
            if state.session.expires_at.plus(REMEMBERED) <= now {
                continue;
            }
            let Some(stands) = held.sessions.get(&state.session.id) else {
                held.set(state.kept());
                merged.changed += 1;
                continue;
            };
            match stands.join(&state) {
                Joined::Held => {}
                Joined::HeldAndLost => merged.lost += 1,
                Joined::Changed { state, lost } => {
                    held.set(state.kept());
                    merged.changed += 1;
                    merged.lost += usize::from(lost);
                }
            }
        }
        merged
    }

    /// For each bucket of [`bucket`] a sum over what is held: two stores that hold the same have the same.
    pub fn sums(&self) -> [u64; SUMS] {
        let mut buckets = [0_u64; SUMS];
        // A slot's number ends in the byte that is the bucket.
        for (sum, slot) in self.held.read().sums.iter().zip(Slot::all()) {
            if let Some(bucket) = buckets.get_mut(slot.index() % SUMS) {
                *bucket = bucket.wrapping_add(*sum);
            }
        }
        buckets
    }

    /// For each slot a sum over what is held, by its number: 0 where nothing is.
    pub fn slot_sums(&self) -> Vec<u64> {
        self.held.read().sums.clone()
    }

    /// What is held in slots that `wanted` says yes to.
    pub fn in_slots(&self, wanted: impl Fn(Slot) -> bool) -> Vec<Stamped> {
        let held = self.held.read();
        held.sessions.values().filter(|state| wanted(Slot::of(state.session.id))).cloned().collect()
    }

    /// Drops what is held in slots whose sum is still this: others hold it. Says how many sessions that were.
    pub fn drop_slots(&self, slots: &[(Slot, u64)]) -> usize {
        let mut held = self.held.write();
        let mut goes = [false; SLOTS];
        for (slot, sum) in slots {
            if let Some(goes) = goes.get_mut(slot.index()) {
                *goes = held.sums.get(slot.index()) == Some(sum);
            }
        }
        let in_one = |id: &SessionId| goes.get(Slot::of(*id).index()) == Some(&true);
        let gone: Vec<SessionId> = held.sessions.keys().filter(|id| in_one(id)).copied().collect();
        gone.iter().for_each(|id| held.remove(*id));
        gone.len()
    }

    /// Keeps an answer under an idempotency key, where the state that it is about stands elsewhere.
    pub fn keep(&self, key: Digest, kept: KeptAnswer) {
        self.held.write().keep(key, kept);
    }

    /// What is held in one bucket.
    pub fn bucket(&self, which: u8) -> Vec<Stamped> {
        let held = self.held.read();
        held.sessions.values().filter(|state| bucket(state.session.id) == which).cloned().collect()
    }
}

impl Held {
    /// Lets a state stand in place of whatever stood.
    fn set(&mut self, state: Stamped) {
        let id = state.session.id;
        self.sum(&state, u64::wrapping_add);
        self.bytes += weight(&state);
        let deadline = state.session.idle_expires_at().as_micros();
        let active = state.session.ended().is_none();
        let subject = seat(&state.session);
        match self.sessions.insert(id, state.clone()) {
            None => {
                self.by_realm.entry(state.session.realm.clone()).or_default().insert(id);
            }
            Some(before) => {
                self.sum(&before, u64::wrapping_sub);
                self.bytes = self.bytes.saturating_sub(weight(&before));
                let seat_before = seat(&before.session);
                if seat_before != subject {
                    self.leave_seat(seat_before, id);
                }
            }
        }
        if let Some(seat) = subject {
            self.by_subject.entry(seat).or_default().insert(id);
        }
        match (active, self.indexed.get(&id).copied()) {
            // Early is allowed.
            (true, Some(indexed)) if indexed <= deadline => {}
            (true, _) => {
                self.unindex(id);
                self.deadlines.insert((deadline, id));
                self.indexed.insert(id, deadline);
            }
            (false, _) => {
                self.unindex(id);
                self.graves.insert((state.session.expires_at.plus(REMEMBERED).as_micros(), id));
            }
        }
    }

    fn unindex(&mut self, id: SessionId) {
        if let Some(indexed) = self.indexed.remove(&id) {
            self.deadlines.remove(&(indexed, id));
        }
    }

    fn leave_seat(&mut self, seat: Option<(RealmName, Box<str>)>, id: SessionId) {
        let Some(seat) = seat else { return };
        if let Some(sessions) = self.by_subject.get_mut(&seat) {
            sessions.remove(&id);
            if sessions.is_empty() {
                self.by_subject.remove(&seat);
            }
        }
    }

    fn sum(&mut self, state: &Stamped, how: fn(u64, u64) -> u64) {
        if let Some(sum) = self.sums.get_mut(Slot::of(state.session.id).index()) {
            *sum = how(*sum, state.fingerprint());
        }
    }

    /// Marks a use, if it is later than the last.
    fn mark(&mut self, id: SessionId, at: Timestamp) -> Option<Stamped> {
        let stands = self.sessions.get(&id)?;
        if stands.session.ended().is_some() || stands.session.last_seen_at >= at {
            return None;
        }
        let session = Session { last_seen_at: at, ..Session::clone(&stands.session) };
        let marked = Stamped { session: Arc::new(session), stamp: stands.stamp };
        self.set(marked.clone());
        Some(marked)
    }

    fn due(&mut self, before: Timestamp, limit: usize) -> Vec<Arc<Session>> {
        let mut due = Vec::new();
        let early: Vec<_> = self.deadlines.range(..(before.as_micros(), NONE)).copied().collect();
        for (indexed, id) in early {
            let Some(session) = self.sessions.get(&id).map(|state| Arc::clone(&state.session)) else { continue };
            let deadline = session.idle_expires_at().as_micros();
            if deadline < before.as_micros() {
                due.push(session);
                if due.len() >= limit {
                    break;
                }
            } else {
                self.deadlines.remove(&(indexed, id));
                self.deadlines.insert((deadline, id));
                self.indexed.insert(id, deadline);
            }
        }
        due
    }

    fn list(&self, listing: &Listing) -> Vec<Arc<Session>> {
        let ids = match &listing.subject {
            Some(subject) => self.by_subject.get(&(listing.realm.clone(), subject.clone())),
            None => self.by_realm.get(&listing.realm),
        };
        let Some(ids) = ids else { return Vec::new() };
        let sessions = ids.range(..listing.before.unwrap_or(LAST)).rev().filter_map(|id| self.sessions.get(id));
        let wanted = sessions.filter(|state| listing.wants(&state.session));
        wanted.take(listing.limit).map(|state| Arc::clone(&state.session)).collect()
    }

    /// Takes a session out of the table and of every index.
    fn remove(&mut self, id: SessionId) {
        let Some(gone) = self.sessions.remove(&id) else { return };
        self.sum(&gone, u64::wrapping_sub);
        self.bytes = self.bytes.saturating_sub(weight(&gone));
        if let Some(ids) = self.by_realm.get_mut(&gone.session.realm) {
            ids.remove(&id);
        }
        self.leave_seat(seat(&gone.session), id);
        self.unindex(id);
        self.graves.remove(&(gone.session.expires_at.plus(REMEMBERED).as_micros(), id));
    }

    fn keep(&mut self, key: Digest, kept: KeptAnswer) {
        let until = kept.expires.as_micros();
        self.answers_end.insert((until, key.0));
        match self.answers.insert(key, kept) {
            None => self.bytes += ANSWER,
            Some(before) if before.expires.as_micros() != until => {
                self.answers_end.remove(&(before.expires.as_micros(), key.0));
            }
            Some(_) => {}
        }
    }

    fn forget(&mut self, now: Timestamp) {
        while let Some((until, id)) = self.graves.first().copied().filter(|(until, _)| *until <= now.as_micros()) {
            self.graves.remove(&(until, id));
            self.remove(id);
        }
        while let Some((until, key)) = self.answers_end.first().copied().filter(|(until, _)| *until <= now.as_micros())
        {
            self.answers_end.remove(&(until, key));
            if self.answers.remove(&Digest(key)).is_some() {
                self.bytes = self.bytes.saturating_sub(ANSWER);
            }
        }
    }
}

/// Before every session, and behind.
const NONE: SessionId = SessionId::new(uuid::Uuid::nil());
const LAST: SessionId = SessionId::new(uuid::Uuid::max());

/// Whose an active session is.
fn seat(session: &Session) -> Option<(RealmName, Box<str>)> {
    let subject = session.subject.as_ref().filter(|_| session.ended().is_none())?;
    Some((session.realm.clone(), subject.clone()))
}

fn weight(state: &Stamped) -> usize {
    session_bytes(&state.session) + OVERHEAD
}

#[async_trait]
impl TransientStore for MemoryTransients {
    async fn get(&self, id: SessionId) -> Result<Option<Stamped>, StoreError> {
        Ok(self.held.read().sessions.get(&id).cloned())
    }

    async fn put(&self, put: Put) -> Result<Outcome, StoreError> {
        // There is nobody else who could acknowledge it.
        let Put { state, base, cap, answer, acknowledged_by: _ } = put;
        let mut held = self.held.write();
        if let Some((key, _)) = &answer
            && held.answers.get(key).is_some_and(|kept| kept.expires > state.stamp.at)
        {
            return Ok(Outcome::Answered);
        }
        let stands = held.sessions.get(&state.session.id);
        if stands.map(|stands| stands.stamp) != base || stands.is_some_and(|stands| stands.session.ended().is_some()) {
            return Ok(Outcome::Moved);
        }
        if base.is_none() && held.bytes.saturating_add(weight(&state)) > self.budget {
            return Ok(Outcome::Full);
        }
        if let (Some(cap), Some(seat)) = (cap, seat(&state.session)) {
            let taken = held.by_subject.get(&seat);
            let others = taken.map_or(0, |ids| ids.len() - usize::from(ids.contains(&state.session.id)));
            if others >= cap as usize {
                return Ok(Outcome::CapReached);
            }
        }
        let seen = stands.map_or(state.session.last_seen_at, |stands| stands.session.last_seen_at);
        let state = match seen > state.session.last_seen_at {
            true => Stamped {
                session: Arc::new(Session { last_seen_at: seen, ..Session::clone(&state.session) }),
                stamp: state.stamp,
            },
            false => state,
        };
        held.set(state.kept());
        if let Some((key, kept)) = answer {
            held.keep(key, kept);
        }
        Ok(Outcome::Done)
    }

    async fn mark_used(&self, id: SessionId, at: Timestamp) -> Result<Option<Stamped>, StoreError> {
        Ok(self.held.write().mark(id, at))
    }

    async fn due(&self, before: Timestamp, limit: usize) -> Result<Vec<Arc<Session>>, StoreError> {
        Ok(self.held.write().due(before, limit))
    }

    async fn list(&self, listing: &Listing) -> Result<Vec<Arc<Session>>, StoreError> {
        Ok(self.held.read().list(listing))
    }

    async fn answer(&self, key: &Digest, now: Timestamp) -> Result<Option<KeptAnswer>, StoreError> {
        Ok(self.held.read().answers.get(key).filter(|kept| kept.expires > now).cloned())
    }

    async fn sweep(&self, now: Timestamp) {
        self.held.write().forget(now);
    }

    fn status(&self) -> StoreStatus {
        let held = self.held.read();
        StoreStatus { kind: "memory", available: true, held: held.sessions.len(), bytes: held.bytes }
    }
}

impl std::fmt::Debug for MemoryTransients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryTransients({} held)", self.held.read().sessions.len())
    }
}
