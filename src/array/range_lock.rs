//! Who may change which blocks of a volume at the same time.
//!
//! Writing a part of a block means reading the block, changing the part, and writing the block.
//! Whatever else is written to the block between that read and that write would be lost. So two
//! requests *conflict* when both touch a block that at least one of them covers only in part. Whole
//! blocks need no lock against each other: the store orders them.
//!
//! Why nothing is lost: every change of a volume, aligned or not, joins the one queue before it first
//! looks at or changes a block, and leaves it after its last change is committed. Joining and the
//! look at who is ahead happen under one lock, so of two conflicting requests exactly one is behind
//! the other, and it waits until the other has left. Hence no change that touches the block falls
//! between the read and the write of a request that covers it in part, whichever of the two came
//! first: neither a whole block written by a latecomer, which waits for the partial write ahead of
//! it, nor one written by a request that was already under way, which the partial write waits for. A
//! flag that only aligned writes looked at would miss the second case.
//!
//! Nobody waits for a request that came later, so there is no deadlock and nobody starves. An
//! aligned request takes the lock once to join and once to leave, for a few instructions each, and
//! looks at nobody else's range unless a partial write is about. Nothing is held while a request is
//! under way but its place in the queue.

use std::ops::Range;

use crate::sync::Condition;
use crate::sync::Mutex;
use crate::sync::MutexGuard;
use crate::units::Lba;

use super::split::Split;

/// The blocks that one request changes.
#[derive(Clone, Debug)]
struct Span {
    blocks: Range<Lba>,
    /// The blocks that it covers only in part, within `blocks`.
    partial: [Option<Lba>; 2],
}

impl Span {
    fn of(split: &Split) -> Span {
        let partial = [split.head.map(|edge| edge.lba), split.tail.map(|edge| edge.lba)];
        let start = partial[0].unwrap_or(split.first);
        let end = partial[1].map_or(split.first.plus(split.whole.0), |lba| lba.plus(1));
        // A head alone lies before `first` or, where it begins a block, at it.
        let end = partial[0].map_or(end, |lba| end.max(lba.plus(1)));
        Span { blocks: start..end, partial }
    }

    fn is_partial(&self) -> bool {
        self.partial.iter().any(Option::is_some)
    }

    fn cuts_into(&self, other: &Span) -> bool {
        self.partial.iter().flatten().any(|lba| other.blocks.contains(lba))
    }

    fn conflicts(&self, other: &Span) -> bool {
        self.cuts_into(other) || other.cuts_into(self)
    }
}

/// A place in the queue: a smaller one came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u64);

/// The requests under way and those waiting for them.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    /// In no order; as many as there are threads in a writing verb.
    requests: Vec<(Place, Span)>,
    /// How many of them cover a block in part.
    partial: usize,
    waiting: usize,
}

impl Queue {
    fn join(&mut self, span: Span) -> Place {
        let place = Place(self.next);
        self.next += 1;
        self.partial += usize::from(span.is_partial());
        self.requests.push((place, span));
        place
    }

    /// Whether nobody ahead of `place` conflicts with it.
    fn may_go(&self, place: Place) -> bool {
        if self.partial == 0 {
            return true;
        }
        let own = self.requests.iter().find(|(other, _)| *other == place);
        let (_, span) = own.expect("a request stays in the queue until it leaves");
        !self.requests.iter().any(|(other, ahead)| *other < place && ahead.conflicts(span))
    }

    fn leave(&mut self, place: Place) {
        let at = self.requests.iter().position(|(other, _)| *other == place);
        let (_, span) = self.requests.swap_remove(at.expect("a request leaves the queue once"));
        self.partial -= usize::from(span.is_partial());
    }
}

/// The queue of one volume.
#[derive(Debug, Default)]
pub(super) struct RangeLock {
    queue: Mutex<Queue>,
    left: Condition,
}

/// A turn to change the blocks of one request; over when it is dropped.
#[derive(Debug)]
#[must_use = "the turn is over as soon as this is dropped"]
pub(super) struct Turn<'a> {
    lock: &'a RangeLock,
    place: Place,
}

impl RangeLock {
    /// Waits until nobody who came earlier is changing blocks in conflict with `split`.
    pub(super) fn take_turn(&self, split: &Split) -> Turn<'_> {
        let mut queue = self.queue.lock();
        let place = queue.join(Span::of(split));
        while !queue.may_go(place) {
            queue = self.wait(queue);
        }
        Turn { lock: self, place }
    }

    fn wait<'a>(&'a self, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        queue.waiting += 1;
        let mut queue = self.left.wait(queue);
        queue.waiting -= 1;
        queue
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.lock.queue.lock();
        queue.leave(self.place);
        if queue.waiting > 0 {
            self.lock.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(offset: u64, len: u64) -> Span {
        Span::of(&Split::of(offset, len))
    }

    #[test]
    fn only_partly_covered_blocks_conflict() {
        let whole = span(0, 16384);
        assert!(!whole.conflicts(&span(4096, 4096)), "the store orders whole blocks");
        assert!(whole.conflicts(&span(4096, 512)) && span(4096, 512).conflicts(&whole));
        assert!(span(4096, 512).conflicts(&span(7680, 512)), "two parts of one block");
        assert!(!span(4096, 512).conflicts(&span(0, 4096)));
        assert!(!span(4096, 512).conflicts(&span(8192, 4096)));
        assert!(!span(100, 20_000).conflicts(&span(4096, 4096)), "a whole block of a request with edges");
        assert!(span(100, 20_000).conflicts(&span(0, 4096)));
        assert!(span(100, 20_000).conflicts(&span(16384, 4096)));
    }

    proptest! {
        #[test]
        fn conflicts_are_what_the_definition_says(
            a in (0u64..20_000, 1u64..20_000),
            b in (0u64..20_000, 1u64..20_000),
        ) {
            let covered = |(offset, len): (u64, u64), block: u64| {
                let (start, end) = (offset.max(block * 4096), (offset + len).min(block * 4096 + 4096));
                end.saturating_sub(start)
            };
            let expected = (0..10).any(|block| {
                let (a, b) = (covered(a, block), covered(b, block));
                a > 0 && b > 0 && (a < 4096 || b < 4096)
            });
            prop_assert_eq!(span(a.0, a.1).conflicts(&span(b.0, b.1)), expected);
        }
    }

    #[test]
    fn requests_go_in_the_order_in_which_they_came() {
        let mut queue = Queue::default();
        let whole = queue.join(span(0, 8192));
        let part = queue.join(span(512, 512));
        let late_whole = queue.join(span(0, 4096));
        let elsewhere = queue.join(span(4096, 4096));
        assert!(queue.may_go(whole) && queue.may_go(elsewhere));
        assert!(!queue.may_go(part), "a whole write is under way");
        assert!(!queue.may_go(late_whole), "it would overtake a partial write that waits");
        queue.leave(whole);
        assert!(queue.may_go(part) && !queue.may_go(late_whole));
        queue.leave(part);
        assert!(queue.may_go(late_whole));
        queue.leave(late_whole);
        queue.leave(elsewhere);
        assert_eq!((queue.requests.len(), queue.partial), (0, 0));
    }

    #[test]
    fn one_turn_at_a_time_in_one_block() {
        let lock = RangeLock::default();
        let inside = Mutex::new((0u32, 0u32));
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (lock, inside) = (&lock, &inside);
                scope.spawn(move || {
                    for _ in 0..500 {
                        let _turn = lock.take_turn(&Split::of(thread * 600, 600));
                        inside.lock().0 += 1;
                        std::thread::yield_now();
                        let mut inside = inside.lock();
                        assert_eq!(inside.0, 1, "two threads change one block");
                        inside.0 -= 1;
                        inside.1 += 1;
                    }
                });
            }
        });
        assert_eq!(*inside.lock(), (0, 2000));
    }
}
