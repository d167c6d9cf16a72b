//! The log in sqlite.
