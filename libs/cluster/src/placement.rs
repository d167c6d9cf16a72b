//! Which node holds which session: pure, and the same on every node that knows the same members.
//!
//! Sessions fall into [`Slot`]s by bits of their id that are random. For each slot every member has a weight, a hash of the slot and the
//! member's name; the heaviest is its *owner*, the next `copies` are its *partners*, and all of them are its *holders*. That is rendezvous hashing
//! (Thaler and Ravishankar 1998, "highest random weight"): when a member goes its slots alone move, each to who comes next; when one comes it
//! takes an even share from all. It is hashed by slot rather than by session so that nodes can compare, hand over and drop sessions slot by slot.
//!
//! A member is hashed by its name, so a node that starts again under it is given what it held before.

use sealing::sha256;
use session_model::{SLOTS, Slot, mix};

use crate::Incarnation;

/// Who holds what, among certain members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    me: Incarnation,
    digest: u64,
    members: Vec<Incarnation>,
    /// For each slot its holders, the owner first.
    holders: Vec<Incarnation>,
    /// Holders of each slot: the copies and one, or all members where those are fewer.
    width: usize,
    /// What each member holds: see [`Placement::share`].
    shares: Vec<(Incarnation, u64)>,
}

impl Placement {
    /// That among these members, by name and incarnation, this node being one of them.
    pub fn new(me: Incarnation, members: &[(String, Incarnation)], copies: u8) -> Self {
        let mut members: Vec<(u64, Incarnation, &str)> =
            members.iter().map(|(name, who)| (word(name.as_bytes()), *who, name.as_str())).collect();
        members.sort_unstable_by_key(|(_, who, name)| (*name, *who));
        members.dedup_by_key(|(_, who, _)| *who);
        let mut told = vec![copies];
        for (_, who, name) in &members {
            told.extend_from_slice(&who.0);
            told.extend_from_slice(&(name.len() as u64).to_be_bytes());
            told.extend_from_slice(name.as_bytes());
        }
        let width = members.len().min(usize::from(copies) + 1);
        let mut holders = Vec::with_capacity(SLOTS * width);
        let mut ranked: Vec<(u64, Incarnation)> = Vec::with_capacity(members.len());
        for slot in Slot::all() {
            ranked.clear();
            ranked.extend(members.iter().map(|(name, who, _)| (mix(name ^ mix(u64::from(slot.number()))), *who)));
            ranked.sort_unstable_by(|a, b| b.cmp(a));
            holders.extend(ranked.iter().take(width).map(|(_, who)| *who));
        }
        let members: Vec<Incarnation> = members.into_iter().map(|(_, who, _)| who).collect();
        // 0 means none where it is told.
        let mut placement = Self { me, digest: word(&told).max(1), members, holders, width, shares: Vec::new() };
        placement.shares = placement.members.iter().map(|who| (*who, placement.share_of(*who))).collect();
        placement
    }

    /// This node.
    pub const fn me(&self) -> Incarnation {
        self.me
    }

    /// A number that two nodes have in common exactly if they place by the same members and copies, but for one time in 2^64.
    pub const fn digest(&self) -> u64 {
        self.digest
    }

    /// The members, this node included.
    pub fn members(&self) -> &[Incarnation] {
        &self.members
    }

    /// The members but this node.
    pub fn others(&self) -> impl Iterator<Item = Incarnation> + '_ {
        self.members.iter().copied().filter(|who| *who != self.me)
    }

    /// Who holds a slot, the owner first.
    pub fn holders(&self, slot: Slot) -> &[Incarnation] {
        let from = slot.index() * self.width;
        self.holders.get(from..from + self.width).unwrap_or_default()
    }

    /// Who decides on the sessions of a slot.
    pub fn owner(&self, slot: Slot) -> Incarnation {
        self.holders(slot).first().copied().unwrap_or(self.me)
    }

    /// Who keeps copies of them.
    pub fn partners(&self, slot: Slot) -> &[Incarnation] {
        self.holders(slot).get(1..).unwrap_or_default()
    }

    /// Whether a node is one of a slot's holders.
    pub fn is_held_by(&self, slot: Slot, who: Incarnation) -> bool {
        self.holders(slot).contains(&who)
    }

    /// Whether this node is.
    pub fn is_held_here(&self, slot: Slot) -> bool {
        self.is_held_by(slot, self.me)
    }

    /// Whether this node decides on a slot.
    pub fn is_owned_here(&self, slot: Slot) -> bool {
        self.owner(slot) == self.me
    }

    /// A number that tells which slots a node holds from every other choice of slots, but for one time in 2^64.
    pub fn share(&self, who: Incarnation) -> u64 {
        self.shares.iter().find(|(member, _)| *member == who).map_or(0, |(_, share)| *share)
    }

    fn share_of(&self, who: Incarnation) -> u64 {
        let held = Slot::all().filter(|slot| self.is_held_by(*slot, who));
        held.fold(0, |mixed, slot| mix(mixed ^ u64::from(slot.number()) ^ 0x5107))
    }
}

/// The first eight bytes of a SHA-256.
fn word(bytes: &[u8]) -> u64 {
    sha256(bytes).0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const ME: Incarnation = Incarnation([1; 16]);

    fn members(names: &[u8]) -> Vec<(String, Incarnation)> {
        names.iter().map(|n| (format!("node-{n}"), Incarnation([*n; 16]))).collect()
    }

    fn names() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::btree_set(2_u8..60, 1..12).prop_map(|others| [1].into_iter().chain(others).collect())
    }

    proptest! {
        /// In whatever order they learned of the members, and whoever of them asks.
        #[test]
        fn it_is_the_same_on_every_node(names in names(), copies in 0_u8..4, turn in any::<prop::sample::Index>()) {
            let all = members(&names);
            let mut turned = all.clone();
            turned.rotate_left(turn.index(all.len()));
            let here = Placement::new(ME, &all, copies);
            let there = Placement::new(all[all.len() - 1].1, &turned, copies);
            prop_assert_eq!(&here.holders, &there.holders);
            prop_assert_eq!(here.digest(), there.digest());
            prop_assert!(here.digest() != Placement::new(ME, &all, copies + 1).digest());
        }

        /// Each slot has an owner and the asked partners, all different, as far as there are members.
        #[test]
        fn holders_are_many_enough_and_different(names in names(), copies in 0_u8..4) {
            let placement = Placement::new(ME, &members(&names), copies);
            for slot in Slot::all() {
                let holders = placement.holders(slot);
                prop_assert_eq!(holders.len(), names.len().min(usize::from(copies) + 1));
                prop_assert!(holders.iter().enumerate().all(|(at, who)| !holders[..at].contains(who)));
                prop_assert_eq!((placement.owner(slot), placement.partners(slot)), (holders[0], &holders[1..]));
            }
        }

        /// When a member goes, what it did not hold stays where it is; what it held loses it and wins who comes next. Seen from the other side:
        /// when one comes nothing moves but to it.
        #[test]
        fn who_comes_or_goes_moves_its_own_share_alone(names in names(), copies in 0_u8..3, which in any::<prop::sample::Index>()) {
            let with = members(&names);
            let gone = with[1 + which.index(with.len() - 1)].1;
            let without: Vec<_> = with.iter().filter(|(_, who)| *who != gone).cloned().collect();
            let (with, without) = (Placement::new(ME, &with, copies), Placement::new(ME, &without, copies));
            for slot in Slot::all() {
                let left: Vec<_> = with.holders(slot).iter().copied().filter(|who| *who != gone).collect();
                prop_assert!(without.holders(slot).starts_with(&left), "those left keep their order");
                if !with.is_held_by(slot, gone) {
                    prop_assert_eq!(with.holders(slot), without.holders(slot));
                }
            }
        }

        #[test]
        fn a_share_is_told_from_another(names in names(), more in 60_u8..200) {
            let (few, many) = (members(&names), members(&[names.as_slice(), &[more]].concat()));
            let (few, many) = (Placement::new(ME, &few, 1), Placement::new(ME, &many, 1));
            let slots = |placement: &Placement| Slot::all().filter(|slot| placement.is_held_here(*slot)).collect::<Vec<_>>();
            prop_assert_eq!(few.share(ME) == many.share(ME), slots(&few) == slots(&many));
        }
    }

    #[test]
    fn everybody_holds_about_as_much() {
        for (count, most) in [(2_u8, 1.12), (3, 1.15), (5, 1.25), (10, 1.4)] {
            let names: Vec<u8> = (1..=count).collect();
            let placement = Placement::new(ME, &members(&names), 1);
            let (mut owned, mut held) = (BTreeMap::new(), BTreeMap::new());
            for slot in Slot::all() {
                *owned.entry(placement.owner(slot)).or_insert(0) += 1;
                for who in placement.holders(slot) {
                    *held.entry(*who).or_insert(0) += 1;
                }
            }
            for (counted, copies) in [(owned, 1.0), (held, 2.0)] {
                let share = SLOTS as f64 * copies / f64::from(count);
                let fullest = f64::from(*counted.values().max().unwrap());
                assert!(counted.len() == usize::from(count) && fullest < share * most, "{count}: {fullest} of {share}");
            }
        }
    }

    /// A name that starts again is given the same slots, and everybody sees that it is another life.
    #[test]
    fn a_node_that_starts_again_is_given_what_it_held() {
        let before = Placement::new(ME, &members(&[1, 2, 3]), 1);
        let again = [("node-2".to_owned(), Incarnation([77; 16]))];
        let after: Vec<_> = members(&[1, 3]).into_iter().chain(again).collect();
        let after = Placement::new(ME, &after, 1);
        assert!(before.digest() != after.digest());
        assert_eq!(before.share(Incarnation([2; 16])), after.share(Incarnation([77; 16])));
        assert_eq!(before.share(ME), after.share(ME));
    }
}
