//! What the consensus group decides: who is primary, and who is in the in-sync set.
//!
//! It only orders decisions. Every command names the epoch and the version of the set that it was made from, and does
//! nothing when they have changed by the time it is applied: so whoever proposes may repeat itself, late commands are
//! harmless, and a decision is always made from what its proposer knew.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::units::{Epoch, Lsn};

/// A node of the cluster. Never given out twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u32);

/// One life of a node with one pool: another one after every start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// Counts the changes of the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SetVersion(pub u64);

/// A node in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Which node.
    pub node: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

/// How far a node has come: never compare numbers of operations without their epochs, a number may have been given
/// out again by a later primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The epoch of the newest operation.
    pub epoch: Epoch,
    /// Its number.
    pub lsn: Lsn,
}

/// The record that decisions change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The term of the primary.
    pub epoch: Epoch,
    /// Who is primary; always in the set.
    pub primary: NodeId,
    /// Who holds every acknowledged write, each in one of its lives.
    pub set: BTreeMap<NodeId, Incarnation>,
    /// Raised by every decision.
    pub version: SetVersion,
    /// Where the primary was handed over to: it begins once it has applied everything up to there, and need not wait
    /// for its promises, because the former one serves nothing any more.
    pub handed_over_at: Option<Lsn>,
}

/// A proposal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The epoch that it was made from.
    pub epoch: Epoch,
    /// The version that it was made from.
    pub version: SetVersion,
    /// What is to be changed.
    pub change: Change,
}

/// What a command changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A member leaves the set: the primary of the epoch asks for this, or a member that stops, for itself.
    Out(NodeId),
    /// A node that holds everything joins the set; only the primary of the epoch asks for this.
    In(Member),
    /// A member that hears nothing from its primary becomes primary, alone in the set.
    Promote(Member),
    /// The primary, which serves nothing any more and whose members have all applied everything, hands over to one of
    /// them; the set stays.
    HandOver {
        /// The new primary.
        target: Member,
        /// The last operation of the former one.
        at: Lsn,
    },
    /// No node has the incarnation that the set names: the one that has come farthest becomes primary, alone. Every
    /// node of the set has said where it stands.
    Start {
        /// The new primary.
        primary: Member,
        /// What the nodes of the set have said.
        reports: BTreeMap<NodeId, (Incarnation, Position)>,
    },
    /// The same, but the operator goes on without some nodes of the set: these need not have said where they stand,
    /// and what only they hold is lost.
    StartWithout {
        /// The new primary.
        primary: Member,
        /// What the nodes of the set have said; a node that is gone on without may be among them.
        reports: BTreeMap<NodeId, (Incarnation, Position)>,
        /// Whom the operator goes on without.
        without: BTreeSet<NodeId>,
    },
}

impl Record {
    /// The record of a new cluster: one node.
    #[must_use]
    pub fn of(first: Member) -> Record {
        Record {
            epoch: Epoch { generation: 0, number: 1 },
            primary: first.node,
            set: BTreeMap::from([(first.node, first.incarnation)]),
            version: SetVersion(1),
            handed_over_at: None,
        }
    }

    /// Whether the set names this node in this life.
    #[must_use]
    pub fn names(&self, member: Member) -> bool {
        self.set.get(&member.node) == Some(&member.incarnation)
    }

    /// A command made from this record.
    #[must_use]
    pub fn command(&self, change: Change) -> Command {
        Command { epoch: self.epoch, version: self.version, change }
    }

    /// Applies a command; whether it changed anything. It does not where it was made from another record, or asks for
    /// what must not be.
    pub fn decide(&mut self, command: &Command) -> bool {
        command.epoch == self.epoch && command.version == self.version && self.change(&command.change)
    }

    /// Makes a change whatever record it was made from.
    pub fn change(&mut self, change: &Change) -> bool {
        let changed = match change {
            Change::Out(node) => *node != self.primary && self.set.remove(node).is_some(),
            Change::In(member) => {
                // A node that is still listed in an earlier life goes out first.
                let new = !self.set.contains_key(&member.node);
                if new {
                    self.set.insert(member.node, member.incarnation);
                }
                new
            }
            Change::Promote(member) => {
                let allowed = self.names(*member) && member.node != self.primary;
                if allowed {
                    self.begin_epoch(*member);
                }
                allowed
            }
            Change::HandOver { target, at } => {
                let allowed = self.names(*target) && target.node != self.primary;
                if allowed {
                    self.epoch.number += 1;
                    self.primary = target.node;
                    self.handed_over_at = Some(*at);
                }
                allowed
            }
            Change::Start { primary, reports } => self.start(*primary, reports, &BTreeSet::new()),
            Change::StartWithout { primary, reports, without } => self.start(*primary, reports, without),
        };
        self.version.0 += u64::from(changed);
        changed
    }

    /// Other nodes may be in the set from now on: commands that were made before do nothing any more.
    pub fn nodes_changed(&mut self) {
        self.version.0 += 1;
    }

    /// Begins another generation with one node alone, whatever it holds; the only way to raise the generation, and no
    /// command: an operator alone may ask for it, because acknowledged writes may be lost. Refused where the node's
    /// generation could not be told from those before it.
    pub fn force(&mut self, primary: Member) -> bool {
        let Some(generation) = self.epoch.generation.checked_add(1) else { return false };
        self.epoch = Epoch { generation, number: 0 };
        self.begin_epoch(primary);
        self.version.0 += 1;
        true
    }

    fn start(
        &mut self,
        primary: Member,
        reports: &BTreeMap<NodeId, (Incarnation, Position)>,
        without: &BTreeSet<NodeId>,
    ) -> bool {
        let reborn = |(node, incarnation): (&NodeId, &Incarnation)| match reports.get(node) {
            Some((now, _)) => now != incarnation,
            None => without.contains(node),
        };
        // Whoever is in a set holds something. Where nobody does any more, all pools of the set are lost, and what they held may
        // be with a node that is not in it: that is for an operator.
        let holds_something = |position: &Position| position.lsn > Lsn(0);
        let farthest = reports.iter().max_by_key(|(node, (_, position))| (*position, **node));
        let allowed = self.set.iter().all(reborn)
            && reports.keys().all(|node| self.set.contains_key(node))
            && farthest.is_some_and(|(node, (now, position))| {
                *node == primary.node && *now == primary.incarnation && holds_something(position)
            });
        if allowed {
            self.begin_epoch(primary);
        }
        allowed
    }

    fn begin_epoch(&mut self, primary: Member) {
        self.epoch.number += 1;
        self.primary = primary.node;
        self.set = BTreeMap::from([(primary.node, primary.incarnation)]);
        self.handed_over_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u32, life: u64) -> Member {
        Member { node: NodeId(node), incarnation: Incarnation(life) }
    }

    fn two() -> Record {
        let mut record = Record::of(member(1, 10));
        assert!(record.decide(&record.clone().command(Change::In(member(2, 20)))));
        record
    }

    #[test]
    fn p7_a_command_from_another_record_does_nothing() {
        let mut record = two();
        let late = record.command(Change::Out(NodeId(2)));
        let promoted = record.command(Change::Promote(member(2, 20)));
        assert!(record.decide(&promoted));
        let after = record.clone();
        assert!(!record.decide(&late) && !record.decide(&promoted));
        assert_eq!(record, after);
        assert_eq!((record.epoch.number, record.primary, record.set.len()), (2, NodeId(2), 1));
    }

    #[test]
    fn p7_only_a_member_in_the_life_that_the_set_names_is_promoted() {
        for who in [member(2, 21), member(3, 30), member(1, 10)] {
            let mut record = two();
            assert!(!record.decide(&record.clone().command(Change::Promote(who))), "{who:?}");
        }
    }

    #[test]
    fn p7_a_hand_over_keeps_the_set() {
        let mut record = two();
        let to = |member| Change::HandOver { target: member, at: Lsn(7) };
        for who in [member(1, 10), member(2, 21), member(3, 30)] {
            assert!(!record.clone().change(&to(who)), "{who:?}");
        }
        assert!(record.change(&to(member(2, 20))));
        assert_eq!((record.primary, record.set.len(), record.handed_over_at), (NodeId(2), 2, Some(Lsn(7))));
        assert!(record.change(&Change::Promote(member(1, 10))));
        assert_eq!((record.primary, record.set.len(), record.handed_over_at), (NodeId(1), 1, None));
    }

    #[test]
    fn p7_a_primary_is_never_put_out_and_a_listed_node_never_joins_twice() {
        let mut record = two();
        assert!(!record.decide(&record.clone().command(Change::Out(NodeId(1)))));
        assert!(!record.decide(&record.clone().command(Change::In(member(2, 21)))));
        assert!(record.decide(&record.clone().command(Change::Out(NodeId(2)))));
        assert!(record.decide(&record.clone().command(Change::In(member(2, 21)))));
    }

    #[test]
    fn p7_an_array_of_nobody_starts_only_when_all_have_said_where_they_stand() {
        let at = |lsn| Position { epoch: Epoch { generation: 0, number: 1 }, lsn: Lsn(lsn) };
        let report = |node, life, lsn| (NodeId(node), (Incarnation(life), at(lsn)));
        let start = |primary, reports: &[(NodeId, (Incarnation, Position))]| Change::Start {
            primary,
            reports: reports.iter().copied().collect(),
        };
        let refused = [
            start(member(1, 11), &[report(1, 11, 5)]),
            // One of them still lives.
            start(member(1, 11), &[report(1, 11, 5), report(2, 20, 4)]),
            // The other has come farther.
            start(member(1, 11), &[report(1, 11, 5), report(2, 21, 6)]),
            start(member(1, 12), &[report(1, 11, 5), report(2, 21, 4)]),
            // Both have lost their pools.
            start(member(1, 11), &[report(1, 11, 0), report(2, 21, 0)]),
            start(member(2, 21), &[report(1, 11, 0), report(2, 21, 0)]),
            // Somebody who was not in the set.
            start(member(3, 31), &[report(1, 11, 5), report(2, 21, 4), report(3, 31, 9)]),
        ];
        for change in refused {
            let mut record = two();
            assert!(!record.change(&change), "{change:?}");
        }
        let mut record = two();
        assert!(record.change(&start(member(2, 21), &[report(1, 11, 5), report(2, 21, 6)])));
        assert_eq!((record.primary, record.set.len(), record.epoch.number), (NodeId(2), 1, 2));
    }

    #[test]
    fn p7_an_operator_may_go_on_without_those_that_do_not_report() {
        let at = |lsn| Position { epoch: Epoch { generation: 0, number: 1 }, lsn: Lsn(lsn) };
        let report = |node, life, lsn| (NodeId(node), (Incarnation(life), at(lsn)));
        let start =
            |primary, reports: &[(NodeId, (Incarnation, Position))], without: &[u32]| Change::StartWithout {
                primary,
                reports: reports.iter().copied().collect(),
                without: without.iter().map(|node| NodeId(*node)).collect(),
            };
        let refused = [
            // Node 2 is neither named nor heard.
            start(member(1, 11), &[report(1, 11, 5)], &[]),
            start(member(1, 11), &[report(1, 11, 5)], &[3]),
            // It lives.
            start(member(1, 11), &[report(1, 11, 5), report(2, 20, 4)], &[2]),
            // It has come farther, and says so.
            start(member(1, 11), &[report(1, 11, 5), report(2, 21, 6)], &[2]),
            start(member(1, 11), &[], &[1, 2]),
        ];
        for change in refused {
            let mut record = two();
            assert!(!record.change(&change), "{change:?}");
        }
        let mut record = two();
        assert!(record.change(&start(member(1, 11), &[report(1, 11, 5)], &[2])));
        assert_eq!((record.primary, record.set.len()), (NodeId(1), 1));
        assert_eq!(record.epoch, Epoch { generation: 0, number: 2 });
    }

    #[test]
    fn p7_force_alone_raises_the_generation() {
        let mut record = two();
        let before = record.clone();
        let late = record.command(Change::Promote(member(2, 20)));
        assert!(record.force(member(3, 30)));
        assert_eq!(record.epoch, Epoch { generation: 1, number: 1 });
        assert_eq!((record.primary, record.set.len()), (NodeId(3), 1));
        assert!(record.version > before.version && record.epoch > before.epoch);
        assert!(!record.decide(&late));
        record.epoch.generation = u32::MAX;
        let last = record.clone();
        assert!(!record.force(member(1, 10)));
        assert_eq!(record, last);
    }
}
