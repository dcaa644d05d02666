//! The root of a checkpoint: the roots of all tables, the log's position, and what is too small or too
//! short-lived for a table.

use crate::units::{BlockId, CheckpointNumber, Epoch, Incarnation, Lsn, MapNodeId, SegmentId};

use super::bytes::{Append, Reader};
use super::page::{PAGE_POINTER_BYTES, PagePointer, Table};
use super::segment::SegmentKind;

/// Root of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRoot {
    /// Levels of directory above the table itself.
    pub height: u8,
    /// The topmost page.
    pub pointer: PagePointer,
}

/// A change of a reference count that has not been merged into its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingChange<I> {
    /// Whose count.
    pub id: I,
    /// By how much.
    pub delta: i32,
}

/// What the checkpoint itself did to a segment after the picture was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentChange {
    /// Which.
    pub segment: SegmentId,
    /// What lies in it now.
    pub kind: SegmentKind,
    /// Change of its live bytes.
    pub live_bytes: i64,
    /// How often it has been begun.
    pub erases: u32,
}

/// Totals that survive restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LifetimeCounters {
    /// Ids of the block table that are in use.
    pub unique_blocks: u64,
    /// Stored bytes of those, without padding.
    pub stored_bytes: u64,
    /// References to blocks from all trees, shared nodes counted once.
    pub referenced_blocks: u64,
    /// Segments begun anew.
    pub segment_erases: u64,
    /// Bytes that hosts have written.
    pub bytes_in: u64,
    /// Zero blocks found in writes.
    pub zero_blocks: u64,
    /// Pattern blocks found in writes.
    pub pattern_blocks: u64,
    /// Blocks found to be there already.
    pub duplicate_blocks: u64,
    /// Blocks stored.
    pub new_blocks: u64,
    /// Blocks stored compressed.
    pub compressed_blocks: u64,
    /// Bytes saved by compression.
    pub compression_saved_bytes: u64,
    /// Bytes appended to the log.
    pub log_bytes: u64,
    /// Bytes of pages and roots written.
    pub metadata_bytes: u64,
    /// Bytes moved by collection.
    pub moved_bytes: u64,
    /// Segments emptied by collection.
    pub collected_segments: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
    /// Block ids below the high-water mark that are free.
    pub freed_blocks: u64,
    /// Node ids below the high-water mark that are free.
    pub freed_nodes: u64,
}

impl LifetimeCounters {
    const FIELDS: usize = 18;

    fn fields(&mut self) -> [&mut u64; Self::FIELDS] {
        [
            &mut self.unique_blocks,
            &mut self.stored_bytes,
            &mut self.referenced_blocks,
            &mut self.segment_erases,
            &mut self.bytes_in,
            &mut self.zero_blocks,
            &mut self.pattern_blocks,
            &mut self.duplicate_blocks,
            &mut self.new_blocks,
            &mut self.compressed_blocks,
            &mut self.compression_saved_bytes,
            &mut self.log_bytes,
            &mut self.metadata_bytes,
            &mut self.moved_bytes,
            &mut self.collected_segments,
            &mut self.checkpoints,
            &mut self.freed_blocks,
            &mut self.freed_nodes,
        ]
    }
}

/// The root of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointRoot {
    /// Its number.
    pub number: CheckpointNumber,
    /// The last operation in the picture.
    pub lsn: Lsn,
    /// The term of that operation.
    pub epoch: Epoch,
    /// The opening whose batches follow.
    pub log_incarnation: Incarnation,
    /// Where the next batch begins, or the one after the next 4 KiB boundary, or in the successor.
    pub log_segment: SegmentId,
    /// Offset of that place.
    pub log_offset: u32,
    /// Where the log goes on behind `log_segment`.
    pub log_successor: SegmentId,
    /// Checksum of the batch before.
    pub log_chain: u64,
    /// Sequence number of the next segment to be begun.
    pub next_sequence: u64,
    /// Number of the next object.
    pub next_object: u64,
    /// Every block id below was given out once.
    pub next_block: BlockId,
    /// Every node id below was given out once.
    pub next_node: MapNodeId,
    /// Roots of the tables, in the order of `Table::ALL`.
    pub tables: [TableRoot; Table::ALL.len()],
    /// Totals.
    pub counters: LifetimeCounters,
    /// What the pool holds is being brought up to what others hold, and is of no one moment.
    pub syncing: bool,
    /// Changes of block counts that are not merged.
    pub block_changes: Vec<PendingChange<BlockId>>,
    /// Changes of node counts that are not merged.
    pub node_changes: Vec<PendingChange<MapNodeId>>,
    /// Nodes that nothing refers to and that are to be taken apart.
    pub release_queue: Vec<MapNodeId>,
    /// What writing this checkpoint did to segments.
    pub segment_changes: Vec<SegmentChange>,
    /// Leaves that borrow, each with the one that lends to it, in the order in which they began to.
    pub borrowers: Vec<(MapNodeId, MapNodeId)>,
}

impl CheckpointRoot {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let changes = self.block_changes.len() + self.node_changes.len();
        let mut bytes = Vec::with_capacity(1024 + changes * 12 + self.segment_changes.len() * 20);
        bytes.put_u64(self.number.0);
        bytes.put_u64(self.lsn.0);
        bytes.put_u32(self.epoch.generation);
        bytes.put_u32(self.epoch.number);
        bytes.put_u64(self.log_incarnation.0);
        bytes.put_u32(self.log_segment.0);
        bytes.put_u32(self.log_offset);
        bytes.put_u32(self.log_successor.0);
        bytes.put_u64(self.log_chain);
        bytes.put_u64(self.next_sequence);
        bytes.put_u64(self.next_object);
        bytes.put_u64(self.next_block.0);
        bytes.put_u64(self.next_node.0);
        for table in &self.tables {
            bytes.put_u8(table.height);
            bytes.put_slice(&table.pointer.encode());
        }
        for field in self.counters.clone().fields() {
            bytes.put_u64(*field);
        }
        bytes.put_u8(u8::from(self.syncing));
        put_len(&mut bytes, self.block_changes.len());
        for change in &self.block_changes {
            bytes.put_u64(change.id.0);
            bytes.put_u32(change.delta.cast_unsigned());
        }
        put_len(&mut bytes, self.node_changes.len());
        for change in &self.node_changes {
            bytes.put_u64(change.id.0);
            bytes.put_u32(change.delta.cast_unsigned());
        }
        put_len(&mut bytes, self.release_queue.len());
        for node in &self.release_queue {
            bytes.put_u64(node.0);
        }
        put_len(&mut bytes, self.segment_changes.len());
        for change in &self.segment_changes {
            bytes.put_u32(change.segment.0);
            bytes.put_u8(change.kind.code());
            bytes.put_u64(change.live_bytes.cast_unsigned());
            bytes.put_u32(change.erases);
        }
        put_len(&mut bytes, self.borrowers.len());
        for (borrower, lender) in &self.borrowers {
            bytes.put_u64(borrower.0);
            bytes.put_u64(lender.0);
        }
        bytes
    }

    /// Reads the stored form.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<CheckpointRoot> {
        let mut reader = Reader::new(bytes);
        let mut root = CheckpointRoot {
            number: CheckpointNumber(reader.u64()?),
            lsn: Lsn(reader.u64()?),
            epoch: Epoch { generation: reader.u32()?, number: reader.u32()? },
            log_incarnation: Incarnation(reader.u64()?),
            log_segment: SegmentId(reader.u32()?),
            log_offset: reader.u32()?,
            log_successor: SegmentId(reader.u32()?),
            log_chain: reader.u64()?,
            next_sequence: reader.u64()?,
            next_object: reader.u64()?,
            next_block: BlockId(reader.u64()?),
            next_node: MapNodeId(reader.u64()?),
            ..CheckpointRoot::default()
        };
        for table in &mut root.tables {
            table.height = reader.u8()?;
            table.pointer = PagePointer::decode(reader.take(PAGE_POINTER_BYTES)?)?;
        }
        for field in root.counters.fields() {
            *field = reader.u64()?;
        }
        root.syncing = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        for _ in 0..take_len(&mut reader, 12)? {
            let id = BlockId(reader.u64()?);
            root.block_changes.push(PendingChange { id, delta: reader.u32()?.cast_signed() });
        }
        for _ in 0..take_len(&mut reader, 12)? {
            let id = MapNodeId(reader.u64()?);
            root.node_changes.push(PendingChange { id, delta: reader.u32()?.cast_signed() });
        }
        for _ in 0..take_len(&mut reader, 8)? {
            root.release_queue.push(MapNodeId(reader.u64()?));
        }
        for _ in 0..take_len(&mut reader, 17)? {
            root.segment_changes.push(SegmentChange {
                segment: SegmentId(reader.u32()?),
                kind: SegmentKind::from_code(reader.u8()?)?,
                live_bytes: reader.u64()?.cast_signed(),
                erases: reader.u32()?,
            });
        }
        for _ in 0..take_len(&mut reader, 16)? {
            root.borrowers.push((MapNodeId(reader.u64()?), MapNodeId(reader.u64()?)));
        }
        Some(root)
    }
}

fn put_len(bytes: &mut Vec<u8>, len: usize) {
    bytes.put_u64(len as u64);
}

/// A number of items of `item_bytes` each, refused where that many cannot follow.
fn take_len(reader: &mut Reader<'_>, item_bytes: usize) -> Option<usize> {
    let len = usize::try_from(reader.u64()?).ok()?;
    (len <= reader.rest().len() / item_bytes).then_some(len)
}
