//! The connections over which Redis tells of changes (client-side caching, RESP3, broadcasting mode): one to each master.
//!
//! They carry nothing else, and they ask to be told of this node's own changes as well: a write whose outcome is unknown
//! (it timed out, or its caller went away) is then heard of like anybody's. So no state older than that of the last
//! change told of is ever in the cache, whatever became of our commands; the price is one read after each own write.
//!
//! A connection lives no longer than the [`Link`] whose server it is to: whatever a link has lost sight of may be changed
//! elsewhere.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, PushInfo, PushKind, RedisError, Value};
use session_model::SessionId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::link::{Backoff, Link, is_master};
use crate::near::NearCache;

/// The cache may answer while every master is heard.
pub(crate) struct Ears {
    near: Arc<NearCache>,
    max_staleness: Duration,
    /// For each master, since when it was heard last; `None` while it is not.
    heard: Mutex<HashMap<u64, Option<Instant>>>,
}

impl Ears {
    pub(crate) fn new(near: Arc<NearCache>, max_staleness: Duration) -> Self {
        Self { near, max_staleness, heard: Mutex::default() }
    }

    /// These are the masters. One that is new is not heard yet.
    pub(crate) fn expect(&self, masters: impl IntoIterator<Item = u64>) {
        let mut heard = self.heard.lock();
        let expected: HashMap<_, _> =
            masters.into_iter().map(|master| (master, heard.get(&master).copied().flatten())).collect();
        if expected.values().any(Option::is_none) {
            self.near.close();
        }
        *heard = expected;
    }

    fn heard(&self, master: u64, since: Instant) {
        let mut heard = self.heard.lock();
        // One that is no master any more opens nothing.
        let Some(place) = heard.get_mut(&master) else { return };
        *place = Some(since);
        let all: Option<Vec<Instant>> = heard.values().copied().collect();
        if let Some(since) = all.and_then(|all| all.into_iter().min()) {
            self.near.open(since, self.max_staleness);
        }
    }

    fn gone(&self, master: u64) {
        if let Some(place) = self.heard.lock().get_mut(&master) {
            *place = None;
        }
        self.near.close();
    }
}

/// Listens to the server of a link while it is connected. Never returns.
pub(crate) async fn keep(link: Arc<Link>, ears: Arc<Ears>, master: u64, prefix: String) {
    let mut backoff = Backoff::default();
    let mut connected = link.connected();
    loop {
        let server = connected.borrow_and_update().clone();
        let Some(server) = server else {
            ears.gone(master);
            if connected.changed().await.is_err() {
                return;
            }
            continue;
        };
        let listening = listen(&server, link.wants_master(), &ears, master, &prefix, &mut backoff);
        tokio::select! {
            ended = listening => match ended {
                Ok(()) => tracing::debug!("Redis closed the tracking connection"),
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "client tracking failed"),
            },
            changed = connected.changed() => if changed.is_err() { return },
        }
        ears.gone(master);
        sleep(backoff.next()).await;
    }
}

async fn listen(
    server: &ConnectionInfo,
    wants_master: bool,
    ears: &Arc<Ears>,
    master: u64,
    prefix: &str,
    backoff: &mut Backoff,
) -> Result<(), RedisError> {
    let gone = Arc::new(Notify::new());
    let on_push = {
        let (ears, gone) = (Arc::clone(ears), Arc::clone(&gone));
        // Called by the connection's own task, in the order of arrival, before any later answer is handed out.
        move |push: PushInfo| -> Result<(), redis::aio::SendError> {
            match push.kind {
                PushKind::Invalidate => told(&ears.near, &push.data),
                PushKind::Disconnection => {
                    ears.gone(master);
                    gone.notify_one();
                }
                _ => {}
            }
            Ok(())
        }
    };
    let max_staleness = ears.max_staleness;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(max_staleness))
        .set_response_timeout(Some(max_staleness / 2))
        .set_push_sender(on_push);
    let resp3 = server.redis_settings().clone().set_protocol(redis::ProtocolVersion::RESP3);
    let client = Client::open(server.clone().set_redis_settings(resp3))?;
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut command = redis::cmd("CLIENT");
    command.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(prefix);
    loop {
        // What was changed before the command was sent has been told of once it is answered, so the span begins here.
        let since = Instant::now();
        let answer = connection.send_packed_command(&command).await?.extract_error()?;
        // The first answer is only `OK`: what the server is was asked when the link connected.
        if wants_master && matches!(answer, Value::Array(_)) && !is_master(&answer) {
            return Ok(());
        }
        ears.heard(master, since);
        *backoff = Backoff::default();
        command = redis::cmd("ROLE");
        if timeout(max_staleness / 4, gone.notified()).await.is_ok() {
            return Ok(());
        }
    }
}

/// `[[key, …]]`, or `[nil]` after `FLUSHALL`.
fn told(near: &NearCache, data: &[Value]) {
    let [Value::Array(keys)] = data else { return near.invalidate_all() };
    for key in keys {
        match session_of(key) {
            Some(id) => near.invalidate(id),
            // A key that begins as ours do but is none: nothing of it is cached.
            None => tracing::debug!("told of a key that is no session's"),
        }
    }
}

/// Keys of sessions end with the id, after a colon.
fn session_of(key: &Value) -> Option<SessionId> {
    let Value::BulkString(key) = key else { return None };
    std::str::from_utf8(key).ok()?.rsplit_once(':')?.1.parse().ok()
}
