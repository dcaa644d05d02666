//! One connection's view of a volume: byte ranges in, whole blocks to the store.
//!
//! Aligned requests go to the store as they are, without a copy and in one call; it splits what is
//! large. An unaligned edge is read, changed and written as a whole block, in its turn
//! (`range_lock`). Nothing is cached here, and no lock is held while the store works.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::store::ChangedRun;
use crate::store::MappingKind;
use crate::store::Part;
use crate::store::Progress;
use crate::store::Reduction;
use crate::store::WriteOutcome;
use crate::units::BLOCK_BYTES;
use crate::units::BlockCount;
use crate::units::ByteCount;
use crate::units::Lba;
use crate::units::Lsn;
use crate::units::ObjectNumber;
use crate::units::RequestId;
use crate::units::Uuid;

use super::catalog::no_snapshot;
use super::catalog::no_volume;
use super::gate::Backing;
use super::gate::Tenure;
use super::info::VolumeCounters;
use super::info::VolumeState;
use super::range_lock::RangeLock;
use super::range_lock::Turn;
use super::service::BlockService;
use super::service::Change;
use super::service::Commit;
use super::service::Extent;
use super::service::ExtentKind;
use super::service::GroupedWrite;
use super::split::Edge;
use super::split::Split;
use super::split::Steps;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What clients may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// A volume.
    ReadWrite,
    /// A snapshot.
    ReadOnly,
}

/// What all connections of one volume or snapshot share.
pub(super) struct SharedVolume {
    backing: Backing,
    number: ObjectNumber,
    id: Uuid,
    access: Access,
    /// In bytes: whole blocks. Only grows.
    size: AtomicU64,
    /// Set for good once the volume is out of the catalog.
    deleted: AtomicBool,
    /// Raised under the catalog's lock only, so that a delete can decide by it.
    connections: AtomicU64,
    ranges: RangeLock,
    read_ops: AtomicU64,
    read_bytes: AtomicU64,
    write_ops: AtomicU64,
    write_bytes: AtomicU64,
    /// Requests that may have changed what it holds.
    changes: AtomicU64,
}

impl SharedVolume {
    pub(super) fn new(
        backing: Backing,
        number: ObjectNumber,
        id: Uuid,
        size: ByteCount,
        access: Access,
    ) -> SharedVolume {
        SharedVolume {
            backing,
            number,
            id,
            access,
            size: AtomicU64::new(size.0),
            deleted: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            ranges: RangeLock::default(),
            read_ops: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            write_ops: AtomicU64::new(0),
            write_bytes: AtomicU64::new(0),
            changes: AtomicU64::new(0),
        }
    }

    pub(super) fn number(&self) -> ObjectNumber {
        self.number
    }

    pub(super) fn size(&self) -> ByteCount {
        ByteCount(self.size.load(Ordering::Acquire))
    }

    pub(super) fn set_size(&self, size: ByteCount) {
        self.size.store(size.0, Ordering::Release);
    }

    pub(super) fn set_deleted(&self, deleted: bool) {
        self.deleted.store(deleted, Ordering::Release);
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connections.load(Ordering::Acquire) > 0
    }

    pub(super) fn state(&self) -> VolumeState {
        if self.is_connected() { VolumeState::InUse } else { VolumeState::Available }
    }

    pub(super) fn counters(&self) -> VolumeCounters {
        VolumeCounters {
            read_ops: self.read_ops.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            write_ops: self.write_ops.load(Ordering::Relaxed),
            write_bytes: self.write_bytes.load(Ordering::Relaxed),
        }
    }

    /// Another number whenever a request may have changed what it holds.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Notes that what it holds may be something else now: also where that failed half way.
    pub(super) fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The result of what may have changed what it holds, as the client may see it.
    fn changed<T>(&self, result: Result<T>) -> Result<T> {
        self.note_change();
        self.unless_deleted(result)
    }

    /// Keeps requests that read a block before they write it away until what is returned is dropped: all that
    /// have begun are over.
    pub(super) fn hold_partial_writes(&self) -> Turn<'_> {
        let whole = BlockCount(u64::MAX / BLOCK);
        self.ranges.take_turn(&Split { head: None, first: Lba(0), whole, tail: None })
    }

    fn alive(&self) -> Result<()> {
        match (self.deleted.load(Ordering::Acquire), self.access) {
            (false, _) => Ok(()),
            (true, Access::ReadWrite) => Err(no_volume(self.id)),
            (true, Access::ReadOnly) => Err(no_snapshot(self.id)),
        }
    }

    /// Whether it may be written to: else `ReadOnly`.
    fn check_writable(&self) -> Result<()> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => {
                let what = format!("snapshot {} is read-only", self.id);
                Err(Error::new(ErrorKind::ReadOnly, what))
            }
        }
    }

    /// A result as the client may see it. What the store said of a volume that was deleted meanwhile
    /// says nothing: not even zeros are believed.
    fn unless_deleted<T>(&self, result: Result<T>) -> Result<T> {
        self.alive().and(result)
    }

    /// Whether the volume has the range, whose length in bytes is given.
    fn check(&self, offset: u64, len: u64) -> Result<()> {
        self.alive()?;
        let size = self.size();
        if offset.checked_add(len).is_some_and(|end| end <= size.0) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Invalid,
            format!("{len} bytes at offset {offset} reach past the volume's size of {size} bytes"),
        ))
    }

    /// Fills `buffer`; `Ok(false)` where that would have to wait and may not.
    fn fill(&self, offset: u64, buffer: &mut [u8], wait: bool) -> Result<bool> {
        if wait {
            return self.backing.repairing(|| self.fill_as_it_is(offset, buffer, true));
        }
        match self.fill_as_it_is(offset, buffer, false) {
            // A repair would have to wait.
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(false),
            other => other,
        }
    }

    fn fill_as_it_is(&self, offset: u64, buffer: &mut [u8], wait: bool) -> Result<bool> {
        let len = buffer.len() as u64;
        self.check(offset, len)?;
        let split = Split::of(offset, len);
        let (head, rest) = buffer.split_at_mut(split.head_len());
        let (whole, tail) = rest.split_at_mut(rest.len() - split.tail_len());
        let filled = self.fill_edge(split.head, head, wait)?
            && (whole.is_empty() || self.backing.store.read(self.number, split.first, whole, wait)?)
            && self.fill_edge(split.tail, tail, wait)?
            && self.answer_read(offset, len, wait)?;
        if filled {
            self.read_ops.fetch_add(1, Ordering::Relaxed);
            self.read_bytes.fetch_add(len, Ordering::Relaxed);
        }
        Ok(filled)
    }

    /// Whether what was read of the range, whose length in bytes is given, may be given out now.
    fn answer_read(&self, offset: u64, len: u64, wait: bool) -> Result<bool> {
        let first = offset / BLOCK;
        let count = BlockCount((offset + len).div_ceil(BLOCK) - first);
        self.backing.answer_read(self.number, Lba(first), count, wait)
    }

    fn fill_edge(&self, edge: Option<Edge>, part: &mut [u8], wait: bool) -> Result<bool> {
        let Some(edge) = edge else { return Ok(true) };
        let mut block = [0u8; BLOCK_BYTES];
        let filled = self.backing.store.read(self.number, edge.lba, &mut block, wait)?;
        part.copy_from_slice(&block[edge.from..edge.from + edge.len]);
        Ok(filled)
    }

    /// What the edge's block holds once `part` is in it.
    fn changed_block(&self, edge: Option<Edge>, part: Edit<'_>) -> Result<Option<(Lba, [u8; BLOCK_BYTES])>> {
        let Some(edge) = edge else { return Ok(None) };
        let mut block = [0u8; BLOCK_BYTES];
        self.backing.repairing(|| self.backing.store.read(self.number, edge.lba, &mut block, true))?;
        let place = &mut block[edge.from..edge.from + edge.len];
        match part {
            Edit::Bytes(bytes) => place.copy_from_slice(bytes),
            Edit::Zeros => place.fill(0),
        }
        Ok(Some((edge.lba, block)))
    }

    fn write_whole(
        &self,
        first: Lba,
        blocks: &[u8],
        part: Option<&Part>,
        ready: Option<Reduction>,
    ) -> Result<WriteOutcome> {
        self.backing.told(self.backing.store.write_part(self.number, first, blocks, part, ready))
    }

    fn write_block(
        &self,
        changed: Option<(Lba, [u8; BLOCK_BYTES])>,
        part: Option<&Part>,
    ) -> Result<WriteReport> {
        match changed {
            Some((lba, block)) => Ok(self.write_whole(lba, &block, part, None)?.into()),
            None => Ok(WriteReport::default()),
        }
    }

    /// How much of a request has been done before, in bytes; `None` where that is all of it. The caller has been
    /// admitted, so that nothing of the request is done elsewhere meanwhile.
    fn done_before(&self, request: Option<RequestId>) -> Option<u64> {
        let progress = request.map(|request| self.backing.store.progress_of(request));
        match progress.unwrap_or(Progress::Through(ByteCount(0))) {
            Progress::Through(done) => Some(done.0),
            Progress::Done => None,
        }
    }

    /// What may be answered once all is applied everywhere that is applied here: for what was done before.
    fn newest(&self) -> Commit {
        Commit(self.backing.store.last_lsn())
    }

    /// `ready`: what has been made of all of `data` already, where it is whole blocks.
    fn write(&self, offset: u64, data: &[u8], asked: Asked, ready: Option<Reduction>) -> Result<WriteReport> {
        self.check_writable()?;
        self.check(offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(WriteReport::default());
        }
        let Asked { request, tenure } = asked;
        let _admission = self.backing.admit_of(tenure)?;
        let before = self.done_before(request).filter(|before| *before < data.len() as u64);
        let Some(before) = before else {
            return Ok(WriteReport { commit: self.newest(), ..WriteReport::default() });
        };
        let data = &data[usize::try_from(before).unwrap_or(data.len())..];
        let len = data.len() as u64;
        let blocks = BlockCount((offset + before + len).div_ceil(BLOCK) - (offset + before) / BLOCK);
        let _reservation = match self.backing.reserve(blocks) {
            // Zeros take none.
            Err(error) if data.iter().any(|byte| *byte != 0) => return Err(error),
            other => other.ok(),
        };
        let split = Split::of(offset + before, len);
        let (head, rest) = data.split_at(split.head_len());
        let (whole, tail) = rest.split_at(rest.len() - split.tail_len());
        let _turn = self.ranges.take_turn(&split);
        // Both edges are read before anything is written: a damaged one changes nothing.
        let head = self.changed_block(split.head, Edit::Bytes(head))?;
        let tail = self.changed_block(split.tail, Edit::Bytes(tail))?;
        let steps = Steps::of(request, before, &split);
        let mut report = self.write_block(head, steps.head.as_ref())?;
        if !whole.is_empty() {
            let ready = ready.filter(|_| before == 0);
            report = report.and(self.write_whole(split.first, whole, steps.whole.as_ref(), ready)?.into());
        }
        report = report.and(self.write_block(tail, steps.tail.as_ref())?);
        self.write_ops.fetch_add(1, Ordering::Relaxed);
        self.write_bytes.fetch_add(len, Ordering::Relaxed);
        Ok(report)
    }

    fn write_zeroes(&self, offset: u64, len: ByteCount, asked: Asked) -> Result<Commit> {
        self.check_writable()?;
        self.check(offset, len.0)?;
        if len.0 == 0 {
            return Ok(Commit::default());
        }
        let Asked { request, tenure } = asked;
        let _admission = self.backing.admit_of(tenure)?;
        let Some(before) = self.done_before(request).filter(|before| *before < len.0) else {
            return Ok(self.newest());
        };
        let split = Split::of(offset + before, len.0 - before);
        let _turn = self.ranges.take_turn(&split);
        let head = self.changed_block(split.head, Edit::Zeros)?;
        let tail = self.changed_block(split.tail, Edit::Zeros)?;
        let steps = Steps::of(request, before, &split);
        let mut newest = self.write_block(head, steps.head.as_ref())?.commit;
        newest = newest.max(Commit(self.zero_whole(&split, steps.whole.as_ref())?));
        newest = newest.max(self.write_block(tail, steps.tail.as_ref())?.commit);
        Ok(newest)
    }

    fn trim(&self, offset: u64, len: ByteCount, asked: Asked) -> Result<Commit> {
        self.check_writable()?;
        self.check(offset, len.0)?;
        let whole = |split| Split { head: None, tail: None, ..split };
        if whole(Split::of(offset, len.0)).whole.0 == 0 {
            return Ok(Commit::default());
        }
        let Asked { request, tenure } = asked;
        let _admission = self.backing.admit_of(tenure)?;
        let Some(before) = self.done_before(request).filter(|before| *before < len.0) else {
            return Ok(self.newest());
        };
        let all = Split::of(offset + before, len.0 - before);
        let split = whole(all);
        let _turn = self.ranges.take_turn(&split);
        let steps = Steps::of(request, before + all.head_len() as u64, &split);
        Ok(Commit(self.zero_whole(&split, steps.whole.as_ref())?))
    }

    fn zero_whole(&self, split: &Split, part: Option<&Part>) -> Result<Lsn> {
        if split.whole.0 == 0 {
            return Ok(Lsn::default());
        }
        self.backing.told(self.backing.store.zero_part(self.number, split.first, split.whole, part))
    }

    fn block_status(&self, offset: u64, len: ByteCount, extents_max: usize) -> Result<Vec<Extent>> {
        self.check(offset, len.0)?;
        if len.0 == 0 {
            return Err(Error::new(ErrorKind::Invalid, "the status of no bytes is asked for"));
        }
        let end = offset + len.0;
        let first = offset / BLOCK;
        let count = BlockCount(end.div_ceil(BLOCK) - first);
        let runs = self.backing.store.map_status(self.number, Lba(first), count, extents_max.max(1))?;
        self.answer_read(offset, len.0, true)?;
        let mut extents: Vec<Extent> = Vec::with_capacity(runs.len());
        let mut at = offset;
        let mut run_end = BlockCount(first).bytes().0;
        for run in runs {
            if at == end {
                break;
            }
            run_end += run.blocks.bytes().0;
            let len = ByteCount(run_end.min(end) - at);
            at += len.0;
            let kind = match run.kind {
                MappingKind::Data => ExtentKind::Data,
                MappingKind::Hole => ExtentKind::Hole,
                MappingKind::Pattern => ExtentKind::Pattern,
            };
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.len.0 += len.0,
                _ => extents.push(Extent { len, kind }),
            }
        }
        Ok(extents)
    }
}

/// Which request changes something, and when its client came, as far as that matters.
#[derive(Clone, Copy)]
struct Asked {
    request: Option<RequestId>,
    tenure: Option<Tenure>,
}

/// What goes into a part of a block.
enum Edit<'a> {
    Bytes(&'a [u8]),
    Zeros,
}

/// How a write went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteReport {
    /// What it committed.
    pub commit: Commit,
    /// Its blocks that were there already.
    pub duplicate_blocks: u32,
    /// Its blocks that were stored compressed.
    pub compressed_blocks: u32,
}

impl WriteReport {
    /// Both writes together.
    fn and(self, other: WriteReport) -> WriteReport {
        WriteReport {
            commit: self.commit.max(other.commit),
            duplicate_blocks: self.duplicate_blocks.saturating_add(other.duplicate_blocks),
            compressed_blocks: self.compressed_blocks.saturating_add(other.compressed_blocks),
        }
    }
}

impl From<WriteOutcome> for WriteReport {
    fn from(outcome: WriteOutcome) -> WriteReport {
        WriteReport {
            commit: Commit(outcome.lsn),
            duplicate_blocks: outcome.duplicate_blocks,
            compressed_blocks: outcome.compressed_blocks,
        }
    }
}

/// A volume or snapshot, open for one client. While it is not dropped, it is in use.
pub struct Volume {
    shared: Arc<SharedVolume>,
    tenure: Option<Tenure>,
}

impl Volume {
    /// Opens the volume once more, for a client whose requests are of a tenure, or for one who stays. The caller holds
    /// the catalog's lock.
    pub(super) fn connect(shared: Arc<SharedVolume>, tenure: Option<Tenure>) -> Volume {
        shared.connections.fetch_add(1, Ordering::AcqRel);
        Volume { shared, tenure }
    }

    fn asked(&self, request: Option<RequestId>) -> Asked {
        Asked { request, tenure: self.tenure }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.shared.id
    }

    /// What `newer` maps otherwise than this, as [`Store::diff`] says it.
    pub(super) fn changed_blocks(
        &self,
        newer: &Volume,
        first: Lba,
        count: BlockCount,
        runs_max: usize,
    ) -> Result<Vec<ChangedRun>> {
        let (older, newer) = (&self.shared, &newer.shared);
        let runs =
            older.backing.store.diff(older.number, newer.number, first, count, runs_max).and_then(|runs| {
                newer.backing.answer_read(newer.number, first, count, true)?;
                Ok(runs)
            });
        newer.unless_deleted(older.unless_deleted(runs))
    }

    /// Like [`BlockService::write`], and says how the data was reduced.
    ///
    /// # Errors
    /// As [`BlockService::write`].
    pub fn write_reported(&self, offset: u64, data: &[u8]) -> Result<WriteReport> {
        self.shared.changed(self.shared.write(offset, data, self.asked(None), None))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Every verb but `size`, `read_only`, `acknowledge` and `make_durable` answers `NotFound` once the
/// volume or snapshot has been deleted: what was written before may still be acknowledged.
impl BlockService for Volume {
    fn size(&self) -> ByteCount {
        self.shared.size()
    }

    fn read_only(&self) -> bool {
        self.shared.access == Access::ReadOnly || self.shared.backing.store.opened_damaged()
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        self.shared.unless_deleted(self.shared.fill(offset, buffer, false))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let filled = self.shared.unless_deleted(self.shared.fill(offset, buffer, true))?;
        if filled {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Device, format!("a read at offset {offset} was not carried out")))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Commit> {
        self.write_reported(offset, data).map(|report| report.commit)
    }

    fn write_zeroes(&self, offset: u64, len: ByteCount) -> Result<Commit> {
        self.shared.changed(self.shared.write_zeroes(offset, len, self.asked(None)))
    }

    fn trim(&self, offset: u64, len: ByteCount) -> Result<Commit> {
        self.shared.changed(self.shared.trim(offset, len, self.asked(None)))
    }

    fn change_once(&self, request: RequestId, change: Change<'_>) -> Result<Commit> {
        let (shared, asked) = (&self.shared, self.asked(Some(request)));
        shared.changed(match change {
            Change::Write { offset, data } => {
                shared.write(offset, data, asked, None).map(|report| report.commit)
            }
            Change::Zeroes { offset, len } => shared.write_zeroes(offset, len, asked),
            Change::Trim { offset, len } => shared.trim(offset, len, asked),
        })
    }

    fn write_group(&self, writes: &[GroupedWrite<'_>]) -> Vec<Result<Commit>> {
        let shared = &self.shared;
        let is_whole = |write: &GroupedWrite<'_>| {
            write.offset.is_multiple_of(BLOCK) && write.data.len().is_multiple_of(BLOCK_BYTES)
        };
        let whole: Vec<&[u8]> =
            writes.iter().filter(|write| is_whole(write)).map(|write| write.data).collect();
        let mut reductions = shared.backing.store.reduce_together(&whole).into_iter();
        let mut one = |write: &GroupedWrite<'_>| {
            let ready = if is_whole(write) { reductions.next().flatten() } else { None };
            let written = shared.write(write.offset, write.data, self.asked(write.request), ready);
            shared.changed(written).map(|report| report.commit)
        };
        writes.iter().map(&mut one).collect()
    }

    fn is_deleted(&self) -> bool {
        self.shared.alive().is_err()
    }

    fn acknowledge(&self, commit: Commit) -> Result<()> {
        self.shared.backing.acknowledge(commit.0)
    }

    fn make_durable(&self, commit: Commit) -> Result<()> {
        self.shared.backing.make_durable(commit.0)
    }

    fn flush(&self) -> Result<()> {
        self.shared.alive()?;
        self.shared.backing.make_durable(self.shared.backing.store.last_lsn())
    }

    fn block_status(&self, offset: u64, len: ByteCount, extents_max: usize) -> Result<Vec<Extent>> {
        self.shared.unless_deleted(self.shared.block_status(offset, len, extents_max))
    }
}
