//! Who is where, as far as anybody says: hints only.
//!
//! What a node announces may be forged; what an authentic frame came from is as good as the frame. So an announcement is believed for as
//! long as nothing better is known of that node, and makes room for what is.

use std::net::SocketAddr;
use std::time::Duration;

use cluster::Incarnation;
use hashbrown::HashMap;
use tokio::time::Instant;

use crate::datagram::Here;

/// Nodes known at a time. Whoever forges announcements fills it with those that go first.
const PEERS: usize = 256;
/// Nodes watched at a time.
const WATCHED: usize = 64;
/// A node that says nothing for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// Between two tries to watch a node.
const RETRY: Duration = Duration::from_secs(1);

/// One that sends to the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) datagrams: u64,
    /// Bytes of its largest datagram: tells whether full ones get through.
    pub(crate) largest: usize,
    pub(crate) last: Instant,
}

/// A node, and where it may be.
#[derive(Debug)]
struct Peer {
    announced: Option<SocketAddr>,
    /// Where an authentic frame came from.
    confirmed: Option<SocketAddr>,
    port: Option<u16>,
    heard: Instant,
    watched: Watched,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    No,
    Tried(Instant),
    Trying,
    Yes,
}

/// The nodes that sent or announced something.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    peers: HashMap<Incarnation, Peer>,
    sources: HashMap<SocketAddr, Source>,
    /// Where the frame came from that was handed up last.
    last: Option<SocketAddr>,
}

impl Peers {
    /// Counts what came from an address.
    pub(crate) fn came(&mut self, from: SocketAddr, datagrams: u64, largest: usize, now: Instant) {
        if self.sources.len() >= PEERS && !self.sources.contains_key(&from) {
            let oldest = self.sources.iter().min_by_key(|(_, source)| source.last).map(|(at, _)| *at);
            oldest.map(|oldest| self.sources.remove(&oldest));
        }
        let source = self.sources.entry(from).or_insert(Source { datagrams: 0, largest: 0, last: now });
        source.datagrams += datagrams;
        source.largest = source.largest.max(largest);
        source.last = now;
    }

    /// A frame from there is handed up now.
    pub(crate) const fn hand_up(&mut self, from: SocketAddr) {
        self.last = Some(from);
    }

    /// The frame handed up last was an authentic one of this node.
    pub(crate) fn confirm(&mut self, who: Incarnation, now: Instant) {
        let Some(at) = self.last else { return };
        if let Some(peer) = self.peers.get_mut(&who) {
            if peer.confirmed != Some(at) {
                peer.confirmed = Some(at);
                // What was announced from elsewhere was not announced by this node.
                if peer.announced != Some(at) {
                    (peer.announced, peer.port) = (None, None);
                }
            }
            peer.heard = now;
        } else if self.make_room(true) {
            let peer = Peer { announced: None, confirmed: Some(at), port: None, heard: now, watched: Watched::No };
            self.peers.insert(who, peer);
        }
    }

    /// A node is announced. Answers whether that is news.
    pub(crate) fn announce(&mut self, here: Here, from: SocketAddr, now: Instant) -> bool {
        if !self.peers.contains_key(&here.incarnation) && !self.make_room(false) {
            return false;
        }
        let peer = self.peers.entry(here.incarnation).or_insert(Peer {
            announced: None,
            confirmed: None,
            port: None,
            heard: now,
            watched: Watched::No,
        });
        if peer.confirmed.is_some_and(|confirmed| confirmed != from) {
            return false;
        }
        peer.heard = now;
        let news = (peer.announced, peer.port) != (Some(from), Some(here.port));
        (peer.announced, peer.port) = (Some(from), Some(here.port));
        news
    }

    /// Where to send what is for one node.
    pub(crate) fn address(&self, who: Incarnation) -> Option<SocketAddr> {
        self.peers.get(&who).and_then(|peer| peer.confirmed.or(peer.announced))
    }

    /// Nodes that should be watched and are not; each is tried from now on.
    pub(crate) fn unwatched(&mut self, now: Instant) -> Vec<(Incarnation, SocketAddr)> {
        let busy = self.peers.values().filter(|peer| matches!(peer.watched, Watched::Trying | Watched::Yes)).count();
        let due = |watched: Watched| match watched {
            Watched::No => true,
            Watched::Tried(at) => now.saturating_duration_since(at) >= RETRY,
            Watched::Trying | Watched::Yes => false,
        };
        let mut due: Vec<_> = self.peers.iter_mut().filter(|(_, peer)| due(peer.watched)).collect();
        // Nodes of the cluster before those that only say so.
        due.sort_by_key(|(_, peer)| peer.confirmed.is_none());
        due.into_iter()
            .filter_map(|(who, peer)| {
                let mut at = peer.confirmed.or(peer.announced)?;
                at.set_port(peer.port?);
                Some((who, peer, at))
            })
            .take(WATCHED.saturating_sub(busy))
            .map(|(who, peer, at)| {
                peer.watched = Watched::Trying;
                (*who, at)
            })
            .collect()
    }

    /// It is connected to, and said that it is this node.
    pub(crate) fn watching(&mut self, who: Incarnation) {
        if let Some(peer) = self.peers.get_mut(&who) {
            peer.watched = Watched::Yes;
        }
    }

    /// It could not be connected to, or the connection ended without a word on why.
    pub(crate) fn not_watched(&mut self, who: Incarnation, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&who) {
            peer.watched = Watched::Tried(now);
        }
    }

    /// Whether nothing authentic has come from it.
    pub(crate) fn is_hearsay(&self, who: Incarnation) -> bool {
        self.peers.get(&who).is_none_or(|peer| peer.confirmed.is_none())
    }

    /// Its process has ended, by all appearances.
    pub(crate) fn gone(&mut self, who: Incarnation) {
        self.peers.remove(&who);
    }

    /// Forgets who has been silent for long.
    pub(crate) fn tick(&mut self, now: Instant) {
        let lately = |at: Instant| now.saturating_duration_since(at) < FORGOTTEN;
        self.peers.retain(|_, peer| lately(peer.heard) || matches!(peer.watched, Watched::Trying | Watched::Yes));
        self.sources.retain(|_, source| lately(source.last));
    }

    /// Every address that datagrams came from, and what is known of it.
    pub(crate) fn describe(&self, now: Instant) -> Vec<String> {
        let mut sources: Vec<_> = self.sources.iter().collect();
        sources.sort_by_key(|(at, _)| **at);
        let known = |at: SocketAddr| {
            let peer = self.peers.values().find(|peer| peer.confirmed.or(peer.announced) == Some(at));
            match peer {
                Some(peer) if peer.watched == Watched::Yes => "its process is watched",
                Some(_) => "its process is not watched",
                None => "no node is known there",
            }
        };
        let line = |(at, source): (&SocketAddr, &Source)| {
            let Source { datagrams, largest, last } = source;
            let ago = now.saturating_duration_since(*last).as_secs_f64();
            format!(
                "from {at}: {datagrams} datagrams, the largest of {largest} bytes, the last {ago:.1} s ago; {}",
                known(*at)
            )
        };
        sources.into_iter().map(line).collect()
    }

    /// Whether there is room for one more: made by forgetting who was heard longest ago, but a node of the cluster only for another one.
    fn make_room(&mut self, confirmed: bool) -> bool {
        if self.peers.len() < PEERS {
            return true;
        }
        let oldest = self.peers.iter().filter(|(_, peer)| confirmed || peer.confirmed.is_none());
        let oldest = oldest.min_by_key(|(_, peer)| (peer.confirmed.is_some(), peer.heard)).map(|(who, _)| *who);
        oldest.and_then(|oldest| self.peers.remove(&oldest)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 40_000).into()
    }

    const fn life(n: u8) -> Incarnation {
        Incarnation([n; 16])
    }

    fn here(n: u8) -> Here {
        Here { incarnation: life(n), port: 5_000 }
    }

    #[test]
    fn an_announcement_never_goes_before_what_was_authentic() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        assert!(peers.announce(here(1), at(1), now));
        assert!(!peers.announce(here(1), at(1), now), "no news");
        assert_eq!(peers.address(life(1)), Some(at(1)));
        assert!(peers.announce(here(1), at(66), now), "nothing better is known");
        peers.hand_up(at(1));
        peers.confirm(life(1), now);
        assert_eq!(peers.address(life(1)), Some(at(1)));
        assert_eq!(peers.unwatched(now), [], "the port was announced from elsewhere");
        assert!(!peers.announce(here(1), at(66), now));
        assert_eq!(peers.address(life(1)), Some(at(1)));
        assert!(peers.announce(here(1), at(1), now));
        assert_eq!(peers.unwatched(now), [(life(1), ([10, 0, 0, 1], 5_000).into())]);
    }

    #[test]
    fn a_node_is_watched_once_and_tried_again_after_a_while() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        peers.announce(here(1), at(1), now);
        assert_eq!(peers.unwatched(now).len(), 1);
        assert_eq!(peers.unwatched(now).len(), 0);
        peers.not_watched(life(1), now);
        assert_eq!(peers.unwatched(now).len(), 0);
        assert_eq!(peers.unwatched(now + RETRY).len(), 1);
        peers.watching(life(1));
        peers.tick(now + FORGOTTEN);
        assert!(peers.address(life(1)).is_some(), "it is watched");
        peers.gone(life(1));
        assert_eq!(peers.address(life(1)), None);
    }

    #[test]
    fn forged_announcements_displace_no_node_of_the_cluster() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        peers.hand_up(at(1));
        peers.confirm(life(1), now);
        peers.announce(here(1), at(1), now);
        for n in 0..1_000_u128 {
            let forged = Here { incarnation: Incarnation((n + 1).to_be_bytes()), port: 22 };
            peers.announce(forged, at(66), now + Duration::from_secs(1));
        }
        assert_eq!(peers.peers.len(), PEERS);
        assert_eq!(peers.address(life(1)), Some(at(1)));
        let watched = peers.unwatched(now);
        assert_eq!(watched.len(), WATCHED);
        assert_eq!(watched[0].0, life(1), "first");
        peers.hand_up(at(2));
        peers.confirm(life(2), now);
        assert_eq!(peers.address(life(2)), Some(at(2)), "a node of the cluster always finds room");
        for n in 0..1_000_u16 {
            peers.came(([10, 1, (n >> 8) as u8, n as u8], 1).into(), 1, 10, now);
        }
        assert_eq!(peers.sources.len(), PEERS);
        peers.tick(now + FORGOTTEN + Duration::from_secs(1));
        assert!(peers.peers.values().all(|peer| peer.watched == Watched::Trying));
    }
}
