//! The key-encryption key, and the keys that are derived from it.

use std::fmt;
use std::net::IpAddr;

use session_model::{Digest, KeyId, RealmName};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{DataKey, SealError, decrypt, encrypt, expand, hmac};

/// The key-encryption key of a log, shared by every node that appends to it, and what is derived from it. Lives outside the
/// database: whoever has only the database opens nothing.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Keyring {
    wrapping: [u8; 32],
    lookup: [u8; 32],
    answers: [u8; 32],
    view: [u8; 32],
    console: [u8; 32],
    cluster: [u8; 32],
}

impl Keyring {
    /// Derives everything from the key-encryption key.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn new(key_encryption_key: &[u8; 32]) -> Result<Self, SealError> {
        let [wrapping, lookup] = expand(key_encryption_key, &[b"counterfoil keyring v1: data keys"])?;
        let [answers, view] = expand(key_encryption_key, &[b"counterfoil keyring v1: stored state"])?;
        let [console, cluster] = expand(key_encryption_key, &[b"counterfoil keyring v1: console"])?;
        Ok(Self {
            wrapping: wrapping.0,
            lookup: lookup.0,
            answers: answers.0,
            view: view.0,
            console: console.0,
            cluster: cluster.0,
        })
    }

    /// Encrypts a data key for storage, bound to its id.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn wrap(&self, id: KeyId, key: &DataKey) -> Result<Vec<u8>, SealError> {
        Ok(encrypt(&self.wrapping, id.uuid().as_bytes(), key.bytes())?)
    }

    /// Decrypts a stored data key.
    ///
    /// # Errors
    /// [`SealError::NotAuthentic`] if it was wrapped by another keyring or for another id.
    pub fn unwrap(&self, id: KeyId, wrapped: &[u8]) -> Result<DataKey, SealError> {
        let mut bytes = decrypt(&self.wrapping, id.uuid().as_bytes(), wrapped)?;
        let key = bytes.as_slice().try_into().map(DataKey::from_bytes);
        bytes.zeroize();
        key.map_err(|_| SealError::NotAuthentic)
    }

    /// Under what a subject's data key is found: `HMAC(lookup key, realm ‖ 0 ‖ subject)`. Deleted with the key row, so that
    /// afterwards nothing ties the key's id, which stands in leaves, to the subject.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn lookup(&self, realm: &RealmName, subject: &str) -> Result<Digest, SealError> {
        Ok(hmac(&self.lookup, &[realm.as_str().as_bytes(), &[0], subject.as_bytes()])?)
    }

    /// Under what entries that name an address are found: a keyed digest, so that whoever has only the database cannot try all
    /// addresses. No subject has such a lookup: the characters are not XML.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn address(&self, realm: &RealmName, address: IpAddr) -> Result<Digest, SealError> {
        let text = address.to_canonical().to_string();
        Ok(hmac(&self.lookup, &[realm.as_str().as_bytes(), b"\0\0address\0", text.as_bytes()])?)
    }

    /// Seals an answer kept for replay under an idempotency key.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn seal_answer(&self, key: &Digest, answer: &[u8]) -> Result<Vec<u8>, SealError> {
        Ok(encrypt(&self.answers, &key.0, answer)?)
    }

    /// Opens a kept answer.
    ///
    /// # Errors
    /// [`SealError::NotAuthentic`].
    pub fn open_answer(&self, key: &Digest, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        decrypt(&self.answers, &key.0, sealed)
    }

    /// What the console gives a browser to show again, so that it can tell its own from what somebody else made:
    /// `HMAC(console key, purpose ‖ each part behind its length)`. The same on every node.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn console_tag(&self, purpose: &[u8; 4], parts: &[&[u8]]) -> Result<Digest, SealError> {
        let lengths: Vec<[u8; 8]> = parts.iter().map(|part| (part.len() as u64).to_be_bytes()).collect();
        let mut framed: Vec<&[u8]> = vec![purpose];
        for (length, part) in lengths.iter().zip(parts) {
            framed.push(length);
            framed.push(part);
        }
        Ok(hmac(&self.console, &framed)?)
    }

    /// Whether a text is such a tag in hexadecimal; in constant time.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn is_console_tag(&self, shown: &str, purpose: &[u8; 4], parts: &[&[u8]]) -> Result<bool, SealError> {
        let tag = self.console_tag(purpose, parts)?;
        Ok(shown.parse::<Digest>().is_ok_and(|shown| openssl::memcmp::eq(&shown.0, &tag.0)))
    }

    /// The key that seals the values of a shared view.
    pub const fn view_key(&self) -> &[u8; 32] {
        &self.view
    }

    /// What the cluster's key is made of, where it has none of its own.
    pub const fn cluster_secret(&self) -> &[u8; 32] {
        &self.cluster
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring(…)")
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_console_tag_is_for_one_purpose_and_its_parts_as_they_are_divided() {
        let keyring = Keyring::new(&[1; 32]).unwrap();
        let tag = keyring.console_tag(b"visi", &[b"ab", b"c"]).unwrap().to_string();
        let is = |keyring: &Keyring, purpose, parts: &[&[u8]]| keyring.is_console_tag(&tag, purpose, parts).unwrap();
        assert!(is(&keyring, b"visi", &[b"ab", b"c"]));
        assert!(!is(&keyring, b"form", &[b"ab", b"c"]));
        assert!(!is(&keyring, b"visi", &[b"a", b"bc"]));
        assert!(!is(&Keyring::new(&[2; 32]).unwrap(), b"visi", &[b"ab", b"c"]));
        assert!(!keyring.is_console_tag("", b"visi", &[]).unwrap());
    }

    #[test]
    fn a_wrapped_key_opens_only_for_its_id_and_keyring() {
        let keyring = Keyring::new(&[1; 32]).unwrap();
        let (a, b) = (KeyId::new(Uuid::from_u128(1)), KeyId::new(Uuid::from_u128(2)));
        let key = DataKey::generate().unwrap();
        let wrapped = keyring.wrap(a, &key).unwrap();
        assert_eq!(keyring.unwrap(a, &wrapped).unwrap().bytes(), key.bytes());
        assert!(keyring.unwrap(b, &wrapped).is_err());
        assert!(Keyring::new(&[2; 32]).unwrap().unwrap(a, &wrapped).is_err());
    }

    #[test]
    fn one_subject_in_two_realms_has_two_lookups() {
        let keyring = Keyring::new(&[1; 32]).unwrap();
        let realm = |name: &str| name.parse::<RealmName>().unwrap();
        let a = keyring.lookup(&realm("a"), "alice").unwrap();
        assert_eq!(a, keyring.lookup(&realm("a"), "alice").unwrap());
        assert_ne!(a, keyring.lookup(&realm("b"), "alice").unwrap());
    }
}
