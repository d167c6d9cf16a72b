//! Rebuilds the crate when a migration is added: `sqlx::migrate!` itself notices changed files only.

#![allow(clippy::print_stdout, reason = "cargo is told on standard output")]

fn main() {
    println!("cargo:rerun-if-changed=../../migrations/postgres");
}
