//! The names of files, which say all that is needed to tell which of two is newer, and when a session is due.

use std::fmt;

use session_model::{LeafIndex, Session, SessionId, Timestamp};
use session_value::Header;

/// A file of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    /// `a-<leaf index>-<last seen>-<idle timeout>-<expiry>`: the value of an active state.
    Active(ActiveName),
    /// `e-<leaf index>`: the value of a tombstone.
    Ended(LeafIndex),
    /// `u-<time>`: an empty file that marks a use.
    Used(Timestamp),
    /// `t-<writer>-<number>`: a value that is being written.
    Temporary,
}

/// What the name of an active state says; times in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ActiveName {
    pub(crate) index: LeafIndex,
    pub(crate) seen: Timestamp,
    pub(crate) idle: i64,
    pub(crate) expires: Timestamp,
}

/// A name that has a value behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueName {
    Active(ActiveName),
    Ended(LeafIndex),
}

impl ValueName {
    pub(crate) fn of(state: &Session) -> Self {
        let index = state.head.index;
        match state.ended() {
            Some(_) => Self::Ended(index),
            None => Self::Active(ActiveName {
                index,
                seen: state.last_seen_at,
                idle: state.idle_timeout.as_micros(),
                expires: state.expires_at,
            }),
        }
    }

    /// What decides which of two is shown: a tombstone is final, then the greater leaf index, then the later use.
    pub(crate) fn order(self) -> (bool, LeafIndex, Timestamp) {
        match self {
            Self::Active(name) => (false, name.index, name.seen),
            Self::Ended(index) => (true, index, Timestamp::default()),
        }
    }

    /// Whether a state may not replace what this name stands for.
    pub(crate) fn outdates(self, other: Self) -> bool {
        let (ended, index, _) = self.order();
        let (other_ended, other_index, _) = other.order();
        index >= other_index || (ended && !other_ended)
    }

    /// Whether a value is the one that was stored under this name.
    pub(crate) fn is_of(self, header: &Header) -> bool {
        match self {
            Self::Active(name) => {
                !header.ended
                    && (header.index, header.last_seen) == (name.index, name.seen)
                    && (header.idle_micros, header.expires_at) == (name.idle, name.expires)
            }
            Self::Ended(index) => header.ended && header.index == index,
        }
    }
}

impl ActiveName {
    /// The earlier of the idle and the absolute deadline.
    pub(crate) fn deadline(self, used: Option<Timestamp>) -> Timestamp {
        let seen = used.map_or(self.seen, |used| used.max(self.seen));
        Timestamp::from_micros(seen.as_micros().saturating_add(self.idle)).min(self.expires)
    }
}

impl fmt::Display for ValueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active(name) => {
                write!(f, "a-{:016x}-{}-{:016x}-{}", name.index.0, hex(name.seen), name.idle, hex(name.expires))
            }
            Self::Ended(index) => write!(f, "e-{:016x}", index.0),
        }
    }
}

/// The name of a mark.
pub(crate) fn used_name(at: Timestamp) -> String {
    format!("u-{}", hex(at))
}

impl Name {
    /// `None` for a name that no view gives. Each thing has one name: what reads back otherwise is foreign.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let kind = parts.next()?;
        let mut number = || parts.next().and_then(number);
        let parsed = match kind {
            "a" => {
                let (index, seen, idle, expires) = (number()?, number()?, number()?, number()?);
                let (seen, expires) = (time(seen), time(expires));
                Self::Active(ActiveName { index: LeafIndex(index), seen, idle: i64::try_from(idle).ok()?, expires })
            }
            "e" => Self::Ended(LeafIndex(number()?)),
            "u" => Self::Used(time(number()?)),
            "t" => return Some(Self::Temporary),
            _ => return None,
        };
        parts.next().is_none().then_some(parsed)
    }
}

/// `<deadline>-<session id>`: an empty file that says when a session may be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Marker {
    pub(crate) deadline: Timestamp,
    pub(crate) id: SessionId,
}

impl Marker {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (deadline, id) = name.split_once('-')?;
        let marker = Self { deadline: time(number(deadline)?), id: id.parse().ok()? };
        (marker.to_string() == name).then_some(marker)
    }

    pub(crate) fn bucket(self) -> i64 {
        bucket(self.deadline)
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", hex(self.deadline), self.id)
    }
}

/// Deadlines within one folder of the index.
const BUCKET_MICROS: i64 = 60_000_000;

/// The folder of the index that a deadline is in.
pub(crate) fn bucket(deadline: Timestamp) -> i64 {
    deadline.as_micros().div_euclid(BUCKET_MICROS)
}

/// Two's complement: names are compared by what they say, never as text.
fn hex(time: Timestamp) -> String {
    format!("{:016x}", time.as_micros())
}

fn number(hex: &str) -> Option<u64> {
    let digits = hex.len() == 16 && hex.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if digits { u64::from_str_radix(hex, 16).ok() } else { None }
}

fn time(number: u64) -> Timestamp {
    Timestamp::from_micros(number.cast_signed())
}

#[cfg(test)]
mod tests {
    use session_view::test_util::{at, ended, id, seen};

    use super::*;

    #[test]
    fn names_read_back() {
        for state in [seen(1, 7, 11), ended(1, 8)] {
            let name = ValueName::of(&state);
            let text = name.to_string();
            let expected = match name {
                ValueName::Active(name) => Name::Active(name),
                ValueName::Ended(index) => Name::Ended(index),
            };
            assert_eq!(Name::parse(&text), Some(expected), "{text}");
            assert_eq!(Name::parse(&format!("{text}-")), None);
            assert_eq!(Name::parse(&text[..text.len() - 1]), None);
            assert_eq!(Name::parse(&text.to_uppercase()), None);
        }
        for time in [at(5), Timestamp::from_micros(-1), Timestamp::default()] {
            assert_eq!(Name::parse(&used_name(time)), Some(Name::Used(time)));
            let marker = Marker { deadline: time, id: id(3) };
            assert_eq!(Marker::parse(&marker.to_string()), Some(marker));
        }
        for foreign in
            ["", "a", "a-", "..", "e-00000000000000zz", "x-0000000000000001", ".nfs0001", "e-+000000000000001"]
        {
            assert_eq!(Name::parse(foreign), None, "{foreign}");
            assert_eq!(Marker::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_tombstone_outdates_every_active_state_and_else_the_index_decides() {
        let (one, two) = (ValueName::of(&seen(1, 1, 0)), ValueName::of(&seen(1, 2, 0)));
        let (end, late) = (ValueName::of(&ended(1, 1)), ValueName::of(&ended(1, 3)));
        assert!(two.outdates(one) && two.outdates(two) && !one.outdates(two));
        assert!(end.outdates(two) && end.outdates(one) && !end.outdates(late) && late.outdates(end));
        assert!(!two.outdates(late) && one.order() < two.order() && two.order() < end.order());
    }
}
