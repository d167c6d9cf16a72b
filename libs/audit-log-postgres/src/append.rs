//! Writing: one round trip for a batch.

use std::collections::HashMap;

use async_trait::async_trait;
use audit_log::{
    AppendError, Appended, Batch, CredentialChange, DataKeyClaim, Known, LogHead, LogReader, LogWriter, ReadError,
    SessionChange, encode_leaves, encode_sealed, refusals,
};
use merkle_log::Frontier;
use session_model::{Digest, KeyId, SessionId, Timestamp, TreeSize};
use sqlx::{PgConnection, Row};
use tracing::warn;
use uuid::Uuid;

use crate::PostgresLog;
use crate::open::{signed, unavailable, unsigned};

const APPEND: &str = "SELECT status, size, time_us, frontier, checkpoint FROM counterfoil.append(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23,
    $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35)";

/// The claims of a batch, as the arrays of `counterfoil.append`.
#[derive(Default)]
#[expect(clippy::type_complexity, reason = "each tuple is one family of parallel arrays, named in the SQL")]
struct Arrays {
    s: (Vec<i32>, Vec<Uuid>, Vec<i64>),
    e: (Vec<i32>, Vec<Uuid>),
    k: (Vec<i32>, Vec<Uuid>, Vec<Option<Vec<u8>>>, Vec<Vec<u8>>),
    t: (Vec<Uuid>, Vec<i32>),
    f: Vec<Uuid>,
    x: (Vec<i32>, Vec<Uuid>, Vec<&'static str>, Vec<String>, Vec<Uuid>, Vec<&'static str>),
    a: (Vec<i32>, Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<i64>),
    credentials: Vec<serde_json::Value>,
}

impl Arrays {
    fn of(batch: &Batch) -> Self {
        let mut arrays = Self::default();
        for (at, entry) in batch.entries.iter().enumerate() {
            let at = i32::try_from(at).unwrap_or(i32::MAX);
            let claims = &entry.claims;
            if let Some((id, version)) = claims.session {
                arrays.s.0.push(at);
                arrays.s.1.push(id.uuid());
                arrays.s.2.push(signed(version.0));
            }
            match &claims.data_key {
                Some(DataKeyClaim::Existing(id)) => {
                    arrays.e.0.push(at);
                    arrays.e.1.push(id.uuid());
                }
                Some(DataKeyClaim::New(row)) => {
                    arrays.k.0.push(at);
                    arrays.k.1.push(row.id.uuid());
                    arrays.k.2.push(row.lookup.map(|lookup| lookup.0.to_vec()));
                    arrays.k.3.push(row.wrapped.clone());
                }
                None => {}
            }
            if let Some(seat) = claims.take_seat {
                arrays.t.0.push(seat.key.uuid());
                arrays.t.1.push(i32::try_from(seat.cap).unwrap_or(i32::MAX));
            }
            arrays.f.extend(claims.free_seat.map(KeyId::uuid));
            if let (Some(change), Some((id, _))) = (&claims.index, claims.session) {
                let (word, realm, key, kind) = match change {
                    SessionChange::Opened { realm, key, kind } => {
                        ("opened", realm.to_string(), key.uuid(), kind.name())
                    }
                    SessionChange::Bound { key } => ("bound", String::new(), key.uuid(), ""),
                    SessionChange::Closed => ("closed", String::new(), Uuid::nil(), ""),
                };
                arrays.x.0.push(at);
                arrays.x.1.push(id.uuid());
                arrays.x.2.push(word);
                arrays.x.3.push(realm);
                arrays.x.4.push(key);
                arrays.x.5.push(kind);
            }
            if let Some(claim) = &claims.idempotency {
                arrays.a.0.push(at);
                arrays.a.1.push(claim.key.0.to_vec());
                arrays.a.2.push(claim.request.0.to_vec());
                arrays.a.3.push(claim.answer.clone());
                arrays.a.4.push(claim.expires.as_micros());
            }
            arrays.credentials.extend(claims.credential.as_ref().map(credential));
        }
        arrays
    }
}

fn credential(change: &CredentialChange) -> serde_json::Value {
    match change {
        CredentialChange::Added(added) => serde_json::json!({
            "id": added.id,
            "digest": added.digest.to_string(),
            "realm": added.realm,
            "roles": serde_json::to_string(&added.roles).unwrap_or_default(),
            "label": added.label,
            "created_us": added.created_at.as_micros(),
            "revoked_us": added.revoked_at.map(Timestamp::as_micros),
        }),
        CredentialChange::Revoked(id, at) => serde_json::json!({"revoked": id, "revoked_us": at.as_micros()}),
    }
}

/// What the function answered.
enum Answered {
    Committed,
    Moved(LogHead),
    /// A claim does not hold.
    Claims,
}

#[async_trait]
impl LogWriter for PostgresLog {
    async fn append(&self, batch: &Batch) -> Result<Appended, AppendError> {
        if batch.entries.is_empty() {
            return Ok(Appended::Committed);
        }
        let mut connection = self.take_writer().await.map_err(|failure| AppendError::NotDone(failure.into()))?;
        match call(&mut connection, batch).await {
            Ok(answered) => {
                self.put_back(connection);
                match answered {
                    Answered::Committed => Ok(Appended::Committed),
                    Answered::Moved(head) => Ok(Appended::Moved(head)),
                    Answered::Claims => self.weigh(batch).await.map_err(|failure| AppendError::NotDone(failure.into())),
                }
            }
            // The server says what went wrong: then it has rolled back. Whether it goes on with this connection, it does not.
            Err(failure @ sqlx::Error::Database(_)) => Err(AppendError::NotDone(failure.into())),
            Err(failure) => Err(AppendError::Unknown(failure.into())),
        }
    }

    async fn resolve(&self, batch: &Batch) -> Result<bool, ReadError> {
        let stored: Option<Vec<u8>> = sqlx::query_scalar("SELECT counterfoil.settled($1)")
            .bind(signed(batch.expected.0))
            .fetch_one(&self.readers)
            .await
            .map_err(unavailable)?;
        Ok(stored.is_some_and(|stored| stored == leaves(batch)))
    }

    async fn mark_uses(&self, uses: &[(SessionId, Timestamp)]) -> Result<(), ReadError> {
        if uses.is_empty() {
            return Ok(());
        }
        let (ids, times): (Vec<Uuid>, Vec<i64>) = uses.iter().map(|(id, at)| (id.uuid(), at.as_micros())).unzip();
        let query = sqlx::query("SELECT counterfoil.mark_uses($1, $2)").bind(ids).bind(times);
        query.execute(&self.readers).await.map(drop).map_err(unavailable)
    }

    async fn forget_expired(&self, now: Timestamp, limit: usize) -> Result<usize, ReadError> {
        let forgotten: i64 = sqlx::query_scalar("SELECT counterfoil.forget_expired($1, $2)")
            .bind(now.as_micros())
            .bind(signed(limit as u64))
            .fetch_one(&self.readers)
            .await
            .map_err(unavailable)?;
        Ok(usize::try_from(forgotten).unwrap_or(usize::MAX))
    }

    async fn prepare(&self, size: TreeSize, now: Timestamp) -> Result<(), ReadError> {
        let query = sqlx::query("SELECT counterfoil.prepare($1, $2)").bind(signed(size.0)).bind(now.as_micros());
        query.execute(&self.readers).await.map(drop).map_err(unavailable)
    }
}

fn leaves(batch: &Batch) -> Vec<u8> {
    encode_leaves(batch.entries.iter().map(|entry| entry.bytes.as_slice()))
}

async fn call(connection: &mut PgConnection, batch: &Batch) -> Result<Answered, sqlx::Error> {
    let arrays = Arrays::of(batch);
    let hashes: Vec<u8> = batch.entries.iter().flat_map(|entry| entry.hash.0).collect();
    let levels: Vec<i16> = batch.nodes.iter().map(|node| i16::from(node.level)).collect();
    let places: Vec<i64> = batch.nodes.iter().map(|node| signed(node.index)).collect();
    let nodes: Vec<Vec<u8>> = batch.nodes.iter().map(|node| node.hash.0.to_vec()).collect();
    let credentials =
        (!arrays.credentials.is_empty()).then(|| serde_json::Value::Array(arrays.credentials).to_string());
    let row = sqlx::query(APPEND)
        .bind(signed(batch.expected.0))
        .bind(signed(batch.head.size().0))
        .bind(batch.head.time.as_micros())
        .bind(batch.head.frontier.to_bytes())
        .bind(&batch.checkpoint)
        .bind(leaves(batch))
        .bind(encode_sealed(batch.entries.iter().map(|entry| entry.sealed.as_ref())))
        .bind(hashes)
        .bind(levels)
        .bind(places)
        .bind(nodes)
        .bind(arrays.s.0)
        .bind(arrays.s.1)
        .bind(arrays.s.2)
        .bind(arrays.e.0)
        .bind(arrays.e.1)
        .bind(arrays.k.0)
        .bind(arrays.k.1)
        .bind(arrays.k.2)
        .bind(arrays.k.3)
        .bind(arrays.t.0)
        .bind(arrays.t.1)
        .bind(arrays.f)
        .bind(arrays.x.0)
        .bind(arrays.x.1)
        .bind(arrays.x.2)
        .bind(arrays.x.3)
        .bind(arrays.x.4)
        .bind(arrays.x.5)
        .bind(arrays.a.0)
        .bind(arrays.a.1)
        .bind(arrays.a.2)
        .bind(arrays.a.3)
        .bind(arrays.a.4)
        .bind(credentials)
        .fetch_one(connection)
        .await?;
    let decode = |what: &str| sqlx::Error::Decode(format!("counterfoil.append answered {what}").into());
    match row.try_get::<&str, _>("status")? {
        "committed" => Ok(Answered::Committed),
        "claims" => Ok(Answered::Claims),
        "moved" => {
            let size = unsigned(row.try_get("size")?).map_err(|_| decode("a negative size"))?;
            let frontier = Frontier::from_bytes(TreeSize(size), row.try_get("frontier")?)
                .map_err(|_| decode("a frontier of another size"))?;
            let time = Timestamp::from_micros(row.try_get("time_us")?);
            Ok(Answered::Moved(LogHead { frontier, time, checkpoint: row.try_get("checkpoint")? }))
        }
        _ => Err(decode("something unknown")),
    }
}

impl PostgresLog {
    /// Finds out which claims of a batch do not hold. The database has refused it as a whole; what it knows is read, and
    /// weighed by the rules that all logs share.
    async fn weigh(&self, batch: &Batch) -> Result<Appended, ReadError> {
        let mut known = Known::default();
        let (mut sessions, mut keys, mut lookups, mut answers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for claims in batch.entries.iter().map(|entry| &entry.claims) {
            sessions.extend(claims.session.map(|(id, _)| id.uuid()));
            match &claims.data_key {
                Some(DataKeyClaim::Existing(id)) => keys.push(id.uuid()),
                Some(DataKeyClaim::New(row)) => {
                    keys.push(row.id.uuid());
                    lookups.extend(row.lookup.map(|lookup| lookup.0.to_vec()));
                }
                None => {}
            }
            keys.extend(claims.take_seat.map(|seat| seat.key.uuid()));
            answers.extend(claims.idempotency.as_ref().map(|claim| claim.key.0.to_vec()));
        }
        let versions: Vec<(Uuid, i64)> = sqlx::query_as(
            "SELECT session_id, max(version) FROM counterfoil.session_entry WHERE session_id = ANY ($1) GROUP BY session_id",
        )
        .bind(sessions)
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        for (id, version) in versions {
            known.versions.insert(SessionId::new(id), unsigned(version)?);
        }
        let seats: Vec<(Uuid, i32)> =
            sqlx::query_as("SELECT id, open_sessions FROM counterfoil.data_key WHERE id = ANY ($1)")
                .bind(keys)
                .fetch_all(&self.readers)
                .await
                .map_err(unavailable)?;
        let seats = seats.into_iter().map(|(id, open)| (KeyId::new(id), u32::try_from(open).unwrap_or_default()));
        known.seats = seats.collect::<HashMap<_, _>>();
        let taken = |sql: &'static str, wanted: Vec<Vec<u8>>| async move {
            let found: Vec<Vec<u8>> =
                sqlx::query_scalar(sql).bind(wanted).fetch_all(&self.readers).await.map_err(unavailable)?;
            Ok::<_, ReadError>(found.into_iter().filter_map(|bytes| bytes.try_into().ok().map(Digest)).collect())
        };
        known.lookups = taken("SELECT lookup FROM counterfoil.data_key WHERE lookup = ANY ($1)", lookups).await?;
        known.answers = taken("SELECT key FROM counterfoil.kept_answer WHERE key = ANY ($1)", answers).await?;
        let refused = refusals(&known, batch);
        if refused.is_empty() {
            // What stood against it has gone between the two looks: another process appended.
            warn!("the claims of a batch hold on a second look");
            return Ok(Appended::Moved(self.head().await?));
        }
        Ok(Appended::Refused(refused))
    }
}
