//! Reading the bytes of what nodes say to one another.

use session_model::{SessionId, Slot, Timestamp};
use uuid::Uuid;

/// The bytes are none of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are none of a message")]
pub struct Undecodable;

/// What is left to read of a message. Numbers are big-endian. A length is only believed if so many bytes are there.
///
/// Each method takes what it answers from the front, and fails with [`Undecodable`] where it is not there or stands for nothing.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// That of a whole message.
    pub const fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// How many bytes are left.
    pub const fn left(&self) -> usize {
        self.0.len()
    }

    /// Whether everything was read.
    pub const fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// So many bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Undecodable> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Undecodable)?;
        self.0 = rest;
        Ok(taken)
    }

    /// So many bytes, as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Undecodable> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Undecodable)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// A byte.
    pub fn u8(&mut self) -> Result<u8, Undecodable> {
        self.array().map(u8::from_be_bytes)
    }

    /// A number of two bytes.
    pub fn u16(&mut self) -> Result<u16, Undecodable> {
        self.array().map(u16::from_be_bytes)
    }

    /// A number of four bytes.
    pub fn u32(&mut self) -> Result<u32, Undecodable> {
        self.array().map(u32::from_be_bytes)
    }

    /// A number of eight bytes.
    pub fn u64(&mut self) -> Result<u64, Undecodable> {
        self.array().map(u64::from_be_bytes)
    }

    /// A byte that is 0 or 1.
    pub fn flag(&mut self) -> Result<bool, Undecodable> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Undecodable),
        }
    }

    /// Bytes behind their length, a number of four bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], Undecodable> {
        let length = self.u32()?;
        self.take(usize::try_from(length).map_err(|_| Undecodable)?)
    }

    /// The id of a session.
    pub fn session(&mut self) -> Result<SessionId, Undecodable> {
        self.array().map(|bytes| SessionId::new(Uuid::from_bytes(bytes)))
    }

    /// A time, in microseconds.
    pub fn time(&mut self) -> Result<Timestamp, Undecodable> {
        self.array().map(|bytes| Timestamp::from_micros(i64::from_be_bytes(bytes)))
    }

    /// The number of a slot.
    pub fn slot(&mut self) -> Result<Slot, Undecodable> {
        Slot::new(self.u16()?).ok_or(Undecodable)
    }

    /// What was read, if that was everything.
    pub fn ends<T>(&self, read: T) -> Result<T, Undecodable> {
        if self.is_at_end() { Ok(read) } else { Err(Undecodable) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_gone_and_what_is_not_there_is_not_taken() {
        let mut from = Reader::new(&[1, 0, 2, 0, 0, 0, 3, 7, 8, 9, 2]);
        assert_eq!((from.flag(), from.u16(), from.bytes()), (Ok(true), Ok(2), Ok(&[7, 8, 9][..])));
        assert_eq!(from.u64(), Err(Undecodable));
        assert_eq!((from.left(), from.flag()), (1, Err(Undecodable)), "neither 0 nor 1");
        assert!(from.is_at_end());
        assert_eq!(Reader::new(&[255, 255, 255, 255, 0]).bytes(), Err(Undecodable), "a length is not believed");
        assert_eq!(Reader::new(&[4, 0]).slot(), Err(Undecodable), "there are 1,024 slots");
        assert!(Reader::new(&[3, 255]).slot().is_ok());
    }
}
