//! What every mouth of the service asks of the values of a request.

use session_model::{EndReason, Kind};

/// Bytes of a subject's name.
pub const SUBJECT: usize = 256;
/// Bytes of a user agent.
pub const USER_AGENT: usize = 1_024;
/// Authentication methods, and bytes of each.
pub const METHODS: (usize, usize) = (16, 64);
/// Bytes of an assurance level.
pub const LEVEL: usize = 64;
/// Sessions or entries on a page: the default, and the most.
pub const PAGE: (usize, usize) = (50, 500);
/// What a requested reason for an end must be.
pub const REASON: &str = "must be 1 to 64 of a-z, 0-9 and '_', and none of the service's own reasons";

/// The kind of session that a word names.
pub fn kind(word: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.name() == word)
}

/// The reason that a word names; `logout` if there is none.
pub fn reason(word: Option<&str>) -> Option<EndReason> {
    EndReason::requested(word.unwrap_or("logout"))
}
