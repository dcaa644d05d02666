//! The thread that walks along maps for figures that somebody has asked for: slowly, beside everything else.

use std::sync::Arc;
use std::time::Duration;

use crate::array::Array;
use crate::daemon::background::Stop;

/// Between two steps: a walk takes the processor and the lock of the store now and then, not all the time.
const STEP_WAIT: Duration = Duration::from_millis(1);

/// How long to wait when nothing was asked for.
const IDLE_WAIT: Duration = Duration::from_millis(100);

/// How long to wait after a step failed.
const FAILED_WAIT: Duration = Duration::from_secs(1);

/// The thread, running.
pub(super) struct Measuring {
    stop: Arc<Stop>,
    thread: std::thread::JoinHandle<()>,
}

impl Measuring {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn start(array: Arc<Array>) -> std::io::Result<Measuring> {
        let stop = Arc::<Stop>::default();
        let until = stop.clone();
        let run = move || {
            while !until.is_set() {
                until.wait(match array.measure_step() {
                    Ok(true) => STEP_WAIT,
                    Ok(false) => IDLE_WAIT,
                    Err(error) => {
                        tracing::warn!("measuring: {error}");
                        FAILED_WAIT
                    }
                });
            }
        };
        let thread = std::thread::Builder::new().name("measure".to_owned()).spawn(run)?;
        Ok(Measuring { stop, thread })
    }

    /// Lets the thread finish its step, and waits for it.
    pub(super) fn stop(self) {
        self.stop.set();
        // A panic has already ended the process (`daemon::abort_on_panic`).
        let _ = self.thread.join();
    }
}
