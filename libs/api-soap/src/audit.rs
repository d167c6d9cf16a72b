//! Which entries of the log QueryAudit answers. Walks the log backwards, in stretches: the one place to change when the log can
//! be searched.

use api_http::{Problem, ProblemCode};
use audit_log::{LogReader, ReadError, StoredEntry};
use session_model::{KeyId, Leaf, LeafIndex, RealmName, SessionId, Timestamp, Version};
use tracing::{error, warn};

/// Which entries.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) realm: &'a RealmName,
    /// Not before this time.
    pub(crate) from: Option<Timestamp>,
    /// Before this time.
    pub(crate) to: Option<Timestamp>,
    /// Sealed by the data key of this subject.
    pub(crate) subject: Option<KeyId>,
    /// Of this session.
    pub(crate) session: Option<SessionId>,
    /// Before this place.
    pub(crate) before: Option<u64>,
    pub(crate) limit: usize,
}

/// A page, newest first, and where the next begins, if there may be one.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) entries: Vec<(StoredEntry, Leaf)>,
    pub(crate) next: Option<u64>,
}

/// How far back one call looks: a rare subject in a long log takes several pages, some of them short.
const STRETCH: u64 = 10_000;

/// Finds them.
///
/// # Errors
/// A [`Problem`] if the log cannot be read.
pub(crate) async fn find(log: &dyn LogReader, wanted: &Wanted<'_>) -> Result<Found, Problem> {
    let places = match wanted.session {
        Some(session) => places_of(log, session).await?,
        None => {
            let size = log.head().await.map_err(problem)?.size().0;
            let end = wanted.before.map_or(size, |before| before.min(size));
            (end.saturating_sub(STRETCH)..end).map(LeafIndex).collect()
        }
    };
    let older = places.iter().rev().copied().filter(|place| wanted.before.is_none_or(|before| place.0 < before));
    let older: Vec<_> = older.collect();
    let mut found = Found { entries: Vec::new(), next: None };
    let mut reached = None;
    for chunk in older.chunks(wanted.limit.clamp(64, 512)) {
        for stored in log.entries(chunk).await.map_err(problem)?.into_iter().flatten() {
            let index = stored.index;
            let leaf = Leaf::decode(&stored.leaf).map_err(|_| {
                error!(%index, "an entry of the log is not a leaf");
                Problem::new(ProblemCode::Internal, format!("entry {index} is not a leaf: the log was damaged"))
            })?;
            // No time in the log goes back: nothing before this entry is younger.
            if wanted.from.is_some_and(|from| leaf.time < from) {
                return Ok(found);
            }
            if found.entries.len() == wanted.limit {
                found.next = reached;
                return Ok(found);
            }
            reached = Some(index.0);
            let fits = leaf.realm == *wanted.realm
                && wanted.to.is_none_or(|to| leaf.time < to)
                && wanted.subject.is_none_or(|subject| leaf.data_key == Some(subject));
            if fits {
                found.entries.push((stored, leaf));
            }
        }
    }
    // All of a session's entries were looked at; of the log only a stretch.
    found.next = reached.filter(|reached| wanted.session.is_none() && *reached > 0);
    Ok(found)
}

async fn places_of(log: &dyn LogReader, session: SessionId) -> Result<Vec<LeafIndex>, Problem> {
    const PAGE: usize = 4_096;
    let mut places: Vec<(Version, LeafIndex)> = Vec::new();
    loop {
        let after = places.last().map_or(Version::NONE, |(version, _)| *version);
        let page = log.session_entries(session, after, PAGE).await.map_err(problem)?;
        let last = page.len() < PAGE;
        places.extend(page);
        if last {
            return Ok(places.into_iter().map(|(_, place)| place).collect());
        }
    }
}

fn problem(failure: ReadError) -> Problem {
    warn!(failure = &failure as &dyn std::error::Error, "the log cannot be read for an auditor");
    match failure {
        ReadError::Unavailable(_) => Problem::new(ProblemCode::LogUnavailable, "try again shortly"),
        ReadError::Corrupt(_) => Problem::new(ProblemCode::Internal, "the log holds something it cannot have written"),
    }
}
