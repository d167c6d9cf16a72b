//! Erasing subjects and holding them: guarantee 11.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use audit_log::RecentEntry;
use audit_log::conformance::check_log;
use sealing::Keyring;
use session_model::{Action, Client, Digest, Leaf, Outcome, SealedPart, SessionId, TreeSize};
use session_service::{Caller, Idempotency, ListQuery, ServiceError};

use crate::rig::{Rig, caller, new, patch, policy, realm};

async fn erase(rig: &Rig, subject: &str) -> Result<session_service::Erased, ServiceError> {
    rig.service.erase_subject(&caller(), subject, None, async |_| Ok(())).await
}

/// A second erasure under the same key is the first one's answer, on any node, and destroys nothing that has come since.
#[tokio::test(start_paused = true)]
async fn an_erasure_is_repeated_under_its_idempotency_key_only() {
    let rig = Rig::new(policy());
    let other = rig.beside();
    rig.create(Some("alice")).await;
    let key = |key, request| Some(Idempotency { key: Digest([key; 32]), request: Digest([request; 32]) });
    let erase = async |rig: &Rig, subject: &str, idempotency| {
        rig.service.erase_subject(&caller(), subject, idempotency, async |_| Ok(())).await
    };
    assert!(matches!(erase(&rig, "bob", key(1, 2)).await, Err(ServiceError::NothingHeld)), "which is not kept");
    let first = erase(&rig, "alice", key(1, 1)).await.unwrap();
    let newer = rig.create(Some("alice")).await;
    assert_eq!(erase(&rig, "alice", key(1, 1)).await.unwrap(), first);
    assert_eq!(erase(&other, "alice", key(1, 1)).await.unwrap(), first);
    assert!(rig.service.get(&caller(), newer.session.id).await.is_ok(), "whoever comes after it is not erased again");
    assert!(matches!(erase(&rig, "bob", key(1, 2)).await, Err(ServiceError::IdempotencyMismatch)));
    let stranger = Caller { realm: "b".parse().unwrap(), ..caller() };
    let theirs = rig.service.erase_subject(&stranger, "alice", key(1, 1), async |_| Ok(())).await;
    assert!(matches!(theirs, Err(ServiceError::NotFound)), "{theirs:?}");
    // What is kept for a day does not tell who it was, not even to whoever guesses: it is keyed.
    let kept = rig.log.answer(&Digest([1; 32])).await.unwrap().unwrap();
    assert_ne!(kept.request, Digest([1; 32]));
    assert_ne!(erase(&rig, "alice", key(2, 1)).await.unwrap().key, first.key, "another key is another erasure");
    let erasures = rig.leaves().await.into_iter().filter(|leaf| leaf.action == Action::SubjectErased).count();
    assert_eq!(erasures, 2);
}

async fn anonymous_then(rig: &Rig, subject: &str) -> SessionId {
    let id = rig.create(None).await.session.id;
    rig.service.authenticate(&caller(), id, subject.into(), vec!["pwd".into()], None, None).await.unwrap();
    id
}

/// Its sessions end, its keys are gone, what it was called finds nothing; others stay, and the whole log still proves.
#[tokio::test(start_paused = true)]
async fn an_erased_subject_is_unreadable_and_every_proof_still_holds() {
    let rig = Rig::new(policy());
    let early = anonymous_then(&rig, "alice").await;
    let alice = rig.create(Some("alice")).await;
    let bob = rig.create(Some("bob")).await;
    let erased = erase(&rig, "alice").await.unwrap();
    assert_eq!((erased.ended, erased.keys), (2, 2), "with the key of the time before the login");

    for id in [early, alice.session.id] {
        assert!(matches!(rig.service.get(&caller(), id).await, Err(ServiceError::NotFound)));
        assert_eq!(rig.actions(id).await.last(), Some(&Action::SessionEnded));
    }
    let listed = ListQuery { subject: Some("alice".into()), limit: 9, ..ListQuery::default() };
    assert!(rig.service.list(&caller(), &listed).await.unwrap().items.is_empty());
    assert_eq!(rig.log.data_keys(&[erased.key.unwrap()]).await.unwrap(), [None]);
    let lookups = rig.leaves().await.into_iter().filter(|leaf| leaf.action == Action::SubjectErased);
    assert_eq!(lookups.map(|leaf| leaf.outcome).collect::<Vec<_>>(), [Outcome::Success]);
    rig.prove(&alice).await;
    rig.prove(&bob).await;
    assert!(rig.service.get(&caller(), bob.session.id).await.is_ok());

    // A second time there is nothing; whoever comes again is somebody new.
    assert!(matches!(erase(&rig, "alice").await, Err(ServiceError::NothingHeld)));
    let again = rig.create(Some("alice")).await;
    assert_ne!(Some(again.session.data_key), erased.key);
}

/// Two nodes asked at once with one key: one erases, both say so.
#[tokio::test(start_paused = true)]
async fn one_erasure_under_one_key_on_two_nodes() {
    let rig = Rig::new(policy());
    let other = rig.beside();
    rig.create(Some("alice")).await;
    let key = Some(Idempotency { key: Digest([1; 32]), request: Digest([1; 32]) });
    let theirs = std::sync::Mutex::new(None);
    let meanwhile = async |_| {
        let erased = other.service.erase_subject(&caller(), "alice", key, async |_| Ok(())).await?;
        *theirs.lock().unwrap() = Some(erased);
        Ok(())
    };
    let ours = rig.service.erase_subject(&caller(), "alice", key, meanwhile).await.unwrap();
    assert_eq!(Some(ours), theirs.into_inner().unwrap());
}

/// Another process, which has the key in memory, cannot seal anything with it any more.
#[tokio::test(start_paused = true)]
async fn a_process_that_still_knows_the_key_takes_a_new_one() {
    let rig = Rig::new(policy());
    let other = rig.beside();
    let before = other.create(Some("alice")).await;
    let erased = erase(&rig, "alice").await.unwrap();
    assert_eq!(Some(before.session.data_key), erased.key);
    let after = other.create(Some("alice")).await;
    assert_ne!(Some(after.session.data_key), erased.key);
    rig.leaves().await;
}

#[tokio::test(start_paused = true)]
async fn a_held_subject_is_erased_only_when_it_is_released() {
    let rig = Rig::new(policy());
    let session = rig.create(Some("alice")).await;
    let hold =
        async |subject: &str, held| rig.service.hold_subject(&caller(), subject, held, Some("case 7".into())).await;
    let (key, _) = hold("alice", true).await.unwrap();
    assert_eq!(key, session.session.data_key);
    assert!(matches!(erase(&rig, "alice").await, Err(ServiceError::LegalHold)));
    assert!(rig.service.get(&caller(), session.session.id).await.unwrap().ended().is_none(), "nothing was ended");
    hold("alice", true).await.unwrap();
    hold("alice", false).await.unwrap();
    assert!(matches!(hold("alice", false).await, Err(ServiceError::NothingHeld)));
    erase(&rig, "alice").await.unwrap();

    // One that nobody knows yet may be held too: before the first session of it begins.
    hold("carol", true).await.unwrap();
    rig.create(Some("carol")).await;
    assert!(matches!(erase(&rig, "carol").await, Err(ServiceError::LegalHold)));
    let held = rig.leaves().await.into_iter().filter(|leaf| leaf.action == Action::SubjectHeld).count();
    assert_eq!(held, 3);
}

/// Sessions that begin while the subject is being erased: each is either ended with it, or begins after it and is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_begin_meanwhile_are_never_left_behind_unreadable() {
    let rig = Rig::new(policy());
    rig.create(Some("alice")).await;
    let attempts = Arc::new(AtomicUsize::new(0));
    let service = Arc::clone(&rig.service);
    let creating = tokio::spawn(async move {
        let mut begun = Vec::new();
        for _ in 0..40 {
            match service.create(&caller(), new(Some("alice")), None).await {
                Ok(created) => begun.push(created.session.id),
                Err(ServiceError::LimitReached { .. }) => tokio::task::yield_now().await,
                Err(failure) => panic!("{failure}"),
            }
        }
        begun
    });
    let counter = Arc::clone(&attempts);
    let before = async |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    rig.service.erase_subject(&caller(), "alice", None, before).await.unwrap();
    assert!(attempts.load(Ordering::Relaxed) >= 1);
    for id in creating.await.unwrap() {
        match rig.service.get(&caller(), id).await {
            Ok(session) => assert_eq!(session.realm, realm()),
            Err(ServiceError::NotFound) => assert_eq!(rig.actions(id).await.last(), Some(&Action::SessionEnded)),
            Err(failure) => panic!("{failure}"),
        }
    }
}

/// The projection that follows the log takes them for the entries themselves: they must be just that.
#[tokio::test(start_paused = true)]
async fn recent_entries_are_what_the_log_holds() {
    let rig = Rig::new(policy());
    let mut from_afar = new(Some("alice"));
    from_afar.client = Some(Client { address: Some("::ffff:198.51.100.7".parse().unwrap()), user_agent: None });
    let alice = rig.service.create(&caller(), from_afar, None).await.unwrap();
    anonymous_then(&rig, "bob").await;
    rig.service.update(&caller(), alice.session.id, patch(r#"{"colour":null}"#), None).await.unwrap();
    let stored = check_log(&*rig.log).await;
    let recent = rig.service.recent().take(TreeSize(0), 99);
    assert_eq!(recent.len(), stored.len());
    for (recent, stored) in recent.into_iter().zip(stored) {
        let leaf = Leaf::decode(&stored.leaf).unwrap();
        let key = rig.log.data_keys(&[leaf.data_key.unwrap()]).await.unwrap().remove(0).unwrap();
        let key = Keyring::new(&[7; 32]).unwrap().unwrap(key.id, &key.wrapped).unwrap();
        let part = key.open(leaf.entry_id, &stored.sealed.unwrap().bytes, &leaf.commitment.unwrap()).unwrap();
        let part = SealedPart::decode(&part).unwrap();
        assert_eq!(recent, RecentEntry { index: stored.index, addresses: part.addresses(), leaf });
    }
    erase(&rig, "alice").await.unwrap();
    assert!(rig.service.recent().take(TreeSize(0), 99).is_empty(), "what an erasure took is not held");
}
