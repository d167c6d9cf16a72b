//! The provider, asked: for its metadata and keys, and whom a code stands for.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use form_urlencoded::byte_serialize;
use http_client::{Answer, HttpClient, HttpError};
use parking_lot::Mutex;
use sealing::sha256;
use serde::Deserialize;
use session_model::Timestamp;
use tokio::sync::Semaphore;
use tracing::warn;
use zeroize::Zeroizing;

use crate::answer::{AuthorizationAnswer, Brought};
use crate::id_token::{Expected, IdToken, TokenFault, check};
use crate::keys::KeySet;
use crate::metadata::{Metadata, MetadataFault};

/// How long metadata and keys are taken for fresh. A key that is new is looked for as soon as a token names it.
const FRESH: Duration = Duration::from_secs(3_600);
/// Between two readings of the keys because of a token that names an unknown one: whoever makes such tokens up makes us ask no more often.
const AGAIN: Duration = Duration::from_secs(30);
/// A request to the provider, from its beginning to its end.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests to the provider at a time. Whoever is not signed in yet can cause them.
const AT_ONCE: usize = 8;

/// A client's secret. Shown to nobody.
#[derive(Clone)]
pub struct ClientSecret(Zeroizing<String>);

impl ClientSecret {
    /// A secret.
    pub fn new(secret: String) -> Self {
        Self(Zeroizing::new(secret))
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret(…)")
    }
}

/// Which provider, and who we are to it.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Its issuer: `https`, or `http` within the machine, without a query. Its metadata is below `/.well-known/openid-configuration` there.
    pub issuer: String,
    /// Our client id.
    pub client_id: String,
    /// Our secret; none for a public client, which PKCE alone protects.
    pub client_secret: Option<ClientSecret>,
    /// What to ask for beside `openid`.
    pub scopes: Vec<String>,
    /// PEM file of the certificate authorities to trust; the system's if none.
    pub ca_file: Option<PathBuf>,
}

/// One person's way to the provider and back. Whoever begins it keeps it where only the same browser brings it back from.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// Ties the answer to the browser (RFC 6749 section 10.12).
    pub state: &'a str,
    /// Ties the token to the attempt (Core section 15.5.2).
    pub nonce: &'a str,
    /// What only this attempt can redeem its code with: 43 to 128 characters (RFC 7636 section 4.1).
    pub code_verifier: &'a str,
    /// Where the provider sends the browser back to, as it is registered there.
    pub redirect_url: &'a str,
    /// When it began.
    pub began: Timestamp,
}

/// Why nobody is signed in.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The answer is not that of this browser's attempt: begin anew.
    #[error("the answer is not that of this attempt: {0}")]
    NotOurs(&'static str),
    /// The provider says no, in its word.
    #[error("the provider refused: {0}")]
    Refused(String),
    /// The ID token does not hold.
    #[error("the ID token is refused: {0}")]
    Token(#[from] TokenFault),
    /// The provider cannot be asked now.
    #[error("the provider cannot be reached")]
    Unreachable(#[from] HttpError),
    /// Its metadata cannot be used.
    #[error("the provider's metadata cannot be used")]
    Metadata(#[from] MetadataFault),
    /// It answers what nobody expects.
    #[error("the provider's {what} answered with status {status}")]
    Unexpected {
        /// Which of its endpoints.
        what: &'static str,
        /// HTTP status.
        status: u16,
    },
    /// Its keys, or its answer to a code, are not what they must be.
    #[error("the provider's {0} cannot be read")]
    Unreadable(&'static str, #[source] serde_json::Error),
    /// It takes our secret in no way that we know.
    #[error("the provider takes a secret neither by client_secret_basic nor by client_secret_post")]
    NoWayToAuthenticate,
    /// Too many are under way.
    #[error("too many are signing in at the moment")]
    Busy,
}

/// The time; handed in.
type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// A provider. Asked when somebody signs in, never before: a provider that is away keeps nothing else from working.
pub struct Provider {
    config: ProviderConfig,
    http: HttpClient,
    now: Now,
    /// What is known of it. Never locked while it is asked.
    known: Mutex<Known>,
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct Known {
    metadata: Option<(Timestamp, Arc<Metadata>)>,
    keys: Option<(Timestamp, Arc<KeySet>)>,
    /// When the keys were last asked for because of a token.
    looked: Option<Timestamp>,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Provider({})", self.config.issuer)
    }
}

/// An answer of the token endpoint (Core section 3.1.3.3). The access token is not used, and not kept.
#[derive(Deserialize)]
struct Tokens {
    id_token: String,
}

/// The error of a token endpoint (RFC 6749 section 5.2).
#[derive(Deserialize)]
struct TokenError {
    error: String,
}

impl Provider {
    /// A provider; asks nothing yet.
    ///
    /// # Errors
    /// [`HttpError::Authorities`].
    pub fn new(config: ProviderConfig, now: Now) -> Result<Self, HttpError> {
        let http = HttpClient::new(TIMEOUT, config.ca_file.as_deref())?;
        Ok(Self { config, http, now, known: Mutex::default(), room: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    /// Its issuer.
    pub fn issuer(&self) -> &str {
        &self.config.issuer
    }

    /// Where to send a browser (Core section 3.1.2.1; RFC 7636 section 4.3, always S256).
    ///
    /// # Errors
    /// [`OidcError`] if its metadata is not known and cannot be read.
    pub async fn authorization_url(&self, attempt: &Attempt<'_>) -> Result<String, OidcError> {
        let metadata = self.metadata().await?;
        let scope = ["openid"].into_iter().chain(self.config.scopes.iter().map(String::as_str));
        let scope = scope.collect::<Vec<_>>().join(" ");
        let challenge = URL_SAFE_NO_PAD.encode(sha256(attempt.code_verifier.as_bytes()).0);
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.config.client_id)
            .append_pair("redirect_uri", attempt.redirect_url)
            .append_pair("scope", &scope)
            .append_pair("state", attempt.state)
            .append_pair("nonce", attempt.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256")
            .finish();
        // The endpoint may have a query of its own (RFC 6749 section 3.1).
        let joint = if metadata.authorization_endpoint.contains('?') { '&' } else { '?' };
        Ok(format!("{}{joint}{query}", metadata.authorization_endpoint))
    }

    /// Whom an answer stands for: redeems its code and checks the ID token.
    ///
    /// # Errors
    /// [`OidcError`].
    pub async fn redeem(&self, answer: &AuthorizationAnswer, attempt: &Attempt<'_>) -> Result<IdToken, OidcError> {
        if !sealing::same(answer.state.as_bytes(), attempt.state.as_bytes()) {
            return Err(OidcError::NotOurs("the state is another"));
        }
        let metadata = self.metadata().await?;
        // A provider must not be taken for another (RFC 9207; RFC 9700 section 4.4).
        match &answer.issuer {
            Some(issuer) if *issuer != metadata.issuer => {
                return Err(OidcError::NotOurs("it comes from another issuer"));
            }
            None if metadata.authorization_response_iss_parameter_supported => {
                return Err(OidcError::NotOurs("it does not say from which issuer it comes"));
            }
            Some(_) | None => {}
        }
        let code = match &answer.brought {
            Brought::Code(code) => code,
            Brought::Refusal(word) => return Err(OidcError::Refused(word.clone())),
        };
        let token = self.exchange(&metadata, code, attempt).await?;
        let expected = Expected {
            issuer: &self.config.issuer,
            client_id: &self.config.client_id,
            nonce: attempt.nonce,
            began: attempt.began,
            now: (self.now)(),
        };
        let keys = self.keys(&metadata).await?;
        match check(&token, &keys, &expected) {
            // Perhaps the provider has a new key (Core section 10.1.1).
            Err(TokenFault::UnknownKey) => match self.newer_keys(&metadata).await? {
                Some(newer) => Ok(check(&token, &newer, &expected)?),
                None => Err(TokenFault::UnknownKey.into()),
            },
            other => Ok(other?),
        }
    }

    async fn exchange(&self, metadata: &Metadata, code: &str, attempt: &Attempt<'_>) -> Result<String, OidcError> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", attempt.redirect_url)
            .append_pair("code_verifier", attempt.code_verifier);
        let mut headers = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
        let takes = |method: &str| metadata.token_endpoint_auth_methods_supported.iter().any(|known| known == method);
        match &self.config.client_secret {
            None => drop(form.append_pair("client_id", &self.config.client_id)),
            Some(ClientSecret(secret)) if takes("client_secret_basic") => {
                // Both are form-encoded first (RFC 6749 section 2.3.1).
                let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
                let pair = Zeroizing::new(format!("{}:{}", encoded(&self.config.client_id), encoded(secret)));
                headers.push(("authorization", format!("Basic {}", STANDARD.encode(pair.as_bytes()))));
            }
            Some(ClientSecret(secret)) if takes("client_secret_post") => {
                form.append_pair("client_id", &self.config.client_id).append_pair("client_secret", secret);
            }
            Some(_) => return Err(OidcError::NoWayToAuthenticate),
        }
        let answer = self.ask("POST", &metadata.token_endpoint, headers, form.finish().into_bytes()).await?;
        match answer.status {
            200 => {
                let tokens: Tokens =
                    serde_json::from_slice(&answer.body).map_err(|failure| unreadable("answer to a code", failure))?;
                Ok(tokens.id_token)
            }
            400 | 401 => {
                let said = serde_json::from_slice::<TokenError>(&answer.body).map(|said| said.error);
                match said.as_deref() {
                    // The code was used, or is old, or is somebody else's.
                    Ok("invalid_grant") => Err(OidcError::NotOurs("the code cannot be redeemed")),
                    Ok(_) | Err(_) => Err(OidcError::Unexpected { what: "token endpoint", status: answer.status }),
                }
            }
            status => Err(OidcError::Unexpected { what: "token endpoint", status }),
        }
    }

    async fn metadata(&self) -> Result<Arc<Metadata>, OidcError> {
        let now = (self.now)();
        let known = self.known.lock().metadata.clone();
        match known {
            Some((at, metadata)) if is_fresh(at, now) => Ok(metadata),
            stale => match self.read_metadata().await {
                Ok(metadata) => {
                    let metadata = Arc::new(metadata);
                    self.known.lock().metadata = Some((now, Arc::clone(&metadata)));
                    Ok(metadata)
                }
                Err(failure) => stale_or(stale, failure, "metadata"),
            },
        }
    }

    async fn read_metadata(&self) -> Result<Metadata, OidcError> {
        // Any trailing slash is removed before the path is put behind (Discovery section 4.1).
        let url = format!("{}/.well-known/openid-configuration", self.config.issuer.trim_end_matches('/'));
        let answer = self.ask("GET", &url, Vec::new(), Vec::new()).await?;
        if answer.status != 200 {
            return Err(OidcError::Unexpected { what: "metadata", status: answer.status });
        }
        Ok(Metadata::parse(&answer.body, &self.config.issuer)?)
    }

    async fn keys(&self, metadata: &Metadata) -> Result<Arc<KeySet>, OidcError> {
        let known = self.known.lock().keys.clone();
        match known {
            Some((at, keys)) if is_fresh(at, (self.now)()) => Ok(keys),
            stale => match self.read_keys(metadata).await {
                Ok(keys) => Ok(keys),
                Err(failure) => stale_or(stale, failure, "keys"),
            },
        }
    }

    /// The keys once more, unless somebody looked for newer ones a moment ago.
    async fn newer_keys(&self, metadata: &Metadata) -> Result<Option<Arc<KeySet>>, OidcError> {
        let now = (self.now)();
        {
            let mut known = self.known.lock();
            if known.looked.is_some_and(|at| now.micros_since(at) < micros(AGAIN)) {
                return Ok(None);
            }
            known.looked = Some(now);
        }
        self.read_keys(metadata).await.map(Some)
    }

    async fn read_keys(&self, metadata: &Metadata) -> Result<Arc<KeySet>, OidcError> {
        let answer = self.ask("GET", &metadata.jwks_uri, Vec::new(), Vec::new()).await?;
        if answer.status != 200 {
            return Err(OidcError::Unexpected { what: "keys", status: answer.status });
        }
        let keys = Arc::new(KeySet::parse(&answer.body).map_err(|failure| unreadable("keys", failure))?);
        self.known.lock().keys = Some(((self.now)(), Arc::clone(&keys)));
        Ok(keys)
    }

    /// Sends a request from a thread where waiting hinders nobody.
    async fn ask(
        &self,
        method: &'static str,
        url: &str,
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
    ) -> Result<Answer, OidcError> {
        let permit = Arc::clone(&self.room).try_acquire_owned().map_err(|_| OidcError::Busy)?;
        let (http, url) = (self.http.clone(), url.to_owned());
        let asked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut lines: Vec<(&str, &str)> = vec![("accept", "application/json")];
            lines.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
            http.send(method, &url, &lines, &body)
        });
        // A task that was cancelled at the end of the process answers nobody.
        Ok(asked.await.map_err(|_| OidcError::Busy)??)
    }
}

fn unreadable(what: &'static str, failure: serde_json::Error) -> OidcError {
    OidcError::Unreadable(what, failure)
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

fn is_fresh(at: Timestamp, now: Timestamp) -> bool {
    now.micros_since(at) < micros(FRESH)
}

/// What was known before, where the provider cannot say whether it is still so.
fn stale_or<T>(stale: Option<(Timestamp, T)>, failure: OidcError, what: &str) -> Result<T, OidcError> {
    let Some((_, known)) = stale else { return Err(failure) };
    warn!(
        failure = &failure as &dyn std::error::Error,
        "the provider's {what} cannot be read anew: going on with those known"
    );
    Ok(known)
}
