//! Where what is damaged belongs: the objects that hold it, and their offsets.
//!
//! Only a pool with faults is walked. Each node is looked at once, and then only the paths that lead to damage, once
//! for each object.

use std::collections::BTreeMap;

use crate::format::bytes::get_u64;
use crate::format::page::{Mapping, NODE_ENTRIES};
use crate::units::{BLOCK_BYTES, BlockId, ByteCount, MapNodeId, ObjectNumber};

use super::super::Store;
use super::super::map::span;
use super::{Fault, Place};

/// Most places that are named of one fault.
const PLACES_MAX: usize = 4;

/// What a fault is about, and by which volumes and snapshots can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Suspect {
    Block(BlockId),
    /// A node that cannot be read, with all that is below it.
    Node(MapNodeId),
}

/// Whether damage was found below a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Look {
    #[default]
    None,
    Sound,
    Damaged,
}

/// A walk under way.
struct Search<'a> {
    store: &'a Store,
    suspects: &'a BTreeMap<Suspect, Vec<usize>>,
    faults: &'a mut [Fault],
    looks: Vec<Look>,
}

/// Adds to the faults in which objects the suspects are, and where. `suspects` says which faults are about each.
pub(super) fn find(store: &Store, suspects: &BTreeMap<Suspect, Vec<usize>>, faults: &mut [Fault]) {
    if suspects.is_empty() {
        return;
    }
    let (nodes, objects) = {
        let core = store.core.lock();
        let objects = core.objects.iter().map(|slot| (slot.number, slot.root, slot.root_level));
        (core.node_ids.high_water, objects.collect::<Vec<_>>())
    };
    let looks = vec![Look::None; usize::try_from(nodes).expect("bounded by memory")];
    let mut search = Search { store, suspects, faults, looks };
    for (number, root, level) in objects {
        if root.0 != 0 && search.is_damaged(root, level) {
            search.descend(number, root, level, 0);
        }
    }
}

impl Search<'_> {
    /// Whether the node, or anything below it, is suspect.
    fn is_damaged(&mut self, node: MapNodeId, level: u8) -> bool {
        let place = usize::try_from(node.0).unwrap_or(usize::MAX);
        match self.looks.get(place) {
            Some(Look::None) => {}
            Some(look) => return *look == Look::Damaged,
            None => return false,
        }
        let damaged = self.suspects.contains_key(&Suspect::Node(node)) || {
            let mut damaged = false;
            for (_, entry) in self.entries(node, level) {
                damaged |= match entry {
                    Entry::Below(child) => self.is_damaged(child, level - 1),
                    Entry::Block(block) => self.suspects.contains_key(&Suspect::Block(block)),
                };
            }
            damaged
        };
        self.looks[place] = if damaged { Look::Damaged } else { Look::Sound };
        damaged
    }

    /// Names what is suspect at or below a node; `first` is the first block of the object that it stands for.
    fn descend(&mut self, object: ObjectNumber, node: MapNodeId, level: u8, first: u64) {
        if self.note(Suspect::Node(node), object, first, span(level)) {
            return;
        }
        for (slot, entry) in self.entries(node, level) {
            match entry {
                Entry::Below(child) if self.is_damaged(child, level - 1) => {
                    self.descend(object, child, level - 1, first + slot * span(level - 1));
                }
                Entry::Below(_) => {}
                Entry::Block(block) => {
                    self.note(Suspect::Block(block), object, first + slot, 1);
                }
            }
        }
    }

    /// Adds a place to the faults about a suspect; whether there are any.
    fn note(&mut self, suspect: Suspect, object: ObjectNumber, first: u64, blocks: u64) -> bool {
        let Some(about) = self.suspects.get(&suspect) else { return false };
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES as u64);
        for index in about {
            let Some(fault) = self.faults.get_mut(*index) else { continue };
            if fault.places.len() < PLACES_MAX {
                fault.places.push(Place { object, offset: bytes(first), length: ByteCount(bytes(blocks)) });
            } else {
                fault.places_more += 1;
            }
        }
        true
    }

    /// What a node refers to, by slot. One that cannot be read has been found at fault already.
    fn entries(&self, node: MapNodeId, level: u8) -> Vec<(u64, Entry)> {
        let Ok((page, own_level, _)) = self.store.node_facts(node) else { return Vec::new() };
        if own_level != level {
            return Vec::new();
        }
        let entry = |slot: usize| {
            let raw = get_u64(&*page, slot);
            let entry = match (level, Mapping::unpack(raw)) {
                (0, Mapping::Block(block)) => Entry::Block(block),
                (1.., _) if raw != 0 => Entry::Below(MapNodeId(raw)),
                _ => return None,
            };
            Some((slot as u64, entry))
        };
        (0..NODE_ENTRIES).filter_map(entry).collect()
    }
}

enum Entry {
    Block(BlockId),
    Below(MapNodeId),
}
