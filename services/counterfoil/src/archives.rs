//! `counterfoil audit open`: what retention archived and dropped, opened again for a purpose.
//!
//! Of an archive only the sealed parts are taken. Leaves are never dropped, so they come from the log, and with them the commitment that
//! each part must open to: an archive that was altered opens nothing that the log did not seal. The keys are the log's too: what was
//! erased stays shut.

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::sync::Arc;

use api_audit::{EntryDocument, PersonalState};
use audit_log::SealedEntry;
use audit_search::Archive;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use evidence::Purpose;
use serde::Deserialize;
use session_model::{Action, Detail, KeyId, LeafIndex, Outcome, RealmName, SessionId};
use session_service::Record;
use zip::ZipArchive;

use crate::at_hand::AtHand;
use crate::config::Config;
use crate::key_commands::at_the_command_line;
use crate::pruning::digest;
use crate::serve::open_core;

type Failure = Box<dyn Error + Send + Sync>;

/// Entries opened at a time.
const PAGE: usize = 256;

/// Which archive, and why.
#[derive(Debug, Clone, Args)]
pub(crate) struct OpenArgs {
    /// An evidence bundle (.zip) that `audit prune`, or a node, wrote before it dropped what was sealed
    pub(crate) archive: PathBuf,
    /// Why it is opened, a case number say: stands in the log for ever
    #[arg(long)]
    pub(crate) purpose: Purpose,
    /// Entries of this realm
    #[arg(long, default_value = "default")]
    pub(crate) realm: RealmName,
    /// Entries of this session only
    #[arg(long)]
    pub(crate) session: Option<SessionId>,
}

/// A line of `sealed/…` in a bundle.
#[derive(Deserialize)]
struct SealedLine {
    index: u64,
    data_key: KeyId,
    sealed: String,
}

/// What came of the parts of an archive.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    open: u64,
    erased: u64,
    broken: u64,
}

/// Opens an archive: an entry a line, as `getEntry` answers it with `reveal=true`. Recorded before anything is read.
///
/// # Errors
/// Whatever made it fail; if a part does not open to what its leaf commits to, after all others were written.
pub(crate) async fn run_open(config: &Config, args: OpenArgs, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let (path, file) = (args.archive.clone(), args.archive.display().to_string());
    let unreadable = |failure: io::Error| format!("{file}: {failure}");
    let sha256 = tokio::task::spawn_blocking(move || digest(&path)).await?.map_err(unreadable)?;
    let config = &config.log_of(&args.realm).config;
    let core = open_core(config).await?;
    if !core.policies.contains_key(&args.realm) {
        return Err(format!("the configuration has no realm {}", args.realm).into());
    }
    let archive = Archive::new(Arc::clone(&core.log), core.keys.keyring.clone(), Arc::default());
    let at_hand = AtHand::start(core, config)?;
    let recorded = at_hand.service().record(&at_the_command_line(&args.realm), reading(&args, sha256)).await;
    at_hand.close().await;
    recorded?;
    let counts = open(&args, &archive, out).await?;
    out.flush()?;
    let Counts { open, erased, broken } = counts;
    writeln!(io::stderr(), "{open} opened, {erased} erased")?;
    if broken > 0 {
        let why = "the archive, or the data key, was altered";
        return Err(format!("{file}: {broken} parts do not open to what their leaves commit to: {why}").into());
    }
    if open + erased == 0 {
        return Err(format!("{file} has nothing sealed of realm {}", args.realm).into());
    }
    Ok(())
}

fn reading(args: &OpenArgs, sha256: String) -> Record {
    let facts = [
        ("command", Some("audit open".to_owned())),
        ("purpose", Some(args.purpose.to_string())),
        ("bundle", Some(sha256)),
        ("session", args.session.map(|id| id.to_string())),
    ];
    let detail: Detail = facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let (action, outcome) = (Action::AuditRead, Outcome::Success);
    Record { action, outcome, detail, facts: Default::default(), credential: None }
}

async fn open(args: &OpenArgs, archive: &Archive, out: &mut (dyn Write + Send)) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    let mut zip = ZipArchive::new(BufReader::new(File::open(&args.archive)?))?;
    for name in groups(&zip)? {
        // A group at a time: its lines are read whole before anything is awaited.
        let parts =
            parts(&mut zip, &name).map_err(|failure| format!("{}: {name}: {failure}", args.archive.display()))?;
        for page in parts.chunks(PAGE) {
            for opened in archive.open_kept(&args.realm, page).await? {
                if args.session.is_some() && opened.leaf.session_id != args.session {
                    continue;
                }
                let document = api_audit::revealed(&opened).map_err(|_| "an entry of the log is not a leaf")?;
                count(&mut counts, &document);
                serde_json::to_writer(&mut *out, &document)?;
                out.write_all(b"\n")?;
            }
        }
    }
    Ok(counts)
}

fn count(counts: &mut Counts, document: &EntryDocument) {
    match document.personal.as_ref().map(|personal| personal.state) {
        Some(PersonalState::Open) => counts.open += 1,
        Some(PersonalState::Erased) => counts.erased += 1,
        Some(PersonalState::Broken) => counts.broken += 1,
        Some(PersonalState::None | PersonalState::Pruned) | None => {}
    }
}

/// The files of sealed parts, in the order of their numbers (C2SP tlog-tiles writes 1234 as `x001/234`).
fn groups<R: io::Read + io::Seek>(zip: &ZipArchive<R>) -> Result<Vec<String>, zip::result::ZipError> {
    let mut names = Vec::new();
    for name in zip.file_names() {
        let name = name?;
        if name.starts_with("sealed/") {
            let digits: String = name.chars().filter(char::is_ascii_digit).collect();
            names.push((digits.parse::<u64>().unwrap_or(u64::MAX), name.into_owned()));
        }
    }
    names.sort_unstable();
    Ok(names.into_iter().map(|(_, name)| name).collect())
}

fn parts(zip: &mut ZipArchive<BufReader<File>>, name: &str) -> Result<Vec<(LeafIndex, SealedEntry)>, Failure> {
    let mut parts = Vec::new();
    for line in BufReader::new(zip.by_name(name)?).lines() {
        let SealedLine { index, data_key, sealed } = serde_json::from_str(&line?)?;
        parts.push((LeafIndex(index), SealedEntry { key: data_key, bytes: STANDARD.decode(sealed)? }));
    }
    Ok(parts)
}
