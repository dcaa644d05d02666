//! A byte range of a volume, split into whole blocks and the partly covered ones at its ends.

use crate::store::Part;
use crate::units::BLOCK_BYTES;
use crate::units::BlockCount;
use crate::units::ByteCount;
use crate::units::Lba;
use crate::units::RequestId;

/// A part of one block, less than all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    /// The block.
    pub(super) lba: Lba,
    /// Where in the block the part begins.
    pub(super) from: usize,
    /// Bytes of the part.
    pub(super) len: usize,
}

/// A byte range, split. Head, whole blocks and tail follow each other; each may be missing. A range
/// within one block that does not cover it is a head alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// A partly covered block in front.
    pub(super) head: Option<Edge>,
    /// The first whole block (or where it would be).
    pub(super) first: Lba,
    /// Number of whole blocks.
    pub(super) whole: BlockCount,
    /// A partly covered block at the end.
    pub(super) tail: Option<Edge>,
}

impl Split {
    /// Splits the `len` bytes from `offset` on, whose sum does not overflow.
    pub(super) fn of(offset: u64, len: u64) -> Split {
        const BLOCK: u64 = BLOCK_BYTES as u64;
        let within = offset % BLOCK;
        let head_len = if within == 0 && len >= BLOCK { 0 } else { len.min(BLOCK - within) };
        let first = Lba((offset + head_len).div_ceil(BLOCK));
        let rest = len - head_len;
        let whole = BlockCount(rest / BLOCK);
        Split {
            head: Edge::of(Lba(offset / BLOCK), within, head_len),
            first,
            whole,
            tail: Edge::of(first.plus(whole.0), 0, rest % BLOCK),
        }
    }

    /// Bytes in front of the whole blocks.
    pub(super) fn head_len(&self) -> usize {
        self.head.map_or(0, |edge| edge.len)
    }

    /// Bytes behind the whole blocks.
    pub(super) fn tail_len(&self) -> usize {
        self.tail.map_or(0, |edge| edge.len)
    }
}

impl Edge {
    /// `from` and `len` are at most a block's bytes.
    fn of(lba: Lba, from: u64, len: u64) -> Option<Edge> {
        let bytes = |number| usize::try_from(number).expect("no more than a block's bytes");
        (len > 0).then(|| Edge { lba, from: bytes(from), len: bytes(len) })
    }
}

/// What each piece of a split range does of a request, in the order in which they are carried out.
#[derive(Default)]
pub(super) struct Steps {
    pub(super) head: Option<Part>,
    pub(super) whole: Option<Part>,
    pub(super) tail: Option<Part>,
}

impl Steps {
    /// For a range whose first byte is that at `before` of the request, and whose last is its last.
    pub(super) fn of(request: Option<RequestId>, before: u64, split: &Split) -> Steps {
        let Some(request) = request else { return Steps::default() };
        let step = |before, last| Some(Part { request, before: ByteCount(before), last });
        let (has_whole, has_tail) = (split.whole.0 > 0, split.tail.is_some());
        let first = before + split.head_len() as u64;
        Steps {
            head: step(before, !has_whole && !has_tail),
            whole: step(first, !has_tail),
            tail: step(first + split.whole.bytes().0, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_within_one_block() {
        let edge = |from, len| Some(Edge { lba: Lba(1), from, len });
        assert_eq!(Split::of(4096, 0), Split { head: None, first: Lba(1), whole: BlockCount(0), tail: None });
        assert_eq!(
            Split::of(4096, 4096),
            Split { head: None, first: Lba(1), whole: BlockCount(1), tail: None }
        );
        for (offset, len) in [(4096, 4095), (4097, 4095), (4100, 1)] {
            let split = Split::of(offset, len);
            assert_eq!(split.head, edge((offset - 4096) as usize, len as usize));
            assert_eq!((split.whole, split.tail), (BlockCount(0), None));
        }
    }

    proptest! {
        #[test]
        fn the_parts_are_the_whole(offset in 0u64..40_000, len in 0u64..40_000) {
            let split = Split::of(offset, len);
            let mut at = offset;
            for (edge, place) in [(split.head, "head"), (split.tail, "tail")] {
                if place == "tail" && split.whole.0 > 0 {
                    prop_assert_eq!(at, split.first.0 * 4096);
                    at += split.whole.0 * 4096;
                }
                if let Some(edge) = edge {
                    prop_assert!(edge.len > 0 && edge.len < 4096 && edge.from + edge.len <= 4096);
                    prop_assert_eq!(edge.lba.0 * 4096 + edge.from as u64, at);
                    at += edge.len as u64;
                }
            }
            prop_assert_eq!(at, offset + len);
            prop_assert_eq!((split.head_len() + split.tail_len()) as u64 + split.whole.0 * 4096, len);
        }
    }
}
