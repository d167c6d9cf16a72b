//! Folders to test with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use session_model::{Session, SessionId};
use session_view::{Applied, SessionView};
use session_view_folder::{FolderView, FolderViewConfig};
use tokio::time::{Instant, sleep};

pub(crate) const KEY: [u8; 32] = [7; 32];
pub(crate) const NAMESPACE: &str = "test";

pub(crate) fn config(path: &Path) -> FolderViewConfig {
    let mut config = FolderViewConfig::new(path, NAMESPACE, KEY);
    // The machine that tests run on may be busy with other things.
    config.operation_timeout = Duration::from_secs(20);
    config
}

/// A view that has been told that nothing is missing in it.
pub(crate) async fn open(path: &Path) -> FolderView {
    let view = FolderView::open(config(path)).await.unwrap();
    view.restored(view.losses());
    view
}

pub(crate) async fn applied(view: &FolderView, state: Session) {
    assert_eq!(view.apply(&[Arc::new(state)]).await.unwrap(), [Applied::Yes]);
}

/// The folder of a session.
pub(crate) fn place(path: &Path, id: SessionId) -> PathBuf {
    let id = id.to_string();
    path.join(NAMESPACE).join("sessions").join(&id[id.len() - 3..]).join(id)
}

/// The file of the state that stands there, which must be the only one.
pub(crate) fn value(path: &Path, id: SessionId) -> PathBuf {
    let mut values: Vec<_> = std::fs::read_dir(place(path, id))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(['a', 'e']))
        .collect();
    assert_eq!(values.len(), 1, "{values:?}");
    values.remove(0)
}

/// A small file system of its own, if this may be made here. Taken away when dropped.
pub(crate) struct Disk(pub(crate) tempfile::TempDir);

impl Disk {
    pub(crate) fn of(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"]).arg(folder.path());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        eprintln!("SKIPPED: this test needs to mount a tmpfs, which takes root");
        None
    }

    pub(crate) fn remount(&self, option: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(self.0.path()).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Waits until something is so.
pub(crate) async fn within(limit: Duration, what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
