//! The check itself: recounts every reference, live counter and freed id from the roots, and verifies every
//! checksum. It changes nothing.
//!
//! Nodes are visited once. Blocks are tallied in passes over ranges of ids, so that memory stays within the
//! metadata budget whatever the pool's size.

use std::collections::BTreeMap;

use crate::error::{ErrorKind, Result};
use crate::format::bytes::get_u64;
use crate::format::checksum;
use crate::format::location::Location;
use crate::format::page::{
    BlockEntry, Mapping, NODE_ENTRIES, PAGE_BYTES, POINTERS_PER_PAGE, PageKey, PagePointer, Table,
    decode_page,
};
use crate::units::{BlockId, MapNodeId};

use super::super::Store;
use super::super::blocks::changes::summed;
use super::super::blocks::ids::Space;
use super::super::map::node_page;
use super::super::recovery::read_header;
use super::super::run::Caller;
use super::places::{self, Suspect};
use super::{CheckReport, CheckedObject, FAULTS_MAX, Fault};

/// A node's entries, level and number of mapped blocks.
pub(super) type NodeFacts = (Box<[u8; PAGE_BYTES]>, u8, u64);

/// A check under way.
struct Check<'a> {
    store: &'a Store,
    report: CheckReport,
    /// References found to each node.
    node_references: Vec<u32>,
    /// Nodes that nothing refers to, and that still refer to others.
    dying: Vec<bool>,
    /// Bytes found live in each segment.
    live: Vec<u64>,
    references: u64,
    /// Which faults are about what.
    suspects: BTreeMap<Suspect, Vec<usize>>,
}

impl Store {
    /// As `verify`, of a pool that was just opened: everything is on the devices, the headers of segments too.
    ///
    /// # Errors
    /// `Device`.
    pub(super) fn verify_opened(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport> {
        let report = self.verify(progress)?;
        let mut check = Check::of(self, report);
        check.segment_headers()?;
        Ok(check.report)
    }

    /// Recounts and verifies everything; nothing else may go on meanwhile.
    ///
    /// # Errors
    /// `Device`.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport> {
        let mut check = Check::of(self, CheckReport::default());
        check.pages()?;
        check.trees()?;
        check.node_counts()?;
        check.blocks(progress)?;
        check.segments();
        places::find(self, &check.suspects, &mut check.report.faults);
        Ok(check.report)
    }

    /// A node's entries, level and number of mapped blocks.
    pub(super) fn node_facts(&self, node: MapNodeId) -> Result<NodeFacts> {
        let key = node_page(node);
        self.run(Caller::Maintenance, |core| {
            core.bring_in(key)?;
            let frame = core.cache.page(key);
            Ok((frame.page.clone(), frame.facts.node_level, frame.facts.mapped.0))
        })
    }
}

impl Check<'_> {
    fn of(store: &Store, report: CheckReport) -> Check<'_> {
        let (nodes, segments) = {
            let core = store.core.lock();
            (core.node_ids.high_water, core.segments.count())
        };
        Check {
            store,
            report,
            node_references: vec![0; usize::try_from(nodes).expect("bounded by memory")],
            dying: vec![false; usize::try_from(nodes).expect("bounded by memory")],
            live: vec![0; segments as usize],
            references: 0,
            suspects: BTreeMap::new(),
        }
    }

    fn fault(&mut self, what: String) {
        if self.report.faults.len() < FAULTS_MAX {
            self.report.faults.push(Fault::new(what));
        } else {
            self.report.faults_more += 1;
        }
    }

    /// A fault of something that belongs to volumes or snapshots.
    fn fault_of(&mut self, suspect: Suspect, what: String) {
        if self.report.faults.len() < FAULTS_MAX {
            self.suspects.entry(suspect).or_default().push(self.report.faults.len());
        }
        self.fault(what);
    }

    /// As `or_fault`, of something that belongs to volumes or snapshots.
    fn or_fault_of<T>(&mut self, suspect: Suspect, outcome: Result<T>) -> Result<Option<T>> {
        let before = self.report.faults.len();
        let found = self.or_fault(outcome)?;
        if self.report.faults.len() > before {
            self.suspects.entry(suspect).or_default().push(before);
        }
        Ok(found)
    }

    /// What is damaged or cannot be read is a fault of the pool; anything else ends the check.
    fn or_fault<T>(&mut self, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Device) => {
                self.fault(error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn add_live(&mut self, location: Location) {
        match self.live.get_mut(location.segment.0 as usize) {
            Some(live) => *live += u64::from(location.occupied_bytes()),
            None => self.fault(format!("a pointer names segment {}, which does not exist", location.segment)),
        }
    }

    /// Reads every stored page and every copy of one.
    fn pages(&mut self) -> Result<()> {
        for table in Table::ALL {
            let root = self.store.core.lock().roots[table.index()];
            let key = PageKey { level: root.height, table, number: 0 };
            self.pages_below(key, root.pointer)?;
        }
        let extents = self.store.core.lock().root_extents.clone();
        for extent in extents {
            let mut bytes = vec![0u8; extent.len as usize];
            let read = self.store.read_location(extent.start, &mut bytes);
            self.or_fault(read)?;
            if checksum(&bytes) != extent.checksum {
                self.fault(format!(
                    "a part of the checkpoint's root in segment {} is damaged",
                    extent.start.segment
                ));
            }
            let occupied = crate::format::to_grain(crate::format::page::PAGE_HEADER_BYTES + bytes.len());
            self.live[extent.start.segment.0 as usize] += occupied as u64;
        }
        Ok(())
    }

    fn pages_below(&mut self, key: PageKey, pointer: PagePointer) -> Result<()> {
        if pointer.is_none() {
            return Ok(());
        }
        let mut intact = None;
        for location in [pointer.location, pointer.copy] {
            if location.is_none() {
                continue;
            }
            self.add_live(location);
            let mut stored = vec![0u8; usize::from(location.len)];
            let read = self.store.read_location(location, &mut stored);
            self.or_fault(read)?;
            self.report.bytes_verified += stored.len() as u64;
            match decode_page(&stored, key, &pointer, self.store.short_id()) {
                Some((_, page)) => intact = Some(page),
                None => self.fault(format!(
                    "page {} of table {:?} (level {}) is damaged in segment {}",
                    key.number, key.table, key.level, location.segment
                )),
            }
        }
        if let (Some(page), 1..) = (intact, key.level) {
            for slot in 0..POINTERS_PER_PAGE {
                let below =
                    PageKey { level: key.level - 1, number: key.number * POINTERS_PER_PAGE + slot, ..key };
                self.pages_below(below, PagePointer::at(&page, usize::try_from(slot).expect("below 128")))?;
            }
        }
        Ok(())
    }

    /// A node's entries, level and number of mapped blocks.
    fn node(&mut self, node: MapNodeId) -> Result<Option<NodeFacts>> {
        let read = self.store.node_facts(node);
        self.or_fault_of(Suspect::Node(node), read)
    }

    /// Counts references to nodes, and checks the numbers of mapped blocks.
    fn trees(&mut self) -> Result<()> {
        let objects: Vec<_> = {
            let core = self.store.core.lock();
            self.report.objects = core
                .objects
                .iter()
                .map(|slot| CheckedObject {
                    number: slot.number,
                    size: slot.size.bytes(),
                    opaque: slot.opaque.clone(),
                })
                .collect();
            core.objects.iter().map(|slot| (slot.number, slot.root, slot.root_level, slot.mapped.0)).collect()
        };
        for (number, root, level, mapped) in objects {
            if root.0 == 0 {
                if mapped != 0 {
                    self.fault(format!("object {number} is empty and counts {mapped} mapped blocks"));
                }
                continue;
            }
            let found = self.tree(root, level)?;
            if found != mapped {
                self.fault(format!("object {number} counts {mapped} mapped blocks and has {found}"));
            }
        }
        self.dying_nodes()?;
        self.borrowers()
    }

    /// A leaf that borrows has a reference to its lender, which holds what it borrows.
    fn borrowers(&mut self) -> Result<()> {
        let pairs = self.store.core.lock().borrowers.all();
        for (borrower, lender) in pairs {
            self.tree(lender, 0)?;
            let (Some((held, 0, _)), Some((lent, 0, _))) = (self.node(borrower)?, self.node(lender)?) else {
                self.fault(format!("node {borrower} borrows from node {lender}, and not both are leaves"));
                continue;
            };
            for slot in 0..NODE_ENTRIES {
                let (held, lent) = (get_u64(&*held, slot), get_u64(&*lent, slot));
                if Mapping::is_borrowed(held) && Mapping::unpack(held) != Mapping::unpack(lent) {
                    self.fault(format!("entry {slot} of node {borrower} is not what node {lender} lends"));
                }
            }
        }
        Ok(())
    }

    /// Nodes that nothing refers to any more still refer to their children until they are taken apart.
    fn dying_nodes(&mut self) -> Result<()> {
        let (queue, pending) = {
            let core = self.store.core.lock();
            let queue: Vec<MapNodeId> = core.release_queue.iter().copied().collect();
            (queue, summed(core.node_changes.all()))
        };
        let mut dying: Vec<MapNodeId> = Vec::new();
        for (id, delta) in pending {
            let stored = self.store.run(Caller::Maintenance, |core| core.stored_count(Table::NodeCounts, id));
            let stored = self.or_fault(stored)?.unwrap_or(0);
            if i64::from(stored) + i64::from(delta) == 0 && !queue.contains(&MapNodeId(id)) {
                dying.push(MapNodeId(id));
            }
        }
        dying.extend(queue);
        // The highest first: what is below a dying node may be dying itself, and is then walked once.
        for node in dying {
            match self.dying.get_mut(node.0 as usize) {
                Some(flag) if !*flag => *flag = true,
                _ => {
                    self.fault(format!("node {} waits twice to be taken apart", node.0));
                    continue;
                }
            }
            if let Some((page, level, _)) = self.node(node)? {
                self.children(&page, level)?;
            }
        }
        Ok(())
    }

    /// One more reference to a node; visits what is below it the first time. Mapped blocks below it.
    fn tree(&mut self, node: MapNodeId, level: u8) -> Result<u64> {
        let Some(references) = self.node_references.get_mut(node.0 as usize) else {
            self.fault(format!("node {} was never given out", node.0));
            return Ok(0);
        };
        *references += 1;
        let first = *references == 1;
        let Some((page, own_level, mapped)) = self.node(node)? else { return Ok(0) };
        if !first {
            return Ok(mapped);
        }
        self.report.nodes += 1;
        if own_level != level {
            self.fault(format!(
                "node {} is of level {own_level}, where one of level {level} should be",
                node.0
            ));
            return Ok(mapped);
        }
        let found = self.children(&page, level)?;
        if found != mapped {
            self.fault(format!("node {} counts {mapped} mapped blocks and has {found}", node.0));
        }
        Ok(mapped)
    }

    fn children(&mut self, page: &[u8; PAGE_BYTES], level: u8) -> Result<u64> {
        let mut found = 0;
        for slot in 0..NODE_ENTRIES {
            let entry = get_u64(page, slot);
            if level > 0 {
                if entry != 0 {
                    found += self.tree(MapNodeId(entry), level - 1)?;
                }
            } else {
                found += u64::from(Mapping::unpack(entry) != Mapping::Hole);
            }
        }
        Ok(found)
    }

    fn node_counts(&mut self) -> Result<()> {
        for id in 1..self.node_references.len() {
            let found = i64::from(self.node_references[id]);
            let node = id as u64;
            let read = self.store.run(Caller::Maintenance, |core| {
                core.prepare_id_bit(Space::Nodes, node)?;
                let count =
                    i64::from(core.stored_count(Table::NodeCounts, node)?) + core.node_changes.pending(node);
                Ok((count, core.id_is_free(Space::Nodes, node)))
            });
            let Some((count, free)) = self.or_fault(read)? else { continue };
            if count != found {
                self.fault(format!("node {id} counts {count} references and has {found}"));
            }
            if free != (found == 0 && !self.dying[id]) {
                let word = if free { "free" } else { "in use" };
                self.fault(format!("node {id} is marked {word} and has {found} references"));
            }
        }
        Ok(())
    }

    /// Tallies references to blocks, a range of ids at a time, and verifies the entry of each.
    fn blocks(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let high_water = self.store.core.lock().block_ids.high_water;
        let range = (self.store.options.metadata_budget.0 / 4).max(4096);
        let mut start = 0;
        while start < high_water {
            let end = (start + range).min(high_water);
            let mut tally = vec![0u32; usize::try_from(end - start).expect("bounded by memory")];
            self.tally(start, &mut tally)?;
            for id in start..end {
                if id % 4096 == 0 {
                    progress(id, high_water);
                }
                let found = tally[usize::try_from(id - start).expect("as above")];
                self.block(BlockId(id), found)?;
            }
            start = end;
        }
        progress(high_water, high_water);
        let counted = {
            let core = self.store.core.lock();
            (core.counters.unique_blocks, core.counters.referenced_blocks)
        };
        let found = (self.report.blocks, self.references);
        if counted != found {
            self.fault(format!(
                "the pool counts {} blocks with {} references, and has {} with {}",
                counted.0, counted.1, found.0, found.1
            ));
        }
        Ok(())
    }

    fn tally(&mut self, start: u64, tally: &mut [u32]) -> Result<()> {
        for id in 1..self.node_references.len() {
            if self.node_references[id] == 0 && !self.dying[id] {
                continue;
            }
            let Some((page, level, _)) = self.node(MapNodeId(id as u64))? else { continue };
            if level > 0 {
                continue;
            }
            let borrows = self.store.core.lock().borrowers.holds(MapNodeId(id as u64));
            for slot in 0..NODE_ENTRIES {
                if start == 0 && !borrows && Mapping::is_borrowed(get_u64(&*page, slot)) {
                    self.fault(format!("entry {slot} of node {id} is borrowed from nobody"));
                }
                if let Some(block) = Mapping::owned_block(get_u64(&*page, slot)) {
                    let position = block.0.checked_sub(start).and_then(|at| usize::try_from(at).ok());
                    if let Some(count) = position.and_then(|at| tally.get_mut(at)) {
                        *count += 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn block(&mut self, block: BlockId, found: u32) -> Result<()> {
        self.references += u64::from(found);
        let read = self.store.run(Caller::Maintenance, |core| {
            core.prepare_id_bit(Space::Blocks, block.0)?;
            let stored = i64::from(core.stored_count(Table::BlockCounts, block.0)?);
            let count = stored + core.block_changes.pending(block.0);
            let free = core.id_is_free(Space::Blocks, block.0);
            Ok((count, core.block_entry(block)?, free))
        });
        let suspect = Suspect::Block(block);
        let Some((count, entry, free)) = self.or_fault_of(suspect, read)? else { return Ok(()) };
        if count != i64::from(found) {
            self.fault(format!("block {block} counts {count} references and has {found}"));
        }
        if entry.location.is_none() {
            if found > 0 {
                self.fault_of(suspect, format!("block {block} has {found} references and is nowhere"));
            }
            if !free {
                self.fault(format!("block {block} is nowhere, and its id is not free"));
            }
            return Ok(());
        }
        if free {
            self.fault(format!("block {block} is stored, and its id is free"));
        }
        self.report.blocks += 1;
        self.add_live(entry.location);
        self.stored_bytes(block, &entry)
    }

    fn stored_bytes(&mut self, block: BlockId, entry: &BlockEntry) -> Result<()> {
        let in_memory = self.store.core.lock().log.in_memory(entry.location).is_some();
        if in_memory {
            return Ok(());
        }
        let mut stored = vec![0u8; usize::from(entry.location.len)];
        let read = self.store.read_location(entry.location, &mut stored);
        let suspect = Suspect::Block(block);
        if self.or_fault_of(suspect, read)?.is_none() {
            return Ok(());
        }
        self.report.bytes_verified += stored.len() as u64;
        if checksum(&stored) != entry.checksum {
            let (segment, offset) = (entry.location.segment, entry.location.offset);
            let what = format!("block {block} fails its checksum in segment {segment} at {offset}");
            self.fault_of(suspect, what);
        }
        Ok(())
    }

    fn segments(&mut self) {
        let counted: Vec<u32> = {
            let core = self.store.core.lock();
            core.segments.iter().map(|(_, entry)| entry.live_bytes).collect()
        };
        for (segment, counted) in counted.into_iter().enumerate() {
            let found = self.live[segment];
            if u64::from(counted) != found {
                self.fault(format!("segment {segment} counts {counted} live bytes and has {found}"));
            }
        }
    }

    /// What a segment says of itself leads recovery along the log and collection through its batches.
    fn segment_headers(&mut self) -> Result<()> {
        let full = self.store.core.lock().segments.full_ones();
        for segment in full {
            let Some(header) = self.or_fault(read_header(self.store, segment))? else { continue };
            if header.is_none() {
                self.fault(format!(
                    "the header of segment {segment} fails its check: what lies in it is found all the same, but its \
                     room does not come back"
                ));
            }
        }
        Ok(())
    }
}
