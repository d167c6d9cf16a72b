//! What is known of a session: from this process, from the view, or from the log, whichever is the first to know.

use std::sync::Arc;
use std::time::Duration;

use session_model::{Action, LeafIndex, Outcome, Session, SessionId, State, Timestamp, expiry};
use session_view::{ViewError, Viewed};
use tokio::time::{Instant, sleep};
use tracing::{error, warn};

use crate::belief::{Distrust, FromLog};
use crate::data_keys::Found;
use crate::error::{ServiceError, Unavailable};
use crate::failures::{of_key, of_read, of_replay};
use crate::request::{Caller, Record};
use crate::service::SessionService;

/// How long a request that must see a leaf index waits for this node to catch up, before the log is read for it.
pub(crate) const CATCH_UP: Duration = Duration::from_millis(250);
/// How long a view that is known to lack something may take to have it, before the log is read instead.
const MOMENT: Duration = Duration::from_millis(50);

impl SessionService {
    /// What is known of a session: from this process, the view, or the log, whichever is the first to know.
    pub(crate) async fn state(
        &self,
        id: SessionId,
        min_index: Option<LeafIndex>,
    ) -> Result<Option<Viewed>, ServiceError> {
        if let Some(min_index) = min_index
            && !self.in_time(self.caught_up(min_index)).await?
        {
            return self.read_through(FromLog::MinIndex, id).await;
        }
        if let Some(why) = self.distrust_of_progress() {
            let known = async {
                // One question to the log for all who wait, rather than one for each of their sessions.
                if why == Distrust::Stale && self.becomes_fresh().await {
                    return Ok(None);
                }
                self.reads_from_log.add(FromLog::Distrusted(why));
                self.state_from_log(id).await.map(Some)
            };
            if let Some(state) = self.in_time(known).await? {
                return Ok(state);
            }
        }
        if let Some(holding) = self.holding.get()
            && !holding.holds(id)
        {
            return match self.state_of_holder(holding, id).await {
                Some(viewed) => Ok(Some(viewed)),
                None => self.read_through(FromLog::Holders, id).await,
            };
        }
        // What lies in front of a shared view may not have heard yet what is in it.
        if min_index.is_none()
            && let Some(viewed) = self.view.peek(id)
        {
            return Ok(Some(viewed));
        }
        let why = match self.view.get(id).await {
            Ok(Some(viewed)) => return Ok(Some(viewed)),
            Err(ViewError::Undecodable(_)) => {
                self.quarantine(id).await;
                return self.read_through(FromLog::Undecodable, id).await;
            }
            Ok(None) => FromLog::Absent,
            Err(ViewError::Unavailable(_)) if self.view.status().in_doubt => FromLog::Distrusted(Distrust::Losses),
            Err(ViewError::Unavailable(_)) => FromLog::Unavailable,
        };
        // What this node has come to hold it may not have yet.
        if let Some(holding) = self.holding.get().filter(|holding| !holding.status().1)
            && let Some(viewed) = self.state_of_holder(holding, id).await
        {
            return Ok(Some(viewed));
        }
        self.read_through(why, id).await
    }

    /// What the log knows of a session, where the view was to know it.
    async fn read_through(&self, why: FromLog, id: SessionId) -> Result<Option<Viewed>, ServiceError> {
        self.reads_from_log.add(why);
        self.in_time(self.state_from_log(id)).await
    }

    /// Whether a view that was whole once turns out to be so still, or within a moment, when the log says how long it is.
    async fn becomes_fresh(&self) -> bool {
        if self.looking.join().await.is_err() {
            return false;
        }
        let deadline = Instant::now() + MOMENT;
        while self.distrust_of_progress().is_some() {
            if Instant::now() >= deadline {
                return false;
            }
            self.progress.behind.notify_one();
            sleep(Duration::from_millis(2)).await;
        }
        true
    }

    /// What the log knows of a session; the view learns of it, if it holds it.
    pub(crate) async fn state_from_log(&self, id: SessionId) -> Result<Option<Viewed>, ServiceError> {
        let right = self.right_to_hold(id);
        let Some(session) = self.replay.session(id, None).await.or_else(of_replay)? else { return Ok(None) };
        self.contact.made();
        let session = Arc::new(session);
        if right.is_some()
            && right == self.right_to_hold(id)
            && let Err(failure) = self.view.apply(std::slice::from_ref(&session)).await
            && !matches!(failure, ViewError::Unavailable(_))
        {
            warn!(%failure, session = %id, "the view did not take a session read from the log");
        }
        Ok(Some(match session.tombstone() {
            Some(tombstone) => Viewed::Ended(Arc::new(tombstone)),
            None => Viewed::Active(session),
        }))
    }

    /// A session with all that belongs to it, ended or not.
    pub(crate) async fn full(&self, caller: &Caller, id: SessionId) -> Result<Arc<Session>, ServiceError> {
        let session = match self.state(id, caller.min_index).await? {
            Some(Viewed::Active(session)) => Some(session),
            // A view keeps only the tombstone of an ended session; the log keeps the rest.
            Some(Viewed::Ended(tombstone)) if tombstone.realm == caller.realm => {
                self.replay.session(id, None).await.or_else(of_replay)?.map(Arc::new)
            }
            Some(Viewed::Ended(_)) | None => None,
        };
        session.filter(|session| session.realm == caller.realm).ok_or(ServiceError::NotFound)
    }

    /// The session as it is at this moment: one whose deadline has passed is shown as ended, before the reaper comes by.
    pub(crate) fn shown(&self, session: Arc<Session>) -> Arc<Session> {
        match (session.ended(), expiry(&session, self.now())) {
            (None, Some(ended)) => {
                let mut session = Arc::unwrap_or_clone(session);
                session.state = State::Ended(ended);
                Arc::new(session)
            }
            (Some(_), _) | (None, None) => session,
        }
    }

    /// Counts a use: marks it where that is worth a mark, or asked for.
    pub(crate) async fn used(&self, session: Arc<Session>, now: Timestamp, always: bool) -> Arc<Session> {
        if !always && !session.use_is_worth_a_mark(now) {
            return session;
        }
        self.marks.lock().insert(session.id, now);
        if let Err(failure) = self.view.mark_used(&[(session.id, now)]).await
            && !matches!(failure, ViewError::Unavailable(_))
        {
            warn!(%failure, session = %session.id, "a use could not be marked in the view");
        }
        self.tell_use(session.id, now);
        let mut session = Arc::unwrap_or_clone(session);
        session.last_seen_at = session.last_seen_at.max(now);
        Arc::new(session)
    }

    /// The session if a use that this process has not seen keeps it alive at `now`.
    pub(crate) async fn used_elsewhere(
        &self,
        session: &Arc<Session>,
        now: Timestamp,
    ) -> Result<Option<Arc<Session>>, ServiceError> {
        if session.expires_at <= now {
            return Ok(None);
        }
        let waiting = self.marks.lock().get(&session.id).copied();
        let used = match waiting {
            Some(used) => Some(used),
            None => self.log.uses(&[session.id]).await.map_err(of_read)?.into_iter().flatten().next(),
        };
        let Some(used) = used.filter(|used| *used > session.last_seen_at) else { return Ok(None) };
        let mut session = Arc::unwrap_or_clone(Arc::clone(session));
        session.last_seen_at = used;
        if expiry(&session, now).is_some() {
            return Ok(None);
        }
        if let Err(failure) = self.view.mark_used(&[(session.id, used)]).await {
            warn!(%failure, session = %session.id, "a use could not be marked in the view");
        }
        Ok(Some(Arc::new(session)))
    }

    /// Whether the view reflects an index, or comes to within a moment.
    pub(crate) async fn caught_up(&self, index: LeafIndex) -> Result<bool, ServiceError> {
        let deadline = Instant::now() + CATCH_UP;
        while self.progress.reflected().0 <= index.0 {
            self.progress.behind.notify_one();
            if Instant::now() >= deadline {
                let head = self.log.head().await.map_err(of_read)?;
                self.progress.saw(head.size());
                if head.size().0 <= index.0 {
                    return Err(ServiceError::Unavailable(Unavailable::Behind));
                }
                return Ok(false);
            }
            sleep(Duration::from_millis(2)).await;
        }
        Ok(true)
    }

    /// Puts undecodable data of the view aside, and records that.
    pub(crate) async fn quarantine(&self, id: SessionId) {
        if let Err(failure) = self.view.quarantine(id).await {
            warn!(%failure, session = %id, "undecodable data could not be quarantined");
            return;
        }
        let Some(realm) = self.config.realms.keys().min() else { return };
        let record = Record {
            action: Action::ViewQuarantined,
            outcome: Outcome::Success,
            detail: [("session".to_owned(), id.to_string())].into(),
            facts: Default::default(),
            credential: None,
        };
        if let Err(failure) = Box::pin(self.record(&self.node_caller(realm), record)).await {
            error!(%failure, session = %id, "a quarantine could not be recorded");
        }
    }

    pub(crate) async fn key_of(&self, session: &Session) -> Result<Found, ServiceError> {
        let key = self.keys.by_id(session.data_key).await.map_err(of_key)?.ok_or(ServiceError::NotFound)?;
        Ok(Found::Existing(session.data_key, key))
    }
}
