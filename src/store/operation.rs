//! What an operation does to the tables: one function for operations that are committed, replayed, or
//! received.

use crate::error::{Error, ErrorKind};
use crate::format::batch::{LoggedOperation, MappingRecord};
use crate::format::location::Location;
use crate::format::objects::{OBJECTS_MAX, OPAQUE_BYTES_MAX, ObjectSlot};
use crate::format::operation::{CLONES_MAX, CloneRecord};
use crate::format::page::{BLOCK_ENTRIES_PER_PAGE, BlockEntry, Mapping, Table};
use crate::format::to_grain;
use crate::units::{BLOCK_BYTES, BlockCount, BlockId, Lba, MapNodeId, ObjectNumber, SegmentId};

use super::blocks::ids::Space;
use super::blocks::table::{block_page, count_page};
use super::core::{Core, Room, Stall};
use super::geometry::Geometry;
use super::map::change::Needs;
use super::map::zero::ZeroPlan;
use super::map::{ObjectRoot, level_for, span};

/// Where the payloads of an operation begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PayloadPlace {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
}

/// What an operation may fill of the pool, and so how early it stops when the pool is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Data of hosts: stops first.
    Write,
    /// Trims and zeroes that copy shared nodes.
    Trim,
    /// New objects and new descriptions: stop last.
    Management,
    /// What makes space always goes.
    Nothing,
}

impl Claim {
    /// Segments that its log leaves free. What makes space takes one of the next checkpoint but one where it must:
    /// its log holds nothing that is live, so that the next checkpoint gives the segment back.
    pub(crate) fn segments_kept(self, geometry: &Geometry) -> usize {
        let of_checkpoints = 2 * geometry.checkpoint_segments;
        match self {
            Claim::Write => geometry.log_keeps_free(),
            Claim::Trim | Claim::Management => of_checkpoints + 2,
            Claim::Nothing => geometry.checkpoint_segments,
        }
    }

    /// A trim that copies no node makes space.
    pub(crate) fn of_zero(needs: &Needs) -> Claim {
        if needs.nodes > 0 { Claim::Trim } else { Claim::Nothing }
    }
}

/// Largest volume: what a tree of the highest level covers, and 256 TiB.
pub const OBJECT_BLOCKS_MAX: BlockCount = BlockCount(1 << 36);
/// The highest number of an object: far beyond what making one after the other leads to.
const OBJECT_NUMBER_MAX: u64 = 1 << 62;

/// An operation whose pages are all in memory.
#[derive(Debug)]
pub(crate) enum Prepared {
    Plain,
    Zero(ZeroPlan),
}

impl Core {
    /// Brings in what an operation touches and makes sure of its node ids; what it needs.
    ///
    /// # Errors
    /// A stall while something is missing; `NotFound`, `Invalid`, `Exists` for what cannot be done at all.
    pub(crate) fn prepare_operation(
        &mut self,
        operation: &LoggedOperation,
        zero_steps: usize,
    ) -> Result<(Prepared, Needs), Stall> {
        let mut needs = Needs::default();
        let mut prepared = Prepared::Plain;
        match operation {
            LoggedOperation::Write { object, first, mappings } => {
                let root = self.check_range(*object, *first, mappings.len() as u64)?;
                self.prepare_write(root, *first, mappings, &mut needs)?;
            }
            LoggedOperation::Zero { object, first, count } => {
                let root = self.check_range(*object, *first, count.0)?;
                let plan = self.plan_zero(root, *first, count.0, zero_steps)?;
                needs = plan.needs;
                prepared = Prepared::Zero(plan);
            }
            LoggedOperation::CreateObject { object, size, opaque } => {
                check_object(*size, opaque)?;
                self.check_vacant(*object)?;
                self.check_number_of_objects(1)?;
                needs.objects = 1;
            }
            LoggedOperation::CloneObjects { clones } => {
                self.check_clones(clones)?;
                needs.objects = clones.len();
                needs.changes = clones.len();
            }
            LoggedOperation::RestoreObject { object, source, size, opaque } => {
                check_object(*size, opaque)?;
                self.check_restore(*object, *source, *size)?;
                needs = Needs::of_raised_root();
                needs.changes += 2;
            }
            LoggedOperation::UpdateObject { object, size, opaque } => {
                check_object(*size, opaque)?;
                let slot = self.object(*object)?;
                if *size < slot.size {
                    let what = format!("object {object} cannot shrink");
                    return Err(Error::new(ErrorKind::Invalid, what).into());
                }
                needs = Needs::of_raised_root();
            }
            LoggedOperation::DeleteObject { object } => {
                self.object(*object)?;
                needs.changes = 1;
            }
            LoggedOperation::Moved { .. } => {
                let what = "moved blocks are no operation";
                return Err(Error::new(ErrorKind::Corrupt, what).into());
            }
        }
        self.prepare_ids(Space::Nodes, needs.nodes)?;
        // A later step of the operation may ask whether a node that an earlier one added is shared.
        let added: Vec<u64> = self.node_ids.upcoming(needs.nodes).collect();
        for node in added {
            self.bring_in(count_page(Table::NodeCounts, node))?;
        }
        Ok((prepared, needs))
    }

    fn check_vacant(&self, object: ObjectNumber) -> Result<(), Error> {
        if object.0 > OBJECT_NUMBER_MAX {
            let what = format!("{object} is no number of an object: they end at {OBJECT_NUMBER_MAX}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        if self.objects.get(object).is_some() || object.0 == 0 {
            return Err(Error::new(ErrorKind::Exists, format!("object {object} exists already")));
        }
        Ok(())
    }

    fn check_number_of_objects(&self, added: usize) -> Result<(), Error> {
        if self.objects.len() + added > OBJECTS_MAX {
            let what =
                format!("{added} more than {} are more than {OBJECTS_MAX} objects", self.objects.len());
            return Err(Error::new(ErrorKind::NoSpace, what));
        }
        Ok(())
    }

    fn check_clones(&self, clones: &[CloneRecord]) -> Result<(), Error> {
        if clones.is_empty() || clones.len() > CLONES_MAX {
            let what =
                format!("{} objects to clone: it must be from 1 to {CLONES_MAX} at once", clones.len());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        for (position, clone) in clones.iter().enumerate() {
            check_opaque(&clone.opaque)?;
            self.object(clone.source)?;
            self.check_vacant(clone.object)?;
            if clones[..position].iter().any(|before| before.object == clone.object) {
                let what = format!("object {} is to be made twice", clone.object);
                return Err(Error::new(ErrorKind::Exists, what));
            }
        }
        self.check_number_of_objects(clones.len())
    }

    fn check_restore(
        &self,
        target: ObjectNumber,
        source: ObjectNumber,
        size: BlockCount,
    ) -> Result<(), Error> {
        let least = self.object(target)?.size.max(self.object(source)?.size);
        if target == source {
            let what = format!("object {target} cannot be restored from itself");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        if size < least {
            let what =
                format!("object {target} cannot have {size} blocks: it keeps its size, and needs {least}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(())
    }

    fn check_range(&self, object: ObjectNumber, first: Lba, count: u64) -> Result<ObjectRoot, Error> {
        let slot = self.object(object)?;
        if count == 0 || first.0.checked_add(count).is_none_or(|end| end > slot.size.0) {
            let what = format!("{count} blocks from {first} on do not lie within object {object}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(ObjectRoot::from(slot))
    }

    fn prepare_write(
        &mut self,
        root: ObjectRoot,
        first: Lba,
        mappings: &[MappingRecord],
        needs: &mut Needs,
    ) -> Result<(), Stall> {
        let end = first.0 + mappings.len() as u64;
        let mut position = first.0;
        while position < end {
            self.prepare_path(root, Lba(position), 0, needs)?;
            position = (position / span(0) + 1) * span(0);
        }
        needs.changes += 2 * mappings.len() + usize::from(root.level) + 1;
        let mut last = u64::MAX;
        for mapping in mappings {
            if let MappingRecord::New { block, .. } = mapping {
                self.bring_in(block_page(*block))?;
                if block.0 / BLOCK_ENTRIES_PER_PAGE != last {
                    last = block.0 / BLOCK_ENTRIES_PER_PAGE;
                    needs.pages += 1;
                }
            }
        }
        Ok(())
    }

    /// Whether there is room for an operation in memory and in the account; the log is asked beside.
    ///
    /// # Errors
    /// A stall while there is none.
    pub(crate) fn check_room(&self, needs: &Needs, bytes: u64, claim: Claim) -> Result<(), Stall> {
        let changes = self.block_changes.len() + self.node_changes.len();
        if changes + needs.changes > self.geometry.changes
            || self.unstored_pages() + needs.pages > self.geometry.dirty_limit
        {
            return Err(Stall::Room(Room::Memory));
        }
        // Snapshots wait for no device, and hold up no checkpoint that writes have room for.
        if matches!(claim, Claim::Write | Claim::Trim)
            && self.segments.ready() < self.stock_for_checkpoints(needs.pages)
            && let Some(segment) = self.segments.not_ready()
        {
            return Err(Stall::Allocate { segment, kept: usize::MAX });
        }
        let limit = match claim {
            Claim::Write => self.geometry.usable_bytes,
            Claim::Trim => self.geometry.trim_bytes,
            Claim::Management => self.geometry.management_bytes,
            Claim::Nothing => return Ok(()),
        };
        let metadata = (needs.pages + needs.nodes + 2 * needs.objects) as u64 * 4160;
        if self.accounted_bytes() + bytes + metadata > limit {
            return Err(Stall::Room(Room::Space));
        }
        Ok(())
    }

    /// Does what an operation says; prepared in the same hold of the lock.
    pub(crate) fn apply_operation(
        &mut self,
        operation: &LoggedOperation,
        prepared: &Prepared,
        place: PayloadPlace,
    ) {
        match operation {
            LoggedOperation::Write { object, first, mappings } => {
                let mappings = self.apply_blocks(mappings, place);
                self.set_mappings(*object, *first, &mappings);
            }
            LoggedOperation::Zero { object, .. } => {
                if let Prepared::Zero(plan) = prepared {
                    self.carry_out_zero(*object, plan);
                }
            }
            LoggedOperation::CreateObject { object, size, opaque } => self.objects.add(ObjectSlot {
                number: *object,
                root: MapNodeId(0),
                root_level: level_for(*size),
                size: *size,
                mapped: BlockCount(0),
                opaque: opaque.clone(),
            }),
            LoggedOperation::UpdateObject { object, size, opaque } => {
                self.raise_root(*object, level_for(*size));
                let slot = self.objects.change(*object).expect("the operation was prepared");
                slot.size = *size;
                slot.opaque.clone_from(opaque);
            }
            LoggedOperation::DeleteObject { object } => {
                let slot = self.objects.remove(*object).expect("the operation was prepared");
                if slot.root.0 != 0 {
                    self.node_changes.note(slot.root.0, -1);
                }
            }
            LoggedOperation::CloneObjects { clones } => {
                for clone in clones {
                    let source = self.objects.get(clone.source).expect("the operation was prepared");
                    let made =
                        ObjectSlot { number: clone.object, opaque: clone.opaque.clone(), ..source.clone() };
                    self.share_root(made.root);
                    self.objects.add(made);
                }
            }
            LoggedOperation::RestoreObject { object, source, size, opaque } => {
                let ObjectSlot { root, root_level, mapped, .. } =
                    *self.objects.get(*source).expect("the operation was prepared");
                self.share_root(root);
                let target = self.objects.change(*object).expect("the operation was prepared");
                let before = std::mem::replace(&mut target.root, root);
                (target.root_level, target.mapped) = (root_level, mapped);
                target.opaque.clone_from(opaque);
                target.size = *size;
                if before.0 != 0 {
                    self.node_changes.note(before.0, -1);
                }
                self.raise_root(*object, level_for(*size));
            }
            LoggedOperation::Moved { .. } => {}
        }
    }

    /// One more reference to the root of a map: what is below it is shared from now on.
    fn share_root(&mut self, root: MapNodeId) {
        if root.0 != 0 {
            self.node_changes.note(root.0, 1);
            self.sharing += 1;
        }
    }

    /// Enters new blocks into the table; the mappings that the map gets.
    fn apply_blocks(&mut self, mappings: &[MappingRecord], place: PayloadPlace) -> Vec<Mapping> {
        let mut offset = place.offset;
        let mut pass = |len: u16| {
            let at = offset;
            offset += u32::try_from(to_grain(usize::from(len))).expect("at most 4096");
            at
        };
        mappings
            .iter()
            .map(|mapping| match *mapping {
                MappingRecord::Hole => Mapping::Hole,
                MappingRecord::Pattern(word) => Mapping::Pattern(word),
                MappingRecord::Lost => Mapping::Lost,
                MappingRecord::New { block, stored_len, fingerprint, checksum } => {
                    let location =
                        Location { segment: place.segment, offset: pass(stored_len), len: stored_len };
                    self.set_block_entry(
                        block,
                        BlockEntry { location, crowded: false, fingerprint, checksum },
                    );
                    Mapping::Block(block)
                }
                MappingRecord::Existing { block, dead_len } => {
                    pass(dead_len);
                    Mapping::Block(block)
                }
            })
            .collect()
    }

    /// Replay: ids that an operation names were given out.
    ///
    /// # Errors
    /// A stall while a page of freed ids is not in memory.
    pub(crate) fn prepare_replayed_ids(
        &mut self,
        operation: &LoggedOperation,
    ) -> Result<Vec<BlockId>, Stall> {
        let mut blocks = Vec::new();
        if let LoggedOperation::Write { mappings, .. } = operation {
            for mapping in mappings {
                if let MappingRecord::New { block, stored_len, .. } = mapping {
                    if usize::from(*stored_len) > BLOCK_BYTES || *stored_len == 0 {
                        let what = "a logged block is longer than a block";
                        return Err(Error::new(ErrorKind::Corrupt, what).into());
                    }
                    self.prepare_id_bit(Space::Blocks, block.0)?;
                    blocks.push(*block);
                }
            }
        }
        Ok(blocks)
    }
}

fn check_object(size: BlockCount, opaque: &[u8]) -> Result<(), Error> {
    if size.0 == 0 || size > OBJECT_BLOCKS_MAX {
        let what = format!("a size of {size} blocks: it must be from 1 to {OBJECT_BLOCKS_MAX}");
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    check_opaque(opaque)
}

fn check_opaque(opaque: &[u8]) -> Result<(), Error> {
    if opaque.len() > OPAQUE_BYTES_MAX {
        let what = format!("{} bytes of description: at most {OPAQUE_BYTES_MAX} can be kept", opaque.len());
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    Ok(())
}
