//! A witness: sees the checkpoints of logs, cosigns those that extend what it has seen, and never forgets how far it has come.
//!
//! It is run by somebody other than the log's operator: its word that a history was not rewritten is worth what its distance from them is.
//! The protocol is C2SP tlog-witness, the cosignature C2SP tlog-cosignature (`cosignature/v1`, Ed25519). What may be cosigned is decided by
//! [`merkle_log::observe`]; here is what surrounds it: which logs are known, what was seen last, on disk before the cosignature leaves.
//!
//! Start with [`Witness::add_checkpoint`]. HTTP is the caller's.

mod store;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use merkle_log::{
    AddCheckpoint, Checkpoint, Verifier, WitnessRefusal, claimed_origin, observe, open_checkpoint, signed_text,
};
use parking_lot::Mutex;
use sealing::{CosignerKey, SealError, VerifierKey};
use session_model::{Timestamp, TreeSize};

pub use store::StoreError;

/// Why a checkpoint was not cosigned. Each has its HTTP status in C2SP tlog-witness.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Not a request (400).
    #[error("not an add-checkpoint request")]
    Malformed,
    /// The checkpoint is of a log that this witness does not know (404).
    #[error("the log is not known to this witness")]
    UnknownLog,
    /// No known key of the log has signed it (403).
    #[error("the checkpoint was not signed by a key that is known for its log")]
    NotSigned,
    /// It cannot be cosigned: 400, 409 with the size, 409, 422.
    #[error(transparent)]
    Refused(#[from] WitnessRefusal),
    /// What was seen last cannot be read or written: nothing is cosigned (500).
    #[error("the witness's own record cannot be read or written")]
    Store(#[from] StoreError),
    /// The key cannot sign (500).
    #[error("the witness cannot sign")]
    Sign(#[from] SealError),
}

/// A witness.
#[derive(Debug)]
pub struct Witness {
    key: CosignerKey,
    /// The keys of each log, by origin.
    logs: HashMap<String, Vec<VerifierKey>>,
    folder: PathBuf,
    /// Two processes on one folder would each believe its own reading of the record.
    _lock: std::fs::File,
    /// Held from reading the record to the end of writing it: two requests never both extend the same checkpoint (tlog-witness names the
    /// race).
    turn: Mutex<()>,
}

impl Witness {
    /// A witness of these logs that keeps what it saw in a folder of its own. A log's verifier key is named after its origin.
    ///
    /// # Errors
    /// [`StoreError`] if the folder cannot be used, or another process has it.
    pub fn open(key: CosignerKey, logs: Vec<VerifierKey>, folder: &Path) -> Result<Self, StoreError> {
        let lock = store::prepare(folder)?;
        let mut by_origin: HashMap<String, Vec<VerifierKey>> = HashMap::new();
        for log in logs {
            by_origin.entry(merkle_log::Verifier::name(&log).to_owned()).or_default().push(log);
        }
        Ok(Self { key, logs: by_origin, folder: folder.to_owned(), _lock: lock, turn: Mutex::new(()) })
    }

    /// Its verifier key, as a vkey line: for whoever relies on it.
    pub fn vkey(&self) -> String {
        self.key.verifier().to_string()
    }

    /// Cosigns a checkpoint if it extends what was seen last of its log; answers the cosignature line. The checkpoint is on disk before
    /// this returns. Blocks.
    ///
    /// # Errors
    /// [`AddError`]; nothing was cosigned and nothing recorded.
    pub fn add_checkpoint(&self, body: &str, now: Timestamp) -> Result<String, AddError> {
        let request = AddCheckpoint::parse(body).map_err(|_| AddError::Malformed)?;
        let origin = claimed_origin(&request.checkpoint).map_err(|_| AddError::Malformed)?;
        let keys = self.logs.get(&origin).ok_or(AddError::UnknownLog)?;
        let head = open(&request.checkpoint, keys).map_err(|_| AddError::NotSigned)?;
        if head.origin != origin {
            return Err(AddError::Malformed);
        }
        let text = signed_text(&request.checkpoint).map_err(|_| AddError::Malformed)?;

        let _turn = self.turn.lock();
        let latest = match store::read(&self.folder, &origin)? {
            None => None,
            // What is there was verified when it was written: if it is not good now, somebody has been at it.
            Some(text) => Some(open(&text, keys).map_err(|_| store::altered(&self.folder, &origin))?),
        };
        observe(latest.as_ref(), &request, &head)?;
        let line = self.key.cosign(&text, now)?;
        if latest.as_ref() != Some(&head) {
            store::write(&self.folder, &origin, &request.checkpoint)?;
        }
        Ok(line)
    }

    /// The size it has cosigned last of each log that it knows.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn sizes(&self) -> Result<Vec<(String, TreeSize)>, StoreError> {
        let mut sizes = Vec::new();
        for (origin, keys) in &self.logs {
            let latest = store::read(&self.folder, origin)?.and_then(|text| open(&text, keys).ok());
            sizes.push((origin.clone(), latest.map_or(TreeSize(0), |latest| latest.size)));
        }
        sizes.sort();
        Ok(sizes)
    }
}

fn open(text: &str, keys: &[VerifierKey]) -> Result<Checkpoint, merkle_log::CheckpointError> {
    // Each key for itself: a line that a retired key is wrong about must not spoil the one that is right.
    let mut outcome = Err(merkle_log::CheckpointError::Malformed);
    for key in keys {
        outcome = open_checkpoint(text, vec![Box::new(key.clone()) as Box<dyn Verifier>]);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use merkle_log::{Frontier, Plan, leaf_hash, sign_checkpoint};
    use sealing::{CosignerVerifier, LogKey};
    use session_model::Digest;

    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    struct Log {
        key: LogKey,
        salt: u8,
    }

    impl Log {
        fn leaves(&self, size: u64) -> Vec<Digest> {
            (0..size).map(|i| leaf_hash(&[i as u8, self.salt])).collect()
        }

        fn checkpoint(&self, size: u64) -> String {
            let mut frontier = Frontier::empty();
            self.leaves(size).iter().for_each(|leaf| frontier.push(*leaf, |_| {}));
            let head = Checkpoint { origin: "log.example".into(), size: TreeSize(size), root: frontier.root() };
            sign_checkpoint(&head, &[&self.key]).unwrap()
        }

        fn request(&self, old: u64, size: u64) -> String {
            let proof = if old == 0 || old == size {
                vec![]
            } else {
                let leaves = self.leaves(size);
                let plan = Plan::consistency(TreeSize(old), TreeSize(size)).unwrap();
                let run = |start: u64, count: u64| leaves[start as usize..(start + count) as usize].to_vec();
                plan.finish(&plan.ranges().map(|range| run(range.start, range.count)).collect::<Vec<_>>()).unwrap()
            };
            AddCheckpoint { old: TreeSize(old), proof, checkpoint: self.checkpoint(size) }.to_string()
        }
    }

    #[test]
    fn a_witness_goes_forward_only_and_remembers_across_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log { key: LogKey::generate("log.example").unwrap(), salt: 0 };
        let pem = CosignerKey::generate("witness.example/w1").unwrap().to_pem().unwrap();
        let open = || {
            let key = CosignerKey::from_pem("witness.example/w1", &pem).unwrap();
            Witness::open(key, vec![log.key.verifier().clone()], folder.path()).unwrap()
        };
        let witness = open();
        let line = witness.add_checkpoint(&log.request(0, 3), NOW).unwrap();
        let cosigned = format!("{}{line}", log.checkpoint(3));
        let verifier = CosignerVerifier::parse(&witness.vkey()).unwrap();
        assert_eq!(merkle_log::good_lines(&cosigned, vec![Box::new(verifier)]).unwrap(), [line]);
        witness.add_checkpoint(&log.request(3, 8), NOW).unwrap();
        witness.add_checkpoint(&log.request(8, 8), NOW).unwrap();
        drop(witness);

        let witness = open();
        assert_eq!(witness.sizes().unwrap(), [("log.example".to_owned(), TreeSize(8))]);
        let refused = |body: &str| witness.add_checkpoint(body, NOW).unwrap_err();
        let not_latest = |size| WitnessRefusal::NotLatest(TreeSize(size));
        assert!(matches!(refused(&log.request(0, 9)), AddError::Refused(why) if why == not_latest(8)));
        assert!(matches!(refused(&log.request(3, 5)), AddError::Refused(why) if why == not_latest(8)), "rolled back");
        let other = Log { key: LogKey::from_pem("log.example", &log.key.to_pem().unwrap()).unwrap(), salt: 1 };
        assert!(matches!(refused(&other.request(8, 9)), AddError::Refused(WitnessRefusal::ProofDoesNotHold)));
        assert!(matches!(refused(&other.request(8, 8)), AddError::Refused(WitnessRefusal::OtherRoot)));
        let forged = Log { key: LogKey::generate("log.example").unwrap(), salt: 0 };
        assert!(matches!(refused(&forged.request(8, 9)), AddError::NotSigned));
        assert!(matches!(
            refused(&log.request(8, 9).replace("log.example\n", "other.example\n")),
            AddError::UnknownLog
        ));
        assert!(matches!(refused("old 8\n"), AddError::Malformed));
        witness.add_checkpoint(&log.request(8, 9), NOW).unwrap();
    }

    #[test]
    fn of_two_that_extend_the_same_checkpoint_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log { key: LogKey::generate("log.example").unwrap(), salt: 0 };
        let key = CosignerKey::generate("w").unwrap();
        let witness = Witness::open(key, vec![log.key.verifier().clone()], folder.path()).unwrap();
        witness.add_checkpoint(&log.request(0, 5), NOW).unwrap();
        let bodies: Vec<String> = (6..30).map(|size| log.request(5, size)).collect();
        let won = std::thread::scope(|scope| {
            let tries: Vec<_> =
                bodies.iter().map(|body| scope.spawn(|| witness.add_checkpoint(body, NOW).is_ok())).collect();
            tries.into_iter().map(|one| one.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(won, 1);
    }

    #[test]
    fn a_record_that_was_altered_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log { key: LogKey::generate("log.example").unwrap(), salt: 0 };
        let key = || CosignerKey::generate("w").unwrap();
        let witness = Witness::open(key(), vec![log.key.verifier().clone()], folder.path()).unwrap();
        let second = Witness::open(key(), vec![], folder.path());
        assert!(matches!(second, Err(StoreError::Taken { .. })), "a second process");
        witness.add_checkpoint(&log.request(0, 5), NOW).unwrap();
        let record = store::path(folder.path(), "log.example");
        let altered = std::fs::read_to_string(&record).unwrap().replace("\n5\n", "\n4\n");
        std::fs::write(&record, altered).unwrap();
        assert!(matches!(witness.add_checkpoint(&log.request(4, 6), NOW), Err(AddError::Store(_))));
    }
}
