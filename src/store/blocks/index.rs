//! The fingerprint index: fingerprint -> block id, in a fixed amount of memory. A hint and nothing more: it
//! forgets when it is full, and whoever asks compares the fingerprint in the block table.
//!
//! Buckets of eight 64-bit slots (one cache line). A slot holds 24 bits of the fingerprint and 40 bits of the
//! block id; 0 is an empty slot. Slots are atomic, so that the index needs no lock: two writers may overwrite
//! each other's hint, which costs reduction and nothing else.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockId, ByteCount, Fingerprint};

const SLOTS_PER_BUCKET: usize = 8;
const ID_BITS: u32 = 40;
const ID_MASK: u64 = (1 << ID_BITS) - 1;

/// What has become of a hint that may only take an empty slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    /// It has one.
    Placed,
    /// There is a hint of this tag already.
    Known,
    /// There is no empty one.
    NoRoom,
}

/// The index.
#[derive(Debug)]
pub(crate) struct FingerprintIndex {
    slots: Vec<AtomicU64>,
    buckets: u64,
}

impl FingerprintIndex {
    /// An empty index within `budget`; of at least one bucket.
    ///
    /// # Errors
    /// `NoSpace` where the host has not that much memory.
    pub(crate) fn new(budget: ByteCount) -> Result<FingerprintIndex> {
        let buckets = (budget.0 / 64).max(1);
        let slots = usize::try_from(buckets).unwrap_or(usize::MAX).saturating_mul(SLOTS_PER_BUCKET);
        // Zeroed memory cannot be asked for with the chance of a refusal, so it is asked for as it comes, and
        // given back.
        let mut trial: Vec<u64> = Vec::new();
        trial.try_reserve_exact(slots).map_err(|error| {
            let what = format!("making a fingerprint index of {}", budget.rounded());
            Error::caused(ErrorKind::NoSpace, what, error)
        })?;
        drop(std::hint::black_box(trial));
        // A vector of plain zeros comes from the system untouched, and collecting it in place leaves it so:
        // memory that no hint has reached is not resident.
        Ok(FingerprintIndex { slots: vec![0u64; slots].into_iter().map(AtomicU64::new).collect(), buckets })
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.slots.len() as u64 * 8
    }

    fn bucket(&self, fingerprint: &Fingerprint) -> &[AtomicU64] {
        let number = (u128::from(fingerprint.head()) * u128::from(self.buckets)) >> 64;
        let start = usize::try_from(number).expect("below the number of buckets") * SLOTS_PER_BUCKET;
        &self.slots[start..start + SLOTS_PER_BUCKET]
    }

    fn tag(fingerprint: &Fingerprint) -> u64 {
        fingerprint.tail() >> ID_BITS << ID_BITS
    }

    /// A block that may have this fingerprint.
    pub(crate) fn probe(&self, fingerprint: &Fingerprint) -> Option<BlockId> {
        let tag = FingerprintIndex::tag(fingerprint);
        self.bucket(fingerprint)
            .iter()
            .map(|slot| slot.load(Ordering::Relaxed))
            .find(|slot| *slot != 0 && slot & !ID_MASK == tag)
            .map(|slot| BlockId((slot & ID_MASK) - 1))
    }

    /// Brings the places of these fingerprints' hints into the processor's caches: it waits for all of them at
    /// once rather than for one after the other.
    pub(crate) fn warm<'a>(&self, fingerprints: impl Iterator<Item = &'a Fingerprint>) {
        let glance = |fingerprint| self.bucket(fingerprint)[0].load(Ordering::Relaxed);
        std::hint::black_box(fingerprints.map(glance).fold(0, |all, slot| all ^ slot));
    }

    /// Remembers a block; an older hint of the same tag, an empty slot, or one chosen by the fingerprint gives
    /// way.
    pub(crate) fn remember(&self, fingerprint: &Fingerprint, block: BlockId) {
        if block.0 >= ID_MASK {
            return;
        }
        let tag = FingerprintIndex::tag(fingerprint);
        let bucket = self.bucket(fingerprint);
        let values = || bucket.iter().map(|slot| slot.load(Ordering::Relaxed));
        let position = values()
            .position(|slot| slot != 0 && slot & !ID_MASK == tag)
            .or_else(|| values().position(|slot| slot == 0))
            .unwrap_or((block.0 % SLOTS_PER_BUCKET as u64) as usize);
        bucket[position].store(tag | (block.0 + 1), Ordering::Relaxed);
    }

    /// Remembers a block if that displaces nothing.
    pub(crate) fn offer(&self, fingerprint: &Fingerprint, block: BlockId) -> Offered {
        if block.0 >= ID_MASK {
            return Offered::NoRoom;
        }
        let tag = FingerprintIndex::tag(fingerprint);
        let bucket = self.bucket(fingerprint);
        if self.probe(fingerprint).is_some() {
            return Offered::Known;
        }
        let placed = bucket.iter().any(|slot| {
            slot.compare_exchange(0, tag | (block.0 + 1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
        });
        if placed { Offered::Placed } else { Offered::NoRoom }
    }

    /// Forgets a block that is no more.
    pub(crate) fn forget(&self, fingerprint: &Fingerprint, block: BlockId) {
        let value = FingerprintIndex::tag(fingerprint) | (block.0 + 1);
        for slot in self.bucket(fingerprint) {
            if slot.load(Ordering::Relaxed) != value {
                continue;
            }
            // A failure means that another hint took the place meanwhile.
            let _ = slot.compare_exchange(value, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(number: u64) -> Fingerprint {
        let hash = blake3::hash(&number.to_le_bytes());
        let mut fingerprint = Fingerprint::default();
        fingerprint.0.copy_from_slice(&hash.as_bytes()[..16]);
        fingerprint
    }

    #[test]
    fn index_remembers_and_forgets() {
        let index = FingerprintIndex::new(ByteCount(1 << 16)).unwrap();
        for number in 0..1000 {
            index.remember(&print(number), BlockId(number));
        }
        assert!((0..1000).all(|number| index.probe(&print(number)) == Some(BlockId(number))));
        index.forget(&print(5), BlockId(5));
        index.forget(&print(6), BlockId(7));
        assert_eq!(index.probe(&print(5)), None);
        assert_eq!(index.probe(&print(6)), Some(BlockId(6)));
    }

    #[test]
    fn more_than_there_is_memory_is_refused() {
        for budget in [1 << 60, u64::MAX] {
            assert_eq!(FingerprintIndex::new(ByteCount(budget)).unwrap_err().kind(), ErrorKind::NoSpace);
        }
    }

    #[test]
    fn offered_hints_displace_nothing() {
        let index = FingerprintIndex::new(ByteCount(64)).unwrap();
        index.remember(&print(1), BlockId(1));
        assert_eq!(index.offer(&print(1), BlockId(2)), Offered::Known);
        for number in 2..9 {
            assert_eq!(index.offer(&print(number), BlockId(number)), Offered::Placed);
        }
        assert_eq!(index.offer(&print(9), BlockId(9)), Offered::NoRoom);
        assert!((1..9).all(|number| index.probe(&print(number)) == Some(BlockId(number))));
    }

    #[test]
    fn full_index_keeps_its_size_and_the_newest() {
        let index = FingerprintIndex::new(ByteCount(64)).unwrap();
        for number in 0..100 {
            index.remember(&print(number), BlockId(number));
            assert_eq!(index.probe(&print(number)), Some(BlockId(number)));
        }
        assert_eq!(index.bytes(), 64);
    }
}
