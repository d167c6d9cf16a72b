//! A Redis to test with, and what tests do with a transport.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cluster::conformance::Medium;
use cluster::{Audience, Incarnation, Received, SendError, Transport};
use cluster_redis::{RedisTransport, RedisTransportConfig};
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take on a machine that has other things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A namespace of its own in the Redis that the tests share.
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

pub(crate) fn open(url: &str, namespace: &str, incarnation: Incarnation) -> RedisTransport {
    let config = RedisTransportConfig { url: url.to_owned(), namespace: namespace.to_owned() };
    RedisTransport::open(config, incarnation).unwrap()
}

/// Waits until both connections are there.
pub(crate) async fn connected(transport: &RedisTransport) {
    let until = Instant::now() + PATIENCE;
    while transport.describe().iter().filter(|line| line.contains(": connected")).count() < 2 {
        assert!(Instant::now() < until, "{:?}", transport.describe());
        sleep(Duration::from_millis(5)).await;
    }
}

/// Sends a frame again and again until it was heard: one may be lost. Answers whether the other was told before that some were.
pub(crate) async fn reaches(from: &RedisTransport, to: &RedisTransport, frame: &[u8]) -> bool {
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

/// Receives until it is told that frames were lost.
pub(crate) async fn told_of_loss(transport: &RedisTransport) {
    let told = async { while transport.receive().await.unwrap() != Received::Lost {} };
    assert!(timeout(PATIENCE, told).await.is_ok(), "{:?}", transport.describe());
}

/// Takes whatever has come.
pub(crate) async fn empty(transport: &RedisTransport) {
    while timeout(Duration::from_millis(100), transport.receive()).await.is_ok() {}
}

/// A `redis-server` of the test's own.
pub(crate) struct Server {
    child: Option<Child>,
    pub(crate) port: u16,
    folder: tempfile::TempDir,
}

impl Server {
    /// One that is yet to be started.
    pub(crate) fn new() -> Self {
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        Self { child: None, port: free.local_addr().unwrap().port(), folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn start(&mut self) {
        let child = Command::new("redis-server")
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
            ])
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server, which tests of outages start themselves, is on the PATH");
        self.child = Some(child);
        let until = Instant::now() + PATIENCE;
        while redis::Client::open(self.url()).unwrap().get_multiplexed_async_connection().await.is_err() {
            assert!(Instant::now() < until, "redis-server does not answer");
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn started() -> Self {
        let mut server = Self::new();
        server.start().await;
        server
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) async fn raw(&self) -> MultiplexedConnection {
        redis::Client::open(self.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
    }

    /// Runs a command, given as words.
    pub(crate) async fn run(&self, words: &[&str]) {
        let mut command = redis::Cmd::new();
        command.arg(words);
        command.exec_async(&mut self.raw().await).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A line to a server that can be made to carry nothing back, as if whoever is here did not read.
pub(crate) struct Line {
    pub(crate) port: u16,
    stopped: Arc<AtomicBool>,
}

impl Line {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = Self { port: listener.local_addr().unwrap().port(), stopped: Arc::default() };
        let stopped = Arc::clone(&line.stopped);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                tokio::spawn(carry(client, server, Arc::clone(&stopped)));
            }
        });
        line
    }

    pub(crate) fn stop(&self, stopped: bool) {
        self.stopped.store(stopped, Ordering::SeqCst);
    }
}

async fn carry(client: TcpStream, server: TcpStream, stopped: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let back = async {
        let mut buffer = vec![0; 65_536];
        loop {
            while stopped.load(Ordering::SeqCst) {
                sleep(Duration::from_millis(10)).await;
            }
            let read = from_server.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            to_client.write_all(&buffer[..read]).await?;
        }
    };
    // Either end closes both.
    let _ended: std::io::Result<()> = tokio::select! { ended = there => ended, ended = back => ended };
}
