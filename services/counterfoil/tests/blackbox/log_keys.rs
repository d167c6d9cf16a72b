//! The key that signs checkpoints is changed, and nobody who verifies is ever without one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::program::{AUDITOR, Home, files};

#[test]
fn the_log_key_is_rotated_with_an_overlap_of_two_signatures() {
    let home = Home::new();
    // Starts the service, makes a few sessions, and answers the newest checkpoint and the published keys.
    let turn = || {
        let program = home.start();
        program.until_ready();
        for _ in 0..5 {
            assert_eq!(program.app("POST", "/v1/sessions", Some(json!({}))).status, 201);
        }
        let checkpoint = program.json(AUDITOR, "GET", "/v1/audit/checkpoint", None).text;
        let keys = program.json(AUDITOR, "GET", "/v1/audit/keys", None).json()["keys"].clone();
        program.stop();
        (checkpoint, keys)
    };
    let signatures = |checkpoint: &str| checkpoint.lines().filter(|line| line.starts_with('\u{2014}')).count();
    let verify = |keys: &[&str], saved: &str| {
        let (bundle, saved_file, key_file) =
            (home.folder.path().join("b.zip"), home.folder.path().join("saved"), home.folder.path().join("vkeys"));
        std::fs::write(&saved_file, saved).unwrap();
        std::fs::write(&key_file, keys.join("\n")).unwrap();
        let (code, said) = home.run(&["audit", "bundle", bundle.to_str().unwrap()]);
        assert_eq!(code, Some(0), "{said}");
        let files = [
            bundle.to_str().unwrap(),
            "--key-file",
            key_file.to_str().unwrap(),
            "--saved",
            saved_file.to_str().unwrap(),
        ];
        let (code, said) = home.run(&[&["verify"], files.as_slice(), &["--output", "json"]].concat());
        std::fs::remove_file(bundle).unwrap();
        (code.unwrap(), said)
    };

    let (first, keys) = turn();
    assert_eq!((signatures(&first), keys.as_array().unwrap().len()), (1, 1));
    let old = keys[0]["vkey"].as_str().unwrap().to_owned();
    assert_eq!(home.run(&["log-key", "retire"]).0, Some(1), "there is no other");
    let (code, said) = home.run(&["log-key", "add", "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let listed: Value = serde_json::from_str(&said).unwrap();
    let new = listed[1]["vkey"].as_str().unwrap().to_owned();
    assert_eq!(home.run(&["log-key", "retire"]).0, Some(1), "nobody signs with the new one yet");
    assert_eq!(home.run(&["log-key", "add"]).0, Some(1), "one at a time");

    // Both sign: who knows one of them goes on, whichever it is.
    let (second, keys) = turn();
    assert_eq!(signatures(&second), 2);
    assert_eq!(keys.as_array().unwrap().iter().map(|key| key["current"].clone()).collect::<Vec<_>>(), [true, true]);
    assert_eq!(verify(&[&old], &first).0, 0);
    assert_eq!(verify(&[&old, &new], &second).0, 0);

    let (code, said) = home.run(&["log-key", "retire", "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let (third, keys) = turn();
    assert_eq!(signatures(&third), 1);
    assert_eq!((&keys[0]["vkey"], &keys[0]["current"]), (&json!(new), &json!(true)));
    assert_eq!((&keys[1]["vkey"], &keys[1]["current"]), (&json!(old), &json!(false)));
    assert!(keys[0]["signs_from"].is_string() && keys[1]["signed_until"].is_string(), "{keys}");
    let (code, said) = verify(&[&old, &new], &first);
    assert_eq!(code, 0, "past checkpoints verify with the past key: {said}");
    assert_eq!(verify(&[&old], &first).0, 1, "the old key signs no more");
    assert!(
        !std::fs::read_dir(home.data().join("keys")).unwrap().any(|file| file.unwrap().file_name() == "log.next.pem")
    );

    // An ECDSA signature beside it, for where only that is approved: nobody who knows the Ed25519 key is disturbed.
    let (code, said) = home.run(&["log-key", "add", "--p256", "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let (fourth, keys) = turn();
    let ecdsa = keys.as_array().unwrap().iter().find(|key| key["vkey"].as_str().unwrap().contains("+AjBZ")).unwrap();
    assert_eq!((signatures(&fourth), &ecdsa["current"]), (2, &json!(true)));
    assert_eq!(verify(&[&old, &new, ecdsa["vkey"].as_str().unwrap()], &third).0, 0);
    assert_eq!(home.run(&["log-key", "retire", "--p256"]).0, Some(0));
    assert_eq!(signatures(&turn().0), 1);

    // Each step is an entry that names the key; and the whole log, signed with both, still checks itself.
    let program = home.start();
    let entries = program.json(AUDITOR, "GET", "/v1/audit/entries?limit=500", None).json();
    let of = |action: &str, key: &str| {
        let mut items = entries["items"].as_array().unwrap().iter();
        items.any(|item| item["entry"]["action"] == action && item["entry"]["detail"]["log_key"] == key)
    };
    assert!(of("key.created", &new) && of("key.revoked", &old), "{entries:#}");
    let began = std::time::Instant::now();
    loop {
        let check = program.json(AUDITOR, "GET", "/v1/audit/verify", None).json();
        if check["result"] != "none" {
            assert_eq!(check["result"], "good", "{check}");
            break;
        }
        assert!(began.elapsed().as_secs() < 20);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn a_running_node_takes_up_the_keys_of_a_rotation_and_no_older_ones() {
    let home = Home::new().with("VERIFY__WITHIN_S", "1").with("VERIFY__WHEN_WRONG", "unready");
    let program = home.start();
    program.until_ready();
    let dir = home.data().join("keys");
    let id = |vkey: &str| vkey.split('+').nth(1).unwrap().to_owned();
    let signers = || -> Vec<String> {
        assert_eq!(program.app("POST", "/v1/sessions", Some(json!({}))).status, 201);
        let checkpoint = program.json(AUDITOR, "GET", "/v1/audit/checkpoint", None).text;
        let lines =
            checkpoint.lines().filter_map(|line| line.rsplit_once(' ').filter(|_| line.starts_with('\u{2014}')));
        // A signature begins with the id of its key.
        lines
            .map(|(_, signature)| STANDARD.decode(signature).unwrap()[..4].iter().map(|b| format!("{b:02x}")).collect())
            .collect()
    };
    let until = |wanted: &[&str]| {
        let began = std::time::Instant::now();
        let mut wanted: Vec<String> = wanted.iter().map(|vkey| id(vkey)).collect();
        wanted.sort();
        loop {
            let mut found = signers();
            found.sort();
            if found == wanted {
                return;
            }
            assert!(began.elapsed().as_secs() < 20, "{found:?} is not {wanted:?}");
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    };
    let step = |arguments: &[&str]| -> Value {
        let output = home.command(&[&["log-key"], arguments].concat()).args(["--output", "json"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };

    let older: Vec<_> = files(&dir);
    let listed = step(&["add"]);
    let (old, new) = (listed[0]["vkey"].as_str().unwrap().to_owned(), listed[1]["vkey"].as_str().unwrap().to_owned());
    until(&[&old, &new]);
    step(&["retire"]);
    until(&[&new]);
    let keys = program.json(AUDITOR, "GET", "/v1/audit/keys", None).json()["keys"].clone();
    assert_eq!((&keys[0]["vkey"], &keys[1]["current"]), (&json!(new), &json!(false)), "{keys}");
    let shown = |vkey: &str, worth: &str| {
        let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
        let of_key = metrics.lines().find(|line| line.starts_with("log_keys{") && line.contains(&id(vkey)));
        assert!(of_key.is_some_and(|line| line.ends_with(worth)), "{metrics}");
    };
    shown(&new, " 1");
    shown(&old, " 0");

    // Files from before the rotation: what was destroyed signs no more.
    let newer = files(&dir);
    for (path, bytes) in &older {
        std::fs::write(path, bytes).unwrap();
    }
    std::fs::remove_file(dir.join("log.keys")).unwrap();
    let told = || std::fs::read_to_string(home.folder.path().join("stderr")).unwrap();
    let began = std::time::Instant::now();
    while !told().contains("key files cannot be used") {
        assert!(began.elapsed().as_secs() < 20, "nothing is said of older files");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(signers(), [id(&new)]);
    for (path, bytes) in &newer {
        std::fs::write(path, bytes).unwrap();
    }

    // Keepers and the check of the whole log went along: nothing is called tampered with, and the end is in order.
    let made = program.app("POST", "/v1/sessions", Some(json!({}))).json();
    let size = made["receipt"]["tree_size"].as_u64().unwrap();
    let began = std::time::Instant::now();
    loop {
        let check = program.json(AUDITOR, "GET", "/v1/audit/verify", None).json();
        assert_ne!(check["result"], "wrong", "{check}");
        if check["result"] == "good" && check["size"].as_u64() >= Some(size) && check["outside_size"].is_u64() {
            break;
        }
        assert!(began.elapsed().as_secs() < 30, "{check}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(program.ask("GET", "/readyz", &[], None).unwrap().status, 200);
    program.stop();
    assert!(!told().contains("TAMPERED"), "{}", told());
}
