//! The requests of clients that outlive their connection to the array: a machine of state and input.
//!
//! `attach` takes requests from local clients and sends them on one connection to the array. When that is lost, requests
//! without an answer are sent again on the next one. They are numbered, and an array that remembers the session carries
//! out what it has not done yet of each. By the *history* that it names on each connection the array says whether all
//! that it acknowledged is there. Where it may not be, *kept* requests are sent again too: changes that were
//! acknowledged and are not known to be durable. The client hears of each request once.
//!
//! Why that is right for a single writer, even where the array remembers nothing of it:
//!
//! - *Order.* Requests are sent in the order in which they were taken, on every connection anew, and nothing is sent
//!   that overlaps a change under way: it waits, and all behind it. So although the array executes the requests of one
//!   connection in any order, overlapping changes are executed in the order in which they were taken, the first time
//!   and each time again. A change was sent for the first time when every earlier one that it overlaps had been
//!   answered; so what is kept or unanswered after a loss is, for every byte, a tail of that order without gaps but
//!   for changes known to be durable, and sending it again ends in the same bytes as without the loss.
//! - *Old values do not come back.* While a change is sent again, the array may hold an older one in its place: the change
//!   after it in order is sent again as well, or still waits. Reads overlapping either are behind both. A read that was
//!   taken before a change and is sent again may find that change in place or not: they were under way together.
//! - *Reads* that were taken later than a change are sent when it has been answered on the present connection, so they
//!   find it, or a newer one.
//! - *FLUSH* is sent when every earlier acknowledged change is in place on the present connection; what the array
//!   had answered by then is durable when it answers, and kept no longer. An unanswered FLUSH is sent again like all else.
//! - *One connection at a time.* Requests that the array still had in its hands on the connection before could be executed
//!   late, over newer ones. The array ends them before it lets the next connection of the same session begin.
//!
//! Where others write as well (*shared*), an acknowledged change may not be sent again: it would undo theirs. Then
//! another history while there are unflushed changes is a *loss of data* as far as anyone can tell, and FLUSH fails for
//! every client that was there, for as long as it stays. The same holds where the array refuses what is sent again. An
//! unanswered change may be sent again only to an array with the same *memory*: any other may have carried it out
//! without knowing, and somebody may have written over it since. Such a change fails.
//!
//! The array remembers requests in a window. So a request is sent only while those far enough before it have been
//! answered.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::array::SessionTerms;
use crate::store::REQUEST_WINDOW;
use crate::units::ByteCount;

pub use crate::units::RequestNumber;

/// What a request counts for beside its bytes: it bounds the number of requests as well.
const REQUEST_BYTES: u64 = 512;

/// Faults that the model plants, to show that it finds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlantedFaults {
    /// What is sent again is sent without regard to order.
    pub resent_without_order: bool,
    /// Acknowledged changes are not sent again.
    pub nothing_kept: bool,
    /// FLUSH does not wait for what is sent again.
    pub flushed_before_resent: bool,
    /// Every history is taken for the same.
    pub history_ignored: bool,
    /// Every memory is taken for the same.
    pub memory_ignored: bool,
}

/// What a session may do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Others write to the volume, too.
    pub shared: bool,
    /// Most bytes of requests without an answer, and as many of changes that are kept. The last request may exceed it.
    pub bytes_max: ByteCount,
    /// Faults; none outside of tests.
    pub faults: PlantedFaults,
}

/// How often data of the session was lost. A client remembers it from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses(u64);

/// What is asked for. Offsets and lengths are in bytes, no range is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Bytes are wanted.
    Read {
        /// From here on.
        offset: u64,
        /// So many.
        len: ByteCount,
    },
    /// Bytes are put in place.
    Write {
        /// From here on.
        offset: u64,
        /// Which.
        data: Arc<[u8]>,
    },
    /// Bytes are given up.
    Trim {
        /// From here on.
        offset: u64,
        /// So many.
        len: ByteCount,
    },
    /// Bytes become zeros.
    Zeroes {
        /// From here on.
        offset: u64,
        /// So many.
        len: ByteCount,
    },
    /// What has been answered is to be durable.
    Flush,
    /// It is asked where data is.
    Status {
        /// From here on.
        offset: u64,
        /// So many.
        len: ByteCount,
    },
}

impl Request {
    fn is_change(&self) -> bool {
        matches!(self, Request::Write { .. } | Request::Trim { .. } | Request::Zeroes { .. })
    }

    /// First byte, and the one behind the last.
    fn range(&self) -> Option<(u64, u64)> {
        let (offset, len) = match self {
            Request::Flush => return None,
            Request::Write { offset, data } => (*offset, data.len() as u64),
            Request::Read { offset, len }
            | Request::Trim { offset, len }
            | Request::Zeroes { offset, len }
            | Request::Status { offset, len } => (*offset, len.0),
        };
        Some((offset, offset.saturating_add(len)))
    }

    /// What it takes of the memory that is bounded.
    fn cost(&self) -> u64 {
        REQUEST_BYTES
            + match self {
                Request::Read { len, .. } => len.0,
                Request::Write { data, .. } => data.len() as u64,
                _ => 0,
            }
    }
}

/// What an answer of the array means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The client gets this answer.
    Answer,
    /// The array has succeeded, but a FLUSH of this client may not: data was lost.
    Lost,
    /// Nobody waits for it.
    Silent,
    /// There is no such request under way: the array does not keep to the protocol.
    Unexpected,
}

/// Where a request stands on the present connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the queue.
    Waiting,
    /// Sent; of a FLUSH, up to which change it covers.
    Sent { covers: u64 },
    /// Answered, the change of this number.
    Done(u64),
}

#[derive(Debug)]
struct Entry {
    request: Request,
    place: Place,
    /// The client has its answer, or nobody ever wanted one.
    answered: bool,
    /// Of the client, when it began.
    since: Losses,
    /// It was sent once: it may have been carried out.
    tried: bool,
}

impl Entry {
    /// Whether the client has been told that this change is done.
    fn is_kept(&self) -> bool {
        self.answered && self.request.is_change()
    }
}

/// The requests of all local clients of one volume.
#[derive(Debug)]
pub struct Session {
    options: Options,
    connected: bool,
    /// What the array said on the newest connection.
    terms: SessionTerms,
    last: RequestNumber,
    entries: BTreeMap<RequestNumber, Entry>,
    /// To be sent, in this order.
    queue: VecDeque<RequestNumber>,
    /// Changes that were sent and not answered on this connection: beginnings and ends. They never overlap.
    changing: BTreeMap<u64, u64>,
    /// Requests under way on this connection, and how many of them are kept changes.
    under_way: BTreeSet<RequestNumber>,
    resending: usize,
    /// Changes that were answered so far, and up to which one all are durable.
    changes: u64,
    durable: u64,
    /// Kept changes that are in place, by their number in the order of answers.
    in_place: BTreeMap<u64, RequestNumber>,
    unanswered_cost: u64,
    kept_cost: u64,
    /// A FLUSH of the session's own is in the queue or under way.
    flushing: bool,
    losses: Losses,
}

impl Session {
    /// A session without requests and without a connection.
    #[must_use]
    pub fn new(options: Options) -> Session {
        Session {
            options,
            connected: false,
            terms: SessionTerms::default(),
            last: RequestNumber(0),
            entries: BTreeMap::new(),
            queue: VecDeque::new(),
            changing: BTreeMap::new(),
            under_way: BTreeSet::new(),
            resending: 0,
            changes: 0,
            durable: 0,
            in_place: BTreeMap::new(),
            unanswered_cost: 0,
            kept_cost: 0,
            flushing: false,
            losses: Losses::default(),
        }
    }

    /// Whether another request may be taken; if not, it must wait for answers.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let limit = self.options.bytes_max.0;
        self.unanswered_cost < limit && self.kept_cost < limit
    }

    /// How often data was lost so far. A client takes it at its beginning, and hands it in with each request.
    #[must_use]
    pub fn losses(&self) -> Losses {
        self.losses
    }

    /// Requests that were sent and wait for an answer.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Requests of clients without an answer.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.entries.values().filter(|entry| !entry.answered).count()
    }

    /// Takes a request from a client.
    pub fn take(&mut self, request: Request, since: Losses) -> RequestNumber {
        self.unanswered_cost += request.cost();
        self.enter(request, since, false)
    }

    fn enter(&mut self, request: Request, since: Losses, answered: bool) -> RequestNumber {
        self.last.0 += 1;
        self.entries
            .insert(self.last, Entry { request, place: Place::Waiting, answered, since, tried: false });
        self.queue.push_back(self.last);
        self.last
    }

    /// There is a connection, on which nothing was sent yet, to an array that says this of itself. Changes that may
    /// have been carried out, and must not be sent to it again, have failed: these, in order.
    pub fn connected(&mut self, terms: SessionTerms) -> Vec<RequestNumber> {
        let faults = self.options.faults;
        let known = std::mem::replace(&mut self.terms, terms);
        self.connected = true;
        if !faults.history_ignored && (terms.history.is_none() || terms.history != known.history) {
            self.may_be_gone();
        }
        let remembers = terms.memory.is_some() && terms.memory == known.memory;
        if !self.options.shared || remembers || faults.memory_ignored {
            return Vec::new();
        }
        let unknown = |entry: &Entry| entry.tried && !entry.answered && entry.request.is_change();
        let failed: Vec<RequestNumber> =
            self.entries.iter().filter(|(_, entry)| unknown(entry)).map(|(number, _)| *number).collect();
        for number in &failed {
            if let Some(entry) = self.entries.remove(number) {
                self.unanswered_cost -= entry.request.cost();
            }
        }
        self.queue.retain(|number| self.entries.contains_key(number));
        failed
    }

    /// The array may be without changes that it acknowledged and has not made durable.
    fn may_be_gone(&mut self) {
        if self.options.shared && self.changes > self.durable {
            self.losses.0 += 1;
            self.durable = self.changes;
        }
        self.in_place.clear();
        for entry in self.entries.values_mut() {
            entry.place = Place::Waiting;
        }
        self.queue_what_waits();
    }

    fn queue_what_waits(&mut self) {
        let waiting = self.entries.iter().filter(|(_, entry)| entry.place == Place::Waiting);
        self.queue = waiting.map(|(number, _)| *number).collect();
        if self.options.faults.resent_without_order {
            let (kept, others): (Vec<_>, Vec<_>) =
                self.queue.drain(..).partition(|number| self.entries[number].is_kept());
            self.queue = kept.into_iter().rev().chain(others).collect();
        }
    }

    /// The next request to be sent, if there is one that may be sent now. It counts as sent.
    pub fn next_to_send(&mut self) -> Option<(RequestNumber, Request)> {
        let number = *self.queue.front().filter(|_| self.connected)?;
        if self.under_way.first().is_some_and(|oldest| number.0.saturating_sub(oldest.0) >= REQUEST_WINDOW) {
            return None;
        }
        let entry = self.entries.get_mut(&number)?;
        let faults = self.options.faults;
        match entry.request.range() {
            None if self.resending > 0 && !faults.flushed_before_resent => return None,
            Some((start, end)) if !faults.resent_without_order => {
                let before = self.changing.range(..end).next_back();
                if before.is_some_and(|(_, changing_end)| *changing_end > start) {
                    return None;
                }
            }
            _ => {}
        }
        self.queue.pop_front();
        entry.place = Place::Sent { covers: self.changes };
        entry.tried = true;
        self.under_way.insert(number);
        if let Some((start, end)) = entry.request.range().filter(|_| entry.request.is_change()) {
            self.changing.insert(start, end);
            self.resending += usize::from(entry.answered);
        }
        Some((number, entry.request.clone()))
    }

    /// The array has answered on the present connection; `succeeded` where it did what was asked. (That it does not
    /// serve the volume any more is no answer, but a lost connection.)
    pub fn answered(&mut self, number: RequestNumber, succeeded: bool) -> Verdict {
        let Some(entry) = self.entries.get_mut(&number) else { return Verdict::Unexpected };
        let Place::Sent { covers } = entry.place else { return Verdict::Unexpected };
        self.under_way.remove(&number);
        let was_answered = std::mem::replace(&mut entry.answered, true);
        let cost = entry.request.cost();
        if !was_answered {
            self.unanswered_cost -= cost;
        }
        if entry.request.is_change() {
            self.change_answered(number, was_answered, succeeded);
        } else {
            let since = entry.since;
            let is_flush = entry.request == Request::Flush;
            self.entries.remove(&number);
            if is_flush {
                let own = was_answered;
                self.flush_answered(covers, own, succeeded);
                if !own && succeeded && since != self.losses {
                    return Verdict::Lost;
                }
            }
        }
        if was_answered { Verdict::Silent } else { Verdict::Answer }
    }

    fn change_answered(&mut self, number: RequestNumber, resent: bool, succeeded: bool) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let cost = entry.request.cost();
        if let Some((start, _)) = entry.request.range() {
            self.changing.remove(&start);
        }
        self.resending -= usize::from(resent);
        let kept = succeeded && !self.options.shared && !self.options.faults.nothing_kept;
        if succeeded {
            self.changes += 1;
        }
        if kept {
            entry.place = Place::Done(self.changes);
            self.in_place.insert(self.changes, number);
        } else {
            self.entries.remove(&number);
        }
        match (resent, kept) {
            (false, true) => self.kept_cost += cost,
            (true, false) => {
                // It was acknowledged, and is gone.
                self.kept_cost -= cost;
                self.losses.0 += 1;
            }
            _ => {}
        }
        if self.kept_cost > self.options.bytes_max.0 / 2 && !self.flushing {
            self.flushing = true;
            self.enter(Request::Flush, self.losses, true);
        }
    }

    fn flush_answered(&mut self, covers: u64, own: bool, succeeded: bool) {
        self.flushing &= !own;
        if !succeeded && !own {
            // The client knows, and may try again.
            return;
        }
        if !succeeded {
            // Nobody else hears of it, and the memory is needed.
            self.losses.0 += 1;
        }
        self.durable = self.durable.max(covers);
        while let Some(first) = self.in_place.first_entry().filter(|first| *first.key() <= covers) {
            if let Some(entry) = self.entries.remove(&first.remove()) {
                self.kept_cost -= entry.request.cost();
            }
        }
    }

    /// The connection is lost: what was under way on it waits for the next one.
    pub fn lost(&mut self) {
        self.connected = false;
        self.changing.clear();
        self.under_way.clear();
        self.resending = 0;
        for entry in self.entries.values_mut().filter(|entry| matches!(entry.place, Place::Sent { .. })) {
            entry.place = Place::Waiting;
        }
        self.queue_what_waits();
    }

    /// Gives up: the requests of clients that will never be answered.
    pub fn give_up(&mut self) -> Vec<RequestNumber> {
        self.lost();
        self.queue.clear();
        self.in_place.clear();
        let entries = std::mem::take(&mut self.entries);
        (self.unanswered_cost, self.kept_cost) = (0, 0);
        entries.into_iter().filter(|(_, entry)| !entry.answered).map(|(number, _)| number).collect()
    }
}
