//! The unique blocks of an image: what an array that knows only itself would have to store.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::path::Path;

/// The unit of mapping and reduction.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// Blocks are read in stretches of this many bytes.
const STRETCH_BYTES: usize = 4 << 20;

/// What an image holds, in blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Census {
    pub(crate) blocks: u64,
    pub(crate) zero_blocks: u64,
    pub(crate) unique_blocks: u64,
}

/// Hands each non-zero block to `take` when its content is met first, until `take` has enough. A
/// last part of a block counts as a block filled up with zeros.
pub(crate) fn for_each_unique_block(
    path: &Path,
    mut take: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<Census> {
    let mut file = File::open(path)?;
    let mut stretch = vec![0u8; STRETCH_BYTES];
    let mut seen: HashSet<[u8; 16]> = HashSet::new();
    let mut census = Census::default();
    loop {
        let filled = read_full(&mut file, &mut stretch)?;
        if filled == 0 {
            return Ok(census);
        }
        let end = filled.next_multiple_of(BLOCK_BYTES);
        stretch[filled..end].fill(0);
        for block in stretch[..end].chunks_exact(BLOCK_BYTES) {
            census.blocks += 1;
            if block.iter().all(|byte| *byte == 0) {
                census.zero_blocks += 1;
                continue;
            }
            let mut fingerprint = [0u8; 16];
            fingerprint.copy_from_slice(&blake3::hash(block).as_bytes()[..16]);
            if seen.insert(fingerprint) {
                census.unique_blocks += 1;
                if take(block).is_break() {
                    return Ok(census);
                }
            }
        }
    }
}

/// Fills the buffer as far as the file goes.
fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
