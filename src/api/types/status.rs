//! One consistent moment of the array.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use super::array::Endpoints;
use super::array::HealthState;
use super::cluster::ClusterState;
use super::metrics::CollectionState;
use super::mount::Mount;

/// `GET /api/v1/status`: one consistent moment.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// When.
    pub time: String,
    /// Whether everything works.
    pub health: HealthState,
    /// What is wrong, worst first.
    pub problems: Vec<Trouble>,
    /// Which array.
    pub array: StatusArray,
    /// Where volumes are served.
    pub endpoints: Endpoints,
    /// The directories in which volumes and snapshots are files, in the order of their paths.
    pub mounts: Vec<Mount>,
    /// How large and how full the pool is.
    pub capacity: StatusCapacity,
    /// How far data is reduced.
    pub reduction: StatusReduction,
    /// The volumes together.
    pub volumes: StatusVolumes,
    /// The snapshots together, and what is left to do of deletes.
    pub snapshots: StatusSnapshots,
    /// Garbage collection since the start.
    pub garbage_collection: StatusCollection,
    /// Checkpoints and the log since the start.
    pub log: StatusLog,
    /// The nodes.
    pub cluster: StatusCluster,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusArray {
    /// The id of the pool.
    pub id: String,
    /// `array.name` of the configuration.
    pub name: String,
    /// Version of the software.
    pub version: String,
    /// Since the daemon has opened the pool.
    pub uptime_seconds: u64,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusCapacity {
    /// All of the pool.
    pub total_bytes: u64,
    /// What data and metadata may fill.
    pub usable_bytes: u64,
    /// Segments in use, less the unwritten room in open ones.
    pub used_bytes: u64,
    /// What is not in use. Some of it is kept back: see `writable_bytes`.
    pub free_bytes: u64,
    /// What clients can still write, as far as it does not reduce: usable bytes less live ones, and less what
    /// metadata that is not stored yet will take.
    pub writable_bytes: u64,
    /// What is kept back for garbage collection and checkpoints: the total less the usable bytes.
    pub reserved_bytes: u64,
    /// Data and metadata that something still needs.
    pub live_bytes: u64,
    /// The part of it that is metadata.
    pub metadata_bytes: u64,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusReduction {
    /// Host bytes over stored bytes; thin provisioning does not count.
    pub ratio: f64,
    /// Provisioned bytes over stored bytes: with thin provisioning.
    pub total_ratio: f64,
    /// Bytes that the volumes hold.
    pub logical_bytes: u64,
    /// Bytes that their unique blocks take in the pool.
    pub stored_bytes: u64,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusVolumes {
    /// How many.
    pub total: u64,
    /// Their sizes together.
    pub provisioned_bytes: u64,
    /// What they hold together.
    pub used_bytes: u64,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusCollection {
    /// What it is doing.
    pub state: CollectionState,
    /// Runs.
    pub runs: u64,
    /// Live bytes that were moved.
    pub moved_bytes: u64,
    /// Segments that were won back.
    pub reclaimed_segments: u64,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusLog {
    /// Newest operation.
    pub lsn: u64,
    /// Newest operation known to be durable.
    pub durable_lsn: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Trouble {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusSnapshots {
    /// How many.
    pub total: u64,
    /// Map nodes of deleted or overwritten data that are still to be taken apart before all its space is back;
    /// more may come to light on the way.
    pub pending_releases: u64,
    /// Whether the next checkpoint gives space back that nothing needs any more. In an idle array it comes by
    /// itself within moments.
    pub awaits_checkpoint: bool,
}

/// Part of the status.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct StatusCluster {
    /// Whether the array is one of several nodes.
    pub enabled: bool,
    /// How they are.
    pub state: ClusterState,
    /// The node that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// The node that acknowledges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_primary: Option<String>,
    /// The epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    /// All nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_count: Option<u64>,
    /// Nodes that are as they should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_nodes: Option<u64>,
    /// Bytes that are left to be compared, of all nodes.
    #[serde(default)]
    pub resync_remaining_bytes: u64,
    /// Nodes that are being compared, or follow and are not in sync yet.
    #[serde(default)]
    pub resyncing: u64,
}
