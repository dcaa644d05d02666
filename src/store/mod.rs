//! The log-structured engine: blocks in, blocks out, and nothing acknowledged is lost.
//!
//! `Store` is the outer shell: it holds the devices, and does all waiting and all device calls outside of the
//! one lock around `core::Core`, which is the state in memory. It knows objects by number, never by name. It
//! starts no thread and looks at no clock: background work is a bounded step that somebody else calls, or that
//! a caller who needs its outcome does itself.

mod apply;
mod background;
mod blocks;
pub mod check;
mod checkpoint;
mod collect;
mod commit;
mod core;
mod diff;
mod fingerprint;
mod geometry;
mod heal;
mod heat;
mod helpers;
mod io;
mod log;
mod map;
mod merge;
mod objects;
mod operation;
mod options;
pub mod probe;
mod read;
mod recovery;
mod reduce;
mod resync;
mod root;
mod run;
mod scrub;
mod sessions;
mod shipping;
mod statistics;
mod table;
mod walk;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::device::Device;
use crate::format::superblock::Superblock;
use crate::sync::{Condition, Mutex};
use crate::units::Uuid;

pub use self::apply::{Applied, Shipment, ShippedMapping, ShippedOperation, ShippedPayload};
pub use self::check::{CheckMode, CheckReport, CheckedObject, Fault, Place, check};
pub use self::commit::WriteOutcome;
pub use self::core::PlantedFaults;
pub use self::diff::ChangedRun;
pub use self::geometry::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENTS_MIN, segment_bytes_for};
pub use self::objects::CloneRequest;
pub use self::operation::OBJECT_BLOCKS_MAX;
pub use self::options::{
    Commit, CommitSink, Environment, ObjectInfo, OpenReport, PoolIdentity, StoreOptions,
};
pub use self::probe::{DeviceContent, probe, wrong_version};
pub use self::read::{MappedRun, MappingKind};
pub use self::reduce::Reduction;
pub use self::scrub::{ScrubState, ScrubStatus};
pub use self::sessions::{
    Origin, PARTS_MAX, Part, Progress, REQUEST_WINDOW, SESSIONS_MAX, SessionPicture, Sessions,
    SessionsPicture,
};
pub use self::shipping::BlockAt;
pub use self::statistics::{CarriedFigures, CollectionState, StoreStatistics};
pub use self::walk::{OccupiedWalk, ReclaimWalk, Reclaimable};
pub use crate::format::objects::OPAQUE_BYTES_MAX;
pub use crate::format::operation::{CLONES_MAX, CloneRecord};

use self::blocks::index::FingerprintIndex;
use self::core::Core;

/// The engine over the devices of one pool.
pub struct Store {
    devices: Vec<Arc<dyn Device>>,
    options: StoreOptions,
    environment: Environment,
    /// What every superblock says but for the checkpoint.
    identity: Superblock,
    geometry: geometry::Geometry,
    core: Mutex<Core>,
    /// Something has been written, synced or freed, or a role has been given up.
    changed: Condition,
    index: FingerprintIndex,
    scrub: Mutex<scrub::Scrub>,
    /// Held while the host is asked for room for a segment, and while one is given back to it: what came last is so.
    asking_host: Mutex<()>,
    helpers: helpers::Helpers,
    /// Figures that need no lock.
    figures: Figures,
}

/// Counters since the store was opened.
#[derive(Debug, Default)]
struct Figures {
    /// The host had no room for a segment when it was last asked for some.
    host_full: AtomicBool,
    checkpoint_nanoseconds: AtomicU64,
    log_syncs: AtomicU64,
    log_sync_nanoseconds: AtomicU64,
    collections: AtomicU64,
    levelled_segments: AtomicU64,
    levelled_bytes: AtomicU64,
    punched_bytes: AtomicU64,
    scrubbed_bytes: AtomicU64,
    scrub_errors: AtomicU64,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("pool", &self.identity.pool).finish_non_exhaustive()
    }
}

impl Store {
    /// The pool's id.
    #[must_use]
    pub fn pool_id(&self) -> Uuid {
        self.identity.pool
    }

    /// What another node needs to make a pool of the same array.
    #[must_use]
    pub fn identity(&self) -> PoolIdentity {
        let Superblock { pool, fingerprint_key, .. } = self.identity;
        PoolIdentity { pool, fingerprint_key, position: self.position() }
    }
}
