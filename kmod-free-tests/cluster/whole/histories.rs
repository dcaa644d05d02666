//! What clients asked for and were answered, for each block, held against a register by an existing checker.

use std::collections::{BTreeMap, BTreeSet};

use todc_utils::specifications::register::{RegisterOperation, RegisterSpecification};
use todc_utils::{Action, History, WGLChecker};

/// Operations on one block in one history: more take the checker too long.
pub(crate) const OPERATIONS_MAX: usize = 100;

/// A request of a client, among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Asked(pub(crate) u64);

/// The value of a block: the name of the write that set it.
pub(crate) type Value = u64;

type Operation = RegisterOperation<Value>;

/// One block's history.
#[derive(Clone, Debug, Default)]
struct Block {
    actions: Vec<(Asked, Action<Operation>)>,
    calls: usize,
}

/// The histories of all blocks.
#[derive(Debug, Default)]
pub(crate) struct Histories {
    blocks: BTreeMap<u64, Block>,
    /// Of blocks from this one on nothing is known any more, and of these.
    forgotten_from: Option<u64>,
    forgotten: BTreeSet<u64>,
    pub(crate) checked: u64,
}

impl Histories {
    /// Whether another operation on a block can be checked.
    pub(crate) fn has_room(&self, block: u64) -> bool {
        self.blocks.get(&block).is_none_or(|it| it.calls < OPERATIONS_MAX - 1)
    }

    /// Somebody asks for a block to be written, or to be read.
    pub(crate) fn call(&mut self, asked: Asked, block: u64, write: Option<Value>) {
        if self.forgotten_from.is_some_and(|first| block >= first) || self.forgotten.contains(&block) {
            return;
        }
        let history = self.blocks.entry(block).or_default();
        history.calls += 1;
        let operation = write.map_or(Operation::Read(None), Operation::Write);
        history.actions.push((asked, Action::Call(operation)));
    }

    /// Blocks from this one on are looked at no more.
    pub(crate) fn forget_from(&mut self, first: u64) {
        self.forgotten_from = Some(first);
        let _ = self.blocks.split_off(&first);
    }

    /// A block is looked at no more.
    pub(crate) fn forget(&mut self, block: u64) {
        self.forgotten.insert(block);
        self.blocks.remove(&block);
    }

    /// It was refused: nothing came of it.
    pub(crate) fn withdraw(&mut self, asked: Asked, block: u64) {
        if let Some(history) = self.blocks.get_mut(&block) {
            history.actions.retain(|(of, _)| *of != asked);
        }
    }

    /// It is answered, with what was read.
    pub(crate) fn answer(&mut self, asked: Asked, block: u64, read: Option<Value>) {
        let Some(history) = self.blocks.get_mut(&block) else { return };
        let call = history.actions.iter().find_map(|(of, action)| match action {
            Action::Call(operation) if *of == asked => Some(*operation),
            _ => None,
        });
        let answered = match (call, read) {
            (Some(Operation::Read(_)), Some(value)) => Operation::Read(Some(value)),
            (Some(write), None) => write,
            // It was asked before the history began anew.
            _ => return,
        };
        history.actions.push((asked, Action::Response(answered)));
    }

    /// Checks all histories but those that go on, and begins new ones: with what each block holds then.
    ///
    /// # Panics
    /// Where one is not linearizable.
    pub(crate) fn check(
        &mut self,
        goes_on: impl Fn(u64) -> bool,
        mut holds: impl FnMut(u64) -> Option<Value>,
    ) {
        for (block, history) in std::mem::take(&mut self.blocks) {
            if goes_on(block) {
                self.blocks.insert(block, history);
                continue;
            }
            self.checked += history.calls as u64;
            let shown = history.actions.clone();
            assert!(history.linearizes(), "block {block} is no register: {shown:?}");
            if let Some(value) = holds(block).filter(|value| *value != 0) {
                self.begin_with(block, value);
            }
        }
    }

    /// A block of which nothing is known yet holds this.
    pub(crate) fn begin_with(&mut self, block: u64, value: Value) {
        if !self.blocks.contains_key(&block) {
            let first = Asked(u64::MAX);
            self.call(first, block, Some(value));
            self.answer(first, block, None);
        }
    }
}

impl Block {
    fn linearizes(mut self) -> bool {
        let answered: Vec<Asked> =
            self.actions.iter().filter(|(_, it)| is_response(it)).map(|it| it.0).collect();
        let open: Vec<(Asked, Action<Operation>)> =
            self.actions.iter().filter(|(asked, _)| !answered.contains(asked)).cloned().collect();
        // A write without an answer may come at any time, or never, which is the same as last of all.
        for (asked, action) in &open {
            match action {
                Action::Call(write @ Operation::Write(_)) => {
                    self.actions.push((*asked, Action::Response(*write)));
                }
                _ => self.actions.retain(|(other, _)| other != asked),
            }
        }
        if self.actions.is_empty() {
            return true;
        }
        let mut processes: BTreeMap<Asked, usize> = BTreeMap::new();
        let mut process = |asked| {
            let next = processes.len();
            *processes.entry(asked).or_insert(next)
        };
        let actions = self.actions.into_iter().map(|(asked, action)| (process(asked), action)).collect();
        WGLChecker::<RegisterSpecification<Value>>::is_linearizable(History::from_actions(actions))
    }
}

fn is_response(action: &Action<Operation>) -> bool {
    matches!(action, Action::Response(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_comes_back_is_no_register() {
        let histories = |again: bool| {
            let mut histories = Histories::default();
            for (asked, write) in [(1, 10), (2, 20)] {
                histories.call(Asked(asked), 7, Some(write));
            }
            histories.answer(Asked(2), 7, None);
            for (asked, read) in [(3, 10), (4, 20)].into_iter().chain(again.then_some((5, 10))) {
                histories.call(Asked(asked), 7, None);
                histories.answer(Asked(asked), 7, Some(read));
            }
            histories.blocks[&7].clone().linearizes()
        };
        assert!(!histories(true) && !histories(false));
        let mut open = Histories::default();
        open.call(Asked(1), 7, Some(10));
        open.call(Asked(2), 7, None);
        open.answer(Asked(2), 7, Some(10));
        assert!(open.blocks[&7].clone().linearizes());
    }
}
