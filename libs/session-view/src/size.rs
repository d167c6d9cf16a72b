//! What a session takes in memory, by estimate: the allocator's word is not to be had per session.

use std::mem::size_of;

use session_model::{Authentication, Client, EndReason, Session, State, TokenDigest, Tombstone};

/// Strong and weak count of an `Arc`.
const ARC: usize = 2 * size_of::<usize>();

/// Estimated bytes of the session itself with everything it owns on the heap, without what a view adds to hold it. The
/// realm's name is not counted: sessions of one realm share it.
pub fn session_bytes(session: &Session) -> usize {
    let ended = match &session.state {
        State::Active => 0,
        State::Ended(ended) => reason(&ended.reason),
    };
    let authentication = session.authentication.as_ref().map_or(0, |Authentication { methods, level, .. }| {
        let words: usize = methods.iter().map(|method| heap(method.capacity())).sum();
        words
            + heap(methods.capacity() * size_of::<String>())
            + level.as_ref().map_or(0, |level| heap(level.capacity()))
    });
    let client = session
        .client
        .as_ref()
        .map_or(0, |Client { user_agent, .. }| user_agent.as_ref().map_or(0, |user_agent| heap(user_agent.capacity())));
    heap(ARC + size_of::<Session>())
        + heap(ARC + session.attributes.as_json().len())
        + session.subject.as_ref().map_or(0, |subject| heap(subject.len()))
        + heap(session.retired.capacity() * size_of::<TokenDigest>())
        + ended
        + authentication
        + client
}

/// Estimated bytes of a tombstone, as [`session_bytes`].
pub fn tombstone_bytes(tombstone: &Tombstone) -> usize {
    heap(ARC + size_of::<Tombstone>()) + reason(&tombstone.ended.reason)
}

fn reason(reason: &EndReason) -> usize {
    match reason {
        EndReason::Requested(word) => heap(word.len()),
        EndReason::ExpiredIdle | EndReason::ExpiredAbsolute | EndReason::Evicted | EndReason::TokenReuse => 0,
    }
}

/// What an allocation of `bytes` takes: malloc rounds up to 16 and keeps a word for itself.
const fn heap(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + size_of::<usize>()).next_multiple_of(16) }
}
