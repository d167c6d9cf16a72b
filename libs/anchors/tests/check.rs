//! A log against what was kept elsewhere, and the tasks that keep it there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anchors::{Anchor, ContradictionError, FileAnchor, Keeper, PlaceError, check_head, compare, keep_newest};
use audit_log::conformance::Draft;
use audit_log::{Appended, LogIdentity, LogReader, LogWriter, MemoryLog, Sequencer};
use parking_lot::Mutex;
use sealing::LogKey;
use session_model::TreeSize;

async fn log_of(key: &Arc<LogKey>, numbers: std::ops::Range<u128>) -> MemoryLog {
    let log = MemoryLog::new();
    append(&log, key, numbers).await;
    log
}

async fn append(log: &MemoryLog, key: &Arc<LogKey>, numbers: std::ops::Range<u128>) {
    let signers: Vec<Arc<dyn merkle_log::Signer + Send + Sync>> = vec![Arc::clone(key) as _];
    let sequencer = Sequencer::new(LogIdentity { origin: "log.example".into(), signers });
    for number in numbers {
        let batch = sequencer.batch(&log.head().await.unwrap(), vec![Draft::new(number).proposed()]).unwrap();
        assert_eq!(log.append(&batch).await.unwrap(), Appended::Committed);
    }
}

fn key() -> Arc<LogKey> {
    Arc::new(LogKey::generate("log.example").unwrap())
}

async fn against(log: &MemoryLog, outside: &str, key: &LogKey) -> Result<TreeSize, ContradictionError> {
    let head = log.head().await.unwrap();
    check_head(log, &head, std::slice::from_ref(key.verifier())).await?;
    compare(log, &head, outside, "outside", std::slice::from_ref(key.verifier())).await
}

#[tokio::test]
async fn a_log_that_grew_is_fine_and_one_rolled_back_or_rewritten_is_not() {
    let key = key();
    let five = log_of(&key, 0..5).await;
    let outside = five.head().await.unwrap().checkpoint.unwrap();
    assert_eq!(against(&five, &outside, &key).await.unwrap(), TreeSize(5));
    assert_eq!(against(&log_of(&key, 0..9).await, &outside, &key).await.unwrap(), TreeSize(5), "it grew");
    for size in [0, 4] {
        let shorter = against(&log_of(&key, 0..size).await, &outside, &key).await;
        assert!(matches!(shorter, Err(ContradictionError::RolledBack { .. })), "{shorter:?}");
    }
    let other = against(&log_of(&key, 100..109).await, &outside, &key).await;
    assert!(matches!(other, Err(ContradictionError::Rewritten { .. })), "{other:?}");
    let foreign = against(&five, &outside, &LogKey::generate("log.example").unwrap()).await;
    assert!(matches!(foreign, Err(ContradictionError::Head(_))), "{foreign:?}");
    let forged = outside.replace("\n5\n", "\n4\n");
    assert!(matches!(against(&five, &forged, &key).await, Err(ContradictionError::Foreign { .. })));
}

/// The database is put back while the service runs: noticed, and what proves it is not replaced.
#[tokio::test]
async fn a_keeper_never_replaces_the_proof_of_a_longer_history() {
    let (key, folder) = (key(), tempfile::tempdir().unwrap());
    let file = Arc::new(FileAnchor::new(folder.path().join("checkpoint")));
    let until = async |keeper: &Keeper, size: Option<TreeSize>, contradicted: bool| {
        for _ in 0..500 {
            let status = keeper.status().lock().clone();
            if (status.size, status.contradicted) == (size, contradicted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {size:?} {contradicted}: {:?}", keeper.status());
    };
    let pause = Duration::from_millis(10);
    let log = Arc::new(log_of(&key, 0..3).await);
    let keeper = Keeper::start(file.clone(), log.clone(), vec![key.verifier().clone()], pause);
    until(&keeper, Some(TreeSize(3)), false).await;
    append(&log, &key, 3..8).await;
    until(&keeper, Some(TreeSize(8)), false).await;
    append(&log, &key, 8..9).await;
    keeper.close(Duration::from_secs(5)).await;
    let newest = file.newest().unwrap().unwrap();
    assert!(newest.contains("\n9\n"), "the last one is kept at the end: {newest}");

    let rolled_back = Arc::new(log_of(&key, 0..7).await);
    let keeper = Keeper::start(file.clone(), rolled_back.clone(), vec![key.verifier().clone()], pause);
    until(&keeper, None, true).await;
    keeper.close(Duration::from_secs(5)).await;
    assert_eq!(file.newest().unwrap().unwrap(), newest);
}

/// A place with faults: `newest` may let others append and keep first, `keep` may fail.
struct Faulty {
    kept: Mutex<Option<String>>,
    failures: AtomicUsize,
    others: Mutex<Option<Box<dyn FnOnce() -> String + Send>>>,
}

impl Faulty {
    fn new() -> Arc<Self> {
        Arc::new(Self { kept: Mutex::default(), failures: AtomicUsize::new(0), others: Mutex::default() })
    }
}

impl Anchor for Faulty {
    fn kind(&self) -> &'static str {
        "faulty"
    }

    fn place(&self) -> &str {
        "here"
    }

    fn keep(&self, _: TreeSize, checkpoint: &str) -> Result<(), PlaceError> {
        let fails = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if fails {
            return Err(PlaceError { place: "here".into(), what: "is slow today".into(), source: None });
        }
        *self.kept.lock() = Some(checkpoint.to_owned());
        Ok(())
    }

    fn newest(&self) -> Result<Option<String>, PlaceError> {
        if let Some(others) = self.others.lock().take() {
            *self.kept.lock() = Some(others());
        }
        Ok(self.kept.lock().clone())
    }
}

/// Else whatever came since the turn before could be taken away unnoticed, though the service was stopped in order.
#[tokio::test]
async fn the_last_checkpoint_is_tried_again_until_it_is_kept() {
    let (key, place) = (key(), Faulty::new());
    let log = Arc::new(log_of(&key, 0..3).await);
    let keeper = Keeper::start(place.clone(), log.clone(), vec![key.verifier().clone()], Duration::from_secs(3_600));
    let status = keeper.status();
    while status.lock().size != Some(TreeSize(3)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    append(&log, &key, 3..8).await;
    place.failures.store(2, Ordering::SeqCst);
    keeper.close(Duration::from_secs(10)).await;
    assert!(place.kept.lock().as_ref().unwrap().contains("\n8\n"));

    // One that had failed before is not waited for.
    place.failures.store(usize::MAX, Ordering::SeqCst);
    append(&log, &key, 8..9).await;
    let keeper = Keeper::start(place.clone(), log.clone(), vec![key.verifier().clone()], Duration::from_secs(3_600));
    while keeper.status().lock().failure.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let closing = keeper.close(Duration::from_secs(60));
    tokio::time::timeout(Duration::from_secs(10), closing).await.unwrap();
}

/// Another node, or a command, that appends and keeps while we look does not make the log seem rolled back.
#[tokio::test]
async fn what_others_keep_meanwhile_is_no_contradiction() {
    let (key, place) = (key(), Faulty::new());
    let log = Arc::new(log_of(&key, 0..3).await);
    let (theirs, signer) = (Arc::clone(&log), Arc::clone(&key));
    *place.others.lock() = Some(Box::new(move || {
        futures::executor::block_on(async {
            append(&theirs, &signer, 3..8).await;
            theirs.head().await.unwrap().checkpoint.unwrap()
        })
    }));
    let place: Arc<dyn Anchor> = place;
    let kept = keep_newest(&place, &*log, std::slice::from_ref(key.verifier())).await;
    assert_eq!(kept.unwrap(), Some(TreeSize(8)));
}

/// A command that was slower than the service puts an older checkpoint into its file: the next turn puts that right.
#[tokio::test]
async fn a_file_that_somebody_else_wrote_is_looked_at_each_turn() {
    let (key, folder) = (key(), tempfile::tempdir().unwrap());
    let file = FileAnchor::new(folder.path().join("checkpoint"));
    let log = Arc::new(log_of(&key, 0..3).await);
    let older = log.head().await.unwrap().checkpoint.unwrap();
    append(&log, &key, 3..8).await;
    let until_newest = async || {
        for _ in 0..500 {
            if file.newest().unwrap().is_some_and(|kept| kept.contains("\n8\n")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?} stays", file.newest());
    };
    let keys = vec![key.verifier().clone()];
    let keeper = Keeper::start(Arc::new(file.clone()), log.clone(), keys, Duration::from_millis(10));
    until_newest().await;
    file.keep(TreeSize(3), &older).unwrap();
    until_newest().await;
    keeper.close(Duration::from_secs(5)).await;
}
