//! What clients were told, and whether it holds.

use std::collections::{BTreeMap, BTreeSet};

use sinter::units::Epoch;

/// A write, under a name that no other one has; 0 for the first operation of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) epoch: Epoch,
    pub(crate) name: u64,
    pub(crate) key: usize,
}

/// Keys that are written and read.
pub(crate) const KEYS: usize = 4;

/// How many operations a log holds is also the number of its newest.
pub(crate) type Log = Vec<Operation>;

#[derive(Default)]
pub(crate) struct Oracle {
    acknowledged: BTreeMap<u64, usize>,
    flushed: BTreeSet<u64>,
    /// The newest operation of each key that somebody was told of.
    floors: [usize; KEYS],
    /// The primary of the highest epoch that has begun.
    pub(crate) newest: Option<(Epoch, usize)>,
    pub(crate) writes: u64,
    pub(crate) reads: u64,
    pub(crate) flushes: u64,
    pub(crate) lost: u64,
    pub(crate) epochs: u64,
}

/// The newest operation of a key.
pub(crate) fn newest_of(log: &Log, key: usize) -> usize {
    log.iter().rposition(|operation| operation.name != 0 && operation.key == key).map_or(0, |index| index + 1)
}

impl Oracle {
    /// (1): a primary begins; what was acknowledged is there, and where all members were lost at once, what was flushed.
    pub(crate) fn begins(&mut self, epoch: Epoch, node: usize, log: &Log, all_were_lost: bool) {
        self.epochs += 1;
        if let Some((before, _)) = self.newest.filter(|(before, _)| *before >= epoch) {
            assert!(before > epoch, "two primaries in epoch {epoch:?}");
            // It was handed over to while it slept, and wakes up too late: nobody will answer it.
            return;
        }
        let held: BTreeMap<u64, usize> =
            log.iter().enumerate().map(|(index, operation)| (operation.name, index + 1)).collect();
        let gone: Vec<u64> = self
            .acknowledged
            .iter()
            .filter(|(name, lsn)| held.get(name) != Some(lsn))
            .map(|(name, _)| *name)
            .collect();
        assert!(all_were_lost || gone.is_empty(), "epoch {epoch:?} begins without acknowledged {gone:?}");
        for name in &gone {
            assert!(!self.flushed.contains(name), "epoch {epoch:?} begins without flushed {name}");
            self.acknowledged.remove(name);
        }
        if !gone.is_empty() {
            for (key, floor) in self.floors.iter_mut().enumerate() {
                *floor = (*floor).min(newest_of(log, key));
            }
        }
        self.lost += gone.len() as u64;
        self.newest = Some((epoch, node));
    }

    /// A write is acknowledged. (2): a successor that has begun, whose log `successor` is, holds it.
    pub(crate) fn acknowledge(&mut self, operation: Operation, lsn: usize, successor: Option<&Log>) {
        if let Some(log) = successor {
            assert_eq!(log.get(lsn - 1), Some(&operation), "acknowledged behind the successor's back");
        }
        self.acknowledged.insert(operation.name, lsn);
        self.floors[operation.key] = self.floors[operation.key].max(lsn);
        self.writes += 1;
    }

    /// Everything in `log` up to `lsn` that was acknowledged is flushed.
    pub(crate) fn flush(&mut self, log: &Log, lsn: usize) {
        let names = log[..lsn].iter().map(|operation| operation.name);
        self.flushed.extend(names.filter(|name| self.acknowledged.contains_key(name)));
        self.flushes += 1;
    }

    /// What a read that is asked for now must not be older than.
    pub(crate) fn floor(&self, key: usize) -> usize {
        self.floors[key]
    }

    /// (4): a read is answered.
    pub(crate) fn read(&mut self, key: usize, lsn: usize, floor: usize) {
        assert!(lsn >= floor, "key {key} was read as of {lsn}, and {floor} had been told before");
        self.floors[key] = self.floors[key].max(lsn);
        self.reads += 1;
    }
}
