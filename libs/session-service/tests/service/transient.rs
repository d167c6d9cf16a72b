//! Sessions that no log stands behind: on one node, and on nodes that hold them themselves, over a network that loses, repeats, reorders
//! and cuts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cluster::in_process::Weather;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sealing::Keyring;
use session_model::{Digest, EndReason, Profile, SessionId, Version};
use session_service::{
    ByRealm, Happened, Idempotency, ServiceError, Sessions, TransientConfig, TransientSessions, Unavailable, Validation,
};
use tokio::time::sleep;
use transient_store::MemoryTransients;

use crate::cluster::{Node, Site};
use crate::rig::{caller, new, patch, policy, realm};

/// A node that holds transient sessions; its log is there for all else.
struct Holder {
    node: Node,
    store: Arc<MemoryTransients>,
    transient: Arc<TransientSessions>,
    sessions: Sessions,
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.transient.close();
    }
}

fn holder(site: &Site, n: u8, majority_of: Option<usize>) -> Holder {
    let node = site.node(n);
    let store = Arc::new(MemoryTransients::new(0));
    let config = TransientConfig {
        realms: HashMap::from([(realm(), Profile::Transient.policy())]),
        deadline: Duration::from_secs(5),
        majority_of,
    };
    let keyring = Keyring::new(&[7; 32]).unwrap();
    let clock = Arc::clone(node.service.clock());
    let transient = TransientSessions::start(Arc::clone(&store) as _, keyring, clock, config).unwrap();
    transient.join(Arc::clone(node.service.cluster().unwrap()), Arc::clone(&store));
    let sessions = Sessions::new(ByRealm::new(Arc::clone(&node.service), []), Some(Arc::clone(&transient)));
    Holder { node, store, transient, sessions }
}

impl Holder {
    async fn create(&self, subject: Option<&str>) -> Happened {
        self.sessions.create(&caller(), new(subject), None).await.unwrap()
    }

    async fn set(&self, id: SessionId, json: &str) -> Result<Version, ServiceError> {
        Ok(self.sessions.update(&caller(), id, patch(json), None).await?.session.version)
    }

    async fn end(&self, id: SessionId) -> Happened {
        self.sessions.end(&caller(), id, EndReason::requested("logout").unwrap()).await.unwrap()
    }

    /// What it shows: version, attributes, whether it has ended.
    async fn shows(&self, id: SessionId) -> (Version, String, bool) {
        let session = self.sessions.get(&caller(), id).await.unwrap();
        (session.version, session.attributes.as_json().to_owned(), session.ended().is_some())
    }

    async fn knows(&self, created: &Happened) -> bool {
        let token = created.token.as_ref().unwrap().expose();
        matches!(self.sessions.validate(&caller(), &token).await.unwrap(), Validation::Active(_))
    }
}

fn cut(site: &Site, one: &Holder, two: &Holder) {
    site.network.cut(one.node.life, two.node.life);
    site.network.cut(two.node.life, one.node.life);
}

const MOMENT: Duration = Duration::from_millis(500);
/// Long enough for sums to be compared twice by everybody, in turn.
const REPAIR: Duration = Duration::from_secs(12);

#[tokio::test(start_paused = true)]
async fn what_one_node_does_the_others_know_and_no_log_does() {
    let site = Site::new(1, Weather::FAIR, policy());
    let (one, two) = (holder(&site, 1, None), holder(&site, 2, None));
    sleep(MOMENT).await;
    let created = one.create(Some("ada")).await;
    assert!(created.place.is_none());
    sleep(MOMENT).await;
    assert!(two.knows(&created).await);
    let id = created.session.id;
    assert_eq!(two.set(id, r#"{"colour":"blue"}"#).await.unwrap(), Version(2));
    sleep(MOMENT).await;
    assert_eq!(one.shows(id).await, (Version(2), r#"{"colour":"blue"}"#.to_owned(), false));
    one.end(id).await;
    sleep(MOMENT).await;
    assert!(!two.knows(&created).await);
    assert!(matches!(two.set(id, "{}").await, Err(ServiceError::Ended(_))));
    assert_eq!(site.log.head().await.unwrap().size().0, 0, "the log has not one entry");
}

#[tokio::test(start_paused = true)]
async fn apart_from_one_another_the_higher_version_wins_and_a_tie_is_told_of() {
    let site = Site::new(2, Weather::FAIR, policy());
    let (one, two) = (holder(&site, 1, None), holder(&site, 2, None));
    sleep(MOMENT).await;
    let (higher, tied) = (one.create(None).await.session.id, one.create(None).await.session.id);
    sleep(MOMENT).await;
    cut(&site, &one, &two);
    one.set(higher, r#"{"by":"one"}"#).await.unwrap();
    one.set(higher, r#"{"by":"one again"}"#).await.unwrap();
    two.set(higher, r#"{"by":"two"}"#).await.unwrap();
    one.set(tied, r#"{"by":"one"}"#).await.unwrap();
    two.set(tied, r#"{"by":"two"}"#).await.unwrap();
    sleep(MOMENT).await;
    assert_eq!((one.transient.counts().lost, two.transient.counts().lost), (0, 0));
    site.network.heal();
    sleep(REPAIR).await;
    for node in [&one, &two] {
        let (version, attributes, _) = node.shows(higher).await;
        assert_eq!((version, attributes.contains("one again")), (Version(3), true), "{attributes}");
    }
    assert_eq!(one.shows(tied).await, two.shows(tied).await);
    assert!(one.transient.counts().lost > 0 && two.transient.counts().lost > 0, "each saw that a change was lost");
    assert_eq!(one.store.sums(), two.store.sums());
}

#[tokio::test(start_paused = true)]
async fn an_end_stands_whatever_was_changed_by_who_had_not_heard_of_it() {
    let site = Site::new(3, Weather::FAIR, policy());
    let (one, two) = (holder(&site, 1, None), holder(&site, 2, None));
    sleep(MOMENT).await;
    let created = one.create(Some("ada")).await;
    let id = created.session.id;
    sleep(MOMENT).await;
    cut(&site, &one, &two);
    one.end(id).await;
    for n in 0..5 {
        two.set(id, &format!(r#"{{"n":{n}}}"#)).await.unwrap();
    }
    site.network.heal();
    sleep(REPAIR).await;
    for node in [&one, &two] {
        assert!(node.shows(id).await.2);
        assert!(!node.knows(&created).await);
        assert_eq!(node.shows(id).await.1, "{}", "nothing personal is left of it");
    }
    assert!(two.transient.counts().lost > 0, "the changes that came too late are told of");
    assert_eq!(one.store.sums(), two.store.sums());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_late_is_sent_what_the_others_hold_before_it_serves() {
    let site = Site::new(4, Weather { loss: 0.2, ..Weather::FAIR }, policy());
    let (one, two) = (holder(&site, 1, None), holder(&site, 2, None));
    let mut made = Vec::new();
    for _ in 0..400 {
        made.push(one.create(None).await);
    }
    sleep(REPAIR).await;
    let late = holder(&site, 3, None);
    late.transient.settled().await;
    let mut known = 0;
    for created in &made {
        known += usize::from(late.knows(created).await);
    }
    // One frame in five is lost: what it held is sent again after the next comparisons.
    assert!(known > made.len() / 2, "{known}");
    sleep(REPAIR * 2).await;
    assert_eq!(late.store.sums(), one.store.sums());
    assert_eq!(late.store.sums(), two.store.sums());
}

#[tokio::test(start_paused = true)]
async fn a_node_of_a_minority_refuses_where_it_is_told_to() {
    let site = Site::new(5, Weather::FAIR, policy());
    let (one, two) = (holder(&site, 1, Some(3)), holder(&site, 2, Some(3)));
    let alone = one.sessions.create(&caller(), new(None), None).await;
    assert!(matches!(alone, Err(ServiceError::Unavailable(Unavailable::TooFewNodes))), "{alone:?}");
    sleep(MOMENT * 4).await;
    let created = one.create(None).await;
    cut(&site, &one, &two);
    sleep(Duration::from_secs(5)).await;
    let token = created.token.as_ref().unwrap().expose();
    let cut_off = one.sessions.validate(&caller(), &token).await;
    assert!(matches!(cut_off, Err(ServiceError::Unavailable(Unavailable::TooFewNodes))), "{cut_off:?}");
    assert_eq!(one.transient.counts().alone, 2);
    site.network.heal();
    sleep(Duration::from_secs(2)).await;
    assert!(one.knows(&created).await);
}

#[tokio::test(start_paused = true)]
async fn parallel_changes_on_one_node_lose_none_and_the_cap_holds() {
    let site = Site::new(6, Weather::FAIR, policy());
    let one = Arc::new(holder(&site, 1, None));
    let id = one.create(None).await.session.id;
    let changes: Vec<_> = (0..50)
        .map(|n| {
            let one = Arc::clone(&one);
            tokio::spawn(async move { one.set(id, &format!(r#"{{"k{n}":{n}}}"#)).await.unwrap() })
        })
        .collect();
    for change in changes {
        change.await.unwrap();
    }
    let (version, attributes, _) = one.shows(id).await;
    assert_eq!(version, Version(51));
    assert!((0..50).all(|n| attributes.contains(&format!("\"k{n}\":{n}"))), "{attributes}");
    let begins: Vec<_> = (0..20)
        .map(|_| {
            let one = Arc::clone(&one);
            tokio::spawn(async move { one.sessions.create(&caller(), new(Some("ada")), None).await.is_ok() })
        })
        .collect();
    let mut begun = 0;
    for begin in begins {
        begun += u32::from(begin.await.unwrap());
    }
    assert_eq!(begun, Profile::Transient.policy().sessions_per_subject);
}

#[tokio::test(start_paused = true)]
async fn the_same_request_twice_is_one_session_and_one_token() {
    let site = Site::new(7, Weather::FAIR, policy());
    let one = holder(&site, 1, None);
    let asked = |request| Some(Idempotency { key: Digest([1; 32]), request: Digest([request; 32]) });
    let first = one.sessions.create(&caller(), new(None), asked(1)).await.unwrap();
    one.set(first.session.id, r#"{"a":1}"#).await.unwrap();
    let again = one.sessions.create(&caller(), new(None), asked(1)).await.unwrap();
    assert!(again.replayed);
    assert_eq!((again.session.id, again.session.version), (first.session.id, Version(2)), "as it is now");
    assert_eq!(again.token.unwrap().expose(), first.token.unwrap().expose());
    let other = one.sessions.create(&caller(), new(None), asked(2)).await;
    assert!(matches!(other, Err(ServiceError::IdempotencyMismatch)), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn an_erasure_repeated_under_its_key_answers_the_same_and_ends_nobody_who_came_after_it() {
    let site = Site::new(8, Weather::FAIR, policy());
    let holder = holder(&site, 1, None);
    let created = holder.create(Some("alice")).await;
    let key = |request: u8| Some(Idempotency { key: Digest([1; 32]), request: Digest([request; 32]) });
    let erase = async |key| holder.sessions.erase_subject(&caller(), "alice", key, async |_| Ok(())).await;
    let first = erase(key(1)).await.unwrap();
    assert_eq!((first.key, first.ended, first.keys), (None, 1, 0));
    assert!(!holder.knows(&created).await);
    let newer = holder.create(Some("alice")).await;
    assert_eq!(erase(key(1)).await.unwrap(), first);
    assert!(holder.knows(&newer).await);
    assert!(matches!(erase(key(2)).await, Err(ServiceError::IdempotencyMismatch)));
    assert_eq!(erase(None).await.unwrap().ended, 1);
    assert!(matches!(erase(None).await, Err(ServiceError::NothingHeld)));
}

/// Three nodes in bad weather, cut now and then: whatever was asked of whom, once the weather is fair all hold the same, and what somebody was
/// told had ended has ended everywhere.
async fn simulate(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let weather = Weather {
        loss: random.random::<f64>() * 0.4,
        repeat: random.random::<f64>() * 0.3,
        delay: Duration::from_millis(random.random_range(0..80)),
    };
    let site = Site::new(seed, weather, policy());
    let mut nodes: Vec<Holder> = (1..=3).map(|n| holder(&site, n, None)).collect();
    let (mut known, mut ended) = (Vec::new(), Vec::new());
    for step in 0..150 {
        let node = &nodes[random.random_range(0..nodes.len())];
        match random.random_range(0..12) {
            0..3 => known.push(node.create(None).await.session.id),
            3..9 if !known.is_empty() => {
                let id = known[random.random_range(0..known.len())];
                match node.set(id, &format!(r#"{{"step":{step}}}"#)).await {
                    // It may not have heard of it.
                    Ok(_) | Err(ServiceError::NotFound) => {}
                    Err(ServiceError::Ended(_)) => assert!(ended.contains(&id), "seed {seed}: it ended by itself"),
                    Err(failure) => panic!("seed {seed}: {failure}"),
                }
            }
            9 if !known.is_empty() => {
                let id = known[random.random_range(0..known.len())];
                if node.sessions.end(&caller(), id, EndReason::requested("logout").unwrap()).await.is_ok() {
                    ended.push(id);
                }
            }
            10 => {
                let (a, b) = (random.random_range(0..3), random.random_range(0..3));
                site.network.cut(nodes[a].node.life, nodes[b].node.life);
            }
            11 if random.random_bool(0.7) => site.network.heal(),
            11 if random.random_bool(0.3) => {
                // It comes back with nothing. What it alone held is gone with it: so it is given time to tell.
                site.network.heal();
                site.network.weather(Weather::FAIR);
                sleep(REPAIR).await;
                site.network.weather(weather);
                let n = random.random_range(0..nodes.len());
                site.network.unplug(nodes[n].node.life);
                nodes[n] = holder(&site, n as u8 + 1, None);
            }
            _ => {}
        }
        sleep(Duration::from_millis(random.random_range(0..400))).await;
    }
    site.network.heal();
    site.network.weather(Weather::FAIR);
    sleep(REPAIR * 2).await;
    for node in &nodes {
        assert!(node.store.sums() == nodes[0].store.sums(), "seed {seed}: they hold different things");
        for id in &ended {
            assert!(node.shows(*id).await.2, "seed {seed}: {id} came back");
        }
        for id in &known {
            assert_eq!(node.shows(*id).await, nodes[0].shows(*id).await, "seed {seed}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_any_weather_all_come_to_hold_the_same_and_no_end_is_undone() {
    let seeds = std::env::var("SIMULATION_SEEDS").map_or(20, |seeds| seeds.parse().unwrap());
    let one = std::env::var("SIMULATION_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    for seed in one.map_or(0..seeds, |seed| seed..seed + 1) {
        simulate(seed).await;
    }
}
