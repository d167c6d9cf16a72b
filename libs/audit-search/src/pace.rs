//! Work that does not keep others waiting.

use tokio::task::yield_now;

/// Steps between two moments at which others may run: some tens of microseconds each, so that nobody waits a millisecond.
const STRIDE: u32 = 32;

/// Who computes for long on a thread of the runtime keeps the connections waiting that this thread looks after, and with them every request.
/// A loop over entries takes a step for each.
#[derive(Debug, Default)]
pub(crate) struct Pace(u32);

impl Pace {
    /// Lets others run, now and then.
    pub(crate) async fn step(&mut self) {
        self.0 = self.0.wrapping_add(1);
        if self.0.is_multiple_of(STRIDE) {
            yield_now().await;
        }
    }
}
