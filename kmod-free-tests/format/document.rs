//! `docs/ON-DISK-FORMAT.md` says what the code does.

use sinter::format::batch::{
    BATCH_HEADER_BYTES, BATCH_OPERATIONS_MAX, BatchKind, FRAME_HEADER_BYTES, LoggedOperation,
};
use sinter::format::location::SEGMENTS_MAX;
use sinter::format::objects::{OBJECTS_MAX, OPAQUE_BYTES_MAX, encode_slot};
use sinter::format::operation::CLONES_MAX;
use sinter::format::page::{
    BLOCK_ENTRY_BYTES, NODE_ENTRIES, PAGE_BYTES, PAGE_HEADER_BYTES, PAGE_POINTER_BYTES, PageFacts, PageKey,
    SEGMENT_ENTRY_BYTES, Table, encode_page,
};
use sinter::format::segment::{SEGMENT_HEADER_BYTES, SegmentKind};
use sinter::format::superblock::{
    DEVICES_MAX, ROOT_EXTENTS_MAX, SUPERBLOCK_AREA_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SLOT_BYTES,
};
use sinter::format::{FORMAT_VERSION, GRAIN_BYTES, SYNC_UNIT_BYTES};
use sinter::store::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use sinter::units::{BLOCK_BYTES, BlockCount, BlockId, Lba, Lsn, MapNodeId, ObjectNumber, SegmentId, Uuid};

use crate::samples;

const DOCUMENT: &str = include_str!("../../docs/ON-DISK-FORMAT.md");

/// A line of a field table.
#[derive(Debug)]
struct Field {
    offset: usize,
    /// `None` for one that goes on to the end.
    size: Option<usize>,
    name: String,
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim_matches([' ', '|'])).collect())
}

fn layout(name: &str) -> Vec<Field> {
    let marker = format!("<!-- layout: {name} -->");
    let (_, table) = DOCUMENT.split_once(&marker).unwrap_or_else(|| panic!("no table of {name}"));
    rows(table)
        .map(|cells| {
            let (size, name) =
                if cells.len() == 3 { (cells[1].parse().ok(), cells[2]) } else { (None, cells[1]) };
            Field { offset: cells[0].parse().unwrap(), size, name: name.to_owned() }
        })
        .collect()
}

/// The table covers the structure without a gap, and each change of one field changes bytes of its line alone (and
/// of the checksum that goes over it).
fn compare(structure: &str, len: usize, plain: &[u8], changed: &[(&str, Vec<u8>)]) {
    let fields = layout(structure);
    let mut at = 0;
    for field in &fields {
        // The superblock's zeros before its checksum have no line.
        assert!(
            field.offset == at || structure == "superblock",
            "{structure}: {field:?} does not begin at {at}"
        );
        at = field.offset + field.size.unwrap_or(0);
    }
    assert!(
        at == len || fields.last().unwrap().size.is_none(),
        "{structure}: the table ends at {at}, not {len}"
    );
    let own_sum = fields
        .last()
        .filter(|field| field.name.starts_with("checksum of the 4088") || field.name == "checksum");
    for (name, bytes) in changed {
        let field = fields.iter().find(|field| field.name.starts_with(name));
        let field = field.unwrap_or_else(|| panic!("{structure}: no field {name}"));
        let end = field.size.map_or(plain.len().max(bytes.len()), |size| field.offset + size);
        let differing: Vec<usize> = (0..plain.len().max(bytes.len()))
            .filter(|at| plain.get(*at) != bytes.get(*at))
            .filter(|at| own_sum.is_none_or(|sum| *at < sum.offset || *at >= sum.offset + 8))
            .collect();
        assert!(!differing.is_empty(), "{structure}: nothing stands for {name}");
        let astray = differing.iter().find(|at| !(field.offset..end).contains(at));
        assert!(astray.is_none(), "{structure}: {name} is in byte {}, not in {field:?}", astray.unwrap());
    }
    // Each field that is neither fixed nor zero was changed.
    for field in &fields {
        let fixed = ["magic", "version of the format", "zero", "number of", "checksum of the 4088"];
        let untested = !changed.iter().any(|(name, _)| field.name.starts_with(name))
            && !fixed.iter().any(|word| field.name.starts_with(word))
            && field.name != "version"
            && own_sum.is_none_or(|sum| sum.offset != field.offset);
        assert!(!untested, "{structure}: nothing tests {}", field.name);
        if field.name.starts_with("zero") {
            let bytes = &plain[field.offset..field.offset + field.size.unwrap()];
            assert!(bytes.iter().all(|byte| *byte == 0), "{structure}: {field:?} is not zero");
        }
    }
}

/// A sample with one thing changed.
macro_rules! with {
    ($sample:expr, $($place:tt).+ = $value:expr) => {{
        let mut sample = $sample;
        sample.$($place).+ = $value;
        sample
    }};
}

#[test]
fn constants() {
    let (_, table) = DOCUMENT.split_once("## Constants").unwrap();
    let stated: Vec<(&str, u64)> = rows(table).map(|row| (row[0], row[1].parse().unwrap())).collect();
    let real: Vec<u64> = vec![
        u64::from(FORMAT_VERSION),
        BLOCK_BYTES as u64,
        GRAIN_BYTES as u64,
        SYNC_UNIT_BYTES as u64,
        SUPERBLOCK_BYTES as u64,
        SUPERBLOCK_AREA_BYTES,
        SUPERBLOCK_SLOT_BYTES,
        DEVICES_MAX as u64,
        ROOT_EXTENTS_MAX as u64,
        SEGMENT_HEADER_BYTES as u64,
        SEGMENT_BYTES_MIN,
        SEGMENT_BYTES_MAX,
        u64::from(SEGMENTS_MAX),
        BATCH_HEADER_BYTES as u64,
        FRAME_HEADER_BYTES as u64,
        u64::from(BATCH_OPERATIONS_MAX),
        PAGE_HEADER_BYTES as u64,
        PAGE_BYTES as u64,
        PAGE_POINTER_BYTES as u64,
        BLOCK_ENTRY_BYTES as u64,
        SEGMENT_ENTRY_BYTES as u64,
        NODE_ENTRIES as u64,
        OBJECTS_MAX as u64,
        OPAQUE_BYTES_MAX as u64,
        CLONES_MAX as u64,
    ];
    let stated_values: Vec<u64> = stated.iter().map(|(_, value)| *value).collect();
    assert_eq!(stated_values, real, "{stated:?}");
}

#[test]
fn superblock() {
    let plain = samples::superblock;
    let mut extent = plain();
    extent.root[0].start = samples::location(9);
    let mut extent_len = plain();
    extent_len.root[0].len = 1;
    let mut extent_sum = plain();
    extent_sum.root[0].checksum = 1;
    let mut device_id = plain();
    device_id.devices[0].id = Uuid([1; 16]);
    let mut device_segments = plain();
    device_segments.devices[0].segments = 1;
    let changed = [
        ("pool id", with!(plain(), pool = Uuid([9; 16]))),
        ("fingerprint key", with!(plain(), fingerprint_key = [9; 32])),
        ("index of this device", with!(plain(), device = 1)),
        ("segment bytes", with!(plain(), segment_bytes.0 = 1 << 16)),
        ("created", with!(plain(), created = 1)),
        ("checkpoint number", with!(plain(), checkpoint.0 = 1)),
        ("incarnation", with!(plain(), incarnation.0 = 1)),
        ("device id", device_id),
        ("device segments", device_segments),
        ("extent location", extent),
        ("extent bytes", extent_len),
        ("extent checksum", extent_sum),
    ]
    .map(|(name, superblock)| (name, superblock.encode()));
    compare("superblock", SUPERBLOCK_BYTES, &plain().encode(), &changed);
    let bytes = plain().encode();
    assert_eq!(
        (&bytes[10..12], &bytes[12..14], &bytes[14..16]),
        (&[1u8, 0][..], &[1u8, 0][..], &[1u8, 0][..])
    );
}

#[test]
fn segment_header() {
    let plain = samples::segment_header;
    let changed = [
        ("kind", with!(plain(), kind = SegmentKind::Moved)),
        ("pool", with!(plain(), pool = 1)),
        ("segment", with!(plain(), segment = SegmentId(1))),
        ("successor", with!(plain(), successor = SegmentId(1))),
        ("incarnation", with!(plain(), incarnation.0 = 1)),
        ("sequence", with!(plain(), sequence = 1)),
        ("erases", with!(plain(), erases = 1)),
    ]
    .map(|(name, header)| (name, header.encode()));
    compare("segment header", SEGMENT_HEADER_BYTES, &plain().encode(), &changed);
    let kinds = ["free", "log", "moved", "metadata", "metadata copy"];
    let (_, table) = DOCUMENT.split_once("its entry in the segment table name:").unwrap();
    let stated: Vec<(u8, &str)> = rows(table).map(|row| (row[0].parse().unwrap(), row[1])).collect();
    for (kind, name) in [
        SegmentKind::Free,
        SegmentKind::Log,
        SegmentKind::Moved,
        SegmentKind::Metadata,
        SegmentKind::MetadataCopy,
    ]
    .into_iter()
    .zip(kinds)
    {
        assert!(stated.contains(&(kind.code(), name)), "{name} is not {}", kind.code());
    }
}

#[test]
fn batch_header() {
    let plain = samples::batch_header;
    let changed = [
        ("kind", with!(plain(), kind = BatchKind::Moved)),
        ("length", with!(plain(), len = 256)),
        ("operations", with!(plain(), operations = 2)),
        ("first LSN", with!(plain(), first_lsn = Lsn(1))),
        ("epoch generation", with!(plain(), epoch.generation = 9)),
        ("epoch number", with!(plain(), epoch.number = 9)),
        ("incarnation", with!(plain(), incarnation.0 = 1)),
        ("checksum of the batch before", with!(plain(), previous = 1)),
        ("durable LSN", with!(plain(), durable_lsn = Lsn(1))),
        ("durable checkpoint", with!(plain(), durable_checkpoint = 1)),
        ("pool", with!(plain(), pool = 1)),
    ]
    .map(|(name, header)| (name, header.encode(std::iter::empty()).0));
    compare("batch header", BATCH_HEADER_BYTES, &plain().encode(std::iter::empty()).0, &changed);
}

#[test]
fn frame_and_operations() {
    let zero = |object, first, count| LoggedOperation::Zero {
        object: ObjectNumber(object),
        first: Lba(first),
        count: BlockCount(count),
    };
    let create = |opaque: &[u8]| LoggedOperation::CreateObject {
        object: ObjectNumber(7),
        size: BlockCount(9),
        opaque: opaque.to_vec(),
    };
    let plain = zero(7, 0, 9).encode(0);
    let changed = [
        ("length of the frame", zero(7, 0, 9).encode(4096)),
        ("object", zero(8, 0, 9).encode(0)),
        ("first block", zero(7, 8, 9).encode(0)),
        ("records", zero(7, 0, 8).encode(0)),
        ("kind", create(&[]).encode(0)),
    ];
    // Count and the length of the records are seen by hand: they change with the records.
    let with_opaque = create(&[1; 300]).encode(0);
    assert_eq!(with_opaque[10..12], 300u16.to_le_bytes());
    assert_eq!(with_opaque[4..8], (with_opaque.len() as u32).to_le_bytes());
    let fields = layout("frame");
    for (name, bytes) in &changed {
        let field = fields.iter().find(|field| field.name == *name).unwrap();
        let end = field.size.map_or(bytes.len(), |size| field.offset + size);
        for at in 0..plain.len() {
            let inside = (field.offset..end).contains(&at);
            assert!(inside || plain[at] == bytes[at], "frame: {name} is in byte {at}");
        }
        assert_ne!(&plain, bytes, "frame: nothing stands for {name}");
    }
    let (_, table) = DOCUMENT.split_once("| --- | --- | --- | --- |\n| 1 | write").unwrap();
    assert!(table.starts_with(" | mappings"));
    let names = [
        "write",
        "zero",
        "create object",
        "update object",
        "delete object",
        "moved",
        "clone objects",
        "restore object",
    ];
    for (operation, name) in samples::operations().iter().zip(names) {
        let kind = operation.encode(4096)[8];
        assert!(DOCUMENT.contains(&format!("| {kind} | {name} |")), "{name} is not kind {kind}");
    }
}

#[test]
fn page_header() {
    let page = [7u8; PAGE_BYTES];
    let encode = |key, facts, pool| {
        let mut bytes = encode_page(key, facts, &page, pool);
        bytes.truncate(PAGE_HEADER_BYTES);
        bytes
    };
    let (key, facts, pool) = (samples::page_key(), samples::page_facts(), samples::POOL);
    let mut noise = [0u8; PAGE_BYTES];
    sinter::sync::seeded::SeededNumbers::new(1).fill(&mut noise);
    let raw = encode_page(key, facts, &noise, pool);
    let plain = encode(key, facts, pool);
    assert_eq!((plain[41], raw[41]), (1, 0), "compressed or not");
    assert_eq!(raw[20..24], 4096u32.to_le_bytes(), "body bytes");
    let mut only_length = plain.clone();
    only_length[20] ^= 1;
    let mut only_compressed = plain.clone();
    only_compressed[41] = 0;
    let changed = [
        ("table", encode(PageKey { table: Table::Objects, ..key }, facts, pool)),
        ("level of the map node", encode(key, PageFacts { node_level: 1, ..facts }, pool)),
        ("level", encode(PageKey { level: 0, ..key }, facts, pool)),
        ("number", encode(PageKey { number: 1, ..key }, facts, pool)),
        ("version of the page", encode(key, PageFacts { version: 1, ..facts }, pool)),
        ("mapped blocks", encode(key, PageFacts { mapped: BlockCount(1), ..facts }, pool)),
        ("pool", encode(key, facts, 1)),
        ("body bytes", only_length),
        ("compressed", only_compressed),
    ];
    // "level" is the beginning of two names: the first line with it is the right one.
    compare("page header", PAGE_HEADER_BYTES, &plain, &changed);
    for table in Table::ALL {
        let words: String = format!("{table:?}")
            .chars()
            .flat_map(|letter| letter.is_uppercase().then_some(' ').into_iter().chain(letter.to_lowercase()))
            .collect();
        assert!(DOCUMENT.contains(&format!("| {} |{words} |", table as u8)), "table{words}");
    }
}

#[test]
fn page_pointer_and_entries() {
    let pointer = samples::page_pointer;
    let changed = [
        ("location of the copy", with!(pointer(), copy = samples::location(9))),
        ("location", with!(pointer(), location = samples::location(9))),
        ("checksum", with!(pointer(), checksum = 1)),
        ("version", with!(pointer(), version = 1)),
    ]
    .map(|(name, pointer)| (name, pointer.encode().to_vec()));
    compare("page pointer", PAGE_POINTER_BYTES, &pointer().encode(), &changed);

    let put = |entry: sinter::format::page::BlockEntry| {
        let mut page = [0u8; PAGE_BYTES];
        entry.put(&mut page, BlockId(129));
        page[BLOCK_ENTRY_BYTES..2 * BLOCK_ENTRY_BYTES].to_vec()
    };
    let entry = samples::block_entry;
    let changed = [
        ("location", put(with!(entry(), location = samples::location(9)))),
        ("fingerprint", put(with!(entry(), fingerprint.0 = [0; 16]))),
        ("checksum of the stored", put(with!(entry(), checksum = 1))),
    ];
    compare("block entry", BLOCK_ENTRY_BYTES, &put(entry()), &changed);
    assert_eq!(put(entry())[7] & !put(with!(entry(), crowded = false))[7], 1 << 5, "bit 61");

    let put = |entry: sinter::format::objects::SegmentEntry| {
        let mut page = [0u8; PAGE_BYTES];
        entry.put(&mut page, 1);
        page[SEGMENT_ENTRY_BYTES..2 * SEGMENT_ENTRY_BYTES].to_vec()
    };
    let entry = samples::segment_entry;
    let changed = [
        ("kind", put(with!(entry(), kind = SegmentKind::Log))),
        ("flags", put(with!(entry(), damaged = false))),
        ("live bytes", put(with!(entry(), live_bytes = 1))),
        ("erases", put(with!(entry(), erases = 1))),
        ("sequence", put(with!(entry(), sequence = 1))),
    ];
    compare("segment entry", SEGMENT_ENTRY_BYTES, &put(entry()), &changed);
    assert_eq!(put(with!(entry(), damaged = false))[1], 1);
}

#[test]
fn object_slot() {
    let plain = samples::object_slot;
    let put = |slot| encode_slot(Some(&slot)).to_vec();
    let changed = [
        ("number", put(with!(plain(), number = ObjectNumber(1)))),
        ("root node", put(with!(plain(), root = MapNodeId(1)))),
        ("size in blocks", put(with!(plain(), size = BlockCount(1)))),
        ("mapped blocks", put(with!(plain(), mapped = BlockCount(1)))),
        ("level of the root", put(with!(plain(), root_level = 1))),
        ("opaque bytes", put(with!(plain(), opaque = b"OPAQUE".to_vec()))),
        ("opaque length", put(with!(plain(), opaque = b"opaque\0".to_vec()))),
    ];
    compare("object slot", PAGE_BYTES, &put(plain()), &changed);
}

#[test]
fn checkpoint_root() {
    let plain = samples::checkpoint_root;
    let mut tables = plain();
    tables.tables[7].pointer.version = 1;
    let changed = [
        ("checkpoint number", with!(plain(), number.0 = 1)),
        ("LSN", with!(plain(), lsn = Lsn(1))),
        ("epoch generation", with!(plain(), epoch.generation = 9)),
        ("epoch number", with!(plain(), epoch.number = 9)),
        ("log incarnation", with!(plain(), log_incarnation.0 = 1)),
        ("log segment", with!(plain(), log_segment = SegmentId(1))),
        ("log offset", with!(plain(), log_offset = 1)),
        ("log successor", with!(plain(), log_successor = SegmentId(1))),
        ("log chain", with!(plain(), log_chain = 1)),
        ("next sequence", with!(plain(), next_sequence = 1)),
        ("next object", with!(plain(), next_object = 1)),
        ("next block id", with!(plain(), next_block = BlockId(1))),
        ("next node id", with!(plain(), next_node = MapNodeId(1))),
        ("table roots", tables),
        ("counters", with!(plain(), counters.freed_nodes = 1)),
        ("syncing", with!(plain(), syncing = false)),
        ("lists", with!(plain(), release_queue = vec![])),
    ]
    .map(|(name, root)| (name, root.encode()));
    let bytes = plain().encode();
    compare("checkpoint root", bytes.len(), &bytes, &changed);
    assert_eq!(bytes.len(), 493 + 5 * 8 + 12 + 12 + 8 + 17 + 16);
}
