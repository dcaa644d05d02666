//! Figures that take a walk along a whole map: what deleting a snapshot would free, and what a volume occupies.
//!
//! A walk is made when somebody asks, a bounded step at a time, by whoever calls [`Array::measure_step`]. What
//! it found is forgotten once it may be wrong: at the next change of the pool or, as pools change all the time,
//! a little later.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use crate::error::ErrorKind;
use crate::error::Result;
use crate::store::OccupiedWalk;
use crate::store::ReclaimWalk;
use crate::units::BlockCount;
use crate::units::ByteCount;
use crate::units::Lsn;
use crate::units::Uuid;

use super::Array;
use super::catalog::Entry;

/// Most walks that wait; who asks then is told nothing, and asks again.
const WAITING_MAX: usize = 64;

/// For how long a figure is shown after the pool has changed, in milliseconds: what a snapshot holds alone goes
/// with every write to its volume, while the ratio of a volume that nobody writes to drifts slowly.
const RECLAIMABLE_KEPT_MS: u64 = 5_000;
const OCCUPIED_KEPT_MS: u64 = 60_000;

/// What a walk found.
#[derive(Clone, Copy, Debug)]
struct Found {
    bytes: ByteCount,
    /// What the object held when the walk began.
    mapped: BlockCount,
    /// How often it had been changed by then.
    changes: u64,
    /// The newest operation when the walk began.
    lsn: Lsn,
    at_ms: u64,
}

enum Walk {
    Reclaimable(ReclaimWalk),
    Occupied(OccupiedWalk),
}

struct Current {
    id: Uuid,
    walk: Walk,
    mapped: BlockCount,
    changes: u64,
    lsn: Lsn,
}

/// Walks that wait, the one that is under way, and what was found.
#[derive(Default)]
pub(super) struct Measurements {
    waiting: VecDeque<Uuid>,
    current: Option<Current>,
    /// Of no more objects than there are.
    found: BTreeMap<Uuid, Found>,
}

impl Array {
    /// Asks for what takes a walk to be found of a volume or snapshot: the bytes that it occupies or that
    /// deleting it would free. It is shown once that is done.
    pub fn request_measurement(&self, id: Uuid) {
        let fresh = self.fresh(id, 0).is_some();
        let mut measurements = self.measurements.lock();
        let known = measurements.waiting.contains(&id)
            || measurements.current.as_ref().is_some_and(|current| current.id == id);
        if !fresh && !known && measurements.waiting.len() < WAITING_MAX {
            measurements.waiting.push_back(id);
        }
    }

    /// One bounded piece of a walk that was asked for; whether there is more to do.
    ///
    /// # Errors
    /// `Device` where a device failed. A walk along a damaged map is given up, and its figure stays unknown.
    pub fn measure_step(&self) -> Result<bool> {
        let Some(mut current) = self.next_measurement() else { return Ok(false) };
        let step = match &mut current.walk {
            Walk::Reclaimable(walk) => self.store.walk_reclaimable(walk),
            Walk::Occupied(walk) => self.store.walk_occupied(walk),
        };
        // Of what has been deleted meanwhile nothing is kept.
        let exists = self.catalog.lock().by_id(current.id).is_some();
        let mut measurements = self.measurements.lock();
        match step {
            Ok(_) if !exists => {}
            Ok(true) => measurements.current = Some(current),
            Ok(false) => {
                let bytes = match &current.walk {
                    Walk::Reclaimable(walk) => walk.found().map(|found| found.bytes()),
                    Walk::Occupied(walk) => walk.found(),
                };
                let Current { id, mapped, changes, lsn, .. } = current;
                let at_ms = self.now_ms();
                let found = bytes.map(|bytes| (id, Found { bytes, mapped, changes, lsn, at_ms }));
                measurements.found.extend(found);
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {}
            Err(error) => return Err(error),
        }
        Ok(measurements.current.is_some() || !measurements.waiting.is_empty())
    }

    /// The walk that is under way, or the next one of those that wait.
    fn next_measurement(&self) -> Option<Current> {
        loop {
            let id = {
                let mut measurements = self.measurements.lock();
                if let Some(current) = measurements.current.take() {
                    return Some(current);
                }
                measurements.waiting.pop_front()?
            };
            let entry = {
                let catalog = self.catalog.lock();
                catalog.by_id(id).cloned()
            };
            let Some(entry) = entry else { continue };
            let number = entry.shared.number();
            let walk = match entry.source() {
                Some(_) => Walk::Reclaimable(ReclaimWalk::new(number)),
                None => Walk::Occupied(OccupiedWalk::new(number)),
            };
            // Before a look at the map: what changes later makes the figure stale, not wrong for good.
            let (lsn, changes) = (self.store.last_lsn(), entry.shared.changes());
            return Some(Current { id, walk, mapped: self.mapped_blocks(&entry), changes, lsn });
        }
    }

    /// What was found of an object, unless the pool has changed since and it is older than that.
    fn fresh(&self, id: Uuid, kept_ms: u64) -> Option<Found> {
        let found = self.measurements.lock().found.get(&id).copied()?;
        let age_ms = self.now_ms().saturating_sub(found.at_ms);
        (found.lsn == self.store.last_lsn() || age_ms < kept_ms).then_some(found)
    }

    /// Bytes that would come free if the snapshot were deleted, where they are known.
    pub(super) fn reclaimable(&self, snapshot: &Entry) -> Option<ByteCount> {
        self.fresh(snapshot.record.id, RECLAIMABLE_KEPT_MS).map(|found| found.bytes)
    }

    /// The volume's bytes over those that they occupy, and when that was measured, in milliseconds since
    /// 1970-01-01 00:00:00 UTC; `None` where it is not known, as after every change of what the volume holds.
    pub(super) fn measured_ratio(&self, volume: &Entry) -> Option<(f64, u64)> {
        let found = self.fresh(volume.record.id, OCCUPIED_KEPT_MS)?;
        if found.changes != volume.shared.changes() {
            return None;
        }
        let held = found.mapped.bytes().0;
        // Patterns are in the map alone: no block is counted with less than what it takes there.
        let occupied = found.bytes.0.max(found.mapped.0.saturating_mul(super::status::MAPPING_BYTES));
        #[expect(clippy::cast_precision_loss, reason = "a ratio of sizes needs no more than 53 bits")]
        let ratio = if held == 0 || occupied == 0 { 1.0 } else { held as f64 / occupied as f64 };
        Some((ratio, found.at_ms))
    }

    /// Forgets all that was found, where changes were made past this array.
    pub(super) fn forget_measurements(&self) {
        *self.measurements.lock() = Measurements::default();
    }

    /// Forgets what was found of an object that is no more.
    pub(super) fn forget_measurement(&self, id: Uuid) {
        self.measurements.lock().found.remove(&id);
    }
}
