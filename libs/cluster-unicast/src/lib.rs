//! Carries the frames of a cluster over connections from node to node: TCP with mutual TLS 1.3, by OpenSSL.
//!
//! Each node listens, dials the peers it is told of, and learns of the others from them. What it sends waits in a queue for each peer: one that
//! cannot take it loses it alone. A peer's process that ends is known within milliseconds, one that falls silent after the lease.
//!
//! *A connection* carries frames both ways, whoever made it. There may be several to one peer for a moment, because both dialed, or because one
//! has newer certificates: they share the peer's queue, one of them carries, and those that are too many say goodbye once what they
//! had taken is written. So no frame is lost by choosing between them (`roster.rs`).
//!
//! *Certificates.* Both sides show one of the cluster's authorities, and no other authority counts. [`UnicastTls::allowed_names`] limits which
//! take part, [`UnicastTls::crl`] takes single ones back. Changed files are taken up while the node runs, and whoever is not acceptable any more
//! is let go.
//!
//! Deliberately absent: receipts, resending and order. What is lost is read from the log.
//!
//! Start with [`UnicastConfig`], then [`UnicastTransport`]; inside, `mesh.rs`.

mod config;
mod connection;
mod gate;
mod link;
mod mesh;
mod opening;
mod queue;
mod resolve;
mod roster;
mod seek;
mod tls;
mod transport;
mod wire;

pub use config::{UnicastConfig, UnicastError, UnicastTls};
pub use resolve::{Resolve, SystemResolver};
pub use transport::UnicastTransport;
