//! What writers of one log cost one another: `TEST_DATABASE_URL=… cargo run --release -p audit-log-postgres --example rivals`.
//!
//! One, two and three processes append to one log, each for as many clients as the first argument says (32), who wait for their answer before they ask
//! again. Each is measured in turn for some seconds (second argument, 5), round after round (third, 3),
//! so that what else this machine does falls on all alike. One table a run: the medians of the rounds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "an experiment, not the service"
)]

#[path = "../tests/postgres/support.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use audit_log::conformance::{Draft, digest, key, key_row, sequencer, session};
use audit_log::{CommitSink, Committed, DataKeyRow, GroupCommit, GroupCommitConfig, LogHead, LogReader, NotDone};
use audit_log_postgres::{PostgresLog, migrate};
use sqlx::Connection;
use tokio::sync::oneshot;
use tokio::time::Instant;

use support::Database;

/// Gives each client its answer: whether it was done.
struct Answers;

impl CommitSink for Answers {
    type Ticket = oneshot::Sender<bool>;

    async fn committed(&self, entries: Vec<Committed<Self::Ticket>>) {
        for entry in entries {
            let _gone = entry.ticket.send(true);
        }
    }

    fn not_done(&self, ticket: Self::Ticket, _why: NotDone) {
        let _gone = ticket.send(false);
    }

    fn head(&self, _head: &LogHead) {}
}

/// What a writer came to: changes done and not done, batches lost, turns, and milliseconds from a change to its answer.
#[derive(Debug, Default, Clone)]
struct Outcome {
    done: f64,
    not_done: f64,
    lost: f64,
    turns: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Outcome {
    fn parse(line: &str) -> Self {
        let numbers: Vec<f64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
        let [done, not_done, lost, turns, p50, p99, max] = numbers[..] else { panic!("{line}") };
        Self { done, not_done, lost, turns, p50, p99, max }
    }
}

/// As the service creates a session of a subject it has not seen before: a leaf of some 600 bytes, and 400 sealed.
fn create(number: u128) -> Draft {
    let draft = Draft::new(number).version(session(number), 1).sealed(key(number), [7; 400]).opens(key(number));
    let new_key = DataKeyRow { lookup: Some(digest(number)), ..key_row(number) };
    draft.new_key(new_key).take_seat(key(number), 5).padded(300)
}

/// One process. Says when it is connected, begins when it is told to, and writes what it came to as a line.
async fn writer(url: &str, writer: u128, clients: u128, lasts: Duration) {
    let config = audit_log_postgres::PostgresConfig {
        url: url.to_owned(),
        connections: 2,
        statement_timeout: Duration::from_millis(3_600),
        application_name: format!("writer {writer}"),
        require_standby: false,
    };
    let log = Arc::new(PostgresLog::connect(config).await.unwrap());
    log.head().await.unwrap();
    let group = Arc::new(GroupCommit::start(log, sequencer(), Arc::new(Answers), GroupCommitConfig::default()));
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let number = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + lasts;
    let tasks = (0..clients).map(|_| {
        let (group, number) = (Arc::clone(&group), Arc::clone(&number));
        tokio::spawn(async move {
            let (mut took, mut not_done) = (Vec::new(), 0_u64);
            while Instant::now() < until {
                let id = writer << 40 | u128::from(number.fetch_add(1, Ordering::Relaxed));
                let proposed = create(id).proposed();
                let (ticket, answer) = oneshot::channel();
                let began = Instant::now();
                let Ok(_withdraw) = group.submit(proposed, ticket) else {
                    panic!("the queue is longer than the clients are many")
                };
                match answer.await {
                    Ok(true) => took.push(began.elapsed().as_secs_f64() * 1e3),
                    Ok(false) | Err(_) => not_done += 1,
                }
            }
            (took, not_done)
        })
    });
    let (mut took, mut not_done) = (Vec::new(), 0);
    for task in tasks.collect::<Vec<_>>() {
        let (took_each, not_done_each) = task.await.unwrap();
        took.extend(took_each);
        not_done += not_done_each;
    }
    took.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).or(took.last()).copied().unwrap_or(f64::NAN);
    let (lost, turns) = (group.lost(), group.turns());
    println!("{} {not_done} {lost} {turns} {} {} {}", took.len(), at(0.5), at(0.99), at(1.0));
    group.close().await;
}

/// One measurement: so many processes on a new log.
async fn measure(writers: usize, clients: &str, seconds: &str) -> (Vec<Outcome>, f64) {
    let database = Database::empty().await;
    migrate(&database.superuser()).await.unwrap();
    database
        .run(&format!("CREATE ROLE {}_writer LOGIN PASSWORD 'secret' IN ROLE counterfoil_writer", database.name))
        .await;
    let mut children = Vec::new();
    for number in 1..=writers {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer", &database.url("writer"), &number.to_string(), clients, seconds])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        children.push((child, lines));
    }
    for (child, _) in &mut children {
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }
    let mut outcomes = Vec::new();
    for (mut child, mut lines) in children {
        outcomes.push(Outcome::parse(&lines.next().expect("a writer that lives").unwrap()));
        child.wait().unwrap();
    }
    let mut superuser = database.connect(&database.superuser()).await;
    let commits: i64 =
        sqlx::query_scalar("SELECT count(*) FROM counterfoil.batch").fetch_one(&mut superuser).await.unwrap();
    superuser.close().await.unwrap();
    (outcomes, commits as f64)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |at: usize, otherwise: &str| arguments.get(at).cloned().unwrap_or_else(|| otherwise.to_owned());
    if argument(0, "") == "writer" {
        let lasts = Duration::from_secs(arguments[4].parse().unwrap());
        return writer(&arguments[1], arguments[2].parse().unwrap(), arguments[3].parse().unwrap(), lasts).await;
    }
    let (clients, seconds, rounds) = (argument(0, "32"), argument(1, "5"), argument(2, "3").parse().unwrap());
    let mut measured = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for (case, writers) in measured.iter_mut().zip(1..) {
            case.push(measure(writers, &clients, &seconds).await);
        }
    }
    println!("{clients} clients each, {rounds} times {seconds} s\n");
    println!(
        "| writers | changes/s | of the slowest | entries a commit | lost, turns a commit | p50 ms | p99 ms of the best, of the worst | longest ms | not done |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let seconds: f64 = seconds.parse().unwrap();
    for (writers, rounds) in (1..).zip(measured) {
        let of = |read: &dyn Fn(&[Outcome], f64) -> f64| {
            median(rounds.iter().map(|(each, commits)| read(each, *commits)).collect())
        };
        let sum = |each: &[Outcome], read: fn(&Outcome) -> f64| each.iter().map(read).sum::<f64>();
        let least = |each: &[Outcome], read: fn(&Outcome) -> f64| each.iter().map(read).fold(f64::INFINITY, f64::min);
        let most = |each: &[Outcome], read: fn(&Outcome) -> f64| each.iter().map(read).fold(0.0, f64::max);
        println!(
            "| {writers} | {:.0} | {:.0} % | {:.1} | {:.2}, {:.2} | {:.1} | {:.1}, {:.1} | {:.0} | {:.0} |",
            of(&|each, _| sum(each, |one| one.done) / seconds),
            of(&|each, _| least(each, |one| one.done) / sum(each, |one| one.done) * 100.0),
            of(&|each, commits| sum(each, |one| one.done) / commits),
            of(&|each, commits| sum(each, |one| one.lost) / commits),
            of(&|each, commits| sum(each, |one| one.turns) / commits),
            of(&|each, _| sum(each, |one| one.p50) / each.len() as f64),
            of(&|each, _| least(each, |one| one.p99)),
            of(&|each, _| most(each, |one| one.p99)),
            rounds.iter().map(|(each, _)| most(each, |one| one.max)).fold(0.0, f64::max),
            rounds.iter().map(|(each, _)| sum(each, |one| one.not_done)).sum::<f64>(),
        );
    }
}
