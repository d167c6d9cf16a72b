//! Opaque page cursors.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

/// Where a page ended. Opaque to clients; a changed one is refused, not misread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// After the session with this id.
    Session(Uuid),
    /// After the entry with this leaf index.
    Entry(u64),
}

const VERSION: u8 = 1;

impl Cursor {
    /// The text that clients carry.
    pub fn encode(self) -> String {
        let (kind, body) = match self {
            Self::Session(id) => (b's', id.into_bytes().to_vec()),
            Self::Entry(index) => (b'e', index.to_be_bytes().to_vec()),
        };
        let mut bytes = vec![VERSION, kind];
        bytes.extend(body);
        let check = checksum(&bytes);
        bytes.extend(check);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a cursor.
    pub fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (bytes, check) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if checksum(bytes) != check {
            return None;
        }
        match bytes.split_at_checked(2)? {
            ([VERSION, b's'], id) => Some(Self::Session(Uuid::from_slice(id).ok()?)),
            ([VERSION, b'e'], index) => Some(Self::Entry(u64::from_be_bytes(index.try_into().ok()?))),
            _ => None,
        }
    }
}

/// Tells a cut or mistyped cursor from a whole one; a cursor gives access to nothing, so it need not be a secret's.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = sealing::sha256(bytes).0;
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_refuses_what_was_changed() {
        for cursor in [Cursor::Session(Uuid::from_u128(5)), Cursor::Entry(77)] {
            let text = cursor.encode();
            assert_eq!(Cursor::decode(&text), Some(cursor));
            assert_eq!(Cursor::decode(&text[1..]), None);
        }
        assert_eq!(Cursor::decode(""), None);
        assert_eq!(Cursor::decode("AQ"), None);
    }
}
