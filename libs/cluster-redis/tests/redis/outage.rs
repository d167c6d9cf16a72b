//! Redis goes, comes back, closes connections, becomes a replica.

use std::time::Duration;

use cluster::{Audience, SendError, Transport};
use tokio::time::{Instant, sleep};

use crate::support::{Line, PATIENCE, Server, connected, empty, life, open, reaches, told_of_loss};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_may_come_later_go_and_come_back() {
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
        server.kill();
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
async fn a_connection_that_redis_closes_is_made_again_and_what_it_missed_is_told_of() {
    let server = Server::started().await;
    let (one, other) = (open(&server.url(), "ns", life(1)), open(&server.url(), "ns", life(2)));
    reaches(&one, &other, b"first").await;
    empty(&other).await;
    server.run(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    told_of_loss(&other).await;
    reaches(&one, &other, b"heard again").await;
    // That which publishes: nobody need be told, what it could not send is sent again.
    connected(&one).await;
    connected(&other).await;
    empty(&other).await;
    server.run(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    assert!(!reaches(&one, &other, b"sent again").await, "the listener was not disturbed");
}

/// Redis closes the connection of a subscriber for which it would have to keep too much. Here the line stands still, as for a process that is stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_was_too_slow_is_told_of_what_it_missed() {
    let server = Server::started().await;
    server.run(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0"]).await;
    let line = Line::to(server.port).await;
    let one = open(&server.url(), "ns", life(1));
    let slow = open(&format!("redis://127.0.0.1:{}", line.port), "ns", life(2));
    reaches(&one, &slow, b"first").await;
    empty(&slow).await;
    line.stop(true);
    let frame = vec![7; 50_000];
    let closed = |description: Vec<String>| description.iter().any(|line| line.contains(": not connected"));
    let until = Instant::now() + PATIENCE;
    // The line's own buffers and the kernel's take some megabytes first.
    while subscribers(&server).await > 1 {
        let _dropped_if_there_is_no_room = one.send(Audience::Everybody, &frame);
        assert!(Instant::now() < until, "Redis has not closed the connection");
    }
    line.stop(false);
    told_of_loss(&slow).await;
    assert!(!closed(one.describe()), "the one that is quick has noticed nothing: {:?}", one.describe());
    reaches(&one, &slow, b"heard again").await;
}

/// How many connections have subscribed to what all hear.
async fn subscribers(server: &Server) -> u64 {
    let mut command = redis::cmd("PUBSUB");
    command.arg("NUMSUB").arg("{ns}:cluster:all");
    let (_, number): (String, u64) = command.query_async(&mut server.raw().await).await.unwrap();
    number
}

/// After a failover a URL may lead to a server that is no longer, or not yet, the master.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_through_a_replica() {
    let (master, server) = (Server::started().await, Server::started().await);
    let (one, other) = (open(&server.url(), "ns", life(1)), open(&server.url(), "ns", life(2)));
    reaches(&one, &other, b"first").await;
    empty(&other).await;
    server.run(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]).await;
    let until = Instant::now() + PATIENCE;
    while !one.describe().iter().skip(1).all(|line| line.contains("replica")) {
        assert!(Instant::now() < until, "{:?}", one.describe());
        sleep(Duration::from_millis(20)).await;
    }
    assert!(one.send(Audience::Everybody, b"nobody hears this").is_err());
    server.run(&["REPLICAOF", "NO", "ONE"]).await;
    assert!(reaches(&one, &other, b"again").await, "told that it was away");
}

/// What docs/cluster.md says that a Redis user needs is enough, and one whom Redis does not let in is told why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_few_rights_will_do() {
    let server = Server::started().await;
    let user = async |name: &str, channels: &str| {
        let rights = ["on", ">secret", "+hello", "+publish", "+subscribe", "resetchannels", channels];
        server.run(&[&["ACL", "SETUSER", name], &rights[..]].concat()).await;
        format!("redis://{name}:secret@127.0.0.1:{}", server.port)
    };
    let url = user("few", "&{ns}:cluster:*").await;
    let (one, other) = (open(&url, "ns", life(1)), open(&url, "ns", life(2)));
    reaches(&one, &other, b"enough").await;
    let stranger = open(&user("stranger", "&{other}:cluster:*").await, "ns", life(3));
    let until = Instant::now() + PATIENCE;
    while !stranger.describe().iter().skip(1).all(|line| line.contains("channel")) {
        assert!(Instant::now() < until, "{:?}", stranger.describe());
        sleep(Duration::from_millis(20)).await;
    }
    assert!(stranger.send(Audience::Everybody, b"not let in").is_err());
}
