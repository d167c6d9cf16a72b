//! What a provider says of itself (OpenID Connect Discovery 1.0 section 3).

use serde::Deserialize;
use url::{Host, Url};

/// Where a provider's endpoints are and what it can do.
#[derive(Debug, Clone, Deserialize)]
pub struct Metadata {
    /// Who it says it is.
    pub issuer: String,
    /// Where a browser is sent to.
    pub authorization_endpoint: String,
    /// Where a code is redeemed.
    pub token_endpoint: String,
    /// Where its keys are.
    pub jwks_uri: String,
    /// How a client may say who it is at the token endpoint; `client_secret_basic` if nothing is said.
    #[serde(default = "basic")]
    pub token_endpoint_auth_methods_supported: Vec<String>,
    /// PKCE methods; nothing said means nothing known.
    #[serde(default)]
    pub code_challenge_methods_supported: Option<Vec<String>>,
    /// Whether answers carry the issuer (RFC 9207).
    #[serde(default)]
    pub authorization_response_iss_parameter_supported: bool,
}

fn basic() -> Vec<String> {
    vec!["client_secret_basic".to_owned()]
}

/// Why a provider's metadata cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetadataFault {
    /// Not such a document.
    #[error("not the metadata of a provider")]
    Malformed(#[source] serde_json::Error),
    /// It is another's.
    #[error("the metadata is of the issuer {0}, not of the one that is configured")]
    OtherIssuer(String),
    /// An endpoint in clear.
    #[error("{0} is neither https nor of this machine")]
    Unsafe(String),
    /// It knows PKCE and not the method of ours.
    #[error("the provider does not know the PKCE method S256")]
    NoPkce,
}

impl Metadata {
    /// Reads a provider's metadata: of this issuer, character by character (Discovery section 4.3), and with endpoints that are safe to use.
    ///
    /// # Errors
    /// [`MetadataFault`].
    pub fn parse(json: &[u8], issuer: &str) -> Result<Self, MetadataFault> {
        let metadata: Self = serde_json::from_slice(json).map_err(MetadataFault::Malformed)?;
        if metadata.issuer != issuer {
            return Err(MetadataFault::OtherIssuer(metadata.issuer.chars().take(200).collect()));
        }
        for url in [&metadata.authorization_endpoint, &metadata.token_endpoint, &metadata.jwks_uri] {
            if !is_safe_url(url) {
                return Err(MetadataFault::Unsafe(url.chars().take(200).collect()));
            }
        }
        let methods = metadata.code_challenge_methods_supported.as_ref();
        if methods.is_some_and(|methods| !methods.iter().any(|method| method == "S256")) {
            return Err(MetadataFault::NoPkce);
        }
        Ok(metadata)
    }
}

/// Whether a URL is `https`, or `http` within the machine; without a fragment, and without a name or password.
pub fn is_safe_url(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => return false,
    };
    let plain = url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    plain && (url.scheme() == "https" || (url.scheme() == "http" && loopback))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(change: impl Fn(&mut serde_json::Value)) -> Result<Metadata, MetadataFault> {
        let mut document = json!({
            "issuer": "https://idp.example", "authorization_endpoint": "https://idp.example/authorize",
            "token_endpoint": "https://idp.example/token", "jwks_uri": "https://idp.example/keys",
        });
        change(&mut document);
        Metadata::parse(document.to_string().as_bytes(), "https://idp.example")
    }

    #[test]
    fn metadata_is_of_the_issuer_that_was_asked_and_safe_to_use() {
        let plain = read(|_| ()).unwrap();
        assert_eq!(plain.token_endpoint_auth_methods_supported, ["client_secret_basic"]);
        assert!(!plain.authorization_response_iss_parameter_supported);
        let other = |issuer: &'static str| read(move |document| document["issuer"] = json!(issuer));
        for issuer in ["https://evil.example", "https://idp.example/", "https://IDP.example", ""] {
            assert!(matches!(other(issuer), Err(MetadataFault::OtherIssuer(_))), "{issuer}");
        }
        for endpoint in ["authorization_endpoint", "token_endpoint", "jwks_uri"] {
            for url in ["http://idp.example/x", "javascript:alert(1)", "https://a:b@idp.example/", "/x", ""] {
                let read = read(|document| document[endpoint] = json!(url));
                assert!(matches!(read, Err(MetadataFault::Unsafe(_))), "{endpoint} {url}");
            }
            assert!(read(|document| drop(document.as_object_mut().unwrap().remove(endpoint))).is_err());
        }
        let methods =
            |known: serde_json::Value| read(|document| document["code_challenge_methods_supported"] = known.clone());
        assert!(matches!(methods(json!(["plain"])), Err(MetadataFault::NoPkce)));
        assert!(methods(json!(["plain", "S256"])).is_ok());
    }
}
