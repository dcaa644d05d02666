//! Clients that name a session, as `sinter attach` does: what was not answered they send again, under the same number, to
//! whoever is the primary then. Two share their blocks with everybody, one is alone with its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sinter::array::service::Change;
use sinter::array::{BlockService as _, SessionTerms};
use sinter::error::ErrorKind;
use sinter::replica::session::{Losses, Options, PlantedFaults, Request, Session, Verdict};
use sinter::units::{BLOCK_BYTES, ByteCount, Epoch, Lsn, RequestId, RequestNumber, SessionId, Uuid};

use super::clients::{Asker, Kind, Pending, SHARED, content, offset, value_of};
use super::histories::{Asked, Value};
use super::node::Log;
use super::oracle::At;
use super::world::{Event, MILLISECOND, Time, World};

/// Blocks from here on only attached clients write, and from there on only the one that is alone.
pub(super) const FIRST_ATTACHED: u64 = 400;
pub(super) const FIRST_OWN: u64 = 440;
const OWN_BLOCKS: u64 = 60;
/// More than one operation can hold: such a write is carried out in parts.
const WIDE: u64 = 12;
/// Requests that a client has under way.
const DEPTH: usize = 3;
/// A connection without an answer for so long is given up.
const PATIENCE: Time = 800 * MILLISECOND;
/// What a session keeps.
const BYTES_MAX: ByteCount = ByteCount(512 << 10);

/// What a client has asked for.
#[derive(Clone, Debug)]
enum What {
    Write {
        first: u64,
        values: Vec<(Asked, Value)>,
    },
    Read {
        asked: Asked,
        block: u64,
    },
    /// With what the client had been told of its own blocks.
    Flush {
        told: BTreeMap<u64, Value>,
    },
}

pub(super) struct Attached {
    id: SessionId,
    session: Session,
    alone: bool,
    /// As the client behind the session has it from its beginning.
    since: Losses,
    /// Where it is connected: which node, and in which life.
    connected: Option<(usize, u64)>,
    heard_at: Time,
    history: Option<Uuid>,
    requests: BTreeMap<RequestNumber, What>,
    open: BTreeSet<RequestNumber>,
    sent: BTreeSet<RequestNumber>,
    /// Its acknowledged writes, and the name of the history in which they were.
    told: BTreeMap<At, Option<Uuid>>,
    /// What each block holds that it alone writes.
    newest: BTreeMap<u64, Value>,
    /// What was acknowledged, is gone, and could not be done again, because there was no room for it.
    missing: BTreeMap<u64, Value>,
    /// Histories in which writes were acknowledged that are gone now. No FLUSH may succeed over that.
    lost: Vec<Option<Uuid>>,
    next_own: u64,
}

impl Attached {
    pub(super) fn new(id: u128, alone: bool) -> Attached {
        let options = Options { shared: !alone, bytes_max: BYTES_MAX, faults: PlantedFaults::default() };
        Attached {
            id: SessionId(id),
            session: Session::new(options),
            alone,
            since: Losses::default(),
            connected: None,
            heard_at: 0,
            history: None,
            requests: BTreeMap::new(),
            open: BTreeSet::new(),
            sent: BTreeSet::new(),
            told: BTreeMap::new(),
            newest: BTreeMap::new(),
            missing: BTreeMap::new(),
            lost: Vec::new(),
            next_own: 0,
        }
    }

    pub(super) fn waits(&self) -> bool {
        !self.open.is_empty()
    }

    /// Operations are gone that were acknowledged.
    pub(super) fn lose(&mut self, gone: &[At]) {
        self.lost.extend(gone.iter().filter_map(|at| self.told.remove(at)));
    }

    /// What was flushed may be gone as well, and the client knows no better than to believe that it is there.
    pub(super) fn lose_what_was_flushed(&mut self) {
        self.newest.clear();
        for what in self.requests.values_mut() {
            if let What::Flush { told } = what {
                told.clear();
            }
        }
    }

    /// What may still be carried out although all members were lost at once, or all of it: by block, and of a write, what.
    pub(super) fn may_come(&self, all: bool) -> Vec<(Asked, u64, Option<Value>)> {
        let mut coming = Vec::new();
        for number in self.open.iter().filter(|_| !self.alone) {
            match &self.requests[number] {
                What::Write { first, values } if all || !self.sent.contains(number) => {
                    coming.extend(
                        (*first..).zip(values).map(|(block, (asked, value))| (*asked, block, Some(*value))),
                    );
                }
                What::Read { asked, block } => coming.push((*asked, *block, None)),
                _ => {}
            }
        }
        coming
    }
}

impl World {
    pub(super) fn attached(&mut self, client: usize) {
        let delay = 1 + self.numbers.below(if self.calm { 60 } else { 24 } * MILLISECOND);
        self.after(delay, Event::Attached { client });
        let own = &self.clients.attached[client];
        let silent = own.session.under_way() > 0 && self.now > own.heard_at + PATIENCE;
        match own.connected {
            Some((_, life)) => {
                let cut = !self.calm && self.numbers.chance(1, 200);
                if silent || cut || !self.lives_on(life) {
                    self.detach(client);
                }
            }
            None => {
                let node = self.numbers.index(self.nodes.len());
                if self.reaches(node) {
                    self.attach(client, node);
                }
            }
        }
        if !self.clients.resting && self.numbers.chance(2, 3) {
            self.ask_attached(client);
        }
        self.send_attached(client);
    }

    fn attach(&mut self, client: usize, node: usize) {
        let life = self.nodes[node].life.as_ref().unwrap();
        let own = &mut self.clients.attached[client];
        let terms: SessionTerms = life.array.session_terms(own.id);
        assert!(terms.history.is_some(), "a primary takes requests in a history without a name");
        // (5)
        let forsaken = life.serving.is_some_and(|epoch| self.oracle.is_forsaken(epoch));
        assert!(
            forsaken || !own.lost.contains(&terms.history),
            "acknowledged writes are gone, and the history is the same"
        );
        own.connected = Some((node, life.number));
        own.heard_at = self.now;
        own.history = terms.history;
        for number in own.session.connected(terms) {
            assert!(!own.alone && own.open.remove(&number), "{number:?} fails that was not open");
            self.oracle.seen.unknown += 1;
        }
    }

    /// A connection ends, and with it what the node would have answered on it.
    fn detach(&mut self, client: usize) {
        let own = &mut self.clients.attached[client];
        own.session.lost();
        own.connected = None;
        for life in self.nodes.iter_mut().filter_map(|node| node.life.as_mut()) {
            life.pending.retain(
                |pending| !matches!(pending.by, Asker::Attached { client: other, .. } if other == client),
            );
        }
    }

    fn ask_attached(&mut self, client: usize) {
        let own = &self.clients.attached[client];
        if own.open.len() >= DEPTH || !own.session.has_room() {
            return;
        }
        let alone = own.alone;
        let (kind, wide) = (self.numbers.below(20), self.numbers.chance(1, 24));
        let first = match (alone, wide) {
            (true, true) => FIRST_OWN + OWN_BLOCKS,
            (true, false) => self.own_block(client),
            (false, true) => FIRST_ATTACHED + self.numbers.below(FIRST_OWN - FIRST_ATTACHED - WIDE),
            (false, false) => self.block(),
        };
        let count = if wide && kind < 12 { WIDE } else { 1 };
        if !(first..first + count).all(|block| self.oracle.histories.has_room(block)) {
            return;
        }
        let (request, what) = match kind {
            0..2 => {
                let told = self.clients.attached[client].newest.clone();
                (Request::Flush, What::Flush { told })
            }
            2..12 => {
                let named = |_| (self.clients.next(), self.clients.name());
                let values: Vec<(Asked, Value)> = (0..count).map(named).collect();
                for (block, (asked, value)) in (first..).zip(&values) {
                    self.oracle.histories.call(*asked, block, Some(*value));
                }
                let data: Vec<u8> = values.iter().flat_map(|(_, value)| content(*value)).collect();
                (
                    Request::Write { offset: offset(first), data: Arc::from(data) },
                    What::Write { first, values },
                )
            }
            _ => {
                let asked = self.clients.next();
                self.oracle.histories.call(asked, first, None);
                let len = ByteCount(BLOCK_BYTES as u64);
                (Request::Read { offset: offset(first), len }, What::Read { asked, block: first })
            }
        };
        let own = &mut self.clients.attached[client];
        let number = own.session.take(request, own.since);
        own.requests.insert(number, what);
        own.open.insert(number);
    }

    fn own_block(&mut self, client: usize) -> u64 {
        let which = self.numbers.below(4);
        let own = &mut self.clients.attached[client];
        let block = FIRST_OWN + (own.next_own + which) % OWN_BLOCKS;
        if !self.oracle.histories.has_room(block) {
            own.next_own += 1;
        }
        block
    }

    fn send_attached(&mut self, client: usize) {
        let Some((node, _)) = self.clients.attached[client].connected else { return };
        while self.reaches(node) {
            let own = &mut self.clients.attached[client];
            let Some((number, request)) = own.session.next_to_send() else { break };
            self.oracle.seen.sent_again += u64::from(!own.sent.insert(number));
            if own.session.under_way() == 1 {
                own.heard_at = self.now;
            }
            if self.receive(client, node, number, &request).is_none() {
                return self.detach(client);
            }
        }
        self.serve(node);
    }

    /// A node carries out a request of a session, or what has not been done of it yet; nothing where it cannot.
    fn receive(
        &mut self,
        client: usize,
        node: usize,
        number: RequestNumber,
        request: &Request,
    ) -> Option<()> {
        let epoch = self.opens(node)?;
        let now = self.clock(node);
        let late = self.numbers.below(2 * MILLISECOND);
        let id = RequestId { session: self.clients.attached[client].id, number };
        let life = self.nodes[node].life.as_ref().unwrap();
        let by = Asker::Attached { client, number };
        let mut pending =
            Pending { by, epoch, lsn: Lsn(0), kind: Kind::Flush, leased: life.role.may_read(now), from: 0 };
        let volume = life.array.open_volume(SHARED);
        match request {
            Request::Write { offset: at, data } => {
                let before = life.store.last_lsn();
                let written = volume.and_then(|volume| match self.planted.sent_again_without_sessions {
                    true => volume.write(*at, data),
                    false => volume.change_once(id, Change::Write { offset: *at, data }),
                });
                let first = at / BLOCK_BYTES as u64;
                self.note_writes(node, before, first, data);
                let full = written.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace);
                let written = self.tried(node, written);
                if full && self.nodes[node].life.is_some() {
                    self.refuse_attached(client, number);
                    self.committed(node);
                    return Some(());
                }
                pending.lsn = written.ok()?.0;
                pending.kind = Kind::Write { block: first };
            }
            Request::Read { offset: at, .. } => {
                let mut bytes = vec![1; BLOCK_BYTES];
                let read = volume.and_then(|volume| volume.read(*at, &mut bytes));
                self.tried(node, read).ok()?;
                pending.kind = Kind::Read { block: at / BLOCK_BYTES as u64, value: value_of(&bytes) };
                pending.from = self.now + late;
            }
            _ => {
                let flushed = volume.and_then(|volume| volume.flush());
                pending.lsn = life.gate.wanted();
                self.tried(node, flushed).ok()?;
            }
        }
        let (lsn, kind) = (pending.lsn, pending.kind);
        self.nodes[node].life.as_mut()?.pending.push(pending);
        match kind {
            Kind::Flush => self.wants_durable(node, lsn),
            Kind::Write { .. } => self.committed(node),
            _ => {}
        }
        Some(())
    }

    /// Notes which operations behind `before` have set which blocks.
    pub(super) fn note_writes(&mut self, node: usize, before: Lsn, first: u64, data: &[u8]) {
        let log = self.nodes[node].log.lock().unwrap();
        for (lsn, entry) in log.range(before.next()..) {
            let ours = entry.blocks.filter(|(object, ..)| *object == self.shared);
            let Some((_, start, count)) = ours else { continue };
            let at = At { epoch: entry.epoch, lsn: *lsn };
            let value = |block: u64| {
                let from = usize::try_from(block - first).unwrap() * BLOCK_BYTES;
                (block, value_of(&data[from..from + BLOCK_BYTES]))
            };
            self.oracle.wrote(at, (start.0..start.0 + count).map(value).collect());
        }
    }

    /// A node says that it has no room for what a session asks for; parts of it may be in place.
    fn refuse_attached(&mut self, client: usize, number: RequestNumber) {
        self.oracle.seen.no_space += 1;
        let own = &mut self.clients.attached[client];
        own.heard_at = self.now;
        let Some(What::Write { first, values }) = own.requests.get(&number).cloned() else {
            panic!("{number:?} of session {client} takes no room");
        };
        let blocks = (first..).zip(values);
        match own.session.answered(number, false) {
            Verdict::Answer => {
                assert!(own.open.remove(&number), "{number:?} of session {client} is refused again");
                for (block, (asked, value)) in blocks {
                    let is_there = |log: &Log| !self.oracle.places(value, log).is_empty();
                    if !self.nodes.iter().any(|node| is_there(&node.log.lock().unwrap())) {
                        self.oracle.histories.withdraw(asked, block);
                    }
                }
            }
            Verdict::Silent => {
                for (block, (_, value)) in blocks {
                    own.missing.insert(block, value);
                    self.oracle.histories.forget(block);
                }
            }
            verdict => panic!("{number:?} of session {client} is refused: {verdict:?}"),
        }
    }

    /// A node answers a request of a session.
    pub(super) fn answer_attached(
        &mut self,
        node: usize,
        (client, number): (usize, RequestNumber),
        epoch: Epoch,
        lsn: Lsn,
        kind: Kind,
    ) {
        let what = self.clients.attached[client].requests.get(&number).cloned();
        let alone = self.clients.attached[client].alone;
        let mut places = Vec::new();
        if let Some(What::Write { values, .. }) = &what {
            let log = self.nodes[node].log.lock().unwrap();
            for (_, value) in values {
                let found = self.oracle.places(*value, &log);
                let once = found.len() == 1 || alone && found.len() > 1;
                assert!(once, "{number:?} of session {client} is answered, and was carried out at {found:?}");
                places.extend(found.last());
            }
        }
        let successor = self.successor(epoch);
        let gone: Vec<At> =
            places.iter().copied().filter(|at| !self.oracle.acknowledge(*at, successor.as_ref())).collect();
        let forsaken = self.oracle.is_forsaken(epoch);
        if matches!(kind, Kind::Flush) && !forsaken {
            self.oracle.flush(lsn);
        }
        let own = &mut self.clients.attached[client];
        own.heard_at = self.now;
        let verdict = own.session.answered(number, true);
        own.told.extend(places.into_iter().map(|at| (at, own.history)));
        own.lose(&gone);
        if matches!(kind, Kind::Flush) && forsaken {
            own.lost.clear();
            own.lose_what_was_flushed();
        }
        match (verdict, what) {
            (Verdict::Answer, Some(_)) if forsaken => {
                own.open.remove(&number);
            }
            (Verdict::Answer, Some(what)) => {
                assert!(own.open.remove(&number), "{number:?} of session {client} is answered again");
                self.told(node, client, lsn, what, kind);
            }
            (Verdict::Lost, _) => {
                own.open.remove(&number);
                // The client learns of it, and another one begins.
                for (block, value) in std::mem::take(&mut own.missing) {
                    if own.newest.get(&block) == Some(&value) {
                        own.newest.remove(&block);
                    }
                }
                own.since = own.session.losses();
                own.lost.retain(|history| *history == own.history);
                self.oracle.seen.refused += 1;
            }
            (Verdict::Silent, _) => {}
            other => panic!("{number:?} of session {client}: {other:?}"),
        }
    }

    /// The client behind a session hears of success.
    fn told(&mut self, node: usize, client: usize, lsn: Lsn, what: What, kind: Kind) {
        let own = &mut self.clients.attached[client];
        match (what, kind) {
            (What::Write { first, values }, _) => {
                for (block, (asked, value)) in (first..).zip(values) {
                    self.oracle.histories.answer(asked, block, None);
                    if own.alone {
                        own.newest.insert(block, value);
                    }
                }
                self.oracle.seen.writes += 1;
            }
            (What::Read { asked, block }, Kind::Read { value, .. }) => {
                self.oracle.histories.answer(asked, block, Some(value));
                self.oracle.seen.reads += 1;
            }
            (What::Flush { told }, _) => {
                // (5)
                assert!(own.alone || own.lost.is_empty(), "session {client} flushed over what is gone");
                let log = self.nodes[node].log.lock().unwrap();
                for (block, value) in told {
                    let is_there = self.oracle.places(value, &log).iter().any(|at| at.lsn <= lsn);
                    assert!(is_there, "session {client} flushed, and block {block} is not what it was told");
                }
                self.oracle.seen.flushes += 1;
            }
            (what, kind) => panic!("{what:?} is answered with {kind:?}"),
        }
    }
}
