//! The SOAP endpoint: its configuration, its consumers and their secrets, where its nonces are remembered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use access::Keyholder;
use api_soap::{Certificates, Consumer, Consumers, PasswordText, SchemaLocation, wsdl};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Subcommand, ValueEnum};
use schemars::JsonSchema;
use sealing::{Keyring, SignerCertificate, sha256};
use serde::{Deserialize, Serialize};
use session_model::{Digest, Policy, RealmName, Role, TreeSize};
use tracing::warn;
use url::Url;
use zeroize::Zeroizing;

use crate::config::{Config, Realm};
use crate::key_files::KeyFiles;

type Failure = Box<dyn Error + Send + Sync>;

/// The SOAP endpoint, `/soap/v1`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Soap {
    /// URL of the endpoint as its clients reach it, for the WSDL: for instance `https://sessions.example.com/soap/v1`. Default: the
    /// address the service listens on.
    pub public_url: Option<String>,
    /// Where a consumer's secret may come in clear: `tls_only`, or `always` where TLS ends in a proxy. Default `tls_only`.
    pub password_text: TextWord,
    /// Who may ask with a WS-Security user name and secret, by that name. Default: nobody.
    pub consumers: BTreeMap<String, ConsumerConfig>,
}

/// Where a secret may come in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum TextWord {
    TlsOnly,
    Always,
}

impl From<TextWord> for PasswordText {
    fn from(word: TextWord) -> Self {
        match word {
            TextWord::TlsOnly => Self::TlsOnly,
            TextWord::Always => Self::Always,
        }
    }
}

/// Who may ask with a user name and a secret.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsumerConfig {
    /// File that holds the secret: as it is, or sealed by `counterfoil soap seal`. At least 16 random bytes, because a digest can
    /// be guessed at offline by whoever sees it. Default: none, it has certificates only.
    pub secret_file: Option<PathBuf>,
    /// SHA-256, in hexadecimal, of the certificates that are its own (DER): it signs SOAP messages with their keys, and where
    /// `server.tls.client_ca_file` asks for client certificates they open SOAP and REST. Default: none.
    #[serde(default)]
    pub certificates_sha256: Vec<String>,
    /// The same certificates, or others of its own, as PEM files of one each: then it may also name them in a signature (by issuer and
    /// serial number, or key identifier) instead of sending them. Default: none.
    #[serde(default)]
    pub certificate_files: Vec<PathBuf>,
    /// Realm it belongs to. Default `default`.
    #[serde(default = "default_realm")]
    pub realm: String,
    /// What it may do. Default `["application"]`.
    #[serde(default = "default_roles")]
    pub roles: Vec<ConsumerRole>,
}

/// A role of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum ConsumerRole {
    Application,
    Auditor,
}

fn default_realm() -> String {
    "default".to_owned()
}

fn default_roles() -> Vec<ConsumerRole> {
    vec![ConsumerRole::Application]
}

impl From<ConsumerRole> for Role {
    fn from(role: ConsumerRole) -> Self {
        match role {
            ConsumerRole::Application => Self::Application,
            ConsumerRole::Auditor => Self::Auditor,
        }
    }
}

impl Default for Soap {
    fn default() -> Self {
        Self { public_url: None, password_text: TextWord::TlsOnly, consumers: BTreeMap::new() }
    }
}

impl Soap {
    /// Whether it can be: the bad key and why, if not.
    pub(crate) fn check(&self, realms: &BTreeMap<String, Realm>) -> Result<(), (String, String)> {
        let is_http = |url: &Url| matches!(url.scheme(), "http" | "https") && url.host().is_some();
        if let Some(url) = &self.public_url
            && !Url::parse(url).is_ok_and(|url| is_http(&url) && url.query().is_none() && url.fragment().is_none())
        {
            let why = "must be an http or https URL without query, such as https://sessions.example.com/soap/v1";
            return Err(("soap.public_url".to_owned(), why.to_owned()));
        }
        for (name, consumer) in &self.consumers {
            let bad = |why: &str| Err((format!("soap.consumers.{name}"), why.to_owned()));
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            // The name stands in entries: it must be able to be a word, and is no person's.
            if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
                return bad("a name is 1 to 63 of a-z, A-Z, 0-9, '-', '_' and '.'");
            }
            if !realms.contains_key(&consumer.realm) {
                return bad(&format!("there is no realm {}", consumer.realm));
            }
            let certified = !consumer.certificates_sha256.is_empty() || !consumer.certificate_files.is_empty();
            if consumer.secret_file.is_none() && !certified {
                return bad("has no secret_file, certificates_sha256 or certificate_files: it could never get in");
            }
            if consumer.certificates_sha256.iter().any(|fingerprint| fingerprint.parse::<Digest>().is_err()) {
                return bad("certificates_sha256 must be 64 lower-case hexadecimal digits each");
            }
            if consumer.roles.is_empty() {
                return bad("roles must not be empty");
            }
        }
        Ok(())
    }
}

/// Who may ask, by which means.
#[derive(Default)]
pub(crate) struct KnownConsumers {
    /// By name and secret.
    pub by_name: Consumers,
    /// By certificate.
    pub by_certificate: HashMap<Digest, Arc<Keyholder>>,
    /// Certificates that are known by more than their digest.
    pub certificates: Certificates,
}

/// Reads the consumers and their secrets.
///
/// # Errors
/// If a secret or certificate cannot be read or opened, or two consumers have one certificate.
pub(crate) fn consumers(
    config: &Config,
    keyring: &Keyring,
    policies: &HashMap<RealmName, Policy>,
) -> Result<KnownConsumers, Failure> {
    let mut known = KnownConsumers::default();
    let (mut by_name, mut certificates) = (HashMap::new(), Vec::new());
    for (name, consumer) in &config.soap.consumers {
        let realm: RealmName = consumer.realm.parse()?;
        let rate = policies.get(&realm).map_or(0, |policy| policy.requests_per_second);
        let roles = consumer.roles.iter().copied().map(Role::from).collect();
        let holder = Arc::new(Keyholder::new(format!("consumer:{name}"), realm, roles, rate));
        if let Some(file) = &consumer.secret_file {
            let secret = read_secret(name, file, keyring)?;
            by_name.insert(name.clone(), Consumer::new(Arc::clone(&holder), secret));
        }
        let mut fingerprints = HashSet::new();
        for fingerprint in &consumer.certificates_sha256 {
            fingerprints.insert(fingerprint.parse::<Digest>()?);
        }
        for file in &consumer.certificate_files {
            let at =
                |failure: &dyn Error| format!("soap.consumers.{name}.certificate_files: {}: {failure}", file.display());
            let pem = std::fs::read(file).map_err(|failure| at(&failure))?;
            let certificate = SignerCertificate::from_pem(&pem).map_err(|failure| at(&failure))?;
            fingerprints.insert(sha256(&certificate.to_der()?));
            certificates.push(certificate);
        }
        for fingerprint in fingerprints {
            if known.by_certificate.insert(fingerprint, Arc::clone(&holder)).is_some() {
                return Err(format!("soap.consumers.{name}: another consumer has the certificate {fingerprint}").into());
            }
        }
    }
    known.certificates = Certificates::new(&certificates)?;
    known.by_name = Consumers::new(by_name);
    Ok(known)
}

const SEALED: &str = "sealed:";

fn read_secret(name: &str, file: &Path, keyring: &Keyring) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let at = |failure: &dyn Error| format!("soap.consumers.{name}.secret_file: {}: {failure}", file.display());
    let text = Zeroizing::new(std::fs::read_to_string(file).map_err(|failure| at(&failure))?);
    let text = text.trim_end_matches(['\r', '\n']);
    let secret = match text.strip_prefix(SEALED) {
        Some(sealed) => {
            let sealed = STANDARD.decode(sealed.trim()).map_err(|failure| at(&failure))?;
            Zeroizing::new(keyring.open_answer(&place(name), &sealed).map_err(|failure| at(&failure))?)
        }
        None => {
            let mode = std::fs::metadata(file).map_err(|failure| at(&failure))?.permissions().mode();
            if mode & 0o007 != 0 {
                warn!(consumer = name, "the consumer's secret can be read by everybody on this machine");
            }
            Zeroizing::new(text.as_bytes().to_vec())
        }
    };
    if secret.is_empty() {
        return Err(at(&io::Error::other("holds no secret")).into());
    }
    if secret.len() < 16 {
        warn!(consumer = name, "the consumer's secret is shorter than 16 bytes: a digest of it can be guessed at");
    }
    Ok(secret)
}

/// What a sealed secret is bound to: it opens for its consumer only.
fn place(name: &str) -> Digest {
    sha256(format!("counterfoil soap consumer secret: {name}").as_bytes())
}

/// What may be done for SOAP consumers.
#[derive(Debug, Subcommand)]
pub(crate) enum SoapCommand {
    /// Seals a consumer's secret, read from standard input, under the service's keys; prints what to keep as its secret_file
    Seal {
        /// Name of the consumer
        consumer: String,
    },
}

/// Runs it.
///
/// # Errors
/// If the keys are not there, or there is nothing to seal.
pub(crate) fn run_soap_command(config: &Config, command: SoapCommand) -> Result<(), Failure> {
    let SoapCommand::Seal { consumer } = command;
    let mut secret = Zeroizing::new(String::new());
    io::stdin().take(4_096).read_to_string(&mut secret)?;
    let secret = secret.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err("give the secret on standard input".into());
    }
    // As beside a log with entries: the keys must be there, and are not made here.
    let keys = KeyFiles::open(&config.keys_dir(), TreeSize(1))?;
    let sealed = keys.keyring.seal_answer(&place(&consumer), secret.as_bytes())?;
    writeln!(io::stdout(), "{SEALED}{}", STANDARD.encode(sealed))?;
    Ok(())
}

/// Which ports the description has.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SoapVersion {
    /// SOAP 1.1 only, for toolkits that fail on SOAP 1.2
    #[value(name = "1.1")]
    Only11,
    /// SOAP 1.1 and 1.2
    #[value(name = "both")]
    Both,
}

/// The description as files: the schema is `counterfoil.xsd` beside it.
pub(crate) fn description(config: &Config, soap: SoapVersion) -> String {
    let soap = match soap {
        SoapVersion::Only11 => api_soap::Soap::Only11,
        SoapVersion::Both => api_soap::Soap::Both,
    };
    let location = config.soap.public_url.clone();
    wsdl(soap, SchemaLocation::Beside, &location.unwrap_or_else(|| "http://localhost:8080/soap/v1".to_owned()))
}
