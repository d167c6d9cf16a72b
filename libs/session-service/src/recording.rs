//! What is recorded and is no change of a session.

use audit_log::{Claims, Credential, CredentialChange, Place};
use session_model::{Action, Outcome};
use tokio::time::Instant;

use crate::change::{Draft, NotAppended, in_time};
use crate::error::ServiceError;
use crate::failures::of_key;
use crate::request::{Caller, Record};
use crate::service::{HOUSE, SessionService};

impl SessionService {
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
}
