//! Data keys, unwrapped: looked up many at a time, remembered for a while.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use audit_log::{DataKeyRow, LogStore, ReadError};
use hashbrown::HashMap;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use sealing::{DataKey, Ids, Keyring, SealError};
use session_model::{Digest, KeyId, RealmName, SessionId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::error;

/// A data key to seal with.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// It is stored.
    Existing(KeyId, DataKey),
    /// It is to be stored with the first entry that it seals.
    New(DataKeyRow, DataKey),
}

impl Found {
    pub(crate) fn id(&self) -> KeyId {
        match self {
            Self::Existing(id, _) => *id,
            Self::New(row, _) => row.id,
        }
    }

    pub(crate) fn key(&self) -> &DataKey {
        match self {
            Self::Existing(_, key) | Self::New(_, key) => key,
        }
    }
}

/// Why a data key is not at hand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Seal(#[from] SealError),
}

type Lookup = (Digest, oneshot::Sender<Option<DataKeyRow>>);

/// Unwrapped data keys. A key stays here for minutes at most after it was destroyed, and seals nothing then: the log refuses
/// entries whose key is gone.
pub(crate) struct DataKeys {
    log: Arc<dyn LogStore>,
    keyring: Keyring,
    by_lookup: Remembered<Digest, (KeyId, DataKey)>,
    by_id: Remembered<KeyId, DataKey>,
    lookups: mpsc::Sender<Lookup>,
    loader: Mutex<Option<JoinHandle<()>>>,
}

/// Keys remembered: about 25 MB.
const REMEMBERED: usize = 100_000;
/// How long: so that a process hears in time of what another one has erased.
const MINUTES: Duration = Duration::from_secs(300);

/// What was looked up, for a while. Every creation puts something in.
struct Remembered<K, V>(Cache<K, (Instant, V)>);

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn new() -> Self {
        Self(Cache::new(REMEMBERED))
    }

    fn insert(&self, key: K, value: V) {
        self.0.insert(key, (Instant::now() + MINUTES, value));
    }

    fn get(&self, key: &K) -> Option<V> {
        let (until, value) = self.0.get(key)?;
        (Instant::now() < until).then_some(value)
    }

    fn forget(&self, key: &K) {
        self.0.remove(key);
    }
}

impl DataKeys {
    pub(crate) fn new(log: Arc<dyn LogStore>, keyring: Keyring) -> Self {
        let (lookups, receiver) = mpsc::channel(4_096);
        let loader = tokio::spawn(load(Arc::clone(&log), receiver));
        Self {
            log,
            keyring,
            by_lookup: Remembered::new(),
            by_id: Remembered::new(),
            lookups,
            loader: Mutex::new(Some(loader)),
        }
    }

    pub(crate) fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// The key of a subject; a new one if it has none yet.
    pub(crate) async fn of_subject(&self, realm: &RealmName, subject: &str) -> Result<Found, KeyError> {
        if let Some(found) = self.find_subject(realm, subject).await? {
            return Ok(Found::Existing(found.0, found.1));
        }
        let lookup = self.keyring.lookup(realm, subject)?;
        self.fresh(Ids.data_key()?, Some(lookup))
    }

    /// The key of a subject, if it has one.
    pub(crate) async fn find_subject(
        &self,
        realm: &RealmName,
        subject: &str,
    ) -> Result<Option<(KeyId, DataKey)>, KeyError> {
        let lookup = self.keyring.lookup(realm, subject)?;
        if let Some(found) = self.by_lookup.get(&lookup) {
            return Ok(Some(found));
        }
        let (reply, answer) = oneshot::channel();
        let gone = |what: &str| ReadError::Unavailable(what.into());
        self.lookups.send((lookup, reply)).await.map_err(|_| gone("the service is stopping"))?;
        let Some(row) = answer.await.map_err(|_| gone("data keys cannot be looked up"))? else { return Ok(None) };
        let key = self.keyring.unwrap(row.id, &row.wrapped)?;
        self.by_lookup.insert(lookup, (row.id, key.clone()));
        Ok(Some((row.id, key)))
    }

    /// A new key for a session that has no subject.
    pub(crate) fn of_anonymous(&self, session: SessionId) -> Result<Found, KeyError> {
        self.fresh(KeyId::new(session.uuid()), None)
    }

    fn fresh(&self, id: KeyId, lookup: Option<Digest>) -> Result<Found, KeyError> {
        let key = DataKey::generate()?;
        let row = DataKeyRow { id, lookup, wrapped: self.keyring.wrap(id, &key)?, owner: None, held: false };
        Ok(Found::New(row, key))
    }

    /// Keys by their ids; those that do not exist (any more) are left out.
    pub(crate) async fn by_ids(&self, ids: &[KeyId]) -> Result<HashMap<KeyId, DataKey>, KeyError> {
        let mut found: HashMap<KeyId, DataKey> =
            ids.iter().filter_map(|id| self.by_id.get(id).map(|key| (*id, key))).collect();
        let mut missing: Vec<KeyId> = ids.iter().filter(|id| !found.contains_key(*id)).copied().collect();
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            for row in self.log.data_keys(&missing).await?.into_iter().flatten() {
                let key = self.keyring.unwrap(row.id, &row.wrapped)?;
                found.insert(row.id, key);
            }
        }
        Ok(found)
    }

    /// One key by its id; `None` if it does not exist (any more).
    pub(crate) async fn by_id(&self, id: KeyId) -> Result<Option<DataKey>, KeyError> {
        if let Some(key) = self.by_id.get(&id) {
            return Ok(Some(key));
        }
        let found = self.by_ids(&[id]).await?.remove(&id);
        if let Some(key) = &found {
            self.by_id.insert(id, key.clone());
        }
        Ok(found)
    }

    /// Remembers a key that has just been stored.
    pub(crate) fn stored(&self, found: &Found) {
        if let Found::New(row, key) = found {
            self.by_id.insert(row.id, key.clone());
            if let Some(lookup) = row.lookup {
                self.by_lookup.insert(lookup, (row.id, key.clone()));
            }
        }
    }

    /// Forgets a key that the log says does not exist, or exists with another value.
    pub(crate) fn forget(&self, found: &Found, realm: &RealmName, subject: Option<&str>) {
        self.by_id.forget(&found.id());
        if let Some(subject) = subject {
            self.forget_lookup(realm, subject);
        }
    }

    /// Forgets under what a subject's key is found.
    pub(crate) fn forget_lookup(&self, realm: &RealmName, subject: &str) {
        if let Ok(lookup) = self.keyring.lookup(realm, subject) {
            self.by_lookup.forget(&lookup);
        }
    }

    /// Forgets a subject that was erased. Other processes do so when they next need the key, or after minutes.
    pub(crate) fn forget_subject(&self, id: KeyId, realm: &RealmName, subject: &str) {
        self.by_id.forget(&id);
        self.forget_lookup(realm, subject);
    }

    /// Ends the loader. Look-ups fail from now on.
    pub(crate) fn close(&self) {
        if let Some(loader) = self.loader.lock().take() {
            loader.abort();
        }
    }
}

/// Answers look-ups, all that wait in one query.
async fn load(log: Arc<dyn LogStore>, mut lookups: mpsc::Receiver<Lookup>) {
    let mut waiting: Vec<Lookup> = Vec::new();
    while lookups.recv_many(&mut waiting, 512).await > 0 {
        let wanted: Vec<Digest> = waiting.iter().map(|(lookup, _)| *lookup).collect();
        match log.data_keys_by_lookup(&wanted).await {
            Ok(rows) => {
                for ((_, reply), row) in waiting.drain(..).zip(rows) {
                    // Whoever asked may have gone.
                    let _gone = reply.send(row);
                }
            }
            Err(failure) => {
                error!(failure = &failure as &dyn std::error::Error, "data keys cannot be read");
                waiting.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What another process erased is believed no longer than that.
    #[tokio::test(start_paused = true)]
    async fn what_was_looked_up_is_remembered_for_minutes() {
        let remembered = Remembered::new();
        remembered.insert(1, "key");
        tokio::time::advance(MINUTES - Duration::from_secs(1)).await;
        assert_eq!((remembered.get(&1), remembered.get(&2)), (Some("key"), None));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(remembered.get(&1), None);
        remembered.insert(1, "another");
        assert_eq!(remembered.get(&1), Some("another"));
        remembered.forget(&1);
        assert_eq!(remembered.get(&1), None);
    }
}
