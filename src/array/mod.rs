//! The one front door: the catalog of volumes and snapshots, and the block service of each.
//!
//! Whatever a client or an operator may do to the array goes through [`Array`] (management verbs and
//! what can be seen) or through a [`Volume`] that it opened (blocks). A management verb is durable
//! when it returns. Nothing here knows a protocol or a peer, is async, sleeps, starts a thread, reads
//! a clock or draws a random number: clock and random source are handed in.
//!
//! Locks, in the order in which they are taken: `management` serialises the management verbs from
//! their first look at the catalog to their commit, so one of two that want a name gets it; it may be
//! held while the store waits, and no I/O and no query ever asks for it. `catalog` guards the maps in
//! memory, for moments. Waiting for durability holds neither: verbs that come together share a sync.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::format::catalog::Record;
use crate::format::catalog::RecordKind;
use crate::format::system::HistoryId;
use crate::store::Environment;
use crate::store::Store;
use crate::sync::{Mutex, MutexGuard};
use crate::units::ByteCount;
use crate::units::Lsn;
use crate::units::SessionId;
use crate::units::Uuid;

mod catalog;
mod changes;
mod clones;
mod gate;
mod history;
mod info;
mod measure;
mod range_lock;
pub mod rules;
mod scrub;
pub mod service;
mod snapshots;
mod split;
mod status;
mod volume;
mod which;

pub use changes::Change;
pub use changes::ChangedExtent;
pub use changes::Changes;
pub use changes::Comparison;
pub use gate::CommitGate;
pub use gate::Tenure;
pub use history::History;
pub use history::Sample;
pub use history::Trend;
pub use info::ArrayStatus;
pub use info::Health;
pub use info::NewClone;
pub use info::NewSnapshot;
pub use info::NewVolume;
pub use info::Problem;
pub use info::RestoreTarget;
pub use info::SnapshotInfo;
pub use info::VolumeCounters;
pub use info::VolumeInfo;
pub use info::VolumeState;
pub use info::VolumeUpdate;
pub use service::BlockService;
pub use service::ChangeSource;
pub use service::Commit;
pub use service::Extent;
pub use service::ExtentKind;
pub use service::GroupedWrite;
pub use service::SessionTerms;
pub use snapshots::GROUP_MAX;
pub use volume::Volume;
pub use volume::WriteReport;
pub use which::SnapshotIn;
pub use which::SnapshotWhich;
pub use which::Version;
pub use which::Which;

use catalog::Catalog;
use catalog::Entry;
use gate::Admission;
use gate::Backing;
use measure::Measurements;
use status::volume_ratio;

/// What the configuration says about the array.
#[derive(Clone)]
pub struct ArrayOptions {
    /// What the array is called.
    pub name: String,
    /// Where other nodes hold the array too, what decides when an answer may be given.
    pub gate: Option<Arc<dyn CommitGate>>,
}

impl ArrayOptions {
    /// An array of this name that this node alone holds.
    #[must_use]
    pub fn new(name: impl Into<String>) -> ArrayOptions {
        ArrayOptions { name: name.into(), gate: None }
    }
}

/// The array: volumes and snapshots on one store.
pub struct Array {
    store: Arc<Store>,
    backing: Backing,
    options: ArrayOptions,
    environment: Environment,
    management: Mutex<()>,
    catalog: Mutex<Catalog>,
    /// What was found damaged, one line each; bounded.
    damage: Mutex<Vec<String>>,
    history: Mutex<History>,
    measurements: Mutex<Measurements>,
}

impl Array {
    /// Reads the catalog and opens the array. What cannot be read of it is a problem in `status`, not
    /// an error.
    ///
    /// # Errors
    /// `Corrupt` or `Device` where the store cannot say which objects it has.
    pub fn new(store: Arc<Store>, options: ArrayOptions, environment: Environment) -> Result<Arc<Array>> {
        let backing = Backing::new(store.clone(), options.gate.clone());
        let (catalog, damage) = Catalog::load(&backing)?;
        let array = Array {
            store,
            backing,
            options,
            environment,
            management: Mutex::new(()),
            catalog: Mutex::new(catalog),
            damage: Mutex::new(Vec::new()),
            history: Mutex::new(History::default()),
            measurements: Mutex::new(Measurements::default()),
        };
        array.note_damage(damage);
        Ok(Arc::new(array))
    }

    /// Reads the catalog anew, after operations were applied to the store past this array. What is still there keeps
    /// its connections; what is gone is deleted for them.
    ///
    /// # Errors
    /// `Corrupt` or `Device` where the store cannot say which objects it has; then nothing has changed.
    pub fn reload(&self) -> Result<()> {
        let _management = self.management.lock();
        let (mut loaded, damage) = Catalog::load(&self.backing)?;
        {
            // Connections are made under this lock: none can come between.
            let mut catalog = self.catalog.lock();
            loaded.map_shared(|entry| match catalog.by_id(entry.record.id) {
                Some(before) => entry.taking_over(before),
                None => entry,
            });
            for before in catalog.entries() {
                let now = loaded.by_id(before.record.id);
                if now.is_none_or(|now| !Arc::ptr_eq(&now.shared, &before.shared)) {
                    before.shared.set_deleted(true);
                }
            }
            *catalog = loaded;
        }
        self.forget_measurements();
        let known = self.damage.lock().clone();
        self.note_damage(damage.into_iter().filter(|line| !known.contains(line)).collect());
        Ok(())
    }

    /// Runs `work` while no management verb is between its first look at the catalog and its commit. `work` must not
    /// call a management verb.
    pub fn freeze_management<R>(&self, work: impl FnOnce() -> R) -> R {
        let _management = self.management.lock();
        work()
    }

    /// Whether clients are taken here now: where several nodes hold the array, only on its primary, and not before it
    /// knows all that its predecessor has done. May wait.
    ///
    /// # Errors
    /// `NotPrimary`, `NoQuorum`.
    pub fn takes_clients(&self) -> Result<()> {
        self.backing.admit().map(drop)
    }

    /// What a client of this session has to know before it goes on here.
    #[must_use]
    pub fn session_terms(&self, session: SessionId) -> SessionTerms {
        let history = self.store.find_object(HistoryId::of).filter(|_| !self.store.may_lack());
        SessionTerms {
            history: history.map(|(_, history)| history.id),
            memory: self.store.memory_of(session),
        }
    }

    /// Begins a management verb, if it is taken: no other goes on until what is returned is dropped.
    fn manage(&self) -> Result<(MutexGuard<'_, ()>, Admission<'_>)> {
        let admission = self.backing.admit()?;
        Ok((self.management.lock(), admission))
    }

    /// What the array is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// The array's id: that of its pool.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.store.pool_id()
    }

    /// Makes a volume, all holes.
    ///
    /// # Errors
    /// `Invalid` for a name, size or text against the rules; `Exists` for a name that is taken;
    /// `NoSpace`, `ReadOnly`, `Stopped`, `Device`.
    pub fn create_volume(&self, new: NewVolume) -> Result<VolumeInfo> {
        rules::check_name(&new.name)?;
        rules::check_text(&new.description, &new.tags)?;
        let now = self.now_ms();
        let record = Record {
            kind: RecordKind::Volume,
            id: self.new_id(),
            created_ms: now,
            updated_ms: now,
            size: rules::volume_size(new.size)?,
            name: new.name,
            description: new.description,
            tags: new.tags,
        };
        let opaque = record.encode()?;
        let management = self.manage()?;
        self.catalog.lock().check_free(&record.name, record.id)?;
        let (number, lsn) = self.backing.told(self.store.create_object(record.size.blocks(), &opaque))?;
        let entry = Entry::new(&self.backing, number, record, &opaque);
        self.catalog.lock().insert(entry.clone());
        drop(management);
        self.backing.make_durable(lsn)?;
        Ok(self.describe_one(&entry))
    }

    /// All volumes, the oldest first, then by name.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let mut entries: Vec<Entry> = self.catalog.lock().volumes().cloned().collect();
        entries.sort_by(|a, b| {
            (a.record.created_ms, &a.record.name).cmp(&(b.record.created_ms, &b.record.name))
        });
        let ratio = volume_ratio(&self.store.statistics());
        entries.iter().map(|entry| self.describe(entry, ratio)).collect()
    }

    /// The volume of this name or id.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, which: &str) -> Result<VolumeInfo> {
        let entry = self.find(which.into())?;
        Ok(self.describe_one(&entry))
    }

    /// The volume, in one of the versions that may be asked for.
    ///
    /// # Errors
    /// `NotFound`; `Changed` where it is not in a version that is asked for.
    pub fn volume_in_version(&self, which: Which<'_>) -> Result<VolumeInfo> {
        let entry = self.find(which)?;
        Ok(self.describe_one(&entry))
    }

    /// Changes what is given of a volume: name, description, tags. Where that is what it is already, nothing changes.
    ///
    /// # Errors
    /// `NotFound`; `Changed` where it is not in a version that is asked for; `Invalid` for a name or text
    /// against the rules; `Exists` for a name that is taken; `NoSpace`, `ReadOnly`, `Stopped`, `Device`.
    pub fn update_volume<'a>(&self, which: impl Into<Which<'a>>, update: VolumeUpdate) -> Result<VolumeInfo> {
        let which = which.into();
        // What is wrong in itself is said first, whatever the volume is like.
        update.name.as_deref().map_or(Ok(()), rules::check_name)?;
        let nothing = BTreeMap::new();
        let tags = update.tags.as_ref().unwrap_or(&nothing);
        rules::check_text(update.description.as_deref().unwrap_or_default(), tags)?;
        self.change(which, |record| {
            record.name = update.name.unwrap_or_else(|| record.name.clone());
            record.description = update.description.unwrap_or_else(|| record.description.clone());
            record.tags = update.tags.unwrap_or_else(|| record.tags.clone());
            rules::check_text(&record.description, &record.tags)
        })
    }

    /// Makes a volume larger.
    ///
    /// # Errors
    /// `NotFound`; `Changed` where it is not in a version that is asked for; `Invalid` for a size that is
    /// not larger, or too large; `NoSpace`, `ReadOnly`, `Stopped`, `Device`.
    pub fn resize_volume<'a>(&self, which: impl Into<Which<'a>>, size: ByteCount) -> Result<VolumeInfo> {
        let which = which.into();
        let wished = rules::volume_size(size)?;
        self.change(which, |record| {
            if wished <= record.size {
                let what = format!(
                    "Cannot shrink volume {}: it has {} bytes, and {wished} is not more",
                    record.name, record.size
                );
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            record.size = wished;
            Ok(())
        })
    }

    /// Deletes a volume. Its snapshots and clones stay; the space that only it held comes back in the
    /// background. With `force` also under connected clients, whose services answer `NotFound` from then on.
    ///
    /// # Errors
    /// `NotFound`; `Changed` where it is not in a version that is asked for; `Busy` while a client is
    /// connected, without `force`; `ReadOnly`, `Stopped`, `Device`.
    pub fn delete_volume<'a>(&self, which: impl Into<Which<'a>>, force: bool) -> Result<()> {
        let which = which.into();
        let management = self.manage()?;
        let entry = self.find(which)?;
        self.check_unused(&entry, force)?;
        self.name_source_in_snapshots(&entry)?;
        self.take_out(&entry, force)?;
        let lsn = self.delete_object(&entry)?;
        drop(management);
        self.backing.make_durable(lsn)
    }

    /// Opens a volume for a client; it is in use until what is returned here is dropped.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn open_volume(&self, which: &str) -> Result<Arc<Volume>> {
        let catalog = self.catalog.lock();
        Ok(Arc::new(Volume::connect(catalog.volume(which)?.shared.clone(), None)))
    }

    /// The same for a client that is let go where another node becomes the primary: what it asks for here and was not
    /// begun until then, is never done.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn open_volume_now(&self, which: &str) -> Result<Arc<Volume>> {
        let tenure = self.backing.tenure();
        let catalog = self.catalog.lock();
        Ok(Arc::new(Volume::connect(catalog.volume(which)?.shared.clone(), Some(tenure))))
    }

    /// Opens what an export is called: a volume by name or id, as `open_volume_now` does, or a snapshot as
    /// `VOLUME@SNAPSHOT`, which is read-only.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn open(&self, name: &str) -> Result<Arc<Volume>> {
        match SnapshotWhich::parse(name) {
            Some(which) => self.open_snapshot(which),
            None => self.open_volume_now(name),
        }
    }

    /// Notes what was found damaged, one line each: a problem in `status` from now on.
    pub fn note_damage(&self, lines: Vec<String>) {
        status::keep_damage(&mut self.damage.lock(), lines);
    }

    fn find(&self, which: Which<'_>) -> Result<Entry> {
        let entry = self.catalog.lock().volume(which.name_or_id)?.clone();
        which.check(entry.version)?;
        Ok(entry)
    }

    /// Whether nobody is connected, or that is no matter: else `Busy`.
    fn check_unused(&self, entry: &Entry, force: bool) -> Result<()> {
        if force || !entry.shared.is_connected() {
            return Ok(());
        }
        let noun = if entry.source().is_some() { "snapshot" } else { "volume" };
        let what = format!("{noun} {} is in use: a client is connected", entry.record.name);
        Err(Error::new(ErrorKind::Busy, what))
    }

    /// Takes a volume or snapshot out of the catalog, so that it is not found any more, unless it is in use.
    fn take_out(&self, entry: &Entry, force: bool) -> Result<()> {
        let mut catalog = self.catalog.lock();
        // Connections are made under this lock: none can come between this look and the removal.
        self.check_unused(entry, force)?;
        catalog.remove(entry.record.id);
        entry.shared.set_deleted(true);
        drop(catalog);
        self.forget_measurement(entry.record.id);
        Ok(())
    }

    /// Deletes the object of what was taken out of the catalog, or puts it back where that fails.
    fn delete_object(&self, entry: &Entry) -> Result<Lsn> {
        self.backing.told(self.store.delete_object(entry.shared.number())).map_err(|error| {
            entry.shared.set_deleted(false);
            self.catalog.lock().insert(entry.clone());
            error.context(format!("{} was not deleted", entry.record.name))
        })
    }

    /// Applies `edit` to what is kept of a volume.
    fn change(&self, which: Which<'_>, edit: impl FnOnce(&mut Record) -> Result<()>) -> Result<VolumeInfo> {
        let management = self.manage()?;
        let entry = self.find(which)?;
        let mut record = entry.record.clone();
        edit(&mut record)?;
        if record == entry.record {
            // What it is asked to be may have become so a moment ago.
            let lsn = self.store.last_lsn();
            drop(management);
            self.backing.make_durable(lsn)?;
            return Ok(self.describe_one(&entry));
        }
        record.updated_ms = record.updated_ms.max(self.now_ms());
        let opaque = record.encode()?;
        self.catalog.lock().check_free(&record.name, record.id)?;
        let lsn = self.backing.told(self.store.update_object(
            entry.shared.number(),
            record.size.blocks(),
            &opaque,
        ))?;
        entry.shared.set_size(record.size);
        let entry = entry.with(record, &opaque);
        self.catalog.lock().insert(entry.clone());
        drop(management);
        self.backing.make_durable(lsn)?;
        Ok(self.describe_one(&entry))
    }

    fn describe_one(&self, entry: &Entry) -> VolumeInfo {
        self.describe(entry, volume_ratio(&self.store.statistics()))
    }

    fn describe(&self, entry: &Entry, ratio: f64) -> VolumeInfo {
        let Entry { record, version, shared } = entry;
        let mapped = self.mapped_blocks(entry);
        let measured = self.measured_ratio(entry);
        VolumeInfo {
            id: record.id,
            name: record.name.clone(),
            size_bytes: record.size,
            used_bytes: mapped.bytes(),
            state: shared.state(),
            description: record.description.clone(),
            created_at: Duration::from_millis(record.created_ms),
            updated_at: Duration::from_millis(record.updated_ms),
            tags: record.tags.clone(),
            reduction_ratio: match measured {
                _ if mapped.0 == 0 => 1.0,
                Some((measured, _)) => measured,
                None => ratio,
            },
            reduction_measured_at: measured.map(|(_, at_ms)| Duration::from_millis(at_ms)),
            version: *version,
            counters: shared.counters(),
        }
    }

    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.environment.clock.since_unix_epoch().as_millis()).unwrap_or(u64::MAX)
    }

    fn new_id(&self) -> Uuid {
        let mut bytes = [0; 16];
        self.environment.random.fill(&mut bytes);
        Uuid::from_random(bytes)
    }
}
