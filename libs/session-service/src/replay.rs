//! From entries back to sessions, through the same `apply` as live writes.

use std::sync::Arc;

use audit_log::{LogStore, ReadError, StoredEntry};
use hashbrown::HashMap;
use sealing::DataKey;
use session_model::{Event, Head, KeyId, Leaf, Recorded, SealedPart, Session, SessionId, Version, apply};

use crate::data_keys::{DataKeys, KeyError};

/// Why a session cannot be rebuilt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The data key of one of its entries does not exist any more.
    #[error("the session's data was erased")]
    Erased,
}

/// An entry of a session, opened.
pub(crate) struct Opened {
    pub(crate) recorded: Recorded,
    pub(crate) event: Event,
}

/// Rebuilds sessions from the log.
#[derive(Clone)]
pub(crate) struct Replay {
    log: Arc<dyn LogStore>,
    keys: Arc<DataKeys>,
}

/// Entries read at once: two or three thousand bytes each.
const PAGE: usize = 256;

impl Replay {
    pub(crate) fn new(log: Arc<dyn LogStore>, keys: Arc<DataKeys>) -> Self {
        Self { log, keys }
    }

    /// The state of a session at a version, or now; `None` if the log has no such session.
    pub(crate) async fn session(&self, id: SessionId, at: Option<Version>) -> Result<Option<Session>, ReplayError> {
        let mut state: Option<Session> = None;
        let mut after = Version::NONE;
        loop {
            let places = self.log.session_entries(id, after, PAGE).await?;
            let wanted = places.iter().filter(|(version, _)| at.is_none_or(|at| *version <= at));
            let indices: Vec<_> = wanted.map(|(_, index)| *index).collect();
            let stored = self.log.entries(&indices).await?.into_iter().flatten().collect();
            for opened in self.open(stored).await? {
                state = apply(state, &opened.event, &opened.recorded);
            }
            match places.last() {
                Some((last, _)) if places.len() == PAGE && at.is_none_or(|at| *last < at) => after = *last,
                Some(_) | None => break,
            }
        }
        if at.is_none()
            && let Some(session) = &mut state
            && let Some(Some(used)) = self.log.uses(&[id]).await?.first()
        {
            session.last_seen_at = session.last_seen_at.max(*used);
        }
        Ok(state)
    }

    /// Opens entries of one session; an erased one is an error.
    async fn open(&self, entries: Vec<StoredEntry>) -> Result<Vec<Opened>, ReplayError> {
        let leaves = decode(&entries)?;
        let ids: Vec<KeyId> = leaves.iter().filter_map(|leaf| leaf.data_key).collect();
        let keys = self.keys.by_ids(&ids).await?;
        let opened = leaves.into_iter().zip(&entries).filter_map(|(leaf, entry)| match open(&leaf, entry, &keys) {
            Ok(None) => None,
            Ok(Some(opened)) => Some(Ok(opened)),
            Err(failure) => Some(Err(failure)),
        });
        opened.collect()
    }

    /// Opens a run of entries of many sessions; erased ones, and entries that are no event of a session, are left out.
    pub(crate) async fn open_run(&self, entries: Vec<StoredEntry>) -> Result<Vec<Opened>, ReplayError> {
        let leaves = decode(&entries)?;
        let ids: Vec<KeyId> = leaves.iter().filter_map(|leaf| leaf.data_key).collect();
        let keys = self.keys.by_ids(&ids).await?;
        let mut opened = Vec::with_capacity(entries.len());
        for (leaf, entry) in leaves.into_iter().zip(&entries) {
            match open(&leaf, entry, &keys) {
                Ok(found) => opened.extend(found),
                Err(ReplayError::Erased) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(opened)
    }
}

fn corrupt(entry: &StoredEntry, what: &str) -> ReplayError {
    ReplayError::Read(ReadError::Corrupt(format!("entry {}: {what}", entry.index)))
}

fn decode(entries: &[StoredEntry]) -> Result<Vec<Leaf>, ReplayError> {
    entries.iter().map(|entry| Leaf::decode(&entry.leaf).map_err(|_| corrupt(entry, "not a leaf"))).collect()
}

/// `None` if the entry is no event of a session.
fn open(leaf: &Leaf, entry: &StoredEntry, keys: &HashMap<KeyId, DataKey>) -> Result<Option<Opened>, ReplayError> {
    let (Some(session), Some(version), Some(data_key)) = (leaf.session_id, leaf.version, leaf.data_key) else {
        return Ok(None);
    };
    let key = keys.get(&data_key).ok_or(ReplayError::Erased)?;
    let (Some(sealed), Some(commitment)) = (&entry.sealed, &leaf.commitment) else {
        return Err(ReplayError::Erased);
    };
    let plaintext = key
        .open(leaf.entry_id, &sealed.bytes, commitment)
        .map_err(|_| corrupt(entry, "its sealed part does not open"))?;
    let part = SealedPart::decode(&plaintext).map_err(|_| corrupt(entry, "its sealed part is none"))?;
    let Some(event) = part.event else { return Ok(None) };
    let recorded = Recorded {
        session,
        realm: leaf.realm.clone(),
        version,
        time: leaf.time,
        head: Head { index: entry.index, hash: merkle_log::leaf_hash(&entry.leaf), tree_size: entry.tree_size },
        data_key,
    };
    Ok(Some(Opened { recorded, event }))
}
