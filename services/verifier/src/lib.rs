//! Verifies, without anything of the server, what its users keep: a receipt, or an evidence bundle.
//!
//! It shares with the server only the pure crates: how a session follows from its entries (`session-model`) and how a tree is
//! hashed (`merkle-log`). Signatures, sealed parts and commitments are checked with other libraries than the server's, so that a
//! fault of the server cannot hide itself. Start with [`run`]; what is proved of a bundle is in `bundle.rs`.

mod bundle;
mod fetch;
mod fold;
mod gone;
mod group;
mod keys;
mod opening;
mod receipt;
mod report;
mod run;
mod source;
mod stamps;

pub use receipt::{Proved, VerifyError, verify_receipt};
pub use report::{Finding, Pruned, Pruning, Report};
pub use run::{ReportFormat, VerifyArgs, run, verify_evidence};
