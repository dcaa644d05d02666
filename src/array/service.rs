//! What an export asks of a volume.

use crate::error::Result;
use crate::units::{ByteCount, Lsn, RequestId, SessionMemory, Uuid};

use super::changes::ChangedExtent;

/// Where an operation stands in the array's order. A caller keeps the highest of a group of
/// requests and acknowledges them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Commit(pub Lsn);

/// A change of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// [`BlockService::write`].
    Write {
        /// From here on.
        offset: u64,
        /// Which bytes.
        data: &'a [u8],
    },
    /// [`BlockService::write_zeroes`].
    Zeroes {
        /// From here on.
        offset: u64,
        /// So many bytes.
        len: ByteCount,
    },
    /// [`BlockService::trim`].
    Trim {
        /// From here on.
        offset: u64,
        /// So many bytes.
        len: ByteCount,
    },
}

/// One write of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupedWrite<'a> {
    /// Which request it is, for a client that may send it again.
    pub request: Option<RequestId>,
    /// From here on.
    pub offset: u64,
    /// Which bytes.
    pub data: &'a [u8],
}

/// What a client that goes on with its requests has to know of the array that it has come (back) to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionTerms {
    /// Another one whenever acknowledged changes may have been lost; `None` where nobody can tell.
    pub history: Option<Uuid>,
    /// Another one wherever it is not known what was done of the session's requests before; `None` where that is not
    /// known now.
    pub memory: Option<SessionMemory>,
}

/// What a stretch of a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored data.
    Data,
    /// Nothing: reads as zeros and takes no space.
    Hole,
    /// A repeated 32-bit word: not zero, and takes no space.
    Pattern,
}

/// A stretch of equal kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: ByteCount,
    /// What it holds.
    pub kind: ExtentKind,
}

/// What a volume or snapshot holds otherwise than an older snapshot, as the exports see it.
pub trait ChangeSource: Send + Sync {
    /// What has changed in the range, in bytes, as at most `extents_max` stretches (at least one) from `offset`
    /// on; neighbours differ. They may end before the range does, and never reach past it.
    ///
    /// # Errors
    /// `Invalid` for a range that is empty or reaches past the end, `NotFound` for what has been deleted, `Device`.
    fn changes(&self, offset: u64, len: ByteCount, extents_max: usize) -> Result<Vec<ChangedExtent>>;
}

/// One volume (or snapshot) as the exports see it. All offsets and lengths are in bytes and may be
/// unaligned. A range that reaches past the end is `Invalid`, and changes nothing.
///
/// Writing verbs *commit*: afterwards every reader sees the change, but it may only be answered to
/// a client once `acknowledge` (the process may die) or `make_durable` (the power may fail) has
/// returned for the commit they gave.
pub trait BlockService: Send + Sync {
    /// Size in bytes. Grows when the volume is resized.
    fn size(&self) -> ByteCount;

    /// Whether writing verbs are refused with `ReadOnly`.
    fn read_only(&self) -> bool;

    /// Whether what is served here has been deleted: nothing can succeed any more but `acknowledge` and
    /// `make_durable`.
    fn is_deleted(&self) -> bool {
        false
    }

    /// Fills `buffer`, if that needs no waiting for a device; else `Ok(false)` and an undefined
    /// buffer.
    ///
    /// # Errors
    /// `Invalid`, `Corrupt`, `Device`.
    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool>;

    /// Fills `buffer`; may wait for a device.
    ///
    /// # Errors
    /// `Invalid`, `Corrupt`, `Device`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Writes `data`; may wait for room.
    ///
    /// # Errors
    /// `Invalid`, `ReadOnly`, `NoSpace`, `Stopped`, `Device`, `Corrupt` (an unaligned edge over a
    /// damaged block).
    fn write(&self, offset: u64, data: &[u8]) -> Result<Commit>;

    /// Makes the range read as zeros and gives its space back. Costs by the tree nodes it touches.
    ///
    /// # Errors
    /// As `write`.
    fn write_zeroes(&self, offset: u64, len: ByteCount) -> Result<Commit>;

    /// Like `write_zeroes`, for whole blocks only: unaligned edges keep what they hold.
    ///
    /// # Errors
    /// As `write`.
    fn trim(&self, offset: u64, len: ByteCount) -> Result<Commit>;

    /// Carries out what has not been done of a change yet: it may have been sent before, on this node or on another
    /// that was the primary then. A service that does not remember that does all of it.
    ///
    /// # Errors
    /// As `write`.
    fn change_once(&self, _request: RequestId, change: Change<'_>) -> Result<Commit> {
        match change {
            Change::Write { offset, data } => self.write(offset, data),
            Change::Zeroes { offset, len } => self.write_zeroes(offset, len),
            Change::Trim { offset, len } => self.trim(offset, len),
        }
    }

    /// Carries out writes that have come together, one after the other; what has become of each. Together they may
    /// cost less than one by one.
    ///
    /// # Errors
    /// Each as `write`.
    fn write_group(&self, writes: &[GroupedWrite<'_>]) -> Vec<Result<Commit>> {
        let one = |write: &GroupedWrite<'_>| match write.request {
            Some(request) => {
                self.change_once(request, Change::Write { offset: write.offset, data: write.data })
            }
            None => self.write(write.offset, write.data),
        };
        writes.iter().map(one).collect()
    }

    /// Hands everything up to `commit` to the operating system: the death of the process no longer
    /// loses it. One call serves a whole group of requests.
    ///
    /// # Errors
    /// `Stopped`, `Device`.
    fn acknowledge(&self, commit: Commit) -> Result<()>;

    /// Waits until everything up to `commit` is durable.
    ///
    /// # Errors
    /// `Stopped`, `Device`.
    fn make_durable(&self, commit: Commit) -> Result<()>;

    /// Makes everything durable that was acknowledged on any connection before the call.
    ///
    /// # Errors
    /// `Stopped`, `Device`.
    fn flush(&self) -> Result<()>;

    /// What the range holds, as at most `extents_max` stretches (at least one) from `offset` on;
    /// neighbouring ones differ. They may end before the range does.
    ///
    /// # Errors
    /// `Invalid`, `Corrupt`, `Device`.
    fn block_status(&self, offset: u64, len: ByteCount, extents_max: usize) -> Result<Vec<Extent>>;
}
