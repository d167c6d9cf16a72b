//! A turn: a transaction that holds the head while its batch is made.
//!
//! Three round trips instead of one: to take the head, to append, to commit. Until the last is sent nothing can have been done; the server rolls back
//! when the connection breaks, and ends the session itself when it has heard nothing of us for half a second (`counterfoil.take_head`).

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use audit_log::{AppendError, Appended, Batch, LogHead, Turn};
use sqlx::error::DatabaseError;
use sqlx::{PgConnection, Row};
use tokio::time::timeout;

use crate::PostgresLog;
use crate::append::{Within, ends_session, failed, head, severity};

/// A transaction that holds the head.
pub(crate) struct PostgresTurn<'a> {
    log: &'a PostgresLog,
    /// Within the transaction; `None` once the turn is over. Dropped, it is closed, which rolls back.
    connection: Option<PgConnection>,
    head: LogHead,
}

impl<'a> PostgresTurn<'a> {
    /// Waits for it.
    pub(crate) async fn take(log: &'a PostgresLog) -> Result<Self, sqlx::Error> {
        let mut connection = log.take_writer().await?;
        let head = match take_head(log, &mut connection).await {
            // The connection may have broken since it was last used. Nothing was done: another does as well.
            Err(failure) if broke(&failure) => {
                connection = log.connect_writer().await?;
                take_head(log, &mut connection).await?
            }
            head => head?,
        };
        Ok(Self { log, connection: Some(connection), head })
    }
}

/// Gives the head up and waits for it once more, on the same connection.
pub(crate) async fn take_head_again(log: &PostgresLog, connection: &mut PgConnection) -> Result<LogHead, sqlx::Error> {
    sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
    take_head(log, connection).await
}

async fn take_head(log: &PostgresLog, connection: &mut PgConnection) -> Result<LogHead, sqlx::Error> {
    let taking = sqlx::raw_sql("BEGIN; SELECT * FROM counterfoil.take_head()").fetch_one(connection);
    let row = timeout(log.answer_timeout, taking).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
    log.fence.store(row.try_get("fence")?, Ordering::Relaxed);
    head(&row)
}

#[async_trait]
impl Turn for PostgresTurn<'_> {
    fn head(&self) -> &LogHead {
        &self.head
    }

    async fn append(&mut self, batch: &Batch) -> Result<Appended, AppendError> {
        let connection = self.connection.take();
        let mut connection = connection.ok_or_else(|| AppendError::NotDone("the turn is over".into()))?;
        match self.log.ask(&mut connection, batch, Within::Turn).await {
            Ok(Appended::Committed) => {}
            Ok(Appended::Refused(refused)) => {
                self.connection = Some(connection);
                return Ok(Appended::Refused(refused));
            }
            Ok(Appended::Moved(head)) => return Ok(Appended::Moved(head)),
            // Whatever went wrong, and whether there was an answer or not: the commit was never sent.
            Err(AppendError::NotDone(cause) | AppendError::Unknown(cause)) => return Err(AppendError::NotDone(cause)),
        }
        match timeout(self.log.answer_timeout, sqlx::raw_sql("COMMIT").execute(&mut connection)).await {
            Ok(Ok(_)) => {
                self.log.put_back(connection);
                Ok(Appended::Committed)
            }
            Ok(Err(failure)) if was_idle(&failure) => Err(AppendError::NotDone(failure.into())),
            Ok(Err(failure)) => Err(failed(failure)),
            Err(elapsed) => Err(AppendError::Unknown(elapsed.into())),
        }
    }

    async fn end(mut self: Box<Self>) {
        if let Some(mut connection) = self.connection.take()
            && let Ok(Ok(_)) =
                timeout(self.log.answer_timeout, sqlx::raw_sql("ROLLBACK").execute(&mut connection)).await
        {
            self.log.put_back(connection);
        }
    }
}

/// Whether the connection had come to its end, rather than that the server refused.
pub(crate) fn broke(failure: &sqlx::Error) -> bool {
    matches!(failure, sqlx::Error::Io(_)) || severity(failure).is_some_and(ends_session)
}

/// Whether the server ended the session because it was left alone within its transaction (SQLSTATE 25P03). It says so only while it waits for a statement: it has not read the commit, and never will.
fn was_idle(failure: &sqlx::Error) -> bool {
    failure.as_database_error().and_then(DatabaseError::code).is_some_and(|code| code == "25P03")
}
