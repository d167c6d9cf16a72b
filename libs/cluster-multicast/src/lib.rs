//! Frames between the nodes of a cluster by IP multicast: nodes find one another without a list, and a commit is one datagram whatever
//! the number of nodes.
//!
//! **A frame is a datagram**, never cut by IP: it is no larger than the path takes, and marked not to be fragmented. **Nothing is sent
//! again.** What is lost is read from the log, which is there anyway and cannot forget; a protocol of acknowledgements would make every
//! node wait for the slowest. So that little is lost where the network is sound, a sender that has much to say paces itself by what
//! a receiver's socket can hold, and a socket that ran over is noticed.
//!
//! Each node has two UDP sockets. One is bound to the group and only receives. The other is bound to the node's own address and a port
//! of its own: everything is sent from it, and it receives what is meant for this node alone. Beside them a TCP listener of which nothing is
//! asked but that it is there: the system ends its connections when the process dies, however it dies, and peers see that at once.
//!
//! **Trust.** Datagrams are believed by nobody: frames are sealed above this crate, and what this crate itself says and hears (who is where)
//! is only a hint where to send sealed bytes, and whom not to wait for. Addresses that an authentic frame came from
//! ([`cluster::Transport::authentic`]) go before those that were merely announced.
//!
//! Start with [`MulticastConfig`], then [`MulticastTransport::open`].

mod datagram;
mod drops;
mod house;
mod interface;
mod outbox;
mod pace;
mod peers;
mod sockets;
mod transport;
mod watch;

pub use interface::Interface;
pub use transport::MulticastTransport;

use std::io;
use std::net::SocketAddr;

/// Where and how a node takes part.
#[derive(Debug, Clone)]
pub struct MulticastConfig {
    /// Address of the group, IPv4 (239.0.0.0/8 is there for this, RFC 2365) or IPv6 (`ff15::/16`, say), and its port. One for each cluster; two on
    /// one group do each other no harm but cost each other time.
    pub group: SocketAddr,
    /// The interface that the group is joined on and sent to; `None` for the one that the system's routes lead to.
    pub interface: Option<Interface>,
    /// How many routers a datagram may pass, plus one. Default 1: it stays on its segment.
    pub ttl: u32,
    /// Whether other processes of this machine hear this node. Default `true`.
    pub loopback: bool,
    /// Bytes of the largest packet that every path between nodes takes, IP header included. Default 1,500; the interface's own is taken where that
    /// is smaller. At least 1,280 (the least that IPv6 allows, RFC 8200 section 5). A frame has 29 (IPv4) or 49 (IPv6) bytes less; a
    /// session that does not fit into a frame is read from the log by the others.
    pub mtu: usize,
    /// Bytes of each socket's receive buffer. Default 4 MiB. The system may allow less (Linux: `net.core.rmem_max`).
    pub receive_buffer: usize,
    /// Bytes of the send buffer. Default 1 MiB. The system may allow less (Linux: `net.core.wmem_max`).
    pub send_buffer: usize,
    /// Bytes a second that are sent at most once a burst of half a receive buffer is out; small frames count for more, as they do in the
    /// buffers of receivers, and where buffers are small the rate is no more than a burst each 2 ms. Default 250,000,000.
    pub rate: u64,
}

impl MulticastConfig {
    /// The defaults, for a group.
    #[must_use]
    pub const fn new(group: SocketAddr) -> Self {
        Self {
            group,
            interface: None,
            ttl: 1,
            loopback: true,
            mtu: 1_500,
            receive_buffer: 4 << 20,
            send_buffer: 1 << 20,
            rate: 250_000_000,
        }
    }
}

/// Why a node cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum MulticastError {
    /// The group's address is none of a group, or has no port.
    #[error("{0} is not the address and port of a multicast group")]
    NotAGroup(SocketAddr),
    /// An MTU out of range.
    #[error("an MTU of {0} bytes: it must be from 1280 to 65535")]
    Mtu(usize),
    /// No rate at all.
    #[error("a rate of 0 bytes a second")]
    Rate,
    /// There is no such interface, or it has no address of the group's family.
    #[error("no interface {0} with an address of the group's family")]
    NoInterface(String),
    /// No interface was named, and no route leads to the group.
    #[error("no route leads to {0}: name an interface")]
    NoRoute(SocketAddr, #[source] io::Error),
    /// A socket could not be made.
    #[error("{what}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}
