//! A log against what was kept elsewhere, and the tasks that keep it there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop")]

use std::sync::Arc;
use std::time::Duration;

use anchors::{Anchor, ContradictionError, FileAnchor, Keeper, check_head, compare};
use audit_log::conformance::Draft;
use audit_log::{Appended, LogIdentity, LogReader, LogWriter, MemoryLog, Sequencer};
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
