//! Who goes, and how soon that is seen.

use std::process::Stdio;
use std::time::Duration;

use cluster::{Audience, Received, Transport};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{LONG, free_ports, life, open, plain, sees_go};

/// The process that is killed: a node that speaks until it dies. Run by the test below.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run as a process of its own"]
async fn a_node_in_a_process_of_its_own() {
    let (Ok(listen), Ok(peer)) = (std::env::var("NODE_LISTEN"), std::env::var("NODE_PEER")) else { return };
    let node = open(2, plain(&listen, &[peer])).await;
    loop {
        node.send(Audience::Everybody, b"alive").unwrap();
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_is_seen_to_go_at_once() {
    let [a, b] = free_ports();
    let one = open(1, plain(&a, &[])).await;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "going::a_node_in_a_process_of_its_own", "--ignored"])
        .envs([("NODE_LISTEN", &b), ("NODE_PEER", &a)])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let heard = async { while one.receive().await != Some(Received::Frame(b"alive".to_vec())) {} };
    timeout(LONG, heard).await.expect("hears the process");
    child.start_kill().unwrap();
    let killed = Instant::now();
    assert!(sees_go(&one, life(2), Duration::from_secs(1)).await, "sees it go");
    eprintln!("kill -9 was seen after {:?}", killed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_when_a_node_goes_is_sent_before() {
    let [a, b] = free_ports();
    let one = open(1, plain(&a, std::slice::from_ref(&b))).await;
    let other = open(2, plain(&b, &[])).await;
    assert!(crate::support::hears(&other, &one, LONG).await);
    for number in 0..1_000_u32 {
        one.send(Audience::Everybody, &[number.to_be_bytes().as_slice(), &[0; 10_000]].concat()).unwrap();
    }
    one.close().await;
    let mut heard = 0;
    while heard < 1_000 {
        match timeout(LONG, other.receive()).await {
            Ok(Some(Received::Frame(frame))) if frame.len() > 10_000 => heard += 1,
            Ok(Some(Received::Frame(_))) => {}
            // Departures go before frames.
            Ok(Some(Received::Departed(who))) => assert_eq!(who, life(1)),
            end => panic!("{end:?} after {heard}"),
        }
    }
}
