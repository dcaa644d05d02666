//! Operations as bytes of the stream: little endian, nothing padded, and as long as they say.

use std::sync::Arc;

use crate::format::bytes::{Append, Reader};
use crate::format::checksum;
use crate::store::{CLONES_MAX, CloneRecord, OPAQUE_BYTES_MAX};
use crate::store::{ShippedMapping, ShippedOperation, ShippedPayload};
use crate::units::{BlockCount, Fingerprint, Lba, ObjectNumber};

/// Most blocks of one write.
const MAPPINGS_MAX: usize = 256;

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const CREATE: u8 = 3;
const UPDATE: u8 = 4;
const DELETE: u8 = 5;
const CLONE: u8 = 6;
const RESTORE: u8 = 7;

const HOLE: u8 = 0;
const PATTERN: u8 = 1;
const NAMED: u8 = 2;
const BROUGHT: u8 = 3;
const LOST: u8 = 4;

/// Appends an operation; the payloads of a write come last.
pub(super) fn put_operation(bytes: &mut Vec<u8>, operation: &ShippedOperation) {
    match operation {
        ShippedOperation::Write { object, first, mappings, payloads } => {
            bytes.put_u8(WRITE);
            bytes.put_u64(object.0);
            bytes.put_u64(first.0);
            put_mappings(bytes, mappings);
            put_payloads(bytes, mappings, payloads);
        }
        ShippedOperation::Zero { object, first, count } => {
            bytes.put_u8(ZERO);
            bytes.put_u64(object.0);
            bytes.put_u64(first.0);
            bytes.put_u64(count.0);
        }
        ShippedOperation::CreateObject { object, size, opaque } => {
            bytes.put_u8(CREATE);
            put_object(bytes, *object, *size, opaque);
        }
        ShippedOperation::UpdateObject { object, size, opaque } => {
            bytes.put_u8(UPDATE);
            put_object(bytes, *object, *size, opaque);
        }
        ShippedOperation::DeleteObject { object } => {
            bytes.put_u8(DELETE);
            bytes.put_u64(object.0);
        }
        ShippedOperation::CloneObjects { clones } => {
            bytes.put_u8(CLONE);
            bytes.put_u16(u16::try_from(clones.len()).expect("at most 64 clones an operation"));
            for clone in clones {
                bytes.put_u64(clone.object.0);
                bytes.put_u64(clone.source.0);
                put_opaque(bytes, &clone.opaque);
            }
        }
        ShippedOperation::RestoreObject { object, source, size, opaque } => {
            bytes.put_u8(RESTORE);
            bytes.put_u64(source.0);
            put_object(bytes, *object, *size, opaque);
        }
    }
}

/// Reads what `put_operation` appended; `None` for anything else.
pub(super) fn take_operation(reader: &mut Reader<'_>) -> Option<ShippedOperation> {
    Some(match reader.u8()? {
        WRITE => {
            let object = ObjectNumber(reader.u64()?);
            let first = Lba(reader.u64()?);
            let mut mappings = take_mappings(reader)?;
            let payloads = Arc::new(take_payloads(reader, &mut mappings)?);
            ShippedOperation::Write { object, first, mappings, payloads }
        }
        ZERO => ShippedOperation::Zero {
            object: ObjectNumber(reader.u64()?),
            first: Lba(reader.u64()?),
            count: BlockCount(reader.u64()?),
        },
        CREATE => {
            let (object, size, opaque) = take_object(reader)?;
            ShippedOperation::CreateObject { object, size, opaque }
        }
        UPDATE => {
            let (object, size, opaque) = take_object(reader)?;
            ShippedOperation::UpdateObject { object, size, opaque }
        }
        DELETE => ShippedOperation::DeleteObject { object: ObjectNumber(reader.u64()?) },
        CLONE => {
            let count = usize::from(reader.u16()?);
            if count > CLONES_MAX {
                return None;
            }
            let mut clones = Vec::with_capacity(count);
            for _ in 0..count {
                clones.push(CloneRecord {
                    object: ObjectNumber(reader.u64()?),
                    source: ObjectNumber(reader.u64()?),
                    opaque: take_opaque(reader)?,
                });
            }
            ShippedOperation::CloneObjects { clones }
        }
        RESTORE => {
            let source = ObjectNumber(reader.u64()?);
            let (object, size, opaque) = take_object(reader)?;
            ShippedOperation::RestoreObject { object, source, size, opaque }
        }
        _ => return None,
    })
}

/// Appends the number, size and opaque bytes of an object.
pub(super) fn put_object(bytes: &mut Vec<u8>, object: ObjectNumber, size: BlockCount, opaque: &[u8]) {
    bytes.put_u64(object.0);
    bytes.put_u64(size.0);
    put_opaque(bytes, opaque);
}

/// Reads what `put_object` appended.
pub(super) fn take_object(reader: &mut Reader<'_>) -> Option<(ObjectNumber, BlockCount, Vec<u8>)> {
    Some((ObjectNumber(reader.u64()?), BlockCount(reader.u64()?), take_opaque(reader)?))
}

fn put_opaque(bytes: &mut Vec<u8>, opaque: &[u8]) {
    bytes.put_u16(u16::try_from(opaque.len()).expect("at most 3,584 bytes"));
    bytes.put_slice(opaque);
}

fn take_opaque(reader: &mut Reader<'_>) -> Option<Vec<u8>> {
    let len = usize::from(reader.u16()?);
    if len > OPAQUE_BYTES_MAX {
        return None;
    }
    reader.take(len).map(<[u8]>::to_vec)
}

fn put_mappings(bytes: &mut Vec<u8>, mappings: &[ShippedMapping]) {
    bytes.put_u16(u16::try_from(mappings.len()).expect("at most 256 blocks an operation"));
    for mapping in mappings {
        match mapping {
            ShippedMapping::Hole => bytes.put_u8(HOLE),
            ShippedMapping::Pattern(word) => {
                bytes.put_u8(PATTERN);
                bytes.put_u32(*word);
            }
            ShippedMapping::Lost => bytes.put_u8(LOST),
            ShippedMapping::Block { fingerprint, payload } => {
                bytes.put_u8(if payload.is_some() { BROUGHT } else { NAMED });
                bytes.put_slice(&fingerprint.0);
            }
        }
    }
}

/// The mappings; those whose payload follows have an empty one for now.
fn take_mappings(reader: &mut Reader<'_>) -> Option<Vec<ShippedMapping>> {
    let count = usize::from(reader.u16()?);
    if count > MAPPINGS_MAX {
        return None;
    }
    let mut mappings = Vec::with_capacity(count);
    for _ in 0..count {
        mappings.push(match reader.u8()? {
            HOLE => ShippedMapping::Hole,
            PATTERN => ShippedMapping::Pattern(reader.u32()?),
            LOST => ShippedMapping::Lost,
            NAMED => ShippedMapping::Block { fingerprint: Fingerprint(reader.array()?), payload: None },
            BROUGHT => {
                let payload = Some(ShippedPayload { offset: 0, len: 0, checksum: 0 });
                ShippedMapping::Block { fingerprint: Fingerprint(reader.array()?), payload }
            }
            _ => return None,
        });
    }
    Some(mappings)
}

fn put_payloads(bytes: &mut Vec<u8>, mappings: &[ShippedMapping], payloads: &[u8]) {
    for mapping in mappings {
        let ShippedMapping::Block { payload: Some(payload), .. } = mapping else { continue };
        let from = payload.offset as usize;
        let stored = &payloads[from..from + usize::from(payload.len)];
        put_stored(bytes, stored);
    }
}

/// Appends the stored bytes of one block. Their checksum stays behind: the link keeps them whole, and the fingerprint
/// says whether they are the block that was named.
pub(super) fn put_stored(bytes: &mut Vec<u8>, stored: &[u8]) {
    bytes.put_u16(u16::try_from(stored.len()).expect("at most 4,096 bytes"));
    bytes.put_slice(stored);
}

/// Reads what `put_stored` appended; with the checksum of it.
pub(super) fn take_stored<'a>(reader: &mut Reader<'a>) -> Option<(&'a [u8], u64)> {
    let len = usize::from(reader.u16()?);
    let stored = reader.take(len)?;
    Some((stored, checksum(stored)))
}

fn take_payloads(reader: &mut Reader<'_>, mappings: &mut [ShippedMapping]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(reader.rest().len());
    for mapping in mappings {
        let ShippedMapping::Block { payload: Some(payload), .. } = mapping else { continue };
        let (stored, checksum) = take_stored(reader)?;
        let (offset, len) = (u32::try_from(bytes.len()).ok()?, u16::try_from(stored.len()).ok()?);
        *payload = ShippedPayload { offset, len, checksum };
        bytes.extend_from_slice(stored);
    }
    Some(bytes)
}
