//! The key of one subject's personal data.

use std::fmt;

use session_model::{Digest, EntryId};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{SealError, decrypt, encrypt, expand, hmac};

/// Seals, and commits to, the personal data of one subject. Every entry has keys of its own, derived from this one with
/// HKDF: `k_e` encrypts, `k_c` commits. AES-GCM alone does not bind its key (a key holder could open one ciphertext two
/// ways); the HMAC over the plaintext, in the leaf, fixes what was said, and cannot be guessed at without the key.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DataKey([u8; 32]);

/// A sealed part.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// nonce ‖ ciphertext ‖ tag.
    pub bytes: Vec<u8>,
    /// `HMAC-SHA-256(k_c, plaintext)`: goes into the leaf.
    pub commitment: Digest,
}

impl DataKey {
    /// A new key.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`] if the random generator fails.
    pub fn generate() -> Result<Self, SealError> {
        let mut key = [0; 32];
        openssl::rand::rand_bytes(&mut key)?;
        Ok(Self(key))
    }

    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Seals the plaintext of an entry.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn seal(&self, entry: EntryId, plaintext: &[u8]) -> Result<Sealed, SealError> {
        let id = entry.uuid();
        let [encryption, commitment] = self.entry_keys(entry)?;
        Ok(Sealed {
            bytes: encrypt(&encryption.0, id.as_bytes(), plaintext)?,
            commitment: hmac(&commitment.0, &[plaintext])?,
        })
    }

    /// Opens a sealed part and checks it against the commitment in its leaf.
    ///
    /// # Errors
    /// [`SealError::NotAuthentic`] if either does not fit.
    pub fn open(&self, entry: EntryId, sealed: &[u8], commitment: &Digest) -> Result<Vec<u8>, SealError> {
        let id = entry.uuid();
        let [encryption, committing] = self.entry_keys(entry)?;
        let plaintext = decrypt(&encryption.0, id.as_bytes(), sealed)?;
        let opened = hmac(&committing.0, &[&plaintext])?;
        if openssl::memcmp::eq(&opened.0, &commitment.0) { Ok(plaintext) } else { Err(SealError::NotAuthentic) }
    }

    /// `k_e` and `k_c` of one entry: they open its sealed part, check its commitment, and are good for no other entry. For an auditor
    /// who is shown this one.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn entry_keys(&self, entry: EntryId) -> Result<[Digest; 2], SealError> {
        Ok(expand(&self.0, &[b"counterfoil sealed part v1", entry.uuid().as_bytes()])?)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn opens_what_it_sealed_and_nothing_else() {
        let key = DataKey::generate().unwrap();
        let (a, b) = (EntryId::new(Uuid::from_u128(1)), EntryId::new(Uuid::from_u128(2)));
        let sealed = key.seal(a, b"subject").unwrap();
        assert_eq!(key.open(a, &sealed.bytes, &sealed.commitment).unwrap(), b"subject");
        assert!(key.open(b, &sealed.bytes, &sealed.commitment).is_err(), "moved to another entry");
        assert!(key.open(a, &sealed.bytes, &Digest([0; 32])).is_err(), "another commitment");
        assert!(DataKey::generate().unwrap().open(a, &sealed.bytes, &sealed.commitment).is_err(), "another key");
        let again = key.seal(a, b"other").unwrap();
        assert_ne!(again.commitment, sealed.commitment);
    }
}
