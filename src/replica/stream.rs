//! The primary's end of the stream to one secondary: a machine over the ring and the store, without socket, thread
//! or clock.
//!
//! Whoever drives it hands it what the secondary says and sends what it gives out, in order. A secondary that holds a
//! prefix of what the primary has, and is not further behind than the ring reaches, is sent the missing operations. Any
//! other begins anew from the newest bookmark that both have, or from nothing, and is sent *pieces*: what the primary
//! maps at this place of the stream, where that is not what both began with. A piece is read under the commit lock and
//! takes its place in the stream there, so pieces and new operations arrive in one order: a block that is written before its
//! piece is read is in the piece, one that is written after it is written again on the secondary.
//!
//! An object that comes to be, or gets other content, while the secondary is compared may be made there of what is not
//! complete yet: it is compared too, against what its source began with.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::array::Array;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{MappingKind, Shipment, ShippedMapping, ShippedOperation, ShippedPayload, Store};
use crate::sync::Mutex;
use crate::units::{BlockCount, Lba, Lsn, ObjectNumber};

use super::bookmarks::{Beginning, Inventory};
use super::decisions::{Member, Position};
use super::epochs::Epochs;
use super::ring::{Next, Ring};
use super::wire::{self, Base, BroughtPayload, Downstream, ItemNumber, Standing};

/// Bytes that a secondary has been sent and has not answered for, at most.
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// The same in items.
const IN_FLIGHT_ITEMS_MAX: usize = 4096;
/// Blocks of one piece.
const PIECE_BLOCKS: u64 = 256;
/// Blocks that one look at two trees covers, at most.
const LOOK_BLOCKS: u64 = 1 << 22;
/// Runs of one look.
const LOOK_RUNS: usize = 128;
/// Looks of one call.
const LOOKS_MAX: usize = 64;
/// Operations that may be on their way when a secondary counts as having caught up.
const CAUGHT_UP_OPERATIONS: u64 = 1024;
/// From so many missed payloads on they are sent unasked.
const MISSES_MANY: u32 = 64;
/// One missed payload is forgotten after so many items: a question holds up the stream for a round trip, a payload too many
/// costs little.
const FORGET_MISS_AFTER: u64 = 256;

/// One stream.
pub struct Stream {
    store: Arc<Store>,
    ring: Arc<Ring>,
    peer: Member,
    /// Set while the secondary is compared.
    comparison: Option<Comparison>,
    /// What is to be sent before anything else.
    first: VecDeque<Downstream>,
    /// The newest operation that was sent, or that the secondary had.
    sent: Position,
    items: ItemNumber,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// The secondary's newest operation, once that means something.
    applied: Option<Lsn>,
    misses: u32,
    /// Bytes given out since the stream was opened.
    sent_bytes: u64,
    /// Of those, pieces and payloads that were asked for.
    comparison_bytes: u64,
    /// Nothing more is read of what is to be compared, for now.
    held: bool,
}

/// An item that the secondary has not answered for.
struct InFlight {
    item: ItemNumber,
    bytes: usize,
    what: What,
}

/// What payloads may be asked for of.
enum What {
    Operation(Arc<Shipment>),
    Piece(ShippedOperation),
    Nothing,
}

/// A piece, and behind which operation it was read.
type Placed = (Lsn, ShippedOperation);

/// A secondary being compared.
struct Comparison {
    /// What is left to look at.
    work: VecDeque<Work>,
    /// What each object began with on both sides.
    began: BTreeMap<ObjectNumber, Began>,
    pieces: VecDeque<Placed>,
}

/// An object, as far as it has been looked at.
#[derive(Clone, Copy, Debug)]
struct Work {
    object: ObjectNumber,
    began: Began,
    at: Lba,
}

/// What an object began with on both sides: what it maps otherwise is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Began {
    /// Holes.
    Empty,
    /// What this object holds, which nobody writes to.
    Like(ObjectNumber),
    /// What nobody can tell any more: everything is sent.
    Unknown,
}

/// How a stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The secondary holds a prefix of what the primary has.
    Prefix,
    /// It is being compared.
    Compared {
        /// Blocks of objects that have not been looked at.
        remaining: BlockCount,
    },
}

impl Stream {
    /// The stream to a secondary that stands there.
    ///
    /// # Errors
    /// `Busy` for one whose past is not that of this array: an operator decides which side goes; `Device`, `Corrupt`
    /// where the own objects cannot be read.
    pub fn open(
        array: &Array,
        store: &Arc<Store>,
        ring: &Arc<Ring>,
        epochs: &Epochs,
        standing: &Standing,
    ) -> Result<Stream> {
        let mut stream = Stream::new(store, ring, standing);
        stream.check_past(epochs, standing)?;
        let position = standing.position;
        let prefix = !standing.syncing && epochs.holds(position, ring.last());
        if prefix && ring.reaches_back_to(position.lsn) {
            stream.first.push_back(Downstream::GoOn);
            return Ok(stream);
        }
        array.freeze_management(|| stream.begin_anew(standing))?;
        Ok(stream)
    }

    /// As `open`, and the secondary is compared wherever it stands: the last stream to it ended with `Changed`.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_anew(
        array: &Array,
        store: &Arc<Store>,
        ring: &Arc<Ring>,
        epochs: &Epochs,
        standing: &Standing,
    ) -> Result<Stream> {
        let mut stream = Stream::new(store, ring, standing);
        stream.check_past(epochs, standing)?;
        array.freeze_management(|| stream.begin_anew(standing))?;
        Ok(stream)
    }

    fn new(store: &Arc<Store>, ring: &Arc<Ring>, standing: &Standing) -> Stream {
        Stream {
            store: Arc::clone(store),
            ring: Arc::clone(ring),
            peer: standing.by,
            comparison: None,
            first: VecDeque::new(),
            sent: standing.position,
            items: ItemNumber(0),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            applied: None,
            misses: 0,
            sent_bytes: 0,
            comparison_bytes: 0,
            held: false,
        }
    }

    /// Whether what the secondary holds has come to be in a past that this array had.
    fn check_past(&self, epochs: &Epochs, standing: &Standing) -> Result<()> {
        let position = standing.position;
        if position.lsn > Lsn(0) && !epochs.knows(position.epoch) && !standing.syncing {
            let what = format!(
                "node {} has operations of epoch {}.{}, which this array never had: split brain",
                standing.by.node.0, position.epoch.generation, position.epoch.number
            );
            return Err(Error::new(ErrorKind::Busy, what));
        }
        Ok(())
    }

    /// Chooses what every object begins with. No object comes or goes meanwhile, and operations on blocks that are
    /// committed from here on are in the stream.
    fn begin_anew(&mut self, standing: &Standing) -> Result<()> {
        let (epoch, lsn) = self.store.position();
        if !self.ring.reaches_back_to(lsn) {
            return Err(Error::new(ErrorKind::NotPrimary, "this node does not listen to its own operations"));
        }
        self.sent = Position { epoch, lsn };
        let inventory = Inventory::of(&self.store)?;
        let beginning = inventory.beginning(standing);
        let mut work = VecDeque::new();
        let mut began = BTreeMap::new();
        self.first.push_back(Downstream::Anew);
        for Beginning { object, base } in beginning {
            let began_with = match base {
                Base::Kept => Began::Like(object.number),
                Base::Like(other) => Began::Like(other),
                Base::Empty => Began::Empty,
            };
            began.insert(object.number, began_with);
            if base != Base::Kept {
                work.push_back(Work { object: object.number, began: began_with, at: Lba(0) });
            }
            let (number, size) = (object.number, object.size);
            self.first.push_back(Downstream::Object { object: number, size, opaque: object.opaque, base });
        }
        self.first.push_back(Downstream::ObjectsEnd);
        self.comparison = Some(Comparison { work, began, pieces: VecDeque::new() });
        Ok(())
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Member {
        self.peer
    }

    /// The newest operation that was sent.
    #[must_use]
    pub fn sent(&self) -> Lsn {
        self.sent.lsn
    }

    /// Bytes given out since the stream was opened.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Of those, bytes of pieces, and of payloads that the secondary has asked for.
    #[must_use]
    pub fn comparison_bytes(&self) -> u64 {
        self.comparison_bytes
    }

    /// Whether nothing more is compared until this is called again; operations are sent all the same.
    pub fn hold_comparison(&mut self, held: bool) {
        self.held = held;
    }

    /// How it goes on.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let Some(comparison) = &self.comparison else { return Progress::Prefix };
        let left = |work: &Work| {
            self.store.object_size(work.object).map_or(0, |size| size.0.saturating_sub(work.at.0))
        };
        Progress::Compared { remaining: BlockCount(comparison.work.iter().map(left).sum()) }
    }

    /// Whether the secondary holds all that the primary has, but for what is on its way.
    #[must_use]
    pub fn has_caught_up(&self) -> bool {
        let behind = |applied: Lsn| self.ring.last().0.saturating_sub(applied.0);
        self.comparison.is_none()
            && self.applied.is_some_and(|applied| behind(applied) < CAUGHT_UP_OPERATIONS)
    }

    /// The next frame's body to be sent; nothing while there is nothing, or too much is on its way.
    ///
    /// # Errors
    /// `Changed` where the secondary has fallen behind the ring, or a block to be compared cannot be had any more:
    /// the stream ends, and the next one begins anew. As reading, besides.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>> {
        if self.is_full() {
            return Ok(None);
        }
        if let Some(message) = self.first.pop_front() {
            return Ok(Some(self.give_out(&message.encode(), What::Nothing)));
        }
        let sent = self.sent.lsn;
        let comparison = self.comparison.as_mut();
        let due = comparison.filter(|it| it.pieces.front().is_some_and(|(after, _)| *after <= sent));
        if let Some((_, piece)) = due.and_then(|comparison| comparison.pieces.pop_front()) {
            let body = Downstream::Piece(piece.clone()).encode();
            self.comparison_bytes += body.len() as u64;
            return Ok(Some(self.give_out(&body, What::Piece(piece))));
        }
        match self.ring.get(self.sent.lsn.next()) {
            Next::Operation(shipment) => return self.operation(shipment).map(Some),
            Next::Gone => {
                let what = format!("node {} has fallen behind what is kept of operations", self.peer.node.0);
                return Err(Error::new(ErrorKind::Changed, what));
            }
            Next::NothingYet => {}
        }
        for _ in 0..LOOKS_MAX {
            let done =
                |comparison: &mut Comparison| comparison.work.is_empty() && comparison.pieces.is_empty();
            if self.comparison.is_none() {
                return Ok(None);
            }
            if self.comparison.take_if(done).is_some() {
                let body = Downstream::Adopt(self.sent).encode();
                return Ok(Some(self.give_out(&body, What::Nothing)));
            }
            if self.held {
                return Ok(None);
            }
            self.look()?;
            if self.comparison.as_ref().is_some_and(|comparison| !comparison.pieces.is_empty()) {
                return self.next_frame();
            }
        }
        Ok(None)
    }

    /// Whether there may be more to send though nothing new was committed.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.is_full() && (self.comparison.is_some() && !self.held || !self.first.is_empty())
    }

    /// Whether as much is on its way as may be.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.in_flight_bytes >= IN_FLIGHT_BYTES_MAX || self.in_flight.len() >= IN_FLIGHT_ITEMS_MAX
    }

    fn operation(&mut self, shipment: Arc<Shipment>) -> Result<Vec<u8>> {
        self.sent = Position { epoch: shipment.epoch, lsn: shipment.lsn };
        if let Some(comparison) = &mut self.comparison {
            comparison.note(&shipment.operation);
        }
        let body = wire::encode_shipment(&shipment);
        Ok(self.give_out(&body, What::Operation(shipment)))
    }

    fn give_out(&mut self, body: &[u8], what: What) -> Vec<u8> {
        self.items.0 += 1;
        self.in_flight.push_back(InFlight { item: self.items, bytes: body.len(), what });
        self.in_flight_bytes += body.len();
        self.sent_bytes += body.len() as u64;
        body.to_vec()
    }

    /// The secondary has applied these items, and this operation where it follows.
    pub fn applied(&mut self, items: ItemNumber, applied: Lsn) {
        while self.in_flight.front().is_some_and(|sent| sent.item <= items) {
            let Some(done) = self.in_flight.pop_front() else { break };
            self.in_flight_bytes -= done.bytes;
            let forget = done.item.0.is_multiple_of(FORGET_MISS_AFTER);
            self.misses = self.misses.saturating_sub(u32::from(forget));
        }
        if applied > Lsn(0) {
            // What was made durable is told by another thread, and may be older.
            self.applied = self.applied.max(Some(applied));
        }
    }

    /// The payloads that the secondary asks for.
    ///
    /// # Errors
    /// `Invalid` for what was not sent; `Changed` for a block that is not here any more.
    pub fn payloads(&mut self, item: ItemNumber, positions: &[u16]) -> Result<Vec<u8>> {
        let sent = self.in_flight.iter().find(|sent| sent.item == item);
        let operation = match sent.map(|sent| &sent.what) {
            Some(What::Operation(shipment)) => Some(&shipment.operation),
            Some(What::Piece(operation)) => Some(operation),
            _ => None,
        };
        let Some(ShippedOperation::Write { object, first, mappings, .. }) = operation else {
            return Err(Error::new(ErrorKind::Invalid, format!("item {} has no payloads", item.0)));
        };
        let mut payloads = Vec::with_capacity(positions.len().min(mappings.len()));
        for position in positions {
            let Some(ShippedMapping::Block { fingerprint, .. }) = mappings.get(usize::from(*position)) else {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("block {position} of item {} is none", item.0),
                ));
            };
            let lba = first.plus(u64::from(*position));
            let stored = match self.store.stored_block_at(*object, lba, fingerprint)? {
                Some(stored) => Some(stored),
                None => self.store.stored_block(fingerprint)?,
            };
            let (stored, checksum) = stored.ok_or_else(|| {
                let what = format!(
                    "block {lba} of object {object} was overwritten before node {} had it",
                    self.peer.node.0
                );
                Error::new(ErrorKind::Changed, what)
            })?;
            payloads.push(BroughtPayload { position: *position, stored, checksum });
        }
        self.misses = self
            .misses
            .saturating_add(u32::try_from(payloads.len()).unwrap_or(u32::MAX))
            .min(8 * MISSES_MANY);
        let body = Downstream::Payloads { item, payloads }.encode();
        self.sent_bytes += body.len() as u64;
        self.comparison_bytes += body.len() as u64;
        Ok(body)
    }

    /// Looks at some more of what is to be compared, and reads the pieces that differ.
    fn look(&mut self) -> Result<()> {
        let Some(comparison) = &mut self.comparison else { return Ok(()) };
        let Some(work) = comparison.work.front_mut() else { return Ok(()) };
        let (object, began, at) = (work.object, work.began, work.at);
        let Some(size) = self.store.object_size(object).filter(|size| at.0 < size.0) else {
            // Deleted meanwhile, or looked at to its end.
            comparison.work.pop_front();
            return Ok(());
        };
        let count = BlockCount((size.0 - at.0).min(LOOK_BLOCKS));
        let looked: Result<Vec<(u64, bool)>> = match began {
            Began::Unknown => Ok(vec![(count.0, true)]),
            Began::Like(base) => self
                .store
                .diff(base, object, at, count, LOOK_RUNS)
                .map(|runs| runs.into_iter().map(|run| (run.blocks.0, run.changed.is_some())).collect()),
            Began::Empty => self.store.map_status(object, at, count, LOOK_RUNS).map(|runs| {
                runs.into_iter().map(|run| (run.blocks.0, run.kind != MappingKind::Hole)).collect()
            }),
        };
        let runs = match looked {
            // It, or what it began like, is being deleted: the stream will come to that.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                match self.store.object_size(object) {
                    None => drop(comparison.work.pop_front()),
                    Some(_) => work.began = Began::Unknown,
                }
                return Ok(());
            }
            other => other?,
        };
        let mut next = at;
        let mut different = Vec::new();
        for (blocks, differs) in runs {
            if differs {
                different.push((next, blocks));
            }
            next = next.plus(blocks);
            // Pieces are read when they can soon be sent.
            if different.iter().map(|(_, blocks)| blocks).sum::<u64>() >= 4 * PIECE_BLOCKS {
                break;
            }
        }
        let left: u64 = different.iter().map(|(_, blocks)| *blocks).sum();
        let mut budget = 8 * PIECE_BLOCKS;
        work.at = next;
        if left > budget {
            // A long run: it is gone on with later.
            let (start, blocks) = different.pop().unwrap_or((next, 0));
            let before = left - blocks;
            budget -= before.min(budget);
            let part = blocks.min(budget.max(PIECE_BLOCKS));
            different.push((start, part));
            work.at = start.plus(part);
        }
        for (start, blocks) in different {
            for from in (0..blocks).step_by(usize::try_from(PIECE_BLOCKS).unwrap_or(1)) {
                let count = BlockCount((blocks - from).min(PIECE_BLOCKS));
                self.read_piece(object, start.plus(from), count)?;
            }
        }
        Ok(())
    }

    fn read_piece(&mut self, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<()> {
        let read: Mutex<Option<Placed>> = Mutex::new(None);
        let ring = &self.ring;
        let outcome = self.store.shipped_mappings(object, first, count, &mut |mappings| {
            let operation = if mappings.iter().all(|mapping| matches!(mapping, ShippedMapping::Hole)) {
                ShippedOperation::Zero { object, first, count }
            } else {
                let (mappings, payloads) = (mappings.to_vec(), Arc::default());
                ShippedOperation::Write { object, first, mappings, payloads }
            };
            *read.lock() = Some((ring.last(), operation));
        });
        match outcome {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        let Some((after, mut operation)) = read.into_inner() else { return Ok(()) };
        if self.misses >= MISSES_MANY {
            self.bring_payloads(&mut operation)?;
        }
        if let Some(comparison) = &mut self.comparison {
            comparison.add((after, operation));
        }
        Ok(())
    }

    /// Adds the payloads of a piece; those that cannot be had any more are asked for, or not.
    fn bring_payloads(&self, operation: &mut ShippedOperation) -> Result<()> {
        let ShippedOperation::Write { object, first, mappings, payloads } = operation else { return Ok(()) };
        let mut bytes: Vec<u8> = Vec::new();
        for (lba, mapping) in (first.0..).map(Lba).zip(mappings.iter_mut()) {
            let ShippedMapping::Block { fingerprint, payload } = mapping else { continue };
            let Some((stored, checksum)) = self.store.stored_block_at(*object, lba, fingerprint)? else {
                continue;
            };
            let offset = u32::try_from(bytes.len()).expect("a piece is at most 1 MiB");
            let len = u16::try_from(stored.len()).expect("a stored block is at most 4,096 bytes");
            bytes.extend_from_slice(&stored);
            *payload = Some(ShippedPayload { offset, len, checksum });
        }
        *payloads = Arc::new(bytes);
        Ok(())
    }
}

impl Comparison {
    fn add(&mut self, (after, operation): Placed) {
        if let (
            ShippedOperation::Zero { object, first, count },
            Some((last_after, ShippedOperation::Zero { object: last, first: from, count: len })),
        ) = (&operation, self.pieces.back_mut())
            && object == last
            && *last_after == after
            && from.plus(len.0) == *first
        {
            len.0 += count.0;
            return;
        }
        self.pieces.push_back((after, operation));
    }

    /// What an operation in the stream adds to the work: objects that are made of others may be made of what is not
    /// complete yet on the secondary.
    fn note(&mut self, operation: &ShippedOperation) {
        match operation {
            ShippedOperation::CloneObjects { clones } => {
                for clone in clones {
                    self.again(clone.object, clone.source);
                }
            }
            ShippedOperation::RestoreObject { object, source, .. } => self.again(*object, *source),
            ShippedOperation::CreateObject { object, .. } => {
                self.began.insert(*object, Began::Empty);
            }
            ShippedOperation::DeleteObject { object } => {
                self.began.remove(object);
                self.work.retain(|work| work.object != *object);
                // What began like it cannot be told from it any more.
                let others = self.began.values_mut().chain(self.work.iter_mut().map(|work| &mut work.began));
                others
                    .filter(|began| **began == Began::Like(*object))
                    .for_each(|began| *began = Began::Unknown);
            }
            _ => {}
        }
    }

    /// An object has the content of another, on both sides as it is there: complete or not.
    fn again(&mut self, object: ObjectNumber, source: ObjectNumber) {
        let began = self.began.get(&source).copied().unwrap_or(Began::Unknown);
        self.began.insert(object, began);
        self.work.retain(|work| work.object != object);
        if began != Began::Like(source) {
            self.work.push_back(Work { object, began, at: Lba(0) });
        }
    }
}
