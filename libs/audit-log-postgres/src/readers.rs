//! Connections that read, with an end to every wait.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryFutureExt, TryStreamExt};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Connection, Describe, Either, Error, Execute, Executor, PgConnection, PgPool, Postgres, SqlStr};
use tokio::sync::Mutex;

use crate::turn::broke;

/// A pool whose statements are given up when the server does not answer: one that was cut off, or stands still, sends nothing at all,
/// and its own timeout ends nothing here.
#[derive(Debug, Clone)]
pub(crate) struct Readers {
    pool: PgPool,
    within: Duration,
}

impl Readers {
    pub(crate) const fn new(pool: PgPool, within: Duration) -> Self {
        Self { pool, within }
    }

    /// Waits for an answer. The time counts from the wait for a connection to the last row.
    async fn in_time<T>(&self, statement: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::time::timeout(self.within, statement).await.map_err(|_| Error::PoolTimedOut)?
    }

    async fn lend(&self) -> Result<Lent, Error> {
        Ok(Lent { connection: self.pool.acquire().await?, answered: false })
    }
}

/// One connection, for a question that is asked all the time: a pool hands out each of its connections in turn, and a server process that has not
/// worked for a while takes several times as long for the same.
#[derive(Debug)]
pub(crate) struct Standing {
    options: PgConnectOptions,
    within: Duration,
    /// Taken out by whoever asks, and put back when he was answered.
    connection: Mutex<Option<PgConnection>>,
}

impl Standing {
    pub(crate) fn new(options: PgConnectOptions, within: Duration) -> Self {
        Self { options, within, connection: Mutex::new(None) }
    }

    /// All rows of a question that has one list of bytes. What broke since it was last used is replaced once.
    pub(crate) async fn fetch_all(&self, question: &'static str, list: &[&[u8]]) -> Result<Vec<PgRow>, Error> {
        let asking = async {
            let mut place = self.connection.lock().await;
            if let Some(mut connection) = place.take() {
                match sqlx::query(question).bind(list).fetch_all(&mut connection).await {
                    Err(failure) if broke(&failure) => {}
                    answer => {
                        *place = Some(connection);
                        return answer;
                    }
                }
            }
            let mut connection = PgConnection::connect_with(&self.options).await?;
            let answer = sqlx::query(question).bind(list).fetch_all(&mut connection).await?;
            *place = Some(connection);
            Ok(answer)
        };
        tokio::time::timeout(self.within, asking).await.map_err(|_| Error::PoolTimedOut)?
    }
}

/// A connection that is not used again, unless it was given back: somebody who no longer waits leaves an answer on it that is nobody's.
struct Lent {
    connection: PoolConnection<Postgres>,
    answered: bool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.answered {
            self.connection.close_on_drop();
        }
    }
}

type Step = Either<PgQueryResult, PgRow>;

impl<'p> Executor<'p> for &'_ Readers {
    type Database = Postgres;

    /// All rows come before the first is seen: what is read here is bounded by who asks.
    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let readers = self.clone();
        let rows = async move {
            let reading = async {
                let mut lent = readers.lend().await?;
                let steps = lent.connection.fetch_many(query).try_collect::<Vec<Step>>().await;
                lent.answered = true;
                steps
            };
            Ok(stream::iter(readers.in_time(reading).await?.into_iter().map(Ok)))
        };
        rows.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let readers = self.clone();
        let reading = async move {
            let reading = async {
                let mut lent = readers.lend().await?;
                let row = lent.connection.fetch_optional(query).await;
                lent.answered = true;
                row
            };
            readers.in_time(reading).await
        };
        reading.boxed()
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        let readers = self.clone();
        async move { readers.pool.acquire().await?.prepare_with(sql, parameters).await }.boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        let readers = self.clone();
        async move { readers.pool.acquire().await?.describe(sql).await }.boxed()
    }
}
