//! What came of verifying a bundle.

use std::fmt;

use serde::Serialize;
use session_model::{Digest, KeyId, RealmName, Timestamp};

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The first entry that may be wrong.
    pub index: u64,
    /// The last one, if it is not known which of them is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl Finding {
    /// Something wrong with this very entry.
    pub(crate) fn at(index: u64, what: impl Into<String>) -> Self {
        Self { index, until: None, what: what.into() }
    }

    /// Something wrong with one or more entries of `index` to before `end`.
    pub(crate) fn within(index: u64, end: u64, what: impl Into<String>) -> Self {
        let until = end.checked_sub(1).filter(|last| *last > index);
        Self { index, until, what: what.into() }
    }

    fn last(&self) -> u64 {
        self.until.unwrap_or(self.index)
    }

    /// The same, if a checkpoint shows that nothing is wrong before `good`.
    pub(crate) fn not_before(self, good: u64) -> Self {
        if (self.index..=self.last()).contains(&good) {
            Self::within(good, self.last().saturating_add(1), self.what)
        } else {
            self
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.until {
            None => write!(f, "entry {}: {}", self.index, self.what),
            Some(until) => write!(f, "entries {} to {until}: {}", self.index, self.what),
        }
    }
}

/// Personal data that cannot be opened any more, although the bundle was made with what opens it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Erased {
    /// Whose: the id of the data key.
    pub data_key: KeyId,
    /// Of how many entries.
    pub entries: u64,
    /// The entry that records the erasure, if it is in the bundle.
    pub recorded_at: Option<u64>,
}

/// Sealed parts that are not there any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Of how many entries.
    pub entries: u64,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// Entries that record a pruning or an erasure.
    pub recorded_at: Vec<u64>,
    /// What retention says that it dropped.
    pub by: Vec<Pruning>,
    /// Of how many entries the sealed part is gone, and no pruning that is recorded here took it.
    pub unexplained: u64,
}

/// A pruning, as the entry about it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pruning {
    /// That entry.
    pub recorded_at: u64,
    /// In which realm.
    pub realm: RealmName,
    /// The first entry whose part may have gone.
    pub first: u64,
    /// The first entry behind the last of them.
    pub end: u64,
    /// SHA-256 of the evidence bundle that has what was dropped.
    pub bundle: String,
}

/// A checkpoint that the auditor had kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Saved {
    /// In which file.
    pub file: String,
    /// For how many entries it was signed.
    pub size: u64,
    /// Whether the log still begins with exactly these entries.
    pub consistent: bool,
}

/// A time stamp that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stamped {
    /// How many entries it is over.
    pub size: u64,
    /// When they existed, by the authority's clock.
    pub time: Timestamp,
    /// Whose certificate signed it.
    pub authority: String,
    /// Under which of the authority's policies.
    pub policy: String,
}

/// What came of verifying a bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing is wrong with anything in the bundle.
    pub proved: bool,
    /// Name of the log.
    pub origin: String,
    /// Entries of the log, as its newest checkpoint says.
    pub size: u64,
    /// Root hash over them.
    pub root: Digest,
    /// From which entry on the bundle has them.
    pub first: u64,
    /// Before which entry it ends.
    pub end: u64,
    /// Whether the bundle should hold every entry from `first` to before `end`.
    pub complete: bool,
    /// Entries that were hashed again.
    pub entries: u64,
    /// The first entry that is wrong, as closely as can be told.
    pub first_wrong: Option<Finding>,
    /// What is wrong, in order, at most a hundred of it.
    pub findings: Vec<Finding>,
    /// How much is wrong.
    pub findings_count: u64,
    /// Checkpoints whose signature and root hash were checked.
    pub checkpoints: u64,
    /// The auditor's own.
    pub saved: Vec<Saved>,
    /// Time stamps of an authority that the auditor trusts, in order.
    pub time_stamps: Vec<Stamped>,
    /// Sessions whose versions and links were checked.
    pub sessions: u64,
    /// Sessions of which the bundle does not have the beginning.
    pub sessions_from_before: u64,
    /// Sessions that were replayed from their first entry to their last.
    pub replayed: u64,
    /// Sealed parts that were opened and fit what their leaf commits to.
    pub opened: u64,
    /// Sealed parts that the bundle has no keys for.
    pub closed: u64,
    /// What was erased.
    pub erased: Vec<Erased>,
    /// What was pruned.
    pub pruned: Option<Pruned>,
    /// What this does not prove.
    pub not_proved: Vec<String>,
}

/// Findings that are named; the rest is counted.
const NAMED: usize = 100;

impl Report {
    /// Puts findings in order and says which entry is the first that is wrong.
    pub(crate) fn conclude(&mut self, mut findings: Vec<Finding>) {
        findings.sort_by_key(|finding| (finding.index, finding.last()));
        self.findings_count = findings.len() as u64;
        // Each finding says that one entry of its run is wrong: the first that is wrong lies before the end of the shortest.
        let closest = findings.iter().min_by_key(|finding| (finding.last(), finding.index));
        self.first_wrong = findings.first().zip(closest).map(|(first, closest)| {
            Finding::within(first.index, closest.last().saturating_add(1), closest.what.clone())
        });
        findings.truncate(NAMED);
        self.findings = findings;
        self.proved = self.findings_count == 0;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", if self.proved { "PROVED" } else { "NOT PROVED" })?;
        if let Some(wrong) = &self.first_wrong {
            writeln!(f, "  first wrong   {wrong}")?;
        }
        writeln!(f, "  log           {}", self.origin)?;
        writeln!(f, "  size, root    {} {}", self.size, self.root)?;
        let every = if self.complete { "every entry" } else { "selected entries" };
        writeln!(
            f,
            "  in the bundle {every} from {} to before {}; hashed again: {}",
            self.first, self.end, self.entries
        )?;
        writeln!(f, "  checkpoints   {} signed and of this tree", self.checkpoints)?;
        for saved in &self.saved {
            let consistent =
                if saved.consistent { "the log still begins with its" } else { "CONTRADICTED: it was for" };
            writeln!(f, "  saved         {}: {consistent} {} entries", saved.file, saved.size)?;
        }
        // One for each is in the JSON report.
        for (at, stamped) in self.time_stamps.iter().enumerate() {
            if at == 0 || at + 1 == self.time_stamps.len() {
                let Stamped { size, time, authority, .. } = stamped;
                writeln!(f, "  time stamp    the first {size} entries existed at {time}: {authority}")?;
            }
        }
        if self.time_stamps.len() > 2 {
            writeln!(f, "  time stamps   {} more between these two", self.time_stamps.len() - 2)?;
        }
        writeln!(
            f,
            "  sessions      {}; replayed from the first entry: {}; begun before the bundle: {}",
            self.sessions, self.replayed, self.sessions_from_before
        )?;
        writeln!(f, "  sealed parts  opened and as committed to: {}; without keys: {}", self.opened, self.closed)?;
        for erased in &self.erased {
            let recorded = erased.recorded_at.map_or("no entry here says so".into(), |at| format!("entry {at}"));
            writeln!(f, "  erased        data key {}, {} entries: {recorded}", erased.data_key, erased.entries)?;
        }
        if let Some(pruned) = &self.pruned {
            let recorded: Vec<String> = pruned.recorded_at.iter().take(10).map(ToString::to_string).collect();
            let recorded = if recorded.is_empty() { "no entry here says why".into() } else { recorded.join(", ") };
            writeln!(
                f,
                "  without part  {} entries of {} to {} had a sealed part that is gone; recorded at: {recorded}",
                pruned.entries, pruned.first, pruned.last
            )?;
            for by in pruned.by.iter().take(10) {
                let Pruning { recorded_at, realm, first, end, bundle } = by;
                writeln!(
                    f,
                    "  retention     of realm {realm}, {first} to before {end}: entry {recorded_at}; archived in the bundle with SHA-256 {bundle}"
                )?;
            }
            if pruned.unexplained > 0 {
                writeln!(
                    f,
                    "  UNEXPLAINED   {} of them were dropped by no retention that is recorded here",
                    pruned.unexplained
                )?;
            }
        }
        for what in &self.not_proved {
            writeln!(f, "  not proved    {what}")?;
        }
        if self.findings_count > 0 {
            writeln!(f, "what is wrong ({} in all):", self.findings_count)?;
        }
        for finding in &self.findings {
            writeln!(f, "  {finding}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wrong_entry_is_told_as_closely_as_is_known() {
        let mut report = Report::default();
        let group = Finding::within(256, 512, "tile");
        report.conclude(vec![Finding::at(900, "later"), group.clone(), Finding::within(300, 310, "checkpoint")]);
        assert_eq!(report.first_wrong, Some(Finding::within(256, 310, "checkpoint")));
        report.conclude(vec![
            Finding::at(305, "leaf"),
            group.clone().not_before(300),
            Finding::within(300, 310, "checkpoint"),
        ]);
        assert_eq!(report.first_wrong, Some(Finding::within(300, 306, "leaf")));
        report.conclude(vec![Finding::at(256, "leaf"), group.clone()]);
        assert_eq!(report.first_wrong, Some(Finding::at(256, "leaf")));
        report.conclude(Vec::new());
        assert!(report.proved && report.first_wrong.is_none());
        assert_eq!(
            group.clone().not_before(600),
            group,
            "a signature from behind it says nothing of what the tile has for it"
        );
    }
}
