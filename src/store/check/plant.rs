//! For tests of check and repair: makes what a pool says of itself untrue, and tells where a page is stored so that
//! a test can damage it. Nothing else calls this.

use crate::error::Result;
use crate::format::page::{PageKey, Table};
use crate::format::segment::SegmentKind;
use crate::units::{BlockCount, BlockId, DeviceOffset, MapNodeId, ObjectNumber, SegmentId};

use super::super::Store;
use super::super::blocks::ids::Space;
use super::super::map::node_page;
use super::super::run::Caller;

/// Something untrue.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untruth {
    /// A block has so many references.
    BlockCount(BlockId, u32),
    /// A node has so many references.
    NodeCount(MapNodeId, u32),
    /// A block id is free, or in use.
    BlockFree(BlockId, bool),
    /// A node id is free, or in use.
    NodeFree(MapNodeId, bool),
    /// A segment has so many live bytes.
    LiveBytes(SegmentId, u32),
    /// So many blocks are mapped below a node.
    NodeMapped(MapNodeId, BlockCount),
    /// So many blocks are mapped in an object.
    ObjectMapped(ObjectNumber, BlockCount),
    /// The pool has so many blocks with so many references.
    Totals(u64, u64),
}

#[doc(hidden)]
impl Store {
    /// Makes something untrue, in memory; `checkpoint_untrue` makes it durable.
    pub fn plant(&self, untruth: Untruth) -> Result<()> {
        self.run(Caller::Maintenance, |core| {
            match untruth {
                Untruth::BlockCount(block, count) => {
                    core.stored_count(Table::BlockCounts, block.0)?;
                    core.set_stored_count(Table::BlockCounts, block.0, count);
                }
                Untruth::NodeCount(node, count) => {
                    core.stored_count(Table::NodeCounts, node.0)?;
                    core.set_stored_count(Table::NodeCounts, node.0, count);
                }
                Untruth::BlockFree(block, free) => {
                    core.prepare_id_bit(Space::Blocks, block.0)?;
                    core.correct_id(Space::Blocks, block.0, free);
                }
                Untruth::NodeFree(node, free) => {
                    core.prepare_id_bit(Space::Nodes, node.0)?;
                    core.correct_id(Space::Nodes, node.0, free);
                }
                Untruth::LiveBytes(segment, live_bytes) => core.segments.set_live(segment, live_bytes),
                Untruth::NodeMapped(node, mapped) => {
                    core.bring_in(node_page(node))?;
                    core.cache.change(node_page(node)).facts.mapped = mapped;
                }
                Untruth::ObjectMapped(object, mapped) => {
                    if let Some(slot) = core.objects.change(object) {
                        slot.mapped = mapped;
                    }
                }
                Untruth::Totals(blocks, references) => {
                    core.counters.unique_blocks = blocks;
                    core.counters.referenced_blocks = references;
                }
            }
            Ok(())
        })
    }

    /// A checkpoint that merges no counts.
    pub fn checkpoint_untrue(&self) -> Result<()> {
        self.checkpoint_without_merge()
    }

    /// The root of an object's map.
    pub fn map_root(&self, object: ObjectNumber) -> Option<MapNodeId> {
        self.core.lock().objects.get(object).map(|slot| slot.root)
    }

    /// An entry of a map node, as it is stored.
    pub fn map_entry(&self, node: MapNodeId, slot: usize) -> Result<u64> {
        self.run(Caller::Maintenance, |core| {
            core.bring_in(node_page(node))?;
            Ok(core.node_entry(node, slot))
        })
    }

    /// Segments with blocks that are live, and how many bytes that is.
    pub fn block_segments(&self) -> Vec<(SegmentId, u32)> {
        let core = self.core.lock();
        let live = core.segments.iter().filter(|(_, entry)| {
            matches!(entry.kind, SegmentKind::Log | SegmentKind::Moved) && entry.live_bytes > 0
        });
        live.map(|(segment, entry)| (segment, entry.live_bytes)).collect()
    }

    /// Levels of a table's directory.
    pub fn directory_height(&self, table: Table) -> u8 {
        self.core.lock().roots[table.index()].height
    }

    /// Where the copies of a page are stored: device, offset and length.
    pub fn stored_copies(&self, key: PageKey) -> Result<Vec<(usize, DeviceOffset, u16)>> {
        let pointer = self.run(Caller::Maintenance, |core| core.pointer(key))?;
        let places = [pointer.location, pointer.copy].into_iter().filter(|location| !location.is_none());
        Ok(places
            .filter_map(|location| {
                let (device, offset) = self.geometry.place(location.segment, location.offset)?;
                Some((device, offset, location.len))
            })
            .collect())
    }
}
