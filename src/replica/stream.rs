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

mod comparing;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::array::Array;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{BlockAt, SessionsPicture, Shipment, ShippedMapping, ShippedOperation, Store};
use crate::units::{BlockCount, ByteCount, Epoch, Fingerprint, Lba, Lsn, ObjectNumber};

use self::comparing::{Comparison, Work};
use super::decisions::{Member, Position};
use super::epochs::Epochs;
use super::ring::{Next, Ring};
use super::wire::{self, BroughtPayload, Downstream, ItemNumber, Standing};

/// Bytes that a secondary has been sent and has not answered for, at most, but for one item more.
pub const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// The same in items.
pub const IN_FLIGHT_ITEMS_MAX: usize = 4096;
/// Looks of one call.
const LOOKS_MAX: usize = 64;
/// A cursor is put behind so many bytes of pieces and payloads.
const CURSOR_EVERY: ByteCount = ByteCount(512 << 10);
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
    /// The primary's term.
    term: Option<Epoch>,
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
    sessions: Handing,
    /// Of those, pieces and payloads that were asked for.
    comparison_bytes: u64,
    /// The same when the last cursor was sent.
    cursor_at_bytes: u64,
    /// Between two cursors.
    cursor_every: ByteCount,
    /// So many of them may be given out by now, where the comparison has a rate.
    allowance: Option<u64>,
}

/// How far the secondary has been told what is remembered of sessions. It may not be taken in before it has applied
/// that: whoever is promoted must know what has been done.
enum Handing {
    /// It is yet to be told: once it is no longer compared.
    Due,
    /// It is told at the place behind this operation, as it was there.
    Placed(Lsn, SessionsPicture),
    /// This item tells it.
    Sent(ItemNumber),
    /// It knows.
    Done,
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
        let mut stream = Stream::new(store, ring, epochs, standing);
        stream.check_past(epochs, standing)?;
        let position = standing.position;
        let prefix = !standing.syncing && epochs.holds(position, ring.last());
        if prefix && ring.reaches_back_to(position.lsn) {
            stream.first.push_back(Downstream::GoOn);
            return Ok(stream);
        }
        array.freeze_management(|| match standing.cursor.as_ref().filter(|_| standing.syncing) {
            Some(cursor) if stream.resume(epochs, cursor) => Ok(()),
            _ => stream.begin_anew(standing),
        })?;
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
        let mut stream = Stream::new(store, ring, epochs, standing);
        stream.check_past(epochs, standing)?;
        array.freeze_management(|| stream.begin_anew(standing))?;
        Ok(stream)
    }

    fn new(store: &Arc<Store>, ring: &Arc<Ring>, epochs: &Epochs, standing: &Standing) -> Stream {
        Stream {
            store: Arc::clone(store),
            ring: Arc::clone(ring),
            peer: standing.by,
            term: epochs.newest(),
            comparison: None,
            first: VecDeque::new(),
            sent: standing.position,
            items: ItemNumber(0),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            applied: None,
            misses: 0,
            sent_bytes: 0,
            sessions: Handing::Due,
            comparison_bytes: 0,
            cursor_at_bytes: 0,
            cursor_every: CURSOR_EVERY,
            allowance: None,
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

    /// From now on a comparison goes on only while no more than so many of these bytes were given out, one piece at a
    /// time; operations are sent all the same. `None` is no limit.
    pub fn allow_comparison(&mut self, bytes: Option<u64>) {
        self.allowance = bytes;
    }

    /// Whether more may be read of what is to be compared.
    fn may_look(&self) -> bool {
        let is_piece = |sent: &InFlight| matches!(sent.what, What::Piece(_));
        // What the secondary asks for of a piece counts as well, and is not known before it has been applied.
        self.allowance
            .is_none_or(|bytes| self.comparison_bytes <= bytes && !self.in_flight.iter().any(is_piece))
    }

    /// Whether nothing goes on before the secondary has answered for something.
    #[must_use]
    pub fn waits_for_answers(&self) -> bool {
        self.is_full() || self.comparison.is_some() && self.allowance.is_some()
    }

    /// Puts a cursor into the stream behind so many bytes of pieces and payloads: what was sent behind the last one is
    /// sent again when the stream breaks. 512 KiB where nothing is said.
    pub fn put_cursors_every(&mut self, bytes: ByteCount) {
        self.cursor_every = bytes;
    }

    /// Whether it goes on with a comparison that was broken off.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.comparison.as_ref().is_some_and(|comparison| comparison.resumed)
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
            && matches!(self.sessions, Handing::Done)
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
        if self.comparison.is_none()
            && let Some(body) = self.hand_sessions()
        {
            return Ok(Some(body));
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
            if let Some(cursor) = self.cursor() {
                return Ok(Some(self.give_out(&Downstream::Cursor(cursor).encode(), What::Nothing)));
            }
            if !self.may_look() {
                return Ok(None);
            }
            self.look()?;
            // What was looked at later than what was sent is not complete before that has been sent, too.
            let read = self.comparison.as_ref().is_some_and(|comparison| !comparison.pieces.is_empty());
            if read || self.ring.last() > self.sent.lsn {
                return self.next_frame();
            }
        }
        Ok(None)
    }

    /// Whether there may be more to send though nothing new was committed.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.is_full() && (self.comparison.is_some() && self.may_look() || !self.first.is_empty())
    }

    /// Whether the secondary has been sent something that it has not answered for.
    #[must_use]
    pub fn has_unanswered(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether as much is on its way as may be.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.in_flight_bytes >= IN_FLIGHT_BYTES_MAX || self.in_flight.len() >= IN_FLIGHT_ITEMS_MAX
    }

    /// What is remembered of sessions, where it is due and this is its place.
    fn hand_sessions(&mut self) -> Option<Vec<u8>> {
        if matches!(self.sessions, Handing::Due) {
            let (lsn, picture) = self.store.sessions();
            self.sessions = Handing::Placed(lsn, picture);
        }
        let Handing::Placed(lsn, picture) = &self.sessions else { return None };
        if *lsn > self.sent.lsn {
            return None;
        }
        let body = Downstream::Sessions(picture.clone()).encode();
        let body = self.give_out(&body, What::Nothing);
        self.sessions = Handing::Sent(self.items);
        Some(body)
    }

    fn operation(&mut self, shipment: Arc<Shipment>) -> Result<Vec<u8>> {
        self.sent = Position { epoch: shipment.epoch, lsn: shipment.lsn };
        if let Some(comparison) = &mut self.comparison {
            comparison.note(shipment.lsn, &shipment.operation);
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
        if matches!(self.sessions, Handing::Sent(item) if item <= items) {
            self.sessions = Handing::Done;
        }
        if applied > Lsn(0) {
            // What was made durable is told by another thread, and may be older.
            self.applied = self.applied.max(Some(applied));
        }
    }

    /// The payloads that the secondary asks for. Blocks that cannot be read are handed to `repair` first, which may have
    /// them written anew; those that still cannot be read then are lost to the secondary as they are here.
    ///
    /// # Errors
    /// `Invalid` for what was not sent, and for positions that do not ascend; `Changed` for a block that is not here any
    /// more.
    pub fn payloads(
        &mut self,
        item: ItemNumber,
        positions: &[u16],
        repair: &mut dyn FnMut(&[Fingerprint]),
    ) -> Result<Vec<u8>> {
        let sent = self.in_flight.iter().find(|sent| sent.item == item);
        let operation = match sent.map(|sent| &sent.what) {
            Some(What::Operation(shipment)) => Some(&shipment.operation),
            Some(What::Piece(operation)) => Some(operation),
            _ => None,
        };
        let Some(ShippedOperation::Write { object, first, mappings, .. }) = operation else {
            return Err(Error::new(ErrorKind::Invalid, format!("item {} has no payloads", item.0)));
        };
        if positions.is_empty() || !positions.is_sorted_by(|one, other| one < other) {
            let what = format!("node {} asks for blocks of item {} out of order", self.peer.node.0, item.0);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let (object, first) = (*object, *first);
        let mut payloads = Vec::with_capacity(positions.len().min(mappings.len()));
        let mut unreadable: Vec<(u16, Fingerprint)> = Vec::new();
        for position in positions {
            let Some(ShippedMapping::Block { fingerprint, .. }) = mappings.get(usize::from(*position)) else {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("block {position} of item {} is none", item.0),
                ));
            };
            match self.find_block(object, first, mappings, *position, fingerprint)? {
                Some((stored, checksum)) => {
                    payloads.push(BroughtPayload { position: *position, stored, checksum });
                }
                None => unreadable.push((*position, *fingerprint)),
            }
        }
        let mut lost = Vec::new();
        if !unreadable.is_empty() {
            repair(&unreadable.iter().map(|(_, fingerprint)| *fingerprint).collect::<Vec<_>>());
        }
        for (position, fingerprint) in unreadable {
            match self.find_block(object, first, mappings, position, &fingerprint)? {
                Some((stored, checksum)) => payloads.push(BroughtPayload { position, stored, checksum }),
                None => {
                    tracing::warn!(
                        "block {} of object {object} cannot be read here: it is lost to node {}, too",
                        first.plus(u64::from(position)),
                        self.peer.node.0
                    );
                    lost.push(position);
                }
            }
        }
        payloads.sort_by_key(|payload| payload.position);
        self.misses = self
            .misses
            .saturating_add(u32::try_from(payloads.len()).unwrap_or(u32::MAX))
            .min(8 * MISSES_MANY);
        let body = Downstream::Payloads { item, payloads, lost }.encode();
        self.sent_bytes += body.len() as u64;
        self.comparison_bytes += body.len() as u64;
        Ok(body)
    }

    /// The stored bytes of a block that was named, and their checksum; nothing where it is still mapped at one of its
    /// places in the item, and cannot be read.
    fn find_block(
        &self,
        object: ObjectNumber,
        first: Lba,
        mappings: &[ShippedMapping],
        position: u16,
        fingerprint: &Fingerprint,
    ) -> Result<Option<(Vec<u8>, u64)>> {
        let lba = first.plus(u64::from(position));
        let same = |mapping: &ShippedMapping| matches!(mapping, ShippedMapping::Block { fingerprint: other, .. } if other == fingerprint);
        // The same content may be stored twice: what is bad at one place may be good at another.
        let others = (first.0..).map(Lba).zip(mappings).filter(|(at, it)| *at != lba && same(it));
        let mut unreadable = false;
        for at in std::iter::once(lba).chain(others.map(|(at, _)| at)) {
            match self.store.block_at(object, at, fingerprint)? {
                BlockAt::Stored(stored, checksum) => return Ok(Some((stored, checksum))),
                BlockAt::Unreadable => unreadable = true,
                BlockAt::Another => {}
            }
        }
        match self.store.stored_block(fingerprint)? {
            None if !unreadable => {
                let what = format!(
                    "block {lba} of object {object} was overwritten before node {} had it",
                    self.peer.node.0
                );
                Err(Error::new(ErrorKind::Changed, what))
            }
            found => Ok(found),
        }
    }
}
