//! Writing: one transaction a batch, and few statements in it, however many entries it has.

use async_trait::async_trait;
use audit_log::{
    AppendError, Appended, Batch, CredentialChange, DataKeyClaim, Known, LogHead, LogWriter, Prune, ReadError, Rewrap,
    SealedEntry, SubjectChange, Turn, encode_leaves, encode_sealed, refusals,
};
use session_model::{KeyId, SessionId, Timestamp, TreeSize};
use sqlx::{Connection, Row, SqliteConnection};

use crate::SqliteLog;
use crate::changes::Changes;
use crate::open::{Writer, signed, unavailable};
use crate::read::head;
use crate::rows::Rows;

/// Why a batch was not committed, as far as this module is concerned.
enum Failed {
    /// The transaction did not get to COMMIT, or SQLite says that the COMMIT was not done.
    Before(Box<dyn std::error::Error + Send + Sync>),
    /// COMMIT failed.
    Committing(sqlx::Error),
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Before(Box::new(error))
    }
}

#[async_trait]
impl LogWriter for SqliteLog {
    async fn append(&self, batch: &Batch) -> Result<Appended, AppendError> {
        if batch.entries.is_empty() {
            return Ok(Appended::Committed);
        }
        let mut writer = self.writer().await.map_err(|error| AppendError::NotDone(error.into()))?;
        match transact(writer.connection(), batch).await {
            Ok(appended) => {
                writer.release();
                Ok(appended)
            }
            Err(failed) => Err(undone(writer, failed).await),
        }
    }

    async fn turn(&self) -> Result<Option<Box<dyn Turn + '_>>, ReadError> {
        let mut writer = self.writer().await.map_err(unavailable)?;
        sqlx::query("BEGIN IMMEDIATE").execute(writer.connection()).await.map_err(unavailable)?;
        let head = head(writer.connection()).await?;
        Ok(Some(Box::new(SqliteTurn { writer: Some(writer), head })))
    }

    async fn resolve(&self, batch: &Batch) -> Result<bool, ReadError> {
        let mut writer = self.writer().await.map_err(unavailable)?;
        let found = resolve(writer.connection(), batch).await;
        if found.is_ok() || rollback(writer.connection()).await {
            writer.release();
        }
        found
    }

    async fn mark_uses(&self, uses: &[(SessionId, Timestamp)]) -> Result<(), ReadError> {
        let mut rows = Rows::new();
        for (id, at) in uses {
            rows.row().blob(id.uuid()).int(at.as_micros());
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mark = rows.query(
            "INSERT INTO session_use (session_id, last_seen_us, closed)
             SELECT substr(?2, value ->> 0, value ->> 1), value ->> 2,
                 coalesce((SELECT open = 0 FROM session_index WHERE session_id = substr(?2, value ->> 0, value ->> 1)), 0)
             FROM json_each(?1) WHERE true
             ON CONFLICT (session_id) DO UPDATE SET last_seen_us = excluded.last_seen_us
             WHERE excluded.last_seen_us > last_seen_us",
        );
        let mut writer = self.writer().await.map_err(unavailable)?;
        let marked = mark.execute(writer.connection()).await;
        writer.release();
        marked.map(drop).map_err(unavailable)
    }

    async fn forget_expired(&self, now: Timestamp, limit: usize) -> Result<usize, ReadError> {
        let limit = signed(limit as u64);
        let mut writer = self.writer().await.map_err(unavailable)?;
        let answers = sqlx::query(
            "DELETE FROM kept_answer WHERE rowid IN (SELECT rowid FROM kept_answer WHERE expires_us < ?1 LIMIT ?2)",
        )
        .bind(now.as_micros())
        .bind(limit)
        .execute(writer.connection())
        .await;
        let marks = sqlx::query(
            "DELETE FROM session_use
             WHERE session_id IN (SELECT session_id FROM session_use WHERE closed = 1 LIMIT ?1)",
        )
        .bind(limit)
        .execute(writer.connection())
        .await;
        writer.release();
        marks.map_err(unavailable)?;
        let forgotten = answers.map_err(unavailable)?.rows_affected();
        Ok(usize::try_from(forgotten).unwrap_or(usize::MAX))
    }

    async fn rewrap(&self, keys: &[Rewrap]) -> Result<usize, ReadError> {
        let mut rows = Rows::new();
        for key in keys {
            rows.row().blob(key.id.uuid()).blob(&key.wrapped).blob(&key.rewrapped);
        }
        if rows.is_empty() {
            return Ok(0);
        }
        let rewrap = rows.query(
            "UPDATE data_key SET wrapped = substr(?2, j.value ->> 4, j.value ->> 5) FROM json_each(?1) AS j
             WHERE data_key.id = substr(?2, j.value ->> 0, j.value ->> 1) AND data_key.wrapped = substr(?2, j.value ->> 2, j.value ->> 3)",
        );
        let mut writer = self.writer().await.map_err(unavailable)?;
        let done = rewrap.execute(writer.connection()).await;
        writer.release();
        done.map(|done| usize::try_from(done.rows_affected()).unwrap_or(usize::MAX)).map_err(unavailable)
    }

    async fn prune(&self, prune: &Prune) -> Result<bool, ReadError> {
        let Some(keys) = prune.keys() else { return Ok(false) };
        let parts = |parts: &[Option<SealedEntry>]| encode_sealed(parts.iter().map(Option::as_ref));
        let first = signed(prune.first.0);
        let sql = if prune.all() {
            "DELETE FROM sealed_batch WHERE first = ?3 AND parts = ?4 AND NOT EXISTS (SELECT 1 FROM json_each(?1) AS j
                 JOIN data_key AS k ON k.id = substr(?2, j.value ->> 0, j.value ->> 1) LEFT JOIN data_key AS o ON o.id = k.owner
                 WHERE k.held = 1 OR o.held = 1)"
        } else {
            "UPDATE sealed_batch SET parts = ?5 WHERE first = ?3 AND parts = ?4 AND NOT EXISTS (SELECT 1 FROM json_each(?1) AS j
                 JOIN data_key AS k ON k.id = substr(?2, j.value ->> 0, j.value ->> 1) LEFT JOIN data_key AS o ON o.id = k.owner
                 WHERE k.held = 1 OR o.held = 1)"
        };
        let mut writer = self.writer().await.map_err(unavailable)?;
        let pruned = async {
            let mut transaction = writer.connection().begin_with("BEGIN IMMEDIATE").await?;
            sqlx::query("INSERT INTO pruning (first) VALUES (?1)").bind(first).execute(&mut *transaction).await?;
            let query = Rows::of(keys.iter().map(|key| key.uuid())).query(sql).bind(first).bind(parts(&prune.was));
            let query = if prune.all() { query } else { query.bind(parts(&prune.kept)) };
            let pruned = query.execute(&mut *transaction).await?.rows_affected();
            sqlx::query("DELETE FROM pruning WHERE first = ?1").bind(first).execute(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(pruned > 0)
        };
        let pruned: Result<bool, sqlx::Error> = pruned.await;
        // What failed may have left a transaction open: its connection is closed.
        if pruned.is_ok() {
            writer.release();
        }
        pruned.map_err(unavailable)
    }

    async fn prepare(&self, _size: TreeSize, _now: Timestamp) -> Result<(), ReadError> {
        Ok(())
    }
}

/// A transaction that holds the write lock. SQLite takes it from nobody, but a process that ends.
struct SqliteTurn<'a> {
    /// `None` once the turn is over.
    writer: Option<Writer<'a>>,
    head: LogHead,
}

#[async_trait]
impl Turn for SqliteTurn<'_> {
    fn head(&self) -> &LogHead {
        &self.head
    }

    async fn append(&mut self, batch: &Batch) -> Result<Appended, AppendError> {
        let mut writer = self.writer.take().ok_or_else(|| AppendError::NotDone("the turn is over".into()))?;
        match append(writer.connection(), batch).await {
            Ok(Appended::Committed) => {
                writer.release();
                Ok(Appended::Committed)
            }
            // What it has not put back ends its transaction by closing.
            Ok(Appended::Moved(head)) => Ok(Appended::Moved(head)),
            Ok(Appended::Refused(refused)) => {
                self.writer = Some(writer);
                Ok(Appended::Refused(refused))
            }
            Err(failed) => Err(undone(writer, failed).await),
        }
    }

    async fn end(mut self: Box<Self>) {
        if let Some(mut writer) = self.writer.take()
            && rollback(writer.connection()).await
        {
            writer.release();
        }
    }
}

/// Ends the transaction of what failed; if even that fails the connection is dropped, which rolls back as well.
async fn undone(mut writer: Writer<'_>, failed: Failed) -> AppendError {
    if rollback(writer.connection()).await {
        writer.release();
    }
    match failed {
        Failed::Before(error) => AppendError::NotDone(error),
        Failed::Committing(error) if refused_at_commit(&error) => AppendError::NotDone(error.into()),
        Failed::Committing(error) => AppendError::Unknown(error.into()),
    }
}

async fn transact(connection: &mut SqliteConnection, batch: &Batch) -> Result<Appended, Failed> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    let appended = append(connection, batch).await?;
    if appended != Appended::Committed {
        sqlx::query("ROLLBACK").execute(&mut *connection).await?;
    }
    Ok(appended)
}

/// Commits the transaction that was begun; leaves it open if it answers anything but that.
async fn append(connection: &mut SqliteConnection, batch: &Batch) -> Result<Appended, Failed> {
    let now = head(&mut *connection).await?;
    if now.size() != batch.expected {
        return Ok(Appended::Moved(now));
    }
    let known = known(connection, batch).await?;
    let refused = refusals(&known, batch);
    if !refused.is_empty() {
        return Ok(Appended::Refused(refused));
    }
    settle(connection, &Changes::of(&known, batch)).await?;
    store(connection, batch).await?;
    sqlx::query("COMMIT").execute(&mut *connection).await.map_err(Failed::Committing)?;
    Ok(Appended::Committed)
}

/// Whether the connection is surely outside a transaction now. SQLite has often rolled back by itself after an error, and
/// then refuses to do it again: harmless.
async fn rollback(connection: &mut SqliteConnection) -> bool {
    match sqlx::query("ROLLBACK").execute(connection).await {
        Ok(_) => true,
        Err(error) => {
            error.as_database_error().is_some_and(|error| error.message().contains("no transaction is active"))
        }
    }
}

/// Whether a COMMIT that failed so wrote no commit record. SQLITE_FULL: the frame that carries it did not fit. SQLITE_BUSY:
/// it was not begun. After any other failure the record may stand in the write-ahead log although this process has
/// forgotten it, and recovery after a crash could find it.
fn refused_at_commit(error: &sqlx::Error) -> bool {
    const SQLITE_BUSY: u32 = 5;
    const SQLITE_FULL: u32 = 13;
    let code = error.as_database_error().and_then(|error| error.code()).and_then(|code| code.parse::<u32>().ok());
    // The low byte is the primary result code.
    code.is_some_and(|code| matches!(code & 0xff, SQLITE_BUSY | SQLITE_FULL))
}

/// The write lock is granted only when no other attempt runs any more. A batch that is not there then might still come back:
/// a commit record that was written but not synced. So something else is committed in its place, which overwrites it.
async fn resolve(connection: &mut SqliteConnection, batch: &Batch) -> Result<bool, ReadError> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await.map_err(unavailable)?;
    let stored: Option<Vec<u8>> = sqlx::query_scalar("SELECT leaves FROM batch WHERE first = ?1")
        .bind(signed(batch.expected.0))
        .fetch_optional(&mut *connection)
        .await
        .map_err(unavailable)?;
    sqlx::query("UPDATE log_head SET size = size").execute(&mut *connection).await.map_err(unavailable)?;
    sqlx::query("COMMIT").execute(&mut *connection).await.map_err(unavailable)?;
    Ok(stored.is_some_and(|stored| stored == leaves(batch)))
}

fn leaves(batch: &Batch) -> Vec<u8> {
    encode_leaves(batch.entries.iter().map(|entry| entry.bytes.as_slice()))
}

/// What the database knows of all that a batch claims.
async fn known(connection: &mut SqliteConnection, batch: &Batch) -> Result<Known, sqlx::Error> {
    let mut known = Known::default();
    let (mut sessions, mut keys, mut lookups, mut answers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for claims in batch.entries.iter().map(|entry| &entry.claims) {
        sessions.extend(claims.session.map(|(id, _)| id));
        match &claims.data_key {
            Some(DataKeyClaim::Existing(id)) => keys.push(*id),
            Some(DataKeyClaim::New(row)) => {
                keys.push(row.id);
                lookups.extend(row.lookup);
            }
            None => {}
        }
        keys.extend(claims.free_seat);
        keys.extend(claims.take_seat.map(|seat| seat.key));
        keys.extend(claims.subject.and_then(erased));
        answers.extend(claims.idempotency.as_ref().map(|claim| claim.key));
    }
    keys.sort_unstable();
    keys.dedup();

    let rows = Rows::of(sessions.iter().map(|id| id.uuid()));
    for (at, newest) in numbered::<Option<i64>>(connection, rows, FIND_VERSIONS).await? {
        if let (Some(id), Some(newest)) = (sessions.get(at), newest) {
            known.versions.insert(*id, u64::try_from(newest).unwrap_or(0));
        }
    }
    let rows = Rows::of(keys.iter().map(|id| id.uuid()));
    for (at, seats) in numbered::<i64>(connection, rows, FIND_KEYS).await? {
        known.seats.extend(keys.get(at).map(|id: &KeyId| (*id, u32::try_from(seats).unwrap_or(u32::MAX))));
    }
    let to_erase: Vec<KeyId> = batch.entries.iter().filter_map(|entry| entry.claims.subject.and_then(erased)).collect();
    let rows = Rows::of(to_erase.iter().map(|id| id.uuid()));
    for (at, _) in numbered::<i64>(connection, rows, FIND_HELD).await? {
        known.held.extend(to_erase.get(at));
    }
    let rows = Rows::of(lookups.iter().map(|lookup| lookup.0));
    for (at, _) in numbered::<i64>(connection, rows, FIND_LOOKUPS).await? {
        known.lookups.extend(lookups.get(at));
    }
    let rows = Rows::of(answers.iter().map(|key| key.0));
    for (at, _) in numbered::<i64>(connection, rows, FIND_ANSWERS).await? {
        known.answers.extend(answers.get(at));
    }
    Ok(known)
}

/// The key that a change destroys.
fn erased(change: SubjectChange) -> Option<KeyId> {
    match change {
        SubjectChange::Erased(key) => Some(key),
        SubjectChange::Held(..) => None,
    }
}

/// Asks one value for each row that has one: (position of the row, value).
async fn numbered<T>(
    connection: &mut SqliteConnection,
    rows: Rows,
    sql: &'static str,
) -> Result<Vec<(usize, T)>, sqlx::Error>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let found = rows.query(sql).fetch_all(connection).await?;
    let pair = |row: sqlx::sqlite::SqliteRow| {
        let at: i64 = row.try_get(0)?;
        Ok((usize::try_from(at).unwrap_or(usize::MAX), row.try_get(1)?))
    };
    found.into_iter().map(pair).collect()
}

/// Tree nodes, leaves, sealed parts, hashes and head. The head last: triggers compare the rows before it with the old one.
async fn store(connection: &mut SqliteConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    let mut nodes = Rows::new();
    for node in &batch.nodes {
        nodes.row().int(node.level.into()).int(signed(node.index)).blob(node.hash.0);
    }
    if !nodes.is_empty() {
        nodes.query(INSERT_NODES).execute(&mut *connection).await?;
    }
    let first = signed(batch.expected.0);
    let count = signed(batch.entries.len() as u64);
    sqlx::query("INSERT INTO batch (first, count, leaves, checkpoint) VALUES (?1, ?2, ?3, ?4)")
        .bind(first)
        .bind(count)
        .bind(leaves(batch))
        .bind(batch.checkpoint.clone())
        .execute(&mut *connection)
        .await?;
    sqlx::query("INSERT INTO sealed_batch (first, parts) VALUES (?1, ?2)")
        .bind(first)
        .bind(encode_sealed(batch.entries.iter().map(|entry| entry.sealed.as_ref())))
        .execute(&mut *connection)
        .await?;
    sqlx::query("INSERT INTO leaf_hashes (first, hashes) VALUES (?1, ?2)")
        .bind(first)
        .bind(batch.entries.iter().flat_map(|entry| entry.hash.0).collect::<Vec<u8>>())
        .execute(&mut *connection)
        .await?;
    sqlx::query("UPDATE log_head SET size = ?1 + ?2, time_us = ?3, frontier = ?4, checkpoint = ?5 WHERE size = ?1")
        .bind(first)
        .bind(count)
        .bind(batch.head.time.as_micros())
        .bind(batch.head.frontier.to_bytes())
        .bind(batch.checkpoint.clone())
        .execute(&mut *connection)
        .await
        .map(drop)
}

/// What the claims come to.
async fn settle(connection: &mut SqliteConnection, changes: &Changes<'_>) -> Result<(), sqlx::Error> {
    let mut versions = Rows::new();
    for (id, version, index) in &changes.versions {
        versions.row().blob(id.uuid()).int(signed(version.0)).int(signed(index.0));
    }
    let mut keys = Rows::new();
    for (id, key) in &changes.new_keys {
        let row = keys.row().blob(id.uuid()).maybe(key.row.lookup.map(|lookup| lookup.0));
        let row = row.blob(&key.row.wrapped).int(key.seats.into());
        row.maybe(key.row.owner.map(|owner| owner.uuid()));
    }
    let mut seats = Rows::new();
    for (id, held) in &changes.seats {
        seats.row().blob(id.uuid()).int((*held).into());
    }
    let mut owners = Rows::new();
    for (id, owner) in &changes.owners {
        owners.row().blob(id.uuid()).blob(owner.uuid());
    }
    let mut opened = Rows::new();
    for (id, session) in &changes.opened {
        let row = opened.row().blob(id.uuid()).blob(session.realm.as_str());
        row.blob(session.key.uuid()).blob(session.kind.name());
    }
    let mut bound = Rows::new();
    for (id, key) in &changes.bound {
        bound.row().blob(id.uuid()).blob(key.uuid());
    }
    let closed = Rows::of(changes.closed.iter().map(|id| id.uuid()));
    let mut answers = Rows::new();
    for (claim, index) in &changes.answers {
        let row = answers.row().blob(claim.key.0).blob(claim.request.0).blob(&claim.answer);
        row.int(signed(index.0)).int(claim.expires.as_micros());
    }
    for (rows, sql) in [
        (versions, INSERT_VERSIONS),
        (owners, UPDATE_OWNERS),
        (keys, INSERT_KEYS),
        (seats, UPDATE_SEATS),
        (opened, INSERT_SESSIONS),
        (bound, UPDATE_BOUND),
        (closed, CLOSE_SESSIONS),
        (answers, INSERT_ANSWERS),
    ] {
        if !rows.is_empty() {
            rows.query(sql).execute(&mut *connection).await?;
        }
    }
    for change in &changes.credentials {
        credential(connection, change).await?;
    }
    for change in &changes.subjects {
        subject(connection, *change).await?;
    }
    Ok(())
}

const FIND_VERSIONS: &str = "SELECT j.key, (SELECT max(version) FROM session_entry
        WHERE session_id = substr(?2, j.value ->> 0, j.value ->> 1))
    FROM json_each(?1) AS j";
const FIND_KEYS: &str = "SELECT j.key, k.open_sessions
    FROM json_each(?1) AS j CROSS JOIN data_key AS k ON k.id = substr(?2, j.value ->> 0, j.value ->> 1)";
const FIND_HELD: &str = "SELECT j.key, 1 FROM json_each(?1) AS j
    CROSS JOIN data_key AS k ON k.id = substr(?2, j.value ->> 0, j.value ->> 1) WHERE k.held = 1";
const FIND_LOOKUPS: &str = "SELECT j.key, 1
    FROM json_each(?1) AS j CROSS JOIN data_key AS k ON k.lookup = substr(?2, j.value ->> 0, j.value ->> 1)";
const FIND_ANSWERS: &str = "SELECT j.key, 1
    FROM json_each(?1) AS j CROSS JOIN kept_answer AS a ON a.key = substr(?2, j.value ->> 0, j.value ->> 1)";

const INSERT_NODES: &str = "INSERT INTO tree_node (level, idx, hash)
    SELECT value ->> 0, value ->> 1, substr(?2, value ->> 2, value ->> 3) FROM json_each(?1)";
const INSERT_VERSIONS: &str = "INSERT INTO session_entry (session_id, version, leaf_index)
    SELECT substr(?2, value ->> 0, value ->> 1), value ->> 2, value ->> 3 FROM json_each(?1)";
/// Before the keys of the batch are there: a new key brings its owner along.
const UPDATE_OWNERS: &str = "UPDATE data_key SET owner = substr(?2, value ->> 2, value ->> 3)
    FROM json_each(?1) WHERE data_key.id = substr(?2, value ->> 0, value ->> 1)";
const INSERT_KEYS: &str = "INSERT INTO data_key (id, lookup, wrapped, open_sessions, owner)
    SELECT substr(?2, value ->> 0, value ->> 1), substr(?2, value ->> 2, value ->> 3), substr(?2, value ->> 4, value ->> 5),
        value ->> 6, substr(?2, value ->> 7, value ->> 8) FROM json_each(?1)";
const UPDATE_SEATS: &str = "UPDATE data_key SET open_sessions = value ->> 2
    FROM json_each(?1) WHERE data_key.id = substr(?2, value ->> 0, value ->> 1)";
const INSERT_SESSIONS: &str = "INSERT OR REPLACE INTO session_index (session_id, realm, data_key, kind, open)
    SELECT substr(?2, value ->> 0, value ->> 1), CAST(substr(?2, value ->> 2, value ->> 3) AS TEXT),
        substr(?2, value ->> 4, value ->> 5), CAST(substr(?2, value ->> 6, value ->> 7) AS TEXT), 1 FROM json_each(?1)";
const UPDATE_BOUND: &str = "UPDATE session_index SET data_key = substr(?2, value ->> 2, value ->> 3)
    FROM json_each(?1) WHERE session_id = substr(?2, value ->> 0, value ->> 1)";
/// With the marks of their last use, which are to be forgotten.
const CLOSE_SESSIONS: &str = "UPDATE session_index SET open = 0
    FROM json_each(?1) WHERE session_id = substr(?2, value ->> 0, value ->> 1);
    UPDATE session_use SET closed = 1
    FROM json_each(?1) WHERE session_id = substr(?2, value ->> 0, value ->> 1)";
const INSERT_ANSWERS: &str = "INSERT INTO kept_answer (key, request, answer, leaf_index, expires_us)
    SELECT substr(?2, value ->> 0, value ->> 1), substr(?2, value ->> 2, value ->> 3), substr(?2, value ->> 4, value ->> 5),
        value ->> 6, value ->> 7 FROM json_each(?1)";

const ERASE: &str = "DELETE FROM data_key WHERE id = ?1";
const ERASE_OWNED: &str = "DELETE FROM data_key WHERE owner = ?1";
const HOLD: &str = "UPDATE data_key SET held = ?2 WHERE id = ?1";

async fn subject(connection: &mut SqliteConnection, change: SubjectChange) -> Result<(), sqlx::Error> {
    match change {
        SubjectChange::Erased(key) => {
            for sql in [ERASE, ERASE_OWNED] {
                sqlx::query(sql).bind(key.uuid().as_bytes().to_vec()).execute(&mut *connection).await?;
            }
        }
        SubjectChange::Held(key, held) => {
            let query = sqlx::query(HOLD).bind(key.uuid().as_bytes().to_vec()).bind(held);
            query.execute(connection).await?;
        }
    }
    Ok(())
}

async fn credential(connection: &mut SqliteConnection, change: &CredentialChange) -> Result<(), sqlx::Error> {
    let query = match change {
        CredentialChange::Added(added) => sqlx::query(
            "INSERT INTO credential (id, digest, realm, roles, label, created_us, revoked_us)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (digest) DO NOTHING",
        )
        .bind(added.id.clone())
        .bind(added.digest.0.to_vec())
        .bind(added.realm.as_str().to_owned())
        .bind(serde_json::to_string(&added.roles).map_err(|error| sqlx::Error::Encode(Box::new(error)))?)
        .bind(added.label.clone())
        .bind(added.created_at.as_micros())
        .bind(added.revoked_at.map(Timestamp::as_micros)),
        CredentialChange::Revoked(id, at) => {
            sqlx::query("UPDATE credential SET revoked_us = ?2 WHERE id = ?1 AND revoked_us IS NULL")
                .bind(id.clone())
                .bind(at.as_micros())
        }
    };
    query.execute(connection).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cost per entry must not grow with the log: every lookup is a search in an index, whatever the planner thinks of a table
    /// that is still small.
    #[tokio::test]
    async fn no_statement_of_an_append_scans_a_table() {
        let folder = tempfile::TempDir::new().unwrap();
        let log = SqliteLog::open(folder.path().join("log.db").as_path()).await.unwrap();
        let close = CLOSE_SESSIONS.split(';');
        let others = [
            FIND_VERSIONS,
            FIND_KEYS,
            FIND_HELD,
            ERASE,
            ERASE_OWNED,
            HOLD,
            FIND_LOOKUPS,
            FIND_ANSWERS,
            INSERT_NODES,
            INSERT_VERSIONS,
            UPDATE_OWNERS,
            INSERT_KEYS,
            UPDATE_SEATS,
            INSERT_SESSIONS,
            UPDATE_BOUND,
            INSERT_ANSWERS,
        ];
        for sql in others.into_iter().chain(close) {
            let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(explain).fetch_all(&log.readers).await.unwrap();
            assert!(!plan.is_empty());
            for (_, _, _, step) in plan {
                assert!(!step.starts_with("SCAN") || step.contains("VIRTUAL TABLE"), "{sql}: {step}");
            }
        }
    }
}
