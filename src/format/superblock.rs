//! The superblock: which pool a device belongs to, and where the newest checkpoint begins.
//!
//! Each device has two slots at its start and the same two at its end; a checkpoint writes the slot
//! that is not current, at both ends of every device.

use crate::units::{ByteCount, CheckpointNumber, Incarnation, Uuid};

use super::bytes::{Append, Reader};
use super::location::Location;
use super::{FORMAT_VERSION, checksum};

/// Bytes of a superblock.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Bytes at either end of a device that belong to its superblocks.
pub const SUPERBLOCK_AREA_BYTES: u64 = 64 * 1024;
/// Distance between the two slots of one end.
pub const SUPERBLOCK_SLOT_BYTES: u64 = 32 * 1024;
/// Most devices of a pool.
pub const DEVICES_MAX: usize = 64;
/// Most extents of a checkpoint's root, copies included.
pub const ROOT_EXTENTS_MAX: usize = 96;

/// The first bytes of every Sinter device.
pub const MAGIC: [u8; 8] = *b"SINTER\x1a\x01";
const SUMMED_BYTES: usize = SUPERBLOCK_BYTES - 8;

/// One device of the pool, as every superblock lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    /// Its id.
    pub id: Uuid,
    /// Segments on it.
    pub segments: u32,
}

/// A stretch of the root, in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootExtent {
    /// Where it begins; the length stands beside it, because it may be longer than a location can say.
    pub start: Location,
    /// Its length in bytes.
    pub len: u32,
    /// Checksum of these bytes.
    pub checksum: u64,
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The pool's id.
    pub pool: Uuid,
    /// Key of the fingerprints; belongs to the array.
    pub fingerprint_key: [u8; 32],
    /// Which of `devices` this is.
    pub device: u32,
    /// All devices of the pool, in order.
    pub devices: Vec<DeviceRecord>,
    /// Bytes of a segment.
    pub segment_bytes: ByteCount,
    /// When the pool was made: milliseconds since 1970.
    pub created: u64,
    /// The checkpoint.
    pub checkpoint: CheckpointNumber,
    /// The opening that wrote it.
    pub incarnation: Incarnation,
    /// The stretches of its root, in order.
    pub root: Vec<RootExtent>,
    /// Where each stretch stands a second time, in the same order.
    pub root_copy: Vec<RootExtent>,
}

impl Superblock {
    /// The stored form.
    ///
    /// # Panics
    /// With more devices or extents than fit: whoever makes them checks.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.devices.len() <= DEVICES_MAX);
        assert!(self.root.len() + self.root_copy.len() <= ROOT_EXTENTS_MAX);
        let mut bytes = Vec::with_capacity(SUPERBLOCK_BYTES);
        bytes.put_slice(&MAGIC);
        bytes.put_u16(FORMAT_VERSION);
        bytes.put_u16(u16::try_from(self.devices.len()).expect("at most 64"));
        bytes.put_u16(u16::try_from(self.root.len()).expect("at most 96"));
        bytes.put_u16(u16::try_from(self.root_copy.len()).expect("at most 96"));
        bytes.put_slice(&self.pool.0);
        bytes.put_slice(&self.fingerprint_key);
        bytes.put_u32(self.device);
        bytes.put_u32(0);
        bytes.put_u64(self.segment_bytes.0);
        bytes.put_u64(self.created);
        bytes.put_u64(self.checkpoint.0);
        bytes.put_u64(self.incarnation.0);
        for device in &self.devices {
            bytes.put_slice(&device.id.0);
            bytes.put_u32(device.segments);
        }
        for extent in self.root.iter().chain(&self.root_copy) {
            bytes.put_u64(extent.start.pack());
            bytes.put_u32(extent.len);
            bytes.put_u64(extent.checksum);
        }
        bytes.pad_to(SUMMED_BYTES);
        let sum = checksum(&bytes);
        bytes.put_u64(sum);
        bytes
    }

    /// The format version of a whole superblock, be it one that `decode` does not read.
    #[must_use]
    pub fn version(bytes: &[u8]) -> Option<u16> {
        let summed = bytes.get(..SUMMED_BYTES)?;
        if Reader::new(bytes.get(SUMMED_BYTES..)?).u64()? != checksum(summed) {
            return None;
        }
        let mut reader = Reader::new(summed);
        if reader.array()? != MAGIC { None } else { reader.u16() }
    }

    /// Reads the stored form; `None` for anything that is not a whole, valid superblock of this version.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Superblock> {
        if Superblock::version(bytes)? != FORMAT_VERSION {
            return None;
        }
        let mut reader = Reader::new(&bytes[MAGIC.len() + 2..SUMMED_BYTES]);
        let device_count = usize::from(reader.u16()?);
        let root_count = usize::from(reader.u16()?);
        let copy_count = usize::from(reader.u16()?);
        if device_count > DEVICES_MAX || root_count + copy_count > ROOT_EXTENTS_MAX {
            return None;
        }
        let pool = Uuid(reader.array()?);
        let fingerprint_key = reader.array()?;
        let device = reader.u32()?;
        reader.u32()?;
        let segment_bytes = ByteCount(reader.u64()?);
        let created = reader.u64()?;
        let checkpoint = CheckpointNumber(reader.u64()?);
        let incarnation = Incarnation(reader.u64()?);
        let mut devices = Vec::with_capacity(device_count);
        for _ in 0..device_count {
            devices.push(DeviceRecord { id: Uuid(reader.array()?), segments: reader.u32()? });
        }
        if device as usize >= device_count {
            return None;
        }
        let mut extents = |count: usize| -> Option<Vec<RootExtent>> {
            (0..count)
                .map(|_| {
                    let start = Location::unpack(reader.u64()?);
                    Some(RootExtent { start, len: reader.u32()?, checksum: reader.u64()? })
                })
                .collect()
        };
        let root = extents(root_count)?;
        let root_copy = extents(copy_count)?;
        Some(Superblock {
            pool,
            fingerprint_key,
            device,
            devices,
            segment_bytes,
            created,
            checkpoint,
            incarnation,
            root,
            root_copy,
        })
    }
}
