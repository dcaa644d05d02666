//! The threads that execute what may have to wait, shared by all connections.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::connection::Connection;
use super::execute::Work;
use crate::sync::{Condition, Mutex};

/// Work of one connection. What is queued is bounded by the connections' own limits on requests in
/// flight.
pub(super) struct Job {
    pub(super) connection: Arc<Connection>,
    pub(super) work: Work,
}

/// The queue in front of the workers.
#[derive(Default)]
pub(super) struct WorkQueue {
    state: Mutex<State>,
    arrived: Condition,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Workers that wait for a job.
    idle: usize,
    closed: bool,
}

impl WorkQueue {
    /// Queues the work of one connection.
    pub(super) fn submit(&self, connection: &Arc<Connection>, works: impl Iterator<Item = Work>) {
        let mut state = self.state.lock();
        let before = state.jobs.len();
        state.jobs.extend(works.map(|work| Job { connection: Arc::clone(connection), work }));
        let woken = (state.jobs.len() - before).min(state.idle);
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

    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            state = self.arrived.wait(state);
            state.idle -= 1;
        }
    }
}

/// Starts `count` workers.
pub(super) fn start(queue: &Arc<WorkQueue>, count: usize) -> io::Result<Vec<JoinHandle<()>>> {
    let worker = |number| {
        let queue = Arc::clone(queue);
        Builder::new().name(format!("nbd-worker-{number}")).spawn(move || {
            while let Some(Job { connection, work }) = queue.next() {
                connection.work(work);
            }
        })
    };
    (0..count).map(worker).collect()
}
