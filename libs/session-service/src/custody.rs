//! What the service holds on a subject as a whole: erased on demand, unless a legal hold keeps it.

use std::future::Future;
use std::time::Duration;

use audit_log::{Claims, DataKeyRow, Place, Refusal, SubjectChange};
use session_model::{Action, Detail, EndReason, KeyId, Outcome};
use tokio::time::{Instant, sleep};

use crate::change::{Draft, NotAppended, in_time};
use crate::data_keys::Found;
use crate::error::ServiceError;
use crate::failures::{internal, of_key, of_read};
use crate::service::{Caller, HOUSE, Record, SessionService};

/// What was destroyed.
#[derive(Debug, Clone)]
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

/// A pause before an erasure is tried again that met something else under way for the subject.
const BUSY: Duration = Duration::from_millis(20);

impl SessionService {
    /// Erases a subject: ends its sessions, then destroys its data key and those it owns, in the transaction that records it. What
    /// they sealed cannot be read any more, by anybody; leaves and proofs stay as they are. `before` is called, with the key
    /// still there, before each attempt to destroy it.
    ///
    /// # Errors
    /// [`ServiceError::NothingHeld`] if the realm holds nothing on the subject, [`ServiceError::LegalHold`] if it is held.
    pub async fn erase_subject<F>(
        &self,
        caller: &Caller,
        subject: &str,
        before: impl Fn(KeyId) -> F,
    ) -> Result<Erased, ServiceError>
    where
        F: Future<Output = Result<(), ServiceError>>,
    {
        let deadline = Instant::now() + self.config.deadline * 6;
        let mut ended = 0;
        loop {
            let row = self.kept_on(caller, subject).await?.ok_or(ServiceError::NothingHeld)?;
            if row.held {
                return Err(ServiceError::LegalHold);
            }
            let reason = EndReason::Requested("erasure".into());
            ended += self.end_subject(caller, subject, None, reason).await?.len();
            before(row.id).await?;
            let owned = self.log.data_keys_owned_by(row.id).await.map_err(of_read)?.len();
            let house = self.keys.of_subject(&caller.realm, HOUSE).await.map_err(of_key)?;
            let detail = [("subject_key", row.id.uuid().to_string()), ("sessions_ended", ended.to_string())];
            let draft = subject_draft(self, &house, Action::SubjectErased, &detail, SubjectChange::Erased(row.id));
            match self.append(caller, draft, Instant::now() + self.config.deadline).await {
                Ok(done) => {
                    self.keys.forget_subject(row.id, &caller.realm, subject);
                    return Ok(Erased { key: Some(row.id), ended, keys: owned + 1, place: done.place });
                }
                Err(NotAppended::Refused(Refusal::LegalHold)) => return Err(ServiceError::LegalHold),
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

    /// Records the erasure of a subject that the log holds nothing on.
    pub(crate) async fn record_erasure(&self, caller: &Caller, ended: usize) -> Result<Place, ServiceError> {
        let record = Record {
            action: Action::SubjectErased,
            outcome: Outcome::Success,
            detail: [("sessions_ended".to_owned(), ended.to_string())].into(),
            facts: Default::default(),
            credential: None,
        };
        self.record(caller, record).await
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
            let mut draft = subject_draft(self, &found, action, &detail, SubjectChange::Held(found.id(), held));
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
    change: SubjectChange,
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
        claims: Claims { subject: Some(change), ..Claims::default() },
    }
}
