//! Beginning and ending terms, and what a primary does now and then: bookmarks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::Result;
use crate::replica::bookmarks::{self, Inventory};
use crate::replica::control::state::FailoverReason;
use crate::replica::epochs::Epochs;
use crate::replica::history;
use crate::replica::role::Action;
use crate::units::{Epoch, Uuid};

use super::Node;

/// A primary with all nodes in sync makes a bookmark this often.
const BOOKMARK_EVERY: Duration = Duration::from_secs(15 * 60);
/// A bookmark is made soon after a node was taken in.
const BOOKMARK_AFTER: Duration = Duration::from_secs(1);
/// A term that cannot be begun is tried again.
const PAUSE: Duration = Duration::from_millis(100);

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
                _ => self.keep_bookmarks(),
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
                        state.bookmark_due_at = self.now() + BOOKMARK_AFTER;
                    }
                    drop(state);
                    self.moved.notify_all();
                    self.ship_to_all(epoch);
                    return;
                }
                Err(error) => {
                    tracing::error!("epoch {}.{} cannot begin: {error}", epoch.generation, epoch.number);
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

    /// Streams to nodes that have come since, and bookmarks while all nodes are in sync.
    fn keep_bookmarks(self: &Arc<Node>) {
        let now = self.now();
        let serving = {
            let state = self.state.lock();
            state.serving.filter(|epoch| state.role.serves() == Some(*epoch))
        };
        let Some(epoch) = serving else { return };
        self.ship_to_all(epoch);
        let due = {
            let mut state = self.state.lock();
            let record = state.role.record();
            let all = self.parts.control.state();
            let data = super::data_nodes(&all.nodes);
            let everybody = data.len() > 1 && data.iter().all(|node| record.set.contains_key(node));
            // One that is made would do away with the bookmark at which nodes are compared.
            let due = everybody && now >= state.bookmark_due_at && !self.verifying.is_running();
            if due {
                state.bookmark_due_at = now + BOOKMARK_EVERY;
            }
            due
        };
        if !due {
            return;
        }
        if let Err(error) = self.make_bookmark() {
            tracing::warn!("a bookmark was not made: {error}");
        }
    }

    /// Makes a bookmark and, once every member has it, deletes the older ones.
    fn make_bookmark(self: &Arc<Node>) -> Result<()> {
        self.admit()?;
        let made = self.make_bookmark_in_term();
        self.done();
        let Some(lsn) = made? else { return Ok(()) };
        self.parts.store.make_durable(lsn.1)?;
        self.durable(lsn.1)?;
        self.admit()?;
        let dropped = bookmarks::drop_all_but(&self.parts.store, &[lsn.0]);
        self.done();
        if let Some(lsn) = dropped? {
            self.parts.store.write_out(lsn)?;
        }
        Ok(())
    }

    fn make_bookmark_in_term(&self) -> Result<Option<(Uuid, crate::units::Lsn)>> {
        let mut bytes = [0; 16];
        self.parts.environment.random.fill(&mut bytes);
        let id = Uuid::from_random(bytes);
        let now = self.parts.environment.clock.since_unix_epoch().as_millis();
        let made_ms = u64::try_from(now).unwrap_or(u64::MAX);
        let lsn = bookmarks::make(&self.parts.array, &self.parts.store, id, made_ms)?;
        Ok(lsn.map(|lsn| (id, lsn)))
    }

    /// The bookmarks of this pool, the oldest first.
    ///
    /// # Errors
    /// `Device`, `Corrupt`.
    pub fn bookmarks(&self) -> Result<Vec<Uuid>> {
        Ok(Inventory::of(&self.parts.store)?.bookmarks())
    }

    /// A node was taken in: a bookmark is due soon.
    pub(super) fn bookmark_soon(&self) {
        let soon = self.now() + BOOKMARK_AFTER;
        self.state.lock().bookmark_due_at = soon;
    }
}
