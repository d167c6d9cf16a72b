//! The log: its ports, the group commit that feeds it, and a memory log that keeps the same contract.
//!
//! * [`LogReader`] is all an auditor's path is ever given: batches, entries and hashes.
//! * [`LogIndex`] answers what the service must know before it can append: data keys, open sessions, kept answers, credentials.
//! * [`LogPostings`] keeps what auditors search by.
//! * [`LogWriter`] appends one batch: entries, tree and signed checkpoint in one transaction, or nothing. Who is beaten to the head by another process
//!   waits for a [`Turn`].
//! * [`GroupCommit`] is the one task of a process that appends: it takes whatever is queued the moment the last commit
//!   returned, and never has more than one batch in flight.
//!
//! Start with [`LogWriter::append`].

mod batch;
mod bundle;
mod cursors;
mod group_commit;
mod memory;
mod port;
mod postings;
mod recent;
mod weigh;

#[cfg(feature = "test-util")]
pub mod conformance;
#[cfg(feature = "test-util")]
pub mod fault;

pub use batch::{Batch, BatchError, BatchNode, LogIdentity, Sequencer};
pub use bundle::{BundleError, decode_leaves, decode_sealed, encode_leaves, encode_sealed};
#[cfg(feature = "test-util")]
pub use cursors::check_cursors;
pub use cursors::{Advanced, Claimed, DeliveryCursors, MemoryCursors};
pub use group_commit::{CommitSink, Committed, GroupCommit, GroupCommitConfig, NotDone, Place, Withdraw};
pub use memory::MemoryLog;
pub use port::{
    Answer, AppendError, Appended, Claims, Credential, CredentialChange, DataKeyClaim, DataKeyRow, IdempotencyClaim,
    LogHead, LogIndex, LogReader, LogStore, LogWriter, Proposed, Prune, ReadError, Refusal, Refused, Rewrap,
    SealedEntry, Seat, SessionChange, SessionFilter, StoredBatch, StoredEntry, SubjectChange, Turn,
};
pub use postings::{LogPostings, Posting, Projected, Projection, SEGMENT, Term};
pub use recent::{Recent, RecentEntry};
pub use weigh::{Known, refusals};
