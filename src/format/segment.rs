//! The header at the start of each segment that is in use.

use crate::units::{Incarnation, SegmentId};

use super::bytes::{Append, Reader};
use super::{FORMAT_VERSION, checksum};

/// Bytes of a segment header.
pub const SEGMENT_HEADER_BYTES: usize = 128;
const MAGIC: u32 = 0x5347_4553;
const SUMMED_BYTES: usize = SEGMENT_HEADER_BYTES - 8;

/// What lies in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SegmentKind {
    /// Nothing that is needed.
    #[default]
    Free,
    /// Batches of the log.
    Log,
    /// Batches of blocks that collection moved.
    Moved,
    /// Pages of tables and trees, and checkpoint roots.
    Metadata,
    /// The second copies of such pages.
    MetadataCopy,
}

impl SegmentKind {
    /// The kind as it is stored.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            SegmentKind::Free => 0,
            SegmentKind::Log => 1,
            SegmentKind::Moved => 2,
            SegmentKind::Metadata => 3,
            SegmentKind::MetadataCopy => 4,
        }
    }

    /// The kind that a stored code names.
    #[must_use]
    pub fn from_code(code: u8) -> Option<SegmentKind> {
        Some(match code {
            0 => SegmentKind::Free,
            1 => SegmentKind::Log,
            2 => SegmentKind::Moved,
            3 => SegmentKind::Metadata,
            4 => SegmentKind::MetadataCopy,
            _ => return None,
        })
    }
}

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The first eight bytes of the pool's id.
    pub pool: u64,
    /// Which segment this is: finds misdirected writes.
    pub segment: SegmentId,
    /// What lies in it.
    pub kind: SegmentKind,
    /// The opening of the pool that began it.
    pub incarnation: Incarnation,
    /// Order in which segments were begun.
    pub sequence: u64,
    /// How often the segment has been begun anew.
    pub erases: u32,
    /// Of a log segment: where the log goes on.
    pub successor: SegmentId,
}

impl SegmentHeader {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        bytes.put_u32(MAGIC);
        bytes.put_u16(FORMAT_VERSION);
        bytes.put_u8(self.kind.code());
        bytes.put_u8(0);
        bytes.put_u64(self.pool);
        bytes.put_u32(self.segment.0);
        bytes.put_u32(self.successor.0);
        bytes.put_u64(self.incarnation.0);
        bytes.put_u64(self.sequence);
        bytes.put_u32(self.erases);
        bytes.pad_to(SUMMED_BYTES);
        let sum = checksum(&bytes);
        bytes.put_u64(sum);
        bytes
    }

    /// Reads the stored form; `None` for anything that is not a whole, valid header.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<SegmentHeader> {
        let summed = bytes.get(..SUMMED_BYTES)?;
        let mut reader = Reader::new(bytes.get(SUMMED_BYTES..)?);
        if reader.u64()? != checksum(summed) {
            return None;
        }
        let mut reader = Reader::new(summed);
        if reader.u32()? != MAGIC || reader.u16()? != FORMAT_VERSION {
            return None;
        }
        let kind = SegmentKind::from_code(reader.u8()?)?;
        reader.u8()?;
        let pool = reader.u64()?;
        let segment = SegmentId(reader.u32()?);
        let successor = SegmentId(reader.u32()?);
        let incarnation = Incarnation(reader.u64()?);
        let sequence = reader.u64()?;
        let erases = reader.u32()?;
        Some(SegmentHeader { pool, segment, kind, incarnation, sequence, erases, successor })
    }
}
