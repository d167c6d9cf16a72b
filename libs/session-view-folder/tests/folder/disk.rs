//! Disks that are full, read-only, or not there.

use std::sync::Arc;
use std::time::Duration;

use session_view::test_util::{at, ended, id, session};
use session_view::{SessionView, ViewError, Viewed};
use session_view_folder::{ConfigError, FolderView};

use crate::support::{Disk, NAMESPACE, applied, config, open, within};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_shows_nothing_that_is_over() {
    let Some(disk) = Disk::of("512k") else { return };
    let path = disk.0.path();
    let (view, other) = (open(path).await, open(path).await);
    let mut n = 0;
    let failure = loop {
        match view.apply(&[Arc::new(session(n, n))]).await {
            Ok(_) => n += 1,
            Err(failure) => break failure,
        }
        assert!(n < 10_000, "never full");
    };
    assert!(matches!(failure, ViewError::Unavailable(_)) && n > 10, "{failure} after {n}");
    assert!(view.get(id(n)).await.is_err(), "what was not stored is not shown as absent either");
    for n in 0..10 {
        assert!(matches!(view.get(id(n)).await.unwrap(), Some(Viewed::Active(_))), "the others are");
        assert!(view.apply(&[Arc::new(ended(n, 1_000 + n))]).await.is_err());
        assert!(matches!(view.get(id(n)).await, Err(ViewError::Unavailable(_))), "the log knows that it has ended");
        assert!(view.peek(id(n)).is_none());
        assert!(other.get(id(n)).await.unwrap().is_none(), "nor does another node show it");
        // A file was removed for it, and there is room for one.
        std::fs::write(path.join(format!("ballast{n}")), [0; 4_096]).unwrap();
    }
    within(SOON, "the status tells", async || !view.status().available).await;
    for n in 0..10 {
        std::fs::remove_file(path.join(format!("ballast{n}"))).unwrap();
    }
    within(SOON, "the status tells", async || view.status().available).await;
    for n in 0..10 {
        applied(&view, ended(n, 1_000 + n)).await;
        assert!(matches!(view.get(id(n)).await.unwrap(), Some(Viewed::Ended(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_folder_is_read() {
    let Some(disk) = Disk::of("1m") else { return };
    let path = disk.0.path();
    let view = open(path).await;
    applied(&view, session(1, 1)).await;
    applied(&view, session(2, 2)).await;
    disk.remount("ro");
    let fresh = open(path).await;
    for view in [&view, &fresh] {
        assert!(matches!(view.get(id(1)).await.unwrap(), Some(Viewed::Active(_))));
        assert!(matches!(view.apply(&[Arc::new(ended(2, 3))]).await, Err(ViewError::Unavailable(_))));
        assert!(matches!(view.mark_used(&[(id(1), at(9))]).await, Err(ViewError::Unavailable(_))));
        assert!(
            matches!(view.get(id(2)).await, Err(ViewError::Unavailable(_))),
            "what could not be ended is not shown"
        );
        within(SOON, "the status tells", async || !view.status().available).await;
    }
    disk.remount("rw");
    within(SOON, "the status tells", async || view.status().available).await;
    applied(&view, ended(2, 3)).await;
    assert!(matches!(view.get(id(2)).await.unwrap(), Some(Viewed::Ended(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_there_when_the_service_starts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mounted later");
    let view = FolderView::open(config(&path)).await.unwrap();
    assert!(!view.status().available);
    assert!(matches!(view.held(id(1)).await, Err(ViewError::Unavailable(_))));
    assert!(matches!(view.apply(&[Arc::new(session(1, 1))]).await, Err(ViewError::Unavailable(_))));
    assert!(matches!(view.due(at(1), 1).await, Err(ViewError::Unavailable(_))));
    assert!(matches!(view.reflects().await, Err(ViewError::Unavailable(_))));
    std::fs::create_dir(&path).unwrap();
    within(SOON, "it is there", async || view.status().available).await;
    view.restored(view.losses());
    applied(&view, session(1, 1)).await;
    assert!(view.get(id(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn what_can_never_work_is_an_error_at_once() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(FolderView::open(config("here".as_ref())).await, Err(ConfigError::Path)));
    for namespace in ["", "a b", "..", "a/b", &"n".repeat(65)] {
        let mut config = config(folder.path());
        config.namespace = namespace.to_owned();
        assert!(matches!(FolderView::open(config).await, Err(ConfigError::Namespace)), "{namespace}");
    }
    let ours = folder.path().join(NAMESPACE);
    std::fs::create_dir(&ours).unwrap();
    std::fs::set_permissions(&ours, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(FolderView::open(config(folder.path())).await, Err(ConfigError::Permissions)));
    let shown = format!("{:?}", config(folder.path()));
    assert!(!shown.contains("7, 7"), "{shown}");
}
