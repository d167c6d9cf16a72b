//! What sealing costs an entry: `cargo run --release -p sealing --example seal_rate`. Compare with the time that a whole create takes a core.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement, not the product"
)]

use std::hint::black_box;
use std::time::Instant;

use sealing::{DataKey, Keyring};
use session_model::{EntryId, KeyId};
use uuid::Uuid;

const ROUNDS: u32 = 200_000;

fn measure(what: &str, mut once: impl FnMut(u128)) {
    // The first ones find caches cold.
    (0..ROUNDS / 10).for_each(|n| once(n.into()));
    let began = Instant::now();
    (0..ROUNDS).for_each(|n| once(n.into()));
    println!("{what}: {:.2} µs", began.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
}

fn main() {
    let keyring = Keyring::new(&[7; 32]).unwrap();
    let key = DataKey::generate().unwrap();
    // What a create with two attributes has to seal.
    let plaintext = [b'x'; 330];
    measure("seal a part under a key that is there", |n| {
        black_box(key.seal(EntryId::new(Uuid::from_u128(n)), black_box(&plaintext)).unwrap());
    });
    measure("make a key, wrap it, and seal a part under it", |n| {
        let key = DataKey::generate().unwrap();
        black_box(keyring.wrap(KeyId::new(Uuid::from_u128(n)), &key).unwrap());
        black_box(key.seal(EntryId::new(Uuid::from_u128(n)), black_box(&plaintext)).unwrap());
    });
}
