//! Comparing what two nodes hold, by trees and fingerprints: no block is read.
//!
//! What is compared does not change meanwhile: snapshots, and bookmarks in the place of volumes. The one side asks, the
//! other one answers questions; each takes a bounded time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::format::catalog::{Record, RecordKind};
use crate::format::system::{Bookmark, SystemPurpose, SystemRecord};
use crate::store::{MappingKind, ObjectInfo, ShippedMapping, Store};
use crate::units::{BlockCount, Lba, ObjectNumber, Uuid};

/// Mapped blocks that one digest is made of, about.
const MAPPED_STEP: u64 = 8192;
/// One that answers looks at so many times more before it gives up: then it holds something else anyway.
const ANSWER_FACTOR: u64 = 2;
/// Blocks whose mappings are listed one by one, and read in one hold of the store's lock.
pub const LISTED_MAX: u64 = 256;
/// Blocks whose kind is asked for at a time, and runs of them.
const LOOK_BLOCKS: u64 = 1 << 20;
const LOOK_RUNS: usize = 256;
/// Objects in one answer.
const OBJECTS_MAX: usize = 1024;

/// What is asked of another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Which objects it has, from this number on.
    Objects(ObjectNumber),
    /// What a range maps, in one number.
    Digest {
        /// Of this object.
        object: ObjectNumber,
        /// From this block on.
        first: Lba,
        /// So many blocks.
        count: BlockCount,
    },
    /// What each block of a range maps; at most `LISTED_MAX` of them.
    Blocks {
        /// Of this object.
        object: ObjectNumber,
        /// From this block on.
        first: Lba,
        /// So many blocks.
        count: BlockCount,
    },
    /// It holds something else: it is to leave the set and be brought up as a whole.
    Discard,
}

/// The answer to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Objects by their numbers, and whether there are more behind them.
    Objects(Vec<ObjectFacts>, bool),
    /// What a range maps; nothing where that is far more than was asked about.
    Digest(Option<Digest>),
    /// What each block maps.
    Blocks(Vec<Mapped>),
    /// It is done.
    Discarded,
    /// There is no such object.
    NotFound,
    /// It cannot say, and why.
    Failed(String),
}

/// An object without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectFacts {
    /// Its number.
    pub number: ObjectNumber,
    /// Its size.
    pub size: BlockCount,
    /// BLAKE3 of its record.
    pub record: [u8; 32],
}

/// What a range maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Blocks that are no holes.
    pub mapped: BlockCount,
    /// BLAKE3 of their places and of what they map to.
    pub hash: [u8; 32],
}

/// What one block maps, as far as it can be told from any other mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapped([u8; 17]);

/// An object that nobody writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Still {
    /// Its number.
    pub object: ObjectNumber,
    /// Its size.
    pub size: BlockCount,
    /// What people call it.
    pub name: String,
}

/// The objects of a pool that stand still, of bookmarks only those of one.
///
/// # Errors
/// `Device`, `Corrupt`.
pub fn still_objects(store: &Store, bookmark: Uuid) -> Result<Vec<Still>> {
    let mut objects = store.objects()?;
    objects.sort_by_key(|object| object.number);
    let names: BTreeMap<ObjectNumber, String> =
        objects.iter().map(|object| (object.number, name_of(object))).collect();
    let still = objects.iter().filter_map(|object| {
        let name = match Record::decode(&object.opaque) {
            Ok(Record { kind: RecordKind::Snapshot { .. }, .. }) => name_of(object),
            Ok(_) => return None,
            Err(_) => {
                let mark = bookmark_of(object).filter(|mark| mark.id == bookmark)?;
                names.get(&mark.of).cloned().unwrap_or_else(|| format!("object {}", mark.of))
            }
        };
        Some(Still { object: object.number, size: object.size, name })
    });
    Ok(still.collect())
}

/// What people call an object.
#[must_use]
pub fn name_of(object: &ObjectInfo) -> String {
    match Record::decode(&object.opaque) {
        Ok(Record { kind: RecordKind::Volume, name, .. }) => name,
        Ok(Record { kind: RecordKind::Snapshot { of_name, .. }, name, .. }) => format!("{of_name}@{name}"),
        Err(_) => format!("object {} of the system", object.number),
    }
}

fn bookmark_of(object: &ObjectInfo) -> Option<Bookmark> {
    let record = SystemRecord::decode(&object.opaque).ok()?;
    (record.purpose == SystemPurpose::Bookmark).then(|| Bookmark::decode(&record.body)).flatten()
}

/// All objects, by their numbers.
///
/// # Errors
/// `Device`, `Corrupt`.
pub fn facts(store: &Store) -> Result<BTreeMap<ObjectNumber, ObjectFacts>> {
    let facts = store.objects()?.into_iter().map(|object| {
        let record = *blake3::hash(&object.opaque).as_bytes();
        (object.number, ObjectFacts { number: object.number, size: object.size, record })
    });
    Ok(facts.collect())
}

/// What an object maps from a block on: the digest of some thousand mapped blocks, and where it ends.
///
/// # Errors
/// `NotFound`; `Corrupt`, `Device` for what cannot be read.
pub fn digest_from(
    store: &Store,
    object: ObjectNumber,
    first: Lba,
    size: BlockCount,
) -> Result<(Digest, Lba)> {
    walk(store, object, first, Lba(size.0), MAPPED_STEP)
}

/// The digest of a range, for one that asks; nothing where it maps far more blocks than are asked about at a time.
///
/// # Errors
/// As `digest_from`; `Invalid` for a range that does not lie within the object.
pub fn digest_of(
    store: &Store,
    object: ObjectNumber,
    first: Lba,
    count: BlockCount,
) -> Result<Option<Digest>> {
    let until = first.0.checked_add(count.0).map(Lba);
    let until = until.ok_or_else(|| Error::new(ErrorKind::Invalid, "a range behind the last block"))?;
    let (digest, end) = walk(store, object, first, until, MAPPED_STEP * ANSWER_FACTOR)?;
    Ok((end == until).then_some(digest))
}

/// What each of some blocks maps.
///
/// # Errors
/// As `Store::shipped_mappings`.
pub fn blocks_of(store: &Store, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<Vec<Mapped>> {
    let mut found = Vec::new();
    store.shipped_mappings(object, first, count, &mut |mappings| {
        found = mappings.iter().map(mapped).collect();
    })?;
    Ok(found)
}

fn mapped(mapping: &ShippedMapping) -> Mapped {
    let mut bytes = [0; 17];
    match mapping {
        ShippedMapping::Hole => {}
        ShippedMapping::Pattern(word) => {
            bytes[0] = 1;
            bytes[1..5].copy_from_slice(&word.to_le_bytes());
        }
        ShippedMapping::Block { fingerprint, .. } => {
            bytes[0] = 2;
            bytes[1..].copy_from_slice(&fingerprint.0);
        }
        ShippedMapping::Lost => bytes[0] = 3,
    }
    Mapped(bytes)
}

fn walk(
    store: &Store,
    object: ObjectNumber,
    first: Lba,
    until: Lba,
    mapped_max: u64,
) -> Result<(Digest, Lba)> {
    let mut hasher = blake3::Hasher::new();
    let (mut at, mut count) = (first, 0);
    while at < until {
        let look = BlockCount((until.0 - at.0).min(LOOK_BLOCKS));
        for run in store.map_status(object, at, look, LOOK_RUNS)? {
            let end = at.plus(run.blocks.0);
            if run.kind == MappingKind::Hole {
                at = end;
            }
            while at < end {
                if count >= mapped_max {
                    return Ok((
                        Digest { mapped: BlockCount(count), hash: *hasher.finalize().as_bytes() },
                        at,
                    ));
                }
                let some = BlockCount((end.0 - at.0).min(LISTED_MAX));
                for it in blocks_of(store, object, at, some)? {
                    if it != Mapped::default() {
                        hasher.update(&at.0.to_le_bytes());
                        hasher.update(&it.0);
                        count += 1;
                    }
                    at = at.plus(1);
                }
            }
        }
    }
    Ok((Digest { mapped: BlockCount(count), hash: *hasher.finalize().as_bytes() }, until))
}

/// Answers what can be answered from the pool alone.
#[must_use]
pub fn answer(store: &Store, question: &Question) -> Answer {
    let answer = match question {
        Question::Objects(from) => facts(store).map(|facts| {
            let mut found: Vec<ObjectFacts> =
                facts.range(from..).map(|(_, facts)| facts.clone()).take(OBJECTS_MAX + 1).collect();
            let more = found.len() > OBJECTS_MAX;
            found.truncate(OBJECTS_MAX);
            Answer::Objects(found, more)
        }),
        Question::Digest { object, first, count } => {
            digest_of(store, *object, *first, *count).map(Answer::Digest)
        }
        Question::Blocks { object, first, count } => {
            blocks_of(store, *object, *first, *count).map(Answer::Blocks)
        }
        Question::Discard => Err(Error::new(ErrorKind::Unsupported, "nothing is discarded here")),
    };
    match answer {
        Ok(answer) => answer,
        Err(error) if error.kind() == ErrorKind::NotFound => Answer::NotFound,
        Err(error) => Answer::Failed(error.to_string()),
    }
}

/// A question or an answer as the body of a frame.
///
/// # Errors
/// `Invalid` where it cannot be written.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(message).map_err(|error| {
        Error::caused(ErrorKind::Invalid, "writing a question about what a node holds", error)
    })
}

/// Reads what `encode` gave.
///
/// # Errors
/// `Invalid` for anything else.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        Error::caused(ErrorKind::Invalid, "reading a question about what a node holds", error)
    })
}
