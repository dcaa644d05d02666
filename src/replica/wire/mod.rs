//! What nodes say to each other about operations and roles, as bodies of frames.
//!
//! All numbers are little endian, nothing is padded, and a body is as long as it says: the decoders are total, and
//! what they allocate is a part of what they were given. The first byte of a body is the version of this wire.

mod fetch;
mod operation;
mod sessions;

use crate::format::bytes::{Append, Reader};
use crate::format::cursor::ResyncCursor;
use crate::store::{SessionsPicture, Shipment, ShippedOperation};
use crate::units::{BlockCount, Epoch, Lsn, ObjectNumber, Uuid};

use super::decisions::{Incarnation, Member, NodeId, Position, SetVersion};
use super::role::Message;

pub use self::fetch::{decode_fetch, decode_fetched, encode_fetch, encode_fetched};

/// The version of this wire; another one is refused.
pub const WIRE_VERSION: u8 = 2;

/// Number of a message among those of one stream that must be applied in order; the first one is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemNumber(pub u64);

/// Where a secondary stands when a stream is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which node, in which life.
    pub by: Member,
    /// Its newest operation.
    pub position: Position,
    /// It was being compared, and holds nothing that can be gone on from.
    pub syncing: bool,
    /// The bookmarks that it has.
    pub bookmarks: Vec<Uuid>,
    /// The objects that it has; while it is being compared, those that are whole.
    pub objects: Vec<ObjectNumber>,
    /// While it is being compared, the objects that it has besides.
    pub unfinished: Vec<ObjectNumber>,
    /// How far its comparison has come.
    pub cursor: Option<ResyncCursor>,
}

/// What an object of a secondary begins with when everything is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// It is there already, as it should be.
    Kept,
    /// The content of another object, which both have alike.
    Like(ObjectNumber),
    /// Nothing.
    Empty,
    /// What it is there, whatever that is: all of it is sent, and much of that may be there already.
    Own,
}

/// One payload that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BroughtPayload {
    /// Which block of the operation.
    pub position: u16,
    /// Its stored bytes.
    pub stored: Vec<u8>,
    /// Their checksum.
    pub checksum: u64,
}

/// What goes from a primary to a secondary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Downstream {
    /// The stream is opened, in this epoch.
    Open {
        /// The epoch.
        epoch: Epoch,
        /// By whom.
        by: Member,
    },
    /// The secondary holds a prefix of what the primary has: operations follow from behind its newest one on.
    GoOn,
    /// The secondary is to begin anew. Objects follow.
    Anew,
    /// The secondary goes on where its cursor says. Operations follow from behind its position on.
    Resume,
    /// How far the comparison has come, with all that was sent before.
    Cursor(ResyncCursor),
    /// An object as it is to begin.
    Object {
        /// Its number.
        object: ObjectNumber,
        /// Its size.
        size: BlockCount,
        /// What the layer above keeps with it.
        opaque: Vec<u8>,
        /// Its content, for now.
        base: Base,
    },
    /// That were all objects; all others go.
    ObjectsEnd,
    /// An operation.
    Operation(Shipment),
    /// A piece of what the primary holds at this place of the stream.
    Piece(ShippedOperation),
    /// With this the secondary holds what the primary held at this position.
    Adopt(Position),
    /// What the primary remembers of sessions at this place of the stream.
    Sessions(SessionsPicture),
    /// Payloads that were asked for.
    Payloads {
        /// For which item.
        item: ItemNumber,
        /// All that were asked for and can be read.
        payloads: Vec<BroughtPayload>,
        /// The blocks that cannot be read any more, here or on any other node: nor can they at the secondary.
        lost: Vec<u16>,
    },
    /// Everything up to here is to be made durable soon: somebody waits for it.
    Sync(Lsn),
}

/// What goes from a secondary to its primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Where it stands.
    Standing(Standing),
    /// How far it has come.
    Applied {
        /// Items of this stream.
        items: ItemNumber,
        /// Operations applied; 0 while it is being compared.
        applied: Lsn,
        /// Operations made durable; 0 while it is being compared.
        durable: Lsn,
        /// Bytes that it has room for.
        writable_bytes: u64,
    },
    /// Of this item, the payloads of these blocks are not here.
    Needs {
        /// Which item.
        item: ItemNumber,
        /// Which blocks.
        positions: Vec<u16>,
    },
    /// It does not go on, and why.
    Refused(String),
}

const OPEN: u8 = 1;
const GO_ON: u8 = 2;
const ANEW: u8 = 3;
const OBJECT: u8 = 4;
const OBJECTS_END: u8 = 5;
const OPERATION: u8 = 6;
const PIECE: u8 = 7;
const ADOPT: u8 = 8;
const PAYLOADS: u8 = 9;
const SYNC: u8 = 10;
const SESSIONS: u8 = 11;
const RESUME: u8 = 12;
const CURSOR: u8 = 13;

const STANDING: u8 = 1;
const APPLIED: u8 = 2;
const NEEDS: u8 = 3;
const REFUSED: u8 = 4;

const HEARTBEAT: u8 = 1;
const HEARD: u8 = 2;
const STANDS: u8 = 3;

/// Most bytes of a reason.
const REASON_BYTES_MAX: usize = 1024;

impl Downstream {
    /// Whether the secondary counts it: it changes what is applied, and is applied in its turn.
    #[must_use]
    pub fn is_item(&self) -> bool {
        !matches!(self, Downstream::Open { .. } | Downstream::Payloads { .. } | Downstream::Sync(_))
    }

    /// The body of a frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.put_u8(WIRE_VERSION);
        match self {
            Downstream::Open { epoch, by } => {
                bytes.put_u8(OPEN);
                put_epoch(&mut bytes, *epoch);
                put_member(&mut bytes, *by);
            }
            Downstream::GoOn => bytes.put_u8(GO_ON),
            Downstream::Anew => bytes.put_u8(ANEW),
            Downstream::Resume => bytes.put_u8(RESUME),
            Downstream::Cursor(cursor) => {
                bytes.put_u8(CURSOR);
                put_cursor(&mut bytes, Some(cursor));
            }
            Downstream::Object { object, size, opaque, base } => {
                bytes.put_u8(OBJECT);
                let (kind, like) = match base {
                    Base::Kept => (0, ObjectNumber(0)),
                    Base::Like(other) => (1, *other),
                    Base::Empty => (2, ObjectNumber(0)),
                    Base::Own => (3, ObjectNumber(0)),
                };
                bytes.put_u8(kind);
                bytes.put_u64(like.0);
                operation::put_object(&mut bytes, *object, *size, opaque);
            }
            Downstream::ObjectsEnd => bytes.put_u8(OBJECTS_END),
            Downstream::Operation(shipment) => put_shipment(&mut bytes, shipment),
            Downstream::Piece(operation) => {
                bytes.put_u8(PIECE);
                operation::put_operation(&mut bytes, operation);
            }
            Downstream::Adopt(position) => {
                bytes.put_u8(ADOPT);
                put_position(&mut bytes, *position);
            }
            Downstream::Sessions(picture) => {
                bytes.put_u8(SESSIONS);
                sessions::put_picture(&mut bytes, picture);
            }
            Downstream::Payloads { item, payloads, lost } => {
                bytes.put_u8(PAYLOADS);
                bytes.put_u64(item.0);
                bytes.put_u16(u16::try_from(payloads.len()).expect("at most 256 blocks an operation"));
                for payload in payloads {
                    bytes.put_u16(payload.position);
                    operation::put_stored(&mut bytes, &payload.stored);
                }
                put_positions(&mut bytes, lost);
            }
            Downstream::Sync(lsn) => {
                bytes.put_u8(SYNC);
                bytes.put_u64(lsn.0);
            }
        }
        bytes
    }

    /// Reads the body of a frame; `None` for what `encode` cannot have given.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Downstream> {
        let mut reader = versioned(bytes)?;
        let message = match reader.u8()? {
            OPEN => Downstream::Open { epoch: take_epoch(&mut reader)?, by: take_member(&mut reader)? },
            GO_ON => Downstream::GoOn,
            ANEW => Downstream::Anew,
            RESUME => Downstream::Resume,
            CURSOR => Downstream::Cursor(take_cursor(&mut reader)??),
            OBJECT => {
                let (kind, like) = (reader.u8()?, ObjectNumber(reader.u64()?));
                let base = match kind {
                    0 => Base::Kept,
                    1 => Base::Like(like),
                    2 => Base::Empty,
                    3 => Base::Own,
                    _ => return None,
                };
                let (object, size, opaque) = operation::take_object(&mut reader)?;
                Downstream::Object { object, size, opaque, base }
            }
            OBJECTS_END => Downstream::ObjectsEnd,
            OPERATION => Downstream::Operation(Shipment {
                epoch: take_epoch(&mut reader)?,
                lsn: Lsn(reader.u64()?),
                origin: sessions::take_origin(&mut reader)?,
                operation: operation::take_operation(&mut reader)?,
            }),
            PIECE => Downstream::Piece(operation::take_operation(&mut reader)?),
            SESSIONS => Downstream::Sessions(sessions::take_picture(&mut reader)?),
            ADOPT => Downstream::Adopt(take_position(&mut reader)?),
            PAYLOADS => {
                let item = ItemNumber(reader.u64()?);
                let count = usize::from(reader.u16()?);
                let mut payloads = Vec::with_capacity(count.min(reader.rest().len() / 4));
                for _ in 0..count {
                    let position = reader.u16()?;
                    let (stored, checksum) = operation::take_stored(&mut reader)?;
                    payloads.push(BroughtPayload { position, stored: stored.to_vec(), checksum });
                }
                Downstream::Payloads { item, payloads, lost: take_positions(&mut reader)? }
            }
            SYNC => Downstream::Sync(Lsn(reader.u64()?)),
            _ => return None,
        };
        reader.rest().is_empty().then_some(message)
    }
}

impl Upstream {
    /// The body of a frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.put_u8(WIRE_VERSION);
        match self {
            Upstream::Standing(standing) => {
                bytes.put_u8(STANDING);
                put_member(&mut bytes, standing.by);
                put_position(&mut bytes, standing.position);
                bytes.put_u8(u8::from(standing.syncing));
                bytes.put_u32(u32::try_from(standing.bookmarks.len()).expect("bookmarks are few"));
                for bookmark in &standing.bookmarks {
                    bytes.put_slice(&bookmark.0);
                }
                for objects in [&standing.objects, &standing.unfinished] {
                    bytes.put_u32(u32::try_from(objects.len()).expect("objects are held in memory"));
                    objects.iter().for_each(|object| bytes.put_u64(object.0));
                }
                put_cursor(&mut bytes, standing.cursor.as_ref());
            }
            Upstream::Applied { items, applied, durable, writable_bytes } => {
                bytes.put_u8(APPLIED);
                for number in [items.0, applied.0, durable.0, *writable_bytes] {
                    bytes.put_u64(number);
                }
            }
            Upstream::Needs { item, positions } => {
                bytes.put_u8(NEEDS);
                bytes.put_u64(item.0);
                put_positions(&mut bytes, positions);
            }
            Upstream::Refused(why) => {
                bytes.put_u8(REFUSED);
                let longest = why.len().min(REASON_BYTES_MAX);
                let cut = (0..=longest).rfind(|at| why.is_char_boundary(*at)).unwrap_or(0);
                bytes.put_u16(u16::try_from(cut).expect("at most 1,024"));
                bytes.put_slice(&why.as_bytes()[..cut]);
            }
        }
        bytes
    }

    /// Reads the body of a frame; `None` for what `encode` cannot have given.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Upstream> {
        let mut reader = versioned(bytes)?;
        let message = match reader.u8()? {
            STANDING => {
                let (by, position) = (take_member(&mut reader)?, take_position(&mut reader)?);
                let syncing = take_flag(&mut reader)?;
                let count = reader.u32()? as usize;
                let mut bookmarks = Vec::with_capacity(count.min(reader.rest().len() / 16));
                for _ in 0..count {
                    bookmarks.push(Uuid(reader.array()?));
                }
                let (objects, unfinished) = (take_objects(&mut reader)?, take_objects(&mut reader)?);
                let cursor = take_cursor(&mut reader)?;
                Upstream::Standing(Standing { by, position, syncing, bookmarks, objects, unfinished, cursor })
            }
            APPLIED => Upstream::Applied {
                items: ItemNumber(reader.u64()?),
                applied: Lsn(reader.u64()?),
                durable: Lsn(reader.u64()?),
                writable_bytes: reader.u64()?,
            },
            NEEDS => {
                let item = ItemNumber(reader.u64()?);
                Upstream::Needs { item, positions: take_positions(&mut reader)? }
            }
            REFUSED => {
                let len = usize::from(reader.u16()?);
                Upstream::Refused(String::from_utf8(reader.take(len)?.to_vec()).ok()?)
            }
            _ => return None,
        };
        reader.rest().is_empty().then_some(message)
    }
}

/// The body of a frame with an operation, as `Downstream::Operation` would encode it.
#[must_use]
pub fn encode_shipment(shipment: &Shipment) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    bytes.put_u8(WIRE_VERSION);
    put_shipment(&mut bytes, shipment);
    bytes
}

fn put_shipment(bytes: &mut Vec<u8>, shipment: &Shipment) {
    bytes.put_u8(OPERATION);
    put_epoch(bytes, shipment.epoch);
    bytes.put_u64(shipment.lsn.0);
    sessions::put_origin(bytes, shipment.origin.as_ref());
    operation::put_operation(bytes, &shipment.operation);
}

/// What nodes say about roles, as the body of a frame.
#[must_use]
pub fn encode_role(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(48);
    bytes.put_u8(WIRE_VERSION);
    match message {
        Message::Heartbeat { epoch, sent_at } => {
            bytes.put_u8(HEARTBEAT);
            put_epoch(&mut bytes, *epoch);
            put_time(&mut bytes, *sent_at);
        }
        Message::Heard { epoch, sent_at, by } => {
            bytes.put_u8(HEARD);
            put_epoch(&mut bytes, *epoch);
            put_time(&mut bytes, *sent_at);
            put_member(&mut bytes, *by);
        }
        Message::Stands { version, by, position } => {
            bytes.put_u8(STANDS);
            bytes.put_u64(version.0);
            put_member(&mut bytes, *by);
            put_position(&mut bytes, *position);
        }
    }
    bytes
}

/// Reads what `encode_role` gave; `None` for anything else.
#[must_use]
pub fn decode_role(bytes: &[u8]) -> Option<Message> {
    let mut reader = versioned(bytes)?;
    let message = match reader.u8()? {
        HEARTBEAT => Message::Heartbeat { epoch: take_epoch(&mut reader)?, sent_at: take_time(&mut reader)? },
        HEARD => Message::Heard {
            epoch: take_epoch(&mut reader)?,
            sent_at: take_time(&mut reader)?,
            by: take_member(&mut reader)?,
        },
        STANDS => Message::Stands {
            version: SetVersion(reader.u64()?),
            by: take_member(&mut reader)?,
            position: take_position(&mut reader)?,
        },
        _ => return None,
    };
    reader.rest().is_empty().then_some(message)
}

fn versioned(bytes: &[u8]) -> Option<Reader<'_>> {
    let mut reader = Reader::new(bytes);
    (reader.u8()? == WIRE_VERSION).then_some(reader)
}

fn put_epoch(bytes: &mut Vec<u8>, epoch: Epoch) {
    bytes.put_u32(epoch.generation);
    bytes.put_u32(epoch.number);
}

fn take_epoch(reader: &mut Reader<'_>) -> Option<Epoch> {
    Some(Epoch { generation: reader.u32()?, number: reader.u32()? })
}

fn put_member(bytes: &mut Vec<u8>, member: Member) {
    bytes.put_u32(member.node.0);
    bytes.put_u64(member.incarnation.0);
}

fn take_member(reader: &mut Reader<'_>) -> Option<Member> {
    Some(Member { node: NodeId(reader.u32()?), incarnation: Incarnation(reader.u64()?) })
}

fn put_position(bytes: &mut Vec<u8>, position: Position) {
    put_epoch(bytes, position.epoch);
    bytes.put_u64(position.lsn.0);
}

fn take_position(reader: &mut Reader<'_>) -> Option<Position> {
    Some(Position { epoch: take_epoch(reader)?, lsn: Lsn(reader.u64()?) })
}

fn put_positions(bytes: &mut Vec<u8>, positions: &[u16]) {
    bytes.put_u16(u16::try_from(positions.len()).expect("at most 256 blocks an operation"));
    for position in positions {
        bytes.put_u16(*position);
    }
}

fn take_positions(reader: &mut Reader<'_>) -> Option<Vec<u16>> {
    let count = usize::from(reader.u16()?);
    let mut positions = Vec::with_capacity(count.min(reader.rest().len() / 2));
    for _ in 0..count {
        positions.push(reader.u16()?);
    }
    Some(positions)
}

fn take_objects(reader: &mut Reader<'_>) -> Option<Vec<ObjectNumber>> {
    let count = reader.u32()? as usize;
    let mut objects = Vec::with_capacity(count.min(reader.rest().len() / 8));
    for _ in 0..count {
        objects.push(ObjectNumber(reader.u64()?));
    }
    Some(objects)
}

/// Appends a cursor with its length before it; none is one without bytes.
fn put_cursor(bytes: &mut Vec<u8>, cursor: Option<&ResyncCursor>) {
    let body = cursor.and_then(ResyncCursor::encode).unwrap_or_default();
    bytes.put_u16(u16::try_from(body.len()).expect("a cursor fits a record of the catalog"));
    bytes.put_slice(&body);
}

/// Reads what `put_cursor` appended.
fn take_cursor(reader: &mut Reader<'_>) -> Option<Option<ResyncCursor>> {
    let len = usize::from(reader.u16()?);
    let body = reader.take(len)?;
    if body.is_empty() {
        return Some(None);
    }
    ResyncCursor::decode(body).map(Some)
}

fn put_time(bytes: &mut Vec<u8>, time: std::time::Duration) {
    bytes.put_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

fn take_time(reader: &mut Reader<'_>) -> Option<std::time::Duration> {
    reader.u64().map(std::time::Duration::from_nanos)
}

fn take_flag(reader: &mut Reader<'_>) -> Option<bool> {
    match reader.u8()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// What stands before each message of a stream's frame: its length.
#[must_use]
pub fn message_len(body: &[u8]) -> [u8; 4] {
    u32::try_from(body.len()).expect("a message is at most some MiB").to_le_bytes()
}

/// The messages of a stream's frame, each still encoded; `None` where they do not fill it.
#[must_use]
pub fn decode_messages(mut frame: &[u8]) -> Option<std::vec::IntoIter<&[u8]>> {
    let mut messages = Vec::new();
    while !frame.is_empty() {
        let mut reader = Reader::new(frame);
        let len = reader.u32()? as usize;
        messages.push(reader.take(len)?);
        frame = reader.rest();
    }
    Some(messages.into_iter())
}
