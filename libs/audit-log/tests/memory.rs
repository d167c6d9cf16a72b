//! The memory log passes the suite that every log passes.

use std::sync::Arc;

use audit_log::{LogStore, MemoryLog};

async fn build() -> (Arc<dyn LogStore>, ()) {
    (Arc::new(MemoryLog::new()), ())
}

audit_log::conformance_tests!(memory, build);

#[tokio::test]
async fn cursors_keep_their_contract() {
    audit_log::check_cursors(&audit_log::MemoryCursors::default()).await;
}
