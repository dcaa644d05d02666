//! Writing the log out and making it durable. Both are roles that a caller takes, not threads: a hand-over to
//! another thread costs more than a small write.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::device::Syncer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::SYNC_UNIT_BYTES;
use crate::format::batch::{BATCH_HEADER_BYTES, BatchHeader, BatchKind};
use crate::sync::MutexGuard;
use crate::units::{Epoch, Incarnation, Lsn, SegmentId};

use super::Store;
use super::core::Core;
use super::log::open_log::{Closed, OpenBatch, Unwritten};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What a writer needs to finish batches.
struct Finishing {
    header: BatchHeader,
    chain: u64,
    finished: u64,
    chain_wanted_at: Option<u64>,
    chain_found: Option<u64>,
    devices: u64,
}

/// Bytes that go to one device in one call.
struct Run {
    segment: SegmentId,
    offset: u32,
    end: u32,
    first: usize,
    behind: usize,
}

impl Store {
    /// Whether opening found that something durable is gone, and nobody has accepted that: what is read may be older
    /// than what was written, and no write is taken.
    #[must_use]
    pub fn opened_damaged(&self) -> bool {
        self.core.lock().opened_damaged
    }

    /// The newest operation that was committed.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.core.lock().log.committed()
    }

    /// The term of the newest operation that was committed, and its number.
    #[must_use]
    pub fn position(&self) -> (Epoch, Lsn) {
        let core = self.core.lock();
        (core.log.committed_epoch, core.log.committed())
    }

    /// Whether it takes no writes any more, because one has failed, or a sync.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.core.lock().stopped.is_some()
    }

    /// What is committed from now on belongs to this term.
    ///
    /// # Errors
    /// `NotPrimary` for a term that is over.
    pub fn begin_epoch(&self, epoch: Epoch) -> Result<()> {
        let mut core = self.core.lock();
        let present = core.log.epoch;
        if epoch < present {
            let what = format!(
                "term {}.{} is over: it is {}.{} now",
                epoch.generation, epoch.number, present.generation, present.number
            );
            return Err(Error::new(ErrorKind::NotPrimary, what));
        }
        core.log.raise_epoch(epoch);
        Ok(())
    }

    /// Hands everything up to `lsn` to the operating system: the death of the process no longer loses it.
    ///
    /// # Errors
    /// `Stopped` once a write or a sync has failed.
    pub fn write_out(&self, lsn: Lsn) -> Result<()> {
        self.hand_over(lsn, false).map(|_| ())
    }

    /// Hands over whatever there is to be written, batches without operations too.
    pub(crate) fn write_out_all(&self) -> Result<()> {
        self.hand_over(Lsn(0), true).map(|_| ())
    }

    /// Waits until everything up to `lsn` is durable.
    ///
    /// # Errors
    /// `Stopped` once a write or a sync has failed.
    pub fn make_durable(&self, lsn: Lsn) -> Result<()> {
        let core = self.core.lock();
        let incarnation = core.log.incarnation;
        self.make_durable_in(core, incarnation, lsn)
    }

    /// As `make_durable`, for an operation of the log of this incarnation: another one began when that was durable.
    fn make_durable_in<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        incarnation: Incarnation,
        lsn: Lsn,
    ) -> Result<()> {
        loop {
            if core.log.durable >= lsn || core.log.incarnation != incarnation {
                return Ok(());
            }
            core.writable()?;
            if core.log.syncing {
                core = self.changed.wait(core);
                continue;
            }
            core.log.syncing = true;
            drop(core);
            let outcome = self.sync_log();
            core = self.core.lock();
            core.log.syncing = false;
            self.changed.notify_all();
            outcome?;
        }
    }

    /// Syncs what has been written but not synced for `sync_after`; how long until it is due again.
    ///
    /// # Errors
    /// As `make_durable`.
    pub fn sync_if_due(&self) -> Result<Duration> {
        let (due, written, incarnation, idle) = {
            let mut core = self.core.lock();
            core.writable()?;
            let now = self.environment.clock.monotonic();
            let log = &mut core.log;
            let age = log.unsynced_since.map(|since| now.saturating_sub(since));
            let idle = age.is_none() && log.durable == log.committed() && log.durable_stated < log.durable;
            if idle {
                // Rot in the last batches must not be taken for a torn tail: this batch says that they were
                // durable.
                log.state_durable(self.geometry.segment_bytes);
            }
            (age, log.written, log.incarnation, idle)
        };
        match due {
            Some(age) if age >= self.options.sync_after => {
                self.make_durable_in(self.core.lock(), incarnation, written)?;
            }
            Some(age) => return Ok(self.options.sync_after - age),
            None if idle => {
                self.hand_over(Lsn(0), true)?;
            }
            None => {}
        }
        Ok(self.options.sync_after)
    }

    /// Stops the store: nothing is retried as if nothing had happened.
    pub(crate) fn stop(&self, why: &Error) -> Error {
        let mut core = self.core.lock();
        if core.stopped.is_none() {
            core.stopped = Some(why.to_string());
        }
        self.changed.notify_all();
        Error::new(ErrorKind::Stopped, format!("the store takes no writes any more: {why}"))
    }

    /// Writes out what was committed, at least up to `lsn`; with `all`, whatever there is, and what comes after
    /// begins at a fresh 4 KiB. Returns the last operation that was covered.
    fn hand_over(&self, lsn: Lsn, all: bool) -> Result<Lsn> {
        let mut core = self.core.lock();
        loop {
            if core.log.written >= lsn && !all {
                return Ok(core.log.written);
            }
            core.writable()?;
            if !core.log.writing {
                break;
            }
            core = self.changed.wait(core);
        }
        let up_to = core.log.committed();
        let work: Vec<Closed> = core.log.take_closed().into();
        core.log.align_next |= all;
        if work.is_empty() {
            return Ok(up_to);
        }
        core.log.writing = true;
        let segment_bytes = self.geometry.segment_bytes;
        let ahead = core.log.zeros_ahead(&work, segment_bytes);
        let mut finishing = Finishing::new(&core);
        drop(core);
        let outcome = self.write_closed(&work, &mut finishing).and_then(|()| match ahead {
            Some(unwritten) => self.write_zeros(unwritten),
            None => Ok(()),
        });
        let mut core = self.core.lock();
        core.log.writing = false;
        if let Err(error) = &outcome {
            // In this hold of the lock: what was taken is lost, and nobody may find that all is written.
            core.stopped.get_or_insert_with(|| error.to_string());
        } else {
            let empty = up_to <= core.log.written;
            core.log.written = core.log.written.max(up_to);
            core.log.durable_stated = finishing.header.durable_lsn;
            core.log.chain = finishing.chain;
            core.log.finished_batches = finishing.finished;
            // A picture may have been taken while this writer was under way, right behind its last batch.
            let at_end = core.log.chain_wanted_at == Some(finishing.finished);
            let found = finishing.chain_found.or(at_end.then_some(finishing.chain));
            core.log.chain_found = core.log.chain_found.or(found);
            core.log.devices_written |= finishing.devices;
            if core.log.unsynced_since.is_none() && !empty {
                core.log.unsynced_since = Some(self.environment.clock.monotonic());
            }
            for closed in &work {
                if let Closed::Batch(batch) = closed {
                    core.log.forget_in_memory(batch);
                }
            }
        }
        drop(core);
        match outcome {
            Ok(()) => {
                self.changed.notify_all();
                Ok(up_to)
            }
            Err(error) => Err(self.stop(&error)),
        }
    }

    /// Finishes batches and writes them, neighbours with one call.
    fn write_closed(&self, work: &[Closed], finishing: &mut Finishing) -> Result<()> {
        let headers: Vec<Vec<u8>> = work
            .iter()
            .map(|closed| match closed {
                Closed::Header(_, bytes) => bytes.clone(),
                Closed::Batch(batch) => finishing.finish(batch),
            })
            .collect();
        let mut slices: Vec<&[u8]> = Vec::new();
        let mut runs: Vec<Run> = Vec::new();
        for (closed, header) in work.iter().zip(&headers) {
            let (segment, offset, len) = match closed {
                Closed::Header(segment, bytes) => (*segment, 0, bytes.len() as u32),
                Closed::Batch(batch) => (batch.segment, batch.offset, batch.len),
            };
            slices.push(header);
            if let Closed::Batch(batch) = closed {
                for (records, payload) in &batch.frames {
                    slices.push(records);
                    if !payload.is_empty() {
                        slices.push(payload);
                    }
                }
            }
            match runs.last_mut() {
                Some(run) if run.segment == segment && run.end == offset => {
                    run.end += len;
                    run.behind = slices.len();
                }
                _ => {
                    let first = runs.last().map_or(0, |run| run.behind);
                    runs.push(Run { segment, offset, end: offset + len, first, behind: slices.len() });
                }
            }
        }
        for run in runs {
            finishing.devices |=
                self.append_to_segment(run.segment, run.offset, &slices[run.first..run.behind])?;
        }
        Ok(())
    }

    /// Fills what comes next in the log with zeros; nothing of it is handed out before this writer is done.
    fn write_zeros(&self, unwritten: Unwritten) -> Result<()> {
        let len = unwritten.len as usize;
        let mut slices: Vec<&[u8]> = vec![&ZEROS; len / ZEROS.len()];
        slices.push(&ZEROS[..len % ZEROS.len()]);
        // The device is among those to be synced: the batch before the zeros is on it.
        self.write_segment(unwritten.segment, unwritten.offset, &slices).map(|_| ())
    }

    /// Writes what comes next in an open segment; the bit of its device. A 4 KiB that is begun is filled with zeros
    /// to its end: nothing lies there yet, and what is on the device would otherwise be read first.
    pub(crate) fn append_to_segment(&self, segment: SegmentId, offset: u32, slices: &[&[u8]]) -> Result<u64> {
        let len: usize = slices.iter().map(|slice| slice.len()).sum();
        let (start, end) = (offset as usize, offset as usize + len);
        let begins = start.is_multiple_of(SYNC_UNIT_BYTES) || start.next_multiple_of(SYNC_UNIT_BYTES) < end;
        let rest = end.next_multiple_of(SYNC_UNIT_BYTES) - end;
        if rest == 0 || !begins {
            return self.write_segment(segment, offset, slices);
        }
        self.write_segment(segment, offset, &[slices, &[&ZEROS[..rest]]].concat())
    }

    /// Writes into a segment; the bit of its device.
    pub(crate) fn write_segment(&self, segment: SegmentId, offset: u32, slices: &[&[u8]]) -> Result<u64> {
        let (device, at) = self.place(segment, offset)?;
        device.write_at(at, slices).map_err(|error| {
            Error::caused(ErrorKind::Device, format!("writing to {}", device.name()), error)
        })?;
        let index = self.geometry.place(segment, offset).map_or(0, |(index, _)| index);
        Ok(1 << index)
    }

    /// One sync of every device written since the last one; the caller holds the role.
    fn sync_log(&self) -> Result<()> {
        let up_to = self.hand_over(Lsn(0), true)?;
        let devices = {
            let mut core = self.core.lock();
            core.log.unsynced_since = None;
            core.log.sync_begins();
            std::mem::take(&mut core.log.devices_written)
        };
        let before = self.environment.clock.monotonic();
        for (index, device) in self.devices.iter().enumerate() {
            if devices & (1 << index) != 0 {
                device.sync(Syncer::Log).map_err(|error| {
                    let what = format!("syncing {}", device.name());
                    self.stop(&Error::caused(ErrorKind::Device, what, error))
                })?;
            }
        }
        let took = self.environment.clock.monotonic().saturating_sub(before);
        self.figures.log_syncs.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.figures.log_sync_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        let mut core = self.core.lock();
        core.log.durable = core.log.durable.max(up_to);
        Ok(())
    }

    /// Syncs every device, whatever was written; the caller holds the maintenance role, or nobody else knows the store
    /// yet.
    pub(crate) fn sync_all(&self) -> Result<()> {
        let by = if self.options.faults.one_syncer { Syncer::Log } else { Syncer::Checkpoint };
        for device in &self.devices {
            device.sync(by).map_err(|error| {
                Error::caused(ErrorKind::Device, format!("syncing {}", device.name()), error)
            })?;
        }
        Ok(())
    }
}

impl Finishing {
    fn new(core: &Core) -> Finishing {
        let log = &core.log;
        Finishing {
            header: BatchHeader {
                kind: BatchKind::Log,
                len: 0,
                operations: 0,
                first_lsn: Lsn(0),
                epoch: log.epoch,
                incarnation: log.incarnation,
                previous: 0,
                durable_lsn: log.durable,
                durable_checkpoint: core.checkpoint.0,
                pool: core.pool_short,
            },
            chain: log.chain,
            finished: log.finished_batches,
            chain_wanted_at: log.chain_wanted_at,
            chain_found: None,
            devices: 0,
        }
    }

    fn finish(&mut self, batch: &OpenBatch) -> Vec<u8> {
        let header = BatchHeader {
            len: batch.len,
            operations: batch.operations,
            first_lsn: batch.first_lsn,
            epoch: batch.epoch,
            previous: self.chain,
            ..self.header
        };
        let (bytes, sum) = header.encode(batch.frames.iter().map(|(records, _)| records.as_slice()));
        assert_eq!(bytes.len(), BATCH_HEADER_BYTES);
        self.chain = sum;
        self.finished += 1;
        if self.chain_wanted_at == Some(self.finished) {
            self.chain_found = Some(sum);
        }
        bytes
    }
}
