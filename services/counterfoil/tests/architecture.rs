//! The direction of dependencies (DESIGN section 9), read from `cargo metadata`: prose rots, this does not.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// For each crate of ours, which others of ours it may depend on. Arrows point one way: services -> api -> service -> ports ->
/// pure. An adapter has its port and the pure crates only; only the composition root names an adapter.
const MAY: &[(&str, &[&str])] = &[
    // Pure.
    ("session-model", &[]),
    ("merkle-log", &["session-model"]),
    ("sealing", &["merkle-log", "session-model"]),
    ("audit-export", &["session-model"]),
    ("time-stamp", &["session-model"]),
    ("witness", &["merkle-log", "sealing", "session-model"]),
    // Ports.
    ("cluster", &["sealing", "session-model"]),
    ("audit-log", &["merkle-log", "session-model"]),
    ("session-view", &["session-model"]),
    ("nonce-store", &["session-model"]),
    ("transient-store", &["session-model", "session-view"]),
    // Written from a reader of the log, for whoever takes it away.
    ("evidence", &["audit-log", "merkle-log", "session-model"]),
    ("retention", &["audit-log", "session-model"]),
    // What adapters of a port share.
    ("session-value", &["sealing", "session-model", "session-view"]),
    // Adapters.
    ("audit-log-sqlite", &["audit-log", "merkle-log", "session-model"]),
    ("audit-log-postgres", &["audit-log", "merkle-log", "nonce-store", "session-model"]),
    ("session-view-folder", &["session-model", "session-value", "session-view"]),
    (
        "session-view-redis",
        &["nonce-store", "sealing", "session-model", "session-value", "session-view", "transient-store"],
    ),
    ("cluster-multicast", &["cluster"]),
    ("cluster-postgres", &["cluster"]),
    ("cluster-redis", &["cluster"]),
    ("cluster-unicast", &["cluster"]),
    // A store made of two ports: what a node holds, and the nodes.
    ("transient-partner", &["cluster", "session-model", "transient-store"]),
    // Who vouches for people.
    ("oidc", &["http-client", "sealing", "session-model"]),
    // What auditors search with.
    ("audit-search", &["audit-log", "merkle-log", "sealing", "session-model"]),
    ("audit-sinks", &["audit-export", "audit-log", "http-client", "merkle-log", "session-model"]),
    ("anchors", &["audit-log", "http-client", "merkle-log", "sealing", "session-model", "time-stamp"]),
    // The service and who may ask it.
    (
        "session-service",
        &["audit-log", "cluster", "merkle-log", "sealing", "session-model", "session-view", "transient-store"],
    ),
    ("access", &["audit-log", "sealing", "session-model"]),
    // Mouths.
    ("api-http", &["access", "sealing", "session-model", "session-service"]),
    (
        "api-audit",
        &[
            "access",
            "api-http",
            "audit-export",
            "audit-log",
            "audit-search",
            "evidence",
            "merkle-log",
            "session-model",
            "session-service",
        ],
    ),
    ("api-rest", &["access", "api-audit", "api-http", "audit-log", "sealing", "session-model", "session-service"]),
    (
        "api-soap",
        &[
            "access",
            "api-http",
            "audit-log",
            "audit-search",
            "merkle-log",
            "nonce-store",
            "sealing",
            "session-model",
            "session-service",
        ],
    ),
    // The console reads through the auditor's interface; of the service it uses what keeps its visitors' own sessions.
    (
        "console",
        &[
            "access",
            "api-audit",
            "api-http",
            "audit-log",
            "audit-search",
            "merkle-log",
            "nonce-store",
            "oidc",
            "sealing",
            "session-model",
            "session-service",
        ],
    ),
    ("telemetry", &[]),
    ("http-client", &[]),
    // The offline verifier shares only pure crates with the server.
    ("counterfoil-verify", &["merkle-log", "session-model", "time-stamp"]),
    ("counterfoil-bench-cluster", &["cluster", "cluster-unicast", "sealing", "session-model"]),
    ("counterfoil-bench-peers", &[]),
    // What the tests run against.
    ("counterfoil-test-servers", &[]),
];

/// What the pure crates may not touch, however far down: no I/O, no runtime, no clock of their own.
const IMPURE: &[&str] = &["tokio", "actix-web", "sqlx", "redis", "openssl", "reqwest"];

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Each crate of the workspace with the names of what it depends on, tests aside.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let of = |package: &serde_json::Value| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
        normal.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
    };
    packages.map(|package| (package["name"].as_str().unwrap().to_owned(), of(package))).collect()
}

#[test]
fn arrows_point_one_way() {
    let all = dependencies();
    let ours: BTreeSet<&str> = all.keys().map(String::as_str).collect();
    for (name, depends_on) in &all {
        if name == "counterfoil" {
            continue;
        }
        let rule = MAY.iter().find(|(known, _)| known == name);
        let (_, allowed) = rule.unwrap_or_else(|| panic!("{name} has no rule: say here what it may depend on"));
        for dependency in depends_on.iter().filter(|dependency| ours.contains(dependency.as_str())) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn pure_crates_do_no_io() {
    let all = dependencies();
    for name in ["session-model", "merkle-log", "counterfoil-verify"] {
        for dependency in &all[name] {
            assert!(!IMPURE.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn only_the_composition_root_names_an_adapter() {
    for (name, depends_on) in dependencies() {
        for adapter in [
            "audit-log-sqlite",
            "audit-log-postgres",
            "session-view-folder",
            "session-view-redis",
            "cluster-multicast",
            "cluster-postgres",
            "cluster-redis",
            "cluster-unicast",
            "transient-partner",
            "audit-sinks",
            "anchors",
        ] {
            let may = name == "counterfoil" || name == "counterfoil-bench-cluster";
            assert!(may || !depends_on.contains(adapter), "{name} names {adapter}");
        }
    }
}
