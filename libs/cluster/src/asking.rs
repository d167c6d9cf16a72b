//! What one node asks another and gets one message in answer to: within a deadline, or not at all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use crate::Incarnation;

/// Who is to answer a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// Whoever keeps sessions of a log.
    Sessions,
    /// Whoever keeps sessions that no log stands behind.
    Transient,
}

impl Topic {
    /// Its byte in messages.
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Sessions => 1,
            Self::Transient => 2,
        }
    }
}

/// Answers what other nodes ask.
#[async_trait]
pub trait Answers: Send + Sync + 'static {
    /// The answer to a question, of at most [`Cluster::max_answer`](crate::Cluster::max_answer) bytes; `None` leaves it unanswered. A
    /// question may come again under another number, where its answer was lost.
    async fn answer(&self, from: Incarnation, question: Vec<u8>) -> Option<Vec<u8>>;
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It was not sent: nobody has heard the question.
    #[error("the question could not be sent")]
    Unsent,
    /// It was sent. Whether it was heard is not known.
    #[error("the question was not answered in time")]
    Unanswered,
}

/// Questions that this node answers at a time. Beyond them it leaves some unanswered: whoever asked knows what to do then.
const ANSWERING: usize = 1_024;

/// Who was asked, and who waits for it.
type Asked = (Incarnation, oneshot::Sender<Vec<u8>>);

/// The questions of a node, and who answers those of others.
pub(crate) struct Asking {
    number: AtomicU64,
    pending: Mutex<HashMap<u64, Asked>>,
    sessions: OnceLock<Arc<dyn Answers>>,
    transient: OnceLock<Arc<dyn Answers>>,
    pub(crate) room: Arc<Semaphore>,
}

impl Default for Asking {
    fn default() -> Self {
        Self {
            number: AtomicU64::new(0),
            pending: Mutex::default(),
            sessions: OnceLock::new(),
            transient: OnceLock::new(),
            room: Arc::new(Semaphore::new(ANSWERING)),
        }
    }
}

/// A question that waits for its answer. Dropped, it is forgotten.
pub(crate) struct Pending<'a> {
    asking: &'a Asking,
    pub(crate) number: u64,
    pub(crate) answer: oneshot::Receiver<Vec<u8>>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.asking.pending.lock().remove(&self.number);
    }
}

impl Asking {
    pub(crate) fn begin(&self, who: Incarnation) -> Pending<'_> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.pending.lock().insert(number, (who, sender));
        Pending { asking: self, number, answer }
    }

    /// An answer came. It counts only from whoever was asked.
    pub(crate) fn answered(&self, from: Incarnation, number: u64, body: Vec<u8>) {
        let mut pending = self.pending.lock();
        if pending.get(&number).is_some_and(|(asked, _)| *asked == from)
            && let Some((_, sender)) = pending.remove(&number)
        {
            // Whoever asked may have given up.
            let _given_up = sender.send(body);
        }
    }

    /// Nothing more will come from this node: whoever waits for it need not.
    pub(crate) fn gone(&self, who: Incarnation) {
        self.pending.lock().retain(|_, (asked, _)| *asked != who);
    }

    /// Who answers questions of a topic; `false` if somebody does already.
    pub(crate) fn answers_by(&self, topic: Topic, answers: Arc<dyn Answers>) -> bool {
        match topic {
            Topic::Sessions => self.sessions.set(answers),
            Topic::Transient => self.transient.set(answers),
        }
        .is_ok()
    }

    pub(crate) fn answers(&self, topic: u8) -> Option<Arc<dyn Answers>> {
        let topics = [(Topic::Sessions, &self.sessions), (Topic::Transient, &self.transient)];
        topics.into_iter().find(|(known, _)| known.byte() == topic).and_then(|(_, answers)| answers.get().cloned())
    }
}
