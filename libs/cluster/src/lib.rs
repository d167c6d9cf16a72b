//! What makes several nodes on one log a cluster.
//!
//! After each commit a node tells the others what it committed; they apply it by one rule, in any order, and go to the log
//! for whatever they miss. So a [`Transport`] may lose, repeat and reorder: nothing that has to be right depends on it. What
//! it brings is time: a change is on every node within milliseconds rather than at their next look at the log.
//!
//! [`Cluster`] is the runtime: it seals and numbers frames, beats, knows the members, and serves pages of its view to nodes that
//! come late, and carries questions from one node to another. Where nodes share out among themselves who holds which session, it says who
//! does ([`Placement`]). A transport only carries bytes. Start with [`Transport`], then [`Cluster`].

mod asking;
mod cluster;
#[cfg(feature = "test-util")]
pub mod conformance;
mod frame;
#[cfg(feature = "test-util")]
pub mod fuzz;
#[cfg(feature = "test-util")]
pub mod in_process;
mod line;
mod membership;
mod message;
mod placement;
mod queue;
mod reader;
mod through_server;
mod transport;
mod upkeep;

pub use asking::{Answers, AskError, Topic};
pub use cluster::{Aside, Cluster, ClusterConfig, Host, Page, Standing, Traffic};
pub use frame::Rejected;
pub use line::LineId;
pub use membership::{Change, Heard, Member, Presence};
pub use message::{Answer, Ask, Beat, Commit, Message, Question, Record, ViewIdentity};
pub use placement::Placement;
pub use queue::{Inbox, Outbox, Room};
pub use reader::{Reader, Undecodable};
pub use through_server::{TellAndHear, is_namespace};
pub use transport::{Audience, Capabilities, Incarnation, Received, SendError, Transport};
pub use upkeep::{Backoff, Upkeep};
