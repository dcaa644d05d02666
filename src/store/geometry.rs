//! Sizes that follow from the pool and the budgets, and where a segment lies.

use crate::error::{Error, ErrorKind, Result};
use crate::format::SYNC_UNIT_BYTES;
use crate::format::batch::BATCH_HEADER_BYTES;
use crate::format::location::SEGMENTS_MAX;
use crate::format::segment::SEGMENT_HEADER_BYTES;
use crate::format::superblock::SUPERBLOCK_AREA_BYTES;
use crate::units::{BLOCK_BYTES, ByteCount, DeviceOffset, SegmentId};

/// Bytes that one cached page costs, its frame included.
pub(crate) const FRAME_BYTES: u64 = 4096 + 160;
/// Bytes that one pending change costs in memory, and its part of what a borrowing leaf costs.
const CHANGE_BYTES: u64 = 50;
/// Pending changes for each leaf that may borrow.
const CHANGES_PER_BORROWER: u64 = 8;
/// Fewest changes that the buffer holds: those of the largest operation. A write across the border of two leaves
/// below shared nodes copies eight nodes at most, each with one more reference to each of its entries, and changes
/// two references for each of 256 blocks.
const CHANGES_MIN: u64 = 4800;
/// One part in this many stays free beside what checkpoints need: without it, collection moves more and more of what
/// is live for each byte written. Measured at 80 % of the usable bytes in PERFORMANCE.
const RESERVE_ONE_IN: u64 = 7;
const SEGMENT_BYTES_DEFAULT: u64 = 4 << 20;
/// Smallest segment.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Largest segment.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Fewest segments of a pool.
pub const SEGMENTS_MIN: u64 = 48;

/// Chooses the size of a segment: 4 MiB from 1 GiB to 4 TiB, smaller below, larger above.
#[must_use]
pub fn segment_bytes_for(pool: ByteCount) -> ByteCount {
    let mut bytes = SEGMENT_BYTES_DEFAULT;
    while pool.0 / bytes > u64::from(SEGMENTS_MAX) && bytes < SEGMENT_BYTES_MAX {
        bytes *= 2;
    }
    while pool.0 / bytes < 256 && bytes > SEGMENT_BYTES_MIN {
        bytes /= 2;
    }
    ByteCount(bytes)
}

/// How many whole segments a device of `len` holds beside its superblocks.
#[must_use]
pub(crate) fn segments_on(len: ByteCount, segment_bytes: ByteCount) -> u64 {
    len.0.saturating_sub(2 * SUPERBLOCK_AREA_BYTES) / segment_bytes.0
}

/// Sizes of a pool that is open.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    /// Bytes of a segment.
    pub(crate) segment_bytes: u32,
    /// First segment of each device, and the number of all segments.
    first_segments: Vec<u32>,
    /// Most blocks of one operation.
    pub(crate) operation_blocks: usize,
    /// Pages that the cache holds.
    pub(crate) frames: usize,
    /// Dirty pages at which commits wait.
    pub(crate) dirty_limit: usize,
    /// Dirty pages at which a checkpoint starts.
    pub(crate) dirty_start: usize,
    /// Pending changes that the buffer holds.
    pub(crate) changes: usize,
    /// Copied leaves that may borrow.
    pub(crate) borrowers: usize,
    /// Bytes that writes may fill.
    pub(crate) usable_bytes: u64,
    /// Bytes that trims and zeroes may fill, which must copy nodes that are shared: they go on when writes stop.
    pub(crate) trim_bytes: u64,
    /// Bytes that new objects, snapshots among them, may fill: they go on when trims stop.
    pub(crate) management_bytes: u64,
    /// Free segments that one checkpoint may need.
    pub(crate) checkpoint_segments: usize,
}

impl Geometry {
    /// Works out the sizes.
    ///
    /// # Errors
    /// `Invalid` where the pool is too small, or has more segments than can be named.
    pub(crate) fn new(
        segment_bytes: ByteCount,
        device_segments: &[u32],
        metadata_budget: ByteCount,
    ) -> Result<Geometry> {
        let refuse = |what: String| Err(Error::new(ErrorKind::Invalid, what));
        let bytes = segment_bytes.0;
        if !bytes.is_power_of_two() || !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) {
            return refuse(format!(
                "a segment size of {bytes} bytes: it must be a power of two from 64 KiB to 1 GiB"
            ));
        }
        let mut first_segments = vec![0u32];
        let mut sum = 0u64;
        for segments in device_segments {
            sum += u64::from(*segments);
            first_segments
                .push(u32::try_from(sum.min(u64::from(SEGMENTS_MAX) + 1)).expect("20 bits and one"));
        }
        if sum < SEGMENTS_MIN {
            return refuse(format!(
                "the pool has {sum} segments of {bytes} bytes, and needs at least {SEGMENTS_MIN}"
            ));
        }
        if sum > u64::from(SEGMENTS_MAX) {
            return refuse(format!(
                "the pool has {sum} segments of {bytes} bytes, and may have {SEGMENTS_MAX}: choose larger ones"
            ));
        }
        let pool_bytes = sum * bytes;
        let frames = metadata_budget.0 * 7 / 8 / FRAME_BYTES;
        let dirty_limit = (frames / 2).min(pool_bytes / 32 / 4160).max(24);
        let changes = (metadata_budget.0 / 8 / CHANGE_BYTES).min(pool_bytes / 64 / 12).max(CHANGES_MIN);
        let borrowers = changes / CHANGES_PER_BORROWER;
        let checkpoint_segments = segments_of_checkpoint(dirty_limit, changes, bytes);
        let for_checkpoints = (2 * checkpoint_segments + 4) * bytes;
        // A pool of a few segments could not hold anything.
        let for_collection =
            (pool_bytes / RESERVE_ONE_IN).min(pool_bytes.saturating_sub(for_checkpoints) / 4);
        let reserve = for_checkpoints + for_collection;
        let usable_bytes = pool_bytes.saturating_sub(reserve);
        if usable_bytes < pool_bytes / 4 {
            return refuse(format!(
                "the pool of {pool_bytes} bytes is too small for segments of {bytes} bytes: {reserve} would be reserved"
            ));
        }
        let operation_blocks = (bytes / 4096 / 32).min(frames / 64).clamp(8, 256);
        let as_count = |count: u64| usize::try_from(count).expect("bounded by memory");
        Ok(Geometry {
            segment_bytes: u32::try_from(bytes).expect("at most 1 GiB"),
            first_segments,
            operation_blocks: as_count(operation_blocks),
            frames: as_count(frames.max(128)),
            dirty_limit: as_count(dirty_limit),
            dirty_start: as_count(dirty_limit / 2),
            changes: as_count(changes),
            borrowers: as_count(borrowers),
            usable_bytes,
            trim_bytes: usable_bytes + pool_bytes / 128,
            management_bytes: usable_bytes + pool_bytes / 64,
            checkpoint_segments: as_count(checkpoint_segments),
        })
    }

    /// Free segments that the log leaves: the last two checkpoints' worth belongs to checkpoints and collection.
    pub(crate) fn log_keeps_free(&self) -> usize {
        2 * self.checkpoint_segments + 3
    }

    /// As many for two checkpoints of so many pages and changes.
    pub(crate) fn segments_for_checkpoints(&self, dirty_pages: usize, changes: usize) -> usize {
        let segment_bytes = u64::from(self.segment_bytes);
        let each = segments_of_checkpoint(dirty_pages as u64, changes as u64, segment_bytes);
        usize::try_from(2 * each + 3).map_or(usize::MAX, |count| count.min(self.log_keeps_free()))
    }

    /// Number of segments.
    pub(crate) fn segments(&self) -> u32 {
        *self.first_segments.last().expect("never empty")
    }

    /// Most bytes that the frame of one operation may have: an operation never crosses a segment.
    pub(crate) fn frame_bytes_max(&self) -> usize {
        self.segment_bytes as usize
            - SEGMENT_HEADER_BYTES.next_multiple_of(SYNC_UNIT_BYTES)
            - BATCH_HEADER_BYTES
    }

    /// Bytes of all segments.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        u64::from(self.segments()) * u64::from(self.segment_bytes)
    }

    /// The device of a segment, and where the byte at `offset` of the segment lies on it; `None` where there
    /// is no such segment.
    pub(crate) fn place(&self, segment: SegmentId, offset: u32) -> Option<(usize, DeviceOffset)> {
        if segment.0 >= self.segments() || offset > self.segment_bytes {
            return None;
        }
        let device = self.first_segments.partition_point(|first| *first <= segment.0) - 1;
        let index = u64::from(segment.0 - self.first_segments[device]);
        let start = SUPERBLOCK_AREA_BYTES + index * u64::from(self.segment_bytes);
        Some((device, DeviceOffset(start + u64::from(offset))))
    }
}

/// Segments that a checkpoint of so many dirty pages and pending changes fills at most. It writes about as many directory
/// pages as others, those twice, and a root with two generations of changes and all borrowers, also twice. In replay more
/// leaves may borrow than else; each has two changes at least in the generation of the log.
fn segments_of_checkpoint(dirty_pages: u64, changes: u64, segment_bytes: u64) -> u64 {
    let root_bytes = 2 * changes * 12 + changes / 2 * 16;
    let bytes = dirty_pages * 4160 * 3 / 2 + 64 * 4160 + 2 * root_bytes;
    bytes.div_ceil(segment_bytes - SEGMENT_HEADER_BYTES as u64 - 4160) + 2
}

const _: () = assert!(BLOCK_BYTES == 4096);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_lie_one_behind_the_other_on_each_device() {
        let geometry = Geometry::new(ByteCount(64 << 10), &[40, 0, 60], ByteCount(1 << 20)).unwrap();
        assert_eq!(geometry.place(SegmentId(0), 0), Some((0, DeviceOffset(65536))));
        assert_eq!(geometry.place(SegmentId(39), 16), Some((0, DeviceOffset(65536 * 40 + 16))));
        assert_eq!(geometry.place(SegmentId(40), 0), Some((2, DeviceOffset(65536))));
        assert_eq!(geometry.place(SegmentId(100), 0), None);
    }

    #[test]
    fn segments_grow_with_the_pool() {
        assert_eq!(segment_bytes_for(ByteCount(16 << 30)).0, 4 << 20);
        assert_eq!(segment_bytes_for(ByteCount(4 << 40)).0, 4 << 20);
        assert_eq!(segment_bytes_for(ByteCount(5 << 40)).0, 8 << 20);
        assert_eq!(segment_bytes_for(ByteCount(64 << 20)).0, 256 << 10);
    }
}
