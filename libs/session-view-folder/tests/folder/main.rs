//! The view in a folder: the conformance suite, several nodes and processes on one folder, disks that fail, rubbish.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disk;
mod rubbish;
mod sharing;
mod support;

use std::sync::Arc;

use session_view::SessionView;
use tempfile::TempDir;

async fn with_near_cache() -> (Arc<dyn SessionView>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Arc::new(support::open(folder.path()).await), folder)
}

async fn without_near_cache() -> (Arc<dyn SessionView>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = support::config(folder.path());
    config.near_cache_bytes = 0;
    let view = session_view_folder::FolderView::open(config).await.unwrap();
    view.restored(view.losses());
    (Arc::new(view), folder)
}

session_view::conformance_tests!(conformance, with_near_cache);
session_view::conformance_tests!(conformance_without_near_cache, without_near_cache);
