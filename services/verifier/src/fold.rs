//! What only shows when entries are taken in order: times, checkpoints, and the sessions that follow from them.

use std::collections::{BTreeMap, HashMap};

use session_model::{
    Action, Head, KeyId, LeafHash, LeafIndex, Outcome, PreviousLeaf, RealmName, Recorded, Session, SessionId,
    Timestamp, TreeSize, Version, apply,
};

use crate::gone::Gone;
use crate::group::{Entry, Group, Part};
use crate::report::{Erased, Finding, Pruned, Pruning, Report};
use crate::stamps::Stamps;

/// The newest entry that was seen of a session that has not ended.
struct Last {
    version: Version,
    index: u64,
    hash: LeafHash,
    realm: RealmName,
    replay: Replay,
}

/// How far a session was replayed.
enum Replay {
    /// From its first entry to the newest.
    Whole(Option<Box<Session>>),
    /// From its first entry to its end.
    Ended,
    /// Something on the way was not open.
    Partly,
}

impl Replay {
    /// Whether nothing on the way was closed.
    const fn is_whole(&self) -> bool {
        matches!(self, Self::Whole(Some(_)) | Self::Ended)
    }
}

/// Goes through the groups in order.
pub(crate) struct Fold {
    first: u64,
    time: Timestamp,
    /// Size of the newest checkpoint that was good.
    good: u64,
    /// Whether a checkpoint was bad: those behind it then are too, and are not named one by one.
    bad: u64,
    revealed: bool,
    sessions: HashMap<SessionId, Last>,
    /// Those that ended, and the entry that ended each. Of a long log these are nearly all: nothing else is remembered of them, for nothing
    /// may follow.
    ended: HashMap<SessionId, u64>,
    /// How many of those were replayed from their first entry.
    replayed: u64,
    erased: BTreeMap<KeyId, Erased>,
    recorded: Vec<(u64, Option<KeyId>)>,
    /// The key that a session had of its own before its subject was bound to it, and the subject's: they are destroyed together.
    owners: BTreeMap<KeyId, KeyId>,
    /// What is wrong with the tree: never with what a good checkpoint covers.
    tree: Vec<Finding>,
    findings: Vec<Finding>,
    report: Report,
    stamps: Stamps,
    gone: Gone,
    prunings: Vec<Pruning>,
}

impl Fold {
    pub(crate) fn new(report: Report, revealed: bool, stamps: Stamps) -> Self {
        Self {
            first: report.first,
            time: Timestamp::from_micros(i64::MIN),
            good: 0,
            bad: 0,
            revealed,
            sessions: HashMap::new(),
            ended: HashMap::new(),
            replayed: 0,
            erased: BTreeMap::new(),
            recorded: Vec::new(),
            owners: BTreeMap::new(),
            tree: Vec::new(),
            findings: Vec::new(),
            report,
            stamps,
            gone: Gone::default(),
            prunings: Vec::new(),
        }
    }

    /// Takes the next group.
    pub(crate) fn take(&mut self, group: Group) {
        self.tree.extend(group.findings);
        self.report.entries += group.hashed;
        for (size, good) in group.checkpoints {
            match good {
                Ok(()) => {
                    self.report.checkpoints += 1;
                    self.good = self.good.max(size);
                }
                Err(why) => {
                    if self.bad == 0 {
                        let what = format!("the checkpoint over the first {size} entries is not good: {why}");
                        self.findings.push(Finding::within(self.good.min(size.saturating_sub(1)), size, what));
                    }
                    self.bad += 1;
                }
            }
        }
        for entry in group.entries {
            self.entry(entry);
        }
    }

    fn wrong(&mut self, index: u64, what: impl Into<String>) {
        self.findings.push(Finding::at(index, what));
    }

    fn entry(&mut self, entry: Entry) {
        if entry.leaf.time < self.time {
            self.wrong(entry.index, format!("its time {} is before that of the entry before it", entry.leaf.time));
        }
        self.time = self.time.max(entry.leaf.time);
        if let Some(what) = self.stamps.contradict(entry.index, entry.leaf.time) {
            self.wrong(entry.index, what);
        }
        self.part(&entry);
        match (entry.leaf.session_id, entry.leaf.version) {
            (Some(id), Some(version)) => self.session(id, version, entry),
            (_, None) if entry.leaf.previous.is_some() => {
                self.wrong(entry.index, "it names an entry before it, but makes no version of a session");
            }
            (None, Some(_)) => self.wrong(entry.index, "it makes a version of no session"),
            (_, None) => {}
        }
    }

    /// Counts what was opened, and what is gone; notes the entries that say why.
    fn part(&mut self, entry: &Entry) {
        match &entry.part {
            Part::None | Part::Wrong => {}
            Part::Open(_) => {
                self.report.opened += 1;
                self.gone.there(&entry.leaf.realm);
            }
            Part::Closed => {
                self.gone.there(&entry.leaf.realm);
                self.report.closed += 1;
                if let Some(key) = entry.leaf.data_key.filter(|_| self.revealed) {
                    let erased = Erased { data_key: key, entries: 0, recorded_at: None };
                    self.erased.entry(key).or_insert(erased).entries += 1;
                }
            }
            Part::Gone => {
                self.gone.gone(&entry.leaf.realm, entry.index);
                let (first, last) = (entry.index, entry.index);
                let none = Pruned { entries: 0, first, last, recorded_at: Vec::new(), by: Vec::new(), unexplained: 0 };
                let pruned = self.report.pruned.get_or_insert(none);
                pruned.entries += 1;
                pruned.last = entry.index;
            }
        }
        if entry.leaf.session_id.is_none() && entry.leaf.outcome == Outcome::Success && takes_away(&entry.leaf.action) {
            // An erasure names the key that it destroyed: it is sealed by another, since that one is gone.
            let named = entry.leaf.detail.get("subject_key").and_then(|key| key.parse().ok());
            self.recorded.push((entry.index, named.or(entry.leaf.data_key)));
            let number = |name: &str| entry.leaf.detail.get(name).and_then(|text| text.parse().ok());
            if let (Some(first), Some(end)) = (number("first"), number("end")) {
                let bundle = entry.leaf.detail.get("bundle").cloned().unwrap_or_default();
                let realm = entry.leaf.realm.clone();
                self.prunings.push(Pruning { recorded_at: entry.index, realm, first, end, bundle });
            }
        }
        if self.revealed
            && entry.leaf.action == Action::SessionAuthenticated
            && let (Some(id), Some(key)) = (entry.leaf.session_id, entry.leaf.data_key)
        {
            self.owners.insert(KeyId::new(id.uuid()), key);
        }
    }

    fn session(&mut self, id: SessionId, version: Version, entry: Entry) {
        let index = entry.index;
        if let Some(ended) = self.ended.get(&id) {
            self.wrong(index, format!("session {id} had ended in entry {ended}"));
            return;
        }
        let last = self.sessions.remove(&id);
        match (&last, entry.leaf.previous) {
            (None, None) if version == Version(1) => {}
            (None, None) => {
                self.wrong(index, format!("it is version {version} of its session, and names no entry before it"))
            }
            (Some(_), None) => self.wrong(index, format!("session {id} begins a second time")),
            (None, Some(previous)) if version <= Version(1) || previous.index.0 >= index => {
                self.wrong(index, "it names an entry before it that cannot be");
            }
            (None, Some(previous)) if previous.index.0 >= self.first => {
                let what = format!(
                    "session {id} was at version {} before it, in entry {}, which is not there",
                    version.0 - 1,
                    previous.index
                );
                self.wrong(index, what);
            }
            (None, Some(_)) => self.report.sessions_from_before += 1,
            (Some(last), Some(previous)) => {
                let expected = PreviousLeaf { hash: last.hash, index: LeafIndex(last.index) };
                if version != last.version.next() {
                    let what = format!("session {id} goes from version {} to {version}", last.version);
                    self.wrong(index, what);
                } else if previous != expected {
                    let what = format!("it does not link to entry {}, the one before it of session {id}", last.index);
                    self.wrong(index, what);
                }
            }
        }
        if let Some(last) = &last {
            if last.realm != entry.leaf.realm {
                self.wrong(index, format!("session {id} is of another realm"));
            }
        } else {
            self.report.sessions += 1;
        }
        let before = match last {
            None if version == Version(1) => Replay::Whole(None),
            None => Replay::Partly,
            Some(last) => last.replay,
        };
        let ends = entry.leaf.action == Action::SessionEnded;
        let (hash, realm) = (entry.hash, entry.leaf.realm.clone());
        let replay = self.replay(before, id, version, entry);
        if ends {
            self.replayed += u64::from(replay.is_whole());
            self.ended.insert(id, index);
        } else {
            self.sessions.insert(id, Last { version, index, hash, realm, replay });
        }
    }

    /// The state after an entry, by the same rule as everywhere.
    fn replay(&mut self, before: Replay, id: SessionId, version: Version, entry: Entry) -> Replay {
        let Part::Open(part) = entry.part else { return Replay::Partly };
        let Some(event) = part.event else {
            self.wrong(entry.index, "its sealed part holds no event, but its leaf makes a version of a session");
            return Replay::Partly;
        };
        if Action::of(&event) != entry.leaf.action {
            self.wrong(entry.index, "its sealed part holds another event than its leaf says");
        }
        let state = match before {
            Replay::Whole(state) => state,
            // That it goes on is a finding already.
            Replay::Ended => return Replay::Ended,
            Replay::Partly => return Replay::Partly,
        };
        let Some(data_key) = entry.leaf.data_key else { return Replay::Partly };
        let index = LeafIndex(entry.index);
        let recorded = Recorded {
            session: id,
            realm: entry.leaf.realm,
            version,
            time: entry.leaf.time,
            head: Head { index, hash: entry.hash, tree_size: TreeSize(entry.index + 1) },
            data_key,
        };
        match apply(state.map(|state| *state), &event, &recorded) {
            Some(state) if state.version == version && state.ended().is_some() => Replay::Ended,
            Some(state) if state.version == version => Replay::Whole(Some(Box::new(state))),
            Some(_) | None => {
                self.wrong(entry.index, format!("session {id} does not follow from its entries"));
                Replay::Partly
            }
        }
    }

    /// Size of the newest checkpoint that was good.
    pub(crate) fn good(&self) -> u64 {
        self.good
    }

    /// Adds what was found elsewhere.
    pub(crate) fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// What came of it.
    pub(crate) fn end(mut self) -> Report {
        let open = self.sessions.values().filter(|last| last.replay.is_whole());
        self.report.replayed = self.replayed + open.count() as u64;
        for (index, key) in &self.recorded {
            if let Some(erased) = key.and_then(|key| self.erased.get_mut(&key)) {
                erased.recorded_at.get_or_insert(*index);
            }
        }
        let explained: BTreeMap<KeyId, u64> =
            self.recorded.iter().filter_map(|(index, key)| Some(((*key)?, *index))).collect();
        for (key, erased) in &mut self.erased {
            let owner = self.owners.get(key).and_then(|owner| explained.get(owner));
            erased.recorded_at = erased.recorded_at.or(owner.copied());
        }
        self.report.erased = self.erased.into_values().collect();
        if let Some(pruned) = &mut self.report.pruned {
            pruned.recorded_at = self.recorded.iter().map(|(index, _)| *index).collect();
            pruned.unexplained = self.gone.unexplained(&self.prunings);
            pruned.by = self.prunings;
        }
        if self.bad > 1 {
            let what = format!("{} more checkpoints after the first bad one are not good either", self.bad - 1);
            self.report.not_proved.push(what);
        }
        self.findings.extend(self.tree.into_iter().map(|finding| finding.not_before(self.good)));
        self.stamps.tell(&mut self.report);
        self.report.conclude(self.findings);
        self.report
    }
}

/// Whether an action takes personal data away: an erasure, or retention. By the words, so that an older verifier reads the entries of a
/// newer server.
fn takes_away(action: &Action) -> bool {
    let word = serde_json::to_string(action).unwrap_or_default();
    let word = word.trim_matches('"');
    word.starts_with("subject.eras") || word.starts_with("retention.") || word.starts_with("erasure.")
}

#[cfg(test)]
mod tests {
    use merkle_log::leaf_hash;
    use session_model::{Actor, Format, Leaf, Protocol, Role};

    use super::*;

    fn entry(index: u64, session: u64, version: u64, previous: Option<&PreviousLeaf>, action: Action) -> Entry {
        let id = |number: u64| format!("01900000-0000-7000-8000-{number:012x}");
        let leaf = Leaf {
            action,
            actor: Actor { id: "key".into(), role: Role::Application },
            commitment: None,
            data_key: None,
            detail: BTreeMap::new(),
            entry_id: id(index).parse().unwrap(),
            format: Format::V1,
            node: "node-1".into(),
            outcome: Outcome::Success,
            previous: previous.copied(),
            protocol: Protocol::Rest,
            realm: "default".parse().unwrap(),
            request_id: None,
            session_id: Some(id(session).parse().unwrap()),
            time: Timestamp::from_micros(1),
            trace_id: None,
            version: Some(Version(version)),
        };
        let hash = leaf_hash(&leaf.encode().unwrap());
        Entry { index, hash, leaf, part: Part::Closed }
    }

    /// What is kept of a session does not grow with what it was: a log of tens of millions is verified in the memory of any machine.
    #[test]
    fn of_a_session_that_ended_only_the_end_is_remembered() {
        let mut fold = Fold::new(Report::default(), false, Stamps::default());
        let mut last = None;
        for session in 0..50 {
            let begun = entry(2 * session, session, 1, None, Action::SessionCreated);
            let previous = PreviousLeaf { hash: begun.hash, index: LeafIndex(begun.index) };
            let ended = entry(2 * session + 1, session, 2, Some(&previous), Action::SessionEnded);
            last = Some(PreviousLeaf { hash: ended.hash, index: LeafIndex(ended.index) });
            fold.entry(begun);
            assert_eq!(fold.sessions.len(), 1);
            fold.entry(ended);
        }
        assert!(fold.sessions.is_empty());
        assert_eq!(fold.ended.len(), 50);
        assert!(fold.findings.is_empty());

        fold.entry(entry(100, 49, 3, last.as_ref(), Action::SessionUpdated));
        let [finding] = fold.findings.as_slice() else { panic!("{:?}", fold.findings) };
        assert!(finding.to_string().contains("had ended in entry 99"), "{finding}");
        assert_eq!(fold.end().sessions, 50);
    }
}
