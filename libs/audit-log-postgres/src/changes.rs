//! What a batch claims and what its claims come to, as the arrays of `counterfoil.append`.

use std::collections::{BTreeMap, BTreeSet};

use audit_log::{Batch, Claims, CredentialChange, DataKeyClaim, DataKeyRow, SessionChange, SubjectChange};
use session_model::{KeyId, Kind, RealmName, SessionId, Timestamp};
use uuid::Uuid;

use crate::open::signed;

/// What is claimed, entry after entry. The names are those of the arrays in SQL.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) s_at: Vec<i32>,
    pub(crate) s_id: Vec<Uuid>,
    pub(crate) s_version: Vec<i64>,
    pub(crate) e_at: Vec<i32>,
    pub(crate) e_id: Vec<Uuid>,
    pub(crate) k_at: Vec<i32>,
    pub(crate) k_id: Vec<Uuid>,
    pub(crate) k_lookup: Vec<Option<Vec<u8>>>,
    pub(crate) k_wrapped: Vec<Vec<u8>>,
    pub(crate) t_at: Vec<i32>,
    pub(crate) t_id: Vec<Uuid>,
    pub(crate) t_cap: Vec<i64>,
    pub(crate) f_id: Vec<Uuid>,
    pub(crate) a_at: Vec<i32>,
    pub(crate) a_key: Vec<Vec<u8>>,
    pub(crate) a_request: Vec<Vec<u8>>,
    pub(crate) a_answer: Vec<Vec<u8>>,
    pub(crate) a_expires_us: Vec<i64>,
}

impl Asked {
    pub(crate) fn of(batch: &Batch) -> Self {
        let mut asked = Self::default();
        for (at, entry) in (0..).zip(&batch.entries) {
            asked.claim(at, &entry.claims);
        }
        asked
    }

    fn claim(&mut self, at: i32, claims: &Claims) {
        if let Some((id, version)) = claims.session {
            self.s_at.push(at);
            self.s_id.push(id.uuid());
            self.s_version.push(signed(version.0));
        }
        match &claims.data_key {
            Some(DataKeyClaim::Existing(id)) => {
                self.e_at.push(at);
                self.e_id.push(id.uuid());
            }
            Some(DataKeyClaim::New(row)) => {
                self.k_at.push(at);
                self.k_id.push(row.id.uuid());
                self.k_lookup.push(row.lookup.map(|lookup| lookup.0.to_vec()));
                self.k_wrapped.push(row.wrapped.clone());
            }
            None => {}
        }
        if let Some(seat) = claims.take_seat {
            self.t_at.push(at);
            self.t_id.push(seat.key.uuid());
            self.t_cap.push(seat.cap.into());
        }
        self.f_id.extend(claims.free_seat.map(KeyId::uuid));
        if let Some(claim) = &claims.idempotency {
            self.a_at.push(at);
            self.a_key.push(claim.key.0.to_vec());
            self.a_request.push(claim.request.0.to_vec());
            self.a_answer.push(claim.answer.clone());
            self.a_expires_us.push(claim.expires.as_micros());
        }
    }
}

/// What a batch without refusals changes, entry after entry, folded to at most one change a row.
#[derive(Debug, Default)]
pub(crate) struct Changes<'a> {
    pub(crate) new_keys: BTreeMap<KeyId, NewKey>,
    /// What happens to the open sessions of keys from before this batch.
    pub(crate) seats: BTreeMap<KeyId, Seats>,
    /// Data keys from before this batch that now belong to another.
    pub(crate) owners: BTreeMap<KeyId, KeyId>,
    pub(crate) opened: BTreeMap<SessionId, Opened<'a>>,
    /// Sessions from before this batch that another key seals from now on.
    pub(crate) bound: BTreeMap<SessionId, KeyId>,
    /// Sessions that ended.
    pub(crate) closed: BTreeSet<SessionId>,
    /// Changes to credentials and subjects, as the function reads them.
    pub(crate) kept: Vec<serde_json::Value>,
}

#[derive(Debug)]
pub(crate) struct NewKey {
    pub(crate) seats: i32,
    pub(crate) owner: Option<KeyId>,
}

/// Changes to a number that only the database knows, and that stops at 0 on its way down.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    /// Sum of all.
    pub(crate) sum: i32,
    /// The least sum on the way; 0 at most.
    pub(crate) low: i32,
}

#[derive(Debug)]
pub(crate) struct Opened<'a> {
    pub(crate) realm: &'a RealmName,
    pub(crate) key: KeyId,
    pub(crate) kind: Kind,
    pub(crate) open: bool,
}

impl<'a> Changes<'a> {
    pub(crate) fn of(batch: &'a Batch) -> Self {
        let mut changes = Self::default();
        for entry in &batch.entries {
            changes.settle(&entry.claims);
        }
        changes
    }

    fn settle(&mut self, claims: &'a Claims) {
        if let Some(DataKeyClaim::New(DataKeyRow { id, owner, .. })) = claims.data_key.as_ref() {
            self.new_keys.insert(*id, NewKey { seats: 0, owner: *owner });
        }
        if let Some(key) = claims.free_seat {
            self.seat(key, -1);
        }
        if let Some(seat) = claims.take_seat {
            self.seat(seat.key, 1);
        }
        if let (Some(change), Some((id, _))) = (&claims.index, claims.session) {
            self.reindex(id, change);
        }
        self.kept.extend(claims.credential.as_ref().map(credential));
        self.kept.extend(claims.subject.map(subject));
    }

    fn seat(&mut self, key: KeyId, change: i32) {
        if let Some(new) = self.new_keys.get_mut(&key) {
            new.seats = (new.seats + change).max(0);
        } else {
            let seats = self.seats.entry(key).or_default();
            seats.sum += change;
            seats.low = seats.low.min(seats.sum);
        }
    }

    fn reindex(&mut self, id: SessionId, change: &'a SessionChange) {
        match change {
            SessionChange::Opened { realm, key, kind } => {
                self.bound.remove(&id);
                self.closed.remove(&id);
                self.opened.insert(id, Opened { realm, key: *key, kind: *kind, open: true });
            }
            SessionChange::Bound { key } => {
                let own = KeyId::new(id.uuid());
                match self.new_keys.get_mut(&own) {
                    Some(new) => new.owner = Some(*key),
                    None => drop(self.owners.insert(own, *key)),
                }
                match self.opened.get_mut(&id) {
                    Some(opened) => opened.key = *key,
                    None => drop(self.bound.insert(id, *key)),
                }
            }
            SessionChange::Closed => {
                if let Some(opened) = self.opened.get_mut(&id) {
                    opened.open = false;
                }
                self.closed.insert(id);
            }
        }
    }
}

fn subject(change: SubjectChange) -> serde_json::Value {
    match change {
        SubjectChange::Erased(key) => serde_json::json!({"erased": key.uuid()}),
        SubjectChange::Held(key, held) => serde_json::json!({"hold": key.uuid(), "held": held}),
    }
}

fn credential(change: &CredentialChange) -> serde_json::Value {
    match change {
        CredentialChange::Added(added) => serde_json::json!({
            "id": added.id,
            "digest": added.digest.to_string(),
            "realm": added.realm,
            "roles": added.roles,
            "label": added.label,
            "created_us": added.created_at.as_micros(),
            "revoked_us": added.revoked_at.map(Timestamp::as_micros),
        }),
        CredentialChange::Revoked(id, at) => serde_json::json!({"revoked": id, "revoked_us": at.as_micros()}),
    }
}
