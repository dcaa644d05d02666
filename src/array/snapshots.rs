//! Snapshots: taken, listed, opened and deleted. They outlive their volume.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::format::catalog::Record;
use crate::format::catalog::RecordKind;
use crate::store::CLONES_MAX;
use crate::store::CloneRequest;
use crate::units::BlockCount;
use crate::units::Uuid;

use super::Array;
use super::catalog::Catalog;
use super::catalog::Entry;
use super::info::NewSnapshot;
use super::info::SnapshotInfo;
use super::rules;
use super::volume::Volume;
use super::which::SnapshotIn;
use super::which::SnapshotWhich;

/// Most volumes of one group.
pub const GROUP_MAX: usize = CLONES_MAX;

impl Array {
    /// Takes a snapshot of a volume: its contents at one moment. Costs the same whatever its size.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a name or text against the rules; `Exists` for a name that another
    /// snapshot of the volume has; `NoSpace`, `ReadOnly`, `Stopped`, `Device`.
    pub fn create_snapshot(&self, volume: &str, new: &NewSnapshot) -> Result<SnapshotInfo> {
        let mut made = self.create_snapshots(&[volume.to_owned()], new)?;
        made.pop().ok_or_else(|| Error::new(ErrorKind::Invalid, "no volume is named"))
    }

    /// Takes snapshots of several volumes at one and the same moment, in the order of `volumes`: all of
    /// them or none.
    ///
    /// # Errors
    /// As `create_snapshot`; `Invalid` for none, too many, or the same volume twice.
    pub fn create_snapshots(&self, volumes: &[String], new: &NewSnapshot) -> Result<Vec<SnapshotInfo>> {
        if let Some(name) = &new.name {
            rules::check_name(name)?;
        }
        rules::check_text(&new.description, &new.tags)?;
        if volumes.is_empty() || volumes.len() > GROUP_MAX {
            let what = format!("a group of snapshots is of 1 to {GROUP_MAX} volumes");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let management = self.manage()?;
        let now = self.now_ms();
        let mut planned: Vec<(Record, Vec<u8>)> = Vec::with_capacity(volumes.len());
        let mut sources = Vec::with_capacity(volumes.len());
        for which in volumes {
            let source = self.find(which.into())?;
            let record = self.plan_snapshot(&source, new, now)?;
            if planned.iter().any(|(other, _)| other.kind == record.kind) {
                let what = format!("volume {which} is named twice");
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            let opaque = record.encode()?;
            sources.push(source.shared.number());
            planned.push((record, opaque));
        }
        let requests: Vec<CloneRequest<'_>> = sources
            .iter()
            .zip(&planned)
            .map(|(source, (_, opaque))| CloneRequest { source: *source, opaque })
            .collect();
        let (numbers, lsn) = self.backing.told(self.store.clone_objects(&requests))?;
        let entries: Vec<Entry> = planned
            .into_iter()
            .zip(numbers)
            .map(|((record, opaque), number)| Entry::new(&self.backing, number, record, &opaque))
            .collect();
        {
            let mut catalog = self.catalog.lock();
            entries.iter().for_each(|entry| catalog.insert(entry.clone()));
        }
        drop(management);
        self.backing.make_durable(lsn)?;
        let catalog = self.catalog.lock();
        Ok(entries.iter().map(|entry| self.describe_snapshot(&catalog, entry)).collect())
    }

    /// The record of a snapshot that is to be taken; the caller holds `management`.
    fn plan_snapshot(&self, source: &Entry, new: &NewSnapshot, now: u64) -> Result<Record> {
        let volume = &source.record;
        let catalog = self.catalog.lock();
        let is_taken = |name: &str| catalog.has_snapshot(volume.id, name);
        let name = match &new.name {
            Some(name) if is_taken(name) => {
                let what = format!("volume {} has a snapshot named {name} already", volume.name);
                return Err(Error::new(ErrorKind::Exists, what));
            }
            Some(name) => name.clone(),
            None => rules::first_free(
                &rules::derived_name(&volume.name, &format!("-snap-{}", compact_time(now))),
                is_taken,
            ),
        };
        Ok(Record {
            kind: RecordKind::Snapshot { of: volume.id, of_name: volume.name.clone() },
            id: self.new_id(),
            created_ms: now,
            updated_ms: now,
            size: volume.size,
            name,
            description: new.description.clone(),
            tags: new.tags.clone(),
        })
    }

    /// All snapshots, the oldest first, then by volume and name.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let catalog = self.catalog.lock();
        self.describe_snapshots(&catalog, catalog.snapshots())
    }

    /// The snapshots of the volume of this name or id, living or gone; the oldest first, then by name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn snapshots_of(&self, volume: &str) -> Result<Vec<SnapshotInfo>> {
        let catalog = self.catalog.lock();
        let source = catalog.source(volume)?;
        Ok(self.describe_snapshots(&catalog, catalog.snapshots_of(source)))
    }

    /// How many snapshots there are of each volume, living or gone, that has any.
    #[must_use]
    pub fn snapshot_counts(&self) -> BTreeMap<Uuid, u64> {
        let catalog = self.catalog.lock();
        let mut counts = BTreeMap::new();
        for (volume, _) in catalog.snapshots().filter_map(Entry::source) {
            *counts.entry(volume).or_default() += 1;
        }
        counts
    }

    /// One snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn snapshot(&self, which: SnapshotWhich<'_>) -> Result<SnapshotInfo> {
        let catalog = self.catalog.lock();
        let entry = catalog.snapshot(which.volume, which.snapshot)?;
        Ok(self.describe_snapshot(&catalog, entry))
    }

    /// Opens a snapshot for a client, read-only; it is in use until what is returned here is dropped.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn open_snapshot(&self, which: SnapshotWhich<'_>) -> Result<Arc<Volume>> {
        let catalog = self.catalog.lock();
        let entry = catalog.snapshot(which.volume, which.snapshot)?;
        Ok(Arc::new(Volume::connect(entry.shared.clone(), None)))
    }

    /// Deletes a snapshot. The space that only it held comes back in the background. With `force` also
    /// under connected clients, whose services answer `NotFound` from then on.
    ///
    /// # Errors
    /// `NotFound`; `Changed` where it is not in a version that is asked for; `Busy` while a client is
    /// connected, without `force`; `ReadOnly`, `Stopped`, `Device`.
    pub fn delete_snapshot<'a>(&self, which: impl Into<SnapshotIn<'a>>, force: bool) -> Result<()> {
        let which = which.into();
        let management = self.manage()?;
        let entry = self.find_snapshot(which)?;
        self.take_out(&entry, force)?;
        let lsn = self.delete_object(&entry)?;
        drop(management);
        self.backing.make_durable(lsn)
    }

    pub(super) fn find_snapshot(&self, wanted: SnapshotIn<'_>) -> Result<Entry> {
        let entry = self.catalog.lock().snapshot(wanted.which.volume, wanted.which.snapshot)?.clone();
        wanted.check(entry.version)?;
        Ok(entry)
    }

    /// Makes the snapshots of a volume that is about to go bear the name that it has now; those taken before
    /// it was renamed bear an older one. The caller holds `management`.
    ///
    /// A full pool keeps nothing from being deleted: snapshots that could not be changed keep the older name.
    pub(super) fn name_source_in_snapshots(&self, volume: &Entry) -> Result<()> {
        let Record { id, name, .. } = &volume.record;
        let stale: Vec<Entry> = {
            let catalog = self.catalog.lock();
            let snapshots = catalog.snapshots_of(*id);
            snapshots.filter(|entry| entry.source().is_some_and(|(_, old)| old != name)).cloned().collect()
        };
        for entry in stale {
            let kind = RecordKind::Snapshot { of: *id, of_name: name.clone() };
            let record = Record { kind, ..entry.record.clone() };
            let Ok(opaque) = record.encode() else { continue };
            let update = self.store.update_object(entry.shared.number(), record.size.blocks(), &opaque);
            match self.backing.told(update) {
                Ok(_) => self.catalog.lock().insert(entry.with(record, &opaque)),
                Err(error) if error.kind() == ErrorKind::NoSpace => {}
                Err(error) => return Err(error.context(format!("naming volume {name} in its snapshots"))),
            }
        }
        Ok(())
    }

    /// How many blocks of a volume or snapshot hold something.
    pub(super) fn mapped_blocks(&self, entry: &Entry) -> BlockCount {
        self.store.object_mapped(entry.shared.number()).unwrap_or(BlockCount(0))
    }

    fn describe_snapshots<'a>(
        &self,
        catalog: &Catalog,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> Vec<SnapshotInfo> {
        let mut all: Vec<SnapshotInfo> =
            entries.map(|entry| self.describe_snapshot(catalog, entry)).collect();
        all.sort_by(|a, b| {
            let key = |info: &SnapshotInfo| (info.created_at, info.id);
            (a.created_at, &a.volume_name, &a.name, key(a)).cmp(&(
                b.created_at,
                &b.volume_name,
                &b.name,
                key(b),
            ))
        });
        all
    }

    fn describe_snapshot(&self, catalog: &Catalog, entry: &Entry) -> SnapshotInfo {
        let Entry { record, version, shared } = entry;
        let volume_id = entry.source().map_or(Uuid::default(), |(of, _)| of);
        SnapshotInfo {
            id: record.id,
            name: record.name.clone(),
            volume_id,
            volume_name: catalog.source_name(entry).to_owned(),
            volume_is_deleted: !catalog.has_volume(volume_id),
            size_bytes: record.size,
            used_bytes: self.mapped_blocks(entry).bytes(),
            state: shared.state(),
            description: record.description.clone(),
            created_at: Duration::from_millis(record.created_ms),
            tags: record.tags.clone(),
            reclaimable_bytes: self.reclaimable(entry),
            version: *version,
        }
    }
}

/// A time in milliseconds since 1970 as `20240115-103000`, in UTC.
fn compact_time(milliseconds: u64) -> String {
    let time = i64::try_from(milliseconds).ok().and_then(|time| Timestamp::from_millisecond(time).ok());
    time.unwrap_or(Timestamp::MAX).strftime("%Y%m%d-%H%M%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_names_are_short() {
        assert_eq!(compact_time(1_705_314_600_250), "20240115-103000");
        assert!(!compact_time(u64::MAX).is_empty());
    }
}
