//! Prints how fast the view is: `cargo run --release --example redis_rates redis://127.0.0.1:6379`. Leaves its keys behind
//! under the namespace `rates`.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for measuring")]

use std::sync::Arc;
use std::time::Duration;

use session_model::{Attributes, Limits, Session};
use session_view::SessionView;
use session_view::test_util::{at, id, session};
use session_view_redis::{RedisView, RedisViewConfig};
use tokio::time::{Instant, sleep};

const SESSIONS: u64 = 100_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let url = std::env::args().nth(1).unwrap_or_else(|| "redis://127.0.0.1:6379".to_owned());
    let mut config = RedisViewConfig::new(url, "rates", [1; 32]);
    config.operation_timeout = Duration::from_secs(5);
    config.near_cache_bytes = 256 << 20;
    let view = Arc::new(RedisView::connect(config).await.unwrap());
    while !view.is_tracking() {
        sleep(Duration::from_millis(1)).await;
    }
    let attributes = Attributes::parse(r#"{"cart":17,"theme":"dark","locale":"de-AT"}"#, &Limits::default()).unwrap();
    let base = Instant::now();
    let mut index = u64::from(std::process::id()) << 24;
    for batch in [1, 8, 32, 128, 512, 2_048] {
        let states: Vec<_> = (0..SESSIONS.min(batch * 2_000))
            .map(|n| {
                index += 1;
                Arc::new(Session { attributes: attributes.clone(), ..session(n, index) })
            })
            .collect();
        let start = Instant::now();
        for states in states.chunks(batch as usize) {
            let _ = view.apply(states).await.unwrap();
        }
        let rate = states.len() as f64 / start.elapsed().as_secs_f64();
        println!("apply, batches of {batch}, one at a time: {rate:.0} sessions/s");
    }
    for clients in [1, 32, 256] {
        let start = Instant::now();
        let lanes = (0..clients).map(|lane| {
            let view = Arc::clone(&view);
            tokio::spawn(async move {
                for n in 0..100_000 / clients {
                    assert!(view.get(id((n * clients + lane) % SESSIONS)).await.unwrap().is_some());
                }
            })
        });
        for lane in lanes.collect::<Vec<_>>() {
            lane.await.unwrap();
        }
        println!("get, {clients} clients: {:.0}/s", 100_000.0 / start.elapsed().as_secs_f64());
    }
    let uses: Vec<_> = (0..SESSIONS).map(|n| (id(n), at(100 + base.elapsed().as_secs() as i64))).collect();
    let start = Instant::now();
    for uses in uses.chunks(256) {
        view.mark_used(uses).await.unwrap();
    }
    println!("marks, batches of 256: {:.0}/s", SESSIONS as f64 / start.elapsed().as_secs_f64());
    for n in 0..50_000 {
        let _ = view.get(id(n)).await.unwrap();
    }
    let ids: Vec<_> = (0..50_000).map(id).collect();
    let start = Instant::now();
    let found: usize = (0..40).map(|_| ids.iter().filter(|id| view.peek(**id).is_some()).count()).sum();
    let rate = 2_000_000.0 / start.elapsed().as_secs_f64();
    println!("peek: {rate:.0}/s ({:.0} % found), {:?}", found as f64 / 20_000.0, view.status());
}
