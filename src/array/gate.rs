//! What stands between a commit here and its answer where other nodes hold the array too.

use std::sync::Arc;

use crate::error::Result;
use crate::store::Store;
use crate::units::{BlockCount, Lba, Lsn, ObjectNumber};

/// Decides, for an array that several nodes hold, what is taken here and when it may be answered. It is asked by
/// every connection and every management verb, never under a lock of this layer, and must not call the array.
pub trait CommitGate: Send + Sync {
    /// Whether new requests are taken here now. May wait.
    ///
    /// # Errors
    /// `NotPrimary`, `NoQuorum` where they are not.
    fn admit(&self) -> Result<()>;

    /// What was taken has been committed, or not; called once for each success of `admit`, before it is answered.
    fn done(&self);

    /// Returns when every member of the in-sync set has applied everything up to `lsn`, which has been handed to the
    /// operating system here.
    ///
    /// # Errors
    /// `NotPrimary`, `NoQuorum`: it may have been applied, and nothing may be answered.
    fn acknowledged(&self, lsn: Lsn) -> Result<()>;

    /// Returns when everything up to `lsn`, which is durable here, is durable on every member.
    ///
    /// # Errors
    /// As `acknowledged`.
    fn durable(&self, lsn: Lsn) -> Result<()>;

    /// Called after data of `object` was read and before it is given out: waits for writes of that range that are not
    /// applied everywhere, and for the right to answer.
    ///
    /// # Errors
    /// `NotPrimary`, `NoQuorum`: what was read may be old.
    fn may_answer_read(&self, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<()>;

    /// As `may_answer_read`, but `Ok(false)` where that would have to wait.
    ///
    /// # Errors
    /// As `may_answer_read`.
    fn try_answer_read(&self, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<bool>;
}

/// The store as the array commits to it: through the gate, where there is one.
#[derive(Clone)]
pub(super) struct Backing {
    pub(super) store: Arc<Store>,
    gate: Option<Arc<dyn CommitGate>>,
}

impl Backing {
    pub(super) fn new(store: Arc<Store>, gate: Option<Arc<dyn CommitGate>>) -> Backing {
        Backing { store, gate }
    }

    /// Takes a request that changes something; it counts as under way until what is returned is dropped.
    pub(super) fn admit(&self) -> Result<Admission<'_>> {
        let gate = self.gate.as_deref();
        gate.map_or(Ok(()), CommitGate::admit)?;
        Ok(Admission(gate))
    }

    /// Returns when a write up to `lsn` may be answered.
    pub(super) fn acknowledge(&self, lsn: Lsn) -> Result<()> {
        self.store.write_out(lsn)?;
        self.gate.as_ref().map_or(Ok(()), |gate| gate.acknowledged(lsn))
    }

    /// Returns when everything up to `lsn` is durable wherever it must be.
    pub(super) fn make_durable(&self, lsn: Lsn) -> Result<()> {
        self.store.make_durable(lsn)?;
        self.gate.as_ref().map_or(Ok(()), |gate| gate.durable(lsn))
    }

    /// Returns when what was read of a range may be given out; `Ok(false)` where that would have to wait and may
    /// not.
    pub(super) fn answer_read(
        &self,
        object: ObjectNumber,
        first: Lba,
        count: BlockCount,
        wait: bool,
    ) -> Result<bool> {
        match &self.gate {
            None => Ok(true),
            Some(gate) if wait => gate.may_answer_read(object, first, count).map(|()| true),
            Some(gate) => gate.try_answer_read(object, first, count),
        }
    }
}

/// A request that changes something, until it is committed.
pub(super) struct Admission<'a>(Option<&'a dyn CommitGate>);

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.0 {
            gate.done();
        }
    }
}
