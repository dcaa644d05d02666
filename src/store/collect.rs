//! Garbage collection: moving what is live out of a segment so that it can be reused.
//!
//! Nothing of this is logged. A moved copy counts with the next checkpoint; after a crash before it, the old
//! place does, which is not reused before that checkpoint is durable.

use std::sync::atomic::Ordering;

use crate::error::{ErrorKind, Result};
use crate::format::SYNC_UNIT_BYTES;
use crate::format::batch::{
    BATCH_HEADER_BYTES, Batch, BatchHeader, BatchKind, LoggedOperation, MappingRecord,
};
use crate::format::location::Location;
use crate::format::page::{BlockEntry, PAGE_HEADER_BYTES, PageHeader};
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use crate::format::{checksum, to_grain};
use crate::units::{BLOCK_BYTES, BlockId, Incarnation, Lsn, SegmentId};

use super::Store;
use super::core::{Core, Stall};
use super::log::appender::Stream;
use super::run::Caller;

/// Most blocks moved with one batch.
const MOVE_TOGETHER: usize = 64;

/// Blocks moved with one batch into segments of this size: small batches fill a segment to its end, a batch of
/// more than half a segment would waste the rest of it.
fn move_together(segment_bytes: u32) -> usize {
    (segment_bytes as usize / BLOCK_BYTES / 16).clamp(1, MOVE_TOGETHER)
}

/// A block that was found in a victim.
struct Found {
    block: BlockId,
    location: Location,
}

impl Store {
    /// Empties the best victim; `false` when there is none.
    pub(crate) fn collect_one(&self) -> Result<bool> {
        let Some((victim, kind)) = self.choose_victim() else { return Ok(false) };
        self.figures.collections.fetch_add(1, Ordering::Relaxed);
        let intact = match kind {
            SegmentKind::Log | SegmentKind::Moved => self.move_blocks(victim)?,
            SegmentKind::Metadata | SegmentKind::MetadataCopy => self.dirty_pages_of(victim)?,
            SegmentKind::Free => true,
        };
        let mut core = self.core.lock();
        let blocks = matches!(kind, SegmentKind::Log | SegmentKind::Moved);
        if !intact || (blocks && core.segments.entry(victim).live_bytes > 0) {
            // Something in it cannot be read, or its walk ended early: it stays as it is.
            core.segments.mark_damaged(victim);
        } else {
            core.counters.collected_segments += 1;
        }
        Ok(true)
    }

    /// The segment whose collection gains most for its cost: (1 - u) * age / (1 + u), after Rosenblum and
    /// Ousterhout's log-structured file system.
    fn choose_victim(&self) -> Option<(SegmentId, SegmentKind)> {
        let core = self.core.lock();
        let segment_bytes = f64::from(self.geometry.segment_bytes);
        let newest = core.next_sequence;
        let score = |live_bytes: u32, sequence: u64| {
            let used = f64::from(live_bytes) / segment_bytes;
            let age = (newest.saturating_sub(sequence) + 1) as f64;
            (1.0 - used) * age / (1.0 + used)
        };
        core.segments
            .candidates()
            .filter(|(segment, entry)| {
                // A segment that is nearly full of live data gains nothing.
                f64::from(entry.live_bytes) < segment_bytes * 0.97 && !core.log.is_in_memory(*segment)
            })
            .max_by(|(_, one), (_, other)| {
                score(one.live_bytes, one.sequence).total_cmp(&score(other.live_bytes, other.sequence))
            })
            .map(|(segment, entry)| (segment, entry.kind))
    }

    /// Moves every live block out of a segment of batches; `false` where some cannot be read.
    fn move_blocks(&self, victim: SegmentId) -> Result<bool> {
        let mut intact = true;
        let Some(mut walk) = if_readable(SegmentWalk::new(self, victim))? else { return Ok(false) };
        loop {
            let Some(next) = if_readable(walk.next_batch(self))? else { return Ok(false) };
            let Some(batch_bytes) = next else { break };
            let found = blocks_in(&batch_bytes, victim, walk.batch_start);
            for group in found.chunks(move_together(self.geometry.segment_bytes)) {
                intact &= self.move_group(group, &batch_bytes, walk.batch_start)?;
            }
        }
        Ok(intact)
    }

    /// Moves those of a group that are live.
    fn move_group(&self, group: &[Found], batch: &[u8], batch_start: u32) -> Result<bool> {
        if self.core.lock().cache.dirty_pages() >= self.geometry.dirty_limit * 3 / 4 {
            self.checkpoint_in_role()?;
        }
        let mut intact = true;
        let mut payload: Vec<u8> = Vec::new();
        let mut moving: Vec<(&Found, BlockEntry, usize)> = Vec::new();
        for found in group {
            let entry = if_readable(self.run(Caller::Maintenance, |core| core.live_entry(found)))?;
            intact &= entry.is_some();
            let Some(entry) = entry.flatten() else { continue };
            let from = (found.location.offset - batch_start) as usize;
            let stored = batch.get(from..from + usize::from(found.location.len)).unwrap_or_default();
            if checksum(stored) != entry.checksum {
                self.note_bad_block(found.block, found.location);
                intact = false;
                continue;
            }
            moving.push((found, entry, payload.len()));
            payload.extend_from_slice(stored);
            payload.resize(to_grain(payload.len()), 0);
        }
        if moving.is_empty() {
            return Ok(intact);
        }
        let blocks = moving
            .iter()
            .map(|(found, entry, _)| (found.block, found.location.len, entry.checksum))
            .collect();
        let records = LoggedOperation::Moved { blocks }.encode(payload.len());
        let (segment, payload_offset) = self.append_moved(&records, &payload)?;
        for (found, _, at) in moving {
            let offset = payload_offset + u32::try_from(at).expect("within a segment");
            let location = Location { segment, offset, len: found.location.len };
            self.run(Caller::Maintenance, |core| {
                if let Some(entry) = core.live_entry(found)? {
                    core.set_block_entry(found.block, BlockEntry { location, ..entry });
                }
                Ok(())
            })?;
        }
        Ok(intact)
    }

    /// Writes a batch of moved blocks; where its payloads begin.
    fn append_moved(&self, records: &[u8], payload: &[u8]) -> Result<(SegmentId, u32)> {
        let len = BATCH_HEADER_BYTES + records.len() + payload.len();
        let (segment, offset) = self.run(Caller::Maintenance, |core| {
            core.prepare_append(Stream::Moved, len, self.geometry.checkpoint_segments)?;
            let header = BatchHeader {
                kind: BatchKind::Moved,
                len: u32::try_from(len).expect("within a segment"),
                operations: 1,
                first_lsn: Lsn(0),
                epoch: core.log.epoch,
                incarnation: core.log.incarnation,
                previous: core.moved.chain,
                durable_lsn: Lsn(0),
                durable_checkpoint: core.checkpoint.0,
                pool: core.pool_short,
            };
            let (mut bytes, sum) = header.encode(std::iter::once(records));
            bytes.extend_from_slice(records);
            bytes.extend_from_slice(payload);
            core.moved.chain = sum;
            core.counters.moved_bytes += bytes.len() as u64;
            Ok(core.append(Stream::Moved, &bytes))
        })?;
        self.write_waiting(Stream::Moved)?;
        let records_end = BATCH_HEADER_BYTES + records.len();
        Ok((segment, offset + u32::try_from(records_end).expect("within a segment")))
    }

    /// Marks every live page of a metadata segment dirty: it leaves with the next checkpoint.
    fn dirty_pages_of(&self, victim: SegmentId) -> Result<bool> {
        let segment_bytes = self.geometry.segment_bytes;
        let mut offset = SEGMENT_HEADER_BYTES as u32;
        while offset + (PAGE_HEADER_BYTES as u32) <= segment_bytes {
            let mut bytes = vec![0u8; PAGE_HEADER_BYTES];
            let read = self.read_location(Location { segment: victim, offset, len: 1 }, &mut bytes);
            if if_readable(read)?.is_none() {
                return Ok(false);
            }
            let Some(header) = PageHeader::decode(&bytes, self.short_id()) else {
                // The end of what was written, or damage: whatever is live behind it stays.
                return Ok(true);
            };
            if let Some(key) = header.key {
                let moved = self.run(Caller::Maintenance, |core| {
                    let pointer = core.pointer(key)?;
                    let here = |location: Location| location.segment == victim && location.offset == offset;
                    if pointer.is_none() || !(here(pointer.location) || here(pointer.copy)) {
                        return Ok(());
                    }
                    core.touch_page(key)
                });
                if if_readable(moved)?.is_none() {
                    return Ok(false);
                }
            }
            offset += u32::try_from(header.stride()).unwrap_or(segment_bytes);
            let full = {
                let core = self.core.lock();
                core.cache.dirty_pages() >= core.geometry.dirty_limit
            };
            if full {
                break;
            }
        }
        Ok(true)
    }
}

impl Core {
    /// The entry of a block, if it still lies where it was found.
    fn live_entry(&mut self, found: &Found) -> Result<Option<BlockEntry>, Stall> {
        if found.block.0 >= self.block_ids.high_water {
            return Ok(None);
        }
        let entry = self.block_entry(found.block)?;
        Ok((entry.location == found.location).then_some(entry))
    }

    /// Makes a page leave its place with the next checkpoint.
    pub(crate) fn touch_page(&mut self, key: crate::format::page::PageKey) -> Result<(), Stall> {
        use crate::format::page::Table;
        if key.level > 0 {
            // A directory page is written anew when anything below it is.
            let below = crate::format::page::PageKey {
                level: key.level - 1,
                table: key.table,
                number: key.number * crate::format::page::POINTERS_PER_PAGE,
            };
            return self.touch_first_below(below, crate::format::page::POINTERS_PER_PAGE);
        }
        match key.table {
            Table::Segments => self.segments.touch_page(key.number),
            Table::Objects => self.objects.touch_slot(key.number),
            _ => {
                self.bring_in(key)?;
                self.cache.change(key);
            }
        }
        Ok(())
    }

    /// Touches the first page that exists among `count` from `key` on.
    fn touch_first_below(&mut self, key: crate::format::page::PageKey, count: u64) -> Result<(), Stall> {
        for number in key.number..key.number + count {
            let candidate = crate::format::page::PageKey { number, ..key };
            if !self.pointer(candidate)?.is_none() {
                return self.touch_page(candidate);
            }
        }
        Ok(())
    }
}

/// What a look has found; `None` where damage or a failing device stood in its way: that is left alone, and
/// collection goes on elsewhere.
fn if_readable<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Device) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Walks the batches of a segment that is not the log's open one.
struct SegmentWalk {
    segment: SegmentId,
    offset: u32,
    chain: Option<u64>,
    incarnation: Option<Incarnation>,
    /// Where the batch that was returned last begins.
    batch_start: u32,
}

impl SegmentWalk {
    fn new(store: &Store, segment: SegmentId) -> Result<SegmentWalk> {
        let mut bytes = vec![0u8; SEGMENT_HEADER_BYTES];
        store.read_location(Location { segment, offset: 0, len: 1 }, &mut bytes)?;
        let header = SegmentHeader::decode(&bytes).filter(|header| header.segment == segment);
        let Some(header) = header else {
            return Ok(SegmentWalk {
                segment,
                offset: u32::MAX,
                chain: None,
                incarnation: None,
                batch_start: 0,
            });
        };
        // The first batch of a log segment goes on from another segment, that of moved blocks begins here.
        let chain = (header.kind == SegmentKind::Moved).then(|| checksum(&bytes));
        let incarnation = Some(header.incarnation);
        Ok(SegmentWalk { segment, offset: SEGMENT_HEADER_BYTES as u32, chain, incarnation, batch_start: 0 })
    }

    /// The next batch, whose records are intact; payloads are checked one by one.
    fn next_batch(&mut self, store: &Store) -> Result<Option<Vec<u8>>> {
        let unit = SYNC_UNIT_BYTES as u32;
        for start in [self.offset, self.offset.checked_next_multiple_of(unit).unwrap_or(u32::MAX)] {
            if let Some((bytes, sum)) = self.batch_at(store, start)? {
                self.chain = Some(sum);
                self.batch_start = start;
                self.offset = start + u32::try_from(bytes.len()).expect("within a segment");
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    fn batch_at(&self, store: &Store, start: u32) -> Result<Option<(Vec<u8>, u64)>> {
        let segment_bytes = store.geometry.segment_bytes;
        if start > segment_bytes - BATCH_HEADER_BYTES as u32 {
            return Ok(None);
        }
        let at = Location { segment: self.segment, offset: start, len: 1 };
        let mut bytes = vec![0u8; BATCH_HEADER_BYTES];
        store.read_location(at, &mut bytes)?;
        let Some((header, _)) = BatchHeader::peek(&bytes) else { return Ok(None) };
        let fits = header.len <= segment_bytes - start
            && header.pool == store.short_id()
            && self.incarnation == Some(header.incarnation);
        if !fits || self.chain.is_some_and(|chain| chain != header.previous) {
            return Ok(None);
        }
        bytes.resize(header.len as usize, 0);
        store.read_location(at, &mut bytes)?;
        let sum = Batch::decode(&bytes, false).map(|batch| batch.checksum);
        Ok(sum.map(|sum| (bytes, sum)))
    }
}

/// Every block whose payload lies in a batch.
fn blocks_in(bytes: &[u8], segment: SegmentId, batch_start: u32) -> Vec<Found> {
    let Some(batch) = Batch::decode(bytes, false) else { return Vec::new() };
    let mut found = Vec::new();
    for frame in batch.frames().flatten() {
        let ids: Vec<BlockId> = match &frame.operation {
            LoggedOperation::Write { mappings, .. } => mappings
                .iter()
                .filter_map(|mapping| match mapping {
                    MappingRecord::New { block, .. } => Some(*block),
                    _ => None,
                })
                .collect(),
            LoggedOperation::Moved { blocks } => blocks.iter().map(|(block, _, _)| *block).collect(),
            _ => Vec::new(),
        };
        let base = batch_start + u32::try_from(frame.payload_offset).expect("within a segment");
        for (block, (from, len, _)) in ids.into_iter().zip(frame.operation.payloads()) {
            let offset = base + u32::try_from(from).expect("within a segment");
            let len = u16::try_from(len).expect("at most 4096");
            found.push(Found { block, location: Location { segment, offset, len } });
        }
    }
    found
}
