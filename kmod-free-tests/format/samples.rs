//! One of each structure, with a value of its own in each field.

use sinter::format::batch::{BatchHeader, BatchKind, LoggedOperation, MappingRecord};
use sinter::format::location::Location;
use sinter::format::objects::{ObjectSlot, SegmentEntry};
use sinter::format::operation::CloneRecord;
use sinter::format::page::{BlockEntry, PAGE_BYTES, PageFacts, PageKey, PagePointer, Table, encode_page};
use sinter::format::root::{CheckpointRoot, PendingChange, SegmentChange, TableRoot};
use sinter::format::segment::{SegmentHeader, SegmentKind};
use sinter::format::superblock::{DeviceRecord, RootExtent, Superblock};
use sinter::units::{
    BlockCount, BlockId, ByteCount, CheckpointNumber, Epoch, Fingerprint, Incarnation, Lba, Lsn, MapNodeId,
    ObjectNumber, SegmentId, Uuid,
};

pub(crate) const POOL: u64 = 0x0706_0504_0302_0100;

pub(crate) fn location(seed: u32) -> Location {
    Location { segment: SegmentId(seed), offset: seed * 16, len: 100 + seed as u16 }
}

pub(crate) fn superblock() -> Superblock {
    let extent = |seed: u32| RootExtent {
        start: location(seed),
        len: 4096 + seed,
        checksum: 0x1111_2222_3333_0000 + u64::from(seed),
    };
    Superblock {
        pool: Uuid(std::array::from_fn(|index| index as u8)),
        fingerprint_key: std::array::from_fn(|index| 0x40 + index as u8),
        device: 0,
        devices: vec![DeviceRecord { id: Uuid([0xd1; 16]), segments: 77 }],
        segment_bytes: ByteCount(1 << 22),
        created: 1_700_000_000_123,
        checkpoint: CheckpointNumber(41),
        incarnation: Incarnation(0xabcd),
        root: vec![extent(5)],
        root_copy: vec![extent(6)],
    }
}

pub(crate) fn segment_header() -> SegmentHeader {
    SegmentHeader {
        pool: POOL,
        segment: SegmentId(9),
        kind: SegmentKind::Log,
        incarnation: Incarnation(0xabcd),
        sequence: 1234,
        erases: 56,
        successor: SegmentId(10),
    }
}

pub(crate) fn batch_header() -> BatchHeader {
    BatchHeader {
        kind: BatchKind::Log,
        len: 128,
        operations: 1,
        first_lsn: Lsn(1001),
        epoch: Epoch { generation: 2, number: 3 },
        incarnation: Incarnation(0xabcd),
        previous: 0x0102_0304_0506_0708,
        durable_lsn: Lsn(1000),
        durable_checkpoint: 41,
        pool: POOL,
    }
}

/// Every kind of operation.
pub(crate) fn operations() -> Vec<LoggedOperation> {
    let new = |block: u64| MappingRecord::New {
        block: BlockId(block),
        stored_len: 20,
        fingerprint: Fingerprint([block as u8; 16]),
        checksum: sinter::format::checksum(&[block as u8; 20]),
    };
    let object = ObjectNumber(7);
    vec![
        LoggedOperation::Write {
            object,
            first: Lba(70),
            mappings: vec![
                MappingRecord::Hole,
                MappingRecord::Pattern(0xdead_beef),
                new(500),
                new(501),
                MappingRecord::Existing { block: BlockId(3), dead_len: 0 },
                MappingRecord::Existing { block: BlockId(4), dead_len: 17 },
                MappingRecord::Lost,
            ],
        },
        LoggedOperation::Zero { object, first: Lba(9), count: BlockCount(1 << 20) },
        LoggedOperation::CreateObject { object, size: BlockCount(2560), opaque: b"opaque".to_vec() },
        LoggedOperation::UpdateObject { object, size: BlockCount(5120), opaque: b"other".to_vec() },
        LoggedOperation::DeleteObject { object },
        LoggedOperation::Moved { blocks: vec![(BlockId(500), 20, 0x99)] },
        LoggedOperation::CloneObjects {
            clones: vec![
                CloneRecord { object: ObjectNumber(8), source: object, opaque: b"snapshot".to_vec() },
                CloneRecord { object: ObjectNumber(9), source: ObjectNumber(6), opaque: b"another".to_vec() },
            ],
        },
        LoggedOperation::RestoreObject {
            object,
            source: ObjectNumber(8),
            size: BlockCount(5120),
            opaque: b"again".to_vec(),
        },
    ]
}

/// The payloads of an operation of `operations`, padding included.
fn payload_of(operation: &LoggedOperation) -> Vec<u8> {
    match operation {
        LoggedOperation::Write { .. } => [500u64, 501, 4]
            .into_iter()
            .flat_map(|block| {
                let mut stored = vec![block as u8; if block == 4 { 17 } else { 20 }];
                stored.resize(32, 0);
                stored
            })
            .collect(),
        LoggedOperation::Moved { .. } => vec![1; 32],
        _ => Vec::new(),
    }
}

/// A whole batch of the given operations.
pub(crate) fn batch(operations: &[LoggedOperation]) -> Vec<u8> {
    let payloads: Vec<Vec<u8>> = operations.iter().map(payload_of).collect();
    let records: Vec<Vec<u8>> = operations
        .iter()
        .zip(&payloads)
        .map(|(operation, payload)| operation.encode(payload.len()))
        .collect();
    let len = 128 + records.iter().chain(&payloads).map(Vec::len).sum::<usize>();
    let header = BatchHeader { len: len as u32, operations: operations.len() as u32, ..batch_header() };
    let (mut bytes, _) = header.encode(records.iter().map(Vec::as_slice));
    for (records, payload) in records.iter().zip(&payloads) {
        bytes.extend_from_slice(records);
        bytes.extend_from_slice(payload);
    }
    bytes
}

pub(crate) fn page_pointer() -> PagePointer {
    PagePointer { location: location(3), copy: location(4), checksum: 0x5555_6666, version: 8 }
}

pub(crate) fn page_key() -> PageKey {
    PageKey { level: 1, table: Table::Nodes, number: 12 }
}

pub(crate) fn page_facts() -> PageFacts {
    PageFacts { version: 8, node_level: 2, mapped: BlockCount(300) }
}

/// A page that compresses.
pub(crate) fn page() -> Vec<u8> {
    encode_page(page_key(), page_facts(), &[7; PAGE_BYTES], POOL)
}

pub(crate) fn block_entry() -> BlockEntry {
    BlockEntry {
        location: location(3),
        crowded: true,
        fingerprint: Fingerprint(std::array::from_fn(|index| 0x20 + index as u8)),
        checksum: 0x7777_8888,
    }
}

pub(crate) fn object_slot() -> ObjectSlot {
    ObjectSlot {
        number: ObjectNumber(7),
        root: MapNodeId(19),
        root_level: 2,
        size: BlockCount(2560),
        mapped: BlockCount(300),
        opaque: b"opaque".to_vec(),
    }
}

pub(crate) fn segment_entry() -> SegmentEntry {
    SegmentEntry {
        kind: SegmentKind::Moved,
        allocated: true,
        damaged: true,
        live_bytes: 4000,
        erases: 56,
        sequence: 1234,
    }
}

pub(crate) fn checkpoint_root() -> CheckpointRoot {
    CheckpointRoot {
        number: CheckpointNumber(41),
        lsn: Lsn(1000),
        epoch: Epoch { generation: 2, number: 3 },
        log_incarnation: Incarnation(0xabcd),
        log_segment: SegmentId(9),
        log_offset: 8192,
        log_successor: SegmentId(10),
        log_chain: 0x0102_0304_0506_0708,
        next_sequence: 1235,
        next_object: 8,
        next_block: BlockId(502),
        next_node: MapNodeId(20),
        tables: std::array::from_fn(|index| TableRoot { height: index as u8, pointer: page_pointer() }),
        block_changes: vec![PendingChange { id: BlockId(500), delta: -1 }],
        node_changes: vec![PendingChange { id: MapNodeId(19), delta: 2 }],
        release_queue: vec![MapNodeId(18)],
        segment_changes: vec![SegmentChange {
            segment: SegmentId(3),
            kind: SegmentKind::Metadata,
            live_bytes: -160,
            erases: 4,
        }],
        syncing: true,
        borrowers: vec![(MapNodeId(17), MapNodeId(16))],
        ..CheckpointRoot::default()
    }
}
