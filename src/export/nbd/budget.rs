//! Memory for the payloads of requests in flight, over all connections.
//!
//! Promises: buffers in use, spare ones kept for reuse and grown receive buffers together never
//! exceed the limit; whoever waits for room is served in the order of coming, so that a large
//! request is not starved by small ones.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::wire::transmission::PAYLOAD_BYTES_MAX;
use crate::sync::{Condition, Mutex};
use crate::units::ByteCount;

/// The smallest budget: one payload of the greatest size, and something beside it.
pub const REQUEST_BUDGET_MIN: ByteCount = ByteCount(33 << 20);

/// The smallest buffer, as a power of two; each class is twice the one before.
const CLASS_BYTES_MIN: usize = 4096;
const CLASSES: usize = 14;
const _: () = assert!(CLASS_BYTES_MIN << (CLASSES - 1) == PAYLOAD_BYTES_MAX as usize);

/// The budget. Buffers are reused: fresh memory costs a page fault every 4 KiB.
pub(super) struct RequestBudget {
    limit: usize,
    state: Mutex<State>,
    freed: Condition,
}

#[derive(Default)]
struct State {
    in_use: usize,
    spare: [Vec<Vec<u8>>; CLASSES],
    spare_bytes: usize,
    /// Next number to be drawn by one who waits.
    next_ticket: u64,
    /// The number whose turn it is; equal to `next_ticket` while nobody waits.
    turn: u64,
}

impl RequestBudget {
    /// A budget of `limit`, or of the smallest one where that is more.
    pub(super) fn new(limit: ByteCount) -> Arc<RequestBudget> {
        let limit = usize::try_from(limit.0.max(REQUEST_BUDGET_MIN.0)).unwrap_or(usize::MAX);
        Arc::new(RequestBudget { limit, state: Mutex::default(), freed: Condition::new() })
    }

    /// A buffer of at least `len` bytes (at most `PAYLOAD_BYTES_MAX`), of undefined content. Waits
    /// for room.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let class = class_of(len);
        let mut state = self.state.lock();
        if state.turn != state.next_ticket || !self.fits(&state, class_bytes(class)) {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            while state.turn != ticket || !self.fits(&state, class_bytes(class)) {
                state = self.freed.wait(state);
            }
            state.turn += 1;
            self.freed.notify_all();
        }
        let spare = self.account(&mut state, class);
        drop(state);
        self.buffer(class, spare)
    }

    /// Like `take`, but `None` where it would have to wait.
    pub(super) fn try_take(self: &Arc<Self>, len: usize) -> Option<Buffer> {
        let class = class_of(len);
        let mut state = self.state.lock();
        if state.turn != state.next_ticket || !self.fits(&state, class_bytes(class)) {
            return None;
        }
        let spare = self.account(&mut state, class);
        drop(state);
        Some(self.buffer(class, spare))
    }

    /// Sets `bytes` aside for memory that the caller allocates itself, if that leaves room for a
    /// payload of the greatest size.
    pub(super) fn try_reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let mut state = self.state.lock();
        let wanted = bytes + PAYLOAD_BYTES_MAX as usize;
        if state.turn != state.next_ticket || !self.fits(&state, wanted) {
            return None;
        }
        state.in_use += bytes;
        self.drop_spare(&mut state);
        Some(Reservation { budget: Arc::clone(self), bytes })
    }

    fn fits(&self, state: &State, bytes: usize) -> bool {
        state.in_use.saturating_add(bytes) <= self.limit
    }

    /// Books a buffer of that class, reusing a spare one if there is one.
    fn account(&self, state: &mut State, class: usize) -> Option<Vec<u8>> {
        state.in_use += class_bytes(class);
        let spare = state.spare[class].pop();
        if spare.is_some() {
            state.spare_bytes -= class_bytes(class);
        }
        self.drop_spare(state);
        spare
    }

    /// Frees spare buffers, largest first, until they fit beside those in use.
    fn drop_spare(&self, state: &mut State) {
        for class in (0..CLASSES).rev() {
            while state.in_use + state.spare_bytes > self.limit && state.spare[class].pop().is_some() {
                state.spare_bytes -= class_bytes(class);
            }
        }
    }

    fn buffer(self: &Arc<Self>, class: usize, spare: Option<Vec<u8>>) -> Buffer {
        let bytes = spare.unwrap_or_else(|| vec![0; class_bytes(class)]);
        Buffer { budget: Arc::clone(self), class, bytes }
    }

    fn give_back(&self, amount: usize, spare: Option<(usize, Vec<u8>)>) {
        let mut state = self.state.lock();
        state.in_use -= amount;
        if let Some((class, bytes)) = spare {
            state.spare[class].push(bytes);
            state.spare_bytes += amount;
        }
        if state.turn != state.next_ticket {
            self.freed.notify_all();
        }
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        let state = self.state.lock();
        state.in_use + state.spare_bytes
    }
}

fn class_of(len: usize) -> usize {
    assert!(len <= PAYLOAD_BYTES_MAX as usize, "longer requests are refused before memory is asked for");
    let class_bytes = len.max(CLASS_BYTES_MIN).next_power_of_two();
    (class_bytes / CLASS_BYTES_MIN).trailing_zeros() as usize
}

fn class_bytes(class: usize) -> usize {
    CLASS_BYTES_MIN << class
}

/// Memory for one payload; goes back to the budget when dropped.
pub(super) struct Buffer {
    budget: Arc<RequestBudget>,
    class: usize,
    bytes: Vec<u8>,
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.budget.give_back(class_bytes(self.class), Some((self.class, bytes)));
    }
}

/// A share of the budget; goes back when dropped.
pub(super) struct Reservation {
    budget: Arc<RequestBudget>,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes, None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_limit_holds_with_spare_buffers_counted() {
        let budget = RequestBudget::new(ByteCount(0));
        let small: Vec<Buffer> = (0..33).map(|_| budget.take(MIB)).collect();
        assert!(budget.try_take(1).is_none());
        drop(small);
        assert_eq!(budget.held(), 33 * MIB, "spare buffers are kept");
        let large = budget.take(32 * MIB);
        assert!(budget.held() <= 33 * MIB, "and dropped where the room is needed");
        assert!(budget.try_reserve(1).is_none(), "a reservation leaves room for a whole payload");
        drop(large);
        assert!(budget.try_reserve(MIB).is_some());
    }

    #[test]
    fn one_who_waits_is_not_overtaken() {
        let budget = RequestBudget::new(ByteCount(0));
        let held = budget.take(2 * MIB);
        let (told, tells) = mpsc::channel();
        let waiting = {
            let budget = Arc::clone(&budget);
            std::thread::Builder::new()
                .spawn(move || {
                    let buffer = budget.take(32 * MIB);
                    told.send(buffer.len()).unwrap();
                })
                .unwrap()
        };
        while budget.state.lock().next_ticket == 0 {
            std::thread::yield_now();
        }
        assert!(budget.try_take(1).is_none(), "a small request waits behind the large one");
        assert!(tells.recv_timeout(Duration::from_millis(50)).is_err());
        drop(held);
        assert_eq!(tells.recv_timeout(Duration::from_secs(10)), Ok(32 * MIB));
        waiting.join().unwrap();
    }

    #[test]
    fn classes_cover_every_length() {
        for (len, bytes) in [(0, 4096), (4096, 4096), (4097, 8192), (MIB + 1, 2 * MIB), (32 * MIB, 32 * MIB)]
        {
            assert_eq!(class_bytes(class_of(len)), bytes);
        }
    }
}
