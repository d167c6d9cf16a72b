//! Keeping a transport's connection to a server: what became of it, and how long to wait before the next attempt.

use std::error::Error;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{debug, info, warn};

use crate::Incarnation;

/// One connection to a server, which is made again for ever. Tells of it in the log once a change, and to people in one line.
#[derive(Debug)]
pub struct Upkeep {
    /// What it is for: `hearing the others through Redis`.
    purpose: &'static str,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    standing: Standing,
    made: u64,
    failure: Option<String>,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nothing was tried yet.
    New,
    Up,
    Down,
}

impl Upkeep {
    /// That of a connection that is not made yet.
    pub fn new(purpose: &'static str, backoff: Backoff) -> Self {
        let state = State { standing: Standing::New, made: 0, failure: None, backoff };
        Self { purpose, state: Mutex::new(state) }
    }

    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        self.state.lock().standing == Standing::Up
    }

    /// It is made.
    pub fn made(&self) {
        let mut state = self.state.lock();
        state.standing = Standing::Up;
        state.made += 1;
        state.backoff.begin_anew();
        info!(purpose = self.purpose, "a connection of the cluster is made");
    }

    /// It broke, or could not be made. Answers how long to wait before the next attempt.
    #[must_use = "the delay is to be waited for"]
    pub fn failed(&self, failure: &(dyn Error + 'static)) -> Duration {
        let mut state = self.state.lock();
        match std::mem::replace(&mut state.standing, Standing::Down) {
            Standing::New => warn!(purpose = self.purpose, failure, "a connection of the cluster cannot be made yet"),
            Standing::Up => warn!(purpose = self.purpose, failure, "a connection of the cluster is lost"),
            Standing::Down => debug!(purpose = self.purpose, failure, "a connection of the cluster cannot be made"),
        }
        state.failure = Some(in_full(failure));
        state.backoff.next_delay()
    }

    /// A line for people.
    pub fn describe(&self) -> String {
        let state = self.state.lock();
        let standing = match state.standing {
            Standing::New => "not connected yet",
            Standing::Up => "connected",
            Standing::Down => "not connected",
        };
        let mut line = format!("{}: {standing}, connected {} times", self.purpose, state.made);
        if let Some(failure) = &state.failure {
            let _written = write!(line, "; last failure: {failure}");
        }
        line
    }
}

/// A failure with its causes.
fn in_full(failure: &dyn Error) -> String {
    let causes = std::iter::successors(failure.source(), |cause: &&dyn Error| (*cause).source());
    causes.fold(failure.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Delays between attempts: 50 ms, doubling up to 1 s, each cut by up to half of it. Which part is cut off follows from the incarnation, which
/// is random: so the nodes of a cluster do not come back all at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    random: u64,
    attempts: u32,
}

/// The first delay.
const FIRST: Duration = Duration::from_millis(50);
/// The longest.
const LONGEST: Duration = Duration::from_secs(1);

impl Backoff {
    /// That of one connection of a node; `which` tells its connections apart.
    pub fn new(who: Incarnation, which: u64) -> Self {
        let random = u128::from_be_bytes(who.0);
        Self { random: (random as u64) ^ (random >> 64) as u64 ^ which, attempts: 0 }
    }

    /// It went well: the next delay is a first one.
    pub const fn begin_anew(&mut self) {
        self.attempts = 0;
    }

    /// How long to wait before the next attempt.
    #[must_use = "the delay is to be waited for"]
    pub fn next_delay(&mut self) -> Duration {
        let full = (FIRST * (1 << self.attempts.min(10))).min(LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        // SplitMix64 (Steele, Lea, Flood 2014): any spread will do here.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        full - full * ((mixed >> 56) as u32) / 512
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_second_begin_anew_and_differ_between_nodes() {
        let mut backoff = Backoff::new(Incarnation([1; 16]), 0);
        let delays: Vec<Duration> = (0..10).map(|_| backoff.next_delay()).collect();
        for (at, delay) in delays.iter().enumerate() {
            let full = LONGEST.min(FIRST * (1 << at));
            assert!(full / 2 <= *delay && *delay <= full, "{at}: {delay:?}");
        }
        let of = |who: Incarnation, which| Backoff::new(who, which).next_delay();
        let firsts = [of(Incarnation([1; 16]), 0), of(Incarnation([1; 16]), 1), of(Incarnation([2; 16]), 0)];
        assert!(firsts[0] != firsts[1] || firsts[0] != firsts[2], "{firsts:?}");
    }

    #[test]
    fn a_line_tells_what_became_of_a_connection() {
        let upkeep = Upkeep::new("hearing", Backoff::new(Incarnation([1; 16]), 0));
        assert!(!upkeep.is_up());
        let failure = std::io::Error::other("no route");
        assert!(upkeep.failed(&failure) <= FIRST);
        assert!(upkeep.failed(&failure) > FIRST / 2);
        assert_eq!(upkeep.describe(), "hearing: not connected, connected 0 times; last failure: no route");
        upkeep.made();
        assert!(upkeep.is_up());
        assert_eq!(upkeep.describe(), "hearing: connected, connected 1 times; last failure: no route");
        assert!(upkeep.failed(&failure) <= FIRST, "the delays begin anew");
        assert!(!upkeep.is_up());
    }
}
