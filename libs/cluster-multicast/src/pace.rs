//! How fast is fast enough: a bucket of tokens, so that a burst does not run over the receive buffers behind which everything is lost.

use std::time::Duration;

use tokio::time::Instant;

/// What a datagram takes of a receive buffer: the system keeps it with its headers and its own notes in a block whose size is a power of
/// two, and books all of that (Linux: `SKB_TRUESIZE`; measured as 2,304 for 1,100 bytes).
pub(crate) const fn booked(length: usize) -> u64 {
    ((length + 384).next_power_of_two() + 256) as u64
}

/// Bursts a second: a receiver that has other things to do comes round to its socket every 2 ms or so.
const BURSTS: u64 = 500;

/// Tokens are booked bytes.
#[derive(Debug)]
pub(crate) struct Pace {
    burst: u64,
    per_second: u64,
    tokens: u64,
    filled: Instant,
}

impl Pace {
    /// Up to `burst` at once, then so many bytes a second, but no more than a burst in the time that a receiver may need for one: small
    /// buffers are filled slowly.
    pub(crate) fn new(burst: u64, rate: u64, now: Instant) -> Self {
        // A frame of usual size is booked with twice its bytes.
        let per_second = rate.saturating_mul(2).min(burst.saturating_mul(BURSTS)).max(1);
        Self { burst, per_second, tokens: burst, filled: now }
    }

    /// What may be sent now.
    pub(crate) fn allowance(&mut self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.filled);
        let earned = since.as_nanos().saturating_mul(self.per_second.into()) / 1_000_000_000;
        if earned > 0 {
            self.tokens = self.burst.min(self.tokens.saturating_add(u64::try_from(earned).unwrap_or(u64::MAX)));
            self.filled = now;
        }
        self.tokens
    }

    /// Takes what was sent. The last datagram may go below zero: what is larger than the burst must get out, too.
    pub(crate) fn spend(&mut self, booked: u64) {
        self.tokens = self.tokens.saturating_sub(booked);
    }

    /// How long until so much may be sent.
    pub(crate) fn wait(&self, booked: u64) -> Duration {
        let lacking = booked.min(self.burst).saturating_sub(self.tokens);
        Duration::from_nanos(
            u64::try_from(u128::from(lacking) * 1_000_000_000 / u128::from(self.per_second)).unwrap_or(u64::MAX),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(10_000, 500_000, start);
        assert_eq!(Pace::new(2_000, u64::MAX, start).per_second, 1_000_000, "a small burst has its time, too");
        assert_eq!(pace.allowance(start), 10_000);
        pace.spend(10_000);
        assert_eq!(pace.allowance(start), 0);
        assert_eq!(pace.wait(2_000), Duration::from_millis(2));
        assert_eq!(pace.allowance(start + Duration::from_millis(2)), 2_000);
        assert_eq!(pace.wait(2_000), Duration::ZERO);
        assert_eq!(pace.allowance(start + Duration::from_secs(60)), 10_000, "no more than the burst is saved up");
        assert_eq!(pace.wait(1 << 40), Duration::ZERO, "what is larger than the burst waits for a full bucket only");
    }

    #[test]
    fn many_short_waits_earn_as_much_as_a_long_one() {
        let start = Instant::now();
        let mut pace = Pace::new(1_000_000, 1_000, start);
        pace.spend(1_000_000);
        for step in 1..=10_000 {
            pace.allowance(start + Duration::from_micros(100) * step);
        }
        assert!((1_000..=2_000).contains(&pace.allowance(start + Duration::from_secs(1))));
    }

    #[test]
    fn small_datagrams_count_for_what_they_take() {
        assert_eq!((booked(1_137), booked(1_472), booked(100)), (2_304, 2_304, 768));
    }
}
