//! API keys: 256 random bits behind a prefix that scanners for leaked secrets can find.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealing::{Ids, SealError, sha256};
use session_model::Digest;

const PREFIX: &str = "cfk_";
/// 32 bytes are 43 characters of base64url.
const BODY: usize = 43;

/// A text that is no API key. Says nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key: cfk_ and 43 characters of base64url")]
pub struct ApiKeyError;

/// An API key in clear. Kept nowhere: the store has its digest.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// A new key.
    ///
    /// # Errors
    /// [`SealError`] if the random generator fails.
    pub fn mint() -> Result<Self, SealError> {
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(Ids.secret()?))))
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`ApiKeyError`].
    pub fn parse(text: &str) -> Result<Self, ApiKeyError> {
        Self::digest_of(text).map(|_| Self(text.to_owned()))
    }

    /// The digest of a text that has the form of a key.
    ///
    /// # Errors
    /// [`ApiKeyError`].
    pub fn digest_of(text: &str) -> Result<Digest, ApiKeyError> {
        let body = text.strip_prefix(PREFIX).ok_or(ApiKeyError)?;
        let plain = body.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        // A key of 256 random bits needs no slow hash: there is nothing to guess.
        if body.len() == BODY && plain { Ok(sha256(text.as_bytes())) } else { Err(ApiKeyError) }
    }

    /// The key's digest.
    pub fn digest(&self) -> Digest {
        sha256(self.0.as_bytes())
    }

    /// The key in clear, to hand to whoever asked for it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_mints_and_nothing_shorter() {
        let key = ApiKey::mint().unwrap();
        assert_eq!(ApiKey::parse(key.expose()).unwrap().digest(), key.digest());
        assert!(ApiKey::parse(&key.expose()[..46]).is_err());
        assert!(ApiKey::parse("cfs_").is_err());
        assert!(!format!("{key:?}").contains(&key.expose()[4..]));
    }
}
