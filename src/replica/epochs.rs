//! The epoch history: where in the order of operations each epoch began.
//!
//! Positions are compared against it, never bare numbers: a number may have been given out again by a later primary
//! (what Kafka's KIP-101 repaired). It is kept in the pool, as a system object that operations change, so every node
//! that holds the operations of an epoch also knows where it began.

use crate::error::{Error, ErrorKind, Result};
use crate::format::system::{EpochHistory, EpochStart, SystemPurpose, SystemRecord};
use crate::store::Store;
use crate::sync::RandomSource;
use crate::units::{BlockCount, Epoch, Lsn, ObjectNumber};

use super::decisions::Position;
use super::history;

/// An object has a size; all of this one is in its opaque bytes.
const HISTORY_BLOCKS: BlockCount = BlockCount(1);

/// Where each epoch began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    history: EpochHistory,
    object: Option<ObjectNumber>,
}

impl Epochs {
    /// What the pool says.
    ///
    /// # Errors
    /// `Device`, `Corrupt`.
    pub fn load(store: &Store) -> Result<Epochs> {
        for object in store.objects()? {
            if let Some(history) = epoch_history(&object.opaque) {
                return Ok(Epochs { history, object: Some(object.number) });
            }
        }
        Ok(Epochs::default())
    }

    /// Begins an epoch: its first operation is the one that writes this history.
    ///
    /// # Errors
    /// As `Store::update_object`; `NotPrimary` for an epoch that is over.
    pub fn begin(&mut self, store: &Store, epoch: Epoch) -> Result<Lsn> {
        store.begin_epoch(epoch)?;
        let (before, last) = store.position();
        if self.history.starts().is_empty() && last > Lsn(0) && before < epoch {
            self.history.push(EpochStart { epoch: before, first: Lsn(1) })?;
        }
        // Where it could not be begun at the first attempt, it is there already.
        if self.history.starts().last().is_none_or(|last| last.epoch < epoch) {
            self.history.push(EpochStart { epoch, first: last.next() })?;
        }
        let opaque = self.history.record().encode()?;
        match self.object {
            Some(object) => store.update_object(object, HISTORY_BLOCKS, &opaque),
            None => {
                let (object, lsn) = store.create_object(HISTORY_BLOCKS, &opaque)?;
                self.object = Some(object);
                Ok(lsn)
            }
        }
    }

    /// The newest epoch that has begun.
    #[must_use]
    pub fn newest(&self) -> Option<Epoch> {
        self.history.starts().last().map(|start| start.epoch)
    }

    /// Whether an epoch is one of this array's, as far as is remembered. One of the present generation need not be in
    /// the history: whoever was handed over to may have begun it and died before anybody else had its first operation.
    /// The same group decided it, so what it committed is a tail that was never acknowledged. What another
    /// generation has had besides may have been. No group begins with number 0: a pool that left its cluster does.
    #[must_use]
    pub fn knows(&self, epoch: Epoch) -> bool {
        let starts = self.history.starts();
        let forgotten = starts.first().is_none_or(|oldest| epoch < oldest.epoch);
        let of_this_group = |present: &EpochStart| {
            epoch.generation == present.epoch.generation && epoch < present.epoch && epoch.number > 0
        };
        forgotten
            || starts.iter().any(|start| start.epoch == epoch)
            || starts.last().is_some_and(of_this_group)
    }

    /// Whether whoever stands there holds a prefix of what was committed up to `last`: not past the end that its
    /// epoch has here.
    #[must_use]
    pub fn holds(&self, position: Position, last: Lsn) -> bool {
        if position.lsn == Lsn(0) {
            return true;
        }
        let starts = self.history.starts();
        let Some(index) = starts.iter().position(|start| start.epoch == position.epoch) else { return false };
        let end = starts.get(index + 1).map_or(last, |next| Lsn(next.first.0 - 1));
        position.lsn <= end
    }
}

/// Whether a pool says that it belongs to a cluster: it was primary or followed one, or is being compared.
#[must_use]
pub fn belongs_to_cluster(store: &Store) -> bool {
    store.syncing() || store.find_object(epoch_history).is_some()
}

/// Lets a pool stand alone that belongs to a cluster, with what it holds; nothing happens to another one. From then on
/// it is of a generation of its own, so that what it takes is never held for a part of what the cluster has had: where
/// the two meet again, that is a split brain. All of it is durable afterwards, or none.
///
/// # Errors
/// `Busy` for a pool that is being compared: what it holds is of no one moment; `Invalid` where no generation is left;
/// `Stopped`, `ReadOnly`, `Device`.
pub fn stand_alone(store: &Store, random: &dyn RandomSource) -> Result<()> {
    if store.syncing() {
        let what = "this pool was being compared with a primary: its copy is not whole";
        return Err(Error::new(ErrorKind::Busy, what));
    }
    let Some((object, _)) = store.find_object(epoch_history) else { return Ok(()) };
    let (before, _) = store.position();
    let generation = before.generation.checked_add(1);
    let generation = generation.ok_or_else(|| Error::new(ErrorKind::Invalid, "no generation is left"))?;
    let epoch = Epoch { generation, number: 0 };
    store.begin_epoch(epoch)?;
    // The operation that takes the history away is the first of the new generation: one does not come without the other.
    let deleted = store.delete_object(object)?;
    let named = history::begin(store, epoch, None, random)?;
    store.make_durable(named.unwrap_or(deleted))
}

fn epoch_history(opaque: &[u8]) -> Option<EpochHistory> {
    let record = SystemRecord::decode(opaque).ok()?;
    (record.purpose == SystemPurpose::EpochHistory).then(|| EpochHistory::decode(&record.body)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(generation: u32, number: u32) -> Epoch {
        Epoch { generation, number }
    }

    #[test]
    fn p7_positions_are_compared_against_the_history_and_not_by_number() {
        let mut epochs = Epochs::default();
        for (epoch, first) in [(epoch(0, 1), Lsn(1)), (epoch(0, 2), Lsn(50)), (epoch(0, 5), Lsn(70))] {
            epochs.history.push(EpochStart { epoch, first }).unwrap();
        }
        let at = |epoch, lsn| Position { epoch, lsn: Lsn(lsn) };
        assert!(epochs.holds(at(epoch(0, 1), 49), Lsn(90)));
        assert!(!epochs.holds(at(epoch(0, 1), 50), Lsn(90)), "a tail that the successor does not have");
        assert!(epochs.holds(at(epoch(0, 2), 69), Lsn(90)));
        assert!(!epochs.holds(at(epoch(0, 2), 75), Lsn(90)));
        assert!(epochs.holds(at(epoch(0, 5), 90), Lsn(90)) && !epochs.holds(at(epoch(0, 5), 91), Lsn(90)));
        assert!(!epochs.holds(at(epoch(0, 3), 60), Lsn(90)));
        assert!(epochs.knows(epoch(0, 2)) && !epochs.knows(epoch(0, 6)) && !epochs.knows(epoch(1, 1)));
        assert!(epochs.knows(epoch(0, 3)), "begun by a node that was handed over to, and told nobody");
        assert!(epochs.holds(at(epoch(0, 0), 0), Lsn(90)), "whoever has nothing holds a prefix");
        epochs.history.push(EpochStart { epoch: epoch(1, 1), first: Lsn(91) }).unwrap();
        assert!(!epochs.knows(epoch(0, 6)) && !epochs.knows(epoch(0, 3)), "the others may have gone on");
        assert!(!epochs.knows(epoch(1, 0)), "it left the cluster, and went on alone");
    }
}
