//! A node's place in a cluster: beats, frames in and out, pages of a view for who comes late.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use hashbrown::HashMap;
use parking_lot::Mutex;
use sealing::{ClusterKey, SealError};
use session_model::{Slot, TreeSize};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use crate::asking::Asking;
use crate::frame::{Frames, OVERHEAD, Rejections};
use crate::line::Line;
use crate::membership::Membership;
use crate::message::{ASK_HEAD, QUESTION_HEAD, SHARE_HEAD};
use crate::{
    Answer, Answers, Ask, AskError, Audience, Beat, Capabilities, Change, Commit, Heard, Inbox, Incarnation, LineId,
    Member, Message, Placement, Presence, Question, Received, Record, Rejected, SendError, Topic, Transport,
};

/// How a node takes part.
#[derive(Clone)]
pub struct ClusterConfig {
    /// Its name, as it stands in entries.
    pub node: String,
    /// Version of its program, for people.
    pub program: String,
    /// This life of its process: random.
    pub incarnation: Incarnation,
    /// The first seals, each opens.
    pub keys: Vec<ClusterKey>,
    /// Between two beats. Default 250 ms.
    pub beat: Duration,
    /// After this silence a node is not counted on. Default 2 s.
    pub lease: Duration,
    /// Nodes hold sessions by [`Placement`]: each at its owner and so many partners. `None` where every node holds all.
    pub copies: Option<u8>,
}

/// What a node says of itself with each beat.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Size of the log when it last asked.
    pub size: TreeSize,
    /// How much of it its view reflects.
    pub reflects: TreeSize,
    /// How long ago it asked; `None` if it never could.
    pub log_age: Option<Duration>,
}

/// A page of what a view holds.
#[derive(Debug)]
pub struct Page {
    /// States, in any order.
    pub records: Vec<Record>,
    /// How much of the log the view reflected before the first of them was read.
    pub reflects: TreeSize,
    /// Where the next page begins, if there is one.
    pub next: Option<u64>,
}

/// The node that takes part: what it is asked, and told.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// What it says of itself.
    fn standing(&self) -> Standing;

    /// Another node committed something. Told in the order of arrival, one after the other, which need not be that of the log.
    async fn committed(&self, commit: Commit);

    /// Another node committed something, and sent what it takes this one to hold of it: all that it needs if its share is this one.
    async fn committed_share(&self, share: u64, commit: Commit) {
        let _none_is_held_by_placement = share;
        self.grown(commit.end);
    }

    /// Another node has committed up to here, and does not send what that changed: look at the log.
    fn grown(&self, size: TreeSize);

    /// A peer proves that the log was no longer than this at that time.
    fn heard(&self, heard: Heard);

    /// Something may have been missed: look at the log.
    fn missed(&self);

    /// What its view holds, as far as it concerns the one who asks, from a position on (0 is the beginning), about so many bytes. `None` if it
    /// has no view of its own, or not all of it.
    async fn page(&self, who: Incarnation, from: u64, bytes: usize) -> Option<Page>;
}

/// What became of frames since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Frames handed to the transport.
    pub sent: u64,
    /// Frames that it did not take.
    pub unsent: u64,
    /// Frames opened.
    pub received: u64,
    /// Frames dropped because this node was too slow.
    pub overrun: u64,
    /// Frames passed over, for each reason.
    pub rejected: Vec<(Rejected, u64)>,
}

/// A node's place in its cluster. Dropping it ends its tasks without a word to the others; [`Cluster::leave`] is the polite way.
pub struct Cluster {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

pub(crate) struct Shared {
    config: ClusterConfig,
    transport: Arc<dyn Transport>,
    host: Arc<dyn Host>,
    frames: Frames,
    members: Mutex<Membership>,
    rejections: Rejections,
    sent: AtomicU64,
    unsent: AtomicU64,
    received: AtomicU64,
    overrun: AtomicU64,
    leaving: AtomicBool,
    questions: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
    question: AtomicU64,
    /// Pages are read one at a time, so that those who come late do not slow down those who are there.
    serving: Arc<Semaphore>,
    /// Questions that may wait for it.
    asked: Arc<Semaphore>,
    /// The last pages that were answered, for who lost parts of them.
    answered: Mutex<VecDeque<Answered>>,
    /// Who is told what is said beside the log.
    aside: OnceLock<Aside>,
    asking: Asking,
    /// By whom the placement goes that is in `placement`. Held while it is made anew.
    placed: Mutex<Vec<(String, Incarnation)>>,
    placement: watch::Sender<Option<Arc<Placement>>>,
    /// What other clusters have here.
    lines: Mutex<Vec<(LineId, Arc<Inbox>)>>,
}

/// A commit that came.
enum Committed {
    Whole(Commit),
    Share(u64, Commit),
}

/// Takes what another node says beside the log. Called from the task that receives: it must not wait.
pub type Aside = Box<dyn Fn(Incarnation, Vec<u8>) + Send + Sync>;

/// A page that was answered: the messages of its parts.
struct Answered {
    who: Incarnation,
    question: u64,
    at: Instant,
    parts: Arc<Vec<Vec<u8>>>,
}

/// Commits that may wait to be applied. Beyond them they are read from the log.
const WAITING: usize = 8_192;
/// Bytes of a page that is asked for at first, and that is answered at most. Where one is lost a smaller one is asked for: in the end a
/// page of one frame, which gets through any weather that anything gets through.
const PAGE: u32 = 1 << 20;
const SMALLEST_PAGE: u32 = 1 << 10;
/// How long an answer may take to begin.
const PART: Duration = Duration::from_millis(250);
/// The least silence after which parts that have not come are asked for again.
const QUIET: Duration = Duration::from_millis(10);
/// How often that is done while nothing new comes.
const ROUNDS: u32 = 4;
/// Pages that are kept for who lost parts of them, and how long.
const KEPT: usize = 4;
const KEPT_FOR: Duration = Duration::from_secs(2);
/// Parts of an answer that are sent before others have their turn.
const TURN: usize = 16;
/// Questions that may wait for an answer of this node: beyond them they are passed over, and asked again.
const ASKED: usize = 64;
/// How often a page is asked for.
const TRIES: usize = 16;

impl Cluster {
    /// Takes part.
    ///
    /// # Errors
    /// [`SealError`] if there is no key, or it cannot be used.
    pub fn start(
        transport: Arc<dyn Transport>,
        config: ClusterConfig,
        host: Arc<dyn Host>,
    ) -> Result<Arc<Self>, SealError> {
        let frames = Frames::new(config.incarnation, config.keys.clone())?;
        let members = Mutex::new(Membership::new(config.node.clone(), config.lease));
        let shared = Arc::new(Shared {
            frames,
            members,
            transport,
            host,
            config,
            rejections: Rejections::default(),
            sent: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            overrun: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            questions: Mutex::default(),
            question: AtomicU64::new(0),
            serving: Arc::new(Semaphore::new(1)),
            asked: Arc::new(Semaphore::new(ASKED)),
            answered: Mutex::default(),
            aside: OnceLock::new(),
            asking: Asking::default(),
            placed: Mutex::default(),
            placement: watch::Sender::new(None),
            lines: Mutex::default(),
        });
        shared.place();
        let (apply, to_apply) = mpsc::channel(WAITING);
        let tasks = vec![
            tokio::spawn(Arc::clone(&shared).receive(apply)),
            tokio::spawn(hand_over(Arc::clone(&shared.host), to_apply)),
            tokio::spawn(Arc::clone(&shared).beats()),
        ];
        Ok(Arc::new(Self { shared, tasks }))
    }

    /// Tells everybody of a commit. Never waits.
    pub fn publish(&self, commit: Commit) {
        // Who has the same view need not look at the log, so is told of that as ever.
        if commit.view.is_none() && !self.capabilities().records {
            self.shared.send(Audience::Everybody, &Message::Grown(commit.end));
            return;
        }
        let max = self.shared.max_message();
        for part in commit.cut(max) {
            self.shared.send(Audience::Everybody, &Message::Commit(part));
        }
    }

    /// As [`Cluster::publish`], to each node that holds sessions by placement with those records alone that it holds.
    pub fn publish_shares(&self, commit: &Commit, placement: &Placement) {
        let max = self.shared.max_message().saturating_sub(SHARE_HEAD);
        for member in self.members().into_iter().filter(|member| member.presence != Presence::Gone) {
            let to = Audience::One(member.incarnation);
            if !placement.members().contains(&member.incarnation) {
                self.shared.send(to, &Message::Grown(commit.end));
                continue;
            }
            let share = placement.share(member.incarnation);
            let is_held = |record: &&Record| placement.is_held_by(Slot::of(record.session), member.incarnation);
            let records = commit.records.iter().filter(is_held).cloned().collect();
            for part in (Commit { records, ..commit.clone() }).cut(max) {
                self.shared.send(to, &Message::Share(share, part));
            }
        }
    }

    /// Who holds which session, as this node sees its members now; `None` where every node holds all.
    pub fn placement(&self) -> Option<Arc<Placement>> {
        self.shared.placement.borrow().clone()
    }

    /// Tells whoever has it of each new placement.
    pub fn placements(&self) -> watch::Receiver<Option<Arc<Placement>>> {
        self.shared.placement.subscribe()
    }

    /// Asks a node something of at most [`Cluster::max_answer`] bytes, and waits for its answer.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(
        &self,
        who: Incarnation,
        topic: Topic,
        question: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, AskError> {
        let mut pending = self.shared.asking.begin(who);
        let question = Question { number: pending.number, topic: topic.byte(), body: question };
        if !self.shared.send(Audience::One(who), &Message::Question(question)) {
            return Err(AskError::Unsent);
        }
        match timeout(within, &mut pending.answer).await {
            Ok(Ok(answer)) => Ok(answer),
            // Or it has gone meanwhile.
            Ok(Err(_)) | Err(_) => Err(AskError::Unanswered),
        }
    }

    /// Sends a node a question that nobody waits for an answer to: it has none, or what it is does not matter.
    pub fn notify(&self, who: Incarnation, topic: Topic, question: Vec<u8>) {
        // A number that is given out no more is pending for nobody.
        let number = self.shared.asking.begin(who).number;
        let question = Question { number, topic: topic.byte(), body: question };
        self.shared.send(Audience::One(who), &Message::Question(question));
    }

    /// From now on questions of a topic are answered by `answers`. To be called once for each.
    pub fn answer_by(&self, topic: Topic, answers: Arc<dyn Answers>) {
        if !self.shared.asking.answers_by(topic, answers) {
            warn!(?topic, "somebody answers these questions already");
        }
    }

    /// Bytes that a question or its answer may have.
    pub fn max_answer(&self) -> usize {
        self.shared.max_message().saturating_sub(QUESTION_HEAD)
    }

    /// Says something beside the log, of at most [`Cluster::max_message`] bytes. Never waits, and may be lost.
    pub fn tell(&self, to: Audience, bytes: Vec<u8>) {
        self.shared.send(to, &Message::Aside(bytes));
    }

    /// From now on `hear` is told what others say beside the log. To be called once.
    pub fn hear(&self, hear: Aside) {
        if self.shared.aside.set(hear).is_err() {
            warn!("somebody hears already what is said beside the log");
        }
    }

    /// A transport for another cluster of the same nodes, whose frames this one carries. Each id is to be taken once.
    pub fn line(&self, id: LineId) -> Arc<dyn Transport> {
        let (line, inbox) = Line::new(id, Arc::clone(&self.shared));
        self.shared.lines.lock().push((id, inbox));
        Arc::new(line)
    }

    /// Bytes that what is said beside the log may have.
    pub fn max_message(&self) -> usize {
        self.shared.max_message().saturating_sub(1)
    }

    /// Sends any message, as an insider could.
    #[cfg(feature = "test-util")]
    pub fn forge(&self, to: Audience, message: &Message) {
        self.shared.send(to, message);
    }

    /// What the transport can do.
    pub fn capabilities(&self) -> Capabilities {
        self.shared.transport.capabilities()
    }

    /// This life of the node.
    pub fn incarnation(&self) -> Incarnation {
        self.shared.config.incarnation
    }

    /// The other nodes, as this one sees them.
    pub fn members(&self) -> Vec<Member> {
        self.shared.members.lock().members()
    }

    /// What became of frames.
    pub fn traffic(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shared = &self.shared;
        Traffic {
            sent: read(&shared.sent),
            unsent: read(&shared.unsent),
            received: read(&shared.received),
            overrun: read(&shared.overrun),
            rejected: shared.rejections.all(),
        }
    }

    /// The transport's own words on its state, one line each.
    pub fn describe(&self) -> Vec<String> {
        self.shared.transport.describe()
    }

    /// The ids of the keys in use, the one that seals first.
    pub fn key_ids(&self) -> Vec<[u8; 4]> {
        self.shared.frames.key_ids()
    }

    /// Takes other keys from now on: the first seals, each opens.
    ///
    /// # Errors
    /// [`SealError`]; then the keys stay what they were.
    pub fn rekey(&self, keys: Vec<ClusterKey>) -> Result<(), SealError> {
        self.shared.frames.rekey(keys)
    }

    /// Copies what the view of a peer holds, page by page, from the peer that reflects most. Answers how much of the log the copy
    /// reflects; `None` if nobody could give one whole: then the log is there to be read. What was taken until then is no less true.
    pub async fn snapshot<F, Fut>(&self, mut take: F) -> Option<TreeSize>
    where
        F: FnMut(Vec<Record>) -> Fut + Send,
        Fut: Future<Output = ()> + Send,
    {
        if !self.capabilities().addressed {
            return None;
        }
        let mut peers: Vec<Member> =
            self.members().into_iter().filter(|member| member.presence == Presence::Up).collect();
        peers.sort_by_key(|member| std::cmp::Reverse(member.reflects));
        for peer in peers {
            if let Some(reflects) = self.snapshot_of(peer.incarnation, &mut take).await {
                info!(peer = peer.node, %reflects, "copied the view of a peer");
                return Some(reflects);
            }
        }
        None
    }

    async fn snapshot_of<F, Fut>(&self, peer: Incarnation, take: &mut F) -> Option<TreeSize>
    where
        F: FnMut(Vec<Record>) -> Fut + Send,
        Fut: Future<Output = ()> + Send,
    {
        let mut reflects: Option<TreeSize> = None;
        let all = self.copy_of(peer, |page| {
            reflects = Some(reflects.map_or(page.reflects, |least| least.min(page.reflects)));
            take(page.records)
        });
        if all.await { reflects } else { None }
    }

    /// Copies what the view of one peer holds, as far as it concerns this node. Says whether that is all of it.
    pub async fn copy_of<F, Fut>(&self, peer: Incarnation, mut take: F) -> bool
    where
        F: FnMut(Page) -> Fut + Send,
        Fut: Future<Output = ()> + Send,
    {
        let (mut from, mut bytes) = (0, PAGE);
        while let Some(page) = self.page_of(peer, from, &mut bytes).await {
            let next = page.next;
            take(page).await;
            match next {
                // Positions only rise: a peer cannot keep us here for ever.
                Some(next) if next > from => from = next,
                Some(_) => return false,
                None => return true,
            }
        }
        false
    }

    /// One page, whole; asked for again, and smaller, where a part of it is lost.
    async fn page_of(&self, peer: Incarnation, from: u64, bytes: &mut u32) -> Option<Page> {
        for _ in 0..TRIES {
            let question = self.shared.question.fetch_add(1, Ordering::Relaxed);
            let (sender, mut answers) = mpsc::channel(4_096);
            self.shared.questions.lock().insert(question, sender);
            let page =
                self.gather(peer, Ask { question, from, bytes: *bytes, missing: Vec::new() }, &mut answers).await;
            self.shared.questions.lock().remove(&question);
            if page.is_some() {
                *bytes = (*bytes * 2).min(PAGE);
                return page;
            }
            if !self.members().iter().any(|member| member.incarnation == peer && member.presence == Presence::Up) {
                return None;
            }
            *bytes = (*bytes / 4).max(SMALLEST_PAGE);
        }
        None
    }

    /// Asks, and puts the parts of the answer together. Those that do not come are asked for again; `None` if they do not come even so.
    async fn gather(&self, peer: Incarnation, mut ask: Ask, answers: &mut mpsc::Receiver<Answer>) -> Option<Page> {
        let most = self.shared.max_message().saturating_sub(ASK_HEAD) / 2;
        let (mut had, mut quiet, mut rounds): (Vec<bool>, _, _) = (Vec::new(), PART, 0);
        let mut page = Page { records: Vec::new(), reflects: TreeSize(0), next: None };
        loop {
            let asked = Instant::now();
            if rounds > ROUNDS || !self.shared.send(Audience::One(peer), &Message::Ask(ask.clone())) {
                return None;
            }
            rounds += 1;
            while let Ok(answer) = timeout(quiet, answers.recv()).await {
                let Answer { part, parts, reflects, next, records, .. } = answer?;
                if had.is_empty() {
                    // What follows may take as long as a way there and back, and the machine's mood.
                    quiet = (asked.elapsed() * 2).clamp(QUIET, PART);
                }
                had.resize(usize::from(parts), false);
                if had.get_mut(usize::from(part)).map(|had| std::mem::replace(had, true)) == Some(false) {
                    page.records.extend(records);
                    (page.reflects, page.next) = (reflects, next);
                    rounds = 0;
                }
                if had.iter().all(|had| *had) {
                    return Some(page);
                }
            }
            if had.is_empty() {
                return None;
            }
            let missing = had.iter().zip(0..).filter(|(had, _)| !**had).map(|(_, part)| part);
            ask.missing = missing.take(most).collect();
        }
    }

    /// Tells the others that this node goes, and lets go of the transport.
    pub async fn leave(&self) {
        self.shared.leaving.store(true, Ordering::Relaxed);
        self.shared.send_beat();
        self.shared.transport.close().await;
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({} over {})", self.shared.config.node, self.capabilities().name)
    }
}

/// Gives commits to the host, one after the other, apart from the receiving of frames: a view that is slow must not keep beats
/// from being heard.
async fn hand_over(host: Arc<dyn Host>, mut commits: mpsc::Receiver<Committed>) {
    while let Some(commit) = commits.recv().await {
        match commit {
            Committed::Whole(commit) => host.committed(commit).await,
            Committed::Share(share, commit) => host.committed_share(share, commit).await,
        }
    }
}

impl Shared {
    pub(crate) fn capabilities(&self) -> Capabilities {
        self.transport.capabilities()
    }

    pub(crate) fn max_message(&self) -> usize {
        self.transport.capabilities().max_frame.saturating_sub(OVERHEAD)
    }

    /// Whether the transport took it.
    fn send(&self, to: Audience, message: &Message) -> bool {
        self.send_encoded(to, &message.encode())
    }

    fn send_encoded(&self, to: Audience, message: &[u8]) -> bool {
        let sent = self.try_send(to, message);
        if let Err(failure) = &sent {
            debug!(failure = failure as &dyn std::error::Error, "a frame was not sent");
        }
        sent.is_ok()
    }

    pub(crate) fn try_send(&self, to: Audience, message: &[u8]) -> Result<(), SendError> {
        let sealed = self.frames.seal(message).map_err(|failure| SendError::Unavailable(Some(failure.into())));
        let sent = sealed.and_then(|frame| self.transport.send(to, &frame));
        let counter = if sent.is_ok() { &self.sent } else { &self.unsent };
        counter.fetch_add(1, Ordering::Relaxed);
        sent
    }

    fn send_beat(&self) {
        let Standing { size, reflects, log_age } = self.host.standing();
        let (number, heard) = self.members.lock().beat(Instant::now());
        // A millisecond more than it is, never less: others reckon with it.
        let age = log_age.map_or(u32::MAX, |age| u32::try_from(age.as_millis() + 1).unwrap_or(u32::MAX));
        self.send(
            Audience::Everybody,
            &Message::Beat(Beat {
                node: self.config.node.clone(),
                program: self.config.program.clone(),
                number,
                size,
                reflects,
                log_age_ms: age,
                leaving: self.leaving.load(Ordering::Relaxed),
                heard,
                placement: self.placement.borrow().as_ref().map(|placement| placement.digest()),
            }),
        );
    }

    async fn beats(self: Arc<Self>) {
        let mut ticks = interval(self.config.beat);
        // After a pause of the process one beat says as much as many.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let changes = self.members.lock().tick(Instant::now());
            self.tell(&changes);
            self.answered.lock().retain(|answered| answered.at.elapsed() < KEPT_FOR);
            self.send_beat();
        }
    }

    /// Makes the placement anew, if other nodes hold sessions now than those it goes by.
    fn place(&self) {
        let Some(copies) = self.config.copies else { return };
        let mut holding = vec![(self.config.node.clone(), self.config.incarnation)];
        let mut placed = self.placed.lock();
        let holds = |member: &Member| member.presence == Presence::Up && member.placement.is_some();
        let members = self.members.lock().members().into_iter().filter(holds);
        holding.extend(members.map(|member| (member.node, member.incarnation)));
        if *placed != holding {
            let placement = Placement::new(self.config.incarnation, &holding, copies);
            self.placement.send_replace(Some(Arc::new(placement)));
            *placed = holding;
        }
    }

    async fn receive(self: Arc<Self>, apply: mpsc::Sender<Committed>) {
        while let Some(received) = self.transport.receive().await {
            match received {
                Received::Frame(frame) => self.take(&frame, &apply),
                Received::Lost => {
                    self.host.missed();
                    self.lines.lock().iter().for_each(|(_, inbox)| inbox.lost());
                }
                Received::Departed(who) => {
                    let changes = self.members.lock().departed(who);
                    self.tell(&changes);
                    self.asking.gone(who);
                }
            }
        }
    }

    fn take(self: &Arc<Self>, frame: &[u8], apply: &mpsc::Sender<Committed>) {
        let now = Instant::now();
        let (from, message) = match self.frames.open(frame, now) {
            Ok(Some(opened)) => opened,
            Ok(None) => return,
            Err(why) => return self.rejections.count(why),
        };
        self.transport.authentic(from);
        self.received.fetch_add(1, Ordering::Relaxed);
        match Message::decode(&message) {
            Ok(Message::Commit(commit)) => self.hand_on(apply, Committed::Whole(commit)),
            Ok(Message::Share(share, commit)) => self.hand_on(apply, Committed::Share(share, commit)),
            Ok(Message::Grown(size)) => self.host.grown(size),
            Ok(Message::Aside(bytes)) => {
                if let Some(aside) = self.aside.get() {
                    aside(from, bytes);
                }
            }
            Ok(Message::Line(id, frame)) => {
                let lines = self.lines.lock();
                // One that this node does not have is of a log that it is not told of.
                if let Some((_, inbox)) = lines.iter().find(|(known, _)| *known == id) {
                    inbox.put(frame);
                }
            }
            Ok(Message::Beat(beat)) => {
                let (changes, heard) = self.members.lock().hear(self.config.incarnation, from, &beat, now);
                self.tell(&changes);
                self.place();
                if let Some(heard) = heard {
                    self.host.heard(heard);
                }
            }
            Ok(Message::Ask(ask)) => self.answer(from, ask),
            Ok(Message::Question(question)) => self.reply(from, question),
            Ok(Message::Reply(number, body)) => self.asking.answered(from, number, body),
            Ok(Message::Answer(answer)) => {
                let asked = self.questions.lock().get(&answer.question).cloned();
                if let Some(asked) = asked {
                    // If it runs over, the page is asked for again.
                    let _asked_again = asked.try_send(answer);
                }
            }
            // From a newer program: nothing that this one needs.
            Ok(Message::Unknown(kind)) => debug!(kind, %from, "a message of an unknown kind"),
            Err(_) => self.rejections.count(Rejected::Undecodable),
        }
    }

    fn hand_on(&self, apply: &mpsc::Sender<Committed>, commit: Committed) {
        match apply.try_send(commit) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {
                self.overrun.fetch_add(1, Ordering::Relaxed);
                self.host.missed();
            }
        }
    }

    fn reply(self: &Arc<Self>, who: Incarnation, question: Question) {
        let Some(answers) = self.asking.answers(question.topic) else { return };
        let Ok(room) = Arc::clone(&self.asking.room).try_acquire_owned() else { return };
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let _room = room;
            if let Some(body) = answers.answer(who, question.body).await {
                shared.send(Audience::One(who), &Message::Reply(question.number, body));
            }
        });
    }

    fn answer(self: &Arc<Self>, who: Incarnation, ask: Ask) {
        let Ok(asked) = Arc::clone(&self.asked).try_acquire_owned() else { return };
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let _asked = asked;
            let Ok(_serving) = shared.serving.acquire().await else { return };
            let Some(parts) = shared.parts(who, &ask).await else { return };
            let wanted = |part: &usize| {
                ask.missing.is_empty() || u16::try_from(*part).is_ok_and(|part| ask.missing.contains(&part))
            };
            let wanted = (0..parts.len()).filter(wanted).filter_map(|part| parts.get(part));
            for (sent, part) in wanted.enumerate() {
                shared.send_encoded(Audience::One(who), part);
                if sent % TURN == TURN - 1 {
                    // Beats and commits of this node go out in between.
                    tokio::task::yield_now().await;
                }
            }
        });
    }

    /// The messages that answer: made now, or kept from the first time where parts of them are asked for again.
    async fn parts(&self, who: Incarnation, ask: &Ask) -> Option<Arc<Vec<Vec<u8>>>> {
        if !ask.missing.is_empty() {
            let answered = self.answered.lock();
            let kept = answered.iter().find(|answered| (answered.who, answered.question) == (who, ask.question));
            return kept.map(|kept| Arc::clone(&kept.parts));
        }
        let Page { records, reflects, next } = self.host.page(who, ask.from, ask.bytes.min(PAGE) as usize).await?;
        let parts = Answer::cut(ask.question, reflects, next, records, self.max_message());
        let parts = Arc::new(parts.into_iter().map(|part| Message::Answer(part).encode()).collect());
        let mut answered = self.answered.lock();
        answered.truncate(KEPT - 1);
        answered.push_front(Answered { who, question: ask.question, at: Instant::now(), parts: Arc::clone(&parts) });
        Some(parts)
    }

    fn tell(&self, changes: &[Change]) {
        if !changes.is_empty() {
            self.place();
        }
        for change in changes {
            match change {
                Change::Up(node) => info!(node, "a node is up"),
                Change::Down(node, presence) => warn!(node, presence = presence.name(), "a node is down"),
                Change::NameTaken(node) => {
                    warn!(node, "two processes have this name: each node needs its own");
                }
            }
        }
    }
}
