//! An object store that speaks the S3 API: `tests/object-store/run` starts one. Without `TEST_S3_ENDPOINT` these are skipped, and say so.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop")]

use std::sync::Arc;
use std::time::Duration;

use anchors::{Anchor, S3Anchor, S3Config, S3Retention};
use http_client::HttpClient;
use session_model::{Timestamp, TreeSize};

/// moto wants to see a signature, and does not verify it: that the signatures are right, the examples of the reference prove.
const SIGNED: (&str, &str) = (
    "authorization",
    "AWS4-HMAC-SHA256 Credential=test/20300101/us-east-1/s3/aws4_request,SignedHeaders=host,Signature=00",
);

fn store(bucket: &str) -> Option<(S3Anchor, String, HttpClient)> {
    let Ok(endpoint) = std::env::var("TEST_S3_ENDPOINT") else {
        eprintln!("SKIPPED: no object store to test with. Run tests/object-store/run, which starts one.");
        return None;
    };
    let client = HttpClient::new(Duration::from_secs(10), None).unwrap();
    // A bucket of its own: what was locked by an earlier run is there for good.
    let bucket = &format!("{bucket}-{}", std::process::id());
    let url = format!("{endpoint}/{bucket}");
    let made = client.send("PUT", &url, &[("x-amz-bucket-object-lock-enabled", "true")], &[]).unwrap();
    assert_eq!(made.status, 200, "{}", made.excerpt());
    let config = S3Config {
        endpoint,
        region: "us-east-1".into(),
        bucket: bucket.clone(),
        prefix: "a log & more/".into(),
        access_key: "test".into(),
        secret_key: "test".into(),
        retention: Some(S3Retention { compliance: true, days: 30 }),
        ca_file: None,
        timeout: Duration::from_secs(10),
        clock: Arc::new(|| Timestamp::from_micros(4_000_000_000_000_000)),
    };
    Some((S3Anchor::new(config).unwrap(), url, client))
}

#[test]
fn the_newest_checkpoint_comes_back_and_hiding_it_does_not_help() {
    let Some((anchor, url, client)) = store("counterfoil-newest") else { return };
    assert_eq!(anchor.newest().unwrap(), None);
    for size in [9, 10, 1_000, 99] {
        anchor.keep(TreeSize(size), &format!("checkpoint of {size}")).unwrap();
    }
    assert_eq!(anchor.newest().unwrap().as_deref(), Some("checkpoint of 1000"), "the largest, whatever came last");
    let key = format!("{url}/a%20log%20%26%20more/{:020}-1000.checkpoint", u64::MAX - 1_000);
    // A delete without a version puts a marker in front: what is locked stays, and is found.
    assert_eq!(client.send("DELETE", &key, &[SIGNED], &[]).unwrap().status, 204);
    assert_eq!(client.send("GET", &key, &[SIGNED], &[]).unwrap().status, 404, "hidden from who does not look behind");
    assert_eq!(anchor.newest().unwrap().as_deref(), Some("checkpoint of 1000"));
}

#[test]
fn what_was_put_is_locked() {
    let Some((anchor, url, client)) = store("counterfoil-locked") else { return };
    anchor.keep(TreeSize(7), "checkpoint of 7").unwrap();
    let key = format!("{url}/a%20log%20%26%20more/{:020}-7.checkpoint", u64::MAX - 7);
    let head = client.send("HEAD", &key, &[SIGNED], &[]).unwrap();
    let header =
        |name: &str| head.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap().to_owned();
    assert_eq!(header("x-amz-object-lock-mode"), "COMPLIANCE");
    assert!(header("x-amz-object-lock-retain-until-date").starts_with("2096-11-01"), "30 days after the clock's time");
    let version = header("x-amz-version-id");
    let removed = client.send("DELETE", &format!("{key}?versionId={version}"), &[SIGNED], &[]).unwrap();
    assert_eq!(removed.status, 403, "{}", removed.excerpt());
}

#[test]
fn a_bucket_that_is_not_there_is_an_error_and_not_an_empty_one() {
    let Some((_, url, _)) = store("counterfoil-there") else { return };
    let endpoint = url.rsplit_once('/').unwrap().0.to_owned();
    let config = S3Config {
        endpoint,
        region: "us-east-1".into(),
        bucket: "counterfoil-not-there".into(),
        prefix: String::new(),
        access_key: "test".into(),
        secret_key: "test".into(),
        retention: None,
        ca_file: None,
        timeout: Duration::from_secs(10),
        clock: Arc::new(|| Timestamp::from_micros(4_000_000_000_000_000)),
    };
    let anchor = S3Anchor::new(config).unwrap();
    let failure = anchor.newest().unwrap_err().to_string();
    assert!(failure.contains("404") && failure.contains("NoSuchBucket"), "{failure}");
    assert!(anchor.keep(TreeSize(1), "x").is_err());
}
