//! A realm of profile `transient`: the same table of calls through both mouths, and nothing of it in the log.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster;
use crate::program::{APPLICATION, AUDITOR, Answer, Home, OPERATOR, Program, database, files, redis};
use crate::soap::{self, SOAP12};

/// Stands in every session of these tests, so that it can be looked for.
const MARK: &str = "ada-of-the-transient-realm";

fn home() -> Home {
    Home::new().with("REALMS__DEFAULT__PROFILE", "transient")
}

fn create(program: &Program, more: &Value) -> Value {
    let mut body = json!({"subject": MARK, "attributes": {"colour": "red", "mark": MARK}});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let created = program.app("POST", "/v1/sessions", Some(body));
    assert_eq!(created.status, 201, "{}", created.text);
    created.json()
}

fn text(session: &Value, key: &str) -> String {
    session[key].as_str().unwrap_or_else(|| panic!("no {key} in {session}")).to_owned()
}

fn validate(program: &Program, token: &str) -> Value {
    let answer = program.app("POST", "/v1/sessions/validate", Some(json!({ "token": token })));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// Asks with further headers.
fn with(program: &Program, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Answer {
    let bearer = format!("Bearer {APPLICATION}");
    let media_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let mut all = vec![("Authorization", bearer.as_str())];
    if body.is_some() {
        all.push(("Content-Type", media_type));
    }
    all.extend_from_slice(headers);
    program.ask(method, path, &all, body.map(|body| body.to_string().into_bytes()).as_deref()).unwrap()
}

fn entries(program: &Program, query: &str) -> Vec<Value> {
    let path = format!("/v1/audit/entries?limit=500{query}");
    program.json(AUDITOR, "GET", &path, None).json()["items"].as_array().unwrap().clone()
}

fn no_entry(answer: &Answer) {
    assert!(answer.headers.get("counterfoil-index").is_none(), "{answer:?}");
    assert!(answer.json().get("receipt").is_none(), "{}", answer.text);
}

#[test]
fn the_whole_table_through_rest_and_nothing_of_it_in_the_log() {
    let home = home();
    let program = home.start();
    program.until_ready();

    // Begin, and what is told of it.
    let new = json!({"subject": MARK, "kind": "web", "attributes": {"colour": "red", "mark": MARK}, "client": {"address": "192.0.2.77"}});
    let created = with(&program, "POST", "/v1/sessions", &[("Idempotency-Key", "one")], Some(new.clone()));
    assert_eq!((created.status, created.header("ETag")), (201, "\"1\""), "{}", created.text);
    no_entry(&created);
    let session = created.json();
    let (id, token) = (text(&session, "id"), text(&session, "token"));
    assert_eq!(created.header("Location"), format!("/v1/sessions/{id}"));
    let path = format!("/v1/sessions/{id}");

    // The same request again is the same session and the same token; another body is another matter.
    let again = with(&program, "POST", "/v1/sessions", &[("Idempotency-Key", "one")], Some(new));
    assert_eq!((text(&again.json(), "id"), text(&again.json(), "token")), (id.clone(), token.clone()));
    let other = with(&program, "POST", "/v1/sessions", &[("Idempotency-Key", "one")], Some(json!({})));
    assert_eq!((other.status, other.json()["code"].as_str()), (422, Some("idempotency_key_reused")));

    // Read, use. An index that no client of this realm was ever given asks for nothing.
    assert_eq!(validate(&program, &token)["session"]["id"], id.as_str());
    assert_eq!(validate(&program, &format!("{}x", &token[..token.len() - 1]))["reason"], "unknown");
    let far = with(&program, "GET", &path, &[("Counterfoil-Min-Index", "1000000")], None);
    assert_eq!((far.status, far.json()["attributes"]["colour"].as_str()), (200, Some("red")));
    assert_eq!(program.app("POST", &format!("{path}/touch"), None).status, 200);

    // Change: only what it was decided on.
    let changed = with(&program, "PATCH", &path, &[("If-Match", "\"1\"")], Some(json!({"colour": "blue"})));
    assert_eq!((changed.status, changed.header("ETag")), (200, "\"2\""), "{}", changed.text);
    no_entry(&changed);
    let stale = with(&program, "PATCH", &path, &[("If-Match", "\"1\"")], Some(json!({"colour": "green"})));
    assert_eq!((stale.status, stale.json()["code"].as_str()), (412, Some("version_conflict")));

    // Rotate: the overlap, and none after authentication.
    let renewed = program.app("POST", &format!("{path}/renew"), None);
    no_entry(&renewed);
    let second = text(&renewed.json(), "token");
    assert_eq!(validate(&program, &second)["active"], true);
    assert_eq!(validate(&program, &token)["active"], true, "within the overlap");
    let login = json!({"subject": MARK, "methods": ["pwd"], "level": "aal2"});
    let third = text(&program.app("POST", &format!("{path}/authenticate"), Some(login)).json(), "token");
    assert_eq!(validate(&program, &second)["reason"], "rotated");
    assert_eq!(validate(&program, &third)["session"]["authentication"]["level"], "aal2");

    // The cap, lists by page, subject, state and kind.
    let others: Vec<Value> = (0..4).map(|_| create(&program, &json!({}))).collect();
    let sixth = program.app("POST", "/v1/sessions", Some(json!({ "subject": MARK })));
    assert_eq!((sixth.status, sixth.json()["code"].as_str()), (409, Some("limit_reached")));
    let page = program.app("GET", &format!("/v1/sessions?subject={MARK}&limit=3"), None).json();
    assert_eq!(page["items"].as_array().unwrap().len(), 3);
    let mut newest: Vec<String> = others.iter().map(|session| text(session, "id")).collect();
    newest.sort_unstable_by(|a, b| b.cmp(a));
    let shown = page["items"].as_array().unwrap().iter().map(|session| text(session, "id"));
    assert_eq!(shown.collect::<Vec<_>>(), newest[..3], "newest first");
    let rest = format!("/v1/sessions?subject={MARK}&limit=3&cursor={}", text(&page, "next_cursor"));
    assert_eq!(program.app("GET", &rest, None).json()["items"].as_array().unwrap().len(), 2);
    let web = program.app("GET", "/v1/sessions?kind=web", None).json();
    assert_eq!((web["items"].as_array().unwrap().len(), web["items"][0]["id"].as_str()), (1, Some(id.as_str())));

    // End, twice; a dead session stays dead, and only its holder is told.
    let ended = program.app("DELETE", &format!("{path}?reason=logout"), None);
    assert_eq!((ended.status, ended.json()["end_reason"].as_str()), (200, Some("logout")));
    no_entry(&ended);
    let again = program.app("DELETE", &path, None);
    assert_eq!((again.status, again.json()["end_reason"].as_str()), (200, Some("logout")));
    assert_eq!(validate(&program, &third)["reason"], "ended");
    assert_eq!(program.app("PATCH", &path, Some(json!({"a": 1}))).json()["code"], "session_ended");
    assert_eq!(program.app("GET", &path, None).json()["attributes"], json!({}), "nothing personal is left of it");
    let over = program.app("GET", "/v1/sessions?state=ended", None).json();
    assert_eq!(over["items"][0]["id"], id.as_str());
    assert_eq!(program.app("POST", "/v1/sessions", Some(json!({ "subject": MARK }))).status, 201, "a seat is free");

    // Log out everywhere but here, then for everybody.
    let except = text(&others[0], "id");
    let out = program.app("DELETE", &format!("/v1/subjects/{MARK}/sessions?except={except}"), None);
    assert_eq!(out.json(), json!({"ended": 4, "receipts": []}));
    let out = program.json(OPERATOR, "DELETE", "/v1/sessions?confirm=true", None);
    assert_eq!(out.json(), json!({"ended": 1, "receipts": []}), "{}", out.text);

    // Expiry, at the moment of use and by the reaper.
    let short = create(&program, &json!({"idle_timeout_s": 1}));
    std::thread::sleep(Duration::from_millis(1_100));
    assert_eq!(validate(&program, &text(&short, "token"))["reason"], "expired_idle");
    let began = Instant::now();
    while !program.ask("GET", "/metrics", &[], None).unwrap().text.contains("transient_sessions_expired 1") {
        assert!(began.elapsed() < Duration::from_secs(15), "it is not reaped");
        std::thread::sleep(Duration::from_millis(50));
    }

    // Limits are the realm's, and refused requests are entries as everywhere.
    let long = program.app("POST", "/v1/sessions", Some(json!({"idle_timeout_s": 86_400})));
    assert_eq!(long.status, 422, "{}", long.text);
    assert_eq!(program.json("cfk_nobody_nobody_nobody_nobody_nobody_nobo1234", "GET", &path, None).status, 401);

    // Of all this the log knows nothing.
    let history = program.json(AUDITOR, "GET", &format!("/v1/audit/sessions/{id}/history"), None);
    assert_eq!(history.status, 404, "{}", history.text);
    let then = format!("/v1/audit/sessions/{id}/history?at=2100-01-01T00:00:00Z");
    assert_eq!(program.json(AUDITOR, "GET", &then, None).status, 404);
    assert_eq!(entries(&program, &format!("&session={id}")), Vec::<Value>::new());
    let actions: Vec<String> = entries(&program, "").iter().map(|entry| text(&entry["entry"], "action")).collect();
    assert!(!actions.iter().any(|action| action.starts_with("session.")), "{actions:?}");
    assert!(actions.iter().any(|action| action == "audit.read"), "{actions:?}");
    program.stop();
    for (path, bytes) in files(&home.data()) {
        for needle in [MARK, "192.0.2.77", &third, &second, &token, &id.replace('-', "")] {
            let found = bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
            assert!(!found, "{needle} in {}", path.display());
        }
        let raw = uuid::Uuid::parse_str(&id).unwrap();
        assert!(!bytes.windows(16).any(|window| window == raw.as_bytes()), "the session's id in {}", path.display());
    }

    // The memory is gone with the process.
    let program = home.start();
    assert_eq!(program.app("GET", &path, None).status, 404);
    assert_eq!(validate(&program, &third)["reason"], "unknown");
    let refused = entries(&program, "&action=request.refused");
    assert!(!refused.is_empty(), "refused requests are entries");
}

#[test]
fn the_whole_table_through_soap() {
    let home = soap::home().with("REALMS__DEFAULT__PROFILE", "transient");
    let program = home.start();
    let ours = soap::OURS;
    let ask = |operation: &str, content: &str| {
        soap::ask(&program, SOAP12, "", &format!("<{operation} xmlns='{ours}'>{content}</{operation}>"))
    };
    let created = ask(
        "CreateSession",
        &format!("<subject>{MARK}</subject><attributeMap><entry><key>a</key><value>1</value></entry></attributeMap>"),
    );
    assert_eq!(created.status, 200, "{}", created.text);
    assert_eq!(soap::texts(&created, "receipt"), Vec::<String>::new());
    assert!(created.headers.get("counterfoil-index").is_none());
    let (id, token) = (soap::text(&created, "sessionId"), soap::text(&created, "token"));
    let valid = |token: &str| soap::text(&ask("ValidateSession", &format!("<token>{token}</token>")), "valid");
    assert_eq!(valid(&token), "true");
    let named = format!("<sessionId>{id}</sessionId>");
    assert_eq!(soap::text(&ask("GetSession", &named), "version"), "1");
    assert_eq!(soap::text(&ask("TouchSession", &named), "state"), "active");
    let update = |version: u64| {
        let entry = "<attributeMap><entry><key>a</key><value>2</value></entry></attributeMap>";
        ask("UpdateSession", &format!("{named}<expectedVersion>{version}</expectedVersion>{entry}"))
    };
    assert_eq!(soap::text(&update(1), "version"), "2");
    assert_eq!(soap::fault(&update(1)), "VERSION_CONFLICT");
    let second = soap::text(&ask("RenewSession", &named), "token");
    let login = format!("{named}<subject>{MARK}</subject><methods><method>pwd</method></methods>");
    let third = soap::text(&ask("AuthenticateSession", &login), "token");
    assert_eq!((valid(&second).as_str(), valid(&third).as_str()), ("false", "true"));
    let listed = ask("ListSessions", &format!("<subject>{MARK}</subject>"));
    assert_eq!(soap::texts(&listed, "sessionId"), std::slice::from_ref(&id));
    let ended = ask("TerminateSession", &named);
    assert_eq!((soap::text(&ended, "endReason").as_str(), soap::texts(&ended, "receipt").len()), ("logout", 0));
    assert_eq!(soap::fault(&update(4)), "SESSION_ENDED");
    assert_eq!(valid(&third), "false");
    create(&program, &json!({}));
    let all = ask("TerminateSubjectSessions", &format!("<subject>{MARK}</subject>"));
    assert_eq!(soap::text(&all, "ended"), "1");
    let actions: Vec<String> = entries(&program, "").iter().map(|entry| text(&entry["entry"], "action")).collect();
    assert!(!actions.iter().any(|action| action.starts_with("session.")), "{actions:?}");
}

#[test]
fn what_is_held_on_a_subject_is_handed_out_and_erased() {
    let program = home().with("REALMS__DEFAULT__BEYOND_CAP", "evict_oldest").start();
    let subject = format!("/v1/audit/subjects/{MARK}");
    let nothing = program.json(AUDITOR, "POST", &format!("{subject}/erasure"), None);
    assert_eq!((nothing.status, nothing.json()["code"].as_str()), (404, Some("nothing_held")));
    let made: Vec<Value> = (0..6).map(|n| create(&program, &json!({"attributes": {"n": n}}))).collect();
    assert_eq!(validate(&program, &text(&made[0], "token"))["reason"], "ended", "the oldest made room");

    let held = program.json(AUDITOR, "GET", &format!("{subject}/export?purpose=request"), None);
    assert_eq!(held.status, 200, "{}", held.text);
    let lines: Vec<Value> = held.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5);
    assert!(lines.iter().all(|line| line["subject"] == MARK), "{lines:?}");
    assert!(lines.iter().any(|line| line["transient_session"] == made[5]["id"] && line["attributes"]["n"] == 5));
    for token in made.iter().map(|session| text(session, "token")) {
        assert!(!held.text.contains(&token));
    }

    let hold = program.json(AUDITOR, "PUT", &format!("{subject}/legal-hold"), Some(json!({"reason": "case 7"})));
    assert_eq!((hold.status, hold.json()["code"].as_str()), (409, Some("no_log")), "{}", hold.text);

    let erased = program.json(AUDITOR, "POST", &format!("{subject}/erasure"), None);
    assert_eq!(erased.status, 200, "{}", erased.text);
    let document = erased.json();
    assert_eq!((&document["sessions_ended"], &document["keys_destroyed"]), (&json!(5), &json!(0)));
    assert!(document.get("subject_key").is_none(), "{document}");
    let index = document["receipt"]["index"].as_u64().unwrap();
    let entry = program.json(AUDITOR, "GET", &format!("/v1/audit/entries/{index}"), None);
    assert!(entry.text.contains("subject.erased") && !entry.text.contains(MARK), "{}", entry.text);
    assert_eq!(validate(&program, &text(&made[5], "token"))["reason"], "ended");
    let after = program.json(AUDITOR, "GET", &format!("{subject}/export?purpose=request"), None);
    assert_eq!(after.status, 404, "{}", after.text);
}

#[test]
fn a_realm_without_a_log_and_one_with_are_sealed_off_from_one_another() {
    let home = home().with("REALMS__BOOKS__PROFILE", "default");
    let (code, said) = home.run(&["key", "create", "--realm", "books", "--role", "application", "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let program = home.start();
    let made: Value = serde_json::from_str(&said).unwrap();
    let key = text(&made, "key");
    let booked = program.json(&key, "POST", "/v1/sessions", Some(json!({ "subject": MARK })));
    assert!(booked.json()["receipt"]["index"].is_u64(), "{}", booked.text);
    let cached = create(&program, &json!({}));
    for (key, session) in [(APPLICATION, booked.json()), (key.as_str(), cached)] {
        let path = format!("/v1/sessions/{}", text(&session, "id"));
        assert_eq!(program.json(key, "GET", &path, None).status, 404);
        let body = json!({"token": text(&session, "token")});
        assert_eq!(program.json(key, "POST", "/v1/sessions/validate", Some(body)).json()["reason"], "unknown");
        assert_eq!(program.json(key, "DELETE", &path, None).status, 404);
    }
}

#[test]
fn settings_that_cannot_be_kept_are_start_up_errors_that_name_the_key() {
    for (key, value, named) in [
        ("REALMS__DEFAULT__RETENTION_DAYS", "400", "realms.default.retention_days"),
        ("REALMS__DEFAULT__AUDITED_READS", "true", "realms.default.audited_reads"),
        ("TRANSIENT__MINORITY", "refuse", "transient.minority"),
        ("TRANSIENT__URL", "folder:/tmp/x", "transient.url"),
        ("REALMS__DEFAULT__ACKNOWLEDGED_BY", "1", "realms.default.acknowledged_by"),
    ] {
        let (code, said) = home().with(key, value).run(&["serve"]);
        assert!(code != Some(0) && said.contains(named), "{key}: {said}");
    }
}

#[test]
fn on_redis_two_nodes_share_them_and_they_survive_a_restart() {
    let first = home().with("TRANSIENT__URL", redis());
    let keys = first.data().join("keys").display().to_string();
    let program = first.start();
    let created = create(&program, &json!({}));
    let (path, token) = (format!("/v1/sessions/{}", text(&created, "id")), text(&created, "token"));
    assert!(created.get("receipt").is_none());

    // Another node with the same keys, and a log of its own.
    let second = Home { folder: tempfile::tempdir().unwrap(), environment: first.environment.clone() };
    let other = second.with("KEYS__DIR", keys).start();
    assert_eq!(validate(&other, &token)["active"], true);
    let by_many: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..16)
            .map(|n| {
                let node = if n % 2 == 0 { &program } else { &other };
                let (path, headers) = (&path, [("If-Match", "\"1\"")]);
                scope.spawn(move || with(node, "PATCH", path, &headers, Some(json!({"by": n}))).status)
            })
            .collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(by_many.iter().filter(|status| **status == 200).count(), 1, "{by_many:?}");
    assert_eq!(by_many.iter().filter(|status| **status == 412).count(), 15, "{by_many:?}");
    for n in 0..4 {
        let node = if n % 2 == 0 { &program } else { &other };
        create(node, &json!({"attributes": {"n": n}}));
    }
    let sixth = other.app("POST", "/v1/sessions", Some(json!({ "subject": MARK })));
    assert_eq!(sixth.json()["code"], "limit_reached", "the cap holds on all nodes of one Redis");

    program.kill();
    let program = first.start();
    assert_eq!(validate(&program, &token)["active"], true);
    assert_eq!(program.app("DELETE", &path, None).status, 200);
    assert_eq!(validate(&other, &token)["reason"], "ended");
    let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
    assert!(metrics.contains("transient_store_up 1"), "{metrics}");
    let all = program.app("DELETE", &format!("/v1/subjects/{MARK}/sessions"), None);
    assert_eq!(all.json()["ended"], 4);
}

#[test]
fn without_its_redis_such_a_realm_says_so_and_others_go_on() {
    let home = home().with("TRANSIENT__URL", "redis://127.0.0.1:1").with("REALMS__BOOKS__PROFILE", "default");
    let (_, said) = home.run(&["key", "create", "--realm", "books", "--role", "application", "--output", "json"]);
    let key = text(&serde_json::from_str(&said[said.find('{').unwrap()..]).unwrap(), "key");
    let program = home.start();
    let refused = program.app("POST", "/v1/sessions", Some(json!({})));
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("store_unavailable")), "{}", refused.text);
    assert_eq!(refused.header("Retry-After"), "1");
    assert_eq!(program.json(&key, "POST", "/v1/sessions", Some(json!({}))).status, 201);
}

#[test]
fn nodes_send_each_other_what_they_hold_and_one_that_comes_back_is_sent_it_again() {
    let (homes, mut programs) = cluster::over("redis", |home, _| {
        home.with("CLUSTER__REDIS__URL", redis()).with("REALMS__DEFAULT__PROFILE", "transient")
    });
    cluster::until(|| programs.iter().all(|node| cluster::cluster(node)["up"] == 3), "three found one another");
    let created = create(&programs[0], &json!({}));
    let (path, token) = (format!("/v1/sessions/{}", text(&created, "id")), text(&created, "token"));
    for round in 2..8_u64 {
        let node = &programs[round as usize % 3];
        let before = format!("\"{}\"", round - 1);
        cluster::until(
            || {
                let read = node.app("GET", &path, None);
                read.status == 200 && read.header("ETag") == before
            },
            "the last change has come",
        );
        let changed = with(node, "PATCH", &path, &[("If-Match", &before)], Some(json!({"round": round})));
        assert_eq!(changed.status, 200, "{}", changed.text);
        no_entry(&changed);
    }
    programs.remove(0).kill();
    let again = homes[0].start();
    assert_eq!(validate(&again, &token)["session"]["attributes"]["round"], 7, "before it takes its first request");
    assert_eq!(again.app("DELETE", &path, None).status, 200);
    for node in &programs {
        cluster::until(|| validate(node, &token)["reason"] == "ended", "the end has come");
    }
    let metrics = again.ask("GET", "/metrics", &[], None).unwrap().text;
    assert!(metrics.contains("transient_changes_lost 0"), "{metrics}");
    let actions: Vec<String> = entries(&again, "").iter().map(|entry| text(&entry["entry"], "action")).collect();
    assert!(!actions.iter().any(|action| action.starts_with("session.")), "{actions:?}");
}

#[test]
fn partners_hold_their_share_and_the_death_of_one_loses_nothing_that_was_acknowledged() {
    let addresses = cluster::links::<3>();
    let (homes, mut programs) = cluster::over("partner", |home, n| {
        home.with("CLUSTER__UNICAST__LISTEN", format!("[\"{}\"]", addresses[n - 1]))
            .with("CLUSTER__UNICAST__PEERS", format!("[\"{}\"]", addresses.join("\",\"")))
            .with("CLUSTER__UNICAST__PLAINTEXT", "true")
            .with("REALMS__DEFAULT__PROFILE", "transient")
            .with("REALMS__DEFAULT__ACKNOWLEDGED_BY", "1")
    });
    cluster::until(|| programs.iter().all(|node| cluster::cluster(node)["up"] == 3), "three found one another");
    let gauge = |node: &Program, name: &str| -> f64 {
        let metrics = node.ask("GET", "/metrics", &[], None).unwrap().text;
        let line = metrics.lines().find(|line| line.split([' ', '{']).next() == Some(name)).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {name} in {metrics}"))
    };
    let settled = |programs: &[Program]| programs.iter().all(|node| gauge(node, "transient_share_settled") > 0.0);
    cluster::until(|| settled(&programs), "each holds its share");

    // No two changes of one version through any nodes, and each node shows the last at once: the owner decides.
    let made: Vec<Value> = (0..60)
        .map(|n| create(&programs[n % 3], &json!({"subject": format!("{MARK}-{n}"), "attributes": {"n": n}})))
        .collect();
    for (n, session) in made.iter().enumerate() {
        let path = format!("/v1/sessions/{}", text(session, "id"));
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let asked: Vec<_> = programs
                .iter()
                .map(|node| {
                    let path = &path;
                    scope.spawn(move || {
                        with(node, "PATCH", path, &[("If-Match", "\"1\"")], Some(json!({"n": n + 1000}))).status
                    })
                })
                .collect();
            asked.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        for node in &programs {
            let read = node.app("GET", &path, None);
            assert_eq!((read.status, read.header("ETag")), (200, "\"2\""), "{}", read.text);
        }
    }
    let held: Vec<f64> = programs.iter().map(|node| gauge(node, "transient_sessions_held")).collect();
    assert!(
        held.iter().sum::<f64>() == 120.0 && held.iter().all(|held| *held < 60.0),
        "each at two of three: {held:?}"
    );
    let listed = programs[1].app("GET", "/v1/sessions?limit=500", None).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 60);

    programs.remove(0).kill();
    for session in &made {
        let worth = validate(&programs[0], &text(session, "token"));
        assert!(worth["active"] == true && worth["session"]["version"] == 2, "{worth}");
    }
    cluster::until(|| settled(&programs), "the two hold all");
    assert!(programs.iter().all(|node| gauge(node, "transient_sessions_held") == 60.0));
    let ended = programs[1].app("DELETE", &format!("/v1/sessions/{}", text(&made[0], "id")), None);
    assert_eq!(ended.status, 200, "{}", ended.text);
    no_entry(&ended);

    programs.push(homes[0].start());
    cluster::until(|| settled(&programs), "each holds its share again");
    let held = || programs.iter().map(|node| gauge(node, "transient_sessions_held")).sum::<f64>();
    cluster::until(|| held() == 120.0, "and no more");
    for node in &programs {
        assert_eq!(validate(node, &text(&made[0], "token"))["reason"], "ended");
        assert_eq!(validate(node, &text(&made[1], "token"))["active"], true);
        assert_eq!(gauge(node, "transient_changes_lost"), 0.0);
    }

    // With two of three gone nobody can acknowledge anything, and nothing is done that nobody can.
    programs.truncate(1);
    cluster::until(|| cluster::cluster(&programs[0])["up"] == 1, "it is alone");
    let refused = programs[0].app("POST", "/v1/sessions", Some(json!({})));
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("too_few_nodes")), "{}", refused.text);
}

#[test]
fn a_transport_that_cannot_carry_sessions_is_a_start_up_error() {
    let home = home().with("CLUSTER__TRANSPORT", "postgres");
    let url = database(&home);
    let home = home.with("LOG__URL", url);
    let (code, said) = home.run(&["migrate"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = home.run(&["serve"]);
    assert!(code != Some(0) && said.contains("cluster.transport"), "{said}");
}
