//! Identifiers and secrets, from OpenSSL's random generator.

use std::cell::RefCell;

use openssl::error::ErrorStack;
use session_model::{EntryId, KeyId, SessionId, Timestamp, Token, TokenDigest};
use uuid::Uuid;

use crate::{SealError, sha256};

/// Makes identifiers and secrets. Holds nothing: the name groups what draws from the random generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ids;

/// Random bytes for identifiers and nonces, drawn in bulk: what is shown to everybody later is no secret, so it may lie in memory for a while.
/// Tokens and keys are never taken from here.
struct Pool {
    bytes: [u8; POOLED],
    used: usize,
}

const POOLED: usize = 4_096;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { bytes: [0; POOLED], used: POOLED }) };
}

/// Random bytes that are no secret, `N` at most as many as the pool holds.
pub(crate) fn public<const N: usize>() -> Result<[u8; N], ErrorStack> {
    const { assert!(N <= POOLED) };
    POOL.with_borrow_mut(|pool| {
        if pool.bytes.len() - pool.used < N {
            openssl::rand::rand_bytes(&mut pool.bytes)?;
            pool.used = 0;
        }
        let mut taken = [0; N];
        taken.iter_mut().zip(pool.bytes.iter().skip(pool.used)).for_each(|(taken, byte)| *taken = *byte);
        pool.used += N;
        Ok(taken)
    })
}

impl Ids {
    /// Random bytes for an identifier that is no secret.
    ///
    /// # Errors
    /// See [`Ids::session`].
    pub fn public<const N: usize>(self) -> Result<[u8; N], SealError> {
        Ok(public()?)
    }

    fn v7(now: Timestamp) -> Result<Uuid, SealError> {
        let random: [u8; 10] = Self.public()?;
        let millis = u64::try_from(now.as_micros() / 1000).unwrap_or_default();
        Ok(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// A session id: UUIDv7 (RFC 9562 section 5.7) of the time it began.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`] if the random generator fails; so for every function here.
    pub fn session(self, now: Timestamp) -> Result<SessionId, SealError> {
        Self::v7(now).map(SessionId::new)
    }

    /// An entry id.
    ///
    /// # Errors
    /// See [`Ids::session`].
    pub fn entry(self, now: Timestamp) -> Result<EntryId, SealError> {
        Self::v7(now).map(EntryId::new)
    }

    /// The id of a data key: wholly random, so that it tells not even when its subject was first seen.
    ///
    /// # Errors
    /// See [`Ids::session`].
    pub fn data_key(self) -> Result<KeyId, SealError> {
        Ok(KeyId::new(uuid::Builder::from_random_bytes(public()?).into_uuid()))
    }

    /// A token for a session, and the digest that is all that is kept of it.
    ///
    /// # Errors
    /// See [`Ids::session`].
    pub fn token(self, session: SessionId) -> Result<(Token, TokenDigest), SealError> {
        let token = Token::new(session, self.secret()?);
        let digest = token_digest(&token);
        Ok((token, digest))
    }

    /// Thirty-two secret bytes.
    ///
    /// # Errors
    /// See [`Ids::session`].
    pub fn secret(self) -> Result<[u8; 32], SealError> {
        let mut secret = [0; 32];
        openssl::rand::rand_bytes(&mut secret)?;
        Ok(secret)
    }
}

/// SHA-256 of a token's secret.
pub fn token_digest(token: &Token) -> TokenDigest {
    TokenDigest::new(sha256(token.secret()))
}
