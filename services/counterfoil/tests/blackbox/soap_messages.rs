//! Messages as toolkits write them, and as nobody should: issue "Limits and bad input".

use serde_json::json;

use crate::program::{APPLICATION, AUDITOR, Program};
use crate::soap::{
    CREATE, OURS, SOAP11, SOAP12, ask, envelope, fault, home, media_type, post, post_bare, raw, text, texts,
};

fn begun() -> (crate::program::Home, Program) {
    let home = home();
    let program = home.start();
    program.until_ready();
    (home, program)
}

fn create(program: &Program, version: &str, inside: &str) -> crate::program::Answer {
    ask(program, version, "", &format!("<CreateSession xmlns='{OURS}'>{inside}</CreateSession>"))
}

#[test]
fn limits_hold_before_there_is_a_tree() {
    let (_home, program) = begun();
    for version in [SOAP11, SOAP12] {
        let refused = |body: &str| fault(&ask(&program, version, "", body));
        // Depth: envelope, body and 30 more are 32.
        let nested = |levels: usize| format!("{}{}", "<a>".repeat(levels), "</a>".repeat(levels));
        assert_eq!(refused(&nested(31)), "VALIDATION_FAILED");
        let deep = ask(&program, version, "", &nested(31));
        assert!(text(&deep, "description").contains("deeper than 32"), "{deep:?}");
        assert!(text(&ask(&program, version, "", &nested(30)), "description").contains("no operation"));
        let attributes = |count: usize| {
            let all: String = (0..count).map(|at| format!(" a{at}=''")).collect();
            ask(&program, version, "", &format!("<a{all}/>"))
        };
        assert!(text(&attributes(65), "description").contains("more than 64 attributes"));
        assert!(text(&attributes(64), "description").contains("no operation"));
        let many = ask(&program, version, "", &format!("<x>{}</x>", "<a/>".repeat(10_000)));
        assert!(text(&many, "description").contains("more than 10000 elements"));
        let some = ask(&program, version, "", &format!("<x>{}</x>", "<a/>".repeat(9_000)));
        assert!(text(&some, "description").contains("no operation"));
    }
    let large = |bytes: usize| {
        let start = envelope(SOAP11, "", CREATE);
        let padded = format!("{start}{}", " ".repeat(bytes - start.len()));
        post(&program, "text/xml", padded.as_bytes())
    };
    assert_eq!(large(262_144).status, 200);
    let too_large = large(262_145);
    assert_eq!((too_large.status, too_large.header("content-type")), (413, "application/problem+json"));
}

#[test]
fn what_a_message_must_not_have_is_refused() {
    let (_home, program) = begun();
    let laughs = "<!DOCTYPE l [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;'><!ENTITY c '&b;&b;&b;&b;'>]>";
    let outside = "<!DOCTYPE l [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>";
    for version in [SOAP11, SOAP12] {
        let said = |message: &str| {
            let answer = post(&program, media_type(version), message.as_bytes());
            assert_eq!(fault(&answer), "VALIDATION_FAILED", "{answer:?}");
            text(&answer, "description")
        };
        let good = envelope(version, "", CREATE);
        for bad in [laughs, outside, "<!DOCTYPE html>"] {
            assert!(said(&format!("{bad}{good}")).contains("document type"));
        }
        assert!(said(&format!("<?xml-stylesheet href='x'?>{good}")).contains("processing instruction"));
        assert!(said(&good.replace("<s:Body>", "<s:Body><?php x?>")).contains("processing instruction"));
        for bad in [
            String::new(),
            "x".into(),
            good.replace("</s:Envelope>", ""),
            format!("{good}{good}"),
            good.replace("<s:Body>", "<s:Body>&nbsp;"),
            good.replace("<s:Body>", "<z:Body>").replace("</s:Body>", "</z:Body>"),
            good.replace("<s:Body>", "<s:Body a='1' a='2'>"),
            good.replace("<s:Body>", "<s:Body>\u{1}"),
        ] {
            said(&bad);
        }
        for bad in [
            good.replace("<s:Body>", "<s:Body/><s:Body>"),
            good.replace("<s:Body>", "stray<s:Body>"),
            good.replace("</s:Envelope>", "<x/></s:Envelope>"),
            envelope(version, "", ""),
            envelope(version, "", &CREATE.repeat(2)),
            good.replace("s:Envelope", "s:Envelop"),
            envelope(version, "", "<CreateSession/>"),
            envelope(version, "", "<CreateSession xmlns='urn:evil'/>"),
            envelope(version, "", "<DropSessions xmlns='urn:counterfoil:session:v1'/>"),
        ] {
            said(&bad);
        }
    }
    let bytes = post(&program, "text/xml", b"<a>\xff</a>");
    assert!(text(&bytes, "description").contains("not UTF-8"));
}

#[test]
fn children_are_read_strictly_and_texts_whole() {
    let (_home, program) = begun();
    let entry = |inside: &str| format!("<attributeMap><entry>{inside}</entry></attributeMap>");
    for version in [SOAP11, SOAP12] {
        let said = |inside: &str| {
            let answer = create(&program, version, inside);
            assert_eq!(fault(&answer), "VALIDATION_FAILED", "{answer:?}");
            text(&answer, "description")
        };
        assert!(said("<subject>a</subject><subject>b</subject>").contains("subject stands more than once"));
        assert!(said("<subject xmlns='urn:evil'>a</subject>").contains("not in the namespace"));
        assert!(said("<sujbect>a</sujbect>").contains("sujbect is not an element"));
        assert!(said("<subject/>").contains("subject must not be empty"));
        assert!(said("<kind>no</kind>").contains("kind is not a kind"));
        assert!(said("<idleTimeoutSeconds>-1</idleTimeoutSeconds>").contains("idleTimeoutSeconds"));
        assert!(said("<idleTimeoutSeconds>999999</idleTimeoutSeconds>").contains("idleTimeoutSeconds must be from 1"));
        assert!(said("<clientAddress>nowhere</clientAddress>").contains("clientAddress must be an IP address"));
        assert!(said(&entry("<key>a</key>")).contains("attributeMap/entry[1]/value is required"));
        assert!(said(&entry("<value>a</value>")).contains("attributeMap/entry[1]/key is required"));
        assert!(said(&entry("<key>a</key><json>1,\"b\":2</json>")).contains("json is not one JSON value"));
        assert!(said(&entry("<key>a</key><json>9007199254740993</json>")).contains("attributeMap/a"));
        let doubled = "<entry><key>a</key><value>1</value></entry>".repeat(2);
        assert!(said(&format!("<attributeMap>{doubled}</attributeMap>")).contains("twice"));
        let both = said("<kind>no</kind><clientAddress>x</clientAddress>");
        assert!(both.contains("kind") && both.contains("clientAddress"), "all at once: {both}");

        let missing = ask(&program, version, "", &format!("<GetSession xmlns='{OURS}'/>"));
        assert_eq!(fault(&missing), "VALIDATION_FAILED");
        let receipt = format!("<GetReceipt xmlns='{OURS}'><leafIndex>one</leafIndex></GetReceipt>");
        assert_eq!(fault(&ask(&program, version, "", &receipt)), "VALIDATION_FAILED");

        // A comment does not cut a text: alice is not ali.
        let joined = create(&program, version, "<subject>ali<!-- -->ce</subject>");
        assert_eq!(text(&joined, "subject"), "alice");
        let kept = create(&program, version, &entry("<key>k</key><value> a&#13;b <![CDATA[<i>]]>\n</value>"));
        assert_eq!(text(&kept, "value"), " a\rb <i>\n", "{kept:?}");
        let empty = create(&program, version, &entry("<key>k</key><value/>"));
        assert_eq!(text(&empty, "value"), "");
    }
    let auditor = format!("Bearer {AUDITOR}");
    for bad in ["yesterday", "2026-11-21", "2026-11-21T07:00:00", "2026-02-30T07:00:00Z"] {
        let body = envelope(SOAP11, "", &format!("<QueryAudit xmlns='{OURS}'><from>{bad}</from></QueryAudit>"));
        let headers = [("Authorization", auditor.as_str()), ("Content-Type", "text/xml")];
        let answer = program.ask("POST", "/soap/v1", &headers, Some(body.as_bytes())).unwrap();
        assert!(text(&answer, "description").contains("from must be an xsd:dateTime"), "{bad}: {answer:?}");
    }
}

#[test]
fn every_spelling_of_toolkits_is_understood() {
    let (_home, program) = begun();
    for (content_type, version) in [
        ("text/xml", SOAP11),
        ("text/xml;", SOAP11),
        ("TEXT/XML; CHARSET=UTF-8", SOAP11),
        ("text/xml; charset=\"utf-8\"", SOAP11),
        ("text/xml;charset='utf-8'", SOAP11),
        ("text/xml; charset=us-ascii", SOAP11),
        ("application/soap+xml", SOAP12),
        ("application/soap+xml;action=urn:counterfoil:session:v1/CreateSession", SOAP12),
        ("application/soap+xml; charset=utf-8;action=\"urn:counterfoil:session:v1/CreateSession\"", SOAP12),
        ("application/soap+xml; charset=utf-8; action=\"urn:something:else\"", SOAP12),
        // The envelope says which SOAP it is.
        ("text/xml", SOAP12),
    ] {
        let answer = post(&program, content_type, envelope(version, "", CREATE).as_bytes());
        assert_eq!(answer.status, 200, "{content_type}: {answer:?}");
        assert_eq!(answer.header("content-type"), media_type(version), "{content_type}");
        assert!(answer.text.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>"));
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    for content_type in
        ["", "application/json", "application/xml", "text/plain", "multipart/related; type=\"text/xml\""]
    {
        let answer = post(&program, content_type, envelope(SOAP11, "", CREATE).as_bytes());
        assert_eq!(answer.status, 415, "{content_type}");
    }
    let latin = post(&program, "text/xml; charset=iso-8859-1", envelope(SOAP11, "", CREATE).as_bytes());
    assert!(text(&latin, "description").contains("UTF-8 or UTF-16"));

    let message = create_with("käse €");
    let utf16: Vec<u8> = message.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = message.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let declared =
        message.replace("<s:Envelope", "<?xml version='1.0' encoding='UTF-16' standalone='yes'?><s:Envelope");
    let declared: Vec<u8> = declared.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for (what, content_type, bytes) in [
        ("BOM", "text/xml; charset=utf-8", [b"\xef\xbb\xbf".as_slice(), message.as_bytes()].concat()),
        ("UTF-16LE BOM", "text/xml; charset=utf-16", [b"\xff\xfe".as_slice(), &utf16].concat()),
        ("UTF-16BE BOM", "text/xml", [b"\xfe\xff".as_slice(), &big].concat()),
        ("UTF-16BE declared", "text/xml; charset=utf-16", [b"\xfe\xff".as_slice(), &declared].concat()),
        ("UTF-16LE, no BOM", "text/xml; charset=utf-16le", utf16.clone()),
        ("pretty", "text/xml", message.replace("><", ">\r\n  <").into_bytes()),
        (
            "declaration",
            "text/xml",
            format!("<?xml version='1.0' encoding='utf-8' standalone='yes'?>\n{message}").into_bytes(),
        ),
    ] {
        let answer = post(&program, content_type, &bytes);
        assert_eq!(answer.status, 200, "{what}: {answer:?}");
        assert_eq!(text(&answer, "value"), "käse €", "{what}");
    }
    let odd = post(&program, "text/xml", &[b"\xff\xfe".as_slice(), &utf16, b"x"].concat());
    assert_eq!(fault(&odd), "VALIDATION_FAILED");

    let bearer = format!("Bearer {APPLICATION}");
    for action in
        ["", "\"\"", "urn:counterfoil:session:v1/CreateSession", "\"urn:counterfoil:session:v1/TerminateSession\""]
    {
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Content-Type", "text/xml"),
            ("SOAPAction", action),
            ("Accept", "none/x"),
        ];
        let answer = program.ask("POST", "/soap/v1", &headers, Some(message.as_bytes())).unwrap();
        assert_eq!((answer.status, texts(&answer, "CreateSessionResponse").len()), (200, 1), "{action}");
    }
    // What toolkits sprinkle over their envelopes.
    let sprinkled = format!(
        "<a:Envelope xmlns:a='{SOAP11}' xmlns:b='{SOAP11}' xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance' \
         xmlns:xsd='http://www.w3.org/2001/XMLSchema' a:encodingStyle='http://schemas.xmlsoap.org/soap/encoding/'>\
         <b:Header/><b:Body id='_0'><o:CreateSession xmlns:o='{OURS}'><o:subject xsi:type='xsd:string'>x</o:subject>\
         <o:kind xsi:nil='true'/></o:CreateSession></b:Body></a:Envelope>"
    );
    assert_eq!(post(&program, "text/xml", sprinkled.as_bytes()).status, 200);
}

fn create_with(value: &str) -> String {
    let entry = format!("<attributeMap><entry><key>k</key><value>{value}</value></entry></attributeMap>");
    envelope(SOAP11, "", &format!("<CreateSession xmlns='{OURS}'>{entry}</CreateSession>"))
}

#[test]
fn old_and_odd_http_is_served() {
    let (_home, program) = begun();
    let message = envelope(SOAP11, "", CREATE);
    let head = format!("Host: x\r\nAuthorization: Bearer {APPLICATION}\r\nContent-Type: text/xml\r\n");
    let old = raw(
        &program,
        format!("POST /soap/v1 HTTP/1.0\r\n{head}Content-Length: {}\r\n\r\n{message}", message.len()).as_bytes(),
    );
    assert!(old.starts_with("HTTP/1.0 200") && !old.to_lowercase().contains("chunked"), "{old}");
    let (one, two) = message.split_at(20);
    let chunks = format!("{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n", one.len(), two.len());
    let chunked =
        format!("POST /soap/v1 HTTP/1.1\r\n{head}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    let chunked = raw(&program, chunked.as_bytes());
    assert!(chunked.starts_with("HTTP/1.1 200") && chunked.contains("CreateSessionResponse"), "{chunked}");
    let expecting = format!(
        "POST /soap/v1 HTTP/1.1\r\n{head}Connection: close\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n{message}",
        message.len()
    );
    let expecting = raw(&program, expecting.as_bytes());
    assert!(expecting.starts_with("HTTP/1.1 100") && expecting.contains("HTTP/1.1 200"), "{expecting}");
    let gzip = [("Content-Type", "text/xml"), ("Content-Encoding", "gzip")];
    assert_eq!(program.ask("POST", "/soap/v1", &gzip, Some(b"x")).unwrap().status, 415);
    let put = program.ask("PUT", "/soap/v1", &[], Some(b"x")).unwrap();
    assert_eq!((put.status, put.header("allow")), (405, "GET, POST"));
    assert_eq!(program.ask("GET", "/soap/v1", &[], None).unwrap().status, 405);
}

#[test]
fn headers_that_must_be_understood_are_or_are_named() {
    let (_home, program) = begun();
    for (version, role, next) in [
        (SOAP11, "actor", "http://schemas.xmlsoap.org/soap/actor/next"),
        (SOAP12, "role", "http://www.w3.org/2003/05/soap-envelope/role/next"),
    ] {
        for mark in ["1", "true"] {
            let strange = format!("<t:Tx xmlns:t='urn:tx' s:mustUnderstand='{mark}'>5</t:Tx>");
            let answer = ask(&program, version, &strange, CREATE);
            assert_eq!(fault(&answer), "MustUnderstand");
            let named = answer.text.contains("NotUnderstood xmlns:h=\"urn:tx\" qname=\"h:Tx\"");
            assert_eq!(named, version == SOAP12, "{answer:?}");
        }
        let to_next = format!("<t:Tx xmlns:t='urn:tx' s:{role}='{next}' s:mustUnderstand='1'/>");
        assert_eq!(fault(&ask(&program, version, &to_next, CREATE)), "MustUnderstand");
        let elsewhere = format!("<t:Tx xmlns:t='urn:tx' s:{role}='urn:somebody' s:mustUnderstand='1'/>");
        let optional = "<t:Tx xmlns:t='urn:tx' s:mustUnderstand='0'/><t:Ty xmlns:t='urn:tx' mustUnderstand='1'/>";
        for fine in [elsewhere.as_str(), optional] {
            assert_eq!(ask(&program, version, fine, CREATE).status, 200, "{fine}");
        }
    }
    let other = envelope("http://www.w3.org/2099/soap", "", CREATE);
    let answer = post(&program, "application/soap+xml", other.as_bytes());
    assert_eq!(fault(&answer), "VersionMismatch");
    assert_eq!(answer.header("content-type"), "text/xml; charset=utf-8", "told in SOAP 1.1");
    assert!(answer.text.contains("Upgrade") && answer.text.contains(SOAP12), "{answer:?}");
}

#[test]
fn addressing_is_echoed_when_asked_and_nobody_is_called_back() {
    let (_home, program) = begun();
    let wsa = |name: &str, value: &str| {
        format!("<a:{name} xmlns:a='http://www.w3.org/2005/08/addressing' s:mustUnderstand='1'>{value}</a:{name}>")
    };
    let address = |uri: &str| format!("<a:Address>{uri}</a:Address>");
    for version in [SOAP11, SOAP12] {
        let id = "urn:uuid:0190a5c2-7c1e-7000-8000-00000000000b";
        let action = wsa("Action", &format!("{OURS}/CreateSession"));
        let asked = format!("{action}{}{}", wsa("MessageID", id), wsa("To", "http://x/soap/v1"));
        let answer = ask(&program, version, &asked, CREATE);
        assert_eq!(text(&answer, "RelatesTo"), id);
        assert_eq!(text(&answer, "Action"), format!("{OURS}/CreateSessionResponse"));
        let refused = ask(&program, version, &asked, &format!("<GetSession xmlns='{OURS}'/>"));
        assert_eq!((text(&refused, "RelatesTo").as_str(), fault(&refused).as_str()), (id, "VALIDATION_FAILED"));
        assert!(!ask(&program, version, "", CREATE).text.contains("Header"), "only when asked");
        let anonymous = wsa("ReplyTo", &address("http://www.w3.org/2005/08/addressing/anonymous"));
        assert_eq!(ask(&program, version, &format!("{asked}{anonymous}"), CREATE).status, 200);
        for name in ["ReplyTo", "FaultTo"] {
            let elsewhere = wsa(name, &address("http://127.0.0.1:1/steal"));
            let refused = fault(&ask(&program, version, &format!("{asked}{elsewhere}"), CREATE));
            assert_eq!(refused, "OnlyAnonymousAddressSupported");
        }
        let twice = format!("{action}{action}");
        assert_eq!(fault(&ask(&program, version, &twice, CREATE)), "InvalidAddressingHeader");
    }
}

#[test]
fn the_description_is_served_with_the_configured_address() {
    let home = home().with("SOAP__PUBLIC_URL", "https://sessions.example.com/soap/v1");
    let program = home.start();
    for query in ["wsdl", "WSDL", "wsdl&soap=1.1", "xsd=1"] {
        let answer = program.ask("GET", &format!("/soap/v1?{query}"), &[("Host", "evil.example")], None).unwrap();
        assert_eq!((answer.status, answer.header("content-type")), (200, "text/xml; charset=utf-8"), "{query}");
        assert!(!answer.text.contains("evil.example"));
        let document = roxmltree::Document::parse(&answer.text).unwrap();
        let ports = document.descendants().filter(|node| node.tag_name().name() == "port").count();
        assert_eq!(
            ports,
            match query {
                "xsd=1" => 0,
                "wsdl&soap=1.1" => 1,
                _ => 2,
            },
            "{query}"
        );
        for place in document.descendants().filter_map(|node| node.attribute("location")) {
            assert_eq!(place, "https://sessions.example.com/soap/v1");
        }
    }
}

#[test]
fn entries_say_through_which_mouth_operation_and_message() {
    let (_home, program) = begun();
    let id = "0190a5c2-7c1e-7000-8000-00000000000c";
    let header = format!("<a:MessageID xmlns:a='http://www.w3.org/2005/08/addressing'>urn:uuid:{id}</a:MessageID>");
    let answer = ask(&program, SOAP11, &header, CREATE);
    let index = answer.header("counterfoil-index").to_owned();
    assert_eq!(text(&answer, "leafIndex"), index);
    let entry = program.json(AUDITOR, "GET", &format!("/v1/audit/entries/{index}"), None).json()["entry"].clone();
    assert_eq!((&entry["protocol"], &entry["detail"]["operation"]), (&json!("soap"), &json!("CreateSession")));
    assert_eq!(entry["detail"]["message_id"], json!(id));
    assert_eq!(entry["trace_id"].as_str().unwrap(), &answer.header("traceparent")[3..35]);
    assert_eq!(
        fault(&post_bare(&program, "text/xml", envelope(SOAP11, "", CREATE).as_bytes())),
        "FailedAuthentication"
    );
}

#[test]
fn lists_stay_below_what_a_dotnet_client_takes() {
    let (_home, program) = begun();
    let large = "x".repeat(9_000);
    for _ in 0..12 {
        let attributes = json!({"a": large});
        assert_eq!(program.app("POST", "/v1/sessions", Some(json!({"attributes": attributes}))).status, 201);
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = ask(&program, SOAP12, "", &format!("<ListSessions xmlns='{OURS}'>{token}</ListSessions>"));
        assert!(page.text.len() < 65_536, "{} bytes", page.text.len());
        seen.extend(texts(&page, "sessionId"));
        match texts(&page, "nextPageToken").pop() {
            Some(next) => token = format!("<pageToken>{next}</pageToken>"),
            None => break,
        }
    }
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!((all, seen.len()), (12, 12), "each once");
}

#[test]
fn an_auditor_finds_entries_by_subject_session_and_time_and_pages_through_them() {
    let (_home, program) = begun();
    for subject in ["alice", "bob", "alice"] {
        create(&program, SOAP11, &format!("<subject>{subject}</subject>"));
    }
    let bearer = format!("Bearer {AUDITOR}");
    let query = |inside: &str| {
        let body = envelope(SOAP12, "", &format!("<QueryAudit xmlns='{OURS}'>{inside}</QueryAudit>"));
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", media_type(SOAP12))];
        let answer = program.ask("POST", "/soap/v1", &headers, Some(body.as_bytes())).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    };
    let of_alice = query("<subject>alice</subject>");
    assert_eq!(texts(&of_alice, "action"), ["session.created", "session.created"]);
    assert!(texts(&query("<subject>carol</subject>"), "event").is_empty());
    let id = &texts(&of_alice, "sessionId")[0];
    let of_session = query(&format!("<sessionId>{id}</sessionId>"));
    assert_eq!(texts(&of_session, "action"), ["session.created"]);
    let hour = |hours: i64| crate::soap::shifted(hours * 3_600);
    assert!(texts(&query(&format!("<from>{}</from>", hour(1))), "event").is_empty());
    assert!(texts(&query(&format!("<to>{}</to>", hour(-1))), "event").is_empty());
    let within = query(&format!("<from>{}</from><to>{}</to><subject>bob</subject>", hour(-1), hour(1)));
    assert_eq!(texts(&within, "action"), ["session.created"]);

    // A page at a time, each entry once, from the newest to the first; the queries themselves are entries, newer than the first page.
    let first = query("<pageSize>2</pageSize>");
    let newest: u64 = text(&first, "leafIndex").parse().unwrap();
    let (mut seen, mut token) = (texts(&first, "leafIndex"), text(&first, "nextPageToken"));
    loop {
        let page = query(&format!("<pageSize>2</pageSize><pageToken>{token}</pageToken>"));
        seen.extend(texts(&page, "leafIndex"));
        match texts(&page, "nextPageToken").pop() {
            Some(next) => token = next,
            None => break,
        }
    }
    let all: Vec<u64> = seen.iter().map(|index| index.parse().unwrap()).collect();
    assert_eq!(all, (0..=newest).rev().collect::<Vec<_>>());
    // The hash is of the bytes that are shown.
    use base64::Engine;
    let leaf = base64::engine::general_purpose::STANDARD.decode(text(&first, "leaf")).unwrap();
    assert_eq!(merkle_log::leaf_hash(&leaf).to_string(), text(&first, "leafHash"));
}

#[test]
fn an_idempotency_key_replays_the_first_answer() {
    let (_home, program) = begun();
    let bearer = format!("Bearer {APPLICATION}");
    let send = |header: &str, kind: &str| {
        let body =
            envelope(SOAP11, header, &format!("<CreateSession xmlns='{OURS}'><kind>{kind}</kind></CreateSession>"));
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "text/xml"), ("Idempotency-Key", "k")];
        program.ask("POST", "/soap/v1", &headers, Some(body.as_bytes())).unwrap()
    };
    let first = send("", "web");
    // Another header, another nonce: the same request all the same.
    let again = send("<t:Trace xmlns:t='urn:t'/>", "web");
    assert_eq!((first.status, &first.text), (200, &again.text));
    assert_eq!(fault(&send("", "api")), "VALIDATION_FAILED");
}
