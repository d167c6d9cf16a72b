//! Entries of the log in the forms that other systems read: JSON lines, CSV, OCSF and CEF.
//!
//! Every record is one line and carries the entry's `index` and `leaf_hash`: indices of a log are gapless, so whoever receives all of it
//! sees what is missing, and the hash leads back to the evidence. An export is a projection; the evidence is the leaf.
//!
//! No value can break out of its place: not out of the line, not out of a cell, field or string, and no cell begins a formula
//! (OWASP ASVS 16.4.1; property tests in `tests/injection.rs`). Pure: no I/O, no clock.
//!
//! Start with [`Format::write`].

mod cef;
mod csv;
mod jsonl;
mod line;
mod ocsf;

use std::fmt;
use std::str::FromStr;

use session_model::{Leaf, LeafHash, LeafIndex, SealedPart};

/// One entry to be written.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Its place in the log.
    pub index: LeafIndex,
    /// Hash of the exact bytes that are stored: SHA-256(0x00 ‖ leaf).
    pub leaf_hash: LeafHash,
    /// The leaf, decoded.
    pub leaf: &'a Leaf,
    /// The sealed part, if it was opened for this reader. Personal data.
    pub opened: Option<&'a SealedPart>,
}

impl Record<'_> {
    /// What the entry records, as the word that stands in its leaf.
    pub const fn action(&self) -> &'static str {
        self.leaf.action.name()
    }
}

/// How entries are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line: `index`, `leaf_hash`, `entry` (the leaf), `opened` (if it was).
    Jsonl,
    /// RFC 4180 with a line of names first; every cell quoted.
    Csv,
    /// One OCSF event a line: classes 3002, 3003 and 6003 of schema 1.8.0.
    Ocsf,
    /// One ArcSight CEF:0 event a line.
    Cef,
}

/// A word that is no format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be one of jsonl, csv, ocsf, cef")]
pub struct UnknownFormat;

/// A record that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("entry {index} cannot be written")]
pub struct WriteError {
    /// Which.
    pub index: LeafIndex,
    #[source]
    source: serde_json::Error,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Jsonl, Self::Csv, Self::Ocsf, Self::Cef];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Ocsf => "ocsf",
            Self::Cef => "cef",
        }
    }

    /// Its media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Jsonl | Self::Ocsf => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Cef => "text/plain; charset=utf-8",
        }
    }

    /// What stands before the first record; empty for most.
    pub fn header(self) -> &'static str {
        match self {
            Self::Csv => csv::HEADER,
            Self::Jsonl | Self::Ocsf | Self::Cef => "",
        }
    }

    /// Appends one record: exactly one line, its end included. On failure nothing is appended.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(self, record: &Record<'_>, out: &mut Vec<u8>) -> Result<(), WriteError> {
        let line = match self {
            Self::Jsonl => jsonl::line(record),
            Self::Csv => csv::line(record),
            Self::Ocsf => ocsf::line(record),
            Self::Cef => cef::line(record),
        };
        let line = line.map_err(|source| WriteError { index: record.index, source })?;
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
        Ok(())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;
    fn from_str(word: &str) -> Result<Self, UnknownFormat> {
        Self::ALL.into_iter().find(|format| format.name() == word).ok_or(UnknownFormat)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
