//! Checkpoints: a tree head as C2SP tlog-checkpoint text inside a C2SP signed note.

use session_model::{Digest, TreeSize};
use signed_note::{Note, NoteError, Signer, Verifier, VerifierList};

use crate::to_hash;

/// A tree head that somebody signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// How many leaves.
    pub size: TreeSize,
    /// Root hash over them.
    pub root: Digest,
}

/// Why a text is no checkpoint of ours.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not a note, or not a checkpoint inside it.
    #[error("not a signed checkpoint")]
    Malformed,
    /// No known key signed it, or a signature of a known key is wrong.
    #[error("the checkpoint's signature does not verify")]
    Signature(#[source] NoteError),
    /// The key could not sign.
    #[error("the checkpoint cannot be signed")]
    Signing(#[source] NoteError),
}

/// Signs a tree head with every one of `signers`: one line each, which is also how keys are rotated.
///
/// # Errors
/// [`CheckpointError::Signing`] if a key fails, [`CheckpointError::Malformed`] if the origin cannot stand in a note.
pub fn sign_checkpoint(checkpoint: &Checkpoint, signers: &[&dyn Signer]) -> Result<String, CheckpointError> {
    let text = tlog_tiles::Checkpoint::new(&checkpoint.origin, checkpoint.size.0, to_hash(checkpoint.root), "")
        .map_err(|_| CheckpointError::Malformed)?
        .to_bytes();
    let mut note = Note::new(&text, &[]).map_err(|_| CheckpointError::Malformed)?;
    note.add_sigs(signers).map_err(CheckpointError::Signing)?;
    String::from_utf8(note.to_bytes()).map_err(|_| CheckpointError::Malformed)
}

/// Reads a signed checkpoint and verifies it with at least one of `known`.
///
/// # Errors
/// A [`CheckpointError`].
pub fn open_checkpoint(text: &str, known: Vec<Box<dyn Verifier>>) -> Result<Checkpoint, CheckpointError> {
    let note = Note::from_bytes(text.as_bytes()).map_err(|_| CheckpointError::Malformed)?;
    note.verify(&VerifierList::new(known)).map_err(CheckpointError::Signature)?;
    let head = tlog_tiles::Checkpoint::from_bytes(note.text()).map_err(|_| CheckpointError::Malformed)?;
    Ok(Checkpoint { origin: head.origin().to_owned(), size: TreeSize(head.size()), root: Digest(head.hash().0) })
}
