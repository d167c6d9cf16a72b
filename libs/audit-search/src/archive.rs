//! The log as auditors see it: found by filters, opened on demand.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use audit_log::{LogStore, Posting, ReadError, Recent, SEGMENT, SealedEntry, SessionFilter, StoredEntry, Term};
use futures::future::try_join;
use roaring::{RoaringBitmap, RoaringTreemap};
use sealing::{DataKey, Keyring, SealError};
use session_model::{Action, KeyId, Leaf, LeafIndex, RealmName, SealedPart, SessionId};

use crate::filter::EntryFilter;
use crate::meeting::Meeting;
use crate::pace::Pace;
use crate::projector::{Projector, addresses, place, read};
use crate::term;
use crate::times::first_at;

/// Why nothing can be found.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A key cannot be used.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The postings are not what a projector wrote: they have to be made again.
    #[error("the postings are damaged")]
    Postings,
}

impl SearchError {
    pub(crate) fn corrupt(index: LeafIndex) -> Self {
        Self::Read(ReadError::Corrupt(format!("entry {index}: not a leaf")))
    }
}

/// In which order, and from where on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Newest first, before this one if given.
    NewestFirst(Option<LeafIndex>),
    /// Oldest first, after this one if given.
    OldestFirst(Option<LeafIndex>),
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The entries, in order.
    pub indices: Vec<LeafIndex>,
    /// Whether there are more.
    pub more: bool,
}

/// An entry, decoded.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The entry.
    pub stored: StoredEntry,
    /// Its leaf.
    pub leaf: Leaf,
    /// What is sealed beside it.
    pub personal: Personal,
}

/// What is sealed beside a leaf.
#[derive(Debug, Clone)]
pub enum Personal {
    /// The entry has no sealed part.
    None,
    /// It was opened, and is what the leaf commits to.
    Open(Box<SealedPart>),
    /// Its key was destroyed: the subject was erased.
    Erased,
    /// It was dropped by retention.
    Pruned,
    /// It does not open, or is not what the leaf commits to.
    Broken,
}

/// The log, for auditors.
#[derive(Clone)]
pub struct Archive {
    pub(crate) log: Arc<dyn LogStore>,
    pub(crate) keyring: Keyring,
    projector: Arc<Projector>,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Archive({:?})", self.projector)
    }
}

/// Segments whose postings are fetched at once, at most: 8 KiB each and term.
const STRIDE: usize = 64;
/// Segments from which on their postings are worth two questions at a time.
const WIDE: usize = 16;
/// Segments of which is asked at once whether they are worth reading: 67 million entries. Some hundred bytes each, or some KiB where an
/// address that very many use is asked for.
const WINDOW: u32 = 1_024;
/// Sessions looked up at once.
const SESSIONS: usize = 2_000;

impl Archive {
    /// The log as auditors see it. The recent entries are those of whoever appends to it in this process, if anybody does.
    pub fn new(log: Arc<dyn LogStore>, keyring: Keyring, recent: Arc<Recent>) -> Self {
        let projector = Arc::new(Projector::new(Arc::clone(&log), keyring.clone(), recent));
        Self { log, keyring, projector }
    }

    /// What keeps the postings up to date.
    pub const fn projector(&self) -> &Arc<Projector> {
        &self.projector
    }

    /// The data key of a subject; `None` if the realm holds nothing on it.
    ///
    /// # Errors
    /// [`SearchError`].
    pub async fn subject_key(&self, realm: &RealmName, subject: &str) -> Result<Option<KeyId>, SearchError> {
        let lookup = self.keyring.lookup(realm, subject)?;
        let found = self.log.data_keys_by_lookup(&[lookup]).await?;
        Ok(found.into_iter().flatten().next().map(|row| row.id))
    }

    /// Every data key that seals what is held on the subject with this one: its own, and those of its sessions before it had
    /// logged in.
    ///
    /// # Errors
    /// [`SearchError`].
    pub async fn keys_of_subject(&self, key: KeyId) -> Result<HashSet<KeyId>, SearchError> {
        let mut keys: HashSet<KeyId> = self.log.data_keys_owned_by(key).await?.into_iter().collect();
        keys.insert(key);
        Ok(keys)
    }

    /// Entries that fit, at most `limit`. Everything that was in the log when it was asked is considered.
    ///
    /// # Errors
    /// [`SearchError`].
    pub async fn search(&self, filter: &EntryFilter, order: Order, limit: usize) -> Result<Found, SearchError> {
        let size = self.log.head().await?.size();
        self.projector.catch_up(size).await?;
        let (mut low, mut high) = match order {
            Order::NewestFirst(before) => (0, before.map_or(size.0, |before| before.0.min(size.0))),
            Order::OldestFirst(after) => (after.map_or(0, |after| after.0.saturating_add(1)), size.0),
        };
        if let Some(from) = filter.from {
            low = low.max(first_at(&*self.log, from, size.0).await?);
        }
        if let Some(to) = filter.to {
            high = high.min(first_at(&*self.log, to, size.0).await?);
        }
        let mut taken = Taken { low, high, order, wanted: limit.saturating_add(1), indices: Vec::new() };
        if low < high {
            let wanted = self.wanted(filter)?;
            match self.candidates(filter).await? {
                Some(candidates) => self.among(&candidates, &wanted.terms, &mut taken).await?,
                None => self.everywhere(&wanted, &mut taken).await?,
            }
        }
        let more = taken.indices.len() > limit;
        taken.indices.truncate(limit);
        Ok(Found { indices: taken.indices, more })
    }

    /// The entries at these indices, of this realm, decoded; their sealed parts opened where their keys exist.
    ///
    /// # Errors
    /// [`SearchError`].
    pub async fn open(&self, realm: &RealmName, indices: &[LeafIndex]) -> Result<Vec<Opened>, SearchError> {
        let stored: Vec<StoredEntry> = self.log.entries(indices).await?.into_iter().flatten().collect();
        self.open_stored(realm, stored).await
    }

    /// The entries at these indices, of this realm, decoded, with nothing opened.
    ///
    /// # Errors
    /// [`SearchError`].
    pub async fn read(
        &self,
        realm: &RealmName,
        indices: &[LeafIndex],
    ) -> Result<Vec<(StoredEntry, Leaf)>, SearchError> {
        let stored = self.log.entries(indices).await?;
        decoded(realm, stored.into_iter().flatten())
    }

    /// As [`Self::open`], with sealed parts that were kept elsewhere when the log dropped its own. A part opens only to what the leaf, which the log
    /// still has, commits to.
    ///
    /// # Errors
    /// [`SearchError`].
    pub async fn open_kept(
        &self,
        realm: &RealmName,
        kept: &[(LeafIndex, SealedEntry)],
    ) -> Result<Vec<Opened>, SearchError> {
        let indices: Vec<LeafIndex> = kept.iter().map(|(index, _)| *index).collect();
        let stored = self.log.entries(&indices).await?.into_iter().zip(kept);
        let stored = stored.filter_map(|(stored, (_, part))| {
            let mut stored = stored?;
            stored.sealed = Some(part.clone());
            Some(stored)
        });
        self.open_stored(realm, stored.collect()).await
    }

    pub(crate) async fn open_stored(
        &self,
        realm: &RealmName,
        stored: Vec<StoredEntry>,
    ) -> Result<Vec<Opened>, SearchError> {
        let decoded = decoded(realm, stored)?;
        let ids = decoded.iter().filter_map(|(_, leaf)| leaf.data_key);
        let keys = keys_of(&*self.log, &self.keyring, ids).await?;
        let opened = decoded.into_iter().map(|(stored, leaf)| {
            let personal = personal(&leaf, &stored, &keys);
            Opened { stored, leaf, personal }
        });
        Ok(opened.collect())
    }

    /// Takes the entries of a subject that is about to be erased out of the postings of addresses. To be called while its key
    /// still exists: without it nobody knows which addresses they name.
    ///
    /// # Errors
    /// [`SearchError`].
    pub async fn forget_addresses(&self, realm: &RealmName, subject: KeyId) -> Result<(), SearchError> {
        let filter = EntryFilter { subject: Some(subject), ..EntryFilter::all(realm.clone()) };
        let mut after = None;
        loop {
            let found = self.search(&filter, Order::OldestFirst(after), 1_000).await?;
            let stored: Vec<StoredEntry> = self.log.entries(&found.indices).await?.into_iter().flatten().collect();
            let mut forget = Vec::new();
            let mut leaves = Vec::new();
            for entry in stored {
                let leaf = Leaf::decode(&entry.leaf).map_err(|_| SearchError::corrupt(entry.index))?;
                leaves.push((entry, leaf));
            }
            let keys = keys_of(&*self.log, &self.keyring, leaves.iter().filter_map(|(_, leaf)| leaf.data_key)).await?;
            for (entry, leaf) in &leaves {
                let named = addresses(leaf, entry.sealed.as_ref(), &keys).into_iter();
                let named = named.map(|address| term::address(&self.keyring, realm, address));
                let named = named.collect::<Result<Vec<_>, _>>()?;
                if !named.is_empty() {
                    forget.push((entry.index, named));
                }
            }
            if !forget.is_empty() {
                self.projector.forget_addresses(&forget).await?;
            }
            match found.indices.last() {
                Some(last) if found.more => after = Some(*last),
                Some(_) | None => return Ok(()),
            }
        }
    }

    /// What an entry must stand under.
    fn wanted(&self, filter: &EntryFilter) -> Result<Wanted, SearchError> {
        let name = &filter.realm;
        let address = filter.address.map(|address| term::address(&self.keyring, name, address)).transpose()?;
        let actor = filter.actor.as_ref().map(|id| term::actor(name, id));
        let action = filter.action.map(|action| term::action(name, action));
        let outcome = filter.outcome.map(|outcome| term::outcome(name, outcome));
        let realm = term::realm(name);
        let terms: Vec<Term> = [address, actor, action, outcome].into_iter().flatten().collect();
        let meeting = match terms.as_slice() {
            [] => return Ok(Wanted { terms: vec![realm], meeting: None }),
            [_] => None,
            both if address.or(actor).is_none() => Some(Meeting::new(realm, both)),
            [holder, others @ ..] => Some(Meeting::new(*holder, others)),
        };
        Ok(Wanted { terms, meeting })
    }

    /// The entries of the session, of the subject, or of both, if the filter names them.
    async fn candidates(&self, filter: &EntryFilter) -> Result<Option<RoaringTreemap>, SearchError> {
        let readings = filter.action == Some(Action::AuditRead);
        let of_session = match filter.session {
            None => None,
            Some(id) if readings => Some(self.under(term::reading_of_session(&filter.realm, id)).await?),
            Some(id) => {
                let mut found = self.under(term::session(&filter.realm, id)).await?;
                found.extend(self.log.session_places(&[id]).await?.into_iter().map(|index| index.0));
                Some(found)
            }
        };
        let of_subject = match filter.subject {
            None => None,
            Some(key) if readings => Some(self.under(term::reading_of_subject(&filter.realm, key)).await?),
            Some(key) => Some(self.of_subject(&filter.realm, key).await?),
        };
        Ok(match (of_session, of_subject) {
            (Some(session), Some(subject)) => Some(session & subject),
            (one, other) => one.or(other),
        })
    }

    async fn of_subject(&self, realm: &RealmName, key: KeyId) -> Result<RoaringTreemap, SearchError> {
        let mut found = self.under(term::subject(realm, key)).await?;
        // Sessions that have gone over to another subject are known by the entry that says so.
        let indices: Vec<LeafIndex> = found.iter().map(LeafIndex).collect();
        let mut sessions: Vec<SessionId> = Vec::new();
        for entry in self.log.entries(&indices).await?.into_iter().flatten() {
            sessions.extend(
                Leaf::decode(&entry.leaf).ok().filter(|leaf| leaf.version.is_some()).and_then(|leaf| leaf.session_id),
            );
        }
        let of_key = SessionFilter { realm: realm.clone(), key: Some(key), open: None, kind: None };
        let mut before = None;
        loop {
            let page = self.log.sessions(&of_key, before, SESSIONS).await?;
            before = page.last().copied();
            let full = page.len() == SESSIONS;
            sessions.extend(page);
            found.extend(self.log.session_places(&sessions).await?.into_iter().map(|index| index.0));
            sessions.clear();
            if !full {
                return Ok(found);
            }
        }
    }

    /// Everything that stands under a term that is rare.
    async fn under(&self, term: Term) -> Result<RoaringTreemap, SearchError> {
        let mut found = RoaringTreemap::new();
        for posting in self.log.postings(&[term], 0..=u32::MAX).await? {
            let start = u64::from(posting.segment) * SEGMENT;
            found.extend(read(&posting)?.into_iter().map(|offset| start + u64::from(offset)));
        }
        Ok(found)
    }

    /// Those of the candidates that stand under every term.
    async fn among(&self, candidates: &RoaringTreemap, terms: &[Term], taken: &mut Taken) -> Result<(), SearchError> {
        let mut by_segment: Vec<(u32, RoaringBitmap)> = Vec::new();
        for index in candidates.iter().filter(|index| (taken.low..taken.high).contains(index)) {
            let (segment, offset) = place(LeafIndex(index));
            match by_segment.last_mut() {
                Some((last, offsets)) if *last == segment => drop(offsets.insert(offset)),
                Some(_) | None => by_segment.push((segment, RoaringBitmap::from_iter([offset]))),
            }
        }
        if matches!(taken.order, Order::NewestFirst(_)) {
            by_segment.reverse();
        }
        for some in stretches(&by_segment, 1) {
            let segments: Vec<u32> = some.iter().map(|(segment, _)| *segment).collect();
            let fits = self.intersections(terms, &segments).await?;
            for (segment, offsets) in some {
                if let Some(fits) = fits.get(segment)
                    && taken.take(*segment, &(offsets & fits))
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Walks the segments. The nearest is read at once, for most searches end in it; of the others first those are found that are
    /// worth reading.
    async fn everywhere(&self, wanted: &Wanted, taken: &mut Taken) -> Result<(), SearchError> {
        let (first, _) = place(LeafIndex(taken.low));
        let (last, _) = place(LeafIndex(taken.high - 1));
        let (nearest, mut rest) = match taken.order {
            Order::NewestFirst(_) => (last, first..last),
            Order::OldestFirst(_) => (first, first + 1..last + 1),
        };
        if self.take_from(&wanted.terms, &[nearest], taken).await? {
            return Ok(());
        }
        while !rest.is_empty() {
            let window = match taken.order {
                Order::NewestFirst(_) => rest.end.saturating_sub(WINDOW).max(rest.start)..rest.end,
                Order::OldestFirst(_) => rest.start..rest.start.saturating_add(WINDOW).min(rest.end),
            };
            rest = match taken.order {
                Order::NewestFirst(_) => rest.start..window.start,
                Order::OldestFirst(_) => window.end..rest.end,
            };
            let mut promising = self.promising(wanted, window.start..=window.end - 1, taken.high).await?;
            if matches!(taken.order, Order::NewestFirst(_)) {
                promising.reverse();
            }
            for some in stretches(&promising, 4) {
                if self.take_from(&wanted.terms, some, taken).await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Those of these segments in which every term stands, and in which they may meet.
    async fn promising(
        &self,
        wanted: &Wanted,
        segments: RangeInclusive<u32>,
        high: u64,
    ) -> Result<Vec<u32>, SearchError> {
        let known = match wanted.meeting {
            Some(meeting) => meeting.known(&self.log.postings(&meeting.terms(), segments.clone()).await?, high)?,
            None => HashMap::new(),
        };
        if segments.clone().all(|segment| known.contains_key(&segment)) {
            return Ok(segments.filter(|segment| known.get(segment) == Some(&true)).collect());
        }
        let mut promising = self.log.segments_with(&wanted.terms, segments).await?;
        promising.retain(|segment| known.get(segment) != Some(&false));
        Ok(promising)
    }

    /// Takes what stands under all terms in these segments, in their order; `true` when there is enough.
    async fn take_from(&self, terms: &[Term], segments: &[u32], taken: &mut Taken) -> Result<bool, SearchError> {
        let fits = self.intersections(terms, segments).await?;
        let mut found = segments.iter().filter_map(|segment| Some((*segment, fits.get(segment)?)));
        Ok(found.any(|(segment, offsets)| taken.take(segment, offsets)))
    }

    /// For each of these segments that has any: the entries that stand under all terms.
    async fn intersections(
        &self,
        terms: &[Term],
        segments: &[u32],
    ) -> Result<HashMap<u32, RoaringBitmap>, SearchError> {
        let mut by_segment: HashMap<u32, Vec<Posting>> = HashMap::new();
        for posting in self.postings(terms, segments).await? {
            by_segment.entry(posting.segment).or_default().push(posting);
        }
        // A term that is missing in a segment has no entry there.
        by_segment.retain(|_, postings| postings.len() == terms.len());
        by_segment.into_iter().map(|(segment, postings)| Ok((segment, intersection(postings)?))).collect()
    }

    /// The postings of some segments, many of them in two halves at the same time.
    async fn postings(&self, terms: &[Term], segments: &[u32]) -> Result<Vec<Posting>, SearchError> {
        if segments.len() < WIDE {
            return Ok(self.log.postings_in(terms, segments).await?);
        }
        let (one, other) = segments.split_at(segments.len() / 2);
        let halves = try_join(self.log.postings_in(terms, one), self.log.postings_in(terms, other)).await?;
        Ok(halves.0.into_iter().chain(halves.1).collect())
    }
}

/// What an entry must stand under: terms of the realm, at least one.
struct Wanted {
    terms: Vec<Term>,
    /// Whether they meet at all in a segment, if there are several.
    meeting: Option<Meeting>,
}

/// All of these in order, cut into stretches: each four times as long as the one before, for as long as nothing is found.
fn stretches<T>(mut all: &[T], first: usize) -> impl Iterator<Item = &[T]> {
    let mut length = first;
    std::iter::from_fn(move || {
        let (stretch, rest) = all.split_at_checked(length).unwrap_or((all, &[]));
        (all, length) = (rest, (length * 4).min(STRIDE));
        (!stretch.is_empty()).then_some(stretch)
    })
}

/// What stands in all of these postings of one segment.
fn intersection(mut postings: Vec<Posting>) -> Result<RoaringBitmap, SearchError> {
    postings.sort_unstable_by_key(|posting| posting.offsets.len());
    let mut postings = postings.into_iter();
    let Some(rarest) = postings.next() else { return Ok(RoaringBitmap::new()) };
    postings.try_fold(read(&rarest)?, |fits, posting| Ok(fits & read(&posting)?))
}

/// Those of the realm, decoded.
fn decoded(
    realm: &RealmName,
    stored: impl IntoIterator<Item = StoredEntry>,
) -> Result<Vec<(StoredEntry, Leaf)>, SearchError> {
    let mut decoded = Vec::new();
    for entry in stored {
        let leaf = Leaf::decode(&entry.leaf).map_err(|_| SearchError::corrupt(entry.index))?;
        if leaf.realm == *realm {
            decoded.push((entry, leaf));
        }
    }
    Ok(decoded)
}

/// What a search has taken so far.
struct Taken {
    low: u64,
    high: u64,
    order: Order,
    wanted: usize,
    indices: Vec<LeafIndex>,
}

impl Taken {
    /// Takes what fits in a segment, in order; `true` when there is enough.
    fn take(&mut self, segment: u32, offsets: &RoaringBitmap) -> bool {
        let start = u64::from(segment) * SEGMENT;
        let left = self.wanted.saturating_sub(self.indices.len());
        let inside = |index: &u64| (self.low..self.high).contains(index);
        let indices = offsets.iter().map(|offset| start + u64::from(offset));
        match self.order {
            Order::NewestFirst(_) => self.indices.extend(indices.rev().filter(inside).take(left).map(LeafIndex)),
            Order::OldestFirst(_) => self.indices.extend(indices.filter(inside).take(left).map(LeafIndex)),
        }
        self.indices.len() >= self.wanted
    }
}

/// Data keys asked for at a time.
const KEYS: usize = 512;

/// The data keys that there (still) are, unwrapped.
pub(crate) async fn keys_of(
    log: &dyn LogStore,
    keyring: &Keyring,
    ids: impl Iterator<Item = KeyId>,
) -> Result<HashMap<KeyId, DataKey>, SearchError> {
    let mut ids: Vec<KeyId> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    let mut keys = HashMap::with_capacity(ids.len());
    let mut pace = Pace::default();
    for some in ids.chunks(KEYS) {
        for row in log.data_keys(some).await?.into_iter().flatten() {
            pace.step().await;
            keys.insert(row.id, keyring.unwrap(row.id, &row.wrapped)?);
        }
    }
    Ok(keys)
}

fn personal(leaf: &Leaf, stored: &StoredEntry, keys: &HashMap<KeyId, DataKey>) -> Personal {
    let (Some(id), Some(commitment)) = (leaf.data_key, &leaf.commitment) else { return Personal::None };
    let Some(key) = keys.get(&id) else { return Personal::Erased };
    let Some(sealed) = &stored.sealed else { return Personal::Pruned };
    let opened = key.open(leaf.entry_id, &sealed.bytes, commitment).ok();
    match opened.and_then(|plaintext| SealedPart::decode(&plaintext).ok()) {
        Some(part) => Personal::Open(Box::new(part)),
        None => Personal::Broken,
    }
}
