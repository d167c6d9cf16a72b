//! Thousands of small clusters, each in its own weather: random requests at random nodes, cuts between nodes and from the log, nodes that
//! crash and come back. What clients were told is checked against the log and against what they were told later.
//!
//! `SIMULATION_SEEDS=5000 cargo test -p session-service --test service simulation` runs many; `SIMULATION_SEED=n` runs one again.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use cluster::in_process::Weather;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use session_model::{EndReason, Leaf, LeafIndex, SessionId, Version};
use session_service::{Caller, ServiceError, Validation};
use tokio::time::{Instant, sleep};

use crate::cluster::{Node, STALENESS, Site};
use crate::rig::{caller, new, patch, policy};

/// What the clients know of a session.
struct Known {
    id: SessionId,
    token: String,
    /// The newest change that somebody was told of.
    version: Version,
    index: LeafIndex,
    /// When somebody was told that it ended.
    ended: Option<Instant>,
    /// Somebody asked for its end, and does not know what became of that.
    maybe_ended: bool,
}

struct World {
    seed: u64,
    random: SmallRng,
    site: Site,
    nodes: Vec<Option<Node>>,
    known: Vec<Known>,
    acknowledged: BTreeMap<u64, (SessionId, Version)>,
    answered: u64,
    unavailable: u64,
}

const NODES: usize = 3;
const STEPS: usize = 120;

impl World {
    fn new(seed: u64, copies: Option<u8>) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let weather = Weather {
            loss: random.random::<f64>() * 0.4,
            repeat: random.random::<f64>() * 0.3,
            delay: Duration::from_millis(random.random_range(0..80)),
        };
        let mut site = Site::new(seed, weather, policy());
        site.copies = copies;
        let nodes = (1..=NODES as u8).map(|n| Some(site.node(n))).collect();
        Self {
            seed,
            random,
            site,
            nodes,
            known: Vec::new(),
            acknowledged: BTreeMap::new(),
            answered: 0,
            unavailable: 0,
        }
    }

    fn node(&mut self) -> Option<usize> {
        let at = self.random.random_range(0..NODES);
        self.nodes[at].as_ref().map(|_| at)
    }

    fn told(&mut self, known: usize, index: LeafIndex, version: Version) {
        let seed = self.seed;
        let known = &mut self.known[known];
        let before = self.acknowledged.insert(index.0, (known.id, version));
        assert_eq!(before, None, "seed {seed}: two changes have one place");
        known.version = known.version.max(version);
        known.index = known.index.max(index);
    }

    /// Whether a failure is one that the weather excuses.
    fn excused(&mut self, failure: &ServiceError) -> bool {
        self.unavailable += 1;
        matches!(failure, ServiceError::Unavailable(_) | ServiceError::OutcomeUnknown)
    }

    async fn change(&mut self) {
        let Some(at) = self.node() else { return };
        let service = std::sync::Arc::clone(&self.nodes[at].as_ref().unwrap().service);
        let pick = self.random.random_range(0..10);
        if self.known.is_empty() || pick < 3 {
            match service.create(&caller(), new(None), None).await {
                Ok(created) => {
                    let (index, version) = (created.place.index, created.session.version);
                    let token = created.token.unwrap().expose().to_string();
                    let (id, maybe_ended) = (created.session.id, false);
                    self.known.push(Known { id, token, version, index, ended: None, maybe_ended });
                    self.told(self.known.len() - 1, index, version);
                    self.answered += 1;
                }
                Err(failure) => assert!(self.excused(&failure), "seed {}: {failure:?}", self.seed),
            }
            return;
        }
        let which = self.random.random_range(0..self.known.len());
        let id = self.known[which].id;
        let ends = pick == 9;
        let outcome = if ends {
            self.known[which].maybe_ended = true;
            service.end(&caller(), id, EndReason::requested("logout").unwrap()).await
        } else {
            let value = self.random.random_range(0..1_000);
            service.update(&caller(), id, patch(&format!(r#"{{"a":{value}}}"#)), None).await
        };
        match outcome {
            Ok(changed) if !changed.replayed => {
                assert!(self.known[which].ended.is_none(), "seed {}: an ended session was changed", self.seed);
                self.told(which, changed.place.index, changed.session.version);
                if ends {
                    self.known[which].ended = Some(Instant::now());
                }
                self.answered += 1;
            }
            Ok(_) | Err(ServiceError::Ended(_)) => {
                assert!(self.known[which].maybe_ended, "seed {}: it ended by itself", self.seed);
                self.known[which].ended.get_or_insert(Instant::now());
            }
            Err(failure) => assert!(self.excused(&failure), "seed {}: {failure:?}", self.seed),
        }
    }

    async fn read(&mut self) {
        let Some(at) = self.node() else { return };
        if self.known.is_empty() {
            return;
        }
        let which = self.random.random_range(0..self.known.len());
        let sees = self.random.random_bool(0.5);
        let service = std::sync::Arc::clone(&self.nodes[at].as_ref().unwrap().service);
        let known = &self.known[which];
        let asked = Instant::now();
        let caller = Caller { min_index: sees.then_some(known.index), ..caller() };
        let worth = service.validate(&caller, &known.token).await;
        let seed = self.seed;
        match worth {
            Ok(Validation::Active(session)) => {
                if sees {
                    assert!(session.version >= known.version, "seed {seed}: older than what the reader had seen");
                    assert!(known.ended.is_none(), "seed {seed}: ended, and read as active by one who knows");
                }
                let late = known.ended.is_some_and(|ended| asked.duration_since(ended) > STALENESS + SLACK);
                assert!(!late, "seed {seed}: an ended session was active beyond the bound");
                self.answered += 1;
            }
            Ok(Validation::Inactive(_)) => {
                assert!(known.maybe_ended, "seed {seed}: an open session was refused");
                self.answered += 1;
            }
            Err(failure) => assert!(self.excused(&failure), "seed {seed}: {failure:?}"),
        }
    }

    fn weather(&mut self) {
        let at = self.random.random_range(0..NODES);
        match self.random.random_range(0..6) {
            0 => {
                let lives: Vec<_> = self.nodes.iter().flatten().map(|node| node.life).collect();
                if lives.len() > 1 {
                    let from = self.random.random_range(0..lives.len());
                    let to = self.random.random_range(0..lives.len());
                    self.site.network.cut(lives[from], lives[to]);
                    if self.random.random_bool(0.5) {
                        self.site.network.cut(lives[to], lives[from]);
                    }
                }
            }
            1 => self.site.network.heal(),
            2 | 3 => {
                let cut = self.random.random_bool(0.5);
                if let Some(node) = &self.nodes[at] {
                    node.log.cut(cut);
                }
            }
            4 => {
                // It is gone in the middle of whatever it did, and comes back with nothing.
                if let Some(node) = self.nodes[at].take() {
                    node.log.cut(true);
                    self.site.network.unplug(node.life);
                }
            }
            _ => {
                if self.nodes[at].is_none() {
                    self.nodes[at] = Some(self.site.node(at as u8 + 1));
                }
            }
        }
    }

    /// When all is well again every node that is left shows what the log says, and everything that was acknowledged is in it.
    async fn settle(&mut self) {
        self.site.network.heal();
        for node in self.nodes.iter().flatten() {
            node.log.cut(false);
        }
        sleep(Duration::from_secs(8)).await;
        let seed = self.seed;
        let entries = audit_log::conformance::check_log(&*self.site.log).await;
        let leaves: Vec<Leaf> = entries.iter().map(|entry| Leaf::decode(&entry.leaf).unwrap()).collect();
        for (index, (id, version)) in &self.acknowledged {
            let leaf = &leaves[*index as usize];
            assert_eq!((leaf.session_id, leaf.version), (Some(*id), Some(*version)), "seed {seed}: entry {index}");
        }
        let mut newest: HashMap<SessionId, Version> = HashMap::new();
        for leaf in &leaves {
            if let (Some(id), Some(version)) = (leaf.session_id, leaf.version) {
                let before = newest.insert(id, version).unwrap_or(Version::NONE);
                assert_eq!(version, before.next(), "seed {seed}: versions are dense, and each has one winner");
            }
        }
        for node in self.nodes.iter().flatten() {
            for known in &self.known {
                let worth = node.service.validate(&caller(), &known.token).await.unwrap();
                match worth {
                    Validation::Active(session) => {
                        assert!(known.ended.is_none(), "seed {seed}: came back");
                        assert_eq!(Some(&session.version), newest.get(&known.id), "seed {seed}");
                    }
                    Validation::Inactive(_) => assert!(known.maybe_ended, "seed {seed}: was lost"),
                }
            }
        }
    }
}

/// Beyond the bound itself: a question to the log that is under way when it is cut.
const SLACK: Duration = Duration::from_millis(500);

async fn run(seed: u64, copies: Option<u8>) -> (u64, u64) {
    let mut world = World::new(seed, copies);
    for _ in 0..STEPS {
        match world.random.random_range(0..20) {
            0..8 => world.change().await,
            8..17 => world.read().await,
            _ => world.weather(),
        }
        let pause = world.random.random_range(0..400);
        sleep(Duration::from_millis(pause)).await;
    }
    world.settle().await;
    (world.answered, world.unavailable)
}

#[test]
fn random_clusters_in_random_weather_keep_every_promise() {
    simulate(None);
}

/// The same, where each session is held by its owner and one partner.
#[test]
fn and_so_do_those_that_share_sessions_out() {
    simulate(Some(1));
}

/// The same, where each is held by its owner alone.
#[test]
fn and_those_that_keep_no_copies() {
    simulate(Some(0));
}

fn simulate(copies: Option<u8>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(if copies.is_none() { 100 } else { 60 }),
    };
    let count = seeds.end - seeds.start;
    let (mut answered, mut unavailable) = (0, 0);
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (yes, no) = runtime.block_on(run(seed, copies));
        answered += yes;
        unavailable += no;
    }
    eprintln!("{count} clusters: {answered} requests answered, {unavailable} with 503");
    // In weather in which nothing is ever answered nothing could go wrong.
    assert!(answered > unavailable, "{answered} answered, {unavailable} not");
}
