//! Checkpoints: the durable picture of all tables at one operation.
//!
//! Each step begins after the one before is done: merge counts; end the batch and freeze, under the lock; write
//! the log out up to there; write pages and directories to new places; sync every device; write the
//! superblock; sync every device; only then free segments and ids. Commits go on all the while, but for the
//! moment of the freeze.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::format::location::Location;
use crate::format::objects::{SegmentEntry, encode_slot};
use crate::format::page::{PAGE_BYTES, PageFacts, PageKey, PagePointer, Table, encode_page};
use crate::format::root::{CheckpointRoot, PendingChange, TableRoot};
use crate::format::segment::SegmentKind;
use crate::format::{checksum, to_grain};
use crate::units::{BlockId, Lsn, MapNodeId, SegmentId};

use super::Store;
use super::blocks::changes::summed;
use super::core::Core;
use super::log::appender::Stream;
use super::run::Caller;

/// Pages encoded and written together.
const PAGES_TOGETHER: usize = 128;

/// What a checkpoint is to make durable, as of one moment.
struct Picture {
    root: CheckpointRoot,
    keys: Vec<PageKey>,
    dropped: Vec<PageKey>,
    segments: Vec<(u64, Vec<SegmentEntry>)>,
    objects: Vec<(u64, Option<crate::format::objects::ObjectSlot>)>,
    empty: Vec<SegmentId>,
}

/// Changes as the buffer holds them: in no order, an id with sealed and active ones twice.
type RawChanges = Vec<(u64, i32)>;

/// A page that was encoded and whose place is known.
struct Stored {
    key: PageKey,
    pointer: PagePointer,
}

impl Store {
    /// A checkpoint now: everything is durable, and the next opening has nothing to replay.
    ///
    /// # Errors
    /// `Stopped`, once a write or a sync has failed.
    pub fn checkpoint(&self) -> Result<()> {
        while !self.begin_maintenance_or_wait()? {}
        let outcome = self.checkpoint_in_role();
        self.end_maintenance();
        outcome
    }

    /// Makes a checkpoint; the caller holds the maintenance role. After an error the store stops.
    pub(crate) fn checkpoint_in_role(&self) -> Result<()> {
        self.core.lock().writable()?;
        self.merge_changes().map_err(|error| self.stop(&error))?;
        self.checkpoint_without_merge()
    }

    /// As `checkpoint_in_role`, all changes of counts staying in the buffer.
    pub(crate) fn checkpoint_without_merge(&self) -> Result<()> {
        let before = self.environment.clock.monotonic();
        self.make_checkpoint().map_err(|error| self.stop(&error))?;
        self.note_checkpoint_time(self.environment.clock.monotonic().saturating_sub(before));
        self.changed.notify_all();
        Ok(())
    }

    fn make_checkpoint(&self) -> Result<()> {
        let mut picture = self.take_picture();
        self.write_out(picture.root.lsn)?;
        if self.core.lock().log.chain_found.is_none() {
            // The last batch before the picture holds no operation: nobody else may be about to write it.
            self.write_out_all()?;
        }
        self.write_pages(&mut picture)?;
        let old_root = self.core.lock().root_extents.clone();
        Store::let_go_of_root(&mut self.core.lock(), &old_root);
        {
            let mut core = self.core.lock();
            let chain = core.log.chain_found.take();
            picture.root.log_chain = chain.expect("the log was written out up to the picture");
            core.log.chain_wanted_at = None;
            picture.root.tables = core.roots;
            core.align_append(Stream::Moved);
            core.align_append(Stream::Cold);
        }
        let (root, copy) = self.write_root(&mut picture.root, |core, root| {
            root.segment_changes = core.segments.changes_since_picture();
            root.counters.metadata_bytes = core.counters.metadata_bytes;
            root.counters.checkpoints = core.counters.checkpoints + 1;
        })?;
        let faults = self.options.faults;
        if !faults.no_sync_before_superblock {
            self.sync_all()?;
        }
        // Group commit may have heard meanwhile that something was lost.
        self.core.lock().writable()?;
        let superblock = self.superblock(picture.root.number, picture.root.log_incarnation, root, copy);
        self.write_superblocks(&superblock)?;
        self.sync_all()?;
        self.finish_checkpoint(&picture, [superblock.root, superblock.root_copy].concat());
        self.punch_surplus(self.stock_under_load()).map(|_| ())
    }

    /// The picture of this moment.
    fn take_picture(&self) -> Picture {
        let (mut picture, block_changes, node_changes) = self.freeze();
        picture.root.block_changes = summed(block_changes)
            .into_iter()
            .map(|(id, delta)| PendingChange { id: BlockId(id), delta })
            .collect();
        picture.root.node_changes = summed(node_changes)
            .into_iter()
            .map(|(id, delta)| PendingChange { id: MapNodeId(id), delta })
            .collect();
        picture
    }

    /// Ends the batch and freezes: the one step of a checkpoint that commits wait for. The changes of blocks
    /// and of nodes that are not merged stand beside the picture.
    fn freeze(&self) -> (Picture, RawChanges, RawChanges) {
        let mut core = self.core.lock();
        let core = &mut *core;
        core.log.close_batch();
        core.log.align_next = true;
        core.log.bytes_since_picture = 0;
        if core.log.closed_batches == core.log.finished_batches {
            core.log.chain_wanted_at = None;
            core.log.chain_found = Some(core.log.chain);
        } else {
            core.log.chain_wanted_at = Some(core.log.closed_batches);
            core.log.chain_found = None;
        }
        let keys = core.cache.freeze();
        core.block_ids.freeze();
        core.node_ids.freeze();
        let mut counters = core.counters;
        counters.freed_blocks = core.block_ids.freed;
        counters.freed_nodes = core.node_ids.freed;
        let root = CheckpointRoot {
            number: crate::units::CheckpointNumber(core.checkpoint.0 + 1),
            lsn: core.log.committed(),
            epoch: core.log.committed_epoch,
            log_incarnation: core.log.incarnation,
            log_segment: core.log.position.segment,
            log_offset: core.log.position.offset,
            log_successor: core.log.position.successor,
            log_chain: 0,
            next_sequence: core.next_sequence,
            next_object: core.objects.next,
            next_block: BlockId(core.block_ids.high_water),
            next_node: MapNodeId(core.node_ids.high_water),
            tables: [TableRoot::default(); Table::ALL.len()],
            counters,
            syncing: core.being_synced,
            block_changes: Vec::new(),
            node_changes: Vec::new(),
            release_queue: core.release_queue.iter().copied().collect(),
            segment_changes: Vec::new(),
            borrowers: core.borrowers.all(),
        };
        let picture = Picture {
            root,
            keys,
            dropped: std::mem::take(&mut core.dropped),
            segments: core.segments.freeze(),
            objects: core.objects.freeze(),
            empty: core.segments.empty_ones(),
        };
        if core.faults.erase_early {
            for segment in &picture.empty {
                core.segments.release(*segment);
            }
        }
        (picture, core.block_changes.all(), core.node_changes.all())
    }

    /// Writes the pages of the picture to new places, then the directory pages above them, level by level.
    fn write_pages(&self, picture: &mut Picture) -> Result<()> {
        let mut changed: BTreeSet<PageKey> = BTreeSet::new();
        for keys in picture.keys.chunks(PAGES_TOGETHER) {
            let pages = {
                let core = self.core.lock();
                keys.iter()
                    .filter_map(|key| {
                        core.cache.frozen_page(*key).map(|(page, facts)| (*key, Box::new(*page), facts))
                    })
                    .collect()
            };
            self.store_pages(pages, &mut changed)?;
        }
        for key in &picture.dropped {
            self.point_to(*key, PagePointer::default(), &mut changed)?;
        }
        for (number, entries) in &picture.segments {
            let mut page = Box::new([0u8; PAGE_BYTES]);
            for (slot, entry) in entries.iter().enumerate() {
                entry.put(&mut page, slot);
            }
            self.store_resident(PageKey::leaf(Table::Segments, *number), page, &mut changed)?;
        }
        for (slot, object) in &picture.objects {
            let page = encode_slot(object.as_ref());
            self.store_resident(PageKey::leaf(Table::Objects, *slot), page, &mut changed)?;
        }
        while let Some(first) = changed.first().copied() {
            let keys: Vec<PageKey> = changed
                .iter()
                .copied()
                .take_while(|key| key.level == first.level)
                .take(PAGES_TOGETHER)
                .collect();
            let pages = {
                let mut core = self.core.lock();
                keys.iter()
                    .map(|key| {
                        changed.remove(key);
                        let frame = core.cache.page(*key);
                        (*key, frame.page.clone(), frame.facts)
                    })
                    .collect()
            };
            self.store_pages(pages, &mut changed)?;
        }
        Ok(())
    }

    /// Stores a page of a table that is held whole in memory.
    fn store_resident(
        &self,
        key: PageKey,
        page: Box<[u8; PAGE_BYTES]>,
        changed: &mut BTreeSet<PageKey>,
    ) -> Result<()> {
        let before = self.run(Caller::Maintenance, |core| core.pointer(key))?;
        let facts = PageFacts { version: before.version, ..PageFacts::default() };
        self.store_pages(vec![(key, page, facts)], changed)
    }

    /// Encodes pages, writes them (directories, inner nodes, objects and segments twice), and then points to them.
    fn store_pages(
        &self,
        pages: Vec<(PageKey, Box<[u8; PAGE_BYTES]>, PageFacts)>,
        changed: &mut BTreeSet<PageKey>,
    ) -> Result<()> {
        let pool = self.short_id();
        let mut stored: Vec<Stored> = Vec::with_capacity(pages.len());
        for (key, page, facts) in pages {
            let facts = PageFacts { version: facts.version.wrapping_add(1), ..facts };
            let bytes = encode_page(key, facts, &page, pool);
            let needed_to_open = matches!(key.table, Table::Objects | Table::Segments);
            let twice = key.level > 0 || facts.node_level > 0 || needed_to_open;
            let location = self.append_page(Stream::Metadata, &bytes)?;
            let copy = if twice { self.append_page(Stream::MetadataCopy, &bytes)? } else { Location::NONE };
            let pointer = PagePointer { location, copy, checksum: checksum(&bytes), version: facts.version };
            stored.push(Stored { key, pointer });
        }
        self.write_waiting(Stream::Metadata)?;
        self.write_waiting(Stream::MetadataCopy)?;
        for Stored { key, pointer } in stored {
            self.point_to(key, pointer, changed)?;
        }
        Ok(())
    }

    fn append_page(&self, stream: Stream, bytes: &[u8]) -> Result<Location> {
        self.run(Caller::Maintenance, |core| {
            core.prepare_append(stream, to_grain(bytes.len()), 0)?;
            let (segment, offset) = core.append(stream, bytes);
            core.counters.metadata_bytes += bytes.len() as u64;
            Ok(Location { segment, offset, len: u16::try_from(bytes.len()).expect("a page and its header") })
        })
    }

    /// Writes what waits in a stream.
    pub(crate) fn write_waiting(&self, stream: Stream) -> Result<()> {
        let waiting = self.core.lock().appender(stream).take_waiting();
        for (segment, offset, bytes) in waiting {
            self.append_to_segment(segment, offset, &[&bytes])?;
        }
        Ok(())
    }

    /// Makes a pointer name the new place of a page, and lets go of the old one.
    fn point_to(&self, key: PageKey, pointer: PagePointer, changed: &mut BTreeSet<PageKey>) -> Result<()> {
        let mut parents = Vec::new();
        self.run(Caller::Maintenance, |core| {
            parents.clear();
            let before = core.pointer(key)?;
            core.set_pointer(key, pointer, &mut parents)?;
            for location in [before.location, before.copy] {
                if !location.is_none() {
                    let bytes = i64::from(location.occupied_bytes());
                    core.segments.add_live_behind_picture(location.segment, -bytes);
                }
            }
            for location in [pointer.location, pointer.copy] {
                if !location.is_none() {
                    let bytes = i64::from(location.occupied_bytes());
                    core.segments.add_live_behind_picture(location.segment, bytes);
                }
            }
            if key.level > 0 {
                core.cache.directory_stored(key, pointer.version);
            } else if !matches!(key.table, Table::Objects | Table::Segments) && !pointer.is_none() {
                core.cache.stored(key, pointer.version);
            }
            Ok(())
        })?;
        changed.extend(parents);
        Ok(())
    }

    /// The checkpoint is durable: what only the one before needed is free.
    fn finish_checkpoint(&self, picture: &Picture, root_extents: Vec<crate::format::superblock::RootExtent>) {
        let mut core = self.core.lock();
        let core = &mut *core;
        core.checkpoint = picture.root.number;
        core.checkpointed_at = self.environment.clock.monotonic();
        core.counters.checkpoints += 1;
        core.root_extents = root_extents;
        core.block_ids.thaw();
        core.node_ids.thaw();
        core.segments.thaw();
        core.leaving.clear();
        core.log.durable = core.log.durable.max(picture.root.lsn);
        // Metadata segments are filled and emptied by checkpoints alone: one that is empty now is so in
        // this picture too.
        let metadata: Vec<SegmentId> = core
            .segments
            .empty_ones()
            .into_iter()
            .filter(|segment| {
                matches!(
                    core.segments.entry(*segment).kind,
                    SegmentKind::Metadata | SegmentKind::MetadataCopy
                )
            })
            .collect();
        for segment in picture.empty.iter().chain(&metadata) {
            core.segments.release(*segment);
        }
    }

    /// The newest operation that a crash of the machine would keep.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.core.lock().log.durable
    }
}

impl Core {
    /// Whether a checkpoint is due.
    pub(crate) fn checkpoint_is_due(&self, log_bytes: u64) -> bool {
        let changes = self.block_changes.len().max(self.block_changes.active_len()) + self.node_changes.len();
        self.unstored_pages() >= self.geometry.dirty_start
            || self.log.bytes_since_picture >= log_bytes
            || changes >= self.geometry.changes / 2
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::device::memory::MemoryDevice;
    use crate::store::{Environment, StoreOptions};
    use crate::sync::seeded::SeededNumbers;
    use crate::sync::{Clock, Mutex, RandomSource};
    use crate::units::{BlockCount, ByteCount};

    struct StillClock;

    impl Clock for StillClock {
        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }

        fn since_unix_epoch(&self) -> Duration {
            Duration::ZERO
        }
    }

    struct Numbers(Mutex<SeededNumbers>);

    impl RandomSource for Numbers {
        fn fill(&self, bytes: &mut [u8]) {
            self.0.lock().fill(bytes);
        }
    }

    #[test]
    fn a_picture_right_behind_a_batch_that_only_says_what_is_durable_is_stored() {
        let device = Arc::new(MemoryDevice::new("memory", ByteCount(16 << 20)));
        let random = Arc::new(Numbers(Mutex::new(SeededNumbers::new(1))));
        let environment = Environment { clock: Arc::new(StillClock), random };
        let store =
            Store::create(vec![device], StoreOptions::default(), environment).expect("room for a pool");
        let (_, lsn) = store.create_object(BlockCount(8), b"").expect("room for an object");
        store.make_durable(lsn).expect("memory does not fail");
        // Another thread was interrupted here, before it could write that batch out.
        store.core.lock().log.state_durable(store.geometry.segment_bytes);
        store.checkpoint().expect("memory does not fail");
    }
}
