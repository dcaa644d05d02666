//! What clients were told, and what every node must hold for it.

use std::collections::{BTreeMap, BTreeSet};

use sinter::units::{Epoch, Lsn, Uuid};

use super::histories::{Histories, Value};
use super::node::{Entry, Log};

/// Where an operation of a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) epoch: Epoch,
    pub(super) lsn: Lsn,
}

/// What may be gone when an epoch begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Loss {
    /// Members live.
    #[default]
    Nothing,
    /// All members were lost at once.
    Unflushed,
    /// The operator has put up with it.
    Anything,
}

/// What happened in one history, so that the test knows that it tests something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) primaries: u64,
    pub(crate) writes: u64,
    pub(crate) reads: u64,
    pub(crate) flushes: u64,
    pub(crate) managed: u64,
    pub(crate) lost: u64,
    pub(crate) went_on: u64,
    pub(crate) compared: u64,
    pub(crate) from_bookmark: u64,
    pub(crate) adopted: u64,
    pub(crate) crashes: u64,
    pub(crate) pools_changed: u64,
    pub(crate) devices_failed: u64,
    pub(crate) started_without: u64,
    pub(crate) forced: u64,
    pub(crate) discarded: u64,
    pub(crate) lost_by_leave: u64,
    pub(crate) far_reports: u64,
    pub(crate) no_space: u64,
    pub(crate) stuck: u64,
    pub(crate) sent_again: u64,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
    pub(crate) checked: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Seen) {
        let pairs = [
            (&mut self.primaries, other.primaries),
            (&mut self.writes, other.writes),
            (&mut self.reads, other.reads),
            (&mut self.flushes, other.flushes),
            (&mut self.managed, other.managed),
            (&mut self.lost, other.lost),
            (&mut self.went_on, other.went_on),
            (&mut self.compared, other.compared),
            (&mut self.from_bookmark, other.from_bookmark),
            (&mut self.adopted, other.adopted),
            (&mut self.crashes, other.crashes),
            (&mut self.pools_changed, other.pools_changed),
            (&mut self.devices_failed, other.devices_failed),
            (&mut self.started_without, other.started_without),
            (&mut self.forced, other.forced),
            (&mut self.discarded, other.discarded),
            (&mut self.lost_by_leave, other.lost_by_leave),
            (&mut self.far_reports, other.far_reports),
            (&mut self.no_space, other.no_space),
            (&mut self.stuck, other.stuck),
            (&mut self.sent_again, other.sent_again),
            (&mut self.unknown, other.unknown),
            (&mut self.refused, other.refused),
            (&mut self.checked, other.checked),
        ];
        pairs.into_iter().for_each(|(sum, one)| *sum += one);
    }
}

#[derive(Default)]
pub(super) struct Oracle {
    pub(super) histories: Histories,
    /// Operations that clients have been told of.
    acknowledged: BTreeSet<At>,
    /// The same, by a FLUSH or because they are durable by themselves.
    flushed: BTreeSet<At>,
    /// Which blocks an operation sets to what, and the operations that have set a block to a value.
    writes: BTreeMap<At, Vec<(u64, Value)>>,
    places: BTreeMap<Value, Vec<At>>,
    /// The name of the array's history.
    history: Option<Uuid>,
    /// What is known of operations, wherever they were committed or applied.
    known: BTreeMap<At, u64>,
    /// The primary of the highest epoch that has begun.
    pub(super) newest: Option<(Epoch, usize)>,
    pub(super) seen: Seen,
}

impl Oracle {
    /// One epoch and number is one operation, on whichever node.
    pub(super) fn compare(&mut self, log: &Log, from: Lsn) {
        for (lsn, Entry { epoch, digest, .. }) in log.range(from..) {
            let at = At { epoch: *epoch, lsn: *lsn };
            let known = *self.known.entry(at).or_insert(*digest);
            assert_eq!(known, *digest, "operation {lsn} of {epoch:?} is not the same everywhere");
        }
    }

    /// (1): a primary begins; what was acknowledged is there, and where all members were lost at once, what was flushed.
    /// What is gone of what was not flushed, if it is the newest.
    pub(super) fn begins(&mut self, epoch: Epoch, node: usize, log: &Log, loss: Loss) -> Option<Vec<At>> {
        if let Some((before, whose)) = self.newest.filter(|(before, _)| *before >= epoch) {
            assert!(before > epoch || whose == node, "two primaries in epoch {epoch:?}");
            // It was handed over to while it slept, and wakes up too late: nobody will answer it. Or it tries again.
            return None;
        }
        self.seen.primaries += 1;
        let mut gone: Vec<At> = self.acknowledged.iter().filter(|at| !holds(log, **at)).copied().collect();
        let lost = loss > Loss::Nothing;
        assert!(lost || gone.is_empty(), "epoch {epoch:?} begins without acknowledged {gone:?}");
        for at in &gone {
            self.acknowledged.remove(at);
        }
        self.seen.lost += gone.len() as u64;
        gone.retain(|at| {
            let flushed = self.flushed.remove(at);
            assert!(loss == Loss::Anything || !flushed, "epoch {epoch:?} begins without flushed {at:?}");
            self.seen.lost_by_leave += u64::from(flushed);
            !flushed
        });
        self.newest = Some((epoch, node));
        Some(gone)
    }

    /// An operation is acknowledged. (2): a successor that has begun, whose log `successor` is, holds it, unless it was
    /// forced. Whether it holds.
    pub(super) fn acknowledge(&mut self, at: At, successor: Option<&Log>) -> bool {
        let held = successor.is_none_or(|log| holds(log, at));
        assert!(held || self.is_forsaken(at.epoch), "{at:?} was acknowledged behind the successor's back");
        if held {
            self.acknowledged.insert(at);
        }
        held
    }

    /// Whether whoever still serves in this epoch has been left behind by force.
    pub(super) fn is_forsaken(&self, epoch: Epoch) -> bool {
        self.newest.is_some_and(|(newest, _)| newest.generation > epoch.generation)
    }

    /// Everything up to `lsn` that was acknowledged is flushed.
    pub(super) fn flush(&mut self, lsn: Lsn) {
        let covered = self.acknowledged.iter().filter(|at| at.lsn <= lsn);
        self.flushed.extend(covered);
    }

    /// A primary has committed a write.
    pub(super) fn wrote(&mut self, at: At, blocks: Vec<(u64, Value)>) {
        blocks.iter().for_each(|(_, value)| self.places.entry(*value).or_default().push(at));
        self.writes.insert(at, blocks);
    }

    /// The operations of a log that have set a block to this value.
    pub(super) fn places(&self, value: Value, log: &Log) -> Vec<At> {
        let all = self.places.get(&value).into_iter().flatten();
        all.filter(|at| holds(log, **at)).copied().collect()
    }

    /// (5): a primary serves in this history. It is another one only where something may have been lost, and
    /// always where an operator has put up with that.
    pub(super) fn serves_in(&mut self, history: Option<Uuid>, loss: Loss, must_be_told: bool) {
        let same = self.history.is_none() || self.history == history;
        assert!(same || loss > Loss::Nothing, "the history has another name, and nothing was lost");
        assert!(
            !must_be_told || self.history != history,
            "the operator put up with a loss, and nobody is told"
        );
        self.history = history;
    }

    /// What each block that was ever written holds, as a log has it.
    pub(super) fn values(&self, log: &Log) -> BTreeMap<u64, Value> {
        let mut values = BTreeMap::new();
        for (lsn, entry) in log {
            values.extend(
                self.writes.get(&At { epoch: entry.epoch, lsn: *lsn }).into_iter().flatten().copied(),
            );
        }
        values
    }
}

fn holds(log: &Log, at: At) -> bool {
    log.get(&at.lsn).is_some_and(|entry| entry.epoch == at.epoch)
}
