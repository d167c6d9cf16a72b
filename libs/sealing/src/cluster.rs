//! The keys that seal what nodes of a cluster send each other.

use std::fmt;

use openssl::cipher_ctx::CipherCtx;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{AES_256_GCM, SealError, TAG, expand, fetched};

/// A key that every node of a cluster has, bound to the cluster's name: what one cluster seals another cannot open, even if both were
/// given the same secret.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ClusterKey {
    id: [u8; 4],
    key: [u8; 32],
}

impl ClusterKey {
    /// The key of the cluster of this name, out of a secret of 32 uniform bytes.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn new(secret: &[u8; 32], cluster: &str) -> Result<Self, SealError> {
        let [key, name] = expand(secret, &[b"counterfoil cluster v1: key\0", cluster.as_bytes()])?;
        let [a, b, c, d, ..] = name.0;
        Ok(Self { id: [a, b, c, d], key: key.0 })
    }

    /// A short name for the key: says which of several keys sealed a frame, and nothing about it.
    pub const fn id(&self) -> [u8; 4] {
        self.id
    }

    /// The key of one sender. Each has its own, so that two senders that count alike never use one nonce twice under one key
    /// (NIST SP 800-38D section 8).
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn of_sender(&self, sender: &[u8; 16]) -> Result<FrameKey, SealError> {
        let [mut key, _] = expand(&self.key, &[b"counterfoil cluster v1: sender\0", sender])?;
        let made = FrameKey::new(&key.0);
        key.0.zeroize();
        made
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey({:02x?})", self.id)
    }
}

/// The key of one sender's frames: AES-256-GCM, the frame's number as its nonce.
pub struct FrameKey {
    // Set up once: the key schedule and the tables of GCM cost more than sealing a small frame.
    seal: CipherCtx,
    open: CipherCtx,
}

impl fmt::Debug for FrameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameKey")
    }
}

/// Bytes that sealing adds to a frame.
pub const FRAME_TAG: usize = TAG;

fn nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce.iter_mut().skip(4).zip(number.to_be_bytes()).for_each(|(at, byte)| *at = byte);
    nonce
}

impl FrameKey {
    fn new(key: &[u8; 32]) -> Result<Self, SealError> {
        let (mut seal, mut open) = (CipherCtx::new()?, CipherCtx::new()?);
        seal.encrypt_init(Some(fetched(&AES_256_GCM)?), Some(key), None)?;
        open.decrypt_init(Some(fetched(&AES_256_GCM)?), Some(key), None)?;
        Ok(Self { seal, open })
    }

    /// Seals a frame behind its header, which is bound to it and stays readable. A number must never be used twice by one sender.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn seal(&mut self, number: u64, frame: &mut Vec<u8>, plaintext: &[u8]) -> Result<(), SealError> {
        self.seal.encrypt_init(None, None, Some(&nonce(number)))?;
        self.seal.cipher_update(frame, None)?;
        self.seal.cipher_update_vec(plaintext, frame)?;
        self.seal.cipher_final_vec(frame)?;
        let mut tag = [0; TAG];
        self.seal.tag(&mut tag)?;
        frame.extend_from_slice(&tag);
        Ok(())
    }

    /// Opens what [`FrameKey::seal`] put behind a header.
    ///
    /// # Errors
    /// [`SealError::NotAuthentic`] if header, number or content are not what was sealed.
    pub fn open(&mut self, number: u64, header: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (ciphertext, tag) = sealed.split_last_chunk::<TAG>().ok_or(SealError::NotAuthentic)?;
        self.open.decrypt_init(None, None, Some(&nonce(number)))?;
        self.open.set_tag(tag)?;
        self.open.cipher_update(header, None)?;
        let mut plaintext = Vec::with_capacity(ciphertext.len());
        self.open.cipher_update_vec(ciphertext, &mut plaintext)?;
        self.open.cipher_final_vec(&mut plaintext).map_err(|_| SealError::NotAuthentic)?;
        Ok(plaintext)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(key: &ClusterKey, sender: u8, number: u64) -> Vec<u8> {
        let mut frame = b"header".to_vec();
        key.of_sender(&[sender; 16]).unwrap().seal(number, &mut frame, b"content").unwrap();
        frame
    }

    fn open(key: &ClusterKey, sender: u8, number: u64, frame: &[u8]) -> Result<Vec<u8>, SealError> {
        let (header, rest) = frame.split_at(6);
        key.of_sender(&[sender; 16]).unwrap().open(number, header, rest)
    }

    #[test]
    fn a_frame_opens_as_what_it_is_and_as_nothing_else() {
        let key = ClusterKey::new(&[1; 32], "here").unwrap();
        let frame = sealed(&key, 1, 7);
        assert_eq!(open(&key, 1, 7, &frame).unwrap(), b"content");
        assert!(open(&key, 2, 7, &frame).is_err(), "another sender");
        assert!(open(&key, 1, 8, &frame).is_err(), "another number");
        let there = ClusterKey::new(&[1; 32], "there").unwrap();
        assert!(open(&there, 1, 7, &frame).is_err(), "another cluster of the same secret");
        assert_ne!(key.id(), there.id());
        for at in 0..frame.len() {
            let mut other = frame.clone();
            other[at] ^= 1;
            assert!(open(&key, 1, 7, &other).is_err(), "byte {at}");
        }
    }

    #[test]
    fn one_key_seals_and_opens_many_in_any_order_and_survives_a_forgery() {
        let key = ClusterKey::new(&[1; 32], "here").unwrap();
        let mut sender = key.of_sender(&[1; 16]).unwrap();
        let mut frames = Vec::new();
        for number in 0..8 {
            let mut frame = b"header".to_vec();
            sender.seal(number, &mut frame, &[number as u8; 100]).unwrap();
            frames.push(frame);
        }
        let mut receiver = key.of_sender(&[1; 16]).unwrap();
        for number in [3_u64, 1, 7, 0] {
            let frame = &frames[number as usize];
            assert!(receiver.open(number + 1, &frame[..6], &frame[6..]).is_err());
            assert_eq!(receiver.open(number, &frame[..6], &frame[6..]).unwrap(), vec![number as u8; 100]);
        }
    }
}
