//! The program as its users meet it: started, asked over HTTP, killed, started again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::type_complexity,
    reason = "a test that cannot go on should stop where it is"
)]

mod anchors;
mod auditing;
mod bad_input;
mod bad_weather;
mod cluster;
mod console;
mod evidence;
mod export;
mod key_encryption;
mod log_keys;
mod oidc;
mod program;
mod retention;
mod secrets;
mod shards;
mod sinks;
mod soap;
mod soap_differential;
mod soap_golden;
mod soap_messages;
mod soap_security;
mod soap_signed;
mod state_keys;
mod time_stamps;
mod transient;
mod walk;
