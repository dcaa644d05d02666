//! The bytes of each structure, as they were when version 4 was fixed. A change here is a change of the format: it
//! takes a new version.

use std::fmt::Write as _;

use sinter::format::batch::Batch;
use sinter::format::checksum;
use sinter::format::objects::{SegmentEntry, decode_slot, encode_slot};
use sinter::format::page::{BlockEntry, PAGE_BYTES, PagePointer, decode_page, encode_padding};
use sinter::format::root::CheckpointRoot;
use sinter::format::segment::SegmentHeader;
use sinter::format::superblock::Superblock;
use sinter::units::BlockId;

use crate::samples;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Each line is one of `golden.txt`.
fn compare(mut lines: Vec<String>) {
    lines.retain(|line| !include_str!("golden.txt").lines().any(|golden| golden == line));
    assert!(lines.is_empty(), "the format has changed:\n{}", lines.join("\n"));
}

fn entry_bytes(put: impl Fn(&mut [u8; PAGE_BYTES])) -> Vec<u8> {
    let mut page = [0u8; PAGE_BYTES];
    put(&mut page);
    page[32..64].to_vec()
}

#[test]
fn short_structures() {
    let structures = [
        ("segment header", samples::segment_header().encode()),
        ("batch header", samples::batch_header().encode(std::iter::empty()).0),
        ("page pointer", samples::page_pointer().encode().to_vec()),
        ("block entry", entry_bytes(|page| samples::block_entry().put(page, BlockId(1)))),
        ("segment entry", entry_bytes(|page| samples::segment_entry().put(page, 1))),
        ("padding", encode_padding(64, samples::POOL)),
    ];
    compare(structures.map(|(name, bytes)| format!("{name}: {}", hex(&bytes))).to_vec());
}

#[test]
fn long_structures_by_their_checksums() {
    let mut structures = vec![
        ("superblock".to_owned(), samples::superblock().encode()),
        ("checkpoint root".to_owned(), samples::checkpoint_root().encode()),
        ("object slot".to_owned(), encode_slot(Some(&samples::object_slot())).to_vec()),
        ("batch".to_owned(), samples::batch(&samples::operations()[..6])),
    ];
    for (index, operation) in samples::operations().iter().enumerate() {
        structures.push((format!("operation {}", index + 1), operation.encode(64)));
    }
    let line = |(name, bytes): (String, Vec<u8>)| {
        format!("{name}: {} bytes, {:016x}", bytes.len(), checksum(&bytes))
    };
    compare(structures.into_iter().map(line).collect());
}

#[test]
fn everything_reads_back() {
    assert_eq!(Superblock::decode(&samples::superblock().encode()), Some(samples::superblock()));
    assert_eq!(SegmentHeader::decode(&samples::segment_header().encode()), Some(samples::segment_header()));
    assert_eq!(
        CheckpointRoot::decode(&samples::checkpoint_root().encode()),
        Some(samples::checkpoint_root())
    );
    let slot = encode_slot(Some(&samples::object_slot()));
    assert_eq!(decode_slot(&slot), Some(Some(samples::object_slot())));
    assert_eq!(decode_slot(&encode_slot(None)), Some(None));
    assert_eq!(PagePointer::decode(&samples::page_pointer().encode()), Some(samples::page_pointer()));
    let mut page = [0u8; PAGE_BYTES];
    samples::segment_entry().put(&mut page, 127);
    assert_eq!(SegmentEntry::at(&page, 127), Some(samples::segment_entry()));
    samples::block_entry().put(&mut page, BlockId(300));
    assert_eq!(BlockEntry::at(&page, BlockId(300)), samples::block_entry());
    let stored = samples::page();
    let pointer = PagePointer { checksum: checksum(&stored), ..samples::page_pointer() };
    let (facts, page) = decode_page(&stored, samples::page_key(), &pointer, samples::POOL).unwrap();
    assert_eq!((facts, *page), (samples::page_facts(), [7; PAGE_BYTES]));
    let operations = samples::operations();
    // The payload of the one that was moved is not what its checksum says.
    for part in [&operations[..5], &operations[6..]] {
        let bytes = samples::batch(part);
        let batch = Batch::decode(&bytes, true).unwrap();
        let back: Vec<_> = batch.frames().map(|frame| frame.unwrap().operation).collect();
        assert_eq!(back, part);
    }
}
