//! The thread that looks at the array once a minute and keeps what it saw in the data directory, so that
//! forecasts go on after a restart.
//!
//! The file is replaced whole and is of no other use: one that cannot be read is begun anew.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::array::Array;
use crate::array::History;
use crate::daemon::background::Stop;

/// How often the array is looked at.
const INTERVAL: Duration = Duration::from_secs(60);

/// More than the longest history takes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The thread, running.
pub(super) struct Recorder {
    stop: Arc<Stop>,
    thread: std::thread::JoinHandle<()>,
}

impl Recorder {
    /// Goes on with what is kept in `data_directory`.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn start(array: Arc<Array>, data_directory: &Path) -> std::io::Result<Recorder> {
        let path = data_directory.join("history.json");
        if let Some(history) = load(&path) {
            array.set_history(history);
        }
        let stop = Arc::<Stop>::default();
        let until = stop.clone();
        let run = move || {
            loop {
                if array.observe() {
                    save(&path, &array.history());
                }
                if until.is_set() {
                    return;
                }
                until.wait(INTERVAL);
            }
        };
        let thread = std::thread::Builder::new().name("history".to_owned()).spawn(run)?;
        Ok(Recorder { stop, thread })
    }

    /// Looks and saves once more, and ends.
    pub(super) fn stop(self) {
        self.stop.set();
        // A panic has already ended the process (`daemon::abort_on_panic`).
        let _ = self.thread.join();
    }
}

fn load(path: &PathBuf) -> Option<History> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!("{}: {error}; the history begins anew", path.display());
            return None;
        }
    };
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| error.to_string());
    let history = read.and_then(|_| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
    history.inspect_err(|error| tracing::warn!("{}: {error}; the history begins anew", path.display())).ok()
}

fn save(path: &Path, history: &History) {
    let new = path.with_extension("json.new");
    let written = serde_json::to_vec(history).map_err(std::io::Error::other);
    let written = written.and_then(|bytes| write(&new, &bytes)).and_then(|()| fs::rename(&new, path));
    if let Err(error) = written {
        tracing::warn!("{}: {error}", path.display());
    }
}

/// For its owner only, as all that is in the data directory.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)
}
