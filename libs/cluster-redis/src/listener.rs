//! The connection that hears.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cluster::Audience;
use redis::{AsyncConnectionConfig, ErrorKind, PushInfo, PushKind, RedisError, Value};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::{Shared, server};

/// How often the server is asked whether it is still there, and still the right one.
const CHECK: Duration = Duration::from_secs(1);

/// Hears, for ever.
pub(crate) async fn keep(shared: Arc<Shared>) {
    loop {
        let Err(failure) = listen(&shared).await;
        sleep(shared.listening.failed(&failure)).await;
    }
}

/// Hears until the connection breaks.
async fn listen(shared: &Arc<Shared>) -> Result<Infallible, RedisError> {
    let closed = Arc::new(Notify::new());
    let on_push = {
        let (shared, closed) = (Arc::clone(shared), Arc::clone(&closed));
        // Called by the connection's own task. It never waits, so that Redis has no reason to keep frames for us.
        move |push: PushInfo| -> Result<(), redis::aio::SendError> {
            match push.kind {
                PushKind::Message => take(&shared, push.data),
                PushKind::Disconnection => closed.notify_one(),
                _ => {}
            }
            Ok(())
        }
    };
    let mut connection = shared.server.connect(AsyncConnectionConfig::new().set_push_sender(on_push)).await?;
    connection.subscribe(&[shared.channel(Audience::Everybody), shared.channel(Audience::One(shared.me))]).await?;
    shared.listening.made();
    // Whatever was published before is not heard any more.
    shared.inbox.lost();
    loop {
        if timeout(CHECK, closed.notified()).await.is_ok() {
            // Perhaps because we were too slow (`client-output-buffer-limit pubsub`): Redis does not say.
            return Err((ErrorKind::Io, "Redis closed the connection").into());
        }
        server::check(&mut connection).await?;
    }
}

/// `[channel, message]`.
fn take(shared: &Shared, mut data: Vec<Value>) {
    let Some(Value::BulkString(mut message)) = data.pop() else { return };
    match message.split_first_chunk::<16>() {
        Some((sender, _)) if *sender != shared.me.0 => shared.inbox.put(message.split_off(16)),
        // Our own, or nobody's.
        Some(_) | None => {}
    }
}
