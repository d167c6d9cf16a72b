//! Weighing the claims of a batch, and what they come to. No I/O: what the database knows was fetched before.

use std::collections::{BTreeMap, HashMap, HashSet};

use audit_log::{Batch, Claims, CredentialChange, DataKeyClaim, DataKeyRow, Refusal, Refused, SessionChange};
use session_model::{Digest, KeyId, Kind, LeafIndex, RealmName, SessionId, Version};

/// What the database holds of all that a batch claims.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Newest version of each session that has one.
    pub(crate) versions: HashMap<SessionId, u64>,
    /// Open sessions of each data key that exists.
    pub(crate) seats: HashMap<KeyId, u32>,
    /// Lookups in use.
    pub(crate) lookups: HashSet<Digest>,
    /// Idempotency keys in use.
    pub(crate) answers: HashSet<Digest>,
}

/// Which entries cannot be appended. The rules are those of [`audit_log::MemoryLog`], to which the conformance suite
/// compares every log.
pub(crate) fn refusals(known: &Known, batch: &Batch) -> Vec<Refused> {
    let mut weighed = Weighed::default();
    for key in batch.entries.iter().filter_map(|entry| entry.claims.free_seat) {
        *weighed.seats.entry(key).or_default() -= 1;
    }
    let weigh =
        |(at, entry): (usize, &audit_log::Proposed)| weighed.weigh(known, &entry.claims).map(|why| Refused { at, why });
    batch.entries.iter().enumerate().filter_map(weigh).collect()
}

/// What the entries before this one have claimed.
#[derive(Default)]
struct Weighed {
    versions: HashMap<SessionId, u64>,
    keys: HashSet<KeyId>,
    lookups: HashSet<Digest>,
    seats: HashMap<KeyId, i64>,
    answers: HashSet<Digest>,
}

impl Weighed {
    fn weigh(&mut self, known: &Known, claims: &Claims) -> Option<Refusal> {
        if let Some((id, version)) = claims.session {
            let newest = self.versions.get(&id).or_else(|| known.versions.get(&id)).copied().unwrap_or(0);
            if version.0 != newest + 1 {
                return Some(Refusal::Version);
            }
        }
        let exists = |id: &KeyId| known.seats.contains_key(id) || self.keys.contains(id);
        let looked_up = |lookup: &Digest| known.lookups.contains(lookup) || self.lookups.contains(lookup);
        match &claims.data_key {
            Some(DataKeyClaim::Existing(id)) if !exists(id) => return Some(Refusal::DataKeyMissing),
            Some(DataKeyClaim::New(row)) if exists(&row.id) || row.lookup.as_ref().is_some_and(looked_up) => {
                return Some(Refusal::DataKeyTaken);
            }
            Some(DataKeyClaim::Existing(_) | DataKeyClaim::New(_)) | None => {}
        }
        if let Some(seat) = claims.take_seat {
            let held = known.seats.get(&seat.key).map_or(0, |seats| i64::from(*seats));
            if held + self.seats.get(&seat.key).copied().unwrap_or(0) >= i64::from(seat.cap) {
                return Some(Refusal::CapReached);
            }
        }
        if let Some(claim) = &claims.idempotency
            && (known.answers.contains(&claim.key) || self.answers.contains(&claim.key))
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

/// What a batch without refusals changes, entry after entry, folded to at most one change a row.
#[derive(Debug, Default)]
pub(crate) struct Changes<'a> {
    pub(crate) versions: Vec<(SessionId, Version, LeafIndex)>,
    pub(crate) new_keys: BTreeMap<KeyId, NewKey>,
    /// Open sessions that each of these keys has from now on.
    pub(crate) seats: BTreeMap<KeyId, u32>,
    /// Data keys from before this batch that now belong to another.
    pub(crate) owners: BTreeMap<KeyId, KeyId>,
    pub(crate) opened: BTreeMap<SessionId, Opened<'a>>,
    /// Sessions from before this batch that another key seals from now on.
    pub(crate) bound: BTreeMap<SessionId, KeyId>,
    /// Sessions that ended, opened in this batch or before it.
    pub(crate) closed: Vec<SessionId>,
    pub(crate) answers: Vec<(&'a audit_log::IdempotencyClaim, LeafIndex)>,
    pub(crate) credentials: Vec<&'a CredentialChange>,
}

#[derive(Debug)]
pub(crate) struct NewKey {
    pub(crate) row: DataKeyRow,
    pub(crate) seats: u32,
}

#[derive(Debug)]
pub(crate) struct Opened<'a> {
    pub(crate) realm: &'a RealmName,
    pub(crate) key: KeyId,
    pub(crate) kind: Kind,
}

impl<'a> Changes<'a> {
    pub(crate) fn of(known: &Known, batch: &'a Batch) -> Self {
        let mut changes = Self::default();
        for (at, entry) in batch.entries.iter().enumerate() {
            changes.settle(known, batch.index(at), &entry.claims);
        }
        changes
    }

    fn settle(&mut self, known: &Known, index: LeafIndex, claims: &'a Claims) {
        if let Some((id, version)) = claims.session {
            self.versions.push((id, version, index));
        }
        if let Some(DataKeyClaim::New(row)) = &claims.data_key {
            self.new_keys.insert(row.id, NewKey { row: row.clone(), seats: 0 });
        }
        if let Some(seats) = claims.free_seat.and_then(|key| self.seats_of(known, key)) {
            *seats = seats.saturating_sub(1);
        }
        if let Some(seats) = claims.take_seat.and_then(|seat| self.seats_of(known, seat.key)) {
            *seats += 1;
        }
        if let (Some(change), Some((id, _))) = (&claims.index, claims.session) {
            self.reindex(id, change);
        }
        self.answers.extend(claims.idempotency.as_ref().map(|claim| (claim, index)));
        self.credentials.extend(&claims.credential);
    }

    /// Where the open sessions of a key are counted; `None` if there is no such key.
    fn seats_of(&mut self, known: &Known, key: KeyId) -> Option<&mut u32> {
        match self.new_keys.get_mut(&key) {
            Some(new) => Some(&mut new.seats),
            None => known.seats.get(&key).map(|seats| self.seats.entry(key).or_insert(*seats)),
        }
    }

    fn reindex(&mut self, id: SessionId, change: &'a SessionChange) {
        match change {
            SessionChange::Opened { realm, key, kind } => {
                self.opened.insert(id, Opened { realm, key: *key, kind: *kind });
            }
            SessionChange::Bound { key } => {
                let own = KeyId::new(id.uuid());
                match self.new_keys.get_mut(&own) {
                    Some(new) => new.row.owner = Some(*key),
                    None => drop(self.owners.insert(own, *key)),
                }
                match self.opened.get_mut(&id) {
                    Some(opened) => opened.key = *key,
                    None => drop(self.bound.insert(id, *key)),
                }
            }
            SessionChange::Closed => self.closed.push(id),
        }
    }
}
