//! The log in SQLite: one file, no server, the default of a single machine.
//!
//! One connection of a process writes, a few read. Several processes may open one file (the command line beside the
//! server): SQLite's write lock serialises their appends, and the row `log_head` is compared and set. The file is in WAL
//! mode with `synchronous=FULL`, so an append that was answered survives the loss of power.
//!
//! Deliberately lacks roles and partitions: whoever may open the file may do anything to it. Against him stand the tree
//! and the checkpoints kept outside of it; the triggers of `migrations/sqlite` only stop mistakes.
//!
//! Start with [`SqliteLog::open`].

mod append;
mod changes;
mod cursors;
mod index;
mod open;
mod postings;
mod read;
mod rows;

pub use open::{OpenError, SqliteLog, SqliteLogOptions};
