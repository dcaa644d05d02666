//! Comparing a secondary: what it begins with, what is read for it, and how far that has come.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::cursor::{CURSOR_OBJECTS_MAX, CursorBegan, CursorObject, ResyncCursor};
use crate::replica::bookmarks::{Beginning, Inventory};
use crate::replica::decisions::Position;
use crate::replica::epochs::Epochs;
use crate::replica::ring::Ring;
use crate::replica::wire::{Base, Downstream, Standing};
use crate::store::{
    BlockAt, MappedRun, MappingKind, ShippedMapping, ShippedOperation, ShippedPayload, Store,
};
use crate::sync::Mutex;
use crate::units::{BlockCount, Lba, Lsn, ObjectNumber};

use super::{MISSES_MANY, Stream};

/// Blocks of one piece.
const PIECE_BLOCKS: u64 = 256;
/// Pieces that one look reads, at most twice as many.
const PIECES_TOGETHER: u64 = 4;
/// Blocks that one look at two trees covers, at most.
const LOOK_BLOCKS: u64 = 1 << 22;
/// Runs of one look.
const LOOK_RUNS: usize = 128;
/// Blocks whose mappings are damaged together, at least.
const LEAF_BLOCKS: u64 = 512;

/// A piece, and behind which operation it was read.
pub(super) type Placed = (Lsn, ShippedOperation);

/// A secondary being compared.
#[derive(Default)]
pub(super) struct Comparison {
    /// What is left to look at.
    pub(super) work: VecDeque<Work>,
    /// What each object began with on both sides.
    pub(super) began: BTreeMap<ObjectNumber, Began>,
    pub(super) pieces: VecDeque<Placed>,
    /// The newest look.
    looked: Option<Look>,
    /// It goes on where an earlier one was broken off.
    pub(super) resumed: bool,
}

/// An object, as far as it has been looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) object: ObjectNumber,
    pub(super) began: Began,
    pub(super) at: Lba,
}

/// A look at an object.
#[derive(Clone, Copy, Debug)]
struct Look {
    object: ObjectNumber,
    /// Where it began.
    from: Lba,
    /// It has seen nothing newer than this operation.
    until: Lsn,
}

/// What an object began with on both sides: what it maps otherwise is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Began {
    /// Holes.
    Empty,
    /// What this object holds, which nobody writes to.
    Like(ObjectNumber),
    /// What nobody can tell any more: everything is sent.
    Unknown,
}

impl Stream {
    /// Goes on where a comparison was broken off, if that can be: the same primary in the same term, so that the
    /// secondary has nothing that it does not have; all operations since are here; and doing them once more changes
    /// nothing but blocks. What was sent behind the cursor is sent again.
    pub(super) fn resume(&mut self, epochs: &Epochs, cursor: &ResyncCursor) -> bool {
        let (epoch, lsn) = cursor.position;
        let position = Position { epoch, lsn };
        let can = self.term == Some(cursor.term)
            && epochs.holds(position, self.ring.last())
            && self.ring.changes_only_blocks_behind(lsn);
        if !can {
            return false;
        }
        self.sent = position;
        let mut comparison = Comparison { resumed: true, ..Comparison::default() };
        for CursorObject { number, began, next } in &cursor.objects {
            let began = match began {
                CursorBegan::Empty => Began::Empty,
                CursorBegan::Like(other) => Began::Like(*other),
                CursorBegan::Unknown => Began::Unknown,
            };
            comparison.began.insert(*number, began);
            comparison.work.extend(next.map(|at| Work { object: *number, began, at }));
        }
        self.first.push_back(Downstream::Resume);
        self.comparison = Some(comparison);
        true
    }

    /// How far the comparison has come, where it is time to say so. Nothing that was read is left to be sent.
    pub(super) fn cursor(&mut self) -> Option<ResyncCursor> {
        let comparison = self.comparison.as_ref()?;
        let due = self.comparison_bytes >= self.cursor_at_bytes + self.cursor_every.0;
        if !due || !comparison.pieces.is_empty() || comparison.began.len() > CURSOR_OBJECTS_MAX {
            return None;
        }
        let work: BTreeMap<ObjectNumber, &Work> =
            comparison.work.iter().map(|work| (work.object, work)).collect();
        let objects = comparison.began.iter().map(|(number, began)| {
            let work = work.get(number);
            let began = match work.map_or(*began, |work| work.began) {
                Began::Empty => CursorBegan::Empty,
                Began::Like(other) => CursorBegan::Like(other),
                Began::Unknown => CursorBegan::Unknown,
            };
            CursorObject { number: *number, began, next: work.map(|work| work.at) }
        });
        let position = (self.sent.epoch, self.sent.lsn);
        let cursor = ResyncCursor { term: self.term?, position, objects: objects.collect() };
        self.cursor_at_bytes = self.comparison_bytes;
        Some(cursor)
    }

    /// Chooses what every object begins with. No object comes or goes meanwhile, and operations on blocks that are
    /// committed from here on are in the stream.
    pub(super) fn begin_anew(&mut self, standing: &Standing) -> Result<()> {
        let (epoch, lsn) = self.store.position();
        if !self.ring.reaches_back_to(lsn) {
            return Err(Error::new(ErrorKind::NotPrimary, "this node does not listen to its own operations"));
        }
        self.sent = Position { epoch, lsn };
        let inventory = Inventory::of(&self.store)?;
        let beginning = inventory.beginning(standing);
        let mut work = VecDeque::new();
        let mut began = BTreeMap::new();
        self.first.push_back(Downstream::Anew);
        for Beginning { object, base } in beginning {
            let began_with = match base {
                Base::Kept => Began::Like(object.number),
                Base::Like(other) => Began::Like(other),
                Base::Empty => Began::Empty,
                Base::Own => Began::Unknown,
            };
            began.insert(object.number, began_with);
            if base != Base::Kept {
                work.push_back(Work { object: object.number, began: began_with, at: Lba(0) });
            }
            let (number, size) = (object.number, object.size);
            self.first.push_back(Downstream::Object { object: number, size, opaque: object.opaque, base });
        }
        self.first.push_back(Downstream::ObjectsEnd);
        self.comparison = Some(Comparison { work, began, ..Comparison::default() });
        Ok(())
    }

    /// Looks at some more of what is to be compared, and reads the pieces that differ.
    pub(super) fn look(&mut self) -> Result<()> {
        let Some(comparison) = &mut self.comparison else { return Ok(()) };
        let Some(work) = comparison.work.front_mut() else { return Ok(()) };
        let (object, began, at) = (work.object, work.began, work.at);
        let Some(size) = self.store.object_size(object).filter(|size| at.0 < size.0) else {
            // Deleted meanwhile, or looked at to its end.
            comparison.work.pop_front();
            return Ok(());
        };
        let count = BlockCount((size.0 - at.0).min(LOOK_BLOCKS));
        let together = if self.allowance.is_some() { 1 } else { PIECES_TOGETHER };
        let mut holes: Vec<(Lsn, Lba, BlockCount)> = Vec::new();
        let looked: Result<Vec<(u64, bool)>> = match began {
            Began::Like(base) => self
                .store
                .diff(base, object, at, count, LOOK_RUNS)
                .map(|runs| runs.into_iter().map(|run| (run.blocks.0, run.changed.is_some())).collect()),
            Began::Unknown | Began::Empty => {
                let enough = together * PIECE_BLOCKS;
                list(&self.store, &self.ring, object, at, count, enough, &mut holes)
            }
        };
        let runs = match looked {
            // It, or what it began like, is being deleted: the stream will come to that.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                match self.store.object_size(object) {
                    None => drop(comparison.work.pop_front()),
                    Some(_) => work.began = Began::Unknown,
                }
                return Ok(());
            }
            other => other?,
        };
        let mut next = at;
        let mut different = Vec::new();
        for (blocks, differs) in runs {
            if differs {
                different.push((next, blocks));
            }
            next = next.plus(blocks);
            // Pieces are read when they can soon be sent.
            if different.iter().map(|(_, blocks)| blocks).sum::<u64>() >= together * PIECE_BLOCKS {
                break;
            }
        }
        let left: u64 = different.iter().map(|(_, blocks)| *blocks).sum();
        let mut budget = 2 * together * PIECE_BLOCKS;
        work.at = next;
        if left > budget {
            // A long run: it is gone on with later.
            let (start, blocks) = different.pop().unwrap_or((next, 0));
            let before = left - blocks;
            budget -= before.min(budget);
            let part = blocks.min(budget.max(PIECE_BLOCKS));
            different.push((start, part));
            work.at = start.plus(part);
        }
        let next = work.at;
        if began == Began::Unknown {
            // They were seen before the pieces are read, and go first.
            for (after, first, count) in holes.into_iter().filter(|(_, first, _)| *first < next) {
                comparison.add((after, ShippedOperation::Zero { object, first, count }));
            }
        }
        for (start, blocks) in different {
            for from in (0..blocks).step_by(usize::try_from(PIECE_BLOCKS).unwrap_or(1)) {
                let count = BlockCount((blocks - from).min(PIECE_BLOCKS));
                self.read_piece(object, start.plus(from), count, began)?;
            }
        }
        let until = self.ring.last();
        if let Some(comparison) = &mut self.comparison {
            comparison.looked = Some(Look { object, from: at, until });
        }
        Ok(())
    }

    fn read_piece(
        &mut self,
        object: ObjectNumber,
        first: Lba,
        count: BlockCount,
        began: Began,
    ) -> Result<()> {
        let read: Mutex<Option<Placed>> = Mutex::new(None);
        let (ring, mut lost) = (&self.ring, 0);
        let outcome = self.store.mappings_as_far_as_readable(object, first, count, &mut |mappings| {
            lost = mappings.iter().filter(|mapping| matches!(mapping, ShippedMapping::Lost)).count();
            let operation = if mappings.iter().all(|mapping| matches!(mapping, ShippedMapping::Hole)) {
                ShippedOperation::Zero { object, first, count }
            } else {
                let (mappings, payloads) = (mappings.to_vec(), Arc::default());
                ShippedOperation::Write { object, first, mappings, payloads }
            };
            *read.lock() = Some((ring.last(), operation));
        });
        match outcome {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        let Some((after, mut operation)) = read.into_inner() else { return Ok(()) };
        if lost > 0 {
            tracing::warn!(
                "{lost} blocks of object {object} among {count} from {first} on cannot be read here: they are lost to node \
                 {}, too",
                self.peer.node.0
            );
        }
        // An object that kept what it was may hold most of it: there it is asked for what is missing.
        if self.misses >= MISSES_MANY && began != Began::Unknown {
            self.bring_payloads(&mut operation)?;
        }
        if let Some(comparison) = &mut self.comparison {
            comparison.add((after, operation));
        }
        Ok(())
    }

    /// Adds the payloads of a piece; those that cannot be had any more are asked for, or not.
    fn bring_payloads(&self, operation: &mut ShippedOperation) -> Result<()> {
        let ShippedOperation::Write { object, first, mappings, payloads } = operation else { return Ok(()) };
        let mut bytes: Vec<u8> = Vec::new();
        for (lba, mapping) in (first.0..).map(Lba).zip(mappings.iter_mut()) {
            let ShippedMapping::Block { fingerprint, payload } = mapping else { continue };
            let BlockAt::Stored(stored, checksum) = self.store.block_at(*object, lba, fingerprint)? else {
                continue;
            };
            let offset = u32::try_from(bytes.len()).expect("a piece is at most 1 MiB");
            let len = u16::try_from(stored.len()).expect("a stored block is at most 4,096 bytes");
            bytes.extend_from_slice(&stored);
            *payload = Some(ShippedPayload { offset, len, checksum });
        }
        *payloads = Arc::new(bytes);
        Ok(())
    }
}

/// Runs of what an object maps and of holes, until there is enough of the former. Where it holds nothing, and behind which
/// operation that was seen, goes to `holes`. What cannot be read counts as mapped.
fn list(
    store: &Store,
    ring: &Ring,
    object: ObjectNumber,
    first: Lba,
    count: BlockCount,
    enough: u64,
    holes: &mut Vec<(Lsn, Lba, BlockCount)>,
) -> Result<Vec<(u64, bool)>> {
    let mut runs: Vec<(u64, bool)> = Vec::new();
    let (mut covered, mut mapped) = (0, 0);
    while covered < count.0 && runs.len() < LOOK_RUNS && mapped < enough {
        let mut found: (Lsn, Vec<MappedRun>) = Default::default();
        let (at, left) = (first.plus(covered), BlockCount(count.0 - covered));
        match store.shipped_kinds(object, at, left, &mut |kinds| found = (ring.last(), kinds.to_vec())) {
            Err(error) if store.is_damage(&error) => {
                let blocks = BlockCount((LEAF_BLOCKS - at.0 % LEAF_BLOCKS).min(left.0));
                found.1 = vec![MappedRun { blocks, kind: MappingKind::Data }];
            }
            other => other?,
        }
        let (seen, kinds) = found;
        for MappedRun { blocks, kind } in kinds {
            let hole = kind == MappingKind::Hole;
            if hole {
                holes.push((seen, first.plus(covered), blocks));
            } else {
                mapped += blocks.0;
            }
            match runs.last_mut() {
                Some((run, last)) if *last != hole => *run += blocks.0,
                _ => runs.push((blocks.0, !hole)),
            }
            covered += blocks.0;
        }
    }
    Ok(runs)
}

impl Comparison {
    fn add(&mut self, (after, operation): Placed) {
        if let (
            ShippedOperation::Zero { object, first, count },
            Some((last_after, ShippedOperation::Zero { object: last, first: from, count: len })),
        ) = (&operation, self.pieces.back_mut())
            && object == last
            && *last_after == after
            && from.plus(len.0) == *first
        {
            len.0 += count.0;
            return;
        }
        self.pieces.push_back((after, operation));
    }

    /// What an operation in the stream adds to the work: objects that are made of others may be made of what is not
    /// complete yet on the secondary.
    pub(super) fn note(&mut self, lsn: Lsn, operation: &ShippedOperation) {
        match operation {
            ShippedOperation::CloneObjects { clones } => {
                for clone in clones {
                    self.again(lsn, clone.object, clone.source);
                }
            }
            ShippedOperation::RestoreObject { object, source, .. } => self.again(lsn, *object, *source),
            ShippedOperation::CreateObject { object, .. } => {
                self.began.insert(*object, Began::Empty);
            }
            ShippedOperation::DeleteObject { object } => {
                self.began.remove(object);
                self.work.retain(|work| work.object != *object);
                // What began like it cannot be told from it any more.
                let others = self.began.values_mut().chain(self.work.iter_mut().map(|work| &mut work.began));
                others
                    .filter(|began| **began == Began::Like(*object))
                    .for_each(|began| *began = Began::Unknown);
            }
            _ => {}
        }
    }

    /// With this operation an object has the content of another, on both sides as it is there: complete or not. What is
    /// complete of the source at this place of the stream is complete of the object.
    fn again(&mut self, lsn: Lsn, object: ObjectNumber, source: ObjectNumber) {
        let work = self.work.iter().find(|work| work.object == source);
        let known = work.map(|work| work.began).or_else(|| self.began.get(&source).copied());
        let began = known.unwrap_or(Began::Unknown);
        let left = work.map(|work| work.at).or_else(|| known.is_none().then_some(Lba(0)));
        // What the newest look has covered is only complete once everything has been sent that it may have seen, and its
        // pieces are behind that: they may still wait, or what it found equal have become so only later.
        let unsettled = self.looked.filter(|look| look.object == source && look.until >= lsn);
        let at = left.into_iter().chain(unsettled.map(|look| look.from)).min();
        self.began.insert(object, began);
        self.work.retain(|work| work.object != object);
        self.work.extend(at.map(|at| Work { object, began, at }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: ObjectNumber = ObjectNumber(1);
    const MADE: ObjectNumber = ObjectNumber(9);

    /// Where an object that is made of another one is gone on with, by the place at which that happens.
    fn made_at(lsn: u64, left: Option<u64>) -> Option<u64> {
        let began = Began::Like(ObjectNumber(5));
        let mut comparison = Comparison {
            began: [(SOURCE, began)].into(),
            work: left.map(|at| Work { object: SOURCE, began, at: Lba(at) }).into_iter().collect(),
            looked: Some(Look { object: SOURCE, from: Lba(30), until: Lsn(12) }),
            ..Comparison::default()
        };
        comparison.again(Lsn(lsn), MADE, SOURCE);
        assert_eq!(comparison.began.get(&MADE), Some(&began));
        comparison.work.iter().find(|work| work.object == MADE).map(|work| work.at.0)
    }

    #[test]
    fn p7_what_is_made_of_an_object_goes_on_behind_what_is_complete_of_that_at_its_place() {
        // Everything that the newest look may have seen has been sent, and its pieces with it.
        assert_eq!((made_at(13, Some(70)), made_at(13, None)), (Some(70), None));
        // It has seen this operation, or its pieces wait for it: what it covered is not complete yet.
        for lsn in [11, 12] {
            assert_eq!((made_at(lsn, Some(70)), made_at(lsn, None)), (Some(30), Some(30)));
        }
    }

    #[test]
    fn what_is_made_of_what_nobody_knows_is_compared_from_its_beginning() {
        let mut comparison = Comparison::default();
        comparison.again(Lsn(3), MADE, SOURCE);
        let work = comparison.work.front().copied().unwrap();
        assert_eq!((work.object, work.began, work.at), (MADE, Began::Unknown, Lba(0)));
    }
}
