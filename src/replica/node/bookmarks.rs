//! What a primary does about bookmarks: makes them while all nodes are in sync, and gives them up where they would be in
//! the way of clients, or are kept for a node that stays away.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::replica::bookmarks::{self, Inventory};
use crate::replica::control::state::NodeKind;
use crate::store::ReclaimWalk;
use crate::units::{ByteCount, Lsn, ObjectNumber, Uuid};

use super::Node;

/// A primary with all nodes in sync makes a bookmark this often.
const EVERY: Duration = Duration::from_secs(15 * 60);
/// Or when so much was written since the last one.
const EVERY_BYTES: u64 = 64 << 30;
/// A bookmark is made soon after a node was taken in.
const SOON: Duration = Duration::from_secs(1);
/// How often it is looked whether one is in the way, or too old.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What bookmarks hold is found anew this long after it was found, or so many times as long as that took.
const MEASURED_FOR: Duration = Duration::from_secs(10);
const MEASURED_FOR_TIMES: u32 = 20;
/// Steps of that at a time.
const MEASURE_STEPS: usize = 16;

/// What a node knows of its bookmarks.
#[derive(Default)]
pub(super) struct Bookmarks {
    /// When the next one is due.
    due_at: Duration,
    /// What was written before the last one was made.
    made_at_bytes: u64,
    looked_at: Duration,
    /// Some are here, as far as this primary knows.
    pub(super) held: bool,
    /// Somebody waits for room that they may hold.
    pub(super) unwanted: bool,
    /// What they hold alone.
    pub(super) bytes: ByteCount,
    measuring: Option<Measuring>,
    /// Until then that counts.
    measured_until: Duration,
}

/// The walks along what bookmarks map.
struct Measuring {
    left: Vec<ObjectNumber>,
    walk: Option<ReclaimWalk>,
    found: ByteCount,
    began_at: Duration,
}

impl Node {
    /// A node was taken in, or a term has begun: a bookmark is due soon.
    pub(super) fn bookmark_soon(&self) {
        let soon = self.now() + SOON;
        self.state.lock().bookmarks.due_at = soon;
    }

    /// A primary makes a bookmark where one is due, and gives up those that nobody should wait for.
    pub(super) fn keep_bookmarks(self: &Arc<Node>) {
        let now = self.now();
        let (looks, unwanted, due_at) = {
            let mut state = self.state.lock();
            let looks = now >= state.bookmarks.looked_at + LOOK_EVERY;
            if looks {
                state.bookmarks.looked_at = now;
            }
            (looks, std::mem::take(&mut state.bookmarks.unwanted), state.bookmarks.due_at)
        };
        if !looks && !unwanted {
            return;
        }
        let near_full = self.is_near_full();
        let outcome = if unwanted || near_full {
            self.give_up_bookmarks(&|_| true, "there is no room for them")
        } else {
            let oldest = self.unix_ms().saturating_sub(
                u64::try_from(self.parts.upkeep.bookmark_keep.as_millis()).unwrap_or(u64::MAX),
            );
            self.give_up_bookmarks(&|made_ms| made_ms < oldest, "they are older than bookmark.keep")
        };
        if let Err(error) = outcome {
            tracing::warn!("bookmarks were not given up: {error}");
        }
        let bytes_in = self.parts.store.statistics().bytes_in;
        let due = {
            let mut state = self.state.lock();
            let all = self.parts.control.state();
            let data = super::data_nodes(&all.nodes);
            let set = &state.role.record().set;
            let everybody = data.len() > 1 && data.iter().all(|node| set.contains_key(node));
            let written = bytes_in.saturating_sub(state.bookmarks.made_at_bytes);
            // One that is made would do away with the bookmark at which nodes are compared.
            let due = everybody
                && !near_full
                && !self.verifying.is_running()
                && (now >= due_at || written >= EVERY_BYTES);
            if due {
                state.bookmarks.due_at = now + EVERY;
                state.bookmarks.made_at_bytes = bytes_in;
            }
            due
        };
        if due && let Err(error) = self.make_bookmark() {
            tracing::warn!("a bookmark was not made: {error}");
        }
    }

    /// Gives up the bookmarks that were made when `chosen` says.
    fn give_up_bookmarks(self: &Arc<Node>, chosen: &dyn Fn(u64) -> bool, why: &str) -> Result<()> {
        let all = bookmarks::all(&self.parts.store)?;
        let (gone, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|it| chosen(it.made_ms));
        if !gone.is_empty() {
            tracing::info!("{} bookmarks are given up: {why}", gone.len());
            let kept: Vec<Uuid> = kept.iter().map(|it| it.id).collect();
            self.drop_bookmarks_but(&kept)?;
        }
        let mut state = self.state.lock();
        state.bookmarks.held = !kept.is_empty();
        drop(state);
        self.moved.notify_all();
        Ok(())
    }

    fn drop_bookmarks_but(self: &Arc<Node>, kept: &[Uuid]) -> Result<()> {
        self.admit()?;
        let dropped = bookmarks::drop_all_but(&self.parts.store, kept);
        self.done();
        self.state.lock().bookmarks.measured_until = Duration::ZERO;
        match dropped? {
            Some(lsn) => self.parts.store.write_out(lsn),
            None => Ok(()),
        }
    }

    /// Makes a bookmark and, once every member has it, deletes the older ones that nobody needs.
    fn make_bookmark(self: &Arc<Node>) -> Result<()> {
        self.admit()?;
        let made = self.make_bookmark_in_term();
        self.done();
        let Some((id, lsn)) = made? else { return Ok(()) };
        self.state.lock().bookmarks.held = true;
        self.parts.store.make_durable(lsn)?;
        self.durable(lsn)?;
        // A comparison of all nodes may have begun since.
        let of_others = self.kept_for_others(id, lsn)?.into_iter().chain(self.verifying.bookmark());
        let kept: Vec<Uuid> = std::iter::once(id).chain(of_others).collect();
        self.drop_bookmarks_but(&kept)
    }

    /// The older bookmark that a node which nobody waits for may begin with: while it follows that is the one before, and
    /// while it is away or compared the oldest, which was there before that began.
    fn kept_for_others(&self, made: Uuid, lsn: Lsn) -> Result<Option<Uuid>> {
        let mut older = self.bookmarks()?.into_iter().filter(|id| *id != made);
        let nodes = self.parts.control.state();
        let state = self.state.lock();
        let mut behind = false;
        for (node, entry) in &nodes.nodes {
            let waited_for = *node == self.parts.own.node || state.role.record().set.contains_key(node);
            if entry.kind != NodeKind::Data || waited_for {
                continue;
            }
            let seen = state.shipping.get(node).map(|it| it.figures.state.lock().clone());
            let Some(seen) = seen.filter(|seen| seen.connected && !seen.compared) else {
                return Ok(older.next());
            };
            behind |= seen.applied < lsn;
        }
        Ok(if behind { older.next_back() } else { None })
    }

    fn make_bookmark_in_term(&self) -> Result<Option<(Uuid, Lsn)>> {
        let mut bytes = [0; 16];
        self.parts.environment.random.fill(&mut bytes);
        let id = Uuid::from_random(bytes);
        let lsn = bookmarks::make(&self.parts.array, &self.parts.store, id, self.unix_ms())?;
        Ok(lsn.map(|lsn| (id, lsn)))
    }

    fn unix_ms(&self) -> u64 {
        let now = self.parts.environment.clock.since_unix_epoch().as_millis();
        u64::try_from(now).unwrap_or(u64::MAX)
    }

    /// The bookmarks of this pool, the oldest first.
    ///
    /// # Errors
    /// `Device`, `Corrupt`.
    pub fn bookmarks(&self) -> Result<Vec<Uuid>> {
        Ok(Inventory::of(&self.parts.store)?.bookmarks())
    }

    /// Goes on finding out what bookmarks hold alone, a bounded piece.
    pub(super) fn measure_bookmarks(&self) {
        let now = self.now();
        let measuring = {
            let mut state = self.state.lock();
            if now < state.bookmarks.measured_until && state.bookmarks.measuring.is_none() {
                return;
            }
            state.bookmarks.measuring.take()
        };
        let measured = match measuring {
            Some(measuring) => Ok(measuring),
            None => bookmarks::all(&self.parts.store).map(|all| {
                let left = all.into_iter().flat_map(|it| it.objects).collect();
                Measuring { left, walk: None, found: ByteCount(0), began_at: now }
            }),
        };
        let outcome = measured.and_then(|mut measuring| {
            let more = measuring.go_on(&self.parts.store)?;
            Ok((measuring, more))
        });
        let mut state = self.state.lock();
        let known = &mut state.bookmarks;
        match outcome {
            Ok((measuring, true)) => known.measuring = Some(measuring),
            Ok((measuring, false)) => {
                known.bytes = measuring.found;
                let took = now.saturating_sub(measuring.began_at);
                known.measured_until = now + MEASURED_FOR.max(took * MEASURED_FOR_TIMES);
            }
            // One was deleted meanwhile, or cannot be read.
            Err(_) => known.measured_until = now + MEASURED_FOR,
        }
    }
}

impl Measuring {
    /// Some steps; whether there are more.
    fn go_on(&mut self, store: &crate::store::Store) -> Result<bool> {
        for _ in 0..MEASURE_STEPS {
            let Some(walk) = &mut self.walk else {
                let Some(next) = self.left.pop() else { return Ok(false) };
                self.walk = Some(ReclaimWalk::new(next));
                continue;
            };
            if !store.walk_reclaimable(walk)? {
                self.found.0 += walk.found().unwrap_or_default().bytes().0;
                self.walk = None;
            }
        }
        Ok(true)
    }
}
