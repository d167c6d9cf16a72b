//! `counterfoil log-key …`: changing the key that signs checkpoints, so that nobody who verifies is ever without one.
//!
//! `add` makes a key that signs beside the current one: each checkpoint then has two signatures, and whoever knows only the old key
//! goes on. When auditors have the new one, `retire` destroys the old. Both are entries of the log.

use anchors::open_signed;
use std::error::Error;

use clap::Subcommand;
use sealing::LogKey;
use serde::Serialize;
use session_model::{Action, Detail, Outcome, Timestamp};
use session_service::Record;

use crate::at_hand::AtHand;
use crate::config::Config;
use crate::key_commands::at_the_command_line;
use crate::key_files::{KeyFiles, KnownKey};
use crate::output::{Output, write};
use crate::serve::{Core, open_core};

/// What may be done with the key that signs checkpoints.
#[derive(Debug, Subcommand)]
pub(crate) enum LogKeyCommand {
    /// Lists the log's verifier keys and the time each signed in
    List,
    /// Makes a key that signs beside the current one. Then copy the key files to each node, which takes them up within seconds
    Add {
        /// An ECDSA key on P-256, to sign beside Ed25519 for good
        #[arg(long)]
        p256: bool,
    },
    /// Destroys the current key; the one that was added takes its place. Then copy the key files to each node, which takes them up within seconds
    Retire {
        /// Destroys the ECDSA key instead; nothing takes its place
        #[arg(long)]
        p256: bool,
    },
}

#[derive(Debug, Serialize)]
struct LogKeyRow {
    vkey: String,
    signs_from: Option<Timestamp>,
    signed_until: Option<Timestamp>,
}

type Failure = Box<dyn Error + Send + Sync>;

/// Runs a log key command, beside a running service or without one.
///
/// # Errors
/// Whatever made it fail.
pub(crate) async fn run_log_key_command(
    config: &Config,
    command: LogKeyCommand,
    output: Output,
) -> Result<(), Failure> {
    let core = open_core(config).await?;
    let dir = config.keys_dir();
    let size = core.log.head().await?.size();
    match command {
        LogKeyCommand::List => {}
        LogKeyCommand::Add { p256: true } => {
            if core.keys.p256.is_some() {
                return Err("there is an ECDSA key already".into());
            }
            let key = LogKey::generate_p256(&core.keys.origin)?;
            let now = record(core, config, Action::KeyCreated, &key.verifier().to_string()).await?;
            KeyFiles::open(&dir, size)?.add(&dir, &key, now)?;
        }
        LogKeyCommand::Retire { p256: true } => {
            let key = core.keys.p256.as_ref().ok_or("there is no ECDSA key")?.verifier().to_string();
            let now = record(core, config, Action::KeyRevoked, &key).await?;
            KeyFiles::open(&dir, size)?.retire_p256(&dir, now)?;
        }
        LogKeyCommand::Add { p256: false } => {
            if core.keys.log_keys.len() > 1 {
                return Err("a key was added already: retire the old one first".into());
            }
            let key = LogKey::generate(&core.keys.origin)?;
            let now = record(core, config, Action::KeyCreated, &key.verifier().to_string()).await?;
            KeyFiles::open(&dir, size)?.add(&dir, &key, now)?;
        }
        LogKeyCommand::Retire { p256: false } => {
            let [current, next] = core.keys.log_keys.as_slice() else {
                return Err("there is no key to take its place: add one first".into());
            };
            let (current, next) = (current.verifier().to_string(), next.verifier().clone());
            // Whoever signs must have the new key before the old one goes.
            let head = core.log.head().await?.checkpoint;
            if head.is_none_or(|head| open_signed(&head, &[next]).is_err()) {
                return Err(
                    "the newest checkpoint is not signed by the key that was added: copy the key files to each node first".into(),
                );
            }
            let now = record(core, config, Action::KeyRevoked, &current).await?;
            KeyFiles::open(&dir, size)?.retire(&dir, now)?;
        }
    }
    let row = |known: KnownKey| LogKeyRow { vkey: known.vkey, signs_from: known.from, signed_until: known.until };
    let rows: Vec<LogKeyRow> = KeyFiles::open(&dir, size)?.known.into_iter().map(row).collect();
    Ok(write(output, &rows)?)
}

/// Records the change, before it is made: the entry names the key. Answers its time.
async fn record(core: Core, config: &Config, action: Action, vkey: &str) -> Result<Timestamp, Failure> {
    record_change(core, config, action, [("log_key".to_owned(), vkey.to_owned())].into()).await
}

/// Records a change that the command line is about to make. Answers its time.
///
/// # Errors
/// If it cannot be recorded: it must not be made then.
pub(crate) async fn record_change(
    core: Core,
    config: &Config,
    action: Action,
    detail: Detail,
) -> Result<Timestamp, Failure> {
    let realm = core.policies.keys().min().cloned().ok_or("there is no realm")?;
    let at_hand = AtHand::start(core, config)?;
    let record = Record { action, outcome: Outcome::Success, detail, facts: Default::default(), credential: None };
    let recorded = at_hand.service().record(&at_the_command_line(&realm), record).await;
    let now = at_hand.service().now();
    at_hand.close().await;
    recorded?;
    Ok(now)
}
