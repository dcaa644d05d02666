//! The role of one node: a machine of state, input and time.
//!
//! Nothing here waits, sends or looks at a clock. Whoever drives it hands it what has happened and the time of a
//! monotonic clock of this node that also counts while the machine sleeps, and does what it answers. The rules:
//!
//! - A write is acknowledged when every node that may be in the set has applied it *in this epoch*, and a member that
//!   knows of a higher epoch answers nothing for a lower one. A new primary comes from the old set. So what a former
//!   primary still acknowledges, its successor holds, and no clock is needed for that.
//! - A read needs the *lease*: every other member has promised, in answer to a heartbeat, not to begin as primary for
//!   longer than the primary counts. It is asked for after the data was read and before it is sent.
//! - *Out*: the decision comes first, then the primary stops waiting. *In*: the primary waits first, then, once the node
//!   holds all that was acknowledged without it, it asks for the decision.
//! - *Hand-over*: the primary takes nothing new, waits until all members have applied everything, and asks for the decision;
//!   from then on it answers nothing until it knows what came of it, however long that takes.
//!
//! While a command may still be decided, it counts as decided wherever that is the safer side.

mod leading;
mod reports;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use super::decisions::{Change, Incarnation, Member, NodeId, Position, Record};
use super::timing::Timing;
use crate::units::{Epoch, Lsn};

use self::leading::{Admitted, HandingOver, Leading, Peer};
use self::reports::Reports;
pub use self::words::{Action, Input, Message, PlantedFaults};

/// The machine.
#[derive(Debug)]
pub struct Role {
    own: Member,
    nodes: Vec<NodeId>,
    timing: Timing,
    faults: PlantedFaults,
    record: Record,
    position: Position,
    /// The pool is being compared.
    compared: bool,
    /// The highest epoch that this node knows to have begun.
    newest_epoch: Epoch,
    /// Until then this node does not begin as primary.
    promised_until: Duration,
    /// When the primary was heard last.
    heard_at: Duration,
    proposed_at: Option<Duration>,
    leading: Option<Leading>,
    /// The epoch that it was last told to begin, and not to stop.
    begun: Option<Epoch>,
    /// The epoch that it could not begin, and when it tries again, where nobody else has taken over until then.
    gave_way: Option<(Epoch, Duration)>,
    /// Where the nodes of the set stand that it names in earlier lives.
    reports: Reports,
}

impl Role {
    /// A node at its start. `nodes` are all that keep data, this one among them or not; `record` is the newest decision
    /// that this node has kept; `position` is how far its pool has come.
    #[must_use]
    pub fn new(
        own: Member,
        nodes: Vec<NodeId>,
        record: Record,
        position: Position,
        now: Duration,
        timing: Timing,
        faults: PlantedFaults,
    ) -> Role {
        let newest_epoch = record.epoch.max(position.epoch);
        // In its first life the first node of a cluster is primary by no decision.
        let leads = record.primary == own.node && record.names(own);
        let leading = leads.then(|| Leading::of(record.epoch, now));
        Role {
            own,
            nodes,
            timing,
            faults,
            record,
            position,
            compared: false,
            newest_epoch,
            // Nobody was promised anything in this life, and whoever was in an earlier one, the set names that life.
            promised_until: now,
            heard_at: now,
            proposed_at: None,
            leading,
            begun: None,
            gave_way: None,
            reports: Reports::default(),
        }
    }

    /// These are the nodes that keep data and may be in the set, from now on. What was asked for others before is not
    /// decided any more, because the version of the set has changed with them; nobody waits for them.
    pub fn know(&mut self, nodes: Vec<NodeId>) {
        self.nodes = nodes;
        if let Some(leading) = &mut self.leading {
            leading.admitted.retain(|node, _| self.nodes.contains(node));
        }
    }

    /// Whether the pool is being compared: from then on it holds nothing that anybody could go on from, and this node
    /// does not begin as primary, though the set may name it still.
    pub fn set_compared(&mut self, compared: bool) {
        self.compared = compared;
    }

    /// Whether this node has been chosen as primary, or is one: it serves, or will as soon as it may.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leading.is_some()
    }

    /// The newest decision that this node knows.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Where nodes stand that the set names in earlier lives, as far as they say so now: one that is not heard any more
    /// is not among them.
    #[must_use]
    pub fn reports(&self, now: Duration) -> BTreeMap<NodeId, (Incarnation, Position)> {
        self.reports.since(&self.record, now.saturating_sub(self.timing.report_counts_for))
    }

    /// In which life another node has answered this primary's heartbeats last.
    #[must_use]
    pub fn known_life(&self, node: NodeId) -> Option<Incarnation> {
        self.leading.as_ref().and_then(|leading| leading.peers.get(&node)).map(|peer| peer.incarnation)
    }

    /// When another node was heard last: on a primary any of the others, elsewhere the primary.
    #[must_use]
    pub fn heard_from(&self, node: NodeId) -> Option<Duration> {
        match &self.leading {
            Some(leading) => leading.peers.get(&node).map(|peer| peer.heard_at),
            None => (self.record.primary == node).then_some(self.heard_at),
        }
    }

    /// The epoch in which this node serves as primary.
    #[must_use]
    pub fn serves(&self) -> Option<Epoch> {
        self.leading.as_ref().filter(|leading| leading.begun).map(|leading| leading.epoch)
    }

    /// Whether new requests are taken; others are held or sent elsewhere.
    #[must_use]
    pub fn takes_requests(&self) -> bool {
        let leading = self.leading.as_ref().filter(|leading| leading.begun);
        leading.is_some_and(|leading| leading.handing_over.is_none() || self.faults.served_after_hand_over)
    }

    /// Whether operations of this epoch may be applied here, and answered for. Once it is known to have begun, nothing
    /// is answered for an earlier one, nor served in it.
    pub fn accepts(&mut self, epoch: Epoch) -> bool {
        let accepted = epoch >= self.newest_epoch || self.faults.old_epochs_answered;
        self.newest_epoch = self.newest_epoch.max(epoch);
        if accepted {
            self.leading.take_if(|leading| leading.epoch < epoch);
        }
        accepted
    }

    /// The newest operation that may be acknowledged: every node that may be in the set has applied it. `None` where
    /// this node is not the one to say so.
    #[must_use]
    pub fn acknowledged(&self) -> Option<Lsn> {
        self.lowest(self.position.lsn, |peer| peer.applied)
    }

    /// The newest operation that a FLUSH may be answered for, this node itself having made everything up to `own`
    /// durable.
    #[must_use]
    pub fn durable(&self, own: Lsn) -> Option<Lsn> {
        self.lowest(own, |peer| peer.durable)
    }

    /// Whether what was read before this moment may be answered.
    #[must_use]
    pub fn may_read(&self, now: Duration) -> bool {
        let Some(leading) = self.answering() else { return false };
        self.waited_for(leading).into_iter().all(|member| {
            let peer = leading.peer(member);
            peer.and_then(|peer| peer.promised).is_some_and(|sent| now < sent + self.timing.lease)
        })
    }

    fn lowest(&self, own: Lsn, of: impl Fn(&Peer) -> Lsn) -> Option<Lsn> {
        let leading = self.answering()?;
        let others = self.waited_for(leading).into_iter();
        Some(others.map(|member| leading.peer(member).map_or(Lsn(0), &of)).fold(own, Lsn::min))
    }

    /// What this node has as primary while it may answer.
    fn answering(&self) -> Option<&Leading> {
        let asked = |leading: &&Leading| leading.handing_over.is_some_and(|it| it.asked.is_some());
        let may =
            |leading: &&Leading| leading.begun && (!asked(leading) || self.faults.served_after_hand_over);
        self.leading.as_ref().filter(may)
    }

    /// Whether this node leads, and a member's answers are waited for: the set names it, or is about to.
    #[must_use]
    pub fn waits_for(&self, member: Member) -> bool {
        self.leading.as_ref().is_some_and(|leading| self.waited_for(leading).contains(&member))
    }

    /// All other nodes that may be in the set.
    fn waited_for(&self, leading: &Leading) -> Vec<Member> {
        let admitted = leading.admitted.iter().map(|(node, admitted)| (node, &admitted.incarnation));
        let admitted = admitted.filter(|_| !self.faults.asked_before_waited_for);
        let listed = self.record.set.iter();
        let silent = |node: &NodeId| {
            let heard = leading.peers.get(node).map(|peer| peer.heard_at);
            self.faults.out_before_decided
                && heard.is_some_and(|at| at + self.timing.put_out_after < self.heard_at)
        };
        let members = listed.chain(admitted).filter(|(node, _)| **node != self.own.node && !silent(node));
        members.map(|(node, incarnation)| Member { node: *node, incarnation: *incarnation }).collect()
    }

    /// This node has committed or applied operations; what that leads to, `handle` says.
    pub fn moved(&mut self, now: Duration, position: Position) {
        if let Some(leading) = &mut self.leading {
            // Nothing waited for these until now.
            let idle = leading.peers.values_mut().filter(|peer| peer.applied >= self.position.lsn);
            idle.for_each(|peer| peer.progressed_at = now);
        }
        self.position = position;
        self.newest_epoch = self.newest_epoch.max(position.epoch);
    }

    /// Takes in what has happened at `now`; what is to be done.
    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Tick => {}
            Input::Decided(record) => self.decided(now, record),
            Input::Heard(from, message) => self.heard(now, from, message, &mut actions),
            Input::Moved(position) => self.moved(now, position),
            Input::Applied { by, epoch, applied, durable } => self.applied(now, by, epoch, applied, durable),
            Input::CaughtUp(member) => self.admit(member),
            Input::Failed(member) => {
                let leading = self.leading.as_mut();
                let peer = leading.and_then(|leading| leading.peers.get_mut(&member.node));
                if let Some(peer) = peer.filter(|peer| peer.incarnation == member.incarnation) {
                    peer.failed = true;
                }
            }
            Input::HandOver(node) => {
                let target = self.record.set.get(&node).map(|life| Member { node, incarnation: *life });
                let other = target.filter(|target| target.node != self.own.node);
                if let (Some(target), Some(leading)) = (other, self.leading.as_mut().filter(|it| it.serves)) {
                    leading.handing_over.get_or_insert(HandingOver { target, asked: None });
                }
            }
            Input::Begun(epoch) => {
                let leading = self.leading.as_mut().filter(|leading| leading.epoch == epoch && leading.begun);
                leading.into_iter().for_each(|leading| leading.serve(now));
            }
            Input::CannotBegin(epoch) => self.give_way(now, epoch),
        }
        self.act(now, &mut actions);
        if let Some(epoch) =
            self.begun.take_if(|epoch| self.leading.as_ref().is_none_or(|it| it.epoch != *epoch))
        {
            actions.push(Action::Stop(epoch));
        }
        actions
    }

    /// Leaves a term that cannot begin to the other members: they hear nothing more of it.
    fn give_way(&mut self, now: Duration, epoch: Epoch) {
        let others = self.record.set.keys().any(|node| *node != self.own.node);
        let left = self.leading.take_if(|it| others && it.epoch == epoch && it.begun && !it.serves);
        if left.is_some() {
            self.gave_way = Some((epoch, now + self.timing.stall));
        }
    }

    fn decided(&mut self, now: Duration, record: Record) {
        if record.version <= self.record.version {
            return;
        }
        self.record = record;
        self.newest_epoch = self.newest_epoch.max(self.record.epoch);
        self.proposed_at = None;
        let epoch = self.record.epoch;
        self.leading.take_if(|leading| leading.epoch < epoch);
        let chosen = self.record.primary == self.own.node && self.is_member() && epoch >= self.newest_epoch;
        match &mut self.leading {
            Some(leading) => {
                let record = &self.record;
                leading.admitted.retain(|node, admitted| record.set.get(node) != Some(&admitted.incarnation));
            }
            None if chosen => {
                self.leading = Some(Leading::of(epoch, now));
            }
            // A new primary gets its time to be heard.
            None => self.heard_at = now,
        }
    }

    fn heard(&mut self, now: Duration, from: NodeId, message: Message, actions: &mut Vec<Action>) {
        match message {
            Message::Heartbeat { epoch, sent_at } => {
                if !self.accepts(epoch) {
                    return;
                }
                self.heard_at = now;
                self.promised_until = self.promised_until.max(now + self.timing.promise);
                actions.push(Action::Send(from, Message::Heard { epoch, sent_at, by: self.own }));
            }
            Message::Heard { epoch, sent_at, by } => {
                let Some(leading) = self.leading.as_mut().filter(|leading| leading.epoch == epoch) else {
                    return;
                };
                let peer = leading.peer_mut(by, now);
                peer.promised = peer.promised.max(Some(sent_at));
                peer.heard_at = now;
            }
            Message::Stands { version, by, position } => {
                self.reports.note(version, by, position, now);
            }
        }
    }

    fn applied(&mut self, now: Duration, by: Member, epoch: Epoch, applied: Lsn, durable: Lsn) {
        let Some(leading) = self.leading.as_mut().filter(|leading| leading.epoch == epoch) else { return };
        if leading.peer(by).is_none() {
            leading.keep_early(by, applied, durable);
            return;
        }
        let peer = leading.peer_mut(by, now);
        if applied > peer.applied {
            peer.progressed_at = now;
        }
        peer.applied = peer.applied.max(applied);
        peer.durable = peer.durable.max(durable);
    }

    /// Waits for a node from now on, and asks for its place in the set.
    fn admit(&mut self, member: Member) {
        let listed = self.record.set.contains_key(&member.node);
        let Some(leading) = self.leading.as_mut().filter(|leading| leading.begun) else { return };
        if let Some(peer) = leading.peers.get_mut(&member.node) {
            peer.failed = false;
        }
        if !listed && leading.peer(member).is_some() {
            // One that was admitted in an earlier life may still be decided: it stays, and is put out first.
            let admitted =
                Admitted { incarnation: member.incarnation, holds_all_at: self.position.lsn, asked: false };
            leading.admitted.entry(member.node).or_insert(admitted);
        }
    }

    fn act(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let epoch = self.record.epoch;
        let again = self.gave_way.take_if(|(of, at)| *of != epoch || now >= *at).map(|(of, _)| of);
        if self.leading.is_none()
            && again == Some(epoch)
            && epoch >= self.newest_epoch
            && self.record.primary == self.own.node
            && self.is_member()
        {
            self.leading = Some(Leading::of(epoch, now));
        }
        if self.leading.is_some() {
            self.lead(now, actions);
        } else if now >= self.heard_at + self.timing.ask_after {
            self.ask(now, actions);
        }
    }

    fn lead(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let Some(leading) = self.leading.as_mut() else { return };
        let ready = match self.record.handed_over_at {
            Some(at) => self.position.lsn >= at,
            None => now >= self.promised_until,
        };
        if !leading.begun && ready && !self.compared {
            leading.begun = true;
            // A former term may have ended in the same moment.
            actions.extend(self.begun.replace(leading.epoch).map(Action::Stop));
            actions.push(Action::Begin(leading.epoch));
        }
        if self.compared && !leading.begun {
            // Who is not heard is replaced by a member that can begin.
            return;
        }
        let epoch = leading.epoch;
        if leading.beaten_at.is_none_or(|at| now >= at + self.timing.heartbeat) {
            leading.beaten_at = Some(now);
            let others = self.nodes.iter().filter(|node| **node != self.own.node);
            let beat = |node: &NodeId| Action::Send(*node, Message::Heartbeat { epoch, sent_at: now });
            actions.extend(others.map(beat));
        }
        self.heard_at = now;
        if self.hand_over(now, actions) {
            return;
        }
        // Before this node serves, nobody has anything to answer for, and others may have to take over from it.
        let Some(leading) = self.leading.as_mut().filter(|leading| leading.serves) else { return };
        let (put_out_after, stall, newest) =
            (self.timing.put_out_after, self.timing.stall, self.position.lsn);
        let silent = |leading: &Leading, node: NodeId, incarnation: Incarnation| {
            let Some(peer) = leading.peer(Member { node, incarnation }) else {
                return now >= leading.since + put_out_after;
            };
            let stuck = peer.applied < newest && now >= peer.progressed_at + stall;
            peer.failed || stuck || now >= peer.heard_at + put_out_after
        };
        let members = self.record.set.iter().filter(|(node, _)| **node != self.own.node);
        let mut gone = members.filter(|(node, incarnation)| silent(leading, **node, **incarnation));
        if let Some((node, _)) = gone.next() {
            let out = Change::Out(*node);
            return self.propose(now, out, actions);
        }
        let waiting: Vec<(NodeId, Admitted)> =
            leading.admitted.iter().map(|(node, it)| (*node, *it)).collect();
        for (node, admitted) in waiting {
            let member = Member { node, incarnation: admitted.incarnation };
            let applied = leading.peer(member).map_or(Lsn(0), |peer| peer.applied);
            if !admitted.asked && silent(leading, node, admitted.incarnation) {
                leading.admitted.remove(&node);
            } else if admitted.asked
                || applied >= admitted.holds_all_at
                || self.faults.asked_before_it_holds_all
            {
                leading.admitted.insert(node, Admitted { asked: true, ..admitted });
                return self.propose(now, Change::In(member), actions);
            }
        }
    }

    /// Goes on with a hand-over; whether it keeps everything else waiting.
    fn hand_over(&mut self, now: Duration, actions: &mut Vec<Action>) -> bool {
        let (drained, version) = (self.acknowledged() == Some(self.position.lsn), self.record.version);
        let Some(leading) = self.leading.as_mut() else { return false };
        let Some(under_way) = leading.handing_over.as_mut() else { return false };
        let target = under_way.target;
        if under_way.asked.is_none() && drained && self.record.names(target) {
            under_way.asked = Some(version);
        }
        match under_way.asked {
            Some(asked) if asked == version => {
                let at = self.position.lsn;
                self.propose(now, Change::HandOver { target, at }, actions);
                return true;
            }
            None if self.record.names(target) => {}
            // The target has left the set; or another decision came first, so that this one will not come any more.
            _ => leading.handing_over = None,
        }
        false
    }

    /// The primary is silent: a member proposes itself; one that is named in an earlier life says where it stands.
    fn ask(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.is_member() {
            let incarnation = self.record.set.get(&self.own.node).copied().unwrap_or_default();
            if self.record.primary != self.own.node && !self.compared {
                self.propose(now, Change::Promote(Member { incarnation, ..self.own }), actions);
            }
            return;
        }
        if !self.record.set.contains_key(&self.own.node) || !self.due(now) {
            return;
        }
        let version = self.record.version;
        self.reports.note(version, self.own, self.position, now);
        let message = Message::Stands { version, by: self.own, position: self.position };
        let others = self.nodes.iter().filter(|node| **node != self.own.node);
        actions.extend(others.map(|node| Action::Send(*node, message.clone())));
        let primary = self.own;
        // One that has gone again since it said where it stood was not ahead of whoever starts.
        let change = Change::Start { primary, reports: self.reports.all(version) };
        if !self.compared && self.record.clone().change(&change) {
            actions.push(Action::Propose(self.record.command(change)));
        }
        self.proposed_at = Some(now);
    }

    /// Whether the set names this node in this life.
    fn is_member(&self) -> bool {
        let listed = self.record.set.contains_key(&self.own.node);
        self.record.names(self.own) || listed && self.faults.any_incarnation
    }

    fn due(&self, now: Duration) -> bool {
        self.proposed_at.is_none_or(|at| now >= at + self.timing.repeat_after)
    }

    fn propose(&mut self, now: Duration, change: Change, actions: &mut Vec<Action>) {
        if self.due(now) {
            self.proposed_at = Some(now);
            actions.push(Action::Propose(self.record.command(change)));
        }
    }
}
