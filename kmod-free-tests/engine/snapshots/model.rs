//! Objects as plain maps, and a random client of a store that does the same to both.

use std::collections::{BTreeMap, BTreeSet};

use sinter::store::{ChangedRun, CloneRequest, MappingKind, Store};
use sinter::sync::seeded::SeededNumbers;
use sinter::units::{BLOCK_BYTES, BlockCount, Lba, ObjectNumber};

use crate::{blocks, read};

/// Names the content of a block; none is written twice.
pub(super) type Content = u64;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) size: u64,
    pub(super) opaque: Vec<u8>,
    pub(super) blocks: BTreeMap<u64, Content>,
}

/// What a store must hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) objects: BTreeMap<u64, Object>,
    written: Content,
}

fn kind(content: Option<Content>) -> MappingKind {
    match content {
        None => MappingKind::Hole,
        Some(content) if content % 5 == 0 => MappingKind::Pattern,
        Some(_) => MappingKind::Data,
    }
}

fn bytes_of(content: Option<Content>) -> Vec<u8> {
    match content {
        None => vec![0; BLOCK_BYTES],
        Some(content) if content % 5 == 0 => (content as u32).to_le_bytes().repeat(BLOCK_BYTES / 4),
        Some(content) => blocks(content..content + 1),
    }
}

impl Model {
    pub(super) fn create(&mut self, store: &Store, size: u64) -> u64 {
        let (object, _) = store.create_object(BlockCount(size), b"new").unwrap();
        let made = Object { size, opaque: b"new".to_vec(), ..Object::default() };
        self.objects.insert(object.0, made);
        object.0
    }

    pub(super) fn write(&mut self, store: &Store, object: u64, first: u64, count: u64) {
        let mut data = Vec::new();
        for lba in first..first + count {
            self.written += 1;
            data.extend(bytes_of(Some(self.written)));
            self.objects.get_mut(&object).unwrap().blocks.insert(lba, self.written);
        }
        store.write(ObjectNumber(object), Lba(first), &data).unwrap();
    }

    pub(super) fn zero(&mut self, store: &Store, object: u64, first: u64, count: u64) {
        store.zero(ObjectNumber(object), Lba(first), BlockCount(count)).unwrap();
        self.objects.get_mut(&object).unwrap().blocks.retain(|lba, _| !(first..first + count).contains(lba));
    }

    /// One moment of all these; the new objects.
    pub(super) fn clone_all(&mut self, store: &Store, sources: &[u64]) -> Vec<u64> {
        let opaques: Vec<Vec<u8>> = (0..sources.len()).map(|index| vec![index as u8 + 1; index]).collect();
        let requests: Vec<CloneRequest<'_>> = sources
            .iter()
            .zip(&opaques)
            .map(|(source, opaque)| CloneRequest { source: ObjectNumber(*source), opaque })
            .collect();
        let (made, _) = store.clone_objects(&requests).unwrap();
        assert_eq!(made.len(), sources.len());
        for ((number, source), opaque) in made.iter().zip(sources).zip(opaques) {
            let clone = Object { opaque, ..self.objects[source].clone() };
            assert!(self.objects.insert(number.0, clone).is_none());
        }
        made.into_iter().map(|number| number.0).collect()
    }

    pub(super) fn restore(&mut self, store: &Store, target: u64, source: u64, more: u64) {
        let size = self.objects[&target].size.max(self.objects[&source].size) + more;
        store
            .restore_object(ObjectNumber(target), ObjectNumber(source), BlockCount(size), b"restored")
            .unwrap();
        let blocks = self.objects[&source].blocks.clone();
        self.objects.insert(target, Object { size, opaque: b"restored".to_vec(), blocks });
    }

    pub(super) fn resize(&mut self, store: &Store, object: u64, more: u64) {
        let changed = self.objects.get_mut(&object).unwrap();
        changed.size += more;
        store.update_object(ObjectNumber(object), BlockCount(changed.size), &changed.opaque).unwrap();
    }

    pub(super) fn delete(&mut self, store: &Store, object: u64) {
        store.delete_object(ObjectNumber(object)).unwrap();
        self.objects.remove(&object).unwrap();
    }

    fn any(&self, numbers: &mut SeededNumbers) -> u64 {
        *self.objects.keys().nth(numbers.index(self.objects.len())).unwrap()
    }

    /// One request of a random client, or of the store's own background work.
    pub(super) fn step(&mut self, store: &Store, numbers: &mut SeededNumbers) {
        if self.objects.len() < 2 {
            let size = match numbers.below(5) {
                0 => 1 + numbers.below(500),
                1 | 2 => 513 + numbers.below(3000),
                3 => 262_145 + numbers.below(300_000),
                _ => (1 << 36) - numbers.below(5000),
            };
            self.create(store, size);
            return;
        }
        let object = self.any(numbers);
        let size = self.objects[&object].size;
        // A few places, so that trees meet each other, of which some lie on the borders of nodes.
        let place = [0, 505, 512 * 512 - 7, size / 2, size - 1, numbers.below(size)][numbers.index(6)];
        let first = place.min(size - 1);
        let left = size - first;
        match numbers.below(40) {
            0 => self.delete(store, object),
            1 => self.resize(store, object, numbers.below(700).min((1 << 36) - size)),
            2..6 if self.objects.len() < 10 => {
                let count = 1 + numbers.index(3);
                let sources: Vec<u64> = (0..count).map(|_| self.any(numbers)).collect();
                self.clone_all(store, &sources);
            }
            2..6 => self.delete(store, object),
            6 => {
                let source = self.any(numbers);
                let larger = size.max(self.objects[&source].size);
                if source != object {
                    self.restore(store, object, source, numbers.below(2) * ((1 << 36) - larger).min(600));
                }
            }
            7 => self.zero(store, object, first, left),
            8..12 => self.zero(store, object, first, (1 + numbers.below(600)).min(left)),
            12..16 => drop(store.background_step().unwrap()),
            16 => store.checkpoint().unwrap(),
            _ => self.write(store, object, first, (1 + numbers.below(20)).min(left)),
        }
    }

    /// The store holds exactly this.
    pub(super) fn compare(&self, store: &Store, seed: u64) {
        let mut listed = store.objects().unwrap();
        listed.sort_by_key(|object| object.number);
        let numbers: Vec<u64> = listed.iter().map(|object| object.number.0).collect();
        assert_eq!(numbers, self.objects.keys().copied().collect::<Vec<_>>(), "seed {seed}");
        for object in listed {
            let expected = &self.objects[&object.number.0];
            assert_eq!((object.size.0, &object.opaque), (expected.size, &expected.opaque), "seed {seed}");
            assert_eq!(object.mapped.0, expected.blocks.len() as u64, "seed {seed}");
            let mut at = 0;
            while at < object.size.0 {
                let left = BlockCount(object.size.0 - at);
                for run in store.map_status(object.number, Lba(at), left, 64).unwrap() {
                    if run.kind == MappingKind::Hole {
                        assert_eq!(expected.blocks.range(at..at + run.blocks.0).next(), None, "seed {seed}");
                    }
                    at += run.blocks.0;
                }
            }
            for (lba, content) in &expected.blocks {
                let held = read(store, object.number, *lba, 1).unwrap();
                assert!(held == bytes_of(Some(*content)), "seed {seed}: block {lba} of {}", object.number);
            }
        }
    }

    /// What `diff` says of two objects is what the maps say.
    pub(super) fn compare_diff(&self, store: &Store, older: u64, newer: u64, numbers: &mut SeededNumbers) {
        let (before, now) = (&self.objects[&older], &self.objects[&newer]);
        let first = if numbers.chance(1, 2) { 0 } else { numbers.below(now.size) };
        let count = if numbers.chance(1, 2) { now.size - first } else { 1 + numbers.below(now.size - first) };
        let runs_max = numbers.index(8);
        let places: BTreeSet<u64> = before.blocks.keys().chain(now.blocks.keys()).copied().collect();
        let expected: BTreeMap<u64, MappingKind> = places
            .range(first..first + count)
            .map(|lba| (*lba, before.blocks.get(lba), now.blocks.get(lba)))
            .filter(|(_, before, now)| before != now)
            .map(|(lba, _, now)| (lba, kind(now.copied())))
            .collect();
        let mut found: BTreeMap<u64, MappingKind> = BTreeMap::new();
        let end = first + count;
        let mut at = first;
        while at < end {
            let (older, newer) = (ObjectNumber(older), ObjectNumber(newer));
            let runs: Vec<ChangedRun> =
                store.diff(older, newer, Lba(at), BlockCount(end - at), runs_max).unwrap();
            assert!(!runs.is_empty() && runs.len() <= runs_max.max(1));
            assert!(runs.windows(2).all(|pair| pair[0].changed != pair[1].changed), "{runs:?}");
            for run in runs {
                if let Some(kind) = run.changed {
                    found.extend((at..at + run.blocks.0).map(|lba| (lba, kind)));
                }
                at += run.blocks.0;
            }
        }
        assert_eq!(at, end, "the runs do not leave the range");
        assert_eq!(found, expected, "from {older} to {newer}");
    }
}
