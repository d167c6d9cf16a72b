//! Which entry is the first at or after a time.
//!
//! Times never go back in a log, so a range of times is a range of leaf indices. Its ends are found by marks: the time of every
//! 64th entry of a segment, and the time of the first entry of each segment. Both are kept among the postings, under terms
//! of their own that no realm has.

use audit_log::{LogStore, Posting, SEGMENT, Term};
use session_model::{Leaf, LeafIndex, Timestamp};

use crate::archive::SearchError;

/// One entry in this many is marked. 8 KiB of marks for a full segment, and as many entries to read at the end of a search.
pub(crate) const STEP: u32 = 64;

/// Marks of a segment.
pub(crate) const MARKS: Term = Term(*b"counterfoil-time");
/// The first time of each segment: all in segment 0.
pub(crate) const FIRSTS: Term = Term(*b"counterfoil-segs");

/// Times as they are stored: eight bytes each, big-endian, in order.
pub(crate) fn read(posting: &Posting) -> Result<Vec<i64>, SearchError> {
    let (times, rest) = posting.offsets.as_chunks::<8>();
    if rest.is_empty() {
        Ok(times.iter().copied().map(i64::from_be_bytes).collect())
    } else {
        Err(SearchError::Postings)
    }
}

/// Back again.
pub(crate) fn written(term: Term, segment: u32, times: &[i64]) -> Posting {
    Posting { term, segment, offsets: times.iter().flat_map(|time| time.to_be_bytes()).collect() }
}

/// Index of the first entry at or after a time; `size` if there is none below it. Every entry below `size` must have been
/// projected.
pub(crate) async fn first_at(log: &dyn LogStore, time: Timestamp, size: u64) -> Result<u64, SearchError> {
    let time = time.as_micros();
    let firsts = marks(log, FIRSTS, 0).await?;
    // All segments before the last that begins earlier are over by then; those after it are not earlier.
    let Some(segment) = firsts.partition_point(|first| *first < time).checked_sub(1) else { return Ok(0) };
    let start = segment as u64 * SEGMENT;
    let marks = marks(log, MARKS, u32::try_from(segment).unwrap_or(u32::MAX)).await?;
    let block = marks.partition_point(|mark| *mark < time).saturating_sub(1) as u64;
    let low = start + block * u64::from(STEP);
    let high = (low + u64::from(STEP)).min(size);
    let indices: Vec<LeafIndex> = (low..high).map(LeafIndex).collect();
    for (index, entry) in indices.iter().zip(log.entries(&indices).await?) {
        // Leaves that retention has taken away are old.
        let Some(entry) = entry else { continue };
        let leaf = Leaf::decode(&entry.leaf).map_err(|_| SearchError::corrupt(*index))?;
        if leaf.time.as_micros() >= time {
            return Ok(index.0);
        }
    }
    Ok(high)
}

async fn marks(log: &dyn LogStore, term: Term, segment: u32) -> Result<Vec<i64>, SearchError> {
    match log.postings(&[term], segment..=segment).await?.first() {
        Some(posting) => read(posting),
        None => Ok(Vec::new()),
    }
}
