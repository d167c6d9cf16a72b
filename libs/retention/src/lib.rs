//! Retention: which sealed parts of a realm are past their time, and dropping them.
//!
//! Leaves, leaf hashes, tree and checkpoints stay for ever: all that is dropped is what is sealed beside a leaf, so every proof stays valid. In two steps, with
//! what the caller must do between them: [`survey`] finds the range whose time is over and counts what would go; the caller archives exactly this
//! range and records it; [`drop_parts`] then drops, a batch a transaction. Either can be cut short at any moment and begun anew.
//!
//! What stays, however old: parts of sessions that are still open, and parts under the data key of a subject that is under legal hold, or
//! under one that such a key owns.

use std::collections::HashSet;

use audit_log::{LogStore, Prune, ReadError, SealedEntry, SessionFilter, StoredBatch};
use session_model::{KeyId, Leaf, LeafIndex, RealmName, SessionId, Timestamp};
use uuid::Uuid;

/// A range of a realm's entries whose time is over.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Whose.
    pub realm: RealmName,
    /// Entries earlier than this are meant.
    pub before: Timestamp,
    /// The first entry whose sealed part goes.
    pub first: LeafIndex,
    /// The first entry behind the range.
    pub end: LeafIndex,
    /// How many sealed parts go.
    pub parts: u64,
    /// How many are old enough, and stay for a legal hold or an open session.
    pub kept: u64,
    /// Sessions that were open at the survey.
    open: HashSet<SessionId>,
}

/// Entries that are read at a time.
const PAGE: usize = 2_048;

/// Finds the sealed parts of a realm that are older than `before` and may go, at most about `most` of them, the oldest first; `None` if there are none.
/// What is left over is found by the next survey.
///
/// # Errors
/// [`ReadError`].
pub async fn survey(
    log: &dyn LogStore,
    realm: &RealmName,
    before: Timestamp,
    most: u64,
) -> Result<Option<Finished>, ReadError> {
    let open = open_since(log, realm, before).await?;
    let mut finished: Option<Finished> = None;
    let mut kept = 0;
    let mut from = LeafIndex(0);
    loop {
        let page = log.sealed_batches(from, PAGE).await?;
        let Some(last) = page.last() else { break };
        from = LeafIndex(last.tree_size().0);
        let held = held(log, &page).await?;
        let mut over = false;
        for batch in &page {
            let choice = Choice { realm, before, open: &open, held: &held }.of(batch)?;
            kept += choice.kept;
            over |= choice.over;
            if let (Some(first), Some(last)) = (choice.gone.first(), choice.gone.last()) {
                let at = |place: usize| LeafIndex(batch.first.0 + place as u64);
                let end = LeafIndex(at(*last).0 + 1);
                let range = finished.get_or_insert_with(|| Finished {
                    realm: realm.clone(),
                    before,
                    first: at(*first),
                    end,
                    parts: 0,
                    kept: 0,
                    open: open.clone(),
                });
                range.end = end;
                range.parts += choice.gone.len() as u64;
                over |= range.parts >= most;
            }
            if over {
                break;
            }
        }
        if over {
            break;
        }
    }
    if let Some(finished) = &mut finished {
        finished.kept = kept;
    }
    Ok(finished)
}

/// Drops the sealed parts of a range that was surveyed, archived and recorded; answers how many. Parts that have come under legal hold since stay.
///
/// # Errors
/// [`ReadError`]: some are dropped then, and another survey finds the others.
pub async fn drop_parts(log: &dyn LogStore, finished: &Finished) -> Result<u64, ReadError> {
    let mut dropped = 0;
    let mut from = finished.first;
    loop {
        let page = log.sealed_batches(from, PAGE).await?;
        let Some(last) = page.last() else { return Ok(dropped) };
        from = LeafIndex(last.tree_size().0);
        let held = held(log, &page).await?;
        for batch in page {
            if batch.first >= finished.end {
                return Ok(dropped);
            }
            let choice = Choice { realm: &finished.realm, before: finished.before, open: &finished.open, held: &held };
            let mut gone = choice.of(&batch)?.gone;
            gone.retain(|place| batch.first.0 + (*place as u64) < finished.end.0);
            let mut kept: Vec<Option<SealedEntry>> = batch.sealed.clone();
            for part in gone.iter().filter_map(|place| kept.get_mut(*place).map(Option::take)) {
                drop(part);
            }
            let prune = Prune { first: batch.first, was: batch.sealed, kept };
            if !gone.is_empty() && log.prune(&prune).await? {
                dropped += gone.len() as u64;
            }
        }
    }
}

/// What decides over a part.
struct Choice<'a> {
    realm: &'a RealmName,
    before: Timestamp,
    open: &'a HashSet<SessionId>,
    held: &'a HashSet<KeyId>,
}

/// What becomes of the parts of a batch.
struct Chosen {
    /// Places in the batch of those that go.
    gone: Vec<usize>,
    /// How many are old enough, and stay.
    kept: u64,
    /// Whether the batch has entries that are not old enough: then so has everything behind it, because times never go back.
    over: bool,
}

impl Choice<'_> {
    fn of(&self, batch: &StoredBatch) -> Result<Chosen, ReadError> {
        let mut chosen = Chosen { gone: Vec::new(), kept: 0, over: false };
        for (place, (leaf, sealed)) in batch.leaves.iter().zip(&batch.sealed).enumerate() {
            let Some(sealed) = sealed else { continue };
            let corrupt = |_| {
                ReadError::Corrupt(format!("the entry at place {place} of the batch at {} is no leaf", batch.first))
            };
            let leaf = Leaf::decode(leaf).map_err(corrupt)?;
            if leaf.time >= self.before {
                chosen.over = true;
                break;
            }
            if leaf.realm != *self.realm {
                continue;
            }
            let is_open = leaf.session_id.is_some_and(|session| self.open.contains(&session));
            if is_open || self.held.contains(&sealed.key) {
                chosen.kept += 1;
            } else {
                chosen.gone.push(place);
            }
        }
        Ok(chosen)
    }
}

/// The data keys of these batches that are held, or belong to one that is.
async fn held(log: &dyn LogStore, batches: &[StoredBatch]) -> Result<HashSet<KeyId>, ReadError> {
    let mut ids: Vec<KeyId> =
        batches.iter().flat_map(|batch| &batch.sealed).flatten().map(|sealed| sealed.key).collect();
    ids.sort_unstable();
    ids.dedup();
    let rows: Vec<_> = log.data_keys(&ids).await?.into_iter().flatten().collect();
    let mut owners: Vec<KeyId> = rows.iter().filter_map(|row| row.owner).collect();
    owners.sort_unstable();
    owners.dedup();
    let owners = log.data_keys(&owners).await?;
    let held: HashSet<KeyId> = owners.into_iter().flatten().filter(|row| row.held).map(|row| row.id).collect();
    let keeps = rows.into_iter().filter(|row| row.held || row.owner.is_some_and(|owner| held.contains(&owner)));
    Ok(keeps.map(|row| row.id).collect())
}

/// The open sessions of a realm that began before a time: only these can have entries from before it. The id tells when (UUIDv7).
async fn open_since(log: &dyn LogStore, realm: &RealmName, before: Timestamp) -> Result<HashSet<SessionId>, ReadError> {
    const PAGE: usize = 500;
    let filter = SessionFilter { realm: realm.clone(), key: None, open: Some(true), kind: None };
    let millis = u64::try_from(before.as_micros().div_euclid(1_000)).unwrap_or_default().saturating_add(1);
    // The first id of the next millisecond.
    let mut behind = SessionId::new(Uuid::from_u128(u128::from(millis) << 80));
    let mut open = HashSet::new();
    loop {
        let page = log.sessions(&filter, Some(behind), PAGE).await?;
        open.extend(page.iter().copied());
        match page.last() {
            Some(last) if page.len() == PAGE => behind = *last,
            Some(_) | None => return Ok(open),
        }
    }
}
