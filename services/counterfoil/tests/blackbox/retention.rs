//! Retention as operators meet it: what is configured, what is refused, and a node that does it in the background. What goes and what stays is tested
//! where time can be chosen (`pruning.rs`, `libs/retention`).

use std::time::{Duration, Instant};

use serde_json::json;

use crate::program::Home;

#[test]
fn a_period_shorter_than_the_clause_and_pruning_without_an_archive_are_refused() {
    let home = Home::new().with("REALMS__SHOP__PROFILE", "hipaa").with("REALMS__SHOP__RETENTION_DAYS", "2191");
    let (code, said) = home.run(&["config", "check"]);
    assert!(code == Some(1) && said.contains("164.316(b)(2)(i)") && said.contains("2192 or more"), "{said}");

    let home = Home::new().with("REALMS__DEFAULT__RETENTION_DAYS", "30");
    assert_eq!(home.run(&["config", "check"]).0, Some(0));
    for (key, value, what) in [
        ("SINKS__SIEM__KIND", "webhook", "sinks.siem"),
        ("ANCHORS__QUORUM", "1", "anchors.quorum"),
        ("RETENTION__ENABLED", "true", "retention.archive_dir"),
    ] {
        let (code, said) = Home::new().with(key, value).run(&["config", "check"]);
        assert!(code == Some(1) && said.contains(what), "{what}: {said}");
    }
    let (code, said) = home.run(&["audit", "prune"]);
    assert!(code == Some(1) && said.contains("retention.archive_dir"), "{said}");
    let home = home.with("RETENTION__ENABLED", "true");
    let (code, said) = home.run(&["serve"]);
    assert!(code == Some(1) && said.contains("retention.archive_dir"), "{said}");
}

#[test]
fn a_node_prunes_in_the_background_and_the_command_line_beside_it() {
    let home = Home::new();
    let archive = home.folder.path().join("archive");
    let home = home
        .with("REALMS__DEFAULT__RETENTION_DAYS", "30")
        .with("RETENTION__ENABLED", "true")
        .with("RETENTION__INTERVAL_S", "1")
        .with("RETENTION__ARCHIVE_DIR", archive.display().to_string());
    let program = home.start();
    program.until_ready();
    program.app("POST", "/v1/sessions", Some(json!({"subject": "alice"})));
    let began = Instant::now();
    loop {
        let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
        let line = metrics.lines().find(|line| line.starts_with("retention_ended_timestamp_seconds")).unwrap();
        if line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 0.0 {
            assert!(
                metrics.contains("retention_failed_runs 0") && metrics.contains("retention_dropped_parts 0"),
                "{metrics}"
            );
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{line}");
        std::thread::sleep(Duration::from_millis(100));
    }
    for arguments in [&["audit", "prune"][..], &["audit", "prune", "--dry-run", "--realm", "default"]] {
        let (code, said) = home.run(arguments);
        assert!(code == Some(0) && said.contains("nothing is past its time"), "{said}");
    }
    assert_eq!(home.run(&["audit", "prune", "--realm", "nowhere"]).0, Some(1));
    assert!(!archive.exists());
    program.stop();
}

/// The command line's side of opening an archive; that what was dropped opens again is tested where time can be chosen (`pruning.rs`).
#[test]
fn an_archive_is_opened_for_a_purpose_and_by_session() {
    let home = Home::new();
    let program = home.start();
    program.until_ready();
    let first = program.app("POST", "/v1/sessions", Some(json!({"subject": "alice"}))).json();
    program.app("POST", "/v1/sessions", Some(json!({"subject": "bob"})));
    let archive = home.folder.path().join("archive.zip").display().to_string();
    let (code, said) = home.run(&["audit", "bundle", &archive]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(home.run(&["audit", "open", &archive]).0, Some(2), "not without a purpose");
    let (code, said) = home.run(&["audit", "open", &archive, "--purpose", "case-117"]);
    assert!(code == Some(0) && said.contains("\"alice\"") && said.contains("\"bob\""), "{said}");
    let id = first["id"].as_str().unwrap();
    let (code, said) = home.run(&["audit", "open", &archive, "--purpose", "case-118", "--session", id]);
    assert!(code == Some(0) && said.contains("\"alice\"") && !said.contains("\"bob\""), "{said}");
    for (arguments, what) in [
        (&["audit", "open", "nowhere.zip", "--purpose", "x"][..], "nowhere.zip"),
        (&["audit", "open", &archive, "--purpose", "x", "--realm", "nowhere"], "no realm nowhere"),
    ] {
        let (code, said) = home.run(arguments);
        assert!(code == Some(1) && said.contains(what), "{said}");
    }
    let readings = crate::console::entries(&program, "action=audit.read&actor=command-line");
    let purposes: Vec<_> = readings.iter().filter_map(|item| item["entry"]["detail"]["purpose"].as_str()).collect();
    assert_eq!(purposes, ["case-118", "case-117"], "what could not be opened was not read");
}
