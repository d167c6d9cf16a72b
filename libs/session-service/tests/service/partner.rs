//! Nodes that share out the sessions of a log: each is in the memory of its owner and its partners, and everybody finds it.

use std::time::Duration;

use cluster::Placement;
use cluster::in_process::Weather;
use session_model::{Action, EndReason, Leaf, Seconds, SessionId, Slot, Version};
use session_service::{Changed, FromLog, Reaper, ServiceError, Validation};
use session_view::{SessionView, Viewed};
use std::sync::Arc;
use tokio::time::{Instant, sleep};

use crate::cluster::{Node, Site};
use crate::rig::{caller, new, patch, policy, reads_from_log, seeing};

fn site(seed: u64, weather: Weather) -> Site {
    let mut site = Site::new(seed, weather, policy());
    site.copies = Some(1);
    site
}

fn placement(node: &Node) -> Arc<Placement> {
    node.service.cluster().unwrap().placement().unwrap()
}

/// Waits until each of them holds what it should, by one placement.
async fn settle(nodes: &[&Node]) {
    let began = Instant::now();
    let settled = |node: &&Node| {
        placement(node).members().len() == nodes.len()
            && node.service.share().is_some_and(|(slots, all)| slots > 0 && all)
    };
    while !nodes.iter().all(settled) {
        assert!(began.elapsed() < Duration::from_secs(30), "not settled");
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_millis(50)).await;
}

async fn three(site: &Site) -> [Node; 3] {
    let nodes = [site.node(1), site.node(2), site.node(3)];
    settle(&nodes.each_ref()).await;
    nodes
}

fn holds(node: &Node, id: SessionId) -> bool {
    node.view.peek(id).is_some()
}

async fn is_active(node: &Node, created: &Changed) -> Result<bool, ServiceError> {
    let token = created.token.as_ref().unwrap().expose();
    Ok(matches!(node.service.validate(&caller(), &token).await?, Validation::Active(_)))
}

async fn ends(site: &Site, id: SessionId) -> usize {
    let entries = audit_log::conformance::check_log(&*site.log).await;
    let leaves = entries.iter().map(|entry| Leaf::decode(&entry.leaf).unwrap());
    leaves.filter(|leaf| leaf.session_id == Some(id) && leaf.action == Action::SessionEnded).count()
}

const MOMENT: Duration = Duration::from_millis(20);

#[tokio::test(start_paused = true)]
async fn each_session_is_in_two_memories_of_three_and_found_everywhere_without_the_log() {
    let site = site(1, Weather::FAIR);
    let nodes = three(&site).await;
    let placement = placement(&nodes[0]);
    let mut made = Vec::new();
    for n in 0..90 {
        made.push(nodes[n % 3].create().await);
    }
    sleep(MOMENT).await;
    for node in &nodes {
        node.log.cut(true);
    }
    let mut held = 0;
    for created in &made {
        let id = created.session.id;
        for node in &nodes {
            assert_eq!(holds(node, id), placement.is_held_by(Slot::of(id), node.life));
            assert!(is_active(node, created).await.unwrap());
            held += usize::from(holds(node, id));
        }
    }
    assert_eq!(held, 180);
    // A change that one node makes every other shows at once to whoever has seen it, though half of them do not hold it.
    for (n, created) in made.iter().enumerate() {
        let writer = &nodes[n % 3];
        writer.log.cut(false);
        let id = created.session.id;
        let changed = writer.service.update(&caller(), id, patch(r#"{"a":1}"#), None).await.unwrap();
        writer.log.cut(true);
        for node in &nodes {
            let read = node.service.get(&seeing(changed.place.index), id).await.unwrap();
            assert_eq!(read.version, Version(2));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_writer_itself_never_shows_less_than_it_wrote() {
    // The owner hears of everything late.
    let site = site(2, Weather { delay: Duration::from_millis(60), ..Weather::FAIR });
    let nodes = three(&site).await;
    for n in 0..60 {
        let node = &nodes[n % 3];
        let created = node.create().await;
        let id = created.session.id;
        node.service.update(&caller(), id, patch(r#"{"a":1}"#), None).await.unwrap();
        assert_eq!(node.service.get(&caller(), id).await.unwrap().version, Version(2));
        node.service.end(&caller(), id, EndReason::requested("logout").unwrap()).await.unwrap();
        assert!(!is_active(node, &created).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn when_a_node_goes_others_hold_what_it_held_and_what_is_due_is_ended_once() {
    let site = site(3, Weather::FAIR);
    let [one, two, three] = three(&site).await;
    let mut made = Vec::new();
    for n in 0..60 {
        made.push([&one, &two, &three][n % 3].create().await);
    }
    sleep(MOMENT).await;
    site.network.unplug(one.life);
    one.log.cut(true);
    settle(&[&two, &three]).await;
    for created in &made {
        assert!(holds(&two, created.session.id) && holds(&three, created.session.id), "of two, both hold all");
    }
    // A third comes, and those there drop what is its.
    let again = site.node(1);
    settle(&[&again, &two, &three]).await;
    let placement = placement(&again);
    for created in &made {
        let id = created.session.id;
        for node in [&again, &two, &three] {
            assert_eq!(holds(node, id), placement.is_held_by(Slot::of(id), node.life));
            assert!(is_active(node, created).await.unwrap());
        }
    }
    // Nobody holds half of it twice, and none is forgotten.
    site.forward(Seconds::hours(13));
    let reapers = [&again, &two, &three].map(|node| Reaper::start(Arc::clone(&node.service)));
    sleep(Duration::from_secs(8)).await;
    for reaper in reapers {
        reaper.close().await;
    }
    for created in &made {
        assert_eq!(ends(&site, created.session.id).await, 1);
        assert!(!is_active(&two, created).await.unwrap());
    }
    assert_eq!(two.view.due(made[0].session.expires_at.plus(Seconds(1)), 1_000).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_use_at_another_node_is_told_to_the_owner() {
    let site = site(4, Weather::FAIR);
    let nodes = three(&site).await;
    let created = nodes[0].create().await;
    let id = created.session.id;
    let placement = placement(&nodes[0]);
    let stranger = nodes.iter().find(|node| !placement.is_held_by(Slot::of(id), node.life)).unwrap();
    let owner = nodes.iter().find(|node| placement.owner(Slot::of(id)) == node.life).unwrap();
    sleep(MOMENT).await;
    site.forward(Seconds(600));
    assert!(is_active(stranger, &created).await.unwrap());
    sleep(MOMENT).await;
    let Some(Viewed::Active(shown)) = owner.view.peek(id) else { panic!("it is not held") };
    assert_eq!(shown.last_seen_at, created.session.created_at.plus(Seconds(600)));
}

/// For a while two nodes see different members: what one tells the other is not all that it holds.
#[tokio::test(start_paused = true)]
async fn a_share_that_is_not_this_nodes_is_read_from_the_log() {
    let site = site(5, Weather::FAIR);
    let [one, two, three] = three(&site).await;
    site.network.cut(two.life, three.life);
    site.network.cut(three.life, two.life);
    sleep(Duration::from_secs(4)).await;
    assert_eq!([&one, &two, &three].map(|node| placement(node).members().len()), [3, 2, 2]);
    let mut made = Vec::new();
    for _ in 0..40 {
        made.push(one.create().await);
    }
    for created in made.iter().step_by(2) {
        one.service.end(&caller(), created.session.id, EndReason::requested("logout").unwrap()).await.unwrap();
    }
    sleep(Duration::from_millis(200)).await;
    for (n, created) in made.iter().enumerate() {
        for node in [&one, &two, &three] {
            assert_eq!(is_active(node, created).await.unwrap(), n % 2 == 1, "{n}");
            let held = placement(node).is_held_here(Slot::of(created.session.id));
            assert!(!held || holds(node, created.session.id), "{n}: it has read what it was not told");
        }
    }
}

/// Between the cut and when it is noticed: those who hold a session do not answer.
#[tokio::test(start_paused = true)]
async fn what_no_holder_tells_is_read_from_the_log_and_counted() {
    let site = site(8, Weather::FAIR);
    let nodes = three(&site).await;
    let created = nodes[0].create().await;
    sleep(MOMENT).await;
    let other = nodes.iter().find(|node| !holds(node, created.session.id)).unwrap();
    assert!(is_active(other, &created).await.unwrap());
    assert_eq!(reads_from_log(&other.service, FromLog::Holders), 0);
    for holder in nodes.iter().filter(|node| node.life != other.life) {
        site.network.cut(holder.life, other.life);
        site.network.cut(other.life, holder.life);
    }
    assert!(is_active(other, &created).await.unwrap());
    assert_eq!(reads_from_log(&other.service, FromLog::Holders), 1);
}

/// A node that holds a session and one that does not, cut off from everybody: neither answers what may be wrong.
#[tokio::test(start_paused = true)]
async fn cut_off_from_log_and_peers_a_node_fails_closed_whether_it_holds_or_not() {
    let site = site(6, Weather::FAIR);
    let [one, two, three] = three(&site).await;
    let mut made = Vec::new();
    for _ in 0..12 {
        made.push(one.create().await);
    }
    sleep(MOMENT).await;
    three.log.cut(true);
    for created in &made {
        assert!(is_active(&three, created).await.unwrap(), "its peers prove that nothing has changed");
    }
    for (a, b) in [(&one, &three), (&two, &three)] {
        site.network.cut(a.life, b.life);
        site.network.cut(b.life, a.life);
    }
    sleep(crate::cluster::STALENESS + Duration::from_millis(600)).await;
    for created in &made {
        one.service.end(&caller(), created.session.id, EndReason::requested("logout").unwrap()).await.unwrap();
        let refused = is_active(&three, created).await;
        assert!(matches!(refused, Err(ServiceError::Unavailable(_))), "{refused:?}");
    }
}

/// What stands on the wire says nothing about a session, asked for or told.
#[tokio::test(start_paused = true)]
async fn the_wire_shows_nothing() {
    let site = site(7, Weather::FAIR);
    let nodes = three(&site).await;
    site.network.listen();
    let created = nodes[0].service.create(&caller(), new(Some("ada@example.org")), None).await.unwrap();
    sleep(MOMENT).await;
    for node in &nodes {
        assert!(is_active(node, &created).await.unwrap());
    }
    let id = created.session.id.uuid();
    let words: [&[u8]; 3] = [b"ada@", b"colour", id.as_bytes()];
    for frame in site.network.heard() {
        assert!(words.iter().all(|word| !frame.windows(word.len()).any(|window| window == *word)));
    }
}
