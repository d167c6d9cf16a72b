//! Nodes that ask each other, and that share out who holds what.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::in_process::{InProcess, Network, Weather};
use cluster::{
    Answers, AskError, Audience, Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, Message, Page, Placement,
    Presence, Record, Standing, Topic, Transport,
};
use parking_lot::Mutex;
use sealing::ClusterKey;
use session_model::{LeafIndex, SessionId, Slot, TreeSize};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// What a node was told of commits.
#[derive(Default)]
struct Told {
    shares: Mutex<Vec<(u64, Commit)>>,
    grown: Mutex<Vec<TreeSize>>,
}

#[async_trait]
impl Host for Told {
    fn standing(&self) -> Standing {
        Standing { size: TreeSize(0), reflects: TreeSize(0), log_age: None }
    }
    async fn committed(&self, _: Commit) {}
    async fn committed_share(&self, share: u64, commit: Commit) {
        self.shares.lock().push((share, commit));
    }
    fn grown(&self, size: TreeSize) {
        self.grown.lock().push(size);
    }
    fn heard(&self, _: Heard) {}
    fn missed(&self) {}
    async fn page(&self, _: Incarnation, _: u64, _: usize) -> Option<Page> {
        None
    }
}

/// Says it backwards, or nothing.
struct Backwards;

#[async_trait]
impl Answers for Backwards {
    async fn answer(&self, _: Incarnation, mut question: Vec<u8>) -> Option<Vec<u8>> {
        question.reverse();
        (!question.is_empty()).then_some(question)
    }
}

struct Node {
    cluster: Arc<Cluster>,
    told: Arc<Told>,
    transport: Arc<InProcess>,
}

fn node(network: &Network, n: u8, copies: Option<u8>) -> Node {
    let told = Arc::new(Told::default());
    let config = ClusterConfig {
        node: format!("node-{n}"),
        program: "test".into(),
        incarnation: Incarnation([n; 16]),
        keys: vec![ClusterKey::new(&[5; 32], "test").unwrap()],
        beat: Duration::from_millis(100),
        lease: Duration::from_secs(2),
        copies,
    };
    let transport = network.join(config.incarnation);
    let cluster = Cluster::start(Arc::clone(&transport) as _, config, Arc::clone(&told) as _).unwrap();
    cluster.answer_by(Topic::Transient, Arc::new(Backwards));
    Node { cluster, told, transport }
}

impl Node {
    async fn ask(&self, who: &Self, topic: Topic, question: &[u8]) -> Result<Vec<u8>, AskError> {
        self.cluster.ask(who.cluster.incarnation(), topic, question.to_vec(), Duration::from_millis(300)).await
    }

    fn members(&self) -> Vec<Incarnation> {
        self.cluster.placement().unwrap().members().to_vec()
    }
}

const A_WHILE: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_or_its_time_is_up() {
    let network = Network::new(1, Weather::FAIR);
    let (one, two) = (node(&network, 1, None), node(&network, 2, None));
    sleep(A_WHILE).await;
    assert_eq!(one.ask(&two, Topic::Transient, b"abc").await, Ok(b"cba".to_vec()));
    assert_eq!(one.ask(&two, Topic::Sessions, b"abc").await, Err(AskError::Unanswered), "nobody answers for these");
    assert_eq!(one.ask(&two, Topic::Transient, b"").await, Err(AskError::Unanswered));
    let longest = vec![7; one.cluster.max_answer()];
    assert_eq!(one.ask(&two, Topic::Transient, &longest).await, Ok(longest.clone()), "in either direction");
    assert_eq!(one.ask(&two, Topic::Transient, &[longest, vec![7]].concat()).await, Err(AskError::Unsent));
    // Who waits for a node that says that it goes does not wait on.
    network.cut(two.cluster.incarnation(), one.cluster.incarnation());
    let began = Instant::now();
    let waits = one.cluster.ask(two.cluster.incarnation(), Topic::Transient, b"abc".to_vec(), Duration::from_secs(60));
    let goes = async {
        sleep(Duration::from_millis(20)).await;
        two.transport.close().await;
    };
    let (answer, ()) = tokio::join!(waits, goes);
    assert_eq!(answer, Err(AskError::Unanswered));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

/// Somebody who has the cluster's key, and was not asked.
#[tokio::test(start_paused = true)]
async fn an_answer_counts_from_whom_was_asked_alone() {
    let network = Network::new(2, Weather::FAIR);
    let (one, two, three) = (node(&network, 1, None), node(&network, 2, None), node(&network, 3, None));
    sleep(A_WHILE).await;
    network.cut(two.cluster.incarnation(), one.cluster.incarnation());
    let asks = one.ask(&two, Topic::Transient, b"abc");
    let intrudes = async {
        // Its frames are as authentic as any; the number it has to guess.
        for number in 0..20 {
            three.cluster.forge(Audience::One(one.cluster.incarnation()), &Message::Reply(number, b"forged".to_vec()));
        }
    };
    let (answer, ()) = tokio::join!(asks, intrudes);
    assert_eq!(answer, Err(AskError::Unanswered));
}

#[tokio::test(start_paused = true)]
async fn those_that_hold_sessions_place_them_alike_and_others_are_given_none() {
    let network = Network::new(3, Weather::FAIR);
    let (one, two, three) = (node(&network, 1, Some(1)), node(&network, 2, Some(1)), node(&network, 3, Some(1)));
    // One that only listens, or is of an older program.
    let listener = node(&network, 9, None);
    assert_eq!(one.members(), [one.cluster.incarnation()]);
    let mut told = one.cluster.placements();
    sleep(A_WHILE).await;
    assert!(told.has_changed().unwrap());
    let placed: Vec<Arc<Placement>> = [&one, &two, &three].map(|node| node.cluster.placement().unwrap()).into();
    assert_eq!(placed[0].members().len(), 3);
    assert!(placed.iter().all(|placement| placement.digest() == placed[0].digest()));
    assert!(listener.cluster.placement().is_none());
    let presence = |node: &Node| node.cluster.members().iter().filter(|m| m.presence == Presence::Up).count();
    assert_eq!((presence(&one), presence(&listener)), (3, 3), "it is a member all the same");
    assert!(one.cluster.members().iter().all(|m| m.placement.is_some() == (m.node != "node-9")));
    told.borrow_and_update();

    // Who falls silent is not placed by any more, and who comes back is.
    network.cut(three.cluster.incarnation(), one.cluster.incarnation());
    network.cut(one.cluster.incarnation(), three.cluster.incarnation());
    sleep(A_WHILE * 3).await;
    assert!(told.has_changed().unwrap());
    assert_eq!((one.members().len(), two.members().len(), three.members().len()), (2, 3, 2));
    network.heal();
    sleep(A_WHILE).await;
    assert_eq!(one.cluster.placement().unwrap().digest(), placed[0].digest());
    three.cluster.leave().await;
    sleep(Duration::from_millis(10)).await;
    assert_eq!(one.members().len(), 2, "it said that it goes");
}

#[tokio::test(start_paused = true)]
async fn each_is_sent_the_records_that_it_holds_and_told_of_the_rest() {
    let network = Network::new(4, Weather::FAIR);
    let (one, two, three) = (node(&network, 1, Some(0)), node(&network, 2, Some(0)), node(&network, 3, Some(0)));
    let listener = node(&network, 9, None);
    sleep(A_WHILE).await;
    let placement = one.cluster.placement().unwrap();
    let record = |index: u64| Record {
        session: SessionId::new(Uuid::from_u128(u128::from(index) * 7_919)),
        index: LeafIndex(index),
        value: vec![1; 300],
    };
    let commit =
        Commit { first: LeafIndex(0), end: TreeSize(300), view: None, records: (0..300).map(record).collect() };
    one.cluster.publish_shares(&commit, &placement);
    sleep(Duration::from_millis(10)).await;
    let mut sent = 0;
    for node in [&two, &three] {
        let who = node.cluster.incarnation();
        let shares = node.told.shares.lock();
        assert!(shares.iter().all(|(share, _)| *share == placement.share(who)));
        let mut covered: Vec<u64> = shares.iter().flat_map(|(_, part)| part.first.0..part.end.0).collect();
        covered.sort_unstable();
        assert!(covered.into_iter().eq(0..300), "each knows of every entry");
        for record in shares.iter().flat_map(|(_, part)| &part.records) {
            assert_eq!(placement.owner(Slot::of(record.session)), who);
            sent += 1;
        }
    }
    let own = commit.records.iter().filter(|record| placement.is_owned_here(Slot::of(record.session))).count();
    assert_eq!(sent + own, 300);
    assert_eq!(*listener.told.grown.lock(), [TreeSize(300)]);
    assert!(listener.told.shares.lock().is_empty());
}
