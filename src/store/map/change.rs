//! Setting mappings: copying shared nodes, adding missing ones, taking empty ones away.

use crate::format::bytes::{get_u64, set_u64};
use crate::format::page::{Mapping, NODE_ENTRIES, PAGE_BYTES, PageFacts, Table};
use crate::units::{BlockCount, BlockId, Lba, MapNodeId, ObjectNumber};

use super::super::blocks::ids::Space;
use super::super::core::{Core, Stall};
use super::borrow::BORROWED_MIN;
use super::{LEVEL_MAX, ObjectRoot, node_page, slot, span};

/// What a change of a map may need at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Node ids.
    pub(crate) nodes: usize,
    /// Entries of the change buffer.
    pub(crate) changes: usize,
    /// Pages that become dirty.
    pub(crate) pages: usize,
    /// Slots of new objects.
    pub(crate) objects: usize,
    /// Leaves that begin to borrow.
    pub(crate) borrows: usize,
    /// Whether a shared node is copied, so that others get one more parent while the operation goes on.
    pub(crate) copies: bool,
}

impl Needs {
    /// What raising a root to any level may need.
    pub(crate) fn of_raised_root() -> Needs {
        let nodes = usize::from(LEVEL_MAX);
        Needs { nodes, changes: nodes, pages: nodes, ..Needs::default() }
    }
}

/// The nodes from the root down to one of a level, all of them exclusively the object's.
#[derive(Clone, Copy, Debug)]
struct Path {
    nodes: [MapNodeId; LEVEL_MAX as usize + 1],
    /// Level of the lowest node.
    level: u8,
    root_level: u8,
}

impl Path {
    fn lowest(&self) -> MapNodeId {
        self.nodes[usize::from(self.level)]
    }
}

impl Core {
    /// Brings in what changing the mapping of a block touches, down to a node of `level`, and adds up what it
    /// needs.
    ///
    /// # Errors
    /// A stall while a page is not in memory.
    pub(crate) fn prepare_path(
        &mut self,
        object: ObjectRoot,
        lba: Lba,
        down_to: u8,
        needs: &mut Needs,
    ) -> Result<(), Stall> {
        let levels = usize::from(object.level - down_to) + 1;
        needs.pages += levels;
        if object.root.0 == 0 {
            needs.nodes += levels;
            needs.changes += levels;
            return Ok(());
        }
        let mut node = object.root;
        let mut level = object.level;
        let mut shared = false;
        loop {
            self.bring_in(node_page(node))?;
            if needs.copies {
                // What is known of sharing now is no more once a node before this one has been copied.
                self.stored_count(Table::NodeCounts, node.0)?;
            }
            shared = self.node_is_shared(node)? || shared;
            needs.copies |= shared;
            if shared {
                needs.nodes += 1;
                let borrows = level == 0 && self.may_borrow(needs.borrows);
                needs.borrows += usize::from(borrows);
                needs.changes += 2 + if borrows { BORROWED_MIN } else { NODE_ENTRIES };
            }
            if level == down_to {
                return Ok(());
            }
            node = MapNodeId(self.node_entry(node, slot(lba, level)));
            if node.0 == 0 {
                let missing = usize::from(level - down_to);
                needs.nodes += missing;
                needs.changes += missing;
                return Ok(());
            }
            level -= 1;
        }
    }

    fn new_node(&mut self, level: u8) -> MapNodeId {
        let node = MapNodeId(self.take_id(Space::Nodes));
        let key = node_page(node);
        // A state from an earlier life of the id has gone with it.
        self.cache.insert(key, &[0; PAGE_BYTES], PageFacts::default());
        let frame = self.cache.change(key);
        frame.page.fill(0);
        frame.facts = PageFacts { version: frame.facts.version, node_level: level, mapped: BlockCount(0) };
        self.node_changes.note(node.0, 1);
        if let Some(place) = self.cache.place_of(key) {
            self.cache.note_exclusive(place, self.sharing);
        }
        node
    }

    /// Copies a shared node. The copy of an inner node has one more reference to each of its children, and there is
    /// one less to the old one; that of a leaf borrows, where it may.
    fn copy_node(&mut self, old: MapNodeId, level: u8) -> MapNodeId {
        let new = self.new_node(level);
        let from = self.cache.page(node_page(old));
        let (mut page, mapped) = (from.page.clone(), from.facts.mapped);
        if level > 0 {
            self.sharing += 1;
            for child in (0..NODE_ENTRIES).map(|slot| get_u64(&*page, slot)).filter(|child| *child != 0) {
                self.node_changes.note(child, 1);
            }
            self.node_changes.note(old.0, -1);
        } else {
            self.copy_leaf(old, new, &mut page);
        }
        let frame = self.cache.change(node_page(new));
        *frame.page = *page;
        frame.facts.mapped = mapped;
        new
    }

    /// Makes the entries of a leaf those of its copy.
    fn copy_leaf(&mut self, old: MapNodeId, new: MapNodeId, page: &mut [u8; PAGE_BYTES]) {
        let blocks: Vec<(usize, u64, BlockId)> = (0..NODE_ENTRIES)
            .filter_map(|slot| match Mapping::unpack(get_u64(page, slot)) {
                Mapping::Block(block) => Some((slot, get_u64(page, slot), block)),
                _ => None,
            })
            .collect();
        let borrows = blocks.len() > BORROWED_MIN && self.may_borrow(0);
        for (slot, entry, block) in blocks {
            if borrows {
                set_u64(page, slot, Mapping::borrowed(entry));
            } else {
                set_u64(page, slot, Mapping::owned(entry));
                self.block_changes.note(block.0, 1);
                self.counters.referenced_blocks += 1;
            }
        }
        if borrows {
            // The reference that the old leaf's parent had is the borrower's now.
            self.borrowers.add(new, old);
        } else {
            self.node_changes.note(old.0, -1);
        }
    }

    /// Makes the path to a block exclusive, adding nodes that are missing.
    fn own_path(&mut self, number: ObjectNumber, lba: Lba, down_to: u8) -> Path {
        let object = ObjectRoot::from(self.objects.get(number).expect("the operation was prepared"));
        let mut path = Path { nodes: [MapNodeId(0); 6], level: down_to, root_level: object.level };
        let mut node = object.root;
        for level in (down_to..=object.level).rev() {
            let owned = if node.0 == 0 {
                self.new_node(level)
            } else if self.node_is_shared(node).expect("prepare_path has brought in the page of its count") {
                self.copy_node(node, level)
            } else {
                node
            };
            if owned != node {
                self.link(number, &path, level, lba, owned);
            }
            path.nodes[usize::from(level)] = owned;
            if level > down_to {
                node = MapNodeId(self.node_entry(owned, slot(lba, level)));
            }
        }
        path
    }

    /// Makes `node` the child for a block, at `level`: in its parent, or as the object's root.
    fn link(&mut self, number: ObjectNumber, path: &Path, level: u8, lba: Lba, node: MapNodeId) {
        if level == path.root_level {
            self.objects.change(number).expect("the operation was prepared").root = node;
        } else {
            let parent = path.nodes[usize::from(level) + 1];
            set_u64(&mut *self.cache.change(node_page(parent)).page, slot(lba, level + 1), node.0);
        }
    }

    /// Adds to the mapped blocks of every node of a path and of the object, and takes nodes away that have
    /// none left.
    fn count_mapped(&mut self, number: ObjectNumber, lba: Lba, path: &Path, delta: i64) {
        if delta != 0 {
            let object = self.objects.change(number).expect("the operation was prepared");
            object.mapped.0 = object.mapped.0.wrapping_add_signed(delta);
            for level in path.level..=path.root_level {
                let facts = &mut self.cache.change(node_page(path.nodes[usize::from(level)])).facts;
                facts.mapped.0 = facts.mapped.0.wrapping_add_signed(delta);
            }
        }
        for level in path.level..=path.root_level {
            let node = path.nodes[usize::from(level)];
            if self.cache.page(node_page(node)).facts.mapped.0 > 0 {
                return;
            }
            self.node_changes.note(node.0, -1);
            self.link(number, path, level, lba, MapNodeId(0));
        }
    }

    /// Sets the mappings of blocks from `first` on; prepared by `prepare_path` for each leaf.
    pub(crate) fn set_mappings(&mut self, number: ObjectNumber, first: Lba, mappings: &[Mapping]) {
        let mut done = 0;
        while done < mappings.len() {
            let lba = first.plus(done as u64);
            let within = usize::try_from(span(0) - lba.0 % span(0)).expect("at most 512");
            let stretch = &mappings[done..(done + within).min(mappings.len())];
            let path = self.own_path(number, lba, 0);
            let delta = self.set_leaf(path.lowest(), slot(lba, 0), stretch);
            self.count_mapped(number, lba, &path, delta);
            done += stretch.len();
        }
    }

    /// Sets entries of a leaf; the change of its mapped blocks.
    fn set_leaf(&mut self, leaf: MapNodeId, from: usize, mappings: &[Mapping]) -> i64 {
        let mut delta = 0;
        let page = &mut self.cache.change(node_page(leaf)).page;
        for (index, mapping) in (from..).zip(mappings) {
            let before = get_u64(&**page, index);
            set_u64(&mut **page, index, mapping.pack());
            delta +=
                i64::from(*mapping != Mapping::Hole) - i64::from(Mapping::unpack(before) != Mapping::Hole);
            if let Mapping::Block(block) = *mapping {
                self.block_changes.note(block.0, 1);
                self.counters.referenced_blocks += 1;
            }
            if let Some(block) = Mapping::owned_block(before) {
                self.block_changes.note(block.0, -1);
                self.counters.referenced_blocks -= 1;
            }
        }
        delta
    }

    /// Makes entries of one leaf holes.
    pub(crate) fn clear_in_leaf(&mut self, number: ObjectNumber, lba: Lba, count: u64) {
        let holes = vec![Mapping::Hole; usize::try_from(count).expect("within one leaf")];
        let path = self.own_path(number, lba, 0);
        let delta = self.set_leaf(path.lowest(), slot(lba, 0), &holes);
        self.count_mapped(number, lba, &path, delta);
    }

    /// Lets go of the whole subtree of a level that begins at `lba`; its topmost page is in memory.
    pub(crate) fn drop_subtree(&mut self, number: ObjectNumber, lba: Lba, level: u8) {
        let object = ObjectRoot::from(self.objects.get(number).expect("the operation was prepared"));
        if level == object.level {
            let object = self.objects.change(number).expect("the operation was prepared");
            let root = std::mem::replace(&mut object.root, MapNodeId(0));
            object.mapped = BlockCount(0);
            self.node_changes.note(root.0, -1);
            return;
        }
        let path = self.own_path(number, lba, level + 1);
        let parent = path.lowest();
        let child = MapNodeId(self.node_entry(parent, slot(lba, level + 1)));
        let mapped = self.cache.page(node_page(child)).facts.mapped;
        set_u64(&mut *self.cache.change(node_page(parent)).page, slot(lba, level + 1), 0);
        self.node_changes.note(child.0, -1);
        let delta = i64::try_from(mapped.0).expect("at most 2^54 blocks");
        self.count_mapped(number, lba, &path, -delta);
    }

    /// Raises the root of a map until it covers `size`.
    pub(crate) fn raise_root(&mut self, number: ObjectNumber, level: u8) {
        let mut object = ObjectRoot::from(self.objects.get(number).expect("the operation was prepared"));
        let mapped = self.objects.get(number).expect("the operation was prepared").mapped;
        while object.level < level {
            object.level += 1;
            if object.root.0 != 0 {
                let root = self.new_node(object.level);
                let frame = self.cache.change(node_page(root));
                set_u64(&mut *frame.page, 0, object.root.0);
                frame.facts.mapped = mapped;
                object.root = root;
            }
        }
        let slot = self.objects.change(number).expect("the operation was prepared");
        slot.root = object.root;
        slot.root_level = object.level;
    }
}
