//! Decoders are total: any bytes give an answer, what was encoded reads back, and a change is noticed.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use sinter::format::batch::{Batch, BatchHeader, LoggedOperation, MappingRecord};
use sinter::format::checksum;
use sinter::format::objects::{SegmentEntry, decode_slot, encode_slot};
use sinter::format::operation::{CLONES_MAX, CloneRecord};
use sinter::format::page::{
    BlockEntry, Mapping, PAGE_BYTES, PageHeader, PagePointer, decode_page, encode_padding, encode_page,
};
use sinter::format::root::{CheckpointRoot, PendingChange};
use sinter::format::segment::SegmentHeader;
use sinter::format::superblock::Superblock;
use sinter::units::{BlockCount, BlockId, Fingerprint, Lba, ObjectNumber};

use crate::samples::{self, POOL};

/// Every decoder, on the same bytes.
fn decode_all(bytes: &[u8]) {
    let _ = Superblock::decode(bytes);
    let _ = SegmentHeader::decode(bytes);
    let _ = BatchHeader::peek(bytes);
    for with_payloads in [false, true] {
        if let Some(batch) = Batch::decode(bytes, with_payloads) {
            assert!(batch.frames().count() <= 256);
        }
    }
    if let Some(header) = PageHeader::decode(bytes, POOL) {
        assert!(header.stride() >= 64);
    }
    let pointer = PagePointer { checksum: checksum(bytes), ..samples::page_pointer() };
    let _ = decode_page(bytes, samples::page_key(), &pointer, POOL);
    let _ = PagePointer::decode(bytes);
    if let Some(root) = CheckpointRoot::decode(bytes) {
        assert!(root.block_changes.len() * 12 <= bytes.len());
    }
    let mut page = Box::new([0u8; PAGE_BYTES]);
    let len = bytes.len().min(PAGE_BYTES);
    page[..len].copy_from_slice(&bytes[..len]);
    let _ = decode_slot(&page);
    for slot in 0..128 {
        let _ = SegmentEntry::at(&page, slot);
        let _ = PagePointer::at(&page, slot);
        let _ = BlockEntry::at(&page, BlockId(slot as u64));
    }
    for word in bytes.as_chunks::<8>().0 {
        let _ = Mapping::unpack(u64::from_le_bytes(*word));
    }
}

/// Encodings of everything; the first ones carry checksums.
fn encodings() -> Vec<Vec<u8>> {
    vec![
        samples::superblock().encode(),
        samples::segment_header().encode(),
        samples::batch(&samples::operations()),
        samples::page(),
        encode_padding(256, POOL),
        samples::checkpoint_root().encode(),
        encode_slot(Some(&samples::object_slot())).to_vec(),
    ]
}

/// Puts the checksum right again, where `kind` has one, so that what lies behind it is reached.
fn sign(kind: usize, bytes: &mut [u8]) {
    let summed = match kind {
        0 => 4088,
        1 => 120,
        3 | 4 => 56,
        _ => return,
    };
    let sum = checksum(&bytes[..summed]);
    bytes[summed..summed + 8].copy_from_slice(&sum.to_le_bytes());
}

fn mapping() -> impl Strategy<Value = MappingRecord> {
    prop_oneof![
        Just(MappingRecord::Hole),
        Just(MappingRecord::Lost),
        any::<u32>().prop_map(MappingRecord::Pattern),
        (0u64..1 << 48, 1u16..=4096, any::<[u8; 16]>(), any::<u64>()).prop_map(
            |(block, stored_len, fingerprint, checksum)| MappingRecord::New {
                block: BlockId(block),
                stored_len,
                fingerprint: Fingerprint(fingerprint),
                checksum,
            }
        ),
        // Ids that follow on each other have a shorter form.
        (5u64..9).prop_map(|block| MappingRecord::New {
            block: BlockId(block),
            stored_len: 64,
            fingerprint: Fingerprint([1; 16]),
            checksum: 0,
        }),
        (0u64..1 << 48, 0u16..=4096)
            .prop_map(|(block, dead_len)| MappingRecord::Existing { block: BlockId(block), dead_len }),
    ]
}

fn operation() -> impl Strategy<Value = LoggedOperation> {
    let (object, first) = (ObjectNumber(7), Lba(9));
    prop_oneof![
        vec(mapping(), 1..40).prop_map(move |mappings| LoggedOperation::Write { object, first, mappings }),
        any::<u64>().prop_map(move |count| LoggedOperation::Zero { object, first, count: BlockCount(count) }),
        (any::<u64>(), vec(any::<u8>(), 0..600)).prop_map(move |(size, opaque)| {
            LoggedOperation::CreateObject { object, size: BlockCount(size), opaque }
        }),
        (any::<u64>(), vec(any::<u8>(), 0..600)).prop_map(move |(size, opaque)| {
            LoggedOperation::UpdateObject { object, size: BlockCount(size), opaque }
        }),
        Just(LoggedOperation::DeleteObject { object }),
        vec((any::<u64>(), any::<u64>(), vec(any::<u8>(), 0..200)), 0..=CLONES_MAX).prop_map(|clones| {
            let clone = |(object, source, opaque)| CloneRecord {
                object: ObjectNumber(object),
                source: ObjectNumber(source),
                opaque,
            };
            LoggedOperation::CloneObjects { clones: clones.into_iter().map(clone).collect() }
        }),
        (any::<u64>(), any::<u64>(), vec(any::<u8>(), 0..600)).prop_map(move |(source, size, opaque)| {
            let (source, size) = (ObjectNumber(source), BlockCount(size));
            LoggedOperation::RestoreObject { object, source, size, opaque }
        }),
        vec((0u64..1 << 48, 0u16..=4096, any::<u64>()), 0..20).prop_map(|blocks| LoggedOperation::Moved {
            blocks: blocks.into_iter().map(|(block, len, sum)| (BlockId(block), len, sum)).collect()
        }),
    ]
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(bytes in vec(any::<u8>(), 0..5000)) {
        decode_all(&bytes);
    }

    #[test]
    fn damaged_encodings_give_an_answer(
        kind in 0usize..7,
        damage in vec((any::<Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<Index>()),
        signed in any::<bool>(),
    ) {
        let mut bytes = encodings()[kind].clone();
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if signed {
            sign(kind, &mut bytes);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        decode_all(&bytes);
    }

    #[test]
    fn one_bit_is_noticed_wherever_a_checksum_goes(kind in 0usize..4, place in any::<Index>(), bit in 0u32..8) {
        let good = encodings()[kind].clone();
        let mut bytes = good.clone();
        // Of a batch: its header, and the records of its first frame; payloads have checksums of their own.
        let len = if kind == 2 { 128 + 128 } else { bytes.len() };
        let place = place.index(len);
        bytes[place] ^= 1 << bit;
        let pointer = PagePointer { checksum: checksum(&good), ..samples::page_pointer() };
        match kind {
            0 => prop_assert!(Superblock::decode(&bytes).is_none()),
            1 => prop_assert!(SegmentHeader::decode(&bytes).is_none()),
            2 => prop_assert!(Batch::decode(&bytes, false).is_none()),
            _ => prop_assert!(decode_page(&bytes, samples::page_key(), &pointer, POOL).is_none()),
        }
    }

    #[test]
    fn operations_read_back(operations in vec(operation(), 0..6)) {
        let records: Vec<Vec<u8>> = operations.iter().map(|operation| {
            let payload = payload_bytes(operation);
            let mut frame = operation.encode(payload);
            frame.resize(frame.len() + payload, 0);
            frame
        }).collect();
        let heads = records.iter().zip(&operations).map(|(frame, operation)| {
            &frame[..frame.len() - payload_bytes(operation)]
        });
        let len = 128 + records.iter().map(Vec::len).sum::<usize>();
        let header = BatchHeader { len: len as u32, operations: operations.len() as u32, ..samples::batch_header() };
        let (mut bytes, sum) = header.encode(heads);
        bytes.extend(records.concat());
        let batch = Batch::decode(&bytes, false).unwrap();
        prop_assert_eq!((batch.header, batch.checksum), (header, sum));
        let back: Vec<LoggedOperation> = batch.frames().map(|frame| frame.unwrap().operation).collect();
        prop_assert_eq!(back, operations);
    }

    #[test]
    fn pages_read_back(words in vec(any::<u64>(), 0..512), version in any::<u32>()) {
        let mut page = [0u8; PAGE_BYTES];
        for (word, place) in words.iter().zip(page.chunks_mut(8)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let facts = sinter::format::page::PageFacts { version, ..samples::page_facts() };
        let stored = encode_page(samples::page_key(), facts, &page, POOL);
        let pointer = PagePointer { checksum: checksum(&stored), version, ..samples::page_pointer() };
        let (found, back) = decode_page(&stored, samples::page_key(), &pointer, POOL).unwrap();
        prop_assert_eq!((found, *back), (facts, page));
        let other = PagePointer { version: version.wrapping_add(1), ..pointer };
        prop_assert!(decode_page(&stored, samples::page_key(), &other, POOL).is_none());
        prop_assert!(decode_page(&stored, samples::page_key(), &pointer, POOL + 1).is_none());
    }

    #[test]
    fn roots_read_back(ids in vec((any::<u64>(), any::<i32>()), 0..200), padding in 0usize..100) {
        let changes = ids.iter().map(|(id, delta)| PendingChange { id: BlockId(*id), delta: *delta }).collect();
        let root = CheckpointRoot { block_changes: changes, ..samples::checkpoint_root() };
        let mut bytes = root.encode();
        bytes.resize(bytes.len() + padding, 0);
        prop_assert_eq!(CheckpointRoot::decode(&bytes), Some(root));
    }

    #[test]
    fn mappings_read_back(word in any::<u32>(), block in 0u64..1 << 48) {
        for mapping in [Mapping::Hole, Mapping::Pattern(word), Mapping::Block(BlockId(block)), Mapping::Lost] {
            let packed = mapping.pack();
            prop_assert_eq!(Mapping::unpack(packed), mapping);
            // Borrowed or not, it names the same.
            let borrowed = Mapping::borrowed(packed);
            prop_assert_eq!(Mapping::unpack(borrowed), mapping);
            prop_assert_eq!(Mapping::owned(borrowed), packed);
            let is_block = matches!(mapping, Mapping::Block(_));
            prop_assert_eq!((Mapping::is_borrowed(borrowed), Mapping::is_borrowed(packed)), (is_block, false));
            prop_assert_eq!(Mapping::owned_block(borrowed), None);
            prop_assert_eq!(Mapping::owned_block(packed).is_some(), is_block);
        }
    }
}

/// Bytes of an operation's payloads, padding included.
fn payload_bytes(operation: &LoggedOperation) -> usize {
    let lens: Vec<u16> = match operation {
        LoggedOperation::Write { mappings, .. } => mappings
            .iter()
            .map(|mapping| match mapping {
                MappingRecord::New { stored_len, .. } => *stored_len,
                MappingRecord::Existing { dead_len, .. } => *dead_len,
                _ => 0,
            })
            .collect(),
        LoggedOperation::Moved { blocks } => blocks.iter().map(|(_, len, _)| *len).collect(),
        _ => Vec::new(),
    };
    lens.into_iter().map(|len| usize::from(len).next_multiple_of(16)).sum()
}

#[test]
fn lengths_that_nothing_can_hold_are_refused() {
    let mut root = samples::checkpoint_root().encode();
    // The length of the first list.
    root[492..500].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(CheckpointRoot::decode(&root).is_none());
    root[492..500].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert!(CheckpointRoot::decode(&root).is_none());
    let mut slot = encode_slot(Some(&samples::object_slot()));
    slot[34..36].copy_from_slice(&u16::MAX.to_le_bytes());
    assert!(decode_slot(&slot).is_none());
    let clones = |count| {
        let record = CloneRecord { object: ObjectNumber(8), source: ObjectNumber(7), opaque: Vec::new() };
        samples::batch(&[LoggedOperation::CloneObjects { clones: vec![record; count] }])
    };
    assert!(Batch::decode(&clones(CLONES_MAX), true).is_some());
    assert!(Batch::decode(&clones(CLONES_MAX + 1), true).is_none());
    let mut superblock = samples::superblock().encode();
    superblock[10..12].copy_from_slice(&65u16.to_le_bytes());
    sign(0, &mut superblock);
    assert!(Superblock::decode(&superblock).is_none());
}
