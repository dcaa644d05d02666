//! A whole cluster under one seed: nodes with real stores on disks that crash, an unkind network, a consensus group that
//! is as unkind as it may be, and clients.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use sinter::array::NewVolume;
use sinter::format::catalog::{Record as Catalogued, RecordKind};
use sinter::replica::decisions::{Change, Command, Incarnation, Member, NodeId, Position, Record};
use sinter::replica::role::{Input, Message, PlantedFaults};
use sinter::replica::timing::Timing;
use sinter::store::PoolIdentity;
use sinter::sync::seeded::SeededNumbers;
use sinter::units::{BlockCount, ByteCount, Epoch, Lsn, ObjectNumber};

use super::clients::{BULK, BULK_BLOCKS, Clients, SHARED, SHARED_BLOCKS};
use super::node::{Log, Node};
use super::operator::Operator;
use super::oracle::{Loss, Oracle};
use super::streams::Link;
use super::wider::{Kind, Wider};
use crate::consensus::Consensus;

/// Microseconds.
pub(super) type Time = u64;
pub(super) const MILLISECOND: Time = 1000;
pub(super) const SECOND: Time = 1000 * MILLISECOND;

/// All of them vote; where only two keep data, the third is a witness.
const VOTERS: usize = 3;
const CLIENTS: usize = 4;
/// Segments of a pool, and of those that may be too small.
const SEGMENTS: u64 = 400;
const SMALL_SEGMENTS: [u64; 4] = [112, 120, 130, SEGMENTS];

/// Faults that are planted, to show that they are found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Planted {
    pub(crate) role: PlantedFaults,
    /// Commands are applied whatever record they were made from.
    pub(crate) no_precondition: bool,
    /// The lease is looked at before the data is read, and not again.
    pub(crate) lease_before_read: bool,
    /// Where a node stands is compared by the number of its newest operation alone.
    pub(crate) bare_numbers: bool,
    /// A member answers for what has come, before it is applied or durable.
    pub(crate) answered_on_receipt: bool,
    /// Operations are shipped in another order than they were committed in.
    pub(crate) shipped_outside_the_lock: bool,
    /// A node is compared while the set names it, and promoted like any other.
    pub(crate) member_compared: bool,
    /// The numbers of requests are not remembered: what comes again is carried out again.
    pub(crate) sent_again_without_sessions: bool,
    /// A FLUSH counts as done though the primary's own sync has failed.
    pub(crate) failed_sync_ignored: bool,
    /// A pool that is opened again after its device has failed is taken for one that lacks nothing.
    pub(crate) failed_device_untold: bool,
    /// A term does not know that the array was started without some of its nodes.
    pub(crate) risk_untold: bool,
    /// The operator may force a node whose pool is being compared.
    pub(crate) forced_while_compared: bool,
    /// Parts of a comparison do not get to a far node: it is sent zeros.
    pub(crate) pieces_lost: bool,
    /// Members without room are not looked for before something is committed.
    pub(crate) members_room_ignored: bool,
    /// A node that has no room for what follows is not compared, whatever has been deleted since.
    pub(crate) stuck_ignored: bool,
    /// What every history has, because the fault can be seen in no other.
    pub(crate) wider: Option<Kind>,
}

#[derive(Debug)]
pub(super) enum Event {
    Tick {
        node: usize,
        life: u64,
    },
    Heard {
        from: usize,
        to: usize,
        message: Message,
    },
    Commit {
        from: usize,
        command: Command,
    },
    Learn {
        node: usize,
    },
    /// A node dies right after a decision.
    Fall {
        node: usize,
    },
    Start {
        node: usize,
    },
    /// The process of a node whose device has failed is ended.
    Restart {
        node: usize,
        life: u64,
    },
    /// A primary hears that a node does not go on with its stream.
    Refused {
        node: usize,
        life: u64,
        by: Member,
        /// Where it lacks room: what it has applied, and what it can take.
        room: Option<(Lsn, ByteCount)>,
    },
    /// A term begins or ends.
    Change {
        node: usize,
        life: u64,
    },
    Connect {
        node: usize,
        life: u64,
        peer: usize,
    },
    Open {
        link: u64,
        to: usize,
    },
    Up {
        link: u64,
        to: usize,
    },
    Down {
        link: u64,
        to: usize,
    },
    Closed {
        node: usize,
        life: u64,
        link: u64,
    },
    Work {
        node: usize,
        life: u64,
        link: u64,
    },
    Report {
        node: usize,
        life: u64,
        link: u64,
    },
    Sync {
        node: usize,
        life: u64,
        link: u64,
    },
    Client {
        client: usize,
    },
    Attached {
        client: usize,
    },
    Fault,
    /// The operator looks around.
    Operator,
    /// A node is to be made the primary by force, unless another epoch has begun.
    Force {
        node: usize,
        member: Member,
        epoch: Epoch,
    },
}

pub(crate) struct World {
    pub(super) oracle: Oracle,
    pub(super) numbers: SeededNumbers,
    pub(super) planted: Planted,
    pub(super) timing: Timing,
    pub(super) now: Time,
    events: BinaryHeap<Reverse<(Time, u64)>>,
    waiting: BTreeMap<u64, Event>,
    scheduled: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) identity: PoolIdentity,
    pub(super) shared: ObjectNumber,
    pub(super) consensus: Consensus,
    /// Until when nothing passes from one node to another.
    pub(super) cut: [[Time; VOTERS]; VOTERS],
    pub(super) links: BTreeMap<u64, Link>,
    pub(super) links_made: u64,
    /// What a primary held at positions that others are to adopt, and who is about to.
    pub(super) adoptions: BTreeMap<(Epoch, Lsn), Log>,
    pub(super) adopting: BTreeMap<usize, Position>,
    pub(super) clients: Clients,
    pub(super) lives: u64,
    /// Nodes only fall asleep, and links break: the history of those that wake up believing that nothing has changed.
    pub(super) sleepy: bool,
    pub(super) wider: Wider,
    pub(super) operator: Operator,
    /// The node that only follows.
    pub(super) far: Option<usize>,
    /// What may be gone in terms that began without those before them, and which of them the operator has begun.
    pub(super) losses: BTreeMap<Epoch, Loss>,
    pub(super) risked: Vec<Epoch>,
    pub(super) calm: bool,
}

impl World {
    pub(crate) fn new(seed: u64, planted: Planted) -> World {
        let mut numbers = SeededNumbers::new(seed);
        let data_nodes = 2 + numbers.index(2);
        let wider = Wider::of(seed, planted.wider);
        // Beside it there are two others.
        let data_nodes = if wider.one_is_far { 3 } else { data_nodes };
        // A small ring is soon too short.
        let rings =
            if wider.room_is_short { [400_000, 4_000_000, 64_000_000] } else { [60_000, 400_000, 4_000_000] };
        let budget = ByteCount(rings[numbers.index(3)]);
        let first = Member { node: NodeId(0), incarnation: Incarnation(1) };
        let record = Record { epoch: Epoch { generation: 1, number: 1 }, ..Record::of(first) };
        let mut nodes: Vec<Node> = (0..data_nodes)
            .map(|_| {
                let gains = i64::try_from(numbers.below(201)).unwrap() - 100;
                let seed = numbers.number() >> 1;
                let sizes: &[u64] = if wider.room_is_short { &SMALL_SEGMENTS } else { &[SEGMENTS] };
                let segments = sizes[usize::try_from(seed % 4).unwrap() % sizes.len()];
                Node::new(seed, budget, record.clone(), gains, segments)
            })
            .collect();
        let (identity, shared) = make_pool(&mut nodes[0]);
        let sleepy = numbers.chance(1, 3);
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
            identity,
            shared,
            consensus: Consensus::new(record),
            cut: [[0; VOTERS]; VOTERS],
            links: BTreeMap::new(),
            links_made: 0,
            adoptions: BTreeMap::new(),
            adopting: BTreeMap::new(),
            clients: Clients::new(CLIENTS),
            lives: 0,
            sleepy,
            wider,
            far: wider.one_is_far.then_some(2),
            operator: Operator::default(),
            losses: BTreeMap::new(),
            risked: Vec::new(),
            calm: false,
        };
        for node in 0..data_nodes {
            world.after(0, Event::Start { node });
        }
        for client in 0..CLIENTS {
            world.after(0, Event::Client { client });
        }
        for client in 0..world.clients.attached.len() {
            world.after(0, Event::Attached { client });
        }
        world.after(SECOND, Event::Fault);
        if world.wider.machines_are_lost {
            world.after(SECOND, Event::Operator);
        }
        world
    }

    /// Goes on for so long.
    pub(crate) fn run(&mut self, time: Time) {
        let end = self.now + time;
        while let Some(Reverse((at, number))) =
            self.events.peek().copied().filter(|Reverse((at, _))| *at <= end)
        {
            self.events.pop();
            let event = self.waiting.remove(&number).unwrap();
            self.now = at;
            self.step(event);
        }
        self.now = end;
    }

    pub(super) fn after(&mut self, delay: Time, event: Event) {
        self.scheduled += 1;
        self.waiting.insert(self.scheduled, event);
        self.events.push(Reverse((self.now + delay, self.scheduled)));
    }

    /// What a node's clock shows.
    pub(super) fn clock(&self, node: usize) -> Duration {
        let node = &self.nodes[node];
        // It is no clock that goes back: what it has missed stays missed.
        let missed = node.clock_stands.map_or(0, |(from, to)| self.now.min(to).saturating_sub(from));
        let gained = i64::try_from(self.now).unwrap() / 10_000 * node.gains;
        Duration::from_micros((self.now - missed).saturating_add_signed(gained))
    }

    fn step(&mut self, event: Event) {
        let at = match &event {
            Event::Tick { node, life }
            | Event::Restart { node, life }
            | Event::Refused { node, life, .. }
            | Event::Change { node, life }
            | Event::Connect { node, life, .. }
            | Event::Closed { node, life, .. }
            | Event::Work { node, life, .. }
            | Event::Report { node, life, .. }
            | Event::Sync { node, life, .. } => {
                if self.nodes[*node].life.as_ref().is_none_or(|own| own.number != *life) {
                    return;
                }
                Some(*node)
            }
            Event::Learn { node } => Some(*node),
            Event::Heard { to, .. }
            | Event::Open { to, .. }
            | Event::Up { to, .. }
            | Event::Down { to, .. } => Some(*to),
            _ => None,
        };
        if let Some(until) = at.map(|node| self.nodes[node].paused_until).filter(|until| *until > self.now) {
            let late = self.numbers.below(2 * MILLISECOND);
            return self.after(until - self.now + late, event);
        }
        match event {
            Event::Tick { node, life } => {
                self.tick(node);
                let delay = 12 * MILLISECOND + self.numbers.below(8 * MILLISECOND);
                self.after(delay, Event::Tick { node, life });
                if self.numbers.chance(1, 12) {
                    self.assert_far_is_no_member();
                    self.compare_nodes();
                }
            }
            Event::Heard { from, to, message } => self.tell(to, Input::Heard(id(from), message)),
            Event::Commit { from, command } => self.commit(from, &command),
            Event::Learn { node } => self.learn(node),
            Event::Fall { node } => {
                if !self.calm && self.nodes[node].life.is_some() {
                    let power = self.numbers.chance(1, 2);
                    self.die(node, power);
                }
            }
            Event::Start { node } => self.start(node),
            Event::Restart { node, .. } => self.restart(node),
            Event::Refused { node, by, room, .. } => {
                if let Some((applied, writable)) = room {
                    self.note_stuck(node, index(by.node), applied, writable);
                }
                self.tell(node, Input::Failed(by));
            }
            Event::Change { node, .. } => self.change(node),
            Event::Connect { node, peer, .. } => self.connect(node, peer),
            Event::Open { link, .. } => self.open(link),
            Event::Up { link, .. } => self.up(link),
            Event::Down { link, .. } => self.down(link),
            Event::Closed { node, link, .. } => self.closed(node, link),
            Event::Work { node, link, .. } => self.work(node, link),
            Event::Report { node, link, .. } => self.report(node, link),
            Event::Sync { node, link, .. } => self.sync(node, link),
            Event::Client { client } => self.client(client),
            Event::Attached { client } => self.attached(client),
            Event::Fault => self.fault(),
            Event::Operator => self.operate(),
            Event::Force { node, member, epoch } => self.force(node, member, epoch),
        }
    }

    /// Says something about roles to another node: it may be lost, late, doubled, and out of order.
    pub(super) fn say(&mut self, from: usize, to: usize, message: Message) {
        if self.cut[from][to] > self.now || !self.calm && self.numbers.chance(1, 50) {
            return;
        }
        let slow = !self.calm && self.numbers.chance(1, 40);
        let delay = self.numbers.below(if slow { 120 * MILLISECOND } else { 600 });
        if !self.calm && self.numbers.chance(1, 60) {
            let again = self.numbers.below(60 * MILLISECOND);
            self.after(again, Event::Heard { from, to, message: message.clone() });
        }
        self.after(delay, Event::Heard { from, to, message });
    }

    pub(super) fn propose(&mut self, from: usize, command: Command) {
        let delay = match self.numbers.below(10) {
            0 if !self.calm => return,
            1 => self.numbers.below(600 * MILLISECOND),
            _ => self.numbers.below(30 * MILLISECOND),
        };
        self.after(delay, Event::Commit { from, command });
    }

    pub(super) fn reaches_most(&self, node: usize) -> bool {
        let lives = |other: usize| {
            self.nodes.get(other).is_none_or(|other| other.life.is_some() && other.paused_until <= self.now)
        };
        let both = |other: usize| self.cut[node][other] <= self.now && self.cut[other][node] <= self.now;
        let reached = (0..VOTERS).filter(|other| lives(*other) && (*other == node || both(*other)));
        reached.count() > VOTERS / 2
    }

    /// Whether a node is to be promoted, or to stay as the only member, for a pool that has been taken from it since: it
    /// would be the only one that counts, and only an operator could help.
    fn names_a_lost_pool(&self, command: &Command) -> bool {
        let record = &self.consensus.record;
        let (node, incarnation) = match &command.change {
            Change::Promote(member) => (member.node, Some(&member.incarnation)),
            Change::Out(_) => (record.primary, record.set.get(&record.primary)),
            _ => return false,
        };
        incarnation.is_some_and(|incarnation| incarnation.0 <= self.nodes[index(node)].pool_lost_in)
    }

    fn commit(&mut self, from: usize, command: &Command) {
        if self.names_a_lost_pool(command) || !self.reaches_most(from) {
            return;
        }
        let loss = self.loss_at(command);
        if !self.consensus.decide(command, self.planted.no_precondition) {
            return;
        }
        let epoch = self.consensus.record.epoch;
        if loss > Loss::Nothing {
            self.losses.insert(epoch, loss);
        }
        if matches!(command.change, Change::StartWithout { .. }) {
            self.risked.push(epoch);
            self.oracle.seen.started_without += 1;
        }
        if !self.calm && self.numbers.chance(1, 8) {
            // A decision must hold from its moment on, also when that is the last of who asked for it.
            let delay = self.numbers.below(3 * MILLISECOND);
            self.after(delay, Event::Fall { node: from });
        }
        self.tell_decision();
    }

    pub(super) fn tell_decision(&mut self) {
        for node in 0..self.nodes.len() {
            let late = self.numbers.chance(1, 8);
            let delay = self.numbers.below(if late { 400 } else { 20 } * MILLISECOND);
            self.after(delay, Event::Learn { node });
        }
    }

    fn learn(&mut self, node: usize) {
        if self.nodes[node].life.is_none() || self.nodes[node].decisions == self.consensus.decided.len() {
            return;
        }
        if !self.reaches_most(node) {
            return self.after(50 * MILLISECOND, Event::Learn { node });
        }
        let own = &mut self.nodes[node];
        own.record = self.consensus.decided[own.decisions].clone();
        own.decisions += 1;
        let record = own.record.clone();
        self.tell(node, Input::Decided(record));
        self.after(0, Event::Learn { node });
    }
}

/// Makes the first node's pool, with volumes on it: what every other pool begins with, and which object is shared.
fn make_pool(node: &mut Node) -> (PoolIdentity, ObjectNumber) {
    let opened = node.open(None, false).unwrap();
    opened.ring.listen_from(Lsn(0));
    opened.gate.open.store(true, std::sync::atomic::Ordering::Relaxed);
    for (name, blocks) in [(SHARED, SHARED_BLOCKS), (BULK, BULK_BLOCKS)] {
        let size = BlockCount(blocks).bytes();
        opened
            .array
            .create_volume(NewVolume { name: name.to_owned(), size, ..NewVolume::default() })
            .unwrap();
    }
    let shared = opened.store.objects().unwrap().into_iter().find(|object| {
        Catalogued::decode(&object.opaque).is_ok_and(|it| it.kind == RecordKind::Volume && it.name == SHARED)
    });
    let identity = PoolIdentity { position: (Epoch::default(), Lsn(0)), ..opened.store.identity() };
    (identity, shared.unwrap().number)
}

pub(super) fn id(node: usize) -> NodeId {
    NodeId(u32::try_from(node).unwrap())
}

pub(super) fn index(node: NodeId) -> usize {
    usize::try_from(node.0).unwrap()
}
