//! What nodes of the group say to each other, and what of it is believed.
//!
//! The link vouches for who speaks; here it is looked at whether that node may say this. A message of another
//! cluster, of a former group, or out of order in itself never reaches the consensus machine.

use openraft::error::InstallSnapshotError;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, EntryPayload, Membership, Vote};
use serde::{Deserialize, Serialize};

use super::machine::{Proposal, Types};
use super::state::Outcome;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::decisions::NodeId;
use crate::units::Uuid;

/// A request with what it belongs to.
#[derive(Serialize, Deserialize)]
pub(super) struct Envelope {
    pub(super) cluster: Uuid,
    pub(super) group: Uuid,
    pub(super) request: Request,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<u64>),
    Snapshot(InstallSnapshotRequest<Types>),
    /// For the leader to decide; the time in it is the leader's to fill in.
    Decide(Proposal),
}

/// The kinds of requests: of each, one at a time is under way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Append,
    Vote,
    Snapshot,
    Decide,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    Snapshot(Result<InstallSnapshotResponse<u64>, InstallSnapshotError>),
    Decide(Settled),
    /// The peer's group has stopped.
    Stopped(String),
}

/// What became of a proposal at the node that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Settled {
    Done(Outcome),
    /// Not taken up: another node leads, if any.
    NotLeader(Option<NodeId>),
    /// Taken up, outcome unknown.
    Unknown,
}

impl Request {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Request::Append(_) => Kind::Append,
            Request::Vote(_) => Kind::Vote,
            Request::Snapshot(_) => Kind::Snapshot,
            Request::Decide(_) => Kind::Decide,
        }
    }

    /// Whether a node may say this, and whether it is in order.
    pub(super) fn check(&self, from: NodeId) -> Result<()> {
        let refused = |why: &str| {
            let what = format!("a message of the group from node {}: {why}", from.0);
            Err(Error::new(ErrorKind::Invalid, what))
        };
        let speaks_for_itself = |vote: &Vote<u64>| vote.leader_id.node_id == u64::from(from.0);
        match self {
            Request::Append(append) => {
                if !speaks_for_itself(&append.vote) || !append.vote.committed {
                    return refused("it does not lead");
                }
                let mut before = append.prev_log_id;
                for entry in &append.entries {
                    let next = before.map_or(Some(0), |id| id.index.checked_add(1));
                    let later = before.is_none_or(|id| id.leader_id <= entry.log_id.leader_id);
                    if Some(entry.log_id.index) != next || !later {
                        return refused("its entries are out of order");
                    }
                    before = Some(entry.log_id);
                    if let EntryPayload::Membership(membership) = &entry.payload
                        && !is_sound(membership)
                    {
                        return refused("it names voters that cannot be");
                    }
                }
                if before.is_some_and(|id| id.leader_id > append.vote.leader_id || id.index == u64::MAX) {
                    return refused("its entries are of a later leader");
                }
                if append.leader_commit.is_some_and(|id| id.leader_id > append.vote.leader_id) {
                    return refused("it has decided what a later leader wrote");
                }
                Ok(())
            }
            Request::Vote(vote) => {
                if !speaks_for_itself(&vote.vote) || vote.vote.committed {
                    return refused("it stands for another");
                }
                if vote.last_log_id.is_some_and(|id| id.leader_id > vote.vote.leader_id) {
                    return refused("its log is of a later leader");
                }
                Ok(())
            }
            Request::Snapshot(snapshot) => {
                if !speaks_for_itself(&snapshot.vote) || !snapshot.vote.committed {
                    return refused("it does not lead");
                }
                let Some(last) = snapshot.meta.last_log_id else { return refused("a snapshot of nothing") };
                let membership = &snapshot.meta.last_membership;
                let sound = is_sound(membership.membership()) && *membership.log_id() <= Some(last);
                if last.leader_id > snapshot.vote.leader_id || last.index == u64::MAX || !sound {
                    return refused("a snapshot that cannot be");
                }
                Ok(())
            }
            Request::Decide(_) => Ok(()),
        }
    }
}

/// Some voters, all of them known, with ids that nodes may have.
fn is_sound(membership: &Membership<u64, BasicNode>) -> bool {
    let configurations = membership.get_joint_config();
    let known = |id: &u64| membership.get_node(id).is_some();
    matches!(configurations.len(), 1 | 2)
        && configurations.iter().all(|voters| !voters.is_empty() && voters.iter().all(known))
        && membership.nodes().all(|(id, _)| u32::try_from(*id).is_ok())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use openraft::{CommittedLeaderId, Entry, LogId};

    use super::*;

    fn at(term: u64, index: u64) -> LogId<u64> {
        LogId::new(CommittedLeaderId::new(term, 1), index)
    }

    fn append(vote: Vote<u64>, entries: &[LogId<u64>]) -> Request {
        let entries = entries.iter().map(|id| Entry { log_id: *id, payload: EntryPayload::Blank }).collect();
        Request::Append(AppendEntriesRequest {
            vote,
            prev_log_id: Some(at(1, 4)),
            entries,
            leader_commit: None,
        })
    }

    #[test]
    fn only_a_leader_speaks_and_in_order() {
        let leads = Vote::new_committed(2, 1);
        assert!(append(leads, &[at(1, 5), at(2, 6)]).check(NodeId(1)).is_ok());
        let refused = [
            append(Vote::new(2, 1), &[]),
            append(Vote::new_committed(2, 3), &[]),
            append(leads, &[at(1, 6)]),
            append(leads, &[at(2, 5), at(1, 6)]),
            append(leads, &[at(3, 5)]),
            append(leads, &[at(0, 5)]),
            Request::Vote(VoteRequest::new(Vote::new(2, 3), None)),
            Request::Vote(VoteRequest::new(leads, None)),
            Request::Vote(VoteRequest::new(Vote::new(2, 1), Some(at(3, 1)))),
        ];
        for (number, request) in refused.iter().enumerate() {
            assert!(request.check(NodeId(1)).is_err(), "{number}");
        }
        assert!(Request::Vote(VoteRequest::new(Vote::new(2, 1), Some(at(1, 1)))).check(NodeId(1)).is_ok());
    }

    #[test]
    fn a_membership_without_voters_is_not_believed() {
        let nobody: Membership<u64, BasicNode> = Membership::new(Vec::new(), None);
        let empty: Membership<u64, BasicNode> = Membership::new(vec![BTreeSet::new()], None);
        let large: Membership<u64, BasicNode> = Membership::new(vec![BTreeSet::from([1 << 40])], None);
        let text = br#"{"configs":[[1,2]],"nodes":{"1":{"addr":"a"}}}"#;
        let unknown: Membership<u64, BasicNode> = serde_json::from_slice(text).unwrap();
        for membership in [nobody, empty, large, unknown] {
            assert!(!is_sound(&membership), "{membership}");
        }
        assert!(is_sound(&Membership::new(vec![BTreeSet::from([1, 2])], None)));
    }
}
