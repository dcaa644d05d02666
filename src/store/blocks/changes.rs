//! The change buffer: changes of reference counts that have not reached their pages.
//!
//! Commits, replay and background steps only append here, so that their order does not matter. A
//! checkpoint seals the buffer and merges the sealed one into the pages, in the order of ids.

use rustc_hash::FxHashMap;

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
    active: FxHashMap<u64, Change>,
    sealed: FxHashMap<u64, Change>,
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
        let delta = |map: &FxHashMap<u64, Change>| map.get(&id).map_or(0, |change| i64::from(change.delta));
        delta(&self.active) + delta(&self.sealed)
    }

    /// Whether the merge that goes on may find the count of this id to be zero.
    pub(crate) fn may_vanish(&self, id: u64) -> bool {
        self.sealed.get(&id).is_some_and(|change| change.decremented)
    }

    /// Ids with changes, sealed or not.
    pub(crate) fn len(&self) -> usize {
        self.active.len() + self.sealed.len()
    }

    /// Ids with changes that are not sealed.
    pub(crate) fn active_len(&self) -> usize {
        self.active.len()
    }

    /// Whether a sealed change waits to be merged.
    pub(crate) fn has_sealed(&self) -> bool {
        !self.sealed.is_empty()
    }

    /// Seals what is there; only when nothing sealed is left.
    pub(crate) fn seal(&mut self) {
        assert!(self.sealed.is_empty(), "the sealed buffer is merged before the next is sealed");
        std::mem::swap(&mut self.active, &mut self.sealed);
        self.decremented = 0;
    }

    /// The sealed ids, in no order: whoever wants one sorts them outside of the lock.
    pub(crate) fn sealed_ids(&self) -> Vec<u64> {
        self.sealed.keys().copied().collect()
    }

    /// A sealed change.
    pub(crate) fn sealed(&self, id: u64) -> Option<Change> {
        self.sealed.get(&id).copied()
    }

    /// Forgets a sealed change that has reached its page.
    pub(crate) fn merged(&mut self, id: u64) {
        self.sealed.remove(&id);
        if self.sealed.is_empty() && self.sealed.capacity() > 1 << 16 {
            self.sealed.shrink_to(1 << 16);
        }
    }

    /// Forgets every change of an id, whose count has been made anew; what their sum was.
    pub(crate) fn forget(&mut self, id: u64) -> Option<i64> {
        let (active, sealed) = (self.active.remove(&id), self.sealed.remove(&id));
        let sum = |change: Option<Change>| change.map_or(0, |change| i64::from(change.delta));
        (active.is_some() || sealed.is_some()).then(|| sum(active) + sum(sealed))
    }

    /// All changes, sealed and active, for the picture of a checkpoint: `summed` brings them into shape.
    pub(crate) fn all(&self) -> Vec<(u64, i32)> {
        self.sealed.iter().chain(&self.active).map(|(id, change)| (*id, change.delta)).collect()
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
    }
}
