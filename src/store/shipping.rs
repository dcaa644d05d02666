//! Reading for another node: what an object maps, by fingerprint, and blocks as they are stored.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::location::Location;
use crate::format::page::Mapping;
use crate::units::{BlockCount, BlockId, Fingerprint, Lba, ObjectNumber};

use super::Store;
use super::apply::{MAPPINGS_MAX, ShippedMapping};
use super::core::{Core, Stall};
use super::map::ObjectRoot;
use super::run::Caller;

/// The stored bytes of a block, and their checksum.
type Stored = (Vec<u8>, u64);

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
        if count.0 > MAPPINGS_MAX as u64 {
            let what = format!("{count} blocks are asked for: at most {MAPPINGS_MAX} are shipped at once");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mut mappings = Vec::with_capacity(MAPPINGS_MAX);
        self.run(Caller::Request, |core| {
            mappings.clear();
            core.ship_mappings(object, first, count.0, &mut mappings)?;
            deliver(&mappings);
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
            Some(block) => self.read_held(|core| core.hold(block, fingerprint)),
            None => Ok(None),
        }
    }

    /// As `stored_block`, found through what an object maps now; `None` also where that is another block by now, or
    /// the object is gone.
    ///
    /// # Errors
    /// `Device`.
    pub fn stored_block_at(
        &self,
        object: ObjectNumber,
        lba: Lba,
        fingerprint: &Fingerprint,
    ) -> Result<Option<(Vec<u8>, u64)>> {
        self.read_held(|core| {
            let Some(slot) = core.objects.get(object).filter(|slot| lba.0 < slot.size.0) else {
                return Ok(None);
            };
            let root = ObjectRoot::from(slot);
            let mut found = None;
            core.visit_mappings(&root, lba, 1, |_, _, mapping| {
                if let Mapping::Block(block) = mapping {
                    found = Some(block);
                }
                Ok(true)
            })?;
            found.map_or(Ok(None), |block| core.hold(block, fingerprint))
        })
    }

    /// Reads and checks the stored bytes of what `find` has found.
    fn read_held(
        &self,
        find: impl FnMut(&mut Core) -> Result<Option<Held>, Stall>,
    ) -> Result<Option<Stored>> {
        let held = match self.run(Caller::Request, find) {
            // A page that is damaged costs this block: another node may have it.
            Err(error) if error.kind() == ErrorKind::Corrupt => None,
            other => other?,
        };
        match held {
            None => Ok(None),
            Some(Held::Memory(bytes, from, location, sum)) => {
                let stored = bytes.get(from..from + usize::from(location.len));
                let intact = stored.filter(|stored| checksum(stored) == sum);
                Ok(intact.map(|stored| (stored.to_vec(), sum)))
            }
            Some(Held::Device(block, location, sum)) => {
                let mut stored = vec![0u8; usize::from(location.len)];
                let read = self.read_location(location, &mut stored);
                self.core.lock().segments.unpin(location.segment);
                read?;
                if checksum(&stored) != sum {
                    self.note_bad_block(block, location);
                    return Ok(None);
                }
                Ok(Some((stored, sum)))
            }
        }
    }
}

impl Core {
    fn ship_mappings(
        &mut self,
        object: ObjectNumber,
        first: Lba,
        count: u64,
        mappings: &mut Vec<ShippedMapping>,
    ) -> Result<(), Stall> {
        let slot = self.object(object)?;
        if first.0.checked_add(count).is_none_or(|end| end > slot.size.0) {
            let what = format!("{count} blocks from {first} on do not lie within object {object}");
            return Err(Error::new(ErrorKind::Invalid, what).into());
        }
        let root = ObjectRoot::from(slot);
        self.visit_mappings(&root, first, count, |core, at, mapping| {
            mappings.push(match mapping {
                Mapping::Hole => ShippedMapping::Hole,
                Mapping::Pattern(word) => ShippedMapping::Pattern(word),
                Mapping::Lost => {
                    let what = format!("block {} of object {object} was given up as lost", first.plus(at));
                    return Err(Error::new(ErrorKind::Corrupt, what).into());
                }
                Mapping::Block(block) => {
                    let entry = core.block_entry(block)?;
                    if entry.location.is_none() {
                        let what = format!("object {object} names block {block}, which does not exist");
                        return Err(Error::new(ErrorKind::Corrupt, what).into());
                    }
                    ShippedMapping::Block { fingerprint: entry.fingerprint, payload: None }
                }
            });
            Ok(true)
        })
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
