//! The connection that listens.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sqlx::Executor;
use sqlx::postgres::{PgListener, PgNotification, PgPoolOptions};
use tokio::time::{sleep, timeout};

use crate::{ANSWER, Shared, answered, closed};

/// After this silence the server is asked whether it is still there. Nodes beat, this one too, so it is seldom asked.
const SILENCE: Duration = Duration::from_secs(1);

/// Listens, for ever.
pub(crate) async fn keep(shared: Arc<Shared>) {
    loop {
        let Err(failure) = listen(&shared).await;
        sleep(shared.listening.failed(&failure)).await;
    }
}

/// Listens until the connection breaks.
async fn listen(shared: &Shared) -> Result<Infallible, sqlx::Error> {
    let mut listener = answered(connect(shared)).await?;
    shared.listening.made();
    // Whatever was notified before is not heard any more.
    shared.inbox.lost();
    loop {
        match timeout(SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => take(shared, &notification),
            Ok(Ok(None)) => return Err(closed("the server closed the connection")),
            Ok(Err(failure)) => return Err(failure),
            Err(_silence) => answered(listener.execute("SELECT 1")).await.map(drop)?,
        }
    }
}

/// Connects, and subscribes. The listener could connect again by itself, but would not say whether it does: this one is used for one connection.
async fn connect(shared: &Shared) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None).acquire_timeout(ANSWER);
    let pool = pool.connect_with(shared.options.clone()).await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(&shared.channel).await?;
    Ok(listener)
}

fn take(shared: &Shared, notification: &PgNotification) {
    if notification.process_id() == shared.notifier.load(Relaxed) {
        return;
    }
    // What is no base64 was notified by somebody else's program, and is none of ours.
    if let Ok(frame) = STANDARD_NO_PAD.decode(notification.payload()) {
        shared.inbox.put(frame);
    }
}
