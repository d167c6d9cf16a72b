//! How fast the log takes batches, and where the time goes: `TEST_DATABASE_URL=… cargo run --example append_rate`.
//!
//! Only `append` is timed. `server` is what `counterfoil.append_batch` took of it, by PostgreSQL's own count; `floor` is a commit
//! of one small row, which is what the disk asks for whatever the log does. The rest is the connection and this process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "an experiment, not the service"
)]
#![allow(clippy::disallowed_methods, reason = "the time it takes is what it is about")]

#[path = "../tests/postgres/support.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod support;

use std::time::{Duration, Instant};

use audit_log::conformance::{Draft, digest, key, key_row, sequencer, session};
use audit_log::{Appended, DataKeyRow, IdempotencyClaim, LogReader, LogWriter};
use audit_log_postgres::PostgresLog;
use merkle_log::leaf_hash;
use session_model::Timestamp;
use sqlx::PgConnection;

use support::Database;

/// Entries of 600 to 700 bytes, with 400 sealed.
#[derive(Clone, Copy)]
enum Kind {
    /// As the service creates a session of a subject it has not seen before: the most that an entry can ask for.
    Create,
    /// The same, under an idempotency key.
    CreateKeyed,
    /// A change of a session.
    Update,
}

impl Kind {
    fn draft(self, number: u128, subject: u128) -> Draft {
        let draft = Draft::new(number);
        let create = |draft: Draft| {
            let draft = draft.version(session(number), 1).sealed(key(number), [7; 400]).opens(key(number));
            draft.new_key(DataKeyRow { lookup: Some(digest(number)), ..key_row(number) }).take_seat(key(number), 5)
        };
        match self {
            Self::Create => create(draft),
            Self::CreateKeyed => create(draft).answer(IdempotencyClaim {
                key: digest(number),
                request: digest(number),
                answer: vec![7; 300],
                expires: Timestamp::from_micros(i64::MAX),
            }),
            Self::Update => {
                draft.version(session(subject), 2).sealed(key(subject), [7; 400]).existing_key(key(subject))
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::CreateKeyed => "create, keyed",
            Self::Update => "update",
        }
    }
}

#[tokio::main]
async fn main() {
    let database = Database::new().await;
    database.run(&format!("ALTER DATABASE {} SET track_functions = 'all'", database.name)).await;
    let mut superuser = database.connect(&database.superuser()).await;
    println!("floor: {:.2} ms a commit", floor(&mut superuser).await);
    println!(
        "{:<14} {:>6} {:>10} {:>8} {:>8} {:>8} {:>10} {:>10}",
        "", "batch", "entries/s", "ms", "p50", "p99", "server ms", "WAL/entry"
    );
    let mut number = 1_u128;
    let mut updated = 1_u128;
    for kind in [Kind::Create, Kind::CreateKeyed, Kind::Update] {
        for size in [1, 32, 256_u128] {
            let log = database.open().await;
            // The first plans the statements of the function.
            for _ in 0..3 {
                append(&log, kind, 1, &mut number, &mut updated).await;
            }
            let (calls, server) = function(&mut superuser).await;
            let wal = wal(&mut superuser).await;
            let mut times = Vec::new();
            while times.iter().sum::<Duration>() < Duration::from_secs(2) && times.len() < 1_000 {
                times.push(append(&log, kind, size, &mut number, &mut updated).await);
            }
            let wal = self::wal(&mut superuser).await - wal;
            drop(log);
            // A backend counts for itself until it ends or has nothing to do for a while.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let (calls, server) = {
                let now = function(&mut superuser).await;
                (now.0 - calls, now.1 - server)
            };
            times.sort_unstable();
            let total: Duration = times.iter().sum();
            let entries = size as f64 * times.len() as f64;
            let ms = |at: usize| times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3);
            println!(
                "{:<14} {size:>6} {:>10.0} {:>8.2} {:>8.2} {:>8.2} {:>10.2} {:>10.0}",
                kind.name(),
                entries / total.as_secs_f64(),
                total.as_secs_f64() * 1e3 / times.len() as f64,
                ms(times.len() / 2),
                ms(times.len() * 99 / 100),
                server / calls as f64,
                wal as f64 / entries,
            );
        }
    }
}

async fn append(log: &PostgresLog, kind: Kind, size: u128, number: &mut u128, updated: &mut u128) -> Duration {
    let mut entries = Vec::new();
    for _ in 0..size {
        let mut entry = kind.draft(*number, *updated).proposed();
        // What compresses as a real leaf does, to a little more than half.
        let filler = (0..4).map(|part| digest(*number << 8 | part).to_string());
        entry.leaf.detail = filler.map(|hash| (hash[..8].to_owned(), hash)).collect();
        entry.bytes = entry.leaf.encode().unwrap();
        entry.hash = leaf_hash(&entry.bytes);
        entries.push(entry);
        *number += 1;
        *updated += u128::from(matches!(kind, Kind::Update));
    }
    let batch = sequencer().ordered(&log.head().await.unwrap(), entries).unwrap();
    let started = Instant::now();
    let appended = log.append(&batch).await.unwrap();
    let time = started.elapsed();
    assert_eq!(appended, Appended::Committed);
    time
}

/// Milliseconds of a commit that writes next to nothing.
async fn floor(superuser: &mut PgConnection) -> f64 {
    support::attempt(superuser, "CREATE TABLE public.floor (n int)").await.unwrap();
    let started = Instant::now();
    for n in 0..200_i32 {
        sqlx::query("INSERT INTO public.floor VALUES ($1)").bind(n).execute(&mut *superuser).await.unwrap();
    }
    started.elapsed().as_secs_f64() * 1e3 / 200.0
}

/// Calls of `counterfoil.append_batch` so far, and the milliseconds they took.
async fn function(superuser: &mut PgConnection) -> (i64, f64) {
    let counted = "SELECT calls, total_time FROM pg_stat_user_functions WHERE funcname = 'append_batch'";
    sqlx::query_as(counted).fetch_optional(superuser).await.unwrap().unwrap_or((0, 0.0))
}

async fn wal(superuser: &mut PgConnection) -> i64 {
    let written = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint";
    sqlx::query_scalar(written).fetch_one(superuser).await.unwrap()
}
