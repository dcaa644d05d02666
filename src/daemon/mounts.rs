//! The FUSE mounts over the array's volumes: making them, taking them away, and those that a daemon
//! which died has left behind.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::api::mounts::MountControl;
use crate::api::types;
use crate::api::types::MountState;
use crate::array::Array;
use crate::array::BlockService;
use crate::array::SnapshotInfo;
use crate::array::SnapshotWhich;
use crate::array::VolumeInfo;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::export::fuse::Catalog;
use crate::export::fuse::FileId;
use crate::export::fuse::FileInfo;
use crate::export::fuse::FileSystem;
use crate::export::fuse::FuseStatistics;
use crate::export::fuse::Mount;
use crate::export::fuse::Room;
use crate::export::fuse::check_mount_point;
use crate::export::fuse::host;
use crate::sync::Clock;
use crate::sync::Mutex;
use crate::units::ByteCount;
use crate::units::Uuid;

/// How long whoever has files open gets to close them when the daemon stops.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// How long requests in flight may take to finish after that.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How long the kernel may take to end a mount that nobody uses.
const END_MAX: Duration = Duration::from_secs(2);

/// Most mounts at a time: each has threads and buffers of its own.
const MOUNTS_MAX: usize = 8;

/// Whether `fuse.mountpoint` can be mounted on, as far as that shows before anything is written anywhere.
///
/// # Errors
/// As `MountControl::mount`.
pub(super) fn check(point: &Path) -> Outcome {
    check_mount_point(point).map_err(hint)
}

fn hint(error: Error) -> Failure {
    let hint = match error.kind() {
        ErrorKind::NotFound => "make the directory first",
        ErrorKind::Busy => "give an empty directory; `sinter umount DIR` takes a mount away",
        ErrorKind::Unsupported => "is /dev/fuse there? `modprobe fuse` loads it",
        _ => return error.into(),
    };
    Failure::from(error).hint(hint)
}

fn open_files(number: u64) -> String {
    if number == 1 { "1 file is open".to_owned() } else { format!("{number} files are open") }
}

/// All mounts of this daemon.
pub(super) struct Mounts {
    array: Arc<Array>,
    clock: Arc<dyn Clock>,
    statistics: Arc<FuseStatistics>,
    mounts: Mutex<Vec<Mounted>>,
}

struct Mounted {
    mount: Mount,
    state: MountState,
}

impl Mounts {
    /// Takes away what a daemon of this pool has left behind, and mounts on `point`, if that is given.
    ///
    /// # Errors
    /// As `MountControl::mount`.
    pub(super) fn start(
        array: &Arc<Array>,
        clock: Arc<dyn Clock>,
        point: Option<&Path>,
    ) -> Outcome<Arc<Mounts>> {
        let mounts =
            Mounts { array: array.clone(), clock, statistics: Arc::default(), mounts: Mutex::default() };
        mounts.clean_up();
        if let Some(point) = point {
            mounts.mount(point).map_err(hint)?;
        }
        Ok(Arc::new(mounts))
    }

    /// What all mounts count.
    pub(super) fn statistics(&self) -> Arc<FuseStatistics> {
        self.statistics.clone()
    }

    /// The pool is locked by this process: whatever else shows it was left behind by a daemon that died.
    fn clean_up(&self) {
        let found = host::mounts().unwrap_or_else(|error| {
            tracing::warn!("mounts that were left behind are not looked for: {error}");
            Vec::new()
        });
        for left in found.iter().filter(|mount| mount.pool == self.array.id() && host::is_dead(&mount.point))
        {
            let shown = left.point.display();
            match host::unmount(&left.point, true) {
                Ok(()) => tracing::info!("{shown}, a mount that was left behind, is taken away"),
                Err(error) => tracing::warn!("{shown} was left behind: {error}"),
            }
        }
    }

    /// Lets go of the mounts that have ended, such as by `umount`.
    fn forget_ended(mounts: &mut Vec<Mounted>) {
        let (ended, others) = std::mem::take(mounts).into_iter().partition(|each| each.mount.has_ended());
        *mounts = others;
        let ended: Vec<Mounted> = ended;
        ended.into_iter().for_each(|each| each.mount.join());
    }

    fn check_number(&self) -> Result<()> {
        let mut mounts = self.mounts.lock();
        Mounts::forget_ended(&mut mounts);
        if mounts.len() < MOUNTS_MAX {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Busy, format!("there are {MOUNTS_MAX} mounts already, and no more can be")))
    }

    /// Takes all mounts away. Whoever has files open gets some time to close them, and is cut off then.
    pub(super) fn stop(&self) {
        // Whoever asks for the list meanwhile does not wait as long as this does.
        let mut mounts = std::mem::take(&mut *self.mounts.lock());
        Mounts::forget_ended(&mut mounts);
        for each in mounts.iter_mut().filter(|each| each.state == MountState::Mounted) {
            match each.mount.unmount(true) {
                Ok(()) => each.state = MountState::Detached,
                Err(error) => tracing::warn!("{error}"),
            }
        }
        let deadline = self.clock.monotonic() + CLOSE_MAX;
        for Mounted { mount, .. } in mounts.iter() {
            let shown = mount.point().display();
            if mount.wait_for_end(END_MAX) {
                continue;
            }
            tracing::info!("{} in {shown}: waiting", open_files(mount.open_files() as u64));
            let left = deadline.saturating_sub(self.clock.monotonic());
            if !mount.wait_for_end(left) {
                tracing::warn!("{} files that are open in {shown} are cut off", mount.open_files());
                if !mount.wait_until_idle(DRAIN_MAX) {
                    tracing::warn!("some requests in {shown} did not finish in time and were cut off");
                }
            }
        }
        Mounts::forget_ended(&mut mounts);
        self.mounts.lock().append(&mut mounts);
    }
}

impl Mounted {
    fn describe(&self) -> types::Mount {
        types::Mount {
            mountpoint: self.mount.point().display().to_string(),
            state: self.state,
            open_files: self.mount.open_files() as u64,
        }
    }
}

impl MountControl for Mounts {
    fn list(&self) -> Vec<types::Mount> {
        let mut mounts = self.mounts.lock();
        Mounts::forget_ended(&mut mounts);
        let mut list: Vec<types::Mount> = mounts.iter().map(Mounted::describe).collect();
        list.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
        list
    }

    fn mount(&self, point: &Path) -> Result<types::Mount> {
        self.check_number()?;
        // Without the lock: the directory may lie on a file system that does not answer.
        let files = FileSystem::new(Arc::new(Files(self.array.clone())), self.clock.clone());
        let mount = Mount::start(point, self.array.id(), files, self.statistics.clone())?;
        let mounted = Mounted { mount, state: MountState::Mounted };
        let description = mounted.describe();
        tracing::info!("volumes are mounted on {}", description.mountpoint);
        self.mounts.lock().push(mounted);
        Ok(description)
    }

    fn unmount(&self, point: &Path, lazy: bool) -> Result<()> {
        let mut mounts = self.mounts.lock();
        Mounts::forget_ended(&mut mounts);
        let mounted = mounts
            .iter_mut()
            .find(|each| each.state == MountState::Mounted && each.mount.point() == point)
            .ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("{} is not mounted by this array", point.display()))
            })?;
        mounted.mount.unmount(lazy).map_err(|error| match error.kind() {
            ErrorKind::Busy => {
                let open = mounted.mount.open_files();
                error.context(format!("{} is in use ({})", point.display(), open_files(open as u64)))
            }
            _ => error,
        })?;
        mounted.state = MountState::Detached;
        // A mount that nobody uses ends at once; then it is gone when the caller looks.
        if mounted.mount.open_files() == 0 {
            let _ = mounted.mount.wait_for_end(END_MAX);
        }
        Mounts::forget_ended(&mut mounts);
        Ok(())
    }
}

/// The array's volumes and snapshots as files.
struct Files(Arc<Array>);

fn volume_info(volume: VolumeInfo) -> FileInfo {
    let counters = volume.counters;
    FileInfo {
        id: FileId::Volume(volume.id),
        name: volume.name,
        size: volume.size_bytes,
        used: volume.used_bytes,
        // Each write raises the first; what zeroes or trims without writing lowers the second.
        stamp: counters.write_ops.wrapping_mul(1 << 40).wrapping_add(volume.used_bytes.0),
        created: volume.created_at,
        updated: volume.updated_at,
    }
}

fn snapshot_info(snapshot: SnapshotInfo) -> FileInfo {
    FileInfo {
        id: FileId::Snapshot { of: snapshot.volume_id, id: snapshot.id },
        name: snapshot.name,
        size: snapshot.size_bytes,
        used: snapshot.used_bytes,
        stamp: 0,
        created: snapshot.created_at,
        updated: snapshot.created_at,
    }
}

fn no_such_name(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no file of the name {name}"))
}

/// Only of a name: the array also takes ids, which are no names of files.
fn is_id(name: &str) -> bool {
    Uuid::parse(name).is_some()
}

impl Catalog for Files {
    fn volumes(&self) -> Vec<FileInfo> {
        self.0.volumes().into_iter().map(volume_info).collect()
    }

    fn volume(&self, name: &str) -> Result<FileInfo> {
        if is_id(name) {
            return Err(no_such_name(name));
        }
        Ok(volume_info(self.0.volume(name)?))
    }

    fn volumes_with_snapshots(&self) -> Vec<String> {
        let names: BTreeSet<String> = self.0.snapshots().into_iter().map(|info| info.volume_name).collect();
        names.into_iter().collect()
    }

    fn has_snapshots(&self, volume: &str) -> bool {
        !self.snapshots(volume).is_empty()
    }

    fn snapshots(&self, volume: &str) -> Vec<FileInfo> {
        if is_id(volume) {
            return Vec::new();
        }
        let snapshots = self.0.snapshots_of(volume).unwrap_or_default();
        snapshots.into_iter().map(snapshot_info).collect()
    }

    fn snapshot(&self, volume: &str, name: &str) -> Result<FileInfo> {
        if is_id(volume) || is_id(name) {
            return Err(no_such_name(name));
        }
        Ok(snapshot_info(self.0.snapshot(SnapshotWhich { volume, snapshot: name })?))
    }

    fn file(&self, id: FileId) -> Result<FileInfo> {
        match id {
            FileId::Volume(id) => Ok(volume_info(self.0.volume(&id.to_string())?)),
            FileId::Snapshot { of, id } => {
                let (volume, snapshot) = (&*of.to_string(), &*id.to_string());
                Ok(snapshot_info(self.0.snapshot(SnapshotWhich { volume, snapshot })?))
            }
        }
    }

    fn open(&self, id: FileId) -> Result<Arc<dyn BlockService>> {
        match id {
            FileId::Volume(id) => Ok(self.0.open_volume(&id.to_string())?),
            FileId::Snapshot { of, id } => {
                let (volume, snapshot) = (&*of.to_string(), &*id.to_string());
                Ok(self.0.open_snapshot(SnapshotWhich { volume, snapshot })?)
            }
        }
    }

    fn room(&self) -> Room {
        let status = self.0.status();
        let capacity = status.store.usable_bytes;
        Room {
            capacity: ByteCount(capacity),
            free: ByteCount(capacity.saturating_sub(status.store.live_bytes)),
            files: status.volumes,
        }
    }
}
