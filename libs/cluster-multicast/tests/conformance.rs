//! The conformance suite over multicast on the loopback interface: a group of its own for each test.

#![allow(clippy::expect_used, reason = "a test that cannot go on should stop")]

mod common;

use std::sync::Arc;

use async_trait::async_trait;
use cluster::conformance::{self, Medium};
use cluster::{Incarnation, Transport};
use cluster_multicast::{MulticastConfig, MulticastTransport};

struct Group(MulticastConfig);

#[async_trait]
impl Medium for Group {
    async fn join(&self, incarnation: Incarnation) -> Arc<dyn Transport> {
        Arc::new(MulticastTransport::open(self.0.clone(), incarnation).expect("the group can be joined"))
    }
}

mod ipv4 {
    use super::*;

    cluster::transport_conformance!(async { Group(common::group_v4()) });
}

/// IPv6 in short: what differs is how groups are joined and addresses written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv6() {
    let Some(_) = common::group_v6() else { return };
    let group = || Group(common::group_v6().expect("it was there"));
    conformance::everybody_hears_what_is_sent(&group()).await;
    conformance::frames_arrive_whole_up_to_the_largest_and_larger_ones_are_refused(&group()).await;
    conformance::one_node_alone_can_be_addressed_or_it_is_refused(&group()).await;
    conformance::a_node_that_closes_is_told_of_and_disturbs_nobody(&group()).await;
    conformance::who_comes_late_copies_a_view(&group()).await;
}
