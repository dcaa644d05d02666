//! Bookmarks: held internal snapshots of all volumes, the same on every node.
//!
//! They are made and deleted by operations. A node that comes back and cannot go on from where it was begins anew from
//! the newest bookmark that both sides have: each volume gets that content again, in constant time, and only what has
//! changed since is sent.

use std::collections::{BTreeMap, BTreeSet};

use crate::array::Array;
use crate::error::Result;
use crate::format::catalog::{Record, RecordKind};
use crate::format::system::{Bookmark, SystemPurpose, SystemRecord};
use crate::store::{CLONES_MAX, CloneRequest, ObjectInfo, Store};
use crate::units::{BlockCount, Lsn, ObjectNumber, Uuid};

use super::wire::{Base, Standing};

/// What an object is, as far as comparing cares.
enum Kind {
    Volume,
    /// Never written to.
    Snapshot {
        of: Uuid,
    },
    Bookmark {
        id: Uuid,
        of: ObjectNumber,
    },
    Other,
}

/// All objects of a pool.
pub struct Inventory {
    objects: Vec<(ObjectInfo, Kind)>,
    /// Volumes by id.
    volumes: BTreeMap<Uuid, ObjectNumber>,
}

/// An object, and what it begins with on a secondary.
pub struct Beginning {
    /// As it is on the primary.
    pub object: ObjectInfo,
    /// What it begins with.
    pub base: Base,
}

impl Inventory {
    /// What the store holds now.
    ///
    /// # Errors
    /// `Device`, `Corrupt`.
    pub fn of(store: &Store) -> Result<Inventory> {
        let mut volumes = BTreeMap::new();
        let mut objects = Vec::new();
        for object in store.objects()? {
            let kind = match Record::decode(&object.opaque) {
                Ok(Record { kind: RecordKind::Volume, id, .. }) => {
                    volumes.insert(id, object.number);
                    Kind::Volume
                }
                Ok(Record { kind: RecordKind::Snapshot { of, .. }, .. }) => Kind::Snapshot { of },
                Err(_) => match bookmark(&object.opaque) {
                    Some(Bookmark { id, of, .. }) => Kind::Bookmark { id, of },
                    None => Kind::Other,
                },
            };
            objects.push((object, kind));
        }
        objects.sort_by_key(|(object, _)| object.number);
        Ok(Inventory { objects, volumes })
    }

    /// Leaves out all objects but some.
    pub fn keep(&mut self, wanted: impl Fn(ObjectNumber) -> bool) {
        self.objects.retain(|(object, _)| wanted(object.number));
    }

    /// The bookmarks, the oldest first.
    #[must_use]
    pub fn bookmarks(&self) -> Vec<Uuid> {
        let mut seen = BTreeSet::new();
        let ids = self.objects.iter().filter_map(|(_, kind)| match kind {
            Kind::Bookmark { id, .. } => Some(*id),
            _ => None,
        });
        ids.filter(|id| seen.insert(*id)).collect()
    }

    /// The objects' numbers.
    #[must_use]
    pub fn numbers(&self) -> Vec<ObjectNumber> {
        self.objects.iter().map(|(object, _)| object.number).collect()
    }

    /// What every object begins with on a secondary that stands there.
    #[must_use]
    pub fn beginning(self, standing: &Standing) -> Vec<Beginning> {
        let there: BTreeSet<ObjectNumber> = standing.objects.iter().copied().collect();
        let unfinished: BTreeSet<ObjectNumber> = standing.unfinished.iter().copied().collect();
        let common = self.bookmarks().into_iter().rfind(|id| standing.bookmarks.contains(id));
        let mut marked: BTreeMap<ObjectNumber, (ObjectNumber, BlockCount)> = BTreeMap::new();
        for (object, kind) in &self.objects {
            if let Kind::Bookmark { id, of } = kind
                && Some(*id) == common
                && there.contains(&object.number)
            {
                marked.insert(*of, (object.number, object.size));
            }
        }
        let marks: BTreeSet<ObjectNumber> = marked.values().map(|(mark, _)| *mark).collect();
        // What is older than the bookmark and never written to is what it was when the bookmark was made.
        let first_mark = marks.first().copied().unwrap_or(ObjectNumber(0));
        let unchanged = |number: ObjectNumber| number < first_mark && there.contains(&number);
        let volumes = self.volumes;
        let base = |object: &ObjectInfo, kind: &Kind| {
            // What is there is worth keeping until it is overwritten: what is the same need not be sent.
            let present = there.contains(&object.number) || unfinished.contains(&object.number);
            let own = if present { Base::Own } else { Base::Empty };
            // An object never shrinks: what is older than the mark of a volume that has grown begins otherwise.
            let like = |of: ObjectNumber| match marked.get(&of) {
                Some((mark, size)) if *size <= object.size => Base::Like(*mark),
                _ => own,
            };
            match kind {
                Kind::Bookmark { .. } if marks.contains(&object.number) || unchanged(object.number) => {
                    Base::Kept
                }
                Kind::Bookmark { of, .. } => like(*of),
                Kind::Snapshot { .. } if unchanged(object.number) => Base::Kept,
                Kind::Snapshot { of } => volumes.get(of).map_or(own, |volume| like(*volume)),
                Kind::Volume => like(object.number),
                Kind::Other => Base::Empty,
            }
        };
        let mut beginning: Vec<Beginning> = self
            .objects
            .into_iter()
            .map(|(object, kind)| Beginning { base: base(&object, &kind), object })
            .collect();
        // What others begin with comes first.
        beginning.sort_by_key(|it| (it.base != Base::Kept, it.object.number));
        beginning
    }
}

fn bookmark(opaque: &[u8]) -> Option<Bookmark> {
    let record = SystemRecord::decode(opaque).ok()?;
    (record.purpose == SystemPurpose::Bookmark).then(|| Bookmark::decode(&record.body)).flatten()
}

/// A bookmark, as a pool has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its id.
    pub id: Uuid,
    /// When it was made, in milliseconds since 1970-01-01 00:00:00 UTC.
    pub made_ms: u64,
    /// Its objects, one for each volume.
    pub objects: Vec<ObjectNumber>,
}

/// All bookmarks of a pool, the oldest first.
///
/// # Errors
/// `Device`, `Corrupt`.
pub fn all(store: &Store) -> Result<Vec<Made>> {
    let mut objects = store.objects()?;
    objects.sort_by_key(|object| object.number);
    let mut found: Vec<Made> = Vec::new();
    for object in objects {
        let Some(Bookmark { id, made_ms, .. }) = bookmark(&object.opaque) else { continue };
        match found.iter_mut().find(|made| made.id == id) {
            Some(made) => made.objects.push(object.number),
            None => found.push(Made { id, made_ms, objects: vec![object.number] }),
        }
    }
    Ok(found)
}

/// Makes a bookmark of all volumes; nothing where there is none. Its newest operation.
///
/// # Errors
/// As `Store::clone_objects`.
pub fn make(array: &Array, store: &Store, id: Uuid, made_ms: u64) -> Result<Option<Lsn>> {
    array.freeze_management(|| {
        let inventory = Inventory::of(store)?;
        let volumes: Vec<ObjectNumber> = inventory.volumes.values().copied().collect();
        let mut newest = None;
        for some in volumes.chunks(CLONES_MAX) {
            let mut records = Vec::with_capacity(some.len());
            for of in some {
                records.push(Bookmark { id, of: *of, made_ms }.record().encode()?);
            }
            let requests: Vec<CloneRequest<'_>> =
                some.iter().zip(&records).map(|(of, opaque)| CloneRequest { source: *of, opaque }).collect();
            newest = Some(store.clone_objects(&requests)?.1);
        }
        Ok(newest)
    })
}

/// Deletes one bookmark. The newest operation; nothing where it is not there.
///
/// # Errors
/// As `Store::delete_object`.
pub fn drop_one(store: &Store, id: Uuid) -> Result<Option<Lsn>> {
    let mut newest = None;
    for (object, kind) in Inventory::of(store)?.objects {
        if matches!(kind, Kind::Bookmark { id: this, .. } if this == id) {
            newest = Some(store.delete_object(object.number)?);
        }
    }
    Ok(newest)
}

/// Deletes all bookmarks but some. The newest operation.
///
/// # Errors
/// As `Store::delete_object`.
pub fn drop_all_but(store: &Store, kept: &[Uuid]) -> Result<Option<Lsn>> {
    let mut newest = None;
    for (object, kind) in Inventory::of(store)?.objects {
        if let Kind::Bookmark { id, .. } = kind
            && !kept.contains(&id)
        {
            newest = Some(store.delete_object(object.number)?);
        }
    }
    Ok(newest)
}
