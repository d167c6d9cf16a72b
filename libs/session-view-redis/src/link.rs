//! The connections commands go over, and the circuit breaker.
//!
//! One task keeps two multiplexed connections: one for reads, and one for writes, so that a large batch does not hold up
//! reads. Callers never connect: while there is no connection they are told so at once. A connection that broke, or
//! [`FAILURES`] failures in a row, open the breaker: both connections are dropped, and after a short, jittered delay the
//! task tries with new ones. A half-open breaker is that attempt, so that no caller is sacrificed to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::RwLock;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

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

pub(crate) struct Link {
    client: Client,
    timeout: Duration,
    lines: RwLock<Option<Arc<Lines>>>,
    /// Wakes the task when the breaker has opened.
    opened: Notify,
}

struct Lines {
    reads: MultiplexedConnection,
    writes: MultiplexedConnection,
    failures: AtomicU32,
}

impl Link {
    pub(crate) fn new(client: Client, timeout: Duration) -> Self {
        Self { client, timeout, lines: RwLock::new(None), opened: Notify::new() }
    }

    /// Whether the breaker is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.lines.read().is_some()
    }

    /// Sends one command, once.
    pub(crate) async fn call(&self, lane: Lane, command: &Cmd) -> Result<Value, CallError> {
        let lines = self.lines.read().clone().ok_or(CallError::Open)?;
        self.call_on(&lines, lane, command).await
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
                if error.is_unrecoverable_error() || error.is_connection_dropped() || failures >= FAILURES {
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
            self.opened.notify_one();
        }
    }

    /// Connects, or says why not. Closes the breaker.
    pub(crate) async fn connect(&self) -> Result<(), RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.timeout))
            .set_pipeline_buffer_size(QUEUE);
        let (mut reads, mut writes) = tokio::try_join!(
            self.client.get_multiplexed_async_connection_with_config(&config),
            self.client.get_multiplexed_async_connection_with_config(&config)
        )?;
        for connection in [&mut reads, &mut writes] {
            connection.send_packed_command(&redis::cmd("PING")).await?.extract_error()?;
        }
        *self.lines.write() = Some(Arc::new(Lines { reads, writes, failures: AtomicU32::new(0) }));
        Ok(())
    }

    /// Keeps the link connected. Never returns.
    pub(crate) async fn keep(&self) {
        let mut backoff = Backoff::default();
        loop {
            let lines = self.lines.read().clone();
            let Some(lines) = lines else {
                match self.connect().await {
                    Ok(()) => {
                        tracing::info!("the session view is connected to Redis");
                        backoff = Backoff::default();
                    }
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "failed to connect to Redis");
                        sleep(backoff.next()).await;
                    }
                }
                continue;
            };
            if timeout(PROBE_INTERVAL, self.opened.notified()).await.is_ok() {
                tracing::warn!("the session view has lost Redis");
                sleep(backoff.next()).await;
                continue;
            }
            for lane in [Lane::Read, Lane::Write] {
                // A failure is counted where it happens.
                let _ = self.call_on(&lines, lane, &redis::cmd("PING")).await;
            }
        }
    }
}

/// Whether an error says that Redis is not there for us, rather than that it does not like this command.
fn is_outage(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::TryAgain,
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
