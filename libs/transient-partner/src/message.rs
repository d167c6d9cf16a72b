//! What nodes ask each other about sessions, and its bytes.
//!
//! `kind (1) ‖ body`; numbers are big-endian; a state is preceded by its length (4). What is not exactly a question or a reply is none.

use cluster::{Reader, Undecodable};
use serde::{Deserialize, Serialize};
use session_model::transient::{Stamp, Stamped};
use session_model::{Kind, RealmName, Session, SessionId, Slot, Timestamp};
use transient_store::Listing;
use uuid::Uuid;

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) enum Question {
    /// What stands of a session, by the word of its owner. `insist`: whoever is asked is to answer as the owner, whether it takes itself for
    /// that or not.
    Get { id: SessionId, insist: bool },
    /// Let a state stand, if what it was made from does; so many others are to have it before that is said. `again`: it was asked before, and
    /// the answer may have been lost.
    Put { state: Stamped, base: Option<Stamp>, acknowledged_by: u8, insist: bool, again: bool },
    /// Mark a session as used.
    Mark { id: SessionId, at: Timestamp, insist: bool },
    /// What whoever is asked holds of a session itself.
    Held(SessionId),
    /// Take these states in, and say so.
    Take(Vec<Stamped>),
    /// Take these states in.
    Told(Vec<Stamped>),
    /// In which of these slots do you hold other things than these sums are over? By the placement of this digest.
    Compare { digest: u64, sums: Vec<(Slot, u64)> },
    /// By the placement of this digest you have been sent everything that I hold and you should.
    Sent { digest: u64 },
    /// Which of the sessions that you hold are such?
    List(Listing),
}

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// I am not the one who decides about it.
    NotMine,
    /// This stands, or is held; or nothing.
    State(Option<Stamped>),
    /// What became of a state that was to stand.
    Put(PutReply),
    /// It is taken in.
    Taken,
    /// In these slots. `sent`: I know that I have been sent everything.
    Differing { slots: Vec<Slot>, sent: bool },
    /// I go by another placement.
    OtherPlacement,
    /// These, newest first; if not complete the next ones are older than the last of them. `settled`: they are those that I decide on, and I know
    /// of all; else they are all that I hold.
    Page { sessions: Vec<Session>, complete: bool, settled: bool },
}

/// What became of a state that was to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PutReply {
    /// It stands, and as many have it as were to.
    Done,
    /// What it was made from does not stand.
    Moved,
    /// There is no room.
    Full,
    /// It stands, and too few have said that they have it.
    Unacknowledged,
    /// There are too few who could.
    TooFewNodes,
}

const GET: u8 = 1;
const PUT: u8 = 2;
const MARK: u8 = 3;
const HELD: u8 = 4;
const TAKE: u8 = 5;
const TOLD: u8 = 6;
const COMPARE: u8 = 7;
const SENT: u8 = 8;
const LIST: u8 = 9;

const NOT_MINE: u8 = 65;
const STATE: u8 = 66;
const PUT_REPLY: u8 = 67;
const TAKEN: u8 = 68;
const DIFFERING: u8 = 69;
const OTHER_PLACEMENT: u8 = 70;
const PAGE: u8 = 71;

/// Bytes that a question takes beside the state it carries.
pub const BESIDE_A_STATE: usize = 5 + 24 + 4;

/// As [`Listing`], on the wire.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireListing {
    realm: RealmName,
    subject: Option<Box<str>>,
    active: Option<bool>,
    kind: Option<Kind>,
    before: Option<Uuid>,
    limit: u32,
}

impl Question {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::new();
        match self {
            Self::Get { id, insist } => {
                out.extend([GET, u8::from(*insist)]);
                out.extend_from_slice(id.uuid().as_bytes());
            }
            Self::Put { state, base, acknowledged_by, insist, again } => {
                out.extend([PUT, u8::from(*insist), u8::from(*again), *acknowledged_by, u8::from(base.is_some())]);
                let none = Stamp { at: Timestamp::from_micros(0), writer: Uuid::nil() };
                let base = base.unwrap_or(none);
                out.extend_from_slice(&base.at.as_micros().to_be_bytes());
                out.extend_from_slice(base.writer.as_bytes());
                put_state(&mut out, state)?;
            }
            Self::Mark { id, at, insist } => {
                out.extend([MARK, u8::from(*insist)]);
                out.extend_from_slice(id.uuid().as_bytes());
                out.extend_from_slice(&at.as_micros().to_be_bytes());
            }
            Self::Held(id) => {
                out.push(HELD);
                out.extend_from_slice(id.uuid().as_bytes());
            }
            Self::Take(states) | Self::Told(states) => {
                out.push(if matches!(self, Self::Take(_)) { TAKE } else { TOLD });
                states.iter().try_for_each(|state| put_state(&mut out, state))?;
            }
            Self::Compare { digest, sums } => {
                out.push(COMPARE);
                out.extend_from_slice(&digest.to_be_bytes());
                for (slot, sum) in sums {
                    out.extend_from_slice(&slot.number().to_be_bytes());
                    out.extend_from_slice(&sum.to_be_bytes());
                }
            }
            Self::Sent { digest } => {
                out.push(SENT);
                out.extend_from_slice(&digest.to_be_bytes());
            }
            Self::List(listing) => {
                let Listing { realm, subject, active, kind, before, limit } = listing.clone();
                let (before, limit) = (before.map(SessionId::uuid), u32::try_from(limit).unwrap_or(u32::MAX));
                out.push(LIST);
                serde_json::to_writer(&mut out, &WireListing { realm, subject, active, kind, before, limit })?;
            }
        }
        Ok(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        let mut from = Reader::new(bytes);
        let question = match from.u8()? {
            GET => {
                let insist = from.flag()?;
                Self::Get { id: from.session()?, insist }
            }
            PUT => {
                let (insist, again, acknowledged_by, based) = (from.flag()?, from.flag()?, from.u8()?, from.flag()?);
                let base = Stamp { at: from.time()?, writer: Uuid::from_bytes(from.array()?) };
                Self::Put { state: state(&mut from)?, base: based.then_some(base), acknowledged_by, insist, again }
            }
            MARK => {
                let insist = from.flag()?;
                Self::Mark { id: from.session()?, at: from.time()?, insist }
            }
            HELD => Self::Held(from.session()?),
            TAKE => Self::Take(states(&mut from)?),
            TOLD => Self::Told(states(&mut from)?),
            COMPARE => {
                let (digest, mut sums) = (from.u64()?, Vec::new());
                while !from.is_at_end() {
                    sums.push((from.slot()?, from.u64()?));
                }
                Self::Compare { digest, sums }
            }
            SENT => Self::Sent { digest: from.u64()? },
            LIST => {
                let listing: WireListing = serde_json::from_slice(from.rest()).map_err(|_| Undecodable)?;
                let WireListing { realm, subject, active, kind, before, limit } = listing;
                let (before, limit) = (before.map(SessionId::new), limit as usize);
                Self::List(Listing { realm, subject, active, kind, before, limit })
            }
            _ => return Err(Undecodable),
        };
        from.ends(question)
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::new();
        match self {
            Self::NotMine => out.push(NOT_MINE),
            Self::State(state) => {
                out.push(STATE);
                state.iter().try_for_each(|state| put_state(&mut out, state))?;
            }
            Self::Put(became) => out.extend([PUT_REPLY, became.byte()]),
            Self::Taken => out.push(TAKEN),
            Self::Differing { slots, sent } => {
                out.extend([DIFFERING, u8::from(*sent)]);
                slots.iter().for_each(|slot| out.extend_from_slice(&slot.number().to_be_bytes()));
            }
            Self::OtherPlacement => out.push(OTHER_PLACEMENT),
            Self::Page { sessions, complete, settled } => {
                out.extend([PAGE, u8::from(*complete), u8::from(*settled)]);
                for session in sessions {
                    put_bytes(&mut out, &serde_json::to_vec(session)?);
                }
            }
        }
        Ok(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        let mut from = Reader::new(bytes);
        let reply = match from.u8()? {
            NOT_MINE => Self::NotMine,
            STATE if from.is_at_end() => Self::State(None),
            STATE => Self::State(Some(state(&mut from)?)),
            PUT_REPLY => Self::Put(PutReply::of(from.u8()?)?),
            TAKEN => Self::Taken,
            DIFFERING => {
                let (sent, mut slots) = (from.flag()?, Vec::new());
                while !from.is_at_end() {
                    slots.push(from.slot()?);
                }
                Self::Differing { slots, sent }
            }
            OTHER_PLACEMENT => Self::OtherPlacement,
            PAGE => {
                let (complete, settled, mut sessions) = (from.flag()?, from.flag()?, Vec::new());
                while !from.is_at_end() {
                    sessions.push(serde_json::from_slice(from.bytes()?).map_err(|_| Undecodable)?);
                }
                Self::Page { sessions, complete, settled }
            }
            _ => return Err(Undecodable),
        };
        from.ends(reply)
    }
}

impl PutReply {
    const ALL: [Self; 5] = [Self::Done, Self::Moved, Self::Full, Self::Unacknowledged, Self::TooFewNodes];

    const fn byte(self) -> u8 {
        match self {
            Self::Done => 1,
            Self::Moved => 2,
            Self::Full => 3,
            Self::Unacknowledged => 4,
            Self::TooFewNodes => 5,
        }
    }

    fn of(byte: u8) -> Result<Self, Undecodable> {
        Self::ALL.into_iter().find(|became| became.byte() == byte).ok_or(Undecodable)
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put_state(out: &mut Vec<u8>, state: &Stamped) -> Result<(), serde_json::Error> {
    put_bytes(out, &state.encode()?);
    Ok(())
}

fn state(from: &mut Reader<'_>) -> Result<Stamped, Undecodable> {
    Stamped::decode(from.bytes()?).map_err(|_| Undecodable)
}

fn states(from: &mut Reader<'_>) -> Result<Vec<Stamped>, Undecodable> {
    let mut states = Vec::new();
    while !from.is_at_end() {
        states.push(state(from)?);
    }
    Ok(states)
}

/// For the fuzzer: whatever the bytes are, they are read or refused, and what is read is written as something that reads alike.
#[cfg(feature = "test-util")]
pub(crate) fn read_any(bytes: &[u8]) {
    if let Ok(question) = Question::decode(bytes) {
        let written = question.encode().unwrap_or_default();
        let again = Question::decode(&written).ok().and_then(|again| again.encode().ok());
        assert_eq!(again, Some(written));
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
    use transient_store::conformance::{after, begun, end};

    use super::*;

    fn state() -> impl Strategy<Value = Stamped> {
        (0_u64..20, any::<bool>(), any::<u64>()).prop_map(|(n, ends, writer)| {
            let begun = begun(&"a".parse().unwrap(), n, Some("ada"));
            if ends { after(&begun, 1, writer.into(), end) } else { begun }
        })
    }

    fn slot() -> impl Strategy<Value = Slot> {
        (0_u16..1_024).prop_map(|number| Slot::new(number).unwrap())
    }

    fn question() -> impl Strategy<Value = Question> {
        let id = any::<u128>().prop_map(|id| SessionId::new(Uuid::from_u128(id)));
        let id = id.boxed();
        let listing = (any::<Option<u128>>(), any::<Option<bool>>(), "\\PC{1,9}", any::<u32>());
        prop_oneof![
            (id.clone(), any::<bool>()).prop_map(|(id, insist)| Question::Get { id, insist }),
            (state(), any::<Option<(i64, u128)>>(), any::<u8>(), any::<(bool, bool)>()).prop_map(
                |(state, base, acknowledged_by, (insist, again))| {
                    let base = base
                        .map(|(at, writer)| Stamp { at: Timestamp::from_micros(at), writer: Uuid::from_u128(writer) });
                    Question::Put { state, base, acknowledged_by, insist, again }
                }
            ),
            (id.clone(), any::<i64>(), any::<bool>()).prop_map(|(id, at, insist)| Question::Mark {
                id,
                at: Timestamp::from_micros(at),
                insist
            }),
            id.prop_map(Question::Held),
            prop::collection::vec(state(), 0..4).prop_map(Question::Take),
            prop::collection::vec(state(), 0..4).prop_map(Question::Told),
            (any::<u64>(), prop::collection::vec((slot(), any::<u64>()), 0..9))
                .prop_map(|(digest, sums)| Question::Compare { digest, sums }),
            any::<u64>().prop_map(|digest| Question::Sent { digest }),
            listing.prop_map(|(before, active, subject, limit)| Question::List(Listing {
                realm: "a".parse().unwrap(),
                subject: active.map(|_| subject.into()),
                active,
                kind: None,
                before: before.map(|id| SessionId::new(Uuid::from_u128(id))),
                limit: limit as usize,
            })),
        ]
    }

    fn reply() -> impl Strategy<Value = Reply> {
        prop_oneof![
            Just(Reply::NotMine),
            prop::option::of(state()).prop_map(Reply::State),
            (0_usize..5).prop_map(|which| Reply::Put(PutReply::ALL[which])),
            Just(Reply::Taken),
            (prop::collection::vec(slot(), 0..9), any::<bool>())
                .prop_map(|(slots, sent)| Reply::Differing { slots, sent }),
            Just(Reply::OtherPlacement),
            (prop::collection::vec(state(), 0..4), any::<(bool, bool)>()).prop_map(|(states, (complete, settled))| {
                let sessions = states.into_iter().map(|state| Session::clone(&state.session)).collect();
                Reply::Page { sessions, complete, settled }
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(question in question(), reply in reply()) {
            let written = question.encode().unwrap();
            prop_assert_eq!(Question::decode(&written).unwrap().encode().unwrap(), written.clone());
            prop_assert!(Reply::decode(&written).is_err());
            let written = reply.encode().unwrap();
            prop_assert_eq!(Reply::decode(&written).unwrap().encode().unwrap(), written.clone());
            prop_assert!(Question::decode(&written).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), kind in 0_u8..80) {
            let bytes = [&[kind], bytes.as_slice()].concat();
            let _either = (Question::decode(&bytes).is_ok(), Reply::decode(&bytes).is_ok());
        }

        #[test]
        fn nothing_follows_what_is_read(question in question(), more in 33_u8..) {
            let mut written = question.encode().unwrap();
            written.push(more);
            prop_assert!(Question::decode(&written).is_err());
        }

        #[test]
        fn a_put_is_no_larger_than_it_is_taken_to_be(state in state()) {
            let size = state.encode().unwrap().len();
            let put = Question::Put { state, base: None, acknowledged_by: 1, insist: true, again: false };
            prop_assert_eq!(put.encode().unwrap().len(), size + BESIDE_A_STATE);
        }
    }
}
