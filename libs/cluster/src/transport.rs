//! The port that a transport plugs into.

use std::fmt;

use async_trait::async_trait;

/// One life of a node's process: random, made at its start. A node that starts again under the same name is another
/// incarnation, so what is left of its former life cannot be mistaken for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub [u8; 16]);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incarnation({self})")
    }
}

/// Who a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Every other node of the cluster.
    Everybody,
    /// One node. Only where [`Capabilities::addressed`].
    One(Incarnation),
}

/// What a transport can do. A configuration that needs more refuses to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Its name in the configuration: `unicast`, `multicast`, …
    pub name: &'static str,
    /// Bytes that a frame may have.
    pub max_frame: usize,
    /// Whether a frame can be sent to one node.
    pub addressed: bool,
    /// Whether what was committed is worth sending. Where it is not, nodes tell each other how long the log has become, and read it.
    pub records: bool,
    /// Whether the link itself is encrypted, beneath the sealed frames.
    pub encrypted_link: bool,
    /// Whether each node proves who it is by a certificate of its own.
    pub peer_authentication: bool,
    /// Whether it tells at once that a peer's process has gone ([`Received::Departed`]).
    pub tells_departures: bool,
}

/// What came from the transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A frame, from anybody: it is not to be believed before it was opened.
    Frame(Vec<u8>),
    /// Frames may have been lost here: a queue ran over, or the connection was made anew.
    Lost,
    /// A peer's process has gone, or its connection has: a hint that it need not be waited for.
    Departed(Incarnation),
}

/// Why a frame was not sent. The caller drops it: what is missed is read from the log.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// There is no connection, or no room to keep the frame until it can be sent.
    #[error("the transport takes no frames now")]
    Unavailable(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),
    /// The frame is larger than [`Capabilities::max_frame`].
    #[error("a frame of {0} bytes is too large")]
    TooLarge(usize),
    /// The transport cannot address one node.
    #[error("the transport sends to everybody only")]
    NotAddressed,
}

/// Carries sealed frames between the nodes of one cluster.
///
/// *Delivery.* It may lose, repeat and reorder frames: whatever is missed is read from the log. It should not, where that
/// costs nothing. A node need not get its own frames, and drops those it gets. *Never waits.* [`Transport::send`]
/// returns at once, whatever the state of any peer: what a slow peer cannot take is dropped for that peer alone. *Trust.* Frames are sealed
/// and authenticated above it; a transport adds what its medium offers (TLS) and says so. *Shape.* Frames arrive whole or not at all.
/// *Concurrency.* `send` may be called from many tasks at once; `receive` from one. *Recovery* is its own: it connects again by itself,
/// for ever, and resolves names anew each time. *Cancellation.* Dropping the future of `receive` loses no frame.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Sends a frame.
    ///
    /// # Errors
    /// [`SendError`]: then the frame was not sent to anybody.
    fn send(&self, to: Audience, frame: &[u8]) -> Result<(), SendError>;

    /// The next thing that came; waits until something does. `None` once closed.
    async fn receive(&self) -> Option<Received>;

    /// The frame that [`Transport::receive`] gave last was opened: it is an authentic and new one of this node. Said before the next
    /// is received. A transport that learns addresses from what it is sent can believe this one; others need not care.
    fn authentic(&self, from: Incarnation) {
        let _not_needed = from;
    }

    /// What a person would want to know of its state, for `counterfoil cluster check`: addresses, connections, what was refused. One
    /// line each.
    fn describe(&self) -> Vec<String>;

    /// Sends what waits, as far as that takes no longer than a moment, and lets go of sockets and connections.
    async fn close(&self);
}
