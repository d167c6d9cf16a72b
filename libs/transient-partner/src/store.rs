//! The store as the service sees it: each request is taken to the owner of its session.

use std::hash::BuildHasher;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use cluster::{AskError, Cluster, Incarnation, Presence, Topic};
use futures::future::join_all;
use hashbrown::{DefaultHashBuilder, HashMap};
use parking_lot::Mutex;
use session_model::transient::Stamped;
use session_model::{Digest, Session, SessionId, Slot, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;
use transient_store::{KeptAnswer, Listing, MemoryTransients, Outcome, Put, StoreError, StoreStatus, TransientStore};

use crate::handing_over;
use crate::message::{PutReply, Question, Reply};
use crate::owning::{Listed, Owning};

/// How nodes keep sessions together.
#[derive(Clone)]
pub struct PartnerConfig {
    /// How long a request goes on looking for somebody who answers: longer than it takes to see that a node has fallen silent.
    pub patience: Duration,
    /// The time of this node.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

/// The sessions of a cluster, of which this node holds its share.
pub struct PartnerTransients {
    config: PartnerConfig,
    /// What this node holds, and the answers to requests that it was asked under idempotency keys.
    replica: Arc<MemoryTransients>,
    /// `None` until it has joined: then it is alone, and decides on everything.
    joined: OnceLock<Joined>,
    /// One at a time for each subject (by a hash of it) begins a session here, so that its cap is counted by one after the other.
    seats: Vec<tokio::sync::Mutex<()>>,
    hasher: DefaultHashBuilder,
}

struct Joined {
    owning: Arc<Owning>,
    rounds: Mutex<Option<JoinHandle<()>>>,
}

/// How long one question may take. Far longer than an answer does, and short enough to ask several.
pub(crate) const ASK: Duration = Duration::from_millis(250);
/// Between two questions where nodes do not agree yet on who decides.
const AGAIN: Duration = Duration::from_millis(20);
/// How long they may disagree before whoever is asked is to decide: longer than a few beats.
const INSIST: Duration = Duration::from_secs(1);
/// How long a node that starts looks for others, and then waits to be sent what it is to hold.
const FIND: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_secs(10);
/// A power of two well above the number of requests under way.
const SEATS: usize = 256;

/// Where a question about a session ended up.
enum Routed {
    /// Here: this node is the owner.
    Here(Arc<Owning>, Attempt),
    /// With the owner, who says this.
    Reply(Reply, Attempt),
}

/// How a question is put.
#[derive(Clone, Copy)]
struct Attempt {
    /// Whoever is asked is to answer as the owner, whether it takes itself for that or not.
    insist: bool,
    /// Somebody may have heard it before.
    again: bool,
}

/// Nobody answered who could.
struct Nobody {
    /// Somebody may have heard the question.
    heard: bool,
}

impl From<Nobody> for StoreError {
    fn from(nobody: Nobody) -> Self {
        let why = "the node that decides on the session does not answer".into();
        if nobody.heard { Self::Unknown(why) } else { Self::Unavailable(why) }
    }
}

impl PartnerTransients {
    /// An empty store, of a node that is alone until it [joins](Self::join) its cluster. `replica` is what it holds.
    pub fn new(replica: Arc<MemoryTransients>, config: PartnerConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            replica,
            joined: OnceLock::new(),
            seats: (0..SEATS).map(|_| tokio::sync::Mutex::new(())).collect(),
            hasher: DefaultHashBuilder::default(),
        })
    }

    /// From now on it shares the sessions with the nodes of a cluster that hold them by placement. To be called once.
    pub fn join(&self, cluster: Arc<Cluster>) {
        let owning = Owning::start(cluster, Arc::clone(&self.replica), self.config.clone());
        let rounds = tokio::spawn(handing_over::rounds(Arc::clone(&owning)));
        if self.joined.set(Joined { owning, rounds: Mutex::new(Some(rounds)) }).is_err() {
            warn!("the transient sessions are in a cluster already");
        }
    }

    /// Waits until this node was sent what it is to hold, if there is anybody to send it; not for ever.
    pub async fn settled(&self) {
        let Some(Joined { owning, .. }) = self.joined.get() else { return };
        let found = async {
            while owning.placement().members().len() < 2 {
                sleep(AGAIN).await;
            }
        };
        if timeout(FIND, found).await.is_err() {
            return;
        }
        let settled = async {
            while !owning.is_settled() {
                sleep(AGAIN).await;
            }
        };
        if timeout(SETTLE, settled).await.is_err() {
            warn!("the other nodes have not sent all transient sessions in time: what is missing is asked for");
        }
    }

    /// Whether it was sent everything that it is to hold, by the nodes that are there now.
    pub fn is_settled(&self) -> bool {
        self.joined.get().is_none_or(|joined| joined.owning.is_settled())
    }

    /// Ends its tasks.
    pub fn close(&self) {
        if let Some(rounds) = self.joined.get().and_then(|joined| joined.rounds.lock().take()) {
            rounds.abort();
        }
    }

    /// Takes a question to the owner of a session's slot, whoever that is by the time that somebody answers.
    async fn at_owner(&self, slot: Slot, question: impl Fn(Attempt) -> Question) -> Result<Routed, Nobody> {
        let Some(Joined { owning, .. }) = self.joined.get() else { return Err(Nobody { heard: false }) };
        let (began, mut disagreeing, mut attempt) = (Instant::now(), None, Attempt { insist: false, again: false });
        loop {
            let placement = owning.placement();
            if placement.is_owned_here(slot) {
                return Ok(Routed::Here(Arc::clone(owning), attempt));
            }
            attempt.insist = disagreeing.is_some_and(|since: Instant| since.elapsed() > INSIST);
            match ask(owning.cluster(), placement.owner(slot), &question(attempt)).await {
                Ok(Reply::NotMine) => disagreeing = disagreeing.or(Some(Instant::now())),
                Ok(reply) => return Ok(Routed::Reply(reply, attempt)),
                Err(failure) => attempt.again |= failure == AskError::Unanswered,
            }
            if began.elapsed() > self.config.patience {
                return Err(Nobody { heard: attempt.again });
            }
            sleep(AGAIN).await;
        }
    }

    /// Lets a state stand at whoever decides on it.
    async fn put_at_owner(
        &self,
        state: Stamped,
        base: Option<session_model::transient::Stamp>,
        acknowledged_by: u8,
    ) -> Result<Outcome, StoreError> {
        let question = |Attempt { insist, again }| {
            let state = state.clone();
            Question::Put { state, base, acknowledged_by, insist, again }
        };
        let (became, again) = match self.at_owner(Slot::of(state.session.id), question).await? {
            Routed::Here(owning, Attempt { again, .. }) => {
                let became = owning.put(state, base, acknowledged_by, again).await;
                (became.map_err(|_| StoreError::from(Nobody { heard: again }))?, again)
            }
            Routed::Reply(Reply::Put(became), Attempt { again, .. }) => (became, again),
            Routed::Reply(..) => return Err(StoreError::Unknown("the owner answered something else".into())),
        };
        match became {
            PutReply::Done => Ok(Outcome::Done),
            // It may have stood, and something else been made from it.
            PutReply::Moved if again => Err(StoreError::Unknown("another change came while nobody answered".into())),
            PutReply::Moved => Ok(Outcome::Moved),
            PutReply::Full => Ok(Outcome::Full),
            PutReply::Unacknowledged => {
                Err(StoreError::Unknown("it stands, and too few partners have said that they have it".into()))
            }
            PutReply::TooFewNodes => Err(StoreError::TooFewNodes),
        }
    }

    /// Whether a subject has as many other active sessions as it may, by what all nodes hold.
    async fn is_at_cap(&self, session: &Session, cap: u32) -> Result<bool, StoreError> {
        let listing = Listing {
            realm: session.realm.clone(),
            subject: session.subject.clone(),
            active: Some(true),
            kind: None,
            before: None,
            limit: (cap as usize).saturating_add(1),
        };
        let others = self.list(&listing).await?.into_iter().filter(|other| other.id != session.id);
        Ok(others.count() >= cap as usize)
    }

    /// The sessions of a listing that a member holds.
    async fn listed_at(&self, owning: &Owning, who: Incarnation, listing: &Listing) -> Result<Listed, AskError> {
        if who == owning.placement().me() {
            return Ok(owning.list(listing).await);
        }
        let (mut listing, mut all) = (listing.clone(), Listed { sessions: Vec::new(), settled: true });
        loop {
            match ask(owning.cluster(), who, &Question::List(listing.clone())).await? {
                Reply::Page { sessions, complete, settled } => {
                    let last = sessions.last().map(|session| session.id);
                    listing.limit = listing.limit.saturating_sub(sessions.len());
                    all.sessions.extend(sessions.into_iter().map(Arc::new));
                    all.settled &= settled;
                    // Positions only fall: nobody can keep us here for ever.
                    if complete
                        || listing.limit == 0
                        || last.is_none()
                        || listing.before.is_some_and(|b| Some(b) <= last)
                    {
                        return Ok(all);
                    }
                    listing.before = last;
                }
                _ => return Err(AskError::Unanswered),
            }
        }
    }
}

/// Asks a node, and reads its answer.
pub(crate) async fn ask(cluster: &Cluster, who: Incarnation, question: &Question) -> Result<Reply, AskError> {
    let question = question.encode().map_err(|_| AskError::Unsent)?;
    let answer = cluster.ask(who, Topic::Transient, question, ASK).await?;
    Reply::decode(&answer).map_err(|_| AskError::Unanswered)
}

fn unanswered() -> StoreError {
    StoreError::Unavailable("the other nodes have not said what they hold of the session".into())
}

#[async_trait]
impl TransientStore for PartnerTransients {
    async fn get(&self, id: SessionId) -> Result<Option<Stamped>, StoreError> {
        if self.joined.get().is_none() {
            return self.replica.get(id).await;
        }
        // A partner's copy may be older than what the owner has said to others: that is waited for, until it answers or is not the owner any more.
        let question = |attempt: Attempt| Question::Get { id, insist: attempt.insist };
        let asked = self.at_owner(Slot::of(id), question).await;
        match asked.map_err(|_| unanswered())? {
            Routed::Here(owning, _) => owning.stands(id).await.map_err(|_| unanswered()),
            Routed::Reply(Reply::State(state), _) => Ok(state.filter(|state| state.session.id == id)),
            Routed::Reply(..) => Err(unanswered()),
        }
    }

    async fn put(&self, put: Put) -> Result<Outcome, StoreError> {
        if self.joined.get().is_none() {
            return self.replica.put(put).await;
        }
        let Put { state, base, cap, answer, acknowledged_by } = put;
        // Answers stay at the node that was asked. Of two requests under one key the service lets one through at a time.
        if let Some((key, _)) = &answer
            && self.replica.answer(key, state.stamp.at).await?.is_some()
        {
            return Ok(Outcome::Answered);
        }
        let seat = cap
            .zip(state.session.subject.as_ref())
            .map(|(cap, subject)| (cap, self.hasher.hash_one((&state.session.realm, subject)) as usize % SEATS));
        let _turn = match seat.and_then(|(_, seat)| self.seats.get(seat)) {
            Some(seat) => Some(seat.lock().await),
            None => None,
        };
        if let Some((cap, _)) = seat
            && self.is_at_cap(&state.session, cap).await?
        {
            return Ok(Outcome::CapReached);
        }
        let outcome = self.put_at_owner(state, base, acknowledged_by).await?;
        if let (Outcome::Done, Some((key, kept))) = (outcome, answer) {
            self.replica.keep(key, kept);
        }
        Ok(outcome)
    }

    async fn mark_used(&self, id: SessionId, at: Timestamp) -> Result<Option<Stamped>, StoreError> {
        if self.joined.get().is_none() {
            return self.replica.mark_used(id, at).await;
        }
        let question = |attempt: Attempt| Question::Mark { id, at, insist: attempt.insist };
        match self.at_owner(Slot::of(id), question).await? {
            Routed::Here(owning, _) => Ok(owning.mark(id, at).await),
            Routed::Reply(Reply::State(state), _) => Ok(state),
            Routed::Reply(..) => Err(unanswered()),
        }
    }

    /// Those on which this node decides: each node ends its own.
    async fn due(&self, before: Timestamp, limit: usize) -> Result<Vec<Arc<Session>>, StoreError> {
        let Some(Joined { owning, .. }) = self.joined.get() else { return self.replica.due(before, limit).await };
        let placement = owning.placement();
        let mut due = self.replica.due(before, usize::MAX).await?;
        due.retain(|session| placement.is_owned_here(Slot::of(session.id)));
        due.truncate(limit);
        Ok(due)
    }

    async fn list(&self, listing: &Listing) -> Result<Vec<Arc<Session>>, StoreError> {
        let Some(Joined { owning, .. }) = self.joined.get() else { return self.replica.list(listing).await };
        let began = Instant::now();
        loop {
            let placement = owning.placement();
            let asked = placement.members().iter();
            let asked = asked.map(async |who| Ok((*who, self.listed_at(owning, *who, listing).await?)));
            let pages: Result<Vec<(Incarnation, Listed)>, AskError> = join_all(asked).await.into_iter().collect();
            let Ok(pages) = pages else {
                if began.elapsed() > self.config.patience {
                    return Err(unanswered());
                }
                // It may have gone: then there are others who hold what it held.
                sleep(AGAIN).await;
                continue;
            };
            let settled: Vec<Incarnation> =
                pages.iter().filter(|(_, listed)| listed.settled).map(|(who, _)| *who).collect();
            let mut newest: HashMap<SessionId, Arc<Session>> = HashMap::new();
            for (who, listed) in pages {
                for session in listed.sessions {
                    let owner = placement.owner(Slot::of(session.id));
                    // What its owner says of it is more than any copy.
                    if owner != who && settled.contains(&owner) {
                        continue;
                    }
                    let known = newest.entry(session.id).or_insert_with(|| Arc::clone(&session));
                    let rank = |session: &Session| (session.ended().is_some(), session.version, session.last_seen_at);
                    if rank(known) < rank(&session) {
                        *known = session;
                    }
                }
            }
            let mut sessions: Vec<Arc<Session>> = newest.into_values().collect();
            sessions.sort_unstable_by_key(|session| std::cmp::Reverse(session.id));
            sessions.truncate(listing.limit);
            return Ok(sessions);
        }
    }

    async fn answer(&self, key: &Digest, now: Timestamp) -> Result<Option<KeptAnswer>, StoreError> {
        self.replica.answer(key, now).await
    }

    async fn sweep(&self, now: Timestamp) {
        self.replica.sweep(now).await;
    }

    fn status(&self) -> StoreStatus {
        self.replica.status()
    }

    fn within_reach(&self) -> Option<usize> {
        let Joined { owning, .. } = self.joined.get()?;
        Some(1 + owning.cluster().members().iter().filter(|member| member.presence == Presence::Up).count())
    }

    fn lost(&self) -> u64 {
        self.joined.get().map_or(0, |joined| joined.owning.lost.load(Ordering::Relaxed))
    }
}

impl std::fmt::Debug for PartnerTransients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PartnerTransients({:?})", self.replica)
    }
}
