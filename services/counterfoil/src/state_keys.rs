//! `counterfoil state-key …`: changing the keys of what is kept beside the log for a while: answers to repeated requests, shared views, visits to the
//! console.
//!
//! Answers are kept for a day, so their key is changed with an overlap: `add` (and give each node the file), `rotate` (again), and a day later `retire`. A shared view can be
//! made again from the log, and a visit begun again: their keys are replaced by `renew`, and what the old one sealed is thrown away. A node takes the former up
//! while it runs (`key_reload.rs`), the latter when it starts.

use std::error::Error;

use clap::{Subcommand, ValueEnum};
use sealing::{AnswersKeyInfo, Keyring};
use serde::Serialize;
use session_model::{Action, Profile, Timestamp};
use session_service::{Clock, KEEP_ANSWERS};

use crate::config::Config;
use crate::key_files::KeyFiles;
use crate::log_keys::record_change;
use crate::output::{Output, write};
use crate::serve::{Core, MachineClock, open_core};
use crate::soap;

/// What may be done with the keys of what is kept beside the log for a while.
#[derive(Debug, Subcommand)]
pub(crate) enum StateKeyCommand {
    /// Lists the keys that seal kept answers, the current one first
    List,
    /// Makes another key of kept answers, which seals nothing yet. Then copy the key files to each node, which takes them up within a second
    Add,
    /// Makes the key that was added the current one. Then copy the key files to each node, which takes them up within a second
    Rotate,
    /// Destroys the keys of kept answers that were replaced a day ago or more. Then copy the key files to each node
    Retire {
        /// At once: what they still seal is thrown away, and a request that is repeated is refused instead of answered again
        #[arg(long)]
        now: bool,
    },
    /// Replaces a key that needs no overlap. Then copy the key files to each node, and start it again
    Renew {
        /// Which
        what: Renewed,
        /// For the view's key: sessions of transient realms that are kept in Redis end
        #[arg(long)]
        end_transient_sessions: bool,
    },
}

/// A key that needs no overlap.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Renewed {
    /// Seals the values of shared views: nodes make a view of their own from the log, beside the old one
    View,
    /// Tags visits to the console: who is signed in signs in again
    Console,
}

#[derive(Debug, Serialize)]
struct AnswersKeyRow {
    answers_key: String,
    current: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced_at: Option<Timestamp>,
}

type Failure = Box<dyn Error + Send + Sync>;

/// Runs a command, beside a running service or without one.
///
/// # Errors
/// Whatever made it fail.
pub(crate) async fn run_state_key_command(
    config: &Config,
    command: StateKeyCommand,
    output: Output,
) -> Result<(), Failure> {
    let core = open_core(config).await?;
    let keyring = core.keys.keyring.clone();
    let keys = keyring.answers_keys()?;
    let changed = match command {
        StateKeyCommand::List => keyring,
        StateKeyCommand::Add => {
            if keys.len() > 1 {
                return Err("there is another key already: rotate and retire first".into());
            }
            let more = keyring.with_another_answers_key()?;
            let added = more.answers_keys()?.pop().ok_or("there is no key")?;
            change(core, config, Action::KeyCreated, &added.id, &more).await?;
            more
        }
        StateKeyCommand::Rotate => {
            let now = MachineClock::new().wall();
            let turned = keyring.with_answers_turned(now).ok_or("there is no other key: add one first")?;
            let current = turned.answers_keys()?.into_iter().next().ok_or("there is no key")?;
            change(core, config, Action::KeyRotated, &current.id, &turned).await?;
            turned
        }
        StateKeyCommand::Retire { now } => {
            let fewer = keyring.without_replaced_answers_keys().ok_or("no key was replaced: add and rotate first")?;
            let replaced = keys.into_iter().filter_map(|key| Some((key.id, key.replaced_at?)));
            let (id, at) = replaced.max_by_key(|(_, at)| *at).ok_or("no key was replaced")?;
            let until = at.plus(KEEP_ANSWERS);
            if !now && MachineClock::new().wall() < until {
                return Err(format!("answers that it sealed are kept until {until}; --now throws them away").into());
            }
            soap::consumers(config, &fewer, &core.policies).map_err(|failure| {
                format!("a consumer's secret is sealed by it: seal that anew first (counterfoil soap seal): {failure}")
            })?;
            change(core, config, Action::KeyRevoked, &id, &fewer).await?;
            fewer
        }
        StateKeyCommand::Renew { what, end_transient_sessions } => {
            let (named, renewed) = match what {
                Renewed::View if !end_transient_sessions && keeps_transients_elsewhere(config)? => {
                    return Err("transient.url is a Redis, and its values are sealed by this key: sessions of transient realms \
                                would end. --end-transient-sessions says that they may"
                        .into());
                }
                Renewed::View => ("view", keyring.with_new_view_key()?),
                Renewed::Console => ("console", keyring.with_new_console_key()?),
            };
            change(core, config, Action::KeyRotated, named, &renewed).await?;
            renewed
        }
    };
    let row = |(at, key): (usize, AnswersKeyInfo)| AnswersKeyRow {
        answers_key: key.id,
        current: at == 0,
        replaced_at: key.replaced_at,
    };
    let rows: Vec<AnswersKeyRow> = changed.answers_keys()?.into_iter().enumerate().map(row).collect();
    Ok(write(output, &rows)?)
}

/// Whether sessions of transient realms are kept in a store that the view's key seals.
fn keeps_transients_elsewhere(config: &Config) -> Result<bool, Failure> {
    let is_transient = config.policies()?.iter().any(|(_, profile, _)| *profile == Profile::Transient);
    Ok(is_transient && !config.transient_url()?.starts_with("memory"))
}

/// Records a change, and then makes it.
async fn change(core: Core, config: &Config, action: Action, named: &str, to: &Keyring) -> Result<(), Failure> {
    record_change(core, config, action, [("state_key".to_owned(), named.to_owned())].into()).await?;
    Ok(KeyFiles::keep_keyring(&config.keys_dir(), to)?)
}
