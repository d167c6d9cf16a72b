//! A message read as far as that can be done without a service: what the fuzz targets and the property tests drive.

use std::sync::Arc;

use access::Keyholder;
use roxmltree::{Document, Node};

use crate::addressing::{self, Echo};
use crate::canonical;
use crate::envelope::{self, Envelope, Version};
use crate::fault::Fault;
use crate::operation::Operation;
use crate::perform::attribute_map;
use crate::reader::Children;
use crate::security;
use crate::signature::Certificates;

/// Reads a message, and everything in it that any operation could read; answers the fault's envelope if it is refused.
///
/// # Errors
/// The envelope of the fault, as the client would get it.
pub fn read_only(bytes: &[u8], charset: Option<&str>) -> Result<(), String> {
    let mut version = Version::Soap11;
    read(bytes, charset, &mut version).map_err(|fault| fault.envelope(version, &Echo::default(), "0").1)
}

fn read(bytes: &[u8], charset: Option<&str>, version: &mut Version) -> Result<(), Fault> {
    let text = envelope::decode(bytes, charset)?;
    envelope::scan(&text)?;
    let document = envelope::parse(&text)?;
    *version = envelope::version(&document)?;
    let envelope = Envelope::read(&document, *version)?;
    addressing::read(&envelope.headers)?;
    if let Some(security) = security::read(&envelope.headers)? {
        security.check_time(session_model::Timestamp::from_micros(1_795_000_000_000_000))?;
    }
    let _known = Operation::named(envelope.request.tag_name().name());
    let mut children = Children::of(envelope.request);
    for name in ["sessionId", "subject", "token", "kind"] {
        children.required(name, 256);
    }
    for name in ["from", "to"] {
        children.time(name);
    }
    let removed = children.texts("removeKeys", "key", 128).unwrap_or_default();
    children.texts("methods", "method", 64);
    if let Some(json) = attribute_map(&mut children, removed) {
        let limits = session_model::Limits::default();
        // Whatever the elements held, what is made of them is JSON: nothing breaks out of its member.
        let read = serde_json::from_str::<serde_json::Value>(&json);
        assert!(read.is_ok_and(|value| value.is_object()), "an attribute map that is no JSON object: {json}");
        if let Err(fault) = session_model::MergePatch::parse(&json, &limits) {
            children.refuse(&format!("attributeMap{}", fault.pointer()), &fault.to_string());
        }
    }
    Ok(children.done()?)
}

/// Verifies a signed message, whoever signed it, at the time the fuzz target's seeds were made; answers what is in the body's
/// child, if the signature is good. Panics if the canonical form of the message is not the same message, or not its own.
pub fn read_signed(bytes: &[u8]) -> Option<Vec<String>> {
    let text = envelope::decode(bytes, None).ok()?;
    envelope::scan(&text).ok()?;
    let document = envelope::parse(&text).ok()?;
    let root = document.root_element();
    let prefixes = ["", "s", "xsi"];
    if let Some(form) = canonical::exclusive(root, &prefixes) {
        let form = String::from_utf8_lossy(&form);
        let again = Document::parse(&form);
        assert!(again.is_ok(), "a canonical form that cannot be read: {form}");
        let again = again.ok()?;
        assert_eq!(contents(again.root_element()), contents(root), "a canonical form of something else");
        let twice = canonical::exclusive(again.root_element(), &prefixes);
        assert_eq!(twice.as_deref(), Some(form.as_bytes()), "a canonical form that is not its own");
    }

    let envelope = Envelope::read(&document, envelope::version(&document).ok()?).ok()?;
    let security = security::read(&envelope.headers).ok()??;
    let anybody = Keyholder::new("anybody".to_owned(), "default".parse().ok()?, Vec::new(), 0);
    let now = session_model::Timestamp::parse("2026-11-21T12:00:30Z")?;
    security.verify(envelope.body, &Certificates::default(), |_| Some(Arc::new(anybody)), now).ok()?;
    Some(contents(envelope.request))
}

/// What is in an element, whatever its prefixes.
fn contents(of: Node<'_, '_>) -> Vec<String> {
    let told = |node: Node<'_, '_>| {
        let name = (node.tag_name().namespace().unwrap_or_default(), node.tag_name().name());
        let mut attributes: Vec<_> =
            node.attributes().map(|found| (found.namespace(), found.name(), found.value())).collect();
        attributes.sort_unstable();
        let texts: String = node.children().filter(Node::is_text).filter_map(|text| text.text()).collect();
        format!("{name:?} {attributes:?} {texts}")
    };
    of.descendants().filter(Node::is_element).map(told).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEEDS: [&str; 4] = [
        include_str!("../fuzz/seeds/create-11.xml"),
        include_str!("../fuzz/seeds/secured-12.xml"),
        include_str!("../fuzz/seeds/update-11.xml"),
        include_str!("../fuzz/seeds/number-11.xml"),
    ];

    /// Every refusal is an envelope that can be read.
    fn check(bytes: &[u8]) {
        if let Err(fault) = read_only(bytes, None) {
            let document = roxmltree::Document::parse(&fault).unwrap();
            assert!(document.descendants().any(|node| node.tag_name().name() == "Fault"), "{fault}");
        }
    }

    #[test]
    fn the_seeds_are_messages() {
        for seed in SEEDS {
            assert_eq!(envelope::scan(seed).map_err(|fault| format!("{fault:?}")), Ok(()));
            check(seed.as_bytes());
        }
    }

    /// Found by fuzzing: it is JSON by its grammar, and was refused without the name of its element.
    #[test]
    fn a_number_that_nobody_can_read_back_is_refused_where_it_stands() {
        let refused = read_only(include_bytes!("../fuzz/seeds/number-11.xml"), None).unwrap_err();
        assert!(refused.contains("attributeMap/entry[2]/json"), "{refused}");
    }

    /// Found with Axis 1.4, which writes a character beyond U+FFFF as two references: the tree has U+FFFD for either half, and
    /// two subjects would be one.
    #[test]
    fn half_a_character_is_refused_and_not_replaced() {
        let create = include_str!("../fuzz/seeds/create-11.xml");
        let with = |text: &str| create.replacen("<subject>ali", &format!("<subject a='{text}'>{text}"), 1);
        for bad in ["&#xD83E;&#xDDC0;", "&#55358;", "&#x110000;", "&#;", "&#x;", "&#-1;", "&#xFFFFFFFFFF;"] {
            for message in [with(bad), with("").replacen("a=''", &format!("a='{bad}'"), 1)] {
                assert!(message.contains(bad));
                let refused = read_only(message.as_bytes(), None).unwrap_err();
                assert!(refused.contains("MALFORMED") || refused.contains("VALIDATION_FAILED"), "{refused}");
                assert!(envelope::scan(&message).is_err(), "{bad}");
            }
        }
        for good in ["&#x1F9C0;", "&#129472;", "<![CDATA[&#xD83E;]]>", "&amp;#xD83E;", "🧀"] {
            let message = create.replacen("<subject>ali", &format!("<subject>{good}"), 1);
            assert!(message.contains(good) && envelope::scan(&message).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_good_signature_answers_what_it_signs() {
        let good = include_str!("testdata/signed/all-parts.xml");
        let found = read_signed(good.as_bytes()).unwrap();
        assert!(found.iter().any(|element| element.contains("alice")), "{found:?}");
        assert_eq!(read_signed(good.replace("alice", "mallory").as_bytes()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            check(&bytes);
        }

        #[test]
        fn a_message_with_a_piece_moved_is_read_or_refused(
            seed in 0..SEEDS.len(), from in 0.0..1.0, length in 0..60_usize, to in 0.0..1.0, other in "[<>&;/!?\\[\\]'\"= a-z:\\PC]{0,8}",
        ) {
            let text = SEEDS[seed];
            let at = |share: f64| {
                let mut at = (text.len() as f64 * share) as usize;
                while !text.is_char_boundary(at) { at -= 1 }
                at
            };
            let mut end = (at(from) + length).min(text.len());
            while !text.is_char_boundary(end) { end -= 1 }
            let piece = &text[at(from)..end];
            check(format!("{}{piece}{other}{}", &text[..at(to)], &text[at(to)..]).as_bytes());
            check(format!("{}{other}{}", &text[..at(from)], &text[end..]).as_bytes());
        }
    }
}
