//! The secondary's end of a stream: a machine over the store, without socket, thread or clock.
//!
//! What comes is applied in its order and answered for in groups. Where payloads are missing they are asked for, and
//! nothing behind them is applied until they are there. A node that is compared marks its pool first, durably: from then
//! on what it holds is nobody's prefix, until it adopts the primary's position.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::cursor::ResyncCursor;
use crate::format::system::{KeptObjects, SystemPurpose, SystemRecord};
use crate::store::{Applied, CloneRecord, Shipment, ShippedMapping, ShippedOperation, ShippedPayload, Store};
use crate::units::{BlockCount, Lsn, ObjectNumber};

use super::bookmarks::Inventory;
use super::decisions::{Member, Position};
use super::ring::Ring;
use super::stream::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_ITEMS_MAX};
use super::wire::{Base, BroughtPayload, Downstream, ItemNumber, Standing, Upstream};

/// What has come and is not applied, at most: twice what a primary that keeps to the rules has on its way.
const QUEUED_ITEMS_MAX: usize = 2 * IN_FLIGHT_ITEMS_MAX;
const QUEUED_BYTES_MAX: usize = 2 * IN_FLIGHT_BYTES_MAX;

/// Operations that objects begin with are answered for in groups of so many.
const GROUP: usize = 64;

/// The object in which a node that is being compared notes which others are whole: the highest number there is, which no
/// object of the array has.
const KEPT_NOTE: ObjectNumber = ObjectNumber(1 << 62);

/// The object in which it notes how far the comparison has come: no object of the array has this number either.
const CURSOR_NOTE: ObjectNumber = ObjectNumber((1 << 62) - 1);

/// The machine.
pub struct Follower {
    store: Arc<Store>,
    ring: Arc<Ring>,
    own: Member,
    mode: Mode,
    /// What has come and is not applied, with its number and its bytes on the wire.
    queue: VecDeque<(ItemNumber, usize, Downstream)>,
    queued_bytes: usize,
    received: ItemNumber,
    done: ItemNumber,
    /// The payloads of these blocks of the first item in the queue have been asked for, and have not come.
    asked: Option<Vec<u16>>,
    /// Those of these blocks have come.
    brought: BTreeSet<u16>,
    /// Items that were answered for.
    reported: ItemNumber,
    /// Operations made durable.
    durable: Lsn,
}

/// What the stream is.
enum Mode {
    /// Nothing has come yet.
    Opened,
    /// Operations follow what is here.
    Prefix,
    /// Objects are being named.
    Named(BTreeMap<ObjectNumber, Named>),
    /// Pieces and operations are applied as they come.
    Compared,
}

struct Named {
    size: BlockCount,
    opaque: Vec<u8>,
    base: Base,
}

impl Follower {
    /// A follower over this store.
    #[must_use]
    pub fn new(store: Arc<Store>, ring: Arc<Ring>, own: Member) -> Follower {
        Follower {
            store,
            ring,
            own,
            mode: Mode::Opened,
            queue: VecDeque::new(),
            queued_bytes: 0,
            received: ItemNumber(0),
            done: ItemNumber(0),
            asked: None,
            brought: BTreeSet::new(),
            reported: ItemNumber(0),
            durable: Lsn(0),
        }
    }

    /// What the primary is told when it opens a stream.
    ///
    /// # Errors
    /// `Device`, `Corrupt`.
    pub fn standing(&self) -> Result<Upstream> {
        let (epoch, lsn) = self.store.position();
        let mut inventory = Inventory::of(&self.store)?;
        let (mut unfinished, mut cursor) = (Vec::new(), None);
        if self.store.syncing() {
            let whole = self.whole_objects()?;
            unfinished = inventory.numbers();
            unfinished.retain(|object| *object < CURSOR_NOTE && !whole.contains(object));
            inventory.keep(|object| whole.contains(&object));
            cursor = self.cursor()?;
        }
        Ok(Upstream::Standing(Standing {
            by: self.own,
            position: Position { epoch, lsn },
            syncing: self.store.syncing(),
            bookmarks: inventory.bookmarks(),
            objects: inventory.numbers(),
            unfinished,
            cursor,
        }))
    }

    /// Whether it holds a prefix of what the primary has.
    #[must_use]
    pub fn is_prefix(&self) -> bool {
        matches!(self.mode, Mode::Prefix)
    }

    /// Its newest operation, where that means something.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        let (epoch, lsn) = self.store.position();
        self.is_prefix().then_some(Position { epoch, lsn })
    }

    /// Takes in what has come, so many bytes on the wire; it is applied by `work`.
    ///
    /// # Errors
    /// `Invalid` for payloads that were not asked for, and for far more than a primary may have on its way: the stream
    /// ends.
    pub fn receive(&mut self, message: Downstream, bytes: usize) -> Result<()> {
        if let Downstream::Payloads { item, payloads, lost } = message {
            return self.receive_payloads(item, &payloads, &lost);
        }
        if self.queue.len() >= QUEUED_ITEMS_MAX || self.queued_bytes.saturating_add(bytes) > QUEUED_BYTES_MAX
        {
            let what = "the primary sends more than it may have on its way";
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        self.queued_bytes += bytes;
        self.received.0 += 1;
        self.queue.push_back((self.received, bytes, message));
        Ok(())
    }

    fn receive_payloads(
        &mut self,
        item: ItemNumber,
        payloads: &[BroughtPayload],
        lost: &[u16],
    ) -> Result<()> {
        let refused = |what: &str| Error::new(ErrorKind::Invalid, format!("item {} {what}", item.0));
        let asked = self.asked.take().ok_or_else(|| refused("asks for no payloads"))?;
        let mut came: Vec<u16> = payloads.iter().map(|it| it.position).chain(lost.iter().copied()).collect();
        came.sort_unstable();
        if came != asked {
            return Err(refused("was not brought what was asked for"));
        }
        let waiting = self.queue.front_mut().filter(|(first, ..)| *first == item);
        let (.., waiting) = waiting.ok_or_else(|| refused("asks for no payloads"))?;
        bring(waiting, payloads, lost).ok_or_else(|| refused("has no such payloads"))?;
        self.brought.extend(came);
        Ok(())
    }

    /// Applies what has come, as far as that goes; what is to be asked for.
    ///
    /// # Errors
    /// What could not be applied, and why: the stream ends.
    pub fn work(&mut self) -> Result<Option<Upstream>> {
        while self.asked.is_none() {
            let Some((item, bytes, message)) = self.queue.pop_front() else { return Ok(None) };
            match self.apply(message)? {
                None => {
                    self.done = item;
                    self.queued_bytes -= bytes;
                    self.brought.clear();
                }
                Some((message, positions)) => {
                    if positions.iter().any(|position| self.brought.contains(position)) {
                        let what = format!("item {} lacks payloads that were brought", item.0);
                        return Err(Error::new(ErrorKind::Invalid, what));
                    }
                    self.queue.push_front((item, bytes, message));
                    self.asked = Some(positions.clone());
                    return Ok(Some(Upstream::Needs { item, positions }));
                }
            }
        }
        Ok(None)
    }

    /// Hands what was applied to the operating system, and says how far this node has come.
    ///
    /// # Errors
    /// `Stopped`.
    pub fn report(&mut self) -> Result<Upstream> {
        let (_, lsn) = self.store.position();
        self.store.write_out(lsn)?;
        let prefix = self.is_prefix();
        self.reported = self.done;
        Ok(Upstream::Applied {
            items: self.done,
            applied: if prefix { lsn } else { Lsn(0) },
            durable: if prefix { self.durable } else { Lsn(0) },
            writable_bytes: self.store.writable_bytes().0,
        })
    }

    /// Whether something was applied that was not answered for.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.reported != self.done
    }

    /// Everything up to here was made durable.
    pub fn note_durable(&mut self, lsn: Lsn) {
        self.durable = self.durable.max(lsn);
    }

    /// Applies one message; it comes back with the blocks whose payloads are missing.
    fn apply(&mut self, message: Downstream) -> Result<Option<(Downstream, Vec<u16>)>> {
        match message {
            Downstream::GoOn if matches!(self.mode, Mode::Opened) => self.mode = Mode::Prefix,
            Downstream::Anew if matches!(self.mode, Mode::Opened) => {
                self.ring.mute();
                self.store.forget_sessions();
                self.store.begin_sync()?;
                self.forget_cursor()?;
                self.mode = Mode::Named(BTreeMap::new());
            }
            Downstream::Resume if matches!(self.mode, Mode::Opened) && self.store.syncing() => {
                self.ring.mute();
                self.mode = Mode::Compared;
            }
            Downstream::Cursor(cursor) if matches!(self.mode, Mode::Compared) => {
                let record = cursor.record().ok_or_else(|| out_of_turn("a cursor that is too long"))?;
                self.note(CURSOR_NOTE, record.encode()?)?;
            }
            Downstream::Object { object, size, opaque, base } => {
                let Mode::Named(named) = &mut self.mode else { return Err(out_of_turn("an object")) };
                named.insert(object, Named { size, opaque, base });
            }
            Downstream::ObjectsEnd => {
                let Mode::Named(named) = std::mem::replace(&mut self.mode, Mode::Compared) else {
                    return Err(out_of_turn("the end of the objects"));
                };
                self.begin_objects(named)?;
            }
            Downstream::Operation(shipment) => {
                let applied = match self.mode {
                    Mode::Prefix => self.store.apply(&shipment)?,
                    Mode::Compared => self.store.apply_local(&shipment.operation)?,
                    _ => return Err(out_of_turn("an operation")),
                };
                if let Applied::NeedsPayloads(positions) = applied {
                    return Ok(Some((Downstream::Operation(shipment), narrow(positions))));
                }
            }
            Downstream::Piece(operation) => {
                if !matches!(self.mode, Mode::Compared) {
                    return Err(out_of_turn("a piece"));
                }
                if let Applied::NeedsPayloads(positions) = self.store.apply_local(&operation)? {
                    return Ok(Some((Downstream::Piece(operation), narrow(positions))));
                }
            }
            Downstream::Adopt(position) if matches!(self.mode, Mode::Compared) => {
                self.forget_cursor()?;
                self.apply_own(ShippedOperation::DeleteObject { object: KEPT_NOTE })?;
                self.store.adopt(position.epoch, position.lsn)?;
                self.ring.listen_from(position.lsn);
                self.mode = Mode::Prefix;
                self.durable = position.lsn;
            }
            Downstream::Sessions(picture) if matches!(self.mode, Mode::Prefix) => {
                self.store.adopt_sessions(picture);
            }
            _ => return Err(out_of_turn("a message")),
        }
        Ok(None)
    }

    /// On a node that is being compared, the objects that are whole. What is not known counts as not whole.
    fn whole_objects(&self) -> Result<BTreeSet<ObjectNumber>> {
        let note = self.store.objects()?.into_iter().find(|object| object.number == KEPT_NOTE);
        let record = note.and_then(|note| SystemRecord::decode(&note.opaque).ok());
        let record = record.filter(|record| record.purpose == SystemPurpose::KeptObjects);
        let kept = record.and_then(|record| KeptObjects::decode(&record.body));
        Ok(kept.unwrap_or_default().numbers)
    }

    /// Notes which objects are whole, before any other is changed.
    fn note_whole(&self, numbers: BTreeSet<ObjectNumber>) -> Result<()> {
        self.note(KEPT_NOTE, KeptObjects { numbers }.record().encode()?)
    }

    /// On a node that is being compared, how far that has come.
    fn cursor(&self) -> Result<Option<ResyncCursor>> {
        let note = self.store.objects()?.into_iter().find(|object| object.number == CURSOR_NOTE);
        let record = note.and_then(|note| SystemRecord::decode(&note.opaque).ok());
        let record = record.filter(|record| record.purpose == SystemPurpose::ResyncCursor);
        Ok(record.and_then(|record| ResyncCursor::decode(&record.body)))
    }

    /// Before anything is done that its cursor does not know of.
    fn forget_cursor(&self) -> Result<()> {
        match self.store.object_size(CURSOR_NOTE) {
            Some(_) => self.apply_own(ShippedOperation::DeleteObject { object: CURSOR_NOTE }),
            None => Ok(()),
        }
    }

    fn note(&self, object: ObjectNumber, opaque: Vec<u8>) -> Result<()> {
        let size = BlockCount(1);
        match self.store.object_size(object) {
            Some(_) => self.apply_own(ShippedOperation::UpdateObject { object, size, opaque }),
            None => self.apply_own(ShippedOperation::CreateObject { object, size, opaque }),
        }
    }

    /// Gives every object what it begins with; all others go.
    fn begin_objects(&self, mut named: BTreeMap<ObjectNumber, Named>) -> Result<()> {
        let kept = named.iter().filter(|(_, named)| named.base == Base::Kept).map(|(object, _)| *object);
        self.note_whole(kept.collect())?;
        let here: Vec<_> =
            self.store.objects()?.into_iter().filter(|object| object.number != KEPT_NOTE).collect();
        let mut clones = Vec::new();
        for object in here {
            let Some(Named { size, opaque, base }) = named.remove(&object.number) else {
                self.apply_own(ShippedOperation::DeleteObject { object: object.number })?;
                continue;
            };
            match base {
                Base::Kept if opaque == object.opaque && size == object.size => {}
                Base::Kept => {
                    self.apply_own(ShippedOperation::UpdateObject { object: object.number, size, opaque })?;
                }
                Base::Own if size >= object.size => {
                    self.apply_own(ShippedOperation::UpdateObject { object: object.number, size, opaque })?;
                }
                Base::Like(source) if size >= object.size => {
                    let object = object.number;
                    self.apply_own(ShippedOperation::RestoreObject { object, source, size, opaque })?;
                }
                _ => {
                    self.apply_own(ShippedOperation::DeleteObject { object: object.number })?;
                    named.insert(object.number, Named { size, opaque, base });
                }
            }
        }
        for (object, Named { size, opaque, base }) in named {
            match base {
                Base::Like(source) => clones.push((CloneRecord { object, source, opaque }, size)),
                Base::Empty | Base::Own => {
                    self.apply_own(ShippedOperation::CreateObject { object, size, opaque })?;
                }
                Base::Kept => {
                    let what = format!("object {object} is to be kept and is not here");
                    return Err(Error::new(ErrorKind::Invalid, what));
                }
            }
        }
        for some in clones.chunks(GROUP) {
            let records = some.iter().map(|(record, _)| record.clone()).collect();
            self.apply_own(ShippedOperation::CloneObjects { clones: records })?;
            for (CloneRecord { object, opaque, .. }, size) in some {
                let (object, size, opaque) = (*object, *size, opaque.clone());
                self.apply_own(ShippedOperation::UpdateObject { object, size, opaque })?;
            }
        }
        Ok(())
    }

    fn apply_own(&self, operation: ShippedOperation) -> Result<()> {
        match self.store.apply_local(&operation)? {
            Applied::UpTo(_) => Ok(()),
            Applied::NeedsPayloads(_) => Err(out_of_turn("a request for payloads")),
        }
    }
}

/// Adds payloads to an operation; the blocks that are lost are lost wherever it names them.
fn bring(message: &mut Downstream, brought: &[BroughtPayload], lost: &[u16]) -> Option<()> {
    let (Downstream::Operation(Shipment { operation, .. }) | Downstream::Piece(operation)) = message else {
        return None;
    };
    let ShippedOperation::Write { mappings, payloads, .. } = operation else { return None };
    let bytes = Arc::make_mut(payloads);
    for payload in brought {
        let ShippedMapping::Block { payload: place, .. } = mappings.get_mut(usize::from(payload.position))?
        else {
            return None;
        };
        let offset = u32::try_from(bytes.len()).ok()?;
        let len = u16::try_from(payload.stored.len()).ok()?;
        bytes.extend_from_slice(&payload.stored);
        *place = Some(ShippedPayload { offset, len, checksum: payload.checksum });
    }
    for position in lost {
        let ShippedMapping::Block { fingerprint, .. } = *mappings.get(usize::from(*position))? else {
            return None;
        };
        for mapping in mappings.iter_mut() {
            if matches!(mapping, ShippedMapping::Block { fingerprint: other, .. } if *other == fingerprint) {
                *mapping = ShippedMapping::Lost;
            }
        }
    }
    Some(())
}

fn narrow(positions: Vec<usize>) -> Vec<u16> {
    positions.into_iter().filter_map(|position| u16::try_from(position).ok()).collect()
}

fn out_of_turn(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{what} came out of turn in the stream from the primary"))
}
