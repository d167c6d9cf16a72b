//! How many states a second the views apply and answer, one after the other in one run:
//! `cargo run --release -p session-view-folder --example rates -- FOLDER redis://127.0.0.1:6379`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement ends at the first failure, and prints")]

use std::sync::Arc;
use std::time::Duration;

use session_model::Session;
use session_view::test_util::{id, session};
use session_view::{Budget, MemoryView, SessionView};
use session_view_folder::{FolderView, FolderViewConfig};
use session_view_redis::{RedisView, RedisViewConfig};
use tokio::task::JoinSet;
use tokio::time::Instant;

const SESSIONS: u64 = 20_000;
/// As a group commit under load applies at once.
const BATCH: usize = 64;
const TASKS: u64 = 16;
const GETS: u64 = 100_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap();
    let redis = arguments.next().unwrap();
    let mut random = [0; 4];
    openssl::rand::rand_bytes(&mut random).unwrap();
    let namespace = format!("rates-{:08x}", u32::from_be_bytes(random));
    // Without a cache in front, to see the store itself.
    let config = RedisViewConfig { near_cache_bytes: 0, ..RedisViewConfig::new(redis, &namespace, [7; 32]) };
    let redis = Arc::new(RedisView::connect(config).await.unwrap());
    let mut config = FolderViewConfig { near_cache_bytes: 0, ..FolderViewConfig::new(folder, &namespace, [7; 32]) };
    config.operation_timeout = Duration::from_secs(10);
    let bare = Arc::new(FolderView::open(config.clone()).await.unwrap());
    config.near_cache_bytes = 64 << 20;
    let cached = Arc::new(FolderView::open(config).await.unwrap());
    println!("| view | create/s (batches of {BATCH}) | change/s | get/s ({TASKS} at once) | get again/s |");
    println!("|---|---|---|---|---|");
    measure("memory", Arc::new(MemoryView::new(Budget::default()))).await;
    measure("redis, no near cache", redis).await;
    measure("folder, no near cache", bare).await;
    measure("folder", cached).await;
}

async fn measure(name: &str, view: Arc<dyn SessionView>) {
    view.restored(view.losses());
    // Two views are on one folder: each has sessions of its own.
    let first = u64::from(name == "folder") * SESSIONS;
    let create = apply(&view, |n| session(first + n, n)).await;
    let change = apply(&view, |n| session(first + n, SESSIONS + n)).await;
    let get = gets(&view, first).await;
    let again = gets(&view, first).await;
    println!("| {name} | {create:.0} | {change:.0} | {get:.0} | {again:.0} |");
}

async fn apply(view: &Arc<dyn SessionView>, state: impl Fn(u64) -> Session) -> f64 {
    let states: Vec<_> = (0..SESSIONS).map(|n| Arc::new(state(n))).collect();
    let start = Instant::now();
    for batch in states.chunks(BATCH) {
        let _ = view.apply(batch).await.unwrap();
    }
    SESSIONS as f64 / start.elapsed().as_secs_f64()
}

async fn gets(view: &Arc<dyn SessionView>, first: u64) -> f64 {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let view = Arc::clone(view);
        tasks.spawn(async move {
            for n in 0..GETS / TASKS {
                let n = (n * TASKS + task).wrapping_mul(7_919) % SESSIONS;
                assert!(view.get(id(first + n)).await.unwrap().is_some());
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    GETS as f64 / start.elapsed().as_secs_f64()
}
