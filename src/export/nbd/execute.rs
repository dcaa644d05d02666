//! Executes requests outside the receive buffer: on a worker, or on the connection's own thread
//! where there is nothing else to do.

use std::iter;
use std::sync::Arc;

use super::budget::Buffer;
use super::clock::now;
use super::connection::{Connection, InFlight};
use super::contexts::Context;
use super::errors::{Errno, message_of};
use super::outgoing::Reply;
use super::request::Request;
use super::statistics::{Operation, Tally};
use super::wire::transmission::{STATE_CHANGED, STATE_HOLE, STATE_ZERO, Style, command_flag};
use crate::array::ChangedExtent;
use crate::array::service::{Change, Commit, Extent, ExtentKind};
use crate::error::Result;
use crate::units::{ByteCount, RequestId, RequestNumber};

/// Most extents in one answer to BLOCK_STATUS; a client asks again for the rest.
const EXTENTS_MAX: usize = 4096;

/// Most bytes that one CACHE request reads ahead.
const CACHE_BYTES_MAX: u64 = 32 << 20;

/// Something to do outside the receive buffer.
pub(super) enum Work {
    /// A request, with memory for its data where it has any.
    Request(Request, Option<Buffer>, InFlight),
    /// What stands in the connection's `DurableQueue`.
    Durable,
    /// Receiving while the owner is away.
    Deputy,
}

impl Work {
    /// Whether it is worth looking for more requests before the owner executes it.
    pub(super) fn is_large(&self, large: u64) -> bool {
        matches!(self, Work::Request(request, Some(_), _) if request.length >= large)
    }

    /// Whether it is a write that keeps a processor busy, and is answered without waiting for a sync.
    pub(super) fn reduces(&self) -> bool {
        matches!(self, Work::Request(request, ..)
            if request.operation == Operation::Write && !request.has(command_flag::FUA))
    }
}

/// A request that is answered once it is durable: a FLUSH, or a write with FUA.
pub(super) struct Durable {
    pub(super) request: Request,
    /// What the write committed; `None` for a FLUSH.
    pub(super) commit: Option<Commit>,
    pub(super) in_flight: InFlight,
}

/// Requests of one connection that wait for durability. Those that gather while one sync is under
/// way share the next.
#[derive(Default)]
pub(super) struct DurableQueue {
    waiting: Vec<Durable>,
    scheduled: bool,
}

impl Connection {
    /// Adds requests to the queue; true where the caller has to see to it that `Work::Durable` is
    /// executed.
    pub(super) fn wait_for_durability(&self, requests: &mut Vec<Durable>) -> bool {
        let mut queue = self.durable.lock();
        queue.waiting.append(requests);
        !std::mem::replace(&mut queue.scheduled, true)
    }

    /// Executes the work and gives the reply, if there is one.
    pub(super) fn execute(self: &Arc<Self>, work: Work) -> Option<Reply> {
        match work {
            Work::Request(request, buffer, in_flight) => {
                Some(self.execute_request(&request, buffer, in_flight))
            }
            Work::Durable => self.execute_durable(),
            Work::Deputy => None,
        }
    }

    fn execute_request(&self, request: &Request, mut buffer: Option<Buffer>, in_flight: InFlight) -> Reply {
        let service = &self.export.service;
        let (offset, len) = (request.offset, ByteCount(request.length));
        let data = buffer.as_deref_mut().unwrap_or_default();
        let confirm = |commit| self.confirm(request, commit);
        let mut statuses = Vec::new();
        let result = match request.operation {
            Operation::Read => service.read(offset, &mut data[..request.payload_len()]),
            Operation::Write => {
                let change = Change::Write { offset, data: &data[..request.payload_len()] };
                self.change(request, change).and_then(confirm)
            }
            Operation::Trim => self.change(request, Change::Trim { offset, len }).and_then(confirm),
            Operation::WriteZeroes => self.change(request, Change::Zeroes { offset, len }).and_then(confirm),
            Operation::Cache => self.read_ahead(request, data),
            Operation::Flush => service.flush(),
            Operation::BlockStatus => self.statuses(request).map(|found| statuses = found),
        };
        let mut tally = Tally::default();
        let mut head = Vec::with_capacity(64);
        let mut body = None;
        let to = request.reply_to(self.export.style);
        match result {
            Err(error) => {
                tally.failed();
                to.put_error(&mut head, Errno::from(error.kind()).code(), &message_of(&error));
            }
            Ok(()) => {
                tally.succeeded(bytes_moved(request));
                match request.operation {
                    Operation::Read => body = self.read_reply(request, &mut head, buffer),
                    Operation::BlockStatus => {
                        let last = statuses.len() - 1;
                        for (place, (context, states)) in statuses.iter().enumerate() {
                            to.put_status(&mut head, *context, states, place == last);
                        }
                    }
                    _ => head.extend_from_slice(&to.done()),
                }
            }
        }
        self.shared.statistics.count(request.operation, tally, now() - request.received);
        Reply::new(head, body, in_flight)
    }

    /// What the request's range is in each context that it is about (at least one).
    fn statuses(&self, request: &Request) -> Result<Vec<(u32, Vec<State>)>> {
        let (offset, len) = (request.offset, ByteCount(request.length));
        let extents_max = if request.has(command_flag::REQ_ONE) { 1 } else { EXTENTS_MAX };
        let contexts = self.export.contexts.of(request.contexts);
        contexts
            .map(|(number, context)| {
                let states = match context {
                    Context::Allocation => {
                        allocation(&self.export.service.block_status(offset, len, extents_max)?, len.0)
                    }
                    Context::Changes(source) => changed(&source.changes(offset, len, extents_max)?, len.0),
                };
                Ok((number, states))
            })
            .collect()
    }

    /// The reply to a read that succeeded: zeros are not sent where the client can do without.
    fn read_reply(
        &self,
        request: &Request,
        head: &mut Vec<u8>,
        buffer: Option<Buffer>,
    ) -> Option<(Buffer, usize)> {
        let buffer = buffer?;
        let len = request.payload_len();
        let wire_len = u32::try_from(len).expect("admitted payloads are no longer than 32 MiB");
        let to = request.reply_to(self.export.style);
        if may_be_hole(request, self.export.style) && is_zero(&buffer[..len]) {
            head.extend_from_slice(&to.hole(wire_len));
            return None;
        }
        head.extend_from_slice(&to.data(wire_len));
        Some((buffer, len))
    }

    /// Carries out a change: for a client that may have sent it before, what has not been done yet. Such a client
    /// numbers its requests by their cookies.
    pub(super) fn change(&self, request: &Request, change: Change<'_>) -> Result<Commit> {
        let service = &self.export.service;
        if let Some(request) = self.request_id(request) {
            return service.change_once(request, change);
        }
        match change {
            Change::Write { offset, data } => service.write(offset, data),
            Change::Trim { offset, len } => service.trim(offset, len),
            Change::Zeroes { offset, len } => service.write_zeroes(offset, len),
        }
    }

    /// Which request it is, where the client may send it again.
    pub(super) fn request_id(&self, request: &Request) -> Option<RequestId> {
        let session = self.export.contexts.session()?;
        Some(RequestId { session, number: RequestNumber(request.cookie) })
    }

    fn confirm(&self, request: &Request, commit: Commit) -> Result<()> {
        if request.has(command_flag::FUA) {
            self.export.service.make_durable(commit)
        } else {
            self.export.service.acknowledge(commit)
        }
    }

    fn read_ahead(&self, request: &Request, scratch: &mut [u8]) -> Result<()> {
        let end = request.offset + request.length.min(CACHE_BYTES_MAX);
        let mut offset = request.offset;
        while offset < end {
            let len = scratch.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
            self.export.service.read(offset, &mut scratch[..len])?;
            offset += len as u64;
        }
        Ok(())
    }

    /// One sync for all that wait; what comes meanwhile waits for the next.
    fn execute_durable(self: &Arc<Self>) -> Option<Reply> {
        let waiting = std::mem::take(&mut self.durable.lock().waiting);
        let service = &self.export.service;
        let flush = waiting.iter().any(|durable| durable.commit.is_none());
        let commit = waiting.iter().filter_map(|durable| durable.commit).max();
        let result = match commit {
            // A flush covers what was acknowledged before it.
            Some(commit) if flush => service.acknowledge(commit).and_then(|()| service.flush()),
            Some(commit) => service.make_durable(commit),
            None => service.flush(),
        };
        let mut head = Vec::with_capacity(32 * waiting.len());
        let mut in_flight: Option<InFlight> = None;
        let answered = now();
        for durable in waiting {
            let to = durable.request.reply_to(self.export.style);
            let mut tally = Tally::default();
            match &result {
                Ok(()) => {
                    tally.succeeded(bytes_moved(&durable.request));
                    head.extend_from_slice(&to.done());
                }
                Err(error) => {
                    tally.failed();
                    to.put_error(&mut head, Errno::from(error.kind()).code(), &message_of(error));
                }
            }
            let Durable { request, in_flight: one, .. } = durable;
            self.shared.statistics.count(request.operation, tally, answered - request.received);
            in_flight = Some(match in_flight {
                Some(others) => others.and(one),
                None => one,
            });
        }
        let mut queue = self.durable.lock();
        queue.scheduled = !queue.waiting.is_empty();
        if queue.scheduled {
            drop(queue);
            self.shared.queue.submit(self, iter::once(Work::Durable));
        }
        in_flight.map(|in_flight| Reply::new(head, None, in_flight))
    }
}

/// What a successful request counts for in the statistics.
pub(super) fn bytes_moved(request: &Request) -> u64 {
    match request.operation {
        Operation::Read | Operation::Write | Operation::Trim | Operation::WriteZeroes => request.length,
        Operation::Flush | Operation::Cache | Operation::BlockStatus => 0,
    }
}

/// Whether zeros may be answered without sending them.
pub(super) fn may_be_hole(request: &Request, style: Style) -> bool {
    style != Style::Simple && !request.has(command_flag::DF)
}

/// Whether all bytes are zero; stops at the first stretch that is not.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    rest.iter().all(|byte| *byte == 0)
        && chunks.iter().all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// A length in bytes, and state flags.
type State = (u64, u32);

/// The states of `base:allocation`. A pattern takes no space, but the protocol's "hole" would promise that
/// it reads as nothing in particular.
fn allocation(extents: &[Extent], length: u64) -> Vec<State> {
    let states = extents.iter().map(|extent| match extent.kind {
        ExtentKind::Data | ExtentKind::Pattern => (extent.len.0, 0),
        ExtentKind::Hole => (extent.len.0, STATE_HOLE | STATE_ZERO),
    });
    joined(states, length)
}

/// The states of `sinter:changed-since`.
fn changed(extents: &[ChangedExtent], length: u64) -> Vec<State> {
    let states =
        extents.iter().map(|extent| (extent.len.0, if extent.changed.is_some() { STATE_CHANGED } else { 0 }));
    joined(states, length)
}

/// Neighbours of one state joined, none reaching past the `length` asked about.
fn joined(found: impl ExactSizeIterator<Item = State>, length: u64) -> Vec<State> {
    let mut states: Vec<State> = Vec::with_capacity(found.len());
    let mut left = length;
    for (len, state) in found {
        let len = len.min(left);
        left -= len;
        match states.last_mut() {
            Some(last) if last.1 == state => last.0 += len,
            _ if len > 0 => states.push((len, state)),
            _ => {}
        }
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_join_and_stay_within_what_was_asked() {
        let extent = |len, kind| Extent { len: ByteCount(len), kind };
        let found = [
            extent(4096, ExtentKind::Data),
            extent(4096, ExtentKind::Pattern),
            extent(8192, ExtentKind::Hole),
            extent(4096, ExtentKind::Data),
        ];
        assert_eq!(allocation(&found, 12_288), [(8192, 0), (4096, 3)]);
        assert_eq!(allocation(&found, 100_000), [(8192, 0), (8192, 3), (4096, 0)]);
        let extent = |len, changed| ChangedExtent { len: ByteCount(len), changed };
        let found =
            [extent(4096, Some(ExtentKind::Data)), extent(4096, Some(ExtentKind::Hole)), extent(8192, None)];
        assert_eq!(changed(&found, 12_288), [(8192, 1), (4096, 0)]);
    }

    #[test]
    fn zeros_are_known_at_any_length() {
        for len in [1, 63, 64, 65, 4096, 4099] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            bytes[len - 1] = 1;
            assert!(!is_zero(&bytes));
            bytes[len - 1] = 0;
            bytes[0] = 0x80;
            assert!(!is_zero(&bytes));
        }
    }
}
