//! What nodes ask each other about sessions of a log, and its bytes: `kind (1) ‖ body`, numbers big-endian, states as JSON. What is not exactly
//! that is none.

use std::sync::Arc;

use cluster::{Reader, Undecodable};
use session_model::{Session, SessionId, Timestamp, Tombstone, TreeSize};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// What do you show of this session, reflecting at least so much of the log?
    Get { id: SessionId, at_least: TreeSize },
    /// It was used at this time. Nothing is answered.
    Used { id: SessionId, at: Timestamp },
}

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// Nothing, or I do not hold it.
    NotHere,
    /// I do not reflect that much yet.
    Behind,
    /// This.
    Active(Arc<Session>),
    /// That it has ended.
    Ended(Arc<Tombstone>),
}

const GET: u8 = 1;
const USED: u8 = 2;
const NOT_HERE: u8 = 65;
const BEHIND: u8 = 66;
const ACTIVE: u8 = 67;
const ENDED: u8 = 68;

impl Question {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, id, number) = match self {
            Self::Get { id, at_least } => (GET, id, at_least.0),
            Self::Used { id, at } => (USED, id, at.as_micros().cast_unsigned()),
        };
        [&[kind], id.uuid().as_bytes().as_slice(), &number.to_be_bytes()].concat()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        let mut from = Reader::new(bytes);
        let (kind, id) = (from.u8()?, from.session()?);
        let question = match kind {
            GET => Self::Get { id, at_least: TreeSize(from.u64()?) },
            USED => Self::Used { id, at: from.time()? },
            _ => return Err(Undecodable),
        };
        from.ends(question)
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::new();
        match self {
            Self::NotHere => out.push(NOT_HERE),
            Self::Behind => out.push(BEHIND),
            Self::Active(session) => {
                out.push(ACTIVE);
                serde_json::to_writer(&mut out, &**session)?;
            }
            Self::Ended(tombstone) => {
                out.push(ENDED);
                serde_json::to_writer(&mut out, &**tombstone)?;
            }
        }
        Ok(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        match bytes {
            [NOT_HERE] => Ok(Self::NotHere),
            [BEHIND] => Ok(Self::Behind),
            [ACTIVE, json @ ..] => {
                let session: Session = serde_json::from_slice(json).map_err(|_| Undecodable)?;
                // One that has ended is told of by what is left of it.
                if session.ended().is_some() { Err(Undecodable) } else { Ok(Self::Active(Arc::new(session))) }
            }
            [ENDED, json @ ..] => {
                serde_json::from_slice(json).map(|tombstone| Self::Ended(Arc::new(tombstone))).map_err(|_| Undecodable)
            }
            _ => Err(Undecodable),
        }
    }
}

/// For the fuzzer: whatever the bytes are, they are read or refused, and what is read is written as something that reads alike.
#[cfg(feature = "test-util")]
pub(crate) fn read_any(bytes: &[u8]) {
    if let Ok(question) = Question::decode(bytes) {
        assert_eq!(question.encode(), bytes, "there is one way to ask it");
    }
    if let Ok(reply) = Reply::decode(bytes) {
        let written = reply.encode().unwrap_or_default();
        let again = Reply::decode(&written).ok().and_then(|again| again.encode().ok());
        assert_eq!(again, Some(written));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use session_view::test_util::{ended, session};
    use uuid::Uuid;

    use super::*;

    proptest! {
        #[test]
        fn questions_are_read_back_and_nothing_else_is_one(id in any::<u128>(), number in any::<u64>(), used in any::<bool>(), more in any::<u8>()) {
            let id = SessionId::new(Uuid::from_u128(id));
            let question = match used {
                true => Question::Used { id, at: Timestamp::from_micros(number.cast_signed()) },
                false => Question::Get { id, at_least: TreeSize(number) },
            };
            let mut bytes = question.encode();
            prop_assert_eq!(Question::decode(&bytes), Ok(question));
            prop_assert!(Reply::decode(&bytes).is_err());
            prop_assert!(Question::decode(&bytes[..bytes.len() - 1]).is_err());
            bytes.push(more);
            prop_assert!(Question::decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(kind in 0_u8..80, bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let bytes = [&[kind], bytes.as_slice()].concat();
            let _either = (Question::decode(&bytes).is_ok(), Reply::decode(&bytes).is_ok());
        }
    }

    #[test]
    fn replies_are_read_back_and_an_ended_session_is_not_shown_as_one() {
        let over = ended(7, 3);
        let tombstone = Arc::new(over.tombstone().unwrap());
        let open = Arc::new(session(7, 2));
        for reply in [Reply::NotHere, Reply::Behind, Reply::Active(open), Reply::Ended(tombstone)] {
            let written = reply.encode().unwrap();
            assert_eq!(Reply::decode(&written).unwrap().encode().unwrap(), written);
            assert!(Reply::decode(&[written.as_slice(), b"x"].concat()).is_err());
        }
        assert!(Reply::decode(&Reply::Active(Arc::new(over)).encode().unwrap()).is_err());
    }
}
