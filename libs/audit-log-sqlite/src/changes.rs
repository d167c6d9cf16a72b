//! What a batch without refusals changes, folded to few rows. No I/O: what the database knows was fetched before.

use std::collections::BTreeMap;

use audit_log::{Batch, Claims, CredentialChange, DataKeyClaim, DataKeyRow, Known, SessionChange, SubjectChange};
use session_model::{KeyId, Kind, LeafIndex, RealmName, SessionId, Version};

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
    pub(crate) subjects: Vec<SubjectChange>,
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
        self.subjects.extend(claims.subject);
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
