//! What only a part of the histories has, beside what goes wrong in all of them.

use sinter::sync::seeded::{SeededNumbers, mix};

/// One kind of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Writes and syncs fail.
    Devices,
    /// Machines do not return, and the operator goes on without them.
    Operator,
    /// One node is far away, and never in the set.
    Far,
}

/// All of them.
const KINDS: [Kind; 3] = [Kind::Devices, Kind::Operator, Kind::Far];
/// One history in so many has one of them, for each.
const ONE_IN: u64 = 9;

/// What one history has of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wider {
    pub(super) devices_fail: bool,
    pub(super) machines_are_lost: bool,
    pub(super) one_is_far: bool,
}

impl Wider {
    /// What the history of a seed has: one kind, now and then several. Drawn apart from everything else, so that the others
    /// are what they would be without.
    pub(super) fn of(seed: u64, wanted: Option<Kind>) -> Wider {
        let mut numbers = SeededNumbers::new(mix(seed));
        let drawn = usize::try_from(numbers.below(ONE_IN)).unwrap();
        let several = numbers.chance(1, 4);
        let mut has = |kind: Kind| {
            let chosen = KINDS.get(drawn) == Some(&kind);
            let also = numbers.chance(1, 3) && several && drawn < KINDS.len();
            chosen || also || wanted == Some(kind)
        };
        Wider {
            devices_fail: has(Kind::Devices),
            machines_are_lost: has(Kind::Operator),
            one_is_far: has(Kind::Far),
        }
    }
}
