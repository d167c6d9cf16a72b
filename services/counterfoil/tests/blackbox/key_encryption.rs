//! The key that data keys are wrapped with is replaced while the service runs; what was erased since a backup stays shut.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::anchors::{log_files, put_back};
use crate::program::{AUDITOR, Home, Program};

fn create(program: &Program, subject: &str) -> Value {
    let made = program.app("POST", "/v1/sessions", Some(json!({"subject": subject, "attributes": {"a": 1}})));
    assert_eq!(made.status, 201, "{}", made.text);
    made.json()
}

fn change(program: &Program, session: &Value) {
    let path = format!("/v1/sessions/{}", session["id"].as_str().unwrap());
    let changed = program.app("PATCH", &path, Some(json!({"b": 2})));
    assert_eq!(changed.status, 200, "{}", changed.text);
}

fn revealed(program: &Program, session: &Value) -> Value {
    let path = format!("/v1/audit/entries/{}?reveal=true&purpose=test", session["receipt"]["index"]);
    program.json(AUDITOR, "GET", &path, None).json()["personal"].clone()
}

fn ran(home: &Home, arguments: &[&str]) -> Value {
    let output = home.command(arguments).args(["--output", "json"]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits until the node shows these lines among its metrics, and no other wrapping key.
fn until(program: &Program, lines: &[&str]) {
    let began = std::time::Instant::now();
    loop {
        let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
        let shown: Vec<&str> = metrics.lines().filter(|line| line.starts_with("key_encryption_keys{")).collect();
        let plain: Vec<String> = shown.iter().map(|line| one_label(line)).collect();
        if plain.len() == lines.len() && lines.iter().all(|line| plain.iter().any(|shown| shown == line)) {
            return;
        }
        assert!(began.elapsed().as_secs() < 10, "{shown:?} is not {lines:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// A sample with the label of its wrapping key alone.
fn one_label(line: &str) -> String {
    let (_, rest) = line.split_once("wrapping_key=\"").unwrap();
    let (key, rest) = rest.split_once('"').unwrap();
    format!("key_encryption_keys{{wrapping_key=\"{key}\"}} {}", rest.rsplit(' ').next().unwrap())
}

#[test]
fn a_wrapping_key_is_replaced_beside_a_running_service_and_what_was_erased_stays_shut() {
    let home = Home::new();
    let program = home.start();
    let (alice, bob) = (create(&program, "alice"), create(&program, "bob"));
    let kek = home.data().join("keys/kek");
    let old_file = std::fs::read(&kek).unwrap();
    assert_eq!(old_file.len(), 32, "a new log has the first form, which every program reads");

    let rows = ran(&home, &["key-encryption", "add"]);
    let (old, new) =
        (rows[0]["wrapping_key"].as_str().unwrap().to_owned(), rows[1]["wrapping_key"].as_str().unwrap().to_owned());
    assert_eq!((&rows[0]["current"], &rows[1]["data_keys"]), (&json!(true), &json!(0)));
    assert_eq!(home.run(&["key-encryption", "add"]).0, Some(1), "one at a time");
    assert_eq!(home.run(&["key-encryption", "retire", &old]).0, Some(1), "it is current");
    // The node goes on all the while, and takes each file up without a restart.
    let has = |key: &str, worth: u8| format!("key_encryption_keys{{wrapping_key=\"{key}\"}} {worth}");
    until(&program, &[&has(&old, 1), &has(&new, 0)]);
    change(&program, &alice);
    let both_but_old_current = create(&program, "carol");
    ran(&home, &["key-encryption", "rotate"]);
    until(&program, &[&has(&new, 1), &has(&old, 0)]);
    let dave = create(&program, "dave");
    let rows = ran(&home, &["key-encryption", "list"]);
    assert_eq!(
        (&rows[0]["wrapping_key"], &rows[0]["current"], &rows[1]["current"]),
        (&json!(new), &json!(true), &json!(false))
    );
    assert!(rows[0]["data_keys"].as_u64() > Some(0) && rows[1]["data_keys"].as_u64() > Some(2), "{rows}");
    let refused = home.run(&["key-encryption", "retire", &old]);
    assert!(refused.0 == Some(1) && refused.1.contains("rewrap first"), "{refused:?}");
    let said = home.run(&["key-encryption", "rewrap", "--batch", "2"]);
    assert!(said.0 == Some(0) && said.1.contains("wrapped anew: 4 of"), "{said:?}");
    let rows = ran(&home, &["key-encryption", "rewrap"]);
    assert_eq!(rows[1]["data_keys"], json!(0), "{rows}");
    for session in [&alice, &bob, &both_but_old_current, &dave] {
        change(&program, session);
        assert_eq!(revealed(&program, session)["state"], "open");
    }
    let rows = ran(&home, &["key-encryption", "retire", &old]);
    assert_eq!(rows.as_array().unwrap().len(), 1);
    assert_eq!(rows[0]["wrapping_key"], json!(new));
    until(&program, &[&has(&new, 1)]);
    // Files that must not be taken up: an older one, another log's, one that others can read, one that is only half there.
    let good = std::fs::read(&kek).unwrap();
    let told =
        || std::fs::read_to_string(home.folder.path().join("stderr")).unwrap().matches("is not taken up").count();
    for (at, (bad, mode)) in
        [(&old_file[..], 0o600), (&[7; 32], 0o600), (&good[..], 0o644), (&good[..good.len() / 2], 0o600)]
            .iter()
            .enumerate()
    {
        std::fs::write(&kek, bad).unwrap();
        std::fs::set_permissions(&kek, std::fs::Permissions::from_mode(*mode)).unwrap();
        let began = std::time::Instant::now();
        while told() <= at {
            assert!(began.elapsed().as_secs() < 10, "file {at} was taken up");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        until(&program, &[&has(&new, 1)]);
        create(&program, &format!("beside {at}"));
    }
    std::fs::write(&kek, &good).unwrap();
    std::fs::set_permissions(&kek, std::fs::Permissions::from_mode(0o600)).unwrap();
    for session in [&alice, &bob, &both_but_old_current, &dave] {
        assert_eq!(revealed(&program, session)["state"], "open");
    }
    program.stop();

    // With the new file alone all is as it was.
    let program = home.start();
    for session in [&alice, &bob, &both_but_old_current, &dave] {
        assert_eq!(revealed(&program, session)["state"], "open");
    }
    create(&program, "erin");
    let entries = program.json(AUDITOR, "GET", "/v1/audit/entries?limit=500", None).json();
    let of = |action: &str, key: &str| {
        let mut items = entries["items"].as_array().unwrap().iter();
        items.any(|item| item["entry"]["action"] == action && item["entry"]["detail"]["wrapping_key"] == key)
    };
    assert!(of("key.created", &new) && of("key.rotated", &new) && of("key.rewrapped", &new) && of("key.revoked", &old));
    program.stop();

    // A node that begins with the old file says what is wrong with it.
    std::fs::write(&kek, old_file).unwrap();
    for command in [&["serve"][..], &["key-encryption", "list"]] {
        let refused = home.run(command);
        assert!(
            refused.0 == Some(1) && refused.1.contains(&format!("wrapped by the wrapping key {new}")),
            "{refused:?}"
        );
    }
    std::fs::write(&kek, good).unwrap();
    assert_eq!(home.run(&["key-encryption", "list"]).0, Some(0));
}

#[test]
fn an_erased_subject_in_a_backup_is_shut_once_the_wrapping_key_is_gone() {
    let home = Home::new();
    let program = home.start();
    let alice = create(&program, "alice");
    program.stop();
    let backup = log_files(&home);

    let program = home.start();
    assert_eq!(program.json(AUDITOR, "POST", "/v1/audit/subjects/alice/erasure", None).status, 200);
    program.stop();
    let keys = ran(&home, &["key-encryption", "add"]);
    let old = keys[0]["wrapping_key"].as_str().unwrap();
    for step in [vec!["rotate"], vec!["rewrap"], vec!["retire", old]] {
        ran(&home, &[&["key-encryption"], step.as_slice()].concat());
    }

    // Somebody restores the backup, and moves what would prove it out of the way: beside the key file in use nothing of alice opens.
    put_back(&home, &backup);
    std::fs::remove_file(home.data().join("checkpoint")).unwrap();
    let out = home.folder.path().join("bundle");
    let (_, said) = home.run(&["audit", "bundle", out.to_str().unwrap(), "--reveal", "--purpose", "test"]);
    let opened = out.join("keys");
    assert!(!opened.exists(), "{said} {alice}");
    assert!(said.contains("wrapping key"), "{said}");
}
