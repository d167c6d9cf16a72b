//! The transport against a real PostgreSQL: the conformance suite, outages, what others see.
//!
//! `TEST_DATABASE_URL` names the server, as a superuser; the test that stops one makes a server of its own.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod configuration;
mod outage;
mod seen;
mod support;

use crate::support::Namespace;

cluster::transport_conformance!(Namespace::new());
