//! The server goes, comes back, and ends connections.

use std::time::Duration;

use cluster::{Audience, Received, SendError, Transport};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Namespace, PATIENCE, Server, connected, empty, life, open, reaches, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_may_come_later_go_and_come_back() {
    let mut server = Server::new();
    let (one, other) = (open(&server.url(), "ns", life(1)), open(&server.url(), "ns", life(2)));
    let early = one.send(Audience::Everybody, b"nobody hears this");
    assert!(matches!(early, Err(SendError::Unavailable(_))), "{early:?}");
    server.start().await;
    reaches(&one, &other, b"first").await;
    reaches(&other, &one, b"and back").await;
    for round in 0..2 {
        for transport in [&one, &other] {
            connected(transport).await;
            empty(transport).await;
        }
        server.stop();
        let until = Instant::now() + PATIENCE;
        while one.send(Audience::Everybody, b"lost").is_ok() {
            assert!(Instant::now() < until, "still sending to nobody");
            sleep(Duration::from_millis(20)).await;
        }
        server.start().await;
        let again = format!("again {round}");
        assert!(reaches(&one, &other, again.as_bytes()).await, "told that it was away, before it hears anything");
        assert!(reaches(&other, &one, again.as_bytes()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_server_ends_is_made_again_and_what_it_missed_is_told_of() {
    let namespace = Namespace::new().await;
    let terminate = async |what: &str| {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name = '{}' AND query LIKE '{what}%'",
            namespace.name
        );
        run(&namespace.url, &sql).await;
    };
    let (one, other) = (open(&namespace.url, &namespace.name, life(1)), open(&namespace.url, &namespace.name, life(2)));
    reaches(&one, &other, b"first").await;
    connected(&one).await;
    empty(&other).await;
    // Those that listen, both of them.
    terminate("LISTEN").await;
    let told = async { while other.receive().await.unwrap() != Received::Lost {} };
    assert!(timeout(PATIENCE, told).await.is_ok(), "{:?}", other.describe());
    reaches(&one, &other, b"heard again").await;
    // Those that notify: nobody need be told, what could not be sent is sent again.
    connected(&one).await;
    connected(&other).await;
    empty(&other).await;
    terminate("SELECT pg_").await;
    assert!(!reaches(&one, &other, b"sent again").await, "the listener was not disturbed");
    let made = |description: Vec<String>| description.iter().filter(|line| line.contains("connected 2 times")).count();
    assert_eq!(made(one.describe()), 2, "{:?}", one.describe());
}
