//! The log in SQLite: the suite that every log passes, and what only a file can go through.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking, too")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use audit_log::conformance::{Draft, at, check_log, check_signatures, commit, key, key_row, next_batch, session};
use audit_log::{AppendError, Appended, Claimed, DeliveryCursors, LogIndex, LogReader, LogStore, LogWriter};
use audit_log_sqlite::{SqliteLog, SqliteLogOptions};
use session_model::{LeafIndex, TreeSize};
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("log.db")
    }
}

async fn open(path: &Path) -> SqliteLog {
    SqliteLog::open(path).await.unwrap()
}

async fn build() -> (Arc<dyn LogStore>, Folder) {
    let folder = Folder::new();
    (Arc::new(open(&folder.file()).await), folder)
}

async fn again(folder: &Folder) -> Arc<dyn LogStore> {
    Arc::new(open(&folder.file()).await)
}

audit_log::conformance_tests!(conformance, build, again);

/// A connection with nothing between it and the file.
async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap()
}

fn drafts(first: u128, count: u128) -> Vec<Draft> {
    let draft = |number| Draft::new(number).version(session(number), 1).sealed(key(1), vec![1; 400]).padded(200);
    (first..first + count).map(draft).collect()
}

#[tokio::test]
async fn survives_being_closed_and_being_dropped() {
    let folder = Folder::new();
    let log = open(&folder.file()).await;
    commit(&log, drafts(0, 10)).await;
    log.close().await;
    assert!(log.head().await.is_err(), "closed is closed");
    drop(log);

    let log = open(&folder.file()).await;
    commit(&log, drafts(10, 10)).await;
    let head = log.head().await.unwrap();
    drop(log);

    let log = open(&folder.file()).await;
    assert_eq!(log.head().await.unwrap(), head);
    commit(&log, drafts(20, 300)).await;
    assert_eq!(check_log(&log).await.len(), 320);
    check_signatures(&log).await;
}

#[cfg(unix)]
#[tokio::test]
async fn the_files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let log = open(&folder.file()).await;
    commit(&log, drafts(0, 1)).await;
    for name in ["log.db", "log.db-wal", "log.db-shm"] {
        let mode = std::fs::metadata(folder.0.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_left_alone() {
    let folder = Folder::new();
    let text = "not a database, but long enough that it could be one\n".repeat(100);
    std::fs::write(folder.file(), &text).unwrap();
    assert!(SqliteLog::open(folder.file().as_path()).await.is_err());
    assert_eq!(std::fs::read_to_string(folder.file()).unwrap(), text);
    assert!(SqliteLog::open(folder.0.path().join("nowhere/log.db").as_path()).await.is_err());
}

/// A full disk: not done, nothing lost, reads go on, and it works again when there is space.
#[tokio::test]
async fn a_full_disk_is_not_done() {
    let folder = Folder::new();
    let log = open(&folder.file()).await;
    commit(&log, vec![Draft::new(0).new_key(key_row(1)), Draft::new(1).new_key(key_row(2))]).await;
    log.limit_pages(Some(120)).await.unwrap();
    let mut done = 2;
    let refused = loop {
        let batch = next_batch(&log, drafts(done, 20)).await;
        match log.append(&batch).await {
            Ok(appended) => assert_eq!(appended, Appended::Committed),
            Err(AppendError::NotDone(error)) => {
                assert!(error.to_string().contains("full"), "{error}");
                break batch;
            }
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        }
        done += 20;
        assert!(done < 10_000, "the limit does not hold");
    };
    assert!(done > 40, "room for a few batches first");
    for _ in 0..5 {
        assert!(matches!(log.append(&refused).await, Err(AppendError::NotDone(_))));
    }
    assert!(!log.resolve(&refused).await.unwrap());
    assert_eq!(check_log(&log).await.len() as u128, done);
    assert_eq!(log.data_keys(&[key(1)]).await.unwrap(), [Some(key_row(1))]);

    log.limit_pages(None).await.unwrap();
    assert_eq!(log.append(&refused).await.unwrap(), Appended::Committed, "the very same batch");
    assert_eq!(check_log(&log).await.len() as u128, done + 20);
}

/// As if the machine had lost its power: the files, copied while appends go on, are a log that holds at least what was
/// acknowledged before copying began. Without checkpoints of the write-ahead log (two files cannot be copied in one
/// moment), so that the copy of it ends where it happens to, often within a frame.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_taken_in_full_flight_is_a_whole_log() {
    let folder = Folder::new();
    let options = SqliteLogOptions { checkpoint_pages: 0, ..SqliteLogOptions::new(folder.file()) };
    let log = Arc::new(SqliteLog::open(options).await.unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (log, stop) = (Arc::clone(&log), Arc::clone(&stop));
        async move {
            let mut done = 0;
            while !stop.load(Ordering::Relaxed) {
                commit(&*log, drafts(done, 7)).await;
                done += 7;
            }
        }
    });
    for copy in 0..4 {
        let acknowledged = loop {
            let size = log.head().await.unwrap().size();
            if size.0 > 200 * (copy + 1) {
                break size;
            }
            assert!(!writing.is_finished(), "the writer failed");
            tokio::task::yield_now().await;
        };
        let to = folder.0.path().join(format!("copy-{copy}.db"));
        for suffix in ["", "-wal"] {
            // By another process: closing the file in this one would drop SQLite's locks.
            let (from, to) = (folder.file(), &to);
            let copied = Command::new("cp")
                .arg(format!("{}{suffix}", from.display()))
                .arg(format!("{}{suffix}", to.display()))
                .status();
            assert!(copied.unwrap().success());
        }
        let copied = open(&to).await;
        assert!(check_log(&copied).await.len() as u64 >= acknowledged.0);
        commit(&copied, drafts(1_000_000, 3)).await;
    }
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    check_log(&*log).await;
}

/// Names the file to [`the_process_that_is_killed`].
const KILLED: &str = "AUDIT_LOG_SQLITE_KILLED";

/// Not a test: what [`kill_minus_nine_loses_nothing_acknowledged`] starts and kills. Says the size after each append.
#[tokio::test]
#[expect(clippy::print_stdout, reason = "its standard output is what the test reads")]
#[ignore = "runs as a child of kill_minus_nine_loses_nothing_acknowledged"]
async fn the_process_that_is_killed() {
    let Some(file) = std::env::var_os(KILLED) else { return };
    // Checkpoints of the write-ahead log often, so that some are cut short.
    let options = SqliteLogOptions { checkpoint_pages: 20, ..SqliteLogOptions::new(file) };
    let log = SqliteLog::open(options).await.unwrap();
    loop {
        let first = log.head().await.unwrap().size().0;
        let batch = commit(&log, drafts(first.into(), 9)).await;
        println!("\nacknowledged {}", batch.head.size());
    }
}

#[tokio::test]
async fn kill_minus_nine_loses_nothing_acknowledged() {
    let folder = Folder::new();
    let mut entries = 0;
    for _ in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "the_process_that_is_killed"])
            .env(KILLED, folder.file())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut acknowledged = 0;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        for size in lines.filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<usize>().ok()) {
            acknowledged = size;
            if size > entries + 150 {
                // The lines after this one are those of appends that were answered before it died.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acknowledged > entries + 150, "it did not get that far");
        let log = open(&folder.file()).await;
        entries = check_log(&log).await.len();
        assert!(entries >= acknowledged, "{entries} entries of {acknowledged}");
    }
}

/// An append that its caller gave up on is whole or not there, and the next one is not in its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_is_dropped_half_way_is_whole_or_not_there() {
    let folder = Folder::new();
    let log = open(&folder.file()).await;
    for round in 0..60_u64 {
        let batch = next_batch(&log, drafts(u128::from(round) * 10, 3)).await;
        let limit = std::time::Duration::from_micros(round * 40);
        let answered = tokio::time::timeout(limit, log.append(&batch)).await;
        let there = log.resolve(&batch).await.unwrap();
        if let Ok(answered) = answered {
            assert_eq!(answered.unwrap(), Appended::Committed);
            assert!(there);
        }
        let size = batch.expected.0 + if there { 3 } else { 0 };
        assert_eq!(log.head().await.unwrap().size(), TreeSize(size), "resolve was not the last word");
    }
    commit(&log, drafts(100_000, 3)).await;
    check_log(&log).await;
}

#[tokio::test]
async fn triggers_refuse_to_change_what_is_written() {
    let folder = Folder::new();
    let log = open(&folder.file()).await;
    for first in 0..3 {
        commit(&log, drafts(first * 100, 100)).await;
    }
    let mut raw = raw(&folder.file()).await;
    let statements = [
        "UPDATE batch SET leaves = x'00'",
        "UPDATE batch SET first = first + 1000",
        "UPDATE batch SET checkpoint = '' WHERE first = 100",
        "DELETE FROM batch",
        "DELETE FROM batch WHERE first = 200",
        "INSERT OR REPLACE INTO batch VALUES (100, 100, x'00', '')",
        "INSERT INTO batch VALUES (1000, 100, x'00', '')",
        "UPDATE sealed_batch SET parts = x''",
        "DELETE FROM sealed_batch WHERE first = 0",
        "INSERT OR REPLACE INTO sealed_batch VALUES (100, x'')",
        "UPDATE leaf_hashes SET hashes = zeroblob(3200)",
        "DELETE FROM leaf_hashes WHERE first = 0",
        "INSERT OR REPLACE INTO leaf_hashes VALUES (0, zeroblob(3200))",
        "UPDATE tree_node SET hash = zeroblob(32)",
        "DELETE FROM tree_node",
        "INSERT OR REPLACE INTO tree_node VALUES (8, 0, zeroblob(32))",
        "UPDATE session_entry SET leaf_index = 0",
        "UPDATE session_entry SET version = 9",
        "DELETE FROM session_entry",
        "INSERT OR REPLACE INTO session_entry SELECT session_id, 1, 5000 FROM session_entry",
        "INSERT INTO session_entry SELECT session_id, 2, 5 FROM session_entry",
        "UPDATE log_head SET size = 100",
        "UPDATE log_head SET time_us = 0",
        "DELETE FROM log_head",
        "INSERT OR REPLACE INTO log_head VALUES (1, 0, 0, x'', NULL)",
    ];
    let before = check_log(&log).await;
    for statement in statements {
        let error = sqlx::query(statement).execute(&mut raw).await.expect_err(statement);
        assert!(error.to_string().contains("the log "), "{statement}: {error}");
    }
    assert_eq!(check_log(&log).await, before);

    // Retention may drop sealed parts, if it says of which batch, and put nothing longer in their place: the log proves itself without them.
    sqlx::query("INSERT INTO pruning VALUES (0)").execute(&mut raw).await.unwrap();
    for statement in [
        "DELETE FROM sealed_batch WHERE first = 100",
        "UPDATE sealed_batch SET parts = zeroblob(length(parts)) WHERE first = 0",
    ] {
        let error = sqlx::query(statement).execute(&mut raw).await.expect_err(statement);
        assert!(error.to_string().contains("the log "), "{statement}: {error}");
    }
    sqlx::query("DELETE FROM sealed_batch WHERE first = 0").execute(&mut raw).await.unwrap();
    let pruned = check_log(&log).await;
    assert!(pruned[..100].iter().all(|entry| entry.sealed.is_none()));
    assert_eq!(pruned[100..], before[100..]);
}

#[tokio::test]
async fn a_stored_batch_that_was_tampered_with_is_corrupt() {
    let folder = Folder::new();
    let log = open(&folder.file()).await;
    commit(&log, drafts(0, 5)).await;
    let mut raw = raw(&folder.file()).await;
    for statement in ["DROP TRIGGER batch_no_update", "UPDATE batch SET leaves = substr(leaves, 1, length(leaves) - 1)"]
    {
        sqlx::query(statement).execute(&mut raw).await.unwrap();
    }
    assert!(matches!(log.batches(LeafIndex(0), 9).await, Err(audit_log::ReadError::Corrupt(_))));
    assert!(matches!(log.entries(&[LeafIndex(1)]).await, Err(audit_log::ReadError::Corrupt(_))));
}

/// Four processes that start on one new file at the same moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_file_may_be_opened_by_several_at_once() {
    for _ in 0..5 {
        let folder = Folder::new();
        let file = folder.file();
        let opened: Vec<_> = (0..4)
            .map(|_| {
                let file = file.clone();
                tokio::spawn(async move { SqliteLog::open(file.as_path()).await })
            })
            .collect();
        let mut logs = Vec::new();
        for opened in opened {
            logs.push(opened.await.unwrap().unwrap());
        }
        for (log, number) in logs.iter().zip(0..) {
            commit(log, vec![Draft::new(number).at(at(1))]).await;
        }
        assert_eq!(check_log(&logs[0]).await.len(), 4);
    }
}

#[tokio::test]
async fn cursors_keep_their_contract_and_survive() {
    let folder = Folder::new();
    let log = open(&folder.file()).await;
    audit_log::check_cursors(&log).await;
    log.close().await;
    let again = open(&folder.file()).await;
    let claimed = again.claim("a", "three", LeafIndex(0), std::time::Duration::from_secs(1)).await.unwrap();
    assert_eq!(claimed, Claimed::Yes(LeafIndex(9)));
}
