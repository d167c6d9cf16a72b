//! How the leaves and the sealed parts of a batch stand in one row each.

use session_model::{KeyId, Leaf};
use uuid::Uuid;

use crate::SealedEntry;

/// Bytes that are no stored batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored batch is cut short or malformed")]
pub struct BundleError;

/// Leaves one after another, each behind its length in 16 bits, big-endian: the entry bundle of C2SP tlog-tiles. A leaf
/// longer than [`Leaf::MAX`] cannot have been encoded.
pub fn encode_leaves<'a>(leaves: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for leaf in leaves {
        debug_assert!(leaf.len() <= Leaf::MAX, "Leaf::encode refuses longer leaves");
        bytes.extend_from_slice(&u16::try_from(leaf.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend_from_slice(leaf);
    }
    bytes
}

/// Reads what [`encode_leaves`] wrote.
///
/// # Errors
/// [`BundleError`].
pub fn decode_leaves(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, BundleError> {
    let mut leaves = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (leaf, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(BundleError)?;
        leaves.push(leaf.to_vec());
        bytes = rest;
    }
    if bytes.is_empty() { Ok(leaves) } else { Err(BundleError) }
}

/// Sealed parts one after another: length in 32 bits, big-endian, data key id, bytes; a length of 0 for none.
pub fn encode_sealed<'a>(parts: impl Iterator<Item = Option<&'a SealedEntry>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        let length = part.map_or(0, |part| 16 + part.bytes.len());
        bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        if let Some(part) = part {
            bytes.extend_from_slice(part.key.uuid().as_bytes());
            bytes.extend_from_slice(&part.bytes);
        }
    }
    bytes
}

/// Reads what [`encode_sealed`] wrote.
///
/// # Errors
/// [`BundleError`].
pub fn decode_sealed(mut bytes: &[u8]) -> Result<Vec<Option<SealedEntry>>, BundleError> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| BundleError)?;
        let (part, rest) = rest.split_at_checked(length).ok_or(BundleError)?;
        parts.push(match part.split_first_chunk::<16>() {
            Some((key, bytes)) => Some(SealedEntry { key: KeyId::new(Uuid::from_bytes(*key)), bytes: bytes.to_vec() }),
            None if part.is_empty() => None,
            None => return Err(BundleError),
        });
        bytes = rest;
    }
    if bytes.is_empty() { Ok(parts) } else { Err(BundleError) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn leaves_read_back_and_a_cut_is_noticed(leaves in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 1..8)) {
            let bytes = encode_leaves(leaves.iter().map(Vec::as_slice));
            prop_assert_eq!(decode_leaves(&bytes), Ok(leaves));
            prop_assert_eq!(decode_leaves(&bytes[..bytes.len() - 1]), Err(BundleError));
        }

        #[test]
        fn sealed_parts_read_back(parts in proptest::collection::vec(proptest::option::of((any::<u128>(), proptest::collection::vec(any::<u8>(), 0..50))), 0..8)) {
            let parts: Vec<_> = parts.into_iter()
                .map(|part| part.map(|(key, bytes)| SealedEntry { key: KeyId::new(Uuid::from_u128(key)), bytes }))
                .collect();
            let bytes = encode_sealed(parts.iter().map(Option::as_ref));
            prop_assert_eq!(decode_sealed(&bytes), Ok(parts));
        }
    }
}
