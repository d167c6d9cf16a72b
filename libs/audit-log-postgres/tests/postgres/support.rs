//! A database for each test.

use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use audit_log_postgres::{OpenError, PostgresConfig, PostgresLog, migrate};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

/// A migrated database, and three roles that may log in to it.
pub(crate) struct Database {
    server: PgConnectOptions,
    pub(crate) name: String,
}

impl Database {
    /// With the schema.
    pub(crate) async fn new() -> Self {
        let database = Self::empty().await;
        migrate(&database.superuser()).await.unwrap();
        // Only now are there groups to join.
        database
            .run(&format!(
                "CREATE ROLE {0}_writer LOGIN PASSWORD 'secret' IN ROLE counterfoil_writer;
                 CREATE ROLE {0}_auditor LOGIN PASSWORD 'secret' IN ROLE counterfoil_auditor",
                database.name
            ))
            .await;
        database
    }

    /// Without.
    pub(crate) async fn empty() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let url = std::env::var("TEST_DATABASE_URL").expect(
            "no PostgreSQL to test with: run ./test, which starts one, or set TEST_DATABASE_URL=postgres://… to a superuser's",
        );
        let server = PgConnectOptions::from_str(&url).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cf_test_{}_{number}", std::process::id());
        let mut connection = PgConnection::connect_with(&server).await.unwrap();
        // A database left over by a process that was killed and had our number.
        for sql in [format!("DROP DATABASE IF EXISTS {name}"), format!("CREATE DATABASE {name}")] {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        }
        connection.close().await.unwrap();
        Self { server, name }
    }

    /// URL of its superuser.
    pub(crate) fn superuser(&self) -> String {
        self.server.clone().database(&self.name).to_url_lossy().to_string()
    }

    /// URL of the role `…_writer` or `…_auditor`, or another that a test has made.
    pub(crate) fn url(&self, role: &str) -> String {
        let options = self.server.clone().database(&self.name);
        options.username(&format!("{}_{role}", self.name)).password("secret").to_url_lossy().to_string()
    }

    /// How the service would open it.
    pub(crate) fn config(&self) -> PostgresConfig {
        PostgresConfig {
            url: self.url("writer"),
            connections: 2,
            statement_timeout: Duration::from_secs(5),
            application_name: "test".to_owned(),
            require_standby: false,
        }
    }

    pub(crate) async fn open(&self) -> PostgresLog {
        self.try_open().await.unwrap()
    }

    /// As whoever may do everything, where no role was made.
    pub(crate) async fn open_as_superuser(&self) -> PostgresLog {
        PostgresLog::connect(PostgresConfig { url: self.superuser(), ..self.config() }).await.unwrap()
    }

    pub(crate) async fn try_open(&self) -> Result<PostgresLog, OpenError> {
        PostgresLog::connect(self.config()).await
    }

    pub(crate) async fn connect(&self, url: &str) -> PgConnection {
        PgConnection::connect(url).await.unwrap()
    }

    /// Runs statements as the superuser.
    pub(crate) async fn run(&self, sql: &str) {
        let mut connection = self.connect(&self.superuser()).await;
        attempt(&mut connection, sql).await.unwrap();
        connection.close().await.unwrap();
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        // A runtime cannot wait within a runtime.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut connection = PgConnection::connect_with(&server).await.unwrap();
                let sql = format!("DROP DATABASE {name} WITH (FORCE)");
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
                let roles = "SELECT rolname::text FROM pg_roles WHERE starts_with(rolname, $1)";
                let roles: Vec<String> =
                    sqlx::query_scalar(roles).bind(format!("{name}_")).fetch_all(&mut connection).await.unwrap();
                for role in roles {
                    let sql = format!("DROP ROLE {role}");
                    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
                }
            });
        });
        // A second panic while a test fails would abort all tests, and hide the first.
        if dropped.join().is_err() {
            eprintln!("the database {} was left behind", self.name);
        }
    }
}

/// Runs statements, each of which is the test's own.
pub(crate) async fn attempt(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
}

/// The SQLSTATE with which statements are refused; panics if they are not.
pub(crate) async fn refused(connection: &mut PgConnection, sql: &str) -> String {
    match attempt(connection, sql).await {
        Ok(()) => panic!("not refused: {sql}"),
        Err(failure) => failure.as_database_error().and_then(|error| error.code()).expect("the server's word").into(),
    }
}
