//! Which terms meet in a segment: stand in one entry of it, and not only each in some.
//!
//! Two terms that stand in every segment and never in one entry would have a search read every bitmap of both for nothing. So a
//! realm, an actor and an address are holders: beside the postings of each is kept, for each segment, what else its entries stand
//! under. A realm's are met by actions and outcomes, an actor's likewise, an address's by actors too. Of whatever filters are
//! given, the first of address, actor and realm is the holder that knows whether the others meet there, all in one entry.
//!
//! What is kept is a set of [`Marks`], 32 bits for each combination: a set may say of two that they meet where they do not, once
//! in millions, and then their bitmaps are read. It is never the other way round, for it counts only where every entry of the
//! segment was put into it: [`COVERED`] says how far that is so. A program that knows nothing of this leaves that number
//! behind, and a segment of which it made postings is searched by its bitmaps.

use std::collections::{BTreeSet, HashMap};

use audit_log::{Posting, SEGMENT, Term};

use crate::archive::SearchError;

/// Up to which offset, exclusive, the entries of a segment are in the sets of their holders: four bytes, big-endian. A term that
/// no realm has.
pub(crate) const COVERED: Term = Term(*b"counterfoil-meet");

/// A segment of which every entry is in the sets.
pub(crate) const WHOLE: u32 = SEGMENT as u32;

/// Marks of one holder and segment at most, 8 KiB: where there are more, bitmaps cost no more to read.
const MOST: usize = 2_048;

/// The term under which is kept what a holder meets.
pub(crate) fn beside(holder: Term) -> Term {
    // Digests: one that differs from another's in all of these bits is nobody's.
    let Term(mut bytes) = holder;
    for byte in &mut bytes {
        *byte ^= 0xa5;
    }
    Term(bytes)
}

/// What a holder meets in a segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Marks(BTreeSet<u32>);

impl Marks {
    /// Takes in an entry that stands under all of these: every choice of them meets.
    pub(crate) fn meet(&mut self, others: &[Term]) {
        for choice in 1_u32..1 << others.len() {
            self.0
                .insert(mark(others.iter().enumerate().filter(|(at, _)| choice >> at & 1 == 1).map(|(_, term)| term)));
        }
    }

    fn read(posting: &Posting) -> Result<Self, SearchError> {
        let (marks, rest) = posting.offsets.as_chunks::<4>();
        if rest.is_empty() {
            Ok(Self(marks.iter().copied().map(u32::from_be_bytes).collect()))
        } else {
            Err(SearchError::Postings)
        }
    }

    /// No bytes, so that the row is taken away, if there are too many.
    fn written(&self) -> Vec<u8> {
        if self.0.len() > MOST { Vec::new() } else { self.0.iter().flat_map(|mark| mark.to_be_bytes()).collect() }
    }
}

/// Terms are digests: of some of them together, in any order, this is one as well.
fn mark<'a>(terms: impl Iterator<Item = &'a Term>) -> u32 {
    terms.fold(0, |mark, term| mark ^ u32::from_be_bytes(term.0.first_chunk().copied().unwrap_or_default()))
}

/// What is kept of the segment that a run begins in, when it begins.
pub(crate) struct Kept {
    /// By term: postings, and what is beside them.
    pub(crate) rows: HashMap<Term, Posting>,
    /// Whether every entry of the segment before the run is in the sets of its holders.
    whole: bool,
}

impl Kept {
    /// A segment of which nothing is kept yet.
    pub(crate) fn nothing() -> Self {
        Self { rows: HashMap::new(), whole: true }
    }

    /// What was found of a segment, the run's first entry there being at `offset`.
    pub(crate) fn found(rows: Vec<Posting>, offset: u32) -> Result<Self, SearchError> {
        let rows: HashMap<Term, Posting> = rows.into_iter().map(|row| (row.term, row)).collect();
        let whole = offset == 0 || rows.get(&COVERED).map(covered).transpose()? == Some(offset);
        Ok(Self { rows, whole })
    }

    /// What is to be kept beside a holder from now on, if that is not what is kept already. Where there is nothing yet, only if it
    /// is `worth` beginning.
    pub(crate) fn grown(
        &self,
        holder: Term,
        segment: u32,
        fresh: Marks,
        worth: bool,
    ) -> Result<Option<Posting>, SearchError> {
        if !self.whole {
            return Ok(None);
        }
        let term = beside(holder);
        let all = match self.rows.get(&term) {
            Some(row) => {
                let mut all = Marks::read(row)?;
                let before = all.0.len();
                all.0.extend(fresh.0);
                if all.0.len() == before {
                    return Ok(None);
                }
                all
            }
            // It has entries there of which nobody knows any more what they met.
            None if !worth || self.rows.contains_key(&holder) => return Ok(None),
            None => fresh,
        };
        Ok(Some(Posting { term, segment, offsets: all.written() }))
    }

    /// How far the segment is in the sets after a run that ends before `offset`; nothing if it is not from its beginning on.
    pub(crate) fn covered(&self, segment: u32, offset: u32) -> Option<Posting> {
        self.whole.then(|| Posting { term: COVERED, segment, offsets: offset.to_be_bytes().to_vec() })
    }
}

fn covered(posting: &Posting) -> Result<u32, SearchError> {
    posting.offsets.as_slice().try_into().map(u32::from_be_bytes).map_err(|_| SearchError::Postings)
}

/// Whether some terms meet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meeting {
    holder: Term,
    mark: u32,
}

impl Meeting {
    pub(crate) fn new(holder: Term, others: &[Term]) -> Self {
        Self { holder, mark: mark(others.iter()) }
    }

    /// What has to be read to know it.
    pub(crate) fn terms(&self) -> [Term; 2] {
        [COVERED, beside(self.holder)]
    }

    /// Whether they meet, for each segment of which it is known. "No" is certain of every entry below `high` if all of those were
    /// projected before the rows were read; "yes" means that their bitmaps are worth reading.
    pub(crate) fn known(&self, rows: &[Posting], high: u64) -> Result<HashMap<u32, bool>, SearchError> {
        let mut until = HashMap::new();
        for row in rows.iter().filter(|row| row.term == COVERED) {
            until.insert(row.segment, covered(row)?);
        }
        let mut known = HashMap::new();
        for row in rows.iter().filter(|row| row.term != COVERED) {
            let asked = high.saturating_sub(u64::from(row.segment) * SEGMENT).min(SEGMENT);
            if until.get(&row.segment).is_some_and(|until| u64::from(*until) >= asked) {
                known.insert(row.segment, Marks::read(row)?.0.contains(&self.mark));
            }
        }
        Ok(known)
    }
}
