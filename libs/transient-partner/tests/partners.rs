//! The store passes the suite, and nodes that hold their share each keep what was acknowledged whoever of them goes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cluster::in_process::{Network, Weather};
use cluster::{Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, Page, Standing};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sealing::ClusterKey;
use session_model::transient::{Stamp, Stamped};
use session_model::{Digest, RealmName, SessionId, Slot, TreeSize, Version};
use session_view::test_util::at;
use tokio::time::{Instant, sleep};
use transient_partner::{PartnerConfig, PartnerTransients};
use transient_store::conformance::{self, after, all, begun, end};
use transient_store::{Listing, MemoryTransients, Outcome, Put, StoreError, TransientStore};
use uuid::Uuid;

/// Keeps no log.
struct NoLog;

#[async_trait]
impl Host for NoLog {
    fn standing(&self) -> Standing {
        Standing { size: TreeSize(0), reflects: TreeSize(0), log_age: None }
    }
    async fn committed(&self, _: Commit) {}
    fn grown(&self, _: TreeSize) {}
    fn heard(&self, _: Heard) {}
    fn missed(&self) {}
    async fn page(&self, _: Incarnation, _: u64, _: usize) -> Option<Page> {
        None
    }
}

struct Node {
    cluster: Arc<Cluster>,
    store: Arc<PartnerTransients>,
    replica: Arc<MemoryTransients>,
    life: Incarnation,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.store.close();
    }
}

struct Site {
    network: Network,
    copies: u8,
    lives: AtomicU8,
}

impl Site {
    fn new(seed: u64, weather: Weather, copies: u8) -> Self {
        Self { network: Network::new(seed, weather), copies, lives: AtomicU8::new(1) }
    }

    /// The `n`th node, in a new life.
    fn node(&self, n: usize) -> Node {
        let life = Incarnation([self.lives.fetch_add(1, Ordering::Relaxed); 16]);
        let config = ClusterConfig {
            node: format!("node-{n}"),
            program: "test".into(),
            incarnation: life,
            keys: vec![ClusterKey::new(&[5; 32], "test").unwrap()],
            beat: Duration::from_millis(250),
            lease: Duration::from_secs(2),
            copies: Some(self.copies),
        };
        let cluster = Cluster::start(self.network.join(life), config, Arc::new(NoLog)).unwrap();
        let replica = Arc::new(MemoryTransients::new(0));
        let config = PartnerConfig { patience: Duration::from_secs(3), now: Arc::new(|| at(1)) };
        let store = PartnerTransients::new(Arc::clone(&replica), config);
        store.join(Arc::clone(&cluster));
        Node { cluster, store, replica, life }
    }

    /// So many, who have found one another.
    async fn nodes(&self, count: usize) -> Vec<Node> {
        let nodes: Vec<Node> = (1..=count).map(|n| self.node(n)).collect();
        settle(&nodes).await;
        nodes
    }

    /// A machine loses its power.
    fn kill(&self, node: Node) {
        self.network.unplug(node.life);
    }
}

/// Waits until each holds what it should, by the same placement.
async fn settle(nodes: &[Node]) {
    let began = Instant::now();
    loop {
        let settled = |node: &Node| {
            let placement = node.cluster.placement().unwrap();
            placement.members().len() == nodes.len() && node.store.is_settled()
        };
        if nodes.iter().all(settled) {
            return;
        }
        let members = nodes.iter().map(|node| node.cluster.placement().unwrap().members().len());
        assert!(began.elapsed() < Duration::from_secs(60), "not settled: {:?}", members.collect::<Vec<_>>());
        sleep(Duration::from_millis(50)).await;
    }
}

fn realm() -> RealmName {
    "baskets".parse().unwrap()
}

fn beginning(n: u64, acknowledged_by: u8) -> Put {
    Put { state: begun(&realm(), n, None), base: None, cap: None, answer: None, acknowledged_by }
}

fn changing(before: &Stamped, writer: u128, acknowledged_by: u8) -> Put {
    Put { state: after(before, 1, writer, |_| ()), base: Some(before.stamp), cap: None, answer: None, acknowledged_by }
}

impl Node {
    async fn put(&self, put: Put) -> Stamped {
        let state = put.state.clone();
        assert_eq!(self.store.put(put).await.unwrap(), Outcome::Done);
        state
    }

    async fn version(&self, id: SessionId) -> Option<Version> {
        self.store.get(id).await.unwrap().map(|state| state.session.version)
    }

    async fn holds(&self, id: SessionId) -> bool {
        self.replica.get(id).await.unwrap().is_some()
    }

    fn held(&self) -> usize {
        self.replica.status().held
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_alone_passes_the_suite_joined_or_not() {
    let site = Site::new(1, Weather::FAIR, 1);
    let joined = site.nodes(1).await;
    let config = PartnerConfig { patience: Duration::from_secs(3), now: Arc::new(|| at(1)) };
    let not_joined = PartnerTransients::new(Arc::new(MemoryTransients::new(0)), config);
    for (n, store) in [(0, &joined[0].store), (1, &not_joined)] {
        let name = |rule: &str| format!("{rule}-{n}").parse::<RealmName>().unwrap();
        conformance::one_of_many(&[&**store], &name("a")).await;
        conformance::ends_are_final(&**store, &name("b")).await;
        conformance::seats(&[&**store], &name("c"), &name("d")).await;
        conformance::lists(&**store, &name("e"), &name("f")).await;
        conformance::deadlines(&**store, &name("g")).await;
        conformance::answers(&**store, &name("h"), at(0), Digest([n; 32])).await;
    }
}

/// The rule of deadlines is each node's own: it ends what it owns.
#[tokio::test(start_paused = true)]
async fn three_nodes_together_pass_the_suite() {
    let weather = Weather { loss: 0.0, repeat: 0.2, delay: Duration::from_millis(5) };
    let site = Site::new(2, weather, 1);
    let nodes = site.nodes(3).await;
    let stores: Vec<&dyn TransientStore> = nodes.iter().map(|node| &*node.store as &dyn TransientStore).collect();
    let name = |rule: &str| rule.parse::<RealmName>().unwrap();
    conformance::one_of_many(&stores, &name("a")).await;
    conformance::ends_are_final(stores[1], &name("b")).await;
    conformance::seats(&stores[2..], &name("c"), &name("d")).await;
    conformance::lists(stores[0], &name("e"), &name("f")).await;
    conformance::answers(stores[1], &name("h"), at(0), Digest([1; 32])).await;
    // Each is due at one node.
    for n in 100..140 {
        nodes[n as usize % 3].put(beginning(n, 1)).await;
    }
    let mut due = Vec::new();
    for store in &stores {
        due.extend(store.due(at(1_801), 1_000).await.unwrap().iter().map(|s| s.id));
    }
    let different: HashSet<SessionId> = due.iter().copied().collect();
    assert_eq!(different.len(), due.len(), "each has one owner");
    assert!((100..140).all(|n| different.contains(&session_view::test_util::id(n))));
}

#[tokio::test(start_paused = true)]
async fn each_session_is_at_its_owner_and_partners_and_nowhere_else() {
    let site = Site::new(3, Weather::FAIR, 1);
    let nodes = site.nodes(4).await;
    let placement = nodes[0].cluster.placement().unwrap();
    for n in 0..400 {
        let state = nodes[n as usize % 4].put(beginning(n, 1)).await;
        let id = state.session.id;
        for node in &nodes {
            assert_eq!(node.holds(id).await, placement.is_held_by(Slot::of(id), node.life));
            assert_eq!(node.version(id).await, Some(Version(1)), "everybody finds it");
        }
    }
    assert_eq!(nodes.iter().map(Node::held).sum::<usize>(), 800);
    assert!(nodes.iter().all(|node| (100..300).contains(&node.held())), "each about half of all");
}

#[tokio::test(start_paused = true)]
async fn the_death_of_any_one_loses_nothing_that_a_partner_acknowledged() {
    for dies in 0..3 {
        let site = Site::new(4, Weather::FAIR, 1);
        let mut nodes = site.nodes(3).await;
        let mut last = HashMap::new();
        for n in 0..120 {
            let begun = nodes[n as usize % 3].put(beginning(n, 1)).await;
            let changed = nodes[(n as usize + 1) % 3].put(changing(&begun, n.into(), 1)).await;
            last.insert(changed.session.id, changed);
        }
        site.kill(nodes.remove(dies));
        // Not even before its silence is noticed: that is waited for.
        for (id, state) in &last {
            assert_eq!(nodes[0].version(*id).await, Some(state.session.version));
        }
        settle(&nodes).await;
        for (id, state) in &last {
            for node in &nodes {
                assert_eq!(node.version(*id).await, Some(state.session.version));
                assert!(node.holds(*id).await, "of two, both hold all");
            }
        }
        // And it goes on from there.
        for (n, state) in last.values().enumerate() {
            nodes[n % 2].put(changing(state, 900 + n as u128, 1)).await;
        }
        // It comes back with nothing, is sent its share, and the others drop theirs.
        nodes.push(site.node(dies + 1));
        settle(&nodes).await;
        sleep(Duration::from_secs(3)).await;
        let placement = nodes[0].cluster.placement().unwrap();
        for id in last.keys() {
            for node in &nodes {
                assert_eq!(node.version(*id).await, Some(Version(3)));
                assert_eq!(node.holds(*id).await, placement.is_held_by(Slot::of(*id), node.life));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_too_few_acknowledge_is_not_said_to_be_done() {
    let site = Site::new(5, Weather::FAIR, 1);
    let mut nodes = site.nodes(2).await;
    let put = beginning(1, 2);
    let refused = nodes[0].store.put(put.clone()).await;
    assert!(matches!(refused, Err(StoreError::TooFewNodes)), "{refused:?}");
    assert!(!nodes[0].holds(put.state.session.id).await && !nodes[1].holds(put.state.session.id).await);
    // One that the owner decides on while its partner is there, and does not answer any more.
    let placement = nodes[0].cluster.placement().unwrap();
    let n = (0..).find(|n| placement.is_owned_here(Slot::of(session_view::test_util::id(*n)))).unwrap();
    site.network.cut(nodes[0].life, nodes[1].life);
    let unknown = nodes[0].store.put(beginning(n, 1)).await;
    assert!(matches!(unknown, Err(StoreError::Unknown(_))), "{unknown:?}");
    assert_eq!(nodes[0].version(session_view::test_util::id(n)).await, Some(Version(1)), "it stands all the same");
    // Where none has to acknowledge nobody is waited for.
    let other = nodes[0].put(beginning(n + 5_000, 0)).await;
    assert!(nodes[0].holds(other.session.id).await);
    let alone = nodes.remove(0);
    drop(nodes);
    sleep(Duration::from_secs(3)).await;
    let refused = alone.store.put(beginning(7, 1)).await;
    assert!(matches!(refused, Err(StoreError::TooFewNodes)), "{refused:?}");
}

/// The network swallows all that the owner says: whether it stands is not known, and asking again does it once.
#[tokio::test(start_paused = true)]
async fn a_change_whose_answer_was_lost_is_made_once() {
    let site = Site::new(6, Weather::FAIR, 1);
    let nodes = site.nodes(3).await;
    let placement = nodes[0].cluster.placement().unwrap();
    let of_second = |n: &u64| placement.owner(Slot::of(session_view::test_util::id(*n))) == nodes[1].life;
    let n = (0..).find(of_second).unwrap();
    let begun = nodes[0].put(beginning(n, 1)).await;
    site.network.cut(nodes[1].life, nodes[0].life);
    let asks = nodes[0].store.put(changing(&begun, 7, 1));
    let heals = async {
        sleep(Duration::from_millis(400)).await;
        site.network.heal();
    };
    let (outcome, ()) = tokio::join!(asks, heals);
    assert_eq!(outcome.unwrap(), Outcome::Done);
    assert_eq!(nodes[2].version(begun.session.id).await, Some(Version(2)));
}

#[tokio::test(start_paused = true)]
async fn what_the_network_loses_of_copies_is_made_up_for() {
    let site = Site::new(7, Weather::FAIR, 1);
    let nodes = site.nodes(3).await;
    site.network.weather(Weather { loss: 0.3, repeat: 0.1, delay: Duration::from_millis(20) });
    let mut last = Vec::new();
    for n in 0..60 {
        // Nobody is waited for, so that copies get lost.
        match nodes[n as usize % 3].store.put(beginning(n, 0)).await {
            Ok(_) | Err(StoreError::Unknown(_) | StoreError::Unavailable(_)) => {
                last.push(session_view::test_util::id(n))
            }
            Err(failure) => panic!("{failure}"),
        }
    }
    site.network.weather(Weather::FAIR);
    sleep(Duration::from_secs(6)).await;
    settle(&nodes).await;
    let placement = nodes[0].cluster.placement().unwrap();
    let mut there = 0;
    for id in last {
        let known = nodes[0].version(id).await.is_some();
        there += usize::from(known);
        for node in &nodes {
            assert_eq!(node.holds(id).await, known && placement.is_held_by(Slot::of(id), node.life));
        }
    }
    assert!(there > 40, "{there}");
}

#[tokio::test(start_paused = true)]
async fn a_list_is_of_all_nodes_page_by_page() {
    let site = Site::new(8, Weather::FAIR, 1);
    site.network.max_frame(4_096);
    let nodes = site.nodes(3).await;
    for n in 0..150 {
        nodes[n as usize % 3].put(beginning(n, 1)).await;
    }
    let (mut listed, mut before) = (Vec::new(), None);
    loop {
        let page = nodes[1].store.list(&Listing { limit: 60, before, ..all(&realm()) }).await.unwrap();
        before = page.last().map(|session| session.id);
        listed.extend(page.into_iter().map(|session| session.id));
        if before.is_none() {
            break;
        }
    }
    let mut expected: Vec<SessionId> = (0..150).map(session_view::test_util::id).collect();
    expected.reverse();
    assert_eq!(listed, expected);
}

/// What clients know of a session.
struct Known {
    id: SessionId,
    /// The newest state that was acknowledged, or read.
    version: Version,
    ended: bool,
    /// Somebody asked for its end, and does not know what became of that.
    maybe_ended: bool,
}

/// Nodes in some weather; one dies now and then and comes back with nothing, and now and then the network is cut. Without cuts no read is ever
/// older than what was acknowledged or read before, whoever is asked. With them it may be, until they have healed; then nothing is.
async fn simulate(seed: u64, cuts: bool) -> (u64, u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let weather = Weather {
        loss: random.random::<f64>() * if cuts { 0.3 } else { 0.08 },
        repeat: random.random::<f64>() * 0.3,
        delay: Duration::from_millis(random.random_range(0..30)),
    };
    let (count, copies) = (random.random_range(2..5), random.random_range(1..3));
    let site = Site::new(seed, Weather::FAIR, copies);
    let mut nodes = site.nodes(count).await;
    site.network.weather(weather);
    let mut known: Vec<Known> = Vec::new();
    let (mut made, mut done, mut failed) = (0_u64, 0, 0);
    for _ in 0..140 {
        let node = &nodes[random.random_range(0..nodes.len())];
        match random.random_range(0..20) {
            0..4 => {
                made += 1;
                let put = beginning(made, 1);
                let id = put.state.session.id;
                match node.store.put(put).await {
                    Ok(outcome) => {
                        assert_eq!(outcome, Outcome::Done, "seed {seed}");
                        known.push(Known { id, version: Version(1), ended: false, maybe_ended: false });
                        done += 1;
                    }
                    Err(_) => failed += 1,
                }
            }
            which @ 4..16 if !known.is_empty() => {
                let session = random.random_range(0..known.len());
                let known = &mut known[session];
                let Ok(found) = node.store.get(known.id).await else {
                    failed += 1;
                    continue;
                };
                done += 1;
                if !cuts {
                    let shown = found.as_ref().map_or(Version::NONE, |state| state.session.version);
                    assert!(
                        shown >= known.version,
                        "seed {seed}: {} is at {shown}, was at {}",
                        known.id,
                        known.version
                    );
                    let open = found.as_ref().is_some_and(|state| state.session.ended().is_none());
                    assert!(!(open && known.ended), "seed {seed}: {} came back", known.id);
                }
                let Some(found) = found else { continue };
                if !cuts {
                    known.version = known.version.max(found.session.version);
                }
                if found.session.ended().is_some() {
                    assert!(known.maybe_ended, "seed {seed}: it ended by itself");
                    known.ended |= !cuts;
                    continue;
                }
                if which < 10 {
                    continue;
                }
                made += 1;
                let mut state = after(&found, 1, made.into(), |session| {
                    if which == 15 {
                        end(session)
                    }
                });
                state.stamp = Stamp { at: at(i64::try_from(made).unwrap()), writer: Uuid::from_u128(made.into()) };
                known.maybe_ended |= which == 15;
                let version = state.session.version;
                let put = Put { state, base: Some(found.stamp), cap: None, answer: None, acknowledged_by: 1 };
                match node.store.put(put).await {
                    Ok(Outcome::Done) => {
                        known.version = known.version.max(version);
                        known.ended |= which == 15;
                    }
                    // What a lost answer left behind, or somebody on the other side of a cut.
                    Ok(_) => {}
                    Err(_) => failed += 1,
                }
            }
            16 if cuts => {
                let (a, b) = (random.random_range(0..nodes.len()), random.random_range(0..nodes.len()));
                site.network.cut(nodes[a].life, nodes[b].life);
                if random.random_bool(0.5) {
                    site.network.cut(nodes[b].life, nodes[a].life);
                }
            }
            17 => site.network.heal(),
            18 if random.random_bool(0.4) => {
                // One at a time: the next when everybody holds again what it should.
                site.network.heal();
                site.network.weather(Weather::FAIR);
                settle(&nodes).await;
                sleep(Duration::from_secs(2)).await;
                settle(&nodes).await;
                site.network.weather(weather);
                let n = random.random_range(0..nodes.len());
                let name = nodes.remove(n).cluster.clone();
                site.network.unplug(name.incarnation());
                drop(name);
                if random.random_bool(0.5) {
                    sleep(Duration::from_millis(random.random_range(0..5_000))).await;
                }
                let new = site.node(10 + n);
                // As a process does before it listens.
                new.store.settled().await;
                nodes.push(new);
            }
            _ => {}
        }
        sleep(Duration::from_millis(random.random_range(0..300))).await;
    }
    site.network.heal();
    site.network.weather(Weather::FAIR);
    settle(&nodes).await;
    sleep(Duration::from_secs(6)).await;
    settle(&nodes).await;
    let placement = nodes[0].cluster.placement().unwrap();
    for known in &known {
        let mut shown = Vec::new();
        for node in &nodes {
            let state = node.store.get(known.id).await.unwrap();
            let state = state.unwrap_or_else(|| panic!("seed {seed}: {} is lost", known.id));
            assert!(!known.ended || state.session.ended().is_some(), "seed {seed}: {} came back", known.id);
            // An end may be of a lower version than the change that it beats.
            assert!(
                state.session.ended().is_some() || state.session.version >= known.version,
                "seed {seed}: {} is older than acknowledged",
                known.id
            );
            shown.push(state.stamp);
            let holds = placement.is_held_by(Slot::of(known.id), node.life);
            assert_eq!(node.holds(known.id).await, holds, "seed {seed}: {} at {}", known.id, node.life);
        }
        assert!(shown.iter().all(|stamp| *stamp == shown[0]), "seed {seed}: nodes show different things");
    }
    (done, failed)
}

fn run(cuts: bool) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(15),
    };
    let (mut done, mut failed) = (0, 0);
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (yes, no) = runtime.block_on(simulate(seed, cuts));
        done += yes;
        failed += no;
    }
    eprintln!("{done} requests answered, {failed} not");
    assert!(done > failed * 3, "{done} answered, {failed} not");
}

#[test]
fn in_any_weather_one_death_loses_nothing_that_was_acknowledged_and_no_read_goes_back() {
    run(false);
}

#[test]
fn cut_apart_and_healed_all_show_the_same_and_no_end_is_undone() {
    run(true);
}
