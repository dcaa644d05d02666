//! Every decoder of the media format. The first byte chooses one; where it has a checksum over a fixed stretch, the
//! checksum is put right, so that what lies behind it is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sinter::format::batch::{Batch, BatchHeader};
use sinter::format::checksum;
use sinter::format::objects::{SegmentEntry, decode_slot};
use sinter::format::page::{
    BlockEntry, Mapping, PAGE_BYTES, PageHeader, PageKey, PagePointer, Table, decode_page,
};
use sinter::format::root::CheckpointRoot;
use sinter::format::segment::SegmentHeader;
use sinter::format::superblock::Superblock;
use sinter::units::BlockId;

fn signed(bytes: &[u8], summed: usize) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let sum = checksum(bytes.get(..summed)?);
    bytes.get_mut(summed..summed + 8)?.copy_from_slice(&sum.to_le_bytes());
    Some(bytes)
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    match choice % 8 {
        0 => {
            let _ = signed(bytes, 4088).and_then(|bytes| Superblock::decode(&bytes));
        }
        1 => {
            let _ = signed(bytes, 120).and_then(|bytes| SegmentHeader::decode(&bytes));
        }
        2 | 3 => {
            let _ = BatchHeader::peek(bytes);
            if let Some(batch) = Batch::decode(bytes, choice % 8 == 3) {
                assert!(batch.frames().all(|frame| frame.is_some()));
            }
        }
        4 => {
            let _ = CheckpointRoot::decode(bytes);
        }
        5 => {
            let Some(bytes) = signed(bytes, 56) else { return };
            let Some(header) = PageHeader::decode(&bytes, 0) else { return };
            let key = header.key.unwrap_or(PageKey::leaf(Table::Blocks, 0));
            let pointer = PagePointer {
                checksum: checksum(&bytes),
                version: header.facts.version,
                ..PagePointer::default()
            };
            let _ = decode_page(&bytes, key, &pointer, 0);
        }
        _ => {
            let mut page = [0u8; PAGE_BYTES];
            let len = bytes.len().min(PAGE_BYTES);
            page[..len].copy_from_slice(&bytes[..len]);
            let _ = decode_slot(&page);
            for slot in 0..128 {
                let _ = SegmentEntry::at(&page, slot);
                let _ = PagePointer::at(&page, slot);
                let _ = BlockEntry::at(&page, BlockId(slot as u64));
            }
            for word in page.as_chunks::<8>().0 {
                let _ = Mapping::unpack(u64::from_le_bytes(*word));
            }
        }
    }
});
