//! Where checkpoints are kept outside the database, so that a database that was rolled back or rewritten betrays itself.
//!
//! * [`Anchor`]: the port: a place that keeps checkpoints and gives the newest back.
//! * [`FileAnchor`], [`S3Anchor`] (object lock), [`TsaAnchor`] (a folder, with a time stamp of somebody else's on each): the places there are.
//! * [`WitnessClient`]: others who cosign (C2SP tlog-witness), and the quorum of them. They are not places, because they want proof.
//! * [`compare`]: the log against a checkpoint from outside. [`check_head`]: the log against itself.
//! * [`Keeper`], [`Cosigner`]: the tasks that keep a place, and the quorum, up to date, and compare before they do. [`keep_newest`]: the same
//!   once, for a command.
//!
//! What each is worth against whom: docs/anchors.md. Start with [`compare`].

mod check;
mod cosigner;
mod file;
mod keeper;
mod s3;
mod sigv4;
mod tsa;
mod witnesses;

pub use check::{ContradictionError, check_head, compare, open_signed};
pub use cosigner::{Cosigned, Cosigner, CosignerConfig, CosignerView, WitnessStatus};
pub use file::{FileAnchor, replace_file};
pub use keeper::{AnchorStatus, KeepError, Keeper, keep_newest};
pub use s3::{S3Anchor, S3Config, S3Retention};
pub use tsa::{StampFiles, TsaAnchor, TsaConfig, stamps_in};
pub use witnesses::{Added, WitnessClient};

use session_model::TreeSize;

/// A place could not be asked, or did not keep what it was given.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {what}")]
pub struct PlaceError {
    /// Which place.
    pub place: String,
    /// What failed.
    pub what: String,
    /// Why.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl PlaceError {
    pub(crate) fn new(place: &str, what: impl Into<String>) -> Self {
        Self { place: place.to_owned(), what: what.into(), source: None }
    }

    pub(crate) fn caused(
        place: &str,
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { place: place.to_owned(), what: what.into(), source: Some(source.into()) }
    }
}

/// A place outside the database that keeps checkpoints. Blocking: it is called from a thread that may block, by one caller of a process at a time.
///
/// *Durability:* after `keep` has returned, `newest` answers that checkpoint or a larger one, after a crash too. *Order:* the caller keeps ever
/// larger ones, and has compared the log with what was kept before. *Trust:* what `newest` answers is not believed before its signature has
/// been read; a place may lose, repeat or forge, and never decides by itself what is true. *Retry:* the caller's, at its next turn.
pub trait Anchor: Send + Sync + 'static {
    /// What kind of place it is, as a word for metrics: `file`, `s3`, `tsa`.
    fn kind(&self) -> &'static str;

    /// Where it is, for operators: a path, a bucket, an address. Holds no secret.
    fn place(&self) -> &str;

    /// Keeps a signed checkpoint of a tree of this size.
    ///
    /// # Errors
    /// [`PlaceError`]; whether it was kept is then unknown.
    fn keep(&self, size: TreeSize, checkpoint: &str) -> Result<(), PlaceError>;

    /// The newest checkpoint there; `None` if there has never been one.
    ///
    /// # Errors
    /// [`PlaceError`] if that cannot be found out now.
    fn newest(&self) -> Result<Option<String>, PlaceError>;
}
