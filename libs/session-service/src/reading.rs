//! What is asked of sessions without changing them. Counting a use is no change: it leaves no entry.

use std::sync::Arc;

use audit_log::{Claims, SessionFilter};
use futures::stream::{self, StreamExt};
use merkle_log::{Plan, Receipt};
use sealing::token_digest;
use session_model::{Action, Command, Detail, Leaf, LeafIndex, Outcome, RealmName, Session, SessionId, Token, expiry};
use session_view::Viewed;
use tokio::time::Instant;
use tracing::warn;

use crate::answer::{Page, Validation, ValidationReason};
use crate::change::Draft;
use crate::error::ServiceError;
use crate::failures::{of_key, of_read};
use crate::held::Held;
use crate::request::{Caller, ListQuery};
use crate::service::SessionService;

impl SessionService {
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
}
