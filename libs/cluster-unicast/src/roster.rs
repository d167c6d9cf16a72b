//! Who is connected, by which connections, and which of them carries.
//!
//! A peer has one queue and any number of connections. *A connection counts* when both sides have taken it in: whoever dialed knows that when it is
//! welcomed, whoever accepted when something comes. *One carries*: the youngest that counts and is not retiring, because an older one may be dead
//! and not known to be. *Too many* is one beside a better one: a better one was made with newer certificates of ours; of those alike the
//! one that the node with the lower incarnation dialed; of those alike the younger. Each side retires of its own accord only what it dialed, or what is
//! worse by its certificates; so both sides keep the same one, without a word between them. Who retires finishes what it took from the queue and
//! says goodbye; the queue stays with the peer.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use cluster::{Inbox, Incarnation};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::queue::{Lane, Queue};
use crate::resolve::is_loopback;
use crate::tls::{Credentials, Trust};
use crate::wire::Node;

/// Peers at a time. More than any cluster has.
const PEERS: usize = 256;
/// Connections of one peer.
const LINKS: usize = 8;
/// Peers that have gone are remembered, to know one that comes back.
const REMEMBERED: usize = 1_024;

/// What a connection is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// Send what waits for the peer.
    Carry,
    /// Send nothing but signs of life: another one carries.
    StandBy,
    /// Finish, say goodbye, and end.
    Retire,
    /// The node goes: send all that waits, say goodbye for good, and end.
    Leave,
    /// End now, for this reason.
    Cut(String),
}

/// A connection that was opened: both know who the other is.
pub(crate) struct Link {
    /// Whether this side dialed.
    pub(crate) dialed: bool,
    /// Which reading of our certificates it was made with.
    pub(crate) epoch: u64,
    pub(crate) remote: SocketAddr,
    pub(crate) local: SocketAddr,
    /// `None` without TLS.
    pub(crate) credentials: Option<Arc<Credentials>>,
}

/// A connection's place in the roster, until it is dropped.
pub(crate) struct Place {
    roster: Arc<Roster>,
    pub(crate) peer: Incarnation,
    number: u64,
    /// Whether the peer was not connected before.
    pub(crate) is_first: bool,
    pub(crate) queue: Arc<Queue>,
    pub(crate) orders: watch::Receiver<Order>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.roster.ended(self);
    }
}

struct Listed {
    number: u64,
    link: Link,
    orders: watch::Sender<Order>,
    made: Instant,
    /// Whether the other side is known to have taken it in, too.
    counts: bool,
    /// Whether all that the other side said here has come.
    parted: bool,
}

struct Peer {
    queue: Arc<Queue>,
    /// The youngest last.
    links: Vec<Listed>,
    addresses: Vec<String>,
}

#[derive(Default)]
struct State {
    peers: HashMap<Incarnation, Peer>,
    gone: Vec<Incarnation>,
    links: u64,
    leaving: bool,
}

/// The peers that are connected.
pub(crate) struct Roster {
    me: Incarnation,
    state: Mutex<State>,
    inbox: Arc<Inbox>,
    departures: mpsc::UnboundedSender<Incarnation>,
    /// Moves when a peer comes or goes, or loses a connection.
    changed: watch::Sender<()>,
}

impl Roster {
    /// Nobody yet. Departures, which are rare, go where it says.
    pub(crate) fn new(me: Incarnation, inbox: Arc<Inbox>, departures: mpsc::UnboundedSender<Incarnation>) -> Self {
        Self { me, state: Mutex::default(), inbox, departures, changed: watch::Sender::new(()) }
    }

    /// Takes a connection in; `None` if there are too many, or this node is going.
    pub(crate) fn admit(self: &Arc<Self>, node: &Node, link: Link) -> Option<Place> {
        let mut state = self.state.lock();
        let full = !state.peers.contains_key(&node.incarnation) && state.peers.len() >= PEERS;
        if full || state.leaving {
            return None;
        }
        state.links += 1;
        let number = state.links;
        let peer = state.peers.entry(node.incarnation).or_insert_with(|| Peer {
            queue: Arc::default(),
            links: Vec::new(),
            addresses: Vec::new(),
        });
        if peer.links.len() >= LINKS {
            return None;
        }
        let (orders, to_do) = watch::channel(Order::StandBy);
        let is_first = peer.links.is_empty();
        let counts = link.dialed;
        peer.links.push(Listed { number, link, orders, made: Instant::now(), counts, parted: false });
        peer.addresses.clone_from(&node.addresses);
        peer.settle(self.me < node.incarnation);
        let queue = Arc::clone(&peer.queue);
        if is_first {
            let known = state.gone.len();
            state.gone.retain(|gone| *gone != node.incarnation);
            if state.gone.len() < known {
                // What was sent while it was away did not come.
                self.inbox.lost();
            }
            self.changed.send_replace(());
        }
        Some(Place { roster: Arc::clone(self), peer: node.incarnation, number, is_first, queue, orders: to_do })
    }

    /// Something came on this connection.
    pub(crate) fn counts(&self, place: &Place) {
        let mut state = self.state.lock();
        let Some(peer) = state.peers.get_mut(&place.peer) else { return };
        peer.links.iter_mut().filter(|listed| listed.number == place.number).for_each(|listed| listed.counts = true);
        peer.settle(self.me < place.peer);
    }

    /// The peer says no more on this connection.
    pub(crate) fn retires(&self, place: &Place) {
        let mut state = self.state.lock();
        let Some(peer) = state.peers.get_mut(&place.peer) else { return };
        for listed in peer.links.iter_mut().filter(|listed| listed.number == place.number) {
            listed.parted = true;
            listed.order(Order::Retire);
        }
        peer.settle(self.me < place.peer);
    }

    /// A connection has ended.
    fn ended(&self, place: &Place) {
        let mut state = self.state.lock();
        let Some(peer) = state.peers.get_mut(&place.peer) else { return };
        let Some(at) = peer.links.iter().position(|listed| listed.number == place.number) else { return };
        let ended = peer.links.remove(at);
        if peer.links.is_empty() {
            state.peers.remove(&place.peer);
            if state.gone.len() >= REMEMBERED {
                state.gone.remove(0);
            }
            state.gone.push(place.peer);
            let _closed = self.departures.send(place.peer);
        } else {
            peer.settle(self.me < place.peer);
            if !ended.parted {
                // The peer is still there, but what it had said on this one may not have come.
                self.inbox.lost();
            }
        }
        self.changed.send_replace(());
    }

    /// Gives a unit to everybody. Answers to how many it could be given, and how many there are.
    pub(crate) fn tell_everybody(&self, unit: &Bytes) -> (usize, usize) {
        let state = self.state.lock();
        let took = state.peers.values().filter(|peer| peer.queue.put(Lane::Everybody, unit.clone())).count();
        (took, state.peers.len())
    }

    /// Gives a unit to one. Answers whether it could be given.
    pub(crate) fn tell(&self, who: Incarnation, unit: Bytes) -> bool {
        self.state.lock().peers.get(&who).is_some_and(|peer| peer.queue.put(Lane::One, unit))
    }

    /// Whether a node is connected, by a connection made with these certificates of ours or newer ones.
    pub(crate) fn has(&self, who: Incarnation, epoch: u64) -> bool {
        let state = self.state.lock();
        state.peers.get(&who).is_some_and(|peer| peer.usable().any(|listed| listed.link.epoch >= epoch))
    }

    /// Who is connected, and where they say they are.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        let state = self.state.lock();
        let node = |(who, peer): (&Incarnation, &Peer)| Node { incarnation: *who, addresses: peer.addresses.clone() };
        state.peers.iter().map(node).collect()
    }

    /// What one peer is told of the others. What only this machine reaches is of no use elsewhere.
    pub(crate) fn known_to(&self, to: Incarnation, seen: IpAddr) -> Vec<Node> {
        let same_machine = seen.to_canonical().is_loopback();
        let mut nodes = self.nodes();
        nodes.retain(|node| node.incarnation != to);
        for node in &mut nodes {
            node.addresses.retain(|address| same_machine || !is_loopback(address));
        }
        nodes
    }

    /// Moves when a peer comes or goes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Ends connections to whoever is not believed any more.
    pub(crate) fn measure(&self, trust: &Trust) {
        let shown: Vec<_> = {
            let state = self.state.lock();
            let links = state.peers.values().flat_map(|peer| &peer.links);
            links
                .filter_map(|listed| Some((listed.orders.clone(), Arc::clone(listed.link.credentials.as_ref()?))))
                .collect()
        };
        // Verifying takes its time, and nobody who sends should wait for it.
        for (orders, credentials) in shown {
            if let Err(why) = trust.still_believes(&credentials) {
                orders.send_replace(Order::Cut(format!("its certificate does not hold any more: {why}")));
            }
        }
    }

    /// This node goes.
    pub(crate) fn leave(&self) {
        let mut state = self.state.lock();
        state.leaving = true;
        state.peers.values().flat_map(|peer| &peer.links).for_each(|listed| listed.order(Order::Leave));
    }

    /// For people.
    pub(crate) fn describe(&self) -> Vec<String> {
        let state = self.state.lock();
        let mut peers: Vec<_> = state.peers.iter().collect();
        peers.sort_by_key(|(who, _)| **who);
        let here: Vec<_> = peers.iter().map(|(who, _)| who.to_string()).collect();
        let mut lines = vec![format!("{} nodes of this cluster are reached: {}", here.len(), here.join(", "))];
        for (who, peer) in peers {
            for Listed { link, orders, made, .. } in &peer.links {
                let name = link.credentials.as_ref().map(|peer| format!(", certificate of {}", peer.name()));
                let does = match &*orders.borrow() {
                    Order::Carry => "",
                    Order::StandBy => ", standing by",
                    Order::Retire | Order::Leave => ", retiring",
                    Order::Cut(_) => ", being ended",
                };
                let (way, end) = if link.dialed { ("to", "from") } else { ("from", "at") };
                lines.push(format!(
                    "connected {way} {} {end} {}{}, for {} s{does}",
                    link.remote,
                    link.local,
                    name.unwrap_or_default(),
                    made.elapsed().as_secs()
                ));
            }
            let (waiting, dropped) = peer.queue.waiting_and_dropped();
            if waiting + dropped as usize > 0 {
                lines.push(format!(
                    "for {who} {waiting} frames wait; {dropped} were dropped, because it does not take them fast enough"
                ));
            }
        }
        lines
    }
}

impl Peer {
    fn usable(&self) -> impl Iterator<Item = &Listed> {
        self.links.iter().filter(|listed| matches!(*listed.orders.borrow(), Order::Carry | Order::StandBy))
    }

    /// Finds who carries and who is too many. `lower`: our incarnation is the lower one.
    fn settle(&self, lower: bool) {
        let quality = |listed: &Listed| (listed.link.epoch, listed.link.dialed == lower, listed.number);
        let counting = || self.usable().filter(|listed| listed.counts);
        let Some(best) = counting().map(quality).max() else {
            // One side at least has it: better than nothing.
            self.usable().for_each(|listed| listed.order(Order::Carry));
            return;
        };
        for listed in counting() {
            let is_worse = quality(listed) < best;
            if is_worse && (listed.link.dialed || listed.link.epoch < best.0) {
                listed.order(Order::Retire);
            }
        }
        let carries = counting().map(|listed| listed.number).max();
        for listed in self.usable() {
            listed.order(if Some(listed.number) == carries { Order::Carry } else { Order::StandBy });
        }
    }
}

impl Listed {
    /// What is over stays over.
    fn order(&self, order: Order) {
        self.orders.send_if_modified(|now| {
            let is_news = match (&*now, &order) {
                (Order::Cut(_), _) => false,
                (Order::Leave, Order::Cut(_)) => true,
                (Order::Leave, _) => false,
                (Order::Retire, Order::Cut(_)) => true,
                (Order::Retire, _) => false,
                (now, order) => now != order,
            };
            if is_news {
                *now = order;
            }
            is_news
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cluster::{Received, Room};
    use tokio::time::timeout;

    use super::*;

    const fn life(n: u8) -> Incarnation {
        Incarnation([n; 16])
    }

    fn node(n: u8) -> Node {
        Node { incarnation: life(n), addresses: vec![format!("10.0.0.{n}:7447")] }
    }

    fn link(dialed: bool, epoch: u64) -> Link {
        let at = ([10, 0, 0, 9], 1).into();
        Link { dialed, epoch, remote: at, local: at, credentials: None }
    }

    struct Test {
        roster: Arc<Roster>,
        inbox: Arc<Inbox>,
        departures: mpsc::UnboundedReceiver<Incarnation>,
    }

    fn roster(me: u8) -> Test {
        let inbox = Arc::new(Inbox::new(Room { frames: 9, bytes: 9 }));
        let (sender, departures) = mpsc::unbounded_channel();
        Test { roster: Arc::new(Roster::new(life(me), Arc::clone(&inbox), sender)), inbox, departures }
    }

    fn order(place: &Place) -> Order {
        place.orders.borrow().clone()
    }

    #[test]
    fn of_two_simultaneous_dials_both_sides_keep_the_same() {
        for order_of_arrival in [[true, false], [false, true]] {
            let (low, high) = (roster(1), roster(2));
            let mut kept = Vec::new();
            // The first of each pair is what the lower node has of a connection, the second what the higher one has.
            for (me, other, is_low) in [(&low.roster, 2, true), (&high.roster, 1, false)] {
                let places = order_of_arrival.map(|low_dialed| {
                    let place = me.admit(&node(other), link(low_dialed == is_low, 0)).unwrap();
                    me.counts(&place);
                    (low_dialed, place)
                });
                kept.push(places.each_ref().map(|(low_dialed, place)| (*low_dialed, order(place))));
            }
            let retired = |of: &[(bool, Order); 2]| {
                let retired = of.iter().filter(|(_, order)| *order == Order::Retire);
                retired.map(|(low_dialed, _)| *low_dialed).collect::<Vec<_>>()
            };
            assert_eq!(retired(&kept[0]), [false; 0], "the lower keeps what it dialed");
            assert_eq!(retired(&kept[1]), [false], "the higher gives up what it dialed");
        }
    }

    #[test]
    fn the_youngest_carries_until_it_retires() {
        let Test { roster, .. } = roster(1);
        let old = roster.admit(&node(2), link(true, 0)).unwrap();
        assert_eq!(order(&old), Order::Carry);
        let young = roster.admit(&node(2), link(false, 0)).unwrap();
        assert_eq!((order(&old), order(&young)), (Order::Carry, Order::StandBy), "the peer may not have it yet");
        roster.counts(&young);
        assert_eq!((order(&old), order(&young)), (Order::StandBy, Order::Carry));
        roster.retires(&young);
        assert_eq!((order(&old), order(&young)), (Order::Carry, Order::Retire));
        drop(young);
        assert_eq!(order(&old), Order::Carry);
    }

    #[test]
    fn nothing_is_given_up_for_a_connection_that_the_peer_may_not_have() {
        let Test { roster, .. } = roster(2);
        let dialed = roster.admit(&node(1), link(true, 0)).unwrap();
        let accepted = roster.admit(&node(1), link(false, 0)).unwrap();
        assert_eq!((order(&dialed), order(&accepted)), (Order::Carry, Order::StandBy));
        roster.counts(&accepted);
        assert_eq!((order(&dialed), order(&accepted)), (Order::Retire, Order::Carry));
    }

    #[test]
    fn newer_certificates_go_before_all_else() {
        let Test { roster, mut departures, .. } = roster(2);
        let old = roster.admit(&node(1), link(false, 0)).unwrap();
        assert_eq!(order(&old), Order::Carry, "it is the only one");
        roster.counts(&old);
        assert!(roster.has(life(1), 0) && !roster.has(life(1), 1));
        let new = roster.admit(&node(1), link(true, 1)).unwrap();
        assert_eq!((order(&old), order(&new)), (Order::Retire, Order::Carry));
        assert!(roster.has(life(1), 1));
        drop(old);
        assert!(departures.try_recv().is_err(), "the peer is still there");
        drop(new);
        assert_eq!(departures.try_recv(), Ok(life(1)));
    }

    #[tokio::test]
    async fn a_peer_departs_with_its_last_connection_and_what_it_missed_is_told() {
        let Test { roster, inbox, mut departures } = roster(1);
        let first = roster.admit(&node(2), link(true, 0)).unwrap();
        let quiet = timeout(Duration::from_millis(10), inbox.take()).await;
        assert!(quiet.is_err(), "a peer that is new has missed nothing");
        drop(first);
        assert_eq!(departures.try_recv(), Ok(life(2)));
        assert!(!roster.tell(life(2), Bytes::new()));
        let _again = roster.admit(&node(2), link(true, 0)).unwrap();
        assert_eq!(inbox.take().await, Some(Received::Lost));
        let _other_life = roster.admit(&node(3), link(true, 0)).unwrap();
        assert!(timeout(Duration::from_millis(10), inbox.take()).await.is_err());
    }

    #[tokio::test]
    async fn what_may_be_lost_with_a_connection_is_told_though_the_peer_is_there() {
        let Test { roster, inbox, mut departures } = roster(1);
        let places: Vec<_> = (0..3).filter_map(|_| roster.admit(&node(2), link(true, 0))).collect();
        let [first, second, _third] = <[Place; 3]>::try_from(places).ok().unwrap();
        roster.retires(&first);
        drop(first);
        assert!(timeout(Duration::from_millis(10), inbox.take()).await.is_err(), "it had said goodbye");
        drop(second);
        assert_eq!(inbox.take().await, Some(Received::Lost));
        assert!(departures.try_recv().is_err());
    }

    #[test]
    fn what_retires_stays_retired_but_can_be_cut() {
        let Test { roster, .. } = roster(1);
        let place = roster.admit(&node(2), link(true, 0)).unwrap();
        roster.retires(&place);
        roster.leave();
        assert_eq!(order(&place), Order::Retire);
        assert!(roster.admit(&node(3), link(true, 0)).is_none(), "who goes takes nobody in");
        let state = roster.state.lock();
        let listed = &state.peers[&life(2)].links[0];
        listed.order(Order::Cut("why".into()));
        listed.order(Order::Carry);
        assert_eq!(order(&place), Order::Cut("why".into()));
    }

    #[test]
    fn there_are_bounds() {
        let Test { roster, .. } = roster(1);
        let places: Vec<_> = (0..=LINKS).map(|_| roster.admit(&node(2), link(false, 0))).collect();
        assert_eq!(places.iter().flatten().count(), LINKS);
        let peer = |n: usize| Node { incarnation: Incarnation((n as u128 + 1_000).to_be_bytes()), addresses: vec![] };
        let others: Vec<_> = (0..PEERS + 9).map(|n| roster.admit(&peer(n), link(false, 0))).collect();
        assert_eq!(others.iter().flatten().count(), PEERS - 1);
    }

    #[test]
    fn loopback_is_told_only_on_the_same_machine() {
        let Test { roster, .. } = roster(1);
        let here = Node { incarnation: life(2), addresses: vec!["127.0.0.1:1".into(), "10.0.0.2:1".into()] };
        let _place = roster.admit(&here, link(true, 0)).unwrap();
        assert_eq!(roster.known_to(life(3), [127, 0, 0, 1].into()), [here]);
        assert_eq!(roster.known_to(life(3), [10, 0, 0, 3].into())[0].addresses, ["10.0.0.2:1"]);
        assert_eq!(roster.known_to(life(2), [10, 0, 0, 2].into()), []);
    }
}
