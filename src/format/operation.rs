//! Operations: what one change of the array is, as a frame of the log tells it.

use crate::units::{BlockCount, BlockId, Fingerprint, Lba, ObjectNumber};

use super::batch::FRAME_HEADER_BYTES;
use super::bytes::{Append, Reader};
use super::to_grain;

/// Most bytes that the records of one mapping take.
pub const MAPPING_RECORD_BYTES_MAX: usize = 33;
/// Most objects that one operation clones.
pub const CLONES_MAX: usize = 64;

/// What an operation sets one block to, as the log tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingRecord {
    /// Nothing.
    Hole,
    /// A repeated 32-bit word.
    Pattern(u32),
    /// What was there is lost: reading it is an error.
    Lost,
    /// A block whose payload is in this frame.
    New {
        /// The id it was given.
        block: BlockId,
        /// Bytes of its payload.
        stored_len: u16,
        /// Fingerprint of the uncompressed block.
        fingerprint: Fingerprint,
        /// Checksum of the payload.
        checksum: u64,
    },
    /// One more reference to a block that is there already.
    Existing {
        /// Its id.
        block: BlockId,
        /// Bytes of a payload in this frame that is not needed.
        dead_len: u16,
    },
}

/// One object that comes to be with the content of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneRecord {
    /// Its number.
    pub object: ObjectNumber,
    /// Whose content and size it gets.
    pub source: ObjectNumber,
    /// What the layer above keeps with it.
    pub opaque: Vec<u8>,
}

/// One operation as the log tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoggedOperation {
    /// Blocks of an object are set, from `first` on.
    Write {
        /// Whose.
        object: ObjectNumber,
        /// The first block.
        first: Lba,
        /// One for each block.
        mappings: Vec<MappingRecord>,
    },
    /// Blocks of an object become holes.
    Zero {
        /// Whose.
        object: ObjectNumber,
        /// The first block.
        first: Lba,
        /// How many.
        count: BlockCount,
    },
    /// An object comes to be.
    CreateObject {
        /// Its number.
        object: ObjectNumber,
        /// Its size.
        size: BlockCount,
        /// What the layer above keeps with it.
        opaque: Vec<u8>,
    },
    /// An object gets another size and other opaque bytes.
    UpdateObject {
        /// Its number.
        object: ObjectNumber,
        /// Its new size.
        size: BlockCount,
        /// What the layer above keeps with it.
        opaque: Vec<u8>,
    },
    /// An object goes.
    DeleteObject {
        /// Its number.
        object: ObjectNumber,
    },
    /// Objects come to be that hold what others hold at this moment, in their size.
    CloneObjects {
        /// At most `CLONES_MAX`.
        clones: Vec<CloneRecord>,
    },
    /// An object gets the content of another, and other opaque bytes.
    RestoreObject {
        /// Its number.
        object: ObjectNumber,
        /// Whose content it gets.
        source: ObjectNumber,
        /// Its new size; beyond that of the source it is all holes.
        size: BlockCount,
        /// What the layer above keeps with it.
        opaque: Vec<u8>,
    },
    /// Collection moved these blocks; only in batches of that kind.
    Moved {
        /// Id, stored length and checksum of each.
        blocks: Vec<(BlockId, u16, u64)>,
    },
}

const KIND_WRITE: u8 = 1;
const KIND_ZERO: u8 = 2;
const KIND_CREATE: u8 = 3;
const KIND_UPDATE: u8 = 4;
const KIND_DELETE: u8 = 5;
const KIND_MOVED: u8 = 6;
const KIND_CLONE: u8 = 7;
const KIND_RESTORE: u8 = 8;

const TAG_HOLE: u8 = 0;
const TAG_PATTERN: u8 = 1;
const TAG_NEW: u8 = 2;
const TAG_NEW_NEXT: u8 = 3;
const TAG_EXISTING: u8 = 4;
const TAG_EXISTING_DEAD: u8 = 5;
const TAG_LOST: u8 = 6;

impl LoggedOperation {
    /// The records of a frame whose payloads take `payload_len` bytes, padding included.
    ///
    /// # Panics
    /// When the operation has more than 65,535 mappings or opaque bytes.
    #[must_use]
    pub fn encode(&self, payload_len: usize) -> Vec<u8> {
        let mut body = Vec::new();
        let (kind, count, object, first) = match self {
            LoggedOperation::Write { object, first, mappings } => {
                body.reserve(mappings.len() * MAPPING_RECORD_BYTES_MAX + FRAME_HEADER_BYTES);
                encode_mappings(mappings, &mut body);
                (KIND_WRITE, mappings.len(), *object, *first)
            }
            LoggedOperation::Zero { object, first, count } => {
                body.put_u64(count.0);
                (KIND_ZERO, 0, *object, *first)
            }
            LoggedOperation::CreateObject { object, size, opaque } => {
                body.put_u64(size.0);
                body.put_slice(opaque);
                (KIND_CREATE, opaque.len(), *object, Lba(0))
            }
            LoggedOperation::UpdateObject { object, size, opaque } => {
                body.put_u64(size.0);
                body.put_slice(opaque);
                (KIND_UPDATE, opaque.len(), *object, Lba(0))
            }
            LoggedOperation::DeleteObject { object } => (KIND_DELETE, 0, *object, Lba(0)),
            LoggedOperation::CloneObjects { clones } => {
                for clone in clones {
                    body.put_u64(clone.object.0);
                    body.put_u64(clone.source.0);
                    body.put_u16(u16::try_from(clone.opaque.len()).expect("at most 3,584"));
                    body.put_slice(&clone.opaque);
                }
                (KIND_CLONE, clones.len(), ObjectNumber(0), Lba(0))
            }
            LoggedOperation::RestoreObject { object, source, size, opaque } => {
                body.put_u64(source.0);
                body.put_u64(size.0);
                body.put_slice(opaque);
                (KIND_RESTORE, opaque.len(), *object, Lba(0))
            }
            LoggedOperation::Moved { blocks } => {
                for (block, len, sum) in blocks {
                    body.put_u48(block.0);
                    body.put_u16(*len);
                    body.put_u64(*sum);
                }
                (KIND_MOVED, blocks.len(), ObjectNumber(0), Lba(0))
            }
        };
        let records_len = to_grain(FRAME_HEADER_BYTES + body.len());
        let mut bytes = Vec::with_capacity(records_len);
        bytes.put_u32(u32::try_from(records_len + payload_len).expect("an operation is far below 4 GiB"));
        bytes.put_u32(u32::try_from(records_len).expect("an operation is far below 4 GiB"));
        bytes.put_u8(kind);
        bytes.put_u8(0);
        bytes.put_u16(u16::try_from(count).expect("operations are bounded"));
        bytes.put_u32(0);
        bytes.put_u64(object.0);
        bytes.put_u64(first.0);
        bytes.put_slice(&body);
        bytes.pad_to(records_len);
        bytes
    }

    pub(super) fn decode(records: &[u8]) -> Option<LoggedOperation> {
        let mut reader = Reader::new(records);
        reader.take(8)?;
        let kind = reader.u8()?;
        reader.u8()?;
        let count = usize::from(reader.u16()?);
        reader.u32()?;
        let object = ObjectNumber(reader.u64()?);
        let first = Lba(reader.u64()?);
        Some(match kind {
            KIND_WRITE => {
                LoggedOperation::Write { object, first, mappings: decode_mappings(&mut reader, count)? }
            }
            KIND_ZERO => LoggedOperation::Zero { object, first, count: BlockCount(reader.u64()?) },
            KIND_CREATE => LoggedOperation::CreateObject {
                object,
                size: BlockCount(reader.u64()?),
                opaque: reader.take(count)?.to_vec(),
            },
            KIND_UPDATE => LoggedOperation::UpdateObject {
                object,
                size: BlockCount(reader.u64()?),
                opaque: reader.take(count)?.to_vec(),
            },
            KIND_DELETE => LoggedOperation::DeleteObject { object },
            KIND_CLONE => LoggedOperation::CloneObjects { clones: decode_clones(&mut reader, count)? },
            KIND_RESTORE => LoggedOperation::RestoreObject {
                object,
                source: ObjectNumber(reader.u64()?),
                size: BlockCount(reader.u64()?),
                opaque: reader.take(count)?.to_vec(),
            },
            KIND_MOVED => {
                let mut blocks = Vec::with_capacity(count.min(reader.rest().len() / 16));
                for _ in 0..count {
                    blocks.push((BlockId(reader.u48()?), reader.u16()?, reader.u64()?));
                }
                LoggedOperation::Moved { blocks }
            }
            _ => return None,
        })
    }

    /// Offset from the start of the payloads, length and checksum of each payload that is needed.
    pub fn payloads(&self) -> impl Iterator<Item = (usize, usize, u64)> {
        let (mappings, moved): (&[MappingRecord], &[(BlockId, u16, u64)]) = match self {
            LoggedOperation::Write { mappings, .. } => (mappings, &[]),
            LoggedOperation::Moved { blocks } => (&[], blocks),
            _ => (&[], &[]),
        };
        let written = mappings.iter().filter_map(|mapping| match *mapping {
            MappingRecord::New { stored_len, checksum, .. } => Some((stored_len, Some(checksum))),
            MappingRecord::Existing { dead_len, .. } if dead_len > 0 => Some((dead_len, None)),
            _ => None,
        });
        let mut at = 0;
        written.chain(moved.iter().map(|&(_, len, sum)| (len, Some(sum)))).filter_map(move |(len, sum)| {
            let from = at;
            at += to_grain(usize::from(len));
            sum.map(|sum| (from, usize::from(len), sum))
        })
    }

    /// Bytes that all payloads take, padding included; `None` where one is longer than a block.
    pub(super) fn payload_bytes(&self) -> Option<usize> {
        let lens: Vec<u16> = match self {
            LoggedOperation::Write { mappings, .. } => mappings
                .iter()
                .map(|mapping| match *mapping {
                    MappingRecord::New { stored_len, .. } => stored_len,
                    MappingRecord::Existing { dead_len, .. } => dead_len,
                    _ => 0,
                })
                .collect(),
            LoggedOperation::Moved { blocks } => blocks.iter().map(|(_, len, _)| *len).collect(),
            _ => Vec::new(),
        };
        lens.iter()
            .all(|len| usize::from(*len) <= crate::units::BLOCK_BYTES)
            .then(|| lens.iter().map(|len| to_grain(usize::from(*len))).sum())
    }
}

fn decode_clones(reader: &mut Reader<'_>, count: usize) -> Option<Vec<CloneRecord>> {
    if count > CLONES_MAX {
        return None;
    }
    let mut clones = Vec::with_capacity(count);
    for _ in 0..count {
        let (object, source) = (ObjectNumber(reader.u64()?), ObjectNumber(reader.u64()?));
        let len = usize::from(reader.u16()?);
        clones.push(CloneRecord { object, source, opaque: reader.take(len)?.to_vec() });
    }
    Some(clones)
}

fn encode_mappings(mappings: &[MappingRecord], body: &mut Vec<u8>) {
    let mut expected = None;
    for mapping in mappings {
        match *mapping {
            MappingRecord::Hole => body.put_u8(TAG_HOLE),
            MappingRecord::Pattern(word) => {
                body.put_u8(TAG_PATTERN);
                body.put_u32(word);
            }
            MappingRecord::Lost => body.put_u8(TAG_LOST),
            MappingRecord::New { block, stored_len, fingerprint, checksum } => {
                if expected == Some(block.0) {
                    body.put_u8(TAG_NEW_NEXT);
                } else {
                    body.put_u8(TAG_NEW);
                    body.put_u48(block.0);
                }
                body.put_u16(stored_len);
                body.put_slice(&fingerprint.0);
                body.put_u64(checksum);
                expected = Some(block.0 + 1);
            }
            MappingRecord::Existing { block, dead_len: 0 } => {
                body.put_u8(TAG_EXISTING);
                body.put_u48(block.0);
            }
            MappingRecord::Existing { block, dead_len } => {
                body.put_u8(TAG_EXISTING_DEAD);
                body.put_u48(block.0);
                body.put_u16(dead_len);
            }
        }
    }
}

fn decode_mappings(reader: &mut Reader<'_>, count: usize) -> Option<Vec<MappingRecord>> {
    let mut mappings = Vec::with_capacity(count.min(reader.rest().len()));
    let mut next = None;
    for _ in 0..count {
        mappings.push(match reader.u8()? {
            TAG_HOLE => MappingRecord::Hole,
            TAG_PATTERN => MappingRecord::Pattern(reader.u32()?),
            TAG_LOST => MappingRecord::Lost,
            tag @ (TAG_NEW | TAG_NEW_NEXT) => {
                let block = if tag == TAG_NEW { reader.u48()? } else { next? };
                next = Some(block + 1);
                MappingRecord::New {
                    block: BlockId(block),
                    stored_len: reader.u16()?,
                    fingerprint: Fingerprint(reader.array()?),
                    checksum: reader.u64()?,
                }
            }
            TAG_EXISTING => MappingRecord::Existing { block: BlockId(reader.u48()?), dead_len: 0 },
            TAG_EXISTING_DEAD => {
                MappingRecord::Existing { block: BlockId(reader.u48()?), dead_len: reader.u16()? }
            }
            _ => return None,
        });
    }
    Some(mappings)
}
