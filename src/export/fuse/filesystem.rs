//! The file system without a mount: names to inodes, attributes, directories, opening files.
//!
//! It holds nothing of what volumes contain. Which files there are is asked of the catalog each time;
//! kept are only the kernel's inode numbers, open handles, and for each file the time at which its
//! content was first seen to be another one.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::catalog::Catalog;
use super::catalog::FileId;
use super::catalog::FileInfo;
use super::catalog::Room;
use super::errors::errno_of;
use super::inodes::Inode;
use super::inodes::Inodes;
use super::inodes::Object;
use super::open::Directory;
use super::open::Handles;
use super::open::OpenFile;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::sync::Clock;
use crate::sync::Mutex;
use crate::units::ByteCount;

/// The directory of volumes.
const VOLUMES: &str = "volumes";
/// The directory of snapshots, by volume.
const SNAPSHOTS: &str = "snapshots";

/// Most files that are open at a time in one mount.
const OPEN_FILES_MAX: usize = 65_536;
/// Most directories that are open at a time in one mount; each may hold a list of all volumes.
const OPEN_DIRECTORIES_MAX: usize = 256;

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A volume or snapshot.
    File,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The number.
    pub inode: Inode,
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: ByteCount,
    /// What it holds of that: `st_blocks`, in bytes.
    pub used: ByteCount,
    /// When its content was first seen to be what it is; never too early. Since the Unix epoch.
    pub modified: Duration,
    /// When it was made; since the Unix epoch.
    pub created: Duration,
    /// Permission bits, all of them the owner's.
    pub mode: u16,
}

/// One line of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The number it has if the kernel looks it up.
    pub inode: Inode,
    /// What it is.
    pub kind: FileKind,
    /// Its name; `.` and `..` are among them.
    pub name: String,
}

/// The file system.
pub struct FileSystem {
    catalog: Arc<dyn Catalog>,
    clock: Arc<dyn Clock>,
    started: Duration,
    inodes: Inodes,
    files: Handles<OpenFile>,
    directories: Handles<Directory>,
    changes: Mutex<HashMap<FileId, Change>>,
}

/// A file's stamp, and when it was first seen.
struct Change {
    stamp: u64,
    seen: Duration,
}

impl FileSystem {
    /// A file system that shows what the catalog has.
    #[must_use]
    pub fn new(catalog: Arc<dyn Catalog>, clock: Arc<dyn Clock>) -> FileSystem {
        let started = clock.since_unix_epoch();
        FileSystem {
            catalog,
            clock,
            started,
            inodes: Inodes::default(),
            files: Handles::default(),
            directories: Handles::default(),
            changes: Mutex::default(),
        }
    }

    /// Finds a name in a directory. The caller forgets what it was told as often as it was told.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`; `ESTALE` for a number that is not known.
    pub fn look_up(&self, parent: Inode, name: &OsStr) -> Result<Attributes, Errno> {
        let parent = self.object(parent)?;
        // All names that there are can be read: what cannot is none of them.
        let name = name.to_str().ok_or(Errno::NOENT)?;
        let found = |object: Object, attributes: Attributes| {
            Ok(Attributes { inode: self.inodes.look_up(object), ..attributes })
        };
        let directory = |object: Object| {
            let attributes = self.directory_attributes(&object);
            found(object, attributes)
        };
        let file = |info: Result<FileInfo, Error>| {
            let info = info.map_err(no_such_name)?;
            found(Object::File(info.id), self.file_attributes(&info))
        };
        match parent {
            Object::Root if name == VOLUMES => directory(Object::Volumes),
            Object::Root if name == SNAPSHOTS => directory(Object::Snapshots),
            Object::Root => Err(Errno::NOENT),
            Object::Volumes => file(self.catalog.volume(name)),
            Object::Snapshots if self.catalog.has_snapshots(name) => {
                directory(Object::SnapshotsOf(name.to_owned()))
            }
            Object::Snapshots => Err(Errno::NOENT),
            Object::SnapshotsOf(volume) => file(self.catalog.snapshot(&volume, name)),
            Object::File(_) => Err(Errno::NOTDIR),
        }
    }

    /// The kernel has forgotten so many of its lookups.
    pub fn forget(&self, inode: Inode, lookups: u64) {
        self.inodes.forget(inode, lookups);
    }

    /// What `stat` shows, now.
    ///
    /// # Errors
    /// `ESTALE` where it is gone.
    pub fn attributes(&self, inode: Inode) -> Result<Attributes, Errno> {
        let object = self.object(inode)?;
        let attributes = match &object {
            Object::File(id) => {
                let info = self.catalog.file(*id).inspect_err(|_| {
                    self.changes.lock().remove(id);
                });
                self.file_attributes(&info.map_err(|error| errno_of(error.kind()))?)
            }
            Object::SnapshotsOf(volume) if !self.catalog.has_snapshots(volume) => return Err(Errno::STALE),
            directory => self.directory_attributes(directory),
        };
        Ok(Attributes { inode, ..attributes })
    }

    /// Refuses another size: a volume is resized by management alone.
    ///
    /// # Errors
    /// `EPERM` for a size that the file does not have already, `EROFS` on a snapshot, `EISDIR`; as
    /// [`attributes`](Self::attributes).
    pub fn set_size(&self, inode: Inode, size: ByteCount) -> Result<Attributes, Errno> {
        let attributes = self.attributes(inode)?;
        match self.object(inode)? {
            Object::File(_) if attributes.size == size => Ok(attributes),
            Object::File(FileId::Volume(_)) => Err(Errno::PERM),
            Object::File(FileId::Snapshot { .. }) => Err(Errno::ROFS),
            _ => Err(Errno::ISDIR),
        }
    }

    /// Why nothing can be made, renamed, removed or given other permissions here.
    #[must_use]
    pub fn refusal(&self, inode: Inode) -> Errno {
        match self.inodes.object(inode) {
            Some(Object::Snapshots | Object::SnapshotsOf(_) | Object::File(FileId::Snapshot { .. })) => {
                Errno::ROFS
            }
            Some(Object::Root | Object::Volumes | Object::File(FileId::Volume(_))) => Errno::PERM,
            None => Errno::STALE,
        }
    }

    /// Opens a file, and gives a handle to it. The volume is in use until the handle is closed.
    ///
    /// # Errors
    /// `EISDIR`; `EROFS` for a snapshot that is to be written; `ESTALE` where it is gone; `ENFILE` where
    /// too many are open.
    pub fn open(&self, inode: Inode, writable: bool) -> Result<u64, Errno> {
        let Object::File(id) = self.object(inode)? else { return Err(Errno::ISDIR) };
        let service = self.catalog.open(id).map_err(|error| errno_of(error.kind()))?;
        if writable && service.read_only() {
            return Err(Errno::ROFS);
        }
        self.files.open(OpenFile { writable, service }, OPEN_FILES_MAX)
    }

    /// The file of a handle.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn file(&self, handle: u64) -> Result<Arc<OpenFile>, Errno> {
        self.files.get(handle)
    }

    /// Closes the handle of a file.
    pub fn close(&self, handle: u64) {
        self.files.close(handle);
    }

    /// How many handles of files are open.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.files.len()
    }

    /// Opens a directory, and gives a handle to it.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`; `ENFILE` where too many are open.
    pub fn open_directory(&self, inode: Inode) -> Result<u64, Errno> {
        if matches!(self.object(inode)?, Object::File(_)) {
            return Err(Errno::NOTDIR);
        }
        let directory = Directory { inode, entries: Mutex::new(Arc::new([])) };
        self.directories.open(directory, OPEN_DIRECTORIES_MAX)
    }

    /// All entries of an open directory. `anew` looks which there are; else they are those of the last
    /// look through this handle.
    ///
    /// # Errors
    /// `EBADF`, `ESTALE`.
    pub fn entries(&self, handle: u64, anew: bool) -> Result<Arc<[DirectoryEntry]>, Errno> {
        let directory = self.directories.get(handle)?;
        let seen = directory.entries.lock().clone();
        if !anew && !seen.is_empty() {
            return Ok(seen);
        }
        let entries: Arc<[DirectoryEntry]> = self.list(directory.inode)?.into();
        *directory.entries.lock() = Arc::clone(&entries);
        Ok(entries)
    }

    /// Whoever read the directory has come to its end: its entries need not be kept any more.
    pub fn end_of_directory(&self, handle: u64) {
        if let Ok(directory) = self.directories.get(handle) {
            *directory.entries.lock() = Arc::new([]);
        }
    }

    /// Closes the handle of a directory.
    pub fn close_directory(&self, handle: u64) {
        self.directories.close(handle);
    }

    /// The room in the pool.
    #[must_use]
    pub fn room(&self) -> Room {
        self.catalog.room()
    }

    fn list(&self, inode: Inode) -> Result<Vec<DirectoryEntry>, Errno> {
        let object = self.object(inode)?;
        let above = match &object {
            Object::SnapshotsOf(_) => Object::Snapshots,
            _ => Object::Root,
        };
        let mut entries = vec![entry(&object, "."), entry(&above, "..")];
        let files = |list: Vec<FileInfo>| {
            list.into_iter().map(|info| entry(&Object::File(info.id), &info.name)).collect::<Vec<_>>()
        };
        match &object {
            Object::Root => {
                entries.extend([entry(&Object::Volumes, VOLUMES), entry(&Object::Snapshots, SNAPSHOTS)]);
            }
            Object::Volumes => entries.extend(files(self.catalog.volumes())),
            Object::Snapshots => {
                let volumes = self.catalog.volumes_with_snapshots();
                entries.extend(volumes.iter().map(|name| entry(&Object::SnapshotsOf(name.clone()), name)));
            }
            Object::SnapshotsOf(volume) => entries.extend(files(self.catalog.snapshots(volume))),
            Object::File(_) => return Err(Errno::NOTDIR),
        }
        Ok(entries)
    }

    fn object(&self, inode: Inode) -> Result<Object, Errno> {
        self.inodes.object(inode).ok_or(Errno::STALE)
    }

    fn directory_attributes(&self, object: &Object) -> Attributes {
        Attributes {
            inode: object.usual_inode(),
            kind: FileKind::Directory,
            size: ByteCount(0),
            used: ByteCount(0),
            modified: self.started,
            created: self.started,
            mode: 0o500,
        }
    }

    fn file_attributes(&self, info: &FileInfo) -> Attributes {
        let (modified, mode) = match info.id {
            FileId::Volume(_) => (self.last_change(info).max(info.updated), 0o600),
            FileId::Snapshot { .. } => (info.created, 0o400),
        };
        Attributes {
            inode: Object::File(info.id).usual_inode(),
            kind: FileKind::File,
            size: info.size,
            used: info.used,
            modified,
            created: info.created,
            mode,
        }
    }

    /// When the volume's content was last changed, as far as can be seen: what changed it before the
    /// mount was made counts as having done so then.
    fn last_change(&self, info: &FileInfo) -> Duration {
        let mut changes = self.changes.lock();
        let change = changes.entry(info.id).or_insert(Change { stamp: info.stamp, seen: self.started });
        if change.stamp != info.stamp {
            *change = Change { stamp: info.stamp, seen: self.clock.since_unix_epoch() };
        }
        change.seen
    }
}

fn entry(object: &Object, name: &str) -> DirectoryEntry {
    let kind = if matches!(object, Object::File(_)) { FileKind::File } else { FileKind::Directory };
    DirectoryEntry { inode: object.usual_inode(), kind, name: name.to_owned() }
}

fn no_such_name(error: Error) -> Errno {
    match error.kind() {
        ErrorKind::NotFound => Errno::NOENT,
        kind => errno_of(kind),
    }
}
