//! The time stamps of a bundle: each a checkpoint of this very log, and an authority's signature that its bytes existed at a time.
//!
//! Signature and chain are checked by OpenSSL, in the server as here: of all that is verified this alone has no second program of ours.
//! `openssl ts -verify` is that program (docs/verify-independently.md).

use std::collections::BTreeMap;
use std::io;

use session_model::Timestamp;
use time_stamp::{Roots, StampError};

use crate::bundle::root_at;
use crate::group::Before;
use crate::report::{Finding, Report, Stamped};
use crate::source::Source;

/// Microseconds that the authority's clock and the service's may be apart, accuracy of the stamp included, before an entry that is younger than
/// its time stamp counts as wrong.
const CLOCKS_APART: i64 = 60_000_000;

/// The time stamps of a bundle.
#[derive(Debug, Default)]
pub(crate) struct Stamps {
    /// Those that hold, in order.
    held: Vec<Stamped>,
    /// By size of the tree, the time before which its entries existed.
    times: BTreeMap<u64, Timestamp>,
    /// What is wrong with the others.
    pub(crate) findings: Vec<Finding>,
    /// How many nobody was asked to trust.
    untried: usize,
    /// Whether there are authorities to trust.
    asked: bool,
}

impl Stamps {
    /// Verifies the time stamps that the manifest names. Without roots only their checkpoints are checked.
    pub(crate) fn verify(
        before: &Before,
        source: &mut Source,
        sizes: &[u64],
        roots: Option<&Roots>,
    ) -> io::Result<Self> {
        let mut stamps = Self { asked: roots.is_some(), ..Self::default() };
        for size in sizes {
            let note = source.read(&format!("time-stamps/{size}.checkpoint"))?;
            let response = source.read(&format!("time-stamps/{size}.tsr"))?;
            let held = match (note, response) {
                (Some(note), Some(response)) => one(before, source, *size, &note, &response, roots)?,
                (_, _) => Err("is missing from the bundle".to_owned()),
            };
            match held {
                Ok(Some(stamped)) => {
                    stamps.times.insert(*size, stamped.time);
                    stamps.held.push(stamped);
                }
                Ok(None) => stamps.untried += 1,
                Err(why) => {
                    let what = format!("the time stamp over the first {size} entries {why}");
                    stamps.findings.push(Finding::within(0, *size, what));
                }
            }
        }
        Ok(stamps)
    }

    /// What is wrong with an entry's time, if a time stamp shows that it existed long before.
    pub(crate) fn contradict(&self, index: u64, time: Timestamp) -> Option<String> {
        let (size, stamped) = self.times.range(index.checked_add(1)?..).next()?;
        let late = time.as_micros().saturating_sub(stamped.as_micros()) > CLOCKS_APART;
        late.then(|| {
            format!("its time is {time}, but a time stamp over the first {size} entries was given at {stamped}")
        })
    }

    /// Puts them into the report.
    pub(crate) fn tell(self, report: &mut Report) {
        if self.untried > 0 {
            let what = format!(
                "the {} time stamps here: give the certificates of their authority with --tsa-ca",
                self.untried
            );
            report.not_proved.push(what);
        } else if self.asked && self.held.is_empty() {
            report
                .not_proved
                .push("when the entries existed, by somebody else's clock: there is no good time stamp here".into());
        }
        report.time_stamps = self.held;
    }
}

/// Whether a time stamp holds; `None` if its checkpoint does, and nobody was given to trust for the rest.
fn one(
    before: &Before,
    source: &mut Source,
    size: u64,
    note: &[u8],
    response: &[u8],
    roots: Option<&Roots>,
) -> io::Result<Result<Option<Stamped>, String>> {
    let head = match before.keys.open(&String::from_utf8_lossy(note)) {
        Ok(head) => head,
        Err(failure) => return Ok(Err(format!("is over a checkpoint that the given key has not signed: {failure}"))),
    };
    if head.origin != before.origin || head.size.0 != size || size > before.size {
        return Ok(Err("is over another checkpoint".to_owned()));
    }
    match root_at(before, source, size)? {
        Some(root) if root == head.root => {}
        Some(_) => return Ok(Err("was given for other entries: the log was rewritten".to_owned())),
        None => return Ok(Err("cannot be compared: hashes are missing from the bundle".to_owned())),
    }
    let Some(roots) = roots else { return Ok(Ok(None)) };
    Ok(match roots.verify(response, note) {
        Ok(stamp) => Ok(Some(Stamped { size, time: stamp.time, authority: stamp.authority, policy: stamp.policy })),
        Err(StampError::Signature(failure)) => Err(format!("was not signed by an authority that you trust: {failure}")),
        Err(failure) => Err(format!("is not good: {failure}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_not_younger_than_the_first_stamp_that_covers_it() {
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        let stamps = Stamps { times: BTreeMap::from([(10, at(1_000)), (20, at(2_000))]), ..Stamps::default() };
        assert!(stamps.contradict(9, at(1_060)).is_none(), "clocks may be apart");
        assert!(stamps.contradict(9, at(1_061)).unwrap().contains("first 10 entries"));
        assert!(stamps.contradict(10, at(2_000)).is_none(), "it is not under the first stamp");
        assert!(stamps.contradict(19, at(9_000)).is_some());
        assert!(stamps.contradict(20, at(9_000)).is_none() && stamps.contradict(u64::MAX, at(0)).is_none());
    }
}
