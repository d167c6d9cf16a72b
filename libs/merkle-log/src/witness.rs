//! What a log asks of a witness, and what a witness makes of it (C2SP tlog-witness). No I/O, no keys.

use std::fmt::{self, Write as _};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use session_model::{Digest, TreeSize};
use signed_note::{Note, NoteError, Verifier, VerifierList};

use crate::{Checkpoint, CheckpointError, check_consistency};

/// The body of `add-checkpoint`: a checkpoint, and the proof that it extends the tree of an older size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddCheckpoint {
    /// The size that the witness has cosigned last; 0 if none.
    pub old: TreeSize,
    /// Consistency proof from there (RFC 6962 section 2.1.2); empty from 0.
    pub proof: Vec<Digest>,
    /// The signed checkpoint.
    pub checkpoint: String,
}

/// Text that is no `add-checkpoint` request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an add-checkpoint request (C2SP tlog-witness)")]
pub struct AddCheckpointError;

impl AddCheckpoint {
    /// Hashes of a proof at most.
    const MOST: usize = 63;

    /// Reads a request.
    ///
    /// # Errors
    /// [`AddCheckpointError`].
    pub fn parse(text: &str) -> Result<Self, AddCheckpointError> {
        let (head, checkpoint) = text.split_once("\n\n").ok_or(AddCheckpointError)?;
        let mut lines = head.split('\n');
        let size = lines.next().and_then(|line| line.strip_prefix("old ")).ok_or(AddCheckpointError)?;
        let old: u64 = size.parse().map_err(|_| AddCheckpointError)?;
        if old.to_string() != size {
            return Err(AddCheckpointError);
        }
        let hash = |line: &str| {
            let bytes = STANDARD.decode(line).map_err(|_| AddCheckpointError)?;
            bytes.try_into().map(Digest).map_err(|_| AddCheckpointError)
        };
        let proof = lines.map(hash).collect::<Result<Vec<_>, _>>()?;
        if proof.len() > Self::MOST {
            return Err(AddCheckpointError);
        }
        Ok(Self { old: TreeSize(old), proof, checkpoint: checkpoint.to_owned() })
    }
}

impl fmt::Display for AddCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("old {}\n", self.old);
        for hash in &self.proof {
            writeln!(text, "{}", STANDARD.encode(hash.0))?;
        }
        write!(f, "{text}\n{}", self.checkpoint)
    }
}

/// Why a witness does not cosign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WitnessRefusal {
    /// The old size is beyond the new one.
    #[error("the old size is beyond that of the checkpoint")]
    OldBeyondNew,
    /// It has cosigned another size last: this one.
    #[error("the checkpoint cosigned last is of size {0}")]
    NotLatest(TreeSize),
    /// It has cosigned this size with another root.
    #[error("a checkpoint of this size with another root was cosigned")]
    OtherRoot,
    /// The proof does not hold.
    #[error("the consistency proof does not hold")]
    ProofDoesNotHold,
}

/// Whether a witness whose latest checkpoint of a log is `latest` may cosign `head`, with this request.
///
/// # Errors
/// [`WitnessRefusal`].
pub fn observe(latest: Option<&Checkpoint>, request: &AddCheckpoint, head: &Checkpoint) -> Result<(), WitnessRefusal> {
    if request.old > head.size {
        return Err(WitnessRefusal::OldBeyondNew);
    }
    let known = latest.map_or(TreeSize(0), |latest| latest.size);
    if request.old != known {
        return Err(WitnessRefusal::NotLatest(known));
    }
    match latest {
        None => request.proof.is_empty().then_some(()).ok_or(WitnessRefusal::ProofDoesNotHold),
        Some(latest) if latest.size == head.size => {
            if latest.root != head.root {
                return Err(WitnessRefusal::OtherRoot);
            }
            request.proof.is_empty().then_some(()).ok_or(WitnessRefusal::ProofDoesNotHold)
        }
        // Every tree extends the empty one.
        Some(latest) if latest.size.0 == 0 => {
            request.proof.is_empty().then_some(()).ok_or(WitnessRefusal::ProofDoesNotHold)
        }
        Some(latest) => check_consistency(&request.proof, (latest.size, latest.root), (head.size, head.root))
            .map_err(|_| WitnessRefusal::ProofDoesNotHold),
    }
}

/// The text of a signed note that its signatures are over.
///
/// # Errors
/// [`CheckpointError::Malformed`].
pub fn signed_text(note: &str) -> Result<Vec<u8>, CheckpointError> {
    Ok(Note::from_bytes(note.as_bytes()).map_err(|_| CheckpointError::Malformed)?.text().to_vec())
}

/// The origin that a checkpoint claims, its signatures unread: to find the keys by which to read them.
///
/// # Errors
/// [`CheckpointError::Malformed`].
pub fn claimed_origin(note: &str) -> Result<String, CheckpointError> {
    let text = String::from_utf8(signed_text(note)?).map_err(|_| CheckpointError::Malformed)?;
    text.lines().next().map(ToOwned::to_owned).ok_or(CheckpointError::Malformed)
}

/// The signature lines under a note by these keys that are good, each with its end, in the order of the note. A line of a known key that
/// does not verify spoils nothing but itself; unknown keys are ignored.
///
/// # Errors
/// [`CheckpointError::Malformed`] if the text is no note.
pub fn good_lines(note: &str, known: Vec<Box<dyn Verifier>>) -> Result<Vec<String>, CheckpointError> {
    let parsed = Note::from_bytes(note.as_bytes()).map_err(|_| CheckpointError::Malformed)?;
    let mut lines = Vec::new();
    for verifier in known {
        let list = VerifierList::new(vec![verifier]);
        match parsed.verify(&list) {
            Ok((good, _)) => {
                for signature in good {
                    lines.push(String::from_utf8(signature.to_bytes()).map_err(|_| CheckpointError::Malformed)?);
                }
            }
            Err(NoteError::MalformedNote) => return Err(CheckpointError::Malformed),
            Err(_) => {}
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Frontier, Plan, leaf_hash};

    fn head(size: u64, other: bool) -> (Checkpoint, Vec<Digest>) {
        let mut frontier = Frontier::empty();
        let mut leaves = Vec::new();
        for i in 0..size {
            let leaf = leaf_hash(&[i as u8, u8::from(other)]);
            leaves.push(leaf);
            frontier.push(leaf, |_| {});
        }
        (Checkpoint { origin: "log.example".into(), size: TreeSize(size), root: frontier.root() }, leaves)
    }

    fn request(old: u64, new: u64) -> AddCheckpoint {
        let (_, leaves) = head(new, false);
        let proof = if old == 0 || old == new {
            vec![]
        } else {
            let plan = Plan::consistency(TreeSize(old), TreeSize(new)).unwrap();
            let run = |start: u64, count: u64| leaves[start as usize..(start + count) as usize].to_vec();
            plan.finish(&plan.ranges().map(|range| run(range.start, range.count)).collect::<Vec<_>>()).unwrap()
        };
        AddCheckpoint { old: TreeSize(old), proof, checkpoint: "log.example\n1\nx\n\n\u{2014} a b\n".into() }
    }

    proptest! {
        #[test]
        fn a_request_reads_back(old in 1_u64..50, more in 0_u64..50) {
            let request = request(old, old + more);
            prop_assert_eq!(AddCheckpoint::parse(&request.to_string()), Ok(request));
        }

        #[test]
        fn what_extends_is_cosigned_and_what_does_not_is_not(old in 1_u64..60, more in 1_u64..60) {
            let ((before, _), (after, _), (other, _)) = (head(old, false), head(old + more, false), head(old + more, true));
            let request = request(old, old + more);
            prop_assert_eq!(observe(Some(&before), &request, &after), Ok(()));
            prop_assert_eq!(observe(Some(&before), &request, &other), Err(WitnessRefusal::ProofDoesNotHold));
            prop_assert_eq!(observe(None, &request, &after), Err(WitnessRefusal::NotLatest(TreeSize(0))));
            prop_assert_eq!(observe(Some(&after), &request, &after), Err(WitnessRefusal::NotLatest(after.size)));
            let back = AddCheckpoint { old: after.size, ..request };
            prop_assert_eq!(observe(Some(&after), &back, &before), Err(WitnessRefusal::OldBeyondNew));
            let same = AddCheckpoint { old: after.size, proof: vec![], checkpoint: String::new() };
            prop_assert_eq!(observe(Some(&after), &same, &after), Ok(()));
            prop_assert_eq!(observe(Some(&after), &same, &other), Err(WitnessRefusal::OtherRoot));
            let unproved = AddCheckpoint { old: before.size, proof: vec![], checkpoint: String::new() };
            prop_assert_eq!(observe(Some(&before), &unproved, &after), Err(WitnessRefusal::ProofDoesNotHold));
            let first = AddCheckpoint { old: TreeSize(0), proof: vec![], checkpoint: String::new() };
            prop_assert_eq!(observe(None, &first, &after), Ok(()));
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let good = request(3, 9).to_string();
        for bad in [
            String::new(),
            good.replace("old 3", "old 03"),
            good.replace("old 3", "old -1"),
            good.replacen('\n', "\nxx\n", 1),
            good.replace("\n\n", "\n"),
            format!("old 0\n{}\n\nx", vec![STANDARD.encode([0; 32]); 64].join("\n")),
        ] {
            assert_eq!(AddCheckpoint::parse(&bad), Err(AddCheckpointError), "{bad}");
        }
    }
}
