//! Carries the frames of a cluster over Redis: each is published to a channel that every node, or one node, has subscribed to.
//!
//! Two connections, each made again for ever: one publishes (module `publisher`), one hears (module `listener`). What is published while a
//! node is not connected that node never gets; once it is back it is told that it may have missed something.
//!
//! What it deliberately lacks: streams and lists, which would keep what the log keeps; any trust in Redis, which carries sealed frames and can
//! withhold, repeat and count them, and no more.
//!
//! Channels: `{ns}:cluster:all` and `{ns}:cluster:to:<incarnation>`. They are the server's, whatever database the URL names. A message is the
//! sender's incarnation and the frame: the first only tells a node that it hears itself.
//!
//! Needs Redis 6 (RESP3). Start with [`RedisTransport`].

mod listener;
mod publisher;
mod server;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use cluster::{
    Audience, Backoff, Capabilities, Inbox, Incarnation, Outbox, Received, Room, SendError, TellAndHear, Transport,
    Upkeep, is_namespace,
};
use redis::RedisError;

use crate::server::Server;

/// How to reach Redis.
#[derive(Clone)]
pub struct RedisTransportConfig {
    /// `redis://[user[:password]@]host[:port]`, `rediss://…` for TLS, or `unix:///path`.
    pub url: String,
    /// Tells clusters apart that share a Redis: 1 to 64 of `A-Z`, `a-z`, `0-9`, `-`, `_`, `.`.
    pub namespace: String,
}

impl fmt::Debug for RedisTransportConfig {
    /// Without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTransportConfig").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Why a configuration cannot be used. That Redis is not there is no reason: it may come.
#[derive(Debug, thiserror::Error)]
pub enum RedisTransportError {
    /// The URL is none that Redis can be reached by.
    #[error("the URL of Redis is not usable")]
    Url(#[source] RedisError),
    /// The namespace is malformed.
    #[error("a namespace is 1 to 64 of A-Z, a-z, 0-9, '-', '_' and '.'")]
    Namespace,
}

/// Bytes that a frame may have. Redis takes more; beyond this fewer, larger messages bring nothing.
const MAX_FRAME: usize = 60 << 10;
/// What may wait to be published: what a node commits in some tenths of a second, at its fastest.
const TO_SEND: Room = Room { frames: 8_192, bytes: 8 << 20 };
/// What may wait to be received.
const HEARD: Room = Room { frames: 65_536, bytes: 32 << 20 };

/// The transport over Redis.
pub struct RedisTransport {
    shared: Arc<Shared>,
    tasks: TellAndHear,
}

/// What both connections share.
struct Shared {
    server: Server,
    me: Incarnation,
    /// What stands before the incarnation in the name of a node's channel, and before `all`.
    prefix: String,
    outbox: Outbox,
    inbox: Inbox,
    publishing: Upkeep,
    listening: Upkeep,
}

impl Shared {
    fn channel(&self, to: Audience) -> String {
        match to {
            Audience::Everybody => format!("{}all", self.prefix),
            Audience::One(who) => format!("{}to:{who}", self.prefix),
        }
    }
}

impl RedisTransport {
    /// Connects as soon as Redis is there, which it need not be yet. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`RedisTransportError`] for a configuration that can never work.
    pub fn open(config: RedisTransportConfig, incarnation: Incarnation) -> Result<Self, RedisTransportError> {
        let RedisTransportConfig { url, namespace } = config;
        if !is_namespace(&namespace) {
            return Err(RedisTransportError::Namespace);
        }
        let shared = Arc::new(Shared {
            server: Server::new(&url).map_err(RedisTransportError::Url)?,
            me: incarnation,
            prefix: format!("{{{namespace}}}:cluster:"),
            outbox: Outbox::new(TO_SEND),
            inbox: Inbox::new(HEARD),
            publishing: Upkeep::new("telling the others through Redis", Backoff::new(incarnation, 1)),
            listening: Upkeep::new("hearing the others through Redis", Backoff::new(incarnation, 2)),
        });
        let tasks = TellAndHear::start(publisher::keep(Arc::clone(&shared)), listener::keep(Arc::clone(&shared)));
        Ok(Self { shared, tasks })
    }
}

impl fmt::Debug for RedisTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisTransport({})", self.shared.server)
    }
}

#[async_trait]
impl Transport for RedisTransport {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "redis",
            max_frame: MAX_FRAME,
            addressed: true,
            records: true,
            encrypted_link: self.shared.server.is_encrypted(),
            peer_authentication: false,
            tells_departures: false,
        }
    }

    fn send(&self, to: Audience, frame: &[u8]) -> Result<(), SendError> {
        if frame.len() > MAX_FRAME {
            return Err(SendError::TooLarge(frame.len()));
        }
        if self.shared.publishing.is_up() && self.shared.outbox.put(to, frame) {
            Ok(())
        } else {
            Err(SendError::Unavailable(None))
        }
    }

    async fn receive(&self) -> Option<Received> {
        self.shared.inbox.take().await
    }

    fn describe(&self) -> Vec<String> {
        vec![
            format!("Redis at {}", self.shared.server),
            self.shared.publishing.describe(),
            self.shared.listening.describe(),
        ]
    }

    async fn close(&self) {
        self.tasks.close(&self.shared.outbox, &self.shared.inbox).await;
    }
}
