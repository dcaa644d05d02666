//! Repair of the blocks: in passes over ranges of ids, as a check makes them, each entry is verified, each mapping
//! of what cannot be read becomes lost, and counts and freed ids are made what was found.

use crate::error::Result;
use crate::format::bytes::get_u64;
use crate::format::checksum;
use crate::format::page::{BlockEntry, Mapping, NODE_ENTRIES, Table};
use crate::units::{BlockId, MapNodeId};

use super::super::super::blocks::changes::Changes;
use super::super::super::blocks::ids::Space;
use super::super::super::blocks::table::{COUNT_CROWDED, COUNT_STUCK};
use super::super::super::run::Caller;
use super::Repair;

/// A range of block ids, and what is known of each.
struct Range {
    start: u64,
    /// Whether the block can be read.
    intact: Vec<bool>,
    /// Mappings of it.
    mappings: Vec<u32>,
}

impl Range {
    fn position(&self, block: BlockId) -> Option<usize> {
        let position = usize::try_from(block.0.checked_sub(self.start)?).ok()?;
        (position < self.intact.len()).then_some(position)
    }
}

impl Repair<'_> {
    /// Mends mappings, entries, counts and freed ids of blocks.
    pub(super) fn blocks(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let high_water = self.store.core.lock().block_ids.high_water;
        let step = (self.store.options.metadata_budget.0 / 5).max(4096);
        let (mut start, mut references) = (0, 0);
        loop {
            let end = (start + step).min(high_water);
            let intact = self.intact_blocks(start, end, high_water, progress)?;
            let mut range = Range { start, mappings: vec![0; intact.len()], intact };
            self.map_range(&mut range, high_water)?;
            references += self.count_range(&range)?;
            start = end;
            if start == high_water {
                break;
            }
        }
        progress(high_water, high_water);
        self.recount_freed(Space::Blocks)?;
        let mut core = self.store.core.lock();
        core.block_changes = Changes::default();
        let counted = std::mem::replace(&mut core.counters.referenced_blocks, references);
        drop(core);
        // What nodes that waited to be taken apart referred to has gone with them.
        if counted < references {
            self.note(format!("the pool counted {counted} references to blocks and has {references}"));
        }
        Ok(())
    }

    /// Which blocks of a range are where the table says, and whole.
    fn intact_blocks(
        &self,
        start: u64,
        end: u64,
        high_water: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<bool>> {
        let mut stored = Vec::new();
        (start..end)
            .map(|id| {
                if id % 4096 == 0 {
                    progress(id, high_water);
                }
                let entry = self.store.run(Caller::Maintenance, |core| core.block_entry(BlockId(id)))?;
                if entry.location.is_none() {
                    return Ok(false);
                }
                stored.resize(usize::from(entry.location.len), 0);
                self.store.read_location(entry.location, &mut stored)?;
                Ok(checksum(&stored) == entry.checksum)
            })
            .collect()
    }

    /// Tallies the mappings of a range of blocks; those of blocks that cannot be read become lost.
    fn map_range(&mut self, range: &mut Range, high_water: u64) -> Result<()> {
        for id in 1..self.node_references.len() {
            if self.node_references[id] == 0 {
                continue;
            }
            let node = MapNodeId(id as u64);
            let Some((page, 0, mapped)) = self.read_node(node)? else { continue };
            let mut lost: Vec<(usize, u64)> = Vec::new();
            for slot in 0..NODE_ENTRIES {
                let Mapping::Block(block) = Mapping::unpack(get_u64(&*page, slot)) else { continue };
                if block.0 >= high_water {
                    self.note(format!("block {block} was never given out: a mapping of it is lost"));
                    lost.push((slot, Mapping::Lost.pack()));
                } else if let Some(position) = range.position(block) {
                    if !Mapping::is_borrowed(get_u64(&*page, slot)) {
                        range.mappings[position] = range.mappings[position].saturating_add(1);
                    }
                    if !range.intact[position] {
                        lost.push((slot, Mapping::Lost.pack()));
                    }
                }
            }
            if !lost.is_empty() {
                self.rewrite_node(node, mapped, &lost)?;
            }
        }
        Ok(())
    }

    /// Makes entries, counts and freed ids of a range what was found; the references to its blocks.
    fn count_range(&mut self, range: &Range) -> Result<u64> {
        let mut references = 0;
        for (id, (intact, mappings)) in (range.start..).zip(range.intact.iter().zip(&range.mappings)) {
            let found = if *intact { *mappings } else { 0 };
            references += u64::from(found);
            let before = self.count_block(BlockId(id), found)?;
            if !intact && *mappings > 0 {
                let why = if before.stored { "failed its checksum" } else { "was nowhere" };
                self.note(format!("block {id} {why}: {mappings} mappings of it are lost"));
            } else if before.counted != i64::from(found) && !before.stuck {
                self.note(format!("block {id} counted {} references and has {found}", before.counted));
            } else if before.free != (found == 0) && !before.pending {
                let word = if before.free { "free" } else { "in use" };
                self.note(format!("block {id} was marked {word} and has {found} references"));
            }
            self.checkpoint_if_full()?;
        }
        Ok(references)
    }

    fn count_block(&self, block: BlockId, found: u32) -> Result<Before> {
        self.store.run(Caller::Maintenance, |core| {
            core.prepare_id_bit(Space::Blocks, block.0)?;
            let stored = core.stored_count(Table::BlockCounts, block.0)?;
            let entry = core.block_entry(block)?;
            let pending = core.block_changes.forget(block.0);
            let before = Before {
                counted: i64::from(stored) + pending.unwrap_or(0),
                stuck: stored == COUNT_STUCK,
                pending: pending.is_some(),
                free: core.id_is_free(Space::Blocks, block.0),
                stored: !entry.location.is_none(),
            };
            if stored != found {
                core.set_stored_count(Table::BlockCounts, block.0, found);
            }
            let crowded = found >= COUNT_CROWDED;
            if found == 0 && before.stored {
                self.store.index.forget(&entry.fingerprint, block);
                core.set_block_entry(block, BlockEntry::default());
            } else if entry.crowded != crowded {
                core.set_block_entry(block, BlockEntry { crowded, ..entry });
            }
            core.correct_id(Space::Blocks, block.0, found == 0);
            Ok(before)
        })
    }
}

/// What was said of a block before.
struct Before {
    /// References, pending changes included.
    counted: i64,
    /// Whether the count was full, or could not be read.
    stuck: bool,
    /// Whether there were pending changes.
    pending: bool,
    free: bool,
    /// Whether it had a place.
    stored: bool,
}
