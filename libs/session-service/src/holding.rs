//! Holding a share of the sessions of a log, where nodes share them out among themselves ([`cluster::Placement`]).
//!
//! A node's view then has the sessions whose owner or partner it is. That changes nothing of what is promised, because a view never had to be
//! whole: what it lacks is asked of those who hold it, and then of the log. Three rules keep what it shows as good as before.
//!
//! * *From a size on.* Of a slot that a node comes to hold it applies the entries from the size on that it knew the log to have then, and no earlier
//!   one that comes late: between the two there may be one that it passed over while it did not hold the slot. What went before it takes as a whole
//!   from who held the slot ([`SessionService::fill`]), or from the log.
//! * *No older than here.* A node asks another for a session as of the size that its own view reflects. Who reflects less says so. So the answer is
//!   as good as one from the node's own view, which is judged by the same bound of staleness, and no clocks are compared.
//! * *A share that is taken for another is none.* Who tells of a commit says which share it takes a node to hold. A node that holds another reads
//!   the entries from the log.

pub(crate) mod message;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use cluster::{Answers, Cluster, Incarnation, Placement, Topic};
use parking_lot::RwLock;
use session_model::{LeafIndex, SLOTS, Session, SessionId, Slot, Timestamp, TreeSize};
use session_view::Viewed;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::error::ServiceError;
use crate::replication::session_of;
use crate::service::SessionService;
use message::{Question, Reply};

/// The share of a node.
pub(crate) struct Holding {
    cluster: Arc<Cluster>,
    share: RwLock<Share>,
    /// What this node came to hold it has, and what it holds no more it has dropped.
    filled: AtomicBool,
}

/// By which placement a view holds what.
struct Share {
    placement: Arc<Placement>,
    /// For each slot the index from which on entries are applied; `None` where the node does not hold it.
    since: Vec<Option<LeafIndex>>,
}

/// How long another node may take to say what it holds. Beyond that the log is quicker.
const ASK: Duration = Duration::from_millis(25);
/// How long a node that is asked waits for the entries that the asking one has had already.
const CATCH_UP: Duration = Duration::from_millis(10);
/// How long a node that starts looks for others before it takes itself for alone, and then for more of them.
const FIND: Duration = Duration::from_secs(2);
const GATHER: Duration = Duration::from_millis(500);
/// Before what a peer has not reflected yet is asked for again, and how often.
const AGAIN: Duration = Duration::from_millis(300);
const TRIES: usize = 4;
/// Open sessions that are listed at once, and read at once.
const PAGE: usize = 1_000;
const AT_ONCE: usize = 16;

impl Holding {
    /// Whether what entries from this index on make of a session belongs in the view.
    pub(crate) fn takes(&self, id: SessionId, index: LeafIndex) -> bool {
        self.since(id).is_some_and(|since| since <= index)
    }

    /// Whether the view holds a session, if there is one.
    pub(crate) fn holds(&self, id: SessionId) -> bool {
        self.since(id).is_some()
    }

    /// By which placement it does.
    pub(crate) fn placement(&self) -> Arc<Placement> {
        Arc::clone(&self.share.read().placement)
    }

    /// Whether a share is this node's.
    pub(crate) fn is_share(&self, share: u64) -> bool {
        let held = self.share.read();
        // One that has not taken its share yet holds nothing.
        held.since.iter().any(Option::is_some) && held.placement.share(held.placement.me()) == share
    }

    /// Slots that this node holds, and whether it has what it is to hold of them.
    pub(crate) fn status(&self) -> (usize, bool) {
        let slots = self.share.read().since.iter().filter(|since| since.is_some()).count();
        (slots, self.filled.load(Ordering::Acquire))
    }

    /// Goes by another placement. Answers the index from which on entries of slots that are new to this node are applied, if there are any.
    fn renew(&self, placement: &Arc<Placement>, size: impl FnOnce() -> TreeSize) -> Option<LeafIndex> {
        let mut share = self.share.write();
        // Now that nobody looks at the share: of whatever is passed over from here on the log is known to be longer than this.
        let from = LeafIndex(size().0);
        let mut new = false;
        for (slot, since) in Slot::all().zip(share.since.iter_mut()) {
            *since = match (placement.is_held_here(slot), *since) {
                (true, None) => {
                    new = true;
                    Some(from)
                }
                (true, held) => held,
                (false, _) => None,
            };
        }
        share.placement = Arc::clone(placement);
        new.then_some(from)
    }

    /// From which index on a session's entries are applied; `None` if it is not held.
    pub(crate) fn since(&self, id: SessionId) -> Option<LeafIndex> {
        self.share.read().since.get(Slot::of(id).index()).copied().flatten()
    }
}

impl SessionService {
    /// From now on the view holds this node's share alone. To be called once, after [`SessionService::join`], where the view is this process's
    /// own; does nothing where nodes do not share sessions out.
    pub fn hold_by_placement(self: &Arc<Self>) {
        let Some(cluster) = self.cluster().cloned() else { return };
        let Some(placement) = cluster.placement() else { return };
        let share = Share { placement, since: vec![None; SLOTS] };
        let holding =
            Holding { cluster: Arc::clone(&cluster), share: RwLock::new(share), filled: AtomicBool::new(false) };
        if self.holding.set(Arc::new(holding)).is_err() {
            warn!("the service holds a share already");
            return;
        }
        cluster.answer_by(Topic::Sessions, Arc::new(Answering(Arc::downgrade(self))));
        *self.filling.lock() = Some(tokio::spawn(keep_share(Arc::downgrade(self), cluster.placements())));
    }

    /// Slots that the view holds, and whether it has all that it should of them; `None` where nodes do not share sessions out.
    pub fn share(&self) -> Option<(usize, bool)> {
        self.holding.get().map(|holding| holding.status())
    }

    /// By what right the view holds a session: an entry of the log from which on it does. A state that was read under another right may be from before
    /// something that was passed over since. `None` if it does not hold it.
    pub(crate) fn right_to_hold(&self, id: SessionId) -> Option<LeafIndex> {
        self.holding.get().map_or(Some(LeafIndex(0)), |holding| holding.since(id))
    }

    /// Those states that belong in the view.
    pub(crate) fn held_of(&self, mut states: Vec<Arc<Session>>) -> Vec<Arc<Session>> {
        if let Some(holding) = self.holding.get() {
            states.retain(|state| holding.takes(state.id, state.head.index));
        }
        states
    }

    /// What those who hold a session say of it, as of no less than this node's view reflects. `None` where none of them knows: then the log does.
    pub(crate) async fn state_of_holder(&self, holding: &Holding, id: SessionId) -> Option<Viewed> {
        let placement = holding.placement();
        let since = holding.since(id).map_or(0, |since| since.0);
        let at_least = self.progress.reflected().max(TreeSize(since));
        for who in placement.holders(Slot::of(id)).iter().filter(|who| **who != placement.me()) {
            let question = Question::Get { id, at_least }.encode();
            let Ok(answer) = holding.cluster.ask(*who, Topic::Sessions, question, ASK).await else { continue };
            let shown = match Reply::decode(&answer) {
                Ok(Reply::Active(session)) if session.id == id => Viewed::Active(session),
                Ok(Reply::Ended(tombstone)) if tombstone.id == id => Viewed::Ended(tombstone),
                Ok(_) => continue,
                Err(_) => {
                    debug!(%who, "what another node says of a session cannot be read");
                    continue;
                }
            };
            if let (true, Viewed::Active(session)) = (holding.takes(id, LeafIndex(at_least.0)), &shown)
                && let Err(failure) = self.view.apply(std::slice::from_ref(session)).await
            {
                warn!(%failure, session = %id, "the view did not take a session from another node");
            }
            return Some(shown);
        }
        None
    }

    /// Tells the owner of a session that it was used here.
    pub(crate) fn tell_use(&self, id: SessionId, at: Timestamp) {
        let Some(holding) = self.holding.get() else { return };
        let placement = holding.placement();
        let owner = placement.owner(Slot::of(id));
        if owner != placement.me() {
            holding.cluster.notify(owner, Topic::Sessions, Question::Used { id, at }.encode());
        }
    }

    async fn reply(&self, question: Question) -> Option<Reply> {
        match question {
            Question::Get { id, at_least } => {
                let until = Instant::now() + CATCH_UP;
                while self.progress.reflected() < at_least {
                    if Instant::now() >= until {
                        return Some(Reply::Behind);
                    }
                    sleep(Duration::from_millis(1)).await;
                }
                // What it shows now reflects at least what was asked for.
                Some(match self.view.peek(id).filter(|_| self.right_to_hold(id).is_some()) {
                    Some(Viewed::Active(session)) => Reply::Active(session),
                    Some(Viewed::Ended(tombstone)) => Reply::Ended(tombstone),
                    None => Reply::NotHere,
                })
            }
            Question::Used { id, at } => {
                if self.view.mark_used(&[(id, at)]).await.is_err() {
                    debug!(session = %id, "a use could not be marked in the view");
                }
                None
            }
        }
    }

    /// Takes a placement: what is new to this node is fetched, what is not its any more dropped. Says whether it has everything.
    async fn take_share(&self, holding: &Holding, placement: &Arc<Placement>) -> bool {
        let from = holding.renew(placement, || self.progress.size());
        self.view.retain(&|id| placement.is_held_here(Slot::of(id)));
        if from.is_none() && holding.filled.load(Ordering::Acquire) {
            return true;
        }
        holding.filled.store(false, Ordering::Release);
        let from = TreeSize(from.map_or(self.progress.size().0, |from| from.0));
        let began = Instant::now();
        for who in placement.others() {
            self.copy_share(holding, who, from).await;
        }
        match self.fill(holding, placement).await {
            Ok(read) => {
                let (slots, _) = holding.status();
                info!(
                    slots,
                    read,
                    seconds = began.elapsed().as_secs_f64(),
                    "this node holds its share of the sessions"
                );
                holding.filled.store(true, Ordering::Release);
                true
            }
            Err(failure) => {
                warn!(%failure, "the open sessions of this node's share could not be read");
                false
            }
        }
    }

    /// Copies from a node what it holds of this node's share, as of a size that this node may have passed over.
    async fn copy_share(&self, holding: &Holding, who: Incarnation, from: TreeSize) {
        for _ in 0..TRIES {
            let lagged = AtomicBool::new(false);
            let copied = holding.cluster.copy_of(who, |page| {
                lagged.fetch_or(page.reflects < from, Ordering::Relaxed);
                async move {
                    // Of a slot that this node came to hold at a greater size the page may be from before something that was passed over.
                    let is_news = |session: &Session| holding.takes(session.id, LeafIndex(page.reflects.0));
                    let states = page.records.iter().filter_map(session_of).filter(is_news);
                    let states: Vec<Arc<Session>> = states.map(Arc::new).collect();
                    if let Err(failure) = self.view.apply(&states).await {
                        warn!(
                            failure = &failure as &dyn std::error::Error,
                            "the view could not take what a peer holds"
                        );
                    }
                }
            });
            if copied.await && !lagged.load(Ordering::Relaxed) {
                return;
            }
            sleep(AGAIN).await;
        }
        debug!(%who, "a node's share of the sessions could not be copied: what it has is read from the log");
    }

    /// Reads from the log every open session of this node's share that its view lacks: one that nobody held would never be seen to expire. Says how
    /// many there were.
    async fn fill(&self, holding: &Holding, placement: &Placement) -> Result<usize, ServiceError> {
        use futures::stream::{self, StreamExt, TryStreamExt};
        let mut read = 0;
        for realm in self.config.realms.keys() {
            let filter = audit_log::SessionFilter { realm: realm.clone(), key: None, open: Some(true), kind: None };
            let mut before = None;
            loop {
                let ids = self.log.sessions(&filter, before, PAGE).await.map_err(crate::failures::of_read)?;
                before = ids.last().copied();
                if before.is_none() || holding.placement().digest() != placement.digest() {
                    break;
                }
                let lacking = ids.into_iter().filter(|id| holding.holds(*id) && self.view.peek(*id).is_none());
                let reading = stream::iter(lacking).map(|id| self.state_from_log(id));
                read += reading.buffer_unordered(AT_ONCE).try_fold(0, async |read, _| Ok(read + 1)).await?;
            }
        }
        Ok(read)
    }
}

/// Keeps the share of a service, as long as there is one.
async fn keep_share(service: Weak<SessionService>, mut placements: watch::Receiver<Option<Arc<Placement>>>) {
    // Who starts is alone until it hears others, and would fetch everything.
    let found = async {
        while placements.borrow_and_update().as_ref().is_some_and(|placement| placement.members().len() < 2) {
            if placements.changed().await.is_err() {
                return;
            }
        }
        sleep(GATHER).await;
    };
    let _alone = timeout(FIND, found).await.is_err();
    loop {
        let Some(placement) = placements.borrow_and_update().clone() else { return };
        let done = {
            let Some(service) = service.upgrade() else { return };
            let Some(holding) = service.holding.get().cloned() else { return };
            service.take_share(&holding, &placement).await
        };
        let changed = if done {
            placements.changed().await
        } else {
            match timeout(AGAIN, placements.changed()).await {
                Ok(changed) => changed,
                Err(_) => Ok(()),
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Answers for a service, as long as there is one.
struct Answering(Weak<SessionService>);

#[async_trait]
impl Answers for Answering {
    async fn answer(&self, _: Incarnation, question: Vec<u8>) -> Option<Vec<u8>> {
        let service = self.0.upgrade()?;
        service.reply(Question::decode(&question).ok()?).await?.encode().ok()
    }
}

/// The task that keeps a share.
pub(crate) type Filling = parking_lot::Mutex<Option<JoinHandle<()>>>;
