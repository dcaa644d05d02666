//! What is handed to the store from above, and what it says of itself when it opens.

use std::sync::Arc;
use std::time::Duration;

use crate::format::batch::LoggedOperation;
use crate::sync::{Clock, RandomSource};
use crate::units::{BlockCount, ByteCount, CheckpointNumber, Epoch, Fingerprint, Lsn, ObjectNumber, Uuid};

use super::core::PlantedFaults;
use super::sessions::Origin;

/// Clock and random source.
#[derive(Clone)]
pub struct Environment {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Random bytes: ids and incarnations.
    pub random: Arc<dyn RandomSource>,
}

/// Sees every operation in the order in which it is committed, under the commit lock: it may only append to
/// something bounded whose room was made sure of before.
pub trait CommitSink: Send + Sync {
    /// Whether it wants to be told at all, now.
    fn listens(&self) -> bool {
        true
    }

    /// An operation has been committed.
    fn committed(&self, commit: &Commit<'_>);
}

/// One operation as the sink sees it.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    /// The term in which it was committed.
    pub epoch: Epoch,
    /// Its number.
    pub lsn: Lsn,
    /// What it does. Block ids are this node's own.
    pub operation: &'a LoggedOperation,
    /// Of a write, the fingerprint of each block that is stored; zeros for holes and patterns.
    pub fingerprints: &'a [Fingerprint],
    /// Its payloads, each padded to 16 bytes.
    pub payload: &'a Arc<Vec<u8>>,
    /// What it does for a request that is carried out once.
    pub origin: Option<Origin>,
}

/// What the pools of one array have in common on all nodes, and where one of them stands.
#[derive(Clone, PartialEq, Eq)]
pub struct PoolIdentity {
    /// The pool's id.
    pub pool: Uuid,
    /// The key of its fingerprints: a secret of the array.
    pub fingerprint_key: [u8; 32],
    /// The newest operation: of a new pool, the one that what is shipped to it follows.
    pub position: (Epoch, Lsn),
}

impl std::fmt::Debug for PoolIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let PoolIdentity { pool, position, .. } = self;
        f.debug_struct("PoolIdentity").field("pool", pool).field("position", position).finish_non_exhaustive()
    }
}

/// Budgets and limits of one opening.
#[derive(Clone)]
pub struct StoreOptions {
    /// For pages of tables, trees and directories, and for pending changes.
    pub metadata_budget: ByteCount,
    /// For the fingerprint index.
    pub index_budget: ByteCount,
    /// A checkpoint starts when the log since the last one has grown by this much.
    pub checkpoint_log_bytes: ByteCount,
    /// What has been written is synced after this time at the latest.
    pub sync_after: Duration,
    /// Erase cycles that a segment is rated for.
    pub rated_cycles: u32,
    /// Only when a pool is made: 0 chooses by its size.
    pub segment_bytes: ByteCount,
    /// So many copied leaves borrow at most, and no more than the metadata budget has room for; beyond that a copy takes
    /// references of its own at once.
    pub borrowers_max: usize,
    /// Opens a damaged log at its last intact operation.
    pub accept_loss: bool,
    /// Sees every operation in commit order.
    pub sink: Option<Arc<dyn CommitSink>>,
    /// Faults that a test plants.
    pub faults: PlantedFaults,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            metadata_budget: ByteCount(256 << 20),
            index_budget: ByteCount(256 << 20),
            checkpoint_log_bytes: ByteCount(512 << 20),
            sync_after: Duration::from_millis(100),
            rated_cycles: 3000,
            segment_bytes: ByteCount(0),
            borrowers_max: usize::MAX,
            accept_loss: false,
            sink: None,
            faults: PlantedFaults::default(),
        }
    }
}

/// A volume or snapshot as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its number; never used twice.
    pub number: ObjectNumber,
    /// Its size.
    pub size: BlockCount,
    /// Blocks that are not holes.
    pub mapped: BlockCount,
    /// What the layer above keeps with it.
    pub opaque: Vec<u8>,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Operations replayed from the log.
    pub replayed_operations: u64,
    /// Bytes of log replayed.
    pub log_bytes: u64,
    /// The last operation that is there.
    pub last_lsn: Lsn,
    /// The checkpoint that the opening began from.
    pub checkpoint: CheckpointNumber,
    /// What is damaged; with any of it the pool takes no writes.
    pub damage: Vec<String>,
    /// Whether the last stop was a clean one: nothing had to be replayed.
    pub clean: bool,
}
