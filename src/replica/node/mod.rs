//! One node at work: the thin driver around the machines.
//!
//! Threads, all of them started here: one that ticks; one that begins and ends terms, because that waits for the store;
//! one that repairs damaged blocks;
//! for each other data node one that tells it what the role says, on a connection that does no other I/O; on a primary,
//! two for each stream to a secondary; and those of the link server, on which the other nodes' frames come in.
//!
//! One lock guards the role and what belongs to it, for moments. Whoever waits for acknowledgments, leases or decisions
//! waits on one condition beside it.

mod bookmarks;
mod changes;
mod following;
mod gate;
mod outgoing;
mod repair;
mod room;
mod shipping;
mod starting;
pub mod status;
pub mod verifying;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::array::Array;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::control::Control;
use crate::replica::control::state::{Decision, NodeEntry, NodeKind, ReplicaMode};
use crate::replica::decisions::{Incarnation, Member, NodeId, Position, Record, SetVersion};
use crate::replica::epochs::Epochs;
use crate::replica::identity::{CurrentIdentity, PeerIdentity};
use crate::replica::lag::Notes;
use crate::replica::link::{Frame, Link};
use crate::replica::ring::Ring;
use crate::replica::role::{Action, Input, PlantedFaults, Role};
use crate::replica::timing::Timing;
use crate::store::{Environment, Store};
use crate::sync::{Condition, Mutex};
use crate::units::{ByteCount, Epoch, Lsn};

use self::bookmarks::Bookmarks;
pub use self::gate::Gate;
use self::outgoing::Outgoing;
use self::repair::Repairs;
use self::room::Room;
use self::shipping::Shipping;

/// Kinds of frames on links between nodes.
pub mod frames {
    /// What a role says to another: one message.
    pub const ROLE: u8 = 16;
    /// The stream of operations, in either direction: messages, each with its length before it.
    pub const STREAM: u8 = 17;
    /// A question of a primary that compares all nodes, or the answer to one.
    pub const COMPARE: u8 = 20;
    /// A block by its fingerprint, question and answer. (18, 19 and 21 are of the cluster's port.)
    pub const FETCH: u8 = 22;
}

/// What is done for nodes that come back, and at which cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// For how long a bookmark is kept for a node that is away.
    pub bookmark_keep: Duration,
    /// Bytes that a comparison sends in a second, at most.
    pub resync_rate: Option<ByteCount>,
}

/// What a node is made of.
pub struct NodeParts {
    /// This node in this life.
    pub own: Member,
    /// Its pool.
    pub store: Arc<Store>,
    /// The array on it.
    pub array: Arc<Array>,
    /// What the pool's operations fill.
    pub ring: Arc<Ring>,
    /// Clock and random source.
    pub environment: Environment,
    /// Who decides.
    pub control: Arc<dyn Control>,
    /// Who this node is to others.
    pub identity: Arc<CurrentIdentity>,
    /// The table of times.
    pub timing: Timing,
    /// What is done for nodes that come back.
    pub upkeep: Upkeep,
    /// Called when the primary is another one, or none: whoever is connected here is to connect anew.
    pub disconnect: Box<dyn Fn() + Send + Sync>,
}

/// A node at work.
pub struct Node {
    parts: NodeParts,
    state: Mutex<State>,
    /// Something of the state has changed.
    moved: Condition,
    /// Requests that are being carried out.
    under_way: AtomicU64,
    room: Room,
    repairs: Repairs,
    counters: status::Counters,
    notes: Mutex<Notes>,
    verifying: verifying::Verifying,
    stopping: AtomicBool,
    /// For those that wait for the end only.
    resting: Mutex<()>,
    stopped: Condition,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the lock guards.
struct State {
    role: Role,
    /// The epoch in which requests are taken.
    serving: Option<Epoch>,
    /// Terms to begin and to end, in order.
    changes: VecDeque<Action>,
    /// One of them is being carried out.
    changing: bool,
    outgoing: BTreeMap<NodeId, Arc<Outgoing>>,
    shipping: BTreeMap<NodeId, Arc<Shipping>>,
    following: following::Following,
    /// Everything up to here is to be durable on the members.
    sync_wanted: Lsn,
    epochs: Epochs,
    bookmarks: Bookmarks,
    /// When the former primary was heard last, while this node is to take over from it.
    former_heard_at: Option<Duration>,
}

impl Node {
    /// Starts a node's threads. It takes frames by `accept`.
    ///
    /// # Errors
    /// `Device`, `Corrupt` where the pool cannot say where it stands; `Device` where threads cannot be started.
    pub fn start(parts: NodeParts) -> Result<Arc<Node>> {
        let (epoch, lsn) = parts.store.position();
        if !parts.store.syncing() {
            parts.ring.listen_from(lsn);
        }
        let now = parts.environment.clock.monotonic();
        let decided = parts.control.state();
        // Before the first decision is heard, anything that is heard is newer.
        let nobody = Record {
            version: SetVersion(0),
            ..Record::of(Member { node: NodeId(0), incarnation: Incarnation(0) })
        };
        let record = decided.record.clone().unwrap_or(nobody);
        let nodes = data_nodes(&decided.nodes);
        let position = Position { epoch, lsn };
        let role = Role::new(parts.own, nodes, record, position, now, parts.timing, PlantedFaults::default());
        let node = Arc::new(Node {
            state: Mutex::new(State {
                role,
                serving: None,
                changes: VecDeque::new(),
                changing: false,
                outgoing: BTreeMap::new(),
                shipping: BTreeMap::new(),
                following: following::Following::default(),
                sync_wanted: Lsn(0),
                epochs: Epochs::default(),
                bookmarks: Bookmarks::default(),
                former_heard_at: None,
            }),
            parts,
            moved: Condition::new(),
            under_way: AtomicU64::new(0),
            room: Room::default(),
            repairs: Repairs::default(),
            counters: status::Counters::default(),
            notes: Mutex::new(Notes::default()),
            verifying: verifying::Verifying::default(),
            stopping: AtomicBool::new(false),
            resting: Mutex::new(()),
            stopped: Condition::new(),
            threads: Mutex::new(Vec::new()),
        });
        let weak = Arc::downgrade(&node);
        node.parts.control.subscribe(Box::new(move || {
            if let Some(node) = Weak::upgrade(&weak) {
                node.decided();
            }
        }));
        node.decided();
        node.spawn("cluster-tick", |node| {
            let mut left_at = None;
            while node.lives() {
                node.step(Input::Tick);
                node.hand_over_where_the_device_failed();
                node.leave_while_syncing(&mut left_at);
                node.notes.lock().note(node.parts.store.position().1, node.now());
                node.rest(node.parts.timing.heartbeat / 2);
            }
        })?;
        node.spawn("cluster-terms", Node::carry_out_changes)?;
        node.spawn("cluster-repair", Node::repair_in_background)?;
        Ok(node)
    }

    /// This node in this life.
    #[must_use]
    pub fn own(&self) -> Member {
        self.parts.own
    }

    /// Who decides.
    #[must_use]
    pub fn control(&self) -> &Arc<dyn Control> {
        &self.parts.control
    }

    /// The table of times.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.parts.timing
    }

    /// The primary, as far as this node knows, if it is not this one.
    #[must_use]
    pub fn primary_elsewhere(&self) -> Option<(NodeId, NodeEntry)> {
        let primary = self.state.lock().role.record().primary;
        let entry = self.parts.control.state().nodes.get(&primary).cloned();
        entry.filter(|_| primary != self.parts.own.node).map(|entry| (primary, entry))
    }

    /// Whether requests are taken here.
    #[must_use]
    pub fn serves(&self) -> bool {
        let state = self.state.lock();
        state.serving.is_some() && state.serving == state.role.serves()
    }

    /// Whether this node is the primary, or about to be it.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.state.lock().role.leads()
    }

    /// Hands over to another member of the set, and waits until that is decided; the new primary.
    ///
    /// # Errors
    /// `NotPrimary` where this node is not the one to hand over; `Busy` for a node that is not in the set, or where
    /// there is no other member; `NoQuorum` where it is not decided within `patience`.
    pub fn hand_over(self: &Arc<Node>, to: Option<NodeId>, patience: Duration) -> Result<NodeId> {
        let own = self.parts.own.node;
        let (target, epoch) = {
            let state = self.state.lock();
            let Some(epoch) = state.role.serves() else {
                return Err(Error::new(ErrorKind::NotPrimary, "this node is not the primary"));
            };
            let record = state.role.record();
            let mut others = record.set.keys().copied().filter(|node| *node != own);
            let target = match to {
                Some(node) => others.find(|other| *other == node),
                None => others.next(),
            };
            let target = target.ok_or_else(|| {
                let who = to.map_or("there is no other node that".to_owned(), |node| {
                    format!("node {} is not one that", node.0)
                });
                Error::new(ErrorKind::Busy, format!("{who} is in sync"))
            })?;
            (target, epoch)
        };
        self.step(Input::HandOver(target));
        let deadline = self.now() + patience;
        let mut state = self.state.lock();
        loop {
            let record = state.role.record();
            if record.epoch > epoch {
                return Ok(record.primary);
            }
            if self.now() >= deadline {
                return Err(Error::new(
                    ErrorKind::NoQuorum,
                    "the hand-over was not decided in time; it may still be",
                ));
            }
            state = self.moved.wait_for(state, self.parts.timing.heartbeat);
        }
    }

    /// Takes a link that another node has opened, with its first frame.
    pub fn accept(self: &Arc<Node>, peer: &PeerIdentity, link: Link, first: Frame) {
        let Some(from) = peer.name.node() else { return };
        match first.kind {
            frames::ROLE => self.hear(from, link, first),
            frames::STREAM => self.follow(from, link, &first),
            frames::COMPARE => self.answer_comparison(from, link, first),
            frames::FETCH => self.answer_fetches(from, link, first),
            kind => tracing::warn!("node {} sent a frame of kind {kind}, which means nothing here", from.0),
        }
    }

    /// Ends all threads; what is under way fails.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let (outgoing, shipping) = {
            let mut state = self.state.lock();
            state.serving = None;
            state.following.close();
            (std::mem::take(&mut state.outgoing), std::mem::take(&mut state.shipping))
        };
        outgoing.values().for_each(|it| it.stop());
        shipping.values().for_each(|it| it.stop());
        self.parts.ring.call();
        self.moved.notify_all();
        drop(self.resting.lock());
        self.stopped.notify_all();
        // Whoever ends may start another thread first, and notes it under this lock.
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn lives(&self) -> bool {
        !self.stopping.load(Ordering::Acquire)
    }

    /// Waits for a time, or until this node stops.
    fn rest(&self, time: Duration) {
        let deadline = self.now() + time;
        let mut stopping = self.resting.lock();
        while self.lives() && self.now() < deadline {
            stopping = self.stopped.wait_for(stopping, deadline.saturating_sub(self.now()));
        }
    }

    fn now(&self) -> Duration {
        self.parts.environment.clock.monotonic()
    }

    fn spawn(self: &Arc<Node>, name: &str, run: impl FnOnce(&Arc<Node>) + Send + 'static) -> Result<()> {
        let node = Arc::clone(self);
        let thread = Builder::new().name(name.to_owned()).spawn(move || run(&node));
        let thread = thread
            .map_err(|error| Error::caused(ErrorKind::Device, format!("starting thread {name}"), error))?;
        let mut threads = self.threads.lock();
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// Tells the role what has happened, and does what it says.
    fn step(self: &Arc<Node>, input: Input) {
        let now = self.now();
        let mut state = self.state.lock();
        let position = self.own_position(&state);
        let compared = state.following.is_compared() || self.parts.store.syncing();
        state.role.set_compared(compared);
        let mut actions = state.role.handle(now, Input::Moved(position));
        actions.extend(state.role.handle(now, input));
        self.perform(state, actions);
    }

    /// What the role counts as applied here.
    fn own_position(&self, state: &State) -> Position {
        if state.following.is_compared() || self.parts.store.syncing() {
            return Position::default();
        }
        let (epoch, lsn) = self.parts.store.position();
        Position { epoch, lsn }
    }

    fn perform(self: &Arc<Node>, mut state: crate::sync::MutexGuard<'_, State>, actions: Vec<Action>) {
        let mut proposals = Vec::new();
        for action in actions {
            match action {
                Action::Send(to, message) => {
                    if let Some(outgoing) = self.outgoing_to(&mut state, to) {
                        outgoing.say(message);
                    }
                }
                Action::Propose(command) => proposals.push(command),
                Action::Stop(_) => {
                    // Nothing is taken from here on; the rest waits for what is under way.
                    state.serving = None;
                    state.changes.push_back(action);
                }
                Action::Begin(_) => state.changes.push_back(action),
            }
        }
        drop(state);
        self.moved.notify_all();
        for command in proposals {
            self.parts.control.propose(Decision::Role(command));
        }
    }

    /// A decision has been applied here.
    fn decided(self: &Arc<Node>) {
        let decided = self.parts.control.state();
        let nodes = data_nodes(&decided.nodes);
        let before = {
            let mut state = self.state.lock();
            state.role.know(nodes);
            let known = state.role.record().clone();
            let newer = decided.record.as_ref().filter(|record| record.epoch > known.epoch);
            let takes_over = newer.is_some_and(|record| record.primary == self.parts.own.node);
            if takes_over && known.primary != self.parts.own.node {
                state.former_heard_at = state.role.heard_from(known.primary);
            }
            known
        };
        if let Some(record) = &decided.record {
            if record.version > before.version {
                let epoch = record.epoch;
                let set: Vec<u32> = record.set.keys().map(|node| node.0).collect();
                let primary = record.primary.0;
                tracing::info!(
                    "in sync in epoch {}.{}: {set:?}, primary {primary}",
                    epoch.generation,
                    epoch.number
                );
            }
            self.step(Input::Decided(record.clone()));
        }
        let gone: Vec<Arc<Outgoing>> = {
            let mut state = self.state.lock();
            let gone: Vec<NodeId> =
                state.outgoing.keys().copied().filter(|node| !decided.nodes.contains_key(node)).collect();
            gone.iter().filter_map(|node| state.outgoing.remove(node)).collect()
        };
        gone.iter().for_each(|outgoing| outgoing.stop());
    }

    /// Whether a node's answers are waited for: it is one of the array's, and not a far one.
    fn is_synchronous(&self, node: NodeId) -> bool {
        let state = self.parts.control.state();
        state
            .nodes
            .get(&node)
            .is_some_and(|entry| entry.kind == NodeKind::Data && entry.mode == ReplicaMode::Sync)
    }
}

/// All nodes that keep data and take part in roles.
fn data_nodes(nodes: &BTreeMap<NodeId, NodeEntry>) -> Vec<NodeId> {
    let data =
        nodes.iter().filter(|(_, entry)| entry.kind == NodeKind::Data && entry.mode == ReplicaMode::Sync);
    data.map(|(node, _)| *node).collect()
}
