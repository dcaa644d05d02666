//! Making ranges holes, by the nodes that they touch and not by their length.

use crate::units::{Lba, MapNodeId, ObjectNumber};

use super::super::core::{Core, Stall};
use super::change::Needs;
use super::{ObjectRoot, node_page, slot, span};

/// One step of making a range a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The subtree of this level that begins here goes as a whole.
    Subtree { lba: Lba, level: u8 },
    /// These blocks of one leaf become holes.
    Leaf { lba: Lba, count: u64 },
}

/// How one operation makes the first part of a range a hole.
#[derive(Debug, Default)]
pub(crate) struct ZeroPlan {
    steps: Vec<Step>,
    /// Blocks, from the start of the range, that are holes afterwards.
    pub(crate) covered: u64,
    /// What it needs.
    pub(crate) needs: Needs,
}

impl Core {
    /// Plans the longest part, from `first` on, that takes at most `steps_max` steps and not too much of the change
    /// buffer, and brings in what it touches. With `usize::MAX` the part is the whole.
    ///
    /// # Errors
    /// A stall while a page is not in memory.
    pub(crate) fn plan_zero(
        &mut self,
        object: ObjectRoot,
        first: Lba,
        count: u64,
        steps_max: usize,
    ) -> Result<ZeroPlan, Stall> {
        let mut plan = ZeroPlan::default();
        let end = first.0 + count;
        let changes_max = if steps_max == usize::MAX { usize::MAX } else { self.geometry.changes / 4 };
        let mut position = first.0;
        while position < end && plan.steps.len() < steps_max && plan.needs.changes <= changes_max {
            let (step, next) = self.next_zero_step(object, Lba(position), end)?;
            if let Some(step) = step {
                let (lba, down_to) = match step {
                    Step::Leaf { lba, .. } => (lba, 0),
                    Step::Subtree { lba, level } => (lba, (level + 1).min(object.level)),
                };
                self.prepare_path(object, lba, down_to, &mut plan.needs)?;
                plan.needs.changes += match step {
                    Step::Leaf { count, .. } => usize::try_from(count).expect("within one leaf"),
                    Step::Subtree { .. } => 1,
                } + usize::from(object.level)
                    + 1;
                plan.steps.push(step);
            }
            position = next;
        }
        plan.covered = position.min(end) - first.0;
        Ok(plan)
    }

    /// What makes the blocks from `position` on holes, and where the next step begins.
    fn next_zero_step(
        &mut self,
        object: ObjectRoot,
        position: Lba,
        end: u64,
    ) -> Result<(Option<Step>, u64), Stall> {
        if object.root.0 == 0 || position.0 >= span(object.level) {
            return Ok((None, end));
        }
        let mut node = object.root;
        let mut level = object.level;
        loop {
            let start = position.0 - position.0 % span(level);
            let behind = start + span(level);
            // The end of the tree is the end of everything: a range that covers all below it covers it.
            if start == position.0 && behind <= end {
                self.bring_in(node_page(node))?;
                return Ok((Some(Step::Subtree { lba: position, level }), behind));
            }
            if level == 0 {
                let count = behind.min(end) - position.0;
                return Ok((Some(Step::Leaf { lba: position, count }), position.0 + count));
            }
            self.bring_in(node_page(node))?;
            let child = MapNodeId(self.node_entry(node, slot(position, level)));
            level -= 1;
            if child.0 == 0 {
                let child_start = position.0 - position.0 % span(level);
                return Ok((None, (child_start + span(level)).min(end)));
            }
            node = child;
        }
    }

    /// Carries a plan out, in the same hold of the lock in which it was made.
    pub(crate) fn carry_out_zero(&mut self, number: ObjectNumber, plan: &ZeroPlan) {
        for step in &plan.steps {
            // An earlier step may have taken away what this one is about, or the root with it.
            match *step {
                Step::Leaf { lba, count } => {
                    if self.reaches_node(number, lba, 0) {
                        self.clear_in_leaf(number, lba, count);
                    }
                }
                Step::Subtree { lba, level } => {
                    if self.reaches_node(number, lba, level) {
                        self.drop_subtree(number, lba, level);
                    }
                }
            }
        }
    }

    fn reaches_node(&mut self, number: ObjectNumber, lba: Lba, level: u8) -> bool {
        let object = ObjectRoot::from(self.objects.get(number).expect("the operation was prepared"));
        let mut node = object.root;
        for above in (level..object.level).rev() {
            if node.0 == 0 {
                return false;
            }
            node = MapNodeId(self.node_entry(node, slot(lba, above + 1)));
        }
        node.0 != 0
    }
}
