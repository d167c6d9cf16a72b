//! One at a time for each session.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;
use session_model::SessionId;
use tokio::sync::oneshot;

/// Lets one change of a session pass at a time, in order of arrival. Only spares changes of one process the detour of being
/// refused by the log: it is the log that arbitrates.
#[derive(Debug)]
pub(crate) struct Turnstile {
    shards: [Mutex<Waiting>; SHARDS],
}

type Waiting = HashMap<SessionId, VecDeque<oneshot::Sender<Turn>>>;
const SHARDS: usize = 64;

/// The right to change a session; passes on when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    /// `None` once the right has passed on.
    turnstile: Option<Arc<Turnstile>>,
    id: SessionId,
}

impl Default for Turnstile {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl Turnstile {
    pub(crate) async fn enter(self: &Arc<Self>, id: SessionId) -> Turn {
        let receiver = {
            let mut waiting = self.shard(id).lock();
            match waiting.get_mut(&id) {
                None => {
                    waiting.insert(id, VecDeque::new());
                    return Turn { turnstile: Some(Arc::clone(self)), id };
                }
                Some(queue) => {
                    let (sender, receiver) = oneshot::channel();
                    queue.push_back(sender);
                    receiver
                }
            }
        };
        match receiver.await {
            Ok(turn) => turn,
            // The holder always passes its turn on; were it lost all the same, the log still arbitrates.
            Err(_) => Turn { turnstile: Some(Arc::clone(self)), id },
        }
    }

    fn shard(&self, id: SessionId) -> &Mutex<Waiting> {
        let [.., last] = id.uuid().into_bytes();
        let [first, ..] = &self.shards;
        self.shards.get(usize::from(last) % SHARDS).unwrap_or(first)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turnstile) = self.turnstile.take() else { return };
        let id = self.id;
        loop {
            let next = {
                let mut waiting = turnstile.shard(id).lock();
                match waiting.get_mut(&id).and_then(VecDeque::pop_front) {
                    Some(next) => next,
                    None => {
                        waiting.remove(&id);
                        return;
                    }
                }
            };
            match next.send(Turn { turnstile: Some(Arc::clone(&turnstile)), id }) {
                Ok(()) => return,
                // The waiter has gone: its would-be turn must not pass on by itself, for this loop does that.
                Err(mut turn) => drop(turn.turnstile.take()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use session_model::SessionId;

    use super::*;

    fn id() -> SessionId {
        "0190a5c2-7c1e-7000-8000-00000000000a".parse().unwrap()
    }

    #[tokio::test]
    async fn passes_in_order_of_arrival_and_forgets_idle_sessions() {
        let turnstile = Arc::new(Turnstile::default());
        let first = turnstile.enter(id()).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for n in 0..10 {
            let (turnstile, order) = (Arc::clone(&turnstile), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let _turn = turnstile.enter(id()).await;
                order.lock().push(n);
            }));
            tokio::task::yield_now().await;
        }
        assert!(order.lock().is_empty());
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), (0..10).collect::<Vec<_>>());
        assert!(turnstile.shard(id()).lock().is_empty());
    }

    #[tokio::test]
    async fn a_waiter_who_left_is_passed_over() {
        let turnstile = Arc::new(Turnstile::default());
        let first = turnstile.enter(id()).await;
        let gone = tokio::time::timeout(Duration::from_millis(1), turnstile.enter(id())).await;
        assert!(gone.is_err());
        drop(first);
        let _turn = tokio::time::timeout(Duration::from_secs(5), turnstile.enter(id())).await.unwrap();
    }
}
