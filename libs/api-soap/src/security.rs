//! WS-Security: UsernameToken (in clear, or as a digest), Timestamp, and the certificate of who signed. Who asks, and when the
//! message was made.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use access::Keyholder;
use api_http::Gate;
use base64::Engine;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use nonce_store::{Claimed, NonceError, NonceStore};
use roxmltree::{Node, NodeId};
use sealing::{password_digest, same, sha256};
use session_model::{Digest, Seconds, Timestamp};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::fault::{Fault, SecurityCode};
use crate::reader::{date_time, text_of};
use crate::signature::{self, Certificates, Parts, Signature, Signed};
use crate::writer::Xml;

/// WS-Security 1.0: the elements.
pub(crate) const SECEXT: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd";
/// WS-Security 1.0: ids and times.
pub(crate) const UTILITY: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd";
const TEXT: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0#PasswordText";
const DIGEST: &str =
    "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0#PasswordDigest";
pub(crate) const BASE64: &str =
    "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0#Base64Binary";

/// How old a message may be, and how far ahead of our clock: what WSS4J ships as its defaults.
const AGE: Seconds = Seconds(300);
const AHEAD: Seconds = Seconds(60);
/// Bytes of a nonce. The profile asks for 16 at least of those who make one; toolkits make 8 to 32.
const NONCE: std::ops::RangeInclusive<usize> = 8..=128;

/// Reads base64 as leniently as toolkits write it. That one nonce has many spellings then does no harm: what is remembered is
/// what it decodes to.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Whether a consumer's secret may come in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordText {
    /// Over TLS only. Default.
    TlsOnly,
    /// Always: where TLS ends in a proxy before the service.
    Always,
}

/// Who may ask with a user name and a secret, under its name. The secret is the consumer's own, made for this; it is no user's password.
pub struct Consumer {
    holder: Arc<Keyholder>,
    secret: Zeroizing<Vec<u8>>,
}

impl Consumer {
    /// A consumer.
    pub fn new(holder: Arc<Keyholder>, secret: Zeroizing<Vec<u8>>) -> Self {
        Self { holder, secret }
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Consumer({})", self.holder.id)
    }
}

/// The consumers, by name.
#[derive(Debug, Default)]
pub struct Consumers(HashMap<String, Consumer>);

impl Consumers {
    /// These consumers.
    pub fn new(consumers: HashMap<String, Consumer>) -> Self {
        Self(consumers)
    }
}

/// What a Security header says.
#[derive(Debug)]
pub(crate) struct Security<'a, 'text> {
    block: Node<'a, 'text>,
    username: Option<UsernameToken>,
    timestamp: Option<Stamp<'a, 'text>>,
    token: Option<Node<'a, 'text>>,
    signature: Option<Signature<'a, 'text>>,
}

#[derive(Debug)]
struct Stamp<'a, 'text> {
    node: Node<'a, 'text>,
    created: Timestamp,
    expires: Option<Timestamp>,
}

struct UsernameToken {
    name: String,
    password: Password,
    nonce: Option<Vec<u8>>,
    /// As it is written: the digest is over the text.
    created: Option<(String, Timestamp)>,
}

impl fmt::Debug for UsernameToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UsernameToken(…)")
    }
}

enum Password {
    Text(Zeroizing<String>),
    Digest(Vec<u8>),
}

pub(crate) fn is_security(block: Node<'_, '_>) -> bool {
    block.has_tag_name((SECEXT, "Security"))
}

fn invalid(what: &str) -> Fault {
    Fault::security(SecurityCode::InvalidSecurity, what)
}

fn invalid_token() -> Fault {
    Fault::security(SecurityCode::InvalidSecurityToken, "the security token is malformed")
}

/// The one answer to whoever cannot be authenticated, for whatever reason: it tells nothing of who there is.
pub(crate) fn failed() -> Fault {
    Fault::security(SecurityCode::FailedAuthentication, "the security token could not be authenticated or authorized")
}

/// Reads the Security header, if there is one.
///
/// # Errors
/// A [`Fault`] if it is malformed, stands twice, or holds what we cannot check: what is not checked must not pass for checked.
pub(crate) fn read<'a, 'text>(headers: &[Node<'a, 'text>]) -> Result<Option<Security<'a, 'text>>, Fault> {
    let mut blocks = headers.iter().copied().filter(|block| is_security(*block));
    let Some(block) = blocks.next() else { return Ok(None) };
    if blocks.next().is_some() {
        return Err(invalid("there are two Security headers for one role"));
    }
    let mut security = Security { block, username: None, timestamp: None, token: None, signature: None };
    for token in block.children().filter(Node::is_element) {
        let name = token.tag_name();
        match (name.namespace(), name.name()) {
            (Some(SECEXT), "UsernameToken") if security.username.is_none() => {
                security.username = Some(username_token(token)?);
            }
            (Some(UTILITY), "Timestamp") if security.timestamp.is_none() => security.timestamp = Some(stamp(token)?),
            (Some(SECEXT), "UsernameToken") => return Err(invalid("there are two user name tokens")),
            (Some(UTILITY), "Timestamp") => return Err(invalid("there are two time stamps")),
            _ if signature::is_token(token) && security.token.is_none() => {
                signature::check_token(token)?;
                security.token = Some(token);
            }
            _ if signature::is_signature(token) && security.signature.is_none() => {
                security.signature = Some(Signature::read(token)?);
            }
            _ if signature::is_token(token) || signature::is_signature(token) => {
                return Err(invalid("there are two signatures, or two tokens to be signed with"));
            }
            _ => {
                let what = "the Security header holds a token or an encryption that is not supported";
                return Err(Fault::security(SecurityCode::UnsupportedSecurityToken, what));
            }
        }
    }
    match (&security.username, &security.signature, &security.token, &security.timestamp) {
        (Some(_), Some(_), _, _) => Err(invalid("a message has one credential: a user name token or a signature")),
        (_, None, Some(_), _) => Err(invalid("a certificate without a signature is nobody's")),
        (_, Some(_), _, None) => Err(invalid("a signed message must have a time stamp, and that must be signed, too")),
        _ => Ok(Some(security)),
    }
}

/// The one child of this name; an error if it stands twice.
fn child<'a, 'text>(of: Node<'a, 'text>, namespace: &str, name: &str) -> Result<Option<Node<'a, 'text>>, Fault> {
    let mut found = of.children().filter(|child| child.has_tag_name((namespace, name)));
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(invalid_token()),
        (found, None) => Ok(found),
    }
}

fn text(node: Node<'_, '_>) -> Result<String, Fault> {
    text_of(node).ok_or_else(invalid_token)
}

fn created(of: Node<'_, '_>) -> Result<Option<(String, Timestamp)>, Fault> {
    let Some(node) = child(of, UTILITY, "Created")? else { return Ok(None) };
    let literal = text(node)?;
    let time = date_time(literal.trim()).ok_or_else(invalid_token)?;
    Ok(Some((literal, time)))
}

fn username_token(token: Node<'_, '_>) -> Result<UsernameToken, Fault> {
    let name = child(token, SECEXT, "Username")?.map(text).transpose()?.unwrap_or_default();
    // A token without a password authenticates nobody.
    let password = child(token, SECEXT, "Password")?.ok_or_else(invalid_token)?;
    let nonce = match child(token, SECEXT, "Nonce")? {
        None => None,
        Some(node) => {
            if node.attribute("EncodingType").is_some_and(|encoding| encoding != BASE64) {
                return Err(invalid_token());
            }
            Some(decoded(&text(node)?).filter(|nonce| NONCE.contains(&nonce.len())).ok_or_else(invalid_token)?)
        }
    };
    let created = created(token)?;
    let password = match password.attribute("Type").unwrap_or(TEXT) {
        TEXT => Password::Text(Zeroizing::new(text(password)?)),
        DIGEST if nonce.is_some() && created.is_some() => {
            Password::Digest(decoded(&text(password)?).ok_or_else(invalid_token)?)
        }
        DIGEST => return Err(invalid_token()),
        _ => {
            let what = "the type of the password is not supported";
            return Err(Fault::security(SecurityCode::UnsupportedSecurityToken, what));
        }
    };
    let name = name.trim().to_owned();
    if name.is_empty() {
        return Err(invalid_token());
    }
    Ok(UsernameToken { name, password, nonce, created })
}

/// The bytes of base64, however it is broken into lines.
pub(crate) fn decoded(base64: &str) -> Option<Vec<u8>> {
    let bare: String = base64.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    LENIENT.decode(bare).ok()
}

fn stamp<'a, 'text>(token: Node<'a, 'text>) -> Result<Stamp<'a, 'text>, Fault> {
    let (_, created) = created(token)?.ok_or_else(|| invalid("a time stamp must say when it was created"))?;
    let expires = match child(token, UTILITY, "Expires")? {
        None => None,
        Some(node) => Some(date_time(text(node)?.trim()).ok_or_else(invalid_token)?),
    };
    if expires.is_some_and(|expires| expires < created) {
        return Err(invalid("the time stamp expires before it is created"));
    }
    Ok(Stamp { node: token, created, expires })
}

fn is_fresh(created: Timestamp, now: Timestamp) -> bool {
    created <= now.plus(AHEAD) && now < created.plus(AGE)
}

impl<'a, 'text> Security<'a, 'text> {
    pub(crate) const fn has_timestamp(&self) -> bool {
        self.timestamp.is_some()
    }

    pub(crate) const fn has_credential(&self) -> bool {
        self.username.is_some() || self.signature.is_some()
    }

    /// Refuses a message whose time stamp is too old, too far ahead, or expired.
    ///
    /// # Errors
    /// A [`Fault`].
    pub(crate) fn check_time(&self, now: Timestamp) -> Result<(), Fault> {
        match &self.timestamp {
            Some(stamp) if !is_fresh(stamp.created, now) || stamp.expires.is_some_and(|expires| expires <= now) => {
                let what = "the message's time stamp is not of now: check the clock of the machine that sent it";
                Err(Fault::security(SecurityCode::MessageExpired, what))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Who asks. What must not come twice is claimed last, when the credential is known to be good: strangers cannot fill the
    /// memory of nonces.
    ///
    /// # Errors
    /// The one [`failed`] for whatever is wrong with the credential; another fault if it cannot be found out.
    pub(crate) async fn authenticate(&self, body: Node<'a, 'text>, known: &Known<'_>) -> Result<Who, Refused> {
        match (&self.signature, &self.timestamp, &self.username) {
            (Some(_), Some(stamp), _) => {
                let holder_of = |fingerprint: &Digest| known.gate.holder_of_certificate(fingerprint);
                let found = self.verify(body, known.certificates, holder_of, known.now);
                let Signed { holder, covered, identity } = found.map_err(Refused::because)?;
                known.claim(&identity, stamp.created, "soap_replayed_signature").await?;
                Ok(Who { holder, covered: Some(covered) })
            }
            (None, _, Some(token)) => token.authenticate(known).await,
            (Some(_), None, _) | (None, _, None) => Err(Refused::because("soap_no_credential")),
        }
    }

    /// Verifies the signature. That the message was not there before is not looked at.
    ///
    /// # Errors
    /// The real reason why it is not good: never for the client.
    pub(crate) fn verify(
        &self,
        body: Node<'a, 'text>,
        certificates: &Certificates,
        holder_of: impl FnOnce(&Digest) -> Option<Arc<Keyholder>>,
        now: Timestamp,
    ) -> Result<Signed, &'static str> {
        let (Some(signature), Some(stamp)) = (&self.signature, &self.timestamp) else {
            return Err("soap_unsigned");
        };
        let header = self.block.parent().ok_or("soap_unsigned")?;
        let parts = Parts { header, security: self.block, timestamp: stamp.node, token: self.token, body };
        signature.verify(&parts, certificates, holder_of, now)
    }
}

impl UsernameToken {
    async fn authenticate(&self, known: &Known<'_>) -> Result<Who, Refused> {
        if matches!(self.password, Password::Text(_)) && !known.text_allowed {
            let what = "a password in clear is accepted over TLS only";
            let fault = Fault::security(SecurityCode::UnsupportedSecurityToken, what);
            return Err(Refused { fault, reason: "soap_text_without_tls" });
        }
        let consumer = known.consumers.0.get(&self.name);
        // Nobody's secret takes as long to be wrong as somebody's.
        let secret: &[u8] = consumer.map_or(b"nobody's secret, as long as one", |consumer| &consumer.secret);
        let matches = match &self.password {
            Password::Text(given) => same(&sha256(given.as_bytes()).0, &sha256(secret).0),
            Password::Digest(given) => {
                let (literal, _) = self.created.as_ref().ok_or_else(|| Refused::because("soap_no_created"))?;
                let expected = password_digest(self.nonce.as_deref().unwrap_or_default(), literal.as_bytes(), secret);
                same(given, &expected)
            }
        };
        let Some(consumer) = consumer else { return Err(Refused::because("soap_unknown_consumer")) };
        if !matches {
            return Err(Refused::because("soap_wrong_secret"));
        }
        let created = self.created.as_ref().map(|(_, created)| *created);
        if created.is_some_and(|created| !is_fresh(created, known.now)) {
            return Err(Refused::because("soap_stale_token"));
        }
        if let Some(nonce) = &self.nonce {
            let key = sha256(&[consumer.holder.id.as_bytes(), &[0], nonce].concat());
            known.claim(&key, created.unwrap_or(known.now), "soap_replayed_nonce").await?;
        }
        Ok(Who { holder: Arc::clone(&consumer.holder), covered: None })
    }
}

/// What a credential is checked against.
pub(crate) struct Known<'k> {
    pub(crate) consumers: &'k Consumers,
    /// Certificates that a signature may name.
    pub(crate) certificates: &'k Certificates,
    /// Knows whose certificate is whose.
    pub(crate) gate: &'k Gate,
    pub(crate) nonces: &'k dyn NonceStore,
    pub(crate) now: Timestamp,
    /// Whether a secret may come in clear over this connection.
    pub(crate) text_allowed: bool,
}

impl Known<'_> {
    /// Claims what a message may hold once, for as long as a message made then is fresh.
    async fn claim(&self, key: &Digest, created: Timestamp, again: &'static str) -> Result<(), Refused> {
        // What came before the store's memory began may have come before. Toolkits cut the time to seconds.
        if created.plus(Seconds(1)) <= self.nonces.since() {
            return Err(Refused::because("soap_older_than_memory"));
        }
        match self.nonces.claim(key, self.now, created.plus(AGE).plus(AHEAD)).await {
            Ok(Claimed::First) => Ok(()),
            Ok(Claimed::Again) => Err(Refused::because(again)),
            Err(failure @ (NonceError::Full | NonceError::Unavailable(_))) => {
                warn!(failure = &failure as &dyn std::error::Error, "no nonce can be remembered: refusing messages");
                let problem = api_http::Problem::new(api_http::ProblemCode::Overloaded, "try again shortly");
                Err(Refused { fault: problem.into(), reason: "soap_nonces_unavailable" })
            }
        }
    }
}

/// Who sent a message.
#[derive(Debug)]
pub(crate) struct Who {
    pub(crate) holder: Arc<Keyholder>,
    /// What of the message is signed, if it is.
    covered: Option<Vec<NodeId>>,
}

impl Who {
    /// Whether the sender vouches for a part: for each, if no part is signed; for what is signed, if the Body is.
    pub(crate) fn vouches_for(&self, part: NodeId) -> bool {
        self.covered.as_ref().is_none_or(|covered| covered.contains(&part))
    }
}

/// A refusal, and its real reason: for the counters and the log of the service, never for the client.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) fault: Fault,
    pub(crate) reason: &'static str,
}

impl Refused {
    pub(crate) fn because(reason: &'static str) -> Self {
        info!(reason, "a SOAP message was refused");
        Self { fault: failed(), reason }
    }
}

/// Writes the time stamp of an answer: without mustUnderstand, which there are clients that refuse.
pub(crate) fn write_timestamp(xml: &mut Xml, now: Timestamp) {
    xml.raw("<wsse:Security xmlns:wsse=\"").raw(SECEXT).raw("\" xmlns:wsu=\"").raw(UTILITY).raw("\">");
    xml.raw("<wsu:Timestamp>").plain("wsu:Created", millis(now)).plain("wsu:Expires", millis(now.plus(AGE)));
    xml.raw("</wsu:Timestamp></wsse:Security>");
}

/// A time as XML readers of every age read it: UTC, three decimals.
pub(crate) fn millis(time: Timestamp) -> String {
    let mut text = time.to_string();
    if text.len() == "0000-00-00T00:00:00.000000Z".len() {
        text.truncate("0000-00-00T00:00:00.000".len());
        text.push('Z');
    }
    text
}
