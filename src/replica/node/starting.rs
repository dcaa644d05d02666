//! Starting the array without nodes that were in sync and do not come back.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::control::state::{Decision, Outcome};
use crate::replica::decisions::{Change, Member, NodeId};
use crate::units::Epoch;

use super::Node;

impl Node {
    /// Waits until requests are taken here; whether they are.
    pub fn wait_until_serving(&self, patience: Duration) -> bool {
        let deadline = self.now() + patience;
        let mut state = self.state.lock();
        loop {
            let serves = state.serving.is_some() && state.serving == state.role.serves();
            if serves || self.now() >= deadline || !self.lives() {
                return serves;
            }
            state = self.moved.wait_for(state, self.parts.timing.heartbeat);
        }
    }

    /// Waits until this node knows of an epoch behind this one.
    pub(in crate::replica) fn wait_for_epoch_after(&self, epoch: Epoch, patience: Duration) {
        let deadline = self.now() + patience;
        let mut state = self.state.lock();
        while state.role.record().epoch <= epoch && self.now() < deadline && self.lives() {
            state = self.moved.wait_for(state, self.parts.timing.heartbeat);
        }
    }

    /// All nodes of the in-sync set were down at once, and some never return: the one that has come farthest of the
    /// others that are heard now becomes primary. What only those held that are gone on without is lost. The new primary.
    ///
    /// # Errors
    /// `Exists` while there is a primary; `Busy` while a node of the set has neither said where it stands nor is named
    /// in `without`, or where nobody of it is left; `NoQuorum` where it is not decided within `patience`.
    pub fn start_without(&self, without: &BTreeSet<NodeId>, patience: Duration) -> Result<NodeId> {
        let deadline = self.now() + patience;
        loop {
            let (record, reports) = {
                let state = self.state.lock();
                (state.role.record().clone(), state.role.reports(self.now()))
            };
            let lives = record.names(self.parts.own)
                || record
                    .set
                    .iter()
                    .any(|(node, life)| reports.get(node).is_some_and(|(now, _)| now == life));
            if self.leads() || lives {
                return Err(Error::new(
                    ErrorKind::Exists,
                    "a node that is in sync is alive: nothing is lost",
                ));
            }
            let missing: Vec<NodeId> = record
                .set
                .keys()
                .copied()
                .filter(|node| !reports.contains_key(node) && !without.contains(node))
                .collect();
            let farthest = reports.iter().max_by_key(|(node, (_, position))| (*position, **node));
            if let (Some((node, (incarnation, _))), true) = (farthest, missing.is_empty()) {
                let primary = Member { node: *node, incarnation: *incarnation };
                let change =
                    Change::StartWithout { primary, reports: reports.clone(), without: without.clone() };
                let left = deadline.saturating_sub(self.now());
                match self.parts.control.decide(Decision::Role(record.command(change)), left)? {
                    Outcome::Changed | Outcome::Joined(_) => return Ok(primary.node),
                    // Another decision came first.
                    Outcome::Unchanged(_) => {}
                }
            }
            if self.now() >= deadline {
                let name = |node: &NodeId| {
                    let nodes = &self.parts.control.state().nodes;
                    nodes.get(node).map_or_else(|| node.0.to_string(), |entry| entry.name.clone())
                };
                let names: Vec<String> = missing.iter().map(name).collect();
                let what = match names.is_empty() {
                    true => "no node that was in sync has said where it stands".to_owned(),
                    false => format!("{} has not said where it stands", names.join(", ")),
                };
                return Err(Error::new(ErrorKind::Busy, what));
            }
            self.rest(self.parts.timing.heartbeat);
        }
    }
}
