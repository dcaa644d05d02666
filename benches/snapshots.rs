//! What snapshots cost: making them at several sizes, idle and under writes; random writes after one against before;
//! deleting one; comparing two. On a store by itself, without array and protocol.
//!
//! `cargo bench --bench snapshots -- FOLDER [DIVISOR [ROW]]` makes a sparse pool file in FOLDER, which it deletes at the
//! end. DIVISOR (1 is what PERFORMANCE shows) makes everything smaller for a quick look, ROW runs one of `create`,
//! `writes`, `scattered`, `delete` and `diff`. Without arguments it does nothing, so that `cargo bench` passes over it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench, run by hand")]
#![allow(clippy::disallowed_methods, reason = "a bench takes the time, and waits")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sinter::daemon::system::{SystemClock, SystemRandom};
use sinter::device::Device;
use sinter::device::file::FileDevice;
use sinter::store::{CloneRequest, Environment, Store, StoreOptions};
use sinter::sync::seeded::SeededNumbers;
use sinter::units::{BLOCK_BYTES, BlockCount, ByteCount, Lba, ObjectNumber};

const GIB: u64 = 1 << 30;
const BLOCKS_PER_GIB: u64 = GIB / BLOCK_BYTES as u64;
const LEAF_BLOCKS: u64 = 512;

/// A store on a file, with a thread for its background work.
struct Bench {
    store: Arc<Store>,
    path: PathBuf,
    stop: Arc<AtomicBool>,
    background: Option<std::thread::JoinHandle<()>>,
}

impl Bench {
    fn new(folder: &Path, pool: u64, metadata_budget: u64) -> Bench {
        let path = folder.join(format!("snapshots-bench-{}.pool", std::process::id()));
        let device = FileDevice::create(&path, ByteCount(pool)).unwrap();
        let options = StoreOptions {
            metadata_budget: ByteCount(metadata_budget),
            index_budget: ByteCount(64 << 20),
            ..StoreOptions::default()
        };
        let environment = Environment { clock: Arc::new(SystemClock::new()), random: Arc::new(SystemRandom) };
        let devices = vec![Arc::new(device) as Arc<dyn Device>];
        let store = Arc::new(Store::create(devices, options, environment).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let (of_thread, stopped) = (Arc::clone(&store), Arc::clone(&stop));
        let background = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                of_thread.sync_if_due().unwrap();
                if !of_thread.background_step().unwrap() {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        });
        Bench { store, path, stop, background: Some(background) }
    }

    fn volume(&self, blocks: u64) -> ObjectNumber {
        self.store.create_object(BlockCount(blocks), b"volume").unwrap().0
    }

    fn snapshot(&self, source: ObjectNumber) -> ObjectNumber {
        let (made, lsn) = self.store.clone_objects(&[CloneRequest { source, opaque: &[7; 200] }]).unwrap();
        self.store.write_out(lsn).unwrap();
        made[0]
    }

    /// Everything that was let go of is taken apart; how long that took.
    fn wait_for_releases(&self) -> Duration {
        let begun = Instant::now();
        loop {
            let figures = self.store.statistics();
            if figures.nodes_waiting == 0 && figures.nodes_let_go == 0 {
                self.store.checkpoint().unwrap();
                return begun.elapsed();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(background) = self.background.take() {
            background.join().unwrap();
        }
        std::fs::remove_file(&self.path).unwrap();
    }
}

/// A block that neither compresses nor was there before.
fn noise(numbers: &mut SeededNumbers) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    numbers.fill(&mut block);
    block
}

/// A block of one repeated word: it takes an entry of the map and nothing else.
fn pattern(word: u32) -> Vec<u8> {
    word.to_le_bytes().repeat(BLOCK_BYTES / 4)
}

fn fill_with_noise(bench: &Bench, volume: ObjectNumber, blocks: u64, numbers: &mut SeededNumbers) {
    let mut data = vec![0; 256 * BLOCK_BYTES];
    for first in (0..blocks).step_by(256) {
        numbers.fill(&mut data);
        let written = bench.store.write(volume, Lba(first), &data).unwrap();
        bench.store.write_out(written.lsn).unwrap();
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Median and maximum of the times that snapshots take.
fn time_snapshots(bench: &Bench, volume: ObjectNumber, count: usize) -> (f64, f64) {
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        let made = bench.snapshot(volume);
        times.push(begun.elapsed());
        bench.store.delete_object(made).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    times.sort();
    (milliseconds(times[count / 2]), milliseconds(times[count - 1]))
}

/// How random writes went.
struct Rate {
    per_second: f64,
    longest_milliseconds: f64,
    /// In each second.
    course: Vec<u64>,
}

/// Random writes of one block by two threads for a time.
fn random_writes(bench: &Bench, volume: ObjectNumber, blocks: u64, time: Duration, seed: u64) -> Rate {
    let longest = AtomicU64::new(0);
    let seconds: Vec<AtomicU64> = (0..=time.as_secs()).map(|_| AtomicU64::new(0)).collect();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (store, seconds, longest) = (&bench.store, &seconds, &longest);
            scope.spawn(move || {
                let mut numbers = SeededNumbers::new(seed * 2 + thread);
                while begun.elapsed() < time {
                    let block = noise(&mut numbers);
                    let before = Instant::now();
                    let outcome = store.write(volume, Lba(numbers.below(blocks)), &block).unwrap();
                    store.write_out(outcome.lsn).unwrap();
                    let took = u64::try_from(before.elapsed().as_micros()).unwrap();
                    longest.fetch_max(took, Ordering::Relaxed);
                    let second = begun.elapsed().min(time).as_secs() as usize;
                    seconds[second].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let course: Vec<u64> = seconds.into_iter().map(AtomicU64::into_inner).collect();
    Rate {
        per_second: course.iter().sum::<u64>() as f64 / begun.elapsed().as_secs_f64(),
        longest_milliseconds: longest.into_inner() as f64 / 1e3,
        course,
    }
}

fn create(folder: &Path, divisor: u64) {
    for (name, gib, stride) in [("1 GiB", 1, 1), ("1 TiB", 1024, 1), ("64 TiB", 65_536, 512)] {
        let bench = Bench::new(folder, 16 * GIB, 256 << 20);
        let blocks = gib * BLOCKS_PER_GIB;
        let volume = bench.volume(blocks);
        let leaves = (blocks / LEAF_BLOCKS / stride / divisor).max(1);
        for leaf in 0..leaves {
            let lba = leaf * (blocks / LEAF_BLOCKS / leaves) * LEAF_BLOCKS;
            bench.store.write(volume, Lba(lba), &pattern(7)).unwrap();
        }
        bench.store.checkpoint().unwrap();
        let (idle, idle_max) = time_snapshots(&bench, volume, 100);
        let other = bench.volume(BLOCKS_PER_GIB);
        let seconds = Duration::from_secs(4);
        let (busy, busy_max, rate) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| random_writes(&bench, other, BLOCKS_PER_GIB, seconds, 1));
            std::thread::sleep(Duration::from_millis(500));
            let (median, most) = time_snapshots(&bench, volume, 100);
            (median, most, writer.join().unwrap().per_second)
        });
        println!(
            "create: {name}, {leaves} leaves: idle {idle:.3} ms (most {idle_max:.3}); beside {rate:.0} writes/s \
             {busy:.3} ms (most {busy_max:.3})"
        );
    }
}

/// Random writes before and after a snapshot. With `scattered` the volume was overwritten at random three times, and
/// the metadata budget is an eighth of its tables.
fn writes(folder: &Path, divisor: u64, scattered: bool) {
    let blocks = (8 * BLOCKS_PER_GIB / divisor).next_multiple_of(256);
    // An entry of 32 bytes, a count of 4 and a mapping of 8 for each block.
    let budget = if scattered { (blocks * 44 / 8).max(1 << 20) } else { 256 << 20 };
    let bench = Bench::new(folder, (blocks * 4096 * 3).max(GIB), budget);
    let volume = bench.volume(blocks);
    let mut numbers = SeededNumbers::new(1);
    fill_with_noise(&bench, volume, blocks, &mut numbers);
    for _ in 0..if scattered { 3 * blocks } else { 0 } {
        let lba = Lba(numbers.below(blocks));
        bench.store.write(volume, lba, &noise(&mut numbers)).unwrap();
    }
    bench.store.checkpoint().unwrap();
    let time = Duration::from_secs((20 / divisor).max(10));
    let before = random_writes(&bench, volume, blocks, time, 2);
    bench.snapshot(volume);
    let after = random_writes(&bench, volume, blocks, time, 3);
    println!(
        "{}: {} MiB, {} MiB for metadata: {:.0}/s before (longest {:.1} ms), {:.0}/s after a snapshot (longest {:.1} ms): \
         {:.2}; by the second {:?}, then {:?}",
        if scattered { "scattered" } else { "writes" },
        blocks >> 8,
        budget >> 20,
        before.per_second,
        before.longest_milliseconds,
        after.per_second,
        after.longest_milliseconds,
        after.per_second / before.per_second,
        before.course,
        after.course
    );
}

fn delete(folder: &Path, divisor: u64) {
    let blocks = (8 * BLOCKS_PER_GIB / divisor).next_multiple_of(256);
    let mut numbers = SeededNumbers::new(3);
    for of_patterns in [false, true] {
        let bench = Bench::new(folder, (blocks * 4096 * 2).max(GIB), 256 << 20);
        let volume = bench.volume(blocks);
        if of_patterns {
            for first in (0..blocks).step_by(256) {
                bench.store.write(volume, Lba(first), &pattern(7).repeat(256)).unwrap();
            }
        } else {
            fill_with_noise(&bench, volume, blocks, &mut numbers);
        }
        let snapshot = bench.snapshot(volume);
        bench.store.delete_object(volume).unwrap();
        bench.wait_for_releases();
        let live = bench.store.statistics().live_bytes;
        let begun = Instant::now();
        bench.store.delete_object(snapshot).unwrap();
        let answered = begun.elapsed();
        bench.wait_for_releases();
        let took = begun.elapsed().as_secs_f64();
        let freed = live - bench.store.statistics().live_bytes;
        println!(
            "delete: {} MiB of {}: answered after {:.3} ms, {:.0} MiB of logical space a second, {} MiB freed",
            blocks >> 8,
            if of_patterns { "patterns" } else { "data" },
            milliseconds(answered),
            (blocks >> 8) as f64 / took,
            freed >> 20
        );
    }
}

fn diff(folder: &Path, divisor: u64) {
    let blocks = 1024 * BLOCKS_PER_GIB / divisor;
    let bench = Bench::new(folder, 16 * GIB, 256 << 20);
    let volume = bench.volume(blocks);
    for leaf in 0..blocks / LEAF_BLOCKS {
        bench.store.write(volume, Lba(leaf * LEAF_BLOCKS), &pattern(7)).unwrap();
    }
    let first = bench.snapshot(volume);
    let changed = blocks / 100 / 256 * 256;
    for at in (0..changed).step_by(256) {
        bench.store.write(volume, Lba(blocks / 3 + at), &pattern(8).repeat(256)).unwrap();
    }
    let clustered = bench.snapshot(volume);
    for at in 0..blocks / 100 {
        bench.store.write(volume, Lba(at * 100), &pattern(9)).unwrap();
    }
    let spread = bench.snapshot(volume);
    bench.store.checkpoint().unwrap();
    for (name, older, newer) in [("clustered", first, clustered), ("spread", clustered, spread)] {
        let (mut at, mut calls, mut found) = (0, 0, 0);
        let begun = Instant::now();
        while at < blocks {
            let left = BlockCount(blocks - at);
            for run in bench.store.diff(older, newer, Lba(at), left, 4096).unwrap() {
                at += run.blocks.0;
                found += if run.changed.is_some() { run.blocks.0 } else { 0 };
            }
            calls += 1;
        }
        println!(
            "diff: {} GiB logical, {found} blocks changed, {name}: {:.1} ms in {calls} calls",
            blocks / BLOCKS_PER_GIB,
            milliseconds(begun.elapsed())
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with("--")).collect();
    let Some(folder) = arguments.first().map(Path::new) else { return };
    let divisor: u64 = arguments.get(1).map_or(1, |divisor| divisor.parse().unwrap());
    let row = arguments.get(2).map_or("", String::as_str);
    let wanted = |name: &str| row.is_empty() || row == name;
    if wanted("create") {
        create(folder, divisor);
    }
    if wanted("writes") {
        writes(folder, divisor, false);
    }
    if wanted("scattered") {
        writes(folder, divisor, true);
    }
    if wanted("delete") {
        delete(folder, divisor);
    }
    if wanted("diff") {
        diff(folder, divisor);
    }
}
