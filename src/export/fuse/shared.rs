//! What the threads of one mount share: requests from their beginning to their answer, the group of
//! writes, and whether to wait here or to let a helper do it.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Instant;

use fuser::ReplyData;
use fuser::ReplyEmpty;
use fuser::ReplyLseek;
use fuser::ReplyWrite;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::io::Errno;

use super::filesystem::FileSystem;
use super::group::WriteGroup;
use super::open::OpenFile;
use super::open::Zeroing;
use super::statistics::FuseStatistics;
use super::statistics::Operation;
use super::waiting::WaitingQueue;
use crate::array::service::Commit;
use crate::export::clock::now;
use crate::export::latency::Tally;
use crate::units::ByteCount;

/// What the threads of one mount share.
pub(super) struct Shared {
    pub(super) files: FileSystem,
    pub(super) statistics: Arc<FuseStatistics>,
    /// The connection to the kernel, once there is one: asked whether more requests are there.
    pub(super) device: OnceLock<OwnedFd>,
    pub(super) queue: Arc<WaitingQueue<Job>>,
    /// Threads that take requests.
    pub(super) takers: usize,
    /// Those of them that execute what waits.
    waiting: AtomicUsize,
    /// Requests that are being executed or wait for their answer.
    working: AtomicUsize,
    group: WriteGroup<Written>,
}

/// A request that is being executed.
pub(super) struct Begun {
    operation: Operation,
    at: Instant,
}

/// A write that waits for its group.
struct Written {
    begun: Begun,
    bytes: usize,
    reply: ReplyWrite,
}

/// Something that may have to wait for a device.
pub(super) enum Job {
    Read {
        begun: Begun,
        file: Arc<OpenFile>,
        offset: u64,
        len: usize,
        reply: ReplyData,
    },
    Sync {
        begun: Begun,
        file: Arc<OpenFile>,
        reply: ReplyEmpty,
    },
    Zero {
        begun: Begun,
        file: Arc<OpenFile>,
        offset: u64,
        len: ByteCount,
        zeroing: Zeroing,
        reply: ReplyEmpty,
    },
    Seek {
        begun: Begun,
        file: Arc<OpenFile>,
        offset: u64,
        hole: bool,
        reply: ReplyLseek,
    },
}

thread_local! {
    /// What a thread reads into; grows to the largest read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls with a buffer of this length and undefined content.
pub(super) fn with_buffer<T>(len: usize, use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        use_it(&mut buffer[..len])
    })
}

impl Shared {
    pub(super) fn new(
        files: FileSystem,
        statistics: Arc<FuseStatistics>,
        queue: Arc<WaitingQueue<Job>>,
        takers: usize,
    ) -> Shared {
        Shared {
            files,
            statistics,
            device: OnceLock::new(),
            queue,
            takers,
            waiting: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            group: WriteGroup::default(),
        }
    }

    /// Whether no request is being executed, and none has arrived.
    pub(super) fn is_idle(&self) -> bool {
        self.working.load(Ordering::SeqCst) == 0 && !self.more_requests()
    }

    /// A request has been taken.
    pub(super) fn begin(&self, operation: Operation) -> Begun {
        self.working.fetch_add(1, Ordering::SeqCst);
        Begun { operation, at: now() }
    }

    /// Counts a request that was just answered; the bytes that it moved, where it succeeded.
    pub(super) fn end(&self, begun: Begun, moved: Result<usize, Errno>) {
        let mut tally = Tally::default();
        match moved {
            Ok(bytes) => tally.succeeded(bytes as u64),
            Err(_) => tally.failed(),
        }
        self.statistics.operation(begun.operation).count(tally, now().saturating_duration_since(begun.at));
        self.working.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether requests have arrived that nobody has taken.
    fn more_requests(&self) -> bool {
        let Some(device) = self.device.get() else { return false };
        let mut polled = [PollFd::new(device, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&at_once)).is_ok()
            && polled[0].revents().contains(PollFlags::IN)
    }

    /// Called after each request: answers the group, unless more requests are there, which may be writes.
    pub(super) fn settle(&self) {
        if self.group.is_empty() {
            return;
        }
        if self.more_requests() {
            self.group.leave();
        } else {
            self.finish_group();
        }
    }

    /// Adds a write that is done to the group; it is answered with that.
    pub(super) fn add_to_group(
        &self,
        begun: Begun,
        file: Arc<OpenFile>,
        commit: Commit,
        bytes: usize,
        reply: ReplyWrite,
    ) {
        if !self.group.add(file, commit, Written { begun, bytes, reply }) {
            self.finish_group();
        }
    }

    /// Finishes groups that nobody else does, until `stop_watching`.
    pub(super) fn watch(&self) {
        self.group.watch(|| self.finish_group());
    }

    /// Ends `watch`.
    pub(super) fn stop_watching(&self) {
        self.group.close();
    }

    /// Makes all writes safe that are done, and answers them.
    pub(super) fn finish_group(&self) {
        self.group.finish(|Written { begun, bytes, reply }, safe| {
            match safe {
                Ok(()) => reply.written(u32::try_from(bytes).expect("no more than a transfer's bytes")),
                Err(error) => reply.error(errno(error)),
            }
            self.end(begun, safe.map(|()| bytes));
        });
    }

    /// Executes what may have to wait: here if nothing else is there to do, and another thread is left to
    /// take what comes; else a helper does.
    pub(super) fn wait(&self, job: Job) {
        self.finish_group();
        let others = self.waiting.fetch_add(1, Ordering::SeqCst);
        let left = if others + 1 < self.takers && !self.more_requests() {
            Some(job)
        } else {
            self.queue.submit(job)
        };
        if let Some(job) = left {
            self.execute(job);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Executes a job, and answers it.
    pub(super) fn execute(&self, job: Job) {
        match job {
            Job::Read { begun, file, offset, len, reply } => with_buffer(len, |buffer| {
                let read = file.read(offset, buffer);
                match read {
                    Ok(bytes) => reply.data(&buffer[..bytes]),
                    Err(error) => reply.error(errno(error)),
                }
                self.end(begun, read);
            }),
            Job::Sync { begun, file, reply } => self.answer(begun, reply, file.sync(), 0),
            Job::Zero { begun, file, offset, len, zeroing, reply } => {
                let bytes = usize::try_from(len.0).unwrap_or(usize::MAX);
                self.answer(begun, reply, file.zero(offset, len, zeroing), bytes);
            }
            Job::Seek { begun, file, offset, hole, reply } => {
                let found = if hole { file.next_hole(offset) } else { file.next_data(offset) };
                match found.and_then(|found| i64::try_from(found).map_err(|_| Errno::OVERFLOW)) {
                    Ok(found) => reply.offset(found),
                    Err(error) => reply.error(errno(error)),
                }
                self.end(begun, found.map(|_| 0));
            }
        }
    }

    fn answer(&self, begun: Begun, reply: ReplyEmpty, result: Result<(), Errno>, bytes: usize) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
        self.end(begun, result.map(|()| bytes));
    }
}

/// The number as it goes to the kernel.
pub(super) fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}
