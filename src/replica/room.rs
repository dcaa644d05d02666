//! Room that a node needs for what it is to apply, whatever comes of it.

use super::ring::{Backlog, Ring};
use crate::units::{BLOCK_BYTES, BlockCount, ByteCount, Lsn};

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

/// Whether a node that ends its stream is to be compared although it could go on from where it is: it has applied so much,
/// has no room for what follows, and what would make room comes later. It would never come to that by itself.
#[must_use]
pub fn is_stuck(ring: &Ring, applied: Lsn, writable: ByteCount) -> bool {
    !fits(writable, ring.backlog(applied), BlockCount(0)) && ring.frees_behind(applied)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::format::batch::{LoggedOperation, MappingRecord};
    use crate::store::{Commit, CommitSink as _};
    use crate::units::{Epoch, Lba, ObjectNumber};

    #[test]
    fn p7_a_node_is_stuck_where_room_is_made_behind_what_it_has_no_room_for() {
        let ring = Ring::new(ByteCount(1 << 20));
        ring.listen_from(Lsn(0));
        let (object, first) = (ObjectNumber(1), Lba(0));
        let write = LoggedOperation::Write { object, first, mappings: vec![MappingRecord::Lost] };
        let trim = LoggedOperation::Zero { object, first, count: BlockCount(1) };
        let (epoch, payload) = (Epoch::default(), &Arc::default());
        let commit = |lsn, operation: &LoggedOperation| {
            let fingerprints = &[][..];
            ring.committed(&Commit { epoch, lsn: Lsn(lsn), operation, origin: None, fingerprints, payload });
        };
        let (none, plenty) = (ByteCount(4096), ByteCount(1 << 30));
        commit(1, &write);
        assert!(!is_stuck(&ring, Lsn(0), none), "nothing makes room");
        commit(2, &trim);
        commit(3, &write);
        assert!(is_stuck(&ring, Lsn(0), none) && is_stuck(&ring, Lsn(1), none));
        assert!(!is_stuck(&ring, Lsn(2), none) && !is_stuck(&ring, Lsn(0), plenty));
    }

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
