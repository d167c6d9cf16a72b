//! What others on the same Redis see of a cluster, and what they do not.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::conformance::Medium;
use cluster::{
    Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, Page, Presence, Received, Record, Standing, Transport,
};
use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use sealing::ClusterKey;
use session_model::{LeafIndex, SessionId, TreeSize};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::support::{Namespace, PATIENCE, connected, life, open, reaches};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_namespaces_never_mix() {
    let namespace = Namespace::new().await;
    let of = |name: String, n| open(&namespace.url, &name, life(n));
    let ours = [of(namespace.name.clone(), 1), of(namespace.name.clone(), 2)];
    // The same incarnation as well: nothing but the namespace tells them apart.
    let theirs = [of(format!("{}.", namespace.name), 3), of(format!("{}.", namespace.name), 2)];
    reaches(&theirs[0], &theirs[1], b"theirs").await;
    for n in 0..50 {
        reaches(&ours[0], &ours[1], format!("ours {n}").as_bytes()).await;
    }
    assert!(ours[0].send(cluster::Audience::One(life(2)), b"ours alone").is_ok());
    while let Ok(received) = timeout(Duration::from_millis(300), theirs[1].receive()).await {
        let mixed = matches!(received.unwrap(), Received::Frame(frame) if frame.starts_with(b"ours"));
        assert!(!mixed);
    }
}

/// A host that has applied everything and keeps the first record it is told of.
#[derive(Default)]
struct Keeper(Mutex<Vec<Record>>);

#[async_trait]
impl Host for Keeper {
    fn standing(&self) -> Standing {
        Standing { size: TreeSize(1), reflects: TreeSize(1), log_age: Some(Duration::ZERO) }
    }

    async fn committed(&self, commit: Commit) {
        self.0.lock().extend(commit.records);
    }

    fn grown(&self, _: TreeSize) {}

    fn heard(&self, _: Heard) {}

    fn missed(&self) {}

    async fn page(&self, _: Incarnation, _: u64, _: usize) -> Option<Page> {
        None
    }
}

/// Everything that Redis carries of a cluster, as anybody who may subscribe sees it: neither a session's id nor what is in it, nor a node's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_listens_at_redis_reads_nothing() {
    let namespace = Namespace::new().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let _listening = spy(&namespace, Arc::clone(&seen)).await;
    let member = async |n: u8, node: &str| {
        let host = Arc::new(Keeper::default());
        let config = ClusterConfig {
            node: node.to_owned(),
            program: "version 1.2.3".to_owned(),
            incarnation: life(n),
            keys: vec![ClusterKey::new(&[5; 32], "seen").unwrap()],
            beat: Duration::from_millis(50),
            lease: Duration::from_secs(2),
            copies: None,
        };
        let transport = namespace.join(life(n)).await;
        (Cluster::start(transport, config, Arc::clone(&host) as _).unwrap(), host)
    };
    let (one, _) = member(1, "node-of-alice").await;
    let (other, host) = member(2, "node-of-bob").await;
    let until = Instant::now() + PATIENCE;
    while !other.members().iter().any(|member| member.presence == Presence::Up) {
        assert!(Instant::now() < until, "{:?}", other.describe());
        sleep(Duration::from_millis(10)).await;
    }
    let session = SessionId::new(Uuid::from_u128(0x0123_4567_89ab_7cde_8f01_2345_6789_abcd));
    let value = br#"{"subject":"alice@example.org","cart":17}"#.to_vec();
    let record = Record { session, index: LeafIndex(7), value: value.clone() };
    while host.0.lock().is_empty() {
        let records = vec![record.clone()];
        one.publish(Commit { first: LeafIndex(7), end: TreeSize(8), view: None, records });
        assert!(Instant::now() < until, "{:?}", other.traffic());
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(host.0.lock()[0], record, "those who have the key read it");
    let seen = seen.lock();
    assert!(seen.iter().any(|message: &Vec<u8>| message.len() > value.len() + 100), "the spy saw the commit");
    let secrets = [
        session.uuid().as_bytes().to_vec(),
        session.to_string().into_bytes(),
        value,
        b"alice@example.org".to_vec(),
        b"node-of-".to_vec(),
        b"version 1.2.3".to_vec(),
    ];
    for message in &*seen {
        for secret in &secrets {
            assert!(!message.windows(secret.len()).any(|window| window == secret), "{message:?} shows {secret:?}");
        }
    }
}

/// Hears everything that is published in a namespace: names of channels, and messages.
async fn spy(namespace: &Namespace, seen: Arc<Mutex<Vec<Vec<u8>>>>) -> redis::aio::MultiplexedConnection {
    let on_push = move |push: PushInfo| -> Result<(), redis::aio::SendError> {
        if push.kind == PushKind::PMessage {
            let parts = push.data.into_iter();
            seen.lock().extend(parts.filter_map(|part| match part {
                Value::BulkString(bytes) => Some(bytes),
                _ => None,
            }));
        }
        Ok(())
    };
    let config = redis::AsyncConnectionConfig::new().set_push_sender(on_push);
    let client = redis::Client::open(format!("{}?protocol=resp3", namespace.url)).unwrap();
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
    connection.psubscribe(format!("*{}*", namespace.name)).await.unwrap();
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_of_ours_is_passed_over() {
    let namespace = Namespace::new().await;
    let (one, other) = (open(&namespace.url, &namespace.name, life(1)), open(&namespace.url, &namespace.name, life(2)));
    connected(&other).await;
    let client = redis::Client::open(namespace.url.as_str()).unwrap();
    let mut raw = client.get_multiplexed_async_connection().await.unwrap();
    for rubbish in [&b""[..], b"short", &[0xff; 15]] {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(format!("{{{}}}:cluster:all", namespace.name)).arg(rubbish);
        assert!(publish.query_async::<u32>(&mut raw).await.unwrap() > 0, "somebody heard it");
    }
    reaches(&one, &other, b"after rubbish").await;
}
