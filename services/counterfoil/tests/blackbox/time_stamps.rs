//! RFC 3161 time stamps, from an authority that is OpenSSL's own: asked for, kept, taken away in bundles, and verified.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use time_stamp::testing::{Authority, Server};

use crate::program::{Home, Program};

fn stamped(home: Home, server: &Server) -> Home {
    home.with("ANCHORS__TSA__URL", &server.url).with("ANCHORS__TSA__CA_FILE", server.root.display().to_string())
}

fn anchor(program: &Program) -> Value {
    let verbose = program.ask("GET", "/readyz?verbose", &[], None).unwrap().json();
    let places = verbose["anchors"]["places"].as_array().unwrap();
    places.iter().find(|place| place["kind"] == "tsa").unwrap().clone()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn verified(home: &Home, bundle: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let key = std::fs::read_to_string(home.data().join("keys/log.vkey")).unwrap();
    let arguments = ["verify", bundle.to_str().unwrap(), "--key", key.trim(), "--output", "json"];
    let (code, said) = home.run(&[&arguments[..], more].concat());
    (code, serde_json::from_str(&said).unwrap_or(Value::String(said)))
}

#[test]
fn checkpoints_are_stamped_and_bundles_prove_when_their_entries_existed() {
    let server = Authority::new("critical,timeStamping").serve();
    let home = stamped(Home::new(), &server);
    let program = home.start();
    until("stamped", || anchor(&program)["size"].as_u64() > Some(0));
    let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
    assert!(metrics.contains("anchor_up{kind=\"tsa\"} 1"), "{metrics}");
    for number in 0..300 {
        program.app("POST", "/v1/sessions", Some(json!({"subject": format!("s{number}")})));
    }
    let id = program.app("POST", "/v1/sessions", Some(json!({}))).json()["id"].as_str().unwrap().to_owned();
    // The last checkpoint is stamped before the end.
    program.stop();

    let root = server.root.display().to_string();
    let bundle = home.folder.path().join("bundle");
    let whole = bundle.to_str().unwrap();
    assert_eq!(home.run(&["audit", "bundle", whole]).0, Some(0));
    let (code, report) = verified(&home, &bundle, &["--tsa-ca", &root]);
    let stamps = report["time_stamps"].as_array().unwrap();
    assert_eq!((code, stamps.len()), (Some(0), 2), "{report}");
    assert_eq!(stamps[0]["authority"], "CN=stamps,O=test");
    assert!(stamps[1]["size"].as_u64() > Some(301), "{report}");
    // With a program of others.
    for stamp in stamps {
        let file = |kind: &str| bundle.join(format!("time-stamps/{}.{kind}", stamp["size"]));
        assert!(server.authority.verify(&file("tsr"), &file("checkpoint")).contains("Verification: OK"));
    }

    // Nobody to trust for it: said, and no more. Somebody else: it is not proved.
    let (code, report) = verified(&home, &bundle, &[]);
    assert_eq!((code, report["time_stamps"].as_array().unwrap().len()), (Some(0), 0));
    assert!(report["not_proved"].to_string().contains("--tsa-ca"), "{report}");
    let stranger = Authority::new("critical,timeStamping");
    let (code, report) = verified(&home, &bundle, &["--tsa-ca", stranger.root().to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(
        report["first_wrong"]["what"].to_string().contains("not signed by an authority that you trust"),
        "{report}"
    );
    assert_eq!(verified(&home, &bundle, &["--tsa-ca", bundle.join("vkeys").to_str().unwrap()]).0, Some(2));

    // A session's bundle has the stamp that covers it, and what proves that this is of the same log.
    let part = home.folder.path().join("part");
    assert_eq!(home.run(&["audit", "bundle", part.to_str().unwrap(), "--session", &id]).0, Some(0));
    let (code, report) = verified(&home, &part, &["--tsa-ca", &root]);
    assert_eq!((code, &report["time_stamps"]), (Some(0), &json!([stamps[1]])), "{report}");

    // The stamp of one checkpoint over another one, and one that is not there.
    let file = |stamp: &Value, kind: &str| bundle.join(format!("time-stamps/{}.{kind}", stamp["size"]));
    std::fs::copy(file(&stamps[0], "tsr"), file(&stamps[1], "tsr")).unwrap();
    let (code, report) = verified(&home, &bundle, &["--tsa-ca", &root]);
    assert_eq!(code, Some(1));
    assert!(report["first_wrong"]["what"].to_string().contains("stamps something else"), "{report}");
    std::fs::copy(file(&stamps[0], "checkpoint"), file(&stamps[1], "checkpoint")).unwrap();
    assert_eq!(verified(&home, &bundle, &[]).0, Some(1), "another checkpoint than it is named for");
    std::fs::remove_file(file(&stamps[1], "checkpoint")).unwrap();
    assert_eq!(verified(&home, &bundle, &[]).0, Some(1), "missing");
}

#[test]
fn an_authority_that_is_gone_stops_nothing_and_one_misconfigured_is_told_at_start() {
    let server = Authority::new("critical,timeStamping").serve();
    let root = server.root.clone();
    let home = stamped(Home::new(), &server);
    let kept = std::fs::read(&root).unwrap();
    drop(server);
    for command in [&["serve"][..], &["config", "check"]] {
        let refused = home.run(command);
        assert!(refused.0 == Some(1) && refused.1.contains("anchors.tsa"), "no certificates: {refused:?}");
    }
    let own = home.folder.path().join("roots.pem");
    std::fs::write(&own, kept).unwrap();
    let home = home.with("ANCHORS__TSA__CA_FILE", own.display().to_string());
    assert_eq!(home.run(&["config", "check"]).0, Some(0), "it asks nobody");
    let program = home.start();
    until("it is noticed", || !anchor(&program)["failure"].is_null());
    program.until_ready();
    assert_eq!(program.app("POST", "/v1/sessions", Some(json!({}))).status, 201);
}
