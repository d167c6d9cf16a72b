//! RFC 3161 time stamps: the request, and whether what came back is a good one.
//!
//! [`Request`] is what a time-stamping authority is sent; [`Roots::verify`] says whether a response stamps given bytes, and when. No I/O: who
//! sends and keeps is `anchors`, who verifies offline is the verifier. The messages are read with `der`; signature, chain and purpose of the
//! certificate are checked by OpenSSL, as of the time that is stamped (a certificate that has expired since does not undo a stamp). What
//! `openssl ts -verify` checks is checked here too: status, one signer, the certificate the signature names (RFC 5816), imprint, nonce.
//!
//! Deliberately lacks: revocation lists (neither the request nor the response carries them), and anything that makes stamps.

mod message;
#[cfg(feature = "test-util")]
pub mod testing;
mod verify;

pub use message::{Request, RequestError};
pub use verify::{Roots, RootsError, StampError, TimeStamp};
