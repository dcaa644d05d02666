//! Maps: the radix tree of a volume or snapshot, from block to mapping.
//!
//! A node is a 4 KiB page of 512 entries: mappings in a leaf, node ids above. Nodes are shared by reference
//! counts; writing below a shared node copies it first. A node's header counts the mapped blocks below it, and
//! a node without any goes.

pub(crate) mod borrow;
pub(crate) mod change;
pub(crate) mod zero;

use crate::format::bytes::get_u64;
use crate::format::objects::ObjectSlot;
use crate::format::page::{Mapping, NODE_ENTRIES, PageKey, Table};
use crate::units::{BlockCount, Lba, MapNodeId};

use super::core::{Core, Stall};

/// Bits of a block's index that one level of the tree consumes.
pub(crate) const LEVEL_BITS: u32 = 9;
/// Highest level of a root: 2^54 blocks.
pub(crate) const LEVEL_MAX: u8 = 5;

/// The page of a node.
pub(crate) fn node_page(node: MapNodeId) -> PageKey {
    PageKey::leaf(Table::Nodes, node.0)
}

/// Blocks below one node of a level.
pub(crate) fn span(level: u8) -> u64 {
    1 << (LEVEL_BITS * (u32::from(level) + 1))
}

/// Position of the entry for a block in a node of a level.
pub(crate) fn slot(lba: Lba, level: u8) -> usize {
    usize::try_from((lba.0 >> (LEVEL_BITS * u32::from(level))) % NODE_ENTRIES as u64).expect("below 512")
}

/// Level of the root of a map of this size.
pub(crate) fn level_for(size: BlockCount) -> u8 {
    (0..LEVEL_MAX).find(|level| span(*level) >= size.0).unwrap_or(LEVEL_MAX)
}

impl Core {
    /// A node's entry, its page being in memory.
    pub(crate) fn node_entry(&mut self, node: MapNodeId, slot: usize) -> u64 {
        get_u64(&*self.cache.page(node_page(node)).page, slot)
    }

    /// The leaf that holds a block's mapping.
    ///
    /// # Errors
    /// A stall while a node on the way is not in memory.
    pub(crate) fn find_leaf(
        &mut self,
        root: MapNodeId,
        root_level: u8,
        lba: Lba,
    ) -> Result<Option<MapNodeId>, Stall> {
        let mut node = root;
        if lba.0 >= span(root_level) {
            return Ok(None);
        }
        for level in (0..=root_level).rev() {
            if node.0 == 0 {
                return Ok(None);
            }
            let frame = self.frame(node_page(node))?;
            if level > 0 {
                node = MapNodeId(get_u64(&*frame.page, slot(lba, level)));
            }
        }
        Ok(Some(node))
    }

    /// How many blocks from `lba` on belong to a subtree that is not there; 0 where there is a leaf.
    ///
    /// # Errors
    /// A stall while a node on the way is not in memory.
    pub(crate) fn absent_span(&mut self, object: ObjectRoot, lba: Lba) -> Result<u64, Stall> {
        if lba.0 >= span(object.level) {
            return Ok(u64::MAX);
        }
        let mut node = object.root;
        for level in (0..=object.level).rev() {
            if node.0 == 0 {
                return Ok(span(level) - lba.0 % span(level));
            }
            self.bring_in(node_page(node))?;
            if level > 0 {
                node = MapNodeId(self.node_entry(node, slot(lba, level)));
            }
        }
        Ok(0)
    }

    /// Calls `visit` with each of `count` blocks from `first` on, its position within the range and its mapping,
    /// until it answers `false`.
    ///
    /// # Errors
    /// A stall while a node is not in memory, and whatever `visit` says.
    pub(crate) fn visit_mappings(
        &mut self,
        object: &ObjectRoot,
        first: Lba,
        count: u64,
        mut visit: impl FnMut(&mut Core, u64, Mapping) -> Result<bool, Stall>,
    ) -> Result<(), Stall> {
        let mut done = 0;
        while done < count {
            let lba = first.plus(done);
            let within = span(0) - lba.0 % span(0);
            let stretch = within.min(count - done);
            let steps = usize::try_from(stretch).expect("at most 512");
            let entries: Vec<u64> = match self.find_leaf(object.root, object.level, lba)? {
                Some(leaf) => {
                    let page = &self.cache.page(node_page(leaf)).page;
                    (0..steps).map(|step| get_u64(&**page, slot(lba, 0) + step)).collect()
                }
                None => vec![Mapping::Hole.pack(); steps],
            };
            for (step, entry) in (0..).zip(entries) {
                if !visit(self, done + step, Mapping::unpack(entry))? {
                    return Ok(());
                }
            }
            done += stretch;
        }
        Ok(())
    }
}

/// Where a map begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ObjectRoot {
    /// Its root node; 0 while it is empty.
    pub(crate) root: MapNodeId,
    /// Level of that node.
    pub(crate) level: u8,
}

impl From<&ObjectSlot> for ObjectRoot {
    fn from(object: &ObjectSlot) -> ObjectRoot {
        ObjectRoot { root: object.root, level: object.root_level }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_cover_what_they_should() {
        assert_eq!(span(0) * 4096, 2 << 20);
        assert_eq!(span(2) * 4096, 512 << 30);
        assert_eq!(level_for(BlockCount(1)), 0);
        assert_eq!(level_for(BlockCount(513)), 1);
        assert_eq!(level_for(BlockCount(1 << 36)), 3);
    }
}
