//! Opening a pool: the newest checkpoint, then every whole batch behind it.
//!
//! The whole chain is walked to its end before anything is changed, so that replay knows which segments it
//! must not use. Replay makes checkpoints of its own at the dirty limit, at a place in the middle of the old
//! chain: a crash then begins from there, with the rest of the chain as it was.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::device::{Device, Syncer};
use crate::error::{Error, ErrorKind, Result};
use crate::format::batch::Batch;
use crate::format::objects::{SegmentEntry, decode_slot};
use crate::format::page::{PAGE_BYTES, POINTERS_PER_PAGE, PageKey, SEGMENT_ENTRIES_PER_PAGE, Table};
use crate::format::root::CheckpointRoot;
use crate::units::{Lsn, SegmentId};

use super::super::Store;
use super::super::blocks::ids::Space;
use super::super::core::Core;
use super::super::operation::PayloadPlace;
use super::super::options::{Environment, OpenReport, StoreOptions};
use super::super::run::Caller;
use super::newest_superblock;
use super::walk::{Walk, read_header};

/// What the walk along the chain has found.
pub(crate) struct Chain {
    /// Segments that it uses, the reserved successor included.
    pub(crate) segments: FxHashSet<u32>,
    end: Walk,
    batches: u64,
    bytes: u64,
    newest_checkpoint: u64,
    /// What was durable and is not there.
    pub(crate) damage: Vec<String>,
}

impl Store {
    /// Opens the pool on the devices, all of them and in their order, and recovers what a crash has left.
    /// With damage in the report, the store takes no writes.
    ///
    /// # Errors
    /// `Corrupt`, `Busy` for a list that is not the pool's, `Invalid`, `Device`.
    pub fn open(
        devices: Vec<Arc<dyn Device>>,
        options: StoreOptions,
        environment: Environment,
    ) -> Result<(Store, OpenReport)> {
        let (store, root) = Store::open_checkpoint(devices, options, environment)?;
        let chain = store.walk_chain(&root)?;
        let mut report =
            OpenReport { damage: chain.damage.clone(), log_bytes: chain.bytes, ..OpenReport::default() };
        report.checkpoint = root.number;
        store.core.lock().segments.classify(|segment| chain.segments.contains(&segment.0));
        store.replay(&root, &chain, &mut report)?;
        if !report.damage.is_empty() && !store.options.accept_loss {
            let why = format!("the log is damaged: {}", report.damage[0]);
            {
                let mut core = store.core.lock();
                core.stopped = Some(why);
                core.opened_damaged = true;
            }
            return Ok((store, report));
        }
        store.close_chain(&chain);
        report.clean = report.replayed_operations == 0 && chain.batches == 0;
        store.begin_serving()?;
        Ok((store, report))
    }

    /// A store as of its last checkpoint: nothing is replayed, nothing is written.
    pub(crate) fn open_checkpoint(
        devices: Vec<Arc<dyn Device>>,
        options: StoreOptions,
        environment: Environment,
    ) -> Result<(Store, CheckpointRoot)> {
        let (store, root) = Store::at_checkpoint(devices, options, environment)?;
        store.restore_segments(&root, false)?;
        store.restore_objects(false)?;
        Ok((store, root))
    }

    /// As `open_checkpoint`, but without the tables that are held in memory.
    pub(crate) fn at_checkpoint(
        devices: Vec<Arc<dyn Device>>,
        options: StoreOptions,
        environment: Environment,
    ) -> Result<(Store, CheckpointRoot)> {
        for device in &devices {
            // After a failed sync the page cache may show what is not on the disk.
            let fresh = device.sync(Syncer::Checkpoint).and_then(|()| device.drop_cache());
            fresh.map_err(|error| {
                Error::caused(ErrorKind::Device, format!("syncing {}", device.name()), error)
            })?;
        }
        let superblock = newest_superblock(&devices)?;
        let blank = CheckpointRoot::default();
        let probe = Store::assemble(
            devices.clone(),
            StoreOptions { index_budget: crate::units::ByteCount(64), ..options.clone() },
            environment.clone(),
            superblock.clone(),
            &blank,
        )?;
        let root = probe.read_root(&superblock)?;
        drop(probe);
        let store = Store::assemble(devices, options, environment, superblock, &root)?;
        Ok((store, root))
    }

    /// Replay has passed the whole chain.
    pub(crate) fn close_chain(&self, chain: &Chain) {
        let mut core = self.core.lock();
        for segment in &chain.segments {
            core.segments.close(SegmentId(*segment));
        }
    }

    /// Pages of a table that exist, in order, each handed to `visit`.
    pub(crate) fn visit_table(
        &self,
        table: Table,
        visit: &mut dyn FnMut(u64, &[u8; PAGE_BYTES]) -> Result<()>,
    ) -> Result<()> {
        let height = self.core.lock().roots[table.index()].height;
        self.visit_below(PageKey { level: height, table, number: 0 }, visit)
    }

    fn visit_below(
        &self,
        key: PageKey,
        visit: &mut dyn FnMut(u64, &[u8; PAGE_BYTES]) -> Result<()>,
    ) -> Result<()> {
        let page = self.run(Caller::Maintenance, |core| {
            if !core.cache.holds(key) && core.pointer(key)?.is_none() {
                return Ok(None);
            }
            core.bring_in(key)?;
            Ok(Some(core.cache.page(key).page.clone()))
        })?;
        let Some(page) = page else { return Ok(()) };
        if key.level == 0 {
            return visit(key.number, &page);
        }
        for slot in 0..POINTERS_PER_PAGE {
            let child = PageKey {
                level: key.level - 1,
                table: key.table,
                number: key.number * POINTERS_PER_PAGE + slot,
            };
            self.visit_below(child, visit)?;
        }
        Ok(())
    }

    /// Brings the segment table into memory; a lenient reader takes what makes no sense for a free segment.
    pub(crate) fn restore_segments(&self, root: &CheckpointRoot, lenient: bool) -> Result<()> {
        self.visit_table(Table::Segments, &mut |number, page| {
            let mut core = self.core.lock();
            for slot in 0..SEGMENT_ENTRIES_PER_PAGE {
                let segment = number * SEGMENT_ENTRIES_PER_PAGE + slot;
                if segment >= u64::from(core.segments.count()) {
                    break;
                }
                let segment = SegmentId(u32::try_from(segment).expect("20 bits"));
                let entry = SegmentEntry::at(page, usize::try_from(slot).expect("below 128"));
                let entry = entry.or(lenient.then(SegmentEntry::default)).ok_or_else(|| {
                    Error::new(ErrorKind::Corrupt, format!("the entry of segment {segment} makes no sense"))
                })?;
                core.segments.restore(segment, entry);
            }
            Ok(())
        })?;
        let mut core = self.core.lock();
        for change in &root.segment_changes {
            if !core.segments.restore_change(change) && !lenient {
                let what = format!("the checkpoint's change of segment {} makes no sense", change.segment);
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
        }
        Ok(())
    }

    /// Brings the objects into memory; a lenient reader leaves slots empty that make no sense, and says which.
    pub(crate) fn restore_objects(&self, lenient: bool) -> Result<Vec<u64>> {
        let mut senseless = Vec::new();
        self.visit_table(Table::Objects, &mut |number, page| {
            let slot = decode_slot(page);
            if slot.is_none() {
                senseless.push(number);
            }
            let slot = slot.or(lenient.then_some(None)).ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, format!("the object in slot {number} makes no sense"))
            })?;
            let number = usize::try_from(number).expect("at most 65,536");
            self.core.lock().objects.restore(number, slot);
            Ok(())
        })?;
        Ok(senseless)
    }

    /// Walks the chain to its end, changing nothing.
    pub(crate) fn walk_chain(&self, root: &CheckpointRoot) -> Result<Chain> {
        let mut walk = Walk::from_root(root, self.options.faults.ignore_chain);
        let mut chain = Chain {
            segments: FxHashSet::default(),
            end: walk.clone(),
            batches: 0,
            bytes: 0,
            newest_checkpoint: 0,
            damage: Vec::new(),
        };
        chain.segments.extend([walk.segment.0, walk.successor.0]);
        let mut segment = walk.segment;
        while let Some(batch) = walk.next(self)? {
            chain.batches += 1;
            chain.bytes += batch.bytes.len() as u64;
            if walk.segment != segment {
                segment = walk.segment;
                // Segments of the log are not freed before a checkpoint makes it begin behind them.
                if !chain.segments.insert(walk.successor.0) {
                    let what = format!("the log comes back to segment {}", walk.successor);
                    return Err(Error::new(ErrorKind::Corrupt, what));
                }
            }
            if let Some((header, _)) = crate::format::batch::BatchHeader::peek(&batch.bytes) {
                chain.newest_checkpoint = chain.newest_checkpoint.max(header.durable_checkpoint);
            }
        }
        if let Some(behind) = walk.search_behind(self)? {
            chain.damage.push(format!(
                "operations {} to {} were durable and cannot be read (a batch of operation {} follows them)",
                walk.next_lsn, behind.durable_lsn, behind.first_lsn
            ));
        }
        if chain.newest_checkpoint > root.number.0 {
            chain.damage.push(format!(
                "checkpoint {} was durable and its superblock cannot be read; the newest that can is {}",
                chain.newest_checkpoint, root.number
            ));
        }
        chain.end = walk;
        Ok(chain)
    }

    /// Applies every operation of the chain, with checkpoints in between where memory runs short.
    pub(crate) fn replay(&self, root: &CheckpointRoot, chain: &Chain, report: &mut OpenReport) -> Result<()> {
        let mut walk = Walk::from_root(root, self.options.faults.ignore_chain);
        let serving = {
            let mut core = self.core.lock();
            let serving = core.log.incarnation;
            core.log.incarnation = root.log_incarnation;
            serving
        };
        let mut left = chain.batches;
        while left > 0 {
            let before = walk.segment;
            let Some(walked) = walk.next(self)? else {
                return Err(Error::new(ErrorKind::Device, "the log reads differently the second time"));
            };
            left -= 1;
            if walk.segment != before {
                self.enter_replayed_segment(before, walk.segment)?;
            }
            let batch = Batch::decode(&walked.bytes, false)
                .ok_or_else(|| Error::new(ErrorKind::Device, "the log reads differently the second time"))?;
            let mut lsn = batch.header.first_lsn;
            let mut lost = None;
            for frame in batch.frames().flatten() {
                let payload = walked.offset + u32::try_from(frame.payload_offset).expect("within a segment");
                let place = PayloadPlace { segment: walked.segment, offset: payload };
                let replayed =
                    self.run(Caller::Maintenance, |core| core.replay_operation(&frame.operation, place));
                match replayed {
                    // What it changes cannot be read: the pool is as before it.
                    Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Device) => {
                        lost = Some(error);
                        break;
                    }
                    other => other?,
                }
                self.remember_replayed(&frame.operation);
                report.replayed_operations += 1;
                lsn = lsn.next();
            }
            let mut core = self.core.lock();
            core.log.epoch = batch.header.epoch;
            if lsn > batch.header.first_lsn {
                core.log.committed_epoch = batch.header.epoch;
            }
            core.log.next_lsn = lsn;
            core.log.written = Lsn(lsn.0 - 1);
            core.log.durable = core.log.written;
            core.log.durable_stated = core.log.written;
            if let Some(error) = lost {
                let last = Lsn(chain.end.next_lsn.0 - 1);
                report.damage.push(format!("operations {lsn} to {last} cannot be applied: {error}"));
                break;
            }
            let short = core.cache.dirty_pages() >= core.geometry.dirty_start;
            drop(core);
            if short && !chain.damage.is_empty() {
                let what = "a damaged log is longer than memory can replay without writing";
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
            if short {
                self.checkpoint_in_replay(&walk)?;
            }
        }
        let mut core = self.core.lock();
        core.log.incarnation = serving;
        core.log.chain = walk.chain;
        report.last_lsn = core.log.committed();
        Ok(())
    }

    /// A checkpoint before anything is replayed: the log behind it stays as it is.
    pub(crate) fn checkpoint_before_replay(&self, root: &CheckpointRoot) -> Result<()> {
        let serving = std::mem::replace(&mut self.core.lock().log.incarnation, root.log_incarnation);
        let outcome = self.checkpoint_in_replay(&Walk::from_root(root, self.options.faults.ignore_chain));
        self.core.lock().log.incarnation = serving;
        outcome
    }

    /// A checkpoint at a place in the middle of the chain that is being replayed. It merges no counts: a block
    /// that counts nothing here may have been found alive, and shared anew, by an operation further on.
    fn checkpoint_in_replay(&self, walk: &Walk) -> Result<()> {
        {
            let mut core = self.core.lock();
            core.log.chain = walk.chain;
            core.log.position.segment = walk.segment;
            core.log.position.offset = walk.offset;
            core.log.position.successor = walk.successor;
        }
        self.checkpoint_without_merge()?;
        let mut core = self.core.lock();
        core.log.align_next = false;
        Ok(())
    }

    /// Replay has passed the end of a log segment.
    fn enter_replayed_segment(&self, before: SegmentId, entered: SegmentId) -> Result<()> {
        let header = read_header(self, entered)?;
        let mut core = self.core.lock();
        core.segments.close(before);
        if let Some(header) = header {
            core.segments.restore_log_segment(entered, header.erases, header.sequence);
            core.next_sequence = core.next_sequence.max(header.sequence + 1);
        }
        Ok(())
    }

    /// The index learns of replayed blocks as it does of written ones.
    fn remember_replayed(&self, operation: &crate::format::batch::LoggedOperation) {
        use crate::format::batch::{LoggedOperation, MappingRecord};
        if let LoggedOperation::Write { mappings, .. } = operation {
            for mapping in mappings {
                if let MappingRecord::New { block, fingerprint, .. } = mapping {
                    self.index.remember(fingerprint, *block);
                }
            }
        }
    }
}

impl Core {
    fn replay_operation(
        &mut self,
        operation: &crate::format::batch::LoggedOperation,
        place: PayloadPlace,
    ) -> Result<(), super::super::core::Stall> {
        let blocks = self.prepare_replayed_ids(operation)?;
        let (prepared, _) = self.prepare_operation(operation, usize::MAX)?;
        for block in blocks {
            self.mark_id_used(Space::Blocks, block.0);
        }
        self.apply_operation(operation, &prepared, place);
        Ok(())
    }
}
