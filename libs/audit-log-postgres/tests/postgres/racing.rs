//! Several processes on one log: each handle has connections of its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use audit_log::conformance::{Draft, check_log, check_signatures, next_batch, session};
use audit_log::{Appended, LogReader, LogWriter};
use session_model::{Leaf, TreeSize};

use crate::support::Database;

/// Appenders that race, while another raises the fence again and again: none of them fails, nothing is lost or doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_appenders_and_a_rising_fence_lose_nothing() {
    const EACH: u128 = 40;
    let database = Database::new().await;
    let done = Arc::new(AtomicBool::new(false));
    let disturber = {
        let (log, done) = (database.open().await, Arc::clone(&done));
        tokio::spawn(async move {
            let mut raised = 0;
            while !done.load(Ordering::Relaxed) {
                let batch = next_batch(&log, vec![Draft::new(1_000_000)]).await;
                assert!(!log.resolve(&batch).await.unwrap(), "never appended");
                raised += 1;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            raised
        })
    };
    let mut tasks = Vec::new();
    for task in 0..4_u128 {
        let log = database.open().await;
        tasks.push(tokio::spawn(async move {
            let mut moved = 0;
            for round in 0..EACH {
                let number = |i: u128| task * 10_000 + round * 10 + i;
                let drafts: Vec<_> =
                    (0..1 + round % 4).map(|i| Draft::new(number(i)).version(session(number(i)), 1)).collect();
                loop {
                    let batch = next_batch(&log, drafts.clone()).await;
                    match log.append(&batch).await.unwrap() {
                        Appended::Committed => break,
                        Appended::Moved(head) => assert_ne!(head.size(), batch.expected, "moved to where it was"),
                        Appended::Refused(refused) => panic!("nobody claims the same: {refused:?}"),
                    }
                    moved += 1;
                }
            }
            moved
        }));
    }
    let mut moved = 0;
    for task in tasks {
        moved += task.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(disturber.await.unwrap() > 0);
    assert!(moved > 0, "they never raced");

    let log = database.open().await;
    let entries = check_log(&log).await;
    check_signatures(&log).await;
    let expected = 4 * (0..EACH).map(|round| 1 + round % 4).sum::<u128>();
    assert_eq!(log.head().await.unwrap().size(), TreeSize(expected as u64));
    let distinct: HashSet<_> = entries.iter().map(|entry| Leaf::decode(&entry.leaf).unwrap().entry_id).collect();
    assert_eq!(distinct.len() as u128, expected);
}
