//! Scrub: reading all that is live while the store serves, and verifying it, a bounded piece a step.
//!
//! Pages of tables and trees come first, both copies of each, then blocks in the order of the block table. What is
//! read is pinned, so that it is not reused meanwhile; what fails its check is looked up once more, because it may have
//! been overwritten or moved since. A page of which one copy is good leaves with the next checkpoint and so becomes
//! whole; a block that is bad is no candidate for deduplication any more, and collection leaves its segment alone.
//!
//! It paces nothing and starts nothing: whoever calls says how much a step may read.

use std::sync::atomic::Ordering;

use crate::error::{ErrorKind, Result};
use crate::format::checksum;
use crate::format::location::Location;
use crate::format::page::{
    BLOCK_ENTRIES_PER_PAGE, BlockEntry, PAGE_BYTES, POINTERS_PER_PAGE, PageKey, PagePointer, Table,
    decode_page,
};
use crate::units::{BlockId, ByteCount, SegmentId};

use super::Store;
use super::core::{Core, Stall};
use super::run::Caller;

/// Lines of damage that are kept.
const DAMAGE_LINES_MAX: usize = 100;
/// Neighbouring blocks are read with one call of at most this many bytes.
const CALL_BYTES: u32 = 256 << 10;
/// What looking at a page number costs, in bytes of the budget, where nothing is stored under it.
const LOOK_BYTES: u64 = 64;

/// What scrub is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScrubState {
    /// It has not been started since the store was opened.
    #[default]
    Never,
    /// It reads.
    Running,
    /// It was stopped before it had read all.
    Stopped,
    /// It has read all that was live.
    Finished,
}

/// How far scrub has come, and what it has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// What it is at.
    pub state: ScrubState,
    /// Pages verified, each copy counted.
    pub pages: u64,
    /// Blocks verified.
    pub blocks: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Block ids that were passed, and all that there are.
    pub position: (u64, u64),
    /// Pages and blocks that failed their check or could not be read.
    pub errors: u64,
    /// Of those, what is written anew: pages with another copy that is good, blocks that another node had.
    pub repaired: u64,
    /// What failed, at most a hundred lines.
    pub damage: Vec<String>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Page { table: usize, level: u8, number: u64 },
    Blocks { next: u64 },
    End,
}

/// A scrub, and which of those since the opening it is: one that was started anew meanwhile is not told what the one
/// before it has found.
#[derive(Debug)]
pub(crate) struct Scrub {
    run: u64,
    position: Position,
    status: ScrubStatus,
}

impl Default for Scrub {
    fn default() -> Scrub {
        Scrub { run: 0, position: Position::End, status: ScrubStatus::default() }
    }
}

/// What one step has found.
#[derive(Default)]
struct Tally {
    pages: u64,
    blocks: u64,
    bytes: u64,
    /// What the step has cost.
    cost: u64,
    repaired: u64,
    damage: Vec<String>,
}

impl Store {
    /// Begins a scrub at its start, also where one is under way.
    pub fn start_scrub(&self) {
        let mut scrub = self.scrub.lock();
        scrub.run += 1;
        scrub.position = Position::Page { table: 0, level: u8::MAX, number: 0 };
        scrub.status = ScrubStatus { state: ScrubState::Running, ..ScrubStatus::default() };
    }

    /// Ends the scrub that is under way, if one is.
    pub fn stop_scrub(&self) {
        let mut scrub = self.scrub.lock();
        if scrub.status.state == ScrubState::Running {
            scrub.run += 1;
            scrub.status.state = ScrubState::Stopped;
        }
    }

    /// How far the newest scrub has come.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        let mut status = self.scrub.lock().status.clone();
        status.position.1 = self.core.lock().block_ids.high_water;
        status.position.0 = status.position.0.min(status.position.1);
        status
    }

    /// Verifies about so many bytes, if a scrub is under way; whether more is to be read.
    ///
    /// # Errors
    /// `Stopped` and what else is no damage: damage is counted.
    pub fn scrub_step(&self, bytes: ByteCount) -> Result<bool> {
        let (run, mut position) = {
            let scrub = self.scrub.lock();
            if scrub.status.state != ScrubState::Running {
                return Ok(false);
            }
            (scrub.run, scrub.position)
        };
        let mut tally = Tally::default();
        while tally.cost < bytes.0 && position != Position::End {
            position = match position {
                Position::Page { table, level, number } => {
                    self.scrub_page(table, level, number, &mut tally)?
                }
                Position::Blocks { next } => self.scrub_blocks(next, &mut tally)?,
                Position::End => Position::End,
            };
        }
        self.figures.scrubbed_bytes.fetch_add(tally.bytes, Ordering::Relaxed);
        self.figures.scrub_errors.fetch_add(tally.damage.len() as u64, Ordering::Relaxed);
        let mut scrub = self.scrub.lock();
        if scrub.run != run {
            return Ok(scrub.status.state == ScrubState::Running);
        }
        scrub.position = position;
        scrub.add(tally);
        Ok(position != Position::End)
    }

    /// Verifies the copies of a page; what comes next.
    fn scrub_page(&self, table: usize, level: u8, number: u64, tally: &mut Tally) -> Result<Position> {
        let Some(name) = Table::ALL.get(table).copied() else { return Ok(Position::Blocks { next: 0 }) };
        let height = self.core.lock().roots[name.index()].height;
        // The topmost page first; a table may have grown by a level since.
        let level = level.min(height);
        let key = PageKey { table: name, level, number };
        tally.cost += LOOK_BYTES;
        let outcome = self.run(Caller::Maintenance, |core| core.pin_page(key));
        let there = match self.or_damage(outcome, tally)? {
            Some(Some(pointer)) => {
                self.verify_copies(key, &pointer, tally)?;
                true
            }
            Some(None) => false,
            // The directory above cannot be read, which was said when it was looked at.
            None => false,
        };
        let below = POINTERS_PER_PAGE.checked_pow(u32::from(height - level)).unwrap_or(u64::MAX);
        // Where a directory page is not there, nothing below it is.
        let stride = if there || level == height { 1 } else { self.absent_pages(key)? };
        let next = number + stride;
        Ok(if next < below {
            Position::Page { table, level, number: next }
        } else if level > 0 {
            Position::Page { table, level: level - 1, number: 0 }
        } else {
            Position::Page { table: table + 1, level: u8::MAX, number: 0 }
        })
    }

    /// How many page numbers from this one on may be passed over, because no directory page has them.
    fn absent_pages(&self, key: PageKey) -> Result<u64> {
        let (parent, slot) = key.parent();
        let found = self.run(Caller::Maintenance, |core| core.pointer(parent));
        let rest = POINTERS_PER_PAGE - slot as u64;
        Ok(match found {
            Ok(pointer) if !pointer.is_none() => 1,
            Ok(_) => rest,
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Device) => rest,
            Err(error) => return Err(error),
        })
    }

    /// Reads both copies of a page whose segments are pinned, and unpins them.
    fn verify_copies(&self, key: PageKey, pointer: &PagePointer, tally: &mut Tally) -> Result<()> {
        let (mut bad, mut good) = (Vec::new(), 0);
        for location in [pointer.location, pointer.copy].into_iter().filter(|location| !location.is_none()) {
            let mut stored = vec![0u8; usize::from(location.len)];
            let read = self.read_location(location, &mut stored);
            tally.pages += 1;
            tally.bytes += stored.len() as u64;
            tally.cost += stored.len() as u64;
            if read.is_ok() && decode_page(&stored, key, pointer, self.short_id()).is_some() {
                good += 1;
            } else {
                bad.push(location);
            }
        }
        self.core.lock().unpin_page(pointer);
        if bad.is_empty() {
            return Ok(());
        }
        let healed = self.run(Caller::Maintenance, |core| {
            if core.pointer(key)? != *pointer {
                return Ok(None);
            }
            let room = core.cache.dirty_pages() < core.geometry.dirty_limit;
            let whole_elsewhere = good > 0 || core.cache.holds(key);
            if room && whole_elsewhere {
                core.touch_page(key)?;
            }
            Ok(Some(room && whole_elsewhere))
        });
        // It has been written anew since it was read: there is nothing to say of it.
        let Some(healed) = self.or_damage(healed, tally)?.flatten() else { return Ok(()) };
        for location in bad {
            tally.repaired += u64::from(healed);
            tally.damage.push(format!(
                "page {} of table {:?} (level {}) is damaged in segment {} at {}{}",
                key.number,
                key.table,
                key.level,
                location.segment,
                location.offset,
                if healed { "; it is written anew" } else { "" }
            ));
        }
        Ok(())
    }

    /// Verifies the blocks of one page of the block table; what comes next.
    fn scrub_blocks(&self, next: u64, tally: &mut Tally) -> Result<Position> {
        if next >= self.core.lock().block_ids.high_water {
            return Ok(Position::End);
        }
        tally.cost += LOOK_BYTES;
        let key = PageKey::leaf(Table::Blocks, next / BLOCK_ENTRIES_PER_PAGE);
        let after = Position::Blocks { next: (next / BLOCK_ENTRIES_PER_PAGE + 1) * BLOCK_ENTRIES_PER_PAGE };
        let pinned = self.run(Caller::Maintenance, |core| core.pin_blocks_in_memory(key));
        let entries = match self.or_damage(pinned, tally)? {
            Some(PinnedBlocks::Pinned(entries)) => entries,
            Some(PinnedBlocks::Stored(pointer)) => {
                // Read past the cache, so that nothing is evicted for it.
                let Some(page) = self.read_past_cache(key, &pointer) else { return Ok(after) };
                let again = self.run(Caller::Maintenance, |core| core.pin_blocks_of(key, &pointer, &page));
                match self.or_damage(again, tally)?.flatten() {
                    Some(entries) => entries,
                    // It has changed meanwhile: this page is looked at again.
                    None => return Ok(Position::Blocks { next }),
                }
            }
            None => return Ok(after),
        };
        let outcome = self.verify_blocks(&entries, tally);
        let mut core = self.core.lock();
        for (_, entry) in &entries {
            core.segments.unpin(entry.location.segment);
        }
        drop(core);
        outcome.map(|()| after)
    }

    /// Reads blocks whose segments are pinned, neighbours with one call.
    fn verify_blocks(&self, entries: &[(BlockId, BlockEntry)], tally: &mut Tally) -> Result<()> {
        let mut rest = entries;
        while let Some((_, first)) = rest.first() {
            let start = first.location;
            let within = |location: Location| {
                location.segment == start.segment
                    && location.offset + u32::from(location.len) - start.offset <= CALL_BYTES
            };
            let count = rest.iter().take_while(|(_, entry)| within(entry.location)).count();
            let (run, behind) = rest.split_at(count);
            rest = behind;
            let end =
                run.iter().map(|(_, entry)| entry.location.offset + u32::from(entry.location.len)).max();
            let len = end.unwrap_or(start.offset) - start.offset;
            tally.cost += u64::from(len);
            let mut bytes = vec![0u8; len as usize];
            let read = self.read_location(start, &mut bytes);
            for (block, entry) in run {
                let from = (entry.location.offset - start.offset) as usize;
                let stored = &bytes[from..from + usize::from(entry.location.len)];
                tally.blocks += 1;
                tally.bytes += stored.len() as u64;
                if read.is_err() || checksum(stored) != entry.checksum {
                    self.note_scrubbed(*block, entry, read.is_err(), tally)?;
                }
            }
        }
        Ok(())
    }

    /// A block has failed: if it still lies where it was read, it is bad.
    fn note_scrubbed(
        &self,
        block: BlockId,
        entry: &BlockEntry,
        unread: bool,
        tally: &mut Tally,
    ) -> Result<()> {
        let now = self.run(Caller::Maintenance, |core| core.block_entry(block));
        let Some(now) = self.or_damage(now, tally)? else { return Ok(()) };
        if now.location != entry.location {
            return Ok(());
        }
        let error = self.note_bad_block(block, entry.location);
        self.core.lock().segments.mark_damaged(entry.location.segment);
        let Location { segment, offset, .. } = entry.location;
        tally.damage.push(if unread {
            format!("block {block} cannot be read in segment {segment} at {offset}")
        } else {
            error.to_string()
        });
        Ok(())
    }

    /// What is damaged or cannot be read is counted; anything else ends the step.
    fn or_damage<T>(&self, outcome: Result<T>, tally: &mut Tally) -> Result<Option<T>> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Device) => {
                let line = error.to_string();
                if tally.damage.last() != Some(&line) {
                    tally.damage.push(line);
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Scrub {
    /// A block that had failed is good again.
    pub(crate) fn note_healed(&mut self) {
        let status = &mut self.status;
        status.repaired = (status.repaired + 1).min(status.errors);
    }

    fn add(&mut self, tally: Tally) {
        let status = &mut self.status;
        status.pages += tally.pages;
        status.blocks += tally.blocks;
        status.bytes += tally.bytes;
        status.errors += tally.damage.len() as u64;
        status.repaired += tally.repaired;
        let room = DAMAGE_LINES_MAX - status.damage.len().min(DAMAGE_LINES_MAX);
        status.damage.extend(tally.damage.into_iter().take(room));
        match self.position {
            Position::Page { .. } => {}
            Position::Blocks { next } => status.position.0 = next,
            Position::End => {
                status.position.0 = u64::MAX;
                status.state = ScrubState::Finished;
            }
        }
    }
}

/// The blocks of a page of the table.
enum PinnedBlocks {
    /// Live blocks in the order of their places, their segments pinned.
    Pinned(Vec<(BlockId, BlockEntry)>),
    /// The page is not in memory.
    Stored(PagePointer),
}

impl Core {
    /// Where a page is stored, its segments pinned; `None` where there is none.
    fn pin_page(&mut self, key: PageKey) -> Result<Option<PagePointer>, Stall> {
        let pointer = self.pointer(key)?;
        if pointer.is_none() {
            return Ok(None);
        }
        for segment in segments_of(&pointer) {
            if segment.0 < self.segments.count() {
                self.segments.pin(segment);
            }
        }
        Ok(Some(pointer))
    }

    fn unpin_page(&mut self, pointer: &PagePointer) {
        for segment in segments_of(pointer) {
            if segment.0 < self.segments.count() {
                self.segments.unpin(segment);
            }
        }
    }

    fn pin_blocks_in_memory(&mut self, key: PageKey) -> Result<PinnedBlocks, Stall> {
        if let Some(page) = self.cache.peek(key) {
            let page = Box::new(*page);
            return Ok(PinnedBlocks::Pinned(self.pin_blocks(key, &page)));
        }
        let pointer = self.pointer(key)?;
        Ok(if pointer.is_none() { PinnedBlocks::Pinned(Vec::new()) } else { PinnedBlocks::Stored(pointer) })
    }

    /// As `pin_blocks_in_memory`, of a page that was read; `None` where it is not the newest any more.
    fn pin_blocks_of(
        &mut self,
        key: PageKey,
        pointer: &PagePointer,
        page: &[u8; PAGE_BYTES],
    ) -> Result<Option<Vec<(BlockId, BlockEntry)>>, Stall> {
        if self.cache.peek(key).is_some() || self.pointer(key)? != *pointer {
            return Ok(None);
        }
        Ok(Some(self.pin_blocks(key, page)))
    }

    fn pin_blocks(&mut self, key: PageKey, page: &[u8; PAGE_BYTES]) -> Vec<(BlockId, BlockEntry)> {
        let first = key.number * BLOCK_ENTRIES_PER_PAGE;
        let mut entries: Vec<(BlockId, BlockEntry)> = (first..first + BLOCK_ENTRIES_PER_PAGE)
            .map(|id| (BlockId(id), BlockEntry::at(page, BlockId(id))))
            .filter(|(_, entry)| {
                let location = entry.location;
                !location.is_none()
                    && location.segment.0 < self.segments.count()
                    && location.offset.saturating_add(u32::from(location.len)) <= self.geometry.segment_bytes
                    && self.log.in_memory(location).is_none()
            })
            .collect();
        entries.sort_unstable_by_key(|(_, entry)| (entry.location.segment, entry.location.offset));
        for (_, entry) in &entries {
            self.segments.pin(entry.location.segment);
        }
        entries
    }
}

fn segments_of(pointer: &PagePointer) -> impl Iterator<Item = SegmentId> {
    let copies = [pointer.location, pointer.copy].into_iter();
    copies.filter(|location| !location.is_none()).map(|location| location.segment)
}
