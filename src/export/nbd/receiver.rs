//! Receives requests, and finds out which of them are complete and admitted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::{Buffer, RequestBudget, Reservation};
use super::clock::now;
use super::connection::Connection;
use super::errors::Errno;
use super::execute::Work;
use super::group::Group;
use super::request::{Refusal, Request, SHUTTING_DOWN, admit, admit_range, operation_of};
use super::socket::Received;
use super::statistics::Operation;
use super::wire::Decoded;
use super::wire::transmission::{
    PAYLOAD_BYTES_MAX, ReplyTo, RequestHead, command, decode_request, decode_status_payload,
};

/// Receive and reply buffer of a quiet connection, in bytes each.
const BASE_BYTES: usize = 16 << 10;
/// The same of a busy one; comes out of the request budget.
const GROWN_BYTES: usize = 256 << 10;
/// Rounds without need after which a grown buffer is given back.
const SMALL_ROUNDS_MAX: u32 = 4096;

/// Payloads from this length on, in bytes, go through buffers of their own.
pub(super) const LARGE_BYTES: u64 = 64 << 10;
/// How often a group may be added to before it is answered.
const TOP_UPS_MAX: usize = 4;
/// Payloads of refused requests are read and thrown away up to this length, in bytes; a client that
/// sends more is cut off.
const SKIP_BYTES_MAX: u64 = 2 * PAYLOAD_BYTES_MAX as u64;

/// A payload that has begun must arrive within this time, and the time that its length takes at
/// `PAYLOAD_BYTES_PER_SECOND`: it holds memory that others could use.
const PAYLOAD_LIMIT: Duration = Duration::from_secs(30);
const PAYLOAD_BYTES_PER_SECOND: u64 = 256 << 10;

/// Who is receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The connection's own thread: it may wait.
    Owner,
    /// A worker in its place: it may not.
    Deputy,
}

/// How one round of receiving ended.
pub(super) enum Round {
    /// What was received has been seen to.
    Served,
    /// Nothing has arrived.
    Dry,
    /// A deputy would have had to wait for room.
    Full,
    /// The only request there is: the owner should execute it.
    Alone(Work),
    /// Nothing more will be received.
    Closed,
}

/// Why parsing stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parsed {
    Incomplete,
    Full,
    End,
}

/// What to do with the request at the front of the buffer.
enum Next {
    Incomplete,
    Full,
    End,
    /// Dealt with; it took so many bytes of the buffer.
    Taken(usize),
}

/// The receiving side of a connection.
pub(super) struct Receiver {
    pub(super) bytes: Vec<u8>,
    pub(super) start: usize,
    end: usize,
    /// There are bytes that have not been looked at since they came.
    unparsed: bool,
    /// A payload on its way into a buffer of its own.
    incoming: Option<Incoming>,
    /// A payload to be thrown away, and the refusal that follows it.
    skipped: Option<Skipped>,
    /// The last request came with a payload of its own: the next one probably does.
    payload_expected: bool,
    closed: bool,
    pub(super) group: Group,
    /// Requests in the group before.
    last_group: usize,
    /// Requests for workers.
    pub(super) works: Vec<Work>,
    grown: Option<Reservation>,
    small_rounds: u32,
}

struct Incoming {
    request: Request,
    buffer: Buffer,
    filled: usize,
    deadline: Instant,
}

struct Skipped {
    left: u64,
    to: ReplyTo,
    operation: Option<Operation>,
    refusal: Refusal,
    deadline: Instant,
}

impl Receiver {
    /// `received` has come with the end of the handshake.
    pub(super) fn new(received: &[u8]) -> Receiver {
        let mut bytes = vec![0; BASE_BYTES.max(received.len())];
        bytes[..received.len()].copy_from_slice(received);
        Receiver {
            bytes,
            start: 0,
            end: received.len(),
            unparsed: !received.is_empty(),
            incoming: None,
            skipped: None,
            payload_expected: false,
            closed: false,
            group: Group::new(BASE_BYTES),
            last_group: 0,
            works: Vec::new(),
            grown: None,
            small_rounds: 0,
        }
    }

    fn waiting_bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Whether nothing is waiting or on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end && self.incoming.is_none() && self.skipped.is_none()
    }

    /// Makes room behind what is waiting. A request that is handled in the buffer always fits in.
    fn make_room(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Takes larger buffers if the budget has room for them.
    pub(super) fn grow(&mut self, budget: &Arc<RequestBudget>) {
        if self.grown.is_none() {
            self.grown = budget.try_reserve(2 * GROWN_BYTES);
            if self.grown.is_some() {
                self.bytes.resize(GROWN_BYTES.max(self.bytes.len()), 0);
            }
        }
        self.small_rounds = 0;
    }

    /// Goes back to small buffers after a long time without need for the large ones.
    fn shrink_when_quiet(&mut self) {
        if self.grown.is_none() || self.start != self.end {
            return;
        }
        self.small_rounds += 1;
        if self.small_rounds >= SMALL_ROUNDS_MAX {
            self.bytes = vec![0; BASE_BYTES];
            self.group.resize(BASE_BYTES);
            self.grown = None;
        }
    }

    /// Length of a reply buffer at the present size.
    pub(super) fn reply_bytes(&self) -> usize {
        if self.grown.is_some() { GROWN_BYTES } else { BASE_BYTES }
    }
}

impl Connection {
    /// Receives once, and deals with everything that is complete.
    pub(super) fn round(self: &Arc<Self>, rx: &mut Receiver, role: Role) -> Round {
        if rx.closed {
            return Round::Closed;
        }
        match role {
            Role::Owner => self.outgoing.wait_while_behind(),
            Role::Deputy if self.outgoing.behind() => return Round::Full,
            Role::Deputy => {}
        }
        if !rx.unparsed {
            // Once the server refuses, it takes what has come, and the rest of what is on its way.
            let waits = role == Role::Owner && !(self.refuses() && rx.is_empty());
            match self.fill(rx, waits) {
                Received::Closed => rx.closed = true,
                _ if rx.late() => rx.closed = true,
                Received::Nothing => return Round::Dry,
                Received::Bytes(_) => {}
            }
            if rx.closed {
                return Round::Closed;
            }
        }
        rx.unparsed = false;
        rx.group.received = now();
        let mut parsed = self.parse(rx, role);
        if role == Role::Owner && rx.last_group > 1 {
            parsed = self.top_up(rx, parsed);
        }
        rx.last_group = rx.group.requests();
        self.finish_group(rx, role);
        if parsed == Parsed::Incomplete && role == Role::Owner && self.alone(rx) {
            return rx.works.pop().map_or(Round::Served, Round::Alone);
        }
        self.submit(rx);
        match parsed {
            Parsed::Incomplete => Round::Served,
            Parsed::Full => {
                rx.unparsed = true;
                Round::Full
            }
            Parsed::End => {
                rx.closed = true;
                Round::Closed
            }
        }
    }

    /// Lets a client that has several requests under way add to the group: larger groups cost both
    /// sides fewer wake-ups (a fifth to a quarter more requests at depth 32).
    fn top_up(self: &Arc<Self>, rx: &mut Receiver, mut parsed: Parsed) -> Parsed {
        for _ in 0..TOP_UPS_MAX {
            if parsed != Parsed::Incomplete || rx.incoming.is_some() || rx.skipped.is_some() {
                break;
            }
            std::thread::yield_now();
            match self.fill(rx, false) {
                Received::Bytes(_) => parsed = self.parse(rx, Role::Owner),
                // A closed connection is met again by the next round.
                Received::Nothing | Received::Closed => break,
            }
        }
        parsed
    }

    /// Whether there is just one thing to do, and no sign of more. A large payload took its time to
    /// arrive: there is a look at the socket before a worker is done without.
    fn alone(&self, rx: &mut Receiver) -> bool {
        if rx.works.len() != 1 || !rx.is_empty() || self.flight.requests() > 1 {
            return false;
        }
        if rx.works[0].is_large(LARGE_BYTES) && matches!(self.fill(rx, false), Received::Bytes(_)) {
            rx.unparsed = true;
            return false;
        }
        true
    }

    pub(super) fn submit(self: &Arc<Self>, rx: &mut Receiver) {
        if !rx.works.is_empty() {
            self.shared.queue.submit(self, rx.works.drain(..));
        }
    }

    /// Receives into the payload that is on its way, or else into the buffer.
    fn fill(&self, rx: &mut Receiver, wait: bool) -> Received {
        if let Some(incoming) = &mut rx.incoming {
            let len = incoming.request.payload_len();
            let received = self.socket.receive(&mut incoming.buffer[incoming.filled..len], wait);
            if let Received::Bytes(count) = received {
                incoming.filled += count;
            }
            return received;
        }
        rx.make_room();
        // What of a large payload comes into this buffer must be copied out of it again.
        let only_head = rx.payload_expected && rx.start == rx.end;
        let until = if only_head { self.export.style.request_bytes() } else { rx.bytes.len() };
        let received = self.socket.receive(&mut rx.bytes[rx.end..until], wait);
        if let Received::Bytes(count) = received {
            rx.end += count;
            if rx.end == rx.bytes.len() {
                rx.grow(&self.shared.budget);
            } else if rx.end > BASE_BYTES {
                rx.small_rounds = 0;
            } else {
                rx.shrink_when_quiet();
            }
        }
        received
    }

    /// Deals with every complete request in the buffer, which may be filled anew afterwards.
    fn parse(self: &Arc<Self>, rx: &mut Receiver, role: Role) -> Parsed {
        let parsed = self.parse_all(rx, role);
        self.execute_gathered(rx, role);
        parsed
    }

    fn parse_all(self: &Arc<Self>, rx: &mut Receiver, role: Role) -> Parsed {
        loop {
            if let Some(incoming) = rx.incoming.take_if(|it| it.filled == it.request.payload_len()) {
                let in_flight = self.flight.start();
                rx.works.push(Work::Request(incoming.request, Some(incoming.buffer), in_flight));
            }
            if rx.incoming.is_some() || !self.skip(rx, role) {
                return Parsed::Incomplete;
            }
            let head = match decode_request(rx.waiting_bytes(), self.export.style) {
                Decoded::Incomplete => return Parsed::Incomplete,
                Decoded::Foreign => return Parsed::End,
                Decoded::Complete(head) => head,
            };
            match self.next(rx, &head, role) {
                Next::Incomplete => return Parsed::Incomplete,
                Next::Full => return Parsed::Full,
                Next::End => return Parsed::End,
                Next::Taken(bytes) => rx.start += bytes,
            }
        }
    }

    /// Throws away what has come of a refused payload; true once none of it is missing.
    fn skip(self: &Arc<Self>, rx: &mut Receiver, role: Role) -> bool {
        let Some(mut skipped) = rx.skipped.take() else { return true };
        let here = skipped.left.min(rx.waiting_bytes().len() as u64);
        rx.start += usize::try_from(here).expect("no more than the buffer holds");
        skipped.left -= here;
        if skipped.left > 0 {
            rx.skipped = Some(skipped);
            return false;
        }
        self.refuse(rx, role, skipped.to, skipped.operation, skipped.refusal);
        true
    }

    /// Deals with the request at the front of the buffer, or leaves everything as it is.
    fn next(self: &Arc<Self>, rx: &mut Receiver, head: &RequestHead, role: Role) -> Next {
        let style = self.export.style;
        let head_bytes = style.request_bytes();
        let payload = head.payload_bytes(style);
        if head.command == command::DISC || payload > SKIP_BYTES_MAX {
            return Next::End;
        }
        let admitted = if self.refuses() { Err(SHUTTING_DOWN) } else { admit(head, &self.export) };
        let operation = match admitted {
            Ok(operation) => operation,
            Err(refusal) => return self.begin_skip(rx, head, payload, refusal),
        };
        let mut request = Request {
            operation,
            flags: head.flags,
            cookie: head.cookie,
            offset: head.offset,
            length: head.length,
            contexts: self.export.contexts.all(),
            received: rx.group.received,
        };
        let payload = usize::try_from(payload).expect("admitted payloads are no longer than 32 MiB");
        rx.payload_expected = payload as u64 >= LARGE_BYTES;
        if payload as u64 >= LARGE_BYTES || head_bytes + payload > rx.bytes.len() {
            return self.begin_payload(rx, request, role);
        }
        let Some(data) = rx.waiting_bytes().get(head_bytes..head_bytes + payload) else {
            return Next::Incomplete;
        };
        if operation == Operation::BlockStatus && payload > 0 {
            let chosen = decode_status_payload(data)
                .and_then(|(length, numbers)| Some((length, self.export.contexts.some(&numbers)?)));
            let invalid =
                Refusal { errno: Errno::Invalid, message: "not a choice of the contexts there are" };
            let range = chosen.ok_or(invalid).and_then(|(length, contexts)| {
                admit_range(operation, head.offset, length, &self.export).map(|()| (length, contexts))
            });
            match range {
                Ok((length, contexts)) => (request.length, request.contexts) = (length, contexts),
                Err(refusal) => {
                    self.refuse(rx, role, request.reply_to(style), Some(operation), refusal);
                    return Next::Taken(head_bytes + payload);
                }
            }
        }
        match self.admitted(rx, request, role) {
            true => Next::Taken(head_bytes + payload),
            false => Next::Full,
        }
    }

    /// A refused request: its payload, if any, goes before the answer.
    fn begin_skip(&self, rx: &mut Receiver, head: &RequestHead, payload: u64, refusal: Refusal) -> Next {
        rx.skipped = Some(Skipped {
            left: payload,
            to: ReplyTo { style: self.export.style, cookie: head.cookie, offset: head.offset },
            operation: operation_of(head.command),
            refusal,
            deadline: payload_deadline(rx.group.received, payload),
        });
        Next::Taken(self.export.style.request_bytes())
    }

    /// A large write: its payload is received into a buffer of its own.
    fn begin_payload(self: &Arc<Self>, rx: &mut Receiver, request: Request, role: Role) -> Next {
        let head_bytes = self.export.style.request_bytes();
        let len = request.payload_len();
        let Some(mut buffer) = self.memory(rx, len, role) else { return Next::Full };
        let here = rx.waiting_bytes();
        let here = &here[head_bytes..here.len().min(head_bytes + len)];
        buffer[..here.len()].copy_from_slice(here);
        let filled = here.len();
        let deadline = payload_deadline(rx.group.received, request.length);
        rx.incoming = Some(Incoming { request, buffer, filled, deadline });
        Next::Taken(head_bytes + filled)
    }
}

impl Receiver {
    /// Whether a payload has taken too long to arrive.
    fn late(&self) -> bool {
        let incoming = self.incoming.as_ref().map(|it| it.deadline);
        let skipped = self.skipped.as_ref().map(|it| it.deadline);
        incoming.or(skipped).is_some_and(|deadline| now() > deadline)
    }
}

fn payload_deadline(received: Instant, len: u64) -> Instant {
    received + PAYLOAD_LIMIT + Duration::from_secs(len / PAYLOAD_BYTES_PER_SECOND)
}
