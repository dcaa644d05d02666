//! Looking at a device without changing it: blank, a pool's, or somebody else's.

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::FORMAT_VERSION;
use crate::format::superblock::{SUPERBLOCK_AREA_BYTES, Superblock};
use crate::units::{DeviceOffset, Uuid};

use super::root::{other_version, read_superblocks};

/// What a device holds, as seen before anything is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceContent {
    /// Zeros wherever content would be seen: it may be taken.
    Blank,
    /// Something that is not Sinter's.
    Foreign,
    /// A device of a pool in a version of the format that this program does not read.
    OtherVersion(u16),
    /// A device of a pool.
    Pool {
        /// The pool's id.
        pool: Uuid,
        /// This device's id.
        device: Uuid,
        /// Its place in the list.
        index: u32,
        /// The ids of all of the pool's devices, in order.
        devices: Vec<Uuid>,
    },
}

/// Looks at both ends of a device.
///
/// # Errors
/// `Device` where it cannot be read.
pub fn probe(device: &dyn Device) -> Result<DeviceContent> {
    let newest = read_superblocks(device).into_iter().max_by_key(|superblock| superblock.checkpoint);
    if let Some(superblock) = newest {
        return Ok(content_of(&superblock));
    }
    if let Some(version) = other_version(device) {
        return Ok(DeviceContent::OtherVersion(version));
    }
    let len = device.len().0;
    let area = SUPERBLOCK_AREA_BYTES.min(len);
    for offset in [0, len - area] {
        let mut bytes = vec![0u8; usize::try_from(area).expect("64 KiB")];
        device
            .read_at(DeviceOffset(offset), &mut bytes)
            .map_err(|error| Error::caused(ErrorKind::Device, format!("reading {}", device.name()), error))?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(DeviceContent::Foreign);
        }
    }
    Ok(DeviceContent::Blank)
}

/// Says that a device holds a pool of another version of the format.
#[must_use]
pub fn wrong_version(device: &dyn Device, version: u16) -> String {
    let name = device.name();
    format!(
        "{name} holds a pool of format version {version}, and this program reads version {FORMAT_VERSION}"
    )
}

fn content_of(superblock: &Superblock) -> DeviceContent {
    DeviceContent::Pool {
        pool: superblock.pool,
        device: superblock.devices[superblock.device as usize].id,
        index: superblock.device,
        devices: superblock.devices.iter().map(|device| device.id).collect(),
    }
}
