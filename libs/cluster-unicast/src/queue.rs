//! What waits to be sent to one peer. Bounded: a peer that cannot take it loses it alone.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use cluster::Room;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What may wait for one peer: more than half a second at the rate that is aimed at, for a network that loses packets.
const ROOM: Room = Room { frames: 65_536, bytes: 64 << 20 };
/// Bytes that are taken at once: one write.
const AT_ONCE: usize = 256 << 10;

/// Which goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// What everybody gets: commits and signs of life.
    Everybody,
    /// What one node gets: pages of a copy, which must not keep commits waiting.
    One,
}

/// Units for one peer. Whoever sends puts; the connection that carries takes.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct State {
    everybody: VecDeque<Bytes>,
    one: VecDeque<Bytes>,
    bytes: usize,
    dropped: u64,
}

impl Queue {
    /// Whether there was room for it. If not it is dropped, and counted.
    pub(crate) fn put(&self, lane: Lane, unit: Bytes) -> bool {
        let mut state = self.state.lock();
        let frames = state.everybody.len() + state.one.len();
        if frames >= ROOM.frames || state.bytes + unit.len() > ROOM.bytes {
            state.dropped += 1;
            return false;
        }
        state.bytes += unit.len();
        match lane {
            Lane::Everybody => state.everybody.push_back(unit),
            Lane::One => state.one.push_back(unit),
        }
        drop(state);
        self.filled.notify_one();
        true
    }

    /// Writes what waits behind what is there, as far as one write goes. `false` if nothing waits.
    pub(crate) fn take_now(&self, into: &mut BytesMut) -> bool {
        let mut state = self.state.lock();
        let before = into.len();
        while into.len() - before < AT_ONCE {
            let Some(unit) = state.next() else { break };
            into.extend_from_slice(&unit);
        }
        into.len() > before
    }

    /// Waits until something waits, and takes it. Dropping the future loses nothing.
    pub(crate) async fn take(&self, into: &mut BytesMut) {
        while !self.take_now(into) {
            self.filled.notified().await;
        }
    }

    /// Frames that wait, and frames that found no room.
    pub(crate) fn waiting_and_dropped(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.everybody.len() + state.one.len(), state.dropped)
    }
}

impl State {
    fn next(&mut self) -> Option<Bytes> {
        let unit = self.everybody.pop_front().or_else(|| self.one.pop_front())?;
        self.bytes -= unit.len();
        Some(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_everybody_gets_goes_first_and_writes_have_a_size() {
        let queue = Queue::default();
        assert!(queue.put(Lane::One, Bytes::from_static(b"page ")));
        assert!(queue.put(Lane::Everybody, Bytes::from_static(b"commit ")));
        let mut taken = BytesMut::from(b"> ".as_slice());
        assert!(queue.take_now(&mut taken));
        assert_eq!(taken, b"> commit page ".as_slice());
        assert!(!queue.take_now(&mut taken));
        let unit = Bytes::from(vec![0; 60_000]);
        (0..10).for_each(|_| assert!(queue.put(Lane::Everybody, unit.clone())));
        taken.clear();
        assert!(queue.take_now(&mut taken));
        assert!((AT_ONCE..AT_ONCE + 60_000).contains(&taken.len()), "{}", taken.len());
    }

    #[test]
    fn beyond_its_bounds_a_queue_drops_and_counts() {
        let queue = Queue::default();
        let unit = Bytes::from(vec![0; 64 << 10]);
        let fit = ROOM.bytes / unit.len();
        (0..fit).for_each(|_| assert!(queue.put(Lane::Everybody, unit.clone())));
        assert!(!queue.put(Lane::Everybody, unit.clone()) && !queue.put(Lane::One, Bytes::from_static(b"x")));
        assert_eq!(queue.waiting_and_dropped(), (fit, 2));
        assert!(queue.take_now(&mut BytesMut::new()));
        assert!(queue.put(Lane::Everybody, unit), "there is room again");
        let small = Queue::default();
        (0..ROOM.frames).for_each(|_| assert!(small.put(Lane::One, Bytes::from_static(b"x"))));
        assert!(!small.put(Lane::Everybody, Bytes::new()));
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let queue = std::sync::Arc::new(Queue::default());
        let waits = tokio::spawn({
            let queue = std::sync::Arc::clone(&queue);
            async move {
                let mut taken = BytesMut::new();
                queue.take(&mut taken).await;
                taken
            }
        });
        tokio::task::yield_now().await;
        assert!(queue.put(Lane::Everybody, Bytes::from_static(b"x")));
        assert_eq!(waits.await.unwrap(), b"x".as_slice());
    }
}
