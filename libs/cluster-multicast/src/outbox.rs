//! Datagrams that wait to be sent.

use std::collections::VecDeque;
use std::net::SocketAddr;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::pace::booked;

/// A bounded queue: what does not fit is not taken, so that sending never waits.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    bytes: usize,
    closed: bool,
}

/// Datagrams of one size to one address, back to back: the system can be given them at once (UDP segmentation offload). The last may be
/// smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) to: SocketAddr,
    pub(crate) segment: usize,
    pub(crate) count: usize,
    /// What they take of a receive buffer.
    pub(crate) booked: u64,
}

/// What there is to send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    Batch(Batch),
    /// The next one is more than is allowed now.
    Later {
        booked: u64,
    },
    Nothing,
    /// And nothing will come.
    Closed,
}

/// Bytes that may wait. With [`MulticastConfig::rate`](crate::MulticastConfig::rate) as it is by default they are gone within a tenth of a second.
const LIMIT: usize = 16 << 20;
/// Bytes that the system takes at once: an IP packet's worth.
const AT_ONCE: usize = 65_000;

impl Outbox {
    /// Whether there was room.
    pub(crate) fn push(&self, to: SocketAddr, datagram: Vec<u8>) -> bool {
        let mut queue = self.queue.lock();
        if queue.closed || queue.bytes + datagram.len() > LIMIT {
            return false;
        }
        queue.bytes += datagram.len();
        let first = queue.datagrams.is_empty();
        queue.datagrams.push_back((to, datagram));
        drop(queue);
        if first {
            self.filled.notify_one();
        }
        true
    }

    /// Takes what goes out next, at most so many datagrams, as much as is allowed.
    pub(crate) fn take(&self, allowance: u64, most: usize, into: &mut Vec<u8>) -> Waiting {
        into.clear();
        let mut queue = self.queue.lock();
        let Some((to, first)) = queue.datagrams.front().map(|(to, datagram)| (*to, datagram.len())) else {
            return if queue.closed { Waiting::Closed } else { Waiting::Nothing };
        };
        if booked(first) > allowance {
            return Waiting::Later { booked: booked(first) };
        }
        let mut batch = Batch { to, segment: first, count: 0, booked: 0 };
        while let Some((_, datagram)) = queue.datagrams.pop_front_if(|(next, datagram)| {
            let whole = into.len() == batch.count * first;
            let fits = batch.count < most && into.len() + datagram.len() <= AT_ONCE;
            batch.count == 0
                || *next == to
                    && whole
                    && fits
                    && (1..=first).contains(&datagram.len())
                    && batch.booked + booked(datagram.len()) <= allowance
        }) {
            queue.bytes -= datagram.len();
            into.extend_from_slice(&datagram);
            batch.count += 1;
            batch.booked += booked(datagram.len());
        }
        Waiting::Batch(batch)
    }

    /// Waits until there may be something again.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Takes nothing more; what waits goes out.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.filled.notify_one();
    }

    pub(crate) fn waiting(&self) -> usize {
        self.queue.lock().datagrams.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(239, 255, 0, 1)), 7_000);
    const ONE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7_001);

    fn outbox(datagrams: &[(SocketAddr, usize)]) -> Outbox {
        let outbox = Outbox::default();
        for (number, (to, size)) in datagrams.iter().enumerate() {
            assert!(outbox.push(*to, vec![number as u8; *size]));
        }
        outbox
    }

    /// Takes batches until nothing waits: address, and lengths.
    fn batches(outbox: &Outbox, most: usize) -> Vec<(SocketAddr, Vec<usize>)> {
        let (mut batches, mut buffer) = (Vec::new(), Vec::new());
        while let Waiting::Batch(batch) = outbox.take(u64::MAX, most, &mut buffer) {
            let lengths: Vec<usize> = buffer.chunks(batch.segment).map(<[u8]>::len).collect();
            assert_eq!(lengths.len(), batch.count);
            batches.push((batch.to, lengths));
        }
        batches
    }

    #[test]
    fn equal_ones_go_together_and_a_smaller_one_ends_them() {
        let outbox = outbox(&[(ALL, 9), (ALL, 9), (ALL, 5), (ALL, 5), (ONE, 5), (ALL, 5), (ALL, 7)]);
        let expected = [(ALL, vec![9, 9, 5]), (ALL, vec![5]), (ONE, vec![5]), (ALL, vec![5]), (ALL, vec![7])];
        assert_eq!(batches(&outbox, 64), expected);
        assert_eq!(outbox.waiting(), 0);
    }

    #[test]
    fn no_more_go_together_than_the_system_takes() {
        assert_eq!(batches(&outbox(&[(ALL, 9); 5]), 2), [(ALL, vec![9, 9]), (ALL, vec![9, 9]), (ALL, vec![9])]);
        assert_eq!(batches(&outbox(&[(ALL, 9); 2]), 1), [(ALL, vec![9]), (ALL, vec![9])]);
        assert_eq!(batches(&outbox(&[(ALL, 30_000); 3]), 64), [(ALL, vec![30_000; 2]), (ALL, vec![30_000])]);
    }

    #[test]
    fn what_is_not_allowed_yet_waits_in_its_place() {
        let (outbox, mut buffer) = (outbox(&[(ALL, 1_000); 3]), Vec::new());
        let each = booked(1_000);
        assert_eq!(outbox.take(each - 1, 64, &mut buffer), Waiting::Later { booked: each });
        let two = Batch { to: ALL, segment: 1_000, count: 2, booked: 2 * each };
        assert_eq!(outbox.take(3 * each - 1, 64, &mut buffer), Waiting::Batch(two));
        assert_eq!((buffer.first(), buffer.last()), (Some(&0), Some(&1)));
        assert_eq!(outbox.waiting(), 1);
    }

    #[test]
    fn a_full_one_takes_nothing_and_a_closed_one_gives_what_it_has() {
        let (outbox, mut buffer) = (outbox(&[]), Vec::new());
        assert_eq!(outbox.take(u64::MAX, 64, &mut buffer), Waiting::Nothing);
        while outbox.push(ALL, vec![0; 60_000]) {}
        assert!(outbox.push(ALL, vec![0; 1_000]), "what fits is taken");
        outbox.close();
        assert!(!outbox.push(ALL, vec![0]));
        assert_eq!(batches(&outbox, 64).len(), LIMIT / 60_000);
        assert_eq!(outbox.take(u64::MAX, 64, &mut buffer), Waiting::Closed);
    }
}
