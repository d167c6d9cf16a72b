//! `counterfoil key …`: each change is an entry of the log, like every other.

use std::error::Error;

use access::ApiKey;
use audit_log::Credential;
use clap::{Subcommand, ValueEnum};
use sealing::Ids;
use serde::Serialize;
use session_model::{Actor, Protocol, RealmName, Role, Timestamp};
use session_service::Caller;

use crate::at_hand::AtHand;
use crate::config::Config;
use crate::output::{Output, write};
use crate::serve::open_core;

/// What may be done with API keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Makes a key and prints it: the only time it is seen
    Create {
        /// Realm it belongs to
        #[arg(long, default_value = "default")]
        realm: RealmName,
        /// What it may do; give it more than once for more than one role
        #[arg(long = "role", required = true)]
        roles: Vec<RoleWord>,
        /// A name for people
        #[arg(long, default_value = "")]
        label: String,
    },
    /// Lists the keys
    List,
    /// Revokes a key: it opens nothing from the next second on
    Revoke {
        /// Its id, as `list` shows it
        id: String,
    },
}

/// A role that a key can have.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RoleWord {
    /// Keeps sessions
    Application,
    /// Reads the log
    Auditor,
    /// Ends sessions in bulk
    Operator,
}

impl From<RoleWord> for Role {
    fn from(word: RoleWord) -> Self {
        match word {
            RoleWord::Application => Self::Application,
            RoleWord::Auditor => Self::Auditor,
            RoleWord::Operator => Self::Operator,
        }
    }
}

#[derive(Debug, Serialize)]
struct KeyRow {
    id: String,
    realm: RealmName,
    roles: Vec<Role>,
    label: String,
    created_at: Timestamp,
    revoked_at: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct NewKey {
    id: String,
    key: String,
    realm: RealmName,
    roles: Vec<Role>,
}

/// A credential for a key, with an id of its own.
///
/// # Errors
/// If the random generator fails.
pub(crate) fn credential(
    key: &ApiKey,
    realm: &RealmName,
    roles: Vec<Role>,
    label: &str,
    now: Timestamp,
) -> Result<Credential, sealing::SealError> {
    let id = format!("key-{}", Ids.entry(now)?);
    let (realm, label) = (realm.clone(), label.to_owned());
    Ok(Credential { id, digest: key.digest(), realm, roles, label, created_at: now, revoked_at: None })
}

/// Somebody at the command line.
pub(crate) fn at_the_command_line(realm: &RealmName) -> Caller {
    Caller {
        realm: realm.clone(),
        actor: Actor { id: "command-line".into(), role: Role::Operator },
        protocol: Protocol::Cli,
        origin: None,
        request_id: None,
        trace_id: None,
        min_index: None,
        detail: Default::default(),
    }
}

type Failure = Box<dyn Error + Send + Sync>;

/// Runs a key command, beside a running service or without one.
///
/// # Errors
/// Whatever made it fail.
pub(crate) async fn run_key_command(config: &Config, command: KeyCommand, output: Output) -> Result<(), Failure> {
    match command {
        KeyCommand::List => list(config, output).await,
        KeyCommand::Create { realm, roles, label } => {
            let roles: Vec<Role> = roles.into_iter().map(Role::from).collect();
            let log = config.log_of(&realm);
            let core = open_core(&log.config).await?;
            if !core.policies.contains_key(&realm) {
                return Err(format!("the configuration has no realm {realm}").into());
            }
            let key = ApiKey::mint()?;
            let at_hand = AtHand::start(core, &log.config)?;
            let credential = credential(&key, &realm, roles.clone(), &label, at_hand.service().now())?;
            let id = credential.id.clone();
            let added = at_hand.service().add_credential(&at_the_command_line(&realm), credential).await;
            at_hand.close().await;
            added?;
            Ok(write(output, &NewKey { id, key: key.expose().to_owned(), realm, roles })?)
        }
        KeyCommand::Revoke { id } => {
            let is_it = |known: &Credential| known.id == id && known.revoked_at.is_none();
            for log in config.logs() {
                let core = open_core(&log.config).await?;
                let Some(known) = core.log.credentials().await?.into_iter().find(is_it) else { continue };
                let at_hand = AtHand::start(core, &log.config)?;
                let revoked = at_hand.service().revoke_credential(&at_the_command_line(&known.realm), &id).await;
                at_hand.close().await;
                revoked?;
                return list(config, output).await;
            }
            Err(format!("there is no valid key {id}").into())
        }
    }
}

/// The keys of every log.
async fn list(config: &Config, output: Output) -> Result<(), Failure> {
    let row = |known: Credential| KeyRow {
        id: known.id,
        realm: known.realm,
        roles: known.roles,
        label: known.label,
        created_at: known.created_at,
        revoked_at: known.revoked_at,
    };
    let mut rows = Vec::new();
    for log in config.logs() {
        let core = open_core(&log.config).await?;
        rows.extend(core.log.credentials().await?.into_iter().map(row));
    }
    Ok(write(output, &rows)?)
}
