//! One slot of the table of objects, and one entry of the segment table.

use crate::units::{BlockCount, MapNodeId, ObjectNumber};

use super::bytes::{Append, Reader};
use super::page::{PAGE_BYTES, SEGMENT_ENTRY_BYTES};
use super::segment::SegmentKind;

/// Most opaque bytes of an object.
pub const OPAQUE_BYTES_MAX: usize = 3584;
/// Most objects at a time.
pub const OBJECTS_MAX: usize = 65_536;

/// A volume or snapshot as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectSlot {
    /// Its number; never 0.
    pub number: ObjectNumber,
    /// Root of its map; `MapNodeId(0)` while it is empty.
    pub root: MapNodeId,
    /// Level of the root: 0 is a leaf.
    pub root_level: u8,
    /// Its size.
    pub size: BlockCount,
    /// Mapped blocks.
    pub mapped: BlockCount,
    /// What the layer above keeps with it.
    pub opaque: Vec<u8>,
}

/// The page of a slot: zeros for a free one.
#[must_use]
pub fn encode_slot(slot: Option<&ObjectSlot>) -> Box<[u8; PAGE_BYTES]> {
    let mut page = Box::new([0u8; PAGE_BYTES]);
    if let Some(slot) = slot {
        let mut bytes = Vec::with_capacity(PAGE_BYTES);
        bytes.put_u64(slot.number.0);
        bytes.put_u64(slot.root.0);
        bytes.put_u64(slot.size.0);
        bytes.put_u64(slot.mapped.0);
        bytes.put_u8(slot.root_level);
        bytes.put_u8(0);
        bytes.put_u16(u16::try_from(slot.opaque.len()).expect("at most 3,584"));
        bytes.put_slice(&slot.opaque);
        bytes.pad_to(PAGE_BYTES);
        page.copy_from_slice(&bytes);
    }
    page
}

/// Reads the page of a slot: `Some(None)` for a free one, `None` for nonsense.
#[must_use]
pub fn decode_slot(page: &[u8; PAGE_BYTES]) -> Option<Option<ObjectSlot>> {
    let mut reader = Reader::new(page);
    let number = ObjectNumber(reader.u64()?);
    if number.0 == 0 {
        return Some(None);
    }
    let root = MapNodeId(reader.u64()?);
    let size = BlockCount(reader.u64()?);
    let mapped = BlockCount(reader.u64()?);
    let root_level = reader.u8()?;
    reader.u8()?;
    let len = usize::from(reader.u16()?);
    if len > OPAQUE_BYTES_MAX {
        return None;
    }
    Some(Some(ObjectSlot { number, root, root_level, size, mapped, opaque: reader.take(len)?.to_vec() }))
}

/// One segment as it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentEntry {
    /// What lies in it.
    pub kind: SegmentKind,
    /// Whether the host has room set aside for it.
    pub allocated: bool,
    /// Left alone by collection: something in it cannot be read.
    pub damaged: bool,
    /// Bytes in it that something refers to.
    pub live_bytes: u32,
    /// How often it has been begun anew.
    pub erases: u32,
    /// Order in which segments were begun.
    pub sequence: u64,
}

impl SegmentEntry {
    /// Live bytes of pages and roots in it.
    #[must_use]
    pub fn live_metadata(&self) -> u64 {
        match self.kind {
            SegmentKind::Metadata | SegmentKind::MetadataCopy => u64::from(self.live_bytes),
            SegmentKind::Free | SegmentKind::Log | SegmentKind::Moved => 0,
        }
    }

    /// Writes the entry into its place in a page.
    pub fn put(&self, page: &mut [u8; PAGE_BYTES], slot: usize) {
        let mut bytes = Vec::with_capacity(SEGMENT_ENTRY_BYTES);
        bytes.put_u8(self.kind.code());
        bytes.put_u8(u8::from(self.allocated) | u8::from(self.damaged) << 1);
        bytes.put_u16(0);
        bytes.put_u32(self.live_bytes);
        bytes.put_u32(self.erases);
        bytes.put_u32(0);
        bytes.put_u64(self.sequence);
        bytes.pad_to(SEGMENT_ENTRY_BYTES);
        page[slot * SEGMENT_ENTRY_BYTES..(slot + 1) * SEGMENT_ENTRY_BYTES].copy_from_slice(&bytes);
    }

    /// Reads the entry at a place in a page.
    #[must_use]
    pub fn at(page: &[u8; PAGE_BYTES], slot: usize) -> Option<SegmentEntry> {
        let mut reader = Reader::new(page.get(slot * SEGMENT_ENTRY_BYTES..)?);
        let kind = SegmentKind::from_code(reader.u8()?)?;
        let flags = reader.u8()?;
        reader.u16()?;
        let live_bytes = reader.u32()?;
        let erases = reader.u32()?;
        reader.u32()?;
        let sequence = reader.u64()?;
        Some(SegmentEntry {
            kind,
            allocated: flags & 1 != 0,
            damaged: flags & 2 != 0,
            live_bytes,
            erases,
            sequence,
        })
    }
}
