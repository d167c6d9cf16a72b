//! How long auditors wait: fills a log with entries, then times the first page of every filter, at several sizes of it.
//! `tests/bench/search` starts the databases and runs this; `search_bench URL SIZE…` does it on a log of your own, which must
//! be empty (`sqlite:FILE`, or `postgres://…` after `counterfoil migrate`).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "an experiment, not the service"
)]
#![allow(clippy::disallowed_methods, reason = "the time it takes is what it is about")]

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_log::{
    Appended, Claims, DataKeyClaim, DataKeyRow, LogIdentity, LogStore, Proposed, SealedEntry, Sequencer, SessionChange,
};
use audit_log_postgres::{PostgresConfig, PostgresLog};
use audit_log_sqlite::SqliteLog;
use audit_search::{Archive, EntryFilter, Order};
use merkle_log::leaf_hash;
use sealing::{DataKey, Keyring, LogKey};
use session_model::{
    Action, Actor, Attributes, Beginning, Client, EndReason, Ended, EntryId, Event, Format, KeyId, Kind, Leaf, Limits,
    MergePatch, Outcome, PreviousLeaf, Protocol, RealmName, Role, SealedPart, Seconds, SessionId, Timestamp,
    TokenDigest, Version,
};
use uuid::Uuid;

/// Entries appended at once.
const BATCH: u64 = 1_024;
/// Entries of a session: begun, changed three times, ended.
const LIFE: u64 = 5;
/// Sessions of a subject, and sessions that one address begins, on average.
const PER_SUBJECT: u64 = 10;
const PER_ADDRESS: u64 = 100;
/// One entry in this many is a refused request, of an actor and from an address that do nothing else.
const ODD: u64 = 97;
const ODD_ACTOR: &str = "key-odd";
const ODD_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

/// A microsecond of the log's time lies between two entries.
const EPOCH: i64 = 1_750_000_000_000_000;

/// A session that is under way: entries of many alternate.
#[derive(Clone, Default)]
struct Lane {
    session: u64,
    step: u64,
    previous: Option<PreviousLeaf>,
}

struct World {
    log: Arc<dyn LogStore>,
    keyring: Keyring,
    realm: RealmName,
    key: DataKey,
    lanes: Vec<Lane>,
    turn: usize,
    sessions: u64,
    entries: u64,
}

fn uuid(kind: u8, number: u64) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 | u128::from(kind) << 56 | u128::from(number))
}

fn address(session: u64) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 | u32::try_from(session / PER_ADDRESS % 0xff_ffff).unwrap()).into()
}

fn at(number: u64) -> Timestamp {
    Timestamp::from_micros(EPOCH + number as i64)
}

impl World {
    fn new(log: Arc<dyn LogStore>) -> Self {
        Self {
            log,
            keyring: Keyring::new(&[7; 32]).unwrap(),
            realm: "default".parse().unwrap(),
            key: DataKey::generate().unwrap(),
            lanes: vec![Lane { step: LIFE, ..Lane::default() }; 1_000],
            turn: 0,
            sessions: 0,
            entries: 0,
        }
    }

    fn next(&mut self) -> Proposed {
        let number = self.entries;
        self.entries += 1;
        if number.is_multiple_of(ODD) {
            // Refused, and about nobody: sealed by the key of the first subject, for want of a house.
            let claims = Claims::default();
            return self.sealed(number, Action::RequestRefused, None, KeyId::new(uuid(1, 0)), None, claims);
        }
        let lane = self.turn % self.lanes.len();
        self.turn += 1;
        if self.lanes[lane].step == LIFE {
            self.lanes[lane] = Lane { session: self.sessions, ..Lane::default() };
            self.sessions += 1;
        }
        let Lane { session, step, previous } = self.lanes[lane].clone();
        let (id, subject) = (SessionId::new(uuid(0, session)), session / PER_SUBJECT);
        let key = KeyId::new(uuid(1, subject));
        let event = event(session, step, at(number));
        let mut claims = Claims { session: Some((id, Version(step + 1))), ..Claims::default() };
        if step == 0 {
            claims.index = Some(SessionChange::Opened { realm: self.realm.clone(), key, kind: Kind::Web });
        } else if step + 1 == LIFE {
            claims.index = Some(SessionChange::Closed);
        }
        claims.data_key = Some(if step == 0 && session.is_multiple_of(PER_SUBJECT) {
            let lookup = self.keyring.lookup(&self.realm, &format!("subject-{subject}")).unwrap();
            let wrapped = self.keyring.wrap(key, &self.key).unwrap();
            DataKeyClaim::New(DataKeyRow { id: key, lookup: Some(lookup), wrapped, owner: None, held: false })
        } else {
            DataKeyClaim::Existing(key)
        });
        let action = Action::of(&event);
        let proposed = self.sealed(number, action, Some(event), key, previous, claims);
        let index = session_model::LeafIndex(number);
        let previous = Some(PreviousLeaf { hash: proposed.hash, index });
        self.lanes[lane] = Lane { session, step: step + 1, previous };
        proposed
    }

    fn sealed(
        &self,
        number: u64,
        action: Action,
        event: Option<Event>,
        key: KeyId,
        previous: Option<PreviousLeaf>,
        claims: Claims,
    ) -> Proposed {
        let outcome = if event.is_some() { Outcome::Success } else { Outcome::Refused };
        let (origin, actor) = match action {
            Action::RequestRefused => (ODD_ADDRESS, ODD_ACTOR.to_owned()),
            _ => (IpAddr::from([192, 0, 2, (number % 4) as u8]), format!("key-{}", number % 8)),
        };
        let origin = Some(origin);
        let part = SealedPart { event, origin, facts: Default::default() };
        let entry_id = EntryId::new(uuid(2, number));
        let sealed = self.key.seal(entry_id, &part.encode().unwrap()).unwrap();
        let leaf = Leaf {
            action,
            actor: Actor { id: actor, role: Role::Application },
            commitment: Some(sealed.commitment),
            data_key: Some(key),
            detail: Default::default(),
            entry_id,
            format: Format::V1,
            node: "node-1".into(),
            outcome,
            previous,
            protocol: Protocol::Rest,
            realm: self.realm.clone(),
            request_id: None,
            session_id: claims.session.map(|(id, _)| id),
            time: at(number),
            trace_id: Some(format!("{:032x}", number * 7)),
            version: claims.session.map(|(_, version)| version),
        };
        let bytes = leaf.encode().unwrap();
        let hash = leaf_hash(&bytes);
        Proposed { leaf, bytes, hash, sealed: Some(SealedEntry { key, bytes: sealed.bytes }), claims }
    }

    async fn fill(&mut self, size: u64) {
        let signer = Arc::new(LogKey::generate("evidence.bench").unwrap());
        let sequencer = Sequencer::new(LogIdentity { origin: "evidence.bench".into(), signers: vec![signer] });
        while self.entries < size {
            let count = BATCH.min(size - self.entries);
            let entries: Vec<Proposed> = (0..count).map(|_| self.next()).collect();
            let batch = sequencer.ordered(&self.log.head().await.unwrap(), entries).unwrap();
            self.log.prepare(batch.head.size(), at(self.entries)).await.unwrap();
            assert_eq!(self.log.append(&batch).await.unwrap(), Appended::Committed);
        }
    }
}

fn event(session: u64, step: u64, now: Timestamp) -> Event {
    match step {
        0 => Event::Created(Box::new(Beginning {
            subject: Some(format!("subject-{}", session / PER_SUBJECT).into()),
            kind: Kind::Web,
            attributes: Attributes::parse(r#"{"cart":[1,2,3],"locale":"de-CH"}"#, &Limits::default()).unwrap(),
            authentication: None,
            client: Some(Client { address: Some(address(session)), user_agent: Some("Mozilla/5.0".into()) }),
            idle_timeout: Seconds(900),
            absolute_timeout: Seconds(36_000),
            token: TokenDigest::new(leaf_hash(b"token")),
        })),
        1..4 => Event::Updated { patch: MergePatch::parse(r#"{"cart":[1,2,3,4]}"#, &Limits::default()).unwrap() },
        _ => Event::Ended(Ended { reason: EndReason::requested("logout").unwrap(), at: now }),
    }
}

/// Every documented filter, some together, and some that find nothing.
fn questions(world: &World) -> Vec<(&'static str, EntryFilter)> {
    let all = || EntryFilter::all(world.realm.clone());
    let middle = world.sessions / 2;
    let early = address(1);
    let busy = IpAddr::from([192, 0, 2, 1]);
    vec![
        ("none", all()),
        (
            "time: a thousandth in the middle",
            EntryFilter {
                from: Some(at(world.entries / 2)),
                to: Some(at(world.entries / 2 + world.entries / 1_000)),
                ..all()
            },
        ),
        ("session", EntryFilter { session: Some(SessionId::new(uuid(0, middle))), ..all() }),
        ("subject", EntryFilter { subject: Some(KeyId::new(uuid(1, middle / PER_SUBJECT))), ..all() }),
        ("actor", EntryFilter { actor: Some("key-3".into()), ..all() }),
        ("action", EntryFilter { action: Some(Action::SessionEnded), ..all() }),
        ("outcome", EntryFilter { outcome: Some(Outcome::Refused), ..all() }),
        ("address of a client", EntryFilter { address: Some(address(middle)), ..all() }),
        ("address of the first client", EntryFilter { address: Some(early), ..all() }),
        (
            "actor, action and outcome",
            EntryFilter {
                actor: Some("key-3".into()),
                action: Some(Action::SessionCreated),
                outcome: Some(Outcome::Success),
                ..all()
            },
        ),
        (
            "subject and action",
            EntryFilter {
                subject: Some(KeyId::new(uuid(1, middle / PER_SUBJECT))),
                action: Some(Action::SessionCreated),
                ..all()
            },
        ),
        ("nothing: action that never was", EntryFilter { action: Some(Action::ViewQuarantined), ..all() }),
        // Each of the two stands in every segment.
        (
            "nothing: two that are never together",
            EntryFilter { action: Some(Action::SessionCreated), outcome: Some(Outcome::Refused), ..all() },
        ),
        (
            "nothing: actor and action",
            EntryFilter { actor: Some(ODD_ACTOR.into()), action: Some(Action::SessionCreated), ..all() },
        ),
        (
            "nothing: actor and outcome",
            EntryFilter { actor: Some("key-3".into()), outcome: Some(Outcome::Refused), ..all() },
        ),
        (
            "nothing: address and action",
            EntryFilter { address: Some(ODD_ADDRESS), action: Some(Action::SessionCreated), ..all() },
        ),
        ("nothing: address and outcome", EntryFilter { address: Some(busy), outcome: Some(Outcome::Refused), ..all() }),
        ("nothing: address and actor", EntryFilter { address: Some(busy), actor: Some("key-3".into()), ..all() }),
        ("nothing: address that never was", EntryFilter { address: Some(IpAddr::from([203, 0, 113, 1])), ..all() }),
        ("nothing: time before the log", EntryFilter { to: Some(Timestamp::from_micros(EPOCH)), ..all() }),
    ]
}

/// Median and 99th percentile of the first page, entries read and all.
async fn measure(archive: &Archive, filter: &EntryFilter) -> (Duration, Duration, usize) {
    const TIMES: usize = 200;
    let mut took = Vec::with_capacity(TIMES);
    let mut found = 0;
    for _ in 0..TIMES {
        let began = Instant::now();
        let page = archive.search(filter, Order::NewestFirst(None), 50).await.unwrap();
        let opened = archive.open(&filter.realm, &page.indices).await.unwrap();
        took.push(began.elapsed());
        found = opened.len();
    }
    took.sort_unstable();
    (took[TIMES / 2], took[TIMES * 99 / 100], found)
}

async fn open(url: &str) -> Arc<dyn LogStore> {
    if let Some(file) = url.strip_prefix("sqlite:") {
        return Arc::new(SqliteLog::open(PathBuf::from(file).as_path()).await.unwrap());
    }
    let config = PostgresConfig {
        url: url.to_owned(),
        connections: 8,
        statement_timeout: Duration::from_secs(60),
        application_name: "search_bench".into(),
        require_standby: false,
    };
    Arc::new(PostgresLog::connect(config).await.unwrap())
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, sizes @ ..] = arguments.as_slice() else { panic!("search_bench URL SIZE…") };
    let log = open(url).await;
    assert_eq!(log.head().await.unwrap().size().0, 0, "the log is not empty");
    let mut world = World::new(Arc::clone(&log));
    let archive = Archive::new(Arc::clone(&log), world.keyring.clone(), Arc::default());
    println!("| entries | filter | found | p50 ms | p99 ms |\n|---:|---|---:|---:|---:|");
    for size in sizes {
        let size: u64 = size.parse().unwrap();
        let began = Instant::now();
        let more = size - world.entries;
        world.fill(size).await;
        let filled = began.elapsed();
        let began = Instant::now();
        archive.projector().catch_up(log.head().await.unwrap().size()).await.unwrap();
        let projected = began.elapsed();
        let rate = |took: Duration| more as f64 / took.as_secs_f64();
        eprintln!("{size}: filled at {:.0}/s, projected at {:.0}/s", rate(filled), rate(projected));
        for (name, filter) in questions(&world) {
            let (middle, slow, found) = measure(&archive, &filter).await;
            let ms = |took: Duration| took.as_secs_f64() * 1e3;
            println!("| {size} | {name} | {found} | {:.2} | {:.2} |", ms(middle), ms(slow));
        }
    }
}
