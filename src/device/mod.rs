//! The devices of a pool: regular files, raw block devices, memory, and the faulty one that the
//! simulator uses. Only this module touches a pool's files and devices.

pub mod faulty;
pub mod file;
mod image;
pub mod memory;

use std::io;

use crate::units::{ByteCount, DeviceOffset};

/// Who wants a device synced. Each hears of a failed write-back by itself.
///
/// A host tells a failure once to each open file, whoever wrote what was lost. Were there only one, then of two syncs at
/// the same time one would take the other's failure away, and that one would call durable what is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncer {
    /// Group commit: what was written to the log.
    Log,
    /// A checkpoint, or whoever else needs everything durable; one at a time.
    Checkpoint,
}

/// What the store asks of a device. All offsets and lengths are in bytes; nothing past `len` is
/// ever asked for.
#[expect(clippy::len_without_is_empty, reason = "a device is not a collection; its length is its size")]
pub trait Device: Send + Sync {
    /// A short name for messages: the path, as the user gave it.
    fn name(&self) -> &str;

    /// Size in bytes; fixed while the device is open.
    fn len(&self) -> ByteCount;

    /// Fills `buffer` from `offset`, waiting for the device where it must.
    ///
    /// # Errors
    /// What the operating system said; `UnexpectedEof` where the device turned out shorter.
    fn read_at(&self, offset: DeviceOffset, buffer: &mut [u8]) -> io::Result<()>;

    /// Like `read_at`, but only from the page cache: `Ok(false)`, with the buffer's content
    /// undefined, where it would have to wait.
    ///
    /// # Errors
    /// As `read_at`.
    fn try_read_at(&self, offset: DeviceOffset, buffer: &mut [u8]) -> io::Result<bool>;

    /// Writes the slices one behind the other from `offset` on. After an error any part of the
    /// range may hold old bytes, new ones, or a mixture.
    ///
    /// # Errors
    /// What the operating system said.
    fn write_at(&self, offset: DeviceOffset, slices: &[&[u8]]) -> io::Result<()>;

    /// Makes everything written before the call durable. Each syncer has at most one call under way.
    ///
    /// # Errors
    /// What could not be written back since this syncer's last call, whoever else heard of it. After an error nothing is known of what was not durable before; the call must not be
    /// repeated in the hope of better luck.
    fn sync(&self, by: Syncer) -> io::Result<()>;

    /// Makes sure that the range has room on the host, so that writing to it cannot meet ENOSPC.
    ///
    /// # Errors
    /// `StorageFull` where the host has no room.
    fn allocate(&self, offset: DeviceOffset, len: ByteCount) -> io::Result<()>;

    /// Gives the range back to the host; what it reads as afterwards is undefined.
    ///
    /// # Errors
    /// What the operating system said; a host that cannot do it at all is not an error.
    fn discard(&self, offset: DeviceOffset, len: ByteCount) -> io::Result<()>;

    /// Forgets clean cached pages, so that the next read shows what the medium holds.
    ///
    /// # Errors
    /// What the operating system said.
    fn drop_cache(&self) -> io::Result<()>;
}

/// Whether the range lies within a device of `device` bytes.
fn within(device: ByteCount, offset: DeviceOffset, len: ByteCount) -> bool {
    offset.0.checked_add(len.0).is_some_and(|end| end <= device.0)
}

/// Bytes of all slices together.
fn slices_len(slices: &[&[u8]]) -> ByteCount {
    ByteCount(slices.iter().map(|slice| slice.len() as u64).sum())
}
