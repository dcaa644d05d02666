//! A cluster under one seed: nodes that keep a log, an unkind network between them, and a consensus group that is as
//! unkind as it may be.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BinaryHeap;
use std::time::Duration;

use sinter::replica::decisions::{Command, Incarnation, Member, NodeId, Position, Record};
use sinter::replica::role::{Action, Input, PlantedFaults, Role};
use sinter::replica::timing::Timing;
use sinter::sync::seeded::SeededNumbers;
use sinter::units::{Epoch, Lsn};

use crate::consensus::Consensus;
use crate::nodes::{Event, Life, Net, Node, Read, Time, len, position};
use crate::oracle::{KEYS, Log, Operation, Oracle, newest_of};

const MILLISECOND: Time = 1000;
const SECOND: Time = 1000 * MILLISECOND;
/// Operations shipped together.
const SHIPPED_MAX: usize = 40;
/// All of them vote; where only two keep data, the third is a witness.
const VOTERS: usize = 3;

/// Faults that are planted outside of the role.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Planted {
    pub(crate) role: PlantedFaults,
    /// Commands are applied whatever record they were made from.
    pub(crate) no_precondition: bool,
    /// Reads are answered without a lease.
    pub(crate) no_lease: bool,
    /// Logs are compared by the number of their newest operation alone.
    pub(crate) bare_numbers: bool,
}

pub(crate) struct World {
    pub(crate) oracle: Oracle,
    numbers: SeededNumbers,
    planted: Planted,
    timing: Timing,
    now: Time,
    events: BinaryHeap<Reverse<(Time, u64, usize)>>,
    waiting: BTreeMap<usize, Event>,
    scheduled: u64,
    nodes: Vec<Node>,
    /// Until when nothing passes from one node to another.
    cut: [[Time; VOTERS]; VOTERS],
    consensus: Consensus,
    lives: u64,
    names: u64,
    /// Nodes only fall asleep, and links break: the history of those that wake up believing that nothing has changed.
    sleepy: bool,
    calm: bool,
    clients: bool,
}

impl World {
    pub(crate) fn new(seed: u64, planted: Planted) -> World {
        let mut numbers = SeededNumbers::new(seed);
        let data_nodes = 2 + numbers.index(2);
        let first = Member { node: NodeId(0), incarnation: Incarnation(1) };
        let record = Record::of(first);
        let nodes = (0..data_nodes).map(|_| Node {
            life: None,
            log: Log::new(),
            durable: 0,
            record: record.clone(),
            decisions: 0,
            paused_until: 0,
            gains: i64::try_from(numbers.below(201)).unwrap() - 100,
        });
        let nodes = nodes.collect();
        let mut world = World {
            oracle: Oracle::default(),
            numbers,
            planted,
            timing: Timing::default(),
            now: 0,
            events: BinaryHeap::new(),
            waiting: BTreeMap::new(),
            scheduled: 0,
            nodes,
            cut: [[0; VOTERS]; VOTERS],
            consensus: Consensus::new(record),
            lives: 0,
            names: 0,
            sleepy: false,
            calm: false,
            clients: true,
        };
        world.sleepy = world.numbers.chance(1, 3);
        for node in 0..data_nodes {
            world.after(0, Event::Start { node });
        }
        world.after(0, Event::Client);
        world.after(SECOND, Event::Fault);
        world
    }

    /// Goes on for so long.
    pub(crate) fn run(&mut self, seconds: u64) {
        let end = self.now + seconds * SECOND;
        while let Some(Reverse((at, _, slot))) = self.events.peek().copied() {
            if at > end {
                break;
            }
            self.events.pop();
            let event = self.waiting.remove(&slot).unwrap();
            self.now = at;
            self.step(event);
        }
        self.now = end;
    }

    /// (7): nothing fails any more; within a bounded time all nodes are in the set, and equal.
    pub(crate) fn heal(&mut self) {
        self.calm = true;
        self.cut = [[0; VOTERS]; VOTERS];
        for node in &mut self.nodes {
            node.paused_until = 0;
        }
        self.run(8);
        let before = self.oracle.writes;
        self.run(1);
        assert!(self.oracle.writes > before, "a whole array takes no writes");
        self.clients = false;
        self.run(2);
        let serving: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.life(*node).is_some_and(|life| life.role.serves().is_some()))
            .collect();
        assert_eq!(serving.len(), 1, "{serving:?} serve");
        assert_eq!(
            self.consensus.record.set.len(),
            self.nodes.len(),
            "all are in the set: {:?}",
            self.consensus.record
        );
        for node in &self.nodes {
            assert_eq!(node.log, self.nodes[serving[0]].log, "all nodes are equal");
        }
    }

    fn after(&mut self, delay: Time, event: Event) {
        self.scheduled += 1;
        let slot = usize::try_from(self.scheduled).unwrap();
        self.waiting.insert(slot, event);
        self.events.push(Reverse((self.now + delay, self.scheduled, slot)));
    }

    fn life(&self, node: usize) -> Option<&Life> {
        self.nodes[node].life.as_ref()
    }

    fn clock(&self, node: usize) -> Duration {
        let gained = i64::try_from(self.now).unwrap() / 10_000 * self.nodes[node].gains;
        Duration::from_micros(self.now.saturating_add_signed(gained))
    }

    fn step(&mut self, event: Event) {
        let at = match &event {
            Event::Tick { node, .. } | Event::Learn { node } | Event::Answer { node, .. } => Some(*node),
            Event::Deliver { to, .. } => Some(*to),
            Event::Commit { .. }
            | Event::Fall { .. }
            | Event::Client
            | Event::Fault
            | Event::Start { .. } => None,
        };
        if let Some(until) = at.map(|node| self.nodes[node].paused_until).filter(|until| *until > self.now) {
            let late = self.numbers.below(2 * MILLISECOND);
            self.after(until - self.now + late, event);
            return;
        }
        match event {
            Event::Tick { node, life } => self.tick(node, life),
            Event::Deliver { from, to, net } => self.deliver(from, to, net),
            Event::Commit { from, command } => self.commit(from, &command),
            Event::Learn { node } => self.learn(node),
            Event::Fall { node } => {
                if !self.calm && self.nodes[node].life.is_some() {
                    let power = self.numbers.chance(1, 2);
                    self.die(node, power);
                }
            }
            Event::Client => self.client(),
            Event::Fault => self.fault(),
            Event::Start { node } => self.start(node),
            Event::Answer { node, life, read } => self.answer(node, life, read),
        }
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].life.is_some() {
            return;
        }
        self.lives += 1;
        let number = self.lives;
        let own = Member { node: id(node), incarnation: Incarnation(number) };
        let all = (0..self.nodes.len()).map(id).collect();
        let (record, position, now) =
            (self.nodes[node].record.clone(), self.nodes[node].position(), self.clock(node));
        let role = Role::new(own, all, record, position, now, self.timing, self.planted.role);
        self.nodes[node].life = Some(Life {
            number,
            role,
            writes: Vec::new(),
            flushes: Vec::new(),
            reads: Vec::new(),
            cursors: BTreeMap::new(),
            matched: None,
        });
        self.after(0, Event::Tick { node, life: number });
        self.after(0, Event::Learn { node });
    }

    /// Hands an input to a node's role, and does what it says.
    fn tell(&mut self, node: usize, input: Input) {
        let now = self.clock(node);
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        for action in life.role.handle(now, input) {
            match action {
                Action::Send(to, message) => self.send(node, index(to), Net::Role(message)),
                Action::Propose(command) => {
                    let delay = match self.numbers.below(10) {
                        0 if !self.calm => continue,
                        1 => self.numbers.below(600 * MILLISECOND),
                        _ => self.numbers.below(30 * MILLISECOND),
                    };
                    self.after(delay, Event::Commit { from: node, command });
                }
                Action::Begin(epoch) => {
                    if !self.calm && self.now.is_multiple_of(7) {
                        // A store that does not do what it is told.
                        self.tell(node, Input::CannotBegin(epoch));
                    }
                    if self.life(node).is_none_or(|life| life.role.serves() != Some(epoch)) {
                        continue;
                    }
                    let from_nobody = self.consensus.began_from_nobody(epoch);
                    self.oracle.begins(epoch, node, &self.nodes[node].log, from_nobody);
                    self.append(node, Operation { epoch, name: 0, key: 0 });
                    self.tell(node, Input::Begun(epoch));
                }
                Action::Stop(_) => {
                    let life = self.nodes[node].life.as_mut().unwrap();
                    (life.writes, life.flushes, life.reads) = Default::default();
                }
            }
        }
        self.serve(node);
    }

    fn append(&mut self, node: usize, operation: Operation) -> usize {
        self.nodes[node].log.push(operation);
        let position = self.nodes[node].position();
        self.tell(node, Input::Moved(position));
        self.ship(node);
        self.nodes[node].log.len()
    }

    /// Answers what can be answered.
    fn serve(&mut self, node: usize) {
        let own = &mut self.nodes[node];
        let Some(life) = own.life.as_mut() else { return };
        let serves = life.role.serves();
        let (Some(epoch), Some(acknowledged)) = (serves, life.role.acknowledged()) else { return };
        let acknowledged = len(acknowledged);
        let durable = life.role.durable(Lsn(own.durable as u64)).map_or(0, len);
        let (done, left) = life.writes.iter().partition(|(of, lsn)| *of == epoch && *lsn <= acknowledged);
        life.writes = left;
        let done: Vec<(Epoch, usize)> = done;
        let (flushed, left) = life.flushes.iter().partition(|(of, lsn)| *of == epoch && *lsn <= durable);
        life.flushes = left;
        let flushed: Vec<(Epoch, usize)> = flushed;
        let (read, left) = life.reads.iter().partition(|read| read.lsn <= acknowledged);
        life.reads = left;
        let read: Vec<Read> = read;
        let number = life.number;
        for (_, lsn) in done {
            let operation = self.nodes[node].log[lsn - 1];
            let newest = self.oracle.newest.filter(|(newest, _)| *newest > epoch);
            let successor = newest.map(|(_, successor)| self.nodes[successor].log.clone());
            self.oracle.acknowledge(operation, lsn, successor.as_ref());
        }
        for (_, lsn) in flushed {
            self.oracle.flush(&self.nodes[node].log, lsn);
        }
        for read in read {
            let delay = self.numbers.below(2 * MILLISECOND);
            self.after(delay, Event::Answer { node, life: number, read });
        }
    }

    fn answer(&mut self, node: usize, life: u64, read: Read) {
        let now = self.clock(node);
        let Some(own) = self.life(node).filter(|own| own.number == life) else { return };
        let leased = own.role.may_read(now) || self.planted.no_lease;
        if leased && own.role.serves() == Some(read.epoch) {
            self.oracle.read(read.key, read.lsn, read.floor);
        }
    }

    fn tick(&mut self, node: usize, life: u64) {
        if self.life(node).is_none_or(|own| own.number != life) {
            return;
        }
        if self.numbers.chance(1, 3) {
            self.nodes[node].durable = self.nodes[node].log.len();
        }
        self.tell(node, Input::Tick);
        self.ship(node);
        self.report(node);
        let delay = 8 * MILLISECOND + self.numbers.below(5 * MILLISECOND);
        self.after(delay, Event::Tick { node, life });
    }

    /// A primary sends each other node what it does not have.
    fn ship(&mut self, node: usize) {
        let Some(life) = self.life(node) else { return };
        let Some(epoch) = life.role.serves() else { return };
        let cursors = life.cursors.clone();
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let log = &self.nodes[node].log;
            let after = cursors.get(&other).copied().unwrap_or(log.len()).min(log.len());
            let operations = log[after..].iter().take(SHIPPED_MAX).copied().collect();
            let net = Net::Ship { epoch, after: position(log, after), operations };
            self.send(node, other, net);
        }
    }

    /// A node says how far it has come with what it was shipped.
    fn report(&mut self, node: usize) {
        let own = &self.nodes[node];
        let Some(life) = &own.life else { return };
        let Some((primary, epoch, matched)) = life.matched else { return };
        let by = Member { node: id(node), incarnation: Incarnation(life.number) };
        let net = Net::Applied {
            by,
            epoch,
            applied: Lsn(matched as u64),
            durable: Lsn(matched.min(own.durable) as u64),
        };
        self.send(node, primary, net);
    }

    fn send(&mut self, from: usize, to: usize, net: Net) {
        if self.cut[from][to] > self.now || !self.calm && self.numbers.chance(1, 50) {
            return;
        }
        let slow = !self.calm && self.numbers.chance(1, 40);
        let delay = self.numbers.below(if slow { 120 * MILLISECOND } else { 600 });
        if !self.calm && self.numbers.chance(1, 60) {
            let again = self.numbers.below(60 * MILLISECOND);
            self.after(again, Event::Deliver { from, to, net: net.clone() });
        }
        self.after(delay, Event::Deliver { from, to, net });
    }

    fn deliver(&mut self, from: usize, to: usize, net: Net) {
        let own = &mut self.nodes[to];
        let Some(life) = own.life.as_mut() else { return };
        let by = Member { node: id(to), incarnation: Incarnation(life.number) };
        match net {
            Net::Role(message) => self.tell(to, Input::Heard(id(from), message)),
            Net::Ship { epoch, after, operations } => {
                if !life.role.accepts(epoch) {
                    return;
                }
                let known = if self.planted.bare_numbers {
                    own.log.len() >= len(after.lsn)
                } else {
                    own.log.len() >= len(after.lsn) && position(&own.log, len(after.lsn)) == after
                };
                let mut at = len(after.lsn);
                let mut fits = known;
                for operation in operations.iter().take_while(|_| known) {
                    match own.log.get(at) {
                        Some(mine) if mine.epoch == operation.epoch || self.planted.bare_numbers => {
                            assert!(
                                self.planted.bare_numbers || mine == operation,
                                "one number, one operation"
                            );
                        }
                        Some(_) => {
                            fits = false;
                            break;
                        }
                        None => own.log.push(*operation),
                    }
                    at += 1;
                }
                if known {
                    life.matched = Some((from, epoch, at));
                }
                let at = own.position();
                self.tell(to, Input::Moved(at));
                self.report(to);
                if !fits {
                    self.send(to, from, Net::Elsewhere { epoch, at });
                }
            }
            Net::Whole { epoch, log } => {
                let member = life.role.record().epoch == epoch && life.role.record().names(by);
                // What was answered for in this epoch is never taken back.
                let late = life.matched.is_some_and(|(_, of, matched)| of == epoch && matched > log.len());
                if !life.role.accepts(epoch) || member || late {
                    return;
                }
                own.log = log;
                own.durable = own.log.len();
                life.matched = Some((from, epoch, own.log.len()));
                let at = own.position();
                self.tell(to, Input::Moved(at));
                self.report(to);
            }
            Net::Applied { by, epoch, applied, durable } => {
                if life.role.serves() == Some(epoch) {
                    let cursor = life.cursors.entry(from).or_default();
                    *cursor = (*cursor).max(len(applied));
                    let near = len(applied) + 2 >= own.log.len();
                    self.tell(to, Input::Applied { by, epoch, applied, durable });
                    if near {
                        self.tell(to, Input::CaughtUp(by));
                    }
                }
            }
            Net::Elsewhere { epoch, at } => self.find(from, to, epoch, at),
        }
    }

    /// A primary goes on from where another node is, or sends everything.
    fn find(&mut self, from: usize, to: usize, epoch: Epoch, at: Position) {
        let own = &mut self.nodes[to];
        let Some(life) = own.life.as_mut().filter(|life| life.role.serves() == Some(epoch)) else { return };
        if at == position(&own.log, len(at.lsn)) && len(at.lsn) <= own.log.len() {
            life.cursors.insert(from, len(at.lsn));
        } else {
            let log = own.log.clone();
            self.send(to, from, Net::Whole { epoch, log });
        }
    }

    fn reaches_most(&self, node: usize) -> bool {
        let lives = |other: usize| {
            self.nodes.get(other).is_none_or(|other| other.life.is_some() && other.paused_until <= self.now)
        };
        let both = |other: usize| self.cut[node][other] <= self.now && self.cut[other][node] <= self.now;
        let reached = (0..VOTERS).filter(|other| lives(*other) && (*other == node || both(*other)));
        reached.count() > VOTERS / 2
    }

    fn commit(&mut self, from: usize, command: &Command) {
        if !self.reaches_most(from) || !self.consensus.decide(command, self.planted.no_precondition) {
            return;
        }
        if self.numbers.chance(1, 5) {
            // A decision must hold from its moment on, also when that is the last of who asked for it.
            let delay = self.numbers.below(3 * MILLISECOND);
            self.after(delay, Event::Fall { node: from });
        }
        for node in 0..self.nodes.len() {
            let delay =
                self.numbers.below(if self.numbers.clone().chance(1, 8) { 400 } else { 20 } * MILLISECOND);
            self.after(delay, Event::Learn { node });
        }
    }

    fn learn(&mut self, node: usize) {
        if self.nodes[node].life.is_none() || self.nodes[node].decisions == self.consensus.decided.len() {
            return;
        }
        if !self.reaches_most(node) {
            self.after(50 * MILLISECOND, Event::Learn { node });
            return;
        }
        let own = &mut self.nodes[node];
        own.record = self.consensus.decided[own.decisions].clone();
        own.decisions += 1;
        let record = own.record.clone();
        self.tell(node, Input::Decided(record));
        self.after(0, Event::Learn { node });
    }

    fn client(&mut self) {
        let delay = 200 + self.numbers.below(4 * MILLISECOND);
        if !self.clients {
            return;
        }
        self.after(delay, Event::Client);
        let node = self.numbers.index(self.nodes.len());
        if self.nodes[node].paused_until > self.now {
            return;
        }
        let own = &mut self.nodes[node];
        let Some(life) = own.life.as_mut() else { return };
        let (Some(epoch), acknowledged) = (life.role.serves(), life.role.acknowledged()) else { return };
        if !life.role.takes_requests() {
            return;
        }
        let key = self.numbers.index(KEYS);
        match self.numbers.below(10) {
            0..5 => {
                self.names += 1;
                let lsn = own.log.len() + 1;
                life.writes.push((epoch, lsn));
                let appended = self.append(node, Operation { epoch, name: self.names, key });
                assert_eq!(appended, lsn);
            }
            5..9 => {
                let floor = self.oracle.floor(key);
                life.reads.push(Read { epoch, key, lsn: newest_of(&own.log, key), floor });
            }
            _ => life.flushes.push((epoch, acknowledged.map_or(0, len))),
        }
        self.serve(node);
    }

    fn die(&mut self, node: usize, power: bool) {
        let own = &mut self.nodes[node];
        own.life = None;
        own.paused_until = 0;
        if power {
            let lost = self.numbers.below((own.log.len() - own.durable.min(own.log.len()) + 1) as u64);
            own.log.truncate(own.log.len() - usize::try_from(lost).unwrap());
            own.durable = own.durable.min(own.log.len());
        }
        let delay = 20 * MILLISECOND + self.numbers.below(1500 * MILLISECOND);
        self.after(delay, Event::Start { node });
    }

    fn fault(&mut self) {
        if self.calm {
            return;
        }
        let delay = self.numbers.below(700 * MILLISECOND);
        self.after(delay, Event::Fault);
        let node = self.numbers.index(self.nodes.len());
        let length = self.numbers.below(1200 * MILLISECOND);
        let kind = match self.sleepy {
            true if self.numbers.chance(1, 2) => 2,
            true => 6,
            false => self.numbers.below(14),
        };
        match kind {
            12.. => {
                let target = id(self.numbers.index(self.nodes.len()));
                (0..self.nodes.len()).for_each(|node| self.tell(node, Input::HandOver(target)));
            }
            0 => self.die(node, false),
            1 => self.die(node, true),
            5 if self.numbers.chance(1, 3) => (0..self.nodes.len()).for_each(|node| self.die(node, true)),
            2..5 => {
                // About as long as it takes until somebody else is to be primary is the most interesting.
                let about = 300 * MILLISECOND + self.numbers.below(300 * MILLISECOND);
                let length = if self.numbers.chance(2, 3) { about } else { length };
                self.nodes[node].paused_until = self.now + length;
            }
            5..9 => {
                let (from, to) = (self.numbers.index(VOTERS), self.numbers.index(VOTERS));
                self.cut[from][to] = self.now + length;
            }
            _ => {
                for other in (0..VOTERS).filter(|other| *other != node) {
                    self.cut[node][other] = self.now + length;
                    self.cut[other][node] = self.now + length;
                }
            }
        }
    }
}

fn id(node: usize) -> NodeId {
    NodeId(u32::try_from(node).unwrap())
}

fn index(node: NodeId) -> usize {
    usize::try_from(node.0).unwrap()
}
