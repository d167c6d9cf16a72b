//! Nonces: the suite of their port, on several nodes; and no answer without Redis.

use nonce_store::{NonceError, NonceStore, conformance};
use session_model::{Digest, Seconds, Timestamp};
use session_view_redis::RedisView;

use crate::support::Namespace;

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

#[tokio::test]
async fn once() {
    let namespace = Namespace::new().await;
    let view = RedisView::connect(namespace.config()).await.unwrap();
    conformance::once(&view.nonces(), NOW, [Digest([1; 32]), Digest([2; 32])]).await;
}

#[tokio::test]
async fn at_once_on_two_nodes() {
    let namespace = Namespace::new().await;
    let one = RedisView::connect(namespace.config()).await.unwrap();
    let other = RedisView::connect(namespace.config()).await.unwrap();
    let (one, other) = (one.nonces(), other.nonces());
    conformance::at_once(&[&one as &dyn NonceStore, &other], NOW, Digest([3; 32])).await;
}

#[tokio::test]
async fn without_redis_there_is_no_answer() {
    let mut config = Namespace::new().await.config();
    config.url = "redis://127.0.0.1:1".into();
    let view = RedisView::connect(config).await.unwrap();
    let claim = view.nonces().claim(&Digest([1; 32]), NOW, NOW.plus(Seconds(1))).await;
    assert!(matches!(claim, Err(NonceError::Unavailable(_))));
}
