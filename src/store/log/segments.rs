//! The segment table: what lies in each segment, how much of it is live, how worn it is, and which are free.
//! It is held whole in memory; a checkpoint writes the pages of it that have changed.

use std::collections::BTreeSet;

use crate::format::objects::SegmentEntry;
use crate::format::page::SEGMENT_ENTRIES_PER_PAGE;
use crate::format::root::SegmentChange;
use crate::format::segment::{SegmentHeader, SegmentKind};
use crate::units::SegmentId;

use super::victims::{DEGREES, Standing, Victims};
use super::wear::{Wear, WearTally};

use rustc_hash::FxHashMap;

/// Segments that one look for a rested one passes over.
const LOOKS: u32 = 65_536;

/// Whether a segment may change hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// In one of the free lists.
    Free,
    /// Being written, or reserved as the log's successor.
    Open,
    /// Written; nothing is added any more.
    Full,
}

#[derive(Clone, Debug)]
struct Segment {
    entry: SegmentEntry,
    usage: Use,
    readers: u32,
    /// The host was asked for room for it since the pool was opened, and has had it since. What a picture says may be
    /// older than a hole.
    has_room: bool,
}

/// How far the search for the full segment that is worn least has come.
#[derive(Clone, Copy, Debug, Default)]
struct Search {
    cursor: u32,
    /// Erase count and number.
    best: Option<(u32, u32)>,
}

/// The segment table.
#[derive(Debug)]
pub(crate) struct SegmentTable {
    segment_bytes: u32,
    segments: Vec<Segment>,
    /// Free and, as far as is known, with room set aside on the host: by wear.
    free_written: BTreeSet<(u32, u32)>,
    /// Of those, so many for which the host was asked.
    ready: usize,
    /// Free, and a hole on the host: by wear.
    free_punched: BTreeSet<(u32, u32)>,
    dirty_pages: BTreeSet<u64>,
    live_bytes: u64,
    open: usize,
    victims: Victims,
    wear: WearTally,
    search: Search,
    /// Live bytes of pages, roots and their copies.
    metadata_bytes: u64,
    /// The host had no room for a segment when it was asked last.
    host_is_full: bool,
    /// What the checkpoint under way has done to segments since its picture was taken.
    since_picture: Option<FxHashMap<u32, i64>>,
}

/// Who asks for a segment, and so how many it must leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allotment {
    /// Any that is free and has room on the host.
    Ready(SegmentId),
    /// This one is free, but the host must set room aside first.
    NeedsRoom(SegmentId),
    /// None is free.
    None,
}

impl SegmentTable {
    /// A table of `count` segments of `segment_bytes` each, all free, none with room on the host.
    pub(crate) fn new(count: u32, segment_bytes: u32) -> SegmentTable {
        let blank = Segment { entry: SegmentEntry::default(), usage: Use::Free, readers: 0, has_room: false };
        let mut wear = WearTally::default();
        (0..count).for_each(|_| wear.add(0));
        SegmentTable {
            segment_bytes,
            segments: vec![blank; count as usize],
            free_written: BTreeSet::new(),
            ready: 0,
            free_punched: (0..count).map(|segment| (0, segment)).collect(),
            dirty_pages: BTreeSet::new(),
            live_bytes: 0,
            open: 0,
            victims: Victims::new(),
            wear,
            search: Search::default(),
            metadata_bytes: 0,
            host_is_full: false,
            since_picture: None,
        }
    }

    /// Number of segments.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.segments.len()).expect("20 bits")
    }

    /// Segments that are written to their end and hold something live.
    pub(crate) fn full_ones(&self) -> Vec<SegmentId> {
        let full = |segment: &Segment| segment.usage == Use::Full && segment.entry.live_bytes > 0;
        (0..).map(SegmentId).zip(&self.segments).filter(|(_, s)| full(s)).map(|(id, _)| id).collect()
    }

    /// Segments that may be taken.
    pub(crate) fn free(&self) -> usize {
        self.free_written.len() + self.free_punched.len()
    }

    /// Of the segments that may be taken, those that the host is known to have room for.
    pub(crate) fn ready(&self) -> usize {
        self.ready
    }

    /// A segment that may be taken, and for which the host is to be asked: one that it may have room for already, before
    /// a hole.
    pub(crate) fn not_ready(&self) -> Option<SegmentId> {
        let free = || self.free_written.iter().chain(&self.free_punched).map(|(_, segment)| *segment);
        let found = (self.ready < self.free()).then(free)?.find(|it| !self.segments[*it as usize].has_room);
        found.map(SegmentId)
    }

    /// Bytes that something refers to, in all segments.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// What lies in a segment.
    pub(crate) fn entry(&self, segment: SegmentId) -> &SegmentEntry {
        &self.segments[segment.0 as usize].entry
    }

    /// Every segment with its entry.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SegmentId, &SegmentEntry)> {
        (0..).map(SegmentId).zip(self.segments.iter().map(|segment| &segment.entry))
    }

    fn touch(&mut self, segment: SegmentId) {
        self.dirty_pages.insert(u64::from(segment.0) / SEGMENT_ENTRIES_PER_PAGE);
    }

    /// Changes a segment, and what is known of all of them with it.
    fn change<T>(&mut self, segment: SegmentId, change: impl FnOnce(&mut Segment) -> T) -> T {
        let slot = &mut self.segments[segment.0 as usize];
        let (standing, entry) = (slot.standing(self.segment_bytes), slot.entry);
        let outcome = change(slot);
        self.victims.moved(segment, standing, slot.standing(self.segment_bytes));
        self.wear.change(entry.erases, slot.entry.erases);
        let (before, after) = (entry.live_metadata(), slot.entry.live_metadata());
        self.metadata_bytes = self.metadata_bytes.wrapping_sub(before).wrapping_add(after);
        let (before, after) = (u64::from(entry.live_bytes), u64::from(slot.entry.live_bytes));
        self.live_bytes = self.live_bytes.wrapping_sub(before).wrapping_add(after);
        outcome
    }

    /// Adds to (or takes from) the live bytes of a segment.
    ///
    /// # Panics
    /// When they would fall below zero: something was let go of twice.
    pub(crate) fn add_live(&mut self, segment: SegmentId, delta: i64) {
        self.touch(segment);
        self.change(segment, |slot| {
            slot.entry.live_bytes = u32::try_from(i64::from(slot.entry.live_bytes) + delta)
                .expect("live bytes of a segment never fall below zero nor grow beyond it");
        });
    }

    /// Like `add_live`, by the checkpoint under way, behind its own picture.
    pub(crate) fn add_live_behind_picture(&mut self, segment: SegmentId, delta: i64) {
        self.add_live(segment, delta);
        if let Some(changes) = &mut self.since_picture {
            *changes.entry(segment.0).or_default() += delta;
        }
    }

    /// The next segment to be taken: least worn first, and one that the host has room for already before one
    /// that it must find room for, unless that one is much less worn. What is to `rest`, because it will lie there
    /// for long, gets the most worn of those that the host has room for.
    pub(crate) fn next_free(&self, rest: bool) -> Allotment {
        let written = if rest { self.free_written.last() } else { self.free_written.first() };
        let ready = |(_, segment): &(u32, u32)| match self.segments[*segment as usize].has_room {
            true => Allotment::Ready(SegmentId(*segment)),
            false => Allotment::NeedsRoom(SegmentId(*segment)),
        };
        let punched = |(_, segment): &(u32, u32)| Allotment::NeedsRoom(SegmentId(*segment));
        match (written, self.free_punched.first()) {
            (Some(one), Some(other)) => {
                let drifted = one.0 > other.0.saturating_add(self.wear.drift_allowed());
                if drifted && !rest && !self.host_is_full { punched(other) } else { ready(one) }
            }
            (Some(one), None) => ready(one),
            (None, Some(other)) => punched(other),
            (None, None) => Allotment::None,
        }
    }

    /// Whether the free segments with room on the host are worn unevenly.
    pub(crate) fn free_have_drifted(&self) -> bool {
        let ends = self.free_written.first().zip(self.free_written.last());
        ends.is_some_and(|(least, most)| most.0 > least.0.saturating_add(self.wear.drift_allowed()))
    }

    /// The host has set room aside for a free segment that wanted it.
    pub(crate) fn room_found(&mut self, segment: SegmentId) {
        self.touch(segment);
        self.host_is_full = false;
        let erases = self.change(segment, |slot| {
            slot.entry.allocated = true;
            slot.has_room = true;
            slot.entry.erases
        });
        self.free_punched.remove(&(erases, segment.0));
        self.free_written.insert((erases, segment.0));
        self.ready += 1;
    }

    /// Whether a segment may be taken once the host was asked for room for it.
    pub(crate) fn wants_room(&self, segment: SegmentId) -> bool {
        let slot = &self.segments[segment.0 as usize];
        let key = (slot.entry.erases, segment.0);
        !slot.has_room && (self.free_written.contains(&key) || self.free_punched.contains(&key))
    }

    /// The host has no room for a segment; how many are free that need none.
    pub(crate) fn room_refused(&mut self, segment: SegmentId) -> usize {
        self.host_is_full = true;
        let (erases, has_room) = (self.entry(segment).erases, self.segments[segment.0 as usize].has_room);
        if !has_room && self.free_written.remove(&(erases, segment.0)) {
            self.touch(segment);
            self.change(segment, |slot| slot.entry.allocated = false);
            self.free_punched.insert((erases, segment.0));
        }
        self.ready
    }

    /// Takes a free segment; its erase count, this use included.
    pub(crate) fn take(&mut self, segment: SegmentId, kind: SegmentKind, sequence: u64) -> u32 {
        let worn = (self.entry(segment).erases, segment.0);
        let was_free = self.free_written.remove(&worn) | self.free_punched.remove(&worn);
        assert!(was_free, "segment {segment} is taken while it is in use");
        self.ready -= usize::from(self.segments[segment.0 as usize].has_room);
        self.open += 1;
        self.touch(segment);
        if let Some(changes) = &mut self.since_picture {
            changes.entry(segment.0).or_default();
        }
        self.change(segment, |slot| {
            slot.usage = Use::Open;
            slot.entry.kind = kind;
            slot.entry.sequence = sequence;
            slot.entry.allocated = true;
            slot.entry.erases = slot.entry.erases.saturating_add(1);
            slot.entry.erases
        })
    }

    /// Nothing is added to the segment any more.
    pub(crate) fn close(&mut self, segment: SegmentId) {
        let was_open = self.change(segment, |slot| {
            let open = slot.usage == Use::Open;
            if open {
                slot.usage = Use::Full;
            }
            open
        });
        self.open -= usize::from(was_open);
    }

    /// Segments that are full and that nothing refers to.
    pub(crate) fn empty_ones(&self) -> Vec<SegmentId> {
        self.victims.empty().collect()
    }

    /// How many segments are full while nothing refers to them.
    pub(crate) fn empty_count(&self) -> usize {
        self.victims.empty().len()
    }

    /// Lets go of a full, empty segment; `false` while a read still holds it.
    pub(crate) fn release(&mut self, segment: SegmentId) -> bool {
        let slot = &self.segments[segment.0 as usize];
        if slot.readers > 0 || slot.usage != Use::Full || slot.entry.live_bytes > 0 {
            return false;
        }
        self.touch(segment);
        let entry = self.change(segment, |slot| {
            slot.usage = Use::Free;
            slot.entry.kind = SegmentKind::Free;
            slot.entry.damaged = false;
            slot.entry
        });
        self.add_free(segment, &entry);
        true
    }

    fn add_free(&mut self, segment: SegmentId, entry: &SegmentEntry) {
        let free = if entry.allocated { &mut self.free_written } else { &mut self.free_punched };
        free.insert((entry.erases, segment.0));
        self.ready += usize::from(self.segments[segment.0 as usize].has_room);
    }

    /// Free segments with room on the host beyond `keep`, at most `count_max` of them: to be given back to it, the
    /// most worn first.
    pub(crate) fn to_punch(&self, keep: usize, count_max: usize) -> Vec<SegmentId> {
        let surplus = self.free_written.len().saturating_sub(keep).min(count_max);
        self.free_written.iter().rev().take(surplus).map(|(_, segment)| SegmentId(*segment)).collect()
    }

    /// A free segment is about to be given back to the host; `false` when it has been taken meanwhile.
    pub(crate) fn punch(&mut self, segment: SegmentId) -> bool {
        let key = (self.entry(segment).erases, segment.0);
        let free = self.free_written.remove(&key);
        if free {
            self.touch(segment);
            self.ready -= usize::from(self.segments[segment.0 as usize].has_room);
            self.change(segment, |slot| {
                slot.entry.allocated = false;
                slot.has_room = false;
            });
        }
        free
    }

    /// A segment that was being given back is free to be taken again.
    pub(crate) fn punched(&mut self, segment: SegmentId) {
        let key = (self.entry(segment).erases, segment.0);
        self.free_punched.insert(key);
        self.host_is_full = false;
    }

    /// A page of this table is to be written with the next checkpoint.
    pub(crate) fn touch_page(&mut self, page: u64) {
        if page * SEGMENT_ENTRIES_PER_PAGE < u64::from(self.count()) {
            self.dirty_pages.insert(page);
        }
    }

    /// Something in the segment cannot be read: collection leaves it alone.
    pub(crate) fn mark_damaged(&mut self, segment: SegmentId) {
        self.touch(segment);
        self.change(segment, |slot| slot.entry.damaged = true);
    }

    /// Keeps a segment from being reused while it is read.
    pub(crate) fn pin(&mut self, segment: SegmentId) {
        self.segments[segment.0 as usize].readers += 1;
    }

    /// Undoes one `pin`.
    pub(crate) fn unpin(&mut self, segment: SegmentId) {
        self.segments[segment.0 as usize].readers -= 1;
    }

    /// The best victim, of those that `usable` lets pass. Emptying a segment of which a part u is live costs u / (1 - u)
    /// moved for each byte won, and that price falls while more of it dies: the one whose price falls slowest is
    /// emptied first, because waiting gains least there. What has died since it was begun tells how fast that goes,
    /// ln(1/u) / age, so the fall is u ln(1/u) / (age (1 - u)^2). Age is told by the segments begun since; data that was
    /// moved counts as new where it lies now.
    pub(crate) fn best_victim(
        &self,
        newest: u64,
        usable: impl Fn(SegmentId) -> bool,
    ) -> Option<(SegmentId, SegmentKind)> {
        let score = |segment: SegmentId, sequence: u64| {
            let used = f64::from(self.entry(segment).live_bytes) / f64::from(self.segment_bytes);
            let age = (newest.saturating_sub(sequence) + 1) as f64;
            (1.0 - used) * (1.0 - used) * age / (used * -used.ln())
        };
        let scored =
            self.victims.oldest(usable).map(|(segment, sequence)| (segment, score(segment, sequence)));
        let best = scored.max_by(|(_, one), (_, other)| one.total_cmp(other));
        best.map(|(segment, _)| (segment, self.entry(segment).kind))
    }

    /// A segment of those with the fewest live bytes that `usable` lets pass, if it is below `degree`.
    pub(crate) fn sparsest(
        &self,
        degree: u32,
        usable: impl Fn(SegmentId, SegmentKind) -> bool,
    ) -> Option<(SegmentId, SegmentKind)> {
        let usable = |segment| usable(segment, self.entry(segment).kind);
        let (segment, _) = self.victims.oldest(usable).next()?;
        let entry = self.entry(segment);
        let limit = u64::from(self.segment_bytes) * u64::from(degree) / u64::from(DEGREES);
        (u64::from(entry.live_bytes) < limit).then_some((segment, entry.kind))
    }

    /// Goes on with the search for a segment whose data has lain so long that it is worn much less than what would be
    /// taken next; `None` while the search goes on, and where wear has not drifted apart.
    pub(crate) fn look_for_rested(&mut self) -> Option<(SegmentId, SegmentKind)> {
        let next = match self.next_free(false) {
            Allotment::Ready(segment) | Allotment::NeedsRoom(segment) => self.entry(segment).erases,
            Allotment::None => return None,
        };
        let end = self.search.cursor.saturating_add(LOOKS).min(self.count());
        for index in self.search.cursor..end {
            let slot = &self.segments[index as usize];
            let standing = slot.standing(self.segment_bytes);
            let found = (slot.entry.erases, index);
            let better = self.search.best.is_none_or(|best| found < best);
            if better && matches!(standing, Standing::Live { .. }) {
                self.search.best = Some(found);
            }
        }
        self.search.cursor = end;
        if end < self.count() {
            return None;
        }
        let (erases, segment) = std::mem::take(&mut self.search).best?;
        let segment = SegmentId(segment);
        let still_there =
            matches!(self.segments[segment.0 as usize].standing(self.segment_bytes), Standing::Live { .. });
        let drifted = next > erases.saturating_add(self.wear.drift_allowed());
        (still_there && drifted).then(|| (segment, self.entry(segment).kind))
    }

    /// Segments with anything in them, and how many of those are open.
    pub(crate) fn in_use(&self) -> (usize, usize) {
        (self.segments.len() - self.free(), self.open)
    }

    /// Takes the picture: the pages of the table that have changed since the last, each with its entries.
    pub(crate) fn freeze(&mut self) -> Vec<(u64, Vec<SegmentEntry>)> {
        self.since_picture = Some(FxHashMap::default());
        let per_page = usize::try_from(SEGMENT_ENTRIES_PER_PAGE).expect("128");
        std::mem::take(&mut self.dirty_pages)
            .into_iter()
            .map(|page| {
                let start = usize::try_from(page).expect("20 bits") * per_page;
                let end = (start + per_page).min(self.segments.len());
                (page, self.segments[start..end].iter().map(|segment| segment.entry).collect())
            })
            .collect()
    }

    /// What has been done to segments behind the picture.
    pub(crate) fn changes_since_picture(&self) -> Vec<SegmentChange> {
        let mut changes: Vec<SegmentChange> = self
            .since_picture
            .iter()
            .flatten()
            .map(|(segment, live_bytes)| {
                let entry = self.entry(SegmentId(*segment));
                SegmentChange {
                    segment: SegmentId(*segment),
                    kind: entry.kind,
                    live_bytes: *live_bytes,
                    erases: entry.erases,
                }
            })
            .collect();
        changes.sort_unstable_by_key(|change| change.segment);
        changes
    }

    /// The checkpoint has been made; its changes are part of the next picture.
    pub(crate) fn thaw(&mut self) {
        for segment in self.since_picture.take().into_iter().flatten().map(|(segment, _)| segment) {
            self.dirty_pages.insert(u64::from(segment) / SEGMENT_ENTRIES_PER_PAGE);
        }
    }

    /// Opening: sets an entry as it was stored. `classify` must follow.
    pub(crate) fn restore(&mut self, segment: SegmentId, entry: SegmentEntry) {
        self.change(segment, |slot| slot.entry = entry);
    }

    /// Opening: applies what the checkpoint did behind its own picture; `false` for nonsense.
    #[must_use]
    pub(crate) fn restore_change(&mut self, change: &SegmentChange) -> bool {
        let Some(before) = self.segments.get(change.segment.0 as usize).map(|segment| segment.entry) else {
            return false;
        };
        let Ok(live_bytes) = u32::try_from(i64::from(before.live_bytes) + change.live_bytes) else {
            return false;
        };
        let entry =
            SegmentEntry { live_bytes, kind: change.kind, erases: change.erases, allocated: true, ..before };
        self.restore(change.segment, entry);
        self.dirty_pages.insert(u64::from(change.segment.0) / SEGMENT_ENTRIES_PER_PAGE);
        true
    }

    /// Repair: says how many bytes of a segment are live.
    pub(crate) fn set_live(&mut self, segment: SegmentId, live_bytes: u32) {
        let entry = *self.entry(segment);
        self.restore(segment, SegmentEntry { live_bytes, ..entry });
        self.touch(segment);
    }

    /// Repair: says what a segment is whose entry is gone, after its header; without one it is left alone.
    pub(crate) fn identify(&mut self, segment: SegmentId, header: Option<&SegmentHeader>) {
        self.touch(segment);
        self.change(segment, |slot| {
            slot.entry.allocated = true;
            slot.entry.kind = header.map_or(SegmentKind::Log, |header| header.kind);
            if let Some(header) = header {
                slot.entry.sequence = header.sequence;
                slot.entry.erases = header.erases;
            }
        });
    }

    /// Repair: nothing unreadable is left in any segment.
    pub(crate) fn clear_damaged(&mut self) {
        for segment in (0..self.count()).map(SegmentId) {
            if self.entry(segment).damaged {
                self.touch(segment);
                self.change(segment, |slot| slot.entry.damaged = false);
            }
        }
    }

    /// Opening: a segment is free when nothing refers to it and the log that is to be replayed does not use
    /// it; one that this log uses counts as open until replay has passed it.
    pub(crate) fn classify(&mut self, in_log: impl Fn(SegmentId) -> bool) {
        self.free_written.clear();
        self.free_punched.clear();
        self.ready = 0;
        self.open = 0;
        for segment in (0..self.count()).map(SegmentId) {
            let in_log = in_log(segment);
            let (usage, kind_before, entry, was_damaged) = self.change(segment, |slot| {
                let kind_before = slot.entry.kind;
                slot.usage = match slot.entry.live_bytes {
                    _ if in_log => Use::Open,
                    0 => Use::Free,
                    _ => Use::Full,
                };
                let was_damaged = slot.entry.damaged;
                if slot.usage == Use::Free {
                    slot.entry.kind = SegmentKind::Free;
                    // What could not be read in it is gone.
                    slot.entry.damaged = false;
                }
                (slot.usage, kind_before, slot.entry, was_damaged)
            });
            if entry.kind != kind_before || entry.damaged != was_damaged {
                self.touch(segment);
            }
            match usage {
                Use::Open => self.open += 1,
                Use::Full => {}
                Use::Free => self.add_free(segment, &entry),
            }
        }
    }

    /// Opening: the log has used a segment that the picture did not know of.
    pub(crate) fn restore_log_segment(&mut self, segment: SegmentId, erases: u32, sequence: u64) {
        self.touch(segment);
        self.change(segment, |slot| {
            slot.entry.kind = SegmentKind::Log;
            slot.entry.allocated = true;
            slot.entry.sequence = sequence;
            slot.entry.erases = slot.entry.erases.max(erases);
        });
    }

    /// Least, most and mean erase count, and how far they are spread.
    pub(crate) fn wear(&self) -> Wear {
        self.wear.wear()
    }

    /// Live bytes of pages, roots and their copies.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        self.metadata_bytes
    }
}

impl Segment {
    fn standing(&self, segment_bytes: u32) -> Standing {
        match self.entry.live_bytes {
            _ if self.usage != Use::Full => Standing::Out,
            0 => Standing::Empty,
            _ if self.entry.damaged => Standing::Out,
            live => {
                let degree = u64::from(live) * u64::from(DEGREES) / u64::from(segment_bytes);
                // A repair may find more than a segment holds; it counts as full.
                let degree = u32::try_from(degree).map_or(DEGREES, |degree| degree.min(DEGREES));
                Standing::Live { degree, sequence: self.entry.sequence }
            }
        }
    }
}
