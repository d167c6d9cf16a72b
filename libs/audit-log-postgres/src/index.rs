//! What is kept beside the log.

use std::collections::HashMap;
use std::hash::Hash;

use async_trait::async_trait;
use audit_log::{Answer, Credential, DataKeyRow, LogIndex, ReadError, SessionFilter};
use session_model::{Digest, KeyId, LeafIndex, SessionId, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use crate::PostgresLog;
use crate::open::{signed, unavailable, unsigned};
use crate::read::{column, digest};

#[async_trait]
impl LogIndex for PostgresLog {
    async fn data_keys_by_lookup(&self, lookups: &[Digest]) -> Result<Vec<Option<DataKeyRow>>, ReadError> {
        let wanted: Vec<&[u8]> = lookups.iter().map(|lookup| lookup.0.as_slice()).collect();
        let question =
            "SELECT id, lookup, wrapped, owner, held FROM counterfoil.data_key WHERE lookup = ANY ($1::bytea[])";
        let rows = self.lookups.fetch_all(question, &wanted).await.map_err(unavailable)?;
        let found = rows.iter().map(data_key).collect::<Result<Vec<_>, _>>()?;
        let keyed = found.into_iter().filter_map(|row| Some((row.lookup?, row)));
        Ok(in_order(lookups, keyed))
    }

    async fn data_keys_owned_by(&self, owner: KeyId) -> Result<Vec<KeyId>, ReadError> {
        let found: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM counterfoil.data_key WHERE owner = $1")
            .bind(owner.uuid())
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
        Ok(found.into_iter().map(KeyId::new).collect())
    }

    async fn data_keys_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<DataKeyRow>, ReadError> {
        let rows = sqlx::query(
            "SELECT id, lookup, wrapped, owner, held FROM counterfoil.data_key
             WHERE id > coalesce($1, '00000000-0000-0000-0000-000000000000'::uuid) ORDER BY id LIMIT $2",
        )
        .bind(after.map(KeyId::uuid))
        .bind(signed(limit as u64))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        rows.iter().map(data_key).collect()
    }

    async fn data_keys(&self, ids: &[KeyId]) -> Result<Vec<Option<DataKeyRow>>, ReadError> {
        let wanted: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
        let rows = sqlx::query("SELECT id, lookup, wrapped, owner, held FROM counterfoil.data_key WHERE id = ANY ($1)")
            .bind(wanted)
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
        let found = rows.iter().map(data_key).collect::<Result<Vec<_>, _>>()?;
        Ok(in_order(ids, found.into_iter().map(|row| (row.id, row))))
    }

    async fn sessions(
        &self,
        filter: &SessionFilter,
        before: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, ReadError> {
        let mut sql = QueryBuilder::<Postgres>::new("SELECT session_id FROM counterfoil.session_index WHERE realm = ");
        sql.push_bind(filter.realm.to_string());
        if let Some(key) = filter.key {
            // In words again: a partial index.
            sql.push(" AND data_key <> session_id AND data_key = ").push_bind(key.uuid());
        }
        match filter.open {
            // In words, so that the partial indexes serve.
            Some(true) => drop(sql.push(" AND open")),
            Some(false) => drop(sql.push(" AND NOT open")),
            None => {}
        }
        if let Some(kind) = filter.kind {
            sql.push(" AND kind = ").push_bind(kind.name());
        }
        if let Some(before) = before {
            sql.push(" AND session_id < ").push_bind(before.uuid());
        }
        sql.push(" ORDER BY session_id DESC LIMIT ").push_bind(signed(limit as u64));
        let found: Vec<Uuid> = sql.build_query_scalar().fetch_all(&self.readers).await.map_err(unavailable)?;
        Ok(found.into_iter().map(SessionId::new).collect())
    }

    async fn uses(&self, ids: &[SessionId]) -> Result<Vec<Option<Timestamp>>, ReadError> {
        let wanted: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
        let rows: Vec<(Uuid, i64)> =
            sqlx::query_as("SELECT session_id, last_seen_us FROM counterfoil.session_use WHERE session_id = ANY ($1)")
                .bind(wanted)
                .fetch_all(&self.readers)
                .await
                .map_err(unavailable)?;
        let found = rows.into_iter().map(|(id, at)| (SessionId::new(id), Timestamp::from_micros(at)));
        Ok(in_order(ids, found))
    }

    async fn answer(&self, key: &Digest) -> Result<Option<Answer>, ReadError> {
        let row =
            sqlx::query("SELECT request, answer, leaf_index, expires_us FROM counterfoil.kept_answer WHERE key = $1")
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
        let rows = sqlx::query(
            "SELECT id, digest, realm, roles, label, created_us, revoked_us FROM counterfoil.credential ORDER BY seq",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        rows.iter().map(credential).collect()
    }
}

/// What was found, in the order it was asked for.
fn in_order<K: Hash + Eq, T: Clone>(asked: &[K], found: impl Iterator<Item = (K, T)>) -> Vec<Option<T>> {
    let found: HashMap<K, T> = found.collect();
    asked.iter().map(|key| found.get(key).cloned()).collect()
}

fn data_key(row: &PgRow) -> Result<DataKeyRow, ReadError> {
    Ok(DataKeyRow {
        id: KeyId::new(column(row, "id")?),
        lookup: column::<Option<&[u8]>>(row, "lookup")?.map(digest).transpose()?,
        wrapped: column(row, "wrapped")?,
        owner: column::<Option<Uuid>>(row, "owner")?.map(KeyId::new),
        held: column(row, "held")?,
    })
}

fn credential(row: &PgRow) -> Result<Credential, ReadError> {
    let roles = serde_json::from_value(column::<Vec<String>>(row, "roles")?.into());
    let realm = column::<&str>(row, "realm")?.parse();
    Ok(Credential {
        id: column(row, "id")?,
        digest: digest(column(row, "digest")?)?,
        realm: realm.map_err(|_| ReadError::Corrupt("a realm name that is none".into()))?,
        roles: roles.map_err(|failure| ReadError::Corrupt(failure.to_string()))?,
        label: column(row, "label")?,
        created_at: Timestamp::from_micros(column(row, "created_us")?),
        revoked_at: column::<Option<i64>>(row, "revoked_us")?.map(Timestamp::from_micros),
    })
}
