//! Verifies, offline, what a client kept: a receipt against the log's verifier key and the leaf it is for.
//!
//! Signatures are verified with `signed_note`'s own verifier rather than the server's OpenSSL: the two share no code.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use merkle_log::{Checkpoint, Receipt, ReceiptError, Verifier, leaf_hash};
use session_model::LeafHash;
use signed_note::StandardVerifier;

/// What to verify.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// File with the receipt: C2SP tlog-proof text, as GET /v1/receipts/{index} answers it
    pub receipt: PathBuf,
    /// The log's verifier key, a C2SP vkey line
    #[arg(long, required_unless_present = "key_file", conflicts_with = "key_file")]
    pub key: Option<String>,
    /// File with the log's verifier keys, one vkey line each
    #[arg(long)]
    pub key_file: Option<PathBuf>,
    /// Hash of the leaf, hexadecimal: the receipt's leaf_hash in the answer to the change
    #[arg(long, required_unless_present = "leaf", conflicts_with = "leaf")]
    pub leaf_hash: Option<LeafHash>,
    /// File with the leaf's exact bytes
    #[arg(long)]
    pub leaf: Option<PathBuf>,
}

/// Why nothing was proved.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file cannot be read: the question was not put.
    #[error("{path} cannot be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a verifier key: the question was not put.
    #[error("not a C2SP vkey line of an Ed25519 key")]
    Key,
    /// The receipt does not prove that the leaf is in the log.
    #[error(transparent)]
    DoesNotHold(#[from] ReceiptError),
}

/// What was proved.
#[derive(Debug)]
pub struct Proved {
    receipt: Receipt,
    leaf: LeafHash,
    head: Checkpoint,
}

impl fmt::Display for Proved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "verified: the entry is in the log")?;
        writeln!(f, "  log        {}", self.head.origin)?;
        writeln!(f, "  leaf index {}", self.receipt.index)?;
        writeln!(f, "  leaf hash  {}", self.leaf)?;
        writeln!(f, "  tree size  {}", self.head.size)?;
        write!(f, "  root hash  {}", self.head.root)
    }
}

/// Verifies a receipt.
///
/// # Errors
/// [`VerifyError`].
pub fn verify(args: &VerifyArgs) -> Result<Proved, VerifyError> {
    let keys = match (&args.key, &args.key_file) {
        (Some(key), _) => key.clone(),
        (None, Some(file)) => text(file)?,
        (None, None) => return Err(VerifyError::Key),
    };
    let leaf = match (args.leaf_hash, &args.leaf) {
        (Some(hash), _) => hash,
        (None, Some(file)) => leaf_hash(&bytes(file)?),
        (None, None) => return Err(ReceiptError::Malformed.into()),
    };
    let keys = keys.lines().map(str::trim).filter(|line| !line.is_empty());
    let known = keys.map(|line| {
        let verifier = StandardVerifier::new(line).map_err(|_| VerifyError::Key)?;
        Ok(Box::new(verifier) as Box<dyn Verifier>)
    });
    let receipt = Receipt::parse(&text(&args.receipt)?)?;
    let head = receipt.verify(leaf, known.collect::<Result<_, VerifyError>>()?)?;
    Ok(Proved { receipt, leaf, head })
}

fn bytes(path: &Path) -> Result<Vec<u8>, VerifyError> {
    std::fs::read(path).map_err(|source| VerifyError::Read { path: path.to_owned(), source })
}

fn text(path: &Path) -> Result<String, VerifyError> {
    let invalid = |_| VerifyError::Read {
        path: path.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, "not UTF-8"),
    };
    String::from_utf8(bytes(path)?).map_err(invalid)
}
