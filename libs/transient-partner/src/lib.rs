//! Sessions that no log stands behind, shared out among the nodes of a cluster: each is held by its owner and its partners alone.
//!
//! The owner of a session, by [`cluster::Placement`], decides on it: every read is answered, and every change taken, by what it holds, so there
//! is one order of changes, as there is in one Redis. It sends each new state to the partners, and says that a change is done when as many of
//! them as were asked for have said that they have it. So the death of one node loses nothing that one partner acknowledged.
//!
//! When nodes come and go, others own and hold. Each node sends what it holds to whoever should hold it by now, and drops what it should not
//! hold once everybody who should has said that it has it (`handing_over.rs`). Until a new owner was sent everything it asks the others
//! about each session that it is asked for (`owning.rs`). Nodes may for a moment see different members, and two may take themselves for the
//! owner: then states meet that were made apart from one another, and [`session_model::transient::Stamped::join`] says which stands, as it does
//! after a cut.
//!
//! What it deliberately lacks: agreement on who is a member. Where that has to be certain a log is the answer, and realms that keep one have it.
//!
//! Start with [`PartnerTransients`].

mod handing_over;
mod message;
mod owning;
mod store;

pub use message::BESIDE_A_STATE;
pub use store::{PartnerConfig, PartnerTransients};

/// Reads whatever bytes as a message between partners, for the fuzzer.
///
/// # Panics
/// If what was read is not written as something that reads alike.
#[cfg(feature = "test-util")]
pub fn fuzz(bytes: &[u8]) {
    message::read_any(bytes);
}
