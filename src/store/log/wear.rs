//! How worn the segments are, tallied as they are begun.

use std::collections::BTreeMap;

/// Erase counts may differ by this much, and by an eighth of their mean, before anything is done about it: below
/// that it is not worth an extent of the host, nor a move.
const DRIFT_MIN: u32 = 16;

/// Erase counts over all segments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Wear {
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) mean: f64,
    pub(crate) variance: f64,
}

/// How many segments have which erase count.
#[derive(Debug, Default)]
pub(crate) struct WearTally {
    segments: BTreeMap<u32, u32>,
    count: u64,
    sum: u64,
    sum_of_squares: u128,
}

impl WearTally {
    /// One more segment with this erase count.
    pub(crate) fn add(&mut self, erases: u32) {
        *self.segments.entry(erases).or_default() += 1;
        self.count += 1;
        self.sum += u64::from(erases);
        self.sum_of_squares += u128::from(erases) * u128::from(erases);
    }

    /// One segment less with this erase count.
    fn remove(&mut self, erases: u32) {
        if let Some(segments) = self.segments.get_mut(&erases) {
            *segments -= 1;
            if *segments == 0 {
                self.segments.remove(&erases);
            }
            self.count -= 1;
            self.sum -= u64::from(erases);
            self.sum_of_squares -= u128::from(erases) * u128::from(erases);
        }
    }

    /// A segment has another erase count now.
    pub(crate) fn change(&mut self, before: u32, after: u32) {
        if before != after {
            self.remove(before);
            self.add(after);
        }
    }

    /// Least, most, mean and spread.
    pub(crate) fn wear(&self) -> Wear {
        let count = self.count.max(1) as f64;
        let mean = self.sum as f64 / count;
        Wear {
            min: self.segments.first_key_value().map_or(0, |(erases, _)| *erases),
            max: self.segments.last_key_value().map_or(0, |(erases, _)| *erases),
            mean,
            variance: (self.sum_of_squares as f64 / count - mean * mean).max(0.0),
        }
    }

    /// By how much erase counts may differ.
    pub(crate) fn drift_allowed(&self) -> u32 {
        let mean = self.sum / self.count.max(1);
        DRIFT_MIN.saturating_add(u32::try_from(mean / 8).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tally_follows_each_count() {
        let mut tally = WearTally::default();
        assert_eq!(tally.wear(), Wear::default());
        for erases in [2, 4, 4, 4, 5, 5, 7, 8] {
            tally.add(erases);
        }
        tally.change(8, 9);
        assert_eq!(tally.wear(), Wear { min: 2, max: 9, mean: 5.0, variance: 4.0 });
        tally.change(9, 160);
        tally.change(2, 3);
        assert_eq!((tally.wear().min, tally.wear().max), (3, 160));
        assert_eq!(tally.drift_allowed(), 16 + 24 / 8);
    }
}
