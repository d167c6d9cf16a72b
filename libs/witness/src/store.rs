//! What was seen last: one file for each log, replaced whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the folder.
    #[error("{path} is locked: another witness runs on this folder")]
    Taken {
        /// The lock.
        path: PathBuf,
    },
    /// It is not what was written.
    #[error("{path} is not the checkpoint that was written there: restore it, or this witness may go back")]
    Altered {
        /// Which file.
        path: PathBuf,
    },
}

pub(crate) fn path(folder: &Path, origin: &str) -> PathBuf {
    folder.join(format!("{}.checkpoint", sealing::sha256(origin.as_bytes())))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io { path, source }
}

/// Makes the folder, and takes it for this process: the lock goes with the file that is answered.
pub(crate) fn prepare(folder: &Path) -> Result<File, StoreError> {
    fs::create_dir_all(folder).map_err(at(folder))?;
    let path = folder.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(at(&path))?;
    lock.try_lock().map_err(|_| StoreError::Taken { path })?;
    Ok(lock)
}

pub(crate) fn read(folder: &Path, origin: &str) -> Result<Option<String>, StoreError> {
    let path = path(folder, origin);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(failure) => Err(at(&path)(failure)),
    }
}

/// Returns once it is durable.
pub(crate) fn write(folder: &Path, origin: &str, checkpoint: &str) -> Result<(), StoreError> {
    let path = path(folder, origin);
    let beside = path.with_extension("new");
    let replace = || {
        let mut file = File::create(&beside)?;
        file.write_all(checkpoint.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(folder)?.sync_all()
    };
    replace().map_err(at(&path))
}

pub(crate) fn altered(folder: &Path, origin: &str) -> StoreError {
    StoreError::Altered { path: path(folder, origin) }
}
