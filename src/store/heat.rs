//! How often places in volumes are written, roughly and lately: what tells blocks that will soon be overwritten from
//! those that will lie for long when both come out of one log segment.
//!
//! One byte for a few neighbouring blocks: raised by each write, halved once in as many writes as there are blocks.
//! It is lost with the process, and everything that it says is a guess: a wrong one costs a move.

use crate::sync::seeded::mix;
use crate::units::{ByteCount, Lba, ObjectNumber};

/// What a write adds.
const WRITE: u8 = 8;
/// Most bytes, whatever the budget.
const BYTES_MAX: u64 = 8 << 20;
/// Places aged with one write, at most.
const AGED_MAX: u64 = 256;
/// Weight of what the newest write has seen in the mean: one part in this.
const MEMORY: f32 = 4096.0;

/// The counters.
#[derive(Debug)]
pub(crate) struct Heat {
    counts: Vec<u8>,
    /// Neighbouring blocks that share a counter, as a power of two.
    shift: u32,
    /// The counter that ages next.
    cursor: usize,
    /// Counters that should have aged, in parts of the number of blocks.
    owed: u64,
    /// What writes find, on average.
    mean: f32,
}

/// Bytes of the counters, for a pool of so many blocks with such a budget.
pub(crate) fn heat_bytes(pool_blocks: u64, index_budget: ByteCount) -> u64 {
    let most = (index_budget.0 / 16).clamp(64, BYTES_MAX);
    pool_blocks.next_power_of_two().min(1 << most.ilog2())
}

impl Heat {
    /// Everything is cold yet.
    pub(crate) fn new(pool_blocks: u64, index_budget: ByteCount) -> Heat {
        let bytes = heat_bytes(pool_blocks, index_budget);
        let shift = pool_blocks.next_power_of_two().ilog2() - bytes.ilog2();
        let counts = vec![0; usize::try_from(bytes).expect("at most 8 MiB")];
        Heat { counts, shift, cursor: 0, owed: 0, mean: 0.0 }
    }

    fn place(&self, object: ObjectNumber, lba: Lba) -> usize {
        let place = mix(object.0).wrapping_add(lba.0 >> self.shift) & (self.counts.len() as u64 - 1);
        usize::try_from(place).expect("at most 8 Mi")
    }

    /// Blocks have been written, of a pool that holds `stored` of them.
    pub(crate) fn note(&mut self, object: ObjectNumber, first: Lba, blocks: u64, stored: u64) {
        for lba in first.0..first.0 + blocks {
            let place = self.place(object, Lba(lba));
            let count = self.counts[place].saturating_add(WRITE);
            self.counts[place] = count;
            self.mean += (f32::from(count) - self.mean) / MEMORY;
        }
        let lives = stored.max(1) * 4 / 3;
        self.owed += (self.counts.len() as u64 * blocks).min(lives * AGED_MAX);
        for _ in 0..self.owed / lives {
            self.counts[self.cursor] /= 2;
            self.cursor = (self.cursor + 1) & (self.counts.len() - 1);
        }
        self.owed %= lives;
    }

    /// Whether the place is written about as often as places that are written are.
    pub(crate) fn is_hot(&self, object: ObjectNumber, lba: Lba) -> bool {
        f32::from(self.counts[self.place(object, lba)]) * 2.0 > self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::seeded::SeededNumbers;

    #[test]
    fn a_fifth_that_gets_four_writes_of_five_is_told_from_the_rest() {
        const BLOCKS: u64 = 20_000;
        let mut heat = Heat::new(BLOCKS, ByteCount(1 << 20));
        let mut numbers = SeededNumbers::new(1);
        let object = ObjectNumber(7);
        for _ in 0..BLOCKS * 6 {
            let kind = if numbers.chance(4, 5) { 0 } else { 1 + numbers.below(4) };
            heat.note(object, Lba(numbers.below(BLOCKS / 5) * 5 + kind), 1, BLOCKS);
        }
        let share = |kind: u64| {
            let hot = (0..BLOCKS / 5).filter(|fifth| heat.is_hot(object, Lba(fifth * 5 + kind))).count();
            hot as u64 * 100 / (BLOCKS / 5)
        };
        assert!(share(0) > 90, "{} % of the hot blocks are known", share(0));
        assert!(share(3) < 10, "{} % of the cold blocks are taken for hot", share(3));
    }

    #[test]
    fn counters_stay_within_the_budget_and_cover_any_pool() {
        for (blocks, budget, bytes) in [(100, 1 << 20, 128), (1 << 30, 256 << 20, 8 << 20), (1 << 22, 64, 64)]
        {
            let mut heat = Heat::new(blocks, ByteCount(budget));
            assert_eq!(heat.counts.len() as u64, bytes);
            heat.note(ObjectNumber(u64::MAX), Lba(u64::MAX - 300), 256, 0);
            assert!(heat.is_hot(ObjectNumber(u64::MAX), Lba(u64::MAX - 300)));
        }
    }
}
