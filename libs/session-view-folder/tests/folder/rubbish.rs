//! What stands in the folder and should not.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use session_view::test_util::{at, ended, id, session};
use session_view::{SessionView, ViewError, Viewed};

use crate::support::{KEY, NAMESPACE, applied, config, open, place, value};

fn quarantined(folder: &Path) -> usize {
    std::fs::read_dir(folder.join(NAMESPACE).join("quarantine")).unwrap().count()
}

/// Each way to spoil a session's file is an error that says so; then it is put aside, and the session applied afresh.
#[tokio::test]
async fn undecodable_files_are_quarantined() {
    let folder = tempfile::tempdir().unwrap();
    let view = open(folder.path()).await;
    applied(&view, session(50, 10)).await;
    let other = std::fs::read(value(folder.path(), id(50))).unwrap();
    type Spoil = Box<dyn Fn(&PathBuf)>;
    let bytes = |change: fn(Vec<u8>) -> Vec<u8>| -> Spoil {
        Box::new(move |path| std::fs::write(path, change(std::fs::read(path).unwrap())).unwrap())
    };
    let spoilt: Vec<(&str, Spoil)> = vec![
        ("empty, as a power cut leaves it", bytes(|_| Vec::new())),
        ("truncated", bytes(|value| value[..value.len() - 5].to_vec())),
        (
            "a flipped bit",
            bytes(|mut value| {
                *value.last_mut().unwrap() ^= 1;
                value
            }),
        ),
        ("text", bytes(|_| b"hello".to_vec())),
        ("of another session", Box::new(move |path| std::fs::write(path, &other).unwrap())),
        (
            "under the name of a later state",
            Box::new(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().replacen("a-0", "a-1", 1);
                std::fs::rename(path, path.with_file_name(name)).unwrap();
            }),
        ),
        (
            "a symbolic link",
            Box::new(|path| {
                let away = path.with_file_name("away");
                std::fs::rename(path, &away).unwrap();
                symlink(&away, path).unwrap();
            }),
        ),
        (
            "a folder",
            Box::new(|path| {
                std::fs::remove_file(path).unwrap();
                std::fs::create_dir(path).unwrap();
            }),
        ),
        (
            "a named pipe",
            Box::new(|path| {
                std::fs::remove_file(path).unwrap();
                assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
            }),
        ),
    ];
    for (n, (what, spoil)) in (1..).zip(&spoilt) {
        applied(&view, session(n, 10)).await;
        spoil(&value(folder.path(), id(n)));
        let view = open(folder.path()).await;
        assert!(matches!(view.get(id(n)).await, Err(ViewError::Undecodable(of)) if of == id(n)), "{what}");
        assert!(view.peek(id(n)).is_none(), "{what}");
        view.quarantine(id(n)).await.unwrap();
        assert!(view.get(id(n)).await.unwrap().is_none(), "{what}");
        assert_eq!(quarantined(folder.path()), n as usize, "{what}: not lost");
        applied(&view, session(n, 10)).await;
        assert!(matches!(view.get(id(n)).await.unwrap(), Some(Viewed::Active(_))), "{what}");
    }
    assert!(view.status().available, "none of it was an outage");
}

/// What is put aside does not uncover an older state that somebody has left.
#[tokio::test]
async fn quarantine_takes_what_is_older_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let view = open(folder.path()).await;
    applied(&view, session(1, 5)).await;
    let old = value(folder.path(), id(1));
    let bytes = std::fs::read(&old).unwrap();
    applied(&view, ended(1, 6)).await;
    std::fs::write(value(folder.path(), id(1)), b"x").unwrap();
    std::fs::write(old, bytes).unwrap();
    let view = open(folder.path()).await;
    assert!(matches!(view.get(id(1)).await, Err(ViewError::Undecodable(_))));
    view.quarantine(id(1)).await.unwrap();
    assert!(view.get(id(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_file_or_a_link_in_the_place_of_a_session_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let view = open(folder.path()).await;
    let elsewhere = tempfile::tempdir().unwrap();
    for n in [1, 2, 3, 4] {
        let place = place(folder.path(), id(n));
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        if n % 2 == 0 { std::fs::write(&place, b"x").unwrap() } else { symlink(elsewhere.path(), &place).unwrap() }
    }
    for n in [1, 2] {
        assert!(matches!(view.get(id(n)).await, Err(ViewError::Undecodable(_))));
        view.mark_used(&[(id(n), at(1))]).await.unwrap();
        view.quarantine(id(n)).await.unwrap();
        assert!(view.get(id(n)).await.unwrap().is_none());
    }
    for n in 1..=4 {
        // For two of them a state comes before the quarantine.
        applied(&view, session(n, 1)).await;
    }
    assert_eq!(quarantined(folder.path()), 4);
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0, "nothing is written through a link");
}

#[tokio::test]
async fn the_quarantine_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let view = open(folder.path()).await;
    for n in 0..1_010 {
        let place = place(folder.path(), id(n));
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, b"rubbish").unwrap();
        view.quarantine(id(n)).await.unwrap();
        assert!(view.get(id(n)).await.unwrap().is_none());
    }
    assert_eq!(quarantined(folder.path()), 1_000);
}

#[tokio::test]
async fn foreign_names_hinder_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let view = open(folder.path()).await;
    applied(&view, session(1, 1)).await;
    let due = folder.path().join(NAMESPACE).join("due");
    let bucket = std::fs::read_dir(&due).unwrap().next().unwrap().unwrap().path();
    for path in [
        bucket.join("hello"),
        due.join("hello"),
        place(folder.path(), id(1)).join("hello"),
        place(folder.path(), id(1)).with_file_name("hello"),
        folder.path().join(NAMESPACE).join("reflects").join("many"),
    ] {
        std::fs::write(path, b"x").unwrap();
    }
    std::fs::create_dir(bucket.join("folder")).unwrap();
    assert_eq!(view.due(at(1 << 20), 10).await.unwrap(), [id(1)]);
    assert!(!bucket.join("hello").exists());
    assert_eq!(view.reflects().await.unwrap().0, 0);
    applied(&view, session(1, 2)).await;
    applied(&view, ended(1, 3)).await;
    assert!(view.due(at(1 << 20), 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn another_key_reads_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let view = open(folder.path()).await;
    applied(&view, session(1, 1)).await;
    applied(&view, ended(2, 2)).await;
    let mut stranger = config(folder.path());
    stranger.sealing_key = KEY.map(|byte| byte ^ 1);
    let stranger = session_view_folder::FolderView::open(stranger).await.unwrap();
    stranger.restored(stranger.losses());
    for n in [1, 2] {
        assert!(matches!(stranger.get(id(n)).await, Err(ViewError::Undecodable(_))));
    }
}
