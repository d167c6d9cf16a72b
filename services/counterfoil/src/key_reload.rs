//! A node takes up a newer key file while it runs, so that replacing the wrapping key, or the one of kept answers, needs no restart.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use audit_log::LogStore;
use sealing::{Keyring, WrappingKeyId};
use telemetry::Gauges;
use tokio::time::interval;
use tracing::{error, info};

use crate::key_encryption::wrapped;
use crate::key_files::KeyFiles;

type Failure = Box<dyn Error + Send + Sync>;

/// Between two looks at the file: a few hundred bytes are read.
const LOOK: Duration = Duration::from_secs(1);

/// Shows which keys this node wraps and seals by (1), and which it only opens with (0): of data keys, and of kept answers.
pub(crate) fn show(keyring: &Keyring, gauges: &Gauges<'_>) {
    let of_answers = keyring.clone();
    gauges.gauges("answers_keys", "", "answers_key", move || {
        let keys = of_answers.answers_keys().unwrap_or_default().into_iter().enumerate();
        keys.map(|(at, key)| (key.id, if at == 0 { 1.0 } else { 0.0 })).collect()
    });
    let keyring = keyring.clone();
    gauges.gauges("key_encryption_keys", "", "wrapping_key", move || {
        let keys = keyring.wrapping_keys().into_iter().enumerate();
        keys.map(|(at, id)| (id.to_string(), if at == 0 { 1.0 } else { 0.0 })).collect()
    });
}

/// Follows the key file. One that cannot be used is said so once, and the node goes on with the keys that it has.
pub(crate) async fn follow_key_file(dir: PathBuf, keyring: Keyring, log: Arc<dyn LogStore>) {
    let mut ticks = interval(LOOK);
    let mut refused: Option<String> = None;
    loop {
        ticks.tick().await;
        match look(dir.clone(), &keyring, &*log).await {
            Ok(taken) => {
                refused = None;
                if let Some(current) = taken {
                    info!(wrapping_key = %current, "a newer key file was taken up");
                }
            }
            Err(failure) => {
                let said = crate::causes(&*failure);
                if refused.as_ref() != Some(&said) {
                    error!(failure = said, "the key file is not taken up: going on with the keys from before");
                    refused = Some(said);
                }
            }
        }
    }
}

/// Takes the file up if it is newer; answers what is wrapped by from now on.
async fn look(dir: PathBuf, keyring: &Keyring, log: &dyn LogStore) -> Result<Option<WrappingKeyId>, Failure> {
    let newer = tokio::task::spawn_blocking(move || KeyFiles::keyring(&dir)).await??;
    if newer.is_as_new_as(keyring) {
        return Ok(None);
    }
    if !newer.is_of_one_log_with(keyring) {
        return Err("it is another log's".into());
    }
    // One that cannot open what is stored is an older one: every data key is looked at, which is seldom and takes seconds for a million.
    wrapped(log, &newer).await?;
    let taken = keyring.take_up(&newer)?;
    Ok(newer.wrapping_keys().first().copied().filter(|_| taken))
}
