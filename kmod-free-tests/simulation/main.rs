//! The simulator: a store on faulty disks, under one seed, crashed at any I/O, and compared with plain maps.
//!
//! `SINTER_SIM_CRASHES` sets how many crashes the long tests make, `SINTER_SIM_FIRST_SEED` moves the seeds they
//! run under, `SINTER_SIM_SEED` runs one seed alone.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends where it cannot go on, and says what it did"
)]

mod model;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sinter::store::PlantedFaults;

use world::{Crash, World};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// One machine's life under one seed: a few rounds of work, each ended by a crash. The crashes it made.
fn live(seed: u64, faults: PlantedFaults, threads: bool) -> u64 {
    let (mut world, mut store) = World::new(seed, faults);
    world.checked_in_between = true;
    let rounds = 2 + world.numbers.below(8);
    for _ in 0..rounds {
        let stop = world.numbers.below(1500);
        if world.numbers.chance(9, 10) {
            world.plan.stop_after(stop);
        }
        let steps = 10 + world.numbers.below(150);
        let mut crash = if world.numbers.chance(2, 3) { Crash::Power } else { Crash::Process };
        if threads && world.numbers.chance(1, 2) {
            if world.numbers.chance(1, 3) {
                world.fail_a_sync();
                // What the sync has lost shows in the page cache only: the process's death costs as much as the power's.
                crash = Crash::Power;
            }
            world.threads(&store, steps / 2);
        } else {
            world.alone(&store, steps);
        }
        drop(store);
        store = world.reopen(crash, true).0;
    }
    world.crashes
}

fn sweep(name: &str, first_seed: u64, crashes_wanted: u64, threads: bool) {
    if let Some(seed) = from_environment("SINTER_SIM_SEED") {
        live(seed, PlantedFaults::default(), threads);
        return;
    }
    let first_seed = first_seed + from_environment("SINTER_SIM_FIRST_SEED").unwrap_or(0);
    let mut crashes = 0;
    let mut seed = first_seed;
    while crashes < crashes_wanted {
        let made = catch_unwind(AssertUnwindSafe(|| live(seed, PlantedFaults::default(), threads)));
        crashes += made.unwrap_or_else(|_| {
            panic!("seed {seed} failed; replay: SINTER_SIM_SEED={seed} cargo test --test simulation {name}")
        });
        seed += 1;
    }
    println!("{name}: {crashes} crashes under {} seeds", seed - first_seed);
}

fn crashes_wanted() -> u64 {
    from_environment("SINTER_SIM_CRASHES").unwrap_or(5000)
}

/// P1, P2, P5, P6: one client at a time.
#[test]
fn p1_every_promise_survives_a_crash_at_any_io() {
    sweep("p1_every_promise_survives_a_crash_at_any_io", 1, crashes_wanted() * 3 / 4, false);
}

/// P1 with several clients and all background work as threads under the baton.
#[test]
fn p1_every_promise_survives_a_crash_among_threads() {
    sweep("p1_every_promise_survives_a_crash_among_threads", 1_000_000, crashes_wanted() / 4, true);
}

/// How many crashes it takes until a planted fault shows; `None` when `crashes_max` do not show it.
fn crashes_until_found(faults: PlantedFaults, crashes_max: u64) -> Option<u64> {
    // Only threads are syncing at the same time.
    let threads = faults.one_syncer;
    let mut crashes = 0;
    let mut seed = 2_000_000;
    while crashes < crashes_max {
        // A panic is the simulator's way to say that it has found something.
        match catch_unwind(AssertUnwindSafe(|| live(seed, faults, threads))) {
            Ok(made) => crashes += made,
            Err(_) => return Some(crashes + 1),
        }
        seed += 1;
    }
    None
}

/// The simulator is only worth its name if it finds what breaks a rule.
#[test]
fn planted_faults_are_found() {
    let sound = PlantedFaults::default();
    let planted = [
        ("no sync before the superblock", PlantedFaults { no_sync_before_superblock: true, ..sound }),
        ("batches believed for their own checksum", PlantedFaults { ignore_chain: true, ..sound }),
        ("ids reused at once", PlantedFaults { reuse_ids_at_once: true, ..sound }),
        ("decrement before increment", PlantedFaults { decrement_first: true, ..sound }),
        ("segments erased early", PlantedFaults { erase_early: true, ..sound }),
        ("counts that wrap", PlantedFaults { wrap_counts: true, ..sound }),
        ("failed syncs told once", PlantedFaults { one_syncer: true, ..sound }),
        ("lenders taken over early", PlantedFaults { take_over_early: true, ..sound }),
    ];
    let mut missed = Vec::new();
    for (name, faults) in planted {
        match crashes_until_found(faults, 10_000) {
            Some(crashes) => println!("planted fault found after {crashes} crashes: {name}"),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "planted faults that were not found: {missed:?}");
}

/// The same short lives again and again, crashed one I/O later each time.
fn crash_at_every_io(seeds: std::ops::Range<u64>, steps: u64, snapshots: bool) {
    let mut crashes = 0;
    for seed in seeds {
        let begin = || {
            let (mut world, store) = World::new(seed, PlantedFaults::default());
            world.snapshots = snapshots;
            (world, store)
        };
        let (mut world, store) = begin();
        let before = world.plan.counts().total();
        world.alone(&store, steps);
        let ios = world.plan.counts().total() - before;
        assert!(ios > 50, "seed {seed}: {ios} I/Os are too short a life");
        for stop in 0..ios {
            let (mut world, store) = begin();
            world.plan.stop_after(stop);
            world.alone(&store, steps);
            drop(store);
            let crash = if stop % 3 == 0 { Crash::Process } else { Crash::Power };
            world.reopen(crash, false);
            crashes += 1;
        }
    }
    println!("crashed at every I/O of short lives: {crashes} crashes");
}

#[test]
fn p1_a_short_life_is_whole_after_a_crash_at_every_io() {
    crash_at_every_io(3_000_000..3_000_003, 150, false);
}

/// P4: snapshots, clones, restores and deletes, half done.
#[test]
fn p4_a_short_life_of_snapshots_is_whole_after_a_crash_at_every_io() {
    crash_at_every_io(4_000_000..4_000_004, 100, true);
}
