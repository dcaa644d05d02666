//! Mounts.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

/// `POST /api/v1/mounts`.
#[derive(Clone, Debug, Serialize)]
pub struct CreateMount {
    /// The absolute path of an empty directory on the array's machine.
    pub mountpoint: String,
}

/// A directory in which volumes and snapshots are files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mount {
    /// The directory, as an absolute path.
    pub mountpoint: String,
    /// Whether it can be seen, or waits for its last user after it was taken away.
    pub state: MountState,
    /// Files that are open in it.
    pub open_files: u64,
}

/// How far a mount has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MountState {
    /// It is there.
    Mounted,
    /// It was taken away while files were open in it: it ends with the last of them.
    Detached,
}

/// `GET /api/v1/mounts`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MountList {
    /// All mounts, in the order of their paths.
    pub mounts: Vec<Mount>,
    /// How many there are.
    pub total: u64,
    /// Where the next page begins; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
