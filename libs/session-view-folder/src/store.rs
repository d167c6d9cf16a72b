//! The files. Everything here blocks, and is called on threads that may.
//!
//! No lock, no lease: a state has a name of its own (module `names`), is written beside what stands there and becomes visible
//! under its name at once, whole. Readers take the greatest name, so a writer that was stopped for an hour and goes on puts
//! an old state *below* the newer one, never in its place. What is outdated is removed afterwards, by whoever sees it.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::RwLock;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};
use rustix::fs::{fstat, linkat, mkdirat, openat, renameat, statat, syncfs, unlinkat};
use rustix::io::Errno;
use session_model::{Session, SessionId, Timestamp, TreeSize};
use session_value::{EncodeError, Header, Sealer};
use session_view::{Applied, Viewed};

use crate::names::{Marker, Name, ValueName, bucket, used_name};

/// Attempts at what another process may undo in between: it would have to be faster that often in a row.
const ATTEMPTS: usize = 16;
/// No state is larger: attributes are limited far below.
const VALUE_BYTES_MAX: u64 = 16 << 20;
/// Files in the quarantine: whoever can write rubbish could otherwise fill the disk with it.
const KEPT_ASIDE: usize = 1_000;
/// Folders that sessions are spread over: a million sessions are some 250 in each.
pub(crate) const FANS: u16 = 4_096;
/// A value is written within milliseconds, or its writer is gone.
const TEMPORARY_S: i64 = 600;
/// Seconds for which a tombstone is kept at least: nodes may be cut off for long.
const ENDED_S: i64 = 24 * 3_600;
/// A session this long past its deadline was overlooked: its marker was lost with the node that was about to write it.
const OVERLOOKED_MICROS: i64 = 600_000_000;

/// Why the folder did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The folder is not there.
    #[error("the folder of the session view is not there")]
    Missing,
    /// The operating system refused.
    #[error("the file system did not do as asked")]
    Io(#[from] Errno),
    /// A file could not be read or written.
    #[error("a file could not be read or written")]
    File(#[from] std::io::Error),
    /// Something that is no state stands in the place of one.
    #[error("what stands there is no state of the session")]
    Undecodable,
    /// Other processes changed it again and again.
    #[error("others changed it too often meanwhile")]
    Busy,
    /// The state could not be sealed.
    #[error("the state could not be sealed")]
    Encode(#[from] EncodeError),
    /// Others may write to the folder.
    #[error("the folder may be written to by everybody")]
    Open,
}

/// A state, and the name it stands under.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) name: ValueName,
    pub(crate) viewed: Viewed,
}

/// What stands in a session's folder.
#[derive(Default)]
struct Listing {
    newest: Option<ValueName>,
    older: Vec<ValueName>,
    used: Option<Timestamp>,
    older_uses: Vec<Timestamp>,
}

/// The folders that are held open.
struct Root {
    all: OwnedFd,
    sessions: OwnedFd,
    due: OwnedFd,
    reflects: OwnedFd,
    aside: OwnedFd,
}

pub(crate) struct Store {
    path: PathBuf,
    sealer: Sealer,
    root: RwLock<Option<Arc<Root>>>,
    /// Tells this process's temporary files from those of others.
    writer: u64,
    written: AtomicU64,
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const ONLY_OURS: Mode = Mode::RWXU;
const ONLY_US: Mode = Mode::RUSR.union(Mode::WUSR);

impl Store {
    /// In `path`, whose parent must be there for anything to be stored.
    pub(crate) fn new(path: PathBuf, sealer: Sealer, writer: u64) -> Self {
        Self { path, sealer, root: RwLock::default(), writer, written: AtomicU64::new(0) }
    }

    /// Opens the folder, and makes it if its parent is there.
    pub(crate) fn open(&self) -> Result<(), FileError> {
        *self.root.write() = None;
        make_folder(CWD, &self.path)?;
        let all = openat(CWD, &self.path, FOLDER, Mode::empty())?;
        if Mode::from_raw_mode(fstat(&all)?.st_mode).contains(Mode::WOTH) {
            return Err(FileError::Open);
        }
        let inner = |name: &str| -> Result<OwnedFd, FileError> {
            make_folder(&all, name)?;
            Ok(openat(&all, name, FOLDER, Mode::empty())?)
        };
        let (sessions, due) = (inner("sessions")?, inner("due")?);
        let (reflects, aside) = (inner("reflects")?, inner("quarantine")?);
        *self.root.write() = Some(Arc::new(Root { all, sessions, due, reflects, aside }));
        Ok(())
    }

    /// Whether the folder is there, is still the one that was opened, and can be written to.
    pub(crate) fn probe(&self) -> Result<(), FileError> {
        let root = self.root()?;
        let (held, named) = (fstat(&root.all)?, statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW));
        let named = named.map_err(|_| FileError::Missing)?;
        if (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino) {
            return Err(FileError::Missing);
        }
        let name = self.write(&root.all, b"probe")?;
        Ok(unlinkat(&root.all, &name, AtFlags::empty())?)
    }

    /// What stands there of a session. `known` is what this process has read before: if it still stands there, it need not
    /// be read again.
    pub(crate) fn get(&self, id: SessionId, known: Option<Found>) -> Result<Option<Found>, FileError> {
        let root = self.root()?;
        for _ in 0..ATTEMPTS {
            let Some(folder) = session_folder(&root, id)? else { return Ok(None) };
            let listing = list(&folder)?;
            let Some(name) = listing.newest else { return Ok(None) };
            let viewed = match &known {
                Some(known) if known.name == name => known.viewed.clone(),
                _ => match read(&folder, &name.to_string())? {
                    // Replaced, and removed, since it was listed.
                    None => continue,
                    Some(value) if Header::of(&value).is_some_and(|header| name.is_of(&header)) => {
                        self.sealer.decode(id, &value).map_err(|_| FileError::Undecodable)?
                    }
                    Some(_) => return Err(FileError::Undecodable),
                },
            };
            return Ok(Some(Found { name, viewed: with_use(viewed, listing.used) }));
        }
        Err(FileError::Busy)
    }

    /// Applies a state if it is newer. Answers what the view then shows of it, if that is this state.
    pub(crate) fn apply(&self, state: &Arc<Session>) -> Result<(Applied, Option<Found>), FileError> {
        let root = self.root()?;
        let name = ValueName::of(state);
        for _ in 0..ATTEMPTS {
            let Some(folder) = self.make_session_folder(&root, state.id)? else { continue };
            let before = list(&folder)?;
            if before.newest.is_some_and(|newest| newest.outdates(name)) {
                return Ok((Applied::Stale, None));
            }
            match self.put(&root, &folder, state, name, &before) {
                Err(FileError::Io(Errno::NOENT)) => continue,
                Err(failure) => {
                    // What stands there is known to be old. To remove it takes no room on a disk that is full; a
                    // tombstone stays, because it is final.
                    if let Some(ValueName::Active(old)) = before.newest {
                        let _ = remove(&folder, &ValueName::Active(old).to_string());
                    }
                    return Err(failure);
                }
                Ok(()) => {}
            }
            let after = list(&folder)?;
            for old in &after.older {
                remove(&folder, &old.to_string())?;
            }
            let over = matches!(name, ValueName::Ended(_));
            for old in after.older_uses.iter().chain(after.used.as_ref().filter(|_| over)) {
                remove(&folder, &used_name(*old))?;
            }
            if after.newest.is_some_and(|newest| newest.order() > name.order()) {
                return Ok((Applied::Stale, None));
            }
            let viewed = match state.tombstone() {
                Some(tombstone) => Viewed::Ended(Arc::new(tombstone)),
                None => with_use(Viewed::Active(Arc::clone(state)), after.used),
            };
            return Ok((Applied::Yes, Some(Found { name, viewed })));
        }
        Err(FileError::Busy)
    }

    fn put(
        &self,
        root: &Root,
        folder: &OwnedFd,
        state: &Session,
        name: ValueName,
        before: &Listing,
    ) -> Result<(), FileError> {
        let mut marker = None;
        if let ValueName::Active(active) = name {
            // Each state that stands there has a marker at its deadline or before, made before the state itself.
            let deadline = active.deadline(before.used);
            let covered =
                matches!(before.newest, Some(ValueName::Active(old)) if old.deadline(before.used) <= deadline);
            if !covered {
                marker = Some(Marker { deadline, id: state.id });
            }
        }
        if let Some(marker) = marker {
            mark_due(root, marker)?;
        }
        let temporary = self.write(folder, &self.sealer.encode(state)?.bytes)?;
        if let Err(failure) = renameat(folder, &temporary, folder, name.to_string()) {
            let _ = remove(folder, &temporary);
            return Err(failure.into());
        }
        if let Some(marker) = marker.filter(|_| before.newest.is_some()) {
            // Whoever saw the state before this one with its later deadline may have taken the marker away.
            mark_due(root, marker)?;
        }
        Ok(())
    }

    /// Marks a use, if the session is active and was not used since. Answers whether it did.
    pub(crate) fn mark_used(&self, id: SessionId, at: Timestamp) -> Result<bool, FileError> {
        let root = self.root()?;
        let folder = match session_folder(&root, id) {
            Ok(Some(folder)) => folder,
            Ok(None) | Err(FileError::Undecodable) => return Ok(false),
            Err(failure) => return Err(failure),
        };
        let listing = list(&folder)?;
        let Some(ValueName::Active(name)) = listing.newest else { return Ok(false) };
        if at <= name.seen || listing.used.is_some_and(|used| at <= used) {
            return Ok(false);
        }
        touch(&folder, &used_name(at))?;
        for old in listing.older_uses.iter().chain(&listing.used) {
            remove(&folder, &used_name(*old))?;
        }
        Ok(true)
    }

    /// Active sessions, and such as are not there, whose deadline lies before `before`, earliest first.
    pub(crate) fn due(&self, before: Timestamp, limit: usize) -> Result<Vec<SessionId>, FileError> {
        let root = self.root()?;
        let mut buckets = BTreeSet::new();
        names(&root.due, |name| match bucket_of(name) {
            Some(number) if number <= bucket(before) => {
                buckets.insert(number);
            }
            _ => {}
        })?;
        let (mut found, mut known) = (Vec::new(), HashSet::new());
        while let Some(number) = buckets.pop_first() {
            let Some(folder) = open_folder(&root.due, &bucket_name(number))? else { continue };
            let (mut markers, mut foreign) = (BTreeSet::new(), Vec::new());
            names(&folder, |name| match Marker::parse(name) {
                Some(marker) if marker.bucket() == number => {
                    if marker.deadline < before {
                        markers.insert(marker);
                    }
                }
                _ => foreign.push(name.to_owned()),
            })?;
            for name in foreign {
                // Left where they are they would be looked at for ever. A folder stays: it is not ours to empty.
                let _ = remove(&folder, &name);
            }
            while let Some(marker) = markers.pop_first() {
                if found.len() == limit {
                    return Ok(found);
                }
                if known.contains(&marker.id) {
                    continue;
                }
                match standing(&root, marker.id) {
                    // Whoever reads it puts it aside.
                    Err(FileError::Undecodable) => {}
                    Err(failure) => return Err(failure),
                    Ok(Standing::Ended) => remove(&folder, &marker.to_string())?,
                    Ok(Standing::Active(deadline)) if deadline > marker.deadline => {
                        let moved = Marker { deadline, id: marker.id };
                        mark_due(&root, moved)?;
                        remove(&folder, &marker.to_string())?;
                        if let Ok(Standing::Active(now)) = standing(&root, marker.id)
                            && now < deadline
                        {
                            // It was given an earlier deadline meanwhile, perhaps the one whose marker is now gone.
                            mark_due(&root, Marker { deadline: now, id: marker.id })?;
                        }
                        if moved.bucket() == number && moved.deadline < before {
                            markers.insert(moved);
                        } else if moved.deadline < before {
                            buckets.insert(moved.bucket());
                        }
                    }
                    Ok(Standing::Active(_) | Standing::Absent) => {
                        known.insert(marker.id);
                        found.push(marker.id);
                    }
                }
            }
            if number < bucket(before) {
                // Succeeds when it is empty.
                let _ = unlinkat(&root.due, bucket_name(number), AtFlags::REMOVEDIR);
            }
        }
        Ok(found)
    }

    /// Puts aside what cannot be read, with all that is older, which would otherwise be shown again.
    pub(crate) fn quarantine(&self, id: SessionId) -> Result<(), FileError> {
        let root = self.root()?;
        let folder = match session_folder(&root, id) {
            Ok(Some(folder)) => folder,
            Ok(None) => return Ok(()),
            Err(FileError::Undecodable) => return set_aside_place(&root, id),
            Err(failure) => return Err(failure),
        };
        match self.get(id, None) {
            Err(FileError::Undecodable) => {}
            Ok(_) => return Ok(()),
            Err(failure) => return Err(failure),
        }
        let listing = list(&folder)?;
        for old in &listing.older {
            remove(&folder, &old.to_string())?;
        }
        match listing.newest {
            Some(newest) => set_aside(&root, &folder, &newest.to_string(), &format!("{id}.{newest}")),
            None => Ok(()),
        }
    }

    /// How much of the log the folder reflects.
    pub(crate) fn reflects(&self) -> Result<TreeSize, FileError> {
        let root = self.root()?;
        let mut greatest = TreeSize(0);
        names(&root.reflects, |name| greatest = greatest.max(reflects_of(name).unwrap_or_default()))?;
        Ok(greatest)
    }

    /// Which folder this is: what the first that asked put there. A link is made or is not, on every file system.
    pub(crate) fn identity(&self, fresh: [u8; 16]) -> Result<Option<[u8; 16]>, FileError> {
        const NAME: &str = "identity";
        let root = self.root()?;
        if let Some(known) = read(&root.all, NAME)? {
            return Ok(known.try_into().ok());
        }
        let made = self.write(&root.all, &fresh)?;
        let linked = linkat(&root.all, &made, &root.all, NAME, AtFlags::empty());
        remove(&root.all, &made)?;
        match linked {
            Ok(()) => Ok(Some(fresh)),
            Err(Errno::EXIST) => Ok(read(&root.all, NAME)?.and_then(|known| known.try_into().ok())),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Raises it, once all that was written is on the disk: after a power cut the folder must not claim states that it lost.
    pub(crate) fn set_reflects(&self, size: TreeSize) -> Result<(), FileError> {
        let root = self.root()?;
        syncfs(&root.all)?;
        touch(&root.reflects, &format!("{:016x}", size.0))?;
        let mut older = Vec::new();
        names(&root.reflects, |name| {
            if reflects_of(name).is_some_and(|other| other < size) {
                older.push(name.to_owned());
            }
        })?;
        older.iter().try_for_each(|name| remove(&root.reflects, name))
    }

    /// Clears one of the [`FANS`] folders of what nobody needs: temporary files of processes that died while writing,
    /// tombstones after their day, and sessions long over that nobody ended.
    pub(crate) fn sweep(&self, fan: u16) -> Result<(), FileError> {
        let root = self.root()?;
        // The clock of the file system, as all that is compared with it.
        let probe = self.write(&root.all, b"")?;
        let now = statat(&root.all, &probe, AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_mtime);
        remove(&root.all, &probe)?;
        let now = now?;
        let mut temporaries = Vec::new();
        names(&root.all, |name| {
            if name.starts_with("t-") {
                temporaries.push(name.to_owned());
            }
        })?;
        remove_old(&root.all, &temporaries, now - TEMPORARY_S)?;

        let Some(fan) = open_folder(&root.sessions, &format!("{fan:03x}"))? else { return Ok(()) };
        let mut ids: Vec<SessionId> = Vec::new();
        names(&fan, |name| ids.extend(name.parse::<SessionId>()))?;
        for id in ids {
            let Ok(Some(folder)) = open_folder(&fan, &id.to_string()) else { continue };
            let mut temporaries = Vec::new();
            names(&folder, |name| {
                if Name::parse(name) == Some(Name::Temporary) {
                    temporaries.push(name.to_owned());
                }
            })?;
            remove_old(&folder, &temporaries, now - TEMPORARY_S)?;
            let listing = list(&folder)?;
            let over = match listing.newest {
                None => true,
                Some(ValueName::Ended(_)) => true,
                Some(ValueName::Active(name)) => {
                    let deadline = name.deadline(listing.used);
                    if deadline.as_micros() < now.saturating_mul(1_000_000) - OVERLOOKED_MICROS {
                        mark_due(&root, Marker { deadline, id })?;
                    }
                    false
                }
            };
            if over {
                let values = listing.newest.iter().chain(&listing.older).map(ToString::to_string);
                let uses = listing.used.iter().chain(&listing.older_uses).map(|at| used_name(*at));
                let all: Vec<_> = values.chain(uses).collect();
                remove_old(&folder, &all, now - ENDED_S)?;
                // Succeeds when it is empty, and when a writer is about to use it: then that one makes it again.
                let empty = all.is_empty() && fstat(&folder)?.st_mtime < now - TEMPORARY_S;
                if empty || !all.is_empty() {
                    let _ = unlinkat(&fan, id.to_string(), AtFlags::REMOVEDIR);
                }
            }
        }
        Ok(())
    }

    fn root(&self) -> Result<Arc<Root>, FileError> {
        self.root.read().clone().ok_or(FileError::Missing)
    }

    /// A session's folder, made if need be; `None` if somebody took it away meanwhile. What stands there and is no folder is
    /// put aside.
    fn make_session_folder(&self, root: &Root, id: SessionId) -> Result<Option<OwnedFd>, FileError> {
        match session_folder(root, id) {
            Ok(Some(folder)) => return Ok(Some(folder)),
            Ok(None) => {}
            Err(FileError::Undecodable) => set_aside_place(root, id)?,
            Err(failure) => return Err(failure),
        }
        make_folder(&root.sessions, fan_of(id))?;
        let Some(fan) = open_folder(&root.sessions, &fan_of(id))? else { return Ok(None) };
        match make_folder(&fan, id.to_string()) {
            Err(FileError::Io(Errno::NOENT)) => return Ok(None),
            made => made?,
        }
        session_folder(root, id)
    }

    /// Writes a temporary file; answers its name.
    fn write(&self, folder: &OwnedFd, bytes: &[u8]) -> Result<String, FileError> {
        let name = format!("t-{:016x}-{:x}", self.writer, self.written.fetch_add(1, Relaxed));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(folder, &name, flags, ONLY_US)?);
        if let Err(failure) = file.write_all(bytes) {
            let _ = remove(folder, &name);
            return Err(failure.into());
        }
        Ok(name)
    }
}

/// What the index of deadlines must know of a session.
enum Standing {
    Absent,
    /// With its deadline.
    Active(Timestamp),
    Ended,
}

fn standing(root: &Root, id: SessionId) -> Result<Standing, FileError> {
    let Some(folder) = session_folder(root, id)? else { return Ok(Standing::Absent) };
    let listing = list(&folder)?;
    Ok(match listing.newest {
        None => Standing::Absent,
        Some(ValueName::Active(name)) => Standing::Active(name.deadline(listing.used)),
        Some(ValueName::Ended(_)) => Standing::Ended,
    })
}

/// The last three digits of an id are random (RFC 9562 section 5.7).
fn fan_of(id: SessionId) -> String {
    let text = id.to_string();
    text.get(text.len() - 3..).unwrap_or("000").to_owned()
}

fn bucket_name(number: i64) -> String {
    format!("{number:016x}")
}

fn bucket_of(name: &str) -> Option<i64> {
    let number = u64::from_str_radix(name, 16).ok()?.cast_signed();
    (bucket_name(number) == name).then_some(number)
}

fn reflects_of(name: &str) -> Option<TreeSize> {
    let size = u64::from_str_radix(name, 16).ok()?;
    (format!("{size:016x}") == name).then_some(TreeSize(size))
}

/// `None` if it is not there; [`FileError::Undecodable`] if something else is.
fn session_folder(root: &Root, id: SessionId) -> Result<Option<OwnedFd>, FileError> {
    match open_folder(&root.sessions, &fan_of(id))? {
        None => Ok(None),
        Some(fan) => match open_folder(&fan, &id.to_string()) {
            Err(FileError::Io(Errno::NOTDIR | Errno::LOOP)) => Err(FileError::Undecodable),
            folder => folder,
        },
    }
}

fn open_folder(at: &OwnedFd, name: &str) -> Result<Option<OwnedFd>, FileError> {
    match openat(at, name, FOLDER, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::STALE) => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

fn make_folder(at: impl rustix::fd::AsFd, name: impl rustix::path::Arg) -> Result<(), FileError> {
    match mkdirat(at, name, ONLY_OURS) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        // On a file system that is read only, what is there can still be used.
        Err(Errno::ROFS) => Ok(()),
        Err(failure) => Err(failure.into()),
    }
}

/// Calls with each name in a folder. A small folder is read by one call, as it is at one moment.
fn names(folder: &OwnedFd, mut with: impl FnMut(&str)) -> Result<(), FileError> {
    // Opened anew, because reading a folder moves a position that all users of the descriptor share.
    let folder = openat(folder, ".", FOLDER, Mode::empty())?;
    let mut room = [MaybeUninit::<u8>::uninit(); 16 << 10];
    let mut entries = RawDir::new(&folder, &mut room);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            // The folder was removed.
            Err(Errno::NOENT | Errno::STALE) => break,
            Err(failure) => return Err(failure.into()),
        };
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => with(name),
        }
    }
    Ok(())
}

fn list(folder: &OwnedFd) -> Result<Listing, FileError> {
    let mut listing = Listing::default();
    names(folder, |name| {
        let value = match Name::parse(name) {
            Some(Name::Active(name)) => ValueName::Active(name),
            Some(Name::Ended(index)) => ValueName::Ended(index),
            Some(Name::Used(at)) => {
                let (later, earlier) = (listing.used.max(Some(at)), listing.used.min(Some(at)));
                listing.used = later;
                listing.older_uses.extend(earlier);
                return;
            }
            Some(Name::Temporary) | None => return,
        };
        match listing.newest {
            Some(newest) if newest.order() >= value.order() => listing.older.push(value),
            newest => {
                listing.older.extend(newest);
                listing.newest = Some(value);
            }
        }
    })?;
    Ok(listing)
}

/// `None` if there is no such file.
fn read(folder: &OwnedFd, name: &str) -> Result<Option<Vec<u8>>, FileError> {
    // A named pipe in its place must not keep us waiting.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::STALE) => return Ok(None),
        Err(Errno::LOOP | Errno::NXIO) => return Err(FileError::Undecodable),
        Err(failure) => return Err(failure.into()),
    };
    let stat = fstat(&file)?;
    let bytes = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || bytes > VALUE_BYTES_MAX {
        return Err(FileError::Undecodable);
    }
    let mut value = Vec::with_capacity(bytes as usize);
    match File::from(file).take(VALUE_BYTES_MAX).read_to_end(&mut value) {
        Ok(_) => Ok(Some(value)),
        Err(failure) if failure.raw_os_error() == Some(Errno::STALE.raw_os_error()) => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

/// Makes an empty file, if it is not there.
fn touch(folder: &OwnedFd, name: &str) -> Result<(), FileError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, name, flags, ONLY_US)?;
    Ok(())
}

/// Removes a file, if it is there.
fn remove(folder: &OwnedFd, name: &str) -> Result<(), FileError> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT | Errno::STALE) => Ok(()),
        Err(failure) => Err(failure.into()),
    }
}

/// Removes files that were last written before a time.
fn remove_old(folder: &OwnedFd, names: &[String], before: i64) -> Result<(), FileError> {
    for name in names {
        match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_mtime < before => remove(folder, name)?,
            Ok(_) | Err(Errno::NOENT) => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    Ok(())
}

fn mark_due(root: &Root, marker: Marker) -> Result<(), FileError> {
    let bucket = bucket_name(marker.bucket());
    let path = format!("{bucket}/{marker}");
    for _ in 0..ATTEMPTS {
        match touch(&root.due, &path) {
            // Not there yet, or empty and just removed.
            Err(FileError::Io(Errno::NOENT)) => make_folder(&root.due, bucket.as_str())?,
            done => return done,
        }
    }
    Err(FileError::Busy)
}

/// What stands in the place of a session's folder goes into the quarantine.
fn set_aside_place(root: &Root, id: SessionId) -> Result<(), FileError> {
    match open_folder(&root.sessions, &fan_of(id))? {
        Some(fan) => set_aside(root, &fan, &id.to_string(), &id.to_string()),
        None => Ok(()),
    }
}

fn set_aside(root: &Root, folder: &OwnedFd, name: &str, aside: &str) -> Result<(), FileError> {
    let mut kept = 0;
    names(&root.aside, |_| kept += 1)?;
    if kept < KEPT_ASIDE {
        match renameat(folder, name, &root.aside, aside) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Something stands there that cannot be replaced, or it cannot be moved: then it goes.
            Err(_) => {}
        }
    }
    remove(folder, name)
}

fn with_use(viewed: Viewed, used: Option<Timestamp>) -> Viewed {
    match (viewed, used) {
        (Viewed::Active(mut session), Some(used)) if session.last_seen_at < used => {
            Arc::make_mut(&mut session).last_seen_at = used;
            Viewed::Active(session)
        }
        (viewed, _) => viewed,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use session_view::test_util::{at, ended, id, seen, session};

    use super::*;

    fn store(folder: &tempfile::TempDir) -> Store {
        let store = Store::new(folder.path().join("ns"), Sealer::new("ns", &[7; 32]), 1);
        store.open().unwrap();
        store
    }

    fn apply(store: &Store, state: Session) -> Applied {
        store.apply(&Arc::new(state)).unwrap().0
    }

    fn files(store: &Store, id: SessionId) -> Vec<PathBuf> {
        let path = store.path.join("sessions").join(fan_of(id)).join(id.to_string());
        std::fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }

    fn age(path: &PathBuf, seconds: i64) {
        let file = File::options().write(true).open(path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.set_modified(modified - Duration::from_secs(seconds.unsigned_abs())).unwrap();
    }

    fn sweep_all(store: &Store) {
        (0..FANS).for_each(|fan| store.sweep(fan).unwrap());
    }

    #[test]
    fn sweeping_removes_what_nobody_needs_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let _ = apply(&store, session(1, 1));
        let _ = apply(&store, ended(2, 2));
        let _ = apply(&store, ended(3, 3));
        let root = store.root().unwrap();
        let mine = session_folder(&root, id(1)).unwrap().unwrap();
        let (old, new) = (store.write(&mine, b"half a val").unwrap(), store.write(&mine, b"half a val").unwrap());
        let path = |name: &str| files(&store, id(1)).into_iter().find(|path| path.ends_with(name));
        age(&path(&old).unwrap(), TEMPORARY_S + 5);
        age(&path(&new).unwrap(), TEMPORARY_S - 60);
        files(&store, id(2)).iter().for_each(|path| age(path, ENDED_S + 5));
        files(&store, id(3)).iter().for_each(|path| age(path, ENDED_S - 60));
        sweep_all(&store);
        assert!(path(&old).is_none() && path(&new).is_some(), "a writer may still be at work on the second");
        assert!(store.get(id(1), None).unwrap().is_some());
        assert!(files(&store, id(2)).is_empty() && files(&store, id(3)).len() == 1);
        assert!(store.get(id(2), None).unwrap().is_none());
        assert_eq!(apply(&store, session(3, 1)), Applied::Stale);
    }

    #[test]
    fn a_session_that_lost_its_marker_is_due_after_the_next_sweep() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let long_ago = Timestamp::from_micros(1_000_000_000_000_000);
        let _ = apply(&store, Session { last_seen_at: long_ago, expires_at: long_ago, ..session(1, 1) });
        std::fs::remove_dir_all(store.path.join("due")).unwrap();
        store.open().unwrap();
        assert!(store.due(at(0), 10).unwrap().is_empty());
        sweep_all(&store);
        assert_eq!(store.due(at(0), 10).unwrap(), [id(1)]);
    }

    #[test]
    fn markers_do_not_pile_up() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        for step in 0..200 {
            let _ = apply(&store, seen(1, step, step as i64 * 60));
            store.mark_used(id(1), at(step as i64 * 60 + 30)).unwrap();
        }
        let markers = || -> usize {
            let buckets = std::fs::read_dir(store.path.join("due")).unwrap();
            buckets.map(|bucket| std::fs::read_dir(bucket.unwrap().path()).unwrap().count()).sum()
        };
        assert_eq!(markers(), 1);
        assert_eq!(files(&store, id(1)).len(), 2, "the state and the last use");
        assert!(store.due(at(200 * 60), 10).unwrap().is_empty());
        assert_eq!(markers(), 1, "moved, not copied");
        assert_eq!(store.due(at(1 << 20), 10).unwrap(), [id(1)]);
        let _ = apply(&store, ended(1, 500));
        assert_eq!(files(&store, id(1)).len(), 1, "the tombstone");
        assert!(store.due(at(1 << 20), 10).unwrap().is_empty());
        assert_eq!(markers(), 0);
        assert_eq!(std::fs::read_dir(store.path.join("due")).unwrap().count(), 0, "empty folders go");
    }
}
