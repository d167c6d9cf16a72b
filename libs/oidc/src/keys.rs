//! The provider's keys: a JSON Web Key Set (RFC 7517).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealing::{JwsAlgorithm, JwsCurve, JwsKey, SealError};
use serde::Deserialize;

/// Keys of a set that are looked at: providers publish a handful.
const KEYS: usize = 64;

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

/// A key as it is published. Members that are not named here say nothing that matters.
#[derive(Deserialize)]
struct Published {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// A key that signs tokens.
#[derive(Debug, Clone)]
pub struct Key {
    id: Option<String>,
    algorithm: Option<String>,
    key: JwsKey,
}

impl Key {
    /// Whether this key made the signature. A key that says what algorithm it is for is for no other (RFC 7517 section 4.4).
    pub fn verifies(&self, algorithm: JwsAlgorithm, bytes: &[u8], signature: &[u8]) -> bool {
        let meant = self.algorithm.as_ref().is_none_or(|only| only == algorithm.name());
        meant && self.key.verifies(algorithm, bytes, signature)
    }
}

/// The keys of a provider.
#[derive(Debug, Clone, Default)]
pub struct KeySet(Vec<Key>);

impl KeySet {
    /// Reads a set. Keys of a kind or for a use that is none of ours are passed over, as RFC 7517 section 5 says.
    ///
    /// # Errors
    /// If it is not a JSON Web Key Set.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let document: Document = serde_json::from_slice(json)?;
        Ok(Self(document.keys.into_iter().take(KEYS).filter_map(key).collect()))
    }

    /// The keys that may have signed a token: those with its `kid`; for a token without one, the only one there is of that algorithm's kind.
    /// Several without a `kid` to choose by are none (OpenID Connect Core section 10.1).
    pub fn candidates(&self, id: Option<&str>, algorithm: JwsAlgorithm) -> Vec<&Key> {
        let of_kind = self.0.iter().filter(|key| key.key.is_for(algorithm));
        match id {
            Some(_) => of_kind.filter(|key| key.id.as_deref() == id).collect(),
            None => {
                let all: Vec<&Key> = of_kind.collect();
                if all.len() == 1 { all } else { Vec::new() }
            }
        }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn key(value: serde_json::Value) -> Option<Key> {
    let published: Published = serde_json::from_value(value).ok()?;
    if published.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
        return None;
    }
    let key = public_key(&published)?.ok()?;
    Some(Key { id: published.kid, algorithm: published.alg, key })
}

fn public_key(published: &Published) -> Option<Result<JwsKey, SealError>> {
    let number = |member: &Option<String>| URL_SAFE_NO_PAD.decode(member.as_ref()?).ok();
    match (published.kty.as_str(), published.crv.as_deref()) {
        ("RSA", _) => Some(JwsKey::rsa(&number(&published.n)?, &number(&published.e)?)),
        ("EC", Some(curve)) => {
            Some(JwsKey::ec(JwsCurve::named(curve)?, &number(&published.x)?, &number(&published.y)?))
        }
        ("OKP", Some("Ed25519")) => Some(JwsKey::ed25519(&number(&published.x)?)),
        _ => None,
    }
}
