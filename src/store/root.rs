//! Superblocks and checkpoint roots: where everything begins.

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::location::Location;
use crate::format::page::{PAGE_HEADER_BYTES, encode_padding};
use crate::format::root::CheckpointRoot;
use crate::format::superblock::{
    ROOT_EXTENTS_MAX, RootExtent, SUPERBLOCK_AREA_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SLOT_BYTES, Superblock,
};
use crate::format::{FORMAT_VERSION, to_grain};
use crate::units::{CheckpointNumber, DeviceOffset};

use super::Store;
use super::core::Core;
use super::log::appender::Stream;
use super::run::Caller;

/// A root is never longer than this.
const ROOT_BYTES_MAX: usize = 1 << 30;

/// The places of a slot on a device of `len` bytes: at its start and at its end.
pub(crate) fn slot_offsets(device: &dyn Device, slot: u64) -> [DeviceOffset; 2] {
    let from_start = slot * SUPERBLOCK_SLOT_BYTES;
    [DeviceOffset(from_start), DeviceOffset(device.len().0 - SUPERBLOCK_AREA_BYTES + from_start)]
}

/// What a device has in the places of superblocks; what cannot be read is passed over.
fn read_slots(device: &dyn Device) -> Vec<Vec<u8>> {
    if device.len().0 < 2 * SUPERBLOCK_AREA_BYTES {
        return Vec::new();
    }
    let offsets = [0, 1].into_iter().flat_map(|slot| slot_offsets(device, slot));
    offsets
        .filter_map(|offset| {
            let mut bytes = vec![0u8; SUPERBLOCK_BYTES];
            device.read_at(offset, &mut bytes).ok().map(|()| bytes)
        })
        .collect()
}

/// Every valid superblock on a device.
pub(crate) fn read_superblocks(device: &dyn Device) -> Vec<Superblock> {
    read_slots(device).iter().filter_map(|bytes| Superblock::decode(bytes)).collect()
}

/// The format version of a pool's device that this program does not read.
pub(crate) fn other_version(device: &dyn Device) -> Option<u16> {
    let versions = read_slots(device).into_iter().filter_map(|bytes| Superblock::version(&bytes));
    versions.filter(|version| *version != FORMAT_VERSION).max()
}

/// How long the stored form of an extent is: it stands behind a header of padding, so that whoever walks the
/// segment passes over it.
fn extent_bytes(extent: &RootExtent) -> i64 {
    to_grain(PAGE_HEADER_BYTES + extent.len as usize) as i64
}

impl Store {
    /// Takes room for a root of `len` bytes, in stretches.
    fn place_root(&self, stream: Stream, len: usize) -> Result<Vec<RootExtent>> {
        let mut extents = Vec::new();
        let mut left = len;
        while left > 0 {
            let extent = self.run(Caller::Maintenance, |core| {
                let wanted = to_grain(left);
                let room = core.append_room(stream).saturating_sub(PAGE_HEADER_BYTES);
                let whole_segment = core.geometry.segment_bytes as usize - 2 * PAGE_HEADER_BYTES - 4096;
                let take = if room >= wanted.min(4096) { room } else { whole_segment }.min(wanted) & !15;
                core.prepare_append(stream, PAGE_HEADER_BYTES + take, 0)?;
                let padding = encode_padding(PAGE_HEADER_BYTES + take, core.pool_short);
                let (segment, offset) = core.append(stream, &padding);
                let start = Location { segment, offset: offset + PAGE_HEADER_BYTES as u32, len: 1 };
                let len = u32::try_from(take).expect("within a segment");
                let extent = RootExtent { start, len, checksum: 0 };
                core.segments.add_live_behind_picture(segment, extent_bytes(&extent));
                Ok(extent)
            })?;
            left = left.saturating_sub(extent.len as usize);
            extents.push(extent);
        }
        Ok(extents)
    }

    /// Writes a checkpoint's root, twice; its extents and those of its copy. `complete` fills in what is only
    /// known once the room for the root is taken.
    pub(crate) fn write_root(
        &self,
        root: &mut CheckpointRoot,
        complete: impl Fn(&Core, &mut CheckpointRoot),
    ) -> Result<(Vec<RootExtent>, Vec<RootExtent>)> {
        complete(&self.core.lock(), root);
        // Taking the room may change a few segments more.
        let len = to_grain(root.encode().len() + 17 * 64);
        let mut first = self.place_root(Stream::Metadata, len)?;
        let mut second = self.place_root(Stream::MetadataCopy, len)?;
        if first.len() + second.len() > ROOT_EXTENTS_MAX {
            return Err(Error::new(ErrorKind::Device, "a checkpoint's root is in too many pieces"));
        }
        {
            let mut core = self.core.lock();
            core.align_append(Stream::Metadata);
            core.align_append(Stream::MetadataCopy);
            complete(&core, root);
        }
        self.write_waiting(Stream::Metadata)?;
        self.write_waiting(Stream::MetadataCopy)?;
        let mut bytes = root.encode();
        assert!(bytes.len() <= len, "the room for the root was taken with a margin");
        bytes.resize(len, 0);
        for extents in [&mut first, &mut second] {
            let mut rest = bytes.as_slice();
            for extent in extents {
                let (piece, behind) = rest.split_at((extent.len as usize).min(rest.len()));
                extent.checksum = checksum(piece);
                extent.len = u32::try_from(piece.len()).expect("within a segment");
                self.write_segment(extent.start.segment, extent.start.offset, &[piece])?;
                rest = behind;
            }
        }
        Ok((first, second))
    }

    /// Reads the root that a superblock names, from either copy.
    pub(crate) fn read_root(&self, superblock: &Superblock) -> Result<CheckpointRoot> {
        for extents in [&superblock.root, &superblock.root_copy] {
            let total: usize = extents.iter().map(|extent| extent.len as usize).sum();
            if total == 0 || total > ROOT_BYTES_MAX {
                continue;
            }
            let mut bytes = vec![0u8; total];
            let mut rest = bytes.as_mut_slice();
            let intact = extents.iter().all(|extent| {
                let (piece, behind) = std::mem::take(&mut rest).split_at_mut(extent.len as usize);
                rest = behind;
                self.read_location(extent.start, piece).is_ok() && checksum(piece) == extent.checksum
            });
            if let Some(root) = intact.then(|| CheckpointRoot::decode(&bytes)).flatten() {
                return Ok(root);
            }
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!("the root of checkpoint {} is damaged, and so is its copy", superblock.checkpoint),
        ))
    }

    /// Writes the superblock of a checkpoint into the slot that is not current, at both ends of every device.
    pub(crate) fn write_superblocks(&self, superblock: &Superblock) -> Result<()> {
        let slot = superblock.checkpoint.0 % 2;
        for (index, device) in self.devices.iter().enumerate() {
            let device_index = u32::try_from(index).expect("at most 64");
            let bytes = Superblock { device: device_index, ..superblock.clone() }.encode();
            for offset in slot_offsets(&**device, slot) {
                device.write_at(offset, &[&bytes]).map_err(|error| {
                    let what = format!("writing the superblock of {}", device.name());
                    Error::caused(ErrorKind::Device, what, error)
                })?;
            }
        }
        Ok(())
    }

    /// Lets go of the room of a root that is not needed any more.
    pub(crate) fn let_go_of_root(core: &mut Core, extents: &[RootExtent]) {
        for extent in extents {
            core.segments.add_live_behind_picture(extent.start.segment, -extent_bytes(extent));
        }
    }

    /// The superblock for a checkpoint.
    pub(crate) fn superblock(
        &self,
        checkpoint: CheckpointNumber,
        incarnation: crate::units::Incarnation,
        root: Vec<RootExtent>,
        root_copy: Vec<RootExtent>,
    ) -> Superblock {
        Superblock { checkpoint, incarnation, root, root_copy, ..self.identity.clone() }
    }
}
