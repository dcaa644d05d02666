//! The segment table: what lies in each segment, how much of it is live, how worn it is, and which are free.
//! It is held whole in memory; a checkpoint writes the pages of it that have changed.

use std::collections::BTreeSet;

use crate::format::objects::SegmentEntry;
use crate::format::page::SEGMENT_ENTRIES_PER_PAGE;
use crate::format::root::SegmentChange;
use crate::format::segment::{SegmentHeader, SegmentKind};
use crate::units::SegmentId;

use rustc_hash::FxHashMap;

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
}

/// The segment table.
#[derive(Debug)]
pub(crate) struct SegmentTable {
    segments: Vec<Segment>,
    /// Free and with room set aside on the host: by wear.
    free_written: BTreeSet<(u32, u32)>,
    /// Free, and a hole on the host: by wear.
    free_punched: BTreeSet<(u32, u32)>,
    dirty_pages: BTreeSet<u64>,
    live_bytes: u64,
    open: usize,
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
    /// A table of `count` segments, all free, none with room on the host.
    pub(crate) fn new(count: u32) -> SegmentTable {
        let blank = Segment { entry: SegmentEntry::default(), usage: Use::Free, readers: 0 };
        SegmentTable {
            segments: vec![blank; count as usize],
            free_written: BTreeSet::new(),
            free_punched: (0..count).map(|segment| (0, segment)).collect(),
            dirty_pages: BTreeSet::new(),
            live_bytes: 0,
            open: 0,
            since_picture: None,
        }
    }

    /// Number of segments.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.segments.len()).expect("20 bits")
    }

    /// Segments that may be taken.
    pub(crate) fn free(&self) -> usize {
        self.free_written.len() + self.free_punched.len()
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

    fn touch(&mut self, segment: SegmentId) -> &mut Segment {
        self.dirty_pages.insert(u64::from(segment.0) / SEGMENT_ENTRIES_PER_PAGE);
        &mut self.segments[segment.0 as usize]
    }

    /// Adds to (or takes from) the live bytes of a segment.
    ///
    /// # Panics
    /// When they would fall below zero: something was let go of twice.
    pub(crate) fn add_live(&mut self, segment: SegmentId, delta: i64) {
        let entry = &mut self.touch(segment).entry;
        entry.live_bytes = u32::try_from(i64::from(entry.live_bytes) + delta)
            .expect("live bytes of a segment never fall below zero nor grow beyond it");
        self.live_bytes = self.live_bytes.wrapping_add_signed(delta);
    }

    /// Like `add_live`, by the checkpoint under way, behind its own picture.
    pub(crate) fn add_live_behind_picture(&mut self, segment: SegmentId, delta: i64) {
        self.add_live(segment, delta);
        if let Some(changes) = &mut self.since_picture {
            *changes.entry(segment.0).or_default() += delta;
        }
    }

    /// The next segment to be taken: least worn first, and one that the host has room for already before one
    /// that it must find room for.
    pub(crate) fn next_free(&self) -> Allotment {
        if let Some((_, segment)) = self.free_written.first() {
            return Allotment::Ready(SegmentId(*segment));
        }
        match self.free_punched.first() {
            Some((_, segment)) => Allotment::NeedsRoom(SegmentId(*segment)),
            None => Allotment::None,
        }
    }

    /// The host has set room aside for a free segment.
    pub(crate) fn room_found(&mut self, segment: SegmentId) {
        let slot = self.touch(segment);
        slot.entry.allocated = true;
        let key = (slot.entry.erases, segment.0);
        if self.free_punched.remove(&key) {
            self.free_written.insert(key);
        }
    }

    /// Takes a free segment; its erase count, this use included.
    pub(crate) fn take(&mut self, segment: SegmentId, kind: SegmentKind, sequence: u64) -> u32 {
        let worn = (self.entry(segment).erases, segment.0);
        let was_free = self.free_written.remove(&worn) | self.free_punched.remove(&worn);
        assert!(was_free, "segment {segment} is taken while it is in use");
        self.open += 1;
        let slot = self.touch(segment);
        slot.usage = Use::Open;
        slot.entry.kind = kind;
        slot.entry.sequence = sequence;
        slot.entry.allocated = true;
        slot.entry.erases = slot.entry.erases.saturating_add(1);
        let erases = slot.entry.erases;
        if let Some(changes) = &mut self.since_picture {
            changes.entry(segment.0).or_default();
        }
        erases
    }

    /// Nothing is added to the segment any more.
    pub(crate) fn close(&mut self, segment: SegmentId) {
        let slot = &mut self.segments[segment.0 as usize];
        if slot.usage == Use::Open {
            slot.usage = Use::Full;
            self.open -= 1;
        }
    }

    /// Segments that are full and that nothing refers to.
    pub(crate) fn empty_ones(&self) -> Vec<SegmentId> {
        (0..)
            .map(SegmentId)
            .zip(&self.segments)
            .filter(|(_, segment)| segment.usage == Use::Full && segment.entry.live_bytes == 0)
            .map(|(id, _)| id)
            .collect()
    }

    /// Lets go of a full, empty segment; `false` while a read still holds it.
    pub(crate) fn release(&mut self, segment: SegmentId) -> bool {
        let slot = &self.segments[segment.0 as usize];
        if slot.readers > 0 || slot.usage != Use::Full || slot.entry.live_bytes > 0 {
            return false;
        }
        let slot = self.touch(segment);
        slot.usage = Use::Free;
        slot.entry.kind = SegmentKind::Free;
        slot.entry.damaged = false;
        let key = (slot.entry.erases, segment.0);
        if slot.entry.allocated {
            self.free_written.insert(key);
        } else {
            self.free_punched.insert(key);
        }
        true
    }

    /// Free segments with room on the host beyond `keep`: to be given back to it.
    pub(crate) fn to_punch(&self, keep: usize) -> Vec<SegmentId> {
        let surplus = self.free_written.len().saturating_sub(keep);
        self.free_written.iter().rev().take(surplus).map(|(_, segment)| SegmentId(*segment)).collect()
    }

    /// A free segment is about to be given back to the host; `false` when it has been taken meanwhile.
    pub(crate) fn punch(&mut self, segment: SegmentId) -> bool {
        let key = (self.entry(segment).erases, segment.0);
        let free = self.free_written.remove(&key);
        if free {
            self.touch(segment).entry.allocated = false;
        }
        free
    }

    /// A segment that was being given back is free to be taken again.
    pub(crate) fn punched(&mut self, segment: SegmentId) {
        let key = (self.entry(segment).erases, segment.0);
        self.free_punched.insert(key);
    }

    /// A page of this table is to be written with the next checkpoint.
    pub(crate) fn touch_page(&mut self, page: u64) {
        if page * SEGMENT_ENTRIES_PER_PAGE < u64::from(self.count()) {
            self.dirty_pages.insert(page);
        }
    }

    /// Something in the segment cannot be read: collection leaves it alone.
    pub(crate) fn mark_damaged(&mut self, segment: SegmentId) {
        self.touch(segment).entry.damaged = true;
    }

    /// Keeps a segment from being reused while it is read.
    pub(crate) fn pin(&mut self, segment: SegmentId) {
        self.segments[segment.0 as usize].readers += 1;
    }

    /// Undoes one `pin`.
    pub(crate) fn unpin(&mut self, segment: SegmentId) {
        self.segments[segment.0 as usize].readers -= 1;
    }

    /// Full segments that collection may look at.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = (SegmentId, &SegmentEntry)> {
        (0..)
            .map(SegmentId)
            .zip(&self.segments)
            .filter(|(_, segment)| {
                segment.usage == Use::Full && !segment.entry.damaged && segment.entry.live_bytes > 0
            })
            .map(|(id, segment)| (id, &segment.entry))
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
        let slot = &mut self.segments[segment.0 as usize];
        self.live_bytes = self.live_bytes - u64::from(slot.entry.live_bytes) + u64::from(entry.live_bytes);
        slot.entry = entry;
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
        let entry = &mut self.touch(segment).entry;
        entry.allocated = true;
        entry.kind = header.map_or(SegmentKind::Log, |header| header.kind);
        if let Some(header) = header {
            entry.sequence = header.sequence;
            entry.erases = header.erases;
        }
    }

    /// Repair: nothing unreadable is left in any segment.
    pub(crate) fn clear_damaged(&mut self) {
        for segment in (0..self.count()).map(SegmentId) {
            if self.entry(segment).damaged {
                self.touch(segment).entry.damaged = false;
            }
        }
    }

    /// Opening: a segment is free when nothing refers to it and the log that is to be replayed does not use
    /// it; one that this log uses counts as open until replay has passed it.
    pub(crate) fn classify(&mut self, in_log: impl Fn(SegmentId) -> bool) {
        self.free_written.clear();
        self.free_punched.clear();
        self.open = 0;
        for index in 0..self.count() {
            let slot = &mut self.segments[index as usize];
            if in_log(SegmentId(index)) {
                slot.usage = Use::Open;
                self.open += 1;
                continue;
            }
            if slot.entry.live_bytes > 0 {
                slot.usage = Use::Full;
                continue;
            }
            slot.usage = Use::Free;
            if slot.entry.kind != SegmentKind::Free {
                slot.entry.kind = SegmentKind::Free;
                self.dirty_pages.insert(u64::from(index) / SEGMENT_ENTRIES_PER_PAGE);
            }
            let key = (slot.entry.erases, index);
            if slot.entry.allocated {
                self.free_written.insert(key);
            } else {
                self.free_punched.insert(key);
            }
        }
    }

    /// Opening: the log has used a segment that the picture did not know of.
    pub(crate) fn restore_log_segment(&mut self, segment: SegmentId, erases: u32, sequence: u64) {
        let slot = self.touch(segment);
        slot.entry.kind = SegmentKind::Log;
        slot.entry.allocated = true;
        slot.entry.sequence = sequence;
        slot.entry.erases = slot.entry.erases.max(erases);
    }

    /// Least, most and mean erase count.
    pub(crate) fn wear(&self) -> (u32, u32, f64) {
        let erases = || self.segments.iter().map(|segment| segment.entry.erases);
        let sum: u64 = erases().map(u64::from).sum();
        (
            erases().min().unwrap_or(0),
            erases().max().unwrap_or(0),
            sum as f64 / self.segments.len().max(1) as f64,
        )
    }

    /// Variance of the erase counts.
    pub(crate) fn wear_variance(&self) -> f64 {
        let (_, _, mean) = self.wear();
        let squares = self.segments.iter().map(|segment| (f64::from(segment.entry.erases) - mean).powi(2));
        squares.sum::<f64>() / self.segments.len().max(1) as f64
    }
}
