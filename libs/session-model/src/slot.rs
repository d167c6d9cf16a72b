//! Parts that all sessions fall into, where nodes share out among themselves who holds which.

use crate::SessionId;

/// Slots that sessions fall into. Among three nodes that each hold two thirds the fullest has some three in a hundred more than its share, by
/// the spread of a hash; and a sum for each slot still fits one frame between nodes.
pub const SLOTS: usize = 1_024;

/// A part of all sessions, which the same nodes hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// That of a session: the last ten bits of its id, which are random in a UUIDv7 (RFC 9562 section 5.7).
    pub fn of(id: SessionId) -> Self {
        let [.., high, low] = *id.uuid().as_bytes();
        Self(u16::from_be_bytes([high & 3, low]))
    }

    /// The slot of a number, if there is one.
    pub fn new(number: u16) -> Option<Self> {
        (usize::from(number) < SLOTS).then_some(Self(number))
    }

    /// Its number, below [`SLOTS`].
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Its place in a table of all slots.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Every slot.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS as u16).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn sessions_fall_into_slots_by_their_last_bits() {
        let of = |id: u128| Slot::of(SessionId::new(Uuid::from_u128(id))).number();
        assert_eq!((of(0), of(1), of(1_023), of(1_024), of(u128::MAX)), (0, 1, 1_023, 0, 1_023));
        assert_eq!((Slot::new(1_023).map(Slot::number), Slot::new(1_024)), (Some(1_023), None));
        assert_eq!(Slot::all().count(), SLOTS);
    }
}
