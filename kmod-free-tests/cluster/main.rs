//! The cluster's decisions in simulation: nodes that crash, lose power, sleep and are cut off, and clients that are
//! told nothing that does not hold (P7).
//!
//! `SINTER_CLUSTER_HISTORIES` sets how many histories are lived through, `SINTER_CLUSTER_SEED` runs one alone.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod consensus;
mod nodes;
mod oracle;
#[path = "../common/pool.rs"]
mod pool;
mod secondaries;
mod streams;
mod whole;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sinter::replica::role::PlantedFaults;

use world::{Planted, World};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// One history: faults for a while, then none.
fn live(seed: u64, planted: Planted) -> World {
    let mut world = World::new(seed, planted);
    world.run(12);
    world.heal();
    world
}

#[test]
fn p7_nothing_acknowledged_is_lost_and_nothing_old_is_read() {
    if let Some(seed) = from_environment("SINTER_CLUSTER_SEED") {
        live(seed, Planted::default());
        return;
    }
    let histories = from_environment("SINTER_CLUSTER_HISTORIES").unwrap_or(500);
    let (mut writes, mut reads, mut flushes, mut epochs, mut lost) = (0, 0, 0, 0, 0);
    for seed in 1..=histories {
        let lived = catch_unwind(AssertUnwindSafe(|| live(seed, Planted::default())));
        let world = lived.unwrap_or_else(|_| {
            panic!("seed {seed} failed; replay: SINTER_CLUSTER_SEED={seed} cargo test --test cluster p7")
        });
        writes += world.oracle.writes;
        reads += world.oracle.reads;
        flushes += world.oracle.flushes;
        epochs += world.oracle.epochs;
        lost += world.oracle.lost;
    }
    println!(
        "{histories} histories: {epochs} primaries, {writes} writes, {reads} reads, {flushes} flushes; {lost} writes, \
         not flushed, lost with all members at once"
    );
    assert!(epochs > 3 * histories && writes > 500 * histories && reads > 200 * histories && lost > 0);
}

fn found_after(planted: Planted, histories_max: u64) -> Option<u64> {
    (1..=histories_max).find(|seed| catch_unwind(AssertUnwindSafe(|| live(*seed, planted))).is_err())
}

#[test]
fn p7_planted_faults_are_found() {
    let role = PlantedFaults::default();
    let outside = Planted::default();
    let planted = |role| Planted { role, ..outside };
    let faults = [
        ("commands without a precondition", Planted { no_precondition: true, ..outside }),
        ("reads without a lease", Planted { no_lease: true, ..outside }),
        ("logs compared by bare numbers", Planted { bare_numbers: true, ..outside }),
        ("any incarnation", planted(PlantedFaults { any_incarnation: true, ..role })),
        ("asked before waited for", planted(PlantedFaults { asked_before_waited_for: true, ..role })),
        ("asked before it holds all", planted(PlantedFaults { asked_before_it_holds_all: true, ..role })),
        ("out before decided", planted(PlantedFaults { out_before_decided: true, ..role })),
        ("old epochs answered", planted(PlantedFaults { old_epochs_answered: true, ..role })),
    ];
    // Rare: it takes thousands of histories.
    let rare = ("served after hand-over", planted(PlantedFaults { served_after_hand_over: true, ..role }));
    let histories = from_environment("SINTER_CLUSTER_FAULT_HISTORIES").unwrap_or(1500);
    let mut missed = Vec::new();
    for (name, planted) in faults.into_iter().chain((histories >= 5000).then_some(rare)) {
        match found_after(planted, histories) {
            Some(histories) => println!("planted fault found after {histories} histories: {name}"),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
