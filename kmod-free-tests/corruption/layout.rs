//! Where the live bytes of a pool lie: a reader of the medium that knows the format, and nothing of the store.

use sinter::device::Device;
use sinter::device::faulty::FaultyDisk;
use sinter::format::batch::{BATCH_HEADER_BYTES, Batch, BatchHeader, BatchKind};
use sinter::format::location::Location;
use sinter::format::page::{
    BLOCK_ENTRIES_PER_PAGE, BlockEntry, POINTERS_PER_PAGE, PageKey, PagePointer, Table, decode_page,
};
use sinter::format::root::CheckpointRoot;
use sinter::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use sinter::format::superblock::{
    RootExtent, SUPERBLOCK_AREA_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SLOT_BYTES, Superblock,
};
use sinter::format::{SYNC_UNIT_BYTES, checksum};
use sinter::units::{BlockId, DeviceOffset, SegmentId};

use crate::pool::SEGMENT_BYTES;

/// What the bytes at some place are needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The newest superblock, at either end.
    Superblock,
    /// The root of the checkpoint, or its copy.
    Root,
    /// A page that has a copy, or that copy.
    PageTwice(Table),
    /// A page that is there once.
    PageOnce(Table),
    /// The stored bytes of a block of the checkpoint.
    Block,
    /// A batch of the log behind the checkpoint that holds operations.
    Batch,
    /// The header of a segment that the log behind the checkpoint has entered.
    LogSegmentHeader,
}

/// A stretch of the device, and what it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) role: Role,
}

struct Reader<'a> {
    disk: &'a FaultyDisk,
    pool: u64,
    live: Vec<Live>,
}

fn device_offset(segment: SegmentId, offset: u32) -> u64 {
    SUPERBLOCK_AREA_BYTES + u64::from(segment.0) * SEGMENT_BYTES + u64::from(offset)
}

impl Reader<'_> {
    fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; len];
        self.disk.read_stable(DeviceOffset(offset), &mut bytes);
        bytes
    }

    fn located(&self, location: Location) -> Vec<u8> {
        self.bytes(device_offset(location.segment, location.offset), usize::from(location.len))
    }

    fn note(&mut self, location: Location, role: Role) {
        let offset = device_offset(location.segment, location.offset);
        self.live.push(Live { offset, len: u64::from(location.len), role });
    }

    fn superblock(&mut self) -> Superblock {
        let end = self.disk.len().0 - SUPERBLOCK_AREA_BYTES;
        let places = [0, SUPERBLOCK_SLOT_BYTES, end, end + SUPERBLOCK_SLOT_BYTES];
        let found: Vec<(u64, Superblock)> = places
            .into_iter()
            .filter_map(|at| Superblock::decode(&self.bytes(at, SUPERBLOCK_BYTES)).map(|found| (at, found)))
            .collect();
        let newest = found.iter().map(|(_, superblock)| superblock.checkpoint).max().unwrap();
        for (offset, _) in found.iter().filter(|(_, superblock)| superblock.checkpoint == newest) {
            self.live.push(Live { offset: *offset, len: SUPERBLOCK_BYTES as u64, role: Role::Superblock });
        }
        found.into_iter().find(|(_, superblock)| superblock.checkpoint == newest).unwrap().1
    }

    fn root(&mut self, extents: &[RootExtent]) -> CheckpointRoot {
        let mut bytes = Vec::new();
        for extent in extents {
            let offset = device_offset(extent.start.segment, extent.start.offset);
            let piece = self.bytes(offset, extent.len as usize);
            assert_eq!(checksum(&piece), extent.checksum);
            self.live.push(Live { offset, len: u64::from(extent.len), role: Role::Root });
            bytes.extend(piece);
        }
        CheckpointRoot::decode(&bytes).unwrap()
    }

    fn table(&mut self, key: PageKey, pointer: PagePointer) {
        if pointer.is_none() {
            return;
        }
        let stored = self.located(pointer.location);
        let (_, page) = decode_page(&stored, key, &pointer, self.pool).unwrap();
        if pointer.copy.is_none() {
            self.note(pointer.location, Role::PageOnce(key.table));
        } else {
            assert_eq!(self.located(pointer.copy), stored);
            self.note(pointer.location, Role::PageTwice(key.table));
            self.note(pointer.copy, Role::PageTwice(key.table));
        }
        for slot in 0..POINTERS_PER_PAGE {
            if key.level > 0 {
                let number = key.number * POINTERS_PER_PAGE + slot;
                let below = PagePointer::at(&page, slot as usize);
                self.table(PageKey { level: key.level - 1, table: key.table, number }, below);
            }
        }
        if key.level == 0 && key.table == Table::Blocks {
            for slot in 0..BLOCK_ENTRIES_PER_PAGE {
                let entry = BlockEntry::at(&page, BlockId(slot));
                if !entry.location.is_none() {
                    assert_eq!(checksum(&self.located(entry.location)), entry.checksum);
                    self.note(entry.location, Role::Block);
                }
            }
        }
    }

    fn log(&mut self, root: &CheckpointRoot) {
        let (mut segment, mut offset) = (root.log_segment, u64::from(root.log_offset));
        let (mut successor, mut chain) = (root.log_successor, root.log_chain);
        loop {
            let aligned = offset.next_multiple_of(SYNC_UNIT_BYTES as u64);
            let at = [offset, aligned].into_iter().find(|at| self.batch(segment, *at, chain).is_some());
            if let Some(at) = at {
                let (len, sum) = self.batch(segment, at, chain).unwrap();
                chain = sum;
                offset = at + len;
                self.note_batch(device_offset(segment, 0) + at, len as usize);
                continue;
            }
            let start = device_offset(successor, 0);
            let header = SegmentHeader::decode(&self.bytes(start, SEGMENT_HEADER_BYTES));
            let Some(header) = header.filter(|header| header.incarnation == root.log_incarnation) else {
                return;
            };
            if self.batch(successor, SEGMENT_HEADER_BYTES as u64, chain).is_none() {
                return;
            }
            let len = SEGMENT_HEADER_BYTES as u64;
            self.live.push(Live { offset: start, len, role: Role::LogSegmentHeader });
            (segment, offset, successor) = (successor, len, header.successor);
        }
    }

    fn batch(&self, segment: SegmentId, offset: u64, chain: u64) -> Option<(u64, u64)> {
        if offset + BATCH_HEADER_BYTES as u64 > SEGMENT_BYTES {
            return None;
        }
        let bytes = self.bytes(device_offset(segment, 0) + offset, (SEGMENT_BYTES - offset) as usize);
        let batch = Batch::decode(&bytes, true)?;
        let BatchHeader { kind, previous, len, .. } = batch.header;
        (kind == BatchKind::Log && previous == chain).then_some((u64::from(len), batch.checksum))
    }

    /// Header, records and needed payloads of a batch, if it holds any operation.
    fn note_batch(&mut self, start: u64, len: usize) {
        let bytes = self.bytes(start, len);
        let batch = Batch::decode(&bytes, true).unwrap();
        if batch.header.operations == 0 {
            return;
        }
        let mut end = BATCH_HEADER_BYTES;
        self.live.push(Live { offset: start, len: end as u64, role: Role::Batch });
        for frame in batch.frames() {
            let frame = frame.unwrap();
            let records = frame.payload_offset - end;
            self.live.push(Live { offset: start + end as u64, len: records as u64, role: Role::Batch });
            for (offset, len, _) in frame.operation.payloads() {
                let offset = start + (frame.payload_offset + offset) as u64;
                self.live.push(Live { offset, len: len as u64, role: Role::Batch });
            }
            end = frame.payload_offset + frame.payload.len();
        }
    }
}

/// Every live stretch of the medium, in order.
pub(crate) fn live_stretches(disk: &FaultyDisk) -> Vec<Live> {
    let mut reader = Reader { disk, pool: 0, live: Vec::new() };
    let superblock = reader.superblock();
    reader.pool = u64::from_le_bytes(superblock.pool.0[..8].try_into().unwrap());
    let root = reader.root(&superblock.root);
    assert_eq!(reader.root(&superblock.root_copy), root);
    for table in Table::ALL {
        let top = root.tables[table.index()];
        reader.table(PageKey { level: top.height, table, number: 0 }, top.pointer);
    }
    reader.log(&root);
    reader.live.sort_by_key(|live| live.offset);
    reader.live
}
