//! How many changes a second logs take, by arithmetic and by simulation: the figures that docs/scaling.md claims and that no machine at hand
//! can show. `cargo run --release -p audit-log --example scaling`
//!
//! What is simulated is the group commit as it is (`group_commit.rs`): each node takes what waits the moment its last append is answered, at
//! most a batch of it; an append holds the log's one head from beginning to end; whoever finds the head moved waits for his turn at it, behind others that came
//! before, and makes the batch of what waits by then while he has it. Beside it stands what nodes do on a schema that has no turns: make the batch anew and try again. Clients
//! wait for their answer before they ask again. What goes in is measured (`tests/bench/shards`, and docs/performance.md on a quiet machine):
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

/// As the group commit has it.
const WARY: u32 = 8;

/// One node on a quiet machine: creates of 1, 32 and 256 clients (docs/performance.md: 0.67 ms, 11,800/s, 20,400/s) fit 0.65 ms + 37 µs × n from one commit
/// of n entries to the next. Of that the database's backend, which works alone while the head is locked, has about 32 µs an entry.
const HERE: Costs = Costs { travel: 250.0, commit: 400.0, entry: 32.0, make: 5.0 };

/// The same database with a synchronous standby in another zone of the same region: a millisecond more for each commit.
const STANDBY: Costs = Costs { commit: 1_400.0, ..HERE };

/// Consensus across regions, 30 ms there and back, as a distributed database needs it for each commit.
const REGIONS: Costs = Costs { commit: 30_400.0, ..HERE };

/// What a node does whose batch was made for a head that has moved.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    /// Makes it anew and tries again.
    TryAgain,
    /// Waits for its turn at the head, and makes the batch while it has it; and so with the next ones, until some have found the head where it left it.
    Wait,
}

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
    /// A client asks a node for a change.
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
    /// The head as it last knew it.
    known: u64,
    /// How many batches more wait for their turn, unless the head has moved again.
    wary: u32,
    /// Whether the batch waits for its turn.
    waits: bool,
    done: u64,
}

impl Node {
    /// Takes what waits, as much as a batch holds.
    fn take(&mut self) {
        let size = self.queue.len().min(BATCH - self.batch.len());
        self.batch.extend(self.queue.drain(..size));
    }

    /// Begins a batch; answers how long it takes until it asks for something.
    fn begin(&mut self, costs: Costs, random: &mut Random) -> f64 {
        self.take();
        self.waits = self.wary > 0;
        if self.waits { random.wait(costs.travel / 2.0) } else { self.making(costs, random) }
    }

    /// How long it takes to make the batch for a head, and to send it.
    fn making(&self, costs: Costs, random: &mut Random) -> f64 {
        random.wait(costs.travel / 2.0) + costs.make * self.batch.len() as f64
    }
}

/// What came of a simulation.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// Changes a second, of all nodes and of the one with the fewest.
    rate: f64,
    least: f64,
    /// Entries of a commit.
    batch: f64,
    /// Attempts that found the head moved, for each commit.
    lost: f64,
    /// Of the time from a change's arrival to its answer, milliseconds.
    p50: f64,
    p99: f64,
}

/// How long a client takes from an answer to its next request, and the node to get that as far as the log, microseconds: an exponential mean.
const THINKS: f64 = 1_000.0;

/// `nodes` share one log for `seconds`; each has so many clients.
fn simulate(costs: Costs, then: Then, nodes: usize, clients: usize, seconds: f64) -> Outcome {
    let mut random = Random(7);
    let mut events = BinaryHeap::new();
    let mut all: Vec<Node> = (0..nodes).map(|_| Node::default()).collect();
    // Statements that wait for the lock on the head row, in the order they came in.
    let (mut locked, mut waiting, mut head) = (false, VecDeque::new(), 0_u64);
    let (mut commits, mut lost, mut took) = (0_u64, 0_u64, Vec::new());
    for client in 0..nodes * clients {
        events.push(At(random.wait(THINKS), Event::Change(client % nodes)));
    }
    while let Some(At(now, event)) = events.pop().filter(|next| next.0 < seconds * 1e6) {
        match event {
            Event::Change(node) => {
                all[node].queue.push_back(now);
                if all[node].batch.is_empty() {
                    events.push(At(now + all[node].begin(costs, &mut random), Event::Asks(node)));
                }
            }
            Event::Asks(node) => waiting.push_back(node),
            Event::Committed(node) => {
                (locked, head) = (false, head + 1);
                commits += 1;
                // It knows of its own commit; what another does meanwhile it finds out.
                all[node].known = head;
                events.push(At(now + random.wait(costs.travel / 2.0), Event::Hears(node)));
            }
            Event::Hears(node) => {
                let answered = std::mem::take(&mut all[node].batch);
                all[node].done += answered.len() as u64;
                for came in answered {
                    took.push(now - came);
                    events.push(At(now + random.wait(THINKS), Event::Change(node)));
                }
                if !all[node].queue.is_empty() {
                    events.push(At(now + all[node].begin(costs, &mut random), Event::Asks(node)));
                }
            }
            Event::Lost(node) => events.push(At(now + all[node].making(costs, &mut random), Event::Asks(node))),
        }
        // Whoever knows the head as it is commits; who does not is told it.
        while !locked && let Some(node) = waiting.pop_front() {
            let asking = &mut all[node];
            if asking.waits {
                asking.wary = if asking.known == head { asking.wary - 1 } else { WARY };
                asking.known = head;
                asking.take();
            }
            let held = costs.commit * (0.8 + 0.4 * random.next()) + costs.entry * asking.batch.len() as f64;
            if asking.waits {
                // The head to the node, the batch back, its answer, and the commit.
                let travels = random.wait(costs.travel / 2.0) + random.wait(costs.travel);
                let making = asking.making(costs, &mut random);
                locked = true;
                events.push(At(now + travels + making + held, Event::Committed(node)));
            } else if asking.known == head {
                locked = true;
                events.push(At(now + held, Event::Committed(node)));
            } else {
                lost += 1;
                asking.known = head;
                match then {
                    Then::Wait => {
                        (asking.waits, asking.wary) = (true, WARY);
                        events.push(At(now + random.wait(costs.travel), Event::Asks(node)));
                    }
                    Then::TryAgain => events.push(At(now + random.wait(costs.travel / 2.0), Event::Lost(node))),
                }
            }
        }
    }
    took.sort_unstable_by(f64::total_cmp);
    let quantile = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN) / 1e3;
    Outcome {
        rate: took.len() as f64 / seconds,
        least: all.iter().map(|node| node.done).min().unwrap_or_default() as f64 / seconds,
        batch: took.len() as f64 / commits.max(1) as f64,
        lost: lost as f64 / commits.max(1) as f64,
        p50: quantile(0.5),
        p99: quantile(0.99),
    }
}

fn batches(out: &mut String) -> std::fmt::Result {
    writeln!(out, "## One node, by the number of its clients\n")?;
    writeln!(out, "| clients | changes/s | entries a commit | p50 ms | p99 ms |")?;
    writeln!(out, "|--:|--:|--:|--:|--:|")?;
    for clients in [1, 8, 32, 128, 256, 512, 1_024] {
        let Outcome { rate, batch, p50, p99, .. } = simulate(HERE, Then::Wait, 1, clients, 5.0);
        writeln!(out, "| {clients} | {rate:.0} | {batch:.0} | {p50:.1} | {p99:.1} |")?;
    }
    Ok(())
}

fn contention(out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n## One log, by the number of nodes that append to it, 128 clients each\n")?;
    writeln!(
        out,
        "| commit | nodes | changes/s, of the least | entries a commit | p50, p99 ms | without turns: changes/s, of the least | attempts lost a commit | p50, p99 ms |"
    )?;
    writeln!(out, "|---|--:|--:|--:|--:|--:|--:|--:|")?;
    for (name, costs) in
        [("as measured", HERE), ("with a standby, +1 ms", STANDBY), ("across regions, +30 ms", REGIONS)]
    {
        for nodes in [1, 2, 4, 8, 16] {
            let Outcome { rate, least, batch, p50, p99, .. } = simulate(costs, Then::Wait, nodes, 128, 5.0);
            let before = simulate(costs, Then::TryAgain, nodes, 128, 5.0);
            writeln!(
                out,
                "| {name} | {nodes} | {rate:.0}, {least:.0} | {batch:.0} | {p50:.0}, {p99:.0} | {:.0}, {:.0} | {:.1} | {:.0}, {:.0} |",
                before.rate, before.least, before.lost, before.p50, before.p99
            )?;
        }
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

/// At about 55 entries a commit.
const CPU: Cpu = Cpu { node: 75.0, database: 45.0 };
/// What a node spends on a change of another node that it hears of, by estimate: a frame to open, a state to decode, the view.
const HEARD: f64 = 10.0;
/// Bytes of WAL that a create writes (docs/production.md).
const WAL: f64 = 1_300.0;
/// Of what each log and each core can, what it is planned with: the rest is for peaks, checkpoints of PostgreSQL, a node that is away.
const PLANNED: f64 = 0.5;

fn plan(out: &mut String) -> std::fmt::Result {
    let most = simulate(HERE, Then::Wait, 1, 1_024, 5.0).rate;
    let each = most * PLANNED;
    writeln!(out, "\n## A million, by logs\n")?;
    writeln!(
        out,
        "A log that one node appends to takes {most:.0} changes a second; it is planned with {each:.0}. One more node has the same log, and takes over.\n"
    )?;
    writeln!(
        out,
        "| changes/s | logs | cores of databases | cores of nodes that append | cores of nodes that stand by | WAL, MB/s |"
    )?;
    writeln!(out, "|--:|--:|--:|--:|--:|--:|")?;
    for wanted in [10_000.0, 50_000.0, 100_000.0, 300_000.0, 1_000_000.0] {
        let cores = |micros: f64| wanted * micros / 1e6 / PLANNED;
        writeln!(
            out,
            "| {wanted:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
            (wanted / each).ceil(),
            cores(CPU.database).ceil(),
            cores(CPU.node).ceil(),
            cores(HEARD).ceil(),
            wanted * WAL / 1e6
        )?;
    }
    writeln!(out, "\n## The same, were every node to keep every log\n")?;
    writeln!(out, "| changes/s | nodes | cores of each for what the others commit |")?;
    writeln!(out, "|--:|--:|--:|")?;
    for (wanted, nodes) in [(100_000.0, 8.0), (300_000.0, 24.0), (1_000_000.0, 80.0)] {
        writeln!(out, "| {wanted:.0} | {nodes:.0} | {:.1} |", wanted * (nodes - 1.0) / nodes * HEARD / 1e6)?;
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let mut out = String::new();
    let written = batches(&mut out).and_then(|()| contention(&mut out)).and_then(|()| plan(&mut out));
    written.map_err(io::Error::other)?;
    io::stdout().write_all(out.as_bytes())
}
