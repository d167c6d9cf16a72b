//! A node's own view is believed for two seconds: a log that is slow to answer, or was out of reach, is not asked more than it must be.

use std::sync::Arc;
use std::time::Duration;

use audit_log::MemoryLog;
use audit_log::fault::FaultyLog;
use sealing::LogKey;
use session_service::{Follower, ServiceError, SessionService};
use session_view::{Budget, MemoryView};
use tokio::time::{Instant, sleep};

use crate::rig::{Hands, caller, new, policy, service};

const BOUND: Duration = Duration::from_secs(2);

/// A service with a session that its view shows, on a log that from now on does not say what became of any session.
async fn silent() -> (Arc<FaultyLog>, Arc<SessionService>, Follower, session_model::SessionId) {
    let faulty = Arc::new(FaultyLog::new(Arc::new(MemoryLog::new())));
    let view = Arc::new(MemoryView::new(Budget::default()));
    let (hands, key) = (Arc::new(Hands::default()), Arc::new(LogKey::generate("log.test").unwrap()));
    let log = Arc::clone(&faulty) as _;
    let service = service("node-1", log, view, &hands, &key, policy(), Some(BOUND));
    let follower = Follower::start(Arc::clone(&service));
    let id = service.create(&caller(), new(None), None).await.unwrap().session.id;
    sleep(Duration::from_secs(1)).await;
    faulty.fall_silent();
    (faulty, service, follower, id)
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_as_old_as_itself_and_no_older() {
    let (faulty, service, follower, id) = silent().await;
    faulty.delay_heads(Duration::from_millis(1_700));
    let (began, asked) = (Instant::now(), faulty.heads());
    while began.elapsed() < Duration::from_secs(20) {
        // Not from the log, which would never answer.
        let found = tokio::time::timeout(Duration::from_millis(1), service.get(&caller(), id)).await;
        assert!(matches!(found, Ok(Ok(_))), "{found:?} after {:?}", began.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    assert!(faulty.heads() - asked <= 20 * 4 + 1, "{} questions in 20 s", faulty.heads() - asked);
    // Beyond the bound it is not believed, however often it is asked.
    faulty.delay_heads(Duration::from_secs(3));
    sleep(Duration::from_secs(4)).await;
    let found = service.get(&caller(), id).await;
    assert!(matches!(found, Err(ServiceError::Unavailable(_))), "{found:?}");
    follower.close().await;
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_share_one_question() {
    let (faulty, service, follower, id) = silent().await;
    // Nobody follows the log: the view grows old.
    follower.close().await;
    sleep(BOUND * 2).await;
    let asked = faulty.heads();
    faulty.delay_heads(Duration::from_millis(100));
    let caller = caller();
    let found = futures::future::join_all((0..200).map(|_| service.get(&caller, id))).await;
    assert!(found.iter().all(Result::is_ok), "{found:?}");
    assert_eq!(faulty.heads() - asked, 1);
    // Whoever comes later has nothing to ask.
    service.get(&caller, id).await.unwrap();
    assert_eq!(faulty.heads() - asked, 1);
    // A log out of reach is no reason to believe the view.
    sleep(BOUND * 2).await;
    faulty.cut(true);
    let found = service.get(&caller, id).await;
    assert!(matches!(found, Err(ServiceError::Unavailable(_))), "{found:?}");
}
