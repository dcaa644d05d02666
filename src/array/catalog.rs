//! The volumes and snapshots by id and by name, in memory: what the store's objects say, read once at
//! opening and changed with each management verb.
//!
//! The store is the truth; this follows what was committed there. It never waits: the lock around it
//! may be taken by anyone.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::format::catalog::Record;
use crate::format::catalog::RecordKind;
use crate::format::checksum;
use crate::format::system::SystemRecord;
use crate::units::ObjectNumber;
use crate::units::Uuid;

use super::gate::Backing;
use super::volume::Access;
use super::volume::SharedVolume;
use super::which::Version;

/// One volume or snapshot: what is kept of it, and what its connections share.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) version: Version,
    pub(super) shared: Arc<SharedVolume>,
}

impl Entry {
    /// What was just committed as an object with this record, whose bytes are `opaque`.
    pub(super) fn new(backing: &Backing, number: ObjectNumber, record: Record, opaque: &[u8]) -> Entry {
        let access = match record.kind {
            RecordKind::Volume => Access::ReadWrite,
            RecordKind::Snapshot { .. } => Access::ReadOnly,
        };
        let shared = SharedVolume::new(backing.clone(), number, record.id, record.size, access);
        Entry { version: Version(checksum(opaque)), record, shared: Arc::new(shared) }
    }

    /// The same object, for the connections that `before` has, where both are of one object.
    pub(super) fn taking_over(self, before: &Entry) -> Entry {
        if before.shared.number() != self.shared.number()
            || before.source().is_some() != self.source().is_some()
        {
            return self;
        }
        before.shared.set_size(self.record.size);
        Entry { shared: before.shared.clone(), ..self }
    }

    /// The same object with another record.
    pub(super) fn with(&self, record: Record, opaque: &[u8]) -> Entry {
        Entry { record, version: Version(checksum(opaque)), shared: self.shared.clone() }
    }

    /// Of a snapshot, the id of its volume and the name that this had when the record was written.
    pub(super) fn source(&self) -> Option<(Uuid, &str)> {
        match &self.record.kind {
            RecordKind::Volume => None,
            RecordKind::Snapshot { of, of_name } => Some((*of, of_name)),
        }
    }
}

/// All volumes, and all snapshots, also those of volumes that are gone.
#[derive(Default)]
pub(super) struct Catalog {
    volumes: BTreeMap<Uuid, Entry>,
    by_name: BTreeMap<String, Uuid>,
    snapshots: BTreeMap<Uuid, Entry>,
    /// The snapshots of each volume, by name.
    by_volume: BTreeMap<Uuid, BTreeMap<String, Uuid>>,
}

/// That no volume has this name or id.
pub(super) fn no_volume(which: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, format!("Volume {which} not found"))
}

/// That no snapshot has this name or id.
pub(super) fn no_snapshot(which: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, format!("Snapshot {which} not found"))
}

impl Catalog {
    /// Reads the catalog, and says in one line each what of it cannot be read. Such an object stays in
    /// the store as it is, out of reach. What the system keeps for itself is passed over.
    pub(super) fn load(backing: &Backing) -> Result<(Catalog, Vec<String>)> {
        let mut catalog = Catalog::default();
        let mut damage = Vec::new();
        for object in backing.store.objects()? {
            if SystemRecord::is_one(&object.opaque) {
                continue;
            }
            let record = Record::decode(&object.opaque).and_then(|record| {
                if record.size != object.size.bytes() {
                    return Err(Error::new(ErrorKind::Corrupt, "catalog record and map differ in size"));
                }
                if catalog.has_another(&record) {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        "catalog record with the name or id of another",
                    ));
                }
                Ok(record)
            });
            match record {
                Ok(record) => catalog.insert(Entry::new(backing, object.number, record, &object.opaque)),
                Err(error) => damage.push(format!("object {} cannot be served: {error}", object.number)),
            }
        }
        Ok((catalog, damage))
    }

    fn has_another(&self, record: &Record) -> bool {
        let name_taken = match &record.kind {
            RecordKind::Volume => self.by_name.contains_key(&record.name),
            RecordKind::Snapshot { of, .. } => self.snapshot_named(*of, &record.name).is_some(),
        };
        name_taken || self.volumes.contains_key(&record.id) || self.snapshots.contains_key(&record.id)
    }

    /// The volume of this id or name.
    pub(super) fn volume(&self, which: &str) -> Result<&Entry> {
        let id = Uuid::parse(which).or_else(|| self.by_name.get(which).copied());
        id.and_then(|id| self.volumes.get(&id)).ok_or_else(|| no_volume(which))
    }

    /// The volume or snapshot of this id.
    pub(super) fn by_id(&self, id: Uuid) -> Option<&Entry> {
        self.volumes.get(&id).or_else(|| self.snapshots.get(&id))
    }

    /// The volumes that `which` may mean where snapshots are asked for: by id just that one; by name the
    /// living one first, then those that are gone, the newest first. None of them is without snapshots
    /// unless it lives.
    fn sources(&self, which: &str) -> Vec<Uuid> {
        if let Some(id) = Uuid::parse(which) {
            let known = self.volumes.contains_key(&id) || self.by_volume.contains_key(&id);
            return if known { vec![id] } else { Vec::new() };
        }
        let gone = self.by_volume.iter().filter(|(id, _)| !self.volumes.contains_key(id));
        let mut gone: Vec<(u64, Uuid)> = gone
            .filter_map(|(id, names)| {
                let snapshots = names.values().filter_map(|id| self.snapshots.get(id));
                let newest = snapshots.max_by_key(|entry| entry.record.created_ms)?;
                let named = newest.source().is_some_and(|(_, name)| name == which);
                named.then_some((newest.record.created_ms, *id))
            })
            .collect();
        gone.sort_unstable_by(|a, b| b.cmp(a));
        self.by_name.get(which).copied().into_iter().chain(gone.into_iter().map(|(_, id)| id)).collect()
    }

    /// The id of the volume, living or gone, whose snapshots `which` means.
    pub(super) fn source(&self, which: &str) -> Result<Uuid> {
        self.sources(which).first().copied().ok_or_else(|| no_volume(which))
    }

    /// The snapshot of this name or id, of the volume of that name or id.
    pub(super) fn snapshot(&self, volume: &str, which: &str) -> Result<&Entry> {
        let sources = self.sources(volume);
        if sources.is_empty() {
            return Err(no_volume(volume));
        }
        let found = match Uuid::parse(which) {
            Some(id) => self.snapshots.get(&id).filter(|entry| {
                let of = entry.source().map(|(of, _)| of);
                of.is_some_and(|of| sources.contains(&of))
            }),
            None => sources.iter().find_map(|source| self.snapshot_named(*source, which)),
        };
        found.ok_or_else(|| no_snapshot(which))
    }

    fn snapshot_named(&self, volume: Uuid, name: &str) -> Option<&Entry> {
        self.snapshots.get(self.by_volume.get(&volume)?.get(name)?)
    }

    /// What a snapshot's volume is called: as it is now or, where it is gone, as it was.
    pub(super) fn source_name<'a>(&'a self, snapshot: &'a Entry) -> &'a str {
        let (of, of_name) = snapshot.source().unwrap_or_default();
        self.volumes.get(&of).map_or(of_name, |volume| &volume.record.name)
    }

    /// Whether a volume other than `id` has this name: then `Exists`.
    pub(super) fn check_free(&self, name: &str, id: Uuid) -> Result<()> {
        match self.by_name.get(name) {
            Some(owner) if *owner != id => {
                Err(Error::new(ErrorKind::Exists, format!("a volume named {name} exists already")))
            }
            _ => Ok(()),
        }
    }

    /// Whether there is a volume of this id.
    pub(super) fn has_volume(&self, id: Uuid) -> bool {
        self.volumes.contains_key(&id)
    }

    /// Whether the volume has a snapshot of this name.
    pub(super) fn has_snapshot(&self, volume: Uuid, name: &str) -> bool {
        self.snapshot_named(volume, name).is_some()
    }

    /// Adds a volume or snapshot, or changes what is kept of it. Its name is free or its own.
    pub(super) fn insert(&mut self, entry: Entry) {
        let (id, name) = (entry.record.id, entry.record.name.clone());
        if let Some((of, _)) = entry.source() {
            self.by_volume.entry(of).or_default().insert(name, id);
            self.snapshots.insert(id, entry);
            return;
        }
        if let Some(old) = self.volumes.insert(id, entry) {
            self.by_name.remove(&old.record.name);
        }
        self.by_name.insert(name, id);
    }

    /// Takes a volume or snapshot out.
    pub(super) fn remove(&mut self, id: Uuid) {
        if let Some(volume) = self.volumes.remove(&id) {
            self.by_name.remove(&volume.record.name);
        }
        let Some(snapshot) = self.snapshots.remove(&id) else { return };
        let Some((of, _)) = snapshot.source() else { return };
        if let Some(names) = self.by_volume.get_mut(&of) {
            names.remove(&snapshot.record.name);
            if names.is_empty() {
                self.by_volume.remove(&of);
            }
        }
    }

    /// All volumes and snapshots, in no useful order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.volumes.values().chain(self.snapshots.values())
    }

    /// Every entry as `change` makes it; names and ids stay as they are.
    pub(super) fn map_shared(&mut self, change: impl Fn(Entry) -> Entry) {
        for entry in self.volumes.values_mut().chain(self.snapshots.values_mut()) {
            *entry = change(entry.clone());
        }
    }

    /// All volumes, in no useful order.
    pub(super) fn volumes(&self) -> impl Iterator<Item = &Entry> {
        self.volumes.values()
    }

    /// All snapshots, in no useful order.
    pub(super) fn snapshots(&self) -> impl Iterator<Item = &Entry> {
        self.snapshots.values()
    }

    /// The snapshots of one volume, by name.
    pub(super) fn snapshots_of(&self, volume: Uuid) -> impl Iterator<Item = &Entry> {
        let names = self.by_volume.get(&volume).into_iter().flat_map(BTreeMap::values);
        names.filter_map(|id| self.snapshots.get(id))
    }
}
