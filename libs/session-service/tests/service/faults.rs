//! The failure table: every step of an append fails as "not done" and as "done but the answer is lost". Whatever was
//! acknowledged is in the log, whatever was refused as not recorded is not, and the whole log proves itself.

use std::sync::Arc;
use std::time::Duration;

use audit_log::fault::{Fault, FaultyLog};
use audit_log::{LogStore, MemoryLog};
use session_model::Digest;
use session_service::{Idempotency, ServiceError, Unavailable};
use session_view::{Budget, MemoryView};

use crate::rig::{Rig, caller, new, patch, policy};

fn rig() -> (Arc<FaultyLog>, Rig) {
    let faulty = Arc::new(FaultyLog::new(Arc::new(MemoryLog::new())));
    let log: Arc<dyn LogStore> = Arc::clone(&faulty) as _;
    (faulty, Rig::on(log, Arc::new(MemoryView::new(Budget::default())), policy()))
}

/// What a client may be told of a change that met a fault.
#[derive(Debug, PartialEq)]
enum Told {
    Done,
    NotRecorded,
}

#[tokio::test(start_paused = true)]
async fn each_fault_alone_and_each_pair() {
    use Told::{Done, NotRecorded};
    let mut table = vec![
        (vec![Fault::NotDone], NotRecorded),
        (vec![Fault::LostNotDone], Done),
        (vec![Fault::LostDone], Done),
        // The append timed out, was found not done, and there is no time left to try again.
        (vec![Fault::HangNotDone], NotRecorded),
        (vec![Fault::HangDone], Done),
        (vec![Fault::LostDone, Fault::Resolve], Done),
        (vec![Fault::LostDone, Fault::Resolve, Fault::Resolve, Fault::Resolve], Done),
        (vec![Fault::LostNotDone, Fault::Resolve], Done),
        (vec![Fault::LostNotDone, Fault::LostDone], Done),
        (vec![Fault::LostNotDone, Fault::NotDone], NotRecorded),
    ];
    table.push((vec![Fault::HangDone, Fault::Resolve], Done));
    for (faults, told) in table {
        let (faulty, rig) = rig();
        let session = rig.create(None).await.session;
        for fault in &faults {
            faulty.order(*fault);
        }
        let outcome = rig.service.update(&caller(), session.id, patch(r#"{"a":1}"#), None).await;
        assert!(faulty.is_spent(), "{faults:?} did not strike");
        let versions = rig.actions(session.id).await.len();
        match (&outcome, &told) {
            (Ok(changed), Done) => {
                assert_eq!((changed.session.version.0, versions), (2, 2), "{faults:?}");
                rig.prove(changed).await;
            }
            (Err(ServiceError::Unavailable(Unavailable::LogWrite)), NotRecorded) => {
                assert_eq!(versions, 1, "{faults:?}: refused as not recorded, and yet recorded");
            }
            _ => panic!("{faults:?} should have been told {told:?}, was told {outcome:?}"),
        }
        // The service goes on, from the state that the log has.
        let after = rig.service.update(&caller(), session.id, patch(r#"{"b":2}"#), None).await.unwrap();
        assert_eq!(after.session.version.0, versions as u64 + 1, "{faults:?}");
        assert_eq!(rig.actions(session.id).await.len(), versions + 1, "{faults:?}");
        rig.service.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fate_that_cannot_be_found_out_in_time_is_said_to_be_unknown() {
    let (faulty, rig) = rig();
    let session = rig.create(None).await.session;
    faulty.order(Fault::LostDone);
    for _ in 0..30 {
        faulty.order(Fault::Resolve);
    }
    let outcome = rig.service.update(&caller(), session.id, patch(r#"{"a":1}"#), None).await;
    assert!(matches!(outcome, Err(ServiceError::OutcomeUnknown)), "{outcome:?}");
    // Nobody else is let in before: the next change waits, and then builds on what was found out.
    let mut version = 0;
    while version == 0 {
        match rig.service.update(&caller(), session.id, patch(r#"{"b":2}"#), None).await {
            Ok(changed) => version = changed.session.version.0,
            Err(ServiceError::Unavailable(_) | ServiceError::OutcomeUnknown) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(version >= 3, "the lost change was done");
    assert_eq!(rig.actions(session.id).await.len() as u64, version);
}

/// Time that went by before the append does not turn an unknown fate into "nothing was recorded".
#[tokio::test(start_paused = true)]
async fn a_fate_is_unknown_however_late_the_append_began() {
    let (faulty, rig) = rig();
    let session = rig.create(None).await.session;
    faulty.delay_answers(Duration::from_secs(1));
    let idempotency = |byte| Some(Idempotency { key: Digest([byte; 32]), request: Digest([byte; 32]) });
    for step in 1..=2 {
        faulty.order(Fault::LostDone);
        for _ in 0..30 {
            faulty.order(Fault::Resolve);
        }
        let outcome = match step {
            1 => rig.service.renew(&caller(), session.id, idempotency(1)).await,
            _ => rig.service.create(&caller(), new(None), idempotency(2)).await,
        };
        assert!(matches!(outcome, Err(ServiceError::OutcomeUnknown)), "{outcome:?}");
        while !faulty.is_spent() || !rig.service.is_available() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    assert_eq!(rig.leaves().await.len(), 3, "all was done");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_cannot_be_read_refuses_the_change_and_nothing_else() {
    let (faulty, rig) = rig();
    let session = rig.create(None).await.session;
    faulty.order(Fault::NotDone);
    assert!(rig.service.update(&caller(), session.id, patch(r#"{"a":1}"#), None).await.is_err());
    assert!(!rig.service.is_available());
    // The first thing after a failure is to look where the log ends; that may fail too.
    faulty.order(Fault::Head);
    let again = rig.service.update(&caller(), session.id, patch(r#"{"a":1}"#), None).await;
    // Whoever met the fault first (the follower reads the head as well), nothing was recorded unless said so.
    let recorded = rig.actions(session.id).await.len();
    assert_eq!(recorded, if again.is_ok() { 2 } else { 1 });
    rig.service.update(&caller(), session.id, patch(r#"{"a":1}"#), None).await.unwrap();
    assert!(rig.service.is_available());
}

/// A node that is not ready is sent no changes: were it to wait for one to succeed, it would wait for ever.
#[tokio::test(start_paused = true)]
async fn a_log_that_is_back_is_found_so_without_anybody_asking() {
    let (faulty, rig) = rig();
    let session = rig.create(None).await.session;
    faulty.cut(true);
    assert!(rig.service.update(&caller(), session.id, patch(r#"{"a":1}"#), None).await.is_err());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!rig.service.is_available(), "it is still out of reach");
    faulty.cut(false);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(rig.service.is_available());
    rig.service.update(&caller(), session.id, patch(r#"{"a":1}"#), None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_at_once_meet_every_fault_and_the_log_still_proves_itself() {
    let (faulty, rig) = rig();
    let rig = Arc::new(rig);
    let mut acknowledged = 0_usize;
    for round in 0..20_usize {
        for fault in Fault::ALONE {
            if (round + fault as usize).is_multiple_of(3) {
                faulty.order(fault);
            }
        }
        let mut tasks = Vec::new();
        for _ in 0..16 {
            let rig = Arc::clone(&rig);
            tasks.push(tokio::spawn(async move { rig.service.create(&caller(), new(None), None).await }));
        }
        for task in tasks {
            match task.await.unwrap() {
                Ok(changed) => {
                    acknowledged += 1;
                    rig.prove(&changed).await;
                }
                Err(ServiceError::Unavailable(_) | ServiceError::OutcomeUnknown) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    let leaves = rig.leaves().await;
    assert!(leaves.len() >= acknowledged && acknowledged > 0, "{} entries, {acknowledged} acknowledged", leaves.len());
}

/// Another node was first, and the batch is made anew in a turn: the same table holds there.
#[tokio::test(start_paused = true)]
async fn each_fault_of_a_turn() {
    use Told::{Done, NotRecorded};
    for (faults, told) in [
        (vec![], Done),
        (vec![Fault::Turn], NotRecorded),
        (vec![Fault::HangTurn], NotRecorded),
        // Put out of its turn, it takes another, once.
        (vec![Fault::NotDone], Done),
        (vec![Fault::NotDone, Fault::NotDone], NotRecorded),
        (vec![Fault::NotDone, Fault::LostDone], Done),
        (vec![Fault::LostNotDone], Done),
        (vec![Fault::LostDone], Done),
        (vec![Fault::HangNotDone], NotRecorded),
        (vec![Fault::HangDone], Done),
    ] {
        let (faulty, rig) = rig();
        let session = rig.create(None).await.session;
        rig.beside().create(None).await;
        // What was sent is not there, and meanwhile the other has appended.
        faulty.order(Fault::LostNotDone);
        for fault in &faults {
            faulty.order(*fault);
        }
        let outcome = rig.service.update(&caller(), session.id, patch(r#"{"a":1}"#), None).await;
        assert!(faulty.is_spent(), "{faults:?} did not strike");
        let (lost, turns) = rig.service.rivalry();
        assert_eq!(lost, 1, "{faults:?}");
        assert_eq!(turns == 0, matches!(faults[..], [Fault::Turn | Fault::HangTurn]), "{faults:?}: {turns} turns");
        let versions = rig.actions(session.id).await.len();
        match (&outcome, &told) {
            (Ok(changed), Done) => {
                assert_eq!((changed.session.version.0, versions), (2, 2), "{faults:?}");
                rig.prove(changed).await;
            }
            (Err(ServiceError::Unavailable(Unavailable::LogWrite)), NotRecorded) => {
                assert_eq!(versions, 1, "{faults:?}: refused as not recorded, and yet recorded");
            }
            _ => panic!("{faults:?} should have been told {told:?}, was told {outcome:?}"),
        }
        let after = rig.service.update(&caller(), session.id, patch(r#"{"b":2}"#), None).await.unwrap();
        assert_eq!(after.session.version.0, versions as u64 + 1, "{faults:?}");
        rig.service.close().await;
    }
}

/// Two nodes change the same session at once, again and again: refused in a turn, a batch leaves the head to the other.
#[tokio::test(start_paused = true)]
async fn rivals_for_one_session_lose_no_change() {
    let (_, rig) = rig();
    let other = rig.beside();
    let session = rig.create(None).await.session;
    for round in 0..20 {
        let (ours, theirs) = (patch(&format!(r#"{{"a{round}":1}}"#)), patch(&format!(r#"{{"b{round}":1}}"#)));
        let caller = caller();
        let (ours, theirs) = tokio::join!(
            rig.service.update(&caller, session.id, ours, None),
            other.service.update(&caller, session.id, theirs, None)
        );
        ours.unwrap();
        theirs.unwrap();
    }
    assert_eq!(rig.actions(session.id).await.len(), 41);
    assert!(rig.service.rivalry().1 + other.service.rivalry().1 > 0, "they never met");
}

/// A server that was cut off says nothing at all: nobody waits for it longer than for a change.
#[tokio::test(start_paused = true)]
async fn a_log_that_does_not_answer_is_not_waited_for() {
    let (faulty, rig) = rig();
    rig.create(Some("ada")).await;
    let elsewhere = rig.beside();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    faulty.fall_silent();
    let (service, id) = (&elsewhere.service, sealing::Ids.session(rig.service.now()).unwrap());
    let logout = session_model::EndReason::requested("logout").unwrap();
    let began = tokio::time::Instant::now();
    let unavailable = [
        service.get(&caller(), id).await.err(),
        service.update(&caller(), id, patch("{}"), None).await.err(),
        service.create(&caller(), new(Some("bob")), None).await.err(),
        service.end_subject(&caller(), "ada", None, logout).await.err(),
        service.list(&caller(), &Default::default()).await.err(),
    ];
    for (at, failure) in unavailable.iter().enumerate() {
        assert!(matches!(failure, Some(ServiceError::Unavailable(_))), "{at}: {failure:?}");
    }
    let longest = std::time::Duration::from_millis(5_100) * u32::try_from(unavailable.len()).unwrap();
    assert!(began.elapsed() <= longest, "{:?}", began.elapsed());
}
