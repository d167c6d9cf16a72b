//! The same random commands through REST and through SOAP, at a program each: the same sessions, versions, refusals and entries.
//!
//! Not compared, because they differ between any two runs: ids, tokens, times, hashes. Compared as well, by slot: which token
//! opens which session.

use std::collections::BTreeMap;

use api_http::ProblemCode;
use serde_json::{Value, json};

use crate::program::{AUDITOR, Answer, Program};
use crate::soap::{OURS, SOAP11, SOAP12, ask, fault, home, text, texts};

/// A small generator, so that a failure names the seed that repeats it (Knuth's MMIX constants).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.roll(words.len())]
    }
}

/// What is asked; sessions and tokens by slot.
#[derive(Debug, Clone)]
enum Ask {
    Create {
        subject: Option<&'static str>,
        kind: &'static str,
        idle: Option<i64>,
        attributes: Vec<(&'static str, Value)>,
    },
    Validate {
        token: usize,
    },
    Get {
        slot: usize,
    },
    Touch {
        slot: usize,
    },
    Update {
        slot: usize,
        expected: Option<u64>,
        set: Vec<(&'static str, Value)>,
        removed: Vec<&'static str>,
    },
    Authenticate {
        slot: usize,
        subject: &'static str,
        methods: Vec<&'static str>,
    },
    Renew {
        slot: usize,
    },
    Terminate {
        slot: usize,
        reason: &'static str,
    },
    TerminateSubject {
        subject: &'static str,
        except: Option<usize>,
    },
    List {
        subject: &'static str,
    },
}

/// What came of it, as either mouth can tell it.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    Session { slot: usize, seen: BTreeMap<&'static str, Value> },
    Worth(Result<(usize, u64), String>),
    Ended(u64),
    Listed(Vec<usize>),
    Refused(String),
}

const SUBJECTS: [&str; 4] = ["alice", "bob", "käse & co", "<c>"];
const KEYS: [&str; 5] = ["a", "b", "käse", "x y", "<k>&"];

fn values(dice: &mut Dice) -> Value {
    match dice.roll(7) {
        0 => json!("text"),
        1 => json!(""),
        2 => json!(" <&>\"'\r\n\t€🧀 "),
        3 => json!(5),
        4 => json!({"n": [1, true, null], "o": {"p": "q"}}),
        5 => json!("5"),
        _ => json!(-1.5),
    }
}

fn some(dice: &mut Dice) -> Vec<(&'static str, Value)> {
    let mut members: BTreeMap<&'static str, Value> = BTreeMap::new();
    for _ in 0..dice.roll(3) {
        let key = dice.pick(&KEYS);
        let value = values(dice);
        members.insert(key, value);
    }
    members.into_iter().collect()
}

fn next(dice: &mut Dice, slots: usize, tokens: usize) -> Ask {
    // One beyond the last: a session and a token that are not there.
    let (slot, token) = (dice.roll(slots + 1), dice.roll(tokens + 1));
    let subject = dice.pick(&SUBJECTS);
    match dice.roll(14) {
        0..=2 => Ask::Create {
            subject: (dice.roll(3) > 0).then_some(subject),
            kind: dice.pick(&["web", "api", "soap", "sip", "no such"]),
            idle: [None, None, Some(60), Some(0), Some(999_999), Some(-1)][dice.roll(6)],
            attributes: some(dice),
        },
        3 | 4 => Ask::Validate { token },
        5 => Ask::Get { slot },
        6 => Ask::Touch { slot },
        7..=9 => Ask::Update {
            slot,
            expected: (dice.roll(3) == 0).then(|| 1 + dice.roll(4) as u64),
            set: some(dice),
            removed: if dice.roll(3) == 0 { vec!["zz"] } else { vec![] },
        },
        10 => Ask::Authenticate { slot, subject, methods: if dice.roll(5) == 0 { vec![] } else { vec!["pwd", "otp"] } },
        11 => Ask::Renew { slot },
        12 => match dice.roll(3) {
            0 => Ask::TerminateSubject { subject, except: (dice.roll(2) == 0).then_some(slot) },
            _ => Ask::Terminate { slot, reason: dice.pick(&["logout", "stolen_2", "Bad Reason", "evicted"]) },
        },
        _ => Ask::List { subject },
    }
}

/// A program, the mouth it is asked through, and what it has given out.
struct Side {
    program: Program,
    soap: bool,
    ids: Vec<String>,
    tokens: Vec<String>,
}

const NOBODY: &str = "0190a5c2-7c1e-7000-8000-00000000000a";

impl Side {
    fn id(&self, slot: usize) -> &str {
        self.ids.get(slot).map_or(NOBODY, String::as_str)
    }

    fn slot(&mut self, id: &str) -> usize {
        self.ids.iter().position(|known| known == id).unwrap_or_else(|| {
            self.ids.push(id.to_owned());
            self.ids.len() - 1
        })
    }

    fn tell(&mut self, asked: &Ask) -> Told {
        if self.soap { self.tell_soap(asked) } else { self.tell_rest(asked) }
    }

    fn tell_rest(&mut self, asked: &Ask) -> Told {
        let path = |slot: usize, rest: &str| format!("/v1/sessions/{}{rest}", self.id(slot));
        let encoded = |subject: &str| {
            let bytes = subject.bytes().map(|byte| format!("%{byte:02X}"));
            bytes.collect::<String>()
        };
        let members = |all: &[(&str, Value)]| -> serde_json::Map<String, Value> {
            all.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
        };
        let answer = match asked {
            Ask::Create { subject, kind, idle, attributes } => {
                let mut body = json!({"kind": kind, "attributes": members(attributes)});
                if let Some(subject) = subject {
                    body["subject"] = json!(subject);
                }
                if let Some(idle) = idle {
                    body["idle_timeout_s"] = json!(idle);
                }
                self.program.app("POST", "/v1/sessions", Some(body))
            }
            Ask::Validate { token } => {
                let token = self.tokens.get(*token).map_or("cfs_none", String::as_str);
                let answer = self.program.app("POST", "/v1/sessions/validate", Some(json!({"token": token}))).json();
                return Told::Worth(match answer["active"] == json!(true) {
                    true => {
                        let slot = self.slot(answer["session"]["id"].as_str().unwrap());
                        Ok((slot, answer["session"]["version"].as_u64().unwrap()))
                    }
                    false => Err(answer["reason"].as_str().unwrap().to_owned()),
                });
            }
            Ask::Get { slot } => self.program.app("GET", &path(*slot, ""), None),
            Ask::Touch { slot } => self.program.app("POST", &path(*slot, "/touch"), None),
            Ask::Update { slot, expected, set, removed } => {
                let nulls = removed.iter().map(|key| ((*key).to_owned(), Value::Null));
                let patch: serde_json::Map<_, _> = members(set).into_iter().chain(nulls).collect();
                let body = Value::Object(patch).to_string().into_bytes();
                let bearer = format!("Bearer {}", crate::program::APPLICATION);
                let mut headers =
                    vec![("Authorization", bearer), ("Content-Type", "application/merge-patch+json".into())];
                if let Some(expected) = expected {
                    headers.push(("If-Match", format!("\"{expected}\"")));
                }
                let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                self.program.ask("PATCH", &path(*slot, ""), &headers, Some(&body)).unwrap()
            }
            Ask::Authenticate { slot, subject, methods } => {
                let body = json!({"subject": subject, "methods": methods, "level": "aal2"});
                self.program.app("POST", &path(*slot, "/authenticate"), Some(body))
            }
            Ask::Renew { slot } => self.program.app("POST", &path(*slot, "/renew"), None),
            Ask::Terminate { slot, reason } => {
                self.program.app("DELETE", &path(*slot, &format!("?reason={}", encoded(reason))), None)
            }
            Ask::TerminateSubject { subject, except } => {
                let except = except.map(|slot| format!("?except={}", self.id(slot))).unwrap_or_default();
                self.program.app("DELETE", &format!("/v1/subjects/{}/sessions{except}", encoded(subject)), None)
            }
            Ask::List { subject } => {
                self.program.app("GET", &format!("/v1/sessions?subject={}", encoded(subject)), None)
            }
        };
        let body = answer.json();
        if answer.status >= 400 {
            let code = ProblemCode::ALL.into_iter().find(|code| code.name() == body["code"]).unwrap();
            return Told::Refused(code.soap().code.to_owned());
        }
        if let Some(ended) = body["ended"].as_u64() {
            return Told::Ended(ended);
        }
        if let Some(items) = body["items"].as_array() {
            return Told::Listed(items.iter().map(|item| self.slot(item["id"].as_str().unwrap())).collect());
        }
        if let Some(token) = body["token"].as_str() {
            self.tokens.push(token.to_owned());
        }
        let seen = [
            ("subject", body["subject"].clone()),
            ("kind", body["kind"].clone()),
            ("state", body["state"].clone()),
            ("version", body["version"].clone()),
            ("attributes", body["attributes"].clone()),
            ("end_reason", body["end_reason"].clone()),
            ("receipt", body["receipt"]["index"].clone()),
            ("idle", json!(body["idle_expires_at"].as_str().unwrap() < body["expires_at"].as_str().unwrap())),
        ];
        Told::Session { slot: self.slot(body["id"].as_str().unwrap()), seen: seen.into() }
    }

    fn tell_soap(&mut self, asked: &Ask) -> Told {
        let element = |name: &str, text: &str| format!("<{name}>{}</{name}>", escaped(text));
        let id = |slot: usize| element("sessionId", self.id(slot));
        let map = |all: &[(&str, Value)]| {
            let entry = |(key, value): &(&str, Value)| match value {
                Value::String(text) => format!("<entry>{}{}</entry>", element("key", key), element("value", text)),
                other => format!("<entry>{}{}</entry>", element("key", key), element("json", &other.to_string())),
            };
            format!("<attributeMap>{}</attributeMap>", all.iter().map(entry).collect::<String>())
        };
        let optional = |name: &str, text: Option<String>| text.map(|text| element(name, &text)).unwrap_or_default();
        let (name, inside) = match asked {
            Ask::Create { subject, kind, idle, attributes } => (
                "CreateSession",
                format!(
                    "{}{}{}{}",
                    optional("subject", subject.map(str::to_owned)),
                    element("kind", kind),
                    optional("idleTimeoutSeconds", idle.map(|idle| idle.to_string())),
                    map(attributes)
                ),
            ),
            Ask::Validate { token } => {
                ("ValidateSession", element("token", self.tokens.get(*token).map_or("cfs_none", String::as_str)))
            }
            Ask::Get { slot } => ("GetSession", id(*slot)),
            Ask::Touch { slot } => ("TouchSession", id(*slot)),
            Ask::Update { slot, expected, set, removed } => {
                let keys: String = removed.iter().map(|key| element("key", key)).collect();
                let expected = optional("expectedVersion", expected.map(|expected| expected.to_string()));
                ("UpdateSession", format!("{}{expected}{}<removeKeys>{keys}</removeKeys>", id(*slot), map(set)))
            }
            Ask::Authenticate { slot, subject, methods } => {
                let methods: String = methods.iter().map(|method| element("method", method)).collect();
                let subject = element("subject", subject);
                (
                    "AuthenticateSession",
                    format!("{}{subject}<methods>{methods}</methods><level>aal2</level>", id(*slot)),
                )
            }
            Ask::Renew { slot } => ("RenewSession", id(*slot)),
            Ask::Terminate { slot, reason } => {
                ("TerminateSession", format!("{}{}", id(*slot), element("reason", reason)))
            }
            Ask::TerminateSubject { subject, except } => {
                let except = optional("exceptSessionId", except.map(|slot| self.id(slot).to_owned()));
                ("TerminateSubjectSessions", format!("{}{except}", element("subject", subject)))
            }
            Ask::List { subject } => ("ListSessions", element("subject", subject)),
        };
        let version = if self.tokens.len().is_multiple_of(2) { SOAP11 } else { SOAP12 };
        let answer = ask(&self.program, version, "", &format!("<{name} xmlns='{OURS}'>{inside}</{name}>"));
        if answer.status != 200 {
            return Told::Refused(fault(&answer));
        }
        match asked {
            Ask::Validate { .. } => Told::Worth(match text(&answer, "valid").as_str() {
                "true" => Ok((self.slot(&text(&answer, "sessionId")), text(&answer, "version").parse().unwrap())),
                _ => Err(text(&answer, "reason")),
            }),
            Ask::TerminateSubject { .. } => Told::Ended(text(&answer, "ended").parse().unwrap()),
            Ask::List { .. } => Told::Listed(texts(&answer, "sessionId").iter().map(|id| self.slot(id)).collect()),
            _ => self.session(&answer),
        }
    }

    fn session(&mut self, answer: &Answer) -> Told {
        if let Some(token) = texts(answer, "token").pop() {
            self.tokens.push(token);
        }
        let one = |name: &str| texts(answer, name).pop().map_or(Value::Null, Value::from);
        let number =
            |name: &str| texts(answer, name).pop().map_or(Value::Null, |text| json!(text.parse::<u64>().unwrap()));
        let document = roxmltree::Document::parse(&answer.text).unwrap();
        let mut attributes = serde_json::Map::new();
        for entry in document.descendants().filter(|node| node.tag_name().name() == "entry") {
            let child = |name: &str| entry.children().find(|node| node.tag_name().name() == name);
            let text = |node: roxmltree::Node<'_, '_>| node.text().unwrap_or_default().to_owned();
            let value = match child("value") {
                Some(value) => Value::String(text(value)),
                None => serde_json::from_str(&text(child("json").unwrap())).unwrap(),
            };
            attributes.insert(text(child("key").unwrap()), value);
        }
        let seen = [
            ("subject", one("subject")),
            ("kind", one("kind")),
            ("state", one("state")),
            ("version", number("version")),
            ("attributes", Value::Object(attributes)),
            ("end_reason", one("endReason")),
            ("receipt", number("leafIndex")),
            ("idle", json!(text(answer, "idleExpiresAt") < text(answer, "expiresAt"))),
        ];
        Told::Session { slot: self.slot(&text(answer, "sessionId")), seen: seen.into() }
    }

    /// Every entry, with sessions by slot; what only one mouth writes (the operation) aside.
    fn entries(&mut self) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.program.json(AUDITOR, "GET", &format!("/v1/audit/entries?limit=500{cursor}"), None).json();
            all.extend(page["items"].as_array().unwrap().iter().map(|item| item["entry"].clone()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        all.retain(|entry| entry["action"].as_str().unwrap().starts_with("session."));
        let same = |entry: Value| {
            let mut detail = entry["detail"].clone();
            let operation = detail.as_object_mut().and_then(|detail| detail.remove("operation"));
            let by_service = entry["protocol"] == "internal";
            assert_eq!(operation.is_some(), self.soap && !by_service, "{entry}");
            assert!(by_service || entry["protocol"] == if self.soap { "soap" } else { "rest" }, "{entry}");
            let slot = self.slot(entry["session_id"].as_str().unwrap());
            let version = entry["version"].clone();
            // An empty detail is left out.
            let detail = if detail == json!({}) { Value::Null } else { detail };
            json!([entry["action"], entry["outcome"], slot, version, detail, entry["actor"]["role"]])
        };
        all.into_iter().map(same).collect()
    }
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('\r', "&#13;")
}

fn run(seed: u64, commands: usize) {
    // A low cap, so that it is reached.
    let capped = || home().with("REALMS__DEFAULT__SESSIONS_PER_SUBJECT", "2");
    let (rest_home, soap_home) = (capped(), capped());
    let side = |program, soap| Side { program, soap, ids: Vec::new(), tokens: Vec::new() };
    let mut rest = side(rest_home.start(), false);
    let mut soap = side(soap_home.start(), true);
    let mut dice = Dice(seed);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..commands {
        let asked = next(&mut dice, rest.ids.len(), rest.tokens.len());
        let (one, other) = (rest.tell(&asked), soap.tell(&asked));
        assert_eq!(one, other, "seed {seed}, command {number}: {asked:?}");
        *seen
            .entry(match one {
                Told::Refused(code) => code,
                _ => "done".into(),
            })
            .or_default() += 1;
    }
    assert_eq!(rest.entries(), soap.entries(), "seed {seed}");
    for outcome in
        ["done", "SESSION_NOT_FOUND", "SESSION_ENDED", "VALIDATION_FAILED", "VERSION_CONFLICT", "LIMIT_REACHED"]
    {
        assert!(seen.contains_key(outcome), "seed {seed} never came to {outcome}: {seen:?}");
    }
}

#[test]
fn random_commands_come_to_the_same_through_either_mouth() {
    for seed in [1, 2, 3] {
        run(seed, 300);
    }
}
