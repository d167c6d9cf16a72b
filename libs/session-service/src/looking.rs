//! How long the log is: one question for everybody who wants to know.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use audit_log::{LogStore, ReadError};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use session_model::TreeSize;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use crate::progress::Progress;
use crate::service::Contact;

/// Asks the log how long it is, and tells [`Progress`] and [`Contact`] what it answers.
pub(crate) struct Looking {
    log: Arc<dyn LogStore>,
    progress: Arc<Progress>,
    contact: Arc<Contact>,
    questions: Mutex<Questions>,
}

#[derive(Default)]
struct Questions {
    /// Oldest first.
    under_way: VecDeque<Question>,
    /// When the last one was asked.
    last: Option<Instant>,
}

#[derive(Clone)]
struct Question {
    asked: Instant,
    running: AbortHandle,
    /// Whoever waits for it gets the same.
    answer: Shared<BoxFuture<'static, Result<TreeSize, Arc<ReadError>>>>,
}

/// How often the log is asked, whether it has answered the last time or not.
const EVERY: Duration = Duration::from_millis(250);
/// Questions under way at most: those of two seconds.
const QUESTIONS: usize = 8;

impl Looking {
    pub(crate) fn new(log: Arc<dyn LogStore>, progress: Arc<Progress>, contact: Arc<Contact>) -> Self {
        Self { log, progress, contact, questions: Mutex::default() }
    }

    /// How long the log is now, or was at some time after this was called.
    ///
    /// A slow log is asked again and again: what is known stays as old as one answer takes, where asking one after another would let
    /// it grow to twice that. An answer to a later question counts as well, should the first be lost on the way.
    pub(crate) async fn look(&self) -> Result<TreeSize, Arc<ReadError>> {
        let began = Instant::now();
        let mut first = self.ask();
        loop {
            match timeout_at(self.next(), &mut first.answer).await {
                Ok(answer) if answer.is_err() || first.asked >= began => return answer,
                Ok(_from_before) => first = self.ask(),
                Err(_elapsed) if self.contact.asked_since(began) => return Ok(self.progress.size()),
                Err(_elapsed) => drop(self.ask()),
            }
        }
    }

    /// When it is time to ask again: a while after the last question, however long its answer took.
    pub(crate) fn next(&self) -> Instant {
        let last = self.questions.lock().last;
        last.map_or_else(Instant::now, |last| last + EVERY)
    }

    /// Waits for what is being asked already, or asks. The answer may be to a question from before this was called.
    pub(crate) async fn join(&self) -> Result<TreeSize, Arc<ReadError>> {
        let question = {
            let mut questions = self.questions.lock();
            questions.newest().unwrap_or_else(|| self.ask_beside(&mut questions))
        };
        question.answer.await
    }

    /// Asks, or joins the newest question where too many are under way.
    fn ask(&self) -> Question {
        let mut questions = self.questions.lock();
        questions.last = Some(Instant::now());
        questions.under_way.retain(|question| !question.running.is_finished());
        let newest = questions.newest().filter(|_| questions.under_way.len() >= QUESTIONS);
        newest.unwrap_or_else(|| self.ask_beside(&mut questions))
    }

    fn ask_beside(&self, questions: &mut Questions) -> Question {
        let (log, progress, contact) = (Arc::clone(&self.log), Arc::clone(&self.progress), Arc::clone(&self.contact));
        let asked = Instant::now();
        // A task of its own: it is answered even if nobody waits for it any more.
        let task = tokio::spawn(async move {
            let size = log.head().await?.size();
            // In this order: a peer that is told of the time must be told of no smaller size.
            progress.saw(size);
            contact.answered(asked);
            progress.knows(asked, size);
            Ok(size)
        });
        let running = task.abort_handle();
        let answer = async move {
            let answer = task.await.unwrap_or_else(|failure| Err(ReadError::Unavailable(failure.into())));
            answer.map_err(Arc::new)
        };
        let question = Question { asked, running, answer: answer.boxed().shared() };
        questions.under_way.push_back(question.clone());
        question
    }
}

impl Questions {
    fn newest(&self) -> Option<Question> {
        self.under_way.back().filter(|newest| !newest.running.is_finished()).cloned()
    }
}
