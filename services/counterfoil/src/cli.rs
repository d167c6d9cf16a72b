//! The command line. Data on standard output, logs on standard error.
//!
//! Exit status: 0 done; 1 failed; 2 wrong usage; 3 what was to be verified does not hold; 4 not ready.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use counterfoil_verify::{ReportFormat, VerifyArgs};
use serde::Serialize;

use crate::audit_commands::{AuditCommand, run_audit_command};
use crate::cluster::{ClusterCommand, run_cluster_command};
use crate::config::{Config, ShardName};
use crate::key_commands::{KeyCommand, run_key_command};
use crate::key_encryption::{KeyEncryptionCommand, run_key_encryption_command};
use crate::log_keys::{LogKeyCommand, run_log_key_command};
use crate::output::{Output, write};
use crate::soap::{SoapCommand, SoapVersion, description, run_soap_command};
use crate::state_keys::{StateKeyCommand, run_state_key_command};
use crate::witness::{WitnessArgs, run_witness};
use crate::{anchors, backends, pruning, serve, sinks};

/// Audited sessions: every change is an entry of an append-only, signed log before it is acknowledged.
#[derive(Debug, Parser)]
#[command(name = "counterfoil", version)]
pub(crate) struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Configuration file (TOML)
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one configuration key, for instance --set server.listen=127.0.0.1:0
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How answers are written
    #[arg(long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// Which log, where there is more than one.
#[derive(Debug, Args)]
pub(crate) struct WhichLog {
    /// The log of this shard; the first, which log.url names, if absent
    #[arg(long, global = true, value_name = "NAME")]
    shard: Option<ShardName>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the service (this is what runs without a command)
    Serve,
    /// Brings the PostgreSQL schema of every log up to date, as its owner
    Migrate,
    /// Makes, lists and revokes API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Changes the key that signs a log's checkpoints
    LogKey {
        #[command(flatten)]
        which: WhichLog,
        #[command(subcommand)]
        command: LogKeyCommand,
    },
    /// Changes the key that data keys are wrapped with
    KeyEncryption {
        #[command(flatten)]
        which: WhichLog,
        #[command(subcommand)]
        command: KeyEncryptionCommand,
    },
    /// Changes the keys of what is kept beside a log for a while: answers, shared views, visits to the console
    StateKey {
        #[command(flatten)]
        which: WhichLog,
        #[command(subcommand)]
        command: StateKeyCommand,
    },
    /// What auditors ask of a log and take away
    #[command(subcommand)]
    Audit(AuditCommand),
    /// The cluster, from outside
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Runs a witness of other people's logs: cosigns checkpoints that extend what it has seen
    Witness(WitnessArgs),
    /// The realms of the configuration
    #[command(subcommand)]
    Realm(RealmCommand),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Verifies an evidence bundle or a receipt, offline
    ///
    /// Exit status for a bundle: 0 proved, 1 not proved, 2 the question could not be put. For a receipt: 0 it holds, 3 it does not,
    /// 1 the question could not be put.
    Verify(VerifyArgs),
    /// Asks a running service whether it is ready (exit status 4 if not)
    Healthcheck {
        /// Its management address; the configuration's if absent
        #[arg(long)]
        address: Option<String>,
    },
    /// Prints the OpenAPI document
    Openapi,
    /// Prints the WSDL, or its schema
    Wsdl {
        /// Which ports it has
        #[arg(long, value_enum, default_value = "both")]
        soap: SoapVersion,
        /// Prints the schema that it imports
        #[arg(long, conflicts_with = "soap")]
        xsd: bool,
    },
    /// SOAP consumers
    #[command(subcommand)]
    Soap(SoapCommand),
    /// Prints a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Prints the manual page
    Man,
}

#[derive(Debug, Subcommand)]
enum RealmCommand {
    /// Lists the realms and what each demands
    List,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Says whether the configuration can be used, sinks and anchors included. Reads the files that it names, and connects to nothing
    Check,
    /// Shows the configuration as it takes effect, passwords blotted out
    Show,
    /// Prints the JSON Schema of the configuration file
    Schema,
}

type Failure = Box<dyn Error + Send + Sync>;

/// Runs a command.
///
/// # Errors
/// Whatever made it fail: exit status 1.
pub(crate) fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let common = cli.common;
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => runtime()?.block_on(serve::serve(common.load()?))?,
        Command::Migrate => {
            runtime()?.block_on(backends::migrate(&common.load()?))?;
            writeln!(io::stdout(), "the schema is up to date")?;
        }
        Command::Key(command) => runtime()?.block_on(run_key_command(&common.load()?, command, common.output))?,
        Command::LogKey { which, command } => {
            let log = common.load()?.log_named(which.shard.as_ref())?;
            runtime()?.block_on(run_log_key_command(&log.config, command, common.output))?;
        }
        Command::KeyEncryption { which, command } => {
            let log = common.load()?.log_named(which.shard.as_ref())?;
            runtime()?.block_on(run_key_encryption_command(&log.config, command, common.output))?;
        }
        Command::StateKey { which, command } => {
            let log = common.load()?.log_named(which.shard.as_ref())?;
            runtime()?.block_on(run_state_key_command(&log.config, command, common.output))?;
        }
        Command::Audit(command) => run_audit_command(&common, command)?,
        Command::Cluster(command) => {
            return runtime()?.block_on(run_cluster_command(&common.load()?, command, common.output));
        }
        Command::Witness(args) => runtime()?.block_on(run_witness(args))?,
        Command::Realm(RealmCommand::List) => write(common.output, &realms(&common.load()?)?)?,
        Command::Config(ConfigCommand::Check) => {
            let config = common.load()?;
            config.check_places()?;
            sinks::check(&config)?;
            for log in config.logs() {
                anchors::check(&log.config)?;
            }
            pruning::check(&config)?;
            writeln!(io::stdout(), "the configuration can be used")?;
        }
        Command::Config(ConfigCommand::Show) => write(common.output, &common.load()?.redacted())?,
        Command::Config(ConfigCommand::Schema) => {
            let schema = serde_json::to_string_pretty(&schemars::schema_for!(Config))?;
            writeln!(io::stdout(), "{schema}")?;
        }
        Command::Verify(mut args) => {
            if matches!(common.output, Output::Json) {
                args.report = ReportFormat::Json;
            }
            return Ok(counterfoil_verify::run("counterfoil", &args));
        }
        Command::Healthcheck { address } => {
            let address = match address {
                Some(address) => address,
                None => common.load()?.management.listen,
            };
            return Ok(if is_ready(&address)? { ExitCode::SUCCESS } else { ExitCode::from(4) });
        }
        Command::Openapi => io::stdout().write_all(api_rest::openapi_json()?.as_bytes())?,
        Command::Wsdl { xsd: true, .. } => io::stdout().write_all(api_soap::xsd().as_bytes())?,
        Command::Wsdl { soap, xsd: false } => {
            io::stdout().write_all(description(&common.load()?, soap).as_bytes())?;
        }
        Command::Soap(command) => run_soap_command(&common.load()?, command)?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "counterfoil", &mut io::stdout());
        }
        Command::Man => clap_mangen::Man::new(Cli::command()).render(&mut io::stdout())?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

impl Common {
    pub(crate) fn load(&self) -> Result<Config, Failure> {
        let mut flags = Vec::new();
        for pair in &self.set {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("--set {pair}: must be KEY=VALUE"))?;
            flags.push((key.to_owned(), value.to_owned()));
        }
        let flags = flags.iter().map(|(key, value)| (key.as_str(), value.clone()));
        Ok(Config::load(self.config.as_deref(), std::env::vars(), flags)?)
    }
}

#[derive(Debug, Serialize)]
struct RealmRow {
    realm: String,
    profile: &'static str,
    idle_timeout_s: u32,
    absolute_timeout_s: u32,
    sessions_per_subject: u32,
    beyond_cap: session_model::BeyondCap,
    reused_token: session_model::ReusedToken,
    audited_reads: bool,
    retention_days: Option<u32>,
}

fn realms(config: &Config) -> Result<Vec<RealmRow>, Failure> {
    let policies = config.policies()?;
    let row = |(realm, profile, policy): (session_model::RealmName, session_model::Profile, session_model::Policy)| {
        RealmRow {
            realm: realm.to_string(),
            profile: profile.name(),
            idle_timeout_s: policy.idle_timeout.0,
            absolute_timeout_s: policy.absolute_timeout.0,
            sessions_per_subject: policy.sessions_per_subject,
            beyond_cap: policy.beyond_cap,
            reused_token: policy.reused_token,
            audited_reads: policy.audited_reads,
            retention_days: policy.retention_days,
        }
    };
    Ok(policies.into_iter().map(row).collect())
}

/// Asks `/readyz`, with nothing but a socket: this runs in images that have no other tool.
fn is_ready(address: &str) -> Result<bool, Failure> {
    let limit = Some(Duration::from_secs(3));
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    stream.write_all(format!("GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(4_096).read_to_string(&mut answer)?;
    Ok(answer.split_whitespace().nth(1) == Some("200"))
}
