//! A small pool on one faulty disk, and what each of its volumes must hold after each operation.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sinter::device::Device;
use sinter::device::faulty::{DiskSnapshot, FaultPlan, FaultyDisk};
use sinter::error::{Error, ErrorKind};
use sinter::store::{
    CheckMode, CheckReport, CloneRequest, Environment, OpenReport, Store, StoreOptions, check,
};
use sinter::sync::seeded::{SeededNumbers, mix};
use sinter::sync::{Clock, RandomSource};
use sinter::units::{BLOCK_BYTES, BlockCount, ByteCount, Lba, Lsn, ObjectNumber};

pub(crate) const SEGMENT_BYTES: u64 = 64 * 1024;
/// Most blocks that the store takes as one operation, at this size of segment.
pub(crate) const OPERATION_BLOCKS: usize = 8;

/// Names the content of a block; 0 is a hole.
pub(crate) type Content = u64;

/// The bytes of contents, one block each: multiples of 7 are a repeated word, even ones compress, odd ones do
/// not.
pub(crate) fn bytes_of(contents: &[Content]) -> Vec<u8> {
    let mut bytes = vec![0u8; contents.len() * BLOCK_BYTES];
    for (content, block) in contents.iter().zip(bytes.chunks_mut(BLOCK_BYTES)) {
        if *content == 0 {
            continue;
        }
        if content % 7 == 0 {
            let word = (mix(*content) as u32 | 1).to_le_bytes();
            block.chunks_mut(4).for_each(|chunk| chunk.copy_from_slice(&word));
            continue;
        }
        let mut state = *content;
        for (index, chunk) in block.chunks_mut(8).enumerate() {
            if content % 2 == 1 || index % 4 == 0 {
                state = mix(state);
                chunk.copy_from_slice(&state.to_le_bytes());
            }
        }
    }
    bytes
}

/// A volume and a block of it.
type Place = (u64, u64);

/// Blocks of all volumes that are not holes.
pub(crate) type State = BTreeMap<Place, Content>;

/// What the volumes hold, operation by operation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) sizes: BTreeMap<u64, u64>,
    changes: Vec<(u64, Vec<(Place, Content)>)>,
}

impl Model {
    pub(crate) fn at(&self, lsn: u64) -> State {
        let mut state = State::new();
        for (_, blocks) in self.changes.iter().filter(|(number, _)| *number <= lsn) {
            for (place, content) in blocks {
                if *content == 0 {
                    state.remove(place);
                } else {
                    state.insert(*place, *content);
                }
            }
        }
        state
    }

    /// What came after `lsn` never happened.
    pub(crate) fn forget_after(&mut self, lsn: u64) {
        self.changes.retain(|(number, _)| *number <= lsn);
    }

    /// A block that was written without `Machine::write`.
    pub(crate) fn note(&mut self, lsn: u64, object: u64, lba: u64, content: Content) {
        self.changes.push((lsn, vec![((object, lba), content)]));
    }

    pub(crate) fn now(&self) -> State {
        self.at(u64::MAX)
    }
}

#[derive(Default)]
struct TickingClock(AtomicU64);

impl Clock for TickingClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.fetch_add(7, Ordering::Relaxed))
    }

    fn since_unix_epoch(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.monotonic()
    }
}

struct SeededRandom(Mutex<SeededNumbers>);

impl RandomSource for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap().fill(bytes);
    }
}

/// A disk, and how the pool on it is opened.
pub(crate) struct Machine {
    pub(crate) plan: Arc<FaultPlan>,
    pub(crate) disk: Arc<FaultyDisk>,
    pub(crate) model: Model,
    pub(crate) options: StoreOptions,
}

fn environment(seed: u64) -> Environment {
    Environment {
        clock: Arc::new(TickingClock::default()),
        random: Arc::new(SeededRandom(Mutex::new(SeededNumbers::new(seed)))),
    }
}

impl Machine {
    /// A machine with a new pool of so many segments.
    pub(crate) fn new(seed: u64, segments: u64) -> (Machine, Store) {
        let plan = FaultPlan::new();
        let len = ByteCount(128 * 1024 + segments * SEGMENT_BYTES);
        let disk = Arc::new(FaultyDisk::new("disk", len, seed, Arc::clone(&plan)));
        let options = StoreOptions {
            metadata_budget: ByteCount(1 << 20),
            index_budget: ByteCount(1 << 16),
            segment_bytes: ByteCount(SEGMENT_BYTES),
            ..StoreOptions::default()
        };
        let machine = Machine { plan, disk, model: Model::default(), options };
        let store = Store::create(machine.devices(), machine.options.clone(), environment(seed)).unwrap();
        (machine, store)
    }

    /// The same machine as it was when the snapshot was taken.
    pub(crate) fn gone_back_to(&self, snapshot: &DiskSnapshot) -> Machine {
        let plan = FaultPlan::new();
        let disk = Arc::new(FaultyDisk::from_snapshot(snapshot, Arc::clone(&plan)));
        Machine { plan, disk, model: self.model.clone(), options: self.options.clone() }
    }

    pub(crate) fn devices(&self) -> Vec<Arc<dyn Device>> {
        vec![Arc::clone(&self.disk) as Arc<dyn Device>]
    }

    /// Opens the pool with nothing in memory.
    pub(crate) fn open(&self) -> Result<(Store, OpenReport), Error> {
        Store::open(self.devices(), self.options.clone(), environment(self.disk.len().0 + 1))
    }

    pub(crate) fn check(&self, mode: CheckMode) -> Result<CheckReport, Error> {
        check(self.devices(), self.options.clone(), environment(3), mode, &mut |_, _| {})
    }

    pub(crate) fn create(&mut self, store: &Store, blocks: u64) -> ObjectNumber {
        let (object, _) = store.create_object(BlockCount(blocks), b"volume").unwrap();
        self.model.sizes.insert(object.0, blocks);
        object
    }

    /// Writes at most one operation's blocks; the model learns of what was committed.
    pub(crate) fn write(
        &mut self,
        store: &Store,
        object: ObjectNumber,
        first: u64,
        contents: &[Content],
    ) -> Result<Lsn, Error> {
        assert!(contents.len() <= OPERATION_BLOCKS);
        let outcome = store.write(object, Lba(first), &bytes_of(contents))?;
        let blocks = (first..).zip(contents).map(|(lba, content)| ((object.0, lba), *content)).collect();
        self.model.changes.push((outcome.lsn.0, blocks));
        Ok(outcome.lsn)
    }

    pub(crate) fn zero(
        &mut self,
        store: &Store,
        object: ObjectNumber,
        first: u64,
        count: u64,
    ) -> Result<(), Error> {
        let lsn = store.zero(object, Lba(first), BlockCount(count))?;
        let blocks = (first..first + count).map(|lba| ((object.0, lba), 0)).collect();
        self.model.changes.push((lsn.0, blocks));
        Ok(())
    }

    pub(crate) fn delete(&mut self, store: &Store, object: ObjectNumber) -> Result<(), Error> {
        let lsn = store.delete_object(object)?;
        let size = self.model.sizes.remove(&object.0).unwrap();
        self.model.changes.push((lsn.0, (0..size).map(|lba| ((object.0, lba), 0)).collect()));
        Ok(())
    }

    /// A new volume with what another one holds now.
    pub(crate) fn clone_of(&mut self, store: &Store, source: ObjectNumber) -> Result<ObjectNumber, Error> {
        let (made, lsn) = store.clone_objects(&[CloneRequest { source, opaque: b"clone" }])?;
        let of_source = self.model.now().into_iter().filter(|((object, _), _)| *object == source.0);
        let blocks = of_source.map(|((_, lba), content)| ((made[0].0, lba), content)).collect();
        self.model.changes.push((lsn.0, blocks));
        self.model.sizes.insert(made[0].0, self.model.sizes[&source.0]);
        Ok(made[0])
    }

    /// Makes everything durable, and lets the log say so.
    pub(crate) fn flush(&self, store: &Store) -> Result<(), Error> {
        store.make_durable(store.last_lsn())?;
        store.sync_if_due().map(|_| ())
    }

    /// The pool that most tests begin with: volumes with data of every kind, some of it shared, some
    /// overwritten and trimmed, in a checkpoint and in the log behind it; all of it durable.
    pub(crate) fn filled(seed: u64, segments: u64) -> (Machine, Store) {
        let (mut machine, store) = Machine::new(seed, segments);
        let volumes = [20, 600, 3000].map(|blocks| machine.create(&store, blocks));
        let mut numbers = SeededNumbers::new(seed);
        for round in 0..64 {
            let object = volumes[numbers.index(3)];
            let size = machine.model.sizes[&object.0];
            let first = if round % 3 == 0 { numbers.below(size - 8) } else { numbers.below(12) };
            let contents: Vec<Content> = (0..8).map(|_| 1 + numbers.below(300)).collect();
            machine.write(&store, object, first, &contents).unwrap();
            if round % 11 == 5 {
                machine.zero(&store, object, numbers.below(size - 8), 8).unwrap();
            }
            if round % 5 == 4 {
                machine.flush(&store).unwrap();
            }
            if round == 20 || round == 44 {
                store.checkpoint().unwrap();
            }
        }
        machine.flush(&store).unwrap();
        (machine, store)
    }
}

/// How reading every block of every volume went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    pub(crate) right: u64,
    pub(crate) refused: u64,
}

/// Reads every block by itself: what comes must be what the state has, or an error of that kind.
pub(crate) fn read_all(
    store: &Store,
    sizes: &BTreeMap<u64, u64>,
    state: &State,
    may_be: &[ErrorKind],
    what: &str,
) -> Reads {
    let mut reads = Reads::default();
    let mut block = vec![0u8; BLOCK_BYTES];
    for (object, size) in sizes {
        for lba in 0..*size {
            let mapped = state.get(&(*object, lba)).copied();
            // Long holes are looked at here and there.
            if mapped.is_none() && lba > 64 && lba % 16 != 0 {
                continue;
            }
            block.fill(0x5a);
            match store.read(ObjectNumber(*object), Lba(lba), &mut block, true) {
                Ok(_) => {
                    let content = mapped.unwrap_or(0);
                    assert!(
                        block == bytes_of(&[content]),
                        "{what}: block {lba} of volume {object} is read as something that is not content {content}"
                    );
                    reads.right += 1;
                }
                Err(error) => {
                    assert!(may_be.contains(&error.kind()), "{what}: block {lba} of {object}: {error}");
                    reads.refused += 1;
                }
            }
        }
    }
    reads
}
