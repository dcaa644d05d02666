//! The threads that call the store's bounded steps: background work, the filling of the fingerprint index after
//! a start, the sync of what nobody has flushed, and the packing of blocks for those who write.

use std::sync::Arc;
use std::thread::{JoinHandle, available_parallelism};
use std::time::Duration;

use crate::error::Error;
use crate::store::Store;
use crate::sync::Clock;
use crate::sync::Condition;
use crate::sync::Mutex;
use crate::units::ByteCount;

/// How long to wait when there was no background work.
const IDLE_WAIT: Duration = Duration::from_millis(100);

/// How long to wait after a step failed; a store that has stopped fails every step.
const FAILED_WAIT: Duration = Duration::from_secs(1);

/// How long to wait once the index is filled: it is filled once.
const INDEX_WAIT: Duration = Duration::from_secs(3600);

/// How long to wait once it is known that the store has stopped: nothing changes before the next start.
const STOPPED_WAIT: Duration = Duration::from_secs(3600);

/// How long a helper waits for work at once.
const HELPER_WAIT: Duration = Duration::from_secs(1);

/// How often a scrub reads its part of what it may read in a second.
const SCRUB_STEPS: u32 = 20;

/// Shortest wait between two looks at what must be synced.
const SYNC_WAIT_MIN: Duration = Duration::from_millis(1);

/// How long a start waits for the fingerprint index.
const INDEX_PATIENCE: Duration = Duration::from_secs(1);

/// Fills the fingerprint index with all processors, before clients come who would take them away and store again what
/// is not found yet. What takes too long goes on in the background.
pub(super) fn fill_index(store: &Store, clock: &dyn Clock) {
    let begun = clock.monotonic();
    let fill = || while store.rebuild_index_step() && clock.monotonic() - begun < INDEX_PATIENCE {};
    std::thread::scope(|scope| {
        for _ in 1..available_parallelism().map_or(1, usize::from) {
            scope.spawn(fill);
        }
        fill();
    });
    match store.statistics().index_pages_left {
        0 => {}
        left => tracing::info!(
            "the fingerprint index is filled from {left} more pages in the background: until then, some of what is \
             written again is stored again"
        ),
    }
}

/// The threads, running.
pub(super) struct Background {
    store: Arc<Store>,
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

/// Says when it is time to stop, and wakes those who wait.
#[derive(Default)]
pub(super) struct Stop {
    stopped: Mutex<bool>,
    changed: Condition,
}

impl Stop {
    pub(super) fn is_set(&self) -> bool {
        *self.stopped.lock()
    }

    pub(super) fn set(&self) {
        *self.stopped.lock() = true;
        self.changed.notify_all();
    }

    pub(super) fn wait(&self, limit: Duration) {
        let stopped = self.stopped.lock();
        if !*stopped {
            drop(self.changed.wait_for(stopped, limit));
        }
    }
}

impl Background {
    /// Starts the threads. `stopped` is called soon after the store has stopped taking writes.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn start(
        store: &Arc<Store>,
        scrub_rate: ByteCount,
        stopped: impl Fn() + Send + 'static,
    ) -> std::io::Result<Background> {
        let mut background =
            Background { store: Arc::clone(store), stop: Arc::default(), threads: Vec::new() };
        background.spawn("background", store, |store| {
            Ok(if store.background_step()? { Duration::ZERO } else { IDLE_WAIT })
        })?;
        background.spawn("index", store, |store| {
            Ok(if store.rebuild_index_step() { Duration::ZERO } else { INDEX_WAIT })
        })?;
        background.spawn("sync", store, |store| Ok(store.sync_if_due()?.max(SYNC_WAIT_MIN)))?;
        background.spawn("device", store, move |store| {
            if !store.has_stopped() {
                return Ok(IDLE_WAIT);
            }
            stopped();
            Ok(STOPPED_WAIT)
        })?;
        let helpers = available_parallelism().map_or(1, usize::from) - 1;
        for _ in 0..helpers {
            background.spawn("helper", store, |store| {
                store.help(HELPER_WAIT);
                Ok(Duration::ZERO)
            })?;
        }
        let part = ByteCount(scrub_rate.0 / u64::from(SCRUB_STEPS));
        background.spawn("scrub", store, move |store| {
            Ok(if store.scrub_step(part)? { Duration::from_secs(1) / SCRUB_STEPS } else { IDLE_WAIT })
        })?;
        Ok(background)
    }

    fn spawn(
        &mut self,
        name: &'static str,
        store: &Arc<Store>,
        step: impl Fn(&Store) -> Result<Duration, Error> + Send + 'static,
    ) -> std::io::Result<()> {
        let (store, stop) = (store.clone(), self.stop.clone());
        let run = move || repeat(name, &store, &stop, step);
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }

    /// Lets each thread finish its step, and waits for it.
    pub(super) fn stop(self) {
        self.stop.set();
        self.store.dismiss_helpers();
        for thread in self.threads {
            // A panic has already ended the process (`daemon::abort_on_panic`).
            let _ = thread.join();
        }
    }
}

/// Calls `step` until it is time to stop; says when it begins to fail, and when it works again.
fn repeat(name: &str, store: &Store, stop: &Stop, step: impl Fn(&Store) -> Result<Duration, Error>) {
    let mut failing = false;
    while !stop.is_set() {
        match step(store) {
            Ok(wait) => {
                failing = false;
                if !wait.is_zero() {
                    stop.wait(wait);
                }
            }
            Err(error) => {
                if !failing {
                    tracing::error!("{name}: {error}");
                }
                failing = true;
                stop.wait(FAILED_WAIT);
            }
        }
    }
}
