//! The cluster in the shapes of REST, all made from one: its members.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::figures::float;
use crate::api::types::ClusterMembers;
use crate::api::types::ClusterNode;
use crate::api::types::ClusterState;
use crate::api::types::ClusterStatus;
use crate::api::types::FailoverMetrics;
use crate::api::types::FailoverReason;
use crate::api::types::FailoverRecord;
use crate::api::types::FailoverState;
use crate::api::types::NodeRole;
use crate::api::types::NodeState;
use crate::api::types::Peer;
use crate::api::types::ReplicationMetrics;
use crate::api::types::ReplicationMode;
use crate::api::types::ReplicationOperations;
use crate::api::types::ReplicationStatus;
use crate::api::types::StatusCluster;
use crate::api::types::Trouble;
use crate::api::view::time;
use crate::replica::cluster::Running;
use crate::replica::control::Control as _;
use crate::replica::control::state;
use crate::replica::control::state::NodeEntry;
use crate::replica::control::state::NodeKind;
use crate::replica::control::state::ReplicaMode;
use crate::replica::decisions::NodeId;
use crate::replica::node::status::NodeStatus;
use crate::replica::node::status::PeerState;
use crate::replica::node::status::PeerStatus;
use crate::replica::node::status::Totals;

/// The cluster, as one node sees it at a moment.
pub(super) struct Seen {
    pub(super) members: ClusterMembers,
    pub(super) totals: Totals,
}

/// The name of a node; its number where it is none any more.
pub(super) fn name_of(state: &state::ClusterState, node: NodeId) -> String {
    state.nodes.get(&node).map_or_else(|| node.0.to_string(), |entry| entry.name.clone())
}

/// What this node knows by itself.
pub(super) fn seen(running: &Running, now: Duration) -> Option<Seen> {
    let status = running.node.as_ref()?.status();
    let decided = running.control.state();
    let name = |node: &NodeId| name_of(&decided, *node);
    let mut nodes: Vec<ClusterNode> = Vec::new();
    for (number, entry) in &decided.nodes {
        let peer = status.peers.iter().find(|peer| peer.node == *number);
        nodes.push(match peer {
            Some(peer) => other(peer, &status, now),
            None => own(*number, entry, &status),
        });
    }
    nodes.extend(decided.announced.iter().map(|(name, url)| announced(name, url)));
    let record = decided.record.as_ref();
    let failover_state = failover_state(decided.failed_over_from);
    let mut members = ClusterMembers {
        cluster_id: decided.cluster.to_string(),
        node_id: name(&running.own),
        role: if status.serves { NodeRole::Primary } else { NodeRole::Secondary },
        state: ClusterState::Initializing,
        primary: record.map(|record| name(&record.primary)),
        primary_serves: status.serves,
        generation: status.record.epoch.generation,
        epoch: status.record.epoch.number,
        has_quorum: status.standing.has_quorum,
        in_sync: status.record.set.keys().map(name).collect(),
        voters: status.standing.voters.iter().map(name).collect(),
        mode: mode(decided.nodes.values()),
        operations_pending: status.pending,
        nodes,
        failover_state,
        failback_to: decided.failed_over_from.as_ref().map(name),
        total_failovers: decided.failovers,
        failovers: decided.history.iter().map(|it| failover(it, name)).collect(),
        problems: Vec::new(),
    };
    judge(&mut members);
    Some(Seen { members, totals: status.totals })
}

/// Takes the figures of other nodes from what the primary says.
pub(super) fn complete(members: &mut ClusterMembers, primary: ClusterMembers) {
    let mut told: BTreeMap<String, ClusterNode> =
        primary.nodes.into_iter().map(|node| (node.node_id.clone(), node)).collect();
    for node in &mut members.nodes {
        if let Some(told) = told.remove(&node.node_id) {
            // Of itself the primary does not say when it was heard.
            let last_heartbeat = told.last_heartbeat.or(node.last_heartbeat);
            *node = ClusterNode { last_heartbeat, ..told };
        }
    }
    members.primary_serves = primary.primary_serves && members.primary == primary.primary;
    members.operations_pending = primary.operations_pending;
    judge(members);
}

/// Says what is wrong, and how the cluster is.
pub(super) fn judge(members: &mut ClusterMembers) {
    members.problems.clear();
    let mut problem = |what: String, hint: &str| {
        members.problems.push(Trouble { what, hint: hint.to_owned() });
    };
    if members.primary.is_none() {
        problem(
            "this node has not heard its cluster yet".to_owned(),
            "is one of the other nodes running, and can this one reach it?",
        );
        members.state = ClusterState::Initializing;
        return;
    }
    if !members.primary_serves {
        problem(
            "there is no primary: the array is not served".to_owned(),
            "`sinter cluster peers` shows who is away; start a node that is in sync",
        );
    }
    if !members.has_quorum {
        problem(
            format!("{} does not hear a majority of the voters: nobody can be promoted", members.node_id),
            "start the nodes that are away: `sinter cluster peers` shows them",
        );
    }
    for node in &members.nodes {
        let left = match node.resync_remaining_bytes {
            0 => String::new(),
            left => format!(", {left} bytes left"),
        };
        let error = node.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        match node.state {
            NodeState::Healthy | NodeState::Joining | NodeState::Unknown => {}
            NodeState::Broken => problem(
                format!("{} cannot be reached{error}", node.node_id),
                "start it, or take it out of the cluster with `sinter cluster remove`",
            ),
            NodeState::Syncing => problem(
                format!("{} is being compared, and not in sync{left}", node.node_id),
                "`sinter wait --for resync` waits until it is",
            ),
            NodeState::Degraded if node.mode == Some(ReplicationMode::Async) => {}
            NodeState::Degraded => problem(
                format!("{} follows, and is not in sync{error}", node.node_id),
                "`sinter wait --for resync` waits until it is",
            ),
        }
    }
    members.state = match (members.primary_serves, members.problems.is_empty()) {
        (false, _) => ClusterState::Failed,
        (true, true) => ClusterState::Healthy,
        (true, false) => ClusterState::Degraded,
    };
}

/// `GET /api/v1/cluster/status`.
pub(super) fn status(members: &ClusterMembers) -> ClusterStatus {
    let behind = members.nodes.iter().filter(|node| node.in_sync).map(|node| node.lag_seconds * 1000.0);
    ClusterStatus {
        node_id: members.node_id.clone(),
        state: members.state,
        current_primary: members.primary.clone(),
        has_quorum: members.has_quorum,
        node_count: joined(members).count() as u64,
        healthy_nodes: joined(members).filter(|node| node.state == NodeState::Healthy).count() as u64,
        replication_lag_ms: members.primary_serves.then(|| behind.fold(0.0, f64::max)),
    }
}

/// `GET /api/v1/cluster/replication`.
pub(super) fn replication(seen: &Seen) -> ReplicationStatus {
    let members = &seen.members;
    ReplicationStatus {
        mode: members.mode,
        node_id: members.node_id.clone(),
        is_primary: members.role == NodeRole::Primary,
        peers: copies(members).map(peer).collect(),
        operations_replicated: seen.totals.replicated,
        operations_pending: members.operations_pending,
        avg_latency_ms: average_ms(seen.totals.waited, seen.totals.replicated),
    }
}

/// `GET /api/v1/metrics/replication`.
pub(super) fn metrics(seen: &Seen) -> ReplicationMetrics {
    let (members, totals) = (&seen.members, &seen.totals);
    ReplicationMetrics {
        enabled: true,
        message: None,
        mode: Some(members.mode),
        peers: Some(copies(members).filter(|node| node.number.is_some()).count() as u64),
        operations: Some(ReplicationOperations {
            replicated: totals.replicated,
            pending: members.operations_pending,
            errors: totals.failed,
        }),
        latency_ms: Some(average_ms(totals.waited, totals.replicated)),
        failover: Some(FailoverMetrics {
            state: members.failover_state,
            total_failovers: members.total_failovers,
            avg_time_ms: average_ms(totals.takeover_time, totals.takeovers),
        }),
    }
}

/// The cluster's part of `GET /api/v1/status`.
pub(super) fn part_of_status(members: &ClusterMembers) -> StatusCluster {
    let status = status(members);
    let resyncing = |node: &&ClusterNode| {
        let behind = matches!(node.state, NodeState::Syncing | NodeState::Degraded);
        behind && node.mode == Some(ReplicationMode::Sync)
    };
    StatusCluster {
        enabled: true,
        state: members.state,
        node_id: Some(members.node_id.clone()),
        current_primary: members.primary.clone(),
        epoch: Some(members.epoch),
        node_count: Some(status.node_count),
        healthy_nodes: Some(status.healthy_nodes),
        resync_remaining_bytes: members.nodes.iter().map(|node| node.resync_remaining_bytes).sum(),
        resyncing: members.nodes.iter().filter(resyncing).count() as u64,
    }
}

/// One node, in the shape of peers.
pub(super) fn peer(node: &ClusterNode) -> Peer {
    Peer {
        node_id: node.node_id.clone(),
        url: node.url.clone(),
        state: node.state,
        last_heartbeat: node.last_heartbeat,
        lag_bytes: node.lag_bytes,
    }
}

/// Whether the primary is the one that it was.
pub(super) fn failover_state(failed_over_from: Option<NodeId>) -> FailoverState {
    match failed_over_from {
        Some(_) => FailoverState::FailedOver,
        None => FailoverState::Normal,
    }
}

fn joined(members: &ClusterMembers) -> impl Iterator<Item = &ClusterNode> {
    members.nodes.iter().filter(|node| node.number.is_some())
}

/// All other nodes that keep data, or will.
fn copies(members: &ClusterMembers) -> impl Iterator<Item = &ClusterNode> {
    let others = members.nodes.iter().filter(|node| node.node_id != members.node_id);
    others.filter(|node| node.role != Some(NodeRole::Witness))
}

fn average_ms(sum: Duration, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum.as_secs_f64() * 1000.0 / float(count) }
}

fn own(number: NodeId, entry: &NodeEntry, status: &NodeStatus) -> ClusterNode {
    let in_sync = status.record.names(status.own);
    let state = match (status.serves || in_sync, status.compared) {
        (true, _) => NodeState::Healthy,
        (false, true) => NodeState::Syncing,
        (false, false) => NodeState::Degraded,
    };
    let votes = status.standing.voters.contains(&number);
    ClusterNode { in_sync, state, votes, ..described(number, entry, status) }
}

fn other(peer: &PeerStatus, status: &NodeStatus, now: Duration) -> ClusterNode {
    let heard_at = peer.heard_ago.map(|ago| now.saturating_sub(ago).as_secs_f64());
    ClusterNode {
        state: match peer.state {
            // Whoever is not the primary knows of the set, and not of the nodes in it.
            PeerState::Healthy if status.serves => NodeState::Healthy,
            PeerState::Healthy | PeerState::Unknown => NodeState::Unknown,
            PeerState::Degraded => NodeState::Degraded,
            PeerState::Broken => NodeState::Broken,
            PeerState::Syncing => NodeState::Syncing,
        },
        in_sync: peer.in_sync,
        last_heartbeat: heard_at,
        lag_bytes: peer.lag.0,
        lag_operations: if peer.applied.is_some() { peer.lag_operations } else { 0 },
        lag_seconds: peer.lag_time.as_secs_f64(),
        resync_remaining_bytes: peer.resync_remaining.0,
        shipped_bytes: peer.shipped_bytes,
        shipped_operations: peer.shipped_operations,
        error: peer.error.clone(),
        ..described(peer.node, &peer.entry, status)
    }
}

/// What does not change from moment to moment.
fn described(number: NodeId, entry: &NodeEntry, status: &NodeStatus) -> ClusterNode {
    let at = |address: &String| format!("http://{address}");
    ClusterNode {
        node_id: entry.name.clone(),
        number: Some(number.0),
        role: Some(match entry.kind {
            NodeKind::Witness => NodeRole::Witness,
            NodeKind::Data if status.record.primary == number => NodeRole::Primary,
            NodeKind::Data => NodeRole::Secondary,
        }),
        state: NodeState::Unknown,
        in_sync: false,
        votes: status.standing.voters.contains(&number),
        mode: (entry.kind == NodeKind::Data).then_some(match entry.mode {
            ReplicaMode::Sync => ReplicationMode::Sync,
            ReplicaMode::Async => ReplicationMode::Async,
        }),
        url: entry.announced_url.clone().or_else(|| entry.api_address.as_ref().map(at)),
        nbd_address: entry.nbd_address.clone(),
        cluster_address: Some(entry.cluster_address.clone()),
        last_heartbeat: None,
        lag_bytes: 0,
        lag_operations: 0,
        lag_seconds: 0.0,
        resync_remaining_bytes: 0,
        shipped_bytes: 0,
        shipped_operations: 0,
        error: None,
    }
}

/// A name that no token has made a node yet.
pub(super) fn announced(name: &str, url: &str) -> ClusterNode {
    ClusterNode {
        node_id: name.to_owned(),
        number: None,
        role: None,
        state: NodeState::Joining,
        in_sync: false,
        votes: false,
        mode: None,
        url: Some(url.to_owned()),
        nbd_address: None,
        cluster_address: None,
        last_heartbeat: None,
        lag_bytes: 0,
        lag_operations: 0,
        lag_seconds: 0.0,
        resync_remaining_bytes: 0,
        shipped_bytes: 0,
        shipped_operations: 0,
        error: None,
    }
}

fn mode<'a>(entries: impl Iterator<Item = &'a NodeEntry>) -> ReplicationMode {
    let copies = entries.filter(|entry| entry.kind == NodeKind::Data);
    let (sync, far): (Vec<_>, Vec<_>) = copies.partition(|entry| entry.mode == ReplicaMode::Sync);
    // One of the former is the primary itself.
    if sync.len() <= 1 && !far.is_empty() { ReplicationMode::Async } else { ReplicationMode::Sync }
}

fn failover(record: &state::Failover, name: impl Fn(&NodeId) -> String) -> FailoverRecord {
    FailoverRecord {
        old_primary: name(&record.old),
        new_primary: name(&record.new),
        reason: reason(record.reason),
        generation: record.epoch.generation,
        epoch: record.epoch.number,
        at: time(Duration::from_millis(record.at_ms)),
    }
}

fn reason(reason: state::FailoverReason) -> FailoverReason {
    match reason {
        state::FailoverReason::Promotion => FailoverReason::NodeFailure,
        state::FailoverReason::HandOver => FailoverReason::Manual,
        state::FailoverReason::Start => FailoverReason::Start,
        state::FailoverReason::StartWithout => FailoverReason::StartWithout,
        state::FailoverReason::Force => FailoverReason::Forced,
    }
}
