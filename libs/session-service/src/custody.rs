//! What the service holds on a subject as a whole: erased on demand, unless a legal hold keeps it.

use std::future::Future;
use std::time::Duration;

use audit_log::{Claims, DataKeyRow, Place, Refusal, SubjectChange};
use merkle_log::leaf_hash;
use serde::{Deserialize, Serialize};
use session_model::{Action, Detail, EndReason, KeyId, Leaf, Outcome};
use tokio::time::{Instant, sleep};

use crate::change::{Draft, NotAppended, in_time};
use crate::data_keys::Found;
use crate::error::ServiceError;
use crate::failures::{internal, of_key, of_read};
use crate::idempotency::{Entered, Kept};
use crate::request::{Caller, Idempotency};
use crate::service::{HOUSE, SessionService};

/// What was destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased {
    /// The handle under which the subject stands in leaves: from now on it means nobody. `None` if it stands in none, in a realm that keeps no log.
    pub key: Option<KeyId>,
    /// How many open sessions were ended first.
    pub ended: usize,
    /// How many data keys were destroyed: the subject's, and those of the times before it had logged in.
    pub keys: usize,
    /// Where the entry stands.
    pub place: Place,
}

/// What is kept of an erasure under its idempotency key, sealed. Names nobody.
#[derive(Serialize, Deserialize)]
struct KeptErasure {
    key: Option<KeyId>,
    ended: usize,
    keys: usize,
}

/// A pause before an erasure is tried again that met something else under way for the subject.
const BUSY: Duration = Duration::from_millis(20);

impl SessionService {
    /// Erases a subject: ends its sessions, then destroys its data key and those it owns, in the transaction that records it. What
    /// they sealed cannot be read any more, by anybody; leaves and proofs stay as they are. `before` is called, with the key
    /// still there, before each attempt to destroy it. Once done, the same idempotency key answers the same.
    ///
    /// # Errors
    /// [`ServiceError::NothingHeld`] if the realm holds nothing on the subject, [`ServiceError::LegalHold`] if it is held, those of
    /// idempotency keys.
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
        self.erase_with(caller, subject, idempotency, before, async || Ok(0)).await
    }

    /// As [`Self::erase_subject`], of a realm that has sessions beside the log too: `beside` ends those of the subject and answers how many they were.
    pub(crate) async fn erase_with<F, G>(
        &self,
        caller: &Caller,
        subject: &str,
        idempotency: Option<Idempotency>,
        before: impl Fn(KeyId) -> F,
        beside: impl Fn() -> G,
    ) -> Result<Erased, ServiceError>
    where
        F: Future<Output = Result<(), ServiceError>>,
        G: Future<Output = Result<usize, ServiceError>>,
    {
        let _under_way = match self.enter(idempotency).await? {
            Entered::Replay(kept) => return self.erased_before(caller, &kept).await,
            Entered::Go(guard) => guard,
        };
        let deadline = Instant::now() + self.config.deadline * 6;
        let mut ended = 0;
        loop {
            let row = self.kept_on(caller, subject).await?;
            if row.as_ref().is_some_and(|row| row.held) {
                return Err(ServiceError::LegalHold);
            }
            // Perhaps another node has just done it, asked with the same key.
            if row.is_none()
                && let Some(Idempotency { key, request }) = idempotency
                && let Some(answer) = self.log.answer(&key).await.map_err(of_read)?
                && self.is_of(&answer, &request)?
            {
                return self.erased_before(caller, &Kept { key, answer }).await;
            }
            ended += beside().await?;
            let keys = match &row {
                None if ended == 0 => return Err(ServiceError::NothingHeld),
                None => 0,
                Some(row) => {
                    let reason = EndReason::Requested("erasure".into());
                    ended += self.end_subject(caller, subject, None, reason).await?.len();
                    before(row.id).await?;
                    self.log.data_keys_owned_by(row.id).await.map_err(of_read)?.len() + 1
                }
            };
            let key = row.map(|row| row.id);
            let house = self.keys.of_subject(&caller.realm, HOUSE).await.map_err(of_key)?;
            let mut detail = vec![("sessions_ended", ended.to_string())];
            detail.extend(key.map(|key| ("subject_key", key.uuid().to_string())));
            let change = key.map(SubjectChange::Erased);
            let mut draft = subject_draft(self, &house, Action::SubjectErased, &detail, change);
            let kept = serde_json::to_vec(&KeptErasure { key, ended, keys });
            let kept = kept.map_err(|_| ServiceError::Internal("an erasure cannot be written"))?;
            draft.claims.idempotency = self.claim_answer(idempotency, &kept, draft.now)?;
            match self.append(caller, draft, Instant::now() + self.config.deadline).await {
                Ok(done) => {
                    if let Some(key) = key {
                        self.keys.forget_subject(key, &caller.realm, subject);
                    }
                    return Ok(Erased { key, ended, keys, place: done.place });
                }
                Err(NotAppended::Refused(Refusal::LegalHold)) => return Err(ServiceError::LegalHold),
                Err(NotAppended::Refused(Refusal::IdempotencyKeyUsed)) => {
                    let kept = self.kept_by_another(idempotency).await?;
                    return self.erased_before(caller, &kept).await;
                }
                // Something began for the subject meanwhile, or somebody else erased it.
                Err(NotAppended::Refused(_)) => {
                    self.keys.forget(&house, &caller.realm, Some(HOUSE));
                    sleep(BUSY).await;
                }
                Err(NotAppended::Other(failure)) => return Err(failure),
            }
            in_time(deadline)?;
        }
    }

    /// The answer of an erasure that was done before, under the same idempotency key.
    async fn erased_before(&self, caller: &Caller, kept: &Kept) -> Result<Erased, ServiceError> {
        let stored = self.log.entries(&[kept.answer.index]).await.map_err(of_read)?;
        let Some(Some(entry)) = stored.into_iter().next() else { return Err(ServiceError::NotFound) };
        let leaf = Leaf::decode(&entry.leaf).map_err(|_| ServiceError::Internal("the entry is not a leaf"))?;
        if leaf.realm != caller.realm || leaf.action != Action::SubjectErased {
            return Err(ServiceError::NotFound);
        }
        let answer = self.keys.keyring().open_answer(&kept.key, &kept.answer.answer).map_err(internal)?;
        let KeptErasure { key, ended, keys } =
            serde_json::from_slice(&answer).map_err(|_| ServiceError::Internal("a kept erasure cannot be read"))?;
        let place = Place { index: entry.index, hash: leaf_hash(&entry.leaf), tree_size: entry.tree_size };
        Ok(Erased { key, ended, keys, place })
    }

    /// Puts a subject under legal hold, whether or not anything is held on it yet, or releases it. `reason` is sealed.
    ///
    /// # Errors
    /// [`ServiceError::NothingHeld`] if it is to be released and is not held.
    pub async fn hold_subject(
        &self,
        caller: &Caller,
        subject: &str,
        held: bool,
        reason: Option<String>,
    ) -> Result<(KeyId, Place), ServiceError> {
        let deadline = Instant::now() + self.config.deadline;
        loop {
            let row = self.kept_on(caller, subject).await?;
            if !held && !row.as_ref().is_some_and(|row| row.held) {
                return Err(ServiceError::NothingHeld);
            }
            if row.is_none() {
                self.keys.forget_lookup(&caller.realm, subject);
            }
            let found = self.keys.of_subject(&caller.realm, subject).await.map_err(of_key)?;
            let action = if held { Action::SubjectHeld } else { Action::SubjectReleased };
            let detail = [("subject_key", found.id().uuid().to_string())];
            let mut draft = subject_draft(self, &found, action, &detail, Some(SubjectChange::Held(found.id(), held)));
            draft.facts.extend(reason.clone().map(|reason| ("reason".to_owned(), reason)));
            match self.append(caller, draft, deadline).await {
                Ok(done) => return Ok((found.id(), done.place)),
                Err(NotAppended::Refused(_)) => self.keys.forget(&found, &caller.realm, Some(subject)),
                Err(NotAppended::Other(failure)) => return Err(failure),
            }
            in_time(deadline)?;
        }
    }

    /// What the log, not this process's memory, keeps for a subject.
    async fn kept_on(&self, caller: &Caller, subject: &str) -> Result<Option<DataKeyRow>, ServiceError> {
        let lookup = self.keys.keyring().lookup(&caller.realm, subject).map_err(internal)?;
        let found = self.log.data_keys_by_lookup(&[lookup]).await.map_err(of_read)?;
        Ok(found.into_iter().flatten().next())
    }
}

fn subject_draft<'a>(
    service: &SessionService,
    found: &'a Found,
    action: Action,
    detail: &[(&str, String)],
    change: Option<SubjectChange>,
) -> Draft<'a> {
    Draft {
        action,
        outcome: Outcome::Success,
        now: service.now(),
        found,
        session: None,
        version: None,
        base: None,
        event: None,
        detail: detail.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Detail>(),
        facts: Default::default(),
        claims: Claims { subject: change, ..Claims::default() },
    }
}
