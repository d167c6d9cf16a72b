//! What goes and what stays, over the memory log.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

use std::sync::Arc;

use audit_log::conformance::{Draft, at, check_log, commit, key, key_row, realm};
use audit_log::{DataKeyRow, LogReader, LogStore, MemoryLog, SessionChange, SubjectChange};
use retention::{drop_parts, survey};
use session_model::{LeafIndex, SessionId};
use uuid::Uuid;

const DAY: i64 = 86_400;

/// A session that began on a day.
fn session(number: u128, day: i64) -> SessionId {
    let millis = u128::try_from(at(day * DAY).as_micros() / 1_000).unwrap();
    SessionId::new(Uuid::from_u128((millis << 80) | number))
}

async fn sealed(log: &dyn LogStore) -> Vec<bool> {
    check_log(log).await.iter().map(|entry| entry.sealed.is_some()).collect()
}

fn part(number: u128, day: i64) -> Draft {
    Draft::new(number).at(at(day * DAY)).sealed(key(number), vec![7; 40])
}

#[tokio::test]
async fn what_is_old_goes_but_for_holds_open_sessions_and_other_realms() {
    let log = Arc::new(MemoryLog::new());
    let owned = DataKeyRow { lookup: None, owner: Some(key(1)), ..key_row(2) };
    let elsewhere = part(4, 1).of("elsewhere".parse().unwrap());
    let ended = session(6, 2);
    commit(
        &*log,
        vec![
            part(0, 0),
            part(1, 1).new_key(key_row(1)),
            part(2, 1).new_key(owned),
            part(3, 1).version(session(3, 1), 1).opens(key(3)),
            elsewhere,
            Draft::new(5).at(at(DAY)),
            part(6, 2).version(ended, 1).opens(key(6)),
        ],
    )
    .await;
    commit(&*log, vec![Draft::new(7).at(at(3 * DAY)).subject(SubjectChange::Held(key(1), true))]).await;
    commit(&*log, vec![Draft::new(8).at(at(3 * DAY)).version(ended, 2).index(SessionChange::Closed)]).await;
    commit(&*log, vec![part(9, 4), part(10, 5), part(11, 6)]).await;

    assert!(survey(&*log, &realm(), at(0), 100).await.unwrap().is_none(), "nothing is older");
    let finished = survey(&*log, &realm(), at(5 * DAY), 100).await.unwrap().unwrap();
    assert_eq!((finished.first, finished.end), (LeafIndex(0), LeafIndex(10)));
    assert_eq!((finished.parts, finished.kept), (3, 3));
    let untouched = sealed(&*log).await;
    assert_eq!(drop_parts(&*log, &finished).await.unwrap(), 3);
    let left = [false, true, true, true, true, false, false, false, false, false, true, true];
    assert_eq!(sealed(&*log).await, left, "before: {untouched:?}");
    assert!(survey(&*log, &realm(), at(5 * DAY), 100).await.unwrap().is_none());

    // Released, and ended: they go with the next.
    commit(&*log, vec![Draft::new(12).at(at(7 * DAY)).subject(SubjectChange::Held(key(1), false))]).await;
    let end = Draft::new(13).at(at(7 * DAY)).version(session(3, 1), 2).index(SessionChange::Closed);
    commit(&*log, vec![end]).await;
    let finished = survey(&*log, &realm(), at(5 * DAY), 100).await.unwrap().unwrap();
    assert_eq!((drop_parts(&*log, &finished).await.unwrap(), finished.kept), (3, 0));
    assert_eq!(sealed(&*log).await.iter().filter(|there| **there).count(), 3);
}

#[tokio::test]
async fn a_run_is_bounded_and_the_next_goes_on() {
    let log = Arc::new(MemoryLog::new());
    for number in 0..10 {
        commit(&*log, vec![part(number, 0)]).await;
    }
    let mut runs = Vec::new();
    while let Some(finished) = survey(&*log, &realm(), at(DAY), 4).await.unwrap() {
        runs.push((finished.first.0, finished.end.0, drop_parts(&*log, &finished).await.unwrap()));
    }
    assert_eq!(runs, [(0, 4, 4), (4, 8, 4), (8, 10, 2)]);
}

#[tokio::test]
async fn a_hold_between_survey_and_drop_keeps() {
    let log = Arc::new(MemoryLog::new());
    commit(&*log, vec![part(1, 0).new_key(key_row(1)), part(2, 0)]).await;
    let finished = survey(&*log, &realm(), at(DAY), 9).await.unwrap().unwrap();
    commit(&*log, vec![Draft::new(3).at(at(DAY)).subject(SubjectChange::Held(key(1), true))]).await;
    assert_eq!((finished.parts, drop_parts(&*log, &finished).await.unwrap()), (2, 1));
    assert_eq!(sealed(&*log).await, [true, false, false]);
    assert_eq!(log.head().await.unwrap().size().0, 3);
}
