//! What strangers on the group can do: nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

mod common;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::{
    Audience, Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, Page, Presence, Received, Record, Rejected,
    SendError, Standing, Transport,
};
use cluster_multicast::{MulticastConfig, MulticastError, MulticastTransport};
use sealing::ClusterKey;
use session_model::{LeafIndex, SessionId, TreeSize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

const fn life(n: u8) -> Incarnation {
    Incarnation([n; 16])
}

fn open(config: &MulticastConfig, n: u8) -> MulticastTransport {
    MulticastTransport::open(config.clone(), life(n)).unwrap()
}

/// A host that hands on what it is told of.
struct Told(mpsc::UnboundedSender<Commit>);

#[async_trait]
impl Host for Told {
    fn standing(&self) -> Standing {
        Standing { size: TreeSize(1), reflects: TreeSize(1), log_age: None }
    }

    async fn committed(&self, commit: Commit) {
        let _nobody_looks = self.0.send(commit);
    }

    fn grown(&self, _: TreeSize) {}

    fn heard(&self, _: Heard) {}

    fn missed(&self) {}

    async fn page(&self, _: Incarnation, _: u64, _: usize) -> Option<Page> {
        None
    }
}

fn member(config: &MulticastConfig, n: u8, key: u8) -> (Arc<Cluster>, mpsc::UnboundedReceiver<Commit>) {
    let (told, commits) = mpsc::unbounded_channel();
    let member = ClusterConfig {
        node: format!("node-{n}"),
        program: "test".into(),
        incarnation: life(n),
        keys: vec![ClusterKey::new(&[key; 32], "hostile").unwrap()],
        beat: Duration::from_millis(50),
        lease: Duration::from_secs(2),
        copies: None,
    };
    (Cluster::start(Arc::new(open(config, n)), member, Arc::new(Told(told))).unwrap(), commits)
}

fn up(cluster: &Cluster) -> Vec<String> {
    let members = cluster.members().into_iter();
    members.filter(|member| member.presence == Presence::Up).map(|member| member.node).collect()
}

async fn until(what: impl Fn() -> bool, why: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < end, "{why}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn rejected(cluster: &Cluster, reason: Rejected) -> u64 {
    cluster.traffic().rejected.into_iter().find(|(why, _)| *why == reason).map_or(0, |(_, count)| count)
}

const SECRET: &[u8] = b"a value that nobody else may read";
const SESSION: u128 = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;

fn commit(index: u64) -> Commit {
    let record =
        Record { session: SessionId::new(Uuid::from_u128(SESSION)), index: LeafIndex(index), value: SECRET.into() };
    Commit { first: LeafIndex(index), end: TreeSize(index + 1), view: None, records: vec![record] }
}

/// Somebody who is on the group and has no key: hears everything, and can send anything.
fn stranger(config: &MulticastConfig) -> UdpSocket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&config.group.into()).unwrap();
    socket.set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
    let socket = UdpSocket::from(socket);
    let SocketAddr::V4(group) = config.group else { panic!("IPv4") };
    socket.join_multicast_v4(group.ip(), &Ipv4Addr::LOCALHOST).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

/// Datagrams that the stranger hears, as long as any come for a while.
fn overheard(stranger: &UdpSocket, at_most: usize) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    std::iter::from_fn(|| stranger.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()))
        .take(at_most)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_shows_neither_sessions_nor_values() {
    let config = common::group_v4();
    let listening = stranger(&config);
    let ((a, _a), (b, mut heard)) = (member(&config, 1, 5), member(&config, 2, 5));
    until(|| up(&a) == ["node-2"] && up(&b) == ["node-1"], "two found one another").await;
    a.publish(commit(7));
    let told = timeout(Duration::from_secs(10), heard.recv()).await.unwrap().unwrap();
    assert_eq!(told.records[0].value, SECRET);
    let captured = overheard(&listening, 200);
    assert!(captured.len() > 4, "beats and a commit were sent");
    let session = SESSION.to_be_bytes();
    let text = Uuid::from_u128(SESSION).to_string();
    for shown in [SECRET, &session, text.as_bytes(), b"node-1", b"node-2"] {
        let shows = |datagram: &Vec<u8>| datagram.windows(shown.len()).any(|window| window == shown);
        assert!(!captured.iter().any(shows), "{shown:02x?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_on_one_group_never_mix() {
    let config = common::group_v4();
    let ((a, _a), (b, mut b_heard)) = (member(&config, 1, 5), member(&config, 2, 5));
    let ((x, _x), (y, mut y_heard)) = (member(&config, 3, 6), member(&config, 4, 6));
    let apart = || up(&a) == ["node-2"] && up(&b) == ["node-1"] && up(&x) == ["node-4"] && up(&y) == ["node-3"];
    until(apart, "each found its own").await;
    a.publish(commit(1));
    x.publish(commit(2));
    let first = |commit: Option<Commit>| commit.map(|commit| commit.first.0);
    assert_eq!(first(timeout(Duration::from_secs(10), b_heard.recv()).await.unwrap()), Some(1));
    assert_eq!(first(timeout(Duration::from_secs(10), y_heard.recv()).await.unwrap()), Some(2));
    sleep(Duration::from_millis(200)).await;
    assert!(b_heard.try_recv().is_err() && y_heard.try_recv().is_err());
    assert!(rejected(&b, Rejected::ForeignKey) > 0 && rejected(&x, Rejected::ForeignKey) > 0);
    assert!(apart());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn altered_repeated_and_invented_datagrams_change_nothing() {
    let config = common::group_v4();
    let stranger = stranger(&config);
    let ((a, _a), (b, mut heard)) = (member(&config, 1, 5), member(&config, 2, 5));
    until(|| up(&a) == ["node-2"] && up(&b) == ["node-1"], "two found one another").await;
    a.publish(commit(7));
    timeout(Duration::from_secs(10), heard.recv()).await.unwrap().unwrap();
    let captured = overheard(&stranger, 60);
    let send = |datagram: &[u8]| stranger.send_to(datagram, config.group).unwrap();
    for datagram in &captured {
        send(datagram);
        for at in [0, 1, 3, 9, 25, datagram.len() - 1] {
            let mut altered = datagram.clone();
            altered[at % datagram.len()] ^= 0x10;
            send(&altered);
        }
        send(&datagram[..datagram.len() / 2]);
        send(&[datagram.as_slice(), &[0; 100]].concat());
        std::thread::sleep(Duration::from_millis(1));
    }
    // Larger than any frame: IP cuts them in pieces, and puts them together.
    for size in [0, 1, 2, 19, 1_472, 1_473, 9_000, 65_000] {
        let mut bytes = vec![0xc0; size];
        send(&bytes);
        bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 31 % 251) as u8);
        send(&bytes);
        bytes.iter_mut().take(1).for_each(|kind| *kind = 0xc1);
        send(&bytes);
    }
    until(|| rejected(&b, Rejected::Replayed) > 0 && rejected(&b, Rejected::NotAuthentic) > 0, "they were looked at")
        .await;
    assert!(heard.try_recv().is_err(), "nothing was told twice");
    a.publish(commit(8));
    assert_eq!(timeout(Duration::from_secs(10), heard.recv()).await.unwrap().unwrap().first, LeafIndex(8));
    assert_eq!((up(&a), up(&b)), (vec!["node-2".to_owned()], vec!["node-1".to_owned()]));
    assert_eq!(a.members().len(), 1, "no member was invented");
    let strange = |line: &String| line.contains("none of a cluster");
    assert!(b.describe().iter().any(strange), "{:?}", b.describe());
}

/// Announcements are not sealed: a forged one must neither turn addressed frames away from a node that was heard authentically, nor make
/// it look gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_announcement_moves_no_node_of_the_cluster() {
    let config = common::group_v4();
    let stranger = stranger(&config);
    let one = open(&config, 1);
    let other = open(&config, 2);
    let hear = async |transport: &MulticastTransport| loop {
        if let Some(Received::Frame(frame)) =
            timeout(Duration::from_millis(300), transport.receive()).await.unwrap_or(None)
        {
            break Some(frame);
        }
        other.send(Audience::Everybody, b"it is me").unwrap();
    };
    assert_eq!(hear(&one).await.unwrap(), b"it is me");
    one.authentic(life(2));
    // "Here is node 2, to be watched at the port of nobody."
    for _ in 0..50 {
        stranger.send_to(&[&[0xc1, 1], life(2).0.as_slice(), &[0, 1]].concat(), config.group).unwrap();
    }
    sleep(Duration::from_millis(300)).await;
    one.send(Audience::One(life(2)), b"for you").unwrap();
    let heard = timeout(Duration::from_secs(5), async {
        while other.receive().await != Some(Received::Frame(b"for you".to_vec())) {}
    });
    assert!(heard.await.is_ok(), "{:?}", one.describe());
    while let Ok(received) = timeout(Duration::from_millis(200), one.receive()).await {
        assert_ne!(received, Some(Received::Departed(life(2))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_datagram_is_larger_than_the_path_takes() {
    let config = MulticastConfig { mtu: 1_400, ..common::group_v4() };
    let listening = stranger(&config);
    let one = open(&config, 1);
    let max = one.capabilities().max_frame;
    assert_eq!(max, 1_400 - 20 - 8 - 1);
    one.send(Audience::Everybody, &vec![7; max]).unwrap();
    assert!(matches!(one.send(Audience::Everybody, &vec![7; max + 1]), Err(SendError::TooLarge(_))));
    let largest = overheard(&listening, 2).iter().map(Vec::len).max();
    assert_eq!(largest, Some(1_400 - 20 - 8));
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_the_start() {
    let refused = |change: fn(&mut MulticastConfig)| {
        let mut config = common::group_v4();
        change(&mut config);
        MulticastTransport::open(config, life(1)).unwrap_err()
    };
    assert!(matches!(refused(|c| c.group = "10.0.0.1:7000".parse().unwrap()), MulticastError::NotAGroup(_)));
    assert!(matches!(refused(|c| c.group.set_port(0)), MulticastError::NotAGroup(_)));
    assert!(matches!(refused(|c| c.mtu = 576), MulticastError::Mtu(576)));
    assert!(matches!(refused(|c| c.rate = 0), MulticastError::Rate));
    assert!(matches!(refused(|c| c.interface = "none-such".parse().ok()), MulticastError::NoInterface(_)));
}

/// A commit of 512 records to receivers with the buffers that Linux gives by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_commit_does_not_run_over_small_receive_buffers() {
    let config = MulticastConfig { receive_buffer: 212_992 / 2, ..common::group_v4() };
    let (one, other) = (open(&config, 1), Arc::new(open(&config, 2)));
    let receiving = Arc::clone(&other);
    let receiver = tokio::spawn(async move {
        let mut frames = 0;
        while frames < 512 {
            match timeout(Duration::from_secs(3), receiving.receive()).await {
                Ok(Some(Received::Frame(frame))) if frame.len() == 1_136 => frames += 1,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        frames
    });
    for _ in 0..512 {
        one.send(Audience::Everybody, &[7; 1_136]).unwrap();
    }
    assert_eq!(receiver.await.unwrap(), 512, "{:?}", other.describe());
    assert_eq!(other.dropped(), 0);
}
