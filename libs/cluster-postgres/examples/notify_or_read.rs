//! Whether commits should travel by NOTIFY with what they changed, or only be told of and read: `cargo run --example notify_or_read
//! postgres://…`, a role that may create a table in its database.
//!
//! One node commits batches of records of 1 KiB, one after the other, as the log does. Two others get them: in frames, or by reading them when
//! they are told that there are more. `alone` is what the commits cost by themselves; `late` is from the commit to having what it changed.
#![expect(clippy::print_stdout, clippy::unwrap_used, clippy::indexing_slicing, reason = "a program for measuring")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::{Audience, Incarnation, Received, Transport};
use cluster_postgres::{PostgresTransport, PostgresTransportConfig};
use parking_lot::Mutex;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout};

const RECORD: usize = 1_024;
const RUN: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Alone,
    Records,
    Told,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let url = std::env::args().nth(1).unwrap();
    let mut log = PgConnection::connect(&url).await.unwrap();
    for records in [1, 16, 128] {
        for way in [Way::Alone, Way::Records, Way::Told] {
            let table = "CREATE TABLE IF NOT EXISTS notify_or_read (number bigint PRIMARY KEY, batch bytea NOT NULL);
                 TRUNCATE notify_or_read";
            sqlx::raw_sql(table).execute(&mut log).await.unwrap();
            measure(&url, &mut log, way, records).await;
        }
    }
    sqlx::raw_sql("DROP TABLE notify_or_read").execute(&mut log).await.unwrap();
}

/// When each batch was committed.
type Committed = Arc<Mutex<Vec<Instant>>>;

async fn measure(url: &str, log: &mut PgConnection, way: Way, records: usize) {
    let open = |n| {
        let (url, namespace, application_name) = (url.to_owned(), "rates".to_owned(), "rates".to_owned());
        let config = PostgresTransportConfig { url, namespace, application_name };
        Arc::new(PostgresTransport::open(config, Incarnation([n; 16])).unwrap())
    };
    let (one, others) = (open(1), [open(2), open(3)]);
    for transport in std::iter::once(&one).chain(&others) {
        while transport.describe().iter().filter(|line| line.contains(": connected")).count() < 2 {
            sleep(Duration::from_millis(5)).await;
        }
    }
    let (committed, over) = (Committed::default(), Arc::new(AtomicBool::new(false)));
    let receiving = others.clone().map(|other| {
        let reader = (way == Way::Told).then(|| url.to_owned());
        tokio::spawn(receive(other, Arc::clone(&committed), reader, Arc::clone(&over)))
    });
    let max = one.capabilities().max_frame;
    // As incompressible as what is sealed.
    let batch: Vec<u8> = (0..records * RECORD).map(|at| (at * at / 7 + at) as u8).collect();
    let (start, mut number, mut unsent) = (Instant::now(), 0_u64, 0);
    while start.elapsed() < RUN {
        let insert = "INSERT INTO notify_or_read VALUES ($1, $2)";
        sqlx::query(insert).bind(number as i64).bind(&batch).execute(&mut *log).await.unwrap();
        committed.lock().push(Instant::now());
        let head = [number.to_be_bytes().as_slice(), &[1]].concat();
        let frames: Vec<Vec<u8>> = match way {
            Way::Alone => Vec::new(),
            Way::Told => vec![head],
            Way::Records => {
                let parts = batch.chunks(max - 9);
                let last = parts.len() - 1;
                let part = |(at, part): (usize, &[u8])| {
                    [number.to_be_bytes().as_slice(), &[u8::from(at == last)], part].concat()
                };
                parts.enumerate().map(part).collect()
            }
        };
        for frame in frames {
            unsent += u64::from(one.send(Audience::Everybody, &frame).is_err());
        }
        number += 1;
    }
    let rate = number as f64 / start.elapsed().as_secs_f64();
    sleep(Duration::from_secs(1)).await;
    over.store(true, Ordering::Relaxed);
    let mut late = Vec::new();
    for receiving in receiving {
        late.extend(receiving.await.unwrap());
    }
    late.sort_unstable();
    let at = |share: usize| if late.is_empty() { Duration::ZERO } else { late[(late.len() - 1) * share / 100] };
    println!(
        "{records} records, {way:?}: {rate:.0} commits/s, {:.0} records/s; {} of {} had, {unsent} frames unsent; late by {:?}, p99 {:?}",
        rate * records as f64,
        late.len(),
        number * 2,
        at(50),
        at(99)
    );
    for transport in std::iter::once(&one).chain(&others) {
        transport.close().await;
    }
}

/// How late each batch was had.
async fn receive(
    transport: Arc<PostgresTransport>,
    committed: Committed,
    reader: Option<String>,
    over: Arc<AtomicBool>,
) -> Vec<Duration> {
    let mut reader = match reader {
        Some(url) => Some(PgConnection::connect(&url).await.unwrap()),
        None => None,
    };
    let (mut late, mut next) = (Vec::new(), 0_i64);
    while !over.load(Ordering::Relaxed) {
        let Ok(Some(received)) = timeout(Duration::from_millis(100), transport.receive()).await else { continue };
        let Received::Frame(frame) = received else { continue };
        let number = u64::from_be_bytes(frame[..8].try_into().unwrap());
        match &mut reader {
            None if frame[8] == 1 => late.push(committed.lock()[number as usize].elapsed()),
            None => {}
            Some(reader) if number as i64 >= next => {
                let read = "SELECT number, batch FROM notify_or_read WHERE number >= $1 ORDER BY number";
                let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(read).bind(next).fetch_all(reader).await.unwrap();
                let committed = committed.lock();
                for (number, _) in rows {
                    late.extend(committed.get(number as usize).map(Instant::elapsed));
                    next = number + 1;
                }
            }
            Some(_) => {}
        }
    }
    late
}
