//! The database in the hands of an attacker who is its superuser: everything is read, changed at will, and written back with every
//! hash and every tree node made to match. What he does not have is the key that signs checkpoints, unless a test gives it to him.

use std::path::{Path, PathBuf};

use audit_log::{SealedEntry, decode_leaves, decode_sealed, encode_leaves, encode_sealed};
use merkle_log::{Checkpoint, Frontier, leaf_hash, sign_checkpoint};
use sealing::LogKey;
use session_model::Leaf;
use sqlx::{Connection, PgConnection, SqliteConnection};

/// A commit of the log.
#[derive(Clone)]
pub(crate) struct Commit {
    pub(crate) leaves: Vec<Vec<u8>>,
    pub(crate) sealed: Vec<Option<SealedEntry>>,
    pub(crate) checkpoint: String,
}

/// Where the log is.
#[derive(Clone)]
pub(crate) enum Store {
    Sqlite(PathBuf),
    Postgres(String),
}

type Row = (i64, Vec<u8>, String, Option<Vec<u8>>);

impl Store {
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite:{}", path.display()),
            Self::Postgres(url) => url.clone(),
        }
    }

    /// A copy to attack, named for the attack.
    pub(crate) fn copy(&self, name: &str) -> Self {
        match self {
            Self::Sqlite(path) => {
                let to = path.with_file_name(format!("{name}.db"));
                for end in ["", "-wal", "-shm"] {
                    let beside = |path: &Path| PathBuf::from(format!("{}{end}", path.display()));
                    if beside(path).exists() {
                        std::fs::copy(beside(path), beside(&to)).unwrap();
                    }
                }
                Self::Sqlite(to)
            }
            Self::Postgres(url) => {
                let (server, base) = url.rsplit_once('/').unwrap();
                let copy = format!("{base}_{name}");
                run(async {
                    let mut database = PgConnection::connect(&format!("{server}/postgres")).await.unwrap();
                    let sql = format!("CREATE DATABASE {copy} TEMPLATE {base}");
                    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut database).await.unwrap();
                });
                Self::Postgres(format!("{server}/{copy}"))
            }
        }
    }

    /// Runs SQL as superuser, with every guard taken off. `%` stands for the schema.
    pub(crate) fn sql(&self, sql: &str) {
        run(async {
            match self {
                Self::Sqlite(path) => {
                    let mut database = SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
                    disarm_sqlite(&mut database).await;
                    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.replace('%', ""))).execute(&mut database).await.unwrap();
                    database.close().await.unwrap();
                }
                Self::Postgres(url) => {
                    let mut database = PgConnection::connect(url).await.unwrap();
                    disarm_postgres(&mut database).await;
                    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.replace('%', "counterfoil.")))
                        .execute(&mut database)
                        .await
                        .unwrap();
                    database.close().await.unwrap();
                }
            }
        });
    }

    pub(crate) fn load(&self) -> Vec<Commit> {
        const SQL: &str = "SELECT b.first, b.leaves, b.checkpoint, s.parts FROM %batch AS b LEFT JOIN %sealed_batch AS s ON s.first = b.first ORDER BY b.first";
        let rows: Vec<Row> = run(async {
            match self {
                Self::Sqlite(path) => {
                    let mut database = SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
                    let sql = SQL.replace('%', "");
                    let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&mut database).await.unwrap();
                    database.close().await.unwrap();
                    rows
                }
                Self::Postgres(url) => {
                    let mut database = PgConnection::connect(url).await.unwrap();
                    let sql = SQL.replace('%', "counterfoil.");
                    let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&mut database).await.unwrap();
                    database.close().await.unwrap();
                    rows
                }
            }
        });
        let commit = |(_, leaves, checkpoint, parts): Row| {
            let leaves = decode_leaves(&leaves).unwrap();
            let none = vec![None; leaves.len()];
            Commit { sealed: parts.map_or(none, |parts| decode_sealed(&parts).unwrap()), leaves, checkpoint }
        };
        rows.into_iter().map(commit).collect()
    }

    /// Writes the log anew, all of it consistent with itself. Without a key the checkpoints stay the texts they are.
    pub(crate) fn replace(&self, commits: &[Commit], key: Option<(&str, &LogKey)>) {
        let mut edge = Frontier::empty();
        let (mut nodes, mut rows, mut time, mut checkpoint) = (Vec::new(), Vec::new(), 0, String::new());
        for commit in commits {
            let first = i64::try_from(edge.size().0).unwrap();
            let mut hashes = Vec::new();
            for leaf in &commit.leaves {
                let hash = leaf_hash(leaf);
                edge.push(hash, |node| nodes.push(node));
                hashes.extend(hash.0);
                time = Leaf::decode(leaf).map_or(time, |leaf| leaf.time.as_micros().max(time));
            }
            checkpoint = match key {
                None => commit.checkpoint.clone(),
                Some((origin, key)) => {
                    let head = Checkpoint { origin: origin.to_owned(), size: edge.size(), root: edge.root() };
                    sign_checkpoint(&head, &[key]).unwrap()
                }
            };
            let leaves = encode_leaves(commit.leaves.iter().map(Vec::as_slice));
            let parts = encode_sealed(commit.sealed.iter().map(Option::as_ref));
            rows.push((first, i32::try_from(commit.leaves.len()).unwrap(), leaves, parts, hashes, checkpoint.clone()));
        }
        self.sql("DELETE FROM %leaf_hashes; DELETE FROM %sealed_batch; DELETE FROM %batch; DELETE FROM %tree_node");
        let (size, frontier) = (i64::try_from(edge.size().0).unwrap(), edge.to_bytes());
        let head = (size, time, frontier, checkpoint);
        let nodes: Vec<(i16, i64, Vec<u8>)> = nodes
            .iter()
            .map(|node| (i16::from(node.level), i64::try_from(node.index).unwrap(), node.hash.0.to_vec()))
            .collect();
        run(async {
            match self {
                Self::Sqlite(path) => {
                    let mut database = SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
                    disarm_sqlite(&mut database).await;
                    write_sqlite(&mut database, rows, nodes, head).await;
                    database.close().await.unwrap();
                }
                Self::Postgres(url) => {
                    let mut database = PgConnection::connect(url).await.unwrap();
                    disarm_postgres(&mut database).await;
                    write_postgres(&mut database, rows, nodes, head).await;
                    database.close().await.unwrap();
                }
            }
        });
    }
}

/// A commit as it is stored: first index, count, leaves, sealed parts, hashes, checkpoint.
type Stored = (i64, i32, Vec<u8>, Vec<u8>, Vec<u8>, String);
/// A tree node: level, index, hash.
type StoredNode = (i16, i64, Vec<u8>);
/// Size, time, right edge, checkpoint.
type StoredHead = (i64, i64, Vec<u8>, String);

async fn write_sqlite(database: &mut SqliteConnection, rows: Vec<Stored>, nodes: Vec<StoredNode>, head: StoredHead) {
    let mut transaction = database.begin().await.unwrap();
    for (first, count, leaves, parts, hashes, checkpoint) in rows {
        sqlx::query("INSERT INTO batch (first, count, leaves, checkpoint) VALUES ($1, $2, $3, $4)")
            .bind(first)
            .bind(count)
            .bind(leaves)
            .bind(checkpoint)
            .execute(&mut *transaction)
            .await
            .unwrap();
        sqlx::query("INSERT INTO sealed_batch (first, parts) VALUES ($1, $2)")
            .bind(first)
            .bind(parts)
            .execute(&mut *transaction)
            .await
            .unwrap();
        sqlx::query("INSERT INTO leaf_hashes (first, hashes) VALUES ($1, $2)")
            .bind(first)
            .bind(hashes)
            .execute(&mut *transaction)
            .await
            .unwrap();
    }
    for (level, index, hash) in nodes {
        sqlx::query("INSERT INTO tree_node (level, idx, hash) VALUES ($1, $2, $3)")
            .bind(level)
            .bind(index)
            .bind(hash)
            .execute(&mut *transaction)
            .await
            .unwrap();
    }
    let (size, time, frontier, checkpoint) = head;
    sqlx::query("UPDATE log_head SET size = $1, time_us = $2, frontier = $3, checkpoint = $4")
        .bind(size)
        .bind(time)
        .bind(frontier)
        .bind(checkpoint)
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
}

/// By arrays: a round trip for each of some thousand rows, for each attack, takes minutes on a busy machine.
async fn write_postgres(database: &mut PgConnection, rows: Vec<Stored>, nodes: Vec<StoredNode>, head: StoredHead) {
    let mut transaction = database.begin().await.unwrap();
    let firsts: Vec<i64> = rows.iter().map(|row| row.0).collect();
    let (mut counts, mut leaves, mut parts, mut hashes, mut checkpoints) = (vec![], vec![], vec![], vec![], vec![]);
    for row in rows {
        counts.push(row.1);
        leaves.push(row.2);
        parts.push(row.3);
        hashes.push(row.4);
        checkpoints.push(row.5);
    }
    sqlx::query(
        "INSERT INTO counterfoil.batch (first, count, leaves, checkpoint)
         SELECT * FROM unnest($1::bigint[], $2::int[], $3::bytea[], $4::text[])",
    )
    .bind(&firsts)
    .bind(counts)
    .bind(leaves)
    .bind(checkpoints)
    .execute(&mut *transaction)
    .await
    .unwrap();
    sqlx::query("INSERT INTO counterfoil.sealed_batch (first, parts) SELECT * FROM unnest($1::bigint[], $2::bytea[])")
        .bind(&firsts)
        .bind(parts)
        .execute(&mut *transaction)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO counterfoil.leaf_hashes (first, hashes, count)
         SELECT first, hashes, length(hashes) / 32 FROM unnest($1::bigint[], $2::bytea[]) AS run (first, hashes)",
    )
    .bind(&firsts)
    .bind(hashes)
    .execute(&mut *transaction)
    .await
    .unwrap();
    let levels: Vec<i16> = nodes.iter().map(|node| node.0).collect();
    let indices: Vec<i64> = nodes.iter().map(|node| node.1).collect();
    let of_nodes: Vec<Vec<u8>> = nodes.into_iter().map(|node| node.2).collect();
    sqlx::query(
        "INSERT INTO counterfoil.tree_node (level, idx, hash)
         SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::bytea[])",
    )
    .bind(levels)
    .bind(indices)
    .bind(of_nodes)
    .execute(&mut *transaction)
    .await
    .unwrap();
    let (size, time, frontier, checkpoint) = head;
    sqlx::query("UPDATE counterfoil.head_lock SET size = $1, time_us = $2, frontier = $3, checkpoint = $4")
        .bind(size)
        .bind(time)
        .bind(frontier)
        .bind(checkpoint)
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
}

async fn disarm_sqlite(database: &mut SqliteConnection) {
    let triggers: Vec<(String,)> = sqlx::query_as("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        .fetch_all(&mut *database)
        .await
        .unwrap();
    sqlx::raw_sql("PRAGMA foreign_keys = OFF").execute(&mut *database).await.unwrap();
    for (trigger,) in triggers {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP TRIGGER {trigger}"))).execute(&mut *database).await.unwrap();
    }
}

async fn disarm_postgres(database: &mut PgConnection) {
    sqlx::raw_sql(
        "DO $$ DECLARE guarded regclass; BEGIN
             FOR guarded IN SELECT oid FROM pg_class WHERE relnamespace = 'counterfoil'::regnamespace AND relkind IN ('r', 'p') LOOP
                 EXECUTE format('ALTER TABLE %s DISABLE TRIGGER ALL', guarded);
             END LOOP;
         END $$",
    )
    .execute(database)
    .await
    .unwrap();
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
