//! A Redis Cluster of three masters with a replica each.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use nonce_store::{Claimed, NonceStore};
use session_model::{Digest, Seconds, Timestamp, TreeSize};
use session_view::test_util::{at, ended, id, session};
use session_view::{SessionView, ViewError, Viewed};
use session_view_redis::{RedisView, RedisViewConfig};
use tokio::time::sleep;

use crate::support::{KEY, Server, applied, raw, tracked, within};

const LONG: Duration = Duration::from_secs(60);

struct Nodes(Vec<Server>);

fn cli(arguments: &[&str]) -> bool {
    let output = Command::new("redis-cli").args(arguments).output().expect("redis-cli is on the PATH");
    if !output.status.success() {
        eprintln!("{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
    output.status.success()
}

impl Nodes {
    async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..6 {
            let options = [
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "1500",
                "--repl-diskless-sync-delay",
                "0",
                "--cluster-require-full-coverage",
                "no",
            ];
            nodes.push(Server::start_with(&options).await);
        }
        let places: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let mut create = vec!["--cluster", "create"];
        create.extend(places.iter().map(String::as_str));
        create.extend(["--cluster-replicas", "1", "--cluster-yes"]);
        assert!(cli(&create));
        let nodes = Self(nodes);
        within(LONG, "all nodes know the cluster and the replicas follow", async || {
            for node in &nodes.0 {
                let mut node = raw(&node.url()).await;
                let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut node).await.unwrap();
                let role: String = redis::cmd("INFO").arg("replication").query_async(&mut node).await.unwrap();
                let follows = role.contains("role:master") || role.contains("master_link_status:up");
                if !info.contains("cluster_state:ok") || !follows {
                    return false;
                }
            }
            true
        })
        .await;
        nodes
    }

    fn config(&self, namespace: &str) -> RedisViewConfig {
        let places: Vec<_> = self.0.iter().take(2).map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let mut config = RedisViewConfig::new(format!("redis+cluster://{}", places.join(",")), namespace, KEY);
        config.operation_timeout = Duration::from_secs(5);
        config
    }

    /// Which nodes are masters with slots, with their ids.
    async fn masters(&self) -> Vec<(usize, String)> {
        let mut masters = Vec::new();
        for (place, node) in self.0.iter().enumerate() {
            let mut node = raw(&node.url()).await;
            let info: String = redis::cmd("INFO").arg("replication").query_async(&mut node).await.unwrap();
            if info.contains("role:master") {
                masters.push((place, redis::cmd("CLUSTER").arg("MYID").query_async(&mut node).await.unwrap()));
            }
        }
        masters
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_and_spreads() {
    let nodes = Nodes::start().await;
    let count = AtomicU32::new(0);
    let view = async || {
        let number = count.fetch_add(1, SeqCst);
        let view: Arc<dyn SessionView> = Arc::new(tracked(nodes.config(&format!("ns{number}"))).await);
        (view, ())
    };
    session_view::conformance_tests!(in_turn view);

    // Each master has its part.
    let view = tracked(nodes.config("spread")).await;
    let states: Vec<_> = (0..3_000).map(|n| Arc::new(session(n, n))).collect();
    let _ = view.apply(&states).await.unwrap();
    for (master, _) in nodes.masters().await {
        let mut master = raw(&nodes.0[master].url()).await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("s:{spread:*").query_async(&mut master).await.unwrap();
        assert!((600..1_500).contains(&keys.len()), "{} of 3,000 on one master", keys.len());
    }
    // The earliest, whatever bucket they are in, and though one has more than its share of them.
    let due = view.due(at(1 << 20), 1_000).await.unwrap();
    assert_eq!(due.len(), 1_000);
    let early: Vec<_> =
        (0..40).map(|n| Arc::new(session_view::test_util::seen(3_000 + n * 256, 9_000 + n, -60))).collect();
    let _ = view.apply(&early).await.unwrap();
    let mut first: Vec<_> = view.due(at(1 << 20), 40).await.unwrap();
    first.sort_unstable();
    let mut expected: Vec<_> = early.iter().map(|state| state.id).collect();
    expected.sort_unstable();
    assert_eq!(first, expected);

    let nonces = view.nonces();
    let now = Timestamp::from_micros(1_700_000_000_000_000);
    for n in 0..50 {
        let nonce = Digest([n; 32]);
        assert_eq!(nonces.claim(&nonce, now, now.plus(Seconds(60))).await.unwrap(), Claimed::First);
        assert_eq!(nonces.claim(&nonce, now, now.plus(Seconds(60))).await.unwrap(), Claimed::Again);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_dies_and_its_replica_is_promoted() {
    let mut nodes = Nodes::start().await;
    let (view, other) = (tracked(nodes.config("own")).await, tracked(nodes.config("own")).await);
    let states: Vec<_> = (0..300).map(|n| Arc::new(session(n, n))).collect();
    let _ = view.apply(&states).await.unwrap();
    view.set_reflects(TreeSize(300)).await.unwrap();
    within(LONG, "it is in the near cache", async || {
        other.get(id(1)).await.unwrap();
        other.peek(id(1)).is_some()
    })
    .await;
    applied(&view, session(1, 400)).await;
    within(
        Duration::from_secs(2),
        "other nodes are told",
        async || !matches!(other.peek(id(1)), Some(Viewed::Active(session)) if session.head.index.0 < 400),
    )
    .await;

    let losses = view.losses();
    let (victim, _) = nodes.masters().await[0];
    nodes.0[victim].kill();
    within(Duration::from_secs(2), "the near cache closes with the first connection", async || {
        !view.is_tracking() && view.peek(id(2)).is_none()
    })
    .await;
    let (mut there, mut away) = (0, 0);
    for n in 0..300 {
        match view.get(id(n)).await {
            Ok(Some(_)) => there += 1,
            Err(ViewError::Unavailable(_)) => away += 1,
            found => panic!("session {n}: {found:?}"),
        }
    }
    // Unless the replica was promoted already.
    assert!((there > 100 && away > 50) || view.losses() > losses, "{there} there, {away} away");
    within(LONG, "the replica is a master, and that is noticed", async || {
        view.losses() > losses && view.status().available
    })
    .await;
    assert!(matches!(view.get(id(1)).await, Err(ViewError::Unavailable(_))), "in doubt");
    let again: Vec<_> = (0..300).map(|n| Arc::new(ended(n, 1_000 + n))).collect();
    let _ = view.apply(&again).await.unwrap();
    view.restored(view.losses());
    for n in 0..300 {
        assert!(matches!(view.get(id(n)).await.unwrap(), Some(Viewed::Ended(_))));
    }
    within(LONG, "tracking is on again, with the new master", async || view.is_tracking()).await;
    assert!(view.reflects().await.unwrap() <= TreeSize(300));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_and_a_master_is_flushed() {
    let nodes = Nodes::start().await;
    let view = Arc::new(tracked(nodes.config("own")).await);
    let states: Vec<_> = (0..300).map(|n| Arc::new(session(n, n))).collect();
    let _ = view.apply(&states).await.unwrap();
    let losses = view.losses();
    let over = Arc::new(AtomicBool::new(false));
    // A node at work: what it could not do it does again, as the follower does.
    let worker = tokio::spawn({
        let (view, over) = (Arc::clone(&view), Arc::clone(&over));
        async move {
            let (mut done, mut refused) = (0_u64, 0_u64);
            let mut newest = vec![0_u64; 300];
            while !over.load(SeqCst) {
                for (n, newest) in (0..).zip(&mut newest) {
                    let next = *newest + 1_000;
                    match view.apply(&[Arc::new(session(n, next + n))]).await {
                        Ok(_) => {
                            *newest = next;
                            done += 1;
                        }
                        Err(ViewError::Unavailable(_)) => refused += 1,
                        Err(other) => panic!("{other}"),
                    }
                    match view.get(id(n)).await {
                        Ok(Some(Viewed::Active(session))) => assert!(session.head.index.0 >= *newest),
                        Ok(found) => panic!("session {n} is {found:?} while slots move"),
                        Err(ViewError::Unavailable(_)) => view.restored(view.losses()),
                        Err(other) => panic!("{other}"),
                    }
                }
            }
            (done, refused, newest)
        }
    });
    let masters = nodes.masters().await;
    let place = format!("127.0.0.1:{}", nodes.0[masters[0].0].port);
    assert!(cli(&[
        "--cluster",
        "reshard",
        &place,
        "--cluster-from",
        &masters[0].1,
        "--cluster-to",
        &masters[1].1,
        "--cluster-slots",
        "1500",
        "--cluster-yes",
    ]));
    within(LONG, "that it moved is noticed", async || view.losses() > losses).await;
    sleep(Duration::from_secs(1)).await;
    over.store(true, SeqCst);
    let (done, refused, newest) = worker.await.unwrap();
    eprintln!("while slots moved: {done} applied, {refused} refused");
    assert!(done > refused && newest.iter().all(|index| *index > 0), "{done} applied, {refused} refused");
    view.restored(view.losses());
    for n in 0..300 {
        applied(&view, session(n, 1 << 40)).await;
        assert!(view.get(id(n)).await.unwrap().is_some());
    }

    // One master forgets everything: nothing of it is shown from memory, and what is reflected is what it reflects.
    view.set_reflects(TreeSize(1 << 41)).await.unwrap();
    assert_eq!(view.reflects().await.unwrap(), TreeSize(1 << 41));
    within(LONG, "tracking is on", async || view.is_tracking()).await;
    for n in 0..300 {
        let _ = view.get(id(n)).await.unwrap();
    }
    let mut flushed = raw(&nodes.0[masters[1].0].url()).await;
    redis::cmd("FLUSHALL").query_async::<()>(&mut flushed).await.unwrap();
    within(Duration::from_secs(3), "the near cache is emptied", async || {
        (0..300).filter(|n| view.peek(id(*n)).is_some()).count() < 250
    })
    .await;
    assert_eq!(view.reflects().await.unwrap(), TreeSize(0));
    let lost = {
        let mut lost = 0;
        for n in 0..300 {
            lost += u64::from(view.get(id(n)).await.unwrap().is_none());
        }
        lost
    };
    assert!((50..250).contains(&lost), "{lost} of 300 lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_there_when_the_service_starts() {
    let view = RedisView::connect(RedisViewConfig::new("redis+cluster://127.0.0.1:1", "own", KEY)).await.unwrap();
    assert!(!view.status().available);
    assert!(matches!(view.held(id(1)).await, Err(ViewError::Unavailable(_))));
    assert!(matches!(view.apply(&[Arc::new(session(1, 1))]).await, Err(ViewError::Unavailable(_))));
    assert!(matches!(view.due(at(1), 1).await, Err(ViewError::Unavailable(_))));
}
