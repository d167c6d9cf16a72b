//! What waits within a transport: frames to be sent, frames that came. Bounded, because a peer, a server or this process may be slow.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{Audience, Received};

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Frames.
    pub frames: usize,
    /// Bytes of all of them together.
    pub bytes: usize,
}

/// Frames in the order they came in. Many put, one takes.
#[derive(Debug)]
struct Queue<T> {
    room: Room,
    state: Mutex<State<T>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<T> {
    frames: VecDeque<(T, usize)>,
    bytes: usize,
    /// Something was dropped, or may have been, and who takes was not told yet.
    lost: bool,
    closed: bool,
}

impl<T> Queue<T> {
    fn new(room: Room) -> Self {
        let state = State { frames: VecDeque::new(), bytes: 0, lost: false, closed: false };
        Self { room, state: Mutex::new(state), changed: Notify::new() }
    }

    /// Whether there was room for it.
    fn put(&self, frame: T, bytes: usize) -> bool {
        let mut state = self.state.lock();
        if state.closed || state.frames.len() >= self.room.frames || state.bytes + bytes > self.room.bytes {
            return false;
        }
        state.bytes += bytes;
        state.frames.push_back((frame, bytes));
        drop(state);
        self.changed.notify_one();
        true
    }

    fn change(&self, how: impl FnOnce(&mut State<T>)) {
        how(&mut self.state.lock());
        self.changed.notify_one();
    }
}

impl<T> State<T> {
    fn take(&mut self) -> Option<T> {
        let (frame, bytes) = self.frames.pop_front()?;
        self.bytes -= bytes;
        Some(frame)
    }
}

/// Frames that wait to be sent.
#[derive(Debug)]
pub struct Outbox(Queue<(Audience, Vec<u8>)>);

impl Outbox {
    /// An empty one.
    pub fn new(room: Room) -> Self {
        Self(Queue::new(room))
    }

    /// Puts a frame in; `false` if there is no room, or it is closed.
    #[must_use]
    pub fn put(&self, to: Audience, frame: &[u8]) -> bool {
        self.0.put((to, frame.to_vec()), frame.len())
    }

    /// Waits for frames; takes what is there, as far as `most` goes, and at least one. `None` once it is closed and empty.
    pub async fn take(&self, most: Room) -> Option<Vec<(Audience, Vec<u8>)>> {
        loop {
            {
                let mut state = self.0.state.lock();
                let (mut taken, mut bytes) = (Vec::new(), 0);
                while let Some((_, more)) = state.frames.front() {
                    bytes += more;
                    if !taken.is_empty() && (taken.len() >= most.frames || bytes > most.bytes) {
                        break;
                    }
                    taken.extend(state.take());
                }
                if !taken.is_empty() {
                    return Some(taken);
                }
                if state.closed {
                    return None;
                }
            }
            self.0.changed.notified().await;
        }
    }

    /// Throws away what waits.
    pub fn clear(&self) {
        self.0.change(|state| {
            state.frames.clear();
            state.bytes = 0;
        });
    }

    /// Takes no more frames. What waits can still be taken.
    pub fn close(&self) {
        self.0.change(|state| state.closed = true);
    }
}

/// What came, and waits for [`Transport::receive`](crate::Transport::receive).
#[derive(Debug)]
pub struct Inbox(Queue<Vec<u8>>);

impl Inbox {
    /// An empty one.
    pub fn new(room: Room) -> Self {
        Self(Queue::new(room))
    }

    /// Puts a frame in. If there is no room it is dropped, and whoever takes is told.
    pub fn put(&self, frame: Vec<u8>) {
        let bytes = frame.len();
        if !self.0.put(frame, bytes) {
            self.lost();
        }
    }

    /// Frames may have been lost. However often that is said, it is told once.
    pub fn lost(&self) {
        self.0.change(|state| state.lost = true);
    }

    /// The next frame, or that some were lost: that comes first, because the sooner the log is read the better. `None` once closed. Dropping
    /// the future loses nothing.
    pub async fn take(&self) -> Option<Received> {
        loop {
            {
                let mut state = self.0.state.lock();
                if state.closed {
                    return None;
                }
                if std::mem::take(&mut state.lost) {
                    return Some(Received::Lost);
                }
                if let Some(frame) = state.take() {
                    return Some(Received::Frame(frame));
                }
            }
            self.0.changed.notified().await;
        }
    }

    /// Ends it. What waits is thrown away.
    pub fn close(&self) {
        self.0.change(|state| {
            state.closed = true;
            state.frames.clear();
            state.bytes = 0;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { frames: 3, bytes: 100 };

    #[tokio::test]
    async fn an_outbox_has_bounds_and_is_emptied_in_order() {
        let outbox = Outbox::new(ROOM);
        assert!(outbox.put(Audience::Everybody, &[1; 40]) && outbox.put(Audience::Everybody, &[2; 40]));
        assert!(!outbox.put(Audience::Everybody, &[3; 40]), "too many bytes");
        assert!(outbox.put(Audience::Everybody, &[4; 20]));
        assert!(!outbox.put(Audience::Everybody, &[]), "too many frames");
        let lengths = |taken: Vec<(Audience, Vec<u8>)>| taken.iter().map(|(_, frame)| frame.len()).collect::<Vec<_>>();
        assert_eq!(outbox.take(Room { frames: 9, bytes: 80 }).await.map(lengths), Some(vec![40, 40]));
        assert!(outbox.put(Audience::Everybody, &[5; 80]), "there is room again");
        assert_eq!(outbox.take(Room { frames: 9, bytes: 1 }).await.map(lengths), Some(vec![20]), "at least one");
        outbox.close();
        assert!(!outbox.put(Audience::Everybody, &[6]));
        assert_eq!(outbox.take(ROOM).await.map(lengths), Some(vec![80]));
        assert_eq!(outbox.take(ROOM).await, None);
    }

    #[tokio::test]
    async fn what_an_inbox_drops_is_told_of_once_and_first() {
        let inbox = Inbox::new(ROOM);
        for n in 0..6 {
            inbox.put(vec![n; 10]);
        }
        assert_eq!(inbox.take().await, Some(Received::Lost));
        for n in 0..3 {
            assert_eq!(inbox.take().await, Some(Received::Frame(vec![n; 10])));
        }
        inbox.put(vec![7; 10]);
        inbox.lost();
        inbox.lost();
        assert_eq!(inbox.take().await, Some(Received::Lost));
        assert_eq!(inbox.take().await, Some(Received::Frame(vec![7; 10])));
        inbox.put(vec![8]);
        inbox.close();
        assert_eq!(inbox.take().await, None);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let inbox = std::sync::Arc::new(Inbox::new(ROOM));
        for step in [0, 1, 2] {
            let waits = tokio::spawn({
                let inbox = std::sync::Arc::clone(&inbox);
                async move { inbox.take().await }
            });
            tokio::task::yield_now().await;
            let woken = match step {
                0 => (inbox.put(vec![1]), Some(Received::Frame(vec![1]))).1,
                1 => (inbox.lost(), Some(Received::Lost)).1,
                _ => (inbox.close(), None).1,
            };
            assert_eq!(waits.await.unwrap(), woken);
        }
    }
}
