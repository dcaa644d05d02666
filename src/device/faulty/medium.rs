//! What a simulated disk holds: the stable image, what has been changed since, and what of that
//! survives a crash.
//!
//! Unsynced changes are kept in the order in which they were made. At a crash each is kept, lost or
//! kept in part, sector by sector; what is kept is applied in that order, because no drive lets an
//! older write of a sector replace a newer one.

use std::sync::Arc;

use super::super::image::Image;
use super::room::Room;
use crate::sync::seeded::{SeededNumbers, mix};

/// What a drive writes whole, or tears.
pub(super) const SECTOR_BYTES: u64 = 512;
/// What a discard leaves alike.
const PAGE_BYTES: u64 = 4096;
/// Chances below are so many of this.
const OF: u64 = 1024;

/// What a discarded range reads as.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Zeros,
    /// Bytes that follow from this key and their place.
    Garbage(u64),
    /// The drive did not care to.
    OldContent,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Arc<[u8]> },
    Discard { offset: u64, len: u64, leaves: Leaves },
    Allocate { offset: u64, len: u64 },
}

impl Change {
    fn range(&self) -> (u64, u64) {
        match self {
            Change::Write { offset, bytes } => (*offset, bytes.len() as u64),
            Change::Discard { offset, len, .. } | Change::Allocate { offset, len } => (*offset, *len),
        }
    }
}

/// What of all unsynced changes survives one crash.
#[derive(Clone, Copy, Debug)]
enum Survival {
    Nothing,
    Everything,
    /// The first so many changes, and some of the next one.
    Prefix(usize),
    /// Each change by itself, with this chance.
    Changes(u64),
    /// Each sector by itself, with this chance.
    Sectors(u64),
}

/// What of one change survives.
#[derive(Clone, Copy, Debug)]
enum Portion {
    Nothing,
    Whole,
    /// The first so many sectors; the next one is torn.
    First(u64),
    /// Each sector with this chance.
    Sectors(u64),
}

/// What becomes of one sector.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lost,
    Kept,
    Torn,
}

/// The state of one disk.
#[derive(Clone, Debug)]
pub(super) struct Medium {
    len: u64,
    /// What a power cut cannot take.
    stable: Image,
    stable_room: Room,
    /// What reads show: the stable image, the unsynced changes, and what a faulty drive has dropped
    /// though the page cache still has it.
    cached: Image,
    cached_room: Room,
    unsynced: Vec<Change>,
    /// Changes that have been made stable or given up: the number of the first unsynced one.
    settled: u64,
    /// What garbage spoils around a torn sector: 512 bytes, or 4096 where the drive's own sectors
    /// are that large.
    tear_bytes: u64,
    numbers: SeededNumbers,
}

/// The range, cut at multiples of `unit`: offset and length of each piece.
fn cut(offset: u64, len: u64, unit: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let mut position = offset;
    std::iter::from_fn(move || {
        if position >= end {
            return None;
        }
        let start = position;
        position = (start - start % unit + unit).min(end);
        Some((start, position - start))
    })
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a piece of a buffer fits in memory")
}

impl Medium {
    pub(super) fn new(len: u64, seed: u64) -> Medium {
        Medium {
            len,
            stable: Image::default(),
            stable_room: Room::none(len),
            cached: Image::default(),
            cached_room: Room::none(len),
            unsynced: Vec::new(),
            settled: 0,
            tear_bytes: SECTOR_BYTES,
            numbers: SeededNumbers::new(seed),
        }
    }

    pub(super) fn set_tear_bytes(&mut self, bytes: u64) {
        self.tear_bytes = bytes;
    }

    pub(super) fn reseed(&mut self, seed: u64) {
        self.numbers = SeededNumbers::new(seed);
    }

    pub(super) fn numbers(&mut self) -> &mut SeededNumbers {
        &mut self.numbers
    }

    /// The number that the next change gets.
    pub(super) fn next_change(&self) -> u64 {
        self.settled + self.unsynced.len() as u64
    }

    pub(super) fn unsynced_changes(&self) -> usize {
        self.unsynced.len()
    }

    /// Pages that the host has set aside, and those that the range needs on top.
    pub(super) fn room(&self, offset: u64, len: u64) -> (u64, u64) {
        (self.cached_room.pages(), self.cached_room.missing(offset, len))
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        self.cached.read(offset, buffer);
    }

    pub(super) fn read_stable(&self, offset: u64, buffer: &mut [u8]) {
        self.stable.read(offset, buffer);
    }

    pub(super) fn write(&mut self, offset: u64, bytes: Arc<[u8]>) {
        self.change(Change::Write { offset, bytes });
    }

    /// Shows in reads, and is gone with the cache.
    pub(super) fn write_lost(&mut self, offset: u64, bytes: &[u8]) {
        self.cached.write(offset, bytes);
        self.cached_room.take(offset, bytes.len() as u64);
    }

    /// Shows in reads where it belongs, but goes to another sector of the medium. A disk too small
    /// to have another place loses the write.
    pub(super) fn write_misdirected(&mut self, offset: u64, bytes: Arc<[u8]>) {
        let len = bytes.len() as u64;
        self.write_lost(offset, &bytes);
        let places = (self.len.saturating_sub(len)) / SECTOR_BYTES + 1;
        let drawn = self.numbers.below(places);
        let others = [drawn, (drawn + 1) % places].map(|sector| sector * SECTOR_BYTES);
        let Some(elsewhere) = others.into_iter().find(|place| *place != offset && len > 0) else {
            return;
        };
        // What waits to be written there is shown still, and so is this write itself; anything else
        // is taken not to be cached.
        let overlaps_itself = elsewhere < offset + len && offset < elsewhere + len;
        if !overlaps_itself && !self.is_dirty(elsewhere, len) {
            self.cached.write(elsewhere, &bytes);
        }
        self.unsynced.push(Change::Write { offset: elsewhere, bytes });
    }

    pub(super) fn discard(&mut self, offset: u64, len: u64) {
        let leaves = match self.numbers.below(4) {
            0 => Leaves::OldContent,
            1 => Leaves::Garbage(self.numbers.number()),
            _ => Leaves::Zeros,
        };
        self.change(Change::Discard { offset, len, leaves });
    }

    pub(super) fn allocate(&mut self, offset: u64, len: u64) {
        self.change(Change::Allocate { offset, len });
    }

    fn change(&mut self, change: Change) {
        apply(&change, &mut self.cached, &mut self.cached_room);
        self.unsynced.push(change);
    }

    /// Makes the changes before number `end` stable.
    pub(super) fn sync(&mut self, end: u64) {
        for change in self.take_unsynced(end) {
            apply(&change, &mut self.stable, &mut self.stable_room);
        }
    }

    /// Gives up the changes before number `end`: some reach the medium, at least one does not.
    /// Reads show all of them still.
    pub(super) fn fail_sync(&mut self, end: u64) {
        let mut changes = self.take_unsynced(end);
        if changes.is_empty() {
            return;
        }
        let writes = changes.iter().enumerate().filter(|(_, change)| matches!(change, Change::Write { .. }));
        let writes: Vec<usize> = writes.map(|(position, _)| position).collect();
        let victim = match writes.len() {
            0 => self.numbers.index(changes.len()),
            count => writes[self.numbers.index(count)],
        };
        changes.remove(victim);
        self.settle(changes);
    }

    /// A power cut: of what was not synced some is lost, some torn. The cache is gone.
    pub(super) fn crash(&mut self) {
        let changes = self.take_unsynced(u64::MAX);
        self.settle(changes);
        self.drop_cache();
    }

    /// Forgets what is cached and needs no writing.
    pub(super) fn drop_cache(&mut self) {
        self.cached = self.stable.clone();
        self.cached_room = self.stable_room.clone();
        for change in &self.unsynced {
            apply(change, &mut self.cached, &mut self.cached_room);
        }
    }

    /// Turns one bit of the stable image over. Reads show it unless newer bytes wait to be written
    /// there.
    pub(super) fn flip_bit(&mut self, offset: u64, bit: u32) {
        let flip = |image: &mut Image| {
            let mut byte = [0];
            image.read(offset, &mut byte);
            image.write(offset, &[byte[0] ^ (1 << bit)]);
        };
        flip(&mut self.stable);
        if !self.is_dirty(offset, 1) {
            flip(&mut self.cached);
        }
    }

    fn is_dirty(&self, offset: u64, len: u64) -> bool {
        self.unsynced.iter().any(|change| {
            let (start, bytes) = change.range();
            !matches!(change, Change::Allocate { .. }) && start < offset + len && offset < start + bytes
        })
    }

    fn take_unsynced(&mut self, end: u64) -> Vec<Change> {
        let count = end.saturating_sub(self.settled).min(self.unsynced.len() as u64);
        self.settled += count;
        let behind = self.unsynced.split_off(length(count));
        std::mem::replace(&mut self.unsynced, behind)
    }

    /// Lets the seed decide what of `changes` reaches the medium.
    fn settle(&mut self, changes: Vec<Change>) {
        let survival = self.draw_survival(changes.len());
        let tear = match survival {
            Survival::Changes(_) | Survival::Sectors(_) => [0, 0, OF / 256, OF / 16][self.numbers.index(4)],
            Survival::Nothing | Survival::Everything | Survival::Prefix(_) => 0,
        };
        for (position, change) in changes.into_iter().enumerate() {
            let portion = self.draw_portion(survival, position, &change);
            match change {
                Change::Write { offset, bytes } => self.settle_write(offset, &bytes, portion, tear),
                Change::Discard { offset, len, leaves } => self.settle_discard(offset, len, leaves, portion),
                Change::Allocate { offset, len } => match portion {
                    Portion::Nothing => {}
                    _ => self.stable_room.take(offset, len),
                },
            }
        }
    }

    fn draw_survival(&mut self, changes: usize) -> Survival {
        match self.numbers.below(8) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            2..=4 => Survival::Prefix(self.numbers.index(changes + 1)),
            5 | 6 => Survival::Changes(self.draw_chance()),
            _ => Survival::Sectors(self.draw_chance()),
        }
    }

    /// From "hardly any" over "every other one" to "all but a few": each finds faults of its own.
    fn draw_chance(&mut self) -> u64 {
        let few = 1 << self.numbers.below(10);
        if self.numbers.chance(1, 2) { few } else { OF - few }
    }

    fn draw_portion(&mut self, survival: Survival, position: usize, change: &Change) -> Portion {
        match survival {
            Survival::Nothing => Portion::Nothing,
            Survival::Everything => Portion::Whole,
            Survival::Prefix(whole) if position < whole => Portion::Whole,
            Survival::Prefix(whole) if position == whole => {
                let (offset, len) = change.range();
                let sectors = cut(offset, len, SECTOR_BYTES).count() as u64;
                Portion::First(self.numbers.below(sectors + 1))
            }
            Survival::Prefix(_) => Portion::Nothing,
            Survival::Changes(chance) if self.numbers.chance(chance, OF) => Portion::Whole,
            Survival::Changes(_) => Portion::Nothing,
            Survival::Sectors(chance) => Portion::Sectors(chance),
        }
    }

    fn settle_write(&mut self, offset: u64, bytes: &[u8], portion: Portion, tear: u64) {
        match portion {
            Portion::Nothing if tear == 0 => return,
            Portion::Whole if tear == 0 => {
                self.stable.write(offset, bytes);
                self.stable_room.take(offset, bytes.len() as u64);
                return;
            }
            _ => {}
        }
        for (index, (start, len)) in (0..).zip(cut(offset, bytes.len() as u64, SECTOR_BYTES)) {
            let sector = &bytes[length(start - offset)..][..length(len)];
            match self.draw_fate(portion, index, tear) {
                Fate::Lost => {}
                Fate::Kept => {
                    self.stable.write(start, sector);
                    self.stable_room.take(start, len);
                }
                Fate::Torn => self.tear(start, sector),
            }
        }
    }

    /// What becomes of the piece `index` of a change.
    fn draw_fate(&mut self, portion: Portion, index: u64, tear: u64) -> Fate {
        if self.numbers.chance(tear, OF) {
            return Fate::Torn;
        }
        let kept = match portion {
            Portion::Nothing => false,
            Portion::Whole => true,
            Portion::First(count) if index == count => return Fate::Torn,
            Portion::First(count) => index < count,
            Portion::Sectors(chance) => self.numbers.chance(chance, OF),
        };
        if kept { Fate::Kept } else { Fate::Lost }
    }

    /// A sector that was being written when the power went: old, new, new in its first part, or
    /// garbage.
    fn tear(&mut self, offset: u64, new: &[u8]) {
        self.stable_room.take(offset, new.len() as u64);
        match self.numbers.below(4) {
            0 => {}
            1 => self.stable.write(offset, new),
            2 => self.stable.write(offset, &new[..self.numbers.index(new.len())]),
            _ => {
                let start = offset - offset % self.tear_bytes;
                let end = (start + self.tear_bytes).min(self.len);
                let key = self.numbers.number();
                fill_garbage(&mut self.stable, key, start, end - start);
            }
        }
    }

    fn settle_discard(&mut self, offset: u64, len: u64, leaves: Leaves, portion: Portion) {
        for (index, (start, bytes)) in (0..).zip(cut(offset, len, PAGE_BYTES)) {
            let pages = match portion {
                Portion::First(sectors) => Portion::First(sectors / (PAGE_BYTES / SECTOR_BYTES)),
                other => other,
            };
            // Torn or kept is the same to a range whose content is undefined anyway.
            let kept = !matches!(self.draw_fate(pages, index, 0), Fate::Lost);
            if kept {
                apply_discard(start, bytes, leaves, &mut self.stable, &mut self.stable_room);
            }
        }
    }
}

fn apply(change: &Change, image: &mut Image, room: &mut Room) {
    match change {
        Change::Write { offset, bytes } => {
            image.write(*offset, bytes);
            room.take(*offset, bytes.len() as u64);
        }
        Change::Discard { offset, len, leaves } => apply_discard(*offset, *len, *leaves, image, room),
        Change::Allocate { offset, len } => room.take(*offset, *len),
    }
}

fn apply_discard(offset: u64, len: u64, leaves: Leaves, image: &mut Image, room: &mut Room) {
    match leaves {
        Leaves::Zeros => image.zero(offset, len),
        Leaves::Garbage(key) => fill_garbage(image, key, offset, len),
        Leaves::OldContent => {}
    }
    room.release(offset, len);
}

/// Bytes that look like nothing, the same for one key and place however the range is cut.
fn fill_garbage(image: &mut Image, key: u64, offset: u64, len: u64) {
    let mut garbage = [0; PAGE_BYTES as usize];
    for (start, bytes) in cut(offset, len, PAGE_BYTES) {
        let page = start - start % PAGE_BYTES;
        for (word, chunk) in (page..).step_by(8).zip(garbage.chunks_exact_mut(8)) {
            chunk.copy_from_slice(&mix(key ^ word).to_le_bytes());
        }
        image.write(start, &garbage[length(start - page)..][..length(bytes)]);
    }
}
