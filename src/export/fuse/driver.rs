//! The kernel's requests, translated to the file system without a mount.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use fuser::FileHandle;
use fuser::FopenFlags;
use fuser::Generation;
use fuser::INodeNo;
use fuser::InitFlags;
use fuser::KernelConfig;
use fuser::OpenAccMode;
use fuser::OpenFlags;
use fuser::RenameFlags;
use fuser::ReplyAttr;
use fuser::ReplyCreate;
use fuser::ReplyData;
use fuser::ReplyDirectory;
use fuser::ReplyEmpty;
use fuser::ReplyEntry;
use fuser::ReplyLseek;
use fuser::ReplyOpen;
use fuser::ReplyStatfs;
use fuser::ReplyWrite;
use fuser::Request;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::filesystem::Attributes;
use super::filesystem::FileKind;
use super::filesystem::FileSystem;
use super::inodes::Inode;
use super::open::OpenFile;
use super::open::Zeroing;
use super::shared::Begun;
use super::shared::Job;
use super::shared::Shared;
use super::shared::errno;
use super::shared::with_buffer;
use super::statistics::Operation;
use crate::units::BLOCK_BYTES;
use crate::units::ByteCount;

/// Most bytes of one read or write.
const TRANSFER_BYTES_MAX: u32 = 1 << 20;

/// Larger writes take long enough that those before them are not kept waiting.
const SMALL_WRITE_BYTES: usize = 64 << 10;

/// Requests that the kernel sends without waiting for the ones before: asynchronous and read ahead.
const BACKGROUND_MAX: u16 = 128;

/// `st_blocks` counts in these.
const SECTOR: u64 = 512;

/// How long the kernel believes names and attributes: not at all, so that files come, go and grow at once.
const VALID: Duration = Duration::ZERO;

const BLOCK: u32 = BLOCK_BYTES as u32;

fn inode(number: INodeNo) -> Inode {
    Inode(number.0)
}

fn attributes_of(attributes: &Attributes) -> fuser::FileAttr {
    let time = |since: Duration| UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH);
    let (kind, links) = match attributes.kind {
        FileKind::Directory => (fuser::FileType::Directory, 2),
        FileKind::File => (fuser::FileType::RegularFile, 1),
    };
    fuser::FileAttr {
        ino: INodeNo(attributes.inode.0),
        size: attributes.size.0,
        blocks: attributes.used.0.div_ceil(SECTOR),
        atime: time(attributes.modified),
        mtime: time(attributes.modified),
        ctime: time(attributes.modified),
        crtime: time(attributes.created),
        kind,
        perm: attributes.mode,
        nlink: links,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}

/// What the kernel talks to.
pub(super) struct Driver(pub(super) Arc<Shared>);

impl Driver {
    fn metadata<T>(
        &self,
        act: impl FnOnce(&FileSystem) -> Result<T, Errno>,
        reply: impl FnOnce(Result<T, fuser::Errno>),
    ) {
        let begun = self.0.begin(Operation::Metadata);
        let result = act(&self.0.files);
        let moved = result.as_ref().map(|_| 0).map_err(|error| *error);
        reply(result.map_err(errno));
        self.0.end(begun, moved);
        self.0.settle();
    }

    fn refuse(&self, parent: INodeNo, reply: impl FnOnce(fuser::Errno)) {
        self.metadata(
            |files| Err::<(), Errno>(files.refusal(inode(parent))),
            |result| {
                if let Err(error) = result {
                    reply(error);
                }
            },
        );
    }

    /// Begins what may have to wait on a file.
    fn job<R>(
        &self,
        operation: Operation,
        handle: FileHandle,
        reply: R,
        refuse: fn(R, fuser::Errno),
        job: impl FnOnce(Begun, Arc<OpenFile>, R) -> Result<Job, (Begun, R, Errno)>,
    ) {
        let begun = self.0.begin(operation);
        let made = match self.0.files.file(handle.0) {
            Ok(file) => job(begun, file, reply),
            Err(error) => Err((begun, reply, error)),
        };
        match made {
            Ok(job) => self.0.wait(job),
            Err((begun, reply, error)) => {
                refuse(reply, errno(error));
                self.0.end(begun, Err(error));
            }
        }
        self.0.settle();
    }
}

impl fuser::Filesystem for Driver {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What an older kernel does not know costs speed, or mapping files into memory, and no more.
        for capability in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_write(TRANSFER_BYTES_MAX);
        if let Err(most) = config.set_max_readahead(TRANSFER_BYTES_MAX) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.metadata(
            |files| files.look_up(inode(parent), name),
            |result| match result {
                Ok(found) => reply.entry(&VALID, &attributes_of(&found), Generation(0)),
                Err(error) => reply.error(error),
            },
        );
    }

    fn forget(&self, _request: &Request, number: INodeNo, lookups: u64) {
        self.0.files.forget(inode(number), lookups);
        self.0.settle();
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.metadata(
            |files| files.attributes(inode(number)),
            |result| match result {
                Ok(found) => reply.attr(&VALID, &attributes_of(&found)),
                Err(error) => reply.error(error),
            },
        );
    }

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<fuser::TimeOrNow>,
        mtime: Option<fuser::TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let others = mode.is_some() || uid.is_some() || gid.is_some();
        // Truncating sets the times, too; alone they cannot be set.
        let times = size.is_none() && (atime.is_some() || mtime.is_some());
        let set = |files: &FileSystem| match size {
            _ if others || times => Err(files.refusal(inode(number))),
            Some(size) => files.set_size(inode(number), ByteCount(size)),
            None => files.attributes(inode(number)),
        };
        self.metadata(set, |result| match result {
            Ok(found) => reply.attr(&VALID, &attributes_of(&found)),
            Err(error) => reply.error(error),
        });
    }

    fn mknod(
        &self,
        _request: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _device: u32,
        reply: ReplyEntry,
    ) {
        self.refuse(parent, |error| reply.error(error));
    }

    fn mkdir(
        &self,
        _request: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.refuse(parent, |error| reply.error(error));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.refuse(parent, |error| reply.error(error));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.refuse(parent, |error| reply.error(error));
    }

    fn symlink(&self, _request: &Request, parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        self.refuse(parent, |error| reply.error(error));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _to: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.refuse(parent, |error| reply.error(error));
    }

    fn link(&self, _request: &Request, _number: INodeNo, parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        self.refuse(parent, |error| reply.error(error));
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.refuse(parent, |error| reply.error(error));
    }

    fn open(&self, _request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writable = flags.acc_mode() != OpenAccMode::O_RDONLY;
        self.metadata(
            |files| files.open(inode(number), writable),
            |result| match result {
                Ok(handle) => reply.opened(
                    FileHandle(handle),
                    FopenFlags::FOPEN_DIRECT_IO
                        | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
                        | FopenFlags::FOPEN_NOFLUSH,
                ),
                Err(error) => reply.error(error),
            },
        );
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<fuser::LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let close = |files: &FileSystem| {
            files.close(handle.0);
            Ok(())
        };
        self.metadata(close, |_| reply.ok());
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<fuser::LockOwner>,
        reply: ReplyData,
    ) {
        let begun = self.0.begin(Operation::Read);
        let len = size.min(TRANSFER_BYTES_MAX) as usize;
        let file = match self.0.files.file(handle.0) {
            Ok(file) => file,
            Err(error) => {
                reply.error(errno(error));
                return self.0.end(begun, Err(error));
            }
        };
        let left = with_buffer(len, |buffer| match file.try_read(offset, buffer) {
            Ok(None) => Some((begun, reply)),
            Ok(Some(bytes)) => {
                reply.data(&buffer[..bytes]);
                self.0.end(begun, Ok(bytes));
                None
            }
            Err(error) => {
                reply.error(errno(error));
                self.0.end(begun, Err(error));
                None
            }
        });
        if let Some((begun, reply)) = left {
            self.0.wait(Job::Read { begun, file, offset, len, reply });
        }
        self.0.settle();
    }

    fn write(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: fuser::WriteFlags,
        _flags: OpenFlags,
        _owner: Option<fuser::LockOwner>,
        reply: ReplyWrite,
    ) {
        let begun = self.0.begin(Operation::Write);
        if data.len() > SMALL_WRITE_BYTES {
            self.0.finish_group();
        }
        let file = self.0.files.file(handle.0);
        let written = file.and_then(|file| file.write(offset, data).map(|done| (file, done)));
        match written {
            Ok((file, (bytes, commit))) => {
                self.0.add_to_group(begun, file, commit, bytes, reply);
            }
            Err(error) => {
                reply.error(errno(error));
                self.0.end(begun, Err(error));
            }
        }
        self.0.settle();
    }

    fn fsync(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.job(Operation::Flush, handle, reply, ReplyEmpty::error, |begun, file, reply| {
            Ok(Job::Sync { begun, file, reply })
        });
    }

    fn fallocate(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let operation =
            if mode.contains(FallocateFlags::PUNCH_HOLE) { Operation::Trim } else { Operation::WriteZeroes };
        let keep_size = FallocateFlags::KEEP_SIZE;
        // To set room aside for a volume that is thin would promise what cannot be kept.
        let zeroing = if mode == FallocateFlags::PUNCH_HOLE | keep_size
            || mode == FallocateFlags::ZERO_RANGE | keep_size
        {
            Ok(Zeroing::KeepSize)
        } else if mode == FallocateFlags::ZERO_RANGE {
            Ok(Zeroing::Whole)
        } else {
            Err(Errno::OPNOTSUPP)
        };
        self.job(operation, handle, reply, ReplyEmpty::error, |begun, file, reply| match zeroing {
            Ok(zeroing) => Ok(Job::Zero { begun, file, offset, len: ByteCount(length), zeroing, reply }),
            Err(error) => Err((begun, reply, error)),
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        self.job(Operation::Seek, handle, reply, ReplyLseek::error, |begun, file, reply| {
            match (u64::try_from(offset), whence) {
                (Ok(offset), SEEK_DATA) => Ok(Job::Seek { begun, file, offset, hole: false, reply }),
                (Ok(offset), SEEK_HOLE) => Ok(Job::Seek { begun, file, offset, hole: true, reply }),
                (Err(_), SEEK_DATA | SEEK_HOLE) => Err((begun, reply, Errno::NXIO)),
                _ => Err((begun, reply, Errno::INVAL)),
            }
        });
    }

    fn opendir(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.metadata(
            |files| files.open_directory(inode(number)),
            |result| match result {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
                Err(error) => reply.error(error),
            },
        );
    }

    fn readdir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.metadata(
            |files| files.entries(handle.0, offset == 0),
            |result| match result {
                Ok(entries) => {
                    let first = usize::try_from(offset).unwrap_or(usize::MAX);
                    for (entry, next) in entries.iter().skip(first).zip(offset + 1..) {
                        let kind = match entry.kind {
                            FileKind::Directory => fuser::FileType::Directory,
                            FileKind::File => fuser::FileType::RegularFile,
                        };
                        if reply.add(INodeNo(entry.inode.0), next, kind, &entry.name) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(error),
            },
        );
    }

    fn releasedir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let close = |files: &FileSystem| {
            files.close_directory(handle.0);
            Ok(())
        };
        self.metadata(close, |_| reply.ok());
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        // A management verb is durable before its file appears.
        self.metadata(|_| Ok(()), |_| reply.ok());
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        self.metadata(
            |files| Ok(files.room()),
            |result| {
                if let Ok(room) = result {
                    let blocks = |bytes: ByteCount| bytes.0 / u64::from(BLOCK);
                    let free = blocks(room.free);
                    reply.statfs(blocks(room.capacity), free, free, room.files, 0, BLOCK, 255, BLOCK);
                }
            },
        );
    }
}
