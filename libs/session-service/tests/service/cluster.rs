//! Nodes that tell each other what they commit, over a network that loses, repeats and reorders.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use audit_log::fault::FaultyLog;
use audit_log::{LogStore, MemoryLog};
use cluster::in_process::{Network, Weather};
use cluster::{Cluster, ClusterConfig, Incarnation, Presence};
use sealing::{ClusterKey, LogKey};
use session_model::{EndReason, Policy, Version};
use session_service::{
    Caller, Changed, Distrust, Follower, FromLog, ServiceError, SessionService, Unavailable, Validation,
};
use session_view::{Budget, MemoryView, SessionView, Viewed};
use tokio::time::sleep;

use crate::rig::{Hands, caller, new, patch, policy, reads_from_log, seeing, service};

pub(crate) const STALENESS: Duration = Duration::from_secs(2);

/// A node of a cluster, in this process.
pub(crate) struct Node {
    pub(crate) service: Arc<SessionService>,
    pub(crate) view: Arc<MemoryView>,
    pub(crate) log: Arc<FaultyLog>,
    pub(crate) life: Incarnation,
    pub(crate) follower: Follower,
}

/// What the nodes of a cluster have in common.
pub(crate) struct Site {
    pub(crate) network: Network,
    pub(crate) log: Arc<dyn LogStore>,
    hands: Arc<Hands>,
    key: Arc<LogKey>,
    policy: Policy,
    lives: AtomicU8,
    /// Nodes share sessions out, each to its owner and so many partners.
    pub(crate) copies: Option<u8>,
}

impl Site {
    pub(crate) fn new(seed: u64, weather: Weather, policy: Policy) -> Self {
        let hands = Arc::new(Hands::default());
        hands.forward(session_model::Seconds(1_700_000_000));
        Self {
            network: Network::new(seed, weather),
            log: Arc::new(MemoryLog::new()),
            hands,
            key: Arc::new(LogKey::generate("log.test").unwrap()),
            policy,
            lives: AtomicU8::new(0),
            copies: None,
        }
    }

    /// Sets the clocks of all nodes forward.
    pub(crate) fn forward(&self, by: session_model::Seconds) {
        self.hands.forward(by);
    }

    /// The `n`th node, in a new life.
    pub(crate) fn node(&self, n: u8) -> Node {
        let log = Arc::new(FaultyLog::new(Arc::clone(&self.log)));
        let view = Arc::new(MemoryView::new(Budget::default()));
        let service = service(
            &format!("node-{n}"),
            Arc::clone(&log) as _,
            Arc::clone(&view) as _,
            &self.hands,
            &self.key,
            self.policy,
            Some(STALENESS),
        );
        let life = Incarnation([self.lives.fetch_add(1, Ordering::Relaxed); 16]);
        let config = ClusterConfig {
            node: format!("node-{n}"),
            program: "test".into(),
            incarnation: life,
            keys: vec![ClusterKey::new(&[3; 32], "test").unwrap()],
            beat: Duration::from_millis(250),
            lease: Duration::from_secs(2),
            copies: self.copies,
        };
        service.join(Cluster::start(self.network.join(life), config, service.host()).unwrap());
        service.hold_by_placement();
        let follower = Follower::start(Arc::clone(&service));
        Node { service, view, log, life, follower }
    }
}

impl Node {
    pub(crate) async fn create(&self) -> Changed {
        self.service.create(&caller(), new(None), None).await.unwrap()
    }

    async fn is_active(&self, caller: &Caller, created: &Changed) -> Result<bool, ServiceError> {
        let token = created.token.as_ref().unwrap().expose();
        Ok(matches!(self.service.validate(caller, &token).await?, Validation::Active(_)))
    }

    /// What its own memory shows, without a look at the log.
    fn shows(&self, created: &Changed) -> Option<Viewed> {
        self.view.peek(created.session.id)
    }
}

fn logout() -> EndReason {
    EndReason::requested("logout").unwrap()
}

fn cluster(node: &Node) -> &Cluster {
    node.service.cluster().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_change_is_in_every_memory_long_before_anybody_looks_at_the_log() {
    let site = Site::new(1, Weather::FAIR, policy());
    let nodes = [site.node(1), site.node(2), site.node(3)];
    sleep(Duration::from_secs(1)).await;
    let [one, two, three] = &nodes;
    // Nobody but the writer has the log now: what the others show they were told.
    two.log.cut(true);
    three.log.cut(true);
    let created = one.create().await;
    let updated = one.service.update(&caller(), created.session.id, patch(r#"{"a":1}"#), None).await.unwrap();
    sleep(Duration::from_millis(5)).await;
    for other in [two, three] {
        let shown = other.shows(&created);
        assert!(matches!(shown, Some(Viewed::Active(ref session)) if session.version == Version(2)), "{shown:?}");
        let session = other.service.get(&seeing(updated.place.index), created.session.id).await.unwrap();
        assert_eq!(session.version, Version(2), "read your writes, on another node");
    }
    one.service.end(&caller(), created.session.id, logout()).await.unwrap();
    sleep(Duration::from_millis(5)).await;
    for other in [two, three] {
        assert!(matches!(other.shows(&created), Some(Viewed::Ended(_))));
        assert!(!other.is_active(&caller(), &created).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_network_loses_is_read_from_the_log() {
    let foul = Weather { loss: 0.4, repeat: 0.2, delay: Duration::from_millis(50) };
    let site = Site::new(2, foul, policy());
    let nodes = [site.node(1), site.node(2)];
    let mut all = Vec::new();
    for _ in 0..100 {
        all.push(nodes[0].create().await);
        sleep(Duration::from_millis(3)).await;
    }
    for created in all.iter().step_by(3) {
        nodes[1].service.end(&caller(), created.session.id, logout()).await.unwrap();
    }
    sleep(Duration::from_millis(600)).await;
    for (at, created) in all.iter().enumerate() {
        for node in &nodes {
            let shown = node.shows(created);
            assert_eq!(matches!(shown, Some(Viewed::Ended(_))), at % 3 == 0, "{at}: {shown:?}");
            assert!(shown.is_some());
        }
    }
}

/// A node that is cut off from the log but hears a peer that is not goes on; cut off from both it answers nothing that may be wrong.
#[tokio::test(start_paused = true)]
async fn a_node_that_hears_neither_log_nor_peers_fails_closed() {
    let site = Site::new(3, Weather::FAIR, policy());
    let nodes = [site.node(1), site.node(2)];
    let [one, two] = &nodes;
    let created = one.create().await;
    sleep(Duration::from_secs(3)).await;
    assert!(two.is_active(&caller(), &created).await.unwrap());

    two.log.cut(true);
    sleep(Duration::from_secs(30)).await;
    assert!(two.is_active(&caller(), &created).await.unwrap(), "its peer proves that nothing has changed");
    assert_eq!(two.service.distrust(), None);

    site.network.cut(one.life, two.life);
    sleep(STALENESS + Duration::from_millis(600)).await;
    one.service.end(&caller(), created.session.id, logout()).await.unwrap();
    let refused = two.is_active(&caller(), &created).await;
    assert!(matches!(refused, Err(ServiceError::Unavailable(Unavailable::LogRead))), "{refused:?}");
    let stale = FromLog::Distrusted(Distrust::Stale);
    assert_eq!((two.service.distrust(), reads_from_log(&two.service, stale)), (Some(Distrust::Stale), 1));
    assert!(two.service.staleness().is_some_and(|staleness| staleness > STALENESS));

    site.network.heal();
    sleep(Duration::from_secs(1)).await;
    // It missed the end while it was cut off, and still has no log to read it from.
    let refused = two.is_active(&caller(), &created).await;
    assert!(matches!(refused, Err(ServiceError::Unavailable(_))), "{refused:?}");
    two.log.cut(false);
    sleep(Duration::from_millis(600)).await;
    assert!(!two.is_active(&caller(), &created).await.unwrap());
    assert_eq!((two.service.distrust(), reads_from_log(&two.service, stale)), (None, 2));
}

/// The other direction alone: the node is not heard, so nobody's word to it can be known to be new.
#[tokio::test(start_paused = true)]
async fn a_one_way_cut_proves_nothing() {
    let site = Site::new(4, Weather::FAIR, policy());
    let nodes = [site.node(1), site.node(2)];
    let [one, two] = &nodes;
    let created = one.create().await;
    sleep(Duration::from_secs(3)).await;
    two.log.cut(true);
    site.network.cut(two.life, one.life);
    sleep(Duration::from_secs(5)).await;
    let refused = two.is_active(&caller(), &created).await;
    assert!(matches!(refused, Err(ServiceError::Unavailable(_))), "{refused:?}");
    let seen = cluster(two).members();
    assert_eq!(seen.first().map(|member| member.presence), Some(Presence::OneWay));
    assert_eq!(cluster(one).members().first().map(|member| member.presence), Some(Presence::Silent));
}

/// A node that has just started holds half of what happened: what it holds may have ended since.
#[tokio::test(start_paused = true)]
async fn a_view_that_was_never_whole_is_not_believed() {
    let site = Site::new(5, Weather::FAIR, policy());
    let one = site.node(1);
    let created = one.create().await;
    one.service.end(&caller(), created.session.id, logout()).await.unwrap();
    let late = site.node(2);
    late.log.cut(true);
    // As a rebuild leaves it halfway.
    let _applied = late.view.apply(&[Arc::clone(&created.session)]).await.unwrap();
    let refused = late.is_active(&caller(), &created).await;
    assert!(matches!(refused, Err(ServiceError::Unavailable(_))), "{refused:?}");
    assert_eq!((late.service.distrust(), late.service.staleness()), (Some(Distrust::Incomplete), None));
    assert_eq!(reads_from_log(&late.service, FromLog::Distrusted(Distrust::Incomplete)), 1);
}

/// A record of long ago comes again when even the tombstone of its session has been forgotten.
#[tokio::test(start_paused = true)]
async fn nothing_old_comes_back() {
    let site = Site::new(6, Weather::FAIR, policy());
    let nodes = [site.node(1), site.node(2)];
    let [one, two] = &nodes;
    sleep(Duration::from_secs(1)).await;
    let created = one.create().await;
    one.service.end(&caller(), created.session.id, logout()).await.unwrap();
    sleep(Duration::from_secs(120)).await;
    // Drops tombstones that were kept long enough.
    for _ in 0..1_500 {
        let other = one.create().await;
        one.service.end(&caller(), other.session.id, logout()).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert!(two.shows(&created).is_none(), "the tombstone has gone");
    let again = cluster::Record {
        session: created.session.id,
        index: created.place.index,
        value: serde_json::to_vec(&*created.session).unwrap(),
    };
    cluster(one).publish(cluster::Commit {
        first: created.place.index,
        end: created.place.tree_size,
        view: None,
        records: vec![again],
    });
    sleep(Duration::from_secs(1)).await;
    assert!(two.shows(&created).is_none());
    assert!(!two.is_active(&caller(), &created).await.unwrap());
}

#[tokio::test]
async fn who_comes_late_copies_the_view_of_a_peer() {
    let site = Site::new(7, Weather::FAIR, policy());
    let one = site.node(1);
    let mut some = Vec::new();
    for round in 0..210 {
        let creates = (0..100).map(|_| one.create());
        let created = futures::future::join_all(creates).await;
        if round % 30 == 0 {
            some.extend(created);
        }
    }
    one.service.end(&caller(), some[0].session.id, logout()).await.unwrap();
    // Larger than a frame: the late node has it all the same, or nobody would end it if this one went.
    site.network.max_frame(2_048);
    let large = patch(&format!(r#"{{"a":"{}"}}"#, "x".repeat(3_000)));
    one.service.update(&caller(), some[1].session.id, large, None).await.unwrap();
    let late = site.node(2);
    // It may see how long the log is, and nothing else of it, once it has found its peer.
    let reads = Arc::clone(&late.log);
    for _ in 0..500 {
        if late.view.status().held >= 20_999 {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    reads.cut(true);
    assert_eq!(late.follower.status().rebuild_entries, 0, "nothing was read from the log");
    for (at, created) in some.iter().enumerate() {
        let shown = late.shows(created);
        assert_eq!(matches!(shown, Some(Viewed::Active(_))), at != 0, "{at}: {shown:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_is_seen_to_go_and_takes_nothing_with_it() {
    let site = Site::new(8, Weather::FAIR, policy());
    let nodes = [site.node(1), site.node(2)];
    let [one, two] = &nodes;
    sleep(Duration::from_secs(1)).await;
    let created = two.create().await;
    two.service.close().await;
    two.follower.close().await;
    cluster(two).leave().await;
    sleep(Duration::from_millis(10)).await;
    assert_eq!(cluster(one).members().first().map(|member| member.presence), Some(Presence::Gone));
    assert!(one.is_active(&caller(), &created).await.unwrap());
    // The same name, in a new life.
    let again = site.node(2);
    sleep(Duration::from_secs(1)).await;
    assert!(again.is_active(&caller(), &created).await.unwrap());
    let up = cluster(one).members().into_iter().filter(|member| member.presence == Presence::Up).count();
    assert_eq!(up, 1);
}

/// What stands on the wire says nothing about a session.
#[tokio::test(start_paused = true)]
async fn the_wire_shows_nothing() {
    let site = Site::new(9, Weather::FAIR, policy());
    let nodes = [site.node(1), site.node(2)];
    site.network.listen();
    sleep(Duration::from_secs(1)).await;
    let created = nodes[0].service.create(&caller(), new(Some("ada@example.org")), None).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(nodes[1].shows(&created).is_some());
    let wire = site.network.heard();
    assert!(wire.len() > 8);
    let id = created.session.id.uuid();
    let text = id.to_string();
    let words: [&[u8]; 5] = [b"ada@", b"colour", b"node-1", id.as_bytes(), text.as_bytes()];
    for frame in &wire {
        for word in words {
            assert!(!frame.windows(word.len()).any(|window| window == word), "{word:?}");
        }
    }
}
