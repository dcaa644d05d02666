//! What a volume or snapshot holds otherwise than an older snapshot, found by comparing their maps.
//!
//! What both share is skipped, so the cost goes with what has changed. A volume that is being written is
//! compared as it is, without a momentary snapshot of it, which would make every write after it copy map
//! nodes: each stretch is then of a moment of its own, as it is for whoever reads the volume meanwhile.

use std::sync::Arc;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::store::MappingKind;
use crate::units::BLOCK_BYTES;
use crate::units::BlockCount;
use crate::units::ByteCount;
use crate::units::Lba;

use super::Array;
use super::service::BlockService;
use super::service::ChangeSource;
use super::service::ExtentKind;
use super::volume::Volume;
use super::which::SnapshotWhich;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Calls of the store that one `find` makes at most; each looks at a bounded part of both maps.
const CALLS_MAX: usize = 1024;

impl ChangeSource for Comparison {
    fn changes(&self, offset: u64, len: ByteCount, extents_max: usize) -> Result<Vec<ChangedExtent>> {
        self.extents(offset, len, extents_max)
    }
}

/// A stretch that has changed throughout, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedExtent {
    /// Length in bytes.
    pub len: ByteCount,
    /// What the newer one holds, where that is not what the older one does; `None` where nothing has changed.
    pub changed: Option<ExtentKind>,
}

/// A stretch that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: ByteCount,
    /// What the newer one holds there.
    pub kind: ExtentKind,
}

/// Part of what has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In order.
    pub changes: Vec<Change>,
    /// Where to go on, in bytes; `None` at the end.
    pub next_offset: Option<u64>,
}

/// An older snapshot and a newer volume or snapshot, both open: they are in use until this is dropped.
pub struct Comparison {
    older: Arc<Volume>,
    newer: Arc<Volume>,
}

impl Array {
    /// Opens a snapshot and what is to be compared with it: a volume by name or id, or a snapshot as
    /// `VOLUME@SNAPSHOT`.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` where both are the same snapshot.
    pub fn compare(&self, older: SnapshotWhich<'_>, newer: &str) -> Result<Comparison> {
        let (older, newer) = (self.open_snapshot(older)?, self.open(newer)?);
        if older.id() == newer.id() {
            return Err(Error::new(ErrorKind::Invalid, "a snapshot is compared with itself"));
        }
        Ok(Comparison { older, newer })
    }
}

impl Comparison {
    /// The newer one.
    #[must_use]
    pub fn newer(&self) -> &Volume {
        &self.newer
    }

    /// The older one.
    #[must_use]
    pub fn older(&self) -> &Volume {
        &self.older
    }

    fn extents(&self, offset: u64, len: ByteCount, extents_max: usize) -> Result<Vec<ChangedExtent>> {
        let end = offset.checked_add(len.0).filter(|end| *end <= self.newer.size().0 && *end > offset);
        let Some(end) = end else {
            let what = format!("{len} bytes at offset {offset} do not lie within what is compared");
            return Err(Error::new(ErrorKind::Invalid, what));
        };
        let first = offset / BLOCK;
        let count = BlockCount(end.div_ceil(BLOCK) - first);
        let runs = self.older.changed_blocks(&self.newer, Lba(first), count, extents_max.max(1))?;
        let mut extents = Vec::with_capacity(runs.len());
        let (mut at, mut run_end) = (offset, BlockCount(first).bytes().0);
        for run in runs {
            run_end += run.blocks.bytes().0;
            let len = ByteCount(run_end.min(end) - at);
            at += len.0;
            let changed = run.changed.map(|kind| match kind {
                MappingKind::Data => ExtentKind::Data,
                MappingKind::Hole => ExtentKind::Hole,
                MappingKind::Pattern => ExtentKind::Pattern,
            });
            extents.push(ChangedExtent { len, changed });
        }
        Ok(extents)
    }

    /// The stretches that have changed, from `offset` on, at most `changes_max` of them. The work of one call
    /// is bounded.
    ///
    /// # Errors
    /// `Invalid` for an offset past the end; `NotFound` where one of the two has been deleted; `Device`.
    pub fn find(&self, offset: u64, changes_max: usize) -> Result<Changes> {
        let size = self.newer.size().0;
        if offset > size {
            let what = format!("offset {offset} lies past the end of what is compared ({size} bytes)");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mut found = Changes::default();
        let mut at = offset;
        for _ in 0..CALLS_MAX {
            let room = changes_max.saturating_sub(found.changes.len());
            if at == size || room == 0 {
                break;
            }
            for extent in self.extents(at, ByteCount(size - at), 2 * room)? {
                let full = found.changes.len() == changes_max;
                match (extent.changed, found.changes.last_mut()) {
                    (None, _) => {}
                    (Some(kind), Some(last)) if last.kind == kind && last.offset + last.len.0 == at => {
                        last.len.0 += extent.len.0;
                    }
                    (Some(_), _) if full => break,
                    (Some(kind), _) => found.changes.push(Change { offset: at, len: extent.len, kind }),
                }
                at += extent.len.0;
            }
        }
        found.next_offset = (at < size).then_some(at);
        Ok(found)
    }
}
