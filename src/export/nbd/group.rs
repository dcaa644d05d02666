//! What becomes of admitted requests: small ones are executed at once, as a group, the rest is
//! made work for others.
//!
//! All complete requests in the receive buffer form a group: reads that need no waiting and small
//! writes are executed one after the other, then one `acknowledge` serves all the writes, then one
//! send answers everything. Nothing of a group is sent before its writes are acknowledged: a read
//! in it may have seen them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::budget::Buffer;
use super::clock::now;
use super::connection::{Connection, IN_FLIGHT_MAX};
use super::errors::{Errno, message_of};
use super::execute::{Durable, Work, bytes_moved, is_zero, may_be_hole};
use super::outgoing::{Pace, Reply};
use super::receiver::{LARGE_BYTES, Receiver, Role};
use super::request::{Refusal, Request};
use super::statistics::{Operation, Tally};
use super::wire::transmission::{Head, ReplyTo, command_flag};
use crate::array::service::{Change, Commit, GroupedWrite};
use crate::error::{Error, Result};
use crate::units::ByteCount;

/// Trims and zeroings from this length on, in bytes, may take long enough to hold up others.
const LONG_RANGE_BYTES: u64 = 16 << 20;
/// Memory for one CACHE request, in bytes.
const CACHE_SCRATCH_BYTES: usize = 1 << 20;

/// The requests that are answered together.
pub(super) struct Group {
    pub(super) received: Instant,
    reply: Vec<u8>,
    reply_len: usize,
    /// Small writes that have not been executed yet, and where their data is in the receive buffer.
    gathered: Vec<(Request, Range<usize>)>,
    writes: Vec<Request>,
    highest: Option<Commit>,
    durables: Vec<Durable>,
    tallies: [Tally; Operation::ALL.len()],
}

impl Group {
    /// An empty group, with room for replies of `reply_bytes`.
    pub(super) fn new(reply_bytes: usize) -> Group {
        Group {
            received: now(),
            reply: vec![0; reply_bytes],
            reply_len: 0,
            gathered: Vec::new(),
            writes: Vec::new(),
            highest: None,
            durables: Vec::new(),
            tallies: Default::default(),
        }
    }

    /// Gives an empty group room for replies of `reply_bytes`, and no more.
    pub(super) fn resize(&mut self, reply_bytes: usize) {
        if self.reply.len() != reply_bytes {
            self.reply.resize(reply_bytes, 0);
            self.reply.shrink_to_fit();
        }
    }

    /// Requests that were executed and wait for the end of the group.
    pub(super) fn requests(&self) -> usize {
        let answered: u64 = self.tallies.iter().map(|tally| tally.requests).sum();
        self.writes.len() + usize::try_from(answered).unwrap_or(usize::MAX)
    }

    fn room(&self) -> usize {
        self.reply.len() - self.reply_len
    }

    fn put(&mut self, bytes: &[u8]) {
        self.reply[self.reply_len..self.reply_len + bytes.len()].copy_from_slice(bytes);
        self.reply_len += bytes.len();
    }
}

impl Connection {
    /// Executes a request whose payload, if any, lies complete in the buffer, or makes work of it.
    /// False where a deputy would have to wait for room.
    pub(super) fn admitted(self: &Arc<Self>, rx: &mut Receiver, request: Request, role: Role) -> bool {
        if request.operation == Operation::Write {
            let at = rx.start + self.export.style.request_bytes();
            rx.group.gathered.push((request, at..at + request.payload_len()));
            return true;
        }
        self.execute_gathered(rx, role);
        let (offset, len) = (request.offset, ByteCount(request.length));
        let long = request.length >= LONG_RANGE_BYTES;
        match request.operation {
            Operation::Read => return self.read(rx, request, role),
            Operation::Trim if !long => {
                let result = self.change(&request, Change::Trim { offset, len });
                self.written(rx, request, result, role);
            }
            Operation::WriteZeroes if !long => {
                let result = self.change(&request, Change::Zeroes { offset, len });
                self.written(rx, request, result, role);
            }
            Operation::Flush => return self.durable(rx, request, None, role),
            Operation::Cache => return self.make_work(rx, request, CACHE_SCRATCH_BYTES, role),
            Operation::Write | Operation::Trim | Operation::WriteZeroes | Operation::BlockStatus => {
                return self.make_work(rx, request, 0, role);
            }
        }
        true
    }

    /// Executes the small writes that have been gathered.
    pub(super) fn execute_gathered(self: &Arc<Self>, rx: &mut Receiver, role: Role) {
        if rx.group.gathered.is_empty() {
            return;
        }
        let mut gathered = std::mem::take(&mut rx.group.gathered);
        let one = |(request, place): &(Request, Range<usize>)| GroupedWrite {
            request: self.request_id(request),
            offset: request.offset,
            data: &rx.bytes[place.clone()],
        };
        let writes: Vec<GroupedWrite<'_>> = gathered.iter().map(one).collect();
        let results = self.export.service.write_group(&writes);
        for ((request, _), result) in gathered.drain(..).zip(results) {
            self.written(rx, request, result, role);
        }
        rx.group.gathered = gathered;
    }

    /// A read: into the reply where it is small and needs no waiting, else through a buffer.
    fn read(self: &Arc<Self>, rx: &mut Receiver, request: Request, role: Role) -> bool {
        let len = request.payload_len();
        let head_bytes_max = Head::BYTES_MAX;
        if request.length < LARGE_BYTES && rx.group.room() < head_bytes_max + len {
            rx.grow(&self.shared.budget);
            self.finish_group(rx, role);
        }
        if request.length >= LARGE_BYTES || rx.group.room() < head_bytes_max + len {
            return self.make_work(rx, request, len, role);
        }
        let style = self.export.style;
        let to = request.reply_to(style);
        let wire_len = u32::try_from(len).expect("a small read");
        let head = to.data(wire_len);
        let at = rx.group.reply_len;
        let space = &mut rx.group.reply[at..];
        let (space_head, space_data) = space[..head.len() + len].split_at_mut(head.len());
        match self.export.service.try_read(request.offset, space_data) {
            Ok(false) => return self.make_work(rx, request, len, role),
            Ok(true) if may_be_hole(&request, style) && is_zero(space_data) => {
                let hole = to.hole(wire_len);
                space[..hole.len()].copy_from_slice(&hole);
                rx.group.reply_len += hole.len();
                rx.group.tallies[Operation::Read as usize].succeeded(request.length);
            }
            Ok(true) => {
                space_head.copy_from_slice(&head);
                rx.group.reply_len += head.len() + len;
                rx.group.tallies[Operation::Read as usize].succeeded(request.length);
            }
            Err(error) => self.fail(rx, role, &request, &error),
        }
        true
    }

    /// What a small write, trim or zeroing came to. It is answered with its group.
    fn written(self: &Arc<Self>, rx: &mut Receiver, request: Request, result: Result<Commit>, role: Role) {
        match result {
            Ok(commit) => {
                rx.group.highest = rx.group.highest.max(Some(commit));
                if request.has(command_flag::FUA) {
                    let in_flight = self.flight.start();
                    rx.group.durables.push(Durable { request, commit: Some(commit), in_flight });
                } else {
                    rx.group.writes.push(request);
                }
            }
            Err(error) => self.fail(rx, role, &request, &error),
        }
    }

    /// A request that is answered with the next sync.
    fn durable(
        self: &Arc<Self>,
        rx: &mut Receiver,
        request: Request,
        commit: Option<Commit>,
        role: Role,
    ) -> bool {
        if !self.room_in_flight(rx, role) {
            return false;
        }
        rx.group.durables.push(Durable { request, commit, in_flight: self.flight.start() });
        true
    }

    /// Makes work of a request, with `bytes` of memory.
    fn make_work(self: &Arc<Self>, rx: &mut Receiver, request: Request, bytes: usize, role: Role) -> bool {
        if !self.room_in_flight(rx, role) {
            return false;
        }
        let buffer = if bytes == 0 {
            None
        } else {
            let Some(buffer) = self.memory(rx, bytes, role) else { return false };
            Some(buffer)
        };
        rx.works.push(Work::Request(request, buffer, self.flight.start()));
        true
    }

    /// Memory for a payload. The owner waits for it, after it has let go of everything that others
    /// may be waiting for.
    pub(super) fn memory(self: &Arc<Self>, rx: &mut Receiver, len: usize, role: Role) -> Option<Buffer> {
        let buffer = self.shared.budget.try_take(len);
        if buffer.is_some() || role == Role::Deputy {
            return buffer;
        }
        self.finish_group(rx, role);
        self.submit(rx);
        Some(self.shared.budget.take(len))
    }

    /// Whether one more request may be under way; the owner waits until it may.
    fn room_in_flight(self: &Arc<Self>, rx: &mut Receiver, role: Role) -> bool {
        if self.flight.requests() < IN_FLIGHT_MAX {
            return true;
        }
        if role == Role::Deputy {
            return false;
        }
        self.finish_group(rx, role);
        self.submit(rx);
        self.flight.wait_for_room();
        true
    }

    fn fail(self: &Arc<Self>, rx: &mut Receiver, role: Role, request: &Request, error: &Error) {
        rx.group.tallies[request.operation as usize].failed();
        let to = request.reply_to(self.export.style);
        self.put_error(rx, role, to, Errno::from(error.kind()), &message_of(error));
    }

    pub(super) fn refuse(
        self: &Arc<Self>,
        rx: &mut Receiver,
        role: Role,
        to: ReplyTo,
        operation: Option<Operation>,
        refusal: Refusal,
    ) {
        if let Some(operation) = operation {
            rx.group.tallies[operation as usize].failed();
        }
        self.put_error(rx, role, to, refusal.errno, refusal.message);
    }

    fn put_error(self: &Arc<Self>, rx: &mut Receiver, role: Role, to: ReplyTo, errno: Errno, message: &str) {
        let mut bytes = Vec::with_capacity(64);
        to.put_error(&mut bytes, errno.code(), message);
        if rx.group.room() < bytes.len() {
            self.finish_group(rx, role);
        }
        rx.group.put(&bytes);
    }

    /// Makes the writes of the group safe, and answers all of it.
    pub(super) fn finish_group(self: &Arc<Self>, rx: &mut Receiver, role: Role) {
        self.execute_gathered(rx, role);
        let acknowledged = match rx.group.highest.take() {
            Some(commit) => self.export.service.acknowledge(commit),
            None => Ok(()),
        };
        if let Err(error) = &acknowledged {
            self.fail_durables(rx, role, error);
        }
        let writes = std::mem::take(&mut rx.group.writes);
        for request in &writes {
            let to = request.reply_to(self.export.style);
            let tally = &mut rx.group.tallies[request.operation as usize];
            let mut bytes = Vec::new();
            let done = match &acknowledged {
                Ok(()) => {
                    tally.succeeded(bytes_moved(request));
                    Some(to.done())
                }
                Err(error) => {
                    tally.failed();
                    to.put_error(&mut bytes, Errno::from(error.kind()).code(), &message_of(error));
                    None
                }
            };
            let bytes = done.as_deref().unwrap_or(&bytes);
            if rx.group.room() < bytes.len() {
                self.send_group(rx, role);
            }
            rx.group.put(bytes);
        }
        rx.group.writes = writes;
        rx.group.writes.clear();
        self.count_group(rx);
        self.send_group(rx, role);
        if !rx.group.durables.is_empty() && self.wait_for_durability(&mut rx.group.durables) {
            rx.works.push(Work::Durable);
        }
    }

    /// Answers the writes that were to be made durable, and could not even be acknowledged.
    fn fail_durables(self: &Arc<Self>, rx: &mut Receiver, role: Role, error: &Error) {
        let durables = std::mem::take(&mut rx.group.durables);
        let (writes, flushes): (Vec<_>, Vec<_>) =
            durables.into_iter().partition(|durable| durable.commit.is_some());
        rx.group.durables = flushes;
        for Durable { request, .. } in writes {
            rx.group.tallies[request.operation as usize].failed();
            let mut bytes = Vec::new();
            let to = request.reply_to(self.export.style);
            to.put_error(&mut bytes, Errno::from(error.kind()).code(), &message_of(error));
            if rx.group.room() < bytes.len() {
                self.send_group(rx, role);
            }
            rx.group.put(&bytes);
        }
    }

    fn count_group(&self, rx: &mut Receiver) {
        let latency = now() - rx.group.received;
        for operation in Operation::ALL {
            let tally = std::mem::take(&mut rx.group.tallies[operation as usize]);
            if tally.requests > 0 {
                self.shared.statistics.count(operation, tally, latency);
            }
        }
    }

    fn send_group(self: &Arc<Self>, rx: &mut Receiver, role: Role) {
        if rx.group.reply_len > 0 {
            let pace = match role {
                Role::Owner => Pace::Owner,
                Role::Deputy => Pace::Worker,
            };
            if role == Role::Owner {
                self.outgoing.wait_while_behind();
            }
            let reply = Reply::group(std::mem::take(&mut rx.group.reply), rx.group.reply_len);
            rx.group.reply = self.send(reply, pace).unwrap_or_default();
            rx.group.reply_len = 0;
        }
        let wanted = rx.reply_bytes();
        rx.group.resize(wanted);
    }
}
