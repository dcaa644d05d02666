//! The helpers that execute what has to wait, so that the threads which take requests need not.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::Builder;
use std::thread::JoinHandle;

use crate::sync::Condition;
use crate::sync::Mutex;

/// Most jobs that wait for a helper. The kernel sends more at a time only for more processes than that.
const JOBS_MAX: usize = 256;

/// The queue in front of the helpers.
pub(super) struct WaitingQueue<J> {
    state: Mutex<State<J>>,
    arrived: Condition,
}

struct State<J> {
    jobs: VecDeque<J>,
    closed: bool,
}

impl<J: Send + 'static> WaitingQueue<J> {
    /// An empty queue.
    pub(super) fn new() -> WaitingQueue<J> {
        let state = Mutex::new(State { jobs: VecDeque::new(), closed: false });
        WaitingQueue { state, arrived: Condition::new() }
    }

    /// Queues a job, or gives it back where the queue is full or closed.
    pub(super) fn submit(&self, job: J) -> Option<J> {
        let mut state = self.state.lock();
        if state.closed || state.jobs.len() >= JOBS_MAX {
            return Some(job);
        }
        state.jobs.push_back(job);
        drop(state);
        self.arrived.notify_one();
        None
    }

    /// Lets the helpers go once the queue is empty.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }

    fn next(&self) -> Option<J> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state);
        }
    }
}

/// Starts `count` helpers, which end when the queue is closed.
///
/// # Errors
/// What the operating system said; then those that were started end with the queue.
pub(super) fn start<J: Send + 'static>(
    queue: &Arc<WaitingQueue<J>>,
    count: usize,
    execute: impl Fn(J) + Clone + Send + 'static,
) -> io::Result<Vec<JoinHandle<()>>> {
    let helper = |number| {
        let (queue, execute) = (Arc::clone(queue), execute.clone());
        Builder::new().name(format!("fuse-helper-{number}")).spawn(move || {
            while let Some(job) = queue.next() {
                execute(job);
            }
        })
    };
    (0..count).map(helper).collect()
}
