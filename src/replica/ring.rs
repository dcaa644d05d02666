//! The ring of recent operations: what the commit sink fills, and every stream reads from.
//!
//! It takes operations in commit order, on a primary as on a secondary, so that a new primary can serve the other
//! survivors at once. It holds as many as its budget allows and forgets the oldest: a peer that has fallen behind
//! further is compared instead. Operations that no member has answered for yet are bounded by the requests in
//! flight, whose budget is smaller than the ring's: a member never loses its place.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::format::batch::{LoggedOperation, MappingRecord};
use crate::store::{Commit, CommitSink, Shipment, ShippedMapping, ShippedOperation, ShippedPayload};
use crate::sync::{Condition, Mutex};
use crate::units::{BlockCount, ByteCount, Lba, Lsn, ObjectNumber};

/// What an operation takes beside its payload and mappings.
const ENTRY_BYTES: u64 = 256;

/// Recent operations, in order and without a gap.
pub struct Ring {
    state: Mutex<State>,
    /// Operations have come.
    grown: Condition,
    budget: ByteCount,
    /// The same as in the state, without its lock.
    listening: AtomicBool,
}

#[derive(Default)]
struct State {
    entries: VecDeque<(Arc<Shipment>, u64)>,
    bytes: u64,
    /// The newest operation that was committed, held or not.
    last: Lsn,
    /// Whether what is committed belongs to the array: not while a node is compared.
    listening: bool,
    /// Raised whenever those who wait are to look around.
    calls: u64,
}

/// Operations that somebody has not answered for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// How many.
    pub operations: u64,
    /// Blocks that they write.
    pub blocks: u64,
}

/// What a stream finds at its place.
#[derive(Debug)]
pub enum Next {
    /// The operation.
    Operation(Arc<Shipment>),
    /// Nothing has come yet.
    NothingYet,
    /// It has been forgotten.
    Gone,
}

impl Ring {
    /// An empty ring that listens to nothing yet.
    #[must_use]
    pub fn new(budget: ByteCount) -> Ring {
        Ring {
            state: Mutex::new(State::default()),
            grown: Condition::new(),
            budget,
            listening: AtomicBool::new(false),
        }
    }

    /// Listens from behind this operation on, and knows of no older one.
    pub fn listen_from(&self, last: Lsn) {
        let mut state = self.state.lock();
        *state = State { last, listening: true, calls: state.calls + 1, ..State::default() };
        self.listening.store(true, Ordering::Release);
        self.grown.notify_all();
    }

    /// Forgets everything and listens to nothing.
    pub fn mute(&self) {
        let mut state = self.state.lock();
        *state = State { last: state.last, calls: state.calls + 1, ..State::default() };
        self.listening.store(false, Ordering::Release);
        self.grown.notify_all();
    }

    /// The newest operation.
    #[must_use]
    pub fn last(&self) -> Lsn {
        self.state.lock().last
    }

    /// Whether everything behind `lsn` is here.
    #[must_use]
    pub fn reaches_back_to(&self, lsn: Lsn) -> bool {
        let state = self.state.lock();
        state.listening && lsn <= state.last && state.last.0 - lsn.0 <= state.entries.len() as u64
    }

    /// The operation of this number.
    #[must_use]
    pub fn get(&self, lsn: Lsn) -> Next {
        let state = self.state.lock();
        if !state.listening {
            return Next::Gone;
        }
        if lsn > state.last {
            return Next::NothingYet;
        }
        let back = usize::try_from(state.last.0 - lsn.0).unwrap_or(usize::MAX);
        let index = state.entries.len().checked_sub(back.saturating_add(1));
        index
            .and_then(|index| state.entries.get(index))
            .map_or(Next::Gone, |(shipment, _)| Next::Operation(Arc::clone(shipment)))
    }

    /// How often those who wait were called.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// Waits until there is an operation behind `lsn`, somebody has called since `seen`, or the time is over. Without
    /// `lsn` only a call ends it.
    pub fn wait(&self, lsn: Option<Lsn>, seen: u64, limit: Duration) {
        let state = self.state.lock();
        if state.calls == seen && lsn.is_none_or(|lsn| state.last <= lsn) {
            drop(self.grown.wait_for(state, limit));
        }
    }

    /// Lets those who wait look around.
    pub fn call(&self) {
        self.state.lock().calls += 1;
        self.grown.notify_all();
    }

    /// Payload bytes and operations behind `lsn`, as far as they are here.
    #[must_use]
    pub fn behind(&self, lsn: Lsn) -> (ByteCount, u64) {
        let state = self.state.lock();
        let count = state.last.0.saturating_sub(lsn.0);
        let newest = state.entries.iter().rev().take(usize::try_from(count).unwrap_or(usize::MAX));
        (ByteCount(newest.map(|(_, bytes)| bytes).sum()), count)
    }

    /// Whether everything behind `lsn` is here, and changes blocks alone: no object came, went or got another size or
    /// content.
    #[must_use]
    pub fn changes_only_blocks_behind(&self, lsn: Lsn) -> bool {
        if !self.reaches_back_to(lsn) {
            return false;
        }
        let state = self.state.lock();
        let behind = usize::try_from(state.last.0.saturating_sub(lsn.0)).unwrap_or(usize::MAX);
        let mut newest = state.entries.iter().rev().take(behind);
        newest.all(|(shipment, _)| {
            matches!(shipment.operation, ShippedOperation::Write { .. } | ShippedOperation::Zero { .. })
        })
    }

    /// What is behind `lsn`, as far as it is here.
    #[must_use]
    pub fn backlog(&self, lsn: Lsn) -> Backlog {
        let state = self.state.lock();
        let behind = usize::try_from(state.last.0.saturating_sub(lsn.0)).unwrap_or(usize::MAX);
        let newest = state.entries.iter().rev().take(behind);
        let blocks = |operation: &ShippedOperation| match operation {
            ShippedOperation::Write { mappings, .. } => mappings.len() as u64,
            _ => 0,
        };
        newest.fold(Backlog::default(), |sum, (shipment, _)| Backlog {
            operations: sum.operations + 1,
            blocks: sum.blocks + blocks(&shipment.operation),
        })
    }

    /// Whether something behind `lsn`, as far as it is here, may free blocks: an object goes or gets another content, or
    /// blocks are no longer stored.
    #[must_use]
    pub fn frees_behind(&self, lsn: Lsn) -> bool {
        let state = self.state.lock();
        let behind = usize::try_from(state.last.0.saturating_sub(lsn.0)).unwrap_or(usize::MAX);
        let mut newest = state.entries.iter().rev().take(behind);
        newest.any(|(shipment, _)| match &shipment.operation {
            ShippedOperation::Write { mappings, .. } => mappings
                .iter()
                .any(|mapping| matches!(mapping, ShippedMapping::Hole | ShippedMapping::Pattern(_))),
            ShippedOperation::Zero { .. }
            | ShippedOperation::DeleteObject { .. }
            | ShippedOperation::RestoreObject { .. } => true,
            _ => false,
        })
    }

    /// The newest operation behind `lsn` that changes one of these blocks, or may: nobody can tell of one that has been
    /// forgotten.
    #[must_use]
    pub fn newest_change(
        &self,
        lsn: Lsn,
        object: ObjectNumber,
        first: Lba,
        count: BlockCount,
    ) -> Option<Lsn> {
        let state = self.state.lock();
        let behind = usize::try_from(state.last.0.saturating_sub(lsn.0)).unwrap_or(usize::MAX);
        let mut newest = state.entries.iter().rev().take(behind);
        let found = newest.find(|(shipment, _)| touches(&shipment.operation, object, first, count));
        let forgotten = behind > state.entries.len();
        let newest_forgotten = || Lsn(state.last.0.saturating_sub(state.entries.len() as u64));
        found.map(|(it, _)| it.lsn).or_else(|| forgotten.then(newest_forgotten))
    }
}

fn touches(operation: &ShippedOperation, object: ObjectNumber, first: Lba, count: BlockCount) -> bool {
    let end = first.0.saturating_add(count.0);
    let overlap = |from: Lba, len: u64| from.0 < end && first.0 < from.0.saturating_add(len);
    match operation {
        ShippedOperation::Write { object: of, first: from, mappings, .. } => {
            *of == object && overlap(*from, mappings.len() as u64)
        }
        ShippedOperation::Zero { object: of, first: from, count: len } => {
            *of == object && overlap(*from, len.0)
        }
        ShippedOperation::CreateObject { object: of, .. }
        | ShippedOperation::UpdateObject { object: of, .. }
        | ShippedOperation::DeleteObject { object: of }
        | ShippedOperation::RestoreObject { object: of, .. } => *of == object,
        ShippedOperation::CloneObjects { clones } => clones.iter().any(|clone| clone.object == object),
    }
}

impl CommitSink for Ring {
    fn listens(&self) -> bool {
        self.listening.load(Ordering::Acquire)
    }

    fn committed(&self, commit: &Commit<'_>) {
        let mut state = self.state.lock();
        if !state.listening {
            return;
        }
        let Some(operation) = shipped(commit) else { return };
        let bytes = ENTRY_BYTES
            + match &operation {
                ShippedOperation::Write { mappings, payloads, .. } => {
                    (payloads.len() + mappings.len() * size_of::<ShippedMapping>()) as u64
                }
                _ => 0,
            };
        let Commit { epoch, lsn, origin, .. } = *commit;
        let shipment = Shipment { epoch, lsn, operation, origin };
        state.entries.push_back((Arc::new(shipment), bytes));
        state.bytes += bytes;
        state.last = commit.lsn;
        while state.bytes > self.budget.0 && state.entries.len() > 1 {
            let Some((_, bytes)) = state.entries.pop_front() else { break };
            state.bytes -= bytes;
        }
        self.grown.notify_all();
    }
}

/// What is shipped of a commit; nothing of what is no operation of the array.
fn shipped(commit: &Commit<'_>) -> Option<ShippedOperation> {
    Some(match commit.operation {
        LoggedOperation::Write { object, first, mappings } => {
            let mut payloads = commit.operation.payloads();
            let named = mappings.iter().zip(commit.fingerprints);
            let mappings = named.map(|(mapping, fingerprint)| match *mapping {
                MappingRecord::Hole => ShippedMapping::Hole,
                MappingRecord::Pattern(word) => ShippedMapping::Pattern(word),
                MappingRecord::Lost => ShippedMapping::Lost,
                MappingRecord::Existing { .. } => {
                    ShippedMapping::Block { fingerprint: *fingerprint, payload: None }
                }
                MappingRecord::New { stored_len, checksum, .. } => {
                    let offset = payloads.next().map_or(0, |(offset, ..)| offset);
                    let offset = u32::try_from(offset).expect("an operation's payloads are below 4 GiB");
                    let payload = Some(ShippedPayload { offset, len: stored_len, checksum });
                    ShippedMapping::Block { fingerprint: *fingerprint, payload }
                }
            });
            ShippedOperation::Write {
                object: *object,
                first: *first,
                mappings: mappings.collect(),
                payloads: Arc::clone(commit.payload),
            }
        }
        LoggedOperation::Zero { object, first, count } => {
            ShippedOperation::Zero { object: *object, first: *first, count: *count }
        }
        LoggedOperation::CreateObject { object, size, opaque } => {
            ShippedOperation::CreateObject { object: *object, size: *size, opaque: opaque.clone() }
        }
        LoggedOperation::UpdateObject { object, size, opaque } => {
            ShippedOperation::UpdateObject { object: *object, size: *size, opaque: opaque.clone() }
        }
        LoggedOperation::DeleteObject { object } => ShippedOperation::DeleteObject { object: *object },
        LoggedOperation::CloneObjects { clones } => ShippedOperation::CloneObjects { clones: clones.clone() },
        LoggedOperation::RestoreObject { object, source, size, opaque } => ShippedOperation::RestoreObject {
            object: *object,
            source: *source,
            size: *size,
            opaque: opaque.clone(),
        },
        LoggedOperation::Moved { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Epoch;

    #[test]
    fn p7_what_was_forgotten_may_have_changed_any_block() {
        let ring = Ring::new(ByteCount(2 * ENTRY_BYTES));
        ring.listen_from(Lsn(0));
        let object = ObjectNumber(1);
        for (lsn, block) in [(1, 3), (2, 5), (3, 6)] {
            let operation = LoggedOperation::Zero { object, first: Lba(block), count: BlockCount(1) };
            let (epoch, payload) = (Epoch::default(), &Arc::default());
            let (operation, fingerprints) = (&operation, &[][..]);
            ring.committed(&Commit { epoch, lsn: Lsn(lsn), operation, origin: None, fingerprints, payload });
        }
        let newest = |lsn, block| ring.newest_change(Lsn(lsn), object, Lba(block), BlockCount(1));
        assert_eq!((newest(0, 5), newest(0, 3), newest(0, 9)), (Some(Lsn(2)), Some(Lsn(1)), Some(Lsn(1))));
        assert_eq!((newest(1, 3), newest(1, 6)), (None, Some(Lsn(3))));
    }
}
