//! What the mouths ask: for each realm the operations on its sessions, whatever stands behind it.
//!
//! # The seam
//!
//! A realm of profile `transient` answers to the same commands as every other. What decides (`decide`) and what makes a state of it (`apply`)
//! are the same pure functions; only what lies between them is different: there a log takes an entry and arbitrates by it, here a
//! [`TransientStore`](transient_store::TransientStore) takes a state if what it was made from still stands. So there are two services,
//! [`SessionService`] and [`TransientSessions`], and [`Sessions`] sends each request to the one that its realm has. That is the only
//! place where the difference is asked for. What a mouth sees of it is that [`Happened::place`] is `None`: no entry, no receipt, no leaf index.
//!
//! All else of such a realm is as everywhere: credentials, refused requests, and the readings of the log are entries of the log.
//!
//! Where there is more than one log, each with a [`SessionService`] of its own, a realm lives in one of them ([`ByRealm`]): what holds within a realm
//! (caps, erasure, leaf indices, cursors) holds within one log, exactly.

use std::sync::Arc;

use audit_log::Place;
use merkle_log::Receipt;
use session_model::{
    EndReason, KeyId, Kind, LeafIndex, MergePatch, Policy, RealmName, Session, SessionId, Timestamp, Token, Version,
};

use crate::answer::{Changed, Page, Validation};
use crate::by_realm::ByRealm;
use crate::custody::Erased;
use crate::error::ServiceError;
use crate::request::{Caller, Idempotency, ListQuery, NewSession, Record};
use crate::service::SessionService;
use crate::transient::TransientSessions;

/// A change that has happened.
#[derive(Debug, Clone)]
pub struct Happened {
    /// The session after it.
    pub session: Arc<Session>,
    /// The new token, where there is one: the only time it is seen.
    pub token: Option<Token>,
    /// Where its entry stands; `None` in a realm that keeps no log.
    pub place: Option<Place>,
    /// Whether this is the answer of an earlier request with the same idempotency key, or of the earlier end of the session.
    pub replayed: bool,
}

impl From<Changed> for Happened {
    fn from(changed: Changed) -> Self {
        let Changed { session, token, place, replayed } = changed;
        Self { session, token, place: Some(place), replayed }
    }
}

/// The sessions of all realms.
pub struct Sessions {
    audited: ByRealm<Arc<SessionService>>,
    transient: Option<Arc<TransientSessions>>,
}

/// What stands behind a realm.
enum Behind<'a> {
    Log(&'a SessionService),
    Store(&'a TransientSessions),
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sessions({:?})", self.audited)
    }
}

impl Sessions {
    /// Those of the log that each realm lives in, and those of the realms that keep none.
    pub fn new(audited: ByRealm<Arc<SessionService>>, transient: Option<Arc<TransientSessions>>) -> Self {
        Self { audited, transient }
    }

    fn behind(&self, realm: &RealmName) -> Behind<'_> {
        match &self.transient {
            Some(transient) if transient.keeps(realm) => Behind::Store(transient),
            Some(_) | None => Behind::Log(self.audited(realm)),
        }
    }

    fn audited(&self, realm: &RealmName) -> &SessionService {
        self.audited.of(realm)
    }

    /// What a realm demands.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] if this node has no such realm.
    pub fn policy(&self, realm: &RealmName) -> Result<&Policy, ServiceError> {
        self.audited(realm).policy(realm)
    }

    /// The time, by the clock of the first log.
    pub fn now(&self) -> Timestamp {
        self.audited.first().now()
    }

    /// As [`SessionService::create`].
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn create(
        &self,
        caller: &Caller,
        new: NewSession,
        idempotency: Option<Idempotency>,
    ) -> Result<Happened, ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Log(service) => service.create(caller, new, idempotency).await.map(Happened::from),
            Behind::Store(service) => service.create(caller, new, idempotency).await,
        }
    }

    /// As [`SessionService::validate`].
    ///
    /// # Errors
    /// [`ServiceError::Unavailable`].
    pub async fn validate(&self, caller: &Caller, token: &str) -> Result<Validation, ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Log(service) => service.validate(caller, token).await,
            Behind::Store(service) => service.validate(caller, token).await,
        }
    }

    /// As [`SessionService::get`].
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn get(&self, caller: &Caller, id: SessionId) -> Result<Arc<Session>, ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Log(service) => service.get(caller, id).await,
            Behind::Store(service) => service.get(caller, id).await,
        }
    }

    /// As [`SessionService::update`].
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn update(
        &self,
        caller: &Caller,
        id: SessionId,
        patch: MergePatch,
        expected: Option<Version>,
    ) -> Result<Happened, ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Log(service) => service.update(caller, id, patch, expected).await.map(Happened::from),
            Behind::Store(service) => service.update(caller, id, patch, expected).await,
        }
    }

    /// As [`SessionService::touch`].
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn touch(&self, caller: &Caller, id: SessionId) -> Result<Arc<Session>, ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Log(service) => service.touch(caller, id).await,
            Behind::Store(service) => service.touch(caller, id).await,
        }
    }

    /// As [`SessionService::authenticate`].
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
    ) -> Result<Happened, ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Log(service) => {
                service.authenticate(caller, id, subject, methods, level, idempotency).await.map(Happened::from)
            }
            Behind::Store(service) => service.authenticate(caller, id, subject, methods, level, idempotency).await,
        }
    }

    /// As [`SessionService::renew`].
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn renew(
        &self,
        caller: &Caller,
        id: SessionId,
        idempotency: Option<Idempotency>,
    ) -> Result<Happened, ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Log(service) => service.renew(caller, id, idempotency).await.map(Happened::from),
            Behind::Store(service) => service.renew(caller, id, idempotency).await,
        }
    }

    /// As [`SessionService::end`].
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn end(&self, caller: &Caller, id: SessionId, reason: EndReason) -> Result<Happened, ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Log(service) => service.end(caller, id, reason).await.map(Happened::from),
            Behind::Store(service) => service.end(caller, id, reason).await,
        }
    }

    /// As [`SessionService::end_subject`].
    ///
    /// # Errors
    /// [`ServiceError`]; what was ended before it stays so.
    pub async fn end_subject(
        &self,
        caller: &Caller,
        subject: &str,
        except: Option<SessionId>,
        reason: EndReason,
    ) -> Result<Vec<Happened>, ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Log(service) => all(service.end_subject(caller, subject, except, reason).await?),
            Behind::Store(service) => service.end_all(caller, Some(subject), None, except, &reason).await,
        }
    }

    /// As [`SessionService::end_matching`].
    ///
    /// # Errors
    /// [`ServiceError`]; what was ended before it stays so.
    pub async fn end_matching(
        &self,
        caller: &Caller,
        subject: Option<&str>,
        kind: Option<Kind>,
        reason: EndReason,
    ) -> Result<Vec<Happened>, ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Log(service) => all(service.end_matching(caller, subject, kind, reason).await?),
            Behind::Store(service) => service.end_all(caller, subject, kind, None, &reason).await,
        }
    }

    /// As [`SessionService::list`].
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn list(&self, caller: &Caller, query: &ListQuery) -> Result<Page, ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Log(service) => service.list(caller, query).await,
            Behind::Store(service) => service.list(caller, query).await,
        }
    }

    /// As [`SessionService::receipt`]: of an entry, which realms of every profile have.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] if the realm has no such entry.
    pub async fn receipt(&self, realm: &RealmName, index: LeafIndex) -> Result<Receipt, ServiceError> {
        self.audited(realm).receipt(realm, index).await
    }

    /// As [`SessionService::record`].
    ///
    /// # Errors
    /// [`ServiceError`]: then it is not recorded, and whatever it was to record must not happen.
    pub async fn record(&self, caller: &Caller, record: Record) -> Result<Place, ServiceError> {
        self.audited(&caller.realm).record(caller, record).await
    }

    /// As [`SessionService::erase_subject`]. In a realm that keeps no log the subject's sessions are ended, and nothing of it is left in them;
    /// what the log held on it, from when the realm had another profile, is erased as everywhere. The erasure is an entry.
    ///
    /// # Errors
    /// [`ServiceError::NothingHeld`] if the realm holds nothing on the subject, [`ServiceError::LegalHold`] if it is held.
    pub async fn erase_subject<F>(
        &self,
        caller: &Caller,
        subject: &str,
        idempotency: Option<Idempotency>,
        before: impl Fn(KeyId) -> F,
    ) -> Result<Erased, ServiceError>
    where
        F: Future<Output = Result<(), ServiceError>>,
    {
        let Behind::Store(service) = self.behind(&caller.realm) else {
            return self.audited(&caller.realm).erase_subject(caller, subject, idempotency, before).await;
        };
        let reason = EndReason::Requested("erasure".into());
        let beside = async || Ok(service.end_all(caller, Some(subject), None, None, &reason).await?.len());
        self.audited(&caller.realm).erase_with(caller, subject, idempotency, before, beside).await
    }

    /// As [`SessionService::hold_subject`].
    ///
    /// # Errors
    /// [`ServiceError::NoLog`] for a hold in a realm that keeps no log: there is nothing that could be kept. An old one can be released.
    pub async fn hold_subject(
        &self,
        caller: &Caller,
        subject: &str,
        held: bool,
        reason: Option<String>,
    ) -> Result<(KeyId, Place), ServiceError> {
        match self.behind(&caller.realm) {
            Behind::Store(_) if held => Err(ServiceError::NoLog),
            Behind::Store(_) | Behind::Log(_) => {
                self.audited(&caller.realm).hold_subject(caller, subject, held, reason).await
            }
        }
    }

    /// The sessions of a subject that no entry tells of: for a copy of all that is held on it.
    ///
    /// # Errors
    /// [`ServiceError::Unavailable`].
    pub async fn beside_the_log(&self, realm: &RealmName, subject: &str) -> Result<Vec<Arc<Session>>, ServiceError> {
        match self.behind(realm) {
            Behind::Log(_) => Ok(Vec::new()),
            Behind::Store(service) => service.of_subject(realm, subject).await,
        }
    }
}

fn all(changed: Vec<Changed>) -> Result<Vec<Happened>, ServiceError> {
    Ok(changed.into_iter().map(Happened::from).collect())
}
