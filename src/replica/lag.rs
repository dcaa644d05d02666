//! How long ago the array was where another node is now.
//!
//! Now and then it is noted how far this node has come. When a node lacks operations, the newest note that it has
//! reached says since when it does. Notes are few: when there are too many, every other one is forgotten, so that long
//! lags are known less exactly than short ones.

use std::time::Duration;

use crate::units::Lsn;

/// Notes that are kept.
const NOTES_MAX: usize = 1024;

/// The notes, oldest first; numbers and times only grow.
#[derive(Debug, Default)]
pub struct Notes(Vec<(Lsn, Duration)>);

impl Notes {
    /// Notes that this node has come as far as `lsn` at `now`, by a monotonic clock.
    pub fn note(&mut self, lsn: Lsn, now: Duration) {
        match self.0.last_mut() {
            // It was there until now.
            Some(last) if last.0 == lsn => last.1 = now,
            // Another array, or an older state of this one.
            Some(last) if last.0 > lsn => self.0 = vec![(lsn, now)],
            _ => self.0.push((lsn, now)),
        }
        if self.0.len() > NOTES_MAX {
            let mut index = 0;
            self.0.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
    }

    /// For how long a node that has come as far as `applied` has been behind one that is at `lsn` at `now`; at least so
    /// long where it is behind by more than is remembered.
    #[must_use]
    pub fn behind(&self, applied: Lsn, lsn: Lsn, now: Duration) -> Duration {
        if applied >= lsn {
            return Duration::ZERO;
        }
        let reached = self.0.iter().rev().find(|(noted, _)| *noted <= applied).or(self.0.first());
        reached.map_or(Duration::ZERO, |(_, at)| now.saturating_sub(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_node_is_behind_since_this_one_was_where_it_is() {
        let mut notes = Notes::default();
        assert_eq!(notes.behind(Lsn(1), Lsn(5), at(9)), Duration::ZERO);
        for (lsn, time) in [(3, 10), (3, 20), (7, 30), (9, 40)] {
            notes.note(Lsn(lsn), at(time));
        }
        for (applied, milliseconds) in [(9, 0), (8, 20), (7, 20), (6, 30), (3, 30), (1, 30)] {
            assert_eq!(notes.behind(Lsn(applied), Lsn(9), at(50)), at(milliseconds), "{applied}");
        }
        notes.note(Lsn(2), at(60));
        assert_eq!(notes.behind(Lsn(2), Lsn(4), at(65)), at(5));
    }

    #[test]
    fn long_lags_are_known_less_exactly_and_cost_no_more() {
        let mut notes = Notes::default();
        for step in 1..=100_000u64 {
            notes.note(Lsn(step), at(step));
        }
        assert!(notes.0.len() <= NOTES_MAX);
        let lag = notes.behind(Lsn(10_000), Lsn(100_000), at(100_000)).as_millis();
        assert!((90_000..=100_000).contains(&lag), "{lag}");
        assert_eq!(notes.behind(Lsn(99_999), Lsn(100_000), at(100_000)), at(1));
    }
}
