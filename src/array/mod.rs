//! The one front door: the catalog of volumes, and the block service of each.
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

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::format::catalog::Record;
use crate::format::catalog::RecordKind;
use crate::store::Environment;
use crate::store::Store;
use crate::sync::Mutex;
use crate::units::BlockCount;
use crate::units::ByteCount;
use crate::units::Uuid;

mod catalog;
mod info;
mod range_lock;
pub mod rules;
mod scrub;
pub mod service;
mod split;
mod status;
mod volume;

pub use info::ArrayStatus;
pub use info::Health;
pub use info::NewVolume;
pub use info::Problem;
pub use info::VolumeCounters;
pub use info::VolumeInfo;
pub use info::VolumeState;
pub use info::VolumeUpdate;
pub use service::BlockService;
pub use service::Commit;
pub use service::Extent;
pub use service::ExtentKind;
pub use volume::Volume;
pub use volume::WriteReport;

use catalog::Catalog;
use catalog::Entry;
use status::reduction_ratio;
use volume::SharedVolume;

/// What the configuration says about the array.
#[derive(Clone, Debug)]
pub struct ArrayOptions {
    /// What the array is called.
    pub name: String,
}

/// The array: volumes on one store.
pub struct Array {
    store: Arc<Store>,
    options: ArrayOptions,
    environment: Environment,
    management: Mutex<()>,
    catalog: Mutex<Catalog>,
    /// What was found damaged, one line each; bounded.
    damage: Mutex<Vec<String>>,
}

impl Array {
    /// Reads the catalog and opens the array. What cannot be read of it is a problem in `status`, not
    /// an error.
    ///
    /// # Errors
    /// `Corrupt` or `Device` where the store cannot say which objects it has.
    pub fn new(store: Arc<Store>, options: ArrayOptions, environment: Environment) -> Result<Arc<Array>> {
        let (catalog, damage) = Catalog::load(&store)?;
        let array = Array {
            store,
            options,
            environment,
            management: Mutex::new(()),
            catalog: Mutex::new(catalog),
            damage: Mutex::new(Vec::new()),
        };
        array.note_damage(damage);
        Ok(Arc::new(array))
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
        let management = self.management.lock();
        self.catalog.lock().check_free(&record.name, record.id)?;
        let (number, lsn) = self.store.create_object(record.size.blocks(), &opaque)?;
        let shared = Arc::new(SharedVolume::new(self.store.clone(), number, record.id, record.size));
        let entry = Entry { record, shared };
        self.catalog.lock().insert(entry.clone());
        drop(management);
        self.store.make_durable(lsn)?;
        Ok(self.describe_one(&entry))
    }

    /// All volumes, the oldest first, then by name.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let mut entries: Vec<Entry> = self.catalog.lock().entries().cloned().collect();
        entries.sort_by(|a, b| {
            (a.record.created_ms, &a.record.name).cmp(&(b.record.created_ms, &b.record.name))
        });
        let pool_ratio = reduction_ratio(&self.store.statistics());
        entries.iter().map(|entry| self.describe(entry, pool_ratio)).collect()
    }

    /// The volume of this name or id.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, which: &str) -> Result<VolumeInfo> {
        let entry = self.find(which)?;
        Ok(self.describe_one(&entry))
    }

    /// Changes what is given of a volume: name, description, tags.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a name or text against the rules; `Exists` for a name that is taken;
    /// `NoSpace`, `ReadOnly`, `Stopped`, `Device`.
    pub fn update_volume(&self, which: &str, update: VolumeUpdate) -> Result<VolumeInfo> {
        self.change(which, |record| {
            if let Some(name) = update.name {
                rules::check_name(&name)?;
                record.name = name;
            }
            record.description = update.description.unwrap_or_else(|| record.description.clone());
            record.tags = update.tags.unwrap_or_else(|| record.tags.clone());
            rules::check_text(&record.description, &record.tags)
        })
    }

    /// Makes a volume larger.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a size that is not larger, or too large; `NoSpace`, `ReadOnly`,
    /// `Stopped`, `Device`.
    pub fn resize_volume(&self, which: &str, size: ByteCount) -> Result<VolumeInfo> {
        let wished = rules::volume_size(size)?;
        self.change(which, |record| {
            if wished <= record.size {
                let what = format!(
                    "Cannot shrink volume {which}: it has {} bytes, and {wished} is not more",
                    record.size
                );
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            record.size = wished;
            Ok(())
        })
    }

    /// Deletes a volume. Its space comes back in the background. With `force` also under connected
    /// clients, whose services answer `NotFound` from then on.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while a client is connected, without `force`; `ReadOnly`, `Stopped`, `Device`.
    pub fn delete_volume(&self, which: &str, force: bool) -> Result<()> {
        let management = self.management.lock();
        let entry = self.take_out(which, force)?;
        let lsn = match self.store.delete_object(entry.shared.number()) {
            Ok(lsn) => lsn,
            Err(error) => {
                entry.shared.set_deleted(false);
                self.catalog.lock().insert(entry);
                return Err(error.context(format!("volume {which} was not deleted")));
            }
        };
        drop(management);
        self.store.make_durable(lsn)
    }

    /// Opens a volume for a client; it is in use until what is returned here is dropped.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn open_volume(&self, which: &str) -> Result<Arc<Volume>> {
        let catalog = self.catalog.lock();
        Ok(Arc::new(Volume::connect(catalog.find(which)?.shared.clone())))
    }

    /// Notes what was found damaged, one line each: a problem in `status` from now on.
    pub fn note_damage(&self, lines: Vec<String>) {
        status::keep_damage(&mut self.damage.lock(), lines);
    }

    fn find(&self, which: &str) -> Result<Entry> {
        self.catalog.lock().find(which).cloned()
    }

    /// Takes a volume out of the catalog, so that it is not found any more, unless it is in use.
    fn take_out(&self, which: &str, force: bool) -> Result<Entry> {
        let mut catalog = self.catalog.lock();
        let entry = catalog.find(which)?.clone();
        if entry.shared.is_connected() && !force {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("volume {which} is in use: a client is connected"),
            ));
        }
        catalog.remove(entry.record.id);
        entry.shared.set_deleted(true);
        Ok(entry)
    }

    /// Applies `edit` to what is kept of a volume.
    fn change(&self, which: &str, edit: impl FnOnce(&mut Record) -> Result<()>) -> Result<VolumeInfo> {
        let management = self.management.lock();
        let mut entry = self.find(which)?;
        edit(&mut entry.record)?;
        entry.record.updated_ms = entry.record.updated_ms.max(self.now_ms());
        let opaque = entry.record.encode()?;
        self.catalog.lock().check_free(&entry.record.name, entry.record.id)?;
        let lsn = self.store.update_object(entry.shared.number(), entry.record.size.blocks(), &opaque)?;
        entry.shared.set_size(entry.record.size);
        self.catalog.lock().insert(entry.clone());
        drop(management);
        self.store.make_durable(lsn)?;
        Ok(self.describe_one(&entry))
    }

    fn describe_one(&self, entry: &Entry) -> VolumeInfo {
        self.describe(entry, reduction_ratio(&self.store.statistics()))
    }

    fn describe(&self, entry: &Entry, pool_ratio: f64) -> VolumeInfo {
        let Entry { record, shared } = entry;
        let mapped = self.store.object_mapped(shared.number()).unwrap_or(BlockCount(0));
        VolumeInfo {
            id: record.id,
            name: record.name.clone(),
            size_bytes: record.size,
            used_bytes: mapped.bytes(),
            state: if shared.is_connected() { VolumeState::InUse } else { VolumeState::Available },
            description: record.description.clone(),
            created_at: Duration::from_millis(record.created_ms),
            updated_at: Duration::from_millis(record.updated_ms),
            tags: record.tags.clone(),
            reduction_ratio: if mapped.0 == 0 { 1.0 } else { pool_ratio },
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
