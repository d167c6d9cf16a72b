//! Names and numbers with one meaning each. Parsed once, at the edge; never a bare `String` or `u64` further in.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// Why a text is not an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not the canonical 36-character form of a UUID.
    #[error("not a UUID in its canonical form")]
    Uuid,
    /// A realm name is 1 to 63 of `a-z`, `0-9`, `-`, starting with a letter.
    #[error("a realm name is 1 to 63 of a-z, 0-9 and '-', starting with a letter")]
    Realm,
    /// Not lower-case hexadecimal of the right length.
    #[error("not hexadecimal of the right length")]
    Hex,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that was made as this kind of id.
            pub const fn new(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            /// Only the 36-character hyphenated form, so that one id has one spelling.
            fn from_str(text: &str) -> Result<Self, IdError> {
                if text.len() != 36 || text.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    return Err(IdError::Uuid);
                }
                Uuid::try_parse(text).map(Self).map_err(|_| IdError::Uuid)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

uuid_id! {
    /// Names a session. UUIDv7, so ids sort by creation; not secret: the token is.
    SessionId
}
uuid_id! {
    /// Names an entry of the log from before it is appended, so that an append can be retried. UUIDv7.
    EntryId
}
uuid_id! {
    /// Names a data key, the key that seals one subject's personal data. In a leaf it is the pseudonymous subject
    /// handle: random, so that nothing but the (deletable) key row ties it to a person.
    KeyId
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The position of an entry in the log, from 0, gapless. The clock of everything derived from the log.
    LeafIndex
}
number! {
    /// How many entries a log or a checkpoint covers. An index is not a count.
    TreeSize
}
number! {
    /// The version of a session: 1 when created, one more with every entry.
    Version
}

impl Version {
    /// The version of a session that does not exist yet.
    pub const NONE: Self = Self(0);

    /// The version after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A tenant's name. Cheap to clone: every session of a realm shares one allocation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealmName(Arc<str>);

impl RealmName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RealmName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let starts = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        let fits = text.len() <= 63
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if starts && fits { Ok(Self(text.into())) } else { Err(IdError::Realm) }
    }
}

impl fmt::Display for RealmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RealmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for RealmName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RealmName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Thirty-two bytes that came out of SHA-256 or HMAC-SHA-256. Written as lower-case hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

/// The RFC 9162 section 2.1.1 hash of a leaf: SHA-256(0x00 ‖ leaf).
pub type LeafHash = Digest;

const HEX: &[u8; 16] = b"0123456789abcdef";

impl Digest {
    fn hex(&self) -> [u8; 64] {
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            if let [high, low] = pair {
                *high = HEX.get(usize::from(byte >> 4)).copied().unwrap_or_default();
                *low = HEX.get(usize::from(byte & 15)).copied().unwrap_or_default();
            }
        }
        text
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let nibble = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(IdError::Hex),
        };
        let mut digest = [0; 32];
        if text.len() != 64 {
            return Err(IdError::Hex);
        }
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            if let [high, low] = *pair {
                *byte = nibble(high)? << 4 | nibble(low)?;
            }
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.hex()).unwrap_or_default())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(std::str::from_utf8(&self.hex()).unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let text = "0190a5c2-7c1e-7000-8000-00000000000a";
        assert_eq!(text.parse::<SessionId>().unwrap().to_string(), text);
        for other in ["0190A5C2-7C1E-7000-8000-00000000000A", "{0190a5c2-7c1e-7000-8000-00000000000a}", "", "x"] {
            assert_eq!(other.parse::<SessionId>(), Err(IdError::Uuid), "{other}");
        }
    }

    #[test]
    fn realm_names_are_plain() {
        assert!("default".parse::<RealmName>().is_ok());
        for bad in ["", "Default", "a b", "1st", "-x", &"a".repeat(64)] {
            assert_eq!(bad.parse::<RealmName>(), Err(IdError::Realm), "{bad}");
        }
    }

    #[test]
    fn a_digest_reads_back() {
        let digest = Digest(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        assert_eq!("zz".parse::<Digest>(), Err(IdError::Hex));
    }
}
