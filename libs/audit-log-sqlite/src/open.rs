//! Opening the file: permissions, settings, schema, connections.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use audit_log::ReadError;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection, SqlitePool};
use tokio::sync::Mutex;

/// How often opening is tried. SQLite does not wait for a lock while a new file becomes one with a write-ahead log: who meets
/// another process at that finds it done when it looks again.
const OPEN_ATTEMPTS: u32 = 3;

/// How to open a [`SqliteLog`].
#[derive(Debug, Clone)]
pub struct SqliteLogOptions {
    /// The database file; made (mode 0600) if it is not there.
    pub path: PathBuf,
    /// Connections that read at the same time. Default 4.
    pub readers: u32,
    /// How long an append waits for the write lock of another process before it answers "not done". Default 5 s.
    pub busy_timeout: Duration,
    /// Bytes of the writing connection's page cache. Default 16 MiB; fills with use.
    pub cache_bytes: u32,
    /// Pages in the write-ahead log at which it is copied into the file. Default 2,000 (8 MB).
    pub checkpoint_pages: u32,
}

impl SqliteLogOptions {
    /// The defaults, for the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            readers: 4,
            busy_timeout: Duration::from_secs(5),
            cache_bytes: 16 << 20,
            checkpoint_pages: 2_000,
        }
    }
}

impl From<&Path> for SqliteLogOptions {
    fn from(path: &Path) -> Self {
        Self::new(path)
    }
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is not there and cannot be made.
    #[error("the log's file {path} cannot be made")]
    Create {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file cannot be opened, or is no SQLite database.
    #[error("the log's database cannot be opened")]
    Database(#[from] sqlx::Error),
    /// The schema cannot be brought up to date.
    #[error("the log's schema cannot be brought up to date")]
    Schema(#[from] MigrateError),
}

/// A log in a SQLite file.
pub struct SqliteLog {
    /// The writing connection, between appends. Whoever writes takes it out, and puts it back only outside a transaction: one
    /// that is dropped on the way (an append that was cancelled) ends its transaction by closing.
    writer: Mutex<Option<SqliteConnection>>,
    writer_options: SqliteConnectOptions,
    pub(crate) readers: SqlitePool,
}

impl fmt::Debug for SqliteLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteLog({})", self.writer_options.get_filename().display())
    }
}

impl SqliteLog {
    /// Opens the log in a file, after making it and its schema where they are missing.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(options: impl Into<SqliteLogOptions>) -> Result<Self, OpenError> {
        let options = options.into();
        make_private(&options.path)?;
        let common = SqliteConnectOptions::new()
            .filename(&options.path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(options.busy_timeout)
            .statement_cache_capacity(128)
            .disable_statement_logging();
        let writer_options = common
            .clone()
            .pragma("cache_size", format!("-{}", options.cache_bytes / 1024))
            .pragma("wal_autocheckpoint", options.checkpoint_pages.to_string())
            .pragma("journal_size_limit", (64_u32 << 20).to_string())
            .pragma("temp_store", "MEMORY");
        let mut attempt = 1;
        let writer = loop {
            match connect_and_migrate(&writer_options).await {
                Ok(writer) => break writer,
                Err(_) if attempt < OPEN_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        };
        let readers = SqlitePoolOptions::new()
            .max_connections(options.readers.max(1))
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_lazy_with(common.pragma("query_only", "1"));
        Ok(Self { writer: Mutex::new(Some(writer)), writer_options, readers })
    }

    /// Ends every connection. The last one of all processes folds the write-ahead log into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        if let Some(writer) = self.writer.lock().await.take()
            && let Err(error) = writer.close().await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "failed to close the log's database");
        }
    }

    /// Lets the file grow to `pages` pages of 4 KiB at most, or as far as it can (`None`). Beyond that appends are "not done",
    /// as on a full disk.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`].
    pub async fn limit_pages(&self, pages: Option<u32>) -> Result<(), ReadError> {
        // 4,294,967,294 is the most that SQLite knows.
        let pages = pages.unwrap_or(u32::MAX - 1);
        let mut writer = self.writer().await.map_err(unavailable)?;
        sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}")))
            .execute(writer.connection())
            .await
            .map_err(unavailable)?;
        writer.release();
        Ok(())
    }

    /// The writing connection, when nobody else in this process writes.
    pub(crate) async fn writer(&self) -> Result<Writer<'_>, sqlx::Error> {
        let mut slot = self.writer.lock().await;
        let connection = match slot.take() {
            Some(connection) => connection,
            None => self.writer_options.connect().await?,
        };
        Ok(Writer { slot, connection })
    }
}

/// The writing connection while it is in use. Dropped without [`Writer::release`], it is closed, and what it had begun is
/// rolled back.
pub(crate) struct Writer<'a> {
    slot: tokio::sync::MutexGuard<'a, Option<SqliteConnection>>,
    connection: SqliteConnection,
}

impl Writer<'_> {
    pub(crate) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    /// Gives the connection back. To be called outside a transaction only.
    pub(crate) fn release(self) {
        let Self { mut slot, connection } = self;
        *slot = Some(connection);
    }
}

pub(crate) fn unavailable(error: sqlx::Error) -> ReadError {
    ReadError::Unavailable(Box::new(error))
}

async fn connect_and_migrate(options: &SqliteConnectOptions) -> Result<SqliteConnection, OpenError> {
    let mut connection = options.connect().await?;
    // The migrator takes no lock on SQLite. The transaction is the lock: whoever comes second waits, and finds the schema made.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    // `Migrator::run` on a connection makes a future that is not `Send`; it is this and no more.
    migrator().run_direct(None, &mut *transaction, false).await?;
    transaction.commit().await?;
    Ok(connection)
}

/// What to run; a newer program's migrations are none of our business (STYLE section 8: expand, move, contract).
fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("../../migrations/sqlite");
    migrator.set_ignore_missing(true);
    migrator
}

/// Makes the file for its owner alone; SQLite gives its companions (`-wal`, `-shm`) the same mode.
///
/// A file that is there is not even opened: closing it would drop the locks that SQLite holds on it in this process
/// (<https://www.sqlite.org/howtocorrupt.html> section 2.2).
fn make_private(path: &Path) -> Result<(), OpenError> {
    let mut file = std::fs::OpenOptions::new();
    file.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
    match file.open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(OpenError::Create { path: path.to_owned(), source }),
    }
}

/// A number of SQLite's that cannot be negative in a log.
pub(crate) fn unsigned(number: i64) -> Result<u64, ReadError> {
    u64::try_from(number).map_err(|_| ReadError::Corrupt(format!("a count or index of {number}")))
}

/// A number for SQLite. What it cannot hold, no log reaches: it then finds nothing.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Text that must read as one of ours.
pub(crate) fn parsed<T: FromStr>(text: &str, what: &str) -> Result<T, ReadError> {
    text.parse().map_err(|_| ReadError::Corrupt(format!("no {what}")))
}
