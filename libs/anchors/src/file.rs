//! A file. Worth as much as the distance of its disk from the database's administrator.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use session_model::TreeSize;

use crate::{Anchor, PlaceError};

/// The newest checkpoint in a file, replaced whole.
#[derive(Debug, Clone)]
pub struct FileAnchor {
    file: PathBuf,
    place: String,
}

impl FileAnchor {
    /// The checkpoint in this file.
    pub fn new(file: PathBuf) -> Self {
        let place = file.display().to_string();
        Self { file, place }
    }
}

impl Anchor for FileAnchor {
    fn kind(&self) -> &'static str {
        "file"
    }

    fn place(&self) -> &str {
        &self.place
    }

    fn keep(&self, _: TreeSize, checkpoint: &str) -> Result<(), PlaceError> {
        replace_file(&self.file, checkpoint.as_bytes())
            .map_err(|failure| PlaceError::caused(&self.place, "cannot be written", failure))
    }

    fn newest(&self) -> Result<Option<String>, PlaceError> {
        match fs::read_to_string(&self.file) {
            Ok(text) => Ok(Some(text)),
            Err(failure) if failure.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(failure) => Err(PlaceError::caused(&self.place, "cannot be read", failure)),
        }
    }
}

/// Replaces a file whole, and returns once that is durable. Everybody may read it, whoever wrote it last: what is kept in such files is public,
/// and the service reads what a command of another user has kept.
///
/// # Errors
/// If it cannot be done; the file is then what it was.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Several processes may do it at once: each has a file of its own to rename.
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = File::create(&beside)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => File::open(Path::new("."))?.sync_all(),
    }
}
