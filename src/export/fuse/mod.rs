//! The FUSE export: `volumes/NAME` is a volume as a file to read and write, `snapshots/VOLUME/SNAP` a
//! snapshot to read. Files come and go with what they show, and follow a resize.
//!
//! `filesystem` is the whole of it without a mount: names, numbers, attributes, files, and one errno for
//! each kind of error. `driver` translates the kernel's requests to it, with what
//! its threads have in common in `shared`; `mount` puts it into a directory.
//!
//! A few threads take requests from the kernel and execute what needs no waiting. Small writes that
//! arrive together are made safe with one call and then answered (`group`). What has to wait (cold
//! reads, fsync, punched holes) goes to helpers, unless nothing else is there to do: a hand-over costs
//! more than a small request.
//!
//! Promised: a write that was answered survives the death of the process, and after fsync the loss of
//! power; every read and write goes to the array itself, never to the page cache (but for a file that
//! is mapped into memory), so NBD and FUSE see each other's writes at once; memory for requests is a
//! buffer of at most 1 MiB for each thread.
//!
//! Never: nothing is made, renamed, resized or removed through a mount; it knows neither where volumes
//! come from nor how they are kept, only `Catalog` and `BlockService`.

mod catalog;
mod driver;
mod errors;
mod filesystem;
mod group;
pub mod host;
mod inodes;
mod mount;
mod open;
mod shared;
mod statistics;
mod waiting;

pub use catalog::Catalog;
pub use catalog::FileId;
pub use catalog::FileInfo;
pub use catalog::Room;
pub use errors::errno_of;
pub use filesystem::Attributes;
pub use filesystem::DirectoryEntry;
pub use filesystem::FileKind;
pub use filesystem::FileSystem;
pub use inodes::Inode;
pub use mount::Mount;
pub use mount::check_mount_point;
pub use open::Directory;
pub use open::OpenFile;
pub use open::Zeroing;
pub use statistics::FuseStatistics;
pub use statistics::Operation;
