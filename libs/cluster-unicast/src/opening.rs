//! From a socket to a connection on which both know who the other is.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openssl::error::ErrorStack;
use openssl::ssl::Ssl;
use openssl::x509::X509VerifyResult;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_openssl::SslStream;

use crate::link;
use crate::mesh::Mesh;
use crate::resolve::as_seen;
use crate::roster::{Link, Place};
use crate::tls::{Credentials, Trust};
use crate::wire::{Malformed, Node, Opening, Refusal};

/// A machine that is there answers within so long.
const CONNECTING: Duration = Duration::from_millis(400);
/// When a further packet goes that asks for a connection. The system would send one after 1, 3, 7 … s: too late for a network that is back.
const ASKED_AT: [Duration; 3] = [Duration::ZERO, Duration::from_millis(130), Duration::from_millis(260)];
/// TLS and hellos take so long at most.
const GREETING: Duration = Duration::from_millis(1_500);

/// Bytes both ways, through TLS or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that was taken into the roster.
pub(crate) struct Opened {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) peer: Node,
    pub(crate) place: Place,
    pub(crate) remote: SocketAddr,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("nobody answers")]
    Unanswered,
    #[error("the link to it is down here")]
    NoLink,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it ends the connection and has said nothing")]
    Nothing,
    #[error("it is connected to, but does not say who it is in time")]
    Slow,
    #[error("TLS: {0}")]
    Tls(String),
    #[error("{0}")]
    Stranger(#[source] Malformed),
    #[error("there is {0}")]
    Refused(Refusal),
    #[error("it takes us for {0}")]
    RefusedByPeer(Refusal),
    #[error("OpenSSL cannot be used")]
    OpenSsl(#[from] ErrorStack),
}

impl Failure {
    /// Whether it was this node itself that was met.
    pub(crate) const fn is_itself(&self) -> bool {
        matches!(self, Self::Refused(Refusal::Itself) | Self::RefusedByPeer(Refusal::Itself))
    }

    /// Whether there was no way, rather than somebody who does not want to: that can be over any moment.
    pub(crate) fn is_silence(&self) -> bool {
        match self {
            Self::Unanswered | Self::NoLink | Self::Slow => true,
            Self::Io(failure) => matches!(
                failure.kind(),
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::TimedOut
            ),
            _ => false,
        }
    }
}

/// Connects to a host at one of its addresses. Unless `blindly` it waits for the link, as long as for an answer.
pub(crate) async fn dial(mesh: &Mesh, host: &str, remote: SocketAddr, blindly: bool) -> Result<Opened, Failure> {
    if !blindly {
        timeout(CONNECTING, link::there(remote)).await.map_err(|_| Failure::NoLink)?;
    }
    let stream = timeout(CONNECTING, connect(remote)).await.map_err(|_| Failure::Unanswered)??;
    timeout(GREETING, greet(mesh, stream, Some(host))).await.map_err(|_| Failure::Slow)?
}

/// Takes somebody who connected.
pub(crate) async fn accept(mesh: &Mesh, stream: TcpStream) -> Result<Opened, Failure> {
    let greeting = async {
        // So do probes of health, and whoever had asked twice.
        if stream.peek(&mut [0]).await? == 0 { Err(Failure::Nothing) } else { greet(mesh, stream, None).await }
    };
    timeout(GREETING, greeting).await.map_err(|_| Failure::Slow)?
}

/// The first answer counts, whatever it is.
async fn connect(remote: SocketAddr) -> io::Result<TcpStream> {
    let ask = |at: Duration| async move {
        sleep(at).await;
        TcpStream::connect(remote).await
    };
    let mut asked: FuturesUnordered<_> = ASKED_AT.into_iter().map(ask).collect();
    asked.next().await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}

/// With `host` this side dialed.
async fn greet(mesh: &Mesh, tcp: TcpStream, host: Option<&str>) -> Result<Opened, Failure> {
    set_up(&tcp, mesh.config.lease)?;
    let (remote, local, dialed) = (tcp.peer_addr()?, tcp.local_addr()?, host.is_some());
    let (epoch, trust) = mesh.trust();
    let (mut stream, credentials) = match &trust {
        None => (Box::new(tcp) as Box<dyn Stream>, None),
        Some(trust) => {
            let (stream, credentials) = secure(trust, tcp, host).await?;
            (Box::new(stream) as Box<dyn Stream>, Some(Arc::new(credentials)))
        }
    };
    let allowed = trust.as_deref().zip(credentials.as_deref()).is_none_or(|(trust, peer)| trust.allows(peer));
    if dialed {
        if !allowed {
            return Err(refuse(stream, Refusal::Name).await);
        }
        say(&mut stream, Opening::Hello(mesh.hello())).await?;
    }
    let hello = match Opening::read(&mut stream).await.map_err(in_words)? {
        Opening::Hello(hello) => hello,
        Opening::Refused(why) => return Err(Failure::RefusedByPeer(why)),
    };
    let refusals = [
        (hello.cluster != mesh.config.cluster_id, Refusal::OtherCluster),
        (hello.node.incarnation == mesh.incarnation, Refusal::Itself),
        (!allowed, Refusal::Name),
    ];
    if let Some((_, why)) = refusals.into_iter().find(|(applies, _)| *applies) {
        return Err(refuse(stream, why).await);
    }
    let peer = seen_from_here(hello.node, remote);
    let Some(place) = mesh.roster.admit(&peer, Link { dialed, epoch, remote, local, credentials }) else {
        return Err(refuse(stream, Refusal::Full).await);
    };
    if !dialed {
        say(&mut stream, Opening::Hello(mesh.hello())).await?;
    }
    Ok(Opened { stream, peer, place, remote })
}

/// Says why somebody is not wanted, if it still listens.
async fn refuse(mut stream: Box<dyn Stream>, why: Refusal) -> Failure {
    let _said = say(&mut stream, Opening::Refused(why)).await;
    let _closed = stream.shutdown().await;
    Failure::Refused(why)
}

fn seen_from_here(node: Node, remote: SocketAddr) -> Node {
    let addresses = node.addresses.iter().filter_map(|address| as_seen(address, remote.ip()));
    Node { incarnation: node.incarnation, addresses: addresses.collect() }
}

fn set_up(tcp: &TcpStream, lease: Duration) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    // What was not acknowledged for so long will not be: the system need not go on once the connection was given up here.
    #[cfg(target_os = "linux")]
    SockRef::from(tcp).set_tcp_user_timeout(Some(lease))?;
    Ok(())
}

async fn say(stream: &mut Box<dyn Stream>, what: Opening) -> Result<(), Failure> {
    let said = async {
        stream.write_all(&what.encode()).await?;
        stream.flush().await
    };
    said.await.map_err(|failure| in_words(Malformed::Io(failure)))
}

async fn secure(
    trust: &Trust,
    tcp: TcpStream,
    host: Option<&str>,
) -> Result<(SslStream<TcpStream>, Credentials), Failure> {
    let ssl: Ssl = host.map_or_else(|| trust.server(), |host| trust.client(host))?;
    let mut stream = SslStream::new(ssl, tcp)?;
    let shaken = match host {
        Some(_) => Pin::new(&mut stream).connect().await,
        None => Pin::new(&mut stream).accept().await,
    };
    if let Err(failure) = shaken {
        let verdict = stream.ssl().verify_result();
        return Err(Failure::Tls(if verdict == X509VerifyResult::OK {
            plainly(&failure)
        } else {
            format!("its certificate is refused: {verdict}")
        }));
    }
    let credentials = Credentials::of(stream.ssl()).ok_or_else(|| Failure::Tls("it shows no certificate".into()))?;
    Ok((stream, credentials))
}

/// What went wrong while hellos were exchanged. With TLS 1.3 a side hears only now that its certificate was refused.
fn in_words(failure: Malformed) -> Failure {
    let Malformed::Io(failure) = failure else { return Failure::Stranger(failure) };
    let of_tls = failure.get_ref().and_then(|source| source.downcast_ref::<openssl::ssl::Error>());
    match of_tls.map(plainly) {
        Some(why) => Failure::Tls(why),
        None if failure.kind() == io::ErrorKind::UnexpectedEof => {
            Failure::Io(io::Error::new(failure.kind(), "it ends the connection before it says who it is"))
        }
        None => Failure::Io(failure),
    }
}

/// OpenSSL's reason, in words that help.
fn plainly(failure: &openssl::ssl::Error) -> String {
    let reason = failure.ssl_error().and_then(|stack| stack.errors().first()).and_then(openssl::error::Error::reason);
    let Some(reason) = reason else {
        let ended = failure.io_error().is_none_or(|failure| failure.kind() == io::ErrorKind::UnexpectedEof);
        return if ended { "it ends the connection: is it set up without TLS?".into() } else { failure.to_string() };
    };
    match reason.split_once(" alert ") {
        Some((_, alert)) => format!("it refuses us: {alert}"),
        None if reason == "unexpected eof while reading" => "it ends the connection: is it set up without TLS?".into(),
        None if reason == "wrong version number"
            || reason == "packet length too long"
            || reason.contains("http request") =>
        {
            format!("no TLS comes from there: is it set up without? ({reason})")
        }
        None => reason.to_owned(),
    }
}
