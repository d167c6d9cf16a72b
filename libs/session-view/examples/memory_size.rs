//! Fills a memory view and prints what it takes and how fast it is read: `cargo run --release --example memory_size [sessions]`.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for measuring")]

use std::sync::Arc;

use session_model::{Attributes, Client, Limits, Session};
use session_view::test_util::{at, id, session};
use session_view::{Budget, MemoryView, SessionView};
use tokio::time::Instant;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let sessions: u64 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let view = Arc::new(MemoryView::new(Budget::default()));
    let before = resident();
    let realm = session(0, 0).realm;
    let limits = Limits::default();
    let start = Instant::now();
    for n in 0..sessions {
        let state = Session {
            realm: realm.clone(),
            attributes: Attributes::parse(&format!(r#"{{"cart":{n},"theme":"dark","locale":"de-AT"}}"#), &limits)
                .unwrap(),
            client: Some(Client {
                address: Some([192, 0, 2, 1].into()),
                user_agent: Some("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0".to_owned()),
            }),
            ..session(n, n)
        };
        let _ = view.apply(&[Arc::new(state)]).await.unwrap();
    }
    let status = view.status();
    let taken = resident() - before;
    println!("{} sessions made and applied in {:.2?}", status.held, start.elapsed());
    println!("size_of Session: {}", size_of::<Session>());
    println!("bytes a session: {} resident, {} estimated", taken / sessions, status.bytes as u64 / sessions);
    println!("resident: {} MB", resident() >> 20);

    for threads in [1, 2] {
        let start = Instant::now();
        let handles: Vec<_> = (0..threads)
            .map(|lane: u64| {
                let view = Arc::clone(&view);
                std::thread::spawn(move || {
                    let ids: Vec<_> = (0..1 << 20).map(|n| id((n * 7_919 + lane) % sessions)).collect();
                    let start = Instant::now();
                    let found: usize = (0..4).map(|_| ids.iter().filter(|id| view.peek(**id).is_some()).count()).sum();
                    found as f64 / start.elapsed().as_secs_f64()
                })
            })
            .collect();
        let rates: f64 = handles.into_iter().map(|handle| handle.join().unwrap()).sum();
        println!("peek, {threads} threads: {rates:.0}/s ({:.2?} in all)", start.elapsed());
    }
    let start = Instant::now();
    let due = view.due(at(0), 100).await.unwrap().len();
    println!("due, none: {:.2?} ({due})", start.elapsed());
    let start = Instant::now();
    let due = view.due(at(1 << 20), 100).await.unwrap().len();
    println!("due, all, 100 asked for: {:.2?} ({due})", start.elapsed());
    let uses: Vec<_> = (0..sessions).map(|n| (id(n), at(100))).collect();
    let start = Instant::now();
    view.mark_used(&uses).await.unwrap();
    println!("marks: {:.0}/s", sessions as f64 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    let due = view.due(at(1_850), 100).await.unwrap().len();
    println!("due, after all were marked: {:.2?} ({due})", start.elapsed());
}

/// Bytes, from `/proc/self/statm` (pages of 4 KiB).
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}
