//! Requests that may come twice: under way, done already, or new.

use std::sync::Arc;

use audit_log::IdempotencyClaim;
use hashbrown::HashSet;
use parking_lot::Mutex;
use session_model::{Digest, Leaf, Seconds, Timestamp, Token};

use crate::answer::Changed;
use crate::error::{ServiceError, Unavailable};
use crate::failures::{internal, of_read, of_replay};
use crate::request::{Caller, Idempotency};
use crate::service::{SessionService, place_of};

/// How long a kept answer is replayed: 24 hours (API.md, Conventions).
pub const KEEP_ANSWERS: Seconds = Seconds::hours(24);

pub(crate) enum Entered<'a> {
    /// It is new; nobody else begins it while the guard lives.
    Go(Option<InFlight<'a>>),
    /// It is done already.
    Replay(Box<Kept>),
}

pub(crate) struct Kept {
    pub(crate) key: Digest,
    pub(crate) answer: audit_log::Answer,
}

/// An idempotency key whose request is under way.
pub(crate) struct InFlight<'a> {
    under_way: &'a UnderWay,
    key: Digest,
}

/// The idempotency keys whose requests are under way in this process.
pub(crate) type UnderWay = Mutex<HashSet<Digest>>;

impl<'a> InFlight<'a> {
    /// Begins the request of a key; `None` if one is under way.
    pub(crate) fn begin(under_way: &'a UnderWay, key: Digest) -> Option<Self> {
        under_way.lock().insert(key).then_some(Self { under_way, key })
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

impl SessionService {
    pub(crate) fn claim(
        &self,
        idempotency: Option<Idempotency>,
        token: Option<&Token>,
        now: Timestamp,
    ) -> Result<Option<IdempotencyClaim>, ServiceError> {
        self.claim_answer(idempotency, token.map(Token::expose).unwrap_or_default().as_bytes(), now)
    }

    /// The claim of an idempotency key, and the answer to be kept under it. What is kept of the request is keyed: it may name a subject and little
    /// else, and nobody who reads the database may guess at one that was erased since.
    pub(crate) fn claim_answer(
        &self,
        idempotency: Option<Idempotency>,
        answer: &[u8],
        now: Timestamp,
    ) -> Result<Option<IdempotencyClaim>, ServiceError> {
        let Some(Idempotency { key, request }) = idempotency else { return Ok(None) };
        let keyring = self.keys.keyring();
        let answer = keyring.seal_answer(&key, answer).map_err(internal)?;
        let request = keyring.request_digest(&request).map_err(internal)?;
        Ok(Some(IdempotencyClaim { key, request, answer, expires: now.plus(KEEP_ANSWERS) }))
    }

    /// Whether an answer was kept for this request. One of a version before may be: it kept digests without a key.
    pub(crate) fn is_of(&self, answer: &audit_log::Answer, request: &Digest) -> Result<bool, ServiceError> {
        let keyed = self.keys.keyring().is_request_digest(&answer.request, request).map_err(internal)?;
        Ok(keyed || answer.request == *request)
    }

    /// Begins a request with an idempotency key: is it new, done already, or under way?
    pub(crate) async fn enter(&self, idempotency: Option<Idempotency>) -> Result<Entered<'_>, ServiceError> {
        let Some(Idempotency { key, request }) = idempotency else { return Ok(Entered::Go(None)) };
        let guard = InFlight::begin(&self.in_flight, key).ok_or(ServiceError::IdempotencyInFlight)?;
        match self.log.answer(&key).await.map_err(of_read)? {
            Some(answer) if answer.expires < self.now() => {
                self.log.forget_expired(self.now(), usize::MAX >> 33).await.map_err(of_read)?;
                Ok(Entered::Go(Some(guard)))
            }
            Some(answer) if !self.is_of(&answer, &request)? => Err(ServiceError::IdempotencyMismatch),
            Some(answer) => Ok(Entered::Replay(Box::new(Kept { key, answer }))),
            None => Ok(Entered::Go(Some(guard))),
        }
    }

    /// The answer that another node kept under the same key a moment ago.
    pub(crate) async fn replay_now(
        &self,
        caller: &Caller,
        idempotency: Option<Idempotency>,
    ) -> Result<Changed, ServiceError> {
        let kept = self.kept_by_another(idempotency).await?;
        self.replayed(caller, &kept).await
    }

    /// What another node kept under this key a moment ago.
    pub(crate) async fn kept_by_another(&self, idempotency: Option<Idempotency>) -> Result<Kept, ServiceError> {
        let Some(Idempotency { key, request }) = idempotency else {
            return Err(ServiceError::Internal("an idempotency key where none is claimed"));
        };
        match self.log.answer(&key).await.map_err(of_read)? {
            Some(answer) if self.is_of(&answer, &request)? => Ok(Kept { key, answer }),
            Some(_) => Err(ServiceError::IdempotencyMismatch),
            None => Err(ServiceError::Unavailable(Unavailable::LogRead)),
        }
    }

    /// The first answer again: the session as its entry left it, and the token that was kept, sealed.
    pub(crate) async fn replayed(&self, caller: &Caller, kept: &Kept) -> Result<Changed, ServiceError> {
        let stored = self.log.entries(&[kept.answer.index]).await.map_err(of_read)?;
        let Some(Some(entry)) = stored.into_iter().next() else { return Err(ServiceError::NotFound) };
        let leaf = Leaf::decode(&entry.leaf).map_err(|_| ServiceError::Internal("the entry is not a leaf"))?;
        let (Some(id), Some(version), true) = (leaf.session_id, leaf.version, leaf.realm == caller.realm) else {
            return Err(ServiceError::NotFound);
        };
        let session = self.replay.session(id, Some(version)).await.or_else(of_replay)?;
        let session = session.ok_or(ServiceError::NotFound)?;
        let token = self.keys.keyring().open_answer(&kept.key, &kept.answer.answer).map_err(internal)?;
        let token = std::str::from_utf8(&token).ok().and_then(|token| Token::parse(token).ok());
        let place = place_of(&session.head);
        Ok(Changed { session: Arc::new(session), token, place, replayed: true })
    }
}
