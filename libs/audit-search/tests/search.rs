//! Searches against a plain reading of the whole log.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a test fails by panicking"
)]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use audit_log::conformance::{sequencer, session};
use audit_log::{
    Appended, Claims, DataKeyClaim, DataKeyRow, LogStore, MemoryLog, Posting, Projected, Proposed, Recent, RecentEntry,
    SealedEntry, SessionChange, SubjectChange, Term,
};
use audit_search::{Archive, EntryFilter, Moment, Order, Personal};
use merkle_log::leaf_hash;
use proptest::prelude::*;
use sealing::{DataKey, Keyring};
use session_model::{
    Action, Actor, Attributes, Beginning, Client, EntryId, Event, Format, KeyId, Kind, Leaf, LeafIndex, Outcome,
    Protocol, RealmName, Role, SealedPart, Seconds, SessionId, Timestamp, TokenDigest, TreeSize, Version,
};
use uuid::Uuid;

fn realms() -> [RealmName; 2] {
    ["default".parse().unwrap(), "other".parse().unwrap()]
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, number])
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + second as i64 * 1_000_000)
}

/// An entry to make: small numbers that stand for names.
#[derive(Debug, Clone)]
struct Made {
    realm: usize,
    session: Option<u8>,
    makes_version: bool,
    subject: u8,
    actor: u8,
    action: Action,
    refused: bool,
    origin: Option<u8>,
    client: Option<u8>,
    wait: u64,
    sealed: bool,
    /// By this process, so that it is among the recent entries.
    here: bool,
}

fn made() -> impl Strategy<Value = Made> {
    let who = (0..2_usize, proptest::option::of(0..6_u8), any::<bool>(), 0..3_u8);
    let what = (0..3_u8, 0..3_usize, proptest::bool::weighted(0.2));
    let wher = (proptest::option::of(0..4_u8), proptest::option::of(0..4_u8), 0..3_u64, any::<bool>());
    (who, what, wher).prop_map(|(who, what, wher)| Made {
        realm: who.0,
        session: who.1,
        makes_version: who.2 && who.1.is_some(),
        subject: who.3,
        actor: what.0,
        action: [Action::SessionUpdated, Action::SubjectHeld, Action::SessionRead][what.1],
        refused: what.2,
        origin: wher.0,
        client: wher.1,
        wait: wher.2,
        sealed: true,
        here: wher.3,
    })
}

/// A log of made entries, and what each was made of.
struct World {
    log: Arc<dyn LogStore>,
    recent: Arc<Recent>,
    archive: Archive,
    keyring: Keyring,
    entries: Vec<(Made, Leaf)>,
    versions: std::collections::HashMap<SessionId, u64>,
    keys: std::collections::HashMap<(usize, u8), (KeyId, DataKey)>,
    /// The time of the newest entry.
    second: u64,
}

impl World {
    fn new() -> Self {
        let log: Arc<dyn LogStore> = Arc::new(MemoryLog::new());
        let keyring = Keyring::new(&[3; 32]).unwrap();
        let recent: Arc<Recent> = Arc::default();
        let archive = Archive::new(Arc::clone(&log), keyring.clone(), Arc::clone(&recent));
        let (versions, keys) = Default::default();
        Self { log, recent, archive, keyring, entries: Vec::new(), versions, keys, second: 0 }
    }

    /// Each realm has sessions and subjects of its own.
    fn session(made: &Made) -> Option<SessionId> {
        made.session.map(|number| session(u128::from(number) + 100 * made.realm as u128))
    }

    fn proposed(&mut self, made: &Made) -> Proposed {
        let number = self.entries.len() as u64;
        self.second += made.wait;
        let realm = realms()[made.realm].clone();
        let subject = format!("subject {}", made.subject);
        let lookup = self.keyring.lookup(&realm, &subject).unwrap();
        let id = KeyId::new(Uuid::from_u128(7_000 + u128::from(made.subject) + 100 * made.realm as u128));
        let known = self.keys.contains_key(&(made.realm, made.subject));
        let (id, key) =
            self.keys.entry((made.realm, made.subject)).or_insert_with(|| (id, DataKey::generate().unwrap())).clone();
        let wrapped = self.keyring.wrap(id, &key).unwrap();
        let row = DataKeyRow { id, lookup: Some(lookup), wrapped, owner: None, held: false };
        let event = made.client.map(|client| {
            Event::Created(Box::new(Beginning {
                subject: Some(subject.into()),
                kind: Kind::Web,
                attributes: Attributes::empty(),
                authentication: None,
                client: Some(Client { address: Some(address(client)), user_agent: None }),
                idle_timeout: Seconds(60),
                absolute_timeout: Seconds(600),
                token: TokenDigest::new(leaf_hash(b"token")),
            }))
        });
        let part = SealedPart { event, origin: made.origin.map(address), facts: Default::default() };
        let entry_id = EntryId::new(Uuid::from_u128(u128::from(number) + 1));
        let sealed = key.seal(entry_id, &part.encode().unwrap()).unwrap();
        let of = Self::session(made);
        let version = of.filter(|_| made.makes_version).map(|id| {
            let newest = self.versions.entry(id).or_default();
            *newest += 1;
            Version(*newest)
        });
        let sealed = made.sealed.then_some(sealed);
        let leaf = Leaf {
            action: made.action,
            actor: Actor { id: format!("actor-{}", made.actor), role: Role::Application },
            commitment: sealed.as_ref().map(|sealed| sealed.commitment),
            data_key: made.sealed.then_some(id),
            detail: Default::default(),
            entry_id,
            format: Format::V1,
            node: "node-1".into(),
            outcome: if made.refused { Outcome::Refused } else { Outcome::Success },
            previous: None,
            protocol: Protocol::Rest,
            realm: realm.clone(),
            request_id: None,
            session_id: of,
            time: at(self.second),
            trace_id: None,
            version,
        };
        let opened = SessionChange::Opened { realm, key: id, kind: Kind::Web };
        let claims = Claims {
            session: of.zip(version),
            data_key: Some(if known { DataKeyClaim::Existing(id) } else { DataKeyClaim::New(row) }),
            index: version.filter(|version| version.0 == 1).map(|_| opened),
            ..Claims::default()
        };
        let bytes = leaf.encode().unwrap();
        let hash = leaf_hash(&bytes);
        if made.here {
            let (index, leaf, addresses) = (LeafIndex(number), leaf.clone(), part.addresses());
            self.recent.hold([RecentEntry { index, leaf, addresses }]);
        }
        self.entries.push((made.clone(), leaf.clone()));
        Proposed {
            leaf,
            bytes,
            hash,
            sealed: sealed.map(|sealed| SealedEntry { key: id, bytes: sealed.bytes }),
            claims,
        }
    }

    async fn append(&mut self, all: &[Made]) {
        let entries: Vec<Proposed> = all.iter().map(|made| self.proposed(made)).collect();
        let batch = sequencer().ordered(&self.log.head().await.unwrap(), entries).unwrap();
        assert_eq!(self.log.append(&batch).await.unwrap(), Appended::Committed);
    }

    /// What a filter should find, by reading everything.
    fn expected(&self, filter: &EntryFilter, subject: Option<u8>) -> Vec<LeafIndex> {
        let realm = realms().iter().position(|realm| *realm == filter.realm).unwrap();
        // The index of sessions says whose a session is: its first version does.
        let owner = |id: SessionId| {
            let mut of = self.entries.iter().filter(|(_, leaf)| leaf.session_id == Some(id) && leaf.version.is_some());
            of.next().map(|(made, _)| made.subject)
        };
        let fits = |(made, leaf): &(Made, Leaf)| {
            made.realm == realm
                && filter.from.is_none_or(|from| leaf.time >= from)
                && filter.to.is_none_or(|to| leaf.time < to)
                && filter.session.is_none_or(|id| leaf.session_id == Some(id))
                && subject.is_none_or(|subject| match (leaf.version, leaf.session_id) {
                    (Some(_), Some(id)) => owner(id) == Some(subject),
                    _ => made.subject == subject,
                })
                && filter.actor.as_ref().is_none_or(|actor| leaf.actor.id == *actor)
                && filter.action.is_none_or(|action| leaf.action == action)
                && filter.outcome.is_none_or(|outcome| leaf.outcome == outcome)
                && filter.address.is_none_or(|wanted| {
                    made.origin.map(address) == Some(wanted) || made.client.map(address) == Some(wanted)
                })
        };
        let numbered = (0_u64..).map(LeafIndex).zip(&self.entries);
        numbered.filter(|(_, entry)| fits(entry)).map(|(index, _)| index).collect()
    }
}

#[derive(Debug, Clone)]
struct Asked {
    realm: usize,
    session: Option<u8>,
    subject: Option<u8>,
    actor: Option<u8>,
    action: Option<usize>,
    refused: Option<bool>,
    address: Option<u8>,
    from: Option<u64>,
    to: Option<u64>,
    limit: usize,
}

impl Asked {
    fn filter(&self, realm: &RealmName, subject: Option<KeyId>) -> EntryFilter {
        EntryFilter {
            session: self.session.map(|number| session(u128::from(number) + 100 * self.realm as u128)),
            subject,
            actor: self.actor.map(|number| format!("actor-{number}")),
            action: self
                .action
                .map(|at| [Action::SessionUpdated, Action::SubjectHeld, Action::SessionRead, Action::KeyRevoked][at]),
            outcome: self.refused.map(|refused| if refused { Outcome::Refused } else { Outcome::Success }),
            address: self.address.map(address),
            from: self.from.map(at),
            to: self.to.map(at),
            ..EntryFilter::all(realm.clone())
        }
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let option = |most: u8| proptest::option::weighted(0.3, 0..most);
    let who = (0..2_usize, option(7), option(4), option(4));
    let what = (proptest::option::weighted(0.3, 0..4_usize), proptest::option::weighted(0.3, any::<bool>()), option(5));
    let when = (proptest::option::weighted(0.3, 0..60_u64), proptest::option::weighted(0.3, 0..60_u64), 1..9_usize);
    (who, what, when).prop_map(|(who, what, when)| Asked {
        realm: who.0,
        session: who.1,
        subject: who.2,
        actor: who.3,
        action: what.0,
        refused: what.1,
        address: what.2,
        from: when.0,
        to: when.1,
        limit: when.2,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Every combination of filters, in both orders, page by page, on a log that grows between the questions, some of it projected by
    /// a program that keeps nothing of which terms meet.
    #[test]
    fn finds_what_a_reading_of_the_whole_log_finds(
        runs in proptest::collection::vec((proptest::collection::vec(made(), 1..40), proptest::bool::weighted(0.2)), 1..5),
        questions in proptest::collection::vec(asked(), 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            let mut all_know = true;
            for (at_run, (run, older)) in runs.iter().enumerate() {
                world.append(run).await;
                if *older {
                    world.project_as_older_program().await;
                    all_know = false;
                }
                for question in questions.iter().skip(at_run % 2) {
                    check(&world, question).await;
                }
                check_meetings(&world, all_know).await;
            }
        });
    }
}

/// Up to where the entries of a segment are in the sets of what meets: as `meeting.rs` keeps it, written down a second time.
const COVERED: Term = Term(*b"counterfoil-meet");

fn beside(holder: Term) -> Term {
    Term(holder.0.map(|byte| byte ^ 0xa5))
}

fn mark(terms: &[Term]) -> [u8; 4] {
    let mut mark = [0; 4];
    for term in terms {
        for (byte, other) in mark.iter_mut().zip(term.0) {
            *byte ^= other;
        }
    }
    mark
}

fn term(kind: &str, realm: &RealmName, value: &str) -> Term {
    let digest = sealing::sha256(format!("{kind}\0{realm}\0{value}").as_bytes());
    Term(*digest.0.first_chunk().unwrap())
}

impl World {
    fn address_term(&self, realm: &RealmName, number: u8) -> Term {
        Term(*self.keyring.address(realm, address(number)).unwrap().0.first_chunk().unwrap())
    }

    /// Everything that can be kept of what terms meet, in the first two segments.
    async fn kept_of_meetings(&self) -> Vec<Posting> {
        let mut terms = vec![COVERED];
        for realm in realms() {
            terms.push(beside(term("realm", &realm, "")));
            terms.extend((0..4).map(|actor| beside(term("actor", &realm, &format!("actor-{actor}")))));
            terms.extend((0..5).map(|number| beside(self.address_term(&realm, number))));
        }
        self.log.postings(&terms, 0..=1).await.unwrap()
    }

    /// Puts that in the place of what is kept now.
    async fn keep_of_meetings(&self, wanted: &[Posting]) {
        let mut rows = self.kept_of_meetings().await;
        for row in &mut rows {
            row.offsets.clear();
        }
        rows.retain(|row| !wanted.iter().any(|keep| (keep.term, keep.segment) == (row.term, row.segment)));
        rows.extend_from_slice(wanted);
        let now = self.log.projection().await.unwrap();
        assert_eq!(self.log.project(now, now.size, &rows).await.unwrap(), Projected::Yes);
    }

    /// What is missing is put into the postings, and nothing beside them: as the program did that knew nothing of meetings.
    async fn project_as_older_program(&self) {
        let before = self.kept_of_meetings().await;
        self.archive.projector().catch_up(self.log.head().await.unwrap().size()).await.unwrap();
        self.keep_of_meetings(&before).await;
    }
}

/// Of every combination of the filters that are terms, what is kept beside the holder says whether they meet: exactly so if `all_know`, and
/// never that they do not where they do.
async fn check_meetings(world: &World, all_know: bool) {
    world.archive.projector().catch_up(world.log.head().await.unwrap().size()).await.unwrap();
    for number in 0..2 * COMBINATIONS {
        check_meeting(world, &combination(number / COMBINATIONS, number % COMBINATIONS), all_know).await;
    }
}

async fn check_meeting(world: &World, asked: &Asked, all_know: bool) {
    let realm = &realms()[asked.realm];
    let filter = asked.filter(realm, None);
    let address = asked.address.map(|number| world.address_term(realm, number));
    let actor = filter.actor.as_ref().map(|id| term("actor", realm, id));
    let action = filter.action.map(|action| term("action", realm, action.name()));
    let outcome = filter.outcome.map(|outcome| term("outcome", realm, outcome.name()));
    let (holder, others) = match (address, actor) {
        (Some(address), actor) => (address, [actor, action, outcome]),
        (None, Some(actor)) => (actor, [None, action, outcome]),
        (None, None) => (term("realm", realm, ""), [None, action, outcome]),
    };
    let others: Vec<Term> = others.into_iter().flatten().collect();
    if others.is_empty() {
        return;
    }
    let meet = !world.expected(&filter, None).is_empty();
    let rows = world.log.postings(&[COVERED, beside(holder)], 0..=0).await.unwrap();
    let covered = rows.iter().find(|row| row.term == COVERED).map(|row| row.offsets.clone());
    let whole = covered == Some(u32::try_from(world.entries.len()).unwrap().to_be_bytes().to_vec());
    assert!(whole || !all_know);
    let marks = rows.iter().find(|row| row.term != COVERED);
    let known = marks.is_some_and(|row| row.offsets.as_chunks::<4>().0.contains(&mark(&others)));
    assert!(known || !meet || !whole || (marks.is_none() && !all_know), "{filter:?} meet, and that is not known");
    assert!(!known || meet, "{filter:?} do not meet");
}

async fn check(world: &World, asked: &Asked) {
    let realm = realms()[asked.realm].clone();
    let subject = match asked.subject {
        None => None,
        Some(number) => match world.archive.subject_key(&realm, &format!("subject {number}")).await.unwrap() {
            Some(key) => Some(key),
            None => return,
        },
    };
    let filter = asked.filter(&realm, subject);
    let expected = world.expected(&filter, asked.subject);
    let mut oldest_first = Vec::new();
    loop {
        let order = Order::OldestFirst(oldest_first.last().copied());
        let found = world.archive.search(&filter, order, asked.limit).await.unwrap();
        assert!(found.indices.len() <= asked.limit);
        oldest_first.extend(found.indices);
        if !found.more {
            break;
        }
    }
    assert_eq!(oldest_first, expected, "{filter:?}");
    let mut newest_first = Vec::new();
    loop {
        let order = Order::NewestFirst(newest_first.last().copied());
        let found = world.archive.search(&filter, order, asked.limit).await.unwrap();
        newest_first.extend(found.indices);
        if !found.more {
            break;
        }
    }
    newest_first.reverse();
    assert_eq!(newest_first, expected, "{filter:?}");
}

fn plain(session: Option<u8>) -> Made {
    Made {
        realm: 0,
        session,
        makes_version: session.is_some(),
        subject: 0,
        actor: 0,
        action: Action::SessionUpdated,
        refused: false,
        origin: Some(1),
        client: None,
        wait: 1,
        sealed: true,
        here: false,
    }
}

/// Postings are kept by segments of 65,536 entries: what stands in the first and in the second is found alike.
#[tokio::test]
async fn finds_across_segments() {
    let mut world = World::new();
    let rare = Made { refused: true, ..plain(None) };
    world.append(std::slice::from_ref(&rare)).await;
    // Past the first segment, without the cost of sealing 65,536 parts.
    let many = vec![Made { wait: 0, sealed: false, ..plain(None) }; 3_000];
    for _ in 0..23 {
        world.append(&many).await;
    }
    world.append(&[rare]).await;
    let filter = EntryFilter { outcome: Some(Outcome::Refused), ..EntryFilter::all(realms()[0].clone()) };
    let found = world.archive.search(&filter, Order::NewestFirst(None), 10).await.unwrap();
    assert_eq!(found.indices, [LeafIndex(69_001), LeafIndex(0)]);
    let found = world.archive.search(&filter, Order::OldestFirst(Some(LeafIndex(0))), 10).await.unwrap();
    assert_eq!(found.indices, [LeafIndex(69_001)]);
    // The first entry is a second in, the many a second later, the last another: a range of times is a range of entries.
    let of_time = async |from, to| {
        let filter = EntryFilter { from: Some(at(from)), to: Some(at(to)), ..filter.clone() };
        world.archive.search(&filter, Order::OldestFirst(None), 10).await.unwrap().indices
    };
    assert_eq!(of_time(0, 2).await, [LeafIndex(0), LeafIndex(69_001)][..1]);
    assert_eq!(of_time(2, 9).await, [LeafIndex(69_001)]);
    assert!(of_time(3, 9).await.is_empty());
    let nothing = EntryFilter { action: Some(Action::KeyRevoked), ..filter };
    assert!(world.archive.search(&nothing, Order::NewestFirst(None), 10).await.unwrap().indices.is_empty());
}

/// Terms that each stand in every segment, and meet in some or in none: all combinations of them, on a log whose first segment is full.
#[tokio::test]
async fn finds_what_meets_across_segments() {
    // What meets where, for combinations that do not meet everywhere: actor, action, refused, and whether it names an address.
    type What = (u8, usize, bool, Option<u8>);
    const FIRST: &[What] =
        &[(0, 0, false, None), (1, 1, false, None), (2, 2, true, None), (0, 1, false, Some(1)), (1, 2, false, Some(2))];
    const SECOND: &[What] =
        &[(0, 0, false, None), (1, 0, true, None), (2, 1, false, None), (0, 2, false, Some(2)), (1, 1, false, Some(1))];
    let make = |what: &What| Made {
        actor: what.0,
        action: [Action::SessionUpdated, Action::SubjectHeld, Action::SessionRead][what.1],
        refused: what.2,
        origin: what.3,
        sealed: what.3.is_some(),
        here: what.3.is_some(),
        wait: 0,
        ..plain(None)
    };
    let mut world = World::new();
    // Those with an address are few, for they cost most; the other 2,900 of each 3,000 are unsealed.
    let some = |from: &[What], at: usize| {
        let few = from.iter().cycle().skip(at).take(100);
        few.chain(from.iter().filter(|what| what.3.is_none()).cycle().take(2_900)).map(make).collect::<Vec<Made>>()
    };
    for batch in 0..21 {
        world.append(&some(FIRST, batch)).await;
        let size = world.log.head().await.unwrap().size();
        world.archive.projector().catch_up(size).await.unwrap();
    }
    let fill: Vec<Made> = FIRST[..3].iter().cycle().take(65_536 - 63_000).map(make).collect();
    world.append(&fill).await;
    world.append(&some(SECOND, 0)).await;
    check_combinations(&world, 1).await;

    // Nothing that meets nowhere is looked for in the bitmaps: here they cannot even be read.
    let realm = &realms()[0];
    let filter = EntryFilter {
        actor: Some("actor-2".into()),
        action: Some(Action::SessionUpdated),
        ..EntryFilter::all(realm.clone())
    };
    let broken = [Posting { term: term("actor", realm, "actor-2"), segment: 0, offsets: b"?".to_vec() }];
    let kept = world.log.postings(&[broken[0].term], 0..=0).await.unwrap();
    let put = async |rows: &[Posting]| {
        let now = world.log.projection().await.unwrap();
        assert_eq!(world.log.project(now, now.size, rows).await.unwrap(), Projected::Yes);
    };
    put(&broken).await;
    let newest = Order::NewestFirst(None);
    assert!(world.archive.search(&filter, newest, 9).await.unwrap().indices.is_empty());
    let meets = EntryFilter { action: Some(Action::SessionRead), ..filter };
    assert!(world.archive.search(&meets, newest, 9).await.is_err());
    put(&kept).await;
    assert!(!world.archive.search(&meets, newest, 9).await.unwrap().indices.is_empty());

    // A program that knows nothing of it has made postings of the second segment's next entries, in which everything meets.
    let everything: Vec<Made> = (0..3)
        .flat_map(|actor| (0..3).map(move |action| (actor, action, actor == 0, Some(actor))))
        .map(|what| make(&what))
        .collect();
    world.append(&everything).await;
    world.project_as_older_program().await;
    check_combinations(&world, 7).await;
    world.append(&some(FIRST, 0)).await;
    check_combinations(&world, 7).await;
    // Or of all of them.
    world.keep_of_meetings(&[]).await;
    check_combinations(&world, 7).await;
}

/// How many there are of [`combination`].
const COMBINATIONS: usize = 5 * 5 * 5 * 3;

/// One of all combinations of the filters that are terms: of each, the last is no filter, and the one before it may stand nowhere.
fn combination(realm: usize, number: usize) -> Asked {
    let (actor, action, address, refused) = (number % 5, number / 5 % 5, number / 25 % 5, number / 125);
    Asked {
        realm,
        session: None,
        subject: None,
        actor: (actor < 4).then_some(actor as u8),
        action: (action < 4).then_some(action),
        address: (address < 4).then_some(address as u8),
        refused: [Some(false), Some(true), None][refused],
        from: None,
        to: None,
        limit: 70,
    }
}

/// The first two pages in both orders, of every combination of the filters that are terms, or of one in `step`.
async fn check_combinations(world: &World, step: usize) {
    let realm = &realms()[0];
    for number in (0..COMBINATIONS).step_by(step) {
        let asked = combination(0, number);
        let filter = asked.filter(realm, None);
        let expected = world.expected(&filter, None);
        let mut newest_first = Vec::new();
        let mut oldest_first = Vec::new();
        for _ in 0..2 {
            let order = Order::NewestFirst(newest_first.last().copied());
            newest_first.extend(world.archive.search(&filter, order, asked.limit).await.unwrap().indices);
            let order = Order::OldestFirst(oldest_first.last().copied());
            oldest_first.extend(world.archive.search(&filter, order, asked.limit).await.unwrap().indices);
        }
        assert!(oldest_first.iter().eq(expected.iter().take(140)), "{filter:?}");
        assert!(newest_first.iter().eq(expected.iter().rev().take(140)), "{filter:?}");
    }
}

/// On one thread: whoever else wants it gets it again and again while much is projected.
#[tokio::test(flavor = "current_thread")]
async fn projecting_much_keeps_nobody_waiting() {
    let mut world = World::new();
    world.append(&vec![Made { wait: 0, ..plain(None) }; 2_000]).await;
    let size = world.log.head().await.unwrap().size();
    let turns = Arc::new(AtomicU32::new(0));
    let other = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    world.archive.projector().catch_up(size).await.unwrap();
    other.abort();
    // Every entry is decoded, and put into bitmaps: at every 32nd of each somebody else may run.
    assert!(turns.load(Ordering::Relaxed) >= 2 * (2_000 / 32), "{turns:?}");
}

/// Two processes that project at the same time do not undo one another's work.
#[tokio::test]
async fn two_projectors_share_one_projection() {
    let mut world = World::new();
    let second = Archive::new(Arc::clone(&world.log), world.keyring.clone(), Arc::default());
    for _ in 0..5 {
        world.append(&[plain(None), plain(Some(1))]).await;
        let size = world.log.head().await.unwrap().size();
        let (one, other) = tokio::join!(world.archive.projector().catch_up(size), second.projector().catch_up(size));
        one.unwrap();
        other.unwrap();
    }
    let filter = EntryFilter::all(realms()[0].clone());
    assert_eq!(second.search(&filter, Order::OldestFirst(None), 50).await.unwrap().indices.len(), 10);
    assert_eq!(world.log.projection().await.unwrap().size, TreeSize(10));
}

/// An erased subject's entries are not found by the addresses they named, and do not open; those of others are and do.
#[tokio::test]
async fn an_erased_subject_is_not_found_by_its_addresses() {
    let mut world = World::new();
    let other = Made { subject: 1, ..plain(None) };
    world.append(&[plain(None), other, plain(Some(1))]).await;
    let realm = realms()[0].clone();
    let key = world.archive.subject_key(&realm, "subject 0").await.unwrap().unwrap();
    let by_address = EntryFilter { address: Some(address(1)), ..EntryFilter::all(realm.clone()) };
    let what_it_met =
        async |world: &World| world.log.postings(&[beside(world.address_term(&realm, 1))], 0..=0).await.unwrap();
    let found =
        async |world: &World| world.archive.search(&by_address, Order::OldestFirst(None), 9).await.unwrap().indices;
    assert_eq!(found(&world).await, [0, 1, 2].map(LeafIndex));

    assert_eq!(what_it_met(&world).await.len(), 1);
    world.archive.forget_addresses(&realm, key).await.unwrap();
    assert!(what_it_met(&world).await.is_empty());
    let mut erase = world.proposed(&Made { subject: 1, origin: None, ..plain(None) });
    erase.claims.subject = Some(SubjectChange::Erased(key));
    let batch = sequencer().ordered(&world.log.head().await.unwrap(), vec![erase]).unwrap();
    assert_eq!(world.log.append(&batch).await.unwrap(), Appended::Committed);

    assert_eq!(found(&world).await, [LeafIndex(1)]);
    // What the address met is not known in part either: of what stays, nobody knows any more.
    world.append(&[Made { subject: 1, actor: 1, ..plain(None) }]).await;
    assert_eq!(found(&world).await, [1, 4].map(LeafIndex));
    assert!(what_it_met(&world).await.is_empty());
    assert_eq!(world.archive.subject_key(&realm, "subject 0").await.unwrap(), None);
    let opened = world.archive.open(&realm, &[0, 1].map(LeafIndex)).await.unwrap();
    assert!(matches!(opened[0].personal, Personal::Erased));
    assert!(matches!(&opened[1].personal, Personal::Open(part) if part.origin == Some(address(1))));
}

/// Version by version, and at a moment between two entries.
#[tokio::test]
async fn a_history_shows_the_state_after_each_entry() {
    let mut world = World::new();
    let begin = Made { client: Some(2), ..plain(Some(1)) };
    world.append(&[begin, plain(None)]).await;
    let realm = realms()[0].clone();
    let id = session(1);
    let steps = world.archive.history(&realm, id, Version::NONE, 50).await.unwrap();
    assert_eq!(steps.len(), 1);
    assert_eq!(steps[0].state.as_ref().unwrap().version, Version(1));
    assert!(world.archive.history(&realms()[1], id, Version::NONE, 50).await.unwrap().is_empty(), "another realm");
    let at_moment = async |moment| world.archive.state_at(&realm, id, moment).await.unwrap();
    assert!(at_moment(Moment::Time(at(0))).await.is_none());
    assert_eq!(at_moment(Moment::Time(at(50))).await.unwrap().entry.stored.index, LeafIndex(0));
    assert!(at_moment(Moment::Version(Version(1))).await.is_some());
    assert!(at_moment(Moment::Version(Version(2))).await.is_none());
}
