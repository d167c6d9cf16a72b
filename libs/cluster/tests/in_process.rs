//! The in-process network passes the conformance suite, in fair weather and in foul.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::conformance::Medium;
use cluster::in_process::{Network, Weather};
use cluster::{Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, Page, Presence, Record, Standing, Transport};
use sealing::ClusterKey;
use session_model::{LeafIndex, SessionId, TreeSize};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

struct Wires(Network);

#[async_trait]
impl Medium for Wires {
    async fn join(&self, incarnation: Incarnation) -> Arc<dyn Transport> {
        self.0.join(incarnation)
    }
}

mod fair {
    use super::*;

    cluster::transport_conformance!(async { Wires(Network::new(1, Weather::FAIR)) });
}

mod foul {
    use super::*;

    cluster::transport_conformance!(async {
        let foul = Weather { loss: 0.1, repeat: 0.1, delay: Duration::from_millis(20) };
        Wires(Network::new(2, foul))
    });
}

/// In frames of a datagram's size and with every twentieth lost, a page of a view is never had whole at once: what is missing of it is asked
/// for, not the page anew, in ever smaller pieces.
#[tokio::test(start_paused = true)]
async fn a_view_is_copied_through_loss_in_reasonable_time() {
    let network = Network::new(3, Weather { delay: Duration::from_millis(1), ..Weather::FAIR });
    network.max_frame(1_400);
    let (holder, late) = (node(&network, 1, 4_000), node(&network, 2, 0));
    while late.members().iter().all(|member| member.presence != Presence::Up) {
        sleep(Duration::from_millis(10)).await;
    }
    network.weather(Weather { loss: 0.05, delay: Duration::from_millis(1), ..Weather::FAIR });
    let (began, mut copied) = (Instant::now(), BTreeSet::new());
    let reflects = late
        .snapshot(|records| {
            copied.extend(records.into_iter().map(|record| record.index.0));
            std::future::ready(())
        })
        .await;
    assert_eq!(reflects, Some(TreeSize(4_000)));
    assert!(copied.into_iter().eq(0..4_000));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    drop(holder);
}

/// Has records of 1,000 bytes, this many.
struct View(u64);

#[async_trait]
impl Host for View {
    fn standing(&self) -> Standing {
        Standing { size: TreeSize(self.0), reflects: TreeSize(self.0), log_age: Some(Duration::ZERO) }
    }

    async fn committed(&self, _: Commit) {}

    fn heard(&self, _: Heard) {}

    fn missed(&self) {}

    async fn page(&self, from: u64, bytes: usize) -> Option<Page> {
        let end = (from + (bytes as u64 / 1_000).max(1)).min(self.0);
        let session = |index: u64| SessionId::new(Uuid::from_u128(index.into()));
        let record = |index| Record { session: session(index), index: LeafIndex(index), value: vec![7; 1_000] };
        let next = (end < self.0).then_some(end);
        Some(Page { records: (from..end).map(record).collect(), reflects: TreeSize(self.0), next })
    }
}

fn node(network: &Network, n: u8, records: u64) -> Arc<Cluster> {
    let config = ClusterConfig {
        node: n.to_string(),
        program: "test".into(),
        incarnation: Incarnation([n; 16]),
        keys: vec![ClusterKey::new(&[5; 32], "loss").unwrap()],
        beat: Duration::from_millis(100),
        lease: Duration::from_secs(2),
    };
    Cluster::start(network.join(config.incarnation), config, Arc::new(View(records))).unwrap()
}
