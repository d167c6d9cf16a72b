//! Which entries of the log QueryAudit answers: a search, as of REST's auditors.

use api_http::{Problem, ProblemCode};
use audit_log::{ReadError, StoredEntry};
use audit_search::{Archive, EntryFilter, Order, SearchError};
use session_model::{Leaf, LeafIndex};
use tracing::{error, warn};

/// A page, newest first, and where the next begins, if there is one.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) entries: Vec<(StoredEntry, Leaf)>,
    pub(crate) next: Option<u64>,
}

/// Finds them.
///
/// # Errors
/// A [`Problem`] if the log cannot be read.
pub(crate) async fn find(
    archive: &Archive,
    filter: &EntryFilter,
    before: Option<u64>,
    limit: usize,
) -> Result<Found, Problem> {
    let order = Order::NewestFirst(before.map(LeafIndex));
    let found = archive.search(filter, order, limit).await.map_err(problem)?;
    let next = found.indices.last().map(|index| index.0).filter(|_| found.more);
    let entries = archive.read(&filter.realm, &found.indices).await.map_err(problem)?;
    Ok(Found { entries, next })
}

pub(crate) fn problem(failure: SearchError) -> Problem {
    match failure {
        SearchError::Read(ReadError::Unavailable(cause)) => {
            warn!(failure = &*cause as &dyn std::error::Error, "the log cannot be read for an auditor");
            Problem::new(ProblemCode::LogUnavailable, "try again shortly")
        }
        failure @ (SearchError::Read(ReadError::Corrupt(_)) | SearchError::Seal(_) | SearchError::Postings) => {
            error!(%failure, "the log cannot be searched");
            Problem::new(ProblemCode::Internal, "the log cannot be searched; the fault is ours")
        }
    }
}
