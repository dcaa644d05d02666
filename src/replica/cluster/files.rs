//! What is kept of a node in its directory, beside its identity and the log of the consensus group.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// What is kept of a node beside its identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct NodeFile {
    pub(super) name: String,
    pub(super) listen: SocketAddr,
    /// What the pool is made with, in base64; a witness has none.
    pub(super) pool: Option<String>,
    /// The pool has not been made yet: what the devices hold is given up.
    #[serde(default)]
    pub(super) pool_is_to_be_made: bool,
    /// The consensus group's file was made: where it is missing, it was lost, and what this node voted for with it.
    #[serde(default)]
    pub(super) group_is_made: bool,
}

pub(super) fn node_file(directory: &Path) -> PathBuf {
    directory.join("node.json")
}

pub(super) fn read_node_file(directory: &Path) -> Result<NodeFile> {
    let path = node_file(directory);
    let failed = |error: std::io::Error| {
        Error::caused(ErrorKind::Device, format!("reading {}", path.display()), error)
    };
    let text = std::fs::read(&path).map_err(failed)?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::caused(ErrorKind::Corrupt, format!("reading {}", path.display()), error))
}

pub(super) fn write_node_file(directory: &Path, file: &NodeFile) -> Result<()> {
    let path = node_file(directory);
    let failed = |error: std::io::Error| {
        Error::caused(ErrorKind::Device, format!("writing {}", path.display()), error)
    };
    let text = serde_json::to_vec_pretty(file)
        .map_err(|error| Error::caused(ErrorKind::Invalid, format!("writing {}", path.display()), error))?;
    std::fs::create_dir_all(directory).map_err(failed)?;
    let new = path.with_extension("json.new");
    let mut out = std::fs::File::create(&new).map_err(failed)?;
    out.write_all(&text).and_then(|()| out.sync_all()).map_err(failed)?;
    std::fs::rename(&new, &path).map_err(failed)
}

pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::caused(ErrorKind::Device, format!("removing {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
