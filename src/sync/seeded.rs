//! Numbers from a seed, for the simulator and for tests.
//!
//! One seed gives one sequence, on every machine and in every version: a failure that prints its
//! seed can be played again. Never used where a number must not be guessed.

/// A SplitMix64 generator: a counter that goes up by an odd constant, and a mixing of its bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeededNumbers {
    counter: u64,
}

/// 2^64 divided by the golden ratio, made odd: consecutive counters differ in many bits.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads every bit of `value` over the whole word.
#[must_use]
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl SeededNumbers {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> SeededNumbers {
        SeededNumbers { counter: seed }
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(STEP);
        mix(self.counter)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product is uniform but for a bias of bound / 2^64.
        let product = u128::from(self.number()) * u128::from(bound);
        u64::try_from(product >> 64).expect("the high half of a 128-bit product has 64 bits")
    }

    /// An index below `bound`; 0 when `bound` is 0.
    pub fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).expect("it is below a usize")
    }

    /// True `chances` times in `of`.
    pub fn chance(&mut self, chances: u64, of: u64) -> bool {
        self.below(of) < chances
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.number().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// A sequence of its own, for a part whose draws must not disturb the others'.
    #[must_use]
    pub fn branch(&mut self) -> SeededNumbers {
        SeededNumbers::new(self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_sequence() {
        let draw = |seed| {
            let mut numbers = SeededNumbers::new(seed);
            (0..8).map(|_| numbers.number()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        // The first number of seed 0 as the published generator gives it: seeds keep their meaning.
        assert_eq!(SeededNumbers::new(0).number(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn bounds_are_kept_and_reached() {
        let mut numbers = SeededNumbers::new(1);
        let mut seen = [0u32; 5];
        for _ in 0..5_000 {
            seen[numbers.index(5)] += 1;
        }
        assert!(seen.iter().all(|count| (800..1_200).contains(count)), "{seen:?}");
        assert_eq!(numbers.below(0), 0);
        assert_eq!(numbers.below(1), 0);
        let heads = (0..8_000).filter(|_| numbers.chance(1, 4)).count();
        assert!((1_800..2_200).contains(&heads), "{heads}");
    }

    #[test]
    fn filling_covers_every_byte() {
        let mut numbers = SeededNumbers::new(3);
        let mut touched = [false; 13];
        for _ in 0..20 {
            let mut bytes = [0u8; 13];
            numbers.fill(&mut bytes);
            for (seen, byte) in touched.iter_mut().zip(bytes) {
                *seen |= byte != 0;
            }
        }
        assert!(touched.iter().all(|seen| *seen));
    }
}
