//! The key of a witness: Ed25519 cosignatures as C2SP tlog-cosignature says (`cosignature/v1`).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use session_model::Timestamp;
use signed_note::Signer as _;

use crate::{LogKey, SealError, VerifierKey};

/// C2SP signature type of an Ed25519 cosignature.
const COSIGNATURE: u8 = 4;

/// Cosigns checkpoints.
pub struct CosignerKey {
    key: LogKey,
    id: u32,
}

fn key_id(name: &str, raw: &[u8]) -> u32 {
    signed_note::key_id(name, &[&[COSIGNATURE], raw].concat())
}

/// What is signed: two lines, then the text of the note.
fn message(seconds: u64, text: &[u8]) -> Vec<u8> {
    [format!("cosignature/v1\ntime {seconds}\n").as_bytes(), text].concat()
}

impl CosignerKey {
    /// Reads a key from PKCS #8 PEM, for the witness of this name.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn from_pem(name: &str, pem: &[u8]) -> Result<Self, SealError> {
        Ok(Self::new(LogKey::from_pem(name, pem)?))
    }

    /// A new key.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn generate(name: &str) -> Result<Self, SealError> {
        Ok(Self::new(LogKey::generate(name)?))
    }

    fn new(key: LogKey) -> Self {
        let id = key_id(&key.verifier().name, key.verifier().raw());
        Self { key, id }
    }

    /// The key as PKCS #8 PEM.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn to_pem(&self) -> Result<Vec<u8>, SealError> {
        self.key.to_pem()
    }

    /// What verifies its cosignatures.
    pub fn verifier(&self) -> CosignerVerifier {
        CosignerVerifier { key: self.key.verifier().clone(), id: self.id }
    }

    /// The line that cosigns the text of a note at a time, its end included.
    ///
    /// # Errors
    /// [`SealError`] if OpenSSL fails, or the time is before 1970.
    pub fn cosign(&self, text: &[u8], at: Timestamp) -> Result<String, SealError> {
        let seconds = u64::try_from(at.as_micros().div_euclid(1_000_000));
        let seconds = seconds.map_err(|_| SealError::Malformed("a time before 1970"))?;
        let signature =
            self.key.sign(&message(seconds, text)).map_err(|_| SealError::Malformed("the key cannot sign"))?;
        let bytes = [&self.id.to_be_bytes()[..], &seconds.to_be_bytes(), &signature].concat();
        Ok(format!("\u{2014} {} {}\n", self.key.verifier().name, STANDARD.encode(bytes)))
    }
}

impl fmt::Debug for CosignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CosignerKey({})", self.verifier())
    }
}

/// Verifies the cosignatures of one witness. Displays as a C2SP vkey line.
#[derive(Clone)]
pub struct CosignerVerifier {
    key: VerifierKey,
    id: u32,
}

impl CosignerVerifier {
    /// Reads a vkey line: `name+hex key id+base64(0x04 ‖ key)`.
    ///
    /// # Errors
    /// [`SealError::Malformed`].
    pub fn parse(vkey: &str) -> Result<Self, SealError> {
        let malformed = || SealError::Malformed("not a vkey line of an Ed25519 cosigner");
        let mut parts = vkey.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed());
        };
        let typed = STANDARD.decode(key).map_err(|_| malformed())?;
        let raw = typed.strip_prefix(&[COSIGNATURE]).filter(|raw| raw.len() == 32).ok_or_else(malformed)?;
        let known = key_id(name, raw);
        if format!("{known:08x}") == id {
            Ok(Self { key: VerifierKey::ed25519(name, raw)?, id: known })
        } else {
            Err(malformed())
        }
    }
}

impl fmt::Display for CosignerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed = [&[COSIGNATURE], self.key.raw()].concat();
        write!(f, "{}+{:08x}+{}", self.key.name, self.id, STANDARD.encode(typed))
    }
}

impl fmt::Debug for CosignerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl signed_note::Verifier for CosignerVerifier {
    fn name(&self) -> &str {
        &self.key.name
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn verify(&self, msg: &[u8], sig: &[u8]) -> bool {
        let Some((seconds, signature)) = sig.split_first_chunk::<8>() else { return false };
        let seconds = u64::from_be_bytes(*seconds);
        // "It MUST NOT exceed 2^63 - 1" (tlog-cosignature).
        i64::try_from(seconds).is_ok() && signed_note::Verifier::verify(&self.key, &message(seconds, msg), signature)
    }
}

#[cfg(test)]
mod tests {
    use signed_note::Verifier as _;

    use super::*;

    const TEXT: &[u8] = b"log.example\n7\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n";

    #[test]
    fn a_cosignature_verifies_and_no_altered_one_does() {
        let key = CosignerKey::generate("witness.example/w1").unwrap();
        let verifier = CosignerVerifier::parse(&key.verifier().to_string()).unwrap();
        let line = key.cosign(TEXT, Timestamp::from_micros(1_700_000_000_000_000)).unwrap();
        let bytes = STANDARD.decode(line.trim_end().rsplit_once(' ').unwrap().1).unwrap();
        assert_eq!(bytes.len(), 4 + 8 + 64);
        assert_eq!(bytes[..4], verifier.key_id().to_be_bytes());
        assert_eq!(bytes[4..12], 1_700_000_000_u64.to_be_bytes());
        assert!(verifier.verify(TEXT, &bytes[4..]));
        assert!(!verifier.verify(&TEXT[1..], &bytes[4..]));
        for at in 4..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(!verifier.verify(TEXT, &altered[4..]), "byte {at}");
        }
        let again = CosignerKey::from_pem("witness.example/w1", &key.to_pem().unwrap()).unwrap();
        assert_eq!(again.verifier().to_string(), verifier.to_string());
    }

    #[test]
    fn a_logs_key_is_no_witnesses_and_the_other_way_round() {
        let key = CosignerKey::generate("witness.example/w1").unwrap();
        assert!(VerifierKey::parse(&key.verifier().to_string()).is_err());
        assert!(CosignerVerifier::parse(&key.key.verifier().to_string()).is_err());
    }
}
