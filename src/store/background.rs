//! The maintenance role, and the bounded steps of background work.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{ErrorKind, Result};
use crate::format::segment::SegmentKind;
use crate::units::ByteCount;

use super::Store;
use super::log::victims::DEGREES;
use super::merge::Releases;

/// Nodes taken apart in one step.
const RELEASES_PER_STEP: usize = 64;
/// Leaves settled in one step.
const SETTLES_PER_STEP: usize = 16;
/// Nodes that were let go of wait at most this long for the checkpoint that takes them apart.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);
/// When nothing has been committed for so long, what was let go of is made free, whatever a checkpoint costs.
const QUIET: Duration = Duration::from_secs(1);
/// When nothing has been committed for so long, space goes back to the host as if nothing would ever be.
const IDLE: Duration = Duration::from_secs(10);
/// In an idle pool, segments no fuller of live bytes than this (5/8) are emptied for the host's sake.
const SPARSE: u32 = DEGREES / 8 * 5;
/// Segments given back to the host in one step.
const PUNCHES_MAX: usize = 64;
/// Victims collected before the segments that they free are made free by a checkpoint.
const VICTIMS_PER_CHECKPOINT: usize = 16;
/// As many are collected in the background while somebody waits: what is waited for is often that checkpoint.
const VICTIMS_WHILE_WAITED_FOR: usize = 4;

impl Store {
    /// Takes the maintenance role; or, where somebody else has it, waits until it is given up and answers `false`.
    ///
    /// # Errors
    /// `Stopped`.
    pub(crate) fn begin_maintenance_or_wait(&self) -> Result<bool> {
        let mut core = self.core.lock();
        core.writable()?;
        if !core.maintaining {
            core.maintaining = true;
            return Ok(true);
        }
        core.waiting_for_maintenance += 1;
        while core.maintaining && core.stopped.is_none() {
            core = self.changed.wait(core);
        }
        core.waiting_for_maintenance -= 1;
        core.writable()?;
        Ok(false)
    }

    /// Gives the maintenance role up.
    pub(crate) fn end_maintenance(&self) {
        self.core.lock().maintaining = false;
        self.changed.notify_all();
    }

    /// One bounded piece of background work, if any is due; whether there is more.
    ///
    /// # Errors
    /// `Stopped`, once a write or a sync has failed.
    pub fn background_step(&self) -> Result<bool> {
        {
            let mut core = self.core.lock();
            core.writable()?;
            if core.maintaining {
                return Ok(false);
            }
            core.maintaining = true;
        }
        let outcome = self.step_in_role();
        self.end_maintenance();
        outcome
    }

    fn step_in_role(&self) -> Result<bool> {
        let log_bytes = self.options.checkpoint_log_bytes.0;
        let (due, releases, low, rebuilding) = {
            let core = self.core.lock();
            let low = core.segments.free() < self.free_segments_wanted();
            let rebuilding = core.rebuild.pages_left > 0;
            (core.checkpoint_is_due(log_bytes), !core.release_queue.is_empty(), low, rebuilding)
        };
        if due {
            self.checkpoint_in_role()?;
            return Ok(true);
        }
        if releases {
            if self.release_nodes(RELEASES_PER_STEP)? == Releases::NoRoom {
                // No room for what lets go of their children: a checkpoint makes it.
                self.checkpoint_in_role()?;
            }
            return Ok(true);
        }
        if self.settle_some()? {
            return Ok(true);
        }
        if self.release_waits_long_enough() {
            self.checkpoint_in_role()?;
            return Ok(true);
        }
        if low && self.collect_in_role(VICTIMS_WHILE_WAITED_FOR)? {
            return Ok(true);
        }
        if or_no_space(self.level_wear())? || self.give_back()? {
            return Ok(true);
        }
        // Where collection gains nothing just now, going on at once would only repeat it.
        Ok(rebuilding && self.rebuild_index_step() && !low)
    }

    /// Lets copied leaves take references of their own, in a part of the change buffer: the rest is for requests, which
    /// wait when it is full. Whether any did.
    fn settle_some(&self) -> Result<bool> {
        let before = self.core.lock().borrowers.len();
        if before == 0 {
            return Ok(false);
        }
        let part = if self.quiet_for() >= QUIET { 4 } else { 8 };
        self.settle(SETTLES_PER_STEP, u64::MAX, self.geometry.changes / part)?;
        Ok(self.core.lock().borrowers.len() < before)
    }

    /// For how long nothing has been committed.
    fn quiet_for(&self) -> Duration {
        let now = self.environment.clock.monotonic();
        let mut core = self.core.lock();
        let newest = core.log.committed();
        if core.quiet_since.0 != newest {
            core.quiet_since = (newest, now);
        }
        now.saturating_sub(core.quiet_since.1)
    }

    /// One step of giving space back that nothing needs; whether there was one. While nobody writes, what was let go
    /// of is made free and what is sparse is put together, so that the host gets back what deletes have left.
    fn give_back(&self) -> Result<bool> {
        let quiet = self.quiet_for();
        if quiet >= QUIET && self.a_checkpoint_frees_something() {
            self.checkpoint_in_role()?;
            return Ok(true);
        }
        if quiet < IDLE {
            return Ok(self.punch_surplus(self.stock_under_load())? > 0);
        }
        if self.collect_sparse()? {
            return Ok(true);
        }
        Ok(self.punch_surplus(self.stock_when_idle())? > 0)
    }

    fn a_checkpoint_frees_something(&self) -> bool {
        let now = self.environment.clock.monotonic();
        let core = self.core.lock();
        core.awaits_checkpoint() && now.saturating_sub(core.checkpointed_at) >= QUIET
    }

    /// Empties some segments of blocks that hold little; whether that made any free.
    fn collect_sparse(&self) -> Result<bool> {
        let before = self.core.lock().segments.free();
        let mut emptied = 0;
        while emptied < VICTIMS_PER_CHECKPOINT {
            let sparse = {
                let core = self.core.lock();
                core.segments.sparsest(SPARSE, |segment, kind| {
                    matches!(kind, SegmentKind::Log | SegmentKind::Moved) && core.may_be_emptied(segment)
                })
            };
            let Some((segment, kind)) = sparse else { break };
            if !or_no_space(self.collect_segment(segment, kind).map(|()| true))? {
                break;
            }
            emptied += 1;
        }
        if emptied == 0 {
            return Ok(false);
        }
        self.checkpoint_in_role()?;
        Ok(self.core.lock().segments.free() > before)
    }

    /// Gives some of the free segments beyond a stock of `keep` back to the host; how many.
    pub(crate) fn punch_surplus(&self, keep: usize) -> Result<usize> {
        let surplus = self.core.lock().segments.to_punch(keep, PUNCHES_MAX);
        let mut punched = 0;
        for segment in surplus {
            let _asking = self.asking_host.lock();
            if !self.core.lock().segments.punch(segment) {
                continue;
            }
            let (device, offset) = self.place(segment, 0)?;
            let len = ByteCount(u64::from(self.geometry.segment_bytes));
            // A host that cannot take the room back costs nothing but the room.
            if device.discard(offset, len).is_ok() {
                self.figures.punched_bytes.fetch_add(len.0, Ordering::Relaxed);
            }
            self.core.lock().segments.punched(segment);
            punched += 1;
        }
        Ok(punched)
    }

    /// Free segments that stay as they are while there are writes: as many as collection makes at a time, so that what
    /// it makes is written again and not given back and asked for anew.
    pub(crate) fn stock_under_load(&self) -> usize {
        self.free_segments_wanted() + VICTIMS_PER_CHECKPOINT + self.geometry.segments() as usize / 64
    }

    /// Free segments that stay as they are in an idle pool.
    fn stock_when_idle(&self) -> usize {
        let for_checkpoints = self.core.lock().stock_for_checkpoints(0);
        for_checkpoints.max(8) + self.geometry.segments() as usize / 128
    }

    /// What was let go of counts only once it is merged. Space comes back without anyone asking, but not by one
    /// checkpoint after another.
    fn release_waits_long_enough(&self) -> bool {
        let now = self.environment.clock.monotonic();
        let core = self.core.lock();
        let waits = core.node_changes.let_go_of() > 0 || core.borrowers.begun_before(u64::MAX);
        waits && now.saturating_sub(core.checkpointed_at) >= RELEASE_PATIENCE
    }

    /// Collection keeps this many segments free, so that writes seldom wait for it.
    pub(crate) fn free_segments_wanted(&self) -> usize {
        let segments = self.geometry.segments() as usize;
        let stock = (self.geometry.checkpoint_segments / 4).max(segments / 256).max(8);
        self.geometry.log_keeps_free() + stock
    }

    /// Empties a few segments, while somebody waits for it no more than so many, and makes a checkpoint that frees them;
    /// whether that was of use.
    fn collect_in_role(&self, while_waited_for: usize) -> Result<bool> {
        let before = self.core.lock().segments.free();
        let mut emptied = usize::from(or_no_space(self.level_wear())?);
        for victims in 0..VICTIMS_PER_CHECKPOINT {
            if victims >= while_waited_for && self.core.lock().waiting_for_maintenance > 0 {
                break;
            }
            // No segment left to move into: what was emptied so far must be freed first.
            if !or_no_space(self.collect_one())? {
                break;
            }
            emptied += 1;
        }
        let reclaimable = self.core.lock().segments.empty_count() > 0;
        if emptied == 0 && !reclaimable {
            return Ok(false);
        }
        self.checkpoint_in_role()?;
        Ok(self.core.lock().segments.free() > before)
    }

    /// Makes segments free for a commit that waits for one; the caller holds the role.
    pub(crate) fn make_segments_free(&self) -> Result<()> {
        // What is dead already only needs a checkpoint.
        self.checkpoint_in_role()?;
        let wanted = 2 * self.geometry.checkpoint_segments + 4;
        if self.core.lock().segments.free() > wanted {
            return Ok(());
        }
        self.collect_in_role(VICTIMS_PER_CHECKPOINT)?;
        self.release_nodes(RELEASES_PER_STEP)?;
        Ok(())
    }
}

/// What a step has found to do; nothing where there was no room for it.
fn or_no_space(outcome: Result<bool>) -> Result<bool> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NoSpace => Ok(false),
        other => other,
    }
}
