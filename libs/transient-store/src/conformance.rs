//! What every [`TransientStore`] must hold, one rule a function. Sessions and realms are the test's own: stores may be shared.

use std::sync::Arc;

use futures::future::join_all;
use session_model::transient::{Stamp, Stamped, no_key, nowhere};
use session_model::{Digest, EndReason, Ended, RealmName, Session, SessionId, State, Timestamp, Version};
use session_view::test_util::{at, session};
use uuid::Uuid;

use crate::{KeptAnswer, Listing, Outcome, Put, TransientStore};

/// The `n`th session of a realm as it begins, of a subject or of nobody.
pub fn begun(realm: &RealmName, n: u64, subject: Option<&str>) -> Stamped {
    let session = Session {
        realm: realm.clone(),
        version: Version(1),
        head: nowhere(),
        data_key: no_key(),
        subject: subject.map(Into::into),
        ..session(n, 0)
    };
    Stamped { session: Arc::new(session), stamp: stamp(0, 1) }
}

/// The state after one, changed in some way, made `seconds` later by a writer.
pub fn after(before: &Stamped, seconds: i64, writer: u128, change: impl FnOnce(&mut Session)) -> Stamped {
    let mut session = Session::clone(&before.session);
    session.version = session.version.next();
    change(&mut session);
    Stamped { session: Arc::new(session), stamp: stamp(seconds, writer) }
}

/// Ends it.
pub fn end(session: &mut Session) {
    session.state = State::Ended(Ended { reason: EndReason::ExpiredIdle, at: at(1) });
}

fn stamp(seconds: i64, writer: u128) -> Stamp {
    Stamp { at: at(seconds), writer: Uuid::from_u128(writer) }
}

fn beginning(state: &Stamped) -> Put {
    Put { state: state.clone(), base: None, cap: None, answer: None, acknowledged_by: 0 }
}

fn changing(state: &Stamped, base: &Stamped) -> Put {
    Put { state: state.clone(), base: Some(base.stamp), cap: None, answer: None, acknowledged_by: 0 }
}

/// Every session of a realm.
pub fn all(realm: &RealmName) -> Listing {
    Listing { realm: realm.clone(), subject: None, active: None, kind: None, before: None, limit: 1_000 }
}

/// Puts it.
///
/// # Panics
/// If the store does not answer.
#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
pub async fn put(store: &dyn TransientStore, put: Put) -> Outcome {
    store.put(put).await.unwrap()
}

#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
async fn stands(store: &dyn TransientStore, id: SessionId) -> Option<Stamped> {
    store.get(id).await.unwrap()
}

#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
async fn listed(store: &dyn TransientStore, listing: &Listing) -> Vec<SessionId> {
    store.list(listing).await.unwrap().iter().map(|session| session.id).collect()
}

/// A state stands if what it was made from does; of many made from one, through several handles, one does.
///
/// # Panics
/// If not.
pub async fn one_of_many(stores: &[&dyn TransientStore], realm: &RealmName) {
    let [store, ..] = stores else { return };
    let first = begun(realm, 1, None);
    assert_eq!(
        put(*store, changing(&after(&first, 1, 1, |_| ()), &first)).await,
        Outcome::Moved,
        "there is nothing yet"
    );
    assert_eq!(put(*store, beginning(&first)).await, Outcome::Done);
    assert_eq!(put(*store, beginning(&first)).await, Outcome::Moved, "it has begun");
    let rivals: Vec<Stamped> = (0..32).map(|n| after(&first, 1, 10 + n, |_| ())).collect();
    let puts = rivals.iter().zip(stores.iter().cycle()).map(|(rival, store)| put(*store, changing(rival, &first)));
    let outcomes = join_all(puts).await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Done).count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Moved).count(), 31);
    let winner = rivals.iter().zip(&outcomes).find(|(_, outcome)| **outcome == Outcome::Done).map(|(rival, _)| rival);
    for store in stores {
        assert_eq!(stands(*store, first.session.id).await.map(|state| state.stamp), winner.map(|state| state.stamp));
    }
}

/// An ended session stays ended, and nothing personal is left of it.
///
/// # Panics
/// If not.
pub async fn ends_are_final(store: &dyn TransientStore, realm: &RealmName) {
    let first = begun(realm, 2, Some("ada"));
    assert_eq!(put(store, beginning(&first)).await, Outcome::Done);
    let ended = after(&first, 1, 1, end);
    assert_eq!(put(store, changing(&ended, &first)).await, Outcome::Done);
    assert_eq!(put(store, changing(&after(&ended, 2, 1, |s| s.state = State::Active), &ended)).await, Outcome::Moved);
    let left = stands(store, first.session.id).await;
    let left =
        left.map(|state| (state.session.ended().is_some(), state.session.subject.clone(), state.session.version));
    assert_eq!(left, Some((true, None, Version(2))));
    assert_eq!(store.mark_used(first.session.id, at(9)).await.ok().flatten().map(|state| state.stamp), None);
    assert!(listed(store, &Listing { subject: Some("ada".into()), ..all(realm) }).await.is_empty());
    assert_eq!(listed(store, &Listing { active: Some(false), ..all(realm) }).await, [first.session.id]);
}

/// The cap holds under parallel beginnings, for each subject and realm by itself; an end, or another subject, frees a seat.
///
/// # Panics
/// If not.
pub async fn seats(stores: &[&dyn TransientStore], realm: &RealmName, other: &RealmName) {
    let [store, ..] = stores else { return };
    let capped = |state: &Stamped| Put { cap: Some(3), ..beginning(state) };
    let all_at_once: Vec<Stamped> = (10..30).map(|n| begun(realm, n, Some("ada"))).collect();
    let puts = all_at_once.iter().zip(stores.iter().cycle()).map(|(state, store)| put(*store, capped(state)));
    let outcomes = join_all(puts).await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Done).count(), 3);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::CapReached).count(), 17);
    assert_eq!(put(*store, capped(&begun(other, 31, Some("ada")))).await, Outcome::Done, "another realm");
    assert_eq!(put(*store, capped(&begun(realm, 32, Some("bob")))).await, Outcome::Done, "another subject");
    let mut ids = listed(*store, &Listing { subject: Some("ada".into()), ..all(realm) }).await;
    assert_eq!(ids.len(), 3);
    let (Some(one), Some(two)) = (ids.pop(), ids.pop()) else { return };
    let Some(one) = stands(*store, one).await else { return };
    assert_eq!(put(*store, changing(&after(&one, 1, 1, end), &one)).await, Outcome::Done);
    assert_eq!(put(*store, capped(&begun(realm, 33, Some("ada")))).await, Outcome::Done, "a seat was freed");
    assert_eq!(put(*store, capped(&begun(realm, 34, Some("ada")))).await, Outcome::CapReached);
    let Some(two) = stands(*store, two).await else { return };
    let as_bob = after(&two, 1, 1, |session| session.subject = Some("bob".into()));
    assert_eq!(put(*store, Put { cap: Some(1), ..changing(&as_bob, &two) }).await, Outcome::CapReached);
    assert_eq!(put(*store, Put { cap: Some(2), ..changing(&as_bob, &two) }).await, Outcome::Done);
    assert_eq!(put(*store, capped(&begun(realm, 35, Some("ada")))).await, Outcome::Done, "it went to another subject");
    assert_eq!(listed(*store, &Listing { subject: Some("bob".into()), ..all(realm) }).await.len(), 2);
}

/// Lists are newest first, page by page, of one realm, by state and kind.
///
/// # Panics
/// If not.
pub async fn lists(store: &dyn TransientStore, realm: &RealmName, other: &RealmName) {
    let mut ids = Vec::new();
    for n in 40..60 {
        let mut state = begun(realm, n, None);
        let kind = if n % 2 == 0 { session_model::Kind::Web } else { session_model::Kind::Api };
        state = Stamped { session: Arc::new(Session { kind, ..Session::clone(&state.session) }), ..state };
        assert_eq!(put(store, beginning(&state)).await, Outcome::Done);
        ids.push((kind, state.session.id));
    }
    assert_eq!(put(store, beginning(&begun(other, 60, None))).await, Outcome::Done);
    ids.reverse();
    let (mut paged, mut before) = (Vec::new(), None);
    loop {
        let page = listed(store, &Listing { limit: 7, before, ..all(realm) }).await;
        before = page.last().copied();
        paged.extend(page);
        if before.is_none() {
            break;
        }
    }
    assert_eq!(paged, ids.iter().map(|(_, id)| *id).collect::<Vec<_>>());
    let web = Listing { kind: Some(session_model::Kind::Web), limit: 3, ..all(realm) };
    let expected: Vec<_> =
        ids.iter().filter(|(kind, _)| *kind == session_model::Kind::Web).map(|(_, id)| *id).collect();
    assert_eq!(listed(store, &web).await.as_slice(), expected.get(..3).unwrap_or_default());
    assert!(listed(store, &Listing { active: Some(false), ..all(realm) }).await.is_empty());
}

/// Sessions are due by the earlier of their deadlines, uses considered, and no ended one is. The later use survives a change.
///
/// # Panics
/// If not.
#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
pub async fn deadlines(store: &dyn TransientStore, realm: &RealmName) {
    let [idle, used, gone] = [70, 71, 72].map(|n| begun(realm, n, None));
    for state in [&idle, &used, &gone] {
        assert_eq!(put(store, beginning(state)).await, Outcome::Done);
    }
    assert_eq!(put(store, changing(&after(&gone, 1, 1, end), &gone)).await, Outcome::Done);
    let due = async |before: Timestamp| {
        let due = store.due(before, 100).await.unwrap();
        due.iter().filter(|session| session.realm == *realm).map(|session| session.id).collect::<Vec<_>>()
    };
    assert!(due(at(1_799)).await.is_empty());
    assert!(store.mark_used(used.session.id, at(600)).await.unwrap().is_some());
    assert!(store.mark_used(used.session.id, at(500)).await.unwrap().is_none(), "never back");
    assert_eq!(put(store, changing(&after(&used, 2, 1, |_| ()), &used)).await, Outcome::Done);
    assert_eq!(stands(store, used.session.id).await.unwrap().session.last_seen_at, at(600));
    assert_eq!(due(at(1_900)).await, [idle.session.id]);
    assert_eq!(due(at(2_401)).await, [idle.session.id, used.session.id]);
    let last = store.mark_used(used.session.id, at(43_100)).await.unwrap().unwrap();
    assert_eq!(last.session.last_seen_at, at(43_100));
    assert_eq!(due(at(43_201)).await, [idle.session.id, used.session.id], "none outlives its absolute deadline");
}

/// An answer is kept with its change, given again until its time is up, and keeps a second change from happening.
///
/// # Panics
/// If not.
#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
pub async fn answers(store: &dyn TransientStore, realm: &RealmName, now: Timestamp, key: Digest) {
    let [first, second] = [80, 81].map(|n| {
        let state = begun(realm, n, None);
        Stamped { stamp: Stamp { at: now, ..state.stamp }, ..state }
    });
    let kept = KeptAnswer {
        request: Digest([5; 32]),
        session: first.session.id,
        token: vec![1, 2, 3],
        expires: now.plus(session_model::Seconds(3_600)),
    };
    assert_eq!(store.answer(&key, now).await.unwrap(), None);
    let with = |state: &Stamped| Put { answer: Some((key, kept.clone())), ..beginning(state) };
    assert_eq!(put(store, with(&first)).await, Outcome::Done);
    assert_eq!(store.answer(&key, now).await.unwrap(), Some(kept.clone()));
    assert_eq!(put(store, with(&second)).await, Outcome::Answered);
    assert!(stands(store, second.session.id).await.is_none());
    assert_eq!(store.answer(&key, kept.expires).await.unwrap(), None);
    // What did not happen leaves no answer.
    let other = Digest([key.0.first().copied().unwrap_or_default() ^ 1; 32]);
    let moved = Put { answer: Some((other, kept.clone())), ..beginning(&first) };
    assert_eq!(put(store, moved).await, Outcome::Moved);
    assert_eq!(store.answer(&other, now).await.unwrap(), None);
}
