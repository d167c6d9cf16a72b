//! The memory view: the conformance suite, and what only it promises.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use session_model::{LeafIndex, Session};
use session_view::test_util::{at, ended, id, seen, session};
use session_view::{Applied, BeyondBudget, Budget, MemoryView, RETAIN_ENDED_S, SessionView, Viewed};

async fn unbounded() -> (Arc<dyn SessionView>, ()) {
    (Arc::new(MemoryView::new(Budget::default())), ())
}

async fn roomy_but_evicting() -> (Arc<dyn SessionView>, ()) {
    (Arc::new(MemoryView::new(Budget { bytes: 64 << 20, beyond: BeyondBudget::Evict })), ())
}

session_view::conformance_tests!(memory, unbounded);
session_view::conformance_tests!(memory_evicting, roomy_but_evicting);

async fn apply(view: &MemoryView, state: Session) -> Applied {
    view.apply(&[Arc::new(state)]).await.unwrap()[0]
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_goes_after_its_time_and_no_earlier() {
    let view = MemoryView::new(Budget::default());
    assert_eq!(apply(&view, ended(1, 5)).await, Applied::Yes);
    tokio::time::advance(Duration::from_secs(u64::from(RETAIN_ENDED_S))).await;
    let _ = view.due(at(1 << 30), 10).await.unwrap();
    assert_eq!(apply(&view, session(1, 4)).await, Applied::Stale);
    // A later entry of the ended session keeps it again.
    assert_eq!(apply(&view, ended(1, 6)).await, Applied::Yes);
    tokio::time::advance(Duration::from_secs(u64::from(RETAIN_ENDED_S))).await;
    let _ = view.due(at(0), 10).await.unwrap();
    assert_eq!(apply(&view, session(1, 4)).await, Applied::Stale);
    tokio::time::advance(Duration::from_secs(2)).await;
    let _ = view.due(at(0), 10).await.unwrap();
    assert!(view.peek(id(1)).is_none());
    assert_eq!((view.status().held, view.status().bytes), (0, 0));
}

#[tokio::test]
async fn refusing_says_when_it_is_full_and_still_applies_what_has_happened() {
    let view = MemoryView::new(Budget { bytes: 20_000, beyond: BeyondBudget::Refuse });
    let mut n = 0;
    while view.has_room() {
        assert_eq!(apply(&view, session(n, n)).await, Applied::Yes);
        n += 1;
        assert!(n < 1_000, "never full");
    }
    assert!(n > 10, "full after {n}");
    assert_eq!(apply(&view, session(n, n)).await, Applied::Yes);
    assert!((0..=n).all(|n| view.peek(id(n)).is_some()), "it forgot one");
    let full = view.status();
    assert_eq!((full.held, full.budget), (n as usize + 1, Some(20_000)));
    for n in 0..=n {
        assert_eq!(apply(&view, ended(n, 1_000 + n)).await, Applied::Yes);
    }
    assert!(view.status().bytes < full.bytes, "an ended session takes less");
}

#[tokio::test(start_paused = true)]
async fn evicting_keeps_the_budget_and_what_is_used() {
    let budget = 8 << 20;
    let view = MemoryView::new(Budget { bytes: budget, beyond: BeyondBudget::Evict });
    let favourites = 0..50;
    let total = 60_000;
    for n in 0..total {
        assert!(view.has_room());
        assert_eq!(apply(&view, session(n, n)).await, Applied::Yes);
        if n % 20 == 0 {
            favourites.clone().for_each(|n| drop(view.peek(id(n))));
        }
        if n % 5_000 == 0 {
            // The marks of eviction take room too, until their time is over.
            tokio::time::advance(Duration::from_secs(61)).await;
        }
        assert!(view.status().bytes <= budget, "{:?} at {n}", view.status());
    }
    let kept = favourites.clone().filter(|n| view.peek(id(*n)).is_some()).count();
    assert!(kept >= 45, "only {kept} of the 50 always in use are left");
    assert!(view.status().held > 5_000, "{:?}", view.status());
    let due = view.due(at(1 << 20), usize::MAX >> 1).await.unwrap();
    assert_eq!(due.len(), total as usize, "the reaper finds the evicted too");
}

#[tokio::test]
async fn an_evicted_session_comes_back_but_never_older() {
    let view = MemoryView::new(Budget { bytes: 0, beyond: BeyondBudget::Evict });
    assert_eq!(apply(&view, session(1, 5)).await, Applied::Yes);
    assert!(view.peek(id(1)).is_none(), "evicted at once");
    assert_eq!(apply(&view, session(1, 4)).await, Applied::Stale);
    assert_eq!(apply(&view, session(1, 5)).await, Applied::Yes);
    assert_eq!(apply(&view, ended(1, 6)).await, Applied::Yes);
    assert!(matches!(view.peek(id(1)), Some(Viewed::Ended(end)) if end.head.index == LeafIndex(6)), "never evicted");
    assert!(view.due(at(1 << 20), 10).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_session_evicted_long_ago_is_due_until_it_is_applied() {
    let view = MemoryView::new(Budget { bytes: 1_200, beyond: BeyondBudget::Evict });
    for n in 0..4 {
        assert_eq!(apply(&view, session(n, n)).await, Applied::Yes);
    }
    tokio::time::advance(Duration::from_secs(100)).await;
    let gone: Vec<_> = (0..4).filter(|n| view.peek(id(*n)).is_none()).collect();
    assert!(!gone.is_empty());
    assert_eq!(view.due(at(1_801), 10).await.unwrap().len(), 4);
    for n in &gone {
        assert_eq!(apply(&view, seen(*n, *n, 100)).await, Applied::Yes);
    }
    let due = view.due(at(1_801), 10).await.unwrap();
    assert!(due.len() < 4, "those used later than the view knew are due later: {due:?}");
    for n in 0..4 {
        assert_eq!(apply(&view, ended(n, 10 + n)).await, Applied::Yes);
    }
    assert!(view.due(at(1 << 20), 10).await.unwrap().is_empty());
}

/// What a node holds no more is neither shown nor due there; what it comes to hold again is, and no older state of it.
#[tokio::test]
async fn what_is_not_retained_is_dropped_and_may_come_back_but_never_older() {
    let view = MemoryView::new(Budget::default());
    let states: Vec<_> = (0..100).map(|n| Arc::new(session(n, n + 10))).collect();
    let _applied = view.apply(&states).await.unwrap();
    let _ended = view.apply(&[Arc::new(ended(99, 200))]).await.unwrap();
    let bytes = view.status().bytes;
    let kept = |n: u64| n.is_multiple_of(2);
    let numbers: std::collections::HashMap<_, _> = (0..100).map(|n| (id(n), n)).collect();
    view.retain(&|id| kept(numbers[&id]));
    for n in 0..99 {
        assert_eq!(view.peek(id(n)).is_some(), kept(n), "{n}");
    }
    assert!(matches!(view.peek(id(99)), Some(Viewed::Ended(_))), "an end is told of until it is forgotten");
    assert!(view.status().held == 51 && view.status().bytes < bytes * 3 / 4, "{:?}", view.status());
    let due: Vec<_> = view.due(at(1_801), 1_000).await.unwrap();
    assert!(due.len() == 50 && due.iter().all(|id| kept(numbers[id])));
    // Twice is as once.
    view.retain(&|id| kept(numbers[&id]));
    assert_eq!(view.status().held, 51);

    assert_eq!(view.apply(&[Arc::new(session(1, 5))]).await.unwrap(), [Applied::Stale], "older than what it had");
    assert!(view.peek(id(1)).is_none());
    assert_eq!(view.apply(&[Arc::new(session(1, 11))]).await.unwrap(), [Applied::Yes]);
    assert_eq!(view.due(at(1_801), 1_000).await.unwrap().len(), 51, "it is due here again");
    assert_eq!(view.apply(&[Arc::new(ended(3, 300))]).await.unwrap(), [Applied::Yes]);
    assert!(matches!(view.peek(id(3)), Some(Viewed::Ended(_))));
}
