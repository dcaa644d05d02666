//! Reduction of one block: patterns, fingerprints, compression. Pure functions.

use std::cell::RefCell;

use lz4_flex::block::{CompressTable, compress_into_with_table};

use crate::format::unpack::unpack;
use crate::units::BLOCK_BYTES;

/// What a block is before anything is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All zero.
    Zero,
    /// One repeated 32-bit word, not zero.
    Pattern(u32),
    /// Anything else.
    Data,
}

/// Looks for zeros and repeated words; ends at the first eight bytes that differ.
pub(crate) fn shape(block: &[u8]) -> Shape {
    let (words, _) = block.as_chunks::<8>();
    let first = words[0];
    if first[..4] != first[4..] || words.iter().any(|word| *word != first) {
        return Shape::Data;
    }
    match u32::from_le_bytes([first[0], first[1], first[2], first[3]]) {
        0 => Shape::Zero,
        word => Shape::Pattern(word),
    }
}

/// Fills a block with a repeated word.
pub(crate) fn fill_pattern(block: &mut [u8], word: u32) {
    for chunk in block.as_chunks_mut::<4>().0 {
        *chunk = word.to_le_bytes();
    }
}

/// A block is stored compressed only if that saves at least an eighth.
const WORTHWHILE: usize = BLOCK_BYTES - BLOCK_BYTES / 8;

/// What compression needs besides the block, kept by each thread: clearing it costs less than making it anew.
struct Workspace {
    table: CompressTable,
    packed: Vec<u8>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace {
        table: CompressTable::small(),
        packed: vec![0; lz4_flex::block::get_maximum_output_size(BLOCK_BYTES)],
    });
}

/// Appends the block to `out`, compressed if that is worth it, and returns the stored length: `BLOCK_BYTES` for
/// a block that is not compressed.
pub(crate) fn compress(block: &[u8], out: &mut Vec<u8>) -> usize {
    WORKSPACE.with_borrow_mut(|workspace| {
        let packed = compress_into_with_table(block, &mut workspace.packed, &mut workspace.table);
        let stored = match packed {
            Ok(len) if len <= WORTHWHILE => &workspace.packed[..len],
            _ => block,
        };
        out.extend_from_slice(stored);
        stored.len()
    })
}

/// Undoes `compress`; `false` for bytes that are no compressed block.
pub(crate) fn decompress(stored: &[u8], block: &mut [u8]) -> bool {
    if stored.len() == BLOCK_BYTES {
        block.copy_from_slice(stored);
        return true;
    }
    block.len() == BLOCK_BYTES && unpack(stored, block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_told_apart() {
        let mut block = vec![0u8; BLOCK_BYTES];
        assert_eq!(shape(&block), Shape::Zero);
        fill_pattern(&mut block, 0x0102_0304);
        assert_eq!(shape(&block), Shape::Pattern(0x0102_0304));
        block[BLOCK_BYTES - 1] ^= 1;
        assert_eq!(shape(&block), Shape::Data);
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let text: Vec<u8> = (0..BLOCK_BYTES).map(|n| (n / 7 % 251) as u8).collect();
        let noise: Vec<u8> =
            (0..BLOCK_BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for block in [text, noise] {
            let mut out = vec![9u8; 3];
            let len = compress(&block, &mut out);
            assert_eq!(out.len(), 3 + len);
            let mut back = vec![0u8; BLOCK_BYTES];
            assert!(decompress(&out[3..], &mut back));
            assert_eq!(back, block);
        }
        assert!(!decompress(&[0xff; 100], &mut vec![0u8; BLOCK_BYTES]));
    }
}
