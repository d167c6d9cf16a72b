//! Signed messages: XML Signature as the X.509 certificate token profile 1.1 of WS-Security uses it.
//!
//! A signature says "these elements, found by their ids, have these digests". What is attacked is never the cryptography but the
//! finding: a signed element is moved where nobody reads it, and another put where it was. So an id only proposes an element. What
//! counts is that this element **is** the Body, the Timestamp or the header block that the service goes on to read, the same node of the
//! same tree; and what is hashed is written from that tree.
//!
//! Everything is checked in the order of what it costs, and who pays: a certificate that nobody configured is not even parsed,
//! and the parts of a message are hashed only after its key holder has signed for their digests.

use std::collections::HashMap;
use std::sync::Arc;

use access::Keyholder;
use roxmltree::{Node, NodeId};
use sealing::{SealError, SignatureAlgorithm, SignerCertificate, same, sha256, sha512};
use session_model::{Digest, Timestamp};

use crate::canonical;
use crate::envelope::elements;
use crate::fault::{Fault, SecurityCode};
use crate::reader::text_of;
use crate::security::{BASE64, SECEXT, decoded};

/// XML Signature.
const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
/// Exclusive canonicalization: the algorithm, and the namespace of its parameter.
const EXCLUSIVE: &str = "http://www.w3.org/2001/10/xml-exc-c14n#";
/// Takes the signature out of what is signed. Toolkits name it for parts that hold none, where it takes nothing out.
const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
/// A certificate, as the X.509 certificate token profile names it.
const X509V3: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-x509-token-profile-1.0#X509v3";
/// The identifier of a certificate's key, as the X.509 certificate token profile names it.
const X509SKI: &str =
    "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-x509-token-profile-1.0#X509SubjectKeyIdentifier";

/// Parts that one signature may cover: Body, Timestamp, token, and the headers of WS-Addressing.
const REFERENCES: usize = 8;
/// Prefixes in a list: each is looked for at each element.
const PREFIXES: usize = 32;
/// Bytes of a certificate.
const CERTIFICATE: usize = 16 << 10;

/// How a part is hashed.
#[derive(Debug, Clone, Copy)]
enum DigestAlgorithm {
    Sha256,
    Sha512,
}

/// A signature, as it is written. Nothing of it is believed yet.
#[derive(Debug)]
pub(crate) struct Signature<'a, 'text> {
    info: Node<'a, 'text>,
    prefixes: Vec<&'a str>,
    algorithm: SignatureAlgorithm,
    references: Vec<Reference<'a>>,
    value: Vec<u8>,
    key: KeyInfo<'a>,
}

#[derive(Debug)]
struct Reference<'a> {
    id: &'a str,
    prefixes: Vec<&'a str>,
    algorithm: DigestAlgorithm,
    digest: Vec<u8>,
}

/// Certificates that a signature may name without holding them. Whose they are is another's business.
#[derive(Debug, Default)]
pub struct Certificates(Vec<Named>);

#[derive(Debug)]
struct Named {
    der: Vec<u8>,
    serial_number: String,
    key_identifier: Option<Vec<u8>>,
}

impl Certificates {
    /// These certificates.
    ///
    /// # Errors
    /// [`SealError`] if OpenSSL fails.
    pub fn new(certificates: &[SignerCertificate]) -> Result<Self, SealError> {
        let named = certificates.iter().map(|certificate| {
            let (serial_number, key_identifier) = (certificate.serial_number()?, certificate.key_identifier());
            Ok(Named { der: certificate.to_der()?, serial_number, key_identifier })
        });
        Ok(Self(named.collect::<Result<_, SealError>>()?))
    }

    /// The one that fits; none if two do. That a name is another's does no harm: the signature is then not of this key.
    fn only(&self, fits: impl Fn(&Named) -> bool) -> Option<Vec<u8>> {
        let mut found = self.0.iter().filter(|named| fits(named));
        found.next().filter(|_| found.next().is_none()).map(|named| named.der.clone())
    }
}

/// Where the certificate is.
#[derive(Debug)]
enum KeyInfo<'a> {
    /// In the token with this id.
    Token(&'a str),
    /// In the signature.
    Here(Vec<u8>),
    /// With us: it has this serial number. Its issuer is named, too, but each toolkit spells names its own way.
    Serial(String),
    /// With us: its key has this identifier.
    Key(Vec<u8>),
}

/// The parts of a message that a signature can be for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a, 'text> {
    /// The Header.
    pub(crate) header: Node<'a, 'text>,
    /// The Security header block, in which the signature is.
    pub(crate) security: Node<'a, 'text>,
    /// Its time stamp.
    pub(crate) timestamp: Node<'a, 'text>,
    /// Its certificate, if it is there.
    pub(crate) token: Option<Node<'a, 'text>>,
    /// The Body.
    pub(crate) body: Node<'a, 'text>,
}

/// What a good signature says.
#[derive(Debug)]
pub(crate) struct Signed {
    /// Who signed.
    pub(crate) holder: Arc<Keyholder>,
    /// What is signed: the Body, the Timestamp, and perhaps more.
    pub(crate) covered: Vec<NodeId>,
    /// Digest of certificate and signed digests: the same for every spelling of the message, and for every signature of it. (Of
    /// an ECDSA signature (r, s) anybody can make another, (r, -s), without the key.)
    pub(crate) identity: Digest,
}

fn malformed(what: &str) -> Fault {
    Fault::security(SecurityCode::InvalidSecurity, what)
}

fn unsupported() -> Fault {
    let what = "a message is signed with exclusive canonicalization, RSA or ECDSA with SHA-256, and digests by SHA-256 or SHA-512";
    Fault::security(SecurityCode::UnsupportedAlgorithm, what)
}

/// Whether an element of the Security header is a signature.
pub(crate) fn is_signature(token: Node<'_, '_>) -> bool {
    token.has_tag_name((DSIG, "Signature"))
}

/// Whether it holds a certificate.
pub(crate) fn is_token(token: Node<'_, '_>) -> bool {
    token.has_tag_name((SECEXT, "BinarySecurityToken"))
}

/// The child elements, if these are their names in this order.
fn children<'a, 'text, const N: usize>(of: Node<'a, 'text>, names: [&str; N]) -> Result<[Node<'a, 'text>; N], Fault> {
    let found: Result<[_; N], _> = elements(of)?.try_into();
    found.ok().filter(|found| found.iter().zip(names).all(|(child, name)| child.has_tag_name((DSIG, name)))).ok_or_else(
        || malformed("the signature has other elements than SignedInfo, SignatureValue and KeyInfo, or in them"),
    )
}

fn algorithm<'a>(of: Node<'a, '_>) -> &'a str {
    of.attribute("Algorithm").unwrap_or_default()
}

fn base64(of: Node<'_, '_>) -> Result<Vec<u8>, Fault> {
    text_of(of).and_then(|text| decoded(&text)).ok_or_else(|| malformed("the signature holds what is no base64"))
}

/// The id an attribute points at: `#id`. Nothing outside of the message can be pointed at.
fn pointed<'a>(of: Node<'a, '_>) -> Result<&'a str, Fault> {
    let id = of.attribute("URI").and_then(|uri| uri.strip_prefix('#')).filter(|id| !id.is_empty() && !id.contains('('));
    id.ok_or_else(|| malformed("a reference of the signature must be to the id of an element"))
}

/// The prefixes of an exclusive canonicalization, which may be given as its only child.
fn prefixes<'a>(method: Node<'a, '_>) -> Result<Vec<&'a str>, Fault> {
    if algorithm(method) != EXCLUSIVE {
        return Err(unsupported());
    }
    let list = match elements(method)?.as_slice() {
        [] => "",
        [list] if list.has_tag_name((EXCLUSIVE, "InclusiveNamespaces")) => {
            list.attribute("PrefixList").unwrap_or_default()
        }
        _ => return Err(unsupported()),
    };
    let prefixes: Vec<_> =
        list.split_ascii_whitespace().map(|prefix| if prefix == "#default" { "" } else { prefix }).collect();
    if prefixes.len() > PREFIXES { Err(malformed("a PrefixList is too long")) } else { Ok(prefixes) }
}

impl<'a, 'text> Signature<'a, 'text> {
    /// Reads a signature.
    ///
    /// # Errors
    /// A [`Fault`] if it is not of the form and the algorithms that are accepted.
    pub(crate) fn read(signature: Node<'a, 'text>) -> Result<Self, Fault> {
        let [info, value, key] = children(signature, ["SignedInfo", "SignatureValue", "KeyInfo"])?;
        let parts = elements(info)?;
        let [canonicalization, method, references @ ..] = parts.as_slice() else {
            return Err(malformed("the signature does not say how it is made"));
        };
        if !canonicalization.has_tag_name((DSIG, "CanonicalizationMethod"))
            || !method.has_tag_name((DSIG, "SignatureMethod"))
        {
            return Err(malformed("the signature does not say how it is made"));
        }
        let algorithm = match algorithm(*method) {
            "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256" => SignatureAlgorithm::RsaSha256,
            "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256" => SignatureAlgorithm::EcdsaSha256,
            _ => return Err(unsupported()),
        };
        if !elements(*method)?.is_empty() {
            return Err(unsupported());
        }
        if references.is_empty() || references.len() > REFERENCES {
            return Err(malformed("a signature must be for one part of the message, and for 8 at most"));
        }
        Ok(Self {
            info,
            prefixes: prefixes(*canonicalization)?,
            algorithm,
            references: references.iter().copied().map(reference).collect::<Result<_, _>>()?,
            value: base64(value)?,
            key: key_info(key)?,
        })
    }

    /// Finds out whether a message is as its sender signed it, and who that is.
    ///
    /// # Errors
    /// The real reason why not: for the service's log and counters, never for the client.
    pub(crate) fn verify(
        &self,
        parts: &Parts<'a, 'text>,
        certificates: &Certificates,
        holder_of: impl FnOnce(&Digest) -> Option<Arc<Keyholder>>,
        now: Timestamp,
    ) -> Result<Signed, &'static str> {
        let ids = ids(parts.security.document().root_element())?;
        let der = self.certificate(parts, &ids, certificates)?;
        let fingerprint = sha256(&der);
        let holder = holder_of(&fingerprint).ok_or("soap_unknown_certificate")?;
        let certificate = SignerCertificate::from_der(&der).map_err(|_| "soap_bad_certificate")?;
        if !certificate.is_valid_at(now) {
            return Err("soap_expired_certificate");
        }
        let info = canonical::exclusive(self.info, &self.prefixes).ok_or("soap_no_canonical_form")?;
        if !certificate.verifies(self.algorithm, &info, &self.value) {
            return Err("soap_bad_signature");
        }

        let mut covered = Vec::with_capacity(self.references.len());
        for reference in &self.references {
            let part = ids.get(reference.id).copied().filter(|part| parts.may_be_signed(*part));
            let part = part.ok_or("soap_foreign_reference")?;
            if covered.contains(&part.id()) {
                return Err("soap_foreign_reference");
            }
            let bytes = canonical::exclusive(part, &reference.prefixes).ok_or("soap_no_canonical_form")?;
            let matches = match reference.algorithm {
                DigestAlgorithm::Sha256 => same(&sha256(&bytes).0, &reference.digest),
                DigestAlgorithm::Sha512 => same(&sha512(&bytes), &reference.digest),
            };
            if !matches {
                return Err("soap_altered");
            }
            covered.push(part.id());
        }
        if !covered.contains(&parts.body.id()) {
            return Err("soap_unsigned_body");
        }
        if !covered.contains(&parts.timestamp.id()) {
            return Err("soap_unsigned_timestamp");
        }
        Ok(Signed { holder, covered, identity: sha256(&[fingerprint.0.as_slice(), &sha256(&info).0].concat()) })
    }

    fn certificate(
        &self,
        parts: &Parts<'_, '_>,
        ids: &HashMap<&str, Node<'_, '_>>,
        certificates: &Certificates,
    ) -> Result<Vec<u8>, &'static str> {
        let named = |found: Option<Vec<u8>>| found.ok_or("soap_unknown_certificate");
        let der = match &self.key {
            KeyInfo::Here(der) => der.clone(),
            KeyInfo::Serial(serial) => named(certificates.only(|one| one.serial_number == *serial))?,
            KeyInfo::Key(key) => named(certificates.only(|one| one.key_identifier.as_ref() == Some(key)))?,
            KeyInfo::Token(id) => {
                let pointed = ids.get(id).map(Node::id);
                let token = parts.token.filter(|token| Some(token.id()) == pointed).ok_or("soap_foreign_token")?;
                text_of(token).and_then(|text| decoded(&text)).ok_or("soap_bad_certificate")?
            }
        };
        if der.len() > CERTIFICATE { Err("soap_bad_certificate") } else { Ok(der) }
    }
}

impl<'a, 'text> Parts<'a, 'text> {
    /// Only what stands where the service reads it: the Body, what is in the Security header, and the other header blocks.
    fn may_be_signed(&self, part: Node<'a, 'text>) -> bool {
        let read = [Some(self.body), Some(self.timestamp), self.token];
        read.contains(&Some(part)) || (part.parent() == Some(self.header) && part != self.security)
    }
}

fn reference<'a>(of: Node<'a, '_>) -> Result<Reference<'a>, Fault> {
    if !of.has_tag_name((DSIG, "Reference")) {
        return Err(malformed("SignedInfo holds what is no reference"));
    }
    let [transforms, method, digest] = children(of, ["Transforms", "DigestMethod", "DigestValue"])?;
    let transforms = elements(transforms)?;
    if transforms.iter().any(|transform| !transform.has_tag_name((DSIG, "Transform"))) {
        return Err(malformed("Transforms holds what is no transform"));
    }
    let canonicalization = match transforms.as_slice() {
        [canonicalization] => canonicalization,
        // No part that may be signed holds the signature: there is nothing to be taken out.
        [enveloped, canonicalization] if algorithm(*enveloped) == ENVELOPED && !enveloped.has_children() => {
            canonicalization
        }
        _ => return Err(unsupported()),
    };
    let algorithm = match algorithm(method) {
        "http://www.w3.org/2001/04/xmlenc#sha256" => DigestAlgorithm::Sha256,
        "http://www.w3.org/2001/04/xmlenc#sha512" => DigestAlgorithm::Sha512,
        _ => return Err(unsupported()),
    };
    Ok(Reference { id: pointed(of)?, prefixes: prefixes(*canonicalization)?, algorithm, digest: base64(digest)? })
}

/// Where the certificate is: in a token that is pointed at; here, as a key identifier or as toolkits on libxmlsec do; or with us,
/// by its serial number or the identifier of its key.
fn key_info<'a>(of: Node<'a, '_>) -> Result<KeyInfo<'a>, Fault> {
    let unknown = || {
        let what = "a signature must point at a BinarySecurityToken with an X.509 certificate, or hold or name the certificate";
        Fault::security(SecurityCode::UnsupportedSecurityToken, what)
    };
    let inside = only(of, SECEXT, "SecurityTokenReference")?.ok_or_else(unknown)?;
    if let Some(reference) = only(inside, SECEXT, "Reference")? {
        if reference.attribute("ValueType").is_some_and(|kind| kind != X509V3) {
            return Err(unknown());
        }
        return Ok(KeyInfo::Token(pointed(reference)?));
    }
    if let Some(identifier) = only(inside, SECEXT, "KeyIdentifier")? {
        let encoding = identifier.attribute("EncodingType").unwrap_or(BASE64);
        return match identifier.attribute("ValueType") {
            Some(X509V3) if encoding == BASE64 => Ok(KeyInfo::Here(base64(identifier)?)),
            Some(X509SKI) if encoding == BASE64 => Ok(KeyInfo::Key(base64(identifier)?)),
            Some(_) | None => Err(unknown()),
        };
    }
    let data = only(inside, DSIG, "X509Data")?.ok_or_else(unknown)?;
    let all = |name| data.children().filter(move |child| child.has_tag_name((DSIG, name)));
    let (mut certificates, mut serials) = (all("X509Certificate"), all("X509IssuerSerial"));
    match (certificates.next(), certificates.next(), serials.next(), serials.next()) {
        (Some(certificate), None, _, _) => Ok(KeyInfo::Here(base64(certificate)?)),
        (None, None, Some(serial), None) => {
            let [_issuer, number] = children(serial, ["X509IssuerName", "X509SerialNumber"])?;
            Ok(KeyInfo::Serial(text_of(number).ok_or_else(unknown)?.trim().to_owned()))
        }
        _ => Err(unknown()),
    }
}

/// The only child, if it is of this name.
fn only<'a, 'text>(of: Node<'a, 'text>, namespace: &str, name: &str) -> Result<Option<Node<'a, 'text>>, Fault> {
    Ok(match elements(of)?.as_slice() {
        [child] if child.has_tag_name((namespace, name)) => Some(*child),
        _ => None,
    })
}

/// Refuses a token that holds no X.509 certificate.
///
/// # Errors
/// A [`Fault`].
pub(crate) fn check_token(token: Node<'_, '_>) -> Result<(), Fault> {
    if token.attribute("ValueType") == Some(X509V3) && token.attribute("EncodingType").unwrap_or(BASE64) == BASE64 {
        return Ok(());
    }
    let what = "the BinarySecurityToken is no X.509 certificate in base64";
    Err(Fault::security(SecurityCode::UnsupportedSecurityToken, what))
}

/// The elements that have an id, by whichever attribute toolkits call one. An id that two elements have is none at all.
fn ids<'a, 'text>(root: Node<'a, 'text>) -> Result<HashMap<&'a str, Node<'a, 'text>>, &'static str> {
    let mut ids = HashMap::new();
    for node in root.descendants().filter(Node::is_element) {
        for attribute in node.attributes().filter(|attribute| attribute.name().eq_ignore_ascii_case("id")) {
            if ids.insert(attribute.value(), node).is_some_and(|other| other != node) {
                return Err("soap_duplicate_id");
            }
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests;
