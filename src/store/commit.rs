//! Committing: splitting a request into operations, reducing its blocks outside of the lock, and entering each
//! operation under it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, ErrorKind, Result};
use crate::format::batch::{FRAME_HEADER_BYTES, LoggedOperation, MAPPING_RECORD_BYTES_MAX, MappingRecord};
use crate::format::page::BlockEntry;
use crate::format::to_grain;
use crate::units::{BLOCK_BYTES, BlockCount, BlockId, ByteCount, Fingerprint, Lba, Lsn, ObjectNumber};

use super::Store;
use super::blocks::ids::Space;
use super::blocks::table::block_page;
use super::core::{Core, Stall};
use super::operation::{Claim, PayloadPlace, Prepared};
use super::options::Commit;
use super::reduce::{Reduced, Reduction};
use super::run::Caller;
use super::sessions::{Origin, Part};

/// How one write went, summed over its blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOutcome {
    /// The last operation of it.
    pub lsn: Lsn,
    /// Blocks that were all zero.
    pub zero_blocks: u32,
    /// Blocks of one repeated word.
    pub pattern_blocks: u32,
    /// Blocks that were there already.
    pub duplicate_blocks: u32,
    /// Blocks that were stored.
    pub new_blocks: u32,
    /// Of those, compressed ones.
    pub compressed_blocks: u32,
}

impl WriteOutcome {
    fn add(&mut self, other: &WriteOutcome) {
        self.lsn = self.lsn.max(other.lsn);
        self.zero_blocks += other.zero_blocks;
        self.pattern_blocks += other.pattern_blocks;
        self.duplicate_blocks += other.duplicate_blocks;
        self.new_blocks += other.new_blocks;
        self.compressed_blocks += other.compressed_blocks;
    }
}

/// How many steps one trim may take.
pub(crate) fn zero_steps(dirty_limit: usize) -> usize {
    (dirty_limit / 32).clamp(1, 64)
}

impl Store {
    /// Writes whole blocks from `first` on. Afterwards every reader sees them; they may be acknowledged once
    /// `write_out` has returned for the outcome's LSN.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `NoSpace`, `Stopped`, `Corrupt`, `Device`. After an error a part of the blocks, from
    /// the first on, may have been written.
    pub fn write(&self, object: ObjectNumber, first: Lba, data: &[u8]) -> Result<WriteOutcome> {
        self.write_part(object, first, data, None, None)
    }

    /// As `write`, for a part of a request whose progress is remembered: each of its operations says how far it has
    /// come. `ready` is what `reduce_together` has made of this data, if it was asked.
    ///
    /// # Errors
    /// As `write`.
    pub fn write_part(
        &self,
        object: ObjectNumber,
        first: Lba,
        data: &[u8],
        part: Option<&Part>,
        mut ready: Option<Reduction>,
    ) -> Result<WriteOutcome> {
        if data.is_empty() || !data.len().is_multiple_of(BLOCK_BYTES) {
            let what = format!("{} bytes are no whole number of blocks", data.len());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mut outcome = WriteOutcome::default();
        let mut lba = first;
        for chunk in data.chunks(self.geometry.operation_blocks * BLOCK_BYTES) {
            let count = (chunk.len() / BLOCK_BYTES) as u64;
            lba = lba.plus(count);
            let done = BlockCount(lba.0 - first.0).bytes();
            let origin = part.map(|part| part.origin(done, ByteCount(data.len() as u64)));
            let begin = Lba(lba.0 - count);
            let ready = ready.take().filter(|_| chunk.len() == data.len());
            outcome.add(&self.write_operation(object, begin, chunk, origin, ready)?);
        }
        Ok(outcome)
    }

    /// Reduces several small writes together, for `write_part`: `None` for each where that fails, and for those of
    /// more than one operation.
    pub fn reduce_together(&self, writes: &[&[u8]]) -> Vec<Option<Reduction>> {
        let small = |data: &[u8]| data.len() <= self.geometry.operation_blocks * BLOCK_BYTES;
        if !writes.iter().all(|data| small(data) && data.len().is_multiple_of(BLOCK_BYTES)) {
            return writes.iter().map(|_| None).collect();
        }
        match self.reduce(writes, true) {
            Ok(reductions) => reductions.into_iter().map(Some).collect(),
            // The write itself will say what is wrong.
            Err(_) => writes.iter().map(|_| None).collect(),
        }
    }

    fn write_operation(
        &self,
        object: ObjectNumber,
        first: Lba,
        data: &[u8],
        origin: Option<Origin>,
        mut ready: Option<Reduction>,
    ) -> Result<WriteOutcome> {
        let mut probing = true;
        loop {
            let reduction = match ready.take() {
                Some(reduction) => reduction,
                None => self.reduce(&[data], probing)?.pop().expect("one for one write"),
            };
            if reduction.blocks.iter().all(|block| matches!(block, Reduced::Zero)) {
                let count = BlockCount(reduction.blocks.len() as u64);
                let part = origin.map(|origin| Part::ending_at(origin, count));
                let lsn = self.zero_part(object, first, count, part.as_ref())?;
                let zero_blocks = u32::try_from(count.0).expect("at most 256");
                self.core.lock().counters.zero_blocks += count.0;
                return Ok(WriteOutcome { lsn, zero_blocks, ..WriteOutcome::default() });
            }
            let committed = self.run_taking_ids(&reduction, |core| {
                core.leads()?;
                self.commit_write(core, object, first, &reduction, origin)
            })?;
            if let Some(outcome) = committed {
                return Ok(outcome);
            }
            probing = false;
        }
    }

    /// As `run`, for what takes ids for the new blocks of a reduction. Where the entries of some cannot be read, it takes
    /// others: a damaged page of the table must not keep what is new from being written.
    pub(crate) fn run_taking_ids<T>(
        &self,
        reduction: &Reduction,
        mut attempt: impl FnMut(&mut Core) -> Result<T, Stall>,
    ) -> Result<T> {
        loop {
            match self.run(Caller::Request, &mut attempt) {
                Err(error) if error.kind() == ErrorKind::Corrupt && self.pass_over_damaged(reduction)? => {}
                outcome => return outcome,
            }
        }
    }

    /// Passes over ids that would be given out next and whose entries cannot be read; whether there were any.
    fn pass_over_damaged(&self, reduction: &Reduction) -> Result<bool> {
        let stored = reduction.blocks.iter().filter(|block| matches!(block, Reduced::Stored { .. })).count();
        let upcoming: Vec<BlockId> = self.core.lock().block_ids.upcoming(stored).map(BlockId).collect();
        let mut found = false;
        for key in upcoming.into_iter().map(block_page).collect::<BTreeSet<_>>() {
            match self.run(Caller::Request, |core| core.bring_in(key)) {
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.core.lock().block_ids.pass_over(key.number);
                    found = true;
                }
                outcome => outcome?,
            }
        }
        Ok(found)
    }

    /// Enters a write; `None` when a candidate has gone and the blocks must be reduced again.
    pub(crate) fn commit_write(
        &self,
        core: &mut Core,
        object: ObjectNumber,
        first: Lba,
        reduction: &Reduction,
        origin: Option<Origin>,
    ) -> Result<Option<WriteOutcome>, Stall> {
        core.writable()?;
        let stored = reduction.blocks.iter().filter(|block| matches!(block, Reduced::Stored { .. })).count();
        core.prepare_ids(Space::Blocks, stored)?;
        let Some((mappings, taken)) = self.choose_mappings(core, reduction, stored)? else {
            return Ok(None);
        };
        let operation = LoggedOperation::Write { object, first, mappings };
        let (prepared, needs) = core.prepare_operation(&operation, 0)?;
        let records_max = to_grain(FRAME_HEADER_BYTES + reduction.blocks.len() * MAPPING_RECORD_BYTES_MAX);
        let frame_max = records_max + reduction.payload.len();
        core.check_room(&needs, frame_max as u64, Claim::Write)?;
        core.prepare_log(frame_max, Claim::Write.segments_kept(&self.geometry))?;

        for _ in 0..taken {
            core.take_id(Space::Blocks);
        }
        let outcome =
            self.enter(core, &operation, &prepared, &reduction.payload, origin, || reduction.fingerprints());
        let LoggedOperation::Write { mappings, .. } = &operation else { return Ok(None) };
        core.heat.note(object, first, mappings.len() as u64, core.counters.unique_blocks);
        Ok(Some(self.account(core, mappings, outcome, reduction.blocks.len())))
    }

    /// What each block is mapped to, and how many new ids that takes. The index is asked once more: an identical
    /// block may have been stored since.
    fn choose_mappings(
        &self,
        core: &mut Core,
        reduction: &Reduction,
        stored: usize,
    ) -> Result<Option<(Vec<MappingRecord>, usize)>, Stall> {
        let mut ids = core.block_ids.upcoming(stored);
        let mut taken = 0;
        let mut mappings: Vec<MappingRecord> = Vec::with_capacity(reduction.blocks.len());
        for reduced in &reduction.blocks {
            let mapping = match *reduced {
                Reduced::Zero => MappingRecord::Hole,
                Reduced::Pattern(word) => MappingRecord::Pattern(word),
                Reduced::Lost => MappingRecord::Lost,
                Reduced::Candidate { block, fingerprint } => {
                    if core.verdict(block, &fingerprint)? != Verdict::Same {
                        return Ok(None);
                    }
                    MappingRecord::Existing { block, dead_len: 0 }
                }
                Reduced::Stored { stored_len, fingerprint, checksum, heals } => {
                    let late = self.index.probe(&fingerprint).filter(|block| {
                        core.cache.holds(block_page(*block))
                            && matches!(core.verdict(*block, &fingerprint), Ok(Verdict::Same))
                    });
                    let healed = match heals {
                        Some(block) if core.verdict(block, &fingerprint)? == Verdict::Bad => Some(block),
                        _ => None,
                    };
                    match (late, healed) {
                        (Some(block), _) => MappingRecord::Existing { block, dead_len: stored_len },
                        (None, Some(block)) => {
                            MappingRecord::New { block, stored_len, fingerprint, checksum }
                        }
                        (None, None) => {
                            taken += 1;
                            let block = BlockId(ids.next().expect("one for each stored block"));
                            MappingRecord::New { block, stored_len, fingerprint, checksum }
                        }
                    }
                }
                Reduced::Twin { of } => match mappings[of] {
                    MappingRecord::New { block, .. } | MappingRecord::Existing { block, .. } => {
                        MappingRecord::Existing { block, dead_len: 0 }
                    }
                    other => other,
                },
            };
            mappings.push(mapping);
        }
        Ok(Some((mappings, taken)))
    }

    /// Gives a prepared operation its number and place, and does what it says. From here on nothing can fail.
    /// `fingerprints` is only asked where somebody listens.
    pub(crate) fn enter(
        &self,
        core: &mut Core,
        operation: &LoggedOperation,
        prepared: &Prepared,
        payload: &Arc<Vec<u8>>,
        origin: Option<Origin>,
        fingerprints: impl FnOnce() -> Vec<Fingerprint>,
    ) -> Lsn {
        let records = operation.encode(payload.len());
        let (lsn, segment, offset) = core.append_to_log(records, Arc::clone(payload));
        core.apply_operation(operation, prepared, PayloadPlace { segment, offset });
        if let Some(origin) = &origin {
            core.sessions.note(origin);
        }
        if let Some(sink) = self.options.sink.as_ref().filter(|sink| sink.listens()) {
            let (epoch, fingerprints) = (core.log.epoch, fingerprints());
            sink.committed(&Commit { epoch, lsn, operation, fingerprints: &fingerprints, payload, origin });
        }
        lsn
    }

    fn account(&self, core: &mut Core, mappings: &[MappingRecord], lsn: Lsn, blocks: usize) -> WriteOutcome {
        let mut outcome = WriteOutcome { lsn, ..WriteOutcome::default() };
        let mut saved = 0;
        for mapping in mappings {
            match *mapping {
                MappingRecord::Hole => outcome.zero_blocks += 1,
                MappingRecord::Pattern(_) => outcome.pattern_blocks += 1,
                MappingRecord::Lost => {}
                MappingRecord::Existing { .. } => outcome.duplicate_blocks += 1,
                MappingRecord::New { block, stored_len, fingerprint, .. } => {
                    outcome.new_blocks += 1;
                    outcome.compressed_blocks += u32::from(usize::from(stored_len) < BLOCK_BYTES);
                    saved += (BLOCK_BYTES - usize::from(stored_len)) as u64;
                    core.bad_blocks.remove(&block.0);
                    self.index.remember(&fingerprint, block);
                }
            }
        }
        let counters = &mut core.counters;
        counters.bytes_in += (blocks * BLOCK_BYTES) as u64;
        counters.zero_blocks += u64::from(outcome.zero_blocks);
        counters.pattern_blocks += u64::from(outcome.pattern_blocks);
        counters.duplicate_blocks += u64::from(outcome.duplicate_blocks);
        counters.new_blocks += u64::from(outcome.new_blocks);
        counters.compressed_blocks += u64::from(outcome.compressed_blocks);
        counters.compression_saved_bytes += saved;
        outcome
    }

    /// Makes blocks holes, at a cost that goes by the nodes it touches.
    ///
    /// # Errors
    /// As `write`.
    pub fn zero(&self, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<Lsn> {
        self.zero_part(object, first, count, None)
    }

    /// As `zero`, for a part of a request whose progress is remembered. Blocks that are holes already take no
    /// operation, and nothing is remembered of them: making them holes once more undoes nothing that anybody has seen.
    ///
    /// # Errors
    /// As `write`.
    pub fn zero_part(
        &self,
        object: ObjectNumber,
        first: Lba,
        count: BlockCount,
        part: Option<&Part>,
    ) -> Result<Lsn> {
        self.zero_if(object, first, count, part, Core::leads)
    }

    /// As `zero`, each of its operations under a condition.
    pub(crate) fn zero_if(
        &self,
        object: ObjectNumber,
        first: Lba,
        count: BlockCount,
        part: Option<&Part>,
        condition: impl Fn(&Core) -> Result<()>,
    ) -> Result<Lsn> {
        let mut done = 0;
        let mut last = Lsn(0);
        while done < count.0 {
            let left =
                LoggedOperation::Zero { object, first: first.plus(done), count: BlockCount(count.0 - done) };
            self.release_before_adding()?;
            let steps = zero_steps(self.geometry.dirty_limit);
            let (lsn, covered) = self.run(Caller::Request, |core| {
                core.writable()?;
                condition(core)?;
                let (prepared, needs) = core.prepare_operation(&left, steps)?;
                let Prepared::Zero(plan) = &prepared else {
                    return Ok((Lsn(0), count.0));
                };
                let claim = Claim::of_zero(&needs);
                core.check_room(&needs, 0, claim)?;
                core.prepare_log(FRAME_HEADER_BYTES + 16, claim.segments_kept(&self.geometry))?;
                let covered = plan.covered;
                let operation =
                    LoggedOperation::Zero { object, first: first.plus(done), count: BlockCount(covered) };
                let end = BlockCount(done + covered).bytes();
                let origin = part.map(|part| part.origin(end, count.bytes()));
                let lsn = self.enter(core, &operation, &prepared, &Arc::default(), origin, Vec::new);
                Ok((lsn, covered))
            })?;
            last = last.max(lsn);
            done += covered;
        }
        Ok(last)
    }

    /// Time that checkpoints have taken, for the statistics.
    pub(crate) fn note_checkpoint_time(&self, took: std::time::Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.figures.checkpoint_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

/// Whether a block that the index offers can be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has the same fingerprint, and will be there.
    Same,
    /// It has the same fingerprint, but its stored bytes are damaged.
    Bad,
    /// It is another block, none at all, about to go, or has too many references.
    No,
}

impl Core {
    /// Looks a candidate up in the table.
    ///
    /// # Errors
    /// A stall while its page is not in memory.
    pub(crate) fn verdict(&mut self, block: BlockId, fingerprint: &Fingerprint) -> Result<Verdict, Stall> {
        if block.0 >= self.block_ids.high_water || self.block_changes.may_vanish(block.0) {
            return Ok(Verdict::No);
        }
        let entry: BlockEntry = self.block_entry(block)?;
        Ok(if entry.location.is_none() || entry.fingerprint != *fingerprint || entry.crowded {
            Verdict::No
        } else if self.bad_blocks.contains(&block.0) {
            Verdict::Bad
        } else {
            Verdict::Same
        })
    }
}
