//! What all parts of a node's place in the cluster share.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use cluster::{Inbox, Incarnation};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use crate::roster::Roster;
use crate::seek::Learned;
use crate::tls::Trust;
use crate::wire::{Hello, Node};
use crate::{Resolve, UnicastConfig};

/// Addresses of which it is remembered why they were not let in.
const REFUSALS: usize = 32;

/// A node's place in the cluster.
pub(crate) struct Mesh {
    pub(crate) config: UnicastConfig,
    pub(crate) incarnation: Incarnation,
    pub(crate) resolver: Arc<dyn Resolve>,
    /// Where it listens in truth: ports that were left to the system are known here.
    pub(crate) listening: Vec<SocketAddr>,
    /// What others are told of that.
    pub(crate) addresses: Vec<String>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) inbox: Arc<Inbox>,
    /// Where others may be, as they and their peers say.
    pub(crate) learned: Mutex<Learned>,
    /// There may be somebody to dial.
    pub(crate) seek: Notify,
    /// What came of dialing, one line for each address that nobody was reached at.
    pub(crate) unreached: Mutex<Vec<String>>,
    /// The certificates in use, and the how-manieth they are.
    trust: RwLock<(u64, Option<Arc<Trust>>)>,
    /// Why the files cannot be taken up.
    trouble: Mutex<Option<String>>,
    refused: Mutex<HashMap<IpAddr, Refused>>,
    /// `None` once the node has gone.
    connections: Mutex<Option<JoinSet<()>>>,
}

/// Somebody who was not let in.
struct Refused {
    why: String,
    times: u64,
    last: Instant,
}

impl Mesh {
    pub(crate) fn new(
        config: UnicastConfig,
        incarnation: Incarnation,
        resolver: Arc<dyn Resolve>,
        trust: Option<Trust>,
        (listening, addresses): (Vec<SocketAddr>, Vec<String>),
        (roster, inbox): (Roster, Arc<Inbox>),
    ) -> Self {
        Self {
            config,
            incarnation,
            resolver,
            listening,
            addresses,
            roster: Arc::new(roster),
            inbox,
            learned: Mutex::default(),
            seek: Notify::new(),
            unreached: Mutex::default(),
            trust: RwLock::new((0, trust.map(Arc::new))),
            trouble: Mutex::default(),
            refused: Mutex::default(),
            connections: Mutex::new(Some(JoinSet::new())),
        }
    }

    /// The certificates that new connections are made with; `None` without TLS.
    pub(crate) fn trust(&self) -> (u64, Option<Arc<Trust>>) {
        self.trust.read().clone()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.trust.read().0
    }

    /// What this node says first.
    pub(crate) fn hello(&self) -> Hello {
        let node = Node { incarnation: self.incarnation, addresses: self.addresses.clone() };
        Hello { cluster: self.config.cluster_id.clone(), node }
    }

    /// Somebody says where nodes are.
    pub(crate) fn learn(&self, nodes: Vec<Node>) {
        let others = nodes.into_iter().filter(|node| node.incarnation != self.incarnation);
        if self.learned.lock().add(others, Instant::now()) {
            self.seek.notify_one();
        }
    }

    /// Runs a connection, or what may become one, until it ends or the node goes.
    pub(crate) fn spawn(&self, what: impl Future<Output = ()> + Send + 'static) {
        if let Some(connections) = &mut *self.connections.lock() {
            while connections.try_join_next().is_some() {}
            connections.spawn(what);
        }
    }

    /// Ends every connection, whatever it was doing, and lets none begin.
    pub(crate) fn end(&self) {
        let connections = self.connections.lock().take();
        drop(connections);
    }

    /// Somebody who connected was not let in.
    pub(crate) fn refused(&self, who: IpAddr, why: String) {
        debug!(%who, why, "a connection was not let in");
        let (now, mut refused) = (Instant::now(), self.refused.lock());
        if refused.len() >= REFUSALS && !refused.contains_key(&who) {
            let oldest = refused.iter().min_by_key(|(_, refused)| refused.last).map(|(who, _)| *who);
            oldest.map(|oldest| refused.remove(&oldest));
        }
        let times = refused.get(&who).map_or(1, |refused| refused.times + 1);
        refused.insert(who, Refused { why, times, last: now });
    }

    /// Takes up the files of certificates when they change, and lets go of whoever does not hold any more; for ever.
    pub(crate) async fn watch_certificates(&self) {
        let Some(tls) = &self.config.tls else { return };
        let mut looks = interval(tls.watch);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.tick().await;
        loop {
            looks.tick().await;
            let files = tls.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || Trust::read(&files)).await else { continue };
            match read {
                Ok(new) => self.take_up(new),
                Err(failure) => self.not_usable(failure.to_string()),
            }
            if let (_, Some(trust)) = self.trust() {
                self.roster.measure(&trust);
            }
        }
    }

    fn take_up(&self, new: Trust) {
        *self.trouble.lock() = None;
        {
            let mut trust = self.trust.write();
            if trust.1.as_ref().is_some_and(|used| used.is_that_of(&new)) {
                return;
            }
            *trust = (trust.0 + 1, Some(Arc::new(new)));
        }
        info!("the files of the cluster's certificates have changed: connections are made anew");
        self.seek.notify_one();
    }

    /// They are being written, perhaps: said once.
    fn not_usable(&self, failure: String) {
        let mut trouble = self.trouble.lock();
        if trouble.as_ref() != Some(&failure) {
            warn!(failure, "the cluster's certificates cannot be used; those read before stay in use");
        }
        *trouble = Some(failure);
    }

    /// For people.
    pub(crate) fn describe(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.listening.iter().map(|address| format!("listens at {address}")).collect();
        for told in self.addresses.iter().filter(|told| !self.listening.iter().any(|at| at.to_string() == **told)) {
            lines.push(format!("others are told {told}"));
        }
        if self.listening.iter().any(|address| address.ip().is_unspecified()) {
            lines.push("others take the address that they see this node at".into());
        }
        match self.trust().1 {
            Some(trust) => lines.push(trust.shown().to_owned()),
            None => lines.push("without TLS: whoever connects takes part".into()),
        }
        lines.extend(self.roster.describe());
        lines.extend(self.unreached.lock().iter().cloned());
        let refused = self.refused.lock();
        let mut refused: Vec<_> = refused.iter().collect();
        refused.sort_by_key(|(who, _)| **who);
        for (who, Refused { why, times, last }) in refused {
            lines.push(format!("not let in from {who}: {why}; {times} times, last {} s ago", last.elapsed().as_secs()));
        }
        lines.extend(self.trouble.lock().clone());
        lines
    }

    /// Waits until nobody is connected any more.
    pub(crate) async fn deserted(&self) {
        let mut changes = self.roster.changes();
        while !self.roster.nodes().is_empty() {
            tokio::select! {
                _ = changes.changed() => {}
                // A change may have been before the first look.
                () = sleep(std::time::Duration::from_millis(50)) => {}
            }
        }
    }
}
