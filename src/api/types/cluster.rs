//! Nodes, replication and failover. While clustering is off the array is a cluster of one node.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use super::status::Trouble;

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
    /// How far the slowest in-sync node is behind; `null` where no primary says so.
    pub replication_lag_ms: Option<f64>,
}

/// How a cluster is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClusterState {
    /// Clustering is off.
    #[default]
    Standalone,
    /// The node has not heard its cluster yet.
    Initializing,
    /// All nodes are there and in sync.
    Healthy,
    /// The array is served, and something is missing: a node, or the quorum.
    Degraded,
    /// There is no primary: the array is not served.
    Failed,
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
    /// Writes and flushes that were acknowledged by all in-sync peers, since the node was started.
    pub operations_replicated: u64,
    /// Operations on their way.
    pub operations_pending: u64,
    /// Average time that a request waited for the other in-sync nodes, since the node was started.
    pub avg_latency_ms: f64,
}

/// When writes are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicationMode {
    /// Clustering is off.
    Disabled,
    /// When every in-sync node has them.
    Sync,
    /// At once: all other nodes follow at their own pace.
    Async,
}

/// Another node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Peer {
    /// Its name.
    pub node_id: String,
    /// Where its REST is.
    pub url: Option<String>,
    /// How it is.
    pub state: NodeState,
    /// When it was last heard, in seconds since 1970; `null` if never.
    pub last_heartbeat: Option<f64>,
    /// How much it lacks.
    pub lag_bytes: u64,
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It is in sync, or a witness that can be reached.
    Healthy,
    /// It follows, and is not in sync.
    Degraded,
    /// It cannot be reached.
    Broken,
    /// It is being compared with the primary.
    Syncing,
    /// It was announced, and no token has made it a node yet.
    Joining,
    /// Only a primary could say, and there is none.
    Unknown,
}

/// `GET /api/v1/metrics/replication`. While clustering is off there is a message and nothing else.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ReplicationMetrics {
    /// Whether the array is one of several nodes.
    pub enabled: bool,
    /// Why there are no figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When writes are acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ReplicationMode>,
    /// Other nodes that keep data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<u64>,
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<ReplicationOperations>,
    /// Average time that a request waited for the other in-sync nodes, since the node was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// Changes of the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<FailoverMetrics>,
}

/// Part of the metrics of replication.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReplicationOperations {
    /// Writes and flushes that were acknowledged by all in-sync peers, since the node was started.
    pub replicated: u64,
    /// Operations on their way.
    pub pending: u64,
    /// Requests that could not be acknowledged, since the node was started.
    pub errors: u64,
}

/// Part of the metrics of replication.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FailoverMetrics {
    /// Whether the primary is the one that it was.
    pub state: FailoverState,
    /// How often another node has become primary, since the cluster was made.
    pub total_failovers: u64,
    /// Average time from the last that this node had heard of a former primary until it served in its place, since it
    /// was started.
    pub avg_time_ms: f64,
}

/// Whether the primary is the one that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailoverState {
    /// It is.
    Normal,
    /// Another node has taken over; `failback` leads back.
    FailedOver,
}

/// Why there is another primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailoverReason {
    /// Somebody asked for it, or the former primary was stopped and handed over.
    Manual,
    /// The former primary was silent.
    NodeFailure,
    /// All members had been down at once, and have come back.
    Start,
    /// The same, without some of them, as the operator said.
    StartWithout,
    /// The operator forced it.
    Forced,
}

/// The answer to `POST /api/v1/cluster/failover` and `failback`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FailoverAnswer {
    /// The node that acknowledged before.
    pub old_primary: String,
    /// The node that does now.
    pub new_primary: String,
    /// Why.
    pub reason: FailoverReason,
    /// Whether the primary is the one that it was.
    pub state: FailoverState,
    /// From the request until the new primary served.
    pub duration_ms: f64,
}

/// `GET /api/v1/cluster/members`: all that is known of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClusterMembers {
    /// The cluster's id.
    pub cluster_id: String,
    /// This node.
    pub node_id: String,
    /// What it does now.
    pub role: NodeRole,
    /// How the cluster is.
    pub state: ClusterState,
    /// The node that acknowledges.
    pub primary: Option<String>,
    /// Whether it takes requests, as far as this node knows.
    pub primary_serves: bool,
    /// Raised only by force.
    pub generation: u32,
    /// Raised with every change of the primary.
    pub epoch: u32,
    /// Whether this node hears a majority of the voters.
    pub has_quorum: bool,
    /// The nodes that hold every acknowledged write.
    pub in_sync: Vec<String>,
    /// The nodes that decide.
    pub voters: Vec<String>,
    /// When writes are acknowledged.
    pub mode: ReplicationMode,
    /// Operations on their way.
    pub operations_pending: u64,
    /// All nodes, and those that were announced.
    pub nodes: Vec<ClusterNode>,
    /// Whether the primary is the one that it was.
    pub failover_state: FailoverState,
    /// Where a failback leads to.
    pub failback_to: Option<String>,
    /// How often another node has become primary, since the cluster was made.
    pub total_failovers: u64,
    /// The last changes of the primary, oldest first.
    pub failovers: Vec<FailoverRecord>,
    /// What is wrong, worst first.
    pub problems: Vec<Trouble>,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// It takes requests and acknowledges.
    Primary,
    /// It keeps a copy.
    Secondary,
    /// It votes, and keeps nothing.
    Witness,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClusterNode {
    /// Its name.
    pub node_id: String,
    /// Its number; none before it has joined.
    pub number: Option<u32>,
    /// What it does; none before it has joined.
    pub role: Option<NodeRole>,
    /// How it is.
    pub state: NodeState,
    /// Whether it holds every acknowledged write.
    pub in_sync: bool,
    /// Whether it decides with others.
    pub votes: bool,
    /// How it follows.
    pub mode: Option<ReplicationMode>,
    /// Where its REST is, or is said to be.
    pub url: Option<String>,
    /// Where its NBD server is.
    pub nbd_address: Option<String>,
    /// Where other nodes reach it.
    pub cluster_address: Option<String>,
    /// When it was last heard, in seconds since 1970.
    pub last_heartbeat: Option<f64>,
    /// Bytes that it has not answered for.
    pub lag_bytes: u64,
    /// Operations that it has not answered for.
    pub lag_operations: u64,
    /// For how long it has lacked them.
    pub lag_seconds: f64,
    /// Bytes that are left to be compared with the primary.
    pub resync_remaining_bytes: u64,
    /// Bytes sent to it in this term.
    pub shipped_bytes: u64,
    /// Operations and pieces of a comparison sent to it in this term.
    pub shipped_operations: u64,
    /// What is wrong with the stream to it.
    pub error: Option<String>,
}

/// One change of the primary.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FailoverRecord {
    /// The node that acknowledged before; the same one after a start of all.
    pub old_primary: String,
    /// The node that did from then on.
    pub new_primary: String,
    /// Why.
    pub reason: FailoverReason,
    /// Raised only by force.
    pub generation: u32,
    /// The epoch that began.
    pub epoch: u32,
    /// When.
    pub at: String,
}

/// `POST /api/v1/cluster/promote`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Promote {
    /// Must be `true`: acknowledged writes that this node does not hold are lost.
    #[serde(default)]
    pub force: bool,
}

/// `POST /api/v1/cluster/start`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct StartCluster {
    /// The nodes that were in sync and never return: acknowledged writes that only they hold are lost.
    pub without: Vec<String>,
}

/// `POST /api/v1/cluster/join`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct JoinCluster {
    /// For a node that keeps data; `POST /api/v1/cluster/tokens` of the cluster made it.
    pub token: String,
    /// What the pool here holds is given up.
    #[serde(default)]
    pub discard_local_data: bool,
}

/// The answer to that. The array begins anew as a node of the cluster; until it has, it cannot be reached.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JoinedCluster {
    /// This node's number.
    pub node_id: u32,
}

/// The answer to `POST /api/v1/cluster/heartbeat`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HeartbeatAnswer {
    /// This node.
    pub node_id: String,
    /// The primary that it knows.
    pub current_primary: Option<String>,
    /// When, in seconds since 1970.
    pub timestamp: f64,
}

/// `POST /api/v1/cluster/init`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct InitCluster {
    /// Where other nodes reach this one, as `ADDRESS:PORT`; `null` is what the configuration says.
    #[serde(default)]
    pub listen: Option<String>,
}

/// The answer to that.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NewCluster {
    /// The cluster's id.
    pub cluster_id: String,
    /// This node's number.
    pub node_id: u32,
    /// Where other nodes reach this one.
    pub listen: String,
    /// For `serve --join` of a node that keeps data.
    pub data_token: String,
    /// For `serve --witness --join`.
    pub witness_token: String,
}

/// `POST /api/v1/cluster/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct NewToken {
    /// What it is for.
    pub role: TokenRole,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenRole {
    /// A node that keeps data.
    Data,
    /// A voter without data.
    Witness,
    /// A machine that attaches volumes.
    Client,
}

/// The answer to that.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JoinToken {
    /// Good for one node, and for an hour.
    pub token: String,
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

/// `GET`, `POST` and `DELETE` of `/api/v1/cluster/verify`: how far the newest comparison of all nodes has come.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClusterVerify {
    /// What it is at.
    pub state: VerifyState,
    /// The node that is compared with: the primary.
    pub primary: String,
    /// The generation and epoch where all are compared.
    pub epoch: Option<String>,
    /// The operation behind which they are.
    pub operation: Option<u64>,
    /// Bytes of mapped blocks that were compared, by their fingerprints.
    pub compared_bytes: u64,
    /// Every other node that keeps data.
    pub nodes: Vec<VerifiedNode>,
    /// Why it has failed.
    pub error: Option<String>,
}

/// What a comparison of all nodes is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerifyState {
    /// None was begun since this node was started.
    Never,
    /// It compares.
    Running,
    /// It was stopped before its end.
    Stopped,
    /// It could not be brought to its end.
    Failed,
    /// All was compared that could be.
    Finished,
}

/// What was found of one node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VerifiedNode {
    /// Its name.
    pub node_id: String,
    /// What was found.
    pub verdict: VerifyVerdict,
    /// The first differences.
    pub differences: Vec<VerifyDifference>,
    /// Why it was not compared, or not to the end.
    pub error: Option<String>,
}

/// What was found of a node that was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerifyVerdict {
    /// Nothing yet: it is being compared.
    Comparing,
    /// It holds what the primary holds.
    Equal,
    /// It holds something else. It has left the in-sync set, and everything on it is compared.
    Different,
    /// It was not compared, or not to the end.
    NotCompared,
}

/// One difference to the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyDifference {
    /// The volume, or `VOLUME@SNAPSHOT`.
    pub object: String,
    /// The block, in units of 4,096 bytes; `null` where it is not about one.
    pub lba: Option<u64>,
    /// What differs.
    pub what: String,
}
