//! How much of the log a store reflects, where writing that down costs too much to do it each time.

use std::time::Duration;

use parking_lot::Mutex;
use session_model::TreeSize;
use tokio::time::Instant;

/// What one process has said of a store, and what it has written down there, at most once an interval. What was said since
/// is applied again by whoever comes to the store next, and was never claimed.
#[derive(Debug)]
pub struct Reflected {
    every: Duration,
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    said: TreeSize,
    written: TreeSize,
    at: Option<Instant>,
}

impl Reflected {
    /// To be written down at most once in `every`.
    #[must_use]
    pub fn every(every: Duration) -> Self {
        Self { every, account: Mutex::default() }
    }

    /// The store says that it reflects this much. Answers how much it does.
    pub fn found(&self, stands: TreeSize) -> TreeSize {
        let mut account = self.account.lock();
        if stands < account.written {
            // Somebody has emptied it, or put it back to what it was: what was said of it is void.
            *account = Account { said: stands, written: stands, at: None };
        }
        stands.max(account.said)
    }

    /// It reflects this much now. Answers whether that is to be written down, and then told to [`Reflected::written`].
    #[must_use]
    pub fn said(&self, size: TreeSize) -> bool {
        let mut account = self.account.lock();
        account.said = account.said.max(size);
        account.at.is_none_or(|at| at.elapsed() >= self.every)
    }

    /// It was written down.
    pub fn written(&self, size: TreeSize) {
        let mut account = self.account.lock();
        account.written = account.written.max(size);
        account.at = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_said_is_written_now_and_then_and_void_when_the_store_went_back() {
        let reflected = Reflected::every(Duration::from_secs(5));
        assert!(reflected.said(TreeSize(5)));
        reflected.written(TreeSize(5));
        assert!(!reflected.said(TreeSize(9)));
        assert_eq!(reflected.found(TreeSize(5)), TreeSize(9));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(reflected.said(TreeSize(9)));
        reflected.written(TreeSize(9));
        assert_eq!(reflected.found(TreeSize(5)), TreeSize(5));
        assert!(reflected.said(TreeSize(6)), "what was void is written down again at once");
    }
}
