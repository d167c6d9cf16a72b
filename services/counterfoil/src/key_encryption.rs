//! `counterfoil key-encryption …`: changing the key that data keys are wrapped with, while nodes run.
//!
//! A data key is the only thing that opens what a subject's entries have sealed. It lies in the database wrapped by a key that lies outside. Who has an old
//! backup of the database *and* that key opens what was erased since; once all data keys are wrapped by another key and the old one is destroyed,
//! nobody does. The order keeps every node able to read at every moment: `add` (and give each node the file), `rotate` (again), `rewrap`, `retire`. Nodes take the
//! file up while they run (`key_reload.rs`).

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;

use audit_log::{DataKeyRow, LogStore, Rewrap};
use clap::Subcommand;
use sealing::{Keyring, SealError, WrappingKeyId};
use serde::Serialize;
use session_model::{Action, KeyId};

use crate::config::Config;
use crate::key_files::KeyFiles;
use crate::log_keys::record_change;
use crate::output::{Output, write};
use crate::serve::{Core, open_core};

/// What may be done with the key that data keys are wrapped with.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyEncryptionCommand {
    /// Lists the wrapping keys of the key file, the current one first, and how many data keys each wraps
    List,
    /// Makes another wrapping key, which wraps nothing yet. Then copy the key files to each node, which takes them up within a second
    Add,
    /// Makes the wrapping key that was added the current one. Then copy the key files to each node, which takes them up within a second
    Rotate,
    /// Wraps every data key by the current wrapping key. Nodes may run; cut short, it goes on where it was when it is called again
    Rewrap {
        /// Data keys of one transaction
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=5_000))]
        batch: u16,
    },
    /// Destroys a wrapping key that wraps no data key any more. Then copy the key files to each node, and destroy every other copy of the old one
    Retire {
        /// Which, as listed
        key: String,
    },
}

#[derive(Debug, Serialize)]
struct WrappingKeyRow {
    wrapping_key: String,
    current: bool,
    data_keys: u64,
}

type Failure = Box<dyn Error + Send + Sync>;

/// Runs a command, beside a running service or without one.
///
/// # Errors
/// Whatever made it fail.
pub(crate) async fn run_key_encryption_command(
    config: &Config,
    command: KeyEncryptionCommand,
    output: Output,
) -> Result<(), Failure> {
    let core = open_core(config).await?;
    let (log, keyring) = (Arc::clone(&core.log), core.keys.keyring.clone());
    let keys = keyring.wrapping_keys();
    let changed = match command {
        KeyEncryptionCommand::List => keyring,
        KeyEncryptionCommand::Add => {
            if keys.len() > 1 {
                return Err("there is another wrapping key already: rotate, rewrap and retire first".into());
            }
            let (more, added) = keyring.with_another()?;
            change(core, config, Action::KeyCreated, added, &more).await?;
            more
        }
        KeyEncryptionCommand::Rotate => {
            let added = keys.get(1).ok_or("there is no other wrapping key: add one first")?;
            let turned = keyring.with_current(*added).ok_or("there is no such key")?;
            change(core, config, Action::KeyRotated, *added, &turned).await?;
            turned
        }
        KeyEncryptionCommand::Rewrap { batch } => {
            rewrap_all(core, config, &keyring, usize::from(batch)).await?;
            keyring
        }
        KeyEncryptionCommand::Retire { key } => {
            let id = keys.iter().find(|id| id.to_string() == key).ok_or("there is no such wrapping key: see list")?;
            let fewer = keyring.without(*id).ok_or("it is the current one: add another and rotate first")?;
            let wraps = wrapped(&*log, &keyring).await?.remove(id).unwrap_or_default();
            if wraps > 0 {
                return Err(format!(
                    "{wraps} data keys are still wrapped by it: rewrap first. If they were made since, a node runs \
                    with older key files"
                )
                .into());
            }
            change(core, config, Action::KeyRevoked, *id, &fewer).await?;
            fewer
        }
    };
    let mut counts = wrapped(&*log, &changed).await?;
    let row = |(at, id): (usize, WrappingKeyId)| WrappingKeyRow {
        wrapping_key: id.to_string(),
        current: at == 0,
        data_keys: counts.remove(&id).unwrap_or_default(),
    };
    let rows: Vec<WrappingKeyRow> = changed.wrapping_keys().into_iter().enumerate().map(row).collect();
    Ok(write(output, &rows)?)
}

/// Records a change, and then makes it.
async fn change(core: Core, config: &Config, action: Action, id: WrappingKeyId, to: &Keyring) -> Result<(), Failure> {
    record_change(core, config, action, [("wrapping_key".to_owned(), id.to_string())].into()).await?;
    Ok(KeyFiles::keep_keyring(&config.keys_dir(), to)?)
}

/// Data keys that are read at a time.
const PAGE: usize = 5_000;

/// How many data keys each wrapping key wraps.
///
/// # Errors
/// If the log cannot be read, or one is wrapped by a key that the keyring does not have.
pub(crate) async fn wrapped(log: &dyn LogStore, keyring: &Keyring) -> Result<BTreeMap<WrappingKeyId, u64>, Failure> {
    let mut counts = BTreeMap::new();
    let mut after = None;
    loop {
        let page = log.data_keys_after(after, PAGE).await?;
        for row in &page {
            *counts.entry(by(keyring, row)?).or_default() += 1;
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.id),
            Some(_) | None => return Ok(counts),
        }
    }
}

fn by(keyring: &Keyring, row: &DataKeyRow) -> Result<WrappingKeyId, Failure> {
    keyring.wrapped_by(&row.wrapped).map_err(|failure| format!("data key {}: {failure}", row.id).into())
}

/// Times that all data keys are gone through. What a pass leaves, because an append was changing it, the next does.
const PASSES: u32 = 10;

async fn rewrap_all(core: Core, config: &Config, keyring: &Keyring, batch: usize) -> Result<(), Failure> {
    let log = Arc::clone(&core.log);
    let current = *keyring.wrapping_keys().first().ok_or("there is no wrapping key")?;
    let count: u64 =
        wrapped(&*log, keyring).await?.into_iter().filter(|(id, _)| *id != current).map(|(_, count)| count).sum();
    if count == 0 {
        return Ok(());
    }
    let detail = [("wrapping_key", current.to_string()), ("data_keys", count.to_string())];
    let detail = detail.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    record_change(core, config, Action::KeyRewrapped, detail).await?;
    let mut done = 0;
    for _ in 0..PASSES {
        let mut left = 0;
        let mut after: Option<KeyId> = None;
        loop {
            let page = log.data_keys_after(after, batch).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            let old: Vec<Rewrap> =
                page.iter().filter_map(|row| anew(keyring, row).transpose()).collect::<Result<_, _>>()?;
            if old.is_empty() {
                continue;
            }
            let changed = log.rewrap(&old).await?;
            done += changed as u64;
            left += old.len() - changed;
            writeln!(io::stderr(), "wrapped anew: {done} of {count}")?;
        }
        if left == 0 {
            return Ok(());
        }
    }
    Err("some data keys are changed all the time and could not be wrapped anew: call it again".into())
}

fn anew(keyring: &Keyring, row: &DataKeyRow) -> Result<Option<Rewrap>, Failure> {
    let rewrapped =
        keyring.rewrap(row.id, &row.wrapped).map_err(|failure: SealError| format!("data key {}: {failure}", row.id))?;
    Ok(rewrapped.map(|rewrapped| Rewrap { id: row.id, wrapped: row.wrapped.clone(), rewrapped }))
}
