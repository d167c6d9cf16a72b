//! WS-Security: who gets in, who does not, and that those who do not are told one thing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::program::{APPLICATION, AUDITOR, Answer, Program};
use crate::soap::{
    CREATE, OURS, SECRET, SOAP11, SOAP12, Token, WSSE, WSU, envelope, fault, home, media_type, post_bare, security,
    shifted, text, texts,
};

fn send(program: &Program, version: &str, header: &str) -> Answer {
    post_bare(program, media_type(version), envelope(version, header, CREATE).as_bytes())
}

fn stamp(created: &str, expires: &str) -> String {
    format!(
        "<u:Timestamp xmlns:u='{WSU}'><u:Created>{created}</u:Created><u:Expires>{expires}</u:Expires></u:Timestamp>"
    )
}

#[test]
fn a_consumer_gets_in_with_its_secret_in_clear_or_as_a_digest() {
    let home = home();
    let program = home.start();
    for version in [SOAP11, SOAP12] {
        let token = Token::of("billing");
        for header in [token.digest(), Token::of("billing").plain()] {
            let answer = send(&program, version, &security(&header));
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(!answer.text.contains("Security"), "no time stamp unless asked");
        }
        // With a time stamp, before the token or after it: then the answer has one, which nobody must understand.
        let fresh = stamp(&shifted(0), &shifted(600));
        for inside in
            [format!("{fresh}{}", Token::of("billing").digest()), format!("{}{fresh}", Token::of("billing").digest())]
        {
            let answer = send(
                &program,
                version,
                &security(&inside).replace("Security xmlns", "Security s:mustUnderstand='1' xmlns"),
            );
            assert_eq!((answer.status, texts(&answer, "Timestamp").len()), (200, 1), "{answer:?}");
            assert!(!answer.text.contains("mustUnderstand"));
        }
        // As zeep and suds write a time, and with a Created before the password, as strong-soap does.
        let odd = Token { created: shifted(0).replace('Z', "+00:00"), ..Token::of("billing") };
        assert_eq!(send(&program, version, &security(&odd.digest())).status, 200);
    }
    // The entry names the consumer; a role of the consumer is all it has.
    let answer = send(&program, SOAP11, &security(&Token::of("billing").digest()));
    let path = format!("/v1/audit/entries/{}", text(&answer, "leafIndex"));
    let entry = program.json(AUDITOR, "GET", &path, None).json();
    assert_eq!(entry["entry"]["actor"]["id"], "consumer:billing");
    assert_eq!(fault(&send(&program, SOAP11, &security(&Token::of("audit").digest()))), "NOT_ALLOWED");
    let query = envelope(SOAP11, &security(&Token::of("audit").digest()), &format!("<QueryAudit xmlns='{OURS}'/>"));
    let events = post_bare(&program, "text/xml", query.as_bytes());
    assert!(texts(&events, "actor").contains(&"consumer:billing".to_owned()), "{events:?}");
    assert!(texts(&events, "action").contains(&"audit.read".to_owned()), "its own reading is an entry already");
    let said = std::fs::read_to_string(home.folder.path().join("stderr")).unwrap();
    assert!(!said.contains("a SOAP message was refused"), "nobody was, but by a role: {said}");
}

#[test]
fn whoever_fails_is_told_one_thing() {
    let home = home();
    let program = home.start();
    let wrong = Token { secret: "another secret, just as long ....".into(), ..Token::of("billing") };
    let unknown = Token::of("nobody");
    let stale = Token { created: shifted(-301), ..Token::of("billing") };
    let future = Token { created: shifted(90), ..Token::of("billing") };
    let none = "<w:BinarySecurityToken xmlns:w='urn:x'/>";
    for version in [SOAP11, SOAP12] {
        let mut told = Vec::new();
        for header in [
            wrong.digest(),
            wrong.plain(),
            unknown.digest(),
            unknown.plain(),
            stale.digest(),
            stale.plain(),
            future.digest(),
            String::new(),
        ] {
            let answer = send(&program, version, &security(&header));
            assert_eq!(fault(&answer), "FailedAuthentication", "{header}");
            assert!(!answer.text.contains("SessionFault"), "a fault of a header has no detail");
            told.push(answer.text);
        }
        told.dedup();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(fault(&send(&program, version, &security(none))), "UnsupportedSecurityToken");
    }
}

#[test]
fn a_nonce_is_good_once_however_it_is_spelt() {
    let home = home();
    let program = home.start();
    // 16 bytes leave four bits over in base64: spelt with and without them, and without padding, they are the same bytes.
    let token = Token::of("billing");
    let digest = sealing::password_digest(&token.nonce, token.created.as_bytes(), SECRET.as_bytes());
    let element = |nonce: &str| security(&token.element("PasswordDigest", &STANDARD.encode(digest), nonce));
    let spelt = STANDARD.encode(&token.nonce);
    assert_eq!(send(&program, SOAP11, &element(&spelt)).status, 200);
    let bare = spelt.trim_end_matches('=');
    let last = bare.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let respelt = alphabet.chars().nth(alphabet.find(last).unwrap() + 1).unwrap();
    let respelt = format!("{}{respelt}==", &bare[..bare.len() - 1]);
    for again in [spelt.clone(), bare.to_owned(), respelt, format!(" {} \n {}", &spelt[..8], &spelt[8..])] {
        assert_eq!(fault(&send(&program, SOAP12, &element(&again))), "FailedAuthentication", "{again}");
    }
    let plain = Token::of("billing");
    assert_eq!(send(&program, SOAP11, &security(&plain.plain())).status, 200);
    assert_eq!(fault(&send(&program, SOAP11, &security(&plain.plain()))), "FailedAuthentication");
    // Strangers cannot use up a nonce.
    let theirs = Token::of("billing");
    let guess = Token { secret: "a guess of the secret ..........".into(), ..theirs.clone() };
    assert_eq!(fault(&send(&program, SOAP11, &security(&guess.digest()))), "FailedAuthentication");
    assert_eq!(send(&program, SOAP11, &security(&theirs.digest())).status, 200);
}

#[test]
fn a_message_from_before_the_process_is_not_taken_again_after_a_restart() {
    let home = home();
    let program = home.start();
    let token = Token { created: shifted(-5), ..Token::of("billing") };
    // Five seconds old is fresh, but older than this process: whether it was seen before nobody knows.
    assert_eq!(fault(&send(&program, SOAP11, &security(&token.digest()))), "FailedAuthentication");
    let late = Token::of("billing");
    assert_eq!(send(&program, SOAP11, &security(&late.digest())).status, 200);
    program.stop();
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let program = home.start();
    assert_eq!(fault(&send(&program, SOAP11, &security(&late.digest()))), "FailedAuthentication");
    assert_eq!(send(&program, SOAP11, &security(&Token::of("billing").digest())).status, 200);
}

#[test]
fn malformed_doubled_and_unsupported_tokens_are_refused() {
    let home = home();
    let program = home.start();
    let token = || Token::of("billing");
    let fresh = stamp(&shifted(0), &shifted(60));
    for version in [SOAP11, SOAP12] {
        let told = |header: &str| fault(&send(&program, version, header));
        let one = security(&token().digest());
        assert_eq!(told(&format!("{one}{}", security(&token().digest()))), "InvalidSecurity", "two headers");
        assert_eq!(
            told(&security(&format!("{}{}", token().digest(), token().digest()))),
            "InvalidSecurity",
            "two tokens"
        );
        assert_eq!(told(&security(&format!("{fresh}{fresh}{}", token().digest()))), "InvalidSecurity", "two stamps");
        assert_eq!(told(&security(&format!("<w:UsernameToken xmlns:w='{WSSE}'/>"))), "InvalidSecurityToken", "empty");
        let no_password =
            format!("<w:UsernameToken xmlns:w='{WSSE}'><w:Username>billing</w:Username></w:UsernameToken>");
        assert_eq!(told(&security(&no_password)), "InvalidSecurityToken");
        let odd_type = token().plain().replace("#PasswordText", "#PasswordRot13");
        assert_eq!(told(&security(&odd_type)), "UnsupportedSecurityToken");
        let no_nonce = token().digest().replace("w:Nonce", "w:Nonsense");
        assert_eq!(told(&security(&no_nonce)), "InvalidSecurityToken", "a digest without its nonce");
        for nonce in ["", "!!!!", "AAAA", &"A".repeat(400)] {
            assert_eq!(
                told(&security(&token().element("PasswordText", SECRET, nonce))),
                "InvalidSecurityToken",
                "{nonce}"
            );
        }
        for time in ["", "now", "2026-11-21"] {
            let odd = Token { created: time.into(), ..token() };
            assert_eq!(told(&security(&odd.digest())), "InvalidSecurityToken", "{time}");
        }
        let encrypted = format!("{}<EncryptedKey xmlns='http://www.w3.org/2001/04/xmlenc#'/>", token().digest());
        assert_eq!(
            told(&security(&encrypted)),
            "UnsupportedSecurityToken",
            "what is not checked does not pass for checked"
        );
        for (created, expires) in [(-301, 60), (90, 120), (-60, -1)] {
            let stale = stamp(&shifted(created), &shifted(expires));
            assert_eq!(told(&security(&format!("{stale}{}", token().digest()))), "MessageExpired", "{created}");
        }
        let backwards = stamp(&shifted(0), &shifted(-5));
        assert_eq!(told(&security(&format!("{backwards}{}", token().digest()))), "InvalidSecurity");
    }
    let both = [("Authorization", format!("Bearer {APPLICATION}")), ("Content-Type", "text/xml".to_owned())];
    let both: Vec<_> = both.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let message = envelope(SOAP11, &security(&token().digest()), CREATE);
    assert_eq!(fault(&program.ask("POST", "/soap/v1", &both, Some(message.as_bytes())).unwrap()), "InvalidSecurity");
}

#[test]
fn a_secret_in_clear_needs_tls_unless_the_configuration_says_otherwise() {
    let home = home().with("SOAP__PASSWORD_TEXT", "tls_only");
    let program = home.start();
    assert_eq!(fault(&send(&program, SOAP11, &security(&Token::of("billing").plain()))), "UnsupportedSecurityToken");
    assert_eq!(send(&program, SOAP11, &security(&Token::of("billing").digest())).status, 200);
}

#[test]
fn a_secret_can_be_kept_sealed_and_opens_for_its_consumer_only() {
    use std::io::Write;
    let home = home();
    home.start().stop();
    let seal = |consumer: &str| {
        let mut command = home.command(&["soap", "seal", consumer]);
        let mut child =
            command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(SECRET.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    let sealed = seal("billing");
    assert!(sealed.starts_with("sealed:") && !sealed.contains(SECRET), "{sealed}");
    let file = home.folder.path().join("sealed");
    std::fs::write(&file, &sealed).unwrap();
    let home = home.with("SOAP__CONSUMERS__BILLING__SECRET_FILE", file.display().to_string());
    let program = home.start();
    assert_eq!(send(&program, SOAP11, &security(&Token::of("billing").digest())).status, 200);
    program.stop();
    let home = home.with("SOAP__CONSUMERS__OTHER__SECRET_FILE", file.display().to_string());
    let (code, said) = home.run(&["--set", "server.listen=127.0.0.1:0", "--set", "management.listen=127.0.0.1:0"]);
    assert!(code == Some(1) && said.contains("soap.consumers.other.secret_file"), "{said}");
}

#[test]
fn a_nonce_used_at_one_node_is_used_at_every_node() {
    use crate::program::{database, redis};
    for view in ["memory:".to_owned(), redis()] {
        let home = home();
        let url = database(&home);
        let home = home.with("LOG__URL", &url).with("VIEW__URL", &view);
        assert_eq!(home.run(&["migrate"]).0, Some(0));
        let (one, other) = (home.start(), home.start());
        let header = security(&Token { created: shifted(-5), ..Token::of("billing") }.digest());
        assert_eq!(send(&one, SOAP11, &header).status, 200, "older than the process, but the memory is not its own");
        assert_eq!(fault(&send(&other, SOAP11, &header)), "FailedAuthentication", "{view}");
        drop(one);
        let again = home.start();
        assert_eq!(fault(&send(&again, SOAP11, &header)), "FailedAuthentication", "{view}");
    }
}

#[test]
fn tls_serves_both_mouths_and_a_client_certificate_is_a_credential() {
    use crate::soap::{Identity, over_tls};
    let (root, stranger_root) = (Identity::new("root", None), Identity::new("other root", None));
    let server = Identity::new("127.0.0.1", Some(&root));
    let billing = Identity::new("billing", Some(&root));
    let unknown = Identity::new("unknown", Some(&root));
    let forged = Identity::new("billing", Some(&stranger_root));
    let mut home = home().with("SOAP__PASSWORD_TEXT", "tls_only");
    let pem = |identity: &Identity| identity.certificate.to_pem().unwrap();
    for (key, bytes) in [
        ("SERVER__TLS__CERTIFICATE_FILE", pem(&server)),
        ("SERVER__TLS__KEY_FILE", server.key.private_key_to_pem_pkcs8().unwrap()),
        ("SERVER__TLS__CLIENT_CA_FILE", pem(&root)),
    ] {
        let file = home.folder.path().join(key);
        std::fs::write(&file, bytes).unwrap();
        home = home.with(key, file.display().to_string());
    }
    let home = home.with("SOAP__CONSUMERS__BILLING__CERTIFICATES_SHA256", format!("[\"{}\"]", billing.fingerprint()));
    let program = home.start();
    assert!(program.base.starts_with("https://"), "{}", program.base);
    let soap = |header: &str| {
        let message = envelope(SOAP11, header, CREATE);
        format!(
            "POST /soap/v1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{message}",
            message.len()
        )
    };
    let ask = |own: Option<&Identity>, request: &str| over_tls(&program, &root, own, request);
    let ok = |answer: Option<String>| answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"));
    assert!(ok(ask(None, &soap(&security(&Token::of("billing").plain())))), "a secret in clear over TLS");
    assert!(ok(ask(Some(&billing), &soap(""))), "a certificate through SOAP");
    let list = "GET /v1/sessions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(ok(ask(Some(&billing), list)), "a certificate through REST");
    for own in [None, Some(&unknown)] {
        assert!(ask(own, list).unwrap().starts_with("HTTP/1.1 401"));
        assert!(ask(own, &soap("")).unwrap().contains("FailedAuthentication"));
    }
    assert_eq!(ask(Some(&forged), list), None, "a certificate of another root is no connection");
    let keyed = list.replace("Host", &format!("Authorization: Bearer {APPLICATION}\r\nHost"));
    assert!(ok(ask(None, &keyed)), "an API key as ever");
    let description = ask(None, &list.replace("/v1/sessions", "/soap/v1?wsdl")).unwrap();
    assert!(description.contains(&format!("location=\"{}/soap/v1\"", program.base)), "{description}");
}
