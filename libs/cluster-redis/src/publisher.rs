//! The connection that publishes.

use std::sync::Arc;
use std::time::Duration;

use cluster::{Audience, Room};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError};
use tokio::time::{Instant, sleep, timeout};

use crate::{Shared, server};

/// What is published in one round trip. While it is under way the next gathers.
const AT_ONCE: Room = Room { frames: 512, bytes: 1 << 20 };
/// How often the server is asked whether it is still the right one.
const CHECK: Duration = Duration::from_secs(1);
/// What has waited for longer than this is thrown away: the others have read it from the log.
const STALE: Duration = Duration::from_secs(2);

/// Publishes what is in the outbox, for ever. Ends when that is closed and empty.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut unsent = Vec::new();
    let mut stuck = None;
    loop {
        let failure = match connect(&shared).await {
            Ok(mut connection) => {
                if stuck.is_some_and(|since: Instant| since.elapsed() > STALE) {
                    unsent.clear();
                    shared.outbox.clear();
                    stuck = None;
                }
                shared.publishing.made();
                match drain(&shared, &mut connection, &mut unsent, &mut stuck).await {
                    Ok(()) => return,
                    Err(failure) => failure,
                }
            }
            Err(failure) => failure,
        };
        stuck.get_or_insert_with(Instant::now);
        sleep(shared.publishing.failed(&failure)).await;
    }
}

/// Connects. Publishes to itself first, so that a server which does not let us is noticed before anybody counts on it.
async fn connect(shared: &Shared) -> Result<MultiplexedConnection, RedisError> {
    let mut connection = shared.server.connect(AsyncConnectionConfig::new()).await?;
    send(shared, &mut connection, &[(Audience::One(shared.me), Vec::new())]).await?;
    Ok(connection)
}

/// Publishes until the outbox is closed and empty. What could not be published stays in `unsent`, and may have been nevertheless.
async fn drain(
    shared: &Shared,
    connection: &mut MultiplexedConnection,
    unsent: &mut Vec<(Audience, Vec<u8>)>,
    stuck: &mut Option<Instant>,
) -> Result<(), RedisError> {
    let mut checked = Instant::now();
    loop {
        if unsent.is_empty() {
            match timeout(CHECK, shared.outbox.take(AT_ONCE)).await {
                Ok(Some(frames)) => *unsent = frames,
                Ok(None) => return Ok(()),
                Err(_nothing_to_send) => {}
            }
        }
        if checked.elapsed() >= CHECK {
            server::check(connection).await?;
            checked = Instant::now();
        }
        if !unsent.is_empty() {
            send(shared, connection, unsent).await?;
            unsent.clear();
            *stuck = None;
        }
    }
}

/// Publishes frames in one round trip.
async fn send(
    shared: &Shared,
    connection: &mut MultiplexedConnection,
    frames: &[(Audience, Vec<u8>)],
) -> Result<(), RedisError> {
    let mut pipeline = redis::Pipeline::with_capacity(frames.len());
    for (to, frame) in frames {
        let message = [shared.me.0.as_slice(), frame].concat();
        pipeline.cmd("PUBLISH").arg(shared.channel(*to)).arg(message);
    }
    for answer in connection.send_packed_commands(&pipeline, 0, frames.len()).await? {
        answer.extract_error()?;
    }
    Ok(())
}
