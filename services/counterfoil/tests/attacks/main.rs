//! The attacks that the log must not survive unnoticed, each tried for real by somebody who is superuser of the database, on SQLite
//! and on PostgreSQL. docs/attacks.md says which need what outside the database to be caught.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::type_complexity,
    reason = "a test that cannot go on should stop where it is"
)]

mod bundles;
#[path = "../blackbox/program.rs"]
mod program;
mod running;
mod store;

use std::path::PathBuf;

use program::{AUDITOR, Home, database};
use sealing::LogKey;
use serde_json::{Value, json};
use session_model::Leaf;
use store::{Commit, Store};

/// A log with a history, an auditor who kept its checkpoint, and a copy of the database from before.
struct Scene {
    home: Home,
    store: Store,
    /// The dump that somebody made earlier.
    dump: Store,
    /// The checkpoint that the auditor keeps.
    saved: PathBuf,
    /// How many entries the log had then.
    saved_size: u64,
    /// The outside checkpoint as the service left it; `None` if the attacker has removed it. Commands keep theirs in its place.
    anchor: Option<Vec<u8>>,
    vkey: String,
    origin: String,
    key: LogKey,
}

impl Scene {
    fn new(home: Home, store: Store) -> Self {
        let home = home.with("LOG__URL", store.url()).with("VERIFY__WITHIN_S", "0");
        let sessions = |count: usize| {
            let program = home.start();
            program.until_ready();
            for number in 0..count {
                let made =
                    program.app("POST", "/v1/sessions", Some(json!({"subject": format!("subject-{}", number % 400)})));
                assert!(made.status == 201 || made.status == 409, "{}", made.text);
                if number % 10 == 0 && made.status == 201 {
                    let id = made.json()["id"].as_str().unwrap().to_owned();
                    assert_eq!(
                        program.app("PATCH", &format!("/v1/sessions/{id}"), Some(json!({"n": number}))).status,
                        200
                    );
                    assert_eq!(program.app("DELETE", &format!("/v1/sessions/{id}"), None).status, 200);
                }
            }
            let kept = program.json(AUDITOR, "GET", "/v1/audit/checkpoint", None).text;
            program.stop();
            kept
        };
        sessions(500);
        let dump = store.copy("dump");
        let checkpoint = sessions(600);
        let saved = home.folder.path().join("saved");
        std::fs::write(&saved, &checkpoint).unwrap();
        let saved_size = checkpoint.lines().nth(1).unwrap().parse().unwrap();
        let keys = home.data().join("keys");
        let vkey = std::fs::read_to_string(keys.join("log.vkey")).unwrap().trim().to_owned();
        let origin = std::fs::read_to_string(keys.join("origin")).unwrap().trim().to_owned();
        let key = LogKey::from_pem(&origin, &std::fs::read(keys.join("log.pem")).unwrap()).unwrap();
        let anchor = std::fs::read(home.data().join("checkpoint")).unwrap();
        let newest = store.load().pop().unwrap().checkpoint;
        // Else a cut of what came after it would be accepted: stderr says why it was not kept.
        let said = || std::fs::read_to_string(home.folder.path().join("stderr")).unwrap();
        assert!(anchor == newest.as_bytes(), "the outside checkpoint is not the newest:\n{}", said());
        let anchor = Some(anchor);
        Self { home, store, dump, saved, saved_size, anchor, vkey, origin, key }
    }

    /// Puts the outside checkpoint back as it was before any command.
    fn put_anchor_back(&self) {
        let file = self.home.data().join("checkpoint");
        match &self.anchor {
            Some(anchor) => std::fs::write(file, anchor).unwrap(),
            None => drop(std::fs::remove_file(file)),
        }
    }

    /// A bundle of a log, and what the verifier says of it: exit status and report.
    fn verify(&self, store: &Store, name: &str, saved: Option<&PathBuf>, reveal: bool) -> (i32, Value) {
        self.put_anchor_back();
        let bundle = self.home.folder.path().join(format!("{name}.zip"));
        let mut arguments = vec!["audit", "bundle", bundle.to_str().unwrap()];
        if reveal {
            arguments.extend(["--reveal", "--purpose", "attack"]);
        }
        if let Some(saved) = saved {
            arguments.extend(["--saved", saved.to_str().unwrap()]);
        }
        let made = self.home.command(&arguments).env("COUNTERFOIL__LOG__URL", store.url()).output().unwrap();
        assert!(made.status.success(), "{name}: {}", String::from_utf8_lossy(&made.stderr));
        let mut arguments = vec!["verify", bundle.to_str().unwrap(), "--key", &self.vkey, "--output", "json"];
        if let Some(saved) = saved {
            arguments.extend(["--saved", saved.to_str().unwrap()]);
        }
        let (code, said) = self.home.run(&arguments);
        std::fs::remove_file(bundle).unwrap();
        let report = serde_json::from_str(&said).unwrap_or_else(|failure| panic!("{name}: {failure}: {said}"));
        (code.unwrap(), report)
    }

    /// The attack must be caught, and the report must name a run of entries that holds one of those that were touched.
    fn caught(&self, store: &Store, name: &str, touched: std::ops::Range<u64>) -> Value {
        let (code, report) = self.verify(store, name, Some(&self.saved), false);
        assert_eq!((code, &report["proved"]), (1, &json!(false)), "{name}: {report:#}");
        let wrong = &report["first_wrong"];
        let first = wrong["index"].as_u64().unwrap();
        let until = wrong["until"].as_u64().unwrap_or(first);
        assert!(
            first < touched.end && until >= touched.start,
            "{name}: {touched:?} was touched, but the report says {wrong}"
        );
        report
    }

    /// What the verifier cannot see without a checkpoint that was kept elsewhere.
    fn unseen_without_anchor(&self, store: &Store, name: &str) {
        let (code, report) = self.verify(store, &format!("{name}-alone"), None, false);
        assert_eq!(code, 0, "{name}: {report:#}");
    }
}

/// Where an entry is among commits.
fn place(commits: &[Commit], index: usize) -> (usize, usize) {
    let mut first = 0;
    for (at, commit) in commits.iter().enumerate() {
        if index < first + commit.leaves.len() {
            return (at, index - first);
        }
        first += commit.leaves.len();
    }
    panic!("there is no entry {index}")
}

/// The first entry from here on that made the one version of its session: no other entry links to it.
fn alone(commits: &[Commit], from: usize) -> usize {
    let leaves: Vec<Leaf> =
        commits.iter().flat_map(|commit| &commit.leaves).map(|leaf| Leaf::decode(leaf).unwrap()).collect();
    let of = |id| leaves.iter().filter(|leaf| leaf.session_id == id).count();
    (from..leaves.len()).find(|at| leaves[*at].session_id.is_some() && of(leaves[*at].session_id) == 1).unwrap()
}

/// Changes one byte, so that the leaf still is a leaf: a digit of its entry id.
fn alter(leaf: &mut [u8]) {
    let text = String::from_utf8(leaf.to_vec()).unwrap();
    let at = text.find("\"entry_id\":\"").unwrap() + 40;
    leaf[at] = if leaf[at] == b'0' { b'1' } else { b'0' };
}

/// Takes away entries from `keep` on. The attacker has the checkpoint that was stored with the commit that ends there.
fn cut(commits: &[Commit], keep: usize) -> Vec<Commit> {
    let (at, within) = place(commits, keep - 1);
    assert_eq!(within + 1, commits[at].leaves.len(), "these commits have one entry each");
    commits[..=at].to_vec()
}

fn every_attack(scene: &Scene) {
    let (code, report) = scene.verify(&scene.store.copy("untouched"), "untouched", Some(&scene.saved), true);
    assert_eq!((code, &report["proved"], &report["complete"]), (0, &json!(true), &json!(true)), "{report:#}");
    assert!(
        report["replayed"].as_u64() == report["sessions"].as_u64() && report["replayed"].as_u64() > Some(800),
        "{report:#}"
    );
    assert_eq!(report["closed"], json!(0));

    let commits = scene.store.load();
    let size: usize = commits.iter().map(|commit| commit.leaves.len()).sum();
    let victim = alone(&commits, 700);
    let there = victim as u64..victim as u64 + 1;
    let attacked = |name: &str, change: &dyn Fn(&mut Vec<Commit>), key: Option<&LogKey>| {
        let store = scene.store.copy(name);
        let mut commits = commits.clone();
        change(&mut commits);
        store.replace(&commits, key.map(|key| (scene.origin.as_str(), key)));
        store
    };
    let altering = |commits: &mut Vec<Commit>| {
        let (at, within) = place(commits, victim);
        alter(&mut commits[at].leaves[within]);
    };

    // One byte of a leaf, and nothing else.
    let store = scene.store.copy("byte");
    let (at, within) = place(&commits, victim);
    let mut altered = commits[at].clone();
    alter(&mut altered.leaves[within]);
    let first = victim - within;
    let bytes: String =
        audit_log::encode_leaves(altered.leaves.iter().map(Vec::as_slice)).iter().map(|b| format!("{b:02x}")).collect();
    let literal = if matches!(store, Store::Sqlite(_)) { format!("x'{bytes}'") } else { format!("'\\x{bytes}'") };
    store.sql(&format!("UPDATE %batch SET leaves = {literal} WHERE first = {first}"));
    let report = scene.caught(&store, "byte", there.clone());
    assert_eq!(report["first_wrong"]["index"], json!(victim), "to the very entry");

    // One byte that makes the stored batch unreadable.
    let store = scene.store.copy("garbage");
    let literal = if matches!(store, Store::Sqlite(_)) { "x'00'" } else { "'\\x00'" };
    store.sql(&format!("UPDATE %batch SET leaves = {literal} WHERE first = {first}"));
    scene.caught(&store, "garbage", there.clone());

    // The same with every hash made to match.
    scene.caught(&attacked("byte_hashed", &altering, None), "byte_hashed", there.clone());

    let swapped = attacked(
        "swapped",
        &|commits| {
            let (a, b) = (place(commits, victim), place(commits, victim + 5));
            let leaf = commits[a.0].leaves[a.1].clone();
            commits[a.0].leaves[a.1] = std::mem::replace(&mut commits[b.0].leaves[b.1], leaf);
        },
        None,
    );
    scene.caught(&swapped, "swapped", there.start..there.end + 5);

    // The newest entries, the head rewritten to match: nothing in the database contradicts it.
    for gone in [1, 10, 1_000] {
        let name = format!("cut_{gone}");
        let store = attacked(&name, &|commits| *commits = cut(commits, size - gone), None);
        scene.unseen_without_anchor(&store, &name);
        let kept = (size - gone) as u64;
        if kept < scene.saved_size {
            let report = scene.caught(&store, &name, kept..scene.saved_size);
            assert_eq!(report["first_wrong"]["index"], json!(kept));
        }
    }

    let removed = attacked(
        "removed",
        &|commits| {
            let (at, within) = place(commits, victim);
            commits[at].leaves.remove(within);
            commits[at].sealed.remove(within);
            commits.retain(|commit| !commit.leaves.is_empty());
        },
        None,
    );
    scene.caught(&removed, "removed", there.clone());

    let inserted = attacked(
        "inserted",
        &|commits| {
            let (at, within) = place(commits, victim);
            let mut forged = commits[at].leaves[within].clone();
            alter(&mut forged);
            commits[at].leaves.insert(within, forged);
            commits[at].sealed.insert(within, None);
        },
        None,
    );
    scene.caught(&inserted, "inserted", there.clone());

    // Another key, for the whole altered history: he has everything but ours.
    let theirs = LogKey::generate(&scene.origin).unwrap();
    scene.caught(&attacked("resigned", &altering, Some(&theirs)), "resigned", 0..there.end);

    // A dump from earlier, put back; and put back and gone on with.
    let restored = scene.dump.copy("restored");
    scene.unseen_without_anchor(&restored, "restored");
    let kept: usize = scene.dump.load().iter().map(|commit| commit.leaves.len()).sum();
    let report = scene.caught(&restored, "restored", kept as u64..scene.saved_size);
    assert_eq!(report["first_wrong"]["index"], json!(kept));

    // Two histories for two auditors, by somebody who has the key as well: only what they kept contradicts him.
    let fork = attacked("fork", &altering, Some(&scene.key));
    scene.unseen_without_anchor(&fork, "fork");
    scene.caught(&fork, "fork", there.clone());
    let other = scene.home.folder.path().join("saved-by-another");
    std::fs::write(&other, &fork.load().last().unwrap().checkpoint).unwrap();
    let (code, report) = scene.verify(&scene.store.copy("met"), "met", Some(&other), false);
    assert_eq!((code, &report["saved"][0]["consistent"]), (1, &json!(false)), "{report:#}");

    // The same dump, and the service gone on with beyond the auditor's checkpoint: longer, and not the same.
    let went_on = scene.dump.copy("went_on");
    std::fs::remove_file(scene.home.data().join("checkpoint")).unwrap();
    let running = Home::over(&scene.home).with("LOG__URL", went_on.url());
    let program = running.start();
    program.until_ready();
    for _ in 0..scene.saved_size as usize - kept + 20 {
        assert_eq!(program.app("POST", "/v1/sessions", Some(json!({}))).status, 201);
    }
    program.stop();
    scene.unseen_without_anchor(&went_on, "went_on");
    scene.caught(&went_on, "went_on", kept as u64..scene.saved_size);

    // What is beside the log. A sealed part put in another's place does not open; a key that is gone is named.
    let store = attacked(
        "sealed",
        &|commits| {
            let (a, b) = (place(commits, victim), place(commits, victim + 5));
            let part = commits[a.0].sealed[a.1].clone().map(|part| part.bytes);
            if let (Some(part), Some(sealed)) = (part, &mut commits[b.0].sealed[b.1]) {
                sealed.bytes = part;
            }
        },
        None,
    );
    let (code, report) = scene.verify(&store, "sealed", Some(&scene.saved), true);
    assert_eq!((code, &report["first_wrong"]["index"]), (1, &json!(victim + 5)), "{report:#}");
    let store = scene.store.copy("keyless");
    let key = commits[at].sealed[within].as_ref().unwrap().key;
    let literal =
        if matches!(store, Store::Sqlite(_)) { format!("x'{}'", key.uuid().simple()) } else { format!("'{key}'") };
    store.sql(&format!("DELETE FROM %data_key WHERE id = {literal}"));
    let (code, report) = scene.verify(&store, "keyless", Some(&scene.saved), true);
    assert_eq!((code, &report["erased"][0]["data_key"]), (0, &json!(key.to_string())), "{report:#}");
    assert_eq!(report["erased"][0]["recorded_at"], Value::Null, "no entry says that it was erased");
}

/// What a service at fault could have signed: the tree and every signature are good, and what the entries say is not.
#[test]
fn what_cannot_have_happened_is_named_though_it_is_well_signed() {
    let home = Home::new();
    std::fs::create_dir_all(home.data()).unwrap();
    let store = Store::Sqlite(home.data().join("log.db"));
    let mut scene = Scene::new(home, store);
    let commits = scene.store.load();
    let leaves: Vec<Leaf> = commits.iter().map(|commit| Leaf::decode(&commit.leaves[0]).unwrap()).collect();
    assert!(commits.iter().all(|commit| commit.leaves.len() == 1));
    // Nothing is revealed of a log that the outside checkpoint contradicts: that could not be recorded.
    scene.anchor = None;
    let version = |wanted: u64| {
        (400..leaves.len()).find(|at| leaves[*at].version == Some(session_model::Version(wanted))).unwrap()
    };
    let (second, third) = (version(2), version(3));
    let edited = |at: usize, edit: &dyn Fn(&mut Leaf)| {
        let mut commits = commits.clone();
        let mut leaf = leaves[at].clone();
        edit(&mut leaf);
        commits[at].leaves[0] = leaf.encode().unwrap();
        commits
    };
    let without = |at: usize| {
        let mut commits = commits.clone();
        commits.remove(at);
        commits
    };
    let with = |at: usize, edit: &dyn Fn(&mut Leaf)| {
        let mut commits = commits.clone();
        let mut leaf = leaves[at].clone();
        edit(&mut leaf);
        let commit = Commit { leaves: vec![leaf.encode().unwrap()], ..commits[at].clone() };
        commits.insert(at + 1, commit);
        commits
    };
    let cases: [(&str, Vec<Commit>, usize, &str); 7] = [
        ("gap", without(second), third - 1, "from version 1 to 3"),
        ("link", edited(third, &|leaf| leaf.previous.as_mut().unwrap().hash.0[0] ^= 1), third, "does not link"),
        ("begin", edited(second, &|leaf| leaf.previous = None), second, "begins a second time"),
        (
            "time",
            edited(second, &|leaf| leaf.time = session_model::Timestamp::from_micros(1)),
            second,
            "before that of",
        ),
        ("realm", edited(second, &|leaf| leaf.realm = "other".parse().unwrap()), second, "another realm"),
        (
            "action",
            edited(second, &|leaf| leaf.action = session_model::Action::SessionRenewed),
            second,
            "another event",
        ),
        (
            "after",
            with(third, &|leaf| {
                let previous = leaf.previous.as_mut().unwrap();
                previous.index = session_model::LeafIndex(third as u64);
                previous.hash = merkle_log::leaf_hash(&leaves[third].encode().unwrap());
                leaf.version = Some(session_model::Version(4));
            }),
            third + 1,
            "had ended in entry",
        ),
    ];
    for (name, commits, at, said) in cases {
        let store = scene.store.copy(name);
        store.replace(&commits, Some((&scene.origin, &scene.key)));
        let (code, report) = scene.verify(&store, name, None, true);
        assert_eq!(code, 1, "{name}: {report:#}");
        let named = report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|finding| finding["index"] == json!(at) && finding["what"].as_str().unwrap().contains(said));
        assert!(named, "{name}: entry {at} is not named for it: {report:#}");
    }
}

#[test]
fn every_attack_on_sqlite_is_caught() {
    let home = Home::new();
    std::fs::create_dir_all(home.data()).unwrap();
    let store = Store::Sqlite(home.data().join("log.db"));
    every_attack(&Scene::new(home, store));
}

#[test]
fn every_attack_on_postgresql_is_caught() {
    let home = Home::new();
    let url = database(&home);
    let home = home.with("LOG__URL", url.clone());
    let (code, said) = home.run(&["migrate"]);
    assert_eq!(code, Some(0), "{said}");
    every_attack(&Scene::new(home, Store::Postgres(url)));
}
