//! Several clients that share a volume, over an array of two nodes: requests of a connection are carried out in any
//! order and bit by bit, answers are lost, primaries die and are replaced by what they had shipped, all power is lost.
//!
//! The array is a model; the sessions and the memory of what they have done are real. The log that a primary holds is
//! what the array has been through, so the oracle looks at it: no request is in it twice for any cell, what was
//! answered is in it, nothing comes before what had been answered when it was asked for, and no FLUSH succeeds over
//! what is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use sinter::replica::session::Losses;
use sinter::replica::session::Options;
use sinter::replica::session::PlantedFaults;
use sinter::replica::session::Request;
use sinter::replica::session::RequestNumber;
use sinter::replica::session::Session;
use sinter::replica::session::Verdict;
use sinter::store::Origin;
use sinter::store::Progress;
use sinter::store::Sessions;
use sinter::units::ByteCount;
use sinter::units::RequestId;
use sinter::units::SessionId;
use sinter::units::SessionMemory;

use crate::model::Choices;
use crate::model::histories;
use crate::model::terms;

const CLIENTS: usize = 2;
const CELLS: u64 = 4;
const CELL_BYTES: u64 = 4;
/// Requests of one client, how many it has under way, and steps after which a history counts as stuck.
const REQUESTS: usize = 25;
const DEPTH: usize = 4;
const STEPS_MAX: usize = 20_000;

/// Faults of the array that the model plants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ArrayFaults {
    /// The new primary has not been told what was done, and does not say so.
    memory_not_shipped: bool,
    /// Only requests that are done as a whole are remembered.
    parts_not_remembered: bool,
    /// A node that is brought up is told what was done before it holds the operations that did it.
    memory_too_early: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    session: PlantedFaults,
    array: ArrayFaults,
}

/// One cell set by one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Logged {
    by: usize,
    number: RequestNumber,
    cell: u64,
    origin: Origin,
}

struct Node {
    log: Vec<Logged>,
    memory: Sessions,
}

impl Node {
    fn apply(&mut self, logged: Logged, faults: ArrayFaults) {
        self.log.push(logged);
        if logged.origin.progress == Progress::Done || !faults.parts_not_remembered {
            self.memory.note(&logged.origin);
        }
    }
}

/// A request as the primary has it.
struct Received {
    by: usize,
    number: RequestNumber,
    request: Request,
    /// The cell that is next, as far as this connection knows.
    next: u64,
    /// Of a FLUSH: how much of the log it makes durable.
    log_len: usize,
}

/// An answer that may go out once the other node has applied so much.
struct Answer {
    by: usize,
    number: RequestNumber,
    log_len: usize,
}

/// What a client remembers of a request.
struct Asked {
    request: Request,
    answered: bool,
    failed: bool,
    /// Changes of all clients that had been answered when it was asked for, and were in the array's history then.
    answered_before: Vec<(usize, RequestNumber)>,
}

struct World {
    choices: Choices,
    faults: Faults,
    primary: Node,
    secondary: Option<Node>,
    durable: usize,
    history: u8,
    memories: u64,
    received: Vec<Received>,
    answers: Vec<Answer>,
    clients: Vec<Session>,
    connected: [bool; CLIENTS],
    asked: BTreeMap<(usize, RequestNumber), Asked>,
    /// How much of the log was lost with the power so far: what was answered before is no longer looked for.
    lost: Vec<(usize, RequestNumber)>,
}

fn cells_of(request: &Request) -> std::ops::Range<u64> {
    match request {
        Request::Write { offset, data } => offset / CELL_BYTES..(offset + data.len() as u64) / CELL_BYTES,
        _ => 0..0,
    }
}

impl World {
    fn new(seed: u64, faults: Faults) -> World {
        let options = Options { shared: true, bytes_max: ByteCount(16 << 10), faults: faults.session };
        World {
            choices: Choices::new(seed),
            faults,
            primary: Node { log: Vec::new(), memory: Sessions::new(SessionMemory(0)) },
            secondary: None,
            durable: 0,
            history: 0,
            memories: 0,
            received: Vec::new(),
            answers: Vec::new(),
            clients: (0..CLIENTS).map(|_| Session::new(options)).collect(),
            connected: [false; CLIENTS],
            asked: BTreeMap::new(),
            lost: Vec::new(),
        }
    }

    fn of(&self, by: usize) -> impl Iterator<Item = &Asked> {
        self.asked.range((by, RequestNumber(0))..(by + 1, RequestNumber(0))).map(|(_, asked)| asked)
    }

    fn waiting(&self, by: usize) -> usize {
        self.of(by).filter(|asked| !asked.answered && !asked.failed).count()
    }

    fn ask(&mut self, by: usize) {
        let request = if self.choices.below(6) == 0 {
            Request::Flush
        } else {
            let first = self.choices.below(CELLS as usize) as u64;
            let count = 1 + self.choices.below((CELLS - first).min(3) as usize);
            let data: Arc<[u8]> = Arc::from(vec![1; count * CELL_BYTES as usize]);
            Request::Write { offset: first * CELL_BYTES, data }
        };
        let answered =
            self.asked.iter().filter(|(_, asked)| asked.answered && asked.request != Request::Flush);
        let answered_before =
            answered.map(|(change, _)| *change).filter(|change| !self.lost.contains(change)).collect();
        let number = self.clients[by].take(request.clone(), Losses::default());
        let asked = Asked { request, answered: false, failed: false, answered_before };
        self.asked.insert((by, number), asked);
    }

    fn connect(&mut self, by: usize) {
        // A former connection of the session has ended before.
        self.received.retain(|received| received.by != by);
        self.answers.retain(|answer| answer.by != by);
        let memory = self.primary.memory.memory_of(SessionId(by as u128));
        for number in self.clients[by].connected(terms(self.history, memory.map(|memory| memory.0))) {
            self.asked.get_mut(&(by, number)).unwrap().failed = true;
        }
        self.connected[by] = true;
    }

    fn disconnect(&mut self, by: usize) {
        self.connected[by] = false;
        self.clients[by].lost();
    }

    /// Carries out the next cell of a request, or finds it done.
    fn execute(&mut self, which: usize) -> Result<(), String> {
        let Received { by, number, request, next, log_len } = &self.received[which];
        let (by, number) = (*by, *number);
        if *request == Request::Flush {
            let log_len = (*log_len).max(self.durable);
            self.answers.push(Answer { by, number, log_len });
            self.received.swap_remove(which);
            return Ok(());
        }
        let cells = cells_of(request);
        let id = RequestId { session: SessionId(by as u128), number };
        let before = match self.primary.memory.progress(id) {
            Progress::Through(bytes) => cells.start + bytes.0 / CELL_BYTES,
            Progress::Done => cells.end,
        };
        let cell = before.max(*next);
        if cell < cells.end {
            let last = cell + 1 == cells.end;
            let through = ByteCount((cell + 1 - cells.start) * CELL_BYTES);
            let progress = if last { Progress::Done } else { Progress::Through(through) };
            let logged = Logged { by, number, cell, origin: Origin { request: id, progress } };
            let again = |it: &Logged| (it.by, it.number, it.cell) == (by, number, cell);
            if self.primary.log.iter().any(again) {
                return Err(format!("request {number:?} of client {by} is carried out twice in cell {cell}"));
            }
            self.primary.apply(logged, self.faults.array);
            if !last {
                self.received[which].next = cell + 1;
                return Ok(());
            }
        }
        self.received.swap_remove(which);
        self.answers.push(Answer { by, number, log_len: self.primary.log.len() });
        Ok(())
    }

    fn ship(&mut self) {
        let faults = self.faults.array;
        if let Some(secondary) = &mut self.secondary
            && let Some(next) = self.primary.log.get(secondary.log.len())
        {
            secondary.apply(*next, faults);
        }
    }

    /// A node is taken in: it holds a prefix, is told what was done at the place of the stream where it was read.
    fn take_in(&mut self) {
        let prefix = self.choices.below(self.primary.log.len() + 1);
        let mut node =
            Node { log: self.primary.log[..prefix].to_vec(), memory: Sessions::new(SessionMemory(u64::MAX)) };
        let picture = self.primary.memory.picture();
        if !self.faults.array.memory_too_early {
            node.log = self.primary.log.clone();
        }
        let name = picture.memory;
        node.memory = if self.faults.array.memory_not_shipped {
            Sessions::new(name)
        } else {
            Sessions::from_picture(picture)
        };
        self.secondary = Some(node);
    }

    fn may_go_out(&self, answer: &Answer) -> bool {
        self.secondary.as_ref().is_none_or(|secondary| secondary.log.len() >= answer.log_len)
    }

    fn deliver(&mut self, which: usize) -> Result<(), String> {
        let Answer { by, number, log_len } = self.answers.swap_remove(which);
        let is_flush = self.asked.get(&(by, number)).is_some_and(|asked| asked.request == Request::Flush);
        if is_flush {
            self.durable = self.durable.max(log_len);
        }
        if !self.connected[by] {
            return Ok(());
        }
        let verdict = self.clients[by].answered(number, true);
        if verdict == Verdict::Silent {
            return Ok(());
        }
        let asked = self.asked.get_mut(&(by, number)).ok_or("an answer to nothing")?;
        if asked.answered || asked.failed {
            return Err(format!("client {by} has an answer to {number:?} again"));
        }
        match verdict {
            Verdict::Answer => asked.answered = true,
            Verdict::Lost => asked.failed = true,
            other => return Err(format!("client {by}, {number:?}: {other:?}")),
        }
        if is_flush && verdict == Verdict::Answer {
            let before = &self.asked[&(by, number)].answered_before;
            for change in before.iter().filter(|change| change.0 == by) {
                let durable = &self.primary.log[..self.durable];
                let is_durable = |cell| {
                    let mut log = durable.iter();
                    log.any(|logged| (logged.by, logged.number, logged.cell) == (change.0, change.1, cell))
                };
                if !cells_of(&self.asked[change].request).all(is_durable) {
                    return Err(format!("client {by} flushed, and {change:?} is not durable"));
                }
            }
            let gone = self.lost.iter().find(|(of, change)| *of == by && *change < number);
            if let Some(gone) = gone {
                return Err(format!("client {by} flushed, and {gone:?} is lost"));
            }
        }
        Ok(())
    }

    /// The primary dies; whoever may follow it holds what was answered.
    fn fail_over(&mut self) {
        let Some(secondary) = self.secondary.take() else { return };
        (0..CLIENTS).for_each(|by| self.disconnect(by));
        self.received.clear();
        self.answers.clear();
        self.primary = secondary;
        self.durable = self.durable.min(self.primary.log.len());
    }

    /// All nodes die: their memory is gone, and with the power what was not durable.
    fn all_die(&mut self, power: bool) {
        (0..CLIENTS).for_each(|by| self.disconnect(by));
        self.received.clear();
        self.answers.clear();
        self.secondary = None;
        self.memories += 1;
        self.primary.memory = Sessions::new(SessionMemory(self.memories));
        if !power {
            return;
        }
        let kept = self.durable + self.choices.below(self.primary.log.len() - self.durable + 1);
        self.primary.log.truncate(kept);
        self.history += 1;
        for (change, asked) in &self.asked {
            let mut cells = cells_of(&asked.request);
            let there = cells.all(|cell| {
                let mut log = self.primary.log.iter();
                log.any(|logged| (logged.by, logged.number, logged.cell) == (change.0, change.1, cell))
            });
            if asked.answered && asked.request != Request::Flush && !there {
                self.lost.push(*change);
            }
        }
    }

    fn run(mut self) -> Result<(), String> {
        for _ in 0..STEPS_MAX {
            let by = self.choices.below(CLIENTS);
            let count = self.of(by).count();
            let may_ask = count < REQUESTS && self.waiting(by) < DEPTH && self.clients[by].has_room();
            match self.choices.below(60) {
                0 => {
                    self.fail_over();
                    self.check_log()?;
                }
                1 if self.choices.below(4) == 0 => {
                    let power = self.choices.below(2) == 0;
                    self.all_die(power);
                    self.check_log()?;
                }
                2 => self.disconnect(by),
                3..5 if self.secondary.is_none() => self.take_in(),
                5..10 if !self.connected[by] => self.connect(by),
                10..18 if may_ask => self.ask(by),
                18..28 if self.connected[by] => {
                    if let Some((number, request)) = self.clients[by].next_to_send() {
                        let log_len = self.primary.log.len();
                        self.received.push(Received { by, number, request, next: 0, log_len });
                    }
                }
                28..40 if !self.received.is_empty() => {
                    let which = self.choices.below(self.received.len());
                    self.execute(which)?;
                }
                40..50 => self.ship(),
                50..60 if !self.answers.is_empty() => {
                    let which = self.choices.below(self.answers.len());
                    if self.may_go_out(&self.answers[which]) {
                        self.deliver(which)?;
                        self.check_log()?;
                    }
                }
                _ => {}
            }
            let all = (0..CLIENTS).all(|by| self.of(by).count() == REQUESTS && self.waiting(by) == 0);
            if all {
                return self.check_log();
            }
        }
        Err("stuck".to_owned())
    }

    fn check_log(&self) -> Result<(), String> {
        let log = &self.primary.log;
        let place = |change: &(usize, RequestNumber), cell| {
            log.iter()
                .rposition(|logged| (logged.by, logged.number, logged.cell) == (change.0, change.1, cell))
        };
        for (index, logged) in log.iter().enumerate() {
            let change = (logged.by, logged.number);
            if place(&change, logged.cell) != Some(index) {
                return Err(format!("{change:?} was carried out twice in cell {}", logged.cell));
            }
            for before in &self.asked[&change].answered_before {
                if place(before, logged.cell).is_some_and(|place| place > index) {
                    return Err(format!("{before:?} came after {change:?} in cell {}", logged.cell));
                }
            }
        }
        for (change, asked) in self.asked.iter().filter(|(_, asked)| asked.answered) {
            for cell in cells_of(&asked.request) {
                if place(change, cell).is_none() && !self.lost.contains(change) {
                    return Err(format!("{change:?} was answered and is not in cell {cell}"));
                }
            }
        }
        Ok(())
    }
}

#[test]
fn what_is_sent_again_is_carried_out_once_and_over_nobody() {
    for seed in 1..=histories() {
        if let Err(what) = World::new(seed, Faults::default()).run() {
            panic!("history {seed}: {what}");
        }
    }
}

#[test]
fn planted_faults_of_several_clients_are_found() {
    let none = Faults::default();
    let (session, array) = (none.session, none.array);
    for faults in [
        Faults { session: PlantedFaults { memory_ignored: true, ..session }, ..none },
        Faults { session: PlantedFaults { history_ignored: true, ..session }, ..none },
        Faults { array: ArrayFaults { memory_not_shipped: true, ..array }, ..none },
        Faults { array: ArrayFaults { parts_not_remembered: true, ..array }, ..none },
        Faults { array: ArrayFaults { memory_too_early: true, ..array }, ..none },
    ] {
        let mut runs = (1..=histories()).map(|seed| World::new(seed, faults).run());
        let after = runs.position(|run| run.is_err_and(|what| what != "stuck"));
        println!("{faults:?}: {after:?}");
        assert!(after.is_some(), "{faults:?}");
    }
}
