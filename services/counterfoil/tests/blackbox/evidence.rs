//! What auditors take away: tiles, evidence bundles, and that realms stay sealed off from one another in them.

use std::io::Read;
use std::path::Path;

use merkle_log::{Frontier, leaf_hash};
use serde_json::{Value, json};
use session_model::Leaf;

use crate::program::{APPLICATION, AUDITOR, Home, Program, files};

fn get(program: &Program, key: &str, path: &str) -> (u16, ureq::http::HeaderMap, Vec<u8>) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let mut answer =
        agent.get(format!("{}{path}", program.base)).header("Authorization", format!("Bearer {key}")).call().unwrap();
    let mut bytes = Vec::new();
    answer.body_mut().as_reader().read_to_end(&mut bytes).unwrap();
    (answer.status().as_u16(), answer.headers().clone(), bytes)
}

fn create(program: &Program, key: &str, subject: &str) -> Value {
    let made = program.json(key, "POST", "/v1/sessions", Some(json!({"subject": subject, "attributes": {"a": 1}})));
    assert_eq!(made.status, 201, "{}", made.text);
    made.json()
}

#[test]
fn tiles_are_those_of_c2sp_and_make_the_root_that_is_signed() {
    let home = Home::new();
    let program = home.start();
    for number in 0..300 {
        create(&program, APPLICATION, &format!("s{number}"));
    }
    let checkpoint = program.json(AUDITOR, "GET", "/v1/audit/checkpoint", None).text;
    let mut lines = checkpoint.lines();
    let (_, size, root) = (lines.next().unwrap(), lines.next().unwrap(), lines.next().unwrap());
    let size: usize = size.parse().unwrap();
    let part = size - 256;

    let (status, headers, full) = get(&program, AUDITOR, "/v1/audit/tile/0/000");
    assert_eq!((status, full.len()), (200, 8_192));
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert!(headers["cache-control"].to_str().unwrap().contains("immutable"));
    let (status, headers, rest) = get(&program, AUDITOR, &format!("/v1/audit/tile/0/001.p/{part}"));
    assert_eq!((status, rest.len()), (200, part * 32));
    assert!(!headers["cache-control"].to_str().unwrap().contains("immutable"));

    let (_, _, one) = get(&program, AUDITOR, "/v1/audit/tile/entries/000");
    let (_, _, two) = get(&program, AUDITOR, &format!("/v1/audit/tile/entries/001.p/{part}"));
    let mut edge = Frontier::empty();
    let mut hashes = Vec::new();
    let mut above = Vec::new();
    for bundle in [one, two] {
        let mut bytes = bundle.as_slice();
        while let Some((length, behind)) = bytes.split_first_chunk::<2>() {
            let (leaf, behind) = behind.split_at(u16::from_be_bytes(*length).into());
            hashes.extend(leaf_hash(leaf).0);
            edge.push(leaf_hash(leaf), |node| above.push(node.hash.0.to_vec()));
            bytes = behind;
        }
    }
    assert_eq!(hashes, [full, rest].concat(), "the tiles are the hashes of the bundles' leaves");
    assert_eq!(get(&program, AUDITOR, "/v1/audit/tile/1/000.p/1").2, above.concat());
    use base64::Engine;
    assert_eq!(base64::engine::general_purpose::STANDARD.encode(edge.root().0), root);

    let absent = [
        "0/001",
        "0/002.p/1",
        "0/001.p/256",
        "0/001.p/0",
        "0/1",
        "1/000",
        "1/000.p/2",
        "2/000.p/1",
        "63/000",
        "64/000",
        "00/000",
        "entries/001",
        "entries/000.p/256",
        "entries/0",
        "0/000.p",
        "0/",
        "x/000",
        "0/x000/000",
        "0/..%2f0/000",
    ];
    for path in absent {
        let (status, _, body) = get(&program, AUDITOR, &format!("/v1/audit/tile/{path}"));
        assert_eq!(status, 404, "{path}: {}", String::from_utf8_lossy(&body));
    }
    // A tile that was partial when somebody saw its checkpoint is still given in that width.
    assert_eq!(get(&program, AUDITOR, "/v1/audit/tile/0/000.p/7").2.len(), 7 * 32);
    let read = program.json(AUDITOR, "GET", "/v1/audit/entries?limit=1", None).json();
    let before = read["items"][0]["index"].as_u64().unwrap() - 1;
    let entry = program.json(AUDITOR, "GET", &format!("/v1/audit/entries/{before}"), None).json();
    assert_eq!((&entry["entry"]["action"], &entry["entry"]["detail"]["tile"]), (&json!("audit.read"), &json!("0/0")));
}

fn made(home: &Home, arguments: &[&str]) -> Value {
    let (code, said) = home.run(arguments);
    assert_eq!(code, Some(0), "{said}");
    serde_json::from_str(&said).unwrap()
}

fn verified(home: &Home, bundle: &Path, more: &[&str]) -> (i32, Value) {
    let key = std::fs::read_to_string(home.data().join("keys/log.vkey")).unwrap();
    let mut arguments = vec!["verify", bundle.to_str().unwrap(), "--key", key.trim(), "--output", "json"];
    arguments.extend(more);
    let (code, said) = home.run(&arguments);
    (code.unwrap(), serde_json::from_str(&said).unwrap_or_else(|failure| panic!("{failure}: {said}")))
}

#[test]
fn an_auditor_gets_leaves_of_no_other_realm_and_proves_the_own_ones_all_the_same() {
    let home = Home::new().with("REALMS__OTHER__PROFILE", "default");
    let program = home.start();
    let key = |role: &str| {
        let arguments = ["key", "create", "--realm", "other", "--role", role, "--output", "json"];
        made(&home, &arguments)["key"].as_str().unwrap().to_owned()
    };
    let (application, auditor) = (key("application"), key("auditor"));
    let began = std::time::Instant::now();
    while program.json(&application, "GET", "/v1/sessions", None).status != 200
        || program.json(&auditor, "GET", "/v1/audit/checkpoint", None).status != 200
    {
        assert!(began.elapsed().as_secs() < 5);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let mut theirs = Vec::new();
    for number in 0..20 {
        theirs.push(create(&program, APPLICATION, &format!("default-{number}"))["id"].as_str().unwrap().to_owned());
        create(&program, &application, &format!("other-{number}"));
    }
    assert_eq!(get(&program, &auditor, "/v1/audit/tile/0/000.p/20").0, 200, "hashes tell nothing");
    for key in [auditor.as_str(), AUDITOR] {
        let (status, _, body) = get(&program, key, "/v1/audit/tile/entries/000.p/40");
        let problem: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, &problem["code"]), (403, &json!("not_allowed")), "{problem}");
    }

    let file = home.folder.path().join("other-auditor");
    std::fs::write(&file, &auditor).unwrap();
    let folder = home.folder.path().join("bundle");
    let (folder_name, file) = (folder.to_str().unwrap(), file.to_str().unwrap());
    let arguments = [
        "audit",
        "bundle",
        folder_name,
        "--url",
        &program.base,
        "--api-key-file",
        file,
        "--reveal",
        "--purpose",
        "c-1",
    ];
    let (code, said) = home.run(&arguments);
    assert_eq!(code, Some(0), "{said}");
    let (code, report) = verified(&home, &folder, &[]);
    assert_eq!((code, &report["complete"], &report["sessions"]), (0, &json!(false), &json!(20)), "{report:#}");
    assert_eq!(report["replayed"], json!(20));
    assert!(report["not_proved"].to_string().contains("other realms"), "{report:#}");
    for (path, bytes) in files(&folder) {
        let text = String::from_utf8_lossy(&bytes);
        for id in &theirs {
            assert!(!text.contains(id), "{} holds another realm's session", path.display());
        }
        assert!(!text.contains("default-"), "{}", path.display());
    }
    let table = std::fs::read_to_string(folder.join("entries.csv")).unwrap();
    for line in table.lines().skip(1).filter(|line| line.contains(",default,")) {
        assert!(line.contains("service.started"), "{line}");
    }
    // Of a log whose every entry one may see, one gets every entry.
    let (status, _, bytes) = get(&program, AUDITOR, "/v1/audit/tile/0/000.p/1");
    assert_eq!((status, bytes.len()), (200, 32));
}

#[test]
fn a_bundle_holds_what_was_asked_for_and_says_so() {
    let home = Home::new();
    let program = home.start();
    for number in 0..30 {
        create(&program, APPLICATION, &format!("early-{number}"));
    }
    let alice = create(&program, APPLICATION, "alice");
    let id = alice["id"].as_str().unwrap();
    for number in 0..4 {
        let path = format!("/v1/sessions/{id}");
        assert_eq!(program.app("PATCH", &path, Some(json!({"n": number}))).status, 200);
    }
    let kept = program.json(AUDITOR, "GET", "/v1/audit/checkpoint", None).text;
    let saved = home.folder.path().join("saved");
    std::fs::write(&saved, kept).unwrap();
    for number in 0..300 {
        create(&program, APPLICATION, &format!("late-{number}"));
    }
    let auditor = home.folder.path().join("AUDITOR");
    let bundle = |name: &str, more: &[&str]| {
        let out = home.folder.path().join(name);
        let mut arguments = vec!["audit", "bundle", out.to_str().unwrap(), "--url", &program.base, "--api-key-file"];
        arguments.push(auditor.to_str().unwrap());
        arguments.extend(more);
        let (code, said) = home.run(&arguments);
        (code, said, out)
    };
    let keep = ["--saved", saved.to_str().unwrap()];

    // One subject, not revealed: the log's name for it, and nothing of itself.
    let (code, said, out) = bundle("subject", &["--subject", "alice", keep[0], keep[1]]);
    assert_eq!(code, Some(0), "{said}");
    let (code, report) = verified(&home, &out, &keep);
    assert_eq!((code, &report["entries"], &report["closed"]), (0, &json!(5), &json!(5)), "{report:#}");
    assert_eq!((&report["saved"][0]["consistent"], &report["opened"]), (&json!(true), &json!(0)));
    for (path, bytes) in files(&out) {
        assert!(!String::from_utf8_lossy(&bytes).contains("alice"), "{}", path.display());
    }
    // The same straight from the log, revealed, as a zip.
    let out = home.folder.path().join("subject.zip");
    let arguments = ["audit", "bundle", out.to_str().unwrap(), "--subject", "alice", "--reveal", "--purpose", "case-7"];
    assert_eq!(home.run(&arguments).0, Some(0));
    let (code, report) = verified(&home, &out, &[]);
    assert_eq!((code, &report["opened"], &report["replayed"]), (0, &json!(5), &json!(1)), "{report:#}");
    // Its session from the middle on.
    let (_, _, out) = bundle("whole.zip", &[]);
    let mut table = String::new();
    zip::ZipArchive::new(std::fs::File::open(&out).unwrap())
        .unwrap()
        .by_name("entries.csv")
        .unwrap()
        .read_to_string(&mut table)
        .unwrap();
    let of_session: Vec<&str> = table.lines().filter(|line| line.contains(id)).collect();
    let time = |line: &str| line.split(',').nth(1).unwrap().to_owned();
    let (from, to) = (time(of_session[2]), time(of_session[4]));
    let (code, said, out) = bundle("middle", &["--session", id, "--from", &from, "--to", &to]);
    assert_eq!(code, Some(0), "{said}");
    let (code, report) = verified(&home, &out, &[]);
    assert_eq!((code, &report["entries"]), (0, &json!(2)), "{report:#}");
    assert_eq!((&report["sessions_from_before"], &report["complete"]), (&json!(1), &json!(false)));
    // A time alone: every entry of it.
    let (_, _, out) = bundle("time.zip", &["--from", &from, "--to", &to]);
    let (code, report) = verified(&home, &out, &[]);
    assert_eq!((code, &report["complete"], &report["entries"]), (0, &json!(true), &json!(2)), "{report:#}");
    // Without what proves it consistent a saved checkpoint proves nothing, and is not passed over.
    let (_, _, out) = bundle("narrow.zip", &["--session", id, "--from", "2200-01-01T00:00:00Z"]);
    let (code, report) = verified(&home, &out, &keep);
    assert_eq!(code, 1, "{report:#}");

    for bad in [
        "reveal=true",
        "purpose=x",
        "reveal=maybe",
        "reveal=true&purpose=a%20person",
        "from=yesterday",
        "session=1",
        "keep=x",
        "x=1",
    ] {
        let status = program.json(AUDITOR, "GET", &format!("/v1/audit/bundle?{bad}"), None).status;
        assert_eq!(status, 400, "{bad}");
    }
    let entries = program.json(AUDITOR, "GET", "/v1/audit/entries?limit=500", None).json();
    let reads: Vec<&Value> = entries["items"].as_array().unwrap().iter().map(|item| &item["entry"]["detail"]).collect();
    assert!(reads.iter().any(|detail| detail["purpose"] == "case-7" && detail["subject"] == "one"), "{reads:?}");
    assert!(!entries.to_string().contains("alice"));
    for leaf in entries["items"].as_array().unwrap() {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD.decode(leaf["leaf"].as_str().unwrap()).unwrap();
        assert!(Leaf::decode(&bytes).is_ok());
    }
}
