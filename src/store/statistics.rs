//! Plain counters of the store, for whoever shows them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Result;
use crate::format::root::LifetimeCounters;
use crate::units::{BLOCK_BYTES, BlockCount, ByteCount, CheckpointNumber, ObjectNumber};

use super::Store;
use super::geometry::FRAME_BYTES;
use super::options::ObjectInfo;

/// What the write of one block may need at most: its frame, its entry's page, and the nodes of its path.
const ONE_BLOCK_BYTES: u64 = BLOCK_BYTES as u64 + 128 + 6 * 4160;

/// What collection is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CollectionState {
    /// Enough segments are free.
    #[default]
    Idle,
    /// Segments are emptied in the background.
    Running,
    /// So few segments are free that writes wait for it.
    Behind,
}

/// One consistent moment of the store. Sums are over the pool's life unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreStatistics {
    /// Bytes of all segments.
    pub capacity_bytes: u64,
    /// Of those, what writes may fill.
    pub usable_bytes: u64,
    /// Bytes that something refers to, metadata included.
    pub live_bytes: u64,
    /// Segments in use times their size, less the unwritten room in open ones.
    pub used_bytes: u64,
    /// Capacity that is not in use. Not all of it can be written: `writable_bytes`.
    pub free_bytes: u64,
    /// What writes may still fill, in stored sizes.
    pub writable_bytes: u64,
    /// Live bytes of pages and roots.
    pub metadata_bytes: u64,
    /// Stored bytes of live blocks.
    pub stored_data_bytes: u64,
    /// Blocks stored.
    pub unique_blocks: u64,
    /// References to them, from all volumes; blocks below shared nodes once.
    pub referenced_blocks: u64,
    /// Mapped blocks over all volumes, patterns included.
    pub mapped_blocks: u64,
    /// Map nodes in use, those to be taken apart included.
    pub map_nodes: u64,
    /// Map nodes that nothing refers to any more and that wait to be taken apart: the space below them comes back
    /// then.
    pub nodes_waiting: u64,
    /// Map nodes that were let go of since the last merge of counts. Whether others still refer to them is not known
    /// yet; those that nothing refers to wait next.
    pub nodes_let_go: u64,
    /// Copied leaves that still borrow from the leaf that they were copied from; background work settles them.
    pub leaves_borrowing: u64,
    /// Map nodes taken apart since the store was opened.
    pub nodes_released: u64,
    /// Zero blocks found in writes.
    pub zero_blocks_written: u64,
    /// Pattern blocks found in writes.
    pub pattern_blocks_written: u64,
    /// Written blocks that were there already.
    pub duplicate_blocks_written: u64,
    /// Written blocks that were stored.
    pub new_blocks_written: u64,
    /// Of those, compressed ones.
    pub compressed_blocks_written: u64,
    /// Bytes that hosts have written.
    pub bytes_in: u64,
    /// Bytes saved by zeros and patterns.
    pub pattern_saved_bytes: u64,
    /// Bytes saved by deduplication.
    pub dedup_saved_bytes: u64,
    /// Bytes saved by compression.
    pub compression_saved_bytes: u64,
    /// Bytes appended to the log.
    pub log_bytes_written: u64,
    /// Bytes of pages and roots written.
    pub metadata_bytes_written: u64,
    /// Bytes moved by collection.
    pub moved_bytes: u64,
    /// Segments emptied by collection.
    pub collected_segments: u64,
    /// Victims looked at since the store was opened.
    pub collections: u64,
    /// Segments of the pool.
    pub segment_count: u64,
    /// Of those, free ones.
    pub free_segments: u64,
    /// Segments begun.
    pub segment_erases: u64,
    /// Least erase count of a segment.
    pub erases_min: u64,
    /// Greatest erase count of a segment.
    pub erases_max: u64,
    /// Mean erase count of a segment.
    pub erases_avg: f64,
    /// Variance of the erase counts.
    pub erases_variance: f64,
    /// Segments emptied because they were worn much less than others, since the store was opened or what
    /// `continue_counting` goes on from.
    pub levelled_segments: u64,
    /// Live bytes in those, when it was done.
    pub levelled_bytes: u64,
    /// Bytes of free segments given back to the host, likewise.
    pub punched_bytes: u64,
    /// Stored bytes of new blocks and those that collection has moved, over those of new blocks; pages are counted
    /// beside (`metadata_bytes_written`).
    pub write_amplification: f64,
    /// What collection is at.
    pub collection: CollectionState,
    /// Free segments below which collection works.
    pub free_segments_wanted: u64,
    /// Bytes that dirty pages will take when they are stored: they count as used.
    pub unstored_metadata_bytes: u64,
    /// Nodes, leaves that borrow, and counts of what was let go of that background work has yet to see to.
    pub releases_pending: u64,
    /// Whether the next checkpoint frees blocks or segments that nothing refers to any more.
    pub awaits_checkpoint: bool,
    /// Checkpoints made.
    pub checkpoints: u64,
    /// Time they took since the store was opened.
    pub checkpoint_nanoseconds: u64,
    /// Log syncs since the store was opened.
    pub log_syncs: u64,
    /// Time they took.
    pub log_sync_nanoseconds: u64,
    /// Memory of cached pages, now.
    pub cache_bytes: u64,
    /// Memory of dirty pages among them, now.
    pub dirty_bytes: u64,
    /// Memory of the fingerprint index, now.
    pub index_bytes: u64,
    /// Pages of the block table from which the index is still to be filled after the opening.
    pub index_pages_left: u64,
    /// Memory of the change buffer, now, by estimate.
    pub change_buffer_bytes: u64,
    /// The newest operation.
    pub lsn: u64,
    /// The newest durable operation.
    pub durable_lsn: u64,
    /// Why writes are refused, if they are.
    pub stopped: Option<String>,
    /// Whether a write of one block would be refused for want of space.
    pub full: bool,
    /// Whether less than a sixteenth of the usable space is left.
    pub near_full: bool,
    /// Whether the file systems below the devices had no room for a segment when they were last asked for some.
    pub host_full: bool,
    /// Erase cycles that a segment is rated for.
    pub rated_cycles: u64,
    /// Bytes that scrubs have verified since the store was opened.
    pub scrubbed_bytes: u64,
    /// Pages and blocks that scrubs have found damaged since the store was opened.
    pub scrub_errors: u64,
    /// Blocks whose stored bytes have failed their check since the store was opened.
    pub bad_blocks: u64,
}

/// Figures that no checkpoint holds: whoever kept them hands them in after an opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarriedFigures {
    /// Segments emptied because they were worn much less than others.
    pub levelled_segments: u64,
    /// Live bytes in those.
    pub levelled: ByteCount,
    /// Bytes of free segments given back to the host.
    pub punched: ByteCount,
}

impl Store {
    /// Adds what was counted before the store was opened.
    pub fn continue_counting(&self, before: &CarriedFigures) {
        let add = |figure: &AtomicU64, amount: u64| {
            // What was kept outside of the pool may be anything: no sum wraps.
            let sum = |now: u64| Some(now.saturating_add(amount));
            let _ = figure.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum);
        };
        add(&self.figures.levelled_segments, before.levelled_segments);
        add(&self.figures.levelled_bytes, before.levelled.0);
        add(&self.figures.punched_bytes, before.punched.0);
    }

    /// Bytes that can be written yet, before reduction.
    #[must_use]
    pub fn writable_bytes(&self) -> ByteCount {
        let accounted = self.core.lock().accounted_bytes();
        ByteCount(self.geometry.usable_bytes.saturating_sub(accounted))
    }

    /// Bytes that could be written if nothing were stored.
    #[must_use]
    pub fn usable_bytes(&self) -> ByteCount {
        ByteCount(self.geometry.usable_bytes)
    }

    /// The figures of this moment.
    #[must_use]
    pub fn statistics(&self) -> StoreStatistics {
        let core = self.core.lock();
        let counters = &core.counters;
        let segment_bytes = u64::from(self.geometry.segment_bytes);
        let (in_use, _) = core.segments.in_use();
        let unwritten = core.unwritten_bytes();
        let used_bytes = (in_use as u64 * segment_bytes).saturating_sub(unwritten);
        let wear = core.segments.wear();
        let accounted = core.accounted_bytes();
        let left = self.geometry.usable_bytes.saturating_sub(accounted);
        let capacity_bytes = self.geometry.capacity_bytes();
        StoreStatistics {
            capacity_bytes,
            usable_bytes: self.geometry.usable_bytes,
            live_bytes: core.segments.live_bytes(),
            used_bytes,
            free_bytes: capacity_bytes.saturating_sub(used_bytes),
            writable_bytes: left,
            metadata_bytes: core.segments.metadata_bytes(),
            stored_data_bytes: counters.stored_bytes,
            unique_blocks: counters.unique_blocks,
            referenced_blocks: counters.referenced_blocks,
            mapped_blocks: core.objects.iter().map(|object| object.mapped.0).sum(),
            map_nodes: (core.node_ids.high_water - 1).saturating_sub(core.node_ids.freed),
            nodes_waiting: core.release_queue.len() as u64,
            nodes_let_go: core.node_changes.let_go_of() as u64,
            leaves_borrowing: core.borrowers.len() as u64,
            nodes_released: core.released_nodes,
            zero_blocks_written: counters.zero_blocks,
            pattern_blocks_written: counters.pattern_blocks,
            duplicate_blocks_written: counters.duplicate_blocks,
            new_blocks_written: counters.new_blocks,
            compressed_blocks_written: counters.compressed_blocks,
            bytes_in: counters.bytes_in,
            pattern_saved_bytes: (counters.zero_blocks + counters.pattern_blocks) * BLOCK_BYTES as u64,
            dedup_saved_bytes: counters.duplicate_blocks * BLOCK_BYTES as u64,
            compression_saved_bytes: counters.compression_saved_bytes,
            log_bytes_written: counters.log_bytes,
            metadata_bytes_written: counters.metadata_bytes,
            moved_bytes: counters.moved_bytes,
            collected_segments: counters.collected_segments,
            collections: self.figures.collections.load(Ordering::Relaxed),
            segment_count: u64::from(core.segments.count()),
            free_segments: core.segments.free() as u64,
            segment_erases: counters.segment_erases,
            erases_min: u64::from(wear.min),
            erases_max: u64::from(wear.max),
            erases_avg: wear.mean,
            erases_variance: wear.variance,
            levelled_segments: self.figures.levelled_segments.load(Ordering::Relaxed),
            levelled_bytes: self.figures.levelled_bytes.load(Ordering::Relaxed),
            punched_bytes: self.figures.punched_bytes.load(Ordering::Relaxed),
            write_amplification: write_amplification(counters),
            collection: self.collection_state(core.segments.free()),
            free_segments_wanted: self.free_segments_wanted() as u64,
            unstored_metadata_bytes: core.unstored_metadata_bytes(),
            releases_pending: core.releases_pending(),
            awaits_checkpoint: core.awaits_checkpoint(),
            checkpoints: counters.checkpoints,
            checkpoint_nanoseconds: self.figures.checkpoint_nanoseconds.load(Ordering::Relaxed),
            log_syncs: self.figures.log_syncs.load(Ordering::Relaxed),
            log_sync_nanoseconds: self.figures.log_sync_nanoseconds.load(Ordering::Relaxed),
            cache_bytes: core.cache.pages() as u64 * FRAME_BYTES,
            dirty_bytes: core.cache.dirty_pages() as u64 * FRAME_BYTES,
            index_bytes: self.index.bytes(),
            index_pages_left: core.rebuild.pages_left,
            change_buffer_bytes: (core.block_changes.len() + core.node_changes.len()) as u64 * 40,
            lsn: core.log.committed().0,
            durable_lsn: core.log.durable.0,
            stopped: core.stopped.clone(),
            full: left < ONE_BLOCK_BYTES,
            near_full: left < self.geometry.usable_bytes / 16,
            host_full: self.figures.host_full.load(Ordering::Relaxed),
            rated_cycles: u64::from(self.options.rated_cycles),
            scrubbed_bytes: self.figures.scrubbed_bytes.load(Ordering::Relaxed),
            scrub_errors: self.figures.scrub_errors.load(Ordering::Relaxed),
            bad_blocks: core.bad_blocks.len() as u64,
        }
    }

    fn collection_state(&self, free: usize) -> CollectionState {
        if free <= self.geometry.log_keeps_free() {
            CollectionState::Behind
        } else if free < self.free_segments_wanted() {
            CollectionState::Running
        } else {
            CollectionState::Idle
        }
    }

    /// All objects, in no order.
    ///
    /// # Errors
    /// None at present: objects are held in memory.
    pub fn objects(&self) -> Result<Vec<ObjectInfo>> {
        let core = self.core.lock();
        Ok(core
            .objects
            .iter()
            .map(|slot| ObjectInfo {
                number: slot.number,
                size: slot.size,
                mapped: slot.mapped,
                opaque: slot.opaque.clone(),
            })
            .collect())
    }

    /// The first object found whose opaque bytes are such ones.
    #[must_use]
    pub fn find_object<T>(&self, is: impl Fn(&[u8]) -> Option<T>) -> Option<(ObjectNumber, T)> {
        let core = self.core.lock();
        core.objects.iter().find_map(|slot| Some((slot.number, is(&slot.opaque)?)))
    }

    /// The newest durable checkpoint.
    #[must_use]
    pub fn checkpoint_number(&self) -> CheckpointNumber {
        self.core.lock().checkpoint
    }

    /// Size of a segment.
    #[must_use]
    pub fn segment_bytes(&self) -> ByteCount {
        ByteCount(u64::from(self.geometry.segment_bytes))
    }

    /// Size of an object.
    #[must_use]
    pub fn object_size(&self, object: ObjectNumber) -> Option<BlockCount> {
        self.core.lock().objects.get(object).map(|slot| slot.size)
    }

    /// Mapped blocks of an object.
    #[must_use]
    pub fn object_mapped(&self, object: ObjectNumber) -> Option<BlockCount> {
        self.core.lock().objects.get(object).map(|slot| slot.mapped)
    }
}

/// (New + moved) / new bytes, in stored sizes; 1 where nothing was stored yet.
fn write_amplification(counters: &LifetimeCounters) -> f64 {
    let new = (counters.new_blocks * BLOCK_BYTES as u64).saturating_sub(counters.compression_saved_bytes);
    if new == 0 { 1.0 } else { 1.0 + counters.moved_bytes as f64 / new as f64 }
}

impl super::core::Core {
    /// Whether the next checkpoint frees something: it merges what was let go of, and frees segments that hold
    /// nothing live.
    pub(super) fn awaits_checkpoint(&self) -> bool {
        self.block_changes.let_go_of() > 0
            || self.block_changes.has_sealed()
            || self.node_changes.has_sealed()
            || self.segments.empty_count() > 0
    }

    fn releases_pending(&self) -> u64 {
        let changes = self.block_changes.let_go_of() + self.node_changes.let_go_of();
        (changes + self.release_queue.len() + self.borrowers.len()) as u64
    }

    /// Room in open segments that nothing was written to yet, the log's reserved successor included.
    fn unwritten_bytes(&self) -> u64 {
        let segment_bytes = self.geometry.segment_bytes;
        let log = u64::from(segment_bytes - self.log.position.offset) + u64::from(segment_bytes);
        let streams = [&self.moved, &self.cold, &self.metadata, &self.metadata_copy];
        log + streams.iter().map(|stream| stream.room(segment_bytes) as u64).sum::<u64>()
    }
}
