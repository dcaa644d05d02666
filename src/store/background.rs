//! The maintenance role, and the bounded steps of background work.

use std::time::Duration;

use crate::error::{ErrorKind, Result};

use super::Store;
use super::merge::Releases;

/// Nodes taken apart in one step.
const RELEASES_PER_STEP: usize = 64;
/// Leaves settled in one step.
const SETTLES_PER_STEP: usize = 16;
/// Nodes that were let go of wait at most this long for the checkpoint that takes them apart.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);
/// Victims collected before the segments that they free are made free by a checkpoint.
const VICTIMS_PER_CHECKPOINT: usize = 16;

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
        while core.maintaining && core.stopped.is_none() {
            core = self.changed.wait(core);
        }
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
        if low && self.collect_in_role(VICTIMS_PER_CHECKPOINT)? {
            return Ok(true);
        }
        // Where collection gains nothing just now, going on at once would only repeat it.
        Ok(rebuilding && self.rebuild_index_step() && !low)
    }

    /// Lets copied leaves take references of their own, in a part of the change buffer: the rest is for requests, which
    /// wait when it is full. Whether any did.
    fn settle_some(&self) -> Result<bool> {
        let (before, part) = {
            let mut core = self.core.lock();
            let committed = core.log.committed();
            let idle = std::mem::replace(&mut core.seen_lsn, committed) == committed;
            (core.borrowers.len(), if idle { 4 } else { 8 })
        };
        if before > 0 {
            self.settle(SETTLES_PER_STEP, u64::MAX, self.geometry.changes / part)?;
        }
        Ok(self.core.lock().borrowers.len() < before)
    }

    /// What was let go of counts only once it is merged. Space comes back without anyone asking, but not by one
    /// checkpoint after another.
    fn release_waits_long_enough(&self) -> bool {
        let now = self.environment.clock.monotonic();
        let core = self.core.lock();
        let waits = core.node_changes.let_go_of() > 0 || core.borrowers.len() > 0;
        waits && now.saturating_sub(core.checkpointed_at) >= RELEASE_PATIENCE
    }

    /// Collection keeps this many segments free, so that writes seldom wait for it.
    pub(crate) fn free_segments_wanted(&self) -> usize {
        let segments = self.geometry.segments() as usize;
        (3 * self.geometry.checkpoint_segments + 8).max(segments / 32)
    }

    /// Empties a few segments and makes a checkpoint that frees them; whether that was of use.
    fn collect_in_role(&self, victims: usize) -> Result<bool> {
        let before = self.core.lock().segments.free();
        let mut emptied = 0;
        for _ in 0..victims {
            match self.collect_one() {
                Ok(true) => emptied += 1,
                Ok(false) => break,
                // No segment left to move into: what was emptied so far must be freed first.
                Err(error) if error.kind() == ErrorKind::NoSpace => break,
                Err(error) => return Err(error),
            }
        }
        let reclaimable = !self.core.lock().segments.empty_ones().is_empty();
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
