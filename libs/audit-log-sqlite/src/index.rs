//! What is kept beside the log.

use async_trait::async_trait;
use audit_log::{Answer, Credential, DataKeyRow, LogIndex, ReadError, SessionFilter};
use session_model::{Digest, KeyId, LeafIndex, SessionId, Timestamp};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite};
use uuid::Uuid;

use crate::SqliteLog;
use crate::open::{parsed, signed, unavailable, unsigned};
use crate::read::{column, digest};
use crate::rows::Rows;

#[async_trait]
impl LogIndex for SqliteLog {
    async fn data_keys_by_lookup(&self, lookups: &[Digest]) -> Result<Vec<Option<DataKeyRow>>, ReadError> {
        let rows = Rows::of(lookups.iter().map(|lookup| lookup.0));
        let sql = "SELECT j.key AS at, k.id, k.lookup, k.wrapped, k.owner, k.held
                   FROM json_each(?1) AS j
                   CROSS JOIN data_key AS k ON k.lookup = substr(?2, j.value ->> 0, j.value ->> 1)";
        self.in_order(lookups.len(), rows, sql, data_key).await
    }

    async fn data_keys_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<DataKeyRow>, ReadError> {
        let rows = sqlx::query(
            "SELECT id, lookup, wrapped, owner, held FROM data_key WHERE id > coalesce(?1, x'') ORDER BY id LIMIT ?2",
        )
        .bind(after.map(|after| after.uuid().as_bytes().to_vec()))
        .bind(signed(limit as u64))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        rows.iter().map(data_key).collect()
    }

    async fn data_keys_owned_by(&self, owner: KeyId) -> Result<Vec<KeyId>, ReadError> {
        let found: Vec<Vec<u8>> = sqlx::query_scalar("SELECT id FROM data_key WHERE owner = ?1")
            .bind(owner.uuid().as_bytes().to_vec())
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
        found.iter().map(|id| uuid(id).map(KeyId::new)).collect()
    }

    async fn data_keys(&self, ids: &[KeyId]) -> Result<Vec<Option<DataKeyRow>>, ReadError> {
        let rows = Rows::of(ids.iter().map(|id| id.uuid()));
        let sql = "SELECT j.key AS at, k.id, k.lookup, k.wrapped, k.owner, k.held
                   FROM json_each(?1) AS j CROSS JOIN data_key AS k ON k.id = substr(?2, j.value ->> 0, j.value ->> 1)";
        self.in_order(ids.len(), rows, sql, data_key).await
    }

    async fn sessions(
        &self,
        filter: &SessionFilter,
        before: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, ReadError> {
        let mut sql = QueryBuilder::<Sqlite>::new("SELECT session_id FROM session_index WHERE realm = ");
        sql.push_bind(filter.realm.as_str());
        if let Some(key) = filter.key {
            // In words again: a partial index.
            sql.push(" AND data_key <> session_id AND data_key = ").push_bind(key.uuid().as_bytes().to_vec());
        }
        match filter.open {
            // In words, so that the partial index serves.
            Some(true) => drop(sql.push(" AND open = 1")),
            Some(false) => drop(sql.push(" AND open = 0")),
            None => {}
        }
        if let Some(kind) = filter.kind {
            sql.push(" AND kind = ").push_bind(kind.name());
        }
        if let Some(before) = before {
            sql.push(" AND session_id < ").push_bind(before.uuid().as_bytes().to_vec());
        }
        sql.push(" ORDER BY session_id DESC LIMIT ").push_bind(signed(limit as u64));
        let found: Vec<Vec<u8>> = sql.build_query_scalar().fetch_all(&self.readers).await.map_err(unavailable)?;
        found.iter().map(|id| uuid(id).map(SessionId::new)).collect()
    }

    async fn uses(&self, ids: &[SessionId]) -> Result<Vec<Option<Timestamp>>, ReadError> {
        let rows = Rows::of(ids.iter().map(|id| id.uuid()));
        let sql = "SELECT j.key AS at, u.last_seen_us
                   FROM json_each(?1) AS j
                   CROSS JOIN session_use AS u ON u.session_id = substr(?2, j.value ->> 0, j.value ->> 1)";
        let time = |row: &SqliteRow| column(row, "last_seen_us").map(Timestamp::from_micros);
        self.in_order(ids.len(), rows, sql, time).await
    }

    async fn answer(&self, key: &Digest) -> Result<Option<Answer>, ReadError> {
        let row = sqlx::query("SELECT request, answer, leaf_index, expires_us FROM kept_answer WHERE key = ?1")
            .bind(key.0.to_vec())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable)?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Answer {
            request: digest(column(&row, "request")?)?,
            answer: column(&row, "answer")?,
            index: LeafIndex(unsigned(column(&row, "leaf_index")?)?),
            expires: Timestamp::from_micros(column(&row, "expires_us")?),
        }))
    }

    async fn credentials(&self) -> Result<Vec<Credential>, ReadError> {
        let rows =
            sqlx::query("SELECT id, digest, realm, roles, label, created_us, revoked_us FROM credential ORDER BY seq")
                .fetch_all(&self.readers)
                .await
                .map_err(unavailable)?;
        rows.iter().map(credential).collect()
    }
}

impl SqliteLog {
    /// Asks for `count` things at once; the column `at` of what is found says which it is.
    async fn in_order<T: Clone>(
        &self,
        count: usize,
        rows: Rows,
        sql: &'static str,
        read: impl Fn(&SqliteRow) -> Result<T, ReadError>,
    ) -> Result<Vec<Option<T>>, ReadError> {
        let mut found = vec![None; count];
        if rows.is_empty() {
            return Ok(found);
        }
        for row in rows.query(sql).fetch_all(&self.readers).await.map_err(unavailable)? {
            let at = unsigned(column(&row, "at")?)?;
            if let Some(slot) = usize::try_from(at).ok().and_then(|at| found.get_mut(at)) {
                *slot = Some(read(&row)?);
            }
        }
        Ok(found)
    }
}

pub(crate) fn uuid(bytes: &[u8]) -> Result<Uuid, ReadError> {
    Uuid::from_slice(bytes).map_err(|_| ReadError::Corrupt(format!("an id of {} bytes", bytes.len())))
}

fn data_key(row: &SqliteRow) -> Result<DataKeyRow, ReadError> {
    Ok(DataKeyRow {
        id: KeyId::new(uuid(column(row, "id")?)?),
        lookup: column::<Option<&[u8]>>(row, "lookup")?.map(digest).transpose()?,
        wrapped: column(row, "wrapped")?,
        owner: column::<Option<&[u8]>>(row, "owner")?.map(uuid).transpose()?.map(KeyId::new),
        held: column(row, "held")?,
    })
}

fn credential(row: &SqliteRow) -> Result<Credential, ReadError> {
    let roles = serde_json::from_str(column(row, "roles")?);
    Ok(Credential {
        id: column(row, "id")?,
        digest: digest(column(row, "digest")?)?,
        realm: parsed(column(row, "realm")?, "realm name")?,
        roles: roles.map_err(|error| ReadError::Corrupt(error.to_string()))?,
        label: column(row, "label")?,
        created_at: Timestamp::from_micros(column(row, "created_us")?),
        revoked_at: column::<Option<i64>>(row, "revoked_us")?.map(Timestamp::from_micros),
    })
}
