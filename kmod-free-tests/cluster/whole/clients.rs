//! Clients of the whole cluster: each asks for one thing at a time, of whichever node takes requests.

use std::sync::atomic::Ordering;

use sinter::array::{BlockService as _, NewClone, NewSnapshot, SnapshotWhich};
use sinter::error::ErrorKind;
use sinter::sync::seeded::mix;
use sinter::units::{BLOCK_BYTES, BlockCount, Epoch, Lba, Lsn, RequestNumber};

use super::attached::{Attached, FIRST_ATTACHED};
use super::histories::{Asked, Value};
use super::node::Log;
use super::oracle::At;
use super::world::{Event, MILLISECOND, Time, World};

/// The volume that clients share, block by block, and one whose content is all alike on all nodes or not.
pub(super) const SHARED: &str = "shared";
pub(super) const BULK: &str = "bulk";
pub(super) const SHARED_BLOCKS: u64 = 512;
pub(super) const BULK_BLOCKS: u64 = 300;
/// Requests that somebody has under way who waits for none of them.
const BURST: u32 = 24;
/// Blocks that are asked for at a time.
const WINDOW: usize = 6;
/// A client that has no answer for so long gives up.
const PATIENCE: Time = 2_500 * MILLISECOND;

/// What a client waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Write {
        block: u64,
    },
    Read {
        block: u64,
        value: Value,
    },
    Flush,
    /// A verb on volumes and snapshots, or a write nobody reads again.
    Managed,
    Bulk,
}

/// Who has asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    Plain { client: usize, asked: Asked },
    Attached { client: usize, number: RequestNumber },
}

/// A request that was carried out and is not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) by: Asker,
    pub(super) epoch: Epoch,
    pub(super) lsn: Lsn,
    pub(super) kind: Kind,
    /// Of a read, whether there was a lease when the data was read.
    pub(super) leased: bool,
    /// Whoever answers comes to it no sooner.
    pub(super) from: Time,
}

#[derive(Debug)]
pub(super) struct Client {
    /// Which node it believes to be the primary.
    node: usize,
    waits: Option<Waits>,
}

/// What a client has asked for.
#[derive(Clone, Copy, Debug)]
struct Waits {
    asked: Asked,
    since: Time,
    /// On which life of which node it was carried out.
    on: Option<u64>,
}

pub(super) struct Clients {
    pub(super) all: Vec<Client>,
    pub(super) attached: Vec<Attached>,
    asked: u64,
    names: u64,
    window: Vec<u64>,
    next_block: u64,
    /// Nobody asks for anything new.
    pub(super) resting: bool,
}

impl Clients {
    pub(super) fn new(count: usize) -> Clients {
        let all = (0..count).map(|_| Client { node: 0, waits: None }).collect();
        let window = (0..WINDOW as u64).collect();
        let attached = (0..3).map(|id| Attached::new(id, id == 2)).collect();
        Clients { all, attached, asked: 0, names: 0, window, next_block: WINDOW as u64, resting: false }
    }

    pub(super) fn wait(&self) -> bool {
        self.all.iter().any(|client| client.waits.is_some()) || self.attached.iter().any(Attached::waits)
    }

    pub(super) fn next(&mut self) -> Asked {
        self.asked += 1;
        Asked(self.asked)
    }

    pub(super) fn name(&mut self) -> Value {
        self.names += 1;
        self.names
    }
}

/// A block that says which write it is of; 0 is a block that was never written.
pub(super) fn content(value: Value) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut state = mix(value);
    for part in bytes.chunks_mut(16) {
        state = mix(state);
        part[..8].copy_from_slice(&state.to_le_bytes());
    }
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes
}

pub(super) fn value_of(bytes: &[u8]) -> Value {
    let value = Value::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(value == 0 && bytes.iter().all(|byte| *byte == 0) || bytes == content(value), "a torn block");
    value
}

pub(super) fn offset(block: u64) -> u64 {
    block * BLOCK_BYTES as u64
}

impl World {
    pub(super) fn client(&mut self, client: usize) {
        let delay = 1 + self.numbers.below(if self.calm { 12 } else { 6 } * MILLISECOND);
        self.after(delay, Event::Client { client });
        let node = self.clients.all[client].node;
        match self.clients.all[client].waits {
            Some(waits) if self.now > waits.since + PATIENCE => self.give_up(client),
            Some(waits) => {
                if waits.on.is_some_and(|life| !self.lives_on(life)) {
                    // The connection is lost; what came of the request nobody knows.
                    self.give_up(client);
                }
            }
            None if self.clients.resting => {}
            None if self.reaches(node) => self.ask(client, node),
            None => self.clients.all[client].node = self.numbers.index(self.nodes.len()),
        }
    }

    pub(super) fn lives_on(&self, life: u64) -> bool {
        self.nodes.iter().any(|node| node.life.as_ref().is_some_and(|own| own.number == life && own.stands()))
    }

    /// Whether a node takes requests at this moment.
    pub(super) fn reaches(&self, node: usize) -> bool {
        let awake = self.nodes[node].paused_until <= self.now;
        awake && self.nodes[node].life.as_ref().is_some_and(super::node::Life::takes)
    }

    fn give_up(&mut self, client: usize) {
        let nodes = self.nodes.len();
        self.clients.all[client].waits = None;
        self.clients.all[client].node = self.numbers.index(nodes);
    }

    pub(super) fn block(&mut self) -> u64 {
        let which = self.numbers.index(WINDOW);
        if !self.oracle.histories.has_room(self.clients.window[which]) {
            let next = self.clients.next_block % FIRST_ATTACHED;
            self.clients.next_block += 1;
            self.clients.window[which] = next;
        }
        self.clients.window[which]
    }

    fn ask(&mut self, client: usize, node: usize) {
        let asked = self.clients.next();
        let kind = self.numbers.below(40);
        let bulk_from = if self.wider.room_is_short { 33 } else { 36 };
        if kind >= bulk_from && !self.clients.resting {
            // Many at once: whoever must hold them may be away for a moment, or has not said yet what it has room for.
            let many = self.wider.room_is_short && !self.calm && self.asks_for_much(node);
            return (0..if many { BURST } else { 1 }).for_each(|_| self.bulk(client, node, asked));
        }
        let block = self.block();
        match kind {
            0..18 if self.oracle.histories.has_room(block) => {
                let value = self.clients.name();
                self.oracle.histories.call(asked, block, Some(value));
                let waits = Waits { asked, since: self.now, on: None };
                self.clients.all[client].waits = Some(waits);
                self.write(client, node, asked, block, value);
            }
            18..34 if self.oracle.histories.has_room(block) => {
                self.oracle.histories.call(asked, block, None);
                self.read(client, node, asked, block);
            }
            _ => self.flush(client, node, asked),
        }
        self.serve(node);
    }

    /// Notes what a request has come to.
    fn carried_out(&mut self, node: usize, pending: Pending) {
        let Asker::Plain { client, asked } = pending.by else { return };
        let since = self.now;
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        life.pending.push(pending);
        let on = Some(life.number);
        let waits = &mut self.clients.all[client].waits;
        let since = waits.map_or(since, |waits| waits.since);
        *waits = Some(Waits { asked, since, on });
    }

    /// What a node needs to carry something out.
    pub(super) fn opens(&mut self, node: usize) -> Option<Epoch> {
        self.look_for_room(node);
        let life = self.nodes[node].life.as_ref()?;
        life.gate.open.store(life.takes(), Ordering::Relaxed);
        life.assert_may_serve();
        life.serving
    }

    fn write(&mut self, client: usize, node: usize, asked: Asked, block: u64, value: Value) {
        let Some(epoch) = self.opens(node) else { return };
        let life = self.nodes[node].life.as_ref().unwrap();
        let volume = life.array.open_volume(SHARED);
        let written = volume.and_then(|volume| volume.write(offset(block), &content(value)));
        if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace) {
            self.oracle.histories.withdraw(asked, block);
            self.oracle.seen.no_space += 1;
            self.clients.all[client].waits = None;
        }
        let Ok(commit) = self.tried(node, written) else { return };
        self.oracle.wrote(At { epoch, lsn: commit.0 }, vec![(block, value)]);
        let kind = Kind::Write { block };
        self.carried_out(
            node,
            Pending { by: Asker::Plain { client, asked }, epoch, lsn: commit.0, kind, leased: true, from: 0 },
        );
        self.committed(node);
    }

    /// When whoever has read data comes to look whether it may answer.
    pub(super) fn looked_at_from(&mut self) -> Time {
        let longest = if self.numbers.chance(1, 2) { 6 } else { 1 };
        self.now + self.numbers.below(longest * MILLISECOND)
    }

    fn read(&mut self, client: usize, node: usize, asked: Asked, block: u64) {
        let Some(epoch) = self.opens(node) else { return };
        let now = self.clock(node);
        let from = self.looked_at_from();
        let life = self.nodes[node].life.as_ref().unwrap();
        let leased = life.role.may_read(now);
        let mut bytes = vec![1; BLOCK_BYTES];
        let read = life.array.open_volume(SHARED).and_then(|volume| volume.read(offset(block), &mut bytes));
        if self.tried(node, read).is_err() {
            return;
        }
        let kind = Kind::Read { block, value: value_of(&bytes) };
        self.carried_out(
            node,
            Pending { by: Asker::Plain { client, asked }, epoch, lsn: Lsn(0), kind, leased, from },
        );
    }

    fn flush(&mut self, client: usize, node: usize, asked: Asked) {
        let Some(epoch) = self.opens(node) else { return };
        let life = self.nodes[node].life.as_ref().unwrap();
        let flushed = life.array.open_volume(SHARED).and_then(|volume| volume.flush());
        let lsn = life.gate.wanted();
        let lsn = if self.planted.failed_sync_ignored { life.store.last_lsn() } else { lsn };
        if self.tried(node, flushed).is_ok() || self.planted.failed_sync_ignored {
            self.carried_out(
                node,
                Pending {
                    by: Asker::Plain { client, asked },
                    epoch,
                    lsn,
                    kind: Kind::Flush,
                    leased: true,
                    from: 0,
                },
            );
            self.wants_durable(node, lsn);
        }
    }

    /// Something large, or something with snapshots.
    fn bulk(&mut self, client: usize, node: usize, asked: Asked) {
        let Some(epoch) = self.opens(node) else { return };
        let (what, name) = (self.numbers.below(24), self.clients.name());
        // Room has been made, and is not to be filled again.
        let what = if self.calm && self.wider.room_is_short { 6 } else { what };
        let first = self.numbers.below(BULK_BLOCKS - 24);
        let count = 1 + self.numbers.below(24);
        let count = if self.wider.room_is_short { 24 } else { count };
        let like = self.numbers.below(40);
        let life = self.nodes[node].life.as_ref().unwrap();
        let array = &life.array;
        let mut managed = true;
        let done = match what {
            0 | 1 if array.snapshots().len() < 5 => {
                let new = NewSnapshot { name: Some(format!("s{name}")), ..NewSnapshot::default() };
                array.create_snapshot(BULK, &new).map(drop)
            }
            2 if array.volumes().len() < 4 => {
                array.clone_volume(BULK, &NewClone { name: format!("c{name}"), description: None }).map(drop)
            }
            3 | 4 => match array.snapshots().first() {
                Some(snapshot) => {
                    let of = snapshot.volume_id.to_string();
                    let which = SnapshotWhich { volume: &of, snapshot: &snapshot.name };
                    array.delete_snapshot(which, true)
                }
                None => return,
            },
            5 => match array.volumes().iter().find(|volume| volume.name.starts_with('c')) {
                Some(volume) => array.delete_volume(volume.name.as_str(), true),
                None => return,
            },
            6..9 => {
                managed = false;
                let volume = array.open_volume(BULK);
                volume.and_then(|volume| volume.trim(offset(first), BlockCount(count).bytes())).map(drop)
            }
            _ => {
                managed = false;
                // Some of these blocks are everywhere already.
                let bytes: Vec<u8> =
                    (0..count).flat_map(|at| content((1 << 40) + (like + at) % 50)).collect();
                let unlike = || (0..count).flat_map(|at| content((1 << 42) + 64 * name + at)).collect();
                let bytes = match like {
                    _ if self.wider.room_is_short => unlike(),
                    0..30 => bytes,
                    _ => content((1 << 41) + name),
                };
                array.open_volume(BULK).and_then(|volume| volume.write(offset(first), &bytes)).map(drop)
            }
        };
        let lsn = if managed { life.gate.wanted() } else { life.store.last_lsn() };
        if self.tried(node, done).is_ok() {
            let kind = if managed { Kind::Managed } else { Kind::Bulk };
            self.carried_out(
                node,
                Pending { by: Asker::Plain { client, asked }, epoch, lsn, kind, leased: true, from: 0 },
            );
            if managed {
                self.wants_durable(node, lsn);
            }
            self.committed(node);
            self.serve(node);
        }
    }

    /// Answers what can be answered.
    pub(super) fn serve(&mut self, node: usize) {
        let (now, moment) = (self.clock(node), self.now);
        let lease_first = self.planted.lease_before_read;
        let Some(life) = self.nodes[node].life.as_mut().filter(|life| life.stands()) else { return };
        let (Some(epoch), Some(acknowledged)) = (life.serving, life.role.acknowledged()) else { return };
        let object = self.shared;
        let ready = |life: &super::node::Life, pending: &Pending| match pending.kind {
            Kind::Write { .. } | Kind::Bulk => acknowledged >= pending.lsn && life.written_out >= pending.lsn,
            Kind::Flush | Kind::Managed => {
                life.role.durable(pending.lsn).is_some_and(|durable| durable >= pending.lsn)
            }
            Kind::Read { block, .. } => {
                let waits = life.ring.newest_change(acknowledged, object, Lba(block), BlockCount(1));
                let leased = if lease_first { pending.leased } else { life.role.may_read(now) };
                moment >= pending.from && waits.is_none() && leased
            }
        };
        let pending = std::mem::take(&mut life.pending);
        let (ready, left): (Vec<Pending>, Vec<Pending>) =
            pending.into_iter().partition(|pending| pending.epoch == epoch && ready(life, pending));
        life.pending = left;
        if !ready.is_empty() {
            life.assert_may_serve();
        }
        for pending in ready {
            self.answer(node, pending);
        }
    }

    /// What the primary of a later epoch holds, if there is one.
    pub(super) fn successor(&self, epoch: Epoch) -> Option<Log> {
        let newest = self.oracle.newest.filter(|(newest, _)| *newest > epoch);
        newest.map(|(_, successor)| self.nodes[successor].log.lock().unwrap().clone())
    }

    fn answer(&mut self, node: usize, Pending { by, epoch, lsn, kind, .. }: Pending) {
        let (client, asked) = match by {
            Asker::Plain { client, asked } => (client, asked),
            Asker::Attached { client, number } => {
                return self.answer_attached(node, (client, number), epoch, lsn, kind);
            }
        };
        let successor = self.successor(epoch);
        let at = At { epoch, lsn };
        if !matches!(kind, Kind::Read { .. } | Kind::Flush) {
            self.oracle.acknowledge(at, successor.as_ref());
        }
        // What whoever was left behind by force says counts for nothing.
        let counts = !self.oracle.is_forsaken(epoch);
        match kind {
            Kind::Write { block } if counts => {
                self.oracle.histories.answer(asked, block, None);
                self.oracle.seen.writes += 1;
            }
            Kind::Managed if counts => {
                self.oracle.flush(lsn);
                self.oracle.seen.managed += 1;
            }
            Kind::Read { block, value } if counts => {
                self.oracle.histories.answer(asked, block, Some(value));
                self.oracle.seen.reads += 1;
            }
            Kind::Flush if counts => {
                self.oracle.flush(lsn);
                self.oracle.seen.flushes += 1;
            }
            _ => {}
        }
        let own = &mut self.clients.all[client];
        if own.waits.is_some_and(|waits| waits.asked == asked) {
            own.waits = None;
            own.node = node;
        }
    }

    /// What a node's store holds in the shared volume; nothing where its disk stops.
    pub(super) fn holds(&self, node: usize, block: u64) -> Option<Value> {
        let store = &self.nodes[node].life.as_ref().unwrap().store;
        let mut bytes = vec![1; BLOCK_BYTES];
        let read = store.read(self.shared, Lba(block), &mut bytes, true);
        assert!(read.is_ok() || self.nodes[node].plan.is_stopped(), "{read:?}");
        read.is_ok().then(|| value_of(&bytes))
    }
}
