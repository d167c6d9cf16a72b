//! Prints how fast frames come through Redis, and how late: `cargo run --release --example publish_rates redis://127.0.0.1:6379`.
#![expect(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, reason = "a program for measuring")]

use std::sync::Arc;
use std::time::Duration;

use cluster::{Audience, Incarnation, Received, Transport};
use cluster_redis::{RedisTransport, RedisTransportConfig};
use tokio::time::{Instant, sleep, timeout};

/// Bytes sent for each size of a frame, by one node to two others.
const BYTES: usize = 256 << 20;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let url = std::env::args().nth(1).unwrap_or_else(|| "redis://127.0.0.1:6379".to_owned());
    let open = |n| {
        let config = RedisTransportConfig { url: url.clone(), namespace: "rates".to_owned() };
        Arc::new(RedisTransport::open(config, Incarnation([n; 16])).unwrap())
    };
    let (one, others) = (open(1), [open(2), open(3)]);
    for transport in std::iter::once(&one).chain(&others) {
        while transport.describe().iter().filter(|line| line.contains(": connected")).count() < 2 {
            sleep(Duration::from_millis(5)).await;
        }
    }
    let begin = Instant::now();
    for size in [256, 1_024, 4_096, 16_384, 61_440] {
        let frames = (BYTES / size).min(200_000);
        let receiving = others.clone().map(|other| tokio::spawn(receive(other, frames, begin)));
        let start = Instant::now();
        for _ in 0..frames {
            let mut frame = vec![7; size];
            let now = begin.elapsed().as_nanos() as u64;
            frame.get_mut(..8).expect("larger than that").copy_from_slice(&now.to_be_bytes());
            while one.send(Audience::Everybody, &frame).is_err() {
                sleep(Duration::from_micros(100)).await;
            }
        }
        for receiving in receiving {
            let (mut late, last) = receiving.await.unwrap();
            late.sort_unstable();
            let at = |share: usize| late.get(late.len() * share / 100).copied().unwrap_or_default();
            let seconds = (last - start).as_secs_f64();
            println!(
                "{size} bytes: {} of {frames} frames, {:.0}/s, {:.0} MB/s; late by {:?}, p99 {:?}",
                late.len(),
                late.len() as f64 / seconds,
                (late.len() * size) as f64 / seconds / 1e6,
                at(50),
                at(99)
            );
        }
    }
}

/// How late each frame came, and when the last one did.
async fn receive(transport: Arc<RedisTransport>, frames: usize, begin: Instant) -> (Vec<Duration>, Instant) {
    let (mut late, mut last) = (Vec::new(), Instant::now());
    while late.len() < frames
        && let Ok(Some(received)) = timeout(Duration::from_secs(2), transport.receive()).await
    {
        if let Received::Frame(frame) = received
            && let Some(sent) = frame.first_chunk()
        {
            last = Instant::now();
            late.push(last.duration_since(begin).saturating_sub(Duration::from_nanos(u64::from_be_bytes(*sent))));
        }
    }
    (late, last)
}
