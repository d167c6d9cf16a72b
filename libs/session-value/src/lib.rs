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
use std::sync::Arc;

use sealing::SealError;
use session_model::transient::{Stamp, Stamped};
use session_model::{LeafIndex, Session, SessionId, Timestamp, Tombstone};
use session_view::Viewed;
use zeroize::Zeroizing;

/// First version of an active session's value: JSON of [`Session`].
const ACTIVE: u8 = 1;
/// First version of a tombstone's: JSON of [`Tombstone`].
const ENDED: u8 = 2;

/// The same of a session that no entry stands behind: JSON of [`Stamped`].
const STAMPED_ACTIVE: u8 = 3;
const STAMPED_ENDED: u8 = 4;
/// Where its stamp stands, with which its header ends.
pub const STAMP: std::ops::Range<usize> = 33..57;

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
    key: Zeroizing<[u8; 32]>,
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
    Seal(#[from] SealError),
    /// It could not be written as JSON.
    #[error("failed to write the state as JSON")]
    Json(#[from] serde_json::Error),
}

/// A value is not what [`Sealer::encode`] made for this session.
#[derive(Debug, PartialEq, Eq)]
pub struct Undecodable;

impl From<SealError> for Undecodable {
    fn from(_: SealError) -> Self {
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
    pub fn new(namespace: &str, key: &[u8; 32]) -> Self {
        Self { namespace: namespace.to_owned(), key: Zeroizing::new(*key) }
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
        let bytes = self.seal(state.id, &header(tag, state.head.index.0, state), &json)?;
        Ok(Encoded { bytes, lifetime_ms })
    }

    /// The value of a state that no entry stands behind. Its header goes on with the stamp, [`STAMP`], so that a store can tell by it whether
    /// what a state was made from still stands; where others have the leaf index it has the version.
    ///
    /// # Errors
    /// [`EncodeError`]; never because of what the state is.
    pub fn encode_stamped(&self, state: &Stamped) -> Result<Vec<u8>, EncodeError> {
        let Stamped { session, stamp } = state;
        let tag = if session.ended().is_some() { STAMPED_ENDED } else { STAMPED_ACTIVE };
        let json = Zeroizing::new(state.encode()?);
        let header = [header(tag, session.version.0, session).as_slice(), &stamp_bytes(stamp)].concat();
        Ok(self.seal(session.id, &header, &json)?)
    }

    /// The state that a value of [`Sealer::encode_stamped`] is of.
    ///
    /// # Errors
    /// [`Undecodable`] if it is not exactly what was made for this session, up to *last seen*.
    pub fn decode_stamped(&self, id: SessionId, value: &[u8]) -> Result<Stamped, Undecodable> {
        let (header, json) = self.open(id, value, STAMP.end)?;
        let state = Stamped::decode(&json).map_err(|_| Undecodable)?;
        let mut session = Arc::unwrap_or_clone(state.session);
        let tag = if session.ended().is_some() { STAMPED_ENDED } else { STAMPED_ACTIVE };
        if session.id != id || header.first() != Some(&tag) || header.get(STAMP) != Some(&stamp_bytes(&state.stamp)) {
            return Err(Undecodable);
        }
        session.last_seen_at = session.last_seen_at.max(last_seen(header)?);
        Ok(Stamped { session: Arc::new(session), stamp: state.stamp })
    }

    /// Header, nonce, ciphertext, GCM tag.
    fn seal(&self, id: SessionId, header: &[u8], json: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut bytes = Vec::with_capacity(header.len() + NONCE + json.len() + TAG);
        bytes.extend_from_slice(header);
        sealing::encrypt_onto(&mut bytes, &*self.key_of(id)?, &self.bound(id, header), json)?;
        Ok(bytes)
    }

    /// Takes apart what [`Sealer::seal`] put together, with a header of so many bytes.
    fn open<'v>(
        &self,
        id: SessionId,
        value: &'v [u8],
        header: usize,
    ) -> Result<(&'v [u8], Zeroizing<Vec<u8>>), Undecodable> {
        let (header, sealed) = value.split_at_checked(header).ok_or(Undecodable)?;
        let json = sealing::decrypt(&*self.key_of(id)?, &self.bound(id, header), sealed)?;
        Ok((header, Zeroizing::new(json)))
    }

    /// The state that a value is of.
    ///
    /// # Errors
    /// [`Undecodable`] if it is not exactly what [`Sealer::encode`] made for this session, up to *last seen*.
    pub fn decode(&self, id: SessionId, value: &[u8]) -> Result<Viewed, Undecodable> {
        let (header, json) = self.open(id, value, HEADER)?;
        let (tag, rest) = header.split_first().ok_or(Undecodable)?;
        let index = rest.first_chunk().map(|bytes| LeafIndex(u64::from_be_bytes(*bytes))).ok_or(Undecodable)?;
        match *tag {
            ACTIVE => {
                let mut session: Session = serde_json::from_slice(&json).map_err(|_| Undecodable)?;
                if session.id != id || session.head.index != index || session.ended().is_some() {
                    return Err(Undecodable);
                }
                session.last_seen_at = session.last_seen_at.max(last_seen(header)?);
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
    fn key_of(&self, id: SessionId) -> Result<Zeroizing<[u8; 32]>, SealError> {
        let key = sealing::hmac(&self.key, &[b"counterfoil view v1", id.uuid().as_bytes()])?;
        Ok(Zeroizing::new(key.0))
    }

    /// What the ciphertext is bound to: namespace ‖ id ‖ header without *last seen*. All but the first have a fixed length, the header
    /// one for each tag.
    fn bound(&self, id: SessionId, header: &[u8]) -> Vec<u8> {
        let mut bound = Vec::with_capacity(self.namespace.len() + 16 + header.len());
        bound.extend_from_slice(self.namespace.as_bytes());
        bound.extend_from_slice(id.uuid().as_bytes());
        bound.extend(header.iter().enumerate().filter(|(at, _)| !LAST_SEEN.contains(at)).map(|(_, byte)| *byte));
        bound
    }
}

fn last_seen(header: &[u8]) -> Result<Timestamp, Undecodable> {
    let seen = header.get(LAST_SEEN).and_then(|seen| seen.try_into().ok()).ok_or(Undecodable)?;
    Ok(Timestamp::from_micros(i64::from_be_bytes(seen)))
}

/// A stamp as it stands at [`STAMP`] in a value.
pub fn stamp_bytes(stamp: &Stamp) -> [u8; 24] {
    let mut bytes = [0; 24];
    let parts = stamp.at.as_micros().to_be_bytes().into_iter().chain(*stamp.writer.as_bytes());
    bytes.iter_mut().zip(parts).for_each(|(at, byte)| *at = byte);
    bytes
}

/// The header that all values have, with the number that says which of two states of a session is the newer one.
fn header(tag: u8, order: u64, state: &Session) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let numbers = [
        order.to_be_bytes(),
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
        Sealer::new("ns", &[7; 32])
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
        assert!(Sealer::new("other", &[7; 32]).decode(id(1), &value).is_err(), "another namespace");
        assert!(Sealer::new("ns", &[8; 32]).decode(id(1), &value).is_err(), "another key");
    }

    #[test]
    fn a_stamped_state_is_bound_to_all_but_its_last_use() {
        use session_model::transient::{Stamp, Stamped};
        let stamp = Stamp { at: at(3), writer: uuid::Uuid::from_u128(9) };
        for of in [session(1, 5), ended(1, 6)] {
            let over = of.ended().is_some();
            let value = sealer().encode_stamped(&Stamped { session: Arc::new(of), stamp }).unwrap();
            assert_eq!(value[STAMP], stamp_bytes(&stamp));
            let read = sealer().decode_stamped(id(1), &value).unwrap();
            assert_eq!((read.stamp, read.session.ended().is_some()), (stamp, over));
            for at in (0..value.len()).filter(|at| !LAST_SEEN.contains(at)) {
                let mut other = value.clone();
                other[at] ^= 1;
                assert!(sealer().decode_stamped(id(1), &other).is_err(), "bit of byte {at}");
            }
            assert!((0..value.len()).all(|cut| sealer().decode_stamped(id(1), &value[..cut]).is_err()));
            assert!(sealer().decode_stamped(id(2), &value).is_err() && sealer().decode(id(1), &value).is_err());
            let mut later = value.clone();
            later[LAST_SEEN].copy_from_slice(&at(9).as_micros().to_be_bytes());
            assert_eq!(sealer().decode_stamped(id(1), &later).unwrap().session.last_seen_at, at(9));
        }
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
