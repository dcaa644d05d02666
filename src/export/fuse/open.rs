//! Open files and directories: what requests that carry a handle work on.

use std::collections::HashMap;
use std::sync::Arc;

use rustix::io::Errno;

use super::errors::errno_of;
use super::filesystem::DirectoryEntry;
use super::inodes::Inode;
use crate::array::service::BlockService;
use crate::array::service::Commit;
use crate::array::service::ExtentKind;
use crate::error::Error;
use crate::sync::Mutex;
use crate::units::ByteCount;

/// Stretches that are looked at with one call while the next hole or the next data is searched.
const EXTENTS_MAX: usize = 1024;

/// Bytes that are looked at with one call, so that a search through a large volume is done in steps.
const SEARCH_BYTES: u64 = 1 << 40;

/// How a range is to read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// The part of it that lies in the file; the file keeps its size.
    KeepSize,
    /// All of it; a range that reaches past the end would make the file longer and is refused.
    Whole,
}

/// An open file.
pub struct OpenFile {
    pub(super) writable: bool,
    pub(super) service: Arc<dyn BlockService>,
}

impl OpenFile {
    /// The size in bytes, now.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        self.service.size()
    }

    /// Reads as much as the file has at `offset`, if that needs no waiting for a device: the number of
    /// bytes, or `None` and an undefined buffer.
    ///
    /// # Errors
    /// As [`errno_of`] says.
    pub fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
        let len = self.within(offset, buffer.len());
        let read = len == 0 || self.service.try_read(offset, &mut buffer[..len]).map_err(refuse)?;
        Ok(read.then_some(len))
    }

    /// Reads as much as the file has at `offset`; may wait for a device. The number of bytes.
    ///
    /// # Errors
    /// As [`errno_of`] says.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let len = self.within(offset, buffer.len());
        if len > 0 {
            self.service.read(offset, &mut buffer[..len]).map_err(refuse)?;
        }
        Ok(len)
    }

    /// Writes what fits into the file, and says how many bytes that were. It may be answered once
    /// [`acknowledge`](Self::acknowledge) has returned for the commit.
    ///
    /// # Errors
    /// `EBADF` on a file that was opened for reading; `ENOSPC` at or past the end (a volume is no longer
    /// than it is); as [`errno_of`] says.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(usize, Commit), Errno> {
        self.check_writable()?;
        let len = self.within(offset, data.len());
        match (data.len(), len) {
            (0, _) => Ok((0, Commit::default())),
            (_, 0) => Err(Errno::NOSPC),
            _ => Ok((len, self.service.write(offset, &data[..len]).map_err(refuse)?)),
        }
    }

    /// Hands everything up to `commit` to the operating system: the death of the process no longer
    /// loses it. Commits are of the whole array: the highest of several files serves for all.
    ///
    /// # Errors
    /// As [`errno_of`] says.
    pub fn acknowledge(&self, commit: Commit) -> Result<(), Errno> {
        self.service.acknowledge(commit).map_err(refuse)
    }

    /// Makes everything durable that was answered on any file before the call.
    ///
    /// # Errors
    /// As [`errno_of`] says.
    pub fn sync(&self) -> Result<(), Errno> {
        if self.service.read_only() {
            return Ok(());
        }
        self.service.flush().map_err(refuse)
    }

    /// Makes the range read as zeros and gives its space back; safe from the process's death on return.
    ///
    /// # Errors
    /// `EBADF` on a file that was opened for reading; `EINVAL` for no bytes; `EFBIG` where the file
    /// would become longer; as [`errno_of`] says.
    pub fn zero(&self, offset: u64, len: ByteCount, zeroing: Zeroing) -> Result<(), Errno> {
        self.check_writable()?;
        let size = self.size().0;
        let end = offset.checked_add(len.0).ok_or(Errno::FBIG)?;
        if len.0 == 0 {
            return Err(Errno::INVAL);
        }
        if end > size && zeroing == Zeroing::Whole {
            return Err(Errno::FBIG);
        }
        let inside = ByteCount(end.min(size).saturating_sub(offset));
        if inside.0 == 0 {
            return Ok(());
        }
        let commit = self.service.write_zeroes(offset, inside).map_err(refuse)?;
        self.acknowledge(commit)
    }

    /// The first byte from `offset` on that holds data. A repeated pattern is data.
    ///
    /// # Errors
    /// `ENXIO` where there is none; as [`errno_of`] says.
    pub fn next_data(&self, offset: u64) -> Result<u64, Errno> {
        self.search(offset, |kind| kind != ExtentKind::Hole)?.ok_or(Errno::NXIO)
    }

    /// The first byte from `offset` on that is in a hole; the end of the file counts as one.
    ///
    /// # Errors
    /// `ENXIO` at or past the end; as [`errno_of`] says.
    pub fn next_hole(&self, offset: u64) -> Result<u64, Errno> {
        let size = self.size().0;
        Ok(self.search(offset, |kind| kind == ExtentKind::Hole)?.unwrap_or(size))
    }

    fn search(&self, offset: u64, wanted: impl Fn(ExtentKind) -> bool) -> Result<Option<u64>, Errno> {
        let size = self.size().0;
        if offset >= size {
            return Err(Errno::NXIO);
        }
        let mut at = offset;
        while at < size {
            let len = ByteCount((size - at).min(SEARCH_BYTES));
            for extent in self.service.block_status(at, len, EXTENTS_MAX).map_err(refuse)? {
                if wanted(extent.kind) {
                    return Ok(Some(at));
                }
                at += extent.len.0;
            }
        }
        Ok(None)
    }

    fn check_writable(&self) -> Result<(), Errno> {
        if self.writable { Ok(()) } else { Err(Errno::BADF) }
    }

    /// How many of `len` bytes at `offset` the file has.
    fn within(&self, offset: u64, len: usize) -> usize {
        let left = self.size().0.saturating_sub(offset);
        usize::try_from(left).map_or(len, |left| left.min(len))
    }
}

fn refuse(error: Error) -> Errno {
    let number = errno_of(error.kind());
    if matches!(number, Errno::IO | Errno::BADMSG) {
        tracing::debug!("FUSE: {error}");
    }
    number
}

/// An open directory: its entries as they were when its reader last began at the beginning, so that
/// what comes and goes meanwhile neither hides nor doubles others. None while nobody is in the middle.
pub struct Directory {
    pub(super) inode: Inode,
    pub(super) entries: Mutex<Arc<[DirectoryEntry]>>,
}

/// What is open, by handle.
pub(super) struct Handles<T> {
    state: Mutex<HandleState<T>>,
}

struct HandleState<T> {
    last: u64,
    open: HashMap<u64, Arc<T>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Handles<T> {
        Handles { state: Mutex::new(HandleState { last: 0, open: HashMap::new() }) }
    }
}

impl<T> Handles<T> {
    /// A handle, never given out before.
    ///
    /// # Errors
    /// `ENFILE` where `most` are open.
    pub(super) fn open(&self, what: T, most: usize) -> Result<u64, Errno> {
        let mut state = self.state.lock();
        if state.open.len() >= most {
            return Err(Errno::NFILE);
        }
        state.last += 1;
        let handle = state.last;
        state.open.insert(handle, Arc::new(what));
        Ok(handle)
    }

    /// What is open under the handle.
    ///
    /// # Errors
    /// `EBADF`.
    pub(super) fn get(&self, handle: u64) -> Result<Arc<T>, Errno> {
        self.state.lock().open.get(&handle).cloned().ok_or(Errno::BADF)
    }

    /// Closes it; what is being done with it ends in peace.
    pub(super) fn close(&self, handle: u64) {
        // Outside of the lock: closing a volume may take another one.
        let closed = self.state.lock().open.remove(&handle);
        drop(closed);
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.state.lock().open.len()
    }
}
