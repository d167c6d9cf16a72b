//! Where the files of a bundle are: in a folder, or in a zip.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zip::ZipArchive;

/// No file of a bundle but the table for people is larger: 256 leaves of 65,535 bytes, or their sealed parts in base64. What claims
/// to be larger is not read, so that a small zip cannot fill the memory.
const MOST: u64 = 64 << 20;

/// The files of a bundle. Cheap to clone: one for each thread.
#[derive(Clone)]
pub(crate) enum Source {
    Folder(PathBuf),
    Zip(ZipArchive<Shared>),
}

/// One open file, read by several threads at once.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    file: Arc<File>,
    length: u64,
    at: u64,
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Shared {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

impl Source {
    /// Opens a folder or a zip.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let shared = Shared { file: Arc::new(file), length, at: 0 };
        Ok(Self::Zip(ZipArchive::new(shared).map_err(io::Error::other)?))
    }

    /// Whether there is such a file.
    pub(crate) fn has(&self, path: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(path).is_file(),
            Self::Zip(zip) => zip.index_for_name(path).is_some(),
        }
    }

    /// A file; `None` if there is none of this name.
    pub(crate) fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match self {
            Self::Folder(folder) => match File::open(folder.join(path)) {
                Ok(file) => file.take(MOST + 1).read_to_end(&mut bytes)?,
                Err(failure) if failure.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(failure) => return Err(failure),
            },
            Self::Zip(zip) => match zip.by_name(path) {
                Ok(file) => file.take(MOST + 1).read_to_end(&mut bytes)?,
                Err(zip::result::ZipError::FileNotFound) => return Ok(None),
                Err(failure) => return Err(io::Error::other(failure)),
            },
        };
        if bytes.len() as u64 > MOST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{path} is larger than any file of a bundle"),
            ));
        }
        Ok(Some(bytes))
    }
}

/// Entries of a group: those that one full hash tile covers.
pub(crate) const GROUP: u64 = 256;

/// A tile's number as C2SP tlog-tiles writes it: groups of three digits, all but the last behind an `x`.
pub(crate) fn number(index: u64) -> String {
    let digits = index.to_string();
    let digits = format!("{digits:0>width$}", width = digits.len().next_multiple_of(3));
    let (before, last) = digits.split_at_checked(digits.len() - 3).unwrap_or_default();
    let mut text = String::new();
    for (at, digit) in before.chars().enumerate() {
        text.push_str(if at % 3 == 0 { "x" } else { "" });
        text.push(digit);
        text.push_str(if at % 3 == 2 { "/" } else { "" });
    }
    text + last
}

/// A tile's number with the width of a partial one.
pub(crate) fn tile(index: u64, width: u64) -> String {
    if width == GROUP { number(index) } else { format!("{}.p/{width}", number(index)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_the_specification_does() {
        assert_eq!((number(0), number(999), number(1_000)), ("000".into(), "999".into(), "x001/000".into()));
        assert_eq!((number(1_234_067), tile(1, 7)), ("x001/x234/067".into(), "001.p/7".into()));
    }

    #[test]
    fn a_zip_bomb_is_not_unpacked() {
        use std::io::Write;
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut zip = zip::ZipWriter::new(file.reopen().unwrap());
        zip.start_file("manifest.json", zip::write::SimpleFileOptions::default()).unwrap();
        for _ in 0..=(MOST >> 20) {
            zip.write_all(&vec![0; 1 << 20]).unwrap();
        }
        zip.finish().unwrap();
        assert!(file.as_file().metadata().unwrap().len() < 1 << 20);
        assert!(Source::open(file.path()).unwrap().read("manifest.json").is_err());
        assert!(Source::open(file.path()).unwrap().read("other").unwrap().is_none());
    }
}
