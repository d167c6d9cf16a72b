//! How many changes a second logs take, by arithmetic and by simulation: the figures that docs/scaling.md claims and that no machine at hand
//! can show. `cargo run --release -p audit-log --example scaling`
//!
//! What is simulated is the group commit as it is (`group_commit.rs`): each node takes what waits the moment its last append is answered, at
//! most a batch of it; an append holds the log's one head from beginning to end; whoever finds the head moved makes the batch anew on it and tries again,
//! behind others that came before. What goes in is measured (`tests/bench/shards`, on the machine that docs/performance.md names):
//!
//! * a commit takes a fixed time (the flush of the WAL above all) and a time for each entry, during which nobody else appends to the log;
//! * a batch costs its node time for each entry before it is sent, and again each time that it has to be made for another head;
//! * between node and database lies the time of a way there and back.
//!
//! Time is simulated and randomness comes from a seed, so that the same program always prints the same tables.

#![allow(clippy::indexing_slicing, reason = "nodes are numbered by this program itself")]

use std::collections::{BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, Write as _};

/// What was measured, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Costs {
    /// From a node to the database and back.
    travel: f64,
    /// Of a commit, while the head is locked: the fixed part of its work, and the flush of the WAL.
    commit: f64,
    /// Of each entry of a commit, while the head is locked.
    entry: f64,
    /// Of each entry of a batch that is made, or made anew, for the head as it is: hashing, and its share of the signature.
    make: f64,
}

/// Entries of a batch at most (`log.batch`).
const BATCH: usize = 512;

/// As measured: on one node a commit of n entries takes about 0.65 ms + 37 µs × n from one to the next.
const HERE: Costs = Costs { travel: 250.0, commit: 400.0, entry: 32.0, make: 5.0 };

/// The same database with a synchronous standby in another zone of the same region: a millisecond more for each commit.
const STANDBY: Costs = Costs { commit: 1_400.0, ..HERE };

/// Consensus across regions, 30 ms there and back, as a distributed database needs it for each commit.
const REGIONS: Costs = Costs { commit: 30_400.0, ..HERE };

/// A generator of random numbers: splitmix64 (public domain, S. Vigna). Seeded, because a simulation must be repeatable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Exponentially distributed, with this mean.
    fn wait(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.next()).ln()
    }
}

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    /// A change comes to a node.
    Change(usize),
    /// A node's statement comes to the database.
    Asks(usize),
    /// The database has committed a node's batch.
    Committed(usize),
    /// The node hears of it.
    Hears(usize),
    /// A node hears that the head has moved.
    Lost(usize),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct At(f64, Event);

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    /// The earliest first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0)
    }
}

/// A node's group commit.
#[derive(Debug, Default)]
struct Node {
    /// When each waiting change came.
    queue: VecDeque<f64>,
    /// What is being appended; empty if nothing is.
    batch: Vec<f64>,
    /// The head that the batch was made for.
    made_for: u64,
}

impl Node {
    /// Takes what waits, as much as a batch holds.
    fn begin(&mut self) {
        let size = self.queue.len().min(BATCH);
        self.batch = self.queue.drain(..size).collect();
    }

    /// How long it takes to make the batch for a head, and to send it.
    fn making(&self, costs: Costs) -> f64 {
        costs.travel / 2.0 + costs.make * self.batch.len() as f64
    }
}

/// What came of a simulation.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    rate: f64,
    batch: f64,
    /// Attempts that found the head moved, for each commit.
    lost: f64,
    p50: f64,
    p99: f64,
    /// Share of changes that came and were not recorded by the end, because the log was behind.
    behind: f64,
}

/// `nodes` share one log; together they are asked for `rate` changes a second, for `seconds`.
fn simulate(costs: Costs, nodes: usize, rate: f64, seconds: f64) -> Outcome {
    let mut random = Random(7);
    let mut events = BinaryHeap::new();
    let mut all: Vec<Node> = (0..nodes).map(|_| Node::default()).collect();
    // Statements that wait for the lock on the head row, in the order they came in (PostgreSQL grants it so).
    let (mut locked, mut waiting, mut head) = (false, VecDeque::new(), 0_u64);
    let between = 1e6 * nodes as f64 / rate;
    let end = seconds * 1e6;
    let (mut came, mut commits, mut lost, mut took) = (0_u64, 0_u64, 0_u64, Vec::new());
    for node in 0..nodes {
        events.push(At(random.wait(between), Event::Change(node)));
    }
    while let Some(At(now, event)) = events.pop().filter(|next| next.0 < end) {
        match event {
            Event::Change(node) => {
                came += 1;
                all[node].queue.push_back(now);
                events.push(At(now + random.wait(between), Event::Change(node)));
                if all[node].batch.is_empty() {
                    all[node].begin();
                    events.push(At(now + all[node].making(costs), Event::Asks(node)));
                }
            }
            Event::Asks(node) => waiting.push_back(node),
            Event::Committed(node) => {
                (locked, head) = (false, head + 1);
                commits += 1;
                events.push(At(now + costs.travel / 2.0, Event::Hears(node)));
            }
            Event::Hears(node) => {
                let answered = &mut all[node];
                took.extend(answered.batch.drain(..).map(|came| now - came));
                // It made this head itself, or another did since: then it will find that out.
                answered.made_for += 1;
                if !answered.queue.is_empty() {
                    answered.begin();
                    events.push(At(now + answered.making(costs), Event::Asks(node)));
                }
            }
            Event::Lost(node) => events.push(At(now + all[node].making(costs), Event::Asks(node))),
        }
        // Whoever knows the head as it is commits; who does not is told it, and goes away.
        while !locked && let Some(node) = waiting.pop_front() {
            let asking = &mut all[node];
            if asking.made_for == head {
                locked = true;
                let varies = 0.8 + 0.4 * random.next();
                let held = costs.commit * varies + costs.entry * asking.batch.len() as f64;
                events.push(At(now + held, Event::Committed(node)));
            } else {
                lost += 1;
                asking.made_for = head;
                events.push(At(now + costs.travel / 2.0, Event::Lost(node)));
            }
        }
    }
    took.sort_unstable_by(f64::total_cmp);
    let quantile = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN) / 1e3;
    let done = took.len() as f64;
    Outcome {
        rate: done / seconds,
        batch: done / commits.max(1) as f64,
        lost: lost as f64 / commits.max(1) as f64,
        p50: quantile(0.5),
        p99: quantile(0.99),
        behind: 1.0 - done / came.max(1) as f64,
    }
}

/// The most that a log takes of so many nodes without falling behind, and half of it: the rate to plan with.
fn most(costs: Costs, nodes: usize) -> f64 {
    let (mut low, mut high) = (0.0, 1e6 / costs.entry);
    for _ in 0..9 {
        let middle = (low + high) / 2.0;
        let outcome = simulate(costs, nodes, middle, 2.0);
        if outcome.behind < 0.02 && outcome.p99 < 1_000.0 { low = middle } else { high = middle }
    }
    low
}

fn contention(out: &mut String) -> std::fmt::Result {
    writeln!(out, "## One log, by the number of nodes that append to it\n")?;
    writeln!(
        out,
        "| commit | nodes | most changes/s | entries a commit | attempts lost a commit | p50, p99 ms at half of it |"
    )?;
    writeln!(out, "|---|--:|--:|--:|--:|--:|")?;
    for (name, costs) in
        [("as measured", HERE), ("with a standby, +1 ms", STANDBY), ("across regions, +30 ms", REGIONS)]
    {
        for nodes in [1, 2, 4, 8, 16] {
            let most = most(costs, nodes);
            let full = simulate(costs, nodes, most * 0.98, 3.0);
            let half = simulate(costs, nodes, most / 2.0, 3.0);
            writeln!(
                out,
                "| {name} | {nodes} | {most:.0} | {:.0} | {:.1} | {:.1}, {:.1} |",
                full.batch, full.lost, half.p50, half.p99
            )?;
        }
    }
    Ok(())
}

fn batches(out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n## What a busier log does: larger commits\n")?;
    writeln!(out, "| asked for, changes/s | entries a commit | p50 ms | p99 ms | not recorded in time |")?;
    writeln!(out, "|--:|--:|--:|--:|--:|")?;
    for rate in [100.0, 1_000.0, 5_000.0, 10_000.0, 20_000.0, 25_000.0, 30_000.0] {
        let Outcome { batch, p50, p99, behind, .. } = simulate(HERE, 2, rate, 5.0);
        writeln!(out, "| {rate:.0} | {batch:.1} | {p50:.2} | {p99:.2} | {:.0} % |", behind * 100.0)?;
    }
    Ok(())
}

/// CPU time of one create, microseconds, as `tests/bench/shards` measured it.
#[derive(Debug, Clone, Copy)]
struct Cpu {
    /// The node: request, sealing, sequencing, its view, and the index of searches.
    node: f64,
    /// PostgreSQL: the backend that appends, its other backends, the WAL writer.
    database: f64,
}

const CPU: Cpu = Cpu { node: 62.0, database: 47.0 };

/// What a node spends on a change of another node that it hears of: a frame, a state, the view (docs/performance.md).
const HEARD: f64 = 10.0;
/// Bytes of WAL that a create writes (docs/production.md).
const WAL: f64 = 1_300.0;
/// Of what each log and core can, what it is planned with: the rest is for peaks, checkpoints of PostgreSQL, a node that is away.
const PLANNED: f64 = 0.5;

fn plan(out: &mut String) -> std::fmt::Result {
    let of_one = most(HERE, 3) * PLANNED;
    writeln!(out, "\n## A million, by logs\n")?;
    writeln!(out, "A log of three nodes takes {of_one:.0} changes a second at half of its most.\n")?;
    writeln!(out, "| changes/s | logs | cores of databases | cores of nodes | WAL, MB/s | p50, p99 ms |")?;
    writeln!(out, "|--:|--:|--:|--:|--:|--:|")?;
    for wanted in [10_000.0, 50_000.0, 100_000.0, 300_000.0, 1_000_000.0] {
        let logs = (wanted / of_one).ceil();
        let each = wanted / logs;
        let Outcome { p50, p99, .. } = simulate(HERE, 3, each, 3.0);
        let database = wanted * CPU.database / 1e6 / PLANNED;
        // Three nodes serve a log, each hears what the other two commit: nodes are by the log, not all for all.
        let nodes = wanted * (CPU.node + 2.0 * HEARD) / 1e6 / PLANNED;
        writeln!(
            out,
            "| {wanted:.0} | {logs:.0} | {database:.0} | {nodes:.0} | {:.0} | {p50:.1}, {p99:.1} |",
            wanted * WAL / 1e6
        )?;
    }
    writeln!(out, "\n## The same, were every node to keep every log\n")?;
    writeln!(out, "| changes/s | nodes | cores of each node for what the others commit |")?;
    writeln!(out, "|--:|--:|--:|")?;
    for (wanted, nodes) in [(100_000.0, 8.0), (300_000.0, 24.0), (1_000_000.0, 80.0)] {
        writeln!(out, "| {wanted:.0} | {nodes:.0} | {:.1} |", wanted * (nodes - 1.0) / nodes * HEARD / 1e6)?;
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let mut out = String::new();
    let written = contention(&mut out).and_then(|()| batches(&mut out)).and_then(|()| plan(&mut out));
    written.map_err(io::Error::other)?;
    io::stdout().write_all(out.as_bytes())
}
