//! Which full segments there are to collect, kept in order as their live bytes change: a choice looks at the oldest
//! of each fullness and never at the whole table.

use std::collections::BTreeSet;

use crate::units::SegmentId;

/// Degrees of fullness that are told apart. Between two segments of one degree the older one is the better victim.
pub(crate) const DEGREES: u32 = 64;
/// A segment of this degree or above is so full of live bytes that emptying it gains next to nothing.
const DEGREE_FULL: usize = 62;

/// Where a segment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Free, open, or left alone.
    Out,
    /// Full, and nothing refers to it.
    Empty,
    /// Full, with so much that is live, and begun at such a place in the order of segments.
    Live { degree: u32, sequence: u64 },
}

/// All full segments, in order.
#[derive(Debug)]
pub(crate) struct Victims {
    by_degree: Vec<BTreeSet<(u64, u32)>>,
    empty: BTreeSet<u32>,
}

impl Victims {
    /// None yet.
    pub(crate) fn new() -> Victims {
        Victims { by_degree: vec![BTreeSet::new(); DEGREES as usize + 1], empty: BTreeSet::new() }
    }

    /// A segment stands elsewhere now.
    pub(crate) fn moved(&mut self, segment: SegmentId, before: Standing, after: Standing) {
        if before == after {
            return;
        }
        match before {
            Standing::Out => {}
            Standing::Empty => {
                self.empty.remove(&segment.0);
            }
            Standing::Live { degree, sequence } => {
                self.by_degree[degree as usize].remove(&(sequence, segment.0));
            }
        }
        match after {
            Standing::Out => {}
            Standing::Empty => {
                self.empty.insert(segment.0);
            }
            Standing::Live { degree, sequence } => {
                self.by_degree[degree as usize].insert((sequence, segment.0));
            }
        }
    }

    /// Segments that nothing refers to.
    pub(crate) fn empty(&self) -> impl ExactSizeIterator<Item = SegmentId> {
        self.empty.iter().copied().map(SegmentId)
    }

    /// Of each degree below that of full ones, the oldest segment that `usable` lets pass, with its place in the
    /// order of segments.
    pub(crate) fn oldest(
        &self,
        usable: impl Fn(SegmentId) -> bool,
    ) -> impl Iterator<Item = (SegmentId, u64)> {
        self.by_degree[..DEGREE_FULL].iter().filter_map(move |segments| {
            let mut inside = segments.iter().map(|(sequence, segment)| (SegmentId(*segment), *sequence));
            inside.find(|(segment, _)| usable(*segment))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_degree_the_oldest_comes_first() {
        let mut victims = Victims::new();
        let live = |degree, sequence| Standing::Live { degree, sequence };
        for (segment, degree, sequence) in [(1, 5, 30), (2, 5, 20), (3, 9, 40), (4, 63, 1), (5, 64, 2)] {
            victims.moved(SegmentId(segment), Standing::Out, live(degree, sequence));
        }
        let oldest: Vec<_> = victims.oldest(|_| true).collect();
        assert_eq!(oldest, vec![(SegmentId(2), 20), (SegmentId(3), 40)], "nearly full ones are no victims");
        assert_eq!(victims.oldest(|segment| segment.0 != 2).next(), Some((SegmentId(1), 30)));
        victims.moved(SegmentId(2), live(5, 20), Standing::Empty);
        assert_eq!(victims.empty().collect::<Vec<_>>(), vec![SegmentId(2)]);
        victims.moved(SegmentId(2), Standing::Empty, Standing::Out);
        assert_eq!((victims.empty().len(), victims.oldest(|_| true).count()), (0, 2));
    }
}
