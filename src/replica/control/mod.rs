//! Control: the small consensus group that orders decisions.
//!
//! It promises that what it has decided is decided on every node in the same order, survives the loss of a minority
//! of the voters, and every restart. It promises nothing of time, and who leads it means nothing for data. Blocking
//! calls only: its runtime is its own, and none of the library's types that it is made of is seen outside.

mod codec;
mod group;
mod machine;
mod messages;
mod network;
mod published;
pub mod raft;
pub mod state;
mod store;
mod upkeep;
mod voters;

use std::sync::Arc;
use std::time::Duration;

use self::state::{ClusterState, Decision, Outcome};
use crate::error::Result;
use crate::replica::decisions::NodeId;

/// What the rest of a node knows of the group.
pub trait Control: Send + Sync {
    /// Proposes and forgets: it may be lost, late, or decided without anybody being told.
    fn propose(&self, decision: Decision);

    /// Proposes and waits for the outcome, whoever leads the group. `NoQuorum` after `patience`: then the outcome is
    /// unknown. A decision that was sent again on the way is made once. Never called from the group's own thread,
    /// which is the one that calls subscribers.
    fn decide(&self, decision: Decision, patience: Duration) -> Result<Outcome>;

    /// What has been decided, as far as this node has applied it.
    fn state(&self) -> Arc<ClusterState>;

    /// `changed` is called after each change of the state, from the group's own thread: it must not wait.
    fn subscribe(&self, changed: Box<dyn Fn() + Send + Sync>);

    /// This node's place in the group.
    fn standing(&self) -> Standing;
}

/// A node's place in the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Who leads the group, as far as this node has heard lately.
    pub leader: Option<NodeId>,
    /// Whether this node does, and is heard by a quorum.
    pub leads: bool,
    /// Whether the group could decide a moment ago, as far as this node can tell.
    pub has_quorum: bool,
    /// Who votes; while that changes, those that vote before and after: until then a quorum of both is needed.
    pub voters: Vec<NodeId>,
    /// Who follows without a vote.
    pub learners: Vec<NodeId>,
}

/// How requests of the group reach other nodes.
pub trait Transport: Send + Sync {
    /// Sends a request to a node and waits for its answer, for `patience` at most. The other side hands it to
    /// [`raft::RaftControl::answer`], with the id that it knows the caller by.
    fn call(&self, to: NodeId, address: &str, request: &[u8], patience: Duration) -> Result<Vec<u8>>;
}
