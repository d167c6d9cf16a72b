//! Nodes that hold transient sessions themselves: what one puts it tells the others, and what was lost on the way is found by comparing.
//!
//! A transport may lose, repeat and reorder, and there is no log to read from. So every second each node says, for each of 256 buckets of
//! sessions, a sum over what it holds. Whoever finds another sum in the same bucket twice in a row (once may be what is under way) sends
//! what it holds of it; all of them taking turns by round, so that one that comes late is sent everything once and not by everybody. States
//! meet by one rule whose result does not depend on order ([`session_model::transient::Stamped::join`]), so that is all there is to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cluster::{Audience, Cluster, Incarnation, Presence};
use hashbrown::HashMap;
use parking_lot::Mutex;
use session_model::transient::Stamped;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};
use transient_store::{MemoryTransients, SUMS};

use crate::clock::LogClock;

/// Between two comparisons, and while this node has not come to hold what the others do.
const ROUND: Duration = Duration::from_secs(1);
const FIRST_ROUNDS: Duration = Duration::from_millis(100);
/// Messages that may wait to be taken in. Beyond them they are dropped: a comparison finds what is missing.
const WAITING: usize = 4_096;
/// Bytes sent in answer to one comparison. The rest is sent after the next.
const AT_ONCE: usize = 8 << 20;
/// How long a node that starts looks for others, and then waits to be sent what they hold.
const FIND: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_secs(10);
/// A node whose sums differ in no more buckets than these holds what the others do, but for what is under way.
const UNDER_WAY: usize = SUMS / 8;
/// How often a loss is put into the log of the program.
const SAY: Duration = Duration::from_secs(10);

const STATES: u8 = 1;
const COMPARE: u8 = 2;

/// This node among those that hold transient sessions.
pub(crate) struct Peers {
    cluster: Arc<Cluster>,
    store: Arc<MemoryTransients>,
    clock: Arc<LogClock>,
    inbox: mpsc::Sender<(Incarnation, Vec<u8>)>,
    lost: AtomicU64,
    settled: AtomicBool,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Peers {
    pub(crate) fn start(cluster: Arc<Cluster>, store: Arc<MemoryTransients>, clock: Arc<LogClock>) -> Arc<Self> {
        let (inbox, waiting) = mpsc::channel(WAITING);
        let peers = Arc::new(Self {
            cluster,
            store,
            clock,
            inbox,
            lost: AtomicU64::new(0),
            settled: AtomicBool::new(false),
            tasks: Mutex::default(),
        });
        let tasks = vec![tokio::spawn(Arc::clone(&peers).take(waiting)), tokio::spawn(Arc::clone(&peers).compare())];
        *peers.tasks.lock() = tasks;
        let heard = Arc::downgrade(&peers);
        peers.cluster.hear(Box::new(move |from, bytes| {
            if let Some(peers) = heard.upgrade() {
                let _found_by_comparing = peers.inbox.try_send((from, bytes));
            }
        }));
        peers
    }

    pub(crate) fn close(&self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
    }

    /// Changes that were lost, as this node saw.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Nodes that this one hears and that hear it, and itself.
    pub(crate) fn within_reach(&self) -> usize {
        1 + self.up().len()
    }

    fn up(&self) -> Vec<Incarnation> {
        let members = self.cluster.members().into_iter();
        members.filter(|member| member.presence == Presence::Up).map(|member| member.incarnation).collect()
    }

    /// Tells the others of a state. Never waits.
    pub(crate) fn tell(&self, state: &Stamped) {
        let mut message = vec![STATES];
        if put(&mut message, state) {
            self.send(Audience::Everybody, message);
        }
    }

    fn send(&self, to: Audience, message: Vec<u8>) {
        // A transport that knows no addresses tells everybody: whoever holds it already is not harmed.
        let to = if self.cluster.capabilities().addressed { to } else { Audience::Everybody };
        self.cluster.tell(to, message);
    }

    async fn take(self: Arc<Self>, mut inbox: mpsc::Receiver<(Incarnation, Vec<u8>)>) {
        let mut differed: HashMap<Incarnation, [bool; SUMS]> = HashMap::new();
        let mut said = None;
        while let Some((from, bytes)) = inbox.recv().await {
            match bytes.split_first() {
                Some((&STATES, rest)) => {
                    let lost = self.store.merge(states(rest), self.clock.now()).lost;
                    if lost > 0 {
                        let all = self.lost.fetch_add(lost as u64, Ordering::Relaxed) + lost as u64;
                        if said.is_none_or(|said: Instant| said.elapsed() > SAY) {
                            warn!(all, "a change of a transient session is lost: another was made apart from it");
                            said = Some(Instant::now());
                        }
                    }
                }
                Some((&COMPARE, rest)) => {
                    let Some((round, theirs)) = comparison(rest) else { continue };
                    let before = differed.entry(from).or_insert([false; SUMS]);
                    self.answer(from, round, &theirs, before).await;
                    let up = self.up();
                    differed.retain(|who, _| up.contains(who));
                }
                // Of a newer program.
                Some(_) | None => {}
            }
        }
    }

    /// Compares, and sends what the other may lack.
    async fn answer(&self, from: Incarnation, round: u64, theirs: &[u64; SUMS], before: &mut [bool; SUMS]) {
        let ours = self.store.sums();
        // Whose turn it is, of all but the one that asks.
        let mut all = self.up();
        all.retain(|who| *who != from);
        all.push(self.cluster.incarnation());
        all.sort_unstable();
        let turn = all.iter().position(|who| *who == self.cluster.incarnation()).unwrap_or_default() as u64;
        let (mut differing, mut lacking, mut bytes, most) = (0, 0, 0, self.cluster.max_message());
        let mut message = vec![STATES];
        for (((which, ours), theirs), before) in (0_u8..=255).zip(&ours).zip(theirs).zip(before.iter_mut()) {
            let differs = ours != theirs;
            differing += usize::from(differs);
            lacking += usize::from(differs && *ours == 0);
            let again = std::mem::replace(before, differs) || *theirs == 0;
            let mine = (u64::from(which) + round) % all.len() as u64 == turn;
            if !(differs && again && mine && bytes < AT_ONCE) {
                continue;
            }
            for state in self.store.bucket(which) {
                let length = message.len();
                if !put(&mut message, &state) {
                    continue;
                }
                if message.len() > most && length > 1 {
                    let next = [&[STATES], message.get(length..).unwrap_or_default()].concat();
                    message.truncate(length);
                    bytes += length;
                    self.send(Audience::One(from), std::mem::replace(&mut message, next));
                    tokio::task::yield_now().await;
                }
            }
        }
        if message.len() > 1 {
            self.send(Audience::One(from), message);
        }
        if lacking == 0 && differing <= UNDER_WAY && !self.settled.swap(true, Ordering::Relaxed) {
            info!("this node holds the transient sessions that its peers do");
        }
    }

    async fn compare(self: Arc<Self>) {
        let mut round = 0_u64;
        loop {
            sleep(if self.settled.load(Ordering::Relaxed) { ROUND } else { FIRST_ROUNDS }).await;
            round = round.wrapping_add(1);
            let sums = self.store.sums();
            let mut message = vec![COMPARE];
            message.extend_from_slice(&round.to_be_bytes());
            sums.iter().for_each(|sum| message.extend_from_slice(&sum.to_be_bytes()));
            self.send(Audience::Everybody, message);
        }
    }

    /// Waits until this node holds what another does; not long, and not at all where there is no other.
    pub(crate) async fn settled(&self) {
        let found = async {
            while self.up().is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(FIND, found).await.is_ok() {
            let settled = async {
                while !self.settled.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            if timeout(SETTLE, settled).await.is_err() {
                warn!("the transient sessions of the other nodes have not come in time: going on without all of them");
            }
        }
        self.settled.store(true, Ordering::Relaxed);
    }
}

/// Puts a state behind a message: its length (4), its bytes.
fn put(message: &mut Vec<u8>, state: &Stamped) -> bool {
    let Some((bytes, length)) =
        state.encode().ok().and_then(|bytes| u32::try_from(bytes.len()).ok().map(|length| (bytes, length)))
    else {
        return false;
    };
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(&bytes);
    true
}

/// Reads states up to the first that cannot be read, which is of a newer program.
fn states(mut bytes: &[u8]) -> Vec<Stamped> {
    let mut states = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk()
        && let Some((state, rest)) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)
    {
        states.extend(Stamped::decode(state).ok());
        bytes = rest;
    }
    states
}

fn comparison(bytes: &[u8]) -> Option<(u64, [u64; SUMS])> {
    let (round, rest) = bytes.split_first_chunk()?;
    let mut sums = [0; SUMS];
    if rest.len() != SUMS * 8 {
        return None;
    }
    for (sum, bytes) in sums.iter_mut().zip(rest.chunks_exact(8)) {
        *sum = u64::from_be_bytes(bytes.try_into().ok()?);
    }
    Some((u64::from_be_bytes(*round), sums))
}

/// For the fuzzer: whatever the bytes are, they are read or refused, and states that are read are written as some that read alike.
#[cfg(feature = "test-util")]
pub(crate) fn read_any(bytes: &[u8]) {
    let _either = comparison(bytes);
    let mut written = Vec::new();
    for state in states(bytes) {
        assert!(put(&mut written, &state), "a state that was read can be written");
    }
    let mut again = Vec::new();
    for state in states(&written) {
        assert!(put(&mut again, &state));
    }
    assert_eq!(written, again);
}
