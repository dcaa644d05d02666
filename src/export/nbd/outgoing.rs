//! One connection's replies on their way out.
//!
//! Sending is a role that one thread at a time takes: whoever has a reply and finds the role free
//! sends it, and after it what others have queued meanwhile, together. A worker lends itself to a
//! client only for a moment; where the client is slower than that, a thread of the connection's own
//! takes over, and the connection stops reading until it is done.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::Shutdown;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use super::budget::Buffer;
use super::clock::now;
use super::connection::{Connection, InFlight};
use crate::sync::{Condition, Mutex};

/// How long a worker waits for a client to read, in all.
const WORKER_PATIENCE: Duration = Duration::from_millis(50);

/// Replies that may wait behind the one that is being sent, in bytes, before the connection stops
/// taking requests.
const QUEUED_BYTES_MAX: usize = 1 << 20;

/// Most slices in one send.
const SLICES_MAX: usize = 64;

/// One or more replies that leave together.
pub(super) struct Reply {
    /// Heads, errors, statuses; or a whole group of small replies.
    head: Vec<u8>,
    head_len: usize,
    /// The data of a large read: the first so many bytes of the buffer.
    body: Option<(Buffer, usize)>,
    sent: usize,
    /// The requests that are answered by this.
    _answered: Option<InFlight>,
}

impl Reply {
    pub(super) fn new(head: Vec<u8>, body: Option<(Buffer, usize)>, answered: InFlight) -> Reply {
        Reply { head_len: head.len(), head, body, sent: 0, _answered: Some(answered) }
    }

    /// The replies to a group of requests: the first `len` bytes.
    pub(super) fn group(bytes: Vec<u8>, len: usize) -> Reply {
        Reply { head: bytes, head_len: len, body: None, sent: 0, _answered: None }
    }

    fn len(&self) -> usize {
        self.head_len + self.body.as_ref().map_or(0, |(_, len)| *len)
    }

    /// Appends what is still to be sent.
    fn slices<'a>(&'a self, out: &mut Vec<IoSlice<'a>>) {
        if self.sent < self.head_len {
            out.push(IoSlice::new(&self.head[self.sent..self.head_len]));
        }
        if let Some((buffer, len)) = &self.body {
            out.push(IoSlice::new(&buffer[self.sent.saturating_sub(self.head_len)..*len]));
        }
    }
}

/// How long the thread that sends can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// It has other connections to serve.
    Worker,
    /// It belongs to the connection.
    Owner,
}

enum Sent {
    All,
    TooSlow,
    Broken,
}

/// The queue and the role of the sender.
#[derive(Default)]
pub(super) struct Outgoing {
    state: Mutex<State>,
    changed: Condition,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Reply>,
    queued_bytes: usize,
    sending: bool,
    /// A thread of the connection's own is waiting for the client to read.
    stalled: bool,
    broken: bool,
    /// Threads that wait for the client to catch up.
    waiting: usize,
}

impl State {
    fn behind(&self) -> bool {
        self.stalled || self.queued_bytes > QUEUED_BYTES_MAX
    }
}

impl Outgoing {
    /// Whether the client reads too slowly for more requests to be taken.
    pub(super) fn behind(&self) -> bool {
        self.state.lock().behind()
    }

    /// Waits until all replies have been handed to the operating system, or the connection is given up.
    pub(super) fn wait_until_sent(&self) {
        let mut state = self.state.lock();
        while (state.sending || !state.queue.is_empty()) && !state.broken {
            state.waiting += 1;
            state = self.changed.wait(state);
            state.waiting -= 1;
        }
    }

    /// Waits until the client has caught up, or the connection is given up.
    pub(super) fn wait_while_behind(&self) {
        let mut state = self.state.lock();
        while state.behind() {
            state.waiting += 1;
            state = self.changed.wait(state);
            state.waiting -= 1;
        }
    }
}

impl Connection {
    /// Sends the reply, or leaves it to the thread that is sending. Gives back the memory of the
    /// reply's head where it can be used again.
    pub(super) fn send(self: &Arc<Self>, mut reply: Reply, pace: Pace) -> Option<Vec<u8>> {
        let mut state = self.outgoing.state.lock();
        if state.broken {
            return Some(reply.head);
        }
        if state.sending {
            state.queued_bytes += reply.len();
            state.queue.push_back(reply);
            return None;
        }
        state.sending = true;
        drop(state);
        match self.transmit(std::slice::from_mut(&mut reply), pace) {
            Sent::All => {
                // The request is over before the client can know it: what it sends next finds
                // nothing else in flight.
                let Reply { head, .. } = reply;
                self.send_queued(pace);
                return Some(head);
            }
            Sent::TooSlow => self.stall(VecDeque::from([reply])),
            Sent::Broken => self.give_up(),
        }
        None
    }

    /// Goes on as the sender until nothing is queued.
    fn send_queued(self: &Arc<Self>, pace: Pace) {
        loop {
            let mut state = self.outgoing.state.lock();
            let mut batch = std::mem::take(&mut state.queue);
            if batch.is_empty() {
                state.sending = false;
                state.stalled = false;
            }
            state.queued_bytes = 0;
            if state.waiting > 0 {
                self.outgoing.changed.notify_all();
            }
            drop(state);
            if batch.is_empty() {
                return;
            }
            match self.transmit(batch.make_contiguous(), pace) {
                Sent::All => {}
                Sent::TooSlow => return self.stall(batch),
                Sent::Broken => return self.give_up(),
            }
        }
    }

    /// Sends all of the batch, in order.
    fn transmit(&self, batch: &mut [Reply], pace: Pace) -> Sent {
        let mut first = 0;
        let mut deadline = None;
        while first < batch.len() {
            let mut slices = Vec::with_capacity(batch.len().saturating_mul(2).min(SLICES_MAX));
            for reply in batch[first..].iter().take(SLICES_MAX / 2) {
                reply.slices(&mut slices);
            }
            let Ok(mut sent) = self.socket.send(&slices) else { return Sent::Broken };
            drop(slices);
            if sent == 0 {
                let limit = match pace {
                    Pace::Owner => self.shared.options.send_limit,
                    Pace::Worker => deadline
                        .get_or_insert_with(|| now() + WORKER_PATIENCE)
                        .saturating_duration_since(now()),
                };
                if !self.socket.wait_writable(limit) {
                    return if pace == Pace::Worker { Sent::TooSlow } else { Sent::Broken };
                }
            }
            while first < batch.len() && sent > 0 {
                let reply = &mut batch[first];
                let share = sent.min(reply.len() - reply.sent);
                reply.sent += share;
                sent -= share;
                if reply.sent == reply.len() {
                    first += 1;
                }
            }
        }
        Sent::All
    }

    /// Leaves the rest of the batch, and the role, to a thread of the connection's own.
    fn stall(self: &Arc<Self>, mut batch: VecDeque<Reply>) {
        batch.retain(|reply| reply.sent < reply.len());
        let mut state = self.outgoing.state.lock();
        batch.append(&mut state.queue);
        state.queue = batch;
        state.stalled = true;
        drop(state);
        let connection = Arc::clone(self);
        let spawned = Builder::new()
            .name(format!("nbd-slow-{}", self.id))
            .spawn(move || connection.send_queued(Pace::Owner));
        if spawned.is_err() {
            self.give_up();
        }
    }

    /// Drops the connection: what is queued will never be sent.
    fn give_up(&self) {
        self.socket.shutdown(Shutdown::Both);
        let mut state = self.outgoing.state.lock();
        let unsent = std::mem::take(&mut state.queue);
        state.queued_bytes = 0;
        state.sending = false;
        state.stalled = false;
        state.broken = true;
        self.outgoing.changed.notify_all();
        drop(state);
        drop(unsent);
    }
}
