//! Points in time and spans, in the units the log records: microseconds since the epoch and whole seconds.

use std::fmt;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time, UTC, in microseconds since 1970-01-01T00:00:00Z. Written as RFC 3339 with six decimals.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The time that is `micros` microseconds after the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// This time plus `span`; the largest representable time if that would overflow.
    pub const fn plus(self, span: Seconds) -> Self {
        Self(self.0.saturating_add((span.0 as i64).saturating_mul(1_000_000)))
    }

    /// Microseconds from `earlier` to this time; zero if `earlier` is later.
    pub const fn micros_since(self, earlier: Self) -> i64 {
        let span = self.0.saturating_sub(earlier.0);
        if span < 0 { 0 } else { span }
    }

    /// Reads an RFC 3339 time; finer than a microsecond is cut off.
    pub fn parse(text: &str) -> Option<Self> {
        DateTime::parse_from_rfc3339(text).ok().map(|time| Self(time.timestamp_micros()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_timestamp_micros(self.0) {
            Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true)),
            None => write!(f, "{}us", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("not an RFC 3339 time"))
    }
}

/// A span of whole seconds, as policies and requests state it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub u32);

impl Seconds {
    /// `minutes` minutes.
    pub const fn minutes(minutes: u32) -> Self {
        Self(minutes * 60)
    }

    /// `hours` hours.
    pub const fn hours(hours: u32) -> Self {
        Self(hours * 3600)
    }

    /// The span in microseconds.
    pub const fn as_micros(self) -> i64 {
        self.0 as i64 * 1_000_000
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_with_six_decimals_and_read_back() {
        let time = Timestamp::from_micros(1_700_000_000_000_001);
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.000001Z");
        assert_eq!(Timestamp::parse(&time.to_string()), Some(time));
    }

    #[test]
    fn arithmetic_saturates_rather_than_wraps() {
        assert_eq!(Timestamp::from_micros(i64::MAX).plus(Seconds(1)).as_micros(), i64::MAX);
        assert_eq!(Timestamp::from_micros(1).micros_since(Timestamp::from_micros(5)), 0);
    }
}
