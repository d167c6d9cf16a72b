//! The memory of one process.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use async_trait::async_trait;
use parking_lot::Mutex;
use session_model::{Digest, Timestamp};

use crate::{Claimed, NonceError, NonceStore};

/// Nonces in memory, for a process that is alone.
pub struct MemoryNonces {
    since: Timestamp,
    most: usize,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    keys: HashSet<Digest>,
    by_end: BTreeSet<(Timestamp, Digest)>,
}

impl MemoryNonces {
    /// Empty, at this time; remembers `most` keys. One takes about 150 bytes.
    pub fn new(since: Timestamp, most: usize) -> Self {
        Self { since, most, known: Mutex::default() }
    }
}

impl fmt::Debug for MemoryNonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryNonces({} of {})", self.known.lock().keys.len(), self.most)
    }
}

#[async_trait]
impl NonceStore for MemoryNonces {
    async fn claim(&self, key: &Digest, now: Timestamp, until: Timestamp) -> Result<Claimed, NonceError> {
        let mut known = self.known.lock();
        while let Some((end, old)) = known.by_end.first().copied().filter(|(end, _)| *end <= now) {
            known.by_end.remove(&(end, old));
            known.keys.remove(&old);
        }
        if known.keys.contains(key) {
            return Ok(Claimed::Again);
        }
        if known.keys.len() >= self.most {
            return Err(NonceError::Full);
        }
        known.keys.insert(*key);
        known.by_end.insert((until, *key));
        Ok(Claimed::First)
    }

    fn since(&self) -> Timestamp {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use session_model::Seconds;

    use super::*;

    #[tokio::test]
    async fn a_full_store_refuses_rather_than_forgets() {
        let store = MemoryNonces::new(Timestamp::default(), 2);
        let now = Timestamp::from_micros(0);
        let claim = async |byte, now: Timestamp| store.claim(&Digest([byte; 32]), now, now.plus(Seconds(10))).await;
        assert_eq!(claim(1, now).await.unwrap(), Claimed::First);
        assert_eq!(claim(2, now).await.unwrap(), Claimed::First);
        assert!(matches!(claim(3, now).await, Err(NonceError::Full)));
        assert_eq!(claim(1, now).await.unwrap(), Claimed::Again);
        assert_eq!(claim(3, now.plus(Seconds(10))).await.unwrap(), Claimed::First);
    }
}
