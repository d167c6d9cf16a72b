//! The pure core of Counterfoil: what a session is, how it may change, and the exact bytes of the log entry that
//! records each change.
//!
//! Nothing here reads a clock, draws a random number, touches a disk or hashes a secret: times, digests and ids come in
//! as values. That is what lets one [`apply`] serve live writes, rebuild after a crash, replicas, an auditor's time
//! travel and the offline verifier alike.
//!
//! Start with [`Session`], then [`decide`] and [`apply`]; [`Leaf`] is what the log keeps for ever.

mod attributes;
mod command;
mod entry;
mod event;
mod id;
mod mix;
mod policy;
mod session;
mod slot;
mod text;
mod time;
mod token;
pub mod transient;

pub use attributes::{AttributeError, Attributes, Limits, MergePatch};
pub use command::{Command, Created, Rejection, decide, expiry};
pub use entry::{
    Action, Actor, Detail, EncodeError, Format, Leaf, LeafError, Outcome, PreviousLeaf, Protocol, Role, SealedPart,
};
pub use event::{Beginning, Event, Recorded, apply};
pub use id::{Digest, EntryId, IdError, KeyId, LeafHash, LeafIndex, RealmName, SessionId, TreeSize, Version};
pub use mix::mix;
pub use policy::{BeyondCap, Field, Looser, Overrides, Policy, Profile, ReusedToken};
pub use session::{Authentication, Client, EndReason, Ended, Head, Kind, PreviousToken, Session, State, Tombstone};
pub use slot::{SLOTS, Slot};
pub use text::{TextError, check_text};
pub use time::{Seconds, Timestamp};
pub use token::{Token, TokenDigest, TokenError};
