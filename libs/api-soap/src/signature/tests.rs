//! What other implementations signed is read as they meant it; what was changed since is not. The messages of `testdata/signed` were
//! made by libxmlsec1 (`tests/soap/golden/make_signed.py`); those of `testdata/clients` were sent by the clients of `tests/soap`.

use openssl::bn::BigNum;
use openssl::ec::EcGroup;
use openssl::nid::Nid;
use roxmltree::Document;
use session_model::Role;

use super::*;
use crate::addressing;
use crate::envelope::{self, Envelope};
use crate::security;

macro_rules! golden {
    ($name:literal) => {
        include_str!(concat!("../testdata/signed/", $name, ".xml"))
    };
}

const CERTIFICATES: &str = include_str!("../testdata/signed/certificates.json");

/// What comes of a message: who signed it (and, for the message id, whether that is signed), or why not.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Good {
        signer: String,
        identity: Digest,
        signed_id: bool,
    },
    /// Refused for its form, with this code.
    Form(String),
    Refused(&'static str),
}

fn fingerprints() -> HashMap<Digest, String> {
    let known: HashMap<String, Digest> = serde_json::from_str(CERTIFICATES).unwrap();
    let client = include_str!("../testdata/clients/certificate.sha256").trim().parse().unwrap();
    known.into_iter().map(|(name, digest)| (digest, name)).chain([(client, "client".to_owned())]).collect()
}

/// Reads a message as the endpoint does, a second after it was made.
fn verdict(xml: &str) -> Verdict {
    let certificates = fingerprints();
    read(xml, |digest| certificates.get(digest).cloned()).unwrap_or_else(|fault| {
        let (_, xml) = fault.envelope(envelope::Version::Soap11, &addressing::Echo::default(), "0");
        let document = Document::parse(&xml).unwrap();
        let code = document.descendants().find(|node| node.tag_name().name() == "faultcode").unwrap();
        Verdict::Form(code.text().unwrap().to_owned())
    })
}

fn read(xml: &str, known: impl Fn(&Digest) -> Option<String>) -> Result<Verdict, Fault> {
    envelope::scan(xml)?;
    let document = envelope::parse(xml)?;
    let message = Envelope::read(&document, envelope::version(&document)?)?;
    let id = addressing::read(&message.headers)?.and_then(|addressed| addressed.message_id);
    let security = security::read(&message.headers)?.ok_or_else(security::failed)?;
    let created = document.descendants().find(|node| node.tag_name().name() == "Created").unwrap();
    let now = Timestamp::parse(created.text().unwrap()).unwrap().plus(session_model::Seconds(1));
    security.check_time(now)?;
    let holder = |name: String| Arc::new(Keyholder::new(name, "default".parse().unwrap(), vec![Role::Application], 0));
    let verified = security.verify(message.body, &certificates(), |digest| known(digest).map(holder), now);
    Ok(match verified {
        Ok(Signed { holder, covered, identity }) => {
            let signed_id = id.is_some_and(|(_, node)| covered.contains(&node));
            Verdict::Good { signer: holder.id.clone(), identity, signed_id }
        }
        Err(reason) => Verdict::Refused(reason),
    })
}

/// The certificate that some messages name only.
fn certificates() -> Certificates {
    let pem = include_bytes!("../testdata/signed/rsa.pem");
    Certificates::new(&[SignerCertificate::from_pem(pem).unwrap()]).unwrap()
}

fn is_good(xml: &str) -> bool {
    matches!(verdict(xml), Verdict::Good { .. })
}

/// The source of the first element of this local name.
fn source<'a>(xml: &'a str, name: &str) -> &'a str {
    let document = Document::parse(xml).unwrap();
    let range = document.descendants().find(|node| node.tag_name().name() == name).unwrap().range();
    &xml[range]
}

/// The message with this put in instead of an element.
fn instead(xml: &str, name: &str, with: &str) -> String {
    xml.replacen(source(xml, name), with, 1)
}

/// The message with this put in before its Security header.
fn with_header(xml: &str, block: &str) -> String {
    let security = source(xml, "Security");
    xml.replacen(security, &format!("{block}{security}"), 1)
}

/// An element with its ids taken away.
fn without_ids(element: &str) -> String {
    let (start, rest) = element.split_once('>').unwrap();
    let kept: Vec<_> = start.split(' ').filter(|piece| !piece.contains(":Id=")).collect();
    format!("{}>{rest}", kept.join(" "))
}

fn wrapped(what: &str) -> String {
    // With the prefixes that the messages bind at their Security header.
    let (w, u) = (security::SECEXT, security::UTILITY);
    format!("<wrap:per xmlns:wrap='urn:wrap' xmlns:w='{w}' xmlns:u='{u}'>{what}</wrap:per>")
}

#[test]
fn what_other_implementations_sign_is_good() {
    for (xml, signer, signed_id) in [
        (golden!("zeep-rsa"), "rsa", false),
        (golden!("zeep-ecdsa"), "ec", false),
        (golden!("zeep-x509data"), "rsa", false),
        (golden!("identifier"), "rsa", false),
        (golden!("by-serial"), "rsa", false),
        (golden!("by-key"), "rsa", false),
        (golden!("all-parts"), "rsa", true),
        (golden!("unsigned-message-id"), "rsa", false),
        // Two prefixes for one namespace, and lists of them.
        (include_str!("../testdata/clients/wss4j.xml"), "client", false),
        // Ids in no namespace, and a transform that takes nothing out.
        (include_str!("../testdata/clients/node-soap.xml"), "client", false),
    ] {
        let Verdict::Good { signer: who, signed_id: signed, .. } = verdict(xml) else {
            panic!("{:?}: {xml}", verdict(xml))
        };
        assert_eq!((who.as_str(), signed), (signer, signed_id), "{xml}");
    }
}

#[test]
fn what_is_signed_otherwise_is_refused_for_its_form() {
    for (xml, code) in [
        (golden!("zeep-sha1"), "wsse:UnsupportedAlgorithm"),
        (golden!("zeep-sha1-digest"), "wsse:UnsupportedAlgorithm"),
        (golden!("hmac"), "wsse:UnsupportedAlgorithm"),
        (golden!("inclusive-part"), "wsse:UnsupportedAlgorithm"),
        (golden!("inclusive-info"), "wsse:UnsupportedAlgorithm"),
        (golden!("comments"), "wsse:UnsupportedAlgorithm"),
        (golden!("whole-envelope"), "wsse:UnsupportedAlgorithm"),
        (golden!("too-many"), "wsse:InvalidSecurity"),
        (golden!("empty"), "wsse:InvalidSecurity"),
        (golden!("no-timestamp"), "wsse:InvalidSecurity"),
    ] {
        assert_eq!(verdict(xml), Verdict::Form(code.to_owned()), "{xml}");
    }
    let good = golden!("zeep-rsa");
    for (from, to, code) in [
        ("URI=\"#", "URI=\"", "wsse:InvalidSecurity"),
        ("URI=\"#", "URI=\"#xpointer(/)", "wsse:InvalidSecurity"),
        ("URI=\"#", "URI=\"file:///etc/passwd#", "wsse:InvalidSecurity"),
        ("</SignedInfo>", "</SignedInfo><Object/>", "wsse:InvalidSecurity"),
        (
            "</Transforms>",
            "<Transform Algorithm='http://www.w3.org/TR/1999/REC-xslt-19991116'/></Transforms>",
            "wsse:UnsupportedAlgorithm",
        ),
        ("<Transform Algorithm=\"http://www.w3.org/2001/10/xml-exc-c14n#\"/>", "", "wsse:UnsupportedAlgorithm"),
        ("#X509v3\" EncodingType", "#X509PKIPathv1\" EncodingType", "wsse:UnsupportedSecurityToken"),
        (
            "<w:SecurityTokenReference>",
            "<w:SecurityTokenReference><KeyName>rsa</KeyName>",
            "wsse:UnsupportedSecurityToken",
        ),
        ("<KeyInfo>", "<KeyInfo><KeyName>rsa</KeyName>", "wsse:UnsupportedSecurityToken"),
    ] {
        assert!(good.contains(from), "{from}");
        assert_eq!(verdict(&good.replace(from, to)), Verdict::Form(code.to_owned()), "{from} -> {to}");
    }
    let twice = good.replacen(source(good, "Signature"), &source(good, "Signature").repeat(2), 1);
    assert_eq!(verdict(&twice), Verdict::Form("wsse:InvalidSecurity".to_owned()));
    let nobodys = instead(good, "Signature", "");
    assert_eq!(verdict(&nobodys), Verdict::Form("wsse:InvalidSecurity".to_owned()));
    let list: String = (0..=PREFIXES).map(|at| format!("p{at} ")).collect();
    let long = golden!("all-parts").replace("#default c s", &list);
    assert_eq!(verdict(&long), Verdict::Form("wsse:InvalidSecurity".to_owned()));
}

#[test]
fn who_did_not_sign_body_and_time_stamp_is_refused() {
    for (xml, reason) in [
        (golden!("unsigned-timestamp"), "soap_unsigned_timestamp"),
        (golden!("unsigned-body"), "soap_unsigned_body"),
        (golden!("child-of-body"), "soap_foreign_reference"),
        (golden!("expired"), "soap_expired_certificate"),
    ] {
        assert_eq!(verdict(xml), Verdict::Refused(reason), "{xml}");
    }
    // One that is named, but is not with us; and one that two are called.
    let serial = golden!("by-serial");
    let other = serial.replace("SerialNumber>7<", "SerialNumber>8<");
    assert_eq!((other == serial, verdict(&other)), (false, Verdict::Refused("soap_unknown_certificate")));
    let pem = include_bytes!("../testdata/signed/rsa.pem");
    let two = [SignerCertificate::from_pem(pem).unwrap(), SignerCertificate::from_pem(pem).unwrap()];
    assert_eq!(Certificates::new(&two).unwrap().only(|one| one.serial_number == "7"), None);
    let nobody = read(golden!("zeep-rsa"), |_| None);
    assert_eq!(nobody.unwrap(), Verdict::Refused("soap_unknown_certificate"));
}

#[test]
fn a_changed_message_is_refused() {
    let good = golden!("zeep-rsa");
    for (from, to) in [
        ("alice", "mallory"),
        ("alice &amp;", "alice  &amp;"),
        (">web<", ">api<"),
        ("<kind xsi:type=\"c:kind\">web</kind>", ""),
        ("xsi:type=\"c:kind\"", "xsi:nil=\"true\""),
        ("12:05:00Z", "12:06:00Z"),
        ("<u:Created>2026-11-21T12:00:00Z", "<u:Created>2026-11-21T12:00:01Z"),
        ("</c:subject>", "</c:subject> "),
        ("xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"", "xmlns:xsi=\"urn:else\""),
    ] {
        assert!(good.contains(from), "{from}");
        assert_eq!(verdict(&good.replace(from, to)), Verdict::Refused("soap_altered"), "{from} -> {to}");
    }
    // What is signed in SignedInfo is as well.
    let digest = source(good, "DigestValue").to_owned();
    let other = digest.replacen("Value>", "Value>AAAA", 1);
    for (from, to) in [(digest.as_str(), other.as_str()), ("2001/04/xmlenc#sha256", "2001/04/xmlenc#sha512")] {
        assert_eq!(verdict(&good.replacen(from, to, 1)), Verdict::Refused("soap_bad_signature"), "{from} -> {to}");
    }
    // A key of another kind than the algorithm's: neither reads the other's signatures.
    let confused = good.replace("#rsa-sha256", "#ecdsa-sha256");
    assert_eq!(verdict(&confused), Verdict::Refused("soap_bad_signature"));
    // The certificate of somebody else who is known.
    let ec = golden!("zeep-ecdsa");
    let mixed =
        instead(good, "BinarySecurityToken", &source(ec, "BinarySecurityToken").replace(token_id(ec), token_id(good)));
    assert_eq!(verdict(&mixed), Verdict::Refused("soap_bad_signature"));
}

fn token_id(xml: &str) -> &str {
    let (_, id) = source(xml, "SecurityTokenReference").split_once("URI=\"#").unwrap();
    id.split_once('"').unwrap().0
}

#[test]
fn what_is_not_signed_may_change() {
    let good = golden!("zeep-rsa");
    let Verdict::Good { identity: first, .. } = verdict(good) else { panic!() };
    for (from, to) in [
        // A comment is not signed, and cuts no text off.
        ("alice", "ali<!-- nothing -->ce"),
        ("<kind xsi:type=\"c:kind\">", "<kind   xsi:type = 'c:kind'>"),
        ("xmlns:unused=\"urn:unused\"", "xmlns:unused=\"urn:other\" xmlns:more=\"urn:more\""),
        ("alice &amp;", "alice &#38;"),
        ("web", "<![CDATA[web]]>"),
    ] {
        assert!(good.contains(from), "{from}");
        let Verdict::Good { identity, .. } = verdict(&good.replace(from, to)) else { panic!("{from} -> {to}") };
        assert_eq!(identity, first, "a message spelt otherwise is the same message: it must not be taken twice");
    }
    // A prefix of the list is signed whether it is used or not.
    let listed = golden!("all-parts").replace("urn:unused", "urn:other");
    assert_eq!(verdict(&listed), Verdict::Refused("soap_bad_signature"));
}

/// Signature wrapping (McIntosh and Austel, 2005): the signed element is moved to where nobody reads it, its signature stays good.
#[test]
fn a_moved_part_is_refused() {
    let good = golden!("zeep-rsa");
    let body = source(good, "Body");
    let forged = body.replace("alice", "mallory");
    let moved = |new: &str| with_header(&instead(good, "Body", new), &wrapped(body));
    assert_eq!(verdict(&moved(&without_ids(&forged))), Verdict::Refused("soap_foreign_reference"));
    let other_id = forged.replacen("Id=\"", "Id=\"other-", 1);
    assert_eq!(verdict(&moved(&other_id)), Verdict::Refused("soap_foreign_reference"));
    assert_eq!(verdict(&moved(&forged)), Verdict::Refused("soap_duplicate_id"));
    // Directly in the Header it is a header block, which may be signed: but it is not the body.
    let block = with_header(&instead(good, "Body", &without_ids(&forged)), body);
    assert_eq!(verdict(&block), Verdict::Refused("soap_unsigned_body"));
    // Inside of the body that is read, at any depth.
    let around = without_ids(&forged).replace("<kind ", &format!("{body}<kind "));
    assert_eq!(verdict(&instead(good, "Body", &around)), Verdict::Refused("soap_foreign_reference"));
    // In the signature, or in the Security header, there is no room for it.
    for place in ["</KeyInfo>", "</w:Security>"] {
        let hidden = instead(good, "Body", &without_ids(&forged)).replace(place, &format!("{body}{place}"));
        assert!(matches!(verdict(&hidden), Verdict::Form(_)), "{place}");
    }
    // Two bodies are no envelope, in either order.
    for two in [format!("{body}{forged}"), format!("{}{body}", without_ids(&forged))] {
        assert!(matches!(verdict(&instead(good, "Body", &two)), Verdict::Form(_)));
    }
    // An id that anything else in the message has, too, is none, whatever the attribute is called.
    let id = body.split_once("Id=\"").unwrap().1.split_once('"').unwrap().0;
    for attribute in ["Id", "ID", "id", "xml:id", "u:Id"] {
        let second = wrapped(&format!("<e xmlns:u='urn:any' {attribute}='{id}'/>"));
        assert_eq!(verdict(&with_header(good, &second)), Verdict::Refused("soap_duplicate_id"), "{attribute}");
    }

    // The time stamp: an old one, good and moved, does not make a new one good.
    let stamp = source(good, "Timestamp");
    let renewed = without_ids(stamp).replace("12:00:00", "12:30:00").replace("12:05:00", "12:35:00");
    let replaced = instead(good, "Timestamp", &renewed);
    let at_the_end = |block: &str| replaced.replace("</s:Header>", &format!("{block}</s:Header>"));
    let bound = stamp.replacen("<u:Timestamp ", &format!("<u:Timestamp xmlns:u='{}' ", security::UTILITY), 1);
    assert_eq!(verdict(&at_the_end(&wrapped(stamp))), Verdict::Refused("soap_foreign_reference"));
    assert_eq!(verdict(&at_the_end(&bound)), Verdict::Refused("soap_unsigned_timestamp"));

    // A header: the signed one in a wrapper, another where it was.
    let good = golden!("all-parts");
    let id = source(good, "MessageID");
    let forged = without_ids(id).replace("000a<", "000b<");
    let replaced = with_header(&instead(good, "MessageID", &forged), &wrapped(id));
    assert_eq!(verdict(&replaced), Verdict::Refused("soap_foreign_reference"));
    // The token: the signed one elsewhere.
    let token = source(good, "BinarySecurityToken");
    let away = with_header(&instead(good, "BinarySecurityToken", ""), &wrapped(token));
    assert_eq!(verdict(&away), Verdict::Refused("soap_foreign_token"));
}

/// Of one ECDSA signature anybody can make another that is as good: it must not pass for another message.
#[test]
fn the_twin_of_a_signature_signs_the_same_message() {
    let good = golden!("zeep-ecdsa");
    let Verdict::Good { identity: first, .. } = verdict(good) else { panic!() };
    let value = source(good, "SignatureValue");
    let written = value.split_once('>').unwrap().1.split_once('<').unwrap().0;
    let bytes = decoded(written).unwrap();
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let mut order = BigNum::new().unwrap();
    group.order(&mut order, &mut openssl::bn::BigNumContext::new().unwrap()).unwrap();
    let twin = &order - &BigNum::from_slice(&bytes[32..]).unwrap();
    let twin = [&bytes[..32], &twin.to_vec_padded(32).unwrap()].concat();
    let spelt = openssl::base64::encode_block(&twin);
    let Verdict::Good { identity, .. } = verdict(&good.replace(written, &spelt)) else {
        panic!("the twin is not good")
    };
    assert_eq!(identity, first);
}

/// What a reader finds in an element: names, attributes and texts, as the tree has them.
fn found(xml: &str, name: &str) -> Vec<String> {
    let document = Document::parse(xml).unwrap();
    let apex = document.descendants().find(|node| node.tag_name().name() == name).unwrap();
    let elements = apex.descendants().filter(Node::is_element);
    let told = |node: Node<'_, '_>| {
        let mut attributes: Vec<_> =
            node.attributes().map(|a| format!("{:?}{}={}", a.namespace(), a.name(), a.value())).collect();
        attributes.sort();
        let texts: Vec<_> = node.children().filter(Node::is_text).map(|text| text.text().unwrap()).collect();
        format!("{:?} {attributes:?} {}", node.tag_name(), texts.concat())
    };
    elements.map(told).collect()
}

/// Whatever a byte of a signed part is changed to: either the signature is no longer good, or the reader finds the same.
#[test]
fn no_byte_of_what_is_read_can_be_changed() {
    for good in [golden!("all-parts"), golden!("zeep-rsa")] {
        for part in ["Body", "Timestamp"] {
            let element = source(good, part);
            let begin = element.as_ptr() as usize - good.as_ptr() as usize;
            for at in begin..begin + element.len() {
                for put in ["", " ", "x", "&#32;", "<!---->"] {
                    let mut changed = good.to_owned();
                    changed.replace_range(at..at + 1, put);
                    if Document::parse(&changed).is_ok_and(|d| d.descendants().any(|n| n.tag_name().name() == part))
                        && is_good(&changed)
                    {
                        assert_eq!(found(&changed, part), found(good, part), "byte {at}: {put}");
                    }
                }
            }
        }
    }
}
