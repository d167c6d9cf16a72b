//! The connection that notifies.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use cluster::{Audience, Room};
use sqlx::{Connection, PgConnection};
use tokio::time::{Duration, Instant, sleep};

use crate::{Shared, answered};

/// What is notified in one transaction. While it is under way the next gathers.
const AT_ONCE: Room = Room { frames: 256, bytes: 256 << 10 };
/// What has waited for longer than this is thrown away: the others have read it from the log.
const STALE: Duration = Duration::from_secs(2);

/// Notifies of what is in the outbox, for ever. Ends when that is closed and empty.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut unsent = Vec::new();
    let mut stuck = None;
    loop {
        let failure = match answered(connect(&shared)).await {
            Ok(mut connection) => {
                if stuck.is_some_and(|since: Instant| since.elapsed() > STALE) {
                    unsent.clear();
                    shared.outbox.clear();
                    stuck = None;
                }
                shared.notifying.made();
                match drain(&shared, &mut connection, &mut unsent, &mut stuck).await {
                    Ok(()) => return,
                    Err(failure) => failure,
                }
            }
            Err(failure) => failure,
        };
        stuck.get_or_insert_with(Instant::now);
        sleep(shared.notifying.failed(&failure)).await;
    }
}

/// Connects. Notifies nobody first, so that a server which refuses that (a standby does) is noticed before anybody counts on it.
async fn connect(shared: &Shared) -> Result<PgConnection, sqlx::Error> {
    let mut connection = PgConnection::connect_with(&shared.options).await?;
    let process: i32 = sqlx::query_scalar("SELECT pg_backend_pid() FROM pg_notify($1, '')")
        .bind(format!("{}_nobody", shared.channel))
        .fetch_one(&mut connection)
        .await?;
    shared.notifier.store(process.cast_unsigned(), Relaxed);
    Ok(connection)
}

/// Notifies until the outbox is closed and empty. What could not be notified stays in `unsent`, and may have been nevertheless.
async fn drain(
    shared: &Shared,
    connection: &mut PgConnection,
    unsent: &mut Vec<(Audience, Vec<u8>)>,
    stuck: &mut Option<Instant>,
) -> Result<(), sqlx::Error> {
    loop {
        if unsent.is_empty() {
            match shared.outbox.take(AT_ONCE).await {
                Some(frames) => *unsent = frames,
                None => return Ok(()),
            }
        }
        answered(notify(shared, connection, unsent)).await?;
        unsent.clear();
        *stuck = None;
    }
}

/// Notifies of frames in one transaction.
async fn notify(
    shared: &Shared,
    connection: &mut PgConnection,
    frames: &[(Audience, Vec<u8>)],
) -> Result<(), sqlx::Error> {
    let payloads: Vec<String> = frames.iter().map(|(_, frame)| STANDARD_NO_PAD.encode(frame)).collect();
    sqlx::query("SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload")
        .bind(&shared.channel)
        .bind(payloads)
        .execute(connection)
        .await
        .map(drop)
}
