//! A regular file or a raw block device of the host, through the page cache.
//!
//! Promises that nobody else uses it meanwhile who asks first: another daemon (a lock on a regular
//! file, exclusive opening of a block device), or a mount. Never follows a file that grows or
//! shrinks: the size is that of the opening.

use std::fs::{self, File, FileType, OpenOptions, TryLockError};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::{Device, Syncer, slices_len, within};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, DeviceOffset};

/// A regular file or a raw block device.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    /// The same, opened once more: what checkpoints sync.
    for_checkpoints: File,
    name: String,
    len: ByteCount,
    is_block_device: bool,
    /// The host cannot say whether a read would have to wait (tmpfs and some network file systems):
    /// learned from the first try.
    cannot_try_read: AtomicBool,
    /// The host cannot punch holes or discard: learned from the first try.
    cannot_discard: AtomicBool,
}

impl FileDevice {
    /// Opens an existing file or block device for reading and writing, and for nobody else.
    ///
    /// # Errors
    /// `NotFound`; `Busy` when it is open elsewhere or mounted; `Invalid` when it is neither a
    /// regular file nor a block device; `Device` for what else the operating system says.
    pub fn open(path: &Path) -> Result<FileDevice> {
        let name = path.display().to_string();
        // Looked at before it is opened: exclusive opening means something for block devices only.
        let kind = fs::metadata(path).map_err(|error| open_error(&name, error))?.file_type();
        check_kind(&name, kind)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if kind.is_block_device() {
            options.custom_flags(OFlags::EXCL.bits().cast_signed());
        }
        let mut file = options.open(path).map_err(|error| open_error(&name, error))?;
        let opened = file.metadata().map_err(|error| open_error(&name, error))?;
        if opened.file_type() != kind {
            return Err(replaced(&name));
        }
        let len = if kind.is_block_device() {
            file.seek(SeekFrom::End(0)).map_err(|error| open_error(&name, error))?
        } else {
            lock(&name, &file)?;
            // Asked again under the lock: whoever held it before may have made the file just now.
            file.metadata().map_err(|error| open_error(&name, error))?.len()
        };
        let for_checkpoints = open_again(path, &name, &file)?;
        Ok(FileDevice::new([file, for_checkpoints], name, ByteCount(len), kind.is_block_device()))
    }

    /// Makes a new regular file of `len` bytes that takes no space yet, and opens it for nobody
    /// else. The file itself is durable then.
    ///
    /// # Errors
    /// `Exists`; `NotFound` when its directory is missing; `Invalid` when the file system has no
    /// files of that size; `NoSpace`; `Device` for what else the operating system says.
    pub fn create(path: &Path, len: ByteCount) -> Result<FileDevice> {
        let name = path.display().to_string();
        let mut options = OpenOptions::new();
        // For its owner only: whoever can read the file can read every volume.
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(path).map_err(|error| create_error(&name, len, error))?;
        let prepare = || {
            lock(&name, &file)?;
            let prepared =
                file.set_len(len.0).and_then(|()| file.sync_all()).and_then(|()| sync_parent(path));
            prepared.map_err(|error| create_error(&name, len, error))?;
            open_again(path, &name, &file)
        };
        let for_checkpoints = prepare().inspect_err(|_| {
            // The first error is the one to tell; an empty file that stays is refused as too small.
            fs::remove_file(path).ok();
        })?;
        Ok(FileDevice::new([file, for_checkpoints], name, len, false))
    }

    fn new(opened: [File; 2], name: String, len: ByteCount, is_block_device: bool) -> FileDevice {
        let [file, for_checkpoints] = opened;
        let (cannot_try_read, cannot_discard) = (AtomicBool::new(false), AtomicBool::new(false));
        FileDevice { file, for_checkpoints, name, len, is_block_device, cannot_try_read, cannot_discard }
    }

    /// Whether it is a block device rather than a regular file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.is_block_device
    }
}

/// Opens what is open already a second time: another open file of the host, of the same content.
fn open_again(path: &Path, name: &str, opened: &File) -> Result<File> {
    // Not exclusively: this process has it so already.
    let again = OpenOptions::new().read(true).write(true).open(path);
    let again = again.map_err(|error| open_error(name, error))?;
    let identity = |file: &File| file.metadata().map(|it| (it.dev(), it.ino(), it.rdev()));
    match (identity(opened), identity(&again)) {
        (Ok(first), Ok(second)) if first == second => Ok(again),
        (Err(error), _) | (_, Err(error)) => Err(open_error(name, error)),
        _ => Err(replaced(name)),
    }
}

fn replaced(name: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("{name} was replaced while it was being opened"))
}

fn check_kind(name: &str, kind: FileType) -> Result<()> {
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let what = if kind.is_dir() { "a directory" } else { "a special file" };
    let text = format!("{name} is {what}; a device is a regular file or a block device");
    Err(Error::new(ErrorKind::Invalid, text))
}

/// Takes the lock that every opening of a regular file takes; it goes with the file's closing, and
/// so with the process.
fn lock(name: &str, file: &File) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(in_use(name)),
        Err(TryLockError::Error(error)) => {
            Err(Error::caused(ErrorKind::Device, format!("cannot lock {name}"), error))
        }
    }
}

fn in_use(name: &str) -> Error {
    let text = format!("{name} is in use: another process has it open as a device, or it is mounted");
    Error::new(ErrorKind::Busy, text)
}

fn open_error(name: &str, error: io::Error) -> Error {
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::NXIO | Errno::NODEV) => {
            Error::caused(ErrorKind::NotFound, format!("the device {name} is missing"), error)
        }
        Some(Errno::BUSY | Errno::TXTBSY) => in_use(name),
        _ => Error::caused(ErrorKind::Device, format!("cannot open {name} for reading and writing"), error),
    }
}

fn create_error(name: &str, len: ByteCount, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::AlreadyExists => ErrorKind::Exists,
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
        io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput => ErrorKind::Invalid,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        _ => ErrorKind::Device,
    };
    Error::caused(kind, format!("cannot make the device {name} of {len} bytes"), error)
}

/// Makes the entry of a new file durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Fills `buffer` by as many calls of `read` (which gets the number of bytes done) as it takes.
fn read_whole(
    buffer: &mut [u8],
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match read(&mut buffer[done..], done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes the slices by as many calls of `write` (which gets the number of bytes done) as it takes.
fn write_whole(
    slices: &[&[u8]],
    mut write: impl FnMut(&[IoSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut parts: Vec<_> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
    let mut rest = parts.as_mut_slice();
    let mut done = 0;
    // Empty slices go, so that a call which wrote nothing is known for what it is.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match write(rest, done) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => {
                done += bytes as u64;
                IoSlice::advance_slices(&mut rest, bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Repeats a call that a signal interrupted.
fn uninterrupted(mut call: impl FnMut() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

impl Device for FileDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> ByteCount {
        self.len
    }

    fn read_at(&self, offset: DeviceOffset, buffer: &mut [u8]) -> io::Result<()> {
        read_whole(buffer, |rest, done| self.file.read_at(rest, offset.0 + done))
    }

    fn try_read_at(&self, offset: DeviceOffset, buffer: &mut [u8]) -> io::Result<bool> {
        if self.cannot_try_read.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let wanted = buffer.len();
        let mut slices = [IoSliceMut::new(buffer)];
        match rustix::io::preadv2(&self.file, &mut slices, offset.0, ReadWriteFlags::NOWAIT) {
            // Short: the rest is not cached, or not there. `read_at` knows.
            Ok(bytes) => Ok(bytes == wanted),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.cannot_try_read.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, offset: DeviceOffset, slices: &[&[u8]]) -> io::Result<()> {
        // A file would quietly grow.
        if !within(self.len, offset, slices_len(slices)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // The wrapper hands on at most IOV_MAX slices; more are a short write to it.
        write_whole(slices, |parts, done| Ok(rustix::io::pwritev(&self.file, parts, offset.0 + done)?))
    }

    fn sync(&self, by: Syncer) -> io::Result<()> {
        match by {
            Syncer::Log => self.file.sync_data(),
            Syncer::Checkpoint => self.for_checkpoints.sync_data(),
        }
    }

    fn allocate(&self, offset: DeviceOffset, len: ByteCount) -> io::Result<()> {
        if !within(self.len, offset, len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.is_block_device || len.0 == 0 {
            return Ok(());
        }
        let call = || rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset.0, len.0);
        match uninterrupted(call) {
            // Such a host takes space at each write; it cannot be asked for it before.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(Errno::DQUOT) => {
                Err(io::Error::new(io::ErrorKind::StorageFull, io::Error::from(Errno::DQUOT)))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn discard(&self, offset: DeviceOffset, len: ByteCount) -> io::Result<()> {
        if !within(self.len, offset, len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if len.0 == 0 || self.cannot_discard.load(Ordering::Relaxed) {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match uninterrupted(|| rustix::fs::fallocate(&self.file, flags, offset.0, len.0)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.cannot_discard.store(true, Ordering::Relaxed);
                Ok(())
            }
            outcome => Ok(outcome?),
        }
    }

    fn drop_cache(&self) -> io::Result<()> {
        // Length none: to the end.
        Ok(rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
