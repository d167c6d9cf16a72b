//! Golden envelopes: every operation, asked and answered, in both versions. What differs from run to run is blotted out; all else
//! is compared to the letter, because there are clients that read letters.

use crate::program::{AUDITOR, Answer, Program};
use crate::soap::{OURS, SOAP11, SOAP12, ask, envelope, home, media_type, text};

/// What differs from run to run.
const BLOTTED: [&str; 16] = [
    "actor",
    "sessionId",
    "token",
    "createdAt",
    "lastSeenAt",
    "idleExpiresAt",
    "expiresAt",
    "origin",
    "leafIndex",
    "treeSize",
    "leafHash",
    "leaf",
    "time",
    "traceId",
    "receiptText",
    "correlationId",
];

fn blotted(xml: &str) -> String {
    let mut text = xml.to_owned();
    for name in BLOTTED {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let parts: Vec<_> = text.split(&open).map(str::to_owned).collect();
        let rest = parts.iter().skip(1).map(|part| {
            let (_, after) = part.split_once(&close).unwrap();
            format!("{open}…{close}{after}")
        });
        text = parts.first().cloned().into_iter().chain(rest).collect();
    }
    // Told in words, too.
    for part in text.clone().split("ended at ").skip(1) {
        let (time, _) = part.split_once("Z: ").unwrap();
        text = text.replace(time, "…");
    }
    text
}

struct Book<'a> {
    program: &'a Program,
    version: &'a str,
    text: String,
}

impl Book<'_> {
    fn note(&mut self, body: &str, answer: &Answer) {
        let asked = blotted(&envelope(self.version, "", body));
        self.text.push_str(&format!(
            "{asked}\n{} {}\n{}\n\n",
            answer.status,
            answer.header("content-type"),
            blotted(&answer.text)
        ));
    }

    fn ask(&mut self, operation: &str, inside: &str) -> Answer {
        let body = format!("<{operation} xmlns=\"{OURS}\">{inside}</{operation}>");
        let answer = ask(self.program, self.version, "", &body);
        self.note(&body, &answer);
        answer
    }
}

#[test]
fn every_operation_is_answered_as_it_always_was() {
    for (name, version) in [("soap11", SOAP11), ("soap12", SOAP12)] {
        let home = home();
        let program = home.start();
        let mut book = Book { program: &program, version, text: String::new() };
        let entry =
            |key: &str, kind: &str, value: &str| format!("<entry><key>{key}</key><{kind}>{value}</{kind}></entry>");
        let map = format!("{}{}", entry("k", "value", "a &amp; &lt;b&gt;&#13;"), entry("n", "json", "[1,{}]"));
        let created = book.ask(
            "CreateSession",
            &format!(
                "<subject>alice</subject><kind>web</kind><idleTimeoutSeconds>60</idleTimeoutSeconds><absoluteTimeoutSeconds>600\
                 </absoluteTimeoutSeconds><clientAddress>192.0.2.7</clientAddress><userAgent>x</userAgent><attributeMap>{map}</attributeMap>"
            ),
        );
        let id = format!("<sessionId>{}</sessionId>", text(&created, "sessionId"));
        let token = format!("<token>{}</token>", text(&created, "token"));
        book.ask("ValidateSession", &token);
        book.ask("ValidateSession", "<token>x</token>");
        book.ask("GetSession", &id);
        book.ask("TouchSession", &id);
        book.ask(
            "UpdateSession",
            &format!("{id}<expectedVersion>1</expectedVersion><removeKeys><key>n</key></removeKeys>"),
        );
        book.ask("UpdateSession", &format!("{id}<expectedVersion>1</expectedVersion>"));
        book.ask(
            "AuthenticateSession",
            &format!("{id}<subject>alice</subject><methods><method>pwd</method></methods><level>2</level>"),
        );
        let renewed = book.ask("RenewSession", &id);
        book.ask("GetReceipt", &format!("<leafIndex>{}</leafIndex>", text(&renewed, "leafIndex")));
        book.ask("ListSessions", "<subject>alice</subject><pageSize>1</pageSize>");
        book.ask("TerminateSession", &format!("{id}<reason>logout</reason>"));
        book.ask("TouchSession", &id);
        book.ask("TerminateSubjectSessions", "<subject>alice</subject>");
        let query = format!("<QueryAudit xmlns=\"{OURS}\">{id}<pageSize>2</pageSize></QueryAudit>");
        let bearer = format!("Bearer {AUDITOR}");
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", media_type(version))];
        let message = envelope(version, "", &query);
        let answer = program.ask("POST", "/soap/v1", &headers, Some(message.as_bytes())).unwrap();
        book.note(&query, &answer);
        insta::assert_snapshot!(name, book.text);
    }
}
