//! Groups for tests.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use cluster_multicast::{Interface, MulticastConfig};

/// Two numbers and a port that no other test of this machine has now.
fn unique() -> ([u8; 2], u16) {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let [.., a, b] = std::process::id().to_be_bytes();
    ([a, b], NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A group on the loopback interface.
pub(crate) fn group_v4() -> MulticastConfig {
    let ([a, b], port) = unique();
    MulticastConfig {
        interface: Some(Interface::Address(Ipv4Addr::LOCALHOST.into())),
        ..MulticastConfig::new(SocketAddr::new(Ipv4Addr::new(239, 255, a, b).into(), port))
    }
}

/// The same with IPv6, on the interface that routes of groups lead to; no hop, so that nothing leaves this machine.
/// `None`, said loudly, where there is no such route.
pub(crate) fn group_v6() -> Option<MulticastConfig> {
    let ([a, b], port) = unique();
    let group = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xcf, u16::from_be_bytes([a, b]));
    let asked = UdpSocket::bind("[::]:0").and_then(|socket| {
        socket.connect((group, port))?;
        socket.local_addr()
    });
    match asked {
        Ok(local) => Some(MulticastConfig {
            interface: Some(Interface::Address(local.ip())),
            ttl: 0,
            ..MulticastConfig::new(SocketAddr::new(group.into(), port))
        }),
        Err(failure) => {
            eprintln!("SKIPPED: no IPv6 route to a multicast group here: {failure}");
            None
        }
    }
}
