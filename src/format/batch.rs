//! Batches: what one append to the log, or one step of collection, writes.
//!
//! A batch is a header and then one frame for each operation. A frame is its records followed by the
//! payloads that they name, each payload padded to a grain; so the place of a payload is known as soon as
//! the place of its frame is. The checksum of a batch covers its header and all records; the records hold
//! the checksums of the payloads.

use crate::units::{Epoch, Incarnation, Lsn};

use super::bytes::{Append, Reader};
use super::{FORMAT_VERSION, GRAIN_BYTES};

pub use super::operation::{LoggedOperation, MAPPING_RECORD_BYTES_MAX, MappingRecord};

/// Bytes of a batch header.
pub const BATCH_HEADER_BYTES: usize = 128;
/// Bytes at the start of each frame.
pub const FRAME_HEADER_BYTES: usize = 32;
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
