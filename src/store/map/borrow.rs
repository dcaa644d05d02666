//! Leaves that borrow: what a copied leaf has not changed since, it names without a reference of its own.
//!
//! Copying a leaf would take one more reference to each of its 512 blocks, and where these lie scattered, that is as
//! many pages of counts. Instead the copy marks its entries as borrowed and takes over the reference to the leaf that
//! it was copied from, its *lender*, which nobody changes and which keeps the blocks alive. Overwriting a borrowed
//! entry lets go of nothing. A borrower is *settled* later, in the background: where others need the lender, too, it
//! takes references of its own; where it is the only one left, the lender's become its own and what it has overwritten
//! goes. The number of borrowers is bounded; beyond it, copies pay at once. But not in replay: what was settled since the
//! checkpoint is not settled there, so that more leaves may be copied and more borrow than did when the log was written,
//! and paying for each would take memory and a checkpoint of any size.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::error::{ErrorKind, Result};
use crate::format::bytes::{get_u64, set_u64};
use crate::format::page::{Mapping, NODE_ENTRIES, PAGE_BYTES, Table};
use crate::units::{BlockCount, MapNodeId};

use super::super::Store;
use super::super::core::{Core, Stall};
use super::super::merge::COUNT_PAGES_TOGETHER;
use super::super::run::Caller;
use super::node_page;

/// A leaf with fewer blocks takes references of its own at once.
pub(crate) const BORROWED_MIN: usize = 8;

/// Leaves that borrow, in the order in which they began to.
#[derive(Debug)]
pub(crate) struct Borrowers {
    by_order: BTreeMap<u64, (MapNodeId, MapNodeId)>,
    order_of: FxHashMap<u64, u64>,
    next: u64,
    /// While there are as many, no more begin.
    max: usize,
    /// Where settling goes on: those before it could not be read.
    settle_from: u64,
}

impl Borrowers {
    /// As a checkpoint had them; until `limit` is called, any number may begin.
    pub(crate) fn of(pairs: &[(MapNodeId, MapNodeId)]) -> Borrowers {
        let mut borrowers = Borrowers {
            by_order: BTreeMap::new(),
            order_of: FxHashMap::default(),
            next: 0,
            max: usize::MAX,
            settle_from: 0,
        };
        for (borrower, lender) in pairs {
            borrowers.add(*borrower, *lender);
        }
        borrowers
    }

    /// The log has been replayed: from now on there are at most so many.
    pub(crate) fn limit(&mut self, max: usize) {
        self.max = max;
    }

    /// Adds a borrower that has taken over a reference to its lender.
    pub(crate) fn add(&mut self, borrower: MapNodeId, lender: MapNodeId) {
        if self.holds(borrower) {
            // A root that says so is damaged: it must not make settling go round and round.
            return;
        }
        self.by_order.insert(self.next, (borrower, lender));
        self.order_of.insert(borrower.0, self.next);
        self.next += 1;
    }

    /// Whether a leaf borrows.
    pub(crate) fn holds(&self, borrower: MapNodeId) -> bool {
        self.order_of.contains_key(&borrower.0)
    }

    /// Who lends to a leaf.
    pub(crate) fn lender(&self, borrower: MapNodeId) -> Option<MapNodeId> {
        self.by_order.get(self.order_of.get(&borrower.0)?).map(|(_, lender)| *lender)
    }

    /// The leaf borrows no more; the lender, to which it still has its reference.
    pub(crate) fn remove(&mut self, borrower: MapNodeId) -> Option<MapNodeId> {
        let order = self.order_of.remove(&borrower.0)?;
        self.by_order.remove(&order).map(|(_, lender)| lender)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_order.len()
    }

    /// All borrowers with their lenders.
    pub(crate) fn all(&self) -> Vec<(MapNodeId, MapNodeId)> {
        self.by_order.values().copied().collect()
    }

    /// The number that the next one gets: all before it have begun earlier.
    pub(crate) fn next_order(&self) -> u64 {
        self.next
    }

    /// Whether one that can be settled has begun before.
    pub(crate) fn begun_before(&self, order: u64) -> bool {
        self.to_settle().is_some_and(|(of_next, ..)| of_next < order)
    }

    /// The one that is to be settled next.
    fn to_settle(&self) -> Option<(u64, MapNodeId, MapNodeId)> {
        let (order, (borrower, lender)) = self.by_order.range(self.settle_from..).next()?;
        Some((*order, *borrower, *lender))
    }
}

/// How far settling has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// No borrower is left that can be settled.
    All,
    /// Some are.
    Some,
    /// Some are, and there is no room for changes or dirty pages: the next checkpoint makes it.
    NoRoom,
}

impl Store {
    /// Settles at most `leaves_max` borrowers that have begun before `order`, the change buffer filling up to
    /// `changes_max`; the caller holds the maintenance role.
    pub(crate) fn settle(&self, leaves_max: usize, order: u64, changes_max: usize) -> Result<Settled> {
        for _ in 0..leaves_max {
            match self.run(Caller::Maintenance, |core| core.settle_one(order, changes_max)) {
                Ok(Settled::Some) => {}
                Ok(other) => return Ok(other),
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Device) => {
                    // Left to the repair: it borrows as long as that takes.
                    let mut core = self.core.lock();
                    core.borrowers.settle_from =
                        core.borrowers.to_settle().map_or(0, |(order, ..)| order + 1);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Settled::Some)
    }
}

impl Core {
    /// Whether one more copied leaf may borrow, beside some that are planned.
    pub(crate) fn may_borrow(&self, planned: usize) -> bool {
        self.borrowers.len().saturating_add(planned) < self.borrowers.max
    }

    fn settle_one(&mut self, before: u64, changes_max: usize) -> Result<Settled, Stall> {
        let next = self.borrowers.to_settle().filter(|(order, ..)| *order < before);
        let Some((_, borrower, lender)) = next else { return Ok(Settled::All) };
        let changes = self.block_changes.len() + self.node_changes.len() + NODE_ENTRIES + 1;
        let dirty = self.cache.dirty_pages() + 2 + COUNT_PAGES_TOGETHER;
        if changes > changes_max.min(self.geometry.changes) || dirty > self.geometry.dirty_limit {
            return Ok(Settled::NoRoom);
        }
        self.bring_in(node_page(borrower))?;
        let pages = self.bring_in_counts(&[lender])?;
        let stored = i64::from(self.stored_count(Table::NodeCounts, lender.0)?);
        let alone = stored + self.node_changes.pending(lender.0) == 1 || self.faults.take_over_early;
        // A lender began to borrow before those to which it lends: it still does only where it could not be settled.
        if alone && !self.borrowers.holds(lender) {
            self.bring_in(node_page(lender))?;
            self.take_over(borrower, lender);
        } else {
            self.take_references(borrower);
        }
        self.borrowers.remove(borrower);
        self.let_go_of_child(lender, &pages);
        Ok(Settled::Some)
    }

    /// Nobody but the borrower needs the lender: its references become the borrower's, or go.
    fn take_over(&mut self, borrower: MapNodeId, lender: MapNodeId) {
        let from = self.cache.page(node_page(lender)).page.clone();
        let mut page = self.cache.page(node_page(borrower)).page.clone();
        for slot in 0..NODE_ENTRIES {
            let (lent, held) = (get_u64(&*from, slot), get_u64(&*page, slot));
            if Mapping::is_borrowed(held) {
                set_u64(&mut *page, slot, Mapping::owned(held));
            } else if let Some(block) = Mapping::owned_block(lent) {
                self.block_changes.note(block.0, -1);
                self.counters.referenced_blocks -= 1;
            }
        }
        *self.cache.change(node_page(borrower)).page = *page;
        // Nothing is left in it to be let go of.
        let frame = self.cache.change(node_page(lender));
        *frame.page = [0; PAGE_BYTES];
        frame.facts.mapped = BlockCount(0);
    }

    /// The leaf, whose page is in memory, takes references of its own to what it has borrowed.
    pub(crate) fn take_references(&mut self, borrower: MapNodeId) {
        let mut page = self.cache.page(node_page(borrower)).page.clone();
        for slot in 0..NODE_ENTRIES {
            let entry = get_u64(&*page, slot);
            if let (true, Mapping::Block(block)) = (Mapping::is_borrowed(entry), Mapping::unpack(entry)) {
                self.block_changes.note(block.0, 1);
                self.counters.referenced_blocks += 1;
                set_u64(&mut *page, slot, Mapping::owned(entry));
            }
        }
        *self.cache.change(node_page(borrower)).page = *page;
    }
}
