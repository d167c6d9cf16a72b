//! Whether a response stamps what it should, and who says so.

use std::fmt;

use openssl::cms::{CMSOptions, CmsContentInfo};
use openssl::error::ErrorStack;
use openssl::hash::{MessageDigest, hash};
use openssl::sha::sha256;
use openssl::stack::Stack;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::X509VerifyParam;
use openssl::x509::{X509, X509PurposeId};
use session_model::Timestamp;

use crate::Request;
use crate::message::{Info, Response, SignerHash, Token};

/// Not certificates.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// There is none.
    #[error("holds no certificate")]
    Empty,
    /// They cannot be read.
    #[error("holds no certificates in PEM")]
    Malformed(#[source] ErrorStack),
}

/// Why a response is no good.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// The authority did not stamp.
    #[error("the authority refused: status {status} {said}")]
    Refused {
        /// `PKIStatus` (RFC 3161 section 2.4.2).
        status: u32,
        /// What it said, for people.
        said: String,
    },
    /// Not a response with a token.
    #[error("not a time-stamp response")]
    Malformed(#[source] der::Error),
    /// It stamps other bytes.
    #[error("it stamps something else")]
    OtherImprint,
    /// It answers another request.
    #[error("it answers another request: the nonce is not ours")]
    OtherNonce,
    /// It was made under another policy than was asked for.
    #[error("it was made under the policy {0}, which was not asked for")]
    OtherPolicy(String),
    /// The certificate that the signature names did not come with it.
    #[error("the certificate that its signature names is not in it")]
    NoCertificate,
    /// The signature, the certificate's chain or its purpose is not good.
    #[error("not signed by an authority that is trusted for time stamps")]
    Signature(#[source] ErrorStack),
}

/// A good time stamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeStamp {
    /// When: the bytes existed before this.
    pub time: Timestamp,
    /// Under which policy of the authority, an object identifier.
    pub policy: String,
    /// Its number, which the authority gives once; hexadecimal.
    pub serial: String,
    /// Whose certificate signed it, as RFC 2253 writes names.
    pub authority: String,
}

/// The authorities whose certificates are trusted, directly or at the end of a chain.
#[derive(Clone)]
pub struct Roots(Vec<X509>);

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.0.len())
    }
}

impl Roots {
    /// Reads certificates, one PEM block each.
    ///
    /// # Errors
    /// [`RootsError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, RootsError> {
        let roots = X509::stack_from_pem(pem).map_err(RootsError::Malformed)?;
        if roots.is_empty() { Err(RootsError::Empty) } else { Ok(Self(roots)) }
    }

    /// Verifies the answer to a request: what [`Roots::verify`] does, and that it is an answer to this one.
    ///
    /// # Errors
    /// [`StampError`].
    pub fn verify_answer(&self, response: &[u8], request: &Request, message: &[u8]) -> Result<TimeStamp, StampError> {
        let (stamp, info) = self.check(response, message)?;
        if info.nonce != Some(request.nonce) {
            return Err(StampError::OtherNonce);
        }
        match request.policy {
            Some(asked) if asked != info.policy => Err(StampError::OtherPolicy(info.policy.to_string())),
            Some(_) | None => Ok(stamp),
        }
    }

    /// Verifies that a response stamps a message: status, imprint, one signature, by the certificate that it names, for whose chain up to
    /// a root and purpose (extended key usage `timeStamping` alone, critical) the time of the stamp counts, not today.
    ///
    /// # Errors
    /// [`StampError`].
    pub fn verify(&self, response: &[u8], message: &[u8]) -> Result<TimeStamp, StampError> {
        self.check(response, message).map(|(stamp, _)| stamp)
    }

    fn check(&self, response: &[u8], message: &[u8]) -> Result<(TimeStamp, Info), StampError> {
        let Response { status, said, token } = Response::read(response).map_err(StampError::Malformed)?;
        let token = match (status, token) {
            (0 | 1, Some(token)) => token,
            (_, _) => return Err(StampError::Refused { status, said }),
        };
        let signer = self.signed(&token)?;
        let info = token.info;
        if info.imprint.as_deref() != Some(&sha256(message)) {
            return Err(StampError::OtherImprint);
        }
        let stamp = TimeStamp {
            time: info.time,
            policy: info.policy.to_string(),
            serial: info.serial.iter().map(|byte| format!("{byte:02x}")).collect(),
            authority: name(&signer),
        };
        Ok((stamp, info))
    }

    /// Whose certificate has signed a token.
    fn signed(&self, token: &Token<'_>) -> Result<X509, StampError> {
        let signer = named(token).map_err(StampError::Signature)?.ok_or(StampError::NoCertificate)?;
        let verified = || {
            let mut param = X509VerifyParam::new()?;
            param.set_time(token.info.time.as_micros().div_euclid(1_000_000));
            let mut store = X509StoreBuilder::new()?;
            for root in &self.0 {
                store.add_cert(root.clone())?;
            }
            store.set_param(&param)?;
            store.set_purpose(X509PurposeId::TIMESTAMP_SIGN)?;
            let mut only = Stack::new()?;
            only.push(signer.clone())?;
            let mut content = Vec::new();
            // NOINTERN: the signer's certificate is the one that the signature names, and no other that came with it. Those serve for its
            // chain alone.
            let flags = CMSOptions::BINARY | CMSOptions::NOINTERN;
            let mut cms = CmsContentInfo::from_der(&token.der)?;
            cms.verify(Some(&only), Some(&store.build()), None, Some(&mut content), flags)?;
            Ok(content)
        };
        let content = verified().map_err(StampError::Signature)?;
        // What was read is what was signed.
        if content == token.content { Ok(signer) } else { Err(StampError::OtherImprint) }
    }
}

/// The certificate that the signature names (RFC 5816): one of those that came with the token.
fn named(token: &Token<'_>) -> Result<Option<X509>, ErrorStack> {
    for certificate in &token.certificates {
        let is = match &token.signer {
            SignerHash::Sha256(wanted) => hash(MessageDigest::sha256(), certificate)?[..] == wanted[..],
            SignerHash::Sha1(wanted) => hash(MessageDigest::sha1(), certificate)?[..] == wanted[..],
        };
        if is {
            return X509::from_der(certificate).map(Some);
        }
    }
    Ok(None)
}

fn name(certificate: &X509) -> String {
    let entry = |entry: &openssl::x509::X509NameEntryRef| {
        let kind = entry.object().nid().short_name().unwrap_or("?").to_owned();
        let value = entry.data().to_string().unwrap_or_else(|_| "?".to_owned());
        format!("{kind}={value}")
    };
    let mut entries: Vec<String> = certificate.subject_name().entries().map(entry).collect();
    entries.reverse();
    entries.join(",")
}
