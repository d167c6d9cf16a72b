//! The connections commands go over, and the circuit breaker.
//!
//! One task keeps two multiplexed connections: one for reads, and one for writes, so that a large batch does not hold up
//! reads. Callers never connect: while there is no connection they are told so at once. A connection that broke, or
//! [`FAILURES`] failures in a row, open the breaker: both connections are dropped, and after a short, jittered delay the
//! task tries with new ones. A half-open breaker is that attempt, so that no caller is sacrificed to it.
//!
//! Each time it connects, the server is asked who it is. Another server (a replica that was promoted) or another life of
//! the same (restarted, perhaps from an old copy of its data) may lack what was applied last: that is a loss
//! ([`session_view::Doubt`]), counted before anybody can read from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, FromRedisValue, Pipeline, RedisError,
    ServerErrorKind, Value,
};
use session_view::Doubt;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::address::SentinelAddress;
use crate::sentinel::{self, NoMaster};

/// Failures in a row that open the breaker: one slow answer is no outage.
const FAILURES: u32 = 5;
/// How long connecting may take, TLS handshake included. Nobody waits for it but the task.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often an idle connection is tried, so that the status tells of an outage nobody has run into.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Commands waiting for one connection. Beyond it callers wait, within their timeout.
const QUEUE: usize = 1_024;

/// Why a command was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("Redis is not reachable: the circuit breaker is open")]
    Open,
    #[error("Redis did not answer as it should")]
    Failed(#[from] RedisError),
}

/// Which connection a command goes over.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lane {
    Read,
    Write,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    NoMaster(#[from] NoMaster),
    #[error("failed to connect to Redis")]
    Redis(#[from] RedisError),
    #[error("the server is a replica")]
    Replica,
}

/// Which server a link is to.
pub(crate) enum Target {
    /// Whatever stands at an address.
    Fixed(ConnectionInfo),
    /// A master of a cluster, at its address.
    Master(ConnectionInfo),
    /// The master that sentinels name.
    Sentinel(SentinelAddress),
}

pub(crate) struct Link {
    target: Target,
    timeout: Duration,
    /// How long a master is believed to be one without the word of the sentinels.
    max_staleness: Duration,
    doubt: Arc<Doubt>,
    lines: RwLock<Option<Arc<Lines>>>,
    /// Wakes the task when the breaker has opened.
    opened: Notify,
    /// The server that is connected to, for whoever listens to it; `None` while the breaker is open.
    connected: watch::Sender<Option<ConnectionInfo>>,
    /// Which life of which server was connected to last.
    identity: Mutex<Option<String>>,
}

struct Lines {
    server: ConnectionInfo,
    reads: MultiplexedConnection,
    writes: MultiplexedConnection,
    failures: AtomicU32,
}

impl Link {
    pub(crate) fn new(target: Target, timeout: Duration, max_staleness: Duration, doubt: Arc<Doubt>) -> Self {
        Self {
            target,
            timeout,
            max_staleness,
            doubt,
            lines: RwLock::new(None),
            opened: Notify::new(),
            connected: watch::Sender::new(None),
            identity: Mutex::new(None),
        }
    }

    /// Whether the breaker is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.lines.read().is_some()
    }

    /// The server that is connected to, as it changes.
    pub(crate) fn connected(&self) -> watch::Receiver<Option<ConnectionInfo>> {
        self.connected.subscribe()
    }

    /// Whether only a master will do.
    pub(crate) fn wants_master(&self) -> bool {
        match self.target {
            Target::Fixed(_) => false,
            Target::Master(_) | Target::Sentinel(_) => true,
        }
    }

    /// Sends one command, once.
    pub(crate) async fn call(&self, lane: Lane, command: &Cmd) -> Result<Value, CallError> {
        let lines = self.lines.read().clone().ok_or(CallError::Open)?;
        self.call_on(&lines, lane, command).await
    }

    /// Sends one command about a slot that is on its way to this server (Redis Cluster specification, "ASK redirection").
    pub(crate) async fn call_asking(&self, lane: Lane, command: &Cmd) -> Result<Value, CallError> {
        let lines = self.lines.read().clone().ok_or(CallError::Open)?;
        let mut connection = match lane {
            Lane::Read => lines.reads.clone(),
            Lane::Write => lines.writes.clone(),
        };
        let mut both = Pipeline::with_capacity(2);
        both.cmd("ASKING").ignore();
        both.add_command(command.clone());
        let mut answers = connection.send_packed_commands(&both, 0, 2).await?;
        Ok(answers.pop().unwrap_or(Value::Nil).extract_error()?)
    }

    async fn call_on(&self, lines: &Arc<Lines>, lane: Lane, command: &Cmd) -> Result<Value, CallError> {
        let mut connection = match lane {
            Lane::Read => lines.reads.clone(),
            Lane::Write => lines.writes.clone(),
        };
        let answer = connection.send_packed_command(command).await.and_then(Value::extract_error);
        match &answer {
            Err(error) if is_outage(error) => {
                let failures = lines.failures.fetch_add(1, Relaxed) + 1;
                let demoted = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) && self.wants_master();
                let gone = error.is_unrecoverable_error() || error.is_connection_dropped();
                if gone || demoted || failures >= FAILURES {
                    self.open(lines);
                }
            }
            Ok(_) | Err(_) => {
                if lines.failures.load(Relaxed) != 0 {
                    lines.failures.store(0, Relaxed);
                }
            }
        }
        Ok(answer?)
    }

    fn open(&self, lines: &Arc<Lines>) {
        let mut current = self.lines.write();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, lines)) {
            *current = None;
            self.connected.send_replace(None);
            self.opened.notify_one();
        }
    }

    /// Connects, or says why not. Closes the breaker.
    pub(crate) async fn connect(&self) -> Result<(), ConnectError> {
        let server = match &self.target {
            Target::Fixed(server) | Target::Master(server) => server.clone(),
            Target::Sentinel(address) => sentinel::master(address).await?,
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.timeout))
            .set_pipeline_buffer_size(QUEUE);
        let client = Client::open(server.clone())?;
        let (reads, mut writes) = tokio::try_join!(
            client.get_multiplexed_async_connection_with_config(&config),
            client.get_multiplexed_async_connection_with_config(&config)
        )?;
        let info = writes.send_packed_command(&redis::cmd("INFO")).await?.extract_error()?;
        let info = String::from_redis_value(info).map_err(RedisError::from)?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("");
        if self.wants_master() && field("role") != "master" {
            return Err(ConnectError::Replica);
        }
        // A new process has a new run id; data taken from elsewhere come with a new replication id.
        let identity = format!("{} {}", field("run_id"), field("master_replid"));
        let before = self.identity.lock().replace(identity.clone());
        if before.is_some_and(|before| before != identity) {
            self.doubt.lost();
        }
        let lines = Lines { server: server.clone(), reads, writes, failures: AtomicU32::new(0) };
        *self.lines.write() = Some(Arc::new(lines));
        self.connected.send_replace(Some(server));
        Ok(())
    }

    /// Keeps the link connected. Never returns.
    pub(crate) async fn keep(&self) {
        let mut backoff = Backoff::default();
        let mut confirmed = Instant::now();
        loop {
            let lines = self.lines.read().clone();
            let Some(lines) = lines else {
                let asked = Instant::now();
                match self.connect().await {
                    Ok(()) => {
                        tracing::info!("the session view is connected to Redis");
                        backoff = Backoff::default();
                        confirmed = asked;
                    }
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "failed to connect to Redis");
                        sleep(backoff.next()).await;
                    }
                }
                continue;
            };
            if timeout(PROBE_INTERVAL.min(self.max_staleness / 2), self.opened.notified()).await.is_ok() {
                tracing::warn!("the session view has lost Redis");
                sleep(backoff.next()).await;
                continue;
            }
            for lane in [Lane::Read, Lane::Write] {
                // A failure is counted where it happens.
                let role = self.call_on(&lines, lane, &redis::cmd("ROLE")).await;
                if self.wants_master() && role.is_ok_and(|role| !is_master(&role)) {
                    tracing::warn!("the server of the session view is no master any more");
                    self.open(&lines);
                }
            }
            if let Target::Sentinel(address) = &self.target {
                let asked = Instant::now();
                match timeout(self.max_staleness, sentinel::master(address)).await {
                    Ok(Ok(master)) if master.addr() == lines.server.addr() => confirmed = asked,
                    Ok(Ok(_)) => {
                        tracing::warn!("the sentinels name another master");
                        self.open(&lines);
                    }
                    // Cut off together with an old master, it would be read for ever.
                    Ok(Err(_)) | Err(_) if confirmed.elapsed() >= self.max_staleness => {
                        tracing::warn!("no majority of the sentinels was heard for too long");
                        self.open(&lines);
                    }
                    Ok(Err(_)) | Err(_) => {}
                }
            }
        }
    }
}

/// What `ROLE` answers begins with the role.
pub(crate) fn is_master(role: &Value) -> bool {
    matches!(role, Value::Array(parts) if matches!(parts.first(), Some(Value::BulkString(role)) if role == b"master"))
}

/// Whether an error says that Redis is not there for us, rather than that it does not like this command.
fn is_outage(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly,
        ) => true,
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType => false,
        _ => true,
    }
}

/// Delays between attempts: 50 ms, doubling up to 1 s, each cut by a random part of its half, so that the nodes of a
/// cluster do not come back all at once.
#[derive(Default)]
pub(crate) struct Backoff(u32);

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let full = Duration::from_millis(50 << self.0.min(5)).min(Duration::from_secs(1));
        self.0 += 1;
        let mut random = [0];
        // Without randomness there is no jitter, which hurts nobody.
        let _ = openssl::rand::rand_bytes(&mut random);
        let [random] = random;
        full - full * u32::from(random) / 512
    }
}
