//! Two logs behind one service: what lives in each is as it is with one, neither sees the other, and neither waits for it.

use std::process::Command;

use serde_json::{Value, json};

use crate::cluster::{cluster, linked_by_certificates, until};
use crate::program::{APPLICATION, AUDITOR, Home, Program, database, redis};
use crate::sinks::Hook;

/// A home whose realms `payments` and `cards` live in a log of their own; `default` lives in the first.
fn of_a_bank() -> Home {
    Home::new()
        .with("REALMS__PAYMENTS__SESSIONS_PER_SUBJECT", "3")
        .with("REALMS__PAYMENTS__BEYOND_CAP", "deny")
        .with("REALMS__CARDS__PROFILE", "default")
        .with("LOG__SHARDS__BANK__REALMS", "[\"payments\",\"cards\"]")
}

/// The same on two databases of PostgreSQL.
fn on_postgres() -> Home {
    let home = of_a_bank();
    let urls = [database(&home), database(&Home::new())];
    let home = home.with("LOG__URL", &urls[0]).with("LOG__SHARDS__BANK__URL", &urls[1]);
    let (code, said) = home.run(&["migrate"]);
    assert_eq!(code, Some(0), "{said}");
    home
}

fn key(home: &Home, realm: &str, role: &str) -> String {
    let (code, said) = home.run(&["key", "create", "--realm", realm, "--role", role, "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let start = said.find('{').unwrap();
    let made: Value = serde_json::from_str(&said[start..]).unwrap();
    made["key"].as_str().unwrap().to_owned()
}

/// The keys of a realm, once the running service knows them.
struct Keys {
    application: String,
    auditor: String,
}

impl Keys {
    fn of(home: &Home, program: &Program, realm: &str) -> Self {
        let keys = Self { application: key(home, realm, "application"), auditor: key(home, realm, "auditor") };
        let known = || program.json(&keys.auditor, "GET", "/v1/audit/checkpoint", None).status == 200;
        until(known, "the new keys are known");
        keys
    }
}

fn begin(program: &Program, key: &str, subject: &str) -> Value {
    let made = program.json(key, "POST", "/v1/sessions", Some(json!({"subject": subject, "attributes": {"a": 1}})));
    assert_eq!(made.status, 201, "{}", made.text);
    made.json()
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).unwrap().as_str().unwrap()
}

fn entries(program: &Program, auditor: &str, query: &str) -> Vec<Value> {
    let found = program.json(auditor, "GET", &format!("/v1/audit/entries?{query}"), None);
    assert_eq!(found.status, 200, "{}", found.text);
    found.json()["items"].as_array().unwrap().clone()
}

fn origin(program: &Program, auditor: &str) -> String {
    let checkpoint = program.json(auditor, "GET", "/v1/audit/checkpoint", None).text;
    checkpoint.lines().next().unwrap().to_owned()
}

fn vkey(program: &Program, auditor: &str) -> String {
    text(&program.json(auditor, "GET", "/v1/audit/keys", None).json(), "/keys/0/vkey").to_owned()
}

/// Everything that two logs promise, on whatever they are kept.
fn each_realm_lives_in_its_own_log(home: &Home) {
    let program = home.start();
    program.until_ready();
    let (payments, cards) = (Keys::of(home, &program, "payments"), Keys::of(home, &program, "cards"));
    let shop = Keys { application: APPLICATION.to_owned(), auditor: AUDITOR.to_owned() };
    let realms = [("default", &shop), ("payments", &payments), ("cards", &cards)];

    // Two origins with keys of their own: who lives together shares them.
    let origins = realms.map(|(_, keys)| origin(&program, &keys.auditor));
    assert_ne!(origins[0], origins[1]);
    assert_eq!(origins[1], origins[2]);
    let vkeys = realms.map(|(_, keys)| vkey(&program, &keys.auditor));
    assert_ne!(vkeys[0], vkeys[1]);
    assert_eq!(vkeys[1], vkeys[2]);

    // The same subject in each; a receipt is of the log that the realm lives in, and verifies under its key alone.
    let begun = realms.map(|(_, keys)| begin(&program, &keys.application, "ada"));
    for (at, (realm, keys)) in realms.iter().enumerate() {
        let (session, index) = (&begun[at], begun[at]["receipt"]["index"].as_u64().unwrap());
        assert_eq!(text(session, "/receipt/origin"), origins[at], "{realm}");
        let receipt = program.json(&keys.application, "GET", &format!("/v1/receipts/{index}"), None);
        assert_eq!(receipt.status, 200, "{realm}: {}", receipt.text);
        let file = home.folder.path().join(format!("{realm}.receipt"));
        std::fs::write(&file, &receipt.text).unwrap();
        let verified = |key: &str| {
            let hash = text(session, "/receipt/leaf_hash");
            home.run(&["verify", file.to_str().unwrap(), "--key", key, "--leaf-hash", hash]).0
        };
        assert_eq!(verified(&vkeys[at]), Some(0), "{realm}");
        let other = if at == 0 { &vkeys[1] } else { &vkeys[0] };
        assert_eq!(verified(other), Some(3), "{realm}: an entry of one log is none of another");
    }

    // Neither token, nor id, nor index of a realm means anything in another, whichever log that lives in.
    for (at, (realm, _)) in realms.iter().enumerate() {
        for (other, keys) in
            realms.iter().enumerate().filter(|(other, _)| *other != at).map(|(at, (_, keys))| (at, keys))
        {
            let worth = json!({"token": begun[at]["token"]});
            let worth = program.json(&keys.application, "POST", "/v1/sessions/validate", Some(worth)).json();
            assert_eq!(text(&worth, "/reason"), "unknown", "{realm} in {other}");
            let path = format!("/v1/sessions/{}", text(&begun[at], "/id"));
            assert_eq!(program.json(&keys.application, "GET", &path, None).status, 404, "{realm} in {other}");
            assert_eq!(program.json(&keys.application, "DELETE", &path, None).status, 404, "{realm} in {other}");
            let history = format!("/v1/audit/sessions/{}/history", text(&begun[at], "/id"));
            assert_eq!(program.json(&keys.auditor, "GET", &history, None).status, 404, "{realm} in {other}");
        }
    }
    for (at, (realm, keys)) in realms.iter().enumerate() {
        let found = entries(&program, &keys.auditor, "action=session.created&subject=ada");
        assert_eq!(found.len(), 1, "{realm}: {found:?}");
        assert_eq!(text(&found[0], "/entry/session_id"), text(&begun[at], "/id"));
        let all = entries(&program, &keys.auditor, "limit=500");
        assert!(all.iter().all(|entry| text(entry, "/entry/realm") == *realm), "{realm}: {all:?}");
    }

    // A cap is as exact as with one log: ada has one session, and room for two.
    let granted: usize = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let body = Some(json!({"subject": "ada"}));
                    usize::from(program.json(&payments.application, "POST", "/v1/sessions", body).status == 201)
                })
            })
            .collect();
        tries.into_iter().map(|tried| tried.join().unwrap()).sum()
    });
    assert_eq!(granted, 2);

    // Read your writes, by an index of the realm's own log.
    let changed = program.json(
        &payments.application,
        "PATCH",
        &format!("/v1/sessions/{}", text(&begun[1], "/id")),
        Some(json!({"a": 2})),
    );
    let bearer = format!("Bearer {}", payments.application);
    let headers = [("Authorization", bearer.as_str()), ("Counterfoil-Min-Index", changed.header("Counterfoil-Index"))];
    let path = format!("/v1/sessions/{}", text(&begun[1], "/id"));
    assert_eq!(program.ask("GET", &path, &headers, None).unwrap().json()["attributes"]["a"], 2);

    // A bundle proves what lives in its log, under that log's key alone.
    for (at, (realm, _)) in realms.iter().enumerate() {
        let file = home.folder.path().join(format!("{realm}.zip"));
        let file = file.to_str().unwrap();
        let (code, said) = home.run(&["audit", "bundle", "--realm", realm, file]);
        assert_eq!(code, Some(0), "{realm}: {said}");
        assert_eq!(home.run(&["verify", file, "--key", &vkeys[at]]).0, Some(0), "{realm}");
        let other = if at == 0 { &vkeys[1] } else { &vkeys[0] };
        assert_ne!(home.run(&["verify", file, "--key", other]).0, Some(0), "{realm}: of one log, under another's key");
    }

    // An erasure is of one realm, and of all of it.
    let erased = program.json(&payments.auditor, "POST", "/v1/audit/subjects/ada/erasure", None);
    assert_eq!(erased.status, 200, "{}", erased.text);
    assert_eq!(erased.json()["sessions_ended"], 3);
    assert_eq!(text(&erased.json(), "/receipt/origin"), origins[1]);
    let held = |keys: &Keys| program.json(&keys.auditor, "GET", "/v1/audit/subjects/ada/export?purpose=x", None).status;
    assert_eq!([held(&shop), held(&payments), held(&cards)], [200, 404, 200]);

    // The service checks both; people see which is which.
    let checked = |keys: &Keys| program.json(&keys.auditor, "GET", "/v1/audit/verify", None).json();
    until(|| checked(&shop)["result"] == "good" && checked(&cards)["result"] == "good", "both logs are checked");
    let ready = program.ask("GET", "/readyz?verbose", &[], None).unwrap().json();
    for shard in ["first", "bank"] {
        assert_eq!(ready["shards"][shard]["ready"], true, "{ready}");
    }
    let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
    for line in ["audit_log_up{shard=\"first\"} 1", "audit_log_up{shard=\"bank\"} 1"] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }

    // Both survive a restart; the keys of both are known again.
    program.stop();
    let program = home.start();
    for (at, (realm, keys)) in realms.iter().enumerate() {
        let worth = json!({"token": begun[at]["token"]});
        let worth = program.json(&keys.application, "POST", "/v1/sessions/validate", Some(worth)).json();
        assert_eq!(worth["active"], *realm != "payments", "{realm}: {worth}");
    }
    let (code, said) = home.run(&["key", "list"]);
    assert!(code == Some(0) && said.contains("payments") && said.contains("bootstrap auditor"), "{said}");
    program.stop();
}

#[test]
fn each_realm_lives_in_its_own_log_in_two_files() {
    each_realm_lives_in_its_own_log(&of_a_bank());
}

#[test]
fn each_realm_lives_in_its_own_log_in_two_databases() {
    each_realm_lives_in_its_own_log(&on_postgres());
}

#[test]
fn each_realm_lives_in_its_own_log_with_the_views_in_redis() {
    each_realm_lives_in_its_own_log(&of_a_bank().with("VIEW__URL", redis()));
}

#[test]
fn each_realm_lives_in_its_own_log_with_the_views_in_a_folder() {
    let shared = tempfile::tempdir().unwrap();
    each_realm_lives_in_its_own_log(&of_a_bank().with("VIEW__URL", format!("folder:{}", shared.path().display())));
}

/// The command line finds a log by the realm, or is told which.
#[test]
fn commands_are_about_the_log_that_they_name() {
    let home = of_a_bank().with("RETENTION__ARCHIVE_DIR", "/nowhere").with("REALMS__CARDS__RETENTION_DAYS", "60");
    let program = home.start();
    let (cards, first) = (Keys::of(&home, &program, "cards"), vkey(&program, AUDITOR));
    let bank = vkey(&program, &cards.auditor);
    begin(&program, &cards.application, "ada");
    let said = |arguments: &[&str]| {
        let (code, said) = home.run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
        said
    };
    let listed = said(&["log-key", "list", "--shard", "bank"]);
    assert!(listed.contains(&bank) && !listed.contains(&first), "{listed}");
    let listed = said(&["log-key", "list"]);
    assert!(listed.contains(&first) && !listed.contains(&bank), "{listed}");
    let wrapping = |arguments: &[&str]| {
        let rows: Value = serde_json::from_str(&said(&[arguments, &["--output", "json"]].concat())).unwrap();
        text(&rows, "/0/wrapping_key").to_owned()
    };
    let of_bank = wrapping(&["key-encryption", "--shard", "bank", "list"]);
    assert_ne!(of_bank, wrapping(&["key-encryption", "list"]));
    assert_eq!(of_bank, wrapping(&["key-encryption", "list", "--shard", "bank"]));
    said(&["audit", "prune", "--dry-run"]);
    said(&["audit", "prune", "--dry-run", "--realm", "cards"]);
    let whole = home.folder.path().join("bank.zip");
    said(&["audit", "bundle", "--shard", "bank", whole.to_str().unwrap()]);
    assert_eq!(home.run(&["verify", whole.to_str().unwrap(), "--key", &bank]).0, Some(0));
    let (code, why) = home.run(&["log-key", "list", "--shard", "shop"]);
    assert!(code == Some(1) && why.contains("log.shards.shop: the configuration has no such shard"), "{why}");
    // Added by its own command, in its own folder; the other log is as it was.
    said(&["log-key", "add", "--shard", "bank"]);
    assert!(home.data().join("shards/bank/keys/log.next.pem").exists());
    assert!(!home.data().join("keys/log.next.pem").exists());
    let id = |role: &str| {
        let keys: Value = serde_json::from_str(&said(&["key", "list", "--output", "json"])).unwrap();
        let mut of_cards = keys.as_array().unwrap().iter().filter(|key| text(key, "/realm") == "cards");
        text(of_cards.find(|key| text(key, "/roles/0") == role).unwrap(), "/id").to_owned()
    };
    said(&["key", "revoke", &id("application")]);
    let refused = || program.json(&cards.application, "POST", "/v1/sessions", Some(json!({}))).status == 401;
    until(refused, "a key of another log than the first is revoked");
    program.stop();
}

/// Each log is pushed by itself, from where its own cursor is, and a sink gets the realms that it is for.
#[test]
fn sinks_are_fed_from_every_log_and_go_on_where_each_left_off() {
    let (all, cards) = (Hook::start(), Hook::start());
    let home = of_a_bank();
    let secret = home.folder.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef\n").unwrap();
    let hooked = |home: Home, name: &str, hook: &Hook| {
        home.with(&format!("SINKS__{name}__KIND"), "webhook")
            .with(&format!("SINKS__{name}__URL"), format!("http://127.0.0.1:{}/in", hook.port))
            .with(&format!("SINKS__{name}__SECRET_FILE"), secret.display().to_string())
            .with(&format!("SINKS__{name}__TIMEOUT_MS"), "300")
    };
    let home = hooked(hooked(home, "ALL", &all), "CARDS", &cards).with("SINKS__CARDS__REALMS", "[\"cards\"]");
    let program = home.start();
    let keys = [Keys::of(&home, &program, "payments"), Keys::of(&home, &program, "cards")];
    let applications = [("default", APPLICATION), ("payments", &keys[0].application), ("cards", &keys[1].application)];
    let push = |program: &Program| {
        for (realm, application) in applications {
            let index = begin(program, application, "ada")["receipt"]["index"].as_u64().unwrap();
            until(|| all.of(realm).contains(&index), "an entry arrives where all go");
            until(|| realm != "cards" || cards.of(realm).contains(&index), "an entry arrives where its realm's go");
        }
    };
    push(&program);
    let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
    for line in ["sink_lag_entries{shard=\"bank\",sink=\"cards\"}", "sink_lag_entries{shard=\"first\",sink=\"all\"}"] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("sink_lag_entries{shard=\"first\",sink=\"cards\"}"), "no realm of it lives there");
    program.kill();
    let program = home.start();
    push(&program);
    assert!(cards.of("payments").is_empty() && cards.of("default").is_empty());
    program.stop();
}

/// Lets nobody connect to a database, or lets them again.
fn allow(url: &str, connections: bool) {
    let (server, name) = url.rsplit_once('/').unwrap();
    let orders = [
        format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {connections}"),
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
    ];
    for order in orders {
        let done = Command::new("psql").args([&format!("{server}/postgres"), "-qtc", &order]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

#[test]
fn one_log_out_of_reach_does_not_stop_the_other() {
    let home = on_postgres().with("LOG__DEADLINE_MS", "1500").with("LOG__APPEND_TIMEOUT_MS", "1000");
    let url = home.environment.iter().rfind(|(name, _)| name == "LOG__SHARDS__BANK__URL").unwrap().1.clone();
    let program = home.start();
    program.until_ready();
    let payments = Keys::of(&home, &program, "payments");
    let kept = begin(&program, &payments.application, "ada");
    allow(&url, false);
    let refused = || program.json(&payments.application, "POST", "/v1/sessions", Some(json!({}))).status == 503;
    until(refused, "nothing is acknowledged without a log");
    for n in 0..20 {
        begin(&program, APPLICATION, &format!("s{n}"));
    }
    let ready = || program.ask("GET", "/readyz?verbose", &[], None).unwrap();
    until(|| ready().json()["shards"]["bank"]["ready"] == false, "it is said which is out of reach");
    let now = ready();
    assert_eq!((now.status, &now.json()["shards"]["first"]["ready"]), (200, &Value::Bool(true)), "{}", now.text);
    assert_eq!(program.ask("GET", "/readyz", &[], None).unwrap().text, "ok; down: bank\n");
    let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
    assert!(metrics.contains("audit_log_up{shard=\"bank\"} 0"), "{metrics}");
    // Nobody tells the node of that log any more: it does not go by what it holds of it.
    until(|| ready().json()["shards"]["bank"]["view"]["in_doubt"] == "stale", "it is said what is not gone by");
    let worth = json!({"token": kept["token"]});
    assert_eq!(program.json(&payments.application, "POST", "/v1/sessions/validate", Some(worth)).status, 503);
    let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
    for line in [
        "view_in_doubt{reason=\"stale\",shard=\"bank\"} 1",
        "view_in_doubt{reason=\"stale\",shard=\"first\"} 0",
        "session_reads_from_log_total{reason=\"stale\",shard=\"bank\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    allow(&url, true);
    until(|| ready().json()["shards"]["bank"]["ready"] == true, "it comes back by itself");
    until(|| ready().json()["shards"]["bank"]["view"]["in_doubt"].is_null(), "what it holds is gone by again");
    begin(&program, &payments.application, "eve");
    let worth = json!({"token": kept["token"]});
    let worth = program.json(&payments.application, "POST", "/v1/sessions/validate", Some(worth)).json();
    assert_eq!(worth["active"], true, "{worth}");
    program.stop();
}

/// Starts what must not start; answers why it does not.
fn refused(home: &Home) -> String {
    let listening = [("SERVER__LISTEN", "127.0.0.1:0"), ("MANAGEMENT__LISTEN", "127.0.0.1:0")];
    let mut command = home.command(&["serve"]);
    command.envs(listening.map(|(name, value)| (format!("COUNTERFOIL__{name}"), value)));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_is_of_one_log_is_not_taken_for_another_s() {
    let home = of_a_bank();
    home.start().stop();
    let data = home.data();
    let (first, bank) = (data.join("log.db"), data.join("shards/bank/log.db"));
    let swapped = Home::over(&home)
        .with("LOG__URL", format!("sqlite:{}", bank.display()))
        .with("LOG__SHARDS__BANK__URL", format!("sqlite:{}", first.display()));
    let why = refused(&swapped);
    assert!(why.contains("shard first: the log's newest checkpoint does not verify"), "{why}");

    // The database of one in the place of the other's.
    for file in ["log.db", "log.db-wal", "log.db-shm"] {
        let (from, to) = (data.join(file), data.join("shards/bank").join(file));
        if from.exists() {
            std::fs::copy(from, to).unwrap();
        } else {
            let _was_not_there = std::fs::remove_file(to);
        }
    }
    let why = refused(&home);
    assert!(why.contains("shard bank: the log's newest checkpoint does not verify"), "{why}");
}

#[test]
fn a_realm_does_not_move_by_itself() {
    let home = of_a_bank();
    let program = home.start();
    let cards = Keys::of(&home, &program, "cards");
    begin(&program, &cards.application, "ada");
    program.stop();
    // To the first log.
    let moved = Home::over(&home).with("LOG__SHARDS__BANK__REALMS", "[\"payments\"]");
    let why = refused(&moved);
    assert!(why.contains("shard bank has entries of realm cards"), "{why}");
    // From the first log.
    let moved = Home::over(&home)
        .with("REALMS__SHOP__PROFILE", "default")
        .with("LOG__SHARDS__BANK__REALMS", "[\"payments\", \"cards\", \"default\"]");
    let why = refused(&moved);
    assert!(why.contains("shard first has entries of realm default"), "{why}");
    // A realm that is new may live anywhere; what was there goes on.
    let more = Home::over(&home)
        .with("REALMS__SHOP__PROFILE", "default")
        .with("LOG__SHARDS__BANK__REALMS", "[\"payments\", \"cards\", \"shop\"]");
    let program = more.start();
    assert_eq!(program.json(&cards.auditor, "GET", "/v1/audit/checkpoint", None).status, 200);
    program.stop();
}

/// A shard is a whole log: when there are too many for one process, its folder and database are all that another deployment needs.
#[test]
fn a_shard_can_become_the_first_log_of_another_deployment() {
    let home = of_a_bank();
    let program = home.start();
    let cards = Keys::of(&home, &program, "cards");
    let begun = begin(&program, &cards.application, "ada");
    let size = |program: &Program| {
        let checkpoint = program.json(&cards.auditor, "GET", "/v1/audit/checkpoint", None).text;
        let mut lines = checkpoint.lines().map(str::to_owned);
        (lines.next().unwrap(), lines.next().unwrap().parse::<u64>().unwrap())
    };
    let before = size(&program);
    program.stop();
    let other = Home::new()
        .with("DATA_DIR", home.data().join("shards/bank").display().to_string())
        .with("REALMS__PAYMENTS__PROFILE", "default")
        .with("REALMS__CARDS__PROFILE", "default");
    let program = other.start();
    let worth = json!({"token": begun["token"]});
    let worth = program.json(&cards.application, "POST", "/v1/sessions/validate", Some(worth)).json();
    assert_eq!(worth["active"], true, "{worth}");
    let after = size(&program);
    assert_eq!(before.0, after.0);
    assert!(after.1 > before.1);
    program.stop();
}

/// Who can write one log, keys and all, opens nothing of what lives in another.
#[test]
fn a_log_has_no_say_over_the_realms_of_another() {
    let home = of_a_bank();
    let program = home.start();
    let bank = home.data().join("shards/bank");
    let alone = Home::new()
        .with("DATA_DIR", bank.display().to_string())
        .with("LOG__URL", format!("sqlite:{}", bank.join("log.db").display()))
        .with("BOOTSTRAP__APPLICATION_KEY_FILE", "");
    let made = key(&alone, "default", "application");
    let known = key(&home, "payments", "application");
    until(
        || program.json(&known, "POST", "/v1/sessions", Some(json!({}))).status == 201,
        "keys that were made later are known",
    );
    assert_eq!(program.json(&made, "POST", "/v1/sessions", Some(json!({}))).status, 401);
    program.stop();
}

#[test]
fn two_urls_of_one_database_are_found_out() {
    let home = of_a_bank();
    let url = database(&home);
    let home = home.with("LOG__URL", &url).with("LOG__SHARDS__BANK__URL", &url);
    let (code, said) = home.run(&["migrate"]);
    assert!(code == Some(1) && said.contains("is in the database of shard first"), "{said}");
    // What nobody can tell from the URLs is told from what the first has written.
    let other = if url.contains("127.0.0.1") {
        url.replace("127.0.0.1", "localhost")
    } else {
        url.replace("localhost", "127.0.0.1")
    };
    if other == url {
        return;
    }
    let home = home.with("LOG__SHARDS__BANK__URL", other);
    let (code, said) = home.run(&["migrate"]);
    assert_eq!(code, Some(0), "{said}");
    let why = refused(&home);
    assert!(why.contains("shard bank: the log's newest checkpoint does not verify"), "{why}");
}

/// Two nodes that share both logs: what one does the other shows, in each realm.
fn two_nodes_share_both(transport: &str, configure: impl Fn(Home, usize) -> Home) {
    let first = on_postgres();
    let environment = first.environment.clone();
    let keys = first.folder.path().join("keys").display().to_string();
    let second = Home { folder: tempfile::tempdir().unwrap(), environment };
    let homes: Vec<Home> = [first, second]
        .into_iter()
        .zip(1..)
        .map(|(home, n)| {
            let home = home
                .with("NODE", format!("node-{n}"))
                .with("KEYS__DIR", &keys)
                .with("CLUSTER__TRANSPORT", transport)
                .with("CLUSTER__NODES", "2");
            configure(home, n)
        })
        .collect();
    let programs: Vec<Program> = homes.iter().map(Home::start).collect();
    let of = |program: &Program, shard: &str| {
        program.ask("GET", &format!("/cluster?shard={shard}"), &[], None).unwrap().json()
    };
    for shard in ["first", "bank"] {
        until(|| programs.iter().all(|node| of(node, shard)["up"] == 2), "the nodes of each log found one another");
    }
    assert_eq!(cluster(&programs[0])["transport"], transport);
    let payments = Keys::of(&homes[0], &programs[0], "payments");
    let sees = || programs[1].json(&payments.auditor, "GET", "/v1/audit/checkpoint", None).status == 200;
    until(sees, "the other node knows the keys");
    for application in [APPLICATION, payments.application.as_str()] {
        let begun = begin(&programs[0], application, "ada");
        let path = format!("/v1/sessions/{}", text(&begun, "/id"));
        for round in 1..=10 {
            let changed = programs[round % 2].json(application, "PATCH", &path, Some(json!({"n": round})));
            assert_eq!(changed.status, 200, "{}", changed.text);
            let bearer = format!("Bearer {application}");
            let index = changed.header("Counterfoil-Index").to_owned();
            let headers = [("Authorization", bearer.as_str()), ("Counterfoil-Min-Index", index.as_str())];
            let read = programs[(round + 1) % 2].ask("GET", &path, &headers, None).unwrap();
            assert_eq!(read.json()["attributes"]["n"], round, "{}", read.text);
        }
        assert_eq!(programs[1].json(application, "DELETE", &path, None).status, 200);
        let validate = json!({"token": begun["token"]});
        let ended = || {
            let worth = programs[0].json(application, "POST", "/v1/sessions/validate", Some(validate.clone())).json();
            worth["active"] == false
        };
        until(ended, "an end is an end on the other node");
    }
    // No frame of one log was taken for one of the other.
    for (program, shard) in programs.iter().flat_map(|program| [(program, "first"), (program, "bank")]) {
        let status = of(program, shard);
        let rejected = status["frames"]["rejected"].as_object().unwrap();
        assert!(rejected.values().all(|count| count == 0), "{shard}: {status}");
        assert!(status["frames"]["received"].as_u64().unwrap() > 0, "{shard}: {status}");
    }
    let (code, said) = homes[0].run(&[
        "cluster",
        "status",
        "--shard",
        "bank",
        "--address",
        programs[0].management.trim_start_matches("http://"),
    ]);
    assert!(code == Some(0) && said.contains("2 up of 2"), "{said}");
    programs.into_iter().for_each(Program::stop);
}

#[test]
fn two_nodes_share_both_over_postgres() {
    two_nodes_share_both("postgres", |home, _| home);
}

#[test]
fn two_nodes_share_both_over_redis() {
    two_nodes_share_both("redis", |home, _| home.with("CLUSTER__REDIS__URL", redis()));
}

#[test]
fn two_nodes_share_both_over_redis_with_the_views_there_too() {
    two_nodes_share_both("redis", |home, _| home.with("VIEW__URL", redis()));
}

#[test]
fn two_nodes_share_both_over_multicast() {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let group = format!("239.254.{high}.{low}:{}", 20_000 + u16::from_be_bytes([high, low]) % 20_000);
    two_nodes_share_both("multicast", move |home, _| {
        home.with("CLUSTER__MULTICAST__GROUP", &group).with("CLUSTER__MULTICAST__INTERFACE", "127.0.0.1")
    });
}

fn two_nodes_share_both_over_links(transport: &str) {
    let linked = linked_by_certificates::<2>();
    // Copies are read over partner alone: each session is on one node, so that every other reading asks the other.
    two_nodes_share_both(transport, |home, n| linked(home, n).with("CLUSTER__PARTNER__COPIES", "0"));
}

#[test]
fn two_nodes_share_both_over_unicast() {
    two_nodes_share_both_over_links("unicast");
}

#[test]
fn two_nodes_share_both_over_partner() {
    two_nodes_share_both_over_links("partner");
}
