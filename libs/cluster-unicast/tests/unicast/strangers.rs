//! What comes to the port that is no node, or one that does not behave.

use std::time::Duration;

use cluster::{Audience, Received, Transport};
use cluster_unicast::UnicastConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Authority, LONG, connections, free_ports, hears, life, open, plain, says, sees_go, tls};

/// What a node of the test's cluster says first: magic and version, kind, length; cluster, incarnation, no addresses.
fn hello(n: u8) -> Vec<u8> {
    let body = [[0, 4].as_slice(), b"test", &[n; 16], &[0]].concat();
    [b"CFL\x01".as_slice(), &[0, 0, body.len() as u8], &body].concat()
}

const ALIVE: [u8; 4] = [2, 0, 0, 0];

/// Whether the connection is ended by the other side within the time.
async fn is_ended(stream: &mut TcpStream, within: Duration) -> bool {
    let ended = async {
        let mut buffer = [0; 4_096];
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    timeout(within, ended).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_node_is_let_go() {
    let authority = Authority::new();
    let [a, b, c] = free_ports();
    let bare = open(1, plain(&a, &[])).await;
    let secure = open(2, tls(&b, &[], authority.valid("one"))).await;
    let noise: Vec<u8> = (0..100_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let long_hello = [b"CFL\x01".as_slice(), &[0, 0xff, 0xff], &[7; 70_000]].concat();
    for at in [&a, &b] {
        for bytes in [
            noise.as_slice(),
            b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
            &[0; 1_000],
            &long_hello,
            &[0x16, 3, 1, 0, 5, 1],
        ] {
            let mut stream = TcpStream::connect(at).await.unwrap();
            let _may_be_ended_before = stream.write_all(bytes).await;
            // The last is not whole: it ends when patience does.
            assert!(is_ended(&mut stream, Duration::from_secs(3)).await, "{:?}", &bytes[..4]);
        }
    }
    says(&bare, "not let in from 127.0.0.1").await;
    says(&secure, "not let in from 127.0.0.1").await;
    let other = open(3, plain(&c, &[a])).await;
    assert!(hears(&other, &bare, LONG).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_looks_whether_somebody_is_there_is_not_worth_a_word() {
    let authority = Authority::new();
    let [a, b] = free_ports();
    let bare = open(1, plain(&a, &[])).await;
    let secure = open(2, tls(&b, &[], authority.valid("one"))).await;
    for at in [&a, &b] {
        drop(TcpStream::connect(at).await.unwrap());
        // After it, one that is worth a word.
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"no node").await.unwrap();
    }
    for node in [bare, secure] {
        says(&node, "not let in from 127.0.0.1").await;
        says(&node, "; 1 times").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_frame_ends_the_connection() {
    let [a] = free_ports();
    let one = open(1, plain(&a, &[])).await;
    for unit in [&[1, 0xff, 0xff, 0xff, 7, 7][..], &[99, 0, 0, 0], &[3, 0, 0, 2, 1, 1], &[2, 0, 0, 1, 0]] {
        let mut stream = TcpStream::connect(&a).await.unwrap();
        stream.write_all(&hello(9)).await.unwrap();
        stream.write_all(&[1, 0, 0, 2, b'o', b'k']).await.unwrap();
        let heard = async { while one.receive().await != Some(Received::Frame(b"ok".to_vec())) {} };
        timeout(LONG, heard).await.unwrap();
        stream.write_all(unit).await.unwrap();
        assert!(is_ended(&mut stream, Duration::from_secs(1)).await, "{unit:?}");
        assert!(sees_go(&one, life(9), LONG).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_let_go_and_keeps_nobody_out() {
    let authority = Authority::new();
    let [a, b] = free_ports();
    let one = open(1, tls(&a, std::slice::from_ref(&b), authority.valid("one"))).await;
    let mut slow = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(&a).await.unwrap();
        let _may_be_ended_before = stream.write_all(&[0x16]).await;
        slow.push(stream);
    }
    // While they take all the room that their address has, the node still dials.
    let began = Instant::now();
    let other = open(2, tls(&b, &[], authority.valid("other"))).await;
    assert!(hears(&one, &other, Duration::from_secs(2)).await, "{:?}", one.describe());
    says(&one, "too many connect at once").await;
    for stream in &mut slow {
        assert!(is_ended(stream, Duration::from_secs(5)).await);
    }
    assert!(began.elapsed() < Duration::from_secs(6));
    says(&one, "it does not say who it is in time").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_stops_reading_slows_nobody() {
    let [a, b] = free_ports();
    // A lease that does not end this before it was seen.
    let patient = |config: UnicastConfig| UnicastConfig { lease: Duration::from_secs(60), ..config };
    let one = open(1, patient(plain(&a, &[]))).await;
    let other = open(2, patient(plain(&b, std::slice::from_ref(&a)))).await;
    assert!(hears(&other, &one, LONG).await);
    let mut stuck = TcpStream::connect(&a).await.unwrap();
    stuck.write_all(&hello(9)).await.unwrap();
    says(&one, "2 nodes").await;
    let frame = vec![7; 50_000];
    let (mut longest, mut heard) = (Duration::ZERO, 0);
    for number in 0..3_000 {
        let began = Instant::now();
        one.send(Audience::Everybody, &frame).unwrap();
        longest = longest.max(began.elapsed());
        while number - heard > 20 {
            let next = timeout(LONG, other.receive()).await;
            assert_eq!(next, Ok(Some(Received::Frame(frame.clone()))), "{number}");
            heard += 1;
        }
    }
    assert!(longest < Duration::from_millis(500), "{longest:?}");
    let dropped = one.describe().into_iter().find(|line| line.starts_with(&format!("for {} ", life(9)))).unwrap();
    assert!(!dropped.contains("; 0 were"), "{dropped}");
    // It is told that it misses some only by what it lacks; whoever reads on gets what there is room for.
    stuck.write_all(&ALIVE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_for_the_lease_is_let_go() {
    let [a] = free_ports();
    let lease = Duration::from_millis(500);
    let one = open(1, UnicastConfig { lease, ..plain(&a, &[]) }).await;
    let mut stream = TcpStream::connect(&a).await.unwrap();
    stream.write_all(&hello(9)).await.unwrap();
    // As long as it gives a sign it stays.
    for _ in 0..8 {
        stream.write_all(&ALIVE).await.unwrap();
        sleep(lease / 4).await;
    }
    assert_eq!(connections(&one), 1);
    let silent = Instant::now();
    assert!(sees_go(&one, life(9), LONG).await);
    assert!(silent.elapsed() < lease * 2, "{:?}", silent.elapsed());
    assert_eq!(connections(&one), 0);
}
