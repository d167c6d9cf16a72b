//! `counterfoil audit bundle`, and what evidence bundles need of the store: who a subject's sessions are, and what opens an entry.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use audit_log::{LogStore, ReadError, SessionFilter};
use clap::Args;
use evidence::{EntryKeys, FolderSink, KeySource, Order, Purpose, Selection, Sink, ZipSink, write_bundle};
use sealing::{DataKey, Keyring};
use session_model::{Action, Detail, EntryId, KeyId, Outcome, RealmName, SessionId, Timestamp, TreeSize};
use session_service::Record;
use tracing::error;

use crate::at_hand::AtHand;
use crate::backends::open_log;
use crate::cli::Common;
use crate::config::{Config, ShardName};
use crate::key_commands::at_the_command_line;
use crate::key_files::KeyFiles;
use crate::serve::open_core;

type Failure = Box<dyn Error + Send + Sync>;

/// Which bundle, and from where.
#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    /// Where to: a new folder, or a new file whose name ends in .zip
    out: PathBuf,
    /// Address of a running service
    #[arg(long, requires = "api_key_file", conflicts_with = "realm")]
    url: Option<String>,
    /// File with an auditor's API key, for --url
    #[arg(long, visible_alias = "key-file", value_name = "FILE", requires = "url")]
    api_key_file: Option<PathBuf>,
    /// Entries not earlier than this (RFC 3339)
    #[arg(long)]
    from: Option<String>,
    /// Entries earlier than this (RFC 3339)
    #[arg(long)]
    to: Option<String>,
    /// Entries of this session
    #[arg(long)]
    session: Option<SessionId>,
    /// Entries of the sessions of this subject
    #[arg(long)]
    subject: Option<String>,
    /// Only what an auditor of this realm may see; every realm if absent. A key's own realm with --url
    #[arg(long)]
    realm: Option<RealmName>,
    /// Of the log of this shard; if absent of the one that --realm lives in, or of the first
    #[arg(long, value_name = "NAME", conflicts_with_all = ["realm", "url"])]
    shard: Option<ShardName>,
    /// Puts in what opens the sealed parts; recorded, with its purpose
    #[arg(long, requires = "purpose")]
    reveal: bool,
    /// Why they are opened, a case number say: stands in the log for ever
    #[arg(long, requires = "reveal")]
    purpose: Option<Purpose>,
    /// A checkpoint you keep: what proves it consistent is put in. May be repeated
    #[arg(long, value_name = "FILE")]
    saved: Vec<PathBuf>,
}

/// Writes an evidence bundle.
///
/// # Errors
/// Whatever made it fail.
pub(crate) async fn run_bundle(common: &Common, args: BundleArgs) -> Result<(), Failure> {
    match &args.url {
        Some(url) => {
            let url = url.clone();
            tokio::task::spawn_blocking(move || from_service(&url, &args)).await??;
        }
        None => {
            let config = common.load()?;
            let log = match &args.realm {
                Some(realm) => config.log_of(realm),
                None => config.log_named(args.shard.as_ref())?,
            };
            from_log(&log.config, args).await?;
        }
    }
    Ok(())
}

/// Sizes of the checkpoints that are kept: the second line of each.
fn sizes(saved: &[PathBuf]) -> Result<Vec<TreeSize>, Failure> {
    let size = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).map_err(|failure| format!("{}: {failure}", path.display()))?;
        let size = text.lines().nth(1).and_then(|line| line.parse().ok());
        size.map(TreeSize).ok_or_else(|| format!("{} is no checkpoint", path.display()).into())
    };
    saved.iter().map(size).collect()
}

fn is_zip(out: &Path) -> bool {
    out.extension().is_some_and(|extension| extension == "zip")
}

/// The file beside `out` that becomes `out` once it is whole.
fn unfinished(out: &Path) -> io::Result<(PathBuf, File)> {
    if out.exists() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists", out.display())));
    }
    let part = out.with_extension("zip.part");
    Ok((part.clone(), File::options().write(true).read(true).create(true).truncate(true).open(part)?))
}

fn from_service(url: &str, args: &BundleArgs) -> Result<(), Failure> {
    let key_file = args.api_key_file.as_ref().ok_or("--api-key-file is missing")?;
    let key = std::fs::read_to_string(key_file).map_err(|failure| format!("{}: {failure}", key_file.display()))?;
    let mut address = url::Url::parse(&format!("{}/v1/audit/bundle", url.trim_end_matches('/')))?;
    let keep: Vec<String> = sizes(&args.saved)?.iter().map(ToString::to_string).collect();
    let asked = [
        ("from", args.from.clone()),
        ("to", args.to.clone()),
        ("session", args.session.map(|id| id.to_string())),
        ("subject", args.subject.clone()),
        ("reveal", args.reveal.then(|| "true".to_owned())),
        ("purpose", args.purpose.as_ref().map(ToString::to_string)),
        ("keep", (!keep.is_empty()).then(|| keep.join(","))),
    ];
    for (name, value) in asked {
        if let Some(value) = value {
            address.query_pairs_mut().append_pair(name, &value);
        }
    }
    let agent = ureq::Agent::config_builder()
        .tls_config(ureq::tls::TlsConfig::builder().provider(ureq::tls::TlsProvider::NativeTls).build())
        .timeout_connect(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        .build()
        .new_agent();
    let bearer = format!("Bearer {}", key.trim());
    let mut response = agent.get(address.as_str()).header("Authorization", bearer).call()?;
    if response.status().as_u16() != 200 {
        let mut said = String::new();
        response.body_mut().as_reader().take(2_000).read_to_string(&mut said)?;
        return Err(format!("the service answered {}: {said}", response.status()).into());
    }
    let zip = if is_zip(&args.out) { args.out.clone() } else { args.out.with_extension("fetched.zip") };
    let (part, mut file) = unfinished(&zip)?;
    io::copy(&mut response.body_mut().as_reader(), &mut file)?;
    file.sync_all()?;
    // Whether it is whole shows when it is opened: the list of its files is at the end.
    let mut archive = zip::ZipArchive::new(file)?;
    if is_zip(&args.out) {
        std::fs::rename(part, zip)?;
    } else {
        let _made = FolderSink::create(&args.out)?;
        archive.extract(&args.out)?;
        std::fs::remove_file(part)?;
    }
    writeln!(io::stdout(), "{}", args.out.display())?;
    Ok(())
}

async fn from_log(config: &Config, args: BundleArgs) -> Result<(), Failure> {
    let time = |name: &str, given: &Option<String>| {
        let malformed = || format!("--{name}: must be an RFC 3339 time");
        given.as_ref().map(|text| Timestamp::parse(text).ok_or_else(malformed)).transpose()
    };
    let (from, to) = (time("from", &args.from)?, time("to", &args.to)?);
    let realms = match &args.realm {
        Some(realm) => vec![realm.clone()],
        None => config.policies()?.into_iter().map(|(realm, ..)| realm).collect(),
    };
    let made_at = match record(config, &args).await {
        Ok(now) => now,
        Err(failure) if args.reveal => return Err(failure),
        // An auditor of a log that was altered needs the bundle all the more.
        Err(failure) => {
            writeln!(io::stderr(), "counterfoil: this reading is not recorded: {}", crate::causes(&*failure))?;
            Timestamp::from_micros(0)
        }
    };
    let store = open_log(config).await?.store;
    let size = store.head().await?.size();
    let keys = KeyFiles::open(&config.keys_dir(), size)?;
    let order = Order {
        selection: Selection {
            realm: args.realm.clone(),
            from,
            to,
            within: None,
            session: args.session,
            subject: args.subject.clone().map(|subject| (realms, subject)),
        },
        reveal: args.purpose.clone(),
        keep: sizes(&args.saved)?,
        stamps: crate::anchors::stamps(config),
        made_at,
        made_by: "command-line".into(),
        vkeys: keys.known.iter().map(|known| known.vkey.clone()).collect(),
    };
    let vault = Vault { log: Arc::clone(&store), keyring: keys.keyring };
    if is_zip(&args.out) {
        let (part, file) = unfinished(&args.out)?;
        let mut sink = ZipSink::new(file.try_clone()?);
        write_bundle(&*store, &vault, order, &mut sink).await?;
        file.sync_all()?;
        std::fs::rename(part, &args.out)?;
    } else {
        let mut sink: Box<dyn Sink> = Box::new(FolderSink::create(&args.out)?);
        write_bundle(&*store, &vault, order, &mut *sink).await?;
    }
    writeln!(io::stdout(), "{}", args.out.display())?;
    Ok(())
}

/// Records that the log is read at the command line; answers the time of it.
async fn record(config: &Config, args: &BundleArgs) -> Result<Timestamp, Failure> {
    let core = open_core(config).await?;
    let realm = match &args.realm {
        Some(realm) => realm.clone(),
        None => core.policies.keys().min().cloned().ok_or("there is no realm")?,
    };
    let at_hand = AtHand::start(core, config)?;
    let mut detail = Detail::from([("command".to_owned(), "audit bundle".to_owned())]);
    let facts = [
        ("session", args.session.map(|id| id.to_string())),
        ("subject", args.subject.as_ref().map(|_| "one".to_owned())),
        ("purpose", args.purpose.as_ref().map(ToString::to_string)),
    ];
    detail.extend(facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    let record = Record {
        action: Action::AuditRead,
        outcome: Outcome::Success,
        detail,
        facts: Default::default(),
        credential: None,
    };
    let recorded = at_hand.service().record(&at_the_command_line(&realm), record).await;
    let now = at_hand.service().now();
    at_hand.close().await;
    recorded?;
    Ok(now)
}

/// Subjects and their keys, as the store and the key files have them.
pub(crate) struct Vault {
    /// The store.
    pub log: Arc<dyn LogStore>,
    /// What data keys are wrapped with.
    pub keyring: Keyring,
}

fn corrupt(failure: sealing::SealError) -> ReadError {
    ReadError::Corrupt(failure.to_string())
}

#[async_trait]
impl KeySource for Vault {
    async fn sessions_of(&self, realm: &RealmName, subject: &str) -> Result<Vec<SessionId>, ReadError> {
        const PAGE: usize = 500;
        let lookup = self.keyring.lookup(realm, subject).map_err(corrupt)?;
        let Some(row) = self.log.data_keys_by_lookup(&[lookup]).await?.into_iter().flatten().next() else {
            return Ok(Vec::new());
        };
        let filter = SessionFilter { realm: realm.clone(), key: Some(row.id), open: None, kind: None };
        let mut found: Vec<SessionId> = Vec::new();
        loop {
            let page = self.log.sessions(&filter, found.last().copied(), PAGE).await?;
            let last = page.len() < PAGE;
            found.extend(page);
            if last {
                return Ok(found);
            }
        }
    }

    async fn entry_keys(&self, entries: &[(KeyId, EntryId)]) -> Result<Vec<Option<EntryKeys>>, ReadError> {
        let mut ids: Vec<KeyId> = entries.iter().map(|(key, _)| *key).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut known: HashMap<KeyId, DataKey> = HashMap::new();
        for row in self.log.data_keys(&ids).await?.into_iter().flatten() {
            match self.keyring.unwrap(row.id, &row.wrapped) {
                Ok(key) => {
                    known.insert(row.id, key);
                }
                // A key that was spoilt opens nothing, as one that was destroyed; the verifier finds no entry that says why.
                Err(failure) => error!(key = %row.id, %failure, "a stored data key cannot be unwrapped"),
            }
        }
        let keys = |(key, entry): &(KeyId, EntryId)| {
            let Some(key) = known.get(key) else { return Ok(None) };
            let [encryption, commitment] = key.entry_keys(*entry).map_err(corrupt)?;
            Ok(Some(EntryKeys { encryption, commitment }))
        };
        entries.iter().map(keys).collect()
    }
}
