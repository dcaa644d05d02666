//! The block table and the counts, as arrays of entries.

use crate::format::bytes::{get_u32, set_u32};
use crate::format::page::{BLOCK_ENTRIES_PER_PAGE, BlockEntry, COUNTS_PER_PAGE, PageKey, Table};
use crate::units::{BlockId, MapNodeId};

use super::super::core::{Core, Stall};
use super::super::map::node_page;

/// A count that has reached this stays there until a repair recounts.
pub(crate) const COUNT_STUCK: u32 = u32::MAX;
/// From this many references on a block is not offered for deduplication.
pub(crate) const COUNT_CROWDED: u32 = 1 << 31;

/// The page of the block table with the entry of a block.
pub(crate) fn block_page(block: BlockId) -> PageKey {
    PageKey::leaf(Table::Blocks, block.0 / BLOCK_ENTRIES_PER_PAGE)
}

/// The page of counts, of `table`, with the count of an id.
pub(crate) fn count_page(table: Table, id: u64) -> PageKey {
    PageKey::leaf(table, id / COUNTS_PER_PAGE)
}

fn count_slot(id: u64) -> usize {
    usize::try_from(id % COUNTS_PER_PAGE).expect("below 1024")
}

impl Core {
    /// The entry of a block.
    ///
    /// # Errors
    /// A stall while its page is not in memory.
    pub(crate) fn block_entry(&mut self, block: BlockId) -> Result<BlockEntry, Stall> {
        Ok(BlockEntry::at(&self.frame(block_page(block))?.page, block))
    }

    /// The entry of a block whose page happens to be in memory.
    pub(crate) fn block_entry_in_memory(&self, block: BlockId) -> Option<BlockEntry> {
        Some(BlockEntry::at(self.cache.peek(block_page(block))?, block))
    }

    /// Sets the entry of a block whose page is in memory, and moves the live bytes with it.
    pub(crate) fn set_block_entry(&mut self, block: BlockId, entry: BlockEntry) {
        let frame = self.cache.change(block_page(block));
        let before = BlockEntry::at(&frame.page, block).location;
        entry.put(&mut frame.page, block);
        if before == entry.location {
            return;
        }
        for (location, sign) in [(before, -1), (entry.location, 1)] {
            if !location.is_none() {
                self.segments.add_live(location.segment, sign * i64::from(location.occupied_bytes()));
                self.counters.unique_blocks = self.counters.unique_blocks.wrapping_add_signed(sign);
                self.counters.stored_bytes =
                    self.counters.stored_bytes.wrapping_add_signed(sign * i64::from(location.len));
            }
        }
    }

    /// The count of an id as its page has it.
    ///
    /// # Errors
    /// A stall while the page is not in memory.
    pub(crate) fn stored_count(&mut self, table: Table, id: u64) -> Result<u32, Stall> {
        Ok(get_u32(&*self.frame(count_page(table, id))?.page, count_slot(id)))
    }

    /// Sets the count of an id whose page is in memory.
    pub(crate) fn set_stored_count(&mut self, table: Table, id: u64, count: u32) {
        set_u32(&mut *self.cache.change(count_page(table, id)).page, count_slot(id), count);
    }

    /// Whether more than one parent or root refers to a node, pending changes included.
    ///
    /// # Errors
    /// A stall while the page of its count is not in memory.
    pub(crate) fn node_is_shared(&mut self, node: MapNodeId) -> Result<bool, Stall> {
        let key = node_page(node);
        if let Some(place) = self.cache.place_of(key)
            && self.cache.at(place).exclusive_in == self.sharing
        {
            return Ok(false);
        }
        let stored = i64::from(self.stored_count(Table::NodeCounts, node.0)?);
        let shared = stored + self.node_changes.pending(node.0) > 1;
        if let (false, Some(place)) = (shared, self.cache.place_of(key)) {
            self.cache.note_exclusive(place, self.sharing);
        }
        Ok(shared)
    }
}
