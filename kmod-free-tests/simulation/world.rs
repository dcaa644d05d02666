//! A simulated machine: faulty disks, a store on them, clients, and crashes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sinter::device::Device;
use sinter::device::faulty::{Fault, FaultPlan, FaultyDisk};
use sinter::error::{Error, ErrorKind};
use sinter::store::{
    CloneRequest, Environment, ObjectInfo, OpenReport, PlantedFaults, ReclaimWalk, ScrubState, Store,
    StoreOptions,
};
use sinter::sync::baton::{Simulated, run_threads};
use sinter::sync::seeded::SeededNumbers;
use sinter::sync::{Clock, RandomSource};
use sinter::units::{BLOCK_BYTES, BlockCount, ByteCount, Lba, Lsn, ObjectNumber};

use crate::model::{Content, Recorder, State, bytes_of, fill, intend};

/// A clock that goes on by a step each time it is looked at.
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

/// What a client has been promised.
#[derive(Default)]
pub(crate) struct Promises {
    /// Acknowledged: survives the death of the process.
    acknowledged: AtomicU64,
    /// Flushed: survives a power cut.
    flushed: AtomicU64,
}

/// The machine.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) numbers: SeededNumbers,
    pub(crate) plan: Arc<FaultPlan>,
    pub(crate) disks: Vec<Arc<FaultyDisk>>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) promises: Promises,
    options: StoreOptions,
    environment: Environment,
    /// Crashes so far.
    pub(crate) crashes: u64,
    /// Whether a client that is alone is busy with snapshots, clones, restores and deletes above all.
    pub(crate) snapshots: bool,
    /// Whether `check` is run now and then while a client is alone.
    pub(crate) checked_in_between: bool,
}

/// How a crash comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    Power,
    Process,
}

impl World {
    /// A machine with a new pool, its geometry drawn from the seed.
    pub(crate) fn new(seed: u64, faults: PlantedFaults) -> (World, Store) {
        let mut numbers = SeededNumbers::new(seed);
        let plan = FaultPlan::new();
        let segments = 96 + numbers.below(160);
        let count = 1 + numbers.index(3);
        let disks: Vec<Arc<FaultyDisk>> = (0..count)
            .map(|index| {
                let len = ByteCount(128 * 1024 + (segments / count as u64 + 1) * 65536);
                let disk_seed = seed.wrapping_mul(31).wrapping_add(index as u64);
                Arc::new(FaultyDisk::new(format!("disk{index}"), len, disk_seed, Arc::clone(&plan)))
            })
            .collect();
        let recorder = Arc::new(Recorder::default());
        let options = StoreOptions {
            metadata_budget: ByteCount(1 << (19 + numbers.below(3))),
            index_budget: ByteCount(64 << numbers.below(8)),
            checkpoint_log_bytes: ByteCount(65536 << numbers.below(6)),
            sync_after: Duration::from_millis(100),
            segment_bytes: ByteCount(65536),
            borrowers_max: if numbers.chance(1, 2) { usize::MAX } else { numbers.index(12) },
            sink: Some(Arc::clone(&recorder) as Arc<_>),
            faults,
            ..StoreOptions::default()
        };
        let environment = Environment {
            clock: Arc::new(TickingClock::default()),
            random: Arc::new(SeededRandom(Mutex::new(numbers.branch()))),
        };
        let mut world = World {
            seed,
            numbers,
            plan,
            disks,
            recorder,
            promises: Promises::default(),
            options,
            environment,
            crashes: 0,
            snapshots: false,
            checked_in_between: false,
        };
        let store = Store::create(world.devices(), world.options.clone(), world.environment.clone())
            .unwrap_or_else(|error| panic!("seed {seed}: a new pool: {error}"));
        world.plan.forget_faults();
        world.crashes = 0;
        (world, store)
    }

    pub(crate) fn devices(&self) -> Vec<Arc<dyn Device>> {
        self.disks.iter().map(|disk| Arc::clone(disk) as Arc<dyn Device>).collect()
    }

    /// Opens the pool, crashing in between now and then, until it is open.
    pub(crate) fn reopen(&mut self, crash: Crash, with_more_crashes: bool) -> (Store, OpenReport) {
        let mut attempts = 0;
        let mut power = crash == Crash::Power;
        self.fall(crash);
        loop {
            attempts += 1;
            let again = with_more_crashes && attempts < 4 && self.numbers.chance(1, 3);
            if again {
                let after = self.numbers.below(400);
                self.plan.stop_after(after);
            }
            let opened = Store::open(self.devices(), self.options.clone(), self.environment.clone());
            match opened {
                Ok((store, report)) if !self.plan.is_stopped() => {
                    self.plan.restart();
                    self.plan.forget_faults();
                    assert!(report.damage.is_empty(), "seed {}: damage {:?}", self.seed, report.damage);
                    self.compare_after_crash(&store, &report, power);
                    return (store, report);
                }
                Err(error) if !self.plan.is_stopped() => {
                    panic!("seed {}: crash {}: opening: {error}", self.seed, self.crashes)
                }
                _ => {
                    let crash = if self.numbers.chance(1, 2) { Crash::Power } else { Crash::Process };
                    power |= crash == Crash::Power;
                    self.fall(crash);
                }
            }
        }
    }

    fn fall(&mut self, crash: Crash) {
        self.crashes += 1;
        for disk in &self.disks {
            match crash {
                Crash::Power => disk.crash(),
                Crash::Process => disk.kill_process(),
            }
        }
        self.plan.restart();
        self.plan.forget_faults();
    }

    /// P1: the state is that after a prefix of what was committed, and the prefix holds what was promised.
    fn compare_after_crash(&mut self, store: &Store, report: &OpenReport, power: bool) {
        let seed = self.seed;
        let last = report.last_lsn.0;
        let history = self.recorder.history();
        let committed = history.base + history.effects.len() as u64;
        let flushed = self.promises.flushed.load(Ordering::Relaxed);
        let acknowledged = self.promises.acknowledged.load(Ordering::Relaxed);
        let floor = if power { flushed } else { acknowledged.max(flushed) };
        assert!(last <= committed, "seed {seed}: operation {last} was never committed, only {committed}");
        assert!(
            last >= floor,
            "seed {seed}: crash {}: operations up to {floor} were promised, and {last} is the last",
            self.crashes
        );
        assert!(
            last >= history.base,
            "seed {seed}: operation {} was there before, and {last} is the last",
            history.base
        );
        self.recorder.rewind(last);
        self.promises.flushed.store(last, Ordering::Relaxed);
        self.promises.acknowledged.store(last, Ordering::Relaxed);
        let state = self.recorder.history().state;
        compare(store, &state, seed, &mut self.numbers, true);
        compare_diff(store, &state, seed, &mut self.numbers);
        verify(store, seed, self.crashes);
    }

    /// Lets clients and background work run until the world stops or all are done.
    pub(crate) fn threads(&mut self, store: &Store, steps: u64) {
        let seed = self.numbers.number();
        let clients = 1 + self.numbers.index(3);
        let mut threads: Vec<Simulated<'_>> = Vec::new();
        let (promises, plan) = (&self.promises, &*self.plan);
        for client in 0..clients {
            let mut numbers = self.numbers.branch();
            threads.push(Box::new(move || {
                let mut client = Client::new(store, promises, client as u64 + 1);
                for _ in 0..steps {
                    if plan.is_stopped() || !client.step(&mut numbers) {
                        return;
                    }
                }
            }));
        }
        threads.push(Box::new(move || {
            for _ in 0..steps * 2 {
                if plan.is_stopped() || store.background_step().is_err() || store.sync_if_due().is_err() {
                    return;
                }
                sinter::sync::yield_point();
            }
        }));
        run_threads(seed, threads);
    }

    /// Lets a sync fail, one of the next few. Some of what it was to cover is lost then, whoever wrote it, and nobody may
    /// call durable what he wrote before: the store stops, and only a new opening knows more.
    pub(crate) fn fail_a_sync(&mut self) {
        let which = self.numbers.below(24);
        self.plan.inject(Fault::FailSync, which);
    }

    /// Goes on with a scrub, or begins one: nothing is damaged while the world goes on.
    fn scrub(&self, store: &Store) -> Result<(), Error> {
        if store.scrub_status().state != ScrubState::Running {
            store.start_scrub();
        }
        store.scrub_step(ByteCount(1 << 17))?;
        let status = store.scrub_status();
        assert!(
            status.errors == 0 || self.plan.is_stopped(),
            "seed {}: scrub has found {:?}",
            self.seed,
            status.damage
        );
        Ok(())
    }

    /// Goes on with a walk along an object, or begins one.
    fn walk(store: &Store, walk: &mut Option<ReclaimWalk>, numbers: &mut SeededNumbers) -> Result<(), Error> {
        let objects = store.objects()?;
        if objects.is_empty() {
            return Ok(());
        }
        let object = objects[numbers.index(objects.len())].number;
        match store.walk_reclaimable(walk.get_or_insert_with(|| ReclaimWalk::new(object))) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // The object was deleted meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        *walk = None;
        Ok(())
    }

    /// One client and background work in turn.
    pub(crate) fn alone(&mut self, store: &Store, steps: u64) {
        let mut numbers = self.numbers.branch();
        let mut client = Client::new(store, &self.promises, 0);
        client.snapshots = self.snapshots;
        let mut walk = None;
        for _ in 0..steps {
            if self.plan.is_stopped() || !client.step(&mut numbers) {
                return;
            }
            let outcome = match numbers.below(12) {
                0..4 => store.background_step().map(|_| ()),
                4..6 => store.sync_if_due().map(|_| ()),
                6 if numbers.chance(1, 4) => store.checkpoint(),
                7 => self.scrub(store),
                8 => World::walk(store, &mut walk, &mut numbers),
                _ => Ok(()),
            };
            if let Err(error) = outcome {
                assert!(self.plan.is_stopped(), "seed {}: background work: {error}", self.seed);
                return;
            }
            if numbers.chance(1, 20) && !self.plan.is_stopped() {
                let history = self.recorder.history();
                let state = history.state_at(history.base + history.effects.len() as u64);
                compare_unless_stopped(store, &state, self.seed, &mut numbers, &self.plan);
            }
            if self.checked_in_between && numbers.chance(1, 60) && !self.plan.is_stopped() {
                verify_unless_stopped(store, self.seed, &self.plan);
            }
        }
    }
}

fn compare_unless_stopped(
    store: &Store,
    state: &State,
    seed: u64,
    numbers: &mut SeededNumbers,
    plan: &FaultPlan,
) {
    for (number, volume) in state {
        let first = numbers.below(volume.size);
        let count = (1 + numbers.below(24)).min(volume.size - first);
        let mut buffer = vec![1u8; count as usize * BLOCK_BYTES];
        let expected: Vec<Content> =
            (first..first + count).map(|lba| volume.blocks.get(&lba).copied().unwrap_or(0)).collect();
        let wait = numbers.chance(3, 4);
        match store.read(ObjectNumber(*number), Lba(first), &mut buffer, wait) {
            Ok(true) => assert!(
                buffer == bytes_of(&expected),
                "seed {seed}: volume {number}: {count} blocks from {first} on are not what was written"
            ),
            Ok(false) => assert!(!wait, "seed {seed}: a read that may wait has not"),
            Err(error) => {
                assert!(plan.is_stopped(), "seed {seed}: reading volume {number}: {error}");
                return;
            }
        }
    }
}

/// `check` finds nothing while the store serves, either.
fn verify_unless_stopped(store: &Store, seed: u64, plan: &FaultPlan) {
    let verified = store.verify(&mut |_, _| {});
    if plan.is_stopped() {
        return;
    }
    let report = verified.unwrap_or_else(|error| panic!("seed {seed}: check in between: {error}"));
    assert!(
        report.faults.is_empty(),
        "seed {seed}: check in between found {:#?}",
        &report.faults[..report.faults.len().min(8)]
    );
}

/// The store holds exactly this state.
pub(crate) fn compare(store: &Store, state: &State, seed: u64, numbers: &mut SeededNumbers, whole: bool) {
    let mut objects = store.objects().expect("objects are in memory");
    objects.sort_by_key(|object| object.number);
    let listed: Vec<u64> = objects.iter().map(|object| object.number.0).collect();
    let expected: Vec<u64> = state.keys().copied().collect();
    assert_eq!(listed, expected, "seed {seed}: the volumes that are there");
    for object in &objects {
        let volume = &state[&object.number.0];
        assert_eq!(object.size.0, volume.size, "seed {seed}: size of volume {}", object.number);
        assert_eq!(object.opaque, volume.opaque, "seed {seed}: opaque bytes of volume {}", object.number);
        assert_eq!(
            object.mapped.0,
            volume.blocks.len() as u64,
            "seed {seed}: mapped blocks of volume {}",
            object.number
        );
        let mut block = vec![0u8; BLOCK_BYTES];
        let mut first = 0;
        while first < volume.size {
            let count = (1 + numbers.below(64)).min(volume.size - first);
            let blank = volume.blocks.range(first..first + count).next().is_none();
            if !blank || whole || numbers.chance(1, 8) {
                let mut buffer = vec![1u8; count as usize * BLOCK_BYTES];
                let read = store.read(object.number, Lba(first), &mut buffer, true);
                read.unwrap_or_else(|error| panic!("seed {seed}: reading volume {}: {error}", object.number));
                for (lba, got) in (first..).zip(buffer.chunks(BLOCK_BYTES)) {
                    let content = volume.blocks.get(&lba).copied().unwrap_or(0);
                    fill(content, &mut block);
                    assert!(
                        got == block.as_slice(),
                        "seed {seed}: block {lba} of volume {} is not content {content}",
                        object.number
                    );
                }
            }
            first += if volume.size > 4096 && blank { count * 16 } else { count };
        }
    }
}

/// What `diff` calls the same in two volumes is the same.
fn compare_diff(store: &Store, state: &State, seed: u64, numbers: &mut SeededNumbers) {
    if state.is_empty() {
        return;
    }
    let volumes: Vec<u64> = state.keys().copied().collect();
    let (older, newer) = (volumes[numbers.index(volumes.len())], volumes[numbers.index(volumes.len())]);
    let (before, now) = (&state[&older].blocks, &state[&newer]);
    let runs_max = 1 + numbers.index(20);
    let mut at = 0;
    while at < now.size {
        let left = BlockCount(now.size - at);
        let runs = store.diff(ObjectNumber(older), ObjectNumber(newer), Lba(at), left, runs_max);
        for run in runs.unwrap_or_else(|error| panic!("seed {seed}: diff of {older} and {newer}: {error}")) {
            let range = at..at + run.blocks.0;
            assert!(
                run.changed.is_some() || before.range(range.clone()).eq(now.blocks.range(range)),
                "seed {seed}: diff calls {} blocks from {at} on of {older} and {newer} the same",
                run.blocks
            );
            at += run.blocks.0;
        }
    }
    assert_eq!(at, now.size, "seed {seed}: diff of {older} and {newer}");
}

/// `check` finds nothing.
pub(crate) fn verify(store: &Store, seed: u64, crashes: u64) {
    let report = store.verify(&mut |_, _| {}).unwrap_or_else(|error| panic!("seed {seed}: check: {error}"));
    assert!(
        report.faults.is_empty(),
        "seed {seed}: crash {crashes}: check found {:#?}",
        &report.faults[..report.faults.len().min(8)]
    );
}

/// One client with volumes of its own: so its own requests are in order, and the model needs no more than the
/// order of commits.
struct Client<'a> {
    store: &'a Store,
    promises: &'a Promises,
    name: u64,
    snapshots: bool,
}

impl<'a> Client<'a> {
    fn new(store: &'a Store, promises: &'a Promises, name: u64) -> Client<'a> {
        Client { store, promises, name, snapshots: false }
    }

    /// One request; `false` when the world has stopped.
    fn step(&mut self, numbers: &mut SeededNumbers) -> bool {
        let objects = self.store.objects().expect("objects are in memory");
        let chosen = (!objects.is_empty()).then(|| objects[numbers.index(objects.len())].clone());
        let verb = match numbers.below(100) {
            _ if self.snapshots && numbers.chance(1, 2) => [2, 4, 4, 7, 7, 8][numbers.index(6)],
            verb => verb,
        };
        let outcome = match (verb, chosen) {
            (0..2, _) | (_, None) if objects.len() < 5 => self.create(numbers),
            (2, Some(object)) => self.finish(self.store.delete_object(object.number), true),
            (3, Some(object)) => {
                let size = BlockCount((object.size.0 + 1 + numbers.below(2000)).min(4000));
                let opaque = vec![numbers.below(256) as u8; numbers.index(300)];
                if size < object.size {
                    return true;
                }
                self.finish(self.store.update_object(object.number, size, &opaque), true)
            }
            (4..7, Some(_)) if objects.len() < 9 => self.snapshot(&objects, numbers),
            // Clones would soon be all there is.
            (4..7, Some(object)) => self.finish(self.store.delete_object(object.number), false),
            (7, Some(object)) => {
                let source = &objects[numbers.index(objects.len())];
                let size = object.size.max(source.size);
                let opaque = vec![8; numbers.index(100)];
                let restored = self.store.restore_object(object.number, source.number, size, &opaque);
                self.finish(restored, true)
            }
            (8..16, Some(object)) => {
                let first = numbers.below(object.size.0);
                let longest = object.size.0 - first;
                let count = if numbers.chance(1, 3) { longest } else { 1 + numbers.below(longest.min(700)) };
                let zeroed = self.store.zero(object.number, Lba(first), BlockCount(count));
                self.finish(zeroed, numbers.chance(1, 8))
            }
            (16..21, _) => self.flush(),
            (21..25, _) => {
                let last = self.store.last_lsn();
                let outcome = self.store.write_out(last);
                if outcome.is_ok() {
                    self.promises.acknowledged.fetch_max(last.0, Ordering::Relaxed);
                }
                outcome
            }
            (_, Some(object)) => self.write(object.number, object.size.0, numbers),
            (_, None) => Ok(()),
        };
        match outcome {
            Ok(()) => true,
            Err(error) => self.may_go_on(&error),
        }
    }

    fn may_go_on(&self, error: &Error) -> bool {
        match error.kind() {
            // A full pool, or a volume that another client has deleted meanwhile.
            ErrorKind::NoSpace | ErrorKind::NotFound | ErrorKind::Invalid => true,
            ErrorKind::Stopped | ErrorKind::Device => false,
            kind => panic!("client {}: {kind:?}: {error}", self.name),
        }
    }

    fn create(&self, numbers: &mut SeededNumbers) -> Result<(), Error> {
        let size = BlockCount(1 + numbers.below(3000));
        let opaque = vec![self.name as u8; numbers.index(200)];
        self.finish(self.store.create_object(size, &opaque).map(|(_, lsn)| lsn), true)
    }

    /// One moment of some volumes, a volume twice now and then.
    fn snapshot(&self, objects: &[ObjectInfo], numbers: &mut SeededNumbers) -> Result<(), Error> {
        let count = if numbers.chance(2, 3) { 1 } else { 1 + numbers.index(3) };
        let opaque = vec![self.name as u8 + 100; numbers.index(200)];
        let requests: Vec<CloneRequest<'_>> = (0..count)
            .map(|_| CloneRequest { source: objects[numbers.index(objects.len())].number, opaque: &opaque })
            .collect();
        let cloned = self.store.clone_objects(&requests).map(|(_, lsn)| lsn);
        self.finish(cloned, numbers.chance(1, 2))
    }

    /// One write, or some that have come together: those are reduced before the first of them is entered.
    fn write(&self, object: ObjectNumber, size: u64, numbers: &mut SeededNumbers) -> Result<(), Error> {
        let together = if numbers.chance(1, 3) { 2 + numbers.index(6) } else { 1 };
        let writes: Vec<(u64, Vec<Content>)> = (0..together).map(|_| some_blocks(size, numbers)).collect();
        let bytes: Vec<Vec<u8>> = writes.iter().map(|(_, contents)| bytes_of(contents)).collect();
        let slices: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let mut ready = if together > 1 { self.store.reduce_together(&slices) } else { vec![None] };
        let mut last = Ok(Lsn(0));
        for (((first, contents), data), ready) in writes.iter().zip(&slices).zip(ready.drain(..)) {
            intend(*first, contents);
            last = self.store.write_part(object, Lba(*first), data, None, ready).map(|outcome| outcome.lsn);
            if last.is_err() {
                break;
            }
        }
        self.finish(last, numbers.chance(1, 10))
    }

    /// Acknowledges what was committed, or flushes it.
    fn finish(&self, committed: Result<Lsn, Error>, durable: bool) -> Result<(), Error> {
        let lsn = committed?;
        if durable {
            self.store.make_durable(lsn)?;
            self.promises.flushed.fetch_max(lsn.0, Ordering::Relaxed);
        }
        self.store.write_out(lsn)?;
        self.promises.acknowledged.fetch_max(lsn.0, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        let acknowledged = self.promises.acknowledged.load(Ordering::Relaxed);
        self.store.make_durable(Lsn(acknowledged))?;
        self.promises.flushed.fetch_max(acknowledged, Ordering::Relaxed);
        Ok(())
    }
}

/// Where a write begins in a volume of so many blocks, and what it holds.
fn some_blocks(size: u64, numbers: &mut SeededNumbers) -> (u64, Vec<Content>) {
    let first = if numbers.chance(1, 2) { numbers.below(size) } else { numbers.below(size.min(64)) };
    let count = (1 + numbers.below(24)).min(size - first);
    let unique = numbers.chance(1, 2);
    let contents = (0..count).map(|_| match numbers.below(12) {
        0 => 0,
        _ if unique => numbers.number() | 2,
        _ => 1 + numbers.below(200),
    });
    (first, contents.collect())
}
