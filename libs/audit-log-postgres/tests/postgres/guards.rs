//! Nobody but the functions changes anything, and nobody at all changes what is the log: on every table and every partition.

use audit_log::conformance::{Draft, commit, key, key_row, session};
use audit_log::{LogIndex, LogWriter, SessionChange};
use session_model::{Timestamp, TreeSize};
use sqlx::PgConnection;

use crate::support::{Database, attempt, refused};

const INSUFFICIENT_PRIVILEGE: &str = "42501";
const RESTRICT_VIOLATION: &str = "23001";

/// What is the log: its rows are for ever.
const LOG: [&str; 4] = ["batch", "leaf_hashes", "tree_node", "session_entry"];

/// A table, or a partition of one.
#[derive(Debug, sqlx::FromRow)]
struct Table {
    name: String,
    /// The table it is a partition of, or itself.
    root: String,
    column: String,
}

/// Every table and every partition there is, from the catalogue, so that none is forgotten.
async fn tables(connection: &mut PgConnection) -> Vec<Table> {
    let tables: Vec<Table> = sqlx::query_as(
        "SELECT 'counterfoil.' || quote_ident(c.relname) AS name, coalesce(p.relname, c.relname)::text AS root,
                (SELECT quote_ident(a.attname) FROM pg_attribute AS a
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attidentity = '' ORDER BY a.attnum LIMIT 1) AS column
         FROM pg_class AS c LEFT JOIN pg_inherits ON inhrelid = c.oid LEFT JOIN pg_class AS p ON p.oid = inhparent
         WHERE c.relnamespace = 'counterfoil'::regnamespace AND c.relkind IN ('r', 'p')",
    )
    .fetch_all(connection)
    .await
    .unwrap();
    assert!(tables.iter().filter(|table| table.root == "batch").count() > 2, "too few partitions: {tables:?}");
    assert!(tables.iter().filter(|table| table.root == "session_entry").count() > 3, "too few partitions: {tables:?}");
    tables
}

/// A log with something in every table.
async fn filled() -> Database {
    let database = Database::new().await;
    let log = database.open().await;
    let drafts = (0..300).map(|number| {
        let draft = Draft::new(number).version(session(number), 1).sealed(key(number), [1; 40]).opens(key(number));
        draft.new_key(key_row(number))
    });
    commit(&log, drafts.collect()).await;
    let closes = Draft::new(1_000).version(session(1), 2).index(SessionChange::Closed).existing_key(key(1));
    commit(&log, vec![closes]).await;
    log.mark_uses(&[(session(2), Timestamp::from_micros(1))]).await.unwrap();
    log.prepare(TreeSize(301), Timestamp::from_micros(0)).await.unwrap();
    database
}

fn changes(table: &Table) -> [(&'static str, String); 4] {
    let Table { name, column, .. } = table;
    [
        ("INSERT", format!("INSERT INTO {name} DEFAULT VALUES")),
        ("UPDATE", format!("UPDATE {name} SET {column} = {column}")),
        ("DELETE", format!("DELETE FROM {name}")),
        ("TRUNCATE", format!("TRUNCATE {name}")),
    ]
}

#[tokio::test]
async fn the_writer_and_the_auditor_change_nothing_anywhere() {
    let database = filled().await;
    let tables = tables(&mut database.connect(&database.superuser()).await).await;
    for role in ["writer", "auditor"] {
        let mut connection = database.connect(&database.url(role)).await;
        for table in &tables {
            for (_, sql) in changes(table) {
                assert_eq!(refused(&mut connection, &sql).await, INSUFFICIENT_PRIVILEGE, "{role}: {sql}");
            }
        }
        for sql in [
            "SET ROLE counterfoil_owner",
            "CREATE TABLE counterfoil.mine ()",
            "CREATE FUNCTION counterfoil.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "ALTER TABLE counterfoil.batch DISABLE TRIGGER no_change",
            "DROP TABLE counterfoil.batch",
            "SET session_replication_role = replica",
        ] {
            assert_eq!(refused(&mut connection, sql).await, INSUFFICIENT_PRIVILEGE, "{role}: {sql}");
        }
    }
}

#[tokio::test]
async fn the_auditor_reads_the_log_and_calls_nothing() {
    let database = filled().await;
    let mut auditor = database.connect(&database.url("auditor")).await;
    for name in LOG.iter().chain(&["log_head", "sealed_batch", "settings"]) {
        attempt(&mut auditor, &format!("SELECT FROM counterfoil.{name}")).await.unwrap();
    }
    for name in ["data_key", "session_index", "session_use", "kept_answer", "credential"] {
        let sql = format!("SELECT FROM counterfoil.{name}");
        assert_eq!(refused(&mut auditor, &sql).await, INSUFFICIENT_PRIVILEGE, "{sql}");
    }
    let callable: Vec<String> = sqlx::query_scalar(
        "SELECT proname::text FROM pg_proc
         WHERE pronamespace = 'counterfoil'::regnamespace AND has_function_privilege(oid, 'EXECUTE')",
    )
    .fetch_all(&mut auditor)
    .await
    .unwrap();
    assert!(callable.is_empty(), "{callable:?}");
}

#[tokio::test]
async fn the_writer_calls_what_it_needs_and_nothing_else() {
    let database = filled().await;
    let mut writer = database.connect(&database.url("writer")).await;
    let functions: Vec<(String, bool, bool, bool)> = sqlx::query_as(
        "SELECT proname::text, has_function_privilege(oid, 'EXECUTE'), prosecdef,
                'search_path=pg_catalog, pg_temp' = ANY (coalesce(proconfig, '{}'))
         FROM pg_proc WHERE pronamespace = 'counterfoil'::regnamespace ORDER BY proname",
    )
    .fetch_all(&mut writer)
    .await
    .unwrap();
    let callable: Vec<&str> =
        functions.iter().filter(|function| function.1).map(|function| function.0.as_str()).collect();
    let expected = [
        "advance_sink",
        "append",
        "append_batch",
        "claim_nonce",
        "claim_sink",
        "forget_expired",
        "lock_head",
        "mark_uses",
        "prepare",
        "project",
        "prune",
        "release_sink",
        "rewrap",
        "take_head",
    ];
    assert_eq!(callable, expected);
    for (name, callable, definer, fixed_path) in &functions {
        assert_eq!(callable, definer, "{name} runs as its owner if, and only if, the writer may call it");
        assert!(!definer || *fixed_path, "{name} looks names up where its caller likes");
    }
}

/// As a superuser, whom no grant stops, with and without the setting that turns ordinary triggers off.
#[tokio::test]
async fn triggers_stop_superusers_on_every_table_and_partition() {
    let database = filled().await;
    let mut superuser = database.connect(&database.superuser()).await;
    let tables = tables(&mut superuser).await;
    for role in ["origin", "local", "replica"] {
        attempt(&mut superuser, &format!("SET session_replication_role = {role}")).await.unwrap();
        for table in &tables {
            // A row trigger is not asked about a table without rows: the next test is about those.
            let filled: bool =
                sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT EXISTS (SELECT FROM {})", table.name)))
                    .fetch_one(&mut superuser)
                    .await
                    .unwrap();
            for (what, sql) in changes(table) {
                let guarded = match what {
                    "TRUNCATE" => true,
                    // Retention deletes sealed parts; nobody alters one.
                    "UPDATE" => filled && (LOG.contains(&table.root.as_str()) || table.root == "sealed_batch"),
                    "DELETE" => filled && (LOG.contains(&table.root.as_str()) || table.root == "head_lock"),
                    _ => false,
                };
                if guarded {
                    assert_eq!(refused(&mut superuser, &sql).await, RESTRICT_VIOLATION, "{role}: {sql}");
                }
            }
        }
        for change in
            ["size = size + 1", "time_us = time_us - 1", "frontier = 'x'", "checkpoint = 'x'", "fence = fence - 1"]
        {
            let sql = format!("UPDATE counterfoil.head_lock SET {change}");
            assert_eq!(refused(&mut superuser, &sql).await, RESTRICT_VIOLATION, "{role}: {sql}");
        }
        // A parent without its partitions, and several tables at once.
        let cascade = "TRUNCATE counterfoil.kept_answer, counterfoil.batch CASCADE";
        assert_eq!(refused(&mut superuser, cascade).await, RESTRICT_VIOLATION);
    }
}

/// From the catalogue, for the partitions that are empty as yet: everything has its triggers, and all are ENABLE ALWAYS.
#[tokio::test]
async fn every_table_and_partition_has_its_triggers_always() {
    let database = filled().await;
    let mut superuser = database.connect(&database.superuser()).await;
    // Bits of tgtype: row 1, before 2, delete 8, update 16, truncate 32 (src/include/catalog/pg_trigger.h).
    let guards = "SELECT coalesce(bit_or(tgtype & 57), 0)::int, count(*) FILTER (WHERE tgenabled <> 'A')
                  FROM pg_trigger WHERE tgrelid = $1::regclass AND NOT tgisinternal AND tgtype & 2 = 2";
    for table in tables(&mut superuser).await {
        let (events, weak): (i32, i64) =
            sqlx::query_as(guards).bind(&table.name).fetch_one(&mut superuser).await.unwrap();
        assert_eq!(weak, 0, "{}: a trigger is not ENABLE ALWAYS", table.name);
        assert_eq!(events & 32, 32, "{}: no guard against TRUNCATE", table.name);
        if LOG.contains(&table.root.as_str()) {
            assert_eq!(events & 25, 25, "{}: no guard against UPDATE and DELETE", table.name);
        }
    }
}

/// What is kept beside the log is not evidence, and has to change: the functions may, although they run as no more than the owner.
#[tokio::test]
async fn the_functions_still_do_their_work() {
    let database = filled().await;
    let log = database.open().await;
    log.mark_uses(&[(session(1), Timestamp::from_micros(9))]).await.unwrap();
    assert_eq!(log.forget_expired(Timestamp::from_micros(10), 10).await.unwrap(), 0);
    assert_eq!(log.uses(&[session(1), session(2)]).await.unwrap(), [None, Some(Timestamp::from_micros(1))]);
}
