//! Writes that are done but not answered yet: made safe together, with one call.
//!
//! A thread that sees more requests arrive leaves the group to whoever takes the last of them. Not all of
//! those come by here (some are refused before they do), so a group that nobody finishes within moments is
//! finished by a watchman.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;

use super::open::OpenFile;
use crate::array::service::Commit;
use crate::sync::Condition;
use crate::sync::Mutex;

/// Most writes in a group; about as many as clients keep in flight.
const WRITES_MAX: usize = 64;

/// How often the watchman looks: a group that he finds twice is overdue.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// How often he finds nothing before he goes to sleep.
const QUIET_LOOKS: u32 = 100;

/// The group that is being gathered. `R` is what answers a write.
pub(super) struct WriteGroup<R> {
    state: Mutex<State<R>>,
    /// Wakes the watchman.
    left: Condition,
    /// Whether he is awake. Goes back to false only under the lock, with an empty group.
    watched: AtomicBool,
}

struct State<R> {
    gathered: Gathered<R>,
    /// How many groups have been taken to be finished.
    finished: u64,
    closed: bool,
}

struct Gathered<R> {
    /// The highest commit, and a file that can acknowledge it.
    highest: Option<(Commit, Arc<OpenFile>)>,
    answers: Vec<R>,
}

impl<R> Default for Gathered<R> {
    fn default() -> Gathered<R> {
        Gathered { highest: None, answers: Vec::new() }
    }
}

impl<R> Default for WriteGroup<R> {
    fn default() -> WriteGroup<R> {
        let state = State { gathered: Gathered::default(), finished: 0, closed: false };
        WriteGroup { state: Mutex::new(state), left: Condition::new(), watched: AtomicBool::new(false) }
    }
}

impl<R> WriteGroup<R> {
    /// Adds a write. False where the group is full: then the caller finishes it.
    pub(super) fn add(&self, file: Arc<OpenFile>, commit: Commit, answer: R) -> bool {
        let mut state = self.state.lock();
        let gathered = &mut state.gathered;
        if gathered.highest.as_ref().is_none_or(|(highest, _)| commit > *highest) {
            gathered.highest = Some((commit, file));
        }
        gathered.answers.push(answer);
        gathered.answers.len() < WRITES_MAX
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().gathered.answers.is_empty()
    }

    /// Makes the writes safe that have been added so far, and has each of them answered.
    pub(super) fn finish(&self, mut answer: impl FnMut(R, Result<(), Errno>)) {
        let mut state = self.state.lock();
        let Gathered { highest, answers } = std::mem::take(&mut state.gathered);
        let Some((commit, file)) = highest else { return };
        state.finished += 1;
        drop(state);
        let safe = file.acknowledge(commit);
        for each in answers {
            answer(each, safe);
        }
    }

    /// The caller has added a write, and leaves it to others to finish the group.
    pub(super) fn leave(&self) {
        if !self.watched.load(Ordering::SeqCst) && !self.watched.swap(true, Ordering::SeqCst) {
            let state = self.state.lock();
            self.left.notify_all();
            drop(state);
        }
    }

    /// The watchman's rounds, until the group is closed: calls `finish` for what is overdue.
    pub(super) fn watch(&self, finish: impl Fn()) {
        let mut quiet = 0;
        let mut state = self.state.lock();
        while !state.closed {
            if !self.watched.load(Ordering::SeqCst) {
                state = self.left.wait(state);
                continue;
            }
            let waits = !state.gathered.answers.is_empty();
            let finished = state.finished;
            state = self.left.wait_for(state, LOOK_EVERY);
            if waits && state.finished == finished {
                drop(state);
                finish();
                state = self.state.lock();
            }
            quiet = if state.gathered.answers.is_empty() && !waits { quiet + 1 } else { 0 };
            if quiet >= QUIET_LOOKS {
                quiet = 0;
                self.watched.store(false, Ordering::SeqCst);
            }
        }
    }

    /// Lets the watchman go.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::array::service::BlockService;
    use crate::array::service::Extent;
    use crate::error::Error;
    use crate::error::ErrorKind;
    use crate::error::Result;
    use crate::units::ByteCount;
    use crate::units::Lsn;

    /// Tells which commits are acknowledged, and fails for those above a limit.
    struct Told {
        commits: Mutex<mpsc::Sender<Commit>>,
        limit: Commit,
    }

    impl BlockService for Told {
        fn size(&self) -> ByteCount {
            ByteCount(1 << 20)
        }
        fn read_only(&self) -> bool {
            false
        }
        fn try_read(&self, _: u64, _: &mut [u8]) -> Result<bool> {
            Ok(true)
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<Commit> {
            Ok(Commit::default())
        }
        fn write_zeroes(&self, _: u64, _: ByteCount) -> Result<Commit> {
            Ok(Commit::default())
        }
        fn trim(&self, _: u64, _: ByteCount) -> Result<Commit> {
            Ok(Commit::default())
        }
        fn acknowledge(&self, commit: Commit) -> Result<()> {
            self.commits.lock().send(commit).unwrap();
            if commit <= self.limit {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Device, "the log cannot be written"))
        }
        fn make_durable(&self, _: Commit) -> Result<()> {
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn block_status(&self, _: u64, _: ByteCount, _: usize) -> Result<Vec<Extent>> {
            Ok(Vec::new())
        }
    }

    fn file(limit: u64) -> (Arc<OpenFile>, mpsc::Receiver<Commit>) {
        let (told, tells) = mpsc::channel();
        let service = Told { commits: Mutex::new(told), limit: Commit(Lsn(limit)) };
        (Arc::new(OpenFile { writable: true, service: Arc::new(service) }), tells)
    }

    #[test]
    fn a_group_is_acknowledged_once_by_its_highest_commit() {
        let (file, tells) = file(100);
        let group = WriteGroup::default();
        for (number, lsn) in [5, 9, 7].into_iter().enumerate() {
            assert!(group.add(file.clone(), Commit(Lsn(lsn)), number));
        }
        let mut answered = Vec::new();
        group.finish(|number, safe| answered.push((number, safe)));
        assert_eq!(answered, [(0, Ok(())), (1, Ok(())), (2, Ok(()))]);
        assert_eq!(tells.try_iter().collect::<Vec<_>>(), [Commit(Lsn(9))]);
        group.finish(|_, _| panic!("all are answered"));
        assert!(group.is_empty() && tells.try_recv().is_err());
        for number in 1..WRITES_MAX {
            assert!(group.add(file.clone(), Commit(Lsn(1)), number));
        }
        assert!(!group.add(file, Commit(Lsn(1)), 0), "it is full");
    }

    #[test]
    fn a_write_that_could_not_be_made_safe_is_not_acknowledged() {
        let (file, _tells) = file(6);
        let group = WriteGroup::default();
        group.add(file.clone(), Commit(Lsn(5)), ());
        group.add(file, Commit(Lsn(7)), ());
        let mut failed = 0;
        group.finish(|(), safe| failed += usize::from(safe == Err(Errno::IO)));
        assert_eq!(failed, 2);
    }

    #[test]
    fn a_group_that_nobody_finishes_is_finished_by_the_watchman() {
        let (file, _tells) = file(100);
        let group = Arc::new(WriteGroup::default());
        let (told, tells) = mpsc::channel();
        let watched = Arc::clone(&group);
        let watchman = std::thread::Builder::new()
            .spawn(move || {
                watched.watch(|| watched.finish(|number: u64, _| told.send(number).unwrap()));
            })
            .unwrap();
        for number in 0..3 {
            group.add(file.clone(), Commit(Lsn(number)), number);
            group.leave();
            assert_eq!(tells.recv_timeout(Duration::from_secs(10)), Ok(number));
            // Long enough for him to fall asleep.
            assert!(tells.recv_timeout(LOOK_EVERY * (QUIET_LOOKS + 50)).is_err());
        }
        group.close();
        watchman.join().unwrap();
    }
}
