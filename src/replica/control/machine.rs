//! The types that openraft is made with here, and the state machine that its log drives.
//!
//! Every proposal carries a number of its own: one that is in the log twice, because its proposer did not hear of the
//! first, is decided once, and answered alike.

use std::collections::VecDeque;
use std::io::Cursor;

use serde::{Deserialize, Serialize};

use super::state::{ClusterState, Decision, Outcome};
use crate::units::Uuid;

/// How many outcomes are remembered for proposals that are sent again.
const OUTCOMES_MAX: usize = 64;

openraft::declare_raft_types!(
    /// What openraft is made with.
    pub(super) Types:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = openraft::BasicNode,
        SnapshotData = Cursor<Vec<u8>>,
);

/// What stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proposal {
    /// Drawn at random by its proposer.
    pub(super) number: Uuid,
    /// When the leader took it up, by its clock: milliseconds since the Unix epoch.
    pub(super) at_ms: u64,
    /// What is proposed.
    pub(super) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Content {
    /// The state that the cluster begins with.
    Begin(Box<ClusterState>),
    /// A decision.
    Decide(Decision),
}

/// The state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) state: ClusterState,
    outcomes: VecDeque<(Uuid, Outcome)>,
}

impl Machine {
    pub(super) fn empty(cluster: Uuid) -> Machine {
        Machine { state: ClusterState::empty(cluster), outcomes: VecDeque::new() }
    }

    pub(super) fn apply(&mut self, proposal: &Proposal) -> Outcome {
        if let Some((_, outcome)) = self.outcomes.iter().find(|(number, _)| *number == proposal.number) {
            return outcome.clone();
        }
        let outcome = match &proposal.content {
            Content::Begin(state) if self.state.record.is_none() => {
                self.state = ClusterState::clone(state);
                Outcome::Changed
            }
            Content::Begin(_) => Outcome::Unchanged("the cluster has begun already".into()),
            Content::Decide(decision) => self.state.apply(decision, proposal.at_ms),
        };
        self.outcomes.push_back((proposal.number, outcome.clone()));
        while self.outcomes.len() > OUTCOMES_MAX {
            self.outcomes.pop_front();
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::control::state::tests::{cluster, data};
    use crate::replica::decisions::NodeId;

    #[test]
    fn a_proposal_that_is_sent_again_is_decided_once() {
        let mut machine = Machine::empty(Uuid([7; 16]));
        let proposal = |number: u8, content| Proposal { number: Uuid([number; 16]), at_ms: 0, content };
        let begin = |number| proposal(number, Content::Begin(Box::new(cluster())));
        assert_eq!(machine.apply(&begin(1)), Outcome::Changed);
        assert_eq!(machine.apply(&begin(1)), Outcome::Changed);
        assert!(matches!(machine.apply(&begin(2)), Outcome::Unchanged(_)));
        let join = Decision::Join { token: [1; 16], token_expires: 1, entry: data("b") };
        let join = |number| proposal(number, Content::Decide(join.clone()));
        for _ in 0..2 {
            assert_eq!(machine.apply(&join(3)), Outcome::Joined(NodeId(2)));
        }
        assert!(matches!(machine.apply(&join(4)), Outcome::Unchanged(_)));
        assert_eq!(machine.state.nodes.len(), 2);
        for number in 10..200 {
            machine.apply(&proposal(number, Content::Decide(Decision::Withdraw("nobody".into()))));
        }
        assert_eq!(machine.outcomes.len(), OUTCOMES_MAX);
    }
}
