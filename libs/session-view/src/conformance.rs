//! What every view must do: one function for each rule of [`SessionView`]'s contract. An adapter's tests call
//! [`conformance_tests!`](crate::conformance_tests), which makes a test of each, with a fresh view from a builder.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a suite of tests fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use session_model::{Attributes, LeafIndex, Limits, Session, TreeSize};

use crate::test_util::{at, ended, id, seen, session};
use crate::{Applied, SessionView, Viewed};

/// The view under test.
pub type Subject = Arc<dyn SessionView>;

/// Makes a module `$name` with one test for each rule. `$builder` is called, for each test, as `$builder().await` and
/// answers `(Arc<dyn SessionView>, guard)`: the guard is dropped when the test is over.
///
/// As `conformance_tests!(in_turn $builder)` it is a statement that checks all rules one after the other, for servers that take
/// long to start.
#[macro_export]
macro_rules! conformance_tests {
    (in_turn $builder:expr) => {
        $crate::conformance_tests!(@list [in_turn $builder])
    };
    ($name:ident, $builder:expr) => {
        $crate::conformance_tests!(@list [rules $name, $builder]);
    };
    (@list [$($head:tt)*]) => {
        $crate::conformance_tests! { @$($head)*,
            absent_is_none,
            a_newer_state_replaces_an_older_whatever_the_order,
            applying_again_changes_nothing,
            every_field_comes_back,
            a_tombstone_is_final,
            a_tombstone_is_final_in_a_race,
            a_batch_answers_in_order,
            a_large_batch_is_applied,
            an_empty_batch_is_fine,
            concurrent_applies_end_at_the_highest_index,
            a_mark_moves_forward_only,
            a_mark_does_not_touch_the_ended_or_the_absent,
            a_mark_does_not_change_the_head,
            a_mark_survives_a_replacement,
            due_is_in_order_and_limited,
            due_leaves_out_the_ended,
            due_is_strictly_before,
            due_follows_a_mark,
            due_follows_a_replacement,
            due_never_passes_the_absolute_deadline,
            reflects_only_rises,
            a_quarantined_session_can_be_applied,
            quarantine_spares_what_can_be_read,
            there_is_room_and_it_says_how_it_is,
            peek_is_never_older_than_what_was_applied,
            random_applies_converge,
            an_identity_stays,
            what_is_exported_is_what_is_active,
        }
    };
    (@in_turn $builder:expr, $($rule:ident,)*) => {
        $(
            let (view, _guard) = $builder().await;
            $crate::conformance::$rule(view).await;
        )*
    };
    (@rules $name:ident, $builder:expr, $($rule:ident,)*) => {
        mod $name {
            #[allow(unused_imports, reason = "the builder may be named by its full path")]
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $rule() {
                    let (view, _guard) = $builder().await;
                    $crate::conformance::$rule(view).await;
                }
            )*
        }
    };
}

async fn apply(view: &Subject, state: Session) -> Applied {
    let applied = view.apply(&[Arc::new(state)]).await.unwrap();
    assert_eq!(applied.len(), 1);
    applied.into_iter().next().unwrap()
}

async fn applied(view: &Subject, state: Session) {
    assert_eq!(apply(view, state).await, Applied::Yes);
}

async fn active(view: &Subject, n: u64) -> Arc<Session> {
    match view.get(id(n)).await.unwrap() {
        Some(Viewed::Active(session)) => session,
        other => panic!("session {n} should be active, is {other:?}"),
    }
}

async fn shown_index(view: &Subject, n: u64) -> Option<LeafIndex> {
    view.get(id(n)).await.unwrap().map(|viewed| match viewed {
        Viewed::Active(session) => session.head.index,
        Viewed::Ended(tombstone) => tombstone.head.index,
    })
}

async fn due(view: &Subject, before: i64, limit: usize) -> Vec<u64> {
    let due = view.due(at(before), limit).await.unwrap();
    due.into_iter().map(|found| (0..100).find(|n| id(*n) == found).expect("an id nobody applied")).collect()
}

/// Absence is `Ok(None)`.
pub async fn absent_is_none(view: Subject) {
    assert!(view.get(id(1)).await.unwrap().is_none());
    assert!(view.peek(id(1)).is_none());
    applied(&view, session(2, 0)).await;
    assert!(view.get(id(1)).await.unwrap().is_none());
}

/// Order.
pub async fn a_newer_state_replaces_an_older_whatever_the_order(view: Subject) {
    let orders = [[3, 5, 9], [3, 9, 5], [5, 3, 9], [5, 9, 3], [9, 3, 5], [9, 5, 3]];
    for (n, order) in (0..).zip(orders) {
        let mut highest = None;
        for index in order {
            let expected = if Some(index) > highest { Applied::Yes } else { Applied::Stale };
            assert_eq!(apply(&view, session(n, index)).await, expected, "{index} of {order:?}");
            highest = highest.max(Some(index));
            assert_eq!(shown_index(&view, n).await, highest.map(LeafIndex), "after {index} of {order:?}");
        }
    }
}

/// Idempotence.
pub async fn applying_again_changes_nothing(view: Subject) {
    applied(&view, session(1, 4)).await;
    assert_eq!(apply(&view, Session { subject: None, ..session(1, 4) }).await, Applied::Stale);
    assert_eq!(active(&view, 1).await.subject.as_deref(), Some("subject 1"));
    applied(&view, ended(1, 5)).await;
    assert_eq!(apply(&view, ended(1, 5)).await, Applied::Stale);
}

/// What was applied is what is shown.
pub async fn every_field_comes_back(view: Subject) {
    let client = session_model::Client { address: Some([192, 0, 2, 1].into()), user_agent: Some("käse/1".to_owned()) };
    let mut whole = session(1, 7);
    whole.attributes = Attributes::parse(r#"{"cart":["a",1,null],"n":{"x":0.5}}"#, &Limits::default()).unwrap();
    whole.authentication = Some(session_model::Authentication {
        methods: vec!["pwd".to_owned(), "otp".to_owned()],
        level: Some("aal2".to_owned()),
        at: at(3),
    });
    whole.client = Some(client.clone());
    whole.last_seen_at = at(11);
    whole.previous = Some(session_model::PreviousToken { digest: session(2, 0).token, until: at(41), honoured: true });
    whole.retired = vec![session(3, 0).token, session(4, 0).token];
    whole.reuse_recorded = true;
    applied(&view, whole.clone()).await;
    let shown = active(&view, 1).await;
    assert_eq!(
        (shown.id, &shown.realm, shown.version, shown.head),
        (whole.id, &whole.realm, whole.version, whole.head)
    );
    assert_eq!((&shown.subject, shown.data_key, shown.kind), (&whole.subject, whole.data_key, whole.kind));
    assert_eq!((&shown.attributes, &shown.authentication), (&whole.attributes, &whole.authentication));
    assert_eq!((&shown.client, shown.created_at, shown.last_seen_at), (&Some(client), at(0), at(11)));
    assert_eq!((shown.idle_timeout, shown.expires_at), (whole.idle_timeout, whole.expires_at));
    assert_eq!((shown.token_issued_at, shown.reuse_recorded), (at(0), true));
    assert!(shown.token.matches(&whole.token));
    let previous = shown.previous.as_ref().unwrap();
    assert!(previous.honoured && previous.until == at(41) && previous.digest.matches(&session(2, 0).token));
    assert_eq!(shown.retired.len(), 2);
    assert!(shown.retired.iter().zip(&whole.retired).all(|(one, other)| one.matches(other)));

    let end = ended(1, 8);
    applied(&view, end.clone()).await;
    let Some(Viewed::Ended(tombstone)) = view.get(id(1)).await.unwrap() else { panic!("it has ended") };
    assert_eq!((tombstone.id, &tombstone.realm, tombstone.version), (end.id, &end.realm, end.version));
    assert_eq!((tombstone.head, Some(&tombstone.ended)), (end.head, end.ended()));
    assert!(tombstone.token.matches(&end.token));
}

/// Finality.
pub async fn a_tombstone_is_final(view: Subject) {
    applied(&view, session(1, 1)).await;
    applied(&view, ended(1, 5)).await;
    for index in [0, 1, 4, 5, 6] {
        assert_eq!(apply(&view, session(1, index)).await, Applied::Stale, "active at {index}");
    }
    assert!(matches!(view.get(id(1)).await.unwrap(), Some(Viewed::Ended(_))));
    // A late use of a token is an entry of the ended session.
    applied(&view, ended(1, 7)).await;
    assert_eq!(shown_index(&view, 1).await, Some(LeafIndex(7)));
    // One whose beginning this view was never told of.
    applied(&view, ended(2, 5)).await;
    assert_eq!(apply(&view, session(2, 4)).await, Applied::Stale);
    assert!(matches!(view.get(id(2)).await.unwrap(), Some(Viewed::Ended(_))));
}

/// Finality, with many tasks applying older states while one ends the session.
pub async fn a_tombstone_is_final_in_a_race(view: Subject) {
    for n in 0..8 {
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..16 {
            let view = Arc::clone(&view);
            let state = if index == 11 { ended(n, 20) } else { session(n, index) };
            tasks.spawn(async move { apply(&view, state).await });
        }
        while let Some(done) = tasks.join_next().await {
            let _ = done.unwrap();
        }
        assert!(matches!(view.get(id(n)).await.unwrap(), Some(Viewed::Ended(_))), "session {n}");
        assert!(!matches!(view.peek(id(n)), Some(Viewed::Active(_))), "session {n}");
    }
}

/// One answer for each state of a batch, in order, also where one session stands in it twice.
pub async fn a_batch_answers_in_order(view: Subject) {
    applied(&view, session(2, 10)).await;
    let batch = [session(1, 1), session(2, 9), session(3, 2), session(1, 3), session(1, 2), ended(3, 4), session(3, 3)];
    let batch: Vec<_> = batch.into_iter().map(Arc::new).collect();
    use Applied::{Stale, Yes};
    assert_eq!(view.apply(&batch).await.unwrap(), [Yes, Stale, Yes, Yes, Stale, Yes, Stale]);
    assert_eq!(shown_index(&view, 1).await, Some(LeafIndex(3)));
    assert_eq!(shown_index(&view, 2).await, Some(LeafIndex(10)));
    assert!(matches!(view.get(id(3)).await.unwrap(), Some(Viewed::Ended(_))));
}

/// A batch as large as a rebuild's.
pub async fn a_large_batch_is_applied(view: Subject) {
    let batch: Vec<_> = (0..3_000).map(|n| Arc::new(session(n, n))).collect();
    assert!(view.apply(&batch).await.unwrap().iter().all(|applied| *applied == Applied::Yes));
    for n in [0, 1_499, 2_999] {
        assert_eq!(shown_index(&view, n).await, Some(LeafIndex(n)));
    }
}

/// Nothing to do is done.
pub async fn an_empty_batch_is_fine(view: Subject) {
    assert!(view.apply(&[]).await.unwrap().is_empty());
    view.mark_used(&[]).await.unwrap();
    assert!(view.due(at(1 << 30), 0).await.unwrap().is_empty());
}

/// Concurrency.
pub async fn concurrent_applies_end_at_the_highest_index(view: Subject) {
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..8 {
        let view = Arc::clone(&view);
        tasks.spawn(async move {
            for step in 0..25 {
                // Each lane takes the indices in another order.
                let index = (step * 7 + lane) % 25 * 8 + lane;
                let _ = apply(&view, session(1, index)).await;
                assert!(shown_index(&view, 1).await >= Some(LeafIndex(index)), "read my write of {index}");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(shown_index(&view, 1).await, Some(LeafIndex(199)));
}

/// A mark moves `last_seen_at` forward, never back.
pub async fn a_mark_moves_forward_only(view: Subject) {
    applied(&view, seen(1, 0, 100)).await;
    view.mark_used(&[(id(1), at(200))]).await.unwrap();
    assert_eq!(active(&view, 1).await.last_seen_at, at(200));
    view.mark_used(&[(id(1), at(150))]).await.unwrap();
    assert_eq!(active(&view, 1).await.last_seen_at, at(200));
    view.mark_used(&[(id(1), at(300)), (id(1), at(250))]).await.unwrap();
    assert_eq!(active(&view, 1).await.last_seen_at, at(300));
}

/// A mark changes nothing but an active session that the view holds.
pub async fn a_mark_does_not_touch_the_ended_or_the_absent(view: Subject) {
    applied(&view, ended(1, 5)).await;
    applied(&view, session(3, 0)).await;
    view.mark_used(&[(id(1), at(500)), (id(2), at(500)), (id(3), at(500))]).await.unwrap();
    assert!(matches!(view.get(id(1)).await.unwrap(), Some(Viewed::Ended(_))));
    assert!(view.get(id(2)).await.unwrap().is_none());
    assert_eq!(active(&view, 3).await.last_seen_at, at(500), "the others of the call are marked");
    assert_eq!(due(&view, 1 << 20, 10).await, [3]);
}

/// A mark is no entry: the state reflects the same leaf, and the next entry replaces it.
pub async fn a_mark_does_not_change_the_head(view: Subject) {
    applied(&view, session(1, 5)).await;
    view.mark_used(&[(id(1), at(500))]).await.unwrap();
    let marked = active(&view, 1).await;
    assert_eq!((marked.head, marked.version), (session(1, 5).head, session(1, 5).version));
    assert_eq!(apply(&view, session(1, 5)).await, Applied::Stale);
    applied(&view, session(1, 6)).await;
}

/// A newer state that was made without knowing of the mark does not undo it.
pub async fn a_mark_survives_a_replacement(view: Subject) {
    applied(&view, session(1, 5)).await;
    view.mark_used(&[(id(1), at(1_000))]).await.unwrap();
    applied(&view, seen(1, 6, 900)).await;
    let shown = active(&view, 1).await;
    assert_eq!((shown.head.index, shown.last_seen_at), (LeafIndex(6), at(1_000)));
    assert_eq!(due(&view, 2_750, 10).await, [0; 0]);
    applied(&view, seen(1, 7, 1_100)).await;
    assert_eq!(active(&view, 1).await.last_seen_at, at(1_100));
}

/// Earliest first, at most as many as asked for.
pub async fn due_is_in_order_and_limited(view: Subject) {
    let batch: Vec<_> = [(1, 50), (2, 10), (3, 40), (4, 20), (5, 30), (6, 5_000)]
        .into_iter()
        .map(|(n, at)| Arc::new(seen(n, n, at)))
        .collect();
    let _ = view.apply(&batch).await.unwrap();
    assert_eq!(due(&view, 2_000, 10).await, [2, 4, 5, 3, 1]);
    assert_eq!(due(&view, 2_000, 2).await, [2, 4]);
    assert_eq!(due(&view, 1_825, 10).await, [2, 4]);
    assert_eq!(due(&view, 2_000, 10).await, [2, 4, 5, 3, 1], "asking does not change it");
}

/// An ended session is not due, whether it was seen active before or not, and whichever came first.
pub async fn due_leaves_out_the_ended(view: Subject) {
    for n in 1..=3 {
        applied(&view, session(n, 0)).await;
    }
    applied(&view, ended(2, 1)).await;
    applied(&view, ended(4, 1)).await;
    assert_eq!(apply(&view, session(4, 0)).await, Applied::Stale);
    let mut due = due(&view, 1 << 20, 10).await;
    due.sort_unstable();
    assert_eq!(due, [1, 3]);
}

/// Before means before.
pub async fn due_is_strictly_before(view: Subject) {
    applied(&view, session(1, 0)).await;
    assert_eq!(due(&view, 1_799, 10).await, [0; 0]);
    assert_eq!(due(&view, 1_800, 10).await, [0; 0]);
    assert_eq!(due(&view, 1_801, 10).await, [1]);
}

/// A mark moves the deadline.
pub async fn due_follows_a_mark(view: Subject) {
    applied(&view, session(1, 0)).await;
    applied(&view, seen(2, 1, 500)).await;
    view.mark_used(&[(id(1), at(1_000))]).await.unwrap();
    assert_eq!(due(&view, 2_301, 10).await, [2]);
    assert_eq!(due(&view, 2_801, 10).await, [2, 1]);
    view.mark_used(&[(id(2), at(1_100))]).await.unwrap();
    assert_eq!(due(&view, 2_801, 10).await, [1]);
    assert_eq!(due(&view, 2_901, 10).await, [1, 2]);
}

/// A newer state moves the deadline, to either side.
pub async fn due_follows_a_replacement(view: Subject) {
    applied(&view, session(1, 0)).await;
    applied(&view, seen(1, 1, 600)).await;
    assert_eq!(due(&view, 2_000, 10).await, [0; 0]);
    assert_eq!(due(&view, 2_401, 10).await, [1]);
    applied(&view, Session { expires_at: at(900), ..seen(1, 2, 600) }).await;
    assert_eq!(due(&view, 901, 10).await, [1]);
}

/// Marks do not carry a session past its absolute deadline.
pub async fn due_never_passes_the_absolute_deadline(view: Subject) {
    applied(&view, session(1, 0)).await;
    view.mark_used(&[(id(1), at(43_100))]).await.unwrap();
    assert_eq!(due(&view, 43_200, 10).await, [0; 0]);
    assert_eq!(due(&view, 43_201, 10).await, [1]);
}

/// Progress is never taken back, also when two report it at once.
pub async fn reflects_only_rises(view: Subject) {
    assert_eq!(view.reflects().await.unwrap(), TreeSize(0));
    for (set, then) in [(5, 5), (3, 5), (5, 5), (1 << 40, 1 << 40), (9, 1 << 40)] {
        view.set_reflects(TreeSize(set)).await.unwrap();
        assert_eq!(view.reflects().await.unwrap(), TreeSize(then));
    }
}

/// After a quarantine the session is applied as if it had never been there.
pub async fn a_quarantined_session_can_be_applied(view: Subject) {
    view.quarantine(id(1)).await.unwrap();
    applied(&view, session(1, 3)).await;
    assert_eq!(shown_index(&view, 1).await, Some(LeafIndex(3)));
}

/// A late quarantine does not remove a tombstone that somebody has applied since.
pub async fn quarantine_spares_what_can_be_read(view: Subject) {
    applied(&view, ended(1, 3)).await;
    view.quarantine(id(1)).await.unwrap();
    assert_eq!(apply(&view, session(1, 2)).await, Applied::Stale);
    assert!(matches!(view.get(id(1)).await.unwrap(), Some(Viewed::Ended(_))));
}

/// A view that works says so.
pub async fn there_is_room_and_it_says_how_it_is(view: Subject) {
    applied(&view, session(1, 0)).await;
    let _ = view.get(id(1)).await.unwrap();
    assert!(view.has_room());
    let status = view.status();
    assert!(status.available && !status.kind.is_empty());
    assert!((status.held == 0) == (status.bytes == 0), "{status:?}");
}

/// `peek` may know nothing, but what it knows is not older than what this view has applied.
pub async fn peek_is_never_older_than_what_was_applied(view: Subject) {
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let view = Arc::clone(&view);
            tokio::spawn(async move {
                let mut newest = None;
                for _ in 0..300 {
                    let index = shown_index(&view, 1).await;
                    assert!(index >= newest, "went back from {newest:?} to {index:?}");
                    newest = index;
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for index in 0..100 {
        applied(&view, session(1, index)).await;
        if let Some(Viewed::Active(session)) = view.peek(id(1)) {
            assert_eq!(session.head.index, LeafIndex(index));
        }
        if index % 10 == 0 {
            view.mark_used(&[(id(1), at(index as i64))]).await.unwrap();
            if let Some(Viewed::Active(session)) = view.peek(id(1)) {
                assert_eq!(session.last_seen_at, at(index as i64));
            }
        }
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

/// Whatever the order and whoever applies, the newest state of each session is what remains, and the ended are not due.
pub async fn random_applies_converge(view: Subject) {
    const SESSIONS: u64 = 4;
    let handle = tokio::runtime::Handle::current();
    let cases = tokio::task::spawn_blocking(move || {
        let mut runner = TestRunner::new(Config { cases: 32, failure_persistence: None, ..Config::default() });
        // Each run has sessions of its own, so that no run sees another's.
        let runs = AtomicU64::new(0);
        let steps = prop::collection::vec((0..SESSIONS, 0_u64..20, 0_usize..4, any::<bool>()), 1..60);
        runner.run(&steps, |steps| {
            let first = 1_000 + runs.fetch_add(SESSIONS, Relaxed);
            let outcome = handle.block_on(async {
                // A session that ends does so by its last entry, number 19.
                let state = |&(n, index, _, ends): &(u64, u64, usize, bool)| match index {
                    19 if ends => ended(first + n, index),
                    19 => session(first + n, 18),
                    _ => session(first + n, index),
                };
                let mut tasks = tokio::task::JoinSet::new();
                for lane in 0..4 {
                    let view = Arc::clone(&view);
                    let batch: Vec<_> =
                        steps.iter().filter(|step| step.2 == lane).map(|step| Arc::new(state(step))).collect();
                    tasks.spawn(async move {
                        for states in batch.chunks(3) {
                            let _ = view.apply(states).await.unwrap();
                        }
                    });
                }
                while let Some(done) = tasks.join_next().await {
                    done.unwrap();
                }
                let mut shown = Vec::new();
                let mut wanted = Vec::new();
                for n in 0..SESSIONS {
                    shown.push(shown_index(&view, first + n).await);
                    wanted.push(steps.iter().filter(|step| step.0 == n).map(|step| state(step).head.index).max());
                }
                let due = view.due(at(1 << 20), usize::MAX >> 1).await.unwrap();
                let active = wanted.iter().flatten().filter(|index| index.0 < 19).count();
                let listed = due.iter().filter(|due| (first..first + SESSIONS).any(|n| id(n) == **due)).count();
                (shown, wanted, active, listed)
            });
            let (shown, wanted, active, listed) = outcome;
            prop_assert_eq!(shown, wanted);
            prop_assert_eq!(listed, active);
            Ok(())
        })
    });
    cases.await.unwrap().unwrap();
}

/// Nodes recognise by it that they share a view.
pub async fn an_identity_stays(view: Subject) {
    let first = view.identity().await.unwrap();
    view.apply(&[Arc::new(session(1, 1))]).await.unwrap();
    assert_eq!(view.identity().await.unwrap(), first);
}

/// All that is active, each once, and positions rise; or nothing at all.
pub async fn what_is_exported_is_what_is_active(view: Subject) {
    let states: Vec<Arc<Session>> = (1..=500).map(|n| Arc::new(session(n, n))).collect();
    let _applied = view.apply(&states).await.unwrap();
    let _applied = view.apply(&[Arc::new(ended(7, 600))]).await.unwrap();
    let (mut from, mut exported) = (0, Vec::new());
    // A view that is shared, or does not hold everything, offers nothing.
    while let Some(page) = view.export(from, 4_096) {
        exported.extend(page.sessions.iter().map(|session| session.id));
        match page.next {
            Some(next) => {
                assert!(next > from, "positions rise");
                from = next;
            }
            None => {
                let mut wanted: Vec<_> = (1..=500).filter(|n| *n != 7).map(id).collect();
                exported.sort();
                wanted.sort();
                assert_eq!(exported, wanted);
                return;
            }
        }
    }
    assert!(exported.is_empty(), "half of it was offered");
}
