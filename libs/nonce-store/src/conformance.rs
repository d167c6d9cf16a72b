//! What every [`NonceStore`] must hold, one rule a function. Keys are the test's own: stores may be shared.

use futures::future::join_all;
use session_model::{Digest, Seconds, Timestamp};

use crate::{Claimed, NonceStore};

/// A key is claimed once; another key is another matter.
///
/// # Panics
/// If not.
#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
pub async fn once(store: &dyn NonceStore, now: Timestamp, keys: [Digest; 2]) {
    let [one, other] = keys;
    let until = now.plus(Seconds(60));
    assert_eq!(store.claim(&one, now, until).await.unwrap(), Claimed::First);
    assert_eq!(store.claim(&one, now, until).await.unwrap(), Claimed::Again);
    assert_eq!(store.claim(&other, now, until).await.unwrap(), Claimed::First);
}

/// Of many claims at once, through several handles on one store, one is the first.
///
/// # Panics
/// If not.
#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
pub async fn at_once(stores: &[&dyn NonceStore], now: Timestamp, key: Digest) {
    let until = now.plus(Seconds(60));
    let claims = (0..64).filter_map(|at| stores.get(at % stores.len())).map(|store| store.claim(&key, now, until));
    let first = join_all(claims).await.into_iter().filter(|claim| matches!(claim, Ok(Claimed::First))).count();
    assert_eq!(first, 1);
}
