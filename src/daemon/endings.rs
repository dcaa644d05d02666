//! How the pool's last opening on this machine ended, and so whether something that was acknowledged may be gone.
//!
//! A process that dies loses nothing that was acknowledged; a machine that does may. So a file beside the pool says
//! under which boot of the machine the pool was opened, or that it was closed, and from which checkpoint. Where it says
//! nothing, or something else than what the pool shows, a loss is what has to be assumed.

use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::daemon::system::boot_id;
use crate::store::OpenReport;
use crate::store::Store;
use crate::units::CheckpointNumber;

const FILE: &str = "ending.json";

/// What the file says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ending {
    /// The pool's id.
    pool: String,
    /// The boot under which it was opened; none once it was closed.
    boot: Option<String>,
    /// Its newest checkpoint then.
    checkpoint: CheckpointNumber,
    /// Something that was acknowledged may have been missing already, and no client had been told.
    lacks: bool,
}

impl Ending {
    /// Whether a pool that is found like this holds all that was acknowledged.
    fn lost_nothing(&self, pool: &str, boot: Option<&str>, found: CheckpointNumber) -> bool {
        self.pool == pool
            && !self.lacks
            && match self.boot.as_deref() {
                None => found == self.checkpoint,
                Some(opened) => boot == Some(opened) && found >= self.checkpoint,
            }
    }
}

/// The file of one opening.
pub(super) struct Endings {
    path: PathBuf,
    boot: Option<String>,
}

impl Endings {
    /// Notes that the pool is open, and tells the store where it may lack something. A pool without a report was just
    /// made.
    pub(super) fn begin(directory: &Path, store: &Store, report: Option<&OpenReport>) -> Endings {
        let path = directory.join(FILE);
        let boot = boot_id();
        if let Some(report) = report {
            let pool = store.pool_id().to_string();
            let ending = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            let whole =
                ending.is_some_and(|it: Ending| it.lost_nothing(&pool, boot.as_deref(), report.checkpoint));
            store.set_may_lack(!whole || !report.damage.is_empty());
        }
        let endings = Endings { path, boot };
        endings.opened(store);
        endings
    }

    /// Notes that the pool is open, and whether it may lack something that clients have not been told of. Where they are
    /// told later, by another node, that is noted when the pool is closed; without that the worst is assumed again.
    pub(super) fn opened(&self, store: &Store) {
        self.tell(match &self.boot {
            Some(boot) => self.write(store, Some(boot.clone())),
            // A boot that nobody can name is no other's.
            None => remove(&self.path),
        });
    }

    /// Notes that a write or a sync has failed: what was acknowledged before it need not be on the device, though the
    /// machine goes on, and the next opening may not find it.
    pub(super) fn failed(&self) {
        self.tell(remove(&self.path));
    }

    /// Notes that the pool was closed: everything is durable.
    pub(super) fn closed(&self, store: &Store) {
        self.tell(self.write(store, None));
    }

    /// What the file said before does not fit what the next start finds: the worst is assumed then.
    fn tell(&self, written: std::io::Result<()>) {
        if let Err(error) = written {
            tracing::warn!("{} was not written: {error}", self.path.display());
        }
    }

    fn write(&self, store: &Store, boot: Option<String>) -> std::io::Result<()> {
        let ending = Ending {
            pool: store.pool_id().to_string(),
            boot,
            checkpoint: store.checkpoint_number(),
            lacks: store.may_lack(),
        };
        let new = self.path.with_extension("json.new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(&ending)?)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        std::fs::File::open(directory)?.sync_all()
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::daemon::environment;
    use crate::device::Device;
    use crate::device::memory::MemoryDevice;
    use crate::store::StoreOptions;
    use crate::units::ByteCount;

    use super::*;

    #[test]
    fn p7_after_a_failed_device_a_loss_is_assumed_under_the_same_boot_too() {
        let directory = std::env::temp_dir().join(format!("sinter-endings-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let device: Arc<dyn Device> = Arc::new(MemoryDevice::new("pool", ByteCount(64 << 20)));
        let devices = || vec![Arc::clone(&device)];
        drop(Store::create(devices(), StoreOptions::default(), environment()).unwrap());
        let open = |fails: bool| {
            let (store, report) = Store::open(devices(), StoreOptions::default(), environment()).unwrap();
            let lacks = {
                let _ = Endings::begin(&directory, &store, Some(&report));
                store.may_lack()
            };
            // Clients are told of it.
            store.set_may_lack(false);
            let endings = Endings::begin(&directory, &store, None);
            if fails {
                endings.failed();
            }
            lacks
        };
        assert!(open(false), "nothing is known of what was before");
        assert_eq!(open(true), boot_id().is_none());
        assert!(open(false), "its device had failed");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn only_the_same_boot_or_an_untouched_pool_lost_nothing() {
        let at = CheckpointNumber;
        let ending = |boot: Option<&str>| Ending {
            pool: "p".to_owned(),
            boot: boot.map(str::to_owned),
            checkpoint: at(7),
            lacks: false,
        };
        let opened = ending(Some("b"));
        assert!(opened.lost_nothing("p", Some("b"), at(7)) && opened.lost_nothing("p", Some("b"), at(9)));
        assert!(!opened.lost_nothing("p", Some("other"), at(9)) && !opened.lost_nothing("p", None, at(9)));
        assert!(!opened.lost_nothing("q", Some("b"), at(9)), "another pool");
        assert!(!opened.lost_nothing("p", Some("b"), at(6)), "an older copy of it");
        let lacking = Ending { lacks: true, ..ending(None) };
        assert!(!lacking.lost_nothing("p", Some("b"), at(7)), "nobody was told");
        let closed = ending(None);
        assert!(closed.lost_nothing("p", Some("other"), at(7)) && closed.lost_nothing("p", None, at(7)));
        assert!(!closed.lost_nothing("p", Some("b"), at(8)), "it was opened elsewhere since");
    }
}
