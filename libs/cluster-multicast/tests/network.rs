//! Three processes in network namespaces, with loss, a cut, and a process that is killed. As root; skipped loudly otherwise.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![allow(clippy::print_stdout, reason = "what a child process says")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cluster::{Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, Page, Presence, Record, Standing};
use cluster_multicast::{MulticastConfig, MulticastTransport};
use parking_lot::Mutex;
use sealing::ClusterKey;
use session_model::{LeafIndex, SessionId, TreeSize};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// In a child process: the name of the node that it is.
const NODE: &str = "CLUSTER_MULTICAST_TEST_NODE";
/// Commits that a node publishes a second, each of one record.
const RATE: u64 = 100;
const LEASE: Duration = Duration::from_secs(2);

/// Counts what it is told.
#[derive(Default)]
struct Counter(AtomicU64);

#[async_trait]
impl Host for Counter {
    fn standing(&self) -> Standing {
        Standing { size: TreeSize(1), reflects: TreeSize(1), log_age: None }
    }

    async fn committed(&self, commit: Commit) {
        self.0.fetch_add(commit.records.len() as u64, Ordering::Relaxed);
    }

    fn grown(&self, _: TreeSize) {}

    fn heard(&self, _: Heard) {}

    fn missed(&self) {}

    async fn page(&self, _: Incarnation, _: u64, _: usize) -> Option<Page> {
        None
    }
}

/// Not a test of its own: what a child process does. Publishes, and says each time whom it sees up and how many records it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_in_a_process_of_its_own() {
    let Ok(node) = std::env::var(NODE) else { return };
    let mut config = MulticastConfig::new("239.255.7.8:7200".parse().unwrap());
    config.interface = "veth0".parse().ok();
    let incarnation = Incarnation(Uuid::new_v4().into_bytes());
    let transport = Arc::new(MulticastTransport::open(config, incarnation).unwrap());
    let keys = vec![ClusterKey::new(&[3; 32], "network").unwrap()];
    let beat = Duration::from_millis(250);
    let program = "test".into();
    let config = ClusterConfig { node, program, incarnation, keys, beat, lease: LEASE, copies: None };
    let counter = Arc::new(Counter::default());
    let cluster = Cluster::start(transport, config, Arc::clone(&counter) as _).unwrap();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE as u32);
    for index in 0.. {
        ticks.tick().await;
        let session = SessionId::new(Uuid::from_u128(index.into()));
        let record = Record { session, index: LeafIndex(index), value: vec![7; 1_024] };
        cluster.publish(Commit {
            first: LeafIndex(index),
            end: TreeSize(index + 1),
            view: None,
            records: vec![record],
        });
        let up = cluster.members().into_iter().filter(|member| member.presence == Presence::Up);
        let up = up.map(|member| member.node).collect::<Vec<_>>().join(",");
        println!("\nnode up={up} records={}", counter.0.load(Ordering::Relaxed));
    }
}

/// What a node says of itself.
#[derive(Debug, Default, Clone)]
struct Said {
    up: String,
    records: u64,
}

struct Node {
    process: Child,
    said: Arc<Mutex<Said>>,
}

impl Node {
    fn start(prefix: &str, n: u8) -> Self {
        let mut process = Command::new("ip")
            .args(["netns", "exec", &format!("{prefix}{n}")])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "a_node_in_a_process_of_its_own", "--nocapture"])
            .env(NODE, format!("n{n}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(Said::default()));
        let (lines, writes) = (BufReader::new(process.stdout.take().unwrap()).lines(), Arc::clone(&said));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Some((up, records)) = line.strip_prefix("node up=").and_then(|line| line.split_once(" records="))
                else {
                    continue;
                };
                *writes.lock() = Said { up: up.to_owned(), records: records.parse().unwrap() };
            }
        });
        Self { process, said }
    }

    fn up(&self) -> String {
        self.said.lock().up.clone()
    }

    fn records(&self) -> u64 {
        self.said.lock().records
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _waited = self.process.wait();
    }
}

/// The three namespaces, removed in the end.
struct Network(String);

impl Network {
    fn run(&self, command: &str, argument: &str) -> bool {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/netns");
        let done = Command::new(script).args([command, &self.0, argument]).status();
        done.is_ok_and(|status| status.success())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.run("down", "");
    }
}

/// How long it took.
async fn until(what: impl Fn() -> bool, why: &str, within: Duration) -> Duration {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < within, "{why}");
        sleep(Duration::from_millis(1)).await;
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loss_a_cut_and_a_killed_process() {
    let network = Network(format!("cfm{}n", std::process::id()));
    if !network.run("up", "") {
        eprintln!("SKIPPED: network namespaces cannot be made here (not root, or no `ip`)");
        return;
    }
    let [a, b, c] = [1, 2, 3].map(|n| Node::start(&network.0, n));
    let minute = Duration::from_secs(60);
    let all = || a.up() == "n2,n3" && b.up() == "n1,n3" && c.up() == "n1,n2";
    until(all, "three found one another", minute).await;

    if network.run("loss", "0.05") {
        let before = a.records();
        let (began, mut down) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(6) {
            down += u32::from(!all());
            sleep(Duration::from_millis(50)).await;
        }
        let share = (a.records() - before) as f64 / (began.elapsed().as_secs_f64() * 2.0 * RATE as f64);
        // 1,200 records are expected; the rest is the machine's mood.
        assert!((0.85..0.99).contains(&share), "{share} of what was sent arrived where 0.05 was lost");
        assert_eq!(down, 0, "lost beats make no node look gone");
        assert!(network.run("loss", "0"));
    } else {
        eprintln!("SKIPPED: packets cannot be lost here (no iptables or ethtool)");
    }

    assert!(network.run("cut", "3"));
    let seen = until(|| a.up() == "n2" && b.up() == "n1" && c.up().is_empty(), "the cut is seen", minute).await;
    assert!(seen > LEASE / 2, "a cut is no death: {seen:?}");
    let (before, alone) = (a.records(), c.records());
    until(|| a.records() > before + RATE, "the others go on", minute).await;
    assert_eq!(c.records(), alone, "nothing gets through");
    assert!(network.run("heal", "3"));
    until(all, "they find one another again", minute).await;
    let healed = c.records();
    until(|| c.records() > healed + RATE, "records flow again", minute).await;

    drop(b);
    let seen = until(|| a.up() == "n3" && c.up() == "n1", "a killed process is seen", minute).await;
    eprintln!("a killed process was seen after {seen:?}");
    assert!(seen < LEASE / 2, "only by its silence, after {seen:?}");
}
