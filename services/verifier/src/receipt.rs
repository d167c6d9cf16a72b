//! Verifies what a client kept: a receipt against the log's verifier key and the leaf it is for.

use std::fmt;
use std::path::{Path, PathBuf};

use merkle_log::{Checkpoint, CheckpointError, Receipt, ReceiptError, leaf_hash};
use session_model::LeafHash;

use crate::VerifyArgs;
use crate::keys;

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
    /// A checkpoint that the auditor kept was not signed by the key that he gave: the question was not put.
    #[error("{path} is no checkpoint that the given key has signed")]
    Saved {
        /// Which.
        path: PathBuf,
        /// Why.
        source: CheckpointError,
    },
    /// The certificates of the time-stamping authority cannot be used: the question was not put.
    #[error("{path} is no file of certificates")]
    Roots {
        /// Which.
        path: PathBuf,
        /// Why.
        source: time_stamp::RootsError,
    },
    /// Neither a leaf nor its hash was given: the question was not put.
    #[error("say which entry the receipt is for: --leaf-hash or --leaf")]
    Leaf,
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
pub fn verify_receipt(args: &VerifyArgs) -> Result<Proved, VerifyError> {
    let keys = keys::given(args)?;
    let leaf = match (args.leaf_hash, &args.leaf) {
        (Some(hash), _) => hash,
        (None, Some(file)) => leaf_hash(&bytes(file)?),
        (None, None) => return Err(VerifyError::Leaf),
    };
    let receipt = Receipt::parse(&text(Path::new(&args.what))?)?;
    let head = receipt.verify(leaf, keys.verifiers())?;
    Ok(Proved { receipt, leaf, head })
}

pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, VerifyError> {
    std::fs::read(path).map_err(|source| VerifyError::Read { path: path.to_owned(), source })
}

pub(crate) fn text(path: &Path) -> Result<String, VerifyError> {
    let invalid = |_| VerifyError::Read {
        path: path.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, "not UTF-8"),
    };
    String::from_utf8(bytes(path)?).map_err(invalid)
}
