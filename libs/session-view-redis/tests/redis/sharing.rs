//! Several nodes on one Redis, and what stands in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use session_model::{Attributes, Limits, Session, SessionId};
use session_view::test_util::{at, ended, id, seen, session};
use session_view::{SessionView, Viewed};
use session_view_redis::RedisView;

use crate::support::{Namespace, applied, tracked, within};

const BOUND: Duration = Duration::from_secs(2);

fn index(viewed: &Viewed) -> u64 {
    match viewed {
        Viewed::Active(session) => session.head.index.0,
        Viewed::Ended(tombstone) => tombstone.head.index.0,
    }
}

fn peeked(view: &RedisView, id: SessionId) -> Option<u64> {
    view.peek(id).as_ref().map(index)
}

/// Reads until the near cache holds it: an invalidation of our own write may still be on its way.
async fn cached(view: &RedisView, id: SessionId) -> u64 {
    within(BOUND, "the near cache holds it", async || {
        view.get(id).await.unwrap();
        view.peek(id).is_some()
    })
    .await;
    peeked(view, id).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_on_one_node_is_seen_on_the_other_and_never_unseen() {
    let namespace = Namespace::new().await;
    let (one, other) = (tracked(namespace.config()).await, tracked(namespace.config()).await);
    applied(&one, session(1, 0)).await;
    let mut slowest = Duration::ZERO;
    for next in 1..200 {
        assert_eq!(cached(&other, id(1)).await, next - 1);
        applied(&one, session(1, next)).await;
        assert!(peeked(&one, id(1)).is_none_or(|index| index == next), "read my write");
        slowest =
            slowest.max(within(BOUND, "the old state is gone", async || peeked(&other, id(1)) != Some(next - 1)).await);
        assert_eq!(other.get(id(1)).await.unwrap().as_ref().map(index), Some(next));
        assert!(peeked(&other, id(1)).is_none_or(|index| index == next));
    }
    cached(&other, id(1)).await;
    applied(&one, ended(1, 500)).await;
    within(BOUND, "the end is seen", async || !matches!(other.peek(id(1)), Some(Viewed::Active(_)))).await;
    assert!(matches!(other.get(id(1)).await.unwrap(), Some(Viewed::Ended(_))));
    eprintln!("slowest invalidation: {slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_goes_back_while_two_nodes_write() {
    let namespace = Namespace::new().await;
    let (one, other) = (Arc::new(tracked(namespace.config()).await), Arc::new(tracked(namespace.config()).await));
    let over = Arc::new(AtomicBool::new(false));
    let mut readers = tokio::task::JoinSet::new();
    for view in [&one, &other, &one, &other] {
        let (view, over) = (Arc::clone(view), Arc::clone(&over));
        readers.spawn(async move {
            let (mut newest, mut from_cache) = (None, 0);
            while !over.load(SeqCst) {
                for _ in 0..4 {
                    if let Some(index) = peeked(&view, id(1)) {
                        assert!(Some(index) >= newest, "the cache went back from {newest:?} to {index}");
                        newest = Some(index);
                        from_cache += 1;
                    }
                }
                let index = view.get(id(1)).await.unwrap().as_ref().map(index);
                assert!(index >= newest, "Redis went back from {newest:?} to {index:?}");
                newest = index;
            }
            from_cache
        });
    }
    for next in 0..3_000 {
        applied(if next % 2 == 0 { &one } else { &other }, session(1, next)).await;
        if next % 16 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    over.store(true, SeqCst);
    let mut from_cache = 0;
    while let Some(done) = readers.join_next().await {
        from_cache += done.unwrap();
    }
    assert!(from_cache > 0, "the cache was never in use");
}

#[tokio::test]
async fn a_mark_on_one_node_is_seen_on_the_other() {
    let namespace = Namespace::new().await;
    let (one, other) = (tracked(namespace.config()).await, tracked(namespace.config()).await);
    applied(&one, session(1, 0)).await;
    cached(&other, id(1)).await;
    one.mark_used(&[(id(1), at(700))]).await.unwrap();
    within(BOUND, "the mark is seen", async || {
        matches!(other.get(id(1)).await.unwrap(), Some(Viewed::Active(session)) if session.last_seen_at == at(700))
            && !matches!(other.peek(id(1)), Some(Viewed::Active(session)) if session.last_seen_at < at(700))
    })
    .await;
}

#[tokio::test]
async fn the_near_cache_keeps_its_budget_and_answers_only_while_it_is_told_of_changes() {
    let namespace = Namespace::new().await;
    let mut config = namespace.config();
    config.near_cache_bytes = 256 << 10;
    let view = tracked(config).await;
    for first in (0..2_000).step_by(500) {
        let batch: Vec<_> = (first..first + 500).map(|n| Arc::new(session(n, n))).collect();
        let _ = view.apply(&batch).await.unwrap();
    }
    for n in 0..2_000 {
        assert!(view.get(id(n)).await.unwrap().is_some());
    }
    let status = view.status();
    assert!(status.available && status.held > 50 && status.bytes <= 256 << 10, "{status:?}");

    // The tracking connection is cut: nothing is answered until changes are told of again.
    cached(&view, id(1)).await;
    let mut raw = namespace.raw().await;
    for n in [0, 1] {
        let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut raw).await.unwrap();
        let tracking = clients
            .lines()
            .filter(|line| line.split(' ').any(|field| field.starts_with("flags=") && field.contains('t')));
        let ids: Vec<&str> = tracking.filter_map(|line| line.strip_prefix("id=")?.split(' ').next()).collect();
        assert!(!ids.is_empty());
        for client in &ids {
            let _: i64 = redis::cmd("CLIENT").arg("KILL").arg("ID").arg(client).query_async(&mut raw).await.unwrap();
        }
        within(BOUND, "the cache is emptied", async || view.peek(id(1)).is_none()).await;
        applied(&view, session(1, 5_000 + n)).await;
        assert_eq!(view.get(id(1)).await.unwrap().as_ref().map(index), Some(5_000 + n));
        within(Duration::from_secs(5), "tracking is on again", async || view.is_tracking()).await;
        assert_eq!(cached(&view, id(1)).await, 5_000 + n);
    }
}

#[tokio::test]
async fn nothing_personal_stands_in_redis_in_clear() {
    let namespace = Namespace::new().await;
    let view = tracked(namespace.config()).await;
    let mut state = seen(1, 0, 5);
    state.subject = Some("alice.canary".into());
    state.attributes = Attributes::parse(r#"{"iban-canary":"DE00-canary"}"#, &Limits::default()).unwrap();
    state.client = Some(session_model::Client { address: None, user_agent: Some("agent-canary/1".to_owned()) });
    applied(&view, state.clone()).await;
    applied(&view, Session { id: id(2), ..state.clone() }).await;
    applied(&view, ended(2, 9)).await;
    view.mark_used(&[(id(1), at(9))]).await.unwrap();
    view.set_reflects(session_model::TreeSize(10)).await.unwrap();
    let mut raw = namespace.raw().await;
    redis::cmd("HSET").arg(namespace.key("s:x")).arg("a").arg("b").query_async::<()>(&mut raw).await.unwrap();

    let keys: Vec<String> = redis::cmd("KEYS").arg(namespace.key("*")).query_async(&mut raw).await.unwrap();
    assert!(keys.len() >= 5, "{keys:?}");
    for key in keys {
        assert!(!key.contains("canary"));
        let dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query_async(&mut raw).await.unwrap();
        let token = state.token.digest().to_string();
        for secret in ["canary", "subject", token.as_str()] {
            assert!(
                !dump.windows(secret.len()).any(|window| window == secret.as_bytes()),
                "{secret} stands under {key}"
            );
        }
        assert!(!dump.windows(32).any(|window| window == state.token.digest().0), "a digest stands under {key}");
    }
}

#[tokio::test]
async fn values_go_by_themselves_long_after_their_time() {
    let namespace = Namespace::new().await;
    let view = tracked(namespace.config()).await;
    let mut raw = namespace.raw().await;
    let mut ttl_s = async |n: u64| -> i64 {
        redis::cmd("TTL").arg(namespace.key(format!("s:{}", id(n)))).query_async(&mut raw).await.unwrap()
    };
    applied(&view, session(1, 0)).await;
    let (active, day) = (43_200 + 86_400, 86_400);
    assert!((active - 60..=active).contains(&ttl_s(1).await));
    view.mark_used(&[(id(1), at(100))]).await.unwrap();
    assert!((active - 60..=active).contains(&ttl_s(1).await), "a mark leaves it");
    applied(&view, ended(1, 1)).await;
    assert!((day - 60..=day).contains(&ttl_s(1).await));
}
