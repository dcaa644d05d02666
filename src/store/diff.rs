//! What has changed from one object to another, by walking both trees and skipping what they share.
//!
//! A node that two objects both reach is shared, and a shared node is never rewritten in place: equal node ids mean
//! equal mappings below, without a look. That holds only between objects that are both there, never against a tree
//! that is only remembered, so each step looks the roots up anew. What cannot be read counts as changed: a change is
//! never hidden, and whoever then reads the blocks gets the error for exactly those that cannot be read.

use crate::error::{Error, ErrorKind, Result};
use crate::format::bytes::get_u64;
use crate::format::page::{Mapping, NODE_ENTRIES};
use crate::units::{BlockCount, Lba, MapNodeId, ObjectNumber};

use super::Store;
use super::core::{Core, Stall};
use super::map::{ObjectRoot, node_page, slot, span};
use super::read::MappingKind;
use super::run::Caller;

/// A run of blocks that have all changed, to mappings of one kind, or that are all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRun {
    /// How many.
    pub blocks: BlockCount,
    /// What the newer object maps them to, where that is not what the older one does; `None` for blocks that are the
    /// same.
    pub changed: Option<MappingKind>,
}

/// Most steps of one call: each looks at one node of each tree at each level.
const STEPS_MAX: usize = 1024;

/// Which of the two trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Older,
    Newer,
}

/// What one tree has at a level for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The tree is lower than this level, and lies below its first entry.
    Above,
    Node(MapNodeId),
    /// Nothing but holes from the block on.
    Holes,
    /// It could not be read.
    Unknown,
}

/// A walk down both trees to one block, as one attempt under the lock.
struct Descent {
    lba: Lba,
    older: Option<ObjectRoot>,
    newer: Option<ObjectRoot>,
    /// The node whose page was asked for last: where an attempt fails, the one that cannot be read.
    asked: (Side, u8),
}

/// Blocks from one place on: how many, and whether and how they have changed.
type Stretch = Vec<(u64, Option<MappingKind>)>;

impl Store {
    /// What the range of `newer` holds otherwise than the same range of `older`, as runs in order. They cover a part
    /// of the range from its beginning, at least one block and never more than the range: the work of one call is
    /// bounded, and the caller goes on behind the last run. There are at most `runs_max` of them (one, for 0), and
    /// neighbours differ.
    ///
    /// Blocks beyond the end of `older` count as holes there. Mappings are compared, not bytes: blocks that
    /// deduplication has found to be the same are the same, and so are equal patterns; a block that was written again
    /// with what it held counts as changed only where the store did not see that. What a repair has given up as lost,
    /// and what cannot be read, counts as changed.
    ///
    /// Both should be objects that nobody writes to, such as snapshots. A volume that is being written is compared
    /// through a momentary clone of it that the caller makes and deletes: else each run is of a moment of its own.
    ///
    /// # Errors
    /// `Invalid` for a range that is empty or does not lie within `newer`, `NotFound`, `Device`.
    pub fn diff(
        &self,
        older: ObjectNumber,
        newer: ObjectNumber,
        first: Lba,
        count: BlockCount,
        runs_max: usize,
    ) -> Result<Vec<ChangedRun>> {
        let mut runs: Vec<ChangedRun> = Vec::new();
        let mut done = 0;
        // Behind these blocks of a tree that cannot be read, it can again.
        let mut unknown_until = [Lba(0); 2];
        for _ in 0..STEPS_MAX {
            if done >= count.0 && count.0 > 0 {
                break;
            }
            let lba = first.plus(done);
            let mut asked = (Side::Older, 0);
            let step = self.run(Caller::Request, |core| {
                let roots = core.roots_to_compare(older, newer, first, count)?;
                let known =
                    |side: Side| (lba >= unknown_until[side as usize]).then_some(roots[side as usize]);
                let (older, newer) = (known(Side::Older), known(Side::Newer));
                let mut descent = Descent { lba, older, newer, asked: (Side::Older, 0) };
                let outcome = descent.compare(core);
                asked = descent.asked;
                outcome
            });
            let stretch = match step {
                Ok(stretch) => stretch,
                Err(error) if self.is_damage(&error) => {
                    let (side, level) = asked;
                    unknown_until[side as usize] = Lba((lba.0 / span(level) + 1) * span(level));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let limit = unknown_until.iter().filter(|until| **until > lba).map(|until| until.0 - lba.0).min();
            let mut room = limit.unwrap_or(u64::MAX).min(count.0 - done);
            for (blocks, changed) in stretch {
                let blocks = blocks.min(room);
                let held = runs.len();
                match runs.last_mut() {
                    _ if blocks == 0 => break,
                    Some(run) if run.changed == changed => run.blocks.0 += blocks,
                    Some(_) if held >= runs_max => return Ok(runs),
                    _ => runs.push(ChangedRun { blocks: BlockCount(blocks), changed }),
                }
                room -= blocks;
                done += blocks;
            }
        }
        Ok(runs)
    }
}

impl Core {
    /// The roots of both objects, after a look at the range.
    fn roots_to_compare(
        &self,
        older: ObjectNumber,
        newer: ObjectNumber,
        first: Lba,
        count: BlockCount,
    ) -> Result<[ObjectRoot; 2], Error> {
        let (older, newer) = (self.object(older)?, self.object(newer)?);
        if count.0 == 0 || first.0.checked_add(count.0).is_none_or(|end| end > newer.size.0) {
            let what = format!("{count} blocks from {first} on do not lie within object {}", newer.number);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok([ObjectRoot::from(older), ObjectRoot::from(newer)])
    }
}

impl Descent {
    /// Compares from the block on to the end of the highest subtree that answers the question.
    fn compare(&mut self, core: &mut Core) -> Result<Stretch, Stall> {
        let top = [self.older, self.newer].into_iter().flatten().map(|root| root.level).max().unwrap_or(0);
        let mut older = self.enter(self.older, top);
        let mut newer = self.enter(self.newer, top);
        let mut level = top;
        loop {
            let to_end = span(level) - self.lba.0 % span(level);
            match (older, newer) {
                (_, At::Unknown) => return Ok(vec![(to_end, Some(MappingKind::Data))]),
                (At::Holes, At::Holes) => return Ok(vec![(to_end, None)]),
                (At::Node(one), At::Node(other)) if one == other => return Ok(vec![(to_end, None)]),
                (At::Unknown, At::Holes) => return Ok(vec![(to_end, Some(MappingKind::Hole))]),
                _ => {}
            }
            if level == 0 {
                return self.compare_leaves(core, older, newer);
            }
            let same = self.same_below(core, level, older, newer)?;
            if same > 0 {
                return Ok(vec![(same, None)]);
            }
            older = self.descend(core, Side::Older, older, level)?;
            newer = self.descend(core, Side::Newer, newer, level)?;
            level -= 1;
        }
    }

    fn enter(&self, tree: Option<ObjectRoot>, top: u8) -> At {
        match tree {
            None => At::Unknown,
            Some(tree) if tree.root.0 == 0 || self.lba.0 >= span(tree.level) => At::Holes,
            Some(tree) if tree.level < top => At::Above,
            Some(tree) => At::Node(tree.root),
        }
    }

    fn descend(&mut self, core: &mut Core, side: Side, at: At, level: u8) -> Result<At, Stall> {
        Ok(match at {
            At::Above => {
                let tree = if side == Side::Older { self.older } else { self.newer };
                self.enter(tree, level - 1)
            }
            At::Node(node) => {
                self.asked = (side, level);
                core.bring_in(node_page(node))?;
                match core.node_entry(node, slot(self.lba, level)) {
                    0 => At::Holes,
                    child => At::Node(MapNodeId(child)),
                }
            }
            At::Holes | At::Unknown => at,
        })
    }

    /// How many blocks from here on lie below entries that are equal in both nodes.
    fn same_below(&mut self, core: &mut Core, level: u8, older: At, newer: At) -> Result<u64, Stall> {
        let (At::Node(one), At::Node(other)) = (older, newer) else { return Ok(0) };
        for (side, node) in [(Side::Older, one), (Side::Newer, other)] {
            self.asked = (side, level);
            core.bring_in(node_page(node))?;
        }
        let from = slot(self.lba, level);
        let mut behind = from;
        while behind < NODE_ENTRIES && core.node_entry(one, behind) == core.node_entry(other, behind) {
            behind += 1;
        }
        let below = span(level - 1);
        Ok(((behind - from) as u64 * below).saturating_sub(self.lba.0 % below))
    }

    /// Compares the entries of two leaves, from the block on.
    fn compare_leaves(&mut self, core: &mut Core, older: At, newer: At) -> Result<Stretch, Stall> {
        let before = self.entries(core, Side::Older, older)?;
        let now = self.entries(core, Side::Newer, newer)?.unwrap_or_default();
        let mut stretch: Stretch = Vec::new();
        for (index, entry) in now.iter().enumerate() {
            let mapping = Mapping::unpack(*entry);
            let same = before.as_ref().is_some_and(|before| {
                before.get(index).is_some_and(|before| Mapping::unpack(*before) == mapping)
            });
            let changed = match mapping {
                Mapping::Lost => Some(MappingKind::Data),
                _ if same => None,
                Mapping::Block(_) => Some(MappingKind::Data),
                Mapping::Pattern(_) => Some(MappingKind::Pattern),
                Mapping::Hole => Some(MappingKind::Hole),
            };
            match stretch.last_mut() {
                Some((blocks, last)) if *last == changed => *blocks += 1,
                _ => stretch.push((1, changed)),
            }
        }
        Ok(stretch)
    }

    /// The entries of a leaf from the block on; `None` where nobody knows them.
    fn entries(&mut self, core: &mut Core, side: Side, at: At) -> Result<Option<Vec<u64>>, Stall> {
        let from = slot(self.lba, 0);
        match at {
            At::Node(leaf) => {
                self.asked = (side, 0);
                let page = &core.frame(node_page(leaf))?.page;
                Ok(Some((from..NODE_ENTRIES).map(|slot| get_u64(&**page, slot)).collect()))
            }
            At::Unknown => Ok(None),
            At::Holes | At::Above => Ok(Some(vec![Mapping::Hole.pack(); NODE_ENTRIES - from])),
        }
    }
}
