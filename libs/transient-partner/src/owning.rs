//! Deciding on the sessions of which this node is the owner, and answering what others ask.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use cluster::{Answers, AskError, Cluster, Incarnation, Placement, Topic};
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use session_model::transient::{Stamp, Stamped};
use session_model::{SLOTS, Session, SessionId, Slot, Timestamp};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;
use transient_store::{Listing, MemoryTransients, Outcome, Put, TransientStore};

use crate::message::{PutReply, Question, Reply};
use crate::store::{PartnerConfig, ask};

/// What this node holds, and by what right it decides.
pub(crate) struct Owning {
    cluster: Arc<Cluster>,
    pub(crate) replica: Arc<MemoryTransients>,
    config: PartnerConfig,
    whole: Mutex<Whole>,
    pub(crate) lost: AtomicU64,
    said: Mutex<Option<Instant>>,
}

/// What this node knows to hold all of. Absence, and that nothing is newer, is believed of no other slot.
struct Whole {
    placement: Arc<Placement>,
    /// Of the slots that it owns.
    slots: Vec<bool>,
    /// Members that have sent everything they hold and this node should, by this placement.
    sent: HashSet<Incarnation>,
}

/// Sessions of a listing.
pub(crate) struct Listed {
    pub(crate) sessions: Vec<Arc<Session>>,
    /// They are those of the node that decides on them, and no copies.
    pub(crate) settled: bool,
}

/// The others have not said what they hold of a session: nobody can decide on it now.
#[derive(Debug)]
pub(crate) struct NotKnown;

/// Between two attempts to have a state acknowledged.
const AGAIN: Duration = Duration::from_millis(20);
/// How often a loss is put into the log of the program.
const SAY: Duration = Duration::from_secs(10);

impl Whole {
    fn new(placement: Arc<Placement>) -> Self {
        let alone = placement.members().len() < 2;
        Self { placement, slots: vec![alone; SLOTS], sent: HashSet::new() }
    }

    /// Goes by another placement from now on. What this node owned all of it still does if nobody came who may bring more.
    fn renew(&mut self, placement: &Arc<Placement>) {
        if self.placement.digest() == placement.digest() {
            return;
        }
        let nobody_came = placement.members().iter().all(|who| self.placement.members().contains(who));
        let alone = placement.members().len() < 2;
        for (whole, slot) in self.slots.iter_mut().zip(Slot::all()) {
            *whole &= nobody_came && self.placement.is_owned_here(slot);
            *whole = (*whole || alone) && placement.is_owned_here(slot);
        }
        self.placement = Arc::clone(placement);
        self.sent.clear();
    }
}

impl Owning {
    pub(crate) fn start(cluster: Arc<Cluster>, replica: Arc<MemoryTransients>, config: PartnerConfig) -> Arc<Self> {
        let placement = placement_of(&cluster);
        let owning = Arc::new(Self {
            whole: Mutex::new(Whole::new(placement)),
            cluster,
            replica,
            config,
            lost: AtomicU64::new(0),
            said: Mutex::new(None),
        });
        owning.cluster.answer_by(Topic::Transient, Arc::new(Answering(Arc::downgrade(&owning))));
        owning
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(crate) fn placement(&self) -> Arc<Placement> {
        placement_of(&self.cluster)
    }

    /// Whether every member has sent what this node should hold.
    pub(crate) fn is_settled(&self) -> bool {
        let placement = self.placement();
        let mut whole = self.whole.lock();
        whole.renew(&placement);
        placement.others().all(|who| whole.sent.contains(&who))
    }

    /// A member has sent everything that it holds and this node should, by the placement of a digest.
    fn was_sent(&self, who: Incarnation, digest: u64) -> bool {
        let placement = self.placement();
        let mut whole = self.whole.lock();
        whole.renew(&placement);
        if placement.digest() != digest {
            return false;
        }
        whole.sent.insert(who);
        if placement.others().all(|who| whole.sent.contains(&who)) {
            whole.slots.fill(true);
        }
        true
    }

    /// Whether a member has said so by the placement of now.
    fn was_told(&self, who: Incarnation) -> bool {
        let placement = self.placement();
        let mut whole = self.whole.lock();
        whole.renew(&placement);
        whole.sent.contains(&who)
    }

    fn is_whole(&self, placement: &Arc<Placement>, slot: Slot) -> bool {
        let mut whole = self.whole.lock();
        whole.renew(placement);
        placement.is_owned_here(slot) && whole.slots.get(slot.index()) == Some(&true)
    }

    pub(crate) fn merge(&self, states: Vec<Stamped>) {
        let lost = self.replica.merge(states, (self.config.now)()).lost;
        if lost > 0 {
            let all = self.lost.fetch_add(lost as u64, Ordering::Relaxed) + lost as u64;
            let mut said = self.said.lock();
            if said.is_none_or(|said| said.elapsed() > SAY) {
                warn!(all, "a change of a transient session is lost: another was made apart from it");
                *said = Some(Instant::now());
            }
        }
    }

    /// What stands of a session, by the word of this node as its owner.
    pub(crate) async fn stands(&self, id: SessionId) -> Result<Option<Stamped>, NotKnown> {
        if !self.is_whole(&self.placement(), Slot::of(id)) {
            self.gather(id).await?;
        }
        Ok(self.held(id).await)
    }

    pub(crate) async fn held(&self, id: SessionId) -> Option<Stamped> {
        // Memory always answers.
        self.replica.get(id).await.ok().flatten()
    }

    /// Asks every other member what it holds of a session, and takes it in.
    async fn gather(&self, id: SessionId) -> Result<(), NotKnown> {
        let placement = self.placement();
        let asked = placement.others().map(async |who| (who, ask(&self.cluster, who, &Question::Held(id)).await));
        for (who, said) in join_all(asked).await {
            match said {
                Ok(Reply::State(Some(state))) if state.session.id == id => self.merge(vec![state]),
                Ok(Reply::State(_)) => {}
                // One that has gone meanwhile says nothing more: others hold what it held.
                Ok(_) | Err(_) if !self.placement().members().contains(&who) => {}
                Ok(_) | Err(_) => return Err(NotKnown),
            }
        }
        Ok(())
    }

    /// Lets a state stand if what it was made from does, here where that is decided, and has it acknowledged.
    pub(crate) async fn put(
        &self,
        state: Stamped,
        base: Option<Stamp>,
        acknowledged_by: u8,
        again: bool,
    ) -> Result<PutReply, NotKnown> {
        let (id, placement) = (state.session.id, self.placement());
        let slot = Slot::of(id);
        if placement.holders(slot).len() <= usize::from(acknowledged_by) {
            return Ok(PutReply::TooFewNodes);
        }
        if !self.is_whole(&placement, slot) {
            self.gather(id).await?;
        }
        // What was asked before may have come about, and the answer been lost.
        let stands = again && self.held(id).await.is_some_and(|stands| stands.stamp == state.stamp);
        if !stands {
            let put = Put { state: state.clone(), base, cap: None, answer: None, acknowledged_by: 0 };
            match self.replica.put(put).await {
                Ok(Outcome::Done) => {}
                Ok(Outcome::Full) => return Ok(PutReply::Full),
                Ok(Outcome::Moved | Outcome::CapReached | Outcome::Answered) | Err(_) => return Ok(PutReply::Moved),
            }
        }
        let enough = self.spread(id, acknowledged_by).await;
        Ok(if enough { PutReply::Done } else { PutReply::Unacknowledged })
    }

    /// Marks a session of this node's as used.
    pub(crate) async fn mark(&self, id: SessionId, at: Timestamp) -> Option<Stamped> {
        let marked = self.replica.mark_used(id, at).await.ok().flatten()?;
        self.spread(id, 0).await;
        Some(marked)
    }

    /// Sends what this node holds of a session to the other holders, and waits until so many of them have it. If somebody else has become its owner
    /// meanwhile, that one is waited for as well: it may have been told already that this node has nothing more for it.
    async fn spread(&self, id: SessionId, acknowledged_by: u8) -> bool {
        let slot = Slot::of(id);
        let until = Instant::now() + self.config.patience;
        let mut had: HashSet<Incarnation> = HashSet::new();
        loop {
            let placement = self.placement();
            let Some(state) = self.held(id).await else { return acknowledged_by == 0 };
            let lack = |who: &Incarnation| *who != placement.me() && !had.contains(who);
            let to: Vec<Incarnation> = placement.holders(slot).iter().copied().filter(lack).collect();
            if acknowledged_by == 0 && placement.is_owned_here(slot) {
                let told = Question::Told(vec![state]).encode().unwrap_or_default();
                to.iter().for_each(|who| self.cluster.notify(*who, Topic::Transient, told.clone()));
                return true;
            }
            let take = Question::Take(vec![state]);
            let mut asked: FuturesUnordered<_> =
                to.iter().map(async |who| (*who, ask(&self.cluster, *who, &take).await)).collect();
            let enough = |had: &HashSet<Incarnation>| {
                // Who has it and has gone does not count.
                let there = had.iter().filter(|who| placement.members().contains(who)).count();
                there >= usize::from(acknowledged_by)
                    && (placement.is_owned_here(slot) || had.contains(&placement.owner(slot)))
            };
            while !enough(&had)
                && let Ok(Some((who, said))) = timeout_at(until, asked.next()).await
            {
                if matches!(said, Ok(Reply::Taken)) {
                    had.insert(who);
                }
            }
            if enough(&had) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            drop(asked);
            sleep(AGAIN).await;
        }
    }

    /// Of the sessions of a listing those that this node decides on; or, while it may lack some of them, all that it holds.
    pub(crate) async fn list(&self, listing: &Listing) -> Listed {
        let (settled, placement) = (self.is_settled(), self.placement());
        let (mut page, mut sessions) = (listing.clone(), Vec::new());
        loop {
            let found = self.replica.list(&page).await.unwrap_or_default();
            let (last, more) = (found.last().map(|session| session.id), found.len() >= page.limit);
            let wanted = |session: &Arc<Session>| !settled || placement.is_owned_here(Slot::of(session.id));
            sessions.extend(found.into_iter().filter(wanted));
            if !more || last.is_none() || sessions.len() >= listing.limit {
                sessions.truncate(listing.limit);
                return Listed { sessions, settled };
            }
            page.before = last;
        }
    }

    /// As much of a listing as fits one answer.
    async fn page(&self, listing: &Listing) -> Reply {
        let most = self.cluster.max_answer().saturating_sub(3);
        let Listed { sessions: found, settled } = self.list(listing).await;
        let (mut bytes, mut sessions, all) = (0, Vec::new(), found.len());
        for session in found {
            bytes += 4 + serde_json::to_vec(&*session).map_or(0, |json| json.len());
            if bytes > most {
                break;
            }
            sessions.push(Arc::unwrap_or_clone(session));
        }
        // One that fits no answer would have been refused when it began.
        Reply::Page { complete: sessions.len() == all, sessions, settled }
    }

    async fn reply(&self, from: Incarnation, question: Question) -> Option<Reply> {
        let mine = |id: SessionId, insist: bool| insist || self.placement().is_owned_here(Slot::of(id));
        Some(match question {
            Question::Get { id, insist } if mine(id, insist) => Reply::State(self.stands(id).await.ok()?),
            Question::Put { state, base, acknowledged_by, insist, again } if mine(state.session.id, insist) => {
                Reply::Put(self.put(state, base, acknowledged_by, again).await.ok()?)
            }
            Question::Mark { id, at, insist } if mine(id, insist) => Reply::State(self.mark(id, at).await),
            Question::Get { .. } | Question::Put { .. } | Question::Mark { .. } => Reply::NotMine,
            Question::Held(id) => Reply::State(self.held(id).await),
            Question::Take(states) => {
                self.merge(states);
                Reply::Taken
            }
            Question::Told(states) => {
                self.merge(states);
                return None;
            }
            Question::Compare { digest, sums } => {
                if self.placement().digest() != digest {
                    return Some(Reply::OtherPlacement);
                }
                let own = self.replica.slot_sums();
                let differs = |(slot, sum): &(Slot, u64)| own.get(slot.index()) != Some(sum);
                let slots = sums.into_iter().filter(differs).map(|(slot, _)| slot).collect();
                Reply::Differing { slots, sent: self.was_told(from) }
            }
            Question::Sent { digest } if self.was_sent(from, digest) => Reply::Taken,
            Question::Sent { .. } => Reply::OtherPlacement,
            Question::List(listing) => self.page(&listing).await,
        })
    }
}

/// Answers for a store, as long as there is one.
struct Answering(Weak<Owning>);

#[async_trait]
impl Answers for Answering {
    async fn answer(&self, from: Incarnation, question: Vec<u8>) -> Option<Vec<u8>> {
        let owning = self.0.upgrade()?;
        let question = Question::decode(&question).ok()?;
        owning.reply(from, question).await?.encode().ok()
    }
}

/// That of a cluster whose nodes hold sessions by placement. Where none do a node is alone.
fn placement_of(cluster: &Cluster) -> Arc<Placement> {
    cluster.placement().unwrap_or_else(|| {
        let me = cluster.incarnation();
        Arc::new(Placement::new(me, &[(String::new(), me)], 0))
    })
}

/// Sends states to a node, and waits until it has said of each page that it has them.
pub(crate) async fn send(owning: &Owning, who: Incarnation, states: Vec<Stamped>) -> Result<(), AskError> {
    let most = owning.cluster.max_answer().saturating_sub(1);
    let (mut page, mut bytes) = (Vec::new(), 0);
    for state in states {
        let more = 4 + state.encode().map_or(0, |encoded| encoded.len());
        if bytes + more > most && !page.is_empty() {
            taken(owning, who, std::mem::take(&mut page)).await?;
            bytes = 0;
        }
        bytes += more;
        page.push(state);
    }
    if page.is_empty() { Ok(()) } else { taken(owning, who, page).await }
}

/// How often a page is sent to a node that does not say that it has it.
const TRIES: usize = 4;

async fn taken(owning: &Owning, who: Incarnation, page: Vec<Stamped>) -> Result<(), AskError> {
    let take = Question::Take(page);
    for _ in 0..TRIES {
        if matches!(ask(&owning.cluster, who, &take).await, Ok(Reply::Taken)) {
            return Ok(());
        }
        if !owning.placement().members().contains(&who) {
            break;
        }
    }
    Err(AskError::Unanswered)
}
