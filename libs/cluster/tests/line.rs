//! A line within another cluster passes the conformance suite of transports, and lets nobody on it who has only the other's keys.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::conformance::Medium;
use cluster::in_process::{Network, Weather};
use cluster::{
    Audience, Capabilities, Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, LineId, Page, Presence, Received,
    Rejected, SendError, Standing, Transport,
};
use sealing::ClusterKey;
use session_model::TreeSize;
use tokio::time::sleep;

/// A node that has nothing.
struct Nobody;

#[async_trait]
impl Host for Nobody {
    fn standing(&self) -> Standing {
        Standing { size: TreeSize(0), reflects: TreeSize(0), log_age: None }
    }
    async fn committed(&self, _commit: Commit) {}
    fn grown(&self, _size: TreeSize) {}
    fn heard(&self, _heard: Heard) {}
    fn missed(&self) {}
    async fn page(&self, _: Incarnation, _from: u64, _bytes: usize) -> Option<Page> {
        None
    }
}

fn settings(incarnation: Incarnation, origin: &str) -> ClusterConfig {
    ClusterConfig {
        copies: None,
        node: format!("node-{}", incarnation.0[0]),
        program: "test".into(),
        incarnation,
        keys: vec![ClusterKey::new(&[7; 32], origin).unwrap()],
        beat: Duration::from_millis(20),
        lease: Duration::from_millis(500),
    }
}

/// A line, and the cluster that carries it.
struct Carried(Arc<dyn Transport>, Arc<Cluster>);

#[async_trait]
impl Transport for Carried {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn send(&self, to: Audience, frame: &[u8]) -> Result<(), SendError> {
        self.0.send(to, frame)
    }
    async fn receive(&self) -> Option<Received> {
        self.0.receive().await
    }
    fn describe(&self) -> Vec<String> {
        self.0.describe()
    }
    async fn close(&self) {
        self.0.close().await;
        self.1.leave().await;
    }
}

const LINE: LineId = LineId([1; 8]);

struct Lines(Network);

#[async_trait]
impl Medium for Lines {
    async fn join(&self, incarnation: Incarnation) -> Arc<dyn Transport> {
        let base = Cluster::start(self.0.join(incarnation), settings(incarnation, "first"), Arc::new(Nobody)).unwrap();
        Arc::new(Carried(base.line(LINE), base))
    }
}

mod fair {
    use super::*;

    cluster::transport_conformance!(async { Lines(Network::new(1, Weather::FAIR)) });
}

mod foul {
    use super::*;

    cluster::transport_conformance!(async {
        let foul = Weather { loss: 0.1, repeat: 0.1, delay: Duration::from_millis(20) };
        Lines(Network::new(2, foul))
    });
}

/// The key of the cluster that carries a line opens nothing on it: what is of one log cannot be passed off as another's.
#[tokio::test]
async fn a_line_is_for_those_who_have_its_own_key() {
    let network = Network::new(3, Weather::FAIR);
    let mut nodes = Vec::new();
    for (n, origin) in [(1, "payments"), (2, "payments"), (3, "first")] {
        let life = Incarnation([n; 16]);
        let base = Cluster::start(network.join(life), settings(life, "first"), Arc::new(Nobody)).unwrap();
        let own = Cluster::start(base.line(LINE), settings(life, origin), Arc::new(Nobody)).unwrap();
        nodes.push((base, own));
    }
    let up = |cluster: &Cluster| cluster.members().iter().filter(|member| member.presence == Presence::Up).count();
    while up(&nodes[0].0) < 2 || up(&nodes[0].1) < 1 || up(&nodes[1].1) < 1 {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_millis(100)).await;
    assert_eq!((up(&nodes[0].1), up(&nodes[1].1), up(&nodes[2].1)), (1, 1, 0));
    let rejected = nodes[0].1.traffic().rejected;
    assert!(rejected.iter().any(|(why, count)| *why == Rejected::ForeignKey && *count > 0), "{rejected:?}");
}
