//! The volumes by id and by name, in memory: what the store's objects say, read once at opening and
//! changed with each management verb.
//!
//! The store is the truth; this follows what was committed there. It never waits: the lock around it
//! may be taken by anyone.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::format::catalog::Record;
use crate::store::Store;
use crate::units::Uuid;

use super::volume::SharedVolume;

/// One volume: what is kept of it, and what its connections share.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) shared: Arc<SharedVolume>,
}

/// All volumes.
#[derive(Default)]
pub(super) struct Catalog {
    by_id: BTreeMap<Uuid, Entry>,
    by_name: BTreeMap<String, Uuid>,
}

/// That no volume has this name or id.
pub(super) fn not_found(which: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, format!("Volume {which} not found"))
}

impl Catalog {
    /// Reads the catalog, and says in one line each what of it cannot be read. Such an object stays in
    /// the store as it is, out of reach.
    pub(super) fn load(store: &Arc<Store>) -> Result<(Catalog, Vec<String>)> {
        let mut catalog = Catalog::default();
        let mut damage = Vec::new();
        for object in store.objects()? {
            let record = Record::decode(&object.opaque).and_then(|record| {
                if record.size != object.size.bytes() {
                    return Err(Error::new(ErrorKind::Corrupt, "catalog record and map differ in size"));
                }
                if catalog.by_id.contains_key(&record.id) || catalog.by_name.contains_key(&record.name) {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        "catalog record with the name or id of another",
                    ));
                }
                Ok(record)
            });
            match record {
                Ok(record) => {
                    let shared =
                        Arc::new(SharedVolume::new(store.clone(), object.number, record.id, record.size));
                    catalog.insert(Entry { record, shared });
                }
                Err(error) => damage.push(format!("object {} cannot be served: {error}", object.number)),
            }
        }
        Ok((catalog, damage))
    }

    /// The volume of this id or name.
    pub(super) fn find(&self, which: &str) -> Result<&Entry> {
        let id = Uuid::parse(which).or_else(|| self.by_name.get(which).copied());
        id.and_then(|id| self.by_id.get(&id)).ok_or_else(|| not_found(which))
    }

    /// Whether a volume other than `id` has this name: then `Exists`.
    pub(super) fn check_free(&self, name: &str, id: Uuid) -> Result<()> {
        match self.by_name.get(name) {
            Some(other) if *other != id => {
                Err(Error::new(ErrorKind::Exists, format!("a volume named {name} exists already")))
            }
            _ => Ok(()),
        }
    }

    /// Adds a volume, or changes what is kept of it. Its name is free or its own.
    pub(super) fn insert(&mut self, entry: Entry) {
        let (id, name) = (entry.record.id, entry.record.name.clone());
        if let Some(old) = self.by_id.insert(id, entry) {
            self.by_name.remove(&old.record.name);
        }
        self.by_name.insert(name, id);
    }

    /// Takes a volume out.
    pub(super) fn remove(&mut self, id: Uuid) -> Option<Entry> {
        let entry = self.by_id.remove(&id)?;
        self.by_name.remove(&entry.record.name);
        Some(entry)
    }

    /// All volumes, in no useful order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.by_id.values()
    }
}
