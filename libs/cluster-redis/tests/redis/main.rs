//! The transport against a real Redis: the conformance suite, outages, slow subscribers, what others see.
//!
//! `TEST_REDIS_URL` names the Redis; tests that stop one, or change its settings, start a `redis-server` of their own.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod configuration;
mod outage;
mod seen;
mod support;

use crate::support::Namespace;

cluster::transport_conformance!(Namespace::new());
