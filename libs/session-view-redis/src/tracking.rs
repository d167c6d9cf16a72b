//! The connection over which Redis tells of changes (client-side caching, RESP3, broadcasting mode).
//!
//! It carries nothing else, and it asks to be told of this node's own changes as well: a write whose outcome is unknown
//! (it timed out, or its caller went away) is then heard of like anybody's. So no state older than that of the last
//! change told of is ever in the cache, whatever became of our commands; the price is one read after each own write.

use std::sync::Arc;
use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, PushInfo, PushKind, RedisError, Value};
use session_model::SessionId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::link::Backoff;
use crate::near::NearCache;

/// Keeps the cache open while changes are told of. Never returns.
pub(crate) async fn keep(client: Client, near: Arc<NearCache>, prefix: String, max_staleness: Duration) {
    let mut backoff = Backoff::default();
    loop {
        match listen(&client, &near, &prefix, max_staleness, &mut backoff).await {
            Ok(()) => tracing::debug!("Redis closed the tracking connection"),
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "client tracking failed"),
        }
        near.close();
        sleep(backoff.next()).await;
    }
}

async fn listen(
    client: &Client,
    near: &Arc<NearCache>,
    prefix: &str,
    max_staleness: Duration,
    backoff: &mut Backoff,
) -> Result<(), RedisError> {
    let gone = Arc::new(Notify::new());
    let on_push = {
        let (near, gone, prefix) = (Arc::clone(near), Arc::clone(&gone), prefix.to_owned());
        // Called by the connection's own task, in the order of arrival, before any later answer is handed out.
        move |push: PushInfo| -> Result<(), redis::aio::SendError> {
            match push.kind {
                PushKind::Invalidate => told(&near, &prefix, &push.data),
                PushKind::Disconnection => {
                    near.close();
                    gone.notify_one();
                }
                _ => {}
            }
            Ok(())
        }
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(max_staleness))
        .set_response_timeout(Some(max_staleness / 2))
        .set_push_sender(on_push);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut command = redis::cmd("CLIENT");
    command.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(prefix);
    loop {
        // What was changed before the command was sent has been told of once it is answered, so the span begins here.
        let since = Instant::now();
        connection.send_packed_command(&command).await?.extract_error()?;
        near.open(since, max_staleness);
        *backoff = Backoff::default();
        command = redis::cmd("PING");
        if timeout(max_staleness / 4, gone.notified()).await.is_ok() {
            return Ok(());
        }
    }
}

/// `[[key, …]]`, or `[nil]` after `FLUSHALL`.
fn told(near: &NearCache, prefix: &str, data: &[Value]) {
    let [Value::Array(keys)] = data else { return near.invalidate_all() };
    for key in keys {
        match session_of(prefix, key) {
            Some(id) => near.invalidate(id),
            // A key that begins as ours do but is none: nothing of it is cached.
            None => tracing::debug!("told of a key that is no session's"),
        }
    }
}

fn session_of(prefix: &str, key: &Value) -> Option<SessionId> {
    let Value::BulkString(key) = key else { return None };
    std::str::from_utf8(key).ok()?.strip_prefix(prefix)?.parse().ok()
}
