//! Where files come from: which volumes and snapshots there are, and how one is opened.

use std::sync::Arc;
use std::time::Duration;

use crate::array::service::BlockService;
use crate::error::Result;
use crate::units::ByteCount;
use crate::units::Uuid;

/// What a file shows. It stays the same when the volume is renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileId {
    /// A volume: to be read and written.
    Volume(Uuid),
    /// A snapshot: to be read.
    Snapshot {
        /// The volume that it was taken of, which may be gone.
        of: Uuid,
        /// The snapshot itself.
        id: Uuid,
    },
}

/// A volume or snapshot as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Which one it is.
    pub id: FileId,
    /// What it is called in its directory: no `/`, neither `.` nor `..`.
    pub name: String,
    /// Size in bytes.
    pub size: ByteCount,
    /// What it holds of that.
    pub used: ByteCount,
    /// Any number that is another one after the content was changed.
    pub stamp: u64,
    /// Since 1970-01-01 00:00:00 UTC.
    pub created: Duration,
    /// When it was last changed by management; since 1970-01-01 00:00:00 UTC.
    pub updated: Duration,
}

/// The room in the pool, for `statfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What data and metadata may fill.
    pub capacity: ByteCount,
    /// What is left of it.
    pub free: ByteCount,
    /// Volumes and snapshots.
    pub files: u64,
}

/// Which volumes and snapshots there are. Asked anew at every look, so that files come and go.
///
/// Nothing here waits for a device.
pub trait Catalog: Send + Sync {
    /// All volumes.
    fn volumes(&self) -> Vec<FileInfo>;

    /// The volume of this name (not of this id).
    ///
    /// # Errors
    /// `NotFound`.
    fn volume(&self, name: &str) -> Result<FileInfo>;

    /// Names of the volumes that have snapshots, each once; the volume itself may be gone.
    fn volumes_with_snapshots(&self) -> Vec<String>;

    /// Whether the volume of this name has snapshots.
    fn has_snapshots(&self, volume: &str) -> bool;

    /// All snapshots of the volume of this name.
    fn snapshots(&self, volume: &str) -> Vec<FileInfo>;

    /// The snapshot of this name (not of this id) of the volume of that name.
    ///
    /// # Errors
    /// `NotFound`.
    fn snapshot(&self, volume: &str, name: &str) -> Result<FileInfo>;

    /// The volume or snapshot with this id.
    ///
    /// # Errors
    /// `NotFound`.
    fn file(&self, id: FileId) -> Result<FileInfo>;

    /// Opens it; it is in use until what is returned here is dropped.
    ///
    /// # Errors
    /// `NotFound`; what else keeps it from being served, such as `NotPrimary`.
    fn open(&self, id: FileId) -> Result<Arc<dyn BlockService>>;

    /// The room in the pool.
    fn room(&self) -> Room;
}
