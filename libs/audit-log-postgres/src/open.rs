//! Connecting, and what is refused then.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use audit_log::ReadError;
use parking_lot::Mutex;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/postgres");

/// The schema this program works with.
const SCHEMA: i32 = 1;

/// How to reach PostgreSQL.
#[derive(Clone)]
pub struct PostgresConfig {
    /// `postgres://user:password@host/database`, as a role granted `counterfoil_writer`.
    pub url: String,
    /// Connections that read at most; one more appends.
    pub connections: u32,
    /// How long the server may work on one statement. Less than the append timeout, so that what is still running when we stop
    /// waiting has an end.
    pub statement_timeout: Duration,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresConfig({})", self.application_name)
    }
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The server cannot be reached, or refuses.
    #[error("PostgreSQL cannot be reached")]
    Database(#[from] sqlx::Error),
    /// The schema is missing or another version.
    #[error(
        "the log's schema is {found}, and this program needs version {SCHEMA}: run `counterfoil migrate` as its owner"
    )]
    Schema {
        /// What there is.
        found: String,
    },
    /// What is acknowledged could be lost.
    #[error(
        "synchronous_commit is {setting} for this role: what is acknowledged could be lost. Set it to on, remote_write or \
         remote_apply"
    )]
    NotDurable {
        /// What it is set to.
        setting: String,
    },
    /// The schema cannot be brought up to date.
    #[error("the log's schema cannot be brought up to date")]
    Migrate(#[from] MigrateError),
}

/// A log in PostgreSQL.
pub struct PostgresLog {
    pub(crate) readers: PgPool,
    /// The appending connection, between appends. Whoever appends takes it out, and puts it back only when the server has
    /// answered: one that is dropped on the way (an append that was cancelled) is closed, and never gets the next caller an
    /// answer that was another's.
    pub(crate) writer: Mutex<Option<PgConnection>>,
    writer_options: PgConnectOptions,
    connect_timeout: Duration,
}

impl fmt::Debug for PostgresLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostgresLog")
    }
}

impl PostgresLog {
    /// Connects, as the writer.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn connect(config: PostgresConfig) -> Result<Self, OpenError> {
        let timeout = config.statement_timeout.as_millis().to_string();
        let options = PgConnectOptions::from_str(&config.url)?
            .application_name(&config.application_name)
            .options([("statement_timeout", timeout.as_str()), ("lock_timeout", timeout.as_str())]);
        let pool = |most: u32| {
            PgPoolOptions::new()
                .max_connections(most)
                .acquire_timeout(config.statement_timeout)
                .test_before_acquire(false)
        };
        let readers = pool(config.connections).connect_with(options.clone()).await?;
        let known: Option<String> =
            sqlx::query_scalar("SELECT to_regclass('counterfoil.settings')::text").fetch_one(&readers).await?;
        let version: Option<i32> = match known {
            None => None,
            Some(_) => {
                sqlx::query_scalar("SELECT schema_version FROM counterfoil.settings").fetch_optional(&readers).await?
            }
        };
        if version != Some(SCHEMA) {
            let found = version.map_or_else(|| "missing".to_owned(), |version| format!("version {version}"));
            return Err(OpenError::Schema { found });
        }
        let setting: String = sqlx::query_scalar("SHOW synchronous_commit").fetch_one(&readers).await?;
        if setting == "off" || setting == "local" {
            return Err(OpenError::NotDurable { setting });
        }
        Ok(Self {
            readers,
            writer: Mutex::new(None),
            writer_options: options,
            connect_timeout: config.statement_timeout,
        })
    }

    /// The appending connection, or a new one.
    pub(crate) async fn take_writer(&self) -> Result<PgConnection, sqlx::Error> {
        if let Some(connection) = self.writer.lock().take() {
            return Ok(connection);
        }
        let connecting = PgConnection::connect_with(&self.writer_options);
        tokio::time::timeout(self.connect_timeout, connecting).await.map_err(|_| sqlx::Error::PoolTimedOut)?
    }

    /// Puts the appending connection back.
    pub(crate) fn put_back(&self, connection: PgConnection) {
        *self.writer.lock() = Some(connection);
    }
}

/// Brings the schema up to date. Needs a role that may create schemas and roles.
///
/// # Errors
/// [`OpenError`].
pub async fn migrate(url: &str) -> Result<(), OpenError> {
    let mut connection = PgConnection::connect(url).await?;
    MIGRATIONS.run(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// A failure of the database, as a failure to read.
pub(crate) fn unavailable(failure: sqlx::Error) -> ReadError {
    ReadError::Unavailable(failure.into())
}

/// PostgreSQL has no unsigned numbers; ours never reach 2^63.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Back again.
pub(crate) fn unsigned(number: i64) -> Result<u64, ReadError> {
    u64::try_from(number).map_err(|_| ReadError::Corrupt(format!("a negative number: {number}")))
}
