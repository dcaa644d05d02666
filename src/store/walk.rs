//! Walks along the whole map of one object, a bounded step at a time: what deleting it would free, and what it
//! occupies of the pool.
//!
//! A walk is a value that its caller keeps and takes further when there is time. It holds no lock and no page
//! between its steps, so what it finds is exact only if nothing changes meanwhile: its caller says when it was
//! made, and makes it anew.

use rustc_hash::FxHashMap;

use crate::error::Result;
use crate::format::bytes::get_u64;
use crate::format::page::{Mapping, NODE_ENTRIES, Table};
use crate::units::{BlockId, ByteCount, Lba, MapNodeId, ObjectNumber};

use super::Store;
use super::core::{Core, Stall};
use super::map::borrow::Settled;
use super::map::{ObjectRoot, node_page, slot, span};
use super::run::Caller;

/// Leaves looked at in one step.
const LEAVES_PER_STEP: usize = 16;
/// Blocks looked up in one hold of the lock: each may need a page of the block table and one of counts.
const BLOCKS_TOGETHER: usize = 16;
/// Bytes of the metadata budget for each block that a walk remembers, and fewest of those.
const BUDGET_PER_REMEMBERED: u64 = 1024;
const REMEMBERED_MIN: usize = 64;

/// What deleting an object would free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimable {
    /// Map nodes that only it reaches.
    pub nodes: u64,
    /// Bytes that they take on the devices, copies included; those that no checkpoint has stored yet take none.
    pub node_bytes: ByteCount,
    /// Blocks that only it refers to.
    pub blocks: u64,
    /// Bytes that they take on the devices.
    pub block_bytes: ByteCount,
}

impl Reclaimable {
    /// All bytes together.
    #[must_use]
    pub fn bytes(&self) -> ByteCount {
        ByteCount(self.node_bytes.0 + self.block_bytes.0)
    }
}

/// A walk that finds what deleting one object would free: see `Store::walk_reclaimable`.
#[derive(Debug)]
pub struct ReclaimWalk {
    object: ObjectNumber,
    next: Lba,
    found: Reclaimable,
    /// Blocks with several references, some of them found: how many were found, how many there are, and bytes.
    several: FxHashMap<u64, (u32, u32, u64)>,
    /// Blocks with several references are looked at in this range of ids; each further range takes another pass.
    from: u64,
    until: u64,
    first_pass: bool,
    finished: bool,
    /// Leaves that began to borrow before this are settled first.
    settled_before: Option<u64>,
}

impl ReclaimWalk {
    /// A walk that has not begun.
    #[must_use]
    pub fn new(object: ObjectNumber) -> ReclaimWalk {
        ReclaimWalk {
            object,
            next: Lba(0),
            found: Reclaimable::default(),
            several: FxHashMap::default(),
            from: 0,
            until: u64::MAX,
            first_pass: true,
            finished: false,
            settled_before: None,
        }
    }

    /// What it has found; `None` before it has come to its end.
    #[must_use]
    pub fn found(&self) -> Option<Reclaimable> {
        self.finished.then_some(self.found)
    }

    /// One reference to a block that only nodes of the object hold.
    fn add(&mut self, block: BlockId, facts: &BlockFacts, remembered_max: usize) {
        if facts.references <= 1 {
            if self.first_pass {
                self.found.blocks += 1;
                self.found.block_bytes.0 += facts.occupied_bytes;
            }
            return;
        }
        if !(self.from..self.until).contains(&block.0) {
            return;
        }
        let (seen, references, bytes) =
            self.several.entry(block.0).or_insert((0, facts.references, facts.occupied_bytes));
        *seen += 1;
        if *seen == *references {
            self.found.blocks += 1;
            self.found.block_bytes.0 += *bytes;
            self.several.remove(&block.0);
        } else if self.several.len() > remembered_max {
            // The upper half waits for another pass.
            let mut ids: Vec<u64> = self.several.keys().copied().collect();
            let middle = ids.len() / 2;
            self.until = *ids.select_nth_unstable(middle).1;
            self.several.retain(|id, _| *id < self.until);
        }
    }

    /// The end of the map has been reached; whether that was the last pass.
    fn end_pass(&mut self) {
        self.several.clear();
        self.finished = self.until == u64::MAX;
        self.first_pass = false;
        self.from = self.until;
        self.until = u64::MAX;
        self.next = Lba(0);
    }
}

/// A walk that finds how many stored bytes one object stands for: see `Store::walk_occupied`.
#[derive(Debug)]
pub struct OccupiedWalk {
    object: ObjectNumber,
    next: Lba,
    bytes: f64,
    finished: bool,
    /// Leaves that began to borrow before this are settled first.
    settled_before: Option<u64>,
}

impl OccupiedWalk {
    /// A walk that has not begun.
    #[must_use]
    pub fn new(object: ObjectNumber) -> OccupiedWalk {
        OccupiedWalk { object, next: Lba(0), bytes: 0.0, finished: false, settled_before: None }
    }

    /// The bytes; `None` before it has come to its end.
    #[must_use]
    pub fn found(&self) -> Option<ByteCount> {
        self.finished.then_some(ByteCount(self.bytes.round() as u64))
    }
}

/// What the tables say of a block.
struct BlockFacts {
    /// From all leaves, pending changes included.
    references: u32,
    stored_bytes: u64,
    occupied_bytes: u64,
}

/// What lies at a place of a map.
#[derive(Default)]
struct Visit {
    /// The entries of a leaf; none where the visit only passed what is not there or not wanted.
    entries: Vec<u64>,
    /// The part of the leaf that is the object's: 1 where no node above it is shared, nor it itself.
    share: f64,
    /// Nodes that were met for the first time, and their bytes.
    nodes: u64,
    node_bytes: u64,
    /// Where the next visit begins; `None` at the end of the map.
    next: Option<Lba>,
}

impl Store {
    /// Takes a walk one bounded step further; whether there is more to do.
    ///
    /// It visits the nodes that no other object reaches, and counts a block as soon as all of its references have
    /// been found in them, references that the object has twice included. It remembers a bounded number of blocks
    /// with several references, and where there are more goes along the map again for the rest. What other objects
    /// that are being taken apart still hold counts as theirs.
    ///
    /// # Errors
    /// `NotFound` once the object is deleted; `Corrupt`, `Device` for a map that cannot be read.
    pub fn walk_reclaimable(&self, walk: &mut ReclaimWalk) -> Result<bool> {
        let remembered_max = usize::try_from(self.options.metadata_budget.0 / BUDGET_PER_REMEMBERED)
            .unwrap_or(usize::MAX)
            .max(REMEMBERED_MIN);
        if self.settle_for_walk(walk.object, &mut walk.settled_before)? {
            return Ok(true);
        }
        for _ in 0..LEAVES_PER_STEP {
            if walk.finished {
                return Ok(false);
            }
            let visit = self.run(Caller::Request, |core| core.visit_next(walk.object, walk.next, true))?;
            if walk.first_pass {
                walk.found.nodes += visit.nodes;
                walk.found.node_bytes.0 += visit.node_bytes;
            }
            self.for_each_block(&visit.entries, |block, facts| walk.add(block, facts, remembered_max))?;
            match visit.next {
                Some(next) => walk.next = next,
                None => walk.end_pass(),
            }
        }
        Ok(!walk.finished)
    }

    /// Takes a walk one bounded step further; whether there is more to do.
    ///
    /// Each mapped block adds its stored length over the number of its references; below nodes that several objects
    /// share, that again over their number. So the objects of a pool occupy all stored bytes together, each its fair
    /// share.
    ///
    /// # Errors
    /// As `walk_reclaimable`.
    pub fn walk_occupied(&self, walk: &mut OccupiedWalk) -> Result<bool> {
        if self.settle_for_walk(walk.object, &mut walk.settled_before)? {
            return Ok(true);
        }
        for _ in 0..LEAVES_PER_STEP {
            if walk.finished {
                return Ok(false);
            }
            let visit = self.run(Caller::Request, |core| core.visit_next(walk.object, walk.next, false))?;
            self.for_each_block(&visit.entries, |_, facts| {
                walk.bytes += visit.share * facts.stored_bytes as f64 / f64::from(facts.references);
            })?;
            match visit.next {
                Some(next) => walk.next = next,
                None => walk.finished = true,
            }
        }
        Ok(!walk.finished)
    }

    /// A walk counts references, and a leaf that borrows has none: those that do when a walk begins are settled first.
    /// Whether some were left.
    fn settle_for_walk(&self, object: ObjectNumber, before: &mut Option<u64>) -> Result<bool> {
        let order = {
            let core = self.core.lock();
            core.object(object)?;
            let order = *before.get_or_insert(core.borrowers.next_order());
            if core.stopped.is_some() || !core.borrowers.begun_before(order) {
                return Ok(false);
            }
            order
        };
        if !self.begin_maintenance_or_wait()? {
            return Ok(true);
        }
        let outcome = match self.settle(LEAVES_PER_STEP, order, usize::MAX) {
            Ok(Settled::NoRoom) => self.checkpoint_in_role(),
            other => other.map(|_| ()),
        };
        self.end_maintenance();
        outcome.map(|()| true)
    }

    /// Looks up each block that entries of a leaf name.
    fn for_each_block(&self, entries: &[u64], mut see: impl FnMut(BlockId, &BlockFacts)) -> Result<()> {
        let blocks: Vec<BlockId> = entries
            .iter()
            .filter_map(|entry| match Mapping::unpack(*entry) {
                Mapping::Block(block) => Some(block),
                _ => None,
            })
            .collect();
        for together in blocks.chunks(BLOCKS_TOGETHER) {
            let facts: Vec<BlockFacts> = self.run(Caller::Request, |core| {
                together.iter().map(|block| core.block_facts(*block)).collect()
            })?;
            for (block, facts) in together.iter().zip(&facts) {
                see(*block, facts);
            }
        }
        Ok(())
    }
}

impl Core {
    /// Goes down to the first leaf from `lba` on. With `owned`, what other objects reach as well is passed over.
    fn visit_next(&mut self, object: ObjectNumber, lba: Lba, owned: bool) -> Result<Visit, Stall> {
        let ObjectRoot { root, level: root_level } = ObjectRoot::from(self.object(object)?);
        let mut visit = Visit { share: 1.0, ..Visit::default() };
        if root.0 == 0 || lba.0 >= span(root_level) {
            return Ok(visit);
        }
        let (mut node, mut level, mut lba) = (root, root_level, lba);
        loop {
            let start = lba.0 - lba.0 % span(level);
            let behind = Lba(start + span(level));
            visit.next = (behind.0 < span(root_level)).then_some(behind);
            let references = self.node_references(node)?;
            if owned && references > 1 {
                return Ok(visit);
            }
            visit.share /= f64::from(references.max(1));
            if lba.0 == start {
                let pointer = self.pointer(node_page(node))?;
                visit.nodes += 1;
                for location in [pointer.location, pointer.copy] {
                    if !location.is_none() {
                        visit.node_bytes += u64::from(location.occupied_bytes());
                    }
                }
            }
            self.bring_in(node_page(node))?;
            if level == 0 {
                visit.entries = (0..NODE_ENTRIES).map(|slot| self.node_entry(node, slot)).collect();
                return Ok(visit);
            }
            let from = slot(lba, level);
            let page = &self.cache.page(node_page(node)).page;
            let Some(at) = (from..NODE_ENTRIES).find(|slot| get_u64(&**page, *slot) != 0) else {
                return Ok(visit);
            };
            if at > from {
                lba = Lba(start + at as u64 * span(level - 1));
            }
            node = MapNodeId(self.node_entry(node, at));
            level -= 1;
        }
    }

    /// Parents and roots that refer to a node, pending changes included.
    fn node_references(&mut self, node: MapNodeId) -> Result<u32, Stall> {
        let stored = i64::from(self.stored_count(Table::NodeCounts, node.0)?);
        Ok(u32::try_from((stored + self.node_changes.pending(node.0)).max(1)).unwrap_or(u32::MAX))
    }

    fn block_facts(&mut self, block: BlockId) -> Result<BlockFacts, Stall> {
        let stored = i64::from(self.stored_count(Table::BlockCounts, block.0)?);
        let references = (stored + self.block_changes.pending(block.0)).max(1);
        let location = self.block_entry(block)?.location;
        let occupied = if location.is_none() { 0 } else { location.occupied_bytes() };
        Ok(BlockFacts {
            references: u32::try_from(references).unwrap_or(u32::MAX),
            stored_bytes: u64::from(location.len),
            occupied_bytes: u64::from(occupied),
        })
    }
}
