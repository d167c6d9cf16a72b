//! What goes over a connection, as bytes. Numbers are big-endian.
//!
//! First each side says who it is, or why it does not want the other: `magic (4) kind (1) length (2) body`. Then units follow:
//! `kind (1) length (3) body`. Lengths are checked before anything is set aside for what they announce.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cluster::Incarnation;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::resolve::split;

/// Bytes of a frame: four records of TLS hold one with its head.
pub(crate) const MAX_FRAME: usize = 60 << 10;
/// Bytes before the body of a unit.
pub(crate) const HEAD: usize = 4;

/// What every connection begins with; the last byte is the version of all that follows.
const MAGIC: [u8; 4] = *b"CFL\x01";
/// Bytes that a hello may have.
const MAX_HELLO: usize = 4 << 10;
/// Addresses of one node.
const ADDRESSES: usize = 8;
/// Nodes that are told of at once.
const NODES: usize = 256;

/// A node, and where it says it can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) incarnation: Incarnation,
    /// `host:port` each.
    pub(crate) addresses: Vec<String>,
}

/// Who somebody is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) cluster: String,
    pub(crate) node: Node,
}

/// Why somebody is not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("another cluster")]
    OtherCluster,
    #[error("a certificate whose name is not allowed")]
    Name,
    #[error("this node itself")]
    Itself,
    #[error("more connections than are taken")]
    Full,
}

const REFUSALS: [(u8, Refusal); 4] =
    [(1, Refusal::OtherCluster), (2, Refusal::Name), (3, Refusal::Itself), (4, Refusal::Full)];

/// What a connection begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Opening {
    Hello(Hello),
    Refused(Refusal),
}

/// Why bytes are none of ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("TLS comes from there, and this node is set up without")]
    Tls,
    #[error("what comes from there is not the beginning of a connection of this version")]
    Magic,
    #[error("a hello that cannot be read")]
    Hello,
    #[error("a unit of the unknown kind {0}")]
    Kind(u8),
    #[error("a unit of {0} bytes")]
    Length(usize),
    #[error("a list of nodes that cannot be read")]
    Nodes,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Opening {
    /// The bytes of it.
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::from(MAGIC.as_slice());
        match self {
            Self::Hello(hello) => {
                let mut body = BytesMut::new();
                put_text(&mut body, &hello.cluster);
                put_node(&mut body, &hello.node);
                bytes.put_u8(0);
                bytes.put_u16(body.len() as u16);
                bytes.put(body);
            }
            Self::Refused(why) => {
                bytes.put_u8(REFUSALS.iter().find(|(_, refusal)| refusal == why).map_or(u8::MAX, |(code, _)| *code));
                bytes.put_u16(0);
            }
        }
        bytes.freeze()
    }

    /// Reads one, and not a byte more.
    pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Self, Malformed> {
        let mut magic = [0; 4];
        // As they come: who speaks something else may never send so many.
        for (at, (byte, expected)) in magic.iter_mut().zip(MAGIC).enumerate() {
            *byte = from.read_u8().await?;
            if *byte != expected {
                // A record of a handshake or an alert, RFC 8446 section 5.1.
                return Err(if at == 0 && matches!(byte, 0x15 | 0x16) { Malformed::Tls } else { Malformed::Magic });
            }
        }
        let kind = from.read_u8().await?;
        let length = usize::from(from.read_u16().await?);
        if kind != 0 {
            let refusal = REFUSALS.iter().find(|(code, _)| *code == kind).map(|(_, refusal)| *refusal);
            return refusal.filter(|_| length == 0).map(Self::Refused).ok_or(Malformed::Hello);
        }
        if length > MAX_HELLO {
            return Err(Malformed::Hello);
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body).await?;
        let mut fields = Fields(&body);
        let hello = (|| Some(Hello { cluster: fields.text()?, node: fields.node()? }))();
        hello.filter(|_| fields.0.is_empty()).map(Self::Hello).ok_or(Malformed::Hello)
    }
}

/// What is said once both know each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A frame of the cluster.
    Frame(Vec<u8>),
    /// Nothing but that the sender is there.
    Alive,
    /// The other nodes that the sender is connected to.
    Known(Vec<Node>),
    /// The sender says no more here. With `leaves` it says no more at all.
    Bye { leaves: bool },
}

const FRAME: u8 = 1;
const ALIVE: u8 = 2;
const KNOWN: u8 = 3;
const RETIRES: u8 = 4;
const LEAVES: u8 = 5;

impl Unit {
    /// A frame as a unit, made once for all that it is sent to. `None` if it is too large.
    pub(crate) fn frame(frame: &[u8]) -> Option<Bytes> {
        (frame.len() <= MAX_FRAME).then(|| {
            let mut bytes = BytesMut::with_capacity(HEAD + frame.len());
            put_head(&mut bytes, FRAME, frame.len());
            bytes.put_slice(frame);
            bytes.freeze()
        })
    }

    /// Writes it behind what is there. Of a list of nodes as many as fit.
    pub(crate) fn encode(&self, into: &mut BytesMut) {
        match self {
            Self::Frame(frame) => {
                put_head(into, FRAME, frame.len());
                into.put_slice(frame);
            }
            Self::Alive => put_head(into, ALIVE, 0),
            Self::Known(nodes) => {
                let mut body = BytesMut::new();
                for node in nodes.iter().take(NODES) {
                    let before = body.len();
                    put_node(&mut body, node);
                    if body.len() > MAX_FRAME {
                        body.truncate(before);
                        break;
                    }
                }
                put_head(into, KNOWN, body.len());
                into.put(body);
            }
            Self::Bye { leaves } => put_head(into, if *leaves { LEAVES } else { RETIRES }, 0),
        }
    }

    /// Takes the first unit out of what came; `None` if it is not whole yet.
    pub(crate) fn decode(came: &mut BytesMut) -> Result<Option<Self>, Malformed> {
        let Some([kind, length @ ..]) = came.first_chunk::<HEAD>().copied() else { return Ok(None) };
        let [high, middle, low] = length;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let most = match kind {
            FRAME | KNOWN => MAX_FRAME,
            ALIVE | RETIRES | LEAVES => 0,
            other => return Err(Malformed::Kind(other)),
        };
        if length > most {
            return Err(Malformed::Length(length));
        }
        if came.len() < HEAD + length {
            return Ok(None);
        }
        came.advance(HEAD);
        let body = came.split_to(length);
        Ok(Some(match kind {
            FRAME => Self::Frame(body.to_vec()),
            KNOWN => Self::Known(nodes(&body)?),
            ALIVE => Self::Alive,
            kind => Self::Bye { leaves: kind == LEAVES },
        }))
    }
}

fn nodes(body: &[u8]) -> Result<Vec<Node>, Malformed> {
    let (mut fields, mut nodes) = (Fields(body), Vec::new());
    while !fields.0.is_empty() {
        if nodes.len() >= NODES {
            return Err(Malformed::Nodes);
        }
        nodes.push(fields.node().ok_or(Malformed::Nodes)?);
    }
    Ok(nodes)
}

/// The length is one that was checked: it has at most 24 bits.
fn put_head(into: &mut BytesMut, kind: u8, length: usize) {
    into.put_u8(kind);
    into.put_uint(length as u64, 3);
}

/// The text is one that was checked: it has at most 16 bits of length.
fn put_text(into: &mut BytesMut, text: &str) {
    into.put_u16(text.len() as u16);
    into.put_slice(text.as_bytes());
}

fn put_node(into: &mut BytesMut, node: &Node) {
    into.put_slice(&node.incarnation.0);
    let addresses = node.addresses.iter().take(ADDRESSES);
    into.put_u8(addresses.len() as u8);
    addresses.for_each(|address| put_text(into, address));
}

/// What is left to be read of a body.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn text(&mut self) -> Option<String> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        self.0 = rest;
        Some(std::str::from_utf8(text).ok()?.to_owned())
    }

    fn node(&mut self) -> Option<Node> {
        let (incarnation, rest) = self.0.split_first_chunk::<16>()?;
        let (count, rest) = rest.split_first()?;
        self.0 = rest;
        if usize::from(*count) > ADDRESSES {
            return None;
        }
        let addresses: Option<Vec<String>> =
            (0..*count).map(|_| self.text().filter(|address| split(address).is_some())).collect();
        Some(Node { incarnation: Incarnation(*incarnation), addresses: addresses? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn node() -> impl Strategy<Value = Node> {
        (any::<[u8; 16]>(), vec("[a-z0-9.-]{1,60}:[1-9][0-9]{0,3}", 0..=ADDRESSES))
            .prop_map(|(incarnation, addresses)| Node { incarnation: Incarnation(incarnation), addresses })
    }

    fn unit() -> impl Strategy<Value = Unit> {
        prop_oneof![
            vec(any::<u8>(), 0..3_000).prop_map(Unit::Frame),
            Just(Unit::Alive),
            vec(node(), 0..20).prop_map(Unit::Known),
            any::<bool>().prop_map(|leaves| Unit::Bye { leaves }),
        ]
    }

    fn opening() -> impl Strategy<Value = Opening> {
        let refusal = (0..REFUSALS.len()).prop_map(|at| Opening::Refused(REFUSALS[at].1));
        let hello = ("[a-z-]{1,80}", node()).prop_map(|(cluster, node)| Opening::Hello(Hello { cluster, node }));
        prop_oneof![hello, refusal]
    }

    fn read(mut bytes: &[u8]) -> (Result<Opening, Malformed>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = runtime.block_on(Opening::read(&mut bytes));
        (read, bytes.len())
    }

    proptest! {
        #[test]
        fn units_are_read_as_they_were_written_however_they_are_cut(units in vec(unit(), 0..12), cut in 1..5_000_usize) {
            let mut written = BytesMut::new();
            units.iter().for_each(|unit| unit.encode(&mut written));
            let (mut came, mut read) = (BytesMut::new(), Vec::new());
            for part in written.chunks(cut) {
                came.extend_from_slice(part);
                while let Some(unit) = Unit::decode(&mut came).unwrap() {
                    read.push(unit);
                }
            }
            prop_assert_eq!(read, units);
            prop_assert!(came.is_empty());
        }

        #[test]
        fn openings_are_read_as_they_were_written_and_nothing_behind_them(opening in opening(), behind in vec(any::<u8>(), 0..9)) {
            let bytes = [opening.encode().as_ref(), &behind].concat();
            let (read, left) = read(&bytes);
            prop_assert_eq!(read.unwrap(), opening);
            prop_assert_eq!(left, behind.len());
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..4_000)) {
            let mut came = BytesMut::from(bytes.as_slice());
            while let Ok(Some(_)) = Unit::decode(&mut came) {}
            let _nothing_is_said = read(&bytes);
            // And as what an insider could say.
            let _nodes = nodes(&bytes);
            let mut hello = MAGIC.to_vec();
            hello.push(0);
            hello.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
            hello.extend_from_slice(&bytes);
            let _hello = read(&hello);
        }
    }

    #[test]
    fn what_is_too_long_or_unknown_is_refused_by_its_head_alone() {
        let decode = |bytes: &[u8]| Unit::decode(&mut BytesMut::from(bytes));
        assert!(matches!(decode(&[FRAME, 0xff, 0xff, 0xff]), Err(Malformed::Length(0xff_ffff))));
        assert!(matches!(decode(&[ALIVE, 0, 0, 1]), Err(Malformed::Length(1))));
        assert!(matches!(decode(&[0, 0, 0, 0]), Err(Malformed::Kind(0))));
        assert!(matches!(decode(&[FRAME, 0, 0xf0, 0]), Ok(None)));
        assert!(Unit::frame(&vec![0; MAX_FRAME]).is_some() && Unit::frame(&vec![0; MAX_FRAME + 1]).is_none());
        let long = [MAGIC.as_slice(), &[0, 0xff, 0xff]].concat();
        assert!(matches!(read(&long).0, Err(Malformed::Hello)));
        assert!(matches!(read(&[0x16, 3, 1]).0, Err(Malformed::Tls)));
        assert!(matches!(read(b"GET / HTTP/1.1\r\n").0, Err(Malformed::Magic)));
        let newer = [b"CFL\x02".as_slice(), &[0, 0, 0]].concat();
        assert!(matches!(read(&newer).0, Err(Malformed::Magic)));
    }

    #[test]
    fn a_list_of_many_nodes_is_cut_to_what_fits() {
        let node = |n: u16| Node {
            incarnation: Incarnation([n as u8; 16]),
            addresses: vec![format!("{}:{}", "x".repeat(250), n + 1); ADDRESSES],
        };
        let mut bytes = BytesMut::new();
        Unit::Known((0..300).map(node).collect()).encode(&mut bytes);
        let Ok(Some(Unit::Known(nodes))) = Unit::decode(&mut bytes) else { panic!("not read") };
        assert!((20..NODES).contains(&nodes.len()), "{}", nodes.len());
    }
}
