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

mod without_records {
    use super::*;

    cluster::transport_conformance!(async {
        let network = Network::new(3, Weather::FAIR);
        network.without_records();
        Wires(network)
    });
}

mod foul {
    use super::*;

    cluster::transport_conformance!(async {
        let foul = Weather { loss: 0.1, repeat: 0.1, delay: Duration::from_millis(20) };
        Wires(Network::new(2, foul))
    });
}

/// Where records are not worth sending, who has the same view is told all the same: it need not look at the log.
mod a_shared_view {
    use std::sync::Arc;
    use std::time::Duration;

    use async_trait::async_trait;
    use cluster::in_process::{Network, Weather};
    use cluster::{Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, Page, Record, Standing, ViewIdentity};
    use parking_lot::Mutex;
    use sealing::ClusterKey;
    use session_model::{LeafIndex, SessionId, TreeSize};
    use tokio::time::sleep;
    use uuid::Uuid;

    #[derive(Default)]
    struct Told {
        commits: Mutex<Vec<Commit>>,
        grown: Mutex<Vec<TreeSize>>,
    }

    #[async_trait]
    impl Host for Told {
        fn standing(&self) -> Standing {
            Standing { size: TreeSize(0), reflects: TreeSize(0), log_age: None }
        }

        async fn committed(&self, commit: Commit) {
            self.commits.lock().push(commit);
        }

        fn grown(&self, size: TreeSize) {
            self.grown.lock().push(size);
        }

        fn heard(&self, _: Heard) {}

        fn missed(&self) {}

        async fn page(&self, _: Incarnation, _: u64, _: usize) -> Option<Page> {
            None
        }
    }

    #[tokio::test]
    async fn is_told_of_where_records_are_not_sent() {
        let network = Network::new(4, Weather::FAIR);
        network.without_records();
        let member = |n: u8| {
            let host = Arc::new(Told::default());
            let config = ClusterConfig {
                node: n.to_string(),
                program: "test".into(),
                incarnation: Incarnation([n; 16]),
                keys: vec![ClusterKey::new(&[5; 32], "test").unwrap()],
                beat: Duration::from_millis(100),
                lease: Duration::from_secs(2),
                copies: None,
            };
            let transport = network.join(config.incarnation);
            (Cluster::start(transport, config, Arc::clone(&host) as _).unwrap(), host)
        };
        let ((one, _), (_other, host)) = (member(1), member(2));
        let session = SessionId::new(Uuid::from_u128(7));
        let records = vec![Record { session, index: LeafIndex(3), value: vec![1; 100] }];
        let shared =
            Commit { first: LeafIndex(4), end: TreeSize(5), view: Some(ViewIdentity([9; 16])), records: vec![] };
        one.publish(Commit { first: LeafIndex(0), end: TreeSize(4), view: None, records });
        one.publish(shared.clone());
        while host.commits.lock().is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(*host.commits.lock(), [shared]);
        assert_eq!(*host.grown.lock(), [TreeSize(4)]);
    }
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

    fn grown(&self, _: TreeSize) {}

    fn heard(&self, _: Heard) {}

    fn missed(&self) {}

    async fn page(&self, _: Incarnation, from: u64, bytes: usize) -> Option<Page> {
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
        copies: None,
    };
    Cluster::start(network.join(config.incarnation), config, Arc::new(View(records))).unwrap()
}
