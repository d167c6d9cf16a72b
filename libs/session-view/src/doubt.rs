//! What a view outside the process may lack although it was applied.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use hashbrown::HashMap;
use parking_lot::Mutex;
use session_model::{LeafIndex, Session, SessionId};

/// Sessions remembered one by one. Beyond it the whole view is in doubt.
const UNSETTLED: usize = 16_384;

/// Keeps a view from showing what it may have missed: the account that an adapter keeps for
/// [`SessionView::losses`](crate::SessionView::losses), and of the states it could not apply.
///
/// In doubt from the beginning: what stands in a store that others keep may lack what was applied just before it, or this
/// process, went down.
#[derive(Debug)]
pub struct Doubt {
    losses: AtomicU64,
    restored: AtomicU64,
    /// Where a state was to be applied and nobody knows whether it was: nothing below its index is shown.
    unsettled: Mutex<HashMap<SessionId, LeafIndex>>,
    /// How many those are, so that readers rarely take the lock.
    unsettled_count: AtomicUsize,
}

impl Default for Doubt {
    fn default() -> Self {
        Self {
            losses: AtomicU64::new(1),
            restored: AtomicU64::new(0),
            unsettled: Mutex::default(),
            unsettled_count: AtomicUsize::new(0),
        }
    }
}

impl Doubt {
    /// The view may have lost something that was applied.
    pub fn lost(&self) {
        self.losses.fetch_add(1, SeqCst);
    }

    /// How often it may have.
    pub fn losses(&self) -> u64 {
        self.losses.load(SeqCst)
    }

    /// All that was in the log when [`Doubt::losses`] was `losses` has been applied since.
    pub fn restored(&self, losses: u64) {
        self.restored.fetch_max(losses, SeqCst);
    }

    /// Whether nothing is lost that was not applied again.
    pub fn is_over(&self) -> bool {
        self.restored.load(SeqCst) == self.losses.load(SeqCst)
    }

    /// Whether what the view holds of a session may be shown.
    pub fn spares(&self, id: SessionId) -> bool {
        self.is_over() && (self.unsettled_count.load(SeqCst) == 0 || !self.unsettled.lock().contains_key(&id))
    }

    /// Nobody knows whether these states were applied.
    pub fn failed<'s>(&self, states: impl IntoIterator<Item = &'s Session>) {
        let mut unsettled = self.unsettled.lock();
        for state in states {
            let index = unsettled.entry(state.id).or_insert(state.head.index);
            *index = state.head.index.max(*index);
        }
        if unsettled.len() > UNSETTLED {
            unsettled.clear();
            self.lost();
        }
        self.unsettled_count.store(unsettled.len(), SeqCst);
    }

    /// A state was applied, or a newer one stands there.
    pub fn settled(&self, state: &Session) {
        if self.unsettled_count.load(SeqCst) == 0 {
            return;
        }
        let mut unsettled = self.unsettled.lock();
        if unsettled.get(&state.id).is_some_and(|index| *index <= state.head.index) {
            unsettled.remove(&state.id);
        }
        self.unsettled_count.store(unsettled.len(), SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{id, session};

    #[test]
    fn is_over_only_when_the_last_loss_was_made_good() {
        let doubt = Doubt::default();
        assert!(!doubt.is_over() && !doubt.spares(id(1)));
        let before = doubt.losses();
        doubt.lost();
        doubt.restored(before);
        assert!(!doubt.is_over(), "something was lost again meanwhile");
        doubt.restored(doubt.losses());
        assert!(doubt.is_over() && doubt.spares(id(1)));
    }

    #[test]
    fn a_state_that_was_not_applied_hides_its_session_until_it_or_a_later_one_is() {
        let doubt = Doubt::default();
        doubt.restored(doubt.losses());
        doubt.failed([&session(1, 5), &session(1, 4)]);
        assert!(!doubt.spares(id(1)) && doubt.spares(id(2)));
        doubt.settled(&session(1, 4));
        assert!(!doubt.spares(id(1)));
        doubt.settled(&session(1, 6));
        assert!(doubt.spares(id(1)));
    }

    #[test]
    fn too_many_to_remember_are_a_loss() {
        let doubt = Doubt::default();
        doubt.restored(doubt.losses());
        for n in 0..=UNSETTLED as u64 {
            assert!(doubt.is_over());
            doubt.failed([&session(n, n)]);
        }
        assert!(!doubt.is_over());
        doubt.restored(doubt.losses());
        assert!(doubt.spares(id(0)));
    }
}
