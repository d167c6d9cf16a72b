//! Finding entries for auditors, and opening what is sealed in them.
//!
//! The [`Projector`] keeps postings (for each term, a bitmap of the entries it stands in) that follow the log and can be made
//! again from it. A search is an intersection of such bitmaps: its cost hardly depends on how the filters are combined, nor on
//! whether anything is found. What is found is read from the log itself, never from the projection.
//!
//! Knows no HTTP and no concrete store. Start with [`Archive`].

mod archive;
mod filter;
mod history;
mod meeting;
mod pace;
mod projector;
mod term;
mod times;

pub use archive::{Archive, Found, Opened, Order, Personal, SearchError};
pub use filter::EntryFilter;
pub use history::{Moment, Step};
pub use projector::{ProjectionStatus, Projector};
