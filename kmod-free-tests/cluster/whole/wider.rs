//! What only a part of the histories has, beside what goes wrong in all of them.

use sinter::sync::seeded::{SeededNumbers, mix};

/// One kind of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Writes and syncs fail.
    Devices,
    /// Machines do not return, and the operator goes on without them.
    Operator,
    /// Pools are of several sizes, and some too small.
    Room,
    /// One node is far away, and never in the set.
    Far,
}

/// All of them.
const KINDS: [Kind; 4] = [Kind::Devices, Kind::Operator, Kind::Far, Kind::Room];
/// One history in so many has one of them, for each; of small pools half of that.
const ONE_IN: u64 = 9;

/// What one history has of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wider {
    pub(super) devices_fail: bool,
    pub(super) machines_are_lost: bool,
    pub(super) one_is_far: bool,
    pub(super) room_is_short: bool,
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
        let [devices_fail, machines_are_lost, one_is_far, room] = KINDS.map(&mut has);
        // Those take three times as long as others.
        let room_is_short = room && (numbers.chance(1, 2) || wanted == Some(Kind::Room));
        Wider { devices_fail, machines_are_lost, one_is_far, room_is_short }
    }
}
