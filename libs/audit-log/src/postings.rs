//! Postings: which entries a word stands in. The projection that auditors search by; it follows the log, and can be made
//! again from it at any time.

use std::fmt;
use std::ops::RangeInclusive;

use async_trait::async_trait;
use session_model::{LeafIndex, SessionId, TreeSize};

use crate::ReadError;

/// Entries of one segment: segment `n` holds the leaf indices from `n × 65,536`.
pub const SEGMENT: u64 = 65_536;

/// What entries are found by: the first 16 bytes of a digest over kind, realm and value. Never the value itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub [u8; 16]);

/// In which entries of a segment a term stands.
#[derive(Clone, PartialEq, Eq)]
pub struct Posting {
    /// Which term.
    pub term: Term,
    /// Which segment.
    pub segment: u32,
    /// The offsets in the segment, as a Roaring bitmap in its portable format; under some terms that whoever searches keeps for
    /// itself, other things. The store only keeps them.
    pub offsets: Vec<u8>,
}

impl fmt::Debug for Posting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Posting({:?} in {}: {} bytes)", self.term, self.segment, self.offsets.len())
    }
}

/// How far the postings have come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Projection {
    /// Every entry below this size is in the postings.
    pub size: TreeSize,
    /// Counts the changes: two processes that project at the same time never overwrite one another.
    pub revision: u64,
}

/// What became of a change of the postings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Projected {
    /// It is stored.
    Yes,
    /// Nothing was done: somebody else has changed the postings meanwhile.
    Moved,
}

/// What the log is searched by. Not evidence: whoever searches reads the entries themselves.
#[async_trait]
pub trait LogPostings: Send + Sync + 'static {
    /// How far the postings have come.
    async fn projection(&self) -> Result<Projection, ReadError>;

    /// The postings of these terms in these segments, in any order; what there is not is left out.
    async fn postings(&self, terms: &[Term], segments: RangeInclusive<u32>) -> Result<Vec<Posting>, ReadError>;

    /// As [`Self::postings`], in exactly these segments, each named once.
    async fn postings_in(&self, terms: &[Term], segments: &[u32]) -> Result<Vec<Posting>, ReadError>;

    /// In which of these segments every one of the terms has a posting, in ascending order; each term is named once, and none
    /// are in no segment. Costs little beside reading the postings: nothing is said of what stands in them.
    async fn segments_with(&self, terms: &[Term], segments: RangeInclusive<u32>) -> Result<Vec<u32>, ReadError>;

    /// Puts these in the place of what is kept for the same term and segment (no offsets: removes it), if the projection is
    /// still `expected`; then it has come to `size`, with the next revision. In one transaction.
    async fn project(&self, expected: Projection, size: TreeSize, postings: &[Posting])
    -> Result<Projected, ReadError>;

    /// Where the versions of these sessions stand, in any order.
    async fn session_places(&self, ids: &[SessionId]) -> Result<Vec<LeafIndex>, ReadError>;
}
