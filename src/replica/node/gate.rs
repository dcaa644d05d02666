//! What stands between the array and whoever asks it: nothing is taken, acknowledged or read out without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::array::{CommitGate, Tenure};
use crate::error::{Error, ErrorKind, Result};
use crate::replica::decisions::Position;
use crate::sync::Mutex;
use crate::units::{BlockCount, Lba, Lsn, ObjectNumber};

use super::{Node, State};

/// How long a request waits for this node to begin, or for a hand-over to be decided.
const HELD: Duration = Duration::from_secs(30);

/// The gate of an array; open while the array is not part of a cluster.
///
/// An array that stands alone is asked for nothing but one flag, which is raised once and never lowered. A request that
/// finds it down is as one that came before the cluster. That is right for whatever it has committed before the flag
/// was raised: no other node holds anything then, and none is in the set before a stream has brought it all that. What is
/// committed later finds the flag raised, because whoever raises it takes the commit lock afterwards.
#[derive(Default)]
pub struct Gate {
    /// Somebody decides, or is about to.
    is_kept: AtomicBool,
    keeper: Mutex<Keeper>,
    /// How often all clients were let go.
    tenure: AtomicU64,
}

/// Who decides.
#[derive(Clone, Default)]
enum Keeper {
    /// Nobody: the array stands alone.
    #[default]
    Nobody,
    /// Somebody who is not there yet: nothing is taken or given out.
    Expected,
    /// This node.
    Node(Arc<Node>),
}

impl Gate {
    /// Takes and gives out nothing until a node decides.
    pub fn hold(&self) {
        *self.keeper.lock() = Keeper::Expected;
        self.is_kept.store(true, Ordering::Release);
    }

    /// Whether nothing is taken, because the node that decides is not there yet.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(*self.keeper.lock(), Keeper::Expected)
    }

    /// All clients are let go: what they have sent until now and was not begun, is never done.
    pub fn end_tenure(&self) {
        self.tenure.fetch_add(1, Ordering::AcqRel);
    }

    /// The array stands alone from now on.
    pub fn release(&self) {
        *self.keeper.lock() = Keeper::Nobody;
    }

    /// From now on the node decides.
    pub fn install(&self, node: Arc<Node>) {
        let store = Arc::clone(&node.parts.store);
        *self.keeper.lock() = Keeper::Node(node);
        self.is_kept.store(true, Ordering::Release);
        // Every commit takes this lock: those behind it see what was written before it.
        let _ = store.position();
    }

    /// Asks whoever decides.
    fn ask<T>(&self, alone: T, ask: impl FnOnce(&Node) -> Result<T>) -> Result<T> {
        if !self.is_kept.load(Ordering::Acquire) {
            return Ok(alone);
        }
        let keeper = self.keeper.lock().clone();
        match keeper {
            Keeper::Nobody => Ok(alone),
            Keeper::Expected => {
                Err(Error::new(ErrorKind::NoQuorum, "this node is about to find its cluster"))
            }
            Keeper::Node(node) => ask(&node),
        }
    }
}

impl CommitGate for Gate {
    fn admit(&self) -> Result<()> {
        self.ask((), Node::admit)
    }

    fn admit_of(&self, tenure: Tenure) -> Result<()> {
        if !self.is_kept.load(Ordering::Acquire) {
            return Ok(());
        }
        self.admit()?;
        // A term ends before the next one begins, and with each all clients are let go: whoever is admitted in a later
        // one than it came in sees that here.
        if self.tenure() == tenure {
            return Ok(());
        }
        CommitGate::done(self);
        Err(Error::new(ErrorKind::NotPrimary, "the request came before another node was the primary"))
    }

    fn tenure(&self) -> Tenure {
        Tenure(self.tenure.load(Ordering::Acquire))
    }

    fn done(&self) {
        if !self.is_kept.load(Ordering::Acquire) {
            return;
        }
        let keeper = self.keeper.lock().clone();
        if let Keeper::Node(node) = keeper {
            node.done();
        }
    }

    fn reserve(&self, blocks: BlockCount) -> Result<()> {
        self.ask((), |node| node.reserve(blocks))
    }

    fn release(&self, blocks: BlockCount) {
        let keeper = self.keeper.lock().clone();
        if let Keeper::Node(node) = keeper {
            node.release(blocks);
        }
    }

    fn acknowledged(&self, lsn: Lsn) -> Result<()> {
        self.ask((), |node| node.acknowledged(lsn))
    }

    fn durable(&self, lsn: Lsn) -> Result<()> {
        self.ask((), |node| node.durable(lsn))
    }

    fn failed(&self, error: Error) -> Error {
        let keeper = self.keeper.lock().clone();
        match keeper {
            Keeper::Node(node) => node.failed(error),
            Keeper::Nobody | Keeper::Expected => error,
        }
    }

    fn repair(&self) -> bool {
        let keeper = self.keeper.lock().clone();
        matches!(keeper, Keeper::Node(node) if node.repair())
    }

    fn may_answer_read(&self, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<()> {
        self.ask((), |node| node.may_answer_read(object, first, count))
    }

    fn try_answer_read(&self, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<bool> {
        self.ask(true, |node| node.try_answer_read(object, first, count))
    }
}

impl State {
    /// Whether requests are taken now.
    fn takes(&self) -> bool {
        self.serving.is_some() && self.serving == self.role.serves() && self.role.takes_requests()
    }
}

impl Node {
    fn not_primary(&self) -> Error {
        match self.primary_elsewhere() {
            Some((_, entry)) => {
                Error::new(ErrorKind::NotPrimary, format!("node {} is the primary", entry.name))
            }
            None => Error::new(ErrorKind::NoQuorum, "there is no primary"),
        }
    }

    /// Takes a request in, or says why not. One that comes while this node is about to serve waits.
    pub(super) fn admit(&self) -> Result<()> {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        let mut state = self.state.lock();
        let deadline = self.now() + HELD;
        loop {
            if state.takes() {
                return Ok(());
            }
            if !state.role.leads() || self.now() >= deadline || !self.lives() {
                drop(state);
                self.done();
                return Err(self.not_primary());
            }
            // Whoever waits holds nothing up: the term ends without it.
            let _ = self
                .under_way
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1));
            self.moved.notify_all();
            state = self.moved.wait_for(state, self.parts.timing.heartbeat);
            self.under_way.fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(super) fn done(&self) {
        // What was taken while the array stood alone ends here too, and was never counted. A count that is too low lets a
        // term end early; what is still on its way then finds the store following, which is decided under its lock.
        let less = |count: u64| count.checked_sub(1);
        let before = self.under_way.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if before == Ok(1) && self.state.lock().serving.is_none() {
            self.moved.notify_all();
        }
    }

    /// What a client is told of a commit that has failed here.
    fn failed(&self, error: Error) -> Error {
        if !self.parts.store.has_stopped() {
            return error;
        }
        let state = self.state.lock();
        let alone = state.role.record().set.keys().all(|node| *node == self.parts.own.node);
        if state.role.leads() && alone {
            return error;
        }
        Error::new(ErrorKind::NotPrimary, format!("another node takes over from this one: {error}"))
    }

    /// Waits until `reached`, as long as this node serves in the same epoch: in another one the same numbers may be
    /// those of other operations.
    fn wait_until(&self, mut reached: impl FnMut(&mut State) -> bool) -> Result<()> {
        let mut state = self.state.lock();
        let serving = state.serving;
        loop {
            let (epoch, lsn) = self.parts.store.position();
            state.role.moved(self.now(), Position { epoch, lsn });
            let over = state.serving.is_none() || state.serving != serving;
            if over || state.serving != state.role.serves() || !self.lives() {
                drop(state);
                return Err(self.not_primary());
            }
            if reached(&mut state) {
                return Ok(());
            }
            state = self.moved.wait_for(state, self.parts.timing.heartbeat);
        }
    }

    /// The same for what other nodes have to answer, and counted.
    fn wait_for_others(&self, mut reached: impl FnMut(&State) -> bool) -> Result<()> {
        let begun = self.now();
        let mut alone = false;
        let result = self.wait_until(|state| {
            alone = state.role.record().set.len() == 1;
            reached(state)
        });
        if !alone {
            self.counters.waited(self.now().saturating_sub(begun), result.is_ok());
        }
        result
    }

    fn acknowledged(&self, lsn: Lsn) -> Result<()> {
        self.wait_for_others(|state| state.role.acknowledged().is_some_and(|applied| applied >= lsn))
    }

    pub(super) fn durable(&self, lsn: Lsn) -> Result<()> {
        let wanted = {
            let mut state = self.state.lock();
            let wanted = lsn > state.sync_wanted;
            state.sync_wanted = state.sync_wanted.max(lsn);
            wanted
        };
        if wanted {
            self.parts.ring.call();
        }
        self.wait_for_others(|state| state.role.durable(lsn).is_some_and(|durable| durable >= lsn))
    }

    fn may_answer_read(&self, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<()> {
        if self.try_answer_read(object, first, count)? {
            return Ok(());
        }
        self.wait_until(|state| self.may_answer(state, object, first, count))
    }

    fn try_answer_read(&self, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<bool> {
        let state = self.state.lock();
        if state.serving.is_none() || state.serving != state.role.serves() {
            drop(state);
            return Err(self.not_primary());
        }
        Ok(self.may_answer(&state, object, first, count))
    }

    fn may_answer(&self, state: &State, object: ObjectNumber, first: Lba, count: BlockCount) -> bool {
        let Some(applied) = state.role.acknowledged() else { return false };
        // What was read may be newer than what is asked about now, never older.
        let waiting = self.parts.ring.newest_change(applied, object, first, count);
        waiting.is_none() && state.role.may_read(self.now())
    }
}
