//! The transport: a mesh, and the tasks that keep it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::{Audience, Capabilities, Inbox, Incarnation, Received, Room, SendError, Transport};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::mesh::Mesh;
use crate::resolve::split;
use crate::roster::Roster;
use crate::tls::Trust;
use crate::wire::{MAX_FRAME, Unit};
use crate::{Resolve, SystemResolver, UnicastConfig, UnicastError, gate, seek};

/// What came and waits at most: beyond it this node loses frames, and is told so.
const CAME: Room = Room { frames: 65_536, bytes: 64 << 20 };
/// What waits to be sent has so long when the node goes.
const PARTING: Duration = Duration::from_millis(500);

/// A node's place in the cluster.
pub struct UnicastTransport {
    mesh: Arc<Mesh>,
    /// Those that let in, dial and look at certificates.
    tasks: Mutex<JoinSet<()>>,
    departures: tokio::sync::Mutex<mpsc::UnboundedReceiver<Incarnation>>,
}

impl UnicastTransport {
    /// Takes the place. Waits for nobody: peers come when they come.
    ///
    /// # Errors
    /// [`UnicastError`].
    pub async fn open(config: UnicastConfig, incarnation: Incarnation) -> Result<Self, UnicastError> {
        Self::open_with(config, incarnation, Arc::new(SystemResolver)).await
    }

    /// Takes the place, with another way from names to addresses.
    ///
    /// # Errors
    /// [`UnicastError`].
    pub async fn open_with(
        config: UnicastConfig,
        incarnation: Incarnation,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, UnicastError> {
        config.check()?;
        let trust = config.tls.as_ref().map(Trust::read).transpose()?;
        let (mut listeners, mut listening, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        for address in &config.listen {
            let refused = |failure| UnicastError::Listen(address.clone(), failure);
            let listener = TcpListener::bind(address).await.map_err(refused)?;
            let at = listener.local_addr().map_err(refused)?;
            // A name stays one; a port that the system gave is told instead of 0.
            let is_name = |(host, _): &(&str, u16)| host.parse::<std::net::IpAddr>().is_err();
            addresses.push(match split(address).filter(is_name) {
                Some((host, _)) => format!("{host}:{}", at.port()),
                None => at.to_string(),
            });
            listening.push(at);
            listeners.push(listener);
        }
        let (departed, departures) = mpsc::unbounded_channel();
        let inbox = Arc::new(Inbox::new(CAME));
        let roster = Roster::new(incarnation, Arc::clone(&inbox), departed);
        let mesh = Mesh::new(config, incarnation, resolver, trust, (listening, addresses), (roster, inbox));
        let (mesh, mut tasks) = (Arc::new(mesh), JoinSet::new());
        for listener in listeners {
            tasks.spawn(gate::keep(Arc::clone(&mesh), listener));
        }
        tasks.spawn(seek::seek(Arc::clone(&mesh)));
        let watching = Arc::clone(&mesh);
        tasks.spawn(async move { watching.watch_certificates().await });
        Ok(Self { mesh, tasks: Mutex::new(tasks), departures: tokio::sync::Mutex::new(departures) })
    }
}

#[async_trait]
impl Transport for UnicastTransport {
    fn capabilities(&self) -> Capabilities {
        let encrypted = self.mesh.config.tls.is_some();
        Capabilities {
            name: self.mesh.config.name,
            max_frame: MAX_FRAME,
            addressed: true,
            records: true,
            encrypted_link: encrypted,
            peer_authentication: encrypted,
            tells_departures: true,
        }
    }

    fn send(&self, to: Audience, frame: &[u8]) -> Result<(), SendError> {
        let unit = Unit::frame(frame).ok_or(SendError::TooLarge(frame.len()))?;
        let taken = match to {
            // To nobody is to everybody, too.
            Audience::Everybody => {
                let (took, there) = self.mesh.roster.tell_everybody(&unit);
                took > 0 || there == 0
            }
            Audience::One(who) => self.mesh.roster.tell(who, unit),
        };
        if taken { Ok(()) } else { Err(SendError::Unavailable(None)) }
    }

    async fn receive(&self) -> Option<Received> {
        let mut departures = self.departures.lock().await;
        // The sender of departures lives as long as this does: there is always a next one to wait for.
        tokio::select! {
            biased;
            Some(who) = departures.recv() => Some(Received::Departed(who)),
            received = self.mesh.inbox.take() => received,
        }
    }

    fn describe(&self) -> Vec<String> {
        self.mesh.describe()
    }

    async fn close(&self) {
        // Nobody is let in or dialed any more.
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
        self.mesh.roster.leave();
        let _as_far_as_it_went = timeout(PARTING, self.mesh.deserted()).await.is_ok();
        self.mesh.end();
        self.mesh.inbox.close();
    }
}

impl Drop for UnicastTransport {
    fn drop(&mut self) {
        self.tasks.lock().abort_all();
        self.mesh.end();
        self.mesh.inbox.close();
    }
}
