//! The messages of RFC 3161, as far as they are needed.

use der::asn1::{AnyRef, ObjectIdentifier, OctetStringRef};
use der::{Decode, Encode, Reader, Sequence, SliceReader, Tag};
use openssl::sha::sha256;
use session_model::Timestamp;

/// SHA-256 (RFC 5754 section 2.2).
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
/// `id-signedData` (RFC 5652 section 5.1).
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
/// `id-ct-TSTInfo` (RFC 3161 section 2.4.2).
const TST_INFO: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.1.4");
/// `id-aa-signingCertificate`: the certificate of the signer, by SHA-1 (RFC 2634 section 5.4).
const SIGNING_CERTIFICATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.12");
/// `id-aa-signingCertificateV2`: the same, by any hash (RFC 5035 section 3).
const SIGNING_CERTIFICATE_V2: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.47");

#[derive(Sequence)]
struct Algorithm<'a> {
    algorithm: ObjectIdentifier,
    parameters: Option<AnyRef<'a>>,
}

#[derive(Sequence)]
struct Imprint<'a> {
    algorithm: Algorithm<'a>,
    hash: &'a OctetStringRef,
}

/// Section 2.4.1.
#[derive(Sequence)]
struct TimeStampReq<'a> {
    version: u8,
    imprint: Imprint<'a>,
    policy: Option<ObjectIdentifier>,
    nonce: Option<u128>,
    #[asn1(default = "Default::default")]
    certificates: bool,
}

/// Not a request that can be made.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The policy is no object identifier.
    #[error("{0} is no object identifier: numbers with dots between, such as 1.2.3.4.1")]
    Policy(String),
    /// It cannot be encoded.
    #[error("the request cannot be encoded")]
    Encode(#[source] der::Error),
}

/// A request for a time stamp over some bytes, which are hashed with SHA-256; with a nonce, and asking for the authority's certificate.
#[derive(Debug, Clone)]
pub struct Request {
    der: Vec<u8>,
    pub(crate) nonce: u128,
    pub(crate) policy: Option<ObjectIdentifier>,
}

impl Request {
    /// A request. `nonce` is random and of this request alone: a response that was made for another is told apart by it. Without a `policy`
    /// (an object identifier) the authority stamps under its own.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn new(message: &[u8], nonce: [u8; 16], policy: Option<&str>) -> Result<Self, RequestError> {
        let named = |text: &str| ObjectIdentifier::new(text).map_err(|_| RequestError::Policy(text.to_owned()));
        let policy = policy.map(named).transpose()?;
        let nonce = u128::from_be_bytes(nonce);
        let hash = sha256(message);
        let hash = OctetStringRef::new(&hash).map_err(RequestError::Encode)?;
        // Parameters of SHA-256 are absent or NULL, and both must be understood (RFC 5754 section 2). OpenSSL sends NULL.
        let algorithm = Algorithm { algorithm: SHA256, parameters: Some(AnyRef::NULL) };
        let imprint = Imprint { algorithm, hash };
        let request = TimeStampReq { version: 1, imprint, policy, nonce: Some(nonce), certificates: true };
        Ok(Self { der: request.to_der().map_err(RequestError::Encode)?, nonce, policy })
    }

    /// As it is sent: `application/timestamp-query` (section 3.4).
    pub fn der(&self) -> &[u8] {
        &self.der
    }
}

/// What a response says, before anything of it is believed.
#[derive(Debug)]
pub(crate) struct Response<'a> {
    /// `granted` (0) and `grantedWithMods` (1) come with a token (section 2.4.2).
    pub(crate) status: u32,
    /// What the authority says about it, for people.
    pub(crate) said: String,
    pub(crate) token: Option<Token<'a>>,
}

/// A time-stamp token: CMS signed data over a `TSTInfo`.
#[derive(Debug)]
pub(crate) struct Token<'a> {
    /// The whole of it.
    pub(crate) der: Vec<u8>,
    /// The `TSTInfo`, encoded.
    pub(crate) content: &'a [u8],
    pub(crate) info: Info,
    /// The certificates that came with it, encoded.
    pub(crate) certificates: Vec<Vec<u8>>,
    /// What the signature names as the signer's certificate.
    pub(crate) signer: SignerHash,
}

/// The hash of a certificate, by which a signature names it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SignerHash {
    Sha1(Vec<u8>),
    Sha256(Vec<u8>),
}

/// `TSTInfo` (section 2.4.2).
#[derive(Debug)]
pub(crate) struct Info {
    pub(crate) policy: ObjectIdentifier,
    /// The hash that is stamped, if it was made with SHA-256.
    pub(crate) imprint: Option<Vec<u8>>,
    pub(crate) serial: Vec<u8>,
    pub(crate) time: Timestamp,
    pub(crate) nonce: Option<u128>,
}

fn wrong(tag: Tag) -> der::Error {
    tag.value_error().into()
}

/// The elements of a sequence, of a set, or of what a context tag wraps. In the order they came: sets are not always sorted.
fn elements(of: AnyRef<'_>) -> Result<Vec<AnyRef<'_>>, der::Error> {
    let mut reader = SliceReader::new(of.value())?;
    let mut found = Vec::new();
    while !reader.is_finished() {
        found.push(AnyRef::decode(&mut reader)?);
    }
    Ok(found)
}

/// An element with a context tag of this number.
fn tagged<'a>(elements: &[AnyRef<'a>], number: u32) -> Option<AnyRef<'a>> {
    let is = |tag: Tag| matches!(tag, Tag::ContextSpecific { number: found, .. } if found.value() == number);
    elements.iter().find(|element| is(der::Tagged::tag(*element))).copied()
}

impl<'a> Response<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, der::Error> {
        let whole = elements(AnyRef::from_der(bytes)?)?;
        let [status, rest @ ..] = whole.as_slice() else { return Err(wrong(Tag::Sequence)) };
        let info = elements(*status)?;
        let [status, said @ ..] = info.as_slice() else { return Err(wrong(Tag::Sequence)) };
        // `PKIFreeText`, if the first of what follows is a sequence.
        let said = match said.first().filter(|first| der::Tagged::tag(*first) == Tag::Sequence) {
            Some(texts) => elements(*texts)?.iter().map(|text| String::from_utf8_lossy(text.value())).collect(),
            None => Vec::new(),
        };
        let token = match rest {
            [] => None,
            [token] => Some(Token::read(*token)?),
            [..] => return Err(wrong(Tag::Sequence)),
        };
        Ok(Self { status: status.decode_as()?, said: said.join(", "), token })
    }
}

impl<'a> Token<'a> {
    /// RFC 5652 sections 3 and 5.1.
    fn read(token: AnyRef<'a>) -> Result<Self, der::Error> {
        let [kind, content] = elements(token)?.try_into().map_err(|_| wrong(Tag::Sequence))?;
        if kind.decode_as::<ObjectIdentifier>()? != SIGNED_DATA {
            return Err(wrong(Tag::ObjectIdentifier));
        }
        let [signed] = elements(content)?.try_into().map_err(|_| wrong(Tag::Sequence))?;
        let parts = elements(signed)?;
        let [_version, _digests, encapsulated, .., signers] = parts.as_slice() else {
            return Err(wrong(Tag::Sequence));
        };
        let [kind, content] = elements(*encapsulated)?.try_into().map_err(|_| wrong(Tag::Sequence))?;
        if kind.decode_as::<ObjectIdentifier>()? != TST_INFO {
            return Err(wrong(Tag::ObjectIdentifier));
        }
        let [content] = elements(content)?.try_into().map_err(|_| wrong(Tag::Sequence))?;
        let content = content.decode_as::<&OctetStringRef>()?.as_bytes();
        // "The time-stamp token MUST NOT contain any signatures other than the signature of the TSA" (RFC 3161 section 2.4.2).
        let [signer] = elements(*signers)?.try_into().map_err(|_| wrong(Tag::Set))?;
        let certificates = match tagged(&parts, 0) {
            Some(certificates) => elements(certificates)?.iter().map(Encode::to_der).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        Ok(Self {
            der: token.to_der()?,
            content,
            info: Info::read(content)?,
            certificates,
            signer: SignerHash::read(signer)?,
        })
    }
}

impl SignerHash {
    /// From the signed attributes of a `SignerInfo`, which must name the certificate (RFC 3161 section 2.4.2, RFC 5816 section 2.2.1).
    fn read(signer: AnyRef<'_>) -> Result<Self, der::Error> {
        let signed = tagged(&elements(signer)?, 0).ok_or_else(|| wrong(Tag::Set))?;
        for attribute in elements(signed)? {
            let [kind, values] = elements(attribute)?.try_into().map_err(|_| wrong(Tag::Sequence))?;
            let kind = kind.decode_as::<ObjectIdentifier>()?;
            if kind != SIGNING_CERTIFICATE && kind != SIGNING_CERTIFICATE_V2 {
                continue;
            }
            // SigningCertificate: a sequence of identifiers first, of which the first is the signer's.
            let first = |of: AnyRef<'_>| elements(of).map(|found| found.first().map(Encode::to_der));
            let descend = |bytes: Vec<u8>| match first(AnyRef::from_der(&bytes)?)? {
                Some(inner) => inner,
                None => Err(wrong(Tag::Sequence)),
            };
            let identifier = descend(descend(descend(values.to_der()?)?)?)?;
            let parts = elements(AnyRef::from_der(&identifier)?)?;
            return match (kind == SIGNING_CERTIFICATE, parts.as_slice()) {
                (true, [hash, ..]) => Ok(Self::Sha1(hash.decode_as::<&OctetStringRef>()?.as_bytes().to_vec())),
                // `hashAlgorithm` is left out where it is SHA-256.
                (false, [hash, ..]) if der::Tagged::tag(hash) == Tag::OctetString => {
                    Ok(Self::Sha256(hash.decode_as::<&OctetStringRef>()?.as_bytes().to_vec()))
                }
                (false, [algorithm, hash, ..]) if algorithm.decode_as::<Algorithm<'_>>()?.algorithm == SHA256 => {
                    Ok(Self::Sha256(hash.decode_as::<&OctetStringRef>()?.as_bytes().to_vec()))
                }
                (_, _) => Err(wrong(Tag::OctetString)),
            };
        }
        Err(wrong(Tag::Set))
    }
}

impl Info {
    fn read(bytes: &[u8]) -> Result<Self, der::Error> {
        let parts = elements(AnyRef::from_der(bytes)?)?;
        let [version, policy, imprint, serial, time, rest @ ..] = parts.as_slice() else {
            return Err(wrong(Tag::Sequence));
        };
        if version.decode_as::<u8>()? != 1 || der::Tagged::tag(serial) != Tag::Integer {
            return Err(wrong(Tag::Integer));
        }
        let imprint: Imprint<'_> = imprint.decode_as()?;
        let is_sha256 = imprint.algorithm.algorithm == SHA256;
        // Of what follows only the nonce is an integer: accuracy, ordering, the authority's name and extensions are not.
        let nonce = rest.iter().find(|part| der::Tagged::tag(*part) == Tag::Integer);
        Ok(Self {
            policy: policy.decode_as()?,
            imprint: is_sha256.then(|| imprint.hash.as_bytes().to_vec()),
            serial: serial.value().to_vec(),
            time: time_of(*time).ok_or_else(|| wrong(Tag::GeneralizedTime))?,
            nonce: nonce.map(|nonce| nonce.decode_as()).transpose()?,
        })
    }
}

/// `YYYYMMDDhhmmss[.s…]Z`. By hand, because `der` refuses fractions of a second, which section 2.4.2 allows.
fn time_of(time: AnyRef<'_>) -> Option<Timestamp> {
    if der::Tagged::tag(&time) != Tag::GeneralizedTime {
        return None;
    }
    let text = std::str::from_utf8(time.value()).ok()?.strip_suffix('Z')?;
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(whole, fraction)| (whole, Some(fraction)));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() != 14 || !digits(whole) || !fraction.is_none_or(digits) {
        return None;
    }
    let part = |from: usize, to: usize| whole.get(from..to).unwrap_or_default();
    let fraction = fraction.map(|fraction| format!(".{fraction}")).unwrap_or_default();
    Timestamp::parse(&format!(
        "{}-{}-{}T{}:{}:{}{fraction}Z",
        part(0, 4),
        part(4, 6),
        part(6, 8),
        part(8, 10),
        part(10, 12),
        part(12, 14)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_have_fractions_and_must_be_utc() {
        let time = |text: &str| time_of(AnyRef::new(Tag::GeneralizedTime, text.as_bytes()).unwrap());
        assert_eq!(time("20261121103314Z"), Timestamp::parse("2026-11-21T10:33:14Z"));
        assert_eq!(time("20261121103314.25Z"), Timestamp::parse("2026-11-21T10:33:14.25Z"));
        for not in
            ["20261121103314", "20261121103314.Z", "2026112110331Z", "20261321103314Z", "20261121103314+0100", "Z"]
        {
            assert!(time(not).is_none(), "{not}");
        }
    }

    #[test]
    fn a_request_asks_with_a_nonce_for_the_certificate() {
        let request = Request::new(b"x", [0xff; 16], Some("1.2.3.4")).unwrap();
        let read = TimeStampReq::from_der(request.der()).unwrap();
        assert_eq!(
            (read.nonce, read.certificates, read.imprint.hash.as_bytes()),
            (Some(u128::MAX), true, &sha256(b"x")[..])
        );
        assert!(matches!(Request::new(b"x", [1; 16], Some("no policy")), Err(RequestError::Policy(_))));
    }

    #[test]
    fn rubbish_is_refused_and_never_a_panic() {
        for rubbish in [
            &b""[..],
            b"\x30",
            b"\x30\x00",
            b"\x30\x03\x02\x01\x00",
            b"\x30\x80\x00\x00",
            b"<html>",
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert!(Response::read(rubbish).is_err(), "{rubbish:x?}");
        }
    }
}
