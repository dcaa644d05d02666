//! The leader keeps the group's membership in step with the nodes of the cluster, one small change at a time.
//!
//! A node follows without a vote first, and votes once it has caught up. Whatever fails is tried again from what is
//! then the case.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::{BasicNode, ChangeMembers, RaftMetrics, ServerState};

use super::group::Group;
use super::state::ClusterState;
use super::voters;
use crate::replica::decisions::NodeId;

/// A node has caught up when so many entries of the log are missing at most: the rest is a round trip.
const LAG_MAX: u64 = 8;

pub(super) async fn keep_members(group: Arc<Group>) {
    loop {
        tokio::time::sleep(group.timing.group_heartbeat).await;
        let metrics = group.raft.metrics().borrow().clone();
        if metrics.running_state.is_err() {
            tracing::error!("this node's part in the consensus group has ended: {:?}", metrics.running_state);
            return;
        }
        let Some(changes) = next_change(&group.published.state(), &metrics) else { continue };
        tracing::info!("members of the consensus group: {changes:?}");
        // Those that lose their vote stay and follow.
        if let Err(error) = group.raft.change_membership(changes, true).await {
            tracing::warn!("members of the consensus group: {error}; it is tried again");
        }
    }
}

type Metrics = RaftMetrics<u64, BasicNode>;

/// What to change next; nothing where this node does not lead, or has not applied all that it knows of.
fn next_change(state: &ClusterState, metrics: &Metrics) -> Option<ChangeMembers<u64, BasicNode>> {
    let applied = metrics.last_applied.map(|id| id.index);
    if metrics.state != ServerState::Leader || applied < metrics.last_log_index || state.nodes.is_empty() {
        return None;
    }
    let membership = metrics.membership_config.membership();
    let known: BTreeSet<u64> = membership.nodes().map(|(id, _)| *id).collect();
    let voting: BTreeSet<u64> = membership.voter_ids().collect();
    let missing: BTreeMap<u64, BasicNode> = state
        .nodes
        .iter()
        .map(|(node, entry)| (u64::from(node.0), BasicNode::new(&entry.cluster_address)))
        .filter(|(id, _)| !known.contains(id))
        .collect();
    if !missing.is_empty() {
        return Some(ChangeMembers::AddNodes(missing));
    }
    let current: BTreeSet<NodeId> =
        voting.iter().filter_map(|id| u32::try_from(*id).ok()).map(NodeId).collect();
    let wanted: BTreeSet<u64> =
        voters::wanted(state, &current).into_iter().map(|node| u64::from(node.0)).collect();
    let joint = membership.get_joint_config().len() > 1;
    let newcomers_ready = wanted.difference(&voting).all(|id| has_caught_up(*id, metrics));
    if (joint || wanted != voting) && !wanted.is_empty() && newcomers_ready {
        return Some(ChangeMembers::ReplaceAllVoters(wanted));
    }
    let gone: BTreeSet<u64> = known
        .into_iter()
        .filter(|id| !voting.contains(id))
        .filter(|id| u32::try_from(*id).is_ok_and(|id| !state.nodes.contains_key(&NodeId(id))))
        .collect();
    (!gone.is_empty() && !joint).then_some(ChangeMembers::RemoveNodes(gone))
}

fn has_caught_up(id: u64, metrics: &Metrics) -> bool {
    let reached = metrics.replication.as_ref().and_then(|replication| (*replication.get(&id)?)?.into());
    let reached: Option<openraft::LogId<u64>> = reached;
    let last = metrics.last_log_index.unwrap_or(0);
    reached.is_some_and(|reached| reached.index + LAG_MAX >= last) || metrics.id == id
}
