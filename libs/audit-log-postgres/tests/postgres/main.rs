//! The log in PostgreSQL: the suite that every log passes, and what only a server can be put through.
//!
//! `TEST_DATABASE_URL` names a server as its superuser. Each test makes a database of its own and drops it; roles belong to
//! the whole server and are shared.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by panicking, too"
)]

mod crashes;
mod guards;
mod head;
mod line;
mod nonces;
mod opening;
mod partitions;
mod racing;
mod support;
mod turns;

use std::sync::Arc;

use audit_log::LogStore;

use crate::support::Database;

async fn build() -> (Arc<dyn LogStore>, Database) {
    let database = Database::new().await;
    (Arc::new(database.open().await), database)
}

async fn again(database: &Database) -> Arc<dyn LogStore> {
    Arc::new(database.open().await)
}

audit_log::conformance_tests!(conformance, build, again);

#[tokio::test]
async fn cursors_keep_their_contract() {
    let database = Database::new().await;
    audit_log::check_cursors(&database.open().await).await;
}
