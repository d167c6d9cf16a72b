//! Telling other nodes what this one committed, and taking in what they did.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use cluster::{Cluster, Commit, Heard, Host, Incarnation, Page, Record, Standing, ViewIdentity};
use session_model::{LeafIndex, Session, Slot, TreeSize};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::holding::Holding;
use crate::service::SessionService;

/// A commit that is to be told: which entries, and the sessions as they left them.
pub(crate) struct Told {
    pub(crate) first: LeafIndex,
    pub(crate) end: TreeSize,
    pub(crate) states: Vec<Arc<Session>>,
}

/// Commits that wait to be told. Beyond them the others read the log.
const OUTBOX: usize = 256;

/// The service's side of the cluster. Holds the service only as long as others do.
pub(crate) struct Peers(pub(crate) Weak<SessionService>);

impl SessionService {
    /// What the cluster talks to.
    pub fn host(self: &Arc<Self>) -> Arc<dyn Host> {
        Arc::new(Peers(Arc::downgrade(self)))
    }

    /// From now on other nodes are told of every commit. To be called once.
    pub fn join(&self, cluster: Arc<Cluster>) {
        let (outbox, told) = mpsc::channel(OUTBOX);
        if self.cluster.set(Arc::clone(&cluster)).is_err() || self.outbox.set(outbox).is_err() {
            warn!("the service is in a cluster already");
            return;
        }
        let view = Arc::clone(&self.shared_view);
        tokio::spawn(tell(cluster, view, Arc::clone(&self.holding), told));
    }

    /// The cluster this node is in.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.get()
    }

    /// Asks the view which one it is: nodes that share it need not send each other what is in it.
    pub(crate) async fn recognise_view(&self) {
        match self.view.identity().await {
            Ok(identity) => *self.shared_view.lock() = identity.map(ViewIdentity),
            Err(failure) => {
                debug!(failure = &failure as &dyn std::error::Error, "the view cannot say which one it is");
                *self.shared_view.lock() = None;
            }
        }
    }
}

/// Which shared view this process has, if any.
pub(crate) type SharedView = Arc<parking_lot::Mutex<Option<ViewIdentity>>>;

async fn tell(
    cluster: Arc<Cluster>,
    view: SharedView,
    holding: Arc<OnceLock<Arc<Holding>>>,
    mut told: mpsc::Receiver<Told>,
) {
    while let Some(Told { first, end, states }) = told.recv().await {
        let view = *view.lock();
        let unsent = view.is_some() || !cluster.capabilities().records;
        let records = if unsent { Vec::new() } else { states.iter().filter_map(record).collect() };
        // A state that could not be written would be missing: then nothing is told, and the others read the log.
        if unsent || records.len() == states.len() {
            let commit = Commit { first, end, view, records };
            match holding.get() {
                Some(holding) => cluster.publish_shares(&commit, &holding.placement()),
                None => cluster.publish(commit),
            }
        }
    }
}

fn record(session: &Arc<Session>) -> Option<Record> {
    let value = serde_json::to_vec(session).ok()?;
    Some(Record { session: session.id, index: session.head.index, value })
}

pub(crate) fn session_of(record: &Record) -> Option<Session> {
    let session: Session = serde_json::from_slice(&record.value).ok()?;
    (session.id == record.session && session.head.index == record.index).then_some(session)
}

/// For the fuzzer: whatever the bytes are, they are a session or none, and one that is read is written as one that reads alike.
#[cfg(feature = "test-util")]
pub(crate) fn read_any(bytes: &[u8]) {
    let Ok(session) = serde_json::from_slice::<Session>(bytes) else { return };
    let written = record(&Arc::new(session)).map(|record| (session_of(&record), record));
    let again = written.and_then(|(session, record)| Some((record.value, serde_json::to_vec(&session?).ok()?)));
    assert!(again.is_some_and(|(written, again)| written == again), "a session that was read can be written");
}

#[async_trait]
impl Host for Peers {
    fn standing(&self) -> Standing {
        match self.0.upgrade() {
            Some(service) => {
                // The time first: whatever the log had by then is in the size.
                let log_age = service.contact.asked();
                Standing { size: service.progress.size(), reflects: service.progress.reflected(), log_age }
            }
            None => Standing { size: TreeSize(0), reflects: TreeSize(0), log_age: None },
        }
    }

    async fn committed(&self, commit: Commit) {
        let Some(service) = self.0.upgrade() else { return };
        let Commit { first, end, view, records } = commit;
        service.progress.saw(end);
        if let Some(view) = view {
            let same = *service.shared_view.lock() == Some(view);
            return if same { service.progress.applied(first, end) } else { service.progress.hurry() };
        }
        // What the view reflects already it must not be told again: a tombstone may have been forgotten since.
        let reflected = service.progress.reflected();
        if end <= reflected {
            return;
        }
        let news: Vec<&Record> = records.iter().filter(|record| record.index.0 >= reflected.0).collect();
        let states: Vec<Arc<Session>> = news.iter().filter_map(|record| session_of(record)).map(Arc::new).collect();
        if states.len() < news.len() {
            // From a later program: the log tells it in a form that this one reads, or says why not.
            return service.progress.hurry();
        }
        match service.view.apply(&service.held_of(states)).await {
            Ok(_applied) => service.progress.applied(first, end),
            Err(failure) => {
                warn!(failure = &failure as &dyn std::error::Error, "the view could not be told what a peer committed");
                service.progress.behind.notify_one();
            }
        }
    }

    async fn committed_share(&self, share: u64, commit: Commit) {
        let Some(service) = self.0.upgrade() else { return };
        // Before it is asked what the view holds.
        service.progress.saw(commit.end);
        match service.holding.get() {
            Some(holding) if holding.is_share(share) => self.committed(commit).await,
            // Something may be missing that this node holds.
            Some(_) | None => service.progress.hurry(),
        }
    }

    fn grown(&self, size: TreeSize) {
        let Some(service) = self.0.upgrade() else { return };
        service.progress.saw(size);
        if service.progress.lags() {
            service.progress.hurry();
        }
    }

    fn heard(&self, heard: Heard) {
        let Some(service) = self.0.upgrade() else { return };
        service.progress.saw(heard.size);
        service.progress.knows(heard.at, heard.size);
        if service.progress.lags() {
            service.progress.behind.notify_one();
        }
    }

    fn missed(&self) {
        if let Some(service) = self.0.upgrade() {
            service.progress.behind.notify_one();
        }
    }

    async fn page(&self, who: Incarnation, from: u64, bytes: usize) -> Option<Page> {
        let service = self.0.upgrade()?;
        // Not before it is whole: who copies half a view would have to read the log all the same.
        service.progress.staleness()?;
        let reflects = service.progress.reflected();
        let exported = service.view.export(from, bytes)?;
        let placement = service.holding.get().map(|holding| holding.placement());
        let is_its = |session: &&Arc<Session>| {
            placement.as_ref().is_none_or(|placement| placement.is_held_by(Slot::of(session.id), who))
        };
        let records = exported.sessions.iter().filter(is_its).filter_map(record).collect();
        Some(Page { records, reflects, next: exported.next })
    }
}

/// How long a node that comes late waits for peers to be found.
const FIND: Duration = Duration::from_secs(2);
/// Fewer entries than these are read from the log before anybody is found.
const WORTH_A_COPY: u64 = 20_000;

impl SessionService {
    /// Copies the view of a peer, if there is much to catch up with and somebody to copy it from. Whatever this does not bring, the log does.
    pub(crate) async fn copy_from_peer(&self) {
        let Some(cluster) = self.cluster() else { return };
        let lacks = match self.log.head().await {
            Ok(head) => head.size().0.saturating_sub(self.progress.reflected().0),
            Err(_) => return,
        };
        if lacks < WORTH_A_COPY || self.shared_view.lock().is_some() || self.holding.get().is_some() {
            return;
        }
        let found = async {
            while !cluster.members().iter().any(|member| member.presence == cluster::Presence::Up) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(FIND, found).await.is_err() {
            return;
        }
        let whole = AtomicBool::new(true);
        let copied = cluster.snapshot(|records| self.take_copied(records, &whole)).await;
        if let Some(reflects) = copied.filter(|_| whole.load(Ordering::Relaxed)) {
            self.progress.applied(LeafIndex(0), reflects);
        }
    }

    /// Takes part of a peer's view. A session that was too large to be sent, or is in a later form, is read from the log: one that this view
    /// lacked it would never see expire.
    async fn take_copied(&self, records: Vec<Record>, whole: &AtomicBool) {
        let (mut states, mut unread) = (Vec::with_capacity(records.len()), Vec::new());
        for record in &records {
            match session_of(record) {
                Some(session) => states.push(Arc::new(session)),
                None => unread.push(record.session),
            }
        }
        let mut taken = self.view.apply(&states).await.is_ok();
        for id in unread {
            taken &= self.state_from_log(id).await.is_ok();
        }
        if !taken {
            warn!("the view could not take all of a peer's: what it lacks is read from the log");
            whole.store(false, Ordering::Relaxed);
        }
    }
}
