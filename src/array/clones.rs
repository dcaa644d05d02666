//! Clones and restores: volumes that begin as what another volume or a snapshot holds, and share it.

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::format::catalog::Record;
use crate::format::catalog::RecordKind;
use crate::store::CloneRequest;

use super::Array;
use super::catalog::Entry;
use super::info::NewClone;
use super::info::RestoreTarget;
use super::info::VolumeInfo;
use super::rules;
use super::which::SnapshotIn;
use super::which::Which;

impl Array {
    /// Makes a writable volume that begins as what the volume holds now. Costs the same whatever its size.
    ///
    /// # Errors
    /// `NotFound`; `Changed` where it is not in a version that is asked for; `Invalid` for a name or text against
    /// the rules; `Exists` for a name that is taken; `NoSpace`, `ReadOnly`, `Stopped`, `Device`.
    pub fn clone_volume<'a>(&self, which: impl Into<Which<'a>>, new: &NewClone) -> Result<VolumeInfo> {
        rules::check_name(&new.name)?;
        let which = which.into();
        self.clone_entry(
            || self.find(which),
            |source| {
                let description = format!("Clone of {}", source.record.name);
                (new.name.clone(), new.description.clone().unwrap_or(description))
            },
        )
    }

    /// Makes a writable volume that begins as the snapshot.
    ///
    /// # Errors
    /// As `clone_volume`.
    pub fn clone_snapshot<'a>(&self, which: impl Into<SnapshotIn<'a>>, new: &NewClone) -> Result<VolumeInfo> {
        rules::check_name(&new.name)?;
        let which = which.into();
        self.clone_entry(
            || self.find_snapshot(which),
            |source| {
                let volume = self.catalog.lock().source_name(source).to_owned();
                let description = format!("Clone of {volume}@{}", source.record.name);
                (new.name.clone(), new.description.clone().unwrap_or(description))
            },
        )
    }

    /// Makes a snapshot's contents a new volume's, or an existing volume's in place of what it held. A
    /// smaller snapshot leaves a volume its size, and zeros beyond; a larger one makes it grow.
    ///
    /// # Errors
    /// `NotFound` for the snapshot or the volume; `Changed` where the volume, or the snapshot of which a new one
    /// is made, is not in a version that is asked for; `Busy` while a client is connected to the volume,
    /// without `force`; `Invalid`, `Exists` for the name of a new volume; `NoSpace`, `ReadOnly`,
    /// `Stopped`, `Device`.
    pub fn restore_snapshot<'a>(
        &self,
        which: impl Into<SnapshotIn<'a>>,
        target: &RestoreTarget,
    ) -> Result<VolumeInfo> {
        let which = which.into();
        match target {
            RestoreTarget::New { name } => {
                if let Some(name) = name {
                    rules::check_name(name)?;
                }
                self.clone_entry(
                    || self.find_snapshot(which),
                    |source| self.restored(source, name.as_deref()),
                )
            }
            RestoreTarget::Onto { volume, force } => self.restore_onto(which, volume, *force),
        }
    }

    /// Name and description of the volume that a snapshot is restored to.
    fn restored(&self, source: &Entry, name: Option<&str>) -> (String, String) {
        let catalog = self.catalog.lock();
        let base = rules::derived_name(catalog.source_name(source), "-restored");
        let name =
            name.map_or_else(|| rules::first_free(&base, |name| catalog.volume(name).is_ok()), str::to_owned);
        (name, format!("Restored from snapshot {}", source.record.name))
    }

    /// Makes a volume that begins as what `find` finds, with the name and description that `name` gives it.
    fn clone_entry(
        &self,
        find: impl FnOnce() -> Result<Entry>,
        name: impl FnOnce(&Entry) -> (String, String),
    ) -> Result<VolumeInfo> {
        let management = self.manage()?;
        let source = find()?;
        let (name, description) = name(&source);
        rules::check_text(&description, &source.record.tags)?;
        let now = self.now_ms();
        let record = Record {
            kind: RecordKind::Volume,
            id: self.new_id(),
            created_ms: now,
            updated_ms: now,
            size: source.record.size,
            name,
            description,
            tags: source.record.tags.clone(),
        };
        let opaque = record.encode()?;
        self.catalog.lock().check_free(&record.name, record.id)?;
        let request = CloneRequest { source: source.shared.number(), opaque: &opaque };
        let (numbers, lsn) = self.backing.told(self.store.clone_objects(&[request]))?;
        let number = numbers
            .first()
            .copied()
            .ok_or_else(|| Error::new(ErrorKind::Device, format!("volume {} was not made", record.name)))?;
        let entry = Entry::new(&self.backing, number, record, &opaque);
        self.catalog.lock().insert(entry.clone());
        drop(management);
        self.backing.make_durable(lsn)?;
        Ok(self.describe_one(&entry))
    }

    fn restore_onto(&self, from: SnapshotIn<'_>, volume: &str, force: bool) -> Result<VolumeInfo> {
        let management = self.manage()?;
        let source = self.find_snapshot(from.which.into())?;
        let target = self.find(Which::new(volume, from.versions))?;
        self.check_unused(&target, force)?;
        let size = target.record.size.max(source.record.size);
        let updated_ms = target.record.updated_ms.max(self.now_ms());
        let record = Record { size, updated_ms, ..target.record.clone() };
        let opaque = record.encode()?;
        // A block that was read before the restore must not be written back after it.
        let held = target.shared.hold_partial_writes();
        let (target_number, source_number) = (target.shared.number(), source.shared.number());
        let lsn = self.backing.told(self.store.restore_object(
            target_number,
            source_number,
            size.blocks(),
            &opaque,
        ))?;
        target.shared.note_change();
        target.shared.set_size(size);
        drop(held);
        let entry = target.with(record, &opaque);
        self.catalog.lock().insert(entry.clone());
        drop(management);
        self.backing.make_durable(lsn)?;
        Ok(self.describe_one(&entry))
    }
}
