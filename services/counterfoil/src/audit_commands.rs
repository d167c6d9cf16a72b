//! `counterfoil audit …`: what an auditor asks of a running service. Data on standard output.

use std::error::Error;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use http_client::HttpClient;
use serde::Serialize;
use serde_json::Value;

use crate::archives::{OpenArgs, run_open};
use crate::cli::{Common, runtime};
use crate::evidence_commands::{BundleArgs, run_bundle};
use crate::output::{Output, write};
use crate::pruning::{PruneArgs, run_prune};

/// What may be asked of the log.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Lists entries, newest first
    Entries {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        filter: FilterArgs,
        /// How many at most
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Writes entries to standard output, oldest first, as they arrive
    Export {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        filter: FilterArgs,
        /// jsonl, csv, ocsf or cef
        #[arg(long, default_value = "jsonl")]
        format: String,
        /// Only entries behind this leaf index: the last one received
        #[arg(long)]
        after: Option<u64>,
    },
    /// Writes an evidence bundle: from a running service (--url), or straight from the log of the configuration
    Bundle(BundleArgs),
    /// Archives and drops what is sealed and past its realm's retention_days, straight in the log of the configuration
    Prune(PruneArgs),
    /// Opens the sealed parts of an archive that pruning wrote, straight with the keys of the configuration; recorded, with its purpose
    Open(OpenArgs),
}

/// Which service, as whom.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The service, for instance https://counterfoil.example
    #[arg(long, env = "COUNTERFOIL_URL", default_value = "http://127.0.0.1:8080")]
    pub(crate) url: String,
    /// File that holds an auditor's API key
    #[arg(long, env = "COUNTERFOIL_KEY_FILE")]
    pub(crate) key_file: PathBuf,
    /// PEM file of the certificate authorities to trust instead of the system's
    #[arg(long)]
    pub(crate) ca_file: Option<PathBuf>,
}

/// Which entries.
#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// Of this time or later (RFC 3339)
    #[arg(long)]
    from: Option<String>,
    /// Earlier than this (RFC 3339)
    #[arg(long)]
    to: Option<String>,
    /// Of this session
    #[arg(long)]
    session: Option<String>,
    /// Of this subject's sessions
    #[arg(long)]
    subject: Option<String>,
    /// Asked for by the actor with this id
    #[arg(long)]
    actor: Option<String>,
    /// Of this action, for instance session.ended
    #[arg(long)]
    action: Option<String>,
    /// success or refused
    #[arg(long)]
    outcome: Option<String>,
    /// From this address
    #[arg(long)]
    address: Option<String>,
}

impl FilterArgs {
    /// As query parameters; the server says what it does not know.
    pub(crate) fn parameters(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("from", &self.from),
            ("to", &self.to),
            ("session", &self.session),
            ("subject", &self.subject),
            ("actor", &self.actor),
            ("action", &self.action),
            ("outcome", &self.outcome),
            ("address", &self.address),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
    }
}

type Failure = Box<dyn Error + Send + Sync>;

/// A running service, asked as an auditor.
pub(crate) struct Service {
    client: HttpClient,
    url: url::Url,
    bearer: String,
}

impl Service {
    /// # Errors
    /// If the key file cannot be read, or the URL is none.
    pub(crate) fn new(server: &ServerArgs) -> Result<Self, Failure> {
        let file = &server.key_file;
        let key = std::fs::read_to_string(file).map_err(|failure| format!("{}: {failure}", file.display()))?;
        let url = url::Url::parse(&server.url).map_err(|failure| format!("--url {}: {failure}", server.url))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("--url {}: must be http or https", server.url).into());
        }
        let client = HttpClient::streaming(Duration::from_secs(30), server.ca_file.as_deref())?;
        Ok(Self { client, url, bearer: format!("Bearer {}", key.trim()) })
    }

    /// Asks; an answer but 200 is an error that says what the service said.
    ///
    /// # Errors
    /// If there is no answer, or it is not 200.
    pub(crate) fn get(&self, path: &str, parameters: &[(&'static str, String)]) -> Result<impl Read + use<>, Failure> {
        let mut url = self.url.join(path)?;
        if !parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        let headers = [("Authorization", self.bearer.as_str())];
        let (status, _, mut body) = self.client.open("GET", url.as_str(), &headers, &[])?;
        if status == 200 {
            return Ok(body);
        }
        let mut text = String::new();
        // What the service says about a failure is short; what is not is cut.
        let _shown_as_far_as_it_came = body.by_ref().take(4_096).read_to_string(&mut text);
        let problem: Value = serde_json::from_str(&text).unwrap_or_default();
        let said = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
        let fields = problem.get("errors").filter(|errors| !errors.is_null()).map(|errors| format!(" {errors}"));
        Err(format!("{path}: {status} {}: {}{}", said("title"), said("detail"), fields.unwrap_or_default()).into())
    }

    fn json(&self, path: &str, parameters: &[(&'static str, String)]) -> Result<Value, Failure> {
        Ok(serde_json::from_reader(self.get(path, parameters)?)?)
    }
}

/// An entry in a table.
#[derive(Debug, Serialize)]
struct EntryRow {
    index: Value,
    time: Value,
    action: Value,
    outcome: Value,
    actor: Value,
    session: Value,
    version: Value,
    leaf_hash: Value,
}

/// Runs an audit command.
///
/// # Errors
/// Whatever made it fail.
pub(crate) fn run_audit_command(common: &Common, command: AuditCommand) -> Result<(), Failure> {
    let output = common.output;
    match command {
        AuditCommand::Prune(args) => runtime()?.block_on(async { run_prune(&common.load()?, args, output).await }),
        AuditCommand::Open(args) => {
            runtime()?.block_on(async { run_open(&common.load()?, args, &mut io::stdout()).await })
        }
        AuditCommand::Bundle(args) => runtime()?.block_on(run_bundle(common, args)),
        AuditCommand::Entries { server, filter, limit } => {
            let items = entries(&Service::new(&server)?, &filter, limit)?;
            match output {
                Output::Table => Ok(write(output, &items.iter().map(row).collect::<Vec<_>>())?),
                Output::Json | Output::Yaml => Ok(write(output, &items)?),
            }
        }
        AuditCommand::Export { server, filter, format, after } => {
            let mut parameters = filter.parameters();
            parameters.push(("format", format));
            parameters.extend(after.map(|after| ("after", after.to_string())));
            let mut body = Service::new(&server)?.get("/v1/audit/export", &parameters)?;
            let mut out = io::stdout().lock();
            io::copy(&mut body, &mut out).map_err(|failure| {
                format!("the export broke off: go on with --after and the last index received: {failure}")
            })?;
            Ok(out.flush()?)
        }
    }
}

fn entries(service: &Service, filter: &FilterArgs, limit: u32) -> Result<Vec<Value>, Failure> {
    const PAGE: u32 = 500;
    let mut items: Vec<Value> = Vec::new();
    let mut cursor = None;
    loop {
        let missing = usize::try_from(limit)?.saturating_sub(items.len());
        let mut parameters = filter.parameters();
        parameters.push(("limit", missing.clamp(1, PAGE as usize).to_string()));
        parameters.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let mut page = service.json("/v1/audit/entries", &parameters)?;
        if let Some(Value::Array(more)) = page.get_mut("items").map(Value::take) {
            items.extend(more);
        }
        items.truncate(limit as usize);
        cursor = page.get("next_cursor").and_then(Value::as_str).map(ToOwned::to_owned);
        if cursor.is_none() || items.len() >= limit as usize {
            return Ok(items);
        }
    }
}

fn row(item: &Value) -> EntryRow {
    let at = |pointer: &str| item.pointer(pointer).cloned().unwrap_or_default();
    EntryRow {
        index: at("/index"),
        time: at("/entry/time"),
        action: at("/entry/action"),
        outcome: at("/entry/outcome"),
        actor: at("/entry/actor/id"),
        session: at("/entry/session_id"),
        version: at("/entry/version"),
        leaf_hash: at("/leaf_hash"),
    }
}
