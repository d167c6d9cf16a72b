//! The keys that sign checkpoints, by OpenSSL, in the forms C2SP signed-note asks for: Ed25519 (RFC 8032), which every verifier of
//! notes knows, and beside it ECDSA on P-256 for where only that is approved.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{HasPublic, Id, PKey, Private, Public};
use openssl::sign::{Signer as OpenSslSigner, Verifier as OpenSslVerifier};
use parking_lot::RwLock;

use crate::{SealError, sha256};

/// C2SP signed-note signature type of Ed25519.
const ED25519: u8 = 1;

/// C2SP signed-note signature type of ECDSA: SHA-256 of the text, signature as ASN.1 DER.
const ECDSA: u8 = 2;

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

    /// A new ECDSA key on P-256 that signs as `name`, to sign beside an Ed25519 key.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn generate_p256(name: &str) -> Result<Self, SealError> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        Self::new(name, PKey::from_ec_key(EcKey::generate(&group)?)?)
    }

    /// Reads a key from PKCS #8 PEM.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn from_pem(name: &str, pem: &[u8]) -> Result<Self, SealError> {
        Self::new(name, PKey::private_key_from_pem(pem)?)
    }

    fn new(name: &str, key: PKey<Private>) -> Result<Self, SealError> {
        let public = match key.id() {
            Id::ED25519 => VerifierKey::new(name, ED25519, &key.raw_public_key()?)?,
            Id::EC => VerifierKey::new(name, ECDSA, &key.public_key_to_der()?)?,
            _ => return Err(SealError::Malformed("a log key must be Ed25519, or ECDSA on P-256")),
        };
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
        let signer = match digest(&self.key) {
            None => OpenSslSigner::new_without_digest(&self.key),
            Some(digest) => OpenSslSigner::new(digest, &self.key),
        };
        signer.and_then(|mut signer| signer.sign_oneshot_to_vec(msg)).map_err(signature::Error::from_source)
    }
}

/// What the text is hashed with before it is signed: Ed25519 does that itself.
fn digest<T: HasPublic>(key: &PKey<T>) -> Option<MessageDigest> {
    (key.id() == Id::EC).then(MessageDigest::sha256)
}

/// The verifier keys of a log, past ones included. Clones share them, so that all of a process takes up a new one at once.
#[derive(Debug, Clone)]
pub struct VerifierKeys(Arc<RwLock<Vec<VerifierKey>>>);

impl VerifierKeys {
    /// As they are now.
    pub fn current(&self) -> Vec<VerifierKey> {
        self.0.read().clone()
    }

    /// Puts others in their place, for every clone.
    pub fn replace(&self, keys: Vec<VerifierKey>) {
        *self.0.write() = keys;
    }
}

impl From<Vec<VerifierKey>> for VerifierKeys {
    fn from(keys: Vec<VerifierKey>) -> Self {
        Self(Arc::new(RwLock::new(keys)))
    }
}

/// Verifies the signatures of one key. Displays as a C2SP vkey line.
#[derive(Clone)]
pub struct VerifierKey {
    pub(crate) name: String,
    id: u32,
    /// The type of signature, and the key: 32 bytes of Ed25519, or DER (SubjectPublicKeyInfo) of ECDSA.
    typed: Vec<u8>,
    key: PKey<Public>,
}

impl VerifierKey {
    /// A key of Ed25519, raw.
    pub(crate) fn ed25519(name: &str, raw: &[u8]) -> Result<Self, SealError> {
        Self::new(name, ED25519, raw)
    }

    /// The key itself, without the type of signature before it.
    pub(crate) fn raw(&self) -> &[u8] {
        self.typed.get(1..).unwrap_or_default()
    }

    fn new(name: &str, kind: u8, encoded: &[u8]) -> Result<Self, SealError> {
        let mut typed = vec![kind];
        typed.extend_from_slice(encoded);
        let (key, id) = match kind {
            ED25519 => {
                let key = PKey::public_key_from_raw_bytes(encoded, Id::ED25519)?;
                (key, signed_note::key_id(name, &typed))
            }
            // C2SP signed-note: for ECDSA the key id is of the key alone.
            ECDSA => {
                let key = PKey::public_key_from_der(encoded)?;
                let curve = key.ec_key().ok().and_then(|key| key.group().curve_name());
                if curve != Some(Nid::X9_62_PRIME256V1) {
                    return Err(SealError::Malformed("an ECDSA log key must be on P-256"));
                }
                let [a, b, c, d, ..] = sha256(encoded).0;
                (key, u32::from_be_bytes([a, b, c, d]))
            }
            _ => return Err(SealError::Malformed("a key of a type that this program does not know")),
        };
        Ok(Self { name: name.to_owned(), id, typed, key })
    }

    /// Whether it is an Ed25519 key, which every verifier of notes knows.
    pub fn is_ed25519(&self) -> bool {
        self.key.id() == Id::ED25519
    }

    /// Reads a vkey line: `name+hex key id+base64(type ‖ key)`.
    ///
    /// # Errors
    /// [`SealError::Malformed`].
    pub fn parse(vkey: &str) -> Result<Self, SealError> {
        let malformed = SealError::Malformed("not a vkey line");
        let mut parts = vkey.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed);
        };
        let typed = STANDARD.decode(key).ok();
        let Some((kind, encoded)) = typed.as_deref().and_then(<[u8]>::split_first) else {
            return Err(malformed);
        };
        let key = Self::new(name, *kind, encoded)?;
        if format!("{:08x}", key.id) == id { Ok(key) } else { Err(malformed) }
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:08x}+{}", self.name, self.id, STANDARD.encode(&self.typed))
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
        let verifier = match digest(&self.key) {
            None => OpenSslVerifier::new_without_digest(&self.key),
            Some(digest) => OpenSslVerifier::new(digest, &self.key),
        };
        verifier.and_then(|mut verifier| verifier.verify_oneshot(sig, msg)).unwrap_or(false)
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
    fn an_ecdsa_line_stands_beside_the_ed25519_line_and_either_verifies() {
        let (key, other) =
            (LogKey::generate("log.example/1").unwrap(), LogKey::generate_p256("log.example/1").unwrap());
        let head = Checkpoint { origin: "log.example/1".into(), size: TreeSize(7), root: Digest([9; 32]) };
        let text = sign_checkpoint(&head, &[&key, &other]).unwrap();
        for vkey in [key.verifier().to_string(), other.verifier().to_string()] {
            let parsed = VerifierKey::parse(&vkey).unwrap();
            assert_eq!(parsed.to_string(), vkey);
            assert_eq!(open_checkpoint(&text, vec![Box::new(parsed.clone())]).unwrap(), head);
            assert!(open_checkpoint(&text.replace("\n7\n", "\n8\n"), vec![Box::new(parsed)]).is_err());
        }
        let read = LogKey::from_pem("log.example/1", &other.to_pem().unwrap()).unwrap();
        assert_eq!(read.verifier().to_string(), other.verifier().to_string());
        assert!(key.verifier().is_ed25519() && !other.verifier().is_ed25519());
        // The one that verifiers of notes everywhere know passes over the other line.
        let vkey = key.verifier().to_string();
        assert_eq!(open_checkpoint(&text, vec![Box::new(StandardVerifier::new(&vkey).unwrap())]).unwrap(), head);
    }

    #[test]
    fn a_key_on_another_curve_is_refused() {
        let group = EcGroup::from_curve_name(Nid::SECP384R1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        assert!(LogKey::from_pem("log.example/1", &key.private_key_to_pem_pkcs8().unwrap()).is_err());
    }

    #[test]
    fn a_key_survives_its_pem() {
        let key = LogKey::generate("log.example/1").unwrap();
        let read = LogKey::from_pem("log.example/1", &key.to_pem().unwrap()).unwrap();
        assert_eq!(read.verifier().to_string(), key.verifier().to_string());
    }
}
