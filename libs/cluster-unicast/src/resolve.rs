//! From what people write to addresses.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use async_trait::async_trait;

/// Finds the addresses of a peer.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of `host:port`, now. Several are several peers.
    ///
    /// # Errors
    /// If there are none, or nobody who could say.
    async fn resolve(&self, address: &str) -> io::Result<Vec<SocketAddr>>;
}

/// As the system does it: hosts file, DNS, whatever is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, address: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(address).await?.collect())
    }
}

/// Host and port; a host in brackets loses them.
pub(crate) fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').map_or(Some(host), |host| host.strip_suffix(']'))?;
    let strange = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '#' | '?' | '[' | ']' | '@');
    if host.is_empty() || host.contains(strange) { None } else { Some((host, port.parse().ok()?)) }
}

/// What a node says it listens at, as somebody who sees it at `seen` understands it: a node that listens at every interface does not know by which
/// of its addresses others reach it, and leaves that to them.
pub(crate) fn as_seen(address: &str, seen: IpAddr) -> Option<String> {
    let (host, port) = split(address)?;
    match host.parse::<IpAddr>() {
        // One that was accepted at `[::]` looks like `::ffff:10.0.0.7`, and no certificate has that.
        Ok(ip) if ip.is_unspecified() => Some(SocketAddr::new(seen.to_canonical(), port).to_string()),
        _ => Some(address.to_owned()),
    }
}

/// Whether only processes of the same machine reach it.
pub(crate) fn is_loopback(address: &str) -> bool {
    split(address).is_some_and(|(host, _)| {
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    })
}

/// Whether an address is one that this process listens at: then it need not be dialed to find out who is there. What cannot be told from here
/// shows in the hello.
pub(crate) fn is_own(address: SocketAddr, listening: &[SocketAddr]) -> bool {
    let same_port = listening.iter().filter(|at| at.port() == address.port());
    // Only an address of this machine can be bound.
    let here = || UdpSocket::bind((address.ip(), 0)).is_ok();
    same_port.clone().any(|at| at.ip() == address.ip())
        || (same_port.clone().any(|at| at.ip().is_unspecified()) && here())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split_and_nonsense_is_refused() {
        assert_eq!(split("node1.example:7447"), Some(("node1.example", 7447)));
        assert_eq!(split("[::1]:1"), Some(("::1", 1)));
        for nonsense in ["", ":1", "host", "host:", "host:65536", "tcp/host:1", "a b:1", "[::1:1", "host:1?x=1"] {
            assert_eq!(split(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn who_listens_everywhere_is_where_it_is_seen() {
        let seen: IpAddr = [10, 0, 0, 7].into();
        assert_eq!(as_seen("0.0.0.0:7447", seen).as_deref(), Some("10.0.0.7:7447"));
        assert_eq!(as_seen("[::]:7447", seen).as_deref(), Some("10.0.0.7:7447"));
        let mapped: IpAddr = "::ffff:10.0.0.7".parse().unwrap();
        assert_eq!(as_seen("[::]:7447", mapped).as_deref(), Some("10.0.0.7:7447"));
        assert_eq!(as_seen("node1:7447", seen).as_deref(), Some("node1:7447"));
        assert!(is_loopback("127.0.0.1:1") && is_loopback("[::1]:1") && is_loopback("localhost:1"));
        assert!(!is_loopback("10.0.0.7:1"));
    }

    #[test]
    fn a_node_knows_the_addresses_it_listens_at() {
        let everywhere = ["0.0.0.0:7447".parse().unwrap()];
        assert!(is_own("127.0.0.1:7447".parse().unwrap(), &everywhere));
        assert!(!is_own("127.0.0.1:7448".parse().unwrap(), &everywhere));
        assert!(!is_own("192.0.2.1:7447".parse().unwrap(), &everywhere), "no address of this machine");
        assert!(!is_own("127.0.0.2:1".parse().unwrap(), &["127.0.0.1:1".parse().unwrap()]));
    }
}
