//! The command: what is to be verified, and how the answer is told.

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use session_model::LeafHash;

use crate::bundle::verify_bundle;
use crate::fetch::fetch;
use crate::receipt::{VerifyError, verify_receipt};
use crate::report::Report;
use crate::source::Source;

/// What to verify.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// An evidence bundle (folder or zip), the address of a running service (http://… or https://…), or a file with a receipt as
    /// GET /v1/receipts/{index} answers it
    #[arg(value_name = "BUNDLE|URL|RECEIPT")]
    pub what: String,
    /// The log's verifier key, a C2SP vkey line, from somebody you trust
    #[arg(long, required_unless_present = "key_file", conflicts_with = "key_file")]
    pub key: Option<String>,
    /// File with the log's verifier keys, one vkey line each
    #[arg(long)]
    pub key_file: Option<PathBuf>,
    /// For a receipt: hash of the leaf, hexadecimal, as in the receipt's leaf_hash in the answer to the change
    #[arg(long, conflicts_with = "leaf")]
    pub leaf_hash: Option<LeafHash>,
    /// For a receipt: file with the leaf's exact bytes
    #[arg(long)]
    pub leaf: Option<PathBuf>,
    /// For a bundle: a checkpoint you kept from earlier; the log must still begin with what it was signed for. May be repeated
    #[arg(long, value_name = "FILE")]
    pub saved: Vec<PathBuf>,
    /// For a bundle: PEM file with the certificates of the time-stamping authority, from somebody you trust; its time stamps are then verified
    #[arg(long, value_name = "FILE")]
    pub tsa_ca: Option<PathBuf>,
    /// For a URL: file with an auditor's API key
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// For a bundle: how the report is written
    #[arg(long, value_enum, default_value = "text")]
    pub report: ReportFormat,
    /// For a bundle: how many threads hash; as many as there are processors if absent
    #[arg(long)]
    pub threads: Option<usize>,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Verifies, and tells on standard output. Exit status for a bundle: 0 proved, 1 not proved, 2 the question could not be put; for a
/// receipt: 0 it holds, 3 it does not, 1 the question could not be put, 2 wrong usage.
pub fn run(program: &str, args: &VerifyArgs) -> ExitCode {
    let url = args.what.starts_with("http://") || args.what.starts_with("https://");
    let told = if url || is_bundle(Path::new(&args.what)) { bundle(args, url) } else { receipt(args) };
    match told {
        Ok((text, code)) => match io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::from(code),
            Err(_) => ExitCode::from(2),
        },
        Err((failure, code)) => {
            let _nowhere_to_say_it = writeln!(io::stderr(), "{program}: {}", causes(&failure));
            ExitCode::from(code)
        }
    }
}

/// Verifies a bundle that is a folder or a zip: `args.what`.
///
/// # Errors
/// [`VerifyError`] if the question cannot be put; what is wrong with the bundle is in the report.
pub fn verify_evidence(args: &VerifyArgs) -> Result<Report, VerifyError> {
    verify_at(args, Path::new(&args.what))
}

fn verify_at(args: &VerifyArgs, path: &Path) -> Result<Report, VerifyError> {
    let source = Source::open(path).map_err(|source| VerifyError::Read { path: path.to_owned(), source })?;
    verify_bundle(args, source, path)
}

type Told = Result<(String, u8), (VerifyError, u8)>;

fn receipt(args: &VerifyArgs) -> Told {
    match verify_receipt(args) {
        Ok(proved) => Ok((format!("{proved}\n"), 0)),
        Err(failure @ VerifyError::DoesNotHold(_)) => Err((failure, 3)),
        Err(failure @ VerifyError::Leaf) => Err((failure, 2)),
        Err(failure) => Err((failure, 1)),
    }
}

fn bundle(args: &VerifyArgs, url: bool) -> Told {
    let put = || {
        let fetched;
        let path = if url {
            fetched = fetch(args)?;
            fetched.path()
        } else {
            Path::new(&args.what)
        };
        let unreadable = |source| VerifyError::Read { path: path.to_owned(), source };
        let report = verify_at(args, path)?;
        let text = match args.report {
            ReportFormat::Text => report.to_string(),
            ReportFormat::Json => {
                let json = serde_json::to_string_pretty(&report).map_err(|failure| unreadable(failure.into()))?;
                json + "\n"
            }
        };
        Ok((text, u8::from(!report.proved)))
    };
    put().map_err(|failure| (failure, 2))
}

/// A folder, or a file that begins as a zip does. A receipt is text.
fn is_bundle(path: &Path) -> bool {
    use io::Read;
    let mut first = [0; 4];
    let zip = || {
        std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == *b"PK\x03\x04"
    };
    path.is_dir() || path.extension().is_some_and(|extension| extension == "zip") || { zip }()
}

/// An error and everything that caused it, on one line.
fn causes(failure: &dyn Error) -> String {
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
