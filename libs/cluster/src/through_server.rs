//! What transports through a server that is there anyway have in common: two tasks, of which one tells the others and one hears them.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::{Inbox, Outbox};

/// How long closing waits for what is still to be told.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// The task that tells, which ends when the outbox is closed and empty, and the one that hears, for ever. Dropped, both are ended.
#[derive(Debug)]
pub struct TellAndHear(Mutex<Option<[JoinHandle<()>; 2]>>);

impl TellAndHear {
    /// Starts both. To be called within a Tokio runtime.
    pub fn start(
        tell: impl Future<Output = ()> + Send + 'static,
        hear: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self(Mutex::new(Some([tokio::spawn(tell), tokio::spawn(hear)])))
    }

    /// Takes nothing more, tells what waits if the server is there, and ends both. Closed again it does nothing.
    pub async fn close(&self, outbox: &Outbox, inbox: &Inbox) {
        outbox.close();
        let tasks = self.0.lock().take();
        if let Some([mut telling, hearing]) = tasks {
            // The server may be away: then nobody hears the last words.
            if timeout(LAST_WORDS, &mut telling).await.is_err() {
                telling.abort();
            }
            hearing.abort();
        }
        inbox.close();
    }
}

impl Drop for TellAndHear {
    fn drop(&mut self) {
        self.0.lock().take().iter().flatten().for_each(JoinHandle::abort);
    }
}

/// Whether a text may tell clusters apart that share a server: 1 to 64 of `A-Z`, `a-z`, `0-9`, `-`, `_`, `.`.
pub fn is_namespace(text: &str) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    plain && (1..=64).contains(&text.len())
}
