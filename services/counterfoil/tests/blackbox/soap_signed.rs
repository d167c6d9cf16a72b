//! Messages signed with the key of a certificate. What other implementations sign, and how signatures are attacked, is tested in
//! `api-soap`; here is what comes of a good and of a bad one in the service.
//!
//! The signer writes its elements in their canonical form to begin with, so that it needs no canonicalization of its own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::ecdsa::EcdsaSig;

use crate::program::{APPLICATION, AUDITOR, Answer, Home, Program};
use crate::soap::{
    CREATE, Identity, OURS, SOAP11, SOAP12, Token, WSSE, WSU, fault, home, media_type, post_bare, shifted, text, texts,
};

const EXCLUSIVE: &str = "http://www.w3.org/2001/10/xml-exc-c14n#";
const X509V3: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-x509-token-profile-1.0#X509v3";
const ADDRESSING: &str = "http://www.w3.org/2005/08/addressing";

/// A message on its way to be signed.
struct Message<'a> {
    soap: &'static str,
    body: String,
    created: String,
    /// Header blocks, canonical, with their ids if they are to be signed.
    headers: Vec<(Option<&'a str>, String)>,
    /// More in the Security header.
    beside: String,
}

impl Message<'_> {
    fn of(soap: &'static str, request: &str) -> Self {
        let body = format!("<s:Body xmlns:s=\"{soap}\" xmlns:u=\"{WSU}\" u:Id=\"body\">{request}</s:Body>");
        Self { soap, body, created: shifted(0), headers: Vec::new(), beside: String::new() }
    }

    fn signed(&self, by: &Identity) -> String {
        let stamp = format!(
            "<u:Timestamp xmlns:u=\"{WSU}\" u:Id=\"stamp\"><u:Created>{}</u:Created></u:Timestamp>",
            self.created
        );
        let mut parts = vec![("body", self.body.as_str()), ("stamp", stamp.as_str())];
        parts.extend(self.headers.iter().filter_map(|(id, block)| Some(((*id)?, block.as_str()))));
        let references = parts.into_iter().map(|(id, part)| {
            format!(
                "<d:Reference URI=\"#{id}\"><d:Transforms><d:Transform Algorithm=\"{EXCLUSIVE}\"></d:Transform></d:Transforms>\
                 <d:DigestMethod Algorithm=\"http://www.w3.org/2001/04/xmlenc#sha256\"></d:DigestMethod>\
                 <d:DigestValue>{}</d:DigestValue></d:Reference>",
                STANDARD.encode(sealing::sha256(part.as_bytes()).0)
            )
        });
        let info = format!(
            "<d:SignedInfo xmlns:d=\"http://www.w3.org/2000/09/xmldsig#\">\
             <d:CanonicalizationMethod Algorithm=\"{EXCLUSIVE}\"></d:CanonicalizationMethod>\
             <d:SignatureMethod Algorithm=\"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256\"></d:SignatureMethod>\
             {}</d:SignedInfo>",
            references.collect::<String>()
        );
        let signature = EcdsaSig::sign(&sealing::sha256(info.as_bytes()).0, &by.key.ec_key().unwrap()).unwrap();
        let value = [signature.r(), signature.s()].map(|number| number.to_vec_padded(32).unwrap()).concat();
        format!(
            "<s:Envelope xmlns:s=\"{}\"><s:Header>{}<w:Security xmlns:w=\"{WSSE}\" s:mustUnderstand=\"1\">\
             <w:BinarySecurityToken xmlns:u=\"{WSU}\" u:Id=\"token\" ValueType=\"{X509V3}\">{}</w:BinarySecurityToken>\
             {stamp}{}<d:Signature xmlns:d=\"http://www.w3.org/2000/09/xmldsig#\">{info}\
             <d:SignatureValue>{}</d:SignatureValue><d:KeyInfo><w:SecurityTokenReference><w:Reference URI=\"#token\"/>\
             </w:SecurityTokenReference></d:KeyInfo></d:Signature></w:Security></s:Header>{}</s:Envelope>",
            self.soap,
            self.headers.iter().map(|(_, block)| block.as_str()).collect::<String>(),
            STANDARD.encode(by.certificate.to_der().unwrap()),
            self.beside,
            STANDARD.encode(value),
            self.body,
        )
    }
}

fn create(soap: &'static str) -> Message<'static> {
    Message::of(soap, &CREATE.replace('\'', "\"").replace("/>", "></CreateSession>"))
}

fn send(program: &Program, message: &str) -> Answer {
    let soap = if message.contains(SOAP11) { SOAP11 } else { SOAP12 };
    post_bare(program, media_type(soap), message.as_bytes())
}

/// A program whose consumers have a certificate each: an application, and an auditor.
fn signers() -> (Home, Identity, Identity) {
    let (billing, audit) = (Identity::new("billing", None), Identity::new("audit", None));
    let known = |identity: &Identity| format!("[\"{}\"]", identity.fingerprint());
    let home = home()
        .with("SOAP__CONSUMERS__BILLING__CERTIFICATES_SHA256", known(&billing))
        .with("SOAP__CONSUMERS__AUDIT__CERTIFICATES_SHA256", known(&audit));
    (home, billing, audit)
}

#[test]
fn who_signed_is_who_asks() {
    let (home, billing, audit) = signers();
    let program = home.start();
    for soap in [SOAP11, SOAP12] {
        let answer = send(&program, &create(soap).signed(&billing));
        assert_eq!((answer.status, texts(&answer, "Timestamp").len()), (200, 1), "{answer:?}");
        let path = format!("/v1/audit/entries/{}", text(&answer, "leafIndex"));
        let entry = program.json(AUDITOR, "GET", &path, None).json();
        assert_eq!(entry["entry"]["actor"]["id"], "consumer:billing");
        // The roles are the consumer's.
        let query = Message::of(soap, &format!("<QueryAudit xmlns=\"{OURS}\"></QueryAudit>"));
        assert_eq!(fault(&send(&program, &query.signed(&billing))), "NOT_ALLOWED");
        assert_eq!(send(&program, &query.signed(&audit)).status, 200);
        assert_eq!(fault(&send(&program, &create(soap).signed(&audit))), "NOT_ALLOWED");
    }
    // Nothing of this was a refusal in the log of the service, but what the roles refused.
    let said = std::fs::read_to_string(home.folder.path().join("stderr")).unwrap();
    assert!(!said.contains("a SOAP message was refused"), "{said}");
}

#[test]
fn whoever_does_not_sign_as_a_consumer_is_told_one_thing() {
    let (home, billing, _) = signers();
    let program = home.start();
    let stranger = Identity::new("billing", None);
    for soap in [SOAP11, SOAP12] {
        let good = || create(soap).signed(&billing);
        let replayed = good();
        assert_eq!(send(&program, &replayed).status, 200);
        let body = create(soap).body;
        let forged = body.replace("</CreateSession>", "<subject>mallory</subject></CreateSession>");
        let moved = format!("<x:y xmlns:x=\"urn:x\">{body}</x:y></s:Header>");
        let wrapped = good().replace("</s:Header>", &moved);
        let at = wrapped.rfind(&body).unwrap();
        let wrapped =
            format!("{}{}", &wrapped[..at], wrapped[at..].replace(&body, &forged.replace(" u:Id=\"body\"", "")));
        let mut told = Vec::new();
        for (what, message) in [
            ("a stranger's certificate", create(soap).signed(&stranger)),
            ("another body", good().replace(&body, &forged)),
            ("the body moved", wrapped),
            ("once more", replayed.clone()),
            ("once more, spelt otherwise", replayed.replace("<s:Header>", "<s:Header >")),
            ("a moment later", good().replace("</u:Created>", " </u:Created>")),
        ] {
            let answer = send(&program, &message);
            assert_eq!(fault(&answer), "FailedAuthentication", "{what}");
            let time = texts(&answer, "Created").into_iter().chain(texts(&answer, "Expires"));
            told.push(time.fold(answer.text.clone(), |text, time| text.replace(&time, "")));
        }
        told.dedup();
        assert_eq!(told.len(), 1, "{told:?}");
        for seconds in [-301, 90] {
            let stale = Message { created: shifted(seconds), ..create(soap) };
            assert_eq!(fault(&send(&program, &stale.signed(&billing))), "MessageExpired");
        }
    }
    let said = std::fs::read_to_string(home.folder.path().join("stderr")).unwrap();
    for reason in ["unknown_certificate", "altered", "foreign_reference", "replayed_signature"] {
        assert!(said.contains(&format!("soap_{reason}")), "the log of the service says why: {reason}");
    }
}

#[test]
fn a_certificate_that_is_kept_as_a_file_need_not_be_sent() {
    let billing = Identity::new("billing", None);
    let home = home();
    let file = home.folder.path().join("billing.crt");
    std::fs::write(&file, billing.certificate.to_pem().unwrap()).unwrap();
    let files = format!("[\"{}\"]", file.display());
    let home = home.with("SOAP__CONSUMERS__BILLING__CERTIFICATE_FILES", &files);
    let program = home.start();
    let serial = billing.certificate.serial_number().to_bn().unwrap().to_dec_str().unwrap();
    let named = format!(
        "<d:X509Data><d:X509IssuerSerial><d:X509IssuerName>CN=billing</d:X509IssuerName>\
         <d:X509SerialNumber>{serial}</d:X509SerialNumber></d:X509IssuerSerial></d:X509Data>"
    );
    let by_serial = |message: String| {
        let (head, rest) = message.split_once("<w:BinarySecurityToken").unwrap();
        let (_, rest) = rest.split_once("</w:BinarySecurityToken>").unwrap();
        format!("{head}{rest}").replace("<w:Reference URI=\"#token\"/>", &named)
    };
    assert_eq!(send(&program, &create(SOAP11).signed(&billing)).status, 200, "sent all the same");
    let sent = by_serial(create(SOAP12).signed(&billing));
    assert!(!sent.contains("BinarySecurityToken"));
    assert_eq!(send(&program, &sent).status, 200);
    let stranger = Identity::new("billing", None);
    assert_eq!(fault(&send(&program, &by_serial(create(SOAP12).signed(&stranger)))), "FailedAuthentication");
    program.stop();
    // Two consumers cannot have it, and what is no certificate is told by its file.
    let home = home.with("SOAP__CONSUMERS__AUDIT__CERTIFICATE_FILES", &files);
    let start = ["--set", "server.listen=127.0.0.1:0", "--set", "management.listen=127.0.0.1:0"];
    let (code, said) = home.run(&start);
    assert!(code == Some(1) && said.contains("another consumer has the certificate"), "{said}");
    std::fs::write(&file, "no certificate").unwrap();
    let (code, said) = home.run(&start);
    assert!(code == Some(1) && said.contains("certificate_files") && said.contains("billing.crt"), "{said}");
}

#[test]
fn a_message_has_one_credential() {
    let (home, billing, _) = signers();
    let program = home.start();
    let message = create(SOAP11).signed(&billing);
    let bearer = format!("Bearer {APPLICATION}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "text/xml")];
    assert_eq!(fault(&program.ask("POST", "/soap/v1", &headers, Some(message.as_bytes())).unwrap()), "InvalidSecurity");
    let both = Message { beside: Token::of("billing").digest(), ..create(SOAP11) };
    assert_eq!(fault(&send(&program, &both.signed(&billing))), "InvalidSecurity");
}

#[test]
fn a_signed_message_from_before_the_process_is_not_taken_again_after_a_restart() {
    let (home, billing, _) = signers();
    let program = home.start();
    let message = create(SOAP12).signed(&billing);
    assert_eq!(send(&program, &message).status, 200);
    program.stop();
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let program = home.start();
    assert_eq!(fault(&send(&program, &message)), "FailedAuthentication");
    assert_eq!(send(&program, &create(SOAP12).signed(&billing)).status, 200);
}

/// The id of a message is a fact of its entry. Of a signed message it is one only if it is signed as well: or a stranger on the
/// way could have the log say it.
#[test]
fn an_unsigned_message_id_is_not_recorded() {
    let (home, billing, _) = signers();
    let program = home.start();
    let id = "0190a5c2-7c1e-7000-8000-00000000000a";
    let block = |attribute: &str, more: &str| {
        format!("<a:MessageID xmlns:a=\"{ADDRESSING}\"{more}{attribute}>urn:uuid:{id}</a:MessageID>")
    };
    let recorded = |headers| {
        let answer = send(&program, &Message { headers, ..create(SOAP12) }.signed(&billing));
        assert_eq!(text(&answer, "RelatesTo"), format!("urn:uuid:{id}"), "it is echoed in any case");
        let path = format!("/v1/audit/entries/{}", text(&answer, "leafIndex"));
        program.json(AUDITOR, "GET", &path, None).json().to_string().contains(id)
    };
    assert!(recorded(vec![(Some("id"), block(" u:Id=\"id\"", &format!(" xmlns:u=\"{WSU}\"")))]));
    assert!(!recorded(vec![(None, block("", ""))]));
}
