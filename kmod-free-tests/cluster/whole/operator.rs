//! The operator: goes on without machines that do not return, forces a node to be the primary, and says whose data is to
//! be discarded where two sides have gone their own ways.

use std::collections::BTreeSet;

use sinter::replica::decisions::{Change, Command, Member, NodeId};
use sinter::units::Epoch;

use super::oracle::Loss;
use super::world::{Event, MILLISECOND, SECOND, Time, World, id, index};

/// Looks without anybody who serves, before something is done by force.
const PATIENCE: u32 = 4;
/// A node that is to be forced follows nobody until it is decided, or so long.
const HELD: Time = 2 * SECOND;

/// What the operator knows.
#[derive(Debug, Default)]
pub(super) struct Operator {
    /// Machines that do not return, for all that is known.
    away: BTreeSet<usize>,
    /// Nodes that were refused, because their past is another one.
    pub(super) split: BTreeSet<usize>,
    looks: u32,
    /// Nodes that follow nobody: until when, and while this is the epoch.
    held: Option<(usize, Time, Epoch)>,
}

impl World {
    pub(super) fn is_away(&self, node: usize) -> bool {
        self.operator.away.contains(&node)
    }

    /// Whether a node takes no stream, because it is about to be made the primary as it is.
    pub(super) fn is_held(&self, node: usize) -> bool {
        self.operator.held.is_some_and(|(held, until, epoch)| {
            held == node && self.now < until && self.nodes[node].record.epoch <= epoch
        })
    }

    /// A machine is lost, alone or with the power of all.
    pub(super) fn lose_machine(&mut self, node: usize) {
        if !self.operator.away.is_empty() {
            return;
        }
        let power = self.numbers.chance(1, 2);
        if self.numbers.chance(2, 3) {
            (0..self.nodes.len()).for_each(|node| self.fall(node, power));
        }
        self.fall(node, power);
        self.operator.away.insert(node);
        self.operator.looks = 0;
    }

    /// Machines that were thought lost are back.
    pub(super) fn return_machines(&mut self) {
        for node in std::mem::take(&mut self.operator.away) {
            let delay = self.numbers.below(100 * MILLISECOND);
            self.after(delay, Event::Start { node });
        }
    }

    pub(super) fn operate(&mut self) {
        let delay = 100 * MILLISECOND + self.numbers.below(300 * MILLISECOND);
        self.after(delay, Event::Operator);
        if let Some(node) = self.operator.split.pop_first() {
            return self.discard(node);
        }
        let epoch = self.consensus.record.epoch;
        let serves = |node: usize| {
            let life = self.nodes[node].life.as_ref();
            self.nodes[node].paused_until <= self.now && life.is_some_and(|life| life.serving == Some(epoch))
        };
        if self.calm || (0..self.nodes.len()).any(serves) {
            self.operator.looks = 0;
            if self.numbers.chance(1, 6) {
                self.return_machines();
            }
            return;
        }
        self.operator.looks += 1;
        let asked: Vec<usize> = (0..self.nodes.len()).filter(|node| self.may_be_asked(*node)).collect();
        if self.operator.away.is_empty() || asked.is_empty() {
            return;
        }
        let node = asked[self.numbers.index(asked.len())];
        if let Some(command) = self.start_without(node) {
            return self.propose(node, command);
        }
        if self.operator.looks > 3 * PATIENCE {
            return self.return_machines();
        }
        if self.operator.looks > PATIENCE && self.numbers.chance(1, 2) {
            self.ask_for_force(node);
        }
    }

    fn may_be_asked(&self, node: usize) -> bool {
        let lives = self.nodes[node].life.is_some() && self.nodes[node].paused_until <= self.now;
        lives && self.reaches_most(node)
    }

    /// What `start --without` proposes on a node.
    fn start_without(&self, node: usize) -> Option<Command> {
        let role = &self.nodes[node].life.as_ref()?.role;
        let (record, reports) = (role.record(), role.reports(self.clock(node)));
        let own = self.nodes[node].member(node)?;
        let without: BTreeSet<NodeId> = self.operator.away.iter().map(|node| id(*node)).collect();
        let lives = |(node, life)| reports.get(node).is_some_and(|(now, _)| now == life);
        if role.leads() || record.names(own) || record.set.iter().any(lives) {
            return None;
        }
        let known = |node| reports.contains_key(node) || without.contains(node);
        let farthest = reports.iter().max_by_key(|(node, (_, position))| (*position, **node));
        let (node, (incarnation, _)) = farthest.filter(|_| record.set.keys().all(known))?;
        let primary = Member { node: *node, incarnation: *incarnation };
        Some(record.command(Change::StartWithout { primary, reports: reports.clone(), without }))
    }

    /// What `promote --force` does on a node, where a majority is heard. Nobody forces a pool without the array's volumes.
    fn ask_for_force(&mut self, node: usize) {
        let life = self.nodes[node].life.as_ref().unwrap();
        let compared = life.compared || life.store.syncing();
        let holds_array = life.store.object_size(self.shared).is_some();
        if self.is_far(node)
            || life.serving.is_some()
            || compared && !self.planted.forced_while_compared
            || !holds_array
        {
            return;
        }
        let epoch = life.role.record().epoch;
        self.operator.held = Some((node, self.now + HELD, epoch));
        self.end_following(node);
        let member = self.nodes[node].member(node).unwrap();
        let delay = self.numbers.below(30 * MILLISECOND);
        self.after(delay, Event::Force { node, member, epoch });
    }

    pub(super) fn force(&mut self, node: usize, member: Member, from: Epoch) {
        let lives = self.nodes[node].member(node) == Some(member);
        if lives && self.reaches_most(node) && self.consensus.force(member, from) {
            self.losses.insert(self.consensus.record.epoch, Loss::Anything);
            self.oracle.seen.forced += 1;
            self.tell_decision();
        }
    }

    /// What may be gone where the array is started without some of those that were in the set: what was flushed is not,
    /// unless the pool of whoever goes on has been changed since the set named it.
    pub(super) fn loss_at(&self, command: &Command) -> Loss {
        match &command.change {
            Change::Start { .. } => Loss::Unflushed,
            Change::StartWithout { primary, .. } => {
                let named = self.consensus.record.set.get(&primary.node);
                let changed = self.nodes[index(primary.node)].pool_lost_in;
                match named.is_some_and(|incarnation| incarnation.0 > changed) {
                    true => Loss::Unflushed,
                    false => Loss::Anything,
                }
            }
            _ => Loss::Nothing,
        }
    }

    /// The side of a node is the one that is given up: its pool is emptied.
    fn discard(&mut self, node: usize) {
        assert!(self.consensus.record.epoch.generation > 1, "split brain, and nobody has forced anything");
        if self.nodes[node].life.is_none() || self.holds_all(node) {
            return;
        }
        self.oracle.seen.discarded += 1;
        self.die(node, true);
        self.nodes[node].pool_lost_in = self.lives;
        let seed = self.numbers.number();
        self.nodes[node].put_back(None, seed);
    }
}
