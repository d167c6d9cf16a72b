//! The full receipt: C2SP tlog-proof text, made of a leaf index, an inclusion proof and a signed checkpoint.

use std::fmt::{self, Write as _};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use session_model::{Digest, LeafHash, LeafIndex};

use crate::{Checkpoint, CheckpointError, ProofError, Verifier, check_inclusion, open_checkpoint};

const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";

/// Why a receipt does not prove what it is for.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// Not C2SP tlog-proof text.
    #[error("not a receipt (C2SP tlog-proof text)")]
    Malformed,
    /// Its checkpoint is none of the log's.
    #[error("the receipt's checkpoint is not good")]
    Checkpoint(#[from] CheckpointError),
    /// Its proof does not hold.
    #[error("the receipt's inclusion proof is not good")]
    Proof(#[from] ProofError),
}

/// What a client keeps, and can prove without us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Position of the entry.
    pub index: LeafIndex,
    /// Inclusion proof, leaf upwards.
    pub proof: Vec<Digest>,
    /// Signed checkpoint, as C2SP signed-note text.
    pub checkpoint: String,
}

impl Receipt {
    /// Reads a receipt.
    ///
    /// # Errors
    /// [`ReceiptError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, ReceiptError> {
        let (head, checkpoint) = text.split_once("\n\n").ok_or(ReceiptError::Malformed)?;
        let mut lines = head.lines().peekable();
        if lines.next() != Some(FIRST_LINE) {
            return Err(ReceiptError::Malformed);
        }
        lines.next_if(|line| line.starts_with("extra "));
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).ok_or(ReceiptError::Malformed)?;
        let number: u64 = index.parse().map_err(|_| ReceiptError::Malformed)?;
        if number.to_string() != index {
            return Err(ReceiptError::Malformed);
        }
        let hash = |line: &str| {
            let bytes = STANDARD.decode(line).map_err(|_| ReceiptError::Malformed)?;
            bytes.try_into().map(Digest).map_err(|_| ReceiptError::Malformed)
        };
        let proof = lines.map(hash).collect::<Result<Vec<_>, _>>()?;
        if proof.len() > 63 {
            return Err(ReceiptError::Malformed);
        }
        Ok(Self { index: LeafIndex(number), proof, checkpoint: checkpoint.to_owned() })
    }

    /// Proves that the leaf with this hash is in the log that one of `known` signs for; answers the tree head it is in.
    ///
    /// # Errors
    /// A [`ReceiptError`] saying which part is not good.
    pub fn verify(&self, leaf: LeafHash, known: Vec<Box<dyn Verifier>>) -> Result<Checkpoint, ReceiptError> {
        let head = open_checkpoint(&self.checkpoint, known)?;
        check_inclusion(&self.proof, head.size, head.root, self.index, leaf)?;
        Ok(head)
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{FIRST_LINE}\nindex {}\n", self.index);
        for hash in &self.proof {
            writeln!(text, "{}", STANDARD.encode(hash.0))?;
        }
        write!(f, "{text}\n{}", self.checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use signed_note::{StandardSigner, StandardVerifier};

    use super::*;
    use crate::{Frontier, Plan, leaf_hash, sign_checkpoint};

    // A key made for this test alone, in the encodings of Go's x/mod/sumdb/note documentation.
    const SKEY: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    const VKEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";

    fn known() -> Vec<Box<dyn Verifier>> {
        vec![Box::new(StandardVerifier::new(VKEY).unwrap())]
    }

    #[test]
    fn a_receipt_reads_back_verifies_and_every_altered_one_is_refused() {
        let leaves: Vec<Digest> = (0..5_u8).map(|i| leaf_hash(&[i])).collect();
        let mut frontier = Frontier::empty();
        leaves.iter().for_each(|leaf| frontier.push(*leaf, |_| {}));
        let plan = Plan::inclusion(LeafIndex(3), frontier.size()).unwrap();
        let run = |start: u64, count: u64| leaves[start as usize..(start + count) as usize].to_vec();
        let proof = plan.finish(&plan.ranges().map(|r| run(r.start, r.count)).collect::<Vec<_>>()).unwrap();
        let head = Checkpoint { origin: "PeterNeumann".into(), size: frontier.size(), root: frontier.root() };
        let signer = StandardSigner::new(SKEY).unwrap();
        let receipt = Receipt { index: LeafIndex(3), proof, checkpoint: sign_checkpoint(&head, &[&signer]).unwrap() };
        let text = receipt.to_string();
        assert_eq!(Receipt::parse(&text).unwrap(), receipt);
        assert_eq!(receipt.verify(leaves[3], known()).unwrap(), head);
        assert!(receipt.verify(leaves[2], known()).is_err());

        // Any one changed byte is noticed, but in what carries no meaning: there is nothing of that kind.
        for at in 0..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[at] ^= 1;
            let Ok(altered) = String::from_utf8(altered) else { continue };
            let holds = Receipt::parse(&altered).is_ok_and(|receipt| receipt.verify(leaves[3], known()).is_ok());
            assert!(!holds, "byte {at} changed unnoticed");
        }
    }
}
