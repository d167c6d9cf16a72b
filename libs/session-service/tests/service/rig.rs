//! A service on memory adapters, with a clock to set.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use audit_log::conformance::check_log;
use audit_log::{GroupCommitConfig, LogIdentity, LogReader, LogStore, MemoryLog};
use merkle_log::{Receipt, Verifier, leaf_hash};
use sealing::{Keyring, LogKey};
use session_model::{
    Action, Actor, Attributes, Kind, Leaf, LeafIndex, Limits, MergePatch, Policy, Profile, Protocol, RealmName, Role,
    Seconds, SessionId, Timestamp,
};
use session_service::{
    Caller, Changed, Clock, Follower, FromLog, LogClock, NewSession, Parts, Reaper, ServiceConfig, SessionService,
};
use session_view::{Budget, MemoryView, SessionView};

/// Hands of a clock that tests move.
#[derive(Debug, Default)]
pub(crate) struct Hands {
    wall: AtomicI64,
    monotonic: AtomicI64,
}

impl Clock for Hands {
    fn wall(&self) -> Timestamp {
        Timestamp::from_micros(self.wall.load(Ordering::Relaxed))
    }
    fn monotonic_micros(&self) -> i64 {
        self.monotonic.load(Ordering::Relaxed)
    }
}

impl Hands {
    pub(crate) fn forward(&self, by: Seconds) {
        self.wall.fetch_add(by.as_micros(), Ordering::Relaxed);
        self.monotonic.fetch_add(by.as_micros(), Ordering::Relaxed);
    }

    pub(crate) fn set_wall_back(&self, by: Seconds) {
        self.wall.fetch_sub(by.as_micros(), Ordering::Relaxed);
    }
}

pub(crate) struct Rig {
    pub(crate) log: Arc<dyn LogStore>,
    pub(crate) view: Arc<dyn SessionView>,
    pub(crate) hands: Arc<Hands>,
    pub(crate) service: Arc<SessionService>,
    pub(crate) follower: Follower,
    pub(crate) key: Arc<LogKey>,
    policy: Policy,
}

pub(crate) fn policy() -> Policy {
    Profile::Default.policy()
}

pub(crate) fn realm() -> RealmName {
    "default".parse().unwrap()
}

pub(crate) fn caller() -> Caller {
    Caller {
        realm: realm(),
        actor: Actor { id: "app".into(), role: Role::Application },
        protocol: Protocol::Rest,
        origin: Some("192.0.2.1".parse().unwrap()),
        request_id: None,
        trace_id: None,
        min_index: None,
        detail: Default::default(),
    }
}

pub(crate) fn seeing(index: LeafIndex) -> Caller {
    Caller { min_index: Some(index), ..caller() }
}

pub(crate) fn new(subject: Option<&str>) -> NewSession {
    NewSession {
        subject: subject.map(Into::into),
        kind: Kind::Api,
        attributes: Attributes::parse(r#"{"colour":"red"}"#, &Limits::default()).unwrap(),
        authentication: None,
        client: None,
        idle_timeout: None,
        absolute_timeout: None,
    }
}

pub(crate) fn patch(json: &str) -> MergePatch {
    MergePatch::parse(json, &Limits::default()).unwrap()
}

/// How often a service has read a session from the log for this reason.
pub(crate) fn reads_from_log(service: &SessionService, wanted: FromLog) -> u64 {
    service.reads_from_log().find(|(why, _)| *why == wanted).unwrap().1
}

/// A service that does not follow its log yet.
pub(crate) fn service(
    node: &str,
    log: Arc<dyn LogStore>,
    view: Arc<dyn SessionView>,
    hands: &Arc<Hands>,
    key: &Arc<LogKey>,
    policy: Policy,
    max_staleness: Option<Duration>,
) -> Arc<SessionService> {
    let signers: Vec<Arc<dyn merkle_log::Signer + Send + Sync>> = vec![Arc::clone(key) as _];
    SessionService::start(
        Parts {
            log,
            view,
            keyring: Keyring::new(&[7; 32]).unwrap(),
            identity: LogIdentity { origin: "log.test".into(), signers },
            clock: Arc::new(LogClock::new(Arc::clone(hands) as _)),
        },
        ServiceConfig {
            node: node.into(),
            realms: HashMap::from([(realm(), policy), ("other".parse().unwrap(), policy)]),
            deadline: Duration::from_secs(5),
            max_staleness,
            group_commit: GroupCommitConfig {
                append_timeout: Duration::from_millis(500),
                ..GroupCommitConfig::default()
            },
        },
    )
}

fn start(
    log: Arc<dyn LogStore>,
    view: Arc<dyn SessionView>,
    hands: &Arc<Hands>,
    key: &Arc<LogKey>,
    policy: Policy,
) -> (Arc<SessionService>, Follower) {
    let service = service("node-1", log, view, hands, key, policy, None);
    let follower = Follower::start(Arc::clone(&service));
    (service, follower)
}

impl Rig {
    pub(crate) fn new(policy: Policy) -> Self {
        Self::on(Arc::new(MemoryLog::new()), Arc::new(MemoryView::new(Budget::default())), policy)
    }

    pub(crate) fn on(log: Arc<dyn LogStore>, view: Arc<dyn SessionView>, policy: Policy) -> Self {
        let hands = Arc::new(Hands::default());
        hands.wall.store(1_700_000_000_000_000, Ordering::Relaxed);
        let key = Arc::new(LogKey::generate("log.test").unwrap());
        let (service, follower) = start(Arc::clone(&log), Arc::clone(&view), &hands, &key, policy);
        Self { log, view, hands, service, follower, key, policy }
    }

    /// Another process on the same log, with a view of its own.
    pub(crate) fn beside(&self) -> Self {
        let view: Arc<dyn SessionView> = Arc::new(MemoryView::new(Budget::default()));
        let (service, follower) = start(Arc::clone(&self.log), Arc::clone(&view), &self.hands, &self.key, self.policy);
        let (log, hands, key) = (Arc::clone(&self.log), Arc::clone(&self.hands), Arc::clone(&self.key));
        Self { log, view, hands, service, follower, key, policy: self.policy }
    }

    pub(crate) async fn create(&self, subject: Option<&str>) -> Changed {
        self.service.create(&caller(), new(subject), None).await.unwrap()
    }

    /// Runs the reaper until nothing is due.
    pub(crate) async fn reap(&self) {
        let reaper = Reaper::start(Arc::clone(&self.service));
        tokio::time::sleep(Duration::from_secs(4)).await;
        reaper.close().await;
    }

    pub(crate) async fn leaves(&self) -> Vec<Leaf> {
        check_log(&*self.log).await.iter().map(|entry| Leaf::decode(&entry.leaf).unwrap()).collect()
    }

    pub(crate) async fn actions(&self, id: SessionId) -> Vec<Action> {
        self.leaves().await.iter().filter(|leaf| leaf.session_id == Some(id)).map(|leaf| leaf.action).collect()
    }

    /// Proves the receipt of an answered change, as its client would.
    pub(crate) async fn prove(&self, changed: &Changed) {
        let receipt = self.service.receipt(&realm(), changed.place.index).await.unwrap();
        let receipt = Receipt::parse(&receipt.to_string()).unwrap();
        let known: Vec<Box<dyn Verifier>> = vec![Box::new(self.key.verifier().clone())];
        receipt.verify(changed.place.hash, known).unwrap();
        let reader: &dyn LogReader = &*self.log;
        let stored = reader.entries(&[changed.place.index]).await.unwrap();
        assert_eq!(leaf_hash(&stored[0].as_ref().unwrap().leaf), changed.place.hash);
    }
}
