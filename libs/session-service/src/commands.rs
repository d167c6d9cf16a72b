//! What changes sessions: each in the order that makes it evidence.

use audit_log::{Claims, Refusal, Seat, SessionChange, SessionFilter};
use futures::stream::{self, StreamExt};
use sealing::Ids;
use session_model::{
    Action, Actor, Command, Created, EndReason, KeyId, Kind, MergePatch, Outcome, RealmName, SessionId, TokenDigest,
    Version, decide,
};
use tokio::time::Instant;

use crate::answer::Changed;
use crate::change::{Draft, NotAppended, changed, in_time};
use crate::error::{ServiceError, Unavailable};
use crate::failures::{internal, of, of_key, of_read};
use crate::idempotency::Entered;
use crate::request::{Asking, Caller, Idempotency, NewSession, subject_actor};
use crate::service::{HOUSE, SessionService, place_of};

impl SessionService {
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

    /// Whether the log has entries of a realm: sessions, or what belongs to none (its credentials, what was read or refused in it).
    ///
    /// # Errors
    /// [`ServiceError::Unavailable`].
    pub async fn knows(&self, realm: &RealmName) -> Result<bool, ServiceError> {
        let filter = SessionFilter { realm: realm.clone(), key: None, open: None, kind: None };
        let any_session = async { self.log.sessions(&filter, None, 1).await.map_err(of_read) };
        Ok(!self.in_time(any_session).await?.is_empty() || self.key_of_subject(realm, HOUSE).await?.is_some())
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
