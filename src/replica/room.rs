//! Room that a node needs for what it is to apply, whatever comes of it.

use super::ring::Backlog;
use crate::units::{BLOCK_BYTES, BlockCount, ByteCount};

/// Pages of metadata that an operation may fill, each with its copy's share.
const OPERATION_PAGES: u64 = 4;
const PAGE_BYTES: u64 = 4160;
/// What a node keeps back beyond what is counted: a part of its room for metadata that nobody can foresee.
const MARGIN: ByteCount = ByteCount(1 << 20);

/// Whether a node that can take so many bytes has room for what it has not answered for, and for one more operation beside
/// what other requests are about to commit, as if nothing of it could be reduced.
#[must_use]
pub fn fits(writable: ByteCount, backlog: Backlog, reserved: BlockCount) -> bool {
    let pages = backlog.operations.saturating_add(1).saturating_mul(OPERATION_PAGES * PAGE_BYTES);
    let blocks = backlog.blocks.saturating_add(reserved.0).saturating_mul(BLOCK_BYTES as u64);
    writable.0 >= pages.saturating_add(blocks).saturating_add(MARGIN.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_counted_for_whatever_may_come() {
        let behind = |operations, blocks| Backlog { operations, blocks };
        let least = ByteCount((1 << 20) + 4 * 4160 + 4096);
        assert!(fits(least, behind(0, 0), BlockCount(1)));
        assert!(!fits(ByteCount(least.0 - 1), behind(0, 0), BlockCount(1)));
        assert!(!fits(least, behind(1, 0), BlockCount(1)) && !fits(least, behind(0, 1), BlockCount(1)));
        assert!(!fits(least, behind(u64::MAX, u64::MAX), BlockCount(u64::MAX)));
    }
}
