//! From bytes to an envelope: encoding, limits, what must not be there, the tree, the shape of the message.
//!
//! The limits hold before there is a tree: a scan counts, the tree is then built of what has passed. The scan is no validator
//! and the tree no counter; each does what it is good at.

use std::borrow::Cow;

use api_http::{Problem, ProblemCode};
use quick_xml::Reader;
use quick_xml::events::{BytesDecl, BytesStart, Event};
use roxmltree::{Document, Node, ParsingOptions};

use crate::addressing;
use crate::fault::Fault;
use crate::security;

/// Elements within elements.
const DEPTH: usize = 32;
/// Elements of a message.
const ELEMENTS: usize = 10_000;
/// Attributes of an element, namespace declarations among them.
const ATTRIBUTES: usize = 64;
/// Nodes of the tree: the document, the elements, and a text before and after each.
const NODES: u32 = 3 * ELEMENTS as u32;

/// Which SOAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Soap11,
    Soap12,
}

impl Version {
    pub(crate) const fn namespace(self) -> &'static str {
        match self {
            Self::Soap11 => "http://schemas.xmlsoap.org/soap/envelope/",
            Self::Soap12 => "http://www.w3.org/2003/05/soap-envelope",
        }
    }

    /// In exactly this spelling: there are clients that compare it as text.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Soap11 => "text/xml; charset=utf-8",
            Self::Soap12 => "application/soap+xml; charset=utf-8",
        }
    }

    fn of(namespace: &str) -> Option<Self> {
        [Self::Soap11, Self::Soap12].into_iter().find(|version| version.namespace() == namespace)
    }

    /// Whether a header block is addressed to us.
    fn is_ours(self, block: Node<'_, '_>) -> bool {
        let (attribute, roles): (&str, &[&str]) = match self {
            Self::Soap11 => ("actor", &["http://schemas.xmlsoap.org/soap/actor/next"]),
            Self::Soap12 => (
                "role",
                &[
                    "http://www.w3.org/2003/05/soap-envelope/role/next",
                    "http://www.w3.org/2003/05/soap-envelope/role/ultimateReceiver",
                ],
            ),
        };
        match block.attribute((self.namespace(), attribute)).map(str::trim) {
            None | Some("") => true,
            Some(role) => roles.contains(&role),
        }
    }
}

fn malformed(what: impl Into<String>) -> Fault {
    Problem::new(ProblemCode::MalformedRequest, what).into()
}

/// The text of a message. The bytes tell (a byte order mark, or how the first `<` is written); what the media type says must not
/// contradict them.
///
/// # Errors
/// A [`Fault`] if it is neither UTF-8 nor UTF-16 (Basic Profile R1012).
pub(crate) fn decode<'a>(bytes: &'a [u8], charset: Option<&str>) -> Result<Cow<'a, str>, Fault> {
    if let Some(charset) = charset
        && !is_known(charset)
    {
        return Err(malformed("the message must be in UTF-8 or UTF-16"));
    }
    let utf16 = |bytes: &[u8], read: fn([u8; 2]) -> u16| {
        let units = bytes.chunks(2).map(|pair| match pair {
            [one, other] => Some(read([*one, *other])),
            _ => None,
        });
        let units: Option<Vec<u16>> = units.collect();
        let text = units.and_then(|units| String::from_utf16(&units).ok());
        text.map(Cow::Owned).ok_or_else(|| malformed("the message is not the UTF-16 that it seems to be"))
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [b'<', 0, ..] => utf16(bytes, u16::from_le_bytes),
        [0, b'<', ..] => utf16(bytes, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => {
            std::str::from_utf8(rest).map(Cow::Borrowed).map_err(|_| malformed("the message is not UTF-8"))
        }
    }
}

fn is_known(charset: &str) -> bool {
    ["utf-8", "utf8", "utf-16", "utf-16le", "utf-16be", "us-ascii", "ascii"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(charset))
}

/// Refuses what must not be there and what is too much, without building anything.
///
/// # Errors
/// A [`Fault`].
pub(crate) fn scan(text: &str) -> Result<(), Fault> {
    let mut reader = Reader::from_str(text);
    let (mut depth, mut elements) = (0_usize, 0_usize);
    loop {
        match reader.read_event() {
            Ok(Event::Start(element)) => {
                depth += 1;
                elements += 1;
                within(depth, elements, &element)?;
            }
            Ok(Event::Empty(element)) => {
                elements += 1;
                within(depth + 1, elements, &element)?;
            }
            Ok(Event::End(_)) => depth = depth.saturating_sub(1),
            Ok(Event::Decl(declaration)) => encoding(&declaration)?,
            // SOAP 1.1 section 3, SOAP 1.2 part 1 section 5: a message has neither.
            Ok(Event::DocType(_)) => return Err(malformed("a message must not have a document type declaration")),
            Ok(Event::PI(_)) => return Err(malformed("a message must not have processing instructions")),
            Ok(Event::GeneralRef(reference)) => characters(&format!("&{};", &*reference))?,
            Ok(Event::Text(_) | Event::CData(_) | Event::Comment(_)) => {}
            Ok(Event::Eof) => return Ok(()),
            Err(_) => return Err(malformed("the message is not well-formed XML")),
        }
    }
}

fn within(depth: usize, elements: usize, element: &BytesStart<'_>) -> Result<(), Fault> {
    if depth > DEPTH {
        return Err(malformed(format!("elements are nested deeper than {DEPTH}")));
    }
    if elements > ELEMENTS {
        return Err(malformed(format!("the message has more than {ELEMENTS} elements")));
    }
    let mut attributes = element.attributes();
    let mut count = 0;
    for attribute in attributes.with_checks(false) {
        // What the scan cannot count the tree must not be given: it may read it otherwise.
        let attribute = attribute.map_err(|_| malformed("the message is not well-formed XML"))?;
        characters(&attribute.value)?;
        count += 1;
        if count > ATTRIBUTES {
            return Err(malformed(format!("an element has more than {ATTRIBUTES} attributes")));
        }
    }
    Ok(())
}

/// Refuses a reference to half a character, or to one beyond the last. The tree would hold U+FFFD for each, and what differs would be
/// the same: Axis 1.4 writes every character beyond U+FFFF as two such halves.
fn characters(source: &str) -> Result<(), Fault> {
    for reference in source.split('&').skip(1) {
        let Some(number) = reference.strip_prefix('#') else { continue };
        let number = number.split_once(';').map_or(number, |(number, _)| number);
        let code = match number.strip_prefix('x') {
            Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16).ok(),
            None => number.parse().ok(),
        };
        if code.and_then(char::from_u32).is_none() {
            return Err(malformed("the message refers to a character that there is not: a surrogate is half of one"));
        }
    }
    Ok(())
}

fn encoding(declaration: &BytesDecl<'_>) -> Result<(), Fault> {
    match declaration.encoding() {
        None => Ok(()),
        Some(Ok(name)) if is_known(&name) => Ok(()),
        Some(_) => Err(malformed("the message must be in UTF-8 or UTF-16")),
    }
}

/// The tree of a text that has passed [`scan`].
///
/// # Errors
/// A [`Fault`] if it is not well-formed.
pub(crate) fn parse(text: &str) -> Result<Document<'_>, Fault> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|_| malformed("the message is not well-formed XML"))
}

/// A message.
#[derive(Debug)]
pub(crate) struct Envelope<'a, 'text> {
    /// The header blocks that are addressed to us.
    pub(crate) headers: Vec<Node<'a, 'text>>,
    /// The body.
    pub(crate) body: Node<'a, 'text>,
    /// The one child of the body.
    pub(crate) request: Node<'a, 'text>,
}

/// Which SOAP a message is, as far as can be told.
///
/// # Errors
/// A [`Fault`] if it is none.
pub(crate) fn version(document: &Document<'_>) -> Result<Version, Fault> {
    let root = document.root_element();
    let namespace = root.tag_name().namespace().unwrap_or_default();
    match (root.tag_name().name(), Version::of(namespace)) {
        ("Envelope", Some(version)) => Ok(version),
        ("Envelope", None) => Err(Fault::version_mismatch()),
        _ => Err(malformed("the message is not a SOAP envelope")),
    }
}

impl<'a, 'text> Envelope<'a, 'text> {
    /// Reads the shape of a message, and refuses it if it has a header that must be understood and is not.
    ///
    /// # Errors
    /// A [`Fault`].
    pub(crate) fn read(document: &'a Document<'text>, version: Version) -> Result<Self, Fault> {
        let envelope = Some(version.namespace());
        let mut parts = elements(document.root_element())?.into_iter().peekable();
        let is = |node: &Node<'_, '_>, name| node.tag_name().name() == name && node.tag_name().namespace() == envelope;
        let header = parts.next_if(|part| is(part, "Header"));
        let body = parts.next().filter(|part| is(part, "Body"));
        // Basic Profile R1011: nothing after the body.
        let (Some(body), None) = (body, parts.next()) else {
            return Err(malformed("an envelope has a Header, which may be left out, and a Body, and nothing else"));
        };
        let blocks = header.map(elements).transpose()?.unwrap_or_default();
        let ours: Vec<_> = blocks.into_iter().filter(|block| version.is_ours(*block)).collect();
        let strange: Vec<_> =
            ours.iter().filter(|block| must_be_understood(**block, version) && !is_understood(**block)).collect();
        if !strange.is_empty() {
            let name = |block: &Node<'_, '_>| {
                let name = block.tag_name();
                (name.namespace().unwrap_or_default().to_owned(), name.name().to_owned())
            };
            return Err(Fault::not_understood(strange.into_iter().map(name).collect()));
        }
        match elements(body)?.as_slice() {
            [request] => Ok(Self { headers: ours, body, request: *request }),
            _ => Err(malformed("the Body must have exactly one child")),
        }
    }
}

/// The child elements of one that has no text of its own.
pub(crate) fn elements<'a, 'text>(node: Node<'a, 'text>) -> Result<Vec<Node<'a, 'text>>, Fault> {
    let stray = |child: &Node<'_, '_>| {
        child.is_text() && !child.text().unwrap_or_default().chars().all(|c| matches!(c, ' ' | '\t' | '\r' | '\n'))
    };
    if node.children().any(|child| stray(&child)) {
        return Err(malformed("there is text between elements of the message that hold none"));
    }
    Ok(node.children().filter(Node::is_element).collect())
}

/// `true` and `1` in either version: toolkits mix the spellings.
fn must_be_understood(block: Node<'_, '_>, version: Version) -> bool {
    let value = block.attribute((version.namespace(), "mustUnderstand")).map(str::trim);
    matches!(value, Some("1" | "true"))
}

fn is_understood(block: Node<'_, '_>) -> bool {
    security::is_security(block) || addressing::is_addressing(block)
}
