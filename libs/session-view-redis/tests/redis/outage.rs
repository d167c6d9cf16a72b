//! A Redis that dies, freezes, forgets, or is not there yet.

use std::time::Duration;

use session_view::test_util::{at, id, session};
use session_view::{SessionView, ViewError};
use session_view_redis::{ConfigError, RedisView, RedisViewConfig};
use tokio::time::Instant;

use crate::support::{KEY, Server, applied, raw, tracked, within};

const RECOVERY: Duration = Duration::from_secs(10);

/// Every operation says so, and at once.
async fn is_cheaply_unavailable(view: &RedisView) {
    let start = Instant::now();
    const CALLS: u32 = 1_000;
    for _ in 0..CALLS {
        assert!(matches!(view.get(id(1)).await, Err(ViewError::Unavailable(_))));
    }
    let each = start.elapsed() / CALLS;
    assert!(each < Duration::from_micros(200), "an open breaker costs {each:?} a call");
    let state = [std::sync::Arc::new(session(77, 99))];
    assert!(matches!(view.apply(&state).await, Err(ViewError::Unavailable(_))));
    assert!(matches!(view.mark_used(&[(id(1), at(1))]).await, Err(ViewError::Unavailable(_))));
    assert!(matches!(view.due(at(1), 1).await, Err(ViewError::Unavailable(_))));
    assert!(matches!(view.quarantine(id(1)).await, Err(ViewError::Unavailable(_))));
    assert!(matches!(view.reflects().await, Err(ViewError::Unavailable(_))));
    assert!(!view.status().available);
    assert!(view.peek(id(1)).is_none() && !view.is_tracking());
}

async fn recovers(view: &RedisView) {
    within(RECOVERY, "the view is connected", async || view.status().available).await;
    assert!(matches!(view.get(id(77)).await, Err(ViewError::Unavailable(_))), "nobody knows whether it was applied");
    applied(view, session(77, 100)).await;
    view.restored(view.losses());
    assert!(view.get(id(77)).await.unwrap().is_some());
    within(RECOVERY, "the view answers again", async || view.get(id(1)).await.is_ok()).await;
    within(RECOVERY, "tracking is on again", async || view.is_tracking()).await;
    assert!(view.status().available);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_started_again() {
    let mut server = Server::start().await;
    let view = tracked(server.config()).await;
    applied(&view, session(1, 5)).await;
    for _ in 0..2 {
        server.kill();
        let start = Instant::now();
        within(Duration::from_secs(2), "the breaker opens", async || {
            assert!(matches!(view.get(id(1)).await, Err(ViewError::Unavailable(_))));
            !view.status().available && !view.is_tracking()
        })
        .await;
        assert!(start.elapsed() < Duration::from_secs(1), "it took {:?}", start.elapsed());
        is_cheaply_unavailable(&view).await;
        let losses = view.losses();
        server.start_again().await;
        within(RECOVERY, "that it was restarted is noticed", async || view.losses() > losses).await;
        assert!(matches!(view.get(id(1)).await, Err(ViewError::Unavailable(_))), "in doubt");
        assert!(view.status().in_doubt);
        recovers(&view).await;
        assert!(!view.status().in_doubt);
        assert!(view.get(id(1)).await.unwrap().is_none(), "it holds nothing: the caller rebuilds");
        // Its script cache is empty too.
        applied(&view, session(1, 5)).await;
        assert!(view.get(id(1)).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_nobody_asks() {
    let mut server = Server::start().await;
    let view = tracked(server.config()).await;
    server.kill();
    within(Duration::from_secs(5), "the status tells", async || !view.status().available).await;
    is_cheaply_unavailable(&view).await;
    server.start_again().await;
    recovers(&view).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_and_thawed() {
    let server = Server::start().await;
    let view = tracked(server.config()).await;
    applied(&view, session(1, 5)).await;
    within(RECOVERY, "it is in the near cache", async || {
        view.get(id(1)).await.unwrap();
        view.peek(id(1)).is_some()
    })
    .await;
    server.signal("-STOP");
    let frozen = Instant::now();
    let start = Instant::now();
    assert!(matches!(view.get(id(1)).await, Err(ViewError::Unavailable(_))));
    assert!(start.elapsed() < Duration::from_millis(600), "a timeout of 250 ms took {:?}", start.elapsed());
    within(Duration::from_secs(5), "the near cache closes", async || view.peek(id(1)).is_none()).await;
    assert!(frozen.elapsed() < Duration::from_millis(2_500), "stale for {:?}", frozen.elapsed());
    within(Duration::from_secs(5), "the breaker opens", async || {
        let _ = view.get(id(1)).await;
        !view.status().available
    })
    .await;
    is_cheaply_unavailable(&view).await;
    server.signal("-CONT");
    let losses = view.losses();
    recovers(&view).await;
    assert_eq!(view.losses(), losses, "it is the same server with all that it held");
    applied(&view, session(1, 100)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_there_when_the_service_starts() {
    let mut server = Server::start().await;
    server.kill();
    let view = RedisView::connect(server.config()).await.unwrap();
    is_cheaply_unavailable(&view).await;
    server.start_again().await;
    recovers(&view).await;
    applied(&view, session(1, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed() {
    let server = Server::start().await;
    let view = tracked(server.config()).await;
    let mut raw = raw(&server.url()).await;
    applied(&view, session(1, 5)).await;
    within(RECOVERY, "it is in the near cache", async || {
        view.get(id(1)).await.unwrap();
        view.peek(id(1)).is_some()
    })
    .await;
    view.set_reflects(session_model::TreeSize(6)).await.unwrap();
    redis::cmd("FLUSHALL").query_async::<()>(&mut raw).await.unwrap();
    within(Duration::from_secs(2), "the near cache is emptied", async || view.peek(id(1)).is_none()).await;
    assert!(view.get(id(1)).await.unwrap().is_none());
    assert_eq!(view.reflects().await.unwrap(), session_model::TreeSize(0));
    applied(&view, session(1, 5)).await;
    assert_eq!(view.due(at(1 << 20), 10).await.unwrap(), [id(1)]);

    redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut raw).await.unwrap();
    applied(&view, session(1, 6)).await;
    redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut raw).await.unwrap();
    view.mark_used(&[(id(1), at(50))]).await.unwrap();
    assert!(view.status().available);
}

#[tokio::test]
async fn what_can_never_work_is_an_error_at_once() {
    let connect = |url: &str, namespace: &str| RedisView::connect(RedisViewConfig::new(url, namespace, KEY));
    assert!(matches!(connect("http://localhost", "ns").await, Err(ConfigError::Url(_))));
    for namespace in ["", "a b", "a{b", "a*", &"n".repeat(65)] {
        assert!(matches!(connect("redis://127.0.0.1:1", namespace).await, Err(ConfigError::Namespace)), "{namespace}");
    }
    let mut config = RedisViewConfig::new("redis://user:hunter2@127.0.0.1:1", "ns", KEY);
    config.operation_timeout = Duration::ZERO;
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("7, 7"), "{shown}");
    assert!(matches!(RedisView::connect(config).await, Err(ConfigError::Span)));
}
