//! A log in the process's memory: the reference for every adapter, and what tests of the service run on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;

use async_trait::async_trait;
use merkle_log::Frontier;
use parking_lot::Mutex;
use session_model::{Digest, KeyId, Kind, LeafIndex, RealmName, SessionId, Timestamp, TreeSize, Version};

use crate::{
    Answer, AppendError, Appended, Batch, Claims, Credential, CredentialChange, DataKeyClaim, DataKeyRow, LogHead,
    LogIndex, LogPostings, LogReader, LogWriter, Posting, Projected, Projection, Prune, ReadError, Refusal, Refused,
    Rewrap, SessionChange, SessionFilter, StoredBatch, StoredEntry, SubjectChange, Term, Turn,
};

/// A log in memory. Loses everything with the process; otherwise keeps the contract of [`LogWriter`] to the letter.
#[derive(Debug, Default)]
pub struct MemoryLog {
    /// Whoever appends holds it meanwhile. Given in the order in which it was asked for.
    turns: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    head: Option<LogHead>,
    batches: BTreeMap<u64, StoredBatch>,
    leaf_hashes: Vec<Digest>,
    nodes: HashMap<(u8, u64), Digest>,
    versions: HashMap<SessionId, Vec<LeafIndex>>,
    keys: HashMap<KeyId, KeyState>,
    lookups: HashMap<Digest, KeyId>,
    sessions: BTreeMap<SessionId, IndexRow>,
    uses: HashMap<SessionId, Timestamp>,
    answers: HashMap<Digest, Answer>,
    credentials: Vec<Credential>,
    projection: Projection,
    postings: BTreeMap<(Term, u32), Vec<u8>>,
}

#[derive(Debug)]
struct KeyState {
    row: DataKeyRow,
    seats: u32,
}

#[derive(Debug)]
struct IndexRow {
    realm: RealmName,
    key: KeyId,
    kind: Kind,
    open: bool,
}

impl MemoryLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }
}

impl State {
    fn head(&self) -> LogHead {
        self.head.clone().unwrap_or_else(|| LogHead {
            frontier: Frontier::empty(),
            time: Timestamp::default(),
            checkpoint: None,
        })
    }

    fn entry(&self, index: LeafIndex) -> Option<StoredEntry> {
        let batch = self.batches.range(..=index.0).next_back()?.1;
        let at = usize::try_from(index.0 - batch.first.0).ok()?;
        Some(StoredEntry {
            index,
            leaf: batch.leaves.get(at)?.clone(),
            sealed: batch.sealed.get(at)?.clone(),
            tree_size: batch.tree_size(),
        })
    }

    /// Weighs the claims of a batch in order. Freed seats count before taken ones.
    fn refusals(&self, batch: &Batch) -> Vec<Refused> {
        let mut weighed = Weighed::default();
        for entry in &batch.entries {
            if let Some(key) = entry.claims.free_seat {
                *weighed.seats.entry(key).or_default() -= 1;
            }
            weighed.claimed.extend(keys_of(&entry.claims));
        }
        batch
            .entries
            .iter()
            .enumerate()
            .filter_map(|(at, entry)| weighed.weigh(self, &entry.claims).map(|why| Refused { at, why }))
            .collect()
    }

    fn append(&mut self, batch: &Batch) -> Appended {
        let head = self.head();
        if head.size() != batch.expected {
            return Appended::Moved(head);
        }
        let refused = self.refusals(batch);
        if !refused.is_empty() {
            return Appended::Refused(refused);
        }
        for (at, entry) in batch.entries.iter().enumerate() {
            self.settle(batch.index(at), &entry.claims);
        }
        let stored = StoredBatch {
            first: LeafIndex(batch.expected.0),
            leaves: batch.entries.iter().map(|entry| entry.bytes.clone()).collect(),
            sealed: batch.entries.iter().map(|entry| entry.sealed.clone()).collect(),
            checkpoint: batch.checkpoint.clone(),
        };
        self.batches.insert(batch.expected.0, stored);
        self.leaf_hashes.extend(batch.entries.iter().map(|entry| entry.hash));
        self.nodes.extend(batch.nodes.iter().map(|node| ((node.level, node.index), node.hash)));
        self.head = Some(batch.head.clone());
        Appended::Committed
    }

    fn settle(&mut self, index: LeafIndex, claims: &Claims) {
        if let Some((id, _)) = claims.session {
            self.versions.entry(id).or_default().push(index);
        }
        if let Some(DataKeyClaim::New(row)) = &claims.data_key {
            if let Some(lookup) = row.lookup {
                self.lookups.insert(lookup, row.id);
            }
            self.keys.insert(row.id, KeyState { row: row.clone(), seats: 0 });
        }
        if let Some(key) = claims.free_seat.and_then(|key| self.keys.get_mut(&key)) {
            key.seats = key.seats.saturating_sub(1);
        }
        if let Some(key) = claims.take_seat.and_then(|seat| self.keys.get_mut(&seat.key)) {
            key.seats += 1;
        }
        match (&claims.index, claims.session) {
            (Some(SessionChange::Opened { realm, key, kind }), Some((id, _))) => {
                self.sessions.insert(id, IndexRow { realm: realm.clone(), key: *key, kind: *kind, open: true });
            }
            (Some(SessionChange::Bound { key }), Some((id, _))) => {
                if let Some(own) = self.keys.get_mut(&KeyId::new(id.uuid())) {
                    own.row.owner = Some(*key);
                }
                if let Some(row) = self.sessions.get_mut(&id) {
                    row.key = *key;
                }
            }
            (Some(SessionChange::Closed), Some((id, _))) => {
                if let Some(row) = self.sessions.get_mut(&id) {
                    row.open = false;
                }
            }
            (None, _) | (_, None) => {}
        }
        if let Some(claim) = &claims.idempotency {
            self.answers.insert(
                claim.key,
                Answer { request: claim.request, answer: claim.answer.clone(), index, expires: claim.expires },
            );
        }
        match claims.subject {
            Some(SubjectChange::Erased(key)) => {
                self.keys.retain(|id, kept| *id != key && kept.row.owner != Some(key));
                self.lookups.retain(|_, id| *id != key);
            }
            Some(SubjectChange::Held(key, held)) => {
                if let Some(kept) = self.keys.get_mut(&key) {
                    kept.row.held = held;
                }
            }
            None => {}
        }
        match &claims.credential {
            Some(CredentialChange::Added(added)) => {
                let known = self.credentials.iter().any(|known| known.digest == added.digest);
                self.credentials.extend((!known).then(|| added.clone()));
            }
            Some(CredentialChange::Revoked(id, at)) => {
                let known = self.credentials.iter_mut().filter(|known| known.id == *id && known.revoked_at.is_none());
                known.for_each(|known| known.revoked_at = Some(*at));
            }
            None => {}
        }
    }
}

/// What the entries of a batch before this one have claimed.
#[derive(Default)]
struct Weighed {
    versions: HashMap<SessionId, u64>,
    keys: HashSet<KeyId>,
    lookups: HashSet<Digest>,
    seats: HashMap<KeyId, i64>,
    answers: HashSet<Digest>,
    /// The data keys that the whole batch claims something of, once for each claim.
    claimed: Vec<KeyId>,
}

/// The data keys that an entry claims something of.
fn keys_of(claims: &Claims) -> impl Iterator<Item = KeyId> {
    let seat = claims.take_seat.map(|seat| seat.key);
    let subject = claims.subject.map(SubjectChange::key);
    [claims.data_key.as_ref().map(DataKeyClaim::id), claims.free_seat, seat, subject].into_iter().flatten()
}

impl Weighed {
    fn weigh(&mut self, state: &State, claims: &Claims) -> Option<Refusal> {
        if let Some((id, version)) = claims.session {
            let newest = self.versions.get(&id).copied();
            let newest = newest.unwrap_or_else(|| state.versions.get(&id).map_or(0, |known| known.len() as u64));
            if version.0 != newest + 1 {
                return Some(Refusal::Version);
            }
        }
        match &claims.data_key {
            Some(DataKeyClaim::Existing(id)) if !state.keys.contains_key(id) && !self.keys.contains(id) => {
                return Some(Refusal::DataKeyMissing);
            }
            Some(DataKeyClaim::New(row)) => {
                let looked_up = row.lookup.is_some_and(|l| state.lookups.contains_key(&l) || self.lookups.contains(&l));
                if looked_up || state.keys.contains_key(&row.id) || self.keys.contains(&row.id) {
                    return Some(Refusal::DataKeyTaken);
                }
            }
            Some(DataKeyClaim::Existing(_)) | None => {}
        }
        if let Some(seat) = claims.take_seat {
            let held = state.keys.get(&seat.key).map_or(0, |key| i64::from(key.seats));
            if held + self.seats.get(&seat.key).copied().unwrap_or(0) >= i64::from(seat.cap) {
                return Some(Refusal::CapReached);
            }
        }
        if let Some(SubjectChange::Erased(key)) = claims.subject {
            let Some(kept) = state.keys.get(&key) else { return Some(Refusal::DataKeyMissing) };
            if kept.row.held {
                return Some(Refusal::LegalHold);
            }
            if kept.seats > 0 || self.claimed.iter().filter(|claimed| **claimed == key).count() > 1 {
                return Some(Refusal::SubjectBusy);
            }
        }
        if let Some(claim) = &claims.idempotency
            && (state.answers.contains_key(&claim.key) || self.answers.contains(&claim.key))
        {
            return Some(Refusal::IdempotencyKeyUsed);
        }
        // Nothing stands against it: the entries after it have to reckon with it.
        if let Some((id, version)) = claims.session {
            self.versions.insert(id, version.0);
        }
        if let Some(DataKeyClaim::New(row)) = &claims.data_key {
            self.keys.insert(row.id);
            self.lookups.extend(row.lookup);
        }
        if let Some(seat) = claims.take_seat {
            *self.seats.entry(seat.key).or_default() += 1;
        }
        self.answers.extend(claims.idempotency.as_ref().map(|claim| claim.key));
        None
    }
}

#[async_trait]
impl LogReader for MemoryLog {
    async fn head(&self) -> Result<LogHead, ReadError> {
        Ok(self.state.lock().head())
    }

    async fn batches(&self, from: LeafIndex, entries: usize) -> Result<Vec<StoredBatch>, ReadError> {
        let state = self.state.lock();
        let first = state.batches.range(..=from.0).next_back().map_or(0, |(first, _)| *first);
        let mut found = Vec::new();
        let mut count = 0;
        for batch in state.batches.range(first..).map(|(_, batch)| batch).filter(|b| b.tree_size().0 > from.0) {
            if count >= entries.max(1) {
                break;
            }
            count += batch.leaves.len();
            found.push(batch.clone());
        }
        Ok(found)
    }

    async fn entries(&self, indices: &[LeafIndex]) -> Result<Vec<Option<StoredEntry>>, ReadError> {
        let state = self.state.lock();
        Ok(indices.iter().map(|index| state.entry(*index)).collect())
    }

    async fn sealed_batches(&self, from: LeafIndex, entries: usize) -> Result<Vec<StoredBatch>, ReadError> {
        let state = self.state.lock();
        let sealed = state
            .batches
            .values()
            .filter(|batch| batch.tree_size().0 > from.0 && batch.sealed.iter().any(Option::is_some));
        let mut found: Vec<StoredBatch> = Vec::new();
        for batch in sealed {
            if !found.is_empty() && found.iter().map(|batch| batch.leaves.len()).sum::<usize>() >= entries {
                break;
            }
            found.push(batch.clone());
        }
        Ok(found)
    }

    async fn session_entries(
        &self,
        id: SessionId,
        after: Version,
        limit: usize,
    ) -> Result<Vec<(Version, LeafIndex)>, ReadError> {
        let state = self.state.lock();
        let versions = state.versions.get(&id).into_iter().flatten();
        let numbered = versions.zip(1_u64..).map(|(index, version)| (Version(version), *index));
        Ok(numbered.filter(|(version, _)| *version > after).take(limit).collect())
    }

    async fn hashes(&self, level: u8, start: u64, count: u64) -> Result<Vec<Digest>, ReadError> {
        let state = self.state.lock();
        let at = |index: u64| match level {
            0 => usize::try_from(index).ok().and_then(|index| state.leaf_hashes.get(index).copied()),
            _ => state.nodes.get(&(level, index)).copied(),
        };
        let found: Option<Vec<_>> = (start..start + count).map(at).collect();
        found.ok_or_else(|| ReadError::Corrupt(format!("no {count} hashes of level {level} from {start}")))
    }
}

#[async_trait]
impl LogIndex for MemoryLog {
    async fn data_keys_by_lookup(&self, lookups: &[Digest]) -> Result<Vec<Option<DataKeyRow>>, ReadError> {
        let state = self.state.lock();
        let find = |lookup| state.lookups.get(lookup).and_then(|id| state.keys.get(id)).map(|key| key.row.clone());
        Ok(lookups.iter().map(find).collect())
    }

    async fn data_keys(&self, ids: &[KeyId]) -> Result<Vec<Option<DataKeyRow>>, ReadError> {
        let state = self.state.lock();
        Ok(ids.iter().map(|id| state.keys.get(id).map(|key| key.row.clone())).collect())
    }

    async fn data_keys_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<DataKeyRow>, ReadError> {
        let state = self.state.lock();
        let behind = state.keys.values().filter(|key| after.is_none_or(|after| key.row.id > after));
        let mut rows: Vec<DataKeyRow> = behind.map(|key| key.row.clone()).collect();
        rows.sort_unstable_by_key(|row| row.id);
        rows.truncate(limit);
        Ok(rows)
    }

    async fn data_keys_owned_by(&self, owner: KeyId) -> Result<Vec<KeyId>, ReadError> {
        let state = self.state.lock();
        Ok(state.keys.values().filter(|key| key.row.owner == Some(owner)).map(|key| key.row.id).collect())
    }

    async fn sessions(
        &self,
        filter: &SessionFilter,
        before: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, ReadError> {
        let state = self.state.lock();
        let fits = |id: &SessionId, row: &IndexRow| {
            row.realm == filter.realm
                && filter.key.is_none_or(|key| key == row.key && key.uuid() != id.uuid())
                && filter.open.is_none_or(|open| open == row.open)
                && filter.kind.is_none_or(|kind| kind == row.kind)
        };
        let newest_first = state.sessions.iter().rev();
        let older = newest_first.filter(|(id, row)| before.is_none_or(|before| **id < before) && fits(id, row));
        Ok(older.map(|(id, _)| *id).take(limit).collect())
    }

    async fn uses(&self, ids: &[SessionId]) -> Result<Vec<Option<Timestamp>>, ReadError> {
        let state = self.state.lock();
        Ok(ids.iter().map(|id| state.uses.get(id).copied()).collect())
    }

    async fn answer(&self, key: &Digest) -> Result<Option<Answer>, ReadError> {
        Ok(self.state.lock().answers.get(key).cloned())
    }

    async fn credentials(&self) -> Result<Vec<Credential>, ReadError> {
        Ok(self.state.lock().credentials.clone())
    }
}

#[async_trait]
impl LogPostings for MemoryLog {
    async fn projection(&self) -> Result<Projection, ReadError> {
        Ok(self.state.lock().projection)
    }

    async fn postings(&self, terms: &[Term], segments: RangeInclusive<u32>) -> Result<Vec<Posting>, ReadError> {
        let state = self.state.lock();
        let of_term = |term: Term| state.postings.range((term, *segments.start())..=(term, *segments.end()));
        let posting =
            |(&(term, segment), offsets): (&(Term, u32), &Vec<u8>)| Posting { term, segment, offsets: offsets.clone() };
        Ok(terms.iter().flat_map(|term| of_term(*term)).map(posting).collect())
    }

    async fn postings_in(&self, terms: &[Term], segments: &[u32]) -> Result<Vec<Posting>, ReadError> {
        let state = self.state.lock();
        let places = terms.iter().flat_map(|term| segments.iter().map(|segment| (*term, *segment)));
        let posting = |(term, segment)| {
            let offsets = state.postings.get(&(term, segment))?.clone();
            Some(Posting { term, segment, offsets })
        };
        Ok(places.filter_map(posting).collect())
    }

    async fn segments_with(&self, terms: &[Term], segments: RangeInclusive<u32>) -> Result<Vec<u32>, ReadError> {
        let state = self.state.lock();
        let Some((first, others)) = terms.split_first() else { return Ok(Vec::new()) };
        let of_first = state.postings.range((*first, *segments.start())..=(*first, *segments.end()));
        let candidates = of_first.map(|((_, segment), _)| *segment);
        let all = |segment: &u32| others.iter().all(|term| state.postings.contains_key(&(*term, *segment)));
        Ok(candidates.filter(all).collect())
    }

    async fn project(
        &self,
        expected: Projection,
        size: TreeSize,
        postings: &[Posting],
    ) -> Result<Projected, ReadError> {
        let mut state = self.state.lock();
        if state.projection != expected {
            return Ok(Projected::Moved);
        }
        for posting in postings {
            if posting.offsets.is_empty() {
                state.postings.remove(&(posting.term, posting.segment));
            } else {
                state.postings.insert((posting.term, posting.segment), posting.offsets.clone());
            }
        }
        state.projection = Projection { size, revision: expected.revision + 1 };
        Ok(Projected::Yes)
    }

    async fn session_places(&self, ids: &[SessionId]) -> Result<Vec<LeafIndex>, ReadError> {
        let state = self.state.lock();
        Ok(ids.iter().filter_map(|id| state.versions.get(id)).flatten().copied().collect())
    }
}

#[async_trait]
impl LogWriter for MemoryLog {
    async fn append(&self, batch: &Batch) -> Result<Appended, AppendError> {
        let _turn = self.turns.lock().await;
        Ok(self.state.lock().append(batch))
    }

    async fn turn(&self) -> Result<Option<Box<dyn Turn + '_>>, ReadError> {
        let held = self.turns.lock().await;
        let head = self.state.lock().head();
        Ok(Some(Box::new(MemoryTurn { log: self, held: Some(held), head })))
    }

    async fn resolve(&self, batch: &Batch) -> Result<bool, ReadError> {
        let state = self.state.lock();
        let stored = state.batches.get(&batch.expected.0);
        Ok(stored.is_some_and(|stored| stored.leaves.iter().eq(batch.entries.iter().map(|entry| &entry.bytes))))
    }

    async fn mark_uses(&self, uses: &[(SessionId, Timestamp)]) -> Result<(), ReadError> {
        let mut state = self.state.lock();
        for (id, at) in uses {
            let known = state.uses.entry(*id).or_insert(*at);
            *known = (*known).max(*at);
        }
        Ok(())
    }

    async fn forget_expired(&self, now: Timestamp, limit: usize) -> Result<usize, ReadError> {
        let mut state = self.state.lock();
        let expired = state.answers.iter().filter(|(_, answer)| answer.expires < now);
        let expired: Vec<_> = expired.map(|(key, _)| *key).take(limit).collect();
        for key in &expired {
            state.answers.remove(key);
        }
        let closed = state.uses.keys().filter(|id| state.sessions.get(id).is_some_and(|row| !row.open));
        let closed: Vec<_> = closed.copied().take(limit).collect();
        for id in closed {
            state.uses.remove(&id);
        }
        Ok(expired.len())
    }

    async fn rewrap(&self, keys: &[Rewrap]) -> Result<usize, ReadError> {
        let mut state = self.state.lock();
        let mut done = 0;
        for key in keys {
            if let Some(row) =
                state.keys.get_mut(&key.id).map(|key| &mut key.row).filter(|row| row.wrapped == key.wrapped)
            {
                row.wrapped.clone_from(&key.rewrapped);
                done += 1;
            }
        }
        Ok(done)
    }

    async fn prune(&self, prune: &Prune) -> Result<bool, ReadError> {
        let mut state = self.state.lock();
        let held = |id: &KeyId| state.keys.get(id).is_some_and(|key| key.row.held);
        let owner = |id: &KeyId| state.keys.get(id).and_then(|key| key.row.owner);
        let Some(keys) = prune.keys() else { return Ok(false) };
        if keys.iter().any(|id| held(id) || owner(id).is_some_and(|owner| held(&owner))) {
            return Ok(false);
        }
        let stored = state.batches.get_mut(&prune.first.0).filter(|batch| batch.sealed == prune.was);
        Ok(stored.map(|batch| batch.sealed.clone_from(&prune.kept)).is_some())
    }

    async fn prepare(&self, _size: TreeSize, _now: Timestamp) -> Result<(), ReadError> {
        Ok(())
    }
}

struct MemoryTurn<'a> {
    log: &'a MemoryLog,
    /// `None` once the turn is over.
    held: Option<tokio::sync::MutexGuard<'a, ()>>,
    head: LogHead,
}

#[async_trait]
impl Turn for MemoryTurn<'_> {
    fn head(&self) -> &LogHead {
        &self.head
    }

    async fn append(&mut self, batch: &Batch) -> Result<Appended, AppendError> {
        let held = self.held.take().ok_or_else(|| AppendError::NotDone("the turn is over".into()))?;
        let appended = self.log.state.lock().append(batch);
        if matches!(appended, Appended::Refused(_)) {
            self.held = Some(held);
        }
        Ok(appended)
    }

    async fn end(self: Box<Self>) {}
}
