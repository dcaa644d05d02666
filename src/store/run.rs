//! Attempts under the lock, and what happens between them: reading pages, finding room.

use std::sync::atomic::Ordering;

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::location::Location;
use crate::format::page::{PAGE_BYTES, PageFacts, PageKey, PagePointer, Table, decode_page};
use crate::units::{ByteCount, SegmentId};

use super::Store;
use super::core::{Core, Room, Stall};

/// Who runs an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A request: where room is short it waits for maintenance, or does it.
    Request,
    /// Whoever holds the maintenance role: room that is short is an error.
    Maintenance,
}

/// How often a request lets maintenance make room before it gives up.
const ROUNDS_MAX: u32 = 64;

impl Store {
    /// Attempts something under the lock until it succeeds, reading pages and making room in between. `attempt`
    /// changes nothing unless it succeeds.
    pub(crate) fn run<T>(
        &self,
        caller: Caller,
        mut attempt: impl FnMut(&mut Core) -> Result<T, Stall>,
    ) -> Result<T> {
        let mut pinned: Vec<PageKey> = Vec::new();
        let mut rounds = 0;
        let outcome = loop {
            if caller == Caller::Maintenance {
                self.core.give_way();
            }
            let stall = {
                let mut core = self.core.lock();
                core.cache.begin_attempt();
                match attempt(&mut core) {
                    Ok(value) => break Ok(value),
                    Err(stall) => stall,
                }
            };
            let seen_to = match stall {
                Stall::Load(key, pointer) => self.load(key, &pointer, &mut pinned),
                Stall::Allocate { segment, kept } => self.note_room(self.allocate(segment, kept)),
                Stall::Room(room) => {
                    // Waiting must hold nothing: what was brought in may go.
                    self.unpin(&mut pinned);
                    rounds += 1;
                    match caller {
                        Caller::Request => self.make_room(room, rounds),
                        Caller::Maintenance => Err(no_room(room)),
                    }
                }
                Stall::Fail(error) => Err(error),
            };
            if let Err(error) = seen_to {
                break Err(error);
            }
        };
        self.unpin(&mut pinned);
        outcome
    }

    fn unpin(&self, pinned: &mut Vec<PageKey>) {
        if !pinned.is_empty() {
            let mut core = self.core.lock();
            for key in pinned.drain(..) {
                core.cache.unpin(key);
            }
        }
    }

    /// Reads a page into memory, from its second copy where the first is damaged, and pins it.
    fn load(&self, key: PageKey, pointer: &PagePointer, pinned: &mut Vec<PageKey>) -> Result<()> {
        let pool = self.short_id();
        let mut found = None;
        let mut failed = None;
        for location in [pointer.location, pointer.copy] {
            if location.is_none() || found.is_some() {
                continue;
            }
            let mut stored = vec![0u8; usize::from(location.len)];
            match self.read_location(location, &mut stored) {
                Ok(()) => found = decode_page(&stored, key, pointer, pool),
                Err(error) => failed = Some(error),
            }
        }
        let mut core = self.core.lock();
        // The pointer may have changed meanwhile: then the page that was read is not the newest, or was
        // read from a place that now holds something else.
        core.cache.begin_attempt();
        if !core.cache.holds(key) && !matches!(core.pointer(key), Ok(now) if now == *pointer) {
            return Ok(());
        }
        if let Some((facts, page)) = found {
            core.cache.insert(key, &page, facts);
        } else if let Some(page) = stand_in(key) {
            core.cache.insert(key, &page, PageFacts { version: pointer.version, ..PageFacts::default() });
            // It stays so: what it is told from now on must not meet the old page again.
            core.cache.change(key);
        } else {
            return Err(failed.unwrap_or_else(|| {
                let what =
                    format!("page {} of table {:?} (level {}) is damaged", key.number, key.table, key.level);
                Error::new(ErrorKind::Corrupt, what)
            }));
        }
        core.cache.pin(key);
        pinned.push(key);
        Ok(())
    }

    /// Reads what lies at a location.
    pub(crate) fn read_location(&self, location: Location, buffer: &mut [u8]) -> Result<()> {
        let (device, offset) = self.place(location.segment, location.offset)?;
        device.read_at(offset, buffer).map_err(|error| {
            Error::caused(
                ErrorKind::Device,
                format!("reading {} bytes of {}", buffer.len(), device.name()),
                error,
            )
        })
    }

    /// The device of a segment, and where an offset in it lies there.
    pub(crate) fn place(
        &self,
        segment: SegmentId,
        offset: u32,
    ) -> Result<(&dyn Device, crate::units::DeviceOffset)> {
        let place = self.geometry.place(segment, offset);
        let (device, offset) = place.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("a pointer names segment {segment}, which does not exist"))
        })?;
        Ok((&*self.devices[device], offset))
    }

    /// Lets the host set room aside for a segment. Where it has none, that is well as long as more than `kept` others
    /// have room already.
    fn allocate(&self, segment: SegmentId, kept: usize) -> Result<()> {
        let _asking = self.asking_host.lock();
        if !self.core.lock().segments.wants_room(segment) {
            return Ok(());
        }
        let (device, offset) = self.place(segment, 0)?;
        let len = ByteCount(u64::from(self.geometry.segment_bytes));
        let Err(error) = device.allocate(offset, len) else {
            self.core.lock().segments.room_found(segment);
            return Ok(());
        };
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Device,
        };
        if kind == ErrorKind::NoSpace && self.core.lock().segments.room_refused(segment) > kept {
            return Ok(());
        }
        Err(Error::caused(kind, format!("making room for a segment on {}", device.name()), error))
    }

    /// Keeps in mind whether the host had room.
    fn note_room(&self, allocated: Result<()>) -> Result<()> {
        let full = matches!(&allocated, Err(error) if error.kind() == ErrorKind::NoSpace);
        self.figures.host_full.store(full, Ordering::Relaxed);
        allocated
    }

    /// Lets maintenance make room, or does it.
    fn make_room(&self, room: Room, rounds: u32) -> Result<()> {
        if rounds > ROUNDS_MAX {
            return Err(no_room(room));
        }
        if !self.begin_maintenance_or_wait()? {
            return Ok(());
        }
        let made = match room {
            Room::Memory => self.checkpoint_in_role(),
            Room::Segments => self.make_segments_free(),
            Room::Space => match self.work_off_releases() {
                Ok(true) => Ok(()),
                Ok(false) => Err(no_room(room)),
                Err(error) => Err(error),
            },
        };
        self.end_maintenance();
        made
    }
}

/// What stands for a page that cannot be read, where caution has an answer: counts count as full, and of ids
/// none is free. That costs space until a repair recounts, and nothing else.
fn stand_in(key: PageKey) -> Option<Box<[u8; PAGE_BYTES]>> {
    match (key.level, key.table) {
        (0, Table::BlockCounts | Table::NodeCounts) => Some(Box::new([0xff; PAGE_BYTES])),
        (0, Table::FreedBlocks | Table::FreedNodes) => Some(Box::new([0; PAGE_BYTES])),
        _ => None,
    }
}

fn no_room(room: Room) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        match room {
            Room::Memory => "no room for changes in memory",
            Room::Segments => "no free segment: the pool is full",
            Room::Space => "the pool is full",
        },
    )
}
