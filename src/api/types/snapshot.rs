//! Snapshots, clones and restores.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use super::volume::VolumeState;

/// One snapshot.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    /// A UUID; never changes and is never used again.
    pub id: String,
    /// Unique among the snapshots of its volume.
    pub name: String,
    /// The volume that it was taken of.
    pub volume_id: String,
    /// What that volume is called or, where it is gone, was.
    pub volume_name: String,
    /// Whether that volume is gone.
    pub volume_is_deleted: bool,
    /// Its size.
    pub size_bytes: u64,
    /// What clients had written and not trimmed.
    pub used_bytes: u64,
    /// Stored bytes that would come free if it alone were deleted; `null` until they have been
    /// counted, which looking at the snapshot asks for.
    pub reclaimable_bytes: Option<u64>,
    /// Whether a client is connected.
    pub state: VolumeState,
    /// Free text.
    pub description: String,
    /// When it was taken.
    pub created_at: String,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
}

/// `GET /api/v1/snapshots` and `GET /api/v1/volumes/{id}/snapshots`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotList {
    /// The snapshots of this page, the oldest first.
    pub snapshots: Vec<Snapshot>,
    /// How many there are in all.
    pub total: u64,
    /// Where the next page begins; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// `POST /api/v1/volumes/{id}/snapshots`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CreateSnapshot {
    /// Unique among the volume's snapshots; without one it is called after the volume and the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Free text.
    pub description: String,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
}

/// `POST /api/v1/snapshots`: one moment of several volumes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CreateSnapshotGroup {
    /// Names or ids of the volumes.
    pub volumes: Vec<String>,
    /// What each of the snapshots is to be.
    #[serde(flatten)]
    pub snapshot: CreateSnapshot,
}

/// Answer to `POST /api/v1/snapshots`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotGroup {
    /// The snapshots, in the order in which the volumes were named.
    pub snapshots: Vec<Snapshot>,
}

/// `POST .../clone`.
#[derive(Clone, Debug, Serialize)]
pub struct CloneVolume {
    /// Unique among the volumes.
    pub name: String,
    /// Free text; without one it says what was cloned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// `POST .../restore`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RestoreSnapshot {
    /// Name or id of the volume whose data is replaced; `null` makes a new volume.
    pub target_volume_id: Option<String>,
    /// What the new volume is called; without one `{volume_name}-restored`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `GET .../snapshots/{snapshot}/diff`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotDiff {
    /// The id of the older snapshot.
    pub from: String,
    /// The id of the newer snapshot or volume.
    pub to: String,
    /// What has changed, in order.
    pub ranges: Vec<ChangedRange>,
    /// Where to go on; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<u64>,
}

/// A stretch of bytes that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangedRange {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
    /// What the newer one holds there.
    pub kind: RangeKind,
}

/// What a stretch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RangeKind {
    /// Stored data.
    Data,
    /// Nothing: reads as zeros.
    Hole,
    /// A repeated word.
    Pattern,
}
