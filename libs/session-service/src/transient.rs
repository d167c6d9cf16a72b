//! Sessions that no log stands behind: decided and applied as every other, then put into a store instead of appended.
//!
//! ```text
//! command -> decide (pure) -> apply (pure) -> put, if what it was decided on still stands -> tell peers -> answer without a receipt
//! ```
//!
//! What a realm of profile `transient` gives up is said in `docs/transient.md`. In short: what the store loses is lost; where nodes hold the
//! sessions themselves, changes made apart from one another meet by [`session_model::transient::Stamped::join`], and the cap on sessions
//! of a subject holds on each node. What it does not give up: an end is final, deadlines are enforced at the moment of use, tokens rotate,
//! and on one node, or on one Redis, no update is lost. Where nodes share the
//! sessions out the store is of all of them (`transient-partner`), and takes each state to the node that decides on it.

pub(crate) mod peers;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use sealing::{Ids, Keyring, token_digest};
use session_model::transient::{Stamp, Stamped, no_key, nowhere};
use session_model::{
    BeyondCap, Command, EndReason, Event, Kind, MergePatch, Policy, Profile, RealmName, Recorded, Session, SessionId,
    Timestamp, Token, Version, apply, decide, expiry,
};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{error, warn};
use transient_store::{KeptAnswer, Listing, MemoryTransients, Outcome, Put, StoreError, StoreStatus, TransientStore};
use uuid::Uuid;

use crate::answer::{Page, Validation, ValidationReason};
use crate::clock::LogClock;
use crate::commands::created;
use crate::error::{ServiceError, Unavailable};
use crate::failures::{internal, of};
use crate::held::Held;
use crate::idempotency::{InFlight, KEEP_ANSWERS, UnderWay};
use crate::request::{Caller, Idempotency, ListQuery, NewSession};
use crate::sessions::Happened;
use crate::turnstile::{Turn, Turnstile};
pub(crate) use peers::Peers;

/// How a service of transient sessions behaves.
#[derive(Debug, Clone)]
pub struct TransientConfig {
    /// The realms that keep no log, and what each demands.
    pub realms: HashMap<RealmName, Policy>,
    /// How long a request may wait for its turn at a session. Default 5 s.
    pub deadline: Duration,
    /// With how many nodes there should be, to refuse what is asked while this one sees no more than half of them, itself included; `None` to
    /// answer always.
    pub majority_of: Option<usize>,
}

/// What has happened since the start, for metrics: no entry tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransientCounts {
    /// Sessions that this node found expired.
    pub expired: u64,
    /// Changes that were lost because others were made apart from them, as this node saw.
    pub lost: u64,
    /// Requests refused because too few nodes were within reach.
    pub alone: u64,
}

/// Every operation on the sessions of realms that keep no log.
pub struct TransientSessions {
    store: Arc<dyn TransientStore>,
    keyring: Keyring,
    clock: Arc<LogClock>,
    config: TransientConfig,
    /// This life of the process, in the stamps of what it makes.
    writer: Uuid,
    turnstile: Arc<Turnstile>,
    under_way: UnderWay,
    expired: AtomicU64,
    alone: AtomicU64,
    peers: OnceLock<Arc<Peers>>,
    reaping: Mutex<Option<JoinHandle<()>>>,
}

/// How often a change is decided anew because others were quicker. Each time somebody else has come through.
const TRIES: usize = 64;
/// Between two looks for sessions that have expired.
const PAUSE: Duration = Duration::from_secs(1);
/// A session is reaped this long after its deadline: another node's mark of use may be under way.
const GRACE_MICROS: i64 = 2_000_000;
/// Sessions ended in one round at most, and at a time.
const ROUND: usize = 4_096;
const AT_ONCE: usize = 16;
/// Sessions read at once where all that match are wanted.
const PAGE: usize = 500;

impl std::fmt::Debug for TransientSessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TransientSessions({})", self.store.status().kind)
    }
}

impl TransientSessions {
    /// Starts it on a store, and its reaping of what has expired. Ends with [`TransientSessions::close`].
    ///
    /// # Errors
    /// [`ServiceError::Internal`] if there is no randomness.
    pub fn start(
        store: Arc<dyn TransientStore>,
        keyring: Keyring,
        clock: Arc<LogClock>,
        config: TransientConfig,
    ) -> Result<Arc<Self>, ServiceError> {
        let writer = Uuid::from_bytes(Ids.public().map_err(internal)?);
        let service = Arc::new(Self {
            store,
            keyring,
            clock,
            config,
            writer,
            turnstile: Arc::default(),
            under_way: UnderWay::default(),
            expired: AtomicU64::new(0),
            alone: AtomicU64::new(0),
            peers: OnceLock::new(),
            reaping: Mutex::new(None),
        });
        let reaper = Arc::downgrade(&service);
        *service.reaping.lock() = Some(tokio::spawn(async move {
            loop {
                sleep(PAUSE).await;
                let Some(service) = reaper.upgrade() else { return };
                service.reap().await;
            }
        }));
        Ok(service)
    }

    /// From now on what this node holds and what the others of a cluster hold is brought together. `replica` is the store.
    pub fn join(self: &Arc<Self>, cluster: Arc<::cluster::Cluster>, replica: Arc<MemoryTransients>) {
        let peers = Peers::start(cluster, replica, Arc::clone(&self.clock));
        if self.peers.set(peers).is_err() {
            warn!("the transient sessions are in a cluster already");
        }
    }

    /// Waits until this node holds what a peer does, if there is one: who was validated before its start is to be so after it.
    pub async fn settled(&self) {
        if let Some(peers) = self.peers.get() {
            peers.settled().await;
        }
    }

    /// Ends its tasks.
    pub fn close(&self) {
        if let Some(reaping) = self.reaping.lock().take() {
            reaping.abort();
        }
        if let Some(peers) = self.peers.get() {
            peers.close();
        }
    }

    /// Whether a realm is one of those that keep no log.
    pub fn keeps(&self, realm: &RealmName) -> bool {
        self.config.realms.contains_key(realm)
    }

    /// How its store is doing.
    pub fn status(&self) -> StoreStatus {
        self.store.status()
    }

    /// What has happened since the start.
    pub fn counts(&self) -> TransientCounts {
        TransientCounts {
            expired: self.expired.load(Ordering::Relaxed),
            lost: self.peers.get().map_or_else(|| self.store.lost(), |peers| peers.lost()),
            alone: self.alone.load(Ordering::Relaxed),
        }
    }

    /// What a realm demands, if this node may answer for it.
    fn admitted(&self, realm: &RealmName) -> Result<&Policy, ServiceError> {
        let policy = self.config.realms.get(realm).ok_or(ServiceError::NotFound)?;
        if let Some(nodes) = self.config.majority_of
            && self.within_reach() * 2 <= nodes
        {
            self.alone.fetch_add(1, Ordering::Relaxed);
            return Err(ServiceError::Unavailable(Unavailable::TooFewNodes));
        }
        Ok(policy)
    }

    /// Nodes that this one hears and that hear it, and itself.
    fn within_reach(&self) -> usize {
        let of_store = || self.store.within_reach().unwrap_or_default();
        self.peers.get().map_or_else(of_store, |peers| peers.within_reach())
    }

    /// As [`SessionService::create`](crate::SessionService::create).
    pub(crate) async fn create(
        &self,
        caller: &Caller,
        new: NewSession,
        idempotency: Option<Idempotency>,
    ) -> Result<Happened, ServiceError> {
        let policy = self.admitted(&caller.realm)?;
        let _under_way = match self.enter(caller, idempotency).await? {
            Entered::Replay(answer) => return Ok(answer),
            Entered::Go(guard) => guard,
        };
        for _ in 0..TRIES {
            let now = self.clock.now();
            let id = Ids.session(now).map_err(internal)?;
            let (token, digest) = Ids.token(id).map_err(internal)?;
            let event = decide(None, Command::Create(Box::new(created(&new, digest))), now, policy).map_err(of)?;
            let cap = new.subject.as_ref().map(|_| policy.sessions_per_subject);
            let state = self.after(None, &event, &caller.realm, id, now)?;
            let answer = self.answer_to(idempotency, id, Some(&token), now)?;
            match self
                .put(Put { state: state.clone(), base: None, cap, answer, acknowledged_by: policy.acknowledged_by })
                .await?
            {
                Outcome::Done => return Ok(happened(state, Some(token))),
                Outcome::Full => return Err(ServiceError::Unavailable(Unavailable::ViewFull)),
                Outcome::CapReached => self.make_room(caller, new.subject.as_deref(), policy).await?,
                Outcome::Answered => return self.replay(caller, idempotency).await,
                Outcome::Moved => {}
            }
        }
        Err(ServiceError::Unavailable(Unavailable::Overloaded))
    }

    /// As [`SessionService::validate`](crate::SessionService::validate).
    pub(crate) async fn validate(&self, caller: &Caller, token: &str) -> Result<Validation, ServiceError> {
        self.admitted(&caller.realm)?;
        let unknown = Ok(Validation::Inactive(ValidationReason::Unknown));
        let Ok(token) = Token::parse(token) else { return unknown };
        let presented = token_digest(&token);
        let Some(state) = self.look_up(token.session()).await? else { return unknown };
        let session = state.session;
        if session.realm != caller.realm {
            return unknown;
        }
        if let Some(ended) = session.ended() {
            let told = session.token.matches(&presented);
            return if told { Ok(Validation::Inactive(ValidationReason::of(ended))) } else { unknown };
        }
        let now = self.clock.now();
        let held = Held::judge(&session, &presented, now);
        match (held, expiry(&session, now)) {
            (Held::Foreign, _) => unknown,
            (_, Some(ended)) => Ok(Validation::Inactive(ValidationReason::of(&ended))),
            (Held::Current, None) => Ok(Validation::Active(self.used(session, now, false).await)),
            (Held::Early, None) => Ok(Validation::Inactive(ValidationReason::Rotated)),
            (Held::Late, None) => {
                if !session.reuse_recorded {
                    match self.change(caller, session.id, Command::ReportReuse, None, None).await {
                        Ok(_) | Err(ServiceError::Ended(_) | ServiceError::NothingToDo) => {}
                        Err(failure) => {
                            warn!(%failure, session = %session.id, "the late use of a rotated token could not be noted");
                        }
                    }
                }
                Ok(Validation::Inactive(ValidationReason::Rotated))
            }
        }
    }

    /// As [`SessionService::get`](crate::SessionService::get).
    pub(crate) async fn get(&self, caller: &Caller, id: SessionId) -> Result<Arc<Session>, ServiceError> {
        self.admitted(&caller.realm)?;
        Ok(self.shown(self.of_realm(caller, id).await?.session))
    }

    /// As [`SessionService::update`](crate::SessionService::update).
    pub(crate) async fn update(
        &self,
        caller: &Caller,
        id: SessionId,
        patch: MergePatch,
        expected: Option<Version>,
    ) -> Result<Happened, ServiceError> {
        self.change(caller, id, Command::Update { patch, expected }, None, None).await
    }

    /// As [`SessionService::touch`](crate::SessionService::touch).
    pub(crate) async fn touch(&self, caller: &Caller, id: SessionId) -> Result<Arc<Session>, ServiceError> {
        self.admitted(&caller.realm)?;
        let session = self.of_realm(caller, id).await?.session;
        let now = self.clock.now();
        match session.ended().cloned().or_else(|| expiry(&session, now)) {
            Some(ended) => Err(ServiceError::Ended(ended)),
            None => Ok(self.used(session, now, true).await),
        }
    }

    /// As [`SessionService::authenticate`](crate::SessionService::authenticate).
    pub(crate) async fn authenticate(
        &self,
        caller: &Caller,
        id: SessionId,
        subject: Box<str>,
        methods: Vec<String>,
        level: Option<String>,
        idempotency: Option<Idempotency>,
    ) -> Result<Happened, ServiceError> {
        let (token, digest) = Ids.token(id).map_err(internal)?;
        let command = Command::Authenticate { subject, methods, level, token: digest };
        self.change(caller, id, command, Some(token), idempotency).await
    }

    /// As [`SessionService::renew`](crate::SessionService::renew).
    pub(crate) async fn renew(
        &self,
        caller: &Caller,
        id: SessionId,
        idempotency: Option<Idempotency>,
    ) -> Result<Happened, ServiceError> {
        let (token, digest) = Ids.token(id).map_err(internal)?;
        self.change(caller, id, Command::Renew { token: digest }, Some(token), idempotency).await
    }

    /// As [`SessionService::end`](crate::SessionService::end).
    pub(crate) async fn end(
        &self,
        caller: &Caller,
        id: SessionId,
        reason: EndReason,
    ) -> Result<Happened, ServiceError> {
        match self.change(caller, id, Command::End { reason }, None, None).await {
            Err(ServiceError::Ended(_)) => {
                let session = self.shown(self.of_realm(caller, id).await?.session);
                Ok(Happened { session, token: None, place: None, replayed: true })
            }
            other => other,
        }
    }

    /// Ends every active session of the realm that fits, but one. Answers those it ended.
    pub(crate) async fn end_all(
        &self,
        caller: &Caller,
        subject: Option<&str>,
        kind: Option<Kind>,
        except: Option<SessionId>,
        reason: &EndReason,
    ) -> Result<Vec<Happened>, ServiceError> {
        self.admitted(&caller.realm)?;
        let mut all = Vec::new();
        let mut listing = Listing { kind, ..active_of(&caller.realm, subject, PAGE) };
        loop {
            let page = self.listed(&listing).await?;
            listing.before = page.last().map(|session| session.id);
            for session in page.iter().filter(|session| Some(session.id) != except) {
                match self.end(caller, session.id, reason.clone()).await {
                    Ok(ended) if ended.replayed => {}
                    Ok(ended) => all.push(ended),
                    Err(ServiceError::NotFound) => {}
                    Err(failure) => return Err(failure),
                }
            }
            if listing.before.is_none() {
                return Ok(all);
            }
        }
    }

    /// As [`SessionService::list`](crate::SessionService::list).
    pub(crate) async fn list(&self, caller: &Caller, query: &ListQuery) -> Result<Page, ServiceError> {
        self.admitted(&caller.realm)?;
        let listing = Listing {
            realm: caller.realm.clone(),
            subject: query.subject.clone(),
            active: query.active,
            kind: query.kind,
            before: query.before,
            // One more than asked for tells whether there is a next page.
            limit: query.limit + 1,
        };
        let mut found = self.listed(&listing).await?;
        let more = found.len() > query.limit;
        found.truncate(query.limit);
        let next = found.last().map(|session| session.id).filter(|_| more);
        let shown = found.into_iter().map(|session| self.shown(session));
        let items = shown.filter(|session| query.active.is_none_or(|active| active == session.ended().is_none()));
        Ok(Page { items: items.collect(), next })
    }

    /// Every active session of a subject.
    pub(crate) async fn of_subject(&self, realm: &RealmName, subject: &str) -> Result<Vec<Arc<Session>>, ServiceError> {
        self.admitted(realm)?;
        self.listed(&active_of(realm, Some(subject), usize::MAX)).await
    }

    /// One change of one session: decided on what stands, applied, put.
    async fn change(
        &self,
        caller: &Caller,
        id: SessionId,
        command: Command,
        token: Option<Token>,
        idempotency: Option<Idempotency>,
    ) -> Result<Happened, ServiceError> {
        let policy = self.admitted(&caller.realm)?;
        let _under_way = match self.enter(caller, idempotency).await? {
            Entered::Replay(answer) => return Ok(answer),
            Entered::Go(guard) => guard,
        };
        let _turn = self.turn(id).await?;
        for _ in 0..TRIES {
            let stands = self.of_realm(caller, id).await?;
            let session = &stands.session;
            if let Some(ended) = session.ended() {
                return Err(ServiceError::Ended(ended.clone()));
            }
            let now = self.clock.now();
            // Whatever was asked for comes too late: what has happened is that the session expired.
            let too_late = expiry(session, now);
            let command = if too_late.is_some() { Command::Expire } else { command.clone() };
            let event = decide(Some(session), command, now, policy).map_err(of)?;
            // It becomes one of another subject's.
            let joins = match &event {
                Event::Authenticated { subject, .. } => Some(subject.clone()),
                Event::Created(_)
                | Event::Updated { .. }
                | Event::Renewed { .. }
                | Event::TokenReused
                | Event::Ended(_) => None,
            };
            let joins = joins.filter(|subject| session.subject.as_ref() != Some(subject));
            let cap = joins.as_ref().map(|_| policy.sessions_per_subject);
            let state = self.after(Some(session), &event, &caller.realm, id, now)?;
            let answer = match too_late {
                Some(_) => None,
                None => self.answer_to(idempotency, id, token.as_ref(), now)?,
            };
            let acknowledged_by = policy.acknowledged_by;
            let put = Put { state: state.clone(), base: Some(stands.stamp), cap, answer, acknowledged_by };
            match self.put(put).await? {
                Outcome::Done => match too_late {
                    Some(ended) => {
                        self.expired.fetch_add(1, Ordering::Relaxed);
                        return Err(ServiceError::Ended(ended));
                    }
                    None => return Ok(happened(state, token)),
                },
                Outcome::Moved => {}
                Outcome::CapReached => self.make_room(caller, joins.as_deref(), policy).await?,
                Outcome::Answered => return self.replay(caller, idempotency).await,
                Outcome::Full => return Err(ServiceError::Unavailable(Unavailable::ViewFull)),
            }
        }
        Err(ServiceError::Unavailable(Unavailable::Overloaded))
    }

    async fn turn(&self, id: SessionId) -> Result<Turn, ServiceError> {
        let turn = tokio::time::timeout(self.config.deadline, self.turnstile.enter(id)).await;
        turn.map_err(|_| ServiceError::Unavailable(Unavailable::Overloaded))
    }

    /// The state that an event makes, through the same `apply` as one that is in a log.
    fn after(
        &self,
        before: Option<&Arc<Session>>,
        event: &Event,
        realm: &RealmName,
        id: SessionId,
        now: Timestamp,
    ) -> Result<Stamped, ServiceError> {
        let recorded = Recorded {
            session: id,
            realm: realm.clone(),
            version: before.map_or(Version::NONE, |session| session.version).next(),
            time: now,
            head: nowhere(),
            data_key: no_key(),
        };
        let after = apply(before.map(|session| Session::clone(session)), event, &recorded);
        let session = after.ok_or(ServiceError::Internal("a change without a session"))?;
        Ok(Stamped { session: Arc::new(session), stamp: Stamp { at: now, writer: self.writer } })
    }

    async fn put(&self, put: Put) -> Result<Outcome, ServiceError> {
        let state = self.peers.get().map(|_| put.state.clone().kept());
        let outcome = self.store.put(put).await.map_err(of_store)?;
        if let (Outcome::Done, Some(peers), Some(state)) = (outcome, self.peers.get(), state) {
            peers.tell(&state);
        }
        Ok(outcome)
    }

    /// Makes room below the cap of a subject: ends what has expired, else what the policy says.
    async fn make_room(&self, caller: &Caller, subject: Option<&str>, policy: &Policy) -> Result<(), ServiceError> {
        let (now, mut open, mut expired) = (self.clock.now(), Vec::new(), false);
        for session in self.listed(&active_of(&caller.realm, subject, usize::MAX)).await? {
            match expiry(&session, now) {
                Some(_) => expired |= self.expire(&session).await?,
                None => open.push(session),
            }
        }
        let cap = policy.sessions_per_subject;
        // Somebody else may have made room meanwhile.
        if expired || open.len() < cap as usize {
            return Ok(());
        }
        let least = match policy.beyond_cap {
            BeyondCap::Deny => return Err(ServiceError::LimitReached { cap }),
            BeyondCap::EvictOldest => open.iter().min_by_key(|session| (session.created_at, session.id)),
            BeyondCap::EvictLeastRecent => open.iter().min_by_key(|session| (session.last_seen_at, session.id)),
        };
        let Some(least) = least else { return Ok(()) };
        let evict = Command::End { reason: EndReason::Evicted };
        match Box::pin(self.change(caller, least.id, evict, None, None)).await {
            Ok(_) | Err(ServiceError::Ended(_) | ServiceError::NotFound) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Ends a session whose deadline has passed; `false` if none has, or somebody was quicker.
    async fn expire(&self, session: &Session) -> Result<bool, ServiceError> {
        // A realm that this node does not have (any more) is no reason to keep what has expired.
        let of_none = Profile::Transient.policy();
        let policy = self.config.realms.get(&session.realm).unwrap_or(&of_none);
        let Some(stands) = self.look_up(session.id).await? else { return Ok(false) };
        let now = self.clock.now();
        let Ok(event) = decide(Some(&stands.session), Command::Expire, now, policy) else { return Ok(false) };
        let state = self.after(Some(&stands.session), &event, &session.realm, session.id, now)?;
        // Whoever looks at it finds it expired, whether others were told or not.
        let put = Put { state, base: Some(stands.stamp), cap: None, answer: None, acknowledged_by: 0 };
        let done = self.put(put).await? == Outcome::Done;
        self.expired.fetch_add(u64::from(done), Ordering::Relaxed);
        Ok(done)
    }

    /// Ends what has expired, and forgets what is long over.
    async fn reap(&self) {
        let now = self.clock.now();
        let before = Timestamp::from_micros(now.as_micros() - GRACE_MICROS);
        match self.store.due(before, ROUND).await {
            Ok(due) => {
                let ending = stream::iter(due).map(|session| async move { self.expire(&session).await });
                let failures = ending.buffer_unordered(AT_ONCE).filter_map(|outcome| async { outcome.err() });
                if let Some(failure) = std::pin::pin!(failures).next().await {
                    warn!(%failure, "an expired transient session could not be ended");
                }
            }
            Err(failure) => {
                warn!(failure = &failure as &dyn std::error::Error, "the store cannot say which sessions are due");
            }
        }
        self.store.sweep(now).await;
    }

    async fn look_up(&self, id: SessionId) -> Result<Option<Stamped>, ServiceError> {
        self.store.get(id).await.map_err(of_store)
    }

    async fn of_realm(&self, caller: &Caller, id: SessionId) -> Result<Stamped, ServiceError> {
        let found = self.look_up(id).await?;
        found.filter(|state| state.session.realm == caller.realm).ok_or(ServiceError::NotFound)
    }

    async fn listed(&self, listing: &Listing) -> Result<Vec<Arc<Session>>, ServiceError> {
        self.store.list(listing).await.map_err(of_store)
    }

    /// Counts a use: marks it where that is worth a mark, or asked for.
    async fn used(&self, session: Arc<Session>, now: Timestamp, always: bool) -> Arc<Session> {
        if !always && !session.use_is_worth_a_mark(now) {
            return session;
        }
        match self.store.mark_used(session.id, now).await {
            Ok(Some(marked)) => {
                if let Some(peers) = self.peers.get() {
                    peers.tell(&marked);
                }
                marked.session
            }
            Ok(None) => session,
            Err(failure) => {
                warn!(%failure, session = %session.id, "a use of a transient session could not be marked");
                session
            }
        }
    }

    /// The session as it is at this moment: one whose deadline has passed is shown as ended, before the reaper comes by.
    fn shown(&self, session: Arc<Session>) -> Arc<Session> {
        match (session.ended(), expiry(&session, self.clock.now())) {
            (None, Some(ended)) => {
                let mut session = Arc::unwrap_or_clone(session);
                session.state = session_model::State::Ended(ended);
                Arc::new(session)
            }
            (Some(_), _) | (None, None) => session,
        }
    }

    async fn enter(&self, caller: &Caller, idempotency: Option<Idempotency>) -> Result<Entered<'_>, ServiceError> {
        let Some(Idempotency { key, .. }) = idempotency else { return Ok(Entered::Go(None)) };
        let guard = InFlight::begin(&self.under_way, key).ok_or(ServiceError::IdempotencyInFlight)?;
        match self.store.answer(&key, self.clock.now()).await.map_err(of_store)? {
            Some(_) => self.replay(caller, idempotency).await.map(Entered::Replay),
            None => Ok(Entered::Go(Some(guard))),
        }
    }

    fn answer_to(
        &self,
        idempotency: Option<Idempotency>,
        session: SessionId,
        token: Option<&Token>,
        now: Timestamp,
    ) -> Result<Option<(session_model::Digest, KeptAnswer)>, ServiceError> {
        let Some(Idempotency { key, request }) = idempotency else { return Ok(None) };
        let token = token.map(Token::expose).unwrap_or_default();
        let token = self.keyring.seal_answer(&key, token.as_bytes()).map_err(internal)?;
        let request = self.keyring.request_digest(&request).map_err(internal)?;
        Ok(Some((key, KeptAnswer { request, session, token, expires: now.plus(KEEP_ANSWERS) })))
    }

    /// The first answer again: the same session, as it is now, and the same token.
    async fn replay(&self, caller: &Caller, idempotency: Option<Idempotency>) -> Result<Happened, ServiceError> {
        let Some(Idempotency { key, request }) = idempotency else {
            return Err(ServiceError::Internal("an answer under an idempotency key where none was given"));
        };
        let kept = self.store.answer(&key, self.clock.now()).await.map_err(of_store)?;
        let kept = kept.ok_or(ServiceError::Unavailable(Unavailable::Store))?;
        if !self.keyring.is_request_digest(&kept.request, &request).map_err(internal)? {
            return Err(ServiceError::IdempotencyMismatch);
        }
        let token = self.keyring.open_answer(&key, &kept.token).map_err(internal)?;
        let token = std::str::from_utf8(&token).ok().and_then(|token| Token::parse(token).ok());
        let session = self.shown(self.of_realm(caller, kept.session).await?.session);
        Ok(Happened { session, token, place: None, replayed: true })
    }
}

enum Entered<'a> {
    /// It is new; nobody else of this process begins it while the guard lives.
    Go(Option<InFlight<'a>>),
    /// It is done already.
    Replay(Happened),
}

fn happened(state: Stamped, token: Option<Token>) -> Happened {
    Happened { session: state.session, token, place: None, replayed: false }
}

fn active_of(realm: &RealmName, subject: Option<&str>, limit: usize) -> Listing {
    let subject = subject.map(Into::into);
    Listing { realm: realm.clone(), subject, active: Some(true), kind: None, before: None, limit }
}

fn of_store(failure: StoreError) -> ServiceError {
    match failure {
        StoreError::Unavailable(cause) => {
            warn!(failure = &*cause as &dyn std::error::Error, "the store of transient sessions cannot be reached");
            ServiceError::Unavailable(Unavailable::Store)
        }
        StoreError::Unknown(cause) => {
            warn!(failure = &*cause as &dyn std::error::Error, "the store of transient sessions has not answered");
            ServiceError::OutcomeUnknown
        }
        StoreError::TooFewNodes => ServiceError::Unavailable(Unavailable::TooFewNodes),
        StoreError::Undecodable(id) => {
            error!(session = %id, "the store of transient sessions holds something undecodable");
            ServiceError::NotFound
        }
    }
}
