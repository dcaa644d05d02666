//! What stands between a commit here and its answer where other nodes hold the array too.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;
use crate::units::{BlockCount, Lba, Lsn, ObjectNumber};

/// The time from one moment at which all clients were let go to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tenure(pub u64);

/// Decides, for an array that several nodes hold, what is taken here and when it may be answered. It is asked by
/// every connection and every management verb, never under a lock of this layer, and must not call the array.
pub trait CommitGate: Send + Sync {
    /// Whether new requests are taken here now. May wait.
    ///
    /// # Errors
    /// `NotPrimary`, `NoQuorum` where they are not.
    fn admit(&self) -> Result<()>;

    /// As `admit`, for a request of a client that came in this tenure: once all clients were let go, what one of them
    /// had sent before is not taken any more. It may have been sent again elsewhere, and newer requests behind it.
    ///
    /// # Errors
    /// As `admit`.
    fn admit_of(&self, tenure: Tenure) -> Result<()> {
        self.admit()?;
        if self.tenure() == tenure {
            return Ok(());
        }
        self.done();
        Err(Error::new(ErrorKind::NotPrimary, "the request came before another node was the primary"))
    }

    /// The present tenure.
    fn tenure(&self) -> Tenure {
        Tenure::default()
    }

    /// What was taken has been committed, or not; called once for each success of `admit` and `admit_of`, before it is
    /// answered.
    fn done(&self);

    /// Sets room aside for a write of so many blocks wherever it must be held, until `release` gives it back. May wait.
    ///
    /// # Errors
    /// `NoSpace` where there is none.
    fn reserve(&self, blocks: BlockCount) -> Result<()> {
        let _ = blocks;
        Ok(())
    }

    /// Gives back what was set aside; called once for each success of `reserve`.
    fn release(&self, blocks: BlockCount) {
        let _ = blocks;
    }

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

    /// A commit, or making it safe, has failed here with this error: the one that the client is told. Where another
    /// node takes over it is `NotPrimary`: whoever asks again is heard there.
    fn failed(&self, error: Error) -> Error {
        error
    }

    /// Looks for good copies of blocks here that have failed their check; whether any is good again. May wait.
    fn repair(&self) -> bool {
        false
    }

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

    /// The same for a request of a client that came in a tenure, where it did.
    pub(super) fn admit_of(&self, tenure: Option<Tenure>) -> Result<Admission<'_>> {
        let Some(tenure) = tenure else { return self.admit() };
        let gate = self.gate.as_deref();
        gate.map_or(Ok(()), |gate| gate.admit_of(tenure))?;
        Ok(Admission(gate))
    }

    /// The present tenure.
    pub(super) fn tenure(&self) -> Tenure {
        self.gate.as_ref().map_or(Tenure::default(), |gate| gate.tenure())
    }

    /// Sets room aside for a write of so many blocks, until what is returned is dropped.
    pub(super) fn reserve(&self, blocks: BlockCount) -> Result<Reservation<'_>> {
        let gate = self.gate.as_deref();
        gate.map_or(Ok(()), |gate| gate.reserve(blocks))?;
        Ok(Reservation(gate, blocks))
    }

    /// Returns when a write up to `lsn` may be answered.
    pub(super) fn acknowledge(&self, lsn: Lsn) -> Result<()> {
        self.told(self.store.write_out(lsn))?;
        self.gate.as_ref().map_or(Ok(()), |gate| gate.acknowledged(lsn))
    }

    /// Returns when everything up to `lsn` is durable wherever it must be.
    pub(super) fn make_durable(&self, lsn: Lsn) -> Result<()> {
        self.told(self.store.make_durable(lsn))?;
        self.gate.as_ref().map_or(Ok(()), |gate| gate.durable(lsn))
    }

    /// Carries out what reads, and does so again as long as damaged blocks that it meets can be repaired.
    pub(super) fn repairing<T>(&self, mut read: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            match read() {
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    if !self.gate.as_ref().is_some_and(|gate| gate.repair()) {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }

    /// What a client is told of a commit here.
    pub(super) fn told<T>(&self, outcome: Result<T>) -> Result<T> {
        match &self.gate {
            Some(gate) => outcome.map_err(|error| gate.failed(error)),
            None => outcome,
        }
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

/// Room that is set aside.
pub(super) struct Reservation<'a>(Option<&'a dyn CommitGate>, BlockCount);

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.0 {
            gate.release(self.1);
        }
    }
}
