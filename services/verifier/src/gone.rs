//! Sealed parts that are not there any more, and whether a pruning that is recorded took them.

use std::collections::BTreeMap;

use session_model::RealmName;

use crate::report::Pruning;

/// Runs of entries of a realm whose sealed part is gone. A run ends where one is there, so that it lies in one pruning, or in several that
/// follow on each other.
#[derive(Debug, Default)]
pub(crate) struct Gone(BTreeMap<RealmName, Runs>);

#[derive(Debug, Default)]
struct Runs {
    runs: Vec<Run>,
    /// Whether a part was there since the last run.
    ended: bool,
}

#[derive(Debug)]
struct Run {
    first: u64,
    last: u64,
    entries: u64,
}

impl Gone {
    /// The part of an entry of this realm is there.
    pub(crate) fn there(&mut self, realm: &RealmName) {
        if let Some(runs) = self.0.get_mut(realm) {
            runs.ended = true;
        }
    }

    /// The part of the next entry of this realm is gone.
    pub(crate) fn gone(&mut self, realm: &RealmName, index: u64) {
        if !self.0.contains_key(realm) {
            self.0.insert(realm.clone(), Runs::default());
        }
        let Some(runs) = self.0.get_mut(realm) else { return };
        match runs.runs.last_mut().filter(|_| !runs.ended) {
            Some(run) => {
                run.last = index;
                run.entries += 1;
            }
            None => runs.runs.push(Run { first: index, last: index, entries: 1 }),
        }
        runs.ended = false;
    }

    /// Of how many entries the part is gone, and not in a range that was pruned.
    pub(crate) fn unexplained(&self, prunings: &[Pruning]) -> u64 {
        let of = |(realm, runs): (&RealmName, &Runs)| {
            let ranges = joined(prunings.iter().filter(|pruning| pruning.realm == *realm));
            let within = |run: &Run| ranges.iter().any(|(first, end)| run.first >= *first && run.last < *end);
            runs.runs.iter().filter(|run| !within(run)).map(|run| run.entries).sum::<u64>()
        };
        self.0.iter().map(of).sum()
    }
}

/// The ranges of prunings, those that touch as one.
fn joined<'a>(prunings: impl Iterator<Item = &'a Pruning>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = prunings.map(|pruning| (pruning.first, pruning.end)).collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (first, end) in ranges {
        match joined.last_mut().filter(|last| first <= last.1) {
            Some(last) => last.1 = last.1.max(end),
            None => joined.push((first, end)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_pruning_of_the_realm_took_is_unexplained() {
        let (a, b): (RealmName, RealmName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut gone = Gone::default();
        for index in 0..10 {
            gone.gone(&a, index);
        }
        gone.there(&a);
        gone.gone(&a, 20);
        gone.gone(&b, 30);
        let pruning = |realm: &RealmName, first, end| Pruning {
            recorded_at: 99,
            realm: realm.clone(),
            first,
            end,
            bundle: String::new(),
        };
        assert_eq!(gone.unexplained(&[]), 12);
        assert_eq!(gone.unexplained(&[pruning(&a, 0, 5), pruning(&a, 5, 10)]), 2, "two that follow on each other");
        assert_eq!(gone.unexplained(&[pruning(&a, 0, 9), pruning(&a, 20, 21)]), 11);
        assert_eq!(gone.unexplained(&[pruning(&a, 0, 100)]), 1, "another realm's explains nothing");
        assert_eq!(gone.unexplained(&[pruning(&a, 0, 100), pruning(&b, 30, 31)]), 0);
    }
}
