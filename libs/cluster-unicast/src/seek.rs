//! Who is dialed: the peers of the configuration, and nodes that others tell of.
//!
//! An address rests while the node that was met there is connected, whoever dialed. Else it is tried again: at once when a connection ends;
//! then soon, where nobody answers, because a cut may be over at any moment; and less and less often where somebody refuses. While the link to it is
//! down here nothing is sent (`link.rs`), and it is dialed as soon as that is back.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Backoff, Incarnation};
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use crate::mesh::Mesh;
use crate::opening::Failure;
use crate::resolve::{is_own, split};
use crate::wire::Node;
use crate::{connection, opening};

/// Between two looks at an address that rests: what a name stands for may have changed.
const REST: Duration = Duration::from_secs(5);
/// Between two attempts at an address to which there seems to be no link: the routes of a machine can be such that this cannot be told. Each
/// spoils the next three seconds, in which a link that is back would be waited for, so they are few.
const BLIND: Duration = Duration::from_secs(300);
/// A name is found within so long.
const RESOLVING: Duration = Duration::from_secs(2);
/// Addresses of one name.
const OF_ONE_NAME: usize = 64;
/// A node that nobody tells of any more is looked for so long: a cut may have lasted.
const LOOKED_FOR: Duration = Duration::from_secs(600);
/// Nodes told of at a time.
const LEARNED: usize = 256;
/// Addresses of which it is known who is there.
const MET: usize = 4_096;
/// Nodes that went for good are remembered, so that nobody's old news bring them back.
const LEFT: usize = 1_024;

/// Where nodes are, as they and others say.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    nodes: HashMap<Incarnation, Told>,
    left: Vec<Incarnation>,
}

#[derive(Debug)]
struct Told {
    addresses: Vec<String>,
    last: Instant,
}

impl Learned {
    /// Somebody says where nodes are. Answers whether there is anything new in it.
    pub(crate) fn add(&mut self, nodes: impl Iterator<Item = Node>, now: Instant) -> bool {
        self.nodes.retain(|_, told| now.saturating_duration_since(told.last) < LOOKED_FOR);
        let mut news = false;
        for Node { incarnation, addresses } in nodes {
            let full = self.nodes.len() >= LEARNED && !self.nodes.contains_key(&incarnation);
            if full || self.left.contains(&incarnation) || addresses.is_empty() {
                continue;
            }
            let told = self.nodes.entry(incarnation).or_insert_with(|| Told { addresses: Vec::new(), last: now });
            told.last = now;
            if told.addresses != addresses {
                (told.addresses, news) = (addresses, true);
            }
        }
        news
    }

    /// A node has gone, and this life of it does not come back.
    pub(crate) fn forget(&mut self, who: Incarnation) {
        self.nodes.remove(&who);
        if self.left.len() >= LEFT {
            self.left.remove(0);
        }
        self.left.push(who);
    }

    /// Every address that was told, and whose it is.
    fn addresses(&self, now: Instant) -> Vec<(String, Incarnation)> {
        let lately = self.nodes.iter().filter(|(_, told)| now.saturating_duration_since(told.last) < LOOKED_FOR);
        lately.flat_map(|(who, told)| told.addresses.iter().map(|address| (address.clone(), *who))).collect()
    }
}

/// An address to try.
struct Target {
    configured: bool,
    /// Who is said to be there. An address of the configuration may be anybody's.
    node: Option<Incarnation>,
    trying: bool,
    due: Instant,
    /// From when on it is dialed even if there seems to be no link.
    blind: Instant,
    backoff: Backoff,
    /// Why nobody was reached there; empty while it rests.
    failures: Vec<String>,
}

/// What was met where, by dialing.
#[derive(Default)]
struct Met {
    /// This node's own incarnation where it met itself.
    nodes: HashMap<SocketAddr, Incarnation>,
    dialing: HashSet<SocketAddr>,
}

impl Met {
    fn note(&mut self, at: SocketAddr, who: Incarnation) {
        // Addresses come and go with their machines. Who is forgotten is met again.
        if self.nodes.len() >= MET {
            self.nodes.clear();
        }
        self.nodes.insert(at, who);
    }
}

/// An attempt that is to be made.
struct Due {
    address: String,
    node: Option<Incarnation>,
    blindly: bool,
}

/// What came of trying an address.
struct Outcome {
    address: String,
    failures: Vec<String>,
    /// Whether somebody is there, or could be asked, and did not want to.
    refused: bool,
    /// Somebody else is where a node was said to be.
    displaced: bool,
}

struct Seeker {
    mesh: Arc<Mesh>,
    targets: HashMap<String, Target>,
    met: Arc<Mutex<Met>>,
    numbered: u64,
}

/// Dials whoever is missing, for ever.
pub(crate) async fn seek(mesh: Arc<Mesh>) {
    let (mut changes, mut attempts) = (mesh.roster.changes(), JoinSet::new());
    let mut seeker = Seeker { mesh, targets: HashMap::new(), met: Arc::default(), numbered: 0 };
    loop {
        let now = Instant::now();
        seeker.know_targets(now);
        for Due { address, node, blindly } in seeker.due(now) {
            attempts.spawn(attempt(Arc::clone(&seeker.mesh), Arc::clone(&seeker.met), address, node, blindly));
        }
        *seeker.mesh.unreached.lock() = seeker.describe();
        let waiting = seeker.targets.values().filter(|target| !target.trying);
        let next = waiting.map(|target| target.due).min().unwrap_or(now + REST);
        tokio::select! {
            Some(done) = attempts.join_next(), if !attempts.is_empty() => {
                if let Ok(outcome) = done {
                    seeker.note(outcome);
                }
            }
            _ = changes.changed() => seeker.hurry(),
            () = seeker.mesh.seek.notified() => seeker.hurry(),
            () = sleep_until(next) => {}
        }
    }
}

impl Seeker {
    /// Takes up what was learned, and lets go of what is not told of any more.
    fn know_targets(&mut self, now: Instant) {
        let Self { mesh, targets, numbered, .. } = self;
        let configured = mesh.config.peers.iter().map(|peer| (peer.clone(), None));
        let learned = {
            let mut learned = mesh.learned.lock();
            // Whoever is connected is known as long as that, and for a while after.
            learned.add(mesh.roster.nodes().into_iter(), now);
            learned.addresses(now)
        };
        let wanted: HashMap<String, Option<Incarnation>> =
            learned.into_iter().map(|(address, who)| (address, Some(who))).chain(configured).collect();
        targets.retain(|address, _| wanted.contains_key(address));
        for (address, node) in wanted {
            let target = targets.entry(address).or_insert_with(|| {
                *numbered += 1;
                let backoff = Backoff::new(mesh.incarnation, *numbered);
                Target { configured: false, node, trying: false, due: now, blind: now, backoff, failures: Vec::new() }
            });
            (target.configured, target.node) = (node.is_none(), node);
        }
    }

    /// What is to be tried now.
    fn due(&mut self, now: Instant) -> Vec<Due> {
        let (mesh, epoch) = (&self.mesh, self.mesh.epoch());
        let mut due = Vec::new();
        for (address, target) in self.targets.iter_mut().filter(|(_, target)| !target.trying && target.due <= now) {
            if target.node.is_some_and(|node| mesh.roster.has(node, epoch)) {
                target.rest(now);
            } else {
                target.trying = true;
                let blindly = target.blind <= now;
                if blindly {
                    target.blind = now + BLIND;
                }
                due.push(Due { address: address.clone(), node: target.node, blindly });
            }
        }
        due
    }

    fn note(&mut self, outcome: Outcome) {
        let Some(target) = self.targets.get_mut(&outcome.address) else { return };
        let now = Instant::now();
        target.trying = false;
        if let Some(node) = target.node.filter(|_| outcome.displaced) {
            self.mesh.learned.lock().forget(node);
        }
        if outcome.failures.is_empty() {
            target.rest(now);
            return;
        }
        if target.configured && target.failures.is_empty() {
            warn!(peer = outcome.address, why = outcome.failures.join("; "), "a peer of the cluster is not reached");
        }
        target.failures = outcome.failures;
        if !outcome.refused {
            target.backoff.begin_anew();
        }
        target.due = now + target.backoff.next_delay();
    }

    /// Somebody came or went: what rests is looked at again.
    fn hurry(&mut self) {
        let now = Instant::now();
        self.targets.values_mut().filter(|target| target.failures.is_empty()).for_each(|target| target.due = now);
    }

    /// A line for each address that nobody is reached at.
    fn describe(&self) -> Vec<String> {
        let unreached = self.targets.iter().filter(|(_, target)| !target.failures.is_empty());
        let mut lines: Vec<String> = unreached
            .map(|(address, target)| {
                let what = if target.configured { "peer" } else { "a node, others say," };
                format!("{what} {address}: {}; tried again", target.failures.join("; "))
            })
            .collect();
        lines.sort();
        lines
    }
}

impl Target {
    fn rest(&mut self, now: Instant) {
        self.failures.clear();
        self.backoff.begin_anew();
        (self.due, self.blind) = (now + REST, now + BLIND);
    }
}

/// Dials every address of a peer at which nobody was met who is connected.
async fn attempt(
    mesh: Arc<Mesh>,
    met: Arc<Mutex<Met>>,
    address: String,
    node: Option<Incarnation>,
    blindly: bool,
) -> Outcome {
    let mut outcome = Outcome { address, failures: Vec::new(), refused: false, displaced: false };
    let resolved = timeout(RESOLVING, mesh.resolver.resolve(&outcome.address)).await;
    let resolved = resolved.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")));
    let mut found = match resolved {
        Ok(found) if found.is_empty() => {
            (outcome.failures, outcome.refused) = (vec!["no address".into()], true);
            return outcome;
        }
        Ok(found) => found,
        Err(failure) => {
            (outcome.failures, outcome.refused) = (vec![format!("no address: {failure}")], true);
            return outcome;
        }
    };
    found.sort_unstable();
    found.dedup();
    found.truncate(OF_ONE_NAME);
    // A name of several addresses may be that of several nodes.
    let node = node.filter(|_| found.len() == 1);
    let host = split(&outcome.address).map_or(outcome.address.as_str(), |(host, _)| host);
    let epoch = mesh.epoch();
    let missing = found.into_iter().filter(|at| {
        let mut met = met.lock();
        let connected = met.nodes.get(at).is_some_and(|who| *who == mesh.incarnation || mesh.roster.has(*who, epoch));
        !connected && !is_own(*at, &mesh.listening) && met.dialing.insert(*at)
    });
    let dials = missing.map(|at| dial(&mesh, &met, host, at, blindly));
    for (at, dialed) in join_all(dials).await {
        match dialed {
            Ok(who) => outcome.displaced |= node.is_some_and(|node| node != who),
            Err(failure) => {
                outcome.refused |= !failure.is_silence();
                outcome.failures.push(format!("{at}: {failure}"));
            }
        }
    }
    outcome
}

/// Dials one address. Who was met is connected from now on, if it is not this node.
async fn dial(
    mesh: &Arc<Mesh>,
    met: &Mutex<Met>,
    host: &str,
    at: SocketAddr,
    blindly: bool,
) -> (SocketAddr, Result<Incarnation, Failure>) {
    let dialed = opening::dial(mesh, host, at, blindly).await;
    let mut met = met.lock();
    met.dialing.remove(&at);
    let who = match dialed {
        Ok(opened) => {
            let who = opened.peer.incarnation;
            mesh.spawn(connection::carry(Arc::clone(mesh), opened));
            who
        }
        Err(failure) if failure.is_itself() => mesh.incarnation,
        Err(failure) => {
            // Somebody else may be there by now.
            met.nodes.remove(&at);
            return (at, Err(failure));
        }
    };
    met.note(at, who);
    (at, Ok(who))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8, address: &str) -> Node {
        Node { incarnation: Incarnation([n; 16]), addresses: vec![address.into()] }
    }

    #[test]
    fn what_is_told_is_kept_for_a_while_and_who_left_stays_away() {
        let (mut learned, now) = (Learned::default(), Instant::now());
        assert!(learned.add([node(1, "a:1"), node(2, "b:1")].into_iter(), now));
        assert!(!learned.add([node(1, "a:1")].into_iter(), now), "no news");
        assert!(learned.add([node(1, "a:2")].into_iter(), now), "it has moved");
        learned.forget(Incarnation([2; 16]));
        assert!(!learned.add([node(2, "b:1")].into_iter(), now));
        assert_eq!(learned.addresses(now), [("a:2".to_owned(), Incarnation([1; 16]))]);
        assert_eq!(learned.addresses(now + LOOKED_FOR), []);
        let many = (0..1_000_u128).map(|n| Node { incarnation: Incarnation(n.to_be_bytes()), ..node(0, "c:1") });
        learned.add(many, now + LOOKED_FOR);
        assert_eq!(learned.nodes.len(), LEARNED);
    }
}
