//! Evidence bundles: what an auditor takes away from a log and keeps, readable by people ([`index.html`], `entries.csv`) and by
//! the offline verifier. The format is docs/evidence-bundle.md.
//!
//! [`write_bundle`] needs a [`LogReader`](audit_log::LogReader) and a [`Sink`]; it holds a few thousand entries at a time,
//! however long the log. It is used on a log that may have been altered, so it writes down what it cannot read instead of
//! stopping there: proving is the verifier's business, not its own. It deliberately shares nothing with the verifier but the pure
//! crates.
//!
//! [`index.html`]: crate::Selection

mod pages;
mod paths;
mod sink;
mod walk;
mod write;

pub use sink::{ChunkTo, FolderSink, Sink, ZipSink};
pub use write::{
    EntryKeys, EvidenceError, KeySource, Order, Purpose, PurposeError, Selection, StampFile, visible, write_bundle,
};
