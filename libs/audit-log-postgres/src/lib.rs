//! The log in PostgreSQL.
//!
//! The service's role may read, and execute a handful of `SECURITY DEFINER` functions; that is all it may do. An append is one
//! round trip to one of them, `counterfoil.append`, which locks the head row, weighs every claim, and stores the batch or
//! nothing. A writer who finds that others append too waits for the head first (`turn`). `migrations/postgres` has the schema and the reasons for it.
//!
//! Start with [`PostgresLog::connect`].

mod append;
mod changes;
mod cursors;
mod index;
mod nonces;
mod open;
mod postings;
mod read;
mod readers;
mod turn;

pub use nonces::PostgresNonces;
pub use open::{OpenError, PostgresConfig, PostgresLog, migrate};
