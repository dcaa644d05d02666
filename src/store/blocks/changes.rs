//! The change buffer: changes of reference counts that have not reached their pages.
//!
//! Commits, replay and background steps only append here, so that their order does not matter. A
//! checkpoint seals the buffer and merges the sealed one into the pages, in the order of ids.

use super::neighbours::IdMap;

/// The changes of one id, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// The sum.
    pub(crate) delta: i32,
    /// Whether a decrement is among them: then the sum with the count may be zero.
    pub(crate) decremented: bool,
}

/// Changes of one kind of id.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    active: IdMap<Change>,
    /// Sealed ones; those below `merged_below` have reached their pages, and are cleared away with the rest.
    sealed: IdMap<Change>,
    merged_below: u64,
    unmerged: usize,
    decremented: usize,
}

impl Changes {
    /// Notes a change.
    pub(crate) fn note(&mut self, id: u64, delta: i32) {
        let change = self.active.entry(id).or_default();
        change.delta += delta;
        self.decremented += usize::from(delta < 0 && !change.decremented);
        change.decremented |= delta < 0;
    }

    /// Ids that were let go of since the last seal: the next merge may free them.
    pub(crate) fn let_go_of(&self) -> usize {
        self.decremented
    }

    /// The sum of all changes of an id that its page does not know yet.
    pub(crate) fn pending(&self, id: u64) -> i64 {
        let delta = |change: Option<&Change>| change.map_or(0, |change| i64::from(change.delta));
        delta(self.active.get(&id)) + delta(self.sealed(id))
    }

    /// Whether there is any change of an id that its page does not know yet, be their sum zero.
    pub(crate) fn holds(&self, id: u64) -> bool {
        self.active.contains_key(&id) || self.sealed(id).is_some()
    }

    /// Whether the merge that goes on may find the count of this id to be zero.
    pub(crate) fn may_vanish(&self, id: u64) -> bool {
        self.sealed(id).is_some_and(|change| change.decremented)
    }

    /// Ids with changes, sealed or not.
    pub(crate) fn len(&self) -> usize {
        self.active.len() + self.unmerged
    }

    /// Ids with changes that are not sealed.
    pub(crate) fn active_len(&self) -> usize {
        self.active.len()
    }

    /// Whether a sealed change waits to be merged.
    pub(crate) fn has_sealed(&self) -> bool {
        self.unmerged > 0
    }

    /// Seals what is there; only when nothing sealed is left.
    pub(crate) fn seal(&mut self) {
        assert!(self.unmerged == 0, "the sealed buffer is merged before the next is sealed");
        std::mem::swap(&mut self.active, &mut self.sealed);
        self.unmerged = self.sealed.len();
        self.merged_below = 0;
        self.decremented = 0;
    }

    /// Sealed changes that wait to be merged, in no order: they are merged in the order of ids, and whoever does
    /// it sorts them outside of the lock.
    pub(crate) fn unmerged(&self) -> Vec<(u64, Change)> {
        self.sealed_changes().map(|(id, change)| (*id, *change)).collect()
    }

    fn sealed_changes(&self) -> impl Iterator<Item = (&u64, &Change)> {
        self.sealed.iter().filter(|(id, _)| **id >= self.merged_below)
    }

    /// A sealed change that waits to be merged.
    fn sealed(&self, id: u64) -> Option<&Change> {
        if id < self.merged_below || self.unmerged == 0 { None } else { self.sealed.get(&id) }
    }

    /// The sealed change of this id has reached its page, like those of all lower ids. A mark says so: taking
    /// each out of the map would cost a miss of the processor's caches.
    pub(crate) fn merged(&mut self, id: u64) {
        self.merged_below = id + 1;
        self.unmerged -= 1;
        if self.unmerged == 0 {
            self.sealed.clear();
        }
    }

    /// Forgets every change of an id, whose count has been made anew; what their sum was.
    pub(crate) fn forget(&mut self, id: u64) -> Option<i64> {
        let waits = self.sealed(id).is_some();
        let sealed = self.sealed.remove(&id).filter(|_| waits);
        self.unmerged -= usize::from(waits);
        let active = self.active.remove(&id);
        let sum = |change: Option<Change>| change.map_or(0, |change| i64::from(change.delta));
        (active.is_some() || sealed.is_some()).then(|| sum(active) + sum(sealed))
    }

    /// All changes, sealed and active, for the picture of a checkpoint: `summed` brings them into shape.
    pub(crate) fn all(&self) -> Vec<(u64, i32)> {
        self.sealed_changes().chain(&self.active).map(|(id, change)| (*id, change.delta)).collect()
    }

    /// Puts back what a checkpoint's picture held. Whether a decrement was among the sum is not known any more,
    /// so every one counts as such.
    pub(crate) fn restore(&mut self, id: u64, delta: i32) {
        let change = self.active.entry(id).or_default();
        change.delta += delta;
        change.decremented = true;
    }
}

/// Changes in the order of ids, each id once.
pub(crate) fn summed(mut all: Vec<(u64, i32)>) -> Vec<(u64, i32)> {
    all.sort_unstable_by_key(|(id, _)| *id);
    all.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 += next.1;
        }
        same
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_sums_sealed_and_active() {
        let mut changes = Changes::default();
        changes.note(7, 1);
        changes.note(7, -1);
        changes.note(9, 1);
        changes.seal();
        changes.note(7, 1);
        assert_eq!(changes.pending(7), 1);
        assert!(changes.may_vanish(7) && !changes.may_vanish(9));
        assert_eq!(summed(changes.all()), vec![(7, 1), (9, 1)]);
        changes.merged(7);
        assert!(!changes.may_vanish(7) && changes.has_sealed());
        assert_eq!((changes.pending(7), changes.len()), (1, 2));
        assert_eq!(summed(changes.all()), vec![(7, 1), (9, 1)]);
        assert_eq!(changes.forget(9), Some(1));
        assert!(!changes.has_sealed());
        changes.seal();
        assert_eq!(changes.unmerged(), vec![(7, Change { delta: 1, decremented: false })]);
    }
}
