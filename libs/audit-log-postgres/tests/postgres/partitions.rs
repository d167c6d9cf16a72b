//! Room ahead.

use audit_log::conformance::{Draft, all_batches, check_log, commit, session};
use audit_log::{LogReader, LogWriter};
use session_model::{LeafIndex, SessionId, Timestamp, TreeSize, Version};
use uuid::Uuid;

use crate::support::Database;

/// A log that is given room in ranges of 10 entries.
async fn narrow() -> Database {
    let database = Database::new().await;
    database
        .run(
            "DO $$ DECLARE made regclass; BEGIN
                 FOR made IN SELECT inhrelid::regclass FROM pg_inherits
                     WHERE inhparent IN ('counterfoil.batch'::regclass, 'counterfoil.sealed_batch'::regclass)
                 LOOP EXECUTE format('DROP TABLE %s', made); END LOOP;
             END $$;
             UPDATE counterfoil.settings SET entries_a_partition = 10, leaves_until = 0",
        )
        .await;
    database
}

async fn bounds(database: &Database, parent: &str) -> Vec<String> {
    let mut superuser = database.connect(&database.superuser()).await;
    sqlx::query_scalar(
        "SELECT pg_get_expr(relpartbound, pg_class.oid) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
         WHERE inhparent = $1::regclass ORDER BY pg_class.oid",
    )
    .bind(format!("counterfoil.{parent}"))
    .fetch_all(&mut superuser)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_log_grows_from_partition_to_partition() {
    let database = narrow().await;
    let log = database.open().await;
    let mut number = 0;
    // 7 entries at a time: batches begin at every place of a range, and most ranges end within one.
    for round in 0..30 {
        let size = log.head().await.unwrap().size();
        log.prepare(size, Timestamp::from_micros(0)).await.unwrap();
        let drafts = (0..7).map(|i| Draft::new(number + i).version(session(number + i), 1)).collect();
        commit(&log, drafts).await;
        number += 7;
        let made = bounds(&database, "batch").await.len() as u64;
        assert!(made * 10 > size.0 + 10, "round {round}: {made} partitions are too few for {size}");
        assert!(made * 10 <= size.0 + 30, "round {round}: {made} partitions are too many for {size}");
        assert_eq!(bounds(&database, "sealed_batch").await.len() as u64, made);
    }
    assert_eq!(check_log(&log).await.len(), 210);
    // Streamed in small pieces, across all of them.
    let mut next = LeafIndex(0);
    let mut streamed = Vec::new();
    loop {
        let piece = log.batches(next, 20).await.unwrap();
        let Some(last) = piece.last() else { break };
        next = LeafIndex(last.tree_size().0);
        streamed.extend(piece);
    }
    assert_eq!(streamed, all_batches(&log).await);
    let indices: Vec<LeafIndex> = (0..212).rev().map(LeafIndex).collect();
    let entries = log.entries(&indices).await.unwrap();
    assert_eq!(entries.iter().filter(|entry| entry.is_some()).count(), 210);
    assert!(
        entries.iter().zip(&indices).all(|(entry, index)| entry.as_ref().is_none_or(|entry| entry.index == *index))
    );
}

/// An append that finds no room fails, and is not half done.
#[tokio::test]
async fn an_append_without_room_is_not_done() {
    let database = narrow().await;
    let log = database.open().await;
    log.prepare(TreeSize(0), Timestamp::from_micros(0)).await.unwrap();
    let append = async |number: u128| {
        let drafts = (0..10).map(|i| Draft::new(number + i).version(session(number + i), 1)).collect();
        let batch = audit_log::conformance::next_batch(&log, drafts).await;
        log.append(&batch).await
    };
    for number in [0, 10] {
        let _committed = append(number).await.unwrap();
    }
    assert!(matches!(append(20).await, Err(audit_log::AppendError::NotDone(_))));
    log.prepare(TreeSize(20), Timestamp::from_micros(0)).await.unwrap();
    let _committed = append(20).await.unwrap();
    assert_eq!(check_log(&log).await.len(), 30);
}

/// The size it is called with is not believed, nor is a clock that is far off.
#[tokio::test]
async fn nobody_has_partitions_made_without_end() {
    let database = narrow().await;
    let log = database.open().await;
    log.prepare(TreeSize(1_000_000), Timestamp::from_micros(i64::MAX / 2_000)).await.unwrap();
    assert_eq!(bounds(&database, "batch").await.len(), 2);
    assert!(bounds(&database, "session_entry").await.len() <= 6);
}

#[tokio::test]
async fn months_are_made_ahead_and_leave_no_gap() {
    let database = Database::new().await;
    let log = database.open().await;
    let now: i64 = {
        let mut superuser = database.connect(&database.superuser()).await;
        let now = "SELECT (extract(epoch FROM now()) * 1000)::bigint";
        sqlx::query_scalar(now).fetch_one(&mut superuser).await.unwrap()
    };
    let day = 24 * 3_600 * 1_000;
    // The next month has come, or nearly.
    log.prepare(TreeSize(0), Timestamp::from_micros((now + 31 * day) * 1_000)).await.unwrap();
    let bounds = bounds(&database, "session_entry").await;
    assert!(bounds.len() >= 4 && bounds[0].contains("MINVALUE"), "{bounds:?}");
    for pair in bounds.windows(2) {
        let (end, start) = (pair[0].split(" TO ").nth(1).unwrap(), pair[1].split(" TO ").next().unwrap());
        assert!(start.ends_with(end), "{pair:?}: a gap");
    }
    // Sessions of years ago, of last month, of now, and as far ahead as a clock may reasonably be wrong.
    let id = |ms: i64, number: u128| {
        SessionId::new(Uuid::from_u128(u128::from(ms as u64) << 80 | 7 << 76 | 2 << 62 | number))
    };
    let ids: Vec<SessionId> = [0, now - 31 * day, now, now + 31 * day, now + 59 * day]
        .into_iter()
        .zip(1..)
        .map(|(ms, i)| id(ms, i))
        .collect();
    commit(&log, ids.iter().zip(0..).map(|(id, number)| Draft::new(number).version(*id, 1)).collect()).await;
    commit(&log, ids.iter().zip(10..).map(|(id, number)| Draft::new(number).version(*id, 2)).collect()).await;
    for id in ids {
        assert_eq!(log.session_entries(id, Version::NONE, 10).await.unwrap().len(), 2);
    }
    check_log(&log).await;
}

/// Several processes make room at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_is_made_once() {
    let database = narrow().await;
    let mut logs = Vec::new();
    for _ in 0..4 {
        logs.push(database.open().await);
    }
    let tasks: Vec<_> = logs
        .into_iter()
        .map(|log| tokio::spawn(async move { log.prepare(TreeSize(0), Timestamp::from_micros(0)).await }))
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(bounds(&database, "batch").await.len(), 2);
}
