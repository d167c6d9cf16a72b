//! Seals and opens frames without a cluster around them, for the fuzzer.

use sealing::{ClusterKey, SealError};
use tokio::time::Instant;

use crate::frame::Frames;
use crate::{Incarnation, Rejected};

/// Two nodes that have one key: what the first seals the second opens.
pub struct Wire {
    sender: Frames,
    receiver: Frames,
}

impl Wire {
    /// # Errors
    /// [`SealError`] of OpenSSL.
    pub fn new() -> Result<Self, SealError> {
        let key = ClusterKey::new(&[7; 32], "fuzz")?;
        let node = |n| Frames::new(Incarnation([n; 16]), vec![key.clone()]);
        Ok(Self { sender: node(1)?, receiver: node(2)? })
    }

    /// A frame of the first.
    ///
    /// # Errors
    /// [`SealError`] of OpenSSL.
    pub fn seal(&self, message: &[u8]) -> Result<Vec<u8>, SealError> {
        self.sender.seal(message)
    }

    /// What the second makes of a frame: the message in it, `None` if it were its own.
    ///
    /// # Errors
    /// [`Rejected`].
    pub fn open(&self, frame: &[u8]) -> Result<Option<Vec<u8>>, Rejected> {
        Ok(self.receiver.open(frame, Instant::now())?.map(|(_, message)| message))
    }
}
