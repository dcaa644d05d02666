//! The simulator's scheduler: real threads, of which exactly one runs at any time.
//!
//! At every point where a thread could be interrupted (a lock, a wait, a device call) the seed
//! decides who runs next. One seed is one exact schedule, as long as the threads themselves look
//! at no clock, draw no randomness and share state only through `crate::sync`.
//!
//! Nothing outside the simulator and the tests calls this: in production nobody carries a baton,
//! and threads belong to the daemon.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

use super::seeded::SeededNumbers;
use super::{Baton, carry_baton};

/// Yields without any thread ending after which `run_threads` takes the threads to be waiting for
/// each other: some seconds to half a minute.
pub const YIELDS_MAX: u64 = 20_000_000;

/// One thread of a simulation.
pub type Simulated<'scope> = Box<dyn FnOnce() + Send + 'scope>;

/// Nobody holds the baton: the threads are being started, or have all ended.
const NOBODY: usize = usize::MAX;

/// Runs `threads` under the schedule of `seed`, and returns once all of them have ended.
///
/// Must not be called by a thread that itself carries a baton.
///
/// # Panics
/// When one of the threads panics, with its panic: the others are unwound at the points where they
/// stand. When `YIELDS_MAX` yields pass without any thread ending, with a text that names the seed.
pub fn run_threads(seed: u64, threads: Vec<Simulated<'_>>) {
    run_threads_within(seed, YIELDS_MAX, threads);
}

/// As `run_threads`, with a limit of its own for the yields without any thread ending.
///
/// # Panics
/// As `run_threads`.
pub fn run_threads_within(seed: u64, yields_max: u64, threads: Vec<Simulated<'_>>) {
    let turns = Arc::new(Turns::new(seed, yields_max, threads.len()));
    thread::scope(|scope| {
        let mut handles = Vec::new();
        for (index, simulated) in threads.into_iter().enumerate() {
            let seat = Arc::new(Seat { turns: Arc::clone(&turns), index });
            let body = move || seat.run(simulated);
            let spawned = thread::Builder::new().name(format!("simulated-{index}")).spawn_scoped(scope, body);
            handles.push(spawned.expect("the system has room for the few threads of a simulation"));
        }
        turns.start(handles.iter().map(|handle| handle.thread().clone()).collect());
    });
    let panic = turns.lock().panic.take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

/// Whose turn it is, and how the next one is chosen.
struct Turns {
    seed: u64,
    yields_max: u64,
    /// The index of the thread that runs. The others are parked until it becomes theirs.
    holder: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    numbers: SeededNumbers,
    /// At a yield the baton changes hands once in `2^stay` times. Drawn from the seed, because some
    /// faults show only when threads alternate at every step, others only when one runs long.
    stay: u32,
    threads: Vec<Thread>,
    /// Indices of the threads that have not ended, ascending.
    running: Vec<usize>,
    yields: u64,
    /// The first panic of a thread. From then on every other thread unwinds too.
    panic: Option<Box<dyn Any + Send>>,
}

impl Turns {
    fn new(seed: u64, yields_max: u64, count: usize) -> Turns {
        let mut numbers = SeededNumbers::new(seed);
        let stay = u32::try_from(numbers.below(5)).expect("it is below 5");
        let running = (0..count).collect();
        let state = State { numbers, stay, threads: Vec::new(), running, yields: 0, panic: None };
        Turns { seed, yields_max, holder: AtomicUsize::new(NOBODY), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, threads: Vec<Thread>) {
        let mut state = self.lock();
        state.threads = threads;
        self.hand_to_any(&mut state);
    }

    /// Hands the baton to any thread that has not ended; gives its index.
    fn hand_to_any(&self, state: &mut State) -> usize {
        if state.running.is_empty() {
            self.holder.store(NOBODY, Ordering::Release);
            return NOBODY;
        }
        let position = state.numbers.index(state.running.len());
        let next = state.running[position];
        self.holder.store(next, Ordering::Release);
        state.threads[next].unpark();
        next
    }

    fn wait_for_turn(&self, index: usize) {
        while self.holder.load(Ordering::Acquire) != index {
            thread::park();
        }
    }
}

/// One thread's place in the simulation: the baton that it carries.
struct Seat {
    turns: Arc<Turns>,
    index: usize,
}

/// What unwinds the other threads once one has panicked. Never seen outside this file.
struct OtherPanicked;

impl Seat {
    fn run(self: Arc<Self>, simulated: Simulated<'_>) {
        self.turns.wait_for_turn(self.index);
        carry_baton(Some(Arc::clone(&self) as Arc<dyn Baton>));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.unwind_if_another_panicked();
            simulated();
        }));
        carry_baton(None);
        let mut state = self.turns.lock();
        if let Err(panic) = outcome
            && !panic.is::<OtherPanicked>()
        {
            state.panic.get_or_insert(panic);
        }
        state.running.retain(|index| *index != self.index);
        state.yields = 0;
        self.turns.hand_to_any(&mut state);
    }

    fn unwind_if_another_panicked(&self) {
        if !thread::panicking() && self.turns.lock().panic.is_some() {
            // Not `panic!`: one failure should print one message.
            resume_unwind(Box::new(OtherPanicked));
        }
    }
}

impl Baton for Seat {
    fn yield_now(&self) {
        let turns = &*self.turns;
        let mut state = turns.lock();
        debug_assert_eq!(turns.holder.load(Ordering::Relaxed), self.index, "only the holder runs");
        state.yields += 1;
        if state.yields > turns.yields_max {
            state.yields = 0;
            let (seed, yields) = (turns.seed, turns.yields_max);
            drop(state);
            // In a thread that is unwinding already this aborts the process: nothing else can end it.
            panic!("seed {seed}: {yields} yields without any thread ending: the threads wait for each other");
        }
        let stay = state.stay;
        if state.numbers.number() & ((1 << stay) - 1) != 0 {
            return;
        }
        let next = turns.hand_to_any(&mut state);
        drop(state);
        if next != self.index {
            turns.wait_for_turn(self.index);
            self.unwind_if_another_panicked();
        }
    }
}

#[cfg(test)]
#[path = "baton_tests.rs"]
mod tests;
