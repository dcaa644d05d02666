//! Repair of the maps: every tree is walked from its root, each node once; what cannot be read is replaced by what
//! says that it is lost; then the counts and the freed ids of nodes are made what was found.

use rustc_hash::FxHashSet;

use crate::error::{ErrorKind, Result};
use crate::format::bytes::{get_u64, set_u64};
use crate::format::page::{COUNTS_PER_PAGE, Mapping, NODE_ENTRIES, PAGE_BYTES, PageFacts, Table};
use crate::units::{BlockCount, MapNodeId, ObjectNumber};

use super::super::super::blocks::ids::Space;
use super::super::super::blocks::table::COUNT_STUCK;
use super::super::super::map::{LEVEL_MAX, node_page, span};
use super::super::super::run::Caller;
use super::super::verify::NodeFacts;
use super::Repair;

/// Which blocks of an object a node covers.
#[derive(Clone, Copy)]
struct Cover {
    level: u8,
    /// The first block.
    start: u64,
    /// Blocks of the object.
    size: u64,
}

impl Cover {
    fn child(self, slot: usize) -> Cover {
        let level = self.level - 1;
        Cover { level, start: self.start + slot as u64 * span(level), ..self }
    }

    /// Blocks of the object that lie below.
    fn blocks(self) -> u64 {
        self.size.saturating_sub(self.start).min(span(self.level))
    }
}

/// Whether a lender's entry is what an entry of its borrower says, if that is borrowed.
fn is_lent(held: u64, lent: u64) -> bool {
    !Mapping::is_borrowed(held) || Mapping::unpack(held) == Mapping::unpack(lent)
}

impl Repair<'_> {
    /// Mends all maps, and the counts and freed ids of nodes.
    pub(super) fn nodes(&mut self) -> Result<()> {
        let nodes = self.store.core.lock().node_ids.high_water;
        self.node_references = vec![0; usize::try_from(nodes).expect("bounded by memory")];
        self.lost_nodes = [None; LEVEL_MAX as usize + 1];
        let objects: Vec<_> = {
            let core = self.store.core.lock();
            core.objects
                .iter()
                .map(|slot| (slot.number, slot.root, slot.mapped.0, slot.root_level, slot.size.0))
                .collect()
        };
        for (number, root, mapped, level, size) in objects {
            self.object(number, root, mapped, Cover { level, start: 0, size })?;
        }
        self.borrowers()?;
        // Those that nothing reaches first: while one of them still waits to be taken apart, it holds on to
        // what is below it, and a count that has forgotten it would be too low.
        self.release_unreachable()?;
        self.count_reachable()?;
        self.recount_freed(Space::Nodes)
    }

    fn object(&mut self, number: ObjectNumber, root: MapNodeId, mapped: u64, cover: Cover) -> Result<()> {
        let (new_root, found) = match (root.0, self.visit(root, cover)?) {
            (0, _) => (root, 0),
            (_, Some(found)) => (root, found),
            (_, None) => {
                self.note(format!("the map of object {number} could not be read: all its blocks are lost"));
                self.lost_subtree(cover)?
            }
        };
        if (new_root, found) != (root, mapped) {
            if new_root == root {
                self.note(format!("object {number} counted {mapped} mapped blocks and has {found}"));
            }
            let mut core = self.store.core.lock();
            if let Some(object) = core.objects.change(number) {
                object.root = new_root;
                object.mapped = BlockCount(found);
            }
        }
        Ok(())
    }

    /// One more reference to a node; mends what is below it the first time. Mapped blocks below it, or `None` for a
    /// node that is not what should be there: then it has no reference more.
    fn visit(&mut self, node: MapNodeId, cover: Cover) -> Result<Option<u64>> {
        let index = usize::try_from(node.0).unwrap_or(usize::MAX);
        if node.0 == 0 || index >= self.node_references.len() {
            return Ok(None);
        }
        let Some((page, level, mapped)) = self.read_node(node)? else { return Ok(None) };
        if level != cover.level {
            return Ok(None);
        }
        let references = &mut self.node_references[index];
        *references = references.saturating_add(1);
        if *references > 1 {
            return Ok(Some(mapped));
        }
        let mut found = 0;
        let mut replaced: Vec<(usize, u64)> = Vec::new();
        for slot in 0..NODE_ENTRIES {
            let entry = get_u64(&*page, slot);
            if level == 0 {
                found += u64::from(Mapping::unpack(entry) != Mapping::Hole);
            } else if entry != 0 {
                let below = cover.child(slot);
                found += match self.visit(MapNodeId(entry), below)? {
                    Some(found) => found,
                    None => {
                        self.note(format!(
                            "map node {entry} could not be read: {} blocks from {} on are lost",
                            below.blocks(),
                            below.start
                        ));
                        let (lost, blocks) = self.lost_subtree(below)?;
                        replaced.push((slot, lost.0));
                        blocks
                    }
                };
            }
        }
        if level == 0 && !self.store.core.lock().borrowers.holds(node) {
            self.end_borrowing(node, &page)?;
        }
        if found != mapped || !replaced.is_empty() {
            if replaced.is_empty() {
                self.note(format!("map node {node} counted {mapped} mapped blocks and has {found}"));
            }
            self.rewrite_node(node, found, &replaced)?;
        }
        Ok(Some(found))
    }

    /// A node's page, level and number of mapped blocks; `None` where it is not there or cannot be read.
    pub(super) fn read_node(&self, node: MapNodeId) -> Result<Option<NodeFacts>> {
        let key = node_page(node);
        let read = self.store.run(Caller::Maintenance, |core| {
            // To everybody else a page that was never stored appears as zeros.
            if !core.cache.is_dirty(key) && core.pointer(key)?.is_none() {
                return Ok(None);
            }
            core.bring_in(key)?;
            let frame = core.cache.page(key);
            Ok(Some((frame.page.clone(), frame.facts.node_level, frame.facts.mapped.0)))
        });
        match read {
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
            other => other,
        }
    }

    /// Sets entries of a node, and its number of mapped blocks.
    pub(super) fn rewrite_node(&self, node: MapNodeId, mapped: u64, entries: &[(usize, u64)]) -> Result<()> {
        let key = node_page(node);
        self.store.run(Caller::Maintenance, |core| {
            core.bring_in(key)?;
            let frame = core.cache.change(key);
            for (slot, entry) in entries {
                set_u64(&mut *frame.page, *slot, *entry);
            }
            frame.facts.mapped = BlockCount(mapped);
            Ok(())
        })?;
        self.checkpoint_if_full()
    }

    /// A node, and whatever it takes below it, that says of every block that it is lost; and how many that are.
    /// Nodes whose blocks all belong to the object are shared within it.
    fn lost_subtree(&mut self, cover: Cover) -> Result<(MapNodeId, u64)> {
        // Nodes that two trees share say that these are the same below, and of what is lost nobody knows that.
        self.lost_nodes = [None; LEVEL_MAX as usize + 1];
        self.lost_below(cover)
    }

    fn lost_below(&mut self, cover: Cover) -> Result<(MapNodeId, u64)> {
        let blocks = cover.blocks();
        if blocks == 0 {
            return Ok((MapNodeId(0), 0));
        }
        let whole = blocks == span(cover.level);
        if let Some(node) = self.lost_nodes[usize::from(cover.level)].filter(|_| whole) {
            self.node_references[usize::try_from(node.0).expect("bounded by memory")] += 1;
            return Ok((node, blocks));
        }
        let mut page = Box::new([0u8; PAGE_BYTES]);
        for slot in 0..NODE_ENTRIES {
            if cover.level == 0 {
                if (slot as u64) < blocks {
                    set_u64(&mut *page, slot, Mapping::Lost.pack());
                }
            } else {
                let (child, _) = self.lost_below(cover.child(slot))?;
                set_u64(&mut *page, slot, child.0);
            }
        }
        let node = self.new_node(page, cover.level, blocks)?;
        if whole {
            self.lost_nodes[usize::from(cover.level)] = Some(node);
        }
        Ok((node, blocks))
    }

    /// Adds a node with one reference. Its id is one that was never given out: what is marked as free may not be.
    /// Until it is counted it counts as full: a repair that is broken off must not leave it to be changed in place
    /// by one of those who share it.
    fn new_node(&mut self, page: Box<[u8; PAGE_BYTES]>, level: u8, mapped: u64) -> Result<MapNodeId> {
        let node = self.store.run(Caller::Maintenance, |core| {
            let node = MapNodeId(core.node_ids.high_water);
            let key = node_page(node);
            core.bring_in(key)?;
            core.stored_count(Table::NodeCounts, node.0)?;
            core.node_ids.high_water += 1;
            core.set_stored_count(Table::NodeCounts, node.0, COUNT_STUCK);
            let frame = core.cache.change(key);
            frame.page.copy_from_slice(&*page);
            let version = frame.facts.version;
            frame.facts = PageFacts { version, node_level: level, mapped: BlockCount(mapped) };
            Ok(node)
        })?;
        self.node_references.push(1);
        self.checkpoint_if_full()?;
        Ok(node)
    }

    /// Lenders are reached by those that borrow from them. A leaf whose lender cannot be read, or does not hold what
    /// was lent, takes references of its own: they are pending until the blocks are counted, and so never too few.
    fn borrowers(&mut self) -> Result<()> {
        let pairs = self.store.core.lock().borrowers.all();
        // The newest first: a lender may borrow itself, and be reached by nobody else.
        for (borrower, lender) in pairs.into_iter().rev() {
            let index = usize::try_from(borrower.0).unwrap_or(usize::MAX);
            let reached = self.node_references.get(index).is_some_and(|references| *references > 0);
            let held = if reached { self.read_node(borrower)? } else { None };
            let lends = match (&held, self.read_node(lender)?) {
                (Some((held, 0, _)), Some((lent, 0, _))) => {
                    (0..NODE_ENTRIES).all(|slot| is_lent(get_u64(&**held, slot), get_u64(&*lent, slot)))
                }
                _ => false,
            };
            let as_leaf = Cover { level: 0, start: 0, size: span(0) };
            if lends && self.visit(lender, as_leaf)?.is_some() {
                continue;
            }
            self.store.core.lock().borrowers.remove(borrower);
            if let Some((held, ..)) = held {
                self.end_borrowing(borrower, &held)?;
            }
        }
        Ok(())
    }

    /// A leaf that borrows from nobody takes references of its own.
    fn end_borrowing(&mut self, leaf: MapNodeId, page: &[u8; PAGE_BYTES]) -> Result<()> {
        if (0..NODE_ENTRIES).any(|slot| Mapping::is_borrowed(get_u64(page, slot))) {
            self.note(format!("map node {leaf} borrowed from one that could not be read"));
            self.store.run(Caller::Maintenance, |core| {
                core.bring_in(node_page(leaf))?;
                core.take_references(leaf);
                Ok(())
            })?;
            self.checkpoint_if_full()?;
        }
        Ok(())
    }

    fn release_unreachable(&mut self) -> Result<()> {
        let waiting: FxHashSet<u64> =
            self.store.core.lock().release_queue.drain(..).map(|node| node.0).collect();
        for id in 1..self.node_references.len() {
            if self.node_references[id] > 0 {
                continue;
            }
            let id = id as u64;
            let key = node_page(MapNodeId(id));
            let leaked = self.store.run(Caller::Maintenance, |core| {
                core.prepare_id_bit(Space::Nodes, id)?;
                let stored = core.stored_count(Table::NodeCounts, id)?;
                let pointer = core.pointer(key)?;
                let pending = core.node_changes.forget(id);
                let counted = i64::from(stored) + pending.unwrap_or(0);
                let was_free = core.id_is_free(Space::Nodes, id);
                if stored != 0 {
                    core.set_stored_count(Table::NodeCounts, id, 0);
                }
                core.correct_id(Space::Nodes, id, true);
                core.cache.drop_page(key);
                if !pointer.is_none() {
                    core.dropped.push(key);
                }
                let expected = pending.is_some() || waiting.contains(&id);
                let counted = if stored == COUNT_STUCK && was_free { 0 } else { counted };
                Ok(counted != 0 || !(was_free || expected))
            })?;
            if leaked {
                self.note(format!("map node {id} was reached by nothing and is free now"));
            }
            self.checkpoint_if_full()?;
        }
        Ok(())
    }

    fn count_reachable(&mut self) -> Result<()> {
        for id in 1..self.node_references.len() {
            let found = self.node_references[id];
            if found == 0 {
                continue;
            }
            let id = id as u64;
            let (counted, was_free) = self.store.run(Caller::Maintenance, |core| {
                core.prepare_id_bit(Space::Nodes, id)?;
                let stored = core.stored_count(Table::NodeCounts, id)?;
                let pending = core.node_changes.forget(id).unwrap_or(0);
                let was_free = core.id_is_free(Space::Nodes, id);
                if stored != found {
                    core.set_stored_count(Table::NodeCounts, id, found);
                }
                core.correct_id(Space::Nodes, id, false);
                Ok((if stored == COUNT_STUCK { found.into() } else { i64::from(stored) + pending }, was_free))
            })?;
            if counted != i64::from(found) {
                self.note(format!("map node {id} counted {counted} references and has {found}"));
            }
            if was_free {
                self.note(format!("map node {id} was marked free and has {found} references"));
            }
            self.checkpoint_if_full()?;
        }
        Ok(())
    }

    /// Counts the freed ids on each page of them, and all; ids that were never given out have no references.
    pub(super) fn recount_freed(&mut self, space: Space) -> Result<()> {
        self.store.run(Caller::Maintenance, |core| {
            let (table, high_water) = match space {
                Space::Blocks => (Table::BlockCounts, core.block_ids.high_water),
                Space::Nodes => (Table::NodeCounts, core.node_ids.high_water),
            };
            for id in high_water..high_water.next_multiple_of(COUNTS_PER_PAGE) {
                if core.stored_count(table, id)? != 0 {
                    core.set_stored_count(table, id, 0);
                }
            }
            Ok(())
        })?;
        let pages = self.store.core.lock().freed_pages(space);
        let mut freed = 0;
        for number in 0..pages {
            freed += self.store.run(Caller::Maintenance, |core| core.recount_freed_page(space, number))?;
            self.checkpoint_if_full()?;
        }
        self.store.core.lock().set_freed(space, freed);
        Ok(())
    }
}
