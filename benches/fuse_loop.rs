//! A FUSE file without anything behind it: what the kernel, `fuser` and the client cost here.
//!
//! `cargo bench --bench fuse_loop -- MOUNTPOINT [SIZE_MIB]` shows MOUNTPOINT/volume until standard input
//! ends: reads give whatever lies in a buffer, writes are dropped. Nobody who answers through `fuser` can
//! be faster. Without a mountpoint it does nothing (so that `cargo bench` passes over it).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench, run by hand")]

use std::ffi::OsStr;
use std::io;
use std::io::Read;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use fuser::Errno;
use fuser::FileAttr;
use fuser::FileHandle;
use fuser::FileType;
use fuser::Filesystem;
use fuser::FopenFlags;
use fuser::Generation;
use fuser::INodeNo;
use fuser::InitFlags;
use fuser::KernelConfig;
use fuser::LockOwner;
use fuser::OpenFlags;
use fuser::ReplyAttr;
use fuser::ReplyData;
use fuser::ReplyEntry;
use fuser::ReplyOpen;
use fuser::ReplyWrite;
use fuser::Request;
use fuser::Session;
use fuser::WriteFlags;

const TRANSFER_BYTES_MAX: u32 = 1 << 20;
const FILE: INodeNo = INodeNo(2);
const VALID: Duration = Duration::from_secs(60);

struct Nothing {
    size: u64,
    data: Vec<u8>,
}

impl Nothing {
    fn attributes(&self, number: INodeNo) -> FileAttr {
        let (kind, perm, nlink) =
            if number == FILE { (FileType::RegularFile, 0o600, 1) } else { (FileType::Directory, 0o700, 2) };
        FileAttr {
            ino: number,
            size: self.size,
            blocks: self.size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Nothing {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).unwrap();
        config.set_max_write(TRANSFER_BYTES_MAX).unwrap();
        config.set_max_background(128).unwrap();
        Ok(())
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "volume" {
            reply.entry(&VALID, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&VALID, &self.attributes(number));
    }

    fn open(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(1), flags | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&self.data[..self.data.len().min(size as usize)]);
    }

    fn write(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(u32::try_from(data.len()).unwrap());
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with("--")).collect();
    let Some(point) = arguments.first() else { return };
    let size_mib: u64 = arguments.get(1).map_or(4096, |size| size.parse().unwrap());
    let mut config = fuser::Config::default();
    config.n_threads = Some(std::thread::available_parallelism().map_or(1, usize::from) + 1);
    let nothing = Nothing { size: size_mib << 20, data: vec![1; TRANSFER_BYTES_MAX as usize] };
    let session = Session::new(nothing, point, &config).unwrap().spawn().unwrap();
    println!("serving {point}/volume; end of input stops it");
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    session.umount_and_join().unwrap();
}
