//! Where the log ends: in its last batch, whoever wrote it, and at no greater cost while somebody reads for long.

use std::time::Duration;

use audit_log::conformance::{
    Draft, check_log, check_signatures, commit, key, key_row, next_batch, refuse, sequencer, session,
};
use audit_log::{Appended, Batch, LogReader, LogWriter, Refusal, encode_leaves};
use audit_log_postgres::migrate;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::Instant;

use crate::support::Database;

/// The last migration before the head moved into the last batch.
const BEFORE: i64 = 40;

/// As a program from before appends, with as much of it as a batch without keys, seats and answers needs.
async fn append_as_before(connection: &mut PgConnection, batch: &Batch) -> String {
    let versions: Vec<_> = batch.entries.iter().map(|entry| entry.claims.session.unwrap()).collect();
    let size = |number: u64| i64::try_from(number).unwrap();
    let none = "'{}', ".repeat(30);
    let sql = format!(
        "SELECT status FROM counterfoil.append(0, $1, $2, $3, $4, $5, $6, NULL, $7, '{{}}', '{{}}', '{{}}',
             ARRAY(SELECT generate_series(0, cardinality($8) - 1)), $8, $9, {none} NULL)"
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(size(batch.expected.0))
        .bind(size(batch.head.size().0))
        .bind(batch.head.time.as_micros())
        .bind(batch.head.frontier.to_bytes())
        .bind(&batch.checkpoint)
        .bind(encode_leaves(batch.entries.iter().map(|entry| entry.bytes.as_slice())))
        .bind(batch.entries.iter().flat_map(|entry| entry.hash.0).collect::<Vec<u8>>())
        .bind(versions.iter().map(|(id, _)| id.uuid()).collect::<Vec<_>>())
        .bind(versions.iter().map(|(_, version)| size(version.0)).collect::<Vec<_>>())
        .fetch_one(connection)
        .await
        .unwrap()
}

/// A database as it was before.
async fn before() -> (Database, PgConnection) {
    let database = Database::empty().await;
    let migrator: Migrator = sqlx::migrate!("../../migrations/postgres");
    let steps = migrator.iter().filter(|step| step.version <= BEFORE).cloned().collect();
    let mut connection = database.connect(&database.superuser()).await;
    Migrator::with_migrations(steps).run(&mut connection).await.unwrap();
    (database, connection)
}

fn versions(from: u128, count: u128) -> Vec<Draft> {
    (from..from + count).map(|number| Draft::new(number).version(session(number), 1)).collect()
}

/// A log as it was before is opened, read and continued; so is an empty one (every other test).
#[tokio::test]
async fn a_log_from_before_goes_on() {
    // To know what an older program would have written, without one: a log of today's says which batches follow on one another.
    let ((database, mut connection), model) = (before().await, Database::new().await);
    let like = model.open().await;
    for round in 0..3 {
        let batch = commit(&like, versions(round * 10, 4)).await;
        assert_eq!(append_as_before(&mut connection, &batch).await, "committed");
    }

    migrate(&database.superuser()).await.unwrap();
    let log = database.open_as_superuser().await;
    assert_eq!(log.head().await.unwrap(), like.head().await.unwrap());
    assert_eq!(check_log(&log).await.len(), 12);
    refuse(&log, versions(0, 1), &[(0, Refusal::Version)]).await;
    commit(&log, versions(100, 3)).await;
    let turn = log.turn().await.unwrap().unwrap();
    assert_eq!(*turn.head(), log.head().await.unwrap());
    turn.end().await;
    assert_eq!(check_log(&log).await.len(), 15);
    check_signatures(&log).await;
}

/// Whoever appends after a migration that waits for a reader would wait with it: it gives up instead, and leaves everything as it was.
#[tokio::test]
async fn a_migration_does_not_wait_for_a_long_reader() {
    let (database, mut connection) = before().await;
    let mut backup = database.connect(&database.superuser()).await;
    sqlx::raw_sql("BEGIN; SELECT FROM counterfoil.leaf_hashes").execute(&mut backup).await.unwrap();
    let began = Instant::now();
    let failure = migrate(&database.superuser()).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(format!("{failure:?}").contains("lock timeout"), "{failure:?}");
    let schema = "SELECT schema_version FROM counterfoil.settings";
    assert_eq!(sqlx::query_scalar::<_, i32>(schema).fetch_one(&mut connection).await.unwrap(), 2);

    sqlx::raw_sql("COMMIT").execute(&mut backup).await.unwrap();
    migrate(&database.superuser()).await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, i32>(schema).fetch_one(&mut connection).await.unwrap(), 3);
}

/// While an upgrade rolls, programs of both releases append: each finds the end where the other left it.
#[tokio::test]
async fn programs_from_before_append_beside_us() {
    let database = Database::new().await;
    let log = database.open().await;
    let mut older = database.connect(&database.url("writer")).await;
    for round in 0..3 {
        let batch = next_batch(&log, versions(round * 10, 2)).await;
        assert_eq!(append_as_before(&mut older, &batch).await, "committed");
        assert_eq!(log.append(&batch).await.unwrap(), Appended::Moved(batch.head.clone()));
        assert_eq!(append_as_before(&mut older, &batch).await, "moved");
        commit(&log, versions(round * 10 + 5, 2)).await;
    }
    let taken = next_batch(&log, versions(5, 1)).await;
    assert_eq!(append_as_before(&mut older, &taken).await, "refused");
    assert_eq!(check_log(&log).await.len(), 12);
    check_signatures(&log).await;
}

/// A backup sees the log as it was when it began, for as long as it takes. What an append looks at has no more versions for that.
#[tokio::test]
async fn a_long_reader_leaves_nothing_behind_that_appends_must_pass() {
    let database = Database::new().await;
    let log = database.open().await;
    let mut backup = database.connect(&database.superuser()).await;
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM counterfoil.settings")
        .execute(&mut backup)
        .await
        .unwrap();
    for number in 0..200 {
        commit(&log, versions(number, 1)).await;
    }
    let pages = "SELECT pg_relation_size('counterfoil.head_lock') / current_setting('block_size')::int";
    let pages: i64 = sqlx::query_scalar(pages).fetch_one(&mut backup).await.unwrap();
    assert_eq!(pages, 1);
}

/// A claim that something is new is weighed by an index: what that refuses ends the transaction, and the turn with it. The rest is appended all the same, in another.
#[tokio::test]
async fn what_an_index_refuses_within_a_turn_is_told_and_the_turn_goes_on() {
    let database = Database::new().await;
    let log = database.open().await;
    commit(&log, vec![Draft::new(0).version(session(0), 1).sealed(key(0), [1]).opens(key(0)).new_key(key_row(0))])
        .await;
    let mut turn = log.turn().await.unwrap().unwrap();
    let drafts = [
        Draft::new(1).version(session(0), 1),
        Draft::new(2).version(session(2), 1).new_key(key_row(0)),
        Draft::new(3).version(session(3), 1),
    ];
    let batch = sequencer().batch(turn.head(), drafts.clone().map(Draft::proposed).to_vec()).unwrap();
    let Appended::Refused(refused) = turn.append(&batch).await.unwrap() else { panic!("claims do not hold") };
    assert_eq!(refused.iter().map(|refused| refused.at).collect::<Vec<_>>(), [0, 1]);
    let [.., last] = drafts;
    let batch = sequencer().batch(turn.head(), vec![last.proposed()]).unwrap();
    assert_eq!(turn.append(&batch).await.unwrap(), Appended::Committed);
    assert_eq!(check_log(&log).await.len(), 2);
}

/// The function weighs what a program that has gone mad would not: versions that leave a gap, a time that goes back.
#[tokio::test]
async fn a_time_that_goes_back_is_refused() {
    let database = Database::new().await;
    let log = database.open().await;
    commit(&log, versions(0, 1)).await;
    let mut batch = next_batch(&log, versions(1, 1)).await;
    batch.head.time = session_model::Timestamp::from_micros(0);
    assert!(log.append(&batch).await.is_err());
    assert_eq!(check_log(&log).await.len(), 1);
}
