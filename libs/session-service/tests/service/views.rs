//! Views that are out of reach, lose what they held, or hold rubbish: nothing is lost, and nothing stays broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use audit_log::MemoryLog;
use parking_lot::Mutex;
use session_model::{Action, Session, SessionId, Timestamp, TreeSize, Version};
use session_service::{Distrust, FromLog, RebuildState, Validation};
use session_view::{Applied, Budget, Doubt, MemoryView, SessionView, ViewError, ViewStatus, Viewed};

use crate::rig::{Rig, caller, patch, policy, reads_from_log};

/// A view that can be taken out of reach, emptied, put back to what it held before, and filled with rubbish.
struct Frail {
    inner: Mutex<Arc<MemoryView>>,
    doubt: Doubt,
    down: AtomicBool,
    rubbish: Mutex<Option<SessionId>>,
}

impl Frail {
    fn new() -> Arc<Self> {
        let inner = Mutex::new(Arc::new(MemoryView::new(Budget::default())));
        let doubt = Doubt::default();
        doubt.restored(doubt.losses());
        Arc::new(Self { inner, doubt, down: AtomicBool::new(false), rubbish: Mutex::new(None) })
    }

    fn up(&self) -> Result<Arc<MemoryView>, ViewError> {
        if self.down.load(Ordering::Relaxed) {
            return Err(ViewError::Unavailable("out of reach".into()));
        }
        Ok(Arc::clone(&self.inner.lock()))
    }

    fn empty(&self) {
        *self.inner.lock() = Arc::new(MemoryView::new(Budget::default()));
    }
}

#[async_trait]
impl SessionView for Frail {
    fn peek(&self, _id: SessionId) -> Option<Viewed> {
        None
    }
    async fn get(&self, id: SessionId) -> Result<Option<Viewed>, ViewError> {
        if *self.rubbish.lock() == Some(id) {
            return Err(ViewError::Undecodable(id));
        }
        if !self.doubt.is_over() {
            return Err(ViewError::Unavailable("in doubt".into()));
        }
        self.up()?.get(id).await
    }
    async fn held(&self, id: SessionId) -> Result<Option<Viewed>, ViewError> {
        self.up()?.get(id).await
    }
    async fn apply(&self, states: &[Arc<Session>]) -> Result<Vec<Applied>, ViewError> {
        self.up()?.apply(states).await
    }
    async fn mark_used(&self, uses: &[(SessionId, Timestamp)]) -> Result<(), ViewError> {
        self.up()?.mark_used(uses).await
    }
    async fn due(&self, before: Timestamp, limit: usize) -> Result<Vec<SessionId>, ViewError> {
        self.up()?.due(before, limit).await
    }
    fn has_room(&self) -> bool {
        true
    }
    async fn quarantine(&self, id: SessionId) -> Result<(), ViewError> {
        assert_eq!(self.rubbish.lock().take(), Some(id));
        Ok(())
    }
    async fn reflects(&self) -> Result<TreeSize, ViewError> {
        self.up()?.reflects().await
    }
    async fn set_reflects(&self, size: TreeSize) -> Result<(), ViewError> {
        self.up()?.set_reflects(size).await
    }
    fn losses(&self) -> u64 {
        self.doubt.losses()
    }
    fn restored(&self, losses: u64) {
        self.doubt.restored(losses);
    }
    fn status(&self) -> ViewStatus {
        ViewStatus { in_doubt: !self.doubt.is_over(), ..self.inner.lock().status() }
    }
}

fn rig() -> (Arc<Frail>, Rig) {
    let view = Frail::new();
    let rig = Rig::on(Arc::new(MemoryLog::new()), Arc::clone(&view) as _, policy());
    (view, rig)
}

#[tokio::test(start_paused = true)]
async fn with_the_view_out_of_reach_reads_come_from_the_log_and_writes_go_on() {
    let (view, rig) = rig();
    let created = rig.create(None).await;
    view.down.store(true, Ordering::Relaxed);
    let id = created.session.id;
    let changed = rig.service.update(&caller(), id, patch(r#"{"a":1}"#), None).await.unwrap();
    assert_eq!(changed.session.version, Version(2));
    let token = created.token.unwrap().expose();
    let worth = rig.service.validate(&caller(), &token).await.unwrap();
    assert!(matches!(worth, Validation::Active(ref session) if session.version == Version(2)), "{worth:?}");
    let ended = rig.service.end(&caller(), id, session_model::EndReason::requested("bye").unwrap()).await.unwrap();
    assert_eq!(ended.session.version, Version(3));
    // One for each: what was asked for stood nowhere else.
    assert_eq!(reads_from_log(&rig.service, FromLog::Unavailable), 3);
    // Back in reach the view still shows the old state: the follower mends it.
    view.down.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let shown = view.up().unwrap().get(id).await.unwrap();
    assert!(matches!(shown, Some(Viewed::Ended(_))), "{shown:?}");
}

#[tokio::test(start_paused = true)]
async fn a_view_that_lost_everything_is_rebuilt_and_due_sessions_are_reaped_again() {
    let (view, rig) = rig();
    let mut ids = Vec::new();
    for _ in 0..300 {
        ids.push(rig.create(None).await.session.id);
    }
    rig.service.update(&caller(), ids[0], patch(r#"{"a":1}"#), None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    view.empty();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let inner = view.up().unwrap();
    assert_eq!(inner.status().held, 300);
    let first = inner.get(ids[0]).await.unwrap();
    assert!(matches!(first, Some(Viewed::Active(session)) if session.version == Version(2)));
}

/// What a promoted replica does that lagged: it says that it reflects as much as the view was last told, but lacks what was
/// applied since.
#[tokio::test(start_paused = true)]
async fn what_a_lagging_replica_lacks_is_read_from_the_log_and_applied_again() {
    let (view, rig) = rig();
    let created = rig.create(None).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let reflects = view.up().unwrap().reflects().await.unwrap();
    let id = created.session.id;
    rig.service.end(&caller(), id, session_model::EndReason::requested("bye").unwrap()).await.unwrap();

    let replica = Arc::new(MemoryView::new(Budget::default()));
    assert_eq!(replica.apply(std::slice::from_ref(&created.session)).await.unwrap(), [Applied::Yes]);
    replica.set_reflects(reflects).await.unwrap();
    *view.inner.lock() = Arc::clone(&replica);
    view.doubt.lost();
    assert_eq!(rig.service.distrust(), Some(Distrust::Losses));

    let worth = rig.service.validate(&caller(), &created.token.unwrap().expose()).await.unwrap();
    assert!(!matches!(worth, Validation::Active(_)), "the ended session came back: {worth:?}");
    assert_eq!(reads_from_log(&rig.service, FromLog::Distrusted(Distrust::Losses)), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(view.doubt.is_over(), "the follower has applied again what was lost");
    assert_eq!(rig.service.distrust(), None);
    let shown = replica.get(id).await.unwrap();
    assert!(matches!(shown, Some(Viewed::Ended(_))), "{shown:?}");
}

#[tokio::test(start_paused = true)]
async fn undecodable_data_is_quarantined_recorded_and_replaced() {
    let (view, rig) = rig();
    let created = rig.create(None).await;
    *view.rubbish.lock() = Some(created.session.id);
    let worth = rig.service.validate(&caller(), &created.token.unwrap().expose()).await.unwrap();
    assert!(matches!(worth, Validation::Active(_)), "{worth:?}");
    assert_eq!(reads_from_log(&rig.service, FromLog::Undecodable), 1);
    let recorded = rig.leaves().await.into_iter().filter(|leaf| leaf.action == Action::ViewQuarantined).count();
    assert_eq!(recorded, 1);
}

#[tokio::test(start_paused = true)]
async fn a_rebuilt_view_neither_ends_a_used_session_nor_revives_an_idle_one() {
    let rig = Rig::new(policy());
    let used = rig.create(None).await;
    let idle = rig.create(None).await;
    rig.hands.forward(session_model::Seconds::minutes(20));
    rig.service.touch(&caller(), used.session.id).await.unwrap();
    rig.service.flush_marks().await;
    rig.hands.forward(session_model::Seconds::minutes(15));
    let after = rig.beside();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(after.follower.status().rebuild, RebuildState::Complete);
    for (created, active) in [(used, true), (idle, false)] {
        let worth = after.service.validate(&caller(), &created.token.unwrap().expose()).await.unwrap();
        assert_eq!(matches!(worth, Validation::Active(_)), active, "{worth:?}");
    }
    assert_eq!(after.view.status().held, 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_view_refuses_new_sessions_before_they_are_recorded() {
    let view = Arc::new(MemoryView::new(Budget { bytes: 2_000, beyond: session_view::BeyondBudget::Refuse }));
    let rig = Rig::on(Arc::new(MemoryLog::new()), view, policy());
    let mut created = 0;
    while rig.service.create(&caller(), crate::rig::new(None), None).await.is_ok() {
        created += 1;
        assert!(created < 100, "a budget of 2,000 bytes does not end");
    }
    assert_eq!(rig.leaves().await.len(), created);
}
