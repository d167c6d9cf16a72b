//! A Redis to test with.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use session_model::Session;
use session_view::{Applied, SessionView};
use session_view_redis::{RedisView, RedisViewConfig};
use tokio::time::{Instant, sleep};

pub(crate) const KEY: [u8; 32] = [7; 32];

/// A namespace of its own in the Redis that the tests share. Emptied when dropped.
pub(crate) struct Namespace {
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) async fn new() -> Self {
        let mut random = [0; 8];
        openssl::rand::rand_bytes(&mut random).unwrap();
        let name = format!("test-{:016x}", u64::from_be_bytes(random));
        let url = std::env::var("TEST_REDIS_URL")
            .expect("no Redis to test with: run ./test, which starts one, or set TEST_REDIS_URL=redis://…");
        Self { url, name }
    }

    pub(crate) fn config(&self) -> RedisViewConfig {
        patient(RedisViewConfig::new(&self.url, &self.name, KEY))
    }

    pub(crate) async fn raw(&self) -> MultiplexedConnection {
        raw(&self.url).await
    }

    pub(crate) fn key(&self, what: impl std::fmt::Display) -> String {
        format!("{{{}}}:{what}", self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let script = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end";
        let mut delete = redis::cmd("EVAL");
        delete.arg(script).arg(0).arg(self.key("*"));
        // A Redis that is gone has nothing left of it.
        let _ = redis::Client::open(self.url.as_str())
            .and_then(|client| client.get_connection())
            .and_then(|mut connection| delete.query::<()>(&mut connection));
    }
}

/// A `redis-server` of the test's own, to stop, freeze and flush.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let port = free_port();
        let folder = tempfile::tempdir().unwrap();
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let server = Self { child: spawn(port, &folder, &arguments), port, folder, arguments };
        server.answers().await;
        server
    }

    /// A sentinel of the master at a port, which it knows as `mine`.
    pub(crate) async fn sentinel_of(master: u16) -> Self {
        let port = free_port();
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "sentinel monitor mine 127.0.0.1 {master} 2\nsentinel down-after-milliseconds mine 600\n\
             sentinel failover-timeout mine 4000\n"
        );
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, text).unwrap();
        let arguments = vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
        let server = Self { child: spawn(port, &folder, &arguments), port, folder, arguments };
        server.answers().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn config(&self) -> RedisViewConfig {
        RedisViewConfig::new(self.url(), "own", KEY)
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(self.port, &self.folder, &self.arguments);
        self.answers().await;
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    async fn answers(&self) {
        within(Duration::from_secs(10), "redis-server answers", async || {
            let Ok(client) = redis::Client::open(self.url()) else { return false };
            let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return false };
            redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A free port, below those that clients are given and such that the one 10,000 above, for a cluster's bus, is free too.
fn free_port() -> u16 {
    loop {
        let mut random = [0; 2];
        openssl::rand::rand_bytes(&mut random).unwrap();
        let port = 11_000 + u16::from_be_bytes(random) % 11_000;
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}

fn spawn(port: u16, folder: &tempfile::TempDir, arguments: &[String]) -> Child {
    // A file of configuration comes before all options.
    let (file, options) = match arguments {
        [file, options @ ..] if !file.starts_with("--") => (Some(file), options),
        options => (None, options),
    };
    let mut command = Command::new("redis-server");
    command.args(file).args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"]).arg(folder.path());
    if file.is_none() {
        command.args(["--save", "", "--appendonly", "no"]);
    }
    command
        .args(options)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server, which tests of outages start themselves, is on the PATH")
}

/// The machine that tests run on may be busy with other things: only the tests of timeouts use the short one.
fn patient(mut config: RedisViewConfig) -> RedisViewConfig {
    config.operation_timeout = Duration::from_secs(5);
    config
}

/// A view whose near cache is in use.
pub(crate) async fn tracked(config: RedisViewConfig) -> RedisView {
    let view = RedisView::connect(config).await.unwrap();
    within(Duration::from_secs(10), "tracking is on", async || view.is_tracking()).await;
    // Nothing is missing there that this test did not take away.
    view.restored(view.losses());
    view
}

pub(crate) async fn raw(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

pub(crate) async fn applied(view: &RedisView, state: Session) {
    assert_eq!(view.apply(&[Arc::new(state)]).await.unwrap(), [Applied::Yes]);
}

/// Waits until something is so; answers how long it took.
pub(crate) async fn within(limit: Duration, what: &str, mut so: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(1)).await;
    }
    start.elapsed()
}
