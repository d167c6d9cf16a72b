//! Keeps the postings true to the log.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use audit_log::{LogStore, Posting, Projected, Recent, RecentEntry, SEGMENT, SealedEntry, Term};
use parking_lot::Mutex as Plain;
use roaring::RoaringBitmap;
use sealing::{DataKey, Keyring};
use session_model::{Action, KeyId, Leaf, LeafIndex, Outcome, RealmName, SealedPart, TreeSize};
use tokio::sync::Mutex;
use tracing::warn;

use crate::archive::{SearchError, keys_of};
use crate::meeting::{Kept, Marks};
use crate::pace::Pace;
use crate::term::Common;
use crate::{meeting, term, times};

/// Entries projected in one go: a MB or two.
const RUN: usize = 2_048;

/// How far the postings have come, as this process last saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProjectionStatus {
    /// Entries below this size are in the postings.
    pub size: TreeSize,
}

/// Makes postings of entries. Every process may run one: whoever is first does the work, and the others see that it is done.
pub struct Projector {
    log: Arc<dyn LogStore>,
    keyring: Keyring,
    recent: Arc<Recent>,
    /// One run at a time in this process: a second would only lose against the first.
    turn: Mutex<()>,
    seen: Plain<ProjectionStatus>,
}

impl std::fmt::Debug for Projector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Projector({:?})", self.status())
    }
}

impl Projector {
    /// A projector of this log, which reads from it what is not among the recent entries.
    pub fn new(log: Arc<dyn LogStore>, keyring: Keyring, recent: Arc<Recent>) -> Self {
        Self { log, keyring, recent, turn: Mutex::default(), seen: Plain::default() }
    }

    /// How far the postings have come.
    pub fn status(&self) -> ProjectionStatus {
        *self.seen.lock()
    }

    /// Returns once every entry below `size` is in the postings.
    ///
    /// # Errors
    /// [`SearchError`]: what was projected before it stays.
    pub async fn catch_up(&self, size: TreeSize) -> Result<(), SearchError> {
        if self.status().size >= size {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        loop {
            let now = self.log.projection().await?;
            self.seen.lock().size = now.size;
            if now.size >= size {
                return Ok(());
            }
            let mut run = self.recent.take(now.size, RUN);
            if run.is_empty() {
                run = self.read_back(now.size).await?;
            }
            let Some(end) = run.last().map(|entry| TreeSize(entry.index.0 + 1)) else { return Ok(()) };
            let fresh = self.gathered(&run).await?;
            let mut postings = self.merged(fresh, now.size, end).await?;
            postings.extend(self.time_marks(&run).await?);
            match self.log.project(now, end, &postings).await? {
                Projected::Yes => self.seen.lock().size = end,
                // Somebody else was faster: look again how far it has come.
                Projected::Moved => {}
            }
        }
    }

    /// Takes entries out of the postings of the addresses they name: what is erased must not be found by them either.
    ///
    /// # Errors
    /// [`SearchError`].
    pub(crate) async fn forget_addresses(&self, entries: &[(LeafIndex, Vec<Term>)]) -> Result<(), SearchError> {
        let _turn = self.turn.lock().await;
        let mut wanted: HashMap<u32, HashSet<Term>> = HashMap::new();
        for (index, terms) in entries {
            wanted.entry(place(*index).0).or_default().extend(terms);
        }
        loop {
            let now = self.log.projection().await?;
            let mut changed = Vec::new();
            for (segment, terms) in &wanted {
                let terms: Vec<Term> = terms.iter().copied().collect();
                for found in self.log.postings(&terms, *segment..=*segment).await? {
                    let mut offsets = read(&found)?;
                    for (index, terms) in entries {
                        let (of, offset) = place(*index);
                        if of == *segment && terms.contains(&found.term) {
                            offsets.remove(offset);
                        }
                    }
                    changed.push(written(found.term, *segment, &offsets));
                    // What those entries met must not stay either. What the others did is found by their bitmaps.
                    changed.push(Posting { term: meeting::beside(found.term), segment: *segment, offsets: Vec::new() });
                }
            }
            match self.log.project(now, now.size, &changed).await? {
                Projected::Yes => return Ok(()),
                Projected::Moved => {}
            }
        }
    }

    /// The next entries of the log, decoded, and opened for their addresses.
    async fn read_back(&self, from: TreeSize) -> Result<Vec<RecentEntry>, SearchError> {
        let mut pace = Pace::default();
        let mut read = Vec::new();
        for batch in self.log.batches(LeafIndex(from.0), RUN).await? {
            for ((index, bytes), sealed) in (batch.first.0..).zip(batch.leaves).zip(batch.sealed) {
                if index >= from.0 {
                    pace.step().await;
                    let index = LeafIndex(index);
                    read.push((index, Leaf::decode(&bytes).map_err(|_| SearchError::corrupt(index))?, sealed));
                }
            }
        }
        let keys = keys_of(&*self.log, &self.keyring, read.iter().filter_map(|(_, leaf, _)| leaf.data_key)).await?;
        let mut run = Vec::with_capacity(read.len());
        for (index, leaf, sealed) in read {
            pace.step().await;
            let addresses = addresses(&leaf, sealed.as_ref(), &keys);
            run.push(RecentEntry { index, leaf, addresses });
        }
        Ok(run)
    }

    /// What every entry stands under, by term and segment.
    async fn gathered(&self, run: &[RecentEntry]) -> Result<HashMap<(Term, u32), Fresh>, SearchError> {
        let former = self.former_keys(run).await?;
        let mut fresh = HashMap::new();
        let mut seen = Seen { keyring: &self.keyring, combinations: HashMap::new(), addresses: HashMap::new() };
        let mut pace = Pace::default();
        for RecentEntry { index, leaf, addresses } in run {
            pace.step().await;
            let (number, Common { realm, actor, action, outcome }) = seen.combination(leaf);
            stands(&mut fresh, realm, *index).meets(Holder::Always, number, &[action, outcome]);
            stands(&mut fresh, actor, *index).meets(Holder::Always, number, &[action, outcome]);
            for term in [action, outcome].into_iter().chain(term::of_few(leaf, former.get(index).copied())) {
                stands(&mut fresh, term, *index);
            }
            for address in addresses {
                let address = seen.address(&leaf.realm, *address)?;
                stands(&mut fresh, address, *index).meets(Holder::IfFrequent, number, &[actor, action, outcome]);
            }
        }
        Ok(fresh)
    }

    /// The times of every 64th entry, and of the first of each segment, behind those that are kept already.
    async fn time_marks(&self, run: &[RecentEntry]) -> Result<Vec<Posting>, SearchError> {
        let mut marks: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
        let mut firsts: Vec<i64> = Vec::new();
        for RecentEntry { index, leaf, .. } in run {
            let (segment, offset) = place(*index);
            if offset % times::STEP == 0 {
                marks.entry(segment).or_default().push(leaf.time.as_micros());
            }
            if offset == 0 {
                firsts.push(leaf.time.as_micros());
            }
        }
        let mut postings = Vec::new();
        for (segment, fresh) in marks {
            let all = self.behind_those_kept(times::MARKS, segment, fresh).await?;
            postings.push(times::written(times::MARKS, segment, &all));
        }
        if !firsts.is_empty() {
            let all = self.behind_those_kept(times::FIRSTS, 0, firsts).await?;
            postings.push(times::written(times::FIRSTS, 0, &all));
        }
        Ok(postings)
    }

    async fn behind_those_kept(&self, term: Term, segment: u32, fresh: Vec<i64>) -> Result<Vec<i64>, SearchError> {
        let mut all = match self.log.postings(&[term], segment..=segment).await?.first() {
            Some(kept) => times::read(kept)?,
            None => Vec::new(),
        };
        all.extend(fresh);
        Ok(all)
    }

    /// Which data key sealed a session before the entry that took it to another subject.
    async fn former_keys(&self, run: &[RecentEntry]) -> Result<HashMap<LeafIndex, KeyId>, SearchError> {
        let bindings = run.iter().filter(|entry| entry.leaf.action == Action::SessionAuthenticated);
        let (at, before): (Vec<_>, Vec<_>) =
            bindings.filter_map(|entry| Some((entry.index, entry.leaf.previous?.index))).unzip();
        let mut former = HashMap::new();
        for (index, entry) in at.into_iter().zip(self.log.entries(&before).await?) {
            let leaf = entry.map(|entry| Leaf::decode(&entry.leaf)).and_then(Result::ok);
            former.extend(leaf.and_then(|leaf| leaf.data_key).map(|key| (index, key)));
        }
        Ok(former)
    }

    /// Adds what stands in the postings already. Only the segment that a run begins in can have any.
    async fn merged(
        &self,
        fresh: HashMap<(Term, u32), Fresh>,
        from: TreeSize,
        end: TreeSize,
    ) -> Result<Vec<Posting>, SearchError> {
        let (first, offset) = place(LeafIndex(from.0));
        let mut touched = vec![meeting::COVERED];
        for ((term, _), fresh) in fresh.iter().filter(|((_, segment), _)| *segment == first) {
            touched.push(*term);
            touched.extend((fresh.holder != Holder::No).then(|| meeting::beside(*term)));
        }
        let begun = Kept::found(self.log.postings(&touched, first..=first).await?, offset)?;
        let new = Kept::nothing();
        let mut postings = Vec::with_capacity(fresh.len());
        let mut pace = Pace::default();
        for ((term, segment), mut fresh) in fresh {
            pace.step().await;
            let kept = if segment == first { &begun } else { &new };
            let worth = match fresh.holder {
                Holder::No => None,
                Holder::Always => Some(true),
                Holder::IfFrequent => Some(fresh.offsets.len() * FREQUENT >= within(segment, from, end)),
            };
            if let Some(worth) = worth {
                postings.extend(kept.grown(term, segment, fresh.met, worth)?);
            }
            if let Some(before) = kept.rows.get(&term) {
                fresh.offsets |= read(before)?;
            }
            fresh.offsets.optimize();
            postings.push(written(term, segment, &fresh.offsets));
        }
        let (last, offset) = place(LeafIndex(end.0 - 1));
        for segment in first..=last {
            let kept = if segment == first { &begun } else { &new };
            postings.extend(kept.covered(segment, if segment == last { offset + 1 } else { meeting::WHOLE }));
        }
        postings.sort_unstable_by_key(|posting| (posting.term, posting.segment));
        Ok(postings)
    }
}

/// Whether what a term meets is kept beside it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Holder {
    #[default]
    No,
    Always,
    /// If it stands in one of [`FREQUENT`] entries of the run that brings the first of the segment. There may be thousands of addresses in a segment, and what is
    /// kept beside each is a row more.
    IfFrequent,
}

/// See [`Holder::IfFrequent`].
const FREQUENT: u64 = 256;

/// What a run adds under a term in a segment.
#[derive(Default)]
struct Fresh {
    offsets: RoaringBitmap,
    holder: Holder,
    /// Which combinations it stands with, if the term is a holder.
    numbers: RoaringBitmap,
    met: Marks,
}

impl Fresh {
    /// The entry's combination has this number; these are its terms, less the holder's own.
    fn meets(&mut self, holder: Holder, number: u32, others: &[Term]) {
        self.holder = holder;
        if self.numbers.insert(number) {
            self.met.meet(others);
        }
    }
}

fn stands(fresh: &mut HashMap<(Term, u32), Fresh>, term: Term, index: LeafIndex) -> &mut Fresh {
    let (segment, offset) = place(index);
    let fresh = fresh.entry((term, segment)).or_default();
    fresh.offsets.insert(offset);
    fresh
}

/// What the entries of a run have in common: most digests are of something that was there before.
struct Seen<'a> {
    keyring: &'a Keyring,
    combinations: HashMap<(&'a RealmName, &'a str, Action, Outcome), (u32, Common)>,
    addresses: HashMap<(&'a RealmName, IpAddr), Term>,
}

impl<'a> Seen<'a> {
    /// The terms of an entry's realm, actor, action and outcome, and the number of that combination in this run.
    fn combination(&mut self, leaf: &'a Leaf) -> (u32, Common) {
        let number = self.combinations.len() as u32;
        let key = (&leaf.realm, leaf.actor.id.as_str(), leaf.action, leaf.outcome);
        *self.combinations.entry(key).or_insert_with(|| (number, Common::of(leaf)))
    }

    fn address(&mut self, realm: &'a RealmName, address: IpAddr) -> Result<Term, SearchError> {
        Ok(match self.addresses.entry((realm, address)) {
            Entry::Occupied(seen) => *seen.get(),
            Entry::Vacant(new) => *new.insert(term::address(self.keyring, realm, address)?),
        })
    }
}

/// How many entries of a run from `from` to before `end` are of a segment.
fn within(segment: u32, from: TreeSize, end: TreeSize) -> u64 {
    let start = u64::from(segment) * SEGMENT;
    end.0.min(start + SEGMENT).saturating_sub(from.0.max(start))
}

/// The segment of an entry, and its offset there.
pub(crate) fn place(index: LeafIndex) -> (u32, u32) {
    let segment = u32::try_from(index.0 / SEGMENT).unwrap_or(u32::MAX);
    (segment, u32::try_from(index.0 % SEGMENT).unwrap_or(0))
}

pub(crate) fn read(posting: &Posting) -> Result<RoaringBitmap, SearchError> {
    RoaringBitmap::deserialize_from(posting.offsets.as_slice()).map_err(|_| SearchError::Postings)
}

fn written(term: Term, segment: u32, offsets: &RoaringBitmap) -> Posting {
    let mut bytes = Vec::new();
    if !offsets.is_empty() {
        bytes.reserve(offsets.serialized_size());
        // Writing to a vector cannot fail.
        let _ok = offsets.serialize_into(&mut bytes);
    }
    Posting { term, segment, offsets: bytes }
}

/// The addresses that an entry names: none if its sealed part is gone.
pub(crate) fn addresses(leaf: &Leaf, sealed: Option<&SealedEntry>, keys: &HashMap<KeyId, DataKey>) -> Vec<IpAddr> {
    let key = leaf.data_key.and_then(|id| keys.get(&id));
    let (Some(sealed), Some(commitment), Some(key)) = (sealed, &leaf.commitment, key) else { return Vec::new() };
    match key.open(leaf.entry_id, &sealed.bytes, commitment).ok().and_then(|text| SealedPart::decode(&text).ok()) {
        Some(part) => part.addresses(),
        None => {
            // Verification names it; a search must not stand still for it.
            warn!(entry = %leaf.entry_id, "a sealed part does not open, and is not found by its addresses");
            Vec::new()
        }
    }
}
