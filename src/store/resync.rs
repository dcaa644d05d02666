//! What a node needs that comes back and cannot go on where it was.
//!
//! It marks its pool as *syncing*, durably, and takes what the others hold as operations of its own, whose numbers
//! mean nothing to anybody. At the end it adopts the position of the primary, in one step with clearing the mark: from
//! then on what is shipped goes on from there.

use crate::error::{Error, ErrorKind, Result};
use crate::units::{Epoch, Incarnation, Lsn, SegmentId};

use super::Store;
use super::log::appender::Stream;
use super::log::open_log::LogPosition;

impl Store {
    /// Whether the pool is marked as one that is being brought up to what others hold: what it holds is of no one
    /// moment.
    #[must_use]
    pub fn syncing(&self) -> bool {
        self.core.lock().being_synced
    }

    /// Whether this node follows another from now on: then every verb that commits is refused with `NotPrimary`, but
    /// `apply` and `apply_local`. It is decided under the commit lock, so that no request that was let in before
    /// takes a number that is another node's to give. A store that was opened follows nobody.
    pub fn follow(&self, following: bool) {
        self.core.lock().following = following;
    }

    /// Marks the pool as syncing; the mark is durable afterwards.
    ///
    /// # Errors
    /// `Stopped`, once a write or a sync has failed.
    pub fn begin_sync(&self) -> Result<()> {
        {
            let mut core = self.core.lock();
            core.writable()?;
            core.being_synced = true;
        }
        self.checkpoint()
    }

    /// The newest operation is (`epoch`, `lsn`) from now on, also where that is less than what was committed here, and
    /// the pool is not syncing any more: both in one durable step. After a crash before it is done the pool is still
    /// syncing.
    ///
    /// Until this returns nobody commits, and no number of an operation means anything. Background work may go on.
    ///
    /// # Errors
    /// `Invalid` where the pool is not syncing; `Busy` where something was committed meanwhile; `Stopped`, `NoSpace`.
    pub fn adopt(&self, epoch: Epoch, lsn: Lsn) -> Result<()> {
        while !self.begin_maintenance_or_wait()? {}
        let outcome = self.adopt_in_role(epoch, lsn);
        self.end_maintenance();
        outcome
    }

    fn adopt_in_role(&self, epoch: Epoch, lsn: Lsn) -> Result<()> {
        if !self.syncing() {
            let what = format!("operation {lsn} cannot be adopted by a pool that is not syncing");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let keep = self.geometry.log_keeps_free();
        if self.core.lock().segments.free() <= keep + 2 {
            self.make_segments_free()?;
        }
        let fresh = self.take_log_segments()?;
        if let Err(error) = self.switch_log(fresh, epoch, lsn) {
            let mut core = self.core.lock();
            core.segments.close(fresh.0);
            core.segments.close(fresh.1);
            return Err(error);
        }
        // As where a pool begins to serve: the header is there before any batch.
        self.write_out_all()?;
        self.checkpoint_in_role()
    }

    /// Lets the log go on in a fresh segment under a new incarnation, behind an operation that another node has
    /// numbered. The checkpoint that makes it count must follow.
    ///
    /// A batch of the log before is of another incarnation, so that nobody takes it for what follows.
    fn switch_log(&self, fresh: (SegmentId, SegmentId), epoch: Epoch, lsn: Lsn) -> Result<()> {
        let incarnation = Incarnation(self.environment.random.number().max(1));
        let newest = self.last_lsn();
        loop {
            self.make_durable(newest)?;
            self.write_out_all()?;
            let mut core = self.core.lock();
            while core.stopped.is_none() && (core.log.writing || core.log.syncing) {
                core = self.changed.wait(core);
            }
            core.writable()?;
            if core.log.committed() != newest {
                let what =
                    format!("operation {} was committed while {lsn} was adopted", core.log.committed());
                return Err(Error::new(ErrorKind::Busy, what));
            }
            if core.log.has_unwritten() {
                continue;
            }
            // What was moved is chained by the incarnation of its segment, too.
            for stream in [Stream::Moved, Stream::Cold] {
                core.end_append_segment(stream);
            }
            let LogPosition { segment: last, successor: reserved, .. } = core.log.position;
            core.segments.close(last);
            core.segments.close(reserved);
            core.being_synced = false;
            core.objects.number_behind_the_highest();
            core.log.go_on_behind(epoch, lsn, incarnation);
            core.enter_segment(fresh.0, fresh.1);
            return Ok(());
        }
    }
}
