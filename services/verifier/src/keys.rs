//! The log's verifier keys, as the auditor has them from somebody he trusts.
//!
//! Signatures are verified with `signed_note`'s own verifier rather than the server's OpenSSL: the two share no code.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use merkle_log::{Checkpoint, CheckpointError, Verifier, open_checkpoint};
use signed_note::StandardVerifier;

use crate::receipt::text;
use crate::{VerifyArgs, VerifyError};

/// Ed25519 verifier keys.
#[derive(Clone)]
pub(crate) struct Keys(Vec<StandardVerifier>);

impl Keys {
    /// Reads vkey lines, one or more. One of another type of key than Ed25519 is passed over: checkpoints may carry further
    /// signatures, and always one of Ed25519.
    pub(crate) fn parse(lines: &str) -> Result<Self, VerifyError> {
        let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty() && !is_of_another_type(line));
        let keys: Vec<_> =
            lines.map(|line| StandardVerifier::new(line).map_err(|_| VerifyError::Key)).collect::<Result<_, _>>()?;
        if keys.is_empty() { Err(VerifyError::Key) } else { Ok(Self(keys)) }
    }

    pub(crate) fn verifiers(&self) -> Vec<Box<dyn Verifier>> {
        self.0.iter().map(|key| Box::new(key.clone()) as Box<dyn Verifier>).collect()
    }

    /// Reads a checkpoint that one of the keys has signed, for a log of the key's name.
    pub(crate) fn open(&self, text: &str) -> Result<Checkpoint, CheckpointError> {
        let head = open_checkpoint(text, self.verifiers())?;
        // C2SP tlog-checkpoint: the origin is the name of the log's key. Another log's checkpoint proves nothing of this one.
        if self.0.iter().any(|key| key.name() == head.origin) { Ok(head) } else { Err(CheckpointError::Malformed) }
    }
}

/// Whether a vkey line is well formed, and its first byte, the type (C2SP signed-note), is another than Ed25519's.
fn is_of_another_type(line: &str) -> bool {
    let key = line.splitn(3, '+').nth(2).and_then(|key| STANDARD.decode(key).ok());
    key.is_some_and(|typed| typed.first().is_some_and(|kind| *kind != 1))
}

/// The keys that the arguments give.
pub(crate) fn given(args: &VerifyArgs) -> Result<Keys, VerifyError> {
    match (&args.key, &args.key_file) {
        (Some(key), _) => Keys::parse(key),
        (None, Some(file)) => Keys::parse(&text(file)?),
        (None, None) => Err(VerifyError::Key),
    }
}
