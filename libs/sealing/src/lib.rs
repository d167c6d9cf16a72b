//! All cryptography of the service that is not the tree's own hashing, through OpenSSL, so that a FIPS provider can be
//! swapped in underneath.
//!
//! * [`DataKey`] seals one subject's personal data and commits to it; destroying the key erases the data (DESIGN, section 5).
//! * [`Keyring`] holds the key-encryption key and what is derived from it.
//! * [`LogKey`] signs checkpoints; [`VerifierKey`] verifies them.
//! * [`Ids`] makes identifiers and secrets.
//!
//! Keys come in as bytes and go out wrapped: this crate opens no file.

mod data_key;
mod ids;
mod keyring;
mod log_key;

pub use data_key::{DataKey, Sealed};
pub use ids::{Ids, token_digest};
pub use keyring::Keyring;
pub use log_key::{LogKey, VerifierKey};

use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::symm::{self, Cipher};
use session_model::Digest;

/// Why a cryptographic operation failed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The ciphertext, its key or what it is bound to is not what was sealed.
    #[error("cannot be opened: altered, or sealed for another place or by another key")]
    NotAuthentic,
    /// Key material of the wrong form.
    #[error("the key material is malformed: {0}")]
    Malformed(&'static str),
    /// OpenSSL failed.
    #[error("OpenSSL failed")]
    OpenSsl(#[from] ErrorStack),
}

const NONCE: usize = 12;
const TAG: usize = 16;

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Digest {
    Digest(openssl::sha::sha256(bytes))
}

/// HMAC-SHA-256 (RFC 2104).
pub(crate) fn hmac(key: &[u8], parts: &[&[u8]]) -> Result<Digest, ErrorStack> {
    let key = PKey::hmac(key)?;
    let mut signer = Signer::new(MessageDigest::sha256(), &key)?;
    for part in parts {
        signer.update(part)?;
    }
    let mut digest = [0; 32];
    signer.sign(&mut digest)?;
    Ok(Digest(digest))
}

/// HKDF-Expand with SHA-256 (RFC 5869 section 2.3), for keys that are uniform already, two blocks at most: written with
/// HMAC because one fetch of OpenSSL's KDF costs more than the two HMACs.
pub(crate) fn expand(key: &[u8], info: &[&[u8]]) -> Result<[Digest; 2], ErrorStack> {
    let mut first: Vec<&[u8]> = info.to_vec();
    first.push(&[1]);
    let one = hmac(key, &first)?;
    let mut second: Vec<&[u8]> = vec![&one.0];
    second.extend_from_slice(info);
    second.push(&[2]);
    let two = hmac(key, &second)?;
    Ok([one, two])
}

/// AES-256-GCM: nonce ‖ ciphertext ‖ tag.
pub(crate) fn encrypt(key: &[u8; 32], bound_to: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let mut nonce = [0; NONCE];
    openssl::rand::rand_bytes(&mut nonce)?;
    let mut tag = [0; TAG];
    let ciphertext = symm::encrypt_aead(Cipher::aes_256_gcm(), key, Some(&nonce), bound_to, plaintext, &mut tag)?;
    let mut sealed = Vec::with_capacity(NONCE + ciphertext.len() + TAG);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(&ciphertext);
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

/// Opens what [`encrypt`] sealed.
pub(crate) fn decrypt(key: &[u8; 32], bound_to: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let (nonce, rest) = sealed.split_at_checked(NONCE).ok_or(SealError::NotAuthentic)?;
    let (ciphertext, tag) =
        rest.len().checked_sub(TAG).and_then(|at| rest.split_at_checked(at)).ok_or(SealError::NotAuthentic)?;
    symm::decrypt_aead(Cipher::aes_256_gcm(), key, Some(nonce), bound_to, ciphertext, tag)
        .map_err(|_| SealError::NotAuthentic)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5869 has no test of Expand alone with SHA-256 that fits two blocks exactly; OpenSSL's own KDF is the oracle.
    #[test]
    fn expand_is_hkdf_expand() {
        let key = [7; 32];
        let mut theirs = [0; 64];
        openssl::kdf::hkdf(
            openssl::md::Md::sha256(),
            &key,
            None,
            Some(b"counterfoil test"),
            openssl::kdf::HkdfMode::ExpandOnly,
            None,
            &mut theirs,
        )
        .unwrap();
        let [one, two] = expand(&key, &[b"counterfoil", b" test"]).unwrap();
        assert_eq!([one.0, two.0].concat(), theirs);
    }

    #[test]
    fn an_altered_byte_or_another_place_is_noticed() {
        let key = [3; 32];
        let sealed = encrypt(&key, b"here", b"secret").unwrap();
        assert_eq!(decrypt(&key, b"here", &sealed).unwrap(), b"secret");
        assert!(decrypt(&key, b"there", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(decrypt(&key, b"here", &altered).is_err(), "byte {at}");
            assert!(decrypt(&key, b"here", &sealed[..at]).is_err(), "cut at {at}");
        }
    }
}
