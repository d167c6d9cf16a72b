//! The nonces beside the log: the suite of their port, on several nodes, and that they do not pile up.

use nonce_store::{Claimed, NonceStore, conformance};
use session_model::{Digest, Seconds, Timestamp};

use crate::support::Database;

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

#[tokio::test]
async fn once() {
    let database = Database::new().await;
    let nonces = database.open().await.nonces().await.unwrap().unwrap();
    conformance::once(&nonces, NOW, [Digest([1; 32]), Digest([2; 32])]).await;
}

#[tokio::test]
async fn at_once_on_two_nodes() {
    let database = Database::new().await;
    let one = database.open().await.nonces().await.unwrap().unwrap();
    let other = database.open().await.nonces().await.unwrap().unwrap();
    conformance::at_once(&[&one as &dyn NonceStore, &other], NOW, Digest([3; 32])).await;
}

#[tokio::test]
async fn those_whose_time_is_up_are_forgotten_as_others_come() {
    let database = Database::new().await;
    let nonces = database.open().await.nonces().await.unwrap().unwrap();
    let claim = async |byte: u8, now: Timestamp| nonces.claim(&Digest([byte; 32]), now, now.plus(Seconds(10))).await;
    for byte in 0..10 {
        assert_eq!(claim(byte, NOW).await.unwrap(), Claimed::First);
    }
    let later = NOW.plus(Seconds(10));
    for byte in 10..15 {
        assert_eq!(claim(byte, later).await.unwrap(), Claimed::First);
    }
    assert_eq!(claim(14, later).await.unwrap(), Claimed::Again);
    assert_eq!(claim(0, later).await.unwrap(), Claimed::First, "its time was up");
    let mut connection = database.connect(&database.superuser()).await;
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM counterfoil.nonce").fetch_one(&mut connection).await.unwrap();
    assert_eq!(left, 6);
}
