//! Garbage collection: moving what is live out of a segment so that it can be reused.
//!
//! Nothing of this is logged. A moved copy counts with the next checkpoint; after a crash before it, the old
//! place does, which is not reused before that checkpoint is durable.

use std::sync::atomic::Ordering;

use crate::error::{ErrorKind, Result};
use crate::format::SYNC_UNIT_BYTES;
use crate::format::batch::{
    BATCH_HEADER_BYTES, Batch, BatchHeader, BatchKind, FRAME_HEADER_BYTES, LoggedOperation,
    MOVED_RECORD_BYTES, MappingRecord,
};
use crate::format::location::Location;
use crate::format::page::{BlockEntry, PAGE_HEADER_BYTES, PageHeader};
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use crate::format::{checksum, to_grain};
use crate::units::{BLOCK_BYTES, BlockId, Incarnation, Lba, Lsn, ObjectNumber, SegmentId};

use super::Store;
use super::core::{Core, Stall};
use super::log::appender::Stream;
use super::run::Caller;

/// Most blocks moved with one batch.
const MOVE_TOGETHER: usize = 64;
/// Segments that are begun between two that are emptied for wear alone: what levelling may cost.
const SEGMENTS_PER_LEVELLING: u64 = 8;

/// A block that was found in a victim.
struct Found {
    block: BlockId,
    location: Location,
    /// Where it was written, as the log says; not known of one that was moved before.
    written_at: Option<(ObjectNumber, Lba)>,
}

/// Live blocks on their way to another segment.
struct Moving {
    stream: Stream,
    blocks: Vec<(Found, BlockEntry)>,
    /// Their stored bytes, each padded to a grain.
    payload: Vec<u8>,
}

impl Store {
    /// Empties the best victim; `false` when there is none.
    pub(crate) fn collect_one(&self) -> Result<bool> {
        let victim = {
            let core = self.core.lock();
            core.segments.best_victim(core.next_sequence, |segment| core.may_be_emptied(segment))
        };
        let Some((victim, kind)) = victim else { return Ok(false) };
        self.collect_segment(victim, kind).map(|()| true)
    }

    /// Empties a segment so that it can be reused.
    pub(crate) fn collect_segment(&self, victim: SegmentId, kind: SegmentKind) -> Result<()> {
        self.figures.collections.fetch_add(1, Ordering::Relaxed);
        self.empty_segment(victim, kind)
    }

    /// Moves the longest-lying data out of a segment that is worn much less than others, so that the segment takes
    /// its part again; whether there was one.
    pub(crate) fn level_wear(&self) -> Result<bool> {
        let rested = {
            let mut core = self.core.lock();
            if core.next_sequence < core.levelled_at + SEGMENTS_PER_LEVELLING {
                return Ok(false);
            }
            let found = core.segments.look_for_rested();
            let Some((segment, kind)) = found.filter(|(segment, _)| core.may_be_emptied(*segment)) else {
                return Ok(false);
            };
            core.levelled_at = core.next_sequence;
            core.levelling = true;
            self.figures.levelled_segments.fetch_add(1, Ordering::Relaxed);
            self.figures
                .levelled_bytes
                .fetch_add(u64::from(core.segments.entry(segment).live_bytes), Ordering::Relaxed);
            (segment, kind)
        };
        let outcome = self.empty_segment(rested.0, rested.1);
        self.core.lock().levelling = false;
        outcome.map(|()| true)
    }

    /// Moves what is live out of a segment; one in which something cannot be read stays as it is from now on.
    fn empty_segment(&self, victim: SegmentId, kind: SegmentKind) -> Result<()> {
        // A checkpoint on the way may find nothing live in it any more; it must not be reused while it is walked.
        self.core.lock().segments.pin(victim);
        let emptied = match kind {
            SegmentKind::Log | SegmentKind::Moved => self.move_blocks(victim),
            SegmentKind::Metadata | SegmentKind::MetadataCopy => {
                self.core.lock().leaving.insert(victim);
                self.dirty_pages_of(victim)
            }
            SegmentKind::Free => Ok(true),
        };
        let mut core = self.core.lock();
        core.segments.unpin(victim);
        let intact = emptied?;
        let blocks = matches!(kind, SegmentKind::Log | SegmentKind::Moved);
        if !intact || (blocks && core.segments.entry(victim).live_bytes > 0) {
            // Something in it cannot be read, or its walk ended early.
            core.segments.mark_damaged(victim);
        } else {
            core.counters.collected_segments += 1;
        }
        Ok(())
    }

    /// Moves a block out of the place that its entry names, its stored bytes being known; whether it lies elsewhere now.
    pub(crate) fn move_anew(&self, block: BlockId, entry: BlockEntry, stored: &[u8]) -> Result<bool> {
        let mut payload = stored.to_vec();
        payload.resize(to_grain(stored.len()), 0);
        let found = Found { block, location: entry.location, written_at: None };
        let mut moving = Moving { stream: Stream::Cold, blocks: vec![(found, entry)], payload };
        self.move_along(&mut moving)?;
        let now = self.run(Caller::Maintenance, |core| core.block_entry(block))?;
        Ok(now.location != entry.location)
    }

    /// Moves every live block out of a segment of batches; `false` where some cannot be read.
    fn move_blocks(&self, victim: SegmentId) -> Result<bool> {
        let together = (self.geometry.segment_bytes as usize / BLOCK_BYTES / 4).clamp(1, MOVE_TOGETHER);
        let mut intact = true;
        let onto = |stream| Moving { stream, blocks: Vec::new(), payload: Vec::new() };
        let (mut moved, mut cold) = (onto(Stream::Moved), onto(Stream::Cold));
        let Some(mut walk) = if_readable(SegmentWalk::new(self, victim))? else { return Ok(false) };
        loop {
            let Some(next) = if_readable(walk.next_batch(self))? else {
                intact = false;
                break;
            };
            let Some(batch_bytes) = next else { break };
            for found in blocks_in(&batch_bytes, victim, walk.batch_start) {
                let moving = match self.core.lock().stream_for(&found) {
                    Stream::Moved => &mut moved,
                    _ => &mut cold,
                };
                intact &= self.take_along(found, &batch_bytes, walk.batch_start, moving)?;
                if moving.blocks.len() >= together {
                    self.move_along(moving)?;
                }
            }
        }
        self.move_along(&mut moved)?;
        self.move_along(&mut cold)?;
        Ok(intact)
    }

    /// Adds a block to those that move, if it is live; `false` where it cannot be read.
    fn take_along(&self, found: Found, batch: &[u8], batch_start: u32, moving: &mut Moving) -> Result<bool> {
        let entry = if_readable(self.run(Caller::Maintenance, |core| core.live_entry(&found)))?;
        let Some(entry) = entry else { return Ok(false) };
        let Some(entry) = entry else { return Ok(true) };
        let from = (found.location.offset - batch_start) as usize;
        let stored = batch.get(from..from + usize::from(found.location.len)).unwrap_or_default();
        if checksum(stored) != entry.checksum {
            self.note_bad_block(found.block, found.location);
            return Ok(false);
        }
        moving.payload.extend_from_slice(stored);
        moving.payload.resize(to_grain(moving.payload.len()), 0);
        moving.blocks.push((found, entry));
        Ok(true)
    }

    /// Moves blocks, in as many batches as the room in the open segment asks for: it is filled to its end.
    fn move_along(&self, moving: &mut Moving) -> Result<()> {
        if self.core.lock().cache.dirty_pages() >= self.geometry.dirty_limit * 3 / 4 {
            self.checkpoint_in_role()?;
        }
        let mut rest = moving.blocks.as_slice();
        let mut payload = moving.payload.as_slice();
        while !rest.is_empty() {
            let room = self.core.lock().append_room(moving.stream);
            let (count, len) = match fitting(rest, room) {
                // Another segment is begun, which has room for all.
                (0, _) => (rest.len(), payload.len()),
                fits => fits,
            };
            let (now, later) = rest.split_at(count);
            let (bytes, behind) = payload.split_at(len);
            self.move_batch(moving.stream, now, bytes)?;
            (rest, payload) = (later, behind);
        }
        moving.blocks.clear();
        moving.payload.clear();
        Ok(())
    }

    fn move_batch(&self, stream: Stream, blocks: &[(Found, BlockEntry)], payload: &[u8]) -> Result<()> {
        let records = blocks.iter().map(|(found, entry)| (found.block, found.location.len, entry.checksum));
        let records = LoggedOperation::Moved { blocks: records.collect() }.encode(payload.len());
        let (segment, mut offset) = self.append_moved(stream, &records, payload)?;
        for (found, _) in blocks {
            let location = Location { segment, offset, len: found.location.len };
            offset += location.occupied_bytes();
            self.run(Caller::Maintenance, |core| {
                if let Some(entry) = core.live_entry(found)? {
                    core.set_block_entry(found.block, BlockEntry { location, ..entry });
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Writes a batch of moved blocks; where its payloads begin.
    fn append_moved(&self, stream: Stream, records: &[u8], payload: &[u8]) -> Result<(SegmentId, u32)> {
        let len = BATCH_HEADER_BYTES + records.len() + payload.len();
        let (segment, offset) = self.run(Caller::Maintenance, |core| {
            core.prepare_append(stream, len, self.geometry.checkpoint_segments)?;
            let header = BatchHeader {
                kind: BatchKind::Moved,
                len: u32::try_from(len).expect("within a segment"),
                operations: 1,
                first_lsn: Lsn(0),
                epoch: core.log.epoch,
                incarnation: core.log.incarnation,
                previous: core.appender(stream).chain,
                durable_lsn: Lsn(0),
                durable_checkpoint: core.checkpoint.0,
                pool: core.pool_short,
            };
            let (mut bytes, sum) = header.encode(std::iter::once(records));
            bytes.extend_from_slice(records);
            bytes.extend_from_slice(payload);
            core.appender(stream).chain = sum;
            core.counters.moved_bytes += bytes.len() as u64;
            Ok(core.append(stream, &bytes))
        })?;
        self.write_waiting(stream)?;
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
    /// Where a block goes: those that are likely to lie for long apart from those that will soon be overwritten.
    fn stream_for(&self, found: &Found) -> Stream {
        match found.written_at {
            Some((object, lba)) if !self.levelling && self.heat.is_hot(object, lba) => Stream::Moved,
            _ => Stream::Cold,
        }
    }

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

/// How many of the blocks, from the first on, fit into `room` bytes with their batch, and how long their payloads are.
fn fitting(blocks: &[(Found, BlockEntry)], room: usize) -> (usize, usize) {
    let mut len = 0;
    for (count, (found, _)) in blocks.iter().enumerate() {
        let longer = len + to_grain(usize::from(found.location.len));
        let records = to_grain(FRAME_HEADER_BYTES + (count + 1) * MOVED_RECORD_BYTES);
        if BATCH_HEADER_BYTES + records + longer > room {
            return (count, len);
        }
        len = longer;
    }
    (blocks.len(), len)
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
        let ids: Vec<(BlockId, Option<(ObjectNumber, Lba)>)> = match &frame.operation {
            LoggedOperation::Write { object, first, mappings } => (first.0..)
                .zip(mappings)
                .filter_map(|(lba, mapping)| match mapping {
                    MappingRecord::New { block, .. } => Some((*block, Some((*object, Lba(lba))))),
                    _ => None,
                })
                .collect(),
            LoggedOperation::Moved { blocks } => blocks.iter().map(|(block, _, _)| (*block, None)).collect(),
            _ => Vec::new(),
        };
        let base = batch_start + u32::try_from(frame.payload_offset).expect("within a segment");
        for ((block, written_at), (from, len, _)) in ids.into_iter().zip(frame.operation.payloads()) {
            let offset = base + u32::try_from(from).expect("within a segment");
            let len = u16::try_from(len).expect("at most 4096");
            found.push(Found { block, location: Location { segment, offset, len }, written_at });
        }
    }
    found
}
