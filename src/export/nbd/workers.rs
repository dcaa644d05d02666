//! The threads that execute what may have to wait, shared by all connections.
//!
//! Most of what they do is waiting for a device, so there are more of them than processors. Writes that are to be
//! reduced are work for a processor: only as many as there are processors are begun, and one more for the moments
//! in which one waits for the log. Begun all at once they would all end at once, and the client would have
//! nothing to do until then and too much afterwards.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle, available_parallelism};

use super::connection::Connection;
use super::execute::Work;
use crate::sync::{Condition, Mutex};

/// Work of one connection. What is queued is bounded by the connections' own limits on requests in
/// flight.
struct Job {
    connection: Arc<Connection>,
    work: Work,
    /// Place in the order of arrival.
    number: u64,
}

/// The queue in front of the workers.
pub(super) struct WorkQueue {
    state: Mutex<State>,
    arrived: Condition,
    /// Most writes that are reduced at once.
    reducing_max: usize,
}

#[derive(Default)]
struct State {
    /// Writes to be reduced.
    to_reduce: VecDeque<Job>,
    /// All else.
    others: VecDeque<Job>,
    arrivals: u64,
    reducing: usize,
    /// Workers that wait for a job.
    idle: usize,
    closed: bool,
}

impl State {
    /// Jobs that could be begun.
    fn ready(&self, reducing_max: usize) -> usize {
        self.others.len() + self.to_reduce.len().min(reducing_max - self.reducing)
    }

    /// Takes the oldest job that may be begun; whether it is a write to be reduced.
    fn take(&mut self, reducing_max: usize) -> Option<(Job, bool)> {
        let number = |jobs: &VecDeque<Job>| jobs.front().map_or(u64::MAX, |job| job.number);
        if self.reducing < reducing_max && number(&self.to_reduce) < number(&self.others) {
            self.reducing += 1;
            return Some((self.to_reduce.pop_front()?, true));
        }
        Some((self.others.pop_front()?, false))
    }
}

impl WorkQueue {
    /// An empty queue.
    pub(super) fn new() -> WorkQueue {
        let processors = available_parallelism().map_or(1, usize::from);
        WorkQueue { state: Mutex::default(), arrived: Condition::new(), reducing_max: processors + 1 }
    }

    /// Queues the work of one connection.
    pub(super) fn submit(&self, connection: &Arc<Connection>, works: impl Iterator<Item = Work>) {
        let mut state = self.state.lock();
        let before = state.ready(self.reducing_max);
        for work in works {
            let reduces = work.reduces();
            let job = Job { connection: Arc::clone(connection), work, number: state.arrivals };
            state.arrivals += 1;
            if reduces { state.to_reduce.push_back(job) } else { state.others.push_back(job) }
        }
        let woken = (state.ready(self.reducing_max) - before).min(state.idle);
        drop(state);
        for _ in 0..woken {
            self.arrived.notify_one();
        }
    }

    /// Lets the workers go once the queue is empty.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Executes jobs until the queue is closed and nothing is left for this worker.
    fn serve(&self) {
        let mut state = self.state.lock();
        // Whether this worker has just ended a write for which another may begin.
        let mut ended = false;
        loop {
            if let Some((Job { connection, work, .. }, reduces)) = state.take(self.reducing_max) {
                let passes_on = ended && !reduces && !state.to_reduce.is_empty() && state.idle > 0;
                drop(state);
                if passes_on {
                    self.arrived.notify_one();
                }
                connection.work(work);
                drop(connection);
                state = self.state.lock();
                state.reducing -= usize::from(reduces);
                ended = reduces;
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.arrived.wait(state);
                state.idle -= 1;
                ended = false;
            }
        }
    }
}

/// Starts `count` workers.
pub(super) fn start(queue: &Arc<WorkQueue>, count: usize) -> io::Result<Vec<JoinHandle<()>>> {
    let worker = |number| {
        let queue = Arc::clone(queue);
        Builder::new().name(format!("nbd-worker-{number}")).spawn(move || queue.serve())
    };
    (0..count).map(worker).collect()
}
