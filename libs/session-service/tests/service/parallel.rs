//! Many clients at once, on one process and on two.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;
use session_model::{Action, BeyondCap, EndReason, Policy, SessionId, Version};
use session_service::{ListQuery, ServiceError, Validation};

use crate::rig::{Rig, caller, new, patch, policy, seeing};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_writers_of_different_attributes_lose_none_even_on_two_processes() {
    let one = Arc::new(Rig::new(policy()));
    let two = Arc::new(one.beside());
    let id = one.create(None).await.session.id;
    let mut tasks = Vec::new();
    for n in 0..64 {
        let rig = Arc::clone(if n % 2 == 0 { &one } else { &two });
        tasks.push(tokio::spawn(async move {
            rig.service.update(&caller(), id, patch(&format!("{{\"k{n}\":{n}}}")), None).await
        }));
    }
    let mut last = None;
    for task in tasks {
        last = last.max(Some(task.await.unwrap().unwrap().place.index));
    }
    let session = one.service.get(&seeing(last.unwrap()), id).await.unwrap();
    assert_eq!(session.version, Version(65));
    for n in 0..64 {
        assert!(session.attributes.as_json().contains(&format!("\"k{n}\":{n}")), "k{n} was lost");
    }
    one.leaves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_many_writers_of_the_same_version_wins() {
    let one = Arc::new(Rig::new(policy()));
    let two = Arc::new(one.beside());
    let id = one.create(None).await.session.id;
    let mut tasks = Vec::new();
    for n in 0..32 {
        let rig = Arc::clone(if n % 2 == 0 { &one } else { &two });
        tasks.push(tokio::spawn(async move {
            rig.service.update(&caller(), id, patch(&format!("{{\"winner\":{n}}}")), Some(Version(1))).await
        }));
    }
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => won += 1,
            Err(ServiceError::StaleVersion { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(one.actions(id).await.len(), 2);
}

/// Many creates of one subject from 64 clients: never more open than the cap. On a machine that stands still for seconds a client may be told that
/// nothing was done, or that the log has not said: what was done is then in the log, and counts.
async fn storm(beyond_cap: BeyondCap, creates: usize) {
    let one = Arc::new(Rig::new(Policy { sessions_per_subject: 5, beyond_cap, ..policy() }));
    let two = Arc::new(one.beside());
    let mut tasks = Vec::new();
    for client in 0..64 {
        let rig = Arc::clone(if client % 2 == 0 { &one } else { &two });
        tasks.push(tokio::spawn(async move {
            let mut told = (0, 0);
            for _ in 0..creates / 64 {
                match rig.service.create(&caller(), new(Some("mallory")), None).await {
                    Ok(_) => told.0 += 1,
                    Err(ServiceError::OutcomeUnknown) => told.1 += 1,
                    Err(ServiceError::LimitReached { .. } | ServiceError::Unavailable(_)) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
            told
        }));
    }
    let (mut told, mut unknown) = (0_usize, 0_usize);
    for task in tasks {
        let (of_task, unknown_of_task) = task.await.unwrap();
        told += of_task;
        unknown += unknown_of_task;
    }
    // What is still under way has an end.
    one.service.close().await;
    two.service.close().await;
    // The log tells how many were open after every single entry.
    let (mut created, mut open) = (0_usize, 0_i64);
    for leaf in one.leaves().await {
        match leaf.action {
            Action::SessionCreated => (created, open) = (created + 1, open + 1),
            Action::SessionEnded => open -= 1,
            _ => {}
        }
        assert!(open <= 5, "{open} open sessions after {}", leaf.entry_id);
    }
    assert!((told..=told + unknown).contains(&created), "{created} created, {told} told, {unknown} unknown");
    match beyond_cap {
        BeyondCap::Deny => assert_eq!(created, 5),
        BeyondCap::EvictOldest | BeyondCap::EvictLeastRecent => assert!(created > 5),
    }
    let query = ListQuery { subject: Some("mallory".into()), active: Some(true), limit: 500, ..ListQuery::default() };
    let three = one.beside();
    let listed = loop {
        match three.service.list(&caller(), &query).await {
            Ok(page) => break page.items.len(),
            Err(ServiceError::Unavailable(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(listed as i64, open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_creates_never_exceed_a_cap_that_denies() {
    storm(BeyondCap::Deny, 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_creates_never_exceed_a_cap_that_evicts() {
    storm(BeyondCap::EvictOldest, 1_024).await;
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Create(u8),
    Update(u8, u8),
    Renew(u8),
    Authenticate(u8, u8),
    Validate(u8),
    End(u8),
    EndSubject(u8),
    Get(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 0_u8..8;
    prop_oneof![
        2 => (0_u8..3).prop_map(Step::Create),
        4 => (n(), 0_u8..4).prop_map(|(session, key)| Step::Update(session, key)),
        1 => n().prop_map(Step::Renew),
        1 => (n(), 0_u8..3).prop_map(|(session, subject)| Step::Authenticate(session, subject)),
        3 => n().prop_map(Step::Validate),
        1 => n().prop_map(Step::End),
        1 => (0_u8..3).prop_map(Step::EndSubject),
        2 => n().prop_map(Step::Get),
    ]
}

/// What clients were told, checked against what the log says in the end.
#[derive(Default)]
struct Told {
    versions: HashMap<(SessionId, u64), session_model::LeafIndex>,
    ended: HashMap<SessionId, session_model::LeafIndex>,
    updates: u64,
}

async fn client(rig: Arc<Rig>, ids: Arc<parking_lot::Mutex<Vec<SessionId>>>, steps: Vec<Step>) -> Told {
    let mut told = Told::default();
    let mut seen = None;
    let pick = |n: u8| {
        let ids = ids.lock();
        (!ids.is_empty()).then(|| ids[usize::from(n) % ids.len()])
    };
    for step in steps {
        let me = match seen {
            Some(index) => seeing(index),
            None => caller(),
        };
        let outcome = match step {
            Step::Create(subject) => {
                let subject = (subject > 0).then(|| format!("s{subject}"));
                rig.service.create(&me, new(subject.as_deref()), None).await
            }
            Step::EndSubject(subject) => {
                let (subject, reason) = (format!("s{subject}"), EndReason::requested("x").unwrap());
                for changed in rig.service.end_subject(&me, &subject, None, reason).await.unwrap() {
                    told.ended.insert(changed.session.id, changed.place.index);
                    seen = seen.max(Some(changed.place.index));
                }
                continue;
            }
            Step::Validate(n) => {
                let Some(id) = pick(n) else { continue };
                let forged = session_model::Token::new(id, [1; 32]).expose();
                let worth = rig.service.validate(&me, &forged).await.unwrap();
                assert!(matches!(worth, Validation::Inactive(_)), "a forged token was worth something");
                continue;
            }
            Step::Get(n) => {
                let Some(id) = pick(n) else { continue };
                let session = rig.service.get(&me, id).await.unwrap();
                // Reading one's writes, on whichever node: never older than what this client was told.
                let own = told.versions.iter().filter(|((known, _), _)| *known == id).map(|((_, v), _)| *v).max();
                assert!(
                    Some(session.version.0) >= own,
                    "{session:?} is older than version {own:?} of an earlier answer"
                );
                assert!(!told.ended.contains_key(&id) || session.ended().is_some(), "an ended session came back");
                continue;
            }
            Step::Update(n, key) => {
                let Some(id) = pick(n) else { continue };
                rig.service.update(&me, id, patch(&format!("{{\"k{key}\":1}}")), None).await
            }
            Step::Renew(n) => {
                let Some(id) = pick(n) else { continue };
                rig.service.renew(&me, id, None).await
            }
            Step::Authenticate(n, subject) => {
                let Some(id) = pick(n) else { continue };
                rig.service.authenticate(&me, id, format!("s{subject}").into(), vec!["pwd".into()], None, None).await
            }
            Step::End(n) => {
                let Some(id) = pick(n) else { continue };
                rig.service.end(&me, id, EndReason::requested("bye").unwrap()).await
            }
        };
        match outcome {
            Ok(changed) => {
                let id = changed.session.id;
                if changed.session.version == Version(1) {
                    ids.lock().push(id);
                }
                if !changed.replayed {
                    told.updates += 1;
                    told.versions.insert((id, changed.session.version.0), changed.place.index);
                }
                if changed.session.ended().is_some() {
                    told.ended.insert(id, changed.place.index);
                }
                seen = seen.max(Some(changed.place.index));
            }
            Err(ServiceError::Ended(_) | ServiceError::LimitReached { .. }) => {}
            Err(other) => panic!("{step:?}: {other:?}"),
        }
    }
    told
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, ..ProptestConfig::default() })]
    /// Random commands of parallel clients on two processes with one log. What each client was told is in the log, once; what
    /// is in the log was told to somebody; versions are dense; nothing comes back; and a process that starts
    /// afterwards sees the very same sessions.
    #[test]
    fn what_clients_were_told_is_what_the_log_says(
        clients in proptest::collection::vec(proptest::collection::vec(step(), 1..25), 2..8),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        runtime.block_on(async move {
            let one = Arc::new(Rig::new(policy()));
            let two = Arc::new(one.beside());
            let ids: Arc<parking_lot::Mutex<Vec<SessionId>>> = Arc::default();
            let mut tasks = Vec::new();
            for (n, steps) in clients.into_iter().enumerate() {
                let rig = Arc::clone(if n % 2 == 0 { &one } else { &two });
                tasks.push(tokio::spawn(client(rig, Arc::clone(&ids), steps)));
            }
            let mut versions = BTreeMap::new();
            let mut ended = HashMap::new();
            for task in tasks {
                let told = task.await.unwrap();
                for (version, index) in told.versions {
                    prop_assert!(versions.insert(version, index).is_none(), "one version was given to two clients");
                }
                ended.extend(told.ended);
            }
            let leaves = one.leaves().await;
            for ((id, version), index) in &versions {
                let leaf = &leaves[usize::try_from(index.0).unwrap()];
                prop_assert_eq!((leaf.session_id, leaf.version), (Some(*id), Some(Version(*version))));
            }
            for (id, index) in &ended {
                let leaf = &leaves[usize::try_from(index.0).unwrap()];
                prop_assert_eq!((leaf.session_id, leaf.action), (Some(*id), Action::SessionEnded));
                let ends = leaves.iter().filter(|l| l.session_id == Some(*id) && l.action == Action::SessionEnded).count();
                prop_assert_eq!(ends, 1);
            }
            // A process that starts now, from nothing but the log, agrees with those that lived through it.
            let three = one.beside();
            let last = session_model::LeafIndex(leaves.len().saturating_sub(1) as u64);
            let all = ids.lock().clone();
            for id in all {
                let lived = one.service.get(&seeing(last), id).await.unwrap();
                let rebuilt = three.service.get(&caller(), id).await.unwrap();
                prop_assert_eq!(serde_json::to_string(&*lived).unwrap(), serde_json::to_string(&*rebuilt).unwrap());
            }
            Ok(())
        })?;
    }
}
