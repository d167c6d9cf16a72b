//! Opening a sealed part with the keys of its entry: AES-256-GCM and HMAC-SHA-256 by the RustCrypto crates, where the server uses
//! OpenSSL.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hmac::{Hmac, Mac};
use session_model::{Digest, EntryId, SealedPart};
use sha2::Sha256;

const NONCE: usize = 12;

/// Why a sealed part does not say what the leaf committed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("its sealed part does not open with the key that was given for it")]
    Ciphertext,
    #[error("its sealed part is not what the leaf commits to")]
    Commitment,
    #[error("its sealed part opens, but is none")]
    Malformed,
}

/// Opens `nonce ‖ ciphertext ‖ tag`, and checks the plaintext against the commitment in the leaf.
pub(crate) fn open(
    encryption: &Digest,
    committing: &Digest,
    entry: EntryId,
    sealed: &[u8],
    commitment: &Digest,
) -> Result<SealedPart, OpenError> {
    let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE>().ok_or(OpenError::Ciphertext)?;
    let id = entry.uuid();
    let payload = Payload { msg: ciphertext, aad: id.as_bytes() };
    let plaintext = Aes256Gcm::new(&encryption.0.into())
        .decrypt(&Nonce::from(*nonce), payload)
        .map_err(|_| OpenError::Ciphertext)?;
    let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(&committing.0).map_err(|_| OpenError::Commitment)?;
    mac.update(&plaintext);
    mac.verify_slice(&commitment.0).map_err(|_| OpenError::Commitment)?;
    SealedPart::decode(&plaintext).map_err(|_| OpenError::Malformed)
}
