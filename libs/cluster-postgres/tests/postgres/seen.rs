//! What others in the same database see of a cluster, and what they do not.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::conformance::Medium;
use cluster::{
    Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, Page, Presence, Received, Record, Standing, Transport,
};
use openssl::sha::sha256;
use parking_lot::Mutex;
use sealing::ClusterKey;
use session_model::{LeafIndex, SessionId, TreeSize};
use sqlx::postgres::PgListener;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::support::{Namespace, PATIENCE, connected, life, open, reaches, run};

/// The channel of a namespace: all nodes must agree on it, those of another version as well.
fn channel(namespace: &str) -> String {
    let digest = sha256(&[b"counterfoil cluster channel\0", namespace.as_bytes()].concat());
    let digits: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("cf_{digits}")
}

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
    while let Ok(received) = timeout(Duration::from_millis(300), theirs[1].receive()).await {
        let mixed = matches!(received.unwrap(), Received::Frame(frame) if frame.starts_with(b"ours"));
        assert!(!mixed);
    }
}

/// A host that keeps how long the log is said to be.
#[derive(Default)]
struct Keeper(Mutex<TreeSize>);

#[async_trait]
impl Host for Keeper {
    fn standing(&self) -> Standing {
        Standing { size: TreeSize(1), reflects: TreeSize(1), log_age: Some(Duration::ZERO) }
    }

    async fn committed(&self, _: Commit) {}

    fn grown(&self, size: TreeSize) {
        *self.0.lock() = size;
    }

    fn heard(&self, _: Heard) {}

    fn missed(&self) {}

    async fn page(&self, _: Incarnation, _: u64, _: usize) -> Option<Page> {
        None
    }
}

/// Everything that the server carries of a cluster, as anybody who may connect to the database sees it: neither a session's id nor what is in
/// it, nor a node's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_listens_in_the_database_reads_nothing() {
    let namespace = Namespace::new().await;
    let mut spy = PgListener::connect(&namespace.url).await.unwrap();
    spy.listen(&channel(&namespace.name)).await.unwrap();
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
    while *host.0.lock() != TreeSize(8) {
        let records = vec![Record { session, index: LeafIndex(7), value: value.clone() }];
        one.publish(Commit { first: LeafIndex(7), end: TreeSize(8), view: None, records });
        assert!(Instant::now() < until, "{:?}", other.traffic());
        sleep(Duration::from_millis(50)).await;
    }
    let mut seen: Vec<Vec<u8>> = Vec::new();
    while let Ok(notification) = timeout(Duration::from_millis(20), spy.recv()).await {
        let payload = notification.unwrap().payload().to_owned();
        seen.push(openssl::base64::decode_block(&pad(&payload)).unwrap());
        if seen.len() > 100 {
            break;
        }
    }
    assert!(seen.len() > 5, "the spy saw frames: {}", seen.len());
    let secrets = [
        session.uuid().as_bytes().to_vec(),
        session.to_string().into_bytes(),
        value,
        b"alice@example.org".to_vec(),
        b"node-of-".to_vec(),
        b"version 1.2.3".to_vec(),
    ];
    for frame in &seen {
        for secret in &secrets {
            assert!(!frame.windows(secret.len()).any(|window| window == secret), "{frame:?} shows {secret:?}");
        }
    }
}

/// Base64 as those want it who pad.
fn pad(text: &str) -> String {
    let missing = (4 - text.len() % 4) % 4;
    format!("{text}{}", "=".repeat(missing))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_frame_of_ours_is_passed_over_and_no_right_is_needed() {
    let namespace = Namespace::new().await;
    // A role that may do nothing but log in.
    let role = format!("{}_nobody", namespace.name.replace('-', "_"));
    run(&namespace.url, &format!("CREATE ROLE {role} LOGIN PASSWORD 'secret'")).await;
    let options: sqlx::postgres::PgConnectOptions = namespace.url.parse().unwrap();
    let url = sqlx::ConnectOptions::to_url_lossy(&options.username(&role).password("secret")).to_string();
    let (one, other) = (open(&url, &namespace.name, life(1)), open(&url, &namespace.name, life(2)));
    connected(&other).await;
    for rubbish in ["", "no base64!", "aaaaa"] {
        run(&namespace.url, &format!("NOTIFY {}, '{rubbish}'", channel(&namespace.name))).await;
    }
    reaches(&one, &other, b"after rubbish").await;
    for transport in [&one, &other] {
        transport.close().await;
    }
    run(&namespace.url, &format!("DROP ROLE {role}")).await;
}
