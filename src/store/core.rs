//! The state of the store in memory, behind one short lock. Nothing here touches a device: what needs a page
//! or room that is not there answers with a *stall*, changes nothing, and is tried again once whoever called
//! has seen to it outside the lock.

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

use crate::error::Error;
use crate::format::objects::ObjectSlot;
use crate::format::page::{PageKey, PagePointer, Table};
use crate::format::root::{LifetimeCounters, TableRoot};
use crate::units::{CheckpointNumber, MapNodeId, ObjectNumber, SegmentId};

use super::blocks::changes::Changes;
use super::blocks::ids::IdSpace;
use super::blocks::rebuild::Rebuild;
use super::geometry::Geometry;
use super::heat::Heat;
use super::log::appender::Appender;
use super::log::open_log::OpenLog;
use super::log::segments::SegmentTable;
use super::map::borrow::Borrowers;
use super::sessions::Sessions;
use super::table::cache::Cache;

/// What an attempt under the lock is short of.
#[derive(Debug)]
pub(crate) enum Stall {
    /// A page that must be read first.
    Load(PageKey, PagePointer),
    /// A segment for which the host must set room aside first; where it has none, so many that it has room for already
    /// are not for this caller.
    Allocate { segment: SegmentId, kept: usize },
    /// Room that maintenance must make first.
    Room(Room),
    /// It cannot be done at all.
    Fail(Error),
}

impl From<Error> for Stall {
    fn from(error: Error) -> Stall {
        Stall::Fail(error)
    }
}

/// Which room is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// For dirty pages or pending changes: a checkpoint makes it.
    Memory,
    /// For the log: a checkpoint or a collection frees segments.
    Segments,
    /// In the account: only what is trimmed, overwritten or deleted makes it.
    Space,
}

/// Volumes and snapshots, all in memory.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    slots: Vec<Option<ObjectSlot>>,
    by_number: FxHashMap<u64, usize>,
    vacant: BTreeSet<usize>,
    dirty: BTreeSet<usize>,
    /// Number of the next object.
    pub(crate) next: u64,
}

impl Objects {
    /// The next object gets the first number behind those that are there: others were this node's own, and are gone.
    pub(crate) fn number_behind_the_highest(&mut self) {
        self.next = self.by_number.keys().max().map_or(1, |highest| highest + 1);
    }

    /// None yet; the first gets this number.
    pub(crate) fn new(next: u64) -> Objects {
        Objects { next, ..Objects::default() }
    }

    /// Puts an object where a checkpoint had it.
    pub(crate) fn restore(&mut self, slot: usize, object: Option<ObjectSlot>) {
        while self.slots.len() <= slot {
            self.vacant.insert(self.slots.len());
            self.slots.push(None);
        }
        if let Some(object) = object {
            self.vacant.remove(&slot);
            self.by_number.insert(object.number.0, slot);
            self.slots[slot] = Some(object);
        }
    }

    /// Adds an object.
    pub(crate) fn add(&mut self, object: ObjectSlot) {
        let slot = self.vacant.pop_first().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.next = self.next.max(object.number.0 + 1);
        self.by_number.insert(object.number.0, slot);
        self.slots[slot] = Some(object);
        self.dirty.insert(slot);
    }

    /// An object.
    pub(crate) fn get(&self, number: ObjectNumber) -> Option<&ObjectSlot> {
        self.slots[*self.by_number.get(&number.0)?].as_ref()
    }

    /// An object, to be changed.
    pub(crate) fn change(&mut self, number: ObjectNumber) -> Option<&mut ObjectSlot> {
        let slot = *self.by_number.get(&number.0)?;
        self.dirty.insert(slot);
        self.slots[slot].as_mut()
    }

    /// Takes an object away.
    pub(crate) fn remove(&mut self, number: ObjectNumber) -> Option<ObjectSlot> {
        let slot = self.by_number.remove(&number.0)?;
        self.dirty.insert(slot);
        self.vacant.insert(slot);
        self.slots[slot].take()
    }

    /// The slot is to be written with the next checkpoint.
    pub(crate) fn touch_slot(&mut self, slot: u64) {
        if let Ok(slot) = usize::try_from(slot)
            && slot < self.slots.len()
        {
            self.dirty.insert(slot);
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &ObjectSlot> {
        self.slots.iter().flatten()
    }

    /// Takes the picture: slots that have changed since the last.
    pub(crate) fn freeze(&mut self) -> Vec<(u64, Option<ObjectSlot>)> {
        std::mem::take(&mut self.dirty)
            .into_iter()
            .map(|slot| (slot as u64, self.slots[slot].clone()))
            .collect()
    }
}

/// Faults that a test may plant, to show that the simulator finds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlantedFaults {
    /// The superblock is written without syncing what it points to.
    pub no_sync_before_superblock: bool,
    /// Freed ids are given out again at once.
    pub reuse_ids_at_once: bool,
    /// A batch is believed for its own checksum alone, whatever it says of opening, number and batch before.
    pub ignore_chain: bool,
    /// A merge looks at decrements before it looks at increments.
    pub decrement_first: bool,
    /// Segments are freed and erased before the checkpoint that frees them is durable.
    pub erase_early: bool,
    /// Counts wrap at 8 bits.
    pub wrap_counts: bool,
    /// A leaf that borrows takes over what its lender has while others need the lender, too.
    pub take_over_early: bool,
    /// Checkpoints and group commit sync as one, so that only one of them hears of a failure.
    pub one_syncer: bool,
}

/// Everything under the lock.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) geometry: Geometry,
    /// First eight bytes of the pool's id.
    pub(crate) pool_short: u64,
    pub(crate) cache: Cache,
    pub(crate) roots: [TableRoot; Table::ALL.len()],
    pub(crate) segments: SegmentTable,
    pub(crate) objects: Objects,
    pub(crate) block_changes: Changes,
    pub(crate) node_changes: Changes,
    pub(crate) block_ids: IdSpace,
    pub(crate) node_ids: IdSpace,
    /// Raised whenever a node that is there may get one more parent.
    pub(crate) sharing: u64,
    /// When the last checkpoint was made.
    pub(crate) checkpointed_at: std::time::Duration,
    /// The newest operation that background work has seen, and when it saw it first.
    pub(crate) quiet_since: (crate::units::Lsn, std::time::Duration),
    /// Nodes that nothing refers to, to be taken apart.
    pub(crate) release_queue: VecDeque<MapNodeId>,
    /// Copied leaves that name blocks to which they have no references yet.
    pub(crate) borrowers: Borrowers,
    /// Nodes taken apart since the store was opened.
    pub(crate) released_nodes: u64,
    /// Pages that are no more, and whose pointers the next checkpoint clears.
    pub(crate) dropped: Vec<PageKey>,
    pub(crate) log: OpenLog,
    /// Where volumes are written often.
    pub(crate) heat: Heat,
    /// Blocks moved out of log segments.
    pub(crate) moved: Appender,
    /// Blocks moved again, and long-lived ones that make room for wear.
    pub(crate) cold: Appender,
    /// Segments whose live pages leave with the next checkpoint.
    pub(crate) leaving: BTreeSet<SegmentId>,
    /// A segment is being emptied because it is worn less than others.
    pub(crate) levelling: bool,
    /// Place in the order of segments at which one was last emptied for that.
    pub(crate) levelled_at: u64,
    pub(crate) metadata: Appender,
    pub(crate) metadata_copy: Appender,
    /// Order in which segments are begun.
    pub(crate) next_sequence: u64,
    pub(crate) counters: LifetimeCounters,
    /// The newest durable checkpoint.
    pub(crate) checkpoint: CheckpointNumber,
    /// Where its root is, and the root's copy.
    pub(crate) root_extents: Vec<crate::format::superblock::RootExtent>,
    /// How far the fingerprint index has been filled since the opening.
    pub(crate) rebuild: Rebuild,
    /// Blocks whose stored bytes have failed their check.
    pub(crate) bad_blocks: BTreeSet<u64>,
    /// What has been done of requests that may be sent again.
    pub(crate) sessions: Sessions,
    /// Something that was acknowledged may be missing, and clients do not know of it yet.
    pub(crate) may_lack: bool,
    /// The pool is marked as one that is being brought up to what others hold.
    pub(crate) being_synced: bool,
    /// What is committed comes from another node alone.
    pub(crate) following: bool,
    /// Why writes are refused, if they are.
    pub(crate) stopped: Option<String>,
    /// Opening found that something durable is gone: what is here is not the newest.
    pub(crate) opened_damaged: bool,
    /// Somebody does maintenance.
    pub(crate) maintaining: bool,
    /// So many wait until it is done.
    pub(crate) waiting_for_maintenance: usize,
    pub(crate) faults: PlantedFaults,
}

impl Core {
    /// Refuses a request of a client while this node follows another.
    ///
    /// # Errors
    /// `NotPrimary`.
    pub(crate) fn leads(&self) -> Result<(), Error> {
        if self.following {
            let what = "this node follows another: only that one commits";
            return Err(Error::new(crate::error::ErrorKind::NotPrimary, what));
        }
        Ok(())
    }

    /// An object, or `NotFound`.
    pub(crate) fn object(&self, number: ObjectNumber) -> Result<&ObjectSlot, Error> {
        self.objects.get(number).ok_or_else(|| {
            Error::new(crate::error::ErrorKind::NotFound, format!("there is no object {number}"))
        })
    }

    /// Refuses whatever would change something, once writes have stopped.
    pub(crate) fn writable(&self) -> Result<(), Error> {
        match &self.stopped {
            None => Ok(()),
            Some(why) => Err(Error::new(
                crate::error::ErrorKind::Stopped,
                format!("the store takes no writes any more: {why}"),
            )),
        }
    }

    /// Whether collection may empty a segment: all of it is on its device, and it is not on its way out already.
    pub(crate) fn may_be_emptied(&self, segment: SegmentId) -> bool {
        !self.log.is_in_memory(segment) && !self.leaving.contains(&segment)
    }

    /// Bytes in use that the account knows of: live ones, and pages that are dirty or new and not yet stored.
    pub(crate) fn accounted_bytes(&self) -> u64 {
        self.segments.live_bytes() + self.unstored_metadata_bytes()
    }

    /// Pages that the next checkpoint stores, those of objects twice, as it does.
    pub(crate) fn unstored_pages(&self) -> usize {
        self.cache.dirty_pages() + 2 * self.objects.dirty.len()
    }

    /// Bytes that dirty pages and those of changed objects will take at most when they are stored.
    pub(crate) fn unstored_metadata_bytes(&self) -> u64 {
        self.unstored_pages() as u64 * 4160
    }
}
