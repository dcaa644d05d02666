//! The session against a model of the array: requests of one connection are executed in any order, answers come late,
//! the connection is lost at any moment with whatever was under way, and power with whatever was not flushed.

use std::collections::BTreeMap;
use std::sync::Arc;

use sinter::array::SessionTerms;
use sinter::replica::session::Losses;
use sinter::replica::session::Options;
use sinter::replica::session::PlantedFaults;
use sinter::replica::session::Request;
use sinter::replica::session::RequestNumber;
use sinter::replica::session::Session;
use sinter::replica::session::Verdict;
use sinter::store::REQUEST_WINDOW;
use sinter::units::ByteCount;
use sinter::units::SessionMemory;
use sinter::units::Uuid;

use crate::number_from_environment;

/// A cell holds one number.
const CELLS: usize = 8;
const CELL_BYTES: usize = 4;

/// Requests of one history, how many the client has under way, and steps after which it counts as stuck.
const REQUESTS: usize = 60;
const DEPTH: usize = 8;
const STEPS_MAX: usize = 20_000;

/// Histories, unless more are asked for.
const HISTORIES: u64 = 3_000;

/// Marsaglia's xorshift.
pub(crate) struct Choices(u64);

impl Choices {
    pub(crate) fn new(seed: u64) -> Choices {
        Choices(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % limit as u64).unwrap()
    }
}

type Cells = [u32; CELLS];

/// First cell, the one behind the last, and the value.
type Change = (usize, usize, u32);

fn put(cells: &mut Cells, (start, end, value): Change) {
    cells[start..end].fill(value);
}

/// A request as the array has it.
#[derive(Clone)]
struct Received {
    number: RequestNumber,
    request: Request,
    /// Of a FLUSH: how much of the log it makes durable.
    log_len: usize,
}

struct ArrayModel {
    durable: Cells,
    /// Executed and not durable, in order.
    log: Vec<Change>,
    /// Entries that went from the log to `durable`.
    logged_before: usize,
    /// Another one after each loss of power.
    history: u8,
    received: Vec<Received>,
    answers: Vec<(RequestNumber, Cells)>,
}

impl ArrayModel {
    fn cells(&self) -> Cells {
        let mut cells = self.durable;
        self.log.iter().for_each(|change| put(&mut cells, *change));
        cells
    }

    fn receive(&mut self, number: RequestNumber, request: Request) {
        let log_len = self.logged_before + self.log.len();
        self.received.push(Received { number, request, log_len });
    }

    fn execute(&mut self, which: usize) {
        let Received { number, request, log_len } = self.received.swap_remove(which);
        if let Some(change) = change_of(&request) {
            self.log.push(change);
        } else if request == Request::Flush {
            let count = log_len.saturating_sub(self.logged_before);
            self.logged_before += count;
            self.log.drain(..count).for_each(|change| put(&mut self.durable, change));
        }
        self.answers.push((number, self.cells()));
    }

    /// The connection is gone: what was under way may have been executed or not.
    fn cut(&mut self, choices: &mut Choices) {
        while !self.received.is_empty() {
            let which = choices.below(self.received.len());
            if choices.below(2) == 0 {
                self.execute(which);
            } else {
                self.received.swap_remove(which);
            }
        }
        self.answers.clear();
    }

    fn lose_power(&mut self, choices: &mut Choices) {
        self.log.truncate(choices.below(self.log.len() + 1));
        self.history += 1;
    }

    /// It remembers nothing of sessions.
    fn terms(&self) -> SessionTerms {
        terms(self.history, None)
    }
}

/// What an array says of itself.
pub(crate) fn terms(history: u8, memory: Option<u64>) -> SessionTerms {
    SessionTerms { history: Some(Uuid([history; 16])), memory: memory.map(SessionMemory) }
}

fn change_of(request: &Request) -> Option<Change> {
    let cell = |offset: u64| usize::try_from(offset).unwrap() / CELL_BYTES;
    match request {
        Request::Write { offset, data } => {
            let value = u32::from_le_bytes(data[..CELL_BYTES].try_into().unwrap());
            Some((cell(*offset), cell(*offset) + data.len() / CELL_BYTES, value))
        }
        Request::Trim { offset, len } | Request::Zeroes { offset, len } => {
            Some((cell(*offset), cell(offset + len.0), 0))
        }
        _ => None,
    }
}

/// What the client remembers of its requests.
struct Asked {
    request: Request,
    answered: bool,
    /// Of a FLUSH: for each cell the newest change that had been answered when it was asked for.
    answered_before: [Option<RequestNumber>; CELLS],
}

struct World {
    choices: Choices,
    session: Session,
    array: ArrayModel,
    connected: bool,
    asked: BTreeMap<RequestNumber, Asked>,
    waiting: usize,
    next_value: u32,
}

impl World {
    fn new(seed: u64, faults: PlantedFaults) -> World {
        let options = Options { shared: false, bytes_max: ByteCount(16 << 10), faults };
        let array = ArrayModel {
            durable: [0; CELLS],
            log: Vec::new(),
            logged_before: 0,
            history: 0,
            received: Vec::new(),
            answers: Vec::new(),
        };
        World {
            choices: Choices::new(seed),
            session: Session::new(options),
            array,
            connected: false,
            asked: BTreeMap::new(),
            waiting: 0,
            next_value: 1,
        }
    }

    fn ask(&mut self) {
        let start = self.choices.below(CELLS);
        let count = 1 + self.choices.below(3.min(CELLS - start));
        let (offset, bytes) = ((start * CELL_BYTES) as u64, count * CELL_BYTES);
        let len = ByteCount(bytes as u64);
        let request = match self.choices.below(10) {
            0..5 => {
                self.next_value += 1;
                let data: Arc<[u8]> = Arc::from(self.next_value.to_le_bytes().repeat(count));
                Request::Write { offset, data }
            }
            5 => Request::Zeroes { offset, len },
            6 => Request::Trim { offset, len },
            7 | 8 => Request::Read { offset, len },
            _ => Request::Flush,
        };
        let mut answered_before = [None; CELLS];
        for (number, asked) in self.asked.iter().filter(|(_, asked)| asked.answered) {
            if let Some((start, end, _)) = change_of(&asked.request) {
                answered_before[start..end].fill(Some(*number));
            }
        }
        let number = self.session.take(request.clone(), Losses::default());
        self.asked.insert(number, Asked { request, answered: false, answered_before });
        self.waiting += 1;
    }

    /// The changes that cover a cell, oldest first.
    fn changes_of(&self, cell: usize) -> impl DoubleEndedIterator<Item = (RequestNumber, u32)> {
        self.asked.iter().filter_map(move |(number, asked)| {
            let (start, end, value) = change_of(&asked.request)?;
            (start..end).contains(&cell).then_some((*number, value))
        })
    }

    fn deliver(&mut self) -> Result<(), String> {
        let which = self.choices.below(self.array.answers.len());
        let (number, cells) = self.array.answers.swap_remove(which);
        match self.session.answered(number, true) {
            Verdict::Silent => return Ok(()),
            Verdict::Answer => {}
            other => return Err(format!("{number:?}: {other:?}")),
        }
        let durable = self.array.durable;
        let asked = self.asked.get_mut(&number).ok_or("an answer to nothing")?;
        if std::mem::replace(&mut asked.answered, true) {
            return Err(format!("{number:?} was answered twice"));
        }
        self.waiting -= 1;
        let asked = &self.asked[&number];
        match &asked.request {
            Request::Read { offset, len } => {
                let first = usize::try_from(*offset).unwrap() / CELL_BYTES;
                let count = usize::try_from(len.0).unwrap() / CELL_BYTES;
                for (cell, found) in cells.iter().enumerate().skip(first).take(count) {
                    let before = self.changes_of(cell).rfind(|(change, _)| *change < number);
                    let newest = before.map_or(0, |(_, value)| value);
                    let later =
                        self.changes_of(cell).any(|(change, value)| change > number && value == *found);
                    if *found != newest && !later {
                        return Err(format!("{number:?} read {found} in cell {cell} instead of {newest}"));
                    }
                }
            }
            Request::Flush => {
                for (cell, found) in durable.iter().enumerate() {
                    let Some(newest) = asked.answered_before[cell] else { continue };
                    let known =
                        self.changes_of(cell).any(|(change, value)| change >= newest && value == *found);
                    if !known {
                        return Err(format!("{number:?} flushed, and {found} is durable in cell {cell}"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn lose_connection(&mut self, power: bool) {
        self.array.cut(&mut self.choices);
        if power {
            self.array.lose_power(&mut self.choices);
        }
        self.session.lost();
        self.connected = false;
    }

    fn run(mut self) -> Result<(), String> {
        for _ in 0..STEPS_MAX {
            let may_ask = self.asked.len() < REQUESTS && self.waiting < DEPTH && self.session.has_room();
            match self.choices.below(40) {
                0 if self.asked.len() < REQUESTS && self.choices.below(5) == 0 => {
                    let power = self.choices.below(2) == 0;
                    self.lose_connection(power);
                }
                1..10 if may_ask => self.ask(),
                10..20 => {
                    if let Some((number, request)) = self.session.next_to_send() {
                        self.array.receive(number, request);
                    }
                }
                20..30 if !self.array.received.is_empty() => {
                    let which = self.choices.below(self.array.received.len());
                    self.array.execute(which);
                }
                30..38 if !self.array.answers.is_empty() => self.deliver()?,
                38 if !self.connected => {
                    self.session.connected(self.array.terms());
                    self.connected = true;
                }
                _ => {}
            }
            let idle = self.session.under_way() == 0 && self.connected;
            if self.asked.len() == REQUESTS && self.waiting == 0 && idle {
                return self.finish();
            }
        }
        Err(format!("stuck: {} requests wait, {} under way", self.waiting, self.session.under_way()))
    }

    /// All is answered: the array holds the newest change of every cell once everything is sent again.
    fn finish(mut self) -> Result<(), String> {
        self.lose_connection(true);
        self.session.connected(self.array.terms());
        loop {
            while let Some((number, request)) = self.session.next_to_send() {
                self.array.receive(number, request);
            }
            if self.array.received.is_empty() {
                break;
            }
            while !self.array.received.is_empty() {
                let which = self.choices.below(self.array.received.len());
                self.array.execute(which);
            }
            while !self.array.answers.is_empty() {
                self.deliver()?;
            }
        }
        for (cell, found) in self.array.cells().iter().enumerate() {
            let newest = self.changes_of(cell).next_back().map_or(0, |(_, value)| value);
            if *found != newest {
                return Err(format!("cell {cell} holds {found} at the end, and {newest} was written"));
            }
        }
        Ok(())
    }
}

pub(crate) fn histories() -> u64 {
    number_from_environment("SINTER_ATTACH_HISTORIES").unwrap_or(HISTORIES)
}

#[test]
fn nothing_is_lost_and_nothing_comes_back_whatever_is_cut() {
    for seed in 1..=histories() {
        if let Err(what) = World::new(seed, PlantedFaults::default()).run() {
            panic!("history {seed}: {what}");
        }
    }
}

#[test]
fn planted_faults_are_found() {
    let none = PlantedFaults::default();
    for faults in [
        PlantedFaults { resent_without_order: true, ..none },
        PlantedFaults { nothing_kept: true, ..none },
        PlantedFaults { flushed_before_resent: true, ..none },
        PlantedFaults { history_ignored: true, ..none },
    ] {
        let mut runs = (1..=histories()).map(|seed| World::new(seed, faults).run());
        let after = runs.position(|run| run.is_err_and(|what| !what.starts_with("stuck")));
        println!("{faults:?}: {after:?}");
        assert!(after.is_some(), "{faults:?}");
    }
}

fn session(shared: bool) -> Session {
    let options = Options { shared, bytes_max: ByteCount(16 << 10), faults: PlantedFaults::default() };
    let mut session = Session::new(options);
    assert_eq!(session.connected(terms(0, Some(0))), []);
    session
}

fn write(offset: u64) -> Request {
    Request::Write { offset, data: Arc::from([1u8; 512]) }
}

/// Takes a request and lets it be answered at once.
fn done(session: &mut Session, request: Request, since: Losses) -> Verdict {
    let number = session.take(request, since);
    assert_eq!(session.next_to_send().unwrap().0, number);
    session.answered(number, true)
}

#[test]
fn what_others_may_have_overwritten_is_not_sent_again_and_its_flush_fails() {
    let mut session = session(true);
    let since = session.losses();
    assert_eq!(done(&mut session, write(0), since), Verdict::Answer);
    assert_eq!(done(&mut session, Request::Flush, since), Verdict::Answer);
    // All is durable: nothing is lost with the connection.
    session.lost();
    assert_eq!(session.connected(terms(1, Some(0))), []);
    assert_eq!(done(&mut session, Request::Flush, since), Verdict::Answer);
    assert_eq!(done(&mut session, write(0), since), Verdict::Answer);
    session.lost();
    assert_eq!(session.connected(terms(2, Some(0))), []);
    assert_eq!(session.next_to_send(), None);
    for _ in 0..2 {
        assert_eq!(done(&mut session, Request::Flush, since), Verdict::Lost);
    }
    // Who comes later has lost nothing.
    let since = session.losses();
    assert_eq!(done(&mut session, Request::Flush, since), Verdict::Answer);
}

#[test]
fn a_flush_fails_once_the_array_refuses_what_is_sent_again() {
    let mut session = session(false);
    let since = session.losses();
    assert_eq!(done(&mut session, write(0), since), Verdict::Answer);
    session.lost();
    let flush = session.take(Request::Flush, since);
    assert_eq!(session.connected(terms(1, Some(0))), []);
    let (again, _) = session.next_to_send().unwrap();
    assert_eq!(session.next_to_send(), None, "a FLUSH before what is sent again");
    assert_eq!(session.answered(again, false), Verdict::Silent);
    assert_eq!(session.next_to_send().unwrap().0, flush);
    assert_eq!(session.answered(flush, true), Verdict::Lost);
}

#[test]
fn what_is_kept_is_bounded_by_flushes_of_its_own() {
    let mut session = session(false);
    let since = session.losses();
    let mut flushes = 0;
    for number in 0..1000 {
        assert!(session.has_room());
        session.take(write(number * 512), since);
        while let Some((number, request)) = session.next_to_send() {
            flushes += u32::from(request == Request::Flush);
            session.answered(number, true);
        }
    }
    assert!((50..500).contains(&flushes), "{flushes}");
    session.lost();
    assert_eq!(session.connected(terms(1, Some(0))), []);
    let again = std::iter::from_fn(|| session.next_to_send()).count();
    assert!(again <= 16, "{again}");
}

#[test]
fn without_a_connection_requests_are_taken_up_to_the_bound() {
    let mut session = session(false);
    session.lost();
    let taken = (0..1000).take_while(|number| {
        let room = session.has_room();
        if room {
            session.take(write(number * 512), session.losses());
        }
        room
    });
    assert_eq!(taken.count(), 16);
    assert_eq!(session.unanswered(), 16);
    assert_eq!(session.give_up().len(), 16);
    assert!(session.has_room());
}

#[test]
fn answers_to_what_was_not_sent_are_known_as_such() {
    let mut session = session(false);
    let since = session.losses();
    let number = session.take(write(0), since);
    assert_eq!(session.answered(number, true), Verdict::Unexpected);
    session.next_to_send().unwrap();
    assert_eq!(session.answered(number, true), Verdict::Answer);
    assert_eq!(session.answered(number, true), Verdict::Unexpected);
    assert_eq!(session.answered(RequestNumber(99), true), Verdict::Unexpected);
}

#[test]
fn an_array_that_says_it_has_all_is_sent_nothing_twice_and_flushes_for_others_as_well() {
    for shared in [false, true] {
        let mut session = session(shared);
        let since = session.losses();
        assert_eq!(done(&mut session, write(0), since), Verdict::Answer);
        let unanswered = session.take(write(512), since);
        assert_eq!(session.next_to_send().unwrap().0, unanswered);
        session.lost();
        assert_eq!(session.connected(terms(0, Some(0))), []);
        assert_eq!(session.next_to_send().unwrap().0, unanswered);
        assert_eq!(session.next_to_send(), None);
        assert_eq!(session.answered(unanswered, true), Verdict::Answer);
        assert_eq!(done(&mut session, Request::Flush, since), Verdict::Answer);
        // What is durable is not missed by whoever finds another history.
        session.lost();
        assert_eq!(session.connected(terms(1, Some(0))), []);
        assert_eq!(session.next_to_send(), None);
        assert_eq!(done(&mut session, Request::Flush, since), Verdict::Answer);
    }
}

#[test]
fn what_others_may_have_overwritten_fails_where_the_array_does_not_remember() {
    for (memory, fails) in [(Some(0), false), (Some(1), true), (None, true)] {
        let mut session = session(true);
        let since = session.losses();
        let tried = session.take(write(0), since);
        session.next_to_send().unwrap();
        let overlaps = session.take(write(0), since);
        assert_eq!(session.next_to_send(), None);
        session.lost();
        let failed = session.connected(terms(0, memory));
        assert_eq!(failed, if fails { vec![tried] } else { vec![] });
        // What was never sent can be.
        let next = session.next_to_send().unwrap().0;
        assert_eq!(next, if fails { overlaps } else { tried });
        assert_eq!(session.answered(next, true), Verdict::Answer);
        assert_eq!(session.unanswered(), usize::from(!fails));
    }
}

#[test]
fn no_request_is_sent_while_one_is_unanswered_that_the_array_would_forget() {
    let options = Options { shared: true, bytes_max: ByteCount(64 << 20), faults: PlantedFaults::default() };
    let mut session = Session::new(options);
    session.connected(terms(0, Some(0)));
    let first = session.take(write(0), session.losses());
    for number in 1..2 * REQUEST_WINDOW {
        session.take(write(number * 512), session.losses());
    }
    let mut sent = Vec::new();
    while let Some((number, _)) = session.next_to_send() {
        sent.push(number);
    }
    assert_eq!(sent.last(), Some(&RequestNumber(first.0 + REQUEST_WINDOW - 1)));
    assert_eq!(session.answered(sent[1], true), Verdict::Answer);
    assert_eq!(session.next_to_send(), None);
    assert_eq!(session.answered(first, true), Verdict::Answer);
    assert_eq!(session.next_to_send().unwrap().0, RequestNumber(first.0 + REQUEST_WINDOW));
}
