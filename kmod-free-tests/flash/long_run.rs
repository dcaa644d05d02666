//! A pool kept between 70 and 100 % full for long: volumes come and go, are overwritten and trimmed, snapshots
//! are taken, restored, cloned and deleted, the pool is opened anew now and then, and nothing is lost, no space and
//! no memory either.

use std::collections::BTreeMap;
use std::time::Duration;

use sinter::error::ErrorKind;
use sinter::store::{CloneRequest, Store};
use sinter::sync::seeded::{SeededNumbers, mix};
use sinter::units::{BLOCK_BYTES, BlockCount, ByteCount, Lba, ObjectNumber};

use crate::assert_sound;
use crate::load::{Load, options};

const POOL: ByteCount = ByteCount(24 << 20);
/// What the volumes of the model hold: content by block; a block that is not there is zeros.
type Volumes = BTreeMap<u64, BTreeMap<u64, u64>>;

const VOLUME_BLOCKS: u64 = 2048;
/// Volumes at once, without those that were cloned from snapshots.
const VOLUMES_MAX: usize = 24;
/// Snapshots and clones at once.
const SNAPSHOTS_MAX: usize = 16;

fn fill(content: u64, block: &mut [u8]) {
    // One content in four compresses to about a half.
    let period = if content.is_multiple_of(4) { 2 } else { 1 };
    let mut state = mix(content);
    for (index, chunk) in block.chunks_mut(8).enumerate() {
        if index % period == 0 {
            state = mix(state);
            chunk.copy_from_slice(&state.to_le_bytes());
        } else {
            chunk.fill(9);
        }
    }
}

struct Run {
    load: Load,
    volumes: Volumes,
    /// Objects that are never written.
    snapshots: Volumes,
    with_snapshots: bool,
    numbers: SeededNumbers,
    refused: u64,
    taken: u64,
    written: u64,
    /// On the way from full to 70 %.
    draining: bool,
}

impl Run {
    fn new(seed: u64, with_snapshots: bool) -> Run {
        let load = Load::new(POOL, options(ByteCount(64 << 10), ByteCount(1 << 20)), seed);
        load.store.delete_object(load.object).unwrap();
        let numbers = SeededNumbers::new(seed ^ 0x5eed);
        Run {
            load,
            volumes: Volumes::new(),
            snapshots: Volumes::new(),
            with_snapshots,
            numbers,
            refused: 0,
            taken: 0,
            written: 0,
            draining: false,
        }
    }

    fn fullness(&self) -> f64 {
        let statistics = self.load.store.statistics();
        statistics.live_bytes as f64 / statistics.usable_bytes as f64
    }

    fn any_volume(&mut self) -> Option<u64> {
        let index = self.numbers.index(self.volumes.len());
        self.volumes.keys().nth(index).copied()
    }

    fn any_snapshot(&mut self) -> Option<u64> {
        let index = self.numbers.index(self.snapshots.len());
        self.snapshots.keys().nth(index).copied()
    }

    /// What `object` has, under a new number.
    fn clone_of(&mut self, object: u64) -> Option<u64> {
        let request = CloneRequest { source: ObjectNumber(object), opaque: b"clone" };
        match self.load.store.clone_objects(&[request]) {
            Ok((numbers, _)) => Some(numbers[0].0),
            Err(error) => {
                self.refuse(&error);
                None
            }
        }
    }

    fn snapshot_step(&mut self) {
        let room = self.snapshots.len() < SNAPSHOTS_MAX;
        match self.numbers.below(8) {
            0..4 if room && !self.draining => {
                let Some(volume) = self.any_volume() else { return };
                let Some(snapshot) = self.clone_of(volume) else { return };
                self.taken += 1;
                self.snapshots.insert(snapshot, self.volumes[&volume].clone());
            }
            4 if self.volumes.len() < VOLUMES_MAX => {
                let Some(snapshot) = self.any_snapshot() else { return };
                let Some(volume) = self.clone_of(snapshot) else { return };
                self.volumes.insert(volume, self.snapshots[&snapshot].clone());
            }
            5 => {
                let (Some(volume), Some(snapshot)) = (self.any_volume(), self.any_snapshot()) else { return };
                let (target, source) = (ObjectNumber(volume), ObjectNumber(snapshot));
                match self.load.store.restore_object(target, source, BlockCount(VOLUME_BLOCKS), b"") {
                    Ok(_) => {
                        self.volumes.insert(volume, self.snapshots[&snapshot].clone());
                    }
                    Err(error) => self.refuse(&error),
                }
            }
            _ => self.delete_snapshot(),
        }
    }

    fn delete_snapshot(&mut self) {
        let Some(snapshot) = self.any_snapshot() else { return };
        self.load.store.delete_object(ObjectNumber(snapshot)).unwrap();
        self.snapshots.remove(&snapshot);
    }

    fn create(&mut self) {
        match self.load.store.create_object(BlockCount(VOLUME_BLOCKS), b"") {
            Ok((object, _)) => {
                self.volumes.insert(object.0, BTreeMap::new());
            }
            Err(error) => self.refuse(&error),
        }
    }

    fn refuse(&mut self, error: &sinter::error::Error) {
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        self.refused += 1;
    }

    fn write(&mut self) {
        let Some(volume) = self.any_volume() else { return self.create() };
        let count = 1 + self.numbers.below(8);
        // Most writes go to the first sixteenth of a volume.
        let span = if self.numbers.chance(3, 4) { VOLUME_BLOCKS / 16 } else { VOLUME_BLOCKS };
        let first = self.numbers.below(span - count);
        let contents: Vec<u64> = (0..count).map(|_| self.numbers.number() | 1 << 40).collect();
        let mut bytes = vec![0u8; contents.len() * BLOCK_BYTES];
        for (content, block) in contents.iter().zip(bytes.chunks_mut(BLOCK_BYTES)) {
            fill(*content, block);
        }
        match self.load.store.write(ObjectNumber(volume), Lba(first), &bytes) {
            Ok(_) => {
                self.written += count;
                let blocks = self.volumes.get_mut(&volume).unwrap();
                blocks.extend((first..).zip(contents));
            }
            // One operation holds these few blocks: all of it was refused.
            Err(error) => self.refuse(&error),
        }
    }

    fn trim(&mut self) {
        let Some(volume) = self.any_volume() else { return };
        let first = self.numbers.below(VOLUME_BLOCKS);
        let count = 1 + self.numbers.below((VOLUME_BLOCKS - first).min(200));
        match self.load.store.zero(ObjectNumber(volume), Lba(first), BlockCount(count)) {
            Ok(_) => {
                self.volumes.get_mut(&volume).unwrap().retain(|lba, _| !(first..first + count).contains(lba))
            }
            Err(error) => self.refuse(&error),
        }
    }

    fn delete(&mut self) {
        let Some(volume) = self.any_volume() else { return };
        self.load.store.delete_object(ObjectNumber(volume)).unwrap();
        self.volumes.remove(&volume);
    }

    fn round(&mut self) {
        for _ in 0..2000 {
            let full = self.fullness();
            self.draining = if self.draining { full > 0.7 } else { full > 0.995 };
            match self.numbers.below(1000) {
                0..4 if self.volumes.len() < VOLUMES_MAX => self.create(),
                4..10 if self.draining => self.delete(),
                10..20 if self.draining => self.delete_snapshot(),
                980.. if self.with_snapshots => self.snapshot_step(),
                10..80 if self.draining => self.trim(),
                10..20 if full > 0.7 => self.trim(),
                _ => self.write(),
            }
            if self.numbers.chance(1, 16) {
                self.load.background();
            }
        }
    }

    fn compare(&self) {
        let mut expected = vec![0u8; BLOCK_BYTES];
        let mut found = vec![0u8; BLOCK_BYTES];
        for (object, blocks) in self.volumes.iter().chain(&self.snapshots) {
            for lba in 0..VOLUME_BLOCKS {
                match blocks.get(&lba) {
                    Some(content) => fill(*content, &mut expected),
                    None => expected.fill(0),
                }
                self.load.store.read(ObjectNumber(*object), Lba(lba), &mut found, true).unwrap();
                assert!(found == expected, "block {lba} of object {object}");
            }
        }
    }

    fn reopen(&mut self) {
        let last = self.load.store.last_lsn();
        self.load.store.write_out(last).unwrap();
        let (device, options) = (self.load.device.clone(), self.load.options.clone());
        let opened = Store::open(vec![device], options, self.load.environment.clone());
        let (store, report) = opened.unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
        assert_eq!(report.last_lsn, last);
        self.load.store = store;
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

fn keep_nearly_full(with_snapshots: bool) {
    let rounds = from_environment("SINTER_FLASH_ROUNDS").unwrap_or(24);
    let mut run = Run::new(from_environment("SINTER_FLASH_SEED").unwrap_or(70), with_snapshots);
    let (mut least, mut most) = (1.0f64, 0.0f64);
    let mut memory = 0;
    for round in 0..rounds {
        run.round();
        if round % 4 == 3 {
            run.compare();
            run.reopen();
            assert_sound(&run.load.store);
        }
        let full = run.fullness();
        if round >= 4 {
            (least, most) = (least.min(full), most.max(full));
        }
        let statistics = run.load.store.statistics();
        let now = statistics.cache_bytes + statistics.change_buffer_bytes + statistics.index_bytes;
        if round == rounds / 2 {
            memory = now;
        }
        assert!(
            round <= rounds / 2 || now <= memory + (1 << 20),
            "memory grows: {memory} and then {now} bytes"
        );
    }
    run.compare();
    assert_sound(&run.load.store);
    let blocks: u64 =
        run.volumes.values().chain(run.snapshots.values()).map(|blocks| blocks.len() as u64).sum();
    let statistics = run.load.store.statistics();
    assert_eq!(statistics.mapped_blocks, blocks);
    println!(
        "{} blocks written, {} snapshots, {} requests refused, {:.0} to {:.0} % full, amplification {:.2}, \
         {} segments collected",
        run.written,
        run.taken,
        run.refused,
        least * 100.0,
        most * 100.0,
        statistics.write_amplification,
        statistics.collected_segments
    );
    assert!(least < 0.8 && most > 0.98, "{least:.2} to {most:.2} full");
    assert!(with_snapshots || least > 0.6, "{least:.2} full");
    assert!(run.refused > 0 && statistics.collected_segments > 100);
    assert!(!with_snapshots || run.taken > 50, "{} snapshots", run.taken);
    everything_goes(&mut run);
}

/// Once nothing is left, nothing is held.
fn everything_goes(run: &mut Run) {
    for object in run.volumes.keys().chain(run.snapshots.keys()) {
        run.load.store.delete_object(ObjectNumber(*object)).unwrap();
    }
    run.load.idle(Duration::from_secs(30));
    assert_sound(&run.load.store);
    let left = run.load.store.statistics();
    assert_eq!((left.unique_blocks, left.referenced_blocks, left.mapped_blocks), (0, 0, 0));
    assert!(left.live_bytes < left.usable_bytes / 16, "{} of {} bytes", left.live_bytes, left.usable_bytes);
}

#[test]
fn p5_a_pool_kept_nearly_full_loses_nothing() {
    keep_nearly_full(false);
}

#[test]
fn p5_a_pool_kept_nearly_full_with_snapshots_loses_nothing() {
    keep_nearly_full(true);
}
