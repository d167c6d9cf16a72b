//! The transport: sessions, the thread that feeds them, and the task that looks after them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::{Audience, Capabilities, Inbox, Incarnation, Outbox, Received, Room, SendError, Transport};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};
use zenoh::bytes::ZBytes;

use crate::certificates::Certificates;
use crate::config::resolve;
use crate::session::{Peers, Session};
use crate::{UnicastConfig, UnicastError, UnicastTls};

/// Bytes of a frame: with what zenoh puts before it, it fits in one batch of a connection (65,535 bytes) and is not cut.
const MAX_FRAME: usize = 60 << 10;
/// What waits to be sent at most: a burst is kept here while zenoh serves slow peers.
const TO_SEND: Room = Room { frames: 65_536, bytes: 16 << 20 };
/// What is taken of it at once.
const AT_ONCE: Room = Room { frames: 256, bytes: 1 << 20 };
/// What came and waits at most: beyond it this node loses frames, and is told so.
const CAME: Room = Room { frames: 65_536, bytes: 64 << 20 };
/// What waits to be sent has so long when the node goes.
const PARTING: Duration = Duration::from_millis(500);
/// The last frames have so long to leave a connection's queue before it closes.
const LEAVING_THE_QUEUE: Duration = Duration::from_millis(30);
/// A session with new certificates has so long to meet everybody before the old one goes.
const TAKE_OVER: Duration = Duration::from_secs(10);
/// And so long after that, for the peers to know what it listens to.
const SETTLING: Duration = Duration::from_millis(500);

/// A node's place in the cluster, over zenoh.
pub struct UnicastTransport {
    shared: Arc<Shared>,
    care: JoinHandle<()>,
    departures: tokio::sync::Mutex<mpsc::UnboundedReceiver<Incarnation>>,
    /// Becomes true when all that waited was given to zenoh.
    drained: watch::Receiver<bool>,
}

struct Shared {
    config: UnicastConfig,
    incarnation: Incarnation,
    /// Usually one; two while certificates change.
    sessions: RwLock<Vec<Arc<Session>>>,
    outbox: Outbox,
    inbox: Arc<Inbox>,
    peers: Arc<Peers>,
    /// What became of each configured peer when last looked at.
    tried: Mutex<Vec<String>>,
    certificates: Mutex<Option<String>>,
}

impl UnicastTransport {
    /// Takes the place. Waits for nobody: peers come when they come.
    ///
    /// # Errors
    /// [`UnicastError`].
    pub async fn open(config: UnicastConfig, incarnation: Incarnation) -> Result<Self, UnicastError> {
        config.check()?;
        let certificates = config.tls.as_ref().map(Certificates::read).transpose()?;
        let (departed, departures) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            config,
            incarnation,
            sessions: RwLock::default(),
            outbox: Outbox::new(TO_SEND),
            inbox: Arc::new(Inbox::new(CAME)),
            peers: Arc::new(Peers::new(departed)),
            tried: Mutex::default(),
            certificates: Mutex::default(),
        });
        shared.open_session(0).await?;
        let (done, drained) = watch::channel(false);
        let (feeding, runtime) = (Arc::clone(&shared), Handle::current());
        // A thread, because zenoh may keep its caller waiting for a moment where a connection is congested.
        std::thread::Builder::new()
            .name("cluster-send".into())
            .spawn(move || {
                feeding.feed(&runtime);
                done.send_replace(true);
            })
            .map_err(|failure| UnicastError::Start(failure.to_string()))?;
        let care = tokio::spawn(Arc::clone(&shared).care(certificates));
        Ok(Self { shared, care, departures: tokio::sync::Mutex::new(departures), drained })
    }
}

#[async_trait]
impl Transport for UnicastTransport {
    fn capabilities(&self) -> Capabilities {
        let encrypted = self.shared.config.tls.is_some();
        Capabilities {
            name: "unicast",
            max_frame: MAX_FRAME,
            addressed: true,
            records: true,
            encrypted_link: encrypted,
            peer_authentication: encrypted,
            tells_departures: true,
        }
    }

    fn send(&self, to: Audience, frame: &[u8]) -> Result<(), SendError> {
        if frame.len() > MAX_FRAME {
            return Err(SendError::TooLarge(frame.len()));
        }
        if self.shared.outbox.put(to, frame) { Ok(()) } else { Err(SendError::Unavailable(None)) }
    }

    async fn receive(&self) -> Option<Received> {
        let mut departures = self.departures.lock().await;
        // The sender of departures lives as long as this does: there is always a next one to wait for.
        tokio::select! {
            biased;
            Some(who) = departures.recv() => Some(Received::Departed(who)),
            received = self.shared.inbox.take() => received,
        }
    }

    fn describe(&self) -> Vec<String> {
        // zenoh answers in place, which not every kind of runtime lets it: on a thread that has none.
        let shared = Arc::clone(&self.shared);
        let asked = std::thread::Builder::new().spawn(move || shared.describe());
        asked.ok().and_then(|asked| asked.join().ok()).unwrap_or_default()
    }

    async fn close(&self) {
        self.care.abort();
        self.shared.outbox.close();
        let mut drained = self.drained.clone();
        let _as_far_as_it_went = timeout(PARTING, drained.wait_for(|drained| *drained)).await.is_ok();
        sleep(LEAVING_THE_QUEUE).await;
        let sessions = std::mem::take(&mut *self.shared.sessions.write());
        for session in sessions {
            session.close().await;
        }
        self.shared.inbox.close();
    }
}

impl Drop for UnicastTransport {
    fn drop(&mut self) {
        self.care.abort();
        self.shared.outbox.close();
        self.shared.inbox.close();
        let sessions = std::mem::take(&mut *self.shared.sessions.write());
        // zenoh closes in place, which not every kind of runtime lets it, and may take its time.
        let _without_a_thread_they_close_here = std::thread::Builder::new().spawn(move || drop(sessions));
    }
}

impl Shared {
    async fn open_session(&self, number: u64) -> Result<(), UnicastError> {
        let config = self.config.zenoh(&self.config.others().await, number > 0)?;
        let cluster = &self.config.cluster_id;
        let session = Session::open(config, cluster, self.incarnation, number, &self.inbox, &self.peers).await?;
        self.sessions.write().push(Arc::new(session));
        Ok(())
    }

    /// Gives zenoh what is to be sent, until closed.
    fn feed(&self, runtime: &Handle) {
        while let Some(frames) = runtime.block_on(self.outbox.take(AT_ONCE)) {
            for (to, frame) in frames {
                let frame = ZBytes::from(frame);
                for session in &*self.sessions.read() {
                    if let Err(failure) = session.send(to, frame.clone()) {
                        debug!(failure = failure.to_string(), "a frame was not sent");
                    }
                }
            }
        }
    }

    /// Looks after peers and certificates, for ever.
    async fn care(self: Arc<Self>, mut certificates: Option<Certificates>) {
        let mut looks = interval(Duration::from_secs(1));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        let mut number = 0;
        loop {
            looks.tick().await;
            self.look_at_peers().await;
            let (Some(tls), Some(used)) = (&self.config.tls, &mut certificates) else { continue };
            if looked.elapsed() < tls.watch {
                continue;
            }
            looked = Instant::now();
            if let Some(new) = self.changed(tls, used).await {
                number += 1;
                if self.take_over(number).await {
                    *used = new;
                }
            }
        }
    }

    /// Certificates that differ from those in use, and can be used.
    async fn changed(&self, tls: &UnicastTls, used: &Certificates) -> Option<Certificates> {
        let tls = tls.clone();
        let read = tokio::task::spawn_blocking(move || Certificates::read(&tls)).await.ok()?;
        let mut trouble = self.certificates.lock();
        match read {
            Ok(new) => {
                *trouble = None;
                (new != *used).then_some(new)
            }
            // Being written, perhaps: said once.
            Err(failure) => {
                let failure = failure.to_string();
                if trouble.as_ref() != Some(&failure) {
                    warn!(failure, "the cluster's certificates cannot be used; those read before stay in use");
                }
                *trouble = Some(failure);
                None
            }
        }
    }

    /// Puts a session with the certificates that are in the files now beside the one there is, and lets that one go when the new
    /// one sees everybody. Between, both hear and say the same; whoever listens takes each frame once.
    async fn take_over(&self, number: u64) -> bool {
        let old: Vec<Arc<Session>> = self.sessions.read().clone();
        // Files change on all nodes at about the same time; two that change over at once would miss one another.
        let [turn, ..] = self.incarnation.0;
        sleep(Duration::from_millis(u64::from(turn) * 10)).await;
        if let Err(failure) = self.open_session(number).await {
            warn!(failure = &failure as &dyn std::error::Error, "no session with the new certificates");
            return false;
        }
        let until = Instant::now() + TAKE_OVER;
        while old.iter().any(|old| !self.peers.as_many(number, old.number())) && Instant::now() < until {
            sleep(Duration::from_millis(50)).await;
        }
        sleep(SETTLING).await;
        self.sessions.write().retain(|session| session.number() == number);
        sleep(LEAVING_THE_QUEUE).await;
        for session in old {
            let number = session.number();
            session.close().await;
            self.peers.without(number);
        }
        info!("the cluster's connections have new certificates");
        true
    }

    /// Which of the configured peers there is a connection to.
    async fn look_at_peers(&self) {
        let sessions = self.sessions.read().clone();
        let connections: Vec<_> = sessions.iter().flat_map(|session| session.connections()).collect();
        let mut tried = Vec::new();
        for peer in self.config.others().await {
            match resolve(&peer).await {
                Err(failure) => tried.push(format!("peer {peer}: no address: {failure}")),
                Ok(addresses) => {
                    let connected = addresses.iter().any(|address| {
                        connections
                            .iter()
                            .any(|(to, ..)| to.split_once('/').is_some_and(|(_, to)| to == address.to_string()))
                    });
                    if !connected {
                        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                        tried.push(format!(
                            "peer {peer}: no connection made from here to {}; tried again each second",
                            addresses.join(", ")
                        ));
                    }
                }
            }
        }
        *self.tried.lock() = tried;
    }

    fn describe(&self) -> Vec<String> {
        let sessions = self.sessions.read().clone();
        let mut lines: Vec<_> = self.config.listen.iter().map(|address| format!("listens at {address}")).collect();
        for session in &sessions {
            lines.extend(session.addresses().into_iter().map(|address| format!("other machines are told {address}")));
            for (to, from, name) in session.connections() {
                let name = name.map(|name| format!(", certificate of {name}")).unwrap_or_default();
                lines.push(format!("connected to {to} from {from}{name}"));
            }
        }
        let here: Vec<_> = self.peers.here().iter().map(ToString::to_string).collect();
        lines.push(format!("{} nodes of this cluster are reached: {}", here.len(), here.join(", ")));
        lines.extend(self.tried.lock().iter().cloned());
        lines.extend(self.certificates.lock().clone());
        lines
    }
}
