//! Connecting, and what is refused then.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use audit_log::ReadError;
use parking_lot::Mutex;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection, PgPool, SqlStr};
use tracing::warn;

use crate::append::APPEND;
use crate::readers::{Readers, Standing};

/// The schema this program was written for. A newer one that still serves it will do: see migrations/README.md.
const SCHEMA: i32 = 3;

/// A pooled connection that was idle for longer is tried before it is used. A server that restarts breaks all of them, and
/// each would cost somebody a failure; one that was in use a moment ago is not worth the round trip.
const IDLE_TRUSTED: Duration = Duration::from_millis(250);

/// How to reach PostgreSQL.
#[derive(Clone)]
pub struct PostgresConfig {
    /// `postgres://user:password@host/database`, as a role granted `counterfoil_writer`.
    pub url: String,
    /// Connections that read at most; one more appends, and one looks data keys up.
    pub connections: u32,
    /// How long the server may work on one statement. Less than the append timeout, so that what is still running when we stop
    /// waiting has an end.
    pub statement_timeout: Duration,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Whether the server must have a synchronous standby: then a checkpoint is seen by nobody before a second machine has it, and no
    /// failover to that machine can contradict it.
    pub require_standby: bool,
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
    /// The role may not do what the service does.
    #[error("the role {role} lacks the rights of the writer: GRANT counterfoil_writer TO {role}")]
    NotWriter {
        /// The role.
        role: String,
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
    /// A standby is required, and none is named.
    #[error("{0}")]
    NoStandby(&'static str),
    /// The schema cannot be brought up to date.
    #[error("the log's schema cannot be brought up to date")]
    Migrate(#[from] MigrateError),
}

/// A log in PostgreSQL.
pub struct PostgresLog {
    pub(crate) readers: Readers,
    /// Looks data keys up.
    pub(crate) lookups: Standing,
    /// The appending connection, between appends. Whoever appends takes it out, and puts it back only when the server has
    /// answered: one that is dropped on the way (an append that was cancelled) is closed, and never gets the next caller an
    /// answer that was another's.
    pub(crate) writer: Mutex<Option<PgConnection>>,
    /// The fence as last seen: an append that names an older one is refused. Only ever a hint; the database knows.
    pub(crate) fence: AtomicI64,
    /// How long an answer to an append is awaited: longer than the server works on it.
    pub(crate) answer_timeout: Duration,
    writer_options: PgConnectOptions,
    connect_timeout: Duration,
    require_standby: bool,
    /// Whether it was found without the standby that is required: then nothing is appended.
    pub(crate) lacks_standby: AtomicBool,
}

/// What is said where a standby is required and none is named.
pub(crate) const NO_STANDBY: &str = "a synchronous standby is required (log.require_synchronous_standby), and the server waits for none: its \
                                     synchronous_standby_names is empty, or synchronous_commit is local or off";

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
        let options = PgConnectOptions::from_str(&config.url)?.application_name(&config.application_name).options([
            ("statement_timeout", timeout.as_str()),
            ("lock_timeout", timeout.as_str()),
            ("idle_in_transaction_session_timeout", timeout.as_str()),
            // A statement whose last bytes never arrive holds its locks, and no other timeout counts then: the server has to
            // notice by itself, within half a minute, that we are gone.
            ("tcp_keepalives_idle", "10"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
            // Whatever is asked here has an index. A plan that was made while a table was small would go through all of it, and is kept for as long as
            // a minute after that has ceased to be a good idea.
            ("enable_seqscan", "off"),
            ("jit", "off"),
        ]);
        let readers = PgPoolOptions::new()
            .max_connections(config.connections.max(1))
            .acquire_timeout(config.statement_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, known| {
                Box::pin(async move {
                    // An error, too, has the pool take another.
                    if known.idle_for > IDLE_TRUSTED { connection.ping().await.map(|()| true) } else { Ok(true) }
                })
            })
            .connect_with(options.clone())
            .await?;
        check(&readers).await?;
        if config.require_standby && !has_standby(&readers).await? {
            return Err(OpenError::NoStandby(NO_STANDBY));
        }
        let fence = sqlx::query_scalar("SELECT fence FROM counterfoil.log_head")
            .fetch_one(&readers)
            .await
            .map(AtomicI64::new)?;
        // A little longer than the server works on a statement: most often it says itself why it gave up.
        let within = config.statement_timeout.mul_f64(1.1);
        // Whoever asks the same small questions all the time has them planned once. (The function that appends does not say so itself: that would be
        // set and reset each time.)
        let planned = options.options([("plan_cache_mode", "force_generic_plan")]);
        Ok(Self {
            readers: Readers::new(readers, within),
            lookups: Standing::new(planned.clone(), within),
            writer: Mutex::new(None),
            fence,
            answer_timeout: config.statement_timeout * 2,
            writer_options: planned,
            connect_timeout: config.statement_timeout,
            require_standby: config.require_standby,
            lacks_standby: AtomicBool::new(false),
        })
    }

    /// Looks again whether the server has the standby that is required.
    pub(crate) async fn look_for_standby(&self) -> Result<(), sqlx::Error> {
        if self.require_standby {
            let lacks = !has_standby(&self.readers).await?;
            self.lacks_standby.store(lacks, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The appending connection, or a new one.
    pub(crate) async fn take_writer(&self) -> Result<PgConnection, sqlx::Error> {
        let idle = self.writer.lock().take();
        match idle {
            Some(connection) => Ok(connection),
            None => self.connect_writer().await,
        }
    }

    /// A new connection that appends. It has the statement ready, so that the append itself is one round trip, and whatever is
    /// wrong with the statement is known before anything can have been done.
    pub(crate) async fn connect_writer(&self) -> Result<PgConnection, sqlx::Error> {
        let connecting = async {
            let mut connection = PgConnection::connect_with(&self.writer_options).await?;
            connection.prepare(SqlStr::from_static(APPEND)).await?;
            Ok(connection)
        };
        tokio::time::timeout(self.connect_timeout, connecting).await.map_err(|_| sqlx::Error::PoolTimedOut)?
    }

    /// Puts the appending connection back.
    pub(crate) fn put_back(&self, connection: PgConnection) {
        *self.writer.lock() = Some(connection);
    }
}

/// Whether the log may be opened: its schema, what this role may do, and what the server's settings promise.
async fn check(readers: &PgPool) -> Result<(), OpenError> {
    // By the catalogue: asking for the table would fail, and not say why, where the schema may not be used.
    let (exists, role, writer): (bool, String, bool) = sqlx::query_as(
        "SELECT to_regnamespace('counterfoil') IS NOT NULL, current_user::text,
                coalesce(has_schema_privilege(to_regnamespace('counterfoil'), 'USAGE'), false)
                AND (SELECT coalesce(bool_and(has_function_privilege(oid, 'EXECUTE')), false) FROM pg_proc
                     WHERE pronamespace = to_regnamespace('counterfoil') AND proname IN ('append_batch', 'lock_head', 'project'))",
    )
    .fetch_one(readers)
    .await?;
    if !exists {
        return Err(OpenError::Schema { found: "missing".to_owned() });
    }
    if !writer {
        return Err(OpenError::NotWriter { role });
    }
    let versions: Option<(i32, i32)> =
        sqlx::query_as("SELECT serves_from, schema_version FROM counterfoil.settings").fetch_optional(readers).await?;
    let (from, to) = versions.ok_or_else(|| OpenError::Schema { found: "incomplete".to_owned() })?;
    if !(from..=to).contains(&SCHEMA) {
        let found = if from == to { format!("version {to}") } else { format!("version {to}, serving {from} to {to}") };
        return Err(OpenError::Schema { found });
    }
    let (setting, fsync, superuser): (String, String, bool) = sqlx::query_as(
        "SELECT current_setting('synchronous_commit'), current_setting('fsync'),
                (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)",
    )
    .fetch_one(readers)
    .await?;
    if setting == "off" || setting == "local" {
        return Err(OpenError::NotDurable { setting });
    }
    if fsync != "on" {
        warn!("fsync is off: a crash of the database machine can lose what was acknowledged, and damage the log");
    }
    if superuser {
        warn!(%role, "the log is written as a superuser, whom no grant restrains: a role with counterfoil_writer is enough");
    }
    Ok(())
}

/// Whether a commit waits for a standby. A standby that is named and not there makes commits wait, and so time out.
async fn has_standby<'c>(readers: impl sqlx::Executor<'c, Database = sqlx::Postgres>) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT current_setting('synchronous_standby_names') <> '' AND current_setting('synchronous_commit') NOT IN ('off', 'local')",
    )
    .fetch_one(readers)
    .await
}

/// Brings the schema up to date. Needs a role that may create schemas and roles.
///
/// # Errors
/// [`OpenError`].
pub async fn migrate(url: &str) -> Result<(), OpenError> {
    // A pool of one: `Migrator::run` on a plain connection makes a future that is not `Send`.
    let pool = PgPoolOptions::new().max_connections(1).connect(url).await?;
    let migrated = migrator().run(&pool).await;
    pool.close().await;
    Ok(migrated?)
}

/// What to run; a newer program's migrations are none of our business (STYLE section 8: expand, move, contract).
fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("../../migrations/postgres");
    migrator.set_ignore_missing(true);
    migrator
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
