//! A node's two UDP sockets.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::interface::Place;
use crate::{MulticastConfig, MulticastError};

/// A socket that gives the system many datagrams at once, and takes them so, where the system can. Nothing it sends is fragmented.
#[derive(Debug)]
pub(crate) struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Udp {
    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket, state })
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    /// How many datagrams may be sent at once.
    pub(crate) fn at_once(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends datagrams of `segment` bytes each, the last perhaps smaller.
    pub(crate) fn send(&self, to: SocketAddr, datagrams: &[u8], segment: usize) -> io::Result<()> {
        let segment_size = (segment < datagrams.len()).then_some(segment);
        let transmit = Transmit { destination: to, ecn: None, contents: datagrams, segment_size, src_ip: None };
        self.socket.try_io(Interest::WRITABLE, || self.state.try_send((&self.socket).into(), &transmit))
    }

    /// Receives what is there: how many buffers were filled.
    pub(crate) fn receive(&self, buffers: &mut [IoSliceMut<'_>], of: &mut [RecvMeta]) -> io::Result<usize> {
        self.socket.try_io(Interest::READABLE, || self.state.recv((&self.socket).into(), buffers, of))
    }
}

/// Both.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// Bound to the group: only receives.
    pub(crate) group: Udp,
    /// Bound to the node's own address: sends, and receives what is for this node alone.
    pub(crate) own: Udp,
}

/// An error with what was tried.
pub(crate) fn tried(what: &'static str) -> impl FnOnce(io::Error) -> MulticastError {
    move |source| MulticastError::Socket { what, source }
}

impl Sockets {
    /// Both sockets, and the address of the second.
    pub(crate) fn open(config: &MulticastConfig, place: &Place) -> Result<(Self, SocketAddr), MulticastError> {
        let group = bound_to_group(config, place)?;
        join(&group, config.group, place).map_err(tried("the group cannot be joined"))?;
        let own = bound_to_own(config, place)?;
        let address = own.local_addr().map_err(tried("a socket has no address"))?;
        let address = address.as_socket().ok_or_else(|| MulticastError::NoInterface(place.name.clone()))?;
        let ready = tried("a socket cannot be set up");
        let (group, own) = Udp::new(group).and_then(|group| Ok((group, Udp::new(own)?))).map_err(ready)?;
        Ok((Self { group, own }, address))
    }

    /// Joins the group once more. It stays joined if it was; an interface that went away and came back is joined anew.
    pub(crate) fn join_again(&self, group: SocketAddr, place: &Place) -> io::Result<()> {
        match join(&SockRef::from(&self.group.socket), group, place) {
            Err(failure) if failure.kind() == io::ErrorKind::AddrInUse => Ok(()),
            joined => joined,
        }?;
        send_on(&SockRef::from(&self.own.socket), place)
    }

    /// Bytes that the system really gives the receive buffer of the group's socket.
    pub(crate) fn receive_buffer(&self) -> usize {
        SockRef::from(&self.group.socket).recv_buffer_size().unwrap_or(0)
    }

    /// Their descriptors.
    pub(crate) fn descriptors(&self) -> [RawFd; 2] {
        [self.group.socket.as_raw_fd(), self.own.socket.as_raw_fd()]
    }
}

fn socket(config: &MulticastConfig) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(config.group), Type::DGRAM, Some(Protocol::UDP))?;
    if config.group.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_recv_buffer_size(config.receive_buffer)?;
    Ok(socket)
}

fn bound_to_group(config: &MulticastConfig, place: &Place) -> Result<Socket, MulticastError> {
    let bound = || {
        let socket = socket(config)?;
        // Several nodes of one machine each get what is sent to the group.
        socket.set_reuse_address(true)?;
        #[cfg(not(target_os = "linux"))]
        socket.set_reuse_port(true)?;
        // Not what others of this machine have joined on other interfaces.
        #[cfg(target_os = "linux")]
        if config.group.is_ipv4() {
            socket.set_multicast_all_v4(false)?
        } else {
            socket.set_multicast_all_v6(false)?
        }
        socket.bind(&scoped(config.group, place).into())?;
        Ok(socket)
    };
    bound().map_err(tried("the group's port cannot be had"))
}

fn bound_to_own(config: &MulticastConfig, place: &Place) -> Result<Socket, MulticastError> {
    let bound = || {
        let socket = socket(config)?;
        socket.set_send_buffer_size(config.send_buffer)?;
        socket.bind(&place.at(0).into())?;
        send_on(&socket, place)?;
        if config.group.is_ipv4() {
            socket.set_multicast_loop_v4(config.loopback)?;
            socket.set_multicast_ttl_v4(config.ttl)?;
        } else {
            socket.set_multicast_loop_v6(config.loopback)?;
            socket.set_multicast_hops_v6(config.ttl)?;
        }
        Ok(socket)
    };
    bound().map_err(tried("the socket to send from cannot be made"))
}

fn join(socket: &Socket, group: SocketAddr, place: &Place) -> io::Result<()> {
    match (group.ip(), place.address) {
        (IpAddr::V4(group), _) if place.index > 0 => {
            socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(place.index))
        }
        (IpAddr::V4(group), IpAddr::V4(address)) => socket.join_multicast_v4(&group, &address),
        (IpAddr::V4(group), IpAddr::V6(_)) => socket.join_multicast_v4(&group, &std::net::Ipv4Addr::UNSPECIFIED),
        (IpAddr::V6(group), _) => socket.join_multicast_v6(&group, place.index),
    }
}

fn send_on(socket: &Socket, place: &Place) -> io::Result<()> {
    match place.address {
        IpAddr::V4(address) => socket.set_multicast_if_v4(&address),
        IpAddr::V6(_) => socket.set_multicast_if_v6(place.index),
    }
}

/// The group's address on an interface: groups of IPv6 that reach no further are told apart by it.
pub(crate) fn scoped(group: SocketAddr, place: &Place) -> SocketAddr {
    match group {
        SocketAddr::V4(_) => group,
        SocketAddr::V6(mut group) => {
            group.set_scope_id(place.index);
            group.into()
        }
    }
}
