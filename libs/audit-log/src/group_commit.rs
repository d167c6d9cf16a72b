//! The one task of a process that appends to the log.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use session_model::{KeyId, Leaf, LeafHash, LeafIndex, TreeSize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{error, info, warn};

use crate::{
    AppendError, Appended, Batch, LogHead, LogStore, LogWriter, Proposed, ReadError, Refusal, Refused, Sequencer, Turn,
};

/// What is done with entries once their fate is known. `Ticket` is whatever the submitter needs to be answered.
pub trait CommitSink: Send + Sync + 'static {
    /// Goes with an entry from submission to answer.
    type Ticket: Send + 'static;

    /// These entries are durable, in this order. Called for one commit after another, never two at once; the next commit runs
    /// meanwhile.
    fn committed(&self, entries: Vec<Committed<Self::Ticket>>) -> impl Future<Output = ()> + Send;

    /// This entry was not appended, and never will be.
    fn not_done(&self, ticket: Self::Ticket, why: NotDone);

    /// The log was found to end here: after a commit of ours, or extended by another process.
    fn head(&self, head: &LogHead);
}

/// An entry that is durable.
#[derive(Debug)]
pub struct Committed<T> {
    /// The submitter's.
    pub ticket: T,
    /// The leaf as it was written: its time may have been moved forward.
    pub leaf: Leaf,
    /// Where it stands.
    pub place: Place,
}

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its index.
    pub index: LeafIndex,
    /// Hash of its leaf.
    pub hash: LeafHash,
    /// Size of the tree whose signed checkpoint was stored with it.
    pub tree_size: TreeSize,
}

/// Why an entry was not appended. In every case it is not in the log and will not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// The log refused it.
    #[error("the log refused the entry: {0:?}")]
    Refused(Refusal),
    /// The log cannot be written now.
    #[error("the log cannot be written now")]
    Unavailable,
    /// Too many entries wait already, or the service is stopping.
    #[error("too many entries wait for the log")]
    Overloaded,
}

/// How a [`GroupCommit`] behaves.
#[derive(Debug, Clone, Copy)]
pub struct GroupCommitConfig {
    /// Entries that may wait. Default 4,096: one second of the slowest disk we would run on.
    pub queue: usize,
    /// Entries of one commit at most. Default 512: larger ones save nothing more and lengthen the tail.
    pub batch: usize,
    /// How long one commit is tried before those in it are told. Default 4 s.
    pub append_timeout: Duration,
}

impl Default for GroupCommitConfig {
    fn default() -> Self {
        Self { queue: 4_096, batch: 512, append_timeout: Duration::from_secs(4) }
    }
}

/// Feeds the log: takes whatever is queued the moment the last commit returned (no timer), appends it as one batch, and hands
/// it to the sink. At most one batch is in flight.
///
/// As long as nobody else appends, a batch is made for the head that the last one left, and appending it is all that is asked of the log. Once others
/// were found to have moved the head, a batch waits for its [`Turn`], and is made in it of all that waits by then: so N busy writers commit one after the other, and
/// none is beaten to the head again and again. Who has found the head where he left it for some batches does without a turn again.
#[derive(Debug)]
pub struct GroupCommit<S: CommitSink> {
    queue: Mutex<Option<mpsc::Sender<Queued<S::Ticket>>>>,
    sender: mpsc::WeakSender<Queued<S::Ticket>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    available: Arc<AtomicBool>,
    rivalry: Arc<Rivalry>,
}

#[derive(Debug)]
struct Queued<T> {
    proposed: Proposed,
    ticket: T,
    progress: Arc<AtomicU8>,
}

impl<T> Queued<T> {
    /// What was queued, unless it was withdrawn.
    fn take(self) -> Option<(Proposed, T)> {
        let taken = self.progress.compare_exchange(WAITING, TAKEN, Ordering::AcqRel, Ordering::Acquire);
        taken.is_ok().then_some((self.proposed, self.ticket))
    }
}

type Queue<S> = mpsc::Receiver<Queued<<S as CommitSink>::Ticket>>;

/// What other writers of the log cost this one.
#[derive(Debug, Default)]
struct Rivalry {
    lost: AtomicU64,
    turns: AtomicU64,
}

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// Lets a submitter who has waited long enough take an entry back.
#[derive(Debug, Clone)]
pub struct Withdraw(Arc<AtomicU8>);

impl Withdraw {
    /// Takes the entry back if it still waits. `true`: it is not in the log and never will be, and its ticket is dropped.
    /// `false`: it is in a batch already and its fate is not known here.
    pub fn try_withdraw(&self) -> bool {
        self.0.compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl<S: CommitSink> GroupCommit<S> {
    /// Starts the two tasks: one appends, one hands what was appended to the sink.
    pub fn start(log: Arc<dyn LogStore>, sequencer: Sequencer, sink: Arc<S>, config: GroupCommitConfig) -> Self {
        let (sender, receiver) = mpsc::channel(config.queue);
        // Two commits may wait for the view; a third waits with them, so that a stuck view slows writers down.
        let (done, committed) = mpsc::channel(2);
        let available = Arc::new(AtomicBool::new(true));
        let rivalry: Arc<Rivalry> = Arc::default();
        let appender = Appender {
            log,
            sequencer,
            sink: Arc::clone(&sink),
            config,
            done,
            head: None,
            wary: 0,
            available: Arc::clone(&available),
            rivalry: Arc::clone(&rivalry),
        };
        let tasks = vec![tokio::spawn(appender.run(receiver)), tokio::spawn(hand_over(sink, committed))];
        Self {
            sender: sender.downgrade(),
            queue: Mutex::new(Some(sender)),
            tasks: Mutex::new(tasks),
            available,
            rivalry,
        }
    }

    /// Queues an entry. Its ticket comes back through the sink, or is dropped if the entry is withdrawn.
    ///
    /// # Errors
    /// The ticket, if the queue is full or closed: the entry is not in the log and never will be.
    pub fn submit(&self, proposed: Proposed, ticket: S::Ticket) -> Result<Withdraw, S::Ticket> {
        let progress = Arc::new(AtomicU8::new(WAITING));
        let withdraw = Withdraw(Arc::clone(&progress));
        let queued = Queued { proposed, ticket, progress };
        let Some(sender) = self.sender.upgrade() else { return Err(queued.ticket) };
        match sender.try_send(queued) {
            Ok(()) => Ok(withdraw),
            Err(mpsc::error::TrySendError::Full(queued) | mpsc::error::TrySendError::Closed(queued)) => {
                Err(queued.ticket)
            }
        }
    }

    /// Whether the last attempt to append succeeded, or the log could be reached since.
    pub fn is_available(&self) -> bool {
        self.available.load(Ordering::Relaxed) && self.sender.strong_count() > 0
    }

    /// Entries that wait.
    pub fn waiting(&self) -> usize {
        self.sender.upgrade().map_or(0, |sender| sender.max_capacity() - sender.capacity())
    }

    /// How many batches were made for a head that others had moved meanwhile, and so had to be made anew.
    pub fn lost(&self) -> u64 {
        self.rivalry.lost.load(Ordering::Relaxed)
    }

    /// How many batches were made in a turn, because others append too.
    pub fn turns(&self) -> u64 {
        self.rivalry.turns.load(Ordering::Relaxed)
    }

    /// Takes nothing more, appends and hands over what waits, and returns when all is done.
    pub async fn close(&self) {
        drop(self.queue.lock().take());
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            if let Err(failure) = task.await {
                error!(%failure, "a group commit task failed");
            }
        }
    }
}

async fn hand_over<S: CommitSink>(sink: Arc<S>, mut committed: mpsc::Receiver<Vec<Committed<S::Ticket>>>) {
    while let Some(entries) = committed.recv().await {
        sink.committed(entries).await;
    }
}

/// How long a log that did not take a batch is left alone, unless somebody asks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How many turns in a row find the head where we left it before a batch does without one. After a single one two busy writers would lose every second attempt;
/// and who has the log to himself again pays two round trips more for that many batches, once.
const WARY: u32 = 8;

/// No turn was had: nothing was done, and nothing is held.
struct NoTurn;

/// Parallel requests queue in another order than they looked at the clock. Who takes a seat that another gives up comes after him, so that no reader of the
/// log ever counts one too many.
fn in_order<T>(mut entries: Vec<(Proposed, T)>) -> (Vec<Proposed>, Vec<T>) {
    let freed: HashSet<KeyId> = entries.iter().filter_map(|(entry, _)| entry.claims.free_seat).collect();
    let waits_for_seat =
        |entry: &Proposed| !freed.is_empty() && entry.claims.take_seat.is_some_and(|seat| freed.contains(&seat.key));
    entries.sort_by_key(|(entry, _)| (waits_for_seat(entry), entry.leaf.time));
    entries.into_iter().unzip()
}

struct Appender<S: CommitSink> {
    log: Arc<dyn LogStore>,
    sequencer: Sequencer,
    sink: Arc<S>,
    config: GroupCommitConfig,
    done: mpsc::Sender<Vec<Committed<S::Ticket>>>,
    /// Where we believe the log ends; `None` after anything that leaves it in doubt.
    head: Option<LogHead>,
    /// How many batches more wait for their turn, unless others move the head again.
    wary: u32,
    available: Arc<AtomicBool>,
    rivalry: Arc<Rivalry>,
}

impl<S: CommitSink> Appender<S> {
    async fn run(mut self, mut queue: Queue<S>) {
        let mut waiting = Vec::with_capacity(self.config.batch);
        loop {
            let received = queue.recv_many(&mut waiting, self.config.batch);
            let received = if self.available.load(Ordering::Relaxed) {
                received.await
            } else {
                // Nobody may come any more, because the node is not ready: it has to find out by itself that it could be.
                match timeout(LOOK_AGAIN, received).await {
                    Ok(received) => received,
                    Err(_elapsed) => {
                        self.look_again().await;
                        continue;
                    }
                }
            };
            if received == 0 {
                return;
            }
            let (entries, tickets) = in_order(waiting.drain(..).filter_map(Queued::take).collect());
            self.commit(&mut queue, entries, tickets).await;
        }
    }

    async fn commit(&mut self, queue: &mut Queue<S>, mut entries: Vec<Proposed>, mut tickets: Vec<S::Ticket>) {
        let deadline = Instant::now() + self.config.append_timeout;
        let log = Arc::clone(&self.log);
        let mut turn: Option<Box<dyn Turn + '_>> = None;
        let mut once_more = true;
        while !entries.is_empty() {
            if self.wary > 0 && turn.is_none() {
                turn = match self.turn(&*log, deadline).await {
                    Ok(turn) => turn,
                    Err(NoTurn) => return self.give_up(tickets),
                };
                if turn.is_some() {
                    // Whoever came while we waited needs no turn of his own.
                    (entries, tickets) = self.joined(queue, entries, tickets);
                }
            }
            let Some(head) = self.known_head(deadline).await else {
                return self.give_up(tickets);
            };
            let batch = match self.sequencer.ordered(&head, entries) {
                Ok(batch) => batch,
                Err(failure) => {
                    error!(%failure, "a batch cannot be sequenced");
                    return self.give_up(tickets);
                }
            };
            let in_turn = turn.is_some();
            let appending = async {
                match &mut turn {
                    Some(turn) => turn.append(&batch).await,
                    None => log.append(&batch).await,
                }
            };
            let answered = timeout_at(deadline, appending).await;
            // A turn outlives a refusal and nothing else: what became of a batch is not found out as long as its head is held.
            if !matches!(answered, Ok(Ok(Appended::Refused(_)))) {
                turn = None;
            }
            let outcome = match answered {
                Ok(Err(AppendError::NotDone(failure))) => {
                    warn!(failure = &*failure as &dyn std::error::Error, "the log did not take a batch");
                    self.head = None;
                    // Who stood still in his turn was put out. Now that he goes on there is no reason to turn his clients away.
                    if in_turn && once_more && Instant::now() < deadline {
                        once_more = false;
                        entries = batch.entries;
                        continue;
                    }
                    return self.give_up(tickets);
                }
                Ok(Ok(outcome)) => outcome,
                Ok(Err(AppendError::Unknown(failure))) => {
                    warn!(
                        failure = &*failure as &dyn std::error::Error,
                        "the fate of a batch is unknown: asking the log"
                    );
                    self.resolve(&batch).await
                }
                Err(_elapsed) => {
                    warn!("the log did not answer in time: asking what became of a batch");
                    self.resolve(&batch).await
                }
            };
            match outcome {
                Appended::Committed => return self.committed(batch, tickets).await,
                Appended::Moved(head) => {
                    // One that was not done, and is found so, is told the same; but nobody was in its way.
                    if head.size() != batch.expected {
                        self.wary = WARY;
                        self.rivalry.lost.fetch_add(1, Ordering::Relaxed);
                    }
                    self.sink.head(&head);
                    self.head = Some(head);
                    entries = batch.entries;
                }
                Appended::Refused(refused) => (entries, tickets) = self.without(refused, batch.entries, tickets),
            }
            if Instant::now() >= deadline {
                return self.give_up(tickets);
            }
        }
        if let Some(turn) = turn {
            turn.end().await;
        }
    }

    /// Waits for a turn; `None` if the log has none.
    async fn turn<'a>(
        &mut self,
        log: &'a dyn LogWriter,
        deadline: Instant,
    ) -> Result<Option<Box<dyn Turn + 'a>>, NoTurn> {
        match timeout_at(deadline, log.turn()).await {
            Ok(Ok(Some(turn))) => {
                let head = turn.head().clone();
                let ours = self.head.as_ref().is_some_and(|known| known.size() == head.size());
                self.wary = if ours { self.wary.saturating_sub(1) } else { WARY };
                self.rivalry.turns.fetch_add(1, Ordering::Relaxed);
                self.sink.head(&head);
                self.head = Some(head);
                Ok(Some(turn))
            }
            Ok(Ok(None)) => {
                self.wary = 0;
                Ok(None)
            }
            Ok(Err(failure)) => {
                warn!(failure = &failure as &dyn std::error::Error, "the log's head cannot be had");
                Err(NoTurn)
            }
            Err(_elapsed) => {
                warn!("the log's head cannot be had in time");
                Err(NoTurn)
            }
        }
    }

    /// With what waits by now, as much as a batch holds.
    fn joined(
        &self,
        queue: &mut Queue<S>,
        entries: Vec<Proposed>,
        tickets: Vec<S::Ticket>,
    ) -> (Vec<Proposed>, Vec<S::Ticket>) {
        let mut joined: Vec<_> = entries.into_iter().zip(tickets).collect();
        while joined.len() < self.config.batch
            && let Ok(queued) = queue.try_recv()
        {
            joined.extend(queued.take());
        }
        in_order(joined)
    }

    /// Whether a log that did not take a batch can be reached again. Whether it takes the next one shows then.
    async fn look_again(&mut self) {
        let looking = async {
            let head = self.log.head().await?;
            self.log.prepare(head.size(), head.time).await?;
            Ok::<_, ReadError>(head)
        };
        if let Ok(Ok(head)) = timeout(self.config.append_timeout, looking).await {
            info!("the log can be reached again");
            self.sink.head(&head);
            self.head = Some(head);
            self.available.store(true, Ordering::Relaxed);
        }
    }

    async fn known_head(&mut self, deadline: Instant) -> Option<LogHead> {
        if self.head.is_none() {
            match timeout_at(deadline, self.log.head()).await {
                Ok(Ok(head)) => {
                    self.sink.head(&head);
                    self.head = Some(head);
                }
                Ok(Err(failure)) => {
                    warn!(failure = &failure as &dyn std::error::Error, "the log's head cannot be read")
                }
                Err(_elapsed) => warn!("the log's head cannot be read in time"),
            }
        }
        self.head.clone()
    }

    /// Asks until the log says what became of a batch: nothing may be appended, and nobody answered, before that is known.
    /// (Submitters stop waiting by themselves, and are told that the outcome is unknown.)
    async fn resolve(&mut self, batch: &Batch) -> Appended {
        self.available.store(false, Ordering::Relaxed);
        let mut pause = Duration::from_millis(20);
        loop {
            match timeout(self.config.append_timeout, self.log.resolve(batch)).await {
                Ok(Ok(true)) => {
                    info!("the batch is in the log");
                    return Appended::Committed;
                }
                Ok(Ok(false)) => {
                    if let Ok(Ok(head)) = timeout(self.config.append_timeout, self.log.head()).await {
                        info!("the batch is not in the log");
                        return Appended::Moved(head);
                    }
                }
                Ok(Err(_)) | Err(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn committed(&mut self, batch: Batch, tickets: Vec<S::Ticket>) {
        self.available.store(true, Ordering::Relaxed);
        self.sink.head(&batch.head);
        let (first, tree_size) = (batch.expected.0, batch.head.size());
        self.head = Some(batch.head);
        let placed = (first..).zip(batch.entries).zip(tickets);
        let entries = placed.map(|((index, entry), ticket)| Committed {
            ticket,
            leaf: entry.leaf,
            place: Place { index: LeafIndex(index), hash: entry.hash, tree_size },
        });
        // The receiver lives until the sender, which is ours, is dropped.
        let _always_received = self.done.send(entries.collect()).await;
    }

    fn without(
        &self,
        refused: Vec<Refused>,
        entries: Vec<Proposed>,
        tickets: Vec<S::Ticket>,
    ) -> (Vec<Proposed>, Vec<S::Ticket>) {
        let mut why = refused.into_iter().peekable();
        let mut kept = (Vec::with_capacity(entries.len()), Vec::with_capacity(tickets.len()));
        for (at, (entry, ticket)) in entries.into_iter().zip(tickets).enumerate() {
            match why.next_if(|refused| refused.at == at) {
                Some(refused) => self.sink.not_done(ticket, NotDone::Refused(refused.why)),
                None => {
                    kept.0.push(entry);
                    kept.1.push(ticket);
                }
            }
        }
        kept
    }

    fn give_up(&self, tickets: Vec<S::Ticket>) {
        self.available.store(false, Ordering::Relaxed);
        for ticket in tickets {
            self.sink.not_done(ticket, NotDone::Unavailable);
        }
    }
}
