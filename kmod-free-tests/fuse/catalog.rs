//! A catalog over a real array in memory, with snapshots that the test puts there.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use sinter::array::Array;
use sinter::array::ArrayOptions;
use sinter::array::BlockService;
use sinter::array::Commit;
use sinter::array::Extent;
use sinter::array::NewVolume;
use sinter::error::Error;
use sinter::error::ErrorKind;
use sinter::error::Result;
use sinter::export::fuse::Catalog;
use sinter::export::fuse::FileId;
use sinter::export::fuse::FileInfo;
use sinter::export::fuse::FileSystem;
use sinter::export::fuse::Room;
use sinter::store::Environment;
use sinter::units::ByteCount;
use sinter::units::Uuid;

use crate::pool::new_store;

/// A volume that may only be read, with the name it has as a snapshot.
struct Snapshot {
    of: String,
    name: String,
    id: Uuid,
    shows: String,
}

/// The catalog.
pub(crate) struct TestCatalog {
    pub(crate) array: Arc<Array>,
    snapshots: Mutex<Vec<Snapshot>>,
    /// What each request on a file fails with, where that is asked for.
    pub(crate) failure: Arc<Mutex<Option<ErrorKind>>>,
}

/// A file system over a new array in memory.
pub(crate) fn new_file_system(seed: u64) -> (Arc<TestCatalog>, FileSystem, Environment) {
    let (store, environment) = new_store(seed);
    let options = ArrayOptions::new("test");
    let array = Array::new(store, options, environment.clone()).unwrap();
    let catalog = Arc::new(TestCatalog { array, snapshots: Mutex::default(), failure: Arc::default() });
    let files = FileSystem::new(catalog.clone(), environment.clock.clone());
    (catalog, files, environment)
}

fn not_found(what: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{what} not found"))
}

impl TestCatalog {
    pub(crate) fn create(&self, name: &str, size: u64) {
        let new = NewVolume { name: name.to_owned(), size: ByteCount(size), ..NewVolume::default() };
        self.array.create_volume(new).unwrap();
    }

    /// Shows the volume `shows` as the snapshot `name` of `of`.
    pub(crate) fn put_snapshot(&self, of: &str, name: &str, shows: &str) {
        let snapshot = Snapshot {
            of: of.to_owned(),
            name: name.to_owned(),
            id: self.array.volume(shows).unwrap().id,
            shows: shows.to_owned(),
        };
        self.snapshots.lock().unwrap().push(snapshot);
    }

    pub(crate) fn drop_snapshot(&self, of: &str, name: &str) {
        self.snapshots.lock().unwrap().retain(|each| each.of != of || each.name != name);
    }

    fn volume_info(&self, which: &str) -> Result<FileInfo> {
        let info = self.array.volume(which)?;
        Ok(FileInfo {
            id: FileId::Volume(info.id),
            name: info.name,
            size: info.size_bytes,
            used: info.used_bytes,
            stamp: info.counters.write_ops,
            created: info.created_at,
            updated: info.updated_at,
        })
    }

    fn find_snapshot(&self, matches: impl Fn(&Snapshot) -> bool) -> Result<FileInfo> {
        let snapshots = self.snapshots.lock().unwrap();
        let snapshot = snapshots.iter().find(|each| matches(each)).ok_or_else(|| not_found("snapshot"))?;
        let info = self.volume_info(&snapshot.shows)?;
        let id = FileId::Snapshot { of: Uuid::default(), id: snapshot.id };
        Ok(FileInfo { id, name: snapshot.name.clone(), ..info })
    }
}

impl Catalog for TestCatalog {
    fn volumes(&self) -> Vec<FileInfo> {
        let names = self.array.volumes().into_iter().map(|info| info.name);
        names.map(|name| self.volume_info(&name).unwrap()).collect()
    }

    fn volume(&self, name: &str) -> Result<FileInfo> {
        self.volume_info(name)
    }

    fn volumes_with_snapshots(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.snapshots.lock().unwrap().iter().map(|each| each.of.clone()).collect();
        names.dedup();
        names
    }

    fn has_snapshots(&self, volume: &str) -> bool {
        self.volumes_with_snapshots().iter().any(|name| name == volume)
    }

    fn snapshots(&self, volume: &str) -> Vec<FileInfo> {
        let names: Vec<String> = {
            let snapshots = self.snapshots.lock().unwrap();
            snapshots.iter().filter(|each| each.of == volume).map(|each| each.name.clone()).collect()
        };
        names.iter().map(|name| self.snapshot(volume, name).unwrap()).collect()
    }

    fn snapshot(&self, volume: &str, name: &str) -> Result<FileInfo> {
        self.find_snapshot(|each| each.of == volume && each.name == name)
    }

    fn file(&self, id: FileId) -> Result<FileInfo> {
        match id {
            FileId::Volume(id) => self.volume_info(&id.to_string()),
            FileId::Snapshot { id, .. } => self.find_snapshot(|each| each.id == id),
        }
    }

    fn open(&self, id: FileId) -> Result<Arc<dyn BlockService>> {
        let (which, read_only) = match id {
            FileId::Volume(id) => (id.to_string(), false),
            FileId::Snapshot { id, .. } => {
                self.find_snapshot(|each| each.id == id)?;
                (id.to_string(), true)
            }
        };
        let service = self.array.open_volume(&which)?;
        Ok(Arc::new(Service { service, read_only, failure: self.failure.clone() }))
    }

    fn room(&self) -> Room {
        Room { capacity: ByteCount(1 << 30), free: ByteCount(1 << 29), files: 3 }
    }
}

/// A volume that can be made to fail, or to be read-only.
struct Service {
    service: Arc<dyn BlockService>,
    read_only: bool,
    failure: Arc<Mutex<Option<ErrorKind>>>,
}

impl Service {
    fn check(&self) -> Result<()> {
        match *self.failure.lock().unwrap() {
            Some(kind) => Err(Error::new(kind, "as the test wants it")),
            None => Ok(()),
        }
    }
}

impl BlockService for Service {
    fn size(&self) -> ByteCount {
        self.service.size()
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        self.check()?;
        self.service.try_read(offset, buffer)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.check()?;
        self.service.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Commit> {
        self.check()?;
        self.service.write(offset, data)
    }

    fn write_zeroes(&self, offset: u64, len: ByteCount) -> Result<Commit> {
        self.check()?;
        self.service.write_zeroes(offset, len)
    }

    fn trim(&self, offset: u64, len: ByteCount) -> Result<Commit> {
        self.check()?;
        self.service.trim(offset, len)
    }

    fn acknowledge(&self, commit: Commit) -> Result<()> {
        self.check()?;
        self.service.acknowledge(commit)
    }

    fn make_durable(&self, commit: Commit) -> Result<()> {
        self.check()?;
        self.service.make_durable(commit)
    }

    fn flush(&self) -> Result<()> {
        self.check()?;
        self.service.flush()
    }

    fn block_status(&self, offset: u64, len: ByteCount, extents_max: usize) -> Result<Vec<Extent>> {
        self.check()?;
        self.service.block_status(offset, len, extents_max)
    }
}

/// The time that the environment's clock shows; each look moves it on.
pub(crate) fn time(environment: &Environment) -> Duration {
    environment.clock.since_unix_epoch()
}
