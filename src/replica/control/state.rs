//! What the consensus group holds, and how a decision changes it.
//!
//! Pure: the same decisions in the same order make the same state on every node. Ids are never given out twice, a
//! token is good for one node, and only force begins another generation. Times come in with the decision.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::replica::decisions::{Change, Command, Member, NodeId, Record};
use crate::units::{Epoch, Uuid};

/// How many failovers are remembered.
pub const HISTORY_MAX: usize = 32;
/// How many announced names are remembered, besides those of nodes.
pub const ANNOUNCED_MAX: usize = 64;
/// A spent token is forgotten so long after it has expired, seconds: clocks of nodes may differ.
const FORGET_TOKEN_AFTER: u64 = 24 * 60 * 60;

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// Keeps a copy of the array.
    Data,
    /// Votes, and keeps nothing.
    Witness,
}

/// How a data node follows the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaMode {
    /// A member of the in-sync set whenever it can be.
    Sync,
    /// Follows at its own pace, and is never a member.
    Async,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Unique among the nodes of the cluster.
    pub name: String,
    /// What it is for; never changes.
    pub kind: NodeKind,
    /// How it follows the primary.
    pub mode: ReplicaMode,
    /// Where other nodes reach it, `host:port`.
    pub cluster_address: String,
    /// Where its REST is.
    pub api_address: Option<String>,
    /// Where its NBD server is.
    pub nbd_address: Option<String>,
    /// The fingerprint of the node's public key.
    pub key_fingerprint: [u8; 32],
    /// What was said of it over REST before it joined.
    pub announced_url: Option<String>,
}

/// Why there is another primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailoverReason {
    /// The former one was silent.
    Promotion,
    /// The former one handed over.
    HandOver,
    /// No node had the life that the set named, and all have reported.
    Start,
    /// The same, without some of them, as the operator said.
    StartWithout,
    /// The operator forced it.
    Force,
}

/// One change of the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    /// The former primary; the same node as the new one after a start.
    pub old: NodeId,
    /// The new one.
    pub new: NodeId,
    /// Why.
    pub reason: FailoverReason,
    /// The epoch that began.
    pub epoch: Epoch,
    /// When, by the clock of the group's leader: milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// The state of the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Which cluster.
    pub cluster: Uuid,
    /// Who is primary and who is in the set; none on a node that has not heard the group yet.
    pub record: Option<Record>,
    /// All nodes.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
    /// The id that the next node gets.
    pub next_node: u32,
    /// Tokens that have made a node, each with when it expires: seconds since the Unix epoch.
    #[serde(with = "pairs")]
    pub spent_tokens: BTreeMap<[u8; 16], u64>,
    /// Nodes that are none any more.
    pub removed: BTreeSet<NodeId>,
    /// Names that were announced and have not joined, with their URLs.
    pub announced: BTreeMap<String, String>,
    /// What makes a pool one of this cluster's, as the pools write it.
    pub identity: Vec<u8>,
    /// The last changes of the primary, oldest first.
    pub history: VecDeque<Failover>,
    /// How often another node has become primary.
    pub failovers: u64,
    /// Who was primary when all was as it is meant to be, while another node is: where a failback leads to.
    pub failed_over_from: Option<NodeId>,
}

/// What is decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Who is primary and in the set.
    Role(Command),
    /// A token makes a node.
    Join {
        /// Its secret, or what stands for it.
        token: [u8; 16],
        /// Until when it is good: seconds since the Unix epoch.
        token_expires: u64,
        /// The node.
        entry: NodeEntry,
    },
    /// A node says something else of itself.
    Update {
        /// Which one.
        node: NodeId,
        /// What it says now.
        entry: NodeEntry,
    },
    /// A name is announced, or announced again with another URL.
    Announce {
        /// The name.
        name: String,
        /// Its URL.
        url: String,
    },
    /// A name that was announced and has not joined is forgotten.
    Withdraw(String),
    /// A node is none any more. Refused for the primary, and so for the last in-sync node.
    Remove(NodeId),
    /// The operator makes a data node primary, alone, in another generation: acknowledged writes may be lost.
    Force {
        /// Who.
        member: Member,
        /// The epoch that the operator saw: in another one nothing is done.
        from: Epoch,
    },
}

/// What became of a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was made.
    Changed,
    /// Nothing has changed, and why.
    Unchanged(String),
    /// A node has joined, under this id.
    Joined(NodeId),
}

type Decided = Result<Outcome, String>;

impl ClusterState {
    /// Before anything is known.
    #[must_use]
    pub fn empty(cluster: Uuid) -> ClusterState {
        ClusterState {
            cluster,
            record: None,
            nodes: BTreeMap::new(),
            next_node: 1,
            spent_tokens: BTreeMap::new(),
            removed: BTreeSet::new(),
            announced: BTreeMap::new(),
            identity: Vec::new(),
            history: VecDeque::new(),
            failovers: 0,
            failed_over_from: None,
        }
    }

    /// A new cluster of one node.
    #[must_use]
    pub fn of(
        cluster: Uuid,
        own: NodeId,
        first: NodeEntry,
        record: Record,
        identity: Vec<u8>,
    ) -> ClusterState {
        ClusterState {
            record: Some(record),
            nodes: BTreeMap::from([(own, first)]),
            next_node: own.0.saturating_add(1),
            identity,
            ..ClusterState::empty(cluster)
        }
    }

    /// Applies a decision that was made at a time, in milliseconds since the Unix epoch.
    pub fn apply(&mut self, decision: &Decision, at_ms: u64) -> Outcome {
        let decided = match decision {
            Decision::Role(command) => self.role(command, at_ms),
            Decision::Join { token, token_expires, entry } => self.join(*token, *token_expires, entry, at_ms),
            Decision::Update { node, entry } => self.update(*node, entry),
            Decision::Announce { name, url } => self.announce(name, url),
            Decision::Withdraw(name) => match self.announced.remove(name) {
                Some(_) => Ok(Outcome::Changed),
                None => Err(format!("{name} is not announced")),
            },
            Decision::Remove(node) => self.remove(*node),
            Decision::Force { member, from } => self.force(*member, *from, at_ms),
        };
        decided.unwrap_or_else(Outcome::Unchanged)
    }

    /// Takes all other nodes for removed: this one goes on without them.
    pub fn keep_only(&mut self, own: NodeId) {
        let gone = self.nodes.keys().copied().filter(|node| *node != own);
        self.removed.extend(gone);
        self.nodes.retain(|node, _| *node == own);
        self.failed_over_from = None;
    }

    /// Whether a node may hold a copy.
    #[must_use]
    pub fn is_data(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|entry| entry.kind == NodeKind::Data)
    }

    fn role(&mut self, command: &Command, at_ms: u64) -> Decided {
        let joins = match &command.change {
            Change::In(member) => Some(member.node),
            _ => None,
        };
        if let Some(node) = joins {
            let entry = self.nodes.get(&node);
            if !entry.is_some_and(|entry| entry.kind == NodeKind::Data && entry.mode == ReplicaMode::Sync) {
                return Err(format!("node {} is no synchronous data node of this cluster", node.0));
            }
        }
        let record = self.record.as_mut().ok_or("there is no cluster yet")?;
        let old = record.primary;
        if !record.decide(command) {
            return Err(
                "it was made from another state of the in-sync set, or is not allowed in this one".into()
            );
        }
        let reason = match &command.change {
            Change::Out(_) | Change::In(_) => None,
            Change::Promote(_) => Some(FailoverReason::Promotion),
            Change::HandOver { .. } => Some(FailoverReason::HandOver),
            Change::Start { .. } => Some(FailoverReason::Start),
            Change::StartWithout { .. } => Some(FailoverReason::StartWithout),
        };
        if let Some(reason) = reason {
            self.remember(old, reason, at_ms);
        }
        Ok(Outcome::Changed)
    }

    fn force(&mut self, member: Member, from: Epoch, at_ms: u64) -> Decided {
        if !self.is_data(member.node) {
            return Err(format!("node {} is no data node of this cluster", member.node.0));
        }
        let record = self.record.as_mut().ok_or("there is no cluster yet")?;
        if record.epoch != from {
            return Err("another epoch has begun in the meantime".into());
        }
        let old = record.primary;
        if !record.force(member) {
            return Err("no generation is left".into());
        }
        self.remember(old, FailoverReason::Force, at_ms);
        // Nobody fails back to a node that is none.
        let nodes = &self.nodes;
        self.failed_over_from.take_if(|home| !nodes.contains_key(home));
        Ok(Outcome::Changed)
    }

    fn remember(&mut self, old: NodeId, reason: FailoverReason, at_ms: u64) {
        let Some(record) = &self.record else { return };
        if old != record.primary {
            self.failovers += 1;
            self.failed_over_from = match self.failed_over_from {
                Some(home) if home == record.primary => None,
                Some(home) => Some(home),
                None => Some(old),
            };
        }
        self.history.push_back(Failover { old, new: record.primary, reason, epoch: record.epoch, at_ms });
        while self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
    }

    fn join(&mut self, token: [u8; 16], token_expires: u64, entry: &NodeEntry, at_ms: u64) -> Decided {
        let now = at_ms / 1000;
        self.spent_tokens.retain(|_, expires| expires.saturating_add(FORGET_TOKEN_AFTER) > now);
        if self.spent_tokens.contains_key(&token) {
            return Err("the token has been used".into());
        }
        if token_expires <= now {
            return Err("the token has expired".into());
        }
        if self.record.is_none() {
            return Err("there is no cluster yet".into());
        }
        self.name_is_free(&entry.name, None)?;
        let node = NodeId(self.next_node);
        self.next_node = self.next_node.checked_add(1).ok_or("no node id is left")?;
        self.spent_tokens.insert(token, token_expires);
        let mut entry = entry.clone();
        let announced = self.announced.remove(&entry.name);
        entry.announced_url = entry.announced_url.or(announced);
        self.nodes.insert(node, entry);
        Ok(Outcome::Joined(node))
    }

    fn update(&mut self, node: NodeId, entry: &NodeEntry) -> Decided {
        self.name_is_free(&entry.name, Some(node))?;
        let in_set = self.record.as_ref().is_some_and(|record| record.set.contains_key(&node));
        let known = self.nodes.get_mut(&node).ok_or_else(|| format!("there is no node {}", node.0))?;
        if known.kind != entry.kind {
            return Err("a node never becomes one of another kind".into());
        }
        if in_set && entry.mode == ReplicaMode::Async {
            return Err("a member of the in-sync set leaves it before it becomes asynchronous".into());
        }
        if known == entry {
            return Err("it says so already".into());
        }
        let mode = std::mem::replace(known, entry.clone()).mode;
        if mode != entry.mode
            && let Some(record) = &mut self.record
        {
            record.nodes_changed();
        }
        Ok(Outcome::Changed)
    }

    fn announce(&mut self, name: &str, url: &str) -> Decided {
        let known = self.nodes.values_mut().find(|entry| entry.name == name);
        if let Some(entry) = known {
            if entry.announced_url.as_deref() == Some(url) {
                return Err("it is announced so already".into());
            }
            entry.announced_url = Some(url.to_owned());
            return Ok(Outcome::Changed);
        }
        if self.announced.get(name).is_some_and(|known| known == url) {
            return Err("it is announced so already".into());
        }
        if !self.announced.contains_key(name) && self.announced.len() >= ANNOUNCED_MAX {
            return Err(format!(
                "{ANNOUNCED_MAX} names are announced and have not joined: withdraw some first"
            ));
        }
        self.announced.insert(name.to_owned(), url.to_owned());
        Ok(Outcome::Changed)
    }

    fn remove(&mut self, node: NodeId) -> Decided {
        if !self.nodes.contains_key(&node) {
            return Err(format!("there is no node {}", node.0));
        }
        if let Some(record) = &mut self.record {
            if record.primary == node {
                let last = if record.set.len() == 1 { ", and the last in-sync node" } else { "" };
                return Err(format!("node {} is the primary{last}", node.0));
            }
            if !record.change(&Change::Out(node)) {
                record.nodes_changed();
            }
        }
        self.nodes.remove(&node);
        self.removed.insert(node);
        // Nobody fails back to a node that is none.
        self.failed_over_from.take_if(|home| *home == node);
        Ok(Outcome::Changed)
    }

    fn name_is_free(&self, name: &str, but_for: Option<NodeId>) -> Result<(), String> {
        let taken = self.nodes.iter().any(|(node, entry)| entry.name == name && Some(*node) != but_for);
        if taken { Err(format!("another node is called {name}")) } else { Ok(()) }
    }
}

/// A map whose keys are no text, written as a list of pairs.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<[u8; 16], u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<[u8; 16], u64>, D::Error> {
        Ok(Vec::<([u8; 16], u64)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
pub(super) mod tests;
