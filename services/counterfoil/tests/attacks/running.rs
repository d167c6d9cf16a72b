//! The same while the service runs: an auditor asks it for a bundle, and it finds out by itself.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::{AUDITOR, Home};
use crate::store::Store;
use crate::{alter, place};

#[test]
fn an_attack_on_a_running_service_is_seen_by_the_auditor_and_by_itself() {
    let home = Home::new().with("VERIFY__WITHIN_S", "1").with("VERIFY__WHEN_WRONG", "unready");
    let program = home.start();
    program.until_ready();
    for number in 0..40 {
        assert_eq!(program.app("POST", "/v1/sessions", Some(json!({"subject": format!("s{number}")}))).status, 201);
    }
    let last_check = || program.json(AUDITOR, "GET", "/v1/audit/verify", None).json();
    let until = |wanted: &str| -> Value {
        let began = Instant::now();
        loop {
            let check = last_check();
            // The first check may come before the first outside checkpoint.
            if check["result"] == wanted && check["outside_size"].is_u64() {
                return check;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "never {wanted}: {check}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    until("good");

    let key = std::fs::read_to_string(home.data().join("keys/log.vkey")).unwrap();
    let auditor = home.folder.path().join("AUDITOR");
    let verify = || {
        let arguments = [
            "verify",
            &program.base,
            "--key",
            key.trim(),
            "--api-key-file",
            auditor.to_str().unwrap(),
            "--output",
            "json",
        ];
        let (code, said) = home.run(&arguments);
        (code, serde_json::from_str::<Value>(&said).unwrap_or_else(|failure| panic!("{failure}: {said}")))
    };
    assert_eq!(verify().0, Some(0));

    let store = Store::Sqlite(home.data().join("log.db"));
    let commits = store.load();
    let (at, within) = place(&commits, 20);
    let mut altered = commits[at].clone();
    alter(&mut altered.leaves[within]);
    let bytes: String =
        audit_log::encode_leaves(altered.leaves.iter().map(Vec::as_slice)).iter().map(|b| format!("{b:02x}")).collect();
    store.sql(&format!("UPDATE %batch SET leaves = x'{bytes}' WHERE first = {}", 20 - within));

    let (code, report) = verify();
    assert_eq!((code, &report["first_wrong"]["index"]), (Some(1), &json!(20)), "{report:#}");
    assert_eq!(until("wrong")["first_wrong_index"], json!(20));
    assert_eq!(program.ask("GET", "/readyz", &[], None).unwrap().status, 503);
    let metrics = program.ask("GET", "/metrics", &[], None).unwrap().text;
    assert!(metrics.contains("audit_verify_wrong 1"), "{metrics}");
}
