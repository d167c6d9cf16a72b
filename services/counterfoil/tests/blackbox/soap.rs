//! A SOAP client that says exactly what it is told to, and reads what comes back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use session_model::Timestamp;

use crate::program::{APPLICATION, Answer, Home, Program};

pub(crate) const SOAP11: &str = "http://schemas.xmlsoap.org/soap/envelope/";
pub(crate) const SOAP12: &str = "http://www.w3.org/2003/05/soap-envelope";
pub(crate) const OURS: &str = "urn:counterfoil:session:v1";
pub(crate) const WSSE: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd";
pub(crate) const WSU: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd";
const TOKEN: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0";
pub(crate) const SECRET: &str = "a secret of 32 random characters";
/// One that any application may make and throw away.
pub(crate) const CREATE: &str = "<CreateSession xmlns='urn:counterfoil:session:v1'/>";

/// A program with a consumer `billing` (an application) and `audit` (an auditor).
pub(crate) fn home() -> Home {
    let home = Home::new();
    let secret = home.folder.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let secret = secret.display().to_string();
    home.with("SOAP__PASSWORD_TEXT", "always")
        .with("SOAP__CONSUMERS__BILLING__SECRET_FILE", &secret)
        .with("SOAP__CONSUMERS__AUDIT__SECRET_FILE", &secret)
        .with("SOAP__CONSUMERS__AUDIT__ROLES", "[\"auditor\"]")
}

pub(crate) fn envelope(namespace: &str, header: &str, body: &str) -> String {
    let header = if header.is_empty() { String::new() } else { format!("<s:Header>{header}</s:Header>") };
    format!("<s:Envelope xmlns:s='{namespace}'>{header}<s:Body>{body}</s:Body></s:Envelope>")
}

pub(crate) fn media_type(namespace: &str) -> &'static str {
    if namespace == SOAP11 { "text/xml; charset=utf-8" } else { "application/soap+xml; charset=utf-8" }
}

/// Posts bytes with the application's key.
pub(crate) fn post(program: &Program, content_type: &str, body: &[u8]) -> Answer {
    let bearer = format!("Bearer {APPLICATION}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", content_type)];
    program.ask("POST", "/soap/v1", &headers, Some(body)).unwrap()
}

/// Posts bytes with no key.
pub(crate) fn post_bare(program: &Program, content_type: &str, body: &[u8]) -> Answer {
    program.ask("POST", "/soap/v1", &[("Content-Type", content_type)], Some(body)).unwrap()
}

/// Asks, in a version, with the application's key.
pub(crate) fn ask(program: &Program, namespace: &str, header: &str, body: &str) -> Answer {
    post(program, media_type(namespace), envelope(namespace, header, body).as_bytes())
}

/// The texts of all elements of this local name.
pub(crate) fn texts(answer: &Answer, name: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(&answer.text).unwrap_or_else(|failure| panic!("{failure}: {answer:?}"));
    let named = document.descendants().filter(|node| node.tag_name().name() == name);
    named.map(|node| node.text().unwrap_or_default().to_owned()).collect()
}

pub(crate) fn text(answer: &Answer, name: &str) -> String {
    texts(answer, name).into_iter().next().unwrap_or_else(|| panic!("no {name} in {answer:?}"))
}

/// The machine code of a fault, or the local part of its code where it has none.
pub(crate) fn fault(answer: &Answer) -> String {
    assert_eq!(answer.status, 500, "{answer:?}");
    assert_eq!(texts(answer, "Fault").len(), 1, "{answer:?}");
    for name in ["code", "faultcode", "Value"] {
        if let Some(code) = texts(answer, name).pop() {
            return code.rsplit(':').next().unwrap().to_owned();
        }
    }
    panic!("a fault without a code: {answer:?}")
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap())
}

pub(crate) fn shifted(seconds: i64) -> String {
    Timestamp::from_micros(now().as_micros() + seconds * 1_000_000).to_string()
}

/// The parts of a user name token.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) name: String,
    pub(crate) secret: String,
    pub(crate) nonce: Vec<u8>,
    pub(crate) created: String,
}

impl Token {
    pub(crate) fn of(name: &str) -> Self {
        let mut nonce = vec![0; 16];
        openssl::rand::rand_bytes(&mut nonce).unwrap();
        Self { name: name.to_owned(), secret: SECRET.to_owned(), nonce, created: shifted(0) }
    }

    pub(crate) fn digest(&self) -> String {
        let digest = sealing::password_digest(&self.nonce, self.created.as_bytes(), self.secret.as_bytes());
        self.element("PasswordDigest", &STANDARD.encode(digest), &STANDARD.encode(&self.nonce))
    }

    pub(crate) fn plain(&self) -> String {
        self.element("PasswordText", &self.secret, &STANDARD.encode(&self.nonce))
    }

    pub(crate) fn element(&self, kind: &str, password: &str, nonce: &str) -> String {
        format!(
            "<w:UsernameToken xmlns:w='{WSSE}' xmlns:u='{WSU}'><w:Username>{}</w:Username><w:Password \
             Type='{TOKEN}#{kind}'>{password}</w:Password><w:Nonce>{nonce}</w:Nonce><u:Created>{}</u:Created>\
             </w:UsernameToken>",
            self.name, self.created
        )
    }
}

/// A Security header.
pub(crate) fn security(inside: &str) -> String {
    format!("<w:Security xmlns:w='{WSSE}'>{inside}</w:Security>")
}

/// Sends bytes as they are over a new connection and reads until the other side closes.
pub(crate) fn raw(program: &Program, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(program.base.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A key and a certificate for it, signed by another pair, or by itself.
pub(crate) struct Identity {
    pub(crate) key: openssl::pkey::PKey<openssl::pkey::Private>,
    pub(crate) certificate: openssl::x509::X509,
}

impl Identity {
    pub(crate) fn new(name: &str, issuer: Option<&Self>) -> Self {
        use openssl::asn1::Asn1Time;
        use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
        let group = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1).unwrap();
        let key = openssl::pkey::PKey::from_ec_key(openssl::ec::EcKey::generate(&group).unwrap()).unwrap();
        let mut subject = openssl::x509::X509NameBuilder::new().unwrap();
        subject.append_entry_by_text("CN", name).unwrap();
        let subject = subject.build();
        let mut builder = openssl::x509::X509::builder().unwrap();
        let mut serial = [0; 8];
        openssl::rand::rand_bytes(&mut serial).unwrap();
        let serial = openssl::bn::BigNum::from_slice(&serial).unwrap().to_asn1_integer().unwrap();
        builder.set_version(2).unwrap();
        builder.set_serial_number(&serial).unwrap();
        builder.set_subject_name(&subject).unwrap();
        builder.set_issuer_name(issuer.map_or(&*subject, |issuer| issuer.certificate.subject_name())).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
        builder.set_pubkey(&key).unwrap();
        if issuer.is_none() {
            builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
        } else {
            let names =
                SubjectAlternativeName::new().ip("127.0.0.1").build(&builder.x509v3_context(None, None)).unwrap();
            builder.append_extension(names).unwrap();
        }
        builder.sign(issuer.map_or(&key, |issuer| &issuer.key), openssl::hash::MessageDigest::sha256()).unwrap();
        Self { certificate: builder.build(), key }
    }

    pub(crate) fn fingerprint(&self) -> String {
        sealing::sha256(&self.certificate.to_der().unwrap()).to_string()
    }
}

/// Sends a request over TLS, trusting a root, with a certificate of its own or without; the answer, or nothing if there was no
/// connection.
pub(crate) fn over_tls(program: &Program, root: &Identity, own: Option<&Identity>, request: &str) -> Option<String> {
    let mut connector = openssl::ssl::SslConnector::builder(openssl::ssl::SslMethod::tls()).unwrap();
    connector.cert_store_mut().add_cert(root.certificate.clone()).unwrap();
    if let Some(own) = own {
        connector.set_certificate(&own.certificate).unwrap();
        connector.set_private_key(&own.key).unwrap();
    }
    let stream = TcpStream::connect(program.base.strip_prefix("https://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut stream = connector.build().connect("127.0.0.1", stream).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    // Some servers close without saying so first; and a refused certificate shows only here with TLS 1.3.
    let _closed = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    (!answer.is_empty()).then_some(answer)
}
