//! Finding and opening the pool's devices.
//!
//! Every device is opened, locked and looked at before anything is written anywhere. What is not
//! blank is only taken over by `--force`; a pool is only opened with all of its devices.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::daemon::config::Config;
use crate::daemon::config::DeviceSpec;
use crate::daemon::failure::ExitStatus;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::quantity::show_size;
use crate::device::Device;
use crate::device::file::FileDevice;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::store;
use crate::store::DeviceContent;
use crate::store::Environment;
use crate::store::OpenReport;
use crate::store::PoolIdentity;
use crate::store::Store;
use crate::store::StoreOptions;
use crate::units::ByteCount;
use crate::units::Uuid;

/// The pool's file in the data directory, where no device is named.
const DEFAULT_FILE: &str = "pool.sinter";

/// Size of that file when it is made; it takes space as it is written.
const DEFAULT_FILE_BYTES: ByteCount = ByteCount(16 << 30);

/// Whether devices that hold something else may be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherContent {
    /// The start is refused.
    Refuse,
    /// All they hold is lost: `--force`.
    Overwrite,
}

/// An open pool.
pub struct OpenPool {
    /// The engine on it.
    pub store: Arc<Store>,
    /// What opening found; `None` where the pool was just made.
    pub report: Option<OpenReport>,
    /// The paths of its devices.
    pub paths: Vec<PathBuf>,
}

/// Where everything is kept unless it is said otherwise: `$XDG_DATA_HOME/sinter`, else
/// `~/.local/share/sinter`.
///
/// # Errors
/// `Invalid` where neither variable is set.
pub fn default_data_directory(environment: impl Fn(&str) -> Option<String>) -> Outcome<PathBuf> {
    let base =
        environment("XDG_DATA_HOME").filter(|path| path.starts_with('/')).map(PathBuf::from).or_else(|| {
            environment("HOME")
                .filter(|home| !home.is_empty())
                .map(|home| Path::new(&home).join(".local/share"))
        });
    base.map(|base| base.join("sinter")).ok_or_else(|| {
        Failure::new(ErrorKind::Invalid, "there is no place for data: neither XDG_DATA_HOME nor HOME is set")
            .hint("say --data-dir DIR")
    })
}

/// Makes the data directory if it is missing, for its owner only.
///
/// # Errors
/// What the operating system said.
pub fn make_data_directory(path: &Path) -> Outcome {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull => ErrorKind::NoSpace,
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::AlreadyExists => ErrorKind::Invalid,
            _ => ErrorKind::Device,
        };
        Failure::from(Error::caused(kind, format!("making the data directory {}", path.display()), error))
            .hint("say --data-dir DIR to keep data elsewhere")
    })
}

/// The devices that the configuration means.
#[must_use]
pub fn device_specs(config: &Config, data_directory: &Path) -> Vec<DeviceSpec> {
    if config.devices.is_empty() {
        vec![DeviceSpec { path: data_directory.join(DEFAULT_FILE), size: Some(DEFAULT_FILE_BYTES) }]
    } else {
        config.devices.clone()
    }
}

/// Opens the pool on the devices, or makes one where all of them are blank.
///
/// # Errors
/// `NotFound` for a missing device; `Busy` for one that is in use, holds something else or belongs to
/// another pool, and for a partial list; `Corrupt` for damage; `Invalid` for a bad geometry.
pub fn open(
    specs: &[DeviceSpec],
    other_content: OtherContent,
    options: StoreOptions,
    environment: Environment,
) -> Outcome<OpenPool> {
    open_as(specs, other_content, options, environment, None, false)
}

/// As `open`; a pool that is made gets the identity that another node's has, and it is made even where there is one
/// where that is to be given up.
///
/// # Errors
/// As `open`.
pub fn open_as(
    specs: &[DeviceSpec],
    other_content: OtherContent,
    options: StoreOptions,
    environment: Environment,
    identity: Option<&PoolIdentity>,
    anew: bool,
) -> Outcome<OpenPool> {
    let found = find(specs)?;
    let paths = specs.iter().map(|spec| spec.path.clone()).collect();
    if let Some(devices) = found.complete_pool().filter(|_| !anew) {
        let (store, report) = Store::open(devices, options, environment).map_err(open_hint)?;
        if let Some(identity) = identity.filter(|identity| identity.pool != store.pool_id()) {
            let what = format!(
                "the devices hold pool {}, and this node's array is {}",
                store.pool_id(),
                identity.pool
            );
            return Err(Failure::new(ErrorKind::Busy, what).hint(
                "give the devices of the array, or `sinter cluster forget` lets this node stand alone",
            ));
        }
        return Ok(OpenPool { store: Arc::new(store), report: Some(report), paths });
    }
    if other_content == OtherContent::Refuse {
        found.refuse_unless_blank("give other devices, or say --force: then all they hold is lost")?;
    }
    let (devices, made) = found.make_missing(specs)?;
    let geometry_hint = geometry_hint(&options, specs, &made);
    match Store::create_as(devices, options, environment, identity) {
        Ok(store) => Ok(OpenPool { store: Arc::new(store), report: None, paths }),
        Err(error) => {
            discard(&made);
            let is_geometry = error.kind() == ErrorKind::Invalid;
            let failure = Failure::from(error);
            Err(if is_geometry { failure.hint(geometry_hint) } else { failure })
        }
    }
}

/// Refuses devices that hold anything.
///
/// # Errors
/// As `open`, with this hint.
pub fn check_blank(specs: &[DeviceSpec], hint: &str) -> Outcome {
    let found = find(specs)?;
    if found.complete_pool().is_some() {
        let what = format!("there is a pool on {} already", found.names());
        return Err(Failure::new(ErrorKind::Busy, what).hint(hint.to_owned()));
    }
    found.refuse_unless_blank(hint)
}

/// Opens the devices of an existing pool without opening the pool, for `check`.
///
/// # Errors
/// As `open`; `NotFound` where there is no pool.
pub fn open_devices(specs: &[DeviceSpec]) -> Outcome<Devices> {
    let specs: Vec<DeviceSpec> =
        specs.iter().map(|spec| DeviceSpec { path: spec.path.clone(), size: None }).collect();
    // Nothing is made here, so the hint is not how to make a device.
    let found = find(&specs).map_err(|failure| match failure.status() {
        ExitStatus::NotFound => failure.hint("--data-dir DIR or --device PATH says where the pool is"),
        _ => failure,
    })?;
    if let Some(devices) = found.complete_pool() {
        return Ok(devices);
    }
    found.refuse_unless_blank("--data-dir DIR or --device PATH says where the pool is")?;
    Err(Failure::new(ErrorKind::NotFound, format!("there is no pool on {}", found.names()))
        .hint("`sinter serve` makes one"))
}

type Devices = Vec<Arc<dyn Device>>;

/// The devices as they were found.
struct Found {
    present: Vec<Candidate>,
    /// Files to be made.
    missing: Vec<PathBuf>,
}

struct Candidate {
    device: Arc<dyn Device>,
    content: DeviceContent,
}

/// Opens and looks at every device that is there.
fn find(specs: &[DeviceSpec]) -> Outcome<Found> {
    let mut found = Found { present: Vec::new(), missing: Vec::new() };
    let twice = |index: usize| specs.iter().take(index).any(|other| other.path == specs[index].path);
    if let Some(index) = (0..specs.len()).find(|index| twice(*index)) {
        let what = format!("the device {} is given twice", specs[index].path.display());
        return Err(Failure::new(ErrorKind::Invalid, what));
    }
    for spec in specs {
        match FileDevice::open(&spec.path) {
            Ok(device) => {
                if let Some(size) = spec.size.filter(|size| *size != device.len()) {
                    let (name, len) = (device.name(), show_size(device.len()));
                    tracing::warn!("{name} has {len}, not {}; its size is left as it is", show_size(size));
                }
                let content = store::probe(&device).map_err(open_hint)?;
                found.present.push(Candidate { device: Arc::new(device), content });
            }
            Err(error) if error.kind() == ErrorKind::NotFound && spec.size.is_some() => {
                found.missing.push(spec.path.clone());
            }
            Err(error) => return Err(device_hint(error, &spec.path)),
        }
    }
    if let (Some(missing), true) = (found.missing.first(), found.pools().next().is_some()) {
        return Err(Failure::new(
            ErrorKind::NotFound,
            format!("the device {} is missing", missing.display()),
        )
        .hint(
            "the other devices hold a pool: bring this one back, or leave it out if it never was part of it",
        ));
    }
    Ok(found)
}

impl Found {
    /// Each device of a pool, with the pool's id, its own id, and those of all.
    fn pools(&self) -> impl Iterator<Item = (&Candidate, Uuid, Uuid, u32, &[Uuid])> {
        self.present.iter().filter_map(|candidate| match &candidate.content {
            DeviceContent::Pool { pool, device, index, devices } => {
                Some((candidate, *pool, *device, *index, devices.as_slice()))
            }
            DeviceContent::Blank | DeviceContent::Foreign | DeviceContent::OtherVersion(_) => None,
        })
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.present.iter().map(|candidate| candidate.device.name()).collect();
        names.join(", ")
    }

    /// The devices in their order, if they are exactly those of one pool.
    fn complete_pool(&self) -> Option<Devices> {
        let (_, pool, _, _, devices) = self.pools().next()?;
        let mut by_index = BTreeMap::new();
        for (candidate, of, device, index, _) in self.pools() {
            let place = usize::try_from(index).ok()?;
            if of != pool || devices.get(place) != Some(&device) {
                return None;
            }
            by_index.insert(index, candidate.device.clone());
        }
        let complete =
            self.missing.is_empty() && by_index.len() == devices.len() && self.present.len() == devices.len();
        complete.then(|| by_index.into_values().collect())
    }

    /// Why no new pool may be made on these devices, if any of them is not blank. `foreign_hint` is what helps
    /// where one holds something else.
    fn refuse_unless_blank(&self, foreign_hint: &str) -> Outcome {
        for candidate in &self.present {
            if let DeviceContent::OtherVersion(version) = candidate.content {
                let what = store::wrong_version(&*candidate.device, version);
                let hint =
                    "export its volumes with the version of sinter that wrote it, and import them here";
                return Err(Failure::new(ErrorKind::Busy, what).hint(hint));
            }
        }
        let foreign = self.present.iter().find(|candidate| candidate.content == DeviceContent::Foreign);
        if let Some(candidate) = foreign {
            let what = format!("{} holds something that is not Sinter's", candidate.device.name());
            return Err(Failure::new(ErrorKind::Busy, what).hint(foreign_hint));
        }
        let Some((first, pool, _, _, devices)) = self.pools().next() else { return Ok(()) };
        let first = first.device.name();
        if let Some((other, other_pool, ..)) = self.pools().find(|(_, other, ..)| *other != pool) {
            let what =
                format!("{first} belongs to pool {pool}, but {} to pool {other_pool}", other.device.name());
            return Err(Failure::new(ErrorKind::Busy, what).hint("give the devices of one pool"));
        }
        if let Some(blank) = self.present.iter().find(|candidate| candidate.content == DeviceContent::Blank) {
            let what = format!("{first} belongs to pool {pool}, but {} is blank", blank.device.name());
            return Err(Failure::new(ErrorKind::Busy, what).hint("give the pool's devices and no others"));
        }
        let (given, all) = (self.pools().count(), devices.len());
        let what = format!("pool {pool} has {all} devices, and {given} of them are given: {}", self.names());
        Err(Failure::new(ErrorKind::Busy, what).hint("give all of its devices, as at every start"))
    }

    /// All devices in the order given, the missing ones made; and which were made.
    fn make_missing(self, specs: &[DeviceSpec]) -> Outcome<(Devices, Vec<PathBuf>)> {
        let mut present = self.present.into_iter();
        let mut devices: Devices = Vec::with_capacity(specs.len());
        let mut made = Vec::new();
        for spec in specs {
            let device = match spec.size.filter(|_| self.missing.contains(&spec.path)) {
                None => present.next().map(|candidate| candidate.device),
                Some(size) => match FileDevice::create(&spec.path, size) {
                    Ok(device) => {
                        made.push(spec.path.clone());
                        Some(Arc::new(device) as Arc<dyn Device>)
                    }
                    Err(error) => {
                        discard(&made);
                        return Err(device_hint(error, &spec.path));
                    }
                },
            };
            devices.push(device.expect("a device that is not missing is present"));
        }
        Ok((devices, made))
    }
}

/// Removes files that were made for a pool that could not be made.
fn discard(made: &[PathBuf]) {
    for path in made {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!("removing {}, which was made in vain: {error}", path.display());
        }
    }
}

/// What helps where no pool can be made of devices of these sizes.
fn geometry_hint(options: &StoreOptions, specs: &[DeviceSpec], made: &[PathBuf]) -> String {
    if options.segment_bytes.0 != 0 {
        return "pool.segment_size = \"auto\" chooses one by the pool's size".to_owned();
    }
    match specs.iter().find(|spec| !made.contains(&spec.path)) {
        Some(there) if there.path.starts_with("/dev") => "give a larger device, or more of them".to_owned(),
        Some(there) => {
            let path = there.path.display();
            format!("remove {path}; then --device {path},size=16GiB makes a file that is large enough")
        }
        None => "--device PATH,size=16GiB makes a file that is large enough".to_owned(),
    }
}

fn device_hint(error: Error, path: &Path) -> Failure {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let hint = match error.kind() {
        ErrorKind::NotFound if path.starts_with("/dev") => {
            "`lsblk` lists the block devices there are".to_owned()
        }
        ErrorKind::NotFound if directory.is_some_and(|directory| !directory.is_dir()) => {
            "its directory is missing: make that first, or give another path".to_owned()
        }
        ErrorKind::NotFound => format!("--device {},size=16GiB makes a file of that size", path.display()),
        ErrorKind::Busy => "is another `sinter serve` running? `sinter status` asks it".to_owned(),
        ErrorKind::NoSpace => "free some space, or give --device PATH elsewhere".to_owned(),
        ErrorKind::Invalid => format!(
            "a device is a regular file or a block device: `lsblk` lists those, `ls -l {}` shows what this is",
            path.display()
        ),
        _ => format!("`ls -l {}` shows who may read and write it", path.display()),
    };
    Failure::from(error).hint(hint)
}

fn open_hint(error: Error) -> Failure {
    let hint = match error.kind() {
        ErrorKind::Corrupt => {
            "`sinter check` shows all that is damaged; `sinter serve --accept-loss` opens what is intact"
        }
        ErrorKind::NoSpace => "give the host more room or memory, or memory.index a smaller part of it",
        _ => {
            "give the pool's devices as they were at the last start: `sinter check` looks at them and changes nothing"
        }
    };
    Failure::from(error).hint(hint)
}
