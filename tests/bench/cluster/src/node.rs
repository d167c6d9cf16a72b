//! A node: does what each line of its standard input says, and answers with a line.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use cluster::{Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, Page, Presence, Record, Standing, Transport};
use cluster_unicast::{UnicastConfig, UnicastTls, UnicastTransport};
use parking_lot::Mutex;
use sealing::ClusterKey;
use serde::{Deserialize, Serialize};
use session_model::{LeafIndex, SessionId, TreeSize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::Which;

/// Records of a commit, and bytes of a record.
const COMMIT: u64 = 64;
const RECORD: usize = 1_024;

/// Microseconds by the machine's clock, which all processes share.
pub(crate) fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

#[derive(clap::Args)]
pub(crate) struct Node {
    transport: Which,
    /// 1, 2 or 3.
    number: u8,
    /// Where it listens.
    #[arg(long)]
    listen: String,
    /// All nodes.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Where the certificates are.
    #[arg(long)]
    certificates: PathBuf,
}

/// What a receiver saw of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) records: u64,
    pub(crate) rate: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) silence_ms: f64,
    /// Milliseconds from the asked moment to the first record after it.
    pub(crate) resumed_ms: Option<f64>,
}

#[derive(Default)]
struct Seen {
    records: HashSet<u64>,
    /// When each commit came, and how old it was, in microseconds.
    commits: Vec<(u64, u64)>,
}

struct Keeper {
    seen: Mutex<Seen>,
    view: Mutex<BTreeMap<u64, Record>>,
}

#[async_trait]
impl Host for Keeper {
    fn standing(&self) -> Standing {
        let size = TreeSize(self.view.lock().len() as u64);
        Standing { size, reflects: size, log_age: Some(Duration::from_millis(1)) }
    }

    async fn committed(&self, commit: Commit) {
        let at = now();
        let mut seen = self.seen.lock();
        for record in &commit.records {
            seen.records.insert(record.index.0);
        }
        if let Some(made) = commit.records.first().and_then(|record| record.value.first_chunk::<8>()) {
            seen.commits.push((at, at.saturating_sub(u64::from_be_bytes(*made))));
        }
    }

    fn heard(&self, _: Heard) {}

    fn missed(&self) {}

    fn grown(&self, _: TreeSize) {}

    async fn page(&self, _: Incarnation, from: u64, bytes: usize) -> Option<Page> {
        let view = self.view.lock();
        let mut records = Vec::new();
        let mut taken = 0;
        for record in view.range(from..).map(|(_, record)| record) {
            if taken > bytes {
                break;
            }
            taken += record.value.len();
            records.push(record.clone());
        }
        let next = records.last().map(|last| last.index.0 + 1).filter(|next| view.contains_key(next));
        Some(Page { records, reflects: TreeSize(view.len() as u64), next })
    }
}

fn record(index: u64, made: u64) -> Record {
    let mut value = vec![0; RECORD];
    value[..8].copy_from_slice(&made.to_be_bytes());
    Record { session: SessionId::new(Uuid::from_u128(u128::from(index % 10_000))), index: LeafIndex(index), value }
}

impl Node {
    async fn transport(&self, incarnation: Incarnation) -> Arc<dyn Transport> {
        match self.transport {
            Which::Unicast | Which::UnicastPlain => {
                let mut config = UnicastConfig::new("bench", vec![self.listen.clone()]);
                config.peers = self.peers.clone();
                if self.transport == Which::UnicastPlain {
                    config.plaintext = true;
                } else {
                    let path = |end: &str| self.certificates.join(end);
                    config.tls = Some(UnicastTls {
                        ca: path("ca.pem"),
                        certificate: path("node.pem"),
                        key: path("node.key"),
                        crl: None,
                        allowed_names: Some(vec!["node".into()]),
                        verify_host: true,
                        watch: Duration::from_secs(5),
                    });
                }
                Arc::new(UnicastTransport::open(config, incarnation).await.unwrap())
            }
        }
    }

    pub(crate) async fn go(self) {
        let mut life = [self.number; 16];
        life[8..].copy_from_slice(&now().to_be_bytes());
        let host = Arc::new(Keeper { seen: Mutex::default(), view: Mutex::default() });
        let config = ClusterConfig {
            node: format!("n{}", self.number),
            program: "bench".into(),
            incarnation: Incarnation(life),
            keys: vec![ClusterKey::new(&[5; 32], "bench").unwrap()],
            beat: Duration::from_millis(250),
            lease: Duration::from_secs(2),
            copies: None,
        };
        let cluster = Cluster::start(self.transport(Incarnation(life)).await, config, Arc::clone(&host) as _).unwrap();
        println!("ready");
        let (said, mut lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        while let Some(line) = lines.recv().await {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            match words[0] {
                "up" => {
                    println!("{}", wait(&cluster, |up| up.len() as u64 == number(1)).await);
                }
                "gone" => {
                    println!("{}", wait(&cluster, |up| !up.iter().any(|node| node == words[1])).await);
                }
                "send" => {
                    let sent = send(&cluster, number(1), Duration::from_millis(number(2))).await;
                    println!("{} {}", sent, cluster.traffic().unsent);
                }
                "reset" => {
                    *host.seen.lock() = Seen::default();
                    println!("ok");
                }
                "report" => println!("{}", serde_json::to_string(&report(&host.seen.lock(), number(1))).unwrap()),
                "hold" => {
                    host.view.lock().extend((0..number(1)).map(|index| (index, record(index, 0))));
                    println!("ok");
                }
                "snapshot" => {
                    let began = Instant::now();
                    let mut copied = 0;
                    let reflects = cluster
                        .snapshot(|records| {
                            copied += records.len();
                            std::future::ready(())
                        })
                        .await;
                    println!("{} {copied} {}", began.elapsed().as_micros(), reflects.is_some());
                }
                other => panic!("{other:?} is no command"),
            }
        }
        cluster.leave().await;
    }
}

/// Waits until the nodes that are up are as asked; the moment.
async fn wait(cluster: &Cluster, is_so: impl Fn(&[String]) -> bool) -> u64 {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let members = cluster.members().into_iter();
        let up: Vec<_> = members.filter(|member| member.presence == Presence::Up).map(|member| member.node).collect();
        if is_so(&up) {
            return now();
        }
        assert!(Instant::now() < until, "still {up:?} are up; {:?}", cluster.describe());
        sleep(Duration::from_millis(1)).await;
    }
}

/// Publishes evenly, so many records a second; how many there were.
async fn send(cluster: &Cluster, rate: u64, lasts: Duration) -> u64 {
    let began = Instant::now();
    let mut index = 0;
    while began.elapsed() < lasts {
        let made = now();
        cluster.publish(Commit {
            first: LeafIndex(index),
            end: TreeSize(index + COMMIT),
            view: None,
            records: (index..index + COMMIT).map(|index| record(index, made)).collect(),
        });
        index += COMMIT;
        let due = began + Duration::from_micros(index * 1_000_000 / rate);
        if due > Instant::now() {
            sleep_until(due).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
    index
}

fn report(seen: &Seen, since: u64) -> Report {
    let ms = |us: u64| us as f64 / 1_000.0;
    let mut ages: Vec<u64> = seen.commits.iter().map(|(_, age)| *age).collect();
    ages.sort_unstable();
    let at = |share: f64| ages.get((ages.len() as f64 * share) as usize).copied().map_or(0.0, ms);
    let silence = seen.commits.windows(2).map(|two| two[1].0.saturating_sub(two[0].0)).max().unwrap_or(0);
    let (first, last) = (seen.commits.first().map_or(0, |it| it.0), seen.commits.last().map_or(0, |it| it.0));
    Report {
        records: seen.records.len() as u64,
        rate: seen.records.len() as f64 / (last.saturating_sub(first).max(1) as f64 / 1e6),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        silence_ms: ms(silence),
        resumed_ms: seen.commits.iter().find(|(came, _)| since > 0 && *came >= since).map(|(came, _)| ms(came - since)),
    }
}
