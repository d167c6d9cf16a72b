//! Which of two states of one session stands where no log arbitrates: one pure rule, the same on every node.
//!
//! *An end beats every change; then the higher version wins; then the later stamp.* Stamps are unique, so the rule is a total order
//! over the states of a session, and taking the greater one is a join: in whatever order states arrive, however often, and however they
//! were cut off from one another, all nodes come to hold the same. What the rule cannot give is what a log gives: of two changes that
//! were made to one version, one is lost. [`Stamped::join`] says when that has happened.
//!
//! The last use is no part of the order: the later one survives whichever state wins.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Attributes, Digest, Head, KeyId, LeafIndex, Session, SessionId, Timestamp, TreeSize, Version, mix};

/// When a state was made, and by whom. No two states of a session have the same: a process makes one state of a session at a time, each on
/// a higher version than it held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// The maker's time.
    pub at: Timestamp,
    /// One life of the maker's process: random.
    pub writer: Uuid,
}

/// A state of a session that no entry of a log stands behind.
#[derive(Debug, Clone)]
pub struct Stamped {
    /// The state. Its `head` and `data_key` mean nothing: see [`nowhere`] and [`no_key`].
    pub session: Arc<Session>,
    /// Of the state.
    pub stamp: Stamp,
}

/// What became of two states that met.
#[derive(Debug, Clone)]
#[must_use]
pub enum Joined {
    /// The one that was held stands as it was.
    Held,
    /// Another stands from now on.
    Changed {
        /// Which.
        state: Stamped,
        /// Whether a change was lost that nobody knew of who made the one that stands.
        lost: bool,
    },
    /// The one that was held stands, and a change was lost.
    HeldAndLost,
}

impl Stamped {
    fn rank(&self) -> (bool, Version, Stamp) {
        (self.session.ended().is_some(), self.session.version, self.stamp)
    }

    /// The state that stands when this one, which is held, meets another of the same session.
    pub fn join(&self, other: &Self) -> Joined {
        let wins = other.rank() > self.rank();
        let (winner, loser) = if wins { (other, self) } else { (self, other) };
        // An active state that is no older than what beat it was made without knowing of it. That two nodes find the same session expired is
        // nobody's loss.
        let lost = winner.stamp != loser.stamp
            && loser.session.ended().is_none()
            && loser.session.version >= winner.session.version;
        let seen = winner.session.last_seen_at.max(loser.session.last_seen_at);
        let used = seen > winner.session.last_seen_at;
        if !wins && !used {
            return if lost { Joined::HeldAndLost } else { Joined::Held };
        }
        let mut state = winner.clone();
        if used {
            state.session = Arc::new(Session { last_seen_at: seen, ..Session::clone(&winner.session) });
        }
        Joined::Changed { state, lost }
    }

    /// What is kept of it: of an ended session nothing personal. A session that has ended is known by its id, and by its last token to
    /// whoever holds that, until nobody can hold it for open any more.
    #[must_use]
    pub fn kept(self) -> Self {
        if self.session.ended().is_none() {
            return self;
        }
        let bare = Session {
            subject: None,
            attributes: Attributes::empty(),
            authentication: None,
            client: None,
            previous: None,
            retired: Vec::new(),
            ..Session::clone(&self.session)
        };
        Self { session: Arc::new(bare), stamp: self.stamp }
    }

    /// Its bytes, as nodes send them to each other and stores seal them.
    ///
    /// # Errors
    /// If it cannot be written, which cannot be.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        #[derive(Serialize)]
        struct Written<'a> {
            session: &'a Session,
            stamp: Stamp,
        }
        serde_json::to_vec(&Written { session: &self.session, stamp: self.stamp })
    }

    /// Reads what [`Stamped::encode`] wrote.
    ///
    /// # Errors
    /// If it did not write it.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Read {
            session: Session,
            stamp: Stamp,
        }
        let Read { session, stamp } = serde_json::from_slice(bytes)?;
        Ok(Self { session: Arc::new(session), stamp })
    }

    /// A number that tells states apart, for nodes that compare what they hold: any difference in what the rule looks at, and in the last use,
    /// makes another, but for one time in 2^64.
    pub fn fingerprint(&self) -> u64 {
        let [a, b] = halves(self.session.id.uuid());
        let [c, d] = halves(self.stamp.writer);
        let micros = |time: Timestamp| time.as_micros().cast_unsigned();
        let ended = u64::from(self.session.ended().is_some());
        let words =
            [a, b, ended, self.session.version.0, micros(self.stamp.at), c, d, micros(self.session.last_seen_at)];
        words.into_iter().fold(0, |mixed, word| mix(mixed ^ word))
    }
}

/// The id's bucket, where nodes compare what they hold bucket by bucket: its last byte, which is random.
pub fn bucket(id: SessionId) -> u8 {
    let [.., last] = *id.uuid().as_bytes();
    last
}

/// Where the newest entry of a session stands that has none.
pub const fn nowhere() -> Head {
    Head { index: LeafIndex(0), hash: Digest([0; 32]), tree_size: TreeSize(0) }
}

/// The data key of a session that none seals.
pub const fn no_key() -> KeyId {
    KeyId::new(Uuid::nil())
}

fn halves(id: Uuid) -> [u64; 2] {
    let (high, low) = id.as_u64_pair();
    [high, low]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{EndReason, Ended, Kind, Seconds, State, TokenDigest};

    fn state(ended: bool, version: u64, at: i64, writer: u128, seen: i64) -> Stamped {
        let end = Ended { reason: EndReason::ExpiredIdle, at: Timestamp::from_micros(at) };
        let session = Session {
            id: SessionId::new(Uuid::from_u128(7)),
            realm: "cache".parse().unwrap(),
            version: Version(version),
            head: nowhere(),
            state: if ended { State::Ended(end) } else { State::Active },
            subject: Some("ada".into()),
            data_key: no_key(),
            kind: Kind::Web,
            attributes: Attributes::empty(),
            authentication: None,
            client: None,
            created_at: Timestamp::from_micros(0),
            last_seen_at: Timestamp::from_micros(seen),
            idle_timeout: Seconds(60),
            expires_at: Timestamp::from_micros(1_000_000_000),
            token: TokenDigest::new(Digest([1; 32])),
            token_issued_at: Timestamp::from_micros(0),
            previous: None,
            retired: Vec::new(),
            reuse_recorded: false,
        };
        let stamp = Stamp { at: Timestamp::from_micros(at), writer: Uuid::from_u128(writer) };
        Stamped { session: Arc::new(session), stamp }
    }

    /// Few values, so that all of them meet; what a stamp says follows from the rest, because stamps are unique.
    fn any_state() -> impl Strategy<Value = Stamped> {
        (any::<bool>(), 1_u64..5, 0_i64..3, 0_u128..3, 0_i64..4).prop_map(|(ended, version, at, writer, seen)| {
            let unique = at * 100 + i64::try_from(version).unwrap() * 10 + i64::from(ended);
            state(ended, version, unique, writer, seen)
        })
    }

    fn joined(held: &Stamped, came: &Stamped) -> Stamped {
        match held.join(came) {
            Joined::Held | Joined::HeldAndLost => held.clone(),
            Joined::Changed { state, .. } => state,
        }
    }

    fn parts(state: &Stamped) -> ((bool, Version, Stamp), Timestamp) {
        (state.rank(), state.session.last_seen_at)
    }

    fn loses(held: &Stamped, came: &Stamped) -> bool {
        matches!(held.join(came), Joined::HeldAndLost | Joined::Changed { lost: true, .. })
    }

    proptest! {
        #[test]
        fn taking_what_stands_is_a_join(a in any_state(), b in any_state(), c in any_state()) {
            prop_assert_eq!(parts(&joined(&a, &a)), parts(&a), "idempotent");
            prop_assert_eq!(parts(&joined(&a, &b)), parts(&joined(&b, &a)), "commutative");
            prop_assert_eq!(parts(&joined(&joined(&a, &b), &c)), parts(&joined(&a, &joined(&b, &c))), "associative");
            prop_assert_eq!(loses(&a, &b), loses(&b, &a), "both sides say the same of what was lost");
        }

        #[test]
        fn an_end_stands_whatever_comes(a in any_state(), b in any_state()) {
            let ended = |state: &Stamped| state.session.ended().is_some();
            prop_assert_eq!(ended(&joined(&a, &b)), ended(&a) || ended(&b));
        }

        #[test]
        fn what_is_held_says_so_only_if_it_stays_what_it_was(a in any_state(), b in any_state()) {
            match a.join(&b) {
                Joined::Held | Joined::HeldAndLost => prop_assert_eq!(parts(&joined(&b, &a)), parts(&a)),
                Joined::Changed { state, .. } => prop_assert_ne!(parts(&state), parts(&a)),
            }
        }

        #[test]
        fn fingerprints_are_the_same_exactly_for_the_same(a in any_state(), b in any_state()) {
            prop_assert_eq!(a.fingerprint() == b.fingerprint(), parts(&a) == parts(&b));
        }
    }

    #[test]
    fn a_lost_change_is_told_of_and_an_old_one_is_not() {
        let (third, fourth) = (state(false, 3, 30, 1, 0), state(false, 4, 40, 1, 0));
        assert!(!loses(&third, &fourth), "it was built upon");
        assert!(loses(&fourth, &state(false, 4, 41, 2, 0)), "two made the fourth");
        assert!(!loses(&third, &state(true, 4, 41, 2, 0)), "it was ended as it stood");
        assert!(
            loses(&state(false, 6, 60, 1, 0), &state(true, 4, 41, 2, 0)),
            "changed by who had not heard of the end"
        );
        assert!(!loses(&state(true, 4, 40, 1, 0), &state(true, 4, 41, 2, 0)), "two found it expired");
    }

    #[test]
    fn it_is_read_as_it_was_written_and_an_end_keeps_nothing_personal() {
        let written = state(false, 3, 30, 1, 9);
        let read = Stamped::decode(&written.encode().unwrap()).unwrap();
        assert_eq!((parts(&read), read.session.subject.as_deref()), (parts(&written), Some("ada")));
        let kept = state(true, 4, 40, 1, 9).kept();
        assert!(!String::from_utf8(kept.encode().unwrap()).unwrap().contains("ada"));
        assert_eq!(parts(&kept), parts(&state(true, 4, 40, 1, 9)));
        assert_eq!(state(false, 4, 40, 1, 9).kept().session.subject.as_deref(), Some("ada"));
    }
}
