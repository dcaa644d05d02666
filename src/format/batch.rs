//! Batches: what one append to the log, or one step of collection, writes.
//!
//! A batch is a header and then one frame for each operation. A frame is its records followed by the
//! payloads that they name, each payload padded to a grain; so the place of a payload is known as soon as
//! the place of its frame is. The checksum of a batch covers its header and all records; the records hold
//! the checksums of the payloads.

use crate::units::{BlockCount, BlockId, Epoch, Fingerprint, Incarnation, Lba, Lsn, ObjectNumber};

use super::bytes::{Append, Reader};
use super::{FORMAT_VERSION, GRAIN_BYTES, to_grain};

/// Bytes of a batch header.
pub const BATCH_HEADER_BYTES: usize = 128;
/// Bytes at the start of each frame.
pub const FRAME_HEADER_BYTES: usize = 32;
/// Most bytes that the records of one mapping take.
pub const MAPPING_RECORD_BYTES_MAX: usize = 33;
/// Bytes of the record of one moved block.
pub const MOVED_RECORD_BYTES: usize = 16;
/// Most operations of one batch.
pub const BATCH_OPERATIONS_MAX: u32 = 256;
const MAGIC: u32 = 0x4843_5442;
const SUMMED_BYTES: usize = BATCH_HEADER_BYTES - 8;

/// Where a batch belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// In the log: replayed.
    Log,
    /// Blocks that collection moved: never replayed.
    Moved,
}

/// The header of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Where it belongs.
    pub kind: BatchKind,
    /// Bytes from its start to its end, a multiple of the grain.
    pub len: u32,
    /// Frames in it.
    pub operations: u32,
    /// Number of the first operation (of the next one, where there is none).
    pub first_lsn: Lsn,
    /// The term in which it was written.
    pub epoch: Epoch,
    /// The opening of the pool in which it was written.
    pub incarnation: Incarnation,
    /// Checksum of the batch before it.
    pub previous: u64,
    /// Everything up to here was durable when it was written.
    pub durable_lsn: Lsn,
    /// The newest checkpoint that was durable when it was written.
    pub durable_checkpoint: u64,
    /// The first eight bytes of the pool's id.
    pub pool: u64,
}

impl BatchHeader {
    /// The stored form and the checksum of the whole batch, given the records of its frames in order.
    #[must_use]
    pub fn encode<'a>(&self, records: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, u64) {
        let mut bytes = Vec::with_capacity(BATCH_HEADER_BYTES);
        bytes.put_u32(MAGIC);
        bytes.put_u16(FORMAT_VERSION);
        bytes.put_u8(match self.kind {
            BatchKind::Log => 0,
            BatchKind::Moved => 1,
        });
        bytes.put_u8(0);
        bytes.put_u32(self.len);
        bytes.put_u32(self.operations);
        bytes.put_u64(self.first_lsn.0);
        bytes.put_u32(self.epoch.generation);
        bytes.put_u32(self.epoch.number);
        bytes.put_u64(self.incarnation.0);
        bytes.put_u64(self.previous);
        bytes.put_u64(self.durable_lsn.0);
        bytes.put_u64(self.durable_checkpoint);
        bytes.put_u64(self.pool);
        bytes.pad_to(SUMMED_BYTES);
        let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
        hasher.update(&bytes);
        for frame in records {
            hasher.update(frame);
        }
        let sum = hasher.digest();
        bytes.put_u64(sum);
        (bytes, sum)
    }

    /// Reads a header and the checksum that it states, without believing either.
    #[must_use]
    pub fn peek(bytes: &[u8]) -> Option<(BatchHeader, u64)> {
        let mut reader = Reader::new(bytes.get(..BATCH_HEADER_BYTES)?);
        if reader.u32()? != MAGIC || reader.u16()? != FORMAT_VERSION {
            return None;
        }
        let kind = match reader.u8()? {
            0 => BatchKind::Log,
            1 => BatchKind::Moved,
            _ => return None,
        };
        reader.u8()?;
        let len = reader.u32()?;
        let operations = reader.u32()?;
        let first_lsn = Lsn(reader.u64()?);
        let epoch = Epoch { generation: reader.u32()?, number: reader.u32()? };
        let header = BatchHeader {
            kind,
            len,
            operations,
            first_lsn,
            epoch,
            incarnation: Incarnation(reader.u64()?),
            previous: reader.u64()?,
            durable_lsn: Lsn(reader.u64()?),
            durable_checkpoint: reader.u64()?,
            pool: reader.u64()?,
        };
        let sum = Reader::new(bytes.get(SUMMED_BYTES..)?).u64()?;
        let sane = len as usize >= BATCH_HEADER_BYTES && (len as usize).is_multiple_of(GRAIN_BYTES);
        (sane && operations <= BATCH_OPERATIONS_MAX).then_some((header, sum))
    }
}

/// A whole batch that has passed its checks.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Its header.
    pub header: BatchHeader,
    /// Its checksum: what the next batch names.
    pub checksum: u64,
    bytes: &'a [u8],
}

/// One frame of a batch, and where its payload begins within the batch.
#[derive(Debug)]
pub struct FrameView<'a> {
    /// The operation.
    pub operation: LoggedOperation,
    /// Offset of the first payload from the start of the batch.
    pub payload_offset: usize,
    /// All payloads, padding included.
    pub payload: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Checks header and records, and the payloads where `with_payloads` says so.
    #[must_use]
    pub fn decode(bytes: &'a [u8], with_payloads: bool) -> Option<Batch<'a>> {
        let (header, stated) = BatchHeader::peek(bytes)?;
        let bytes = bytes.get(..header.len as usize)?;
        let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
        hasher.update(bytes.get(..SUMMED_BYTES)?);
        let mut at = BATCH_HEADER_BYTES;
        for _ in 0..header.operations {
            let (frame_len, records_len) = frame_lengths(bytes.get(at..)?)?;
            hasher.update(bytes.get(at..at + records_len)?);
            at += frame_len;
        }
        if hasher.digest() != stated || at != bytes.len() {
            return None;
        }
        let batch = Batch { header, checksum: stated, bytes };
        for frame in batch.frames() {
            let frame = frame?;
            if with_payloads && !frame.payload_is_intact() {
                return None;
            }
        }
        Some(batch)
    }

    /// Its frames in order; `None` for one that its records make no sense of.
    pub fn frames(&self) -> impl Iterator<Item = Option<FrameView<'a>>> {
        let bytes = self.bytes;
        let mut at = BATCH_HEADER_BYTES;
        let mut left = self.header.operations;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let frame = decode_frame(bytes, at);
            match &frame {
                Some((_, next)) => at = *next,
                None => left = 0,
            }
            Some(frame.map(|(view, _)| view))
        })
    }
}

fn frame_lengths(frame: &[u8]) -> Option<(usize, usize)> {
    let mut reader = Reader::new(frame);
    let frame_len = reader.u32()? as usize;
    let records_len = reader.u32()? as usize;
    let sane = records_len >= FRAME_HEADER_BYTES
        && records_len <= frame_len
        && frame_len <= frame.len()
        && frame_len.is_multiple_of(GRAIN_BYTES)
        && records_len.is_multiple_of(GRAIN_BYTES);
    sane.then_some((frame_len, records_len))
}

fn decode_frame(batch: &[u8], at: usize) -> Option<(FrameView<'_>, usize)> {
    let frame = batch.get(at..)?;
    let (frame_len, records_len) = frame_lengths(frame)?;
    let operation = LoggedOperation::decode(frame.get(..records_len)?)?;
    let payload = frame.get(records_len..frame_len)?;
    if operation.payload_bytes()? > payload.len() {
        return None;
    }
    Some((FrameView { operation, payload_offset: at + records_len, payload }, at + frame_len))
}

impl FrameView<'_> {
    fn payload_is_intact(&self) -> bool {
        self.operation.payloads().all(|(offset, len, sum)| {
            self.payload.get(offset..offset + len).is_some_and(|stored| super::checksum(stored) == sum)
        })
    }
}

/// What an operation sets one block to, as the log tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingRecord {
    /// Nothing.
    Hole,
    /// A repeated 32-bit word.
    Pattern(u32),
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

const TAG_HOLE: u8 = 0;
const TAG_PATTERN: u8 = 1;
const TAG_NEW: u8 = 2;
const TAG_NEW_NEXT: u8 = 3;
const TAG_EXISTING: u8 = 4;
const TAG_EXISTING_DEAD: u8 = 5;

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

    fn decode(records: &[u8]) -> Option<LoggedOperation> {
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
    fn payload_bytes(&self) -> Option<usize> {
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

fn encode_mappings(mappings: &[MappingRecord], body: &mut Vec<u8>) {
    let mut expected = None;
    for mapping in mappings {
        match *mapping {
            MappingRecord::Hole => body.put_u8(TAG_HOLE),
            MappingRecord::Pattern(word) => {
                body.put_u8(TAG_PATTERN);
                body.put_u32(word);
            }
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
