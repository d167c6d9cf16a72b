//! Carries the frames of a cluster over connections from node to node: [zenoh](https://zenoh.io) on TCP, with mutual TLS.
//!
//! Each node listens, connects to the peers it is told of, and learns of the others from them. What it sends goes to each connected
//! peer by itself: a peer that cannot take it loses it alone. A peer's process that ends is known within milliseconds, one that
//! falls silent after the lease.
//!
//! *Certificates.* With TLS both sides show a certificate of the cluster's authority, and [`UnicastTls::allowed_names`] limits
//! which of its certificates take part. New files are taken without a frame lost. zenoh reads no revocation lists: a certificate
//! that must go before it expires is taken off the list of names, or the authority is changed.
//!
//! Start with [`UnicastConfig`], then [`UnicastTransport`].

mod certificates;
mod config;
mod session;
mod transport;

pub use config::{UnicastConfig, UnicastError, UnicastTls};
pub use transport::UnicastTransport;
