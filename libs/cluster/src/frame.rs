//! Frames: what goes over the wire, sealed and numbered.
//!
//! `magic (1) ‖ version (1) ‖ key id (4) ‖ sender (16) ‖ number (8) ‖ ciphertext ‖ tag (16)`. All before the ciphertext is bound to it.
//! The number is the nonce under a key that only this incarnation seals with. A receiver takes each number of a sender once, within a
//! window; what comes later than that is old anyway.

use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;
use sealing::{ClusterKey, FRAME_TAG, FrameKey, SealError};
use tokio::time::Instant;

use crate::Incarnation;

const MAGIC: u8 = 0xcf;
const VERSION: u8 = 1;
const HEADER: usize = 30;

/// Bytes that a frame is longer than the message in it.
pub(crate) const OVERHEAD: usize = HEADER + FRAME_TAG;

/// Why a frame was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejected {
    /// No frame at all.
    Malformed,
    /// A frame of a later format.
    Version,
    /// Sealed with a key that this node does not have: another cluster, or a key not yet (or no longer) known here.
    ForeignKey,
    /// Altered, or forged.
    NotAuthentic,
    /// Had already, or too old to tell.
    Replayed,
    /// Authentic, but no message: a fault, or a later format.
    Undecodable,
}

impl Rejected {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Malformed, Self::Version, Self::ForeignKey, Self::NotAuthentic, Self::Replayed, Self::Undecodable];

    /// Its word in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::ForeignKey => "foreign_key",
            Self::NotAuthentic => "not_authentic",
            Self::Replayed => "replayed",
            Self::Undecodable => "undecodable",
        }
    }
}

/// How many frames were passed over, for each reason.
#[derive(Debug, Default)]
pub(crate) struct Rejections([AtomicU64; Rejected::ALL.len()]);

impl Rejections {
    pub(crate) fn count(&self, why: Rejected) {
        let counters = Rejected::ALL.iter().zip(&self.0);
        for (_, counter) in counters.filter(|(reason, _)| **reason == why) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn all(&self) -> Vec<(Rejected, u64)> {
        Rejected::ALL.iter().zip(&self.0).map(|(why, counter)| (*why, counter.load(Ordering::Relaxed))).collect()
    }
}

/// Seals what this incarnation sends, and opens what others do.
pub(crate) struct Frames {
    me: Incarnation,
    keys: Mutex<Vec<ClusterKey>>,
    sender: Mutex<Sender>,
    senders: Mutex<HashMap<([u8; 4], Incarnation), Peer>>,
}

struct Sender {
    id: [u8; 4],
    key: FrameKey,
    number: u64,
}

struct Peer {
    key: FrameKey,
    window: Window,
    heard: Instant,
}

/// Senders remembered at a time; beyond them the one heard longest ago is forgotten.
const SENDERS: usize = 1_024;

impl Frames {
    /// Seals with the first key; opens with any.
    pub(crate) fn new(me: Incarnation, keys: Vec<ClusterKey>) -> Result<Self, SealError> {
        let first = keys.first().ok_or(SealError::Malformed("a cluster needs a key"))?;
        let sender = Sender { id: first.id(), key: first.of_sender(&me.0)?, number: 0 };
        Ok(Self { me, keys: Mutex::new(keys), sender: Mutex::new(sender), senders: Mutex::default() })
    }

    /// Changes the keys. Numbers go on, so that a key which comes back never sees one twice.
    pub(crate) fn rekey(&self, keys: Vec<ClusterKey>) -> Result<(), SealError> {
        let first = keys.first().ok_or(SealError::Malformed("a cluster needs a key"))?;
        let (id, key) = (first.id(), first.of_sender(&self.me.0)?);
        let mut sender = self.sender.lock();
        (sender.id, sender.key) = (id, key);
        self.senders.lock().retain(|(id, _), _| keys.iter().any(|key| key.id() == *id));
        *self.keys.lock() = keys;
        Ok(())
    }

    /// The ids of the keys, the one that seals first.
    pub(crate) fn key_ids(&self) -> Vec<[u8; 4]> {
        self.keys.lock().iter().map(ClusterKey::id).collect()
    }

    pub(crate) fn seal(&self, message: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut frame = Vec::with_capacity(message.len() + OVERHEAD);
        let mut sender = self.sender.lock();
        sender.number += 1;
        let number = sender.number;
        frame.extend_from_slice(&[MAGIC, VERSION]);
        frame.extend_from_slice(&sender.id);
        frame.extend_from_slice(&self.me.0);
        frame.extend_from_slice(&number.to_be_bytes());
        sender.key.seal(number, &mut frame, message)?;
        Ok(frame)
    }

    /// Who sent a frame, and the message in it; `None` for a frame of this node's own.
    pub(crate) fn open(&self, frame: &[u8], now: Instant) -> Result<Option<(Incarnation, Vec<u8>)>, Rejected> {
        let (header, sealed) = frame.split_first_chunk::<HEADER>().ok_or(Rejected::Malformed)?;
        let [magic, version, rest @ ..] = header;
        if *magic != MAGIC {
            return Err(Rejected::Malformed);
        }
        if *version != VERSION {
            return Err(Rejected::Version);
        }
        let (id, rest) = rest.split_first_chunk::<4>().ok_or(Rejected::Malformed)?;
        let (who, number) = rest.split_first_chunk::<16>().ok_or(Rejected::Malformed)?;
        let number = u64::from_be_bytes(number.try_into().map_err(|_| Rejected::Malformed)?);
        let who = Incarnation(*who);
        if who == self.me {
            return Ok(None);
        }
        let mut senders = self.senders.lock();
        if let Some(peer) = senders.get_mut(&(*id, who)) {
            let message = peer.key.open(number, header, sealed).map_err(|_| Rejected::NotAuthentic)?;
            peer.heard = now;
            return if peer.window.take(number) { Ok(Some((who, message))) } else { Err(Rejected::Replayed) };
        }
        // Nothing is remembered of a sender before a frame of it was authentic.
        let known = self.keys.lock().iter().find(|key| key.id() == *id).cloned().ok_or(Rejected::ForeignKey)?;
        let mut key = known.of_sender(&who.0).map_err(|_| Rejected::NotAuthentic)?;
        let message = key.open(number, header, sealed).map_err(|_| Rejected::NotAuthentic)?;
        if senders.len() >= SENDERS
            && let Some(oldest) = senders.iter().min_by_key(|(_, peer)| peer.heard).map(|(at, _)| *at)
        {
            senders.remove(&oldest);
        }
        let mut window = Window::default();
        window.take(number);
        senders.insert((*id, who), Peer { key, window, heard: now });
        Ok(Some((who, message)))
    }
}

/// Which numbers of a sender were had: the greatest, and which of those a little below it (RFC 6479 describes such a window).
#[derive(Debug)]
struct Window {
    greatest: u64,
    had: [u64; Window::WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { greatest: 0, had: [0; Self::WORDS] }
    }
}

impl Window {
    const WORDS: usize = 64;
    const WIDTH: u64 = Self::WORDS as u64 * 64;

    /// Whether the number is new; from now on it is not.
    fn take(&mut self, number: u64) -> bool {
        if number > self.greatest {
            // What the window moves over is forgotten.
            let moved = (number - self.greatest).min(Self::WIDTH);
            for step in 1..=moved {
                self.set(self.greatest.wrapping_add(step), false);
            }
            self.greatest = number;
        } else if self.greatest - number >= Self::WIDTH || self.get(number) {
            return false;
        }
        self.set(number, true);
        true
    }

    fn get(&self, number: u64) -> bool {
        let word = self.had.get((number / 64) as usize % Self::WORDS);
        word.is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn set(&mut self, number: u64, had: bool) {
        if let Some(word) = self.had.get_mut((number / 64) as usize % Self::WORDS) {
            let bit = 1 << (number % 64);
            if had { *word |= bit } else { *word &= !bit }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn frames(who: u8, secrets: &[u8]) -> Frames {
        let keys = secrets.iter().map(|secret| ClusterKey::new(&[*secret; 32], "test").unwrap()).collect();
        Frames::new(Incarnation([who; 16]), keys).unwrap()
    }

    #[test]
    fn what_one_seals_another_opens_once() {
        let (one, other) = (frames(1, &[7]), frames(2, &[7]));
        let frame = one.seal(b"hello").unwrap();
        let now = Instant::now();
        assert_eq!(other.open(&frame, now), Ok(Some((Incarnation([1; 16]), b"hello".to_vec()))));
        assert_eq!(other.open(&frame, now), Err(Rejected::Replayed));
        assert_eq!(one.open(&frame, now), Ok(None), "its own");
        assert_eq!(frames(3, &[8]).open(&frame, now), Err(Rejected::ForeignKey));
        assert_eq!(other.open(&frame[..20], now), Err(Rejected::Malformed));
        assert_eq!(other.open(&[0; 64], now), Err(Rejected::Malformed));
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_leaves_nothing_behind() {
        let one = frames(1, &[7]);
        let frame = one.seal(b"hello").unwrap();
        let other = frames(2, &[7]);
        for at in 0..frame.len() {
            let mut altered = frame.clone();
            altered[at] ^= 1;
            assert!(other.open(&altered, Instant::now()).is_err(), "byte {at}");
        }
        assert!(other.senders.lock().is_empty());
        assert!(other.open(&frame, Instant::now()).is_ok());
    }

    /// Every order of two nodes taking up the new key, then sealing with it, then dropping the old one, loses nothing.
    #[test]
    fn keys_are_rotated_without_loss() {
        let (one, other) = (frames(1, &[7]), frames(2, &[7]));
        let key = |secret: u8| ClusterKey::new(&[secret; 32], "test").unwrap();
        let hear = |from: &Frames, to: &Frames| to.open(&from.seal(b"x").unwrap(), Instant::now()).is_ok();
        for (which, keys) in [
            (&one, vec![key(7), key(8)]),
            (&other, vec![key(7), key(8)]),
            (&one, vec![key(8), key(7)]),
            (&other, vec![key(8), key(7)]),
            (&one, vec![key(8)]),
            (&other, vec![key(8)]),
        ] {
            which.rekey(keys).unwrap();
            assert!(hear(&one, &other) && hear(&other, &one));
        }
        assert_eq!(one.open(&frames(3, &[7]).seal(b"x").unwrap(), Instant::now()), Err(Rejected::ForeignKey));
    }

    #[test]
    fn senders_without_end_are_not_remembered_without_end() {
        let receiver = frames(0, &[7]);
        let key = ClusterKey::new(&[7; 32], "test").unwrap();
        for who in 0..SENDERS as u128 + 50 {
            let sender = Frames::new(Incarnation((who + 1).to_be_bytes()), vec![key.clone()]).unwrap();
            assert!(receiver.open(&sender.seal(b"x").unwrap(), Instant::now()).is_ok());
        }
        assert_eq!(receiver.senders.lock().len(), SENDERS);
    }

    proptest! {
        /// Against a set of all that was ever taken: never the same number twice, and nothing new within the window refused.
        #[test]
        fn a_window_takes_each_number_once(steps in prop::collection::vec(-6_000_i64..6_000, 1..300)) {
            let (mut window, mut had) = (Window::default(), HashSet::new());
            let (mut at, mut greatest) = (10_000_i64, 0_u64);
            for step in steps {
                at = (at + step).max(1);
                let number = at as u64;
                let new = !had.contains(&number);
                let within = number > greatest || greatest - number < Window::WIDTH;
                let taken = window.take(number);
                prop_assert_eq!(taken, new && within);
                if taken {
                    had.insert(number);
                    greatest = greatest.max(number);
                }
            }
        }
    }
}
