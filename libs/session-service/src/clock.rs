//! Time that never goes back.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use session_model::Timestamp;

/// Where the time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Wall clock: what the machine believes the time to be. May jump.
    fn wall(&self) -> Timestamp;
    /// Microseconds since some fixed moment; never jumps, never goes back.
    fn monotonic_micros(&self) -> i64;
}

/// The service's time: follows the wall clock forward, never back. If the wall clock is set back an hour, this clock goes on
/// from where it was at the pace of the monotonic clock, so that deadlines still pass; and it is never behind the newest
/// entry of the log, whoever wrote that.
pub struct LogClock {
    clock: Arc<dyn Clock>,
    /// Service time minus monotonic time, in microseconds. Only ever rises.
    offset: AtomicI64,
}

impl LogClock {
    /// A clock that starts at the wall clock's time.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let offset = clock.wall().as_micros() - clock.monotonic_micros();
        Self { clock, offset: AtomicI64::new(offset) }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        let monotonic = self.clock.monotonic_micros();
        let wall = self.clock.wall().as_micros() - monotonic;
        let offset = self.offset.load(Ordering::Relaxed);
        // A few microseconds of difference are the time between the two readings: not worth a write to a shared line.
        if wall > offset + 1_000 {
            self.offset.fetch_max(wall, Ordering::Relaxed);
            return Timestamp::from_micros(monotonic + wall);
        }
        Timestamp::from_micros(monotonic + offset)
    }

    /// Learns of a time that has certainly been reached: that of an entry in the log.
    pub fn observe(&self, time: Timestamp) {
        self.offset.fetch_max(time.as_micros() - self.clock.monotonic_micros(), Ordering::Relaxed);
    }
}

impl fmt::Debug for LogClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogClock({})", self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Hands(Arc<(AtomicI64, AtomicI64)>);

    impl Clock for Hands {
        fn wall(&self) -> Timestamp {
            Timestamp::from_micros(self.0.0.load(Ordering::Relaxed))
        }
        fn monotonic_micros(&self) -> i64 {
            self.0.1.load(Ordering::Relaxed)
        }
    }

    const HOUR: i64 = 3_600_000_000;

    #[test]
    fn a_wall_clock_set_back_an_hour_neither_goes_back_nor_stands_still() {
        let hands = Hands::default();
        hands.0.0.store(10 * HOUR, Ordering::Relaxed);
        let clock = LogClock::new(Arc::new(hands.clone()));
        assert_eq!(clock.now().as_micros(), 10 * HOUR);
        hands.0.0.store(9 * HOUR, Ordering::Relaxed);
        hands.0.1.store(5_000_000, Ordering::Relaxed);
        assert_eq!(clock.now().as_micros(), 10 * HOUR + 5_000_000);
        hands.0.0.store(12 * HOUR, Ordering::Relaxed);
        assert_eq!(clock.now().as_micros(), 12 * HOUR);
    }

    #[test]
    fn is_never_behind_the_log() {
        let clock = LogClock::new(Arc::new(Hands::default()));
        clock.observe(Timestamp::from_micros(HOUR));
        assert_eq!(clock.now().as_micros(), HOUR);
    }
}
