//! A session's state as sealed bytes: the one format of every view that keeps states outside the process.
//!
//! `tag (1) ‖ leaf index (8) ‖ last seen (8) ‖ idle timeout (8) ‖ expiry (8) ‖ nonce (12) ‖ ciphertext ‖ GCM tag (16)`,
//! numbers big-endian, times in microseconds.
//!
//! The header is what a store decides by without opening anything: the scripts in Redis, the names in a folder. All of it
//! but *last seen* is bound to the ciphertext, together with the namespace and the session's id: a value moved to another
//! place, or given another index, cannot be opened. *Last seen* stands outside so that marking a use rewrites eight bytes:
//! whoever controls the store can keep a session from idling out, up to its absolute expiry, which is bound; or take the
//! whole view away, which costs reads of the log.
//!
//! It deliberately lacks any idea of where a value is kept. Start with [`Sealer`].

use std::fmt;

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;
use openssl::md::Md;
use openssl::md_ctx::MdCtx;
use openssl::pkey::{PKey, Private};
use session_model::{LeafIndex, Session, SessionId, Timestamp, Tombstone};
use session_view::Viewed;
use zeroize::Zeroizing;

/// First version of an active session's value: JSON of [`Session`].
const ACTIVE: u8 = 1;
/// First version of a tombstone's: JSON of [`Tombstone`].
const ENDED: u8 = 2;

/// Bytes before the nonce. The scripts in Redis know it too.
const HEADER: usize = 33;
const LAST_SEEN: std::ops::Range<usize> = 9..17;
const NONCE: usize = 12;
const TAG: usize = 16;

/// Keeps a tombstone for a day: far beyond [`session_view::RETAIN_ENDED_S`], because the store is shared and nodes may be cut off.
const ENDED_LIFETIME_MS: i64 = 24 * 3_600_000;

/// Seals and opens values.
pub struct Sealer {
    namespace: String,
    key: PKey<Private>,
    aes: Cipher,
    sha256: Md,
}

/// A value to be stored.
pub struct Encoded {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Milliseconds after which the store may forget it, counted from when it was stored.
    pub lifetime_ms: i64,
}

/// What a value says of itself without being opened. It is authentic, but for *last seen*, once the value was decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whether it is a tombstone's.
    pub ended: bool,
    /// The leaf that the state reflects.
    pub index: LeafIndex,
    /// The last use known when it was made, or marked since.
    pub last_seen: Timestamp,
    /// How long after the last use the session is idle, in microseconds.
    pub idle_micros: i64,
    /// The absolute deadline.
    pub expires_at: Timestamp,
}

impl Header {
    /// The header of a value; `None` if it is none of ours.
    pub fn of(value: &[u8]) -> Option<Self> {
        let (tag, rest) = value.split_first()?;
        let ended = match *tag {
            ACTIVE => false,
            ENDED => true,
            _ => return None,
        };
        let (index, rest) = rest.split_first_chunk()?;
        let (last_seen, rest) = rest.split_first_chunk()?;
        let (idle, rest) = rest.split_first_chunk()?;
        let expires = rest.first_chunk()?;
        Some(Self {
            ended,
            index: LeafIndex(u64::from_be_bytes(*index)),
            last_seen: Timestamp::from_micros(i64::from_be_bytes(*last_seen)),
            idle_micros: i64::from_be_bytes(*idle),
            expires_at: Timestamp::from_micros(i64::from_be_bytes(*expires)),
        })
    }
}

/// Why a state could not be sealed: out of memory, or a provider that lacks the algorithm.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// OpenSSL did not seal it.
    #[error("failed to seal the state")]
    Seal(#[from] ErrorStack),
    /// It could not be written as JSON.
    #[error("failed to write the state as JSON")]
    Json(#[from] serde_json::Error),
}

/// A value is not what [`Sealer::encode`] made for this session.
#[derive(Debug, PartialEq, Eq)]
pub struct Undecodable;

impl From<ErrorStack> for Undecodable {
    fn from(_: ErrorStack) -> Self {
        Self
    }
}

impl fmt::Debug for Sealer {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Sealer {
    /// Seals for one deployment, under its key.
    ///
    /// # Errors
    /// If OpenSSL lacks AES-256-GCM or HMAC-SHA-256.
    pub fn new(namespace: &str, key: &[u8; 32]) -> Result<Self, ErrorStack> {
        Ok(Self {
            namespace: namespace.to_owned(),
            key: PKey::hmac(key)?,
            // Fetched once: to look an algorithm up costs more than to use it.
            aes: Cipher::fetch(None, "AES-256-GCM", None)?,
            sha256: Md::fetch(None, "SHA256", None)?,
        })
    }

    /// The value of a state.
    ///
    /// # Errors
    /// [`EncodeError`]; never because of what the state is.
    pub fn encode(&self, state: &Session) -> Result<Encoded, EncodeError> {
        let (tag, json, lifetime_ms) = match state.tombstone() {
            Some(tombstone) => (ENDED, Zeroizing::new(serde_json::to_vec(&tombstone)?), ENDED_LIFETIME_MS),
            None => (ACTIVE, Zeroizing::new(serde_json::to_vec(state)?), active_lifetime_ms(state)),
        };
        let mut bytes = Vec::with_capacity(HEADER + NONCE + json.len() + TAG);
        bytes.extend_from_slice(&header(tag, state));
        let mut nonce = [0; NONCE];
        openssl::rand::rand_bytes(&mut nonce)?;
        bytes.extend_from_slice(&nonce);

        let key = self.key_of(state.id)?;
        let mut context = CipherCtx::new()?;
        context.encrypt_init(Some(&self.aes), Some(&*key), Some(&nonce))?;
        context.cipher_update(&self.bound(state.id, &header(tag, state)), None)?;
        context.cipher_update_vec(&json, &mut bytes)?;
        context.cipher_final_vec(&mut bytes)?;
        let mut gcm_tag = [0; TAG];
        context.tag(&mut gcm_tag)?;
        bytes.extend_from_slice(&gcm_tag);
        Ok(Encoded { bytes, lifetime_ms })
    }

    /// The state that a value is of.
    ///
    /// # Errors
    /// [`Undecodable`] if it is not exactly what [`Sealer::encode`] made for this session, up to *last seen*.
    pub fn decode(&self, id: SessionId, value: &[u8]) -> Result<Viewed, Undecodable> {
        let (header, sealed) = value.split_first_chunk::<HEADER>().ok_or(Undecodable)?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or(Undecodable)?;
        let (ciphertext, gcm_tag) = sealed.split_last_chunk::<TAG>().ok_or(Undecodable)?;
        let key = self.key_of(id)?;
        let mut context = CipherCtx::new()?;
        context.decrypt_init(Some(&self.aes), Some(&*key), Some(nonce))?;
        context.set_tag(gcm_tag)?;
        context.cipher_update(&self.bound(id, header), None)?;
        let mut json = Zeroizing::new(Vec::with_capacity(ciphertext.len() + TAG));
        context.cipher_update_vec(ciphertext, &mut json)?;
        context.cipher_final_vec(&mut json)?;

        let (tag, rest) = header.split_first().ok_or(Undecodable)?;
        let index = rest.first_chunk().map(|bytes| LeafIndex(u64::from_be_bytes(*bytes))).ok_or(Undecodable)?;
        match *tag {
            ACTIVE => {
                let mut session: Session = serde_json::from_slice(&json).map_err(|_| Undecodable)?;
                if session.id != id || session.head.index != index || session.ended().is_some() {
                    return Err(Undecodable);
                }
                let seen = header.get(LAST_SEEN).and_then(|seen| seen.try_into().ok()).ok_or(Undecodable)?;
                session.last_seen_at = session.last_seen_at.max(Timestamp::from_micros(i64::from_be_bytes(seen)));
                Ok(Viewed::Active(session.into()))
            }
            ENDED => {
                let tombstone: Tombstone = serde_json::from_slice(&json).map_err(|_| Undecodable)?;
                let whole = tombstone.id == id && tombstone.head.index == index;
                if whole { Ok(Viewed::Ended(tombstone.into())) } else { Err(Undecodable) }
            }
            _ => Err(Undecodable),
        }
    }

    /// A key for each session, `HMAC-SHA-256(sealing key, label ‖ id)`: random nonces are safe for 2^32 values under one
    /// key (NIST SP 800-38D section 8.3), which a busy service would write within days, but no session ever does.
    fn key_of(&self, id: SessionId) -> Result<Zeroizing<[u8; 32]>, ErrorStack> {
        let mut key = Zeroizing::new([0; 32]);
        let mut context = MdCtx::new()?;
        context.digest_sign_init(Some(&self.sha256), &self.key)?;
        context.digest_sign_update(b"counterfoil view v1")?;
        context.digest_sign_update(id.uuid().as_bytes())?;
        context.digest_sign_final(Some(&mut *key))?;
        Ok(key)
    }

    /// What the ciphertext is bound to: namespace ‖ id ‖ header without *last seen*. All but the first have a fixed length.
    fn bound(&self, id: SessionId, header: &[u8; HEADER]) -> Vec<u8> {
        let mut bound = Vec::with_capacity(self.namespace.len() + 16 + HEADER);
        bound.extend_from_slice(self.namespace.as_bytes());
        bound.extend_from_slice(id.uuid().as_bytes());
        bound.extend(header.iter().enumerate().filter(|(at, _)| !LAST_SEEN.contains(at)).map(|(_, byte)| *byte));
        bound
    }
}

fn header(tag: u8, state: &Session) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let numbers = [
        state.head.index.0.to_be_bytes(),
        state.last_seen_at.as_micros().to_be_bytes(),
        state.idle_timeout.as_micros().to_be_bytes(),
        state.expires_at.as_micros().to_be_bytes(),
    ];
    let bytes = std::iter::once(tag).chain(numbers.into_iter().flatten());
    header.iter_mut().zip(bytes).for_each(|(at, byte)| *at = byte);
    header
}

/// How long an active session's value may stand: its whole absolute timeout and a day. The reaper ends it long before;
/// this only keeps a view nobody reaps from growing. It is a span, not a point in time, because the service's clock
/// (which may be set back, and is a test's own) is not the clock of the store; each change starts it anew.
fn active_lifetime_ms(state: &Session) -> i64 {
    state.expires_at.micros_since(state.created_at) / 1_000 + 24 * 3_600_000
}

#[cfg(test)]
mod tests {
    use session_view::test_util::{at, ended, id, seen, session};

    use super::*;

    fn sealer() -> Sealer {
        Sealer::new("ns", &[7; 32]).unwrap()
    }

    #[test]
    fn reads_back_and_takes_the_later_use() {
        let mut value = sealer().encode(&session(1, 5)).unwrap().bytes;
        assert!(matches!(sealer().decode(id(1), &value), Ok(Viewed::Active(s)) if s.last_seen_at == at(0)));
        value[LAST_SEEN].copy_from_slice(&at(9).as_micros().to_be_bytes());
        assert!(matches!(sealer().decode(id(1), &value), Ok(Viewed::Active(s)) if s.last_seen_at == at(9)));
        value[LAST_SEEN].copy_from_slice(&[0; 8]);
        assert!(matches!(sealer().decode(id(1), &value), Ok(Viewed::Active(s)) if s.last_seen_at == at(0)));
        let value = sealer().encode(&ended(1, 6)).unwrap().bytes;
        assert!(matches!(sealer().decode(id(1), &value), Ok(Viewed::Ended(t)) if t.head.index.0 == 6));
        assert!(Header::of(&value).is_some_and(|header| header.ended && header.index.0 == 6));
    }

    #[test]
    fn the_header_is_read_without_the_key() {
        let value = sealer().encode(&seen(1, 5, 7)).unwrap().bytes;
        let header = Header {
            ended: false,
            index: LeafIndex(5),
            last_seen: at(7),
            idle_micros: 1_800_000_000,
            expires_at: at(43_200),
        };
        assert_eq!(Header::of(&value), Some(header));
        assert!((0..HEADER).all(|cut| Header::of(&value[..cut]).is_none()));
        assert!(Header::of(&[9; 200]).is_none());
    }

    #[test]
    fn every_flipped_bit_every_cut_and_every_other_place_is_noticed() {
        let value = sealer().encode(&session(1, 5)).unwrap().bytes;
        for at in (0..value.len()).filter(|at| !LAST_SEEN.contains(at)) {
            let mut other = value.clone();
            other[at] ^= 1;
            assert!(sealer().decode(id(1), &other).is_err(), "bit of byte {at}");
        }
        for at in 0..value.len() {
            assert!(sealer().decode(id(1), &value[..at]).is_err(), "cut at {at}");
        }
        assert!(sealer().decode(id(2), &value).is_err(), "another session");
        assert!(Sealer::new("other", &[7; 32]).unwrap().decode(id(1), &value).is_err(), "another namespace");
        assert!(Sealer::new("ns", &[8; 32]).unwrap().decode(id(1), &value).is_err(), "another key");
    }

    /// Values made by the first version are read for ever: nodes of two versions share a store during an upgrade. These
    /// bytes are never made again.
    #[test]
    fn values_of_the_first_version_are_read() {
        let [active, ended_one] = include_str!("../golden/v1.hex").lines().collect::<Vec<_>>().try_into().unwrap();
        assert!(matches!(sealer().decode(id(1), &from_hex(active)), Ok(Viewed::Active(s))
            if s.head.index.0 == 5 && s.subject.as_deref() == Some("subject 1") && s.expires_at == at(43_200)));
        assert!(matches!(sealer().decode(id(1), &from_hex(ended_one)), Ok(Viewed::Ended(t))
            if t.head.index.0 == 6 && t.ended.at == at(60)));
    }

    fn from_hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    #[test]
    fn nothing_personal_is_in_clear() {
        let value = sealer().encode(&session(1, 5)).unwrap().bytes;
        assert!(!value.windows(7).any(|window| window == b"subject"));
    }
}
