//! The memory store against the suite of the port.

use nonce_store::{MemoryNonces, NonceStore, conformance};
use session_model::{Digest, Timestamp};

#[tokio::test]
async fn once() {
    let store = MemoryNonces::new(Timestamp::default(), 100);
    conformance::once(&store, Timestamp::from_micros(5), [Digest([1; 32]), Digest([2; 32])]).await;
}

#[tokio::test]
async fn at_once() {
    let store = MemoryNonces::new(Timestamp::default(), 100);
    conformance::at_once(&[&store as &dyn NonceStore], Timestamp::from_micros(5), Digest([1; 32])).await;
}
