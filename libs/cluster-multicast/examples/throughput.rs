//! Measures the transport through the whole runtime: records of 1 KiB in commits of 64, sealed, sent, opened and handed to a host.
//!
//!     throughput receive group=239.255.7.7:7100 interface=veth0 node=b
//!     throughput send    group=… interface=… node=a receivers=2 records=300000 rate=60000
//!     throughput hold    group=… interface=… node=a records=10000         has a view that can be copied
//!     throughput late    group=… interface=… node=b                       copies it
//!     throughput watch   group=… interface=… node=c                       says when members come and go
//!
//! Times of records are by the machine's clock: all processes must be on one machine (in network namespaces, say).

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    reason = "a program to measure with"
)]
#![allow(clippy::disallowed_methods, reason = "processes compare times by the machine's clock")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use cluster::{Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, Page, Presence, Record, Standing};
use cluster_multicast::{MulticastConfig, MulticastTransport};
use sealing::ClusterKey;
use session_model::{LeafIndex, SessionId, TreeSize};
use std::sync::Mutex;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// Bytes of a record.
const RECORD: usize = 1_024;
/// Records of a commit.
const COMMIT: u64 = 64;

struct Options(HashMap<String, String>);

impl Options {
    fn text(&self, key: &str) -> &str {
        self.0.get(key).unwrap_or_else(|| panic!("{key}=… is missing"))
    }

    fn number(&self, key: &str, default: u64) -> u64 {
        self.0.get(key).map_or(default, |text| text.parse().expect("a number"))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

fn record(index: u64) -> Record {
    let mut value = vec![index as u8; RECORD];
    value.splice(..8, now().to_be_bytes());
    Record { session: SessionId::new(Uuid::from_u128(index.into())), index: LeafIndex(index), value }
}

/// What a node has taken in.
#[derive(Default)]
struct Taken {
    /// Which numbers came.
    had: Vec<bool>,
    repeated: u64,
    missed: u64,
    /// Nanoseconds from being published to being handed over.
    latencies: Vec<u64>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// How many there were, once the sender has said so.
    of: Option<u64>,
}

struct Node {
    taken: Mutex<Taken>,
    view: Vec<Record>,
    complete: AtomicBool,
}

#[async_trait]
impl Host for Node {
    fn standing(&self) -> Standing {
        let size = TreeSize(self.view.len() as u64);
        Standing { size, reflects: size, log_age: Some(Duration::ZERO) }
    }

    async fn committed(&self, commit: Commit) {
        let (at, now) = (Instant::now(), now());
        let mut taken = self.taken.lock().unwrap();
        for record in commit.records {
            if record.value.len() < RECORD {
                taken.of = Some(record.index.0);
                continue;
            }
            let index = record.index.0 as usize;
            if taken.had.len() <= index {
                taken.had.resize(index + 1, false);
            }
            if std::mem::replace(&mut taken.had[index], true) {
                taken.repeated += 1;
                continue;
            }
            let sent = record.value.first_chunk().map_or(0, |sent| u64::from_be_bytes(*sent));
            taken.latencies.push(now.saturating_sub(sent));
            taken.first.get_or_insert(at);
            taken.last = Some(at);
        }
    }

    fn grown(&self, _: TreeSize) {}

    fn heard(&self, _: Heard) {}

    fn missed(&self) {
        self.taken.lock().unwrap().missed += 1;
    }

    async fn page(&self, _: Incarnation, from: u64, bytes: usize) -> Option<Page> {
        if !self.complete.load(Ordering::Relaxed) {
            return None;
        }
        let (from, count) = (from as usize, (bytes / RECORD).max(1));
        let end = (from + count).min(self.view.len());
        let next = (end < self.view.len()).then_some(end as u64);
        Some(Page { records: self.view[from..end].to_vec(), reflects: TreeSize(self.view.len() as u64), next })
    }
}

async fn up(cluster: &Cluster, others: usize) {
    while cluster.members().iter().filter(|member| member.presence == Presence::Up).count() < others {
        sleep(Duration::from_millis(1)).await;
    }
}

fn commit(first: u64, records: Vec<Record>) -> Commit {
    Commit { first: LeafIndex(first), end: TreeSize(first + records.len() as u64), view: None, records }
}

async fn send(cluster: &Cluster, options: &Options) {
    up(cluster, options.number("receivers", 2) as usize).await;
    sleep(Duration::from_millis(500)).await;
    let (records, rate) = (options.number("records", 300_000), options.number("rate", 60_000));
    let (began, mut at) = (Instant::now(), 0);
    while at < records {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        if at > due {
            sleep(Duration::from_millis(1)).await;
            continue;
        }
        cluster.publish(commit(at, (at..at + COMMIT).map(record).collect()));
        at += COMMIT;
        tokio::task::yield_now().await;
    }
    let took = began.elapsed().as_secs_f64();
    sleep(Duration::from_millis(300)).await;
    for _ in 0..20 {
        let end = Record { session: SessionId::new(Uuid::nil()), index: LeafIndex(at), value: Vec::new() };
        cluster.publish(commit(at, vec![end]));
        sleep(Duration::from_millis(50)).await;
    }
    let traffic = cluster.traffic();
    println!("{}: published {at} records in {took:.2} s; {} frames not taken", options.text("node"), traffic.unsent);
}

async fn receive(cluster: &Cluster, node: &Node, options: &Options) {
    while node.taken.lock().unwrap().of.is_none() {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_millis(200)).await;
    let mut taken = node.taken.lock().unwrap();
    let (of, received) = (taken.of.unwrap_or(0), taken.latencies.len() as u64);
    let seconds = taken.first.zip(taken.last).map_or(0.0, |(first, last)| (last - first).as_secs_f64());
    taken.latencies.sort_unstable();
    let quantile = |share: f64| {
        let at = (taken.latencies.len() as f64 * share) as usize;
        taken.latencies.get(at).map_or(0.0, |nanos| *nanos as f64 / 1e6)
    };
    let lost = of - received;
    println!(
        "{}: {:.0} records/s; {received} of {of}, lost {lost} ({:.3} %), repeated {}; p50 {:.2} ms, p99 {:.2} ms; overrun {}, told of losses {}x",
        options.text("node"),
        received as f64 / seconds,
        lost as f64 * 100.0 / of as f64,
        taken.repeated,
        quantile(0.5),
        quantile(0.99),
        cluster.traffic().overrun,
        taken.missed,
    );
}

async fn late(cluster: &Cluster, options: &Options) {
    let began = Instant::now();
    up(cluster, 1).await;
    println!("{}: a peer was up after {:.0} ms", options.text("node"), began.elapsed().as_secs_f64() * 1e3);
    for _ in 0..options.number("times", 5) {
        let (began, mut records, mut bytes) = (Instant::now(), 0, 0);
        let copied = cluster
            .snapshot(|page| {
                records += page.len();
                bytes += page.iter().map(|record| record.value.len()).sum::<usize>();
                std::future::ready(())
            })
            .await;
        let ms = began.elapsed().as_secs_f64() * 1e3;
        let size = copied.map_or_else(|| "nothing whole".to_owned(), |size| format!("a view of {size}"));
        println!("{}: copied {size}, {records} records, {bytes} bytes, in {ms:.1} ms", options.text("node"));
    }
}

/// Says each change with the machine's clock, for ever.
async fn watch(cluster: &Cluster, options: &Options) {
    let mut was = Vec::new();
    loop {
        let is: Vec<_> = cluster.members().into_iter().map(|member| (member.node, member.presence.name())).collect();
        if is != was {
            println!("{} {}: {is:?}", now() / 1_000_000, options.text("node"));
            was = is;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let role = arguments.next().expect("send, receive, hold, late or watch");
    let pairs = arguments.map(|pair| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())));
    let options = Options(pairs.collect::<Option<_>>().expect("key=value"));
    let group = options.text("group").parse().expect("address:port of the group");
    let mut config = MulticastConfig::new(group);
    config.interface = options.0.get("interface").map(|name| name.parse().expect("a name"));
    config.receive_buffer = options.number("receive_buffer", config.receive_buffer as u64) as usize;
    config.rate = options.number("pace", config.rate);
    let incarnation = Incarnation(Uuid::new_v4().into_bytes());
    let transport = Arc::new(MulticastTransport::open(config, incarnation).expect("the group can be joined"));
    let held = if role == "hold" { options.number("records", 10_000) } else { 0 };
    let host = Arc::new(Node {
        taken: Mutex::default(),
        view: (0..held).map(record).collect(),
        complete: AtomicBool::new(role == "hold"),
    });
    let config = ClusterConfig {
        node: options.text("node").to_owned(),
        program: "throughput".to_owned(),
        incarnation,
        keys: vec![ClusterKey::new(&[9; 32], "throughput").expect("a key")],
        beat: Duration::from_millis(250),
        lease: Duration::from_secs(2),
        copies: None,
    };
    let cluster = Cluster::start(Arc::clone(&transport) as _, config, Arc::clone(&host) as _).expect("a cluster");
    match role.as_str() {
        "send" => send(&cluster, &options).await,
        "receive" => receive(&cluster, &host, &options).await,
        "late" => late(&cluster, &options).await,
        "hold" => std::future::pending().await,
        "watch" => watch(&cluster, &options).await,
        other => panic!("{other} is nothing to do"),
    }
    if options.number("describe", 0) > 0 {
        cluster.describe().iter().for_each(|line| println!("{}: {line}", options.text("node")));
    }
    cluster.leave().await;
}
