//! Three processes on one log, over each transport: a session moves between them and survives the death of one.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::{APPLICATION, Home, Program, database, redis};
use crate::soap::Identity;

/// What a transport needs beside its name.
pub(crate) fn over(transport: &str, configure: impl Fn(Home, usize) -> Home) -> (Vec<Home>, Vec<Program>) {
    let first = Home::new();
    let url = database(&first);
    let keys = first.folder.path().join("keys").display().to_string();
    let settings = first.environment.clone();
    let mut first = Some(first);
    let homes: Vec<Home> = (1..=3)
        .map(|n| {
            let home = first
                .take()
                .unwrap_or_else(|| Home { folder: tempfile::tempdir().unwrap(), environment: settings.clone() });
            let home = home
                .with("NODE", format!("node-{n}"))
                .with("LOG__URL", &url)
                .with("KEYS__DIR", &keys)
                .with("CLUSTER__TRANSPORT", transport)
                .with("CLUSTER__NODES", "3");
            configure(home, n)
        })
        .collect();
    let (code, said) = homes[0].run(&["migrate"]);
    assert_eq!(code, Some(0), "{said}");
    let programs = homes.iter().map(Home::start).collect();
    (homes, programs)
}

pub(crate) fn cluster(program: &Program) -> Value {
    program.ask("GET", "/cluster", &[], None).unwrap().json()
}

pub(crate) fn until(what: impl Fn() -> bool, why: &str) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(30), "{why}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn presence(program: &Program, node: &str) -> Option<String> {
    let status = cluster(program);
    // The newest life of it.
    let members = status["members"].as_array().unwrap().iter().filter(|member| member["node"] == node);
    let newest = members.min_by_key(|member| member["known_s"].as_u64());
    newest.map(|member| member["presence"].as_str().unwrap().to_owned())
}

/// The walk that a newcomer takes.
fn a_session_moves_and_survives(transport: &str, configure: impl Fn(Home, usize) -> Home) {
    let (homes, mut programs) = over(transport, configure);
    until(|| programs.iter().all(|node| cluster(node)["up"] == 3), "three found one another");
    let created =
        programs[0].app("POST", "/v1/sessions", Some(json!({"subject": "ada", "attributes": {"n": 0}}))).json();
    let (id, token) = (created["id"].as_str().unwrap(), created["token"].as_str().unwrap());
    let path = format!("/v1/sessions/{id}");

    // Each change at another node than the last, which sees all that went before.
    for round in 1..=12 {
        let node = &programs[round % 3];
        let changed = node.app("PATCH", &path, Some(json!({"n": round})));
        assert_eq!(changed.status, 200, "{}", changed.text);
        let index = changed.header("Counterfoil-Index").to_owned();
        let bearer = format!("Bearer {APPLICATION}");
        let reader = &programs[(round + 1) % 3];
        let headers = [("Authorization", bearer.as_str()), ("Counterfoil-Min-Index", index.as_str())];
        let read = reader.ask("GET", &path, &headers, None).unwrap();
        assert_eq!(read.json()["attributes"]["n"], round, "{}", read.text);
    }

    programs.remove(0).kill();
    until(|| presence(&programs[0], "node-1").as_deref() != Some("up"), "its death is seen");
    let validate = json!({ "token": token });
    let worth = programs[0].app("POST", "/v1/sessions/validate", Some(validate.clone())).json();
    assert_eq!(worth["active"], true, "{worth}");
    assert_eq!(programs[1].app("DELETE", &path, None).status, 200);

    let again = homes[0].start();
    until(|| presence(&programs[0], "node-1").as_deref() == Some("up"), "its new life is seen");
    until(|| cluster(&again)["up"] == 3, "it sees the others");
    let worth = again.app("POST", "/v1/sessions/validate", Some(validate)).json();
    assert_eq!(worth["active"], false, "{worth}");

    // What operators look at.
    let verbose = again.ask("GET", "/readyz?verbose", &[], None).unwrap().json();
    assert_eq!(verbose["cluster"]["transport"], transport, "{verbose}");
    assert_eq!(verbose["view"]["in_doubt"], Value::Null, "{verbose}");
    assert!(verbose["view"]["staleness_seconds"].as_f64().is_some_and(|seconds| seconds < 2.0), "{verbose}");
    let metrics = again.ask("GET", "/metrics", &[], None).unwrap().text;
    let shown = [
        "cluster_members_up 3",
        "view_in_doubt{reason=\"stale\"} 0",
        "session_reads_from_log_total{reason=\"stale\"} 0",
        "audit_contended_batches_total{outcome=\"in_turn\"}",
    ];
    assert!(shown.iter().all(|line| metrics.contains(line)), "{metrics}");
    let (code, said) =
        homes[0].run(&["cluster", "status", "--address", again.management.trim_start_matches("http://")]);
    assert!(code == Some(0) && said.contains("3 up of 3") && said.contains("node-2"), "{said}");
    let (code, said) = homes[0].run(&["cluster", "check", "--seconds", "3"]);
    assert!(code == Some(0) && said.contains("3 nodes hear us and are heard"), "{said}");

    // A node that is told to stop says so.
    again.stop();
    until(|| presence(&programs[0], "node-1").as_deref() == Some("gone"), "it is seen to leave");
    drop(homes);
}

#[test]
fn over_postgres() {
    a_session_moves_and_survives("postgres", |home, _| home);
}

#[test]
fn over_redis() {
    a_session_moves_and_survives("redis", |home, _| home.with("CLUSTER__REDIS__URL", redis()));
}

#[test]
fn over_redis_with_the_view_there_too() {
    a_session_moves_and_survives("redis", |home, _| home.with("VIEW__URL", redis()));
}

#[test]
fn over_multicast() {
    // A group for this process alone, on loopback.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let group = format!("239.255.{high}.{low}:{}", 20_000 + u16::from_be_bytes([high, low]) % 20_000);
    a_session_moves_and_survives("multicast", move |home, _| {
        home.with("CLUSTER__MULTICAST__GROUP", &group).with("CLUSTER__MULTICAST__INTERFACE", "127.0.0.1")
    });
}

#[test]
fn over_unicast_with_certificates() {
    over_links_with_certificates("unicast");
}

#[test]
fn over_partner_with_certificates() {
    over_links_with_certificates("partner");
}

/// Addresses that were free a moment ago, one for each node, with ports below those that clients are given: any connection made meanwhile could take one of these.
pub(crate) fn links<const N: usize>() -> [String; N] {
    let listeners = [0; N].map(|_| {
        loop {
            let mut random = [0; 2];
            openssl::rand::rand_bytes(&mut random).unwrap();
            let port = 2_000 + u16::from_be_bytes(random) % 9_000;
            if let Ok(listener) = std::net::TcpListener::bind(("127.0.0.1", port)) {
                break listener;
            }
        }
    });
    listeners.map(|listener| listener.local_addr().unwrap().to_string())
}

/// Has each of `N` nodes listen at a link, with a certificate of one authority.
pub(crate) fn linked_by_certificates<const N: usize>() -> impl Fn(Home, usize) -> Home {
    let authority = Identity::new("authority", None);
    let folder = tempfile::tempdir().unwrap();
    let addresses = links::<N>();
    move |home, n| {
        let file = |name: &str, pem: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, pem).unwrap();
            path.display().to_string()
        };
        let own = Identity::new(&format!("node-{n}"), Some(&authority));
        home.with("CLUSTER__UNICAST__LISTEN", format!("[\"{}\"]", addresses[n - 1]))
            .with("CLUSTER__UNICAST__PEERS", format!("[\"{}\"]", addresses.join("\",\"")))
            .with("CLUSTER__UNICAST__CA_FILE", file("ca.pem", &authority.certificate.to_pem().unwrap()))
            .with("CLUSTER__UNICAST__CERTIFICATE_FILE", file(&format!("{n}.pem"), &own.certificate.to_pem().unwrap()))
            .with("CLUSTER__UNICAST__KEY_FILE", file(&format!("{n}.key"), &own.key.private_key_to_pem_pkcs8().unwrap()))
    }
}

fn over_links_with_certificates(transport: &str) {
    let linked = linked_by_certificates::<3>();
    a_session_moves_and_survives(transport, |home, n| {
        linked(home, n)
            .with("CLUSTER__REQUIRE_ENCRYPTED_LINK", "true")
            .with("CLUSTER__REQUIRE_PEER_CERTIFICATES", "true")
    });
}

/// A list of one certificate that its authority has taken back.
fn revoked(authority: &Identity, certificate: &Identity) -> Vec<u8> {
    use openssl::asn1::Asn1Time;
    use openssl::x509::extension::{AuthorityKeyIdentifier, CrlNumber};
    use openssl::x509::{X509, X509CrlBuilder, X509RevokedBuilder};
    let (now, later) = (Asn1Time::days_from_now(0).unwrap(), Asn1Time::days_from_now(1).unwrap());
    let mut list = X509CrlBuilder::new().unwrap();
    list.set_issuer_name(authority.certificate.subject_name()).unwrap();
    list.set_last_update(&now).unwrap();
    list.set_next_update(&later).unwrap();
    let nobody = X509::builder().unwrap();
    let context = nobody.x509v3_context(Some(&authority.certificate), None);
    let issuer = AuthorityKeyIdentifier::new().issuer(true).build(&context).unwrap();
    list.append_extension(issuer).unwrap();
    let number = CrlNumber::new(openssl::bn::BigNum::from_u32(1).unwrap()).unwrap();
    list.append_extension(number.build().unwrap()).unwrap();
    let mut one = X509RevokedBuilder::new().unwrap();
    one.set_serial_number(certificate.certificate.serial_number()).unwrap();
    one.set_revocation_date(&now).unwrap();
    list.add_revoked(one.build()).unwrap();
    list.sign(&authority.key, openssl::hash::MessageDigest::sha256()).unwrap();
    list.build().unwrap().to_pem().unwrap()
}

#[test]
fn a_node_whose_certificate_was_revoked_is_refused_and_both_say_so() {
    let authority = Identity::new("authority", None);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: Vec<u8>| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let ca = file("ca.pem", authority.certificate.to_pem().unwrap());
    let [address] = links();
    let secured = |home: Home, own: &Identity, name: &str| {
        let certificate = file(&format!("{name}.pem"), own.certificate.to_pem().unwrap());
        let key = file(&format!("{name}.key"), own.key.private_key_to_pem_pkcs8().unwrap());
        home.with("CLUSTER__TRANSPORT", "unicast")
            .with("CLUSTER__UNICAST__CA_FILE", &ca)
            .with("CLUSTER__UNICAST__CERTIFICATE_FILE", certificate)
            .with("CLUSTER__UNICAST__KEY_FILE", key)
    };
    let (own, lost) = (Identity::new("node-1", Some(&authority)), Identity::new("node-2", Some(&authority)));
    let first = Home::new();
    let keys = first.folder.path().join("keys").display().to_string();
    let environment = first.environment.clone();
    let home = secured(first, &own, "node-1")
        .with("KEYS__DIR", &keys)
        .with("CLUSTER__UNICAST__LISTEN", format!("[\"{address}\"]"))
        .with("CLUSTER__UNICAST__CRL_FILE", file("crl.pem", revoked(&authority, &lost)));
    let node = home.start();
    let checking = |own: &Identity, name: &str| {
        let other = Home { folder: tempfile::tempdir().unwrap(), environment: environment.clone() };
        let other = secured(other, own, name)
            .with("KEYS__DIR", &keys)
            .with("CLUSTER__UNICAST__PEERS", format!("[\"{address}\"]"));
        other.run(&["cluster", "check", "--seconds", "2"])
    };
    let (code, said) = checking(&lost, "node-2");
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("it refuses us: certificate revoked"), "{said}");
    let state = cluster(&node)["state"].to_string();
    assert!(state.contains("not let in from 127.0.0.1") && state.contains("certificate revoked"), "{state}");
    let (code, said) = checking(&own, "node-1-again");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("certificate of node-1"), "{said}");
    node.stop();
}

#[test]
fn a_node_that_is_alone_says_why() {
    let home = Home::new().with("CLUSTER__TRANSPORT", "redis").with("CLUSTER__REDIS__URL", redis());
    let alone = home.start();
    assert_eq!(cluster(&alone)["up"], 1);
    let other = Home::new().with("CLUSTER__TRANSPORT", "none");
    let nobody = other.start();
    assert_eq!(nobody.ask("GET", "/cluster", &[], None).unwrap().status, 404);
    alone.stop();
    let (code, said) = home.run(&["cluster", "check", "--seconds", "1"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("nothing was heard from anybody"), "{said}");
}

#[test]
fn a_transport_that_lacks_what_is_required_is_refused() {
    let home = Home::new().with("CLUSTER__TRANSPORT", "redis").with("CLUSTER__REDIS__URL", "redis://127.0.0.1:1");
    let home = home.with("CLUSTER__REQUIRE_PEER_CERTIFICATES", "true");
    let (code, said) = home.run(&["serve"]);
    assert!(code == Some(1) && said.contains("cluster.require_peer_certificates"), "{said}");
    let home = Home::new().with("CLUSTER__TRANSPORT", "postgres");
    let (code, said) = home.run(&["serve"]);
    assert!(code == Some(1) && said.contains("SQLite"), "{said}");
}

/// The keys of the file change while the nodes run: first both know both, then both seal with the new one, then the old one goes.
#[test]
fn keys_are_rotated_while_the_nodes_run() {
    let home = Home::new();
    let new_key = || home.run(&["cluster", "new-key"]).1.trim().to_owned();
    let (old, new) = (new_key(), new_key());
    assert!(old.len() == 64 && old != new);
    let file = home.folder.path().join("cluster.keys");
    let write = |lines: &[&str]| {
        let next = file.with_extension("next");
        std::fs::write(&next, format!("# the first seals\n{}\n", lines.join("\n"))).unwrap();
        std::fs::rename(&next, &file).unwrap();
    };
    write(&[&old]);
    let (_homes, programs) = over("redis", |home, _| {
        home.with("CLUSTER__REDIS__URL", redis()).with("CLUSTER__KEYS_FILE", file.display().to_string())
    });
    until(|| programs.iter().all(|node| cluster(node)["up"] == 3), "three found one another");
    let first = cluster(&programs[0])["keys"][0].clone();
    for (lines, count) in [(vec![&*old, &*new], 2), (vec![&*new, &*old], 2), (vec![&*new], 1)] {
        write(&lines);
        let sealing = |node: &Program| cluster(node)["keys"].clone();
        until(
            || {
                let all: Vec<Value> = programs.iter().map(sealing).collect();
                all.iter().all(|keys| keys == &all[0] && keys.as_array().unwrap().len() == count)
                    && (lines[0] == old) == (all[0][0] == first)
            },
            "every node took the keys up",
        );
        assert!(programs.iter().all(|node| cluster(node)["up"] == 3), "nobody was lost");
    }
    let refused = cluster(&programs[0])["frames"]["rejected"]["foreign_key"].clone();
    assert_eq!(refused, 0, "a frame was sealed with a key that somebody did not have");
}
