//! Connections that break at every point of an append: before the request, on its way, and after the commit.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use audit_log::conformance::{Draft, check_log, commit, digest, key, key_row, next_batch, session};
use audit_log::{AppendError, Appended, DataKeyRow, LogIndex, LogReader, LogWriter};
use audit_log_postgres::{PostgresConfig, PostgresLog};
use session_model::{Leaf, TreeSize};
use sqlx::AssertSqlSafe;

use crate::line::{DELAY_REQUESTS, LOSE_ANSWERS, LOSE_REQUESTS, Line, PASS};
use crate::support::Database;

pub(crate) fn drafts(first: u128, count: u128) -> Vec<Draft> {
    (first..first + count).map(|number| Draft::new(number).version(session(number), 1)).collect()
}

/// Each step of an append fails once, and is reported failed: what the log then says is what is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_outcome_is_resolved_rightly() {
    let database = Database::new().await;
    let (line, config) = Line::to(&database).await;
    let log = PostgresLog::connect(config).await.unwrap();
    commit(&log, drafts(0, 3)).await;

    for (mode, number, done) in [(LOSE_REQUESTS, 10, false), (LOSE_ANSWERS, 20, true)] {
        let batch = next_batch(&log, drafts(number, 3)).await;
        line.set(mode);
        let failure = log.append(&batch).await.unwrap_err();
        assert!(matches!(failure, AppendError::Unknown(_)), "mode {mode}: {failure:?}");
        assert!(log.resolve(&batch).await.is_err(), "mode {mode}: the line is still bad");
        line.set(PASS);
        assert_eq!(resolved(&log, &batch).await, done, "mode {mode}");
        let size = if done { batch.head.size() } else { batch.expected };
        assert_eq!(log.head().await.unwrap().size(), size, "mode {mode}");
        if !done {
            assert_eq!(log.append(&batch).await.unwrap(), Appended::Committed);
        }
        assert!(resolved(&log, &batch).await);
    }
    // The connection that appends was lost, and no other can be made: nothing was sent, so nothing was done.
    let batch = next_batch(&log, drafts(30, 3)).await;
    line.set(LOSE_ANSWERS);
    assert!(matches!(log.append(&batch).await, Err(AppendError::NotDone(_))), "no connection, no append");
    line.set(PASS);
    assert_eq!(log.append(&batch).await.unwrap(), Appended::Committed);
    assert_eq!(check_log(&log).await.len(), 12);
}

/// As the group commit does: until there is an answer.
pub(crate) async fn resolved(log: &PostgresLog, batch: &audit_log::Batch) -> bool {
    loop {
        if let Ok(done) = log.resolve(batch).await {
            return done;
        }
    }
}

/// The request is still on its way when its writer gives up and asks: it must not be done after it was said not to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_arrives_late_is_shut_out() {
    let database = Database::new().await;
    let (line, config) = Line::to(&database).await;
    let log = PostgresLog::connect(config).await.unwrap();
    commit(&log, drafts(0, 3)).await;
    let waits = Duration::from_millis(200);

    // Nobody asked: it comes late, and is done.
    let batch = next_batch(&log, drafts(10, 3)).await;
    line.set(DELAY_REQUESTS);
    assert!(tokio::time::timeout(waits, log.append(&batch)).await.is_err(), "nothing answers");
    line.set(PASS);
    line.release.notify_waiters();
    while line.late.load(Ordering::SeqCst) < 1 {
        tokio::task::yield_now().await;
    }
    // The server has it, and takes its time over it.
    let done = async {
        while log.head().await.unwrap().size() != batch.head.size() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), done).await.is_ok(), "the line does what it says");
    assert!(resolved(&log, &batch).await);

    // Somebody asked: it comes late, and is not. (The connection to append with is made while the line is good.)
    commit(&log, drafts(20, 1)).await;
    let batch = next_batch(&log, drafts(30, 3)).await;
    line.set(DELAY_REQUESTS);
    assert!(tokio::time::timeout(waits, log.append(&batch)).await.is_err(), "nothing answers");
    line.set(PASS);
    assert!(!resolved(&log, &batch).await);
    line.release.notify_waiters();
    while line.late.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(log.head().await.unwrap().size(), batch.expected, "done after all");
    assert_eq!(log.append(&batch).await.unwrap(), Appended::Committed, "the writer itself goes on");
    assert_eq!(check_log(&log).await.len(), 10);
}

/// The asker waits for an attempt that the server is working on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resolving_waits_for_an_append_that_is_running() {
    let database = Database::new().await;
    let log = Arc::new(database.open().await);
    commit(&*log, drafts(0, 1)).await;
    let batch = Arc::new(next_batch(&*log, drafts(1, 3)).await);
    // Somebody holds the head: the append waits behind him.
    let mut holder = database.connect(&database.superuser()).await;
    sqlx::raw_sql("BEGIN; SELECT FROM counterfoil.head_lock FOR UPDATE").execute(&mut holder).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), log.append(&batch)).await.is_err());
    let asking = {
        let (log, batch) = (Arc::clone(&log), Arc::clone(&batch));
        tokio::spawn(async move { resolved(&log, &batch).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!asking.is_finished(), "an answer now could not be final");
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    let done = asking.await.unwrap();
    let size = if done { batch.head.size() } else { batch.expected };
    assert_eq!(log.head().await.unwrap().size(), size);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(log.head().await.unwrap().size(), size, "what was answered is final");
    check_log(&*log).await;
}

/// Nobody waits for ever, for a lock or for anything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_waits_too_long_is_not_done() {
    let database = Database::new().await;
    let config = PostgresConfig { statement_timeout: Duration::from_millis(300), ..database.config() };
    let log = PostgresLog::connect(config).await.unwrap();
    commit(&log, drafts(0, 1)).await;
    let batch = next_batch(&log, drafts(1, 3)).await;
    let mut holder = database.connect(&database.superuser()).await;
    sqlx::raw_sql("BEGIN; SELECT FROM counterfoil.head_lock FOR UPDATE").execute(&mut holder).await.unwrap();
    assert!(matches!(log.append(&batch).await, Err(AppendError::NotDone(_))), "the server says so");
    assert!(log.resolve(&batch).await.is_err());
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    assert_eq!(log.append(&batch).await.unwrap(), Appended::Committed);
    assert_eq!(check_log(&log).await.len(), 4);
}

/// The server ends the appender's process at any moment, again and again. Whatever was acknowledged is there, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_backends_lose_and_double_nothing() {
    const BATCHES: u128 = 120;
    let database = Database::new().await;
    database
        .run(&format!("CREATE ROLE {}_victim LOGIN PASSWORD 'secret' IN ROLE counterfoil_writer", database.name))
        .await;
    let victim =
        PostgresLog::connect(PostgresConfig { url: database.url("victim"), ..database.config() }).await.unwrap();
    let reader = database.open().await;
    let done = Arc::new(AtomicBool::new(false));
    // Attempts at the same batch: a busy machine needs longer to connect again, and is left alone for longer.
    let attempts = Arc::new(AtomicU64::new(1));
    let killer = {
        let (mut superuser, done) = (database.connect(&database.superuser()).await, Arc::clone(&done));
        let attempts = Arc::clone(&attempts);
        let kill = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{}_victim'",
            database.name
        );
        tokio::spawn(async move {
            let mut killed = 0;
            while !done.load(Ordering::Relaxed) {
                killed +=
                    sqlx::query_scalar::<_, i64>(AssertSqlSafe(kill.clone())).fetch_one(&mut superuser).await.unwrap();
                let pause = (7 + killed as u64 % 13) * attempts.load(Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            killed
        })
    };
    let (mut unknown, mut not_done) = (0, 0);
    for number in 0..BATCHES {
        attempts.store(0, Ordering::Relaxed);
        loop {
            attempts.fetch_add(1, Ordering::Relaxed);
            let batch = next_batch(&reader, drafts(number * 10, 1 + number % 5)).await;
            let committed = match victim.append(&batch).await {
                Ok(Appended::Committed) => true,
                Ok(other) => panic!("nobody else appends: {other:?}"),
                Err(AppendError::NotDone(_)) => {
                    not_done += 1;
                    assert_eq!(reader.head().await.unwrap().size(), batch.expected, "not done, and yet there");
                    false
                }
                Err(AppendError::Unknown(_)) => {
                    unknown += 1;
                    let answer = resolved(&victim, &batch).await;
                    let size = if answer { batch.head.size() } else { batch.expected };
                    assert_eq!(reader.head().await.unwrap().size(), size, "the answer is not what is there");
                    answer
                }
            };
            if committed {
                break;
            }
        }
    }
    done.store(true, Ordering::Relaxed);
    assert!(killer.await.unwrap() > 0);
    assert!(unknown + not_done > 0, "nothing was ever hit");
    let expected: u128 = (0..BATCHES).map(|number| 1 + number % 5).sum();
    assert_eq!(reader.head().await.unwrap().size(), TreeSize(expected as u64));
    let entries = check_log(&reader).await;
    let distinct: HashSet<_> = entries.iter().map(|entry| Leaf::decode(&entry.leaf).unwrap().entry_id).collect();
    assert_eq!(distinct.len() as u128, expected);
}

/// A server that restarts breaks every idle connection: readers do not notice, and an append is sorted out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_that_broke_are_replaced() {
    let database = Database::new().await;
    let log = database.open().await;
    commit(&log, drafts(0, 3)).await;
    database
        .run(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}_writer'",
            database.name
        ))
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let batch = next_batch(&log, drafts(3, 3)).await;
    match log.append(&batch).await {
        Ok(appended) => assert_eq!(appended, Appended::Committed),
        Err(AppendError::NotDone(_)) => {}
        Err(AppendError::Unknown(_)) => assert!(!resolved(&log, &batch).await),
    }
    if log.head().await.unwrap().size() == batch.expected {
        assert_eq!(log.append(&batch).await.unwrap(), Appended::Committed);
    }
    assert_eq!(check_log(&log).await.len(), 6);
}

/// The connection that looks data keys up is one, and stands for long: that it broke meanwhile is nobody's business.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_up_outlives_its_connection() {
    let database = Database::new().await;
    let log = database.open().await;
    let row = DataKeyRow { lookup: Some(digest(1)), ..key_row(1) };
    commit(&log, vec![Draft::new(1).sealed(key(1), [1]).new_key(row.clone())]).await;
    for _ in 0..3 {
        let found = log.data_keys_by_lookup(&[digest(2), digest(1)]).await.unwrap();
        assert_eq!(found, [None, Some(row.clone())]);
        let killed = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}_writer'",
            database.name
        );
        database.run(&killed).await;
    }
}
