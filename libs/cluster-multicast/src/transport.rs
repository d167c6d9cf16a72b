//! The transport.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cluster::{Audience, Capabilities, Incarnation, Received, SendError, Transport};
use parking_lot::Mutex;
use quinn_udp::RecvMeta;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::datagram::{FRAME, HERE, Here, KIND, headers};
use crate::interface::Place;
use crate::outbox::{Batch, Outbox, Waiting};
use crate::pace::Pace;
use crate::peers::Peers;
use crate::sockets::{Sockets, Udp, scoped};
use crate::{MulticastConfig, MulticastError, house, watch};

/// Frames by IP multicast.
pub struct MulticastTransport {
    shared: Arc<Shared>,
    inbox: tokio::sync::Mutex<Inbox>,
    tasks: Mutex<JoinSet<()>>,
}

/// What the tasks of one transport have in common.
pub(crate) struct Shared {
    pub(crate) config: MulticastConfig,
    pub(crate) incarnation: Incarnation,
    pub(crate) group: SocketAddr,
    pub(crate) place: Place,
    pub(crate) outbox: Outbox,
    pub(crate) peers: Mutex<Peers>,
    pub(crate) counters: Counters,
    /// A node was announced that was not known, or not so.
    pub(crate) news: Notify,
    own: SocketAddr,
    mtu: usize,
    receive_buffer: usize,
    events: mpsc::Sender<Received>,
    /// When a datagram of our own came back.
    returned: Mutex<Option<Instant>>,
    troubles: Mutex<Troubles>,
    sent: Notify,
    closed: CancellationToken,
}

/// What is counted for people.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) dropped: AtomicU64,
    too_large: AtomicU64,
    unsent: AtomicU64,
    strange: AtomicU64,
}

/// The last thing that went wrong.
#[derive(Debug, Default)]
struct Troubles {
    last: Option<(&'static str, String, Instant)>,
}

/// Where frames wait that were received together.
struct Inbox {
    ready: VecDeque<Frame>,
    batches: mpsc::Receiver<VecDeque<Frame>>,
    events: mpsc::Receiver<Received>,
}

/// A frame, and where it came from.
type Frame = (SocketAddr, Vec<u8>);

/// Batches of frames that may wait to be received. Beyond them they wait in the sockets' buffers, where those that are lost are counted.
const BATCHES: usize = 8;
/// Departures and losses that may wait to be told.
const EVENTS: usize = 1_024;
/// Buffers that are filled at once, each as large as what the system may put together (UDP receive offload).
const BUFFERS: usize = 8;
const BUFFER: usize = 1 << 16;
/// How long what waits may take to be sent when a node goes.
const MOMENT: Duration = Duration::from_millis(250);
/// The same trouble is told once in this time.
const AGAIN: Duration = Duration::from_secs(60);
/// The least that IPv6 allows, RFC 8200 section 5.
const LEAST_MTU: usize = 1_280;

impl MulticastTransport {
    /// Joins the group. To be called within a Tokio runtime, which drives it.
    ///
    /// # Errors
    /// [`MulticastError`].
    pub fn open(config: MulticastConfig, incarnation: Incarnation) -> Result<Self, MulticastError> {
        if !config.group.ip().is_multicast() || config.group.port() == 0 {
            return Err(MulticastError::NotAGroup(config.group));
        }
        if !(LEAST_MTU..=usize::from(u16::MAX)).contains(&config.mtu) {
            return Err(MulticastError::Mtu(config.mtu));
        }
        if config.rate == 0 {
            return Err(MulticastError::Rate);
        }
        let place = Place::find(config.interface.as_ref(), config.group)?;
        let mtu = place.mtu().map_or(config.mtu, |of_interface| config.mtu.min(of_interface.max(LEAST_MTU)));
        if mtu < config.mtu {
            warn!(interface = place.name, mtu, configured = config.mtu, "the interface takes smaller packets only");
        }
        let (sockets, own) = Sockets::open(&config, &place)?;
        let sockets = Arc::new(sockets);
        let (listener, port) = house::listener(&place)?;
        let (events, to_tell) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            group: scoped(config.group, &place),
            receive_buffer: sockets.receive_buffer(),
            config,
            incarnation,
            place,
            own,
            mtu,
            events,
            outbox: Outbox::default(),
            peers: Mutex::default(),
            counters: Counters::default(),
            news: Notify::new(),
            returned: Mutex::default(),
            troubles: Mutex::default(),
            sent: Notify::new(),
            closed: CancellationToken::new(),
        });
        // Before any frame: whoever hears one knows where this node is, and can watch it.
        let here = house::announcement(incarnation, port);
        let _there_is_room = shared.outbox.push(shared.group, here.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(send_all(Arc::clone(&shared), Arc::clone(&sockets)));
        tasks.spawn(house::keep(Arc::clone(&shared), Arc::clone(&sockets), here));
        tasks.spawn(watch::be_watched(listener, incarnation));
        let (frames, batches) = mpsc::channel(BATCHES);
        tasks.spawn(receive_all(Arc::clone(&shared), sockets, frames));
        let inbox = Inbox { ready: VecDeque::new(), batches, events: to_tell };
        Ok(Self { shared, inbox: tokio::sync::Mutex::new(inbox), tasks: Mutex::new(tasks) })
    }

    /// Datagrams that the system dropped so far because this node's receive buffers were full.
    pub fn dropped(&self) -> u64 {
        self.shared.counters.dropped.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Transport for MulticastTransport {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "multicast",
            max_frame: self.shared.mtu - headers(self.shared.group) - KIND,
            addressed: true,
            records: true,
            encrypted_link: false,
            peer_authentication: false,
            tells_departures: true,
        }
    }

    fn send(&self, to: Audience, frame: &[u8]) -> Result<(), SendError> {
        if frame.len() > self.capabilities().max_frame {
            return Err(SendError::TooLarge(frame.len()));
        }
        let to = match to {
            Audience::Everybody => Some(self.shared.group),
            Audience::One(who) => self.shared.peers.lock().address(who),
        };
        let mut datagram = Vec::with_capacity(KIND + frame.len());
        datagram.push(FRAME);
        datagram.extend_from_slice(frame);
        let taken = to.is_some_and(|to| self.shared.outbox.push(to, datagram));
        if taken { Ok(()) } else { Err(SendError::Unavailable(None)) }
    }

    async fn receive(&self) -> Option<Received> {
        self.inbox.lock().await.next(&self.shared).await
    }

    fn authentic(&self, from: Incarnation) {
        self.shared.peers.lock().confirm(from, Instant::now());
    }

    fn describe(&self) -> Vec<String> {
        self.shared.describe(Instant::now())
    }

    async fn close(&self) {
        self.shared.outbox.close();
        let _what_waits_longer_is_lost = timeout(MOMENT, self.shared.sent.notified()).await;
        self.shared.closed.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
    }
}

impl Drop for MulticastTransport {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

impl std::fmt::Debug for MulticastTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MulticastTransport({} on {})", self.shared.group, self.shared.place.name)
    }
}

impl Inbox {
    async fn next(&mut self, shared: &Shared) -> Option<Received> {
        loop {
            if let Some((from, frame)) = self.ready.pop_front() {
                shared.peers.lock().hand_up(from);
                return Some(Received::Frame(frame));
            }
            if shared.closed.is_cancelled() {
                return None;
            }
            tokio::select! {
                () = shared.closed.cancelled() => return None,
                told = self.events.recv() => return told,
                batch = self.batches.recv() => self.ready = batch?,
            }
        }
    }
}

/// Takes from the sockets what comes, as long as there is room for it.
async fn receive_all(shared: Arc<Shared>, sockets: Arc<Sockets>, frames: mpsc::Sender<VecDeque<Frame>>) {
    let mut buffers = vec![0; BUFFERS * BUFFER];
    while let Ok(room) = frames.reserve().await {
        let socket = tokio::select! {
            ready = sockets.group.readable() => ready.map(|()| &sockets.group),
            ready = sockets.own.readable() => ready.map(|()| &sockets.own),
        };
        match socket.and_then(|socket| shared.take_from(socket, &mut buffers)) {
            Ok(batch) if batch.is_empty() => {}
            Ok(batch) => room.send(batch),
            Err(failure) if failure.kind() == io::ErrorKind::WouldBlock => {}
            Err(failure) => {
                shared.trouble("nothing can be received", &failure);
                // It does not get better by asking at once.
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

impl Shared {
    /// Takes what a socket has: frames are handed on, all else is dealt with.
    fn take_from(&self, socket: &Udp, buffers: &mut [u8]) -> io::Result<VecDeque<Frame>> {
        let mut metas = [RecvMeta::default(); BUFFERS];
        let filled = {
            let mut buffers = buffers.chunks_exact_mut(BUFFER);
            let mut buffers: [_; BUFFERS] =
                std::array::from_fn(|_| IoSliceMut::new(buffers.next().unwrap_or_default()));
            socket.receive(&mut buffers, &mut metas)?
        };
        let (now, mut frames) = (Instant::now(), VecDeque::new());
        for (meta, buffer) in metas.iter().take(filled).zip(buffers.chunks_exact(BUFFER)) {
            let datagrams = buffer.get(..meta.len).unwrap_or_default().chunks(meta.stride.max(1));
            if (meta.addr.ip(), meta.addr.port()) == (self.own.ip(), self.own.port()) {
                *self.returned.lock() = Some(now);
                continue;
            }
            self.peers.lock().came(meta.addr, datagrams.len() as u64, meta.stride, now);
            for datagram in datagrams {
                match datagram.split_first() {
                    Some((&FRAME, frame)) => frames.push_back((meta.addr, frame.to_vec())),
                    Some((&HERE, here)) => self.announced(here, meta.addr, now),
                    _ => {
                        self.counters.strange.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        Ok(frames)
    }

    fn announced(&self, here: &[u8], from: SocketAddr, now: Instant) {
        match Here::decode(here) {
            Some(here) if here.incarnation == self.incarnation => {}
            Some(here) => {
                if self.peers.lock().announce(here, from, now) {
                    self.news.notify_one();
                }
            }
            None => {
                self.counters.strange.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Tells whoever receives. What does not fit is lost: so much is only told of many nodes that go at once, and silence shows them too.
    pub(crate) fn tell(&self, what: Received) {
        let _silence_shows_it = self.events.try_send(what);
    }

    /// Something went wrong that may be right again.
    pub(crate) fn trouble(&self, what: &'static str, why: &dyn std::error::Error) {
        let (now, why) = (Instant::now(), why.to_string());
        let mut troubles = self.troubles.lock();
        let known = troubles.last.as_ref().is_some_and(|(last, cause, at)| {
            *last == what && *cause == why && now.saturating_duration_since(*at) < AGAIN
        });
        if !known {
            warn!(why, "{what}");
            troubles.last = Some((what, why, now));
        }
    }

    fn describe(&self, now: Instant) -> Vec<String> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Self { group, place, own, mtu, counters, config, .. } = self;
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        let mut lines = vec![format!(
            "group {group} on {} ({}), from {own}, packets of at most {mtu} bytes, {} hop(s)",
            place.name, place.address, config.ttl
        )];
        lines.push(match *self.returned.lock() {
            _ if !config.loopback => "datagrams of our own are not asked for (loopback is off)".to_owned(),
            Some(at) => format!("a datagram of our own came back {:.1} s ago", ago(at)),
            None => "no datagram of our own has come back: the system does not send to this group here".to_owned(),
        });
        // Linux says the double of what it was asked for, which is what it books.
        let allowed = if cfg!(target_os = "linux") { self.receive_buffer / 2 } else { self.receive_buffer };
        lines.push(if allowed < config.receive_buffer {
            let asked = config.receive_buffer;
            format!("receive buffers of {allowed} bytes, not {asked}: the system allows no more (net.core.rmem_max)")
        } else {
            format!("receive buffers of {allowed} bytes")
        });
        lines.push(format!("dropped by the system because they were full: {}", read(&counters.dropped)));
        let (too_large, unsent) = (read(&counters.too_large), read(&counters.unsent));
        if too_large > 0 {
            lines.push(format!("not sent, too large for the path: {too_large}; set a smaller MTU than {mtu}"));
        }
        lines.push(format!("not sent for other reasons: {unsent}; waiting to be sent: {}", self.outbox.waiting()));
        let strange = read(&counters.strange);
        if strange > 0 {
            lines.push(format!("datagrams that are none of a cluster: {strange}"));
        }
        if let Some((what, why, at)) = &self.troubles.lock().last {
            lines.push(format!("{what} ({why}), {:.0} s ago", ago(*at)));
        }
        let sources = self.peers.lock().describe(now);
        if sources.is_empty() {
            lines.push("nothing has come from anybody else for half a minute".to_owned());
        }
        lines.extend(sources);
        lines
    }
}

/// Sends what waits, at a pace, until there is no more to come.
async fn send_all(shared: Arc<Shared>, sockets: Arc<Sockets>) {
    // Half of what peers are likely to have: as much as this node has.
    let burst = shared.receive_buffer as u64 / 2;
    let mut pace = Pace::new(burst, shared.config.rate, Instant::now());
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        let allowance = pace.allowance(Instant::now());
        match shared.outbox.take(allowance, sockets.own.at_once(), &mut buffer) {
            Waiting::Batch(batch) => {
                pace.spend(batch.booked);
                shared.transmit(&sockets.own, batch, &buffer).await;
            }
            Waiting::Later { booked } => sleep(pace.wait(booked)).await,
            Waiting::Nothing => shared.outbox.filled().await,
            Waiting::Closed => break,
        }
    }
    shared.sent.notify_one();
}

impl Shared {
    async fn transmit(&self, socket: &Udp, batch: Batch, datagrams: &[u8]) {
        let together = self.until_sent(socket, batch.to, datagrams, batch.segment).await;
        let Err(failure) = together else { return };
        if batch.count <= 1 {
            return self.unsent(&failure);
        }
        // Some interfaces do not take many at once.
        debug!(failure = &failure as &dyn std::error::Error, "sending one by one");
        for datagram in datagrams.chunks(batch.segment) {
            if let Err(failure) = self.until_sent(socket, batch.to, datagram, datagram.len()).await {
                self.unsent(&failure);
            }
        }
    }

    async fn until_sent(&self, socket: &Udp, to: SocketAddr, datagrams: &[u8], segment: usize) -> io::Result<()> {
        loop {
            match socket.send(to, datagrams, segment) {
                Err(failure) if failure.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
                sent => return sent,
            }
        }
    }

    fn unsent(&self, failure: &io::Error) {
        if is_too_large(failure) {
            self.counters.too_large.fetch_add(1, Ordering::Relaxed);
            self.trouble("a datagram is too large for the path: set a smaller MTU", failure);
        } else {
            self.counters.unsent.fetch_add(1, Ordering::Relaxed);
            self.trouble("a datagram was not sent", failure);
        }
    }
}

/// `EMSGSIZE`, which has no kind of its own.
fn is_too_large(failure: &io::Error) -> bool {
    const EMSGSIZE: i32 = if cfg!(target_os = "linux") { 90 } else { 40 };
    failure.raw_os_error() == Some(EMSGSIZE)
}
