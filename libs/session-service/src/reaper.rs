//! Ends sessions whose deadline has passed, writes marks of use, and forgets kept answers: small, jittered rounds.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use sealing::Ids;
use session_model::Timestamp;
use session_view::Viewed;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::warn;

use crate::service::SessionService;

/// The rounds of one node. Several nodes may run them at once: the log decides who ended a session.
pub struct Reaper {
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Reaper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reaper")
    }
}

/// Mean pause between rounds; each is drawn from half to one and a half of it, so that nodes do not march in step.
const PAUSE: Duration = Duration::from_secs(1);
/// A session is reaped this long after its deadline: another node's mark of use may be a second under way.
const GRACE_MICROS: i64 = 2_000_000;
/// Sessions ended in one round at most: the rest waits for the next, so that reaping never crowds out live traffic.
const ROUND: usize = 1_024;
const AT_ONCE: usize = 64;

impl Reaper {
    /// Starts the rounds.
    pub fn start(service: Arc<SessionService>) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut round = 0_u32;
            loop {
                tokio::select! {
                    _ = stopped.changed() => return,
                    () = sleep(jittered()) => {}
                }
                service.flush_marks().await;
                reap(&service).await;
                round = round.wrapping_add(1);
                if round.is_multiple_of(60) {
                    tidy(&service).await;
                }
            }
        });
        Self { stop, task: Mutex::new(Some(task)) }
    }

    /// Ends the rounds.
    pub async fn close(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().take();
        if let Some(task) = task
            && let Err(failure) = task.await
        {
            warn!(%failure, "the reaper failed");
        }
    }
}

fn jittered() -> Duration {
    // No randomness, no jitter: harmless.
    let share = Ids.secret().map_or(128, |[first, ..]| u32::from(first));
    PAUSE / 2 + PAUSE * share / 256
}

async fn reap(service: &Arc<SessionService>) {
    let before = Timestamp::from_micros(service.now().as_micros() - GRACE_MICROS);
    let due = match service.view.due(before, ROUND).await {
        Ok(due) => due,
        Err(failure) => {
            warn!(failure = &failure as &dyn std::error::Error, "the view cannot say which sessions are due");
            return;
        }
    };
    stream::iter(due)
        .for_each_concurrent(AT_ONCE, |id| async move {
            let realm = match service.view.get(id).await {
                Ok(Some(Viewed::Active(session))) => session.realm.clone(),
                // Evicted from the view: the log has it.
                Ok(None) => match service.replay.session(id, None).await {
                    Ok(Some(session)) => session.realm,
                    Ok(None) | Err(_) => return,
                },
                Ok(Some(Viewed::Ended(_))) | Err(_) => return,
            };
            if let Err(failure) = service.expire(id, &realm).await {
                warn!(%failure, session = %id, "an expired session could not be ended");
            }
        })
        .await;
}

async fn tidy(service: &SessionService) {
    let now = service.now();
    if let Err(failure) = service.log.forget_expired(now, 10_000).await {
        warn!(failure = &failure as &dyn std::error::Error, "expired answers could not be forgotten");
    }
    if let Err(failure) = service.log.prepare(service.progress.size(), now).await {
        warn!(failure = &failure as &dyn std::error::Error, "the log could not be prepared for what is to come");
    }
}
