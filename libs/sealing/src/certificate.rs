//! Certificates of those who sign messages.

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{Id, PKey, Public};
use openssl::sign::Verifier;
use openssl::x509::X509;
use session_model::Timestamp;

use crate::SealError;

/// Bits of an RSA key (NIST SP 800-131A revision 2, section 3).
const RSA_BITS: u32 = 2_048;
/// Bits of the order of an elliptic curve; P-256 has these.
const EC_BITS: u32 = 256;

/// How a message is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 6931 section 2.3.2).
    RsaSha256,
    /// ECDSA with SHA-256 (RFC 6931 section 2.3.6).
    EcdsaSha256,
}

/// The certificate of somebody who signs messages, and its key.
#[derive(Debug)]
pub struct SignerCertificate {
    certificate: X509,
    key: PKey<Public>,
}

impl SignerCertificate {
    /// Reads one (DER). Whose it is, and whether anybody trusts it, is not looked at: callers know it by its digest.
    ///
    /// # Errors
    /// [`SealError`] if it is none.
    pub fn from_der(der: &[u8]) -> Result<Self, SealError> {
        let certificate = X509::from_der(der)?;
        let key = certificate.public_key()?;
        Ok(Self { certificate, key })
    }

    /// Reads the only one of a PEM file.
    ///
    /// # Errors
    /// [`SealError`] if the file does not hold one certificate.
    pub fn from_pem(pem: &[u8]) -> Result<Self, SealError> {
        match X509::stack_from_pem(pem)?.as_slice() {
            [certificate] => Self::from_der(&certificate.to_der()?),
            _ => Err(SealError::Malformed("a file must hold one certificate")),
        }
    }

    /// It, as its fingerprint is over.
    ///
    /// # Errors
    /// [`SealError`] if OpenSSL fails.
    pub fn to_der(&self) -> Result<Vec<u8>, SealError> {
        Ok(self.certificate.to_der()?)
    }

    /// Its serial number, in decimal.
    ///
    /// # Errors
    /// [`SealError`] if OpenSSL fails.
    pub fn serial_number(&self) -> Result<String, SealError> {
        Ok(self.certificate.serial_number().to_bn()?.to_dec_str()?.to_string())
    }

    /// The identifier of its key, if it has that extension (RFC 5280 section 4.2.1.2).
    pub fn key_identifier(&self) -> Option<Vec<u8>> {
        self.certificate.subject_key_id().map(|identifier| identifier.as_slice().to_vec())
    }

    /// Whether a time lies within its validity.
    pub fn is_valid_at(&self, time: Timestamp) -> bool {
        Asn1Time::from_unix(time.as_micros().div_euclid(1_000_000))
            .is_ok_and(|time| self.certificate.not_before() <= time && self.certificate.not_after() >= time)
    }

    /// Whether its key made this signature of these bytes, with this algorithm. A key of another kind than the algorithm's made
    /// none, nor did one that is too short.
    pub fn verifies(&self, algorithm: SignatureAlgorithm, bytes: &[u8], signature: &[u8]) -> bool {
        match (algorithm, self.key.id()) {
            (SignatureAlgorithm::RsaSha256, Id::RSA) if self.key.bits() >= RSA_BITS => {
                self.verify(bytes, signature).unwrap_or(false)
            }
            (SignatureAlgorithm::EcdsaSha256, Id::EC) if self.key.bits() >= EC_BITS => {
                self.ecdsa_der(signature).and_then(|der| self.verify(bytes, &der).ok()).unwrap_or(false)
            }
            (SignatureAlgorithm::RsaSha256 | SignatureAlgorithm::EcdsaSha256, _) => false,
        }
    }

    fn verify(&self, bytes: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
        Verifier::new(MessageDigest::sha256(), &self.key)?.verify_oneshot(signature, bytes)
    }

    /// XML-DSig writes r and s one after the other, each as long as the curve's order (RFC 6931 section 2.3.6); OpenSSL wants DER.
    fn ecdsa_der(&self, signature: &[u8]) -> Option<Vec<u8>> {
        let length = usize::try_from(self.key.bits().div_ceil(8)).ok()?;
        let (r, s) = signature.split_at_checked(length).filter(|(_, s)| s.len() == length)?;
        let number = |bytes| BigNum::from_slice(bytes).ok();
        EcdsaSig::from_private_components(number(r)?, number(s)?).ok()?.to_der().ok()
    }
}

#[cfg(test)]
mod tests {
    use openssl::ec::{EcGroup, EcKey};
    use openssl::nid::Nid;
    use openssl::pkey::Private;
    use openssl::rsa::Rsa;
    use openssl::sign::Signer;

    use super::*;

    fn certified(key: &PKey<Private>) -> SignerCertificate {
        let mut builder = X509::builder().unwrap();
        builder.set_pubkey(key).unwrap();
        builder.set_not_before(&Asn1Time::from_unix(1_000).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::from_unix(2_000).unwrap()).unwrap();
        builder.sign(key, MessageDigest::sha256()).unwrap();
        SignerCertificate::from_der(&builder.build().to_der().unwrap()).unwrap()
    }

    fn signed(key: &PKey<Private>, bytes: &[u8]) -> Vec<u8> {
        Signer::new(MessageDigest::sha256(), key).unwrap().sign_oneshot_to_vec(bytes).unwrap()
    }

    fn rsa(bits: u32) -> PKey<Private> {
        PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap()
    }

    fn ec(curve: Nid) -> PKey<Private> {
        PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap()).unwrap()
    }

    fn side_by_side(der: &[u8], length: i32) -> Vec<u8> {
        let both = EcdsaSig::from_der(der).unwrap();
        [both.r(), both.s()].map(|number| number.to_vec_padded(length).unwrap()).concat()
    }

    #[test]
    fn an_rsa_signature_is_good_for_its_key_its_bytes_and_its_algorithm() {
        let (key, other) = (rsa(2_048), rsa(2_048));
        let certificate = certified(&key);
        let signature = signed(&key, b"bytes");
        assert!(certificate.verifies(SignatureAlgorithm::RsaSha256, b"bytes", &signature));
        assert!(!certificate.verifies(SignatureAlgorithm::RsaSha256, b"bytez", &signature));
        assert!(!certificate.verifies(SignatureAlgorithm::EcdsaSha256, b"bytes", &signature));
        assert!(!certified(&other).verifies(SignatureAlgorithm::RsaSha256, b"bytes", &signature));
        for cut in [0, 1, 255] {
            assert!(!certificate.verifies(SignatureAlgorithm::RsaSha256, b"bytes", &signature[..cut]));
        }
    }

    #[test]
    fn an_ecdsa_signature_is_r_and_s_and_nothing_else() {
        for (curve, length) in [(Nid::X9_62_PRIME256V1, 32), (Nid::SECP384R1, 48), (Nid::SECP521R1, 66)] {
            let key = ec(curve);
            let certificate = certified(&key);
            let der = signed(&key, b"bytes");
            let signature = side_by_side(&der, length);
            assert!(certificate.verifies(SignatureAlgorithm::EcdsaSha256, b"bytes", &signature));
            assert!(!certificate.verifies(SignatureAlgorithm::EcdsaSha256, b"bytez", &signature));
            assert!(!certificate.verifies(SignatureAlgorithm::RsaSha256, b"bytes", &signature));
            let longer = [&signature[..], &[0]].concat();
            for wrong in [&der[..], &signature[1..], &longer, &vec![0; signature.len()], &[]] {
                assert!(!certificate.verifies(SignatureAlgorithm::EcdsaSha256, b"bytes", wrong));
            }
        }
    }

    #[test]
    fn a_short_key_signs_nothing() {
        let key = rsa(1_024);
        let signature = signed(&key, b"bytes");
        assert!(!certified(&key).verifies(SignatureAlgorithm::RsaSha256, b"bytes", &signature));
        let key = ec(Nid::SECP224R1);
        let signature = side_by_side(&signed(&key, b"bytes"), 28);
        assert!(!certified(&key).verifies(SignatureAlgorithm::EcdsaSha256, b"bytes", &signature));
    }

    #[test]
    fn a_certificate_is_valid_from_its_first_second_to_its_last() {
        let certificate = certified(&rsa(2_048));
        let at = |seconds: i64| certificate.is_valid_at(Timestamp::from_micros(seconds * 1_000_000));
        assert_eq!([999, 1_000, 2_000, 2_001].map(at), [false, true, true, false]);
        assert!(SignerCertificate::from_der(b"no certificate").is_err());
    }
}
