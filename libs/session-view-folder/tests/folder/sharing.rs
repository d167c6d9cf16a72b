//! Several nodes, as instances and as processes, on one folder.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use session_model::{Attributes, Limits, Session};
use session_view::test_util::{at, ended, id, seen, session};
use session_view::{Applied, SessionView, ViewError, Viewed};
use session_view_folder::FolderView;

use crate::support::{NAMESPACE, applied, config, open, place, value, within};

fn index(viewed: &Viewed) -> u64 {
    match viewed {
        Viewed::Active(session) => session.head.index.0,
        Viewed::Ended(tombstone) => tombstone.head.index.0,
    }
}

async fn shown(view: &FolderView, n: u64) -> Option<u64> {
    view.get(id(n)).await.unwrap().as_ref().map(index)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_on_one_node_is_seen_on_the_other_and_ends_what_it_had_cached() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (open(folder.path()).await, open(folder.path()).await);
    for next in 0..100 {
        applied(&one, session(1, next)).await;
        assert_eq!(shown(&other, 1).await, Some(next));
        assert_eq!(other.peek(id(1)).as_ref().map(index), Some(next));
    }
    one.mark_used(&[(id(1), at(700))]).await.unwrap();
    assert!(
        matches!(other.get(id(1)).await.unwrap(), Some(Viewed::Active(session)) if session.last_seen_at == at(700))
    );
    applied(&one, ended(1, 200)).await;
    // As its follower does: what others appended is applied here as well, and the cache learns of it.
    assert_eq!(other.apply(&[Arc::new(ended(1, 200))]).await.unwrap(), [Applied::Stale]);
    assert!(!matches!(other.peek(id(1)), Some(Viewed::Active(_))));
    assert!(matches!(other.get(id(1)).await.unwrap(), Some(Viewed::Ended(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cached_is_believed_no_longer_than_the_bound() {
    let folder = tempfile::tempdir().unwrap();
    let one = open(folder.path()).await;
    let mut short = config(folder.path());
    short.max_staleness = Duration::from_millis(100);
    let other = FolderView::open(short).await.unwrap();
    other.restored(other.losses());
    applied(&one, session(1, 1)).await;
    assert_eq!(shown(&other, 1).await, Some(1));
    applied(&one, ended(1, 2)).await;
    tokio::time::sleep(Duration::from_millis(101)).await;
    assert!(other.peek(id(1)).is_none());
    assert!(matches!(other.get(id(1)).await.unwrap(), Some(Viewed::Ended(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_goes_back_while_two_nodes_write() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Arc::new(open(folder.path()).await), Arc::new(open(folder.path()).await));
    let over = Arc::new(AtomicBool::new(false));
    let mut readers = tokio::task::JoinSet::new();
    for view in [&one, &other, &one, &other] {
        let (view, over) = (Arc::clone(view), Arc::clone(&over));
        readers.spawn(async move {
            let (mut newest, mut reads) = (None, 0);
            while !over.load(SeqCst) {
                let index = shown(&view, 1).await;
                assert!(index >= newest, "it went back from {newest:?} to {index:?}");
                newest = index;
                reads += 1;
            }
            reads
        });
    }
    for next in 0..2_000 {
        applied(if next % 2 == 0 { &one } else { &other }, session(1, next)).await;
    }
    over.store(true, SeqCst);
    while let Some(reads) = readers.join_next().await {
        assert!(reads.unwrap() > 0);
    }
    // What was outdated is gone.
    value(folder.path(), id(1));
}

/// A writer that was stopped (or whose host was) for however long goes on: its state is below what was written meanwhile.
#[tokio::test]
async fn a_writer_that_was_stopped_undoes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let view = open(folder.path()).await;
    applied(&view, session(1, 5)).await;
    let old = value(folder.path(), id(1));
    let stopped = std::fs::read(&old).unwrap();
    for (newer, index) in [(session(1, 9), 9), (ended(1, 12), 12)] {
        applied(&view, newer).await;
        std::fs::write(&old, &stopped).unwrap();
        let fresh = open(folder.path()).await;
        assert_eq!(shown(&fresh, 1).await, Some(index));
        assert_eq!(fresh.apply(&[Arc::new(session(1, index - 1))]).await.unwrap(), [Applied::Stale]);
        assert_eq!(shown(&fresh, 1).await, Some(index));
    }
    assert!(view.due(at(1 << 20), 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_node_that_has_just_come_is_in_doubt_and_so_is_one_whose_folder_was_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let one = open(folder.path()).await;
    applied(&one, session(1, 1)).await;
    one.set_reflects(session_model::TreeSize(2)).await.unwrap();
    let other = FolderView::open(config(folder.path())).await.unwrap();
    assert!(matches!(other.get(id(1)).await, Err(ViewError::Unavailable(_))));
    assert!(other.held(id(1)).await.unwrap().is_some() && other.peek(id(1)).is_none());
    assert!(other.status().in_doubt);
    other.restored(other.losses());
    assert_eq!((shown(&other, 1).await, other.status().in_doubt), (Some(1), false));

    let (ours, away) = (folder.path().join(NAMESPACE), folder.path().join("away"));
    std::fs::rename(&ours, &away).unwrap();
    let before = other.losses();
    within(Duration::from_secs(10), "it is opened anew", async || other.losses() > before).await;
    assert!(matches!(other.get(id(1)).await, Err(ViewError::Unavailable(_))) && other.peek(id(1)).is_none());
    assert!(other.status().in_doubt);
    assert_eq!(one.reflects().await.unwrap().0, 0, "the new one claims nothing");
    other.restored(other.losses());
    assert!(other.get(id(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn what_the_folder_reflects_is_found_by_those_who_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let one = open(folder.path()).await;
    one.set_reflects(session_model::TreeSize(5)).await.unwrap();
    one.set_reflects(session_model::TreeSize(9)).await.unwrap();
    assert_eq!(one.reflects().await.unwrap().0, 9);
    let other = open(folder.path()).await;
    let found = other.reflects().await.unwrap().0;
    assert_eq!(found, 5, "9 was said within five seconds and is not claimed yet");
    other.set_reflects(session_model::TreeSize(7)).await.unwrap();
    one.set_reflects(session_model::TreeSize(6)).await.unwrap();
    assert_eq!((one.reflects().await.unwrap().0, open(folder.path()).await.reflects().await.unwrap().0), (9, 7));
}

#[tokio::test]
async fn nothing_personal_stands_in_the_folder_and_only_we_may_look() {
    use std::os::unix::fs::MetadataExt;

    let folder = tempfile::tempdir().unwrap();
    let view = open(folder.path()).await;
    let mut state = seen(1, 0, 5);
    state.subject = Some("alice.canary".into());
    state.attributes = Attributes::parse(r#"{"iban-canary":"DE00-canary"}"#, &Limits::default()).unwrap();
    applied(&view, state.clone()).await;
    applied(&view, Session { id: id(2), ..state.clone() }).await;
    applied(&view, ended(2, 9)).await;
    view.mark_used(&[(id(1), at(9))]).await.unwrap();
    view.set_reflects(session_model::TreeSize(10)).await.unwrap();
    let (mut waiting, mut files) = (vec![folder.path().join(NAMESPACE)], 0);
    while let Some(path) = waiting.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o777, if metadata.is_dir() { 0o700 } else { 0o600 }, "{path:?}");
        assert!(!path.to_str().unwrap().contains("canary"));
        if metadata.is_dir() {
            waiting.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        files += 1;
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"canary"), "{path:?}");
        assert!(!bytes.windows(32).any(|window| window == state.token.digest().0), "a digest stands in {path:?}");
    }
    assert!(files >= 5, "{files}");
}

/// Sessions that the processes of [`processes_that_are_killed_while_they_write`] fight over.
const CONTESTED: u64 = 8;

fn writer(folder: &Path, lane: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sharing::writes_until_it_is_killed", "--ignored"])
        .env("WRITER_FOLDER", folder)
        .env("WRITER_LANE", lane.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Not a test but the other process of [`processes_that_are_killed_while_they_write`].
#[tokio::test]
#[ignore = "started by another test as a process of its own"]
async fn writes_until_it_is_killed() {
    let folder = std::env::var("WRITER_FOLDER").expect("started by another test");
    let lane: u64 = std::env::var("WRITER_LANE").unwrap().parse().unwrap();
    let view = open(Path::new(&folder)).await;
    for step in 0.. {
        for n in 0..CONTESTED {
            let index = step * 4 + lane;
            let state = if n == 0 && step == 20 { ended(n, index) } else { session(n, index) };
            let state = Session { last_seen_at: at(step as i64), ..state };
            let _ = view.apply(&[Arc::new(state)]).await.unwrap();
            view.mark_used(&[(id(n), at(step as i64 + 1))]).await.unwrap();
        }
        let _ = view.due(at(1 << 20), 100).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_are_killed_while_they_write() {
    let folder = tempfile::tempdir().unwrap();
    let view = open(folder.path()).await;
    let mut newest = [None; CONTESTED as usize];
    let mut has_ended = false;
    let rounds = 6;
    for round in 0..rounds {
        let mut writers: Vec<_> = (0..3).map(|lane| writer(folder.path(), lane)).collect();
        // Killed at another moment in every round, but not before they did something; in the last one not before the end.
        let until = tokio::time::Instant::now() + Duration::from_millis(400 + 37 * round);
        let before = newest;
        let idle = |newest: &[Option<u64>], has_ended: bool| newest == before || (round + 1 == rounds && !has_ended);
        while tokio::time::Instant::now() < until || idle(&newest, has_ended) {
            for n in 0..CONTESTED {
                // Nothing half-written is ever seen, nobody goes back, and the end is the end.
                let viewed = view.held(id(n)).await.unwrap();
                let found = viewed.as_ref().map(index);
                assert!(found >= newest[n as usize], "session {n} went from {:?} to {found:?}", newest[n as usize]);
                newest[n as usize] = found;
                if n == 0 {
                    let ended = matches!(viewed, Some(Viewed::Ended(_)));
                    assert!(ended || !has_ended, "an ended session came back");
                    has_ended = ended;
                }
            }
        }
        for writer in &mut writers {
            writer.kill().unwrap();
            assert!(!writer.wait().unwrap().success(), "it should have been at work when it was killed");
        }
        let fresh = open(folder.path()).await;
        for n in 0..CONTESTED {
            let viewed = fresh.get(id(n)).await.unwrap();
            assert!(viewed.as_ref().map(index) >= newest[n as usize]);
            has_ended |= matches!(viewed, Some(Viewed::Ended(_)));
        }
        let due = fresh.due(at(1 << 20), 100).await.unwrap();
        let missing =
            (u64::from(has_ended)..CONTESTED).find(|n| newest[*n as usize].is_some() && !due.contains(&id(*n)));
        assert_eq!(missing, None, "a killed writer left a session without a deadline");
    }
    assert!(newest.iter().all(|index| *index > Some(0)), "{newest:?}");
    // Whatever was left behind does not hinder whoever comes next.
    for n in 1..CONTESTED {
        applied(&view, session(n, 1 << 40)).await;
        value(folder.path(), id(n));
    }
    assert!(place(folder.path(), id(0)).is_dir());
}
