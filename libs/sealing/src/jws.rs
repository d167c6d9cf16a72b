//! Signatures of tokens that others issue: JSON Web Signature (RFC 7515), with those algorithms of RFC 7518 section 3.1 and RFC 8037 that
//! have a public key. `none` and the HMACs are no words here, so that nobody can ask for them.

use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::rsa::{Padding, Rsa};
use openssl::sign::{RsaPssSaltlen, Verifier};

use crate::SealError;

/// Bits of an RSA key: RFC 7518 section 3.3 wants as many at least, and OpenSSL is slow with far more.
const RSA_BITS: std::ops::RangeInclusive<u32> = 2_048..=8_192;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words of RFC 7518 section 3.1 themselves")]
pub enum JwsAlgorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl JwsAlgorithm {
    /// Every algorithm that is taken.
    pub const ALL: [Self; 10] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    /// The word in a token's `alg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The one with this word; words are compared as they are (RFC 7515 section 4.1.1).
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == word)
    }

    fn digest(self) -> Option<MessageDigest> {
        match self {
            Self::Rs256 | Self::Ps256 | Self::Es256 => Some(MessageDigest::sha256()),
            Self::Rs384 | Self::Ps384 | Self::Es384 => Some(MessageDigest::sha384()),
            Self::Rs512 | Self::Ps512 | Self::Es512 => Some(MessageDigest::sha512()),
            Self::EdDsa => None,
        }
    }
}

/// A curve of RFC 7518 section 6.2.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the curves themselves")]
pub enum JwsCurve {
    P256,
    P384,
    P521,
}

impl JwsCurve {
    /// The one with this word.
    pub fn named(word: &str) -> Option<Self> {
        match word {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "P-521" => Some(Self::P521),
            _ => None,
        }
    }

    const fn nid(self) -> Nid {
        match self {
            Self::P256 => Nid::X9_62_PRIME256V1,
            Self::P384 => Nid::SECP384R1,
            Self::P521 => Nid::SECP521R1,
        }
    }

    /// Bytes of a coordinate, and of each half of a signature (RFC 7518 section 3.4).
    const fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    const fn signs(self) -> JwsAlgorithm {
        match self {
            Self::P256 => JwsAlgorithm::Es256,
            Self::P384 => JwsAlgorithm::Es384,
            Self::P521 => JwsAlgorithm::Es512,
        }
    }
}

/// Somebody's public key.
#[derive(Debug, Clone)]
pub struct JwsKey {
    key: PKey<Public>,
    curve: Option<JwsCurve>,
}

impl JwsKey {
    /// An RSA key of modulus and exponent, both big-endian.
    ///
    /// # Errors
    /// [`SealError::Malformed`] if it is too short, or too long.
    pub fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, SealError> {
        let rsa = Rsa::from_public_components(BigNum::from_slice(modulus)?, BigNum::from_slice(exponent)?)?;
        let key = PKey::from_rsa(rsa)?;
        if !RSA_BITS.contains(&key.bits()) {
            return Err(SealError::Malformed("an RSA key has 2,048 to 8,192 bits"));
        }
        Ok(Self { key, curve: None })
    }

    /// A key on a curve, by the coordinates of its point.
    ///
    /// # Errors
    /// [`SealError`] if the point is not on the curve.
    pub fn ec(curve: JwsCurve, x: &[u8], y: &[u8]) -> Result<Self, SealError> {
        if x.len() != curve.bytes() || y.len() != curve.bytes() {
            return Err(SealError::Malformed("a coordinate is as long as the curve's field"));
        }
        let group = EcGroup::from_curve_name(curve.nid())?;
        let key =
            EcKey::from_public_key_affine_coordinates(&group, &*BigNum::from_slice(x)?, &*BigNum::from_slice(y)?)?;
        key.check_key()?;
        Ok(Self { key: PKey::from_ec_key(key)?, curve: Some(curve) })
    }

    /// An Ed25519 key of 32 bytes (RFC 8037 section 2).
    ///
    /// # Errors
    /// [`SealError`] if it is none.
    pub fn ed25519(x: &[u8]) -> Result<Self, SealError> {
        Ok(Self { key: PKey::public_key_from_raw_bytes(x, Id::ED25519)?, curve: None })
    }

    /// Whether the key is of the algorithm's kind. Nothing that a token says turns one kind of key into another (RFC 8725 section 3.1).
    pub fn is_for(&self, algorithm: JwsAlgorithm) -> bool {
        use JwsAlgorithm as A;
        match algorithm {
            A::Rs256 | A::Rs384 | A::Rs512 | A::Ps256 | A::Ps384 | A::Ps512 => self.key.id() == Id::RSA,
            A::Es256 | A::Es384 | A::Es512 => self.curve.is_some_and(|curve| curve.signs() == algorithm),
            A::EdDsa => self.key.id() == Id::ED25519,
        }
    }

    /// Whether this key made this signature of these bytes, with this algorithm.
    pub fn verifies(&self, algorithm: JwsAlgorithm, bytes: &[u8], signature: &[u8]) -> bool {
        self.is_for(algorithm) && self.check(algorithm, bytes, signature).unwrap_or(false)
    }

    fn check(&self, algorithm: JwsAlgorithm, bytes: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
        use JwsAlgorithm as A;
        let Some(digest) = algorithm.digest() else {
            return Verifier::new_without_digest(&self.key)?.verify_oneshot(signature, bytes);
        };
        let mut verifier = Verifier::new(digest, &self.key)?;
        match algorithm {
            A::Rs256 | A::Rs384 | A::Rs512 => verifier.set_rsa_padding(Padding::PKCS1)?,
            // The salt is as long as the digest (RFC 7518 section 3.5).
            A::Ps256 | A::Ps384 | A::Ps512 => {
                verifier.set_rsa_padding(Padding::PKCS1_PSS)?;
                verifier.set_rsa_mgf1_md(digest)?;
                verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
            }
            A::Es256 | A::Es384 | A::Es512 => {
                // r and s one after the other (RFC 7518 section 3.4); OpenSSL wants DER.
                let Some((r, s)) = self.halves(signature) else { return Ok(false) };
                let der =
                    EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?.to_der()?;
                return verifier.verify_oneshot(&der, bytes);
            }
            A::EdDsa => {}
        }
        verifier.verify_oneshot(signature, bytes)
    }

    fn halves<'a>(&self, signature: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let length = self.curve?.bytes();
        signature.split_at_checked(length).filter(|(_, s)| s.len() == length)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use openssl::pkey::Private;
    use openssl::sign::Signer;

    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(text).unwrap()
    }

    /// RFC 7515 appendix A.3: a token signed with ES256, as the document prints it.
    #[test]
    fn the_example_of_the_standard_holds() {
        let key = JwsKey::ec(
            JwsCurve::P256,
            &bytes("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"),
            &bytes("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"),
        )
        .unwrap();
        let signed = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let signature = bytes("DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q");
        assert!(key.verifies(JwsAlgorithm::Es256, signed.as_bytes(), &signature));
        assert!(!key.verifies(JwsAlgorithm::Es256, &signed.as_bytes()[1..], &signature));
        assert!(!key.verifies(JwsAlgorithm::Es384, signed.as_bytes(), &signature));
        for wrong in [&signature[1..], &[&signature[..], &[0]].concat(), &[0; 64], &[]] {
            assert!(!key.verifies(JwsAlgorithm::Es256, signed.as_bytes(), wrong));
        }
    }

    /// RFC 8037 appendix A.4.
    #[test]
    fn the_example_of_ed25519_holds() {
        let key = JwsKey::ed25519(&bytes("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")).unwrap();
        let signed = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let signature = bytes("hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg");
        assert!(key.verifies(JwsAlgorithm::EdDsa, signed.as_bytes(), &signature));
        assert!(!key.verifies(JwsAlgorithm::EdDsa, b"", &signature));
        assert!(!key.verifies(JwsAlgorithm::Es256, signed.as_bytes(), &signature));
    }

    fn rsa(bits: u32) -> (PKey<Private>, Result<JwsKey, SealError>) {
        let rsa = Rsa::generate(bits).unwrap();
        let public = JwsKey::rsa(&rsa.n().to_vec(), &rsa.e().to_vec());
        (PKey::from_rsa(rsa).unwrap(), public)
    }

    #[test]
    fn rsa_is_good_for_the_padding_and_the_digest_that_are_named() {
        let (private, public) = rsa(2_048);
        let public = public.unwrap();
        let sign = |digest: MessageDigest, pss: bool| {
            let mut signer = Signer::new(digest, &private).unwrap();
            if pss {
                signer.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
                signer.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).unwrap();
            }
            signer.sign_oneshot_to_vec(b"bytes").unwrap()
        };
        let (sha256, sha512) = (MessageDigest::sha256(), MessageDigest::sha512());
        for (signature, good) in [
            (sign(sha256, false), JwsAlgorithm::Rs256),
            (sign(sha512, false), JwsAlgorithm::Rs512),
            (sign(sha256, true), JwsAlgorithm::Ps256),
            (sign(sha512, true), JwsAlgorithm::Ps512),
        ] {
            for algorithm in JwsAlgorithm::ALL {
                assert_eq!(
                    public.verifies(algorithm, b"bytes", &signature),
                    algorithm == good,
                    "{algorithm:?} {good:?}"
                );
            }
            assert!(!public.verifies(good, b"bytez", &signature));
        }
        assert!(rsa(1_024).1.is_err(), "a short key is none");
    }

    #[test]
    fn neither_none_nor_a_shared_secret_is_an_algorithm() {
        for word in ["none", "None", "HS256", "HS384", "HS512", "rs256", "RSA-OAEP", ""] {
            assert_eq!(JwsAlgorithm::named(word), None, "{word}");
        }
        assert!(JwsAlgorithm::ALL.into_iter().all(|one| JwsAlgorithm::named(one.name()) == Some(one)));
    }

    #[test]
    fn a_point_beside_the_curve_is_no_key() {
        assert!(JwsKey::ec(JwsCurve::P256, &[1; 32], &[1; 32]).is_err());
        assert!(JwsKey::ec(JwsCurve::P256, &[0; 32], &[0; 32]).is_err());
        assert!(JwsKey::ec(JwsCurve::P256, &[1; 31], &[1; 32]).is_err());
        assert!(JwsKey::ed25519(&[1; 31]).is_err());
    }
}
