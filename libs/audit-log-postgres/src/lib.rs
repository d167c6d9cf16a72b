//! The log in postgres.
