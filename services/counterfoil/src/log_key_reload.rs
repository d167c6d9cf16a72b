//! A node takes up the keys that sign checkpoints while it runs, so that changing them needs no restart.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api_audit::PublishedKey;
use sealing::VerifierKeys;
use session_service::SessionService;
use telemetry::Gauges;
use tokio::sync::watch;
use tokio::time::interval;
use tracing::{error, info};

use crate::key_files::{KeyFiles, KnownKey, LogKeyFiles, signers};

type Failure = Box<dyn Error + Send + Sync>;

/// Between two looks at the files: a few hundred bytes are read.
const LOOK: Duration = Duration::from_secs(1);

/// Shows the log's keys by their ids (C2SP signed-note): 1 for one that this node signs with, 0 for one that only verifies.
pub(crate) fn show(published: watch::Receiver<Vec<PublishedKey>>, gauges: &Gauges<'_>) {
    gauges.gauges("log_keys", "", "key", move || {
        let keys = published.borrow();
        let id = |key: &PublishedKey| key.vkey.split('+').nth(1).unwrap_or_default().to_owned();
        keys.iter().map(|key| (id(key), if key.until.is_none() { 1.0 } else { 0.0 })).collect()
    });
}

/// The keys that a node works with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogKeysInUse {
    origin: String,
    signing: Vec<String>,
    known: Vec<KnownKey>,
}

impl LogKeysInUse {
    /// Those that it began with.
    pub(crate) fn of(keys: &KeyFiles) -> Self {
        let signing = keys.log_keys.iter().chain(&keys.p256).map(|key| key.verifier().to_string()).collect();
        Self { origin: keys.origin.clone(), signing, known: keys.known.clone() }
    }

    fn found(&self, keys: &LogKeyFiles) -> Self {
        let signing = keys.log_keys.iter().chain(&keys.p256).map(|key| key.verifier().to_string()).collect();
        Self { origin: self.origin.clone(), signing, known: keys.known.clone() }
    }
}

/// Who is told of new keys.
pub(crate) struct LogKeyTaker {
    /// What verifies checkpoints.
    pub(crate) verifiers: VerifierKeys,
    /// What auditors are told.
    pub(crate) publish: watch::Sender<Vec<PublishedKey>>,
    /// What signs.
    pub(crate) service: Arc<SessionService>,
}

impl LogKeyTaker {
    /// Verifies and publishes before it signs, so that no checkpoint is met by somebody here who does not know its key.
    fn take_up(&self, keys: LogKeyFiles) -> Result<(), Failure> {
        self.verifiers.replace(keys.verifiers()?);
        self.publish.send_replace(keys.published());
        self.service.sign_with(signers(keys.log_keys, keys.p256));
        Ok(())
    }
}

/// Follows the key files. Some that cannot be used are said so once, and the node goes on with the keys that it has.
pub(crate) async fn follow(dir: PathBuf, mut in_use: LogKeysInUse, taker: LogKeyTaker) {
    let mut ticks = interval(LOOK);
    let (mut seen, mut refused): (Option<LogKeysInUse>, Option<String>) = (None, None);
    loop {
        ticks.tick().await;
        let looked = look(dir.clone(), &in_use).await.and_then(|newer| {
            let Some((found, keys)) = newer else { return Ok(None) };
            // A step changes several files, and copying them takes its time: what is taken up was the same a second ago.
            if seen.replace(found.clone()).as_ref() != Some(&found) {
                return Ok(None);
            }
            taker.take_up(keys)?;
            Ok(Some(found))
        });
        match looked {
            Ok(taken) => {
                refused = None;
                if let Some(found) = taken {
                    info!(signing = found.signing.join(" "), "newer keys of the log were taken up");
                    in_use = found;
                }
            }
            Err(failure) => {
                let said = crate::causes(&*failure);
                if refused.as_ref() != Some(&said) {
                    error!(failure = said, "the log's key files cannot be used: going on with the keys from before");
                    refused = Some(said);
                }
            }
        }
    }
}

/// What the files hold, if it is something else than what is in use.
async fn look(dir: PathBuf, in_use: &LogKeysInUse) -> Result<Option<(LogKeysInUse, LogKeyFiles)>, Failure> {
    let origin = in_use.origin.clone();
    let keys = tokio::task::spawn_blocking(move || LogKeyFiles::read(&dir, &origin)).await??;
    let found = in_use.found(&keys);
    if found == *in_use {
        return Ok(None);
    }
    // Verifier keys are never forgotten: files without one are older, or another log's.
    let lost = in_use.known.iter().find(|known| !found.known.iter().any(|found| found.vkey == known.vkey));
    match lost {
        Some(lost) => Err(format!("they do not have {}, which this node knows", lost.vkey).into()),
        None => Ok(Some((found, keys))),
    }
}
