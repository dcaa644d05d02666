//! Beginning and ending terms, and what a node does now and then.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::Result;
use crate::replica::control::state::{Decision, FailoverReason};
use crate::replica::decisions::Change;
use crate::replica::epochs::Epochs;
use crate::replica::history;
use crate::replica::role::{Action, Input};
use crate::units::Epoch;

use super::Node;

/// A term that cannot be begun is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// After so many failures another member is to take over.
const FAILURES_MAX: u32 = 3;

impl Node {
    /// Begins and ends terms, in order, and keeps bookmarks.
    pub(super) fn carry_out_changes(self: &Arc<Node>) {
        while self.lives() {
            let change = {
                let mut state = self.state.lock();
                if state.changes.is_empty() {
                    state = self.moved.wait_for(state, self.parts.timing.heartbeat);
                }
                let change = state.changes.pop_front();
                state.changing = change.is_some();
                change
            };
            let changed = change.is_some();
            match change {
                Some(Action::Begin(epoch)) => self.begin(epoch),
                Some(Action::Stop(epoch)) => self.end(epoch),
                _ => self.do_what_is_due(),
            }
            if changed {
                self.state.lock().changing = false;
                self.moved.notify_all();
            }
        }
    }

    fn begin(self: &Arc<Node>, epoch: Epoch) {
        tracing::info!("this node becomes primary in epoch {}.{}", epoch.generation, epoch.number);
        self.end_following();
        let mut failures = 0;
        loop {
            if self.state.lock().role.serves() != Some(epoch) || !self.lives() {
                return;
            }
            match self.begin_in_store(epoch) {
                Ok(epochs) => {
                    let mut state = self.state.lock();
                    state.epochs = epochs;
                    if state.role.serves() == Some(epoch) {
                        state.serving = Some(epoch);
                        if let Some(heard_at) = state.former_heard_at.take() {
                            self.counters.took_over(self.now().saturating_sub(heard_at));
                        }
                    }
                    drop(state);
                    self.step(Input::Begun(epoch));
                    self.bookmark_soon();
                    self.moved.notify_all();
                    self.ship_to_all(epoch);
                    return;
                }
                Err(error) => {
                    tracing::error!("epoch {}.{} cannot begin: {error}", epoch.generation, epoch.number);
                    failures += 1;
                    if failures >= FAILURES_MAX || self.parts.store.has_stopped() {
                        self.step(Input::CannotBegin(epoch));
                    }
                    self.rest(PAUSE);
                }
            }
        }
    }

    /// Writes the first operation of an epoch.
    fn begin_in_store(&self, epoch: Epoch) -> Result<Epochs> {
        let store = &self.parts.store;
        store.follow(false);
        let mut epochs = Epochs::load(store)?;
        let first = epochs.begin(store, epoch)?;
        let state = self.parts.control.state();
        let risked = state.history.iter().filter(|it| it.reason == FailoverReason::StartWithout);
        let risked = risked.map(|failover| failover.epoch).max();
        let named = history::begin(store, epoch, risked, &*self.parts.environment.random)?;
        store.write_out(named.unwrap_or(first))?;
        self.parts.array.reload()?;
        Ok(epochs)
    }

    fn end(self: &Arc<Node>, epoch: Epoch) {
        tracing::info!(
            "this node is not primary any more: epoch {}.{} is over",
            epoch.generation,
            epoch.number
        );
        let shipping = std::mem::take(&mut self.state.lock().shipping);
        shipping.values().for_each(|it| it.stop());
        self.parts.ring.call();
        // Whoever is carrying out a request finishes it; nobody is told of it any more.
        while self.under_way.load(Ordering::Acquire) > 0 && self.lives() {
            let state = self.state.lock();
            drop(self.moved.wait_for(state, self.parts.timing.heartbeat));
        }
        (self.parts.disconnect)();
    }

    /// A primary that cannot write any more hands over to a member, if there is one. What it has committed and not
    /// written, members hold, or nobody was told of it.
    pub(super) fn hand_over_where_the_device_failed(self: &Arc<Node>) {
        if !self.parts.store.has_stopped() {
            return;
        }
        let target = {
            let state = self.state.lock();
            let takes = state.role.serves().is_some() && state.role.takes_requests();
            let own = self.parts.own.node;
            state.role.record().set.keys().copied().find(|node| takes && *node != own)
        };
        if let Some(target) = target {
            tracing::error!("this node takes no writes any more: it hands over to node {}", target.0);
            self.step(Input::HandOver(target));
        }
    }

    /// A node that is being compared is no member. Where a decision has taken it in all the same, it asks to be put out:
    /// the primary sees nothing wrong with it. `asked_at` is when it did so last.
    pub(super) fn leave_while_syncing(&self, asked_at: &mut Option<Duration>) {
        let now = self.now();
        let due = asked_at.is_none_or(|at| now >= at + self.parts.timing.repeat_after);
        if !due || !self.parts.store.syncing() {
            return;
        }
        let record = self.state.lock().role.record().clone();
        if record.names(self.parts.own) && record.primary != self.parts.own.node {
            *asked_at = Some(now);
            self.parts.control.propose(Decision::Role(record.command(Change::Out(self.parts.own.node))));
        }
    }

    /// Streams to nodes that have come since, and bookmarks.
    fn do_what_is_due(self: &Arc<Node>) {
        if !self.parts.store.syncing() {
            self.measure_bookmarks();
        }
        let serving = {
            let state = self.state.lock();
            state.serving.filter(|epoch| state.role.serves() == Some(*epoch))
        };
        if let Some(epoch) = serving {
            self.ship_to_all(epoch);
            self.keep_bookmarks();
        }
    }
}
