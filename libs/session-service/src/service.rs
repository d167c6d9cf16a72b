//! The service: every operation on sessions, in the order that makes them evidence.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::cluster::Cluster;
use audit_log::{
    Claims, Credential, CredentialChange, GroupCommit, GroupCommitConfig, LogIdentity, LogStore, Place, Recent,
    Refusal, Seat, Sequencer, SessionChange, SessionFilter,
};
use futures::stream::{self, StreamExt};
use merkle_log::{Plan, Receipt, Signer};
use parking_lot::Mutex;
use sealing::{Ids, Keyring, token_digest};
use session_model::{
    Action, Actor, Attributes, Client, Command, Created, Detail, Digest, EndReason, Ended, Head, KeyId, Kind, Leaf,
    LeafIndex, MergePatch, Outcome, Policy, Protocol, RealmName, Role, Seconds, Session, SessionId, Timestamp, Token,
    TokenDigest, Version, decide, expiry,
};
use session_view::{SessionView, Viewed};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use crate::change::{Draft, NotAppended, changed, in_time};
use crate::clock::LogClock;
use crate::data_keys::DataKeys;
use crate::error::{ServiceError, Unavailable};
use crate::failures::{internal, of, of_key, of_read};
use crate::held::Held;
use crate::idempotency::{Entered, UnderWay};
use crate::pipeline::Pipeline;
use crate::progress::Progress;
use crate::replay::Replay;
use crate::replication::{SharedView, Told};
use crate::turnstile::Turnstile;

/// What a service is made of.
pub struct Parts {
    /// The log.
    pub log: Arc<dyn LogStore>,
    /// The view.
    pub view: Arc<dyn SessionView>,
    /// The key-encryption key and its like.
    pub keyring: Keyring,
    /// Which log this is, and who signs for it.
    pub identity: LogIdentity,
    /// The time.
    pub clock: Arc<LogClock>,
}

/// How a service behaves.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// Name of this node, as it stands in leaves.
    pub node: String,
    /// The realms and what each demands.
    pub realms: HashMap<RealmName, Policy>,
    /// How long a change may take before it is answered with 503. Default 5 s.
    pub deadline: Duration,
    /// How long ago the view of this process alone may last have reflected the whole log for certain, before it is not trusted any
    /// more; `None` where the view is shared, or nobody else writes the log.
    pub max_staleness: Option<Duration>,
    /// The group commit.
    pub group_commit: GroupCommitConfig,
}

/// Who asks, on whose behalf, and what they have seen.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Realm of the credential: nothing outside it exists for the caller.
    pub realm: RealmName,
    /// Who.
    pub actor: Actor,
    /// Through which mouth.
    pub protocol: Protocol,
    /// From which address.
    pub origin: Option<IpAddr>,
    /// Id of the request.
    pub request_id: Option<String>,
    /// W3C trace id.
    pub trace_id: Option<String>,
    /// The leaf index that must be visible to the answer.
    pub min_index: Option<LeafIndex>,
    /// Facts about the request that its entries carry in clear: never personal data.
    pub detail: Detail,
}

/// What a session begins with, as asked for.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// Who it belongs to, if known.
    pub subject: Option<Box<str>>,
    /// What kind of client it serves.
    pub kind: Kind,
    /// What the application keeps in it: checked against the realm's limits.
    pub attributes: Attributes,
    /// How the subject authenticated: methods and level.
    pub authentication: Option<(Vec<String>, Option<String>)>,
    /// Its client.
    pub client: Option<Client>,
    /// A shorter idle timeout than the policy's.
    pub idle_timeout: Option<Seconds>,
    /// A shorter absolute timeout than the policy's.
    pub absolute_timeout: Option<Seconds>,
}

/// Who asks for a session.
#[derive(Debug, Clone, Copy)]
enum Asking {
    /// Whoever has the credential.
    Caller,
    /// Its subject.
    Subject,
}

/// How an entry names a subject that is its actor: by its handle, the id of its data key.
pub fn subject_actor(handle: &str) -> String {
    format!("subject:{handle}")
}

/// An idempotency key, and the request it stands for.
#[derive(Debug, Clone, Copy)]
pub struct Idempotency {
    /// SHA-256 over credential and key.
    pub key: Digest,
    /// SHA-256 over method, path and body.
    pub request: Digest,
}

/// A change that is recorded.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The session after it.
    pub session: Arc<Session>,
    /// The new token, where there is one: the only time it is seen.
    pub token: Option<Token>,
    /// Where its entry stands.
    pub place: Place,
    /// Whether this is the answer of an earlier request with the same idempotency key, or of the earlier end of the session.
    pub replayed: bool,
}

/// What a token is worth.
#[derive(Debug, Clone)]
pub enum Validation {
    /// It opens this session.
    Active(Arc<Session>),
    /// It opens nothing.
    Inactive(ValidationReason),
}

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValidationReason {
    /// Not a token of this realm, or of a session long forgotten.
    Unknown,
    /// Its session was unused for too long.
    ExpiredIdle,
    /// Its session became too old.
    ExpiredAbsolute,
    /// Its session was ended.
    Ended,
    /// The session goes on under a newer token.
    Rotated,
}

impl ValidationReason {
    /// The word of the interface contract.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::ExpiredIdle => "expired_idle",
            Self::ExpiredAbsolute => "expired_absolute",
            Self::Ended => "ended",
            Self::Rotated => "rotated",
        }
    }

    pub(crate) fn of(ended: &Ended) -> Self {
        match ended.reason {
            EndReason::ExpiredIdle => Self::ExpiredIdle,
            EndReason::ExpiredAbsolute => Self::ExpiredAbsolute,
            EndReason::Evicted | EndReason::TokenReuse | EndReason::Requested(_) => Self::Ended,
        }
    }
}

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Of this subject.
    pub subject: Option<Box<str>>,
    /// Active (`true`) or ended (`false`) ones only.
    pub active: Option<bool>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// Older than this one: where the last page ended.
    pub before: Option<SessionId>,
    /// How many at most.
    pub limit: usize,
}

/// A page of sessions, newest first.
#[derive(Debug, Clone)]
pub struct Page {
    /// The sessions.
    pub items: Vec<Arc<Session>>,
    /// Where the next page begins, if there may be one.
    pub next: Option<SessionId>,
}

/// Something to record that is no change of a session.
#[derive(Debug, Clone)]
pub struct Record {
    /// What happened.
    pub action: Action,
    /// Whether it did.
    pub outcome: Outcome,
    /// Facts in clear: never personal data.
    pub detail: Detail,
    /// Facts to seal.
    pub facts: std::collections::BTreeMap<String, String>,
    /// A change to the credentials that it records.
    pub credential: Option<CredentialChange>,
}

/// The subject under whose data key each realm seals what belongs to no subject. No subject can have this name: the
/// character is not XML.
pub(crate) const HOUSE: &str = "\u{0}house";

/// Every operation on sessions.
pub struct SessionService {
    pub(crate) log: Arc<dyn LogStore>,
    pub(crate) view: Arc<dyn SessionView>,
    pub(crate) keys: Arc<DataKeys>,
    pub(crate) replay: Replay,
    pub(crate) clock: Arc<LogClock>,
    pub(crate) config: ServiceConfig,
    pub(crate) progress: Arc<Progress>,
    pub(crate) contact: Contact,
    pub(crate) sequencer: Sequencer,
    pub(crate) commit: GroupCommit<Pipeline>,
    pub(crate) turnstile: Arc<Turnstile>,
    pub(crate) in_flight: UnderWay,
    pub(crate) marks: Mutex<hashbrown::HashMap<SessionId, Timestamp>>,
    pub(crate) cluster: OnceLock<Arc<Cluster>>,
    pub(crate) outbox: Arc<OnceLock<mpsc::Sender<Told>>>,
    recent: Arc<Recent>,
    pub(crate) shared_view: SharedView,
}

/// When the log was last heard of.
#[derive(Debug)]
pub(crate) struct Contact {
    start: Instant,
    micros: AtomicI64,
    /// When it was asked for its size the last time that it answered; negative if it never did.
    asked: AtomicI64,
}

impl Contact {
    fn new() -> Self {
        Self { start: Instant::now(), micros: AtomicI64::new(0), asked: AtomicI64::new(-1) }
    }

    pub(crate) fn made(&self) {
        let since = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.micros.store(since, Ordering::Relaxed);
    }

    /// It answered how long it is, having been asked at this time.
    pub(crate) fn answered(&self, asked: Instant) {
        self.made();
        let since = asked.saturating_duration_since(self.start).as_micros();
        self.asked.store(i64::try_from(since).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// How long ago it was asked, the last time that it answered.
    pub(crate) fn asked(&self) -> Option<Duration> {
        let then = u64::try_from(self.asked.load(Ordering::Relaxed)).ok()?;
        Some(self.start.elapsed().saturating_sub(Duration::from_micros(then)))
    }

    pub(crate) fn age(&self) -> Duration {
        let then = Duration::from_micros(self.micros.load(Ordering::Relaxed).unsigned_abs());
        self.start.elapsed().saturating_sub(then)
    }
}

impl fmt::Debug for SessionService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionService({})", self.config.node)
    }
}

impl SessionService {
    /// Starts the service's group commit on what it is made of.
    pub fn start(parts: Parts, config: ServiceConfig) -> Arc<Self> {
        let progress = Arc::new(Progress::default());
        let clock = Arc::clone(&parts.clock);
        let outbox = Arc::new(OnceLock::new());
        let recent: Arc<Recent> = Arc::default();
        let (view, told, held) = (Arc::clone(&parts.view), Arc::clone(&outbox), Arc::clone(&recent));
        let pipeline = Pipeline::new(view, Arc::clone(&progress), told, held, move |time| clock.observe(time));
        let sequencer = Sequencer::new(parts.identity);
        let commit =
            GroupCommit::start(Arc::clone(&parts.log), sequencer.clone(), Arc::new(pipeline), config.group_commit);
        let keys = Arc::new(DataKeys::new(Arc::clone(&parts.log), parts.keyring));
        Arc::new(Self {
            replay: Replay::new(Arc::clone(&parts.log), Arc::clone(&keys)),
            log: parts.log,
            view: parts.view,
            keys,
            clock: parts.clock,
            config,
            progress,
            contact: Contact::new(),
            sequencer,
            commit,
            turnstile: Arc::default(),
            in_flight: Mutex::default(),
            marks: Mutex::default(),
            cluster: OnceLock::new(),
            outbox,
            recent,
            shared_view: Arc::default(),
        })
    }

    /// What a realm demands.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] if this node has no such realm.
    pub fn policy(&self, realm: &RealmName) -> Result<&Policy, ServiceError> {
        self.config.realms.get(realm).ok_or(ServiceError::NotFound)
    }

    /// What this service appended last.
    pub const fn recent(&self) -> &Arc<Recent> {
        &self.recent
    }

    /// The clock of all that this process does.
    pub fn clock(&self) -> &Arc<LogClock> {
        &self.clock
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Whether changes can be recorded, as far as the last attempt tells.
    pub fn is_available(&self) -> bool {
        self.commit.is_available()
    }

    /// How long nothing was heard of the log: it is asked four times a second.
    pub fn log_silence(&self) -> Duration {
        self.contact.age()
    }

    /// Entries that wait for the log.
    pub fn waiting(&self) -> usize {
        self.commit.waiting()
    }

    /// How much of the log the view reflects, and how long the log is, as far as known.
    pub fn progress(&self) -> (session_model::TreeSize, session_model::TreeSize) {
        (self.progress.reflected(), self.progress.size())
    }

    /// Signs checkpoints with these keys from the next commit on.
    pub fn sign_with(&self, signers: Vec<Arc<dyn Signer + Send + Sync>>) {
        self.sequencer.sign_with(signers);
    }

    /// Takes no more changes and returns when those under way are recorded and applied, and the use marks written.
    pub async fn close(&self) {
        self.commit.close().await;
        self.flush_marks().await;
        self.keys.close();
    }

    /// Waits no longer than a change may take, and a moment for an append to say itself what became of it.
    pub(crate) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        const MOMENT: Duration = Duration::from_millis(50);
        let answer = tokio::time::timeout(self.config.deadline + MOMENT, work).await;
        answer.map_err(|_| ServiceError::Unavailable(Unavailable::LogRead))?
    }

    /// Begins a session.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn create(
        &self,
        caller: &Caller,
        new: NewSession,
        idempotency: Option<Idempotency>,
    ) -> Result<Changed, ServiceError> {
        self.in_time(self.create_now(caller, new, idempotency, Asking::Caller)).await
    }

    /// Begins a session that its subject itself asked for: the actor of its entry is the subject, in the caller's role, under the handle
    /// by which leaves know subjects. The handle is the session's data key.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn create_by_subject(&self, caller: &Caller, new: NewSession) -> Result<Changed, ServiceError> {
        self.in_time(self.create_now(caller, new, None, Asking::Subject)).await
    }

    async fn create_now(
        &self,
        caller: &Caller,
        new: NewSession,
        idempotency: Option<Idempotency>,
        asking: Asking,
    ) -> Result<Changed, ServiceError> {
        // From the very beginning: an append must give up, and say what it knows, before `in_time` does, which knows nothing of it.
        let deadline = Instant::now() + self.config.deadline;
        let policy = self.policy(&caller.realm)?;
        let _under_way = match self.enter(idempotency).await? {
            Entered::Replay(answer) => return self.replayed(caller, &answer).await,
            Entered::Go(guard) => guard,
        };
        if !self.view.has_room() {
            return Err(ServiceError::Unavailable(Unavailable::ViewFull));
        }
        loop {
            let now = self.now();
            let id = Ids.session(now).map_err(internal)?;
            let (token, digest) = Ids.token(id).map_err(internal)?;
            let found = match &new.subject {
                Some(subject) => self.keys.of_subject(&caller.realm, subject).await.map_err(of_key)?,
                None => self.keys.of_anonymous(id).map_err(of_key)?,
            };
            let event = decide(None, Command::Create(Box::new(created(&new, digest))), now, policy).map_err(of)?;
            let seat = new.subject.as_ref().map(|_| Seat { key: found.id(), cap: policy.sessions_per_subject });
            let opened = SessionChange::Opened { realm: caller.realm.clone(), key: found.id(), kind: new.kind };
            let draft = Draft {
                action: Action::of(&event),
                outcome: Outcome::Success,
                now,
                found: &found,
                session: Some(id),
                version: Some(Version::NONE.next()),
                base: None,
                event: Some(event),
                detail: [("kind".to_owned(), new.kind.name().to_owned())].into(),
                facts: Default::default(),
                claims: Claims {
                    session: Some((id, Version::NONE.next())),
                    take_seat: seat,
                    index: Some(opened),
                    idempotency: self.claim(idempotency, Some(&token), now)?,
                    ..Claims::default()
                },
            };
            let appended = match asking {
                Asking::Caller => self.append(caller, draft, deadline).await,
                Asking::Subject => {
                    let id = subject_actor(&found.id().uuid().to_string());
                    let actor = Actor { id, role: caller.actor.role };
                    self.append(&Caller { actor, ..caller.clone() }, draft, deadline).await
                }
            };
            match appended {
                Ok(done) => return changed(done, Some(token)),
                Err(NotAppended::Refused(Refusal::DataKeyTaken | Refusal::DataKeyMissing)) => {
                    self.keys.forget(&found, &caller.realm, new.subject.as_deref());
                }
                Err(NotAppended::Refused(Refusal::CapReached)) => {
                    self.make_room(caller, found.id(), policy, deadline).await?;
                }
                Err(NotAppended::Refused(Refusal::IdempotencyKeyUsed)) => {
                    return self.replay_now(caller, idempotency).await;
                }
                Err(NotAppended::Refused(Refusal::Version)) => {}
                Err(foreign @ NotAppended::Refused(Refusal::LegalHold | Refusal::SubjectBusy)) => {
                    return Err(foreign.into_error());
                }
                Err(NotAppended::Other(failure)) => return Err(failure),
            }
            in_time(deadline)?;
        }
    }

    /// What a token is worth, and counts as a use of its session. The hot path: touches nothing but this process's memory
    /// where the view allows.
    ///
    /// # Errors
    /// [`ServiceError::Unavailable`].
    pub async fn validate(&self, caller: &Caller, token: &str) -> Result<Validation, ServiceError> {
        let Ok(token) = Token::parse(token) else {
            return Ok(Validation::Inactive(ValidationReason::Unknown));
        };
        let presented = token_digest(&token);
        let session = match self.state(token.session(), caller.min_index).await? {
            Some(Viewed::Active(session)) if session.realm == caller.realm => session,
            Some(Viewed::Ended(tombstone))
                if tombstone.realm == caller.realm && tombstone.token.matches(&presented) =>
            {
                return Ok(Validation::Inactive(ValidationReason::of(&tombstone.ended)));
            }
            Some(Viewed::Active(_) | Viewed::Ended(_)) | None => {
                return Ok(Validation::Inactive(ValidationReason::Unknown));
            }
        };
        let now = self.now();
        let held = Held::judge(&session, &presented, now);
        if matches!(held, Held::Foreign) {
            return Ok(Validation::Inactive(ValidationReason::Unknown));
        }
        let session = match expiry(&session, now) {
            None => session,
            Some(ended) => match self.used_elsewhere(&session, now).await? {
                Some(session) => session,
                None => return Ok(Validation::Inactive(ValidationReason::of(&ended))),
            },
        };
        match held {
            Held::Current => Ok(Validation::Active(self.used(session, now, false).await)),
            Held::Early => Ok(Validation::Inactive(ValidationReason::Rotated)),
            Held::Late => {
                if !session.reuse_recorded {
                    self.report_reuse(caller, session.id).await;
                }
                Ok(Validation::Inactive(ValidationReason::Rotated))
            }
            Held::Foreign => Ok(Validation::Inactive(ValidationReason::Unknown)),
        }
    }

    async fn report_reuse(&self, caller: &Caller, id: SessionId) {
        match self.change(caller, id, Command::ReportReuse, None, None).await {
            Ok(_) | Err(ServiceError::Ended(_) | ServiceError::NothingToDo) => {}
            Err(failure) => warn!(%failure, session = %id, "the late use of a rotated token could not be recorded"),
        }
    }

    /// A session by its id. Does not count as use. Where the policy audits reads, it is an entry.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn get(&self, caller: &Caller, id: SessionId) -> Result<Arc<Session>, ServiceError> {
        self.in_time(self.get_now(caller, id)).await
    }

    async fn get_now(&self, caller: &Caller, id: SessionId) -> Result<Arc<Session>, ServiceError> {
        let deadline = Instant::now() + self.config.deadline;
        let policy = self.policy(&caller.realm)?;
        let session = self.full(caller, id).await?;
        if policy.audited_reads {
            let found = self.key_of(&session).await?;
            let draft = Draft {
                action: Action::SessionRead,
                outcome: Outcome::Success,
                now: self.now(),
                found: &found,
                session: Some(id),
                version: None,
                base: None,
                event: None,
                detail: Detail::new(),
                facts: Default::default(),
                claims: Claims::default(),
            };
            self.append(caller, draft, deadline).await.map_err(|failure| failure.into_error())?;
        }
        Ok(self.shown(session))
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn update(
        &self,
        caller: &Caller,
        id: SessionId,
        patch: MergePatch,
        expected: Option<Version>,
    ) -> Result<Changed, ServiceError> {
        self.change(caller, id, Command::Update { patch, expected }, None, None).await
    }

    /// Counts as use; answers the new deadlines. No entry.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn touch(&self, caller: &Caller, id: SessionId) -> Result<Arc<Session>, ServiceError> {
        let session = match self.state(id, caller.min_index).await? {
            Some(Viewed::Active(session)) if session.realm == caller.realm => session,
            Some(Viewed::Ended(tombstone)) if tombstone.realm == caller.realm => {
                return Err(ServiceError::Ended(tombstone.ended.clone()));
            }
            Some(_) | None => return Err(ServiceError::NotFound),
        };
        let now = self.now();
        let session = match expiry(&session, now) {
            None => session,
            Some(ended) => self.used_elsewhere(&session, now).await?.ok_or(ServiceError::Ended(ended))?,
        };
        Ok(self.used(session, now, true).await)
    }

    /// Binds an authenticated subject; the token is rotated and the old one refused from now on.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn authenticate(
        &self,
        caller: &Caller,
        id: SessionId,
        subject: Box<str>,
        methods: Vec<String>,
        level: Option<String>,
        idempotency: Option<Idempotency>,
    ) -> Result<Changed, ServiceError> {
        let (token, digest) = Ids.token(id).map_err(internal)?;
        let command = Command::Authenticate { subject, methods, level, token: digest };
        self.change(caller, id, command, Some(token), idempotency).await
    }

    /// Rotates the token; the old one is honoured for the overlap.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn renew(
        &self,
        caller: &Caller,
        id: SessionId,
        idempotency: Option<Idempotency>,
    ) -> Result<Changed, ServiceError> {
        let (token, digest) = Ids.token(id).map_err(internal)?;
        self.change(caller, id, Command::Renew { token: digest }, Some(token), idempotency).await
    }

    /// Ends a session. Ending it again answers the same.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn end(&self, caller: &Caller, id: SessionId, reason: EndReason) -> Result<Changed, ServiceError> {
        match self.change(caller, id, Command::End { reason }, None, None).await {
            Err(ServiceError::Ended(_)) => {
                let session = self.full(caller, id).await?;
                let place = place_of(&session.head);
                Ok(Changed { session, token: None, place, replayed: true })
            }
            other => other,
        }
    }

    /// Ends every open session of a subject but one, if any: log out everywhere. Answers what was recorded.
    ///
    /// # Errors
    /// [`ServiceError`]; what was ended before it stays so.
    pub async fn end_subject(
        &self,
        caller: &Caller,
        subject: &str,
        except: Option<SessionId>,
        reason: EndReason,
    ) -> Result<Vec<Changed>, ServiceError> {
        let Some(key) = self.key_of_subject(&caller.realm, subject).await? else { return Ok(Vec::new()) };
        let filter = SessionFilter { realm: caller.realm.clone(), key: Some(key), open: Some(true), kind: None };
        self.end_all(caller, &filter, except, &reason).await
    }

    /// Ends every open session of the realm that fits.
    ///
    /// # Errors
    /// [`ServiceError`]; what was ended before it stays so.
    pub async fn end_matching(
        &self,
        caller: &Caller,
        subject: Option<&str>,
        kind: Option<Kind>,
        reason: EndReason,
    ) -> Result<Vec<Changed>, ServiceError> {
        let key = match subject {
            None => None,
            Some(subject) => match self.key_of_subject(&caller.realm, subject).await? {
                Some(key) => Some(key),
                None => return Ok(Vec::new()),
            },
        };
        let filter = SessionFilter { realm: caller.realm.clone(), key, open: Some(true), kind };
        self.end_all(caller, &filter, None, &reason).await
    }

    async fn key_of_subject(&self, realm: &RealmName, subject: &str) -> Result<Option<KeyId>, ServiceError> {
        let finding = async { self.keys.find_subject(realm, subject).await.map_err(of_key) };
        Ok(self.in_time(finding).await?.map(|(key, _)| key))
    }

    async fn end_all(
        &self,
        caller: &Caller,
        filter: &SessionFilter,
        except: Option<SessionId>,
        reason: &EndReason,
    ) -> Result<Vec<Changed>, ServiceError> {
        const AT_ONCE: usize = 64;
        let mut all = Vec::new();
        let mut before = None;
        loop {
            let page = async { self.log.sessions(filter, before, 500).await.map_err(of_read) };
            let ids = self.in_time(page).await?;
            before = ids.last().copied();
            let ended: Vec<_> = stream::iter(ids.into_iter().filter(|id| Some(*id) != except))
                .map(|id| self.end(caller, id, reason.clone()))
                .buffer_unordered(AT_ONCE)
                .collect()
                .await;
            for outcome in ended {
                match outcome {
                    Ok(changed) if changed.replayed => {}
                    Ok(changed) => all.push(changed),
                    Err(ServiceError::NotFound) => {}
                    Err(failure) => return Err(failure),
                }
            }
            if before.is_none() {
                return Ok(all);
            }
        }
    }

    /// Sessions of the realm, newest first.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn list(&self, caller: &Caller, query: &ListQuery) -> Result<Page, ServiceError> {
        self.in_time(self.list_now(caller, query)).await
    }

    async fn list_now(&self, caller: &Caller, query: &ListQuery) -> Result<Page, ServiceError> {
        const AT_ONCE: usize = 16;
        let key = match &query.subject {
            None => None,
            Some(subject) => match self.keys.find_subject(&caller.realm, subject).await.map_err(of_key)? {
                Some((key, _)) => Some(key),
                None => return Ok(Page { items: Vec::new(), next: None }),
            },
        };
        let filter = SessionFilter { realm: caller.realm.clone(), key, open: query.active, kind: query.kind };
        // One more than asked for tells whether there is a next page.
        let mut ids = self.log.sessions(&filter, query.before, query.limit + 1).await.map_err(of_read)?;
        let more = ids.len() > query.limit;
        ids.truncate(query.limit);
        let next = ids.last().copied().filter(|_| more);
        let found: Vec<_> = stream::iter(ids).map(|id| self.full(caller, id)).buffered(AT_ONCE).collect().await;
        let mut items = Vec::with_capacity(found.len());
        for session in found {
            match session {
                Ok(session) => items.push(self.shown(session)),
                Err(ServiceError::NotFound) => {}
                Err(failure) => return Err(failure),
            }
        }
        items.retain(|session| query.active.is_none_or(|active| active == session.ended().is_none()));
        Ok(Page { items, next })
    }

    /// The full receipt of an entry of the realm: its inclusion in the newest checkpoint.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] if the realm has no such entry.
    pub async fn receipt(&self, realm: &RealmName, index: LeafIndex) -> Result<Receipt, ServiceError> {
        self.in_time(self.receipt_now(realm, index)).await
    }

    async fn receipt_now(&self, realm: &RealmName, index: LeafIndex) -> Result<Receipt, ServiceError> {
        let head = self.log.head().await.map_err(of_read)?;
        let stored = self.log.entries(&[index]).await.map_err(of_read)?;
        let Some(Some(entry)) = stored.first() else { return Err(ServiceError::NotFound) };
        let leaf = Leaf::decode(&entry.leaf).map_err(|_| ServiceError::Internal("the entry is not a leaf"))?;
        let (Some(checkpoint), true) = (head.checkpoint.clone(), leaf.realm == *realm) else {
            return Err(ServiceError::NotFound);
        };
        let plan = Plan::inclusion(index, head.size()).map_err(|_| ServiceError::NotFound)?;
        let mut runs = Vec::new();
        for range in plan.ranges() {
            runs.push(self.log.hashes(range.level, range.start, range.count).await.map_err(of_read)?);
        }
        let proof = plan.finish(&runs).map_err(|_| ServiceError::Internal("the tree's stored hashes do not fit"))?;
        Ok(Receipt { index, proof, checkpoint })
    }

    /// Records something that is no change of a session.
    ///
    /// # Errors
    /// [`ServiceError`]: then it is not recorded, and whatever it was to record must not happen.
    pub async fn record(&self, caller: &Caller, record: Record) -> Result<Place, ServiceError> {
        self.in_time(self.record_now(caller, record)).await
    }

    async fn record_now(&self, caller: &Caller, record: Record) -> Result<Place, ServiceError> {
        let deadline = Instant::now() + self.config.deadline;
        loop {
            let found = self.keys.of_subject(&caller.realm, HOUSE).await.map_err(of_key)?;
            let draft = Draft {
                action: record.action,
                outcome: record.outcome,
                now: self.now(),
                found: &found,
                session: None,
                version: None,
                base: None,
                event: None,
                detail: record.detail.clone(),
                facts: record.facts.clone(),
                claims: Claims { credential: record.credential.clone(), ..Claims::default() },
            };
            match self.append(caller, draft, deadline).await {
                Ok(done) => return Ok(done.place),
                Err(NotAppended::Refused(_)) => self.keys.forget(&found, &caller.realm, Some(HOUSE)),
                Err(NotAppended::Other(failure)) => return Err(failure),
            }
            in_time(deadline)?;
        }
    }

    /// Adds a credential; the entry and the credential are one transaction.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn add_credential(&self, caller: &Caller, credential: Credential) -> Result<Place, ServiceError> {
        let roles: Vec<String> = credential.roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect();
        let record = Record {
            action: Action::KeyCreated,
            outcome: Outcome::Success,
            detail: [
                ("key".to_owned(), credential.id.clone()),
                ("realm".to_owned(), credential.realm.to_string()),
                ("roles".to_owned(), roles.join(",")),
            ]
            .into(),
            facts: [("label".to_owned(), credential.label.clone())].into(),
            credential: Some(CredentialChange::Added(credential)),
        };
        self.record(caller, record).await
    }

    /// Revokes a credential; the entry and the revocation are one transaction.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn revoke_credential(&self, caller: &Caller, id: &str) -> Result<Place, ServiceError> {
        let record = Record {
            action: Action::KeyRevoked,
            outcome: Outcome::Success,
            detail: [("key".to_owned(), id.to_owned())].into(),
            facts: Default::default(),
            credential: Some(CredentialChange::Revoked(id.to_owned(), self.now())),
        };
        self.record(caller, record).await
    }

    /// Ends a session whose deadline has passed; `false` if none has, or it has ended already.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub(crate) async fn expire(&self, id: SessionId, realm: &RealmName) -> Result<bool, ServiceError> {
        match self.change(&self.node_caller(realm), id, Command::Expire, None, None).await {
            Ok(_) => Ok(true),
            Err(ServiceError::NothingToDo | ServiceError::Ended(_) | ServiceError::NotFound) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// The node itself, asking.
    pub fn node_caller(&self, realm: &RealmName) -> Caller {
        Caller {
            realm: realm.clone(),
            actor: Actor { id: self.config.node.clone(), role: Role::Node },
            protocol: Protocol::Internal,
            origin: None,
            request_id: None,
            trace_id: None,
            min_index: None,
            detail: Detail::new(),
        }
    }

    /// Writes the marks of use that have gathered.
    pub async fn flush_marks(&self) {
        let marks: Vec<_> = std::mem::take(&mut *self.marks.lock()).into_iter().collect();
        if marks.is_empty() {
            return;
        }
        if let Err(failure) = self.log.mark_uses(&marks).await {
            warn!(failure = &failure as &dyn std::error::Error, "marks of use could not be written: trying again");
            let mut waiting = self.marks.lock();
            for (id, at) in marks {
                let mark = waiting.entry(id).or_insert(at);
                *mark = (*mark).max(at);
            }
        }
    }
}

pub(crate) fn created(new: &NewSession, token: TokenDigest) -> Created {
    Created {
        subject: new.subject.clone(),
        kind: new.kind,
        attributes: new.attributes.clone(),
        authentication: new.authentication.clone(),
        client: new.client.clone(),
        idle_timeout: new.idle_timeout,
        absolute_timeout: new.absolute_timeout,
        token,
    }
}

pub(crate) fn place_of(head: &Head) -> Place {
    Place { index: head.index, hash: head.hash, tree_size: head.tree_size }
}
