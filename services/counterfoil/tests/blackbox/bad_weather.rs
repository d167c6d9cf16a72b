//! kill -9 in the middle of load, a rolled-back database, two servers on one log: nothing acknowledged is lost.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::program::{AUDITOR, Home, database, redis};

/// Creates, changes and ends sessions from several clients until told to stop; answers what was acknowledged: of each
/// session its last version, its state and its index.
fn load(program: &crate::program::Program, stop: &AtomicBool) -> HashMap<String, (u64, String, u64)> {
    let acknowledged = Mutex::new(HashMap::new());
    std::thread::scope(|scope| {
        for client in 0..8 {
            let acknowledged = &acknowledged;
            scope.spawn(move || {
                let agreed = |answer: Result<crate::program::Answer, ureq::Error>| {
                    let answer = answer.ok().filter(|answer| answer.status < 300)?;
                    let session: Value = serde_json::from_str(&answer.text).ok()?;
                    let id = session["id"].as_str()?.to_owned();
                    let state = session["state"].as_str()?.to_owned();
                    let told = (session["version"].as_u64()?, state, session["receipt"]["index"].as_u64()?);
                    acknowledged.lock().unwrap().insert(id.clone(), told);
                    Some(id)
                };
                let bearer = format!("Bearer {}", crate::program::APPLICATION);
                let ask = |method: &str, path: &str, media_type: &str, body: Option<String>| {
                    let mut headers = vec![("Authorization", bearer.as_str())];
                    if body.is_some() {
                        headers.push(("Content-Type", media_type));
                    }
                    program.ask(method, path, &headers, body.as_ref().map(String::as_bytes))
                };
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let body = json!({"subject": format!("s-{client}-{round}"), "attributes": {"n": round}});
                    let made = agreed(ask("POST", "/v1/sessions", "application/json", Some(body.to_string())));
                    let Some(id) = made else { continue };
                    let path = format!("/v1/sessions/{id}");
                    agreed(ask("PATCH", &path, "application/merge-patch+json", Some("{\"more\":true}".into())));
                    if round % 2 == 0 {
                        agreed(ask("DELETE", &path, "", None));
                    }
                }
            });
        }
        // The server is killed by the caller's thread meanwhile.
    });
    acknowledged.into_inner().unwrap()
}

fn killed_in_the_middle_of_load(home: &Home, rounds: u32) {
    let mut acknowledged: HashMap<String, (u64, String, u64)> = HashMap::new();
    for _ in 0..rounds {
        let program = home.start();
        program.until_ready();
        let stop = AtomicBool::new(false);
        let told = std::thread::scope(|scope| {
            let loading = scope.spawn(|| load(&program, &stop));
            std::thread::sleep(Duration::from_millis(1_500));
            let pid = program.id();
            assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
            stop.store(true, Ordering::Relaxed);
            loading.join().unwrap()
        });
        program.kill();
        assert!(told.len() > 10, "only {} sessions were acknowledged", told.len());
        acknowledged.extend(told);
    }
    let program = home.start();
    program.until_ready();
    for (id, (version, state, index)) in &acknowledged {
        let session = program.app("GET", &format!("/v1/sessions/{id}"), None);
        assert_eq!(session.status, 200, "{id} was acknowledged and is lost");
        let session = session.json();
        assert!(session["version"].as_u64().unwrap() >= *version, "{id} went back from version {version}");
        assert!(state == "active" || session["state"] == "ended", "{id} came back");
        let entry = program.json(AUDITOR, "GET", &format!("/v1/audit/entries/{index}"), None).json();
        assert_eq!(entry["entry"]["session_id"].as_str(), Some(id.as_str()));
    }
    program.stop();
}

#[test]
fn kill_9_loses_no_acknowledged_change_on_the_embedded_log() {
    killed_in_the_middle_of_load(&Home::new(), 3);
}

#[test]
fn kill_9_loses_no_acknowledged_change_on_postgresql_with_redis() {
    let home = Home::new();
    let url = database(&home);
    let home = home.with("LOG__URL", url).with("VIEW__URL", redis());
    let (code, said) = home.run(&["migrate"]);
    assert_eq!(code, Some(0), "{said}");
    killed_in_the_middle_of_load(&home, 2);
}

#[test]
fn a_database_that_was_rolled_back_is_refused() {
    let home = Home::new();
    let program = home.start();
    program.app("POST", "/v1/sessions", Some(json!({})));
    program.stop();
    let data = home.data();
    let database = |suffix: &str| data.join(format!("log.db{suffix}"));
    let kept: Vec<(&str, Option<Vec<u8>>)> =
        ["", "-wal", "-shm"].map(|suffix| (suffix, std::fs::read(database(suffix)).ok())).into();
    let program = home.start();
    program.app("POST", "/v1/sessions", Some(json!({})));
    program.stop();
    for (suffix, content) in kept {
        match content {
            Some(content) => std::fs::write(database(suffix), content).unwrap(),
            None => drop(std::fs::remove_file(database(suffix))),
        }
    }
    let (code, said) = home.run(&["serve"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("rolled back"), "{said}");
}

#[test]
fn two_servers_on_one_postgresql_log_agree() {
    let one = Home::new();
    let url = database(&one);
    let keys = one.data().join("keys").display().to_string();
    let one = one.with("LOG__URL", url.as_str()).with("NODE", "one").with("KEYS__DIR", keys.as_str());
    let two = Home::new().with("LOG__URL", url.as_str()).with("NODE", "two").with("KEYS__DIR", keys.as_str());
    assert_eq!(one.run(&["migrate"]).0, Some(0));
    let (first, second) = (one.start(), two.start());
    let created = first.app("POST", "/v1/sessions", Some(json!({"attributes": {}}))).json();
    let path = format!("/v1/sessions/{}", created["id"].as_str().unwrap());
    std::thread::scope(|scope| {
        for client in 0..8_u32 {
            let program = if client % 2 == 0 { &first } else { &second };
            let path = &path;
            scope.spawn(move || {
                for n in 0..10 {
                    let changed = program.app("PATCH", path, Some(json!({format!("c{client}-{n}"): n})));
                    assert_eq!(changed.status, 200, "{}", changed.text);
                }
            });
        }
    });
    let bearer = format!("Bearer {}", crate::program::APPLICATION);
    let ended = first.app("DELETE", &path, None);
    let index = ended.header("counterfoil-index").to_owned();
    let headers = [("Authorization", bearer.as_str()), ("Counterfoil-Min-Index", index.as_str())];
    let seen = second.ask("GET", &path, &headers, None).unwrap().json();
    assert_eq!((seen["state"].as_str(), seen["version"].as_u64()), (Some("ended"), Some(82)));
    assert_eq!(seen["attributes"].as_object().unwrap().len(), 80, "an update was lost");
    first.stop();
    second.stop();
}
