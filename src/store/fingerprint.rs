//! Fingerprints: 128 bits of BLAKE3 under the array's key, unforgeable, so that equal fingerprints mean equal
//! blocks.
//!
//! A block of 4 KiB is four chunks of BLAKE3, and a processor with wide registers hashes sixteen chunks in the
//! time of four. So many blocks are hashed side by side: first the first chunk of each, then the second, and
//! so on, then the parents of their small trees (BLAKE3 paper, on its tree and on SIMD).

use blake3::IncrementCounter;
use blake3::platform::{Platform, words_from_le_bytes_32};

use crate::units::{BLOCK_BYTES, Fingerprint};

const CHUNK_BYTES: usize = blake3::CHUNK_LEN;
const CHUNKS: usize = BLOCK_BYTES / CHUNK_BYTES;
/// A chaining value, in bytes.
const VALUE_BYTES: usize = blake3::OUT_LEN;
/// Two chaining values.
const PARENT_BYTES: usize = 2 * VALUE_BYTES;

/// Most blocks hashed side by side.
const BLOCKS_MAX: usize = 16;
/// Fewest blocks for which that is faster than one after the other.
const BLOCKS_MIN: usize = 8;

/// Domain flags of the compression function (BLAKE3 paper).
mod flag {
    pub(super) const CHUNK_START: u8 = 1 << 0;
    pub(super) const CHUNK_END: u8 = 1 << 1;
    pub(super) const PARENT: u8 = 1 << 2;
    pub(super) const ROOT: u8 = 1 << 3;
    pub(super) const KEYED_HASH: u8 = 1 << 4;
}

/// The fingerprint of one block.
pub(crate) fn fingerprint(key: &[u8; 32], block: &[u8]) -> Fingerprint {
    shortened(blake3::keyed_hash(key, block).as_bytes())
}

/// The fingerprints of many blocks, in order.
pub(crate) fn fingerprints(key: &[u8; 32], blocks: &[&[u8; BLOCK_BYTES]]) -> Vec<Fingerprint> {
    let mut found = Vec::with_capacity(blocks.len());
    let mut left = blocks;
    while left.len() >= BLOCKS_MIN {
        let count = if left.len() >= BLOCKS_MAX { BLOCKS_MAX } else { BLOCKS_MIN };
        let (together, rest) = left.split_at(count);
        side_by_side(key, together, &mut found);
        left = rest;
    }
    found.extend(left.iter().map(|block| fingerprint(key, *block)));
    found
}

fn side_by_side(key: &[u8; 32], blocks: &[&[u8; BLOCK_BYTES]], found: &mut Vec<Fingerprint>) {
    let platform = Platform::detect();
    let key = words_from_le_bytes_32(key);
    let count = blocks.len();
    let mut values = [[0u8; VALUE_BYTES * BLOCKS_MAX]; CHUNKS];
    for (number, values) in values.iter_mut().enumerate() {
        let mut chunks: [&[u8; CHUNK_BYTES]; BLOCKS_MAX] = [&[0; CHUNK_BYTES]; BLOCKS_MAX];
        for (chunk, block) in chunks.iter_mut().zip(blocks) {
            *chunk = &block.as_chunks().0[number];
        }
        platform.hash_many(
            &chunks[..count],
            &key,
            number as u64,
            IncrementCounter::No,
            flag::KEYED_HASH,
            flag::CHUNK_START,
            flag::CHUNK_END,
            values,
        );
    }
    let mut parents = [[0u8; PARENT_BYTES]; BLOCKS_MAX * CHUNKS / 2];
    for (pair, chunks) in values.as_chunks::<2>().0.iter().enumerate() {
        for block in 0..count {
            let parent = &mut parents[block * CHUNKS / 2 + pair];
            let at = block * VALUE_BYTES..(block + 1) * VALUE_BYTES;
            parent[..VALUE_BYTES].copy_from_slice(&chunks[0][at.clone()]);
            parent[VALUE_BYTES..].copy_from_slice(&chunks[1][at]);
        }
    }
    let mut roots = [0u8; PARENT_BYTES * BLOCKS_MAX];
    hash_parents(platform, &key, &parents[..count * CHUNKS / 2], 0, &mut roots);
    let mut hashes = [0u8; VALUE_BYTES * BLOCKS_MAX];
    hash_parents(platform, &key, &roots.as_chunks().0[..count], flag::ROOT, &mut hashes);
    found.extend(hashes.as_chunks::<VALUE_BYTES>().0[..count].iter().map(shortened));
}

fn hash_parents(
    platform: Platform,
    key: &[u32; 8],
    parents: &[[u8; PARENT_BYTES]],
    flags: u8,
    out: &mut [u8],
) {
    let mut inputs: [&[u8; PARENT_BYTES]; BLOCKS_MAX * CHUNKS / 2] =
        [&[0; PARENT_BYTES]; BLOCKS_MAX * CHUNKS / 2];
    for (input, parent) in inputs.iter_mut().zip(parents) {
        *input = parent;
    }
    let flags = flag::KEYED_HASH | flag::PARENT | flags;
    platform.hash_many(&inputs[..parents.len()], key, 0, IncrementCounter::No, flags, 0, 0, out);
}

fn shortened(hash: &[u8; VALUE_BYTES]) -> Fingerprint {
    let mut fingerprint = Fingerprint::default();
    fingerprint.0.copy_from_slice(&hash[..16]);
    fingerprint
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_side_by_side_have_the_fingerprints_that_they_have_alone() {
        let key = [0x5a; 32];
        let mut noise = blake3::Hasher::new().finalize_xof();
        let mut blocks = vec![[0u8; BLOCK_BYTES]; 45];
        blocks.iter_mut().skip(1).for_each(|block| noise.fill(block));
        let blocks: Vec<&[u8; BLOCK_BYTES]> = blocks.iter().collect();
        for count in 0..=blocks.len() {
            let alone: Vec<Fingerprint> =
                blocks[..count].iter().map(|block| fingerprint(&key, *block)).collect();
            assert_eq!(fingerprints(&key, &blocks[..count]), alone, "{count} blocks");
        }
    }
}
