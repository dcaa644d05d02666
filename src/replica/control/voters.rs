//! Who votes in the consensus group: an odd number, so that a node more never makes a quorum harder to reach.
//!
//! Witnesses and synchronous data nodes may vote, asynchronous ones are too far away. Of an even number one goes
//! without; never the primary, because a primary that cannot decide cannot put out a node that died.

use std::collections::BTreeSet;

use super::state::{ClusterState, NodeKind, ReplicaMode};
use crate::replica::decisions::NodeId;

/// Who ought to vote, given who does: among equals those that do stay.
pub(super) fn wanted(state: &ClusterState, current: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let primary = state.record.as_ref().map(|record| record.primary);
    let may = |node: NodeId| {
        state.nodes.get(&node).is_some_and(|entry| match entry.kind {
            NodeKind::Witness => true,
            NodeKind::Data => entry.mode == ReplicaMode::Sync || Some(node) == primary,
        })
    };
    let mut order: Vec<NodeId> = state.nodes.keys().copied().filter(|node| may(*node)).collect();
    order.sort_by_key(|node| (Some(*node) != primary, !current.contains(node), *node));
    let odd = order.len().saturating_sub(1) / 2 * 2 + 1;
    order.into_iter().take(odd).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::control::state::NodeEntry;
    use crate::replica::control::state::tests::{cluster, data, witness};
    use crate::units::Uuid;

    fn with(nodes: &[(u32, NodeEntry)]) -> ClusterState {
        let mut state = cluster();
        state.nodes.extend(nodes.iter().map(|(node, entry)| (NodeId(*node), entry.clone())));
        state
    }

    fn ids(ids: &[u32]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    #[test]
    fn the_number_of_voters_is_odd_and_the_primary_is_one() {
        let asynchronous = NodeEntry { mode: ReplicaMode::Async, ..data("far") };
        let two = with(&[(2, data("b"))]);
        let three = with(&[(2, data("b")), (3, witness("w"))]);
        let four = with(&[(2, data("b")), (3, witness("w")), (4, data("d"))]);
        let far = with(&[(2, data("b")), (3, asynchronous)]);
        let cases = [
            (&cluster(), &[1][..], &[1][..]),
            (&two, &[1], &[1]),
            // The primary is now another one than when the voter was chosen.
            (&two, &[2], &[1]),
            (&three, &[1], &[1, 2, 3]),
            (&far, &[1], &[1]),
            (&four, &[1, 2, 3], &[1, 2, 3]),
            (&four, &[1, 3, 4], &[1, 3, 4]),
            // After a removal of one of three.
            (&two, &[1, 2, 3], &[1]),
        ];
        for (state, current, expected) in cases {
            assert_eq!(wanted(state, &ids(current)), ids(expected), "{current:?}");
        }
        assert!(wanted(&ClusterState::empty(Uuid([7; 16])), &ids(&[1])).is_empty());
    }
}
