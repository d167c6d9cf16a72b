//! The history of a session: every entry of it, and the state after each.

use audit_log::StoredEntry;
use session_model::{Head, LeafIndex, RealmName, Recorded, Session, SessionId, Timestamp, Version, apply};

use crate::archive::{Archive, Opened, Personal, SearchError};

/// An entry of a session, and the state after it.
#[derive(Debug, Clone)]
pub struct Step {
    /// The entry.
    pub entry: Opened,
    /// The session after it; `None` from the first entry on whose sealed part is gone.
    pub state: Option<Session>,
}

/// Which moment of a session is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// When it had this version.
    Version(Version),
    /// At this time.
    Time(Timestamp),
}

/// Entries read at once.
const PAGE: usize = 256;

impl Archive {
    /// Every entry of a session from after `after` on, at most `limit`, with the state after each. Empty if the realm has no such
    /// session, or no such versions of it.
    ///
    /// # Errors
    /// [`SearchError`].
    pub async fn history(
        &self,
        realm: &RealmName,
        id: SessionId,
        after: Version,
        limit: usize,
    ) -> Result<Vec<Step>, SearchError> {
        let mut steps = Vec::new();
        self.walk(realm, id, |step| {
            if step.entry.leaf.version.is_some_and(|version| version > after) {
                steps.push(step);
            }
            steps.len() < limit
        })
        .await?;
        Ok(steps)
    }

    /// The last entry of a session at that moment, with the state after it; `None` if it did not exist yet.
    ///
    /// # Errors
    /// [`SearchError`].
    pub async fn state_at(
        &self,
        realm: &RealmName,
        id: SessionId,
        moment: Moment,
    ) -> Result<Option<Step>, SearchError> {
        let mut last = None;
        self.walk(realm, id, |step| {
            let reached = match moment {
                Moment::Version(version) => step.entry.leaf.version.is_some_and(|at| at <= version),
                Moment::Time(time) => step.entry.leaf.time <= time,
            };
            if reached {
                last = Some(step);
            }
            reached
        })
        .await?;
        Ok(match (last, moment) {
            // A version that it never had.
            (Some(step), Moment::Version(version)) if step.entry.leaf.version != Some(version) => None,
            (last, _) => last,
        })
    }

    /// Folds a session, step by step, for as long as `go_on` says.
    async fn walk(
        &self,
        realm: &RealmName,
        id: SessionId,
        mut go_on: impl FnMut(Step) -> bool,
    ) -> Result<(), SearchError> {
        let mut state = Folded::Not;
        let mut after = Version::NONE;
        loop {
            let places = self.log.session_entries(id, after, PAGE).await?;
            let Some((last, _)) = places.last().copied() else { return Ok(()) };
            let indices: Vec<LeafIndex> = places.iter().map(|(_, index)| *index).collect();
            let stored: Vec<StoredEntry> = self.log.entries(&indices).await?.into_iter().flatten().collect();
            for entry in self.open_stored(realm, stored).await? {
                state = state.with(&entry);
                if !go_on(Step { state: state.session(), entry }) {
                    return Ok(());
                }
            }
            if places.len() < PAGE {
                return Ok(());
            }
            after = last;
        }
    }
}

/// What is known of a session while it is folded.
enum Folded {
    /// It has not begun.
    Not,
    /// Its state.
    Is(Box<Session>),
    /// Part of it cannot be read any more.
    Lost,
}

impl Folded {
    fn session(&self) -> Option<Session> {
        match self {
            Self::Is(session) => Some((**session).clone()),
            Self::Not | Self::Lost => None,
        }
    }

    fn with(self, entry: &Opened) -> Self {
        let before = match self {
            Self::Lost => return Self::Lost,
            Self::Not => None,
            Self::Is(session) => Some(*session),
        };
        let Personal::Open(part) = &entry.personal else { return Self::Lost };
        let leaf = &entry.leaf;
        let (Some(event), Some(session), Some(version), Some(data_key)) =
            (&part.event, leaf.session_id, leaf.version, leaf.data_key)
        else {
            return before.map_or(Self::Not, |session| Self::Is(Box::new(session)));
        };
        let stored = &entry.stored;
        let recorded = Recorded {
            session,
            realm: leaf.realm.clone(),
            version,
            time: leaf.time,
            head: Head { index: stored.index, hash: merkle_log::leaf_hash(&stored.leaf), tree_size: stored.tree_size },
            data_key,
        };
        apply(before, event, &recorded).map_or(Self::Lost, |session| Self::Is(Box::new(session)))
    }
}
