//! Who is there: pure bookkeeping over beats. Nothing that must be right depends on it.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashMap;
use session_model::TreeSize;
use tokio::time::Instant;

use crate::{Beat, Incarnation};

/// How a member is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Heard, and it hears us.
    Up,
    /// Heard, but it does not say that it hears us: it has just come, or the way there is cut.
    OneWay,
    /// Not heard for longer than the lease.
    Silent,
    /// It said that it goes, or its transport did.
    Gone,
}

impl Presence {
    /// Its word in every interface.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::OneWay => "one_way",
            Self::Silent => "silent",
            Self::Gone => "gone",
        }
    }
}

/// Another node.
#[derive(Debug, Clone)]
pub struct Member {
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its name in entries.
    pub node: String,
    /// Version of its program.
    pub program: String,
    /// How it is to be taken.
    pub presence: Presence,
    /// Since when it is known.
    pub since: Instant,
    /// When it was last heard.
    pub heard: Instant,
    /// Size of the log when it last asked.
    pub size: TreeSize,
    /// How much of it its view reflects.
    pub reflects: TreeSize,
    /// How long ago it had asked the log, when it said so; `None` if it never could.
    pub log_age: Option<Duration>,
    /// The digest of the placement by which it holds sessions; `None` if it holds none by any.
    pub placement: Option<u64>,
    number: u64,
    /// Our newest beat that it says it had.
    echoed: Option<Instant>,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A node came, or came back.
    Up(String),
    /// A node went, fell silent, or is heard without hearing us.
    Down(String, Presence),
    /// Two processes that are both alive have one name.
    NameTaken(String),
}

/// What a beat proves of the log: every entry that the log had at `at` is below `size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// A time of this node.
    pub at: Instant,
    /// The size that the log did not exceed then.
    pub size: TreeSize,
}

/// The members, as one node sees them.
#[derive(Debug)]
pub(crate) struct Membership {
    node: String,
    lease: Duration,
    members: HashMap<Incarnation, Member>,
    /// When our newest beats were sent: an echo proves that what it comes with was said afterwards.
    sent: VecDeque<(u64, Instant)>,
    number: u64,
}

/// Members known at a time. A cluster of more is none of ours.
const MEMBERS: usize = 256;
/// Beats remembered to be echoed: more than go out within any lease.
const BEATS: usize = 64;
/// How long one that has gone is still shown, in leases.
const SHOWN: u32 = 30;

impl Membership {
    pub(crate) fn new(node: String, lease: Duration) -> Self {
        Self { node, lease, members: HashMap::new(), sent: VecDeque::new(), number: 0 }
    }

    /// Everybody known, by name.
    pub(crate) fn members(&self) -> Vec<Member> {
        let mut members: Vec<Member> = self.members.values().cloned().collect();
        members.sort_by(|a, b| (&a.node, a.incarnation).cmp(&(&b.node, b.incarnation)));
        members
    }

    /// The number of the beat that goes out now, and whom it echoes.
    pub(crate) fn beat(&mut self, now: Instant) -> (u64, Vec<(Incarnation, u64)>) {
        self.number += 1;
        self.sent.push_back((self.number, now));
        if self.sent.len() > BEATS {
            self.sent.pop_front();
        }
        let heard = self.members.values().filter(|member| member.presence != Presence::Gone);
        (self.number, heard.map(|member| (member.incarnation, member.number)).collect())
    }

    /// Takes a beat in. Says what it changes, and what it proves of the log.
    pub(crate) fn hear(
        &mut self,
        me: Incarnation,
        from: Incarnation,
        beat: &Beat,
        now: Instant,
    ) -> (Vec<Change>, Option<Heard>) {
        let mut changes = Vec::new();
        if !self.members.contains_key(&from) && self.members.len() >= MEMBERS {
            return (changes, None);
        }
        let echo = beat.heard.iter().find(|(who, _)| *who == me).map(|(_, number)| *number);
        let sent = echo.and_then(|echo| self.sent.iter().find(|(number, _)| *number == echo)).map(|(_, at)| *at);
        let log_age = (beat.log_age_ms != u32::MAX).then(|| Duration::from_millis(beat.log_age_ms.into()));
        let new = !self.members.contains_key(&from);
        let member = self.members.entry(from).or_insert_with(|| Member {
            incarnation: from,
            node: beat.node.clone(),
            program: beat.program.clone(),
            presence: Presence::OneWay,
            since: now,
            heard: now,
            size: beat.size,
            reflects: beat.reflects,
            log_age,
            placement: beat.placement,
            number: 0,
            echoed: None,
        });
        if beat.number <= member.number {
            // An older one that came later tells nothing.
            return (changes, None);
        }
        member.number = beat.number;
        member.heard = now;
        (member.size, member.reflects, member.log_age) = (beat.size, beat.reflects, log_age);
        member.placement = beat.placement;
        member.echoed = member.echoed.max(sent);
        let was = member.presence;
        member.presence = match member.echoed {
            _ if beat.leaving => Presence::Gone,
            Some(echoed) if now.duration_since(echoed) <= self.lease => Presence::Up,
            Some(_) | None => Presence::OneWay,
        };
        match (was, member.presence) {
            (Presence::Up, Presence::Up) => {}
            (_, Presence::Up) => changes.push(Change::Up(member.node.clone())),
            (Presence::Up, down) => changes.push(Change::Down(member.node.clone(), down)),
            (_, _) => {}
        }
        if new {
            let name = member.node.clone();
            let lease = self.lease;
            let alive = |other: &Member| {
                other.incarnation != from && other.node == name && now.duration_since(other.heard) < lease / 2
            };
            let twin = self.members.values().any(|other| alive(other) && other.presence != Presence::Gone);
            if name == self.node || twin {
                changes.push(Change::NameTaken(name));
            } else {
                // The same node in a new life: the old one need not be waited for.
                for old in self.members.values_mut().filter(|old| old.node == name && old.incarnation != from) {
                    old.presence = Presence::Gone;
                }
            }
        }
        // The beat was made after ours that it echoes, and its sender had asked the log `log_age` before.
        let at = sent.zip(log_age).and_then(|(sent, age)| sent.checked_sub(age));
        (changes, at.map(|at| Heard { at, size: beat.size }))
    }

    /// A transport says that a peer's process, or the connection to it, has gone.
    pub(crate) fn departed(&mut self, who: Incarnation) -> Vec<Change> {
        let Some(member) = self.members.get_mut(&who) else { return Vec::new() };
        let was = std::mem::replace(&mut member.presence, Presence::Gone);
        // What it may have said of us is over: if it comes back, it has to hear us again.
        member.echoed = None;
        if was == Presence::Gone { Vec::new() } else { vec![Change::Down(member.node.clone(), Presence::Gone)] }
    }

    /// Notices who has fallen silent, and forgets who is long gone.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Change> {
        let lease = self.lease;
        let mut changes = Vec::new();
        for member in self.members.values_mut() {
            let deaf = member.echoed.is_none_or(|echoed| now.duration_since(echoed) > lease);
            let presence = match member.presence {
                Presence::Gone => Presence::Gone,
                _ if now.duration_since(member.heard) > lease => Presence::Silent,
                _ if deaf => Presence::OneWay,
                presence => presence,
            };
            if member.presence == Presence::Up && presence != Presence::Up {
                changes.push(Change::Down(member.node.clone(), presence));
            }
            member.presence = presence;
        }
        let shown = |member: &Member| match member.presence {
            Presence::Up | Presence::OneWay => true,
            Presence::Silent | Presence::Gone => now.duration_since(member.heard) < lease * SHOWN,
        };
        self.members.retain(|_, member| shown(member));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(2);
    const ME: Incarnation = Incarnation([0; 16]);
    const OTHER: Incarnation = Incarnation([1; 16]);

    fn beat(number: u64, heard: &[(Incarnation, u64)]) -> Beat {
        Beat {
            node: "b".into(),
            program: "1".into(),
            number,
            size: TreeSize(10),
            reflects: TreeSize(10),
            log_age_ms: 100,
            leaving: false,
            heard: heard.to_vec(),
            placement: None,
        }
    }

    fn after(ms: u64, start: Instant) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_node_is_up_when_it_is_heard_and_hears_us_and_not_before() {
        let start = Instant::now();
        let mut members = Membership::new("a".into(), LEASE);
        let (number, heard) = members.beat(start);
        assert!(heard.is_empty());
        assert_eq!(members.hear(ME, OTHER, &beat(1, &[]), after(10, start)), (vec![], None));
        assert_eq!(members.members()[0].presence, Presence::OneWay);
        let (changes, proof) = members.hear(ME, OTHER, &beat(2, &[(ME, number)]), after(300, start));
        assert_eq!(changes, [Change::Up("b".into())]);
        // Said after our beat at `start`; it had asked the log 100 ms before it said so.
        assert_eq!(proof, start.checked_sub(Duration::from_millis(100)).map(|at| Heard { at, size: TreeSize(10) }));
        assert_eq!(members.beat(after(400, start)).1, [(OTHER, 2)]);
    }

    #[test]
    fn silence_and_deafness_are_told_apart_and_neither_lasts() {
        let start = Instant::now();
        let mut members = Membership::new("a".into(), LEASE);
        let (number, _) = members.beat(start);
        members.hear(ME, OTHER, &beat(1, &[(ME, number)]), start);
        // It goes on beating, but no longer hears us.
        let (changes, _) = members.hear(ME, OTHER, &beat(2, &[(ME, number)]), after(2_100, start));
        assert_eq!(changes, [Change::Down("b".into(), Presence::OneWay)]);
        assert!(members.tick(after(4_000, start)).is_empty());
        assert_eq!(members.tick(after(4_200, start)), []);
        assert_eq!(members.members()[0].presence, Presence::Silent);
        let (number, _) = members.beat(after(4_300, start));
        let (changes, _) = members.hear(ME, OTHER, &beat(3, &[(ME, number)]), after(4_400, start));
        assert_eq!(changes, [Change::Up("b".into())]);
        assert_eq!(members.tick(after(6_500, start)), [Change::Down("b".into(), Presence::Silent)]);
        members.tick(after(90_000, start));
        assert!(members.members().is_empty(), "forgotten in the end");
    }

    #[test]
    fn a_captured_beat_proves_nothing() {
        let start = Instant::now();
        let mut members = Membership::new("a".into(), LEASE);
        // Echoes a number that this life of ours has not sent yet, as a capture from a former life would.
        let (changes, proof) = members.hear(ME, OTHER, &beat(1, &[(ME, 5)]), start);
        assert_eq!((changes, proof), (vec![], None));
        let (number, _) = members.beat(start);
        members.hear(ME, OTHER, &beat(2, &[(ME, number)]), start);
        // The same one again, and an older one.
        assert_eq!(members.hear(ME, OTHER, &beat(2, &[(ME, number)]), after(5, start)), (vec![], None));
        assert_eq!(members.hear(ME, OTHER, &beat(1, &[(ME, number)]), after(5, start)), (vec![], None));
    }

    #[test]
    fn a_new_life_takes_the_name_and_a_twin_is_told_of() {
        let start = Instant::now();
        let mut members = Membership::new("a".into(), LEASE);
        members.hear(ME, OTHER, &beat(1, &[]), start);
        let again = Incarnation([2; 16]);
        // The old life was silent for a second: it was started again.
        assert_eq!(members.hear(ME, again, &beat(1, &[]), after(1_000, start)).0, []);
        let old = members.members().into_iter().find(|member| member.incarnation == OTHER);
        assert_eq!(old.map(|old| old.presence), Some(Presence::Gone));
        // Another with the same name while that one is alive.
        let twin = Incarnation([3; 16]);
        assert_eq!(members.hear(ME, twin, &beat(1, &[]), after(1_010, start)).0, [Change::NameTaken("b".into())]);
        // And one with ours.
        let own = Beat { node: "a".into(), ..beat(1, &[]) };
        assert_eq!(members.hear(ME, Incarnation([4; 16]), &own, start).0, [Change::NameTaken("a".into())]);
    }

    #[test]
    fn who_leaves_is_gone_at_once_and_may_come_back() {
        let start = Instant::now();
        let mut members = Membership::new("a".into(), LEASE);
        let (number, _) = members.beat(start);
        members.hear(ME, OTHER, &beat(1, &[(ME, number)]), start);
        let leaving = Beat { leaving: true, ..beat(2, &[(ME, number)]) };
        assert_eq!(members.hear(ME, OTHER, &leaving, start).0, [Change::Down("b".into(), Presence::Gone)]);
        assert!(members.departed(OTHER).is_empty(), "told once");
        assert_eq!(members.beat(start).1, [], "nobody waits for an echo");
        let (number, _) = members.beat(after(100, start));
        let (changes, _) = members.hear(ME, OTHER, &beat(3, &[(ME, number)]), after(110, start));
        assert_eq!(changes, [Change::Up("b".into())]);
    }
}
