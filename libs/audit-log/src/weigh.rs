//! Weighing the claims of a batch against what a store knows. No I/O: what the store knows was fetched before.

use std::collections::{HashMap, HashSet};

use crate::{Batch, Claims, DataKeyClaim, Proposed, Refusal, Refused, SubjectChange};
use session_model::{Digest, KeyId, SessionId};

/// What the database holds of all that a batch claims.
#[derive(Debug, Default)]
pub struct Known {
    /// Newest version of each session that has one.
    pub versions: HashMap<SessionId, u64>,
    /// Open sessions of each data key that exists.
    pub seats: HashMap<KeyId, u32>,
    /// Which of them are under legal hold.
    pub held: HashSet<KeyId>,
    /// Lookups in use.
    pub lookups: HashSet<Digest>,
    /// Idempotency keys in use.
    pub answers: HashSet<Digest>,
}

/// Which entries cannot be appended. The rules are those of [`crate::MemoryLog`], to which the conformance suite
/// compares every log.
pub fn refusals(known: &Known, batch: &Batch) -> Vec<Refused> {
    let mut weighed = Weighed::default();
    for key in batch.entries.iter().filter_map(|entry| entry.claims.free_seat) {
        *weighed.seats.entry(key).or_default() -= 1;
    }
    for entry in &batch.entries {
        weighed.touched(&entry.claims);
    }
    let weigh = |(at, entry): (usize, &Proposed)| weighed.weigh(known, &entry.claims).map(|why| Refused { at, why });
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
    /// How many claims of the whole batch concern each data key.
    touched: HashMap<KeyId, u32>,
}

impl Weighed {
    fn touched(&mut self, claims: &Claims) {
        let sealing = claims.data_key.as_ref().map(DataKeyClaim::id);
        let subject = claims.subject.map(SubjectChange::key);
        for key in [sealing, claims.free_seat, claims.take_seat.map(|seat| seat.key), subject].into_iter().flatten() {
            *self.touched.entry(key).or_default() += 1;
        }
    }

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
        if let Some(SubjectChange::Erased(key)) = claims.subject {
            match known.seats.get(&key) {
                None => return Some(Refusal::DataKeyMissing),
                Some(_) if known.held.contains(&key) => return Some(Refusal::LegalHold),
                Some(seats) if *seats > 0 || self.touched.get(&key).is_some_and(|claims| *claims > 1) => {
                    return Some(Refusal::SubjectBusy);
                }
                Some(_) => {}
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
