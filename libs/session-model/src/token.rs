//! The bearer secret of a session, and what is kept of it.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Digest, SessionId};

const PREFIX: &str = "cfs_";
/// Session id and secret, 48 bytes, are exactly 64 characters of base64url.
const BODY: usize = 64;
/// Four bytes of CRC-32 are six characters of base64url.
const CHECKSUM: usize = 6;

/// Why a text is not a token. Says nothing about the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a session token")]
pub struct TokenError;

/// A bearer token: `cfs_` + base64url(session id ‖ 32 secret bytes) + base64url(CRC-32 of what precedes).
///
/// The checksum only tells a mistyped or cut token from a whole one, and lets secret scanners confirm a find offline; it
/// proves nothing. 256 secret bits exceed the 128 of OWASP ASVS 5.0 7.2.3 and the 64 of NIST SP 800-63B-4 section 5.1.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    session: SessionId,
    secret: [u8; 32],
}

impl Token {
    /// Length of every token, in characters.
    pub const LEN: usize = PREFIX.len() + BODY + CHECKSUM;

    /// Joins a session id with 32 bytes from the CSPRNG.
    pub const fn new(session: SessionId, secret: [u8; 32]) -> Self {
        Self { session, secret }
    }

    /// The session the token claims to belong to.
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// The secret, to be hashed into a [`TokenDigest`].
    pub const fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The text that the client carries.
    pub fn expose(&self) -> String {
        let mut body = [0; 48];
        let (id, secret) = body.split_at_mut(16);
        id.copy_from_slice(self.session.uuid().as_bytes());
        secret.copy_from_slice(&self.secret);
        let mut text = String::with_capacity(Self::LEN);
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(body, &mut text);
        let checksum = crc32fast::hash(text.as_bytes()).to_be_bytes();
        URL_SAFE_NO_PAD.encode_string(checksum, &mut text);
        text
    }

    /// Reads a token.
    ///
    /// # Errors
    /// [`TokenError`] for any text that [`Token::expose`] could not have made.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if text.len() != Self::LEN || !text.is_ascii() || !text.starts_with(PREFIX) {
            return Err(TokenError);
        }
        let (signed, checksum) = text.split_at(Self::LEN - CHECKSUM);
        let mut expected = [0; CHECKSUM];
        URL_SAFE_NO_PAD
            .encode_slice(crc32fast::hash(signed.as_bytes()).to_be_bytes(), &mut expected)
            .map_err(|_| TokenError)?;
        if checksum.as_bytes() != expected {
            return Err(TokenError);
        }
        let mut body = [0; 48];
        let encoded = signed.strip_prefix(PREFIX).ok_or(TokenError)?;
        URL_SAFE_NO_PAD.decode_slice(encoded, &mut body).map_err(|_| TokenError)?;
        let (id, secret) = body.split_at(16);
        Ok(Self {
            session: SessionId::new(Uuid::from_slice(id).map_err(|_| TokenError)?),
            secret: secret.try_into().map_err(|_| TokenError)?,
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} …)", self.session)
    }
}

/// SHA-256 of a token's secret: all that is ever stored of it. Deliberately not `PartialEq`: see [`TokenDigest::matches`].
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenDigest(Digest);

impl TokenDigest {
    /// Wraps the SHA-256 of a secret.
    pub const fn new(digest: Digest) -> Self {
        Self(digest)
    }

    /// The digest.
    pub const fn digest(&self) -> &Digest {
        &self.0
    }

    /// Compares without an early exit, so that the time taken tells nothing of where two digests differ.
    pub fn matches(&self, other: &Self) -> bool {
        let difference = self.0.0.iter().zip(other.0.0.iter()).fold(0, |acc, (a, b)| acc | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenDigest({:.8}…)", self.0.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token::new(SessionId::new(Uuid::from_u128(7)), std::array::from_fn(|i| i as u8))
    }

    #[test]
    fn reads_back() {
        let text = token().expose();
        assert_eq!(text.len(), Token::LEN);
        assert_eq!(Token::parse(&text), Ok(token()));
    }

    #[test]
    fn every_changed_character_and_every_cut_is_noticed() {
        let text = token().expose();
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(Token::parse(std::str::from_utf8(&other).unwrap()), Err(TokenError), "changed at {at}");
            assert_eq!(Token::parse(&text[..at]), Err(TokenError), "cut at {at}");
        }
        assert_eq!(Token::parse(&format!("{text}A")), Err(TokenError));
        assert_eq!(Token::parse(&"é".repeat(37)), Err(TokenError));
    }

    #[test]
    fn debug_never_prints_the_secret() {
        let shown = format!("{:?} {:?}", token(), TokenDigest::new(Digest([0xab; 32])));
        assert!(!shown.contains(&token().expose()[10..]) && !shown.contains(&"ab".repeat(32)), "{shown}");
    }
}
