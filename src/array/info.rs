//! What the management verbs take and give: plain values, no behaviour.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::store::StoreStatistics;
use crate::units::ByteCount;
use crate::units::Uuid;

use super::which::Version;

/// What a new volume is to be.
#[derive(Clone, Debug, Default)]
pub struct NewVolume {
    /// Unique among volumes; see [`check_name`](super::rules::check_name) for what is allowed.
    pub name: String,
    /// Rounded up to whole blocks; at most 256 TiB.
    pub size: ByteCount,
    /// Free text.
    pub description: String,
    /// Free text by key.
    pub tags: BTreeMap<String, String>,
}

/// What is to change of a volume: only what is given.
#[derive(Clone, Debug, Default)]
pub struct VolumeUpdate {
    /// A new name.
    pub name: Option<String>,
    /// A new description.
    pub description: Option<String>,
    /// New tags, in place of all that there are.
    pub tags: Option<BTreeMap<String, String>>,
}

/// Whether a client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// No client is connected.
    Available,
    /// A client is connected.
    InUse,
}

/// What clients asked of a volume since the array was opened, and got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeCounters {
    /// Reads.
    pub read_ops: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes; trims and zeroings are not among them.
    pub write_ops: u64,
    /// Bytes written.
    pub write_bytes: u64,
}

/// A volume as the management plane shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeInfo {
    /// Never changes.
    pub id: Uuid,
    /// Unique among volumes.
    pub name: String,
    /// The size that clients see.
    pub size_bytes: ByteCount,
    /// What clients have written and not trimmed.
    pub used_bytes: ByteCount,
    /// Whether a client is connected.
    pub state: VolumeState,
    /// Free text.
    pub description: String,
    /// Since 1970-01-01 00:00:00 UTC, in whole milliseconds.
    pub created_at: Duration,
    /// When a management verb changed it last; since 1970-01-01 00:00:00 UTC, in whole milliseconds.
    pub updated_at: Duration,
    /// Free text by key.
    pub tags: BTreeMap<String, String>,
    /// `used_bytes` over the bytes that they occupy; 1.0 while the volume holds nothing. Where it was not
    /// measured, the volume's blocks are taken to be reduced as those of the whole pool.
    pub reduction_ratio: f64,
    /// When the ratio was measured on the volume's own blocks; since 1970-01-01 00:00:00 UTC.
    pub reduction_measured_at: Option<Duration>,
    /// Another one after every change by a management verb.
    pub version: Version,
    /// What clients asked of it.
    pub counters: VolumeCounters,
}

/// What a new snapshot is to be.
#[derive(Clone, Debug, Default)]
pub struct NewSnapshot {
    /// Unique among the volume's snapshots; without one it is called after the volume and the time.
    pub name: Option<String>,
    /// Free text.
    pub description: String,
    /// Free text by key.
    pub tags: BTreeMap<String, String>,
}

/// What a new clone is to be: a volume with the size and tags of its source.
#[derive(Clone, Debug, Default)]
pub struct NewClone {
    /// Unique among volumes.
    pub name: String,
    /// Free text; without one it says what it was cloned from.
    pub description: Option<String>,
}

/// Where a snapshot is restored to.
#[derive(Clone, Debug)]
pub enum RestoreTarget {
    /// A new volume; without a name it is called `{volume}-restored`, with a number where that is taken.
    New {
        /// Unique among volumes.
        name: Option<String>,
    },
    /// An existing volume, all of whose data is replaced.
    Onto {
        /// Its name or id.
        volume: String,
        /// Also under connected clients.
        force: bool,
    },
}

/// A snapshot as the management plane shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotInfo {
    /// Never changes.
    pub id: Uuid,
    /// Unique among the snapshots of its volume.
    pub name: String,
    /// The volume that it was taken of.
    pub volume_id: Uuid,
    /// What that volume is called or, where it is gone, was.
    pub volume_name: String,
    /// Whether that volume is gone.
    pub volume_is_deleted: bool,
    /// Its size.
    pub size_bytes: ByteCount,
    /// What clients had written and not trimmed.
    pub used_bytes: ByteCount,
    /// Whether a client is connected.
    pub state: VolumeState,
    /// Free text.
    pub description: String,
    /// Since 1970-01-01 00:00:00 UTC, in whole milliseconds.
    pub created_at: Duration,
    /// Free text by key.
    pub tags: BTreeMap<String, String>,
    /// Stored bytes that would come free if it alone were deleted; `None` until that has been counted.
    pub reclaimable_bytes: Option<ByteCount>,
    /// Another one after every change of what is kept of it.
    pub version: Version,
}

/// The array's health in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing is wrong.
    Healthy,
    /// Something is wrong: `ArrayStatus::problems` says what.
    Degraded,
}

/// Something that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One line.
    pub what: String,
    /// One line, with the command that helps where there is one.
    pub hint: String,
}

/// The array at one moment.
#[derive(Clone, Debug)]
pub struct ArrayStatus {
    /// As configured.
    pub name: String,
    /// Whether there are problems.
    pub health: Health,
    /// The worst first.
    pub problems: Vec<Problem>,
    /// The store's counters, all of one moment.
    pub store: StoreStatistics,
    /// Number of volumes.
    pub volumes: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// The sum of the volumes' sizes.
    pub provisioned_bytes: ByteCount,
    /// What clients have written and not trimmed.
    pub used_bytes: ByteCount,
    /// `used_bytes` over the bytes that they occupy; 1.0 while there are none. Thin provisioning
    /// does not count.
    pub reduction_ratio: f64,
    /// `provisioned_bytes` over the bytes that `used_bytes` occupy; 1.0 while there are none.
    pub reduction_ratio_with_thin_provisioning: f64,
}
