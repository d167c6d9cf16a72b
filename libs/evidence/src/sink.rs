//! Where a bundle goes: a folder, or a zip that is written from its beginning to its end.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use zip::write::{SimpleFileOptions, StreamWriter};
use zip::{CompressionMethod, ZipWriter};

/// Takes the files of a bundle, one after another.
#[async_trait]
pub trait Sink: Send {
    /// Begins a file; the one before it ends. `path` has `/` between its parts and is never repeated.
    ///
    /// # Errors
    /// If it cannot be written; so for every function here.
    fn begin(&mut self, path: &str) -> io::Result<()>;

    /// Adds to the file that was begun last.
    ///
    /// # Errors
    /// See [`Sink::begin`].
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Hands on what has gathered, and waits until there is room for more.
    ///
    /// # Errors
    /// See [`Sink::begin`].
    async fn flush(&mut self) -> io::Result<()>;

    /// Ends the bundle. Without this it is not whole, and nobody will take it for whole.
    ///
    /// # Errors
    /// See [`Sink::begin`].
    async fn finish(&mut self) -> io::Result<()>;
}

/// A folder that must be new or empty.
#[derive(Debug)]
pub struct FolderSink {
    folder: PathBuf,
    file: Option<BufWriter<File>>,
}

impl FolderSink {
    /// Makes the folder.
    ///
    /// # Errors
    /// If it cannot be made, or holds something.
    pub fn create(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        if fs::read_dir(folder)?.next().is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is not empty", folder.display())));
        }
        Ok(Self { folder: folder.to_owned(), file: None })
    }

    fn end(&mut self) -> io::Result<()> {
        self.file.take().map_or(Ok(()), |mut file| file.flush())
    }
}

#[async_trait]
impl Sink for FolderSink {
    fn begin(&mut self, path: &str) -> io::Result<()> {
        self.end()?;
        let path = self.folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        self.file = Some(BufWriter::new(File::create_new(path)?));
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let none = || io::Error::other("no file was begun");
        self.file.as_mut().ok_or_else(none)?.write_all(bytes)
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.end()
    }
}

/// Takes the bytes of a zip, in order.
#[async_trait]
pub trait ChunkTo: Send {
    /// Takes the next bytes; returns once there is room for more.
    ///
    /// # Errors
    /// If nobody takes them any more.
    async fn send(&mut self, chunk: Vec<u8>) -> io::Result<()>;
}

#[async_trait]
impl ChunkTo for File {
    async fn send(&mut self, chunk: Vec<u8>) -> io::Result<()> {
        self.write_all(&chunk)
    }
}

/// What the zip writer has written and nobody has taken yet.
#[derive(Debug, Clone, Default)]
struct Gathered(Arc<Mutex<Vec<u8>>>);

impl Gathered {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Write for Gathered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A zip.
pub struct ZipSink<C> {
    zip: Option<ZipWriter<StreamWriter<Gathered>>>,
    gathered: Gathered,
    to: C,
}

impl<C> std::fmt::Debug for ZipSink<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ZipSink")
    }
}

impl<C: ChunkTo> ZipSink<C> {
    /// A zip whose bytes go to `to`.
    pub fn new(to: C) -> Self {
        let gathered = Gathered::default();
        Self { zip: Some(ZipWriter::new_stream(gathered.clone())), gathered, to }
    }

    fn zip(&mut self) -> io::Result<&mut ZipWriter<StreamWriter<Gathered>>> {
        self.zip.as_mut().ok_or_else(|| io::Error::other("the zip has ended"))
    }
}

#[async_trait]
impl<C: ChunkTo> Sink for ZipSink<C> {
    fn begin(&mut self, path: &str) -> io::Result<()> {
        // Hashes and ciphertext do not compress.
        let hashes = path.starts_with("tile/") && !path.starts_with("tile/entries/");
        let method = if hashes { CompressionMethod::Stored } else { CompressionMethod::Deflated };
        let options = SimpleFileOptions::default()
            .compression_method(method)
            .compression_level((!hashes).then_some(1))
            .large_file(path.ends_with(".csv"));
        self.zip()?.start_file(path, options).map_err(io::Error::other)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.zip()?.write_all(bytes)
    }

    async fn flush(&mut self) -> io::Result<()> {
        let chunk = self.gathered.take();
        if chunk.is_empty() { Ok(()) } else { self.to.send(chunk).await }
    }

    async fn finish(&mut self) -> io::Result<()> {
        if let Some(zip) = self.zip.take() {
            let _gathered = zip.finish().map_err(io::Error::other)?;
        }
        self.flush().await
    }
}
