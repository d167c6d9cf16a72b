//! Writing: one round trip for a batch, as long as nobody else writes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use audit_log::{
    AppendError, Appended, Batch, Known, LogHead, LogWriter, Prune, ReadError, Rewrap, SealedEntry, SubjectChange,
    Turn, encode_leaves, encode_sealed, refusals,
};
use merkle_log::Frontier;
use session_model::{Digest, KeyId, SessionId, Timestamp, TreeSize};
use sqlx::postgres::{PgDatabaseError, PgRow, PgSeverity};
use sqlx::{PgConnection, Row};
use tokio::time::timeout;
use uuid::Uuid;

use crate::PostgresLog;
use crate::changes::{Asked, Changes};
use crate::open::{NO_STANDBY, signed, unavailable, unsigned};
use crate::turn::{PostgresTurn, take_head_again};

pub(crate) const APPEND: &str = "SELECT * FROM counterfoil.append_batch(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
    $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41, $42, $43, $44, $45, $46,
    $47::text::jsonb)";

/// How often one append is sent, when what it was answered had ceased to be so by the time it was weighed.
const ATTEMPTS: u32 = 8;

/// In which transaction an append is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Within {
    /// Its own.
    Itself,
    /// One that holds the head.
    Turn,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What the function answered.
enum Answered {
    Committed,
    Moved(LogHead),
    /// The fence was raised since we last knew it.
    Fenced,
    /// A claim does not hold; here is what the database knows.
    Refused(Known),
    /// A unique index refused: a claim that something is new does not hold, and which one is told only with care.
    Doubtful,
}

#[async_trait]
impl LogWriter for PostgresLog {
    async fn append(&self, batch: &Batch) -> Result<Appended, AppendError> {
        if batch.entries.is_empty() {
            return Ok(Appended::Committed);
        }
        if self.lacks_standby.load(Ordering::Relaxed) {
            return Err(AppendError::NotDone(NO_STANDBY.into()));
        }
        let mut connection = self.take_writer().await.map_err(|error| AppendError::NotDone(error.into()))?;
        // Whatever goes wrong, the connection is not used again.
        let appended = self.ask(&mut connection, batch, Within::Itself).await?;
        self.put_back(connection);
        Ok(appended)
    }

    async fn turn(&self) -> Result<Option<Box<dyn Turn + '_>>, ReadError> {
        if self.lacks_standby.load(Ordering::Relaxed) {
            return Err(ReadError::Unavailable(NO_STANDBY.into()));
        }
        Ok(Some(Box::new(PostgresTurn::take(self).await.map_err(unavailable)?)))
    }

    async fn resolve(&self, batch: &Batch) -> Result<bool, ReadError> {
        sqlx::query_scalar("SELECT counterfoil.lock_head($1, $2)")
            .bind(signed(batch.expected.0))
            .bind(leaves(batch))
            .fetch_one(&self.readers)
            .await
            .map_err(unavailable)
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

    async fn rewrap(&self, keys: &[Rewrap]) -> Result<usize, ReadError> {
        let ids: Vec<Uuid> = keys.iter().map(|key| key.id.uuid()).collect();
        let (old, new): (Vec<&[u8]>, Vec<&[u8]>) =
            keys.iter().map(|key| (key.wrapped.as_slice(), key.rewrapped.as_slice())).unzip();
        let query = sqlx::query_scalar("SELECT counterfoil.rewrap($1, $2, $3)").bind(ids).bind(old).bind(new);
        let done: i64 = query.fetch_one(&self.readers).await.map_err(unavailable)?;
        Ok(usize::try_from(done).unwrap_or(usize::MAX))
    }

    async fn prune(&self, prune: &Prune) -> Result<bool, ReadError> {
        let Some(keys) = prune.keys() else { return Ok(false) };
        let parts = |parts: &[Option<SealedEntry>]| encode_sealed(parts.iter().map(Option::as_ref));
        sqlx::query_scalar("SELECT counterfoil.prune($1, $2, $3, $4)")
            .bind(signed(prune.first.0))
            .bind(parts(&prune.was))
            .bind((!prune.all()).then(|| parts(&prune.kept)))
            .bind(keys.into_iter().map(KeyId::uuid).collect::<Vec<Uuid>>())
            .fetch_one(&self.readers)
            .await
            .map_err(unavailable)
    }

    async fn prepare(&self, size: TreeSize, now: Timestamp) -> Result<(), ReadError> {
        self.look_for_standby().await.map_err(unavailable)?;
        let query = sqlx::query("SELECT counterfoil.prepare($1, $2)").bind(signed(size.0)).bind(now.as_micros());
        query.execute(&self.readers).await.map(drop).map_err(unavailable)
    }
}

/// An ERROR of the server's rolls back, and only then is it reported. A FATAL or PANIC ends its process, perhaps between the
/// commit and the answer; and if it is not the server who speaks, nobody knows.
pub(crate) fn failed(error: sqlx::Error) -> AppendError {
    if severity(&error).is_none_or(ends_session) {
        AppendError::Unknown(error.into())
    } else {
        AppendError::NotDone(error.into())
    }
}

/// How bad the server says it is; `None` if it is not the server who speaks.
pub(crate) fn severity(error: &sqlx::Error) -> Option<PgSeverity> {
    let reported = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    reported.map(PgDatabaseError::severity)
}

/// Whether the server ends the session with this.
pub(crate) const fn ends_session(severity: PgSeverity) -> bool {
    matches!(severity, PgSeverity::Fatal | PgSeverity::Panic)
}

fn leaves(batch: &Batch) -> Vec<u8> {
    encode_leaves(batch.entries.iter().map(|entry| entry.bytes.as_slice()))
}

/// The sealed parts; `None` if there are none at all.
fn parts(batch: &Batch) -> Option<Vec<u8>> {
    let any = batch.entries.iter().any(|entry| entry.sealed.is_some());
    any.then(|| encode_sealed(batch.entries.iter().map(|entry| entry.sealed.as_ref())))
}

impl PostgresLog {
    /// Appends on this connection, which is not to be used any more after a failure.
    pub(crate) async fn ask(
        &self,
        connection: &mut PgConnection,
        batch: &Batch,
        within: Within,
    ) -> Result<Appended, AppendError> {
        let mut careful = false;
        for _ in 0..ATTEMPTS {
            let answered = match timeout(self.answer_timeout, self.call(connection, batch, careful)).await {
                Ok(answered) => answered.map_err(failed)?,
                Err(elapsed) => return Err(AppendError::Unknown(elapsed.into())),
            };
            match answered {
                Answered::Committed => return Ok(Appended::Committed),
                Answered::Moved(head) => return Ok(Appended::Moved(head)),
                Answered::Fenced => {}
                Answered::Doubtful => {
                    careful = true;
                    // The failure ended the transaction, and gave the head away with it: another turn, in which others may have come first.
                    if within == Within::Turn {
                        let again = timeout(self.answer_timeout, take_head_again(self, connection)).await;
                        let again = again.map_err(|elapsed| AppendError::NotDone(elapsed.into()))?;
                        again.map_err(|failure| AppendError::NotDone(failure.into()))?;
                    }
                }
                Answered::Refused(mut known) => {
                    let held = timeout(self.answer_timeout, held(connection, batch)).await;
                    let held = held.map_err(|elapsed| AppendError::NotDone(elapsed.into()))?;
                    known.held = held.map_err(|failure| AppendError::NotDone(failure.into()))?;
                    let refused = refusals(&known, batch);
                    // If there is none, what stood against it was forgotten between two statements.
                    if !refused.is_empty() {
                        return Ok(Appended::Refused(refused));
                    }
                }
            }
        }
        Err(AppendError::NotDone("other writers were in the way each time".into()))
    }

    async fn call(&self, connection: &mut PgConnection, batch: &Batch, careful: bool) -> Result<Answered, sqlx::Error> {
        let asked = Asked::of(batch);
        let changes = Changes::of(batch);
        // Of each new key that was asked for, in that order. One claimed twice is refused anyway.
        let new_keys = || asked.k_id.iter().map(|id| changes.new_keys.get(&KeyId::new(*id)));
        let k_seats: Vec<i32> = new_keys().map(|key| key.map_or(0, |key| key.seats)).collect();
        let k_owner: Vec<Option<Uuid>> = new_keys().map(|key| key?.owner.map(KeyId::uuid)).collect();
        let opened = || changes.opened.iter();
        let credentials = (!changes.kept.is_empty()).then(|| serde_json::Value::Array(changes.kept).to_string());
        // All of the answer is awaited, not just the row: the commit comes after it.
        let answer = sqlx::query(APPEND)
            .bind(careful)
            .bind(self.fence.load(Ordering::Relaxed))
            .bind(signed(batch.expected.0))
            .bind(signed(batch.head.size().0))
            .bind(batch.head.time.as_micros())
            .bind(batch.head.frontier.to_bytes())
            .bind(&batch.checkpoint)
            .bind(leaves(batch))
            .bind(parts(batch))
            .bind(batch.entries.iter().flat_map(|entry| entry.hash.0).collect::<Vec<u8>>())
            .bind(batch.nodes.iter().map(|node| i16::from(node.level)).collect::<Vec<_>>())
            .bind(batch.nodes.iter().map(|node| signed(node.index)).collect::<Vec<_>>())
            .bind(batch.nodes.iter().map(|node| node.hash.0.to_vec()).collect::<Vec<_>>())
            .bind(asked.s_at)
            .bind(asked.s_id)
            .bind(asked.s_version)
            .bind(asked.e_at)
            .bind(asked.e_id)
            .bind(asked.k_at)
            .bind(&asked.k_id)
            .bind(asked.k_lookup)
            .bind(asked.k_wrapped)
            .bind(k_seats)
            .bind(k_owner)
            .bind(asked.t_at)
            .bind(asked.t_id)
            .bind(asked.t_cap)
            .bind(asked.f_id)
            .bind(changes.seats.keys().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(changes.seats.values().map(|seats| seats.sum).collect::<Vec<_>>())
            .bind(changes.seats.values().map(|seats| seats.low).collect::<Vec<_>>())
            .bind(changes.owners.keys().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(changes.owners.values().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(opened().map(|(id, _)| id.uuid()).collect::<Vec<_>>())
            .bind(opened().map(|(_, session)| session.realm.as_str()).collect::<Vec<_>>())
            .bind(opened().map(|(_, session)| session.key.uuid()).collect::<Vec<_>>())
            .bind(opened().map(|(_, session)| session.kind.name()).collect::<Vec<_>>())
            .bind(opened().map(|(_, session)| session.open).collect::<Vec<_>>())
            .bind(changes.bound.keys().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(changes.bound.values().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(changes.closed.iter().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(asked.a_at)
            .bind(asked.a_key)
            .bind(asked.a_request)
            .bind(asked.a_answer)
            .bind(asked.a_expires_us)
            .bind(credentials)
            .fetch_one(connection)
            .await;
        let row = match answer {
            Err(failure) if !careful && is_taken(&failure) => return Ok(Answered::Doubtful),
            answer => answer?,
        };
        self.fence.store(row.try_get("fence")?, Ordering::Relaxed);
        match row.try_get::<&str, _>("status")? {
            "committed" => Ok(Answered::Committed),
            "moved" => head(&row).map(Answered::Moved),
            "fenced" => Ok(Answered::Fenced),
            "refused" => known(&row).map(Answered::Refused),
            other => Err(odd(format!("the status {other}"))),
        }
    }
}

/// Whether a unique index refused (SQLSTATE 23505).
fn is_taken(failure: &sqlx::Error) -> bool {
    failure.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

/// Which of the keys that a batch would destroy are under legal hold.
async fn held(connection: &mut PgConnection, batch: &Batch) -> Result<HashSet<KeyId>, sqlx::Error> {
    let erased = batch.entries.iter().filter_map(|entry| match entry.claims.subject {
        Some(SubjectChange::Erased(key)) => Some(key.uuid()),
        Some(SubjectChange::Held(..)) | None => None,
    });
    let erased: Vec<Uuid> = erased.collect();
    if erased.is_empty() {
        return Ok(HashSet::new());
    }
    let held: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM counterfoil.data_key WHERE id = ANY ($1) AND held")
        .bind(erased)
        .fetch_all(connection)
        .await?;
    Ok(held.into_iter().map(KeyId::new).collect())
}

fn odd(what: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(Cause::from(format!("counterfoil.append_batch answered {what}")))
}

pub(crate) fn head(row: &PgRow) -> Result<LogHead, sqlx::Error> {
    let size = TreeSize(unsigned(row.try_get("size")?).map_err(odd)?);
    let frontier: Vec<u8> = row.try_get("frontier")?;
    let frontier = Frontier::from_bytes(size, &frontier).map_err(odd)?;
    let time = Timestamp::from_micros(row.try_get("time_us")?);
    Ok(LogHead { frontier, time, checkpoint: row.try_get("checkpoint")? })
}

fn known(row: &PgRow) -> Result<Known, sqlx::Error> {
    let list = |name| Ok::<Vec<Uuid>, sqlx::Error>(row.try_get::<Option<_>, _>(name)?.unwrap_or_default());
    let digests = |name| {
        let found: Vec<Vec<u8>> = row.try_get::<Option<_>, _>(name)?.unwrap_or_default();
        Ok::<_, sqlx::Error>(found.into_iter().filter_map(|bytes| bytes.try_into().ok().map(Digest)).collect())
    };
    let versions: Vec<i64> = row.try_get::<Option<_>, _>("known_versions")?.unwrap_or_default();
    let seats: Vec<i32> = row.try_get::<Option<_>, _>("known_seats")?.unwrap_or_default();
    let versions = list("known_sessions")?.into_iter().map(SessionId::new).zip(versions);
    let seats = list("known_keys")?.into_iter().map(KeyId::new).zip(seats);
    Ok(Known {
        versions: versions.map(|(id, version)| (id, u64::try_from(version).unwrap_or(0))).collect::<HashMap<_, _>>(),
        seats: seats.map(|(id, seats)| (id, u32::try_from(seats).unwrap_or(0))).collect::<HashMap<_, _>>(),
        held: HashSet::new(),
        lookups: digests("known_lookups")?,
        answers: digests("known_answers")?,
    })
}
