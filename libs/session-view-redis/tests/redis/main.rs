//! The view against a real Redis: the conformance suite, several nodes on one Redis, outages, rubbish in Redis.
//!
//! `TEST_REDIS_URL` names the Redis; tests that stop, freeze or flush one start a `redis-server` of their own.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod cluster;
mod nonces;
mod outage;
mod rubbish;
mod sentinel;
mod sharing;
mod support;
mod transients;

use std::sync::Arc;

use session_view::SessionView;

use crate::support::{Namespace, tracked};

async fn with_near_cache() -> (Arc<dyn SessionView>, Namespace) {
    let namespace = Namespace::new().await;
    (Arc::new(tracked(namespace.config()).await), namespace)
}

async fn without_near_cache() -> (Arc<dyn SessionView>, Namespace) {
    let namespace = Namespace::new().await;
    let mut config = namespace.config();
    config.near_cache_bytes = 0;
    let view = session_view_redis::RedisView::connect(config).await.unwrap();
    view.restored(view.losses());
    (Arc::new(view), namespace)
}

session_view::conformance_tests!(conformance, with_near_cache);
session_view::conformance_tests!(conformance_without_near_cache, without_near_cache);
