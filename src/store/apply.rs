//! Applying operations that another node has committed: what a secondary does.
//!
//! An operation is shipped with the number and the term that it was given, its blocks named by fingerprint, because
//! block ids are each node's own. It goes the way of an operation that is committed here, through the same
//! preparation and the same function, in the order of numbers and no other. It never waits for another node: where a
//! fingerprint is unknown here and no payload came with it, the answer says so and nothing has changed.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::error::{Error, ErrorKind, Result};
use crate::format::batch::{FRAME_HEADER_BYTES, LoggedOperation, MAPPING_RECORD_BYTES_MAX};
use crate::format::operation::CloneRecord;
use crate::format::{checksum, to_grain};
use crate::units::{BLOCK_BYTES, BlockCount, BlockId, Epoch, Fingerprint, Lba, Lsn, ObjectNumber};

use super::Store;
use super::commit::Verdict;
use super::core::{Core, Stall};
use super::fingerprint::fingerprint;
use super::operation::Claim;
use super::reduce::{Reduced, Reduction, decompress};
use super::run::Caller;
use super::sessions::Origin;

/// Most blocks of one operation.
pub(super) const MAPPINGS_MAX: usize = 256;

/// An operation on its way to a secondary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shipment {
    /// The term in which it was committed.
    pub epoch: Epoch,
    /// Its number.
    pub lsn: Lsn,
    /// What it does.
    pub operation: ShippedOperation,
    /// What it does for a request that is carried out once.
    pub origin: Option<Origin>,
}

/// Under which number an operation is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// That which it was given elsewhere, for this request.
    Shipped(Epoch, Lsn, Option<Origin>),
    /// Whichever is next here.
    Own,
}

impl Turn {
    /// What is remembered of requests is remembered with their numbers.
    fn origin(self) -> Option<Origin> {
        match self {
            Turn::Shipped(_, _, origin) => origin,
            Turn::Own => None,
        }
    }
}

/// What an operation does, without any name that only one node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShippedOperation {
    /// Blocks of an object are set, from `first` on.
    Write {
        /// Whose.
        object: ObjectNumber,
        /// The first block.
        first: Lba,
        /// One for each block, at most 256.
        mappings: Vec<ShippedMapping>,
        /// Where the payloads of the mappings lie.
        payloads: Arc<Vec<u8>>,
    },
    /// Blocks of an object become holes.
    Zero {
        /// Whose.
        object: ObjectNumber,
        /// The first block.
        first: Lba,
        /// How many.
        count: BlockCount,
    },
    /// An object comes to be.
    CreateObject {
        /// Its number.
        object: ObjectNumber,
        /// Its size.
        size: BlockCount,
        /// What the layer above keeps with it.
        opaque: Vec<u8>,
    },
    /// An object gets another size and other opaque bytes.
    UpdateObject {
        /// Its number.
        object: ObjectNumber,
        /// Its new size.
        size: BlockCount,
        /// What the layer above keeps with it.
        opaque: Vec<u8>,
    },
    /// An object goes.
    DeleteObject {
        /// Its number.
        object: ObjectNumber,
    },
    /// Objects come to be that hold what others hold at this moment.
    CloneObjects {
        /// At most `CLONES_MAX`.
        clones: Vec<CloneRecord>,
    },
    /// An object gets the content of another, and other opaque bytes.
    RestoreObject {
        /// Its number.
        object: ObjectNumber,
        /// Whose content it gets.
        source: ObjectNumber,
        /// Its new size.
        size: BlockCount,
        /// What the layer above keeps with it.
        opaque: Vec<u8>,
    },
}

/// What a shipped write sets one block to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShippedMapping {
    /// Nothing.
    Hole,
    /// A repeated 32-bit word.
    Pattern(u32),
    /// What whoever ships it cannot read: reading it is an error here, too.
    Lost,
    /// The block with this fingerprint.
    Block {
        /// The fingerprint, under the key that all nodes of an array share.
        fingerprint: Fingerprint,
        /// Its stored bytes, where they came with it. Of several mappings of one block the first may bring them for
        /// all.
        payload: Option<ShippedPayload>,
    },
}

/// The stored bytes of one block: compressed, or the block itself where they are 4,096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShippedPayload {
    /// Where they begin in the operation's payloads.
    pub offset: u32,
    /// How many they are.
    pub len: u16,
    /// Their checksum.
    pub checksum: u64,
}

/// What has become of an operation that was to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It and everything before it has been applied, now or earlier; this is the newest that has.
    UpTo(Lsn),
    /// The blocks at these positions are not here (of several that are the same, the first): nothing has changed, and
    /// the operation must come again with their payloads.
    NeedsPayloads(Vec<usize>),
}

impl Store {
    /// Applies an operation that another node has committed. Afterwards every reader sees it; it may be answered for
    /// once `write_out` has returned for its number.
    ///
    /// # Errors
    /// `Invalid` for a number that leaves a gap, and for an operation that makes no sense here; `NotPrimary` for one
    /// of a term that is over; `Corrupt` for a payload that is not what its checksum and fingerprint say; and as
    /// `write`. After an error nothing has changed.
    pub fn apply(&self, shipment: &Shipment) -> Result<Applied> {
        if let Some(known) = self.core.lock().known_already(shipment.epoch, shipment.lsn)? {
            return Ok(Applied::UpTo(known));
        }
        self.apply_in_turn(Turn::Shipped(shipment.epoch, shipment.lsn, shipment.origin), &shipment.operation)
    }

    /// Does what another node has done as an operation of this store's own: the next one, in its present term. Objects
    /// keep the numbers that they have in the operation. What is long is done as several operations: where payloads
    /// are missing or an error comes, the first of them may have been done, and doing all of it again does no harm.
    ///
    /// # Errors
    /// As `apply`, but that no number and no term is wrong; `Exists` for an object that is to be made and is there.
    pub fn apply_local(&self, operation: &ShippedOperation) -> Result<Applied> {
        if let ShippedOperation::Zero { object, first, count } = operation {
            self.zero_if(*object, *first, *count, None, |_| Ok(()))?;
            return Ok(Applied::UpTo(self.last_lsn()));
        }
        if let ShippedOperation::Write { object, first, mappings, payloads } = operation
            && mappings.len() > self.geometry.operation_blocks
        {
            return self.write_in_parts(*object, *first, mappings, payloads);
        }
        self.apply_in_turn(Turn::Own, operation)
    }

    fn write_in_parts(
        &self,
        object: ObjectNumber,
        first: Lba,
        mappings: &[ShippedMapping],
        payloads: &[u8],
    ) -> Result<Applied> {
        self.check_payloads(mappings, payloads)?;
        // All that is missing is asked for at once.
        if let Err(missing) = self.resolve(mappings, payloads)? {
            return Ok(Applied::NeedsPayloads(missing));
        }
        let mut done = 0;
        for part in mappings.chunks(self.geometry.operation_blocks) {
            let applied = self.apply_write(Turn::Own, object, first.plus(done as u64), part, payloads)?;
            if let Applied::NeedsPayloads(missing) = applied {
                return Ok(Applied::NeedsPayloads(missing.into_iter().map(|at| done + at).collect()));
            }
            done += part.len();
        }
        Ok(Applied::UpTo(self.last_lsn()))
    }

    fn apply_in_turn(&self, turn: Turn, operation: &ShippedOperation) -> Result<Applied> {
        let other = match operation {
            ShippedOperation::Write { object, first, mappings, payloads } => {
                return self.apply_write(turn, *object, *first, mappings, payloads);
            }
            ShippedOperation::Zero { object, first, count } => {
                return self.apply_zero(turn, *object, *first, *count);
            }
            ShippedOperation::CreateObject { object, size, opaque } => {
                LoggedOperation::CreateObject { object: *object, size: *size, opaque: opaque.clone() }
            }
            ShippedOperation::UpdateObject { object, size, opaque } => {
                LoggedOperation::UpdateObject { object: *object, size: *size, opaque: opaque.clone() }
            }
            ShippedOperation::DeleteObject { object } => LoggedOperation::DeleteObject { object: *object },
            ShippedOperation::CloneObjects { clones } => {
                LoggedOperation::CloneObjects { clones: clones.clone() }
            }
            ShippedOperation::RestoreObject { object, source, size, opaque } => {
                LoggedOperation::RestoreObject {
                    object: *object,
                    source: *source,
                    size: *size,
                    opaque: opaque.clone(),
                }
            }
        };
        if matches!(other, LoggedOperation::DeleteObject { .. } | LoggedOperation::RestoreObject { .. }) {
            self.release_before_adding()?;
        }
        self.run(Caller::Request, |core| {
            core.in_its_turn(turn, |core| self.enter_management(core, &other).map(|_| ()))
        })
    }

    fn apply_zero(&self, turn: Turn, object: ObjectNumber, first: Lba, count: BlockCount) -> Result<Applied> {
        let operation = LoggedOperation::Zero { object, first, count };
        self.release_before_adding()?;
        self.run(Caller::Request, |core| {
            core.in_its_turn(turn, |core| {
                core.writable()?;
                let (prepared, needs) = core.prepare_operation(&operation, usize::MAX)?;
                let claim = Claim::of_zero(&needs);
                core.check_room(&needs, 0, claim)?;
                core.prepare_log(operation.encode(0).len(), claim.segments_kept(&self.geometry))?;
                self.enter(core, &operation, &prepared, &Arc::default(), turn.origin(), Vec::new);
                Ok(())
            })
        })
    }

    fn apply_write(
        &self,
        turn: Turn,
        object: ObjectNumber,
        first: Lba,
        mappings: &[ShippedMapping],
        payloads: &[u8],
    ) -> Result<Applied> {
        self.check_frame(mappings)?;
        self.check_payloads(mappings, payloads)?;
        loop {
            let reduction = match self.resolve(mappings, payloads)? {
                Ok(reduction) => reduction,
                Err(missing) => return Ok(Applied::NeedsPayloads(missing)),
            };
            let applied = self.run_taking_ids(&reduction, |core| {
                let mut there = true;
                let applied = core.in_its_turn(turn, |core| {
                    there = self.commit_write(core, object, first, &reduction, turn.origin())?.is_some();
                    Ok(())
                })?;
                Ok(there.then_some(applied))
            })?;
            // A block that was here has gone since: look again.
            if let Some(applied) = applied {
                return Ok(applied);
            }
        }
    }

    /// Whether an operation can be one frame of a segment of this pool.
    fn check_frame(&self, mappings: &[ShippedMapping]) -> Result<()> {
        let payload_max =
            mappings.iter().filter(|mapping| matches!(mapping, ShippedMapping::Block { .. })).count()
                * BLOCK_BYTES;
        let records_max = to_grain(FRAME_HEADER_BYTES + mappings.len() * MAPPING_RECORD_BYTES_MAX);
        if mappings.len() > MAPPINGS_MAX || records_max + payload_max > self.geometry.frame_bytes_max() {
            let what = format!("an operation of {} blocks is too long for this pool", mappings.len());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(())
    }

    /// Refuses payloads that are not what they should be.
    fn check_payloads(&self, mappings: &[ShippedMapping], payloads: &[u8]) -> Result<()> {
        let mut block = [0u8; BLOCK_BYTES];
        for (position, mapping) in mappings.iter().enumerate() {
            let ShippedMapping::Block { fingerprint: named, payload: Some(payload) } = mapping else {
                continue;
            };
            let intact = payload.stored(payloads).is_some_and(|stored| {
                checksum(stored) == payload.checksum
                    && decompress(stored, &mut block)
                    && fingerprint(&self.identity.fingerprint_key, &block) == *named
            });
            if !intact {
                let what = format!("the payload shipped for block {position} of an operation is damaged");
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
        }
        Ok(())
    }

    /// Which blocks are here, and which are to be stored; or the positions of those that are neither here nor
    /// shipped.
    fn resolve(&self, mappings: &[ShippedMapping], payloads: &[u8]) -> Result<Result<Reduction, Vec<usize>>> {
        let mut blocks: Vec<Reduced> = Vec::with_capacity(mappings.len());
        let mut stored_bytes: Vec<u8> = Vec::new();
        let mut seen: FxHashMap<Fingerprint, usize> = FxHashMap::default();
        let mut missing: Vec<usize> = Vec::new();
        for (position, mapping) in mappings.iter().enumerate() {
            let (fingerprint, payload) = match *mapping {
                ShippedMapping::Hole => {
                    blocks.push(Reduced::Zero);
                    continue;
                }
                ShippedMapping::Pattern(word) => {
                    blocks.push(Reduced::Pattern(word));
                    continue;
                }
                ShippedMapping::Lost => {
                    blocks.push(Reduced::Lost);
                    continue;
                }
                ShippedMapping::Block { fingerprint, payload } => (fingerprint, payload),
            };
            if let Some(of) = seen.get(&fingerprint) {
                blocks.push(Reduced::Twin { of: *of });
                continue;
            }
            let (here, heals) = match self.look_for(&fingerprint)? {
                Some((block, Verdict::Same)) => (Some(block), None),
                Some((block, Verdict::Bad)) => (None, Some(block)),
                _ => (None, None),
            };
            let stored = payload.and_then(|payload| Some((payload, payload.stored(payloads)?)));
            blocks.push(match (here, stored) {
                (Some(block), _) => Reduced::Candidate { block, fingerprint },
                (None, Some((ShippedPayload { len, checksum, .. }, stored))) => {
                    stored_bytes.extend_from_slice(stored);
                    stored_bytes.resize(to_grain(stored_bytes.len()), 0);
                    Reduced::Stored { stored_len: len, fingerprint, checksum, heals }
                }
                (None, None) => {
                    missing.push(position);
                    Reduced::Zero
                }
            });
            seen.insert(fingerprint, position);
        }
        if !missing.is_empty() {
            return Ok(Err(missing));
        }
        Ok(Ok(Reduction { blocks, payload: Arc::new(stored_bytes) }))
    }

    /// The block that the index offers for a fingerprint, and what the table says of it.
    fn look_for(&self, fingerprint: &Fingerprint) -> Result<Option<(BlockId, Verdict)>> {
        let Some(block) = self.index.probe(fingerprint) else { return Ok(None) };
        match self.run(Caller::Request, |core| core.verdict(block, fingerprint)) {
            Ok(verdict) => Ok(Some((block, verdict))),
            // A damaged page of the table costs a payload, not the operation.
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Device) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl ShippedPayload {
    /// The stored bytes; `None` where there are none of a block.
    fn stored(self, payloads: &[u8]) -> Option<&[u8]> {
        let (from, len) = (self.offset as usize, usize::from(self.len));
        if len == 0 || len > BLOCK_BYTES {
            return None;
        }
        payloads.get(from..from.checked_add(len)?)
    }
}

impl Core {
    /// The newest operation, where the one that was shipped has been applied already.
    fn known_already(&self, epoch: Epoch, lsn: Lsn) -> Result<Option<Lsn>, Error> {
        let committed = self.log.committed();
        if epoch < self.log.epoch {
            let what = format!("operation {lsn} is of a term that is over");
            return Err(Error::new(ErrorKind::NotPrimary, what));
        }
        if lsn > committed.next() {
            let what = format!("operation {lsn} leaves a gap: {committed} is the last one here");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok((lsn <= committed).then_some(committed))
    }

    /// Commits what was shipped if it is its turn, under the number and term that it has.
    fn in_its_turn(
        &mut self,
        turn: Turn,
        commit: impl FnOnce(&mut Core) -> Result<(), Stall>,
    ) -> Result<Applied, Stall> {
        if let Turn::Shipped(epoch, lsn, _) = turn {
            if let Some(known) = self.known_already(epoch, lsn)? {
                return Ok(Applied::UpTo(known));
            }
            self.log.raise_epoch(epoch);
        }
        commit(self)?;
        Ok(Applied::UpTo(self.log.committed()))
    }
}
