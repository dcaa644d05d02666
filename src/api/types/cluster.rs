//! Nodes, replication and failover. While clustering is off the array is a cluster of one node.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

/// `GET /api/v1/cluster/status`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClusterStatus {
    /// This node.
    pub node_id: String,
    /// How the cluster is.
    pub state: ClusterState,
    /// The node that acknowledges.
    pub current_primary: Option<String>,
    /// Whether enough nodes see each other.
    pub has_quorum: bool,
    /// All nodes.
    pub node_count: u64,
    /// Nodes that answer.
    pub healthy_nodes: u64,
    /// How far the slowest in-sync node is behind.
    pub replication_lag_ms: f64,
}

/// How a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClusterState {
    /// Clustering is off.
    Standalone,
}

/// `GET /api/v1/cluster/replication`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReplicationStatus {
    /// When writes are acknowledged.
    pub mode: ReplicationMode,
    /// This node.
    pub node_id: String,
    /// Whether it acknowledges.
    pub is_primary: bool,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// Operations that all in-sync peers have.
    pub operations_replicated: u64,
    /// Operations on their way.
    pub operations_pending: u64,
    /// Average time from an operation to the answers of all in-sync peers.
    pub avg_latency_ms: f64,
}

/// When writes are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicationMode {
    /// Clustering is off.
    Disabled,
}

/// Another node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Peer {
    /// Its name.
    pub node_id: String,
    /// Where it is.
    pub url: String,
    /// How it is.
    pub state: String,
    /// When it last answered, in seconds since 1970.
    pub last_heartbeat: f64,
    /// How much it lacks.
    pub lag_bytes: u64,
}

/// `GET /api/v1/metrics/replication`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReplicationMetrics {
    /// Whether the array is one of several nodes.
    pub enabled: bool,
    /// Why there are no figures.
    pub message: String,
}

/// `POST /api/v1/cluster/peers`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct AddPeer {
    /// Its name.
    #[schemars(length(min = 1, max = 255))]
    pub node_id: String,
    /// Where it is.
    #[schemars(regex(pattern = r"^https?://."))]
    pub url: String,
}

/// `POST /api/v1/cluster/failover`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Failover {
    /// The node that is to acknowledge; `null` lets the cluster choose.
    #[serde(default)]
    pub target_node: Option<String>,
}

/// `POST /api/v1/cluster/heartbeat`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Heartbeat {
    /// The node that sends it.
    #[schemars(length(min = 1, max = 255))]
    pub source_node: String,
    /// When, in seconds since 1970.
    pub timestamp: f64,
    /// The primary that it knows.
    #[serde(default)]
    pub current_primary: Option<String>,
}
