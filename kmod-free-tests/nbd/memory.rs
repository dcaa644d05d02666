//! A volume in memory that records what the server asks of it, and waits or fails where a test
//! wants it to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};

use sinter::array::service::{BlockService, Commit, Extent, ExtentKind};
use sinter::error::{Error, ErrorKind, Result};
use sinter::export::nbd::{ExportEntry, ExportSource};
use sinter::units::{ByteCount, Lsn};

/// Bytes that are allocated, and reported as holes, together.
pub(crate) const SHARD_BYTES: usize = 64 << 10;

/// A door that lets everyone pass while it is open.
#[derive(Default)]
pub(crate) struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    pub(crate) waiting: AtomicU64,
}

impl Gate {
    pub(crate) fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub(crate) fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut closed = self.closed.lock().unwrap();
        while *closed {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            closed = self.opened.wait(closed).unwrap();
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// A stretch of the volume: its bytes, or a hole.
type Shard = RwLock<Option<Box<[u8]>>>;

#[derive(Default)]
pub(crate) struct Memory {
    size: AtomicU64,
    shards: RwLock<Vec<Shard>>,
    pub(crate) read_only: AtomicBool,
    /// `try_read` always says that it would have to wait.
    pub(crate) cold: AtomicBool,
    /// Reads that wait, flushes, writes: each stops here while the gate is closed.
    pub(crate) read_gate: Gate,
    pub(crate) flush_gate: Gate,
    pub(crate) write_gate: Gate,
    /// What writing verbs fail with.
    pub(crate) fault: Mutex<Option<ErrorKind>>,
    /// What `acknowledge` fails with.
    pub(crate) acknowledge_fault: Mutex<Option<ErrorKind>>,
    committed: AtomicU64,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) durable: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) acknowledges: AtomicU64,
    pub(crate) tried_reads: AtomicU64,
    pub(crate) waiting_reads: AtomicU64,
}

impl Memory {
    pub(crate) fn new(size: u64) -> Arc<Memory> {
        let memory = Memory::default();
        memory.resize(size);
        Arc::new(memory)
    }

    pub(crate) fn resize(&self, size: u64) {
        let shards = usize::try_from(size).unwrap().div_ceil(SHARD_BYTES);
        self.shards.write().unwrap().resize_with(shards, RwLock::default);
        self.size.store(size, Ordering::SeqCst);
    }

    pub(crate) fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.copy_out(offset, &mut bytes).unwrap();
        bytes
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size.load(Ordering::SeqCst) => Ok(()),
            _ => Err(Error::new(ErrorKind::Invalid, "past the end")),
        }
    }

    fn copy_out(&self, offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        self.check(offset, buffer.len() as u64)?;
        let mut at = usize::try_from(offset).unwrap();
        let shards = self.shards.read().unwrap();
        while !buffer.is_empty() {
            let (shard, start) = (at / SHARD_BYTES, at % SHARD_BYTES);
            let len = buffer.len().min(SHARD_BYTES - start);
            let (piece, rest) = buffer.split_at_mut(len);
            match &*shards[shard].read().unwrap() {
                Some(bytes) => piece.copy_from_slice(&bytes[start..start + len]),
                None => piece.fill(0),
            }
            buffer = rest;
            at += len;
        }
        Ok(())
    }

    /// Changes the range; `data` is `None` for zeros.
    fn change(&self, offset: u64, len: u64, data: Option<&[u8]>) -> Result<Commit> {
        self.write_gate.pass();
        if self.read_only.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::ReadOnly, "read-only"));
        }
        if let Some(kind) = *self.fault.lock().unwrap() {
            return Err(Error::new(kind, "a fault that the test asked for"));
        }
        self.check(offset, len)?;
        let (mut at, end) = (usize::try_from(offset).unwrap(), usize::try_from(offset + len).unwrap());
        let begin = at;
        let shards = self.shards.read().unwrap();
        while at < end {
            let (shard, start) = (at / SHARD_BYTES, at % SHARD_BYTES);
            let len = (end - at).min(SHARD_BYTES - start);
            let mut slot = shards[shard].write().unwrap();
            match data {
                None if len == SHARD_BYTES => *slot = None,
                None => {
                    if let Some(bytes) = &mut *slot {
                        bytes[start..start + len].fill(0);
                    }
                }
                Some(data) => {
                    let bytes = slot.get_or_insert_with(|| vec![0; SHARD_BYTES].into_boxed_slice());
                    bytes[start..start + len].copy_from_slice(&data[at - begin..at - begin + len]);
                }
            }
            at += len;
        }
        Ok(Commit(Lsn(self.committed.fetch_add(1, Ordering::SeqCst) + 1)))
    }
}

impl BlockService for Memory {
    fn size(&self) -> ByteCount {
        ByteCount(self.size.load(Ordering::SeqCst))
    }

    fn read_only(&self) -> bool {
        self.read_only.load(Ordering::SeqCst)
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        self.tried_reads.fetch_add(1, Ordering::Relaxed);
        if self.cold.load(Ordering::Relaxed) {
            buffer.fill(0xdd);
            return Ok(false);
        }
        self.copy_out(offset, buffer)?;
        Ok(true)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.waiting_reads.fetch_add(1, Ordering::Relaxed);
        self.read_gate.pass();
        self.copy_out(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Commit> {
        self.change(offset, data.len() as u64, Some(data))
    }

    fn write_zeroes(&self, offset: u64, len: ByteCount) -> Result<Commit> {
        self.change(offset, len.0, None)
    }

    fn trim(&self, offset: u64, len: ByteCount) -> Result<Commit> {
        self.check(offset, len.0)?;
        let start = offset.next_multiple_of(4096);
        let end = (offset + len.0) / 4096 * 4096;
        self.change(start.min(end), end.saturating_sub(start), None)
    }

    fn acknowledge(&self, commit: Commit) -> Result<()> {
        if let Some(kind) = *self.acknowledge_fault.lock().unwrap() {
            return Err(Error::new(kind, "a fault that the test asked for"));
        }
        self.acknowledges.fetch_add(1, Ordering::Relaxed);
        self.acknowledged.fetch_max(commit.0.0, Ordering::SeqCst);
        Ok(())
    }

    fn make_durable(&self, commit: Commit) -> Result<()> {
        self.flush_gate.pass();
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.acknowledged.fetch_max(commit.0.0, Ordering::SeqCst);
        self.durable.fetch_max(commit.0.0, Ordering::SeqCst);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        self.flush_gate.pass();
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.durable.fetch_max(acknowledged, Ordering::SeqCst);
        Ok(())
    }

    fn block_status(&self, offset: u64, len: ByteCount, extents_max: usize) -> Result<Vec<Extent>> {
        self.check(offset, len.0)?;
        let shards = self.shards.read().unwrap();
        let (mut at, end) = (offset, offset + len.0);
        let mut extents: Vec<Extent> = Vec::new();
        while at < end {
            let shard = usize::try_from(at).unwrap() / SHARD_BYTES;
            let shard_end = ((shard + 1) * SHARD_BYTES) as u64;
            let stored = shards[shard].read().unwrap().is_some();
            let kind = if stored { ExtentKind::Data } else { ExtentKind::Hole };
            let len = ByteCount(shard_end.min(end) - at);
            let full = extents.len() == extents_max;
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.len.0 += len.0,
                _ if full => break,
                _ => extents.push(Extent { len, kind }),
            }
            at += len.0;
        }
        Ok(extents)
    }
}

/// Named volumes in memory.
#[derive(Default)]
pub(crate) struct Exports(Mutex<Vec<(ExportEntry, Arc<Memory>)>>);

impl Exports {
    pub(crate) fn add(&self, name: &str, description: &str, memory: &Arc<Memory>) {
        let entry = ExportEntry { name: name.to_owned(), description: description.to_owned() };
        self.0.lock().unwrap().push((entry, Arc::clone(memory)));
    }
}

impl ExportSource for Exports {
    fn list(&self) -> Vec<ExportEntry> {
        self.0.lock().unwrap().iter().map(|(entry, _)| entry.clone()).collect()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockService>> {
        let exports = self.0.lock().unwrap();
        match exports.iter().find(|(entry, _)| entry.name == name) {
            Some((_, memory)) => Ok(Arc::clone(memory) as Arc<dyn BlockService>),
            None => Err(Error::new(ErrorKind::NotFound, format!("no export is called '{name}'"))),
        }
    }
}
