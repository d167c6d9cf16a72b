//! The HTTP client for what the service asks of others: time stamps, object stores, witnesses, webhooks; and for the command line.
//!
//! Blocking, because whoever uses it asks rarely and one thing at a time, from a thread of its own. Bounded in time and in the bytes it
//! takes in. Follows no redirect: what is sent is signed or secret, and goes where it was configured to go or nowhere. TLS by OpenSSL, against
//! the system's authorities or one file of them. Reads nothing from the environment, proxies included.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use openssl::x509::X509;
use ureq::http::{HeaderMap, Request};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The file of certificate authorities cannot be used.
    #[error("{path} holds no certificates that can be used")]
    Authorities {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The request cannot be made: a malformed URL or header.
    #[error("not a request that can be sent")]
    Malformed(#[source] ureq::http::Error),
    /// The other side cannot be reached, or did not answer in time.
    #[error("no answer")]
    NoAnswer(#[source] Box<ureq::Error>),
    /// The answer broke off.
    #[error("the answer broke off")]
    Broken(#[source] std::io::Error),
    /// The answer is longer than it may be.
    #[error("the answer has more than {0} bytes")]
    TooLong(u64),
}

/// An answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, whole.
    pub body: Vec<u8>,
}

impl Answer {
    /// The beginning of the body as one line of text, to be shown to an operator.
    pub fn excerpt(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

/// The client.
#[derive(Debug, Clone)]
pub struct HttpClient {
    agent: ureq::Agent,
}

impl HttpClient {
    /// Bytes of an answer that are taken in at most.
    pub const MAX_ANSWER: u64 = 4 << 20;

    /// A client. `timeout` bounds a request from its beginning to the last byte of its answer; `authorities` is a PEM file of those to trust
    /// instead of the system's.
    ///
    /// # Errors
    /// [`HttpError::Authorities`].
    pub fn new(timeout: Duration, authorities: Option<&Path>) -> Result<Self, HttpError> {
        Self::with(authorities, |config| config.timeout_global(Some(timeout)))
    }

    /// A client whose answers may take for ever to read, but not to begin.
    ///
    /// # Errors
    /// [`HttpError::Authorities`].
    pub fn streaming(begin: Duration, authorities: Option<&Path>) -> Result<Self, HttpError> {
        Self::with(authorities, |config| config.timeout_connect(Some(begin)).timeout_recv_response(Some(begin)))
    }

    fn with(authorities: Option<&Path>, timeouts: impl FnOnce(Builder) -> Builder) -> Result<Self, HttpError> {
        let roots = match authorities {
            None => RootCerts::PlatformVerifier,
            Some(path) => roots(path)?,
        };
        let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(roots).build();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("counterfoil/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls);
        Ok(Self { agent: timeouts(config).build().new_agent() })
    }

    /// Sends a request and waits for the whole answer.
    ///
    /// # Errors
    /// [`HttpError`]; an answer of any status is none.
    pub fn send(&self, method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, HttpError> {
        let (status, headers, reader) = self.open(method, url, headers, body)?;
        let mut body = Vec::new();
        reader.take(Self::MAX_ANSWER + 1).read_to_end(&mut body).map_err(HttpError::Broken)?;
        if body.len() as u64 > Self::MAX_ANSWER {
            return Err(HttpError::TooLong(Self::MAX_ANSWER));
        }
        Ok(Answer { status, headers, body })
    }

    /// Sends a request; answers status, headers, and the body to be read.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn open(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(u16, HeaderMap, impl Read + use<>), HttpError> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let failed = |failure| HttpError::NoAnswer(Box::new(failure));
        // A body of no bytes on GET would be sent as one, and some servers refuse that.
        let answer = if body.is_empty() && matches!(method, "GET" | "HEAD" | "DELETE") {
            self.agent.run(request.body(()).map_err(HttpError::Malformed)?).map_err(failed)?
        } else {
            self.agent.run(request.body(body).map_err(HttpError::Malformed)?).map_err(failed)?
        };
        let (parts, body) = answer.into_parts();
        Ok((parts.status.as_u16(), parts.headers, body.into_reader()))
    }
}

type Builder = ureq::config::ConfigBuilder<ureq::typestate::AgentScope>;

fn roots(path: &Path) -> Result<RootCerts, HttpError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| HttpError::Authorities {
        path: path.display().to_string(),
        source,
    };
    let pem = std::fs::read(path).map_err(|failure| failed(failure.into()))?;
    let found = X509::stack_from_pem(&pem).map_err(|failure| failed(failure.into()))?;
    if found.is_empty() {
        return Err(failed("it is empty".into()));
    }
    let mut roots = Vec::with_capacity(found.len());
    for certificate in found {
        roots.push(Certificate::from_der(&certificate.to_der().map_err(|failure| failed(failure.into()))?).to_owned());
    }
    Ok(RootCerts::new_with_certs(&roots))
}
