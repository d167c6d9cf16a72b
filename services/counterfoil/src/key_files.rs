//! The key files: made at the first start, never overwritten, refused if others could read them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api_audit::PublishedKey;
use merkle_log::Signer;
use sealing::{Ids, Keyring, LogKey, SealError, VerifierKey, sha256};
use serde::{Deserialize, Serialize};
use session_model::{Timestamp, TreeSize};
use zeroize::Zeroizing;

const KEK: &str = "kek";
const LOG_KEY: &str = "log.pem";
/// The key that signs beside the current one, between `log-key add` and `log-key retire`.
const NEXT: &str = "log.next.pem";
/// An ECDSA key whose signature stands beside.
const P256: &str = "log.p256.pem";
const VKEY: &str = "log.vkey";
/// Every verifier key the log ever had, with the time it signed in: one JSON object a line. Made by the first `log-key add`.
const KNOWN: &str = "log.keys";
const ORIGIN: &str = "origin";

/// What the key files hold.
#[derive(Debug)]
pub(crate) struct KeyFiles {
    /// Derived from the key-encryption key.
    pub keyring: Keyring,
    /// Sign checkpoints, one line each: the current one, and during a rotation the next.
    pub log_keys: Vec<LogKey>,
    /// Signs beside them, where ECDSA is asked for.
    pub p256: Option<LogKey>,
    /// Every verifier key the log ever had: those that sign first, then past ones, the newest first.
    pub known: Vec<KnownKey>,
    /// The log's origin.
    pub origin: String,
}

/// A verifier key of the log, and the time that it signed in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownKey {
    /// C2SP vkey line.
    pub vkey: String,
    /// Since when; absent for the log's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Until when; absent while it signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
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

/// The keyring and the log's origin, of keys that are there.
///
/// # Errors
/// [`KeyFileError`].
pub(crate) fn keyring_and_origin(dir: &Path) -> Result<(Keyring, String), KeyFileError> {
    // As of a log that is not empty: nothing is made that is missing.
    let keys = KeyFiles::open(dir, TreeSize(1))?;
    Ok((keys.keyring, keys.origin))
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
        let _made = Zeroizing::new(read_or_make(&dir.join(KEK), 0o600, || Ok(Ids.secret()?.to_vec()))?);
        let keyring = Self::keyring(dir)?;
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
        let _made = Zeroizing::new(read_or_make(&dir.join(LOG_KEY), 0o600, || LogKey::generate(&origin)?.to_pem())?);
        let LogKeyFiles { log_keys, p256, known } = LogKeyFiles::read(dir, &origin)?;
        let vkey = dir.join(VKEY);
        if !vkey.exists() {
            let current = log_keys.get(..1).unwrap_or_default();
            write_new(&vkey, 0o644, vkey_line(current).as_bytes()).map_err(at(&vkey))?;
        }
        Ok(Self { keyring, log_keys, p256, known, origin })
    }

    /// The keyring of the file `kek` as it is now.
    ///
    /// # Errors
    /// [`KeyFileError`]; also if there is none.
    pub(crate) fn keyring(dir: &Path) -> Result<Keyring, KeyFileError> {
        let path = dir.join(KEK);
        let kek = Zeroizing::new(read_secret(&path)?);
        Keyring::from_file(&kek).map_err(|failure| match failure {
            SealError::Malformed(_) => KeyFileError::Malformed { path },
            other => other.into(),
        })
    }

    /// What verifies the log's checkpoints, past ones included.
    ///
    /// # Errors
    /// [`KeyFileError::Seal`] if the list of past keys is spoilt.
    pub(crate) fn verifiers(&self) -> Result<Vec<VerifierKey>, KeyFileError> {
        verifiers(&self.known)
    }

    /// The verifier keys as auditors are told of them.
    pub(crate) fn published(&self) -> Vec<PublishedKey> {
        published(&self.known)
    }

    /// Puts a keyring in the place of the one that is kept.
    ///
    /// # Errors
    /// [`KeyFileError`]; the file is then what it was.
    pub(crate) fn keep_keyring(dir: &Path, keyring: &Keyring) -> Result<(), KeyFileError> {
        let path = dir.join(KEK);
        replace(&path, 0o600, &keyring.to_file()?).map_err(|source| KeyFileError::Io { path, source })
    }

    /// Keeps a new key that signs beside the current one from the next start on: the next, or an ECDSA key.
    ///
    /// # Errors
    /// [`KeyFileError::Io`], also if there is one already.
    pub(crate) fn add(&self, dir: &Path, key: &LogKey, now: Timestamp) -> Result<(), KeyFileError> {
        let mut known = self.known.clone();
        known.insert(1, KnownKey { vkey: key.verifier().to_string(), from: Some(now), until: None });
        write_known(dir, &known)?;
        let path = dir.join(if key.verifier().is_ed25519() { NEXT } else { P256 });
        write_new(&path, 0o600, &key.to_pem()?).map_err(|source| KeyFileError::Io { path, source })
    }

    /// Destroys the ECDSA key; its verifier key is kept with the time it signed in.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub(crate) fn retire_p256(&self, dir: &Path, now: Timestamp) -> Result<(), KeyFileError> {
        let path = dir.join(P256);
        let Some(key) = &self.p256 else { return Err(KeyFileError::Malformed { path }) };
        self.write_ended(dir, &key.verifier().to_string(), now)?;
        fs::remove_file(&path)
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(|source| KeyFileError::Io { path, source })
    }

    fn write_ended(&self, dir: &Path, vkey: &str, now: Timestamp) -> Result<(), KeyFileError> {
        let mut known = self.known.clone();
        for key in known.iter_mut().filter(|key| key.vkey == vkey) {
            key.until = Some(now);
        }
        write_known(dir, &known)
    }

    /// Makes the next key the current one; the one that was is destroyed, and its verifier key kept with the time it signed in.
    ///
    /// # Errors
    /// [`KeyFileError`]; repeated, it finishes what was begun.
    pub(crate) fn retire(&self, dir: &Path, now: Timestamp) -> Result<(), KeyFileError> {
        let [current, next] = self.log_keys.as_slice() else {
            return Err(KeyFileError::Malformed { path: dir.join(NEXT) });
        };
        self.write_ended(dir, &current.verifier().to_string(), now)?;
        let vkey = dir.join(VKEY);
        replace(&vkey, 0o644, vkey_line(std::slice::from_ref(next)).as_bytes())
            .map_err(|source| KeyFileError::Io { path: vkey, source })?;
        let pem = dir.join(LOG_KEY);
        fs::rename(dir.join(NEXT), &pem)
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(|source| KeyFileError::Io { path: pem, source })
    }
}

/// What signs checkpoints, and what verifies them, of the key files.
#[derive(Debug)]
pub(crate) struct LogKeyFiles {
    /// See [`KeyFiles::log_keys`].
    pub log_keys: Vec<LogKey>,
    /// See [`KeyFiles::p256`].
    pub p256: Option<LogKey>,
    /// See [`KeyFiles::known`].
    pub known: Vec<KnownKey>,
}

impl LogKeyFiles {
    /// Reads them as they are now, and makes none.
    ///
    /// # Errors
    /// [`KeyFileError`]; also if there is no current key.
    pub(crate) fn read(dir: &Path, origin: &str) -> Result<Self, KeyFileError> {
        let key = |file: &str| {
            let pem = Zeroizing::new(read_secret(&dir.join(file))?);
            Ok::<_, KeyFileError>(LogKey::from_pem(origin, &pem)?)
        };
        let if_there = |file: &str| dir.join(file).exists().then(|| key(file)).transpose();
        let log_keys: Vec<LogKey> = std::iter::once(key(LOG_KEY)?).chain(if_there(NEXT)?).collect();
        let p256 = if_there(P256)?;
        let known = known(&dir.join(KNOWN), log_keys.iter().chain(&p256))?;
        Ok(Self { log_keys, p256, known })
    }

    /// See [`KeyFiles::verifiers`].
    ///
    /// # Errors
    /// [`KeyFileError::Seal`] if the list of past keys is spoilt.
    pub(crate) fn verifiers(&self) -> Result<Vec<VerifierKey>, KeyFileError> {
        verifiers(&self.known)
    }

    /// See [`KeyFiles::published`].
    pub(crate) fn published(&self) -> Vec<PublishedKey> {
        published(&self.known)
    }
}

fn verifiers(known: &[KnownKey]) -> Result<Vec<VerifierKey>, KeyFileError> {
    known.iter().map(|known| Ok(VerifierKey::parse(&known.vkey)?)).collect()
}

fn published(known: &[KnownKey]) -> Vec<PublishedKey> {
    let publish = |key: &KnownKey| PublishedKey { vkey: key.vkey.clone(), from: key.from, until: key.until };
    known.iter().map(publish).collect()
}

/// What signs checkpoints, in the form that the service takes it.
pub(crate) fn signers(log_keys: Vec<LogKey>, p256: Option<LogKey>) -> Vec<Arc<dyn Signer + Send + Sync>> {
    log_keys.into_iter().chain(p256).map(|key| Arc::new(key) as _).collect()
}

fn vkey_line(keys: &[LogKey]) -> String {
    keys.iter().map(|key| format!("{}\n", key.verifier())).collect()
}

/// The list of known keys: those of the file, and whichever of those that sign it does not have.
fn known<'a>(path: &Path, signing: impl Iterator<Item = &'a LogKey>) -> Result<Vec<KnownKey>, KeyFileError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(KeyFileError::Io { path: path.to_owned(), source }),
    };
    let malformed = |_| KeyFileError::Malformed { path: path.to_owned() };
    let mut listed: Vec<KnownKey> =
        text.lines().map(serde_json::from_str).collect::<Result<_, _>>().map_err(malformed)?;
    let mut known = Vec::new();
    for key in signing {
        let vkey = key.verifier().to_string();
        let at = listed.iter().position(|listed| listed.vkey == vkey);
        let of = at.map(|at| listed.remove(at));
        // A retirement that was cut short has ended a key that still signs.
        known.push(of.map_or(KnownKey { vkey, from: None, until: None }, |of| KnownKey { until: None, ..of }));
    }
    listed.sort_by_key(|past| std::cmp::Reverse(past.until));
    known.extend(listed);
    Ok(known)
}

fn write_known(dir: &Path, known: &[KnownKey]) -> Result<(), KeyFileError> {
    let path = dir.join(KNOWN);
    let lines: Result<Vec<String>, _> = known.iter().map(serde_json::to_string).collect();
    let text = lines.map(|lines| lines.join("\n") + "\n").map_err(io::Error::other);
    text.and_then(|text| replace(&path, 0o644, text.as_bytes())).map_err(|source| KeyFileError::Io { path, source })
}

/// Replaces a file whole, and returns once that is durable.
fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
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
    if mode & 0o077 == 0 { read_secret(path) } else { fs::read(path).map_err(io) }
}

/// Reads a file that nobody else may be able to read.
fn read_secret(path: &Path) -> Result<Vec<u8>, KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    let found = fs::metadata(path).map_err(io)?.permissions().mode();
    if found & 0o077 != 0 {
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
        assert_eq!(first.known, again.known);
        assert_eq!(first.known.len(), 1);
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
    fn a_rotation_keeps_every_verifier_key_and_destroys_the_old_key() {
        let dir = tempfile::tempdir().unwrap();
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        let first = KeyFiles::open(dir.path(), TreeSize(0)).unwrap();
        let old = first.known[0].vkey.clone();
        let next = LogKey::generate(&first.origin).unwrap();
        first.add(dir.path(), &next, at(1)).unwrap();
        assert!(first.add(dir.path(), &next, at(1)).is_err(), "one rotation at a time");
        let both = KeyFiles::open(dir.path(), TreeSize(9)).unwrap();
        let new = next.verifier().to_string();
        let of = |vkey: &str, from, until| KnownKey { vkey: vkey.to_owned(), from, until };
        assert_eq!(both.known, [of(&old, None, None), of(&new, Some(at(1)), None)]);
        assert_eq!(both.log_keys.len(), 2);
        both.retire(dir.path(), at(2)).unwrap();
        let after = KeyFiles::open(dir.path(), TreeSize(9)).unwrap();
        assert_eq!(after.known, [of(&new, Some(at(1)), None), of(&old, None, Some(at(2)))]);
        assert_eq!(after.log_keys.len(), 1);
        assert_eq!(fs::read_to_string(dir.path().join(VKEY)).unwrap().trim(), new);
        assert!(after.retire(dir.path(), at(3)).is_err(), "nothing to retire");
        // Cut short between the list and the key: the old key still signs, and is not called past.
        let third = LogKey::generate(&first.origin).unwrap();
        after.add(dir.path(), &third, at(4)).unwrap();
        let both = KeyFiles::open(dir.path(), TreeSize(9)).unwrap();
        let mut known = both.known.clone();
        known[0].until = Some(at(5));
        write_known(dir.path(), &known).unwrap();
        assert_eq!(KeyFiles::open(dir.path(), TreeSize(9)).unwrap().known, both.known);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        KeyFiles::open(dir.path(), TreeSize(0)).unwrap();
        fs::set_permissions(dir.path().join(LOG_KEY), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(KeyFiles::open(dir.path(), TreeSize(0)), Err(KeyFileError::Exposed { .. })));
    }
}
