//! A mount: the file system in a directory of the host, and the threads that serve it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Builder;
use std::thread::JoinHandle;
use std::thread::available_parallelism;
use std::time::Duration;

use fuser::Config;
use fuser::MountOption;
use fuser::Session;
use fuser::SessionACL;

use super::driver::Driver;
use super::filesystem::FileSystem;
use super::host;
use super::shared::Shared;
use super::statistics::FuseStatistics;
use super::waiting;
use super::waiting::WaitingQueue;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::export::clock::now;
use crate::sync::Condition;
use crate::sync::Mutex;
use crate::units::Uuid;

/// Helpers for what has to wait; most of the time they wait for a device.
const HELPERS: usize = 16;

/// What the kernel serves mounts through.
const FUSE_DEVICE: &str = "/dev/fuse";

/// How often it is looked whether the requests in flight are done.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A file system, mounted. Dropping it leaves it mounted: `unmount` takes it away.
pub struct Mount {
    point: PathBuf,
    pool: Uuid,
    shared: Arc<Shared>,
    ended: Arc<Ended>,
    threads: Vec<JoinHandle<()>>,
}

/// Whether the kernel has let the mount go.
#[derive(Default)]
struct Ended {
    state: Mutex<bool>,
    changed: Condition,
}

impl Ended {
    fn wait(&self, limit: Duration) -> bool {
        let deadline = now() + limit;
        let mut ended = self.state.lock();
        while !*ended {
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return false;
            }
            ended = self.changed.wait_for(ended, left);
        }
        true
    }
}

impl Mount {
    /// Mounts `files` on an empty directory and serves them. For root and this process's user only.
    ///
    /// # Errors
    /// `NotFound` or `Invalid` where there is no such directory; `Busy` where it is not empty or a mount
    /// already; `Unsupported` where the host has no FUSE; `Device` for all else that it said.
    pub fn start(
        point: &Path,
        pool: Uuid,
        files: FileSystem,
        statistics: Arc<FuseStatistics>,
    ) -> Result<Mount> {
        let point = check_point(point)?;
        let takers = available_parallelism().map_or(1, usize::from) + 1;
        let queue = Arc::new(WaitingQueue::new());
        let counted = Arc::clone(&statistics);
        let shared = Arc::new(Shared::new(files, statistics, Arc::clone(&queue), takers));
        let failed = |error| mount_failed(&point, error);
        let session = session(&point, pool, &shared, takers).map_err(failed)?;
        let mut mount = Mount {
            point: point.clone(),
            pool,
            shared: Arc::clone(&shared),
            ended: Arc::default(),
            threads: Vec::new(),
        };
        let (ended, served) = (Arc::clone(&mount.ended), Arc::clone(&shared));
        let serve = move || {
            counted.mounts.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = session.run() {
                tracing::error!("FUSE: {error}");
            }
            queue.close();
            served.stop_watching();
            counted.mounts.fetch_sub(1, Ordering::Relaxed);
            *ended.state.lock() = true;
            ended.changed.notify_all();
        };
        let (helped, watched) = (Arc::clone(&shared), Arc::clone(&shared));
        let started =
            waiting::start(&shared.queue, HELPERS, move |job| helped.execute(job)).and_then(|helpers| {
                mount.threads.extend(helpers);
                let watch = Builder::new().name("fuse-watchman".to_owned()).spawn(move || watched.watch())?;
                mount.threads.push(watch);
                mount.threads.push(Builder::new().name("fuse".to_owned()).spawn(serve)?);
                Ok(())
            });
        match started {
            Ok(()) => Ok(mount),
            Err(error) => {
                shared.queue.close();
                shared.stop_watching();
                // The session has been dropped, and the mount with it.
                Err(mount_failed(&point, error))
            }
        }
    }

    /// The directory.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// How many files are open in it.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.shared.files.open_files()
    }

    /// Whether it has been unmounted, and its last user has gone.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        *self.ended.state.lock()
    }

    /// Takes the mount away. `lazy` hides it at once, also while it is in use; it ends with its last user.
    ///
    /// # Errors
    /// As [`host::unmount`]; `NotFound` also where another mount lies over it.
    pub fn unmount(&self, lazy: bool) -> Result<()> {
        match host::mount_at(&self.point)? {
            Some(mount) if mount.pool == self.pool => host::unmount(&self.point, lazy),
            // Somebody else has done it already, and may have mounted something of his own there.
            _ => Err(Error::new(
                ErrorKind::NotFound,
                format!("{} is not mounted any more, or something lies over it", self.point.display()),
            )),
        }
    }

    /// Waits for the end of a mount that was unmounted; true where it came within `limit`.
    #[must_use]
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        self.ended.wait(limit)
    }

    /// Waits until no request is being worked on, for at most `limit`; true where that was reached. Users
    /// of files that are still open may send more.
    #[must_use]
    pub fn wait_until_idle(&self, limit: Duration) -> bool {
        let deadline = now() + limit;
        while !self.shared.is_idle() {
            if now() >= deadline {
                return false;
            }
            if self.ended.wait(LOOK_EVERY) {
                return true;
            }
        }
        true
    }

    /// Lets the threads of a mount that has ended go.
    pub fn join(self) {
        debug_assert!(self.has_ended(), "the threads end with the mount");
        for thread in self.threads {
            // A thread that panicked has said so; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// Whether something can be mounted on the directory, as far as that shows without doing it. A mount that nobody
/// serves any more is no obstacle: it may be one that is taken away before.
///
/// # Errors
/// As [`Mount::start`].
pub fn check_mount_point(point: &Path) -> Result<()> {
    if host::is_dead(point) {
        return Ok(());
    }
    check_point(point)?;
    fs::metadata(FUSE_DEVICE).map(drop).map_err(|error| mount_failed(point, error))
}

/// The directory's real path, if something can be mounted there.
fn check_point(point: &Path) -> Result<PathBuf> {
    let shown = point.display();
    let real = point.canonicalize().map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::NotConnected => ErrorKind::Busy,
            _ => ErrorKind::Invalid,
        };
        Error::caused(kind, format!("{shown} cannot be mounted on"), error)
    })?;
    if let Some(mount) = host::mount_at(&real)? {
        return Err(Error::new(
            ErrorKind::Busy,
            format!("{shown} is a mount of Sinter already (pool {})", mount.pool),
        ));
    }
    let failed = |error| Error::caused(ErrorKind::Invalid, format!("{shown} cannot be mounted on"), error);
    // What a mount hides should be nothing that anybody needs.
    if fs::read_dir(&real).map_err(failed)?.next().is_some() {
        return Err(Error::new(
            ErrorKind::Busy,
            format!("{shown} is not empty: mount on an empty directory"),
        ));
    }
    Ok(real)
}

fn mount_failed(point: &Path, error: io::Error) -> Error {
    let what = format!("mounting {}", point.display());
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::Unsupported,
        io::ErrorKind::PermissionDenied => ErrorKind::Invalid,
        _ => ErrorKind::Device,
    };
    Error::caused(kind, what, error)
}

/// Mounts, so that root may look into it beside the user; where the host does not allow users that, the
/// user alone.
fn session(point: &Path, pool: Uuid, shared: &Arc<Shared>, takers: usize) -> io::Result<Session<Driver>> {
    let mut config = Config::default();
    config.n_threads = Some(takers);
    config.mount_options = vec![
        MountOption::FSName(host::source_of(pool)),
        MountOption::CUSTOM("subtype=sinter".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        MountOption::NoExec,
    ];
    config.acl = SessionACL::RootAndOwner;
    let driver = || Driver(Arc::clone(shared));
    let session = match Session::new(driver(), point, &config) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            config.acl = SessionACL::Owner;
            Session::new(driver(), point, &config)?
        }
        session => session?,
    };
    // It may be polled by all threads, and lives as long as they do.
    let device = session.as_fd().try_clone_to_owned()?;
    let _ = shared.device.set(device);
    Ok(session)
}
