//! Where the local clients' threads and those of the connection to the array meet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::array::SessionTerms;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::export::nbd::line::Answer;
use crate::export::nbd::line::Line;
use crate::export::nbd::line::LineCutter;
use crate::export::nbd::line::LineReceiver;
use crate::export::nbd::line::LineSender;
use crate::export::nbd::wire::transmission::command;
use crate::replica::session::Losses;
use crate::replica::session::Options;
use crate::replica::session::PlantedFaults;
use crate::replica::session::Request;
use crate::replica::session::RequestNumber;
use crate::replica::session::Session;
use crate::replica::session::Verdict;
use crate::sync::Condition;
use crate::sync::Mutex;
use crate::units::ByteCount;

/// Most bytes of requests without an answer, and as many of acknowledged changes that are not known to be durable.
const BYTES_MAX: ByteCount = ByteCount(64 << 20);

/// Most bytes that are sent before it is looked who else wants something.
const BATCH_BYTES: usize = 1 << 20;

/// What is said of requests that a FLUSH should have made durable.
const LOST: &str = "writes that were acknowledged may be lost: the array was away before they were flushed";

/// What is said of changes that were not answered, and cannot be sent again.
const UNKNOWN: &str = "the array was away and does not remember whether this was written";

/// What the array says of the volume in each handshake.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Export {
    /// Its size at present.
    pub(super) size: ByteCount,
    /// Whether it refuses writes.
    pub(super) read_only: bool,
    /// Longest payload, in bytes.
    pub(super) payload_max: u32,
    /// Whether it tells where data is.
    pub(super) has_status: bool,
    /// What is to be known of it before requests are sent again.
    pub(super) terms: SessionTerms,
}

/// The session, its connection if there is one, and those who wait.
pub(super) struct Hub {
    state: Mutex<State>,
    /// There may be something to send.
    to_send: Condition,
    /// There may be room for another request.
    room: Condition,
    /// For pauses, which the end cuts short.
    end: Condition,
}

struct State {
    session: Session,
    waiting: HashMap<RequestNumber, Waiting>,
    export: Export,
    /// Away while something is being sent.
    sender: Option<LineSender>,
    cutter: Option<Arc<LineCutter>>,
    /// Number of the connection.
    connection: u64,
    /// Why no request can succeed any more.
    closed: Option<String>,
}

/// Who waits for an answer, and of a read what it asked for.
struct Waiting {
    ticket: Arc<Ticket>,
    read: Option<(u64, u32)>,
}

/// The answers that one thread waits for.
#[derive(Default)]
pub(super) struct Ticket {
    state: Mutex<TicketState>,
    complete: Condition,
}

#[derive(Default)]
struct TicketState {
    left: usize,
    failed: Option<(ErrorKind, String)>,
    found: Found,
}

/// What an answer brought.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Of a read.
    pub(super) data: Vec<u8>,
    /// Of a status: lengths in bytes, and state flags.
    pub(super) extents: Vec<(u32, u32)>,
}

impl Ticket {
    /// Waits for all answers: what the last one brought.
    ///
    /// # Errors
    /// The first error among them.
    pub(super) fn wait(&self) -> Result<Found> {
        let mut state = self.state.lock();
        while state.left > 0 {
            state = self.complete.wait(state);
        }
        match state.failed.take() {
            Some((kind, what)) => Err(Error::new(kind, what)),
            None => Ok(std::mem::take(&mut state.found)),
        }
    }

    fn answer(&self, result: Result<Found, (ErrorKind, String)>) {
        let mut state = self.state.lock();
        match result {
            Ok(found) => state.found = found,
            Err(failed) => {
                state.failed.get_or_insert(failed);
            }
        }
        state.left -= 1;
        if state.left == 0 {
            self.complete.notify_all();
        }
    }
}

impl Hub {
    /// Without a connection yet.
    pub(super) fn new(shared: bool) -> Hub {
        let options = Options { shared, bytes_max: BYTES_MAX, faults: PlantedFaults::default() };
        Hub {
            state: Mutex::new(State {
                session: Session::new(options),
                waiting: HashMap::new(),
                export: Export::default(),
                sender: None,
                cutter: None,
                connection: 0,
                closed: None,
            }),
            to_send: Condition::new(),
            room: Condition::new(),
            end: Condition::new(),
        }
    }

    /// What the array last said of the volume.
    pub(super) fn export(&self) -> Export {
        self.state.lock().export
    }

    /// What a client that begins now hands in with its requests.
    pub(super) fn losses(&self) -> Losses {
        self.state.lock().session.losses()
    }

    /// Whether no request can succeed any more.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed.is_some()
    }

    /// Requests that wait for the array's answer on the present connection.
    pub(super) fn under_way(&self) -> usize {
        self.state.lock().session.under_way()
    }

    /// Requests of clients that wait, whether there is a connection or not.
    pub(super) fn unanswered(&self) -> usize {
        self.state.lock().session.unanswered()
    }

    /// Hands in a request, and counts it on the ticket. Waits while there is too much.
    ///
    /// # Errors
    /// `Unreachable` once the hub is closed.
    pub(super) fn submit(
        &self,
        request: Request,
        since: Losses,
        ticket: &Arc<Ticket>,
    ) -> Result<RequestNumber> {
        let read = match &request {
            Request::Read { offset, len } => Some((*offset, u32::try_from(len.0).unwrap_or(u32::MAX))),
            _ => None,
        };
        let mut state = self.state.lock();
        while state.closed.is_none() && !state.session.has_room() {
            state = self.room.wait(state);
        }
        if let Some(why) = &state.closed {
            return Err(Error::new(ErrorKind::Unreachable, why.clone()));
        }
        let number = state.session.take(request, since);
        ticket.state.lock().left += 1;
        state.waiting.insert(number, Waiting { ticket: Arc::clone(ticket), read });
        self.to_send.notify_one();
        Ok(number)
    }

    /// Sends on `line` from now on. The half that receives is for the caller.
    ///
    /// # Errors
    /// `Unreachable` where the process has too many open files.
    pub(super) fn connected(&self, line: Line, export: Export) -> Result<LineReceiver> {
        let cutter = line.cutter()?;
        let mut state = self.state.lock();
        state.cutter = Some(Arc::new(cutter));
        state.sender = Some(line.sender);
        state.connection += 1;
        state.export = export;
        let failed = state.session.connected(export.terms);
        let failed: Vec<Waiting> = failed.iter().filter_map(|number| state.waiting.remove(number)).collect();
        drop(state);
        self.to_send.notify_one();
        self.room.notify_all();
        for waiting in failed {
            waiting.ticket.answer(Err((ErrorKind::Device, UNKNOWN.to_owned())));
        }
        Ok(line.receiver)
    }

    /// Ends the connection, if it has not ended by itself.
    pub(super) fn disconnected(&self) {
        let mut state = self.state.lock();
        if let Some(cutter) = state.cutter.take() {
            cutter.cut();
        }
        state.sender = None;
        state.connection += 1;
        state.session.lost();
    }

    /// Passes the array's answer on. False where it is none: the array does not serve the volume here any more, or
    /// does not keep to the protocol.
    pub(super) fn answer(&self, answer: Answer) -> bool {
        if answer.shutting_down {
            return false;
        }
        let number = RequestNumber(answer.cookie);
        let mut answer = answer;
        let error = answer.error.take();
        let mut state = self.state.lock();
        let mut found = Found { extents: std::mem::take(&mut answer.extents), ..Found::default() };
        let read = state.waiting.get(&number).and_then(|waiting| waiting.read);
        if let Some((offset, len)) = read.filter(|_| error.is_none()) {
            let Some(data) = answer.assemble(offset, len) else { return false };
            found.data = data;
        }
        let verdict = state.session.answered(number, error.is_none());
        let result = match (verdict, error) {
            (Verdict::Unexpected, _) => return false,
            (Verdict::Answer, None) => Some(Ok(found)),
            (Verdict::Answer, Some(error)) => Some(Err((error.kind(), error.what().to_owned()))),
            (Verdict::Lost, _) => Some(Err((ErrorKind::Device, LOST.to_owned()))),
            (Verdict::Silent, error) => {
                if let Some(error) = error {
                    tracing::error!("what was sent again, or flushed, has failed: {error}");
                }
                None
            }
        };
        let waiting = state.waiting.remove(&number);
        drop(state);
        self.room.notify_all();
        self.to_send.notify_one();
        if let (Some(waiting), Some(result)) = (waiting, result) {
            waiting.ticket.answer(result);
        }
        true
    }

    /// Lets every request fail, those that wait and those that come.
    pub(super) fn close(&self, why: &str) {
        let mut state = self.state.lock();
        state.closed.get_or_insert_with(|| why.to_owned());
        if let Some(cutter) = state.cutter.take() {
            cutter.cut();
        }
        state.sender = None;
        state.connection += 1;
        let numbers = state.session.give_up();
        let waiting: Vec<Waiting> =
            numbers.into_iter().filter_map(|number| state.waiting.remove(&number)).collect();
        drop(state);
        for condition in [&self.to_send, &self.room, &self.end] {
            condition.notify_all();
        }
        for waiting in waiting {
            waiting.ticket.answer(Err((ErrorKind::Unreachable, why.to_owned())));
        }
    }

    /// Waits, or until the hub is closed.
    pub(super) fn pause(&self, limit: Duration) {
        let state = self.state.lock();
        if state.closed.is_none() {
            drop(self.end.wait_for(state, limit));
        }
    }

    /// Sends what is to be sent, until the hub is closed.
    pub(super) fn send_all(&self) {
        let mut state = self.state.lock();
        while state.closed.is_none() {
            let mut batch = Vec::new();
            if state.sender.is_some() {
                let mut bytes = 0;
                while bytes < BATCH_BYTES
                    && let Some(next) = state.session.next_to_send()
                {
                    bytes += if let Request::Write { data, .. } = &next.1 { data.len() } else { 0 };
                    batch.push(next);
                }
            }
            let Some(mut sender) = state.sender.take_if(|_| !batch.is_empty()) else {
                state = self.to_send.wait(state);
                continue;
            };
            let connection = state.connection;
            drop(state);
            let sent = send(&mut sender, &batch);
            state = self.state.lock();
            if state.connection != connection {
                continue;
            }
            match sent {
                Ok(()) => state.sender = Some(sender),
                // The thread that receives hears of it by the cut.
                Err(_) => state.cutter.iter().for_each(|cutter| cutter.cut()),
            }
        }
    }
}

fn send(sender: &mut LineSender, batch: &[(RequestNumber, Request)]) -> Result<()> {
    for (number, request) in batch {
        let (command, offset, len, payload): (u16, u64, u64, &[u8]) = match request {
            Request::Read { offset, len } => (command::READ, *offset, len.0, &[]),
            Request::Write { offset, data } => (command::WRITE, *offset, data.len() as u64, data),
            Request::Trim { offset, len } => (command::TRIM, *offset, len.0, &[]),
            Request::Zeroes { offset, len } => (command::WRITE_ZEROES, *offset, len.0, &[]),
            Request::Flush => (command::FLUSH, 0, 0, &[]),
            Request::Status { offset, len } => (command::BLOCK_STATUS, *offset, len.0, &[]),
        };
        let len = u32::try_from(len).map_err(|_| Error::new(ErrorKind::Invalid, "longer than a request"))?;
        sender.put(command, number.0, offset, len, payload)?;
    }
    sender.flush()
}
