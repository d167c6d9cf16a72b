//! A bundle on its way: whoever changes a byte of its evidence is noticed, without any checkpoint from before.

use std::path::Path;

use serde_json::{Value, json};

use crate::program::{Home, files};

#[test]
fn no_altered_byte_of_a_bundle_goes_unnoticed() {
    let home = Home::new();
    let program = home.start();
    for number in 0..12 {
        let made = program.app("POST", "/v1/sessions", Some(json!({"subject": format!("s{number}")}))).json();
        let path = format!("/v1/sessions/{}", made["id"].as_str().unwrap());
        assert_eq!(program.app("PATCH", &path, Some(json!({"n": number}))).status, 200);
    }
    let id = program.app("POST", "/v1/sessions", Some(json!({}))).json()["id"].as_str().unwrap().to_owned();
    program.stop();
    let key = std::fs::read_to_string(home.data().join("keys/log.vkey")).unwrap();
    let verify = |folder: &Path| {
        home.run(&["verify", folder.to_str().unwrap(), "--key", key.trim(), "--output", "json", "--threads", "1"])
    };
    // One with whole entry bundles, and one with leaves one by one.
    for (name, more) in [("whole", vec![]), ("part", vec!["--session", id.as_str()])] {
        let folder = home.folder.path().join(name);
        let mut arguments = vec!["audit", "bundle", folder.to_str().unwrap(), "--reveal", "--purpose", "test"];
        arguments.extend(more);
        assert_eq!(home.run(&arguments).0, Some(0));
        assert_eq!(verify(&folder).0, Some(0));
        let evidence = ["checkpoint", "tile", "checkpoints", "leaves", "sealed", "keys"];
        let mut tried = 0;
        for (path, bytes) in files(&folder) {
            let part = path.strip_prefix(&folder).unwrap().components().next().unwrap();
            if !evidence.contains(&part.as_os_str().to_str().unwrap()) {
                continue;
            }
            // A prime, so that every kind of place is met in some line or other.
            let step = (bytes.len() / 24).max(1) | 1;
            for at in (0..bytes.len()).step_by(step) {
                let mut altered = bytes.clone();
                altered[at] ^= 1;
                std::fs::write(&path, &altered).unwrap();
                let (code, said) = verify(&folder);
                // A bundle whose newest checkpoint is none at all is no bundle: nothing can be said of it.
                if part.as_os_str() == "checkpoint" && code == Some(2) {
                    continue;
                }
                assert_eq!(code, Some(1), "byte {at} of {}: {said}", path.display());
                assert!(serde_json::from_str::<Value>(&said).unwrap()["first_wrong"]["index"].is_u64(), "{said}");
                tried += 1;
            }
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            assert_ne!(verify(&folder).0, Some(0), "{} cut in half", path.display());
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(tried > 60, "{tried}");
        assert_eq!(verify(&folder).0, Some(0), "put right again");
    }
}

#[test]
fn what_is_no_bundle_is_no_verdict() {
    let home = Home::new();
    let folder = home.folder.path().join("empty");
    std::fs::create_dir_all(&folder).unwrap();
    let zip = home.folder.path().join("cut.zip");
    std::fs::write(&zip, b"PK\x03\x04 and then nothing").unwrap();
    let key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    for what in [&folder, &zip, &home.folder.path().join("absent.zip")] {
        let (code, said) = home.run(&["verify", what.to_str().unwrap(), "--key", key]);
        assert_eq!(code, Some(2), "{}: {said}", what.display());
    }
}
