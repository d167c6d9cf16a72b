//! Turns at the head: who gets it and when, what becomes of a holder that stands still, goes away or is cut off, and what it costs.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use audit_log::conformance::{Draft, check_log, check_signatures, commit, next_batch, sequencer, session};
use audit_log::{
    AppendError, Appended, Batch, CommitSink, Committed, GroupCommit, GroupCommitConfig, LogHead, LogReader, LogWriter,
    NotDone, Turn,
};
use audit_log_postgres::{PostgresConfig, PostgresLog};
use parking_lot::Mutex;
use session_model::{EntryId, Leaf, TreeSize};
use sqlx::AssertSqlSafe;
use tokio::time::Instant;

use crate::crashes::{drafts, resolved};
use crate::line::{LATE, LOSE_ANSWERS, LOSE_REQUESTS, Line, PASS, SILENT};
use crate::support::Database;

/// Half a second until a holder is put out, and as much again for a machine that is busy.
const SOON: Duration = Duration::from_secs(1);

async fn take(log: &PostgresLog) -> Box<dyn Turn + '_> {
    log.turn().await.unwrap().expect("this schema has turns")
}

fn batch_in(turn: &dyn Turn, drafts: Vec<Draft>) -> Batch {
    sequencer().batch(turn.head(), drafts.into_iter().map(Draft::proposed).collect()).unwrap()
}

/// Appends beside somebody who holds the head; answers how long that took.
async fn append_beside(log: &PostgresLog, number: u128) -> Duration {
    let batch = next_batch(log, drafts(number, 1)).await;
    let began = Instant::now();
    assert_eq!(log.append(&batch).await.unwrap(), Appended::Committed);
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_is_had_in_the_order_it_was_asked_for() {
    let database = Database::new().await;
    let order: Arc<Mutex<Vec<u32>>> = Arc::default();
    let mut superuser = database.connect(&database.superuser()).await;
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'counterfoil.turn'::regclass";
    // Somebody whom no time is set.
    let mut holder = database.connect(&database.superuser()).await;
    sqlx::raw_sql("BEGIN; LOCK TABLE counterfoil.turn").execute(&mut holder).await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..6 {
        let (log, order) = (database.open().await, Arc::clone(&order));
        tasks.push(tokio::spawn(async move {
            let mut turn = take(&log).await;
            order.lock().push(number);
            let batch = batch_in(&*turn, drafts(u128::from(number), 1));
            assert_eq!(turn.append(&batch).await.unwrap(), Appended::Committed);
        }));
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut superuser).await.unwrap() <= i64::from(number) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.lock(), [0, 1, 2, 3, 4, 5]);
}

/// As a process does that is paused, or a virtual machine that is moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_stands_still_is_put_out() {
    let database = Database::new().await;
    let (log, other) = (database.open().await, database.open().await);
    commit(&log, drafts(0, 1)).await;
    let mut turn = take(&log).await;
    let batch = batch_in(&*turn, drafts(1, 1));
    let took = append_beside(&other, 2).await;
    assert!(took < SOON, "held up for {took:?}");
    assert!(took > Duration::from_millis(300), "he had not the time he is given: {took:?}");
    let failure = turn.append(&batch).await;
    assert!(matches!(failure, Err(AppendError::NotDone(_))), "{failure:?}");
    drop(turn);
    assert!(!resolved(&log, &batch).await);
    // He is back, and gets his turn as before.
    let mut turn = take(&log).await;
    let batch = batch_in(&*turn, drafts(3, 1));
    assert_eq!(turn.append(&batch).await.unwrap(), Appended::Committed);
    assert_eq!(check_log(&log).await.len(), 3);
}

/// A process that ends closes its connections, whatever it ended of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_goes_away_holds_up_nobody() {
    let database = Database::new().await;
    let (log, other) = (database.open().await, database.open().await);
    commit(&other, drafts(0, 1)).await;
    let mut quickest = Duration::MAX;
    for number in 1..4 {
        drop(take(&log).await);
        quickest = quickest.min(append_beside(&other, number).await);
    }
    assert!(quickest < Duration::from_millis(250), "held up for {quickest:?}");
}

/// Neither side hears of the other any more, and neither is told that it is so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_cut_off_is_put_out() {
    let database = Database::new().await;
    let (line, config) = Line::to(&database).await;
    let config = PostgresConfig { statement_timeout: Duration::from_millis(700), ..config };
    let (log, other) = (PostgresLog::connect(config).await.unwrap(), database.open().await);
    commit(&log, drafts(0, 1)).await;
    let mut turn = take(&log).await;
    let batch = batch_in(&*turn, drafts(1, 1));
    line.set(SILENT);
    let (failure, took) = tokio::join!(turn.append(&batch), append_beside(&other, 2));
    assert!(took < SOON, "held up for {took:?}");
    assert!(matches!(failure, Err(AppendError::NotDone(_))), "no commit was sent: {failure:?}");
    line.set(PASS);
    assert!(!resolved(&log, &batch).await);
    assert_eq!(check_log(&other).await.len(), 2);
}

/// The commit is the one message of a turn after which nobody knows, and then the log does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_lost_is_resolved_rightly() {
    let database = Database::new().await;
    let (line, config) = Line::to(&database).await;
    let config = PostgresConfig { statement_timeout: Duration::from_millis(700), ..config };
    let (log, other) = (PostgresLog::connect(config).await.unwrap(), database.open().await);
    commit(&log, drafts(0, 1)).await;
    let mut size = 1;
    for (mode, done) in [(LOSE_REQUESTS, false), (LOSE_ANSWERS, true), (SILENT, false)] {
        let mut turn = take(&log).await;
        let batch = batch_in(&*turn, drafts(100 * u128::from(mode), 2));
        line.set_at_commit(mode);
        let failure = turn.append(&batch).await;
        drop(turn);
        assert!(matches!(failure, Err(AppendError::Unknown(_))), "mode {mode}: {failure:?}");
        line.set(PASS);
        assert_eq!(resolved(&log, &batch).await, done, "mode {mode}");
        size += if done { 2 } else { 0 };
        assert_eq!(other.head().await.unwrap().size(), TreeSize(size), "mode {mode}: the answer is not what is there");
        // The log goes on, for both.
        append_beside(&other, 100 * u128::from(mode) + 10).await;
        append_beside(&log, 100 * u128::from(mode) + 20).await;
        size += 2;
    }
    check_log(&other).await;
}

/// It stood still between the append and its commit: the server says so, and that is certain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_comes_late_is_known_not_to_be_done() {
    let database = Database::new().await;
    let (line, config) = Line::to(&database).await;
    let (log, other) = (PostgresLog::connect(config).await.unwrap(), database.open().await);
    commit(&log, drafts(0, 1)).await;
    let mut turn = take(&log).await;
    let batch = batch_in(&*turn, drafts(1, 1));
    line.set_at_commit(LATE);
    let (failure, took) = tokio::join!(turn.append(&batch), append_beside(&other, 2));
    assert!(took < SOON, "held up for {took:?}");
    assert!(matches!(failure, Err(AppendError::NotDone(_))), "{failure:?}");
    line.set(PASS);
    assert!(!resolved(&log, &batch).await);
    assert_eq!(check_log(&other).await.len(), 2);
}

/// Nobody waits for ever for a turn either, and one that broke while it was idle is not noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_a_turn_has_an_end() {
    let database = Database::new().await;
    let config = PostgresConfig { statement_timeout: Duration::from_millis(300), ..database.config() };
    let log = PostgresLog::connect(config).await.unwrap();
    commit(&log, drafts(0, 1)).await;
    let mut holder = database.connect(&database.superuser()).await;
    sqlx::raw_sql("BEGIN; SELECT FROM counterfoil.head_lock FOR UPDATE").execute(&mut holder).await.unwrap();
    assert!(log.turn().await.is_err(), "the server says so");
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    take(&log).await.end().await;
    let killed =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}_writer'", database.name);
    database.run(&killed).await;
    let mut turn = take(&log).await;
    let batch = batch_in(&*turn, drafts(1, 1));
    assert_eq!(turn.append(&batch).await.unwrap(), Appended::Committed);
}

/// What a writer was answered.
#[derive(Default)]
struct Told {
    committed: Mutex<Vec<(usize, EntryId)>>,
    not_done: AtomicU64,
    answered: AtomicUsize,
}

impl CommitSink for Told {
    type Ticket = usize;

    async fn committed(&self, entries: Vec<Committed<usize>>) {
        self.answered.fetch_add(entries.len(), Ordering::SeqCst);
        self.committed.lock().extend(entries.iter().map(|entry| (entry.ticket, entry.leaf.entry_id)));
    }

    fn not_done(&self, _ticket: usize, _why: NotDone) {
        self.answered.fetch_add(1, Ordering::SeqCst);
        self.not_done.fetch_add(1, Ordering::SeqCst);
    }

    fn head(&self, _head: &LogHead) {}
}

/// A process that appends without end: a few changes wait at any time.
async fn write(log: PostgresLog, writer: u128, changes: usize) -> (Arc<Told>, u64, u64) {
    let told: Arc<Told> = Arc::default();
    let group = GroupCommit::start(Arc::new(log), sequencer(), Arc::clone(&told), GroupCommitConfig::default());
    for number in 0..changes {
        let id = writer * 1_000_000 + number as u128;
        let _withdraw = group.submit(Draft::new(id).version(session(id), 1).proposed(), number).unwrap();
        while number - told.answered.load(Ordering::SeqCst).min(number) > 8 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    group.close().await;
    (told, group.lost(), group.turns())
}

/// So many processes append so many changes each. Answers what was lost and how many turns there were, of each.
async fn race(database: &Database, writers: u128, changes: usize) -> Vec<(u64, u64)> {
    let mut tasks = Vec::new();
    for writer in 1..=writers {
        tasks.push(tokio::spawn(write(database.open().await, writer, changes)));
    }
    let mut all = HashSet::new();
    let mut rivalry = Vec::new();
    for task in tasks {
        let (told, lost, turns) = task.await.unwrap();
        assert_eq!(told.not_done.load(Ordering::SeqCst), 0);
        all.extend(told.committed.lock().iter().map(|(_, id)| *id));
        rivalry.push((lost, turns));
    }
    assert_eq!(all.len(), writers as usize * changes);
    let log = database.open().await;
    let entries = check_log(&log).await;
    check_signatures(&log).await;
    let found: HashSet<_> = entries.iter().map(|entry| Leaf::decode(&entry.leaf).unwrap().entry_id).collect();
    assert_eq!((entries.len(), &found), (all.len(), &all));
    rivalry
}

/// Three processes that are never done: each takes turns, and next to nothing is made twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rivals_take_turns() {
    let database = Database::new().await;
    for (lost, turns) in race(&database, 3, 300).await {
        assert!(turns > 10, "{turns} turns: they did not meet");
        assert!(lost <= turns / 4, "{lost} lost of {turns}");
    }
}

/// Who has the log to himself never asks for a turn, and asks the server once for each batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_without_rivals_makes_one_round_trip() {
    let database = Database::new().await;
    let (line, config) = Line::to(&database).await;
    let log = Arc::new(PostgresLog::connect(config).await.unwrap());
    let told: Arc<Told> = Arc::default();
    let group = GroupCommit::start(Arc::clone(&log) as _, sequencer(), Arc::clone(&told), GroupCommitConfig::default());
    let append = async |number: usize| {
        let _withdraw = group.submit(Draft::new(number as u128).proposed(), number).unwrap();
        while told.answered.load(Ordering::SeqCst) <= number {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    // The first reads the head, and makes the connection.
    append(0).await;
    let before = line.requests.load(Ordering::SeqCst);
    for number in 1..=20 {
        append(number).await;
    }
    assert_eq!(line.requests.load(Ordering::SeqCst) - before, 20);

    // Beaten once, it takes eight turns (BEGIN, append, COMMIT), and then goes on as before.
    append_beside(&database.open().await, 1_000).await;
    let before = line.requests.load(Ordering::SeqCst);
    for number in 21..=40 {
        append(number).await;
    }
    assert_eq!((group.lost(), group.turns()), (1, 8));
    assert_eq!(line.requests.load(Ordering::SeqCst) - before, 1 + 3 * 8 + 12);
    group.close().await;
}

/// The server ends processes of writers that take turns, at any moment. Whatever was acknowledged is there, once, and what was not done is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_rivals_lose_and_double_nothing() {
    const CHANGES: usize = 200;
    let database = Database::new().await;
    database
        .run(&format!("CREATE ROLE {}_victim LOGIN PASSWORD 'secret' IN ROLE counterfoil_writer", database.name))
        .await;
    let config = PostgresConfig { url: database.url("victim"), ..database.config() };
    let mut writers = Vec::new();
    for writer in 1..=3 {
        writers.push(tokio::spawn(write(PostgresLog::connect(config.clone()).await.unwrap(), writer, CHANGES)));
    }
    let done = Arc::new(AtomicBool::new(false));
    let killer = {
        let (mut superuser, done) = (database.connect(&database.superuser()).await, Arc::clone(&done));
        // Those that append or hold the head, one at a time, so that the others meet what it leaves behind.
        let kill = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
                 WHERE usename = '{}_victim' AND query ~ 'append|take_head|COMMIT' ORDER BY random() LIMIT 1) AS a",
            database.name
        );
        tokio::spawn(async move {
            let mut killed = 0;
            while !done.load(Ordering::Relaxed) {
                killed +=
                    sqlx::query_scalar::<_, i64>(AssertSqlSafe(kill.clone())).fetch_one(&mut superuser).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50 + killed as u64 % 17)).await;
            }
            killed
        })
    };
    let (mut all, mut not_done, mut turns) = (HashSet::new(), 0, 0);
    for writer in writers {
        let (told, _, taken) = writer.await.unwrap();
        turns += taken;
        not_done += told.not_done.load(Ordering::SeqCst);
        assert_eq!(told.answered.load(Ordering::SeqCst), CHANGES);
        all.extend(told.committed.lock().iter().map(|(_, id)| *id));
    }
    done.store(true, Ordering::Relaxed);
    assert!(killer.await.unwrap() > 0 && turns > 0, "they were left in peace");
    let log = database.open().await;
    let entries = check_log(&log).await;
    let found: HashSet<_> = entries.iter().map(|entry| Leaf::decode(&entry.leaf).unwrap().entry_id).collect();
    assert_eq!((entries.len(), &found), (all.len(), &all));
    assert_eq!(all.len() as u64 + not_done, 3 * CHANGES as u64);
}
