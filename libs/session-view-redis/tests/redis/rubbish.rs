//! What stands in Redis and should not.

use session_view::test_util::{at, ended, id, session};
use session_view::{SessionView, ViewError, Viewed};

use crate::support::{Namespace, applied, tracked};

/// Each way to spoil a session's value is an error that says so; then it is put aside, and the session applied afresh.
#[tokio::test]
async fn undecodable_values_are_quarantined() {
    let namespace = Namespace::new().await;
    let view = tracked(namespace.config()).await;
    let mut raw = namespace.raw().await;
    let key = |n: u64| namespace.key(format!("s:{}", id(n)));
    applied(&view, session(50, 50)).await;
    let good: Vec<u8> = redis::cmd("GET").arg(key(50)).query_async(&mut raw).await.unwrap();
    let changed = |at: usize, to: u8| {
        let mut value = good.clone();
        value[at] = to;
        value
    };
    let spoilt = [
        ("empty", Vec::new()),
        ("text", b"hello".to_vec()),
        ("unknown tag", changed(0, 9)),
        ("tag of a tombstone", changed(0, 2)),
        ("another index", changed(8, 51)),
        ("a flipped bit", changed(good.len() - 1, good[good.len() - 1] ^ 1)),
        ("cut", good[..good.len() - 5].to_vec()),
        ("swapped from another session's key", good.clone()),
    ];
    for (n, (what, value)) in (1..).zip(&spoilt) {
        redis::cmd("SET").arg(key(n)).arg(value).query_async::<()>(&mut raw).await.unwrap();
        assert!(matches!(view.get(id(n)).await, Err(ViewError::Undecodable(of)) if of == id(n)), "{what}");
        assert!(view.peek(id(n)).is_none(), "{what}");
        view.quarantine(id(n)).await.unwrap();
        assert!(view.get(id(n)).await.unwrap().is_none(), "{what}");
        let aside: Vec<u8> = redis::cmd("HGET")
            .arg(namespace.key("quarantine"))
            .arg(id(n).to_string())
            .query_async(&mut raw)
            .await
            .unwrap();
        assert_eq!(&aside, value, "{what}: not lost");
        applied(&view, session(n, 10)).await;
        assert!(matches!(view.get(id(n)).await.unwrap(), Some(Viewed::Active(_))), "{what}");
    }

    // A key that holds no string.
    redis::cmd("RPUSH").arg(key(30)).arg("x").query_async::<()>(&mut raw).await.unwrap();
    assert!(matches!(view.get(id(30)).await, Err(ViewError::Undecodable(_))));
    view.mark_used(&[(id(30), at(1))]).await.unwrap();
    view.quarantine(id(30)).await.unwrap();
    applied(&view, session(30, 1)).await;
    assert!(view.status().available, "none of it was an outage");

    // A state that comes before the quarantine puts rubbish aside by itself.
    for (n, rubbish) in [(31, "hello"), (32, "")] {
        redis::cmd("SET").arg(key(n)).arg(rubbish).query_async::<()>(&mut raw).await.unwrap();
    }
    redis::cmd("SADD").arg(key(33)).arg("x").query_async::<()>(&mut raw).await.unwrap();
    for n in 31..=33 {
        applied(&view, session(n, 1)).await;
        assert!(matches!(view.get(id(n)).await.unwrap(), Some(Viewed::Active(_))));
    }
    let aside: i64 = redis::cmd("HLEN").arg(namespace.key("quarantine")).query_async(&mut raw).await.unwrap();
    assert_eq!(aside, spoilt.len() as i64 + 4);
}

#[tokio::test]
async fn the_quarantine_is_bounded() {
    let namespace = Namespace::new().await;
    let view = tracked(namespace.config()).await;
    let mut raw = namespace.raw().await;
    for n in 0..1_010 {
        let key = namespace.key(format!("s:{}", id(n)));
        redis::cmd("SET").arg(key).arg("rubbish").query_async::<()>(&mut raw).await.unwrap();
        view.quarantine(id(n)).await.unwrap();
        assert!(view.get(id(n)).await.unwrap().is_none());
    }
    let aside: i64 = redis::cmd("HLEN").arg(namespace.key("quarantine")).query_async(&mut raw).await.unwrap();
    assert_eq!(aside, 1_000);
}

/// An attacker with Redis, but without the key, cannot bring an ended session back by turning its tombstone.
#[tokio::test]
async fn another_key_or_namespace_reads_nothing() {
    let namespace = Namespace::new().await;
    let view = tracked(namespace.config()).await;
    applied(&view, session(1, 1)).await;
    applied(&view, ended(2, 2)).await;
    let mut config = namespace.config();
    config.sealing_key = [8; 32];
    let stranger = tracked(config).await;
    for n in [1, 2] {
        assert!(matches!(stranger.get(id(n)).await, Err(ViewError::Undecodable(_))));
    }
}

#[tokio::test]
async fn foreign_members_of_the_index_do_not_block_it() {
    let namespace = Namespace::new().await;
    let view = tracked(namespace.config()).await;
    let mut raw = namespace.raw().await;
    applied(&view, session(1, 1)).await;
    for member in ["hello", "0190A5C2-7C1E-7000-8000-00000000000A"] {
        redis::cmd("ZADD").arg(namespace.key("due")).arg(1).arg(member).query_async::<()>(&mut raw).await.unwrap();
    }
    assert!(view.due(at(1 << 20), 2).await.unwrap().is_empty());
    assert_eq!(view.due(at(1 << 20), 2).await.unwrap(), [id(1)]);
    redis::cmd("SET").arg(namespace.key("reflects")).arg("many").query_async::<()>(&mut raw).await.unwrap();
    assert_eq!(view.reflects().await.unwrap().0, 0);
    view.set_reflects(session_model::TreeSize(3)).await.unwrap();
    assert_eq!(view.reflects().await.unwrap().0, 3);
}
