//! Which interface the group is on.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use crate::MulticastError;

/// An interface, as a person names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interface {
    /// The one that has this address.
    Address(IpAddr),
    /// The one of this name.
    Name(String),
}

impl FromStr for Interface {
    type Err = std::convert::Infallible;

    /// An address if it reads as one, else a name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Address))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// An interface, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) index: u32,
    /// An address of it, of the group's family.
    pub(crate) address: IpAddr,
}

impl Place {
    /// Finds the interface for a group.
    pub(crate) fn find(interface: Option<&Interface>, group: SocketAddr) -> Result<Self, MulticastError> {
        let by_route;
        let interface = match interface {
            Some(interface) => interface,
            None => {
                by_route = Interface::Address(routed(group)?);
                &by_route
            }
        };
        let found = if_addrs::get_if_addrs()
            .map_err(|source| MulticastError::Socket { what: "the interfaces cannot be listed", source })?;
        let mut places: Vec<Self> = found
            .into_iter()
            .filter(|found| match interface {
                Interface::Address(address) => found.ip() == *address,
                Interface::Name(name) => found.name == *name,
            })
            .filter(|found| found.ip().is_ipv4() == group.is_ipv4())
            .map(|found| Self { address: found.ip(), index: found.index.unwrap_or(0), name: found.name })
            .collect();
        // Of several addresses the first, but of IPv6's one whose reach is the group's.
        places.sort_by_key(|place| match (place.address, group) {
            (IpAddr::V6(address), SocketAddr::V6(group)) => {
                address.is_unicast_link_local() != is_link_local(*group.ip())
            }
            _ => false,
        });
        places.into_iter().next().ok_or_else(|| MulticastError::NoInterface(interface.to_string()))
    }

    /// The address with a port, as sockets of this interface are bound to.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        match self.address {
            IpAddr::V4(address) => SocketAddr::new(address.into(), port),
            IpAddr::V6(address) => {
                let scope = if address.is_unicast_link_local() { self.index } else { 0 };
                SocketAddrV6::new(address, port, 0, scope).into()
            }
        }
    }

    /// Bytes of the largest packet that the interface takes, where that can be told.
    pub(crate) fn mtu(&self) -> Option<usize> {
        std::fs::read_to_string(format!("/sys/class/net/{}/mtu", self.name)).ok()?.trim().parse().ok()
    }
}

/// Whether a group is no wider than a segment (RFC 4291 section 2.7).
const fn is_link_local(group: Ipv6Addr) -> bool {
    group.segments()[0] & 0xf <= 2
}

/// The address that the system would send to the group from.
fn routed(group: SocketAddr) -> Result<IpAddr, MulticastError> {
    let any: IpAddr = if group.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let asked = std::net::UdpSocket::bind((any, 0)).and_then(|socket| {
        // Sends nothing: it only asks for the route.
        socket.connect(group)?;
        socket.local_addr()
    });
    asked.map(|local| local.ip()).map_err(|source| MulticastError::NoRoute(group, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_found_by_name_and_by_address_and_others_are_refused() {
        let group = "239.255.0.1:7000".parse().unwrap();
        let lo = Place::find(Some(&Interface::Address(Ipv4Addr::LOCALHOST.into())), group).unwrap();
        assert_eq!(lo.address, IpAddr::from(Ipv4Addr::LOCALHOST));
        assert_eq!(Place::find(Some(&lo.name.parse().unwrap()), group).unwrap(), lo);
        let none = Place::find(Some(&"none-such".parse().unwrap()), group);
        assert!(matches!(none, Err(MulticastError::NoInterface(name)) if name == "none-such"));
        let other_family = Place::find(Some(&"127.0.0.1".parse().unwrap()), "[ff15::1]:7000".parse().unwrap());
        assert!(matches!(other_family, Err(MulticastError::NoInterface(_))));
    }
}
