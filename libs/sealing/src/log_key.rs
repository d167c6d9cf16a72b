//! The key that signs checkpoints, Ed25519 (RFC 8032) by OpenSSL, in the forms C2SP signed-note asks for.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::pkey::{Id, PKey, Private, Public};
use openssl::sign::{Signer as OpenSslSigner, Verifier as OpenSslVerifier};

use crate::SealError;

/// C2SP signed-note signature type of Ed25519.
const ED25519: u8 = 1;

/// Signs checkpoints.
pub struct LogKey {
    key: PKey<Private>,
    public: VerifierKey,
}

impl LogKey {
    /// A new key that signs as `name`: the log's origin.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn generate(name: &str) -> Result<Self, SealError> {
        Self::new(name, PKey::generate_ed25519()?)
    }

    /// Reads a key from PKCS #8 PEM.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn from_pem(name: &str, pem: &[u8]) -> Result<Self, SealError> {
        Self::new(name, PKey::private_key_from_pem(pem)?)
    }

    fn new(name: &str, key: PKey<Private>) -> Result<Self, SealError> {
        if key.id() != Id::ED25519 {
            return Err(SealError::Malformed("the log key must be Ed25519"));
        }
        let public = VerifierKey::new(name, &key.raw_public_key()?)?;
        Ok(Self { key, public })
    }

    /// The key as PKCS #8 PEM.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn to_pem(&self) -> Result<Vec<u8>, SealError> {
        Ok(self.key.private_key_to_pem_pkcs8()?)
    }

    /// What verifies its signatures.
    pub const fn verifier(&self) -> &VerifierKey {
        &self.public
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogKey({})", self.public)
    }
}

impl signed_note::Signer for LogKey {
    fn name(&self) -> &str {
        &self.public.name
    }

    fn key_id(&self) -> u32 {
        self.public.id
    }

    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, signature::Error> {
        OpenSslSigner::new_without_digest(&self.key)
            .and_then(|mut signer| signer.sign_oneshot_to_vec(msg))
            .map_err(signature::Error::from_source)
    }
}

/// Verifies the signatures of one key. Displays as a C2SP vkey line.
#[derive(Clone)]
pub struct VerifierKey {
    pub(crate) name: String,
    id: u32,
    pub(crate) raw: Vec<u8>,
    key: PKey<Public>,
}

impl VerifierKey {
    pub(crate) fn new(name: &str, raw: &[u8]) -> Result<Self, SealError> {
        let key = PKey::public_key_from_raw_bytes(raw, Id::ED25519)?;
        let mut typed = vec![ED25519];
        typed.extend_from_slice(raw);
        Ok(Self { name: name.to_owned(), id: signed_note::key_id(name, &typed), raw: raw.to_vec(), key })
    }

    /// Reads a vkey line: `name+hex key id+base64(0x01 ‖ key)`.
    ///
    /// # Errors
    /// [`SealError::Malformed`].
    pub fn parse(vkey: &str) -> Result<Self, SealError> {
        let malformed = SealError::Malformed("not a vkey line of an Ed25519 key");
        let mut parts = vkey.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed);
        };
        let Some((ED25519, raw)) =
            STANDARD.decode(key).ok().and_then(|k| k.split_first().map(|(t, r)| (*t, r.to_vec())))
        else {
            return Err(malformed);
        };
        let key = Self::new(name, &raw)?;
        if format!("{:08x}", key.id) == id { Ok(key) } else { Err(malformed) }
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut typed = vec![ED25519];
        typed.extend_from_slice(&self.raw);
        write!(f, "{}+{:08x}+{}", self.name, self.id, STANDARD.encode(typed))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl signed_note::Verifier for VerifierKey {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn verify(&self, msg: &[u8], sig: &[u8]) -> bool {
        OpenSslVerifier::new_without_digest(&self.key)
            .and_then(|mut verifier| verifier.verify_oneshot(sig, msg))
            .unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use merkle_log::{Checkpoint, open_checkpoint, sign_checkpoint};
    use session_model::{Digest, TreeSize};
    use signed_note::StandardVerifier;

    use super::*;

    #[test]
    fn what_openssl_signs_the_notes_own_verifier_accepts() {
        let key = LogKey::generate("log.example/1").unwrap();
        let head = Checkpoint { origin: "log.example/1".into(), size: TreeSize(7), root: Digest([9; 32]) };
        let text = sign_checkpoint(&head, &[&key]).unwrap();
        let vkey = key.verifier().to_string();
        assert_eq!(open_checkpoint(&text, vec![Box::new(StandardVerifier::new(&vkey).unwrap())]).unwrap(), head);
        assert_eq!(open_checkpoint(&text, vec![Box::new(VerifierKey::parse(&vkey).unwrap())]).unwrap(), head);
        let other = LogKey::generate("log.example/1").unwrap().verifier().clone();
        assert!(open_checkpoint(&text, vec![Box::new(other)]).is_err());
        assert!(open_checkpoint(&text.replace("\n7\n", "\n8\n"), vec![Box::new(key.verifier().clone())]).is_err());
    }

    #[test]
    fn a_key_survives_its_pem() {
        let key = LogKey::generate("log.example/1").unwrap();
        let read = LogKey::from_pem("log.example/1", &key.to_pem().unwrap()).unwrap();
        assert_eq!(read.verifier().to_string(), key.verifier().to_string());
    }
}
