//! A map from ids in which neighbours lie beside each other. Ids are given out and let go of in sequences, and each
//! place in memory that is far from the last costs a miss of the processor's caches.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map from ids. Its order is the same in every run.
pub(super) type IdMap<T> = HashMap<u64, T, BuildHasherDefault<NeighbourHasher>>;

/// Hashes an id to a place beside those of its neighbours.
#[derive(Debug, Default)]
pub(super) struct NeighbourHasher(u64);

/// Ids that lie beside each other, as a power of two.
const NEIGHBOURS_BITS: u32 = 3;
/// 2^64 over the golden ratio: Fibonacci hashing (Knuth, The Art of Computer Programming, 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for NeighbourHasher {
    fn write_u64(&mut self, id: u64) {
        let group = (id >> NEIGHBOURS_BITS).wrapping_mul(SPREAD) >> 32;
        let place = group << NEIGHBOURS_BITS | id & ((1 << NEIGHBOURS_BITS) - 1);
        // The map takes the place from the low bits, and tells what lies there apart by the highest.
        self.0 = place ^ (id.wrapping_mul(SPREAD) >> 57 << 57);
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("ids are hashed as whole numbers");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
