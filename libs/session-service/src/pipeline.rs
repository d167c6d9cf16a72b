//! What happens to an entry after it is durable: applied to the view, then answered.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use audit_log::{CommitSink, Committed, LogHead, NotDone, Place, Recent, RecentEntry};
use session_model::{Event, Head, KeyId, Recorded, Session, Timestamp, apply};
use session_view::SessionView;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::holding::Holding;
use crate::progress::Progress;
use crate::replication::Told;

/// Goes with an entry from submission to answer.
pub(crate) struct Ticket {
    /// The change of a session that the entry is, if it is one.
    pub(crate) change: Option<Change>,
    /// The addresses that its sealed part names.
    pub(crate) addresses: Vec<IpAddr>,
    /// Who waits.
    pub(crate) reply: oneshot::Sender<Result<Done, NotDone>>,
}

/// A change of a session that is being recorded.
pub(crate) struct Change {
    /// The state it was decided on; `None` for a creation.
    pub(crate) base: Option<Arc<Session>>,
    pub(crate) event: Event,
    pub(crate) data_key: KeyId,
}

/// What a durable entry comes to.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    pub(crate) place: Place,
    /// The session after it.
    pub(crate) session: Option<Arc<Session>>,
}

/// Takes what was committed to the view, then to whoever waits.
pub(crate) struct Pipeline {
    view: Arc<dyn SessionView>,
    pub(crate) progress: Arc<Progress>,
    outbox: Arc<OnceLock<mpsc::Sender<Told>>>,
    recent: Arc<Recent>,
    holding: Arc<OnceLock<Arc<Holding>>>,
    observe: Box<dyn Fn(Timestamp) + Send + Sync>,
}

impl Pipeline {
    pub(crate) fn new(
        view: Arc<dyn SessionView>,
        progress: Arc<Progress>,
        outbox: Arc<OnceLock<mpsc::Sender<Told>>>,
        recent: Arc<Recent>,
        holding: Arc<OnceLock<Arc<Holding>>>,
        observe: impl Fn(Timestamp) + Send + Sync + 'static,
    ) -> Self {
        Self { view, progress, outbox, recent, holding, observe: Box::new(observe) }
    }
}

impl CommitSink for Pipeline {
    type Ticket = Ticket;

    async fn committed(&self, entries: Vec<Committed<Ticket>>) {
        let Some(first) = entries.first().map(|entry| entry.place) else { return };
        let mut states = Vec::with_capacity(entries.len());
        let mut answers = Vec::with_capacity(entries.len());
        let mut recent = Vec::with_capacity(entries.len());
        for Committed { ticket, leaf, place } in entries {
            let session = ticket.change.and_then(|change| after(change, &leaf, place));
            states.extend(session.clone());
            answers.push((ticket.reply, Done { place, session }));
            recent.push(RecentEntry { index: place.index, leaf, addresses: ticket.addresses });
        }
        let losses = self.view.losses();
        // Before it is asked what the view holds: what is passed over by that is of a log that is known to be this long.
        self.progress.saw(first.tree_size);
        let mut held = states.clone();
        if let Some(holding) = self.holding.get() {
            held.retain(|state| holding.takes(state.id, state.head.index));
        }
        match self.view.apply(&held).await {
            Ok(_applied) if self.view.losses() == losses => {
                self.progress.applied(first.index, first.tree_size);
                if let Some(outbox) = self.outbox.get() {
                    // Never waits: what is not told is read from the log.
                    let _not_told = outbox.try_send(Told { first: first.index, end: first.tree_size, states });
                }
            }
            // It may have been lost with what was lost meanwhile.
            Ok(_applied) => self.progress.behind.notify_one(),
            Err(failure) => {
                // It has happened all the same: the follower brings the view up to date when it can.
                warn!(failure = &failure as &dyn std::error::Error, "the view could not be told of a commit");
                self.progress.behind.notify_one();
            }
        }
        for (reply, done) in answers {
            // Whoever asked may have gone; the entry has not.
            let _gone = reply.send(Ok(done));
        }
        self.recent.hold(recent);
    }

    fn not_done(&self, ticket: Ticket, why: NotDone) {
        let _gone = ticket.reply.send(Err(why));
    }

    fn head(&self, head: &LogHead) {
        (self.observe)(head.time);
        self.progress.saw(head.size());
    }
}

fn after(change: Change, leaf: &session_model::Leaf, place: Place) -> Option<Arc<Session>> {
    let recorded = Recorded {
        session: leaf.session_id?,
        realm: leaf.realm.clone(),
        version: leaf.version?,
        time: leaf.time,
        head: Head { index: place.index, hash: place.hash, tree_size: place.tree_size },
        data_key: change.data_key,
    };
    apply(change.base.map(Arc::unwrap_or_clone), &change.event, &recorded).map(Arc::new)
}
