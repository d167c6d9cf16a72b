//! All cryptography of the service that is not the tree's own hashing, through OpenSSL, so that a FIPS provider can be
//! swapped in underneath.
//!
//! * [`DataKey`] seals one subject's personal data and commits to it; destroying the key erases the data (DESIGN, section 5).
//! * [`Keyring`] holds the key-encryption key and what is derived from it.
//! * [`LogKey`] signs checkpoints; [`VerifierKey`] verifies them, and [`VerifierKeys`] are all that a log ever had. [`CosignerKey`] and [`CosignerVerifier`] are a witness's.
//! * [`ClusterKey`] and [`FrameKey`] seal what nodes send each other.
//! * [`SignerCertificate`] verifies what somebody else signed with the key of a certificate, [`JwsKey`] the tokens that somebody issues.
//! * [`Ids`] makes identifiers and secrets.
//! * [`encrypt_onto`], [`decrypt`] and [`hmac`] are for whoever keeps bytes under a key of its own.
//!
//! Keys come in as bytes and go out wrapped: this crate opens no file.

mod certificate;
mod cluster;
mod cosigner;
mod data_key;
mod ids;
mod jws;
mod keyring;
mod log_key;

pub use certificate::{SignatureAlgorithm, SignerCertificate};
pub use cluster::{ClusterKey, FRAME_TAG, FrameKey};
pub use cosigner::{CosignerKey, CosignerVerifier};
pub use data_key::{DataKey, Sealed};
pub use ids::{Ids, token_digest};
pub use jws::{JwsAlgorithm, JwsCurve, JwsKey};
pub use keyring::{AnswersKeyInfo, Keyring, WrappingKeyId};
pub use log_key::{LogKey, VerifierKey, VerifierKeys};

use std::sync::LazyLock;

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;
use openssl::md::Md;
use openssl::md_ctx::MdCtx;
use session_model::Digest;

/// Algorithms, fetched from OpenSSL's provider once. Naming one anew for each operation makes OpenSSL 3 search its tables under
/// a lock every time, which cost more than the cryptography itself.
static SHA256: LazyLock<Result<Md, ErrorStack>> = LazyLock::new(|| Md::fetch(None, "SHA2-256", None));
static AES_256_GCM: LazyLock<Result<Cipher, ErrorStack>> = LazyLock::new(|| Cipher::fetch(None, "AES-256-GCM", None));

fn fetched<T>(algorithm: &'static LazyLock<Result<T, ErrorStack>>) -> Result<&'static T, ErrorStack> {
    (**algorithm).as_ref().map_err(Clone::clone)
}

/// Why a cryptographic operation failed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The ciphertext, its key or what it is bound to is not what was sealed.
    #[error("cannot be opened: altered, or sealed for another place or by another key")]
    NotAuthentic,
    /// It was wrapped by a wrapping key that is not among ours.
    #[error(
        "wrapped by the wrapping key {0}, which is not in this node's key file: copy the key files from where it was made, and start this \
         node again"
    )]
    UnknownWrappingKey(String),
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
    // OpenSSL's own one-shot function names the algorithm anew each time.
    digest(&[bytes]).unwrap_or_else(|_| Digest(openssl::sha::sha256(bytes)))
}

/// SHA-512.
pub fn sha512(bytes: &[u8]) -> [u8; 64] {
    openssl::sha::sha512(bytes)
}

/// The password digest of the WS-Security UsernameToken profile 1.1 (section 3.1): SHA-1(nonce ‖ created ‖ password). SHA-1
/// because the profile knows nothing else; what it proves rests on the secret, not on collisions.
pub fn password_digest(nonce: &[u8], created: &[u8], secret: &[u8]) -> [u8; 20] {
    let mut hash = openssl::sha::Sha1::new();
    for part in [nonce, created, secret] {
        hash.update(part);
    }
    hash.finish()
}

/// Whether two secrets are the same, in a time that tells nothing of where they differ.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && openssl::memcmp::eq(one, other)
}

fn digest(parts: &[&[u8]]) -> Result<Digest, ErrorStack> {
    let mut context = MdCtx::new()?;
    context.digest_init(fetched(&SHA256)?)?;
    for part in parts {
        context.digest_update(part)?;
    }
    let mut digest = [0; 32];
    context.digest_final(&mut digest)?;
    Ok(Digest(digest))
}

/// HMAC-SHA-256 (RFC 2104), for keys of at most one block: all of ours have 32 bytes. Out of two digests, because OpenSSL's own
/// takes a key object that is looked up by name each time.
///
/// # Errors
/// If OpenSSL fails.
pub fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Result<Digest, ErrorStack> {
    const BLOCK: usize = 64;
    let padded = |with: u8| {
        let mut block = [with; BLOCK];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let (inner, outer) = (padded(0x36), padded(0x5c));
    let mut hashed: Vec<&[u8]> = Vec::with_capacity(parts.len() + 1);
    hashed.push(&inner);
    hashed.extend_from_slice(parts);
    digest(&[&outer, &digest(&hashed)?.0])
}

/// HKDF-Expand with SHA-256 (RFC 5869 section 2.3), for keys that are uniform already, two blocks at most: written with
/// HMAC because OpenSSL's KDF is fetched anew each time, which costs more than the two HMACs.
pub(crate) fn expand(key: &[u8; 32], info: &[&[u8]]) -> Result<[Digest; 2], ErrorStack> {
    let mut first: Vec<&[u8]> = info.to_vec();
    first.push(&[1]);
    let one = hmac(key, &first)?;
    let mut second: Vec<&[u8]> = vec![&one.0];
    second.extend_from_slice(info);
    second.push(&[2]);
    let two = hmac(key, &second)?;
    Ok([one, two])
}

/// AES-256-GCM (NIST SP 800-38D): nonce ‖ ciphertext ‖ tag, behind what is there already. The nonce is random: one key is for 2^32 texts at most
/// (section 8.3).
///
/// # Errors
/// If OpenSSL fails.
pub fn encrypt_onto(sealed: &mut Vec<u8>, key: &[u8; 32], bound_to: &[u8], plaintext: &[u8]) -> Result<(), ErrorStack> {
    let nonce: [u8; NONCE] = ids::public()?;
    let mut context = CipherCtx::new()?;
    context.encrypt_init(Some(fetched(&AES_256_GCM)?), Some(key), Some(&nonce))?;
    context.cipher_update(bound_to, None)?;
    sealed.reserve(NONCE + plaintext.len() + TAG);
    sealed.extend_from_slice(&nonce);
    context.cipher_update_vec(plaintext, sealed)?;
    context.cipher_final_vec(sealed)?;
    let mut tag = [0; TAG];
    context.tag(&mut tag)?;
    sealed.extend_from_slice(&tag);
    Ok(())
}

/// As [`encrypt_onto`], behind nothing.
pub(crate) fn encrypt(key: &[u8; 32], bound_to: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let mut sealed = Vec::new();
    encrypt_onto(&mut sealed, key, bound_to, plaintext)?;
    Ok(sealed)
}

/// Opens what [`encrypt_onto`] sealed.
///
/// # Errors
/// [`SealError::NotAuthentic`] if it is not that, or for another key or place.
pub fn decrypt(key: &[u8; 32], bound_to: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let (nonce, rest) = sealed.split_at_checked(NONCE).ok_or(SealError::NotAuthentic)?;
    let (ciphertext, tag) =
        rest.len().checked_sub(TAG).and_then(|at| rest.split_at_checked(at)).ok_or(SealError::NotAuthentic)?;
    let mut context = CipherCtx::new()?;
    context.decrypt_init(Some(fetched(&AES_256_GCM)?), Some(key), Some(nonce))?;
    context.set_tag(tag)?;
    context.cipher_update(bound_to, None)?;
    let mut plaintext = Vec::with_capacity(ciphertext.len());
    context.cipher_update_vec(ciphertext, &mut plaintext)?;
    context.cipher_final_vec(&mut plaintext).map_err(|_| SealError::NotAuthentic)?;
    Ok(plaintext)
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

    /// OpenSSL's own HMAC is the oracle, for messages of every length around a block.
    #[test]
    fn hmac_is_openssls() {
        let key: [u8; 32] = std::array::from_fn(|at| at as u8 * 5);
        for length in 0..200 {
            let message = vec![7; length];
            let theirs = openssl::pkey::PKey::hmac(&key).unwrap();
            let mut signer = openssl::sign::Signer::new(openssl::hash::MessageDigest::sha256(), &theirs).unwrap();
            signer.update(&message).unwrap();
            let (one, two) = message.split_at(length / 2);
            assert_eq!(hmac(&key, &[one, two]).unwrap().0.as_slice(), signer.sign_to_vec().unwrap());
        }
    }

    /// The bytes of nonce, time and password one after the other are what is hashed: `sha1sum` is the oracle.
    #[test]
    fn a_password_digest_is_over_nonce_time_and_secret() {
        let digest = password_digest(b"nonce", b"2026-11-21T07:00:00Z", b"secret");
        assert_eq!(digest, openssl::sha::sha1(b"nonce2026-11-21T07:00:00Zsecret"));
        assert!(same(b"ab", b"ab") && !same(b"ab", b"ac") && !same(b"ab", b"abc"));
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
