//! Reading for another node: what an object maps, by fingerprint, and blocks as they are stored.
//!
//! What cannot be read must not keep that node waiting for ever: it fails its check, or its device has an error there
//! again and again and none elsewhere, and so it is lost. A device that reads nothing at all is another matter.

use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::location::Location;
use crate::format::page::{Mapping, PageKey, PagePointer};
use crate::units::{BLOCK_BYTES, BlockCount, BlockId, DeviceOffset, Fingerprint, Lba, ObjectNumber};

use super::Store;
use super::apply::{MAPPINGS_MAX, ShippedMapping};
use super::core::{Core, Stall};
use super::map::{ObjectRoot, span};
use super::read::MappedRun;
use super::run::Caller;

/// The stored bytes of a block, and their checksum.
type Stored = (Vec<u8>, u64);

/// A page as it could not be read.
type Damaged = (PageKey, PagePointer);

/// What an object holds at a place where it held a block with some fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockAt {
    /// The stored bytes of that block, and their checksum.
    Stored(Vec<u8>, u64),
    /// That block or whatever else, and it cannot be read: it fails its check, or the device fails at that place, or it
    /// was given up as lost, or what leads to it is damaged.
    Unreadable,
    /// Something else, or the object is gone.
    Another,
}

/// Where the stored bytes of a block are.
enum Held {
    Memory(Arc<Vec<u8>>, usize, Location, u64),
    /// The segment is pinned.
    Device(BlockId, Location, u64),
}

impl Store {
    /// Hands what an object maps from `first` on, without payloads, to `deliver`, in one hold of the commit lock: what
    /// is delivered stands between what the sink saw before and what it sees afterwards. Like the sink, `deliver` may
    /// only append to something whose room was made sure of.
    ///
    /// # Errors
    /// `Invalid` for a range that is not within the object or longer than 256 blocks; `NotFound`; `Corrupt` for what is
    /// lost or cannot be read; `Device`. Then nothing was delivered.
    pub fn shipped_mappings(
        &self,
        object: ObjectNumber,
        first: Lba,
        count: BlockCount,
        deliver: &mut dyn FnMut(&[ShippedMapping]),
    ) -> Result<()> {
        check_count(count)?;
        let mut mappings = Vec::with_capacity(MAPPINGS_MAX);
        self.run(Caller::Request, |core| {
            mappings.clear();
            core.ship_mappings(object, first, count.0, None, &mut mappings)?;
            deliver(&mappings);
            Ok(())
        })
    }

    /// As `shipped_mappings`, but that what is lost, or cannot be told because a page is damaged, is delivered as lost.
    ///
    /// # Errors
    /// As `shipped_mappings`, but `Corrupt`; `Device` only where the device reads nothing else either.
    pub fn mappings_as_far_as_readable(
        &self,
        object: ObjectNumber,
        first: Lba,
        count: BlockCount,
        deliver: &mut dyn FnMut(&[ShippedMapping]),
    ) -> Result<()> {
        check_count(count)?;
        let mut mappings = Vec::with_capacity(MAPPINGS_MAX);
        let mut damaged: Vec<Damaged> = Vec::new();
        // These a device has failed to read once.
        let mut failed: Vec<Damaged> = Vec::new();
        loop {
            let mut asked = None;
            let outcome = self.run(Caller::Request, |core| {
                mappings.clear();
                let shipped = core.ship_mappings(object, first, count.0, Some(&damaged), &mut mappings);
                asked = match &shipped {
                    Err(Stall::Load(key, pointer)) => Some((*key, *pointer)),
                    _ => None,
                };
                shipped?;
                deliver(&mappings);
                Ok(())
            });
            match (outcome, asked) {
                (Err(error), Some(page)) if error.kind() == ErrorKind::Device && !failed.contains(&page) => {
                    failed.push(page);
                }
                // What it leads to is lost, unless somebody has written the page anew by the next attempt.
                (Err(error), Some(page)) if self.is_damage(&error) => damaged.push(page),
                (outcome, _) => return outcome,
            }
        }
    }

    /// Hands the kinds of what an object maps from `first` on, for at least one and at most `count` blocks, to `deliver`,
    /// as `shipped_mappings` does.
    ///
    /// # Errors
    /// `Invalid` for a range that is not within the object; `NotFound`; `Corrupt`, `Device` for what cannot be read.
    /// Then nothing was delivered.
    pub fn shipped_kinds(
        &self,
        object: ObjectNumber,
        first: Lba,
        count: BlockCount,
        deliver: &mut dyn FnMut(&[MappedRun]),
    ) -> Result<()> {
        self.run(Caller::Request, |core| {
            let root = core.root_for_range(object, first, count.0)?;
            let (_, kinds) = core.leaf_kinds(root, first, count.0)?;
            let runs = kinds.into_iter().map(|(blocks, kind)| MappedRun { blocks: BlockCount(blocks), kind });
            deliver(&runs.collect::<Vec<_>>());
            Ok(())
        })
    }

    /// The stored bytes of the block with this fingerprint (compressed, or the block itself where they are 4,096) and
    /// their checksum, where this store can find it and it is intact. The index that is asked may have forgotten it.
    ///
    /// # Errors
    /// `Device`.
    pub fn stored_block(&self, fingerprint: &Fingerprint) -> Result<Option<(Vec<u8>, u64)>> {
        match self.index.probe(fingerprint) {
            Some(block) => match self.run(Caller::Request, |core| core.hold(block, fingerprint)) {
                Ok(held) => held.map_or(Ok(None), |held| self.read_held(&held)),
                // A page that is damaged costs this block: another node may have it.
                Err(error) if self.is_damage(&error) => Ok(None),
                Err(error) => Err(error),
            },
            None => Ok(None),
        }
    }

    /// As `stored_block`, found through what an object maps now.
    ///
    /// # Errors
    /// `Device`.
    pub fn block_at(&self, object: ObjectNumber, lba: Lba, fingerprint: &Fingerprint) -> Result<BlockAt> {
        let found = self.run(Caller::Request, |core| {
            let Some(slot) = core.objects.get(object).filter(|slot| lba.0 < slot.size.0) else {
                return Ok(Err(BlockAt::Another));
            };
            let root = ObjectRoot::from(slot);
            let mut mapped = Mapping::Hole;
            core.visit_mappings(&root, lba, 1, |_, _, mapping| {
                mapped = mapping;
                Ok(true)
            })?;
            Ok(match mapped {
                Mapping::Hole | Mapping::Pattern(_) => Err(BlockAt::Another),
                Mapping::Lost => Err(BlockAt::Unreadable),
                Mapping::Block(block) => match core.hold(block, fingerprint)? {
                    Some(held) => Ok(held),
                    None if core.is_another(block, fingerprint)? => Err(BlockAt::Another),
                    None => Err(BlockAt::Unreadable),
                },
            })
        });
        match found {
            Ok(Ok(held)) => {
                let stored = self.read_held(&held)?;
                Ok(stored.map_or(BlockAt::Unreadable, |(stored, sum)| BlockAt::Stored(stored, sum)))
            }
            Ok(Err(other)) => Ok(other),
            Err(error) if self.is_damage(&error) => Ok(BlockAt::Unreadable),
            Err(error) => Err(error),
        }
    }

    /// Whether it is a place that could not be read, and not its device: that reads others.
    pub(crate) fn is_damage(&self, error: &Error) -> bool {
        match error.kind() {
            ErrorKind::Corrupt => true,
            ErrorKind::Device => self.devices.iter().all(|device| reads_anything(&**device)),
            _ => false,
        }
    }

    /// Reads and checks the stored bytes of a block; `None` where they fail.
    fn read_held(&self, held: &Held) -> Result<Option<Stored>> {
        match *held {
            Held::Memory(ref bytes, from, location, sum) => {
                let stored = bytes.get(from..from + usize::from(location.len));
                let intact = stored.filter(|stored| checksum(stored) == sum);
                Ok(intact.map(|stored| (stored.to_vec(), sum)))
            }
            Held::Device(block, location, sum) => {
                let mut stored = vec![0u8; usize::from(location.len)];
                // A device may fail once and no more.
                let read = self.read_location(location, &mut stored);
                let read = read.or_else(|_| self.read_location(location, &mut stored));
                self.core.lock().segments.unpin(location.segment);
                match read {
                    Ok(()) if checksum(&stored) == sum => return Ok(Some((stored, sum))),
                    Err(error) if !self.is_damage(&error) => return Err(error),
                    _ => {}
                }
                self.note_bad_block(block, location);
                Ok(None)
            }
        }
    }
}

/// Whether a device can be read where every pool has something, and not from memory only.
fn reads_anything(device: &dyn Device) -> bool {
    let mut block = [0u8; BLOCK_BYTES];
    device.drop_cache().and_then(|()| device.read_at(DeviceOffset(0), &mut block)).is_ok()
}

fn check_count(count: BlockCount) -> Result<()> {
    if count.0 > MAPPINGS_MAX as u64 {
        let what = format!("{count} blocks are asked for: at most {MAPPINGS_MAX} are shipped at once");
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    Ok(())
}

impl Core {
    fn ship_mappings(
        &mut self,
        object: ObjectNumber,
        first: Lba,
        count: u64,
        damaged: Option<&[Damaged]>,
        mappings: &mut Vec<ShippedMapping>,
    ) -> Result<(), Stall> {
        let root = self.root_for_range(object, first, count)?;
        // With `damaged` what is behind such a page, or makes no sense, is lost; without, it is an error.
        let is_lost = |stall: &Stall| match stall {
            Stall::Load(key, pointer) => damaged.is_some_and(|pages| pages.contains(&(*key, *pointer))),
            Stall::Fail(error) => damaged.is_some() && error.kind() == ErrorKind::Corrupt,
            Stall::Allocate { .. } | Stall::Room(_) => false,
        };
        let end = first.plus(count);
        let mut at = first;
        while at < end {
            let leaf = (span(0) - at.0 % span(0)).min(end.0 - at.0);
            let visited = self.visit_mappings(&root, at, leaf, |core, within, mapping| {
                mappings.push(match core.ship_mapping(object, at.plus(within), mapping) {
                    Err(stall) if is_lost(&stall) => ShippedMapping::Lost,
                    other => other?,
                });
                Ok(true)
            });
            at = at.plus(leaf);
            match visited {
                Err(stall) if is_lost(&stall) => {
                    let so_far = usize::try_from(at.0 - first.0).expect("at most 256");
                    mappings.resize(so_far, ShippedMapping::Lost);
                }
                other => other?,
            }
        }
        Ok(())
    }

    fn ship_mapping(
        &mut self,
        object: ObjectNumber,
        lba: Lba,
        mapping: Mapping,
    ) -> Result<ShippedMapping, Stall> {
        Ok(match mapping {
            Mapping::Hole => ShippedMapping::Hole,
            Mapping::Pattern(word) => ShippedMapping::Pattern(word),
            Mapping::Lost => {
                let what = format!("block {lba} of object {object} was given up as lost");
                return Err(Error::new(ErrorKind::Corrupt, what).into());
            }
            Mapping::Block(block) => {
                let entry = self.block_entry(block)?;
                if entry.location.is_none() {
                    let what = format!("object {object} names block {block}, which does not exist");
                    return Err(Error::new(ErrorKind::Corrupt, what).into());
                }
                ShippedMapping::Block { fingerprint: entry.fingerprint, payload: None }
            }
        })
    }

    /// The map of an object, a range of which is looked at.
    fn root_for_range(&self, object: ObjectNumber, first: Lba, count: u64) -> Result<ObjectRoot, Error> {
        let slot = self.object(object)?;
        if first.0.checked_add(count).is_none_or(|end| end > slot.size.0) {
            let what = format!("{count} blocks from {first} on do not lie within object {object}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(ObjectRoot::from(slot))
    }

    /// Whether a block that is mapped has another fingerprint.
    fn is_another(&mut self, block: BlockId, fingerprint: &Fingerprint) -> Result<bool, Stall> {
        if block.0 >= self.block_ids.high_water {
            return Ok(false);
        }
        let entry = self.block_entry(block)?;
        Ok(!entry.location.is_none() && entry.fingerprint != *fingerprint)
    }

    /// Where the stored bytes of a block are, if it has this fingerprint; their segment is pinned.
    fn hold(&mut self, block: BlockId, fingerprint: &Fingerprint) -> Result<Option<Held>, Stall> {
        if block.0 >= self.block_ids.high_water {
            return Ok(None);
        }
        let entry = self.block_entry(block)?;
        let location = entry.location;
        if location.is_none()
            || entry.fingerprint != *fingerprint
            || location.segment.0 >= self.segments.count()
        {
            return Ok(None);
        }
        Ok(Some(match self.log.in_memory(location) {
            Some((bytes, from)) => Held::Memory(bytes, from, location, entry.checksum),
            None => {
                self.segments.pin(location.segment);
                Held::Device(block, location, entry.checksum)
            }
        }))
    }
}
