//! The Merkle tree over the leaves of a log, its proofs, and the signed checkpoints that commit to it.
//!
//! Hashing, proofs and notes are those of `tlog_tiles` and `signed_note`; this crate gives them the project's types, keeps
//! the right edge of the tree ([`Frontier`]) so that a commit extends it without reading anything back, and plans which
//! hashes a proof needs ([`Plan`]) so that storage can fetch them in one go. No I/O, no keys of its own.

mod checkpoint;
mod frontier;
mod proof;
mod receipt;
mod witness;

pub use checkpoint::{Checkpoint, CheckpointError, open_checkpoint, sign_checkpoint};
pub use frontier::{Frontier, FrontierError, Node, STORED_LEVEL_STEP, leaf_hash};
pub use proof::{HashRange, Plan, ProofError, check_consistency, check_inclusion};
pub use receipt::{Receipt, ReceiptError};
pub use signed_note::{Signer, Verifier};
pub use witness::{
    AddCheckpoint, AddCheckpointError, WitnessRefusal, claimed_origin, good_lines, observe, signed_text,
};

use session_model::Digest;

fn to_digest(hash: tlog_tiles::Hash) -> Digest {
    Digest(hash.0)
}

fn to_hash(digest: Digest) -> tlog_tiles::Hash {
    tlog_tiles::Hash(digest.0)
}
