//! The simulator's disk: a device in memory that fails in every way that the engine must survive.
//!
//! It keeps what has been synced apart from what has not. Reads show everything written, as a page
//! cache does, until the cache is dropped or the power is cut; then of the unsynced sectors each may
//! have been kept, lost or torn. A seed decides every such thing, and nothing else does: no clock, no
//! other randomness. One seed and one order of calls give one outcome, to the byte.
//!
//! It is made for small disks (some MiB) and many crashes: an I/O costs a copy or two, a crash
//! little more than the changes that were not synced.

mod medium;
mod plan;
mod room;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use self::medium::{Medium, SECTOR_BYTES};
pub use self::plan::{Fault, FaultPlan, IoCounts, WorldStopped};
use self::plan::{IoKind, Verdict};
use super::{Device, Syncer, slices_len, within};
use crate::sync::yield_point;
use crate::units::{BLOCK_BYTES, ByteCount, DeviceOffset};

/// A disk of a simulated machine.
#[derive(Debug)]
pub struct FaultyDisk {
    name: String,
    len: ByteCount,
    plan: Arc<FaultPlan>,
    // The standard library's lock: held for moments, never at a point where a thread may yield.
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct State {
    medium: Medium,
    /// Pages that the host has for this disk.
    room_pages: u64,
    /// Who has not heard yet of a sync that failed for somebody else.
    untold: Option<Syncer>,
    /// Places that cannot be read: first byte and length.
    unreadable: Vec<(u64, u64)>,
}

/// A disk as it was at one moment. Shares its content with the disk until either changes.
#[derive(Clone, Debug)]
pub struct DiskSnapshot {
    name: String,
    len: ByteCount,
    state: State,
}

impl FaultyDisk {
    /// A disk of `len` bytes, all zeros, without room set aside. Disks with one plan make up one
    /// machine: they count together and stop together.
    #[must_use]
    pub fn new(name: impl Into<String>, len: ByteCount, seed: u64, plan: Arc<FaultPlan>) -> FaultyDisk {
        let state = State {
            medium: Medium::new(len.0, seed),
            room_pages: u64::MAX,
            untold: None,
            unreadable: Vec::new(),
        };
        FaultyDisk { name: name.into(), len, plan, state: Mutex::new(state) }
    }

    /// The same disk with 4096-byte sectors inside: garbage where a sector was torn spoils the
    /// 4 KiB around it, synced long ago or not.
    #[must_use]
    pub fn tearing_whole_blocks(self) -> FaultyDisk {
        self.state().medium.set_tear_bytes(BLOCK_BYTES as u64);
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan that this disk goes by.
    #[must_use]
    pub fn plan(&self) -> &Arc<FaultPlan> {
        &self.plan
    }

    /// The power is cut and comes back: unsynced sectors are kept, lost or torn, the cache is gone,
    /// and a stopped world goes on. For a machine of several disks, to be called for each.
    pub fn crash(&self) {
        let mut state = self.state();
        state.medium.crash();
        state.untold = None;
        drop(state);
        self.plan.restart();
    }

    /// The process dies and is started again: the page cache has kept everything, synced or not, and
    /// a stopped world goes on.
    pub fn kill_process(&self) {
        self.state().untold = None;
        self.plan.restart();
    }

    /// What the disk is now, to be gone back to.
    #[must_use]
    pub fn snapshot(&self) -> DiskSnapshot {
        DiskSnapshot { name: self.name.clone(), len: self.len, state: self.state().clone() }
    }

    /// A disk as it was when the snapshot was taken: from here on the same calls have the same
    /// outcomes, unless it is given another seed.
    #[must_use]
    pub fn from_snapshot(snapshot: &DiskSnapshot, plan: Arc<FaultPlan>) -> FaultyDisk {
        let DiskSnapshot { name, len, state } = snapshot.clone();
        FaultyDisk { name, len, plan, state: Mutex::new(state) }
    }

    /// Lets another seed decide from here on.
    pub fn reseed(&self, seed: u64) {
        self.state().medium.reseed(seed);
    }

    /// Turns over one bit (0 to 7) of a byte that is stable. Reads show it at once, unless newer
    /// bytes wait to be written there: then it is gone with them.
    ///
    /// # Panics
    /// When there is no such byte or bit.
    pub fn flip_bit(&self, offset: DeviceOffset, bit: u32) {
        assert!(within(self.len, offset, ByteCount(1)) && bit < 8, "no bit {bit} at {offset}");
        self.state().medium.flip_bit(offset.0, bit);
    }

    /// From now on every read that touches the range fails, whatever is written there; a length of 0 touches nothing.
    pub fn fail_reads_of(&self, offset: DeviceOffset, len: ByteCount) {
        self.state().unreadable.push((offset.0, len.0));
    }

    /// Lets the host have no more room than `len` for this disk (`None`: as much as is asked for).
    /// What has room keeps it; an allocation or a write that would need more is refused with ENOSPC.
    pub fn limit_room(&self, len: Option<ByteCount>) {
        self.state().room_pages = len.map_or(u64::MAX, |len| len.blocks().0);
    }

    /// Fills `buffer` with what a power cut could not take. Not an I/O: nothing is counted.
    ///
    /// # Panics
    /// When the range does not lie within the disk.
    pub fn read_stable(&self, offset: DeviceOffset, buffer: &mut [u8]) {
        assert!(within(self.len, offset, ByteCount(buffer.len() as u64)), "past the end of the disk");
        self.state().medium.read_stable(offset.0, buffer);
    }

    /// Writes, discards and allocations since the last sync.
    #[must_use]
    pub fn unsynced_changes(&self) -> usize {
        self.state().medium.unsynced_changes()
    }

    fn read(&self, offset: DeviceOffset, buffer: &mut [u8]) -> io::Result<MutexGuard<'_, State>> {
        yield_point();
        if !within(self.len, offset, ByteCount(buffer.len() as u64)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match self.plan.begin(IoKind::Read)? {
            Verdict::Go => {}
            Verdict::Stop => return Err(WorldStopped::error()),
            Verdict::Strike(_) => return Err(Errno::IO.into()),
        }
        let state = self.state();
        if state.is_unreadable(offset, buffer.len()) {
            return Err(Errno::IO.into());
        }
        state.medium.read(offset.0, buffer);
        Ok(state)
    }

    /// What the calls have in common that name a range without bytes.
    fn begin_on(&self, kind: IoKind, offset: DeviceOffset, len: ByteCount) -> io::Result<Verdict> {
        yield_point();
        if !within(self.len, offset, len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.plan.begin(kind)
    }
}

impl State {
    fn is_unreadable(&self, offset: DeviceOffset, len: usize) -> bool {
        let end = offset.0 + len as u64;
        self.unreadable.iter().any(|(bad, bad_len)| *bad < end && offset.0 < bad + bad_len)
    }

    fn refuse_without_room(&self, verdict: Verdict, offset: DeviceOffset, len: ByteCount) -> io::Result<()> {
        let (taken, missing) = self.medium.room(offset.0, len.0);
        if missing == 0 || taken + missing <= self.room_pages {
            return Ok(());
        }
        Err(if verdict == Verdict::Stop { WorldStopped::error() } else { Errno::NOSPC.into() })
    }

    fn coin(&mut self) -> bool {
        self.medium.numbers().chance(1, 2)
    }

    /// Bytes of an interrupted write of `len` bytes that are still done: up to a sector's boundary,
    /// nothing and everything included.
    fn draw_part(&mut self, offset: DeviceOffset, len: usize) -> usize {
        let end = offset.0 + len as u64;
        let sectors = end.div_ceil(SECTOR_BYTES) - offset.0 / SECTOR_BYTES;
        let boundary = offset.0 / SECTOR_BYTES + self.medium.numbers().below(sectors + 1);
        let part = (boundary * SECTOR_BYTES).clamp(offset.0, end) - offset.0;
        usize::try_from(part).expect("it is at most the length")
    }
}

impl Device for FaultyDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> ByteCount {
        self.len
    }

    fn read_at(&self, offset: DeviceOffset, buffer: &mut [u8]) -> io::Result<()> {
        self.read(offset, buffer).map(drop)
    }

    fn try_read_at(&self, offset: DeviceOffset, buffer: &mut [u8]) -> io::Result<bool> {
        let mut state = self.read(offset, buffer)?;
        let would_wait = state.medium.numbers().chance(1, 4);
        if would_wait {
            // Undefined is not "as it was".
            state.medium.numbers().fill(buffer);
        }
        Ok(!would_wait)
    }

    fn write_at(&self, offset: DeviceOffset, slices: &[&[u8]]) -> io::Result<()> {
        yield_point();
        if !within(self.len, offset, slices_len(slices)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let verdict = self.plan.begin(IoKind::Write)?;
        let bytes = slices.concat();
        let mut state = self.state();
        state.refuse_without_room(verdict, offset, ByteCount(bytes.len() as u64))?;
        match verdict {
            Verdict::Stop | Verdict::Strike(Fault::FailWrite) => {
                let part = state.draw_part(offset, bytes.len());
                state.medium.write(offset.0, bytes[..part].into());
                Err(if verdict == Verdict::Stop { WorldStopped::error() } else { Errno::IO.into() })
            }
            Verdict::Strike(Fault::LoseWrite) => {
                state.medium.write_lost(offset.0, &bytes);
                Ok(())
            }
            Verdict::Strike(Fault::MisdirectWrite) => {
                state.medium.write_misdirected(offset.0, bytes.into());
                Ok(())
            }
            Verdict::Go | Verdict::Strike(_) => {
                state.medium.write(offset.0, bytes.into());
                Ok(())
            }
        }
    }

    fn sync(&self, by: Syncer) -> io::Result<()> {
        yield_point();
        let verdict = self.plan.begin(IoKind::Sync)?;
        let end = self.state().medium.next_change();
        // Others may write while a sync runs: it does not cover them.
        yield_point();
        if verdict != Verdict::Stop {
            self.plan.refuse_if_stopped()?;
        }
        let mut state = self.state();
        match verdict {
            Verdict::Stop => {
                if state.coin() {
                    state.medium.sync(end);
                }
                Err(WorldStopped::error())
            }
            Verdict::Strike(_) => {
                state.medium.fail_sync(end);
                state.untold = Some(if by == Syncer::Log { Syncer::Checkpoint } else { Syncer::Log });
                Err(Errno::IO.into())
            }
            Verdict::Go if state.untold == Some(by) => {
                state.medium.fail_sync(end);
                state.untold = None;
                Err(Errno::IO.into())
            }
            Verdict::Go => {
                state.medium.sync(end);
                Ok(())
            }
        }
    }

    fn allocate(&self, offset: DeviceOffset, len: ByteCount) -> io::Result<()> {
        let verdict = self.begin_on(IoKind::Allocate, offset, len)?;
        let mut state = self.state();
        state.refuse_without_room(verdict, offset, len)?;
        match verdict {
            Verdict::Strike(_) => Err(Errno::NOSPC.into()),
            Verdict::Stop => {
                if state.coin() {
                    state.medium.allocate(offset.0, len.0);
                }
                Err(WorldStopped::error())
            }
            Verdict::Go => {
                state.medium.allocate(offset.0, len.0);
                Ok(())
            }
        }
    }

    fn discard(&self, offset: DeviceOffset, len: ByteCount) -> io::Result<()> {
        let verdict = self.begin_on(IoKind::Discard, offset, len)?;
        let mut state = self.state();
        if verdict != Verdict::Stop {
            state.medium.discard(offset.0, len.0);
            return Ok(());
        }
        if state.coin() {
            state.medium.discard(offset.0, len.0);
        }
        Err(WorldStopped::error())
    }

    fn drop_cache(&self) -> io::Result<()> {
        yield_point();
        self.plan.refuse_if_stopped()?;
        self.state().medium.drop_cache();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
