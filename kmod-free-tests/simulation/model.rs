//! What the store may answer: plain maps, one step for each operation that was committed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Mutex;

use sinter::format::batch::LoggedOperation;
use sinter::store::{CloneRecord, Commit, CommitSink};
use sinter::sync::seeded::mix;
use sinter::units::BLOCK_BYTES;

/// Names the content of a block; 0 is a hole.
pub(crate) type Content = u64;

/// The block that a content number stands for.
pub(crate) fn fill(content: Content, block: &mut [u8]) {
    match content % 8 {
        _ if content == 0 => block.fill(0),
        1 => {
            let word = (mix(content) as u32 | 1).to_le_bytes();
            block.chunks_mut(4).for_each(|chunk| chunk.copy_from_slice(&word));
        }
        kind => {
            // Even kinds compress to about a half, the odd ones not at all.
            let period = if kind % 2 == 0 { 2 } else { 1 };
            let mut state = mix(content);
            for (index, chunk) in block.chunks_mut(8).enumerate() {
                if index % period == 0 {
                    state = mix(state);
                    chunk.copy_from_slice(&state.to_le_bytes());
                } else {
                    chunk.fill(7);
                }
            }
        }
    }
}

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) size: u64,
    pub(crate) opaque: Vec<u8>,
    pub(crate) blocks: BTreeMap<u64, Content>,
}

/// All volumes.
pub(crate) type State = BTreeMap<u64, Volume>;

/// One committed operation.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Write {
        object: u64,
        first: u64,
        contents: Vec<Content>,
    },
    Zero {
        object: u64,
        first: u64,
        count: u64,
    },
    Create {
        object: u64,
        size: u64,
        opaque: Vec<u8>,
    },
    Update {
        object: u64,
        size: u64,
        opaque: Vec<u8>,
    },
    Delete {
        object: u64,
    },
    /// Of each: the new one, its source, its opaque bytes.
    Clone {
        clones: Vec<(u64, u64, Vec<u8>)>,
    },
    Restore {
        object: u64,
        source: u64,
        size: u64,
        opaque: Vec<u8>,
    },
}

impl Effect {
    pub(crate) fn apply(&self, state: &mut State) {
        match self {
            Effect::Write { object, first, contents } => {
                let volume = state.get_mut(object).expect("written volumes exist");
                for (lba, content) in (*first..).zip(contents) {
                    if *content == 0 {
                        volume.blocks.remove(&lba);
                    } else {
                        volume.blocks.insert(lba, *content);
                    }
                }
            }
            Effect::Zero { object, first, count } => {
                let volume = state.get_mut(object).expect("trimmed volumes exist");
                let gone: Vec<u64> =
                    volume.blocks.range(*first..first + count).map(|(lba, _)| *lba).collect();
                gone.iter().for_each(|lba| {
                    volume.blocks.remove(lba);
                });
            }
            Effect::Create { object, size, opaque } => {
                let volume = Volume { size: *size, opaque: opaque.clone(), blocks: BTreeMap::new() };
                state.insert(*object, volume);
            }
            Effect::Update { object, size, opaque } => {
                let volume = state.get_mut(object).expect("changed volumes exist");
                volume.size = *size;
                volume.opaque.clone_from(opaque);
            }
            Effect::Delete { object } => {
                state.remove(object);
            }
            Effect::Clone { clones } => {
                for (object, source, opaque) in clones {
                    let volume = Volume { opaque: opaque.clone(), ..state[source].clone() };
                    state.insert(*object, volume);
                }
            }
            Effect::Restore { object, source, size, opaque } => {
                let blocks = state[source].blocks.clone();
                state.insert(*object, Volume { size: *size, opaque: opaque.clone(), blocks });
            }
        }
    }
}

thread_local! {
    /// What the write that this thread is about to do holds: first block and contents.
    static INTENT: RefCell<(u64, Vec<Content>)> = const { RefCell::new((0, Vec::new())) };
}

/// Says what the next write of this thread holds.
pub(crate) fn intend(first: u64, contents: &[Content]) {
    INTENT.with(|intent| *intent.borrow_mut() = (first, contents.to_vec()));
}

/// Writes down every operation in commit order.
#[derive(Default)]
pub(crate) struct Recorder {
    history: Mutex<History>,
}

/// The state at some operation, and what came after.
#[derive(Clone, Default)]
pub(crate) struct History {
    /// The state as of `base`.
    pub(crate) state: State,
    pub(crate) base: u64,
    pub(crate) effects: Vec<Effect>,
}

impl History {
    /// The state as of an operation.
    pub(crate) fn state_at(&self, lsn: u64) -> State {
        let mut state = self.state.clone();
        for effect in &self.effects[..(lsn - self.base) as usize] {
            effect.apply(&mut state);
        }
        state
    }
}

impl Recorder {
    pub(crate) fn history(&self) -> History {
        self.history.lock().unwrap().clone()
    }

    /// What came after `lsn` never happened.
    pub(crate) fn rewind(&self, lsn: u64) {
        let mut history = self.history.lock().unwrap();
        history.state = history.state_at(lsn);
        history.base = lsn;
        history.effects.clear();
    }
}

impl CommitSink for Recorder {
    fn committed(&self, commit: &Commit<'_>) {
        let effect = match commit.operation {
            LoggedOperation::Write { object, first, mappings } => INTENT.with(|intent| {
                let (start, contents) = &*intent.borrow();
                let from = (first.0 - start) as usize;
                let contents = contents[from..from + mappings.len()].to_vec();
                Effect::Write { object: object.0, first: first.0, contents }
            }),
            LoggedOperation::Zero { object, first, count } => {
                Effect::Zero { object: object.0, first: first.0, count: count.0 }
            }
            LoggedOperation::CreateObject { object, size, opaque } => {
                Effect::Create { object: object.0, size: size.0, opaque: opaque.clone() }
            }
            LoggedOperation::UpdateObject { object, size, opaque } => {
                Effect::Update { object: object.0, size: size.0, opaque: opaque.clone() }
            }
            LoggedOperation::DeleteObject { object } => Effect::Delete { object: object.0 },
            LoggedOperation::CloneObjects { clones } => {
                let clone = |clone: &CloneRecord| (clone.object.0, clone.source.0, clone.opaque.clone());
                Effect::Clone { clones: clones.iter().map(clone).collect() }
            }
            LoggedOperation::RestoreObject { object, source, size, opaque } => {
                Effect::Restore { object: object.0, source: source.0, size: size.0, opaque: opaque.clone() }
            }
            LoggedOperation::Moved { .. } => panic!("collection is no operation"),
        };
        let mut history = self.history.lock().unwrap();
        assert_eq!(
            commit.lsn.0,
            history.base + history.effects.len() as u64 + 1,
            "operations are numbered without gap"
        );
        history.effects.push(effect);
    }
}

/// The bytes of contents, one block each.
pub(crate) fn bytes_of(contents: &[Content]) -> Vec<u8> {
    let mut bytes = vec![0u8; contents.len() * BLOCK_BYTES];
    for (content, block) in contents.iter().zip(bytes.chunks_mut(BLOCK_BYTES)) {
        fill(*content, block);
    }
    bytes
}
