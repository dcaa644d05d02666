//! Reading: looking mappings up under the lock, reading and checking outside of it.

use std::cell::RefCell;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::location::Location;
use crate::format::page::Mapping;
use crate::units::{BLOCK_BYTES, BlockCount, BlockId, Lba, ObjectNumber};

use super::Store;
use super::core::{Core, Stall};
use super::map::ObjectRoot;
use super::reduce::{decompress, fill_pattern};
use super::run::Caller;

/// What a run of blocks holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingKind {
    /// Stored data (or data that is lost).
    Data,
    /// Nothing.
    Hole,
    /// A repeated word.
    Pattern,
}

/// A run of blocks of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRun {
    /// How many.
    pub blocks: BlockCount,
    /// What they hold.
    pub kind: MappingKind,
}

/// Where the content of one block comes from.
#[derive(Debug)]
enum Source {
    Hole,
    Pattern(u32),
    Lost,
    /// Not on its device yet.
    Memory {
        bytes: Arc<Vec<u8>>,
        from: usize,
        len: usize,
    },
    /// On its device; the segment is pinned.
    Stored {
        block: BlockId,
        location: Location,
        checksum: u64,
    },
}

/// Blocks looked up at a time.
const LOOKUP_BLOCKS: usize = 256;
/// Stored blocks with no more than this between them are read with one call.
const GAP_BYTES: u32 = 8192;
/// Most bytes of one call.
const CALL_BYTES: u32 = 1 << 20;
/// Most blocks that are remembered as bad.
const BAD_BLOCKS_MAX: usize = 65_536;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Store {
    /// Fills `buffer`, a whole number of blocks, with those from `first` on. With `wait` false it answers
    /// `Ok(false)`, the buffer undefined, where it would have to wait for a device.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `Corrupt`, `Device`.
    pub fn read(&self, object: ObjectNumber, first: Lba, buffer: &mut [u8], wait: bool) -> Result<bool> {
        let mut lba = first;
        for chunk in buffer.chunks_mut(LOOKUP_BLOCKS * BLOCK_BYTES) {
            if !self.read_some(object, lba, chunk, wait)? {
                return Ok(false);
            }
            lba = lba.plus((chunk.len() / BLOCK_BYTES) as u64);
        }
        Ok(true)
    }

    fn read_some(&self, object: ObjectNumber, first: Lba, buffer: &mut [u8], wait: bool) -> Result<bool> {
        let count = (buffer.len() / BLOCK_BYTES) as u64;
        let mut sources = Vec::new();
        if wait {
            self.run(Caller::Request, |core| core.look_up(object, first, count, &mut sources))?;
        } else {
            let mut core = self.core.lock();
            core.cache.begin_attempt();
            match core.look_up(object, first, count, &mut sources) {
                Ok(()) => {}
                Err(Stall::Fail(error)) => return Err(error),
                Err(_) => return Ok(false),
            }
        }
        let outcome = self.fill(&sources, buffer, wait);
        let pinned = || {
            sources.iter().filter_map(|source| match source {
                Source::Stored { location, .. } => Some(location.segment),
                _ => None,
            })
        };
        if pinned().next().is_some() {
            let mut core = self.core.lock();
            pinned().for_each(|segment| core.segments.unpin(segment));
        }
        outcome
    }

    fn fill(&self, sources: &[Source], buffer: &mut [u8], wait: bool) -> Result<bool> {
        let blocks = buffer.as_chunks_mut::<BLOCK_BYTES>().0;
        let mut position = 0;
        while position < sources.len() {
            match &sources[position] {
                Source::Hole => blocks[position].fill(0),
                Source::Pattern(word) => fill_pattern(&mut blocks[position], *word),
                Source::Lost => return Err(Error::new(ErrorKind::Corrupt, "a block was given up as lost")),
                Source::Memory { bytes, from, len } => {
                    let stored = bytes.get(*from..from + len);
                    if !stored.is_some_and(|stored| decompress(stored, &mut blocks[position])) {
                        return Err(Error::new(ErrorKind::Corrupt, "a block in memory is damaged"));
                    }
                }
                Source::Stored { .. } => {
                    let behind = run_of_stored(sources, position);
                    if !self.fill_stored(&sources[position..behind], &mut blocks[position..behind], wait)? {
                        return Ok(false);
                    }
                    position = behind;
                    continue;
                }
            }
            position += 1;
        }
        Ok(true)
    }

    /// Reads neighbouring stored blocks with one call, checks each, and unpacks them.
    fn fill_stored(&self, sources: &[Source], blocks: &mut [[u8; BLOCK_BYTES]], wait: bool) -> Result<bool> {
        let stored = || {
            sources.iter().filter_map(|source| match source {
                Source::Stored { block, location, checksum } => Some((*block, *location, *checksum)),
                _ => None,
            })
        };
        let (Some((_, start, _)), Some((_, last, _))) = (stored().next(), stored().next_back()) else {
            return Ok(true);
        };
        let len = (last.offset - start.offset) as usize + usize::from(last.len);
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < len {
                scratch.resize(len, 0);
            }
            let bytes = &mut scratch[..len];
            let (device, offset) = self.place(start.segment, start.offset)?;
            let read = if wait {
                device.read_at(offset, bytes).map(|()| true)
            } else {
                device.try_read_at(offset, bytes)
            };
            let there = read.map_err(|error| {
                Error::caused(ErrorKind::Device, format!("reading {len} bytes of {}", device.name()), error)
            })?;
            if !there {
                return Ok(false);
            }
            for ((id, location, sum), block) in stored().zip(blocks) {
                let from = (location.offset - start.offset) as usize;
                let stored = &bytes[from..from + usize::from(location.len)];
                if checksum(stored) != sum || !decompress(stored, block) {
                    return Err(self.note_bad_block(id, location));
                }
            }
            Ok(true)
        })
    }

    /// A block has failed its check: it is no candidate for deduplication until it is written again.
    pub(crate) fn note_bad_block(&self, block: BlockId, location: Location) -> Error {
        let mut core = self.core.lock();
        if core.bad_blocks.len() < BAD_BLOCKS_MAX {
            core.bad_blocks.insert(block.0);
        }
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "block {block} in segment {} at {} fails its checksum",
                location.segment, location.offset
            ),
        )
    }

    /// What the range holds, as runs of one kind, at most `runs_max` of them.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `Corrupt`, `Device`.
    pub fn map_status(
        &self,
        object: ObjectNumber,
        first: Lba,
        count: BlockCount,
        runs_max: usize,
    ) -> Result<Vec<MappedRun>> {
        let mut runs: Vec<MappedRun> = Vec::new();
        let mut done = 0;
        while done < count.0 {
            let (stretch, kinds) = self.run(Caller::Request, |core| {
                let slot = core.object(object)?;
                if first.0.checked_add(count.0).is_none_or(|end| end > slot.size.0) {
                    return Err(
                        Error::new(ErrorKind::Invalid, "the range does not lie within the volume").into()
                    );
                }
                let root = ObjectRoot::from(slot);
                core.leaf_kinds(root, first.plus(done), count.0 - done)
            })?;
            done += stretch;
            for (blocks, kind) in kinds {
                let held = runs.len();
                match runs.last_mut() {
                    Some(run) if run.kind == kind => run.blocks.0 += blocks,
                    _ if held == runs_max => return Ok(runs),
                    _ => runs.push(MappedRun { blocks: BlockCount(blocks), kind }),
                }
            }
        }
        Ok(runs)
    }
}

/// The end of the run of stored blocks that begins at `start` and is read with one call.
fn run_of_stored(sources: &[Source], start: usize) -> usize {
    let place = |source: &Source| match source {
        Source::Stored { location, .. } => Some(*location),
        _ => None,
    };
    let Some(first) = place(&sources[start]) else { return start + 1 };
    let mut end = first.offset + first.occupied_bytes();
    let mut behind = start + 1;
    while let Some(next) = sources.get(behind).and_then(place) {
        let adjoins = next.segment == first.segment
            && next.offset >= end
            && next.offset - end <= GAP_BYTES
            && next.offset + next.occupied_bytes() - first.offset <= CALL_BYTES;
        if !adjoins {
            break;
        }
        end = next.offset + next.occupied_bytes();
        behind += 1;
    }
    behind
}

impl Core {
    /// Looks blocks up, and pins the segments of those that must be read.
    fn look_up(
        &mut self,
        object: ObjectNumber,
        first: Lba,
        count: u64,
        sources: &mut Vec<Source>,
    ) -> Result<(), Stall> {
        sources.clear();
        sources.reserve(usize::try_from(count).expect("at most 256"));
        let slot = self.object(object)?;
        if first.0.checked_add(count).is_none_or(|end| end > slot.size.0) {
            return Err(Error::new(ErrorKind::Invalid, "the range does not lie within the volume").into());
        }
        let root = ObjectRoot::from(slot);
        self.visit_mappings(&root, first, count, |core, _, mapping| {
            sources.push(match mapping {
                Mapping::Hole => Source::Hole,
                Mapping::Pattern(word) => Source::Pattern(word),
                Mapping::Lost => Source::Lost,
                Mapping::Block(block) => {
                    let entry = core.block_entry(block)?;
                    if entry.location.is_none() {
                        let what = format!("a volume names block {block}, which does not exist");
                        return Err(Error::new(ErrorKind::Corrupt, what).into());
                    }
                    match core.log.in_memory(entry.location) {
                        Some((bytes, from)) => {
                            Source::Memory { bytes, from, len: usize::from(entry.location.len) }
                        }
                        None => Source::Stored { block, location: entry.location, checksum: entry.checksum },
                    }
                }
            });
            Ok(true)
        })?;
        for source in sources {
            if let Source::Stored { location, .. } = source {
                if location.segment.0 >= self.segments.count() {
                    return Err(Error::new(ErrorKind::Corrupt, "a block lies outside of the pool").into());
                }
                self.segments.pin(location.segment);
            }
        }
        Ok(())
    }

    /// The kinds of the blocks from `first` to the end of their leaf, or of the subtree that is not there, and how
    /// many blocks that is.
    pub(super) fn leaf_kinds(
        &mut self,
        root: ObjectRoot,
        first: Lba,
        count: u64,
    ) -> Result<(u64, Vec<(u64, MappingKind)>), Stall> {
        let absent = self.absent_span(root, first)?;
        if absent > 0 {
            let stretch = absent.min(count);
            return Ok((stretch, vec![(stretch, MappingKind::Hole)]));
        }
        let stretch = (512 - first.0 % 512).min(count);
        let mut kinds: Vec<(u64, MappingKind)> = Vec::new();
        self.visit_mappings(&root, first, stretch, |_, _, mapping| {
            let kind = match mapping {
                Mapping::Hole => MappingKind::Hole,
                Mapping::Pattern(_) => MappingKind::Pattern,
                Mapping::Block(_) | Mapping::Lost => MappingKind::Data,
            };
            match kinds.last_mut() {
                Some((blocks, last)) if *last == kind => *blocks += 1,
                _ => kinds.push((1, kind)),
            }
            Ok(true)
        })?;
        Ok((stretch, kinds))
    }
}
