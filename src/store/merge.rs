//! Merging sealed changes into the pages of counts, and taking apart what nothing refers to any more.

use crate::error::{Error, ErrorKind, Result};
use crate::format::bytes::get_u64;
use crate::format::page::{BlockEntry, Mapping, NODE_ENTRIES, PageKey, Table};
use crate::units::{BlockId, MapNodeId};

use super::Store;
use super::blocks::changes::Change;
use super::blocks::ids::Space;
use super::blocks::table::{COUNT_CROWDED, COUNT_STUCK, count_page};
use super::core::{Core, Stall};
use super::map::borrow::Settled;
use super::map::node_page;
use super::run::Caller;

/// Changes merged in one hold of the lock.
const MERGE_STEP: usize = 32;
/// Nodes that may wait to be taken apart before requests that let go of more take part in it.
const WAITING_MAX: usize = 4096;
/// Nodes that such a request takes apart: as many as one operation lets go of.
const RELEASES_PER_REQUEST: usize = 64;
/// Pages of counts brought in to take one node apart.
pub(crate) const COUNT_PAGES_TOGETHER: usize = 8;

impl Store {
    /// Seals the change buffer, unless an earlier one is not merged yet, and merges it as far as dirty pages
    /// allow; what is left stays sealed, is part of the picture, and is merged next time.
    pub(crate) fn merge_changes(&self) -> Result<()> {
        {
            let mut core = self.core.lock();
            if !core.block_changes.has_sealed() && !core.node_changes.has_sealed() {
                core.block_changes.seal();
                core.node_changes.seal();
            }
        }
        for space in [Space::Nodes, Space::Blocks] {
            let mut changes = {
                let core = self.core.lock();
                match space {
                    Space::Blocks => core.block_changes.unmerged(),
                    Space::Nodes => core.node_changes.unmerged(),
                }
            };
            changes.sort_unstable_by_key(|(id, _)| *id);
            let mut position = 0;
            while position < changes.len() {
                let end = (position + MERGE_STEP).min(changes.len());
                let merged = self.run(Caller::Maintenance, |core| {
                    if space == Space::Blocks {
                        let entries = changes[position..end].iter().filter(|(_, change)| change.decremented);
                        let entries: Vec<BlockEntry> =
                            entries.filter_map(|(id, _)| core.block_entry_in_memory(BlockId(*id))).collect();
                        self.index.warm(entries.iter().map(|entry| &entry.fingerprint));
                    }
                    while position < end {
                        if core.cache.dirty_pages() >= core.geometry.dirty_limit {
                            return Ok(false);
                        }
                        let (id, change) = changes[position];
                        self.merge_one(core, space, id, change)?;
                        position += 1;
                    }
                    Ok(true)
                });
                match merged {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    // What would be freed cannot be read: it stays referenced until a repair.
                    Err(error) if may_be_forgotten(&error, changes[position].1) => {
                        let mut core = self.core.lock();
                        match space {
                            Space::Blocks => core.block_changes.merged(changes[position].0),
                            Space::Nodes => core.node_changes.merged(changes[position].0),
                        }
                        position += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Brings one sealed change into its page.
    fn merge_one(&self, core: &mut Core, space: Space, id: u64, change: Change) -> Result<(), Stall> {
        let table = match space {
            Space::Blocks => Table::BlockCounts,
            Space::Nodes => Table::NodeCounts,
        };
        let before = core.stored_count(table, id)?;
        let mut sum = i64::from(before) + i64::from(change.delta);
        if core.faults.wrap_counts {
            sum &= 0x7;
        }
        let vanishes = sum == 0 || (core.faults.decrement_first && change.decremented && before == 1);
        if before != COUNT_STUCK {
            if space == Space::Blocks && (vanishes || sum >= i64::from(COUNT_CROWDED)) {
                let block = BlockId(id);
                let entry = core.block_entry(block)?;
                core.prepare_id_bit(Space::Blocks, id)?;
                self.index.forget(&entry.fingerprint, block);
                if vanishes {
                    core.set_block_entry(block, BlockEntry::default());
                    core.bad_blocks.remove(&id);
                    core.free_id(Space::Blocks, id);
                } else if !entry.crowded {
                    core.set_block_entry(block, BlockEntry { crowded: true, ..entry });
                }
            } else if vanishes {
                core.release_queue.push_back(MapNodeId(id));
            }
            // A sum below zero would mean that a reference was let go of twice: nothing may be freed then.
            core.set_stored_count(table, id, u32::try_from(sum).unwrap_or(COUNT_STUCK));
        }
        match space {
            Space::Blocks => core.block_changes.merged(id),
            Space::Nodes => core.node_changes.merged(id),
        }
        Ok(())
    }

    /// Takes apart at most `nodes_max` nodes that nothing refers to: one reference less on each of their children.
    pub(crate) fn release_nodes(&self, nodes_max: usize) -> Result<Releases> {
        for _ in 0..nodes_max {
            let released = self.run(Caller::Maintenance, Core::release_one);
            match released {
                Ok(Releases::Waiting) => {}
                Ok(other) => return Ok(other),
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Device) => {
                    // Left to the repair: what it refers to stays referenced.
                    self.core.lock().release_queue.pop_back();
                }
                Err(error) => return Err(error),
            }
        }
        let none = self.core.lock().release_queue.is_empty();
        Ok(if none { Releases::None } else { Releases::Waiting })
    }

    /// Takes a few nodes apart for a request that may let go of more, where too many wait already: so what is let
    /// go of never grows faster than it is taken apart.
    pub(crate) fn release_before_adding(&self) -> Result<()> {
        if self.core.lock().release_queue.len() <= WAITING_MAX || !self.begin_maintenance_or_wait()? {
            return Ok(());
        }
        let outcome = match self.release_nodes(RELEASES_PER_REQUEST) {
            Ok(Releases::NoRoom) => self.checkpoint_in_role(),
            other => other.map(|_| ()),
        };
        self.end_maintenance();
        outcome
    }

    /// Works off pending changes, the release queue and what is borrowed from leaves that nobody else needs, for a
    /// write that does not fit; whether that made room.
    pub(crate) fn work_off_releases(&self) -> Result<bool> {
        let before = self.core.lock().accounted_bytes();
        loop {
            self.checkpoint_in_role()?;
            let waiting = self.release_nodes(4096)? != Releases::None;
            let waiting = self.settle(4096, u64::MAX, usize::MAX)? != Settled::All || waiting;
            let core = self.core.lock();
            let pending = core.node_changes.len() > 0 || core.block_changes.len() > 0 || waiting;
            if core.accounted_bytes() < before || !pending {
                return Ok(core.accounted_bytes() < before);
            }
        }
    }
}

/// What is left to be taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Releases {
    /// Nothing.
    None,
    /// Some nodes.
    Waiting,
    /// Some nodes, and there is no room for changes or dirty pages: the next checkpoint makes it.
    NoRoom,
}

/// Whether a sealed change that `error` keeps from its page may be left out. A decrement may: what it would have
/// freed stays. So may what comes to nothing, which is there because the block may be free now. An increment may only where the page is gone for good: on a page that can be read again it would
/// be missing, and something would be freed too early.
fn may_be_forgotten(error: &Error, change: Change) -> bool {
    match error.kind() {
        ErrorKind::Corrupt => true,
        ErrorKind::Device => change.delta <= 0,
        _ => false,
    }
}

impl Core {
    /// Takes the node apart that was queued last, so that the queue never holds more than a few levels of each tree.
    fn release_one(&mut self) -> Result<Releases, Stall> {
        let Some(node) = self.release_queue.back().copied() else { return Ok(Releases::None) };
        let changes = self.block_changes.len() + self.node_changes.len();
        if changes + NODE_ENTRIES > self.geometry.changes
            || self.cache.dirty_pages() + 2 + COUNT_PAGES_TOGETHER > self.geometry.dirty_limit
        {
            return Ok(Releases::NoRoom);
        }
        let key = node_page(node);
        self.bring_in(key)?;
        self.prepare_id_bit(Space::Nodes, node.0)?;
        let frame = self.cache.page(key);
        let (page, level) = (frame.page.clone(), frame.facts.node_level);
        if level > 0 {
            let children = (0..NODE_ENTRIES).map(|slot| MapNodeId(get_u64(&*page, slot)));
            let children: Vec<MapNodeId> = children.filter(|child| child.0 != 0).collect();
            let pages = self.bring_in_counts(&children)?;
            self.release_queue.pop_back();
            for child in children {
                self.let_go_of_child(child, &pages);
            }
        } else {
            let lender = self.borrowers.lender(node);
            let pages = self.bring_in_counts(lender.as_slice())?;
            self.release_queue.pop_back();
            for slot in 0..NODE_ENTRIES {
                if let Some(block) = Mapping::owned_block(get_u64(&*page, slot)) {
                    self.block_changes.note(block.0, -1);
                    self.counters.referenced_blocks -= 1;
                }
            }
            if let Some(lender) = self.borrowers.remove(node) {
                self.let_go_of_child(lender, &pages);
            }
        }
        self.free_id(Space::Nodes, node.0);
        self.cache.drop_page(key);
        self.dropped.push(key);
        self.released_nodes += 1;
        Ok(Releases::Waiting)
    }

    /// Brings in some of the pages with the counts of nodes; which.
    pub(crate) fn bring_in_counts(&mut self, nodes: &[MapNodeId]) -> Result<Vec<PageKey>, Stall> {
        let mut pages: Vec<PageKey> = Vec::with_capacity(COUNT_PAGES_TOGETHER);
        for node in nodes {
            let key = count_page(Table::NodeCounts, node.0);
            if !pages.contains(&key) && pages.len() < COUNT_PAGES_TOGETHER {
                self.bring_in(key)?;
                pages.push(key);
            }
        }
        Ok(pages)
    }

    /// One reference less to a child of a node that is taken apart. Where that was the last one, and the page of its
    /// count is at hand, the child is queued at once: nobody can find a node again that nothing refers to. Else the
    /// next merge finds out.
    pub(crate) fn let_go_of_child(&mut self, child: MapNodeId, pages: &[PageKey]) {
        let last = pages.contains(&count_page(Table::NodeCounts, child.0))
            && !self.node_changes.holds(child.0)
            && matches!(self.stored_count(Table::NodeCounts, child.0), Ok(1));
        if last {
            self.set_stored_count(Table::NodeCounts, child.0, 0);
            self.release_queue.push_back(child);
        } else {
            self.node_changes.note(child.0, -1);
        }
    }
}
