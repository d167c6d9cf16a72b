//! A PostgreSQL to test with, and what tests do with a transport.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cluster::conformance::Medium;
use cluster::{Audience, Incarnation, Received, SendError, Transport};
use cluster_postgres::{PostgresTransport, PostgresTransportConfig};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take on a machine that has other things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A namespace of its own in the database that the tests share.
pub(crate) struct Namespace {
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) async fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        let url = std::env::var("TEST_DATABASE_URL").expect(
            "no PostgreSQL to test with: run ./test, which starts one, or set TEST_DATABASE_URL=postgres://… to a superuser's",
        );
        Self { url, name }
    }
}

#[async_trait]
impl Medium for Namespace {
    async fn join(&self, incarnation: Incarnation) -> Arc<dyn Transport> {
        let transport = open(&self.url, &self.name, incarnation);
        connected(&transport).await;
        Arc::new(transport)
    }
}

pub(crate) const fn life(n: u8) -> Incarnation {
    Incarnation([n; 16])
}

pub(crate) fn config(url: &str, namespace: &str) -> PostgresTransportConfig {
    PostgresTransportConfig { url: url.into(), namespace: namespace.into(), application_name: namespace.into() }
}

/// Its connections have the namespace as `application_name`.
pub(crate) fn open(url: &str, namespace: &str, incarnation: Incarnation) -> PostgresTransport {
    PostgresTransport::open(config(url, namespace), incarnation).unwrap()
}

/// Waits until both connections are there.
pub(crate) async fn connected(transport: &PostgresTransport) {
    let until = Instant::now() + PATIENCE;
    while transport.describe().iter().filter(|line| line.contains(": connected")).count() < 2 {
        assert!(Instant::now() < until, "{:?}", transport.describe());
        sleep(Duration::from_millis(5)).await;
    }
}

/// Sends a frame again and again until it was heard: one may be lost. Answers whether the other was told before that some were.
pub(crate) async fn reaches(from: &PostgresTransport, to: &PostgresTransport, frame: &[u8]) -> bool {
    let (until, mut lost) = (Instant::now() + PATIENCE, false);
    loop {
        match from.send(Audience::Everybody, frame) {
            Ok(()) | Err(SendError::Unavailable(_)) => {}
            Err(refused) => panic!("{refused}"),
        }
        while let Ok(received) = timeout(Duration::from_millis(100), to.receive()).await {
            match received.unwrap() {
                Received::Frame(had) if had == frame => return lost,
                Received::Lost => lost = true,
                Received::Frame(_) | Received::Departed(_) => {}
            }
        }
        assert!(Instant::now() < until, "{:?}, {:?}", from.describe(), to.describe());
    }
}

/// Takes whatever has come.
pub(crate) async fn empty(transport: &PostgresTransport) {
    while timeout(Duration::from_millis(100), transport.receive()).await.is_ok() {}
}

/// Runs statements.
pub(crate) async fn run(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// A PostgreSQL of the test's own.
pub(crate) struct Server {
    child: Option<Child>,
    pub(crate) port: u16,
    folder: tempfile::TempDir,
}

impl Server {
    /// One that is yet to be started.
    pub(crate) fn new() -> Self {
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        if is_root() {
            assert!(Command::new("chown").arg("postgres:").arg(folder.path()).status().unwrap().success());
        }
        let made = program("initdb")
            .args(["-U", "postgres", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8", "-D"])
            .arg(folder.path().join("data"))
            .output()
            .expect("PostgreSQL's programs, which tests of outages start themselves, are here");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { child: None, port, folder }
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    pub(crate) async fn start(&mut self) {
        let child = program("postgres")
            .args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-D"])
            .arg(self.folder.path().join("data"))
            .arg("-k")
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let until = Instant::now() + PATIENCE;
        while PgConnection::connect(&self.url()).await.is_err() {
            assert!(Instant::now() < until, "PostgreSQL does not answer");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// At once: who is connected gets no more than a broken connection. What was committed stays.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Immediate shutdown. A kill -9 of the first process would leave the others running for a while.
            let _gone_already = Command::new("kill").arg("-QUIT").arg(child.id().to_string()).status();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

/// A program of PostgreSQL's, which never runs as root.
fn program(name: &str) -> Command {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = installed.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).max();
    let path = newest.unwrap_or_else(|| PathBuf::from(name));
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    command.current_dir("/");
    command
}
