//! Locks, conditions, and the traits of clock and random source.
//!
//! In production these are the standard library's. In the simulator a thread carries a *baton*:
//! then every lock, every wait and every device call is a point where the seed decides which
//! thread runs next, so that one seed is one exact schedule.

pub mod baton;
pub mod seeded;

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, TryLockError};
use std::time::Duration;

/// Decides which of the simulated threads runs next.
pub trait Baton: Send + Sync {
    /// The calling thread could be interrupted here: returns when it is its turn again.
    fn yield_now(&self);
}

thread_local! {
    static BATON: RefCell<Option<Arc<dyn Baton>>> = const { RefCell::new(None) };
}

/// Gives the calling thread a baton, or takes it away: only the simulator does this.
pub fn carry_baton(baton: Option<Arc<dyn Baton>>) {
    BATON.with(|slot| *slot.borrow_mut() = baton);
}

fn baton() -> Option<Arc<dyn Baton>> {
    BATON.with(|slot| slot.borrow().clone())
}

/// A point where a simulated thread may be interrupted; nothing in production.
pub fn yield_point() {
    if let Some(baton) = baton() {
        baton.yield_now();
    }
}

/// A mutual exclusion lock. A panic of a holder does not poison it: whoever panics in the store
/// takes the process down.
#[derive(Debug, Default)]
pub struct Mutex<T> {
    inner: std::sync::Mutex<T>,
    /// Threads that found the lock taken, and do not have it yet.
    waiting: AtomicUsize,
}

/// How often `give_way` lets others run: long enough for a sleeping thread to wake up, no longer than a few of
/// those holds that it makes way for.
const WAYS_GIVEN_MAX: u32 = 100;

/// What `Mutex::lock` gives out.
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    lock: &'a Mutex<T>,
    inner: Option<std::sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex { inner: std::sync::Mutex::new(value), waiting: AtomicUsize::new(0) }
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { lock: self, inner: Some(self.lock_inner()) }
    }

    fn lock_inner(&self) -> std::sync::MutexGuard<'_, T> {
        let Some(baton) = baton() else {
            return match self.inner.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    self.waiting.fetch_add(1, Ordering::Relaxed);
                    let guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    guard
                }
            };
        };
        loop {
            baton.yield_now();
            match self.inner.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
    }

    /// Lets those who wait for the lock have it first, within bounds. For whoever takes it again and again in
    /// short steps: the lock goes to whoever asks first after it was let go of, and somebody who must be woken
    /// for it is never the first.
    pub fn give_way(&self) {
        let mut left = if baton().is_some() { 0 } else { WAYS_GIVEN_MAX };
        while left > 0 && self.waiting.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
            left -= 1;
        }
    }

    /// The value, when nobody else can hold the lock.
    pub fn into_inner(self) -> T {
        self.inner.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.inner.as_ref().expect("the guard is only empty inside Condition::wait")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_mut().expect("the guard is only empty inside Condition::wait")
    }
}

/// A condition that threads wait for. Waking without cause is allowed: callers wait in a loop.
///
/// What is waited for changes under the lock that waiters hold. So whoever notifies after such a change and
/// finds nobody waiting may leave the system call out: who waits later has seen the change.
#[derive(Debug, Default)]
pub struct Condition {
    condvar: std::sync::Condvar,
    /// Counted up before the lock is let go of.
    waiting: AtomicUsize,
}

impl Condition {
    /// A condition that nobody waits for yet.
    pub const fn new() -> Condition {
        Condition { condvar: std::sync::Condvar::new(), waiting: AtomicUsize::new(0) }
    }

    /// Lets go of the lock, waits to be woken, and takes the lock again.
    pub fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let inner = guard.inner.take().expect("a guard in a caller's hand is never empty");
        let inner = if baton().is_some() {
            drop(inner);
            guard.lock.lock_inner()
        } else {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let inner = self.condvar.wait(inner).unwrap_or_else(PoisonError::into_inner);
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            inner
        };
        guard.inner = Some(inner);
        guard
    }

    /// Like `wait`, for at most `limit`.
    pub fn wait_for<'a, T>(&self, mut guard: MutexGuard<'a, T>, limit: Duration) -> MutexGuard<'a, T> {
        let inner = guard.inner.take().expect("a guard in a caller's hand is never empty");
        let inner = if baton().is_some() {
            drop(inner);
            guard.lock.lock_inner()
        } else {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let inner = self.condvar.wait_timeout(inner, limit).unwrap_or_else(PoisonError::into_inner).0;
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            inner
        };
        guard.inner = Some(inner);
        guard
    }

    /// Wakes one of those who wait.
    pub fn notify_one(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.condvar.notify_one();
        }
    }

    /// Wakes everyone who waits.
    pub fn notify_all(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.condvar.notify_all();
        }
    }
}

/// Time, as it is handed to what may not look at a clock.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
    /// Time since 1970-01-01 00:00:00 UTC.
    fn since_unix_epoch(&self) -> Duration;
}

/// Random bytes, as they are handed to what may not draw them itself.
pub trait RandomSource: Send + Sync {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);

    /// A random number.
    fn number(&self) -> u64 {
        let mut bytes = [0u8; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}
