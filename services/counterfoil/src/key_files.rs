//! The key files: made at the first start, never overwritten, refused if others could read them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sealing::{Ids, Keyring, LogKey, SealError, sha256};
use session_model::TreeSize;

const KEK: &str = "kek";
const LOG_KEY: &str = "log.pem";
const VKEY: &str = "log.vkey";
const ORIGIN: &str = "origin";

/// What the key files hold.
#[derive(Debug)]
pub(crate) struct KeyFiles {
    /// Derived from the key-encryption key.
    pub keyring: Keyring,
    /// Signs checkpoints.
    pub log_key: LogKey,
    /// The log's origin.
    pub origin: String,
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key is missing, but the log is not empty.
    #[error(
        "{missing} is missing from {dir}, but the log has {size} entries: restore it from a backup. With a new key nothing \
         sealed before could be opened, and no checkpoint would verify"
    )]
    Missing {
        /// Which file.
        missing: &'static str,
        /// From where.
        dir: PathBuf,
        /// How long the log is.
        size: TreeSize,
    },
    /// Others can read a secret key.
    #[error("{path} can be read by others: chmod 600 it")]
    Exposed {
        /// Which file.
        path: PathBuf,
    },
    /// A file holds no key.
    #[error("{path} holds no key")]
    Malformed {
        /// Which file.
        path: PathBuf,
    },
    /// A key cannot be made or used.
    #[error("a key cannot be made or used")]
    Seal(#[from] SealError),
}

impl KeyFiles {
    /// Reads the key files; makes those that are missing if the log is still empty.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub(crate) fn open(dir: &Path, size: TreeSize) -> Result<Self, KeyFileError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| KeyFileError::Io { path, source }
        };
        fs::create_dir_all(dir).map_err(at(dir))?;
        if size.0 > 0 {
            for missing in [KEK, LOG_KEY, ORIGIN] {
                if !dir.join(missing).exists() {
                    return Err(KeyFileError::Missing { missing, dir: dir.to_owned(), size });
                }
            }
        }
        let kek = read_or_make(&dir.join(KEK), 0o600, || Ok(Ids.secret()?.to_vec()))?;
        let kek: [u8; 32] = kek.try_into().map_err(|_| KeyFileError::Malformed { path: dir.join(KEK) })?;
        let origin = read_or_make(&dir.join(ORIGIN), 0o644, || {
            let name = sha256(&Ids.secret()?).to_string();
            Ok(format!("counterfoil.invalid/{:.16}\n", name).into_bytes())
        })?;
        let malformed = |file: &str| KeyFileError::Malformed { path: dir.join(file) };
        let origin = String::from_utf8(origin).map_err(|_| malformed(ORIGIN))?.trim().to_owned();
        // A note's key name has neither spaces nor plus signs (C2SP signed-note).
        if origin.is_empty() || origin.chars().any(|c| c.is_whitespace() || c == '+') {
            return Err(malformed(ORIGIN));
        }
        let pem = read_or_make(&dir.join(LOG_KEY), 0o600, || LogKey::generate(&origin)?.to_pem())?;
        let log_key = LogKey::from_pem(&origin, &pem)?;
        let vkey = dir.join(VKEY);
        if !vkey.exists() {
            write_new(&vkey, 0o644, format!("{}\n", log_key.verifier()).as_bytes()).map_err(at(&vkey))?;
        }
        Ok(Self { keyring: Keyring::new(&kek)?, log_key, origin })
    }
}

/// Reads a file, or makes it. Two processes that start at once make it once: the one that comes second reads.
fn read_or_make(
    path: &Path,
    mode: u32,
    make: impl FnOnce() -> Result<Vec<u8>, SealError>,
) -> Result<Vec<u8>, KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    if !path.exists() {
        match write_new(path, mode, &make()?) {
            Ok(()) => {}
            Err(failure) if failure.kind() == io::ErrorKind::AlreadyExists => {}
            Err(failure) => return Err(io(failure)),
        }
    }
    let found = fs::metadata(path).map_err(io)?.permissions().mode();
    if mode & 0o077 == 0 && found & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned() });
    }
    fs::read(path).map_err(io)
}

/// Writes a file that must not be there yet, whole or not at all: a power cut leaves no half a key.
fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    // A hard link, unlike a rename, never replaces what is there.
    let linked = written.and_then(|()| fs::hard_link(&beside, path));
    let removed = fs::remove_file(&beside);
    linked?;
    removed?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = KeyFiles::open(dir.path(), TreeSize(0)).unwrap();
        let again = KeyFiles::open(dir.path(), TreeSize(9)).unwrap();
        assert_eq!(first.origin, again.origin);
        assert_eq!(first.log_key.verifier().to_string(), again.log_key.verifier().to_string());
        assert_eq!(first.keyring.view_key(), again.keyring.view_key());
    }

    #[test]
    fn a_key_lost_beside_a_log_with_entries_is_refused_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        KeyFiles::open(dir.path(), TreeSize(0)).unwrap();
        fs::remove_file(dir.path().join(KEK)).unwrap();
        assert!(matches!(KeyFiles::open(dir.path(), TreeSize(1)), Err(KeyFileError::Missing { missing: KEK, .. })));
        assert!(!dir.path().join(KEK).exists());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        KeyFiles::open(dir.path(), TreeSize(0)).unwrap();
        fs::set_permissions(dir.path().join(LOG_KEY), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(KeyFiles::open(dir.path(), TreeSize(0)), Err(KeyFileError::Exposed { .. })));
    }
}
