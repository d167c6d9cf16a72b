//! What a datagram is: `kind (1) ‖ rest`.

use std::net::SocketAddr;

use cluster::Incarnation;

/// A frame of the cluster.
pub(crate) const FRAME: u8 = 0xc0;
/// "Here is a node": `version (1) ‖ incarnation (16) ‖ TCP port (2)`. What follows is of a later version.
pub(crate) const HERE: u8 = 0xc1;
const VERSION: u8 = 1;

/// Bytes that a datagram is longer than the frame in it.
pub(crate) const KIND: usize = 1;

/// Bytes of the headers of IP and UDP.
pub(crate) const fn headers(group: SocketAddr) -> usize {
    match group {
        SocketAddr::V4(_) => 20 + 8,
        SocketAddr::V6(_) => 40 + 8,
    }
}

/// A node tells where it is; from where, says the datagram itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Here {
    pub(crate) incarnation: Incarnation,
    /// Where it can be watched.
    pub(crate) port: u16,
}

impl Here {
    /// The bytes behind the kind.
    pub(crate) fn encode(self) -> Vec<u8> {
        [&[VERSION], self.incarnation.0.as_slice(), &self.port.to_be_bytes()].concat()
    }

    /// Reads what is behind the kind.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (incarnation, rest) = rest.split_first_chunk()?;
        let (port, _) = rest.split_first_chunk()?;
        (*version == VERSION).then(|| Self { incarnation: Incarnation(*incarnation), port: u16::from_be_bytes(*port) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_read_back_and_what_is_cut_short_is_none() {
        let here = Here { incarnation: Incarnation([3; 16]), port: 4_660 };
        let bytes = here.encode();
        assert_eq!(Here::decode(&bytes), Some(here));
        assert_eq!(Here::decode(&[bytes.as_slice(), b"later"].concat()), Some(here));
        for length in 0..bytes.len() {
            assert_eq!(Here::decode(&bytes[..length]), None);
        }
        assert_eq!(Here::decode(&[&[2], &bytes[1..]].concat()), None);
    }
}
