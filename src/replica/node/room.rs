//! Room for what clients write: on this node, and on every other one that must hold it.
//!
//! A member that could not apply an operation would have to leave the set, so a primary refuses before it commits what
//! the smallest member has no room for. What a member has room for it says with its answers; what it has not answered
//! for yet, and what other requests are about to commit, is counted as if nothing of it could be reduced. Before anybody
//! is refused, bookmarks are given up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::ring::Backlog;
use crate::replica::room::fits;
use crate::units::BlockCount;

use super::{Node, State};

/// How long a request waits for room that is being made.
const PATIENCE: Duration = Duration::from_secs(5);
/// For so long after a refusal nobody waits again.
const IMPATIENCE: Duration = Duration::from_secs(5);
/// Blocks of one operation, at most.
const OPERATION_BLOCKS_MAX: u64 = 256;

/// What is set aside.
#[derive(Default)]
pub(super) struct Room {
    /// Blocks of requests that were taken and are not committed, or just have been.
    reserved_blocks: AtomicU64,
    /// When somebody was refused last.
    refused_at: crate::sync::Mutex<Option<Duration>>,
}

/// Who lacks room.
enum Short {
    /// This node.
    Here,
    /// Another member.
    Member(String),
}

impl Node {
    /// Sets room aside for a write, on this node and on all members.
    pub(super) fn reserve(&self, blocks: BlockCount) -> Result<()> {
        let room = &self.room;
        room.reserved_blocks.fetch_add(blocks.0, Ordering::AcqRel);
        let begun = self.now();
        let patient = room.refused_at.lock().is_none_or(|at| begun >= at + IMPATIENCE);
        let mut state = self.state.lock();
        loop {
            let short = self.short_of_room(&state);
            let bookmarks = state.bookmarks.held;
            let what = match short {
                None => return Ok(()),
                // The store itself knows best, once nothing is left to give up.
                Some(Short::Here) if !bookmarks => return Ok(()),
                Some(Short::Here) => "this node has no room".to_owned(),
                Some(Short::Member(name)) => format!("node {name} has no room, which must hold every write"),
            };
            state.bookmarks.unwanted = bookmarks;
            let over = self.now() >= begun + PATIENCE || !patient && !bookmarks;
            if over || state.serving.is_none() || !self.lives() {
                drop(state);
                self.release(blocks);
                *room.refused_at.lock() = Some(self.now());
                return Err(Error::new(ErrorKind::NoSpace, what));
            }
            self.moved.notify_all();
            state = self.moved.wait_for(state, self.parts.timing.heartbeat);
        }
    }

    /// Gives back what was set aside.
    pub(super) fn release(&self, blocks: BlockCount) {
        // What was set aside while the array stood alone was never counted.
        let less = |reserved: u64| Some(reserved.saturating_sub(blocks.0));
        let _ = self.room.reserved_blocks.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    fn short_of_room(&self, state: &State) -> Option<Short> {
        let reserved = BlockCount(self.room.reserved_blocks.load(Ordering::Acquire));
        if !fits(self.parts.store.writable_bytes(), Backlog::default(), reserved) {
            return Some(Short::Here);
        }
        for node in state.role.record().set.keys() {
            let Some(shipping) = state.shipping.get(node) else { continue };
            let (writable, applied) = {
                let seen = shipping.figures.state.lock();
                (seen.writable.filter(|_| seen.connected), seen.applied)
            };
            let Some(writable) = writable else { continue };
            let behind = self.parts.ring.last().0.saturating_sub(applied.0);
            let most = Backlog { operations: behind, blocks: behind.saturating_mul(OPERATION_BLOCKS_MAX) };
            if !fits(writable, most, reserved) && !fits(writable, self.parts.ring.backlog(applied), reserved)
            {
                let entry = self.parts.control.state().nodes.get(node).map(|entry| entry.name.clone());
                return Some(Short::Member(entry.unwrap_or_else(|| node.0.to_string())));
            }
        }
        None
    }

    /// Whether this node or a member has little room left: less than a sixteenth of what it could take.
    pub(super) fn is_near_full(&self) -> bool {
        let usable = self.parts.store.usable_bytes();
        let state = self.state.lock();
        let members = state.role.record().set.keys().filter_map(|node| state.shipping.get(node));
        let writable = members.filter_map(|it| it.figures.state.lock().writable);
        let least = writable.min().unwrap_or(usable).min(self.parts.store.writable_bytes());
        least.0 < usable.0 / 16
    }
}
