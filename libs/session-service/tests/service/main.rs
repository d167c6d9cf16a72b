//! The service on memory adapters: guarantees 1 to 10 and 14 of DESIGN section 4, each with a test that can fail.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on should stop where it is"
)]

mod cluster;
mod custody;
mod faults;
mod parallel;
mod partner;
mod rig;
mod rules;
mod simulation;
mod staleness;
mod transient;
mod views;
