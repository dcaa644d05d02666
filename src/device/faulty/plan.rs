//! What is to go wrong, and when: one plan for all the disks of a simulated machine, in the hand
//! of the test while the store holds the disks.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why every call fails while the world stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the simulated world has stopped")]
pub struct WorldStopped;

impl WorldStopped {
    pub(super) fn error() -> io::Error {
        io::Error::other(WorldStopped)
    }

    /// Whether `error` or anything that caused it is the stopped world.
    #[must_use]
    pub fn is_cause_of(error: &(dyn Error + 'static)) -> bool {
        let mut cause = Some(error);
        while let Some(error) = cause {
            // An I/O error does not name what it wraps as its source.
            let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if error.is::<WorldStopped>() || wrapped.is_some_and(|inner| inner.is::<WorldStopped>()) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// What can go wrong with one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A read fails with EIO.
    FailRead,
    /// A write fails with EIO, and is done in part.
    FailWrite,
    /// A write succeeds and shows in reads, but never reaches the medium.
    LoseWrite,
    /// A write succeeds and shows in reads, but reaches the medium at another place.
    MisdirectWrite,
    /// A sync fails with EIO. Of what it was to make durable some is lost; reads show all of it
    /// until the cache is dropped.
    FailSync,
    /// An allocation fails with ENOSPC.
    RefuseAllocate,
}

/// The kinds of I/O that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoKind {
    Read,
    Write,
    Sync,
    Allocate,
    Discard,
}

impl Fault {
    fn kind(self) -> IoKind {
        match self {
            Fault::FailRead => IoKind::Read,
            Fault::FailWrite | Fault::LoseWrite | Fault::MisdirectWrite => IoKind::Write,
            Fault::FailSync => IoKind::Sync,
            Fault::RefuseAllocate => IoKind::Allocate,
        }
    }
}

/// I/Os of all disks of a plan, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounts {
    /// Reads, tried ones too.
    pub reads: u64,
    /// Writes, each one call whatever its slices.
    pub writes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Allocations.
    pub allocates: u64,
    /// Discards.
    pub discards: u64,
}

impl IoCounts {
    /// I/Os of every kind.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.reads + self.writes + self.syncs + self.allocates + self.discards
    }

    fn of(&mut self, kind: IoKind) -> &mut u64 {
        match kind {
            IoKind::Read => &mut self.reads,
            IoKind::Write => &mut self.writes,
            IoKind::Sync => &mut self.syncs,
            IoKind::Allocate => &mut self.allocates,
            IoKind::Discard => &mut self.discards,
        }
    }
}

/// What the plan has in store for one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Go,
    /// The world stops in the middle of it.
    Stop,
    /// This.
    Strike(Fault),
}

/// Counts the I/Os of a simulated machine's disks, and says which of them go wrong.
///
/// Counts and places are common to all disks of the plan. Every `after` counts from now: 0 is the
/// next I/O.
#[derive(Debug, Default)]
pub struct FaultPlan {
    // The standard library's lock: held for moments, never at a point where a thread may yield.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: IoCounts,
    stopped: bool,
    /// The total at which the world stops.
    stop_at: Option<u64>,
    /// Faults, each with the count of its kind at which it strikes.
    faults: Vec<(Fault, u64)>,
}

impl FaultPlan {
    /// A plan in which nothing goes wrong.
    #[must_use]
    pub fn new() -> Arc<FaultPlan> {
        Arc::new(FaultPlan::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the world at an I/O of any kind: it may be done in part, and it and all after it fail
    /// with `WorldStopped` until `restart`. Takes the place of an earlier stop that has not come.
    pub fn stop_after(&self, after: u64) {
        let mut state = self.state();
        state.stop_at = Some(state.counts.total() + after);
    }

    /// Lets a fault strike an I/O of its kind.
    pub fn inject(&self, fault: Fault, after: u64) {
        let mut state = self.state();
        let strikes_at = *state.counts.of(fault.kind()) + after;
        state.faults.push((fault, strikes_at));
    }

    /// Forgets the stop and the faults that have not come yet.
    pub fn forget_faults(&self) {
        let mut state = self.state();
        state.stop_at = None;
        state.faults.clear();
    }

    /// Whether the world stands still.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Lets a stopped world go on.
    pub fn restart(&self) {
        self.state().stopped = false;
    }

    /// The I/Os so far, failed ones too, but none that found the world stopped.
    #[must_use]
    pub fn counts(&self) -> IoCounts {
        self.state().counts
    }

    /// Counts one I/O that begins.
    pub(super) fn begin(&self, kind: IoKind) -> io::Result<Verdict> {
        let mut state = self.state();
        if state.stopped {
            return Err(WorldStopped::error());
        }
        let total = state.counts.total();
        let of_kind = *state.counts.of(kind);
        *state.counts.of(kind) += 1;
        if state.stop_at.is_some_and(|stop_at| stop_at <= total) {
            state.stop_at = None;
            state.stopped = true;
            return Ok(Verdict::Stop);
        }
        let struck = state
            .faults
            .iter()
            .position(|(fault, strikes_at)| fault.kind() == kind && *strikes_at <= of_kind);
        Ok(struck.map_or(Verdict::Go, |position| Verdict::Strike(state.faults.swap_remove(position).0)))
    }

    /// Refuses what is not counted, while the world stands still.
    pub(super) fn refuse_if_stopped(&self) -> io::Result<()> {
        if self.is_stopped() { Err(WorldStopped::error()) } else { Ok(()) }
    }
}
