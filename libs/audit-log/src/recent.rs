//! What this process appended last, as it made it.

use std::collections::VecDeque;
use std::net::IpAddr;

use parking_lot::Mutex;
use session_model::{Action, Leaf, LeafIndex, TreeSize};

/// An entry that this process appended.
#[derive(Debug, Clone, PartialEq)]
pub struct RecentEntry {
    /// Where it stands.
    pub index: LeafIndex,
    /// Its leaf, as it was written.
    pub leaf: Leaf,
    /// The addresses that its sealed part names.
    pub addresses: Vec<IpAddr>,
}

/// The last entries of this process, so that the projection that follows the log need not read back, take apart and decrypt what was in this
/// process's hands a moment ago: that was a seventh of what a creation cost. It is a shortcut and nothing more: whoever does not find an entry here
/// reads it from the log.
///
/// Holds addresses for as long as the projection is behind, which is less than a second. An erasure empties it: whose keys were destroyed with it
/// only the log knows, where what they sealed does not open any more.
#[derive(Debug, Default)]
pub struct Recent {
    /// In the order of their indices.
    entries: Mutex<VecDeque<RecentEntry>>,
}

/// Entries held at most: a second and a half of what one log takes, some 20 MB.
const HELD: usize = 32_768;

impl Recent {
    /// Holds entries that are durable, and have just become so: each call's come behind those of the one before.
    pub fn hold(&self, fresh: impl IntoIterator<Item = RecentEntry>) {
        let mut entries = self.entries.lock();
        for entry in fresh {
            if entry.leaf.action == Action::SubjectErased {
                entries.clear();
            }
            entries.push_back(entry);
        }
        let beyond = entries.len().saturating_sub(HELD);
        entries.drain(..beyond);
    }

    /// Takes out the entries from this one on that follow one another without a gap, `limit` of them at most, and forgets older ones. None if another
    /// process appended the first, or it was too long ago.
    pub fn take(&self, from: TreeSize, limit: usize) -> Vec<RecentEntry> {
        let mut entries = self.entries.lock();
        let older = entries.partition_point(|held| held.index.0 < from.0);
        entries.drain(..older);
        let run = entries.iter().zip(from.0..).take(limit).take_while(|(held, index)| held.index.0 == *index).count();
        entries.drain(..run).collect()
    }
}

#[cfg(test)]
mod tests {
    use session_model::{Actor, EntryId, Format, Outcome, Protocol, Role, Timestamp};
    use uuid::Uuid;

    use super::*;

    fn entry(index: u64, action: Action) -> RecentEntry {
        let leaf = Leaf {
            action,
            actor: Actor { id: "app".into(), role: Role::Application },
            commitment: None,
            data_key: None,
            detail: Default::default(),
            entry_id: EntryId::new(Uuid::from_u128(index.into())),
            format: Format::V1,
            node: "node-1".into(),
            outcome: Outcome::Success,
            previous: None,
            protocol: Protocol::Rest,
            realm: "default".parse().unwrap(),
            request_id: None,
            session_id: None,
            time: Timestamp::from_micros(1),
            trace_id: None,
            version: None,
        };
        RecentEntry { index: LeafIndex(index), leaf, addresses: Vec::new() }
    }

    fn held(indices: impl IntoIterator<Item = u64>) -> Recent {
        let recent = Recent::default();
        recent.hold(indices.into_iter().map(|index| entry(index, Action::SessionCreated)));
        recent
    }

    fn taken(recent: &Recent, from: u64, limit: usize) -> Vec<u64> {
        recent.take(TreeSize(from), limit).iter().map(|entry| entry.index.0).collect()
    }

    #[test]
    fn a_run_ends_where_another_process_appended() {
        let recent = held([3, 4, 5, 8, 9]);
        assert!(taken(&recent, 2, 9).is_empty(), "the first is not ours");
        assert_eq!(taken(&recent, 3, 2), [3, 4]);
        assert_eq!(taken(&recent, 5, 9), [5]);
        assert!(taken(&recent, 6, 9).is_empty());
        assert_eq!(taken(&recent, 8, 9), [8, 9]);
        assert!(taken(&recent, 8, 9).is_empty(), "each is taken once");
    }

    #[test]
    fn what_was_projected_by_somebody_else_is_forgotten() {
        let recent = held(0..10);
        assert_eq!(taken(&recent, 8, 9), [8, 9]);
        assert!(recent.entries.lock().is_empty());
    }

    #[test]
    fn the_oldest_go_when_nobody_takes_them() {
        let recent = held(0..HELD as u64 + 5);
        assert_eq!(recent.entries.lock().len(), HELD);
        assert!(taken(&recent, 4, 1).is_empty());
        assert_eq!(taken(&recent, 5, 1), [5]);
    }

    #[test]
    fn nothing_from_before_an_erasure_is_held() {
        let recent = held(0..3);
        recent.hold([entry(3, Action::SubjectErased), entry(4, Action::SessionCreated)]);
        assert!(taken(&recent, 0, 9).is_empty());
        assert_eq!(taken(&recent, 3, 9), [3, 4]);
    }
}
