//! Connections whose only meaning is that they are there: the system ends them when a process dies, however it dies.
//!
//! A node that is connected to says its incarnation and nothing else; whoever connected waits for the end. What is no node, or another one,
//! is let go. Nothing that could be forged here does more than make a node look gone until its next beat.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use cluster::Incarnation;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

/// How long a node may take to be connected to, and to say who it is.
const HELLO: Duration = Duration::from_secs(1);
/// Connections that are let in.
const LET_IN: usize = 256;

/// Lets others watch this process, for ever.
pub(crate) async fn be_watched(listener: TcpListener, incarnation: Incarnation) {
    let mut watchers = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                while watchers.try_join_next().is_some() {}
                if watchers.len() < LET_IN {
                    watchers.spawn(greet(stream, incarnation));
                } else {
                    debug!(%from, "too many watch this node");
                }
            }
            // No descriptors, say: they may come back.
            Err(failure) => {
                debug!(failure = &failure as &dyn std::error::Error, "a connection was not taken");
                tokio::time::sleep(HELLO).await;
            }
        }
    }
}

async fn greet(mut stream: TcpStream, incarnation: Incarnation) {
    let said = keep_alive(&stream).is_ok() && stream.write_all(&incarnation.0).await.is_ok();
    if said {
        // Nothing comes: this waits for the end.
        let _ended = stream.read_u8().await;
    }
}

/// What came of connecting to a node.
pub(crate) enum Reached {
    /// It is there, and is this one.
    It(TcpStream),
    /// The system there says that nobody listens, or nobody any more.
    Nobody,
    /// There is no way there, or somebody else is.
    Nothing,
}

/// Connects to a node, and makes sure that it is this one.
pub(crate) async fn reach(who: Incarnation, at: SocketAddr, from: SocketAddr) -> Reached {
    let reached = async {
        let socket = match at {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        }?;
        // From the interface of the cluster, and no other.
        socket.bind(from)?;
        let mut stream = socket.connect(at).await?;
        keep_alive(&stream)?;
        let mut said = [0; 16];
        stream.read_exact(&mut said).await?;
        Ok::<_, io::Error>(if said == who.0 { Reached::It(stream) } else { Reached::Nothing })
    };
    match timeout(HELLO, reached).await {
        Ok(Ok(reached)) => reached,
        Ok(Err(failure)) if failure.kind() == io::ErrorKind::ConnectionRefused || hung_up(&failure) => Reached::Nobody,
        Ok(Err(_)) | Err(_) => Reached::Nothing,
    }
}

/// Whether the other process ended the connection, rather than the network.
fn hung_up(failure: &io::Error) -> bool {
    matches!(failure.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

/// Waits until the connection ends; answers whether the other process ended it.
pub(crate) async fn ended(mut stream: TcpStream) -> bool {
    match stream.read_u8().await {
        // It says nothing more, so whatever this is, it is no node.
        Ok(_) => false,
        Err(failure) => hung_up(&failure),
    }
}

/// A peer behind a cut is given up after some seconds.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let often =
        TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(1)).with_retries(5);
    SockRef::from(stream).set_tcp_keepalive(&often)
}
