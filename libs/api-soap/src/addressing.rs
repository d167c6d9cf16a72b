//! WS-Addressing 1.0: understood, echoed where the request had it, never called back.

use roxmltree::{Node, NodeId};
use session_model::Timestamp;

use crate::fault::Fault;
use crate::reader::text_of;
use crate::writer::Xml;

pub(crate) const NAMESPACE: &str = "http://www.w3.org/2005/08/addressing";
const ANONYMOUS: &str = "http://www.w3.org/2005/08/addressing/anonymous";
/// Actions of faults (WS-Addressing 1.0, SOAP Binding, section 6).
pub(crate) const FAULT_ACTION: &str = "http://www.w3.org/2005/08/addressing/fault";
pub(crate) const SOAP_FAULT_ACTION: &str = "http://www.w3.org/2005/08/addressing/soap/fault";
/// Bytes of a message id.
const MESSAGE_ID: usize = 512;

/// What of the request's headers the answer takes up.
#[derive(Debug, Default)]
pub(crate) struct Echo {
    /// The request had WS-Addressing headers.
    pub(crate) addressing: Option<Addressed>,
    /// The request had a time stamp: the answer has one, too, of this time. Only then: there are clients that fail either way.
    pub(crate) timestamp: Option<Timestamp>,
}

impl Echo {
    pub(crate) const fn is_needed(&self) -> bool {
        self.addressing.is_some() || self.timestamp.is_some()
    }
}

/// The addressing of a request.
#[derive(Debug)]
pub(crate) struct Addressed {
    /// The id of the message, and the header it is from.
    pub(crate) message_id: Option<(String, NodeId)>,
}

/// Whether a header block is one of WS-Addressing that we understand, or a reference parameter.
pub(crate) fn is_addressing(block: Node<'_, '_>) -> bool {
    let name = block.tag_name();
    let known = ["Action", "To", "MessageID", "ReplyTo", "FaultTo", "From", "RelatesTo"].contains(&name.name());
    (name.namespace() == Some(NAMESPACE) && known) || block.has_attribute((NAMESPACE, "IsReferenceParameter"))
}

/// Reads the addressing of a request; `None` if it has none.
///
/// # Errors
/// A [`Fault`] if a header stands twice, or wants the answer elsewhere: the service opens no connection that a message names.
pub(crate) fn read(headers: &[Node<'_, '_>]) -> Result<Option<Addressed>, Fault> {
    let one = |name: &str| {
        let mut found = headers.iter().filter(|block| block.has_tag_name((NAMESPACE, name)));
        match (found.next(), found.next()) {
            (_, Some(_)) => {
                Err(Fault::addressing("wsa:InvalidAddressingHeader", "an addressing header stands more than once"))
            }
            (found, None) => Ok(found.copied()),
        }
    };
    let (action, to) = (one("Action")?, one("To")?);
    let message_id = one("MessageID")?;
    for name in ["ReplyTo", "FaultTo"] {
        let Some(endpoint) = one(name)? else { continue };
        let address = endpoint.children().find(|child| child.has_tag_name((NAMESPACE, "Address")));
        if address.is_none_or(|address| text_of(address).unwrap_or_default().trim() != ANONYMOUS) {
            let why = "answers go back over the connection of the request only";
            return Err(Fault::addressing("wsa:OnlyAnonymousAddressSupported", why));
        }
    }
    if action.is_none() && to.is_none() && message_id.is_none() {
        return Ok(None);
    }
    let message_id = message_id.map(|id| (text_of(id).unwrap_or_default().trim().to_owned(), id.id()));
    if message_id.as_ref().is_some_and(|(id, _)| id.is_empty() || id.len() > MESSAGE_ID) {
        return Err(Fault::addressing("wsa:InvalidAddressingHeader", "the message id is empty or too long"));
    }
    Ok(Some(Addressed { message_id }))
}

/// Writes the addressing of an answer.
pub(crate) fn write(xml: &mut Xml, action: &str, request: &Addressed) {
    let open = |xml: &mut Xml, name: &str| {
        xml.raw("<wsa:").raw(name).raw(" xmlns:wsa=\"").raw(NAMESPACE).raw("\">");
    };
    open(xml, "Action");
    xml.escaped(action).close("wsa:Action");
    if let Some((id, _)) = &request.message_id {
        open(xml, "RelatesTo");
        xml.escaped(id).close("wsa:RelatesTo");
    }
}

/// A message id as a fact of an entry: a UUID as it is, anything else as its digest, because a leaf must not hold what somebody
/// may have put a name into.
pub(crate) fn fact(message_id: &str) -> String {
    let bare = message_id.strip_prefix("urn:").unwrap_or(message_id);
    match bare.strip_prefix("uuid:").unwrap_or(bare).parse::<uuid::Uuid>() {
        Ok(uuid) => uuid.to_string(),
        Err(_) => format!("sha256:{}", sealing::sha256(message_id.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_never_carries_a_name_into_the_log() {
        let uuid = "0190a5c2-7c1e-7000-8000-00000000000a";
        assert_eq!(fact(&format!("urn:uuid:{uuid}")), uuid);
        assert_eq!(fact(&format!("uuid:{uuid}")), uuid);
        let named = fact("urn:alice@example.com:1");
        assert!(named.starts_with("sha256:") && !named.contains("alice"), "{named}");
    }
}
