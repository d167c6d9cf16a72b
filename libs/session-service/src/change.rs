//! One change: decided on the newest state, appended, and what to do when the log refuses it.

use std::sync::Arc;

use audit_log::{Claims, DataKeyClaim, NotDone, Proposed, Refusal, SealedEntry, Seat, SessionChange, SessionFilter};
use merkle_log::leaf_hash;
use sealing::Ids;
use session_model::{
    Action, BeyondCap, Command, Detail, EndReason, Event, Format, KeyId, Leaf, Outcome, Policy, PreviousLeaf,
    Rejection, SealedPart, Session, SessionId, Timestamp, Token, Version, decide, expiry,
};
use session_view::Viewed;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::answer::Changed;
use crate::data_keys::Found;
use crate::error::{ServiceError, Unavailable};
use crate::failures::{internal, of, of_key, of_read};
use crate::idempotency::Entered;
use crate::pipeline::{Change, Done, Ticket};
use crate::request::{Caller, Idempotency};
use crate::service::SessionService;

/// Why an entry was not appended.
pub(crate) enum NotAppended {
    Refused(Refusal),
    Other(ServiceError),
}

/// An entry to be made.
pub(crate) struct Draft<'a> {
    pub(crate) action: Action,
    pub(crate) outcome: Outcome,
    pub(crate) now: Timestamp,
    pub(crate) found: &'a Found,
    pub(crate) session: Option<SessionId>,
    pub(crate) version: Option<Version>,
    pub(crate) base: Option<Arc<Session>>,
    pub(crate) event: Option<Event>,
    pub(crate) detail: Detail,
    pub(crate) facts: std::collections::BTreeMap<String, String>,
    pub(crate) claims: Claims,
}

impl NotAppended {
    pub(crate) fn into_error(self) -> ServiceError {
        match self {
            Self::Other(failure) => failure,
            Self::Refused(Refusal::DataKeyMissing) => ServiceError::NotFound,
            Self::Refused(_) => ServiceError::Internal("a refusal of what was not claimed"),
        }
    }
}

impl From<ServiceError> for NotAppended {
    fn from(failure: ServiceError) -> Self {
        Self::Other(failure)
    }
}

pub(crate) fn changed(done: Done, token: Option<Token>) -> Result<Changed, ServiceError> {
    let session = done.session.ok_or(ServiceError::Internal("a change without a session"))?;
    Ok(Changed { session, token, place: done.place, replayed: false })
}

pub(crate) fn later_expected(command: &Command, current: Version) -> bool {
    matches!(command, Command::Update { expected: Some(expected), .. } if *expected > current)
}

pub(crate) fn in_time(deadline: Instant) -> Result<(), ServiceError> {
    if Instant::now() < deadline { Ok(()) } else { Err(ServiceError::Unavailable(Unavailable::Overloaded)) }
}

impl SessionService {
    /// One change of one session: decided on its newest state, appended, applied.
    pub(crate) async fn change(
        &self,
        caller: &Caller,
        id: SessionId,
        command: Command,
        token: Option<Token>,
        idempotency: Option<Idempotency>,
    ) -> Result<Changed, ServiceError> {
        self.in_time(self.change_now(caller, id, command, token, idempotency)).await
    }

    async fn change_now(
        &self,
        caller: &Caller,
        id: SessionId,
        command: Command,
        token: Option<Token>,
        idempotency: Option<Idempotency>,
    ) -> Result<Changed, ServiceError> {
        // From the very beginning: an append must give up, and say what it knows, before `in_time` does, which knows nothing of it.
        let deadline = Instant::now() + self.config.deadline;
        let policy = self.policy(&caller.realm)?;
        let _under_way = match self.enter(idempotency).await? {
            Entered::Replay(answer) => return self.replayed(caller, &answer).await,
            Entered::Go(guard) => guard,
        };
        let overloaded = |_| ServiceError::Unavailable(Unavailable::Overloaded);
        let _turn = timeout_at(deadline, self.turnstile.enter(id)).await.map_err(overloaded)?;
        let mut state = self.state(id, caller.min_index).await?;
        let mut from_log = false;
        let command_asked = command;
        loop {
            let session = match state {
                Some(Viewed::Active(session)) if session.realm == caller.realm => session,
                Some(Viewed::Ended(tombstone)) if tombstone.realm == caller.realm => {
                    return Err(ServiceError::Ended(tombstone.ended.clone()));
                }
                Some(_) | None => return Err(ServiceError::NotFound),
            };
            let now = self.now();
            let mut command = command_asked.clone();
            let mut too_late = None;
            let session = match expiry(&session, now) {
                None => session,
                Some(ended) => match self.used_elsewhere(&session, now).await? {
                    Some(session) => session,
                    // Whatever was asked for comes too late: what has happened is that the session expired.
                    None => {
                        if !matches!(command, Command::Expire) {
                            command = Command::Expire;
                            too_late = Some(ended);
                        }
                        session
                    }
                },
            };
            let event = match decide(Some(&session), command.clone(), now, policy) {
                Ok(event) => event,
                // Somebody who expects a later version than the view knows has seen what the view has not.
                Err(Rejection::StaleVersion { current }) if !from_log && later_expected(&command, current) => {
                    state = self.state_from_log(id).await?;
                    from_log = true;
                    continue;
                }
                Err(rejection) => return Err(of(rejection)),
            };
            match self.append_change(caller, &session, event, &token, idempotency, now, deadline).await {
                Ok(done) => match too_late {
                    Some(ended) => return Err(ServiceError::Ended(ended)),
                    None => return changed(done, token),
                },
                Err(NotAppended::Refused(Refusal::Version)) => {
                    state = self.state_from_log(id).await?;
                    from_log = true;
                }
                Err(NotAppended::Refused(Refusal::CapReached)) => {
                    let Command::Authenticate { subject, .. } = &command else {
                        return Err(ServiceError::Internal("a cap where none is claimed"));
                    };
                    let found = self.keys.of_subject(&caller.realm, subject).await.map_err(of_key)?;
                    self.make_room(caller, found.id(), policy, deadline).await?;
                    state = Some(Viewed::Active(session));
                }
                Err(NotAppended::Refused(Refusal::DataKeyMissing | Refusal::DataKeyTaken)) => {
                    match &command {
                        Command::Authenticate { subject, .. } => {
                            let found = self.keys.of_subject(&caller.realm, subject).await.map_err(of_key)?;
                            self.keys.forget(&found, &caller.realm, Some(subject));
                        }
                        _ => return Err(ServiceError::NotFound),
                    }
                    state = Some(Viewed::Active(session));
                }
                Err(NotAppended::Refused(Refusal::IdempotencyKeyUsed)) => {
                    return self.replay_now(caller, idempotency).await;
                }
                Err(foreign @ NotAppended::Refused(Refusal::LegalHold | Refusal::SubjectBusy)) => {
                    return Err(foreign.into_error());
                }
                Err(NotAppended::Other(failure)) => return Err(failure),
            }
            in_time(deadline)?;
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one change, used in one place")]
    pub(crate) async fn append_change(
        &self,
        caller: &Caller,
        session: &Arc<Session>,
        event: Event,
        token: &Option<Token>,
        idempotency: Option<Idempotency>,
        now: Timestamp,
        deadline: Instant,
    ) -> Result<Done, NotAppended> {
        let policy = self.policy(&caller.realm)?;
        let version = session.version.next();
        let mut claims = Claims {
            session: Some((session.id, version)),
            idempotency: self.claim(idempotency, token.as_ref(), now)?,
            ..Claims::default()
        };
        let mut detail = Detail::new();
        let found = match &event {
            Event::Authenticated { subject, .. } => {
                let found = self.keys.of_subject(&caller.realm, subject).await.map_err(of_key)?;
                if found.id() != session.data_key {
                    claims.index = Some(SessionChange::Bound { key: found.id() });
                    claims.take_seat = Some(Seat { key: found.id(), cap: policy.sessions_per_subject });
                    claims.free_seat = session.subject.as_ref().map(|_| session.data_key);
                }
                found
            }
            Event::Ended(ended) => {
                detail.insert("reason".to_owned(), ended.reason.name().to_owned());
                claims.index = Some(SessionChange::Closed);
                claims.free_seat = session.subject.as_ref().map(|_| session.data_key);
                self.key_of(session).await?
            }
            Event::Created(_) | Event::Updated { .. } | Event::Renewed { .. } | Event::TokenReused => {
                self.key_of(session).await?
            }
        };
        // What the service itself finds out (an expiry, a reuse) is not the doing of whoever happened to ask.
        let by_node = matches!(&event, Event::Ended(ended) if !matches!(ended.reason, EndReason::Requested(_) | EndReason::Evicted));
        let node = self.node_caller(&caller.realm);
        let draft = Draft {
            action: Action::of(&event),
            outcome: Outcome::Success,
            now,
            found: &found,
            session: Some(session.id),
            version: Some(version),
            base: Some(Arc::clone(session)),
            event: Some(event),
            detail,
            facts: Default::default(),
            claims,
        };
        self.append(if by_node { &node } else { caller }, draft, deadline).await
    }

    /// Seals, encodes and queues an entry, and waits for its fate.
    pub(crate) async fn append(
        &self,
        caller: &Caller,
        draft: Draft<'_>,
        deadline: Instant,
    ) -> Result<Done, NotAppended> {
        let data_key = draft.found.id();
        let change =
            draft.event.as_ref().map(|event| Change { base: draft.base.clone(), event: event.clone(), data_key });
        let entry_id = Ids.entry(draft.now).map_err(internal)?;
        let part = SealedPart { event: draft.event, origin: caller.origin, facts: draft.facts };
        let (plaintext, addresses) = (part.encode().map_err(internal)?, part.addresses());
        let sealed = draft.found.key().seal(entry_id, &plaintext).map_err(internal)?;
        let mut detail = draft.detail;
        for (fact, value) in &caller.detail {
            detail.entry(fact.clone()).or_insert_with(|| value.clone());
        }
        let leaf = Leaf {
            action: draft.action,
            actor: caller.actor.clone(),
            commitment: Some(sealed.commitment),
            data_key: Some(data_key),
            detail,
            entry_id,
            format: Format::V1,
            node: self.config.node.clone(),
            outcome: draft.outcome,
            previous: draft.base.as_ref().map(|base| PreviousLeaf { hash: base.head.hash, index: base.head.index }),
            protocol: caller.protocol,
            realm: caller.realm.clone(),
            request_id: caller.request_id.clone(),
            session_id: draft.session,
            time: draft.now,
            trace_id: caller.trace_id.clone(),
            version: draft.version,
        };
        let bytes = leaf.encode().map_err(internal)?;
        let mut claims = draft.claims;
        claims.data_key = Some(match draft.found {
            Found::Existing(id, _) => DataKeyClaim::Existing(*id),
            Found::New(row, _) => DataKeyClaim::New(row.clone()),
        });
        let hash = leaf_hash(&bytes);
        let sealed = Some(SealedEntry { key: data_key, bytes: sealed.bytes });
        let (reply, answer) = oneshot::channel();
        let withdraw = self
            .commit
            .submit(Proposed { leaf, bytes, hash, sealed, claims }, Ticket { change, addresses, reply })
            .map_err(|_ticket| NotAppended::Other(ServiceError::Unavailable(Unavailable::Overloaded)))?;
        let unavailable = |what| Err(NotAppended::Other(ServiceError::Unavailable(what)));
        match timeout_at(deadline, answer).await {
            Ok(Ok(Ok(done))) => {
                self.contact.made();
                self.keys.stored(draft.found);
                Ok(done)
            }
            Ok(Ok(Err(NotDone::Refused(refusal)))) => Err(NotAppended::Refused(refusal)),
            Ok(Ok(Err(NotDone::Unavailable)) | Err(_)) => unavailable(Unavailable::LogWrite),
            Ok(Ok(Err(NotDone::Overloaded))) => unavailable(Unavailable::Overloaded),
            Err(_elapsed) if withdraw.try_withdraw() => unavailable(Unavailable::LogWrite),
            Err(_elapsed) => Err(NotAppended::Other(ServiceError::OutcomeUnknown)),
        }
    }

    /// Makes room below the cap of a subject: ends what has expired, else what the policy says.
    pub(crate) async fn make_room(
        &self,
        caller: &Caller,
        key: KeyId,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<(), ServiceError> {
        let filter = SessionFilter { realm: caller.realm.clone(), key: Some(key), open: Some(true), kind: None };
        let cap = usize::try_from(policy.sessions_per_subject).unwrap_or(usize::MAX);
        let ids = self.log.sessions(&filter, None, cap.saturating_add(64)).await.map_err(of_read)?;
        let mut open = Vec::new();
        let mut expired = false;
        for id in ids {
            let Some(Viewed::Active(session)) = self.state(id, None).await? else { continue };
            match expiry(&session, self.now()) {
                Some(_) => expired |= Box::pin(self.expire(id, &caller.realm)).await?,
                None => open.push(session),
            }
        }
        // Somebody else may have made room meanwhile.
        if expired || open.len() < cap {
            return in_time(deadline);
        }
        let least = match policy.beyond_cap {
            BeyondCap::Deny => return Err(ServiceError::LimitReached { cap: policy.sessions_per_subject }),
            BeyondCap::EvictOldest => open.iter().min_by_key(|session| (session.created_at, session.id)),
            BeyondCap::EvictLeastRecent => open.iter().min_by_key(|session| (session.last_seen_at, session.id)),
        };
        if let Some(least) = least {
            let evict = Command::End { reason: EndReason::Evicted };
            match Box::pin(self.change(caller, least.id, evict, None, None)).await {
                Ok(_) | Err(ServiceError::Ended(_) | ServiceError::NotFound) => {}
                Err(failure) => return Err(failure),
            }
        }
        in_time(deadline)
    }
}
