//! What every transport must do, as tests that each of them runs: [`transport_conformance!`](crate::transport_conformance).

#![allow(clippy::panic, clippy::expect_used, reason = "a test that cannot go on should stop")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sealing::ClusterKey;
use session_model::{LeafIndex, SessionId, TreeSize};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::{
    Audience, Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, Page, Presence, Received, Record, SendError,
    Standing, Transport,
};

/// A medium of its own for each test: what joins it meets, and nothing else.
#[async_trait]
pub trait Medium: Send + Sync {
    /// A node plugs in.
    async fn join(&self, incarnation: Incarnation) -> Arc<dyn Transport>;
}

/// Makes a test of each rule, over media that the expression makes: an `async` one of type [`Medium`].
#[macro_export]
macro_rules! transport_conformance {
    ($medium:expr) => {
        $crate::transport_conformance!(@tests $medium,
            everybody_hears_what_is_sent,
            frames_arrive_whole_up_to_the_largest_and_larger_ones_are_refused,
            one_node_alone_can_be_addressed_or_it_is_refused,
            sending_never_waits_for_a_node_that_does_not_receive,
            a_node_that_closes_is_told_of_and_disturbs_nobody,
            who_comes_late_hears_what_follows,
            bytes_of_no_cluster_do_no_harm,
            nodes_find_one_another_and_see_one_leave,
            what_was_committed_reaches_all,
            who_comes_late_copies_a_view,
        );
    };
    (@tests $medium:expr, $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let medium = $medium.await;
                $crate::conformance::$name(&medium).await;
            }
        )*
    };
}

/// How long a medium may take to bring nodes together, on a machine that has other things to do.
const TOGETHER: Duration = Duration::from_secs(30);

/// The `n`th node's life.
const fn life(n: u8) -> Incarnation {
    Incarnation([n; 16])
}

/// A node of a test, and what it has heard.
struct Node {
    transport: Arc<dyn Transport>,
    incarnation: Incarnation,
}

impl Node {
    async fn join(medium: &impl Medium, n: u8) -> Self {
        let incarnation = life(n);
        Self { transport: medium.join(incarnation).await, incarnation }
    }

    fn send(&self, frame: &[u8]) {
        match self.transport.send(Audience::Everybody, frame) {
            // What cannot be sent now is lost: that is allowed.
            Ok(()) | Err(SendError::Unavailable(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }

    async fn next(&self, within: Duration) -> Option<Received> {
        timeout(within, self.transport.receive()).await.ok().flatten()
    }

    /// Receives until a frame is this one.
    async fn hears(&self, frame: &[u8], within: Duration) -> bool {
        let until = Instant::now() + within;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if self.next(left).await == Some(Received::Frame(frame.to_vec())) {
                return true;
            }
        }
        false
    }
}

/// Waits until each hears each other.
async fn together(nodes: &[&Node]) {
    let until = Instant::now() + TOGETHER;
    for from in nodes {
        for to in nodes.iter().filter(|to| to.incarnation != from.incarnation) {
            let hello = [b"hello ".as_slice(), &from.incarnation.0].concat();
            loop {
                from.send(&hello);
                if to.hears(&hello, Duration::from_millis(100)).await {
                    break;
                }
                assert!(Instant::now() < until, "two nodes did not come together: {:?}", to.transport.describe());
            }
        }
    }
}

/// Sends a frame again and again until it was heard: one may be lost.
async fn reaches(from: &Node, to: &Node, frame: &[u8]) -> bool {
    for _ in 0..50 {
        from.send(frame);
        if to.hears(frame, Duration::from_millis(200)).await {
            return true;
        }
    }
    false
}

/// Each of three hears each.
pub async fn everybody_hears_what_is_sent(medium: &impl Medium) {
    let nodes = [Node::join(medium, 1).await, Node::join(medium, 2).await, Node::join(medium, 3).await];
    together(&nodes.iter().collect::<Vec<_>>()).await;
}

/// Frames of every size arrive as they were sent.
pub async fn frames_arrive_whole_up_to_the_largest_and_larger_ones_are_refused(medium: &impl Medium) {
    let (one, other) = (Node::join(medium, 1).await, Node::join(medium, 2).await);
    together(&[&one, &other]).await;
    let max = one.transport.capabilities().max_frame;
    assert!(max >= 1_024, "{max} bytes are too few for a session");
    for size in [1, 2, 31, 512, max / 2, max - 1, max] {
        let frame: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
        assert!(reaches(&one, &other, &frame).await, "{size} bytes");
    }
    let refused = one.transport.send(Audience::Everybody, &vec![0; max + 1]);
    assert!(matches!(refused, Err(SendError::TooLarge(size)) if size == max + 1), "{refused:?}");
}

/// A frame for one node reaches that one and no other.
pub async fn one_node_alone_can_be_addressed_or_it_is_refused(medium: &impl Medium) {
    let nodes = [Node::join(medium, 1).await, Node::join(medium, 2).await, Node::join(medium, 3).await];
    let [one, other, third] = &nodes;
    together(&[one, other, third]).await;
    let sent = one.transport.send(Audience::One(other.incarnation), b"for the second");
    if !one.transport.capabilities().addressed {
        assert!(matches!(sent, Err(SendError::NotAddressed)), "{sent:?}");
        return;
    }
    let mut heard = false;
    for _ in 0..50 {
        let _may_be_lost = one.transport.send(Audience::One(other.incarnation), b"for the second");
        heard = other.hears(b"for the second", Duration::from_millis(200)).await;
        if heard {
            break;
        }
    }
    assert!(heard, "{:?}, {:?}", one.transport.describe(), other.transport.describe());
    assert!(!third.hears(b"for the second", Duration::from_millis(300)).await);
    let nobody = one.transport.send(Audience::One(life(9)), b"for nobody");
    assert!(matches!(nobody, Ok(()) | Err(SendError::Unavailable(_))), "{nobody:?}");
}

/// One node takes nothing; the sender does not wait, and the others go on hearing it.
pub async fn sending_never_waits_for_a_node_that_does_not_receive(medium: &impl Medium) {
    let nodes = [Node::join(medium, 1).await, Node::join(medium, 2).await, Node::join(medium, 3).await];
    let [one, other, stuck] = &nodes;
    together(&[one, other, stuck]).await;
    let frame = vec![7; 1_024.min(one.transport.capabilities().max_frame)];
    let mut longest = Duration::ZERO;
    for number in 0..20_000 {
        let began = Instant::now();
        one.send(&frame);
        longest = longest.max(began.elapsed());
        if number % 100 == 0 {
            // The healthy one is given the time to keep up.
            while other.next(Duration::ZERO).await.is_some() {}
            tokio::task::yield_now().await;
        }
    }
    assert!(longest < Duration::from_secs(1), "one send took {longest:?}");
    assert!(reaches(one, other, b"and on").await);
    assert!(reaches(other, one, b"and back").await);
}

/// A node that lets go is told of where the transport can tell, ends its own receiving, and the others go on.
pub async fn a_node_that_closes_is_told_of_and_disturbs_nobody(medium: &impl Medium) {
    let nodes = [Node::join(medium, 1).await, Node::join(medium, 2).await, Node::join(medium, 3).await];
    let [one, other, leaving] = &nodes;
    together(&[one, other, leaving]).await;
    leaving.transport.close().await;
    let ended = async { while leaving.transport.receive().await.is_some() {} };
    assert!(timeout(Duration::from_secs(5), ended).await.is_ok(), "receiving does not end");
    if one.transport.capabilities().tells_departures {
        let until = Instant::now() + Duration::from_secs(5);
        let mut told = false;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if one.next(left).await == Some(Received::Departed(leaving.incarnation)) {
                told = true;
                break;
            }
        }
        assert!(told);
    }
    assert!(reaches(one, other, b"still here").await);
}

/// A third comes when two have long been talking.
pub async fn who_comes_late_hears_what_follows(medium: &impl Medium) {
    let (one, other) = (Node::join(medium, 1).await, Node::join(medium, 2).await);
    together(&[&one, &other]).await;
    for _ in 0..100 {
        one.send(b"before");
    }
    let late = Node::join(medium, 3).await;
    together(&[&one, &other, &late]).await;
}

/// Frames are bytes to a transport; whoever listens throws away what does not open.
pub async fn bytes_of_no_cluster_do_no_harm(medium: &impl Medium) {
    let (stranger, a) = (Node::join(medium, 1).await, member(medium, 2, "a").await);
    let b = member(medium, 3, "b").await;
    for noise in [vec![], vec![0xcf], vec![0xcf, 1], vec![0xcf; 64], (0..=255).collect::<Vec<u8>>()] {
        stranger.send(&noise);
    }
    until(|| up(&a.cluster) == ["b"] && up(&b.cluster) == ["a"], "two found one another beside a stranger").await;
}

/// A host that keeps what it is told.
#[derive(Default)]
struct Keeper {
    heard: Mutex<BTreeMap<u64, Record>>,
    size: Mutex<u64>,
    grown: Mutex<u64>,
    proofs: Mutex<Vec<Heard>>,
}

#[async_trait]
impl Host for Keeper {
    fn standing(&self) -> Standing {
        let size = TreeSize(*self.size.lock());
        Standing { size, reflects: size, log_age: Some(Duration::from_millis(1)) }
    }

    async fn committed(&self, commit: Commit) {
        self.heard.lock().extend(commit.records.into_iter().map(|record| (record.index.0, record)));
    }

    fn grown(&self, size: TreeSize) {
        let mut grown = self.grown.lock();
        *grown = size.0.max(*grown);
    }

    fn heard(&self, heard: Heard) {
        self.proofs.lock().push(heard);
    }

    fn missed(&self) {}

    async fn page(&self, _: Incarnation, from: u64, bytes: usize) -> Option<Page> {
        let records = self.heard.lock();
        let (mut page, mut taken) = (Vec::new(), 0);
        for (_, record) in records.range(from..) {
            if taken > bytes {
                break;
            }
            taken += record.value.len();
            page.push(record.clone());
        }
        let next = page.last().map(|last| last.index.0 + 1).filter(|next| records.contains_key(next));
        Some(Page { records: page, reflects: TreeSize(*self.size.lock()), next })
    }
}

struct Taking {
    cluster: Arc<Cluster>,
    host: Arc<Keeper>,
}

async fn member(medium: &impl Medium, n: u8, name: &str) -> Taking {
    let host = Arc::new(Keeper::default());
    let config = ClusterConfig {
        node: name.into(),
        program: "test".into(),
        incarnation: life(n),
        keys: vec![ClusterKey::new(&[5; 32], "conformance").expect("a key")],
        beat: Duration::from_millis(100),
        lease: Duration::from_secs(2),
        copies: None,
    };
    let transport = medium.join(life(n)).await;
    let cluster = Cluster::start(transport, config, Arc::clone(&host) as _).expect("a cluster");
    Taking { cluster, host }
}

fn up(cluster: &Cluster) -> Vec<String> {
    let members = cluster.members().into_iter();
    members.filter(|member| member.presence == Presence::Up).map(|member| member.node).collect()
}

async fn until(what: impl Fn() -> bool, why: &str) {
    let end = Instant::now() + TOGETHER;
    while !what() {
        assert!(Instant::now() < end, "{why}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn record(index: u64, bytes: usize) -> Record {
    let value = (0..bytes).map(|at| (at as u64 * 31 + index) as u8).collect();
    Record { session: SessionId::new(Uuid::from_u128(index.into())), index: LeafIndex(index), value }
}

/// Three come up in each other's eyes, one of them goes, and that proves nothing wrong of the log.
pub async fn nodes_find_one_another_and_see_one_leave(medium: &impl Medium) {
    let a = member(medium, 1, "a").await;
    let b = member(medium, 2, "b").await;
    let c = member(medium, 3, "c").await;
    let all = || up(&a.cluster) == ["b", "c"] && up(&b.cluster) == ["a", "c"] && up(&c.cluster) == ["a", "b"];
    until(all, "three found one another").await;
    until(|| !a.host.proofs.lock().is_empty(), "beats prove how long the log is").await;
    c.cluster.leave().await;
    until(|| up(&a.cluster) == ["b"] && up(&b.cluster) == ["a"], "one is seen to leave").await;
}

/// Everything that one commits, small and large, is told to all. What a medium loses would be read from the log: here it is told again. Where
/// records are not sent, all know at least how long the log has become.
pub async fn what_was_committed_reaches_all(medium: &impl Medium) {
    let a = member(medium, 1, "a").await;
    let (b, c) = (member(medium, 2, "b").await, member(medium, 3, "c").await);
    until(|| up(&a.cluster) == ["b", "c"], "three found one another").await;
    let largest = a.cluster.capabilities().max_frame.saturating_sub(200).min(4_096);
    let commits: Vec<Commit> = (0..100_u64)
        .map(|at| {
            let (first, end) = (at * 10, at * 10 + 10);
            let records =
                (first..end).map(|index| record(index, if index % 10 == 3 { largest } else { 200 })).collect();
            Commit { first: LeafIndex(first), end: TreeSize(end), view: None, records }
        })
        .collect();
    let records = a.cluster.capabilities().records;
    let lacking = |taking: &Taking| {
        if !records {
            let grown = *taking.host.grown.lock();
            return (grown / 10..100).collect();
        }
        let heard = taking.host.heard.lock();
        (0..1_000_u64).filter(|index| !heard.contains_key(index)).map(|index| index / 10).collect::<Vec<_>>()
    };
    for round in 0..20 {
        for commit in &commits {
            let at = commit.first.0 / 10;
            if round == 0 || lacking(&b).contains(&at) || lacking(&c).contains(&at) {
                a.cluster.publish(commit.clone());
                sleep(Duration::from_millis(1)).await;
            }
        }
        sleep(Duration::from_millis(300)).await;
        if lacking(&b).is_empty() && lacking(&c).is_empty() {
            break;
        }
    }
    for taking in [&b, &c] {
        assert_eq!(lacking(taking), Vec::<u64>::new(), "{:?}", a.cluster.traffic());
        for (index, heard) in &*taking.host.heard.lock() {
            assert_eq!(heard, &record(*index, heard.value.len()));
        }
    }
}

/// Where nodes can be addressed, one that comes late gets all that another holds.
pub async fn who_comes_late_copies_a_view(medium: &impl Medium) {
    let a = member(medium, 1, "a").await;
    a.host.heard.lock().extend((0..1_000).map(|index| (index, record(index, 700))));
    *a.host.size.lock() = 1_000;
    let b = member(medium, 2, "b").await;
    until(|| up(&b.cluster) == ["a"], "two found one another").await;
    let copied = Arc::new(Mutex::new(BTreeMap::new()));
    let reflects = b
        .cluster
        .snapshot(|records| {
            copied.lock().extend(records.into_iter().map(|record| (record.index.0, record)));
            std::future::ready(())
        })
        .await;
    if a.cluster.capabilities().addressed {
        assert_eq!(reflects, Some(TreeSize(1_000)));
        assert!(*copied.lock() == *a.host.heard.lock());
    } else {
        assert_eq!(reflects, None);
    }
}
