//! The open end of the log: operations that were committed, in order, on their way to the devices.
//!
//! An operation gets its place when it is committed, so that its blocks can be found at once: in memory until
//! the batch has been handed to the operating system, on the device from then on. Batches are *closed* when
//! they are full or taken by a writer, and *finished* (chained and summed) by the one writer there is at a
//! time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::format::SYNC_UNIT_BYTES;
use crate::format::batch::{BATCH_HEADER_BYTES, BATCH_OPERATIONS_MAX};
use crate::format::location::Location;
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use crate::units::{Epoch, Incarnation, Lsn, SegmentId};

use super::super::core::{Core, Room, Stall};
use super::segments::Allotment;

/// A batch of this length is closed.
const BATCH_BYTES: u32 = 1 << 20;

/// Syncs of less than this count as small.
const SMALL_SYNC_BYTES: u32 = 64 << 10;
/// How far zeros are written ahead of small syncs.
const ZEROS_AHEAD_BYTES: u32 = 1 << 20;
/// Fewer zeros ahead than this are added to.
const ZEROS_AHEAD_MIN_BYTES: u32 = 16 << 10;

/// A stretch of a log segment that nothing has been written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unwritten {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// A batch whose operations and places are known.
#[derive(Debug)]
pub(crate) struct OpenBatch {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) first_lsn: Lsn,
    /// The term in which its operations were committed.
    pub(crate) epoch: Epoch,
    pub(crate) operations: u32,
    /// Records and payloads of each operation.
    pub(crate) frames: Vec<Frame>,
}

/// Records and payloads of one operation.
pub(crate) type Frame = (Vec<u8>, Arc<Vec<u8>>);

/// What a writer writes, in order.
#[derive(Debug)]
pub(crate) enum Closed {
    /// The header of a segment that the log enters.
    Header(SegmentId, Vec<u8>),
    /// A batch.
    Batch(OpenBatch),
}

/// A position in the log: where a batch ends and the next may begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogPosition {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
    pub(crate) successor: SegmentId,
}

/// The open end of the log.
#[derive(Debug)]
pub(crate) struct OpenLog {
    /// Where the next batch begins, but for alignment.
    pub(crate) position: LogPosition,
    /// The next batch begins at a fresh 4 KiB: a sync may cover what is before.
    pub(crate) align_next: bool,
    batch: Option<OpenBatch>,
    closed: VecDeque<Closed>,
    /// Batches closed since opening.
    pub(crate) closed_batches: u64,
    /// Batches finished since opening.
    pub(crate) finished_batches: u64,
    /// Checksum of the last batch finished.
    pub(crate) chain: u64,
    /// A checkpoint wants to know the chain after this many batches.
    pub(crate) chain_wanted_at: Option<u64>,
    /// What it was.
    pub(crate) chain_found: Option<u64>,
    /// Number of the next operation.
    pub(crate) next_lsn: Lsn,
    /// Everything up to here has been handed to the operating system.
    pub(crate) written: Lsn,
    /// Everything up to here is durable.
    pub(crate) durable: Lsn,
    /// What the last batch said of that.
    pub(crate) durable_stated: Lsn,
    /// Somebody writes.
    pub(crate) writing: bool,
    /// Somebody syncs.
    pub(crate) syncing: bool,
    /// Payloads that are not on their device yet, by segment and offset.
    in_memory: BTreeMap<(u32, u32), Arc<Vec<u8>>>,
    pub(crate) incarnation: Incarnation,
    /// The term that operations are committed in from now on.
    pub(crate) epoch: Epoch,
    /// The term of the newest operation that was committed.
    pub(crate) committed_epoch: Epoch,
    /// Bytes since the last checkpoint's picture.
    pub(crate) bytes_since_picture: u64,
    /// When the oldest write that no sync has covered was handed over.
    pub(crate) unsynced_since: Option<Duration>,
    /// One bit for each device that was written since its last sync began.
    pub(crate) devices_written: u64,
    /// Most operations of one batch.
    pub(crate) operations_max: u32,
    /// Bytes handed over since the last sync began.
    bytes_since_sync: u32,
    /// The last sync covered little.
    small_syncs: bool,
    /// Up to where zeros were written ahead, in which segment.
    zeros_ahead: (SegmentId, u32),
}

impl OpenLog {
    /// A log whose next operation is `next_lsn`, without a segment yet.
    pub(crate) fn new(next_lsn: Lsn, epoch: Epoch, incarnation: Incarnation, dirty_limit: usize) -> OpenLog {
        let last = Lsn(next_lsn.0 - 1);
        OpenLog {
            position: LogPosition::default(),
            align_next: false,
            batch: None,
            closed: VecDeque::new(),
            closed_batches: 0,
            finished_batches: 0,
            chain: 0,
            chain_wanted_at: None,
            chain_found: None,
            next_lsn,
            written: last,
            durable: last,
            durable_stated: last,
            writing: false,
            syncing: false,
            in_memory: BTreeMap::new(),
            incarnation,
            epoch,
            committed_epoch: epoch,
            bytes_since_picture: 0,
            unsynced_since: None,
            devices_written: 0,
            // Replay makes room between batches: one batch must not dirty more pages than there is room for.
            operations_max: u32::try_from(dirty_limit / 8).unwrap_or(u32::MAX).clamp(2, BATCH_OPERATIONS_MAX),
            bytes_since_sync: 0,
            small_syncs: false,
            zeros_ahead: (SegmentId(0), 0),
        }
    }

    /// The last operation that was committed.
    pub(crate) fn committed(&self) -> Lsn {
        Lsn(self.next_lsn.0 - 1)
    }

    /// The next operation is the one behind `lsn`, of this opening; nothing is to be written.
    pub(crate) fn go_on_behind(&mut self, epoch: Epoch, lsn: Lsn, incarnation: Incarnation) {
        (self.epoch, self.committed_epoch, self.incarnation) = (epoch, epoch, incarnation);
        self.next_lsn = lsn.next();
        (self.written, self.durable, self.durable_stated) = (lsn, lsn, lsn);
    }

    fn start_of_next(&self) -> u32 {
        if self.align_next {
            self.position.offset.next_multiple_of(SYNC_UNIT_BYTES as u32)
        } else {
            self.position.offset
        }
    }

    fn fits_open_batch(&self, frame_len: u32, segment_bytes: u32) -> bool {
        self.batch.as_ref().is_some_and(|batch| {
            batch.operations < self.operations_max
                && batch.len + frame_len <= BATCH_BYTES.max(segment_bytes / 4)
                && batch.offset + batch.len + frame_len <= segment_bytes
        })
    }

    fn fits_segment(&self, frame_len: u32, segment_bytes: u32) -> bool {
        self.start_of_next() + BATCH_HEADER_BYTES as u32 + frame_len <= segment_bytes
    }

    /// Ends the open batch: the next operation begins another.
    pub(crate) fn close_batch(&mut self) {
        if let Some(batch) = self.batch.take() {
            self.closed.push_back(Closed::Batch(batch));
            self.closed_batches += 1;
        }
    }

    /// What comes from now on belongs to a later term.
    pub(crate) fn raise_epoch(&mut self, epoch: Epoch) {
        if epoch > self.epoch {
            self.close_batch();
            self.epoch = epoch;
        }
    }

    /// Takes all that is to be written.
    pub(crate) fn take_closed(&mut self) -> VecDeque<Closed> {
        self.close_batch();
        std::mem::take(&mut self.closed)
    }

    /// A sync of what was handed over begins.
    pub(crate) fn sync_begins(&mut self) {
        self.small_syncs = std::mem::take(&mut self.bytes_since_sync) < SMALL_SYNC_BYTES;
    }

    /// What should be filled with zeros when `work` is written, where syncs are small. A file system that sets room aside
    /// marks it as never written, and the first sync of each piece must change that mark, too: small syncs then
    /// write twice. With zeros there it changes once for many of them.
    pub(crate) fn zeros_ahead(&mut self, work: &[Closed], segment_bytes: u32) -> Option<Unwritten> {
        let len = |closed: &Closed| match closed {
            Closed::Header(_, bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            Closed::Batch(batch) => batch.len,
        };
        let Some(Closed::Batch(last)) = work.last() else { return None };
        let end = last.offset + last.len;
        self.bytes_since_sync = work.iter().map(len).fold(self.bytes_since_sync, u32::saturating_add);
        // A burst after quiet times must not be followed by zeros all along.
        if !self.small_syncs || self.bytes_since_sync >= SMALL_SYNC_BYTES {
            return None;
        }
        let begin = match self.zeros_ahead {
            (segment, to) if segment == last.segment => to.max(end),
            _ => end,
        };
        if begin - end >= ZEROS_AHEAD_MIN_BYTES {
            return None;
        }
        let to = (end + ZEROS_AHEAD_BYTES).next_multiple_of(SYNC_UNIT_BYTES as u32).min(segment_bytes);
        self.zeros_ahead = (last.segment, to);
        (to > begin).then_some(Unwritten { segment: last.segment, offset: begin, len: to - begin })
    }

    /// Whether anything is to be written.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.batch.is_some() || !self.closed.is_empty()
    }

    /// A payload that is not on its device yet, and where it begins in the bytes returned.
    pub(crate) fn in_memory(&self, location: Location) -> Option<(Arc<Vec<u8>>, usize)> {
        let key = (location.segment.0, location.offset);
        let ((segment, start), bytes) = self.in_memory.range(..=key).next_back()?;
        let from = (location.offset.wrapping_sub(*start)) as usize;
        (*segment == location.segment.0 && from < bytes.len()).then(|| (Arc::clone(bytes), from))
    }

    /// Whether payloads of a segment are not on their device yet.
    pub(crate) fn is_in_memory(&self, segment: SegmentId) -> bool {
        self.in_memory.range((segment.0, 0)..=(segment.0, u32::MAX)).next().is_some()
    }

    /// The payloads of a batch are on their device.
    pub(crate) fn forget_in_memory(&mut self, batch: &OpenBatch) {
        let mut at = batch.offset + BATCH_HEADER_BYTES as u32;
        for (records, payload) in &batch.frames {
            at += u32::try_from(records.len()).expect("within a segment");
            if !payload.is_empty() {
                self.in_memory.remove(&(batch.segment.0, at));
            }
            at += u32::try_from(payload.len()).expect("within a segment");
        }
    }

    /// Begins an empty batch, which only says what is durable.
    pub(crate) fn state_durable(&mut self, segment_bytes: u32) {
        if !self.has_unwritten() && self.fits_segment(0, segment_bytes) {
            self.begin_batch();
        }
    }

    fn begin_batch(&mut self) {
        let offset = self.start_of_next();
        self.align_next = false;
        let begun_at = self.position.offset;
        self.position.offset = offset + BATCH_HEADER_BYTES as u32;
        // With the gap: what an opening has to pass over is to be bounded, however little each batch holds.
        self.bytes_since_picture += u64::from(self.position.offset - begun_at);
        self.batch = Some(OpenBatch {
            segment: self.position.segment,
            offset,
            len: BATCH_HEADER_BYTES as u32,
            first_lsn: self.next_lsn,
            epoch: self.epoch,
            operations: 0,
            frames: Vec::new(),
        });
    }
}

impl Core {
    /// Makes sure that an operation of `frame_len` bytes, records and payloads, has a place in the log, which leaves
    /// `keep` segments free where it takes one.
    ///
    /// # Errors
    /// A stall while there is none.
    pub(crate) fn prepare_log(&mut self, frame_len: usize, keep: usize) -> Result<(), Stall> {
        let frame_len = u32::try_from(frame_len).expect("operations are far smaller than segments");
        let segment_bytes = self.geometry.segment_bytes;
        if self.log.fits_open_batch(frame_len, segment_bytes)
            || self.log.fits_segment(frame_len, segment_bytes)
        {
            return Ok(());
        }
        self.prepare_segment(keep, false)
    }

    /// Makes sure that a segment can be taken and `keep` stay free; `rest` says that what it is for will lie there
    /// for long.
    ///
    /// # Errors
    /// A stall while that is not so.
    pub(crate) fn prepare_segment(&mut self, keep: usize, rest: bool) -> Result<(), Stall> {
        if self.segments.free() <= keep {
            return Err(Stall::Room(Room::Segments));
        }
        let kept = if keep > 0 { self.stock_for_checkpoints(0) } else { 0 };
        match self.segments.next_free(rest) {
            Allotment::Ready(_) if self.segments.ready() > kept => Ok(()),
            Allotment::Ready(_) => match self.segments.not_ready() {
                Some(segment) => Err(Stall::Allocate { segment, kept }),
                None => Ok(()),
            },
            Allotment::NeedsRoom(segment) => Err(Stall::Allocate { segment, kept }),
            Allotment::None => Err(Stall::Room(Room::Segments)),
        }
    }

    /// Segments that are free and that the host has room for, as many as the next checkpoints may need: one as things
    /// stand and with so many pages more, and the one that a later opening begins with. A checkpoint cannot wait until
    /// the host has room again.
    pub(crate) fn stock_for_checkpoints(&self, more_pages: usize) -> usize {
        let changes = self.block_changes.len() + self.node_changes.len();
        self.geometry.segments_for_checkpoints(self.unstored_pages() + more_pages, changes)
    }

    /// Takes the next free segment, which `prepare_segment` has made sure of.
    pub(crate) fn take_segment(&mut self, kind: SegmentKind, rest: bool) -> SegmentId {
        let Allotment::Ready(segment) = self.segments.next_free(rest) else {
            panic!("prepare_segment has made sure of a free segment");
        };
        self.segments.take(segment, kind, self.next_sequence);
        self.next_sequence += 1;
        self.counters.segment_erases += 1;
        segment
    }

    /// The header that a segment which was taken begins with.
    pub(crate) fn segment_header(&self, segment: SegmentId, successor: SegmentId) -> Vec<u8> {
        let entry = self.segments.entry(segment);
        SegmentHeader {
            pool: self.pool_short,
            segment,
            kind: entry.kind,
            incarnation: self.log.incarnation,
            sequence: entry.sequence,
            erases: entry.erases,
            successor,
        }
        .encode()
    }

    /// The log goes on in a segment that was taken for it, and behind that in its successor.
    pub(crate) fn enter_segment(&mut self, segment: SegmentId, successor: SegmentId) {
        let header = self.segment_header(segment, successor);
        self.log.closed.push_back(Closed::Header(segment, header));
        self.log.position = LogPosition { segment, offset: SEGMENT_HEADER_BYTES as u32, successor };
        self.log.align_next = false;
    }

    /// Gives an operation its number and its place, after `prepare_log` has made sure of one; returns the number
    /// and where its payloads begin.
    pub(crate) fn append_to_log(&mut self, records: Vec<u8>, payload: Arc<Vec<u8>>) -> (Lsn, SegmentId, u32) {
        let frame_len =
            u32::try_from(records.len() + payload.len()).expect("operations are far smaller than segments");
        let segment_bytes = self.geometry.segment_bytes;
        if !self.log.fits_open_batch(frame_len, segment_bytes) {
            self.log.close_batch();
            if !self.log.fits_segment(frame_len, segment_bytes) {
                let behind = self.take_segment(SegmentKind::Log, false);
                let LogPosition { segment, offset, successor } = self.log.position;
                self.segments.close(segment);
                self.log.bytes_since_picture += u64::from(segment_bytes.saturating_sub(offset));
                self.enter_segment(successor, behind);
            }
            self.log.begin_batch();
        }
        let log = &mut self.log;
        let batch = log.batch.as_mut().expect("begun above, or open before");
        let segment = batch.segment;
        let payload_offset = batch.offset + batch.len + u32::try_from(records.len()).expect("as above");
        if !payload.is_empty() {
            log.in_memory.insert((segment.0, payload_offset), Arc::clone(&payload));
        }
        batch.len += frame_len;
        batch.operations += 1;
        batch.frames.push((records, payload));
        log.position.offset = batch.offset + batch.len;
        log.bytes_since_picture += u64::from(frame_len);
        self.counters.log_bytes += u64::from(frame_len);
        let lsn = log.next_lsn;
        log.next_lsn = lsn.next();
        log.committed_epoch = log.epoch;
        (lsn, segment, payload_offset)
    }
}
