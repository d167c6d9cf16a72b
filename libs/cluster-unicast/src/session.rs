//! One zenoh session, as a node's place in the cluster.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cluster::{Audience, Inbox, Incarnation};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;
use zenoh::Wait;
use zenoh::bytes::ZBytes;
use zenoh::liveliness::LivelinessToken;
use zenoh::pubsub::{Publisher, Subscriber};
use zenoh::qos::{CongestionControl, Priority};
use zenoh::sample::{Locality, Sample, SampleKind};

use crate::UnicastError;

/// How long a session may take to close. zenoh can take ten seconds where the network loses packets.
const CLOSING: Duration = Duration::from_secs(1);

/// A session: while certificates change there are two, which hear and say the same.
pub(crate) struct Session {
    number: u64,
    zenoh: zenoh::Session,
    /// Where frames for one node go, without its incarnation.
    one: String,
    all: Publisher<'static>,
    _frames: [Subscriber<()>; 2],
    _peers: Subscriber<()>,
    _alive: LivelinessToken,
}

impl Session {
    /// Joins the cluster.
    pub(crate) async fn open(
        config: zenoh::Config,
        cluster: &str,
        me: Incarnation,
        number: u64,
        inbox: &Arc<Inbox>,
        peers: &Arc<Peers>,
    ) -> Result<Self, UnicastError> {
        let (cluster, inbox, peers) = (cluster.to_owned(), Arc::clone(inbox), Arc::clone(peers));
        // zenoh opens in place, and not on every kind of runtime.
        tokio::task::spawn_blocking(move || Self::join(config, &cluster, me, number, &inbox, &peers))
            .await
            .map_err(|failure| UnicastError::Start(failure.to_string()))?
            .map_err(|failure| UnicastError::Start(failure.to_string()))
    }

    fn join(
        config: zenoh::Config,
        cluster: &str,
        me: Incarnation,
        number: u64,
        inbox: &Arc<Inbox>,
        peers: &Arc<Peers>,
    ) -> zenoh::Result<Self> {
        let zenoh = zenoh::open(config).wait()?;
        let own = format!("cf/{cluster}/all/{me}");
        let hear = |key: String| {
            let (own, inbox) = (own.clone(), Arc::clone(inbox));
            let take = move |sample: Sample| {
                // While there are two sessions, each hears the other.
                if sample.key_expr().as_str() != own {
                    inbox.put(sample.payload().to_bytes().into_owned());
                }
            };
            zenoh.declare_subscriber(key).allowed_origin(Locality::Remote).callback(take).wait()
        };
        // In this order: whoever sees this node alive can be heard by it already.
        let frames = [hear(format!("cf/{cluster}/all/*"))?, hear(format!("cf/{cluster}/to/{me}"))?];
        let all = zenoh
            .declare_publisher(own)
            .congestion_control(CongestionControl::Drop)
            .priority(Priority::Data)
            .allowed_destination(Locality::Remote)
            .wait()?;
        let (told, inbox) = (Arc::clone(peers), Arc::clone(inbox));
        let seen = zenoh
            .liveliness()
            .declare_subscriber(format!("cf/{cluster}/alive/*/*"))
            .history(true)
            .callback(move |sample| {
                let key = sample.key_expr().as_str();
                let Some((life, session)) = key.rsplit_once('/') else { return };
                let (Some(who), Ok(session)) = (last(life), session.parse()) else { return };
                if who != me {
                    let is_here = sample.kind() == SampleKind::Put;
                    told.tell(who, Way { ours: number, theirs: session }, is_here, &inbox);
                }
            })
            .wait()?;
        let alive = zenoh.liveliness().declare_token(format!("cf/{cluster}/alive/{me}/{number}")).wait()?;
        Ok(Self { number, zenoh, one: format!("cf/{cluster}/to/"), all, _frames: frames, _peers: seen, _alive: alive })
    }

    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    /// Gives a frame to every connection that has room for it.
    pub(crate) fn send(&self, to: Audience, frame: ZBytes) -> zenoh::Result<()> {
        match to {
            Audience::Everybody => self.all.put(frame).wait(),
            // Behind what everybody gets: pages of a copy must not keep commits waiting.
            Audience::One(who) => self
                .zenoh
                .put(format!("{}{who}", self.one), frame)
                .congestion_control(CongestionControl::Drop)
                .priority(Priority::DataLow)
                .allowed_destination(Locality::Remote)
                .wait(),
        }
    }

    /// Each connection: the peer's address as seen from here, our own, and the name in the peer's certificate.
    pub(crate) fn connections(&self) -> Vec<(String, String, Option<String>)> {
        let links = self.zenoh.info().links().wait();
        links
            .map(|link| (link.dst().to_string(), link.src().to_string(), link.auth_identifier().map(str::to_owned)))
            .collect()
    }

    /// The addresses that other nodes are told.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.zenoh.info().locators().wait().iter().map(ToString::to_string).collect()
    }

    /// Lets go of the connections. What takes longer than a moment goes on by itself.
    pub(crate) async fn close(self: Arc<Self>) {
        let closing = tokio::spawn(async move { self.zenoh.close().await.map_err(|failure| failure.to_string()) });
        if let Ok(Ok(Err(failure))) = timeout(CLOSING, closing).await {
            warn!(failure, "the cluster's connections did not close well");
        }
    }
}

/// The incarnation at the end of a key.
fn last(key: &str) -> Option<Incarnation> {
    let (_, name) = key.rsplit_once('/')?;
    let number = u128::from_str_radix(name, 16).ok().filter(|_| name.len() == 32)?;
    Some(Incarnation(number.to_be_bytes()))
}

/// One of our sessions sees one of a peer's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Way {
    ours: u64,
    theirs: u64,
}

/// Who is there, by which ways. A peer has departed when the last of them has gone.
pub(crate) struct Peers {
    ways: Mutex<HashMap<Incarnation, HashSet<Way>>>,
    departures: mpsc::UnboundedSender<Incarnation>,
}

/// Peers that have gone are remembered, to know one that comes back; beyond so many they are forgotten.
const REMEMBERED: usize = 1_024;

impl Peers {
    /// Nobody yet. Departures, which are rare, go where it says.
    pub(crate) fn new(departures: mpsc::UnboundedSender<Incarnation>) -> Self {
        Self { ways: Mutex::default(), departures }
    }

    fn departed(&self, who: Incarnation) {
        let _closed = self.departures.send(who);
    }

    fn tell(&self, who: Incarnation, way: Way, is_here: bool, inbox: &Inbox) {
        let mut peers = self.ways.lock();
        if is_here {
            if peers.len() >= REMEMBERED {
                peers.retain(|_, ways| !ways.is_empty());
            }
            let connected_anew = peers.get(&who).is_some_and(HashSet::is_empty);
            peers.entry(who).or_default().insert(way);
            if connected_anew {
                inbox.lost();
            }
        } else if let Some(ways) = peers.get_mut(&who)
            && ways.remove(&way)
            && ways.is_empty()
        {
            self.departed(who);
        }
    }

    /// Who is there.
    pub(crate) fn here(&self) -> Vec<Incarnation> {
        let peers = self.ways.lock();
        let mut here: Vec<_> = peers.iter().filter(|(_, ways)| !ways.is_empty()).map(|(who, _)| *who).collect();
        here.sort_unstable();
        here
    }

    /// Whether one of our sessions sees all that another does.
    pub(crate) fn as_many(&self, by: u64, as_by: u64) -> bool {
        let sees = |ways: &HashSet<Way>, ours| ways.iter().any(|way| way.ours == ours);
        self.ways.lock().values().all(|ways| !sees(ways, as_by) || sees(ways, by))
    }

    /// One of our sessions has gone.
    pub(crate) fn without(&self, session: u64) {
        for (who, ways) in self.ways.lock().iter_mut() {
            let had = !ways.is_empty();
            ways.retain(|way| way.ours != session);
            if had && ways.is_empty() {
                self.departed(*who);
            }
        }
    }
}
